//! Checkpoints: all of one or nothing.

use std::collections::BTreeMap;
use std::sync::Mutex;

use refit::domain::Timestamp;
use refit::domain::id::RunId;
use refit::domain::run::{Attempt, AttemptState, Outcome, RunStatus};
use refit::store::{Checkpoint, Claim, ClaimResult, NewAttempt, Opening, RunFilter, RunState, StoreError};
use serde_json::json;
use sqlx::{Connection, PgConnection};

use super::database::Database;
use super::make::{self, after, claim, finish, next_step, step, worker};
use super::on_both;

on_both! {
    a_checkpoint_ends_one_attempt_and_starts_the_next
    an_attempt_is_seen_from_its_beginning_and_keeps_it
    attempts_are_in_the_order_in_which_they_began
    what_begins_with_a_step_that_sleeps_and_wakes_is_seen_once
    a_checkpoint_wakes_what_sleeps_beside_others
    a_checkpoint_that_only_wakes_or_begins_is_done_when_it_is_sent_again
    a_checkpoint_of_an_older_epoch_changes_nothing
    an_attempt_that_was_lost_takes_no_checkpoint_of_its_old_holder
    a_checkpoint_of_an_attempt_that_is_not_started_changes_nothing
    a_checkpoint_that_is_sent_again_is_done
    a_late_checkpoint_that_comes_alone_is_fenced_whatever_the_claim_says_of_its_attempt
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
    store.checkpoint(after("a", finish(&held, "b", at))).await.expect("written");
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
    store.checkpoint(after("a", next_step(&held, "b", "c", json!(1), began))).await.expect("written");
    let c = store.attempts(run).await.expect("read").pop().expect("there");
    assert_eq!(
        (c.step.as_str(), c.state, c.epoch, c.started_at, c.finished_at),
        ("c", AttemptState::Started, held.run.epoch, began, None)
    );
    let ended = db.pass(60);
    store.checkpoint(after("b", next_step(&held, "c", "d", json!("out"), ended))).await.expect("written");
    let attempts = store.attempts(run).await.expect("read");
    assert_eq!(steps_of(&attempts), ["a", "b", "c", "d"]);
    assert_eq!(
        (attempts[2].state, attempts[2].started_at, attempts[2].finished_at, &attempts[2].output),
        (AttemptState::Succeeded, began, Some(ended), &Some(json!("out")))
    );
    // It sleeps as one that has a row from its beginning.
    store.checkpoint(after("c", make::sleep(&held, "d", None, ended))).await.expect("written");
    let d = store.attempts(run).await.expect("read").pop().expect("there");
    assert_eq!((d.step.as_str(), d.state, d.started_at), ("d", AttemptState::Sleeping, ended));
}

async fn attempts_are_in_the_order_in_which_they_began(db: Database) {
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let run = make::run(&store, db.now()).await;
    let held = claim(&store, run, worker, db.now()).await;
    // Alone, with others beside it, with one that is left out, and at the end of the run.
    store.checkpoint(next_step(&held, "a", "b", json!(1), db.now())).await.expect("written");
    let mut fan = after("a", next_step(&held, "b", "z", json!(1), db.now()));
    fan.started.push(NewAttempt { step: step("c"), attempt: 1 });
    fan.skipped.push((step("left-out"), "`if` is false".to_owned()));
    store.checkpoint(fan).await.expect("written");
    let more = [
        next_step(&held, "c", "y", json!(1), db.now()),
        next_step(&held, "z", "d", json!(1), db.now()),
        // The one that began last ends first.
        after("z", next_step(&held, "d", "x", json!(1), db.now())),
    ];
    for (checkpoint, place) in more.into_iter().zip(5..) {
        store.checkpoint(Checkpoint { place, ..checkpoint }).await.expect("written");
    }
    let order = ["a", "b", "z", "c", "left-out", "y", "d", "x"];
    assert_eq!(steps_of(&store.attempts(run).await.expect("read")), order);
    let mut fan = after("c", next_step(&held, "y", "w", json!(1), db.now()));
    fan.started.push(NewAttempt { step: step("v"), attempt: 1 });
    fan.place = 8;
    store.checkpoint(fan).await.expect("written");
    store.checkpoint(after("d", finish(&held, "x", db.now()))).await.expect("written");
    let attempts = store.attempts(run).await.expect("read");
    assert_eq!(steps_of(&attempts), ["a", "b", "z", "c", "left-out", "y", "d", "x", "w", "v"]);
    assert_eq!(attempts[7].state, AttemptState::Succeeded);
}

