//! `refit demo`: a year of real flights through the real engine, on a clock
//! that is told what time it is. Every decision is computed; nothing here knows
//! how a run will end.

pub mod flights;
pub mod project;
pub mod story;
pub mod traffic;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use chrono::TimeDelta;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, ManualClock};
use crate::domain::Timestamp;
use crate::domain::id::{ModelName, RunId};
use crate::domain::run::{Attempt, AttemptState, Outcome, Run, RunStatus, SignalKind};
use crate::engine::Engine;
use crate::evidence;
use crate::notify::{Notifiers, outbox};
use crate::store::{Stay, StoreError, Submitted};
use crate::trigger::{self, Catalog, TriggerError};
use flights::{Flight, Flights, day, local, retrain_time};
use traffic::Server;

/// Week after which a model is trained, and which family challenges. Chosen so that each kind of decision
/// occurs; what each decision is comes out of the data.
pub const SCHEDULE: &[(u32, &str)] = &[
    (4, "route-mean"),
    (6, "ridge"),
    (10, "ridge"),
    (16, "route-mean"),
    (30, "route-mean"),
    (37, "ridge"),
    (42, "ridge"),
];

/// Why the demo stopped.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The embedded data.
    #[error("the flights cannot be read: {0}")]
    Data(#[from] csv::Error),
    /// A file of the demo's project.
    #[error("cannot write {path}: {cause}")]
    File {
        /// The file.
        path: String,
        /// Why.
        cause: std::io::Error,
    },
    /// The directory has something in it.
    #[error("{0} is not empty")]
    NotEmpty(String),
    /// The workflow file.
    #[error("{0}")]
    Workflow(String),
    /// The prediction server.
    #[error("the demo's prediction server: {0}")]
    Server(String),
    /// A run could not be triggered.
    #[error(transparent)]
    Trigger(#[from] TriggerError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What the app reports.
    #[error("the demo's reports: {0}")]
    Evidence(#[from] evidence::BatchError),
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

/// The demo under way.
pub struct Demo {
    engine: Arc<Engine>,
    clock: Arc<ManualClock>,
    notifiers: Arc<Notifiers>,
    catalog: Catalog,
    model: ModelName,
    flights: Flights,
    server: Server,
    stop: CancellationToken,
    /// Truths on their way, by the time they arrive.
    landing: BTreeMap<Timestamp, String>,
}

/// When the demo's clock starts: the first retrain.
pub fn begins() -> Timestamp {
    SCHEDULE.first().map_or(Timestamp::UNIX_EPOCH, |(week, _)| retrain_time(*week))
}

impl Demo {
    /// A demo in `project` that was unpacked there, with the engine and the clock that it steers.
    pub async fn new(
        engine: Arc<Engine>,
        clock: Arc<ManualClock>,
        notifiers: Arc<Notifiers>,
        project: &Path,
        stop: CancellationToken,
    ) -> Result<Self, DemoError> {
        let catalog = Catalog::load(project);
        if let Some(error) = catalog.errors.first() {
            return Err(DemoError::Workflow(error.to_string()));
        }
        let model = catalog
            .get(project::WORKFLOW)
            .map(|loaded| loaded.workflow.model.clone())
            .ok_or_else(|| DemoError::Workflow(format!("there is no workflow `{}`", project::WORKFLOW)))?;
        engine.store.register_worker(engine.worker, &[], Stay::Open, clock.now()).await?;
        let release = project.join(project::RELEASE);
        let server = Server::start(project, &release, engine.services.http.clone()).await?;
        let flights = Flights::embedded()?;
        Ok(Self { engine, clock, notifiers, catalog, model, flights, server, stop, landing: BTreeMap::new() })
    }

    /// The whole story; `told` sees each chapter when its run has ended.
    pub async fn play(
        &mut self,
        project: &Path,
        mut told: impl FnMut(&story::Chapter),
    ) -> Result<Vec<story::Chapter>, DemoError> {
        let mut chapters = vec![];
        for (week, family) in SCHEDULE {
            let at = retrain_time(*week).max(self.clock.now());
            self.live_until(at, None).await?;
            self.flights.write(*week..=*week, &project.join("export/week.csv"))?;
            self.flights.write(1..=*week, &project.join("export/flights.csv"))?;
            let run = self.trigger(family).await?;
            let (run, attempts) = self.follow(run).await?;
            let chapter = story::Chapter::new(*week, family, &run, &attempts, self.clock.now());
            told(&chapter);
            chapters.push(chapter);
        }
        self.engine.store.retire_worker(self.engine.worker).await?;
        Ok(chapters)
    }

    async fn trigger(&self, family: &str) -> Result<RunId, DemoError> {
        let loaded = self
            .catalog
            .get(project::WORKFLOW)
            .ok_or_else(|| DemoError::Workflow("the workflow is gone".to_owned()))?;
        let inputs = [("family".to_owned(), family.to_owned())];
        match trigger::trigger(&self.engine, loaded, &inputs, "demo").await? {
            Submitted::Made(run) | Submitted::Already(run) | Submitted::Busy(run) => Ok(run),
        }
    }

    /// Lets the world turn until `run` has ended. A first version is approved by hand: there is nothing to
    /// compare it with.
    async fn follow(&mut self, run: RunId) -> Result<(Run, Vec<Attempt>), DemoError> {
        loop {
            self.turn(run).await?;
            let seen = self.engine.store.run(run).await?;
            let seen = seen.ok_or_else(|| StoreError::Broken(format!("run {run} is gone")))?;
            let attempts = self.engine.store.attempts(run).await?;
            match seen.status {
                RunStatus::Finished => return Ok((seen, attempts)),
                RunStatus::Queued | RunStatus::Running | RunStatus::Undoing => continue,
                RunStatus::Waiting | RunStatus::Held => {}
            }
            let asks = attempts
                .iter()
                .find(|attempt| attempt.state == AttemptState::Sleeping && attempt.wake_at.is_none());
            match asks {
                Some(attempt) => {
                    let kind = SignalKind::Approve { step: attempt.step.clone() };
                    let why = Some("there is nothing to compare a first version with");
                    self.engine.store.signal(run, &kind, "you", why, self.clock.now()).await?;
                }
                None => {
                    let next = self.next_tick();
                    self.live_until(next, Some(run)).await?;
                }
            }
        }
    }

    /// What the engine's loops would do now, and then the run.
    async fn turn(&self, run: RunId) -> Result<(), DemoError> {
        self.engine.look_at_canaries().await?;
        self.engine.reconcile_releases().await?;
        self.engine.activate(run, &self.stop).await?;
        outbox::drain_once(self.engine.store.as_ref(), &self.notifiers, self.clock.as_ref()).await?;
        if self.stop.is_cancelled() { Err(DemoError::Interrupted) } else { Ok(()) }
    }

    /// Looks every six hours: at 04, 10, 16 and 22 o'clock; the app serves the day's flights at five.
    fn next_tick(&self) -> Timestamp {
        let now = self.clock.now();
        let today = day(now);
        let hours = [4, 5, 10, 16, 22].map(|hour| local(today, hour));
        let tomorrow = local(today + TimeDelta::days(1), 4);
        hours.into_iter().find(|tick| *tick > now).unwrap_or(tomorrow)
    }

    /// Moves the clock to `until`, tick by tick: flights are served, land and are looked at.
    async fn live_until(&mut self, until: Timestamp, run: Option<RunId>) -> Result<(), DemoError> {
        while self.clock.now() < until {
            let tick = self.next_tick().min(until);
            self.clock.set(tick);
            self.land(tick).await?;
            if tick == local(day(tick), 5) {
                self.serve(tick).await?;
            }
            match run {
                Some(run) => self.turn(run).await?,
                None => {
                    self.engine.look_at_canaries().await?;
                }
            }
            if self.stop.is_cancelled() {
                return Err(DemoError::Interrupted);
            }
        }
        Ok(())
    }

    /// Truths of flights that have landed by `now`.
    async fn land(&mut self, now: Timestamp) -> Result<(), DemoError> {
        let later = self.landing.split_off(&(now + TimeDelta::microseconds(1)));
        let landed = std::mem::replace(&mut self.landing, later);
        if landed.is_empty() {
            return Ok(());
        }
        let lines: String = landed.into_values().collect();
        let reading =
            evidence::read_truth(&self.model, None, lines.as_bytes(), now, &evidence::Limits::default())?;
        no_row_errors(&reading.errors)?;
        self.engine.store.add_truth(&reading.batch).await?;
        Ok(())
    }

    /// The app serves the flights of the day of `at`.
    async fn serve(&mut self, at: Timestamp) -> Result<(), DemoError> {
        let today: Vec<&Flight> = self.flights.of_day(day(at)).collect();
        if today.is_empty() || self.engine.store.releases(Some(&self.model)).await?.is_empty() {
            return Ok(());
        }
        let lines = self.server.predict(&self.flights, &today, at).await?;
        let limits = evidence::Limits::default();
        let reading = evidence::read_observations(&self.model, None, lines.as_bytes(), at, &limits)?;
        no_row_errors(&reading.errors)?;
        self.engine.store.observe(&reading.batch).await?;
        for (number, flight) in today.iter().enumerate() {
            if let Some((lands, line)) = traffic::truth(flight, number) {
                self.landing.entry(lands).or_default().push_str(&line);
            }
        }
        Ok(())
    }
}

fn no_row_errors(errors: &[evidence::RowError]) -> Result<(), DemoError> {
    match errors.first() {
        Some(error) => {
            Err(DemoError::Server(format!("it reports a row that refit refuses: {}", error.error)))
        }
        None => Ok(()),
    }
}

/// Whether a chapter's outcome is one the demo is about.
pub fn is_decision(outcome: Option<Outcome>) -> bool {
    match outcome {
        Some(Outcome::Promoted | Outcome::Rejected | Outcome::RolledBack) => true,
        Some(
            Outcome::Succeeded
            | Outcome::Skipped
            | Outcome::Failed
            | Outcome::Cancelled
            | Outcome::CancelledAfterPromotion,
        )
        | None => false,
    }
}
