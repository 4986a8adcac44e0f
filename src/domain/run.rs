//! A run and its steps: states, legal transitions, endings.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Timestamp;
use super::event::Cause;
use super::id::{Epoch, Generation, ModelName, RunId, StepId, TargetName, VersionName, WorkflowName};

/// One execution of a workflow, as stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Its id.
    pub id: RunId,
    /// The workflow's name.
    pub workflow: WorkflowName,
    /// The model.
    pub model: ModelName,
    /// The workflow file as it was when the run began.
    pub definition: Definition,
    /// Why it exists.
    pub cause: Cause,
    /// Where it stands.
    pub status: RunStatus,
    /// How it ended, or how it will end once undos and `on_failure` are done.
    pub outcome: Option<Outcome>,
    /// Why it ended so, in plain words.
    pub reason: Option<String>,
    /// The fencing token.
    pub epoch: Epoch,
    /// Activations in a row that ended without a checkpoint.
    pub crashes: u32,
    /// Somebody asked to cancel it.
    pub cancel: Option<CancelRequest>,
    /// The first write of a promotion was made: a cancel comes too late.
    pub committed: bool,
    /// Runs with one key do not run at once.
    pub concurrency_key: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
}

/// A workflow file and all it refers to, as text: what a run goes by to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// The path it was read from, as messages show it.
    pub path: String,
    /// The YAML.
    pub source: String,
    /// `query_file`s, by path.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub files: std::collections::BTreeMap<String, String>,
}

/// A wish to cancel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelRequest {
    /// Who.
    pub actor: String,
    /// Why.
    pub reason: Option<String>,
    /// When.
    pub at: Timestamp,
}

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    /// Made, never claimed; or its concurrency key is taken.
    Queued,
    /// A worker has it, or had it and died.
    Running,
    /// It sleeps until a time, or until somebody approves.
    Waiting,
    /// Its verdict is left to a human: it does not advance and frees its concurrency key; watching goes on.
    Held,
    /// It failed or was cancelled, and its effects are being taken back.
    Undoing,
    /// It ended.
    Finished,
}

impl RunStatus {
    /// The word used in files, databases and expressions.
    pub fn as_str(self) -> &'static str {
        match self {
            RunStatus::Queued => "queued",
            RunStatus::Running => "running",
            RunStatus::Waiting => "waiting",
            RunStatus::Held => "held",
            RunStatus::Undoing => "undoing",
            RunStatus::Finished => "finished",
        }
    }
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// All steps done; nothing was promoted (a workflow without canary, or `mode` is not `act`).
    Succeeded,
    /// The version serves everybody.
    Promoted,
    /// The gate or a data check refused.
    Rejected,
    /// The canary was withdrawn.
    RolledBack,
    /// There was nothing to do.
    Skipped,
    /// A step failed for good.
    Failed,
    /// Somebody cancelled it; its effects were taken back.
    Cancelled,
    /// Somebody cancelled it too late: the promotion was completed.
    CancelledAfterPromotion,
}

impl Outcome {
    /// The word used in files, databases and expressions.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Succeeded => "succeeded",
            Outcome::Promoted => "promoted",
            Outcome::Rejected => "rejected",
            Outcome::RolledBack => "rolled_back",
            Outcome::Skipped => "skipped",
            Outcome::Failed => "failed",
            Outcome::Cancelled => "cancelled",
            Outcome::CancelledAfterPromotion => "cancelled_after_promotion",
        }
    }

    /// Whether effects that were made must be taken back.
    pub fn undoes(self) -> bool {
        match self {
            Outcome::Failed | Outcome::Cancelled => true,
            Outcome::Rejected | Outcome::RolledBack | Outcome::Skipped => true,
            Outcome::Succeeded | Outcome::Promoted | Outcome::CancelledAfterPromotion => false,
        }
    }

    /// Whether a run that is to end so says nothing of a rollback that it is told of.
    pub fn passes_over_rollbacks(self) -> bool {
        match self {
            // It hears of it while it bakes, and ends as rolled back; or it was about to.
            Outcome::Promoted | Outcome::RolledBack => false,
            // With its version on canary still.
            Outcome::Succeeded
            | Outcome::Rejected
            | Outcome::Skipped
            | Outcome::Failed
            | Outcome::Cancelled
            | Outcome::CancelledAfterPromotion => true,
        }
    }
}

/// One attempt of one step, as stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// The step.
    pub step: StepId,
    /// Counted from 1.
    pub attempt: u32,
    /// Where it stands.
    pub state: AttemptState,
    /// The epoch that started it last.
    pub epoch: Epoch,
    /// When its body began first.
    pub started_at: Timestamp,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// What it returned.
    pub output: Option<Value>,
    /// Why it failed, or why it was skipped.
    pub error: Option<StepFailure>,
    /// What it left for itself when it went to sleep.
    pub resume: Option<Value>,
    /// When it wakes up (sleeping), or when the next attempt begins (failed, to be tried again).
    pub wake_at: Option<Timestamp>,
}

impl Attempt {
    /// An attempt that begins.
    pub fn started(step: StepId, attempt: u32, epoch: Epoch, at: Timestamp) -> Self {
        Self {
            step,
            attempt,
            state: AttemptState::Started,
            epoch,
            started_at: at,
            finished_at: None,
            output: None,
            error: None,
            resume: None,
            wake_at: None,
        }
    }

    /// A step that is skipped, with the reason.
    pub fn skipped(step: StepId, reason: String, epoch: Epoch, at: Timestamp) -> Self {
        Self {
            state: AttemptState::Skipped,
            finished_at: Some(at),
            error: Some(StepFailure { kind: FailureKind::Permanent, message: reason, hint: None }),
            ..Self::started(step, 1, epoch, at)
        }
    }
}

