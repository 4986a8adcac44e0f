//! A promotion that a freeze keeps back: the run sleeps until the freeze is over.

use chrono::TimeDelta;
use serde_json::json;

use super::super::canary::CanaryOutput;
use super::super::context::{Sleep, StepContext, StepError, StepResult, to_json};
use super::Resume;
use crate::domain::freeze::Freeze;
use crate::domain::workflow::Moment;

/// How often a freeze is looked at, should nobody say that it was lifted or replaced.
const LOOK: TimeDelta = TimeDelta::seconds(60);
/// Clocks differ: a freeze that is over here may still be in force by the time of the database.
const SHORTEST: TimeDelta = TimeDelta::seconds(1);

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
