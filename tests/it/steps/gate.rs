//! The gate as a step: what it gathers, and what becomes of its verdict.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use refit::domain::id::Generation;
use refit::domain::metric::Metrics;
use refit::domain::release::Release;
use refit::domain::run::{Outcome, SignalKind};
use refit::domain::verdict::Verdict;
use refit::domain::version::Manifest;
use refit::domain::workflow::step::{FirstVersion, Gate, GateRule, OnInconclusiveGate, VsChampion};
use refit::domain::workflow::{Moment, Position, StepKind};
use refit::steps::context::{Sleep, StepResult};
use refit::steps::gate::{GateOutput, run};
use refit::steps::run::{ErrorsFile, RunOutput};
use sha2::{Digest, Sha256};

use crate::support::steps::{Bench, a_step, done, failure, now};

fn rule(max: Option<f64>, vs: Option<f64>) -> GateRule {
    let compare =
        |worse_by_at_most| VsChampion { worse_by_at_most, confidence: Some(0.95), stored_holdout: false };
    GateRule {
        at: Position::default(),
        metric: "mae".parse().expect("a name"),
        max,
        min: None,
        vs_champion: vs.map(compare),
        each_segment: false,
        min_rows: None,
    }
}

fn gate(rules: Vec<GateRule>) -> Gate {
    Gate { first_version: FirstVersion::RequireApproval, inconclusive: OnInconclusiveGate::Reject, rules }
}

/// A bench whose trainer reported `mae`, and left a holdout where the champion's is 10.
fn trained(mae: f64, holdout: bool) -> Bench {
    let mut bench = Bench::new("gate");
    let mut csv = "block,actual,predicted,champion_predicted\n".to_owned();
    for day in 0..30 {
        for row in 0..10 {
            writeln!(csv, "day-{day},{row},{},{}", f64::from(row) + mae, row + 10).expect("in memory");
        }
    }
    let path = bench.root.path().join("errors.csv");
    std::fs::write(&path, &csv).expect("writable");
    let sha256 = hex::encode(Sha256::digest(&csv));
    let errors = holdout.then_some(ErrorsFile { path, sha256, size: csv.len() as u64 });
    let output = RunOutput {
        exit_code: 0,
        seconds: 1.0,
        metrics: Metrics {
            values: BTreeMap::from([("mae".parse().expect("a name"), mae)]),
            ..Metrics::default()
        },
        files: Vec::new(),
        dir: bench.root.path().to_owned(),
        errors,
        log_dropped: 0,
    };
    bench.ended("train", serde_json::to_value(output).expect("JSON"));
    bench
}

fn manifest(bench: &Bench) -> Manifest {
    Manifest {
        schema: 1,
        model: bench.run.model.clone(),
        version: "2026-11-14".parse().expect("a name"),
        instance: bench.services.instance,
        run: None,
        sealed_at: now(),
        files: Vec::new(),
        metrics: Metrics::default(),
        provenance: serde_json::Value::Null,
    }
}

fn serving(mae: f64, holdout: bool) -> Bench {
    let mut bench = trained(mae, holdout);
    let manifest = manifest(&bench);
    bench.champion(Some(manifest));
    bench
}

fn rejected(result: Result<StepResult, refit::steps::context::StepError>) -> String {
    match result {
        Ok(StepResult::End { outcome: Outcome::Rejected, reason, .. }) => reason,
        other => panic!("not rejected: {other:?}"),
    }
}

#[tokio::test]
async fn a_better_candidate_passes_and_the_champion_is_remembered() {
    let bench = serving(9.0, true);
    let output: GateOutput = done(run(&gate(vec![rule(Some(12.0), Some(0.02))]), &bench.ctx()).await);
    assert_eq!(output.verdict, Verdict::Pass);
    assert_eq!(output.champion.expect("serves").as_str(), "2026-11-14");
    assert_eq!(output.generation, Some(Generation(7)));
    assert_eq!(output.rules.len(), 2);
    assert!(bench.log.notes().contains("10 % better"), "{}", bench.log.notes());
}

#[tokio::test]
async fn a_worse_candidate_is_refused_in_plain_words() {
    let bench = serving(11.0, true);
    let reason = rejected(run(&gate(vec![rule(None, Some(0.02))]), &bench.ctx()).await);
    assert_eq!(
        reason,
        "the gate refused: mae is 11, the champion's 10 on the same 300 rows: 10 % worse; may be worse than the \
         champion by 2 %; with 95 % confidence at least 10 % worse, over 30 blocks"
    );
}

#[tokio::test]
async fn where_versions_are_promoted_by_hand_a_candidate_competes_with_what_serves() {
    let mut bench = serving(11.0, true);
    bench.workflow.steps.retain(|step| !matches!(step.kind, StepKind::Canary(_)));
    let rules = gate(vec![rule(None, Some(0.02))]);
    bench.workflow.steps.push(a_step("gate", StepKind::Gate(rules.clone())));
    let reason = rejected(run(&rules, &bench.ctx()).await);
    assert!(reason.contains("worse"), "{reason}");

    let production = bench.ledger.release.clone().expect("serves");
    bench.ledger.elsewhere = Some(Release { target: "staging".parse().expect("a name"), ..production });
    let failed = failure(run(&rules, &bench.ctx()).await);
    let said = "which champion is meant is not said: the model has releases on `production` and `staging`";
    assert!(failed.starts_with(said), "{failed}");
    let output: GateOutput = done(run(&gate(vec![rule(Some(12.0), None)]), &bench.ctx()).await);
    assert_eq!((output.verdict, output.champion), (Verdict::Pass, None), "nothing compares");
}

