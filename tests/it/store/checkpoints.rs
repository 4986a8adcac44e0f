//! Checkpoints: all of one or nothing.

use std::sync::Mutex;

use refit::domain::id::RunId;
use refit::domain::run::{AttemptState, Outcome, RunStatus};
use refit::store::{Checkpoint, RunFilter, RunState, StoreError};
use serde_json::json;

use super::database::Database;
use super::make::{self, claim, finish, next_step, step, worker};
use super::on_both;

on_both! {
    a_checkpoint_ends_one_attempt_and_starts_the_next
    an_attempt_is_seen_from_its_beginning_and_keeps_it
    a_checkpoint_of_an_older_epoch_changes_nothing
    an_attempt_that_was_lost_takes_no_checkpoint_of_its_old_holder
    a_checkpoint_of_an_attempt_that_ended_changes_nothing
    a_checkpoint_that_is_sent_again_is_done
    one_fenced_checkpoint_does_not_disturb_the_others_of_its_group
    branches_of_one_run_checkpoint_at_once
    a_finished_run_stays_finished
    hostile_text_is_kept
    a_skipped_step_has_its_reason
}

async fn a_checkpoint_ends_one_attempt_and_starts_the_next(db: Database) {
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let run = make::run(&store, db.now()).await;
    let held = claim(&store, run, worker, db.now()).await;
    let at = db.pass(60);
    store.checkpoint(next_step(&held, "a", "b", json!({"mae": 12.5}), at)).await.expect("written");
    let attempts = store.attempts(run).await.expect("read");
    assert_eq!(attempts.len(), 2);
    assert_eq!((attempts[0].state, attempts[0].finished_at), (AttemptState::Succeeded, Some(at)));
    assert_eq!(attempts[0].output, Some(json!({"mae": 12.5})));
    assert_eq!((attempts[1].step.as_str(), attempts[1].state), ("b", AttemptState::Started));
    store.checkpoint(finish(&held, "b", at)).await.expect("written");
    let ended = store.run(run).await.expect("read").expect("there");
    assert_eq!(
        (ended.status, ended.outcome, ended.finished_at),
        (RunStatus::Finished, Some(Outcome::Succeeded), Some(at))
    );
    let listed = store.runs(&RunFilter { limit: 10, ..RunFilter::default() }).await.expect("listed");
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].id, listed[0].event.as_str()), (run, "ml/retrain.requested"));
}

async fn an_attempt_is_seen_from_its_beginning_and_keeps_it(db: Database) {
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let run = make::run(&store, db.now()).await;
    let held = claim(&store, run, worker, db.now()).await;
    store.checkpoint(next_step(&held, "a", "b", json!(1), db.now())).await.expect("written");
    let began = db.pass(60);
    store.checkpoint(next_step(&held, "b", "c", json!(1), began)).await.expect("written");
    let c = store.attempts(run).await.expect("read").pop().expect("there");
    assert_eq!(
        (c.step.as_str(), c.state, c.epoch, c.started_at, c.finished_at),
        ("c", AttemptState::Started, held.run.epoch, began, None)
    );
    let ended = db.pass(60);
    let checkpoint = Checkpoint {
        ended: Some(make::succeeded("c", json!("out"), began)),
        ..next_step(&held, "c", "d", json!(1), ended)
    };
    store.checkpoint(checkpoint).await.expect("written");
    let attempts = store.attempts(run).await.expect("read");
    let steps: Vec<_> = attempts.iter().map(|attempt| attempt.step.as_str()).collect();
    assert_eq!(steps, ["a", "b", "c", "d"]);
    assert_eq!(
        (attempts[2].state, attempts[2].started_at, attempts[2].finished_at, &attempts[2].output),
        (AttemptState::Succeeded, began, Some(ended), &Some(json!("out")))
    );
    // It sleeps and ends as one that has a row from its beginning.
    store.checkpoint(make::sleep(&held, "d", None, ended)).await.expect("written");
    let d = store.attempts(run).await.expect("read").pop().expect("there");
    assert_eq!((d.step.as_str(), d.state), ("d", AttemptState::Sleeping));
}

async fn an_attempt_that_was_lost_takes_no_checkpoint_of_its_old_holder(db: Database) {
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let run = make::run(&store, db.now()).await;
    let zombie = claim(&store, run, worker, db.now()).await;
    for (one, next) in [("a", "b"), ("b", "c")] {
        store.checkpoint(next_step(&zombie, one, next, json!(1), db.now())).await.expect("written");
    }
    store.release_lease(run, zombie.run.epoch).await.expect("given back");
    let now = make::take_over(&store, run, worker, db.pass(1), || ()).await;
    let states: Vec<_> = now.attempts.iter().map(|attempt| (attempt.step.as_str(), attempt.state)).collect();
    assert_eq!(
        states,
        [("a", AttemptState::Succeeded), ("b", AttemptState::Succeeded), ("c", AttemptState::Lost)]
    );
    assert_eq!(store.attempts(run).await.expect("read"), now.attempts);
    for late in [next_step(&zombie, "c", "d", json!(1), db.now()), finish(&zombie, "c", db.now())] {
        assert!(matches!(store.checkpoint(late).await, Err(StoreError::Fenced)));
    }
    assert_eq!(store.attempts(run).await.expect("read"), now.attempts);
}

