//! Works until nothing is due: what a process does that looks in now and then,
//! and what one does that lets its database sleep in between.

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use tokio_util::sync::CancellationToken;

use super::Engine;
use crate::domain::Timestamp;
use crate::store::{Awaited, Due, StoreError};

/// When a process has nothing to do.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// What is due within this time is waited for.
    pub soon: TimeDelta,
    /// How often it is asked whether anything is left to do.
    pub ask_every: Duration,
}

/// What is due next, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Next {
    /// What.
    pub what: Awaited,
    /// When; a time that has passed is now.
    pub at: Timestamp,
}

/// The first of what waits.
pub fn first(due: &Due) -> Option<Next> {
    due.soonest.iter().min_by_key(|(_, at)| *at).map(|(what, at)| Next { what: *what, at: *at })
}

impl Engine {
    /// Returns once a started worker has nothing in hand, and nothing is due soon; or at `stop`.
    /// Runs that could go on but not here (a label that this process lacks) are left.
    pub async fn until_quiet(
        self: &Arc<Self>,
        patience: Patience,
        stop: &CancellationToken,
    ) -> Result<(), StoreError> {
        while !stop.is_cancelled() {
            if self.is_quiet(patience.soon).await? {
                return Ok(());
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(patience.ask_every) => {}
            }
        }
        Ok(())
    }

    /// Whether this process has nothing in hand, and nothing is due within `soon`.
    pub async fn is_quiet(&self, soon: TimeDelta) -> Result<bool, StoreError> {
        // Before and after: what a run that is given back leaves is in the database then, and what is taken
        // meanwhile is in hand.
        if self.is_busy() {
            return Ok(false);
        }
        let due = self.store.due(self.clock.now()).await?;
        if first(&due).is_some_and(|next| next.at <= self.clock.now() + soon) {
            return Ok(false);
        }
        for run in due.runs {
            if !self.lacks_labels_of(run).await? {
                return Ok(false);
            }
        }
        Ok(!self.is_busy())
    }

    fn is_busy(&self) -> bool {
        self.live_runs() > 0 || self.rereads() > 0
    }
}
