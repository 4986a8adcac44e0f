//! `adopt`: takes over the versions that an app serves today, as they lie in a
//! store: `PREFIX/<version>/<file>`. Their files stay as they are; each gets
//! the manifest that makes it a version.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutMode, PutOptions};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::Exit;
use super::args::Adopt;
use super::error::{CliError, Doing};
use super::pick;
use super::project::{Opened, actor};
use crate::adapter::ArtifactStore;
use crate::domain::id::{InstanceId, ModelName, StoreName, VersionName};
use crate::domain::metric::Metrics;
use crate::domain::version::{Manifest, ManifestFile, VersionRecord, VersionState};
use crate::engine::release::PromotedByHand;
use crate::steps::headline::counted;
use crate::store::Store;

/// The document that makes files a version.
const MANIFEST: &str = "manifest.json";
/// What refit writes beside the files of a version.
const CLAIM: &str = "_claim.json";

/// Where the versions are.
struct Place<'a> {
    name: StoreName,
    store: &'a ArtifactStore,
    model: ModelName,
    instance: InstanceId,
}

impl Place<'_> {
    fn dir(&self, version: &VersionName) -> Path {
        self.store.prefix.clone().join(self.model.as_str()).join(version.as_str())
    }

    fn failed(&self, what: &str, error: &object_store::Error) -> CliError {
        CliError::new(Exit::Unreachable, format!("cannot {what} in {}: {error}", self.store.label))
            .hint("`refit doctor` checks the store")
    }
}

/// Registers every version found and makes one of them the champion.
pub async fn run(opened: &Opened, args: &Adopt) -> Result<Exit, CliError> {
    let (name, prefix) = args.place.split_once('/').ok_or_else(|| {
        CliError::usage(format!("`{}` is not STORE/PREFIX", args.place))
            .hint("name a store of refit.toml and the directory in it that holds the model's versions, such as models/race-times")
    })?;
    let prefix = prefix.trim_matches('/');
    let store = opened.store().await?;
    let (engine, _) = opened.engine(&store)?;
    let known: Vec<&str> = engine.services.stores.keys().map(StoreName::as_str).collect();
    let (name, place) =
        engine.services.stores.iter().find(|(known, _)| known.as_str() == name).ok_or_else(|| {
            let error = CliError::usage(format!("refit.toml has no store `{name}`"));
            match pick::nearest(name, known.iter().copied()) {
                Some(near) => error.hint(format!("did you mean `{near}`?")),
                None => error.hint(format!("it has: {}", known.join(", "))),
            }
        })?;
    let model = model(args, prefix)?;
    let target = match &args.target {
        Some(target) => target.clone(),
        None => pick::only_target(opened)?,
    };
    let place = Place { name: name.clone(), store: place, model, instance: store.instance() };
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
    let found = versions(&place).await?;
    if !found.contains_key(&args.champion) {
        let names: Vec<&str> = found.keys().map(VersionName::as_str).collect();
        let error = CliError::usage(format!("{} has no version {}", args.place, args.champion));
        return Err(if names.is_empty() {
            error.hint("versions are directories below it, with files in them")
        } else {
            error.hint(format!("it has: {}", names.join(", ")))
        });
    }
    for (version, files) in &found {
        opened.out.note(&format!("reading {version}: {}", counted(files.len() as u64, "file")));
        register(opened, &store, &place, version, files).await?;
    }
    let done = engine
        .promote_by_hand(
            &place.model,
            &target,
            &args.champion,
            false,
            &actor(),
            Some("adopted: it served already"),
        )
        .await
        .doing(|| format!("make {} the champion of `{}` on {target}", args.champion, place.model))?;
    opened.poke().await;
    let generation = match &done {
        PromotedByHand::Done(release) => Some(release.generation),
        PromotedByHand::Run(_) => None,
    };
    let value = json!({
        "model": place.model, "target": target, "champion": args.champion,
        "versions": found.keys().collect::<Vec<_>>(), "generation": generation,
    });
    opened.out.result(&value, || {
        format!(
            "adopted {} of {}; {} is the champion on {target}",
            counted(found.len() as u64, "version"),
            place.model,
            args.champion
        )
    });
    Ok(Exit::Ok)
}

