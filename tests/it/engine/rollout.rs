//! A model whose version 1 serves, and workflows that bring out the next one.

use std::sync::Arc;

use chrono::TimeDelta;
use refit::clock::Clock;
use refit::domain::canary::CanaryRecord;
use refit::domain::id::*;
use refit::domain::release::Release;
use refit::domain::run::{AttemptState, Outcome, Run, RunStatus};
use refit::domain::version::VersionState;
use refit::engine::Engine;
use refit::engine::by_hand::PromotedByHand;
use refit::evidence::{Limits, read_observations};

use crate::support::crash::Crash;
use crate::support::world::{World, finish, turn};

/// The parts of a workflow that tests vary.
#[derive(Clone, Copy)]
pub struct Flow {
    pub name: &'static str,
    /// What stands between gate and canary.
    pub before_canary: &'static str,
    pub wait: &'static str,
    pub compare: &'static str,
    /// What stands between compare and promote.
    pub before_promote: &'static str,
    pub promote: &'static str,
}

/// Promoted after an hour on canary, unless the evidence speaks against it.
pub const FLOW: Flow = Flow {
    name: "retrain",
    before_canary: "",
    wait: "{ for: 1h }",
    compare: "rules: [{ metric: error_rate }], on_inconclusive: promote",
    before_promote: "",
    promote: "{}",
};

/// A day on canary.
pub const DAY: Flow = Flow { wait: "{ for: 24h }", ..FLOW };

/// A branch before the promotion that fails once somebody approves of it.
pub const BREAKS: &str = "  - { id: ask, uses: approve, needs: [publish], with: { message: 'Go on?' } }
  - { id: breaks, run: 'exit 1', needs: [ask], retry: { attempts: 1 } }";

/// Goes back.
pub const ROLLS_BACK: &str = r"
name: back
model: m
mode: act
concurrency: { key: back }
steps:
  - { id: back, uses: rollback, with: { target: production } }
";

impl Flow {
    pub fn source(self) -> String {
        let Self { name, before_canary, wait, compare, before_promote, promote } = self;
        format!(
            r#"
name: {name}
model: m
mode: act
concurrency: {{ key: "{name}" }}
notify: [{{ on: [failed, rolled_back, promoted, held], console: true }}]
steps:
  - id: train
    run: 'mkdir -p out && rm -f out/* && echo "$REFIT_RUN" > out/model.json && echo "MAE: 10"'
    metrics: {{ stdout: {{ mae: {{ pattern: 'MAE: (\d+)' }} }} }}
    outputs: {{ from: out, files: "*.json" }}
  - {{ id: gate, uses: gate, with: {{ first_version: accept, rules: [{{ metric: mae, max: 600 }}] }} }}
  - {{ id: publish, uses: publish, with: {{ store: models, version: counter }} }}
{before_canary}
  - {{ id: canary, uses: canary, with: {{ target: production, stages: [10%], compare: compare }} }}
  - {{ id: watch, uses: wait, with: {wait} }}
  - {{ id: compare, uses: compare, with: {{ {compare} }} }}
{before_promote}
  - {{ id: promote, uses: promote, with: {promote} }}
"#
        )
    }
}

const PUBLISHES: &str = r#"
name: publishes
model: m
mode: act
concurrency: { key: publishes }
steps:
  - id: train
    run: 'mkdir -p first && rm -f first/* && echo "$REFIT_RUN" > first/model.json'
    outputs: { from: first, files: "*.json" }
  - { id: publish, uses: publish, with: { store: models, version: counter } }
"#;

pub fn model() -> ModelName {
    "m".parse().expect("a name")
}

pub fn target() -> TargetName {
    "production".parse().expect("a name")
}

pub fn version(name: &str) -> VersionName {
    name.parse().expect("a version")
}

/// Seals the next version without serving it.
pub async fn publish(world: &World, engine: &Arc<Engine>) {
    let run = world.trigger(engine, PUBLISHES).await;
    let ended = finish(world, engine, run).await;
    assert_eq!(ended.outcome, Some(Outcome::Succeeded), "{:?}", ended.reason);
}

/// Version 1 is sealed and serves everybody.
pub async fn serving(world: &World, engine: &Arc<Engine>) {
    publish(world, engine).await;
    let done = engine.promote_by_hand(&model(), &target(), &version("1"), false, "ann", None).await;
    assert!(matches!(done, Ok(PromotedByHand::Done(_))), "{done:?}");
}

/// A run of `flow` whose canary is out.
pub async fn on_canary(world: &World, engine: &Arc<Engine>, flow: Flow) -> RunId {
    let run = world.trigger(engine, &flow.source()).await;
    reach(world, engine, run, TimeDelta::minutes(1), |run| run.status == RunStatus::Waiting).await;
    assert!(release(engine).await.desired.canary.is_some(), "the canary is out");
    run
}

