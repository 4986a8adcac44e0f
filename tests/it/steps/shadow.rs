//! A predict command on champion and candidate, over rows whose truth arrived.

use std::fs;
use std::time::Duration;

use chrono::TimeDelta;
use refit::domain::canary::{CanaryRecord, CanaryState};
use refit::domain::evidence::ScoredRow;
use refit::domain::expr::Template;
use refit::domain::id::{CanaryId, Generation};
use refit::domain::metric::Metrics;
use refit::domain::verdict::Verdict;
use refit::domain::version::{Manifest, ManifestFile};
use refit::domain::workflow::step::{Compare, Run, Shadow, Source, Wait};
use refit::domain::workflow::units::BasisPoints;
use refit::steps::canary::{CanaryOutput, Rollout};
use refit::steps::context::{Sleep, StepError, StepResult};
use refit::steps::shadow::{ShadowOutput, run};
use refit::steps::wait::EndedBy;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::steps::{Bench, command, done, failure, now};

/// A model is one number, which it adds to `x`; it must not see the truth.
const PREDICT: &str = r#"
import csv, json, os
env = os.environ
bias = json.load(open(env["REFIT_MODEL"] + "/model.json"))["bias"]
rows = list(csv.DictReader(open(env["REFIT_ROWS"])))
assert "actual" not in rows[0] and not os.path.exists(os.path.dirname(env["REFIT_ROWS"]) + "/all.csv")
out = csv.writer(open(env["REFIT_PREDICTIONS"], "w"))
out.writerow(["id", "prediction"])
for row in reversed(rows):
    out.writerow([row["id"], float(row["x"]) + bias])
"#;

/// Version 1 adds 1 and serves; version 2 adds 3 and is on canary since an hour ago.
fn on_canary() -> Bench {
    let mut bench = Bench::new("shadow");
    let manifest = |bench: &Bench, version: &str, text: &str| Manifest {
        schema: 1,
        model: bench.run.model.clone(),
        version: version.parse().expect("a name"),
        instance: bench.services.instance,
        run: None,
        sealed_at: now(),
        files: vec![ManifestFile {
            path: "model.json".to_owned(),
            size: text.len() as u64,
            sha256: hex::encode(Sha256::digest(text)),
            stored: None,
        }],
        metrics: Metrics::default(),
        provenance: Value::Null,
    };
    for (version, bias) in [("2", 3), ("1", 1)] {
        let text = json!({"bias": bias}).to_string();
        let manifest = manifest(&bench, version, &text);
        let dir = bench.champion(Some(manifest)).join("race-times").join(version);
        fs::create_dir_all(&dir).expect("writable");
        fs::write(dir.join("model.json"), text).expect("writable");
    }
    let output = CanaryOutput {
        rollout: Rollout::OnCanary,
        target: "production".parse().expect("a name"),
        version: "2".parse().expect("a name"),
        champion: Some("1".parse().expect("a name")),
        generation: Some(Generation(8)),
        share: BasisPoints(1000),
        canary: None,
        approval: None,
    };
    bench.ended("canary", serde_json::to_value(output).expect("JSON"));
    bench.ledger.canary = Some(CanaryRecord {
        id: CanaryId::generate(),
        run: bench.run.id,
        model: bench.run.model.clone(),
        target: "production".parse().expect("a name"),
        version: "2".parse().expect("a name"),
        champion: "1".parse().expect("a name"),
        generation: Generation(8),
        stages: vec![],
        stage: 0,
        stage_since: now(),
        rules: Compare::without_rules(),
        started_at: now() - TimeDelta::hours(1),
        deadline: None,
        state: CanaryState::Watching,
        bake_until: None,
        verdict: Verdict::Inconclusive,
        reason: String::new(),
        analysis: Value::Null,
        next_look_at: now(),
        ended_at: None,
        extensions: vec![],
    });
    bench
}

/// Reads `rows.csv` every hour for a day.
fn hourly(program: &str) -> Shadow {
    let line = format!("python3 - <<'PROGRAM'\n{program}\nPROGRAM\n");
    Shadow {
        command: Run { ..command(&line) },
        rows: Source::File { path: Template::literal("rows.csv") },
        every: Duration::from_secs(3600),
        wait: Wait { at_least: Duration::from_secs(86_400), until: None, at_most: None, abort_if: None },
    }
}

fn rows(bench: &Bench, rows: &[&str]) {
    let text = format!("id,x,actual,at,block\n{}\n", rows.join("\n"));
    fs::write(bench.project("rows.csv"), text).expect("writable");
}

fn scored(bench: &Bench) -> Vec<ScoredRow> {
    bench.ledger.scored.lock().expect("unpoisoned").clone()
}

