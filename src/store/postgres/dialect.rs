//! What Postgres says differently.

use std::time::Duration;

use apalis::prelude::TaskBuilder;
use apalis_postgres::Config;
use futures::Stream;
use serde_json::Value;
use sqlx::{PgPool, Pool};
use tokio::sync::{broadcast, watch};

use crate::clock::Clock;
use crate::domain::Timestamp;
use crate::domain::id::RunId;
use crate::store::{QUEUE, StoreError, Wakeup};

pub(crate) type Db = sqlx::Postgres;
pub(crate) type Row = sqlx::postgres::PgRow;
pub(crate) type Connection = sqlx::PgConnection;
pub(crate) type Backend = apalis_postgres::PostgresStorage<Value>;
/// The length of a time span in microseconds: the database's own time is added.
pub(crate) type Span = i64;

pub(crate) const BEGIN: &str = "BEGIN";
pub(crate) const IS_SHARED: bool = true;
/// A lease ends with its time: its owner may be on another machine.
pub(crate) const LEASES_EXPIRE: bool = true;
/// How often the queue is asked for wake-ups that nobody told of: a pooler may keep the notifications to itself.
pub(crate) const LOST_WAKEUPS: Duration = Duration::from_millis(500);
/// The lock files are in a temporary directory, which may be tidied.
pub(crate) const NO_FILE_MEANS_DEAD: bool = false;

macro_rules! sql {
    ($text:expr) => {
        $text
    };
}
// The start of the statement, not of the transaction, which may have waited for a lock.
macro_rules! now {
    ($at:literal) => {
        concat!("coalesce(", $at, "::timestamptz, statement_timestamp())")
    };
}
macro_rules! until {
    ($at:literal, $span:literal) => {
        concat!(
            "(coalesce(",
            $at,
            "::timestamptz, statement_timestamp()) + ",
            $span,
            "::bigint * interval '1 microsecond')"
        )
    };
}
macro_rules! each {
    ($documents:literal) => {
        concat!("jsonb_array_elements(", $documents, "::jsonb) AS e(value)")
    };
}
// Row by row, by an index: the planner does not look through `OFFSET`. By itself it takes a table that it has no figures
// of for a small one, and compares all rows of a batch with all that the model has.
macro_rules! found {
    ($table:literal, $name:literal, $($condition:expr),+ $(,)?) => {
        concat!(
            " CROSS JOIN LATERAL (SELECT * FROM refit.",
            $table,
            " AS ",
            $name,
            " WHERE ",
            $($condition),+,
            " OFFSET 0) AS ",
            $name
        )
    };
}
// Rows of model `$1`, by where they are: a condition on the request itself may become a join, too.
macro_rules! of_requests {
    ($table:literal, $documents:literal) => {
        concat!(
            " ctid = ANY (ARRAY(SELECT o.place FROM ",
            each!($documents),
            " CROSS JOIN LATERAL (SELECT i.ctid AS place FROM refit.",
            $table,
            " AS i WHERE i.model = $1 AND i.request_id = e.value ->> 'r' OFFSET 0) AS o))"
        )
    };
}
// As one more column that is returned, for the rest of the transaction. A plan is kept for as long as nobody looks at the
// table: one that reads all of it, made while it was empty, would be kept while it fills.
macro_rules! by_index {
    () => {
        ", set_config('enable_seqscan', 'off', TRUE)"
    };
}
macro_rules! moment {
    ($text:literal) => {
        concat!("CAST(", $text, " AS timestamptz)")
    };
}
macro_rules! for_update {
    () => {
        " FOR UPDATE"
    };
}
macro_rules! skip_locked {
    () => {
        " FOR UPDATE SKIP LOCKED"
    };
}

