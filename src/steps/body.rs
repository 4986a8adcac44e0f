//! From a kind of step to its body. No `_` arm: a new kind is met here by the compiler.

use super::context::{StepContext, StepError, StepResult};
use crate::domain::workflow::StepKind;

/// Runs the body of one step.
pub async fn run(kind: &StepKind, ctx: &StepContext<'_>) -> Result<StepResult, StepError> {
    match kind {
        StepKind::Fetch(spec) => super::fetch::run(spec, ctx).await,
        StepKind::Run(spec) => super::run::run(spec, ctx).await,
        StepKind::Evaluate(spec) => super::evaluate::run(spec, ctx).await,
        StepKind::Gate(spec) => super::gate::run(spec, ctx).await,
        StepKind::Publish(spec) => super::publish::run(spec, ctx).await,
        StepKind::Canary(spec) => super::canary::run(spec, ctx).await,
        StepKind::Wait(spec) => super::wait::run(spec, ctx).await,
        StepKind::Shadow(spec) => super::shadow::run(spec, ctx).await,
        StepKind::Approve(spec) => super::approve::run(spec, ctx).await,
        StepKind::Compare(spec) => super::compare::run(spec, ctx).await,
        StepKind::Promote(spec) => super::promote::run(spec, ctx).await,
        StepKind::Rollback(spec) => super::rollback::run(spec, ctx).await,
        StepKind::Notify(spec) => super::notify::run(spec, ctx).await,
        StepKind::Http(spec) => super::http::run(spec, ctx).await,
    }
}
