//! `model`: versions, what is in them, whether they are whole.

use std::sync::Arc;

use serde_json::{Value, json};

use super::Exit;
use super::args::ModelCommand;
use super::error::{CliError, Doing};
use super::output::{plain, table, time};
use super::pick::{self, short};
use super::project::Opened;
use crate::domain::id::ModelName;
use crate::domain::release::Release;
use crate::domain::version::{VersionRecord, VersionState};
use crate::steps::headline::{bytes, counted, number};
use crate::store::Store;

/// Metrics that a list shows of each version.
const SHOWN_METRICS: usize = 3;

/// `refit model`.
pub async fn model(opened: &Opened, command: &ModelCommand) -> Result<Exit, CliError> {
    let store = opened.store().await?;
    match command {
        ModelCommand::Ls { model } => list(opened, &store, model.as_ref()).await,
        ModelCommand::Show { model, version } => {
            let record = record(&store, model, version).await?;
            show(opened, &store, &record).await
        }
        ModelCommand::Verify { model, version } => {
            let record = record(&store, model, version).await?;
            verify(opened, &store, &record).await
        }
    }
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
        rows.extend(versions.into_iter().map(|record| {
            let roles = roles(&record, &releases);
            (record, roles)
        }));
    }
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

/// What a version is: `champion`, `canary 10%`, `previous`, on which target; `bad`.
fn roles(record: &VersionRecord, releases: &[Release]) -> Vec<String> {
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
    if record.state == VersionState::Bad {
        roles.push("bad".to_owned());
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
    let releases = store.releases(Some(&record.model)).await.doing(|| "read the releases".to_owned())?;
    let roles = roles(record, &releases);
    let value = json!({"version": record, "roles": roles});
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
        text
    });
    Ok(Exit::Ok)
}

async fn verify(opened: &Opened, store: &Arc<dyn Store>, record: &VersionRecord) -> Result<Exit, CliError> {
    let what = format!("verify {} {}", record.model, record.name);
    let (engine, _) = opened.engine(store)?;
    let place = engine.services.stores.get(&record.store).ok_or_else(|| {
        CliError::usage(format!("cannot {what}: refit.toml has no store `{}`", record.store))
            .hint(format!("add [stores.{}] again: it holds this version", record.store))
    })?;
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
