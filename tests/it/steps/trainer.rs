//! The trainer contract, with trainers that keep it and trainers that do not.

use std::collections::BTreeMap;
use std::fs;

use refit::domain::expr::Template;
use refit::domain::metric::Metrics;
use refit::domain::version::{Manifest, ManifestFile};
use refit::domain::workflow::step::{Limits, Outputs, Run, StdoutMetric};
use refit::steps::context::{StepError, StepResult};
use refit::steps::run::RunOutput;
use sha2::{Digest, Sha256};

use crate::support::small_disk::SmallDisk;
use crate::support::steps::{Bench, command, done, failure, now};

/// A trainer as today's users have it: it prints its metrics.
fn printing(line: &str) -> Run {
    let metric =
        |pattern: &str| StdoutMetric { pattern: regex::Regex::new(pattern).expect("a pattern"), pick: None };
    let stdout_metrics = BTreeMap::from([
        ("mae".parse().expect("a name"), metric(r"MAE: (\S+)")),
        ("r2".parse().expect("a name"), metric(r"R²: (\S+)")),
    ]);
    Run { stdout_metrics, ..command(line) }
}

/// One that leaves files in `models`.
fn exporting(line: &str) -> Run {
    let outputs =
        Outputs { from: "models".to_owned(), files: "*.json".to_owned(), count: None, max_total: None };
    Run { outputs: Some(outputs), ..command(line) }
}

fn python(program: &str) -> String {
    format!("python3 - <<'PROGRAM'\n{program}\nPROGRAM\n")
}

#[tokio::test]
async fn a_trainer_of_today_runs_unmodified() {
    let bench = Bench::new("train");
    let program = "import os\nprint('MAE: 512.3')\nprint('R²: 0.91')\nos.makedirs('models', exist_ok=True)\n\
        for name in ('a', 'b'):\n    open(f'models/{name}.json', 'w').write('{}')";
    let spec = Run { outputs: exporting("").outputs, ..printing(&python(program)) };
    let output: RunOutput = done(bench.run_command(&spec).await);
    assert_eq!(output.metrics.values.values().copied().collect::<Vec<_>>(), [512.3, 0.91]);
    let paths: Vec<_> = output.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(paths, ["a.json", "b.json"]);
    assert_eq!(fs::read_to_string(output.dir.join("a.json")).expect("kept"), "{}");
    assert_eq!(output.errors, None);
    assert!(bench.log.output().contains("R²: 0.91"));
}

#[tokio::test]
async fn a_trainer_that_knows_refit_writes_where_it_is_told() {
    let bench = Bench::new("train");
    fs::create_dir_all(&bench.dirs.data).expect("writable");
    fs::write(bench.dirs.data.join("rows.csv"), "a\n1\n").expect("writable");
    let program = r#"
import json, os
env = os.environ
assert open(env["REFIT_DATA"] + "/rows.csv").read() == "a\n1\n"
assert env["REFIT_ATTEMPT"] == "1" and env["REFIT_CHAMPION"] == ""
os.makedirs(env["REFIT_OUT"] + "/weights")
open(env["REFIT_OUT"] + "/weights/model.json", "w").write("{}")
json.dump({"mae": 1.5, "n": 10, "segments": {"sprint": {"mae": 2, "n": 4}}}, open(env["REFIT_METRICS"], "w"))
open(env["REFIT_ERRORS"], "w").write("block,actual,predicted\na,1,2\n")
print(json.dumps({"refit": "progress", "pct": 40, "message": "fitting"}))
print("done")
"#;
    let spec = Run { metrics_file: true, ..command(&python(program)) };
    let output: RunOutput = done(bench.run_command(&spec).await);
    assert_eq!(output.metrics.n, Some(10));
    assert_eq!(output.metrics.segments["sprint"].n, Some(4));
    assert_eq!(output.files[0].path, "weights/model.json");
    assert!(output.errors.expect("kept").path.is_file());
    assert_eq!(bench.log.progress_lines(), [(Some(40.0), "fitting".to_owned())]);
    assert_eq!(bench.log.output(), "done\n");
}