fn steps_of(attempts: &[Attempt]) -> Vec<&str> {
    attempts.iter().map(|attempt| attempt.step.as_str()).collect()
}

async fn an_attempt_that_was_lost_takes_no_checkpoint_of_its_old_holder(db: Database) {
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let run = make::run(&store, db.now()).await;
    let zombie = claim(&store, run, worker, db.now()).await;
    store.checkpoint(next_step(&zombie, "a", "b", json!(1), db.now())).await.expect("written");
    store.checkpoint(after("a", next_step(&zombie, "b", "c", json!(1), db.now()))).await.expect("written");
    store.release_lease(run, zombie.run.epoch).await.expect("given back");
    let now = make::take_over(&store, run, worker, db.pass(1), || ()).await;
    assert_eq!(steps_of(&now.attempts), ["a", "b", "c"]);
    assert_eq!(now.attempts[2].state, AttemptState::Lost);
    assert_eq!(store.attempts(run).await.expect("read"), now.attempts);
    for late in [next_step(&zombie, "c", "d", json!(1), db.now()), finish(&zombie, "c", db.now())] {
        assert!(matches!(store.checkpoint(after("b", late)).await, Err(StoreError::Fenced)));
    }
    assert_eq!(store.attempts(run).await.expect("read"), now.attempts);
}

async fn what_begins_with_a_step_that_sleeps_and_wakes_is_seen_once(db: Database) {
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let run = make::run(&store, db.now()).await;
    let held = claim(&store, run, worker, db.now()).await;
    let mut asleep = make::sleep(&held, "a", None, db.now());
    asleep.started.push(NewAttempt { step: step("b"), attempt: 1 });
    asleep.run_state = RunState::Kept { status: RunStatus::Running, ending: None };
    store.checkpoint(asleep).await.expect("written");
    store.release_lease(run, held.run.epoch).await.expect("given back");
    let opening = Opening {
        lost: vec![(step("b"), 1)],
        woken: vec![(step("a"), 1)],
        started: vec![NewAttempt { step: step("b"), attempt: 2 }],
        ..Opening::default()
    };
    let woken =
        store.claim(run, worker, make::LEASE, db.now(), &|_| Some(opening.clone())).await.expect("asked");
    let ClaimResult::Claimed(held) = woken else { panic!("{woken:?}") };
    store.checkpoint(next_step(&held, "a", "c", json!(1), db.now())).await.expect("written");
    let attempts = store.attempts(run).await.expect("read");
    let seen: Vec<_> = attempts.iter().map(|a| (a.step.as_str(), a.attempt, a.state)).collect();
    assert_eq!(
        seen,
        [
            ("a", 1, AttemptState::Succeeded),
            ("b", 1, AttemptState::Lost),
            ("b", 2, AttemptState::Started),
            ("c", 1, AttemptState::Started)
        ]
    );
}

/// Ends no attempt.
fn only(held: &Claim, at: Timestamp) -> Checkpoint {
    Checkpoint { ended: None, started: Vec::new(), ..next_step(held, "none", "none", json!(1), at) }
}

fn seen(attempts: &[Attempt]) -> Vec<(&str, u32, AttemptState)> {
    attempts.iter().map(|attempt| (attempt.step.as_str(), attempt.attempt, attempt.state)).collect()
}

