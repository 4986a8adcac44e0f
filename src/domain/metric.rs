//! Offline metrics: what a trainer says of the model it made.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::id::MetricName;

/// Metrics of one training, all finite.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Metrics {
    /// The metrics of the whole holdout.
    pub values: BTreeMap<MetricName, f64>,
    /// Rows of the holdout, when the trainer says so.
    pub n: Option<u64>,
    /// By segment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub segments: BTreeMap<String, SegmentMetrics>,
}

/// Metrics of one segment of the holdout.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SegmentMetrics {
    /// The metrics.
    pub values: BTreeMap<MetricName, f64>,
    /// Rows of the segment.
    pub n: Option<u64>,
}
