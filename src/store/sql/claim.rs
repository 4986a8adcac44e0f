//! Taking a run, keeping it, giving it back; and workers.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use sqlx::Row as _;
use sqlx::types::{Json, Uuid};

use super::super::{Connection, span};
use super::checkpoint::{NewRows, cancel_attempts, insert_attempts};
use super::holders::OwnWorker;
use super::queries::{attempts_in, intents_in, signals_in};
use super::rows::{self, get, json_opt, text, word};
use super::signals::Stirred;
use super::store::SqlStore;
use super::waking::wake_attempt;
use crate::domain::Timestamp;
use crate::domain::id::{Epoch, RunId, StepId, WorkerId};
use crate::domain::run::{Attempt, AttemptState, Intent, Run, RunStatus};
use crate::store::liveness::Life;
use crate::store::{
    Checkpoint, Claim, ClaimResult, LEASE, Leases, LiveWorkers, NewAttempt, Opening, Planner, Renewal,
    SAFETY_NET, Stay, StoreError,
};

/// How often a claim reads again what was written while it did.
const CLAIM_TRIES: usize = 5;

/// Who has a run, as read before it is taken.
struct Holder {
    worker: WorkerId,
    machine: Option<String>,
    expired: bool,
}

#[async_trait]
impl Leases for SqlStore {
    async fn register_worker(
        &self,
        worker: WorkerId,
        labels: &[String],
        stay: Stay,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        self.answered(self.enter_worker(worker, labels, stay, at)).await
    }

    async fn live_workers(&self) -> Result<LiveWorkers, StoreError> {
        self.answered(self.count_live()).await
    }

    async fn retire_worker(&self, worker: WorkerId) -> Result<(), StoreError> {
        self.answered(self.leave_worker(worker)).await
    }

    async fn claim(
        &self,
        run: RunId,
        worker: WorkerId,
        lease: Duration,
        at: Timestamp,
        plan: Planner<'_>,
    ) -> Result<ClaimResult, StoreError> {
        self.answered(self.claim_run(run, worker, lease, at, plan)).await
    }

    async fn renew(
        &self,
        run: RunId,
        epoch: Epoch,
        lease: Duration,
        at: Timestamp,
    ) -> Result<Renewal, StoreError> {
        self.answered(self.renew_lease(run, epoch, lease, at)).await
    }

    async fn checkpoint(&self, checkpoint: Checkpoint) -> Result<(), StoreError> {
        self.seen(self.committer.write(checkpoint).await)
    }

    async fn release_lease(&self, run: RunId, epoch: Epoch) -> Result<(), StoreError> {
        self.answered(self.give_back(run, epoch)).await
    }

    async fn intend(&self, run: RunId, epoch: Epoch, intent: &Intent) -> Result<Intent, StoreError> {
        self.answered(self.record_intent(run, epoch, intent)).await
    }

    async fn settle(&self, run: RunId, epoch: Epoch, key: &str, result: &Value) -> Result<(), StoreError> {
        self.answered(self.settle_intent(run, epoch, key, result)).await
    }

    async fn reap(&self, at: Timestamp) -> Result<(usize, Option<Timestamp>), StoreError> {
        self.answered(self.wake_due(at)).await
    }
}

impl SqlStore {
    async fn claim_run(
        &self,
        run: RunId,
        worker: WorkerId,
        lease: Duration,
        at: Timestamp,
        plan: Planner<'_>,
    ) -> Result<ClaimResult, StoreError> {
        for _ in 0..CLAIM_TRIES {
            if let Some(result) = self.try_claim(run, worker, lease, at, plan).await? {
                return Ok(result);
            }
        }
        // Whoever was taken for dead works on it.
        Ok(ClaimResult::Taken)
    }

