//! `uses: canary`: a share of traffic for the version, owned by this run.

mod underpowered;

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};

use super::approve::{ApproveOutput, approval};
use super::context::{
    CanaryOpening, ReleaseChange, ReleaseChangeKind, ReleaseRefused, StepContext, StepError, StepResult,
};
use super::gate::GateOutput;
use super::publish::PublishOutput;
use crate::domain::id::{CanaryId, Generation, TargetName, VersionName};
use crate::domain::release::{Assignment, CanaryServed, Release, Served};
use crate::domain::workflow::step::{Canary, Compare};
use crate::domain::workflow::units::BasisPoints;
use crate::domain::workflow::{Mode, StepKind, Workflow};

/// How long a canary's share is valid; renewed at half of it, so that a refit
/// that vanished cannot leave a canary out.
pub const CANARY_VALIDITY: TimeDelta = TimeDelta::hours(12);

/// What the step kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CanaryOutput {
    /// What came of it.
    pub rollout: Rollout,
    /// The target.
    pub target: TargetName,
    /// The version.
    pub version: VersionName,
    /// What it is compared with.
    pub champion: Option<VersionName>,
    /// The generation that set it.
    pub generation: Option<Generation>,
    /// Its first share.
    pub share: BasisPoints,
    /// The canary.
    pub canary: Option<CanaryId>,
    /// Who let it out, when somebody was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<ApproveOutput>,
}

/// What came of a canary step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rollout {
    /// It is out.
    OnCanary,
    /// There is no champion to compare with: the version is promoted without a canary.
    FirstVersion,
    /// `mode` is not `act`: nothing was touched.
    Advised,
}

/// Sets the canary, or finds that an earlier attempt did.
pub async fn run(spec: &Canary, ctx: &StepContext<'_>) -> Result<StepResult, StepError> {
    let Some((_, published)) = ctx.latest_output::<PublishOutput>() else {
        return Err(StepError::permanent("no version was published before this step"));
    };
    let target = ctx.services.targets.get(&spec.target).ok_or_else(|| unknown_target(&spec.target))?;
    let first = spec.stages.first().ok_or_else(|| StepError::permanent("the canary has no stages"))?;
    let mut output = CanaryOutput {
        rollout: Rollout::Advised,
        target: spec.target.clone(),
        version: published.version.clone(),
        champion: None,
        generation: None,
        share: first.share,
        canary: None,
        approval: approval(ctx.signals, ctx.step),
    };
    let current = ctx.ledger.release(&spec.target).await?;
    let champion = current.as_ref().and_then(|release| release.desired.champion.clone());
    output.champion = champion.as_ref().map(|served| served.version.clone());
    let (Some(current), Some(champion)) = (current, champion) else {
        if ctx.workflow.mode == Mode::Act {
            output.rollout = Rollout::FirstVersion;
        }
        return StepResult::done(output);
    };
    if ctx.workflow.mode != Mode::Act {
        ctx.log.note(&format!(
            "mode is not act: {} would get {} on {}",
            published.version, first.share, spec.target
        ));
        return StepResult::done(output);
    }
    check_champion(ctx, &champion)?;
    check_watch(spec, ctx)?;
    let rules = compare_rules(spec, ctx.workflow);
    let opening = CanaryOpening {
        target: spec.target.clone(),
        version: published.version.clone(),
        champion: champion.version.clone(),
        generation: current.generation,
        stages: spec.stages.clone(),
        deadline: rules.as_ref().and(deadline(ctx)),
        rules: rules.unwrap_or_else(Compare::without_rules),
    };
    // Once an earlier attempt sent it out, nobody is asked whether it should.
    let is_out = current.owner == Some(ctx.run.id) && current.desired.canary.is_some();
    if !is_out && let Some(waits) = underpowered::before_start(&opening, ctx).await? {
        return Ok(waits);
    }

    let release = set_canary(ctx, &current, champion, published.served(ctx), &output).await?;
    ctx.log.note(&format!("{}: {}", spec.target, target.traits().words()));
    target.apply(&release, ctx.services.instance).await?;
    ctx.ledger.release_applied(&spec.target, release.generation).await?;
    let canary = ctx.ledger.open_canary(CanaryOpening { generation: release.generation, ..opening }).await?;
    output.rollout = Rollout::OnCanary;
    output.generation = Some(release.generation);
    output.canary = Some(canary);
    StepResult::done(output)
}

