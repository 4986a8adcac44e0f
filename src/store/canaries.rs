//! Canaries, and what each look at them found.

use async_trait::async_trait;

use super::{Notice, StoreError};
use crate::domain::Timestamp;
use crate::domain::canary::{CanaryRecord, CanaryState, MoreTime, NotExtended};
use crate::domain::id::{CanaryId, Epoch, ModelName, RunId};

/// What came of a wish to give a canary more time.
#[derive(Debug, Clone, PartialEq)]
pub enum Extended {
    /// It has it.
    Made(Box<CanaryRecord>),
    /// It has not.
    Refused(NotExtended),
    /// The run had no canary.
    Unknown,
}

/// A change of the state of a canary: promoted with or without bake, ended.
#[derive(Debug, Clone, PartialEq)]
pub struct CanaryChange {
    /// It.
    pub canary: CanaryId,
    /// Its model.
    pub model: ModelName,
    /// The state that was read.
    pub from: CanaryState,
    /// The new one.
    pub to: CanaryState,
    /// The end of the bake that begins.
    pub bake_until: Option<Timestamp>,
    /// Why; when absent, what the last look said stays.
    pub reason: Option<String>,
    /// For a run: its fence. Whatever anybody else changes, the canary's run is told in the same transaction, and woken.
    pub by_run: Option<(RunId, Epoch)>,
    /// When.
    pub at: Timestamp,
}

/// Keeps canaries, each look by one process.
#[async_trait]
pub trait Canaries: Send + Sync + 'static {
    /// Records a canary; the one this run opened before is returned as it is.
    async fn open_canary(&self, epoch: Epoch, canary: &CanaryRecord) -> Result<CanaryRecord, StoreError>;
    /// The newest canary of a run.
    async fn canary_of(&self, run: RunId) -> Result<Option<CanaryRecord>, StoreError>;
    /// Canaries that are watched or bake; those due for a look when `due_at` is given. One that cannot be read is left out,
    /// the log says so, and its look is put off.
    async fn live_canaries(&self, due_at: Option<Timestamp>) -> Result<Vec<CanaryRecord>, StoreError>;
    /// Takes a look: compare-and-set of `next_look_at`; false when another process was first.
    async fn take_look(&self, id: CanaryId, read: Timestamp, next: Timestamp) -> Result<bool, StoreError>;
    /// Saves what a look found, queues what it says and tells the run of a new verdict, in one transaction, if the canary
    /// still is in the state and stage it was read in and nobody took a later look; false when not.
    async fn save_look(
        &self,
        before: &CanaryRecord,
        after: &CanaryRecord,
        notices: &[Notice],
    ) -> Result<bool, StoreError>;
    /// Gives the newest canary of a run more time, keeps who did so with the evidence of that moment, and wakes the run,
    /// in one transaction. A look that is under way loses nothing, and takes nothing of it back.
    async fn extend_canary(
        &self,
        run: RunId,
        asked: &MoreTime,
        at: Timestamp,
    ) -> Result<Extended, StoreError>;
    /// Ends a bake of a run as promoted, unless a look has found that the version fails: then the controller takes it
    /// back. Returns the canary as it is now.
    async fn end_bake(
        &self,
        canary: CanaryId,
        model: &ModelName,
        by: (RunId, Epoch),
        at: Timestamp,
    ) -> Result<CanaryRecord, StoreError>;
    /// Changes the state of a canary, if it still is in the one it is changed from. Returns it as it is now.
    async fn set_canary_state(&self, change: &CanaryChange) -> Result<CanaryRecord, StoreError>;
}
