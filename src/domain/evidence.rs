//! What apps report of the versions they serve: counts by minute, predictions,
//! truths, and the pairs of errors that come of them.

use std::collections::BTreeMap;

use chrono::{DurationRound, TimeDelta};
use serde::{Deserialize, Serialize};

use super::Timestamp;
use super::canary::{LATENCY_BUCKETS, latency_bucket};
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

/// A served request, as it was understood.
#[derive(Debug, Clone, PartialEq)]
pub struct Observation {
    /// The request.
    pub request_id: String,
    /// The version that served it.
    pub version: VersionName,
    /// When it was served.
    pub at: Timestamp,
    /// It was served without an error.
    pub ok: bool,
    /// How long it took, in milliseconds: finite and not negative.
    pub latency_ms: Option<f64>,
    /// The first answer of a new process: its latency says nothing of the model.
    pub cold: bool,
    /// What was predicted: finite.
    pub prediction: Option<f64>,
    /// What other versions predicted for it, by version.
    pub shadow: Vec<(VersionName, f64)>,
}

impl Observation {
    /// The prediction that waits for its truth, filed under `at`.
    pub fn into_prediction(self) -> Option<Prediction> {
        let Self { request_id, version, at, prediction, shadow, .. } = self;
        prediction.map(|value| Prediction { request_id, version, value, shadow, at })
    }
}

/// The beginning of the minute that `at` is in; `None` at the end of time.
pub fn minute_of(at: Timestamp) -> Option<Timestamp> {
    at.duration_trunc(TimeDelta::minutes(1)).ok()
}

/// Counts of observations by version and minute.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    minutes: BTreeMap<(VersionName, Timestamp), EvidenceMinute>,
}

impl Tally {
    /// Counts one in `minute`.
    pub fn add(&mut self, observation: &Observation, minute: Timestamp) {
        let version = &observation.version;
        let entry = self.minutes.entry((version.clone(), minute));
        let counted = entry.or_insert_with(|| EvidenceMinute::empty(version.clone(), minute));
        counted.counts.n += 1;
        counted.counts.errors += u64::from(!observation.ok);
        if let Some(latency) = observation.latency_ms.filter(|_| !observation.cold) {
            counted.counts.timed += 1;
            counted.latency[latency_bucket(latency)] += 1;
        }
    }

    /// The counts, by version and minute.
    pub fn minutes(self) -> Vec<EvidenceMinute> {
        self.minutes.into_values().collect()
    }
}

impl EvidenceMinute {
    /// A minute in which nothing was counted yet.
    pub fn empty(version: VersionName, minute: Timestamp) -> Self {
        let (counts, latency) = (MinuteCounts::default(), vec![0; LATENCY_BUCKETS]);
        Self { version, minute, seq: 0, counts, latency }
    }
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
    /// When the request was served; none of a row that refit scored itself and whose time of serving is not known.
    #[serde(default)]
    pub served_at: Option<Timestamp>,
}

/// Requests of one version in one minute whose prediction is compared with a truth, by when they were served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelMinute {
    /// The version that served them.
    pub version: VersionName,
    /// The beginning of the minute.
    pub minute: Timestamp,
    /// With a prediction.
    pub predicted: u64,
    /// Of these, those whose truth is known.
    pub labelled: u64,
}

/// Requests of one version since some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LabelCounts {
    /// With a prediction.
    pub predicted: u64,
    /// Of these, those whose truth is known.
    pub labelled: u64,
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
    /// When it was served, if that is known.
    pub served_at: Option<Timestamp>,
    /// Its truth, which also is that of the app's own predictions for it.
    pub truth: f64,
    /// |prediction - truth| of the version that is compared with.
    pub stable: f64,
    /// |prediction - truth| of the version on canary.
    pub canary: f64,
}
