//! Runs, events and checkpoints to test with.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use refit::domain::Timestamp;
use refit::domain::event::{Cause, Event};
use refit::domain::history::ChangedBy;
use refit::domain::id::{Epoch, EventId, RunId, StepId, WorkerId};
use refit::domain::pipeline::adopt;
use refit::domain::release::ReleaseActor;
use refit::domain::run::{AttemptState, Definition, Outcome, Run, RunStatus};
use refit::domain::workflow::{ConcurrencyPolicy, Moment, Recipient};
use refit::store::{
    Checkpoint, Claim, ClaimResult, EndedAttempt, NewAttempt, NewRun, Notice, Opening, RunState, Stay, Store,
    Submitted, UndoChange,
};
use serde_json::{Value, json};

/// As many as began in each run beside the one that began with its claim: one with each checkpoint.
static BEGUN: Mutex<BTreeMap<RunId, u32>> = Mutex::new(BTreeMap::new());

pub const LEASE: Duration = Duration::from_secs(10);

pub fn step(id: &str) -> StepId {
    id.parse().expect("a step id")
}

/// A change that Ann wants.
pub fn by_ann(at: Timestamp) -> ChangedBy {
    ChangedBy { actor: ReleaseActor::Human { name: "ann".to_owned() }, reason: "because".to_owned(), at }
}

pub fn event(at: Timestamp) -> Event {
    Event {
        id: EventId::generate(),
        name: "ml/retrain.requested".to_owned(),
        data: json!({"rows": 500}),
        source: "cli".to_owned(),
        dedup_key: None,
        received_at: at,
    }
}

pub fn new_run(event: &Event, at: Timestamp) -> NewRun {
    let id = RunId::generate();
    NewRun {
        run: Run {
            id,
            workflow: "retrain".parse().expect("a name"),
            model: "race-times".parse().expect("a name"),
            definition: Definition {
                path: "workflows/retrain.yaml".to_owned(),
                source: "name: retrain\n".to_owned(),
                files: BTreeMap::new(),
            },
            cause: Cause { event: event.clone(), inputs: json!({}), actor: "ann".to_owned() },
            status: RunStatus::Queued,
            outcome: None,
            reason: None,
            epoch: Epoch(0),
            crashes: 0,
            cancel: None,
            committed: false,
            concurrency_key: id.to_string(),
            created_at: at,
            finished_at: None,
        },
        policy: ConcurrencyPolicy::Queue,
        dedup_key: id.to_string(),
        start_at: at,
    }
}

/// A run of its own key, submitted.
pub async fn run(store: &Arc<dyn Store>, at: Timestamp) -> RunId {
    let event = event(at);
    let new = new_run(&event, at);
    let id = new.run.id;
    assert_eq!(store.submit(&event, vec![new]).await.expect("submitted"), [Submitted::Made(id)]);
    id
}

/// A run of this key, submitted with this policy.
pub async fn keyed(store: &Arc<dyn Store>, key: &str, policy: ConcurrencyPolicy, at: Timestamp) -> Submitted {
    let event = event(at);
    let mut new = new_run(&event, at);
    new.run.concurrency_key = key.to_owned();
    new.policy = policy;
    store.submit(&event, vec![new]).await.expect("submitted").remove(0)
}

pub fn made(submitted: Submitted) -> RunId {
    match submitted {
        Submitted::Made(id) => id,
        other => panic!("not made: {other:?}"),
    }
}

/// Starts step `a` unless it was started before.
pub fn begin(claim: &Claim) -> Option<Opening> {
    let started =
        if claim.attempts.is_empty() { vec![NewAttempt { step: step("a"), attempt: 1 }] } else { vec![] };
    Some(Opening { started, ..Opening::default() })
}

pub async fn try_claim(store: &Arc<dyn Store>, run: RunId, worker: WorkerId, at: Timestamp) -> ClaimResult {
    store.claim(run, worker, LEASE, at, &begin).await.expect("asked")
}

