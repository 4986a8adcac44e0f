//! Messages in hand: each is its holder's, until that one is dead.

use std::sync::PoisonError;

use sqlx::types::Uuid;
use tokio::time::Instant;

use super::rows::{self, get};
use super::store::SqlStore;
use crate::domain::Timestamp;
use crate::domain::id::WorkerId;
use crate::store::{Stay, StoreError};

/// The worker that this process registered.
#[derive(Debug, Clone)]
pub(super) struct OwnWorker {
    pub(super) id: WorkerId,
    pub(super) labels: Vec<String>,
    pub(super) lock_key: i64,
    pub(super) stay: Stay,
}

/// What is in hand.
#[derive(Debug, Clone, Copy)]
pub(super) enum InHand {
    Messages,
    Boards,
}

/// Holders but `$1`, and what is known of them.
macro_rules! holders {
    ($table:literal) => {
        sql!(concat!(
            "SELECT h.holder, w.id IS NULL AS gone, w.machine, ",
            silent!(),
            " AS silent FROM (SELECT DISTINCT holder FROM refit.",
            $table,
            " WHERE holder IS NOT NULL AND holder IS DISTINCT FROM $1) h LEFT JOIN refit.processes w ON w.id = h.holder"
        ))
    };
}

/// What `$1` holds is due at `$2`, unless its hold was over before. `$3`: only if it still has no session.
macro_rules! free {
    ($table:literal) => {
        sql!(concat!(
            "UPDATE refit.",
            $table,
            " SET holder = NULL, due_at = CASE WHEN due_at > ",
            now!("$2"),
            " THEN ",
            now!("$2"),
            " ELSE due_at END WHERE holder = $1 AND (NOT $3 OR EXISTS (
                SELECT 1 FROM refit.processes w WHERE w.id = $1 AND ",
            silent!(),
            "))"
        ))
    };
}

impl InHand {
    fn holders(self) -> &'static str {
        match self {
            InHand::Messages => holders!("outbox"),
            InHand::Boards => holders!("boards"),
        }
    }

    fn free(self) -> &'static str {
        match self {
            InHand::Messages => free!("outbox"),
            InHand::Boards => free!("boards"),
        }
    }
}

/// What is known of another process that holds something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Alive,
    /// Its session ended: it is dead if it makes no new one.
    Silent,
    Dead,
}

impl SqlStore {
    /// The worker that this process is: what it takes is its own.
    pub(super) fn holder(&self) -> Option<Uuid> {
        self.own_worker().map(|worker| worker.id.0)
    }

    /// The worker that this process is.
    pub(super) fn own_worker(&self) -> Option<OwnWorker> {
        self.worker.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// `worker` is this process's, from now on.
    pub(super) fn now_is(&self, worker: OwnWorker) {
        *self.worker.lock().unwrap_or_else(PoisonError::into_inner) = Some(worker);
    }

    /// `worker` is this process's no more.
    pub(super) fn no_more_is(&self, worker: WorkerId) {
        self.worker.lock().unwrap_or_else(PoisonError::into_inner).take_if(|known| known.id == worker);
    }

    /// What dead workers hold is due at once.
    pub(super) async fn free_of_the_dead(&self, what: InHand, at: Timestamp) -> Result<(), StoreError> {
        for (holder, life) in self.holders(what).await? {
            let is_dead = match life {
                Life::Dead => true,
                // After an outage of this process's own, those of others had one, too.
                Life::Silent => !self.is_after_outage() && self.silences.is_dead(holder, Instant::now()),
                Life::Alive => {
                    self.silences.forget(holder);
                    false
                }
            };
            if !is_dead {
                continue;
            }
            let freed = sqlx::query(what.free())
                .bind(holder.0)
                .bind(self.at(at))
                .bind(life == Life::Silent)
                .execute(&self.parts.writer)
                .await?
                .rows_affected();
            if freed > 0 {
                tracing::info!(
                    worker.id = %holder, freed,
                    "Worker {holder} is dead; messages that it had in hand are sent by another"
                );
            }
        }
        Ok(())
    }

    /// Whether a worker that is dead, or will be found to be, holds something.
    pub(super) async fn is_held_by_the_dead(&self, what: InHand) -> Result<bool, StoreError> {
        Ok(self.holders(what).await?.iter().any(|(_, life)| *life != Life::Alive))
    }

    async fn holders(&self, what: InHand) -> Result<Vec<(WorkerId, Life)>, StoreError> {
        let found = sqlx::query(what.holders()).bind(self.holder()).fetch_all(&self.parts.reader).await?;
        rows::all(&found, |row| {
            let holder = WorkerId(get::<Uuid>(row, "holder")?);
            let machine: Option<String> = get(row, "machine")?;
            let life = if get(row, "gone")? || self.is_dead(holder, machine.as_deref()) {
                Life::Dead
            } else if get(row, "silent")? {
                Life::Silent
            } else {
                Life::Alive
            };
            Ok((holder, life))
        })
    }
}
