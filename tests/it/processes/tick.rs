//! `refit tick` instead of a server, and a server that lets its database sleep.

use std::time::Duration;

use chrono::TimeDelta;
use refit::clock::{Clock, SystemClock};
use refit::domain::run::{AttemptState, Outcome, RunStatus};
use serde_json::{Value, json};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{Connection as _, PgConnection};

use super::project::{Project, STORE_AND_TARGET, count, each_once, eventually};
use crate::support::world::http;
use refit::store::LiveWorkers;

/// `CANARY` takes what else its step is given.
const RETRAIN: &str = r#"
name: retrain
model: m
mode: act
defaults: { retry: { attempts: 1 } }
steps:
  - id: train
    run: echo "$REFIT_RUN" > "$REFIT_OUT/m.txt"; printf '{"mae":1}' > "$REFIT_METRICS"
    metrics: { file: true }
  - { id: gate, uses: gate, with: { first_version: accept, rules: [{ metric: mae, max: 10 }] } }
  - { id: publish, uses: publish, with: { store: models, version: counter } }
  - { id: canary, uses: canary, with: { target: production, stages: [20%], compare: compare CANARY } }
  - { id: watch, uses: wait, with: { for: 1h } }
  - { id: compare, uses: compare, with: { rules: [{ metric: error_rate }], on_inconclusive: hold } }
  - { id: promote, uses: promote }
"#;

impl Project {
    fn tick(&self) -> Value {
        serde_json::from_str(&self.says(&["tick", "--json"])).unwrap()
    }
}

fn outcomes(said: &Value) -> Vec<(&str, &str)> {
    let runs = said["runs"].as_array().unwrap().iter();
    runs.map(|run| (run["status"].as_str().unwrap(), run["outcome"].as_str().unwrap_or(""))).collect()
}