/// Why an attempt failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepFailure {
    /// Whether trying again can help.
    pub kind: FailureKind,
    /// What was attempted, on what, and the cause; secrets masked.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
}

/// Whether trying again can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// It can.
    Transient,
    /// It cannot.
    Permanent,
    /// It took longer than its `timeout`; tried again like a transient failure.
    Timeout,
}

/// Where an attempt stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptState {
    /// Its body runs, or ran in a process that died.
    Started,
    /// It gave its worker back until `wake_at` or a signal.
    Sleeping,
    /// It returned.
    Succeeded,
    /// It failed.
    Failed,
    /// Its process died or lost its lease; counts toward `crash_limit`, not toward `retry`.
    Lost,
    /// Its `if:` was false, or a step it needs was skipped.
    Skipped,
    /// The run ended before it did.
    Cancelled,
}

/// What can happen to an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AttemptEvent {
    /// The body returned.
    Returned,
    /// The body failed.
    Errored,
    /// The body went to sleep.
    Slept,
    /// A new activation goes on with it.
    Woken,
    /// A new activation found it started by an older epoch.
    Orphaned,
    /// The run ends.
    Stopped,
}

/// A transition that is not in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an attempt that is {state:?} cannot be {event:?}")]
pub struct IllegalTransition {
    /// Where it stood.
    pub state: AttemptState,
    /// What should have happened.
    pub event: AttemptEvent,
}

impl AttemptState {
    /// The legal transitions; anything else is an error.
    pub fn on(self, event: AttemptEvent) -> Result<AttemptState, IllegalTransition> {
        match (self, event) {
            (AttemptState::Started, AttemptEvent::Returned) => Ok(AttemptState::Succeeded),
            (AttemptState::Started, AttemptEvent::Errored) => Ok(AttemptState::Failed),
            (AttemptState::Started, AttemptEvent::Slept) => Ok(AttemptState::Sleeping),
            (AttemptState::Started, AttemptEvent::Orphaned) => Ok(AttemptState::Lost),
            (AttemptState::Sleeping, AttemptEvent::Woken) => Ok(AttemptState::Started),
            (AttemptState::Started | AttemptState::Sleeping, AttemptEvent::Stopped) => {
                Ok(AttemptState::Cancelled)
            }
            (state, event) => Err(IllegalTransition { state, event }),
        }
    }

    /// The word used in databases.
    pub fn as_str(self) -> &'static str {
        match self {
            AttemptState::Started => "started",
            AttemptState::Sleeping => "sleeping",
            AttemptState::Succeeded => "succeeded",
            AttemptState::Failed => "failed",
            AttemptState::Lost => "lost",
            AttemptState::Skipped => "skipped",
            AttemptState::Cancelled => "cancelled",
        }
    }
}

/// How an outside effect is taken back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "undo")]
pub enum Undo {
    /// Takes the canary of `generation` off the target, if it is still the current one.
    WithdrawCanary {
        /// The model.
        model: ModelName,
        /// The target.
        target: TargetName,
        /// The version on canary.
        version: VersionName,
        /// The generation that set it.
        generation: Generation,
    },
}

/// An outside effect: recorded with its undo before it is made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Intent {
    /// The step.
    pub step: StepId,
    /// `run/step/operation`, the same on every attempt.
    pub key: String,
    /// What is about to be done.
    pub detail: Value,
    /// How it is taken back.
    pub undo: Option<Undo>,
    /// What came of it, once known.
    pub result: Option<Value>,
    /// Whether the undo still stands, was done, or died with the promotion.
    pub state: IntentState,
}

impl Intent {
    /// The key of an operation of a step.
    pub fn key_of(run: RunId, step: &StepId, operation: &str) -> String {
        format!("{run}/{step}/{operation}")
    }
}

/// Whether an intent's undo still stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IntentState {
    /// It would be undone.
    Armed,
    /// It was undone.
    Undone,
    /// It can no longer be undone: the promotion is recorded.
    Dead,
}

/// A message to a run from outside it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Signal {
    /// Its number; signals are read in this order.
    pub id: i64,
    /// What it says.
    pub kind: SignalKind,
    /// Who sent it.
    pub actor: String,
    /// Why.
    pub reason: Option<String>,
    /// When.
    pub at: Timestamp,
}

impl Signal {
    /// Why the version of a run was taken back, as the newest of its `signals` that tells of it says.
    pub fn way_back(signals: &[Self]) -> Option<&str> {
        Self::ways_back(signals).map(|(why, _)| why).next()
    }

    /// The same of those that nobody but the run has heard of.
    pub fn unsaid_way_back(signals: &[Self]) -> Option<&str> {
        Self::ways_back(signals).find_map(|(why, said)| (!said).then_some(why))
    }

    /// Newest first.
    fn ways_back(signals: &[Self]) -> impl Iterator<Item = (&str, bool)> {
        signals.iter().rev().filter_map(|signal| match &signal.kind {
            SignalKind::RolledBack { why, said } => Some((why.as_str(), *said)),
            SignalKind::Approve { .. }
            | SignalKind::Reject { .. }
            | SignalKind::Promote
            | SignalKind::Look => None,
        })
    }
}

/// What a signal says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "signal")]
pub enum SignalKind {
    /// The step may go on.
    Approve {
        /// The step that waits.
        step: StepId,
    },
    /// The step may not go on: the run ends as rejected.
    Reject {
        /// The step that waits.
        step: StepId,
    },
    /// A human promotes this run's canary.
    Promote,
    /// A human, or the controller, rolled this run's canary back.
    RolledBack {
        /// Why, in plain words.
        why: String,
        /// Whether people are told of it with the change itself.
        #[serde(default)]
        said: bool,
    },
    /// The controller has news: look again.
    Look,
}
