//! One training: the workflow's own commands on the data of one week. What it
//! left is kept under a name made of all it depends on, written whole or not at
//! all: a process that was killed finds it again, and never half of it.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::Simulation;
use super::data::Weeks;
use super::ledger::{NoLog, PastLedger};
use super::project::clear;
use crate::adapter::Deps;
use crate::clock::{Clock, ManualClock, SystemClock};
use crate::domain::Timestamp;
use crate::domain::event::{Cause, Event};
use crate::domain::id::{Epoch, EventId, InstanceId, RunId, StepId, StoreName, VersionName};
use crate::domain::metric::Metrics;
use crate::domain::pipeline;
use crate::domain::run::{Attempt, AttemptState, Run, RunStatus};
use crate::domain::simulate::{Block, Scores, Week};
use crate::domain::version::{Manifest, ManifestFile, VersionRecord, VersionState};
use crate::domain::workflow::{Step, StepKind, step};
use crate::steps::context::{Dirs, Services, StepContext, StepError, StepResult};
use crate::steps::run::{ErrorsFile, RunOutput};
use crate::steps::{errors_file, evaluate, fetch, gate, run};

/// The store that models of a simulation are said to be in; their files are at hand.
const STORE: &str = "simulated";
/// In the directory of a training: what it left; it is written last.
pub const FINISHED: &str = "finished.json";

/// What a training left.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) metrics: Metrics,
    /// It was finished before.
    pub(super) found: bool,
    beside: Option<Metrics>,
    key: String,
    dir: PathBuf,
    errors: Option<ErrorsFile>,
    version: VersionRecord,
}

/// The file that says that all others are there.
#[derive(Serialize, Deserialize)]
struct Finished {
    metrics: Metrics,
    /// Of the champion, where an `evaluate` step scored it.
    #[serde(default)]
    beside: Option<Metrics>,
    errors: Option<ErrorsFile>,
    files: Vec<ManifestFile>,
}

/// Where and when a step runs.
pub(super) struct At<'a> {
    pub(super) data: PathBuf,
    /// Its output a week before.
    pub(super) previous: Option<Value>,
    /// The time it is told; the real one when absent.
    pub(super) now: Option<Timestamp>,
    pub(super) history: &'a [Attempt],
}

/// What a simulation runs.
pub(super) enum Body<'b> {
    Fetch(&'b step::Fetch),
    /// In a project of its own, with files of its own, beside a champion.
    Run(&'b Step, &'b step::Run, &'b Place<'b>),
    /// In the same place, on the files that were left there and on the champion's.
    Evaluate(&'b Step, &'b step::Evaluate, &'b Place<'b>),
}

/// Where a training works.
pub(super) struct Place<'p> {
    project: &'p Path,
    task: &'p Path,
    champion: Option<&'p Kept>,
}

/// Runs one step's body, in a world where nothing can be changed.
pub(super) async fn body(
    simulation: &Simulation,
    step: &StepId,
    at: At<'_>,
    body: Body<'_>,
) -> Result<StepResult, StepError> {
    let clock: Arc<dyn Clock> = match at.now {
        Some(now) => Arc::new(ManualClock::starting_at(now)),
        None => Arc::new(SystemClock),
    };
    let place = match &body {
        Body::Fetch(_) => None,
        Body::Run(_, _, place) | Body::Evaluate(_, _, place) => Some(*place),
    };
    let champion = place.and_then(|place| place.champion);
    let task = place.map_or(at.data.as_path(), |place| place.task);
    let dirs = Dirs {
        project: place.map_or(simulation.project.clone(), |place| place.project.to_owned()),
        data: at.data.clone(),
        attempt: task.join("attempt"),
        kept: task.join("kept"),
        versions: champion.map_or_else(|| task.join("versions"), |kept| kept.dir.join("versions")),
    };
    let run = a_run(simulation, clock.now());
    let ledger = PastLedger { champion: champion.map(|kept| kept.version.clone()), previous: at.previous };
    let services = services(simulation)?;
    let cancel = simulation.stop.child_token();
    let ctx = StepContext {
        run: &run,
        workflow: &simulation.workflow,
        step,
        attempt: 1,
        resume: None,
        history: at.history,
        signals: &[],
        scope: &pipeline::scope(&run, at.history),
        dirs: &dirs,
        cancel: cancel.clone(),
        force: CancellationToken::new(),
        log: Arc::new(NoLog),
        clock,
        services: &services,
        ledger: &ledger,
    };
    match body {
        Body::Fetch(spec) => fetch::run(spec, &ctx).await,
        Body::Run(step, spec, _) => within(step, &cancel, run::run(spec, &ctx)).await,
        Body::Evaluate(step, spec, _) => within(step, &cancel, evaluate::run(spec, &ctx)).await,
    }
}

