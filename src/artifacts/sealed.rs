//! Sealed versions: listed, verified, fetched. What a store says is checked
//! like any foreign text before it is used as a path or a size.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path as FsPath;

use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

use super::compress::Plain;
use super::names::{self, OddName};
use super::source::{LocalFile, Source};
use super::{MANIFEST, object_below, place_path, store_error, version_path};
use crate::adapter::{AdapterError, ArtifactStore};
use crate::domain::id::{ModelName, VersionName};
use crate::domain::version::{ContentEncoding, Manifest, ManifestFile, Stored};

/// No manifest and no claim is longer.
const LONGEST_DOCUMENT: u64 = 16 * 1024 * 1024;
/// Decompressed in one go.
const PIECE: usize = 16 * 1024;
/// Files read at once.
const AT_ONCE: usize = 4;

/// Why a version is not what its manifest says.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SealedError {
    /// No manifest: whatever is there is no version.
    #[error("{label} has no sealed version {model}/{version}")]
    NotSealed {
        /// The store.
        label: String,
        /// The model.
        model: ModelName,
        /// The version.
        version: VersionName,
    },
    /// The manifest cannot be understood, or is another version's.
    #[error("the manifest of {model}/{version} in {label} is damaged: {cause}")]
    BadManifest {
        /// The store.
        label: String,
        /// The model.
        model: ModelName,
        /// The version.
        version: VersionName,
        /// What is wrong.
        cause: String,
    },
    /// A file is not there, or is not the one that was sealed.
    #[error("{path} of {model}/{version} in {label} is damaged: {cause}")]
    BadFile {
        /// The store.
        label: String,
        /// The model.
        model: ModelName,
        /// The version.
        version: VersionName,
        /// The file.
        path: String,
        /// What is wrong.
        cause: String,
    },
    /// It cannot be written to this machine.
    #[error("cannot write the files of {model}/{version} to {dir}: {cause}")]
    Disk {
        /// The model.
        model: ModelName,
        /// The version.
        version: VersionName,
        /// Where to.
        dir: String,
        /// Why.
        cause: String,
    },
    /// The store did not do what was asked.
    #[error(transparent)]
    Store(#[from] AdapterError),
}

impl SealedError {
    /// Whether what the store has is not what was sealed; else nobody could see whether it is.
    pub fn is_damage(&self) -> bool {
        match self {
            SealedError::NotSealed { .. } | SealedError::BadManifest { .. } | SealedError::BadFile { .. } => {
                true
            }
            SealedError::Disk { .. } | SealedError::Store(_) => false,
        }
    }

    /// Whether the same may work a little later.
    pub fn is_transient(&self) -> bool {
        match self {
            SealedError::Store(error) => error.is_transient(),
            SealedError::NotSealed { .. }
            | SealedError::BadManifest { .. }
            | SealedError::BadFile { .. }
            | SealedError::Disk { .. } => false,
        }
    }
}

impl From<SealedError> for AdapterError {
    fn from(error: SealedError) -> Self {
        let cause = error.to_string();
        let damaged = |service: String, model: &ModelName, version: &VersionName| AdapterError::Rejected {
            service,
            action: format!("give {model}/{version}"),
            cause,
        };
        match error {
            SealedError::Store(error) => error,
            SealedError::NotSealed { label, model, version }
            | SealedError::BadManifest { label, model, version, .. }
            | SealedError::BadFile { label, model, version, .. } => damaged(label, &model, &version),
            SealedError::Disk { model, version, dir, .. } => damaged(dir, &model, &version),
        }
    }
}

/// A version, known to be sealed.
#[derive(Debug, Clone, PartialEq)]
pub struct SealedVersion {
    /// Its manifest.
    pub manifest: Manifest,
    /// SHA-256 of the manifest's bytes in lower-case hex.
    pub sha256: String,
}

