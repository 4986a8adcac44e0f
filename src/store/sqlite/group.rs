//! Many checkpoints, one commit.

use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt as _;
use serde::Serialize;
use serde_json::Value;
use sqlx::pool::PoolConnection;
use sqlx::query::Query;
use sqlx::sqlite::SqliteArguments;
use sqlx::types::Json;
use sqlx::{Connection as _, Executor as _, Sqlite, SqlitePool};
use tokio::sync::{Mutex, watch};

use super::sql::checkpoint::{Plain, goes_on, skip_reason};
use super::sql::rows::{doc_opt, kept, text, time_text};
use super::sql::{Pending, write_checkpoint};
use super::{BEGIN, Connection, push};
use crate::clock::Clock;
use crate::domain::id::{RunId, StepId};
use crate::domain::run::AttemptState;
use crate::store::{Checkpoint, RunState, StoreError};

/// What a checkpoint that only goes on does, as a trigger of the writing connection: SQLite has no writes in a
/// `WITH`, and a statement by itself needs no `BEGIN` and no `COMMIT`, each of which is a message to the
/// connection's thread and back. One that is fenced aborts the statement. The run's row is left alone where nothing in
/// it changes: its pages would be written out with each commit.
pub(crate) const PREPARE: &str = "
CREATE TEMP VIEW IF NOT EXISTS checkpoints (run, epoch, status, outcome, reason, at, step, attempt, state, begun_in,
    begun_in_attempt, finished_at, output, error, resume, wake_at, place, next_step, next_attempt, started, skipped)
AS SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
    NULL, NULL;
CREATE TEMP TRIGGER IF NOT EXISTS write_checkpoint INSTEAD OF INSERT ON checkpoints BEGIN
    SELECT RAISE(ABORT, 'fenced') WHERE NOT EXISTS (
        SELECT 1 FROM runs WHERE id = NEW.run AND epoch = NEW.epoch AND status <> 'finished'
    ) OR (NEW.step IS NOT NULL AND NEW.begun_in IS NULL AND NOT EXISTS (
        SELECT 1 FROM attempts WHERE run = NEW.run AND step = NEW.step AND attempt = NEW.attempt
            AND state = 'started' AND epoch = NEW.epoch
    )) OR (NEW.begun_in IS NOT NULL AND NOT EXISTS (
        SELECT 1 FROM attempts WHERE run = NEW.run AND step = NEW.begun_in AND attempt = NEW.begun_in_attempt
            AND epoch = NEW.epoch AND next_step = NEW.step AND next_attempt = NEW.attempt
    ));
    UPDATE runs SET crashes = 0, progressed = TRUE, status = NEW.status, outcome = coalesce(NEW.outcome, outcome),
        reason = coalesce(NEW.reason, reason)
    WHERE id = NEW.run AND (crashes <> 0 OR NOT progressed OR status <> NEW.status OR NEW.outcome IS NOT NULL);
    UPDATE attempts SET state = NEW.state, finished_at = NEW.finished_at, changed_at = NEW.at, output = NEW.output,
        error = NEW.error, resume = NEW.resume, wake_at = NEW.wake_at, next_step = NEW.next_step,
        next_attempt = NEW.next_attempt, next_place = NEW.place
    WHERE run = NEW.run AND step = NEW.step AND attempt = NEW.attempt AND NEW.begun_in IS NULL;
    INSERT INTO attempts (run, step, attempt, state, epoch, started_at, place, finished_at, changed_at, output, error, resume,
        wake_at, next_step, next_attempt, next_place)
    SELECT NEW.run, NEW.step, NEW.attempt, NEW.state, NEW.epoch, changed_at, next_place, NEW.finished_at, NEW.at, NEW.output,
        NEW.error, NEW.resume, NEW.wake_at, NEW.next_step, NEW.next_attempt, NEW.place
    FROM attempts WHERE run = NEW.run AND step = NEW.begun_in AND attempt = NEW.begun_in_attempt;
    INSERT INTO attempts (run, step, attempt, state, epoch, started_at, changed_at, place)
    SELECT NEW.run, value ->> 'step', value ->> 'attempt', 'started', NEW.epoch, NEW.at, NEW.at, NEW.place + key
    FROM json_each(NEW.started);
    INSERT INTO attempts (run, step, attempt, state, epoch, started_at, finished_at, changed_at, error, place)
    SELECT NEW.run, value ->> 'step', 1 + coalesce((SELECT max(attempt) FROM attempts a
            WHERE a.run = NEW.run AND a.step = value ->> 'step'), 0), 'skipped', NEW.epoch, NEW.at, NEW.at, NEW.at,
        value -> 'error', NEW.place + json_array_length(NEW.started) + key
    FROM json_each(NEW.skipped);