/// Runs it, and takes over what it leaves for itself; how long it sleeps.
async fn slept(bench: &mut Bench, spec: &Shadow) -> TimeDelta {
    use refit::clock::Clock;
    match run(spec, &bench.ctx()).await {
        Ok(StepResult::Sleep(Sleep { until: Some(until), resume, .. })) => {
            bench.resume = Some(resume);
            until - bench.clock.now()
        }
        other => panic!("it does not sleep: {other:?}"),
    }
}

const SAME_HOUR: &str = "a,10,12,2026-11-21T01:30:00Z,r1";

#[tokio::test]
async fn a_row_whose_truth_arrived_is_scored_once_by_both() {
    let mut bench = on_canary();
    // Known before the canary, not known yet, and of the future: none of them counts.
    let others = ["old,1,1,2026-11-21,r0", "open,1,,2026-11-21T01:30:00Z,r1", "later,1,1,2026-12-01,r9"];
    rows(&bench, &[others[0], SAME_HOUR, others[1], others[2]]);
    let spec = hourly(PREDICT);
    assert_eq!(slept(&mut bench, &spec).await, TimeDelta::hours(1));
    let first = ScoredRow {
        id: "a".to_owned(),
        block: Some("r1".to_owned()),
        served_at: None,
        truth: 12.0,
        stable: 1.0,
        canary: 1.0,
    };
    assert_eq!(scored(&bench), std::slice::from_ref(&first));
    assert!(bench.log.notes().contains("1 new rows with their truth"), "{}", bench.log.notes());

    // Woken by somebody before its hour: nothing is read.
    bench.clock.advance(TimeDelta::minutes(10));
    rows(&bench, &[SAME_HOUR, "open,1,1,2026-11-21T02:05:00Z,r1"]);
    assert_eq!(slept(&mut bench, &spec).await, TimeDelta::minutes(50));
    assert_eq!(scored(&bench).len(), 1);
    bench.clock.advance(TimeDelta::minutes(50));
    slept(&mut bench, &spec).await;
    let second = ScoredRow { id: "open".to_owned(), truth: 1.0, stable: 1.0, canary: 3.0, ..first.clone() };
    assert_eq!(scored(&bench), [first, second]);
    let asked = || bench.ledger.asked.lock().expect("unpoisoned").drain(..).collect::<Vec<_>>();
    assert_eq!(asked(), [(0, 0), (0, 1)], "what was read is not read again");

    // A process that died before it slept scores nothing again.
    bench.resume = None;
    slept(&mut bench, &spec).await;
    assert_eq!(scored(&bench).len(), 2);
    bench.clock.advance(TimeDelta::hours(24));
    let output: ShadowOutput = done(run(&spec, &bench.ctx()).await);
    assert_eq!(output.ended_by, EndedBy::Time);
}

#[tokio::test]
async fn without_a_canary_or_after_it_there_is_nothing_to_score() {
    let mut bench = on_canary();
    rows(&bench, &[SAME_HOUR]);
    bench.ledger.canary.as_mut().expect("a canary").state = CanaryState::RolledBack;
    let output: ShadowOutput = done(run(&hourly(PREDICT), &bench.ctx()).await);
    assert_eq!(output.ended_by, EndedBy::CanaryEnded);
    bench.ledger.canary = None;
    let output: ShadowOutput = done(run(&hourly(PREDICT), &bench.ctx()).await);
    assert_eq!(output.ended_by, EndedBy::NoCanary);
    assert!(scored(&bench).is_empty());
    bench.history.clear();
    assert_eq!(failure(run(&hourly(PREDICT), &bench.ctx()).await), "no canary step ran before this one");
}

/// The same versions, and nothing is on canary because the mode does not act.
fn advised() -> Bench {
    let mut bench = on_canary();
    bench.ledger.canary = None;
    let output = CanaryOutput {
        rollout: Rollout::Advised,
        target: "production".parse().expect("a name"),
        version: "2".parse().expect("a name"),
        champion: Some("1".parse().expect("a name")),
        generation: None,
        share: BasisPoints(1000),
        canary: None,
        approval: None,
    };
    bench.history.clear();
    bench.ended("canary", serde_json::to_value(output).expect("JSON"));
    bench
}

