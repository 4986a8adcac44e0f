//! Evidence that refit fetches: how far it was read, and what one page brings.
//!
//! Knows nothing of where it comes from. A page and the position after it are
//! kept together or not at all, so that a process may die at any point.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Timestamp;
use super::evidence::{EvidenceMinute, Observation};
use super::id::ModelName;

/// How far the evidence of a model was read from one kind of source.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct PullState {
    /// How often it changed; 0 when nothing was read yet. Who read another one changes nothing.
    #[serde(default)]
    pub revision: i64,
    /// Everything up to here was read; nothing was when absent.
    pub through: Option<Timestamp>,
    /// Where the next page begins, when the last one was not the last.
    pub cursor: Option<Value>,
    /// The model's first number of pages that follow one another: until the last of them came, nobody looks at the
    /// minutes they fill.
    #[serde(default)]
    pub session: Option<i64>,
    /// What came of it.
    pub report: PullReport,
}

/// What came of reading a source so far.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct PullReport {
    /// When it last answered.
    pub read_at: Option<Timestamp>,
    /// Requests that were counted.
    pub counted: u64,
    /// Of them, those that came too late for their own minute: they count in the one they came.
    pub late: u64,
    /// Rows that make no sense.
    pub refused: u64,
    /// Why the last of them was refused.
    pub refusal: Option<String>,
    /// Why nothing comes.
    pub problem: Option<PullProblem>,
}

/// Why a source brings nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PullProblem {
    /// Since when.
    pub since: Timestamp,
    /// What it says.
    pub text: String,
    /// Whether somebody was told.
    pub told: bool,
}

/// What is asked of a source.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// From here on everything is new, or was read before and is known by its request id.
    pub since: Timestamp,
    /// The latest time that is believed.
    pub until: Timestamp,
    /// Everything up to here was read before.
    pub through: Option<Timestamp>,
    /// Where the last page ended, when there was more.
    pub cursor: Option<Value>,
    /// The time.
    pub now: Timestamp,
}

/// A page of what a source had.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Page {
    /// Requests, each counted once.
    pub observations: Vec<Observation>,
    /// Minutes that the source counted itself; each comes once.
    pub minutes: Vec<EvidenceMinute>,
    /// Everything up to here was read; as before when absent.
    pub through: Option<Timestamp>,
    /// Where the next page begins.
    pub cursor: Option<Value>,
    /// There is another page.
    pub more: bool,
    /// Rows that make no sense and were not read before.
    pub refused: u64,
    /// Why the last of them was refused.
    pub refusal: Option<String>,
    /// What keeps a part of it from being evidence.
    pub problem: Option<String>,
}

/// A page on its way into the store.
#[derive(Debug, Clone, PartialEq)]
pub struct PulledBatch {
    /// The model.
    pub model: ModelName,
    /// The kind of source.
    pub source: &'static str,
    /// The state after it, with the revision it was read at.
    pub after: PullState,
    /// Requests.
    pub observations: Vec<Observation>,
    /// Minutes.
    pub minutes: Vec<EvidenceMinute>,
    /// Another page follows.
    pub more: bool,
    /// Requests before this are not read again: their ids need not be known any more.
    pub forget_before: Option<Timestamp>,
    /// When it was read.
    pub at: Timestamp,
}
