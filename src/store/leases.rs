//! Workers, and the runs they hold: whoever has a run's newest epoch writes to it, and nobody else.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;

use super::{Notice, StoreError};
use crate::domain::Timestamp;
use crate::domain::id::{Epoch, NotifierName, RunId, StepId, WorkerId};
use crate::domain::run::{
    Attempt, AttemptState, CancelRequest, Intent, Outcome, Run, RunStatus, Signal, StepFailure,
};

/// How long a lease lasts that its owner does not renew.
pub const LEASE: Duration = Duration::from_secs(10);

/// How long a worker is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stay {
    /// Until it is told to stop: a server, that works on what is queued and watches canaries.
    Open,
    /// Until the run that it is there for has ended, or nothing is due.
    Short,
}

/// How many workers are alive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LiveWorkers {
    /// Those that stay: with one of them, what is queued is worked on, and canaries are watched.
    pub servers: u32,
    /// Those that will be gone.
    pub visitors: u32,
}

/// A run taken by a worker.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The run, with its new epoch.
    pub run: Run,
    /// All attempts, oldest first, those that this claim started included.
    pub attempts: Vec<Attempt>,
    /// Its intents, oldest first.
    pub intents: Vec<Intent>,
    /// Its signals, oldest first.
    pub signals: Vec<Signal>,
    /// Counts what it was told so far: its signals, and wishes to cancel.
    pub heard: i64,
}

/// What came of trying to claim a run.
#[derive(Debug, Clone)]
pub enum ClaimResult {
    /// It is ours.
    Claimed(Box<Claim>),
    /// A live worker has it.
    Taken,
    /// It sleeps: not due, and no new signal.
    NotDue,
    /// Its concurrency key is held by another run; it is woken when that one ends.
    KeyTaken,
    /// It ended, or was never made.
    Gone,
    /// The plan leaves it to another worker.
    Left,
}

/// What a claim writes beside the lease: decided by the caller from what the transaction read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Opening {
    /// Attempts found `started` by an older epoch: now `lost`. Those that it does not name stay `started`, and
    /// that epoch writes nothing of them either.
    pub lost: Vec<(StepId, u32)>,
    /// Attempts that go on: `sleeping` to `started` under the new epoch.
    pub woken: Vec<(StepId, u32)>,
    /// Attempts that end because the run does.
    pub cancelled: Vec<(StepId, u32)>,
    /// New attempts.
    pub started: Vec<NewAttempt>,
    /// Steps that are skipped, with the reason.
    pub skipped: Vec<(StepId, String)>,
    /// Where the run stands now.
    pub status: Option<RunStatus>,
}

/// Decides an `Opening` from the run as it was read; nothing when this worker is not the one to take it.
pub type Planner<'a> = &'a (dyn Fn(&Claim) -> Option<Opening> + Send + Sync);

/// An attempt about to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewAttempt {
    /// The step.
    pub step: StepId,
    /// Counted from 1.
    pub attempt: u32,
}

/// One checkpoint: all of it or, when fenced, nothing.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// The run.
    pub run: RunId,
    /// The fence.
    pub epoch: Epoch,
    /// The attempt that ended or went to sleep; must be `started` under this epoch.
    pub ended: Option<EndedAttempt>,
    /// How many attempts the run had before: the place of the first that begins.
    pub place: u32,
    /// Attempts that go on: `sleeping` to `started`.
    pub woken: Vec<(StepId, u32)>,
    /// Attempts that begin.
    pub started: Vec<NewAttempt>,
    /// Steps that are skipped, with the reason; their places follow.
    pub skipped: Vec<(StepId, String)>,
    /// Attempts that sleep, or wait to be tried again, and end because the run does.
    pub cancelled: Vec<(StepId, u32)>,
    /// Where the run stands then.
    pub run_state: RunState,
    /// What becomes of the undos.
    pub undos: UndoChange,
    /// Messages to queue.
    pub notices: Vec<Notice>,
    /// Notifiers whose message about the run is out of date then.
    pub boards: Vec<NotifierName>,
    /// When it happened.
    pub at: Timestamp,
}

impl Checkpoint {
    /// What begins and is kept in the row of the attempt that ended, until it ends itself, so that a checkpoint from one
    /// step to the next writes one row.
    pub fn next(&self) -> Option<&NewAttempt> {
        match self.started.as_slice() {
            [next] if self.ended.is_some() && self.skipped.is_empty() => Some(next),
            _ => None,
        }
    }

    /// What begins and has a row of its own from its beginning.
    pub fn with_rows(&self) -> &[NewAttempt] {
        if self.next().is_some() { &[] } else { &self.started }
    }
}

