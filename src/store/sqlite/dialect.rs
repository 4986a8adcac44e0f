//! What SQLite says differently.

use std::time::Duration;

use apalis::prelude::TaskBuilder;
use apalis_sqlite::Config;
use futures::Stream;
use serde_json::Value;
use sqlx::{Pool, SqlitePool};
use tokio::sync::{broadcast, watch};

use crate::clock::Clock;
use crate::domain::Timestamp;
use crate::domain::id::{RunId, WorkerId};
use crate::store::{QUEUE, StoreError, Wakeup};

pub(crate) type Db = sqlx::Sqlite;
pub(crate) type Row = sqlx::sqlite::SqliteRow;
pub(crate) type Connection = sqlx::SqliteConnection;
pub(crate) type Backend = apalis_sqlite::SqliteStorage<Value>;
/// The end of a time span: computed here, because SQLite's date functions print times differently.
pub(crate) type Span = Timestamp;

/// Takes the write lock at once: a transaction that reads first could not take it later.
pub(crate) const BEGIN: &str = "BEGIN IMMEDIATE";
/// All processes are on one machine.
pub(crate) const IS_SHARED: bool = false;
/// No lease ends by time: its owner's file lock says whether it lives.
pub(crate) const LEASES_EXPIRE: bool = false;
/// How often the queue is asked for wake-ups that nobody told of: who writes from another process pokes this one.
pub(crate) const LOST_WAKEUPS: Duration = Duration::from_secs(1);
/// The lock files are beside the database.
pub(crate) const NO_FILE_MEANS_DEAD: bool = true;

const SCHEMA: &[u8] = b"refit.";

/// How long `text` is without the schema's name, which SQLite does not have.
pub(crate) const fn stripped_len(text: &str) -> usize {
    let bytes = text.as_bytes();
    let (mut from, mut len) = (0, 0);
    while from < bytes.len() {
        if starts_at(bytes, from) {
            from += SCHEMA.len();
        } else {
            from += 1;
            len += 1;
        }
    }
    len
}

/// `text` without the schema's name.
pub(crate) const fn stripped<const N: usize>(text: &str) -> [u8; N] {
    let bytes = text.as_bytes();
    let mut out = [0; N];
    let (mut from, mut to) = (0, 0);
    while from < bytes.len() {
        if starts_at(bytes, from) {
            from += SCHEMA.len();
        } else {
            out[to] = bytes[from];
            from += 1;
            to += 1;
        }
    }
    out
}

const fn starts_at(bytes: &[u8], at: usize) -> bool {
    if at + SCHEMA.len() > bytes.len() {
        return false;
    }
    let mut i = 0;
    while i < SCHEMA.len() {
        if bytes[at + i] != SCHEMA[i] {
            return false;
        }
        i += 1;
    }
    true
}

macro_rules! sql {
    ($text:expr) => {{
        const TEXT: &str = $text;
        const BYTES: [u8; $crate::store::sqlite::stripped_len(TEXT)] = $crate::store::sqlite::stripped(TEXT);
        const SQL: &str = match str::from_utf8(&BYTES) {
            Ok(text) => text,
            Err(_) => panic!("taking ASCII out of UTF-8 leaves UTF-8"),
        };
        SQL
    }};
}
macro_rules! now {
    ($at:literal) => {
        $at
    };
}
macro_rules! until {
    ($at:literal, $span:literal) => {
        $span
    };
}
macro_rules! each {
    ($documents:literal) => {
        concat!("json_each(", $documents, ") AS e")
    };
}
// `CROSS JOIN` keeps the order: by itself SQLite goes through the documents for every row of the model.
macro_rules! found {
    ($table:literal, $name:literal, $($condition:expr),+ $(,)?) => {
        concat!(" CROSS JOIN ", $table, " AS ", $name, " ON ", $($condition),+)
    };
}
macro_rules! of_requests {
    ($table:literal, $documents:literal) => {
        concat!(" model = $1 AND request_id IN (SELECT e.value ->> 'r' FROM ", each!($documents), ")")
    };
}
macro_rules! by_index {
    () => {
        ""
    };
}
macro_rules! moment {
    ($text:literal) => {
        $text
    };
}
// One writer at a time: there is nobody to lock out.
macro_rules! for_update {
    () => {
        ""
    };
}
// There are no sessions: a worker's lock file tells everything.
macro_rules! silent {
    () => {
        "FALSE"
    };
}
// Process `$id`, if it is on the list and known to be there: what it takes is held by it, and else by time only.
macro_rules! known {
    ($id:literal) => {
        concat!("(SELECT w.id FROM refit.processes w WHERE w.id = ", $id, " AND NOT (", silent!(), "))")
    };
}
macro_rules! to_be_cut {
    ($at:literal) => {
        "FALSE"
    };
}
macro_rules! skip_locked {
    () => {
        ""
    };
}