/// What began when the sleeper fell asleep is kept in its row until then.
async fn a_checkpoint_wakes_what_sleeps_beside_others(db: Database) {
    use AttemptState::{Sleeping, Started, Succeeded};
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let run = make::run(&store, db.now()).await;
    let held = claim(&store, run, worker, db.now()).await;
    let (began, wakes) = (db.now(), db.now() + chrono::TimeDelta::hours(1));
    let mut asleep = make::sleep(&held, "a", Some(wakes), began);
    asleep.started.push(NewAttempt { step: step("b"), attempt: 1 });
    asleep.run_state = RunState::Kept { status: RunStatus::Running, ending: None };
    store.checkpoint(asleep).await.expect("written");
    let attempts = store.attempts(run).await.expect("read");
    assert_eq!(seen(&attempts), [("a", 1, Sleeping), ("b", 1, Started)]);

    let woken = Checkpoint { woken: vec![(step("a"), 1)], ..only(&held, db.pass(3600)) };
    store.checkpoint(woken).await.expect("written");
    let attempts = store.attempts(run).await.expect("read");
    assert_eq!(seen(&attempts), [("a", 1, Started), ("b", 1, Started)]);
    assert_eq!((attempts[0].wake_at, &attempts[0].resume), (None, &Some(json!({"since": "then"}))));
    assert_eq!(attempts[1].started_at, began, "what runs beside it runs on");

    store.checkpoint(next_step(&held, "a", "c", json!(1), db.pass(1))).await.expect("written");
    store.checkpoint(next_step(&held, "b", "d", json!(2), db.pass(1))).await.expect("written");
    let attempts = store.attempts(run).await.expect("read");
    let expected = [("a", 1, Succeeded), ("b", 1, Succeeded), ("c", 1, Started), ("d", 1, Started)];
    assert_eq!(seen(&attempts), expected);
    assert_eq!((attempts[1].started_at, &attempts[1].output), (began, &Some(json!(2))));
    // It does not sleep: nothing is written.
    let again = Checkpoint {
        woken: vec![(step("a"), 1)],
        started: vec![NewAttempt { step: step("e"), attempt: 1 }],
        ..only(&held, db.pass(1))
    };
    assert!(matches!(store.checkpoint(again).await, Err(StoreError::Broken(_))));
    assert_eq!(seen(&store.attempts(run).await.expect("read")), expected);
}

async fn a_checkpoint_that_only_wakes_or_begins_is_done_when_it_is_sent_again(db: Database) {
    use AttemptState::{Skipped, Sleeping, Started};
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let run = make::run(&store, db.now()).await;
    let held = claim(&store, run, worker, db.now()).await;
    let mut asleep = make::sleep(&held, "a", None, db.now());
    asleep.run_state = RunState::Kept { status: RunStatus::Running, ending: None };
    let wakes = Checkpoint { woken: vec![(step("a"), 1)], ..only(&held, db.now()) };
    let begins =
        Checkpoint { started: vec![NewAttempt { step: step("b"), attempt: 1 }], ..only(&held, db.now()) };
    let skips =
        Checkpoint { skipped: vec![(step("c"), "`if` is false".to_owned())], ..only(&held, db.now()) };
    let after = [
        (&wakes, vec![("a", 1, Started)]),
        (&begins, vec![("a", 1, Started), ("b", 1, Started)]),
        (&skips, vec![("a", 1, Started), ("b", 1, Started), ("c", 1, Skipped)]),
    ];
    store.checkpoint(asleep.clone()).await.expect("written");
    for (checkpoint, expected) in after {
        for _ in 0..2 {
            store.checkpoint(checkpoint.clone()).await.expect("written");
            assert_eq!(seen(&store.attempts(run).await.expect("read")), expected);
        }
    }
    // It may sleep and wake again in the same moment.
    asleep.at = db.now();
    store.checkpoint(asleep).await.expect("written");
    assert_eq!(store.attempts(run).await.expect("read")[0].state, Sleeping);
    store.checkpoint(wakes.clone()).await.expect("written");
    assert_eq!(store.attempts(run).await.expect("read")[0].state, Started);

    store.release_lease(run, held.run.epoch).await.expect("given back");
    make::take_over(&store, run, worker, db.pass(1), || ()).await;
    for late in [wakes, begins, skips] {
        assert!(matches!(store.checkpoint(late).await, Err(StoreError::Fenced)));
    }
}

