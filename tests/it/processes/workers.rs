//! Several workers on one Postgres.

use std::collections::BTreeSet;

use refit::domain::id::RunId;
use refit::domain::run::AttemptState;
use sqlx::{Connection as _, PgConnection};

use super::project::{Process, Project, count, each_once, eventually, is_alive};

/// A worker that names itself to its steps by a variable that they inherit.
fn worker(project: &Project, name: &str) -> Process {
    let mut command = project.command(&["worker"]);
    command.env("LANG", name);
    project.start(command).ready()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_share_the_work_and_each_step_runs_once() {
    const RUNS: usize = 20;
    let project = Project::postgres().await;
    project.write("refit.toml", "[worker]\nconcurrency = 3\n");
    project.write(
        "workflows/share.yaml",
        "
name: share
model: m
concurrency: { key: '${{ event.id }}' }
steps:
  - { id: one, run: 'echo $LANG >> workers; while [ ! -e go ]; do sleep 0.02; done; echo ran >> one.$REFIT_RUN' }
  - { id: two, run: 'echo ran >> two.$REFIT_RUN' }
",
    );
    let _workers = [worker(&project, "ann"), worker(&project, "bob")];
    let runs: Vec<RunId> = (0..RUNS).map(|_| project.trigger("share")).collect();
    // Neither can take them all.
    eventually("both work", || {
        let names: BTreeSet<String> = project.lines("workers").into_iter().collect();
        (names.len() == 2).then_some(())
    });
    project.write("go", "");
    for (run, attempts) in runs.iter().zip(project.await_success(&runs).await) {
        each_once(&attempts, &["one", "two"]);
        assert_eq!(attempts.len(), 2, "{attempts:#?}");
        for step in ["one", "two"] {
            assert_eq!(project.lines(&format!("{step}.{run}")).len(), 1, "{step} of {run}");
        }
    }
    assert_eq!(project.lines("workers").len(), RUNS);
}

/// One that is stopped for longer than its lease wakes up to find its runs taken over: it changes nothing,
/// whether their steps still run or ended meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_stopped_too_long_changes_nothing() {
    let project = Project::postgres().await;
    for name in ["ends", "goes-on"] {
        project.write(
            &format!("workflows/{name}.yaml"),
            &format!(
                "
name: {name}
model: {name}
steps:
  - {{ id: train, run: 'echo $$ $LANG >> {name}; while [ ! -e {name}.go ]; do sleep 0.02; done; echo $LANG >> {name}.done' }}
  - {{ id: after, run: 'echo $LANG >> {name}.after' }}
"
            ),
        );
    }
    let stopped = worker(&project, "ann");
    let runs = [project.trigger("ends"), project.trigger("goes-on")];
    for name in ["ends", "goes-on"] {
        project.await_lines(name, 1);
    }
    let _other = worker(&project, "bob");
    stopped.signal("STOP");
    for name in ["ends", "goes-on"] {
        let trainers = project.await_lines(name, 2);
        assert!(trainers[0].ends_with("ann") && trainers[1].ends_with("bob"), "{trainers:?}");
    }
    // Both trainers of this run end; the stopped worker has yet to hear of it.
    project.write("ends.go", "");
    project.await_lines("ends.done", 2);
    let taken_over = project.await_success(&runs[..1]).await.remove(0);
    stopped.signal("CONT");
    for run in runs {
        stopped.await_log(&format!("Run {run} was taken over by another worker; stopped"));
    }
    let trainers = project.lines("goes-on");
    let pid = trainers[0].split(' ').next().unwrap().to_owned();
    eventually("its trainer ends", || (!is_alive(&pid)).then_some(()));
    project.write("goes-on.go", "");
    let attempts = project.await_success(&runs).await;
    assert_eq!(attempts[0], taken_over, "the late one changed something");
    for (attempts, name) in attempts.iter().zip(["ends", "goes-on"]) {
        each_once(attempts, &["train", "after"]);
        assert_eq!(count(attempts, AttemptState::Lost), [("train", 1)].into());
        assert_eq!(project.lines(&format!("{name}.after")), ["bob"]);
        assert_eq!(project.lines(name).len(), 2);
    }
    assert_eq!(project.lines("goes-on.done"), ["bob"]);
}

/// Both servers find five missed days at the same moment.
#[tokio::test(flavor = "multi_thread")]
async fn two_servers_fire_each_missed_tick_once() {
    let project = Project::postgres().await;
    project.write(
        "workflows/nightly.yaml",
        "name: nightly\nmodel: m\non: { schedule: { cron: '0 3 * * *', catch_up: all } }
concurrency: { key: '${{ event.id }}' }\nsteps: [{ id: one, run: 'echo \"$REFIT_RUN\" >> ran' }]\n",
    );
    let _servers = [project.serve().ready(), project.serve().ready()];
    let mut database = PgConnection::connect(&project.database).await.unwrap();
    let missed: i64 = sqlx::query_scalar(
        "UPDATE refit.schedules SET next_fire_at = next_fire_at - interval '5 days' RETURNING
             1 + floor(extract(epoch FROM now() - next_fire_at) / 86400)::bigint",
    )
    .fetch_one(&mut database)
    .await
    .unwrap();
    assert!((4..=6).contains(&missed), "{missed}");
    let ran = project.await_lines("ran", usize::try_from(missed).unwrap());
    let runs = project.runs().await;
    assert_eq!(runs.len(), ran.len());
    for attempts in project.await_success(&runs).await {
        each_once(&attempts, &["one"]);
    }
    let ran: BTreeSet<String> = project.lines("ran").into_iter().collect();
    assert_eq!(ran, runs.iter().map(RunId::to_string).collect());
}
