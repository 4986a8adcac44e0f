//! Messages and logs.

use std::sync::Arc;
use std::time::Duration;

use refit::store::{Awaited, Checkpoint, OutboxEntry, Store, StoreError};
use sqlx::{Connection as _, PgConnection};

use super::database::Database;
use super::make::{self, claim, finish, notice, step, worker};
use super::on_both;

on_both! {
    a_notice_is_queued_with_its_checkpoint_or_not_at_all
    a_message_is_taken_by_one_and_held
    a_message_is_tried_again_and_given_up
    a_message_that_was_not_tried_waits_and_was_not_tried
    messages_that_wait_long_do_not_keep_back_those_that_wait_less
    a_message_is_taken_again_unless_somebody_else_took_it
    a_message_that_a_dead_worker_had_in_hand_is_due_at_once
    a_message_that_a_dead_worker_had_given_back_waits_for_its_time
    a_log_is_read_by_cursor
    branches_write_one_log
}

const HOLD: Duration = Duration::from_secs(60);

async fn a_notice_is_queued_with_its_checkpoint_or_not_at_all(db: Database) {
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let run = make::run(&store, db.now()).await;
    let zombie = claim(&store, run, worker, db.now()).await;
    store.release_lease(run, zombie.run.epoch).await.expect("given back");
    let opening = refit::store::Opening {
        lost: vec![(step("a"), 1)],
        started: vec![refit::store::NewAttempt { step: step("b"), attempt: 1 }],
        ..refit::store::Opening::default()
    };
    let plan = |_: &refit::store::Claim| Some(opening.clone());
    let refit::store::ClaimResult::Claimed(held) =
        store.claim(run, worker, make::LEASE, db.now(), &plan).await.expect("asked")
    else {
        panic!("free")
    };
    let with_notice =
        |checkpoint: Checkpoint| Checkpoint { notices: vec![notice("run/ended", Some(run))], ..checkpoint };
    let late = store.checkpoint(with_notice(finish(&zombie, "a", db.now()))).await;
    assert!(matches!(late, Err(StoreError::Fenced)));
    assert!(store.outbox_of(run).await.expect("read").is_empty());
    store.checkpoint(with_notice(finish(&held, "b", db.now()))).await.expect("written");
    store
        .queue_notices(&[notice("run/ended", Some(run)), notice("other", None)], db.now())
        .await
        .expect("queued");
    let of_run = store.outbox_of(run).await.expect("read");
    assert_eq!((of_run.len(), &of_run[0].notice), (1, &notice("run/ended", Some(run))));
    assert_eq!(store.take_outbox(10, HOLD, db.now()).await.expect("taken").len(), 2);
}

async fn a_message_is_taken_by_one_and_held(db: Database) {
    let (one, two) = (db.open().await, db.open().await);
    let notices: Vec<_> = (0..20).map(|i| notice(&format!("n{i}"), None)).collect();
    one.queue_notices(&notices, db.now()).await.expect("queued");
    let (a, b) = tokio::join!(one.take_outbox(15, HOLD, db.now()), two.take_outbox(15, HOLD, db.now()));
    let mut ids: Vec<_> = a.expect("taken").iter().chain(&b.expect("taken")).map(|entry| entry.id).collect();
    ids.sort_unstable();
    let taken = ids.len();
    ids.dedup();
    assert_eq!(ids.len(), taken, "none twice");
    let rest = one.take_outbox(20, HOLD, db.now()).await.expect("taken");
    assert_eq!(taken + rest.len(), 20);
    assert!(two.take_outbox(20, HOLD, db.now()).await.expect("taken").is_empty());
    // Who took them died.
    let again = two.take_outbox(20, HOLD, db.pass(61)).await.expect("taken");
    assert_eq!((again.len(), again[0].attempts), (20, 2));
}

async fn a_message_is_tried_again_and_given_up(db: Database) {
    let store = db.open().await;
    store.queue_notices(&[notice("a", None), notice("b", None)], db.now()).await.expect("queued");
    let taken = store.take_outbox(10, HOLD, db.now()).await.expect("taken");
    let later = db.now() + chrono::TimeDelta::seconds(10);
    store.outbox_failed(&taken[0], "451 later", Some(later)).await.expect("noted");
    store.outbox_failed(&taken[1], "550 never", None).await.expect("noted");
    assert!(store.take_outbox(10, HOLD, db.now()).await.expect("taken").is_empty());
    let again = store.take_outbox(10, HOLD, db.pass(10)).await.expect("taken");
    assert_eq!((again.len(), again[0].last_error.as_deref(), again[0].dead), (1, Some("451 later"), false));
    store.outbox_sent(again[0].id, db.now()).await.expect("noted");
    assert!(store.take_outbox(10, HOLD, db.pass(1000)).await.expect("taken").is_empty());
}

