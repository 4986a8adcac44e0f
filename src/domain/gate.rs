//! The offline check: may this candidate go on?
//!
//! Metrics and a scored holdout come in, one verdict with its sentence per rule
//! goes out. A number that is missing or not finite, too few rows or an absent
//! champion never pass.

mod holdout;
mod time_order;
mod warnings;
mod words;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use holdout::{Arm, Score};
pub use holdout::{Holdout, RowError};
pub use time_order::{DataSpan, random_split};
pub use warnings::{contradictions, optimism, warnings};
use words::{apart, at_least, at_most, compared, in_words, percent, tolerance};

use super::id::MetricName;
use super::metric::Metrics;
use super::verdict::{Verdict, overall};
use super::words::number;
use super::workflow::Better;
use super::workflow::step::{GateRule, VsChampion};

/// Draws of a bootstrap: at 95 % the bounds then have a standard error of about 0.5 percentage points.
const RESAMPLES: usize = 2_000;
/// Fewer blocks say nothing of how blocks differ.
const FEWEST_BLOCKS: usize = 10;

/// What a gate looks at.
#[derive(Debug, Clone, Copy)]
pub struct Evidence<'e> {
    /// What the trainer said of the candidate.
    pub candidate: &'e Metrics,
    /// Whether there is a champion, and what was said of it when it was published.
    pub champion: Champion<'e>,
    /// `$REFIT_ERRORS`.
    pub holdout: Option<&'e Holdout>,
    /// Which direction of a metric is better.
    pub better: &'e BTreeMap<MetricName, Better>,
    /// Of the bootstrap's draws.
    pub seed: u64,
}

/// The version that serves now.
#[derive(Debug, Clone, Copy)]
pub enum Champion<'e> {
    /// There is none.
    Absent,
    /// There is one, with the metrics of its manifest.
    Serves {
        /// Absent when its manifest has none.
        stored: Option<&'e Metrics>,
        /// What an `evaluate` step found of it on the rows of the candidate.
        evaluated: Option<&'e Metrics>,
    },
}

impl Champion<'_> {
    /// What is known of a metric of it: what `evaluate` found, else what was said when it was published.
    fn value(&self, metric: &MetricName) -> Option<f64> {
        let of = |metrics: Option<&Metrics>| metrics.and_then(|metrics| metrics.values.get(metric)).copied();
        match *self {
            Champion::Absent => None,
            Champion::Serves { stored, evaluated } => of(evaluated).or_else(|| of(stored)),
        }
    }
}

/// What one rule concluded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RuleResult {
    /// The rule, in short: `mae <= 600`.
    pub rule: String,
    /// The metric.
    pub metric: MetricName,
    /// The segment, of a rule for each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment: Option<String>,
    /// What it concluded.
    pub verdict: Verdict,
    /// Whether it compares with a champion.
    pub vs_champion: bool,
    /// The champion was measured on a holdout of its own (`holdout: stored`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own_holdout: bool,
    /// The candidate's value.
    pub value: Option<f64>,
    /// The value at which the rule turns, in the metric's unit.
    pub limit: Option<f64>,
    /// The champion's value.
    pub champion: Option<f64>,
    /// Bounds of how much worse the candidate is, as fractions of the champion's value, each
    /// one-sided at the rule's confidence; the lower one, of a rule for each segment, at that of all together.
    pub interval: Option<(f64, f64)>,
    /// Rows that the values are of.
    pub n: Option<u64>,
    /// The conclusion in plain words with its numbers.
    pub sentence: String,
}

/// Judges every rule, in their order.
pub fn judge(rules: &[GateRule], evidence: &Evidence<'_>) -> Vec<RuleResult> {
    let mut results = Vec::new();
    for rule in rules {
        if !rule.each_segment {
            results.extend(judge_one(rule, None, 1, evidence));
            continue;
        }
        let segments = segments(evidence);
        if segments.is_empty() {
            let unknown = Draft::new(rule, None, "each segment".to_owned());
            results.push(unknown.inconclusive("the trainer reported no segments"));
        }
        let count = segments.len();
        for segment in segments {
            results.extend(judge_one(rule, Some(segment), count, evidence));
        }
    }
    results
}

/// The verdict of all rules together. While there is no champion (`first_version`), rules that
/// compare with one do not count; without any rule that does, it is inconclusive.
pub fn verdict(results: &[RuleResult], first_version: bool) -> Verdict {
    let counting = results.iter().filter(|result| !(first_version && result.vs_champion));
    overall(counting.map(|result| result.verdict))
}

