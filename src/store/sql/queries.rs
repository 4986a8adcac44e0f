//! Reading runs, attempts, intents and events.

use std::collections::HashSet;

use async_trait::async_trait;
use serde_json::Value;
use sqlx::types::Json;

use super::super::Connection;
use super::rows;
use super::store::SqlStore;
use crate::domain::event::Event;
use crate::domain::id::{EventId, ModelName, RunId, StepId, WorkflowName};
use crate::domain::run::{Attempt, Intent, Outcome, Run, Signal};
use crate::store::{NewRun, RunFilter, RunSummary, Runs, StoreError, Submitted};

#[async_trait]
impl Runs for SqlStore {
    async fn submit(&self, event: &Event, runs: Vec<NewRun>) -> Result<Vec<Submitted>, StoreError> {
        self.answered(self.submit_event(event, &runs)).await
    }

    async fn event(&self, id: EventId) -> Result<Option<Event>, StoreError> {
        self.answered(self.read_event(id)).await
    }

    async fn events(&self, before: Option<EventId>, limit: u32) -> Result<Vec<Event>, StoreError> {
        self.answered(self.list_events(before, limit)).await
    }

    async fn started_by(&self, key: &str) -> Result<Vec<WorkflowName>, StoreError> {
        self.answered(self.workflows_started_by(key)).await
    }

    async fn run(&self, id: RunId) -> Result<Option<Run>, StoreError> {
        self.answered(self.read_run(id)).await
    }

    async fn runs(&self, filter: &RunFilter) -> Result<Vec<RunSummary>, StoreError> {
        self.answered(self.list_runs(filter)).await
    }

    async fn attempts(&self, run: RunId) -> Result<Vec<Attempt>, StoreError> {
        self.answered(self.list_attempts(run)).await
    }

    async fn intents(&self, run: RunId) -> Result<Vec<Intent>, StoreError> {
        self.answered(self.list_intents(run)).await
    }

    async fn signals(&self, run: RunId) -> Result<Vec<Signal>, StoreError> {
        self.answered(self.list_signals(run)).await
    }

    async fn previous_output(
        &self,
        workflow: &WorkflowName,
        before: RunId,
        step: &StepId,
    ) -> Result<Option<Value>, StoreError> {
        self.answered(self.output_before(workflow, before, step)).await
    }

    async fn recent_outcomes(&self, workflow: &WorkflowName, limit: u32) -> Result<Vec<Outcome>, StoreError> {
        self.answered(self.list_outcomes(workflow, limit)).await
    }
}

impl SqlStore {
    async fn read_event(&self, id: EventId) -> Result<Option<Event>, StoreError> {
        let row = sqlx::query(sql!("SELECT * FROM refit.events WHERE id = $1"))
            .bind(id.0)
            .fetch_optional(&self.parts.reader)
            .await?;
        row.as_ref().map(rows::event).transpose()
    }

    async fn list_events(&self, before: Option<EventId>, limit: u32) -> Result<Vec<Event>, StoreError> {
        let found = sqlx::query(sql!(
            "SELECT * FROM refit.events WHERE $1 IS NULL OR id < $1 ORDER BY id DESC LIMIT $2"
        ))
        .bind(before.map(|id| id.0))
        .bind(i64::from(limit))
        .fetch_all(&self.parts.reader)
        .await?;
        rows::all(&found, rows::event)
    }

    async fn workflows_started_by(&self, key: &str) -> Result<Vec<WorkflowName>, StoreError> {
        let found = sqlx::query(sql!(
            "SELECT r.workflow FROM refit.runs r JOIN refit.events e ON e.id = r.event_id WHERE e.dedup_key = $1"
        ))
        .bind(rows::text(key))
        .fetch_all(&self.parts.reader)
        .await?;
        rows::all(&found, |row| rows::word(row, "workflow"))
    }

    async fn read_run(&self, id: RunId) -> Result<Option<Run>, StoreError> {
        let mut connection = self.parts.reader.acquire().await?;
        run_in(&mut connection, id).await
    }

    async fn list_runs(&self, filter: &RunFilter) -> Result<Vec<RunSummary>, StoreError> {
        let found = sqlx::query(sql!(
            "SELECT id, workflow, model, status, outcome, reason, event_name, created_at, finished_at FROM refit.runs
             WHERE ($1 IS NULL OR workflow = $1) AND ($2 IS NULL OR model = $2) AND ($3 IS NULL OR status = $3)
               AND ($4 IS NULL OR id < $4)
             ORDER BY id DESC LIMIT $5"
        ))
        .bind(filter.workflow.as_ref().map(WorkflowName::as_str))
        .bind(filter.model.as_ref().map(ModelName::as_str))
        .bind(filter.status.map(|status| status.as_str()))
        .bind(filter.before.map(|id| id.0))
        .bind(i64::from(filter.limit))
        .fetch_all(&self.parts.reader)
        .await?;
        rows::all(&found, rows::summary)
    }

