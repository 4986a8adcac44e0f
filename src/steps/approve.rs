//! `uses: approve`: a human decides. Before a step that promotes a canary nobody need answer any more once the canary
//! was taken back, and whoever promotes it by hand has answered.

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::canary::CanaryOutput;
use super::context::{Sleep, StepContext, StepError, StepResult, to_json};
use super::promote::{by_hand, taken_back};
use super::wait::span;
use crate::domain::Timestamp;
use crate::domain::canary::CanaryState;
use crate::domain::id::StepId;
use crate::domain::run::{Attempt, Outcome, Signal, SignalKind};
use crate::domain::workflow::step::Approve;
use crate::domain::workflow::{Moment, StepKind};

/// What the step kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ApproveOutput {
    /// Who approved.
    pub approved_by: String,
    /// When.
    pub approved_at: Timestamp,
    /// Why, if they said so.
    pub reason: Option<String>,
}

impl ApproveOutput {
    fn of(signal: &Signal) -> Self {
        Self { approved_by: signal.actor.clone(), approved_at: signal.at, reason: signal.reason.clone() }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Asked {
    asked_at: Timestamp,
    /// What the workflow says to whoever decides; absent where it says nothing, and of steps that asked before it was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

/// What an attempt that waits for approval says to whoever decides.
pub fn asks(attempt: &Attempt) -> Option<String> {
    Asked::deserialize(attempt.resume.as_ref()?).ok()?.message
}

/// What humans answered to a step so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Answer<'a> {
    /// Nobody did.
    None,
    /// It may go on.
    Approved(&'a Signal),
    /// It may not.
    Rejected(&'a Signal),
}

/// The first answer to `step` among `signals`.
pub fn answer<'a>(signals: &'a [Signal], step: &StepId) -> Answer<'a> {
    for signal in signals {
        match &signal.kind {
            SignalKind::Approve { step: to } if to == step => return Answer::Approved(signal),
            SignalKind::Reject { step: to } if to == step => return Answer::Rejected(signal),
            SignalKind::Approve { .. }
            | SignalKind::Reject { .. }
            | SignalKind::Promote
            | SignalKind::RolledBack { .. }
            | SignalKind::Look => {}
        }
    }
    Answer::None
}

/// The end of a run that a human refused.
pub fn refused(signal: &Signal) -> StepResult {
    let why = signal.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
    StepResult::End {
        outcome: Outcome::Rejected,
        reason: format!("{} did not approve{why}", signal.actor),
        output: json!({"rejected_by": signal.actor, "rejected_at": signal.at, "reason": signal.reason}),
    }
}

/// Who approved `step`, if somebody did and nobody refused before.
pub fn approval(signals: &[Signal], step: &StepId) -> Option<ApproveOutput> {
    match answer(signals, step) {
        Answer::Approved(signal) => Some(ApproveOutput::of(signal)),
        Answer::Rejected(_) | Answer::None => None,
    }
}

/// Whether a canary is out that a later step promotes: what is asked is whether it may.
fn asks_to_promote(ctx: &StepContext<'_>) -> bool {
    let later = ctx.workflow.steps.iter().skip_while(|step| &step.id != ctx.step);
    let promotes = later.map(|step| &step.kind).any(|kind| matches!(kind, StepKind::Promote(_)));
    promotes && ctx.latest_output::<CanaryOutput>().is_some()
}

/// Asks, or finds an answer.
pub async fn run(spec: &Approve, ctx: &StepContext<'_>) -> Result<StepResult, StepError> {
    if let Some(approval) = approval(ctx.signals, ctx.step) {
        return StepResult::done(approval);
    }
    if let Answer::Rejected(signal) = answer(ctx.signals, ctx.step) {
        return Ok(refused(signal));
    }
    if asks_to_promote(ctx) {
        let canary = ctx.ledger.canary().await?;
        match canary.as_ref().map(|canary| canary.state) {
            Some(CanaryState::RolledBack) => {
                if let Some(end) = taken_back(ctx).await? {
                    return Ok(end);
                }
            }
            Some(CanaryState::Watching) => {
                if let Some(signal) = by_hand(ctx, canary.as_ref()) {
                    return StepResult::done(ApproveOutput::of(signal));
                }
            }
            Some(CanaryState::Baking | CanaryState::Promoted) | None => {}
        }
    }
    let now = ctx.clock.now();
    let asked = match ctx.resume {
        None => Asked {
            asked_at: now,
            message: spec.message.as_ref().map(|message| ctx.render(message)).transpose()?,
        },
        Some(resume) => serde_json::from_value(resume.clone()).map_err(|error| {
            StepError::permanent(format!("cannot read when approval was asked for: {error}"))
        })?,
    };
    let until = spec.at_most.map(|at_most| asked.asked_at + span(at_most));
    if until.is_some_and(|until| now >= until) {
        return Ok(StepResult::End {
            outcome: Outcome::Rejected,
            reason: format!("nobody approved step `{}` in time", ctx.step),
            output: json!({"asked_at": asked.asked_at}),
        });
    }
    let message = asked.message.clone().unwrap_or_else(|| format!("step `{}` waits for approval", ctx.step));
    let mut facts = json!({"step": ctx.step, "message": message, "until": until});
    if let Some(until) = until {
        let next = format!("if nobody approves until {}, it is rejected", until.format("%F %H:%M UTC"));
        facts["next"] = json!(next);
    }
    let tell = ctx.resume.is_none().then_some((Moment::NeedsApproval, facts));
    Ok(StepResult::Sleep(Sleep { until, resume: to_json(asked)?, held: false, promoted: false, tell }))
}
