//! What is kept with a change of a release: why, what was known of the canary
//! it is about, and by which configuration that canary is judged. Read before
//! the change: what a look finds in between was not known to whoever decided.

use super::{Engine, definition_hash};
use crate::domain::because::{Because, Evidence};
use crate::domain::canary::{CanaryRecord, CanaryState};
use crate::domain::id::{RunId, VersionName};
use crate::domain::release::{Assignment, Release, ReleaseActor};
use crate::domain::run::Definition;
use crate::store::{CanaryEnd, StoreError};

/// So many changes back a version is looked for that bakes: while it does, there are few.
const SINCE_IT_SERVES: u32 = 100;

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

    /// The newest version that bakes where `current` is served, or that its run promotes there: it is decided, and will bake
    /// once its host shows it.
    pub(super) async fn baking(&self, current: &Release) -> Result<Option<CanaryRecord>, StoreError> {
        let live = self.store.live_canaries(None).await?.into_iter();
        let champion = current.desired.champion.as_ref();
        let serves = |canary: &CanaryRecord| match canary.state {
            CanaryState::Baking => true,
            CanaryState::Watching => champion.is_some_and(|served| served.version == canary.version),
            CanaryState::Promoted | CanaryState::RolledBack => false,
        };
        let here = live.filter(|canary| {
            serves(canary) && canary.model == current.model && canary.target == current.target
        });
        Ok(here.max_by_key(|canary| canary.started_at))
    }

    /// The bake of the champion, to come or under way, when another version is to serve: its run hears of it with the change.
    pub(super) async fn bake_ended_by(
        &self,
        current: &Release,
        assignment: &Assignment,
        reason: &str,
    ) -> Result<Option<CanaryEnd>, StoreError> {
        let serves = |version: &VersionName| {
            assignment.champion.as_ref().is_some_and(|served| &served.version == version)
        };
        match (self.baking(current).await?, &current.desired.champion) {
            (Some(canary), _) => {
                Ok((!serves(&canary.version)).then(|| CanaryEnd::of(&canary, reason.to_owned())))
            }
            (None, Some(champion)) if !serves(&champion.version) => self.bake_of_none(current, reason).await,
            (None, Some(_) | None) => Ok(None),
        }
    }

    /// When `current` changes for `reason`: the bake of what serves now and cannot be read, or the promotion of a first
    /// version, which has no canary. Its run is the one that brought the version.
    async fn bake_of_none(&self, current: &Release, reason: &str) -> Result<Option<CanaryEnd>, StoreError> {
        let version = |assignment: &Assignment| assignment.champion.as_ref().map(|it| it.version.clone());
        let read = self.store.release_history(&current.model, &current.target, SINCE_IT_SERVES).await;
        let Some(history) = known(read, reason)? else { return Ok(None) };
        let serves = version(&current.desired);
        let since = history.iter().take_while(|change| version(&change.assignment) == serves);
        let Some(ReleaseActor::Run { run }) = since.last().map(|change| &change.actor) else {
            return Ok(None);
        };
        let canary = known(self.store.canary_of(*run).await, reason)?;
        Ok(canary.flatten().is_none().then(|| CanaryEnd::of_unreadable(*run, reason.to_owned())))
    }

    async fn configuration(&self, run: RunId) -> Result<Option<String>, StoreError> {
        Ok(self.store.run(run).await?.map(|run| configuration(&run.definition)))
    }
}

/// What was read; `None` when it cannot be, whenever it is tried.
fn known<T>(read: Result<T, StoreError>, reason: &str) -> Result<Option<T>, StoreError> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(away @ StoreError::Away(_)) => Err(away),
        Err(error) => {
            left_out(&error, reason);
            Ok(None)
        }
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
