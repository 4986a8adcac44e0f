//! A promotion whose first write is made: what has become of it, and what
//! people hear of one that cannot be completed yet.

use serde_json::json;

use super::known::Known;
use super::{Engine, notices};
use crate::domain::id::{Generation, ModelName, RunId, StepId, TargetName};
use crate::steps::context::Promotion;
use crate::store::{Notice, ReleaseAudit, StoreError};

/// What a person can do about it.
const WAYS_OUT: &str = "See to what the error names; then it is completed by itself. To take the promotion back instead: \
    `refit rollback`, which ends the run. `refit run cancel` waits for the promotion; a first version has nothing to go \
    back to, so that its run then ends at the next try.";

/// Says, once for each promotion, why it is not completed yet.
pub(super) async fn alert(engine: &Engine, known: &Known, step: &StepId, why: &str) -> Vec<Notice> {
    tracing::error!(run.id = %known.run.id, step.name = %step,
        "The promotion of run {} is decided and not completed, trying again: {why}", known.run.id);
    let why = engine.services.secrets.mask(why);
    let facts = json!({
        "reason": format!("the promotion is decided, and step `{step}` cannot complete it: {why}"),
        "next": "refit goes on trying every few minutes; the run does not end before.",
        "todo": WAYS_OUT,
    });
    notices::alert(engine, &known.run, &known.workflow, &format!("promotion/{step}"), facts).await
}

/// The same of one at which processes die over and over: it does not fail either.
pub(super) async fn alert_of_crashes(engine: &Engine, known: &Known) -> Result<(), StoreError> {
    let limit = engine.settings.crash_limit;
    if known.run.crashes < limit {
        return Ok(());
    }
    let Some(step) = known.promoting() else { return Ok(()) };
    let why = format!("refit stopped {limit} times in a row while working on this run");
    let told = alert(engine, known, step, &why).await;
    engine.store.queue_notices(&told, engine.clock.now()).await
}

impl Engine {
    /// The promotion that `run` made under the intent `key`, if it did.
    pub(super) async fn promotion_of(
        &self,
        (run, key): (RunId, &str),
        model: &ModelName,
        target: &TargetName,
    ) -> Result<Option<Promotion>, StoreError> {
        let intents = self.store.intents(run).await?;
        let Some(intent) = intents.into_iter().find(|intent| intent.key == key) else { return Ok(None) };
        let broken = |what: &str| StoreError::Broken(format!("intent `{key}` is recorded, {what} is not"));
        let made = intent.detail.get("generation").and_then(serde_json::Value::as_i64);
        let made = Generation(made.ok_or_else(|| broken("its generation"))?);
        let release = self.store.release(model, target).await?.ok_or_else(|| broken("its release"))?;
        let history = self.store.release_history(model, target, u32::MAX).await?;
        let first = history.iter().find(|change| change.generation == made);
        let first = first.ok_or_else(|| broken("its change of the release"))?;
        let version = |change: &ReleaseAudit| change.assignment.champion.clone().map(|it| it.version);
        let mine = version(first);
        // As of the release that was read: what was changed since is found by whoever asks again.
        let until_now = history.iter().filter(|change| change.generation <= release.generation);
        let others = until_now.take_while(|change| version(change) != mine);
        let replaced = others.last().map(|change| {
            let mine = mine.as_ref().map_or("it".to_owned(), ToString::to_string);
            format!("{mine} was taken off `{target}` by {}: {}", change.actor, change.reason)
        });
        Ok(Some(Promotion { reason: first.reason.clone(), release, replaced }))
    }
}
