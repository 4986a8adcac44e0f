//! `model`: versions, what is in them, whether they are whole, who changed what.

mod card;
mod changes;
mod diff;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use super::Exit;
use super::args::{ModelCommand, OneVersion, Which};
use super::error::{CliError, Doing};
use super::output::{plain, table, time};
use super::pick::{self, short};
use super::project::Opened;
use super::{receipt, registry};
use crate::adapter::ArtifactStore;
use crate::domain::history::HistoryEntry;
use crate::domain::id::ModelName;
use crate::domain::release::Release;
use crate::domain::retention::Pin;
use crate::domain::version::{VersionRecord, VersionState};
use crate::domain::words::{bytes, counted, number};
use crate::engine::Engine;
use crate::store::Store;
use card::Card;

/// Changes of a model among which those of a version are looked for.
const LOOKED_AT: u32 = 1000;
/// Metrics that a list shows of each version.
const SHOWN_METRICS: usize = 3;

/// `refit model`.
pub async fn model(opened: &Opened, command: &ModelCommand) -> Result<Exit, CliError> {
    let store = opened.store().await?;
    match command {
        ModelCommand::Ls { model } => list(opened, &store, model.as_ref()).await,
        ModelCommand::Show(version) => {
            let record = which(opened, &store, version).await?;
            show(opened, &store, &record).await
        }
        ModelCommand::Diff { one, other, model } => {
            let model = model_of(opened, &store, model.as_ref()).await?;
            let one = record(&store, &model, one).await?;
            let other = record(&store, &model, other).await?;
            diff::print(opened, &one, &other);
            Ok(Exit::Ok)
        }
        ModelCommand::Verify(version) => {
            let record = which(opened, &store, version).await?;
            verify(opened, &store, &record).await
        }
        ModelCommand::Pull { which: version, to } => {
            let record = which(opened, &store, version).await?;
            pull(opened, &store, &record, to.as_deref()).await
        }
        ModelCommand::Card { which: version, to } => {
            let record = which(opened, &store, version).await?;
            card(opened, &store, &record, to.as_deref()).await
        }
        ModelCommand::Pin(change) => changes::pin(opened, &store, change, true).await,
        ModelCommand::Unpin(change) => changes::pin(opened, &store, change, false).await,
        ModelCommand::Mark { change, bad, good: _ } => changes::mark(opened, &store, change, *bad).await,
        ModelCommand::Receipt { generation, model, target, paper } => {
            let which = Which { model: model.clone(), target: target.clone(), why: None };
            receipt::of_change(opened, &store, &which, *generation, paper).await
        }
        ModelCommand::History { model, limit } => {
            changes::history(opened, &store, model.as_ref(), *limit).await
        }
    }
}

/// The version that `version` means.
async fn which(
    opened: &Opened,
    store: &Arc<dyn Store>,
    version: &OneVersion,
) -> Result<VersionRecord, CliError> {
    let model = model_of(opened, store, version.model.as_ref()).await?;
    let mut record = record(store, &model, &version.version).await?;
    say_where(opened, [&mut record])?;
    Ok(record)
}

/// Where the files of versions are by the settings of today; a store may have moved since they were published. What cannot
/// be said here, for want of a secret perhaps, stays as it was then.
fn say_where<'r>(
    opened: &Opened,
    records: impl IntoIterator<Item = &'r mut VersionRecord>,
) -> Result<(), CliError> {
    let stores = registry::stores(&opened.project, &opened.secrets)?;
    for record in records.into_iter().filter(|record| !record.base_url.is_empty()) {
        let store = stores.get(&record.store);
        if let Some(today) = store.and_then(|store| store.base_url_of(record).ok()) {
            record.base_url = today;
        }
    }
    Ok(())
}

async fn model_of(
    opened: &Opened,
    store: &Arc<dyn Store>,
    model: Option<&ModelName>,
) -> Result<ModelName, CliError> {
    match model {
        Some(model) => Ok(model.clone()),
        None => pick::only_model(opened, store).await,
    }
}

/// Refuses a model that nobody knows.
async fn check_model(store: &Arc<dyn Store>, model: &ModelName) -> Result<(), CliError> {
    let known = store.models().await.doing(|| "list models".to_owned())?;
    if known.contains(model) { Ok(()) } else { Err(no_model(model, &known)) }
}

