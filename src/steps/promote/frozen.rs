//! A promotion that a freeze keeps back: the run sleeps until the freeze is over.

use chrono::TimeDelta;
use serde_json::json;

use super::super::canary::{CanaryOutput, Rollout};
use super::super::context::{Sleep, StepContext, StepError, StepResult, to_json};
use super::Resume;
use crate::domain::Timestamp;
use crate::domain::freeze::Freeze;
use crate::domain::workflow::Moment;

/// How often a freeze is looked at, should nobody say that it was lifted or replaced.
const LOOK: TimeDelta = TimeDelta::seconds(60);
/// The same without a canary out: nothing may speak against it meanwhile, and a database that sleeps when nobody asks
/// sleeps. Whoever lifts a freeze wakes the run.
const LOOK_WITHOUT_CANARY: TimeDelta = TimeDelta::minutes(15);
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
            wish.granted(FreezeId::generate(), now).expect("granted")
        };
        let endless = freeze(FreezeEnd::Never);
        let looks = |freeze: &Freeze, rollout| next_look(freeze, rollout, now) - now;
        assert_eq!(looks(&endless, Rollout::OnCanary), TimeDelta::minutes(1));
        assert_eq!(looks(&endless, Rollout::FirstVersion), TimeDelta::minutes(15));
        let short = freeze(FreezeEnd::After(TimeDelta::minutes(5)));
        assert_eq!(looks(&short, Rollout::FirstVersion), TimeDelta::minutes(5));
    }
}
