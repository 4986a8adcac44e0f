//! `uses: promote`: the verdict decides: promote, roll back or hold.
//!
//! A freeze keeps the promotion back and nothing else. Once it is over, what
//! the canary shows by then decides, not what `compare` read before it; so it
//! does for a held canary that was given more time.
//!
//! Prefixes of this step are all safe: the compare-and-set of the release is
//! its first write and refuses once a cancel was asked for; what follows
//! (host, record, canary) is repeated by any attempt until it is done. From the
//! first write on the engine tries it again whatever fails.

mod complete;
mod frozen;
mod held;

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::canary::{CanaryOutput, Rollout, moved, unknown_target};
use super::compare::{self, CompareOutput, Decision};
use super::context::{
    ReleaseChange, ReleaseChangeKind, ReleaseRefused, Sleep, StepContext, StepError, StepResult, to_json,
};
use super::publish::PublishOutput;
use crate::adapter::AdapterError;
use crate::domain::Timestamp;
use crate::domain::canary::{CanaryRecord, CanaryState};
use crate::domain::id::{Generation, TargetName, VersionName};
use crate::domain::release::{Assignment, Release, Served};
use crate::domain::run::{Attempt, Outcome, Signal, SignalKind};
use crate::domain::verdict::Verdict;
use crate::domain::workflow::step::{OnInconclusive, Promote};
use crate::domain::workflow::{Step, StepKind};

/// How long a run waits beyond its bake for the controller, which wakes it when it is done.
const TAKING_BACK: TimeDelta = TimeDelta::minutes(1);

/// What the first write of a promotion is called in its intent.
pub const OPERATION: &str = "promote";

/// Why a canary without rules is promoted.
const NOTHING_COMPARED: &str = "the workflow compares nothing";

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

/// When `canary` is taken back unless somebody decides, of an attempt of its promotion that is held.
pub fn held_until(attempt: &Attempt, canary: &CanaryRecord) -> Option<Timestamp> {
    match Resume::deserialize(attempt.resume.as_ref()?).ok()? {
        Resume::Held { until } => Some(held::end(canary, until)),
        Resume::Frozen { .. } | Resume::Baking { .. } => None,
    }
}

/// Whether an attempt of a promotion saw its bake begin: a checkpoint has recorded the promotion.
pub fn bakes(attempt: &Attempt) -> bool {
    matches!(attempt.resume.as_ref().map(Resume::deserialize), Some(Ok(Resume::Baking { .. })))
}

