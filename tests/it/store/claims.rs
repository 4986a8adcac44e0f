//! Who works on a run, and when.

use std::collections::BTreeSet;

use refit::domain::id::WorkerId;
use refit::domain::run::{AttemptState, CancelRequest, RunStatus, SignalKind};
use refit::store::{ClaimResult, Opening, Renewal, RunState};
use serde_json::json;
use sqlx::{Connection, PgConnection};

use super::database::Database;
use super::make::{self, LEASE, begin, claim, next_step, sleep, step, try_claim, worker};
use super::on_both;

on_both! {
    a_claim_starts_the_first_attempt
    only_one_of_two_claimers_gets_a_run
    a_dead_worker_s_run_is_free_and_counts_a_crash
    a_run_given_back_counts_no_crash
    a_sleeping_run_is_not_due_before_its_time
    a_signal_wakes_a_sleeping_run_once
    a_signal_that_comes_before_the_sleep_is_not_lost
    a_signal_that_its_sleepers_heard_does_not_wake_a_run_and_a_later_one_does
    a_wish_to_cancel_is_seen_by_who_renews
    a_run_that_the_plan_leaves_is_as_it_was
    every_run_that_could_go_on_is_named
    an_unknown_run_is_gone
    a_server_that_was_taken_for_dead_is_on_the_list_again
}

async fn a_claim_starts_the_first_attempt(db: Database) {
    let store = db.open().await;
    let run = make::run(&store, db.now()).await;
    let worker = worker(&store, db.now()).await;
    let claim = claim(&store, run, worker, db.now()).await;
    assert_eq!((claim.run.epoch.0, claim.run.status, claim.run.crashes), (1, RunStatus::Running, 0));
    assert_eq!(claim.attempts.len(), 1);
    assert_eq!((claim.attempts[0].step.as_str(), claim.attempts[0].state), ("a", AttemptState::Started));
    assert_eq!(store.attempts(run).await.expect("read"), claim.attempts);
    assert_eq!(store.run(run).await.expect("read").expect("there"), claim.run);
}

async fn only_one_of_two_claimers_gets_a_run(db: Database) {
    let (one, two) = (db.open().await, db.open().await);
    let (first, second) = (worker(&one, db.now()).await, worker(&two, db.now()).await);
    for _ in 0..10 {
        let run = make::run(&one, db.now()).await;
        let (a, b) =
            tokio::join!(try_claim(&one, run, first, db.now()), try_claim(&two, run, second, db.now()));
        let claimed = [&a, &b].iter().filter(|r| matches!(r, ClaimResult::Claimed(_))).count();
        let taken = [&a, &b].iter().filter(|r| matches!(r, ClaimResult::Taken)).count();
        assert_eq!((claimed, taken), (1, 1), "{a:?} {b:?}");
    }
}

async fn a_server_that_was_taken_for_dead_is_on_the_list_again(db: Database) {
    let store = db.open().await;
    let own = worker(&store, db.now()).await;
    db.write("DELETE FROM processes").await;
    assert_eq!(store.live_workers().await.expect("counted").servers, 0);
    store.reap(db.now()).await.expect("reaped");
    assert_eq!(store.live_workers().await.expect("counted").servers, 1);
    store.retire_worker(own).await.expect("retired");
    store.reap(db.now()).await.expect("reaped");
    assert_eq!(store.live_workers().await.expect("counted").servers, 0);
}

