//! Sends what the outbox holds: at least once, with an id that is the same on
//! every attempt.

use std::time::Duration;

use futures::{FutureExt, StreamExt, TryStreamExt, stream};

use super::Notifiers;
use super::facts::Facts;
use crate::adapter::AdapterError;
use crate::clock::Clock;
use crate::domain::retry::RetryPolicy;
use crate::store::{OutboxEntry, Store, StoreError};

/// Messages taken at once.
const BATCH: u32 = 32;
/// Messages on their way at once.
const AT_ONCE: usize = 8;
/// Sending one takes no longer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Nobody else takes a message meanwhile: a batch in rounds of `AT_ONCE`, and some.
const HOLD: Duration = Duration::from_secs(60 * 32 / 8 + 60);
/// A little over half a day in all.
const RETRY: RetryPolicy = RetryPolicy {
    attempts: 20,
    backoff: Duration::from_secs(5),
    factor: 2.0,
    max: Duration::from_secs(3_600),
};

/// Sends the messages that are due, and says how many were sent. One that
/// fails is tried again later; one that is refused for good is given up.
pub async fn drain_once(
    store: &dyn Store,
    notifiers: &Notifiers,
    clock: &dyn Clock,
) -> Result<usize, StoreError> {
    let due = store.take_outbox(BATCH, HOLD, clock.now()).await?;
    let sending: Vec<_> = due.iter().map(|entry| deliver(store, notifiers, clock, entry).boxed()).collect();
    let sent = stream::iter(sending).buffer_unordered(AT_ONCE);
    sent.try_fold(0, |sum, sent| async move { Ok(sum + usize::from(sent)) }).await
}

/// Sends one message and records what came of it.
async fn deliver(
    store: &dyn Store,
    notifiers: &Notifiers,
    clock: &dyn Clock,
    entry: &OutboxEntry,
) -> Result<bool, StoreError> {
    let Err(error) = send(notifiers, entry).await else {
        store.outbox_sent(entry.id, clock.now()).await?;
        return Ok(true);
    };
    let retry_after = match &error {
        AdapterError::Unavailable { retry_after, .. } => *retry_after,
        AdapterError::Denied { .. } | AdapterError::Rejected { .. } | AdapterError::Conflict { .. } => None,
    };
    // The attempt that just failed is counted by `take_outbox`.
    let failures = entry.attempts.max(1);
    let again = RETRY.next_attempt(failures, clock.now(), retry_after, rand::random());
    let retry_at = again.filter(|_| error.is_transient());
    match retry_at {
        Some(at) => {
            tracing::warn!(message.key = entry.notice.key, %at, "Message not sent, tried again: {error}")
        }
        None => tracing::error!(message.key = entry.notice.key, "Message given up: {error}"),
    }
    store.outbox_failed(entry.id, &error.to_string(), retry_at).await?;
    Ok(false)
}

async fn send(notifiers: &Notifiers, entry: &OutboxEntry) -> Result<(), AdapterError> {
    let (notifier, to) = notifiers.resolve(&entry.notice.to)?;
    let facts = Facts::of(&entry.notice);
    let rendered = notifiers.renderer.render(&entry.notice.key, &facts, to);
    let message = rendered.map_err(|error| AdapterError::Rejected {
        service: "refit".to_owned(),
        action: "write the message".to_owned(),
        cause: error.to_string(),
    })?;
    tokio::time::timeout(PATIENCE, notifier.send(&message)).await.unwrap_or_else(|_| {
        Err(AdapterError::Unavailable {
            service: "the notifier".to_owned(),
            cause: format!("no answer within {PATIENCE:?}"),
            retry_after: None,
        })
    })
}
