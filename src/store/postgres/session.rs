//! A session that holds an advisory lock for each worker of this process: when
//! the process or its network dies, Postgres ends the session, and others see
//! the lock gone long before the lease is over.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection as _, PgPool};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::answers::{in_time, soon};
use super::open::connect;
use crate::domain::Timestamp;
use crate::domain::id::WorkerId;
use crate::store::StoreError;

/// How often the session is asked whether it is still there.
const CHECK_EVERY: Duration = Duration::from_secs(2);
/// How often a new session asks for locks that the one before it may still have.
const TAKES: u32 = 5;
const BETWEEN_TAKES: Duration = Duration::from_millis(200);

/// The server's kernel asks whether this end is still there: a machine that lost its power ends no connection, and its
/// locks would be held for two hours. What the server sent last waits no longer to be acknowledged.
const MISSED_SOON: &str = "SELECT set_config(name, wanted, FALSE)
    FROM (VALUES ('tcp_keepalives_idle', '10'), ('tcp_keepalives_interval', '5'), ('tcp_keepalives_count', '3'),
        ('tcp_user_timeout', '25s')) AS s(name, wanted)
    WHERE EXISTS (SELECT 1 FROM pg_catalog.pg_settings p WHERE p.name = s.name)";

#[derive(Default)]
struct Held {
    connection: Option<PgConnection>,
    keys: HashMap<WorkerId, i64>,
    /// Whether a task looks after the session.
    watched: bool,
}

/// The session and the locks it holds.
pub(crate) struct Session {
    options: PgConnectOptions,
    held: Arc<Mutex<Held>>,
    stop: CancellationToken,
}

/// The lock of a worker: the random half of its id.
fn lock_key(worker: WorkerId) -> i64 {
    let (_, low) = worker.0.as_u64_pair();
    low.cast_signed()
}

impl Session {
    pub(crate) fn new(options: PgConnectOptions) -> Self {
        Self { options, held: Arc::default(), stop: CancellationToken::new() }
    }

    /// Takes the lock of `worker`, for as long as this process has a session.
    pub(crate) async fn enter(&self, worker: WorkerId) -> Result<i64, StoreError> {
        let key = lock_key(worker);
        let mut held = self.held.lock().await;
        held.keys.insert(worker, key);
        if let Err(error) = held.hold(&self.options).await {
            held.keys.remove(&worker);
            return Err(error);
        }
        if !std::mem::replace(&mut held.watched, true) {
            let (options, shared, stop) = (self.options.clone(), Arc::clone(&self.held), self.stop.clone());
            tokio::spawn(async move {
                loop {
                    tokio::select! {
                        () = tokio::time::sleep(CHECK_EVERY) => {}
                        () = stop.cancelled() => return,
                    }
                    let mut held = shared.lock().await;
                    if held.keys.is_empty() {
                        held.watched = false;
                        return;
                    }
                    if let Err(error) = held.hold(&options).await {
                        tracing::debug!(%error, "The session of this worker is away");
                    }
                }
            });
        }
        Ok(key)
    }

    /// Gives the lock of `worker` back.
    pub(crate) async fn leave(&self, worker: WorkerId) {
        let mut held = self.held.lock().await;
        let Some(key) = held.keys.remove(&worker) else { return };
        if let Some(connection) = held.connection.as_mut() {
            // A session that is gone has no lock either.
            let _ = soon(sqlx::query("SELECT pg_advisory_unlock($1)").bind(key).execute(connection)).await;
        }
    }

    /// Ends the session while it holds no lock.
    pub(crate) async fn rest(&self) {
        let mut held = self.held.lock().await;
        if held.keys.is_empty()
            && let Some(connection) = held.connection.take()
        {
            // It ends either way.
            let _ = connection.close().await;
        }
    }

    /// Ends the session.
    pub(crate) async fn close(&self) {
        self.stop.cancel();
        if let Some(connection) = self.held.lock().await.connection.take() {
            // It ends either way.
            let _ = connection.close().await;
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Held {
    /// Makes sure of the session; a new one takes all locks again.
    async fn hold(&mut self, options: &PgConnectOptions) -> Result<(), StoreError> {
        let keys: Vec<i64> = self.keys.values().copied().collect();
        // Locks that are missing only: taking one again would count it twice.
        const TAKE: &str = "SELECT pg_try_advisory_lock(k) FROM unnest($1::bigint[]) AS t(k) WHERE NOT EXISTS (
            SELECT 1 FROM pg_locks l WHERE l.locktype = 'advisory' AND l.pid = pg_backend_pid() AND l.objsubid = 1
            AND l.classid::bigint = ((k >> 32) & 4294967295) AND l.objid::bigint = (k & 4294967295))";
        let take =
            async |connection: &mut PgConnection| sqlx::query(TAKE).bind(&keys).execute(connection).await;
        if let Some(connection) = self.connection.as_mut() {
            match soon(take(connection)).await {
                Some(Ok(_)) => return Ok(()),
                Some(Err(_)) => self.connection = None,
                None => {}
            }
        }
        let mut other = connect(options).await?;
        // A server that was slow to answer ends no session: others would take the runs of whoever holds a lock by it.
        if let Some(connection) = self.connection.as_mut()
            && let Some(Ok(_)) = soon(take(connection)).await
        {
            return Ok(other.close().await?);
        }
        in_time(async {
            sqlx::query(MISSED_SOON).execute(&mut other).await?;
            Ok(take(&mut other).await?)
        })
        .await?;
        // With that the old session ends. Where the server only was slow, it had the locks until then.
        let other = self.connection.insert(other);
        for _ in 0..TAKES {
            if in_time(async { Ok(take(other).await?) }).await?.rows_affected() == 0 {
                break;
            }
            tokio::time::sleep(BETWEEN_TAKES).await;
        }
        Ok(())
    }
}

/// Cuts the leases of workers whose session ended to a second, and forgets those that have nothing.
pub(crate) async fn cut_silent_leases(pool: &PgPool, now: Option<Timestamp>) -> Result<(), StoreError> {
    sqlx::query(concat!(
        "UPDATE refit.runs SET lease_until = ",
        until!("$1", "$2"),
        ", poke_at = ",
        until!("$1", "$2"),
        "
         WHERE lease_until > ",
        until!("$1", "$2"),
        "
           AND lease_owner IN (SELECT w.id FROM refit.processes w WHERE ",
        silent!(),
        ")"
    ))
    .bind(now)
    .bind(1_000_000_i64)
    .execute(pool)
    .await?;
    sqlx::query(concat!(
        "DELETE FROM refit.processes w WHERE w.registered_at < statement_timestamp() - interval '1 day'
           AND NOT EXISTS (SELECT 1 FROM refit.runs r WHERE r.lease_owner = w.id)
           AND NOT EXISTS (SELECT 1 FROM refit.outbox o WHERE o.holder = w.id) AND ",
        silent!()
    ))
    .execute(pool)
    .await?;
    Ok(())
}
