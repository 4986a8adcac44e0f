//! A bench for step bodies: a run with its directories, and a ledger in memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use refit::adapter::ArtifactStore;
use refit::clock::ManualClock;
use refit::domain::Timestamp;
use refit::domain::event::{Cause, Event};
use refit::domain::expr::{Scope, Template};
use refit::domain::id::{Epoch, EventId, Generation, InstanceId, RunId, StepId, StoreName, TargetName};
use refit::domain::release::{Assignment, Release, Served};
use refit::domain::run::{Attempt, AttemptState, Definition, Run, RunStatus, Signal, SignalKind};
use refit::domain::version::{Manifest, VersionRecord, VersionState};
use refit::domain::workflow::step::{Canary, Limits, Promote, StepKind};
use refit::domain::workflow::{self, Position};
use refit::domain::workflow::{Better, Concurrency, ConcurrencyPolicy, Mode, Step, Triggers, Workflow};
use refit::secret::{Secret, Secrets};
use refit::steps::context::{Dirs, Services, StepContext, StepError, StepLog, StepResult};
use refit::trainers::command::GuardCommand;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::ledger::{FakeLedger, Recorded};

/// Everything a step body needs, to be changed before `ctx`.
pub struct Bench {
    pub root: tempfile::TempDir,
    pub run: Run,
    pub workflow: Workflow,
    pub step: StepId,
    pub attempt: u32,
    pub resume: Option<Value>,
    pub history: Vec<Attempt>,
    pub signals: Vec<Signal>,
    pub scope: Scope,
    pub dirs: Dirs,
    pub cancel: CancellationToken,
    pub log: Arc<Recorded>,
    pub clock: Arc<ManualClock>,
    pub services: Services,
    pub ledger: FakeLedger,
}

pub fn now() -> Timestamp {
    "2026-11-21T02:00:00Z".parse().expect("a time")
}

/// The guard of the program under test.
pub fn guard() -> GuardCommand {
    GuardCommand::of_program(env!("CARGO_BIN_EXE_refit"))
}

/// A `run:` step with all its options absent.
pub fn command(line: &str) -> workflow::step::Run {
    workflow::step::Run {
        command: line.to_owned(),
        working_dir: None,
        env: BTreeMap::new(),
        limits: Limits::default(),
        grace: Duration::from_millis(500),
        stdout_metrics: BTreeMap::new(),
        metrics_file: false,
        outputs: None,
    }
}

impl Bench {
    /// A bench for `step`, in a project directory of its own.
    pub fn new(step: &str) -> Self {
        rustls::crypto::ring::default_provider().install_default().ok();
        let root = tempfile::tempdir().expect("a directory");
        let at = |name: &str| root.path().join(name);
        let dirs = Dirs {
            project: at("project"),
            data: at("run/data"),
            attempt: at("run/attempt"),
            kept: at("run/kept"),
            versions: at("versions"),
        };
        std::fs::create_dir_all(&dirs.project).expect("writable");
        Self {
            run: a_run(),
            workflow: a_workflow(),
            step: step.parse().expect("a step id"),
            attempt: 1,
            resume: None,
            history: Vec::new(),
            signals: Vec::new(),
            scope: Scope::new(),
            dirs,
            cancel: CancellationToken::new(),
            log: Arc::default(),
            clock: Arc::new(ManualClock::starting_at(now())),
            services: Services {
                instance: InstanceId::generate(),
                stores: Arc::default(),
                targets: Arc::default(),
                secrets: Secrets::fixed(BTreeMap::from([(
                    "TOKEN".parse().expect("a name"),
                    Secret::new("hunter22"),
                )])),
                http: refit::http_client::build().expect("a client"),
                guard: guard(),
            },
            ledger: FakeLedger::default(),
            root,
        }
    }