fn segments<'e>(evidence: &Evidence<'e>) -> BTreeSet<&'e str> {
    let reported = evidence.candidate.segments.keys().map(String::as_str);
    reported.chain(evidence.holdout.into_iter().flat_map(Holdout::segments)).collect()
}

/// A rule may have an upper bound, a lower bound and a comparison; each is judged.
fn judge_one(
    rule: &GateRule,
    segment: Option<&str>,
    segments: usize,
    evidence: &Evidence<'_>,
) -> Vec<RuleResult> {
    let mut results = Vec::new();
    if let Some(max) = rule.max {
        let draft = Draft::new(rule, segment, format!("{} <= {}", rule.metric, number(max)));
        results.push(draft.absolute(rule, evidence, max, Bound::AtMost));
    }
    if let Some(min) = rule.min {
        let draft = Draft::new(rule, segment, format!("{} >= {}", rule.metric, number(min)));
        results.push(draft.absolute(rule, evidence, min, Bound::AtLeast));
    }
    if let Some(vs) = &rule.vs_champion {
        let mut draft = Draft::new(rule, segment, format!("{} {}", rule.metric, tolerance(vs)));
        draft.result.vs_champion = true;
        draft.result.own_holdout = vs.stored_holdout;
        draft.segments = segments;
        results.push(draft.relative(rule, vs, evidence));
    }
    if results.is_empty() {
        let draft = Draft::new(rule, segment, rule.metric.to_string());
        results.push(draft.inconclusive("the rule says neither max, min nor vs"));
    }
    results
}

#[derive(Clone, Copy)]
enum Bound {
    AtMost,
    AtLeast,
}

