//! A workflow file as types: parsed once, checked once, never re-read.
//!
//! `parse` turns text into these types and reports every mistake with its
//! place; `check` finds what only the whole file shows; `schema` describes it
//! to editors.

mod check;
mod check_flow;
mod checker;
mod decode;
mod decode_step;
pub mod diagnostic;
pub mod evidence;
mod keys;
mod keys_command;
mod keys_step;
mod node;
pub mod plan;
mod read;
pub mod schema;
mod shape;
pub mod step;
pub mod trigger;
pub mod units;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::string::FromUtf8Error;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::expr::{Expr, Template};
use super::id::{MetricName, ModelName, NotifierName, SecretName, StepId, WorkflowName};
use super::retry::RetryPolicy;
use super::run::Outcome;
pub use check::{CANARY_FIELDS, EVENT_FIELDS};
pub use decode::{parse, parse_file, referenced_files};
pub use diagnostic::{Diagnostic, Diagnostics, Severity};
pub use step::StepKind;
pub use trigger::Triggers;

/// A place in a file, both counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The column, in characters.
    pub column: usize,
}

impl Position {
    /// Where the text `before` ends.
    pub fn after(before: &str) -> Self {
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Self { line, column }
    }

    /// Where the first byte is that is no UTF-8.
    pub fn of_not_utf8(error: &FromUtf8Error) -> Self {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        Self::after(&String::from_utf8_lossy(valid))
    }
}

/// What to do with a file that is no text.
pub const SAVE_AS_UTF8: &str = "save the file as text in UTF-8";

/// Where a file is not UTF-8, and what to do about it.
pub fn not_utf8(error: &FromUtf8Error) -> String {
    let Position { line, column } = Position::of_not_utf8(error);
    format!("line {line}, column {column} is not UTF-8; {SAVE_AS_UTF8}")
}

/// One workflow file, understood.
#[derive(Debug, Clone)]
pub struct Workflow {
    /// `name:`, what `refit trigger` takes.
    pub name: WorkflowName,
    /// `model:`, what versions, releases and evidence belong to.
    pub model: ModelName,
    /// `mode:`; `Act` when absent.
    pub mode: Mode,
    /// `on:`.
    pub triggers: Triggers,
    /// `concurrency:`.
    pub concurrency: Concurrency,
    /// `metrics:`, the offline metrics and which direction is better.
    pub metrics: BTreeMap<MetricName, Better>,
    /// `evidence:`: where it is fetched, when it is not only pushed.
    pub evidence: Option<evidence::Pull>,
    /// `steps:`, in the order of the file.
    pub steps: Vec<Step>,
    /// `on_failure:`, run in order when the run fails, after the undos.
    pub on_failure: Vec<Step>,
    /// `notify:`.
    pub notify: Vec<NotifyRule>,
    /// The names of all secrets its expressions use.
    pub secrets: BTreeSet<SecretName>,
}

impl Workflow {
    /// The step called `id`, in `steps` or `on_failure`.
    pub fn step(&self, id: &StepId) -> Option<&Step> {
        self.steps.iter().chain(&self.on_failure).find(|step| &step.id == id)
    }

    /// The rules a canary goes by, with the step that holds them.
    pub fn rules_of(&self, canary: &step::Canary) -> Option<(&StepId, &step::Compare)> {
        let wanted = canary.compare.as_ref()?;
        let step = self.steps.iter().find(|step| &step.id == wanted)?;
        let StepKind::Compare(compare) = &step.kind else { return None };
        Some((&step.id, compare))
    }

    /// How long the step `canary` has to decide.
    pub fn longest_watch(&self, canary: &StepId) -> Option<Duration> {
        longest_watch(self.steps.iter().skip_while(|step| &step.id != canary).skip(1))
    }
}

/// How long the first `wait` or `shadow` among the steps after a canary lasts at the most: its time to decide.
fn longest_watch<'s>(after: impl IntoIterator<Item = &'s Step>) -> Option<Duration> {
    let wait = after.into_iter().find_map(|step| step.kind.wait())?;
    Some(wait.at_most.unwrap_or(wait.at_least))
}

