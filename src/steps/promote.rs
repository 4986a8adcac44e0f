//! `uses: promote`: the verdict decides: promote, roll back or hold.
//!
//! A freeze keeps the promotion back and nothing else. Once it is over, what
//! the canary shows by then decides, not what `compare` read before it; so it
//! does for a held canary that was given more time.
//!
//! Prefixes of this step are all safe: the compare-and-set of the release is
//! its first write and refuses once a cancel was asked for; what follows
//! (host, record, canary) is repeated by any attempt until it is done.

mod frozen;

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::canary::{CanaryOutput, Rollout, moved, unknown_target};
use super::compare::{self, CompareOutput, Decision};
use super::context::{
    ReleaseChange, ReleaseChangeKind, ReleaseRefused, Sleep, StepContext, StepError, StepResult, to_json,
};
use super::publish::PublishOutput;
use super::wait::span;
use crate::adapter::AdapterError;
use crate::domain::Timestamp;
use crate::domain::canary::{CanaryRecord, CanaryState, Extension};
use crate::domain::id::{Generation, TargetName, VersionName};
use crate::domain::release::{Assignment, Release, Served};
use crate::domain::run::{Attempt, Outcome, Signal, SignalKind};
use crate::domain::verdict::Verdict;
use crate::domain::workflow::Moment;
use crate::domain::workflow::step::{Compare, HoldTraffic, OnInconclusive, Promote};
use crate::domain::workflow::units::{BasisPoints, format_duration};

/// How long a run waits beyond its bake for the controller, which wakes it when it is done.
const TAKING_BACK: TimeDelta = TimeDelta::minutes(1);

/// What the step kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PromoteOutput {
    /// The version that serves everybody; none when nothing was promoted.
    pub promoted: Option<VersionName>,
    /// The champion before.
    pub previous: Option<VersionName>,
    /// The target.
    pub target: TargetName,
    /// The generation that shows it.
    pub generation: Option<Generation>,
    /// Why, in plain words.
    pub reason: String,
}

/// What the step leaves for itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "stage")]
enum Resume {
    Held { until: Timestamp },
    Frozen { why: String },
    Baking { until: Timestamp, output: PromoteOutput },
}

/// Why a promotion waits, of an attempt that a freeze keeps back.
pub fn frozen(attempt: &Attempt) -> Option<String> {
    match Resume::deserialize(attempt.resume.as_ref()?).ok()? {
        Resume::Frozen { why } => Some(why),
        Resume::Held { .. } | Resume::Baking { .. } => None,
    }
}

/// A promotion by hand, if there is one.
pub fn by_hand(signals: &[Signal]) -> Option<&Signal> {
    signals.iter().find(|signal| signal.kind == SignalKind::Promote)
}

/// Does what the verdict says.
pub async fn run(spec: &Promote, ctx: &StepContext<'_>) -> Result<StepResult, StepError> {
    let Some((_, started)) = ctx.latest_output::<CanaryOutput>() else {
        return Err(StepError::permanent("no canary step ran before this one"));
    };
    let resume: Option<Resume> =
        ctx.resume.map(|resume| serde_json::from_value(resume.clone())).transpose().map_err(|error| {
            StepError::permanent(format!("cannot read what this step left for itself: {error}"))
        })?;
    let canary = ctx.ledger.canary().await?;
    if let Some(Resume::Baking { until, output }) = resume {
        return bake(ctx, canary, until, output).await;
    }
    if let Some(canary) = canary.as_ref().filter(|canary| canary.state == CanaryState::RolledBack) {
        return rolled_back(ctx, &started, canary.reason.clone()).await;
    }
    match started.rollout {
        Rollout::Advised => advised(ctx, &started),
        Rollout::FirstVersion => {
            let grounds = Grounds::by_evidence("first version".to_owned(), resume.as_ref());
            promote(spec, ctx, &started, grounds).await
        }
        Rollout::OnCanary => decide(spec, ctx, &started, canary, resume).await,
    }
}

