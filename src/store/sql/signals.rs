//! Signals, cancels, and intents.

use async_trait::async_trait;
use serde_json::Value;
use sqlx::types::Uuid;

use super::super::{Connection, Span, span};
use super::rows::{self, doc, doc_opt, get, text};
use super::store::SqlStore;
use crate::domain::Timestamp;
use crate::domain::id::{Epoch, RunId};
use crate::domain::run::{CancelRequest, Intent, IntentState, SignalKind};
use crate::store::{SAFETY_NET, Signals, StoreError};

/// What a run that was told something is doing.
pub(super) enum Told {
    /// It ended.
    Gone,
    /// A worker has it, and will see.
    Claimed,
    /// Nobody has it: wake it.
    Unclaimed,
}

/// Runs that hear of a transaction once it is committed.
#[derive(Default)]
pub(super) struct Stirred {
    /// Nobody has them.
    pub(super) woken: Vec<RunId>,
    /// A worker has them, here or elsewhere.
    pub(super) told: Vec<RunId>,
}

impl Stirred {
    pub(super) fn woken(woken: Vec<RunId>) -> Self {
        Self { woken, told: vec![] }
    }

    pub(super) fn of(run: RunId, told: &Told) -> Self {
        let mut stirred = Self::default();
        stirred.add(run, told);
        stirred
    }

    pub(super) fn add(&mut self, run: RunId, told: &Told) {
        match told {
            Told::Gone => {}
            Told::Claimed => self.told.push(run),
            Told::Unclaimed => self.woken.push(run),
        }
    }
}

/// A signal to be sent.
pub(super) struct NewSignal<'a> {
    pub(super) kind: &'a SignalKind,
    pub(super) actor: &'a str,
    pub(super) reason: Option<&'a str>,
    pub(super) at: Timestamp,
}

/// Sends a signal within a transaction; the caller stirs the run. `now` is the time to bind for
/// what is due.
pub(super) async fn signal_in(
    connection: &mut Connection,
    run: RunId,
    signal: &NewSignal<'_>,
    now: Option<Timestamp>,
) -> Result<Told, StoreError> {
    let row = sqlx::query(sql!(concat!(
        "UPDATE refit.runs SET signal_seq = signal_seq + 1,
             poke_at = CASE WHEN lease_owner IS NULL THEN ",
        until!("$2", "$3"),
        " ELSE poke_at END
         WHERE id = $1 AND status <> 'finished' RETURNING signal_seq, lease_owner"
    )))
    .bind(run.0)
    .bind(now)
    .bind(span(signal.at, SAFETY_NET))
    .fetch_optional(&mut *connection)
    .await?;
    let Some(row) = row else { return Ok(Told::Gone) };
    sqlx::query(sql!(
        "INSERT INTO refit.signals (run, id, kind, actor, reason, at) VALUES ($1, $2, $3, $4, $5, $6)"
    ))
    .bind(run.0)
    .bind(get::<i64>(&row, "signal_seq")?)
    .bind(doc(signal.kind)?)
    .bind(text(signal.actor))
    .bind(signal.reason.map(text))
    .bind(signal.at)
    .execute(&mut *connection)
    .await?;
    let claimed = get::<Option<Uuid>>(&row, "lease_owner")?.is_some();
    Ok(if claimed { Told::Claimed } else { Told::Unclaimed })
}

#[async_trait]
impl Signals for SqlStore {
    async fn signal(
        &self,
        run: RunId,
        kind: &SignalKind,
        actor: &str,
        reason: Option<&str>,
        at: Timestamp,
    ) -> Result<bool, StoreError> {
        self.answered(self.send_signal(run, kind, actor, reason, at)).await
    }

    async fn request_cancel(&self, run: RunId, request: &CancelRequest) -> Result<bool, StoreError> {
        self.answered(self.ask_to_cancel(run, request)).await
    }
}

impl SqlStore {
    pub(super) async fn send_signal(
        &self,
        run: RunId,
        kind: &SignalKind,
        actor: &str,
        reason: Option<&str>,
        at: Timestamp,
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let signal = NewSignal { kind, actor, reason, at };
        let told = signal_in(&mut tx, run, &signal, self.at(at)).await?;
        self.commit(tx, &Stirred::of(run, &told)).await?;
        Ok(!matches!(told, Told::Gone))
    }