/// Where a comparison's two values come from.
enum Pair<'e> {
    /// Both were scored on the rows of one holdout.
    Scored(&'e Holdout, Score),
    /// One scoring command said both, of the same rows, but left no rows.
    Evaluated(&'e Metrics),
    /// Each is what its own trainer said.
    Stored,
}

/// A result that is being made.
struct Draft {
    result: RuleResult,
    /// That the rule judges, each by itself.
    segments: usize,
}

impl Draft {
    fn new(rule: &GateRule, segment: Option<&str>, short: String) -> Self {
        let of = segment.map(|segment| format!(" ({segment})")).unwrap_or_default();
        Self {
            segments: 1,
            result: RuleResult {
                rule: format!("{short}{of}"),
                metric: rule.metric.clone(),
                segment: segment.map(str::to_owned),
                verdict: Verdict::Inconclusive,
                vs_champion: false,
                own_holdout: false,
                value: None,
                limit: None,
                champion: None,
                interval: None,
                n: None,
                sentence: String::new(),
            },
        }
    }

    fn segment(&self) -> Option<&str> {
        self.result.segment.as_deref()
    }

    fn name(&self) -> String {
        match &self.result.segment {
            Some(segment) => format!("{} of segment `{segment}`", self.result.metric),
            None => self.result.metric.to_string(),
        }
    }

    fn with(mut self, verdict: Verdict, sentence: impl Into<String>) -> RuleResult {
        if verdict == Verdict::Pass && self.result.n == Some(0) {
            return self.inconclusive("it is of 0 rows");
        }
        self.result.verdict = verdict;
        self.result.sentence = sentence.into();
        self.result
    }

    fn inconclusive(self, why: impl std::fmt::Display) -> RuleResult {
        let sentence = format!("{}: cannot tell, {why}", self.name());
        self.with(Verdict::Inconclusive, sentence)
    }

    /// Reads the candidate's value; what stands instead of a result when there is none.
    fn read_value(&mut self, evidence: &Evidence<'_>) -> Result<f64, String> {
        let metric = &self.result.metric;
        let (claimed, n) = match self.segment() {
            None => (evidence.candidate.values.get(metric), evidence.candidate.n),
            Some(segment) => match evidence.candidate.segments.get(segment) {
                Some(metrics) => (metrics.values.get(metric), metrics.n),
                None => (None, None),
            },
        };
        let scored = || {
            let holdout = evidence.holdout?;
            holdout.score(Score::named(metric)?, self.segment(), Arm::Candidate)
        };
        let value = claimed.copied().or_else(scored);
        let rows = evidence.holdout.map(|holdout| holdout.rows(self.segment())).filter(|rows| *rows > 0);
        self.result.n = n.or(rows);
        match value {
            Some(value) if value.is_finite() => {
                self.result.value = Some(value);
                Ok(value)
            }
            Some(value) => Err(format!("{} is {value}, which is not a finite number", self.name())),
            None => Err(format!("{} is missing: the trainer did not report it", self.name())),
        }
    }

    /// Why there are too few rows, if so.
    fn too_few(&self, rule: &GateRule) -> Option<String> {
        let min = rule.min_rows?;
        match self.result.n {
            None => Some(format!("nobody said of how many rows it is; at least {min} are needed")),
            Some(n) if n < min => Some(format!("it is of {n} rows; at least {min} are needed")),
            Some(_) => None,
        }
    }

    fn absolute(mut self, rule: &GateRule, evidence: &Evidence<'_>, limit: f64, bound: Bound) -> RuleResult {
        self.result.limit = Some(limit);
        let value = match self.read_value(evidence) {
            Ok(value) => value,
            Err(missing) => return self.with(Verdict::Fail, missing),
        };
        if let Some(few) = self.too_few(rule) {
            return self.inconclusive(few);
        }
        let (holds, words) = match bound {
            Bound::AtMost => (value <= limit, "at most"),
            Bound::AtLeast => (value >= limit, "at least"),
        };
        let verdict = if holds { Verdict::Pass } else { Verdict::Fail };
        let (value, limit) = apart(value, limit);
        let sentence = format!("{} is {value}; {words} {limit} allowed", self.name());
        self.with(verdict, sentence)
    }

    fn relative(mut self, rule: &GateRule, vs: &VsChampion, evidence: &Evidence<'_>) -> RuleResult {
        let Some(better) = evidence.better.get(&rule.metric).copied() else {
            let sentence =
                format!("`metrics:` does not say whether a lower or a higher {} is better", rule.metric);
            return self.with(Verdict::Error, sentence);
        };
        let claimed = self.read_value(evidence);
        let (stored, evaluated) = match evidence.champion {
            Champion::Absent => return self.inconclusive("there is no champion yet"),
            Champion::Serves { stored, evaluated } => (stored, evaluated),
        };
        if let Err(missing) = claimed {
            return self.with(Verdict::Fail, missing);
        }
        let pair = match self.pair(vs, evidence, evaluated) {
            Ok(pair) => pair,
            Err(why) => return self.inconclusive(why),
        };
        match self.read_pair(&pair, stored) {
            Ok(()) => {}
            Err(why) => return self.inconclusive(why),
        }
        if let Some(few) = self.too_few(rule) {
            return self.inconclusive(few);
        }
        let (Some(value), Some(champion)) = (self.result.value, self.result.champion) else {
            return self.inconclusive("a value is missing");
        };
        let allowed = vs.worse_by_at_most;
        self.result.limit = Some(match better {
            Better::Lower => champion + allowed * champion.abs(),
            Better::Higher => champion - allowed * champion.abs(),
        });
        let Some(worse) = worse_by(value, champion, better) else {
            return self.inconclusive("the champion's value is 0, so nothing is a fraction of it");
        };
        let on = match &pair {
            Pair::Scored(..) => format!(" on the same {} rows", self.result.n.unwrap_or_default()),
            Pair::Evaluated(_) => " on the same rows".to_owned(),
            Pair::Stored => " on its own holdout".to_owned(),
        };
        let sentence = format!(
            "{} is {}, the champion's {}{on}: {}",
            self.name(),
            number(value),
            number(champion),
            compared(worse, vs)
        );
        match (vs.confidence, pair) {
            (None, _) => {
                let verdict = if worse <= allowed { Verdict::Pass } else { Verdict::Fail };
                self.with(verdict, sentence)
            }
            (Some(_), Pair::Stored | Pair::Evaluated(_)) => {
                self.inconclusive("a confidence needs the rows on which both were scored ($REFIT_ERRORS)")
            }
            (Some(confidence), Pair::Scored(holdout, score)) => {
                self.confident(holdout, score, (confidence, allowed), (better, evidence.seed), &sentence)
            }
        }
    }

    fn pair<'e>(
        &self,
        vs: &VsChampion,
        evidence: &Evidence<'e>,
        evaluated: Option<&'e Metrics>,
    ) -> Result<Pair<'e>, String> {
        if vs.stored_holdout {
            return Ok(Pair::Stored);
        }
        let metric = &self.result.metric;
        if let (Some(score), Some(holdout)) = (Score::named(metric), evidence.holdout) {
            return Ok(Pair::Scored(holdout, score));
        }
        let said = evaluated.filter(|metrics| value_in(metrics, self.segment(), metric).is_some());
        if let Some(metrics) = said {
            return Ok(Pair::Evaluated(metrics));
        }
        if Score::named(metric).is_none() {
            return Err(format!(
                "{metric} cannot be computed from $REFIT_ERRORS (mae, rmse and r2 can); an `evaluate` step whose \
                 command reports it compares both, and `holdout: stored` compares with what the champion's trainer said"
            ));
        }
        Err("candidate and champion were not scored on one holdout: the trainer wrote no $REFIT_ERRORS"
            .to_owned())
    }

    fn read_pair(&mut self, pair: &Pair<'_>, stored: Option<&Metrics>) -> Result<(), String> {
        let segment = self.result.segment.clone();
        let segment = segment.as_deref();
        match pair {
            Pair::Scored(holdout, score) => {
                let rows = holdout.rows(segment);
                self.result.n = Some(rows);
                let Some(candidate) = holdout.score(*score, segment, Arm::Candidate) else {
                    return Err(format!("its value over the {rows} rows of $REFIT_ERRORS is undefined"));
                };
                let Some(champion) = holdout.score(*score, segment, Arm::Champion) else {
                    return Err(format!(
                        "the champion predicted {} of the {rows} rows of $REFIT_ERRORS",
                        holdout.champion_rows(segment)
                    ));
                };
                self.result.value = Some(candidate);
                self.result.champion = Some(champion);
            }
            Pair::Evaluated(metrics) => {
                self.result.champion = value_in(metrics, segment, &self.result.metric);
            }
            Pair::Stored => {
                let metric = &self.result.metric;
                let champion = stored.and_then(|stored| value_in(stored, segment, metric));
                self.result.champion = champion.filter(|champion| champion.is_finite());
                if self.result.champion.is_none() {
                    return Err("the champion's manifest does not have it".to_owned());
                }
            }
        }
        Ok(())
    }

    fn confident(
        mut self,
        holdout: &Holdout,
        score: Score,
        (confidence, allowed): (f64, f64),
        (better, seed): (Better, u64),
        sentence: &str,
    ) -> RuleResult {
        let change = |candidate, champion| worse_by(candidate, champion, better);
        let draws = holdout.bootstrap(score, self.segment(), RESAMPLES, seed, change);
        if draws.blocks < FEWEST_BLOCKS {
            return self.inconclusive(format!(
                "$REFIT_ERRORS has {} time blocks; a confidence needs at least {FEWEST_BLOCKS}",
                draws.blocks
            ));
        }
        if !(0.5..1.0).contains(&confidence) {
            return self.inconclusive(format!("{confidence} is not a confidence between 50 % and 100 %"));
        }
        // To pass, every segment must hold, which needs no correction (intersection-union). To refuse, one of
        // them is enough: Bonferroni keeps the chance that any of several is refused wrongly.
        let to_refuse = 1.0 - (1.0 - confidence) / self.segments as f64;
        let Some((lower, upper)) = draws.bounds(to_refuse, confidence) else {
            return self.inconclusive("there was nothing to draw from");
        };
        if lower.is_finite() && upper.is_finite() {
            self.result.interval = Some((lower, upper));
        }
        let level = percent(confidence);
        let over = format!("over {} blocks", draws.blocks);
        if upper <= allowed {
            let sentence = format!("{sentence}; with {level} confidence {}, {over}", at_most(upper));
            self.with(Verdict::Pass, sentence)
        } else if lower > allowed {
            let of = match self.segments {
                1 => String::new(),
                segments => format!(" over all {segments} segments"),
            };
            let sentence = format!("{sentence}; with {level} confidence{of} {}, {over}", at_least(lower));
            self.with(Verdict::Fail, sentence)
        } else {
            let sentence = format!(
                "{sentence}; cannot tell with {level} confidence: from {} to {}, {over}",
                in_words(lower),
                in_words(upper)
            );
            self.with(Verdict::Inconclusive, sentence)
        }
    }
}

/// A metric of all rows, or of a segment.
fn value_in(metrics: &Metrics, segment: Option<&str>, metric: &MetricName) -> Option<f64> {
    let values = match segment {
        None => &metrics.values,
        Some(segment) => &metrics.segments.get(segment)?.values,
    };
    values.get(metric).copied()
}

/// By which fraction of the champion's value the candidate is worse; negative when it is better.
/// `None` when that is undefined: the champion's value is 0 and the candidate's is not.
fn worse_by(candidate: f64, champion: f64, better: Better) -> Option<f64> {
    let worse = match better {
        Better::Lower => candidate - champion,
        Better::Higher => champion - candidate,
    };
    let fraction = if worse == 0.0 { 0.0 } else { worse / champion.abs() };
    fraction.is_finite().then_some(fraction)
}

#[cfg(test)]
mod tests;
