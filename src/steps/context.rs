//! What a step is handed, what it gives back, and the ports through which it
//! reaches what the engine keeps. No store here: steps return values and ask
//! the ports; the engine writes.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::adapter::{AdapterError, ArtifactStore, Target};
use crate::clock::Clock;
use crate::domain::Timestamp;
use crate::domain::canary::{CanaryRecord, Foreseen, Looks, Ripening};
use crate::domain::evidence::{PairedError, ScoredRows};
use crate::domain::expr::{Scope, Template};
use crate::domain::freeze::Freeze;
use crate::domain::id::{CanaryId, Generation, InstanceId, StepId, StoreName, TargetName, VersionName};
use crate::domain::release::{Assignment, Release};
use crate::domain::run::{Attempt, FailureKind, Intent, Outcome, Run, Signal, StepFailure, Undo};
use crate::domain::version::{Manifest, VersionRecord};
use crate::domain::workflow::step::{Compare, Naming, Stage};
use crate::domain::workflow::{Moment, Recipient, Workflow};
use crate::secret::Secrets;
use crate::trainers::command::{GuardCommand, Stop};

/// What a step that did not fail gives back.
#[derive(Debug, Clone, PartialEq)]
pub enum StepResult {
    /// It is done.
    Done {
        /// Kept in the checkpoint; `steps.<id>` in expressions.
        output: Value,
    },
    /// The release now shows the new champion: done, and the undos die with this checkpoint.
    Promoted {
        /// As for `Done`.
        output: Value,
    },
    /// It gives its worker back and is called again, with the same attempt, at `until` or at a signal.
    Sleep(Sleep),
    /// The run ends here as `outcome`; steps that follow are not run.
    End {
        /// How the run ends.
        outcome: Outcome,
        /// Why, in plain words.
        reason: String,
        /// As for `Done`.
        output: Value,
    },
}

/// A step that gives its worker back.
#[derive(Debug, Clone, PartialEq)]
pub struct Sleep {
    /// When it is called again; only by a signal when absent.
    pub until: Option<Timestamp>,
    /// Handed back as `StepContext::resume`.
    pub resume: Value,
    /// The run is `held`, not `waiting`: it frees its concurrency key.
    pub held: bool,
    /// The promotion was made before this sleep (a bake): the undos die with this checkpoint.
    pub promoted: bool,
    /// The moment people are told of, once, when it goes to sleep.
    pub tell: Option<(Moment, Value)>,
}

impl StepResult {
    /// `Done` with `output` as JSON.
    pub fn done(output: impl Serialize) -> Result<Self, StepError> {
        Ok(Self::Done { output: to_json(output)? })
    }
}

/// `value` as JSON; what steps return always has a JSON form, so a failure is refit's own mistake.
pub fn to_json(value: impl Serialize) -> Result<Value, StepError> {
    serde_json::to_value(value)
        .map_err(|error| StepError::permanent(format!("cannot write the output: {error}")))
}

/// Why a step did not give anything back.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum StepError {
    /// It failed.
    #[error("{}", failure.message)]
    Failed {
        /// How.
        failure: StepFailure,
        /// When an outside service asks to be tried again.
        retry_after: Option<Duration>,
    },
    /// It stopped because its `cancel` token fired; what comes next is the engine's to say.
    #[error("interrupted")]
    Interrupted,
    /// Another process has the run: touch nothing.
    #[error("another worker has taken this run over")]
    Fenced,
    /// The run was cancelled before the promotion's first write.
    #[error("the run was cancelled")]
    Cancelled,
}

impl StepError {
    /// A failure that trying again does not help.
    pub fn permanent(message: impl Into<String>) -> Self {
        Self::failed(FailureKind::Permanent, message.into(), None)
    }

    /// A failure that trying again may help.
    pub fn transient(message: impl Into<String>) -> Self {
        Self::failed(FailureKind::Transient, message.into(), None)
    }

    /// The same error with what to do next.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        if let Self::Failed { failure, .. } = &mut self {
            failure.hint = Some(hint.into());
        }
        self
    }

    fn failed(kind: FailureKind, message: String, retry_after: Option<Duration>) -> Self {
        Self::Failed { failure: StepFailure { kind, message, hint: None }, retry_after }
    }
}

