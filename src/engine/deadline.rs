//! One deadline for a whole shutdown: every part of a process counts from the
//! word to stop, and is over with the others, whatever is slow.

use std::time::Duration;

use tokio::time::Instant;

/// The part of the grace time that is kept for ending what did not end when asked, at most.
const FORCED_END: Duration = Duration::from_secs(2);
/// What the database has beyond the grace time, to hear that the process ends.
const FAREWELL: Duration = Duration::from_millis(500);
/// Nobody waits for longer.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// When a process that was told to stop does what, and is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    begun: Instant,
    grace: Duration,
}

impl Deadline {
    /// That of a process that is told to stop now and has this grace time.
    pub fn within(grace: Duration) -> Self {
        Self { begun: Instant::now(), grace: grace.min(LONGEST) }
    }

    /// Long steps are told to stop.
    pub fn of_long_steps(self) -> Instant {
        self.begun + self.grace / 2
    }

    /// Processes of steps that are deaf to that are ended.
    pub fn of_force(self) -> Instant {
        self.of_steps() - self.last_part()
    }

    /// A run that the database does not take back is given up.
    pub fn of_runs(self) -> Instant {
        self.of_steps() - self.last_part() / 4
    }

    /// Nothing of a step runs and no answer is given any more: the grace time is over.
    pub fn of_steps(self) -> Instant {
        self.begun + self.grace
    }

    /// The process is gone.
    pub fn end(self) -> Instant {
        self.of_steps() + FAREWELL
    }

    /// When a process whose runs are over at `ended` begins no message any more, and when it cuts off those that are
    /// being sent: half of the last part is for beginning, a quarter for ending, and a quarter for the database to
    /// hear what came of them.
    pub fn of_messages(self, ended: Instant) -> (Instant, Instant) {
        let end = (ended + self.last_part()).min(self.of_steps());
        (end - self.last_part() / 2, end - self.last_part() / 4)
    }

    /// The time after the force.
    pub fn last_part(self) -> Duration {
        (self.grace / 4).min(FORCED_END)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_has_its_time_before_the_end_however_short_the_grace_is() {
        for grace in [Duration::ZERO, Duration::from_millis(1), Duration::from_secs(20), Duration::MAX] {
            let it = Deadline::within(grace);
            let all = [it.of_long_steps(), it.of_force(), it.of_runs(), it.of_steps(), it.end()];
            assert!(all.is_sorted(), "{grace:?}: {all:?}");
        }
        let it = Deadline::within(Duration::from_secs(20));
        let after = |at: Instant| (at - it.begun).as_millis();
        assert_eq!(
            [it.of_long_steps(), it.of_force(), it.of_runs(), it.of_steps(), it.end()].map(after),
            [10_000, 18_000, 19_500, 20_000, 20_500]
        );
        let messages = |ended| it.of_messages(it.begun + Duration::from_millis(ended));
        for (ended, begin, end) in [(0, 1_000, 1_500), (17_900, 18_900, 19_400), (20_000, 19_000, 19_500)] {
            assert_eq!((after(messages(ended).0), after(messages(ended).1)), (begin, end), "{ended}");
        }
    }
}
