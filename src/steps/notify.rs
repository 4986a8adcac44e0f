//! `uses: notify`: a message of the workflow's own, through the outbox.

use serde_json::json;

use super::context::{StepContext, StepError, StepResult};
use crate::domain::workflow::Moment;
use crate::domain::workflow::step::Notify;

/// Queues the message.
pub async fn run(spec: &Notify, ctx: &StepContext<'_>) -> Result<StepResult, StepError> {
    let subject = ctx.services.secrets.mask(&ctx.render(&spec.subject)?);
    let message = ctx.services.secrets.mask(&ctx.render(&spec.message)?);
    ctx.ledger
        .tell("message", &spec.to, Moment::Message, json!({"subject": subject, "message": message}))
        .await?;
    StepResult::done(json!({"queued": spec.to.len()}))
}