/// Between what a claim reads and what it writes, the holder that was taken for dead writes: the claim reads again, and
/// whatever it has read then is what stays. (On SQLite nobody writes while a claim does; nor on Postgres where the attempt
/// that ends has a row already, which makes its checkpoint lock that of the run.)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_sees_the_checkpoint_that_its_old_holder_wrote_meanwhile() {
    let db = Database::postgres().await;
    let (store, other) = (db.open().await, db.open().await);
    let worker = worker(&store, db.now()).await;
    let run = make::run(&store, db.now()).await;
    let zombie = claim(&other, run, worker, db.now()).await;
    other.checkpoint(next_step(&zombie, "a", "b", json!(1), db.now())).await.expect("written");
    store.release_lease(run, zombie.run.epoch).await.expect("given back");
    let late = Mutex::new(Some(after("a", next_step(&zombie, "b", "c", json!("late"), db.now()))));
    let runtime = tokio::runtime::Handle::current();
    let meanwhile = || {
        let Some(late) = late.lock().expect("nobody panics").take() else { return };
        tokio::task::block_in_place(|| runtime.block_on(other.checkpoint(late))).expect("written first");
    };
    let now = make::take_over(&store, run, worker, db.pass(1), meanwhile).await;
    let states: Vec<_> = now.attempts.iter().map(|attempt| (attempt.step.as_str(), attempt.state)).collect();
    assert_eq!(
        states,
        [("a", AttemptState::Succeeded), ("b", AttemptState::Succeeded), ("c", AttemptState::Lost)]
    );
    assert_eq!(store.attempts(run).await.expect("read"), now.attempts);
    assert_eq!(now.run.epoch.0, zombie.run.epoch.0 + 1);
    let later = after("b", next_step(&zombie, "c", "d", json!(1), db.now()));
    assert!(matches!(other.checkpoint(later).await, Err(StoreError::Fenced)));
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

async fn a_checkpoint_of_an_attempt_that_is_not_started_changes_nothing(db: Database) {
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let run = make::run(&store, db.now()).await;
    let held = claim(&store, run, worker, db.now()).await;
    let never = next_step(&held, "z", "b", json!(1), db.now());
    // A database that lost its last commit: what the holder knows to have begun did not.
    let lost = after("a", next_step(&held, "b", "c", json!(1), db.now()));
    let lost_at_the_end = after("a", finish(&held, "b", db.now()));
    for checkpoint in [never, lost, lost_at_the_end] {
        assert!(matches!(store.checkpoint(checkpoint).await, Err(StoreError::Fenced)));
    }
    assert_eq!(store.attempts(run).await.expect("read").len(), 1);
    // The first of them ends an attempt of the claim, the second one of a checkpoint.
    let first = next_step(&held, "a", "b", json!(1), db.now());
    let second = after("a", next_step(&held, "b", "c", json!(1), db.now()));
    for checkpoint in [first, second] {
        store.checkpoint(checkpoint.clone()).await.expect("written");
        let before = store.attempts(run).await.expect("read");
        let twice = Checkpoint { at: db.pass(1), ..checkpoint };
        let ends = Checkpoint { started: vec![], ..twice.clone() };
        for again in [twice, ends] {
            assert!(matches!(store.checkpoint(again).await, Err(StoreError::Fenced)));
        }
        assert_eq!(store.attempts(run).await.expect("read"), before);
    }
}

async fn a_checkpoint_that_is_sent_again_is_done(db: Database) {
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let run = make::run(&store, db.now()).await;
    let held = claim(&store, run, worker, db.now()).await;
    let checkpoints = [
        next_step(&held, "a", "b", json!(1), db.now()),
        after("a", next_step(&held, "b", "c", json!(1), db.now())),
        after("b", finish(&held, "c", db.now())),
    ];
    for last in checkpoints {
        store.checkpoint(last.clone()).await.expect("written");
        let before = store.attempts(run).await.expect("read");
        store.checkpoint(last).await.expect("its answer was lost with the connection");
        assert_eq!(store.attempts(run).await.expect("read"), before);
    }
}

