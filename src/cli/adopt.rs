//! `adopt`: takes over the versions that an app serves today, as they lie in a
//! store: `PREFIX/<version>/<file>`. Nothing is written to the store: what makes
//! them versions, their hashes, is kept in the database.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use serde::Serialize;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::Exit;
use super::args::Adopt;
use super::error::{CliError, Doing};
use super::output::plain;
use super::pick;
use super::project::{Opened, actor};
use crate::adapter::{AdapterError, ArtifactStore};
use crate::artifacts::sealed::read_manifest;
use crate::artifacts::{CLAIM, MANIFEST, names, place_path};
use crate::domain::Timestamp;
use crate::domain::history::ChangedBy;
use crate::domain::id::{InstanceId, ModelName, NAME_RULE, StoreName, VersionName};
use crate::domain::metric::Metrics;
use crate::domain::release::ReleaseActor;
use crate::domain::version::{Manifest, ManifestFile, VersionRecord, VersionState};
use crate::domain::words::{bytes, counted};
use crate::engine::by_hand::PromotedByHand;
use crate::store::Store;

/// So many names stand in one message.
const NAMED: usize = 10;
/// Why, when nothing is said.
const WHY: &str = "adopted: it served already";

/// Where the versions are.
struct Place<'a> {
    name: StoreName,
    store: &'a ArtifactStore,
    /// Below the store's own prefix; empty for the store itself.
    prefix: String,
    model: ModelName,
    instance: InstanceId,
}

impl Place<'_> {
    /// Where a version is, below the store's own prefix.
    fn of(&self, version: &VersionName) -> String {
        if self.prefix.is_empty() { version.to_string() } else { format!("{}/{version}", self.prefix) }
    }

    fn failed(&self, what: &str, error: &object_store::Error) -> CliError {
        CliError::new(Exit::Unreachable, format!("cannot {what} in {}: {error}", self.store.label))
            .hint("`refit doctor` checks the store")
    }
}

/// One object of a version.
struct Found {
    file: String,
    location: Path,
    modified: Timestamp,
}

/// What lies below a place.
struct Below {
    versions: BTreeMap<VersionName, Vec<Found>>,
    /// Directories that are called as no version is.
    misnamed: BTreeSet<String>,
}

/// A directory that is not adopted.
#[derive(Serialize)]
struct LeftOut {
    directory: String,
    why: &'static str,
}

impl LeftOut {
    fn new(directory: impl ToString, why: &'static str) -> Self {
        Self { directory: directory.to_string(), why }
    }
}

