//! A version that was taken back before anybody knew that its run ends for another reason: whoever took it back left it to
//! the run to say so, and the run came to its end without.

use serde_json::json;

use super::outage::answered;
use super::{Engine, situation};
use crate::domain::id::RunId;
use crate::domain::run::Signal;
use crate::store::{Notice, StoreError};

/// What is said of it at the end of `run`; the same that is said at once where that end is known, and said once.
pub(super) async fn rollback(engine: &Engine, run: RunId) -> Result<Vec<Notice>, StoreError> {
    match answered(run, || told(engine, run)).await {
        Err(error @ (StoreError::Unusable { .. } | StoreError::Broken(_))) => {
            // What cannot be read keeps no run from its end.
            tracing::error!(run.id = %run, "Whether the version of run {run} was taken back is not known: {error}");
            Ok(vec![])
        }
        told => told,
    }
}

async fn told(engine: &Engine, run: RunId) -> Result<Vec<Notice>, StoreError> {
    let signals = engine.store.signals(run).await?;
    let (Some(why), Some(canary)) = (Signal::unsaid_way_back(&signals), engine.store.canary_of(run).await?)
    else {
        return Ok(vec![]);
    };
    let release = engine.store.release(&canary.model, &canary.target).await?;
    let serving = release.as_ref().map(situation::serving);
    let facts = json!({"reason": why, "version": canary.version, "serving": serving});
    engine.alerts(&canary, "rolled-back", facts).await
}
