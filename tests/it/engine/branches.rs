//! Branches of a run side by side: what sleeps in one goes on in its time, whatever a body in another does.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use refit::clock::Clock;
use refit::domain::id::RunId;
use refit::domain::run::{Attempt, AttemptState, Outcome, Run, RunStatus, SignalKind};
use refit::engine::Engine;
use refit::store::StoreError;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::on_both;
use crate::support::crash::{Crash, When, Write};
use crate::support::world::{World, exists, finish, successes};

/// Beside `steps`, of which the first is `side`, a body that goes on until there is a file `go`.
fn beside(steps: &str) -> String {
    format!(
        "
name: branches
model: m
steps:
  - {{ id: first, run: 'true' }}
  - {{ id: long, run: 'echo began >> long; while [ ! -e go ]; do sleep 0.02; done', needs: [first] }}
{steps}
  - {{ id: after, run: 'touch after', needs: [side] }}
"
    )
}

pub fn activated(engine: &Arc<Engine>, run: RunId) -> JoinHandle<Result<(), StoreError>> {
    let engine = engine.clone();
    tokio::spawn(async move { engine.activate(run, &CancellationToken::new()).await })
}

/// Waits until the newest attempt of `step` is as `is` wants it.
pub async fn newest(engine: &Engine, run: RunId, step: &str, is: impl Fn(&Attempt) -> bool) -> Attempt {
    let began = Instant::now();
    loop {
        let attempts = engine.store.attempts(run).await.expect("readable");
        match attempts.iter().rev().find(|attempt| attempt.step.as_str() == step) {
            Some(newest) if is(newest) => return newest.clone(),
            _ => assert!(began.elapsed() < Duration::from_secs(30), "`{step}`: {attempts:#?}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The step after the branch has run while the body beside it goes on; then that one ends, and the run with it.
async fn ends_beside(
    world: &World,
    engine: &Arc<Engine>,
    run: RunId,
    working: JoinHandle<Result<(), StoreError>>,
) -> (Run, Vec<Attempt>) {
    exists(world, "after").await;
    newest(engine, run, "after", |attempt| attempt.state == AttemptState::Succeeded).await;
    let long = newest(engine, run, "long", |_| true).await;
    assert_eq!((long.state, long.attempt), (AttemptState::Started, 1));
    world.write("go", "");
    working.await.expect("no panic").expect("it went well");
    let ended = engine.store.run(run).await.expect("readable").expect("a run");
    let attempts = engine.store.attempts(run).await.expect("readable");
    assert_eq!(ended.outcome, Some(Outcome::Succeeded), "{ended:#?}\n{attempts:#?}");
    let once: Vec<_> = successes(&attempts).into_iter().collect();
    assert_eq!(once, ["after", "first", "long", "side"].map(|step| (step.to_owned(), 1)));
    (ended, attempts)
}

/// The process that has the run looks what is new, as after a wake-up.
pub async fn nudged(engine: &Arc<Engine>, run: RunId) {
    engine.activate(run, &CancellationToken::new()).await.expect("nudged");
}

fn answer(approve: bool) -> SignalKind {
    let step = "side".parse().expect("a step id");
    if approve { SignalKind::Approve { step } } else { SignalKind::Reject { step } }
}

#[tokio::test]
async fn a_retry_in_one_branch_does_not_wait_for_the_body_in_another() {
    let source = beside(
        "  - { id: side, run: 'echo try >> tries; [ -e fixed ]', needs: [first], retry: { attempts: 3, backoff: 2m } }",
    );
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        let run = world.trigger(&engine, &source).await;
        let working = activated(&engine, run);
        let failed = newest(&engine, run, "side", |attempt| attempt.state == AttemptState::Failed).await;
        world.write("fixed", "");
        exists(&world, "long").await;
        world.clock.set(failed.wake_at.expect("tried again"));
        ends_beside(&world, &engine, run, working).await;
        assert_eq!(std::fs::read_to_string(world.path("tries")).expect("written").lines().count(), 2);
    })
    .await;
}

#[tokio::test]
async fn a_wait_in_one_branch_does_not_wait_for_the_body_in_another() {
    let source = beside("  - { id: side, uses: wait, with: { for: 2h }, needs: [first] }");
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        let run = world.trigger(&engine, &source).await;
        let working = activated(&engine, run);
        let asleep = newest(&engine, run, "side", |attempt| attempt.state == AttemptState::Sleeping).await;
        exists(&world, "long").await;
        world.clock.set(asleep.wake_at.expect("a time"));
        let (ended, attempts) = ends_beside(&world, &engine, run, working).await;
        assert_eq!((ended.epoch.0, attempts.len()), (1, 4), "one process, one attempt each: {attempts:#?}");
    })
    .await;
}