#[tokio::test]
async fn silence_garbage_and_ambiguity_are_errors() {
    for (program, problem) in [
        ("pass", "metric `mae`: no line of standard output matches"),
        ("import sys; sys.stdout.buffer.write(bytes(range(256)) * 1000)", "metric `mae`: no line"),
        ("print('MAE: 1'); print('MAE: 2'); print('R²: 1')", "matched 2 times"),
        ("print('MAE: nan'); print('R²: 1')", "found `nan`, which is not a finite number"),
        ("print('MAE: inf'); print('R²: 1')", "found `inf`"),
        ("print('MAE: '); print('R²: 1')", "metric `mae`: no line"),
    ] {
        let bench = Bench::new("train");
        let message = failure(bench.run_command(&printing(&python(program))).await);
        assert!(message.starts_with("the command succeeded, but ") && message.contains(problem), "{message}");
        assert!(!bench.dirs.kept.join("train").exists(), "nothing is kept");
    }
}

#[tokio::test]
async fn a_metrics_file_is_read_strictly() {
    for (text, problem) in [
        (r#"{"mae": NaN}"#, "NaN and Infinity are no metrics"),
        (r#"{"mae": 1, "mae": 2}"#, "`mae` is there twice"),
        ("", "$REFIT_METRICS is not valid"),
    ] {
        let bench = Bench::new("train");
        let line = format!("printf '%s' '{text}' > $REFIT_METRICS");
        let message = failure(bench.run_command(&command(&line)).await);
        assert!(message.contains(problem), "{message}");
    }
    let bench = Bench::new("train");
    let spec = Run { metrics_file: true, ..command("true") };
    assert!(failure(bench.run_command(&spec).await).contains("it did not write $REFIT_METRICS"));
    let spec = command("head -c 2000000 /dev/zero > $REFIT_METRICS");
    assert!(failure(bench.run_command(&spec).await).contains("are read at most"));
    let spec = command("ln -s /etc/passwd $REFIT_METRICS");
    assert!(failure(bench.run_command(&spec).await).contains("$REFIT_METRICS is not a regular file"));
}

#[tokio::test]
async fn a_trainer_that_exits_0_without_outputs_fails() {
    let bench = Bench::new("export");
    let message = failure(bench.run_command(&exporting("true")).await);
    assert_eq!(
        message,
        "the command succeeded, but there is no directory models, where its outputs should be"
    );
    let message = failure(bench.run_command(&exporting("mkdir models")).await);
    assert_eq!(message, "the command succeeded, but it left no file `*.json` in models");
}

#[tokio::test]
async fn the_models_of_last_week_never_pass() {
    let bench = Bench::new("export");
    fs::create_dir_all(bench.project("models")).expect("writable");
    for name in ["a.json", "b.json"] {
        fs::write(bench.project("models").join(name), "last week").expect("writable");
    }
    let message = failure(bench.run_command(&exporting("true")).await);
    assert_eq!(
        message,
        "the command succeeded, but 2 of 2 files in models were not written in this run: `a.json`, `b.json`"
    );
    let message = failure(bench.run_command(&exporting("echo new > models/a.json")).await);
    assert!(message.contains("1 of 2 files in models were not written in this run: `b.json`"), "{message}");
    let both = exporting("echo new > models/a.json; echo 'last week' > models/b.json");
    let output: RunOutput = done(bench.run_command(&both).await);
    assert_eq!(output.files.len(), 2, "the same content, written again, is this run's");
}

#[tokio::test]
async fn links_out_of_the_directory_are_refused() {
    let bench = Bench::new("export");
    for line in [
        "mkdir -p models; ln -sf /etc/hostname models/a.json",
        "echo x > secret.json; mkdir -p models; ln -sf ../secret.json models/a.json",
        "ln -sf /etc/hostname $REFIT_OUT/a.json; mkdir -p models; rm -f models/*; echo > models/b.json",
    ] {
        let message = failure(bench.run_command(&exporting(line)).await);
        assert!(message.contains("is a link out of it"), "{message}");
    }
    let pipe = exporting("rm -f models/*; mkfifo models/a.json");
    assert!(failure(bench.run_command(&pipe).await).contains("`a.json` in models is not a regular file"));
    assert!(!bench.dirs.kept.join("export").exists(), "nothing is kept");
}

#[tokio::test]
async fn a_new_attempt_finds_nothing_of_the_last() {
    let bench = Bench::new("train");
    let first = "echo '{\"mae\": 1}' > $REFIT_METRICS; echo x > $REFIT_OUT/model; exit 1";
    failure(bench.run_command(&command(first)).await);
    let output: RunOutput = done(bench.run_command(&command("ls $REFIT_OUT")).await);
    assert_eq!((output.metrics, output.files), (Metrics::default(), Vec::new()));
}

#[tokio::test]
async fn a_failure_shows_its_last_words_without_secrets() {
    let bench = Bench::new("train");
    let token = Template::compile("${{ secrets.TOKEN }}").expect("a template");
    let env = BTreeMap::from([("TOKEN".to_owned(), token)]);
    let message =
        failure(bench.run_command(&Run { env, ..command("echo $TOKEN is wrong >&2; exit 3") }).await);
    assert!(bench.log.output().contains("hunter22"), "the receiver of the log masks it");
    assert_eq!(message, "the command exited with code 3:\n  *** is wrong");
    let message = failure(bench.run_command(&command("kill -9 $$")).await);
    assert_eq!(message, "the command was ended by SIGKILL (signal 9), and printed no error");
    let message = failure(bench.run_command(&command("no-such-program")).await);
    assert!(message.starts_with("the command exited with code 127"), "{message}");
}

#[tokio::test]
async fn the_environment_is_clean() {
    let bench = Bench::new("train");
    let env = BTreeMap::from([("EPOCHS".to_owned(), Template::compile("3").expect("a template"))]);
    bench.run_command(&Run { env, ..command("env") }).await.expect("succeeds");
    let mut names: Vec<String> =
        bench.log.output().lines().filter_map(|line| Some(line.split_once('=')?.0.to_owned())).collect();
    // What the shell sets by itself, and what this machine may not have.
    names.retain(|name| !["PWD", "SHLVL", "_", "OLDPWD", "TMPDIR", "VIRTUAL_ENV"].contains(&name.as_str()));
    names.sort();
    assert_eq!(
        names,
        [
            "EPOCHS",
            "HOME",
            "LANG",
            "PATH",
            "REFIT_ATTEMPT",
            "REFIT_CHAMPION",
            "REFIT_DATA",
            "REFIT_ERRORS",
            "REFIT_METRICS",
            "REFIT_OUT",
            "REFIT_RUN"
        ]
    );
}

#[tokio::test]
async fn too_many_bytes_of_files_stop_the_command() {
    let bench = Bench::new("train");
    let limits = Limits { output: Some(1_000_000), ..Limits::default() };
    let spec = Run { limits, ..command("head -c 5000000 /dev/zero > $REFIT_OUT/model; sleep 1000") };
    let message = failure(bench.run_command(&spec).await);
    assert_eq!(message, "the command wrote 5000000 bytes of files; `limits: output` allows 1000000");
    let spec = Run { limits, ..exporting("mkdir models; head -c 2000000 /dev/zero > models/a.json") };
    let message = failure(bench.run_command(&spec).await);
    assert!(message.contains("it left 2000000 bytes of files"), "{message}");
}

#[tokio::test]
async fn a_full_disk_is_named_also_when_the_trainer_plays_it_down() {
    let raising = python("print('x', file=open('/dev/full', 'w'), flush=True)");
    for line in [raising.as_str(), "cat /etc/hostname > /dev/full; exit 0"] {
        let bench = Bench::new("train");
        let result = bench.run_command(&command(line)).await;
        let Err(StepError::Failed { failure, .. }) = result else { panic!("not failed: {result:?}") };
        assert!(failure.message.contains("No space left on device"), "{}", failure.message);
        assert!(failure.hint.expect("a hint").starts_with("the disk of "));
    }
}

#[tokio::test]
async fn what_took_too_much_of_the_disk_is_removed_with_the_attempt() {
    let bench = Bench::new("train");
    let full = "head -c 100000 /dev/zero > $REFIT_OUT/model; cat /etc/hostname > /dev/full";
    failure(bench.run_command(&command(full)).await);
    assert!(!bench.dirs.attempt.exists(), "the database may need the space");
    let limits = Limits { output: Some(1_000_000), ..Limits::default() };
    let large = Run { limits, ..command("head -c 5000000 /dev/zero > $REFIT_OUT/model; sleep 60") };
    failure(bench.run_command(&large).await);
    assert!(!bench.dirs.attempt.exists());
    // What failed for another reason is left for people to look at.
    failure(bench.run_command(&command("echo half > $REFIT_OUT/model; exit 1")).await);
    assert!(bench.dirs.attempt.join("out/model").exists());
    assert_eq!(bench.log.notes().matches("was removed").count(), 2, "the log tells: {}", bench.log.notes());
}

#[tokio::test]
async fn a_trainer_that_fills_the_disk_publishes_nothing() {
    let bench = Bench::new("train");
    // Without the right to mount, `/dev/full` in the test above stands for the disk.
    let Some(_disk) = SmallDisk::mount(bench.root.path().join("run"), 3) else { return };
    let greedy = python("import os\nopen(os.environ['REFIT_OUT'] + '/model', 'wb').write(bytes(9_000_000))");
    let message = failure(bench.run_command(&command(&greedy)).await);
    assert!(message.contains("No space left on device"), "{message}");
    let message = failure(
        bench.run_command(&command("head -c 9000000 /dev/zero > $REFIT_OUT/model 2>/dev/null; exit 0")).await,
    );
    assert!(message.starts_with("the command exited with code 0, but ran out of disk"), "{message}");
    // The model fits, its copy does not.
    let half = python("import os\nopen(os.environ['REFIT_OUT'] + '/model', 'wb').write(bytes(2_000_000))");
    let message = failure(bench.run_command(&command(&half)).await);
    assert!(message.contains("cannot keep") && message.contains("No space left on device"), "{message}");
    assert!(!bench.dirs.kept.join("train/files").exists(), "nothing is kept");
}

/// Fetches files of `manifest` for a trainer that prints them.
async fn with_champion(bench: &mut Bench, text: &str) -> Result<StepResult, StepError> {
    let sha256 = hex::encode(Sha256::digest("champion"));
    let manifest = Manifest {
        schema: 1,
        model: bench.run.model.clone(),
        version: "2026-11-14".parse().expect("a name"),
        instance: bench.services.instance,
        run: None,
        sealed_at: now(),
        files: vec![ManifestFile { path: "sub/model.json".to_owned(), size: 8, sha256, stored: None }],
        metrics: Metrics::default(),
        provenance: serde_json::Value::Null,
    };
    let store = bench.champion(Some(manifest));
    let dir = store.join("race-times/2026-11-14/sub");
    fs::create_dir_all(&dir).expect("writable");
    fs::write(dir.join("model.json"), text).expect("writable");
    let line = "echo '{\"mae\": 1}' > $REFIT_METRICS; cat $REFIT_CHAMPION/sub/model.json; rm -f $REFIT_CHAMPION/sub/model.json; echo worse > $REFIT_CHAMPION/sub/model.json";
    bench.run_command(&Run { metrics_file: true, ..command(line) }).await
}

#[tokio::test]
async fn the_champion_is_fetched_and_verified_every_time() {
    let mut bench = Bench::new("train");
    with_champion(&mut bench, "champion").await.expect("succeeds");
    with_champion(&mut bench, "champion").await.expect("fetched again after the trainer wrote into it");
    assert_eq!(bench.log.output(), "championchampion");
    let mut bench = Bench::new("train");
    let message = failure(with_champion(&mut bench, "tampered").await);
    assert!(message.contains("is not what its manifest says: it was changed"), "{message}");
    assert_eq!(bench.log.output(), "", "the trainer did not start");
}
