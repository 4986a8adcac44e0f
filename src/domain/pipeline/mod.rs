//! What happens next to a run: a function of its workflow, its attempts and
//! its ending. The engine does what is decided here, then checkpoints it.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::Timestamp;
use super::expr::Scope;
use super::id::StepId;
use super::run::{Attempt, AttemptState, Intent, IntentState, Outcome, Run};
use super::workflow::{Step, StepKind, Workflow};

/// What is known of a run when a decision is made.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// Its workflow.
    pub workflow: &'a Workflow,
    /// All attempts so far, oldest first.
    pub attempts: &'a [Attempt],
    /// Its intents.
    pub intents: &'a [Intent],
    /// How it will end, once that is known.
    pub ending: Option<(Outcome, &'a str)>,
    /// Roots of expressions.
    pub scope: &'a Scope,
}

/// What happens next.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// These attempts begin (none when others still run), and these steps are skipped, with the reason.
    Go {
        /// Step and number of the attempt.
        start: Vec<(StepId, u32)>,
        /// Step and reason.
        skip: Vec<(StepId, String)>,
        /// When the earliest sleeper beside them wakes, or the earliest retry begins: neither waits for a body.
        until: Option<Timestamp>,
    },
    /// Attempts of a run that ends still run: they are told to stop.
    Interrupt,
    /// Nothing runs; the earliest sleeper wakes at this time, or a signal comes.
    Wait {
        /// When; only by a signal when absent.
        until: Option<Timestamp>,
    },
    /// The ending is known now.
    End {
        /// How.
        outcome: Outcome,
        /// Why.
        reason: String,
    },
    /// This effect is taken back next.
    Undo {
        /// The key of its intent.
        key: String,
    },
    /// All is done.
    Finish {
        /// How it ends.
        outcome: Outcome,
        /// Why.
        reason: String,
    },
}

/// Whether steps that have not begun are still run when a run is to end so.
fn goes_on(ending: Option<(Outcome, &str)>) -> bool {
    match ending {
        None => true,
        Some((outcome, _)) => match outcome {
            Outcome::Promoted | Outcome::Succeeded => true,
            Outcome::CancelledAfterPromotion
            | Outcome::Rejected
            | Outcome::RolledBack
            | Outcome::Skipped
            | Outcome::Failed
            | Outcome::Cancelled => false,
        },
    }
}

/// The newest attempt of a step.
pub fn latest<'a>(attempts: &'a [Attempt], step: &StepId) -> Option<&'a Attempt> {
    attempts.iter().rev().find(|attempt| &attempt.step == step)
}

/// What steps returned, oldest first, as far as it is a `T`.
pub fn outputs<T: DeserializeOwned>(attempts: &[Attempt]) -> impl Iterator<Item = (StepId, T)> {
    attempts.iter().filter_map(|attempt| {
        let output = serde_json::from_value(attempt.output.clone()?).ok()?;
        Some((attempt.step.clone(), output))
    })
}

/// Steps that sleep until somebody approves.
pub fn waits_for_approval(workflow: &Workflow, attempts: &[Attempt]) -> Vec<StepId> {
    let asks = |attempt: &&Attempt| {
        attempt.state == AttemptState::Sleeping
            && workflow.step(&attempt.step).is_some_and(|step| {
                matches!(step.kind, StepKind::Approve(_) | StepKind::Gate(_) | StepKind::Canary(_))
            })
    };
    attempts.iter().filter(asks).map(|attempt| attempt.step.clone()).collect()
}

/// What a step left for itself when it last slept, also in an attempt that was lost or failed since: a wait does not
/// begin again because a process died.
pub fn left_by<'a>(attempts: &'a [Attempt], step: &StepId) -> Option<&'a Value> {
    attempts.iter().rev().filter(|attempt| &attempt.step == step).find_map(|attempt| attempt.resume.as_ref())
}

