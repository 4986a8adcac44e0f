//! When a failed attempt is tried again.

use std::time::Duration;

use chrono::SubsecRound as _;

use super::Timestamp;

/// Exponential back-off with a cap; `attempts` counts the first one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryPolicy {
    /// Attempts in all; at least 1.
    pub attempts: u32,
    /// Delay after the first failure.
    pub backoff: Duration,
    /// What each further delay is multiplied by.
    pub factor: f64,
    /// No delay is longer.
    pub max: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { attempts: 3, backoff: Duration::from_secs(10), factor: 2.0, max: Duration::from_secs(300) }
    }
}

impl RetryPolicy {
    /// When the attempt after the `failures`-th failure begins; `None` when that was the last.
    ///
    /// `jitter` in `[0, 1)` spreads the delay over its upper half, so that runs
    /// that failed together do not come back together. A host's `Retry-After`
    /// is obeyed when it is longer.
    pub fn next_attempt(
        &self,
        failures: u32,
        failed_at: Timestamp,
        retry_after: Option<Duration>,
        jitter: f64,
    ) -> Option<Timestamp> {
        if failures >= self.attempts {
            return None;
        }
        let exponent = i32::try_from(failures.saturating_sub(1)).unwrap_or(i32::MAX);
        let seconds = (self.backoff.as_secs_f64() * self.factor.powi(exponent)).min(self.max.as_secs_f64());
        let delay = Duration::from_secs_f64(seconds * (0.5 + 0.5 * jitter.clamp(0.0, 1.0)));
        let delay = delay.max(retry_after.unwrap_or_default());
        let delay = chrono::TimeDelta::from_std(delay).unwrap_or(chrono::TimeDelta::MAX);
        // As the databases keep it: who reads it there and whoever waits for it mean the same time.
        Some(failed_at.checked_add_signed(delay).map_or(Timestamp::MAX_UTC, |at| at.trunc_subsecs(6)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        chrono::DateTime::from_timestamp(seconds, 0).expect("in range")
    }

    #[test]
    fn delays_grow_up_to_the_cap_and_then_end() {
        let policy = RetryPolicy {
            attempts: 4,
            backoff: Duration::from_secs(10),
            factor: 3.0,
            max: Duration::from_secs(50),
        };
        let next = |failures| policy.next_attempt(failures, at(0), None, 1.0);
        assert_eq!(next(1), Some(at(10)));
        assert_eq!(next(2), Some(at(30)));
        assert_eq!(next(3), Some(at(50)));
        assert_eq!(next(4), None);
    }

    #[test]
    fn a_time_is_in_whole_microseconds() {
        let policy = RetryPolicy { backoff: Duration::from_nanos(3_000), ..RetryPolicy::default() };
        let next = policy.next_attempt(1, at(0), None, 0.5);
        assert_eq!(next, Some(at(0) + chrono::TimeDelta::microseconds(2)));
    }

    #[test]
    fn retry_after_is_obeyed_when_longer() {
        let policy = RetryPolicy::default();
        assert_eq!(policy.next_attempt(1, at(0), Some(Duration::from_secs(90)), 0.0), Some(at(90)));
        assert_eq!(policy.next_attempt(1, at(0), Some(Duration::from_secs(1)), 0.0), Some(at(5)));
        assert_eq!(policy.next_attempt(1, at(0), Some(Duration::MAX), 0.0), Some(Timestamp::MAX_UTC));
    }
}
