//! A canary from its minutes alone: no traffic is shifted, no time passes. What
//! decides is what decides for the controller: the same tables, tests and
//! limits; stages, silence and deadlines are not replayed.

use chrono::TimeDelta;
use serde::Serialize;

use super::super::Timestamp;
use super::super::stats::{Dispersion, InvalidInput, Table, checked};
use super::super::verdict::Verdict;
use super::super::workflow::step::{Compare, OnlineMetric};
use super::blocks::{Bet, Clip};
use super::look::{against, is_good_enough, is_worse};
use super::minutes::{Counts, MinTable, OpenTable};
use super::rules::{self, RuleTest, limit_not_worse};
use super::words;

/// A minute of both arms.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplayMinute {
    /// Its beginning.
    pub at: Timestamp,
    /// Requests, and errors among them.
    pub errors: Table,
    /// Requests with a latency, and slow ones among them; empty when nobody measured.
    pub slow: Table,
    /// Pairs of absolute prediction errors, canary and stable, each a bet.
    pub pairs: Vec<(f64, f64)>,
}

/// A canary that is replayed; the same minutes in the same order give the same evidence.
#[derive(Debug, Clone, PartialEq)]
pub struct Replay {
    rules: Compare,
    tests: Vec<RuleTest>,
    open: OpenTable,
    min_table: MinTable,
    clip: Clip,
    verdict: Verdict,
    decided_at: Option<Timestamp>,
    reason: Option<String>,
}

/// What the evidence is after a minute.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReplayEvidence {
    /// `ln E` that the canary is worse, over all metrics: at `ln(1/alpha)` it is rolled back.
    pub log_e_worse: f64,
    /// `ln E` that it is not worse by the margin, of the metric that is furthest from it.
    pub log_e_ni: f64,
    /// The odds ratios of errors that are not ruled out at alpha.
    pub interval: Option<(f64, f64)>,
    /// `fail` once it is rolled back; `pass` once it may be promoted, until evidence rolls it back.
    pub verdict: Verdict,
    /// How much more the stable arm's errors vary than independent requests would.
    pub phi: Option<f64>,
    /// By metric, when there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<MetricEvidence>,
}

/// The evidence of one metric.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MetricEvidence {
    /// The metric.
    pub metric: OnlineMetric,
    /// `ln E` that the canary is worse.
    pub log_e_worse: f64,
    /// `ln E` that it is not worse by the margin.
    pub log_e_ni: f64,
    /// The odds ratios that are not ruled out at alpha; none for prediction errors.
    pub interval: Option<(f64, f64)>,
}

impl Replay {
    /// No evidence yet. `dispersion`: phi where it is known; else it is learnt from the stable arm.
    ///
    /// # Errors
    /// A rule with a margin or limit that has no meaning; a dispersion that is none.
    pub fn new(rules: Compare, min_table: MinTable, dispersion: Option<f64>) -> Result<Self, InvalidInput> {
        let mut tests: Vec<_> = rules.rules.iter().map(RuleTest::new).collect::<Result<_, _>>()?;
        for test in &mut tests {
            if let (RuleTest::Rate(rate), Some(phi)) = (test, dispersion) {
                rate.dispersion = Dispersion::known(phi)?;
            }
        }
        Ok(Self {
            rules,
            tests,
            open: OpenTable::default(),
            min_table,
            clip: Clip::default(),
            verdict: Verdict::Inconclusive,
            decided_at: None,
            reason: None,
        })
    }

    /// The same without intervals but where a margin in points needs one, at a sixth of the cost: for simulations.
    #[must_use]
    pub fn without_interval(mut self) -> Self {
        for (test, rule) in self.tests.iter_mut().zip(&self.rules.rules) {
            if let (RuleTest::Rate(rate), Some(_)) = (test, rule.margin.ratio()) {
                rate.test = rate.test.clone().without_interval();
            }
        }
        self
    }

    /// Whether a table costs more, as an interval is kept.
    pub(super) fn has_intervals(&self) -> bool {
        self.tests.iter().any(|test| match test {
            RuleTest::Rate(rate) => rate.test.has_interval(),
            RuleTest::Mean(_) => false,
        })
    }

    /// A minute of the stable arm before the canary: how its errors vary is learnt from it.
    pub fn learn(&mut self, before: &ReplayMinute) {
        for (test, rule) in self.tests.iter_mut().zip(&self.rules.rules) {
            if let RuleTest::Rate(rate) = test {
                match rule.metric {
                    OnlineMetric::ErrorRate => rate.dispersion.observe(before.errors.stable),
                    OnlineMetric::LatencySlowShare => rate.dispersion.observe(before.slow.stable),
                    OnlineMetric::AbsError => {}
                }
            }
        }
    }

