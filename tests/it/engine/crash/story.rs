//! What a story is made of: a workflow, what people and the app do while it
//! runs, and how it ends.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use chrono::TimeDelta;
use refit::clock::Clock;
use refit::domain::Timestamp;
use refit::domain::canary::{CanaryRecord, CanaryState};
use refit::domain::id::{ModelName, RunId, TargetName, VersionName, WorkflowName};
use refit::domain::run::{Attempt, AttemptState, Outcome, Run, SignalKind};
use refit::engine::Engine;
use refit::store::Store;

use super::app;
use super::inbox::Inbox;
use crate::support::crash::Write;
use crate::support::world::{World, loaded};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Database {
    Sqlite,
    Postgres,
}

/// How a run goes when nothing is in its way.
#[async_trait]
pub trait Story: Sync {
    /// The workflow of the run that dies: the whole main job, if nothing else is said.
    fn workflow(&self) -> String {
        super::stories::RETRAIN.to_owned()
    }

    fn outcome(&self) -> Outcome;

    /// The champions that the host shows, one after the other.
    fn champions(&self) -> &'static [&'static str];

    /// What there is before the run: version 1 serves everybody.
    fn prepare(&self, world: &World, inbox: &Inbox) {
        super::serve(world, "first", inbox);
    }

    /// Starts the run.
    async fn start(&self, world: &World, engine: &Arc<Engine>) {
        world.trigger(engine, &self.workflow()).await;
    }

    /// What people and the app do before each turn of the engine. A process that comes after one that died asks again, so
    /// that what was done is not done twice.
    async fn meanwhile(&self, scene: &Scene<'_>) {
        app::serves(scene).await;
    }

    /// Between two turns.
    fn pace(&self) -> TimeDelta {
        TimeDelta::minutes(1)
    }

    /// How much longer one telling may take than another.
    fn left_to_chance(&self) -> TimeDelta {
        TimeDelta::zero()
    }

    /// The step that sleeps when what is told here begins, for what comes before is the same in another story. `None`: from
    /// the start.
    fn begins_at(&self) -> Option<&'static str> {
        None
    }

    /// Writes that it is here for: no story before it makes them.
    fn tells(&self) -> &'static [&'static str] {
        &[]
    }

    /// Of its writes those that a process dies at: what differs from other stories.
    fn dies_at(&self, _: Database, writes: Vec<Write>) -> Vec<Write> {
        writes
    }

    /// Workflows that run beside it.
    fn beside(&self) -> &'static [&'static str] {
        &[]
    }
}

/// Where a story is.
pub struct Scene<'a> {
    pub world: &'a World,
    pub engine: &'a Arc<Engine>,
    pub run: RunId,
}

impl Scene<'_> {
    pub fn store(&self) -> &dyn Store {
        self.engine.store.as_ref()
    }

    pub fn now(&self) -> Timestamp {
        self.world.clock.now()
    }

    pub async fn seen(&self) -> Run {
        self.store().run(self.run).await.expect("readable").expect("a run")
    }

    pub async fn canary(&self) -> Option<CanaryRecord> {
        self.store().canary_of(self.run).await.expect("readable")
    }

    /// Whether its canary is in `state`.
    pub async fn canary_is(&self, state: CanaryState) -> bool {
        self.canary().await.is_some_and(|canary| canary.state == state)
    }

    /// Whether somebody told it `what`.
    pub async fn was_told(&self, what: &SignalKind) -> bool {
        let signals = self.store().signals(self.run).await.expect("readable");
        signals.iter().any(|signal| &signal.kind == what)
    }

    /// Whether `step` sleeps.
    pub async fn sleeps_at(&self, step: &str) -> bool {
        let asleep = |it: &Attempt| it.step.as_str() == step && it.state == AttemptState::Sleeping;
        self.attempts().await.iter().any(asleep)
    }

    pub async fn attempts(&self) -> Vec<Attempt> {
        self.store().attempts(self.run).await.expect("readable")
    }
}

/// From the first write called `name` on.
pub fn from(name: &str, mut writes: Vec<Write>) -> Vec<Write> {
    writes.drain(..position(name, &writes));
    writes
}

/// From the look on that led to the first write called `name`.
pub fn from_look_before(name: &str, mut writes: Vec<Write>) -> Vec<Write> {
    let look = writes[..position(name, &writes)].iter().rposition(|write| write.name == "take_look");
    writes.drain(..look.expect("a look led to it"));
    writes
}

/// Those that are called so.
pub fn only(names: &[&str], mut writes: Vec<Write>) -> Vec<Write> {
    writes.retain(|write| names.contains(&write.name.as_str()));
    writes
}

/// Without turns of the engine that do what one before them did.
pub fn without_repetition(writes: Vec<Write>) -> Vec<Write> {
    let turns = writes.split_inclusive(|write| write.name == "take_outbox");
    let mut known = BTreeSet::new();
    let new = turns.filter(|turn| known.insert(turn.iter().map(|it| it.name.clone()).collect::<Vec<_>>()));
    new.flatten().cloned().collect()
}

/// Where the first write called `name` is.
pub fn position(name: &str, writes: &[Write]) -> usize {
    let found = writes.iter().position(|write| write.name == name);
    found.unwrap_or_else(|| panic!("no `{name}` among {writes:?}"))
}

pub fn workflow_of(source: &str) -> WorkflowName {
    loaded(source).workflow.name.clone()
}

pub fn model() -> ModelName {
    "race-times".parse().expect("a name")
}

pub fn target() -> TargetName {
    "production".parse().expect("a name")
}

pub fn version(name: &str) -> VersionName {
    name.parse().expect("a version")
}