async fn a_dead_worker_s_run_is_free_and_counts_a_crash(db: Database) {
    let store = db.open().await;
    let dying = db.open().await;
    let (alive, dead) = (worker(&store, db.now()).await, worker(&dying, db.now()).await);
    let run = make::run(&store, db.now()).await;
    claim(&dying, run, dead, db.now()).await;
    assert!(matches!(try_claim(&store, run, alive, db.now()).await, ClaimResult::Taken));
    // What the kernel does when a process is killed.
    drop(dying);
    let (woken, _) = store.reap(db.now()).await.expect("reaped");
    assert_eq!(woken, 1, "at once: no lease is waited for");
    let again = claim(&store, run, alive, db.now()).await;
    assert_eq!((again.run.epoch.0, again.run.crashes), (2, 1));
    // A checkpoint ends the count.
    let lost = Opening {
        lost: vec![(step("a"), 1)],
        started: vec![refit::store::NewAttempt { step: step("a"), attempt: 2 }],
        ..Opening::default()
    };
    store.release_lease(run, again.run.epoch).await.expect("given back");
    let plan = |_: &refit::store::Claim| Some(lost.clone());
    let ClaimResult::Claimed(third) = store.claim(run, alive, LEASE, db.now(), &plan).await.expect("asked")
    else {
        panic!("free")
    };
    assert_eq!(third.run.crashes, 1, "given back, not crashed");
    let states: Vec<_> = third.attempts.iter().map(|a| (a.attempt, a.state)).collect();
    assert_eq!(states, [(1, AttemptState::Lost), (2, AttemptState::Started)]);
    let mut checkpoint = next_step(&third, "a", "b", json!(1), db.now());
    checkpoint.ended.as_mut().expect("ended").attempt = 2;
    store.checkpoint(checkpoint).await.expect("written");
    assert_eq!(store.run(run).await.expect("read").expect("there").crashes, 0);
}

async fn a_run_given_back_counts_no_crash(db: Database) {
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let run = make::run(&store, db.now()).await;
    let first = claim(&store, run, worker, db.now()).await;
    store.release_lease(run, first.run.epoch).await.expect("given back");
    assert!(store.release_lease(run, first.run.epoch).await.is_err(), "only once");
    assert_eq!(store.renew(run, first.run.epoch, LEASE, db.now()).await.expect("asked"), Renewal::Lost);
    assert_eq!(claim(&store, run, worker, db.now()).await.run.crashes, 0);
}

async fn a_sleeping_run_is_not_due_before_its_time(db: Database) {
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let run = make::run(&store, db.now()).await;
    let first = claim(&store, run, worker, db.now()).await;
    let wake_at = db.now() + chrono::TimeDelta::hours(24);
    store.checkpoint(sleep(&first, "a", Some(wake_at), db.now())).await.expect("written");
    assert!(matches!(try_claim(&store, run, worker, db.now()).await, ClaimResult::NotDue));
    assert_eq!(store.reap(db.now()).await.expect("reaped"), (0, Some(wake_at)));
    db.clock.set(wake_at);
    assert_eq!(store.reap(db.now()).await.expect("reaped").0, 1);
    assert_eq!(store.reap(db.now()).await.expect("reaped").0, 0, "once");
    let second = claim(&store, run, worker, db.now()).await;
    assert_eq!(second.attempts[0].resume, Some(json!({"since": "then"})));
}

async fn a_signal_wakes_a_sleeping_run_once(db: Database) {
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let run = make::run(&store, db.now()).await;
    let first = claim(&store, run, worker, db.now()).await;
    store.checkpoint(sleep(&first, "a", None, db.now())).await.expect("written");
    assert!(matches!(try_claim(&store, run, worker, db.now()).await, ClaimResult::NotDue));
    let approve = SignalKind::Approve { step: step("a") };
    assert!(store.signal(run, &approve, "ann", Some("fine"), db.now()).await.expect("sent"));
    let woken = Opening { woken: vec![(step("a"), 1)], ..Opening::default() };
    let plan = |_: &refit::store::Claim| Some(woken.clone());
    let ClaimResult::Claimed(second) = store.claim(run, worker, LEASE, db.now(), &plan).await.expect("asked")
    else {
        panic!("due")
    };
    assert_eq!(second.signals.len(), 1);
    assert_eq!((&second.signals[0].kind, second.signals[0].actor.as_str()), (&approve, "ann"));
    assert_eq!(second.attempts[0].state, AttemptState::Started);
    store.checkpoint(sleep(&second, "a", None, db.now())).await.expect("written");
    assert!(matches!(try_claim(&store, run, worker, db.now()).await, ClaimResult::NotDue), "it was seen");
}

