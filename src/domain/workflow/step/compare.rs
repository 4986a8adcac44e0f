//! Options of `compare`: rules over online metrics, and what follows from them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::Position;

/// A block of which nothing came of age for this long gets no more, and is bet on where truth is waited for.
pub const BLOCK_COMPLETE_AFTER: Duration = Duration::from_secs(24 * 3600);

/// `uses: compare`: the one set of rules the controller uses from the first look on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Compare {
    /// The rules.
    pub rules: Vec<CompareRule>,
    /// The deadline came and nothing is decided.
    pub on_inconclusive: OnInconclusive,
    /// What happens when the plan says that the canary will probably not conclude; after `parse`, where the file does
    /// not say, `Replay` in a workflow with a `shadow` step and else `Hold`.
    pub when_underpowered: WhenUnderpowered,
    /// A held canary is rolled back after this.
    pub hold_for: Duration,
    /// Whether a held canary keeps its traffic.
    pub hold_traffic: HoldTraffic,
    /// P(rolling back a canary that is not worse) is at most this.
    pub alpha: f64,
    /// P(promoting a canary that is worse by the margin) is at most this.
    pub beta: f64,
}

impl Compare {
    /// What a canary without a `compare` step goes by: nothing is tested, and it stays until the workflow ends it.
    pub fn without_rules() -> Self {
        Self {
            rules: vec![],
            on_inconclusive: OnInconclusive::default(),
            when_underpowered: WhenUnderpowered::Hold,
            hold_for: Duration::from_secs(6 * 24 * 3600),
            hold_traffic: HoldTraffic::default(),
            alpha: 0.02,
            beta: 0.05,
        }
    }
}

/// One rule of `compare`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CompareRule {
    /// Where it stands in the file.
    pub at: Position,
    /// The online metric.
    pub metric: OnlineMetric,
    /// How much worse the canary must be shown not to be.
    pub margin: Margin,
    /// A canary whose upper bound is below this is acceptable whatever the ratio.
    pub acceptable_below: Option<f64>,
    /// The canary's rate must not exceed this, whatever the stable arm does.
    pub never_above: Option<f64>,
    /// A request counts once it was served this long ago, whenever its truth came: truths that are quick to arrive
    /// would else speak for all.
    #[serde(default)]
    pub label_horizon: Duration,
    /// Share of `alpha`; the default weights of the metrics present when absent.
    pub weight: Option<f64>,
    /// Whether it decides or is only shown.
    pub role: Role,
}

/// How much worse than the stable version's a canary's rate or error must be shown not to be: a non-inferiority margin.
///
/// In JSON a ratio is a number, and points are `{"points": 0.002}`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Margin {
    /// A ratio of rates or errors, above 1: `x % worse` is `1 + x`.
    Ratio(f64),
    /// A difference of rates.
    Points {
        /// Between 0 and 1: `0.2pp` is 0.002.
        points: f64,
    },
}

impl Margin {
    /// The ratio that counts where nothing is said.
    pub fn usual(metric: OnlineMetric) -> f64 {
        match metric {
            OnlineMetric::ErrorRate => 1.5,
            OnlineMetric::LatencySlowShare => 2.0,
            OnlineMetric::AbsError => 1.1,
        }
    }

    /// The ratio, of a margin that is one.
    pub fn ratio(self) -> Option<f64> {
        match self {
            Margin::Ratio(ratio) => Some(ratio),
            Margin::Points { .. } => None,
        }
    }
}

impl CompareRule {
    /// What is asked of a metric that is named and nothing else: a margin of 50 % for errors, 100 % for
    /// slow requests, 10 % for prediction errors.
    pub fn of(metric: OnlineMetric) -> Self {
        Self {
            at: Position::default(),
            metric,
            margin: Margin::Ratio(Margin::usual(metric)),
            acceptable_below: None,
            never_above: None,
            label_horizon: Duration::ZERO,
            weight: None,
            role: Role::default(),
        }
    }
}

impl CompareRule {
    /// Whether its metric is a share of requests: it has evidence only where traffic is.
    pub fn is_on_requests(&self) -> bool {
        match self.metric {
            OnlineMetric::ErrorRate | OnlineMetric::LatencySlowShare => true,
            OnlineMetric::AbsError => false,
        }
    }
}

/// An online metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnlineMetric {
    /// Share of requests that failed.
    ErrorRate,
    /// Share of requests slower than a threshold frozen from the stable arm.
    LatencySlowShare,
    /// Absolute error of the prediction, paired, when truth arrives.
    AbsError,
}

/// Whether a metric decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It can roll back, and must be non-inferior to promote.
    #[default]
    Gating,
    /// It is shown.
    Observe,
}

/// What an inconclusive canary does at its deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnInconclusive {
    /// It is left to a human; watching goes on.
    #[default]
    Hold,
    /// It is promoted.
    Promote,
    /// It is rolled back.
    RollBack,
}

/// What an underpowered canary does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenUnderpowered {
    /// The last logged inputs are run through both versions with the `shadow` command; then a human approves
    /// before it starts.
    Replay,
    /// A human approves before it starts.
    Approve,
    /// It starts; an inconclusive end follows `on_inconclusive`.
    Hold,
}

/// What a held canary serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HoldTraffic {
    /// What it served.
    #[default]
    Keep,
    /// Nothing.
    Zero,
}
