//! A project, a database, a host and a clock that outlive any process working on them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use chrono::TimeDelta;
use refit::adapter::{AdapterError, ArtifactStore, Attention, Observed, Target, TargetTraits};
use refit::clock::{Clock, ManualClock};
use refit::domain::id::*;
use refit::domain::release::{Release, ReleaseDocument};
use refit::domain::run::{Attempt, AttemptState, Definition, Run, RunStatus};
use refit::domain::workflow::parse;
use refit::engine::{Engine, Settings};
use refit::notify::Notifiers;
use refit::secret::{Secret, Secrets};
use refit::steps::context::Services;
use refit::store::{Stay, Store, Submitted};
use refit::trigger::{Loaded, trigger};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::crash::{Crash, CrashingObjects, CrashingTarget};
use super::crashing_store::CrashingStore;
use super::steps::guard;

/// The outside world of a test.
pub struct World {
    pub root: TempDir,
    pub database: String,
    pub clock: Arc<ManualClock>,
    pub host: Arc<Host>,
    /// By name.
    pub secrets: BTreeMap<SecretName, Secret>,
    /// Where processes from now on tell apps that the store is; its directory, unless that is said.
    pub address: Mutex<Option<String>>,
}

/// A host that remembers what it shows, and refuses what is older.
#[derive(Default)]
pub struct Host {
    shown: Mutex<Vec<ReleaseDocument>>,
    broken: Mutex<bool>,
    strict: Mutex<bool>,
    forgetful: Mutex<bool>,
    silent: Mutex<bool>,
    attention: Mutex<Option<Attention>>,
}

impl Host {
    /// A host that shows what `other` shows.
    pub fn like(other: &Host) -> Self {
        Self { shown: Mutex::new(other.history()), ..Self::default() }
    }

    /// Every document it ever showed.
    pub fn history(&self) -> Vec<ReleaseDocument> {
        self.shown.lock().unwrap().clone()
    }

    /// The versions that became champion, in order.
    pub fn champions(&self) -> Vec<String> {
        let mut champions: Vec<String> = vec![];
        for document in self.history() {
            if let Some(champion) = document.champion {
                let version = champion.version.to_string();
                if champions.last() != Some(&version) {
                    champions.push(version);
                }
            }
        }
        champions
    }

    pub fn current(&self) -> Option<ReleaseDocument> {
        self.history().last().cloned()
    }

    pub fn break_down(&self, broken: bool) {
        *self.broken.lock().unwrap() = broken;
    }

    /// Rejects whatever it is told: trying again does not help.
    pub fn reject(&self, strict: bool) {
        *self.strict.lock().unwrap() = strict;
    }

    /// Does not say what it shows.
    pub fn hang_up(&self, silent: bool) {
        *self.silent.lock().unwrap() = silent;
    }

    /// Shows something that somebody may want otherwise.
    pub fn ask_for_attention(&self, attention: Attention) {
        *self.attention.lock().unwrap() = Some(attention);
    }

    /// Shows whatever it is told last, as hosts without compare-and-set do.
    pub fn forget_generations(&self) {
        *self.forgetful.lock().unwrap() = true;
    }
}

#[async_trait]
impl Target for Host {
    fn traits(&self) -> TargetTraits {
        TargetTraits { instant: true, expires: true, takes: Duration::ZERO, one_model: false }
    }

    async fn read(&self, _: &ModelName) -> Result<Option<Observed>, AdapterError> {
        if *self.silent.lock().unwrap() {
            return Err(AdapterError::Unavailable {
                service: "host".to_owned(),
                cause: "does not answer".to_owned(),
                retry_after: None,
            });
        }
        let current = self.current();
        Ok(current.map(|document| {
            let fingerprint = document.generation.to_string();
            Observed { fingerprint, document, attention: self.attention.lock().unwrap().clone() }
        }))
    }

    async fn apply(&self, release: &Release, instance: InstanceId) -> Result<(), AdapterError> {
        if *self.broken.lock().unwrap() {
            return Err(AdapterError::Unavailable {
                service: "host".to_owned(),
                cause: "is broken".to_owned(),
                retry_after: None,
            });
        }
        if *self.strict.lock().unwrap() {
            return Err(AdapterError::Rejected {
                service: "host".to_owned(),
                action: "show a release".to_owned(),
                cause: "it is not wanted here".to_owned(),
            });
        }
        let mut shown = self.shown.lock().unwrap();
        let document = release.document(instance);
        match shown.last() {
            Some(last) if last.generation > document.generation && !*self.forgetful.lock().unwrap() => {
                Err(AdapterError::Conflict {
                    service: "host".to_owned(),
                    cause: format!("shows generation {}", last.generation),
                })
            }
            Some(last) if last == &document => Ok(()),
            _ => {
                shown.push(document);
                Ok(())
            }
        }
    }

