//! `refit simulate`: the workflow's own trainer on the data as it stood in past
//! weeks, and its errors on the weeks that followed. `domain::simulate` decides;
//! here things are fetched, cut, trained and kept.
//!
//! * `data`: what the sources have, cut week by week
//! * `train`: one training; what it left is kept, and found again
//! * `project`: where a training works
//! * `ledger`: what steps see of a world that is not there

mod data;
mod ledger;
mod project;
mod train;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use self::data::Cut;
use self::data::Weeks;
pub use self::train::FINISHED;
use self::train::Kept;
use crate::domain::Timestamp;
use crate::domain::id::StepId;
use crate::domain::run::Definition;
use crate::domain::simulate::{Past, PastWeek, Policy, Setting, Stopped, Tally, Week, tally};
use crate::domain::workflow::{StepKind, Workflow};
use crate::steps::context::Services;
use crate::steps::run::champion;

/// What is simulated, and with what.
pub struct Simulation {
    /// The workflow.
    pub workflow: Arc<Workflow>,
    /// Its file.
    pub definition: Definition,
    /// Inputs of its runs.
    pub inputs: Value,
    /// Secrets, HTTP and the guard; nothing that could be released to.
    pub services: Services,
    /// The project.
    pub project: PathBuf,
    /// Where finished work is kept.
    pub dir: PathBuf,
    /// How many weeks.
    pub weeks: usize,
    /// The end of the last one; the day after the newest row when absent.
    pub until: Option<Timestamp>,
    /// By fetch step: which rows were there by when.
    pub cuts: BTreeMap<StepId, Cut>,
    /// Trainings at once.
    pub jobs: usize,
    /// Fires when it is to stop; what is finished stays.
    pub stop: CancellationToken,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Simulated {
    /// The ends of the weeks, as versions would be called.
    pub weeks: Vec<String>,
    /// Weeks whose trainer failed, and why.
    pub failed: Vec<(String, String)>,
    /// By policy.
    pub tallies: Vec<Tally>,
    /// Trainings that were run, and those found finished.
    pub trained: (usize, usize),
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Trainings that are done.
    pub done: usize,
    /// Trainings that are known to be needed; more may follow from them.
    pub of: usize,
}

/// Why nothing can be simulated.
#[derive(Debug, thiserror::Error)]
pub enum SimulateError {
    /// The workflow, or what was typed.
    #[error("{0}")]
    Setting(String),
    /// Data that cannot be fetched or cut.
    #[error("{0}")]
    Data(String),
    /// What a trainer left.
    #[error("{0}")]
    Trained(String),
    /// The disk.
    #[error("{path}: {cause}")]
    Disk {
        /// The file.
        path: String,
        /// Why.
        cause: std::io::Error,
    },
    /// Ctrl-C.
    #[error("interrupted; what is finished is kept")]
    Interrupted,
}

impl Simulation {
    /// Plays `policies` through the past.
    ///
    /// # Errors
    /// What cannot be simulated, data that cannot be cut, rows that do not fit together.
    pub async fn run(
        self: Arc<Self>,
        policies: &[Policy],
        setting: Setting,
        progress: impl Fn(Progress),
    ) -> Result<Simulated, SimulateError> {
        self.check()?;
        let lock = self.dir.join("lock");
        let disk = |cause| SimulateError::Disk { path: lock.display().to_string(), cause };
        let locked = std::fs::File::create(&lock).map_err(disk)?;
        if let Err(std::fs::TryLockError::WouldBlock) = locked.try_lock() {
            return Err(SimulateError::Setting(
                "another simulation of this workflow is under way, or `refit gc` waits for an answer about its files"
                    .to_owned(),
            ));
        }
        self.clear_copies()?;
        let weeks = Arc::new(Weeks::prepare(&self).await?);
        let mut past = Past { better: self.workflow.metrics.clone(), ..Past::default() };
        let mut work =
            Work { simulation: &self, weeks: &weeks, progress: Progress::default(), trained: (0, 0) };
        // The models themselves first: all else is their errors.
        let own: Vec<_> = (0..weeks.len()).map(|week| (week, None)).collect();
        let mut kept: BTreeMap<Week, Arc<Kept>> = BTreeMap::new();
        let mut failed = vec![];
        for (week, _, result) in work.all(own, &kept, &progress).await? {
            match result {
                Ok(trained) => {
                    kept.insert(week, Arc::new(trained));
                }
                Err(why) => failed.push((weeks.name(week), why)),
            }
        }
        failed.sort();
        for week in 0..weeks.len() {
            past.weeks.push(PastWeek {
                name: weeks.name(week),
                refused: weeks.refused(week),
                trained: kept.get(&week).map(|kept| kept.metrics.clone()),
            });
        }
        let tallies = loop {
            let missing = match tally(policies, &past, setting) {
                Ok(tallies) => break tallies,
                Err(Stopped::Missing(missing)) => missing.0,
                Err(Stopped::Invalid(error)) => return Err(SimulateError::Trained(error.to_string())),
            };
            let wanted = missing.into_iter().map(|(week, model)| (week, Some(model))).collect();
            for (week, model, result) in work.all(wanted, &kept, &progress).await? {
                let Some(model) = model else { continue };
                let scores = match result {
                    Ok(trained) => trained.scores().await.map_err(SimulateError::Trained)?,
                    // Its own training failed, too: the week has no rows for anybody.
                    Err(_) if !kept.contains_key(&week) => Default::default(),
                    Err(why) => return Err(SimulateError::Trained(format!("{}: {why}", weeks.name(week)))),
                };
                past.scores.insert((week, model), scores);
            }
            same_rows(&past, &weeks)?;
        };
        Ok(Simulated {
            weeks: past.weeks.iter().map(|week| week.name.clone()).collect(),
            failed,
            tallies,
            trained: work.trained,
        })
    }