/// Decides what happens next at `now`.
pub fn next(view: View<'_>, now: Timestamp) -> Next {
    let running = view.attempts.iter().any(|attempt| attempt.state == AttemptState::Started);
    if goes_on(view.ending) {
        return match advance(view, &view.workflow.steps, true, now) {
            Advance::Go { start, skip, until } => Next::Go { start, skip, until },
            Advance::Wait(until) if running => Next::Go { start: vec![], skip: vec![], until },
            Advance::Wait(until) => Next::Wait { until },
            Advance::Failed(reason) => Next::End { outcome: Outcome::Failed, reason },
            Advance::Done => match view.ending {
                Some((outcome, reason)) => Next::Finish { outcome, reason: reason.to_owned() },
                None => Next::Finish { outcome: Outcome::Succeeded, reason: "all steps are done".to_owned() },
            },
        };
    }
    let Some((outcome, reason)) = view.ending else {
        // `goes_on(None)` is true.
        return Next::Finish { outcome: Outcome::Failed, reason: "no ending".to_owned() };
    };
    let in_main = |attempt: &&Attempt| view.workflow.steps.iter().any(|step| step.id == attempt.step);
    if view.attempts.iter().filter(in_main).any(|attempt| attempt.state == AttemptState::Started) {
        return Next::Interrupt;
    }
    if outcome.undoes()
        && let Some(intent) = view
            .intents
            .iter()
            .rev()
            .find(|intent| intent.undo.is_some() && intent.state == IntentState::Armed)
    {
        return Next::Undo { key: intent.key.clone() };
    }
    if outcome == Outcome::Failed {
        match advance(view, &view.workflow.on_failure, false, now) {
            Advance::Go { start, skip, until } => return Next::Go { start, skip, until },
            Advance::Wait(until) if running => return Next::Go { start: vec![], skip: vec![], until },
            Advance::Wait(until) => return Next::Wait { until },
            Advance::Failed(_) | Advance::Done => {}
        }
    }
    Next::Finish { outcome, reason: reason.to_owned() }
}

/// What happens next to a run that would end while `step` must not be left half done: nothing but that step begins.
pub fn complete(attempts: &[Attempt], step: &StepId, now: Timestamp) -> Next {
    let running = attempts.iter().any(|attempt| attempt.state == AttemptState::Started);
    let go = |start, until| Next::Go { start, skip: vec![], until };
    let wait = |until| if running { go(vec![], until) } else { Next::Wait { until } };
    let Some(newest) = latest(attempts, step) else { return wait(None) };
    match (newest.state, newest.wake_at) {
        (AttemptState::Failed, Some(at)) if at > now => wait(Some(at)),
        (AttemptState::Failed | AttemptState::Lost | AttemptState::Cancelled, _) => {
            go(vec![(step.clone(), newest.attempt + 1)], None)
        }
        (AttemptState::Started, _) => go(vec![], None),
        (AttemptState::Sleeping | AttemptState::Succeeded | AttemptState::Skipped, until) => wait(until),
    }
}

/// Where the step called `id` stands in `steps`. It is sought from `near` on, where it nearly always is: to hash
/// hundreds of names takes longer than the rest of a decision.
fn place(steps: &[Step], id: &StepId, near: usize) -> Option<usize> {
    let (before, after) = steps.split_at(steps.len().min(near + 1));
    let is = |step: &Step| &step.id == id;
    before.iter().rposition(is).or_else(|| Some(before.len() + after.iter().position(is)?))
}

/// The newest attempt of each of `steps`.
fn newest<'a>(steps: &[Step], attempts: &'a [Attempt]) -> Vec<Option<&'a Attempt>> {
    let mut newest = vec![None; steps.len()];
    let mut near = 0;
    for attempt in attempts {
        if let Some(place) = place(steps, &attempt.step, near) {
            newest[place] = Some(attempt);
            near = place + 1;
        }
    }
    newest
}

enum Advance {
    Go { start: Vec<(StepId, u32)>, skip: Vec<(StepId, String)>, until: Option<Timestamp> },
    Wait(Option<Timestamp>),
    Failed(String),
    Done,
}

/// `strict`: a failed step ends the sequence; else it is passed over, as `on_failure` wants it.
fn advance(view: View<'_>, steps: &[Step], strict: bool, now: Timestamp) -> Advance {
    let mut start = vec![];
    let mut skip: Vec<(StepId, String)> = vec![];
    let mut until: Option<Timestamp> = None;
    let mut waiting = false;
    let newest = newest(steps, view.attempts);
    for (index, step) in steps.iter().enumerate() {
        match newest[index].map(|attempt| (attempt, attempt.state)) {
            Some((_, AttemptState::Succeeded | AttemptState::Skipped)) => {}
            Some((_, AttemptState::Started)) => waiting = true,
            Some((attempt, AttemptState::Sleeping)) => {
                waiting = true;
                until = earliest(until, attempt.wake_at);
            }
            Some((attempt, AttemptState::Failed)) => match attempt.wake_at {
                Some(at) if at <= now => start.push((step.id.clone(), attempt.attempt + 1)),
                Some(at) => {
                    waiting = true;
                    until = earliest(until, Some(at));
                }
                None if strict => {
                    let why = attempt.error.as_ref().map_or("failed", |error| error.message.as_str());
                    return Advance::Failed(format!("step `{}`: {why}", step.id));
                }
                None => {}
            },
            Some((_, AttemptState::Cancelled)) if strict => {
                return Advance::Failed(format!("step `{}` was stopped", step.id));
            }
            Some((_, AttemptState::Cancelled)) => {}
            Some((attempt, AttemptState::Lost)) => start.push((step.id.clone(), attempt.attempt + 1)),
            None => match readiness(view, (steps, &newest), index, &skip, strict) {
                Readiness::Ready => start.push((step.id.clone(), 1)),
                Readiness::NotYet => waiting = true,
                Readiness::Skip(reason) => skip.push((step.id.clone(), reason)),
                Readiness::Broken(reason) => return Advance::Failed(reason),
            },
        }
    }
    if !start.is_empty() || !skip.is_empty() {
        Advance::Go { start, skip, until }
    } else if waiting {
        Advance::Wait(until)
    } else {
        Advance::Done
    }
}