impl From<AdapterError> for StepError {
    fn from(error: AdapterError) -> Self {
        let kind = if error.is_transient() { FailureKind::Transient } else { FailureKind::Permanent };
        let retry_after = match &error {
            AdapterError::Unavailable { retry_after, .. } => *retry_after,
            AdapterError::Denied { .. } | AdapterError::Rejected { .. } | AdapterError::Conflict { .. } => {
                None
            }
        };
        Self::failed(kind, error.to_string(), retry_after)
    }
}

impl From<crate::domain::expr::ExprError> for StepError {
    fn from(error: crate::domain::expr::ExprError) -> Self {
        Self::permanent(error.to_string())
    }
}

/// Everything a step is handed.
pub struct StepContext<'a> {
    /// The run.
    pub run: &'a Run,
    /// Its workflow, parsed from the run's own snapshot.
    pub workflow: &'a Workflow,
    /// This step.
    pub step: &'a StepId,
    /// This attempt, counted from 1.
    pub attempt: u32,
    /// What this attempt left for itself when it went to sleep.
    pub resume: Option<&'a Value>,
    /// Attempts of this run that ended, oldest first.
    pub history: &'a [Attempt],
    /// Signals to this run, oldest first.
    pub signals: &'a [Signal],
    /// Roots of expressions, without `secrets`: `render` adds those it needs.
    pub scope: &'a Scope,
    /// Directories.
    pub dirs: &'a Dirs,
    /// Fires when the step must stop: timeout, cancel, shutdown, lost lease.
    pub cancel: CancellationToken,
    /// Fires when processes of the step must be gone at once: the run is another worker's any moment now.
    pub force: CancellationToken,
    /// Where lines of log go.
    pub log: Arc<dyn StepLog>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// What `refit.toml` names.
    pub services: &'a Services,
    /// What the engine keeps.
    pub ledger: &'a dyn Ledger,
}

impl StepContext<'_> {
    /// How a command of this step is told to stop.
    pub fn stop(&self) -> Stop {
        Stop { ask: self.cancel.clone(), force: self.force.clone() }
    }

    /// `run/step/operation`: the key of an outside effect, the same on every attempt.
    pub fn key(&self, operation: &str) -> String {
        Intent::key_of(self.run.id, self.step, operation)
    }

    /// `template` over this step's scope, its secrets resolved.
    pub fn render(&self, template: &Template) -> Result<String, StepError> {
        Ok(template.render(&self.scope_with_secrets(template.secret_names())?)?)
    }

    /// This step's scope with these secrets in it.
    pub fn scope_with_secrets(&self, names: impl IntoIterator<Item = String>) -> Result<Scope, StepError> {
        let mut values = serde_json::Map::new();
        for name in names {
            let known =
                name.parse().map_err(|error| StepError::permanent(format!("secrets.{name}: {error}")))?;
            let secret = self.services.secrets.get(&known);
            let secret = secret.map_err(|missing| StepError::permanent(missing.to_string()))?;
            values.insert(name, Value::String(secret.reveal().to_owned()));
        }
        Ok(self.scope.clone().with("secrets", Value::Object(values)))
    }

    /// The output of the latest successful step that has the form of `T`, with its step.
    pub fn latest_output<T: DeserializeOwned>(&self) -> Option<(&StepId, T)> {
        self.history.iter().rev().find_map(|attempt| {
            let output = attempt.output.as_ref()?;
            Some((&attempt.step, T::deserialize(output).ok()?))
        })
    }

    /// The output of `step`, if it succeeded and has the form of `T`.
    pub fn output_of<T: DeserializeOwned>(&self, step: &StepId) -> Option<T> {
        let attempt =
            self.history.iter().rev().find(|attempt| &attempt.step == step && attempt.output.is_some())?;
        T::deserialize(attempt.output.as_ref()?).ok()
    }
}

/// Where a step finds and leaves files.
#[derive(Debug, Clone)]
pub struct Dirs {
    /// The project: where `refit.toml` is; commands run here.
    pub project: PathBuf,
    /// Of this run: fetched data.
    pub data: PathBuf,
    /// Of this attempt alone: artifacts, metrics, errors. Empty when the attempt begins.
    pub attempt: PathBuf,
    /// Of this run: artifacts that a step kept for the steps after it, by step.
    pub kept: PathBuf,
    /// Files of versions, fetched for `$REFIT_CHAMPION`.
    pub versions: PathBuf,
}

