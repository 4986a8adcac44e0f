//! Past weeks of real flights, retrained and decided on again.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use refit::demo::flights::Flights;
use refit::demo::project;
use serde_json::Value;

const POLICIES: &str = r#"
[[policy]]
name = "any"
worse_by_at_most = "900%"
canary = false

[[policy]]
name = "must be twice as good"
worse_by_at_most = "-50%"
"#;

/// The flights of eight weeks, the sixth of which is that of the blizzard.
fn flights() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    project::unpack(dir.path()).expect("unpacked");
    Flights::embedded()
        .expect("flights")
        .write(1..=8, &dir.path().join("export/flights.csv"))
        .expect("written");
    std::fs::write(dir.path().join("policies.toml"), POLICIES).expect("written");
    dir
}

fn simulate(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_refit"));
    let words = "simulate retrain --last 4w --until 2013-02-26 -i family=route-mean --cut data=date \
                 --cut week=data.date:7d --policies policies.toml --horizon 2w --jobs 2 --json";
    command.current_dir(dir).args(words.split_whitespace()).env_remove("REFIT_DATABASE_URL");
    command
}

/// One training is done at once; all others wait for a file.
fn with_one_training_at_first(dir: &Path) {
    let file = dir.join("workflows/retrain.yaml");
    let workflow = std::fs::read_to_string(&file).expect("readable");
    let (line, root) = ("    run: python3 train.py\n", dir.display());
    assert!(workflow.contains(line), "{workflow}");
    let waits = format!(
        "    run: |\n      mkdir '{root}/first' || while [ ! -e '{root}/go' ]; do sleep 0.02; done\n      \
         python3 train.py\n"
    );
    let workflow = workflow.replace(line, &waits).replace("    timeout: 1m\n", "");
    std::fs::write(file, workflow).expect("written");
}

fn finished(dir: &Path) -> usize {
    let trained = std::fs::read_dir(dir.join(".refit/simulate/retrain/trained"));
    let trained = trained.into_iter().flatten().flatten();
    trained.filter(|entry| entry.path().join("finished.json").exists()).count()
}

fn kill_when_one_is_finished(mut child: Child, dir: &Path) {
    let began = Instant::now();
    while finished(dir) == 0 {
        assert_eq!(child.try_wait().expect("looked at"), None, "it ended before its trainings did");
        assert!(began.elapsed() < Duration::from_secs(150), "no training ever finished");
        std::thread::park_timeout(Duration::from_millis(5));
    }
    child.kill().expect("killed");
    child.wait().expect("gone");
    std::fs::write(dir.join("go"), "").expect("written");
}

/// Takes the model that one training left away.
fn lose_a_model(dir: &Path) {
    let trained = std::fs::read_dir(dir.join(".refit/simulate/retrain/trained")).expect("there");
    let mut models = trained.map(|entry| entry.expect("readable").path().join("versions"));
    let models = models.find(|versions| versions.is_dir()).expect("a model");
    std::fs::remove_dir_all(models).expect("gone");
}

fn result(dir: &Path) -> Value {
    let output = simulate(dir).output().expect("runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}\n{stderr}"))
}

