//! Whose canary gives way to a newer version.

use super::RunLedger;
use crate::domain::canary::CanaryRecord;
use crate::domain::run::{Run, RunStatus};
use crate::steps::context::{ReleaseChange, StepError};
use crate::steps::promote;
use crate::store::StoreError;

impl RunLedger {
    /// Somebody else's canary is out: one that is held gives way to a newer version, any other is respected.
    pub(super) async fn superseded(
        &self,
        change: &ReleaseChange,
    ) -> Result<Option<(CanaryRecord, String)>, StepError> {
        let store = &self.engine.store;
        let model = &self.run.model;
        let current = through_outage!(self, store.release(model, &change.target))?;
        let Some(owner) =
            current.as_ref().and_then(|release| release.owner).filter(|owner| *owner != self.run.id)
        else {
            return Ok(None);
        };
        let holder = through_outage!(self, store.run(owner))?;
        let canary = through_outage!(self, store.canary_of(owner))?;
        match (holder, canary) {
            (Some(holder), Some(canary)) if self.gives_way(&holder).await? => {
                Ok(Some((canary, format!("superseded by a newer version of run {}", self.run.id))))
            }
            (Some(holder), _) if holder.status != RunStatus::Finished => Err(StepError::permanent(format!(
                "another canary of `{model}` is out on `{}`: run {owner}",
                change.target
            ))
            .hint(format!("wait for it, or end it with `refit run cancel {owner}`"))),
            // Its run is gone; what it left is taken over.
            (_, canary) => Ok(canary.map(|canary| (canary, "its run is gone".to_owned()))),
        }
    }

    /// Whether a run makes room for a newer version: people, or a freeze, keep its own from being promoted.
    async fn gives_way(&self, holder: &Run) -> Result<bool, StepError> {
        if holder.status != RunStatus::Waiting {
            return Ok(holder.status == RunStatus::Held);
        }
        let store = &self.engine.store;
        let attempts = through_outage!(self, store.attempts(holder.id))?;
        Ok(attempts.last().is_some_and(|attempt| promote::frozen(attempt).is_some()))
    }
}
