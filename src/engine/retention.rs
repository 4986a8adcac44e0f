//! Deletes versions that nothing needs, so that it may be stopped at any point:
//! marked in the database first, then gone from the store, then recorded as
//! deleted. A deletion that was cut off is gone on with by the next one.

use std::sync::Arc;

use serde::Serialize;

use super::Engine;
use super::release::ReleaseError;
use crate::adapter::AdapterError;
use crate::artifacts::erase;
use crate::domain::history::ChangedBy;
use crate::domain::id::{ModelName, VersionName};
use crate::domain::retention::{Fate, Holdings, Policy, judge};
use crate::domain::version::{VersionRecord, VersionState};
use crate::store::{Condemned, StoreError};

/// A version, and what becomes of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Judged {
    /// The model.
    pub model: ModelName,
    /// The version.
    pub version: VersionName,
    /// Its state.
    pub state: VersionState,
    /// Bytes in the store, as far as they are known.
    pub bytes: u64,
    /// What becomes of it.
    #[serde(flatten)]
    pub fate: Fate,
}

/// What came of deleting one version.
#[derive(Debug)]
pub enum Deletion {
    /// It is gone.
    Done {
        /// Its bytes.
        bytes: u64,
    },
    /// Something came to need it since it was looked at.
    Kept(Fate),
    /// The store did not do it; the next deletion goes on with it.
    Failed(AdapterError),
}

impl Engine {
    /// Everything that may need a version of `model`, with what the hosts show now.
    async fn everything_held(&self, model: &ModelName, policy: &Policy) -> Result<Holdings, StoreError> {
        let since = self.clock.now() - policy.ages.served;
        let mut holdings = self.store.holdings(model, since).await?;
        for release in &holdings.releases {
            let Some(host) = self.services.targets.get(&release.target) else {
                holdings.silent.push(release.target.clone());
                continue;
            };
            match host.read(model).await {
                Ok(None) => {}
                Ok(Some(observed)) => {
                    let document = observed.document;
                    let canary = document.canary.map(|canary| canary.served);
                    for served in document.champion.into_iter().chain(canary) {
                        holdings.shown.insert(served.version, release.target.clone());
                    }
                }
                Err(error) => {
                    tracing::warn!(%model, target = %release.target,
                        "`{}` does not say what it shows of `{model}`, so no version of it is deleted: {error}",
                        release.target);
                    holdings.silent.push(release.target.clone());
                }
            }
        }
        Ok(holdings)
    }

    /// What would become of every version of `model`; nothing is changed.
    pub async fn plan_retention(
        &self,
        model: &ModelName,
        policy: &Policy,
    ) -> Result<Vec<Judged>, ReleaseError> {
        let holdings = self.everything_held(model, policy).await?;
        let now = self.clock.now();
        let mut judged = vec![];
        for record in &holdings.versions {
            let fate = judge(&record.name, &holdings, policy, now);
            if fate == Fate::Nothing {
                continue;
            }
            judged.push(Judged {
                model: model.clone(),
                version: record.name.clone(),
                state: record.state,
                bytes: self.size_of(record).await,
                fate,
            });
        }
        Ok(judged)
    }

    /// Bytes of a version; of half an upload, what the store has of it.
    async fn size_of(&self, record: &VersionRecord) -> u64 {
        if let Some(manifest) = &record.manifest {
            return manifest.files.iter().map(|file| file.size).sum();
        }
        let Some(store) = self.services.stores.get(&record.store) else { return 0 };
        erase::half_size(store, record, self.services.instance).await.unwrap_or_else(|error| {
            tracing::debug!(version = %record.name, "The size of half an upload is not known: {error}");
            0
        })
    }

    /// Deletes one version if nothing needs it at this moment.
    ///
    /// # Errors
    /// The database's; what the store refuses is in the answer.
    pub async fn delete_version(
        self: &Arc<Self>,
        model: &ModelName,
        version: &VersionName,
        policy: &Policy,
        by: &ChangedBy,
    ) -> Result<Deletion, StoreError> {
        // The hosts are asked before the transaction, which reads all the rest itself.
        let seen = self.everything_held(model, policy).await?;
        let (shown, silent, now) = (seen.shown, seen.silent, self.clock.now());
        let decide = |holdings: &Holdings| {
            let (shown, silent) = (shown.clone(), silent.clone());
            judge(version, &Holdings { shown, silent, ..holdings.clone() }, policy, now)
        };
        let since = now - policy.ages.served;
        let record = match self.store.condemn_version(model, version, since, &decide, by).await? {
            Condemned::Deleting(record) => record,
            Condemned::Kept(fate) => return Ok(Deletion::Kept(fate)),
        };
        let Some(store) = self.services.stores.get(&record.store) else {
            return Ok(Deletion::Failed(AdapterError::Rejected {
                service: "refit.toml".to_owned(),
                action: format!("find store `{}`", record.store),
                cause: "it has no such store".to_owned(),
            }));
        };
        match erase::version(store, &record, self.services.instance).await {
            Ok(erased) => {
                let at = self.clock.now();
                let by = ChangedBy { at, ..by.clone() };
                self.store.version_deleted(model, version, &by).await?;
                tracing::info!(%model, %version, "Version {version} of `{model}` was deleted");
                Ok(Deletion::Done { bytes: erased.bytes })
            }
            Err(error) => Ok(Deletion::Failed(error)),
        }
    }

    /// Deletes every version of `model` that nothing needs; says of each what came of it.
    pub async fn collect_versions(
        self: &Arc<Self>,
        model: &ModelName,
        policy: &Policy,
        by: &ChangedBy,
    ) -> Result<Vec<(VersionName, Deletion)>, StoreError> {
        let holdings = self.everything_held(model, policy).await?;
        let now = self.clock.now();
        let mut done = vec![];
        for record in holdings.versions.iter().rev() {
            if matches!(judge(&record.name, &holdings, policy, now), Fate::Deleted { .. }) {
                let deletion = self.delete_version(model, &record.name, policy, by).await?;
                done.push((record.name.clone(), deletion));
            }
        }
        Ok(done)
    }
}
