//! An outage of the database is waited through: the owner of a run goes on
//! after it if its epoch is unchanged, which the next checkpoint finds out.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::Engine;
use crate::domain::id::RunId;
use crate::domain::run::RunStatus;
use crate::store::{Checkpoint, RunState, StoreError};

pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(100);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// Asks until the database answers: what `run` did meanwhile would be lost with an error. A process that is to end gives
/// its runs up by itself when their time is over.
pub(super) async fn answered<T, F>(run: RunId, ask: impl Fn() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let mut pause = FIRST_PAUSE;
    loop {
        match ask().await {
            Err(StoreError::Away(why)) => {
                tracing::warn!(run.id = %run, "Run {run} waits for the database: {why}");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            answer => return answer,
        }
    }
}

/// Writes a checkpoint.
pub(super) async fn write(engine: &Engine, checkpoint: &Checkpoint) -> Result<(), StoreError> {
    let unknown = AtomicBool::new(false);
    let unknown = &unknown;
    answered(checkpoint.run, || async move {
        let result = engine.store.checkpoint(checkpoint.clone()).await;
        match &result {
            Err(StoreError::Away(_)) => unknown.store(true, Ordering::Relaxed),
            // The answer to an earlier try may have been lost after its commit.
            Err(StoreError::Fenced)
                if unknown.load(Ordering::Relaxed) && ended(engine, checkpoint).await? =>
            {
                return Ok(());
            }
            Ok(()) | Err(StoreError::Fenced | StoreError::Unusable { .. } | StoreError::Broken(_)) => {}
        }
        result
    })
    .await
}

/// The store recognises a checkpoint of attempts when it is sent again; one that only ends the run is recognised here.
async fn ended(engine: &Engine, checkpoint: &Checkpoint) -> Result<bool, StoreError> {
    let run = engine.store.run(checkpoint.run).await?;
    let finishes = matches!(checkpoint.run_state, RunState::Finished { .. });
    Ok(run.is_some_and(|run| run.epoch == checkpoint.epoch && finishes && run.status == RunStatus::Finished))
}
