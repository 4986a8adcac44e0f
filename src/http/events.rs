//! `/v1/events`: what happened elsewhere, and the runs it starts.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Api;
use super::error::ApiError;
use super::request::{Asked, Given, Page, key, limit, parsed};
use crate::domain::event::Event;
use crate::domain::id::{EventId, RunId, WorkflowName};
use crate::store::Submitted;
use crate::trigger::{self, Heard};

/// Names of events are words, not texts.
const LONGEST_NAME: usize = 200;
/// refit's own events.
const OWN: &str = "refit/";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewEvent {
    name: String,
    #[serde(default = "nothing")]
    data: Value,
    key: Option<String>,
}

fn nothing() -> Value {
    json!({})
}

/// What became of an event.
#[derive(Serialize)]
pub(super) struct Sent {
    /// Its id; none when its key was known: the event that had it first stands.
    event: Option<EventId>,
    duplicate: bool,
    runs: Vec<Started>,
    /// Workflows that wait for it, and are not started by themselves now.
    paused: Vec<NotStarted>,
    /// Workflows that wait for one of its name, and could not be started by this one.
    failed: Vec<NotStarted>,
}

#[derive(Serialize)]
struct NotStarted {
    workflow: WorkflowName,
    reason: String,
}

#[derive(Serialize)]
struct Started {
    run: RunId,
    state: &'static str,
}

impl From<Submitted> for Started {
    fn from(submitted: Submitted) -> Self {
        let (run, state) = match submitted {
            Submitted::Made(run) => (run, "made"),
            Submitted::Already(run) => (run, "made_before"),
            Submitted::Busy(run) => (run, "skipped_for_running"),
        };
        Self { run, state }
    }
}

/// `POST /v1/events`: keeps the event and starts the runs of workflows that wait for it.
pub(super) async fn send(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    Given(new): Given<NewEvent>,
) -> Result<Json<Sent>, ApiError> {
    check_name(&new.name)?;
    if !new.data.is_object() {
        return Err(ApiError::invalid("`data` is not an object", "put the value under a key"));
    }
    let engine = &api.engine;
    let event = Event {
        id: EventId::generate(),
        name: new.name,
        data: new.data,
        source: "http".to_owned(),
        dedup_key: key(&headers, "`key`", new.key)?,
        received_at: engine.clock.now(),
    };
    let Heard { duplicate, runs, paused, failed } =
        trigger::send(engine, &(api.catalog)(), &event, "http").await?;
    let runs: Vec<Started> = runs.into_iter().map(Started::from).collect();
    tracing::info!(event.name = %event.name, runs = runs.len(), duplicate, "Event `{}` came", event.name);
    for (workflow, why) in &failed {
        tracing::warn!(%workflow, event.name = %event.name, "Workflow `{workflow}` was not started by `{}`: {why}", event.name);
    }
    let paused = paused.into_iter().map(|(workflow, pause)| NotStarted { workflow, reason: pause.reason() });
    let failed = failed.into_iter().map(|(workflow, reason)| NotStarted { workflow, reason });
    Ok(Json(Sent {
        event: (!duplicate).then_some(event.id),
        duplicate,
        runs,
        paused: paused.collect(),
        failed: failed.collect(),
    }))
}

fn check_name(name: &str) -> Result<(), ApiError> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ':');
    if name.is_empty() || name.len() > LONGEST_NAME || !name.chars().all(is_word) {
        return Err(ApiError::invalid(
            "the name of the event is not one",
            format!(
                "letters, digits, `-`, `_`, `.`, `/` and `:`, at most {LONGEST_NAME}, such as `ml/retrain`"
            ),
        ));
    }
    if name.starts_with(OWN) {
        return Err(ApiError::invalid(
            format!("events that begin with `{OWN}` are refit's own"),
            "choose another name",
        ));
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    limit: Option<u32>,
    before: Option<String>,
}

/// `GET /v1/events`: newest first.
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    Asked(which): Asked<Which>,
) -> Result<Json<Page<Event>>, ApiError> {
    let limit = limit(which.limit)?;
    let before = which.before.as_deref().map(parsed).transpose()?;
    let events = api.engine.store.events(before, limit + 1).await?;
    Ok(Json(Page::of(events, limit, |event| event.id.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_events_are_words() {
        for name in ["ml/retrain.requested", "a", "team:data-arrived_2"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", "two words", "refit/trigger", "a\nb", "é", &"x".repeat(201)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
