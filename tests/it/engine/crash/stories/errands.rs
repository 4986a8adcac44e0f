//! Steps that are about no model: branches side by side, a request, a message
//! and a question.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::TimeDelta;
use refit::clock::Clock;
use refit::domain::run::{Outcome, SignalKind};
use refit::engine::Engine;
use refit::trigger::catalog::Catalog;
use refit::trigger::schedule;

use crate::engine::crash::Inbox;
use crate::engine::crash::story::{Database, Scene, Story, only};
use crate::support::crash::Write;
use crate::support::world::{World, start};

/// A tick starts it. Three branches ask the app, the team and a person, who says yes; then they meet. The team's Slack is
/// away at first.
pub struct Errands;

#[async_trait]
impl Story for Errands {
    fn workflow(&self) -> String {
        ERRANDS.to_owned()
    }

    fn outcome(&self) -> Outcome {
        Outcome::Succeeded
    }

    fn champions(&self) -> &'static [&'static str] {
        &[]
    }

    fn tells(&self) -> &'static [&'static str] {
        &["sync_schedules", "fire_schedule", "queue_notices", "signal", "intend", "settle", "outbox_failed"]
    }

    fn dies_at(&self, database: Database, writes: Vec<Write>) -> Vec<Write> {
        match database {
            Database::Sqlite => writes,
            Database::Postgres => only(self.tells(), writes),
        }
    }

    fn prepare(&self, world: &World, inbox: &Inbox) {
        inbox.is_away_at_first();
        world.write("workflows/retrain.yaml", ERRANDS);
    }

    /// What `refit serve` does when it begins, and at the tick.
    async fn start(&self, world: &World, engine: &Arc<Engine>) {
        let catalog = Catalog::load(world.root.path());
        schedule::sync(engine, &catalog).await.expect("synced");
        let tick = start() + TimeDelta::minutes(30);
        if world.clock.now() < tick {
            world.clock.set(tick);
        }
        schedule::fire_due(engine, &catalog).await.expect("fired");
    }

    async fn meanwhile(&self, scene: &Scene<'_>) {
        let yes = SignalKind::Approve { step: "ask".parse().expect("a step id") };
        if scene.sleeps_at("ask").await && !scene.was_told(&yes).await {
            scene.store().signal(scene.run, &yes, "ann", None, scene.now()).await.expect("told");
        }
    }
}

const ERRANDS: &str = r#"
name: retrain
model: race-times
mode: act
on: { schedule: { cron: "30 2 * * *", timezone: UTC, catch_up: latest } }
defaults: { retry: { attempts: 1 } }
steps:
  - { id: first, run: 'echo ready' }
  - { id: load, needs: [first], uses: http, with: { method: POST, url: "${{ secrets.APP }}", body: rows } }
  - { id: say, needs: [first], uses: notify, with: { slack: team, subject: Rows, message: are there } }
  - { id: ask, needs: [first], uses: approve, with: { message: 'Go on?' } }
  - { id: last, needs: [load, say, ask], if: "steps.load.body.loaded == 2", run: 'echo done' }
notify:
  - { on: [started, needs_approval, succeeded, failed], slack: team }
"#;