    async fn ask_to_cancel(&self, run: RunId, request: &CancelRequest) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let told =
            cancel_in(&mut tx, run, request, self.at(request.at), span(request.at, SAFETY_NET)).await?;
        self.commit(tx, &Stirred::of(run, &told)).await?;
        Ok(!matches!(told, Told::Gone))
    }

    pub(super) async fn record_intent(
        &self,
        run: RunId,
        epoch: Epoch,
        intent: &Intent,
    ) -> Result<Intent, StoreError> {
        let mut tx = self.begin().await?;
        fence(&mut tx, run, epoch).await?;
        let kept = insert_intent(&mut tx, run, intent).await?;
        tx.commit().await?;
        Ok(kept.unwrap_or_else(|| intent.clone()))
    }

    pub(super) async fn settle_intent(
        &self,
        run: RunId,
        epoch: Epoch,
        key: &str,
        result: &Value,
    ) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        fence(&mut tx, run, epoch).await?;
        sqlx::query(sql!("UPDATE refit.intents SET result = $3 WHERE run = $1 AND key = $2"))
            .bind(run.0)
            .bind(text(key))
            .bind(doc(result)?)
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }
}

/// Asks a run to cancel; the first wish stands.
pub(super) async fn cancel_in(
    connection: &mut Connection,
    run: RunId,
    request: &CancelRequest,
    now: Option<Timestamp>,
    net: Span,
) -> Result<Told, StoreError> {
    let row = sqlx::query(sql!(concat!(
        "UPDATE refit.runs SET cancel = coalesce(cancel, $2), signal_seq = signal_seq + 1,
             poke_at = CASE WHEN lease_owner IS NULL THEN ",
        until!("$3", "$4"),
        " ELSE poke_at END
         WHERE id = $1 AND status <> 'finished' RETURNING lease_owner"
    )))
    .bind(run.0)
    .bind(doc(request)?)
    .bind(now)
    .bind(net)
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else { return Ok(Told::Gone) };
    let owner = get::<Option<Uuid>>(&row, "lease_owner")?;
    Ok(if owner.is_some() { Told::Claimed } else { Told::Unclaimed })
}

/// Locks the run's row until the transaction ends, if it still has this epoch.
pub(super) async fn fence(connection: &mut Connection, run: RunId, epoch: Epoch) -> Result<(), StoreError> {
    let found = sqlx::query(sql!(concat!(
        "SELECT 1 FROM refit.runs WHERE id = $1 AND epoch = $2 AND status <> 'finished'",
        for_update!()
    )))
    .bind(run.0)
    .bind(epoch.0)
    .fetch_optional(connection)
    .await?;
    found.map(|_| ()).ok_or(StoreError::Fenced)
}

/// Records an intent; when its key is known, returns what is recorded.
pub(super) async fn insert_intent(
    connection: &mut Connection,
    run: RunId,
    intent: &Intent,
) -> Result<Option<Intent>, StoreError> {
    let made = sqlx::query(sql!(
        "INSERT INTO refit.intents (run, step, key, detail, undo, result, state) VALUES ($1, $2, $3, $4, $5, $6, $7)
         ON CONFLICT (key) DO NOTHING"
    ))
    .bind(run.0)
    .bind(intent.step.as_str())
    .bind(text(&intent.key))
    .bind(doc(&intent.detail)?)
    .bind(doc_opt(intent.undo.as_ref())?)
    .bind(doc_opt(intent.result.as_ref())?)
    .bind(match intent.state {
        IntentState::Armed => "armed",
        IntentState::Undone => "undone",
        IntentState::Dead => "dead",
    })
    .execute(&mut *connection)
    .await?;
    if made.rows_affected() == 1 {
        return Ok(None);
    }
    let row = sqlx::query(sql!("SELECT * FROM refit.intents WHERE key = $1"))
        .bind(text(&intent.key))
        .fetch_one(connection)
        .await?;
    rows::intent(&row).map(Some)
}
