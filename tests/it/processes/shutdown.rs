//! A deploy: SIGTERM hands runs over, a second one ends at once.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use refit::domain::run::{AttemptState, Outcome, RunStatus};
use refit::store::LEASE;

use super::project::{Project, STORE_AND_TARGET, count, each_once, eventually, mark};
use crate::support::steps::is_running;

fn training(mark: &str) -> String {
    format!(
        "
name: retrain
model: m
steps:
  - {{ id: first, run: 'echo ran >> first' }}
  - {{ id: train, run: 'setsid sleep 1000.{mark} & trap \"\" TERM; echo $$ >> train; while [ ! -e go ]; do sleep 0.02; done' }}
  - {{ id: last, run: 'echo ran >> last' }}
"
    )
}

async fn a_terminated_server_hands_its_run_over(project: Project) {
    let mark = mark();
    project.write("workflows/retrain.yaml", &training(&mark));
    let mut server = project.serve().ready();
    let run = project.trigger("retrain");
    project.await_lines("train", 1);
    server.signal("TERM");
    let status = server.ended();
    assert!(status.success(), "{status}\n{}", server.log());
    eventually("nothing is left running", || (!is_running(&mark)).then_some(()));
    let (_, attempts) = project.look(run).await;
    assert!(count(&attempts, AttemptState::Failed).is_empty(), "{attempts:#?}");

    let began = Instant::now();
    let _next = project.serve();
    project.await_lines("train", 2);
    assert!(began.elapsed() < LEASE, "the lease was not given back: {:?}", began.elapsed());
    project.write("go", "");
    let attempts = project.await_success(&[run]).await.remove(0);
    each_once(&attempts, &["first", "train", "last"]);
    assert!(count(&attempts, AttemptState::Failed).is_empty(), "{attempts:#?}");
    assert_eq!((project.lines("first").len(), project.lines("last").len()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_server_hands_its_run_over_on_sqlite() {
    a_terminated_server_hands_its_run_over(Project::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_server_hands_its_run_over_on_postgres() {
    a_terminated_server_hands_its_run_over(Project::postgres().await).await;
}

/// Steps that end within the grace time are not interrupted.
#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_ends_in_time_is_kept() {
    let project = Project::sqlite();
    project.write("refit.toml", "[worker]\ngrace_seconds = 60\n");
    project.write("workflows/retrain.yaml", &training(&mark()));
    let mut server = project.serve().ready();
    let run = project.trigger("retrain");
    project.await_lines("train", 1);
    server.signal("INT");
    server.await_log("Stopping");
    project.write("go", "");
    assert!(server.ended().success());
    let (_, attempts) = project.look(run).await;
    each_once(&attempts, &["first", "train"]);
    let _next = project.serve();
    let attempts = project.await_success(&[run]).await.remove(0);
    each_once(&attempts, &["first", "train", "last"]);
    assert_eq!(attempts.len(), 3, "{attempts:#?}");
    assert_eq!(project.lines("train").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_ctrl_c_ends_at_once() {
    let project = Project::sqlite();
    let mark = mark();
    project.write("refit.toml", "[worker]\ngrace_seconds = 600\n");
    project.write("workflows/retrain.yaml", &training(&mark));
    let mut server = project.serve().ready();
    let run = project.trigger("retrain");
    project.await_lines("train", 1);
    server.signal("INT");
    server.await_log("Stopping");
    server.signal("INT");
    assert_eq!(server.ended().code(), Some(130));
    eventually("nothing is left running", || (!is_running(&mark)).then_some(()));
    let _next = project.serve();
    project.await_lines("train", 2);
    project.write("go", "");
    let attempts = project.await_success(&[run]).await.remove(0);
    each_once(&attempts, &["first", "train", "last"]);
    assert!(count(&attempts, AttemptState::Failed).is_empty(), "{attempts:#?}");
}

/// Far beyond every grace time here; what is slow in these tests is slow for longer.
const IN_TIME: Duration = Duration::from_secs(8);

/// A client whose request is being read, and never ends.
pub fn slow_client(url: &str) -> TcpStream {
    let mut client = TcpStream::connect(url.trim_start_matches("http://")).unwrap();
    let head = "POST /v1/events HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
                content-length: 1000\r\nexpect: 100-continue\r\n\r\n";
    client.write_all(head.as_bytes()).unwrap();
    let mut answer = [0; 12];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 100");
    client.write_all(b"{").unwrap();
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_sends_slowly_keeps_no_server() {
    let project = Project::sqlite();
    project.write("refit.toml", "[worker]\ngrace_seconds = 1\n");
    let mut server = project.serve().ready();
    let _client = slow_client(&server.url());
    let began = Instant::now();
    server.signal("TERM");
    let status = server.ended();
    assert!(status.success(), "{status}\n{}", server.log());
    assert!(began.elapsed() < IN_TIME, "{:?}\n{}", began.elapsed(), server.log());
    assert!(server.log().contains("1 connection cut off"), "{}", server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_its_database_to_begin_can_be_stopped() {
    for (words, code) in [(vec!["serve", "--listen", "127.0.0.1:0"], 0), (vec!["tick"], 130)] {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut project = Project::sqlite();
        project.database = format!("postgres://refit@{}/refit", silent.local_addr().unwrap());
        let mut process = project.start(project.command(&words));
        let _connection = silent.accept().unwrap();
        let began = Instant::now();
        process.signal("TERM");
        let status = process.ended();
        assert_eq!(status.code(), Some(code), "{words:?}\n{}", process.log());
        assert!(began.elapsed() < IN_TIME, "{words:?}: {:?}\n{}", began.elapsed(), process.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_ctrl_c_ends_a_tick_at_once() {
    let project = Project::sqlite();
    let mark = mark();
    project.write("refit.toml", "[worker]\ngrace_seconds = 600\n");
    project.write("workflows/retrain.yaml", &training(&mark));
    let run = project.trigger("retrain");
    let mut tick = project.start(project.command(&["tick"]));
    project.await_lines("train", 1);
    tick.signal("INT");
    tick.await_log("once more ends at once");
    tick.signal("INT");
    assert_eq!(tick.ended().code(), Some(130));
    eventually("nothing is left running", || (!is_running(&mark)).then_some(()));
    project.write("go", "");
    project.says(&["tick"]);
    let attempts = project.await_success(&[run]).await.remove(0);
    each_once(&attempts, &["first", "train", "last"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn people_hear_that_a_run_began_while_its_driver_trains() {
    let project = Project::sqlite();
    project.write(
        "workflows/retrain.yaml",
        "
name: retrain
model: m
steps: [{ id: train, run: 'while [ ! -e go ]; do sleep 0.02; done' }]
notify: [{ on: [started, succeeded], console: true }]
",
    );
    let mut driving = project.start(project.command(&["-v", "trigger", "retrain", "--follow"]));
    driving.await_log("m: retrain began");
    project.write("go", "");
    assert!(driving.ended().success(), "{}", driving.log());
    driving.await_log("m: retrain ended well");
}

const ON_CANARY: &str = r#"
name: retrain
model: m
mode: act
steps:
  - id: train
    run: 'mkdir -p out && echo "$REFIT_RUN" > out/model.json && echo "MAE: 10"'
    metrics: { stdout: { mae: { pattern: 'MAE: (\d+)' } } }
    outputs: { from: out, files: "*.json" }
  - { id: gate, uses: gate, with: { first_version: accept, rules: [{ metric: mae, max: 600 }] } }
  - { id: publish, uses: publish, with: { store: models, version: counter } }
  - { id: canary, uses: canary, with: { target: production, stages: [10%], compare: compare } }
  - { id: watch, uses: wait, with: { for: 1h } }
  - { id: compare, uses: compare, with: { rules: [{ metric: error_rate }], on_inconclusive: promote } }
  - { id: promote, uses: promote }
"#;

/// Nobody would watch it once whoever drives its run is gone.
async fn ctrl_c_takes_a_canary_back(project: Project) {
    project.write("refit.toml", &format!("[worker]\ngrace_seconds = 60\n{STORE_AND_TARGET}"));
    // A first version has nothing to be compared with.
    project.write("workflows/retrain.yaml", &ON_CANARY.replace("1h", "10ms"));
    let release = || -> Option<serde_json::Value> {
        serde_json::from_str(&std::fs::read_to_string(project.path("release.json")).ok()?).ok()
    };
    project.says(&["trigger", "retrain", "--follow"]);
    project.write("workflows/retrain.yaml", ON_CANARY);
    let mut driving = project.start(project.command(&["trigger", "retrain", "--follow"]));
    let out = eventually(&format!("a canary:\n{}", driving.log()), || {
        release().filter(|release| release["canary"]["version"] == "2")
    });
    assert_eq!(out["champion"]["version"], "1");
    driving.signal("INT");
    assert_eq!(driving.ended().code(), Some(130), "{}", driving.log());
    assert!(driving.log().contains("nobody would watch 2 on canary: taking it back"), "{}", driving.log());
    let left = release().unwrap();
    assert_eq!(left["champion"], out["champion"]);
    assert!(left["canary"].is_null(), "{left}");
    let run = project.runs().await[0];
    let (run, _) = project.look(run).await;
    assert_eq!((run.status, run.outcome), (RunStatus::Finished, Some(Outcome::Cancelled)), "{run:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_takes_a_canary_back_on_sqlite() {
    ctrl_c_takes_a_canary_back(Project::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_takes_a_canary_back_on_postgres() {
    ctrl_c_takes_a_canary_back(Project::postgres().await).await;
}
