//! Many checkpoints, one statement: one round trip and one commit.
//!
//! One that comes alone, from one step to the next, has statements of its own:
//! Postgres plans arrays of unknown length anew each time, which takes longer
//! than the commit.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use serde_json::Value;
use sqlx::pool::PoolConnection;
use sqlx::types::{Json, Uuid};
use sqlx::{PgPool, Postgres};
use tokio::sync::watch;
use tokio::time::Instant;

use super::alone::{self, Begun, unless_known};
use super::answers::{in_time, is_there};
use super::sql::checkpoint::{Plain, goes_on, skip_reason};
use super::sql::rows::{doc_opt, text};
use super::sql::{Pending, write_checkpoint};
use super::{Connection, bound_time, push};
use crate::clock::Clock;
use crate::domain::Timestamp;
use crate::domain::run::AttemptState;
use crate::store::{Checkpoint, RunState, StoreError};

/// The fence first; the rest joins what passed it. It looks at one attempt a checkpoint, by its key: an EXISTS would be
/// answered from a hash of the whole table.
const WRITE: &str = "
WITH input AS (
    SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::timestamptz[], $7::text[],
        $8::bigint[], $9::text[], $10::timestamptz[], $11::jsonb[], $12::jsonb[], $13::jsonb[], $14::timestamptz[],
        $15::text[], $16::bigint[], $17::text[], $18::bigint[], $19::bigint[])
    AS t(run, epoch, status, outcome, reason, at, step, attempt, state, finished_at, output, error, resume, wake_at,
        parent_step, parent_attempt, next_step, next_attempt, place)
), passed AS (
    UPDATE refit.runs r SET crashes = 0, progressed = TRUE, status = i.status,
        outcome = coalesce(i.outcome, r.outcome), reason = coalesce(i.reason, r.reason)
    FROM input i LEFT JOIN LATERAL (
        SELECT a.started_at, a.changed_at, a.next_place FROM refit.attempts a
        WHERE a.run = i.run AND a.step = coalesce(i.parent_step, i.step)
            AND a.attempt = coalesce(i.parent_attempt, i.attempt) AND a.epoch = i.epoch
            AND CASE WHEN i.parent_step IS NULL THEN a.state = 'started'
                ELSE a.next_step = i.step AND a.next_attempt = i.attempt AND NOT EXISTS (
                    SELECT 1 FROM refit.attempts b
                    WHERE b.run = i.run AND b.step = i.step AND b.attempt = i.attempt) END
        LIMIT 1
    ) a ON TRUE
    WHERE r.id = i.run AND r.epoch = i.epoch AND r.status <> 'finished' AND (i.step IS NULL OR a.started_at IS NOT NULL)
    RETURNING r.id, i.epoch, i.at, i.place, a.changed_at, a.next_place
), ended AS (
    UPDATE refit.attempts a SET state = i.state, finished_at = i.finished_at, changed_at = i.at, output = i.output,
        error = i.error, resume = i.resume, wake_at = i.wake_at, next_step = i.next_step,
        next_attempt = i.next_attempt, next_place = i.place
    FROM input i JOIN passed p ON p.id = i.run
    WHERE a.run = i.run AND a.step = i.step AND a.attempt = i.attempt AND i.parent_step IS NULL
), kept AS (
    INSERT INTO refit.attempts (run, step, attempt, state, epoch, started_at, place, finished_at, changed_at, output,
        error, resume, wake_at, next_step, next_attempt, next_place)
    SELECT i.run, i.step, i.attempt, i.state, i.epoch, p.changed_at, p.next_place, i.finished_at, i.at, i.output,
        i.error, i.resume, i.wake_at, i.next_step, i.next_attempt, i.place
    FROM input i JOIN passed p ON p.id = i.run WHERE i.parent_step IS NOT NULL
), begun AS (
    INSERT INTO refit.attempts (run, step, attempt, state, epoch, started_at, changed_at, place)
    SELECT s.run, s.step, s.attempt, 'started', p.epoch, p.at, p.at, p.place + s.place
    FROM unnest($20::uuid[], $21::text[], $22::bigint[], $23::bigint[]) AS s(run, step, attempt, place)
    JOIN passed p ON p.id = s.run
), left_out AS (
    INSERT INTO refit.attempts (run, step, attempt, state, epoch, started_at, finished_at, changed_at, error, place)
    SELECT s.run, s.step, 1 + coalesce((SELECT max(a.attempt) FROM refit.attempts a
            WHERE a.run = s.run AND a.step = s.step), 0), 'skipped', p.epoch, p.at, p.at, p.at, s.error,
        p.place + s.place
    FROM unnest($24::uuid[], $25::text[], $26::jsonb[], $27::bigint[]) AS s(run, step, error, place)
    JOIN passed p ON p.id = s.run
)
SELECT id FROM passed";

/// A connection that was idle longer is asked whether it is still there.
const TRUSTED_FOR: Duration = Duration::from_secs(1);

