//! Canaries. The record is one document; the columns beside it are what is
//! compared and searched, or written by others than looks, and win over it.

use async_trait::async_trait;
use chrono::TimeDelta;
use sqlx::types::Json;

use super::super::{Connection, Row};
use super::checkpoint::insert_notices;
use super::registry::lock_versions;
use super::rows::{doc, get, json, text, word};
use super::signals::{NewSignal, Stirred, Told, fence, signal_in};
use super::store::SqlStore;
use crate::domain::Timestamp;
use crate::domain::canary::{CanaryRecord, CanaryState, Extension, MoreTime, NotExtended};
use crate::domain::id::{CanaryId, Epoch, ModelName, RunId};
use crate::domain::release::ReleaseActor;
use crate::domain::run::SignalKind;
use crate::domain::verdict::Verdict;
use crate::store::error::unreadable;
use crate::store::{Canaries, CanaryChange, Extended, Notice, StoreError};

/// When somebody asks again for a look at a canary that cannot be read.
const UNREADABLE_AGAIN: TimeDelta = TimeDelta::hours(1);

fn state_word(state: CanaryState) -> &'static str {
    match state {
        CanaryState::Watching => "watching",
        CanaryState::Baking => "baking",
        CanaryState::Promoted => "promoted",
        CanaryState::RolledBack => "rolled_back",
    }
}

fn stage_number(stage: usize) -> Result<i64, StoreError> {
    i64::try_from(stage).map_err(|e| unreadable("stage", e))
}

fn canary(row: &Row) -> Result<CanaryRecord, StoreError> {
    let record: CanaryRecord = json(row, "record")?;
    let extensions: Vec<Extension> = json(row, "extensions")?;
    let deadline = extensions.last().map_or(record.deadline, |extension| extension.deadline);
    Ok(CanaryRecord {
        deadline,
        extensions,
        state: word(row, "state")?,
        stage: usize::try_from(get::<i64>(row, "stage")?).map_err(|e| unreadable("stage", e))?,
        next_look_at: get(row, "next_look_at")?,
        ..record
    })
}

/// The record as it is kept: extensions have a column of their own, which no look writes.
fn document(record: &CanaryRecord) -> Result<Json<serde_json::Value>, StoreError> {
    if record.extensions.is_empty() {
        return doc(record);
    }
    doc(&CanaryRecord { extensions: vec![], ..record.clone() })
}

#[async_trait]
impl Canaries for SqlStore {
    async fn open_canary(&self, epoch: Epoch, canary: &CanaryRecord) -> Result<CanaryRecord, StoreError> {
        self.answered(self.record_canary(epoch, canary)).await
    }

    async fn canary_of(&self, run: RunId) -> Result<Option<CanaryRecord>, StoreError> {
        self.answered(self.read_canary_of(run)).await
    }

    async fn live_canaries(&self, due_at: Option<Timestamp>) -> Result<Vec<CanaryRecord>, StoreError> {
        self.answered(self.list_live(due_at)).await
    }

    async fn take_look(&self, id: CanaryId, read: Timestamp, next: Timestamp) -> Result<bool, StoreError> {
        self.answered(self.claim_look(id, read, next)).await
    }

    async fn save_look(
        &self,
        before: &CanaryRecord,
        after: &CanaryRecord,
        notices: &[Notice],
    ) -> Result<bool, StoreError> {
        self.answered(self.write_look(before, after, notices)).await
    }

    async fn extend_canary(
        &self,
        run: RunId,
        asked: &MoreTime,
        at: Timestamp,
    ) -> Result<Extended, StoreError> {
        self.answered(self.give_more_time(run, asked, at)).await
    }

    async fn end_bake(
        &self,
        canary: CanaryId,
        model: &ModelName,
        by: (RunId, Epoch),
        at: Timestamp,
    ) -> Result<CanaryRecord, StoreError> {
        self.answered(self.finish_bake(canary, model, by, at)).await
    }

    async fn set_canary_state(&self, change: &CanaryChange) -> Result<CanaryRecord, StoreError> {
        self.answered(self.change_canary(change)).await
    }
}

impl SqlStore {
    async fn record_canary(&self, epoch: Epoch, record: &CanaryRecord) -> Result<CanaryRecord, StoreError> {
        let mut tx = self.begin().await?;
        fence(&mut tx, record.run, epoch).await?;
        let known = sqlx::query(sql!(
            "SELECT * FROM refit.canaries WHERE run = $1 AND (id = $2 OR state IN ('watching', 'baking'))
             ORDER BY id DESC LIMIT 1"
        ))
        .bind(record.run.0)
        .bind(record.id.0)
        .fetch_optional(&mut *tx)
        .await?;
        if let Some(row) = known {
            return canary(&row);
        }
        sqlx::query(sql!(
            "INSERT INTO refit.canaries (id, run, state, stage, next_look_at, record) VALUES ($1, $2, $3, $4, $5, $6)"
        ))
        .bind(record.id.0)
        .bind(record.run.0)
        .bind(state_word(record.state))
        .bind(stage_number(record.stage)?)
        .bind(record.next_look_at)
        .bind(doc(record)?)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(record.clone())
    }

