//! What is kept with a change of a release: why, what was known of the canary
//! it is about, and by which configuration that canary is judged. Read before
//! the change: what a look finds in between was not known to whoever decided.

use super::{Engine, definition_hash};
use crate::domain::because::{Because, Evidence};
use crate::domain::canary::CanaryRecord;
use crate::domain::id::RunId;
use crate::domain::release::Release;
use crate::domain::run::Definition;
use crate::store::StoreError;

impl Engine {
    /// `reason` to change `current`, with the canary that is out there or bakes.
    pub(super) async fn because(&self, current: &Release, reason: &str) -> Result<Because, StoreError> {
        let live = self.store.live_canaries(None).await?.into_iter();
        let canary = live
            .filter(|canary| canary.model == current.model && canary.target == current.target)
            .max_by_key(|canary| canary.started_at);
        match (canary, current.owner) {
            (Some(canary), _) => self.because_of(&canary, reason).await,
            // Its run has not recorded it yet.
            (None, Some(owner)) => {
                let configuration = self.configuration(owner).await?;
                Ok(Because { configuration, ..Because::alone(reason) })
            }
            (None, None) => Ok(Because::alone(reason)),
        }
    }

    /// `reason` for a change that is about `canary`.
    pub(super) async fn because_of(
        &self,
        canary: &CanaryRecord,
        reason: &str,
    ) -> Result<Because, StoreError> {
        Ok(Because {
            reason: reason.to_owned(),
            evidence: Some(Evidence::of(canary)),
            configuration: self.configuration(canary.run).await?,
        })
    }

    async fn configuration(&self, run: RunId) -> Result<Option<String>, StoreError> {
        Ok(self.store.run(run).await?.map(|run| configuration(&run.definition)))
    }
}

/// The configuration that a workflow file and all it refers to are: its SHA-256 in lower-case hex.
pub fn configuration(definition: &Definition) -> String {
    hex::encode(definition_hash(definition))
}
