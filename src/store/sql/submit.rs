//! Events in, runs made: with their wake-ups, in one transaction.

use std::borrow::Cow;

use sqlx::types::Uuid;

use super::super::{Connection, Span, lock_key, span};
use super::rows::{self, doc, get, text};
use super::signals::{Stirred, cancel_in};
use super::store::SqlStore;
use crate::domain::Timestamp;
use crate::domain::event::Event;
use crate::domain::id::{EventId, RunId};
use crate::domain::run::{CancelRequest, Run, RunStatus};
use crate::domain::workflow::ConcurrencyPolicy;
use crate::store::{NewRun, SAFETY_NET, StoreError, Submitted};

impl SqlStore {
    pub(super) async fn submit_event(
        &self,
        event: &Event,
        runs: &[NewRun],
    ) -> Result<Vec<Submitted>, StoreError> {
        let mut tx = self.begin().await?;
        let mut stirred = Stirred::default();
        let submitted = self.submit_in(&mut tx, event, runs, &mut stirred).await?;
        self.commit(tx, &stirred).await?;
        Ok(submitted)
    }

    /// As `submit`, inside a transaction; the runs that hear of it are added to `stirred`.
    pub(super) async fn submit_in(
        &self,
        connection: &mut Connection,
        event: &Event,
        runs: &[NewRun],
        stirred: &mut Stirred,
    ) -> Result<Vec<Submitted>, StoreError> {
        let known = keep_event(connection, event).await?;
        let mut submitted = Vec::with_capacity(runs.len());
        for new in runs {
            submitted.push(self.submit_run(connection, event, known, new, stirred).await?);
        }
        Ok(submitted)
    }

    async fn submit_run(
        &self,
        connection: &mut Connection,
        event: &Event,
        known: Option<EventId>,
        new: &NewRun,
        stirred: &mut Stirred,
    ) -> Result<Submitted, StoreError> {
        let key = text(&new.run.concurrency_key);
        let dedup_key = known_by(event, known, new);
        if new.policy != ConcurrencyPolicy::Queue {
            lock_key(connection, &key).await?;
        }
        // Where nothing else is asked before it is made, making it asks whether it is there.
        let asks = known.is_some() || new.policy != ConcurrencyPolicy::Queue;
        if asks && let Some(id) = made_before(connection, known, new).await? {
            return Ok(Submitted::Already(id));
        }
        match new.policy {
            ConcurrencyPolicy::Queue => {}
            ConcurrencyPolicy::Skip => {
                if let Some(id) = busy_with(connection, &key).await? {
                    return Ok(Submitted::Busy(id));
                }
            }
            ConcurrencyPolicy::QueueLatest => {
                let request = takes_place(&new.run);
                stirred
                    .woken
                    .extend(supersede_queued(connection, &key, &request, self.at(request.at)).await?);
            }
            ConcurrencyPolicy::CancelRunning => {
                if let Some(id) = holder_of(connection, &key).await? {
                    let request = takes_place(&new.run);
                    let (at, net) = (self.at(request.at), span(request.at, SAFETY_NET));
                    stirred.add(id, &cancel_in(connection, id, &request, at, net).await?);
                }
            }
        }
        let now = self.parts.clock.now();
        let due = new.start_at <= now;
        let made = sqlx::query(sql!(concat!(
            "INSERT INTO refit.runs (id, workflow, model, event_id, event_name, status, epoch, crashes, progressed,
                 committed, concurrency_key, dedup_key, created_at, wake_at, poke_at)
             VALUES ($1, $2, $3, $4, $5, $6, 0, 0, TRUE, FALSE, $7, $8, $9,
                 CASE WHEN $10 THEN ", now!("$11"), " ELSE $12 END,
                 CASE WHEN $10 THEN ", until!("$11", "$13"), " ELSE $12 END)
             ON CONFLICT (dedup_key) DO NOTHING"
        )))
        .bind(new.run.id.0)
        .bind(new.run.workflow.as_str())
        .bind(new.run.model.as_str())
        .bind(known.unwrap_or(event.id).0)
        .bind(text(&event.name))
        .bind(RunStatus::Queued.as_str())
        .bind(&key)
        .bind(text(&dedup_key))
        .bind(new.run.created_at)
        .bind(due)
        .bind(self.at(now))
        .bind(new.start_at)
        .bind::<Span>(span(now, SAFETY_NET))
        .execute(&mut *connection)
        .await?;
        if made.rows_affected() == 0 {
            // It was there, or another process made it since we looked.
            let id = made_before(connection, known, new).await?;
            return Ok(Submitted::Already(id.unwrap_or(new.run.id)));
        }
        sqlx::query(sql!("INSERT INTO refit.run_docs (run, definition, cause) VALUES ($1, $2, $3)"))
            .bind(new.run.id.0)
            .bind(doc(&new.run.definition)?)
            .bind(doc(&new.run.cause)?)
            .execute(&mut *connection)
            .await?;
        if due {
            stirred.woken.push(new.run.id);
        }
        Ok(Submitted::Made(new.run.id))
    }
}

