//! What is known of requests: counts by minute, and pairs of errors where the truth is known, too.

use async_trait::async_trait;
use serde::Serialize;

use super::StoreError;
use crate::domain::Timestamp;
use crate::domain::canary::{Ripe, Ripening};
use crate::domain::evidence::{
    EvidenceMinute, LabelCounts, ObservationBatch, PairedError, ScoredRows, TruthBatch,
};
use crate::domain::id::{Epoch, ModelName, RunId, VersionName};
use crate::domain::pull::{PullState, PulledBatch};

/// How far fetched evidence was read.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Pulled {
    /// The model.
    pub model: ModelName,
    /// The kind of source.
    pub source: String,
    /// How far.
    pub state: PullState,
}

/// What came of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct BatchReceipt {
    /// The batch was known: nothing was changed.
    pub duplicate: bool,
    /// Rows that count.
    pub accepted: u64,
    /// Truths whose request is not known (yet): kept until it is.
    pub unmatched: u64,
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
        self.predictions + self.truths + self.batch_ids + self.pairs + self.minutes
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

/// Keeps evidence, each request once.
#[async_trait]
pub trait Evidence: Send + Sync + 'static {
    /// Adds a batch of observations, once; truths that waited for them are matched.
    async fn observe(&self, batch: &ObservationBatch) -> Result<BatchReceipt, StoreError>;
    /// Adds a batch of truths, once.
    async fn add_truth(&self, batch: &TruthBatch) -> Result<BatchReceipt, StoreError>;
    /// Adds pairs of errors of rows that a run scored itself, each once, and matches what the app reported of them;
    /// fails when the run is another's. Returns how many were new.
    async fn add_scored(
        &self,
        run: RunId,
        epoch: Epoch,
        model: &ModelName,
        scored: &ScoredRows,
    ) -> Result<u64, StoreError>;
    /// How far fetched evidence was read: of one model, or of all.
    async fn pulls(&self, model: Option<&ModelName>) -> Result<Vec<Pulled>, StoreError>;
    /// Keeps a page of fetched evidence with the state after it, in one transaction, and returns that state as it is
    /// kept: requests that an earlier page held are not counted again. `None` when another process read since.
    async fn keep_pulled(&self, batch: &PulledBatch) -> Result<Option<PullState>, StoreError>;
    /// Minutes of these versions whose `seq` is above `after`, by `seq`.
    async fn evidence(
        &self,
        model: &ModelName,
        versions: &[VersionName],
        after: i64,
        limit: u32,
    ) -> Result<Vec<EvidenceMinute>, StoreError>;
    /// Pairs of errors of two versions after `after`, oldest first. With one version twice, its errors
    /// on every request it scored.
    async fn paired_errors(
        &self,
        model: &ModelName,
        canary: &VersionName,
        stable: &VersionName,
        after: i64,
        limit: u32,
    ) -> Result<Vec<PairedError>, StoreError>;
    /// Requests of a version with a prediction, served since the minute of `since`.
    async fn labelled(
        &self,
        model: &ModelName,
        version: &VersionName,
        since: Timestamp,
    ) -> Result<LabelCounts, StoreError>;
    /// Pairs that were read before their request was old enough and now count, by time of the request, and minutes in
    /// which all requests are old enough.
    async fn ripe(
        &self,
        model: &ModelName,
        canary: &VersionName,
        stable: &VersionName,
        wanted: &Ripening,
        limit: u32,
    ) -> Result<Ripe, StoreError>;
    /// Deletes old evidence, or only counts it, and returns how much it was.
    async fn forget_evidence(&self, older: &EvidenceAge, only_count: bool)
    -> Result<OldEvidence, StoreError>;
    /// When old evidence is due to be deleted next; nobody has asked before where there is no such time.
    async fn pruning(&self, at: Timestamp) -> Result<Pruning, StoreError>;
    /// Moves that time from where it was read to `next`; false when another process was first.
    async fn move_pruning(&self, read: Option<Timestamp>, next: Timestamp) -> Result<bool, StoreError>;
}
