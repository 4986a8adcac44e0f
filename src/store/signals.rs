//! What people and other parts of refit tell a run.

use async_trait::async_trait;

use super::StoreError;
use crate::domain::Timestamp;
use crate::domain::id::RunId;
use crate::domain::run::{CancelRequest, SignalKind};

/// Tells runs.
#[async_trait]
pub trait Signals: Send + Sync + 'static {
    /// Sends a signal to a run that has not ended, and wakes it; false when it ended.
    async fn signal(
        &self,
        run: RunId,
        kind: &SignalKind,
        actor: &str,
        reason: Option<&str>,
        at: Timestamp,
    ) -> Result<bool, StoreError>;
    /// Asks a run to cancel, and wakes it; false when it ended.
    async fn request_cancel(&self, run: RunId, request: &CancelRequest) -> Result<bool, StoreError>;
}
