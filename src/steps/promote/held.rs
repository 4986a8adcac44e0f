//! A canary that people decide about: it is watched on, until they do or its
//! time is over.

use serde_json::json;

use super::super::canary::{CanaryOutput, moved, unknown_target};
use super::super::context::{
    ReleaseChange, ReleaseChangeKind, Sleep, StepContext, StepError, StepResult, to_json,
};
use super::super::wait::span;
use super::{Resume, show, withdraw};
use crate::domain::Timestamp;
use crate::domain::canary::{CanaryRecord, Extension};
use crate::domain::verdict::Verdict;
use crate::domain::workflow::Moment;
use crate::domain::workflow::step::{Compare, HoldTraffic};
use crate::domain::workflow::units::{BasisPoints, format_duration};

/// Asks people, or goes on waiting for them until the time to hold is over.
pub(super) async fn hold(
    ctx: &StepContext<'_>,
    started: &CanaryOutput,
    canary: Option<CanaryRecord>,
    resume: Option<Resume>,
    reason: String,
) -> Result<StepResult, StepError> {
    let now = ctx.clock.now();
    let rules = canary.as_ref().map(|canary| &canary.rules);
    let hold_for = rules.map_or_else(|| Compare::without_rules().hold_for, |rules| rules.hold_for);
    let (first, first_until) = match resume {
        Some(Resume::Held { until }) => (false, until),
        Some(Resume::Frozen { .. } | Resume::Baking { .. }) | None => (true, now + span(hold_for)),
    };
    let until = canary.as_ref().map_or(first_until, |canary| end(canary, first_until));
    if now >= until {
        let held = format_duration(hold_for);
        return withdraw(ctx, started, format!("nobody decided while it was held for {held}: {reason}"))
            .await;
    }
    let canary = canary.as_ref().filter(|canary| canary.rules.hold_traffic == HoldTraffic::Zero);
    let mut awake = until;
    if let Some(canary) = canary.filter(|canary| first || !canary.extensions.is_empty()) {
        // An operation is made once: each extension gives the traffic back once, and its end takes it once.
        let nth = |operation: &str| match canary.extensions.len() {
            0 => operation.to_owned(),
            nth => format!("{operation}-{nth}"),
        };
        match canary.deadline.filter(|deadline| may_be_heard(canary) && now < *deadline) {
            Some(deadline) => {
                let given: Vec<String> = canary.extensions.iter().map(Extension::words).collect();
                let why = format!("traffic again, for it has more time: {}", given.join(", "));
                set_traffic(ctx, started, (nth("hold_with_traffic"), canary.stage_share()), why).await?;
                awake = until.min(deadline);
            }
            None => {
                let why = format!("no traffic while it is held: {reason}");
                set_traffic(ctx, started, (nth("hold_at_zero"), BasisPoints(0)), why).await?;
            }
        }
    }
    let next = format!("if nobody decides until {}, it is taken back", until.format("%F %H:%M UTC"));
    let facts = json!({"reason": reason, "next": next, "version": started.version});
    Ok(StepResult::Sleep(Sleep {
        until: Some(awake),
        resume: to_json(Resume::Held { until: first_until })?,
        held: true,
        promoted: false,
        tell: first.then_some((Moment::Held, facts)),
    }))
}

/// When a canary that was to be held until `first` is taken back, with the time that it was given since.
pub(super) fn end(canary: &CanaryRecord, first: Timestamp) -> Timestamp {
    first + canary.more_since(first - span(canary.rules.hold_for))
}

/// Whether more time is of no use without the traffic that `hold_traffic: zero` took. Who has none for a reason gets none.
fn may_be_heard(canary: &CanaryRecord) -> bool {
    !canary.extensions.is_empty() && canary.verdict == Verdict::Inconclusive
}

/// The canary stays, with another share: none by `hold_traffic: zero`, its own again when it is given more time.
async fn set_traffic(
    ctx: &StepContext<'_>,
    started: &CanaryOutput,
    (operation, share): (String, BasisPoints),
    reason: String,
) -> Result<(), StepError> {
    let Some(current) = ctx.ledger.release(&started.target).await? else { return Ok(()) };
    let mut assignment = current.desired.clone();
    let Some(canary) = assignment.canary.as_mut().filter(|canary| canary.served.version == started.version)
    else {
        return Ok(());
    };
    if canary.basis_points == share && current.is_applied() {
        return Ok(());
    }
    canary.basis_points = share;
    let change = ReleaseChange {
        target: started.target.clone(),
        operation: operation.into(),
        expected: current.generation,
        assignment,
        kind: ReleaseChangeKind::SetCanary,
        heeds_freeze: false,
        reason,
    };
    let release = ctx.ledger.change_release(change).await.map_err(moved)?;
    let host = ctx.services.targets.get(&started.target).ok_or_else(|| unknown_target(&started.target))?;
    show(ctx, host.as_ref(), &release).await
}