/// Between what a claim reads and what it writes, the holder that was taken for dead writes: the claim reads again, and
/// whatever it has read then is what stays. On SQLite nobody writes while a claim does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_sees_the_checkpoint_that_its_old_holder_wrote_meanwhile() {
    for begun_by_a_checkpoint in [false, true] {
        let db = Database::postgres().await;
        let (store, other) = (db.open().await, db.open().await);
        let worker = worker(&store, db.now()).await;
        let run = make::run(&store, db.now()).await;
        let zombie = claim(&other, run, worker, db.now()).await;
        if begun_by_a_checkpoint {
            other.checkpoint(next_step(&zombie, "a", "b", json!(1), db.now())).await.expect("written");
        } else {
            // `b` has a row from its beginning, as all that begin beside another.
            let mut fan = next_step(&zombie, "a", "b", json!(1), db.now());
            fan.started.push(refit::store::NewAttempt { step: step("x"), attempt: 1 });
            other.checkpoint(fan).await.expect("written");
        }
        store.release_lease(run, zombie.run.epoch).await.expect("given back");
        let late = Mutex::new(Some(next_step(&zombie, "b", "c", json!("late"), db.now())));
        let runtime = tokio::runtime::Handle::current();
        let meanwhile = || {
            let Some(late) = late.lock().expect("nobody panics").take() else { return };
            tokio::task::block_in_place(|| runtime.block_on(other.checkpoint(late))).expect("written first");
        };
        let now = make::take_over(&store, run, worker, db.pass(1), meanwhile).await;
        let state_of = |id: &str| {
            now.attempts.iter().find(|attempt| attempt.step.as_str() == id).map(|attempt| attempt.state)
        };
        assert_eq!(state_of("b"), Some(AttemptState::Succeeded), "{begun_by_a_checkpoint}");
        assert_eq!(state_of("c"), Some(AttemptState::Lost), "{begun_by_a_checkpoint}");
        assert_eq!(store.attempts(run).await.expect("read"), now.attempts);
        assert_eq!(now.run.epoch.0, zombie.run.epoch.0 + 1);
        let later = next_step(&zombie, "c", "d", json!(1), db.now());
        assert!(matches!(other.checkpoint(later).await, Err(StoreError::Fenced)));
    }
}

async fn a_checkpoint_of_an_older_epoch_changes_nothing(db: Database) {
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let run = make::run(&store, db.now()).await;
    let zombie = claim(&store, run, worker, db.now()).await;
    store.release_lease(run, zombie.run.epoch).await.expect("given back");
    let now = claim(&store, run, worker, db.now()).await;
    let before = (store.run(run).await.expect("read"), store.attempts(run).await.expect("read"));
    for late in [next_step(&zombie, "a", "b", json!(1), db.now()), finish(&zombie, "a", db.now())] {
        assert!(matches!(store.checkpoint(late).await, Err(StoreError::Fenced)));
    }
    assert_eq!((store.run(run).await.expect("read"), store.attempts(run).await.expect("read")), before);
    // Its attempt belongs to the older epoch until the plan says what becomes of it.
    let unplanned = next_step(&now, "a", "b", json!(1), db.now());
    assert!(matches!(store.checkpoint(unplanned).await, Err(StoreError::Fenced)));
}

async fn a_checkpoint_of_an_attempt_that_ended_changes_nothing(db: Database) {
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let run = make::run(&store, db.now()).await;
    let held = claim(&store, run, worker, db.now()).await;
    // The first of them ends an attempt of the claim, the second one of a checkpoint.
    for (one, next) in [("a", "b"), ("b", "c")] {
        store.checkpoint(next_step(&held, one, next, json!(1), db.now())).await.expect("written");
        let before = store.attempts(run).await.expect("read");
        let twice = next_step(&held, one, "z", json!(2), db.pass(1));
        assert!(matches!(store.checkpoint(twice).await, Err(StoreError::Fenced)));
        assert!(matches!(store.checkpoint(finish(&held, one, db.pass(1))).await, Err(StoreError::Fenced)));
        assert_eq!(store.attempts(run).await.expect("read"), before);
    }
}

