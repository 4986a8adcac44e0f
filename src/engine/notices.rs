//! Who is told what: the workflow's `notify:` rules over one moment of one run.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::{Engine, situation};
use crate::domain::id::StepId;
use crate::domain::run::{Attempt, Run};
use crate::domain::workflow::{Moment, NotifyRule, Recipient, Workflow};
use crate::notify::facts::Facts;
use crate::store::{Notice, StoreError};

/// The key of what is said of a promotion, once: at the moment it is made if a bake follows, else at the run's end.
const PROMOTED: &str = "promoted";

/// Notices of `moment`, with what the steps so far say and `facts` on top.
pub async fn about(
    engine: &Engine,
    run: &Run,
    workflow: &Workflow,
    attempts: &[Attempt],
    moment: Moment,
    step: &StepId,
    facts: Value,
) -> Vec<Notice> {
    let recipients = recipients(workflow, moment);
    if recipients.is_empty() {
        return vec![];
    }
    let facts = merged(known(engine, run, workflow, attempts, moment).await, facts);
    let key = match moment {
        Moment::Promoted => PROMOTED.to_owned(),
        other => format!("{step}/{}", word(other)),
    };
    to(run, workflow, &recipients, moment, &key, facts)
}

/// Notices of the start of a run.
pub async fn about_start(engine: &Engine, run: &Run, workflow: &Workflow) -> Vec<Notice> {
    let recipients = recipients(workflow, Moment::Started);
    if recipients.is_empty() {
        return vec![];
    }
    let facts = known(engine, run, workflow, &[], Moment::Started).await;
    to(run, workflow, &recipients, Moment::Started, "start", facts)
}

/// Notices of the end of a run. In `advise`, one that would have changed what serves is also told to
/// those who hear of such changes.
pub async fn about_end(
    engine: &Engine,
    run: &Arc<Run>,
    workflow: &Workflow,
    attempts: &[Attempt],
    moment: Moment,
) -> Vec<Notice> {
    let mut all = recipients(workflow, moment);
    if moment == Moment::Succeeded && situation::advice(workflow, attempts).is_some() {
        for change in [Moment::CanaryStarted, Moment::Promoted, Moment::RolledBack] {
            add(&mut all, recipients(workflow, change));
        }
    }
    if all.is_empty() {
        return vec![];
    }
    let facts = known(engine, run, workflow, attempts, moment).await;
    let key = if moment == Moment::Promoted { PROMOTED } else { "end" };
    to(run, workflow, &all, moment, key, facts)
}

/// Alerts go to everybody who hears of failures, whether or not they asked for alerts.
pub async fn alert(engine: &Engine, run: &Run, workflow: &Workflow, key: &str, facts: Value) -> Vec<Notice> {
    let mut all = recipients(workflow, Moment::Alert);
    add(&mut all, recipients(workflow, Moment::Failed));
    if all.is_empty() {
        return vec![];
    }
    let facts = merged(known(engine, run, workflow, &[], Moment::Alert).await, facts);
    to(run, workflow, &all, Moment::Alert, key, facts)
}

/// What a message about `moment` of a run would say now.
pub async fn facts(
    engine: &Engine,
    run: &Run,
    workflow: &Workflow,
    moment: Moment,
) -> Result<Facts, StoreError> {
    let attempts = engine.store.attempts(run.id).await?;
    let mut given = match known(engine, run, workflow, &attempts, moment).await {
        Value::Object(given) => given,
        _ => Map::new(),
    };
    given.insert("workflow".to_owned(), json!(run.workflow));
    Ok(Facts::about(&run.model, Some(run.id), moment, given))
}

/// One notice for each recipient.
pub fn to(
    run: &Run,
    workflow: &Workflow,
    recipients: &[Recipient],
    moment: Moment,
    key: &str,
    facts: Value,
) -> Vec<Notice> {
    let facts = merged(
        json!({"run": run.id, "workflow": run.workflow, "model": run.model, "mode": workflow.mode}),
        facts,
    );
    recipients
        .iter()
        .enumerate()
        .map(|(index, recipient)| Notice {
            key: format!("{}/{key}/{index}", run.id),
            run: Some(run.id),
            model: run.model.clone(),
            moment,
            to: recipient.clone(),
            facts: facts.clone(),
        })
        .collect()
}

/// Who hears of `moment`.
pub(super) fn recipients(workflow: &Workflow, moment: Moment) -> Vec<Recipient> {
    // Who hears of promotions would wonder why there is none.
    let asks = |rule: &&NotifyRule| {
        rule.on.contains(&moment) || (moment == Moment::Frozen && rule.on.contains(&Moment::Promoted))
    };
    let mut all = vec![];
    for rule in workflow.notify.iter().filter(asks) {
        add(&mut all, rule.to.clone());
    }
    all
}

/// Nobody is told twice.
fn add(to: &mut Vec<Recipient>, more: Vec<Recipient>) {
    for recipient in more {
        if !to.contains(&recipient) {
            to.push(recipient);
        }
    }
}

/// What a reader wants to know: how things stand, and what the run's steps say.
async fn known(
    engine: &Engine,
    run: &Run,
    workflow: &Workflow,
    attempts: &[Attempt],
    moment: Moment,
) -> Value {
    let mut facts = situation::facts(engine, run, workflow, attempts, moment).await;
    facts.insert("at".to_owned(), json!(engine.clock.now()));
    facts.insert("mode".to_owned(), json!(workflow.mode));
    if let Some(outcome) = run.outcome {
        facts.insert("outcome".to_owned(), json!(outcome));
    }
    if let Some(reason) = &run.reason {
        facts.insert("reason".to_owned(), json!(reason));
    }
    let steps: Map<String, Value> = attempts
        .iter()
        .filter_map(|attempt| Some((attempt.step.to_string(), attempt.output.clone()?)))
        .collect();
    facts.insert("steps".to_owned(), Value::Object(steps));
    Value::Object(facts)
}

fn merged(base: Value, over: Value) -> Value {
    match (base, over) {
        (Value::Object(mut base), Value::Object(over)) => {
            base.extend(over);
            Value::Object(base)
        }
        (_, over) => over,
    }
}

/// As workflow files have it.
pub(super) fn word(moment: Moment) -> String {
    serde_json::to_value(moment).ok().and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default()
}
