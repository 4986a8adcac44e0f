use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::adapter::Deps;
use crate::clock::{Clock, ManualClock};
use crate::domain::Timestamp;
use crate::domain::canary::Looks;
use crate::domain::event::{Cause, Event};
use crate::domain::expr::Scope;
use crate::domain::id::{CanaryId, Epoch, EventId, Generation, InstanceId, RunId, TargetName};
use crate::domain::release::Release;
use crate::domain::run::{Attempt, AttemptState, Definition, Intent, Run, RunStatus, Undo};
use crate::domain::version::{Manifest, VersionRecord, VersionState, next_name};
use crate::domain::workflow::step::Naming;
use crate::domain::workflow::{Moment, Recipient, Workflow};
use crate::secret::Secrets;
use crate::steps::context::{CanaryOpening, Dirs, Ledger, ReleaseChange, ReleaseRefused, Services, StepLog};

/// Keeps names as the engine does, and nothing else.
#[derive(Default)]
struct Names {
    taken: Mutex<Vec<VersionName>>,
    reserved: Mutex<Option<VersionName>>,
    sealed: Mutex<Vec<(Manifest, String, String)>>,
}

fn unused<T>() -> Result<T, StepError> {
    Err(StepError::permanent("publish has no use for this"))
}

#[async_trait]
impl Ledger for Names {
    fn looks(&self) -> Looks {
        Looks::Live
    }

    fn look_every(&self) -> Duration {
        Duration::from_secs(60)
    }

    async fn reserve_version(&self, store: &StoreName, naming: Naming) -> Result<VersionRecord, StepError> {
        let mut reserved = self.reserved.lock().expect("not poisoned");
        let mut taken = self.taken.lock().expect("not poisoned");
        let name = reserved.get_or_insert_with(|| {
            let name = next_name(naming, &taken, now().date_naive());
            taken.push(name.clone());
            name
        });
        Ok(VersionRecord {
            model: "race-times".parse().expect("a name"),
            name: name.clone(),
            store: store.clone(),
            state: VersionState::Reserved,
            run: None,
            place: None,
            base_url: String::new(),
            manifest_sha256: String::new(),
            manifest: None,
            created_at: now(),
        })
    }

    async fn freeze(&self) -> Result<Option<crate::domain::freeze::Freeze>, StepError> {
        unused()
    }

    async fn abandon_version(&self, version: &VersionName) -> Result<(), StepError> {
        let given_up = self.reserved.lock().expect("not poisoned").take();
        assert_eq!(given_up.as_ref(), Some(version));
        Ok(())
    }

    async fn seal_version(&self, manifest: &Manifest, base_url: &str, sha256: &str) -> Result<(), StepError> {
        let sealed = (manifest.clone(), base_url.to_owned(), sha256.to_owned());
        self.sealed.lock().expect("not poisoned").push(sealed);
        Ok(())
    }

    async fn keep_latest(&self, _: &StoreName, _: u32) -> Result<Vec<String>, StepError> {
        unused()
    }
    async fn intend(&self, _: &str, _: Value, _: Option<Undo>) -> Result<Intent, StepError> {
        unused()
    }
    async fn settle(&self, _: &str, _: Value) -> Result<(), StepError> {
        unused()
    }
    async fn version(&self, _: &VersionName) -> Result<Option<VersionRecord>, StepError> {
        unused()
    }
    async fn previous_output(&self, _: &StepId) -> Result<Option<Value>, StepError> {
        unused()
    }
    async fn releases(&self) -> Result<Vec<Release>, StepError> {
        unused()
    }

