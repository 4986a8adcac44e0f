//! A promotion that waits to be tried again and was taken back meanwhile.

use std::sync::Arc;

use super::Known;
use crate::domain::Timestamp;
use crate::domain::run::{AttemptState, SignalKind};

impl Known {
    /// Makes such a promotion due, once for each time that its run is told: its next attempt finds what was done, and ends.
    /// Returns whether it did.
    pub(in crate::engine) fn hasten_promotion(&mut self, now: Timestamp) -> bool {
        let unheard = self.promotion_heard;
        let is_told =
            self.signals.iter().any(|it| it.id > unheard && matches!(it.kind, SignalKind::RolledBack { .. }));
        // Most runs are never told.
        let Some(step) = is_told.then(|| self.promoting().cloned()).flatten() else { return false };
        let attempts = Arc::make_mut(&mut self.attempts);
        let newest = attempts.iter_mut().rev().find(|attempt| attempt.step == step);
        let waits =
            newest.filter(|it| it.state == AttemptState::Failed && it.wake_at.is_some_and(|at| at > now));
        waits.map(|attempt| attempt.wake_at = Some(now)).is_some()
    }
}
