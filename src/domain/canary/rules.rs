//! The tests of one rule.

use serde::{Deserialize, Serialize};

use super::super::stats::acceptance::{below_floor, log_e_within_points};
use super::super::stats::combine::{Weighted, combine};
use super::super::stats::{
    AbsoluteGuard, Arm, Dispersion, ErrorTest, InvalidInput, Pair, PairedTest, RateBound, Table,
};
use super::super::workflow::step::{CompareRule, Margin, OnlineMetric};
use super::blocks::Bet;
use super::minutes::{Closed, Counts, arm};

/// A share of requests, compared between the arms.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct RateTest {
    pub(super) test: ErrorTest,
    pub(super) dispersion: Dispersion,
    pub(super) bound: RateBound,
    /// A canary that was out before margins had points goes on without it.
    #[serde(default)]
    pub(super) stable_bound: RateBound,
    pub(super) guard: Option<AbsoluteGuard>,
    /// Requests of the canary, and those that count, whether or not a table has them.
    pub(super) canary: (u64, u64),
    /// The same of the stable arm.
    pub(super) stable: (u64, u64),
}

/// Prediction errors, compared block by block.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct MeanTest {
    /// Once the clip bound is known.
    pub(super) tests: Option<MeanTests>,
    pub(super) blocks: u64,
    pub(super) pairs: u64,
    pub(super) canary: f64,
    pub(super) stable: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct MeanTests {
    pub(super) test: PairedTest,
    /// Against a fixed error in place of the stable one.
    pub(super) guard: Option<(f64, PairedTest)>,
    pub(super) floor: Option<(f64, PairedTest)>,
}

/// The tests of one rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub(super) enum RuleTest {
    Rate(Box<RateTest>),
    Mean(Box<MeanTest>),
}

impl RuleTest {
    pub(super) fn new(rule: &CompareRule) -> Result<Self, InvalidInput> {
        Ok(match rule.metric {
            OnlineMetric::ErrorRate | OnlineMetric::LatencySlowShare => {
                let margin = rule.margin.ratio().unwrap_or(Margin::usual(rule.metric));
                RuleTest::Rate(Box::new(RateTest::new(margin, rule.never_above)?))
            }
            OnlineMetric::AbsError => RuleTest::Mean(Box::default()),
        })
    }

    /// `ln E` that the canary is worse than the rule allows; half of it is the absolute limit's, if there is one.
    pub(super) fn log_e_worse(&self) -> f64 {
        let (relative, absolute) = match self {
            RuleTest::Rate(rate) => (rate.test.log_e_worse(), rate.guard.as_ref().map(AbsoluteGuard::log_e)),
            RuleTest::Mean(mean) => match &mean.tests {
                None => (0.0, None),
                Some(tests) => {
                    (tests.test.log_e_worse(), tests.guard.as_ref().map(|(_, test)| test.log_e_worse()))
                }
            },
        };
        let Some(absolute) = absolute else { return relative };
        let halves = [relative, absolute].map(|log_e| Weighted { weight: 0.5, log_e });
        combine(&halves).map_or(0.0, |combined| combined.log_e)
    }

    /// `ln E` that the canary is not worse by the margin of `rule`; at [`limit_not_worse`] it is shown.
    pub(super) fn log_e_non_inferior(&self, rule: &CompareRule, beta: f64) -> f64 {
        match self {
            RuleTest::Rate(rate) => match rule.margin {
                Margin::Ratio(_) => rate.test.log_e_non_inferior(),
                Margin::Points { points } => {
                    let level = acceptance_level(rule, beta);
                    log_e_within_points(&rate.test, &rate.stable_bound, points, level)
                }
            },
            RuleTest::Mean(mean) => mean.tests.as_ref().map_or(0.0, |tests| tests.test.log_e_non_inferior()),
        }
    }

    /// The absolute limit, not the comparison, speaks against the canary.
    pub(super) fn led_by_limit(&self) -> bool {
        match self {
            RuleTest::Rate(rate) => {
                rate.guard.as_ref().is_some_and(|guard| guard.log_e() > rate.test.log_e_worse())
            }
            RuleTest::Mean(mean) => mean.tests.as_ref().is_some_and(|tests| {
                tests.guard.as_ref().is_some_and(|(_, guard)| guard.log_e_worse() > tests.test.log_e_worse())
            }),
        }
    }

    /// Whether the canary is shown to be good enough, wrongly so with probability at most `beta`: not worse by
    /// the margin, or below the floor. With a floor each way gets half of `beta`.
    pub(super) fn accepts(&self, rule: &CompareRule, beta: f64) -> bool {
        if self.log_e_non_inferior(rule, beta) >= limit_not_worse(rule, beta) {
            return true;
        }
        let level = acceptance_level(rule, beta);
        match self {
            RuleTest::Rate(rate) => {
                rule.acceptable_below.is_some_and(|floor| below_floor(&rate.bound, floor, level))
            }
            RuleTest::Mean(mean) => mean.tests.as_ref().is_some_and(|tests| {
                tests.floor.as_ref().is_some_and(|(_, test)| test.log_e_non_inferior() >= -level.ln())
            }),
        }
    }
}

