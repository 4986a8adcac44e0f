//! Sending what was taken from the database, only while it is held: nobody else takes it meanwhile.
//!
//! A process may stop at any point and go on later (a suspended machine, a debugger): by then others may have taken it
//! for dead, or the hold is over, and somebody else may have sent the message. So it is taken again whenever sending goes
//! on, unless that was done just before, by the wall clock, which does not stop. What is left is a process that stops
//! inside the request itself.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use chrono::TimeDelta;
use tokio::time::Instant;

use crate::adapter::{AdapterError, NotSent};
use crate::clock::Clock;
use crate::domain::Timestamp;

/// A message that has had no turn for longer is told of, and given up like one that fails.
const LONGEST_WAIT: TimeDelta = TimeDelta::days(1);

/// When a message has a turn that has none for `wait` from `now` on; `None` when it will have waited too long by then,
/// `since` it was to be sent.
pub fn turn_after(wait: Duration, now: Timestamp, since: Timestamp) -> Option<Timestamp> {
    let until = now.checked_add_signed(TimeDelta::from_std(wait).ok()?)?;
    (until - since < LONGEST_WAIT).then_some(until)
}

/// Sending one message takes no longer.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What `sending` comes to, unless it takes too long.
pub async fn in_time<T>(sending: impl Future<Output = Result<T, NotSent>>) -> Result<T, NotSent> {
    by_then(Instant::now() + PATIENCE, sending).await
}

async fn by_then<T>(by: Instant, sending: impl Future<Output = Result<T, NotSent>>) -> Result<T, NotSent> {
    tokio::time::timeout_at(by, sending).await.unwrap_or_else(|_| {
        Err(NotSent::Failed(AdapterError::Unavailable {
            service: "the notifier".to_owned(),
            cause: format!("no answer within {PATIENCE:?}"),
            retry_after: None,
        }))
    })
}

/// A message that was taken from the database, for some time.
#[async_trait]
pub trait Held: Send {
    /// For how long it is taken.
    const HOLD: Duration;
    /// For how long from then on nobody takes this process for dead.
    const TRUSTED_FOR: Duration;
    /// Why it cannot be said whether it is taken.
    type Error;

    /// Takes it again, for as long from `at`; false when it is somebody else's by now.
    async fn again(&mut self, at: Timestamp) -> Result<bool, Self::Error>;
}

/// What `sending` comes to, unless it takes too long. What is sent was taken at `taken_at` or later; once others may
/// take this process for dead, or that hold has less than one sending left, it is taken again before anything more is
/// sent. `None` when it is somebody else's by now: then `sending` is given up where it stands.
pub async fn while_held<T, H: Held>(
    sending: impl Future<Output = Result<T, NotSent>> + Send,
    held: &mut H,
    clock: &dyn Clock,
    taken_at: Timestamp,
) -> Result<Option<Result<T, NotSent>>, H::Error> {
    let mut sending = pin!(sending);
    let lasts = H::HOLD.saturating_sub(PATIENCE).min(H::TRUSTED_FOR);
    let lasts = TimeDelta::from_std(lasts).unwrap_or(TimeDelta::MAX);
    let mut until = taken_at + lasts;
    let by = Instant::now() + PATIENCE;
    loop {
        let going_on = poll_fn(|context| {
            if clock.now() >= until {
                return Poll::Ready(Ok(None));
            }
            sending.as_mut().poll(context).map_ok(Some)
        });
        match by_then(by, going_on).await {
            Ok(Some(sent)) => return Ok(Some(Ok(sent))),
            Err(not_sent) => return Ok(Some(Err(not_sent))),
            Ok(None) => {
                let now = clock.now();
                if !held.again(now).await? {
                    return Ok(None);
                }
                until = now + lasts;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::oneshot;

    use super::*;
    use crate::clock::ManualClock;

    /// How often it was taken again, and whether it can be.
    struct Taken(usize, bool);

    #[async_trait]
    impl Held for Taken {
        const HOLD: Duration = Duration::from_secs(300);
        const TRUSTED_FOR: Duration = Duration::from_secs(5);
        type Error = std::convert::Infallible;

        async fn again(&mut self, _: Timestamp) -> Result<bool, Self::Error> {
            self.0 += 1;
            Ok(self.1)
        }
    }

    /// Waits for its turn, and posts when it comes; `frozen` passes meanwhile. Returns how often it was posted, how
    /// often it was taken again, and whether it was sent.
    async fn post_after(frozen: TimeDelta, is_still_ours: bool) -> (usize, usize, bool) {
        let clock = Arc::new(ManualClock::starting_at("2026-11-20T02:00:00Z".parse().expect("a time")));
        let (turn, its_turn) = oneshot::channel::<()>();
        let posts = AtomicUsize::new(0);
        let mut taken = Taken(0, is_still_ours);
        let sending = async {
            its_turn.await.expect("a turn");
            posts.fetch_add(1, Ordering::SeqCst);
            Ok(())
        };
        let mut held = Box::pin(while_held(sending, &mut taken, clock.as_ref(), clock.now()));
        assert!(futures::poll!(held.as_mut()).is_pending(), "it waits for its turn");
        clock.advance(frozen);
        turn.send(()).expect("somebody waits for it");
        let Ok(sent) = held.await;
        (posts.load(Ordering::SeqCst), taken.0, sent.is_some())
    }

    #[test]
    fn a_turn_that_comes_more_than_a_day_late_is_none() {
        let since = "2026-11-20T02:00:00Z".parse().expect("a time");
        let after = |hours, wait| turn_after(wait, since + TimeDelta::hours(hours), since);
        assert_eq!(
            after(3, Duration::from_secs(5)),
            Some(since + TimeDelta::hours(3) + TimeDelta::seconds(5))
        );
        assert_eq!(after(23, Duration::from_secs(3_600)), None);
        assert_eq!(after(0, Duration::from_secs(365 * 86_400)), None);
        assert_eq!(after(0, Duration::MAX), None);
    }

    #[tokio::test]
    async fn what_is_held_is_sent_when_its_turn_comes() {
        assert_eq!(post_after(TimeDelta::seconds(4), false).await, (1, 0, true));
    }

    #[tokio::test]
    async fn what_is_no_longer_held_is_taken_again_first() {
        assert_eq!(post_after(TimeDelta::seconds(5), true).await, (1, 1, true));
    }

    #[tokio::test]
    async fn what_somebody_else_took_meanwhile_is_theirs() {
        assert_eq!(post_after(TimeDelta::seconds(5), false).await, (0, 1, false));
    }
}
