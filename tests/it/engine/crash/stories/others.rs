//! A canary that makes room for another version.

use async_trait::async_trait;
use chrono::TimeDelta;
use refit::domain::canary::CanaryState;
use refit::domain::run::{Outcome, RunStatus};

use super::held::{self, HELD};
use crate::engine::crash::process::run_of;
use crate::engine::crash::story::{Database, Scene, Story, model, only, position, target, version};
use crate::engine::crash::{Inbox, app, serve};
use crate::support::crash::Write;
use crate::support::world::World;

/// A person promotes another version while it is out.
pub struct Overruled;

#[async_trait]
impl Story for Overruled {
    fn outcome(&self) -> Outcome {
        Outcome::RolledBack
    }

    fn champions(&self) -> &'static [&'static str] {
        &["1", "2", "1"]
    }

    fn prepare(&self, world: &World, inbox: &Inbox) {
        serve(world, "first", inbox);
        serve(world, "second", inbox);
        world.write("began", "");
    }

    fn begins_at(&self) -> Option<&'static str> {
        Some("watch")
    }

    async fn meanwhile(&self, scene: &Scene<'_>) {
        app::serves(scene).await;
        if scene.canary_is(CanaryState::Watching).await {
            let (model, target, version) = (model(), target(), version("1"));
            let made = scene.engine.promote_by_hand(&model, &target, &version, true, "ann", None).await;
            made.expect("promoted");
        }
    }
}

/// It is held, and the run of another workflow brings out a newer version.
pub struct Superseded;

#[async_trait]
impl Story for Superseded {
    fn workflow(&self) -> String {
        HELD.to_owned()
    }

    fn outcome(&self) -> Outcome {
        Outcome::RolledBack
    }

    fn champions(&self) -> &'static [&'static str] {
        &["1", "3"]
    }

    fn prepare(&self, world: &World, inbox: &Inbox) {
        held::prepare(world, inbox);
    }

    fn pace(&self) -> TimeDelta {
        TimeDelta::hours(1)
    }

    fn beside(&self) -> &'static [&'static str] {
        &["again"]
    }

    fn begins_at(&self) -> Option<&'static str> {
        Some("promote")
    }

    async fn meanwhile(&self, scene: &Scene<'_>) {
        let held = scene.seen().await.status == RunStatus::Held;
        if held && run_of(scene.engine, &"again".parse().expect("a name")).await.is_none() {
            scene.world.trigger(scene.engine, AGAIN).await;
        }
    }

    /// The newer version is made, and is promoted, as in `Promoted`.
    fn dies_at(&self, database: Database, mut writes: Vec<Write>) -> Vec<Write> {
        writes.drain(..position("write_release", &writes));
        writes.truncate(1 + position("write_release", &writes[1..]));
        match database {
            Database::Sqlite => writes,
            Database::Postgres => only(&["write_release"], writes),
        }
    }
}

const AGAIN: &str = r#"
name: again
model: race-times
mode: act
concurrency: { key: again }
defaults: { retry: { attempts: 1 } }
steps:
  - { id: train, run: 'echo 1 > "$REFIT_OUT/model.json"' }
  - { id: publish, uses: publish, with: { store: models, version: counter } }
  - { id: canary, uses: canary, with: { target: production, stages: [10%], compare: compare } }
  - { id: watch, uses: wait, with: { for: 1h } }
  - { id: compare, uses: compare, with: { rules: [{ metric: error_rate }], on_inconclusive: promote } }
  - { id: promote, uses: promote }
notify:
  - { on: [canary_started, promoted, failed], slack: team }
"#;