async fn a_signal_that_comes_before_the_sleep_is_not_lost(db: Database) {
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let run = make::run(&store, db.now()).await;
    let first = claim(&store, run, worker, db.now()).await;
    store.signal(run, &SignalKind::Look, "controller", None, db.now()).await.expect("sent");
    let later = db.now() + chrono::TimeDelta::hours(1);
    store.checkpoint(sleep(&first, "a", Some(later), db.now())).await.expect("written");
    let second = claim(&store, run, worker, db.now()).await;
    assert_eq!((second.signals.len(), second.heard), (1, 1));
}

async fn a_signal_that_its_sleepers_heard_does_not_wake_a_run_and_a_later_one_does(db: Database) {
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let run = make::run(&store, db.now()).await;
    let held = claim(&store, run, worker, db.now()).await;
    store.signal(run, &SignalKind::Look, "controller", None, db.now()).await.expect("sent");
    let renewed = store.renew(run, held.run.epoch, LEASE, db.now()).await.expect("asked");
    assert_eq!(renewed, Renewal::Held { cancel: None, told: 1 });
    assert_eq!(store.signals(run).await.expect("read").len(), 1);
    let later = db.now() + chrono::TimeDelta::hours(1);
    let mut asleep = sleep(&held, "a", Some(later), db.now());
    let RunState::Parked { heard, .. } = &mut asleep.run_state else { panic!("it is parked") };
    *heard = 1;
    store.checkpoint(asleep).await.expect("written");
    assert!(matches!(try_claim(&store, run, worker, db.now()).await, ClaimResult::NotDue));
    assert_eq!(store.due(db.now()).await.expect("read").runs, []);
    store.signal(run, &SignalKind::Look, "controller", None, db.now()).await.expect("sent");
    assert_eq!(claim(&store, run, worker, db.now()).await.heard, 2);
}

async fn a_wish_to_cancel_is_seen_by_who_renews(db: Database) {
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let run = make::run(&store, db.now()).await;
    let first = claim(&store, run, worker, db.now()).await;
    assert_eq!(
        store.renew(run, first.run.epoch, LEASE, db.now()).await.expect("asked"),
        Renewal::Held { cancel: None, told: 0 }
    );
    let wish = CancelRequest { actor: "ann".to_owned(), reason: Some("no\0w".to_owned()), at: db.now() };
    assert!(store.request_cancel(run, &wish).await.expect("asked"));
    let second = CancelRequest { actor: "bob".to_owned(), reason: None, at: db.now() };
    assert!(store.request_cancel(run, &second).await.expect("asked"));
    let Renewal::Held { cancel: Some(cancel), told: 2 } =
        store.renew(run, first.run.epoch, LEASE, db.now()).await.expect("asked")
    else {
        panic!("held, with a wish")
    };
    assert_eq!(
        (cancel.actor.as_str(), cancel.reason.as_deref()),
        ("ann", Some("no\u{fffd}w")),
        "the first stands"
    );
    assert!(matches!(
        store.claim(run, WorkerId::generate(), LEASE, db.now(), &begin).await.expect("asked"),
        ClaimResult::Taken
    ));
}

async fn a_run_that_the_plan_leaves_is_as_it_was(db: Database) {
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let run = make::run(&store, db.now()).await;
    let before = store.run(run).await.expect("read");
    for _ in 0..2 {
        let left = store.claim(run, worker, LEASE, db.now(), &|_| None).await.expect("asked");
        assert!(matches!(left, ClaimResult::Left), "{left:?}");
    }
    assert_eq!(store.run(run).await.expect("read"), before);
    let claimed = claim(&store, run, worker, db.now()).await;
    assert_eq!((claimed.run.epoch.0, claimed.run.crashes), (1, 0));
}

