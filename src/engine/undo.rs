//! Takes outside effects of a run back. An undo removes only what the run
//! itself made, and only if it is still current; doing it twice is doing it once.

use std::sync::Arc;

use super::Engine;
use super::because::{configuration, left_out};
use crate::domain::because::{Because, Evidence};
use crate::domain::canary::CanaryState;
use crate::domain::release::{Assignment, Release, ReleaseActor};
use crate::domain::run::{Intent, IntentState, Outcome, Run, Undo};
use crate::steps::canary::unknown_target;
use crate::steps::context::StepError;
use crate::store::{CanaryEnd, ReleaseWrite, ReleaseWriteByRun, ReleaseWritten, StoreError};

/// Takes back the effect whose intent has `key`.
pub async fn undo(engine: &Arc<Engine>, run: &Run, intents: &[Intent], key: &str) -> Result<(), StepError> {
    let Some(undo) = intents.iter().find(|intent| intent.key == key).and_then(|intent| intent.undo.clone())
    else {
        return Ok(());
    };
    match &undo {
        Undo::WithdrawCanary { model, target, version, .. } => {
            let host = engine.services.targets.get(target).ok_or_else(|| unknown_target(target))?;
            loop {
                let Some(release) = engine.store.release(model, target).await? else { return Ok(()) };
                let ours = release.owner == Some(run.id)
                    && release
                        .desired
                        .canary
                        .as_ref()
                        .is_some_and(|canary| &canary.served.version == version);
                let release = if ours {
                    let reason = why(run);
                    let (live, ends_canary) = match engine.store.canary_of(run.id).await {
                        Ok(canary) => {
                            let live = canary.filter(|canary| canary.state == CanaryState::Watching);
                            let ends = live.as_ref().map(|canary| CanaryEnd::of(canary, reason.clone()));
                            (live, ends)
                        }
                        Err(away @ StoreError::Away(_)) => return Err(away.into()),
                        // Not missed for bookkeeping.
                        Err(unreadable) => {
                            left_out(&unreadable, &reason);
                            (None, Some(CanaryEnd::of_unreadable(run.id, reason.clone())))
                        }
                    };
                    let because = Because {
                        reason,
                        evidence: live.as_ref().map(Evidence::of),
                        configuration: Some(configuration(&run.definition)),
                    };
                    let write = ReleaseWrite {
                        model: model.clone(),
                        target: target.clone(),
                        expected: release.generation,
                        assignment: Assignment { canary: None, ..release.desired.clone() },
                        owner: None,
                        actor: ReleaseActor::Undo { run: run.id },
                        because,
                        at: engine.clock.now(),
                        by_run: Some(ReleaseWriteByRun {
                            run: run.id,
                            epoch: run.epoch,
                            intent: Intent {
                                step: intents_step(intents, key, run)?,
                                key: format!("{key}/undo"),
                                detail: serde_json::Value::Null,
                                undo: None,
                                result: None,
                                state: IntentState::Dead,
                            },
                            promotes: false,
                        }),
                        ends_canary,
                        marks_bad: None,
                        notices: vec![],
                        heeds_freeze: false,
                    };
                    match engine.store.write_release(write).await? {
                        ReleaseWritten::Made(release) => release,
                        // Somebody shifted or ended it in between: look again.
                        ReleaseWritten::Moved(_) => continue,
                        ReleaseWritten::CancelRequested => return Err(StepError::Cancelled),
                        ReleaseWritten::Frozen(freeze) => {
                            return Err(StepError::permanent(freeze.to_string()));
                        }
                        ReleaseWritten::Deleted(version) => {
                            return Err(StepError::permanent(format!("version {version} was deleted")));
                        }
                    }
                } else {
                    release
                };
                if !release.is_applied() && is_of(engine, run, &release).await? {
                    host.apply(&release, engine.services.instance).await?;
                    engine.store.release_applied(model, target, release.generation).await?;
                }
                return Ok(());
            }
        }
    }
}

/// Whether the newest change of a release is about `run`. Any other is for its maker, or the reconciler, to show: a host
/// that does not take it keeps no run that has nothing to do with it.
async fn is_of(engine: &Engine, run: &Run, release: &Release) -> Result<bool, StoreError> {
    let history = engine.store.release_history(&release.model, &release.target, 1).await?;
    Ok(history.first().is_none_or(|change| match &change.actor {
        ReleaseActor::Run { run: maker }
        | ReleaseActor::Undo { run: maker }
        | ReleaseActor::Controller { run: maker } => *maker == run.id,
        ReleaseActor::Human { .. } => false,
    }))
}

/// Why the run's effects are taken back.
fn why(run: &Run) -> String {
    let (ended, because) = match (&run.cancel, run.outcome) {
        (Some(cancel), _) => (format!("{} cancelled its run", cancel.actor), &cancel.reason),
        (None, Some(Outcome::Rejected)) => ("its run was rejected".to_owned(), &run.reason),
        (None, Some(Outcome::Failed)) => ("its run failed".to_owned(), &run.reason),
        (
            None,
            Some(
                Outcome::Succeeded
                | Outcome::Promoted
                | Outcome::RolledBack
                | Outcome::Skipped
                | Outcome::Cancelled
                | Outcome::CancelledAfterPromotion,
            )
            | None,
        ) => ("its run ended".to_owned(), &run.reason),
    };
    match because {
        Some(because) => format!("{ended}: {because}"),
        None => ended,
    }
}

fn intents_step(intents: &[Intent], key: &str, run: &Run) -> Result<crate::domain::id::StepId, StepError> {
    intents
        .iter()
        .find(|intent| intent.key == key)
        .map(|intent| intent.step.clone())
        .ok_or_else(|| StepError::permanent(format!("run {} has no intent `{key}`", run.id)))
}

impl From<StoreError> for StepError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Fenced => StepError::Fenced,
            StoreError::Away(_) => StepError::transient(error.to_string()),
            StoreError::Unusable { .. } | StoreError::Broken(_) => StepError::permanent(error.to_string()),
        }
    }
}
