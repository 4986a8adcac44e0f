//! Runs that end without a promotion.

use async_trait::async_trait;
use refit::domain::canary::CanaryState;
use refit::domain::run::{CancelRequest, Outcome, RunStatus, SignalKind};

use super::RETRAIN;
use crate::engine::crash::story::{Database, Scene, Story, from};
use crate::engine::crash::{Inbox, app, serve};
use crate::support::crash::Write;
use crate::support::world::World;

/// Its canary fails every request.
pub struct RolledBack;

#[async_trait]
impl Story for RolledBack {
    fn outcome(&self) -> Outcome {
        Outcome::RolledBack
    }

    fn champions(&self) -> &'static [&'static str] {
        &["1"]
    }

    fn begins_at(&self) -> Option<&'static str> {
        Some("watch")
    }

    async fn meanwhile(&self, scene: &Scene<'_>) {
        app::fails_at("2", scene).await;
    }
}

/// Its metric is worse than its gate allows.
pub struct Refused;

#[async_trait]
impl Story for Refused {
    fn outcome(&self) -> Outcome {
        Outcome::Rejected
    }

    fn champions(&self) -> &'static [&'static str] {
        &["1"]
    }

    fn prepare(&self, world: &World, inbox: &Inbox) {
        serve(world, "first", inbox);
        world.write("mae", "50.0");
    }
}

/// A step fails while its canary is out.
pub struct StepFails;

#[async_trait]
impl Story for StepFails {
    fn outcome(&self) -> Outcome {
        Outcome::Failed
    }

    fn champions(&self) -> &'static [&'static str] {
        &["1"]
    }

    fn prepare(&self, world: &World, inbox: &Inbox) {
        serve(world, "first", inbox);
        world.write("broken", "");
    }

    fn begins_at(&self) -> Option<&'static str> {
        Some("watch")
    }
}

/// Somebody cancels it while its canary is out.
pub struct Cancelled;

#[async_trait]
impl Story for Cancelled {
    fn outcome(&self) -> Outcome {
        Outcome::Cancelled
    }

    fn champions(&self) -> &'static [&'static str] {
        &["1"]
    }

    fn begins_at(&self) -> Option<&'static str> {
        Some("watch")
    }

    async fn meanwhile(&self, scene: &Scene<'_>) {
        app::serves(scene).await;
        cancel_when(CanaryState::Watching, scene).await;
    }

    fn tells(&self) -> &'static [&'static str] {
        &["request_cancel"]
    }

    fn dies_at(&self, _: Database, writes: Vec<Write>) -> Vec<Write> {
        from("request_cancel", writes)
    }
}

/// A person who is asked while its canary is out says no.
pub struct Denied;

#[async_trait]
impl Story for Denied {
    fn workflow(&self) -> String {
        RETRAIN.replace("run: 'test ! -e broken'", "uses: approve")
    }

    fn outcome(&self) -> Outcome {
        Outcome::Rejected
    }

    fn champions(&self) -> &'static [&'static str] {
        &["1"]
    }

    fn begins_at(&self) -> Option<&'static str> {
        Some("check")
    }

    async fn meanwhile(&self, scene: &Scene<'_>) {
        app::serves(scene).await;
        let no = SignalKind::Reject { step: "check".parse().expect("a step id") };
        if scene.sleeps_at("check").await && !scene.was_told(&no).await {
            scene.store().signal(scene.run, &no, "ann", Some("not now"), scene.now()).await.expect("told");
        }
    }
}

/// It does nothing but roll back.
pub struct GoesBack;

#[async_trait]
impl Story for GoesBack {
    fn workflow(&self) -> String {
        GOES_BACK.to_owned()
    }

    fn outcome(&self) -> Outcome {
        Outcome::Succeeded
    }

    fn champions(&self) -> &'static [&'static str] {
        &["1", "2", "1"]
    }

    fn prepare(&self, world: &World, inbox: &Inbox) {
        serve(world, "first", inbox);
        serve(world, "second", inbox);
        // Of what follows no step trains.
        world.write("began", "");
    }

    async fn meanwhile(&self, _: &Scene<'_>) {}
}

const GOES_BACK: &str = r"
name: retrain
model: race-times
mode: act
defaults: { retry: { attempts: 1 } }
steps:
  - { id: back, uses: rollback, with: { target: production } }
notify:
  - { on: [succeeded, failed], slack: team }
";

/// Somebody asks to cancel the run once its canary is in `state`.
pub async fn cancel_when(state: CanaryState, scene: &Scene<'_>) {
    let seen = scene.seen().await;
    let asks = seen.status == RunStatus::Waiting && scene.canary_is(state).await;
    if asks && seen.cancel.is_none() {
        let request = CancelRequest { actor: "ann".to_owned(), reason: None, at: scene.now() };
        scene.store().request_cancel(scene.run, &request).await.expect("asked");
    }
}