#[test]
fn weeks_are_replayed_and_what_was_trained_before_a_kill_is_not_trained_again() {
    let dir = flights();
    with_one_training_at_first(dir.path());
    let child = simulate(dir.path()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
    kill_when_one_is_finished(child, dir.path());
    let first = result(dir.path());
    assert_eq!(first["found"].as_u64(), Some(1), "{first:#}");
    let weeks = serde_json::json!(["2013-02-05", "2013-02-12", "2013-02-19", "2013-02-26"]);
    assert_eq!(first["weeks"], weeks);

    let policy = |name: &str| {
        let all = first["policies"].as_array().expect("a list");
        all.iter()
            .find(|row| row["policy"] == name)
            .unwrap_or_else(|| panic!("no `{name}`: {first:#}"))
            .clone()
    };
    let (any, strict) = (policy("any"), policy("must be twice as good"));
    // The blizzard's data is refused by everybody, and never trained on for a release.
    let blizzard = &any["decisions"][0];
    assert_eq!((&blizzard["candidate"], &blizzard["ending"]), (&"2013-02-12".into(), &"rejected".into()));
    assert!(blizzard["reason"].as_str().expect("why").contains("air_time"), "{blizzard}");
    assert_eq!(any["decisions"][1]["ending"], "promoted");
    assert_eq!(strict["decisions"][1]["ending"], "rejected");
    let (never, best) = (policy("never"), policy("best in hindsight"));
    assert_eq!(strict["error"], never["error"], "what is never promoted never serves");
    assert!(best["error"].as_f64() <= never["error"].as_f64() && best["regret"] == 0.0, "{best}");

    // Nothing is trained again but what is lost.
    lose_a_model(dir.path());
    let again = result(dir.path());
    assert_eq!((again["trained"].as_u64(), &again["policies"]), (Some(1), &first["policies"]));
}

/// A model is the mean of the weeks before the newest one, which is held out.
const EVALUATED: &str = r#"
name: mean
model: m
metrics: { mae: { better: lower } }
steps:
  - id: data
    uses: fetch
    with: { from: { file: rows.csv }, to: rows.csv }
    expect: { columns: { date: date, week: int, value: float } }
  - id: train
    run: |
      awk -F, 'NR==FNR{if($2>m)m=$2+0;next} $2+0>0&&$2+0<m{s+=$3;n++} END{print (n?s/n:50)}' \
        "$REFIT_DATA/rows.csv" "$REFIT_DATA/rows.csv" > "$REFIT_OUT/mean"
  - id: evaluate
    uses: evaluate
    with:
      holdout: rows.csv
      run: |
        awk -F, -v mean="$(cat "$REFIT_MODEL/mean")" 'BEGIN{print "block,segment,actual,predicted"}
          NR==FNR{if($2>m)m=$2+0;next} $2+0==m{print $1",,"$3","mean}' \
          "$REFIT_HOLDOUT" "$REFIT_HOLDOUT" > "$REFIT_ERRORS"
  - { id: gate, uses: gate, with: { rules: [{ metric: mae, vs: champion, worse_by_at_most: 0% }] } }
  - { id: publish, uses: publish, with: { store: models } }
  - { id: canary, uses: canary, with: { target: production, stages: [50%], compare: compare } }
  - { id: watch, uses: wait, with: { for: 7d } }
  - id: compare
    uses: compare
    with: { rules: [{ metric: abs_error, worse_by_at_most: 10% }], on_inconclusive: promote }
  - { id: promote, uses: promote }
"#;

#[test]
fn an_evaluate_step_scores_both_versions_of_past_weeks() {
    let dir = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        std::fs::write(path, text).expect("written");
    };
    // Values rise with the weeks, but for the last: a newer model is better until then.
    let mut rows = "date,week,value\n".to_owned();
    for (week, value) in (0..).zip([10, 11, 12, 13, 5]) {
        for day in 1..=7 {
            let date = chrono::NaiveDate::from_yo_opt(2026, 7 * week + day).expect("a day");
            rows += &format!("{date},{},{value}\n", week + 1);
        }
    }
    write("rows.csv", &rows);
    write("refit.toml", "");
    write("workflows/mean.yaml", EVALUATED);
    let mut command = Command::new(env!("CARGO_BIN_EXE_refit"));
    let words = "simulate mean --last 5w --until 2026-02-05 --horizon 1w --jobs 2 --json";
    command.current_dir(dir.path()).args(words.split_whitespace()).env_remove("REFIT_DATABASE_URL");
    let output = command.output().expect("runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let said: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let of = |name: &str| {
        let rows = said["policies"].as_array().expect("a list");
        let row = rows.iter().find(|row| row["policy"] == name).expect("a row");
        let decisions = row["decisions"].as_array().expect("a list").iter();
        let endings =
            decisions.map(|it| it["ending"].as_str().expect("a word").to_owned()).collect::<Vec<_>>();
        (endings, row["error"].as_f64().expect("a number"))
    };
    // Off by 39, 2, 2.5 and 6 in the four weeks where each newest model serves; by 39, 38, 37 and 45 where the first does.
    assert_eq!(of("always").1, 12.375, "{said:#}");
    assert_eq!(of("never").1, 39.75, "{said:#}");
    assert_eq!(of("gate alone").0, ["promoted", "promoted", "promoted"], "{said:#}");
    assert_eq!(of("best in hindsight").0, ["promoted", "promoted", "rejected"], "{said:#}");
}

#[test]
fn what_cannot_be_replayed_says_what_to_do() {
    let dir = flights();
    let said = |words: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_refit"));
        command.current_dir(dir.path()).arg("simulate").arg("retrain").args(words.split_whitespace());
        let output = command.env_remove("REFIT_DATABASE_URL").output().expect("runs");
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(said("--last 4w").contains("say `--cut data=COLUMN`"), "{}", said("--last 4w"));
    assert!(said("--last soon").contains("whole weeks"));
    assert!(said("--last 4w --cut data=day --cut week=data.date").contains("no column `day`"));
    std::fs::write(dir.path().join("wrong.toml"), "[[policy]]\nname = \"x\"\nalpha = \"2\"\n")
        .expect("written");
    let told = said("--last 4w --policies wrong.toml");
    assert!(told.contains("policy `x`: alpha: write a percentage"), "{told}");
}