    async fn check(&self) -> Result<String, AdapterError> {
        Ok("fine".to_owned())
    }
}

/// One for all processes: making one reads every root certificate. It keeps no
/// connection, for those end with the process that made them.
pub fn http() -> reqwest::Client {
    static CLIENT: LazyLock<reqwest::Client> = LazyLock::new(|| {
        refit::http_client::install_crypto();
        reqwest::Client::builder().pool_max_idle_per_host(0).build().expect("a client")
    });
    CLIENT.clone()
}

pub fn start() -> refit::domain::Timestamp {
    "2026-11-20T02:00:00Z".parse().expect("a time")
}

impl World {
    /// A world around an empty SQLite database.
    pub fn sqlite() -> Self {
        let root = tempfile::tempdir().expect("a directory");
        let database = root.path().join(".refit/refit.db").display().to_string();
        Self::around(root, database)
    }

    /// A world around an empty Postgres database.
    pub async fn postgres() -> Self {
        let database = crate::store::database::migrated_postgres().await;
        Self::around(tempfile::tempdir().expect("a directory"), database)
    }

    /// What `self` is, again: files, database, host and time. No process may be at work on `self`.
    pub async fn copy(&self) -> Self {
        let root = tempfile::tempdir().expect("a directory");
        copy_dir(self.root.path(), root.path());
        let database = if self.database.starts_with("postgres") {
            crate::store::database::copy_postgres(&self.database).await
        } else {
            root.path().join(".refit/refit.db").display().to_string()
        };
        Self {
            clock: Arc::new(ManualClock::starting_at(self.clock.now())),
            host: Arc::new(Host::like(&self.host)),
            root,
            database,
            secrets: self.secrets.clone(),
            address: Mutex::new(self.address.lock().unwrap().clone()),
        }
    }

