//! Sends one message to whom it is for.

use super::Notifiers;
use super::facts::Facts;
use crate::adapter::{AdapterError, NotSent, Posted};
use crate::domain::id::{NotifierName, RunId};
use crate::domain::workflow::{Moment, Recipient};
use crate::store::OutboxEntry;

/// The run, and the notifier that keeps a message about it up to date, when this message belongs below that one.
pub(super) fn board_of<'a>(
    notifiers: &Notifiers,
    entry: &'a OutboxEntry,
) -> Option<(RunId, &'a NotifierName)> {
    match &entry.notice.to {
        Recipient::Slack(name) | Recipient::Webhook(name) => {
            notifiers.board(name)?;
            Some((entry.notice.run?, name))
        }
        Recipient::Email(_) | Recipient::Console => None,
    }
}

/// Whether everybody is to see what is said below a run's message: what changed who is served, or wants a person.
fn is_loud(moment: Moment) -> bool {
    match moment {
        Moment::Promoted
        | Moment::Rejected
        | Moment::RolledBack
        | Moment::Held
        | Moment::Frozen
        | Moment::NeedsApproval
        | Moment::Failed
        | Moment::Message
        | Moment::Alert => true,
        Moment::Started | Moment::CanaryStarted | Moment::Skipped | Moment::Cancelled | Moment::Succeeded => {
            false
        }
    }
}

/// Sends one message, below the run's own where that is.
pub(super) async fn send(
    notifiers: &Notifiers,
    entry: &OutboxEntry,
    below: Option<&Posted>,
) -> Result<(), NotSent> {
    let moment = entry.notice.moment;
    if moment == Moment::Started && board_of(notifiers, entry).is_some() {
        // The run's own message says it.
        return Ok(());
    }
    let (notifier, to) = notifiers.resolve(&entry.notice.to)?;
    let facts = Facts::of(&entry.notice);
    let rendered = notifiers.renderer.render(&entry.notice.key, &facts, to);
    let mut message = rendered.map_err(|error| AdapterError::Rejected {
        service: "refit".to_owned(),
        action: "write the message".to_owned(),
        cause: error.to_string(),
    })?;
    // The attempt under way is counted by `take_outbox`.
    message.tried_since = (entry.attempts > 1).then_some(entry.queued_at);
    match (below, notifier.board()) {
        (Some(below), Some(board)) => board.reply(&message, below, is_loud(moment)).await,
        (Some(_), None) | (None, _) => notifier.send(&message).await,
    }
}
