//! `uses: wait`: holds no worker, no connection and no memory.

use std::borrow::Cow;

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};

use super::canary::CanaryOutput;
use super::context::{Sleep, StepContext, StepError, StepResult, to_json};
use super::promote::by_hand;
use crate::domain::Timestamp;
use crate::domain::canary::{CanaryRecord, CanaryState};
use crate::domain::expr::Expr;
use crate::domain::workflow::step::Wait;
use crate::domain::workflow::{Step, StepKind};

/// How often a condition is looked at.
const LOOK: TimeDelta = TimeDelta::seconds(60);

/// What the step leaves for itself.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Since {
    since: Timestamp,
}

/// What the step kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WaitOutput {
    /// When it began to wait.
    pub since: Timestamp,
    /// Why it ended.
    pub ended_by: EndedBy,
}

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndedBy {
    /// Its time was over.
    Time,
    /// `until` was true.
    Until,
    /// `at_most` was over before `until` was true.
    AtMost,
    /// The canary it watched was taken back, or promoted by a human.
    CanaryEnded,
    /// There is no canary to watch: a first version, or a mode that does not act.
    NoCanary,
}

/// Where a wait stands.
pub(super) enum Waiting {
    /// It is over.
    Over(EndedBy),
    /// It is looked at again then.
    Until(Timestamp),
}

/// Goes to sleep, or finds that it slept enough.
pub async fn run(spec: &Wait, ctx: &StepContext<'_>) -> Result<StepResult, StepError> {
    let since = match ctx.resume {
        None => ctx.clock.now(),
        Some(resume) => {
            serde_json::from_value::<Since>(resume.clone())
                .map_err(|error| StepError::permanent(format!("cannot read when the wait began: {error}")))?
                .since
        }
    };
    let canary = if follows_canary(ctx) { ctx.ledger.canary().await? } else { None };
    match look(spec, since, canary.as_ref(), ctx)? {
        Waiting::Over(ended_by) => StepResult::done(WaitOutput { since, ended_by }),
        Waiting::Until(until) => Ok(StepResult::Sleep(Sleep {
            until: Some(until),
            resume: to_json(Since { since })?,
            held: false,
            promoted: false,
            tell: None,
        })),
    }
}

/// Whether a canary step ended before this one. The workflow is asked first: to read all that steps left takes longer, in
/// a run of many steps, than all else that this one does.
fn follows_canary(ctx: &StepContext<'_>) -> bool {
    let is_canary = |step: &Step| matches!(step.kind, StepKind::Canary(_));
    ctx.workflow.steps.iter().any(is_canary) && ctx.latest_output::<CanaryOutput>().is_some()
}

/// Whether a wait that began at `since` is over; `canary` is what it watches.
pub(super) fn look(
    spec: &Wait,
    since: Timestamp,
    canary: Option<&CanaryRecord>,
    ctx: &StepContext<'_>,
) -> Result<Waiting, StepError> {
    let now = ctx.clock.now();
    let over = |ended_by| Ok(Waiting::Over(ended_by));
    let watches = [&spec.until, &spec.abort_if].into_iter().flatten().any(|expr| expr.mentions("canary"));
    let mut scope = Cow::Borrowed(ctx.scope);
    if follows_canary(ctx) {
        match canary {
            Some(canary) if canary.state != CanaryState::Watching => return over(EndedBy::CanaryEnded),
            Some(_) if by_hand(ctx, canary).is_some() => return over(EndedBy::CanaryEnded),
            Some(canary) => scope = Cow::Owned(ctx.scope.clone().with("canary", canary.shown())),
            None if watches => return over(EndedBy::NoCanary),
            None => {}
        }
    } else if watches {
        return Err(StepError::permanent("`canary` is used in this step, but no canary step ran before it"));
    }
    if holds(&spec.abort_if, &scope)? {
        let why = spec.abort_if.as_ref().map_or("", Expr::source);
        return Err(StepError::permanent(format!("`abort_if: {why}` became true")));
    }
    let (mut earliest, mut latest) =
        (since + span(spec.at_least), spec.at_most.map(|at_most| since + span(at_most)));
    if let Some(canary) = canary.filter(|canary| !canary.extensions.is_empty()) {
        match &mut latest {
            Some(latest) => *latest = prolonged(*latest, canary, since, ctx),
            None if spec.until.is_none() => earliest = prolonged(earliest, canary, since, ctx),
            None => {}
        }
    }
    if now >= earliest {
        if spec.until.is_none() {
            return over(EndedBy::Time);
        }
        if holds(&spec.until, &scope)? {
            return over(EndedBy::Until);
        }
        if latest.is_some_and(|latest| now >= latest) {
            return over(EndedBy::AtMost);
        }
    }
    let looks = spec.abort_if.is_some() || (spec.until.is_some() && now >= earliest);
    let mut until = if now < earliest { earliest } else { latest.unwrap_or(now + LOOK) };
    if looks {
        until = until.min(now + LOOK);
    }
    Ok(Waiting::Until(until))
}

/// The end of a wait for a canary that was given more time. Its deadline is the end of the first step that waits for it;
/// a later one is longer by what was given while it waited.
fn prolonged(end: Timestamp, canary: &CanaryRecord, since: Timestamp, ctx: &StepContext<'_>) -> Timestamp {
    let waits = |step: &&Step| step.kind.wait().is_some();
    let mut after_canary =
        ctx.workflow.steps.iter().skip_while(|step| !matches!(step.kind, StepKind::Canary(_)));
    let is_first = after_canary.find(waits).is_some_and(|step| &step.id == ctx.step);
    if is_first {
        let later = end + canary.more_since(canary.started_at);
        // Time that was given after the end counts from then.
        return canary.deadline.map_or(later, |deadline| deadline.max(later));
    }
    end + canary.more_since(since)
}

fn holds(condition: &Option<Expr>, scope: &crate::domain::expr::Scope) -> Result<bool, StepError> {
    match condition {
        Some(condition) => Ok(condition.is_true(scope)?),
        None => Ok(false),
    }
}

/// A duration of the workflow file; those are bounded, so it always fits.
pub fn span(duration: std::time::Duration) -> TimeDelta {
    TimeDelta::from_std(duration).unwrap_or(TimeDelta::MAX)
}