async fn list(opened: &Opened, store: &Arc<dyn Store>, model: Option<&ModelName>) -> Result<Exit, CliError> {
    let known = store.models().await.doing(|| "list models".to_owned())?;
    if let Some(model) = model.filter(|model| !known.contains(model)) {
        return Err(no_model(model, &known));
    }
    let models = model.map_or(known, |model| vec![model.clone()]);
    let mut rows: Vec<(VersionRecord, Vec<String>)> = vec![];
    for model in &models {
        let releases = store.releases(Some(model)).await.doing(|| "read the releases".to_owned())?;
        let versions = store.versions(model).await.doing(|| format!("list the versions of `{model}`"))?;
        let pins = store.pins(Some(model)).await.doing(|| "read the pins".to_owned())?;
        rows.extend(versions.into_iter().map(|record| {
            let roles = roles(&record, &releases, &pins);
            (record, roles)
        }));
    }
    say_where(opened, rows.iter_mut().map(|(record, _)| record))?;
    let value: Vec<Value> = rows
        .iter()
        .map(|(record, roles)| {
            json!({
                "model": record.model, "version": record.name, "state": record.state, "roles": roles,
                "store": record.store, "run": record.run, "created_at": record.created_at,
                "metrics": record.manifest.as_ref().map(|manifest| &manifest.metrics),
                "base_url": record.base_url, "manifest_sha256": record.manifest_sha256,
            })
        })
        .collect();
    opened.out.result(&value, || {
        if rows.is_empty() {
            return "no versions yet; a workflow with a `publish` step makes them, `refit adopt` takes over old ones".to_owned();
        }
        table(
            &["MODEL", "VERSION", "SERVES", "METRICS", "SIZE", "MADE", "RUN"],
            rows.iter().map(|(record, roles)| {
                let size = record.manifest.as_ref().map(|manifest| manifest.files.iter().map(|file| file.size).sum());
                vec![
                    record.model.to_string(),
                    record.name.to_string(),
                    if roles.is_empty() { "-".to_owned() } else { roles.join(", ") },
                    metrics(record, SHOWN_METRICS),
                    size.map(bytes).unwrap_or_default(),
                    time(record.created_at),
                    record.run.map_or("adopted".to_owned(), short),
                ]
            }),
        )
    });
    Ok(Exit::Ok)
}

/// What a version is: `champion`, `canary 10 %`, `previous`, on which target; `pinned`; `bad`.
fn roles(record: &VersionRecord, releases: &[Release], pins: &[Pin]) -> Vec<String> {
    let mut roles: Vec<String> = vec![];
    for release in releases {
        let on = if releases.len() > 1 { format!(" on {}", release.target) } else { String::new() };
        let desired = &release.desired;
        let is = |version: &crate::domain::id::VersionName| version == &record.name;
        if desired.champion.as_ref().is_some_and(|served| is(&served.version)) {
            roles.push(format!("champion{on}"));
        }
        if let Some(canary) = desired.canary.as_ref().filter(|canary| is(&canary.served.version)) {
            roles.push(format!("canary {}{on}", canary.basis_points));
        }
        if desired.previous.as_ref().is_some_and(|served| is(&served.version)) {
            roles.push(format!("previous{on}"));
        }
    }
    if pins.iter().any(|pin| pin.model == record.model && pin.version == record.name) {
        roles.push("pinned".to_owned());
    }
    match record.state {
        VersionState::Bad => roles.push("bad".to_owned()),
        VersionState::Deleting => roles.push("being deleted".to_owned()),
        VersionState::Deleted => roles.push("deleted".to_owned()),
        VersionState::Sealed | VersionState::Reserved | VersionState::Abandoned => {}
    }
    roles
}

fn metrics(record: &VersionRecord, most: usize) -> String {
    let Some(manifest) = &record.manifest else { return String::new() };
    let values = manifest.metrics.values.iter().take(most);
    values.map(|(name, value)| format!("{name} {}", number(*value))).collect::<Vec<_>>().join(", ")
}

