//! A run that a message follows.

use async_trait::async_trait;
use refit::domain::run::Outcome;

use crate::engine::crash::Inbox;
use crate::engine::crash::story::{Database, Scene, Story, only};
use crate::support::crash::Write;
use crate::support::world::World;

/// One message says where it is, and at last that it ended.
pub struct Followed;

#[async_trait]
impl Story for Followed {
    fn workflow(&self) -> String {
        FOLLOWED.to_owned()
    }

    fn outcome(&self) -> Outcome {
        Outcome::Succeeded
    }

    fn champions(&self) -> &'static [&'static str] {
        &[]
    }

    fn tells(&self) -> &'static [&'static str] {
        &["touch_boards", "take_boards", "board_shown"]
    }

    fn prepare(&self, _: &World, inbox: &Inbox) {
        inbox.follows_runs();
    }

    async fn meanwhile(&self, _: &Scene<'_>) {}

    /// How it goes on is the same as in `Errands`.
    fn dies_at(&self, _: Database, writes: Vec<Write>) -> Vec<Write> {
        only(self.tells(), writes)
    }
}

const FOLLOWED: &str = r"
name: retrain
model: race-times
mode: act
defaults: { retry: { attempts: 1 } }
steps:
  - { id: rest, uses: wait, with: { for: 1m } }
  - { id: last, run: 'echo done' }
notify:
  - { on: failed, slack: team }
";