/// Takes what a step says.
pub trait StepLog: Send + Sync {
    /// Raw output, secrets masked by the receiver; may be cut at any byte.
    fn write(&self, bytes: &[u8]);
    /// A line of refit's own.
    fn note(&self, line: &str);
    /// How far it is: percent and what it does.
    fn progress(&self, percent: Option<f64>, message: &str);
}

/// What `refit.toml` names, built.
#[derive(Clone)]
pub struct Services {
    /// This database's instance.
    pub instance: InstanceId,
    /// `[stores.*]`.
    pub stores: Arc<std::collections::BTreeMap<StoreName, ArtifactStore>>,
    /// `[targets.*]`.
    pub targets: Arc<std::collections::BTreeMap<TargetName, Arc<dyn Target>>>,
    /// Secrets by name.
    pub secrets: Secrets,
    /// For `http` and `fetch`.
    pub http: reqwest::Client,
    /// What commands run under.
    pub guard: GuardCommand,
}

/// A wish to change a release.
#[derive(Debug, Clone, PartialEq)]
pub struct ReleaseChange {
    /// The target.
    pub target: TargetName,
    /// What the operation is called in this run's intents.
    pub operation: Cow<'static, str>,
    /// The generation that was read; 0 when there is no row yet.
    pub expected: Generation,
    /// What should be served.
    pub assignment: Assignment,
    /// Whether the canary of this run goes out, stays or ends with the change.
    pub kind: ReleaseChangeKind,
    /// It is not made while the model is frozen.
    pub heeds_freeze: bool,
    /// Why, in a sentence.
    pub reason: String,
}

/// What a change does to the ownership of a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReleaseChangeKind {
    /// This run's canary goes out: it owns the release, and the change has an undo.
    SetCanary,
    /// This run's version becomes champion: the first write of a promotion, refused once a cancel was asked for.
    Promote,
    /// This run's canary ends without promotion.
    Withdraw,
}

/// Why a release was not changed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ReleaseRefused {
    /// Somebody changed it in between.
    #[error("the release is now at generation {actual}, not {expected}")]
    Moved {
        /// What was expected.
        expected: Generation,
        /// What is there.
        actual: Generation,
    },
    /// It heeds freezes, and the model is frozen.
    #[error("{0}")]
    Frozen(Box<Freeze>),
    /// Fenced, cancelled, or the database is away.
    #[error(transparent)]
    Step(#[from] StepError),
}

/// A promotion whose first write is made: it is completed, unless somebody took it back.
#[derive(Debug, Clone, PartialEq)]
pub struct Promotion {
    /// Why it was made.
    pub reason: String,
    /// The release as it is now.
    pub release: Release,
    /// Who made another version serve since, and why: a sentence.
    pub replaced: Option<String>,
}

/// A canary to be watched.
#[derive(Debug, Clone, PartialEq)]
pub struct CanaryOpening {
    /// The target.
    pub target: TargetName,
    /// The version on canary.
    pub version: VersionName,
    /// What it is compared with.
    pub champion: VersionName,
    /// The generation that set it.
    pub generation: Generation,
    /// Its stages; the first is out.
    pub stages: Vec<Stage>,
    /// The rules.
    pub rules: Compare,
    /// When an undecided canary is inconclusive for good; none when the workflow sets none.
    pub deadline: Option<Timestamp>,
}

/// What the engine keeps for steps. Every write is fenced by the run's epoch.
#[async_trait]
pub trait Ledger: Send + Sync {
    /// Records that `operation` is about to be made, with its undo, in one commit. An earlier
    /// attempt's record is returned as it is.
    async fn intend(&self, operation: &str, detail: Value, undo: Option<Undo>) -> Result<Intent, StepError>;
    /// Records what came of an operation.
    async fn settle(&self, operation: &str, result: Value) -> Result<(), StepError>;

