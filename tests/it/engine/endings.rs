//! What is left of a run's steps when it ends before they do.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::TimeDelta;
use refit::clock::Clock;
use refit::domain::id::RunId;
use refit::domain::run::{CancelRequest, Outcome, RunStatus};
use refit::engine::Engine;
use tokio_util::sync::CancellationToken;

use super::on_both;
use crate::support::crash::Crash;
use crate::support::world::{World, turn};

/// Three branches that sleep each in its way, beside one that runs until it is told to fail.
const BRANCHES: &str = "
name: branches
model: m
steps:
  - { id: one, run: 'true' }
  - { id: wait, uses: wait, with: { for: 24h }, needs: [one] }
  - { id: ask, uses: approve, with: { message: 'Ship it?' }, needs: [one] }
  - { id: again, run: 'exit 3', retry: { attempts: 2, backoff: 24h, max: 24h }, needs: [one] }
  - { id: bad, run: 'while [ ! -e go ]; do sleep 0.02; done; exit 1', retry: { attempts: 1 }, needs: [one] }
on_failure:
  - { id: pause, run: 'exit 4', retry: { attempts: 2, backoff: 1h, max: 1h } }
  - { id: sorry, run: 'touch sorry' }
";

/// Each step's newest attempt: where it stands, whether it will be woken, whether it ended.
async fn standing(engine: &Arc<Engine>, run: RunId) -> BTreeMap<String, (&'static str, bool, bool)> {
    let attempts = engine.store.attempts(run).await.expect("readable");
    let stands = |attempt: &refit::domain::run::Attempt| {
        (attempt.state.as_str(), attempt.wake_at.is_some(), attempt.finished_at.is_some())
    };
    attempts.iter().map(|attempt| (attempt.step.to_string(), stands(attempt))).collect()
}

fn stopped(bad: &'static str) -> Vec<(&'static str, (&'static str, bool, bool))> {
    vec![
        ("again", ("failed", false, true)),
        ("ask", ("cancelled", false, true)),
        ("bad", (bad, false, true)),
        ("one", ("succeeded", false, true)),
        ("wait", ("cancelled", false, true)),
    ]
}

fn listed<'a>(
    standing: &'a BTreeMap<String, (&'static str, bool, bool)>,
) -> Vec<(&'a str, (&'static str, bool, bool))> {
    standing.iter().map(|(step, stands)| (step.as_str(), *stands)).collect()
}

/// A run of `BRANCHES` whose sleepers sleep, and the task that works on it.
async fn asleep(
    world: &World,
    engine: &Arc<Engine>,
) -> (RunId, tokio::task::JoinHandle<Result<(), refit::store::StoreError>>) {
    let run = world.trigger(engine, BRANCHES).await;
    let worker = engine.clone();
    let working = tokio::spawn(async move { worker.activate(run, &CancellationToken::new()).await });
    loop {
        let standing = standing(engine, run).await;
        let sleeps = |step: &str| {
            standing.get(step).is_some_and(|(state, ..)| *state == "sleeping" || *state == "failed")
        };
        if ["wait", "ask", "again"].into_iter().all(sleeps) {
            return (run, working);
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn branches_that_sleep_end_with_the_one_that_fails() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        let (run, working) = asleep(&world, &engine).await;
        world.write("go", "");
        working.await.expect("no panic").expect("it goes on");
        let row = engine.store.run(run).await.expect("readable").expect("a run");
        assert_eq!((row.status, row.outcome), (RunStatus::Undoing, Some(Outcome::Failed)), "{row:?}");
        let now = standing(&engine, run).await;
        let mut expected = stopped("failed");
        // What is done about the failure is tried again as it should.
        expected.insert(4, ("pause", ("failed", true, true)));
        assert_eq!(listed(&now), expected);
        world.pass(TimeDelta::hours(2));
        let ended = turn(&engine, run).await;
        assert_eq!((ended.status, ended.outcome), (RunStatus::Finished, Some(Outcome::Failed)));
        assert!(world.path("sorry").exists());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn branches_that_sleep_and_those_that_run_end_with_a_cancel() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        let (run, working) = asleep(&world, &engine).await;
        let request = CancelRequest { actor: "ann".to_owned(), reason: None, at: world.clock.now() };
        engine.store.request_cancel(run, &request).await.expect("asked");
        // What a wake-up does for a run that is worked on already.
        engine.activate(run, &CancellationToken::new()).await.expect("nudged");
        working.await.expect("no panic").expect("it ends");
        let row = engine.store.run(run).await.expect("readable").expect("a run");
        assert_eq!((row.status, row.outcome), (RunStatus::Finished, Some(Outcome::Cancelled)), "{row:?}");
        assert_eq!(listed(&standing(&engine, run).await), stopped("cancelled"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sleeping_run_that_is_cancelled_leaves_no_sleeper() {
    let source = "
name: sleeps
model: m
steps:
  - { id: wait, uses: wait, with: { for: 24h } }
  - { id: never, run: 'touch never' }
";
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        let run = world.trigger(&engine, source).await;
        assert_eq!(turn(&engine, run).await.status, RunStatus::Waiting);
        let request = CancelRequest { actor: "ann".to_owned(), reason: None, at: world.clock.now() };
        engine.store.request_cancel(run, &request).await.expect("asked");
        assert_eq!(turn(&engine, run).await.outcome, Some(Outcome::Cancelled));
        assert_eq!(listed(&standing(&engine, run).await), [("wait", ("cancelled", false, true))]);
    })
    .await;
}