async fn a_run_goes_from_tick_to_tick(project: Project) {
    project.write(
        "workflows/nap.yaml",
        "name: nap\nmodel: m\nsteps:\n  - { id: one, run: 'echo ran >> one' }\n  - { id: short, uses: wait, with: { for: 1s } }
  - { id: two, run: 'echo ran >> two' }\n  - { id: long, uses: wait, with: { for: 1h } }\n  - { id: three, run: 'true' }\n",
    );
    assert_eq!(project.tick(), json!({"runs": [], "next_due_at": null, "next": null}));
    let run = project.trigger("nap");
    let said = project.tick();
    assert_eq!(outcomes(&said), [("waiting", "")], "the short wait was waited for: {said}");
    assert_eq!(said["next"], "a run goes on");
    let left = said["next_due_at"].as_str().unwrap().parse::<refit::domain::Timestamp>().unwrap()
        - SystemClock.now();
    assert!(left > TimeDelta::minutes(50) && left <= TimeDelta::hours(1), "{left}");
    let again = project.tick();
    assert_eq!((outcomes(&again), &again["next_due_at"]), (vec![], &said["next_due_at"]));
    assert_eq!((project.lines("one").len(), project.lines("two").len()), (1, 1));
    let store = project.store().await;
    assert_eq!(store.live_workers().await.unwrap(), LiveWorkers::default(), "it took itself off the list");
    assert_eq!(store.run(run).await.unwrap().unwrap().status, RunStatus::Waiting);
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_goes_from_tick_to_tick_on_sqlite() {
    a_run_goes_from_tick_to_tick(Project::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_goes_from_tick_to_tick_on_postgres() {
    a_run_goes_from_tick_to_tick(Project::postgres().await).await;
}

/// What a tick left that was killed while it trained is taken up by the next one.
async fn a_tick_that_was_killed(project: Project) {
    project.write(
        "workflows/retrain.yaml",
        "name: retrain\nmodel: m\nsteps:\n  - { id: first, run: 'echo ran >> first' }
  - { id: train, run: 'echo began >> train; while [ ! -e go ]; do sleep 0.02; done' }\n  - { id: last, run: 'echo ran >> last' }\n",
    );
    let run = project.trigger("retrain");
    let mut first = project.start(project.command(&["tick"]));
    project.await_lines("train", 1);
    first.kill9();
    project.write("go", "");
    let said = project.tick();
    assert_eq!(outcomes(&said), [("finished", "succeeded")], "{said}");
    assert!(outcomes(&project.tick()).is_empty(), "what ended before is not told again");
    let attempts = project.await_success(&[run]).await.remove(0);
    each_once(&attempts, &["first", "train", "last"]);
    assert_eq!(count(&attempts, AttemptState::Lost), [("train", 1)].into());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tick_that_was_killed_on_sqlite() {
    a_tick_that_was_killed(Project::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tick_that_was_killed_on_postgres() {
    a_tick_that_was_killed(Project::postgres().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_that_nobody_would_watch_does_not_go_out() {
    let project = Project::sqlite();
    project.write("refit.toml", STORE_AND_TARGET);
    project.write("workflows/retrain.yaml", &RETRAIN.replace("CANARY", ""));
    let first = project.trigger("retrain");
    assert_eq!(outcomes(&project.tick()), [("waiting", "")], "the first version waits as any other");
    let output = project.command(&["tick"]).output().unwrap();
    insta::assert_snapshot!(String::from_utf8_lossy(&output.stderr), @"warning: workflows/retrain.yaml: step `canary` will not start its canary: no server watches, and how far apart the ticks are is not said; see `max_look_gap` in docs/workflow.md");

    // A first version needs no canary; it is made the champion by hand here, and the next one needs one.
    project.says(&["promote", "1", "--model", "m", "--target", "production", "--yes"]);
    project.says(&["run", "cancel", &first.to_string()]);
    assert_eq!(outcomes(&project.tick()), [("finished", "cancelled")]);
    let refused = project.trigger("retrain");
    project.tick();
    let (run, attempts) = project.look(refused).await;
    assert_eq!(run.outcome, Some(Outcome::Failed), "{run:#?}");
    let canary = attempts.iter().find(|attempt| attempt.step.as_str() == "canary").unwrap();
    insta::assert_snapshot!(canary.error.as_ref().unwrap().message, @"the canary was not started: no server watches, and how far apart the ticks are is not said");

    project.write("refit.toml", &format!("[worker]\ntick_every = \"15m\"\n{STORE_AND_TARGET}"));
    project.write("workflows/retrain.yaml", &RETRAIN.replace("CANARY", ", max_look_gap: 15m"));
    let accepted = project.trigger("retrain");
    let said = project.tick();
    assert_eq!(outcomes(&said), [("waiting", "")], "{said}");
    assert_eq!(said["next"], "a look at a canary");
    let store = project.store().await;
    let canary = store.canary_of(accepted).await.unwrap().unwrap();
    store.close().await;

    // A quarter of an hour later, the next tick looks.
    let due = canary.next_look_at - TimeDelta::minutes(15);
    let options = SqliteConnectOptions::new().filename(&project.database);
    let mut database = SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::query("UPDATE canaries SET next_look_at = $1").bind(due).execute(&mut database).await.unwrap();
    database.close().await.unwrap();
    assert_eq!(project.tick()["next"], "a look at a canary");
    let store = project.store().await;
    let looked = store.canary_of(accepted).await.unwrap().unwrap();
    assert!(looked.next_look_at > canary.next_look_at, "{looked:#?}");
    store.close().await;
}

/// Whoever is up deletes old evidence once a day: here, what was due while nobody was.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_and_a_tick_delete_old_evidence() {
    let project = Project::sqlite();
    let (now, old) = (SystemClock.now(), SystemClock.now() - TimeDelta::days(100));
    project.store().await.close().await;
    let options = SqliteConnectOptions::new().filename(&project.database);
    let mut database = SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::query("INSERT INTO chores (name, due_at) VALUES ('prune', $1)")
        .bind(now)
        .execute(&mut database)
        .await
        .unwrap();
    for tick in [false, true] {
        sqlx::query("INSERT INTO truths (model, request_id, value, at) VALUES ('m', 'old', 1, $1)")
            .bind(old)
            .execute(&mut database)
            .await
            .unwrap();
        sqlx::query("UPDATE chores SET due_at = $1").bind(now).execute(&mut database).await.unwrap();
        if tick {
            project.tick();
        } else {
            let mut server = project.serve();
            server.await_log("Old evidence was deleted: 1 truth (no prediction came for them)");
            server.signal("TERM");
            assert!(server.ended().success());
        }
        let left: i64 =
            sqlx::query_scalar("SELECT count(*) FROM truths").fetch_one(&mut database).await.unwrap();
        assert_eq!(left, 0);
    }
}

/// How many connections refit has to the database.
async fn connections(url: &str) -> i64 {
    let mut connection = PgConnection::connect(url).await.unwrap();
    sqlx::query_scalar(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'refit'",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap()
}

/// Waits until it keeps none: a command that just wrote may still be ending.
async fn no_connections(url: &str) {
    let gone = async {
        while connections(url).await > 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(40), gone).await.expect("it keeps no connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_lets_its_database_sleep_until_something_is_due() {
    let project = Project::postgres().await;
    project.write("refit.toml", "[database]\nidle = \"sleep\"\n");
    project.write(
        "workflows/one.yaml",
        "name: one\nmodel: m\non: { schedule: { cron: '0 3 1 1 *' } }\nsteps: [{ id: one, run: 'echo ran >> one' }]\n",
    );
    let mut server = project.serve().ready();
    for ran in 1..=2 {
        eventually("sleep", || {
            let said = "The database may sleep: due next is the schedule of one";
            (server.log().matches(said).count() >= ran).then_some(())
        });
        no_connections(&project.database).await;
        let says = http().get(format!("{}/readyz", server.url())).send().await.unwrap();
        assert_eq!(says.status(), 200);
        assert_eq!(says.json::<Value>().await.unwrap()["database"], "asleep");
        no_connections(&project.database).await;
        project.trigger("one");
        project.await_lines("one", ran);
    }
    server.signal("TERM");
    assert!(server.ended().success());
}
