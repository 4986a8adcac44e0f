//! Boards: one message a run, brought up to date by one process at a time.

use std::time::Duration;

use async_trait::async_trait;

use super::super::{Connection, Row, span};
use super::holders::InHand;
use super::rows::{self, count, doc, get, json_opt, text, word};
use super::store::SqlStore;
use crate::adapter::Posted;
use crate::domain::Timestamp;
use crate::domain::id::{NotifierName, RunId};
use crate::store::{BoardEntry, Boards, StoreError};

fn entry(row: &Row) -> Result<BoardEntry, StoreError> {
    Ok(BoardEntry {
        run: RunId(get(row, "run")?),
        notifier: word(row, "notifier")?,
        revision: get(row, "revision")?,
        place: json_opt(row, "place")?,
        shows: get(row, "shows")?,
        attempts: count(row, "attempts")?,
        waits_since: get(row, "waits_since")?,
        held_until: get(row, "due_at")?,
    })
}

/// The run went on: its boards are out of date. One that somebody is at work on, or that waits to be tried
/// again, keeps its time.
pub(super) async fn touch(
    connection: &mut Connection,
    run: RunId,
    boards: &[NotifierName],
    now: Option<Timestamp>,
) -> Result<(), StoreError> {
    for notifier in boards {
        sqlx::query(sql!(concat!(
            "INSERT INTO refit.boards AS b (run, notifier, revision, due_at) VALUES ($1, $2, 1, ",
            now!("$3"),
            ") ON CONFLICT (run, notifier) DO UPDATE SET revision = b.revision + 1,
                 due_at = coalesce(b.due_at, excluded.due_at)"
        )))
        .bind(run.0)
        .bind(notifier.as_str())
        .bind(now)
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

#[async_trait]
impl Boards for SqlStore {
    async fn touch_boards(
        &self,
        run: RunId,
        boards: &[NotifierName],
        at: Timestamp,
    ) -> Result<(), StoreError> {
        self.answered(self.add_boards(run, boards, at)).await
    }

    async fn take_boards(
        &self,
        limit: u32,
        hold: Duration,
        at: Timestamp,
    ) -> Result<Vec<BoardEntry>, StoreError> {
        self.answered(self.take_due_boards(limit, hold, at)).await
    }

    async fn board_shown(
        &self,
        board: &BoardEntry,
        place: &Posted,
        shows: &str,
        again_at: Timestamp,
    ) -> Result<(), StoreError> {
        self.answered(self.board_is_shown(board, place, shows, again_at)).await
    }

    async fn board_failed(
        &self,
        board: &BoardEntry,
        error: &str,
        retry_at: Option<Timestamp>,
        again_at: Timestamp,
    ) -> Result<(), StoreError> {
        self.answered(self.board_is_stale(board, error, retry_at, again_at)).await
    }

    async fn hold_board(
        &self,
        board: &BoardEntry,
        hold: Duration,
        at: Timestamp,
    ) -> Result<Option<Timestamp>, StoreError> {
        self.answered(self.hold_due_board(board, hold, at)).await
    }

    async fn board_waits(&self, board: &BoardEntry, due_at: Timestamp) -> Result<(), StoreError> {
        self.answered(self.board_was_not_tried(board, due_at)).await
    }

    async fn board_of(&self, run: RunId, notifier: &NotifierName) -> Result<Option<Posted>, StoreError> {
        self.answered(self.board_place(run, notifier)).await
    }
}

impl SqlStore {
    async fn add_boards(&self, run: RunId, boards: &[NotifierName], at: Timestamp) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        touch(&mut tx, run, boards, self.at(at)).await?;
        Ok(tx.commit().await?)
    }

    async fn take_due_boards(
        &self,
        limit: u32,
        hold: Duration,
        at: Timestamp,
    ) -> Result<Vec<BoardEntry>, StoreError> {
        self.free_of_the_dead(InHand::Boards, at).await?;
        let taken = sqlx::query(sql!(concat!(
            "UPDATE refit.boards SET attempts = attempts + 1, due_at = ",
            until!("$1", "$2"),
            ", holder = ",
            known!("$4"),
            " WHERE (run, notifier) IN (
                 SELECT run, notifier FROM refit.boards WHERE due_at <= ",
            now!("$1"),
            "
                 ORDER BY due_at LIMIT $3",
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
        rows::all(&taken, entry)
    }

    async fn board_is_shown(
        &self,
        board: &BoardEntry,
        place: &Posted,
        shows: &str,
        again_at: Timestamp,
    ) -> Result<(), StoreError> {
        let (now, again) = self.until(again_at);
        sqlx::query(sql!(concat!(
            "UPDATE refit.boards SET place = $4, shows = $5, attempts = 0, last_error = NULL, waits_since = NULL,
                 holder = NULL, due_at = CASE WHEN revision = $3 THEN NULL ELSE ",
            until!("$6", "$7"),
            " END WHERE run = $1 AND notifier = $2 AND due_at = $8"
        )))
        .bind(board.run.0)
        .bind(board.notifier.as_str())
        .bind(board.revision)
        .bind(doc(place)?)
        .bind(shows)
        .bind(now)
        .bind(again)
        .bind(board.held_until)
        .execute(&self.parts.writer)
        .await?;
        Ok(())
    }

    async fn board_is_stale(
        &self,
        board: &BoardEntry,
        error: &str,
        retry_at: Option<Timestamp>,
        again_at: Timestamp,
    ) -> Result<(), StoreError> {
        let (now, again) = self.until(again_at);
        sqlx::query(sql!(concat!(
            "UPDATE refit.boards SET holder = NULL, last_error = $4, due_at = CASE WHEN revision = $3 THEN ",
            until!("$5", "$6"),
            " ELSE coalesce(",
            until!("$5", "$6"),
            ", ",
            until!("$5", "$7"),
            ") END WHERE run = $1 AND notifier = $2 AND due_at = $8"
        )))
        .bind(board.run.0)
        .bind(board.notifier.as_str())
        .bind(board.revision)
        .bind(text(error))
        .bind(now)
        .bind(retry_at.map(|at| self.until(at).1))
        .bind(again)
        .bind(board.held_until)
        .execute(&self.parts.writer)
        .await?;
        Ok(())
    }

    async fn hold_due_board(
        &self,
        board: &BoardEntry,
        hold: Duration,
        at: Timestamp,
    ) -> Result<Option<Timestamp>, StoreError> {
        let held = sqlx::query(sql!(concat!(
            "UPDATE refit.boards SET due_at = ",
            until!("$1", "$2"),
            ", holder = ",
            known!("$6"),
            " WHERE run = $3 AND notifier = $4
                 AND (due_at = $5 OR (due_at > $5 AND holder = $6 AND attempts = $7)) RETURNING due_at"
        )))
        .bind(self.at(at))
        .bind(span(at, hold))
        .bind(board.run.0)
        .bind(board.notifier.as_str())
        .bind(board.held_until)
        .bind(self.holder())
        .bind(i64::from(board.attempts))
        .fetch_optional(&self.parts.writer)
        .await?;
        held.map(|row| get(&row, "due_at")).transpose()
    }

    async fn board_was_not_tried(&self, board: &BoardEntry, due_at: Timestamp) -> Result<(), StoreError> {
        let (now, wait) = self.until(due_at);
        sqlx::query(sql!(concat!(
            "UPDATE refit.boards SET attempts = attempts - 1, holder = NULL, due_at = ",
            until!("$3", "$4"),
            ", waits_since = $5 WHERE run = $1 AND notifier = $2 AND due_at = $6"
        )))
        .bind(board.run.0)
        .bind(board.notifier.as_str())
        .bind(now)
        .bind(wait)
        .bind(board.waits_since)
        .bind(board.held_until)
        .execute(&self.parts.writer)
        .await?;
        Ok(())
    }

    async fn board_place(&self, run: RunId, notifier: &NotifierName) -> Result<Option<Posted>, StoreError> {
        let row = sqlx::query(sql!("SELECT place FROM refit.boards WHERE run = $1 AND notifier = $2"))
            .bind(run.0)
            .bind(notifier.as_str())
            .fetch_optional(&self.parts.reader)
            .await?;
        Ok(row.map(|row| json_opt(&row, "place")).transpose()?.flatten())
    }
}