#[tokio::test]
async fn in_a_mode_that_does_not_act_rows_are_scored_and_what_they_say_is_kept() {
    let mut bench = advised();
    rows(&bench, &[]);
    let spec = hourly(PREDICT);
    assert_eq!(slept(&mut bench, &spec).await, TimeDelta::hours(1));
    let arrived = ["a,10,12,2026-11-21T02:10:00Z,r1", "b,10,11,2026-11-21T02:10:00Z,r1"];
    rows(&bench, &arrived);
    bench.clock.advance(TimeDelta::hours(24));
    let output: ShadowOutput = done(run(&spec, &bench.ctx()).await);
    assert_eq!((output.ended_by, output.rows, scored(&bench).len()), (EndedBy::Time, 2, 2));
    let advice = output.advice.expect("something is said");
    assert_eq!(
        (advice.verdict, advice.reason.as_str()),
        (Verdict::Inconclusive, "the workflow compares nothing")
    );
}

#[tokio::test]
async fn a_source_that_is_away_fails_the_run_only_when_it_stays_away() {
    let mut bench = on_canary();
    rows(&bench, &[SAME_HOUR]);
    let spec = Shadow { command: command("echo away >&2; exit 1"), ..hourly("") };
    // Two rounds that fail are tried again; the third in a row is one too many.
    for _ in 0..2 {
        let pause = slept(&mut bench, &spec).await;
        assert!(pause > TimeDelta::zero() && pause < TimeDelta::hours(1), "{pause}");
        bench.clock.advance(pause);
    }
    let message = failure(run(&spec, &bench.ctx()).await);
    assert_eq!(message, "3 rounds in a row failed; the last: the command exited with code 1:\n  away");
    let works = hourly(PREDICT);
    assert_eq!(slept(&mut bench, &works).await, TimeDelta::hours(1));
    bench.clock.advance(TimeDelta::hours(1));
    rows(&bench, &[SAME_HOUR, "b,1,1,2026-11-21T02:05:00Z,r1"]);
    slept(&mut bench, &spec).await;
}

#[tokio::test]
async fn what_has_its_truth_when_the_time_is_over_is_scored_before_the_step_ends() {
    let mut bench = on_canary();
    let away = Shadow { command: command("exit 1"), ..hourly("") };
    let works =
        Shadow { wait: Wait { at_least: Duration::from_secs(5400), ..away.wait.clone() }, ..hourly(PREDICT) };
    rows(&bench, &[]);
    slept(&mut bench, &works).await;
    // More than one round takes, since the last one; and the round in which the time is over fails.
    let many: Vec<String> = (0..=10_000).map(|id| format!("{id},1,1,2026-11-21T02:05:00Z,r1")).collect();
    rows(&bench, &many.iter().map(String::as_str).collect::<Vec<_>>());
    bench.clock.advance(TimeDelta::minutes(90));
    let pause = slept(&mut bench, &Shadow { wait: works.wait.clone(), ..away }).await;
    assert!(pause > TimeDelta::zero() && pause < TimeDelta::hours(1), "{pause}");
    bench.clock.advance(pause);
    let output: ShadowOutput = done(run(&works, &bench.ctx()).await);
    assert_eq!((output.ended_by, output.rows, scored(&bench).len()), (EndedBy::Time, 10_001, 10_001));
}

#[tokio::test]
async fn predictions_are_read_strictly() {
    let mut bench = on_canary();
    rows(&bench, &[SAME_HOUR, "b,1,1,2026-11-21T01:40:00Z,"]);
    for (text, problem) in [
        ("", "have no column `id`"),
        ("id,prediction\\na,1\\n", "lack the id `b`"),
        ("id,prediction\\na,1\\nb,nan\\n", "line 3: the prediction of `b` is no finite number"),
        ("id,prediction\\na,1\\na,1\\n", "line 3: `a` is there a second time"),
        ("id,prediction\\nc,1\\n", "line 2: nobody asked for the id `c`"),
    ] {
        let spec =
            Shadow { command: command(&format!("printf '{text}' > \"$REFIT_PREDICTIONS\"")), ..hourly("") };
        let message: Result<StepResult, StepError> = run(&spec, &bench.ctx()).await;
        let message = failure(message);
        let begin = "the command succeeded, but its $REFIT_PREDICTIONS for the champion 1 ";
        assert_eq!(message, format!("{begin}{problem}"));
    }
    let silent = Shadow { command: command("true"), ..hourly("") };
    let message = failure(run(&silent, &bench.ctx()).await);
    assert!(message.ends_with("for the champion 1 were not written"), "{message}");
    assert!(scored(&bench).is_empty());
    rows(&bench, &["a,1,1,yesterday,"]);
    let message = failure(run(&hourly(PREDICT), &bench.ctx()).await);
    assert_eq!(message, "from: line 2: `at` is `yesterday`, neither a date nor a time");
    bench.resume = Some(json!({"since": "x"}));
    failure(run(&hourly(PREDICT), &bench.ctx()).await);
}
