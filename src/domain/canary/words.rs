//! Why, in plain words with numbers.

use std::fmt;
use std::time::Duration;

use super::super::stats::interval::{ODDS_RATIO_MAX, ODDS_RATIO_MIN};
use super::super::words::{count, counted};
use super::super::workflow::step::{Compare, CompareRule, Margin, OnlineMetric, Role};
use super::super::workflow::units::{BasisPoints, format_duration};
use super::analysis::Analysis;
use super::look::{gating, suspicion};
use super::rules::{RuleTest, limit_not_worse};
use super::view::{ArmView, CanaryView, LabelsView, RuleView, UnlabelledView, unlabelled};
use super::{CanaryRecord, CanaryState};

/// What is counted, as the subject of a sentence.
fn subject(metric: OnlineMetric) -> &'static str {
    match metric {
        OnlineMetric::ErrorRate => "errors",
        OnlineMetric::LatencySlowShare => "slow requests",
        OnlineMetric::AbsError => "mean error",
    }
}

/// Why the canary is rolled back: the rule at `index` leads.
pub(super) fn against(rules: &Compare, index: usize, tests: &[RuleTest], log_e: f64) -> String {
    let (rule, test) = (&rules.rules[index], &tests[index]);
    let finding = match test {
        RuleTest::Rate(_) if test.led_by_limit() => {
            format!("above the limit of {}", percent(rule.never_above.unwrap_or_default()))
        }
        RuleTest::Rate(rate) => {
            let (lower, _) = rate.test.interval(rules.alpha);
            format!("at least {} the odds", times(lower))
        }
        RuleTest::Mean(_) if test.led_by_limit() => {
            format!("above the limit of {}", number(rule.never_above.unwrap_or_default()))
        }
        RuleTest::Mean(mean) => format!("worse over {} blocks", count(mean.blocks)),
    };
    let evidence = format!("evidence {}, limit {}", odds(log_e), odds(-rules.alpha.ln()));
    format!("{}: {finding}; {evidence}", arms(rule, test))
}

/// Both arms in numbers.
fn arms(rule: &CompareRule, test: &RuleTest) -> String {
    let subject = subject(rule.metric);
    match test {
        RuleTest::Rate(rate) => {
            format!("canary {subject} {}, stable {}", share(rate.canary), share(rate.stable))
        }
        RuleTest::Mean(mean) => match mean.means() {
            Some((canary, stable)) => {
                format!("canary {subject} {}, stable {}", number(canary), number(stable))
            }
            None if rule.label_horizon.is_zero() => format!("nothing known of the {subject} yet"),
            None => {
                let age = format_duration(rule.label_horizon);
                format!("nothing known of the {subject} of requests {age} old yet")
            }
        },
    }
}

/// Why the canary passes.
pub(super) fn pass(rules: &Compare, tests: &[RuleTest]) -> String {
    let beta = rules.beta;
    let metrics = gating(&rules.rules, tests).map(|(_, rule, test)| {
        let (log_e, limit) = (test.log_e_non_inferior(rule, beta), limit_not_worse(rule, beta));
        let finding = if log_e >= limit {
            format!("not {} worse (evidence {}, limit {})", rule.margin, odds(log_e), odds(limit))
        } else {
            let floor = in_unit(rule.metric, rule.acceptable_below.unwrap_or_default());
            format!("below {floor}, which is acceptable")
        };
        format!("{}: {finding}", arms(rule, test))
    });
    metrics.collect::<Vec<_>>().join("; ")
}

/// Where an undecided canary stands.
pub(super) fn so_far(record: &CanaryRecord, analysis: &Analysis) -> String {
    if record.rules.rules.is_empty() {
        return "the workflow compares nothing".to_owned();
    }
    let missing = missing(record, analysis).or_else(|| so_far_missing(analysis));
    if analysis.minutes == 0 && analysis.paired_cursor == 0 && missing.is_none() {
        return "no evidence yet".to_owned();
    }
    let undecided = undecided(&record.rules, &analysis.tests);
    [Some(undecided), unpaired(record, analysis), missing, waiting(record, analysis), late(analysis)]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join("; ")
}

