//! Services take so many requests a second and no more: each waits its turn.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Turns of one kind of request to one service, of this process.
pub(super) struct Pace {
    every: Duration,
    next: Mutex<Instant>,
}

/// A longer wait is left to the outbox, which sends others meanwhile.
const LONGEST: Duration = Duration::from_secs(15);

impl Pace {
    /// One turn each `every`.
    pub(super) fn new(every: Duration) -> Self {
        Self { every, next: Mutex::new(Instant::now()) }
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
        self.not_before(Instant::now() + pause);
    }

    fn not_before(&self, at: Instant) {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        *next = (*next).max(at);
    }

    fn take(&self, now: Instant, longest: Duration) -> Result<Instant, Duration> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let at = (*next).max(now);
        if at - now > longest {
            return Err(at - now);
        }
        *next = at + self.every;
        Ok(at)
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
}