    /// Adds a minute and decides. Once rolled back, evidence goes on and the verdict stays.
    ///
    /// # Errors
    /// A prediction error that is negative or not a number; nothing was added then.
    pub fn minute(&mut self, minute: &ReplayMinute) -> Result<Verdict, InvalidInput> {
        let valid = |error: f64| error >= 0.0;
        if let Some((canary, stable)) = minute.pairs.iter().find(|(c, s)| !(valid(*c) && valid(*s))) {
            let value = if valid(*canary) { *stable } else { *canary };
            return Err(InvalidInput::OutOfRange { name: "prediction error", value, wanted: "0 or more" });
        }
        let counts = |errors: super::super::stats::Arm, slow: super::super::stats::Arm| Counts {
            n: errors.n(),
            errors: errors.e(),
            timed: slow.n(),
            slow: slow.e(),
        };
        let canary = counts(minute.errors.canary, minute.slow.canary);
        let stable = counts(minute.errors.stable, minute.slow.stable);
        rules::see(&mut self.tests, &self.rules.rules, canary, stable);
        self.open.add(minute.at, canary, stable);
        if let Some(closed) = self.open.close(minute.at + TimeDelta::minutes(1), self.min_table) {
            rules::observe(&mut self.tests, &self.rules.rules, &closed);
        }
        for (canary, stable) in &minute.pairs {
            self.bet(&Bet { canary: *canary, stable: *stable, pairs: 1, named: false })?;
        }
        self.decide(minute.at);
        Ok(self.verdict)
    }

    /// A block of the stable version's errors before the canary: their scale is learnt from its mean.
    pub fn learn_block(&mut self, mean_error: f64) {
        self.clip.learn(&Bet { canary: mean_error, stable: mean_error, pairs: 1, named: true });
    }

    /// The mean errors of one block, canary and stable: one bet, and a decision.
    ///
    /// # Errors
    /// A mean that is negative or not a number; nothing was added then.
    pub fn block(&mut self, at: Timestamp, (canary, stable): (f64, f64)) -> Result<Verdict, InvalidInput> {
        for value in [canary, stable] {
            checked("prediction error", value, |error| error >= 0.0, "0 or more")?;
        }
        // Whatever was learnt before is all there is.
        self.clip.freeze();
        self.bet(&Bet { canary, stable, pairs: 1, named: true })?;
        self.decide(at);
        Ok(self.verdict)
    }

    fn bet(&mut self, bet: &Bet) -> Result<(), InvalidInput> {
        match self.clip.bound() {
            Some(clip) => rules::bet(&mut self.tests, &self.rules.rules, clip, bet),
            None => {
                self.clip.learn(bet);
                self.clip.freeze();
                Ok(())
            }
        }
    }

    fn decide(&mut self, at: Timestamp) {
        if self.verdict == Verdict::Fail {
            return;
        }
        let worse =
            against(&self.rules.rules, &self.tests).filter(|(combined, _)| is_worse(&self.rules, combined));
        if let Some((combined, index)) = worse {
            self.verdict = Verdict::Fail;
            self.decided_at = Some(at);
            self.reason = Some(words::against(&self.rules, index, &self.tests, combined.log_e));
        } else if self.verdict == Verdict::Inconclusive && is_good_enough(&self.rules, &self.tests) {
            self.verdict = Verdict::Pass;
            self.decided_at = Some(at);
            self.reason = Some(words::pass(&self.rules, &self.tests));
        }
    }

    /// The canary gets another share of the traffic: an open table has arms that are not comparable.
    pub fn share_changes(&mut self) {
        self.open = OpenTable::default();
    }

    /// The rules it goes by.
    pub fn rules(&self) -> &Compare {
        &self.rules
    }

    /// What is concluded so far.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// The minute of that conclusion.
    pub fn decided_at(&self) -> Option<Timestamp> {
        self.decided_at
    }

    /// Why, in plain words with numbers.
    pub fn reason(&self) -> String {
        self.reason.clone().unwrap_or_else(|| words::undecided(&self.rules, &self.tests))
    }

    /// The evidence as it stands.
    pub fn evidence(&self) -> ReplayEvidence {
        ReplayEvidence::of(&self.rules, &self.tests, self.verdict)
    }
}

impl ReplayEvidence {
    /// What `tests` of `rules` say.
    pub(super) fn of(rules: &Compare, tests: &[RuleTest], verdict: Verdict) -> Self {
        let phi = tests.iter().find_map(|test| match test {
            RuleTest::Rate(rate) => Some(rate.dispersion.phi()),
            RuleTest::Mean(_) => None,
        });
        let metrics: Vec<MetricEvidence> = rules
            .rules
            .iter()
            .zip(tests)
            .map(|(rule, test)| MetricEvidence {
                metric: rule.metric,
                log_e_worse: test.log_e_worse(),
                log_e_ni: test.log_e_non_inferior(rule, rules.beta),
                interval: match test {
                    RuleTest::Rate(rate) => Some(rate.test.interval(rules.alpha)),
                    RuleTest::Mean(_) => None,
                },
            })
            .collect();
        let worse = against(&rules.rules, tests).map_or(0.0, |(combined, _)| combined.log_e);
        let limits = rules.rules.iter().map(|rule| limit_not_worse(rule, rules.beta));
        let missing = |(metric, limit): &(&MetricEvidence, f64)| limit - metric.log_e_ni;
        let furthest = metrics.iter().zip(limits).max_by(|a, b| missing(a).total_cmp(&missing(b)));
        Self {
            log_e_worse: worse,
            log_e_ni: furthest.map_or(0.0, |(metric, _)| metric.log_e_ni),
            interval: metrics.first().and_then(|metric| metric.interval),
            verdict,
            phi,
            metrics: if metrics.len() > 1 { metrics } else { vec![] },
        }
    }
}