    fn check(&self) -> Result<(), SimulateError> {
        let wrong = |why: &str| Err(SimulateError::Setting(why.to_owned()));
        if champion::target(&self.workflow).is_none() {
            return wrong("the workflow releases nothing: there is no champion to compete with");
        }
        let trains = self.workflow.steps.iter().any(|step| matches!(step.kind, StepKind::Run(_)));
        if !trains {
            return wrong("the workflow has no `run` step that could be replayed");
        }
        if self.weeks < 3 {
            return wrong(
                "at least three weeks are needed: one to begin with, one to decide in, one to judge by",
            );
        }
        Ok(())
    }
}

/// Trainings under way.
struct Work<'s> {
    simulation: &'s Arc<Simulation>,
    weeks: &'s Arc<Weeks>,
    progress: Progress,
    trained: (usize, usize),
}

/// What came of one training: the week, the champion it was scored against, what it left or why not.
type Done = (Week, Option<Week>, Result<Kept, String>);

impl Work<'_> {
    /// Does all of `wanted`, so many at once.
    async fn all(
        &mut self,
        wanted: Vec<(Week, Option<Week>)>,
        kept: &BTreeMap<Week, Arc<Kept>>,
        tell: &impl Fn(Progress),
    ) -> Result<Vec<Done>, SimulateError> {
        self.progress.of += wanted.len();
        tell(self.progress);
        let mut waiting: VecDeque<_> = wanted.into();
        let (mut running, mut done) = (JoinSet::new(), vec![]);
        let mut slots: Vec<usize> = (0..self.simulation.jobs.max(1)).collect();
        loop {
            while !self.simulation.stop.is_cancelled()
                && let Some(slot) = slots.pop()
            {
                let Some((week, model)) = waiting.pop_front() else {
                    slots.push(slot);
                    break;
                };
                let (simulation, weeks) = (Arc::clone(self.simulation), Arc::clone(self.weeks));
                let champion = model.and_then(|model| kept.get(&model).cloned());
                running.spawn(async move {
                    let result = train::train(&simulation, &weeks, week, champion.as_deref(), slot).await;
                    (slot, week, model, result)
                });
            }
            let Some(ended) = running.join_next().await else { break };
            let (slot, week, model, result) =
                ended.map_err(|error| SimulateError::Trained(format!("a training broke off: {error}")))?;
            slots.push(slot);
            if self.simulation.stop.is_cancelled() {
                continue;
            }
            if let Ok(kept) = &result {
                let count = if kept.found { &mut self.trained.1 } else { &mut self.trained.0 };
                *count += 1;
            }
            self.progress.done += 1;
            tell(self.progress);
            done.push((week, model, result));
        }
        if self.simulation.stop.is_cancelled() { Err(SimulateError::Interrupted) } else { Ok(done) }
    }
}

/// Models can be compared only on the same rows; and rows of one week that are also of another were no news.
fn same_rows(past: &Past, weeks: &Weeks) -> Result<(), SimulateError> {
    let mut by_week: BTreeMap<Week, Vec<(&str, usize)>> = BTreeMap::new();
    let mut seen: BTreeMap<&str, Week> = BTreeMap::new();
    for ((week, model), scores) in &past.scores {
        let rows: Vec<_> =
            scores.blocks.iter().map(|block| (block.name.as_str(), block.errors.len())).collect();
        let first = by_week.entry(*week).or_insert_with(|| rows.clone());
        if !rows.is_empty() && *first != rows {
            return Err(SimulateError::Trained(format!(
                "the trainer held out other rows of {} beside {} than before: models cannot be compared",
                weeks.name(*week),
                weeks.name(*model)
            )));
        }
        for (block, _) in rows {
            if let Some(other) = seen.insert(block, *week).filter(|other| other != week) {
                return Err(SimulateError::Trained(format!(
                    "block `{block}` is in the holdout of {} and of {}: later rows that were seen before cannot stand \
                     in for a canary; hold out the newest rows only",
                    weeks.name(other),
                    weeks.name(*week)
                )));
            }
        }
    }
    Ok(())
}
