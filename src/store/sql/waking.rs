//! Attempts that sleep go on, in a checkpoint or a claim.

use super::super::Connection;
use crate::domain::Timestamp;
use crate::domain::id::{Epoch, RunId, StepId};
use crate::store::{Checkpoint, StoreError};

/// Wakes sleepers of a run whose holder goes on.
pub(super) async fn wake_attempts(
    connection: &mut Connection,
    run: RunId,
    epoch: Epoch,
    woken: &[(StepId, u32)],
    at: Timestamp,
) -> Result<(), StoreError> {
    for sleeper in woken {
        give_row_to_next(connection, run, sleeper).await?;
        if !wake_attempt(connection, run, epoch, sleeper, at).await? {
            let (step, attempt) = sleeper;
            return Err(StoreError::Broken(format!(
                "attempt {attempt} of step `{step}` of run {run} was to be woken and does not sleep"
            )));
        }
    }
    Ok(())
}

/// What went on when this attempt fell asleep is kept in its row until it ends itself: it gets a row of its own before the
/// sleeper, which will end once more, is woken.
async fn give_row_to_next(
    connection: &mut Connection,
    run: RunId,
    (step, attempt): &(StepId, u32),
) -> Result<(), StoreError> {
    sqlx::query(sql!(
        "INSERT INTO refit.attempts (run, step, attempt, state, epoch, started_at, changed_at, place)
         SELECT run, next_step, next_attempt, 'started', epoch, changed_at, changed_at, next_place
         FROM refit.attempts WHERE run = $1 AND step = $2 AND attempt = $3 AND next_step IS NOT NULL
         ON CONFLICT (run, step, attempt) DO NOTHING"
    ))
    .bind(run.0)
    .bind(step.as_str())
    .bind(i64::from(*attempt))
    .execute(connection)
    .await?;
    Ok(())
}

/// A sleeper goes on, under `epoch`; whether it slept.
pub(super) async fn wake_attempt(
    connection: &mut Connection,
    run: RunId,
    epoch: Epoch,
    (step, attempt): &(StepId, u32),
    at: Timestamp,
) -> Result<bool, StoreError> {
    let woken = sqlx::query(sql!(
        "UPDATE refit.attempts SET state = 'started', epoch = $4, wake_at = NULL, changed_at = $5
         WHERE run = $1 AND step = $2 AND attempt = $3 AND state = 'sleeping'"
    ))
    .bind(run.0)
    .bind(step.as_str())
    .bind(i64::from(*attempt))
    .bind(epoch.0)
    .bind(at)
    .execute(connection)
    .await?;
    Ok(woken.rows_affected() == 1)
}

/// As `was_written`, of a checkpoint that ends no attempt: whether the first of those that it begins has begun with it.
pub(super) async fn has_begun(
    connection: &mut Connection,
    checkpoint: &Checkpoint,
) -> Result<bool, StoreError> {
    let woken = checkpoint.woken.iter().map(|(step, attempt)| (step, Some(*attempt)));
    let started = checkpoint.started.iter().map(|new| (&new.step, Some(new.attempt)));
    let skipped = checkpoint.skipped.iter().map(|(step, _)| (step, None));
    let Some((step, attempt)) = woken.chain(started).chain(skipped).next() else { return Ok(false) };
    let row = sqlx::query(sql!(
        "SELECT 1 FROM refit.attempts WHERE run = $1 AND step = $2 AND epoch = $4 AND changed_at = $5
             AND ((attempt = $3 AND state = 'started') OR ($3 IS NULL AND state = 'skipped'))"
    ))
    .bind(checkpoint.run.0)
    .bind(step.as_str())
    .bind(attempt.map(i64::from))
    .bind(checkpoint.epoch.0)
    .bind(checkpoint.at)
    .fetch_optional(connection)
    .await?;
    Ok(row.is_some())
}
