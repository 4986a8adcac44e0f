//! What a human should look at in a gate's findings, in plain words.

use std::collections::{BTreeMap, BTreeSet};

use super::holdout::{Arm, Holdout, Score};
use super::words::percent;
use super::{Evidence, RuleResult, worse_by};
use crate::domain::id::MetricName;
use crate::domain::metric::Metrics;
use crate::domain::words::number;
use crate::domain::workflow::Better;
use crate::domain::workflow::step::GateRule;

/// A claim may differ by rounding.
const CLAIM_TOLERANCE: f64 = 0.01;
/// Better than the champion by more than this is more often a leak than a success.
const TOO_GOOD: f64 = 0.5;

/// Worse than its trainer says by more than this is rarely only another sample.
const OPTIMISM: f64 = 0.2;

/// What a trainer claims and its own holdout contradicts, in plain words.
pub fn contradictions(claimed: &Metrics, holdout: &Holdout) -> Vec<String> {
    let whole = claimed.values.iter().map(|(name, value)| (None, name, *value));
    let by_segment = claimed.segments.iter().flat_map(|(segment, metrics)| {
        metrics.values.iter().map(move |(name, value)| (Some(segment.as_str()), name, *value))
    });
    let mut found = Vec::new();
    for (segment, name, claim) in whole.chain(by_segment) {
        let Some(score) = Score::named(name) else { continue };
        let Some(actual) = holdout.score(score, segment, Arm::Candidate) else { continue };
        // R² near zero would make any rounding a contradiction.
        let scale = if score == Score::R2 { actual.abs().max(1.0) } else { actual.abs() };
        let agrees = (claim - actual).abs() <= CLAIM_TOLERANCE * scale;
        if !agrees {
            let of = segment.map(|segment| format!(" of segment `{segment}`")).unwrap_or_default();
            found.push(format!(
                "the trainer reports {name}{of} {}, but its $REFIT_ERRORS give {} over {} rows",
                number(claim),
                number(actual),
                holdout.rows(segment)
            ));
        }
    }
    found
}

/// Where a trainer's own words are better than what the rows of `evaluate` gave, by more than samples of
/// the same data usually differ.
pub fn optimism(said: &Metrics, measured: &Metrics, better: &BTreeMap<MetricName, Better>) -> Vec<String> {
    let both = said.values.iter().filter_map(|(name, claim)| {
        let (measured, better) = (*measured.values.get(name)?, *better.get(name)?);
        let worse = worse_by(measured, *claim, better)?;
        (worse > OPTIMISM).then(|| {
            format!(
                "the trainer reports {name} {}, but scored on the rows of `evaluate` it is {}: {} worse. \
                 Either its holdout is easier, or rows of it were trained on",
                number(*claim),
                number(measured),
                percent(worse)
            )
        })
    });
    both.collect()
}

/// What a human should look at although it passed.
pub fn warnings(rules: &[GateRule], results: &[RuleResult], evidence: &Evidence<'_>) -> Vec<String> {
    let mut found = Vec::new();
    let apart = results.iter().filter(|result| result.own_holdout && result.champion.is_some());
    let apart: BTreeSet<_> = apart.map(|result| result.metric.as_str()).collect();
    if !apart.is_empty() {
        let metrics = apart.into_iter().collect::<Vec<_>>().join(", ");
        found.push(format!(
            "{metrics}: the champion was measured on another holdout, so an easier or harder one counts as a \
             better or worse model; score both in an `evaluate` step, or write the champion's predictions to $REFIT_ERRORS, and leave \
             `holdout: stored` out"
        ));
    }
    let metrics: BTreeSet<_> = rules.iter().map(|rule| &rule.metric).collect();
    found.extend(metrics.into_iter().filter_map(|metric| leak(metric, rules, results, evidence)));
    found
}

/// A metric that is far better than the champion's, whether or not a rule compares the two: where none does, with
/// what was said of the champion when it was published.
fn leak(
    metric: &MetricName,
    rules: &[GateRule],
    results: &[RuleResult],
    evidence: &Evidence<'_>,
) -> Option<String> {
    let of_metric = || results.iter().filter(|result| &result.metric == metric && result.segment.is_none());
    let value = of_metric().find_map(|result| result.value)?;
    let champion =
        of_metric().find_map(|result| result.champion).or_else(|| evidence.champion.value(metric))?;
    let better = evidence.better.get(metric).copied().or_else(|| {
        rules.iter().filter(|rule| &rule.metric == metric).find_map(|rule| match (rule.max, rule.min) {
            (Some(_), None) => Some(Better::Lower),
            (None, Some(_)) => Some(Better::Higher),
            (Some(_), Some(_)) | (None, None) => None,
        })
    })?;
    let worse = worse_by(value, champion, better)?;
    (worse < -TOO_GOOD).then(|| {
        format!(
            "{metric} is {} better than the champion's ({} to {}): too good to be true? \
             Look for rows of the holdout in the training data",
            percent(-worse),
            number(champion),
            number(value)
        )
    })
}