async fn a_checkpoint_that_is_sent_again_is_done(db: Database) {
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let run = make::run(&store, db.now()).await;
    let held = claim(&store, run, worker, db.now()).await;
    for last in [next_step(&held, "a", "b", json!(1), db.now()), finish(&held, "b", db.now())] {
        store.checkpoint(last.clone()).await.expect("written");
        let before = store.attempts(run).await.expect("read");
        store.checkpoint(last).await.expect("its answer was lost with the connection");
        assert_eq!(store.attempts(run).await.expect("read"), before);
    }
}

async fn one_fenced_checkpoint_does_not_disturb_the_others_of_its_group(db: Database) {
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let mut held = Vec::new();
    for _ in 0..30 {
        let run = make::run(&store, db.now()).await;
        held.push(claim(&store, run, worker, db.now()).await);
    }
    let late = held[7].run.id;
    store.release_lease(late, held[7].run.epoch).await.expect("given back");
    claim(&store, late, worker, db.now()).await;
    let writes = held.iter().map(|claim| store.checkpoint(next_step(claim, "a", "b", json!(1), db.now())));
    let written = futures::future::join_all(writes).await;
    for (claim, result) in held.iter().zip(written) {
        if claim.run.id == late {
            assert!(matches!(result, Err(StoreError::Fenced)));
        } else {
            result.expect("written");
            assert_eq!(store.attempts(claim.run.id).await.expect("read").len(), 2);
        }
    }
    assert_eq!(store.attempts(late).await.expect("read").len(), 1);
}

async fn branches_of_one_run_checkpoint_at_once(db: Database) {
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let run = make::run(&store, db.now()).await;
    let held = claim(&store, run, worker, db.now()).await;
    let mut fan = next_step(&held, "a", "b", json!(1), db.now());
    fan.started.extend(["c", "d"].map(|id| refit::store::NewAttempt { step: step(id), attempt: 1 }));
    store.checkpoint(fan).await.expect("written");
    let writes = ["b", "c", "d"].map(|id| {
        let checkpoint = Checkpoint { started: Vec::new(), ..next_step(&held, id, id, json!(id), db.now()) };
        store.checkpoint(checkpoint)
    });
    for written in futures::future::join_all(writes).await {
        written.expect("written");
    }
    let done = store.attempts(run).await.expect("read");
    assert!(done.iter().all(|attempt| attempt.state == AttemptState::Succeeded), "{done:?}");
}

async fn a_finished_run_stays_finished(db: Database) {
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let run = make::run(&store, db.now()).await;
    let held = claim(&store, run, worker, db.now()).await;
    store.checkpoint(finish(&held, "a", db.now())).await.expect("written");
    let more = Checkpoint {
        ended: None,
        run_state: RunState::Kept { status: RunStatus::Running, ending: None },
        ..next_step(&held, "a", "b", json!(1), db.now())
    };
    assert!(matches!(store.checkpoint(more).await, Err(StoreError::Fenced)));
    assert!(
        !store.signal(run, &refit::domain::run::SignalKind::Look, "x", None, db.now()).await.expect("asked")
    );
    assert!(matches!(make::try_claim(&store, run, worker, db.now()).await, refit::store::ClaimResult::Gone));
}

async fn hostile_text_is_kept(db: Database) {
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let run = make::run(&store, db.now()).await;
    let held = claim(&store, run, worker, db.now()).await;
    let nasty = json!({"a\0b": ["'; DROP TABLE runs; --", "\u{0}", "\u{1F600}", {"x": 1e-300, "y": -0.5, "z": u64::MAX}]});
    store.checkpoint(next_step(&held, "a", "b", nasty, db.now())).await.expect("written");
    let output = store.attempts(run).await.expect("read").remove(0).output.expect("kept");
    assert_eq!(
        output,
        json!({"a\u{fffd}b": ["'; DROP TABLE runs; --", "\u{fffd}", "\u{1F600}", {"x": 1e-300, "y": -0.5, "z": u64::MAX}]})
    );
}

async fn a_skipped_step_has_its_reason(db: Database) {
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let run: RunId = make::run(&store, db.now()).await;
    let held = claim(&store, run, worker, db.now()).await;
    let checkpoint = Checkpoint {
        skipped: vec![(step("s"), "`if` was false".to_owned())],
        ..next_step(&held, "a", "b", json!(1), db.now())
    };
    store.checkpoint(checkpoint).await.expect("written");
    let attempts = store.attempts(run).await.expect("read");
    let skipped = attempts.iter().find(|a| a.state == AttemptState::Skipped).expect("there");
    assert_eq!((skipped.step.as_str(), skipped.attempt), ("s", 1));
    assert_eq!(skipped.error.as_ref().expect("why").message, "`if` was false");
}