impl Workflow {
    /// A workflow that does nothing: stands in for a snapshot that cannot be read, so that its run can end.
    pub fn empty(name: &WorkflowName, model: &ModelName) -> Self {
        Self {
            name: name.clone(),
            model: model.clone(),
            mode: Mode::Observe,
            triggers: Triggers::default(),
            concurrency: Concurrency { key: Template::literal(""), policy: ConcurrencyPolicy::default() },
            metrics: BTreeMap::new(),
            evidence: None,
            steps: vec![],
            on_failure: vec![],
            notify: vec![],
            secrets: std::collections::BTreeSet::new(),
        }
    }
}

/// How far refit may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Evidence and verdicts only; no target is touched and no notice says what would be done.
    Observe,
    /// Everything runs, no target is touched, notices say what refit would have done.
    Advise,
    /// refit acts.
    #[default]
    Act,
}

/// Which direction of an offline metric is an improvement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    /// Errors: MAE, RMSE.
    Lower,
    /// Scores: R², accuracy.
    Higher,
}

/// What happens when a run is triggered while another holds the key.
#[derive(Debug, Clone)]
pub struct Concurrency {
    /// The key; the model's name when the file gives none.
    pub key: Template,
    /// The policy.
    pub policy: ConcurrencyPolicy,
}

/// What happens to a run whose concurrency key is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConcurrencyPolicy {
    /// It waits its turn.
    #[default]
    Queue,
    /// It waits its turn; an older one that waits is cancelled.
    QueueLatest,
    /// It is not started (`refit trigger` exits with 7).
    Skip,
    /// The one that runs is cancelled.
    CancelRunning,
}

/// One step of a workflow.
#[derive(Debug, Clone)]
pub struct Step {
    /// Its id; when the file gives none, its kind.
    pub id: StepId,
    /// `name:`, what people read; its id when the file gives none.
    pub name: Option<String>,
    /// Where it stands in the file.
    pub at: Position,
    /// Steps that must have ended before; the step before it when the file has no `needs`.
    pub needs: Vec<StepId>,
    /// `if:`; the step is skipped when it is false.
    pub condition: Option<Expr>,
    /// No attempt takes longer.
    pub timeout: Duration,
    /// When a transient failure is tried again.
    pub retry: RetryPolicy,
    /// `runs_on:`; every label must be one of the worker's.
    pub labels: Vec<String>,
    /// What it does.
    pub kind: StepKind,
}

/// `notify:`: who hears of which outcome.
#[derive(Debug, Clone)]
pub struct NotifyRule {
    /// The moments this rule is for.
    pub on: Vec<Moment>,
    /// Who is told.
    pub to: Vec<Recipient>,
}

/// A moment of a run that a notice can be about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Moment {
    /// The run began.
    Started,
    /// A canary went out.
    CanaryStarted,
    /// The version now serves everybody.
    Promoted,
    /// The gate or a data check refused.
    Rejected,
    /// The canary was withdrawn, or a bake ended in a rollback.
    RolledBack,
    /// The verdict is left to a human.
    Held,
    /// A freeze keeps the promotion back.
    Frozen,
    /// Somebody has to approve.
    NeedsApproval,
    /// There was nothing to do.
    Skipped,
    /// A step failed for good.
    Failed,
    /// Somebody cancelled the run.
    Cancelled,
    /// The run ended well without a promotion.
    Succeeded,
    /// A workflow's own message (`uses: notify`).
    Message,
    /// Something needs a human now: an undo that fails, a host changed by hand, silence.
    Alert,
}

impl Moment {
    /// The moment that ends a run with `outcome`.
    pub fn of(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Succeeded => Moment::Succeeded,
            Outcome::Promoted | Outcome::CancelledAfterPromotion => Moment::Promoted,
            Outcome::Rejected => Moment::Rejected,
            Outcome::RolledBack => Moment::RolledBack,
            Outcome::Skipped => Moment::Skipped,
            Outcome::Failed => Moment::Failed,
            Outcome::Cancelled => Moment::Cancelled,
        }
    }
}

/// Who is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recipient {
    /// `slack: team`: the Slack notifier of that name in `refit.toml`.
    Slack(NotifierName),
    /// `email: [..]`: these addresses, through the mail notifier of `refit.toml`.
    Email(Vec<String>),
    /// `webhook: name`.
    Webhook(NotifierName),
    /// `console`: the log of the process.
    Console,
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Recipient::Slack(name) => write!(f, "{name} on Slack"),
            Recipient::Email(addresses) => f.write_str(&addresses.join(", ")),
            Recipient::Webhook(name) => write!(f, "webhook {name}"),
            Recipient::Console => f.write_str("the log"),
        }
    }
}

#[cfg(test)]
mod tests;
