//! Pins, marks, deletion and history of versions.

use async_trait::async_trait;

use super::super::{Connection, Row, lock_key};
use super::holdings::holdings_in;
use super::rows::{self, doc, get, json, json_opt, text, word};
use super::store::SqlStore;
use super::versions::version;
use crate::domain::Timestamp;
use crate::domain::history::{Change, ChangedBy, HistoryEntry, VersionAction};
use crate::domain::id::{Generation, ModelName, TargetName, VersionName};
use crate::domain::retention::{Fate, Holdings, Pin};
use crate::domain::version::{VersionRecord, VersionState};
use crate::store::{Condemned, Judge, Marked, Registry, StoreError};

/// Held by whoever makes or removes a reference to a version of the model, until the transaction ends.
pub(super) async fn lock_versions(connection: &mut Connection, model: &ModelName) -> Result<(), StoreError> {
    lock_key(connection, &format!("versions of {model}")).await
}

/// Records what became of a version.
pub(super) async fn audit_version(
    connection: &mut Connection,
    model: &ModelName,
    name: &VersionName,
    action: VersionAction,
    by: &ChangedBy,
) -> Result<(), StoreError> {
    sqlx::query(sql!(
        "INSERT INTO refit.version_audit (model, name, action, actor, reason, at) VALUES ($1, $2, $3, $4, $5, $6)"
    ))
    .bind(model.as_str())
    .bind(name.as_str())
    .bind(action.as_str())
    .bind(doc(&by.actor)?)
    .bind(text(&by.reason))
    .bind(by.at)
    .execute(connection)
    .await?;
    Ok(())
}

/// Marks a whole version; what it was before stays when it is not whole.
pub(super) async fn mark_in(
    connection: &mut Connection,
    model: &ModelName,
    name: &VersionName,
    bad: bool,
    by: &ChangedBy,
) -> Result<Marked, StoreError> {
    let (from, to) = if bad { ("sealed", "bad") } else { ("bad", "sealed") };
    let changed = sqlx::query(sql!(
        "UPDATE refit.versions SET state = $4 WHERE model = $1 AND name = $2 AND state = $3"
    ))
    .bind(model.as_str())
    .bind(name.as_str())
    .bind(from)
    .bind(to)
    .execute(&mut *connection)
    .await?;
    if changed.rows_affected() == 1 {
        let action = if bad { VersionAction::MarkedBad } else { VersionAction::MarkedGood };
        audit_version(connection, model, name, action, by).await?;
        return Ok(Marked::Made);
    }
    let known = version_in(connection, model, name).await?;
    Ok(if known.is_some_and(|record| record.state.is_whole()) { Marked::Already } else { Marked::Unknown })
}

pub(super) async fn version_in(
    connection: &mut Connection,
    model: &ModelName,
    name: &VersionName,
) -> Result<Option<VersionRecord>, StoreError> {
    let row = sqlx::query(sql!("SELECT * FROM refit.versions WHERE model = $1 AND name = $2"))
        .bind(model.as_str())
        .bind(name.as_str())
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(version).transpose()
}

fn pin(row: &Row) -> Result<Pin, StoreError> {
    Ok(Pin {
        model: word(row, "model")?,
        version: word(row, "name")?,
        actor: json(row, "actor")?,
        reason: get(row, "reason")?,
        at: get(row, "at")?,
    })
}

fn by(row: &Row) -> Result<ChangedBy, StoreError> {
    Ok(ChangedBy { actor: json(row, "actor")?, reason: get(row, "reason")?, at: get(row, "at")? })
}

/// A change of a release.
fn released(row: &Row) -> Result<HistoryEntry, StoreError> {
    let change = Change::Release {
        target: word(row, "target")?,
        generation: Generation(get(row, "generation")?),
        assignment: json(row, "assignment")?,
        evidence: json_opt(row, "evidence")?,
        configuration: get(row, "configuration")?,
    };
    Ok(HistoryEntry { model: word(row, "model")?, change, by: by(row)? })
}

#[async_trait]
impl Registry for SqlStore {
    async fn holdings(&self, model: &ModelName, since: Timestamp) -> Result<Holdings, StoreError> {
        self.answered(self.read_holdings(model, since)).await
    }

    async fn condemn_version(
        &self,
        model: &ModelName,
        version: &VersionName,
        since: Timestamp,
        judge: Judge<'_>,
        by: &ChangedBy,
    ) -> Result<Condemned, StoreError> {
        self.answered(self.condemn(model, version, since, judge, by)).await
    }

