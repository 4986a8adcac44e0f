//! What is kept of versions beyond their making: pins, marks, deletion, and
//! who changed what.
//!
//! A version is deleted in two steps. `condemn_version` asks, in the same
//! transaction that marks it `deleting`, whether anything needs it; from then
//! on no release may name it. Whoever deleted its files says `version_deleted`.
//! Changes of releases and pins take the model's lock, so that of a promotion
//! and a deletion one comes first and the other sees it.

use async_trait::async_trait;
use serde::Serialize;

use super::StoreError;
use crate::domain::Timestamp;
use crate::domain::history::{ChangedBy, HistoryEntry};
use crate::domain::id::{ModelName, VersionName};
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

/// Evidence older than this is of no use any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EvidenceAge {
    /// Predictions and truths that never found each other.
    pub unmatched: Timestamp,
    /// Ids of batches.
    pub batch_ids: Timestamp,
    /// Minutes of requests, and pairs of errors; what a run that has not ended may read stays all the same.
    pub counted: Timestamp,
}

/// Rows of old evidence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct OldEvidence {
    /// Predictions without a truth.
    pub predictions: u64,
    /// Truths without a prediction.
    pub truths: u64,
    /// Ids of batches.
    pub batch_ids: u64,
    /// Pairs of errors.
    pub pairs: u64,
    /// Minutes of requests: counts of them, and how many had their truth.
    pub minutes: u64,
}

impl OldEvidence {
    /// All rows.
    pub fn total(&self) -> u64 {
        self.kinds().iter().map(|(count, ..)| count).sum()
    }

    /// How many of each kind: one of them, of what, and why they may go.
    pub fn kinds(&self) -> [(u64, &'static str, &'static str, &'static str); 5] {
        [
            (self.predictions, "prediction", "", "no truth came for them"),
            (self.truths, "truth", "", "no prediction came for them"),
            (self.batch_ids, "batch id", "", "nobody sends them again"),
            (self.pairs, "pair", " of errors", "no canary looks back so far"),
            (self.minutes, "minute", " of evidence", "no canary looks back so far"),
        ]
    }
}

/// When old evidence is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pruning {
    /// The next time; nothing before the first `move_pruning`.
    pub due_at: Option<Timestamp>,
    /// The time that this database goes by.
    pub now: Timestamp,
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
    /// The same of one model, all of what was changed from one moment to another, both included; until now when absent.
    async fn history_during(
        &self,
        model: &ModelName,
        from: Timestamp,
        until: Option<Timestamp>,
    ) -> Result<Vec<HistoryEntry>, StoreError>;
    /// Deletes old evidence, or only counts it, and returns how much it was.
    async fn forget_evidence(&self, older: &EvidenceAge, only_count: bool)
    -> Result<OldEvidence, StoreError>;
    /// When old evidence is due to be deleted next; nobody has asked before where there is no such time.
    async fn pruning(&self, at: Timestamp) -> Result<Pruning, StoreError>;
    /// Moves that time from where it was read to `next`; false when another process was first.
    async fn move_pruning(&self, read: Option<Timestamp>, next: Timestamp) -> Result<bool, StoreError>;
}
