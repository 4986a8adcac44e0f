//! What a short word on the command line means: which run, which release,
//! which version.

use std::sync::Arc;

use uuid::Uuid;

use super::args::Which;
use super::error::{CliError, Doing};
use super::project::Opened;
use crate::domain::id::{ModelName, RunId, TargetName, VersionName};
use crate::domain::release::{Assignment, Release};
use crate::domain::run::Run;
use crate::store::{RunFilter, Store};

/// Parts of ids are looked for among this many of the newest runs.
const LOOKED_AT: usize = 2000;
const PAGE: u32 = 500;
/// A shorter part of an id would soon mean another run.
const SHORTEST_PART: usize = 4;

/// What stands for a version: what a release serves as that.
type Served = fn(&Assignment) -> Option<&VersionName>;

const WORDS: [(&str, Served); 3] = [
    ("champion", |desired| desired.champion.as_ref().map(|served| &served.version)),
    ("canary", |desired| desired.canary.as_ref().map(|canary| &canary.served.version)),
    ("previous", |desired| desired.previous.as_ref().map(|served| &served.version)),
];

/// The known word that `word` was probably meant to be.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, candidate)| {
            *distance <= 1 + candidate.chars().count().min(word.chars().count()) / 4
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// The end of a run's id: the beginning is time, so runs of one day share it.
pub fn short(run: RunId) -> String {
    short_of(run.0)
}

/// The same of any id.
pub(super) fn short_of(id: Uuid) -> String {
    let id = id.simple().to_string();
    id[id.len() - 8..].to_owned()
}

/// The run that `reference` means: an id, the beginning or end of one, or `last`.
pub async fn run(store: &Arc<dyn Store>, reference: &str) -> Result<Run, CliError> {
    let id = run_id(store, reference).await?;
    let run = store.run(id).await.doing(|| format!("read run {id}"))?;
    run.ok_or_else(|| no_run(reference))
}

async fn run_id(store: &Arc<dyn Store>, reference: &str) -> Result<RunId, CliError> {
    if reference == "last" {
        let filter = RunFilter { limit: 1, ..RunFilter::default() };
        let newest = store.runs(&filter).await.doing(|| "list runs".to_owned())?;
        return newest.first().map(|run| run.id).ok_or_else(|| {
            CliError::usage("there are no runs yet").hint("start one with `refit trigger WORKFLOW`")
        });
    }
    if let Ok(id) = reference.parse::<RunId>() {
        return Ok(id);
    }
    let part: String = reference.chars().filter(|c| *c != '-').collect::<String>().to_ascii_lowercase();
    if part.len() < SHORTEST_PART || !part.chars().all(|c| c.is_ascii_hexdigit()) {
        return Err(CliError::usage(format!("`{reference}` is not a run")).hint(format!(
            "give its id, at least {SHORTEST_PART} characters from the beginning or end of it, or `last`; `refit run ls` lists runs"
        )));
    }
    let mut found: Vec<RunId> = vec![];
    let mut filter = RunFilter { limit: PAGE, ..RunFilter::default() };
    let mut seen = 0;
    while seen < LOOKED_AT {
        let page = store.runs(&filter).await.doing(|| "list runs".to_owned())?;
        seen += page.len();
        filter.before = page.last().map(|run| run.id);
        found.extend(page.iter().map(|run| run.id).filter(|id| is_part(&part, id.0)));
        if page.len() < PAGE as usize {
            break;
        }
    }
    match found.as_slice() {
        [] => Err(no_run(reference)),
        [one] => Ok(*one),
        several => {
            let shown: Vec<String> = several.iter().take(5).map(|id| short(*id)).collect();
            Err(CliError::usage(format!("`{reference}` fits {} runs", several.len()))
                .hint(format!("write more of it; the ends of their ids are {}", shown.join(", "))))
        }
    }
}

/// Whether people mean `id` by `part`: its beginning, its end, or the beginning of the end that lists show.
pub(super) fn is_part(part: &str, id: Uuid) -> bool {
    short_of(id).starts_with(part) || {
        let id = id.simple().to_string();
        id.starts_with(part) || id.ends_with(part)
    }
}

fn no_run(reference: &str) -> CliError {
    CliError::usage(format!("there is no run `{reference}`")).hint("`refit run ls` lists runs")
}

/// The release that `which` means: the only one, unless it is named. `None` where the model serves
/// nothing yet, with the model and target that are meant.
pub async fn release(
    opened: &Opened,
    store: &Arc<dyn Store>,
    which: &Which,
) -> Result<(ModelName, TargetName, Option<Release>), CliError> {
    let releases = store.releases(which.model.as_ref()).await.doing(|| "read the releases".to_owned())?;
    let fitting: Vec<&Release> = releases
        .iter()
        .filter(|release| which.target.as_ref().is_none_or(|target| target == &release.target))
        .collect();
    match fitting.as_slice() {
        [one] => return Ok((one.model.clone(), one.target.clone(), Some((*one).clone()))),
        [] => {}
        several => {
            let names: Vec<String> =
                several.iter().map(|release| format!("{} on {}", release.model, release.target)).collect();
            return Err(CliError::usage(format!("there are several releases: {}", names.join(", ")))
                .hint("say which with --model and --target"));
        }
    }
    let model = match &which.model {
        Some(model) => known_model(&models(opened, store).await?, model)?,
        None => only_model(opened, store).await?,
    };
    let target = match &which.target {
        Some(target) => known_target(opened, target)?,
        None => only_target(opened)?,
    };
    Ok((model, target, None))
}

