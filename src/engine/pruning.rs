//! Deletes old evidence once a day, whichever process has the time, so that a server that runs for years does not
//! grow without end. Stored versions are never deleted here.

use std::time::Duration;

use chrono::TimeDelta;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::Engine;
use crate::domain::Timestamp;
use crate::domain::words::counted;
use crate::store::{EvidenceAge, OldEvidence, StoreError};

/// Also what a database that was never asked before is left alone: time to write other ages down.
const EVERY: TimeDelta = TimeDelta::days(1);
/// A process that died is taken over from after this; one that lives says so in time.
const HOLD: TimeDelta = TimeDelta::minutes(10);
const SAY_SO_EVERY: Duration = Duration::from_secs(120);

impl Engine {
    /// What `[retention]` takes for old evidence now.
    pub fn evidence_age(&self) -> EvidenceAge {
        self.evidence_age_at(self.clock.now())
    }

    fn evidence_age_at(&self, now: Timestamp) -> EvidenceAge {
        let ages = self.settings.ages;
        EvidenceAge {
            unmatched: now - ages.unmatched,
            batch_ids: now - ages.batch_ids,
            counted: now - ages.evidence,
        }
    }

    /// Deletes old evidence if that is due and no other process is at it, and returns what went. At `stop` it is due
    /// again at once: the rest is for whoever comes next. Where this is dropped, it is due when its hold is over.
    pub async fn prune(&self, stop: &CancellationToken) -> Result<Option<OldEvidence>, StoreError> {
        let found = self.store.pruning(self.clock.now()).await?;
        let Some(due_at) = found.due_at else {
            self.store.move_pruning(None, found.now + EVERY).await?;
            return Ok(None);
        };
        let held = Mutex::new(found.now + HOLD);
        if due_at > found.now || !self.store.move_pruning(Some(due_at), found.now + HOLD).await? {
            return Ok(None);
        }
        // The database's time, not this machine's: a clock that is a year ahead would take all evidence for old.
        let age = self.evidence_age_at(found.now);
        // Side by side: a database with one connection that writes has it in turns.
        let gone = tokio::select! {
            biased;
            () = stop.cancelled() => None,
            gone = self.store.forget_evidence(&age, false) => Some(gone?),
            failed = self.keep_pruning(&held) => return Err(failed),
        };
        let held_until = *held.lock().await;
        let next = if gone.is_some() { found.now + EVERY } else { found.now };
        self.store.move_pruning(Some(held_until), next).await?;
        if let Some(gone) = gone.filter(|gone| gone.total() > 0) {
            tracing::info!(rows = gone.total(), "Old evidence was deleted: {}", in_words(&gone));
        }
        Ok(gone)
    }

    /// Says now and then that this process is at it; returns only when that cannot be said.
    async fn keep_pruning(&self, held: &Mutex<Timestamp>) -> StoreError {
        loop {
            tokio::time::sleep(SAY_SO_EVERY).await;
            let mut held = held.lock().await;
            let moved = async {
                let longer = self.store.pruning(self.clock.now()).await?.now + HOLD;
                Ok(self.store.move_pruning(Some(*held), longer).await?.then_some(longer))
            };
            match moved.await {
                Ok(Some(longer)) => *held = longer,
                // Somebody else is at it by now, which does no harm.
                Ok(None) => {}
                Err(error) => return error,
            }
        }
    }
}

/// How much of each kind there is, and why it may go.
pub fn in_kinds(old: &OldEvidence) -> Vec<(String, &'static str)> {
    let kinds = [
        (old.predictions, "prediction", "", "no truth came for them"),
        (old.truths, "truth", "", "no prediction came for them"),
        (old.batch_ids, "batch id", "", "nobody sends them again"),
        (old.pairs, "pair", " of errors", "no canary looks back so far"),
        (old.minutes, "minute", " of evidence", "no canary looks back so far"),
    ];
    let some = kinds.into_iter().filter(|(count, ..)| *count > 0);
    some.map(|(count, what, of, why)| (format!("{}{of}", counted(count, what)), why)).collect()
}

fn in_words(gone: &OldEvidence) -> String {
    let kinds = in_kinds(gone).into_iter().map(|(what, why)| format!("{what} ({why})"));
    kinds.collect::<Vec<_>>().join(", ")
}