async fn decide(
    spec: &Promote,
    ctx: &StepContext<'_>,
    started: &CanaryOutput,
    canary: Option<CanaryRecord>,
    resume: Option<Resume>,
) -> Result<StepResult, StepError> {
    if let Some(signal) = by_hand(ctx.signals) {
        let why = signal.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
        let reason = format!("promoted by {}{why}", signal.actor);
        return promote(spec, ctx, started, Grounds { reason, heeds_freeze: false, resume: None }).await;
    }
    let (decision, reason) = decision(ctx, canary.as_ref(), resume.as_ref());
    match decision {
        Decision::Promote => promote(spec, ctx, started, Grounds::by_evidence(reason, resume.as_ref())).await,
        Decision::RollBack => withdraw(ctx, started, reason).await,
        Decision::Hold => hold(ctx, started, canary, resume, reason).await,
    }
}

/// What `compare` came to; after a freeze, what it would come to now; of a held canary with more time, what the evidence
/// says by now.
fn decision(
    ctx: &StepContext<'_>,
    canary: Option<&CanaryRecord>,
    resume: Option<&Resume>,
) -> (Decision, String) {
    let Some((_, compared)) = ctx.latest_output::<CompareOutput>() else {
        return (Decision::Promote, "the workflow compares nothing".to_owned());
    };
    match (resume, canary.filter(|canary| canary.state == CanaryState::Watching)) {
        (Some(Resume::Frozen { .. }), Some(canary)) => {
            let has_time = !canary.extensions.is_empty()
                && canary.deadline.is_some_and(|deadline| ctx.clock.now() < deadline);
            let policy = if has_time { OnInconclusive::Hold } else { canary.rules.on_inconclusive };
            (compare::decide(canary.verdict, policy), canary.reason.clone())
        }
        // People were asked: no policy answers in their place.
        (Some(Resume::Held { .. }), Some(canary)) if !canary.extensions.is_empty() => {
            (compare::decide(canary.verdict, OnInconclusive::Hold), canary.reason.clone())
        }
        (Some(Resume::Held { .. } | Resume::Baking { .. } | Resume::Frozen { .. }) | None, _) => {
            (compared.decision, compared.reason)
        }
    }
}

/// What a promotion goes by.
struct Grounds<'r> {
    reason: String,
    /// A person who promotes was asked about freezes when they did.
    heeds_freeze: bool,
    resume: Option<&'r Resume>,
}

impl<'r> Grounds<'r> {
    fn by_evidence(reason: String, resume: Option<&'r Resume>) -> Self {
        Self { reason, heeds_freeze: true, resume }
    }
}

fn advised(ctx: &StepContext<'_>, started: &CanaryOutput) -> Result<StepResult, StepError> {
    let reason = format!("mode is not act: {} was not promoted on {}", started.version, started.target);
    ctx.log.note(&reason);
    StepResult::done(PromoteOutput {
        promoted: None,
        previous: started.champion.clone(),
        target: started.target.clone(),
        generation: None,
        reason,
    })
}