/// Truths came, and errors cannot be compared all the same: nobody knows what the other version says of these requests.
fn unpaired(record: &CanaryRecord, analysis: &Analysis) -> Option<String> {
    let aged = || analysis.labels.as_ref().map(|labels| (labels.rate.canary, labels.rate.stable));
    let (canary, stable) = unlabelled(analysis).or_else(aged)?;
    let has_truth = |(requests, without): (u64, u64)| requests > without;
    let compares = record.rules.rules.iter().any(|rule| rule.metric == OnlineMetric::AbsError);
    (compares && analysis.paired_cursor == 0 && (has_truth(canary) || has_truth(stable))).then(|| {
        "truths are known, but of no request what both versions predict: the app reports the other one's \
         prediction as `shadow`, or a `shadow` step scores both"
            .to_owned()
    })
}

/// Blocks whose requests are still coming of age, where they do one by one.
fn waiting(record: &CanaryRecord, analysis: &Analysis) -> Option<String> {
    record.label_horizon()?;
    match analysis.blocks.waiting() {
        0 => None,
        blocks => Some(format!("{} not complete", counted(blocks as u64, "block"))),
    }
}

/// Pairs that nothing is made of.
fn late(analysis: &Analysis) -> Option<String> {
    match analysis.blocks.late {
        0 => None,
        pairs => Some(format!("{} too late for the block", counted(pairs, "pair"))),
    }
}

/// Requests of both arms that are old enough to have their truth and have none.
fn missing(record: &CanaryRecord, analysis: &Analysis) -> Option<String> {
    let rate = &analysis.labels.as_ref()?.rate;
    let age = record.rules.rules.iter().map(|rule| rule.label_horizon).max()?;
    (rate.canary.0 > 0).then(|| {
        let (canary, stable) = (share(rate.canary), share(rate.stable));
        format!("without truth after {}: canary {canary}, stable {stable}", format_duration(age))
    })
}

/// Requests of both arms without truth, where nobody said how long one takes.
fn so_far_missing(analysis: &Analysis) -> Option<String> {
    let (canary, stable) = unlabelled(analysis)?;
    Some(format!("without truth so far: canary {}, stable {}", share(canary), share(stable)))
}

/// The canary's truths are missing more often, if they are and a rule that decides needs them.
pub(super) fn truth_missing(record: &CanaryRecord, analysis: &Analysis) -> Option<String> {
    let needed = |rule: &CompareRule| rule.role == Role::Gating && !rule.label_horizon.is_zero();
    analysis.labels.as_ref().filter(|labels| labels.are_lost() && record.rules.rules.iter().any(needed))?;
    let missing = missing(record, analysis)?;
    Some(format!(
        "the truth of more of the canary's requests is missing, so the errors cannot be compared; {missing}"
    ))
}

/// The evidence of every rule, none of it enough.
pub(super) fn undecided(rules: &Compare, tests: &[RuleTest]) -> String {
    let metrics = rules.rules.iter().zip(tests).map(|(rule, test)| {
        let (worse, not_worse) = (test.log_e_worse(), test.log_e_non_inferior(rule, rules.beta));
        format!(
            "{}: evidence that it is worse {}, that it is not {} of {}",
            arms(rule, test),
            odds(worse),
            odds(not_worse),
            odds(limit_not_worse(rule, rules.beta))
        )
    });
    format!("not decided yet; {}", metrics.collect::<Vec<_>>().join("; "))
}

/// The time is over.
pub(super) fn deadline(record: &CanaryRecord, analysis: &Analysis) -> String {
    format!("the time to decide is over; {}", so_far(record, analysis))
}

/// The canary does not report.
pub(super) fn silent(analysis: &Analysis, expected: f64) -> String {
    format!(
        "the canary is silent: about {} requests were expected of it at {} and none was reported, while the \
         stable version reports; no app routes to it, or it fails before it reports",
        count(expected as u64),
        analysis.share
    )
}

/// The arms are not comparable.
pub(super) fn split(analysis: &Analysis, seen: f64) -> String {
    format!(
        "the split is wrong: the canary serves {} of the requests instead of {}",
        percent(seen),
        analysis.share
    )
}

