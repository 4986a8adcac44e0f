//! Options of `gate`: rules over offline metrics.

use serde::{Deserialize, Serialize};

use super::super::Position;
use crate::domain::id::MetricName;

/// `uses: gate`: the offline check.
#[derive(Debug, Clone)]
pub struct Gate {
    /// What happens when there is no champion yet.
    pub first_version: FirstVersion,
    /// What an inconclusive gate does.
    pub inconclusive: OnInconclusiveGate,
    /// The rules; all must pass.
    pub rules: Vec<GateRule>,
}

/// What a gate does when there is no champion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FirstVersion {
    /// A human approves it.
    #[default]
    RequireApproval,
    /// The rules that need no champion suffice.
    Accept,
}

/// What an inconclusive gate does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnInconclusiveGate {
    /// The run ends as rejected.
    #[default]
    Reject,
    /// A human decides.
    Approve,
    /// The run goes on.
    Continue,
}

/// One rule of a gate.
#[derive(Debug, Clone, PartialEq)]
pub struct GateRule {
    /// Where it stands in the file.
    pub at: Position,
    /// The metric.
    pub metric: MetricName,
    /// Not above this.
    pub max: Option<f64>,
    /// Not below this.
    pub min: Option<f64>,
    /// The comparison with the champion, if this rule makes one.
    pub vs_champion: Option<VsChampion>,
    /// Every segment by itself (`each: segment`).
    pub each_segment: bool,
    /// Fewer rows are inconclusive.
    pub min_rows: Option<u64>,
}

/// A comparison with the champion.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VsChampion {
    /// Worse by at most this fraction of the champion's value (negative: better by at least).
    pub worse_by_at_most: f64,
    /// Confidence of a paired bootstrap over time blocks, as a fraction.
    pub confidence: Option<f64>,
    /// `holdout: stored`: the champion's metric as stored counts; else both must be scored on one holdout.
    pub stored_holdout: bool,
}