    /// Nothing when its last holder, who was taken for dead, has written a checkpoint meanwhile: what was read is out of
    /// date.
    async fn try_claim(
        &self,
        run: RunId,
        worker: WorkerId,
        lease: Duration,
        at: Timestamp,
        plan: Planner<'_>,
    ) -> Result<Option<ClaimResult>, StoreError> {
        let mut tx = self.begin().await?;
        let found = sqlx::query(sql!(concat!(
            "SELECT r.status, r.epoch, r.concurrency_key, r.signal_seq, r.lease_owner, w.machine,
                    r.cancel IS NOT NULL AS unwanted,
                    coalesce(r.lease_until <= ",
            now!("$2"),
            ", TRUE) AS expired,
                    (r.signal_seq > r.signal_seen OR coalesce(r.wake_at <= ",
            now!("$2"),
            ", FALSE)) AS due
             FROM refit.runs r LEFT JOIN refit.processes w ON w.id = r.lease_owner WHERE r.id = $1"
        )))
        .bind(run.0)
        .bind(self.at(at))
        .fetch_optional(&mut *tx)
        .await?;
        let Some(row) = found else { return Ok(Some(ClaimResult::Gone)) };
        let status: RunStatus = word(&row, "status")?;
        if status == RunStatus::Finished {
            return Ok(Some(ClaimResult::Gone));
        }
        let owner = get::<Option<Uuid>>(&row, "lease_owner")?.map(WorkerId);
        if let Some(owner) = owner {
            let holder =
                Holder { worker: owner, machine: get(&row, "machine")?, expired: get(&row, "expired")? };
            if !self.is_free(&holder, worker, lease) {
                return Ok(Some(ClaimResult::Taken));
            }
        } else if !get::<bool>(&row, "due")? {
            return Ok(Some(ClaimResult::NotDue));
        }
        // A run that somebody wants cancelled needs no turn: it will only end.
        if status == RunStatus::Queued && !get::<bool>(&row, "unwanted")? {
            let key: String = get(&row, "concurrency_key")?;
            if !take_key(&mut tx, &key, run).await? {
                self.wait_for_key(tx, run, at).await?;
                return Ok(Some(ClaimResult::KeyTaken));
            }
        }
        let epoch: i64 = get(&row, "epoch")?;
        let taken = sqlx::query(sql!(concat!(
            "UPDATE refit.runs SET epoch = epoch + 1, crashes = CASE WHEN progressed THEN crashes ELSE crashes + 1 END,
                 progressed = FALSE, status = CASE WHEN status = 'queued' THEN 'running' ELSE status END,
                 lease_owner = $3, lease_until = ", until!("$4", "$5"), ", wake_at = NULL,
                 poke_at = ", until!("$4", "$5"), ", signal_seen = signal_seq
             WHERE id = $1 AND epoch = $2 AND status <> 'finished' AND lease_owner IS NOT DISTINCT FROM $6
             RETURNING *, (SELECT definition FROM refit.run_docs WHERE run = id) AS definition,
                 (SELECT cause FROM refit.run_docs WHERE run = id) AS cause"
        )))
        .bind(run.0)
        .bind(epoch)
        .bind(worker.0)
        .bind(self.at(at))
        .bind(span(at, lease))
        .bind(owner.map(|owner| owner.0))
        .fetch_optional(&mut *tx)
        .await?;
        let Some(taken) = taken else { return Ok(Some(ClaimResult::Taken)) };
        let heard: i64 = get(&taken, "signal_seq")?;
        let mut claim = read_claim(&mut tx, rows::run(&taken)?, epoch, heard).await?;
        let Some(opening) = plan(&claim) else {
            tx.rollback().await?;
            return Ok(Some(ClaimResult::Left));
        };
        if !lose_attempts(&mut tx, &claim, &opening.lost, at).await? {
            tx.rollback().await?;
            return Ok(None);
        }
        write_opening(&mut tx, &mut claim, &opening, at).await?;
        tx.commit().await?;
        Ok(Some(ClaimResult::Claimed(Box::new(claim))))
    }

    /// Whether what `holder` has may be taken by `worker`.
    fn is_free(&self, holder: &Holder, worker: WorkerId, lease: Duration) -> bool {
        // A lease of our own that was not renewed: the activation died without its process.
        if holder.worker == worker {
            return holder.expired;
        }
        self.is_dead(holder.worker, holder.machine.as_deref())
            || (super::super::LEASES_EXPIRE && holder.expired && !self.outage.within(lease))
    }

    /// Whether a worker is known to be dead.
    pub(super) fn is_dead(&self, worker: WorkerId, machine: Option<&str>) -> bool {
        let Some(liveness) = &self.parts.liveness else { return false };
        if machine != liveness.machine() {
            return false;
        }
        match liveness.of(worker) {
            Life::Alive => false,
            Life::Dead => true,
            Life::NoFile => super::super::NO_FILE_MEANS_DEAD,
        }
    }

    /// Whoever frees the key wakes the run; the safety net is wide.
    async fn wait_for_key(
        &self,
        mut tx: sqlx::Transaction<'static, super::super::Db>,
        run: RunId,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query(sql!(concat!(
            "UPDATE refit.runs SET poke_at = ",
            until!("$2", "$3"),
            " WHERE id = $1 AND status = 'queued'"
        )))
        .bind(run.0)
        .bind(self.at(at))
        .bind(span(at, SAFETY_NET * 20))
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }

    async fn renew_lease(
        &self,
        run: RunId,
        epoch: Epoch,
        lease: Duration,
        at: Timestamp,
    ) -> Result<Renewal, StoreError> {
        let row = sqlx::query(sql!(concat!(
            "UPDATE refit.runs SET lease_until = ",
            until!("$3", "$4"),
            ", poke_at = ",
            until!("$3", "$4"),
            "
             WHERE id = $1 AND epoch = $2 AND lease_owner IS NOT NULL AND status <> 'finished'
             RETURNING cancel, signal_seq"
        )))
        .bind(run.0)
        .bind(epoch.0)
        .bind(self.at(at))
        .bind(span(at, lease))
        .fetch_optional(&self.parts.writer)
        .await?;
        match row {
            Some(row) => {
                Ok(Renewal::Held { cancel: json_opt(&row, "cancel")?, told: get(&row, "signal_seq")? })
            }
            None => Ok(Renewal::Lost),
        }
    }

    async fn give_back(&self, run: RunId, epoch: Epoch) -> Result<(), StoreError> {
        let now = self.parts.clock.now();
        let mut tx = self.begin().await?;
        let freed = sqlx::query(sql!(concat!(
            "UPDATE refit.runs SET lease_owner = NULL, lease_until = NULL, progressed = TRUE,
                 wake_at = ",
            now!("$3"),
            ", poke_at = ",
            until!("$3", "$4"),
            "
             WHERE id = $1 AND epoch = $2 AND lease_owner IS NOT NULL AND status <> 'finished'"
        )))
        .bind(run.0)
        .bind(epoch.0)
        .bind(self.at(now))
        .bind(span(now, SAFETY_NET))
        .execute(&mut *tx)
        .await?;
        if freed.rows_affected() == 0 {
            return Err(StoreError::Fenced);
        }
        self.commit(tx, &Stirred::woken(vec![run])).await
    }

    async fn enter_worker(
        &self,
        worker: WorkerId,
        labels: &[String],
        stay: Stay,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        if let Some(liveness) = &self.parts.liveness {
            liveness.enter(worker).map_err(|error| StoreError::Unusable {
                problem: format!("the lock file of this worker cannot be made: {error}"),
                hint: "make the directory `workers` beside the database writable for this user".to_owned(),
            })?;
        }
        let lock_key = self.parts.session.enter(worker).await?;
        let labels = labels.iter().map(|label| text(label)).collect();
        let own = OwnWorker { id: worker, labels, lock_key, stay };
        self.write_worker(&own, at).await?;
        self.now_is(own);
        Ok(())
    }

    /// Puts this process's worker on the list.
    pub(super) async fn write_worker(&self, own: &OwnWorker, at: Timestamp) -> Result<(), StoreError> {
        sqlx::query(sql!(
            "INSERT INTO refit.processes (id, labels, machine, lock_key, registered_at, stays)
             VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT (id) DO UPDATE SET labels = excluded.labels, registered_at = excluded.registered_at"
        ))
        .bind(own.id.0)
        .bind(Json(&own.labels))
        .bind(self.parts.liveness.as_ref().and_then(|liveness| liveness.machine()))
        .bind(own.lock_key)
        .bind(at)
        .bind(own.stay == Stay::Open)
        .execute(&self.parts.writer)
        .await?;
        Ok(())
    }

    async fn leave_worker(&self, worker: WorkerId) -> Result<(), StoreError> {
        self.no_more_is(worker);
        self.free_worker(worker, self.parts.clock.now()).await?;
        self.parts.session.leave(worker).await;
        Ok(())
    }

    /// Frees what a worker that is gone holds, and forgets it; returns how many runs that woke.
    pub(super) async fn free_worker(&self, worker: WorkerId, at: Timestamp) -> Result<usize, StoreError> {
        let mut tx = self.begin().await?;
        // Wake-ups it had fetched but not acted on are lost with it: what is due is woken now.
        let rows = sqlx::query(sql!(concat!(
            "UPDATE refit.runs SET lease_owner = NULL, lease_until = NULL, wake_at = ",
            now!("$2"),
            ",
                 poke_at = ",
            until!("$2", "$3"),
            "
             WHERE lease_owner = $1 OR (poke_at IS NOT NULL AND lease_owner IS NULL AND wake_at < poke_at
                 AND wake_at <= ",
            now!("$2"),
            ")
             RETURNING id"
        )))
        .bind(worker.0)
        .bind(self.at(at))
        .bind(span(at, SAFETY_NET))
        .fetch_all(&mut *tx)
        .await?;
        let woken =
            rows.iter().map(|row| Ok(RunId(row.try_get(0)?))).collect::<Result<Vec<_>, sqlx::Error>>()?;
        sqlx::query(sql!("DELETE FROM refit.processes WHERE id = $1"))
            .bind(worker.0)
            .execute(&mut *tx)
            .await?;
        let freed = woken.len();
        self.commit(tx, &Stirred::woken(woken)).await?;
        if let Some(liveness) = &self.parts.liveness {
            liveness.forget(worker);
        }
        Ok(freed)
    }

    /// How long a reaper leaves others' leases alone after an outage.
    pub(super) fn is_after_outage(&self) -> bool {
        self.outage.within(LEASE)
    }
}

/// Takes the concurrency key for `run`, unless another has it. Before the run's own row is locked: who
/// ends a run locks the key first, too.
async fn take_key(connection: &mut Connection, key: &str, run: RunId) -> Result<bool, StoreError> {
    let taken = sqlx::query(sql!(
        "INSERT INTO refit.concurrency (key, run) VALUES ($1, $2) ON CONFLICT (key) DO NOTHING"
    ))
    .bind(key)
    .bind(run.0)
    .execute(&mut *connection)
    .await?;
    if taken.rows_affected() == 1 {
        return Ok(true);
    }
    let holder = sqlx::query_scalar::<_, Uuid>(sql!("SELECT run FROM refit.concurrency WHERE key = $1"))
        .bind(key)
        .fetch_optional(connection)
        .await?;
    Ok(holder == Some(run.0))
}

/// Everything about a run; on its first claim there is nothing but the run. `epoch`: what it was before.
async fn read_claim(
    connection: &mut Connection,
    run: Run,
    epoch: i64,
    heard: i64,
) -> Result<Claim, StoreError> {
    if epoch == 0 && heard == 0 {
        return Ok(Claim { run, attempts: Vec::new(), intents: Vec::new(), signals: Vec::new(), heard });
    }
    let attempts = attempts_in(connection, run.id).await?;
    let intents = intents_in(connection, run.id).await?;
    let signals = signals_in(connection, run.id).await?;
    Ok(Claim { run, attempts, intents, signals, heard })
}

/// Attempts `started` by a holder that is gone are lost, where the plan says so. Each has a row from now on, whatever it
/// says: what that holder still writes of them, should it wake up, is fenced by that. Whether none of them has ended since
/// it was read.
async fn lose_attempts(
    connection: &mut Connection,
    claim: &Claim,
    lost: &[(StepId, u32)],
    at: Timestamp,
) -> Result<bool, StoreError> {
    let is_lost = |attempt: &Attempt| {
        lost.iter().any(|(step, number)| *step == attempt.step && *number == attempt.attempt)
    };
    let is_started = |attempt: &Attempt| attempt.state == AttemptState::Started;
    for (place, attempt) in (0_i64..).zip(&claim.attempts).filter(|(_, attempt)| is_started(attempt)) {
        let (state, ended) =
            if is_lost(attempt) { (AttemptState::Lost, Some(at)) } else { (AttemptState::Started, None) };
        let written = sqlx::query(sql!(
            "INSERT INTO refit.attempts AS a (run, step, attempt, state, epoch, started_at, finished_at, changed_at, place)
             VALUES ($1, $2, $3, $4, $5, $6, $7, coalesce($7, $6), $8)
             ON CONFLICT (run, step, attempt) DO UPDATE SET state = excluded.state,
                 finished_at = excluded.finished_at, changed_at = excluded.changed_at
             WHERE a.state = 'started'"
        ))
        .bind(claim.run.id.0)
        .bind(attempt.step.as_str())
        .bind(i64::from(attempt.attempt))
        .bind(state.as_str())
        .bind(attempt.epoch.0)
        .bind(attempt.started_at)
        .bind(ended)
        .bind(place)
        .execute(&mut *connection)
        .await?;
        if written.rows_affected() == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn write_opening(
    connection: &mut Connection,
    claim: &mut Claim,
    opening: &Opening,
    at: Timestamp,
) -> Result<(), StoreError> {
    let (run, epoch) = (claim.run.id, claim.run.epoch);
    cancel_attempts(connection, run, &opening.cancelled, at).await?;
    for sleeper in &opening.woken {
        wake_attempt(connection, run, epoch, sleeper, at).await?;
    }
    insert_attempts(
        connection,
        run,
        epoch,
        at,
        &NewRows { place: claim.attempts.len(), started: &opening.started, skipped: &opening.skipped },
    )
    .await?;
    if let Some(status) = opening.status.filter(|status| *status != claim.run.status) {
        sqlx::query(sql!("UPDATE refit.runs SET status = $2 WHERE id = $1"))
            .bind(run.0)
            .bind(status.as_str())
            .execute(&mut *connection)
            .await?;
        claim.run.status = status;
    }
    let only_starts =
        Opening { status: opening.status, started: opening.started.clone(), ..Opening::default() };
    if *opening == only_starts {
        let started = |new: &NewAttempt| Attempt::started(new.step.clone(), new.attempt, epoch, at);
        claim.attempts.extend(opening.started.iter().map(started));
    } else {
        claim.attempts = attempts_in(connection, run).await?;
    }
    Ok(())
}
