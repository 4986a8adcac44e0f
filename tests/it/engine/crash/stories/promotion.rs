//! A canary that passes.

use async_trait::async_trait;
use refit::domain::canary::CanaryState;
use refit::domain::freeze::{FreezeEnd, FreezeScope, FreezeWish};
use refit::domain::id::FreezeId;
use refit::domain::run::Outcome;
use refit::steps::promote;

use super::RETRAIN;
use super::endings::cancel_when;
use crate::engine::crash::app;
use crate::engine::crash::story::{Database, Scene, Story, position};
use crate::support::crash::Write;

/// It passes in two stages, and bakes. The workflow has this name.
pub struct Promoted(pub &'static str);

#[async_trait]
impl Story for Promoted {
    fn workflow(&self) -> String {
        RETRAIN.replace("name: retrain", &format!("name: {}", self.0))
    }

    fn outcome(&self) -> Outcome {
        Outcome::Promoted
    }

    fn champions(&self) -> &'static [&'static str] {
        &["1", "2"]
    }

    fn tells(&self) -> &'static [&'static str] {
        &[
            "register_worker",
            "reap",
            "submit",
            "claim",
            "checkpoint",
            "reserve_version",
            "set_version_state",
            "write_release",
            "release_applied",
            "open_canary",
            "observe",
            "take_look",
            "save_look",
            "set_canary_state",
            "end_bake",
            "take_outbox",
            "outbox_sent",
            "retire_worker",
        ]
    }
}

/// The same, and its promotion waits for the end of a freeze.
pub struct Frozen;

#[async_trait]
impl Story for Frozen {
    fn outcome(&self) -> Outcome {
        Outcome::Promoted
    }

    fn champions(&self) -> &'static [&'static str] {
        &["1", "2"]
    }

    fn tells(&self) -> &'static [&'static str] {
        &["freeze", "unfreeze"]
    }

    fn begins_at(&self) -> Option<&'static str> {
        Some("watch")
    }

    /// Somebody freezes promotions while the canary is out, and lifts it once the run waits.
    async fn meanwhile(&self, scene: &Scene<'_>) {
        app::serves(scene).await;
        match scene.store().freezes(None, 1).await.expect("readable").first() {
            None => {
                let canary = scene.canary().await;
                if canary.is_some_and(|canary| canary.state == CanaryState::Watching && canary.stage > 0) {
                    let wish = FreezeWish {
                        model: None,
                        from: None,
                        end: FreezeEnd::Never,
                        reason: "an incident".to_owned(),
                        by: "ann".to_owned(),
                    };
                    scene.store().freeze(FreezeId::generate(), &wish, scene.now()).await.expect("asked");
                }
            }
            Some(freeze) if freeze.lifted.is_none() => {
                if scene.attempts().await.iter().any(|attempt| promote::frozen(attempt).is_some()) {
                    let every = FreezeScope::EveryModel;
                    scene.store().unfreeze(&every, "ann", scene.now()).await.expect("asked");
                }
            }
            Some(_) => {}
        }
    }

    /// What comes before and after is the same as in `Promoted`.
    fn dies_at(&self, database: Database, writes: Vec<Write>) -> Vec<Write> {
        let (before, after) = if database == Database::Sqlite { (2, 1) } else { (0, 0) };
        let freeze = position("freeze", &writes);
        let lifted = position("unfreeze", &writes);
        let promotes = lifted + position("write_release", &writes[lifted..]);
        let of_freeze = |at: usize| at == freeze || (lifted - before..=promotes + after).contains(&at);
        writes.into_iter().enumerate().filter(|(at, _)| of_freeze(*at)).map(|(_, it)| it).collect()
    }
}

/// Somebody cancels it when it is promoted.
pub struct CancelledTooLate;

#[async_trait]
impl Story for CancelledTooLate {
    fn outcome(&self) -> Outcome {
        Outcome::CancelledAfterPromotion
    }

    fn champions(&self) -> &'static [&'static str] {
        &["1", "2"]
    }

    fn begins_at(&self) -> Option<&'static str> {
        Some("promote")
    }

    async fn meanwhile(&self, scene: &Scene<'_>) {
        app::serves(scene).await;
        cancel_when(CanaryState::Baking, scene).await;
    }
}
