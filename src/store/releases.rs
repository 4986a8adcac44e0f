//! Which version serves where.

use async_trait::async_trait;
use serde::Serialize;

use super::{Notice, StoreError};
use crate::domain::Timestamp;
use crate::domain::because::Because;
use crate::domain::canary::CanaryRecord;
use crate::domain::freeze::Freeze;
use crate::domain::id::{CanaryId, Epoch, Generation, ModelName, RunId, TargetName, VersionName};
use crate::domain::release::{Assignment, Release, ReleaseActor};
use crate::domain::run::Intent;

/// A change of a release.
#[derive(Debug, Clone, PartialEq)]
pub struct ReleaseWrite {
    /// The model.
    pub model: ModelName,
    /// The target.
    pub target: TargetName,
    /// The generation that was read; 0 when there is no row.
    pub expected: Generation,
    /// What should be served.
    pub assignment: Assignment,
    /// The run whose canary is out after the change.
    pub owner: Option<RunId>,
    /// Who changes it.
    pub actor: ReleaseActor,
    /// Why, for the audit.
    pub because: Because,
    /// When.
    pub at: Timestamp,
    /// For a run: its fence and the intent that is recorded in the same transaction.
    pub by_run: Option<ReleaseWriteByRun>,
    /// A canary that ends with the change. In the same transaction its run, if it is another one, is told with a
    /// `RolledBack` signal and woken; if it says nothing of it any more, what it leaves unsaid is queued.
    pub ends_canary: Option<CanaryEnd>,
    /// A version that is marked `bad` in the same transaction.
    pub marks_bad: Option<VersionName>,
    /// Messages about it that are queued in the same transaction.
    pub notices: Vec<Notice>,
    /// It is not made while the model is frozen.
    pub heeds_freeze: bool,
}

/// The end of a canary, with a change of the release that shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct CanaryEnd {
    /// Whose.
    pub run: RunId,
    /// Which; `None`: the one that is watched or bakes, whose record cannot be read.
    pub canary: Option<CanaryId>,
    /// Why.
    pub reason: String,
    /// What is said of it if its run is over, or ends for another reason, and says nothing of it any more.
    pub if_run_is_over: Vec<Notice>,
}

impl CanaryEnd {
    /// The end of `canary`, of which nobody hears beside its run.
    pub fn of(canary: &CanaryRecord, reason: String) -> Self {
        Self { canary: Some(canary.id), ..Self::of_unreadable(canary.run, reason) }
    }

    /// The end of what `run` has out, whatever is in its record.
    pub fn of_unreadable(run: RunId, reason: String) -> Self {
        Self { run, canary: None, reason, if_run_is_over: vec![] }
    }
}

/// What a run adds to a change of a release.
#[derive(Debug, Clone, PartialEq)]
pub struct ReleaseWriteByRun {
    /// The run.
    pub run: RunId,
    /// The fence.
    pub epoch: Epoch,
    /// The intent; a second one with its key makes the whole call return the release as it is.
    pub intent: Intent,
    /// The first write of a promotion: refused once a cancel was asked for, and marks the run `committed`.
    pub promotes: bool,
}

/// What came of a change of a release.
#[derive(Debug, Clone, PartialEq)]
pub enum ReleaseWritten {
    /// It was made, now or by an earlier attempt of the same operation.
    Made(Release),
    /// The generation has moved.
    Moved(Option<Release>),
    /// A cancel was asked for first.
    CancelRequested,
    /// A version that it would serve was deleted, or is about to be.
    Deleted(VersionName),
    /// It heeds freezes, and the model is frozen.
    Frozen(Freeze),
}

/// One change of a release, as kept for the audit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReleaseAudit {
    /// The generation it made.
    pub generation: Generation,
    /// What is served since.
    pub assignment: Assignment,
    /// Who.
    pub actor: ReleaseActor,
    /// Why.
    pub reason: String,
    /// When.
    pub at: Timestamp,
}

/// Keeps releases, each change by compare-and-set.
#[async_trait]
pub trait Releases: Send + Sync + 'static {
    /// A release.
    async fn release(&self, model: &ModelName, target: &TargetName) -> Result<Option<Release>, StoreError>;
    /// All releases; of one model when given.
    async fn releases(&self, model: Option<&ModelName>) -> Result<Vec<Release>, StoreError>;
    /// Compare-and-set of a release.
    async fn write_release(&self, write: ReleaseWrite) -> Result<ReleaseWritten, StoreError>;
    /// Records that the host shows `generation`, if it is the newest one known to be shown.
    async fn release_applied(
        &self,
        model: &ModelName,
        target: &TargetName,
        generation: Generation,
    ) -> Result<(), StoreError>;
    /// Extends `valid_until` of the canary of a release without a new generation.
    async fn extend_canary_validity(
        &self,
        model: &ModelName,
        target: &TargetName,
        generation: Generation,
        until: Timestamp,
    ) -> Result<(), StoreError>;
    /// Changes of a release, newest first.
    async fn release_history(
        &self,
        model: &ModelName,
        target: &TargetName,
        limit: u32,
    ) -> Result<Vec<ReleaseAudit>, StoreError>;
}