/// A run that its event alone is the reason for is known by the event that stands: two who send it again at once make one.
fn known_by<'n>(event: &Event, known: Option<EventId>, new: &'n NewRun) -> Cow<'n, str> {
    match known {
        Some(id) if new.dedup_key == NewRun::key_of(event.id, &new.run.workflow) => {
            NewRun::key_of(id, &new.run.workflow).into()
        }
        Some(_) | None => (&new.dedup_key).into(),
    }
}

/// What another run is cancelled by that gives way to `run`.
fn takes_place(run: &Run) -> CancelRequest {
    CancelRequest {
        actor: run.cause.actor.clone(),
        reason: Some(format!("run {} takes its place", run.id)),
        at: run.created_at,
    }
}

/// Keeps the event; when it was kept before, the id it has.
async fn keep_event(connection: &mut Connection, event: &Event) -> Result<Option<EventId>, StoreError> {
    let dedup_key = event.dedup_key.as_deref().map(text);
    let kept = sqlx::query(sql!(
        "INSERT INTO refit.events (id, name, data, source, dedup_key, received_at) VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT DO NOTHING"
    ))
    .bind(event.id.0)
    .bind(text(&event.name))
    .bind(doc(&event.data)?)
    .bind(text(&event.source))
    .bind(&dedup_key)
    .bind(event.received_at)
    .execute(&mut *connection)
    .await?;
    if kept.rows_affected() == 1 {
        return Ok(None);
    }
    let row = sqlx::query(sql!("SELECT id FROM refit.events WHERE id = $1 OR dedup_key = $2"))
        .bind(event.id.0)
        .bind(&dedup_key)
        .fetch_one(connection)
        .await?;
    Ok(Some(EventId(get(&row, "id")?)))
}

/// The run that was made for this key, or for this event and workflow.
async fn made_before(
    connection: &mut Connection,
    known: Option<EventId>,
    new: &NewRun,
) -> Result<Option<RunId>, StoreError> {
    let row = sqlx::query(sql!(
        "SELECT id FROM refit.runs WHERE dedup_key = $1 OR (event_id = $2 AND workflow = $3) ORDER BY id LIMIT 1"
    ))
    .bind(text(&new.dedup_key))
    .bind(known.map(|id| id.0))
    .bind(new.run.workflow.as_str())
    .fetch_optional(connection)
    .await?;
    row.map(|row| Ok(RunId(get(&row, "id")?))).transpose()
}

/// The run that holds the key.
async fn holder_of(connection: &mut Connection, key: &str) -> Result<Option<RunId>, StoreError> {
    let holder = sqlx::query_scalar::<_, Uuid>(sql!("SELECT run FROM refit.concurrency WHERE key = $1"))
        .bind(key)
        .fetch_optional(connection)
        .await?;
    Ok(holder.map(RunId))
}

/// The run that holds the key, or is about to.
async fn busy_with(connection: &mut Connection, key: &str) -> Result<Option<RunId>, StoreError> {
    if let Some(holder) = holder_of(connection, key).await? {
        return Ok(Some(holder));
    }
    let queued = sqlx::query_scalar::<_, Uuid>(sql!(
        "SELECT id FROM refit.runs WHERE concurrency_key = $1 AND status = 'queued' AND cancel IS NULL
         ORDER BY id LIMIT 1"
    ))
    .bind(key)
    .fetch_optional(connection)
    .await?;
    Ok(queued.map(RunId))
}

/// Asks the runs of `key` that never began to cancel, and returns them. Each ends as one that a person cancels, and people
/// hear of it.
async fn supersede_queued(
    connection: &mut Connection,
    key: &str,
    request: &CancelRequest,
    now: Option<Timestamp>,
) -> Result<Vec<RunId>, StoreError> {
    // The key first, as by whoever hands it on.
    let holder = sqlx::query_scalar::<_, Uuid>(sql!(concat!(
        "SELECT run FROM refit.concurrency WHERE key = $1",
        for_update!()
    )))
    .bind(key)
    .fetch_optional(&mut *connection)
    .await?;
    let asked = sqlx::query(sql!(concat!(
        "UPDATE refit.runs SET cancel = $2, signal_seq = signal_seq + 1, poke_at = ",
        until!("$3", "$4"),
        " WHERE concurrency_key = $1 AND status = 'queued' AND cancel IS NULL RETURNING id"
    )))
    .bind(key)
    .bind(doc(request)?)
    .bind(now)
    .bind(span(request.at, SAFETY_NET))
    .fetch_all(&mut *connection)
    .await?;
    let asked = rows::all(&asked, |row| Ok(RunId(get(row, "id")?)))?;
    // One of them may have been handed the key already.
    if let Some(holder) = holder.filter(|holder| asked.contains(&RunId(*holder))) {
        sqlx::query(sql!("DELETE FROM refit.concurrency WHERE key = $1 AND run = $2"))
            .bind(key)
            .bind(holder)
            .execute(connection)
            .await?;
    }
    Ok(asked)
}
