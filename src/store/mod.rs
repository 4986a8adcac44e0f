//! What must survive a crash, and what must be true together.
//!
//! The store speaks of runs: what must be true together is one call and one
//! transaction. `sql/` is one text for both databases; `postgres` and `sqlite`
//! hold what differs.

mod error;
mod liveness;
mod open;
mod outage;
pub mod postgres;
mod records;
mod registry;
pub mod sqlite;

pub use open::{migrate, open};
pub use records::*;
pub use registry::{Condemned, EvidenceAge, Judge, Marked, OldEvidence, Pruning, Registry};

use open::{migrate_error, newer_schema};

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::adapter::Posted;
use crate::domain::Timestamp;
use crate::domain::canary::{CanaryRecord, Ripe, Ripening};
use crate::domain::event::Event;
use crate::domain::evidence::LabelCounts;
pub use crate::domain::evidence::{
    EvidenceMinute, MinuteCounts, ObservationBatch, PairedError, Prediction, ScoredRow, ScoredRows,
    TruthBatch,
};
use crate::domain::history::ChangedBy;
use crate::domain::id::{
    CanaryId, Epoch, EventId, Generation, InstanceId, ModelName, NotifierName, RunId, StepId, TargetName,
    VersionName, WorkerId, WorkflowName,
};
use crate::domain::pull::{PullState, PulledBatch};
use crate::domain::release::Release;
use crate::domain::run::{Attempt, CancelRequest, Intent, Outcome, Run, SignalKind};
use crate::domain::version::{Manifest, VersionRecord, VersionState};

/// Why the database did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be reached, or lost the connection: try again.
    #[error("the database is away: {0}")]
    Away(String),
    /// It cannot be used as it is; the text says what to do.
    #[error("{problem}")]
    Unusable {
        /// What is wrong.
        problem: String,
        /// What to do.
        hint: String,
    },
    /// The run has another epoch, or the attempt is no longer `started`: touch nothing.
    #[error("another worker has taken this run over")]
    Fenced,
    /// It refused a statement: refit's own mistake, or a damaged file.
    #[error("the database refused: {0}")]
    Broken(String),
}

impl StoreError {
    /// The same error for another who waits for the same transaction.
    pub(crate) fn same(&self) -> Self {
        match self {
            StoreError::Away(text) => StoreError::Away(text.clone()),
            StoreError::Unusable { problem, hint } => {
                StoreError::Unusable { problem: problem.clone(), hint: hint.clone() }
            }
            StoreError::Fenced => StoreError::Fenced,
            StoreError::Broken(text) => StoreError::Broken(text.clone()),
        }
    }
}

/// How long a lease lasts that its owner does not renew.
pub const LEASE: Duration = Duration::from_secs(10);

/// A run that was woken and not taken is woken again after this: the wake-up may have been lost.
const SAFETY_NET: Duration = Duration::from_secs(30);

/// The name of the queue that carries wake-ups.
const QUEUE: &str = "refit";

/// A wake-up in the queue: it names the run and nothing else; the store knows the rest.
#[derive(Debug, Serialize, Deserialize)]
struct Wakeup {
    run: RunId,
}

/// Told of runs to advance. Losing or doubling a call is harmless.
#[async_trait]
pub trait OnWake: Send + Sync + 'static {
    /// Advance `run`, if it is due and free.
    async fn advance(&self, run: RunId);
}

/// Everything refit keeps. Times come from the caller; on Postgres, unless the
/// caller's clock is virtual, the database's own time decides leases and what
/// is due.
#[async_trait]
pub trait Store: Registry {
    /// This database's instance id.
    fn instance(&self) -> InstanceId;
    /// `sqlite` or `postgres`, with the place, without credentials.
    fn label(&self) -> String;
    /// Whether several machines can share it.
    fn is_shared(&self) -> bool;
    /// Whether it answers.
    async fn ping(&self) -> Result<(), StoreError>;
    /// Waits for writes under way and closes.
    async fn close(&self);

    // Events and runs.

    /// Keeps an event and makes its runs, with their wake-ups, in one transaction.
    async fn submit(&self, event: &Event, runs: Vec<NewRun>) -> Result<Vec<Submitted>, StoreError>;
    /// An event.
    async fn event(&self, id: EventId) -> Result<Option<Event>, StoreError>;
    /// Events, newest first.
    async fn events(&self, before: Option<EventId>, limit: u32) -> Result<Vec<Event>, StoreError>;
    /// A run.
    async fn run(&self, id: RunId) -> Result<Option<Run>, StoreError>;
    /// Runs, newest first.
    async fn runs(&self, filter: &RunFilter) -> Result<Vec<RunSummary>, StoreError>;
    /// All attempts of a run, oldest first.
    async fn attempts(&self, run: RunId) -> Result<Vec<Attempt>, StoreError>;
    /// The intents of a run, oldest first.
    async fn intents(&self, run: RunId) -> Result<Vec<Intent>, StoreError>;
    /// Output of `step` in the newest other run of `workflow` that ended as `succeeded`, `promoted`,
    /// `rolled_back` or is past it.
    async fn previous_output(
        &self,
        workflow: &WorkflowName,
        before: RunId,
        step: &StepId,
    ) -> Result<Option<Value>, StoreError>;
    /// Outcomes of the newest finished runs of a workflow, newest first.
    async fn recent_outcomes(&self, workflow: &WorkflowName, limit: u32) -> Result<Vec<Outcome>, StoreError>;