async fn every_run_that_could_go_on_is_named(db: Database) {
    let store = db.open().await;
    let event = make::event(db.now());
    let made = |number: usize| {
        let mut new = make::new_run(&event, db.now());
        new.run.workflow = format!("retrain-{number}").parse().expect("a name");
        new
    };
    let runs: Vec<_> = (0..300).map(made).collect();
    let ids: BTreeSet<_> = runs.iter().map(|new| new.run.id).collect();
    store.submit(&event, runs).await.expect("submitted");
    let due = store.due(db.now()).await.expect("asked").runs;
    assert_eq!(due.into_iter().collect::<BTreeSet<_>>(), ids);
}

async fn an_unknown_run_is_gone(db: Database) {
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let run = refit::domain::id::RunId::generate();
    assert!(matches!(try_claim(&store, run, worker, db.now()).await, ClaimResult::Gone));
    assert!(!store.signal(run, &SignalKind::Look, "x", None, db.now()).await.expect("asked"));
    assert!(store.run(run).await.expect("read").is_none());
}

/// A worker of another machine holds a run; its lock file cannot be seen from here.
async fn held_elsewhere(
    db: &Database,
    there: &std::sync::Arc<dyn refit::store::Store>,
) -> (refit::store::Claim, PgConnection) {
    let far = worker(there, db.now()).await;
    let run = make::run(there, db.now()).await;
    let held = claim(there, run, far, db.now()).await;
    let mut connection = PgConnection::connect(&db.url).await.expect("connects");
    sqlx::query("UPDATE refit.processes SET machine = 'elsewhere'")
        .execute(&mut connection)
        .await
        .expect("runs");
    (held, connection)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_of_another_machine_ends_with_its_time() {
    let db = Database::postgres().await;
    let (here, there) = (db.open().await, db.open().await);
    let (zombie, _) = held_elsewhere(&db, &there).await;
    let near = worker(&here, db.now()).await;
    let run = zombie.run.id;
    db.pass(9);
    assert!(matches!(try_claim(&here, run, near, db.now()).await, ClaimResult::Taken));
    there.renew(run, zombie.run.epoch, LEASE, db.now()).await.expect("asked");
    db.pass(9);
    assert!(matches!(try_claim(&here, run, near, db.now()).await, ClaimResult::Taken), "renewed");
    db.pass(2);
    assert_eq!(here.reap(db.now()).await.expect("reaped").0, 1);
    let again = claim(&here, run, near, db.now()).await;
    assert_eq!((again.run.epoch.0, again.run.crashes), (2, 1));
    assert_eq!(there.renew(run, zombie.run.epoch, LEASE, db.now()).await.expect("asked"), Renewal::Lost);
    let late = there.checkpoint(next_step(&zombie, "a", "b", json!(1), db.now())).await;
    assert!(matches!(late, Err(refit::store::StoreError::Fenced)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_ends_cuts_the_lease_to_a_second() {
    let db = Database::postgres().await;
    let (here, there) = (db.open().await, db.open().await);
    let (held, mut connection) = held_elsewhere(&db, &there).await;
    here.reap(db.now()).await.expect("reaped");
    let full = db.now() + chrono::TimeDelta::seconds(10);
    let mut lease_until = async |run: refit::domain::id::RunId| {
        sqlx::query_scalar::<_, refit::domain::Timestamp>("SELECT lease_until FROM refit.runs WHERE id = $1")
            .bind(run.0)
            .fetch_one(&mut connection)
            .await
            .expect("read")
    };
    assert_eq!(lease_until(held.run.id).await, full, "its session is there");
    drop(there);
    // The server sees the end of a session when it sees it, and cuts no lease just after its own start.
    let cut = async {
        while lease_until(held.run.id).await == full {
            here.reap(db.now()).await.expect("reaped");
        }
        lease_until(held.run.id).await
    };
    let cut = tokio::time::timeout(std::time::Duration::from_secs(30), cut).await.expect("in time");
    assert_eq!(cut, db.now() + chrono::TimeDelta::seconds(1));
    let near = worker(&here, db.pass(1)).await;
    claim(&here, held.run.id, near, db.now()).await;
}