    pub fn ctx(&self) -> StepContext<'_> {
        StepContext {
            run: &self.run,
            workflow: &self.workflow,
            step: &self.step,
            attempt: self.attempt,
            resume: self.resume.as_ref(),
            history: &self.history,
            signals: &self.signals,
            scope: &self.scope,
            dirs: &self.dirs,
            cancel: self.cancel.clone(),
            force: CancellationToken::new(),
            log: Arc::clone(&self.log) as Arc<dyn StepLog>,
            clock: Arc::clone(&self.clock) as Arc<dyn refit::clock::Clock>,
            services: &self.services,
            ledger: &self.ledger,
        }
    }

    pub async fn run_command(&self, spec: &workflow::step::Run) -> Result<StepResult, StepError> {
        refit::steps::run::run(spec, &self.ctx()).await
    }

    /// A path in the project directory.
    pub fn project(&self, path: &str) -> PathBuf {
        self.dirs.project.join(path)
    }

    /// Records that `step` ended with `output`.
    pub fn ended(&mut self, step: &str, output: Value) {
        self.history.push(Attempt {
            step: step.parse().expect("a step id"),
            attempt: 1,
            state: AttemptState::Succeeded,
            epoch: Epoch(1),
            started_at: now(),
            finished_at: Some(now()),
            output: Some(output),
            error: None,
            resume: None,
            wake_at: None,
        });
    }

    pub fn signal(&mut self, kind: SignalKind) {
        let id = self.signals.len() as i64 + 1;
        let reason = Some("seen".to_owned());
        self.signals.push(Signal { id, kind, actor: "ada".to_owned(), reason, at: now() });
    }

    /// Gives the workflow a canary on `production`, whose champion is `manifest`'s version in the store
    /// `models`, a local directory; its path is returned.
    pub fn champion(&mut self, manifest: Option<Manifest>) -> PathBuf {
        let target: TargetName = "production".parse().expect("a name");
        self.workflow.steps.push(a_step(
            "canary",
            StepKind::Canary(Canary {
                target: target.clone(),
                stages: Vec::new(),
                compare: None,
                max_look_gap: None,
            }),
        ));
        let store = self.root.path().join("store");
        std::fs::create_dir_all(&store).expect("writable");
        let objects = object_store::local::LocalFileSystem::new_with_prefix(&store).expect("a directory");
        let artifacts = ArtifactStore {
            objects: Arc::new(objects),
            prefix: object_store::path::Path::from("models"),
            gzip: false,
            public_base: refit::adapter::PublicBase::Stated(String::new()),
            label: "the local store".to_owned(),
        };
        let name: StoreName = "models".parse().expect("a name");
        self.services.stores = Arc::new(BTreeMap::from([(name.clone(), artifacts)]));
        let served = manifest.map(|manifest| {
            let version = manifest.version.clone();
            self.ledger.versions.insert(
                version.clone(),
                VersionRecord {
                    model: manifest.model.clone(),
                    name: version.clone(),
                    store: name,
                    state: VersionState::Sealed,
                    run: None,
                    place: None,
                    base_url: String::new(),
                    manifest_sha256: String::new(),
                    manifest: Some(manifest),
                    created_at: now(),
                },
            );
            Served { version, base_url: String::new(), manifest_sha256: String::new() }
        });
        self.ledger.release = Some(Release {
            model: self.run.model.clone(),
            target,
            generation: Generation(7),
            desired: Assignment { champion: served, canary: None, previous: None },
            applied: Some(Generation(7)),
            owner: None,
            updated_at: now(),
        });
        store.join("models")
    }
}

fn a_run() -> Run {
    Run {
        id: RunId::generate(),
        workflow: "retrain".parse().expect("a name"),
        model: "race-times".parse().expect("a name"),
        definition: Definition {
            path: "workflows/retrain.yaml".to_owned(),
            source: String::new(),
            files: BTreeMap::new(),
        },
        cause: Cause {
            event: Event {
                id: EventId::generate(),
                name: "refit/manual".to_owned(),
                data: Value::Null,
                source: "cli".to_owned(),
                dedup_key: None,
                received_at: now(),
            },
            inputs: json!({}),
            actor: "ada".to_owned(),
        },
        status: RunStatus::Running,
        outcome: None,
        reason: None,
        epoch: Epoch(1),
        crashes: 0,
        cancel: None,
        committed: false,
        concurrency_key: "race-times".to_owned(),
        created_at: now(),
        finished_at: None,
    }
}

fn a_workflow() -> Workflow {
    Workflow {
        evidence: None,
        name: "retrain".parse().expect("a name"),
        model: "race-times".parse().expect("a name"),
        mode: Mode::Act,
        triggers: Triggers::default(),
        concurrency: Concurrency {
            key: Template::compile("race-times").expect("a template"),
            policy: ConcurrencyPolicy::Queue,
        },
        metrics: BTreeMap::from([
            ("mae".parse().expect("a name"), Better::Lower),
            ("r2".parse().expect("a name"), Better::Higher),
        ]),
        steps: vec![a_step("promote", StepKind::Promote(Promote { target: None, bake: None }))],
        on_failure: Vec::new(),
        notify: Vec::new(),
        secrets: std::collections::BTreeSet::new(),
    }
}

pub fn a_step(id: &str, kind: StepKind) -> Step {
    Step {
        id: id.parse().expect("a step id"),
        name: None,
        at: Position::default(),
        needs: Vec::new(),
        condition: None,
        timeout: Duration::from_secs(60),
        retry: refit::domain::retry::RetryPolicy::default(),
        labels: Vec::new(),
        kind,
    }
}

/// The output of a step that is done.
pub fn done<T: serde::de::DeserializeOwned>(result: Result<StepResult, StepError>) -> T {
    match result {
        Ok(StepResult::Done { output }) => serde_json::from_value(output).expect("the step's output"),
        other => panic!("not done: {other:?}"),
    }
}

/// The message of a step that failed.
pub fn failure(result: Result<StepResult, StepError>) -> String {
    match result {
        Err(error @ StepError::Failed { .. }) => error.to_string(),
        other => panic!("not failed: {other:?}"),
    }
}

/// Whether a process runs whose command line has `mark`.
pub fn is_running(mark: &str) -> bool {
    let processes = std::fs::read_dir("/proc").expect("Linux").flatten();
    processes.map(|entry| entry.path()).any(|path| has_mark(&path, mark))
}

fn has_mark(process: &Path, mark: &str) -> bool {
    let alive = std::fs::read_to_string(process.join("stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z'));
    let line = std::fs::read(process.join("cmdline")).unwrap_or_default();
    alive && String::from_utf8_lossy(&line).contains(mark)
}
