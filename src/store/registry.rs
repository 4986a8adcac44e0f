//! What is kept of versions beyond their making: pins, marks, deletion, and
//! who changed what.
//!
//! A version is deleted in two steps. `condemn_version` asks, in the same
//! transaction that marks it `deleting`, whether anything needs it; from then
//! on no release may name it. Whoever deleted its files says `version_deleted`.
//! Changes of releases and pins take the model's lock, so that of a promotion
//! and a deletion one comes first and the other sees it.

use async_trait::async_trait;

use super::StoreError;
use crate::domain::Timestamp;
use crate::domain::history::{ChangedBy, HistoryEntry};
use crate::domain::id::{Generation, ModelName, TargetName, VersionName};
use crate::domain::retention::{Fate, Holdings, Pin};
use crate::domain::version::VersionRecord;

/// Decides from what the transaction read.
pub type Judge<'a> = &'a (dyn Fn(&Holdings) -> Fate + Send + Sync);

/// What came of condemning a version.
#[derive(Debug, Clone, PartialEq)]
pub enum Condemned {
    /// It is `deleting`, now or since before: nothing names it from here on.
    Deleting(Box<VersionRecord>),
    /// Something speaks for it.
    Kept(Fate),
}

/// What came of a pin or a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marked {
    /// It was made.
    Made,
    /// It was so before.
    Already,
    /// There is no such whole version.
    Unknown,
}

/// Pins, marks, deletion and history of versions.
#[async_trait]
pub trait Registry: Send + Sync + 'static {
    /// Everything that may need a version of `model`; assignments that ended before `since` are left out
    /// unless a host may show them still.
    async fn holdings(&self, model: &ModelName, since: Timestamp) -> Result<Holdings, StoreError>;
    /// Marks a version `deleting` if `judge`, given what the transaction reads, lets it go.
    async fn condemn_version(
        &self,
        model: &ModelName,
        version: &VersionName,
        since: Timestamp,
        judge: Judge<'_>,
        by: &ChangedBy,
    ) -> Result<Condemned, StoreError>;
    /// Records that the files of a version that was `deleting` are gone.
    async fn version_deleted(
        &self,
        model: &ModelName,
        version: &VersionName,
        by: &ChangedBy,
    ) -> Result<(), StoreError>;
    /// Pins a whole version, or takes its pin off.
    async fn pin_version(
        &self,
        model: &ModelName,
        version: &VersionName,
        pinned: bool,
        by: &ChangedBy,
    ) -> Result<Marked, StoreError>;
    /// Marks a whole version bad, so that no rollback chooses it, or good again.
    async fn mark_version(
        &self,
        model: &ModelName,
        version: &VersionName,
        bad: bool,
        by: &ChangedBy,
    ) -> Result<Marked, StoreError>;
    /// Pins; of one model when given.
    async fn pins(&self, model: Option<&ModelName>) -> Result<Vec<Pin>, StoreError>;
    /// Changes of releases and versions, newest first; of one model when given.
    async fn history(&self, model: Option<&ModelName>, limit: u32) -> Result<Vec<HistoryEntry>, StoreError>;
    /// The change of a release that made `generation`.
    async fn release_change(
        &self,
        model: &ModelName,
        target: &TargetName,
        generation: Generation,
    ) -> Result<Option<HistoryEntry>, StoreError>;
    /// The same as `history` of one model, all of what was changed from one moment to another, both included; until now when absent.
    async fn history_during(
        &self,
        model: &ModelName,
        from: Timestamp,
        until: Option<Timestamp>,
    ) -> Result<Vec<HistoryEntry>, StoreError>;
}