END";

/// A checkpoint that comes alone, from one step to the next: one row is written, and the run's row is not even read. Who
/// takes the run meanwhile gives the attempt a row, too, and the second of the two is refused. What did not begin in the
/// row that it names has no time at which it began, which is refused. No join and no `EXISTS`, which is made one: SQLite
/// would look at partial indexes for it.
const WRITE_PLAIN: &str = "
INSERT INTO attempts (run, step, attempt, state, epoch, started_at, place, finished_at, changed_at, output, error, resume,
    wake_at, next_step, next_attempt, next_place)
VALUES ($1, $4, $5, $6, $2, (
    SELECT changed_at FROM attempts
    WHERE run = $1 AND step = $15 AND attempt = $16 AND epoch = $2 AND next_step = $4 AND next_attempt = $5
), (
    SELECT next_place FROM attempts WHERE run = $1 AND step = $15 AND attempt = $16
), $7, $3, $8, $9, $10, $11, $12, $13, $14)";

/// One row a checkpoint.
const WRITE: &str = "
INSERT INTO checkpoints (run, epoch, status, outcome, reason, at, step, attempt, state, begun_in, begun_in_attempt,
    finished_at, output, error, resume, wake_at, place, next_step, next_attempt, started, skipped)
SELECT unhex(value ->> 'run'), value ->> 'epoch', value ->> 'status', value ->> 'outcome', value ->> 'reason',
    value ->> 'at', value ->> 'step', value ->> 'attempt', value ->> 'state', value ->> 'begun_in',
    value ->> 'begun_in_attempt', value ->> 'finished_at', value -> 'output', value -> 'error', value -> 'resume',
    value ->> 'wake_at', value ->> 'place', value ->> 'next_step', value ->> 'next_attempt', value -> 'started', value -> 'skipped'
FROM json_each($1)";

/// The connection is kept so long for the checkpoints that follow: giving it back and taking it again costs as much as
/// half a commit. Then whoever waits for it has its turn.
const KEPT_FOR: Duration = Duration::from_millis(2);

/// The database's one writing connection, while checkpoints have it.
type Kept = Arc<Mutex<Option<PoolConnection<Sqlite>>>>;

/// Writes groups of checkpoints.
pub(crate) struct GroupWriter {
    pool: SqlitePool,
    clock: Arc<dyn Clock>,
    news: watch::Sender<u64>,
    kept: Kept,
}

impl GroupWriter {
    /// There is one writing connection.
    pub(crate) const AT_ONCE: usize = 1;

    pub(crate) fn new(pool: SqlitePool, clock: Arc<dyn Clock>, news: watch::Sender<u64>) -> Self {
        Self { pool, clock, news, kept: Kept::default() }
    }

    /// The connection is given back by itself.
    pub(crate) async fn rest(&mut self) {}

