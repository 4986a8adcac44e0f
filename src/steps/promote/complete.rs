//! A promotion whose first write is made: the host shows it, and its canary
//! bakes. It ends as rolled back if somebody took it back meanwhile.

use serde_json::json;

use super::super::canary::{CanaryOutput, Rollout, unknown_target};
use super::super::context::{Promotion, Sleep, StepContext, StepError, StepResult, to_json};
use super::super::wait::span;
use super::{PromoteOutput, Resume, rolled_back, show};
use crate::domain::canary::CanaryState;
use crate::domain::run::Outcome;
use crate::domain::workflow::Moment;
use crate::domain::workflow::step::Promote;

/// Does what is left of it.
pub(super) async fn complete(
    spec: &Promote,
    ctx: &StepContext<'_>,
    started: &CanaryOutput,
    made: Promotion,
) -> Result<StepResult, StepError> {
    let shown = match ctx.services.targets.get(&started.target) {
        Some(host) => show(ctx, host.as_ref(), &made.release).await,
        None => Err(unknown_target(&started.target)),
    };
    match shown {
        // There is nothing to roll a first version back to: whoever cancels its run leaves it to the reconciler to show it.
        Err(StepError::Failed { failure, .. })
            if started.rollout == Rollout::FirstVersion && ctx.run.cancel.is_some() =>
        {
            ctx.log.note(&format!(
                "the host does not show it yet, and is shown it as soon as it answers: {}",
                failure.message
            ));
        }
        shown => shown?,
    }
    // Some hosts take minutes.
    let since = ctx.ledger.promotion(&started.target).await?;
    if let Some(why) = since.and_then(|made| made.replaced) {
        return taken_off(ctx, started, why).await;
    }
    let bake = spec.bake.filter(|_| started.rollout == Rollout::OnCanary);
    let bake_until = match started.canary {
        // A bake that an earlier attempt began goes on.
        Some(canary) => {
            let until = bake.map(|bake| ctx.clock.now() + span(bake));
            let canary = ctx.ledger.canary_promoted(canary, until).await?;
            if canary.state == CanaryState::RolledBack {
                return rolled_back(ctx, started, canary.reason).await;
            }
            canary.bake_until
        }
        None => None,
    };
    let output = PromoteOutput {
        promoted: Some(started.version.clone()),
        previous: started.champion.clone(),
        target: started.target.clone(),
        generation: Some(made.release.generation),
        reason: made.reason,
    };
    match bake_until {
        None => Ok(StepResult::Promoted { output: to_json(output)? }),
        Some(until) => {
            let watched = humantime::format_duration(spec.bake.unwrap_or_default());
            let facts = json!({
                "reason": output.reason,
                "version": output.promoted,
                "outcome": Outcome::Promoted,
                "next": format!("it is watched for {watched} more; should it harm, it is rolled back at once"),
            });
            Ok(StepResult::Sleep(Sleep {
                until: Some(until),
                resume: to_json(Resume::Baking { until, output })?,
                held: false,
                promoted: true,
                tell: Some((Moment::Promoted, facts)),
            }))
        }
    }
}

/// Another version serves since. What the host shows is the business of whoever decided that: one that shows nothing
/// keeps no run that is over.
pub(super) async fn taken_off(
    ctx: &StepContext<'_>,
    started: &CanaryOutput,
    why: String,
) -> Result<StepResult, StepError> {
    if let Some(canary) = started.canary {
        ctx.ledger.close_canary(canary, &why).await?;
    }
    rolled_back(ctx, started, why).await
}