/// A run that will promote in its next turn, whoever takes it.
pub async fn about_to_promote(world: &World, flow: Flow) -> RunId {
    let before = world.process(&Crash::never()).await;
    let run = on_canary(world, &before, flow).await;
    leave(&before).await;
    world.pass(TimeDelta::hours(1));
    run
}

/// Writes that the process makes which promotes.
pub async fn writes_of_promote(world: &World) -> Vec<String> {
    let run = about_to_promote(world, FLOW).await;
    let calm = Crash::never();
    let engine = world.process(&calm).await;
    assert_eq!(ended(world, &engine, run).await.outcome, Some(Outcome::Promoted));
    let writes = calm.names();
    leave(&engine).await;
    writes
}

/// The process ends in good order.
pub async fn leave(engine: &Arc<Engine>) {
    engine.store.retire_worker(engine.worker).await.expect("retired");
    engine.store.close().await;
}

/// Turns, `by` apart, until the run is as `done` wants it.
pub async fn reach(
    world: &World,
    engine: &Arc<Engine>,
    run: RunId,
    by: TimeDelta,
    done: impl Fn(&Run) -> bool,
) -> Run {
    for _ in 0..60 {
        let seen = turn(engine, run).await;
        if done(&seen) {
            return seen;
        }
        world.pass(by);
    }
    let attempts = engine.store.attempts(run).await.expect("readable");
    panic!("the run never became so: {:#?}\n{attempts:#?}", engine.store.run(run).await);
}

pub async fn ended(world: &World, engine: &Arc<Engine>, run: RunId) -> Run {
    reach(world, engine, run, TimeDelta::minutes(10), |run| run.status == RunStatus::Finished).await
}

pub async fn release(engine: &Arc<Engine>) -> Release {
    engine.store.release(&model(), &target()).await.expect("readable").expect("a release")
}

pub async fn canary(engine: &Arc<Engine>, run: RunId) -> CanaryRecord {
    engine.store.canary_of(run).await.expect("readable").expect("a canary")
}

pub async fn state_of(engine: &Arc<Engine>, name: &str) -> VersionState {
    engine.store.version(&model(), &version(name)).await.expect("readable").expect("a version").state
}

/// The champion and the canary that the host shows.
pub fn shown(world: &World) -> (Option<String>, Option<String>) {
    let Some(document) = world.host.current() else { return (None, None) };
    (
        document.champion.map(|served| served.version.to_string()),
        document.canary.map(|canary| canary.served.version.to_string()),
    )
}

pub fn serves(version: &str) -> (Option<String>, Option<String>) {
    (Some(version.to_owned()), None)
}

/// A minute of ten requests to the canary and thirty to the stable version, of which so many fail. Nobody looks.
pub async fn a_minute(
    world: &World,
    engine: &Arc<Engine>,
    (canary, stable): (&str, &str),
    errors: (u32, u32),
) {
    let now = world.clock.now();
    let mut lines = String::new();
    for (version, n, e) in [(canary, 10, errors.0), (stable, 90, errors.1)] {
        for i in 0..n {
            let (ok, at) = (i >= e, now.timestamp());
            lines +=
                &format!("{{\"request_id\":\"{version}-{i}-{at}\",\"version\":\"{version}\",\"ok\":{ok}}}\n");
        }
    }
    let batch = read_observations(&model(), None, lines.as_bytes(), now, &Limits::default());
    engine.store.observe(&batch.expect("read").batch).await.expect("kept");
    world.pass(TimeDelta::minutes(1));
}

/// Ten minutes of ten requests each to the canary and ninety to the stable version, of which so many fail.
pub async fn traffic(
    world: &World,
    engine: &Arc<Engine>,
    (canary, stable): (&str, &str),
    errors: (u32, u32),
) {
    for _ in 0..10 {
        a_minute(world, engine, (canary, stable), errors).await;
        engine.look_at_canaries().await.expect("looks");
    }
}

/// How often a step succeeded.
pub async fn succeeded(engine: &Arc<Engine>, run: RunId, step: &str) -> usize {
    let attempts = engine.store.attempts(run).await.expect("readable");
    attempts
        .iter()
        .filter(|attempt| attempt.step.as_str() == step && attempt.state == AttemptState::Succeeded)
        .count()
}

/// Makes the files of a version other than what was sealed.
pub fn damage(world: &World, name: &str) {
    std::fs::write(file_of(world, name), "something else").expect("writable");
}

/// The same, to be seen only by who reads them: they are as long as they were.
pub fn damage_within(world: &World, name: &str) {
    let file = file_of(world, name);
    let length = std::fs::read(&file).expect("readable").len();
    std::fs::write(file, "#".repeat(length)).expect("writable");
}

fn file_of(world: &World, name: &str) -> std::path::PathBuf {
    let mut files = walk(&world.path("models")).into_iter();
    files.find(|path| path.ends_with(format!("{name}/model.json"))).expect("the version's file")
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).expect("a directory").flatten();
    entries
        .flat_map(|entry| if entry.path().is_dir() { walk(&entry.path()) } else { vec![entry.path()] })
        .collect()
}
