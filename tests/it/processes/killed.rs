//! `kill -9` at any moment, and a start: the run ends as if nothing had been.

use std::time::{Duration, Instant};

use axum::Router;
use refit::domain::run::{AttemptState, RunStatus};
use refit::store::LEASE;

use super::project::{Project, count, each_once, eventually, mark};
use crate::support::faults::{Fault, Rule, Server};
use crate::support::steps::is_running;

fn long_training(mark: &str) -> String {
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

async fn a_server_killed_while_it_trains(project: Project) {
    let mark = mark();
    project.write("workflows/retrain.yaml", &long_training(&mark));
    let mut server = project.serve().ready();
    let run = project.trigger("retrain");
    project.await_lines("train", 1);
    eventually("a daemon", || is_running(&mark).then_some(()));
    // Twice: a second crash is no different.
    for starts in 2..=3 {
        server.kill9();
        eventually("nothing is left running", || (!is_running(&mark)).then_some(()));
        let began = Instant::now();
        server = project.serve();
        project.await_lines("train", starts);
        // A dead worker of this machine is known to be dead.
        assert!(began.elapsed() < LEASE, "{:?}", began.elapsed());
    }
    project.write("go", "");
    let attempts = project.await_success(&[run]).await.remove(0);
    each_once(&attempts, &["first", "train", "last"]);
    assert_eq!(count(&attempts, AttemptState::Lost), [("train", 2)].into());
    assert_eq!((project.lines("first").len(), project.lines("last").len()), (1, 1));
    server.kill9();
    assert!(!is_running(&mark));
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_trains_on_sqlite() {
    a_server_killed_while_it_trains(Project::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_trains_on_postgres() {
    a_server_killed_while_it_trains(Project::postgres().await).await;
}

/// Kills at the moment a step leaves its mark: about its end, its checkpoint, the beginning of the next.
async fn a_server_killed_between_steps(project: Project) {
    const STEPS: usize = 12;
    let mut workflow = "name: many\nmodel: m\nsteps:\n".to_owned();
    for step in 0..STEPS {
        workflow.push_str(&format!("  - {{ id: s{step}, run: 'echo ran >> s{step}' }}\n"));
    }
    project.write("workflows/many.yaml", &workflow);
    let mut server = project.serve().ready();
    let run = project.trigger("many");
    let kills = [1, 3, 4, 8];
    for (step, pause) in kills.iter().zip([0, 3000, 9000, 20_000]) {
        project.await_lines(&format!("s{step}"), 1);
        // Another moment each time.
        let moment = Instant::now() + Duration::from_micros(pause);
        while Instant::now() < moment {
            std::hint::spin_loop();
        }
        server.kill9();
        server = project.serve();
    }
    let attempts = project.await_success(&[run]).await.remove(0);
    let names: Vec<String> = (0..STEPS).map(|step| format!("s{step}")).collect();
    each_once(&attempts, &names.iter().map(String::as_str).collect::<Vec<_>>());
    let lost = count(&attempts, AttemptState::Lost);
    assert!(lost.values().sum::<usize>() <= kills.len(), "{lost:?}");
    for name in &names {
        let bodies = project.lines(name).len();
        assert!(bodies <= 1 + lost.get(name.as_str()).copied().unwrap_or(0), "{name} ran {bodies} times");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn between_steps_on_sqlite() {
    a_server_killed_between_steps(Project::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn between_steps_on_postgres() {
    a_server_killed_between_steps(Project::postgres().await).await;
}

async fn a_server_killed_while_a_run_waits(project: Project) {
    project.write(
        "workflows/nap.yaml",
        "
name: nap
model: m
steps:
  - { id: first, run: 'echo ran >> first' }
  - { id: nap, uses: wait, with: { for: 3s } }
  - { id: last, run: 'echo ran >> last' }
",
    );
    let mut server = project.serve().ready();
    let run = project.trigger("nap");
    let (_, attempts) = project.await_status(run, RunStatus::Waiting).await;
    let wake_at = attempts.iter().find_map(|attempt| attempt.wake_at).unwrap();
    server.kill9();
    let _server = project.serve();
    let attempts = project.await_success(&[run]).await.remove(0);
    each_once(&attempts, &["first", "nap", "last"]);
    assert!(count(&attempts, AttemptState::Lost).is_empty());
    let last = attempts.iter().find(|attempt| attempt.step.as_str() == "last").unwrap();
    assert!(last.started_at >= wake_at, "it woke up early");
    assert_eq!((project.lines("first").len(), project.lines("last").len()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_run_waits_on_sqlite() {
    a_server_killed_while_a_run_waits(Project::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_run_waits_on_postgres() {
    a_server_killed_while_a_run_waits(Project::postgres().await).await;
}

/// A command's write reaches a server of another process at once, not with its next look (500 ms).
async fn a_command_wakes_the_server(project: Project) {
    const RUNS: usize = 9;
    project.write("workflows/quick.yaml", "name: quick\nmodel: m\nsteps: [{ id: one, run: 'true' }]\n");
    // Before there is a server: it finds the run when it starts.
    let early = project.trigger("quick");
    let _server = project.serve().ready();
    project.await_success(&[early]).await;
    let mut delays = vec![];
    for _ in 0..RUNS {
        let run = project.trigger("quick");
        let attempts = project.await_success(&[run]).await.remove(0);
        let (run, _) = project.look(run).await;
        delays.push((attempts[0].started_at - run.created_at).num_milliseconds());
    }
    delays.sort_unstable();
    assert!(delays[RUNS / 2] < 150, "{delays:?} ms");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_wakes_the_server_on_sqlite() {
    a_command_wakes_the_server(Project::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_wakes_the_server_on_postgres() {
    a_command_wakes_the_server(Project::postgres().await).await;
}

/// A file that is edited while a run is under way counts from the next run on, also for a new process.
#[tokio::test(flavor = "multi_thread")]
async fn an_edited_file_does_not_change_a_run_under_way() {
    let project = Project::sqlite();
    let mark = mark();
    let before = long_training(&mark);
    project.write("workflows/retrain.yaml", &before);
    let mut server = project.serve().ready();
    let old = project.trigger("retrain");
    project.await_lines("train", 1);
    project.write("workflows/retrain.yaml", &before.replace("echo ran >> last", "echo edited >> last"));
    server.kill9();
    let _server = project.serve().ready();
    project.await_lines("train", 2);
    project.write("go", "");
    project.await_success(&[old]).await;
    let new = project.trigger("retrain");
    project.await_success(&[new]).await;
    assert_eq!(project.lines("last"), ["ran", "edited"]);
}

/// Far below the time for which a message is held.
const WITHOUT_WAITING: Duration = Duration::from_secs(60);

/// `next`: who goes on.
async fn a_server_killed_while_it_sends_a_message(project: Project, next: &[&str]) {
    let service = Server::start(Router::new().fallback(|| async { "ok" }));
    service.fault(Rule::on(Fault::StopBefore, |_| true).once());
    project.write("refit.toml", "[notifiers.team]\nkind = \"slack\"\nurl = \"TEAM\"\n");
    project.write(
        "workflows/quick.yaml",
        "name: quick\nmodel: m\nnotify: [{ on: [succeeded], slack: team }]\nsteps: [{ id: one, run: 'true' }]\n",
    );
    let start = |words: &[&str]| {
        let mut command = project.command(words);
        project.start({
            command.env("TEAM", &service.url);
            command
        })
    };
    let mut server = start(&["serve", "--listen", "127.0.0.1:0"]).ready();
    let run = project.trigger("quick");
    service.stopped().await;
    server.kill9();
    let began = Instant::now();
    let next = start(next);
    eventually("the message", || service.seen().get(1).is_some_and(|seen| seen.done).then_some(()));
    assert!(began.elapsed() < WITHOUT_WAITING, "{:?}\n{}", began.elapsed(), next.log());
    let store = project.store().await;
    let sent = async {
        loop {
            let entry = store.outbox_of(run).await.unwrap().remove(0);
            if entry.sent_at.is_some() {
                return entry;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let sent = tokio::time::timeout(WITHOUT_WAITING, sent).await.unwrap();
    assert_eq!((sent.attempts, service.count()), (2, 2));
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_sends_a_message_on_sqlite() {
    a_server_killed_while_it_sends_a_message(Project::sqlite(), &["serve", "--listen", "127.0.0.1:0"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_sends_a_message_on_postgres() {
    a_server_killed_while_it_sends_a_message(Project::postgres().await, &["worker"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_sends_a_message_and_a_tick_goes_on() {
    a_server_killed_while_it_sends_a_message(Project::sqlite(), &["tick"]).await;
}
