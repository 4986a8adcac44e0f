//! One scoring command on candidate and champion: what it is given, what is
//! kept of it, and what is refused.

use std::collections::BTreeMap;
use std::fs;

use refit::domain::metric::Metrics;
use refit::domain::verdict::Verdict;
use refit::domain::version::{Manifest, ManifestFile};
use refit::domain::workflow::Position;
use refit::domain::workflow::step::{
    Evaluate, FirstVersion, Gate, GateRule, OnInconclusiveGate, Run, VsChampion,
};
use refit::steps::context::{StepError, StepResult};
use refit::steps::evaluate::{EvaluateOutput, run};
use refit::steps::gate::{self, GateOutput};
use refit::steps::run::RunOutput;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::support::steps::{Bench, command, done, failure, now};

/// A model is one number, which it adds to every actual value.
const SCORE: &str = r#"
import csv, json, os
env = os.environ
bias = json.load(open(env["REFIT_MODEL"] + "/model.json"))["bias"]
rows = list(csv.DictReader(open(env["REFIT_HOLDOUT"])))
with open(env["REFIT_ERRORS"], "w") as file:
    out = csv.writer(file)
    out.writerow(["block", "segment", "actual", "predicted"])
    for row in rows:
        actual = float(row["finish_s"])
        out.writerow([row["day"], row["distance"], actual, actual + bias])
json.dump({"auc": 1 - bias / 100}, open(env["REFIT_METRICS"], "w"))
"#;

/// A bench whose trainer left `bias` in `model.json`, and a holdout of 12 days.
fn trained(bias: f64) -> Bench {
    let mut bench = Bench::new("evaluate");
    let dir = bench.root.path().join("left");
    fs::create_dir_all(&dir).expect("writable");
    fs::write(dir.join("model.json"), json!({"bias": bias}).to_string()).expect("writable");
    let rows = (0..120).map(|row| format!("day-{:02},{},{}\n", row / 10, ["10k", "5k"][row % 2], row));
    fs::write(dir.join("holdout.csv"), format!("day,distance,finish_s\n{}", rows.collect::<String>()))
        .expect("writable");
    let file =
        |path: &str| ManifestFile { path: path.to_owned(), size: 1, sha256: "0".repeat(64), stored: None };
    let output = RunOutput {
        exit_code: 0,
        seconds: 1.0,
        metrics: Metrics {
            values: BTreeMap::from([("mae".parse().expect("a name"), 2.0)]),
            ..Metrics::default()
        },
        files: vec![file("model.json"), file("holdout.csv")],
        dir,
        errors: None,
        log_dropped: 0,
    };
    bench.ended("train", serde_json::to_value(output).expect("JSON"));
    bench
}

/// The same beside a champion that adds `champion`.
fn serving(bias: f64, champion: f64) -> Bench {
    let mut bench = trained(bias);
    let text = json!({"bias": champion}).to_string();
    let sha256 = hex::encode(Sha256::digest(&text));
    let size = text.len() as u64;
    let manifest = Manifest {
        schema: 1,
        model: bench.run.model.clone(),
        version: "2026-11-14".parse().expect("a name"),
        instance: bench.services.instance,
        run: None,
        sealed_at: now(),
        files: vec![ManifestFile { path: "model.json".to_owned(), size, sha256, stored: None }],
        metrics: Metrics::default(),
        provenance: serde_json::Value::Null,
    };
    let store = bench.champion(Some(manifest)).join("race-times/2026-11-14");
    fs::create_dir_all(&store).expect("writable");
    fs::write(store.join("model.json"), text).expect("writable");
    bench
}

fn scoring(program: &str) -> Evaluate {
    let line = format!("python3 - <<'PROGRAM'\n{program}\nPROGRAM\n");
    Evaluate { command: command(&line), from: None, holdout: Some("holdout.csv".to_owned()) }
}

async fn evaluated(bench: &Bench, spec: &Evaluate) -> Result<StepResult, StepError> {
    run(spec, &bench.ctx()).await
}

fn name(metric: &str) -> refit::domain::id::MetricName {
    metric.parse().expect("a name")
}