/// Writes groups of checkpoints, on a connection of its own.
pub(crate) struct GroupWriter {
    others: Others,
    held: Option<Held>,
}

/// The connection that checkpoints were written on last.
struct Held {
    connection: PoolConnection<Postgres>,
    used: Instant,
    /// What began with the last of them, if that came alone.
    begun: Option<Begun>,
}

/// What checkpoints with a transaction of their own need.
struct Others {
    pool: PgPool,
    clock: Arc<dyn Clock>,
    news: watch::Sender<u64>,
}

impl GroupWriter {
    /// So many write side by side, each on a connection of its own: the database has more than one processor.
    pub(crate) const AT_ONCE: usize = 2;

    pub(crate) fn new(pool: PgPool, clock: Arc<dyn Clock>, news: watch::Sender<u64>) -> Self {
        Self { others: Others { pool, clock, news }, held: None }
    }

    /// Ends the connection that it keeps.
    pub(crate) async fn rest(&mut self) {
        if let Some(held) = self.held.take() {
            // It ends either way.
            let _ = held.connection.close().await;
        }
    }

    /// Writes the group. Those that only go on are written by one statement; those that sleep, end, free a key,
    /// undo or tell somebody have a transaction each, side by side.
    pub(crate) async fn write(&mut self, group: Vec<Pending>) {
        let (simple, complex): (Vec<_>, Vec<_>) =
            group.into_iter().partition(|pending| goes_on(&pending.checkpoint));
        let Self { others, held } = self;
        let others: &Others = others;
        tokio::join!(write_together(others, held, simple), write_apart(others, complex));
    }
}

/// What is seldom asked is boxed here and below: a future is as large as the largest that it may wait for, and is moved
/// with each checkpoint.
async fn write_apart(others: &Others, group: Vec<Pending>) {
    if !group.is_empty() {
        Box::pin(join_all(group.into_iter().map(|pending| others.write_and_answer(pending)))).await;
    }
}

async fn write_together(others: &Others, held: &mut Option<Held>, group: Vec<Pending>) {
    if group.is_empty() {
        return;
    }
    let written = in_time(write_all(others, held, group.iter().map(|pending| &pending.checkpoint))).await;
    match written {
        Ok(passed) => {
            let (passed, fenced): (Vec<_>, Vec<_>) =
                group.into_iter().partition(|pending| passed.contains(&pending.checkpoint.run.0));
            passed.into_iter().for_each(|pending| pending.answer(Ok(())));
            // One that is sent again is found there: the long way asks.
            for pending in fenced {
                Box::pin(others.write_and_answer(pending)).await;
            }
        }
        Err(StoreError::Broken(_)) if group.len() > 1 => {
            for pending in group {
                Box::pin(others.write_and_answer(pending)).await;
            }
        }
        Err(error) => group.into_iter().for_each(|pending| pending.answer(Err(error.same()))),
    }
}

impl Others {
    async fn write_and_answer(&self, pending: Pending) {
        let result = in_time(self.write_alone(&pending.checkpoint)).await;
        pending.answer(result);
    }

    async fn write_alone(&self, checkpoint: &Checkpoint) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        let woken = write_checkpoint(&mut tx, checkpoint, bound_time(&*self.clock, self.clock.now())).await?;
        if !woken.is_empty() {
            push(&mut tx, &woken).await?;
        }
        tx.commit().await?;
        if !woken.is_empty() {
            self.news.send_modify(|count| *count = count.wrapping_add(1));
        }
        Ok(())
    }

    /// The connection that was used last, or another where it is gone.
    async fn connection(&self, held: Option<Held>) -> Result<Held, StoreError> {
        if let Some(mut held) = held
            && (held.used.elapsed() < TRUSTED_FOR || Box::pin(is_there(&mut held.connection)).await)
        {
            return Ok(held);
        }
        let connection = Box::pin(self.pool.acquire()).await?;
        Ok(Held { connection, used: Instant::now(), begun: None })
    }
}

/// The columns of `input`, one entry a checkpoint.
#[derive(Default)]
struct Columns {
    run: Vec<Uuid>,
    epoch: Vec<i64>,
    status: Vec<&'static str>,
    outcome: Vec<Option<&'static str>>,
    reason: Vec<Option<String>>,
    at: Vec<Timestamp>,
    step: Vec<Option<String>>,
    attempt: Vec<Option<i64>>,
    state: Vec<Option<&'static str>>,
    finished_at: Vec<Option<Timestamp>>,
    output: Vec<Option<Json<Value>>>,
    error: Vec<Option<Json<Value>>>,
    resume: Vec<Option<Json<Value>>>,
    wake_at: Vec<Option<Timestamp>>,
    parent_step: Vec<Option<String>>,
    parent_attempt: Vec<Option<i64>>,
    next_step: Vec<Option<String>>,
    next_attempt: Vec<Option<i64>>,
    place: Vec<i64>,
    started_run: Vec<Uuid>,
    started_step: Vec<String>,
    started_attempt: Vec<i64>,
    started_place: Vec<i64>,
    skipped_run: Vec<Uuid>,
    skipped_step: Vec<String>,
    skipped_error: Vec<Json<Value>>,
    skipped_place: Vec<i64>,
}

