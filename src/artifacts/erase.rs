//! Deletes a version: its manifest first, so that it is no version from then on
//! and never half of one, then its files, then its claim, by which the rest of
//! a deletion that was cut off is known as ours. Doing it again goes on.
//!
//! Deletes only what the manifest names, or what lies below a claim of this
//! very database and run; what anybody else put there stays.

use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use object_store::path::Path;

use super::sealed::{read_document, read_manifest};
use super::upload::Claim;
use super::{CLAIM, MANIFEST, known_path, object_below, store_error};
use crate::adapter::{AdapterError, ArtifactStore};
use crate::domain::id::InstanceId;
use crate::domain::version::VersionRecord;

/// What was deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Erased {
    /// Objects.
    pub objects: u64,
    /// Their bytes, as far as they are known.
    pub bytes: u64,
}

/// Deletes all objects of `record`, which no release may name any more.
///
/// # Errors
/// `Conflict` when the manifest or the claim that is there is another database's; nothing was deleted then.
pub async fn version(
    store: &ArtifactStore,
    record: &VersionRecord,
    instance: InstanceId,
) -> Result<Erased, AdapterError> {
    let place = known_path(store, record)?;
    if record.place.is_some() {
        return files(store, record, &place).await;
    }
    let claim = claim_of(store, &place).await?;
    let ours = claim.as_ref().is_some_and(|claim| claim.instance == instance && claim.run == record.run);
    if record.manifest.is_none() {
        // Half an upload: everything below our claim is ours, and nothing is without it.
        return if ours { below(store, &place).await } else { Ok(Erased::default()) };
    }
    if let Some(found) = read_manifest(store, &record.model, &record.name).await?
        && found.sha256 != record.manifest_sha256
    {
        return Err(AdapterError::Conflict {
            service: store.label.clone(),
            cause: format!("the manifest of {}/{} is not the one that was sealed", record.model, record.name),
        });
    }
    let mut erased = delete(store, &place.clone().join(MANIFEST)).await?;
    let of_files = files(store, record, &place).await?;
    erased.objects += of_files.objects;
    erased.bytes += of_files.bytes;
    if ours {
        erased.objects += delete(store, &place.join(CLAIM)).await?.objects;
    }
    Ok(erased)
}

/// How many bytes lie below the claim of half an upload; none when the place is not `record`'s.
pub async fn half_size(
    store: &ArtifactStore,
    record: &VersionRecord,
    instance: InstanceId,
) -> Result<u64, AdapterError> {
    let place = known_path(store, record)?;
    let claim = claim_of(store, &place).await?;
    if !claim.is_some_and(|claim| claim.instance == instance && claim.run == record.run) {
        return Ok(0);
    }
    let sizes = store.objects.list(Some(&place)).map_ok(|meta| meta.size);
    sizes
        .try_fold(0, |sum, size| async move { Ok(sum + size) })
        .await
        .map_err(|error| store_error(store, "list files", error))
}

async fn claim_of(store: &ArtifactStore, place: &Path) -> Result<Option<Claim>, AdapterError> {
    let found = read_document(store, &place.clone().join(CLAIM)).await?;
    Ok(found.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

/// The files that the manifest names.
async fn files(store: &ArtifactStore, record: &VersionRecord, place: &Path) -> Result<Erased, AdapterError> {
    let files = record.manifest.iter().flat_map(|manifest| &manifest.files);
    let mut erased = Erased::default();
    let mut paths = vec![];
    for file in files {
        paths.push(object_below(store, place, file.stored_path())?);
        erased.bytes += file.stored.as_ref().map_or(file.size, |stored| stored.size);
    }
    erased.objects = delete_all(store, paths).await?;
    Ok(erased)
}

/// Everything below `place`: a manifest first, the claim last.
async fn below(store: &ArtifactStore, place: &Path) -> Result<Erased, AdapterError> {
    let found: Vec<_> = store
        .objects
        .list(Some(place))
        .try_collect()
        .await
        .map_err(|error| store_error(store, "list files", error))?;
    let (manifest, claim) = (place.clone().join(MANIFEST), place.clone().join(CLAIM));
    let mut erased = Erased { objects: 0, bytes: found.iter().map(|meta| meta.size).sum() };
    erased.objects += delete(store, &manifest).await?.objects;
    let files = found.into_iter().map(|meta| meta.location);
    let files = files.filter(|path| path != &manifest && path != &claim).collect();
    erased.objects += delete_all(store, files).await?;
    erased.objects += delete(store, &claim).await?.objects;
    Ok(erased)
}

/// Deletes one object; one that is not there is deleted.
async fn delete(store: &ArtifactStore, at: &Path) -> Result<Erased, AdapterError> {
    match store.objects.delete(at).await {
        Ok(()) => Ok(Erased { objects: 1, bytes: 0 }),
        Err(object_store::Error::NotFound { .. }) => Ok(Erased::default()),
        Err(error) => Err(store_error(store, &format!("delete {at}"), error)),
    }
}

/// Deletes objects, several in one request where the store takes that; returns how many were there.
async fn delete_all(store: &ArtifactStore, paths: Vec<Path>) -> Result<u64, AdapterError> {
    let paths = futures::stream::iter(paths.into_iter().map(Ok)).boxed();
    let mut deleted = store.objects.delete_stream(paths);
    let mut count = 0;
    while let Some(answer) = deleted.next().await {
        match answer {
            Ok(_) => count += 1,
            Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(store_error(store, "delete files", error)),
        }
    }
    Ok(count)
}
