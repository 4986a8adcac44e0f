//! Concurrency keys: one run at a time, in the order they came.

use refit::domain::run::{CancelRequest, RunStatus};
use refit::domain::workflow::ConcurrencyPolicy;
use refit::store::{Checkpoint, ClaimResult, RunState, Submitted};
use serde_json::json;

use super::database::Database;
use super::make::{claim, finish, keyed, made, next_step, try_claim, worker};
use super::on_both;

on_both! {
    the_oldest_that_waits_gets_the_key
    a_held_run_frees_its_key
    skip_is_not_started_while_another_runs
    queue_latest_cancels_those_that_wait
    cancel_running_asks_the_one_that_runs
    a_cancelled_run_needs_no_turn
}

async fn the_oldest_that_waits_gets_the_key(db: Database) {
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let queue = ConcurrencyPolicy::Queue;
    let first = made(keyed(&store, "k", queue, db.now()).await);
    let second = made(keyed(&store, "k", queue, db.now()).await);
    let third = made(keyed(&store, "k", queue, db.now()).await);
    let held = claim(&store, first, worker, db.now()).await;
    for waiting in [third, second] {
        assert!(matches!(try_claim(&store, waiting, worker, db.now()).await, ClaimResult::KeyTaken));
        assert_eq!(store.run(waiting).await.expect("read").expect("there").status, RunStatus::Queued);
    }
    store.checkpoint(finish(&held, "a", db.now())).await.expect("written");
    // The key was handed over with the checkpoint: a younger one cannot snatch it.
    assert!(matches!(try_claim(&store, third, worker, db.now()).await, ClaimResult::KeyTaken));
    let held = claim(&store, second, worker, db.now()).await;
    store.checkpoint(finish(&held, "a", db.now())).await.expect("written");
    let held = claim(&store, third, worker, db.now()).await;
    store.checkpoint(finish(&held, "a", db.now())).await.expect("written");
    let fourth = made(keyed(&store, "k", queue, db.now()).await);
    claim(&store, fourth, worker, db.now()).await;
}

async fn a_held_run_frees_its_key(db: Database) {
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let first = made(keyed(&store, "k", ConcurrencyPolicy::Queue, db.now()).await);
    let second = made(keyed(&store, "k", ConcurrencyPolicy::Queue, db.now()).await);
    let held = claim(&store, first, worker, db.now()).await;
    let hold = Checkpoint {
        run_state: RunState::Parked {
            status: RunStatus::Held,
            ending: None,
            wake_at: Some(db.now() + chrono::TimeDelta::days(6)),
            heard: held.heard,
        },
        ..next_step(&held, "a", "b", json!(1), db.now())
    };
    store.checkpoint(hold).await.expect("written");
    claim(&store, second, worker, db.now()).await;
    db.pass(6 * 86_400);
    let again = claim(&store, first, worker, db.now()).await;
    assert_eq!(again.run.status, RunStatus::Held, "it needs no key to end");
}

async fn skip_is_not_started_while_another_runs(db: Database) {
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let first = made(keyed(&store, "k", ConcurrencyPolicy::Skip, db.now()).await);
    assert_eq!(
        keyed(&store, "k", ConcurrencyPolicy::Skip, db.now()).await,
        Submitted::Busy(first),
        "about to run"
    );
    let held = claim(&store, first, worker, db.now()).await;
    assert_eq!(keyed(&store, "k", ConcurrencyPolicy::Skip, db.now()).await, Submitted::Busy(first));
    store.checkpoint(finish(&held, "a", db.now())).await.expect("written");
    made(keyed(&store, "k", ConcurrencyPolicy::Skip, db.now()).await);
}

async fn queue_latest_cancels_those_that_wait(db: Database) {
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let latest = ConcurrencyPolicy::QueueLatest;
    let first = made(keyed(&store, "k", latest, db.now()).await);
    let held = claim(&store, first, worker, db.now()).await;
    let second = made(keyed(&store, "k", latest, db.now()).await);
    let third = made(keyed(&store, "k", latest, db.now()).await);
    let wish = async |run| store.run(run).await.expect("read").expect("there").cancel;
    let why = wish(second).await.expect("its place is taken").reason.expect("why");
    assert!(why.contains(&third.to_string()), "{why}");
    assert_eq!((wish(first).await, wish(third).await), (None, None), "what runs runs on");
    let ends = claim(&store, second, worker, db.now()).await;
    store.checkpoint(finish(&ends, "a", db.now())).await.expect("written");
    store.checkpoint(finish(&held, "a", db.now())).await.expect("written");
    // The third has the key already; a fourth takes its place.
    let fourth = made(keyed(&store, "k", latest, db.now()).await);
    assert!(wish(third).await.is_some());
    let held = claim(&store, fourth, worker, db.now()).await;
    // Who ends one of those that are to be cancelled frees nothing, and nobody hands the key to one.
    let fifth = made(keyed(&store, "k", latest, db.now()).await);
    let sixth = made(keyed(&store, "k", latest, db.now()).await);
    assert!(wish(fifth).await.is_some());
    assert_eq!(store.due(db.now()).await.expect("read").runs, [third, fifth], "they need no turn");
    let ends = claim(&store, third, worker, db.now()).await;
    store.checkpoint(finish(&ends, "a", db.now())).await.expect("written");
    assert!(matches!(try_claim(&store, sixth, worker, db.now()).await, ClaimResult::KeyTaken));
    store.checkpoint(finish(&held, "a", db.now())).await.expect("written");
    claim(&store, sixth, worker, db.now()).await;
}

async fn cancel_running_asks_the_one_that_runs(db: Database) {
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let first = made(keyed(&store, "k", ConcurrencyPolicy::CancelRunning, db.now()).await);
    claim(&store, first, worker, db.now()).await;
    let second = made(keyed(&store, "k", ConcurrencyPolicy::CancelRunning, db.now()).await);
    let asked = store.run(first).await.expect("read").expect("there").cancel.expect("asked");
    assert!(asked.reason.expect("why").contains(&second.to_string()));
    assert!(matches!(try_claim(&store, second, worker, db.now()).await, ClaimResult::KeyTaken));
}

async fn a_cancelled_run_needs_no_turn(db: Database) {
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let first = made(keyed(&store, "k", ConcurrencyPolicy::Queue, db.now()).await);
    claim(&store, first, worker, db.now()).await;
    let second = made(keyed(&store, "k", ConcurrencyPolicy::Queue, db.now()).await);
    let wish = CancelRequest { actor: "ann".to_owned(), reason: None, at: db.now() };
    assert!(store.request_cancel(second, &wish).await.expect("asked"));
    let ending = claim(&store, second, worker, db.now()).await;
    store.checkpoint(finish(&ending, "a", db.now())).await.expect("written");
    let third = made(keyed(&store, "k", ConcurrencyPolicy::Queue, db.now()).await);
    assert!(
        matches!(try_claim(&store, third, worker, db.now()).await, ClaimResult::KeyTaken),
        "the first has it"
    );
}
