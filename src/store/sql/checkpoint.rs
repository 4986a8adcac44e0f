//! A checkpoint, statement by statement, inside a transaction.

use sqlx::types::Json;

use super::super::{Connection, span};
use super::rows::{doc, doc_opt, get, text};
use super::waking::{has_begun, wake_attempts};
use crate::domain::Timestamp;
use crate::domain::id::{Epoch, RunId, StepId};
use crate::domain::run::{AttemptState, FailureKind, Outcome, RunStatus, StepFailure};
use crate::store::{Checkpoint, EndedAttempt, NewAttempt, Notice, RunState, SAFETY_NET, StoreError};

/// Attempts to be inserted.
pub(crate) struct NewRows<'a> {
    /// Of the first.
    pub place: usize,
    /// That begin.
    pub started: &'a [NewAttempt],
    /// That are left out.
    pub skipped: &'a [(StepId, String)],
}

/// Whether the worker keeps the run, and nothing is written but what ended and began: what nearly all checkpoints are.
pub(crate) fn goes_on(checkpoint: &Checkpoint) -> bool {
    matches!(checkpoint.run_state, RunState::Kept { .. })
        && checkpoint.ended.is_some()
        && checkpoint.woken.is_empty()
        && !checkpoint.undos.kill_all
        && checkpoint.undos.done.is_empty()
        && checkpoint.notices.is_empty()
        && checkpoint.boards.is_empty()
        && checkpoint.cancelled.is_empty()
}

/// A step ended and the next begins, and nothing else: what a lone run writes, step after step. After the first such
/// checkpoint of an epoch the run's row says all that the others would write there.
pub(crate) struct Plain<'a> {
    /// All of it.
    pub checkpoint: &'a Checkpoint,
    /// What ended.
    pub ended: &'a EndedAttempt,
    /// In whose row that is kept; it has one of its own when it began with others, or with the claim.
    pub parent: Option<&'a (StepId, u32)>,
    /// What begins.
    pub begun: &'a NewAttempt,
}

impl<'a> Plain<'a> {
    /// Of checkpoints, if they are one, and that one is so plain.
    pub(crate) fn of(checkpoints: &[&'a Checkpoint]) -> Option<Self> {
        let [checkpoint] = checkpoints else { return None };
        let RunState::Kept { status: RunStatus::Running, ending: None } = checkpoint.run_state else {
            return None;
        };
        let ended = checkpoint.ended.as_ref()?;
        Some(Self { checkpoint, ended, parent: ended.begun_in.as_ref(), begun: checkpoint.next()? })
    }

    /// When the attempt that ended did so; one that sleeps has not.
    pub(crate) fn finished_at(&self) -> Option<Timestamp> {
        (self.ended.state != AttemptState::Sleeping).then_some(self.checkpoint.at)
    }
}

/// Writes `checkpoint`, or returns `Fenced` having written nothing; returns the runs to be woken with it.
/// `now` is the time to bind for what is due.
pub(crate) async fn write(
    connection: &mut Connection,
    checkpoint: &Checkpoint,
    now: Option<Timestamp>,
) -> Result<Vec<RunId>, StoreError> {
    let (run, epoch, at) = (checkpoint.run, checkpoint.epoch, checkpoint.at);
    let Some(due) = move_run(connection, checkpoint, now).await? else {
        return if was_written(connection, checkpoint).await? {
            Ok(Vec::new())
        } else {
            Err(StoreError::Fenced)
        };
    };
    match &checkpoint.ended {
        Some(ended) => end_attempt(connection, checkpoint, ended).await?,
        None if has_begun(connection, checkpoint).await? => return Ok(Vec::new()),
        None => {}
    }
    cancel_attempts(connection, run, &checkpoint.cancelled, at).await?;
    wake_attempts(connection, run, epoch, &checkpoint.woken, at).await?;
    let rows = NewRows {
        place: checkpoint.place as usize,
        started: checkpoint.with_rows(),
        skipped: &checkpoint.skipped,
    };
    insert_attempts(connection, run, epoch, at, &rows).await?;
    if checkpoint.undos.kill_all {
        sqlx::query(sql!("UPDATE refit.intents SET state = 'dead' WHERE run = $1 AND state = 'armed'"))
            .bind(run.0)
            .execute(&mut *connection)
            .await?;
    }
    for key in &checkpoint.undos.done {
        sqlx::query(sql!("UPDATE refit.intents SET state = 'undone' WHERE run = $1 AND key = $2"))
            .bind(run.0)
            .bind(key)
            .execute(&mut *connection)
            .await?;
    }
    insert_notices(connection, &checkpoint.notices, at, now).await?;
    super::boards::touch(connection, run, &checkpoint.boards, now).await?;
    let mut woken = Vec::new();
    if due {
        woken.push(run);
    }
    let frees_key = match &checkpoint.run_state {
        RunState::Kept { .. } => false,
        RunState::Parked { status, .. } => *status == RunStatus::Held,
        RunState::Finished { .. } => true,
    };
    if frees_key {
        woken.extend(pass_key_on(connection, run, at, now).await?);
    }
    Ok(woken)
}

/// What becomes of the run's row.
struct Move<'a> {
    status: RunStatus,
    ending: Option<(Outcome, &'a str)>,
    keeps: bool,
    wake_at: Option<Timestamp>,
    at_once: bool,
    heard: Option<i64>,
    finished_at: Option<Timestamp>,
}

impl<'a> Move<'a> {
    fn of(checkpoint: &'a Checkpoint) -> Self {
        let base = Move {
            status: RunStatus::Running,
            ending: None,
            keeps: false,
            wake_at: None,
            at_once: false,
            heard: None,
            finished_at: None,
        };
        match &checkpoint.run_state {
            RunState::Kept { status, ending } => {
                Move { status: *status, ending: borrowed(ending), keeps: true, ..base }
            }
            RunState::Parked { status, ending, wake_at, heard } => Move {
                status: *status,
                ending: borrowed(ending),
                wake_at: *wake_at,
                at_once: match wake_at {
                    Some(wake_at) => *wake_at <= checkpoint.at,
                    None => *status == RunStatus::Running,
                },
                heard: Some(*heard),
                ..base
            },
            RunState::Finished { outcome, reason } => Move {
                status: RunStatus::Finished,
                ending: Some((*outcome, reason)),
                finished_at: Some(checkpoint.at),
                ..base
            },
        }
    }
}

fn borrowed(ending: &Option<(Outcome, String)>) -> Option<(Outcome, &str)> {
    ending.as_ref().map(|(outcome, reason)| (*outcome, reason.as_str()))
}

/// The attempt that ends: its own row is `started`, or it has none, and the row that it began in says that it did.
macro_rules! is_started {
    () => {
        "($3 IS NULL OR EXISTS (
             SELECT 1 FROM refit.attempts a
             WHERE a.run = $1 AND a.step = $3 AND a.attempt = $4 AND a.epoch = $2 AND (
                 ($5 IS NULL AND a.state = 'started')
                 OR (a.next_step = $5 AND a.next_attempt = $6 AND NOT EXISTS (
                     SELECT 1 FROM refit.attempts b WHERE b.run = $1 AND b.step = $5 AND b.attempt = $6)))))"
    };
}

