//! The one place that reads the wall clock.

use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{SubsecRound, TimeDelta, Utc};

use crate::domain::Timestamp;

/// Tells the time and waits for it. Decisions get the time as an argument;
/// only the engine's loops hold a clock.
#[async_trait]
pub trait Clock: Send + Sync + 'static {
    /// Now, in whole microseconds (what both databases keep).
    fn now(&self) -> Timestamp;

    /// Returns once `now()` is at or after `until`, or a little later. May also
    /// return early; callers look again.
    async fn wait_until(&self, until: Timestamp);

    /// Whether this clock is the world's. On Postgres leases and wake-ups then
    /// go by the database's time instead.
    fn is_real(&self) -> bool;
}

/// Returns when it is `at`; never when that is absent.
pub async fn comes(clock: &dyn Clock, at: Option<Timestamp>) {
    match at {
        Some(at) => {
            while clock.now() < at {
                clock.wait_until(at).await;
            }
        }
        None => std::future::pending().await,
    }
}

/// The world's time.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

/// No sleep is longer, so that a stepped clock or a suspended machine is noticed.
const LONGEST_NAP: Duration = Duration::from_secs(1);

#[async_trait]
impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    fn now(&self) -> Timestamp {
        Utc::now().trunc_subsecs(6)
    }

    async fn wait_until(&self, until: Timestamp) {
        let left = (until - self.now()).to_std().unwrap_or_default();
        tokio::time::sleep(left.min(LONGEST_NAP)).await;
    }

    fn is_real(&self) -> bool {
        true
    }
}

/// A time that moves when it is told to: for the demo and for tests.
#[derive(Debug)]
pub struct ManualClock {
    now: Mutex<Timestamp>,
    moved: tokio::sync::Notify,
}

impl ManualClock {
    /// A clock that stands at `start`.
    pub fn starting_at(start: Timestamp) -> Self {
        Self { now: Mutex::new(start), moved: tokio::sync::Notify::new() }
    }

    /// Moves it forward by `by`.
    pub fn advance(&self, by: TimeDelta) {
        let to = self.now() + by;
        self.set(to);
    }

    /// Sets it to `to`; a clock may also step back.
    pub fn set(&self, to: Timestamp) {
        *self.now.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = to.trunc_subsecs(6);
        self.moved.notify_waiters();
    }
}

#[async_trait]
impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        *self.now.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    async fn wait_until(&self, until: Timestamp) {
        let moved = self.moved.notified();
        if self.now() < until {
            moved.await;
        }
    }

    fn is_real(&self) -> bool {
        false
    }
}