    // The engine.

    /// Announces a worker; what it holds is free once it is dead.
    async fn register_worker(
        &self,
        worker: WorkerId,
        labels: &[String],
        at: Timestamp,
    ) -> Result<(), StoreError>;
    /// How many registered workers are alive: whether somebody works on what is queued and watches canaries.
    async fn live_workers(&self) -> Result<u32, StoreError>;
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
    /// Writes a checkpoint. `Fenced` when the run has another epoch or the attempt is not `started`.
    async fn checkpoint(&self, checkpoint: Checkpoint) -> Result<(), StoreError>;
    /// Gives a run back without a checkpoint (shutdown): its lease is free, it is woken at once, no crash is counted.
    async fn release_lease(&self, run: RunId, epoch: Epoch) -> Result<(), StoreError>;
    /// Records an intent under the fence; an earlier one with its key is returned as it is.
    async fn intend(&self, run: RunId, epoch: Epoch, intent: &Intent) -> Result<Intent, StoreError>;
    /// Records what came of an intent, under the fence.
    async fn settle(&self, run: RunId, epoch: Epoch, key: &str, result: &Value) -> Result<(), StoreError>;
    /// Queues notices outside a checkpoint; a known key is dropped.
    async fn queue_notices(&self, notices: &[Notice], at: Timestamp) -> Result<(), StoreError>;
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
    /// Wakes runs that are due and those whose worker is dead; returns how many, and when the next one is due.
    async fn reap(&self, at: Timestamp) -> Result<(usize, Option<Timestamp>), StoreError>;
    /// Delivers wake-ups until `stop`: those of this process at once, those of others as fast as the
    /// database tells. Restarts what carries them as often as it must.
    async fn deliver_wakeups(
        &self,
        to: std::sync::Arc<dyn OnWake>,
        concurrency: usize,
        stop: CancellationToken,
    );
    /// Another process of this machine wrote a wake-up: look now.
    fn poke(&self);
    /// Changes whenever this process wrote a wake-up, or was poked.
    fn news(&self) -> tokio::sync::watch::Receiver<u64>;
    /// What is due at `at`, and what will be next.
    async fn due(&self, at: Timestamp) -> Result<Due, StoreError>;
    /// Gives back what the database keeps for this process while it does nothing: sessions, idle connections.
    async fn rest(&self);

    // Schedules.

    /// Makes the schedules of `workflow` those of `rows`: unchanged ones keep their next tick.
    async fn sync_schedules(&self, workflow: &WorkflowName, rows: &[ScheduleRow]) -> Result<(), StoreError>;
    /// All schedules.
    async fn schedules(&self) -> Result<Vec<ScheduleRow>, StoreError>;
    /// Moves a schedule from the tick it was read at to the next one and submits, in one transaction;
    /// false when another process was first.
    async fn fire_schedule(
        &self,
        id: &str,
        read_at: Timestamp,
        next: Timestamp,
        submissions: Vec<(Event, Vec<NewRun>)>,
    ) -> Result<bool, StoreError>;

    // The outbox.

