//! Services take so many requests a second and no more: each waits its turn.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Turns of one kind of request to one service, of this process.
pub(super) struct Pace {
    every: Duration,
    /// How far turns that nobody took are kept for later.
    saved: Duration,
    next: Mutex<Instant>,
}

/// A longer wait is left to the outbox, which sends others meanwhile.
const LONGEST: Duration = Duration::from_secs(15);

impl Pace {
    /// One turn each `every`.
    pub(super) fn new(every: Duration) -> Self {
        Self { every, saved: Duration::ZERO, next: Mutex::new(Instant::now()) }
    }

    /// One turn each `every`, and `more` at once after a rest.
    pub(super) fn in_bursts(every: Duration, more: u32) -> Self {
        Self { saved: every * more, ..Self::new(every) }
    }

    /// Waits for a turn; when that would take long, none is taken, and how long is returned.
    pub(super) async fn turn(&self) -> Result<(), Duration> {
        let at = self.take(Instant::now(), LONGEST)?;
        tokio::time::sleep_until(at).await;
        Ok(())
    }

    /// Takes a turn if it is now, else returns how long it would take.
    pub(super) fn now(&self) -> Result<(), Duration> {
        self.take(Instant::now(), Duration::ZERO).map(|_| ())
    }

    /// No turn for so long: the service said so.
    pub(super) fn pause(&self, pause: Duration) {
        self.not_before(Instant::now() + pause + self.saved);
    }

    fn not_before(&self, at: Instant) {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        *next = (*next).max(at);
    }

    fn take(&self, now: Instant, longest: Duration) -> Result<Instant, Duration> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = next.saturating_duration_since(now + self.saved);
        if wait > longest {
            return Err(wait);
        }
        *next = (*next).max(now) + self.every;
        Ok(now + wait)
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
        let turns: Vec<_> = (0..6).map(|_| pace.take(began, LONGEST).expect("a turn")).collect();
        assert_eq!(turns, (0..6).map(|turn| after(turn * 200)).collect::<Vec<_>>());
        assert_eq!(pace.take(after(1_100), Duration::ZERO), Err(Duration::from_millis(100)));
        assert_eq!(pace.take(after(1_200), Duration::ZERO), Ok(after(1_200)));
        pace.not_before(after(10_000));
        assert_eq!(pace.take(after(1_200), LONGEST), Ok(after(10_000)));
        pace.not_before(after(60_000));
        assert_eq!(pace.take(after(1_000), LONGEST), Err(Duration::from_secs(59)));
        assert_eq!(pace.take(after(70_000), LONGEST), Ok(after(70_000)));
    }

    #[test]
    fn turns_that_nobody_took_are_there_at_once_but_not_more_of_them() {
        let pace = Pace::in_bursts(Duration::from_millis(200), 3);
        let began = Instant::now();
        let after = |millis| began + Duration::from_millis(millis);
        let turns: Vec<_> = (0..6).map(|_| pace.take(after(1_000), LONGEST).expect("a turn")).collect();
        assert_eq!(turns, [1_000, 1_000, 1_000, 1_000, 1_200, 1_400].map(after));
        let turns: Vec<_> = (0..5).map(|_| pace.take(after(9_000), LONGEST).expect("a turn")).collect();
        assert_eq!(turns, [9_000, 9_000, 9_000, 9_000, 9_200].map(after));
        pace.pause(Duration::from_secs(60));
        assert!(pace.now().is_err(), "what was saved does not count while the service rests");
    }
}