fn rule(metric: &str, confidence: Option<f64>, each_segment: bool) -> GateRule {
    GateRule {
        at: Position::default(),
        metric: name(metric),
        max: None,
        min: None,
        vs_champion: Some(VsChampion { worse_by_at_most: 0.02, confidence, stored_holdout: false }),
        each_segment,
        min_rows: Some(50),
    }
}

#[tokio::test]
async fn both_are_scored_on_one_holdout_and_the_gate_compares_them() {
    let mut bench = serving(9.0, 10.0);
    let output: EvaluateOutput = done(evaluated(&bench, &scoring(SCORE)).await);
    assert_eq!(output.champion.as_ref().map(|version| version.as_str()), Some("2026-11-14"));
    assert_eq!(output.metrics.values[&name("mae")], 9.0);
    assert_eq!((output.metrics.n, output.metrics.segments["5k"].n), (Some(120), Some(60)));
    let champion = output.champion_metrics.as_ref().expect("scored");
    assert_eq!((champion.values[&name("mae")], champion.values[&name("auc")]), (10.0, 0.9));
    let kept = fs::read_to_string(&output.errors.as_ref().expect("kept").path).expect("readable");
    let lines: Vec<&str> = kept.lines().take(3).collect();
    assert_eq!(
        lines,
        ["block,segment,actual,predicted,champion_predicted", "day-00,10k,0,9,10", "day-00,5k,1,10,11"]
    );
    assert!(!bench.dirs.attempt.exists(), "what was left is kept elsewhere");

    bench.workflow.metrics.insert(name("auc"), refit::domain::workflow::Better::Higher);
    bench.ended("evaluate", serde_json::to_value(&output).expect("JSON"));
    let rules = vec![rule("mae", Some(0.95), false), rule("mae", Some(0.95), true), rule("auc", None, false)];
    let spec = Gate { first_version: FirstVersion::Accept, inconclusive: OnInconclusiveGate::Reject, rules };
    let gate: GateOutput = done(gate::run(&spec, &bench.ctx()).await);
    assert_eq!(gate.verdict, Verdict::Pass, "{:?}", gate.rules);
    assert_eq!(
        gate.rules[0].sentence,
        "mae is 9, the champion's 10 on the same 120 rows: 10 % better; may be worse than the champion by 2 %; with \
         95 % confidence at least 10 % better, over 12 blocks"
    );
    assert_eq!(
        gate.rules[3].sentence,
        "auc is 0.91, the champion's 0.9 on the same rows: 1.11 % better; may be worse than the champion by 2 %"
    );
    assert_eq!(
        gate.warnings,
        [
            "the trainer reports mae 2, but scored on the rows of `evaluate` it is 9: 350 % worse. Either its holdout \
              is easier, or rows of it were trained on"
        ]
    );

    bench
        .ledger
        .release
        .as_mut()
        .and_then(|release| release.desired.champion.as_mut())
        .expect("serves")
        .version = "2026-11-15".parse().expect("a name");
    let message = failure(gate::run(&spec, &bench.ctx()).await);
    assert_eq!(
        message,
        "champion changed: the candidate was scored beside 2026-11-14, but 2026-11-15 serves now"
    );
}

#[tokio::test]
async fn a_first_version_is_scored_alone() {
    let mut bench = trained(9.0);
    bench.champion(None);
    let output: EvaluateOutput = done(evaluated(&bench, &scoring(SCORE)).await);
    assert_eq!((output.champion, output.champion_metrics), (None, None));
    assert_eq!(output.metrics.values[&name("mae")], 9.0);
    let kept = fs::read_to_string(output.errors.expect("kept").path).expect("readable");
    assert_eq!(kept.lines().nth(1), Some("day-00,10k,0,9,"));
    assert!(bench.log.notes().contains("nothing serves yet"), "{}", bench.log.notes());
}

#[tokio::test]
async fn what_an_attempt_that_died_left_is_none_of_the_next() {
    let bench = serving(9.0, 10.0);
    for name in ["candidate", "champion"] {
        fs::create_dir_all(bench.dirs.attempt.join(name)).expect("writable");
        fs::write(bench.dirs.attempt.join(name).join("errors.csv"), "torn").expect("writable");
    }
    // Scored by nobody now: what lies there from before does not count.
    let silent = failure(evaluated(&bench, &scoring("pass")).await);
    assert_eq!(
        silent,
        "the command succeeded, but for the candidate it wrote neither $REFIT_ERRORS nor a metric"
    );
    let first: EvaluateOutput = done(evaluated(&bench, &scoring(SCORE)).await);
    let again: EvaluateOutput = done(evaluated(&bench, &scoring(SCORE)).await);
    assert_eq!(first.errors, again.errors, "twice is once");
}

