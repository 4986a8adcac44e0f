//! Boards: one message a run, kept up to date.

use std::time::Duration;

use async_trait::async_trait;

use super::StoreError;
use crate::adapter::Posted;
use crate::domain::Timestamp;
use crate::domain::id::{NotifierName, RunId};

/// A message about a run that is kept up to date, taken to be shown.
#[derive(Debug, Clone, PartialEq)]
pub struct BoardEntry {
    /// The run.
    pub run: RunId,
    /// Who shows it.
    pub notifier: NotifierName,
    /// What it was raised to when it was taken.
    pub revision: i64,
    /// Where the message is, once it was posted.
    pub place: Option<Posted>,
    /// The hash of what the message says.
    pub shows: Option<String>,
    /// How often this was tried since the message was last up to date.
    pub attempts: u32,
    /// Since when it waits for a turn; `None` when it had none to wait for since it was last up to date.
    pub waits_since: Option<Timestamp>,
    /// When this hold ends. No two holds of one message end at the same time.
    pub held_until: Timestamp,
}

/// Gives each message to one process at a time.
#[async_trait]
pub trait Boards: Send + Sync + 'static {
    /// The run went on: its message at each of `boards` is out of date.
    async fn touch_boards(
        &self,
        run: RunId,
        boards: &[NotifierName],
        at: Timestamp,
    ) -> Result<(), StoreError>;
    /// Takes messages that are out of date, for `hold`, so that no other process rewrites them meanwhile. What a dead
    /// worker took is free as messages are.
    async fn take_boards(
        &self,
        limit: u32,
        hold: Duration,
        at: Timestamp,
    ) -> Result<Vec<BoardEntry>, StoreError>;
    /// A message now is at `place` and says what hashes to `shows`; it is due at `again_at` if the run went on meanwhile.
    async fn board_shown(
        &self,
        board: &BoardEntry,
        place: &Posted,
        shows: &str,
        again_at: Timestamp,
    ) -> Result<(), StoreError>;
    /// A message was not brought up to date: tried again at `retry_at`; without one, when the run has gone on, which
    /// is at `again_at` if it did so meanwhile. Neither this nor the above touches one that somebody else took meanwhile.
    async fn board_failed(
        &self,
        board: &BoardEntry,
        error: &str,
        retry_at: Option<Timestamp>,
        again_at: Timestamp,
    ) -> Result<(), StoreError>;
    /// Takes a message again that was taken, for `hold` from now: when that ends. `None` when somebody else took it, or
    /// may have: it is not this process's to show. Where the answer was lost, a worker may ask again.
    async fn hold_board(
        &self,
        board: &BoardEntry,
        hold: Duration,
        at: Timestamp,
    ) -> Result<Option<Timestamp>, StoreError>;
    /// A message that was taken was not even tried: it is due at `due_at`, and that it was taken does not count; it
    /// waits since `board.waits_since`. One that somebody else took meanwhile is left alone.
    async fn board_waits(&self, board: &BoardEntry, due_at: Timestamp) -> Result<(), StoreError>;
    /// Where the message about a run is.
    async fn board_of(&self, run: RunId, notifier: &NotifierName) -> Result<Option<Posted>, StoreError>;
}
