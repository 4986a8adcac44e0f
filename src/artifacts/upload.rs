//! Makes a version: claims its place, sends the files that are not there yet,
//! compares what is there with what was sent, and seals it by its manifest.
//!
//! May be stopped at any point and called again: it goes on where it was. Only
//! whoever wrote the claim writes below it, so a file of the same name is ours
//! or damaged; it is read back before it is trusted. At most `BUFFERS` pieces
//! of `CHUNK` bytes are in memory, whatever the files' sizes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutMode, PutOptions, PutPayload};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::task::JoinSet;

use super::buffers::Buffers;
use super::compress::{Outgoing, stored_path};
use super::names::{self, OddName};
use super::parts::{PartError, joined, send_parts};
use super::sealed::{Reader, SealedError, SealedVersion, read_document, read_manifest};
use super::source::{LocalFile, Source, SourceError};
use super::{CLAIM, MANIFEST, object_path, store_error, version_path};
use crate::adapter::{AdapterError, ArtifactStore};
use crate::domain::Timestamp;
use crate::domain::id::{InstanceId, ModelName, RunId, VersionName};
use crate::domain::metric::Metrics;
use crate::domain::version::{ContentEncoding, Manifest, ManifestFile, Stored};

/// A file up to this size is one request; a larger one is sent in parts of it.
pub const CHUNK: usize = 8 * 1024 * 1024;
/// Pieces in memory at once.
const BUFFERS: usize = 4;
/// Files on their way at once.
const FILES_AT_ONCE: usize = 4;
/// S3 takes no more parts.
const MOST_PARTS: u64 = 10_000;

/// A version to be made.
pub struct Upload<'a> {
    /// Where.
    pub store: &'a ArtifactStore,
    /// The model.
    pub model: &'a ModelName,
    /// The name.
    pub version: &'a VersionName,
    /// The refit database that makes it.
    pub instance: InstanceId,
    /// The run that makes it; none for an adopted one.
    pub run: Option<RunId>,
    /// Its files.
    pub files: &'a [LocalFile],
    /// What the trainer said of it.
    pub metrics: &'a Metrics,
    /// Where it came from.
    pub provenance: &'a Value,
    /// Now.
    pub sealed_at: Timestamp,
}

/// How far an upload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The file.
    pub path: &'a str,
    /// What became of it.
    pub state: FileState,
    /// Bytes of all files that are there; of a compressed one, when it is whole.
    pub done: u64,
}

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileState {
    /// A part of it was sent.
    Sending,
    /// All of it was sent.
    Sent,
    /// It was there before.
    Found,
}