/// An error for a target that `refit.toml` does not have.
pub fn unknown_target(target: &TargetName) -> StepError {
    StepError::permanent(format!("there is no target `{target}`"))
        .hint(format!("add [targets.{target}] to refit.toml"))
}

/// The gate's answer holds only for the champion it saw.
fn check_champion(ctx: &StepContext<'_>, champion: &Served) -> Result<(), StepError> {
    match ctx.latest_output::<GateOutput>() {
        Some((gate, output)) if output.champion.as_ref() != Some(&champion.version) => {
            let seen = output.champion.map_or("no champion".to_owned(), |version| version.to_string());
            Err(StepError::permanent(format!(
                "champion changed: `{gate}` compared with {seen}, but {} serves now",
                champion.version
            ))
            .hint("trigger the workflow again: it will be compared with the new champion"))
        }
        _ => Ok(()),
    }
}

/// A canary that nobody would watch does not go out.
fn check_watch(spec: &Canary, ctx: &StepContext<'_>) -> Result<(), StepError> {
    let valid = CANARY_VALIDITY.to_std().unwrap_or_default();
    match ctx.ledger.looks().objection(spec.max_look_gap, valid) {
        None => Ok(()),
        Some(why) => Err(StepError::permanent(format!("the canary was not started: {why}")).hint(
            "run `refit serve`; or say `tick_every` under [worker] in refit.toml and accept as much with \
             `max_look_gap` of this step",
        )),
    }
}

async fn set_canary(
    ctx: &StepContext<'_>,
    current: &Release,
    champion: Served,
    served: Served,
    output: &CanaryOutput,
) -> Result<Release, StepError> {
    let approved = output.approval.as_ref();
    let approved = approved.map(|by| format!(", as {} approved", by.approved_by)).unwrap_or_default();
    let reason = format!(
        "the canary begins: {} gets {} of the traffic beside {}{approved}",
        served.version, output.share, champion.version
    );
    let assignment = Assignment {
        champion: Some(champion),
        canary: Some(CanaryServed {
            served,
            basis_points: output.share,
            salt: uuid::Uuid::new_v4().simple().to_string(),
            valid_until: ctx.clock.now() + CANARY_VALIDITY,
        }),
        previous: current.desired.previous.clone(),
    };
    let change = ReleaseChange {
        target: output.target.clone(),
        operation: "set_canary".into(),
        expected: current.generation,
        assignment,
        kind: ReleaseChangeKind::SetCanary,
        heeds_freeze: false,
        reason,
    };
    ctx.ledger.change_release(change).await.map_err(moved)
}

/// A release that moved is read again by the next attempt.
pub fn moved(refused: ReleaseRefused) -> StepError {
    match refused {
        ReleaseRefused::Moved { .. } => {
            StepError::transient(format!("{refused}: somebody changed it in between"))
        }
        ReleaseRefused::Frozen(freeze) => StepError::transient(freeze.to_string()),
        ReleaseRefused::Step(error) => error,
    }
}

/// The rules of the workflow's one `compare`, or of the one the step names.
pub fn compare_rules(spec: &Canary, workflow: &Workflow) -> Option<Compare> {
    workflow.steps.iter().find_map(|step| match &step.kind {
        StepKind::Compare(compare) if spec.compare.as_ref().is_none_or(|id| id == &step.id) => {
            Some(compare.clone())
        }
        _ => None,
    })
}

/// When the first `wait` or `shadow` after this step will have ended at the latest.
fn deadline(ctx: &StepContext<'_>) -> Option<crate::domain::Timestamp> {
    let longest = TimeDelta::from_std(ctx.workflow.longest_watch(ctx.step)?).ok()?;
    Some(ctx.clock.now() + longest)
}