    async fn release(&self, _: &TargetName) -> Result<Option<Release>, StepError> {
        unused()
    }
    async fn change_release(&self, _: ReleaseChange) -> Result<Release, ReleaseRefused> {
        Err(ReleaseRefused::Step(StepError::Fenced))
    }
    async fn promotion(&self, _: &TargetName) -> Result<Option<crate::steps::context::Promotion>, StepError> {
        unused()
    }
    async fn release_applied(&self, _: &TargetName, _: Generation) -> Result<(), StepError> {
        unused()
    }
    async fn roll_back(&self, _: &TargetName, _: Option<&VersionName>) -> Result<Release, StepError> {
        unused()
    }
    async fn open_canary(&self, _: CanaryOpening) -> Result<CanaryId, StepError> {
        unused()
    }
    async fn canary(&self) -> Result<Option<crate::domain::canary::CanaryRecord>, StepError> {
        unused()
    }
    async fn foresee(&self, _: &CanaryOpening) -> Result<Option<crate::domain::canary::Foreseen>, StepError> {
        unused()
    }
    async fn scored(
        &self,
        _: &VersionName,
        _: &VersionName,
        _: i64,
    ) -> Result<Vec<crate::domain::evidence::PairedError>, StepError> {
        unused()
    }
    async fn came_of_age(
        &self,
        _: &VersionName,
        _: &VersionName,
        _: crate::domain::canary::Ripening,
    ) -> Result<Vec<crate::domain::evidence::PairedError>, StepError> {
        unused()
    }
    async fn add_scored(&self, _: &crate::domain::evidence::ScoredRows) -> Result<u64, StepError> {
        unused()
    }
    async fn canary_promoted(
        &self,
        _: CanaryId,
        _: Option<Timestamp>,
    ) -> Result<crate::domain::canary::CanaryRecord, StepError> {
        unused()
    }
    async fn end_bake(&self, _: CanaryId) -> Result<crate::domain::canary::CanaryRecord, StepError> {
        unused()
    }
    async fn close_canary(&self, _: CanaryId, _: &str) -> Result<(), StepError> {
        unused()
    }
    async fn tell(&self, _: &str, _: &[Recipient], _: Moment, _: Value) -> Result<(), StepError> {
        unused()
    }
}

struct Silent;

impl StepLog for Silent {
    fn write(&self, _: &[u8]) {}
    fn note(&self, _: &str) {}
    fn progress(&self, _: Option<f64>, _: &str) {}
}

fn now() -> Timestamp {
    "2026-11-21T02:00:00Z".parse().expect("a time")
}

/// A project with a store, and a run whose trainer left two files.
struct World {
    project: tempfile::TempDir,
    run: Run,
    services: Services,
    names: Names,
    history: Vec<Attempt>,
}

impl World {
    fn new() -> Self {
        let project = tempfile::tempdir().expect("a directory");
        let deps = Deps {
            project: project.path().to_owned(),
            secrets: Secrets::default(),
            http: crate::http_client::build().expect("a client"),
            stores: Arc::new(BTreeMap::new()),
        };
        let store = json!({"kind": "local", "path": "store"});
        let store = crate::artifacts::build(store, &deps).expect("a store");
        let services = Services {
            instance: InstanceId::generate(),
            stores: Arc::new(BTreeMap::from([("models".parse().expect("a name"), store)])),
            targets: Arc::new(BTreeMap::new()),
            secrets: Secrets::default(),
            http: deps.http,
            guard: crate::trainers::command::GuardCommand::of_program("refit"),
        };
        let kept = project.path().join("kept");
        std::fs::create_dir(&kept).expect("made");
        let files = ["a.json", "b.json"].map(|path| {
            std::fs::write(kept.join(path), path).expect("written");
            let sha256 = hex::encode(Sha256::digest(path));
            json!({"path": path, "size": path.len(), "sha256": sha256})
        });
        let trained = json!({
            "exit_code": 0, "dir": kept, "files": files,
            "metrics": {"values": {"mae": 512.0}, "n": 100},
        });
        let history = vec![
            succeeded("data", json!({"file": "d.csv", "rows": 20_000, "sha256": "ab", "bytes": 1})),
            succeeded("train", trained),
            succeeded("gate", json!({"verdict": "pass"})),
        ];
        Self { run: run(), services, names: Names::default(), history, project }
    }