    /// Writes the group: those that only go on in one statement, the others in one transaction. One that is
    /// fenced writes nothing and does not disturb the others.
    pub(crate) async fn write(&mut self, group: Vec<Pending>) {
        let (simple, complex): (Vec<_>, Vec<_>) =
            group.into_iter().partition(|pending| goes_on(&pending.checkpoint));
        let mut kept = self.kept.lock().await;
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => match self.connection().await {
                Ok(connection) => connection,
                Err(error) => return answer_all(simple.into_iter().chain(complex), &error),
            },
        };
        if !simple.is_empty() {
            let checkpoints: Vec<&Checkpoint> = simple.iter().map(|pending| &pending.checkpoint).collect();
            match write_simple(&mut connection, &checkpoints).await {
                Ok(()) => simple.into_iter().for_each(|pending| pending.answer(Ok(()))),
                // One of them is fenced, sent again or refused: the long way finds out which.
                Err(StoreError::Broken(_)) => self.write_complex(&mut connection, simple).await,
                Err(error) => answer_all(simple, &error),
            }
        }
        if !complex.is_empty() {
            self.write_complex(&mut connection, complex).await;
        }
        // Whether one that failed can be used again is seen where it is given back.
        *kept = (!connection.is_in_transaction()).then_some(connection);
    }

    /// The connection, which is given back in a while, whether or not more checkpoints come.
    async fn connection(&self) -> Result<PoolConnection<Sqlite>, StoreError> {
        let connection = self.pool.acquire().await?;
        let kept = Arc::downgrade(&self.kept);
        tokio::spawn(async move {
            tokio::time::sleep(KEPT_FOR).await;
            if let Some(kept) = kept.upgrade() {
                kept.lock().await.take();
            }
        });
        Ok(connection)
    }

    /// When the transaction is refused for another reason than a fence, each is written alone.
    async fn write_complex(&self, connection: &mut Connection, group: Vec<Pending>) {
        let checkpoints: Vec<&Checkpoint> = group.iter().map(|pending| &pending.checkpoint).collect();
        match self.write_all(connection, &checkpoints).await {
            Ok(results) => {
                group.into_iter().zip(results).for_each(|(pending, result)| pending.answer(result))
            }
            Err(StoreError::Broken(_)) if group.len() > 1 => {
                for pending in group {
                    let alone = self.write_all(connection, &[&pending.checkpoint]).await;
                    pending.answer(alone.and_then(|mut results| results.pop().unwrap_or(Ok(()))));
                }
            }
            Err(error) => answer_all(group, &error),
        }
    }

    async fn write_all(
        &self,
        connection: &mut Connection,
        checkpoints: &[&Checkpoint],
    ) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        let mut tx = connection.begin_with(BEGIN).await?;
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

fn answer_all(group: impl IntoIterator<Item = Pending>, error: &StoreError) {
    group.into_iter().for_each(|pending| pending.answer(Err(error.same())));
}

/// Writes all of them, or none.
async fn write_simple(connection: &mut Connection, checkpoints: &[&Checkpoint]) -> Result<(), StoreError> {
    if let Some(plain) = Plain::of(checkpoints)
        && let Some(parent) = plain.parent
    {
        match commit(connection, plain_bound(&plain, parent)?).await {
            // It is fenced, or was written before.
            Err(StoreError::Broken(_)) => {}
            written => return written,
        }
    }
    let rows = checkpoints.iter().map(|checkpoint| CheckpointRow::of(checkpoint));
    let rows = rows.collect::<Result<Vec<_>, _>>()?;
    commit(connection, sqlx::query(WRITE).bind(Json(rows))).await
}

fn plain_bound<'a>(
    plain: &Plain<'a>,
    parent: &'a (StepId, u32),
) -> Result<Query<'a, Sqlite, SqliteArguments>, StoreError> {
    let Plain { checkpoint, ended, begun, .. } = *plain;
    Ok(sqlx::query(WRITE_PLAIN)
        .bind(checkpoint.run.0)
        .bind(checkpoint.epoch.0)
        .bind(checkpoint.at)
        .bind(ended.step.as_str())
        .bind(ended.attempt)
        .bind(ended.state.as_str())
        .bind(plain.finished_at())
        .bind(ended.output.as_ref().map(kept))
        .bind(doc_opt(ended.error.as_ref())?)
        .bind(ended.resume.as_ref().map(kept))
        .bind(ended.wake_at)
        .bind(begun.step.as_str())
        .bind(begun.attempt)
        .bind(checkpoint.place)
        .bind(parent.0.as_str())
        .bind(parent.1))
}

