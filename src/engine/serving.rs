//! What of a version apps are told, once its files were looked at; and whether what serves needs no other word.
//!
//! Apps find a version where its store is today, by the settings of the process that writes the release. A release is
//! never written anew for an address alone, by nobody who did not ask: processes that know a store by two addresses
//! would take turns.

use super::Engine;
use super::reconcile::shows;
use crate::adapter::{AdapterError, ArtifactStore};
use crate::artifacts::sealed::SealedError;
use crate::domain::id::Generation;
use crate::domain::release::{Assignment, Release, Served};
use crate::domain::version::VersionRecord;
use crate::store::StoreError;

impl Engine {
    /// A version whose manifest and files are what was sealed: all of it is read.
    pub(super) async fn verified(&self, record: &VersionRecord) -> Result<Served, SealedError> {
        let store = self.store_of(record)?;
        crate::artifacts::verify_known(store, record).await?;
        Ok(served(store, record))
    }

    /// A version whose manifest and files are there. Whoever rolls back waits for this, and the version it goes
    /// to was read whole when it was promoted; `check_rollback` reads it again once it serves.
    pub(super) async fn present(&self, record: &VersionRecord) -> Result<Served, SealedError> {
        let store = self.store_of(record)?;
        crate::artifacts::verify_presence(store, record).await?;
        Ok(served(store, record))
    }

    fn store_of(&self, record: &VersionRecord) -> Result<&ArtifactStore, AdapterError> {
        self.services.stores.get(&record.store).ok_or_else(|| AdapterError::Rejected {
            service: "refit.toml".to_owned(),
            action: format!("find store `{}`", record.store),
            cause: "it has no such store".to_owned(),
        })
    }

    /// Whether `wanted` is what is decided already, so that showing it is all that is left to do. Where somebody
    /// changed the host by hand it takes another generation: one generation is one assignment.
    pub(super) async fn is_decided(
        &self,
        current: &Release,
        wanted: &Assignment,
    ) -> Result<bool, AdapterError> {
        let Assignment { champion, canary, previous: _ } = &current.desired;
        Ok((champion, canary) == (&wanted.champion, &wanted.canary)
            && !self.is_changed_by_hand(current).await?)
    }

    /// Whether nobody has decided otherwise since `release` was read.
    pub(super) async fn is_newest(&self, release: &Release) -> Result<bool, StoreError> {
        let newest = self.store.release(&release.model, &release.target).await?;
        Ok(newest.map_or(Generation(0), |newest| newest.generation) == release.generation)
    }

    async fn is_changed_by_hand(&self, release: &Release) -> Result<bool, AdapterError> {
        // Whoever shows a release hears that there is no such target.
        let Some(host) = self.services.targets.get(&release.target) else { return Ok(false) };
        match host.read(&release.model).await {
            Ok(observed) => Ok(observed.is_some_and(|observed| {
                let document = observed.document;
                document.instance == self.services.instance
                    && document.generation == release.generation
                    && !shows(&document, &release.desired)
            })),
            // It shows what refit never wrote.
            Err(AdapterError::Conflict { .. }) => Ok(true),
            // What it shows is not known: that all is well is said by nobody then.
            Err(error) => Err(error),
        }
    }
}

/// A version of `store` that was looked at: apps find it where the store is today, wherever it was when it was published.
fn served(store: &ArtifactStore, record: &VersionRecord) -> Served {
    let base_url = store.base_url_of(record).unwrap_or_else(|error| {
        tracing::debug!(version = %record.name, "The address of {} stays as it was: {error}", record.name);
        record.base_url.clone()
    });
    Served { version: record.name.clone(), base_url, manifest_sha256: record.manifest_sha256.clone() }
}