async fn record(store: &Arc<dyn Store>, model: &ModelName, word: &str) -> Result<VersionRecord, CliError> {
    let name = pick::version(store, model, word).await?;
    let record = store.version(model, &name).await.doing(|| format!("read version {name}"))?;
    if let Some(record) = record {
        return Ok(record);
    }
    let known = store.models().await.doing(|| "list models".to_owned())?;
    if !known.contains(model) {
        return Err(no_model(model, &known));
    }
    let versions = store.versions(model).await.doing(|| format!("list the versions of `{model}`"))?;
    let names: Vec<&str> = versions.iter().map(|record| record.name.as_str()).collect();
    let error = CliError::usage(format!("`{model}` has no version `{name}`"));
    Err(match pick::nearest(name.as_str(), names) {
        Some(near) => error.hint(format!("did you mean `{near}`?")),
        None => error.hint(format!("`refit model ls {model}` lists its versions")),
    })
}

fn no_model(model: &ModelName, known: &[ModelName]) -> CliError {
    let error = CliError::usage(format!("there is no model `{model}`"));
    match pick::nearest(model.as_str(), known.iter().map(|model| model.as_str())) {
        Some(near) => error.hint(format!("did you mean `{near}`?")),
        None => error.hint("`refit model ls` lists all versions of all models"),
    }
}

async fn show(opened: &Opened, store: &Arc<dyn Store>, record: &VersionRecord) -> Result<Exit, CliError> {
    let told = told(store, record).await?;
    let Told { roles, history, .. } = &told;
    let value = json!({"version": record, "roles": roles, "history": history});
    opened.out.result(&value, || {
        let maker = record.run.map_or("adopted".to_owned(), |run| format!("by run {}", short(run)));
        let mut text = format!(
            "{} {}\nserves   {}\nmade     {} {maker}\nstore    {}\nfiles at {}\nmanifest sha256 {}\n",
            record.model,
            record.name,
            if roles.is_empty() { "nobody".to_owned() } else { roles.join(", ") },
            time(record.created_at),
            record.store,
            record.base_url,
            record.manifest_sha256
        );
        if let Some(manifest) = &record.manifest {
            for (name, value) in &manifest.metrics.values {
                text.push_str(&format!("{name:<8} {}\n", number(*value)));
            }
            let rows = manifest
                .files
                .iter()
                .map(|file| vec![file.path.clone(), bytes(file.size), file.sha256.clone()]);
            text.push_str(&format!("\n{}\n", table(&["FILE", "SIZE", "SHA256"], rows)));
            for (segment, metrics) in &manifest.metrics.segments {
                let values: Vec<String> =
                    metrics.values.iter().map(|(name, value)| format!("{name} {}", number(*value))).collect();
                text.push_str(&format!("\nsegment {}: {}", plain(segment), values.join(", ")));
            }
            if let Some(facts) = manifest.provenance.as_object().filter(|facts| !facts.is_empty()) {
                text.push_str("\ncame from\n");
                for (name, value) in facts {
                    let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                    text.push_str(&format!("  {}: {}\n", plain(name), plain(&value)));
                }
            }
        }
        if !history.is_empty() {
            text.push_str(&format!("\nhistory\n{}\n", changes::changes(history, false)));
        }
        text
    });
    Ok(Exit::Ok)
}

/// What is known of a version beside its record.
struct Told {
    roles: Vec<String>,
    /// Changes that concern it, newest first.
    history: Vec<HistoryEntry>,
}

async fn told(store: &Arc<dyn Store>, record: &VersionRecord) -> Result<Told, CliError> {
    let model = &record.model;
    let releases = store.releases(Some(model)).await.doing(|| "read the releases".to_owned())?;
    let pins = store.pins(Some(model)).await.doing(|| "read the pins".to_owned())?;
    let mut history = store.history(Some(model), LOOKED_AT).await.doing(|| "read the history".to_owned())?;
    history.retain(|entry| entry.change.concerns(&record.name));
    Ok(Told { roles: roles(record, &releases, &pins), history })
}

