//! `kind = "pointer"`: the release document as a JSON file, or as an object in
//! a store, that apps read.
//!
//! A write is a compare-and-set. A file is changed under a lock of its own and
//! replaced by rename, so a reader sees the old document or the new one; an
//! object is written only over the state that was read (its ETag).

use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::succession::{Step, fingerprint, next, understood};
use crate::adapter::{
    Adapter, AdapterError, ArtifactStore, BuildError, Deps, Observed, Target, TargetTraits, options_of,
};
use crate::domain::id::{InstanceId, ModelName, StoreName};
use crate::domain::release::Release;
use crate::http_client::excerpt;
use async_trait::async_trait;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStoreExt, PutMode, PutOptions, PutPayload, UpdateVersion};
use serde::Deserialize;
use serde_json::Value;

/// `kind = "pointer"`.
pub const ADAPTER: Adapter<Arc<dyn Target>> = Adapter { kind: "pointer", build };

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// The file, relative to the project; `{model}` stands for the model's name.
    path: Option<String>,
    /// The store, with `object`.
    store: Option<StoreName>,
    /// The object's path in the store, `{model}/release.json` when absent.
    object: Option<String>,
    /// A document of another refit database is replaced, once seen.
    #[serde(default)]
    take_over: bool,
}

/// What errors of a file say that they come from.
pub const FILE: &str = "the release file";
/// No release document is longer.
const LONGEST: u64 = 256 * 1024;
/// Somebody who holds the lock is writing one small file.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
const LOCK_POLL: Duration = Duration::from_millis(20);

fn build(options: Value, deps: &Deps) -> Result<Arc<dyn Target>, BuildError> {
    let options: Options = options_of(ADAPTER.kind, options)?;
    let problem = |problem: &str| BuildError::Options { kind: ADAPTER.kind, problem: problem.to_owned() };
    let place = match (options.path, options.store) {
        (Some(path), None) if options.object.is_none() => Place::File(deps.project.join(path)),
        (None, Some(name)) => {
            let store = deps.stores.get(&name);
            let store = store.ok_or_else(|| problem(&format!("there is no store `{name}`")))?.clone();
            // A directory has no compare-and-set by ETag; a file of it is written as a file.
            let object = options.object.unwrap_or_else(|| "{model}/release.json".to_owned());
            if object.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
                return Err(problem("`object` is not a path in the store"));
            }
            if store.objects.to_string().starts_with("LocalFileSystem") {
                return Err(problem("a pointer into a directory is a `path`, not an object of a store"));
            }
            Place::Object { store, object }
        }
        _ => return Err(problem("it needs either `path`, or `store` and perhaps `object`")),
    };
    Ok(Arc::new(Pointer { place, take_over: options.take_over }))
}

struct Pointer {
    place: Place,
    take_over: bool,
}

enum Place {
    /// The path, with `{model}`.
    File(PathBuf),
    Object {
        store: ArtifactStore,
        /// The path within the store, with `{model}`.
        object: String,
    },
}

#[async_trait]
impl Target for Pointer {
    fn traits(&self) -> TargetTraits {
        let one_model = match &self.place {
            Place::File(path) => !path.to_string_lossy().contains("{model}"),
            Place::Object { object, .. } => !object.contains("{model}"),
        };
        TargetTraits { instant: true, expires: true, takes: Duration::ZERO, one_model }
    }

    async fn read(&self, model: &ModelName) -> Result<Option<Observed>, AdapterError> {
        match &self.place {
            Place::File(pattern) => {
                let path = file_of(pattern, model)?;
                let bytes = blocking(move || read_file(&path)).await?;
                bytes.map(|bytes| self.observed(model, &bytes, fingerprint(&bytes))).transpose()
            }
            Place::Object { store, object } => {
                let at = object_of(store, object, model)?;
                let found = read_object(store, &at).await?;
                found
                    .map(|(bytes, etag)| {
                        self.observed(model, &bytes, etag.unwrap_or_else(|| fingerprint(&bytes)))
                    })
                    .transpose()
            }
        }
    }