async fn promote(
    spec: &Promote,
    ctx: &StepContext<'_>,
    started: &CanaryOutput,
    grounds: Grounds<'_>,
) -> Result<StepResult, StepError> {
    let host = ctx.services.targets.get(&started.target).ok_or_else(|| unknown_target(&started.target))?;
    let Some((_, published)) = ctx.latest_output::<PublishOutput>() else {
        return Err(StepError::permanent("no version was published before this step"));
    };
    let mine = Served {
        version: published.version.clone(),
        base_url: published.base_url.clone(),
        manifest_sha256: published.manifest_sha256.clone(),
    };
    // Asked before all files are read, which would be done at every look; the write asks again.
    if grounds.heeds_freeze
        && let Some(freeze) = ctx.ledger.freeze().await?
        && champion(ctx.ledger.release(&started.target).await?.as_ref()) != Some(&mine)
    {
        return frozen::wait_out(&freeze, ctx, started, grounds.resume);
    }
    verify(ctx, &published).await?;
    let current = ctx.ledger.release(&started.target).await?;
    let champion = champion(current.as_ref()).cloned();
    let already = champion.as_ref() == Some(&mine);
    let serves = champion.as_ref().map(|served| &served.version);
    if !already && serves != started.champion.as_ref() {
        return Err(StepError::permanent(format!(
            "champion changed while {} was out: {} serves now",
            started.version,
            serves.map_or("nothing".to_owned(), ToString::to_string)
        ))
        .hint("trigger the workflow again: it will be compared with the new champion"));
    }
    let change = ReleaseChange {
        target: started.target.clone(),
        operation: "promote",
        expected: current.as_ref().map_or(Generation(0), |release| release.generation),
        assignment: Assignment { champion: Some(mine), canary: None, previous: champion },
        kind: ReleaseChangeKind::Promote,
        reason: grounds.reason.clone(),
        heeds_freeze: grounds.heeds_freeze && !already,
    };
    let release = match ctx.ledger.change_release(change).await {
        Ok(release) => release,
        Err(ReleaseRefused::Frozen(freeze)) => {
            return frozen::wait_out(&freeze, ctx, started, grounds.resume);
        }
        Err(refused @ (ReleaseRefused::Moved { .. } | ReleaseRefused::Step(_))) => {
            return Err(moved(refused));
        }
    };
    show(ctx, host.as_ref(), &release).await?;
    let bake = spec.bake.filter(|_| started.rollout == Rollout::OnCanary);
    let bake_until = bake.map(|bake| ctx.clock.now() + span(bake));
    ctx.ledger.canary_promoted(bake_until).await?;
    let output = PromoteOutput {
        promoted: Some(started.version.clone()),
        previous: started.champion.clone(),
        target: started.target.clone(),
        generation: Some(release.generation),
        reason: grounds.reason,
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

fn champion(release: Option<&Release>) -> Option<&Served> {
    release.and_then(|release| release.desired.champion.as_ref())
}

/// No version is promoted whose manifest or files are not what was sealed.
async fn verify(ctx: &StepContext<'_>, published: &PublishOutput) -> Result<(), StepError> {
    let store = ctx
        .services
        .stores
        .get(&published.store)
        .ok_or_else(|| StepError::permanent(format!("there is no store `{}`", published.store)))?;
    let PublishOutput { version, manifest_sha256, .. } = published;
    let whole = crate::artifacts::verify(store, &ctx.run.model, version, manifest_sha256).await;
    Ok(whole.map_err(AdapterError::from)?)
}

async fn show(
    ctx: &StepContext<'_>,
    host: &dyn crate::adapter::Target,
    release: &Release,
) -> Result<(), StepError> {
    host.apply(release, ctx.services.instance).await?;
    ctx.ledger.release_applied(&release.target, release.generation).await
}

async fn bake(
    ctx: &StepContext<'_>,
    canary: Option<CanaryRecord>,
    until: Timestamp,
    output: PromoteOutput,
) -> Result<StepResult, StepError> {
    if let Some(canary) = canary.filter(|canary| canary.state == CanaryState::RolledBack) {
        return Ok(rolled_back_in_bake(&output, &canary.reason));
    }
    let now = ctx.clock.now();
    let mut next = until;
    if now >= until {
        match ctx.ledger.end_bake().await?.map(|canary| (canary.state, canary.reason)) {
            // A look found that it fails; the controller takes it back at this moment.
            Some((CanaryState::Baking, _)) => next = now + TAKING_BACK,
            Some((CanaryState::RolledBack, reason)) => return Ok(rolled_back_in_bake(&output, &reason)),
            Some((CanaryState::Watching | CanaryState::Promoted, _)) | None => {
                return Ok(StepResult::Promoted { output: to_json(output)? });
            }
        }
    }
    Ok(StepResult::Sleep(Sleep {
        until: Some(next),
        resume: to_json(Resume::Baking { until, output })?,
        held: false,
        promoted: true,
        tell: None,
    }))
}

fn rolled_back_in_bake(output: &PromoteOutput, why: &str) -> StepResult {
    StepResult::End {
        outcome: Outcome::RolledBack,
        reason: format!("rolled back during bake: {why}"),
        output: json!({"promoted": null, "target": output.target, "reason": why}),
    }
}

async fn hold(
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
    let held_since = first_until - span(hold_for);
    let more = canary.as_ref().map_or(TimeDelta::zero(), |canary| canary.more_since(held_since));
    let until = first_until + more;
    if now >= until {
        let held = format_duration(hold_for);
        return withdraw(ctx, started, format!("nobody decided while it was held for {held}: {reason}"))
            .await;
    }
    if first && rules.is_some_and(|rules| rules.hold_traffic == HoldTraffic::Zero) {
        let why = format!("no traffic while it is held: {reason}");
        set_traffic(ctx, started, ("hold_at_zero", BasisPoints(0)), why).await?;
    }
    if let Some(canary) = canary.filter(|canary| more > TimeDelta::zero() && may_be_heard(canary)) {
        let given: Vec<String> = canary.extensions.iter().map(Extension::words).collect();
        let why = format!("traffic again, for it has more time: {}", given.join(", "));
        set_traffic(ctx, started, ("hold_with_traffic", canary.stage_share()), why).await?;
    }
    let next = format!("if nobody decides until {}, it is taken back", until.format("%F %H:%M UTC"));
    let facts = json!({"reason": reason, "next": next, "version": started.version});
    Ok(StepResult::Sleep(Sleep {
        until: Some(until),
        resume: to_json(Resume::Held { until: first_until })?,
        held: true,
        promoted: false,
        tell: first.then_some((Moment::Held, facts)),
    }))
}

/// Whether more time is of no use without the traffic that `hold_traffic: zero` took. Who has none for a reason gets none.
fn may_be_heard(canary: &CanaryRecord) -> bool {
    canary.rules.hold_traffic == HoldTraffic::Zero && canary.verdict == Verdict::Inconclusive
}

/// The canary stays, with another share: none by `hold_traffic: zero`, its own again when it is given more time.
async fn set_traffic(
    ctx: &StepContext<'_>,
    started: &CanaryOutput,
    (operation, share): (&'static str, BasisPoints),
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
        operation,
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

/// Takes this run's canary back and ends the run as rolled back.
async fn withdraw(
    ctx: &StepContext<'_>,
    started: &CanaryOutput,
    reason: String,
) -> Result<StepResult, StepError> {
    let host = ctx.services.targets.get(&started.target).ok_or_else(|| unknown_target(&started.target))?;
    if let Some(current) = ctx.ledger.release(&started.target).await? {
        let ours =
            current.desired.canary.as_ref().is_some_and(|canary| canary.served.version == started.version);
        let change = ReleaseChange {
            target: started.target.clone(),
            operation: "withdraw",
            expected: current.generation,
            assignment: Assignment { canary: None, ..current.desired.clone() },
            kind: ReleaseChangeKind::Withdraw,
            heeds_freeze: false,
            reason: reason.clone(),
        };
        let release = if ours { ctx.ledger.change_release(change).await.map_err(moved)? } else { current };
        show(ctx, host.as_ref(), &release).await?;
    }
    ctx.ledger.close_canary(&reason).await?;
    rolled_back(ctx, started, reason).await
}

/// The end of the run, if its canary was taken back while another step waited for something else.
pub(super) async fn taken_back(ctx: &StepContext<'_>) -> Result<Option<StepResult>, StepError> {
    let Some((_, started)) = ctx.latest_output::<CanaryOutput>() else { return Ok(None) };
    match ctx.ledger.canary().await?.filter(|canary| canary.state == CanaryState::RolledBack) {
        Some(canary) => rolled_back(ctx, &started, canary.reason).await.map(Some),
        None => Ok(None),
    }
}

async fn rolled_back(
    ctx: &StepContext<'_>,
    started: &CanaryOutput,
    reason: String,
) -> Result<StepResult, StepError> {
    let output = PromoteOutput {
        promoted: None,
        previous: started.champion.clone(),
        target: started.target.clone(),
        generation: None,
        reason: reason.clone(),
    };
    ctx.log.note(&reason);
    let output: Value = to_json(output)?;
    Ok(StepResult::End { outcome: Outcome::RolledBack, reason, output })
}
