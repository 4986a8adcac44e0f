//! Runs that are submitted here and worked on by the server.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use refit::clock::{Clock, SystemClock};
use refit::domain::Timestamp;
use refit::domain::id::RunId;
use refit::domain::run::{Attempt, Definition, Run, RunStatus};
use refit::domain::workflow::parse;
use refit::steps::wait::WaitOutput;
use refit::store::{RunFilter, Store};
use refit::trigger::{Loaded, new_run, own_event};
use serde_json::json;
use tokio::net::UnixStream;

use crate::Failure;

/// The most that a workflow may have.
const STEPS: usize = 200;
/// The times come from the database: looking more often would only take the processors from what is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(60);
/// Of a run that is killed: enough to be under way, few enough not to be at its end.
const UNDER_WAY: usize = 5;

/// A process that submits and looks.
pub struct Work {
    store: Arc<dyn Store>,
    socket: PathBuf,
    short: Loaded,
    long: Loaded,
    sleeper: Loaded,
}

/// What came of runs that were worked on at once.
pub struct Wave {
    pub steps: usize,
    /// From the first claim to the last end.
    pub took: Duration,
}

impl Work {
    pub fn new(store: &Arc<dyn Store>, socket: PathBuf) -> Result<Self, Failure> {
        Ok(Self {
            store: Arc::clone(store),
            socket,
            short: workflow(1, "0s")?,
            long: workflow(STEPS, "0s")?,
            sleeper: workflow(1, "30d")?,
        })
    }

    /// Submits so many runs of `loaded` with one event, and tells the server as commands do.
    async fn submit(&self, loaded: &Loaded, runs: usize) -> Result<Vec<RunId>, Failure> {
        let now = SystemClock.now();
        let event = own_event("refit/trigger", json!({}), "bench", now);
        let mut new = vec![];
        for _ in 0..runs {
            let mut one = new_run(loaded, &event, json!({}), "bench", now)?;
            one.run.concurrency_key = one.run.id.to_string();
            one.dedup_key.clone_from(&one.run.concurrency_key);
            new.push(one);
        }
        let ids = new.iter().map(|one| one.run.id).collect();
        self.store.submit(&event, new).await?;
        if !self.store.is_shared() {
            UnixStream::connect(&self.socket).await?;
        }
        Ok(ids)
    }

    /// A long run.
    pub async fn begin(&self) -> Result<RunId, Failure> {
        Ok(self.submit(&self.long, 1).await?.first().copied().ok_or("no run was made")?)
    }

    /// A run that sleeps for days.
    pub async fn asleep(&self) -> Result<RunId, Failure> {
        let id = self.submit(&self.sleeper, 1).await?.first().copied().ok_or("no run was made")?;
        let begin = Instant::now();
        while self.store.run(id).await?.is_none_or(|run| run.status != RunStatus::Waiting) {
            patience(begin)?;
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(id)
    }

    /// From before a submission to the beginning of the first step's body.
    pub async fn first_step(&self) -> Result<Duration, Failure> {
        let id = self.submit(&self.short, 1).await?.first().copied().ok_or("no run was made")?;
        let run = self.ended(id, 1).await?;
        let began = self.bodies(id).await?.first().map(|(_, at)| *at).ok_or("no step ran")?;
        Ok((began - run.created_at).to_std()?)
    }

    /// So many long runs at once, to the end of the last.
    pub async fn wave(&self, runs: usize) -> Result<Wave, Failure> {
        let ids = self.submit(&self.long, runs).await?;
        let (mut first, mut last) = (Timestamp::MAX_UTC, Timestamp::MIN_UTC);
        let mut steps = 0;
        for id in ids {
            let run = self.ended(id, runs).await?;
            let attempts = self.store.attempts(id).await?;
            steps += attempts.len();
            first = first.min(attempts.first().map_or(first, |attempt| attempt.started_at));
            last = last.max(run.finished_at.unwrap_or(last));
        }
        Ok(Wave { steps, took: (last - first).to_std()? })
    }

    /// Returns once a few steps of the run are done.
    pub async fn under_way(&self, run: RunId) -> Result<(), Failure> {
        let begin = Instant::now();
        while self.store.attempts(run).await?.len() < UNDER_WAY {
            patience(begin)?;
        }
        Ok(())
    }

    /// When the first body began after the run was taken over; nothing when it had ended before.
    pub async fn resumed(&self, run: RunId) -> Result<Option<Timestamp>, Failure> {
        self.ended(run, 1).await?;
        Ok(self.bodies(run).await?.iter().find(|(attempt, _)| attempt.epoch.0 > 1).map(|(_, at)| *at))
    }

    /// Waits for the end of a run that is one of the `newest`.
    async fn ended(&self, id: RunId, newest: usize) -> Result<Run, Failure> {
        let begin = Instant::now();
        // A list does not read definitions: looking costs little.
        let filter = RunFilter { limit: u32::try_from(newest)?, ..RunFilter::default() };
        loop {
            let runs = self.store.runs(&filter).await?;
            if runs.iter().any(|run| run.id == id && run.status == RunStatus::Finished) {
                return Ok(self.store.run(id).await?.ok_or("the run is gone")?);
            }
            patience(begin)?;
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Attempts that ended, with the time at which their bodies began.
    async fn bodies(&self, run: RunId) -> Result<Vec<(Attempt, Timestamp)>, Failure> {
        let mut bodies = vec![];
        for attempt in self.store.attempts(run).await? {
            if let Some(output) = attempt.output.clone() {
                bodies.push((attempt, serde_json::from_value::<WaitOutput>(output)?.since));
            }
        }
        Ok(bodies)
    }
}

fn patience(begin: Instant) -> Result<(), Failure> {
    if begin.elapsed() > PATIENCE { Err("the run does not advance".into()) } else { Ok(()) }
}

/// So many steps, one after the other, that do nothing but wait.
fn workflow(steps: usize, wait: &str) -> Result<Loaded, Failure> {
    let mut source = "name: bench\nmodel: bench\nsteps:\n".to_owned();
    for step in 0..steps {
        source += &format!("  - {{ id: s{step}, uses: wait, with: {{ for: {wait} }} }}\n");
    }
    let path = "workflows/bench.yaml".to_owned();
    let (workflow, warnings) =
        parse(&path, &source, &BTreeMap::new()).map_err(|mistakes| mistakes.render(&path, &source))?;
    let definition = Definition { path, source, files: BTreeMap::new() };
    Ok(Loaded { definition, workflow: Arc::new(workflow), warnings })
}