async fn a_late_checkpoint_that_comes_alone_is_fenced_whatever_the_claim_says_of_its_attempt(db: Database) {
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let run = make::run(&store, db.now()).await;
    let late = claim(&store, run, worker, db.now()).await;
    store.checkpoint(next_step(&late, "a", "b", json!(1), db.now())).await.expect("written");
    store.release_lease(run, late.run.epoch).await.expect("given back");
    // Its plan says nothing of what it finds.
    claim(&store, run, worker, db.now()).await;
    let before = store.attempts(run).await.expect("read");
    let written = store.checkpoint(after("a", next_step(&late, "b", "c", json!(2), db.now()))).await;
    assert!(matches!(written, Err(StoreError::Fenced)), "{written:?}");
    assert_eq!(store.attempts(run).await.expect("read"), before);
    assert_eq!(steps_of(&before), ["a", "b"]);
}

#[tokio::test]
async fn a_checkpoint_is_done_when_it_was_sent_twice_before_either_was_written() {
    let db = Database::postgres().await;
    let (store, other) = (db.open().await, db.open().await);
    let worker = worker(&store, db.now()).await;
    let run = make::run(&store, db.now()).await;
    let held = claim(&store, run, worker, db.now()).await;
    store.checkpoint(next_step(&held, "a", "b", json!(1), db.now())).await.expect("written");
    let ending = Some((Outcome::Promoted, "good".to_owned()));
    let run_state = RunState::Kept { status: RunStatus::Running, ending };
    let checkpoint = Checkpoint { run_state, ..after("a", next_step(&held, "b", "c", json!(2), db.now())) };
    let mut person = PgConnection::connect(&db.url).await.expect("connects");
    let mut locked = person.begin().await.expect("begun");
    sqlx::query("SELECT FROM refit.runs FOR UPDATE").execute(&mut *locked).await.expect("locked");
    let both =
        async { tokio::join!(store.checkpoint(checkpoint.clone()), other.checkpoint(checkpoint.clone())) };
    let unlocked = async {
        let waiting = "SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event_type = 'Lock'";
        while sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut *locked).await.expect("counted") < 2 {
            // What was read of it is kept for the transaction.
            sqlx::query("SELECT pg_stat_clear_snapshot()").execute(&mut *locked).await.expect("forgotten");
        }
        locked.rollback().await.expect("unlocked");
    };
    let ((written, again), ()) = tokio::join!(both, unlocked);
    written.and(again).expect("written, and known when it is sent again");
}

async fn one_fenced_checkpoint_does_not_disturb_the_others_of_its_group(db: Database) {
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let mut held = Vec::new();
    for _ in 0..30 {
        let run = make::run(&store, db.now()).await;
        held.push(claim(&store, run, worker, db.now()).await);
    }
    // One holder is late for what began with its claim, another one for what began with a checkpoint.
    let mut late = BTreeMap::new();
    for (number, parent, from, to) in [(7, None, "a", "b"), (19, Some("a"), "b", "c")] {
        let run = held[number].run.id;
        store.release_lease(run, held[number].run.epoch).await.expect("given back");
        claim(&store, run, worker, db.now()).await;
        late.insert(run, store.attempts(run).await.expect("read"));
        let writes = held.iter().filter(|claim| claim.run.id == run || !late.contains_key(&claim.run.id));
        let writes = writes.map(async |claim| {
            let checkpoint = next_step(claim, from, to, json!(to), db.now());
            let checkpoint = parent.map_or(checkpoint.clone(), |parent| after(parent, checkpoint));
            (claim.run.id, store.checkpoint(checkpoint.clone()).await, store.checkpoint(checkpoint).await)
        });
        for (id, written, again) in futures::future::join_all(writes).await {
            if id == run {
                assert!(matches!((written, again), (Err(StoreError::Fenced), Err(StoreError::Fenced))));
            } else {
                written.and(again).expect("written, and known when it is sent again");
            }
        }
    }
    for claim in held {
        let attempts = store.attempts(claim.run.id).await.expect("read");
        match late.get(&claim.run.id) {
            Some(before) => assert_eq!(&attempts, before),
            None => assert_eq!(steps_of(&attempts), ["a", "b", "c"]),
        }
    }
}

async fn branches_of_one_run_checkpoint_at_once(db: Database) {
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let run = make::run(&store, db.now()).await;
    let held = claim(&store, run, worker, db.now()).await;
    let mut fan = next_step(&held, "a", "b", json!(1), db.now());
    fan.started.extend(["c", "d"].map(|id| NewAttempt { step: step(id), attempt: 1 }));
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
