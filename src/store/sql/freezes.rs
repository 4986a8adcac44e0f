//! Freezes. Whoever makes one and whoever promotes hold one lock until they
//! commit, and take it before any other: what a promotion reads here stays true
//! until it is made.

use async_trait::async_trait;
use sqlx::types::Uuid;

use super::super::{Connection, Row, lock_key};
use super::rows::{self, get, text, word_opt};
use super::signals::{NewSignal, Stirred, Told, signal_in};
use super::store::SqlStore;
use crate::domain::Timestamp;
use crate::domain::freeze::{Freeze, FreezeScope, FreezeWish, Lifted};
use crate::domain::id::{FreezeId, ModelName, RunId};
use crate::domain::run::SignalKind;
use crate::store::{FreezeAnswer, Freezes, PromotionAsked, StoreError};

/// Held by whoever makes a freeze and by whoever heeds them, until the transaction ends.
pub(super) async fn lock_freezes(connection: &mut Connection) -> Result<(), StoreError> {
    lock_key(connection, "freezes of promotions").await
}

/// The freeze in force over `model` that lasts longest. `now` is the time to bind.
pub(super) async fn freeze_in(
    connection: &mut Connection,
    model: &ModelName,
    now: Option<Timestamp>,
) -> Result<Option<Freeze>, StoreError> {
    let row = sqlx::query(sql!(concat!(
        "SELECT * FROM refit.freezes
         WHERE (model IS NULL OR model = $1) AND lifted_at IS NULL AND begins_at <= ",
        now!("$2"),
        " AND (ends_at IS NULL OR ends_at > ",
        now!("$2"),
        ") ORDER BY ends_at IS NULL DESC, ends_at DESC, id LIMIT 1"
    )))
    .bind(model.as_str())
    .bind(now)
    .fetch_optional(connection)
    .await?;
    row.as_ref().map(freeze).transpose()
}

fn freeze(row: &Row) -> Result<Freeze, StoreError> {
    let lifted = get::<Option<String>>(row, "lifted_by")?.zip(get::<Option<Timestamp>>(row, "lifted_at")?);
    Ok(Freeze {
        id: FreezeId(get(row, "id")?),
        model: word_opt(row, "model")?,
        from: get(row, "begins_at")?,
        until: get(row, "ends_at")?,
        reason: get(row, "reason")?,
        by: get(row, "made_by")?,
        at: get(row, "made_at")?,
        lifted: lifted.map(|(by, at)| Lifted { by, at }),
    })
}

#[async_trait]
impl Freezes for SqlStore {
    async fn freeze(
        &self,
        id: FreezeId,
        wish: &FreezeWish,
        at: Timestamp,
    ) -> Result<FreezeAnswer, StoreError> {
        self.answered(self.make_freeze(id, wish, at)).await
    }

    async fn unfreeze(
        &self,
        which: &FreezeScope,
        by: &str,
        at: Timestamp,
    ) -> Result<Vec<Freeze>, StoreError> {
        self.answered(self.lift_freezes(which, by, at)).await
    }

    async fn freeze_over(&self, model: &ModelName, at: Timestamp) -> Result<Option<Freeze>, StoreError> {
        self.answered(self.read_freeze_over(model, at)).await
    }

    async fn open_freezes(&self, at: Timestamp) -> Result<Vec<Freeze>, StoreError> {
        self.answered(self.list_open_freezes(at)).await
    }

    async fn freezes(&self, model: Option<&ModelName>, limit: u32) -> Result<Vec<Freeze>, StoreError> {
        self.answered(self.list_freezes(model, limit)).await
    }

    async fn ask_to_promote(
        &self,
        run: RunId,
        model: &ModelName,
        actor: &str,
        reason: Option<&str>,
        at: Timestamp,
    ) -> Result<PromotionAsked, StoreError> {
        self.answered(self.tell_to_promote(run, model, actor, reason, at)).await
    }
}

impl SqlStore {
    async fn make_freeze(
        &self,
        id: FreezeId,
        wish: &FreezeWish,
        at: Timestamp,
    ) -> Result<FreezeAnswer, StoreError> {
        let mut tx = self.begin().await?;
        lock_freezes(&mut tx).await?;
        let row = sqlx::query(sql!(concat!("SELECT ", now!("$1"), " AS now")))
            .bind(self.at(at))
            .fetch_one(&mut *tx)
            .await?;
        let now: Timestamp = get(&row, "now")?;
        let wish = FreezeWish { reason: text(&wish.reason), by: text(&wish.by), ..wish.clone() };
        let open = open_in(&mut tx, Some(now)).await?;
        if let Some(same) = open.iter().find(|freeze| wish.is_granted_by(freeze, now)) {
            return Ok(FreezeAnswer::Already(same.clone()));
        }
        let made = match wish.granted(id, now, &open) {
            Ok(made) => made,
            Err(error) => return Ok(FreezeAnswer::Refused(error)),
        };
        sqlx::query(sql!(
            "INSERT INTO refit.freezes (id, model, begins_at, ends_at, reason, made_by, made_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7)"
        ))
        .bind(made.id.0)
        .bind(made.model.as_ref().map(ModelName::as_str))
        .bind(made.from)
        .bind(made.until)
        .bind(made.reason.as_str())
        .bind(made.by.as_str())
        .bind(made.at)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(FreezeAnswer::Made(made))
    }

