//! From a kind of step to its body. No `_` arm: a new kind is met here by the compiler.

use super::context::{StepContext, StepError, StepResult};
use crate::domain::workflow::StepKind;

/// Runs the body of one step. Each is in a box of its own: all of them together would be carried by the smallest.
pub async fn run(kind: &StepKind, ctx: &StepContext<'_>) -> Result<StepResult, StepError> {
    match kind {
        StepKind::Fetch(spec) => Box::pin(super::fetch::run(spec, ctx)).await,
        StepKind::Run(spec) => Box::pin(super::run::run(spec, ctx)).await,
        StepKind::Evaluate(spec) => Box::pin(super::evaluate::run(spec, ctx)).await,
        StepKind::Gate(spec) => Box::pin(super::gate::run(spec, ctx)).await,
        StepKind::Publish(spec) => Box::pin(super::publish::run(spec, ctx)).await,
        StepKind::Canary(spec) => Box::pin(super::canary::run(spec, ctx)).await,
        StepKind::Wait(spec) => super::wait::run(spec, ctx).await,
        StepKind::Shadow(spec) => Box::pin(super::shadow::run(spec, ctx)).await,
        StepKind::Approve(spec) => Box::pin(super::approve::run(spec, ctx)).await,
        StepKind::Compare(spec) => Box::pin(super::compare::run(spec, ctx)).await,
        StepKind::Promote(spec) => Box::pin(super::promote::run(spec, ctx)).await,
        StepKind::Rollback(spec) => Box::pin(super::rollback::run(spec, ctx)).await,
        StepKind::Notify(spec) => Box::pin(super::notify::run(spec, ctx)).await,
        StepKind::Http(spec) => Box::pin(super::http::run(spec, ctx)).await,
    }
}