/// The caller's time always.
pub(crate) fn bound_time(_clock: &dyn Clock, at: Timestamp) -> Option<Timestamp> {
    Some(at)
}

/// `at + duration`, as `until!` wants it.
pub(crate) fn span(at: Timestamp, duration: Duration) -> Span {
    at + chrono::TimeDelta::from_std(duration).unwrap_or(chrono::TimeDelta::MAX)
}

/// One writer at a time: nothing to lock.
pub(crate) async fn lock_key(_connection: &mut Connection, _key: &str) -> Result<(), StoreError> {
    Ok(())
}

/// Nobody is silent.
pub(crate) async fn cut_silent_leases(_pool: &SqlitePool, _now: Option<Timestamp>) -> Result<(), StoreError> {
    Ok(())
}

/// Nothing keeps a worker known to the database but its lock file.
pub(crate) struct Session;

impl Session {
    pub(crate) async fn enter(&self, _worker: WorkerId) -> Result<i64, StoreError> {
        Ok(0)
    }

    pub(crate) async fn leave(&self, _worker: WorkerId) {}

    pub(crate) async fn close(&self) {}

    pub(crate) async fn rest(&self) {}
}

/// A file costs nothing while nobody reads it.
pub(crate) async fn close_idle(_pool: &SqlitePool) {}

/// A file does not go silent.
pub(crate) fn in_time<F: Future>(asked: F) -> F {
    asked
}

/// Nor while it is asked for much.
pub(crate) fn in_long_time<F: Future>(asked: F) -> F {
    asked
}

/// Writes wake-ups in the caller's transaction.
pub(crate) async fn push(connection: &mut Connection, runs: &[RunId]) -> Result<(), StoreError> {
    let tasks = runs.iter().map(|run| task(*run)).collect::<Result<Vec<_>, _>>()?;
    apalis_sqlite::queries::push_tasks(connection, QUEUE, &tasks).await.map_err(|error| match error {
        apalis_sqlite::Error::Database(error) => error.into(),
        other => StoreError::Broken(other.to_string()),
    })
}

fn task(run: RunId) -> Result<apalis_sqlite::SqliteTask, StoreError> {
    let wakeup = serde_json::to_vec(&Wakeup { run }).map_err(|e| StoreError::Broken(e.to_string()))?;
    // Run at 0 is now, whatever the clocks say. No limit of attempts: every one ends well.
    Ok(TaskBuilder::new(wakeup).run_at_timestamp(0).max_attempts(1_000_000).build())
}

/// One task at a time, or the queue's heartbeat starves behind those that wait. What is fetched is this worker's by that:
/// a lock beside it would be one more transaction, and one that comes late takes a task back from whom it was given to.
pub(crate) fn worker_config() -> Config {
    Config::default()
        .queue(QUEUE)
        .batch_size(1)
        .lock_tasks(false)
        .heartbeat_interval(Duration::from_secs(10))
        .missed_heartbeats(6)
}

/// Tells nobody: another process pokes.
pub(crate) async fn tell(_connection: &mut Connection, _runs: &[RunId]) -> Result<(), StoreError> {
    Ok(())
}

/// News of this process only: another one pokes.
pub(crate) fn news(
    _pool: &Pool<Db>,
    own: watch::Receiver<u64>,
    _told: broadcast::Sender<Option<RunId>>,
) -> impl Stream<Item = ()> + Send + 'static {
    super::sql::own_news(own)
}

/// The task that is fetched next, if any waits.
pub(crate) async fn oldest_task(pool: &SqlitePool, queue: &str) -> Result<Option<String>, StoreError> {
    let next = "SELECT id FROM Jobs WHERE job_type = $1 AND status = 'Pending'
        ORDER BY priority DESC, run_at, id LIMIT 1";
    Ok(sqlx::query_scalar(next).bind(queue).fetch_optional(pool).await?)
}

/// Deletes tasks done ten minutes ago, and workers unseen for a day.
pub(crate) async fn clean_queue(pool: &SqlitePool, queue: &str) -> Result<(), StoreError> {
    sqlx::query(
        "DELETE FROM Jobs WHERE job_type = $1 AND status IN ('Done', 'Killed', 'Failed')
         AND done_at < CAST(strftime('%s', 'now') AS INTEGER) - 600",
    )
    .bind(queue)
    .execute(pool)
    .await?;
    sqlx::query(
        "DELETE FROM Workers WHERE worker_type = $1 AND last_seen < CAST(strftime('%s', 'now') AS INTEGER) - 86400
         AND id NOT IN (SELECT lock_by FROM Jobs WHERE lock_by IS NOT NULL)",
    )
    .bind(queue)
    .execute(pool)
    .await?;
    Ok(())
}