/// The fence, which must be the first statement: the run's row, if epoch and attempt are as they must be.
/// Whether the run is due at once; nothing when it is fenced.
async fn move_run(
    connection: &mut Connection,
    checkpoint: &Checkpoint,
    now: Option<Timestamp>,
) -> Result<Option<bool>, StoreError> {
    let change = Move::of(checkpoint);
    let query = if change.keeps {
        sqlx::query(sql!(concat!(
            "UPDATE refit.runs SET crashes = 0, progressed = TRUE, status = $7, outcome = coalesce($8, outcome),
                 reason = coalesce($9, reason)
             WHERE id = $1 AND epoch = $2 AND status <> 'finished' AND ",
            is_started!(),
            " RETURNING FALSE AS due"
        )))
    } else {
        // A wish to cancel that its holder has not heard of came too late: the run ends as one that was promoted first.
        sqlx::query(sql!(concat!(
            "UPDATE refit.runs SET crashes = 0, progressed = TRUE, status = $7,
                 outcome = CASE WHEN $8 = 'promoted' AND $10 IS NOT NULL AND cancel IS NOT NULL
                     THEN 'cancelled_after_promotion' ELSE coalesce($8, outcome) END,
                 reason = coalesce($9, reason), lease_owner = NULL, lease_until = NULL, finished_at = $10,
                 signal_seen = coalesce($15, signal_seen),
                 wake_at = CASE WHEN $10 IS NOT NULL THEN NULL WHEN $11 OR signal_seq > $15 THEN ",
            now!("$13"),
            " ELSE $12 END,
                 poke_at = CASE WHEN $10 IS NOT NULL THEN NULL WHEN $11 OR signal_seq > $15
                     THEN ",
            until!("$13", "$14"),
            " ELSE $12 END
             WHERE id = $1 AND epoch = $2 AND status <> 'finished' AND ",
            is_started!(),
            "
             RETURNING ($11 OR coalesce(signal_seq > $15, FALSE)) AND status <> 'finished' AS due"
        )))
    };
    let own = checkpoint.ended.as_ref().map(|ended| (&ended.step, ended.attempt));
    let parent = checkpoint.ended.as_ref().and_then(|ended| ended.begun_in.as_ref());
    let parent = parent.map(|(step, attempt)| (step, *attempt));
    let child = own.filter(|_| parent.is_some());
    let asked = parent.or(own);
    let mut query = query
        .bind(checkpoint.run.0)
        .bind(checkpoint.epoch.0)
        .bind(asked.map(|(step, _)| step.as_str()))
        .bind(asked.map(|(_, attempt)| i64::from(attempt)))
        .bind(child.map(|(step, _)| step.as_str()))
        .bind(child.map(|(_, attempt)| i64::from(attempt)))
        .bind(change.status.as_str())
        .bind(change.ending.map(|(outcome, _)| outcome.as_str()))
        .bind(change.ending.map(|(_, reason)| text(reason)));
    if !change.keeps {
        query = query
            .bind(change.finished_at)
            .bind(change.at_once)
            .bind(change.wake_at)
            .bind(now)
            .bind(span(checkpoint.at, SAFETY_NET))
            .bind(change.heard);
    }
    let row = query.fetch_optional(connection).await?;
    row.map(|row| get::<bool>(&row, "due")).transpose()
}