    async fn publish(&self) -> Result<PublishOutput, StepError> {
        let workflow = Workflow::empty(&self.run.workflow, &self.run.model);
        let (step, scope) = ("publish".parse().expect("a name"), Scope::new());
        let place = self.project.path().to_owned();
        let dirs = Dirs {
            project: place.clone(),
            data: place.clone(),
            attempt: place.clone(),
            kept: place.clone(),
            versions: place,
        };
        let ctx = StepContext {
            run: &self.run,
            workflow: &workflow,
            step: &step,
            attempt: 1,
            resume: None,
            history: &self.history,
            signals: &[],
            scope: &scope,
            dirs: &dirs,
            cancel: CancellationToken::new(),
            force: CancellationToken::new(),
            log: Arc::new(Silent),
            clock: Arc::new(ManualClock::starting_at(now())) as Arc<dyn Clock>,
            services: &self.services,
            ledger: &self.names,
        };
        let spec = Publish {
            store: "models".parse().expect("a name"),
            version: Naming::Date,
            from: None,
            keep_latest: None,
        };
        match run_step(&spec, &ctx).await? {
            StepResult::Done { output } => Ok(serde_json::from_value(output).expect("its own output")),
            other => panic!("{other:?}"),
        }
    }
}

use super::run as run_step;

fn succeeded(step: &str, output: Value) -> Attempt {
    Attempt {
        step: step.parse().expect("a name"),
        attempt: 1,
        state: AttemptState::Succeeded,
        epoch: Epoch(1),
        started_at: now(),
        finished_at: Some(now()),
        output: Some(output),
        error: None,
        resume: None,
        wake_at: None,
    }
}

fn run() -> Run {
    let event = Event {
        id: EventId::generate(),
        name: "refit/manual".to_owned(),
        data: json!({}),
        source: "cli".to_owned(),
        dedup_key: None,
        received_at: now(),
    };
    Run {
        id: RunId::generate(),
        workflow: "retrain".parse().expect("a name"),
        model: "race-times".parse().expect("a name"),
        definition: Definition {
            path: "workflows/retrain.yaml".to_owned(),
            source: "name: retrain\n".to_owned(),
            files: BTreeMap::new(),
        },
        cause: Cause { event, inputs: json!({}), actor: "test".to_owned() },
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

#[tokio::test]
async fn a_training_becomes_a_sealed_version_that_says_where_it_came_from() {
    let world = World::new();
    let output = world.publish().await.expect("published");
    assert_eq!(output.version.as_str(), "2026-11-21");
    assert_eq!((output.files, output.bytes), (2, 12));
    let there = Path::new(&output.base_url);
    assert_eq!(std::fs::read_to_string(there.join("a.json")).expect("there"), "a.json");
    let sealed = world.names.sealed.lock().expect("not poisoned").clone();
    let [(manifest, base_url, sha256)] = &sealed[..] else { panic!("{sealed:?}") };
    assert_eq!((base_url, sha256), (&output.base_url, &output.manifest_sha256));
    assert_eq!(manifest.metrics.n, Some(100));
    let from = &manifest.provenance;
    assert_eq!(from["workflow"]["sha256"], hex::encode(Sha256::digest("name: retrain\n")));
    assert_eq!(from["data"], json!({"step": "data", "rows": 20_000, "sha256": "ab"}));
    assert_eq!(from["step"], "train");
}

#[tokio::test]
async fn publishing_again_after_a_crash_gives_the_same_version() {
    let world = World::new();
    let first = world.publish().await.expect("published");
    assert_eq!(world.publish().await.expect("published"), first);
}

#[tokio::test]
async fn a_name_that_somebody_else_has_in_the_store_is_passed_over() {
    let mut world = World::new();
    world.publish().await.expect("published");
    // Another refit database, which knows nothing of that version, shares the store.
    world.services.instance = InstanceId::generate();
    world.names = Names::default();
    let output = world.publish().await.expect("published");
    assert_eq!(output.version.as_str(), "2026-11-21.2");
}

#[tokio::test]
async fn nothing_is_published_of_files_that_changed_or_are_not_there() {
    let world = World::new();
    std::fs::write(world.project.path().join("kept/a.json"), "other!").expect("written");
    let changed = world.publish().await.expect_err("changed");
    assert!(changed.to_string().contains("changed since it was collected"), "{changed}");
    let mut world = World::new();
    world.history.retain(|attempt| attempt.step.as_str() != "train");
    let nothing = world.publish().await.expect_err("no files");
    assert_eq!(nothing.to_string(), "no step before this one left files to publish");
}