    /// Takes messages that are due, for `hold`, so that no other process sends them meanwhile.
    async fn take_outbox(
        &self,
        limit: u32,
        hold: Duration,
        at: Timestamp,
    ) -> Result<Vec<OutboxEntry>, StoreError>;
    /// Takes a message again that was taken until `held_until`, for `hold` from now: when that ends. `None` when its
    /// hold is over and somebody else took it, or it was sent: it is not this process's to send.
    async fn hold_outbox(
        &self,
        id: i64,
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

    // Boards: one message a run, kept up to date.

    /// The run went on: its message at each of `boards` is out of date.
    async fn touch_boards(
        &self,
        run: RunId,
        boards: &[NotifierName],
        at: Timestamp,
    ) -> Result<(), StoreError>;
    /// Takes messages that are out of date, for `hold`, so that no other process rewrites them meanwhile.
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
    /// Takes a message again that was taken until `held_until`, for `hold` from now: when that ends. `None` when its
    /// hold is over and somebody else took it: it is not this process's to show.
    async fn hold_board(
        &self,
        run: RunId,
        notifier: &NotifierName,
        held_until: Timestamp,
        hold: Duration,
        at: Timestamp,
    ) -> Result<Option<Timestamp>, StoreError>;
    /// A message that was taken was not even tried: it is due at `due_at`, and that it was taken does not count; it
    /// waits since `board.waits_since`. One that somebody else took meanwhile is left alone.
    async fn board_waits(&self, board: &BoardEntry, due_at: Timestamp) -> Result<(), StoreError>;
    /// Where the message about a run is.
    async fn board_of(&self, run: RunId, notifier: &NotifierName) -> Result<Option<Posted>, StoreError>;

    // Logs.

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

    // Versions.

    /// Names a version, reserving it, with `name_of`, which is given all names ever taken of the model; the same
    /// for one run and step until it is abandoned.
    async fn reserve_version(
        &self,
        by: &Reservation,
        name_of: VersionNamer<'_>,
    ) -> Result<VersionRecord, StoreError>;
    /// Changes the state of a version; with its manifest, base URL and manifest hash when it is sealed.
    async fn set_version_state(
        &self,
        model: &ModelName,
        version: &VersionName,
        state: VersionState,
        sealed: Option<(&Manifest, &str, &str)>,
        fence: Option<(RunId, Epoch)>,
    ) -> Result<(), StoreError>;
    /// Records a version that was not made by a run.
    async fn adopt_version(&self, record: &VersionRecord, by: &ChangedBy) -> Result<(), StoreError>;
    /// A version.
    async fn version(
        &self,
        model: &ModelName,
        version: &VersionName,
    ) -> Result<Option<VersionRecord>, StoreError>;
    /// Sealed and bad versions of a model, newest first.
    async fn versions(&self, model: &ModelName) -> Result<Vec<VersionRecord>, StoreError>;
    /// All models that have a version, a release or a run.
    async fn models(&self) -> Result<Vec<ModelName>, StoreError>;

    // Releases.

    /// A release.
    async fn release(&self, model: &ModelName, target: &TargetName) -> Result<Option<Release>, StoreError>;
    /// All releases; of one model when given.
    async fn releases(&self, model: Option<&ModelName>) -> Result<Vec<Release>, StoreError>;
    /// Compare-and-set of a release.
    async fn write_release(&self, write: ReleaseWrite) -> Result<ReleaseWritten, StoreError>;
    /// Records that the host shows `generation`, if it is the newest one known to be shown.
    async fn release_applied(
        &self,
        model: &ModelName,
        target: &TargetName,
        generation: Generation,
    ) -> Result<(), StoreError>;
    /// Extends `valid_until` of the canary of a release without a new generation.
    async fn extend_canary_validity(
        &self,
        model: &ModelName,
        target: &TargetName,
        generation: Generation,
        until: Timestamp,
    ) -> Result<(), StoreError>;
    /// Changes of a release, newest first.
    async fn release_history(
        &self,
        model: &ModelName,
        target: &TargetName,
        limit: u32,
    ) -> Result<Vec<ReleaseAudit>, StoreError>;

    // Canaries and evidence.

    /// Records a canary; the one this run opened before is returned as it is.
    async fn open_canary(&self, epoch: Epoch, canary: &CanaryRecord) -> Result<CanaryRecord, StoreError>;
    /// The newest canary of a run.
    async fn canary_of(&self, run: RunId) -> Result<Option<CanaryRecord>, StoreError>;
    /// Canaries that are watched or bake; those due for a look when `due_at` is given.
    async fn live_canaries(&self, due_at: Option<Timestamp>) -> Result<Vec<CanaryRecord>, StoreError>;
    /// Takes a look: compare-and-set of `next_look_at`; false when another process was first.
    async fn take_look(&self, id: CanaryId, read: Timestamp, next: Timestamp) -> Result<bool, StoreError>;
    /// Saves what a look found and queues what it says, in one transaction, if the canary still is in the state and
    /// stage it was read in and nobody took a later look; false when not.
    async fn save_look(
        &self,
        before: &CanaryRecord,
        after: &CanaryRecord,
        notices: &[Notice],
    ) -> Result<bool, StoreError>;
    /// Ends a bake as promoted, unless a look has found that the version fails: then the controller takes it back.
    /// Returns the canary as it is now.
    async fn end_bake(&self, id: CanaryId, at: Timestamp) -> Result<CanaryRecord, StoreError>;
    /// Changes the state of a canary: promoted with or without bake, ended.
    async fn set_canary_state(
        &self,
        id: CanaryId,
        state: crate::domain::canary::CanaryState,
        bake_until: Option<Timestamp>,
        reason: &str,
        at: Timestamp,
    ) -> Result<(), StoreError>;
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
}