// Whether process `w` is without its lock. Not just after the server's start, when nobody has had the time to come back.
macro_rules! silent {
    () => {
        "NOT EXISTS (SELECT 1 FROM pg_locks l
            WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted
            AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND l.classid::bigint = ((w.lock_key >> 32) & 4294967295) AND l.objid::bigint = (w.lock_key & 4294967295))
         AND statement_timestamp() > pg_postmaster_start_time() + interval '10 seconds'"
    };
}
// Process `$id`, if it is on the list and known to be there: what it takes is held by it, and else by time only.
macro_rules! known {
    ($id:literal) => {
        concat!("(SELECT w.id FROM refit.processes w WHERE w.id = ", $id, " AND NOT (", silent!(), "))")
    };
}
// Whether `cut_silent_leases` has something to do about process `w`.
macro_rules! to_be_cut {
    ($at:literal) => {
        concat!(
            "(w.registered_at < statement_timestamp() - interval '1 day' OR EXISTS (
                SELECT 1 FROM refit.runs r WHERE r.lease_owner = w.id AND r.lease_until > ",
            now!($at),
            " + interval '1 second'))
             AND ",
            silent!()
        )
    };
}

/// The database's own time, unless the caller's clock is virtual.
pub(crate) fn bound_time(clock: &dyn Clock, at: Timestamp) -> Option<Timestamp> {
    (!clock.is_real()).then_some(at)
}

/// `duration`, as `until!` wants it.
pub(crate) fn span(_at: Timestamp, duration: Duration) -> Span {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// Locks a concurrency key until the transaction ends, so that two submissions do not both find it free.
pub(crate) async fn lock_key(connection: &mut Connection, key: &str) -> Result<(), StoreError> {
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))")
        .bind(key)
        .execute(connection)
        .await?;
    Ok(())
}

/// Writes wake-ups in the caller's transaction.
pub(crate) async fn push(connection: &mut Connection, runs: &[RunId]) -> Result<(), StoreError> {
    let tasks = runs.iter().map(|run| task(*run)).collect::<Result<Vec<_>, _>>()?;
    apalis_postgres::queries::push_tasks(connection, QUEUE, tasks).await.map_err(queue_error)
}

/// What an error of the queue means.
pub(crate) fn queue_error(error: apalis_postgres::Error) -> StoreError {
    match error {
        apalis_postgres::Error::Database(error) => error.into(),
        other => StoreError::Broken(other.to_string()),
    }
}

fn task(run: RunId) -> Result<apalis_postgres::PgTask, StoreError> {
    let wakeup = serde_json::to_vec(&Wakeup { run }).map_err(|e| StoreError::Broken(e.to_string()))?;
    // Run at 0 is now, whatever the clocks say: a later time may suppress the notification.
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

/// News of this process, and of others as Postgres notifies; those of runs in hand go to `told`.
pub(crate) fn news(
    pool: &Pool<Db>,
    own: watch::Receiver<u64>,
    told: broadcast::Sender<Option<RunId>>,
) -> impl Stream<Item = ()> + Send + 'static {
    futures::stream::select(super::sql::own_news(own), super::listener::others_news(pool.clone(), told))
}

/// The task that is fetched next, if any waits. One that somebody is about to fetch does not.
pub(crate) async fn oldest_task(pool: &PgPool, queue: &str) -> Result<Option<String>, StoreError> {
    let next = "SELECT id FROM apalis.jobs WHERE job_type = $1 AND status = 'Pending'
        ORDER BY priority DESC, run_at LIMIT 1 FOR UPDATE SKIP LOCKED";
    Ok(sqlx::query_scalar(next).bind(queue).fetch_optional(pool).await?)
}

/// Deletes tasks done ten minutes ago, and workers unseen for a day.
pub(crate) async fn clean_queue(pool: &PgPool, queue: &str) -> Result<(), StoreError> {
    sqlx::query(
        "DELETE FROM apalis.jobs WHERE job_type = $1 AND status IN ('Done', 'Killed', 'Failed')
         AND done_at < now() - interval '10 minutes'",
    )
    .bind(queue)
    .execute(pool)
    .await?;
    sqlx::query(
        "DELETE FROM apalis.workers w WHERE w.worker_type = $1 AND w.last_seen < now() - interval '1 day'
         AND NOT EXISTS (SELECT 1 FROM apalis.jobs j WHERE j.lock_by = w.id)",
    )
    .bind(queue)
    .execute(pool)
    .await?;
    Ok(())
}

/// Ends the connections that nobody uses: a server that lets a database sleep keeps none.
pub(crate) async fn close_idle(pool: &PgPool) {
    for _ in 0..pool.num_idle() {
        let Some(connection) = pool.try_acquire() else { return };
        // It ends either way.
        let _ = connection.close().await;
    }
}
