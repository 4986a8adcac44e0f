//! `$REFIT_CHAMPION`: the files of the version that serves now, fetched from its store once and
//! verified against its manifest every time.

use std::fs;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

use super::outputs::{hex, sync_dir};
use crate::adapter::ArtifactStore;
use crate::domain::id::TargetName;
use crate::domain::release::Release;
use crate::domain::version::{Manifest, ManifestFile};
use crate::domain::workflow::{StepKind, Workflow};
use crate::steps::context::{StepContext, StepError};

/// Files fetched at once.
const AT_ONCE: usize = 4;

/// The target whose champion this workflow competes with: that of its canary, else of its promote step.
pub(crate) fn target(workflow: &Workflow) -> Option<&TargetName> {
    let kinds = || workflow.steps.iter().map(|step| &step.kind);
    let canary = kinds()
        .find_map(|kind| if let StepKind::Canary(canary) = kind { Some(&canary.target) } else { None });
    canary.or_else(|| {
        kinds().find_map(
            |kind| {
                if let StepKind::Promote(promote) = kind { promote.target.as_ref() } else { None }
            },
        )
    })
}

/// The release this workflow competes with; `None` when it names no target, or nothing was released there.
pub(crate) async fn release(ctx: &StepContext<'_>) -> Result<Option<Release>, StepError> {
    match target(ctx.workflow) {
        Some(target) => ctx.ledger.release(target).await,
        None => Ok(None),
    }
}

/// The directory with the champion's files; `None` when there is no champion.
pub(super) async fn files(ctx: &StepContext<'_>) -> Result<Option<PathBuf>, StepError> {
    let Some(champion) = release(ctx).await?.and_then(|release| release.desired.champion) else {
        return Ok(None);
    };
    let version = &champion.version;
    let record = ctx.ledger.version(version).await?;
    let Some((record, manifest)) = record.and_then(|record| Some((record.clone(), record.manifest?))) else {
        return Err(StepError::permanent(format!(
            "the champion {version} has no manifest here, so its files cannot be fetched for $REFIT_CHAMPION"
        ))
        .hint("adopt the version again with `refit adopt`, or promote one that refit published"));
    };
    let Some(store) = ctx.services.stores.get(&record.store) else {
        return Err(StepError::permanent(format!(
            "the champion {version} is in the store `{}`, which refit.toml does not name",
            record.store
        )));
    };
    let model = &ctx.run.model;
    let dir = ctx.dirs.versions.join(model.as_str()).join(version.as_str());
    if !is_intact(dir.clone(), manifest.clone()).await? {
        let base = crate::artifacts::known_path(store, &record)?;
        fetch(store, base, &manifest, &dir).await?;
    }
    Ok(Some(dir))
}

/// Whether every file is there as the manifest says; somebody may have written into it.
async fn is_intact(dir: PathBuf, manifest: Manifest) -> Result<bool, StepError> {
    let check = move || {
        manifest.files.iter().all(|file| {
            is_plain(&file.path)
                && hash(&dir.join(&file.path)).is_ok_and(|(size, sha256)| {
                    size == file.size && sha256.eq_ignore_ascii_case(&file.sha256)
                })
        })
    };
    tokio::task::spawn_blocking(check).await.map_err(|error| StepError::transient(error.to_string()))
}

fn hash(path: &Path) -> std::io::Result<(u64, String)> {
    let mut file = fs::File::open(path)?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut size = 0;
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok((size, hex(&digest.finalize())));
        }
        digest.update(&buffer[..count]);
        size += count as u64;
    }
}

/// Whether a path of a manifest stays below its version.
fn is_plain(path: &str) -> bool {
    !path.is_empty() && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

async fn fetch(
    store: &ArtifactStore,
    base: object_store::path::Path,
    manifest: &Manifest,
    dir: &Path,
) -> Result<(), StepError> {
    let cannot = |error: std::io::Error| {
        StepError::transient(format!("cannot write the champion's files to {}: {error}", dir.display()))
    };
    let parent = dir.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(cannot)?;
    let temporary = tempfile::Builder::new().prefix(".fetch-").tempdir_in(parent).map_err(cannot)?;
    futures::stream::iter(manifest.files.iter().map(Ok))
        .try_for_each_concurrent(AT_ONCE, |file| fetch_file(store, &base, file, temporary.path()))
        .await?;
    if dir.exists() {
        fs::remove_dir_all(dir).map_err(cannot)?;
    }
    fs::rename(temporary.keep(), dir).map_err(cannot)?;
    sync_dir(parent);
    Ok(())
}

async fn fetch_file(
    store: &ArtifactStore,
    base: &object_store::path::Path,
    file: &ManifestFile,
    to: &Path,
) -> Result<(), StepError> {
    let ManifestFile { path, size, sha256 } = file;
    if !is_plain(path) {
        return Err(StepError::permanent(format!("the champion's manifest names a file `{path}`")));
    }
    let location = path.split('/').fold(base.clone(), |base, part| base.join(part));
    let what = format!("the champion's file `{path}` from {}", store.label);
    let unavailable = |error: object_store::Error| {
        let message = format!("cannot fetch {what}: {error}");
        match error {
            object_store::Error::NotFound { .. } => StepError::permanent(message),
            _ => StepError::transient(message),
        }
    };
    let target = to.join(path);
    let cannot =
        |error: std::io::Error| StepError::transient(format!("cannot write {}: {error}", target.display()));
    if let Some(above) = target.parent() {
        fs::create_dir_all(above).map_err(cannot)?;
    }
    let mut writer = tokio::fs::File::create(&target).await.map_err(cannot)?;
    let mut digest = Sha256::new();
    let mut received = 0;
    let mut body = store.objects.get(&location).await.map_err(unavailable)?.into_stream();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(unavailable)?;
        received += chunk.len() as u64;
        if received > *size {
            break;
        }
        digest.update(&chunk);
        writer.write_all(&chunk).await.map_err(cannot)?;
    }
    writer.flush().await.map_err(cannot)?;
    if received != *size || !hex(&digest.finalize()).eq_ignore_ascii_case(sha256) {
        return Err(StepError::permanent(format!("{what} is not what its manifest says: it was changed"))
            .hint("`refit model verify` looks at all its files"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::is_plain;

    #[test]
    fn a_manifest_cannot_name_files_elsewhere() {
        assert!(is_plain("a/b.json"));
        for path in ["", "/etc/passwd", "../x", "a/../../x", "./a"] {
            assert!(!is_plain(path), "{path}");
        }
    }
}
