//! `uses: publish`: the files of a training become a sealed version.

mod provenance;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::context::{StepContext, StepError, StepResult};
use crate::adapter::ArtifactStore;
use crate::artifacts::sealed::SealedVersion;
use crate::artifacts::source::LocalFile;
use crate::artifacts::upload::{FileState, Upload, UploadError, publish};
use crate::domain::id::{StepId, StoreName, VersionName};
use crate::domain::metric::Metrics;
use crate::domain::release::Served;
use crate::domain::version::ManifestFile;
use crate::domain::workflow::step::Publish;

/// What a publish step returns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishOutput {
    /// The version.
    pub version: VersionName,
    /// The store that holds it.
    pub store: StoreName,
    /// URL or path below which its files are.
    pub base_url: String,
    /// SHA-256 of its manifest in lower-case hex.
    pub manifest_sha256: String,
    /// How many files it has.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
}

impl PublishOutput {
    /// The version as apps find it where its store is today: it may have moved since.
    pub(super) fn served(&self, ctx: &StepContext<'_>) -> Served {
        let store = ctx.services.stores.get(&self.store);
        let today = store.and_then(|store| store.base_url(&ctx.run.model, &self.version).ok());
        Served {
            version: self.version.clone(),
            base_url: today.unwrap_or_else(|| self.base_url.clone()),
            manifest_sha256: self.manifest_sha256.clone(),
        }
    }
}

/// What publish reads of the output of a step that left files.
#[derive(Debug, Clone, Deserialize)]
struct FilesOutput {
    dir: PathBuf,
    files: Vec<ManifestFile>,
    #[serde(default)]
    metrics: Metrics,
}

/// A name that is taken in the store is given up and the next one tried, this often.
const MOST_NAMES: u32 = 20;