async fn end_attempt(
    connection: &mut Connection,
    checkpoint: &Checkpoint,
    ended: &EndedAttempt,
) -> Result<(), StoreError> {
    let query = if ended.begun_in.is_some() {
        sqlx::query(sql!(
            "INSERT INTO refit.attempts (run, step, attempt, state, finished_at, changed_at, output, error, resume,
                 wake_at, next_step, next_attempt, next_place, epoch, started_at, place)
             SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, epoch, changed_at, next_place
             FROM refit.attempts WHERE run = $1 AND step = $14 AND attempt = $15"
        ))
    } else {
        sqlx::query(sql!(
            "UPDATE refit.attempts SET state = $4, finished_at = $5, changed_at = $6, output = $7, error = $8,
                 resume = $9, wake_at = $10, next_step = $11, next_attempt = $12, next_place = $13
             WHERE run = $1 AND step = $2 AND attempt = $3"
        ))
    };
    let next = checkpoint.next();
    let mut query = query
        .bind(checkpoint.run.0)
        .bind(ended.step.as_str())
        .bind(i64::from(ended.attempt))
        .bind(ended.state.as_str())
        .bind((ended.state != AttemptState::Sleeping).then_some(checkpoint.at))
        .bind(checkpoint.at)
        .bind(doc_opt(ended.output.as_ref())?)
        .bind(doc_opt(ended.error.as_ref())?)
        .bind(doc_opt(ended.resume.as_ref())?)
        .bind(ended.wake_at)
        .bind(next.map(|next| next.step.as_str()))
        .bind(next.map(|next| i64::from(next.attempt)))
        .bind(next.map(|_| i64::from(checkpoint.place)));
    if let Some((step, attempt)) = &ended.begun_in {
        query = query.bind(step.as_str()).bind(i64::from(*attempt));
    }
    query.execute(connection).await?;
    Ok(())
}

