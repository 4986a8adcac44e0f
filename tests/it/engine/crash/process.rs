//! One process's life, from its start to the end of the run, or to its death.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DurationRound, TimeDelta};
use refit::adapter::Deps;
use refit::clock::Clock;
use refit::domain::canary::CanaryState;
use refit::domain::evidence::{EvidenceMinute, MinuteCounts, ObservationBatch};
use refit::domain::freeze::{FreezeEnd, FreezeScope, FreezeWish};
use refit::domain::id::{FreezeId, RunId, VersionName, WorkflowName};
use refit::domain::run::{CancelRequest, RunStatus};
use refit::engine::Engine;
use refit::notify::{Notifiers, outbox};
use refit::secret::{Secret, Secrets};
use refit::store::RunFilter;
use serde_json::json;
use wiremock::{Mock, MockServer, Request, Respond, ResponseTemplate};

use super::Story;
use crate::support::crash::Crash;
use crate::support::world::{World, http, loaded, turn};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// At its write.
    Died,
    /// The run ended, and everybody was told.
    Ended,
}

/// Runs `work` on a runtime of its own.
pub fn on_a_runtime<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let done = runtime.block_on(work);
    // What was spawned is dropped here: to the world, the process is gone.
    runtime.shutdown_timeout(Duration::from_secs(20));
    done
}

/// Works on the run of `source` until it ended, or until `crash`.
pub fn live(world: &World, story: Story, source: &str, inbox: &Inbox, crash: &Crash) -> Fate {
    on_a_runtime(async {
        tokio::select! {
            biased;
            () = crash.died() => Fate::Died,
            () = work(world, story, source, inbox, crash) => Fate::Ended,
        }
    })
}

async fn work(world: &World, story: Story, source: &str, inbox: &Inbox, crash: &Crash) {
    let engine = world.process(crash).await;
    let notifiers = inbox.notifiers(world);
    engine.store.reap(world.clock.now()).await.expect("reaps");
    let run = match run_of(&engine, &loaded(source).workflow.name).await {
        Some(run) => run,
        None => world.trigger(&engine, source).await,
    };
    for _ in 0..60 {
        report(world, &engine, story).await;
        cancel(world, &engine, story, run).await;
        freeze(world, &engine, story, run).await;
        let seen = turn(&engine, run).await;
        outbox::drain_once(engine.store.as_ref(), &notifiers, world.clock.as_ref()).await.expect("drains");
        if seen.status == RunStatus::Finished && is_settled(&engine, run).await {
            engine.store.retire_worker(engine.worker).await.expect("retires");
            engine.store.close().await;
            return;
        }
        world.pass(TimeDelta::minutes(1));
    }
    let run = engine.store.run(run).await.expect("readable").expect("a run");
    panic!("it never ended: {:?} {:?} {:?}", run.status, run.outcome, run.reason);
}

/// The run of a workflow, if it was made.
pub async fn run_of(engine: &Engine, workflow: &WorkflowName) -> Option<RunId> {
    let filter = RunFilter { workflow: Some(workflow.clone()), limit: 10, ..RunFilter::default() };
    let runs = engine.store.runs(&filter).await.expect("readable");
    assert!(runs.len() <= 1, "{runs:#?}");
    runs.first().map(|run| run.id)
}

/// Whether everybody was told, the host shows what it should, and nobody watches a canary any more.
async fn is_settled(engine: &Engine, run: RunId) -> bool {
    let told = engine.store.outbox_of(run).await.expect("readable");
    let releases = engine.store.releases(None).await.expect("readable");
    engine.store.live_canaries(None).await.expect("readable").is_empty()
        && told.iter().all(|entry| entry.sent_at.is_some() || entry.dead)
        && releases.iter().all(|release| release.is_applied())
}

/// The app reports its last minute, once or twice.
async fn report(world: &World, engine: &Engine, story: Story) {
    let Some(shown) = world.host.current() else { return };
    let Some(champion) = shown.champion else { return };
    let share = shown.canary.as_ref().map_or(0, |canary| u64::from(canary.basis_points.0));
    if story == Story::GoesBack || share == 0 && champion.version.as_str() == "1" {
        return;
    }
    let now = world.clock.now();
    let minute = |version: &VersionName, n: u64| {
        let fails = story == Story::RolledBack && version.as_str() == "2";
        let counts = MinuteCounts { n, errors: if fails { n } else { n / 100 }, timed: 0 };
        let minute = now.duration_trunc(TimeDelta::minutes(1)).expect("in range");
        EvidenceMinute { version: version.clone(), minute, seq: 0, counts, latency: vec![] }
    };
    let canary = shown.canary.iter().map(|canary| minute(&canary.served.version, share / 10));
    let stable = minute(&champion.version, 1000 - share / 10);
    let batch = ObservationBatch {
        model: shown.model,
        batch_id: format!("app/{now}"),
        minutes: canary.chain([stable]).collect(),
        predictions: vec![],
        at: now,
    };
    engine.store.observe(&batch).await.expect("kept");
}