/// Uploads and seals.
pub async fn run(spec: &Publish, ctx: &StepContext<'_>) -> Result<StepResult, StepError> {
    let store = ctx.services.stores.get(&spec.store).ok_or_else(|| {
        StepError::permanent(format!("there is no store `{}`", spec.store))
            .hint(format!("add [stores.{}] to refit.toml", spec.store))
    })?;
    let (from, output) = files_of(spec, ctx)?;
    let files: Vec<LocalFile> = output.files.iter().map(|file| local(&output.dir, file)).collect();
    let provenance = provenance::provenance(ctx, &from).await;
    for _ in 0..MOST_NAMES {
        let record = ctx.ledger.reserve_version(&spec.store, spec.version).await?;
        let upload = Upload {
            store,
            model: &ctx.run.model,
            version: &record.name,
            instance: ctx.services.instance,
            run: Some(ctx.run.id),
            files: &files,
            metrics: &output.metrics,
            provenance: &provenance,
            sealed_at: ctx.clock.now(),
        };
        let uploaded = tokio::select! {
            uploaded = send(&upload, &output.files, ctx) => uploaded,
            () = ctx.cancel.cancelled() => return Err(StepError::Interrupted),
        };
        match uploaded {
            Ok(sealed) => {
                let sealed = seal(spec, ctx, store, sealed).await?;
                keep_latest(spec, ctx).await?;
                return Ok(sealed);
            }
            Err(taken @ UploadError::ClaimedByOther { .. }) => {
                ctx.log.note(&format!("{taken}: taking the next name"));
                ctx.ledger.abandon_version(&record.name).await?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(StepError::permanent(format!("{MOST_NAMES} names in a row are taken in {}", store.label))
        .hint("another refit database writes to this store: give this one a prefix of its own"))
}

/// The step whose files are published, and what it left.
fn files_of(spec: &Publish, ctx: &StepContext<'_>) -> Result<(StepId, FilesOutput), StepError> {
    let found = match &spec.from {
        Some(step) => ctx.output_of::<FilesOutput>(step).map(|output| (step.clone(), output)),
        None => ctx
            .history
            .iter()
            .rev()
            .filter_map(|attempt| {
                let output: FilesOutput = serde_json::from_value(attempt.output.clone()?).ok()?;
                Some((attempt.step.clone(), output))
            })
            .find(|(_, output)| !output.files.is_empty()),
    };
    let missing = || match &spec.from {
        Some(step) => StepError::permanent(format!("step `{step}` left no files to publish")),
        None => StepError::permanent("no step before this one left files to publish"),
    };
    let (step, mut output) = found
        .filter(|(_, output)| !output.files.is_empty())
        .ok_or_else(|| missing().hint("a `run` step leaves files in $REFIT_OUT, or by `outputs:`"))?;
    if output.metrics == Metrics::default() {
        // An export step has the files; the metrics are the training's.
        let metrics = ctx.history.iter().rev().find_map(|attempt| {
            let said: FilesOutput = serde_json::from_value(attempt.output.clone()?).ok()?;
            (said.metrics != Metrics::default()).then_some(said.metrics)
        });
        output.metrics = metrics.unwrap_or_default();
    }
    Ok((step, output))
}

fn local(dir: &Path, file: &ManifestFile) -> LocalFile {
    LocalFile { path: file.path.clone(), source: dir.join(&file.path), sha256: Some(file.sha256.clone()) }
}

/// Uploads, saying how far it is.
async fn send(
    upload: &Upload<'_>,
    files: &[ManifestFile],
    ctx: &StepContext<'_>,
) -> Result<SealedVersion, UploadError> {
    let total: u64 = files.iter().map(|file| file.size).sum();
    ctx.log.note(&format!(
        "uploading {} files, {:.1} MB, as {}/{} to {}",
        files.len(),
        total as f64 / 1e6,
        upload.model,
        upload.version,
        upload.store.label
    ));
    let told = AtomicU64::new(0);
    publish(upload, &|progress| {
        let percent = if total == 0 { 100.0 } else { 100.0 * progress.done as f64 / total as f64 };
        let what = match progress.state {
            FileState::Sending => "is on its way",
            FileState::Sent => "sent",
            FileState::Found => "was there",
        };
        ctx.log.progress(Some(percent), &format!("{} {what}", progress.path));
        // Each tenth once, whichever file brings it.
        let tenth = (percent / 10.0) as u64;
        if told.fetch_max(tenth, Ordering::Relaxed) < tenth {
            let (done, total) = (progress.done as f64 / 1e6, total as f64 / 1e6);
            ctx.log.note(&format!("uploaded {percent:.0} %, {done:.1} of {total:.1} MB"));
        }
    })
    .await
}

/// Records the version as sealed.
async fn seal(
    spec: &Publish,
    ctx: &StepContext<'_>,
    store: &ArtifactStore,
    sealed: SealedVersion,
) -> Result<StepResult, StepError> {
    let SealedVersion { manifest, sha256 } = sealed;
    let base_url = store.base_url(&manifest.model, &manifest.version)?;
    ctx.ledger.seal_version(&manifest, &base_url, &sha256).await?;
    ctx.log.note(&format!("sealed {}/{}", manifest.model, manifest.version));
    StepResult::done(PublishOutput {
        files: manifest.files.len(),
        bytes: manifest.files.iter().map(|file| file.size).sum(),
        version: manifest.version,
        store: spec.store.clone(),
        base_url,
        manifest_sha256: sha256,
    })
}

/// Deletes what is too old. The version is whole: what goes wrong here is said, and tried again by the next one.
async fn keep_latest(spec: &Publish, ctx: &StepContext<'_>) -> Result<(), StepError> {
    let Some(latest) = spec.keep_latest else { return Ok(()) };
    let collected = tokio::select! {
        collected = ctx.ledger.keep_latest(&spec.store, latest) => collected,
        () = ctx.cancel.cancelled() => return Err(StepError::Interrupted),
    };
    match collected {
        Ok(lines) => lines.iter().for_each(|line| ctx.log.note(line)),
        Err(StepError::Failed { failure, .. }) => {
            ctx.log.note(&format!("old versions were not deleted: {}", failure.message));
        }
        Err(stopped @ (StepError::Interrupted | StepError::Fenced | StepError::Cancelled)) => {
            return Err(stopped);
        }
    }
    Ok(())
}

impl From<UploadError> for StepError {
    fn from(error: UploadError) -> Self {
        match error {
            UploadError::Store(error) => error.into(),
            UploadError::Sealed(error) => crate::adapter::AdapterError::from(error).into(),
            error @ (UploadError::ClaimedByOther { .. }
            | UploadError::SealedDifferently { .. }
            | UploadError::Name(_)
            | UploadError::Source(_)
            | UploadError::TooLarge { .. }) => StepError::permanent(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests;