/// Why the next stage goes out; `log_e` is the evidence of all rules that decide.
pub(super) fn shift(record: &CanaryRecord, analysis: &Analysis, log_e: Option<f64>) -> String {
    let share = |stage: usize| record.stages.get(stage).map_or(BasisPoints(0), |stage| stage.share);
    let min_time = record.stages.get(record.stage).map(|stage| stage.min_time).filter(|time| !time.is_zero());
    let mut parts = vec![];
    if let Some(min_time) = min_time {
        parts.push(format!("{} at {} are over", format_duration(min_time), share(record.stage)));
    }
    let rules = &record.rules;
    parts.extend(gating(&rules.rules, &analysis.tests).map(|(_, rule, test)| arms(rule, test)));
    parts.push(match log_e {
        Some(log_e) => format!(
            "too little speaks against it (evidence that it is worse {}; from {} it gets no more, at {} it is rolled back)",
            odds(log_e),
            odds(suspicion(rules)),
            odds(-rules.alpha.ln())
        ),
        None => "no rule decides against it".to_owned(),
    });
    format!("{} of the traffic: {}", share(record.stage + 1), parts.join("; "))
}

/// Nobody reports.
pub(super) fn no_data(record: &CanaryRecord, analysis: &Analysis) -> String {
    match analysis.newest {
        None => format!("no evidence since the canary went out at {}", record.started_at.format("%F %R UTC")),
        Some(newest) => format!("no evidence since {}", newest.format("%F %R UTC")),
    }
}

/// The evidence on one rule as people read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleWords {
    /// What the version on canary did.
    pub canary: String,
    /// What the one beside it did.
    pub stable: String,
    /// The odds ratios that are not ruled out; none for prediction errors.
    pub interval: Option<String>,
    /// Evidence that it is worse, and what rolls it back alone; no limit for a rule that only observes.
    pub worse: (String, Option<String>),
    /// Evidence that it is not worse by the margin, and what shows it.
    pub not_worse: (String, String),
    /// The margin.
    pub margin: String,
    /// That it is good enough, and why if not for that margin; none while it is not shown to be.
    pub accepted: Option<String>,
}

impl RuleView {
    /// In words; `limit_against` is that of all rules together.
    pub fn words(&self, limit_against: f64) -> RuleWords {
        let arm = |arm: &ArmView| match (arm.events, arm.value) {
            (Some(events), _) => share((arm.n, events)),
            (None, Some(value)) => format!("{} over {} blocks", number(value), count(arm.n)),
            (None, None) => "nothing known".to_owned(),
        };
        RuleWords {
            canary: arm(&self.canary),
            stable: arm(&self.stable),
            interval: self.odds_ratio.map(between),
            worse: (odds(self.log_e_worse), self.limit_alone(limit_against).map(odds)),
            not_worse: (odds(self.log_e_not_worse), odds(self.limit_not_worse)),
            margin: self.margin.to_string(),
            accepted: self.accepted.then(|| match self.acceptable_below {
                Some(floor) if self.log_e_not_worse < self.limit_not_worse => {
                    format!("good enough: below {}", in_unit(self.metric, floor))
                }
                Some(_) | None => "good enough".to_owned(),
            }),
        }
    }

    /// The evidence of this rule that rolls back when no other rule speaks; none of one that only observes.
    pub fn limit_alone(&self, limit_against: f64) -> Option<f64> {
        self.weight.map(|weight| limit_against - weight.ln())
    }
}

impl CanaryView {
    /// The evidence in one line, for a list of what was done.
    pub fn in_short(&self) -> String {
        let stands = match self.state {
            CanaryState::Watching => format!("{} at {}", self.version, self.share),
            CanaryState::Baking => format!("{} in its bake", self.version),
            CanaryState::Promoted => format!("{}, promoted", self.version),
            CanaryState::RolledBack => format!("{}, taken back", self.version),
        };
        let rules = self.rules.iter().map(|rule| {
            let RuleWords { canary, stable, worse: (worse, limit), not_worse, .. } =
                rule.words(self.limit_against);
            let limit = limit.map(|limit| format!(" of {limit}")).unwrap_or_default();
            format!(
                "{} {canary}, stable {stable}; evidence that it is worse {worse}{limit}, that it is not {} of {}",
                subject(rule.metric),
                not_worse.0,
                not_worse.1
            )
        });
        let said = [stands, self.verdict.as_str().to_owned()].into_iter().chain(rules);
        said.collect::<Vec<_>>().join("; ")
    }
}

