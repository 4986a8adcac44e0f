//! What processes tell each other by Postgres' notifications. A lost one is harmless: what it tells of is found a little
//! later.

use std::time::Duration;

use futures::Stream;
use sqlx::PgPool;
use sqlx::postgres::{PgListener, PgNotification};
use sqlx::types::Uuid;
use tokio::sync::broadcast;

use super::Connection;
use super::answers::soon;
use crate::domain::id::RunId;
use crate::store::StoreError;

/// The queue's own: a wake-up was written.
const WOKEN: &str = "apalis::job::insert";
/// A run that some worker has was told something; the payload is its id.
const TOLD: &str = "refit::told";
/// A listener that heard nothing for this long asks whether it still would.
const QUIET: Duration = Duration::from_secs(30);
/// A listener that could not connect tries again after this.
const PAUSE: Duration = Duration::from_secs(1);

/// Tells whoever has one of `runs`, once the caller's transaction is committed.
pub(crate) async fn tell(connection: &mut Connection, runs: &[RunId]) -> Result<(), StoreError> {
    let runs: Vec<Uuid> = runs.iter().map(|run| run.0).collect();
    sqlx::query("SELECT pg_notify($1, run::text) FROM unnest($2::uuid[]) AS t(run)")
        .bind(TOLD)
        .bind(runs)
        .execute(connection)
        .await?;
    Ok(())
}

/// An item for each wake-up of any process; runs in hand that were told something go to `told`. It never ends.
pub(super) fn others_news(
    pool: PgPool,
    told: broadcast::Sender<Option<RunId>>,
) -> impl Stream<Item = ()> + Send + 'static {
    futures::stream::unfold((pool, told, None), |(pool, told, mut listener)| async move {
        loop {
            match next(&pool, &mut listener).await {
                Ok(Some(notification)) if notification.channel() == TOLD => {
                    let run = Uuid::parse_str(notification.payload()).ok().map(RunId);
                    // Nobody listens where no run is advanced.
                    let _ = told.send(run);
                }
                Ok(Some(_)) => return Some(((), (pool, told, listener))),
                // Whatever was told meanwhile was not heard.
                Ok(None) => {
                    let _ = told.send(None);
                    return Some(((), (pool, told, listener)));
                }
                Err(error) => {
                    tracing::debug!(%error, "Postgres' notifications are not heard");
                    listener = None;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    })
}

/// The next notification; none after the connection was lost, or made.
async fn next(
    pool: &PgPool,
    listener: &mut Option<PgListener>,
) -> Result<Option<PgNotification>, sqlx::Error> {
    if let Some(listener) = listener {
        loop {
            if let Ok(heard) = tokio::time::timeout(QUIET, listener.try_recv()).await {
                return heard;
            }
            // Whoever only listens does not notice that the line is dead.
            let asked = soon(sqlx::query("SELECT 1").execute(&mut *listener)).await;
            let silent = || Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()));
            asked.unwrap_or_else(silent)?;
        }
    }
    let mut made = PgListener::connect_with(pool).await?;
    made.listen_all([WOKEN, TOLD]).await?;
    *listener = Some(made);
    Ok(None)
}
