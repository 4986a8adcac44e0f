//! Events, the runs they make, and what happened in them.

use async_trait::async_trait;
use serde::Serialize;
use serde_json::Value;

use super::StoreError;
use crate::domain::Timestamp;
use crate::domain::event::Event;
use crate::domain::id::{EventId, ModelName, RunId, StepId, WorkflowName};
use crate::domain::run::{Attempt, Intent, Outcome, Run, RunStatus, Signal};
use crate::domain::workflow::ConcurrencyPolicy;

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

impl NewRun {
    /// The `dedup_key` of the run of `workflow` that `event` alone is the reason for.
    pub fn key_of(event: EventId, workflow: &WorkflowName) -> String {
        format!("{event}/{workflow}")
    }
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

/// Keeps events and makes runs of them.
#[async_trait]
pub trait Runs: Send + Sync + 'static {
    /// Keeps an event and makes its runs, with their wake-ups, in one transaction.
    async fn submit(&self, event: &Event, runs: Vec<NewRun>) -> Result<Vec<Submitted>, StoreError>;
    /// An event.
    async fn event(&self, id: EventId) -> Result<Option<Event>, StoreError>;
    /// Events, newest first.
    async fn events(&self, before: Option<EventId>, limit: u32) -> Result<Vec<Event>, StoreError>;
    /// Workflows that the event with this key started, as far as their runs are still there.
    async fn started_by(&self, key: &str) -> Result<Vec<WorkflowName>, StoreError>;
    /// A run.
    async fn run(&self, id: RunId) -> Result<Option<Run>, StoreError>;
    /// Runs, newest first.
    async fn runs(&self, filter: &RunFilter) -> Result<Vec<RunSummary>, StoreError>;
    /// All attempts of a run, oldest first.
    async fn attempts(&self, run: RunId) -> Result<Vec<Attempt>, StoreError>;
    /// The intents of a run, oldest first.
    async fn intents(&self, run: RunId) -> Result<Vec<Intent>, StoreError>;
    /// The signals of a run, oldest first.
    async fn signals(&self, run: RunId) -> Result<Vec<Signal>, StoreError>;
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
}