/// The names of all sealed versions of `model`, sorted as text.
pub async fn list_sealed(store: &ArtifactStore, model: &ModelName) -> Result<Vec<VersionName>, AdapterError> {
    let below = store.prefix.clone().join(model.as_str());
    let failed = |error| store_error(store, "list versions", error);
    let listing = store.objects.list_with_delimiter(Some(&below)).await.map_err(failed)?;
    let names = listing.common_prefixes.iter().filter_map(|place| place.filename()?.parse().ok());
    let sealed: Vec<Option<VersionName>> = stream::iter(names.collect::<Vec<VersionName>>())
        .map(|name| async move {
            match store.objects.head(&version_path(store, model, &name).join(MANIFEST)).await {
                Ok(_) => Ok(Some(name)),
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(store_error(store, "list versions", error)),
            }
        })
        .buffer_unordered(AT_ONCE * 2)
        .try_collect()
        .await?;
    Ok(sealed.into_iter().flatten().collect::<BTreeSet<_>>().into_iter().collect())
}

/// The manifest of a version, if it is sealed.
pub async fn read_manifest(
    store: &ArtifactStore,
    model: &ModelName,
    version: &VersionName,
) -> Result<Option<SealedVersion>, SealedError> {
    let at = version_path(store, model, version).join(MANIFEST);
    let Some(bytes) = read_document(store, &at).await? else { return Ok(None) };
    let bad = |cause: String| SealedError::BadManifest {
        label: store.label.clone(),
        model: model.clone(),
        version: version.clone(),
        cause,
    };
    let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
    if manifest.schema != 1 {
        return Err(bad(format!("its layout is {}; this refit knows 1", manifest.schema)));
    }
    if &manifest.model != model || &manifest.version != version {
        return Err(bad(format!("it is the one of {}/{}", manifest.model, manifest.version)));
    }
    let paths = manifest.files.iter().map(|file| file.path.as_str());
    names::check_all(paths).map_err(|odd: OddName| bad(odd.to_string()))?;
    let stored = manifest.files.iter().map(ManifestFile::stored_path);
    names::check_all(stored).map_err(|odd: OddName| bad(odd.to_string()))?;
    Ok(Some(SealedVersion { sha256: hex::encode(Sha256::digest(&bytes)), manifest }))
}

/// Reads a version whole and compares every file with the manifest.
pub async fn verify(
    store: &ArtifactStore,
    model: &ModelName,
    version: &VersionName,
) -> Result<SealedVersion, SealedError> {
    let sealed = required(store, model, version).await?;
    Reader::new(store, model, version).check_all(&sealed.manifest).await?;
    Ok(sealed)
}

/// Looks whether every file of a version is there with the size that was sealed: one list, and nothing is read.
pub async fn verify_presence(
    store: &ArtifactStore,
    model: &ModelName,
    version: &VersionName,
) -> Result<SealedVersion, SealedError> {
    let sealed = required(store, model, version).await?;
    Reader::new(store, model, version).find_all(&sealed.manifest).await?;
    Ok(sealed)
}

/// The same of a version that lies at `place` and whose manifest is kept elsewhere.
pub async fn verify_presence_in_place(
    store: &ArtifactStore,
    place: &str,
    manifest: &Manifest,
) -> Result<(), SealedError> {
    Reader::in_place(store, place, manifest)?.find_all(manifest).await
}

/// Reads every file of a version that lies at `place`, below the store's own prefix, and compares it with
/// the manifest that is kept elsewhere.
pub async fn verify_in_place(
    store: &ArtifactStore,
    place: &str,
    manifest: &Manifest,
) -> Result<(), SealedError> {
    Reader::in_place(store, place, manifest)?.check_all(manifest).await
}

/// Brings the files of a version, verified, to `dir`, which is then complete
/// or not there. A `dir` that has them already is checked and kept.
pub async fn fetch(
    store: &ArtifactStore,
    model: &ModelName,
    version: &VersionName,
    dir: &FsPath,
) -> Result<SealedVersion, SealedError> {
    let sealed = required(store, model, version).await?;
    Reader::new(store, model, version).fetch_all(&sealed.manifest, dir).await?;
    Ok(sealed)
}

/// The same for a version whose manifest is known; that of the store is not looked at.
pub async fn fetch_files(
    store: &ArtifactStore,
    manifest: &Manifest,
    dir: &FsPath,
) -> Result<(), SealedError> {
    Reader::new(store, &manifest.model, &manifest.version).fetch_all(manifest, dir).await
}

