//! What is shown of a canary: on screens, in JSON, in expressions.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::evidence::LabelCounts;
use super::super::id::{CanaryId, RunId, TargetName, VersionName};
use super::super::stats::split::LOG_E_WRONG;
use super::super::verdict::Verdict;
use super::super::workflow::step::{Margin, OnlineMetric, Role};
use super::super::workflow::units::BasisPoints;
use super::super::{Timestamp, canary::CanaryState};
use super::analysis::Analysis;
use super::labels::Labelled;
use super::look::{against, weights};
use super::rules::{RuleTest, limit_not_worse};
use super::{CanaryRecord, Extension, LATENCY_EDGES_MS};

/// A canary with its evidence and the limits it is held to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CanaryView {
    /// Its id.
    pub id: CanaryId,
    /// The run that set it.
    pub run: RunId,
    /// The target.
    pub target: TargetName,
    /// The version on canary.
    pub version: VersionName,
    /// What it is compared with.
    pub champion: VersionName,
    /// Where it stands.
    pub state: CanaryState,
    /// What is concluded so far.
    pub verdict: Verdict,
    /// Why.
    pub reason: String,
    /// The stage that is out, counted from 0.
    pub stage: usize,
    /// How many stages there are.
    pub stages: usize,
    /// The share it was last seen to have.
    pub share: BasisPoints,
    /// When it went out.
    pub started_at: Timestamp,
    /// The last look.
    pub looked_at: Option<Timestamp>,
    /// When an undecided canary is inconclusive for good.
    pub deadline: Option<Timestamp>,
    /// More time that it was given, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extensions: Vec<Extension>,
    /// `ln E` of all gating rules against the canary.
    pub evidence_against: Option<f64>,
    /// At this it is rolled back: `ln(1/alpha)`.
    pub limit_against: f64,
    /// What it can show, in a sentence, when the traffic before it was known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forecast: Option<String>,
    /// By rule, in the order of the file.
    pub rules: Vec<RuleView>,
    /// Requests whose truth is missing, where a rule has a label horizon.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<LabelsView>,
    /// Requests without truth so far, where none has and predictions are reported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unlabelled: Option<UnlabelledView>,
    /// Pairs of errors that came after their block was bet on, and count for nothing.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub late_pairs: u64,
}

fn is_zero(pairs: &u64) -> bool {
    *pairs == 0
}

/// Requests that are old enough to have their truth: how many have none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LabelsView {
    /// How old, in seconds.
    pub horizon_s: u64,
    /// The version on canary; its events are requests without truth.
    pub canary: ArmView,
    /// The version it is compared with.
    pub stable: ArmView,
    /// `ln E` that more of the canary's are missing.
    pub log_e_worse: f64,
    /// At this the arms cannot be compared, and the canary is not promoted.
    pub limit: f64,
    /// The odds ratios that are not ruled out at alpha.
    pub odds_ratio: (f64, f64),
}

/// Requests with a prediction since the canary went out: how many have no truth so far. Nothing is decided by it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct UnlabelledView {
    /// The version on canary; its events are requests without truth.
    pub canary: ArmView,
    /// The version it is compared with.
    pub stable: ArmView,
}

/// The evidence on one rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RuleView {
    /// The metric.
    pub metric: OnlineMetric,
    /// Whether it decides.
    pub role: Role,
    /// Its share of alpha; none for one that only observes.
    pub weight: Option<f64>,
    /// The version on canary.
    pub canary: ArmView,
    /// The version it is compared with.
    pub stable: ArmView,
    /// `ln E` that the canary is worse.
    pub log_e_worse: f64,
    /// `ln E` that it is not worse by the margin.
    pub log_e_not_worse: f64,
    /// At this it is not: `ln(1/beta)`, or more when the rule has a floor or a margin in points.
    pub limit_not_worse: f64,
    /// The margin.
    pub margin: Margin,
    /// The odds ratios that are not ruled out at alpha; none for prediction errors.
    pub odds_ratio: Option<(f64, f64)>,
    /// How much more the stable arm's errors vary than independent requests would.
    pub dispersion: Option<f64>,
    /// A request above this is slow, in milliseconds.
    pub slow_above_ms: Option<f64>,
    /// The bound beyond which a block's error is not worse, in the unit of the prediction.
    pub clip: Option<f64>,
    /// Below this it is good enough, whatever the stable version does.
    #[serde(default)]
    pub acceptable_below: Option<f64>,
    /// Whether it is shown to be good enough.
    pub accepted: bool,
}

/// One arm in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ArmView {
    /// Requests, or blocks of paired errors.
    pub n: u64,
    /// Those that count; none for prediction errors.
    pub events: Option<u64>,
    /// Their share, or the mean error; none of nothing.
    pub value: Option<f64>,
}

fn arm((n, events): (u64, u64)) -> ArmView {
    ArmView { n, events: Some(events), value: (n > 0).then(|| events as f64 / n as f64) }
}

