//! From what happened to the runs it starts: commands, events, schedules.

pub mod catalog;
pub mod schedule;

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::domain::Timestamp;
use crate::domain::event::{BY_HAND, Cause, Event};
use crate::domain::expr::{ExprError, Scope};
use crate::domain::id::{Epoch, EventId, RunId, WorkflowName};
use crate::domain::pause::Pause;
use crate::domain::run::{Run, RunStatus};
use crate::domain::workflow::trigger::{Input, InputKind};
use crate::engine::{Engine, pause};
use crate::store::{NewRun, StoreError, Submitted};
pub use catalog::{Catalog, Loaded};

/// Why nothing was triggered.
#[derive(Debug, thiserror::Error)]
pub enum TriggerError {
    /// An input that the workflow does not take.
    #[error("workflow `{workflow}` takes no input `{input}`{}", nearest(.known))]
    UnknownInput {
        /// The workflow.
        workflow: String,
        /// The input.
        input: String,
        /// Those it takes.
        known: Vec<String>,
    },
    /// An input that must be given.
    #[error("workflow `{workflow}` needs input `{input}`: give it with `-i {input}=…`")]
    MissingInput {
        /// The workflow.
        workflow: String,
        /// The input.
        input: String,
    },
    /// An input of the wrong type.
    #[error("input `{input}` is `{value}`, which is not a {expected}")]
    WrongInput {
        /// The input.
        input: String,
        /// What was given.
        value: String,
        /// What it takes.
        expected: &'static str,
    },
    /// The concurrency key's template.
    #[error("`concurrency: key` cannot be computed: {0}")]
    Key(#[from] ExprError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn nearest(known: &[String]) -> String {
    match known {
        [] => "; it takes none".to_owned(),
        known => format!("; it takes {}", known.join(", ")),
    }
}

/// An event of refit's own.
pub fn own_event(name: &str, data: Value, source: &str, at: Timestamp) -> Event {
    Event {
        id: EventId::generate(),
        name: name.to_owned(),
        data,
        source: source.to_owned(),
        dedup_key: None,
        received_at: at,
    }
}

/// A run of `loaded` that `event` starts, not before `start_at`.
pub fn new_run(
    loaded: &Loaded,
    event: &Event,
    inputs: Value,
    actor: &str,
    start_at: Timestamp,
) -> Result<NewRun, ExprError> {
    let workflow = &loaded.workflow;
    let scope = Scope::new()
        .with("model", json!(workflow.model))
        .with("inputs", inputs.clone())
        .with("event", event.shown());
    let key = workflow.concurrency.key.render(&scope)?;
    Ok(NewRun {
        run: Run {
            id: RunId::generate(),
            workflow: workflow.name.clone(),
            model: workflow.model.clone(),
            definition: loaded.definition.clone(),
            cause: Cause { event: event.clone(), inputs, actor: actor.to_owned() },
            status: RunStatus::Queued,
            outcome: None,
            reason: None,
            epoch: Epoch(0),
            crashes: 0,
            cancel: None,
            committed: false,
            concurrency_key: key,
            created_at: event.received_at,
            finished_at: None,
        },
        policy: workflow.concurrency.policy,
        dedup_key: NewRun::key_of(event.id, &workflow.name),
        start_at,
    })
}

/// Checks inputs given as text against those the workflow takes, defaults filled in.
pub fn inputs(loaded: &Loaded, given: &[(String, String)]) -> Result<Value, TriggerError> {
    let workflow = &loaded.workflow;
    let takes = &workflow.triggers.inputs;
    let mut inputs = Map::new();
    for (name, value) in given {
        let input = takes.get(name).ok_or_else(|| TriggerError::UnknownInput {
            workflow: workflow.name.to_string(),
            input: name.clone(),
            known: takes.keys().cloned().collect(),
        })?;
        inputs.insert(name.clone(), typed(name, value, input)?);
    }
    for (name, input) in takes {
        if inputs.contains_key(name) {
            continue;
        }
        match &input.default {
            Some(default) => {
                inputs.insert(name.clone(), default.clone());
            }
            None if input.required => {
                let workflow = workflow.name.to_string();
                return Err(TriggerError::MissingInput { workflow, input: name.clone() });
            }
            None => {
                inputs.insert(name.clone(), Value::Null);
            }
        }
    }
    Ok(Value::Object(inputs))
}

fn typed(name: &str, value: &str, input: &Input) -> Result<Value, TriggerError> {
    let wrong =
        |expected| TriggerError::WrongInput { input: name.to_owned(), value: value.to_owned(), expected };
    match input.kind {
        InputKind::String => Ok(Value::from(value)),
        InputKind::Boolean => {
            value.parse::<bool>().map(Value::from).map_err(|_| wrong("boolean (true or false)"))
        }
        InputKind::Number => {
            let number: f64 = value.parse().map_err(|_| wrong("number"))?;
            if !number.is_finite() {
                return Err(wrong("finite number"));
            }
            Ok(value.parse::<i64>().map_or_else(|_| Value::from(number), Value::from))
        }
    }
}

/// Starts a run of `loaded` by hand.
pub async fn trigger(
    engine: &Arc<Engine>,
    loaded: &Loaded,
    given: &[(String, String)],
    actor: &str,
) -> Result<Submitted, TriggerError> {
    let inputs = inputs(loaded, given)?;
    let now = engine.clock.now();
    let data = json!({"workflow": loaded.workflow.name, "inputs": inputs});
    let event = own_event(BY_HAND, data, "cli", now);
    let run = new_run(loaded, &event, inputs, actor, now)?;
    let submitted = engine.store.submit(&event, vec![run]).await?;
    submitted.first().copied().ok_or_else(|| {
        TriggerError::Store(StoreError::Broken("a run was submitted and no answer came".to_owned()))
    })
}

/// A workflow is not started by `what`.
fn tell_paused(loaded: &Loaded, pause: &Pause, what: &str) {
    let name = &loaded.workflow.name;
    tracing::warn!(
        workflow = %name,
        "Workflow `{name}` is paused and not started by {what}: {}; `refit trigger {name}` starts it and ends the pause",
        pause.reason()
    );
}

/// What an event did.
#[derive(Debug)]
pub struct Heard {
    /// An event with its key was kept before: that one stands. It starts once more what was not started by it then.
    pub duplicate: bool,
    /// The runs it asked for.
    pub runs: Vec<Submitted>,
    /// Workflows that wait for it and are paused; none when the event was known: what it did, it did before.
    pub paused: Vec<(WorkflowName, Pause)>,
    /// Workflows that wait for an event of this name and could not be started by this one, nor were before, with the reason.
    pub failed: Vec<(WorkflowName, String)>,
}

/// Keeps an event and starts a run of every workflow that waits for it and is not paused. One that cannot be started by it
/// keeps none of the others from it.
pub async fn send(
    engine: &Arc<Engine>,
    catalog: &Catalog,
    event: &Event,
    actor: &str,
) -> Result<Heard, StoreError> {
    let (mut runs, mut paused, mut failed) = (vec![], vec![], vec![]);
    for loaded in catalog.workflows() {
        let name = &loaded.workflow.name;
        match run_of(loaded, event, actor) {
            Ok(None) => {}
            Ok(Some(run)) => match pause::paused(&*engine.store, name, None).await? {
                Some(pause) => {
                    tell_paused(loaded, &pause, &event.name);
                    paused.push((name.clone(), pause));
                }
                None => runs.push(run),
            },
            Err(why) => failed.push((name.clone(), why)),
        }
    }
    let runs = engine.store.submit(event, runs).await?;
    let duplicate = event.dedup_key.is_some() && engine.store.event(event.id).await?.is_none();
    if duplicate {
        paused.clear();
    }
    if duplicate && !failed.is_empty() {
        let started = engine.store.started_by(event.dedup_key.as_deref().unwrap_or_default()).await?;
        failed.retain(|(workflow, _)| !started.contains(workflow));
    }
    Ok(Heard { duplicate, runs, paused, failed })
}

/// The run that `event` starts, by the first of the workflow's triggers that is for it; or why there is none.
fn run_of(loaded: &Loaded, event: &Event, actor: &str) -> Result<Option<NewRun>, String> {
    let scope = Scope::new().with("event", event.shown());
    for wanted in loaded.workflow.triggers.events.iter().filter(|wanted| wanted.name == event.name) {
        if let Some(condition) = &wanted.condition {
            let is_true = condition.is_true(&scope);
            if !is_true.map_err(|error| format!("its `if` cannot be decided: {error}"))? {
                continue;
            }
        }
        let inputs = inputs(loaded, &[]).map_err(|error| error.to_string())?;
        let debounce = chrono::TimeDelta::from_std(wanted.debounce.unwrap_or_default()).unwrap_or_default();
        let mut run = new_run(loaded, event, inputs, actor, event.received_at + debounce)
            .map_err(|error| TriggerError::from(error).to_string())?;
        if let Some(window) = wanted.debounce.filter(|window| !window.is_zero()) {
            // Events of one window make one run, which starts when the window is over.
            let window = i64::try_from(window.as_micros()).unwrap_or(i64::MAX);
            let slot = event.received_at.timestamp_micros().div_euclid(window);
            run.dedup_key = format!("debounce/{}/{}/{slot}", loaded.workflow.name, event.name);
        }
        return Ok(Some(run));
    }
    Ok(None)
}