    fn around(root: TempDir, database: String) -> Self {
        refit::http_client::install_crypto();
        std::fs::create_dir_all(root.path().join("models")).expect("writable");
        std::fs::create_dir_all(root.path().join(".refit")).expect("writable");
        let clock = Arc::new(ManualClock::starting_at(start()));
        Self {
            root,
            database,
            clock,
            host: Arc::default(),
            secrets: BTreeMap::new(),
            address: Mutex::default(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("writable");
        std::fs::write(path, text).expect("writable");
    }

    /// A process that works on this world.
    pub async fn process(&self, crash: &Crash) -> Arc<Engine> {
        self.process_with(crash, self.clock.clone()).await
    }

    /// A process that keeps messages about runs up to date.
    pub async fn process_that_follows(&self, boards: BTreeSet<NotifierName>, crash: &Crash) -> Arc<Engine> {
        let settings = Settings { grace: Duration::from_secs(2), boards, ..Settings::default() };
        let engine = self.unregistered(crash, self.clock.clone(), settings).await;
        engine
            .store
            .register_worker(engine.worker, &[], Stay::Open, self.clock.now())
            .await
            .expect("registers");
        engine
    }

    pub async fn process_with(&self, crash: &Crash, clock: Arc<dyn Clock>) -> Arc<Engine> {
        let settings = Settings { grace: Duration::from_secs(2), ..Settings::default() };
        let engine = self.unregistered(crash, clock.clone(), settings).await;
        engine.store.register_worker(engine.worker, &[], Stay::Open, clock.now()).await.expect("registers");
        engine
    }

    /// A process that has not said yet that it works.
    pub async fn unregistered(
        &self,
        crash: &Crash,
        clock: Arc<dyn Clock>,
        settings: Settings,
    ) -> Arc<Engine> {
        let store = refit::store::open(&self.database, clock.clone()).await.expect("opens");
        let instance = store.instance();
        let store: Arc<dyn Store> = Arc::new(CrashingStore { inner: store, crash: crash.clone() });
        let target: Arc<dyn Target> =
            Arc::new(CrashingTarget { inner: self.host.clone(), crash: crash.clone() });
        let models = self.path("models");
        let objects = object_store::local::LocalFileSystem::new_with_prefix(&models).expect("a directory");
        let objects = objects.with_automatic_cleanup(true);
        let objects = CrashingObjects { inner: Arc::new(objects), crash: crash.clone() };
        let artifacts = ArtifactStore {
            objects: Arc::new(objects),
            prefix: object_store::path::Path::default(),
            gzip: false,
            public_base: refit::adapter::PublicBase::Stated(
                self.address.lock().unwrap().clone().unwrap_or_else(|| models.display().to_string()),
            ),
            label: "local".to_owned(),
        };
        let services = Services {
            instance,
            stores: Arc::new(BTreeMap::from([("models".parse().expect("a name"), artifacts)])),
            targets: Arc::new(BTreeMap::from([("production".parse().expect("a name"), target)])),
            secrets: Secrets::fixed(self.secrets.clone()),
            http: http(),
            guard: guard(),
        };
        let root = self.root.path().to_owned();
        Engine::new(store, clock, services, root.clone(), root.join(".refit"), settings)
    }

    /// Starts a run of `source`.
    pub async fn trigger(&self, engine: &Arc<Engine>, source: &str) -> RunId {
        match trigger(engine, &loaded(source), &[], "tester").await.expect("triggered") {
            Submitted::Made(run) | Submitted::Already(run) | Submitted::Busy(run) => run,
        }
    }

    pub fn pass(&self, by: TimeDelta) {
        self.clock.advance(by);
    }
}

pub fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("writable");
    for entry in std::fs::read_dir(from).expect("readable") {
        let entry = entry.expect("readable");
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().expect("readable").is_dir() {
            copy_dir(&from, &to);
        } else {
            std::fs::copy(&from, &to).expect("copied");
        }
    }
}

/// A workflow of a test.
pub fn loaded(source: &str) -> Loaded {
    let (workflow, warnings) = parse("workflows/test.yaml", source, &BTreeMap::new())
        .unwrap_or_else(|mistakes| panic!("{}", mistakes.render("workflows/test.yaml", source)));
    let definition = Definition {
        path: "workflows/test.yaml".to_owned(),
        source: source.to_owned(),
        files: BTreeMap::new(),
    };
    Loaded { definition, workflow: Arc::new(workflow), warnings }
}

/// Everything an engine's loops do, once.
pub async fn turn(engine: &Arc<Engine>, run: RunId) -> Run {
    let stop = CancellationToken::new();
    engine.look_at_canaries().await.expect("looks");
    engine.reconcile_releases().await.expect("reconciles");
    engine.activate(run, &stop).await.expect("activates");
    engine.store.run(run).await.expect("readable").expect("a run")
}

/// Turns and lets time pass, a minute a turn, until the run is as `done` wants it.
pub async fn until(world: &World, engine: &Arc<Engine>, run: RunId, done: impl Fn(&Run) -> bool) -> Run {
    for _ in 0..2000 {
        let seen = turn(engine, run).await;
        if done(&seen) {
            return seen;
        }
        world.pass(TimeDelta::minutes(1));
    }
    let seen = engine.store.run(run).await.expect("readable").expect("a run");
    let attempts = engine.store.attempts(run).await.expect("readable");
    panic!("the run never became so: {seen:#?}\n{attempts:#?}");
}

pub async fn finish(world: &World, engine: &Arc<Engine>, run: RunId) -> Run {
    until(world, engine, run, |run| run.status == RunStatus::Finished).await
}

/// How often each step succeeded.
pub fn successes(attempts: &[Attempt]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for attempt in attempts.iter().filter(|attempt| attempt.state == AttemptState::Succeeded) {
        *counts.entry(attempt.step.to_string()).or_default() += 1;
    }
    counts
}

/// Notifiers of a project that names none.
pub fn no_notifiers() -> Notifiers {
    let deps = refit::adapter::Deps {
        project: std::env::temp_dir(),
        stores: Default::default(),
        secrets: Default::default(),
        http: http(),
    };
    Notifiers::build(Default::default(), None, &deps).expect("the console")
}

/// Waits until a step made the file `name`.
pub async fn exists(world: &World, name: &str) {
    let began = std::time::Instant::now();
    while !world.path(name).exists() {
        assert!(began.elapsed() < Duration::from_secs(30), "`{name}` never came");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
