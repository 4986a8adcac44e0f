//! What is kept with a change of a release: why, what was known of the canary
//! it is about, and by which configuration that canary is judged. Read before
//! the change: what a look finds in between was not known to whoever decided.

use super::{Engine, definition_hash};
use crate::domain::because::{Because, Evidence};
use crate::domain::canary::{CanaryRecord, CanaryState};
use crate::domain::id::RunId;
use crate::domain::release::Release;
use crate::domain::run::Definition;
use crate::store::StoreError;

impl Engine {
    /// `reason` to change `current`, with the canary that is out there or bakes.
    pub(super) async fn because(&self, current: &Release, reason: &str) -> Result<Because, StoreError> {
        let canary = match current.owner {
            // Another one that bakes is not what is out there.
            Some(owner) => self.live_canary(owner).await?,
            None => self.baking(current).await?,
        };
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

    /// `because_of` for a way back, which is never missed for what is kept with it.
    pub(super) async fn because_in_any_case(&self, canary: &CanaryRecord, reason: &str) -> Because {
        match self.because_of(canary, reason).await {
            Ok(because) => because,
            Err(error) => {
                left_out(&error, reason);
                Because { evidence: Some(Evidence::of(canary)), ..Because::alone(reason) }
            }
        }
    }

    /// The canary of a run, while it is watched or bakes.
    pub(super) async fn live_canary(&self, run: RunId) -> Result<Option<CanaryRecord>, StoreError> {
        let canary = self.store.canary_of(run).await?;
        Ok(canary.filter(|canary| matches!(canary.state, CanaryState::Watching | CanaryState::Baking)))
    }

    /// The newest version that bakes where `current` is served.
    pub(super) async fn baking(&self, current: &Release) -> Result<Option<CanaryRecord>, StoreError> {
        let live = self.store.live_canaries(None).await?.into_iter();
        let here = live.filter(|canary| {
            canary.state == CanaryState::Baking
                && canary.model == current.model
                && canary.target == current.target
        });
        Ok(here.max_by_key(|canary| canary.started_at))
    }

    async fn configuration(&self, run: RunId) -> Result<Option<String>, StoreError> {
        Ok(self.store.run(run).await?.map(|run| configuration(&run.definition)))
    }
}

/// A way back is made without what could not be read: the log is all that says so.
pub(super) fn left_out(error: &StoreError, reason: &str) {
    tracing::error!("Not all that was known is kept with a way back ({reason}): {error}");
}

/// The configuration that a workflow file and all it refers to are: its SHA-256 in lower-case hex.
pub fn configuration(definition: &Definition) -> String {
    hex::encode(definition_hash(definition))
}
