//! A checkpoint that comes alone, from one step to the next: what a lone run writes, step after step. One row is written,
//! of single values, so that Postgres keeps the plan.

use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{Postgres, Row as _};

use super::Connection;
use super::sql::checkpoint::Plain;
use super::sql::rows::{doc_opt, kept};
use crate::domain::Timestamp;
use crate::domain::id::{Epoch, RunId, StepId};
use crate::store::StoreError;

/// A step ended and the next begins. The attempt that ended has no row yet, and gets one. The run's row stays as it is:
/// it is neither written nor read. Who takes the run meanwhile gives that attempt a row, too, and the second of the two
/// is refused. (No `ON CONFLICT`, which makes Postgres log a third record.)
const WRITE_AFTER: &str = "
INSERT INTO refit.attempts (run, step, attempt, state, epoch, started_at, place, finished_at, changed_at, output, error,
    resume, wake_at, next_step, next_attempt, next_place)
SELECT p.run, $4, $5, $6, p.epoch, p.changed_at, p.next_place, $7, $3, $8, $9, $10, $11, $12, $13, $14
FROM refit.attempts p
WHERE p.run = $1 AND p.step = $15 AND p.attempt = $16 AND p.epoch = $2 AND p.next_step = $4 AND p.next_attempt = $5
RETURNING pg_postmaster_start_time()";

/// The same where the checkpoint with which the attempt began was written here just now: that it began is known without
/// asking. Not where another server took over meanwhile, which may not have heard of the last commits: a pooler keeps a
/// session that the server behind it has lost.
const WRITE_NEXT: &str = "
INSERT INTO refit.attempts (run, epoch, changed_at, step, attempt, state, finished_at, output, error, resume, wake_at,
    next_step, next_attempt, next_place, started_at, place)
SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16 WHERE pg_postmaster_start_time() = $17";

/// The attempt that ended has a row: it began with the claim, after which this is the first checkpoint, or with others.
const WRITE_FIRST: &str = "
WITH passed AS (
    UPDATE refit.runs SET crashes = 0, progressed = TRUE, status = 'running'
    WHERE id = $1 AND epoch = $2 AND status <> 'finished' AND EXISTS (
        SELECT 1 FROM refit.attempts
        WHERE run = $1 AND step = $4 AND attempt = $5 AND state = 'started' AND epoch = $2)
    RETURNING 1
)
UPDATE refit.attempts SET state = $6, finished_at = $7, changed_at = $3, output = $8, error = $9, resume = $10,
    wake_at = $11, next_step = $12, next_attempt = $13, next_place = $14
WHERE run = $1 AND step = $4 AND attempt = $5 AND state = 'started' AND epoch = $2 AND EXISTS (SELECT 1 FROM passed)
RETURNING pg_postmaster_start_time()";

/// The attempt that began with a checkpoint, and has no row yet.
pub(super) struct Begun {
    /// Since when the server runs that wrote it.
    server: Timestamp,
    run: RunId,
    epoch: Epoch,
    step: StepId,
    attempt: u32,
    at: Timestamp,
    place: u32,
}

impl Begun {
    fn with(Plain { checkpoint, begun, .. }: &Plain<'_>, server: Timestamp) -> Self {
        Self {
            server,
            run: checkpoint.run,
            epoch: checkpoint.epoch,
            step: begun.step.clone(),
            attempt: begun.attempt,
            at: checkpoint.at,
            place: checkpoint.place,
        }
    }

    fn ends_with(&self, Plain { checkpoint, ended, parent, .. }: &Plain<'_>) -> bool {
        self.run == checkpoint.run
            && self.epoch == checkpoint.epoch
            && self.step == ended.step
            && self.attempt == ended.attempt
            && parent.is_some()
    }
}

/// Whether it was written. `last` is what began with the last checkpoint on this connection, if that came alone.
pub(super) async fn write(
    connection: &mut Connection,
    plain: &Plain<'_>,
    last: &mut Option<Begun>,
) -> Result<bool, StoreError> {
    let begun = last.take().filter(|begun| begun.ends_with(plain));
    let server = match begun {
        Some(begun) if follow(connection, plain, &begun).await? => Some(begun.server),
        Some(_) | None => ask(connection, plain).await?,
    };
    *last = server.map(|server| Begun::with(plain, server));
    Ok(server.is_some())
}

/// Whether the server that wrote what it follows has written it.
async fn follow(connection: &mut Connection, plain: &Plain<'_>, begun: &Begun) -> Result<bool, StoreError> {
    let query = bound(WRITE_NEXT, plain)?.bind(begun.at).bind(i64::from(begun.place)).bind(begun.server);
    Ok(unless_known(query.execute(connection).await)?.rows_affected() == 1)
}

/// Since when the server runs that has written it.
async fn ask(connection: &mut Connection, plain: &Plain<'_>) -> Result<Option<Timestamp>, StoreError> {
    let query = match plain.parent {
        Some((step, attempt)) => bound(WRITE_AFTER, plain)?.bind(step.as_str()).bind(i64::from(*attempt)),
        None => bound(WRITE_FIRST, plain)?,
    };
    let row = unless_known(query.fetch_optional(connection).await)?;
    row.map(|row| Ok(row.try_get(0)?)).transpose()
}

/// With what all of them say.
fn bound<'q>(
    statement: &'static str,
    plain: &Plain<'q>,
) -> Result<Query<'q, Postgres, PgArguments>, StoreError> {
    let Plain { checkpoint, ended, begun, .. } = *plain;
    Ok(sqlx::query(statement)
        .bind(checkpoint.run.0)
        .bind(checkpoint.epoch.0)
        .bind(checkpoint.at)
        .bind(ended.step.as_str())
        .bind(i64::from(ended.attempt))
        .bind(ended.state.as_str())
        .bind(plain.finished_at())
        .bind(ended.output.as_ref().map(kept))
        .bind(doc_opt(ended.error.as_ref())?)
        .bind(ended.resume.as_ref().map(kept))
        .bind(ended.wake_at)
        .bind(begun.step.as_str())
        .bind(i64::from(begun.attempt))
        .bind(i64::from(checkpoint.place)))
}

/// Nothing was written where an attempt has a row already: by who took its run, or by this very checkpoint, whose answer
/// was lost.
pub(super) fn unless_known<T: Default>(written: Result<T, sqlx::Error>) -> Result<T, StoreError> {
    match written {
        Err(sqlx::Error::Database(error)) if error.is_unique_violation() => Ok(T::default()),
        written => Ok(written?),
    }
}
