//! Versions: their names, and what is known of them.

use async_trait::async_trait;

use super::super::{Connection, Row};
use super::registry::{audit_version, version_in};
use super::rows::{self, doc, doc_opt, get, json_opt, text, word};
use super::signals::fence;
use super::store::SqlStore;
use crate::domain::history::{ChangedBy, VersionAction};
use crate::domain::id::{Epoch, ModelName, RunId, VersionName};
use crate::domain::release::ReleaseActor;
use crate::domain::version::{Manifest, VersionRecord, VersionState};
use crate::store::{Reservation, StoreError, VersionNamer, Versions};

/// Runs that finish together on one model ask for the same name.
const TRIES: u32 = 100;

fn state_word(state: VersionState) -> &'static str {
    match state {
        VersionState::Reserved => "reserved",
        VersionState::Sealed => "sealed",
        VersionState::Bad => "bad",
        VersionState::Abandoned => "abandoned",
        VersionState::Deleting => "deleting",
        VersionState::Deleted => "deleted",
    }
}

pub(super) fn version(row: &Row) -> Result<VersionRecord, StoreError> {
    Ok(VersionRecord {
        model: word(row, "model")?,
        name: word(row, "name")?,
        store: word(row, "store")?,
        state: word(row, "state")?,
        run: get::<Option<sqlx::types::Uuid>>(row, "run")?.map(RunId),
        place: get(row, "place")?,
        base_url: get(row, "base_url")?,
        manifest_sha256: get(row, "manifest_sha256")?,
        manifest: json_opt(row, "manifest")?,
        created_at: get(row, "created_at")?,
    })
}

#[async_trait]
impl Versions for SqlStore {
    async fn reserve_version(
        &self,
        by: &Reservation,
        name_of: VersionNamer<'_>,
    ) -> Result<VersionRecord, StoreError> {
        self.answered(self.reserve(by, name_of)).await
    }

    async fn set_version_state(
        &self,
        model: &ModelName,
        version: &VersionName,
        state: VersionState,
        sealed: Option<(&Manifest, &str, &str)>,
        fence: Option<(RunId, Epoch)>,
    ) -> Result<(), StoreError> {
        self.answered(self.change_version(model, version, state, sealed, fence)).await
    }

    async fn adopt_version(&self, record: &VersionRecord, by: &ChangedBy) -> Result<(), StoreError> {
        self.answered(self.adopt(record, by)).await
    }

    async fn version(
        &self,
        model: &ModelName,
        version: &VersionName,
    ) -> Result<Option<VersionRecord>, StoreError> {
        self.answered(self.read_version(model, version)).await
    }

    async fn versions(&self, model: &ModelName) -> Result<Vec<VersionRecord>, StoreError> {
        self.answered(self.list_versions(model)).await
    }

    async fn models(&self) -> Result<Vec<ModelName>, StoreError> {
        self.answered(self.list_models()).await
    }
}

impl SqlStore {
    async fn reserve(
        &self,
        by: &Reservation,
        name_of: VersionNamer<'_>,
    ) -> Result<VersionRecord, StoreError> {
        for _ in 0..TRIES {
            let mut tx = self.begin().await?;
            fence(&mut tx, by.run, by.epoch).await?;
            if let Some(record) = reserved_in(&mut tx, by).await? {
                return Ok(record);
            }
            let taken = sqlx::query(sql!("SELECT name FROM refit.versions WHERE model = $1 ORDER BY seq"))
                .bind(by.model.as_str())
                .fetch_all(&mut *tx)
                .await?;
            let name = name_of(&rows::all(&taken, |row| word::<VersionName>(row, "name"))?);
            let made = sqlx::query(sql!(
                "INSERT INTO refit.versions (model, name, store, state, run, step, base_url, manifest_sha256, created_at)
                 VALUES ($1, $2, $3, 'reserved', $4, $5, '', '', $6) ON CONFLICT DO NOTHING"
            ))
            .bind(by.model.as_str())
            .bind(name.as_str())
            .bind(by.store.as_str())
            .bind(by.run.0)
            .bind(by.step.as_str())
            .bind(by.at)
            .execute(&mut *tx)
            .await?;
            tx.commit().await?;
            if made.rows_affected() == 1 {
                return Ok(VersionRecord {
                    model: by.model.clone(),
                    name,
                    store: by.store.clone(),
                    state: VersionState::Reserved,
                    run: Some(by.run),
                    place: None,
                    base_url: String::new(),
                    manifest_sha256: String::new(),
                    manifest: None,
                    created_at: by.at,
                });
            }
        }
        Err(StoreError::Broken(format!("no free version name was found for model `{}`", by.model)))
    }