/// Requests of both versions, and those without truth, where they are counted and there are any.
pub(super) fn unlabelled(analysis: &Analysis) -> Option<((u64, u64), (u64, u64))> {
    let Labelled { canary, stable } = analysis.labelled.filter(|_| analysis.labels.is_none())?;
    let part = |it: LabelCounts| (it.predicted, it.predicted.saturating_sub(it.labelled));
    (canary.predicted + stable.predicted > 0).then(|| (part(canary), part(stable)))
}

impl CanaryRecord {
    /// What `canary` shows in expressions: `hours` since its start, requests and errors of its own, all as of the
    /// last look.
    pub fn shown(&self) -> Value {
        let analysis = Analysis::of(self).ok();
        let looked_at = analysis.as_ref().and_then(|analysis| analysis.looked_at).unwrap_or(self.started_at);
        let share = analysis.as_ref().map_or(self.stage_share(), |analysis| analysis.share);
        json!({
            "verdict": self.verdict.as_str(),
            "reason": self.reason,
            "version": self.version,
            "champion": self.champion,
            "stage": self.stage,
            "share": share.fraction(),
            "requests": analysis.as_ref().map_or(0, |analysis| analysis.canary.n),
            "errors": analysis.as_ref().map_or(0, |analysis| analysis.canary.errors),
            "started_at": self.started_at,
            "hours": (looked_at - self.started_at).num_seconds() as f64 / 3600.0,
        })
    }

    /// The canary with its evidence; without evidence when the stored analysis cannot be read.
    pub fn view(&self) -> CanaryView {
        let analysis = Analysis::of(self).ok();
        let analysis = analysis.as_ref();
        CanaryView {
            id: self.id,
            run: self.run,
            target: self.target.clone(),
            version: self.version.clone(),
            champion: self.champion.clone(),
            state: self.state,
            verdict: self.verdict,
            reason: self.reason.clone(),
            stage: self.stage,
            stages: self.stages.len(),
            share: analysis.map_or(self.stage_share(), |analysis| analysis.share),
            started_at: self.started_at,
            looked_at: analysis.and_then(|analysis| analysis.looked_at),
            deadline: self.deadline,
            extensions: self.extensions.clone(),
            evidence_against: analysis
                .and_then(|analysis| against(&self.rules.rules, &analysis.tests))
                .map(|(combined, _)| combined.log_e),
            limit_against: -self.rules.alpha.ln(),
            forecast: analysis.and_then(|analysis| analysis.forecast.clone()),
            rules: analysis.map_or_else(Vec::new, |analysis| self.rule_views(analysis)),
            labels: analysis.and_then(|analysis| self.labels_view(analysis)),
            unlabelled: analysis
                .and_then(unlabelled)
                .map(|(canary, stable)| UnlabelledView { canary: arm(canary), stable: arm(stable) }),
            late_pairs: analysis.map_or(0, |analysis| analysis.blocks.late),
        }
    }

    fn labels_view(&self, analysis: &Analysis) -> Option<LabelsView> {
        let rate = &analysis.labels.as_ref()?.rate;
        Some(LabelsView {
            horizon_s: self.label_horizon()?.num_seconds().unsigned_abs(),
            canary: arm(rate.canary),
            stable: arm(rate.stable),
            log_e_worse: rate.test.log_e_worse(),
            limit: LOG_E_WRONG,
            odds_ratio: rate.test.interval(self.rules.alpha),
        })
    }

    fn rule_views(&self, analysis: &Analysis) -> Vec<RuleView> {
        let mut weights = weights(&self.rules.rules).into_iter();
        let rules = self.rules.rules.iter().zip(&analysis.tests);
        let view = rules.map(|(rule, test)| {
            let (canary, stable) = match test {
                RuleTest::Rate(rate) => (arm(rate.canary), arm(rate.stable)),
                RuleTest::Mean(mean) => {
                    let (canary, stable) = mean.means().unzip();
                    let arm = |value| ArmView { n: mean.blocks, events: None, value };
                    (arm(canary), arm(stable))
                }
            };
            let rate = match test {
                RuleTest::Rate(rate) => Some(rate),
                RuleTest::Mean(_) => None,
            };
            RuleView {
                metric: rule.metric,
                role: rule.role,
                weight: if rule.role == Role::Gating { weights.next() } else { None },
                canary,
                stable,
                log_e_worse: test.log_e_worse(),
                log_e_not_worse: test.log_e_non_inferior(rule, self.rules.beta),
                limit_not_worse: limit_not_worse(rule, self.rules.beta),
                margin: rule.margin,
                odds_ratio: rate.map(|rate| rate.test.interval(self.rules.alpha)),
                dispersion: rate.map(|rate| rate.dispersion.phi()),
                slow_above_ms: match rule.metric {
                    OnlineMetric::LatencySlowShare => analysis.slow_above.map(|edge| LATENCY_EDGES_MS[edge]),
                    OnlineMetric::ErrorRate | OnlineMetric::AbsError => None,
                },
                clip: match rule.metric {
                    OnlineMetric::AbsError => analysis.clip.bound(),
                    OnlineMetric::ErrorRate | OnlineMetric::LatencySlowShare => None,
                },
                acceptable_below: rule.acceptable_below,
                accepted: test.accepts(rule, self.rules.beta),
            }
        });
        view.collect()
    }
}