/// Runs a statement that commits by itself. Its result is the first that its thread tells; to wait until the thread says
/// that no more follows is to be woken twice.
async fn commit(
    connection: &mut Connection,
    statement: Query<'_, Sqlite, SqliteArguments>,
) -> Result<(), StoreError> {
    connection.fetch_many(statement).try_next().await?;
    Ok(())
}

/// A row of `checkpoints`; what is absent is NULL, which a document's own null is not.
#[derive(Serialize)]
struct CheckpointRow<'a> {
    run: String,
    epoch: i64,
    status: &'static str,
    outcome: Option<&'static str>,
    reason: Option<String>,
    at: String,
    step: Option<&'a str>,
    attempt: Option<u32>,
    state: Option<&'static str>,
    begun_in: Option<&'a str>,
    begun_in_attempt: Option<u32>,
    finished_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<Json<Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Json<Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resume: Option<Json<Value>>,
    wake_at: Option<String>,
    place: u32,
    next_step: Option<&'a str>,
    next_attempt: Option<u32>,
    started: Json<Vec<Started<'a>>>,
    skipped: Json<Vec<Skipped<'a>>>,
}

#[derive(Serialize)]
struct Started<'a> {
    step: &'a str,
    attempt: u32,
}

#[derive(Serialize)]
struct Skipped<'a> {
    step: &'a str,
    error: Json<Value>,
}

impl<'a> CheckpointRow<'a> {
    fn of(checkpoint: &'a Checkpoint) -> Result<Self, StoreError> {
        let RunState::Kept { status, ending } = &checkpoint.run_state else {
            return Err(StoreError::Broken("the run does not go on".to_owned()));
        };
        let ended = checkpoint.ended.as_ref();
        let next = checkpoint.next();
        let begun_in = ended.and_then(|ended| ended.begun_in.as_ref());
        let skipped = checkpoint.skipped.iter();
        Ok(Self {
            run: checkpoint.run.0.simple().to_string(),
            epoch: checkpoint.epoch.0,
            status: status.as_str(),
            outcome: ending.as_ref().map(|(outcome, _)| outcome.as_str()),
            reason: ending.as_ref().map(|(_, reason)| text(reason)),
            at: time_text(checkpoint.at),
            step: ended.map(|ended| ended.step.as_str()),
            attempt: ended.map(|ended| ended.attempt),
            state: ended.map(|ended| ended.state.as_str()),
            begun_in: begun_in.map(|(step, _)| step.as_str()),
            begun_in_attempt: begun_in.map(|(_, attempt)| *attempt),
            finished_at: ended
                .filter(|ended| ended.state != AttemptState::Sleeping)
                .map(|_| time_text(checkpoint.at)),
            output: doc_opt(ended.and_then(|ended| ended.output.as_ref()))?,
            error: doc_opt(ended.and_then(|ended| ended.error.as_ref()))?,
            resume: doc_opt(ended.and_then(|ended| ended.resume.as_ref()))?,
            wake_at: ended.and_then(|ended| ended.wake_at).map(time_text),
            place: checkpoint.place,
            next_step: next.map(|next| next.step.as_str()),
            next_attempt: next.map(|next| next.attempt),
            started: Json(
                checkpoint
                    .with_rows()
                    .iter()
                    .map(|new| Started { step: new.step.as_str(), attempt: new.attempt })
                    .collect(),
            ),
            skipped: Json(
                skipped
                    .map(|(step, reason)| Ok(Skipped { step: step.as_str(), error: skip_reason(reason)? }))
                    .collect::<Result<_, StoreError>>()?,
            ),
        })
    }
}