impl Columns {
    fn add(&mut self, checkpoint: &Checkpoint) -> Result<(), StoreError> {
        let RunState::Kept { status, ending } = &checkpoint.run_state else { return Ok(()) };
        let ended = checkpoint.ended.as_ref();
        self.run.push(checkpoint.run.0);
        self.epoch.push(checkpoint.epoch.0);
        self.status.push(status.as_str());
        self.outcome.push(ending.as_ref().map(|(outcome, _)| outcome.as_str()));
        self.reason.push(ending.as_ref().map(|(_, reason)| text(reason)));
        self.at.push(checkpoint.at);
        self.step.push(ended.map(|ended| ended.step.to_string()));
        self.attempt.push(ended.map(|ended| i64::from(ended.attempt)));
        self.state.push(ended.map(|ended| ended.state.as_str()));
        self.finished_at
            .push(ended.filter(|ended| ended.state != AttemptState::Sleeping).map(|_| checkpoint.at));
        self.output.push(doc_opt(ended.and_then(|ended| ended.output.as_ref()))?);
        self.error.push(doc_opt(ended.and_then(|ended| ended.error.as_ref()))?);
        self.resume.push(doc_opt(ended.and_then(|ended| ended.resume.as_ref()))?);
        self.wake_at.push(ended.and_then(|ended| ended.wake_at));
        let parent = ended.and_then(|ended| ended.begun_in.as_ref());
        self.parent_step.push(parent.map(|(step, _)| step.to_string()));
        self.parent_attempt.push(parent.map(|(_, attempt)| i64::from(*attempt)));
        let next = checkpoint.next();
        self.next_step.push(next.map(|next| next.step.to_string()));
        self.next_attempt.push(next.map(|next| i64::from(next.attempt)));
        self.place.push(i64::from(checkpoint.place));
        let mut places = 0_i64..;
        for (new, place) in checkpoint.with_rows().iter().zip(&mut places) {
            self.started_place.push(place);
            self.started_run.push(checkpoint.run.0);
            self.started_step.push(new.step.to_string());
            self.started_attempt.push(i64::from(new.attempt));
        }
        for ((step, reason), place) in checkpoint.skipped.iter().zip(places) {
            self.skipped_place.push(place);
            self.skipped_run.push(checkpoint.run.0);
            self.skipped_step.push(step.to_string());
            self.skipped_error.push(skip_reason(reason)?);
        }
        Ok(())
    }
}

/// Writes those that pass their fence, and says which.
async fn write_all<'a>(
    others: &Others,
    held: &mut Option<Held>,
    checkpoints: impl Iterator<Item = &'a Checkpoint>,
) -> Result<HashSet<Uuid>, StoreError> {
    let checkpoints: Vec<&Checkpoint> = checkpoints.collect();
    // Kept only when all went well.
    let mut now = others.connection(held.take()).await?;
    let passed = match Plain::of(&checkpoints) {
        Some(plain) => {
            let written = alone::write(&mut now.connection, &plain, &mut now.begun).await?;
            written.then_some(plain.checkpoint.run.0).into_iter().collect()
        }
        None => {
            now.begun = None;
            Box::pin(write_columns(&mut now.connection, &checkpoints)).await?
        }
    };
    *held = Some(Held { used: Instant::now(), ..now });
    Ok(passed.into_iter().collect())
}

async fn write_columns(
    connection: &mut Connection,
    checkpoints: &[&Checkpoint],
) -> Result<Vec<Uuid>, StoreError> {
    let mut columns = Columns::default();
    for checkpoint in checkpoints {
        columns.add(checkpoint)?;
    }
    let passed = sqlx::query_scalar(WRITE)
        .bind(columns.run)
        .bind(columns.epoch)
        .bind(columns.status)
        .bind(columns.outcome)
        .bind(columns.reason)
        .bind(columns.at)
        .bind(columns.step)
        .bind(columns.attempt)
        .bind(columns.state)
        .bind(columns.finished_at)
        .bind(columns.output)
        .bind(columns.error)
        .bind(columns.resume)
        .bind(columns.wake_at)
        .bind(columns.parent_step)
        .bind(columns.parent_attempt)
        .bind(columns.next_step)
        .bind(columns.next_attempt)
        .bind(columns.place)
        .bind(columns.started_run)
        .bind(columns.started_step)
        .bind(columns.started_attempt)
        .bind(columns.started_place)
        .bind(columns.skipped_run)
        .bind(columns.skipped_step)
        .bind(columns.skipped_error)
        .bind(columns.skipped_place)
        .fetch_all(connection)
        .await;
    unless_known(passed)
}