/// No longer than the step may take.
async fn within(
    step: &Step,
    cancel: &CancellationToken,
    body: impl Future<Output = Result<StepResult, StepError>>,
) -> Result<StepResult, StepError> {
    let mut running = std::pin::pin!(body);
    tokio::select! {
        biased;
        result = &mut running => result,
        () = tokio::time::sleep(step.timeout) => {
            cancel.cancel();
            let _stopped = running.await;
            Err(StepError::permanent(format!("it took longer than {:?}", step.timeout)))
        }
    }
}

fn services(simulation: &Simulation) -> Result<Services, StepError> {
    let own = &simulation.services;
    let deps = Deps {
        project: simulation.dir.clone(),
        secrets: own.secrets.clone(),
        http: own.http.clone(),
        stores: Arc::default(),
    };
    let store = crate::artifacts::build(json!({"kind": "local", "path": "models"}), &deps)
        .map_err(|error| StepError::permanent(error.to_string()))?;
    let name: StoreName = STORE.parse().map_err(|error| StepError::permanent(format!("{error}")))?;
    Ok(Services { stores: Arc::new([(name, store)].into()), ..own.clone() })
}

fn a_run(simulation: &Simulation, now: Timestamp) -> Run {
    let event = Event {
        id: EventId::generate(),
        name: "refit/simulate".to_owned(),
        data: Value::Null,
        source: "simulate".to_owned(),
        dedup_key: None,
        received_at: now,
    };
    Run {
        id: RunId::generate(),
        workflow: simulation.workflow.name.clone(),
        model: simulation.workflow.model.clone(),
        definition: simulation.definition.clone(),
        cause: Cause { event, inputs: simulation.inputs.clone(), actor: "simulate".to_owned() },
        status: RunStatus::Running,
        outcome: None,
        reason: None,
        epoch: Epoch(0),
        crashes: 0,
        cancel: None,
        committed: false,
        concurrency_key: String::new(),
        created_at: now,
        finished_at: None,
    }
}

/// Trains on the data of `week` beside `champion`, in a project of its `slot`, unless that was done before.
pub(super) async fn train(
    simulation: &Arc<Simulation>,
    weeks: &Weeks,
    week: Week,
    champion: Option<&Kept>,
    slot: usize,
) -> Result<Kept, String> {
    let key = key(simulation, weeks, week, champion);
    let dir = simulation.dir.join("trained").join(&key);
    let name = weeks.name(week);
    // Only a model's own training is loaded again.
    let models = dir.join("versions").join(simulation.workflow.model.as_str()).join(&name);
    let models = champion.is_none().then_some(models);
    if let Some(found) = finished(&dir, models.as_deref()) {
        used_now(&dir);
        return kept(simulation, found, (key, dir), &name, true);
    }
    let io = |error: std::io::Error| format!("{}: {error}", dir.display());
    // What a process that was killed left of it.
    clear(&dir).map_err(io)?;
    std::fs::create_dir_all(&dir).map_err(io)?;
    let own = Arc::clone(simulation);
    let project = tokio::task::spawn_blocking(move || own.project_for(slot)).await;
    let project = project.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    let mut history: Vec<Attempt> = weeks
        .outputs(week)
        .iter()
        .filter_map(|(step, output)| {
            Some(succeeded(step, serde_json::to_value(output).ok()?, weeks.end(week)))
        })
        .collect();
    let before_gate =
        simulation.workflow.steps.iter().take_while(|step| !matches!(step.kind, StepKind::Gate(_)));
    let place = Place { project: &project, task: &dir, champion };
    let (mut files, mut from) = (vec![], None);
    for step in before_gate {
        let command = match &step.kind {
            StepKind::Run(spec) => Body::Run(step, spec, &place),
            StepKind::Evaluate(spec) => Body::Evaluate(step, spec, &place),
            _ => continue,
        };
        let data = weeks.dir(week).to_owned();
        let at = At { data, previous: None, now: Some(weeks.end(week)), history: &history };
        let result = body(simulation, &step.id, at, command).await;
        let output = match result.map_err(|error| format!("step `{}`: {error}", step.id))? {
            StepResult::Done { output } => output,
            StepResult::Promoted { .. } | StepResult::Sleep(_) | StepResult::End { .. } => {
                return Err(format!("step `{}` did not end as a command does", step.id));
            }
        };
        if let Ok(left) = serde_json::from_value::<RunOutput>(output.clone())
            && !left.files.is_empty()
        {
            (files, from) = (left.files, Some(left.dir));
        }
        history.push(succeeded(&step.id, output, weeks.end(week)));
    }
    let gate::Gathered { said: mut metrics, errors, evaluated } =
        gate::gather(&history).map_err(|error| error.to_string())?;
    let mut beside = None;
    if let Some(evaluated) = evaluated {
        gate::add(&mut metrics, evaluated.metrics);
        beside = evaluated.champion_metrics;
    }
    if let (Some(from), Some(to)) = (&from, &models) {
        copy(from, to, &files).map_err(io)?;
    }
    let finished = Finished { metrics, beside, errors, files };
    write_finished(&dir, &finished, models.as_deref()).map_err(io)?;
    kept(simulation, finished, (key, dir.clone()), &name, false)
}

