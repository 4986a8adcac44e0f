//! Wake-ups: hints that a run is due. Losing or doubling one is harmless: `reap` finds what is due.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::StoreError;
use crate::domain::Timestamp;
use crate::domain::id::RunId;

/// A run that was woken and not taken is woken again after this: the wake-up may have been lost.
pub(super) const SAFETY_NET: Duration = Duration::from_secs(30);

/// The name of the queue that carries wake-ups.
pub(super) const QUEUE: &str = "refit";

/// A wake-up in the queue: it names the run and nothing else; the store knows the rest.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Wakeup {
    pub(super) run: RunId,
}

/// Told of runs to advance. Losing or doubling a call is harmless.
#[async_trait]
pub trait OnWake: Send + Sync + 'static {
    /// Advance `run`, if it is due and free.
    async fn advance(&self, run: RunId);
    /// `run` was told something while a worker has it, or any run where none is named: whoever has it looks now, not with
    /// the next renewal of its lease.
    fn told(&self, run: Option<RunId>);
}

/// What waits for its time.
#[derive(Debug, Clone, PartialEq)]
pub struct Due {
    /// Runs that could go on now and that nobody has in hand, but none that waits for its turn.
    pub runs: Vec<RunId>,
    /// When the first of each kind is due; a time that has passed is due now.
    pub soonest: Vec<(Awaited, Timestamp)>,
}

/// A kind of thing that refit does by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Awaited {
    /// A run wakes.
    Run,
    /// The lease of a process that does not live any more ends.
    Lease,
    /// A canary is looked at.
    Look,
    /// A message is sent, or tried again.
    Message,
    /// A message that follows a run is brought up to date.
    Board,
}

/// Carries wake-ups, and knows what is due.
#[async_trait]
pub trait Wakeups: Send + Sync + 'static {
    /// Delivers wake-ups until `stop`: those of this process at once, those of others as fast as the
    /// database tells. Restarts what carries them as often as it must.
    async fn deliver_wakeups(&self, to: Arc<dyn OnWake>, concurrency: usize, stop: CancellationToken);
    /// Another process of this machine wrote a wake-up, or told a run something: look now.
    fn poke(&self);
    /// Changes whenever this process wrote a wake-up, or was poked.
    fn news(&self) -> watch::Receiver<u64>;
    /// What is due at `at`, and what will be next.
    async fn due(&self, at: Timestamp) -> Result<Due, StoreError>;
    /// Gives back what the database keeps for this process while it does nothing: sessions, idle connections.
    async fn rest(&self);
}