pub async fn claim(store: &Arc<dyn Store>, run: RunId, worker: WorkerId, at: Timestamp) -> Claim {
    match try_claim(store, run, worker, at).await {
        ClaimResult::Claimed(claim) => *claim,
        other => panic!("not claimed: {other:?}"),
    }
}

/// Claims a run and loses what its old holder had begun; `meanwhile` runs between what the claim reads and what it writes.
pub async fn take_over(
    store: &Arc<dyn Store>,
    run: RunId,
    worker: WorkerId,
    at: Timestamp,
    meanwhile: impl Fn() + Send + Sync,
) -> Claim {
    let plan = |claim: &Claim| {
        meanwhile();
        Some(Opening { lost: adopt(&claim.attempts, false, at).lost, ..Opening::default() })
    };
    match store.claim(run, worker, LEASE, at, &plan).await.expect("asked") {
        ClaimResult::Claimed(claim) => *claim,
        other => panic!("not claimed: {other:?}"),
    }
}

pub async fn worker(store: &Arc<dyn Store>, at: Timestamp) -> WorkerId {
    let worker = WorkerId::generate();
    store.register_worker(worker, &[], Stay::Open, at).await.expect("registered");
    worker
}

/// As `checkpoint`, of a step that began when `parent` ended.
pub fn after(parent: &str, mut checkpoint: Checkpoint) -> Checkpoint {
    if let Some(ended) = &mut checkpoint.ended {
        ended.begun_in = Some((step(parent), 1));
    }
    checkpoint
}

fn next_place(run: RunId) -> u32 {
    let mut begun = BEGUN.lock().expect("no panic");
    let place = begun.entry(run).or_default();
    *place += 1;
    *place
}

/// Step `from` succeeded with `output`, step `to` begins. `from` began with the claim, or with others.
pub fn next_step(claim: &Claim, from: &str, to: &str, output: Value, at: Timestamp) -> Checkpoint {
    Checkpoint {
        run: claim.run.id,
        epoch: claim.run.epoch,
        ended: Some(succeeded(from, output)),
        place: next_place(claim.run.id),
        woken: Vec::new(),
        started: vec![NewAttempt { step: step(to), attempt: 1 }],
        skipped: Vec::new(),
        cancelled: Vec::new(),
        run_state: RunState::Kept { status: RunStatus::Running, ending: None },
        undos: UndoChange::default(),
        notices: Vec::new(),
        boards: Vec::new(),
        at,
    }
}

pub fn succeeded(id: &str, output: Value) -> EndedAttempt {
    EndedAttempt {
        step: step(id),
        attempt: 1,
        begun_in: None,
        state: AttemptState::Succeeded,
        output: Some(output),
        error: None,
        resume: None,
        wake_at: None,
    }
}

/// The run ends well with step `from`.
pub fn finish(claim: &Claim, from: &str, at: Timestamp) -> Checkpoint {
    Checkpoint {
        started: Vec::new(),
        run_state: RunState::Finished { outcome: Outcome::Succeeded, reason: "all steps done".to_owned() },
        ..next_step(claim, from, from, json!(null), at)
    }
}

/// Step `from` sleeps, and the run with it.
pub fn sleep(claim: &Claim, from: &str, wake_at: Option<Timestamp>, at: Timestamp) -> Checkpoint {
    Checkpoint {
        ended: Some(EndedAttempt {
            state: AttemptState::Sleeping,
            output: None,
            resume: Some(json!({"since": "then"})),
            wake_at,
            ..succeeded(from, json!(null))
        }),
        started: Vec::new(),
        run_state: RunState::Parked { status: RunStatus::Waiting, ending: None, wake_at, heard: claim.heard },
        ..next_step(claim, from, from, json!(null), at)
    }
}

/// A message.
pub fn notice(key: &str, run: Option<RunId>) -> Notice {
    Notice {
        key: key.to_owned(),
        run,
        model: "race-times".parse().expect("a name"),
        moment: Moment::Succeeded,
        to: Recipient::Console,
        facts: json!({"mae": 1.5}),
    }
}