/// Registers every version found and makes one of them the champion.
pub async fn run(opened: &Opened, args: &Adopt) -> Result<Exit, CliError> {
    let (name, prefix) = args.place.split_once('/').unwrap_or((&args.place, ""));
    let prefix = prefix.trim_matches('/').to_owned();
    let store = opened.store().await?;
    let (engine, _) = opened.engine(&store)?;
    let known: Vec<&str> = engine.services.stores.keys().map(StoreName::as_str).collect();
    let (name, place) =
        engine.services.stores.iter().find(|(known, _)| known.as_str() == name).ok_or_else(|| {
            let error =
                CliError::usage(format!("`{}` does not begin with a store of refit.toml", args.place));
            match (pick::nearest(name, known.iter().copied()), known.first()) {
                (Some(near), _) => error.hint(format!("did you mean `{near}`?")),
                (None, Some(first)) => error.hint(format!(
                    "write STORE/PATH, the path below the store's own prefix, such as `{first}/MODEL`; there \
                     are: {}",
                    known.join(", ")
                )),
                (None, None) => error.hint("add one, as [stores.NAME]"),
            }
        })?;
    let model = model(opened, args, &prefix)?;
    let target = match &args.target {
        Some(target) => target.clone(),
        None => pick::only_target(opened)?,
    };
    let place = Place { name: name.clone(), store: place, prefix, model, instance: store.instance() };
    let release =
        store.release(&place.model, &target).await.doing(|| format!("read the release on {target}"))?;
    if let Some(champion) = release.as_ref().and_then(|release| release.desired.champion.as_ref())
        && champion.version != args.champion
    {
        return Err(CliError::usage(format!(
            "cannot adopt {}: {} serves `{}` on {target} already",
            args.champion, champion.version, place.model
        ))
        .hint(format!("change it with `refit promote {}`", args.champion)));
    }
    let models = known_models(opened, &store, &place.model).await?;
    let Below { versions, misnamed } = below(&place).await?;
    let (published, found): (BTreeMap<_, _>, BTreeMap<_, _>) =
        versions.into_iter().partition(|(name, files)| is_a_models(name, files, &models));
    let mut left_out: Vec<LeftOut> = vec![];
    if !misnamed.is_empty() {
        opened
            .out
            .note(&format!("{}: not what a version is called ({NAME_RULE}): left out", some_of(&misnamed)));
        left_out.extend(misnamed.iter().map(|name| LeftOut::new(name, "not what a version is called")));
    }
    for name in published.keys() {
        opened.out.note(&format!("{name} is where versions of a model are, and no version: left out"));
        left_out.push(LeftOut::new(name, "versions of a model are in it"));
    }
    if !found.contains_key(&args.champion) {
        let names: Vec<&str> = found.keys().map(VersionName::as_str).collect();
        let error = CliError::usage(format!("{} has no version {}", args.place, args.champion));
        return Err(if names.is_empty() {
            error.hint("versions are directories below it, with files in them")
        } else {
            error.hint(format!("it has: {}", names.join(", ")))
        });
    }
    let why = args.why.clone().unwrap_or_else(|| WHY.to_owned());
    let who = actor();
    let by = ChangedBy {
        actor: ReleaseActor::Human { name: who.clone() },
        reason: why.clone(),
        at: opened.clock.now(),
    };
    let mut adopted = vec![];
    // Oldest first, as they would have been made.
    let mut in_order: Vec<_> = found.iter().collect();
    in_order.sort_by_key(|(_, files)| files.iter().map(|found| found.modified).max());
    for (version, files) in in_order {
        if files.iter().any(|found| found.file == CLAIM) && !files.iter().any(|it| it.file == MANIFEST) {
            opened.out.note(&format!("{version} is half an upload of refit: left alone"));
            left_out.push(LeftOut::new(version, "half an upload of refit"));
            continue;
        }
        opened.out.note(&format!("reading {version}: {}", counted(files.len() as u64, "file")));
        adopted.push(register(&store, &place, version, files, &by).await?);
    }
    let done = engine
        // It serves already; refit only takes note of it.
        .promote_despite_freeze(&place.model, &target, &args.champion, false, &who, Some(&why))
        .await
        .doing(|| format!("make {} the champion of `{}` on {target}", args.champion, place.model))?;
    opened.poke().await;
    let generation = match &done {
        PromotedByHand::Done(promoted) => Some(promoted.release.generation),
        PromotedByHand::Run(_) => None,
    };
    let sizes = |record: &VersionRecord| -> (usize, u64) {
        let files = record.manifest.as_ref().map(|manifest| manifest.files.as_slice()).unwrap_or_default();
        (files.len(), files.iter().map(|file| file.size).sum())
    };
    let value = json!({
        "model": place.model, "target": target, "champion": args.champion,
        "versions": adopted.iter().map(|record| {
            let (files, bytes) = sizes(record);
            json!({"version": record.name, "base_url": record.base_url, "files": files, "bytes": bytes})
        }).collect::<Vec<_>>(),
        "left_out": left_out, "generation": generation,
    });
    opened.out.result(&value, || {
        let mut text = format!(
            "adopted {} of {} as they lie in {}; nothing was moved or written there\n",
            counted(adopted.len() as u64, "version"),
            place.model,
            args.place
        );
        for record in adopted.iter().rev() {
            let (files, size) = sizes(record);
            let role = if record.name == args.champion {
                format!(", the champion on {target}")
            } else {
                String::new()
            };
            text.push_str(&format!(
                "  {}  {}, {}{role}\n",
                record.name,
                counted(files as u64, "file"),
                bytes(size)
            ));
        }
        text
    });
    Ok(Exit::Ok)
}

/// The model: as named, else the project's own, else what the directory is called.
fn model(opened: &Opened, args: &Adopt, prefix: &str) -> Result<ModelName, CliError> {
    if let Some(model) = &args.model {
        return Ok(model.clone());
    }
    let catalog = opened.catalog();
    let mut models: Vec<ModelName> =
        catalog.workflows().iter().map(|loaded| loaded.workflow.model.clone()).collect();
    models.sort();
    models.dedup();
    let named: Option<ModelName> = prefix.rsplit('/').next().and_then(|last| last.parse().ok());
    match (models.as_slice(), named) {
        (models, Some(named)) if models.contains(&named) => Ok(named),
        ([one], _) => Ok(one.clone()),
        ([], Some(named)) => Ok(named),
        (_, _) => Err(CliError::usage(format!("cannot adopt {}: which model is it?", args.place))
            .hint("say which with --model")),
    }
}

/// Every model that there is, or will be.
async fn known_models(
    opened: &Opened,
    store: &Arc<dyn Store>,
    model: &ModelName,
) -> Result<BTreeSet<String>, CliError> {
    let kept = store.models().await.doing(|| "read models".to_owned())?;
    let catalog = opened.catalog();
    let ours = catalog.workflows().iter().map(|loaded| &loaded.workflow.model);
    Ok(kept.iter().chain(ours).chain([model]).map(ToString::to_string).collect())
}

/// Whether a directory is where refit publishes a model's versions, and no version itself: it is called like a model, or
/// one level below it lies what refit puts beside a version's files. Uploads of before and refit's own may share a place.
fn is_a_models(name: &VersionName, files: &[Found], models: &BTreeSet<String>) -> bool {
    let is_refits =
        |found: &Found| found.file.split_once('/').is_some_and(|(_, file)| file == CLAIM || file == MANIFEST);
    models.contains(name.as_str()) || files.iter().any(is_refits)
}

