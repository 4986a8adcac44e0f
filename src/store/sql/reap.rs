//! Wakes what is due and frees what dead workers hold.

use sqlx::types::Uuid;

use super::super::{Row, cut_silent_leases, span};
use super::rows::{self, get};
use super::signals::Stirred;
use super::store::SqlStore;
use crate::domain::Timestamp;
use crate::domain::id::{RunId, WorkerId};
use crate::store::{LiveWorkers, SAFETY_NET, StoreError};

/// No pass wakes more, so that its transaction stays short; the caller looks again at once.
const LARGEST_PASS: i64 = 200;

/// What a pass finds: nearly always nothing to be done, so it is found by one question.
struct Found {
    workers: Vec<Process>,
    /// Whether a run is due.
    is_due: bool,
    /// When the next that sleeps is: leases and safety nets are not counted there.
    next: Option<Timestamp>,
}

/// A worker that may be alive.
pub(super) struct Registered {
    pub(super) id: WorkerId,
    pub(super) machine: Option<String>,
    /// Whether it is a server.
    stays: bool,
}

/// What a pass knows of a registered worker.
struct Process {
    id: WorkerId,
    machine: Option<String>,
    /// Whether its session ended, and something of it is left.
    to_be_cut: bool,
}

impl SqlStore {
    pub(super) async fn wake_due(&self, at: Timestamp) -> Result<(usize, Option<Timestamp>), StoreError> {
        let Found { workers, is_due, next } = self.look_around(at).await?;
        let mut woken = 0;
        for Process { id, machine, .. } in &workers {
            if self.is_dead(*id, machine.as_deref()) {
                tracing::info!(worker.id = %id, "Worker {id} is dead; its runs go on elsewhere");
                woken += self.free_worker(*id, at).await?;
            }
        }
        if workers.iter().any(|worker| worker.to_be_cut) && !self.is_after_outage() {
            cut_silent_leases(&self.parts.writer, self.at(at)).await?;
        }
        // Whoever took it for dead took it off the list, such as when its session had ended for a moment.
        if let Some(own) = self.own_worker().filter(|own| workers.iter().all(|worker| worker.id != own.id)) {
            self.write_worker(&own, at).await?;
        }
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
        woken += runs.len();
        self.commit(tx, &Stirred::woken(runs)).await?;
        let left = self.look_around(at).await?;
        Ok((woken, left.next))
    }

    /// Workers that live, here and elsewhere.
    pub(super) async fn count_live(&self) -> Result<LiveWorkers, StoreError> {
        let mut live = LiveWorkers::default();
        for worker in self.registered().await? {
            if !self.is_dead(worker.id, worker.machine.as_deref()) {
                *(if worker.stays { &mut live.servers } else { &mut live.visitors }) += 1;
            }
        }
        Ok(live)
    }

    /// Registered workers but those whose session is known to have ended.
    pub(super) async fn registered(&self) -> Result<Vec<Registered>, StoreError> {
        let found = sqlx::query(sql!(concat!(
            "SELECT w.id, w.machine, w.stays FROM refit.processes w WHERE NOT (",
            silent!(),
            ")"
        )))
        .fetch_all(&self.parts.reader)
        .await?;
        let registered = |row: &Row| {
            Ok(Registered {
                id: WorkerId(get::<Uuid>(row, "id")?),
                machine: get(row, "machine")?,
                stays: get(row, "stays")?,
            })
        };
        rows::all(&found, registered)
    }

    async fn look_around(&self, at: Timestamp) -> Result<Found, StoreError> {
        let found = sqlx::query(sql!(concat!(
            "SELECT w.id, w.machine, ",
            to_be_cut!("$1"),
            " AS to_be_cut, EXISTS (SELECT 1 FROM refit.runs WHERE poke_at <= ",
            now!("$1"),
            ") AS due, (SELECT poke_at FROM refit.runs
                 WHERE poke_at IS NOT NULL AND poke_at = wake_at AND lease_owner IS NULL
                 ORDER BY poke_at LIMIT 1) AS next
             FROM (SELECT 1) AS always LEFT JOIN refit.processes w ON TRUE"
        )))
        .bind(self.at(at))
        .fetch_all(&self.parts.reader)
        .await?;
        let first =
            found.first().ok_or_else(|| StoreError::Broken("a question without an answer".to_owned()))?;
        let process = |row: &Row| {
            let id = get::<Option<Uuid>>(row, "id")?;
            let known = id.map(|id| {
                Ok(Process {
                    id: WorkerId(id),
                    machine: get(row, "machine")?,
                    to_be_cut: get(row, "to_be_cut")?,
                })
            });
            known.transpose()
        };
        Ok(Found {
            is_due: get(first, "due")?,
            next: get(first, "next")?,
            workers: rows::all(&found, process)?.into_iter().flatten().collect(),
        })
    }
}
