//! Step logs, in chunks.

use async_trait::async_trait;

use super::super::Row;
use super::rows::{self, count, get, word};
use super::store::SqlStore;
use crate::domain::Timestamp;
use crate::domain::id::{RunId, StepId};
use crate::store::{LogChunk, Logs, StoreError};

/// No chunk is larger.
const LARGEST_CHUNK: usize = 64 * 1024;
/// Branches of a run write at once: who is second takes the next number.
const TRIES: u32 = 20;

fn chunk(row: &Row) -> Result<LogChunk, StoreError> {
    Ok(LogChunk {
        run: RunId(get(row, "run")?),
        step: word(row, "step")?,
        attempt: count(row, "attempt")?,
        seq: get(row, "seq")?,
        at: get(row, "at")?,
        bytes: get(row, "bytes")?,
    })
}

#[async_trait]
impl Logs for SqlStore {
    async fn append_log(
        &self,
        run: RunId,
        step: &StepId,
        attempt: u32,
        bytes: &[u8],
        at: Timestamp,
    ) -> Result<(), StoreError> {
        self.write_log(run, step, attempt, bytes, at).await
    }

    async fn read_log(
        &self,
        run: RunId,
        step: Option<&StepId>,
        after: i64,
        limit: u32,
    ) -> Result<Vec<LogChunk>, StoreError> {
        self.answered_of_many(self.list_log(run, step, after, limit)).await
    }
}

impl SqlStore {
    async fn write_log(
        &self,
        run: RunId,
        step: &StepId,
        attempt: u32,
        bytes: &[u8],
        at: Timestamp,
    ) -> Result<(), StoreError> {
        for piece in bytes.chunks(LARGEST_CHUNK) {
            self.answered(self.write_chunk(run, step, attempt, piece, at)).await?;
        }
        Ok(())
    }

    async fn write_chunk(
        &self,
        run: RunId,
        step: &StepId,
        attempt: u32,
        bytes: &[u8],
        at: Timestamp,
    ) -> Result<(), StoreError> {
        for _ in 0..TRIES {
            let written = sqlx::query(sql!(
                "INSERT INTO refit.step_logs (run, seq, step, attempt, at, bytes)
                 SELECT $1, coalesce(max(seq), 0) + 1, $2, $3, $4, $5 FROM refit.step_logs WHERE run = $1
                 ON CONFLICT (run, seq) DO NOTHING"
            ))
            .bind(run.0)
            .bind(step.as_str())
            .bind(i64::from(attempt))
            .bind(at)
            .bind(bytes)
            .execute(&self.parts.logs)
            .await?;
            if written.rows_affected() == 1 {
                return Ok(());
            }
        }
        Err(StoreError::Away("the log of this run is written by too many at once".to_owned()))
    }

    async fn list_log(
        &self,
        run: RunId,
        step: Option<&StepId>,
        after: i64,
        limit: u32,
    ) -> Result<Vec<LogChunk>, StoreError> {
        let found = sqlx::query(sql!(
            "SELECT * FROM refit.step_logs WHERE run = $1 AND ($2 IS NULL OR step = $2) AND seq > $3
             ORDER BY seq LIMIT $4"
        ))
        .bind(run.0)
        .bind(step.map(StepId::as_str))
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(&self.parts.logs)
        .await?;
        rows::all(&found, chunk)
    }
}
