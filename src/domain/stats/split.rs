//! Does the canary get the share of traffic it was given? A wrong split means
//! that the arms are not comparable (sample ratio mismatch).

use std::f64::consts::TAU;

use serde::{Deserialize, Serialize};

use super::binomial::{deviance, stirling_error};
use super::table::Table;
use super::{InvalidInput, checked, tempering};

/// At `E` = 1000 or more the split is wrong.
pub const LOG_E_WRONG: f64 = 6.907_755_278_982_137;

/// Requests' worth of belief in the configured share: deviations of about
/// `sqrt(w (1 - w) / 100)` are looked for.
const PRIOR: f64 = 100.0;

/// A two-sided e-test of the canary's share of requests against the configured one:
/// beta-binomial predictions, centred on the configured share, against binomial ones.
///
/// A request must be one decision of the router: with sticky users count users.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SplitTest {
    share: f64,
    /// Requests of each arm since the share was set, on top of the prior.
    canary: f64,
    stable: f64,
    log_e: f64,
}

impl SplitTest {
    /// No evidence yet. `share` of all requests goes to the canary.
    ///
    /// # Errors
    /// A share that is not strictly between 0 and 1: there is nothing to test.
    pub fn new(share: f64) -> Result<Self, InvalidInput> {
        let share = checked("canary share", share, |w| w > 0.0 && w < 1.0, "between 0 and 1")?;
        Ok(Self { share, canary: PRIOR * share, stable: PRIOR * (1.0 - share), log_e: 0.0 })
    }

    /// The configured share changes; the evidence so far stays.
    ///
    /// # Errors
    /// As [`SplitTest::new`]; nothing then changes.
    pub fn change_share(&mut self, share: f64) -> Result<(), InvalidInput> {
        *self = Self { log_e: self.log_e, ..Self::new(share)? };
        Ok(())
    }

    /// Adds one closed table, tempered as in [`super::ErrorTest::observe`].
    pub fn observe(&mut self, table: &Table, exponent: f64) {
        let before = self.log_score();
        self.canary += table.canary.n() as f64;
        self.stable += table.stable.n() as f64;
        self.log_e += tempering(exponent) * (self.log_score() - before);
    }

    /// `ln E` against "every request goes to the canary with the configured chance".
    pub fn log_e(&self) -> f64 {
        self.log_e
    }

    /// The canary's share of the requests seen since the share was set; `None` before the first.
    pub fn seen_share(&self) -> Option<f64> {
        let (canary, stable) = (self.canary - PRIOR * self.share, self.stable - PRIOR * (1.0 - self.share));
        let requests = canary + stable;
        (requests >= 1.0).then(|| canary / requests)
    }

    /// `ln B(x, y) - x ln w - y ln(1 - w)`, as deviances so that it stays exact for many requests.
    fn log_score(&self) -> f64 {
        let (x, y) = (self.canary, self.stable);
        let sum = x + y;
        deviance(x, sum * self.share)
            + deviance(y, sum * (1.0 - self.share))
            + 0.5 * (TAU * sum / (x * y)).ln()
            + stirling_error(x)
            + stirling_error(y)
            - stirling_error(sum)
    }
}

#[cfg(test)]
mod tests {
    use statrs::function::beta::ln_beta;

    use super::super::table::Arm;
    use super::*;

    fn table(canary: u64, stable: u64) -> Table {
        Table { canary: Arm::new(canary, 0).expect("valid"), stable: Arm::new(stable, 0).expect("valid") }
    }

    #[test]
    fn the_evidence_is_the_beta_binomial_over_the_binomial() {
        for (share, canary, stable) in
            [(0.1, 30_u32, 70_u32), (0.5, 0, 40), (0.01, 500, 500), (0.9, 900, 100)]
        {
            let mut test = SplitTest::new(share).expect("valid");
            test.observe(&table(canary.into(), 0), 1.0);
            test.observe(&table(0, stable.into()), 1.0);
            let (x, y) = (f64::from(canary), f64::from(stable));
            let (a, b) = (100.0 * share, 100.0 * (1.0 - share));
            let expected = ln_beta(a + x, b + y) - ln_beta(a, b) - x * share.ln() - y * (1.0 - share).ln();
            assert!((test.log_e() - expected).abs() < 1e-9, "{share}: {} {expected}", test.log_e());
        }
    }

    #[test]
    fn the_expectation_under_the_configured_share_is_one() {
        let n = 60;
        let expectation: f64 = (0..=n)
            .map(|k| {
                let mut test = SplitTest::new(0.25).expect("valid");
                test.observe(&table(k, n - k), 1.0);
                let chance = super::super::binomial::Chance::from_odds(1.0 / 3.0);
                (test.log_e() + super::super::binomial::ln_probability(k as f64, n as f64, chance)).exp()
            })
            .sum();
        assert!((expectation - 1.0).abs() < 1e-10, "{expectation}");
    }

    #[test]
    fn a_wrong_split_is_found_and_a_right_one_is_not() {
        let (mut right, mut wrong) =
            (SplitTest::new(0.1).expect("valid"), SplitTest::new(0.1).expect("valid"));
        for _ in 0..200 {
            right.observe(&table(10, 90), 1.0);
            wrong.observe(&table(5, 95), 1.0);
        }
        assert!(right.log_e() < 0.0);
        assert!(wrong.log_e() > LOG_E_WRONG);
        assert_eq!(wrong.seen_share().map(|share| (share * 1000.0).round()), Some(50.0));
        assert!((LOG_E_WRONG - 1000f64.ln()).abs() < 1e-15);
    }

    #[test]
    fn a_new_share_keeps_the_evidence_and_tests_against_the_new_one() {
        let mut test = SplitTest::new(0.1).expect("valid");
        test.observe(&table(30, 70), 1.0);
        let before = test.log_e();
        test.change_share(0.5).expect("valid");
        assert_eq!(test.log_e(), before);
        assert_eq!(test.seen_share(), None);
        test.observe(&table(500, 500), 1.0);
        assert!(test.log_e() < before);
        assert!(test.change_share(0.0).is_err());
        assert!(SplitTest::new(1.0).is_err());
    }

    #[test]
    fn extreme_counts_stay_finite() {
        for (canary, stable) in [(0, 0), (1_000_000_000_000, 0), (0, 1_000_000_000_000)] {
            let mut test = SplitTest::new(1e-6).expect("valid");
            test.observe(&table(canary, stable), 1.0);
            assert!(test.log_e().is_finite());
        }
    }
}