    async fn lift_freezes(
        &self,
        which: &FreezeScope,
        by: &str,
        at: Timestamp,
    ) -> Result<Vec<Freeze>, StoreError> {
        let (model, id) = match which {
            FreezeScope::EveryModel => (None, None),
            FreezeScope::Model(model) => (Some(model.as_str()), None),
            FreezeScope::One(id) => (None, Some(id.0)),
        };
        let lifted = sqlx::query(sql!(concat!(
            "UPDATE refit.freezes SET lifted_by = $4, lifted_at = ",
            now!("$3"),
            " WHERE (id = $2 OR ($2 IS NULL AND (model = $1 OR ($1 IS NULL AND model IS NULL))))
             AND lifted_at IS NULL AND (ends_at IS NULL OR ends_at > ",
            now!("$3"),
            ") RETURNING *"
        )))
        .bind(model)
        .bind(id)
        .bind(self.at(at))
        .bind(text(by))
        .fetch_all(&self.parts.writer)
        .await?;
        let lifted = rows::all(&lifted, freeze)?;
        if !lifted.is_empty() {
            // Each for itself, and after: who dies here leaves runs that look again by themselves.
            for run in self.waiting_for_unfreeze().await? {
                self.send_signal(run, &SignalKind::Look, by, Some("a freeze was lifted"), at).await?;
            }
        }
        Ok(lifted)
    }

    /// Runs that sleep because of a freeze, whichever.
    async fn waiting_for_unfreeze(&self) -> Result<Vec<RunId>, StoreError> {
        let waiting = sqlx::query(sql!(
            "SELECT DISTINCT a.run FROM refit.attempts a JOIN refit.runs r ON r.id = a.run
             WHERE r.status = 'waiting' AND a.state = 'sleeping' AND a.resume ->> 'stage' = 'frozen'"
        ))
        .fetch_all(&self.parts.reader)
        .await?;
        rows::all(&waiting, |row| Ok(RunId(get::<Uuid>(row, "run")?)))
    }

    async fn read_freeze_over(&self, model: &ModelName, at: Timestamp) -> Result<Option<Freeze>, StoreError> {
        let mut connection = self.parts.reader.acquire().await?;
        freeze_in(&mut connection, model, self.at(at)).await
    }

    async fn list_open_freezes(&self, at: Timestamp) -> Result<Vec<Freeze>, StoreError> {
        let mut connection = self.parts.reader.acquire().await?;
        open_in(&mut connection, self.at(at)).await
    }

    async fn list_freezes(&self, model: Option<&ModelName>, limit: u32) -> Result<Vec<Freeze>, StoreError> {
        let found = sqlx::query(sql!(
            "SELECT * FROM refit.freezes WHERE $1 IS NULL OR model IS NULL OR model = $1
             ORDER BY made_at DESC, id DESC LIMIT $2"
        ))
        .bind(model.map(ModelName::as_str))
        .bind(i64::from(limit))
        .fetch_all(&self.parts.reader)
        .await?;
        rows::all(&found, freeze)
    }

    async fn tell_to_promote(
        &self,
        run: RunId,
        model: &ModelName,
        actor: &str,
        reason: Option<&str>,
        at: Timestamp,
    ) -> Result<PromotionAsked, StoreError> {
        let mut tx = self.begin().await?;
        lock_freezes(&mut tx).await?;
        if let Some(freeze) = freeze_in(&mut tx, model, self.at(at)).await? {
            return Ok(PromotionAsked::Frozen(freeze));
        }
        let signal = NewSignal { kind: &SignalKind::Promote, actor, reason, at };
        let told = signal_in(&mut tx, run, &signal, self.at(at)).await?;
        self.commit(tx, &Stirred::of(run, &told)).await?;
        Ok(match told {
            Told::Gone => PromotionAsked::Ended,
            Told::Claimed | Told::Unclaimed => PromotionAsked::Told,
        })
    }
}

async fn open_in(connection: &mut Connection, now: Option<Timestamp>) -> Result<Vec<Freeze>, StoreError> {
    let found = sqlx::query(sql!(concat!(
        "SELECT * FROM refit.freezes WHERE lifted_at IS NULL AND (ends_at IS NULL OR ends_at > ",
        now!("$1"),
        ") ORDER BY begins_at, id"
    )))
    .bind(now)
    .fetch_all(connection)
    .await?;
    rows::all(&found, freeze)
}