/// A promotion by hand of `canary`, if there is one. In a workflow of several canaries one that was meant for an earlier
/// canary says nothing of a later one.
pub fn by_hand<'s>(ctx: &StepContext<'s>, canary: Option<&CanaryRecord>) -> Option<&'s Signal> {
    let is_canary = |step: &&Step| matches!(step.kind, StepKind::Canary(_));
    let several = ctx.workflow.steps.iter().filter(is_canary).count() > 1;
    let since = canary.filter(|_| several).map(|canary| canary.started_at);
    ctx.signals
        .iter()
        .filter(|signal| signal.kind == SignalKind::Promote)
        .find(|signal| since.is_none_or(|since| signal.at >= since))
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
    if let Some(Resume::Baking { until, output }) = resume {
        return bake(ctx, &started, until, output).await;
    }
    let canary = ctx.ledger.canary().await?;
    let made = ctx.ledger.promotion(&started.target).await?;
    if let Some(why) = made.as_ref().and_then(|made| made.replaced.clone()) {
        return complete::taken_off(ctx, &started, why).await;
    }
    if let Some(canary) = canary.as_ref().filter(|canary| canary.state == CanaryState::RolledBack) {
        return rolled_back(ctx, &started, canary.reason.clone()).await;
    }
    if let Some(made) = made {
        // Decided and written by an earlier attempt: nothing is decided again, what is left is done.
        return complete::complete(spec, ctx, &started, made).await;
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
    if let Some(signal) = by_hand(ctx, canary.as_ref()) {
        let why = signal.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
        let reason = format!("promoted by {}{why}", signal.actor);
        return promote(spec, ctx, started, Grounds { reason, heeds_freeze: false, resume: None }).await;
    }
    let release = ctx.ledger.release(&started.target).await?;
    if champion(release.as_ref()).is_some_and(|served| served.version == started.version) {
        // It serves everybody already: there is nothing to decide.
        let passed = canary.filter(|canary| canary.verdict == Verdict::Pass).map(|canary| canary.reason);
        let compared = || ctx.latest_output::<CompareOutput>().map(|(_, compared)| compared.reason);
        let reason = passed.or_else(compared).unwrap_or_else(|| NOTHING_COMPARED.to_owned());
        return promote(spec, ctx, started, Grounds::by_evidence(reason, resume.as_ref())).await;
    }
    if let (Some(canary), Some(Resume::Frozen { why })) = (&canary, &resume)
        && frozen::is_to_be_looked_at(canary, ctx)
    {
        return frozen::look_first(why, ctx);
    }
    let (decision, reason) = decision(ctx, canary.as_ref(), resume.as_ref());
    match decision {
        Decision::Promote => promote(spec, ctx, started, Grounds::by_evidence(reason, resume.as_ref())).await,
        Decision::RollBack => withdraw(ctx, started, reason).await,
        Decision::Hold => held::hold(ctx, started, canary, resume, reason).await,
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
        return (Decision::Promote, NOTHING_COMPARED.to_owned());
    };
    match (resume, canary.filter(|canary| canary.state == CanaryState::Watching)) {
        (Some(Resume::Frozen { .. }), Some(canary)) => {
            let policy = compare::policy(canary, canary.rules.on_inconclusive, ctx.clock.now());
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
    let Some((_, published)) = ctx.latest_output::<PublishOutput>() else {
        return Err(StepError::permanent("no version was published before this step"));
    };
    // Asked before all files are read, which would be done at every look; the write asks again.
    if grounds.heeds_freeze
        && let Some(freeze) = ctx.ledger.freeze().await?
        && !serves(ctx.ledger.release(&started.target).await?.as_ref(), &published.served(ctx))
    {
        return frozen::wait_out(&freeze, ctx, started, grounds.resume);
    }
    verify(ctx, &published).await?;
    let current = ctx.ledger.release(&started.target).await?;
    let mine = published.served(ctx);
    let already = serves(current.as_ref(), &mine);
    let champion = champion(current.as_ref()).map(|served| &served.version);
    if !already && champion != started.champion.as_ref() {
        return Err(StepError::permanent(format!(
            "champion changed while {} was out: {} serves now",
            started.version,
            champion.map_or("nothing".to_owned(), ToString::to_string)
        ))
        .hint("trigger the workflow again: it will be compared with the new champion"));
    }
    let change = ReleaseChange {
        target: started.target.clone(),
        operation: OPERATION.into(),
        expected: current.as_ref().map_or(Generation(0), |release| release.generation),
        assignment: current.map(|release| release.desired).unwrap_or_default().all_to(mine),
        kind: ReleaseChangeKind::Promote,
        reason: grounds.reason.clone(),
        heeds_freeze: grounds.heeds_freeze && !already,
    };
    match ctx.ledger.change_release(change).await {
        Ok(_) => {}
        Err(ReleaseRefused::Frozen(freeze)) => {
            return frozen::wait_out(&freeze, ctx, started, grounds.resume);
        }
        Err(refused @ (ReleaseRefused::Moved { .. } | ReleaseRefused::Step(_))) => {
            return Err(moved(refused));
        }
    }
    match ctx.ledger.promotion(&started.target).await? {
        Some(made) => complete::complete(spec, ctx, started, made).await,
        None => Err(StepError::transient("the promotion is not recorded yet")),
    }
}

fn champion(release: Option<&Release>) -> Option<&Served> {
    release.and_then(|release| release.desired.champion.as_ref())
}

fn serves(release: Option<&Release>, served: &Served) -> bool {
    release.is_some_and(|release| release.desired.serves(served))
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
    started: &CanaryOutput,
    until: Timestamp,
    output: PromoteOutput,
) -> Result<StepResult, StepError> {
    let canary = match (ctx.ledger.canary().await, Signal::way_back(ctx.signals)) {
        // Its record cannot be read: whoever took the version back told its run.
        (Err(StepError::Failed { .. }), Some(why)) => return Ok(rolled_back_in_bake(&output, why)),
        (canary, _) => canary?,
    };
    if let Some(canary) = canary.filter(|canary| canary.state == CanaryState::RolledBack) {
        return Ok(rolled_back_in_bake(&output, &canary.reason));
    }
    let now = ctx.clock.now();
    let mut next = until;
    if now >= until {
        let ended = match started.canary {
            Some(canary) => Some(ctx.ledger.end_bake(canary).await?),
            None => None,
        };
        match ended.map(|canary| (canary.state, canary.reason)) {
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
            operation: "withdraw".into(),
            expected: current.generation,
            assignment: Assignment { canary: None, ..current.desired.clone() },
            kind: ReleaseChangeKind::Withdraw,
            heeds_freeze: false,
            reason: reason.clone(),
        };
        let release = if ours { ctx.ledger.change_release(change).await.map_err(moved)? } else { current };
        show(ctx, host.as_ref(), &release).await?;
    }
    if let Some(canary) = started.canary {
        ctx.ledger.close_canary(canary, &reason).await?;
    }
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