    async fn read_canary_of(&self, run: RunId) -> Result<Option<CanaryRecord>, StoreError> {
        let row = sqlx::query(sql!("SELECT * FROM refit.canaries WHERE run = $1 ORDER BY id DESC LIMIT 1"))
            .bind(run.0)
            .fetch_optional(&self.parts.reader)
            .await?;
        row.as_ref().map(canary).transpose()
    }

    pub(super) async fn list_live(&self, due_at: Option<Timestamp>) -> Result<Vec<CanaryRecord>, StoreError> {
        let found = sqlx::query(sql!(
            "SELECT * FROM refit.canaries WHERE state IN ('watching', 'baking')
             AND ($1 IS NULL OR next_look_at <= $1) ORDER BY next_look_at"
        ))
        .bind(due_at)
        .fetch_all(&self.parts.reader)
        .await?;
        let mut live = vec![];
        for row in &found {
            match canary(row) {
                Ok(record) => live.push(record),
                Err(error) => self.pass_over(row, due_at, &error).await?,
            }
        }
        Ok(live)
    }

    /// A live canary whose record cannot be read bars no other. Its look is put off: who waits until nothing is due would
    /// wait for ever.
    async fn pass_over(
        &self,
        row: &Row,
        due_at: Option<Timestamp>,
        error: &StoreError,
    ) -> Result<(), StoreError> {
        let (id, run) = (CanaryId(get(row, "id")?), RunId(get(row, "run")?));
        let Some(now) = due_at else {
            tracing::warn!(canary.id = %id, run.id = %run, "Canary {id} of run {run} cannot be read: {error}");
            return Ok(());
        };
        tracing::error!(canary.id = %id, run.id = %run,
            "Nobody looks at canary {id} of run {run}, for its record cannot be read ({error}): \
             what it shows is taken back by `refit rollback`");
        self.claim_look(id, get(row, "next_look_at")?, now + UNREADABLE_AGAIN).await.map(drop)
    }

    async fn claim_look(&self, id: CanaryId, read: Timestamp, next: Timestamp) -> Result<bool, StoreError> {
        let taken = sqlx::query(sql!(
            "UPDATE refit.canaries SET next_look_at = $3
             WHERE id = $1 AND next_look_at = $2 AND state IN ('watching', 'baking')"
        ))
        .bind(id.0)
        .bind(read)
        .bind(next)
        .execute(&self.parts.writer)
        .await?;
        Ok(taken.rows_affected() == 1)
    }

    async fn write_look(
        &self,
        before: &CanaryRecord,
        after: &CanaryRecord,
        notices: &[Notice],
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let is_news = before.verdict != after.verdict;
        if is_news {
            // As whoever gives it more time: that one locks the canary and its run in this order.
            lock_versions(&mut tx, &after.model).await?;
        }
        // The time of the next look was set when this one was taken: another one means that a later look was.
        let saved = sqlx::query(sql!(
            "UPDATE refit.canaries SET state = $4, stage = $5, record = $6,
                 next_look_at = CASE WHEN next_look_at < $7 THEN $7 ELSE next_look_at END
             WHERE id = $1 AND state = $2 AND stage = $3 AND next_look_at = $8"
        ))
        .bind(before.id.0)
        .bind(state_word(before.state))
        .bind(stage_number(before.stage)?)
        .bind(state_word(after.state))
        .bind(stage_number(after.stage)?)
        .bind(document(after)?)
        .bind(after.next_look_at)
        .bind(before.next_look_at)
        .execute(&mut *tx)
        .await?;
        if saved.rows_affected() == 0 {
            return Ok(false);
        }
        let now = self.parts.clock.now();
        insert_notices(&mut tx, notices, now, self.at(now)).await?;
        // A run that sleeps for days hears of it with the look or not at all.
        let told = if is_news { self.tell_to_look(&mut tx, after, now).await? } else { Told::Gone };
        self.commit(tx, &Stirred::of(after.run, &told)).await?;
        Ok(true)
    }

    async fn give_more_time(
        &self,
        run: RunId,
        asked: &MoreTime,
        at: Timestamp,
    ) -> Result<Extended, StoreError> {
        let Some(known) = self.read_canary_of(run).await? else { return Ok(Extended::Unknown) };
        let mut tx = self.begin().await?;
        // Whoever changes a release holds this, too, and may lock the canary and its run in another order.
        lock_versions(&mut tx, &known.model).await?;
        let mut record = locked(&mut tx, known.id).await?;
        let asked =
            MoreTime { by: text(&asked.by), reason: asked.reason.as_deref().map(text), ..asked.clone() };
        let extension = match record.extended(&asked, at) {
            Ok(extension) => extension,
            Err(refused) => return Ok(Extended::Refused(refused)),
        };
        record.deadline = extension.deadline;
        record.extensions.push(extension);
        sqlx::query(sql!("UPDATE refit.canaries SET extensions = $2 WHERE id = $1"))
            .bind(record.id.0)
            .bind(doc(&record.extensions)?)
            .execute(&mut *tx)
            .await?;
        let why = asked.reason.as_deref().or(Some("the canary has more time"));
        let signal = NewSignal { kind: &SignalKind::Look, actor: &asked.by, reason: why, at };
        let told = signal_in(&mut tx, run, &signal, self.at(at)).await?;
        if matches!(told, Told::Gone) {
            return Ok(Extended::Refused(NotExtended::RunEnded));
        }
        self.commit(tx, &Stirred::of(run, &told)).await?;
        Ok(Extended::Made(Box::new(record)))
    }

