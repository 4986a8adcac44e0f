//! A death before and after every call with which the program writes a file of its own: what it fetched, what a
//! trainer left, versions, the document of the release, logs, locks. `die-at-write.c` makes the calls deadly; the
//! writes of the database are enumerated in `engine::crash`.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use refit::domain::id::RunId;
use refit::domain::run::{Outcome, RunStatus};

use super::project::{Project, STORE_AND_TARGET, each_once, eventually};

const RETRAIN: &str = r#"
name: retrain
model: race-times
mode: act
defaults: { retry: { attempts: 1 } }
steps:
  - id: data
    uses: fetch
    with: { from: { file: rows.csv }, to: rows.csv }
    expect: { columns: { distance: string, finish_s: float }, rows: { min: 2 } }
  - id: train
    run: |
      mkdir -p out && rm -f out/* && cp "$REFIT_DATA/rows.csv" out/part.csv
      cp "$REFIT_DATA/rows.csv" "$REFIT_OUT/rows.csv"
      printf 'block,actual,predicted\n1,2,7\n' > "$REFIT_ERRORS"
      echo '{"mae": 5.0}' > "$REFIT_METRICS"
      echo trained
    metrics: { file: true }
    outputs: { from: out, files: "*.csv", count: 1 }
  - { id: gate, uses: gate, with: { first_version: accept, rules: [{ metric: mae, max: 10 }] } }
  - { id: publish, uses: publish, with: { store: models, version: counter } }
  - { id: canary, uses: canary, with: { target: production, stages: [20%], compare: compare } }
  - { id: compare, uses: compare, with: { rules: [{ metric: error_rate }], on_inconclusive: hold } }
  - { id: promote, uses: promote }
"#;

const ROWS: &str = "distance,finish_s\nsprint,4000.5\nolympic,8000.25\n";

/// A project whose run waits for a worker.
fn prepared() -> (Project, RunId) {
    let project = Project::sqlite();
    project.write("refit.toml", STORE_AND_TARGET);
    project.write("rows.csv", ROWS);
    project.write("workflows/retrain.yaml", RETRAIN);
    let run = project.trigger("retrain");
    (project, run)
}

const LIBRARY: &str = "die-at-write.so";

/// Makes the library in `tools`.
fn make_calls_deadly(tools: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/die-at-write.c");
    let built = Command::new("cc")
        .args(["-O1", "-shared", "-fPIC", "-o"])
        .arg(tools.join(LIBRARY))
        .arg(source)
        .status()
        .unwrap();
    assert!(built.success(), "a C compiler is needed");
}

/// A call that writes a file, and which of its kind. Not the how-manieth of all calls: they run side by side.
#[derive(Clone, Debug)]
struct Call {
    /// `CALL PATH`, with `*` where a path has a random part.
    pattern: String,
    nth: usize,
}

/// The pattern of one line that the library wrote.
fn pattern(line: &str) -> String {
    let random = [
        (r"/\.fetch-\w+", "/.fetch-*"),
        (r"/\.release-\w+", "/.release-*"),
        (r"/workers/[\w-]+\.lock", "/workers/*.lock"),
    ];
    let escaped = line.replace('[', r"\[").replace('?', r"\?");
    random.iter().fold(escaped, |line, (name, any)| {
        regex::Regex::new(name).unwrap().replace_all(&line, *any).into_owned()
    })
}

/// Every call of a life that nothing disturbs.
async fn calls(prepared: &Project, run: RunId, tools: &Path) -> Vec<Call> {
    let project = prepared.copy();
    let list = tools.join("calls");
    let mut command = deadly(&project, tools);
    command.env("DIE_LIST", &list);
    let process = project.start(command);
    project.await_status(run, RunStatus::Finished).await;
    drop(process);
    let mut seen = BTreeMap::<String, usize>::new();
    // What the test itself makes of the process's output is not a file of the program's own.
    std::fs::read_to_string(list)
        .unwrap()
        .lines()
        .filter(|line| !line.contains(" /process-"))
        .map(|line| {
            let pattern = pattern(line);
            let nth = seen.entry(pattern.clone()).or_default();
            *nth += 1;
            Call { pattern, nth: *nth }
        })
        .collect()
}

fn deadly(project: &Project, tools: &Path) -> Command {
    let mut command = project.command(&["serve", "--listen", "127.0.0.1:0"]);
    command.env("LD_PRELOAD", tools.join(LIBRARY)).env("DIE_BELOW", project.dir.path());
    command
}

/// The story with a first process that dies at `call`, and then another one; whether it died: how often a log is
/// written depends on the moment.
async fn told(prepared: &Project, run: RunId, tools: &Path, call: &Call) -> bool {
    let project = prepared.copy();
    let mut command = deadly(&project, tools);
    command.env("DIE_AT", &call.pattern).env("DIE_NTH", call.nth.to_string());
    let mut first = project.start(command);
    let store = project.store().await;
    let died = loop {
        if let Some(status) = first.end() {
            assert_eq!(status.signal(), Some(9), "{call:?}: {status}\n{}", first.log());
            break true;
        }
        if store.run(run).await.unwrap().is_some_and(|run| run.status == RunStatus::Finished) {
            break false;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    };
    store.close().await;
    let second = died.then(|| project.serve());
    let (ended, attempts) = project.await_status(run, RunStatus::Finished).await;
    assert_eq!(ended.outcome, Some(Outcome::Promoted), "{call:?}: {ended:#?}\n{attempts:#?}");
    each_once(&attempts, &["data", "train", "gate", "publish", "canary", "compare", "promote"]);
    whole(&project, run, call);
    drop(second);
    died
}

/// What the run left is whole.
fn whole(project: &Project, run: RunId, at: &Call) {
    let read = |path: String| {
        std::fs::read_to_string(project.path(&path)).unwrap_or_else(|error| panic!("{at:?}: {path}: {error}"))
    };
    let release = eventually("the release", || {
        serde_json::from_str::<serde_json::Value>(&read("release.json".to_owned())).ok()
    });
    let version = release["champion"]["version"].as_str().unwrap().to_owned();
    assert!(release["canary"].is_null(), "{at:?}: {release}");
    for (kept, published) in [("part.csv", "part.csv"), ("rows.csv", "rows.csv")] {
        assert_eq!(read(format!(".refit/runs/{run}/kept/train/files/{kept}")), ROWS, "{at:?}");
        assert_eq!(read(format!("models/race-times/{version}/{published}")), ROWS, "{at:?}");
    }
    assert_eq!(read(format!(".refit/runs/{run}/data/rows.csv")), ROWS, "{at:?}");
    assert_eq!(read(format!(".refit/runs/{run}/kept/train/errors.csv")), "block,actual,predicted\n1,2,7\n");
    let manifest = read(format!("models/race-times/{version}/manifest.json"));
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&manifest).unwrap()["files"].as_array().unwrap().len(),
        2
    );
}

/// A project with a run that ended, whose files nothing needs any more, and one that waits for a worker.
async fn collectable() -> (Project, [RunId; 2]) {
    let (project, ended) = prepared();
    project.write("refit.toml", &format!("{STORE_AND_TARGET}\n[retention]\nrun_files = \"0s\"\n"));
    let server = project.serve();
    let (run, _) = project.await_status(ended, RunStatus::Finished).await;
    assert_eq!(run.outcome, Some(Outcome::Promoted), "{run:#?}");
    drop(server);
    // It was killed, so its socket is left: no file that a copy could have.
    std::fs::remove_file(project.path(".refit/refit.sock")).unwrap();
    let waits = project.trigger("retrain");
    project.write(&format!(".refit/runs/{waits}/data/rows.csv"), ROWS);
    (project, [ended, waits])
}

/// `gc`, whose calls are written to `list` or which dies at the first of a pattern; whether it died.
fn collects(project: &Project, tools: &Path, list: Option<&Path>, at: Option<&str>) -> bool {
    let mut command = project.command(&["gc", "--yes"]);
    command.env("LD_PRELOAD", tools.join(LIBRARY)).env("DIE_BELOW", project.dir.path());
    command.envs(list.map(|list| ("DIE_LIST", list)));
    command.envs(at.map(|at| ("DIE_AT", at))).env("DIE_NTH", "1");
    let done = command.output().unwrap();
    let died = done.status.signal() == Some(9);
    assert!(died || done.status.success(), "{at:?}: {}", String::from_utf8_lossy(&done.stderr));
    died
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_that_died_at_any_file_is_ended_by_the_next_one() {
    let tools = tempfile::tempdir().unwrap();
    make_calls_deadly(tools.path());
    let (prepared, [ended, waits]) = collectable().await;
    let list = tools.path().join("removed");
    assert!(!collects(&prepared.copy(), tools.path(), Some(&list), None));
    let list = std::fs::read_to_string(list).unwrap();
    let removals = list.lines().filter(|line| line.starts_with("remove /.refit/runs/"));
    let removals: Vec<String> = removals.map(pattern).collect();
    assert!(removals.len() > 5, "files and directories of the run: {list}");
    for at in &removals {
        let project = prepared.copy();
        assert!(collects(&project, tools.path(), None, Some(at)), "{at}: it lived");
        project.says(&["gc", "--yes"]);
        assert!(!project.path(&format!(".refit/runs/{ended}")).exists(), "{at}: its files are left");
        let waiting = project.path(&format!(".refit/runs/{waits}/data/rows.csv"));
        assert_eq!(std::fs::read_to_string(waiting).unwrap(), ROWS, "{at}");
        project.says(&["model", "verify", "race-times", "1"]);
    }
}

#[test]
fn a_run_ends_well_whatever_file_it_died_at() {
    let tools = tempfile::tempdir().unwrap();
    make_calls_deadly(tools.path());
    let (project, run) = prepared();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let calls = runtime().block_on(calls(&project, run, tools.path()));
    let (next, died) = (AtomicUsize::new(0), Mutex::new(vec![]));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(call) = calls.get(next.fetch_add(1, Ordering::SeqCst)) {
                    if runtime().block_on(told(&project, run, tools.path(), call)) {
                        died.lock().unwrap().push(format!("{} {}\n", call.pattern, call.nth));
                    }
                }
            });
        }
    });
    let died = died.into_inner().unwrap();
    let at = |call: &str, part: &str| {
        died.iter().filter(|line| line.starts_with(call) && line.contains(part)).count()
    };
    for (call, part) in [
        ("open", "/data/"),
        ("write", "/data/"),
        ("fsync", "/data"),
        ("mkdir", "/attempts/"),
        ("write", "/kept/train"),
        ("rename", "/kept/train/files"),
        ("open", "/logs.db"),
        ("write", "/logs.db"),
        ("open", "/models/"),
        ("link", "/models/"),
        ("write", "/.release-"),
    ] {
        assert!(at(call, part) > 0, "nothing died at {call} of {part}:\n{}", died.concat());
    }
}