fn earliest(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

enum Readiness {
    Ready,
    NotYet,
    Skip(String),
    Broken(String),
}

fn readiness(
    view: View<'_>,
    (steps, newest): (&[Step], &[Option<&Attempt>]),
    index: usize,
    skipped_now: &[(StepId, String)],
    strict: bool,
) -> Readiness {
    let step = &steps[index];
    for need in &step.needs {
        let Some(place) = place(steps, need, index) else { continue };
        if skipped_now.iter().any(|(id, _)| id == need) {
            continue;
        }
        match newest[place] {
            Some(attempt) => match attempt.state {
                AttemptState::Succeeded | AttemptState::Skipped => {}
                AttemptState::Failed if !strict && attempt.wake_at.is_none() => {}
                AttemptState::Cancelled if !strict => {}
                AttemptState::Started
                | AttemptState::Cancelled
                | AttemptState::Sleeping
                | AttemptState::Failed
                | AttemptState::Lost => {
                    return Readiness::NotYet;
                }
            },
            None => return Readiness::NotYet,
        }
    }
    match &step.condition {
        None => Readiness::Ready,
        Some(condition) => match condition.is_true(view.scope) {
            Ok(true) => Readiness::Ready,
            Ok(false) => Readiness::Skip(format!("`if: {}` is false", condition.source())),
            Err(error) => Readiness::Broken(format!("step `{}`: if: {error}", step.id)),
        },
    }
}

/// What a new epoch does with attempts it finds, before anything new begins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Adoption {
    /// Attempts `started` by a process that is gone.
    pub lost: Vec<(StepId, u32)>,
    /// Sleepers that go on: due, or a signal came.
    pub woken: Vec<(StepId, u32)>,
}

/// Decides what a new activation does with the attempts it finds. `signalled`: a
/// signal came since the run was last active, so sleepers look at it.
pub fn adopt(attempts: &[Attempt], signalled: bool, now: Timestamp) -> Adoption {
    let lost = attempts.iter().filter(|attempt| attempt.state == AttemptState::Started);
    Adoption {
        lost: lost.map(|attempt| (attempt.step.clone(), attempt.attempt)).collect(),
        woken: due(attempts, |_| signalled, now),
    }
}

/// Sleepers that go on at `now`: their time has come, or a signal came that they have not heard.
pub fn due(attempts: &[Attempt], signalled: impl Fn(&Attempt) -> bool, now: Timestamp) -> Vec<(StepId, u32)> {
    let sleeping = attempts.iter().filter(|attempt| attempt.state == AttemptState::Sleeping);
    let due = sleeping.filter(|attempt| attempt.wake_at.is_some_and(|at| at <= now) || signalled(attempt));
    due.map(|attempt| (attempt.step.clone(), attempt.attempt)).collect()
}

/// What `steps.<id>` shows of an attempt.
pub fn shown(attempt: &Attempt) -> Value {
    let mut entry = match &attempt.output {
        Some(Value::Object(output)) => output.clone(),
        Some(output) => Map::from_iter([("output".to_owned(), output.clone())]),
        None => Map::new(),
    };
    entry.insert("outcome".to_owned(), json!(attempt.state.as_str()));
    Value::Object(entry)
}

/// The roots of expressions of a run: `model`, `inputs`, `event`, `run`, `steps`.
/// A skipped step has no outputs, so a path into it is undefined and an error.
pub fn scope(run: &Run, attempts: &[Attempt]) -> Scope {
    let mut steps = Map::new();
    for attempt in attempts {
        steps.insert(attempt.step.to_string(), shown(attempt));
    }
    Scope::new()
        .with("model", json!(run.model))
        .with("inputs", run.cause.inputs.clone())
        .with("event", run.cause.event.shown())
        .with("run", json!({"id": run.id, "workflow": run.workflow, "created_at": run.created_at}))
        .with("steps", Value::Object(steps))
}

#[cfg(test)]
mod tests;