#[tokio::test]
async fn a_gate_that_cannot_tell_does_as_it_is_told() {
    let bench = serving(9.0, false);
    let mut spec = gate(vec![rule(None, Some(0.02))]);
    let reason = rejected(run(&spec, &bench.ctx()).await);
    assert!(
        reason.starts_with("the gate cannot tell: mae: cannot tell, candidate and champion were not"),
        "{reason}"
    );
    spec.inconclusive = OnInconclusiveGate::Continue;
    let output: GateOutput = done(run(&spec, &bench.ctx()).await);
    assert_eq!(output.verdict, Verdict::Inconclusive);
    spec.inconclusive = OnInconclusiveGate::Approve;
    assert!(matches!(run(&spec, &bench.ctx()).await, Ok(StepResult::Sleep(_))));
}

#[tokio::test]
async fn a_first_version_waits_for_a_human() {
    let mut bench = trained(9.0, false);
    bench.champion(None);
    let spec = gate(vec![rule(Some(12.0), None), rule(None, Some(0.02))]);
    let Ok(StepResult::Sleep(Sleep { resume, tell, .. })) = run(&spec, &bench.ctx()).await else {
        panic!("it does not wait")
    };
    assert!(matches!(tell, Some((Moment::NeedsApproval, _))));
    bench.resume = Some(resume);
    let other = "canary".parse().expect("a step id");
    bench.signal(SignalKind::Approve { step: other });
    assert!(
        matches!(run(&spec, &bench.ctx()).await, Ok(StepResult::Sleep(Sleep { tell: None, .. }))),
        "an approval of another step is not one of this"
    );
    bench.signal(SignalKind::Approve { step: bench.step.clone() });
    let output: GateOutput = done(run(&spec, &bench.ctx()).await);
    assert_eq!(output.approved_by.as_deref(), Some("ada"));
    bench.signal(SignalKind::Reject { step: bench.step.clone() });
    assert_eq!(rejected(run(&spec, &bench.ctx()).await), "ada rejected it: seen");
}

#[tokio::test]
async fn a_first_version_can_do_without_but_not_without_any_rule() {
    let mut bench = trained(9.0, false);
    bench.champion(None);
    let mut spec = gate(vec![rule(Some(12.0), None), rule(None, Some(0.02))]);
    spec.first_version = FirstVersion::Accept;
    let output: GateOutput = done(run(&spec, &bench.ctx()).await);
    assert_eq!((output.verdict, output.champion), (Verdict::Pass, None));
    spec.rules.remove(0);
    rejected(run(&spec, &bench.ctx()).await);
    let refused = gate(vec![rule(Some(5.0), None)]);
    rejected(run(&refused, &bench.ctx()).await);
}

#[tokio::test]
async fn a_trainer_whose_rows_say_otherwise_is_an_error() {
    let mut bench = serving(9.0, true);
    let mut output = bench.history[0].output.take().expect("an output");
    output["metrics"]["values"]["mae"] = 5.0.into();
    bench.history[0].output = Some(output);
    let message = failure(run(&gate(vec![rule(Some(12.0), None)]), &bench.ctx()).await);
    assert_eq!(message, "the trainer reports mae 5, but its $REFIT_ERRORS give 9 over 300 rows");
}

#[tokio::test]
async fn a_gate_without_a_trainer_is_an_error() {
    let bench = Bench::new("gate");
    failure(run(&gate(vec![rule(Some(12.0), None)]), &bench.ctx()).await);
}

#[tokio::test]
async fn a_holdout_from_all_over_the_time_is_warned_about() {
    let mut bench = serving(9.0, true);
    let mut csv = "block,actual,predicted,champion_predicted\n".to_owned();
    for day in 1..=28 {
        writeln!(csv, "2026-10-{day:02},{day},{},{}", day + 9, day + 10).expect("in memory");
    }
    let path = bench.root.path().join("errors.csv");
    std::fs::write(&path, &csv).expect("writable");
    let mut trained = bench.history[0].output.take().expect("an output");
    trained["errors"]["sha256"] = hex::encode(Sha256::digest(&csv)).into();
    bench.history[0].output = Some(trained);
    let data = serde_json::json!({
        "file": "rows.csv", "rows": 280, "bytes": 1, "sha256": "",
        "columns": [{ "name": "race_date", "empty": 0, "min": "2026-10-01", "max": "2026-10-28" }],
    });
    bench.ended("data", data);
    let output: GateOutput = done(run(&gate(vec![rule(Some(12.0), Some(0.02))]), &bench.ctx()).await);
    assert_eq!(output.warnings.len(), 1);
    assert!(output.warnings[0].contains("a random split over time-ordered data"), "{:?}", output.warnings);
}
