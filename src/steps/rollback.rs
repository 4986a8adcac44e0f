//! `uses: rollback`: back to the version before, or to a named one.
//!
//! It is decided once, with its intent; any attempt after that only makes the
//! host show what is to be served by then.

use serde::{Deserialize, Serialize};

use super::canary::unknown_target;
use super::context::{StepContext, StepError, StepResult};
use crate::domain::id::{Generation, TargetName, VersionName};
use crate::domain::workflow::Mode;
use crate::domain::workflow::step::Rollback;

/// What the step kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RollbackOutput {
    /// The target.
    pub target: TargetName,
    /// Who serves now.
    pub serves: Option<VersionName>,
    /// The generation that shows it.
    pub generation: Generation,
}

/// What the step kept where `mode` is not `act`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RollbackAdvised {
    /// The target, which was not touched.
    pub target: TargetName,
    /// Always.
    pub advised: bool,
}

/// Rolls back and waits until the host shows it.
pub async fn run(spec: &Rollback, ctx: &StepContext<'_>) -> Result<StepResult, StepError> {
    let host = ctx.services.targets.get(&spec.target).ok_or_else(|| unknown_target(&spec.target))?;
    let to = spec.to.as_ref().map(|to| ctx.render(to)).transpose()?.filter(|to| !to.is_empty());
    let to: Option<VersionName> = to
        .map(|to| to.parse())
        .transpose()
        .map_err(|error| StepError::permanent(format!("`to`: {error}")))?;
    if ctx.workflow.mode != Mode::Act {
        ctx.log.note(&format!("mode is not act: {} was not rolled back", spec.target));
        return StepResult::done(RollbackAdvised { target: spec.target.clone(), advised: true });
    }
    let release = ctx.ledger.roll_back(&spec.target, to.as_ref()).await?;
    host.apply(&release, ctx.services.instance).await?;
    ctx.ledger.release_applied(&spec.target, release.generation).await?;
    StepResult::done(RollbackOutput {
        target: spec.target.clone(),
        serves: release.desired.champion.map(|served| served.version),
        generation: release.generation,
    })
}