    async fn version_deleted(
        &self,
        model: &ModelName,
        version: &VersionName,
        by: &ChangedBy,
    ) -> Result<(), StoreError> {
        self.answered(self.end_deletion(model, version, by)).await
    }

    async fn pin_version(
        &self,
        model: &ModelName,
        version: &VersionName,
        pinned: bool,
        by: &ChangedBy,
    ) -> Result<Marked, StoreError> {
        self.answered(self.set_pin(model, version, pinned, by)).await
    }

    async fn mark_version(
        &self,
        model: &ModelName,
        version: &VersionName,
        bad: bool,
        by: &ChangedBy,
    ) -> Result<Marked, StoreError> {
        self.answered(self.set_mark(model, version, bad, by)).await
    }

    async fn pins(&self, model: Option<&ModelName>) -> Result<Vec<Pin>, StoreError> {
        self.answered(self.list_pins(model)).await
    }

    async fn history(&self, model: Option<&ModelName>, limit: u32) -> Result<Vec<HistoryEntry>, StoreError> {
        self.answered_of_many(self.list_changes(model, (None, None), i64::from(limit))).await
    }

    async fn release_change(
        &self,
        model: &ModelName,
        target: &TargetName,
        generation: Generation,
    ) -> Result<Option<HistoryEntry>, StoreError> {
        self.answered(self.read_change(model, target, generation)).await
    }

    async fn history_during(
        &self,
        model: &ModelName,
        from: Timestamp,
        until: Option<Timestamp>,
    ) -> Result<Vec<HistoryEntry>, StoreError> {
        self.answered_of_many(self.list_changes(Some(model), (Some(from), until), i64::MAX)).await
    }
}

impl SqlStore {
    async fn read_holdings(&self, model: &ModelName, since: Timestamp) -> Result<Holdings, StoreError> {
        let mut connection = self.parts.reader.acquire().await?;
        holdings_in(&mut connection, model, since).await
    }

    async fn condemn(
        &self,
        model: &ModelName,
        version: &VersionName,
        since: Timestamp,
        judge: Judge<'_>,
        by: &ChangedBy,
    ) -> Result<Condemned, StoreError> {
        let mut tx = self.begin().await?;
        lock_versions(&mut tx, model).await?;
        let holdings = holdings_in(&mut tx, model, since).await?;
        let why = match judge(&holdings) {
            Fate::Deleted { why } => why,
            fate @ (Fate::Kept { .. } | Fate::Nothing) => return Ok(Condemned::Kept(fate)),
        };
        let mut holdings = holdings.versions.into_iter();
        let Some(mut record) = holdings.find(|record| &record.name == version) else {
            return Ok(Condemned::Kept(Fate::Nothing));
        };
        if record.state != VersionState::Deleting {
            sqlx::query(sql!("UPDATE refit.versions SET state = 'deleting' WHERE model = $1 AND name = $2"))
                .bind(model.as_str())
                .bind(version.as_str())
                .execute(&mut *tx)
                .await?;
            let reason = if by.reason.is_empty() { why } else { format!("{why}; {}", by.reason) };
            let by = ChangedBy { reason, ..by.clone() };
            audit_version(&mut tx, model, version, VersionAction::Deleting, &by).await?;
            tx.commit().await?;
            record.state = VersionState::Deleting;
        }
        Ok(Condemned::Deleting(Box::new(record)))
    }

