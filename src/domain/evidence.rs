//! What apps report of the versions they serve: counts by minute, predictions,
//! truths, and the pairs of errors that come of them.

use serde::{Deserialize, Serialize};

use super::Timestamp;
use super::id::{ModelName, VersionName};

/// Counts of one version in one minute, or their sum over several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MinuteCounts {
    /// Requests.
    pub n: u64,
    /// That failed.
    pub errors: u64,
    /// Whose latency was reported; the histogram holds them.
    pub timed: u64,
}

/// A minute of evidence of one version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvidenceMinute {
    /// The version.
    pub version: VersionName,
    /// The beginning of the minute.
    pub minute: Timestamp,
    /// The sequence of the last change to it: rows that come after the minute was read stand out by it.
    pub seq: i64,
    /// The counts, over everything that arrived so far.
    pub counts: MinuteCounts,
    /// Latency histogram: counts by bucket of `super::canary::LATENCY_EDGES_MS`.
    pub latency: Vec<u64>,
}

/// A pair of absolute errors: both versions on one request, once truth is known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PairedError {
    /// Its number: the cursor.
    pub seq: i64,
    /// The request.
    pub request_id: String,
    /// One block is one bet: one race, one day.
    pub block: Option<String>,
    /// |prediction - truth| of the canary.
    pub canary: f64,
    /// |prediction - truth| of the stable version.
    pub stable: f64,
    /// When truth arrived.
    pub at: Timestamp,
}

/// Observations of one batch, aggregated on the way in.
#[derive(Debug, Clone, PartialEq)]
pub struct ObservationBatch {
    /// The model.
    pub model: ModelName,
    /// The sender's id of the batch: a second one with it changes nothing.
    pub batch_id: String,
    /// Counts by version and minute.
    pub minutes: Vec<EvidenceMinute>,
    /// Predictions that wait for their truth.
    pub predictions: Vec<Prediction>,
    /// When it was received.
    pub at: Timestamp,
}

/// A prediction that waits for its truth.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// The request.
    pub request_id: String,
    /// The version that served it.
    pub version: VersionName,
    /// What it predicted.
    pub value: f64,
    /// What other versions predicted for the same request, by version (shadow scoring).
    pub shadow: Vec<(VersionName, f64)>,
    /// When it was served.
    pub at: Timestamp,
}

/// Truths of one batch.
#[derive(Debug, Clone, PartialEq)]
pub struct TruthBatch {
    /// The model.
    pub model: ModelName,
    /// The sender's id of the batch.
    pub batch_id: String,
    /// Request, truth, block.
    pub rows: Vec<(String, f64, Option<String>)>,
    /// When it was received.
    pub at: Timestamp,
}

/// Errors of both versions on rows that one command predicted with each.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredRows {
    /// The version that is compared with.
    pub stable: VersionName,
    /// The version on canary.
    pub canary: VersionName,
    /// The rows; one that was scored before with these versions changes nothing.
    pub rows: Vec<ScoredRow>,
    /// When they were scored.
    pub at: Timestamp,
}

/// A row that both versions predicted.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredRow {
    /// Its id.
    pub id: String,
    /// One block is one bet.
    pub block: Option<String>,
    /// |prediction - truth| of the version that is compared with.
    pub stable: f64,
    /// |prediction - truth| of the version on canary.
    pub canary: f64,
}
