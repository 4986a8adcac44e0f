//! Connections to Postgres that are gone without a word. The kernel would wait for a quarter of an hour.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use refit::domain::id::WorkerId;
use refit::store::{self, Stay, Store, StoreError};
use serde_json::json;
use sqlx::{Connection, PgConnection};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::database::Database;
use super::deliveries::Tell;
use super::make::{self, claim, next_step, worker};
use crate::support::wire::Wire;

/// Connections of a store.
const ALL: i64 = 12;

async fn through_a_wire() -> (Database, Wire, Arc<dyn Store>) {
    let db = Database::postgres().await;
    let wire = Wire::to(&db.url).await;
    let store = store::open(&wire.url, db.clock.clone()).await.expect("opens");
    (db, wire, store)
}

/// What it comes to, long before the kernel would give up.
async fn soon<T>(asked: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), asked).await.expect("an answer")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_went_silent_is_given_up_for_another() {
    let (db, wire, store) = through_a_wire().await;
    let (worker, run) = (worker(&store, db.now()).await, make::run(&store, db.now()).await);
    let held = claim(&store, run, worker, db.now()).await;
    store.checkpoint(next_step(&held, "a", "b", json!(1), db.now())).await.expect("written");
    wire.forget();
    // One that was used just now is not asked whether it is there.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let checkpoint = make::after("a", next_step(&held, "b", "c", json!(1), db.now()));
    let (read, written) = soon(async { tokio::join!(store.run(run), store.checkpoint(checkpoint)) }).await;
    assert!(read.expect("read").is_some());
    written.expect("written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_went_silent_while_they_were_used_keep_no_others_out() {
    let (db, wire, store) = through_a_wire().await;
    let run = make::run(&store, db.now()).await;
    let mut other = PgConnection::connect(&db.url).await.expect("connects");
    let mut locked = other.begin().await.expect("begun");
    sqlx::query("LOCK TABLE refit.runs").execute(&mut *locked).await.expect("locked");
    let asked: Vec<_> = (0..ALL)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.run(run).await.map(drop) })
        })
        .collect();
    let mut waiting = 0;
    while waiting < ALL {
        let count = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'refit.runs'::regclass";
        waiting = sqlx::query_scalar(count).fetch_one(&mut *locked).await.expect("counted");
    }
    wire.forget();
    for asked in &asked {
        asked.abort();
    }
    soon(store.ping()).await.expect("another connection");
}

/// Or what it had locked would be locked until the server's kernel gives the connection up, hours later.
#[tokio::test]
async fn the_server_ends_transactions_that_nobody_goes_on_with() {
    let db = Database::postgres().await;
    for statement in [
        "CREATE TABLE refit.noted (lasts text)",
        "CREATE FUNCTION refit.note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             INSERT INTO refit.noted VALUES (current_setting('idle_in_transaction_session_timeout'));
             RETURN NULL;
         END $$",
        "CREATE TRIGGER note AFTER INSERT ON refit.runs FOR EACH ROW EXECUTE FUNCTION refit.note()",
    ] {
        db.write(statement).await;
    }
    make::run(&db.open().await, db.now()).await;
    let mut other = PgConnection::connect(&db.url).await.expect("connects");
    let lasts: String =
        sqlx::query_scalar("SELECT lasts FROM refit.noted").fetch_one(&mut other).await.expect("read");
    assert_eq!(lasts, "1min");
}

/// Or it would count as alive until the server's kernel asks by itself, two hours later.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_server_misses_the_machine_of_a_worker_within_half_a_minute() {
    let db = Database::postgres().await;
    let store = db.open().await;
    worker(&store, db.now()).await;
    let mut other = PgConnection::connect(&db.url).await.expect("connects");
    let session = "SELECT inet_server_port(), client_port FROM pg_stat_activity
        WHERE datname = current_database() AND query LIKE 'SELECT pg_try_advisory_lock%'";
    let ports: (i32, i32) = sqlx::query_as(session).fetch_one(&mut other).await.expect("a session");
    let mut due = None;
    while due.is_none() {
        due = asks_in(ports);
    }
    assert!(due <= Some(Duration::from_secs(10)), "{due:?}");
}

