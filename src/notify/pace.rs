//! Services take so many requests a second and no more: each waits its turn.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::http_client::LONGEST_REST;

/// Turns of one kind of request to one service, of this process.
pub(super) struct Pace {
    every: Duration,
    /// How far turns that nobody took are kept for later.
    saved: Duration,
    turns: Mutex<Turns>,
}

struct Turns {
    next: Instant,
    /// None before: the service said so.
    rests_until: Instant,
    /// How often it said so.
    rests: u64,
}

/// A longer wait is left to the outbox, which sends others meanwhile.
const LONGEST: Duration = Duration::from_secs(15);

impl Pace {
    /// One turn each `every`.
    pub(super) fn new(every: Duration) -> Self {
        let now = Instant::now();
        Self {
            every,
            saved: Duration::ZERO,
            turns: Mutex::new(Turns { next: now, rests_until: now, rests: 0 }),
        }
    }

    /// One turn each `every`, and `more` at once after a rest.
    pub(super) fn in_bursts(every: Duration, more: u32) -> Self {
        Self { saved: every * more, ..Self::new(every) }
    }

    /// Waits for a turn; when that would take long, none is taken, and how long is returned.
    pub(super) async fn turn(&self) -> Result<(), Duration> {
        let (at, rests) = self.take(Instant::now(), LONGEST)?;
        tokio::time::sleep_until(at).await;
        self.is_on(Instant::now(), rests)
    }

    /// Takes a turn if it is now, else returns how long it would take.
    pub(super) fn now(&self) -> Result<(), Duration> {
        self.take(Instant::now(), Duration::ZERO).map(|_| ())
    }

    /// No turn for so long, `LONGEST_REST` at most: the service said so.
    pub(super) fn pause(&self, pause: Duration) {
        self.rest_until(Instant::now() + pause.min(LONGEST_REST));
    }

    fn rest_until(&self, at: Instant) {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.rests_until = turns.rests_until.max(at);
        turns.rests += 1;
        // Turns that were taken and did not come yet are given back.
        turns.next = turns.rests_until + self.saved;
    }

    /// Whether a turn that comes now still holds: not when the service asked for a rest since it was taken, after
    /// `rests`. Who had an earlier turn and was refused would come later.
    fn is_on(&self, now: Instant, rests: u64) -> Result<(), Duration> {
        let turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if turns.rests == rests { Ok(()) } else { Err(turns.rests_until.saturating_duration_since(now)) }
    }

    /// When a turn comes that is taken now, and how often the service had asked for a rest.
    fn take(&self, now: Instant, longest: Duration) -> Result<(Instant, u64), Duration> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = turns.next.saturating_duration_since(now + self.saved);
        if wait > longest {
            return Err(wait);
        }
        turns.next = turns.next.max(now) + self.every;
        Ok((now + wait, turns.rests))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_come_at_their_pace_and_not_while_the_service_rests() {
        let pace = Pace::new(Duration::from_millis(200));
        let began = Instant::now();
        let after = |millis| began + Duration::from_millis(millis);
        let take = |millis, longest| pace.take(after(millis), longest).map(|(at, _)| at);
        let turns: Vec<_> = (0..6).map(|_| take(0, LONGEST).expect("a turn")).collect();
        assert_eq!(turns, (0..6).map(|turn| after(turn * 200)).collect::<Vec<_>>());
        assert_eq!(take(1_100, Duration::ZERO), Err(Duration::from_millis(100)));
        assert_eq!(take(1_200, Duration::ZERO), Ok(after(1_200)));
        pace.rest_until(after(10_000));
        assert_eq!(take(1_200, LONGEST), Ok(after(10_000)));
        pace.rest_until(after(60_000));
        assert_eq!(take(1_000, LONGEST), Err(Duration::from_secs(59)));
        assert_eq!(take(70_000, LONGEST), Ok(after(70_000)));
    }

    #[test]
    fn a_turn_that_was_taken_before_a_rest_holds_no_longer() {
        let pace = Pace::new(Duration::from_millis(200));
        let began = Instant::now();
        let after = |millis| began + Duration::from_millis(millis);
        let (_, rests) = pace.take(began, LONGEST).expect("a turn");
        assert_eq!(pace.is_on(after(100), rests), Ok(()));
        pace.rest_until(after(1_000));
        assert_eq!(pace.is_on(after(200), rests), Err(Duration::from_millis(800)));
        assert_eq!(pace.is_on(after(1_200), rests), Err(Duration::ZERO), "nor when it comes after the rest");
        let (at, rests) = pace.take(after(1_200), LONGEST).expect("a turn");
        assert_eq!((at, pace.is_on(at, rests)), (after(1_200), Ok(())));
    }

    #[test]
    fn a_rest_without_an_end_has_one() {
        let pace = Pace::new(Duration::from_millis(200));
        pace.pause(Duration::MAX);
        assert!(pace.now().expect_err("a rest") <= LONGEST_REST);
    }

    #[test]
    fn turns_that_nobody_took_are_there_at_once_but_not_more_of_them() {
        let pace = Pace::in_bursts(Duration::from_millis(200), 3);
        let began = Instant::now();
        let after = |millis| began + Duration::from_millis(millis);
        let take = |millis| pace.take(after(millis), LONGEST).expect("a turn").0;
        let turns: Vec<_> = (0..6).map(|_| take(1_000)).collect();
        assert_eq!(turns, [1_000, 1_000, 1_000, 1_000, 1_200, 1_400].map(after));
        let turns: Vec<_> = (0..5).map(|_| take(9_000)).collect();
        assert_eq!(turns, [9_000, 9_000, 9_000, 9_000, 9_200].map(after));
        pace.pause(Duration::from_secs(60));
        assert!(pace.now().is_err(), "what was saved does not count while the service rests");
    }
}
