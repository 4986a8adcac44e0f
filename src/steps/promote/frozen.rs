//! A promotion that a freeze keeps back: the run sleeps until the freeze is over.

use chrono::TimeDelta;
use serde_json::json;

use super::super::canary::CanaryOutput;
use super::super::context::{Sleep, StepContext, StepError, StepResult, to_json};
use super::super::wait::span;
use super::Resume;
use crate::domain::canary::{CanaryRecord, CanaryState};
use crate::domain::freeze::Freeze;
use crate::domain::workflow::Moment;

/// How often a freeze is looked at, should nobody say that it was lifted or replaced.
const LOOK: TimeDelta = TimeDelta::seconds(60);
/// Clocks differ: a freeze that is over here may still be in force by the time of the database.
const SHORTEST: TimeDelta = TimeDelta::seconds(1);

/// Whether a look at the canary is due or under way: what it showed before does not decide what is promoted after a
/// freeze, or after a time without a server.
pub(super) fn is_to_be_looked_at(canary: &CanaryRecord, ctx: &StepContext<'_>) -> bool {
    // A look that is over was begun one interval before the next one.
    let every = span(ctx.ledger.look_every()) + span(ctx.ledger.look_every()) / 2;
    let looked = canary.view().looked_at.is_some_and(|at| canary.next_look_at - at <= every);
    canary.state == CanaryState::Watching && !(looked && ctx.clock.now() < canary.next_look_at)
}

/// Sleeps for a moment, until it was looked at.
pub(super) fn look_first(why: &str, ctx: &StepContext<'_>) -> Result<StepResult, StepError> {
    Ok(StepResult::Sleep(Sleep {
        until: Some(ctx.clock.now() + SHORTEST),
        resume: to_json(Resume::Frozen { why: why.to_owned() })?,
        held: false,
        promoted: false,
        tell: None,
    }))
}

/// Sleeps, and says once why.
pub(super) fn wait_out(
    freeze: &Freeze,
    ctx: &StepContext<'_>,
    started: &CanaryOutput,
    resume: Option<&Resume>,
) -> Result<StepResult, StepError> {
    let now = ctx.clock.now();
    let first = !matches!(resume, Some(Resume::Frozen { .. }));
    let why = freeze.to_string();
    if first {
        ctx.log.note(&format!("{} is not promoted yet: {why}", started.version));
    }
    let facts = json!({
        "reason": why,
        "version": started.version,
        "next": format!(
            "once the freeze is over it is promoted, if the evidence still allows it; `refit promote {} \
             --despite-freeze` promotes it now",
            started.version
        ),
    });
    let until = freeze.until.map_or(now + LOOK, |until| until.min(now + LOOK));
    Ok(StepResult::Sleep(Sleep {
        until: Some(until.max(now + SHORTEST)),
        resume: to_json(Resume::Frozen { why })?,
        held: false,
        promoted: false,
        tell: first.then_some((Moment::Frozen, facts)),
    }))
}