    async fn end_deletion(
        &self,
        model: &ModelName,
        version: &VersionName,
        by: &ChangedBy,
    ) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        let changed = sqlx::query(sql!(
            "UPDATE refit.versions SET state = 'deleted' WHERE model = $1 AND name = $2 AND state = 'deleting'"
        ))
        .bind(model.as_str())
        .bind(version.as_str())
        .execute(&mut *tx)
        .await?;
        // Another process may have said so before.
        if changed.rows_affected() == 1 {
            audit_version(&mut tx, model, version, VersionAction::Deleted, by).await?;
        }
        Ok(tx.commit().await?)
    }

    async fn set_pin(
        &self,
        model: &ModelName,
        version: &VersionName,
        pinned: bool,
        by: &ChangedBy,
    ) -> Result<Marked, StoreError> {
        let mut tx = self.begin().await?;
        lock_versions(&mut tx, model).await?;
        let known = version_in(&mut tx, model, version).await?;
        if pinned && !known.is_some_and(|record| record.state.is_whole()) {
            return Ok(Marked::Unknown);
        }
        let query = if pinned {
            sqlx::query(sql!(
                "INSERT INTO refit.version_pins (model, name, actor, reason, at) VALUES ($1, $2, $3, $4, $5)
                 ON CONFLICT (model, name) DO NOTHING"
            ))
            .bind(model.as_str())
            .bind(version.as_str())
            .bind(doc(&by.actor)?)
            .bind(text(&by.reason))
            .bind(by.at)
        } else {
            sqlx::query(sql!("DELETE FROM refit.version_pins WHERE model = $1 AND name = $2"))
                .bind(model.as_str())
                .bind(version.as_str())
        };
        if query.execute(&mut *tx).await?.rows_affected() == 0 {
            return Ok(Marked::Already);
        }
        let action = if pinned { VersionAction::Pinned } else { VersionAction::Unpinned };
        audit_version(&mut tx, model, version, action, by).await?;
        tx.commit().await?;
        Ok(Marked::Made)
    }

    async fn set_mark(
        &self,
        model: &ModelName,
        version: &VersionName,
        bad: bool,
        by: &ChangedBy,
    ) -> Result<Marked, StoreError> {
        let mut tx = self.begin().await?;
        let marked = mark_in(&mut tx, model, version, bad, by).await?;
        tx.commit().await?;
        Ok(marked)
    }

    async fn list_pins(&self, model: Option<&ModelName>) -> Result<Vec<Pin>, StoreError> {
        let mut connection = self.parts.reader.acquire().await?;
        pins_in(&mut connection, model).await
    }

    async fn read_change(
        &self,
        model: &ModelName,
        target: &TargetName,
        generation: Generation,
    ) -> Result<Option<HistoryEntry>, StoreError> {
        let row = sqlx::query(sql!(
            "SELECT * FROM refit.release_audit WHERE model = $1 AND target = $2 AND generation = $3"
        ))
        .bind(model.as_str())
        .bind(target.as_str())
        .bind(generation.0)
        .fetch_optional(&self.parts.reader)
        .await?;
        row.as_ref().map(released).transpose()
    }

    async fn list_changes(
        &self,
        model: Option<&ModelName>,
        (from, until): (Option<Timestamp>, Option<Timestamp>),
        limit: i64,
    ) -> Result<Vec<HistoryEntry>, StoreError> {
        let releases = sqlx::query(sql!(
            "SELECT * FROM refit.release_audit WHERE ($1 IS NULL OR model = $1)
                 AND ($2 IS NULL OR at >= $2) AND ($3 IS NULL OR at <= $3)
             ORDER BY at DESC, target, generation DESC LIMIT $4"
        ))
        .bind(model.map(ModelName::as_str))
        .bind(from)
        .bind(until)
        .bind(limit)
        .fetch_all(&self.parts.reader)
        .await?;
        let versions = sqlx::query(sql!(
            "SELECT * FROM refit.version_audit WHERE ($1 IS NULL OR model = $1)
                 AND ($2 IS NULL OR at >= $2) AND ($3 IS NULL OR at <= $3)
             ORDER BY at DESC, seq DESC LIMIT $4"
        ))
        .bind(model.map(ModelName::as_str))
        .bind(from)
        .bind(until)
        .bind(limit)
        .fetch_all(&self.parts.reader)
        .await?;
        let mut entries = rows::all(&releases, released)?;
        entries.extend(rows::all(&versions, |row| {
            let change = Change::Version { version: word(row, "name")?, action: word(row, "action")? };
            Ok(HistoryEntry { model: word(row, "model")?, change, by: by(row)? })
        })?);
        // Stable: of one moment, the release comes before what became of a version with it.
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.by.at));
        entries.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        Ok(entries)
    }
}

pub(super) async fn pins_in(
    connection: &mut Connection,
    model: Option<&ModelName>,
) -> Result<Vec<Pin>, StoreError> {
    let found = sqlx::query(sql!(
        "SELECT * FROM refit.version_pins WHERE $1 IS NULL OR model = $1 ORDER BY model, name"
    ))
    .bind(model.map(ModelName::as_str))
    .fetch_all(connection)
    .await?;
    rows::all(&found, pin)
}