/// Somebody asks to cancel the run, when the story says so.
async fn cancel(world: &World, engine: &Engine, story: Story, run: RunId) {
    let when = match story {
        Story::Cancelled => CanaryState::Watching,
        Story::CancelledTooLate => CanaryState::Baking,
        Story::Promoted
        | Story::Frozen
        | Story::RolledBack
        | Story::Refused
        | Story::StepFails
        | Story::GoesBack => return,
    };
    let seen = engine.store.run(run).await.expect("readable").expect("a run");
    let canary = engine.store.canary_of(run).await.expect("readable");
    let asks = seen.status == RunStatus::Waiting && canary.is_some_and(|canary| canary.state == when);
    if asks && seen.cancel.is_none() {
        let request = CancelRequest { actor: "ann".to_owned(), reason: None, at: world.clock.now() };
        engine.store.request_cancel(run, &request).await.expect("asked");
    }
}

/// Somebody freezes promotions while the canary is out, and lifts it once the run waits, when the story says so.
async fn freeze(world: &World, engine: &Engine, story: Story, run: RunId) {
    if story != Story::Frozen {
        return;
    }
    let store = &engine.store;
    match store.freezes(None, 1).await.expect("readable").first() {
        None => {
            let canary = store.canary_of(run).await.expect("readable");
            if canary.is_some_and(|canary| canary.state == CanaryState::Watching && canary.stage > 0) {
                let wish = FreezeWish {
                    model: None,
                    from: None,
                    end: FreezeEnd::Never,
                    reason: "an incident".to_owned(),
                    by: "ann".to_owned(),
                };
                store.freeze(FreezeId::generate(), &wish, world.clock.now()).await.expect("asked");
            }
        }
        Some(freeze) if freeze.lifted.is_none() => {
            let attempts = store.attempts(run).await.expect("readable");
            if attempts.iter().any(|attempt| refit::steps::promote::frozen(attempt).is_some()) {
                store.unfreeze(&FreezeScope::EveryModel, "ann", world.clock.now()).await.expect("asked");
            }
        }
        Some(_) => {}
    }
}

/// A Slack that remembers what it was sent, by world.
pub struct Inbox {
    server: MockServer,
    received: Received,
}

#[derive(Clone, Default)]
struct Received(Arc<Mutex<BTreeMap<String, Vec<String>>>>);

impl Respond for Received {
    fn respond(&self, request: &Request) -> ResponseTemplate {
        let body = String::from_utf8_lossy(&request.body).into_owned();
        self.0.lock().unwrap().entry(request.url.path().to_owned()).or_default().push(body);
        ResponseTemplate::new(200).set_body_string("ok")
    }
}

impl Inbox {
    pub fn open() -> Self {
        let received = Received::default();
        let server = on_a_runtime(async {
            let server = MockServer::start().await;
            Mock::given(wiremock::matchers::method("POST"))
                .respond_with(received.clone())
                .mount(&server)
                .await;
            server
        });
        Self { server, received }
    }

    fn place(world: &World) -> String {
        let name = world.root.path().file_name().expect("a name").to_string_lossy();
        format!("/{}", name.trim_start_matches('.'))
    }

    fn notifiers(&self, world: &World) -> Notifiers {
        let url = Secret::new(format!("{}{}", self.server.uri(), Self::place(world)));
        let deps = Deps {
            project: world.root.path().to_owned(),
            secrets: Secrets::fixed([("URL".parse().expect("a name"), url)].into()),
            http: http(),
            stores: Arc::new(BTreeMap::new()),
        };
        let team = ("team".parse().expect("a name"), json!({"kind": "slack", "url": "URL"}));
        Notifiers::build([team].into(), None, &deps).expect("built")
    }

    /// What was sent from `world`, each message once.
    pub fn messages(&self, world: &World) -> Vec<String> {
        let mut messages =
            self.received.0.lock().unwrap().get(&Self::place(world)).cloned().unwrap_or_default();
        messages.sort();
        messages.dedup();
        messages
    }
}

/// What a panic said.
pub fn words_of(panic: &(dyn Any + Send)) -> String {
    let words = panic.downcast_ref::<String>().map(String::as_str);
    words.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned()
}