impl UnlabelledView {
    /// In words: those of the version on canary without truth, and those of the one beside it.
    pub fn words(&self) -> [String; 2] {
        [&self.canary, &self.stable].map(|arm| share((arm.n, arm.events.unwrap_or_default())))
    }
}

impl LabelsView {
    /// In words: how old the requests are, those of the version on canary without truth, those of the one beside it,
    /// the odds ratios that are not ruled out, the evidence that it loses more, and what it must not reach.
    pub fn words(&self) -> [String; 6] {
        let arm = |arm: &ArmView| share((arm.n, arm.events.unwrap_or_default()));
        [
            format_duration(Duration::from_secs(self.horizon_s)),
            arm(&self.canary),
            arm(&self.stable),
            between(self.odds_ratio),
            odds(self.log_e_worse),
            odds(self.limit),
        ]
    }
}

impl fmt::Display for Margin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Margin::Ratio(ratio) => f.write_str(&times(*ratio)),
            // To the thousandth of a point, without zeros that say nothing.
            Margin::Points { points } => write!(f, "{} points", (points * 1e5).round() / 1e3),
        }
    }
}

/// An interval of odds ratios.
fn between((lower, upper): (f64, f64)) -> String {
    let lower = if lower <= ODDS_RATIO_MIN { "0x".to_owned() } else { times(lower) };
    let upper = if upper >= ODDS_RATIO_MAX { "any amount".to_owned() } else { times(upper) };
    format!("{lower} to {upper}")
}

/// A limit of a metric, in its unit.
fn in_unit(metric: OnlineMetric, limit: f64) -> String {
    match metric {
        OnlineMetric::ErrorRate | OnlineMetric::LatencySlowShare => percent(limit),
        OnlineMetric::AbsError => number(limit),
    }
}

fn share((n, e): (u64, u64)) -> String {
    if n == 0 {
        return "none of 0".to_owned();
    }
    format!("{} of {} ({})", count(e), count(n), percent(e as f64 / n as f64))
}

fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    let digits = if percent > 0.0 && percent < 0.1 { 3 } else { 1 };
    format!("{percent:.digits$} %")
}

fn number(value: f64) -> String {
    let digits = if value.abs() < 1.0 {
        3
    } else if value.abs() < 10.0 {
        2
    } else {
        1
    };
    if value.abs() < 1e9 { format!("{value:.digits$}") } else { format!("{value:.2e}") }
}

fn times(ratio: f64) -> String {
    let digits = if ratio < 10.0 && (10.0 * ratio).fract().abs() > 1e-9 { 2 } else { 1 };
    format!("{ratio:.digits$}x")
}

/// Evidence as a bet: `154:1`.
fn odds(log_e: f64) -> String {
    // A million to one is more than anybody asks for.
    if log_e > 1e6f64.ln() {
        return "over 1,000,000:1".to_owned();
    }
    // 1/0.02 is 50, also when its logarithm was rounded.
    let e = log_e.exp() * (1.0 + 1e-9);
    if e >= 10.0 { format!("{}:1", count(e.floor() as u64)) } else { format!("{e:.1}:1") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_people_write_them() {
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(share((1260, 9)), "9 of 1,260 (0.7 %)");
        assert_eq!(percent(0.0004), "0.040 %");
        assert_eq!(odds(154.3f64.ln()), "154:1");
        assert_eq!(odds(1.3f64.ln()), "1.3:1");
        assert_eq!(times(3.12), "3.12x");
        assert_eq!(times(1.5), "1.5x");
        assert_eq!(Margin::Ratio(1.25).to_string(), "1.25x");
        assert_eq!(Margin::Points { points: 0.002 }.to_string(), "0.2 points");
        assert_eq!(Margin::Points { points: 0.05 }.to_string(), "5 points");
    }
}