async fn a_message_that_was_not_tried_waits_and_was_not_tried(db: Database) {
    let store = db.open().await;
    store.queue_notices(&[notice("a", None), notice("b", None)], db.now()).await.expect("queued");
    let taken = store.take_outbox(10, HOLD, db.now()).await.expect("taken");
    let second = db.now() + chrono::TimeDelta::seconds(1);
    store.outbox_waits(&[&taken[1], &taken[0]], second).await.expect("noted");
    assert!(store.take_outbox(10, HOLD, db.now()).await.expect("taken").is_empty(), "they wait");
    let again = store.take_outbox(10, HOLD, db.pass(1)).await.expect("taken");
    let seen: Vec<_> = again.iter().map(|entry| (entry.notice.key.as_str(), entry.attempts)).collect();
    assert_eq!(seen, [("a", 1), ("b", 1)]);
}

async fn messages_that_wait_long_do_not_keep_back_those_that_wait_less(db: Database) {
    let store = db.open().await;
    let now = db.now();
    store.queue_notices(&["a", "b"].map(|key| notice(key, None)), now).await.expect("queued");
    let taken = store.take_outbox(2, HOLD, now).await.expect("taken");
    store
        .outbox_waits(&taken.iter().collect::<Vec<_>>(), now + chrono::TimeDelta::seconds(9))
        .await
        .expect("noted");
    store.queue_notices(&["c", "d"].map(|key| notice(key, None)), db.pass(5)).await.expect("queued");
    let now = db.pass(5);
    let mut seen = vec![];
    for _ in 0..2 {
        let taken = store.take_outbox(2, HOLD, now).await.expect("taken");
        seen.extend(taken.into_iter().map(|entry| entry.notice.key));
    }
    assert_eq!(seen, ["c", "d", "a", "b"]);
}

async fn a_message_is_taken_again_unless_somebody_else_took_it(db: Database) {
    let (one, two) = (db.open().await, db.open().await);
    one.queue_notices(&[notice("a", None)], db.now()).await.expect("queued");
    let late = one.take_outbox(10, HOLD, db.now()).await.expect("taken").remove(0);
    let again = async |entry: &OutboxEntry, at| {
        one.hold_outbox(entry.id, entry.attempts, entry.due_at, HOLD, at).await.expect("asked")
    };
    let due_at = again(&late, db.pass(90)).await;
    assert_eq!(due_at, Some(db.now() + HOLD), "nobody else has it");
    assert_eq!(again(&late, db.now()).await, None, "that hold was given up for the next");
    let late = OutboxEntry { due_at, ..late };
    let theirs = two.take_outbox(10, HOLD, db.pass(60)).await.expect("taken").remove(0);
    assert_eq!((again(&late, db.now()).await, theirs.attempts), (None, 2));
    // Whatever the late one notes changes nothing.
    one.outbox_waits(&[&late], db.now()).await.expect("asked");
    one.outbox_failed(&late, "500", Some(db.now())).await.expect("asked");
    assert!(one.take_outbox(10, HOLD, db.now()).await.expect("taken").is_empty());
    two.outbox_sent(theirs.id, db.now()).await.expect("noted");
    assert_eq!(again(&late, db.now()).await, None, "it was sent");
}

async fn a_message_that_a_dead_worker_had_in_hand_is_due_at_once(db: Database) {
    let (store, dying) = (db.open().await, db.open().await);
    worker(&store, db.now()).await;
    worker(&dying, db.now()).await;
    store.queue_notices(&["a", "b"].map(|key| notice(key, None)), db.now()).await.expect("queued");
    let mine = store.take_outbox(1, HOLD, db.now()).await.expect("taken").remove(0);
    let lost = dying.take_outbox(10, HOLD, db.now()).await.expect("taken").remove(0);
    let held = dying.hold_outbox(lost.id, lost.attempts, lost.due_at, HOLD, db.pass(1)).await.expect("asked");
    // The answer was lost, though the hold was made.
    let again =
        dying.hold_outbox(lost.id, lost.attempts, lost.due_at, HOLD, db.pass(1)).await.expect("asked");
    assert!(again > held, "{held:?} {again:?}");
    let held = again;
    let hold_ends = vec![(Awaited::Message, mine.due_at.expect("held"))];
    assert!(store.take_outbox(10, HOLD, db.now()).await.expect("taken").is_empty(), "both live");
    assert_eq!(store.due(db.now()).await.expect("asked").soonest, hold_ends);
    // What the kernel does when a process is killed.
    drop(dying);
    assert_eq!(store.due(db.pass(1)).await.expect("asked").soonest, [(Awaited::Message, db.now())]);
    let taken = store.take_outbox(10, HOLD, db.now()).await.expect("taken");
    let seen: Vec<_> = taken.iter().map(|entry| (entry.notice.key.as_str(), entry.attempts)).collect();
    assert_eq!(seen, [(lost.notice.key.as_str(), 2)], "the try that was cut off counts");
    assert_eq!(store.due(db.now()).await.expect("asked").soonest, hold_ends);
    // As if it had only stood still.
    let late = OutboxEntry { due_at: held, ..lost };
    assert_eq!(
        store.hold_outbox(late.id, late.attempts, late.due_at, HOLD, db.now()).await.expect("asked"),
        None
    );
    store.outbox_failed(&late, "500", Some(db.now())).await.expect("asked");
    assert!(store.take_outbox(10, HOLD, db.now()).await.expect("taken").is_empty());
}

