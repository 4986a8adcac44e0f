//! A version that turns out bad once it serves everybody.

use async_trait::async_trait;
use chrono::TimeDelta;
use refit::domain::canary::CanaryState;
use refit::domain::run::{Outcome, RunStatus, SignalKind};

use super::RETRAIN;
use super::endings::cancel_when;
use crate::engine::crash::app;
use crate::engine::crash::story::{Database, Scene, Story, from_look_before, only, position};
use crate::support::crash::Write;

/// While its run watches.
pub struct FailsInBake;

#[async_trait]
impl Story for FailsInBake {
    fn workflow(&self) -> String {
        bakes()
    }

    fn outcome(&self) -> Outcome {
        Outcome::RolledBack
    }

    fn champions(&self) -> &'static [&'static str] {
        &["1", "2", "1"]
    }

    fn begins_at(&self) -> Option<&'static str> {
        Some("promote")
    }

    async fn meanwhile(&self, scene: &Scene<'_>) {
        if scene.canary_is(CanaryState::Baking).await {
            app::fails_at("2", scene).await;
        } else {
            app::serves(scene).await;
        }
    }

    fn dies_at(&self, _: Database, writes: Vec<Write>) -> Vec<Write> {
        from_look_before("write_release", writes)
    }
}

/// After its run was cancelled, and ended.
pub struct FailsAfterItsRun;

#[async_trait]
impl Story for FailsAfterItsRun {
    fn workflow(&self) -> String {
        bakes()
    }

    fn outcome(&self) -> Outcome {
        Outcome::CancelledAfterPromotion
    }

    fn champions(&self) -> &'static [&'static str] {
        &["1", "2", "1"]
    }

    fn begins_at(&self) -> Option<&'static str> {
        Some("promote")
    }

    async fn meanwhile(&self, scene: &Scene<'_>) {
        cancel_when(CanaryState::Baking, scene).await;
        if scene.seen().await.status == RunStatus::Finished {
            app::fails_at("2", scene).await;
        } else {
            app::serves(scene).await;
        }
    }

    fn dies_at(&self, database: Database, writes: Vec<Write>) -> Vec<Write> {
        match database {
            Database::Sqlite => from_look_before("write_release", writes),
            Database::Postgres => only(&["write_release"], writes),
        }
    }
}

/// While its run ends, for a step beside the bake failed.
pub struct FailsAsItsRunEnds;

#[async_trait]
impl Story for FailsAsItsRunEnds {
    fn workflow(&self) -> String {
        let beside = "  - { id: ask, uses: approve, needs: [publish], with: { message: 'Go on?' } }
  - { id: breaks, run: 'exit 1', needs: [ask] }
  - id: promote
    needs: [compare]";
        let sorry = "run: 'exit 1', retry: { attempts: 2, backoff: 10m, max: 10m }";
        bakes().replace("  - id: promote", beside).replace("run: 'echo sorry >> sorry'", sorry)
    }

    fn outcome(&self) -> Outcome {
        Outcome::Failed
    }

    fn champions(&self) -> &'static [&'static str] {
        &["1", "2", "1"]
    }

    fn left_to_chance(&self) -> TimeDelta {
        // The delay until `sorry` is tried again.
        TimeDelta::minutes(10)
    }

    fn begins_at(&self) -> Option<&'static str> {
        Some("promote")
    }

    async fn meanwhile(&self, scene: &Scene<'_>) {
        let approval = SignalKind::Approve { step: "ask".parse().expect("a step") };
        if scene.canary_is(CanaryState::Baking).await && !scene.was_told(&approval).await {
            scene.store().signal(scene.run, &approval, "ann", None, scene.now()).await.expect("sent");
        }
        if scene.seen().await.status == RunStatus::Undoing {
            app::fails_at("2", scene).await;
        } else {
            app::serves(scene).await;
        }
    }

    fn dies_at(&self, _: Database, writes: Vec<Write>) -> Vec<Write> {
        // In that turn: how many more come until `sorry` is tried again is left to chance.
        let mut writes = from_look_before("write_release", writes);
        writes.truncate(position("take_outbox", &writes) + 1);
        writes
    }
}

/// It is promoted unless it fails too often, whatever the other version does.
fn bakes() -> String {
    let rules = RETRAIN.replace("acceptable_below: 5%", "never_above: 5%");
    rules.replace("on_inconclusive: hold", "on_inconclusive: promote").replace("bake: 2m", "bake: 10m")
}