/// Both arms' part of a minute: what concerns each alone.
pub(super) fn see(tests: &mut [RuleTest], rules: &[CompareRule], canary: Counts, stable: Counts) {
    for (test, rule) in tests.iter_mut().zip(rules) {
        let RuleTest::Rate(rate) = test else { continue };
        let part = |counts: Counts| match rule.metric {
            OnlineMetric::ErrorRate => Some(arm(counts.n, counts.errors)),
            OnlineMetric::LatencySlowShare => Some(arm(counts.timed, counts.slow)),
            OnlineMetric::AbsError => None,
        };
        if let (Some(canary), Some(stable)) = (part(canary), part(stable)) {
            rate.see_canary(canary);
            rate.see_stable(stable);
        }
    }
}

/// A closed table goes into every test of a rate.
pub(super) fn observe(tests: &mut [RuleTest], rules: &[CompareRule], closed: &Closed) {
    for (test, rule) in tests.iter_mut().zip(rules) {
        let RuleTest::Rate(rate) = test else { continue };
        match rule.metric {
            OnlineMetric::ErrorRate => rate.observe(&closed.errors),
            OnlineMetric::LatencySlowShare => rate.observe(&closed.slow),
            OnlineMetric::AbsError => {}
        }
    }
}

/// A complete block goes into every test of prediction errors.
pub(super) fn bet(
    tests: &mut [RuleTest],
    rules: &[CompareRule],
    clip: f64,
    block: &Bet,
) -> Result<(), InvalidInput> {
    for (test, rule) in tests.iter_mut().zip(rules) {
        if let RuleTest::Mean(mean) = test {
            mean.observe(rule, clip, block)?;
        }
    }
    Ok(())
}

/// The chance of accepting wrongly that each way to accept may use.
pub(super) fn acceptance_level(rule: &CompareRule, beta: f64) -> f64 {
    if rule.acceptable_below.is_some() { beta / 2.0 } else { beta }
}

/// The evidence `ln E` at which a canary is shown not to be worse by the margin of `rule`: `ln(1/beta)`, or more where
/// beta is shared with a floor, or with the bound of the stable rate that a margin in points needs.
pub fn limit_not_worse(rule: &CompareRule, beta: f64) -> f64 {
    let level = acceptance_level(rule, beta);
    match rule.margin {
        Margin::Ratio(_) => -level.ln(),
        Margin::Points { .. } => (2.0 / level).ln(),
    }
}

impl RateTest {
    pub(super) fn new(margin: f64, never_above: Option<f64>) -> Result<Self, InvalidInput> {
        Ok(Self {
            test: ErrorTest::new(margin)?,
            dispersion: Dispersion::default(),
            bound: RateBound::default(),
            stable_bound: RateBound::default(),
            guard: never_above.map(AbsoluteGuard::new).transpose()?,
            canary: (0, 0),
            stable: (0, 0),
        })
    }

    /// The canary's part of a minute: what concerns it alone.
    pub(super) fn see_canary(&mut self, arm: Arm) {
        let exponent = self.dispersion.exponent();
        self.bound.observe(arm, exponent);
        if let Some(guard) = &mut self.guard {
            guard.observe(arm, exponent);
        }
        self.canary = (self.canary.0.saturating_add(arm.n()), self.canary.1.saturating_add(arm.e()));
    }

    /// The stable version's part of a minute.
    pub(super) fn see_stable(&mut self, arm: Arm) {
        self.stable_bound.observe(arm, self.dispersion.exponent());
        self.stable = (self.stable.0.saturating_add(arm.n()), self.stable.1.saturating_add(arm.e()));
    }

    /// A closed table, tempered by what earlier ones showed.
    pub(super) fn observe(&mut self, table: &Table) {
        self.test.observe(table, self.dispersion.exponent());
        self.dispersion.observe(table.stable);
    }
}

impl MeanTest {
    /// Bets on one block; `clip` is frozen.
    pub(super) fn observe(&mut self, rule: &CompareRule, clip: f64, bet: &Bet) -> Result<(), InvalidInput> {
        let tests = match &mut self.tests {
            Some(tests) => tests,
            None => {
                let margin = rule.margin.ratio().ok_or(InvalidInput::OutOfRange {
                    name: "margin",
                    value: f64::NAN,
                    wanted: "a ratio: prediction errors have no points",
                })?;
                // A limit beyond the clip bound needs a wider one, or nothing would ever reach it.
                let fixed =
                    |limit: f64| PairedTest::new(clip.max(2.0 * limit), 1.0).map(|test| (limit, test));
                self.tests.insert(MeanTests {
                    test: PairedTest::new(clip, margin)?,
                    guard: rule.never_above.map(fixed).transpose()?,
                    floor: rule.acceptable_below.map(fixed).transpose()?,
                })
            }
        };
        tests.test.observe(&[Pair { canary: bet.canary, stable: bet.stable }])?;
        for (limit, test) in tests.guard.iter_mut().chain(&mut tests.floor) {
            test.observe(&[Pair { canary: bet.canary, stable: *limit }])?;
        }
        self.blocks += 1;
        self.pairs += bet.pairs;
        // An infinite error is clipped in the test; a mean that is shown must stay a number.
        self.canary += bet.canary.min(f64::MAX / 1e6);
        self.stable += bet.stable.min(f64::MAX / 1e6);
        Ok(())
    }

    /// Mean errors over the blocks that were bet on.
    pub(super) fn means(&self) -> Option<(f64, f64)> {
        (self.blocks > 0).then(|| (self.canary / self.blocks as f64, self.stable / self.blocks as f64))
    }
}