    /// Takes the next name for a version of this run's model; the same on every attempt of this
    /// step, until `abandon_version`.
    async fn reserve_version(&self, store: &StoreName, naming: Naming) -> Result<VersionRecord, StepError>;
    /// Gives a reserved name up: a foreign claim was found in the store.
    async fn abandon_version(&self, version: &VersionName) -> Result<(), StepError>;
    /// Records that a version is whole and immutable.
    async fn seal_version(&self, manifest: &Manifest, base_url: &str, sha256: &str) -> Result<(), StepError>;
    /// Deletes what nothing needs of this model's versions in `store` beyond the newest `latest`; says what
    /// came of it, in lines for people.
    async fn keep_latest(&self, store: &StoreName, latest: u32) -> Result<Vec<String>, StepError>;
    /// A version of this run's model.
    async fn version(&self, version: &VersionName) -> Result<Option<VersionRecord>, StepError>;
    /// Output of `step` in the last run of this workflow in which it succeeded and that was not rejected.
    async fn previous_output(&self, step: &StepId) -> Result<Option<Value>, StepError>;

    /// The release of this run's model on `target`.
    async fn release(&self, target: &TargetName) -> Result<Option<Release>, StepError>;
    /// The releases of this run's model on all targets that `refit.toml` names and where something serves.
    async fn releases(&self) -> Result<Vec<Release>, StepError>;
    /// Compare-and-set of a release, with its intent and undo in the same transaction. When an earlier
    /// attempt of this step made the same operation, its release is returned.
    async fn change_release(&self, change: ReleaseChange) -> Result<Release, ReleaseRefused>;
    /// The promotion on `target` that this attempt of this step made, or one before it.
    async fn promotion(&self, target: &TargetName) -> Result<Option<Promotion>, StepError>;
    /// The freeze in force over this run's model.
    async fn freeze(&self) -> Result<Option<Freeze>, StepError>;
    /// Who looks at canaries.
    fn looks(&self) -> Looks;
    /// How often they do, where they are live.
    fn look_every(&self) -> Duration;
    /// Records that the host shows `generation`.
    async fn release_applied(&self, target: &TargetName, generation: Generation) -> Result<(), StepError>;

    /// Rolls `target` back: drops the canary that is out, else goes to `to` or the newest good version.
    /// Returns the release once it is decided; the caller applies it. When an earlier attempt of this step
    /// decided it, nothing is decided again, and the release is returned as it is now.
    async fn roll_back(&self, target: &TargetName, to: Option<&VersionName>) -> Result<Release, StepError>;

    /// What such a canary could show if it went out now; none when too little is known of the traffic.
    async fn foresee(&self, opening: &CanaryOpening) -> Result<Option<Foreseen>, StepError>;
    /// Begins to watch; the same canary on every attempt of this step.
    async fn open_canary(&self, opening: CanaryOpening) -> Result<CanaryId, StepError>;
    /// What is known of this run's canary.
    async fn canary(&self) -> Result<Option<CanaryRecord>, StepError>;
    /// The pairs of errors of these versions that the evidence has after the number `after`, oldest first.
    async fn scored(
        &self,
        stable: &VersionName,
        canary: &VersionName,
        after: i64,
    ) -> Result<Vec<PairedError>, StepError>;
    /// Pairs of these versions whose request came of age, by when it was served.
    async fn came_of_age(
        &self,
        stable: &VersionName,
        canary: &VersionName,
        wanted: Ripening,
    ) -> Result<Vec<PairedError>, StepError>;
    /// Adds pairs of errors to the evidence, each row once; returns how many were new.
    async fn add_scored(&self, scored: &ScoredRows) -> Result<u64, StepError>;
    /// The watching of a canary of this run goes on after promotion until `bake_until`, or ends. Returns the canary as it
    /// is now: an earlier attempt may have begun its bake.
    async fn canary_promoted(
        &self,
        canary: CanaryId,
        bake_until: Option<Timestamp>,
    ) -> Result<CanaryRecord, StepError>;
    /// Ends the bake of a canary of this run as promoted, unless the controller takes it back or is about to.
    async fn end_bake(&self, canary: CanaryId) -> Result<CanaryRecord, StepError>;
    /// A canary of this run that is watched ends: withdrawn, or taken off.
    async fn close_canary(&self, canary: CanaryId, reason: &str) -> Result<(), StepError>;

    /// Queues a message, once per step and operation.
    async fn tell(
        &self,
        operation: &str,
        to: &[Recipient],
        moment: Moment,
        facts: Value,
    ) -> Result<(), StepError>;
}
