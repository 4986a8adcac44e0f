//! What happened, and what it starts.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Timestamp;
use super::id::EventId;

/// The name of the event of a run that a person starts.
pub const BY_HAND: &str = "refit/trigger";

/// Something that happened: a tick, a command, a call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Its id.
    pub id: EventId,
    /// Its name, such as `ml/retrain.requested`; refit's own begin with `refit/`.
    pub name: String,
    /// What it carries.
    pub data: Value,
    /// Who sent it: `cli`, `schedule`, `http`, `hook:<name>`.
    pub source: String,
    /// The sender's key: a second event with it is the same event.
    pub dedup_key: Option<String>,
    /// When it was received.
    pub received_at: Timestamp,
}

impl Event {
    /// What `event` shows in expressions.
    pub fn shown(&self) -> Value {
        serde_json::json!({
            "id": self.id,
            "name": self.name,
            "data": self.data,
            "source": self.source,
            "received_at": self.received_at,
        })
    }
}

/// Why a run exists.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cause {
    /// The event.
    pub event: Event,
    /// Inputs of a manual trigger, defaults filled in.
    pub inputs: Value,
    /// Who asked, as far as it is known: a user name, a token's name, `schedule`.
    pub actor: String,
}
