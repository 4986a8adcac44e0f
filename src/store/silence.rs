//! For how long workers have been without the session that keeps them known to the database, as this process saw it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::id::WorkerId;

/// A worker whose session ended is dead when it has made no new one for so long. One that lives has mostly made it within
/// two seconds; what it takes before that has no holder, and is nobody else's until its hold ends.
pub const SILENT_FOR: Duration = Duration::from_secs(5);

struct Silence {
    since: Instant,
    seen_at: Instant,
}

/// The workers that were seen to be without a session.
#[derive(Default)]
pub(crate) struct Silences(Mutex<HashMap<WorkerId, Silence>>);

impl Silences {
    /// `worker` has no session at `now`: whether that is so for long enough. Nobody knows of the time between two looks
    /// that are far apart.
    pub(crate) fn is_dead(&self, worker: WorkerId, now: Instant) -> bool {
        let mut silences = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        silences.retain(|_, silence| now.duration_since(silence.seen_at) < SILENT_FOR);
        let silence = silences.entry(worker).or_insert(Silence { since: now, seen_at: now });
        silence.seen_at = now;
        now.duration_since(silence.since) >= SILENT_FOR
    }

    /// `worker` has a session.
    pub(crate) fn forget(&self, worker: WorkerId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&worker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_dead_when_it_was_silent_at_each_look_for_long_enough() {
        let (silences, one, other) = (Silences::default(), WorkerId::generate(), WorkerId::generate());
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        for second in 0..5 {
            assert!(!silences.is_dead(one, at(second)), "after {second} seconds");
        }
        assert!(silences.is_dead(one, at(5)));
        assert!(!silences.is_dead(other, at(5)), "another one");
        silences.forget(one);
        assert!(!silences.is_dead(one, at(6)), "it had a session meanwhile");
        assert!(!silences.is_dead(one, at(11)), "it may have had one meanwhile");
    }
}
