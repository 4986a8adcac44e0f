//! What of a version apps are told, once its files were looked at; and whether what serves needs no other word.
//!
//! Apps find a version where its store is today, by the settings of the process that writes the release. A release is
//! never written anew for an address alone, by nobody who did not ask: processes that know a store by two addresses
//! would take turns.

use super::Engine;
use super::reconcile::shows;
use crate::adapter::{AdapterError, ArtifactStore};
use crate::artifacts::sealed::SealedError;
use crate::domain::release::{Assignment, Release, Served};
use crate::domain::version::VersionRecord;

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
    pub(super) async fn is_decided(&self, current: &Release, wanted: &Assignment) -> bool {
        let Assignment { champion, canary, previous: _ } = &current.desired;
        (champion, canary) == (&wanted.champion, &wanted.canary) && !self.is_changed_by_hand(current).await
    }

    async fn is_changed_by_hand(&self, release: &Release) -> bool {
        // Whoever shows a release hears that there is no such target, or that it does not answer.
        let Some(host) = self.services.targets.get(&release.target) else { return false };
        match host.read(&release.model).await {
            Ok(observed) => observed.is_some_and(|observed| {
                let document = observed.document;
                document.instance == self.services.instance
                    && document.generation == release.generation
                    && !shows(&document, &release.desired)
            }),
            Err(error) => {
                tracing::debug!(model = %release.model, target = %release.target,
                    "What `{}` shows is not known: {error}", release.target);
                false
            }
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