/// The store that holds a version.
fn place_of<'e>(
    engine: &'e Engine,
    record: &VersionRecord,
    what: &str,
) -> Result<&'e ArtifactStore, CliError> {
    engine.services.stores.get(&record.store).ok_or_else(|| {
        CliError::usage(format!("cannot {what}: refit.toml has no store `{}`", record.store))
            .hint(format!("add [stores.{}] again: it holds this version", record.store))
    })
}

async fn pull(
    opened: &Opened,
    store: &Arc<dyn Store>,
    record: &VersionRecord,
    to: Option<&Path>,
) -> Result<Exit, CliError> {
    let what = format!("pull {} {}", record.model, record.name);
    let dir = to.map_or_else(|| PathBuf::from(record.name.as_str()), Path::to_owned);
    let shown = dir.display();
    let manifest = record.manifest.as_ref().filter(|_| record.state.is_whole()).ok_or_else(|| {
        CliError::usage(format!("cannot {what}: it is not a whole version"))
            .hint(format!("`refit model ls {}` lists whole versions", record.model))
    })?;
    let occupied = match std::fs::read_dir(&dir) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        Err(error) => return Err(CliError::usage(format!("cannot {what} to {shown}: {error}"))),
    };
    if occupied && !crate::artifacts::sealed::has_all(&dir, manifest).await {
        return Err(CliError::usage(format!("cannot {what} to {shown}: there is something else"))
            .hint("name a directory that is empty or not there with --to DIR"));
    }
    let (engine, _) = opened.engine(store)?;
    let place = place_of(&engine, record, &what)?;
    super::registry::fetch(place, record, &dir).await.map_err(|error| {
        let exit = if error.is_transient() { Exit::Unreachable } else { Exit::StepFailed };
        CliError::new(exit, format!("cannot {what} to {shown}: {error}"))
            .hint("nothing was left there; `refit doctor` checks the store")
    })?;
    let total: u64 = manifest.files.iter().map(|file| file.size).sum();
    let files = manifest.files.len() as u64;
    let value = json!({
        "model": record.model, "version": record.name, "dir": dir, "files": files, "bytes": total,
        "manifest_sha256": record.manifest_sha256,
    });
    opened.out.result(&value, || {
        format!(
            "{} {} is in {shown}: {}, {}, as sealed",
            record.model,
            record.name,
            counted(files, "file"),
            bytes(total)
        )
    });
    Ok(Exit::Ok)
}

async fn card(
    opened: &Opened,
    store: &Arc<dyn Store>,
    record: &VersionRecord,
    to: Option<&Path>,
) -> Result<Exit, CliError> {
    let told = told(store, record).await?;
    let canary = match record.run {
        Some(run) => store.canary_of(run).await.doing(|| "read the canary".to_owned())?,
        None => None,
    };
    let canary = canary.filter(|canary| canary.version == record.name);
    let card = Card { record, roles: &told.roles, canary: canary.as_ref(), history: &told.history };
    match to {
        None => opened.out.result(&card.to_json(), || card.to_markdown()),
        Some(to) => {
            let text = if opened.out.json { card.to_json().to_string() } else { card.to_markdown() };
            std::fs::write(to, text)
                .map_err(|error| CliError::usage(format!("cannot write {}: {error}", to.display())))?;
            opened.out.note(&format!("wrote {}", to.display()));
        }
    }
    Ok(Exit::Ok)
}

async fn verify(opened: &Opened, store: &Arc<dyn Store>, record: &VersionRecord) -> Result<Exit, CliError> {
    let what = format!("verify {} {}", record.model, record.name);
    let (engine, _) = opened.engine(store)?;
    let place = place_of(&engine, record, &what)?;
    super::registry::verify(place, record).await.map_err(|error| {
        let exit = if error.is_transient() { Exit::Unreachable } else { Exit::StepFailed };
        CliError::new(exit, format!("cannot {what}: {error}"))
            .hint("a version that is not whole is never served: roll back if it is, and train a new one")
    })?;
    let files = record.manifest.as_ref().map_or(0, |manifest| manifest.files.len());
    let value = json!({"model": record.model, "version": record.name, "whole": true, "files": files});
    opened.out.result(&value, || {
        format!("{} {} is whole: {} as sealed", record.model, record.name, counted(files as u64, "file"))
    });
    Ok(Exit::Ok)
}
