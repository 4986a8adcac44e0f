//! The outbox: messages to be sent, each by one process at a time.

use std::time::Duration;

use async_trait::async_trait;

use super::super::{Row, span};
use super::checkpoint::insert_notices;
use super::holders::InHand;
use super::rows::{self, count, get, json, text};
use super::store::SqlStore;
use crate::domain::Timestamp;
use crate::domain::id::RunId;
use crate::store::{Notice, Outbox, OutboxEntry, StoreError};

fn entry(row: &Row) -> Result<OutboxEntry, StoreError> {
    Ok(OutboxEntry {
        id: get(row, "id")?,
        notice: json(row, "notice")?,
        attempts: count(row, "attempts")?,
        queued_at: get(row, "queued_at")?,
        sent_at: get(row, "sent_at")?,
        dead: get(row, "dead")?,
        last_error: get(row, "last_error")?,
        due_at: get(row, "due_at")?,
    })
}

#[async_trait]
impl Outbox for SqlStore {
    async fn queue_notices(&self, notices: &[Notice], at: Timestamp) -> Result<(), StoreError> {
        self.answered(self.add_notices(notices, at)).await
    }

    async fn take_outbox(
        &self,
        limit: u32,
        hold: Duration,
        at: Timestamp,
    ) -> Result<Vec<OutboxEntry>, StoreError> {
        self.answered(self.take_notices(limit, hold, at)).await
    }

    async fn hold_outbox(
        &self,
        id: i64,
        attempts: u32,
        held_until: Option<Timestamp>,
        hold: Duration,
        at: Timestamp,
    ) -> Result<Option<Timestamp>, StoreError> {
        self.answered(self.hold_notice((id, attempts), held_until, hold, at)).await
    }

    async fn outbox_waits(&self, entries: &[&OutboxEntry], due_at: Timestamp) -> Result<(), StoreError> {
        self.answered(self.notices_were_not_tried(entries, due_at)).await
    }

    async fn outbox_sent(&self, id: i64, at: Timestamp) -> Result<(), StoreError> {
        self.answered(self.notice_sent(id, at)).await
    }

    async fn outbox_failed(
        &self,
        entry: &OutboxEntry,
        error: &str,
        retry_at: Option<Timestamp>,
    ) -> Result<(), StoreError> {
        self.answered(self.notice_failed(entry, error, retry_at)).await
    }

    async fn outbox_of(&self, run: RunId) -> Result<Vec<OutboxEntry>, StoreError> {
        self.answered(self.notices_of(run)).await
    }
}

impl SqlStore {
    async fn add_notices(&self, notices: &[Notice], at: Timestamp) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        insert_notices(&mut tx, notices, at, self.at(at)).await?;
        Ok(tx.commit().await?)
    }

    async fn take_notices(
        &self,
        limit: u32,
        hold: Duration,
        at: Timestamp,
    ) -> Result<Vec<OutboxEntry>, StoreError> {
        self.free_of_the_dead(InHand::Messages, at).await?;
        let taken = sqlx::query(sql!(concat!(
            "UPDATE refit.outbox SET attempts = attempts + 1, due_at = ",
            until!("$1", "$2"),
            ", holder = ",
            known!("$4"),
            " WHERE id IN (
                 SELECT id FROM refit.outbox WHERE due_at <= ",
            now!("$1"),
            "
                 ORDER BY due_at, id LIMIT $3",
            skip_locked!(),
            ")
             RETURNING *"
        )))
        .bind(self.at(at))
        .bind(span(at, hold))
        .bind(i64::from(limit))
        .bind(self.holder())
        .fetch_all(&self.parts.writer)
        .await?;
        let mut entries = rows::all(&taken, entry)?;
        entries.sort_by_key(|entry| entry.id);
        Ok(entries)
    }

    async fn hold_notice(
        &self,
        (id, attempts): (i64, u32),
        held_until: Option<Timestamp>,
        hold: Duration,
        at: Timestamp,
    ) -> Result<Option<Timestamp>, StoreError> {
        let held = sqlx::query(sql!(concat!(
            "UPDATE refit.outbox SET due_at = ",
            until!("$1", "$2"),
            ", holder = ",
            known!("$5"),
            " WHERE id = $3 AND (due_at = $4 OR (due_at > $4 AND holder = $5 AND attempts = $6)) RETURNING due_at"
        )))
        .bind(self.at(at))
        .bind(span(at, hold))
        .bind(id)
        .bind(held_until)
        .bind(self.holder())
        .bind(i64::from(attempts))
        .fetch_optional(&self.parts.writer)
        .await?;
        held.map(|row| get(&row, "due_at")).transpose()
    }

    async fn notices_were_not_tried(
        &self,
        entries: &[&OutboxEntry],
        due_at: Timestamp,
    ) -> Result<(), StoreError> {
        let (now, wait) = self.until(due_at);
        let mut tx = self.begin().await?;
        for entry in entries {
            sqlx::query(sql!(concat!(
                "UPDATE refit.outbox SET attempts = attempts - 1, holder = NULL, due_at = ",
                until!("$1", "$2"),
                " WHERE id = $3 AND due_at = $4"
            )))
            .bind(now)
            .bind(wait)
            .bind(entry.id)
            .bind(entry.due_at)
            .execute(&mut *tx)
            .await?;
        }
        Ok(tx.commit().await?)
    }

    async fn notice_sent(&self, id: i64, at: Timestamp) -> Result<(), StoreError> {
        sqlx::query(sql!(
            "UPDATE refit.outbox SET sent_at = $2, due_at = NULL, holder = NULL, last_error = NULL WHERE id = $1"
        ))
        .bind(id)
        .bind(at)
        .execute(&self.parts.writer)
        .await?;
        Ok(())
    }

    async fn notice_failed(
        &self,
        entry: &OutboxEntry,
        error: &str,
        retry_at: Option<Timestamp>,
    ) -> Result<(), StoreError> {
        let retry = retry_at.map(|at| self.until(at));
        sqlx::query(sql!(concat!(
            "UPDATE refit.outbox SET holder = NULL, due_at = ",
            until!("$1", "$2"),
            ", dead = $2 IS NULL, last_error = $3 WHERE id = $4 AND due_at = $5"
        )))
        .bind(retry.and_then(|(now, _)| now))
        .bind(retry.map(|(_, wait)| wait))
        .bind(text(error))
        .bind(entry.id)
        .bind(entry.due_at)
        .execute(&self.parts.writer)
        .await?;
        Ok(())
    }

    async fn notices_of(&self, run: RunId) -> Result<Vec<OutboxEntry>, StoreError> {
        let found = sqlx::query(sql!("SELECT * FROM refit.outbox WHERE run = $1 ORDER BY id"))
            .bind(run.0)
            .fetch_all(&self.parts.reader)
            .await?;
        rows::all(&found, entry)
    }
}
