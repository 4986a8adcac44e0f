//! Wakes what is due and frees what dead workers hold.

use sqlx::types::Uuid;

use super::super::{cut_silent_leases, registered, span};
use super::rows::get;
use super::store::SqlStore;
use crate::domain::Timestamp;
use crate::domain::id::{RunId, WorkerId};
use crate::store::{SAFETY_NET, StoreError};

/// No pass wakes more, so that its transaction stays short; the caller looks again at once.
const LARGEST_PASS: i64 = 200;

impl SqlStore {
    pub(super) async fn wake_due(&self, at: Timestamp) -> Result<(usize, Option<Timestamp>), StoreError> {
        let mut woken = self.free_the_dead(at).await?;
        if !self.is_after_outage() {
            cut_silent_leases(&self.parts.writer, self.at(at)).await?;
        }
        // Nearly always nothing is due: then nobody waits for a transaction.
        let (is_due, next) = self.next_due(at).await?;
        if !is_due {
            return Ok((woken, next));
        }
        let mut tx = self.begin().await?;
        let due = sqlx::query(sql!(concat!(
            "UPDATE refit.runs SET poke_at = ",
            until!("$1", "$2"),
            " WHERE id IN (
                 SELECT id FROM refit.runs WHERE poke_at <= ",
            now!("$1"),
            "
                 ORDER BY poke_at LIMIT $3",
            skip_locked!(),
            ")
             RETURNING id"
        )))
        .bind(self.at(at))
        .bind(span(at, SAFETY_NET))
        .bind(LARGEST_PASS)
        .fetch_all(&mut *tx)
        .await?;
        let runs =
            due.iter().map(|row| Ok(RunId(get(row, "id")?))).collect::<Result<Vec<_>, StoreError>>()?;
        self.commit(tx, &runs).await?;
        woken += runs.len();
        let (_, next) = self.next_due(at).await?;
        Ok((woken, next))
    }

    /// Workers that live, here and elsewhere.
    pub(super) async fn count_live(&self) -> Result<u32, StoreError> {
        let known = registered(&self.parts.reader).await?;
        let live = known.iter().filter(|(id, machine)| !self.is_dead(WorkerId(*id), machine.as_deref()));
        Ok(u32::try_from(live.count()).unwrap_or(u32::MAX))
    }

    /// Workers of this machine whose lock is free.
    async fn free_the_dead(&self, at: Timestamp) -> Result<usize, StoreError> {
        let workers = sqlx::query(sql!("SELECT id, machine FROM refit.processes"))
            .fetch_all(&self.parts.reader)
            .await?;
        let mut woken = 0;
        for row in &workers {
            let worker = WorkerId(get::<Uuid>(row, "id")?);
            if self.is_dead(worker, get::<Option<String>>(row, "machine")?.as_deref()) {
                tracing::info!(worker.id = %worker, "Worker {worker} is dead; its runs go on elsewhere");
                woken += self.free_worker(worker, at).await?;
            }
        }
        Ok(woken)
    }

    /// Whether a run is due, and when the next that sleeps is: leases and safety nets are not counted there.
    async fn next_due(&self, at: Timestamp) -> Result<(bool, Option<Timestamp>), StoreError> {
        let row = sqlx::query(sql!(concat!(
            "SELECT EXISTS (SELECT 1 FROM refit.runs WHERE poke_at <= ",
            now!("$1"),
            ") AS due, (SELECT poke_at FROM refit.runs
                 WHERE poke_at IS NOT NULL AND poke_at = wake_at AND lease_owner IS NULL
                 ORDER BY poke_at LIMIT 1) AS next"
        )))
        .bind(self.at(at))
        .fetch_one(&self.parts.reader)
        .await?;
        Ok((get(&row, "due")?, get(&row, "next")?))
    }
}