    async fn change_version(
        &self,
        model: &ModelName,
        name: &VersionName,
        state: VersionState,
        sealed: Option<(&Manifest, &str, &str)>,
        by: Option<(RunId, Epoch)>,
    ) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        if let Some((run, epoch)) = by {
            fence(&mut tx, run, epoch).await?;
        }
        set_state_in(&mut tx, model, name, state).await?;
        if let Some((manifest, base_url, sha256)) = sealed {
            sqlx::query(sql!(
                "UPDATE refit.versions SET manifest = $3, base_url = $4, manifest_sha256 = $5
                 WHERE model = $1 AND name = $2"
            ))
            .bind(model.as_str())
            .bind(name.as_str())
            .bind(doc(manifest)?)
            .bind(text(base_url))
            .bind(sha256)
            .execute(&mut *tx)
            .await?;
            let actor = match manifest.run {
                Some(run) => ReleaseActor::Run { run },
                None => ReleaseActor::Human { name: String::new() },
            };
            let by = ChangedBy { actor, reason: String::new(), at: manifest.sealed_at };
            audit_version(&mut tx, model, name, VersionAction::Sealed, &by).await?;
        }
        Ok(tx.commit().await?)
    }

    async fn adopt(&self, record: &VersionRecord, by: &ChangedBy) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        let made = sqlx::query(sql!(
            "INSERT INTO refit.versions
                 (model, name, store, state, run, base_url, manifest_sha256, manifest, created_at, place)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT DO NOTHING"
        ))
        .bind(record.model.as_str())
        .bind(record.name.as_str())
        .bind(record.store.as_str())
        .bind(state_word(record.state))
        .bind(record.run.map(|run| run.0))
        .bind(text(&record.base_url))
        .bind(&record.manifest_sha256)
        .bind(doc_opt(record.manifest.as_ref())?)
        .bind(record.created_at)
        .bind(record.place.as_deref().map(text))
        .execute(&mut *tx)
        .await?;
        if made.rows_affected() == 1 {
            audit_version(&mut tx, &record.model, &record.name, VersionAction::Adopted, by).await?;
            return Ok(tx.commit().await?);
        }
        let known = version_in(&mut tx, &record.model, &record.name).await?;
        if let Some(known) = &known
            && !known.state.is_whole()
        {
            return Err(StoreError::Unusable {
                problem: format!(
                    "the name `{}` of model `{}` was taken before and is not given again",
                    record.name, record.model
                ),
                hint: "copy the files to a directory of another name and adopt that".to_owned(),
            });
        }
        if known.is_some_and(|known| known.manifest_sha256 == record.manifest_sha256) {
            return Ok(());
        }
        Err(StoreError::Unusable {
            problem: format!(
                "version `{}` of model `{}` is known, with other files",
                record.name, record.model
            ),
            hint: "adopt it under another name".to_owned(),
        })
    }

    async fn read_version(
        &self,
        model: &ModelName,
        name: &VersionName,
    ) -> Result<Option<VersionRecord>, StoreError> {
        let row = sqlx::query(sql!("SELECT * FROM refit.versions WHERE model = $1 AND name = $2"))
            .bind(model.as_str())
            .bind(name.as_str())
            .fetch_optional(&self.parts.reader)
            .await?;
        row.as_ref().map(version).transpose()
    }

    async fn list_versions(&self, model: &ModelName) -> Result<Vec<VersionRecord>, StoreError> {
        let found = sqlx::query(sql!(
            "SELECT * FROM refit.versions WHERE model = $1 AND state IN ('sealed', 'bad')
             ORDER BY created_at DESC, seq DESC"
        ))
        .bind(model.as_str())
        .fetch_all(&self.parts.reader)
        .await?;
        rows::all(&found, version)
    }

    async fn list_models(&self) -> Result<Vec<ModelName>, StoreError> {
        let found = sqlx::query(sql!(
            "SELECT model FROM refit.versions UNION SELECT model FROM refit.releases
             UNION SELECT model FROM refit.runs ORDER BY model"
        ))
        .fetch_all(&self.parts.reader)
        .await?;
        rows::all(&found, |row| word(row, "model"))
    }
}

/// What this run and step reserved before.
async fn reserved_in(
    connection: &mut Connection,
    by: &Reservation,
) -> Result<Option<VersionRecord>, StoreError> {
    let row = sqlx::query(sql!(
        "SELECT * FROM refit.versions WHERE run = $1 AND step = $2 AND state <> 'abandoned'"
    ))
    .bind(by.run.0)
    .bind(by.step.as_str())
    .fetch_optional(connection)
    .await?;
    row.as_ref().map(version).transpose()
}

/// Changes the state of a version.
async fn set_state_in(
    connection: &mut Connection,
    model: &ModelName,
    name: &VersionName,
    state: VersionState,
) -> Result<(), StoreError> {
    let changed = sqlx::query(sql!(
        "UPDATE refit.versions SET state = $3
         WHERE model = $1 AND name = $2 AND state NOT IN ('deleting', 'deleted')"
    ))
    .bind(model.as_str())
    .bind(name.as_str())
    .bind(state_word(state))
    .execute(connection)
    .await?;
    if changed.rows_affected() == 1 {
        Ok(())
    } else {
        Err(StoreError::Broken(format!("version `{name}` of model `{model}` is not known")))
    }
}