fn succeeded(step: &StepId, output: Value, at: Timestamp) -> Attempt {
    let started = Attempt::started(step.clone(), 1, Epoch(0), at);
    Attempt { state: AttemptState::Succeeded, output: Some(output), finished_at: Some(at), ..started }
}

/// What a training depends on: the workflow, its inputs, the rows, the champion it is scored beside.
fn key(simulation: &Simulation, weeks: &Weeks, week: Week, champion: Option<&Kept>) -> String {
    let rows: Vec<_> = weeks.outputs(week).iter().map(|(step, output)| (step, &output.sha256)).collect();
    let all = json!({
        "source": simulation.definition.source,
        "files": simulation.definition.files,
        "inputs": simulation.inputs,
        "week": weeks.name(week),
        "rows": rows,
        "champion": champion.map(|kept| &kept.key),
    });
    hex::encode(Sha256::digest(all.to_string()))[..32].to_owned()
}

fn copy(from: &Path, to: &Path, files: &[ManifestFile]) -> std::io::Result<()> {
    for file in files {
        let target = to.join(&file.path);
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::copy(from.join(&file.path), target)?;
    }
    Ok(())
}

impl Finished {
    /// The files it vouches for, with their sizes: the errors, and the models, where those are kept.
    fn vouches_for(&self, models: Option<&Path>) -> Vec<(PathBuf, u64)> {
        let models = models
            .into_iter()
            .flat_map(|models| self.files.iter().map(|file| (models.join(&file.path), file.size)));
        let errors = self.errors.iter().map(|errors| (errors.path.clone(), errors.size));
        models.chain(errors).collect()
    }
}

/// A training that was moved away from, or cleared in part, is none.
fn finished(dir: &Path, models: Option<&Path>) -> Option<Finished> {
    let finished: Finished = serde_json::from_slice(&std::fs::read(dir.join(FINISHED)).ok()?).ok()?;
    let is_whole = |(path, size): &(PathBuf, u64)| {
        std::fs::metadata(path).is_ok_and(|file| file.is_file() && file.len() == *size)
    };
    finished.vouches_for(models).iter().all(is_whole).then_some(finished)
}

/// Says that what is there is of use: `gc` goes by the time of this file. Where it cannot be said, it may be trained again.
fn used_now(dir: &Path) {
    let touched = std::fs::File::options()
        .append(true)
        .open(dir.join(FINISHED))
        .and_then(|file| file.set_modified(SystemClock.now().into()));
    if let Err(error) = touched {
        tracing::debug!("{} does not show that it was used: {error}", dir.display());
    }
}

/// Last of all, and whole: what is there is finished, also after a power cut.
fn write_finished(dir: &Path, finished: &Finished, models: Option<&Path>) -> std::io::Result<()> {
    let sync = |path: &Path| std::fs::File::open(path)?.sync_all();
    let mut dirs = BTreeSet::new();
    for (path, _) in finished.vouches_for(models) {
        sync(&path)?;
        dirs.extend(path.ancestors().skip(1).take_while(|above| above.starts_with(dir)).map(Path::to_owned));
    }
    for dir in &dirs {
        sync(dir)?;
    }
    let (draft, name) = (dir.join("finished.draft"), dir.join(FINISHED));
    std::fs::write(&draft, serde_json::to_vec(finished)?)?;
    sync(&draft)?;
    std::fs::rename(draft, name)?;
    sync(dir)
}

