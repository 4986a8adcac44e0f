//! `/v1/runs`: what runs and ran.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde::{Deserialize, Serialize};

use super::Api;
use super::error::ApiError;
use super::request::{Asked, Page, limit, parsed};
use crate::domain::Timestamp;
use crate::domain::event::Cause;
use crate::domain::id::{ModelName, RunId, WorkflowName};
use crate::domain::run::{Attempt, CancelRequest, Outcome, Run, RunStatus};
use crate::store::{RunFilter, RunSummary};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    workflow: Option<String>,
    model: Option<String>,
    status: Option<RunStatus>,
    limit: Option<u32>,
    before: Option<String>,
}

/// `GET /v1/runs`: newest first.
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    Asked(which): Asked<Which>,
) -> Result<Json<Page<RunSummary>>, ApiError> {
    let limit = limit(which.limit)?;
    let filter = RunFilter {
        workflow: which.workflow.as_deref().map(parsed).transpose()?,
        model: which.model.as_deref().map(parsed).transpose()?,
        status: which.status,
        before: which.before.as_deref().map(parsed).transpose()?,
        limit: limit + 1,
    };
    let runs = api.engine.store.runs(&filter).await?;
    Ok(Json(Page::of(runs, limit, |run| run.id.to_string())))
}

/// A run with all its attempts; its workflow file is named, not shown.
#[derive(Serialize)]
pub(super) struct Shown {
    id: RunId,
    workflow: WorkflowName,
    model: ModelName,
    status: RunStatus,
    outcome: Option<Outcome>,
    reason: Option<String>,
    file: String,
    cause: Cause,
    cancel: Option<CancelRequest>,
    created_at: Timestamp,
    finished_at: Option<Timestamp>,
    attempts: Vec<Attempt>,
}

/// The run that a path names.
pub(super) async fn find(api: &Api, id: &str) -> Result<Run, ApiError> {
    let id: RunId = parsed(id)?;
    let run = api.engine.store.run(id).await?;
    run.ok_or_else(|| {
        ApiError::not_found(format!("there is no run {id}"), "`GET /v1/runs` lists those there are")
    })
}

/// `GET /v1/runs/{id}`.
pub(super) async fn show(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
) -> Result<Json<Shown>, ApiError> {
    let run = find(&api, &id).await?;
    let attempts = api.engine.store.attempts(run.id).await?;
    Ok(Json(Shown {
        id: run.id,
        workflow: run.workflow,
        model: run.model,
        status: run.status,
        outcome: run.outcome,
        reason: run.reason,
        file: run.definition.path,
        cause: run.cause,
        cancel: run.cancel,
        created_at: run.created_at,
        finished_at: run.finished_at,
        attempts,
    }))
}
