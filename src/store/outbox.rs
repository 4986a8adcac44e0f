//! Messages to be sent.

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::StoreError;
use crate::domain::Timestamp;
use crate::domain::id::{ModelName, RunId};
use crate::domain::workflow::{Moment, Recipient};

/// A message to be queued with a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Notice {
    /// The same however often it is queued: a second one with it is dropped.
    pub key: String,
    /// The run it is about, if any.
    pub run: Option<RunId>,
    /// The model it is about.
    pub model: ModelName,
    /// What happened.
    pub moment: Moment,
    /// Who is told.
    pub to: Recipient,
    /// What a template may show; secrets masked.
    pub facts: Value,
}

/// A queued message.
#[derive(Debug, Clone, PartialEq)]
pub struct OutboxEntry {
    /// Its number.
    pub id: i64,
    /// The message.
    pub notice: Notice,
    /// How often it was tried.
    pub attempts: u32,
    /// When it was queued.
    pub queued_at: Timestamp,
    /// When it was sent.
    pub sent_at: Option<Timestamp>,
    /// Given up: tried too often or refused for good.
    pub dead: bool,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// When it is taken next, unless it is over; of one that was just taken: when that hold ends. No two holds of
    /// one message end at the same time.
    pub due_at: Option<Timestamp>,
}

/// Gives each message to one process at a time.
#[async_trait]
pub trait Outbox: Send + Sync + 'static {
    /// Queues notices outside a checkpoint; a known key is dropped.
    async fn queue_notices(&self, notices: &[Notice], at: Timestamp) -> Result<(), StoreError>;
    /// Takes messages that are due, for `hold`, so that no other process sends them meanwhile. Those that a registered
    /// worker took are due at once when it is dead: known by its lock file, or `SILENT_FOR` after its session ended.
    async fn take_outbox(
        &self,
        limit: u32,
        hold: Duration,
        at: Timestamp,
    ) -> Result<Vec<OutboxEntry>, StoreError>;
    /// Takes a message again whose try `attempts` was to last until `held_until`, for `hold` from now: when that ends.
    /// `None` when somebody else took it, or may have, or it was sent: it is not this process's to send. Where the answer
    /// was lost, a worker may ask again.
    async fn hold_outbox(
        &self,
        id: i64,
        attempts: u32,
        held_until: Option<Timestamp>,
        hold: Duration,
        at: Timestamp,
    ) -> Result<Option<Timestamp>, StoreError>;
    /// Messages that were taken were not even tried: they are due at `due_at`, and that they were taken does not
    /// count. Those that somebody else took meanwhile are left alone.
    async fn outbox_waits(&self, entries: &[&OutboxEntry], due_at: Timestamp) -> Result<(), StoreError>;
    /// A message was sent.
    async fn outbox_sent(&self, id: i64, at: Timestamp) -> Result<(), StoreError>;
    /// A message was not sent: tried again at `retry_at`, or given up. One that somebody else took meanwhile is left
    /// alone.
    async fn outbox_failed(
        &self,
        entry: &OutboxEntry,
        error: &str,
        retry_at: Option<Timestamp>,
    ) -> Result<(), StoreError>;
    /// Messages about a run, oldest first.
    async fn outbox_of(&self, run: RunId) -> Result<Vec<OutboxEntry>, StoreError>;
}