/// The release that `which` means, for `refit ARGUMENTS VERSION`: a model in the place of the version is said to be one.
pub async fn release_and_version(
    opened: &Opened,
    store: &Arc<dyn Store>,
    which: &Which,
    version: Option<&VersionName>,
    command: &str,
) -> Result<(ModelName, TargetName, Option<Release>), CliError> {
    let picked = release(opened, store, which).await;
    let (None, Some(version)) = (&which.model, version) else { return picked };
    if !models(opened, store).await?.iter().any(|model| model.as_str() == version.as_str()) {
        return picked;
    }
    if let Ok((model, _, _)) = &picked
        && store.version(model, version).await.doing(|| format!("read version {version}"))?.is_some()
    {
        return picked;
    }
    Err(CliError::usage(format!("`{version}` is a model, not a version"))
        .hint(format!("`refit {command} --model {version}`")))
}

/// The only model of the project.
pub async fn only_model(opened: &Opened, store: &Arc<dyn Store>) -> Result<ModelName, CliError> {
    one_of(models(opened, store).await?, "model")
}

/// Models that have versions, and those of the project's workflows.
pub async fn models(opened: &Opened, store: &Arc<dyn Store>) -> Result<Vec<ModelName>, CliError> {
    let mut models = store.models().await.doing(|| "list models".to_owned())?;
    models.extend(opened.catalog().workflows().iter().map(|loaded| loaded.workflow.model.clone()));
    models.sort();
    models.dedup();
    Ok(models)
}

/// `model`, if the project knows it.
fn known_model(known: &[ModelName], model: &ModelName) -> Result<ModelName, CliError> {
    if known.contains(model) {
        return Ok(model.clone());
    }
    let error = CliError::usage(format!("there is no model `{model}`"));
    Err(match nearest(model.as_str(), known.iter().map(ModelName::as_str)) {
        Some(near) => error.hint(format!("did you mean `{near}`?")),
        None => error.hint("`refit model ls` lists all versions of all models"),
    })
}

/// `target`, if `refit.toml` has it.
fn known_target(opened: &Opened, target: &TargetName) -> Result<TargetName, CliError> {
    let known = &opened.project.file.targets;
    if known.contains_key(target) {
        return Ok(target.clone());
    }
    let error = CliError::usage(format!("there is no target `{target}`"));
    Err(match nearest(target.as_str(), known.keys().map(TargetName::as_str)) {
        Some(near) => error.hint(format!("did you mean `{near}`?")),
        None => error.hint(format!("add [targets.{target}] to refit.toml")),
    })
}

/// The only target of `refit.toml`.
pub fn only_target(opened: &Opened) -> Result<TargetName, CliError> {
    one_of(opened.project.file.targets.keys().cloned().collect(), "target")
}

fn one_of<T: std::fmt::Display>(mut all: Vec<T>, what: &str) -> Result<T, CliError> {
    match all.len() {
        1 => Ok(all.remove(0)),
        0 => Err(CliError::usage(format!("this project has no {what} yet")).hint(match what {
            "target" => "add one to refit.toml, under [targets.NAME]",
            _ => "name it with --model",
        })),
        _ => {
            let names: Vec<String> = all.iter().map(ToString::to_string).collect();
            Err(CliError::usage(format!("there are several {what}s: {}", names.join(", ")))
                .hint(format!("say which with --{what}")))
        }
    }
}

/// The version that `word` means beside one release: what it serves as `champion`, `canary` or `previous`, or a name.
pub fn version_of(
    model: &ModelName,
    release: Option<&Release>,
    word: &VersionName,
) -> Result<VersionName, CliError> {
    match WORDS.iter().find(|(known, _)| *known == word.as_str()) {
        None => Ok(word.clone()),
        Some((_, served)) => release
            .and_then(|release| served(&release.desired))
            .cloned()
            .ok_or_else(|| none(model, word.as_str())),
    }
}

fn none(model: &ModelName, word: &str) -> CliError {
    CliError::usage(format!("`{model}` has no {word}"))
        .hint(format!("`refit model ls {model}` lists its versions"))
}

/// The version that `word` means: `champion`, `canary`, `previous`, or a name.
pub async fn version(store: &Arc<dyn Store>, model: &ModelName, word: &str) -> Result<VersionName, CliError> {
    let Some((_, served)) = WORDS.iter().find(|(known, _)| *known == word) else {
        return word.parse().map_err(|error| CliError::usage(format!("{error}")));
    };
    let releases = store.releases(Some(model)).await.doing(|| format!("read the releases of `{model}`"))?;
    let mut found: Vec<VersionName> =
        releases.iter().filter_map(|release| served(&release.desired)).cloned().collect();
    found.sort();
    found.dedup();
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(none(model, word)),
        several => {
            let names: Vec<String> = several.iter().map(ToString::to_string).collect();
            Err(CliError::usage(format!("the {word} of `{model}` differs by target: {}", names.join(", ")))
                .hint("name the version"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typo_finds_its_word_and_a_stranger_finds_none() {
        assert_eq!(nearest("retain", ["retrain", "nightly"]), Some("retrain"));
        assert_eq!(nearest("nigthly", ["retrain", "nightly"]), Some("nightly"));
        assert_eq!(nearest("deploy", ["retrain", "nightly"]), None);
    }

    #[test]
    fn both_ends_of_an_id_are_parts_of_it() {
        let id: RunId = "0199f3a1-7c11-7abc-8def-0123456789ab".parse().expect("an id");
        assert_eq!(short(id), "456789ab");
        assert!(is_part("0199f3a1", id.0) && is_part("89ab", id.0) && !is_part("7abc", id.0));
        assert!(is_part("4567", id.0), "the beginning of what lists show");
    }
}