/// How an attempt ended, or went to sleep.
#[derive(Debug, Clone, PartialEq)]
pub struct EndedAttempt {
    /// The step.
    pub step: StepId,
    /// The attempt.
    pub attempt: u32,
    /// The attempt in whose row this one is kept, while it has none of its own: see `Checkpoint::next`.
    pub begun_in: Option<(StepId, u32)>,
    /// `Succeeded`, `Failed`, `Cancelled` or `Sleeping`.
    pub state: AttemptState,
    /// What it returned.
    pub output: Option<Value>,
    /// Why it failed.
    pub error: Option<StepFailure>,
    /// What it left for itself.
    pub resume: Option<Value>,
    /// When it wakes up, or the next attempt begins.
    pub wake_at: Option<Timestamp>,
}

/// Where a run stands after a checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub enum RunState {
    /// The worker keeps it and goes on.
    Kept {
        /// `Running` or `Undoing`.
        status: RunStatus,
        /// How it will end, once that is known; from then on each checkpoint of the epoch says it.
        ending: Option<(Outcome, String)>,
    },
    /// The worker gives it back.
    Parked {
        /// `Running` (woken at once), `Waiting`, `Held` or `Undoing`; `Held` frees the concurrency key.
        status: RunStatus,
        /// How it will end, once that is known.
        ending: Option<(Outcome, String)>,
        /// When it is woken; only by a signal when absent. A time already past wakes it at once.
        wake_at: Option<Timestamp>,
        /// What all of its sleepers have heard, as `Claim::heard` counts; more wakes it at once.
        heard: i64,
    },
    /// It ended: lease and key are free, the next run of the key is woken.
    Finished {
        /// How.
        outcome: Outcome,
        /// Why.
        reason: String,
    },
}

/// What a checkpoint does to the intents of its run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UndoChange {
    /// The promotion is recorded: no undo stands any more.
    pub kill_all: bool,
    /// Keys of intents whose undo was done.
    pub done: Vec<String>,
}

/// What renewing a lease found.
#[derive(Debug, Clone, PartialEq)]
pub enum Renewal {
    /// The run is still ours; somebody may want it cancelled, or have sent it a signal.
    Held {
        /// The wish to cancel.
        cancel: Option<CancelRequest>,
        /// What it was told so far, as `Claim::heard` counts.
        told: i64,
    },
    /// It is not: stop, touch nothing.
    Lost,
}

/// Gives runs to workers, and takes their checkpoints.
#[async_trait]
pub trait Leases: Send + Sync + 'static {
    /// Announces a worker; what it holds is free once it is dead.
    async fn register_worker(
        &self,
        worker: WorkerId,
        labels: &[String],
        stay: Stay,
        at: Timestamp,
    ) -> Result<(), StoreError>;
    /// Who is alive of the registered workers.
    async fn live_workers(&self) -> Result<LiveWorkers, StoreError>;
    /// Takes a worker off the list; its leases are free.
    async fn retire_worker(&self, worker: WorkerId) -> Result<(), StoreError>;
    /// Takes a run: raises its epoch, sets the lease, counts a crash when the last holder left no
    /// checkpoint, takes the concurrency key on the first claim, and writes what `plan` says, in one transaction.
    async fn claim(
        &self,
        run: RunId,
        worker: WorkerId,
        lease: Duration,
        at: Timestamp,
        plan: Planner<'_>,
    ) -> Result<ClaimResult, StoreError>;
    /// Extends a lease.
    async fn renew(
        &self,
        run: RunId,
        epoch: Epoch,
        lease: Duration,
        at: Timestamp,
    ) -> Result<Renewal, StoreError>;
    /// Writes a checkpoint; one that was written already is done. `Fenced` when the run has another epoch or the attempt is
    /// not `started`.
    async fn checkpoint(&self, checkpoint: Checkpoint) -> Result<(), StoreError>;
    /// Gives a run back without a checkpoint (shutdown): its lease is free, it is woken at once, no crash is counted.
    async fn release_lease(&self, run: RunId, epoch: Epoch) -> Result<(), StoreError>;
    /// Records an intent under the fence; an earlier one with its key is returned as it is.
    async fn intend(&self, run: RunId, epoch: Epoch, intent: &Intent) -> Result<Intent, StoreError>;
    /// Records what came of an intent, under the fence.
    async fn settle(&self, run: RunId, epoch: Epoch, key: &str, result: &Value) -> Result<(), StoreError>;
    /// Wakes runs that are due and those whose worker is dead; returns how many, and when the next one is due.
    async fn reap(&self, at: Timestamp) -> Result<(usize, Option<Timestamp>), StoreError>;
}
