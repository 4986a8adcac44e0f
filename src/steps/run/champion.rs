//! `$REFIT_CHAMPION`: the files of the version that serves now, fetched from its store once and
//! verified against its manifest every time.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use crate::artifacts::sealed::{self, SealedError};
use crate::domain::id::{TargetName, VersionName};
use crate::domain::release::Release;
use crate::domain::workflow::{StepKind, Workflow};
use crate::steps::context::{StepContext, StepError};

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

/// The releases this workflow may compete with: that on its target, or all of its model where it names none, because its
/// versions are promoted by hand, but compares.
pub(in crate::steps) async fn releases(ctx: &StepContext<'_>) -> Result<Vec<Release>, StepError> {
    match target(ctx.workflow) {
        Some(target) => Ok(ctx.ledger.release(target).await?.into_iter().collect()),
        None if compares(ctx.workflow) => ctx.ledger.releases().await,
        None => Ok(vec![]),
    }
}

/// Whether some step compares a candidate with what serves.
fn compares(workflow: &Workflow) -> bool {
    workflow.steps.iter().any(|step| match &step.kind {
        StepKind::Evaluate(_) => true,
        StepKind::Gate(gate) => gate.rules.iter().any(|rule| rule.vs_champion.is_some()),
        StepKind::Fetch(_)
        | StepKind::Run(_)
        | StepKind::Publish(_)
        | StepKind::Canary(_)
        | StepKind::Wait(_)
        | StepKind::Shadow(_)
        | StepKind::Compare(_)
        | StepKind::Promote(_)
        | StepKind::Rollback(_)
        | StepKind::Approve(_)
        | StepKind::Notify(_)
        | StepKind::Http(_) => false,
    })
}

/// The release this workflow competes with; `None` when nothing was released, or on several targets of which it names none.
pub(in crate::steps) async fn release(ctx: &StepContext<'_>) -> Result<Option<Release>, StepError> {
    Ok(only(releases(ctx).await?))
}

/// The one of `releases`, if it is one.
pub(in crate::steps) fn only(releases: Vec<Release>) -> Option<Release> {
    <[Release; 1]>::try_from(releases).ok().map(|[release]| release)
}

/// The champion, and the directory with its files; `None` when there is no champion.
pub(in crate::steps) async fn files(
    ctx: &StepContext<'_>,
) -> Result<Option<(VersionName, PathBuf)>, StepError> {
    let fetched = async {
        let Some(champion) = release(ctx).await?.and_then(|release| release.desired.champion) else {
            return Ok(None);
        };
        let dir = files_of(ctx, &champion.version, "the champion").await?;
        Ok(Some((champion.version, dir)))
    };
    tokio::select! {
        files = fetched => files,
        () = ctx.cancel.cancelled() => Err(StepError::Interrupted),
    }
}

/// The directory with the files of a sealed version, verified and not to be written to; `who` is what
/// messages call it.
pub(in crate::steps) async fn files_of(
    ctx: &StepContext<'_>,
    version: &VersionName,
    who: &str,
) -> Result<PathBuf, StepError> {
    let record = ctx.ledger.version(version).await?;
    let Some((record, manifest)) = record.and_then(|record| Some((record.clone(), record.manifest?))) else {
        return Err(StepError::permanent(format!(
            "{who} {version} has no manifest here, so its files cannot be fetched"
        ))
        .hint("adopt the version again with `refit adopt`, or promote one that refit published"));
    };
    let Some(store) = ctx.services.stores.get(&record.store) else {
        return Err(StepError::permanent(format!(
            "{who} {version} is in the store `{}`, which refit.toml does not name",
            record.store
        )));
    };
    let model = &ctx.run.model;
    let dir = ctx.dirs.versions.join(model.as_str()).join(version.as_str());
    let fetched = match &record.place {
        Some(place) => sealed::fetch_in_place(store, place, &manifest, &dir).await,
        None => sealed::fetch_files(store, &manifest, &dir).await,
    };
    fetched.map_err(|error| match error {
        SealedError::BadFile { .. } => {
            StepError::permanent(format!("{who} is not what its manifest says: it was changed: {error}"))
                .hint("`refit model verify` looks at all its files")
        }
        SealedError::Disk { .. } => StepError::transient(error.to_string()),
        SealedError::NotSealed { .. } | SealedError::BadManifest { .. } | SealedError::Store(_) => {
            crate::adapter::AdapterError::from(error).into()
        }
    })?;
    for file in &manifest.files {
        // Whoever scores it may not change it; should somebody do so all the same, the next fetch finds it.
        let _ = std::fs::set_permissions(dir.join(&file.path), std::fs::Permissions::from_mode(0o444));
    }
    Ok(dir)
}
