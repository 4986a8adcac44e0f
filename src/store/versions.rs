//! Versions: named, uploaded, sealed.

use async_trait::async_trait;

use super::StoreError;
use crate::domain::Timestamp;
use crate::domain::history::ChangedBy;
use crate::domain::id::{Epoch, ModelName, RunId, StepId, StoreName, VersionName};
use crate::domain::version::{Manifest, VersionRecord, VersionState};

/// Names a version, given all names ever taken of its model, oldest first.
pub type VersionNamer<'a> = &'a (dyn Fn(&[VersionName]) -> VersionName + Send + Sync);

/// Who reserves a version name, for what.
#[derive(Debug, Clone, PartialEq)]
pub struct Reservation {
    /// The run.
    pub run: RunId,
    /// The fence.
    pub epoch: Epoch,
    /// The step.
    pub step: StepId,
    /// The model.
    pub model: ModelName,
    /// The store that will hold it.
    pub store: StoreName,
    /// When.
    pub at: Timestamp,
}

/// Names versions and keeps what they are.
#[async_trait]
pub trait Versions: Send + Sync + 'static {
    /// Names a version, reserving it, with `name_of`, which is given all names ever taken of the model; the same
    /// for one run and step until it is abandoned.
    async fn reserve_version(
        &self,
        by: &Reservation,
        name_of: VersionNamer<'_>,
    ) -> Result<VersionRecord, StoreError>;
    /// Changes the state of a version; with its manifest, base URL and manifest hash when it is sealed.
    async fn set_version_state(
        &self,
        model: &ModelName,
        version: &VersionName,
        state: VersionState,
        sealed: Option<(&Manifest, &str, &str)>,
        fence: Option<(RunId, Epoch)>,
    ) -> Result<(), StoreError>;
    /// Records a version that was not made by a run.
    async fn adopt_version(&self, record: &VersionRecord, by: &ChangedBy) -> Result<(), StoreError>;
    /// A version.
    async fn version(
        &self,
        model: &ModelName,
        version: &VersionName,
    ) -> Result<Option<VersionRecord>, StoreError>;
    /// Sealed and bad versions of a model, newest first.
    async fn versions(&self, model: &ModelName) -> Result<Vec<VersionRecord>, StoreError>;
    /// All models that have a version, a release or a run.
    async fn models(&self) -> Result<Vec<ModelName>, StoreError>;
}