#[tokio::test]
async fn rows_that_are_not_the_same_are_refused_with_their_line() {
    let bench = serving(9.0, 10.0);
    let of = |rows: &str| {
        let program = format!(
            "import json, os\n\
             bias = json.load(open(os.environ['REFIT_MODEL'] + '/model.json'))['bias']\n\
             rows = {rows}\n\
             open(os.environ['REFIT_ERRORS'], 'w').write('block,actual,predicted\\n' + ''.join(rows))"
        );
        scoring(&program)
    };
    for (rows, problem) in [
        (
            "[f'a,{bias},1\\n']",
            "line 2: the candidate has block `a`, segment ``, actual 9, the champion block `a`, segment ``, actual 10; a \
             scoring command writes the same rows in the same order for both versions",
        ),
        ("['a,1,1\\n'] * int(11 - bias)", "line 3: the champion's rows have ended; a scoring"),
        ("['a,1,1\\n'] * int(bias)", "line 11: the candidate's rows have ended; a scoring"),
        (
            "['a,1,nan\\n']",
            "its $REFIT_ERRORS for the candidate is not valid: line 2: `predicted` is not finite",
        ),
        (
            "['a,1,1\\n'] if bias == 9 else []",
            "its $REFIT_ERRORS for the champion is not valid: it has no rows",
        ),
    ] {
        let message = failure(evaluated(&bench, &of(rows)).await);
        assert!(message.contains(problem), "{message}");
    }
    let only = scoring(
        "import os\nif 'left' in os.environ['REFIT_MODEL']: open(os.environ['REFIT_ERRORS'], 'w').write('block,actual,predicted\\na,1,2\\n')\nelse: open(os.environ['REFIT_METRICS'], 'w').write('{\"mae\": 1}')",
    );
    let message = failure(evaluated(&bench, &only).await);
    assert_eq!(message, "the command succeeded, but it wrote $REFIT_ERRORS for the candidate only");
    let liar = scoring(&format!("{SCORE}\njson.dump({{'mae': 1}}, open(env['REFIT_METRICS'], 'w'))"));
    let message = failure(evaluated(&bench, &liar).await);
    assert!(message.ends_with("reports mae 1, but its $REFIT_ERRORS give 9 over 120 rows"), "{message}");
    assert!(!bench.dirs.kept.join("evaluate/errors.csv").exists(), "nothing is kept");
}

#[tokio::test]
async fn a_command_that_fails_and_files_that_are_missing_are_told() {
    let bench = serving(9.0, 10.0);
    let failing = Evaluate { command: command("echo broken >&2; exit 3"), ..scoring("") };
    let message = failure(evaluated(&bench, &failing).await);
    assert_eq!(message, "the command exited with code 3:\n  broken");
    let spec = Evaluate { holdout: Some("rows.csv".to_owned()), ..scoring(SCORE) };
    let message = failure(evaluated(&bench, &spec).await);
    assert_eq!(message, "holdout: there is no file `rows.csv` among the candidate's files");
    let spec = Evaluate { from: Some("export".parse().expect("an id")), ..scoring(SCORE) };
    assert_eq!(failure(evaluated(&bench, &spec).await), "step `export` left no files to score");
    // The scoring command is a guest of the same guard as trainers: its clean environment, and what it is given.
    let spec = Evaluate {
        command: Run {
            ..command("env | grep -o '^REFIT_[A-Z]*' | sort; echo '{\"x\": 1}' > $REFIT_METRICS")
        },
        ..scoring("")
    };
    let _: EvaluateOutput = done(evaluated(&bench, &spec).await);
    let names = "REFIT_ATTEMPT\nREFIT_DATA\nREFIT_ERRORS\nREFIT_HOLDOUT\nREFIT_METRICS\nREFIT_MODEL\nREFIT_OUT\nREFIT_RUN\n";
    assert!(bench.log.output().ends_with(&names.repeat(2)), "{}", bench.log.output());
}
