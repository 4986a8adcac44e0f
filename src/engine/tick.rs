//! Works until nothing is due: what a process does that looks in now and then,
//! and what one does that lets its database sleep in between.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use tokio_util::sync::CancellationToken;

use super::Engine;
use crate::domain::Timestamp;
use crate::domain::id::WorkflowName;
use crate::store::{Awaited, StoreError};

/// When a process has nothing to do.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// What is due within this time is waited for.
    pub soon: TimeDelta,
    /// How often it is asked whether anything is left to do.
    pub ask_every: Duration,
}

/// What is due next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// One of the things that the database waits with.
    Awaited(Awaited),
    /// A tick of a workflow's schedule.
    Schedule(WorkflowName),
}

impl fmt::Display for Next {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Next::Awaited(Awaited::Run) => f.write_str("a run goes on"),
            Next::Awaited(Awaited::Lease) => f.write_str("a run of a process that is gone is taken over"),
            Next::Awaited(Awaited::Look) => f.write_str("a look at a canary"),
            Next::Awaited(Awaited::Message) => f.write_str("a message is sent again"),
            Next::Awaited(Awaited::Board) => f.write_str("a message that follows a run is rewritten"),
            Next::Schedule(workflow) => write!(f, "the schedule of {workflow}"),
        }
    }
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
        if due.soonest.iter().any(|(_, at)| *at <= self.clock.now() + soon) {
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

    /// What is due next, and when; a time that has passed is now.
    pub async fn next_due(&self) -> Result<Option<(Next, Timestamp)>, StoreError> {
        let waits = self.store.due(self.clock.now()).await?.soonest;
        let waits = waits.into_iter().map(|(what, at)| (Next::Awaited(what), at));
        let schedules = self.store.schedules().await?;
        let ticks = schedules.into_iter().map(|row| (Next::Schedule(row.workflow), row.next_fire_at));
        Ok(waits.chain(ticks).min_by_key(|(_, at)| *at))
    }
}