    async fn apply(&self, release: &Release, instance: InstanceId) -> Result<(), AdapterError> {
        let document = release.document(instance);
        let bytes = serde_json::to_vec_pretty(&document)
            .map_err(|error| self.rejected("write the release", error.to_string()))?;
        match &self.place {
            Place::File(pattern) => {
                let path = file_of(pattern, &release.model)?;
                let (label, take_over) = (self.label(), self.take_over);
                blocking(move || {
                    let _lock = lock(&path)?;
                    let there = read_file(&path)?;
                    match next(&label, take_over, there.as_deref(), &document)? {
                        Step::Done => Ok(()),
                        Step::Write => replace(&path, &bytes),
                    }
                })
                .await
            }
            Place::Object { store, object } => {
                let at = object_of(store, object, &release.model)?;
                let found = read_object(store, &at).await?;
                let there = found.as_ref().map(|(bytes, _)| bytes.as_ref());
                if next(&self.label(), self.take_over, there, &document)? == Step::Done {
                    return Ok(());
                }
                let mode = match found {
                    None => PutMode::Create,
                    Some((_, e_tag)) => PutMode::Update(UpdateVersion { e_tag, version: None }),
                };
                let written =
                    store.objects.put_opts(&at, PutPayload::from(bytes), PutOptions::from(mode)).await;
                match written {
                    Ok(_) => Ok(()),
                    // Somebody wrote in between, or our own answer was lost.
                    Err(
                        object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. },
                    ) => {
                        let now = read_object(store, &at).await?;
                        let there = now.as_ref().map(|(bytes, _)| bytes.as_ref());
                        match next(&self.label(), self.take_over, there, &document)? {
                            Step::Done => Ok(()),
                            Step::Write => Err(AdapterError::Unavailable {
                                service: self.label(),
                                cause: "it was written at the same moment".to_owned(),
                                retry_after: None,
                            }),
                        }
                    }
                    Err(error) => Err(object_error(store, "write the release", error)),
                }
            }
        }
    }

    async fn check(&self) -> Result<String, AdapterError> {
        match &self.place {
            Place::File(pattern) => {
                let directory = directory_of(pattern);
                let label = self.label();
                blocking(move || {
                    let existing = directory.ancestors().find(|above| above.is_dir());
                    let existing = existing.unwrap_or(Path::new("/"));
                    tempfile::Builder::new()
                        .prefix(".refit-check-")
                        .tempfile_in(existing)
                        .map_err(|error| file_error(&directory, "write to", &error))?;
                    Ok(format!("{label} can be written"))
                })
                .await
            }
            Place::Object { store, object } => {
                let at = store.prefix.clone();
                let listing = store.objects.list_with_delimiter(Some(&at)).await;
                listing.map_err(|error| object_error(store, "list", error))?;
                Ok(format!("{} can be read; releases go to {object}", store.label))
            }
        }
    }
}

impl Pointer {
    fn label(&self) -> String {
        match &self.place {
            Place::File(path) => format!("release file {}", path.display()),
            Place::Object { store, object } => format!("release object {object} in {}", store.label),
        }
    }

    fn rejected(&self, action: &str, cause: String) -> AdapterError {
        AdapterError::Rejected { service: self.label(), action: action.to_owned(), cause }
    }

    fn observed(
        &self,
        model: &ModelName,
        bytes: &[u8],
        fingerprint: String,
    ) -> Result<Observed, AdapterError> {
        let document = understood(&self.label(), bytes)?;
        if &document.model != model {
            let cause =
                format!("it is a release of `{}`: give each model a file, by {{model}}", document.model);
            return Err(self.rejected("read the release", cause));
        }
        Ok(Observed { document, fingerprint, attention: None })
    }
}

fn file_of(pattern: &Path, model: &ModelName) -> Result<PathBuf, AdapterError> {
    let text = pattern.to_str().ok_or_else(|| AdapterError::Rejected {
        service: format!("release file {}", pattern.display()),
        action: "name the file".to_owned(),
        cause: "its path is not text".to_owned(),
    })?;
    Ok(PathBuf::from(text.replace("{model}", model.as_str())))
}

