//! Files below `.refit` that nothing needs: those of finished runs, versions
//! fetched for trainers, and what old simulations left. Only what this machine has.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::error::{CliError, Doing};
use super::pick::short;
use crate::domain::Timestamp;
use crate::domain::id::{ModelName, RunId, VersionName};
use crate::domain::run::RunStatus;
use crate::domain::workflow::units::format_duration;
use crate::engine::Engine;
use crate::simulate::FINISHED;
use crate::store::{RunFilter, Store};

/// A directory that nothing needs.
#[derive(Debug, Serialize)]
pub struct Old {
    /// What it is.
    pub what: String,
    /// Where.
    pub path: PathBuf,
    /// Its bytes.
    pub bytes: u64,
    /// Why it may go.
    pub why: String,
}

/// Directories below `.refit`.
#[derive(Debug, Default, Serialize)]
pub struct OldFiles {
    /// Nothing needs them.
    pub gone: Vec<Old>,
    /// How many stay, and why.
    pub kept: Vec<(u64, String)>,
    /// While these are locked, no simulation uses what is gone.
    #[serde(skip)]
    locks: Vec<File>,
}

/// Looks at this machine's files.
pub async fn look(engine: &Arc<Engine>, store: &Arc<dyn Store>) -> Result<OldFiles, CliError> {
    let mut found = OldFiles::default();
    runs(engine, store, &mut found).await?;
    versions(engine, store, &mut found).await?;
    simulations(engine, &mut found);
    Ok(found)
}

async fn runs(engine: &Arc<Engine>, store: &Arc<dyn Store>, found: &mut OldFiles) -> Result<(), CliError> {
    let age = engine.settings.ages.run_files;
    let (mut unknown, mut unfinished, mut young) = (0, 0, 0);
    for (name, path) in directories(&engine.state.join("runs")) {
        let Ok(id) = name.parse::<RunId>() else { continue };
        let run = store.run(id).await.doing(|| format!("read run {id}"))?;
        match run {
            None => unknown += 1,
            Some(run) if run.status != RunStatus::Finished => unfinished += 1,
            Some(run) => match run.finished_at {
                Some(at) if at + age <= engine.clock.now() => found.gone.push(Old {
                    what: format!("files of run {}", short(id)),
                    bytes: size(&path),
                    path,
                    why: format!("it ended more than {} ago", span(age)),
                }),
                Some(_) | None => young += 1,
            },
        }
    }
    let ended = format!("of runs that ended less than {} ago", span(age));
    let others = "of runs that this database does not know".to_owned();
    for (count, why) in
        [(unfinished, "of runs that have not ended".to_owned()), (young, ended), (unknown, others)]
    {
        if count > 0 {
            found.kept.push((count, why));
        }
    }
    Ok(())
}

/// Copies of versions: fetched again when a trainer wants one.
async fn versions(
    engine: &Arc<Engine>,
    store: &Arc<dyn Store>,
    found: &mut OldFiles,
) -> Result<(), CliError> {
    let age = engine.settings.ages.cached_versions;
    let mut kept = 0;
    for (model, of_model) in directories(&engine.state.join("versions")) {
        let Ok(model) = model.parse::<ModelName>() else { continue };
        let releases = store.releases(Some(&model)).await.doing(|| "read the releases".to_owned())?;
        let busy = is_at_work(store, &model).await?;
        for (version, path) in directories(&of_model) {
            let Ok(version) = version.parse::<VersionName>() else { continue };
            let serves = releases.iter().any(|release| {
                release.desired.champion.as_ref().is_some_and(|served| served.version == version)
            });
            let old = written(&path).is_some_and(|at| at + age <= engine.clock.now());
            if busy || serves || !old {
                kept += 1;
                continue;
            }
            found.gone.push(Old {
                what: format!("copy of {model} {version}"),
                bytes: size(&path),
                path,
                why: "fetched for a trainer; it does not serve any more".to_owned(),
            });
        }
    }
    if kept > 0 {
        found.kept.push((kept, "copies of versions that serve, are new, or that a run may use".to_owned()));
    }
    Ok(())
}

/// Trainings of past weeks that no simulation used for long, and all of a workflow's when it was not simulated for long.
fn simulations(engine: &Arc<Engine>, found: &mut OldFiles) {
    let age = engine.settings.ages.run_files;
    let is_old = |at: Option<Timestamp>| at.is_some_and(|at| at + age <= engine.clock.now());
    let (mut young, mut busy) = (0, 0);
    for (workflow, dir) in directories(&engine.state.join("simulate")) {
        let lock = dir.join("lock");
        let Ok(locked) = File::open(&lock) else { continue };
        match locked.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => {
                busy += 1;
                continue;
            }
        }
        // Each simulation writes its lock anew, and marks what it found of an earlier one as used.
        let (of_all, parts) = if is_old(written(&lock)) {
            (true, directories(&dir))
        } else {
            (false, directories(&dir.join("trained")))
        };
        for (part, path) in parts {
            let used = written(&path.join(FINISHED)).or_else(|| written(&path));
            if !of_all && !is_old(used) {
                young += 1;
                continue;
            }
            let what = if of_all { part } else { format!("training {}", part.get(..8).unwrap_or(&part)) };
            found.gone.push(Old {
                what: format!("simulation of {workflow}: {what}"),
                bytes: size(&path),
                path,
                why: format!("no simulation used it for {}", span(age)),
            });
        }
        found.locks.push(locked);
    }
    for (count, why) in [
        (young, format!("of trainings that a simulation used less than {} ago", span(age))),
        (busy, "of simulations under way".to_owned()),
    ] {
        if count > 0 {
            found.kept.push((count, why));
        }
    }
}

/// When a file, or the list of a directory, was written last.
fn written(path: &Path) -> Option<Timestamp> {
    path.metadata().and_then(|found| found.modified()).ok().map(Into::into)
}

/// Whether a run of the model has not ended: its trainer may read a copy.
async fn is_at_work(store: &Arc<dyn Store>, model: &ModelName) -> Result<bool, CliError> {
    for status in
        [RunStatus::Queued, RunStatus::Running, RunStatus::Waiting, RunStatus::Held, RunStatus::Undoing]
    {
        let filter =
            RunFilter { model: Some(model.clone()), status: Some(status), limit: 1, ..RunFilter::default() };
        if !store.runs(&filter).await.doing(|| "list runs".to_owned())?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Directories in `dir`, by name; links are none.
fn directories(dir: &Path) -> Vec<(String, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(dir) else { return vec![] };
    let mut found: Vec<_> = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
        .collect();
    found.sort();
    found
}

/// Bytes of all files below `dir`; links count nothing.
fn size(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => size(&entry.path()),
        Ok(found) if found.is_file() => found.len(),
        Ok(_) | Err(_) => 0,
    });
    sizes.sum()
}

fn span(age: chrono::TimeDelta) -> String {
    age.to_std().map(format_duration).unwrap_or_default()
}
