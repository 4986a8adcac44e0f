//! A promotion that a freeze keeps back: the run sleeps until the freeze is over.

use chrono::TimeDelta;
use serde_json::json;

use super::super::canary::{CanaryOutput, Rollout};
use super::super::context::{Sleep, StepContext, StepError, StepResult, to_json};
use super::super::wait::span;
use super::Resume;
use crate::domain::Timestamp;
use crate::domain::canary::{CanaryRecord, CanaryState};
use crate::domain::freeze::Freeze;
use crate::domain::workflow::Moment;

/// How often a freeze is looked at, should nobody say that it was lifted or replaced.
const LOOK: TimeDelta = TimeDelta::seconds(60);
/// The same without a canary out: nothing may speak against it meanwhile, and a database that sleeps when nobody asks
/// sleeps. Whoever lifts a freeze wakes the run.
const LOOK_WITHOUT_CANARY: TimeDelta = TimeDelta::minutes(15);
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
    Ok(StepResult::Sleep(Sleep {
        until: Some(next_look(freeze, started.rollout, now)),
        resume: to_json(Resume::Frozen { why })?,
        held: false,
        promoted: false,
        tell: first.then_some((Moment::Frozen, facts)),
    }))
}

fn next_look(freeze: &Freeze, rollout: Rollout, now: Timestamp) -> Timestamp {
    let next = now
        + match rollout {
            Rollout::OnCanary => LOOK,
            Rollout::FirstVersion | Rollout::Advised => LOOK_WITHOUT_CANARY,
        };
    freeze.until.map_or(next, |until| until.min(next)).max(now + SHORTEST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::freeze::{FreezeEnd, FreezeWish};
    use crate::domain::id::FreezeId;

    #[test]
    fn without_a_canary_a_freeze_is_looked_at_seldom_and_its_end_is_met() {
        let now: Timestamp = "2026-11-27T08:00:00Z".parse().expect("a time");
        let freeze = |end| {
            let (reason, by) = ("Black Friday".to_owned(), "ana".to_owned());
            let wish = FreezeWish { model: None, from: None, end, reason, by };
            wish.granted(FreezeId::generate(), now, &[]).expect("granted")
        };
        let endless = freeze(FreezeEnd::Never);
        let looks = |freeze: &Freeze, rollout| next_look(freeze, rollout, now) - now;
        assert_eq!(looks(&endless, Rollout::OnCanary), TimeDelta::minutes(1));
        assert_eq!(looks(&endless, Rollout::FirstVersion), TimeDelta::minutes(15));
        let short = freeze(FreezeEnd::After(TimeDelta::minutes(5)));
        assert_eq!(looks(&short, Rollout::FirstVersion), TimeDelta::minutes(5));
    }
}
