//! A canary that its evidence does not decide about, so that it is held
//! without traffic.

use async_trait::async_trait;
use chrono::TimeDelta;
use refit::domain::canary::MoreTime;
use refit::domain::run::{Outcome, RunStatus, SignalKind};

use crate::engine::crash::story::{
    Database, Scene, Story, from_look_before, model, only, position, target, version, without_repetition,
};
use crate::engine::crash::{Inbox, app, serve};
use crate::support::crash::Write;
use crate::support::world::World;

/// A person promotes it. Before, both versions are scored, offline and as the truth arrives.
pub struct PromotedByHand;

#[async_trait]
impl Story for PromotedByHand {
    fn workflow(&self) -> String {
        HELD.to_owned()
    }

    fn outcome(&self) -> Outcome {
        Outcome::Promoted
    }

    fn champions(&self) -> &'static [&'static str] {
        &["1", "2"]
    }

    fn tells(&self) -> &'static [&'static str] {
        &["add_scored", "ask_to_promote"]
    }

    fn pace(&self) -> TimeDelta {
        TimeDelta::hours(1)
    }

    fn prepare(&self, world: &World, inbox: &Inbox) {
        prepare(world, inbox);
    }

    fn begins_at(&self) -> Option<&'static str> {
        Some("rest")
    }

    async fn meanwhile(&self, scene: &Scene<'_>) {
        truths_arrive(scene).await;
        let held = scene.seen().await.status == RunStatus::Held;
        if held && !scene.was_told(&SignalKind::Promote).await {
            let (model, target, version) = (model(), target(), version("2"));
            let told = scene.engine.promote_by_hand(&model, &target, &version, false, "ann", None).await;
            told.expect("told");
        }
    }

    /// How it is published and goes out is the same as in `Promoted`.
    fn dies_at(&self, database: Database, mut writes: Vec<Write>) -> Vec<Write> {
        if database == Database::Postgres {
            return only(self.tells(), writes);
        }
        writes.drain(position("reserve_version", &writes)..position("open_canary", &writes));
        without_repetition(writes)
    }
}

/// A person gives it more time; then it passes.
pub struct GivenMoreTime;

#[async_trait]
impl Story for GivenMoreTime {
    fn workflow(&self) -> String {
        HELD.to_owned()
    }

    fn outcome(&self) -> Outcome {
        Outcome::Promoted
    }

    fn champions(&self) -> &'static [&'static str] {
        &["1", "2"]
    }

    fn tells(&self) -> &'static [&'static str] {
        &["extend_canary", "extend_canary_validity"]
    }

    fn pace(&self) -> TimeDelta {
        TimeDelta::hours(1)
    }

    fn prepare(&self, world: &World, inbox: &Inbox) {
        prepare(world, inbox);
    }

    fn begins_at(&self) -> Option<&'static str> {
        Some("promote")
    }

    /// There is traffic only after a night.
    async fn meanwhile(&self, scene: &Scene<'_>) {
        truths_arrive(scene).await;
        let Some(canary) = scene.canary().await else { return };
        if scene.seen().await.status == RunStatus::Held && canary.extensions.is_empty() {
            let asked = MoreTime { more: TimeDelta::hours(24), by: "ann".to_owned(), reason: None };
            scene.store().extend_canary(scene.run, &asked, scene.now()).await.expect("given");
        }
        if scene.now() > canary.started_at + TimeDelta::hours(7) {
            app::serves(scene).await;
        }
    }

    fn dies_at(&self, database: Database, writes: Vec<Write>) -> Vec<Write> {
        match database {
            Database::Sqlite => without_repetition(writes),
            Database::Postgres => only(&["extend_canary", "extend_canary_validity", "write_release"], writes),
        }
    }
}

/// Nothing is heard of it: it has no traffic from then on, and nobody decides.
pub struct NobodyDecides;

#[async_trait]
impl Story for NobodyDecides {
    fn workflow(&self) -> String {
        HELD.to_owned()
    }

    fn outcome(&self) -> Outcome {
        Outcome::RolledBack
    }

    fn champions(&self) -> &'static [&'static str] {
        &["1"]
    }

    fn pace(&self) -> TimeDelta {
        TimeDelta::hours(1)
    }

    fn prepare(&self, world: &World, inbox: &Inbox) {
        prepare(world, inbox);
    }

    fn begins_at(&self) -> Option<&'static str> {
        Some("shadow")
    }

    async fn meanwhile(&self, scene: &Scene<'_>) {
        truths_arrive(scene).await;
        app::is_silent_of("2", scene).await;
    }

    fn dies_at(&self, _: Database, writes: Vec<Write>) -> Vec<Write> {
        without_repetition(from_look_before("write_release", writes))
    }
}

/// Version 1 serves, and of nothing it is known yet what was true.
pub fn prepare(world: &World, inbox: &Inbox) {
    serve(world, "first", inbox);
    world.write("truths.csv", TRUTHS);
}

/// It is known what was true of two rows since the canary is out.
async fn truths_arrive(scene: &Scene<'_>) {
    let file = scene.world.path("truths.csv");
    if scene.canary().await.is_some() && std::fs::read_to_string(file).expect("there") == TRUTHS {
        let at = scene.now().format("%FT%TZ");
        scene.world.write("truths.csv", &format!("{TRUTHS}a,{at},1\nb,{at},2\n"));
    }
}

const TRUTHS: &str = "id,at,actual\n";

pub const HELD: &str = r#"
name: retrain
model: race-times
mode: act
concurrency: { key: retrain }
defaults: { retry: { attempts: 1 } }
steps:
  - id: train
    run: 'echo began >> began; echo 1 > "$REFIT_OUT/model.json"'
  - { id: rest, uses: wait, with: { for: 1h } }
  - id: evaluate
    uses: evaluate
    with:
      run: 'echo "{\"mae\": $(wc -l < "$REFIT_MODEL/model.json")}" > "$REFIT_METRICS"'
      metrics: { file: true }
  - { id: gate, uses: gate, with: { rules: [{ metric: mae, max: 10 }] } }
  - { id: publish, uses: publish, with: { store: models, version: counter } }
  - { id: canary, uses: canary, with: { target: production, stages: [20%], compare: compare } }
  - id: shadow
    uses: shadow
    with:
      run: |
        awk -F, '{ print (NR == 1 ? "id,prediction" : $1 ",1") }' "$REFIT_ROWS" > "$REFIT_PREDICTIONS"
      from: { file: truths.csv }
      for: 2h
  - id: compare
    uses: compare
    with:
      rules:
        - { metric: error_rate, acceptable_below: 5% }
        - { metric: abs_error, worse_by_at_most: 50%, mode: observe }
      on_inconclusive: hold
      hold_traffic: zero
      hold_for: 6h
      when_underpowered: hold
  - { id: promote, uses: promote }
notify:
  - { on: [canary_started, held, promoted, rolled_back, rejected, failed], slack: team }
"#;