/// The directory of all files of `pattern`.
fn directory_of(pattern: &Path) -> PathBuf {
    let fixed = |path: &&Path| !path.to_string_lossy().contains("{model}");
    let directory = pattern.ancestors().skip(1).find(fixed).unwrap_or(Path::new("."));
    directory.to_owned()
}

fn file_error(path: &Path, action: &str, error: &std::io::Error) -> AdapterError {
    let (service, cause) = (FILE.to_owned(), error.to_string());
    let action = format!("{action} {}", path.display());
    match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            AdapterError::Denied { service, action, cause }
        }
        _ => AdapterError::Unavailable {
            service,
            cause: format!("cannot {action}: {cause}"),
            retry_after: None,
        },
    }
}

fn read_file(path: &Path) -> Result<Option<Vec<u8>>, AdapterError> {
    let failed = |error: &std::io::Error| file_error(path, "read", error);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(&error)),
    };
    let mut bytes = vec![];
    file.take(LONGEST + 1).read_to_end(&mut bytes).map_err(|error| failed(&error))?;
    Ok(Some(bytes))
}

/// Holds other writers off, in this process and in others, until it is dropped.
fn lock(path: &Path) -> Result<File, AdapterError> {
    let failed = |error: &std::io::Error| file_error(path, "lock", error);
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(|error| failed(&error))?;
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".lock");
    let lock = path.with_file_name(name);
    let lock = File::options().create(true).append(true).open(lock).map_err(|error| failed(&error))?;
    let since = Instant::now();
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::Error(error)) => return Err(failed(&error)),
            Err(TryLockError::WouldBlock) if since.elapsed() > LOCK_PATIENCE => {
                return Err(AdapterError::Unavailable {
                    service: format!("release file {}", path.display()),
                    cause: "another process holds its lock".to_owned(),
                    retry_after: None,
                });
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_POLL),
        }
    }
}

/// Readers see the old file or the new one; once this returns, the new one survives a power cut.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), AdapterError> {
    let failed = |error: std::io::Error| file_error(path, "write", &error);
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut fresh = tempfile::Builder::new()
        .prefix(".release-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(directory)
        .map_err(failed)?;
    fresh.write_all(bytes).map_err(failed)?;
    fresh.as_file().sync_all().map_err(failed)?;
    fresh.persist(path).map_err(|error| failed(error.error))?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)
}

fn object_of(store: &ArtifactStore, object: &str, model: &ModelName) -> Result<ObjectPath, AdapterError> {
    let path = format!("{}/{}", store.prefix, object.replace("{model}", model.as_str()));
    ObjectPath::parse(path).map_err(|error| object_error(store, "name the release", error.into()))
}

/// The object's bytes and ETag, if it is there.
async fn read_object(
    store: &ArtifactStore,
    at: &ObjectPath,
) -> Result<Option<(bytes::Bytes, Option<String>)>, AdapterError> {
    let failed = |error| object_error(store, "read the release", error);
    let found = match store.objects.get(at).await {
        Ok(found) => found,
        Err(object_store::Error::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    if found.meta.size > LONGEST {
        return Err(AdapterError::Conflict {
            service: store.label.clone(),
            cause: format!("{at} has {} bytes: it is no release document", found.meta.size),
        });
    }
    let etag = found.meta.e_tag.clone();
    Ok(Some((found.bytes().await.map_err(failed)?, etag)))
}

fn object_error(store: &ArtifactStore, action: &str, error: object_store::Error) -> AdapterError {
    use object_store::Error;
    let (service, action, cause) = (store.label.clone(), action.to_owned(), excerpt(&error.to_string()));
    match error {
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
            AdapterError::Denied { service, action, cause }
        }
        Error::Generic { .. } | Error::JoinError { .. } => {
            AdapterError::Unavailable { service, cause, retry_after: None }
        }
        _ => AdapterError::Rejected { service, action, cause },
    }
}

/// Runs `work` where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AdapterError> + Send + 'static,
) -> Result<T, AdapterError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(AdapterError::Unavailable {
            service: FILE.to_owned(),
            cause: error.to_string(),
            retry_after: None,
        })
    })
}