    async fn finish_bake(
        &self,
        id: CanaryId,
        model: &ModelName,
        by: (RunId, Epoch),
        at: Timestamp,
    ) -> Result<CanaryRecord, StoreError> {
        let mut tx = self.begin().await?;
        fence_canary(&mut tx, model, by).await?;
        let before = locked(&mut tx, id).await?;
        // Of the look that found a failure and the end of the bake one comes first.
        if before.state == CanaryState::Baking && before.verdict != Verdict::Fail {
            end_in(&mut tx, id, CanaryState::Promoted, None, &before.reason, at).await?;
        }
        let after = locked(&mut tx, id).await?;
        tx.commit().await?;
        Ok(after)
    }

    async fn change_canary(&self, change: &CanaryChange) -> Result<CanaryRecord, StoreError> {
        let CanaryChange { canary: id, model, from, to, bake_until, reason, by_run, at } = change;
        let mut tx = self.begin().await?;
        match by_run {
            Some(by) => fence_canary(&mut tx, model, *by).await?,
            None => lock_versions(&mut tx, model).await?,
        }
        let before = locked(&mut tx, *id).await?;
        if before.state == *from {
            let reason = reason.as_ref().unwrap_or(&before.reason);
            end_in(&mut tx, *id, *to, *bake_until, reason, *at).await?;
        }
        let after = locked(&mut tx, *id).await?;
        let is_news = by_run.is_none() && before.state != after.state;
        let told = if is_news { self.tell_to_look(&mut tx, &after, *at).await? } else { Told::Gone };
        self.commit(tx, &Stirred::of(after.run, &told)).await?;
        Ok(after)
    }

    /// Tells the run of a canary that it changed.
    async fn tell_to_look(
        &self,
        connection: &mut Connection,
        canary: &CanaryRecord,
        at: Timestamp,
    ) -> Result<Told, StoreError> {
        let actor = ReleaseActor::Controller { run: canary.run }.to_string();
        let kind = &SignalKind::Look;
        let signal = NewSignal { kind, actor: &actor, reason: Some(&canary.reason), at };
        signal_in(connection, canary.run, &signal, self.at(at)).await
    }
}

/// Fences a run that is about to change its canary.
async fn fence_canary(
    connection: &mut Connection,
    model: &ModelName,
    (run, epoch): (RunId, Epoch),
) -> Result<(), StoreError> {
    // Whoever gives a canary more time locks it and its run in the other order, and holds this.
    lock_versions(connection, model).await?;
    fence(connection, run, epoch).await
}

async fn locked(connection: &mut Connection, id: CanaryId) -> Result<CanaryRecord, StoreError> {
    let row = sqlx::query(sql!(concat!("SELECT * FROM refit.canaries WHERE id = $1", for_update!())))
        .bind(id.0)
        .fetch_optional(connection)
        .await?;
    let Some(row) = row else { return Err(StoreError::Broken(format!("canary {id} is not known"))) };
    canary(&row)
}

/// Ends what a run has out and whose record cannot be read, so that why and when is not kept in it.
pub(super) async fn end_unread_in(connection: &mut Connection, run: RunId) -> Result<(), StoreError> {
    sqlx::query(sql!(
        "UPDATE refit.canaries SET state = $2 WHERE run = $1 AND state IN ('watching', 'baking')"
    ))
    .bind(run.0)
    .bind(state_word(CanaryState::RolledBack))
    .execute(connection)
    .await?;
    Ok(())
}

/// Changes the state of a canary; one that ended stays as it is.
pub(super) async fn end_in(
    connection: &mut Connection,
    id: CanaryId,
    state: CanaryState,
    bake_until: Option<Timestamp>,
    reason: &str,
    at: Timestamp,
) -> Result<(), StoreError> {
    let mut record = locked(connection, id).await?;
    match record.state {
        CanaryState::Watching | CanaryState::Baking => {}
        CanaryState::Promoted | CanaryState::RolledBack => return Ok(()),
    }
    record.state = state;
    record.bake_until = bake_until.or(record.bake_until);
    reason.clone_into(&mut record.reason);
    record.ended_at = match state {
        CanaryState::Watching | CanaryState::Baking => None,
        CanaryState::Promoted | CanaryState::RolledBack => Some(at),
    };
    let record = document(&record)?;
    sqlx::query(sql!("UPDATE refit.canaries SET state = $2, record = $3 WHERE id = $1"))
        .bind(id.0)
        .bind(state_word(state))
        .bind(record)
        .execute(connection)
        .await?;
    Ok(())
}