fn kept(
    simulation: &Simulation,
    finished: Finished,
    (key, dir): (String, PathBuf),
    name: &str,
    found: bool,
) -> Result<Kept, String> {
    let model = &simulation.workflow.model;
    let version: VersionName = name.parse().map_err(|error| format!("{error}"))?;
    let store = STORE.parse().map_err(|error| format!("{error}"))?;
    let at = Timestamp::UNIX_EPOCH;
    let manifest = Manifest {
        schema: 1,
        model: model.clone(),
        version: version.clone(),
        instance: InstanceId::generate(),
        run: None,
        sealed_at: at,
        files: finished.files.clone(),
        metrics: finished.metrics.clone(),
        provenance: Value::Null,
    };
    let version = VersionRecord {
        model: model.clone(),
        name: version,
        store,
        state: VersionState::Sealed,
        run: None,
        place: None,
        base_url: String::new(),
        manifest_sha256: String::new(),
        manifest: Some(manifest),
        created_at: at,
    };
    let Finished { metrics, beside, errors, .. } = finished;
    Ok(Kept { metrics, beside, found, key, dir, errors, version })
}

impl Kept {
    /// The holdout, and the errors of the champion it was scored beside.
    pub(super) async fn scores(self) -> Result<Scores, String> {
        let errors = self.errors.ok_or(
            "nobody wrote $REFIT_ERRORS with both versions' predictions, neither the trainer (`champion_predicted`) nor an \
             `evaluate` step: past weeks cannot be scored (docs/trainer.md)",
        )?;
        let scores = tokio::task::spawn_blocking(move || read(&errors)).await;
        let scores = scores.map_err(|error| error.to_string())??;
        Ok(Scores { champion: self.beside, ..scores })
    }
}

fn read(errors: &ErrorsFile) -> Result<Scores, String> {
    // In the order of their first rows; where each is.
    let (mut blocks, mut places): (Vec<Block>, HashMap<String, usize>) = Default::default();
    let holdout = errors_file::read_each(errors, |row| {
        let Some(predicted) = row.champion else {
            return Err("`champion_predicted` is empty, though there is a champion".to_owned());
        };
        let error = (predicted - row.actual).abs();
        let place = *places.entry(row.block.clone()).or_insert_with(|| {
            blocks.push(Block { name: row.block.clone(), errors: vec![] });
            blocks.len() - 1
        });
        blocks[place].errors.push(error);
        Ok(())
    });
    let holdout = holdout.map_err(|problem| format!("$REFIT_ERRORS is not valid: {problem}"))?;
    Ok(Scores { holdout, blocks, champion: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_block_belong_together_wherever_they_stand() {
        let dir = tempfile::tempdir().expect("a directory");
        let text = "block,actual,predicted,champion_predicted\nb,1,0,2\na,1,0,3\nb,1,0,4\na,1,0,1\n";
        let path = dir.path().join("errors.csv");
        std::fs::write(&path, text).expect("written");
        let errors = ErrorsFile { path, sha256: hex::encode(Sha256::digest(text)), size: text.len() as u64 };
        let blocks = read(&errors).expect("valid").blocks;
        let block = |name: &str, errors: &[f64]| Block { name: name.to_owned(), errors: errors.to_vec() };
        assert_eq!(blocks, [block("b", &[1.0, 3.0]), block("a", &[2.0, 0.0])]);
    }

    #[test]
    fn a_training_is_finished_only_while_what_it_left_is_there() {
        let dir = tempfile::tempdir().expect("a directory");
        let (dir, models) = (dir.path(), dir.path().join("versions/m/1"));
        assert!(finished(dir, None).is_none());
        std::fs::create_dir_all(models.join("deep")).expect("made");
        std::fs::write(models.join("deep/model.json"), "{}").expect("written");
        let file =
            ManifestFile { path: "deep/model.json".to_owned(), size: 2, sha256: String::new(), stored: None };
        let left = Finished { metrics: Metrics::default(), beside: None, errors: None, files: vec![file] };
        write_finished(dir, &left, Some(&models)).expect("written");
        assert!(finished(dir, Some(&models)).is_some());
        std::fs::write(models.join("deep/model.json"), "").expect("cut");
        assert!(finished(dir, Some(&models)).is_none(), "it is half there");
        std::fs::remove_dir_all(&models).expect("gone");
        assert!(finished(dir, Some(&models)).is_none());
        // Beside a champion only its errors are wanted.
        assert!(finished(dir, None).is_some());
        write_finished(dir, &left, Some(&models)).expect_err("it vouches for nothing that is not there");
    }
}
