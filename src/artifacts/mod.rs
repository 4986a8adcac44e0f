//! Where versions live: all files of one training below `<model>/<version>/`,
//! sealed by `manifest.json`.
//!
//! `_claim.json` is written first and says whose the place is; every file is
//! written only where none is; the manifest is written last. No manifest, no
//! version: nothing else here ever lists or reads a place without one.

mod buffers;
mod compress;
pub mod erase;
pub mod local;
pub mod names;
mod parts;
pub mod s3;
pub mod sealed;
pub mod source;
pub mod upload;
pub mod vercel_blob;

use object_store::path::Path;
use serde_json::Value;

use self::sealed::{SealedError, SealedVersion};
use crate::adapter::{Adapter, AdapterError, ArtifactStore, BuildError, Deps, build_of};
use crate::domain::id::{ModelName, VersionName};
use crate::domain::version::VersionRecord;
use crate::http_client::excerpt;

/// The last object of a version.
pub const MANIFEST: &str = "manifest.json";
/// The first object of a version.
pub const CLAIM: &str = "_claim.json";

/// The stores there are.
const ADAPTERS: &[Adapter<ArtifactStore>] = &[local::ADAPTER, s3::ADAPTER, vercel_blob::ADAPTER];

/// Makes the store of one table `[stores.*]` of `refit.toml`.
pub fn build(options: Value, deps: &Deps) -> Result<ArtifactStore, BuildError> {
    build_of("store", ADAPTERS, options, deps)
}

/// Reads a version whole and compares it with its manifest, and the manifest with what was
/// recorded of it when it was sealed.
pub async fn verify(
    store: &ArtifactStore,
    model: &ModelName,
    version: &VersionName,
    manifest_sha256: &str,
) -> Result<(), SealedError> {
    as_recorded(store, sealed::verify(store, model, version).await?, manifest_sha256)
}

/// Whether a manifest is the one that was recorded.
fn as_recorded(
    store: &ArtifactStore,
    sealed: SealedVersion,
    manifest_sha256: &str,
) -> Result<(), SealedError> {
    if sealed.sha256 == manifest_sha256 {
        return Ok(());
    }
    Err(SealedError::BadManifest {
        label: store.label.clone(),
        cause: format!("it is not the one that was sealed: SHA-256 {}", sealed.sha256),
        model: sealed.manifest.model,
        version: sealed.manifest.version,
    })
}

/// The same of a version as it is known: one that was adopted where it lay has its manifest in the
/// database only.
pub async fn verify_known(store: &ArtifactStore, record: &VersionRecord) -> Result<(), SealedError> {
    match (&record.place, &record.manifest) {
        (Some(place), Some(manifest)) => sealed::verify_in_place(store, place, manifest).await,
        (Some(_) | None, _) => verify(store, &record.model, &record.name, &record.manifest_sha256).await,
    }
}

/// Looks whether a known version has its manifest, and its files by their names and sizes; what is in them is
/// not read.
pub async fn verify_presence(store: &ArtifactStore, record: &VersionRecord) -> Result<(), SealedError> {
    match (&record.place, &record.manifest) {
        (Some(place), Some(manifest)) => sealed::verify_presence_in_place(store, place, manifest).await,
        (Some(_) | None, _) => {
            let sealed = sealed::verify_presence(store, &record.model, &record.name).await?;
            as_recorded(store, sealed, &record.manifest_sha256)
        }
    }
}

/// Where the objects of a version are that lies at `place`, below the store's own prefix.
pub fn place_path(store: &ArtifactStore, place: &str) -> Result<Path, AdapterError> {
    Path::parse(format!("{}/{place}", store.prefix).trim_matches('/'))
        .map_err(|source| store_error(store, &format!("find {place}"), source.into()))
}

/// Where a known version's objects are.
pub fn known_path(store: &ArtifactStore, record: &VersionRecord) -> Result<Path, AdapterError> {
    match &record.place {
        Some(place) => place_path(store, place),
        None => Ok(version_path(store, &record.model, &record.name)),
    }
}

/// Where a version's objects are.
fn version_path(store: &ArtifactStore, model: &ModelName, version: &VersionName) -> Path {
    store.prefix.clone().join(model.as_str()).join(version.as_str())
}

/// Where one file of a version is; `path` has passed `names::check`.
fn object_path(
    store: &ArtifactStore,
    model: &ModelName,
    version: &VersionName,
    path: &str,
) -> Result<Path, AdapterError> {
    object_below(store, &version_path(store, model, version), path)
}

/// The object `path` below `place`.
fn object_below(store: &ArtifactStore, place: &Path, path: &str) -> Result<Path, AdapterError> {
    // Not by parts: those would be percent-encoded, and an app would look for another name.
    Path::parse(format!("{place}/{path}"))
        .map_err(|source| store_error(store, &format!("name {path}"), source.into()))
}

/// What an object store's error means.
fn store_error(store: &ArtifactStore, action: &str, error: object_store::Error) -> AdapterError {
    use object_store::Error;
    let (service, action, cause) = (store.label.clone(), action.to_owned(), excerpt(&error.to_string()));
    let retry_after = under::<RetryAfter>(&error).map(|asked| asked.wait);
    match error {
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
            AdapterError::Denied { service, action, cause }
        }
        Error::AlreadyExists { .. } | Error::Precondition { .. } => AdapterError::Conflict { service, cause },
        Error::NotFound { .. }
        | Error::InvalidPath { .. }
        | Error::NotSupported { .. }
        | Error::NotModified { .. }
        | Error::NotImplemented { .. }
        | Error::UnknownConfigurationKey { .. } => AdapterError::Rejected { service, action, cause },
        error => match under::<std::io::Error>(&error).map(std::io::Error::kind) {
            Some(std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem) => {
                AdapterError::Denied { service, action, cause }
            }
            Some(_) | None => AdapterError::Unavailable { service, cause, retry_after },
        },
    }
}

/// The first error of this type under `error`, if there is one.
fn under<'e, E: std::error::Error + 'static>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e E> {
    let mut source = Some(error);
    while let Some(error) = source {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        source = error.source();
    }
    None
}

/// An object store's cause that says when to come back; object stores have no error for that.
#[derive(Debug, thiserror::Error)]
#[error("{source}")]
struct RetryAfter {
    wait: std::time::Duration,
    source: Box<dyn std::error::Error + Send + Sync>,
}