#[tokio::test]
async fn an_answer_in_one_branch_does_not_wait_for_the_body_in_another() {
    let source = beside("  - { id: side, uses: approve, with: { message: 'Go on?' }, needs: [first] }");
    on_both(async |world| {
        for approve in [true, false] {
            for file in ["go", "long", "after"] {
                std::fs::remove_file(world.path(file)).ok();
            }
            let engine = world.process(&Crash::never()).await;
            let run = world.trigger(&engine, &source).await;
            let working = activated(&engine, run);
            newest(&engine, run, "side", |attempt| attempt.state == AttemptState::Sleeping).await;
            exists(&world, "long").await;
            let sent = engine.store.signal(run, &answer(approve), "ann", None, world.clock.now()).await;
            assert!(sent.expect("sent"));
            nudged(&engine, run).await;
            if approve {
                let (ended, attempts) = ends_beside(&world, &engine, run, working).await;
                assert_eq!((ended.epoch.0, attempts.len()), (1, 4), "nothing looks twice: {attempts:#?}");
            } else {
                working.await.expect("no panic").expect("it went well");
            }
            let ended = engine.store.run(run).await.expect("readable").expect("a run");
            let outcome = if approve { Outcome::Succeeded } else { Outcome::Rejected };
            assert_eq!((ended.status, ended.outcome), (RunStatus::Finished, Some(outcome)), "{ended:#?}");
        }
    })
    .await;
}

/// The process hears of the answer when the step that asks has begun and does not sleep yet.
#[tokio::test]
async fn an_answer_that_comes_while_the_question_is_put_is_heard() {
    let source = beside("  - { id: side, uses: approve, with: { message: 'Go on?' }, needs: [first] }");
    on_both(async |world| {
        let place: Arc<OnceLock<(Crash, Arc<Engine>, RunId)>> = Arc::default();
        let now = world.clock.now();
        let first_ends = Write { name: "checkpoint".to_owned(), nth: 0 };
        let crash = Crash::meanwhile(first_ends, When::Before, {
            let place = place.clone();
            move || {
                let place = place.clone();
                async move {
                    let (crash, engine, run) = place.get().expect("told where");
                    engine.store.signal(*run, &answer(true), "ann", None, now).await.expect("sent");
                    // It tells what it found before it looks again.
                    for looks in 1..=2 {
                        nudged(engine, *run).await;
                        let renewed = || crash.names().iter().filter(|name| *name == "renew").count();
                        while renewed() < looks {
                            tokio::time::sleep(Duration::from_millis(5)).await;
                        }
                    }
                }
            }
        });
        let engine = world.process(&crash).await;
        let run = world.trigger(&engine, &source).await;
        assert!(place.set((crash, engine.clone(), run)).is_ok());
        let working = activated(&engine, run);
        ends_beside(&world, &engine, run, working).await;
    })
    .await;
}

#[tokio::test]
async fn a_process_killed_as_it_wakes_a_branch_leaves_nothing_undone() {
    let source = beside("  - { id: side, uses: wait, with: { for: 2h }, needs: [first] }");
    on_both(async |world| {
        for when in [When::Before, When::After] {
            for file in ["go", "long", "after"] {
                std::fs::remove_file(world.path(file)).ok();
            }
            // `first` ends, `side` goes to sleep, and wakes.
            let crash = Crash::at(Write { name: "checkpoint".to_owned(), nth: 2 }, when);
            let dying = world.process(&crash).await;
            let run = world.trigger(&dying, &source).await;
            let asked_at = world.clock.now();
            let working = activated(&dying, run);
            let next = world.process(&Crash::never()).await;
            newest(&next, run, "side", |attempt| attempt.state == AttemptState::Sleeping).await;
            exists(&world, "long").await;
            world.pass(TimeDelta::hours(2));
            tokio::time::timeout(Duration::from_secs(30), crash.died()).await.expect("it wakes the branch");
            working.abort();
            next.store.retire_worker(dying.worker).await.expect("its leases are free");
            world.write("go", "");
            let ended = finish(&world, &next, run).await;
            assert_eq!((ended.outcome, ended.epoch.0), (Some(Outcome::Succeeded), 2), "{ended:#?}");
            let attempts = next.store.attempts(run).await.expect("readable");
            assert!(successes(&attempts).values().all(|count| *count == 1), "{attempts:#?}");
            let side = newest(&next, run, "side", |_| true).await;
            assert_eq!(side.attempt, if when == When::Before { 1 } else { 2 }, "{attempts:#?}");
            let output = side.output.expect("its output");
            assert_eq!(output["since"], serde_json::json!(asked_at), "the wait did not begin again");
        }
    })
    .await;
}