async fn a_message_that_a_dead_worker_had_given_back_waits_for_its_time(db: Database) {
    let (store, dying) = (db.open().await, db.open().await);
    worker(&dying, db.now()).await;
    store.queue_notices(&["a", "b", "c"].map(|key| notice(key, None)), db.now()).await.expect("queued");
    let taken = dying.take_outbox(10, HOLD, db.now()).await.expect("taken");
    let later = db.now() + chrono::TimeDelta::seconds(10);
    dying.outbox_failed(&taken[0], "451 later", Some(later)).await.expect("noted");
    dying.outbox_waits(&[&taken[1]], later).await.expect("noted");
    dying.outbox_sent(taken[2].id, db.now()).await.expect("noted");
    drop(dying);
    assert!(store.take_outbox(10, HOLD, db.pass(9)).await.expect("taken").is_empty());
    let taken = store.take_outbox(10, HOLD, db.pass(1)).await.expect("taken");
    let seen: Vec<_> = taken.iter().map(|entry| (entry.notice.key.as_str(), entry.attempts)).collect();
    assert_eq!(seen, [("a", 2), ("b", 1)]);
}

/// A message that a worker of another machine has in hand: its lock file cannot be seen from here.
async fn held_elsewhere(db: &Database, there: &Arc<dyn Store>) {
    worker(there, db.now()).await;
    there.queue_notices(&[notice("a", None)], db.now()).await.expect("queued");
    assert_eq!(there.take_outbox(10, HOLD, db.now()).await.expect("taken").len(), 1);
    db.write("UPDATE processes SET machine = 'elsewhere'").await;
}

/// Returns once somebody (else: nobody) holds a lock as workers do.
async fn sessions(connection: &mut PgConnection, there: bool) {
    let count = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted
         AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let changed = async {
        while (sqlx::query_scalar::<_, i64>(count).fetch_one(&mut *connection).await.expect("counted") > 0)
            != there
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), changed).await.expect("in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_of_a_machine_whose_session_ended_is_due_long_before_its_hold_is_over() {
    let db = Database::postgres().await;
    let (here, there) = (db.open().await, db.open().await);
    held_elsewhere(&db, &there).await;
    assert!(here.take_outbox(10, HOLD, db.pass(1)).await.expect("taken").is_empty(), "its session is there");
    drop(there);
    let taken = async {
        loop {
            let taken = here.take_outbox(10, HOLD, db.now()).await.expect("taken");
            if !taken.is_empty() {
                return taken;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    // Also just after the server's start, when nobody is taken for dead.
    let taken = tokio::time::timeout(Duration::from_secs(60), taken).await.expect("in time");
    assert_eq!((taken.len(), taken[0].attempts), (1, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_stays_with_whose_session_is_made_anew() {
    let db = Database::postgres().await;
    let (here, there) = (db.open().await, db.open().await);
    held_elsewhere(&db, &there).await;
    let mut connection = PgConnection::connect(&db.url).await.expect("connects");
    sqlx::query(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_locks WHERE locktype = 'advisory'
         AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
    )
    .execute(&mut connection)
    .await
    .expect("ended");
    for is_there in [false, true] {
        sessions(&mut connection, is_there).await;
        assert!(here.take_outbox(10, HOLD, db.pass(1)).await.expect("taken").is_empty(), "it lives");
    }
}

async fn a_log_is_read_by_cursor(db: Database) {
    let store = db.open().await;
    let run = make::run(&store, db.now()).await;
    store.append_log(run, &step("a"), 1, b"one\n\xff", db.now()).await.expect("written");
    store.append_log(run, &step("b"), 1, &vec![b'x'; 150_000], db.now()).await.expect("written");
    let all = store.read_log(run, None, 0, 100).await.expect("read");
    assert_eq!(
        all.iter().map(|chunk| (chunk.seq, chunk.bytes.len())).collect::<Vec<_>>(),
        [(1, 5), (2, 65_536), (3, 65_536), (4, 18_928)]
    );
    assert_eq!(store.read_log(run, None, 1, 2).await.expect("read").len(), 2);
    let of_a = store.read_log(run, Some(&step("a")), 0, 100).await.expect("read");
    assert_eq!((of_a.len(), of_a[0].bytes.as_slice()), (1, &b"one\n\xff"[..]));
}

async fn branches_write_one_log(db: Database) {
    let store = db.open().await;
    let run = make::run(&store, db.now()).await;
    let (a, b) = (step("a"), step("b"));
    let writes =
        (0..10).map(|i| store.append_log(run, if i % 2 == 0 { &a } else { &b }, 1, b"line\n", db.now()));
    for written in futures::future::join_all(writes).await {
        written.expect("written");
    }
    let seqs: Vec<_> = store.read_log(run, None, 0, 100).await.expect("read").iter().map(|c| c.seq).collect();
    assert_eq!(seqs, (1..=10).collect::<Vec<i64>>());
}
