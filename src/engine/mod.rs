//! Does what `domain` decided, then checkpoints it.
//!
//! * `worker`: one process's loops: wake-ups, reaper, schedules, canaries, outbox; start and shutdown; or one run alone
//! * `deadline`: when which part of a shutdown is over
//! * `tick`: until nothing is due, for a process that does not stay
//! * `activation`: the claim of a run, and its lease
//! * `driver`: a claimed run, as far as it goes; `known`: what it knows between two checkpoints
//! * `body`: one attempt of one step: timeout, cancel, panic
//! * `ledger`: what steps may write, fenced
//! * `undo`: takes outside effects back, in reverse
//! * `controller`: watches canaries; `pull`: fetches their evidence; `reconcile`: compares releases with their hosts
//! * `pause`: whether a workflow is started by itself
//! * `because`: what is kept with a change of a release: why, and what was known
//! * `retention`: deletes versions that nothing needs; `pruning`: old evidence, once a day
//! * `release`: changes of releases that no step makes: human, controller, undo; `by_hand`: promotions by people;
//!   `serving`: what of a version apps are told
//! * `boards`: messages that follow runs
//! * `notices`: who is told what; `situation`: how things stand when they are told; `unheard`: what a run ends without;
//!   `heard`: what people change by hand

pub mod activation;
pub mod because;
mod boards;
pub mod body;
pub mod by_hand;
pub mod controller;
pub mod deadline;
mod driver;
mod foresight;
pub mod heard;
mod known;
pub mod ledger;
pub mod live;
pub mod log;
mod news;
pub mod notices;
mod outage;
pub mod pause;
mod promotion;
pub mod pruning;
mod pull;
pub mod reconcile;
pub mod release;
pub mod reread;
pub mod retention;
mod serving;
mod situation;
pub mod tick;
pub mod undo;
mod unheard;
pub mod worker;

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::domain::canary::Looks;
use crate::domain::id::{NotifierName, RunId, StepId, WorkerId};
use crate::domain::run::Definition;
use crate::domain::workflow::{Workflow, parse};
use crate::steps::context::{Dirs, Services};
use crate::store::Store;
use deadline::Deadline;

/// How a process works on runs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long a lease lasts without renewal.
    pub lease: Duration,
    /// How often it is renewed.
    pub renew: Duration,
    /// Activations in a row without a checkpoint after which a run fails.
    pub crash_limit: u32,
    /// Runs worked on at once.
    pub concurrency: usize,
    /// How long a shutdown waits for steps to end.
    pub grace: Duration,
    /// What this worker can do (`runs_on:`).
    pub labels: Vec<String>,
    /// Time between looks at a canary.
    pub look_every: Duration,
    /// Whether somebody is there to look.
    pub looks: Looks,
    /// How people reach the server, for links in messages.
    pub public_url: Option<url::Url>,
    /// Notifiers that keep one message a run up to date.
    pub boards: BTreeSet<NotifierName>,
    /// How long things are kept that nothing needs any more.
    pub ages: crate::domain::retention::Ages,
    /// Templates that replace built-in ones.
    pub templates: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(10),
            renew: Duration::from_secs(3),
            crash_limit: 10,
            concurrency: 64,
            grace: Duration::from_secs(20),
            labels: vec![],
            look_every: Duration::from_secs(60),
            looks: Looks::Live,
            public_url: None,
            boards: BTreeSet::new(),
            ages: crate::domain::retention::Ages::default(),
            templates: None,
        }
    }
}

/// Everything the engine works with.
pub struct Engine {
    /// What must survive a crash.
    pub store: Arc<dyn Store>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// What `refit.toml` names.
    pub services: Services,
    /// The project: where `refit.toml` is.
    pub project: PathBuf,
    /// Where runs keep files: `.refit`.
    pub state: PathBuf,
    /// This process.
    pub worker: WorkerId,
    /// How it works.
    pub settings: Settings,
    /// Parsed definitions, by hash: a run's snapshot never changes.
    parsed: Mutex<HashMap<[u8; 32], Arc<Workflow>>>,
    /// Runs that this process works on now.
    live: live::Live,
    /// What hosts want people to see and this process told them of, by release.
    told: reconcile::Told,
    /// What was rolled back to and is being read.
    rereads: TaskTracker,
    /// How it ends. A worker that starts has a new one.
    ending: Mutex<Ending>,
}

/// How a process ends.
#[derive(Default)]
struct Ending {
    /// Fires when a shutdown's time is nearly over: processes of steps end at once.
    force: CancellationToken,
    /// Absent before the shutdown.
    deadline: Option<Deadline>,
}

/// More parsed workflows than this are not kept.
const PARSED_LIMIT: usize = 256;

impl Engine {
    /// An engine of one process.
    pub fn new(
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        services: Services,
        project: PathBuf,
        state: PathBuf,
        settings: Settings,
    ) -> Arc<Self> {
        let rereads = TaskTracker::new();
        // Only a closed one says when it is empty; it takes tasks all the same.
        rereads.close();
        Arc::new(Self {
            store,
            clock,
            services,
            project,
            state,
            worker: WorkerId::generate(),
            settings,
            parsed: Mutex::default(),
            live: live::Live::default(),
            told: reconcile::Told::default(),
            rereads,
            ending: Mutex::default(),
        })
    }

    /// The workflow of a snapshot. It was checked before the run was made, so an
    /// error here means that another version of refit made it.
    pub fn workflow(&self, definition: &Definition) -> Result<Arc<Workflow>, String> {
        let hash = definition_hash(definition);
        let mut parsed = self.parsed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(workflow) = parsed.get(&hash) {
            return Ok(Arc::clone(workflow));
        }
        let (workflow, _warnings) = parse(&definition.path, &definition.source, &definition.files)
            .map_err(|diagnostics| diagnostics.render(&definition.path, &definition.source))?;
        let workflow = Arc::new(workflow);
        if parsed.len() >= PARSED_LIMIT {
            parsed.clear();
        }
        parsed.insert(hash, Arc::clone(&workflow));
        Ok(workflow)
    }

    /// This process ends: every part of it by this deadline. To be said before anything is told to stop.
    pub fn ends_by(&self, deadline: Deadline) {
        self.ending().deadline = Some(deadline);
    }

    /// The deadline of the shutdown, for a part of it that was told to stop; of one that is told now where there is none.
    pub fn deadline(&self) -> Deadline {
        self.ending().deadline.unwrap_or_else(|| Deadline::within(self.settings.grace))
    }

    /// What ends processes of steps at once.
    fn force(&self) -> CancellationToken {
        self.ending().force.clone()
    }

    /// The shutdown of a worker before is over.
    fn forget_ending(&self) {
        *self.ending() = Ending::default();
    }

    fn ending(&self) -> MutexGuard<'_, Ending> {
        self.ending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Directories of one attempt. Nothing is made yet.
    pub fn dirs(&self, run: RunId, step: &StepId, attempt: u32) -> Dirs {
        let run_dir = self.state.join("runs").join(run.to_string());
        Dirs {
            project: self.project.clone(),
            data: run_dir.join("data"),
            attempt: run_dir.join("attempts").join(format!("{step}.{attempt}")),
            kept: run_dir.join("kept"),
            versions: self.state.join("versions"),
        }
    }
}

/// SHA-256 of a definition and all files it refers to.
pub fn definition_hash(definition: &Definition) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(definition.source.as_bytes());
    for (path, text) in &definition.files {
        hash.update([0]);
        hash.update(path.as_bytes());
        hash.update([0]);
        hash.update(text.as_bytes());
    }
    hash.finalize().into()
}
