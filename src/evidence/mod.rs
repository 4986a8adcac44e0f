//! What apps report: observations and truths, one JSON object a line, and what
//! refit fetches of them. All of it is hostile text: a line or a row that makes
//! no sense is refused and the others count, in bounded memory.
//!
//! * `observation`: served requests, counted by version and minute on the way in
//! * `truth`: what became known later
//! * `minutes`: counts by minute that somebody wrote down, for a replay; `past`: all that a canary was decided on
//! * `source`: where a workflow says that evidence is fetched; one file a kind:
//!   `sql`, `prometheus`, `http`; `rows`: what rows mean

mod fields;
mod http;
mod lines;
mod minutes;
mod observation;
mod past;
mod prometheus;
mod rows;
mod source;
mod sql;
mod truth;

use serde::Serialize;
use sha2::{Digest, Sha256};

pub use self::lines::BYTE_ORDER_MARK;
pub use self::minutes::{Measured, MinuteLine, read_minutes};
pub use self::observation::read_observations;
pub use self::past::{begins_past, read_past, write_past};
pub use self::source::{Checked, Place, checked, source};
pub use self::truth::read_truth;

/// What `parts` are known by again.
pub(crate) fn fingerprint<'t>(parts: impl IntoIterator<Item = &'t str>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        // Their lengths tell `a, bc` from `ab, c`.
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hex::encode(&hash.finalize()[..16])
}

/// How much one batch may hold. A batch beyond it is refused whole, so that it
/// can be sent again in parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the whole batch.
    pub bytes: u64,
    /// Bytes of one line; a longer one is refused alone.
    pub line: usize,
    /// Lines.
    pub rows: u64,
    /// Refused lines that are answered one by one; the rest is counted.
    pub answers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 64 * 1024 * 1024, line: 64 * 1024, rows: 200_000, answers: 1000 }
    }
}

/// A batch as it was understood.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading<B> {
    /// The lines that make sense, and the batch's id.
    pub batch: B,
    /// How many.
    pub accepted: u64,
    /// The first lines that do not, up to [`Limits::answers`].
    pub errors: Vec<RowError>,
    /// How many do not.
    pub refused: u64,
    /// Accepted lines whose time is more than 10 minutes before receipt or 1 minute after it: they are
    /// counted in the minute of receipt.
    pub misdated: u64,
}

/// A line that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RowError {
    /// Counted from 1.
    pub line: u64,
    /// What is wrong with it.
    pub error: String,
}

/// Why a whole batch was refused; nothing of it counts.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// It broke off.
    #[error("the batch broke off: {0}")]
    BrokeOff(#[from] std::io::Error),
    /// It is too large.
    #[error("the batch has more than {limit} {what}: send it in parts")]
    TooLarge {
        /// The limit.
        limit: u64,
        /// Of what.
        what: &'static str,
    },
    /// Its id cannot be kept.
    #[error("a batch id has 1 to 200 printable ASCII characters")]
    BadId,
}