/// The same for a version that lies at `place` and whose manifest is kept elsewhere.
pub async fn fetch_in_place(
    store: &ArtifactStore,
    place: &str,
    manifest: &Manifest,
    dir: &FsPath,
) -> Result<(), SealedError> {
    Reader::in_place(store, place, manifest)?.fetch_all(manifest, dir).await
}

async fn required(
    store: &ArtifactStore,
    model: &ModelName,
    version: &VersionName,
) -> Result<SealedVersion, SealedError> {
    read_manifest(store, model, version).await?.ok_or_else(|| SealedError::NotSealed {
        label: store.label.clone(),
        model: model.clone(),
        version: version.clone(),
    })
}
/// Whether `dir` has every file of `manifest`, unchanged.
pub async fn has_all(dir: &FsPath, manifest: &Manifest) -> bool {
    for file in &manifest.files {
        let local = LocalFile {
            path: file.path.clone(),
            source: dir.join(&file.path),
            sha256: Some(file.sha256.clone()),
        };
        if Source::describe(&local).await.is_err() {
            return false;
        }
    }
    true
}

/// A small object's bytes, if it is there.
pub(super) async fn read_document(
    store: &ArtifactStore,
    at: &Path,
) -> Result<Option<bytes::Bytes>, AdapterError> {
    let failed = |error| store_error(store, &format!("read {at}"), error);
    let found = match store.objects.get(at).await {
        Ok(found) => found,
        Err(object_store::Error::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    if found.meta.size > LONGEST_DOCUMENT {
        return Err(AdapterError::Rejected {
            service: store.label.clone(),
            action: format!("read {at}"),
            cause: format!("it has {} bytes", found.meta.size),
        });
    }
    found.bytes().await.map(Some).map_err(failed)
}

/// Reads files of one version.
pub(super) struct Reader<'a> {
    store: &'a ArtifactStore,
    model: &'a ModelName,
    version: &'a VersionName,
    /// Where its objects are.
    place: Path,
}

impl<'a> Reader<'a> {
    pub(super) fn new(store: &'a ArtifactStore, model: &'a ModelName, version: &'a VersionName) -> Self {
        Self { store, model, version, place: version_path(store, model, version) }
    }

    fn in_place(store: &'a ArtifactStore, place: &str, manifest: &'a Manifest) -> Result<Self, AdapterError> {
        let place = place_path(store, place)?;
        Ok(Self { store, model: &manifest.model, version: &manifest.version, place })
    }

    async fn check_all(&self, manifest: &Manifest) -> Result<(), SealedError> {
        let files: Vec<_> = manifest.files.iter().map(|file| self.check(file).boxed()).collect();
        stream::iter(files).buffer_unordered(AT_ONCE).try_collect::<()>().await
    }

    /// Whether the store has all files, by their names and sizes.
    async fn find_all(&self, manifest: &Manifest) -> Result<(), SealedError> {
        let failed = |error| SealedError::from(store_error(self.store, "list files", error));
        let listing = self.store.objects.list(Some(&self.place)).map_ok(|meta| (meta.location, meta.size));
        let there: BTreeMap<Path, u64> = listing.try_collect().await.map_err(failed)?;
        for file in &manifest.files {
            let at = object_below(self.store, &self.place, file.stored_path())?;
            let size = file.stored_size();
            match there.get(&at) {
                Some(found) if *found == size => {}
                Some(found) => return Err(self.bad(&file.path, format!("it has {found} bytes, not {size}"))),
                None => return Err(self.bad(&file.path, "it is not there".to_owned())),
            }
        }
        Ok(())
    }

    /// Brings all files to `dir`, which is then complete or not there.
    async fn fetch_all(&self, manifest: &Manifest, dir: &FsPath) -> Result<(), SealedError> {
        if let Err(odd) = names::check_all(manifest.files.iter().map(|file| file.path.as_str())) {
            return Err(self.bad(&odd.path, odd.rule));
        }
        if has_all(dir, manifest).await {
            return Ok(());
        }
        let disk = |error: std::io::Error| self.disk(dir, &error);
        let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(FsPath::new("."));
        tokio::fs::create_dir_all(parent).await.map_err(disk)?;
        let fresh = tempfile::Builder::new().prefix(".fetching-").tempdir_in(parent).map_err(disk)?;
        let files = manifest.files.iter().map(|file| self.fetch(file, fresh.path()).boxed());
        stream::iter(files.collect::<Vec<_>>()).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        match tokio::fs::remove_dir_all(dir).await {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(disk(error)),
        }
        tokio::fs::rename(fresh.path(), dir).await.map_err(disk)
    }

    /// Whether the store's file is the one that `file` describes.
    pub(super) async fn check(&self, file: &ManifestFile) -> Result<(), SealedError> {
        let found = self.read(file, &mut tokio::io::sink()).await?;
        match &file.stored {
            Some(stored) if *stored != found => {
                Err(self.bad(&file.path, format!("compressed, its SHA-256 is {}", found.sha256)))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// How the store has the file that `file` describes but for its compressed size and hash.
    pub(super) async fn stored(&self, file: &ManifestFile) -> Result<Stored, SealedError> {
        self.read(file, &mut tokio::io::sink()).await
    }

    async fn fetch(&self, file: &ManifestFile, dir: &FsPath) -> Result<(), SealedError> {
        let to = dir.join(&file.path);
        let disk = |error: std::io::Error| self.disk(&to, &error);
        if let Some(parent) = to.parent() {
            tokio::fs::create_dir_all(parent).await.map_err(disk)?;
        }
        let mut out = tokio::fs::File::create_new(&to).await.map_err(disk)?;
        self.read(file, &mut out).await?;
        out.flush().await.map_err(disk)
    }

    /// Copies the file to `out`, never more than it should have, and compares size and hash.
    /// Returns how it is stored.
    async fn read(
        &self,
        file: &ManifestFile,
        out: &mut (impl tokio::io::AsyncWrite + Unpin),
    ) -> Result<Stored, SealedError> {
        let bad = |cause: String| self.bad(&file.path, cause);
        let at = object_below(self.store, &self.place, file.stored_path())?;
        let failed = |error| SealedError::from(store_error(self.store, &format!("read {at}"), error));
        let found = match self.store.objects.get(&at).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Err(bad("it is not there".to_owned())),
            Err(error) => return Err(failed(error)),
        };
        let stored_size = found.meta.size;
        let mut plain = match &file.stored {
            None if stored_size != file.size => {
                return Err(bad(format!("it has {stored_size} bytes, not {}", file.size)));
            }
            None => Plain::as_it_is(file.size),
            Some(stored) => match stored.content_encoding {
                ContentEncoding::Gzip => Plain::of_gzip(file.size),
            },
        };
        let (mut hash, mut stream) = (Sha256::new(), found.into_stream());
        while let Some(chunk) = stream.try_next().await.map_err(failed)? {
            if file.stored.is_some() {
                hash.update(&chunk);
            }
            // Piece by piece: a few bytes may become a thousand times as many.
            for piece in chunk.chunks(PIECE) {
                let bytes = plain.next(piece).map_err(bad)?;
                out.write_all(&bytes).await.map_err(|error| self.disk(FsPath::new(&file.path), &error))?;
            }
        }
        let (rest, sha256) = plain.end().map_err(bad)?;
        out.write_all(&rest).await.map_err(|error| self.disk(FsPath::new(&file.path), &error))?;
        if sha256 != file.sha256 {
            return Err(bad(format!("its SHA-256 is {sha256}")));
        }
        Ok(Stored {
            path: file.stored_path().to_owned(),
            content_encoding: ContentEncoding::Gzip,
            size: stored_size,
            sha256: hex::encode(hash.finalize()),
        })
    }

    fn bad(&self, path: &str, cause: String) -> SealedError {
        SealedError::BadFile {
            label: self.store.label.clone(),
            model: self.model.clone(),
            version: self.version.clone(),
            path: path.to_owned(),
            cause,
        }
    }

    fn disk(&self, dir: &FsPath, error: &std::io::Error) -> SealedError {
        SealedError::Disk {
            model: self.model.clone(),
            version: self.version.clone(),
            dir: dir.display().to_string(),
            cause: error.to_string(),
        }
    }
}
