//! What steps print.

use async_trait::async_trait;

use super::StoreError;
use crate::domain::Timestamp;
use crate::domain::id::{RunId, StepId};

/// A piece of a step's log.
#[derive(Debug, Clone, PartialEq)]
pub struct LogChunk {
    /// The run.
    pub run: RunId,
    /// The step.
    pub step: StepId,
    /// The attempt.
    pub attempt: u32,
    /// Its number within the run: the cursor.
    pub seq: i64,
    /// When it was written.
    pub at: Timestamp,
    /// Up to 64 KiB, secrets masked.
    pub bytes: Vec<u8>,
}

/// Keeps what steps print, in chunks.
#[async_trait]
pub trait Logs: Send + Sync + 'static {
    /// Appends to a step's log; gives the chunk its number.
    async fn append_log(
        &self,
        run: RunId,
        step: &StepId,
        attempt: u32,
        bytes: &[u8],
        at: Timestamp,
    ) -> Result<(), StoreError>;
    /// Log of a run after `after`, oldest first; of one step when given.
    async fn read_log(
        &self,
        run: RunId,
        step: Option<&StepId>,
        after: i64,
        limit: u32,
    ) -> Result<Vec<LogChunk>, StoreError>;
}