/// Versions are kept below the name of their model, so the directory says which one it is.
fn model(args: &Adopt, prefix: &str) -> Result<ModelName, CliError> {
    let named: ModelName = prefix.parse().map_err(|error| {
        CliError::usage(format!("cannot adopt {}: {error}", args.place))
            .hint("the directory that holds the versions is named after the model; what comes before it belongs into the store's own table of refit.toml")
    })?;
    match &args.model {
        Some(model) if *model != named => Err(CliError::usage(format!(
            "cannot adopt {} as `{model}`: the versions of a model are kept below its name",
            args.place
        ))
        .hint(format!("name the model `{named}`, or copy the files to {model}/ first"))),
        Some(_) | None => Ok(named),
    }
}

/// Files of every directory below the model, by version.
async fn versions(place: &Place<'_>) -> Result<BTreeMap<VersionName, Vec<(String, Path)>>, CliError> {
    let below = place.store.prefix.clone().join(place.model.as_str());
    let mut found: BTreeMap<VersionName, Vec<(String, Path)>> = BTreeMap::new();
    let mut objects = place.store.objects.list(Some(&below));
    while let Some(object) = objects.next().await {
        let object = object.map_err(|error| place.failed("list versions", &error))?;
        let Some(parts) = object.location.prefix_match(&below) else { continue };
        let parts: Vec<String> = parts.map(|part| part.as_ref().to_owned()).collect();
        let Some((version, file)) = parts.split_first() else { continue };
        let Ok(version) = version.parse::<VersionName>() else { continue };
        let file = file.join("/");
        if !file.is_empty() && file != CLAIM {
            found.entry(version).or_default().push((file, object.location.clone()));
        }
    }
    Ok(found)
}

/// Writes the manifest if there is none yet, and records the version.
async fn register(
    opened: &Opened,
    store: &Arc<dyn Store>,
    place: &Place<'_>,
    version: &VersionName,
    files: &[(String, Path)],
) -> Result<(), CliError> {
    let known = store.version(&place.model, version).await.doing(|| format!("read version {version}"))?;
    if known.is_some_and(|record| matches!(record.state, VersionState::Sealed | VersionState::Bad)) {
        return Ok(());
    }
    let at = place.dir(version).join(MANIFEST);
    if !files.iter().any(|(file, _)| file == MANIFEST) {
        let manifest = Manifest {
            schema: 1,
            model: place.model.clone(),
            version: version.clone(),
            instance: place.instance,
            run: None,
            sealed_at: opened.clock.now(),
            files: hashed(place, files).await?,
            metrics: Metrics::default(),
            provenance: json!({"adopted_by": actor()}),
        };
        let bytes = serde_json::to_vec_pretty(&manifest)
            .map_err(|error| CliError::new(Exit::StepFailed, format!("cannot write a manifest: {error}")))?;
        let create = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match place.store.objects.put_opts(&at, bytes.into(), create).await {
            // Somebody sealed it in between: theirs counts.
            Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => {}
            Err(error) => return Err(place.failed("write a manifest", &error)),
        }
    }
    let bytes = read(place, &at).await?;
    let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|error| {
        CliError::usage(format!("{at} in {} is not a manifest of refit: {error}", place.store.label))
            .hint("if it is one of the model's own files, give it another name")
    })?;
    let record = VersionRecord {
        model: place.model.clone(),
        name: version.clone(),
        store: place.name.clone(),
        state: VersionState::Sealed,
        run: None,
        base_url: place.store.base_url(&place.model, version),
        manifest_sha256: hex(&Sha256::digest(&bytes)),
        created_at: manifest.sealed_at,
        manifest: Some(manifest),
    };
    store.adopt_version(&record).await.doing(|| format!("record version {version}"))
}

async fn read(place: &Place<'_>, at: &Path) -> Result<bytes::Bytes, CliError> {
    let failed = |error| place.failed("read a manifest", &error);
    place.store.objects.get(at).await.map_err(failed)?.bytes().await.map_err(failed)
}

/// Size and hash of every file, streamed: a file never has to fit into memory.
async fn hashed(place: &Place<'_>, files: &[(String, Path)]) -> Result<Vec<ManifestFile>, CliError> {
    let mut all = vec![];
    for (path, location) in files {
        let failed = |error| place.failed("read a file", &error);
        let mut stream = place.store.objects.get(location).await.map_err(failed)?.into_stream();
        let (mut hash, mut size) = (Sha256::new(), 0);
        while let Some(chunk) = stream.try_next().await.map_err(failed)? {
            hash.update(&chunk);
            size += chunk.len() as u64;
        }
        all.push(ManifestFile { path: path.clone(), size, sha256: hex(&hash.finalize()) });
    }
    all.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(all)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
