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
    /// Since when every page said that there is another.
    #[serde(default)]
    pub more_since: Option<Timestamp>,
    /// Its pages do not come to an end: until one is the last, nobody waits for it.
    #[serde(default)]
    pub endless: bool,
    /// What rows without a time are known by that were refused, the newest last.
    #[serde(default)]
    pub untimed: Vec<String>,
    /// The fingerprint of what the position is a position in: of another list, it says nothing.
    #[serde(default)]
    pub definition: Option<String>,
    /// What came of it.
    pub report: PullReport,
}

/// Rows without a time that are known again.
const UNTIMED: usize = 200;

impl PullState {
    /// Begins anew where the cursor is one of another list. Up to when requests were read stays: what was counted is
    /// not counted again, whichever query finds it.
    pub fn of_definition(mut self, definition: String) -> Self {
        if self.definition.as_ref().is_some_and(|known| *known != definition) {
            (self.cursor, self.session, self.more_since, self.endless) = (None, None, None, false);
            self.report.problem = None;
        }
        self.definition = Some(definition);
        self
    }

    /// Counts refused rows without a time, each once.
    pub fn refuse_untimed(&mut self, marks: Vec<String>) {
        for mark in marks {
            if !self.untimed.contains(&mark) {
                self.report.refused += 1;
                self.untimed.push(mark);
            }
        }
        self.untimed.drain(..self.untimed.len().saturating_sub(UNTIMED));
    }
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
    /// What rows are known by that do not say when they were: they may have been read before.
    pub untimed: Vec<String>,
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_cursor_is_kept_only_for_the_list_it_is_a_cursor_of() {
        let through = Some("2026-03-01T12:00:00Z".parse().expect("a time"));
        let left = PullState { through, cursor: Some(json!(7)), session: Some(3), ..PullState::default() };
        // One that was kept before definitions were.
        let known = left.of_definition("a".to_owned());
        assert_eq!((known.cursor.clone(), known.session), (Some(json!(7)), Some(3)));
        assert_eq!(known.clone().of_definition("a".to_owned()), known);
        let other = known.of_definition("b".to_owned());
        assert_eq!((other.cursor, other.session, other.through), (None, None, through));
    }

    #[test]
    fn a_row_without_a_time_is_refused_once() {
        let mut state = PullState::default();
        for _ in 0..2 {
            state.refuse_untimed(vec!["a".to_owned(), "b".to_owned(), "a".to_owned()]);
        }
        assert_eq!((state.report.refused, state.untimed.len()), (2, 2));
        state.refuse_untimed((0..1000).map(|n| n.to_string()).collect());
        assert_eq!((state.report.refused, state.untimed.len()), (1002, UNTIMED));
    }
}
