//! Postgres is killed and comes back: trainers go on, nothing is done twice.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use refit::domain::run::{AttemptState, Outcome, RunStatus};
use reqwest::StatusCode;

use super::project::{Project, count, each_once, eventually, mark};
use super::shutdown::slow_client;
use crate::support::steps::is_running;

/// Trains until it is told to end.
const TRAINS: &str = "
name: retrain
model: m
steps:
  - { id: train, run: 'echo $$ >> train; while [ ! -e go ]; do sleep 0.02; done' }
";

/// A Postgres of its own, which can be killed. It goes when its standard input ends.
struct OwnPostgres {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<std::process::ChildStdout>,
}

impl OwnPostgres {
    fn start() -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/with-postgres");
        let mut child = Command::new(script)
            .args(["--fsync", "--", "sh"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { child, orders, answers }
    }

    /// Has the shell beside the server do something, and waits until it did.
    fn order(&mut self, line: &str) -> String {
        writeln!(self.orders.as_mut().unwrap(), "{line}; echo \"answer $?\"").unwrap();
        let mut said = String::new();
        loop {
            let mut answer = String::new();
            assert!(self.answers.read_line(&mut answer).unwrap() > 0, "it ended");
            match answer.trim().strip_prefix("answer ") {
                Some(code) => {
                    assert_eq!(code, "0", "{line}");
                    return said;
                }
                None => said.push_str(answer.trim()),
            }
        }
    }

    fn url(&mut self) -> String {
        self.order("echo $DATABASE_URL")
    }

    fn kill9(&mut self) {
        self.order("\"$WITH_POSTGRES\" ctl kill9");
    }

    /// It stays, and answers nothing.
    fn pause(&mut self) {
        self.order("\"$WITH_POSTGRES\" ctl pause");
    }

    /// It answers again.
    fn resume(&mut self) {
        self.order("\"$WITH_POSTGRES\" ctl resume");
    }

    fn back(&mut self) {
        self.order("\"$WITH_POSTGRES\" ctl start");
    }
}

impl Drop for OwnPostgres {
    fn drop(&mut self) {
        self.orders.take();
        // It ends with its input.
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_is_killed_and_the_trainers_go_on() {
    let mut postgres = OwnPostgres::start();
    let project = Project::on(postgres.url()).await;
    for (name, code) in [("longer", 0), ("shorter", 0), ("failing", 1)] {
        project.write(
            &format!("workflows/{name}.yaml"),
            &format!(
                "
name: {name}
model: {name}
defaults: {{ retry: {{ attempts: 1 }} }}
steps:
  - {{ id: train, run: 'echo $$ >> {name}; while [ ! -e {name}.go ]; do sleep 0.02; done; echo done >> {name}.done; exit {code}' }}
  - {{ id: after, run: 'echo ran >> {name}.after' }}
"
            ),
        );
    }
    let server = project.serve().ready();
    let url = server.url();
    let http = crate::support::world::http();
    let status = async |path: &str| http.get(format!("{url}{path}")).send().await.unwrap().status();
    assert_eq!((status("/readyz").await, status("/healthz").await), (StatusCode::OK, StatusCode::OK));
    let runs = [project.trigger("longer"), project.trigger("shorter")];
    let failing = project.trigger("failing");
    for name in ["longer", "shorter", "failing"] {
        project.await_lines(name, 1);
    }

    postgres.kill9();
    // These end while there is no database to write that to.
    for name in ["shorter", "failing"] {
        project.write(&format!("{name}.go"), "");
        project.await_lines(&format!("{name}.done"), 1);
        let run = if name == "shorter" { runs[1] } else { failing };
        server.await_log(&format!("Run {run} waits for the database"));
    }
    server.await_log("Lease could not be renewed");
    assert_eq!(status("/readyz").await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(status("/healthz").await, StatusCode::OK);
    postgres.back();

    project.await_success(&runs[1..]).await;
    project.write("longer.go", "");
    for (attempts, name) in project.await_success(&runs).await.iter().zip(["longer", "shorter"]) {
        each_once(attempts, &["train", "after"]);
        assert!(count(attempts, AttemptState::Lost).is_empty(), "{attempts:#?}");
        for file in [name.to_owned(), format!("{name}.done"), format!("{name}.after")] {
            assert_eq!(project.lines(&file).len(), 1, "{file}");
        }
    }
    let (failed, attempts) = project.await_status(failing, RunStatus::Finished).await;
    assert_eq!((failed.outcome, failed.epoch.0), (Some(Outcome::Failed), 1), "{failed:#?}");
    assert_eq!(count(&attempts, AttemptState::Failed), [("train", 1)].into(), "{attempts:#?}");
    assert_eq!(
        (attempts.len(), project.lines("failing").len(), project.lines("failing.done").len()),
        (1, 1, 1)
    );
    assert_eq!(status("/readyz").await, StatusCode::OK);
    // New work is taken as before.
    project.write(
        "workflows/next.yaml",
        "name: next\nmodel: m\nsteps: [{ id: one, run: 'echo ran >> next' }]\n",
    );
    let next = project.trigger("next");
    project.await_success(&[next]).await;
    eventually("one run of it", || (project.lines("next").len() == 1).then_some(()));
}

/// Nothing can be given back then: whoever comes next waits for the leases to run out.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_stops_in_good_order_while_postgres_is_away() {
    let mut postgres = OwnPostgres::start();
    let project = Project::on(postgres.url()).await;
    project.write("workflows/retrain.yaml", TRAINS);
    let mut server = project.serve().ready();
    let run = project.trigger("retrain");
    project.await_lines("train", 1);
    postgres.kill9();
    server.await_log("the database is away");
    let began = Instant::now();
    server.signal("TERM");
    let status = server.ended();
    let (took, log) = (began.elapsed(), server.log());
    assert!(status.success(), "{status}\n{log}");
    // `grace_seconds` is 3. A database that refuses is asked for 10 s otherwise.
    assert!(took < Duration::from_secs(10), "{took:?}\n{log}");
    assert!(!log.contains("stopped advancing") && !log.contains("Steps did not end"), "{log}");
    assert!(log.contains(&format!("Run {run} could not be given back")), "{log}");

    postgres.back();
    let _next = project.serve();
    project.await_lines("train", 2);
    project.write("go", "");
    let attempts = project.await_success(&[run]).await.remove(0);
    each_once(&attempts, &["train"]);
}

/// A trainer deaf to SIGTERM, a client whose request never ends, and a database that answers nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_gone_within_its_grace_time_whatever_is_slow() {
    let mut postgres = OwnPostgres::start();
    let project = Project::on(postgres.url()).await;
    let mark = mark();
    project.write("refit.toml", "[worker]\ngrace_seconds = 2\n");
    project.write(
        "workflows/retrain.yaml",
        &format!(
            "
name: retrain
model: m
steps:
  - {{ id: train, grace: 1h, run: 'trap \"\" TERM; setsid sleep 1000.{mark} & echo $$ >> train; while :; do sleep 0.02; done' }}
"
        ),
    );
    let mut server = project.serve().ready();
    project.trigger("retrain");
    project.await_lines("train", 1);
    let _client = slow_client(&server.url());
    postgres.pause();
    let began = Instant::now();
    server.signal("TERM");
    let status = server.ended();
    let (took, log) = (began.elapsed(), server.log());
    assert!(status.success(), "{status}\n{log}");
    assert!(took < Duration::from_secs(8), "{took:?}\n{log}");
    eventually("nothing is left running", || (!is_running(&mark)).then_some(()));
    assert!(log.contains("1 connection cut off") && log.contains("The database could not be told"), "{log}");
}

/// What it did is read when all is done, and that takes a database that answers.
#[tokio::test(flavor = "multi_thread")]
async fn a_tick_is_gone_within_its_grace_time_while_postgres_is_silent() {
    let mut postgres = OwnPostgres::start();
    let project = Project::on(postgres.url()).await;
    project.write("refit.toml", "[worker]\ngrace_seconds = 2\n");
    project.write("workflows/retrain.yaml", TRAINS);
    let run = project.trigger("retrain");
    let mut tick = project.start(project.command(&["tick"]));
    project.await_lines("train", 1);
    postgres.pause();
    let began = Instant::now();
    tick.signal("TERM");
    let status = tick.ended();
    let (took, log) = (began.elapsed(), tick.log());
    assert_eq!(status.code(), Some(130), "{log}");
    assert!(took < Duration::from_secs(8), "{took:?}\n{log}");
    assert!(log.contains("what was done is not listed"), "{log}");

    postgres.resume();
    project.write("go", "");
    project.says(&["tick"]);
    let attempts = project.await_success(&[run]).await.remove(0);
    each_once(&attempts, &["train"]);
}

/// A canary could be out: whoever follows a run asks for it before it leaves.
#[tokio::test(flavor = "multi_thread")]
async fn who_drives_a_run_is_gone_within_its_grace_time_while_postgres_is_silent() {
    let mut postgres = OwnPostgres::start();
    let project = Project::on(postgres.url()).await;
    project.write("refit.toml", "[worker]\ngrace_seconds = 2\n");
    project.write("workflows/retrain.yaml", TRAINS);
    let mut driving = project.start(project.command(&["trigger", "retrain", "--follow"]));
    project.await_lines("train", 1);
    postgres.pause();
    let began = Instant::now();
    driving.signal("TERM");
    let status = driving.ended();
    let (took, log) = (began.elapsed(), driving.log());
    assert_eq!(status.code(), Some(130), "{log}");
    assert!(took < Duration::from_secs(8), "{took:?}\n{log}");
    assert!(log.contains("whether a canary is left out is not known"), "{log}");

    postgres.resume();
    let run = project.runs().await.remove(0);
    project.write("go", "");
    project.says(&["tick"]);
    let attempts = project.await_success(&[run]).await.remove(0);
    each_once(&attempts, &["train"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_drives_a_run_is_gone_at_once_on_a_second_ctrl_c_while_postgres_is_silent() {
    let mut postgres = OwnPostgres::start();
    let project = Project::on(postgres.url()).await;
    project.write("refit.toml", "[worker]\ngrace_seconds = 600\n");
    project.write("workflows/retrain.yaml", TRAINS);
    let mut driving = project.start(project.command(&["trigger", "retrain", "--follow"]));
    project.await_lines("train", 1);
    postgres.pause();
    driving.signal("INT");
    driving.await_log("once more ends at once");
    driving.signal("INT");
    assert_eq!(driving.ended().code(), Some(130), "{}", driving.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_drives_a_run_waits_for_postgres_as_a_server_does() {
    let mut postgres = OwnPostgres::start();
    let project = Project::on(postgres.url()).await;
    project.write("workflows/retrain.yaml", TRAINS);
    let mut driving = project.start(project.command(&["trigger", "retrain", "--follow"]));
    project.await_lines("train", 1);
    postgres.kill9();
    driving.await_log("it is waited for");
    postgres.back();
    driving.await_log("the database is back");
    project.write("go", "");
    assert!(driving.ended().success(), "{}", driving.log());
    assert_eq!(driving.log().matches("it is waited for").count(), 1, "{}", driving.log());
    let run = project.runs().await.remove(0);
    let attempts = project.await_success(&[run]).await.remove(0);
    each_once(&attempts, &["train"]);
}