/// The first of `names`, as a person reads them.
fn some_of(names: &BTreeSet<String>) -> String {
    let shown: Vec<String> = names.iter().take(NAMED).map(|name| format!("`{}`", plain(name))).collect();
    match names.len().checked_sub(NAMED) {
        Some(more @ 1..) => format!("{} and {more} more", shown.join(", ")),
        Some(0) | None => shown.join(", "),
    }
}

/// Files of every directory below the place, by version.
async fn below(place: &Place<'_>) -> Result<Below, CliError> {
    let below = place_path(place.store, &place.prefix)
        .map_err(|error| CliError::usage(format!("cannot read `{}`: {error}", place.prefix)))?;
    let mut found = Below { versions: BTreeMap::new(), misnamed: BTreeSet::new() };
    let mut objects = place.store.objects.list(Some(&below));
    while let Some(object) = objects.next().await {
        let object = object.map_err(|error| place.failed("list versions", &error))?;
        let Some(parts) = object.location.prefix_match(&below) else { continue };
        let parts: Vec<String> = parts.map(|part| part.as_ref().to_owned()).collect();
        let Some((directory, file)) = parts.split_first() else { continue };
        let file = file.join("/");
        if file.is_empty() {
            continue;
        }
        match directory.parse::<VersionName>() {
            Ok(version) => {
                let modified = object.last_modified;
                let found = found.versions.entry(version).or_default();
                found.push(Found { file, location: object.location, modified });
            }
            Err(_) => drop(found.misnamed.insert(directory.clone())),
        }
    }
    Ok(found)
}

/// Records a version: one that refit sealed with the manifest that is there, any other where it lies.
async fn register(
    store: &Arc<dyn Store>,
    place: &Place<'_>,
    version: &VersionName,
    files: &[Found],
    by: &ChangedBy,
) -> Result<VersionRecord, CliError> {
    let doing = || format!("adopt version {version}");
    let known = store.version(&place.model, version).await.doing(doing)?;
    if let Some(record) = known.filter(|record| record.state.is_whole()) {
        return Ok(record);
    }
    let nowhere = |error: AdapterError| {
        CliError::new(Exit::StepFailed, format!("cannot adopt version {version}: {error}"))
    };
    let mut record = VersionRecord {
        model: place.model.clone(),
        name: version.clone(),
        store: place.name.clone(),
        state: VersionState::Sealed,
        run: None,
        place: None,
        base_url: place.store.base_url(&place.model, version).map_err(nowhere)?,
        manifest_sha256: String::new(),
        manifest: None,
        created_at: by.at,
    };
    if place.prefix == place.model.as_str()
        && files.iter().any(|found| found.file == CLAIM)
        && let Some(sealed) = read_manifest(place.store, &place.model, version)
            .await
            .map_err(|error| CliError::new(Exit::StepFailed, error.to_string()))
            .doing(doing)?
    {
        record.manifest_sha256 = sealed.sha256;
        record.created_at = sealed.manifest.sealed_at;
        record.manifest = Some(sealed.manifest);
    } else {
        let own = place.of(version);
        let manifest = manifest(place, version, files, by).await?;
        let document = serde_json::to_vec(&manifest)
            .map_err(|error| CliError::new(Exit::StepFailed, format!("cannot write a manifest: {error}")))?;
        record.base_url = place.store.url_below(&own).map_err(nowhere)?;
        record.place = Some(own);
        record.manifest_sha256 = hex::encode(Sha256::digest(&document));
        record.created_at = manifest.sealed_at;
        record.manifest = Some(manifest);
    }
    store.adopt_version(&record, by).await.doing(doing)?;
    Ok(record)
}

/// What is known of files that refit did not make.
async fn manifest(
    place: &Place<'_>,
    version: &VersionName,
    files: &[Found],
    by: &ChangedBy,
) -> Result<Manifest, CliError> {
    let made = files.iter().map(|found| found.modified).max().unwrap_or(by.at);
    let mut entries = vec![];
    for found in files {
        if found.file != MANIFEST
            && let Err(odd) = names::check(&found.file)
        {
            return Err(CliError::usage(format!("cannot adopt version {version}: {odd}")));
        }
        entries.push(hashed(place, found).await?);
    }
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(Manifest {
        schema: 1,
        model: place.model.clone(),
        version: version.clone(),
        instance: place.instance,
        run: None,
        sealed_at: made,
        files: entries,
        metrics: Metrics::default(),
        provenance: json!({"adopted": {"by": by.actor.to_string(), "at": by.at, "from": place.of(version)}}),
    })
}

/// Size and hash of a file, streamed: it never has to fit into memory.
async fn hashed(place: &Place<'_>, found: &Found) -> Result<ManifestFile, CliError> {
    let failed = |error| place.failed("read a file", &error);
    let mut stream = place.store.objects.get(&found.location).await.map_err(failed)?.into_stream();
    let (mut hash, mut size) = (Sha256::new(), 0);
    while let Some(chunk) = stream.try_next().await.map_err(failed)? {
        hash.update(&chunk);
        size += chunk.len() as u64;
    }
    Ok(ManifestFile { path: found.file.clone(), size, sha256: hex::encode(hash.finalize()), stored: None })
}
