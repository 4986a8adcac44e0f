//! The receipt of one change of a release, made from the history.

use crate::domain::because::Evidence;
use crate::domain::history::Change;
use crate::domain::id::{Generation, ModelName, TargetName, VersionName};
use crate::domain::receipt::{ChangeReceipt, ScoredVersion, Since};
use crate::domain::release::{Assignment, ReleaseActor};
use crate::store::{Store, StoreError};

/// The receipt of the change that made `generation`; none when there was no such change.
///
/// # Errors
/// The database is away.
pub async fn of(
    store: &dyn Store,
    model: &ModelName,
    target: &TargetName,
    generation: Generation,
) -> Result<Option<ChangeReceipt>, StoreError> {
    let Some(entry) = store.release_change(model, target, generation).await? else { return Ok(None) };
    let Change::Release { assignment, evidence, configuration, .. } = entry.change else { return Ok(None) };
    let after = *assignment;
    let before = store.release_change(model, target, Generation(generation.0 - 1)).await?;
    let before = before.and_then(|entry| match entry.change {
        Change::Release { assignment, .. } => Some(*assignment),
        Change::Version { .. } => None,
    });
    let mut receipt = ChangeReceipt {
        headline: ChangeReceipt::headline_of((model, target), before.as_ref(), &after),
        reason: entry.by.reason,
        at: entry.by.at,
        actor: entry.by.actor,
        model: model.clone(),
        target: target.clone(),
        generation,
        serves: scored(store, model, champion(&after)).await?,
        served: scored(store, model, beside(before.as_ref(), &after)).await?,
        after,
        before,
        evidence,
        configuration,
        limits: vec![],
        commands: vec![],
        undo: None,
        no_undo: None,
    };
    receipt.limits = receipt.limits_of();
    receipt.commands = commands(&receipt);
    match receipt.undo_of(since(store, &receipt).await?) {
        Ok(command) => receipt.undo = Some(command),
        Err(why) => receipt.no_undo = Some(why),
    }
    Ok(Some(receipt))
}

async fn since(store: &dyn Store, receipt: &ChangeReceipt) -> Result<Since, StoreError> {
    let ChangeReceipt { model, target, .. } = receipt;
    let newest = store.release(model, target).await?;
    let record = async |of: Option<&Assignment>| match of.and_then(champion) {
        Some(version) => store.version(model, version).await,
        None => Ok(None),
    };
    let (was, is) = (record(receipt.before.as_ref()).await?, record(Some(&receipt.after)).await?);
    Ok(Since {
        is_newest: newest.is_some_and(|newest| newest.generation == receipt.generation),
        before: was.as_ref().map(|was| was.state),
        went_back: was.is_some_and(|was| is.is_some_and(|is| was.created_at > is.created_at)),
    })
}

fn champion(of: &Assignment) -> Option<&VersionName> {
    of.champion.as_ref().map(|served| &served.version)
}

/// The version beside the one that serves: the champion before, else the canary that goes out or is dropped.
fn beside<'a>(before: Option<&'a Assignment>, after: &'a Assignment) -> Option<&'a VersionName> {
    let canary = |of: &'a Assignment| of.canary.as_ref().map(|canary| &canary.served.version);
    let was = before.and_then(champion).filter(|was| champion(after) != Some(*was));
    was.or_else(|| canary(after)).or_else(|| before.and_then(canary))
}

async fn scored(
    store: &dyn Store,
    model: &ModelName,
    version: Option<&VersionName>,
) -> Result<Option<ScoredVersion>, StoreError> {
    let Some(version) = version else { return Ok(None) };
    let record = store.version(model, version).await?;
    Ok(record.map(|record| ScoredVersion {
        version: record.name,
        run: record.run,
        manifest_sha256: record.manifest_sha256,
        metrics: record.manifest.map(|manifest| manifest.metrics).unwrap_or_default(),
    }))
}

fn commands(receipt: &ChangeReceipt) -> Vec<String> {
    let ChangeReceipt { model, actor, .. } = receipt;
    let mut commands = vec![format!("refit model history {model}")];
    let versions = [&receipt.serves, &receipt.served].into_iter().flatten();
    commands.extend(versions.map(|scored| format!("refit model card {model} {}", scored.version)));
    if let Some(serves) = &receipt.serves {
        commands.push(format!("refit model verify {model} {}", serves.version));
    }
    let canary = receipt.evidence.as_ref().and_then(Evidence::view).map(|view| view.run);
    let by_run = match actor {
        ReleaseActor::Run { run } | ReleaseActor::Controller { run } | ReleaseActor::Undo { run } => {
            Some(*run)
        }
        ReleaseActor::Human { .. } => None,
    };
    if let Some(run) = by_run.or(canary) {
        commands.push(format!("refit receipt {run}"));
    }
    if let Some(run) = canary {
        commands.push(format!("refit canary minutes {run} | refit canary replay -"));
    }
    commands
}
