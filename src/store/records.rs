//! What goes into the store and comes out of it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::adapter::Posted;
use crate::domain::Timestamp;
use crate::domain::id::{
    CanaryId, Epoch, Generation, ModelName, NotifierName, RunId, StepId, StoreName, TargetName, VersionName,
    WorkflowName,
};
use crate::domain::pull::PullState;
use crate::domain::release::{Assignment, Release, ReleaseActor};
use crate::domain::run::{
    Attempt, AttemptState, CancelRequest, Intent, Outcome, Run, RunStatus, Signal, StepFailure,
};
use crate::domain::workflow::{ConcurrencyPolicy, Moment, Recipient};

/// A run to be made, with its first wake-up.
#[derive(Debug, Clone)]
pub struct NewRun {
    /// The run, `Queued`, epoch 0.
    pub run: Run,
    /// What happens when its key is taken.
    pub policy: ConcurrencyPolicy,
    /// With the same key (schedule and tick, event and workflow), only one run is ever made.
    pub dedup_key: String,
    /// Not before.
    pub start_at: Timestamp,
}

/// What became of a `NewRun`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Submitted {
    /// It was made.
    Made(RunId),
    /// The dedup key made this run before.
    Already(RunId),
    /// The concurrency policy is `skip` and this run holds the key.
    Busy(RunId),
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
}

/// What a claim writes beside the lease: decided by the caller from what the transaction read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Opening {
    /// Attempts found `started` by an older epoch: now `lost`.
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

/// Decides an `Opening` from the run as it was read.
pub type Planner<'a> = &'a (dyn Fn(&Claim) -> Opening + Send + Sync);

/// Names a version, given all names ever taken of its model, oldest first.
pub type VersionNamer<'a> = &'a (dyn Fn(&[VersionName]) -> VersionName + Send + Sync);

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
    /// Attempts that begin.
    pub started: Vec<NewAttempt>,
    /// Steps that are skipped, with the reason.
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

/// How an attempt ended, or went to sleep.
#[derive(Debug, Clone, PartialEq)]
pub struct EndedAttempt {
    /// The step.
    pub step: StepId,
    /// The attempt.
    pub attempt: u32,
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
        /// How it will end, once that is known.
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

/// What renewing a lease found.
#[derive(Debug, Clone, PartialEq)]
pub enum Renewal {
    /// The run is still ours; somebody may want it cancelled; this is its newest signal.
    Held {
        /// The wish to cancel.
        cancel: Option<CancelRequest>,
    },
    /// It is not: stop, touch nothing.
    Lost,
}

/// Which runs a list shows; newest first.
#[derive(Debug, Clone, Default)]
pub struct RunFilter {
    /// Of this workflow.
    pub workflow: Option<WorkflowName>,
    /// Of this model.
    pub model: Option<ModelName>,
    /// With this status.
    pub status: Option<RunStatus>,
    /// Older than this run: the cursor.
    pub before: Option<RunId>,
    /// At most this many.
    pub limit: u32,
}

/// A run in a list.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunSummary {
    /// Its id.
    pub id: RunId,
    /// The workflow.
    pub workflow: WorkflowName,
    /// The model.
    pub model: ModelName,
    /// Where it stands.
    pub status: RunStatus,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// Why.
    pub reason: Option<String>,
    /// The name of the event that made it.
    pub event: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
}

/// What waits for its time.
#[derive(Debug, Clone, PartialEq)]
pub struct Due {
    /// Runs that could go on now and that nobody has in hand, but none that waits for its turn; no more than a few
    /// hundred.
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

/// A schedule as kept.
#[derive(Debug, Clone, PartialEq)]
pub struct ScheduleRow {
    /// `workflow/index`.
    pub id: String,
    /// The workflow.
    pub workflow: WorkflowName,
    /// The cron expression and zone it was computed from: a changed one starts anew.
    pub expression: String,
    /// The next tick.
    pub next_fire_at: Timestamp,
}

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

/// A change of a release.
#[derive(Debug, Clone, PartialEq)]
pub struct ReleaseWrite {
    /// The model.
    pub model: ModelName,
    /// The target.
    pub target: TargetName,
    /// The generation that was read; 0 when there is no row.
    pub expected: Generation,
    /// What should be served.
    pub assignment: Assignment,
    /// The run whose canary is out after the change.
    pub owner: Option<RunId>,
    /// Who changes it.
    pub actor: ReleaseActor,
    /// Why, in plain words, for the audit.
    pub reason: String,
    /// When.
    pub at: Timestamp,
    /// For a run: its fence and the intent that is recorded in the same transaction.
    pub by_run: Option<ReleaseWriteByRun>,
    /// A canary that ends with the change, with its reason. In the same transaction its run, if it is another
    /// one, is told with a `RolledBack` signal and woken.
    pub ends_canary: Option<(CanaryId, String)>,
    /// A version that is marked `bad` in the same transaction.
    pub marks_bad: Option<VersionName>,
}

/// What a run adds to a change of a release.
#[derive(Debug, Clone, PartialEq)]
pub struct ReleaseWriteByRun {
    /// The run.
    pub run: RunId,
    /// The fence.
    pub epoch: Epoch,
    /// The intent; a second one with its key makes the whole call return the release as it is.
    pub intent: Intent,
    /// The first write of a promotion: refused once a cancel was asked for, and marks the run `committed`.
    pub promotes: bool,
}

/// What came of a change of a release.
#[derive(Debug, Clone, PartialEq)]
pub enum ReleaseWritten {
    /// It was made, now or by an earlier attempt of the same operation.
    Made(Release),
    /// The generation has moved.
    Moved(Option<Release>),
    /// A cancel was asked for first.
    CancelRequested,
    /// A version that it would serve was deleted, or is about to be.
    Deleted(VersionName),
}

/// Who reserves a version name, for what.
#[derive(Debug, Clone, PartialEq)]
pub struct Reservation {
    /// The run.
    pub run: RunId,
    /// The fence.
    pub epoch: Epoch,
    /// The step.
    pub step: StepId,
    /// The model.
    pub model: ModelName,
    /// The store that will hold it.
    pub store: StoreName,
    /// When.
    pub at: Timestamp,
}

/// One change of a release, as kept for the audit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReleaseAudit {
    /// The generation it made.
    pub generation: Generation,
    /// What is served since.
    pub assignment: Assignment,
    /// Who.
    pub actor: ReleaseActor,
    /// Why.
    pub reason: String,
    /// When.
    pub at: Timestamp,
}

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
