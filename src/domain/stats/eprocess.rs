//! Is the canary worse, or is it not worse by more than the margin? The error
//! rate, and every other share of requests that can be counted in both arms:
//! slow requests (latency beyond a frozen quantile), unlabelled predictions.

use serde::{Deserialize, Deserializer, Serialize};

use super::interval::{LikelihoodCurve, ODDS_RATIO_MAX};
use super::kernel::Conditional;
use super::table::Table;
use super::{InvalidInput, checked, log_mixture, tempering};

/// Odds ratios and weights of the evidence that the canary is worse. The first
/// is a built-in tolerance: a canary under about 1.12x worse is never rolled back.
pub(super) const WORSE: [(f64, f64); 7] =
    [(1.25, 0.10), (1.5, 0.20), (2.0, 0.25), (3.0, 0.20), (5.0, 0.10), (10.0, 0.10), (50.0, 0.05)];
/// Odds ratios and weights of the evidence that the canary is not worse by the margin.
pub(super) const NOT_WORSE: [(f64, f64); 3] = [(0.5, 0.10), (0.8, 0.20), (1.0, 0.70)];
/// Where an odds ratio of 1 stands in [`NOT_WORSE`].
const EQUAL: usize = 2;

/// Two e-processes over the same tables, and the interval that goes with them.
///
/// `E_worse` tests "the odds ratio is at most 1": at `1/alpha` the canary is
/// worse. `E_non_inferior` tests "the odds ratio is at least the margin": at
/// `1/beta` it is not. Both are mixtures of likelihood ratios, multiplied over
/// tables. A rate ratio R serves as margin: if the rate ratio is R or more, so
/// is the odds ratio.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ErrorTest {
    #[serde(deserialize_with = "stored_margin")]
    margin: f64,
    /// Accumulated log-likelihood at each odds ratio of [`WORSE`].
    worse: [f64; WORSE.len()],
    /// Accumulated log-likelihood at each odds ratio of [`NOT_WORSE`].
    not_worse: [f64; NOT_WORSE.len()],
    /// Accumulated log-likelihood at the margin.
    at_margin: f64,
    curve: LikelihoodCurve,
}

impl ErrorTest {
    /// No evidence yet. `margin` is the odds (or rate) ratio at which the canary
    /// is too much worse: 1.5 for "50 % worse".
    ///
    /// # Errors
    /// A margin outside 1 to [`ODDS_RATIO_MAX`].
    pub fn new(margin: f64) -> Result<Self, InvalidInput> {
        Ok(Self {
            margin: checked_margin(margin)?,
            worse: [0.0; WORSE.len()],
            not_worse: [0.0; NOT_WORSE.len()],
            at_margin: 0.0,
            curve: LikelihoodCurve::default(),
        })
    }

    /// Adds one closed table. `exponent` tempers it ([`super::Dispersion::exponent`],
    /// known before the table: from earlier tables only); it is held within 0 to 1.
    pub fn observe(&mut self, table: &Table, exponent: f64) {
        let Some(conditional) = Conditional::of(table) else { return };
        let exponent = tempering(exponent);
        let increment = |odds_ratio: f64| exponent * conditional.log_probability(odds_ratio);
        for (sum, (odds_ratio, _)) in self.worse.iter_mut().zip(WORSE) {
            *sum += increment(odds_ratio);
        }
        for (sum, (odds_ratio, _)) in self.not_worse.iter_mut().zip(NOT_WORSE) {
            *sum += increment(odds_ratio);
        }
        self.at_margin += increment(self.margin);
        self.curve.observe(&conditional, exponent);
    }

    /// The margin given to [`ErrorTest::new`].
    pub fn margin(&self) -> f64 {
        self.margin
    }

    /// `ln E_worse`: at `ln(1/alpha)` or more the canary is worse.
    pub fn log_e_worse(&self) -> f64 {
        let null = self.not_worse[EQUAL];
        log_mixture(self.worse.iter().zip(WORSE).map(|(sum, (_, weight))| (weight, sum - null)))
    }

    /// `ln E_ni`: at `ln(1/beta)` or more the canary is not worse by the margin.
    pub fn log_e_non_inferior(&self) -> f64 {
        let null = self.at_margin;
        log_mixture(self.not_worse.iter().zip(NOT_WORSE).map(|(sum, (_, weight))| (weight, sum - null)))
    }

    /// The odds ratios not ruled out at level `alpha`, lower and upper: a
    /// confidence sequence, right at every look at once.
    ///
    /// A limit of [`super::interval::ODDS_RATIO_MIN`] or [`ODDS_RATIO_MAX`] means
    /// "or beyond"; with no evidence, or an `alpha` that is no probability, that
    /// is the whole range.
    pub fn interval(&self, alpha: f64) -> (f64, f64) {
        let worse = self.worse.iter().zip(WORSE).map(|(sum, (_, weight))| (0.5 * weight, *sum));
        let not_worse = self.not_worse.iter().zip(NOT_WORSE).map(|(sum, (_, weight))| (0.5 * weight, *sum));
        self.curve.range_below(log_mixture(worse.chain(not_worse)), -alpha.ln())
    }
}

fn checked_margin(margin: f64) -> Result<f64, InvalidInput> {
    checked("margin", margin, |m| (1.0..=ODDS_RATIO_MAX).contains(&m), "a ratio from 1 to 1000")
}

fn stored_margin<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    checked_margin(f64::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}
