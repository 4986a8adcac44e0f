//! Many checkpoints, one commit.

use std::sync::Arc;

use serde_json::{Value, json};
use sqlx::SqlitePool;
use tokio::sync::watch;

use super::sql::checkpoint::{goes_on, skip_reason};
use super::sql::rows::{doc_opt, text, time_text};
use super::sql::{Pending, write_checkpoint};
use super::{BEGIN, push};
use crate::clock::Clock;
use crate::domain::id::RunId;
use crate::domain::run::AttemptState;
use crate::store::{Checkpoint, RunState, StoreError};

/// What a checkpoint that only goes on does, as a trigger of the writing connection: SQLite has no writes in a
/// `WITH`, and a statement by itself needs no `BEGIN` and no `COMMIT`, each of which is a message to the
/// connection's thread and back. One that is fenced aborts the statement.
pub(crate) const PREPARE: &str = "
CREATE TEMP VIEW IF NOT EXISTS checkpoints (run, epoch, status, outcome, reason, at, step, attempt, state, finished_at,
    output, error, resume, wake_at, started, skipped)
AS SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL;
CREATE TEMP TRIGGER IF NOT EXISTS write_checkpoint INSTEAD OF INSERT ON checkpoints BEGIN
    SELECT RAISE(ABORT, 'fenced') WHERE NOT EXISTS (
        SELECT 1 FROM runs WHERE id = NEW.run AND epoch = NEW.epoch AND status <> 'finished'
    ) OR (NEW.step IS NOT NULL AND NOT EXISTS (
        SELECT 1 FROM attempts WHERE run = NEW.run AND step = NEW.step AND attempt = NEW.attempt
            AND state = 'started' AND epoch = NEW.epoch
    ));
    UPDATE runs SET crashes = 0, progressed = TRUE, status = NEW.status, outcome = coalesce(NEW.outcome, outcome),
        reason = coalesce(NEW.reason, reason)
    WHERE id = NEW.run;
    UPDATE attempts SET state = NEW.state, finished_at = NEW.finished_at, changed_at = NEW.at, output = NEW.output,
        error = NEW.error, resume = NEW.resume, wake_at = NEW.wake_at
    WHERE run = NEW.run AND step = NEW.step AND attempt = NEW.attempt;
    INSERT INTO attempts (run, step, attempt, state, epoch, started_at, changed_at)
    SELECT NEW.run, value ->> 'step', value ->> 'attempt', 'started', NEW.epoch, NEW.at, NEW.at
    FROM json_each(NEW.started);
    INSERT INTO attempts (run, step, attempt, state, epoch, started_at, finished_at, changed_at, error)
    SELECT NEW.run, value ->> 'step', 1 + coalesce((SELECT max(attempt) FROM attempts a
            WHERE a.run = NEW.run AND a.step = value ->> 'step'), 0), 'skipped', NEW.epoch, NEW.at, NEW.at, NEW.at,
        value -> 'error'
    FROM json_each(NEW.skipped);
END";

/// One row a checkpoint.
const WRITE: &str = "
INSERT INTO checkpoints (run, epoch, status, outcome, reason, at, step, attempt, state, finished_at, output, error,
    resume, wake_at, started, skipped)
SELECT unhex(value ->> 'run'), value ->> 'epoch', value ->> 'status', value ->> 'outcome', value ->> 'reason',
    value ->> 'at', value ->> 'step', value ->> 'attempt', value ->> 'state', value ->> 'finished_at',
    value -> 'output', value -> 'error', value -> 'resume', value ->> 'wake_at', value -> 'started', value -> 'skipped'
FROM json_each($1)";

/// Writes groups of checkpoints.
pub(crate) struct GroupWriter {
    pool: SqlitePool,
    clock: Arc<dyn Clock>,
    news: watch::Sender<u64>,
}

impl GroupWriter {
    pub(crate) fn new(pool: SqlitePool, clock: Arc<dyn Clock>, news: watch::Sender<u64>) -> Self {
        Self { pool, clock, news }
    }