/// Why a version was not made.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum UploadError {
    /// The place is taken: another name is needed.
    #[error("{model}/{version} is taken in {label}: {by}")]
    ClaimedByOther {
        /// The store.
        label: String,
        /// The model.
        model: ModelName,
        /// The version.
        version: VersionName,
        /// By whom.
        by: String,
    },
    /// It is sealed with other content; sealed versions never change.
    #[error("{model}/{version} is sealed in {label} with other files; a sealed version never changes")]
    SealedDifferently {
        /// The store.
        label: String,
        /// The model.
        model: ModelName,
        /// The version.
        version: VersionName,
    },
    /// A file has a name that no version may have.
    #[error(transparent)]
    Name(#[from] OddName),
    /// A file cannot be read, or changed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A file is larger than a store takes in parts of `CHUNK`.
    #[error("{path} has {size} bytes; a file may have {}", MOST_PARTS * CHUNK as u64)]
    TooLarge {
        /// The file.
        path: String,
        /// Its size.
        size: u64,
    },
    /// What is in the store is not what was sent.
    #[error(transparent)]
    Sealed(#[from] SealedError),
    /// The store did not do what was asked.
    #[error(transparent)]
    Store(#[from] AdapterError),
}

/// `_claim.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Claim {
    /// The refit database.
    pub(super) instance: InstanceId,
    /// The run.
    pub(super) run: Option<RunId>,
}

/// What is to be done about an object that should be made.
enum Created {
    New,
    Exists,
}

/// Makes the version, or finds it made, and returns it sealed.
pub async fn publish(
    upload: &Upload<'_>,
    progress: &(dyn Fn(Progress<'_>) + Send + Sync),
) -> Result<SealedVersion, UploadError> {
    names::check_all(upload.files.iter().map(|file| file.path.as_str()))?;
    let stored: Vec<_> = upload.files.iter().map(|file| upload.stored_path(file)).collect();
    names::check_all(stored.iter().map(AsRef::as_ref))?;
    upload.claim().await?;
    if let Some(sealed) = read_manifest(upload.store, upload.model, upload.version).await? {
        return upload.same_as(sealed).await;
    }
    let there = upload.list().await?;
    upload.nothing_foreign(&there)?;
    let (buffers, done) = (Buffers::new(BUFFERS, CHUNK), AtomicU64::new(0));
    let placing = upload.files.iter().map(|file| {
        let (there, buffers, done) = (&there, &buffers, &done);
        let placing = async move {
            let mut parts = 0;
            let mut sent = |bytes: u64| {
                parts += bytes;
                let done = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
                progress(Progress { path: &file.path, state: FileState::Sending, done });
            };
            let there = there.get(upload.stored_path(file).as_ref());
            let (entry, found) = upload.place(file, there, buffers, &mut sent).await?;
            // Compressed parts are shorter than what they stand for, or longer: the file's own size counts.
            let done = match entry.size.checked_sub(parts) {
                Some(more) => done.fetch_add(more, Ordering::Relaxed) + more,
                None => done.fetch_sub(parts - entry.size, Ordering::Relaxed) - (parts - entry.size),
            };
            let state = if found { FileState::Found } else { FileState::Sent };
            progress(Progress { path: &file.path, state, done });
            Ok::<_, UploadError>(entry)
        };
        placing.boxed()
    });
    let placing: Vec<_> = placing.collect();
    let placing = stream::iter(placing).buffer_unordered(FILES_AT_ONCE);
    let mut files: Vec<ManifestFile> = placing.try_collect().await?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    upload.compare(&files).await?;
    upload.seal(files).await
}

impl Upload<'_> {
    fn object(&self, path: &str) -> Result<Path, AdapterError> {
        object_path(self.store, self.model, self.version, path)
    }

    /// Where the store has a file.
    fn stored_path<'f>(&self, file: &'f LocalFile) -> Cow<'f, str> {
        stored_path(&file.path, self.store.gzip)
    }

    fn reader(&self) -> Reader<'_> {
        Reader::new(self.store, self.model, self.version)
    }

    fn taken(&self, by: impl Into<String>) -> UploadError {
        UploadError::ClaimedByOther {
            label: self.store.label.clone(),
            model: self.model.clone(),
            version: self.version.clone(),
            by: by.into(),
        }
    }

    fn failed(&self, action: &str, error: object_store::Error) -> UploadError {
        UploadError::Store(store_error(self.store, action, error))
    }

    /// Something that was there a moment ago, or should be.
    fn unclear(&self, cause: &dyn std::fmt::Display) -> AdapterError {
        let (service, cause) = (self.store.label.clone(), cause.to_string());
        AdapterError::Unavailable { service, cause, retry_after: None }
    }

    /// Takes the place, or finds that it is ours.
    async fn claim(&self) -> Result<(), UploadError> {
        let at = self.object(CLAIM)?;
        let ours = Claim { instance: self.instance, run: self.run };
        if let Some(found) = read_document(self.store, &at).await? {
            return self.is_ours(&found, &ours);
        }
        if let Some(path) = self.list().await?.into_keys().next() {
            return Err(self.taken(format!("{path} is there, without a claim of refit")));
        }
        match self.create(&at, document(&ours)?).await? {
            Created::New => Ok(()),
            // Somebody was faster, or our own answer was lost.
            Created::Exists => match read_document(self.store, &at).await? {
                Some(found) => self.is_ours(&found, &ours),
                None => Err(self.taken("a claim that was there and is gone")),
            },
        }
    }

    fn is_ours(&self, found: &[u8], ours: &Claim) -> Result<(), UploadError> {
        match serde_json::from_slice::<Claim>(found) {
            Ok(claim) if &claim == ours => Ok(()),
            Ok(Claim { instance, run: Some(run) }) => {
                Err(self.taken(format!("by run {run} of refit instance {instance}")))
            }
            Ok(Claim { instance, run: None }) => Err(self.taken(format!("by refit instance {instance}"))),
            Err(_) => Err(self.taken("by a claim that this refit does not understand")),
        }
    }

    /// Writes a small object where none is.
    async fn create(&self, at: &Path, bytes: Vec<u8>) -> Result<Created, UploadError> {
        let options = PutOptions::from(PutMode::Create);
        match self.store.objects.put_opts(at, PutPayload::from(bytes), options).await {
            Ok(_) => Ok(Created::New),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                Ok(Created::Exists)
            }
            Err(error) => Err(self.failed(&format!("write {at}"), error)),
        }
    }

    /// Sizes of the objects of the version, by path; without the claim.
    async fn list(&self) -> Result<BTreeMap<String, u64>, UploadError> {
        let place = version_path(self.store, self.model, self.version);
        let listing = self.store.objects.list(Some(&place)).map_err(|error| self.failed("list files", error));
        let found = listing.map_ok(|meta| {
            let path: Option<Vec<_>> = meta
                .location
                .prefix_match(&place)
                .map(|parts| parts.map(|part| part.as_ref().to_owned()).collect());
            (path.unwrap_or_default().join("/"), meta.size)
        });
        let mut found: BTreeMap<String, u64> = found.try_collect().await?;
        found.remove(CLAIM);
        Ok(found)
    }

    /// Refuses a place where somebody without a claim of their own left files.
    fn nothing_foreign(&self, there: &BTreeMap<String, u64>) -> Result<(), UploadError> {
        let is_ours = |path: &String| self.files.iter().any(|file| self.stored_path(file) == path.as_str());
        match there.keys().find(|path| !is_ours(path)) {
            Some(path) => Err(self.taken(format!("{path} is there, and is not one of this version's files"))),
            None => Ok(()),
        }
    }

    /// Brings one file to its place; says whether it was there.
    async fn place(
        &self,
        file: &LocalFile,
        there: Option<&u64>,
        buffers: &Arc<Buffers>,
        sent: &mut (dyn FnMut(u64) + Send),
    ) -> Result<(ManifestFile, bool), UploadError> {
        if there.is_some() {
            let entry = Source::describe(file).await?;
            return self.found(file, entry).await;
        }
        let out = Outgoing::open(file, &self.stored_path(file)).await?;
        if out.size() <= CHUNK as u64 {
            self.send_whole(file, out, buffers).await
        } else {
            self.send_in_parts(file, out, buffers, sent).await
        }
    }

    /// Trusts a file that is there only after reading it.
    async fn found(
        &self,
        file: &LocalFile,
        mut entry: ManifestFile,
    ) -> Result<(ManifestFile, bool), UploadError> {
        let path = self.stored_path(file);
        let is_there = if path == file.path.as_str() {
            self.reader().check(&entry).await
        } else {
            // Compressed by us, perhaps by an earlier release of the library: what it stands for counts.
            let unknown = Stored {
                path: path.into_owned(),
                content_encoding: ContentEncoding::Gzip,
                size: 0,
                sha256: String::new(),
            };
            entry.stored = Some(unknown);
            self.reader().stored(&entry).await.map(|stored| entry.stored = Some(stored))
        };
        match is_there {
            Ok(()) => Ok((entry, true)),
            Err(SealedError::BadFile { path, cause, .. }) => {
                Err(self.taken(format!("{path} is there with other content: {cause}")))
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn send_whole(
        &self,
        file: &LocalFile,
        out: Outgoing,
        buffers: &Arc<Buffers>,
    ) -> Result<(ManifestFile, bool), UploadError> {
        let path = self.stored_path(file);
        // What does not compress becomes a little longer.
        let (out, buffer) = out.next(buffers.take().await, CHUNK + CHUNK / 8).await?;
        let entry = out.finish(file, &path).await?;
        let (objects, at) = (self.store.objects.clone(), self.object(&path)?);
        let mut sending = JoinSet::new();
        sending.spawn(async move {
            objects.put_opts(&at, buffer.into_payload(), PutOptions::from(PutMode::Create)).await
        });
        match joined(sending.join_next().await) {
            Ok(_) => Ok((entry, false)),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                self.found(file, entry).await
            }
            Err(error) => Err(self.failed(&format!("write {}", file.path), error)),
        }
    }

    /// Not every store refuses an upload in parts where something is: the claim, and that nothing was there,
    /// stand in for it.
    async fn send_in_parts(
        &self,
        file: &LocalFile,
        out: Outgoing,
        buffers: &Arc<Buffers>,
        sent: &mut (dyn FnMut(u64) + Send),
    ) -> Result<(ManifestFile, bool), UploadError> {
        let (size, path) = (out.size(), self.stored_path(file));
        if size.div_ceil(CHUNK as u64) > MOST_PARTS {
            return Err(UploadError::TooLarge { path: file.path.clone(), size });
        }
        let failed = |error| self.failed(&format!("write {}", file.path), error);
        let mut upload = match self.store.objects.put_multipart(&self.object(&path)?).await {
            Ok(upload) => upload,
            Err(object_store::Error::AlreadyExists { .. }) => {
                return self.found(file, Source::describe(file).await?).await;
            }
            Err(error) => return Err(failed(error)),
        };
        let sent = match send_parts(upload.as_mut(), (file, &path), out, buffers, sent).await {
            Ok(entry) => match upload.complete().await {
                Ok(_) => return Ok((entry, false)),
                Err(object_store::Error::AlreadyExists { .. }) => return self.found(file, entry).await,
                // Completed, perhaps, by a request whose answer was lost: the next attempt will see.
                Err(gone @ object_store::Error::NotFound { .. }) => {
                    Err(UploadError::Store(self.unclear(&gone)))
                }
                Err(error) => Err(failed(error)),
            },
            Err(PartError::Source(error)) => Err(error.into()),
            Err(PartError::Store(error)) => Err(failed(error)),
        };
        // Best effort: parts of an upload that was never completed are no object.
        if let Err(error) = upload.abort().await {
            tracing::debug!(file = file.path, %error, "Could not drop the parts of an upload");
        }
        sent
    }

    /// Compares names and sizes of what is there with what was sent. Contents were compared by the
    /// store as they came in (S3 checks each body's signed hash), or by reading them back.
    async fn compare(&self, files: &[ManifestFile]) -> Result<(), UploadError> {
        let mut there = self.list().await?;
        for file in files {
            let cause = match there.remove(file.stored_path()) {
                Some(size) if size == file.stored_size() => continue,
                Some(size) => format!("it has {size} bytes, not {}", file.stored_size()),
                None => "it was sent and is not there".to_owned(),
            };
            let cause = format!("{} of {}/{}: {cause}", file.path, self.model, self.version);
            return Err(UploadError::Store(self.unclear(&cause)));
        }
        // The same run, in a process that was thought dead, may seal it meanwhile.
        there.remove(MANIFEST);
        self.nothing_foreign(&there)
    }

    async fn seal(&self, files: Vec<ManifestFile>) -> Result<SealedVersion, UploadError> {
        let manifest = Manifest {
            schema: 1,
            model: self.model.clone(),
            version: self.version.clone(),
            instance: self.instance,
            run: self.run,
            sealed_at: self.sealed_at,
            files,
            metrics: self.metrics.clone(),
            provenance: self.provenance.clone(),
        };
        self.create(&self.object(MANIFEST)?, document(&manifest)?).await?;
        // What counts is what is there: ours, or what the same run sealed before.
        match read_manifest(self.store, self.model, self.version).await? {
            Some(sealed) if sealed.manifest == manifest => Ok(sealed),
            Some(sealed) => self.same_as(sealed).await,
            None => {
                let cause =
                    format!("the manifest of {}/{} was sent and is not there", self.model, self.version);
                Err(UploadError::Store(self.unclear(&cause)))
            }
        }
    }

    /// `sealed`, if it is this version with these files.
    async fn same_as(&self, sealed: SealedVersion) -> Result<SealedVersion, UploadError> {
        let different = || UploadError::SealedDifferently {
            label: self.store.label.clone(),
            model: self.model.clone(),
            version: self.version.clone(),
        };
        let made_by = (sealed.manifest.instance, sealed.manifest.run);
        if made_by != (self.instance, self.run) || sealed.manifest.files.len() != self.files.len() {
            return Err(different());
        }
        let there: BTreeMap<&str, &ManifestFile> =
            sealed.manifest.files.iter().map(|file| (file.path.as_str(), file)).collect();
        for file in self.files {
            let entry = Source::describe(file).await?;
            let same = |there: &&&ManifestFile| there.size == entry.size && there.sha256 == entry.sha256;
            if there.get(file.path.as_str()).filter(same).is_none() {
                return Err(different());
            }
        }
        Ok(sealed)
    }
}

/// A document's bytes, for people too.
fn document(value: &impl Serialize) -> Result<Vec<u8>, AdapterError> {
    serde_json::to_vec_pretty(value).map_err(|error| AdapterError::Rejected {
        service: "refit".to_owned(),
        action: "write a document".to_owned(),
        cause: error.to_string(),
    })
}