/// Ends attempts with their run: sleepers are cancelled, and one that failed is not tried again. `changed_at` stays: what
/// began with them began then.
pub(super) async fn cancel_attempts(
    connection: &mut Connection,
    run: RunId,
    cancelled: &[(StepId, u32)],
    at: Timestamp,
) -> Result<(), StoreError> {
    for (step, attempt) in cancelled {
        sqlx::query(sql!(
            "UPDATE refit.attempts SET state = CASE WHEN state = 'failed' THEN 'failed' ELSE 'cancelled' END,
                 finished_at = coalesce(finished_at, $4), wake_at = NULL
             WHERE run = $1 AND step = $2 AND attempt = $3 AND state IN ('sleeping', 'failed')"
        ))
        .bind(run.0)
        .bind(step.as_str())
        .bind(i64::from(*attempt))
        .bind(at)
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// Whether this very checkpoint was written before: its answer may have been lost with the connection.
async fn was_written(connection: &mut Connection, checkpoint: &Checkpoint) -> Result<bool, StoreError> {
    let Some(ended) = &checkpoint.ended else { return Ok(false) };
    let row = sqlx::query(sql!(
        "SELECT 1 FROM refit.attempts a JOIN refit.runs r ON r.id = a.run
         WHERE a.run = $1 AND a.step = $2 AND a.attempt = $3 AND a.epoch = $4 AND a.state = $5 AND a.changed_at = $6
           AND r.epoch = $4"
    ))
    .bind(checkpoint.run.0)
    .bind(ended.step.as_str())
    .bind(i64::from(ended.attempt))
    .bind(checkpoint.epoch.0)
    .bind(ended.state.as_str())
    .bind(checkpoint.at)
    .fetch_optional(connection)
    .await?;
    Ok(row.is_some())
}

/// Inserts attempts that begin and steps that are skipped.
pub(super) async fn insert_attempts(
    connection: &mut Connection,
    run: RunId,
    epoch: Epoch,
    at: Timestamp,
    rows: &NewRows<'_>,
) -> Result<(), StoreError> {
    let mut places = rows.place..;
    let mut place = || i64::try_from(places.next().unwrap_or(usize::MAX)).unwrap_or(i64::MAX);
    for new in rows.started {
        sqlx::query(sql!(
            "INSERT INTO refit.attempts (run, step, attempt, state, epoch, started_at, changed_at, place)
             VALUES ($1, $2, $3, 'started', $4, $5, $5, $6)"
        ))
        .bind(run.0)
        .bind(new.step.as_str())
        .bind(i64::from(new.attempt))
        .bind(epoch.0)
        .bind(at)
        .bind(place())
        .execute(&mut *connection)
        .await?;
    }
    for (step, reason) in rows.skipped {
        sqlx::query(sql!(
            "INSERT INTO refit.attempts (run, step, attempt, state, epoch, started_at, finished_at, changed_at, error,
                 place)
             SELECT $1, $2, coalesce(max(attempt), 0) + 1, 'skipped', $3, $4, $4, $4, $5, $6
             FROM refit.attempts WHERE run = $1 AND step = $2"
        ))
        .bind(run.0)
        .bind(step.as_str())
        .bind(epoch.0)
        .bind(at)
        .bind(skip_reason(reason)?)
        .bind(place())
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// Why a step is skipped, as an attempt keeps it.
pub(crate) fn skip_reason(reason: &str) -> Result<Json<serde_json::Value>, StoreError> {
    doc(&StepFailure { kind: FailureKind::Permanent, message: reason.to_owned(), hint: None })
}

/// Queues notices; a known key is dropped.
/// They are due at `now`, the time to bind for that.
pub(super) async fn insert_notices(
    connection: &mut Connection,
    notices: &[Notice],
    at: Timestamp,
    now: Option<Timestamp>,
) -> Result<(), StoreError> {
    for notice in notices {
        sqlx::query(sql!(concat!(
            "INSERT INTO refit.outbox (key, run, notice, queued_at, due_at) VALUES ($1, $2, $3, $4, ",
            now!("$5"),
            ") ON CONFLICT (key) DO NOTHING"
        )))
        .bind(text(&notice.key))
        .bind(notice.run.map(|run| run.0))
        .bind(doc(notice)?)
        .bind(at)
        .bind(now)
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// Frees the key that `run` holds, or hands it to the oldest run that waits for it, which is returned. One that is to be
/// cancelled needs no turn.
async fn pass_key_on(
    connection: &mut Connection,
    run: RunId,
    at: Timestamp,
    now: Option<Timestamp>,
) -> Result<Option<RunId>, StoreError> {
    let held = sqlx::query(sql!(concat!("SELECT key FROM refit.concurrency WHERE run = $1", for_update!())))
        .bind(run.0)
        .fetch_optional(&mut *connection)
        .await?;
    let Some(row) = held else { return Ok(None) };
    let key: String = get(&row, "key")?;
    // Again when the run that was found ends at this moment.
    loop {
        let next = sqlx::query(sql!(concat!(
            "SELECT id FROM refit.runs WHERE concurrency_key = $1 AND status = 'queued' AND id <> $3
                 AND cancel IS NULL AND wake_at <= ",
            now!("$2"),
            " ORDER BY id LIMIT 1"
        )))
        .bind(&key)
        .bind(now)
        .bind(run.0)
        .fetch_optional(&mut *connection)
        .await?;
        let Some(row) = next else {
            sqlx::query(sql!("DELETE FROM refit.concurrency WHERE key = $1"))
                .bind(&key)
                .execute(&mut *connection)
                .await?;
            return Ok(None);
        };
        let next = RunId(get(&row, "id")?);
        let woken = sqlx::query(sql!(concat!(
            "UPDATE refit.runs SET poke_at = ",
            until!("$2", "$3"),
            " WHERE id = $1 AND status = 'queued'"
        )))
        .bind(next.0)
        .bind(now)
        .bind(span(at, SAFETY_NET))
        .execute(&mut *connection)
        .await?;
        if woken.rows_affected() == 1 {
            sqlx::query(sql!("UPDATE refit.concurrency SET run = $2 WHERE key = $1"))
                .bind(&key)
                .bind(next.0)
                .execute(&mut *connection)
                .await?;
            return Ok(Some(next));
        }
    }
}