    /// Writes the group: those that only go on in one statement, the others in one transaction. One that is
    /// fenced writes nothing and does not disturb the others.
    pub(crate) async fn write(&mut self, group: Vec<Pending>) {
        let (simple, complex): (Vec<_>, Vec<_>) =
            group.into_iter().partition(|pending| goes_on(&pending.checkpoint));
        if !simple.is_empty() {
            match self.write_simple(simple.iter().map(|pending| &pending.checkpoint)).await {
                Ok(()) => simple.into_iter().for_each(|pending| pending.answer(Ok(()))),
                // One of them is fenced, sent again or refused: the long way finds out which.
                Err(StoreError::Broken(_)) => self.write_complex(simple).await,
                Err(error) => simple.into_iter().for_each(|pending| pending.answer(Err(error.same()))),
            }
        }
        if !complex.is_empty() {
            self.write_complex(complex).await;
        }
    }

    async fn write_simple(
        &self,
        checkpoints: impl Iterator<Item = &Checkpoint> + Send,
    ) -> Result<(), StoreError> {
        let rows = checkpoints.map(row).collect::<Result<Vec<_>, _>>()?;
        sqlx::query(WRITE).bind(Value::Array(rows).to_string()).execute(&self.pool).await?;
        Ok(())
    }

    /// When the transaction is refused for another reason than a fence, each is written alone.
    async fn write_complex(&self, group: Vec<Pending>) {
        let checkpoints: Vec<&Checkpoint> = group.iter().map(|pending| &pending.checkpoint).collect();
        match self.write_all(&checkpoints).await {
            Ok(results) => {
                group.into_iter().zip(results).for_each(|(pending, result)| pending.answer(result))
            }
            Err(StoreError::Broken(_)) if group.len() > 1 => {
                for pending in group {
                    let alone = self.write_all(&[&pending.checkpoint]).await;
                    pending.answer(alone.and_then(|mut results| results.pop().unwrap_or(Ok(()))));
                }
            }
            Err(error) => group.into_iter().for_each(|pending| pending.answer(Err(error.same()))),
        }
    }

    async fn write_all(
        &self,
        checkpoints: &[&Checkpoint],
    ) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        let mut tx = self.pool.begin_with(BEGIN).await?;
        let mut woken: Vec<RunId> = Vec::new();
        let mut results = Vec::with_capacity(checkpoints.len());
        for checkpoint in checkpoints {
            match write_checkpoint(&mut tx, checkpoint, Some(self.clock.now())).await {
                Ok(runs) => {
                    woken.extend(runs);
                    results.push(Ok(()));
                }
                Err(StoreError::Fenced) => results.push(Err(StoreError::Fenced)),
                Err(error) => return Err(error),
            }
        }
        push(&mut tx, &woken).await?;
        tx.commit().await?;
        if !woken.is_empty() {
            self.news.send_modify(|count| *count = count.wrapping_add(1));
        }
        Ok(results)
    }
}

/// A checkpoint as `WRITE` reads it; what is absent is NULL.
fn row(checkpoint: &Checkpoint) -> Result<Value, StoreError> {
    let RunState::Kept { status, ending } = &checkpoint.run_state else {
        return Err(StoreError::Broken("the run does not go on".to_owned()));
    };
    let started: Vec<Value> = checkpoint
        .started
        .iter()
        .map(|new| json!({"step": new.step.as_str(), "attempt": new.attempt}))
        .collect();
    let skipped = checkpoint
        .skipped
        .iter()
        .map(|(step, reason)| Ok(json!({"step": step.as_str(), "error": skip_reason(reason)?.0})))
        .collect::<Result<Vec<Value>, StoreError>>()?;
    let mut row = json!({
        "run": checkpoint.run.0.simple().to_string(),
        "epoch": checkpoint.epoch.0,
        "status": status.as_str(),
        "outcome": ending.as_ref().map(|(outcome, _)| outcome.as_str()),
        "reason": ending.as_ref().map(|(_, reason)| text(reason)),
        "at": time_text(checkpoint.at),
        "started": started,
        "skipped": skipped,
    });
    if let Some(ended) = &checkpoint.ended {
        row["step"] = json!(ended.step.as_str());
        row["attempt"] = json!(ended.attempt);
        row["state"] = json!(ended.state.as_str());
        row["wake_at"] = json!(ended.wake_at.map(time_text));
        if ended.state != AttemptState::Sleeping {
            row["finished_at"] = json!(time_text(checkpoint.at));
        }
        let documents = [
            ("output", doc_opt(ended.output.as_ref())?),
            ("error", doc_opt(ended.error.as_ref())?),
            ("resume", doc_opt(ended.resume.as_ref())?),
        ];
        for (name, document) in documents {
            if let Some(document) = document {
                row[name] = document.0;
            }
        }
    }
    Ok(row)
}