    async fn list_attempts(&self, run: RunId) -> Result<Vec<Attempt>, StoreError> {
        let mut connection = self.parts.reader.acquire().await?;
        attempts_in(&mut connection, run).await
    }

    async fn list_intents(&self, run: RunId) -> Result<Vec<Intent>, StoreError> {
        let mut connection = self.parts.reader.acquire().await?;
        intents_in(&mut connection, run).await
    }

    async fn list_signals(&self, run: RunId) -> Result<Vec<Signal>, StoreError> {
        let mut connection = self.parts.reader.acquire().await?;
        signals_in(&mut connection, run).await
    }

    /// From runs that ended well, and from those that go on: their step is done, whatever comes of them.
    async fn output_before(
        &self,
        workflow: &WorkflowName,
        before: RunId,
        step: &StepId,
    ) -> Result<Option<Value>, StoreError> {
        let output = sqlx::query_scalar::<_, Option<Json<Value>>>(sql!(
            "SELECT a.output FROM refit.runs r JOIN refit.attempts a ON a.run = r.id
             WHERE r.workflow = $1 AND r.id < $2 AND a.step = $3 AND a.state = 'succeeded'
               AND (r.outcome IN ('succeeded', 'promoted', 'rolled_back', 'cancelled_after_promotion')
                    OR (r.outcome IS NULL AND r.status IN ('running', 'waiting', 'held')))
             ORDER BY r.id DESC, a.attempt DESC LIMIT 1"
        ))
        .bind(workflow.as_str())
        .bind(before.0)
        .bind(step.as_str())
        .fetch_optional(&self.parts.reader)
        .await?;
        Ok(output.flatten().map(|json| json.0))
    }

    async fn list_outcomes(&self, workflow: &WorkflowName, limit: u32) -> Result<Vec<Outcome>, StoreError> {
        let found = sqlx::query(sql!(
            "SELECT outcome FROM refit.runs WHERE workflow = $1 AND status = 'finished' ORDER BY id DESC LIMIT $2"
        ))
        .bind(workflow.as_str())
        .bind(i64::from(limit))
        .fetch_all(&self.parts.reader)
        .await?;
        rows::all(&found, |row| rows::word(row, "outcome"))
    }
}

/// A run, as this connection sees it.
pub(super) async fn run_in(connection: &mut Connection, id: RunId) -> Result<Option<Run>, StoreError> {
    let row = sqlx::query(sql!(
        "SELECT r.*, d.definition, d.cause FROM refit.runs r JOIN refit.run_docs d ON d.run = r.id WHERE r.id = $1"
    ))
    .bind(id.0)
    .fetch_optional(connection)
    .await?;
    row.as_ref().map(rows::run).transpose()
}

/// All attempts of a run, oldest first, those that have no row of their own yet included.
pub(super) async fn attempts_in(connection: &mut Connection, run: RunId) -> Result<Vec<Attempt>, StoreError> {
    let found = sqlx::query(sql!("SELECT * FROM refit.attempts WHERE run = $1 ORDER BY place"))
        .bind(run.0)
        .fetch_all(connection)
        .await?;
    let mut attempts = rows::all(&found, rows::attempt)?;
    let with_rows: HashSet<_> =
        attempts.iter().map(|(_, attempt)| (attempt.step.clone(), attempt.attempt)).collect();
    let begun = rows::all(&found, rows::next)?.into_iter().flatten();
    attempts.extend(begun.filter(|(_, next)| !with_rows.contains(&(next.step.clone(), next.attempt))));
    attempts.sort_by_key(|(place, _)| *place);
    Ok(attempts.into_iter().map(|(_, attempt)| attempt).collect())
}

/// All intents of a run, oldest first.
pub(super) async fn intents_in(connection: &mut Connection, run: RunId) -> Result<Vec<Intent>, StoreError> {
    let found = sqlx::query(sql!("SELECT * FROM refit.intents WHERE run = $1 ORDER BY seq"))
        .bind(run.0)
        .fetch_all(connection)
        .await?;
    rows::all(&found, rows::intent)
}

/// All signals of a run, oldest first.
pub(super) async fn signals_in(connection: &mut Connection, run: RunId) -> Result<Vec<Signal>, StoreError> {
    let found = sqlx::query(sql!("SELECT * FROM refit.signals WHERE run = $1 ORDER BY id"))
        .bind(run.0)
        .fetch_all(connection)
        .await?;
    rows::all(&found, rows::signal)
}
