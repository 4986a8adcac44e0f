//! Deletes old evidence once a day, whichever process has the time, so that a server that runs for years does not
//! grow without end. Stored versions are never deleted here.

use std::time::Duration;

use chrono::TimeDelta;
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
    /// again at once: the rest is for whoever comes next.
    pub async fn prune(&self, stop: &CancellationToken) -> Result<Option<OldEvidence>, StoreError> {
        let found = self.store.pruning(self.clock.now()).await?;
        let Some(due_at) = found.due_at else {
            self.store.move_pruning(None, found.now + EVERY).await?;
            return Ok(None);
        };
        let mut held_until = found.now + HOLD;
        if due_at > found.now || !self.store.move_pruning(Some(due_at), held_until).await? {
            return Ok(None);
        }
        // The database's time, not this machine's: a clock that is a year ahead would take all evidence for old.
        let age = self.evidence_age_at(found.now);
        let mut forgetting = self.store.forget_evidence(&age, false);
        let gone = loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break None,
                gone = &mut forgetting => break Some(gone?),
                () = tokio::time::sleep(SAY_SO_EVERY) => {
                    let longer = self.store.pruning(self.clock.now()).await?.now + HOLD;
                    if self.store.move_pruning(Some(held_until), longer).await? {
                        held_until = longer;
                    }
                }
            }
        };
        let next = if gone.is_some() { found.now + EVERY } else { found.now };
        self.store.move_pruning(Some(held_until), next).await?;
        if let Some(gone) = gone.filter(|gone| gone.total() > 0) {
            tracing::info!(rows = gone.total(), "Old evidence was deleted: {}", in_words(&gone));
        }
        Ok(gone)
    }
}

fn in_words(gone: &OldEvidence) -> String {
    let kinds = gone.kinds().into_iter().filter(|(count, ..)| *count > 0);
    let kinds: Vec<String> =
        kinds.map(|(count, what, of, why)| format!("{}{of} ({why})", counted(count, what))).collect();
    kinds.join(", ")
}