/// When the kernel of the server at one port asks whether the client at the other is still there; nothing while it waits
/// for an answer.
#[cfg(target_os = "linux")]
fn asks_in((server, client): (i32, i32)) -> Option<Duration> {
    let sockets = std::fs::read_to_string("/proc/net/tcp").expect("a list of sockets");
    let (server, client) = (format!(":{server:04X}"), format!(":{client:04X}"));
    let mut sockets = sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let is_its_end = |fields: &Vec<&str>| fields[1].ends_with(&server) && fields[2].ends_with(&client);
    let server = sockets.find(is_its_end).expect("the server's end");
    // Which timer runs, and in how many hundredths of a second it is due.
    let due = server[5].strip_prefix("02:")?;
    Some(Duration::from_millis(10 * u64::from_str_radix(due, 16).expect("a number")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_asked_of_a_connection_that_went_silent_is_given_up() {
    let (db, wire, store) = through_a_wire().await;
    let run = make::run(&store, db.now()).await;
    let mut other = PgConnection::connect(&db.url).await.expect("connects");
    let mut locked = other.begin().await.expect("begun");
    sqlx::query("LOCK TABLE refit.runs, refit.step_logs").execute(&mut *locked).await.expect("locked");
    let (reads, logs) = (Arc::clone(&store), Arc::clone(&store));
    let (now, step) = (db.now(), "a".parse().expect("an id"));
    let read = tokio::spawn(async move { reads.run(run).await.map(drop) });
    let logged = tokio::spawn(async move { logs.append_log(run, &step, 1, b"a line", now).await });
    let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    while sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut *locked).await.expect("counted") < 2 {}
    wire.forget();
    let given_up = async { (read.await.expect("no panic"), logged.await.expect("no panic")) };
    let (read, logged) = tokio::time::timeout(Duration::from_secs(90), given_up).await.expect("an answer");
    let is_away = |known: &Result<(), StoreError>| matches!(known, Err(StoreError::Away(why)) if why.contains("was not answered within"));
    assert!(is_away(&read) && is_away(&logged), "{read:?} {logged:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_went_silent_is_made_anew() {
    let (db, wire, store) = through_a_wire().await;
    let first = worker(&store, db.now()).await;
    wire.forget();
    // The server gave it up before anybody here knows.
    let mut other = PgConnection::connect(&db.url).await.expect("connects");
    let ended: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM (SELECT pg_terminate_backend(pid, 10000) FROM pg_locks
         WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) AS ended",
    )
    .fetch_one(&mut other)
    .await
    .expect("ended");
    assert_eq!(ended, 1);
    let second = WorkerId::generate();
    soon(store.register_worker(second, &[], Stay::Open, db.now())).await.expect("registered");
    let known: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM pg_locks l JOIN refit.processes w
           ON l.classid::bigint = ((w.lock_key >> 32) & 4294967295) AND l.objid::bigint = (w.lock_key & 4294967295)
         WHERE l.locktype = 'advisory' AND w.id IN ($1, $2)",
    )
    .bind(first.0)
    .bind(second.0)
    .fetch_one(&mut other)
    .await
    .expect("counted");
    assert_eq!(known, 2, "both are known to be there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wake_ups_are_fetched_again_after_the_queue_went_silent() {
    let (db, wire, store) = through_a_wire().await;
    let (tell, mut told) = mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    let _until_the_end = stop.clone().drop_guard();
    let delivering = Arc::clone(&store);
    tokio::spawn(async move { delivering.deliver_wakeups(Arc::new(Tell(tell)), 4, stop).await });
    let first = make::run(&store, db.now()).await;
    assert_eq!(soon(told.recv()).await, Some(first));
    let mut other = PgConnection::connect(&db.url).await.expect("connects");
    let mut locked = other.begin().await.expect("begun");
    sqlx::query("LOCK TABLE apalis.jobs").execute(&mut *locked).await.expect("locked");
    // It fetches, or notes that the first was delivered.
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
        AND wait_event_type = 'Lock' AND (query LIKE '%get_jobs%' OR query LIKE '%task_id%')";
    let mut looks = PgConnection::connect(&db.url).await.expect("connects");
    while sqlx::query_scalar::<_, i64>(waits).fetch_one(&mut looks).await.expect("counted") == 0 {}
    wire.forget();
    locked.rollback().await.expect("unlocked");
    let second = make::run(&db.open().await, db.now()).await;
    assert_eq!(soon(told.recv()).await, Some(second));
}
