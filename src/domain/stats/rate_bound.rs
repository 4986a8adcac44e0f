//! One arm alone: an upper bound on its rate, and a guard against an absolute
//! limit. Damage that the canary does to both arms is invisible to a comparison.
//!
//! Counts with any rate that changes over time are sub-Poisson:
//! `ln E exp(l X) <= p (exp(l) - 1)`.

use serde::{Deserialize, Serialize};

use super::eprocess::WORSE;
use super::table::Arm;
use super::{InvalidInput, checked, log_mixture, tempering};

/// Rate factors below 1 that the upper bound mixes, with equal weights.
const THETA: [f64; 8] = [0.05, 0.2, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98];

/// Requests and errors of one arm, tempered.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
struct Tally {
    requests: f64,
    errors: f64,
}

impl Tally {
    fn observe(&mut self, arm: Arm, exponent: f64) {
        let exponent = tempering(exponent);
        self.requests += exponent * arm.n() as f64;
        self.errors += exponent * arm.e() as f64;
    }
}

/// An upper bound on the average rate of one arm, right at every look at once.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RateBound(Tally);

impl RateBound {
    /// Adds one closed table, tempered as in [`super::ErrorTest::observe`].
    pub fn observe(&mut self, arm: Arm, exponent: f64) {
        self.0.observe(arm, exponent);
    }

    /// The bound at level `alpha`, at most 1; 1 without requests or when `alpha` is no probability.
    ///
    /// The expected number of errors `L` it allows solves
    /// `mean_theta[theta^S exp((1 - theta) L)] = 1 / alpha`.
    pub fn upper(&self, alpha: f64) -> f64 {
        let Tally { requests, errors } = self.0;
        // No arm expects more errors than it has requests.
        if !self.rules_out(requests, alpha) {
            return 1.0;
        }
        // The evidence grows on the right of the errors seen, and below them there is none.
        let (mut low, mut high) = (errors, requests);
        for _ in 0..200 {
            let middle = 0.5 * (low + high);
            if self.rules_out(middle, alpha) { high = middle } else { low = middle }
        }
        high / requests
    }

    /// Whether the bound at level `alpha` is below `rate`, without looking for the bound.
    pub fn is_below(&self, rate: f64, alpha: f64) -> bool {
        self.rules_out(self.0.requests * rate.min(1.0), alpha)
    }

    /// Whether so many expected errors, or more, are ruled out.
    fn rules_out(&self, expected: f64, alpha: f64) -> bool {
        let weight = (THETA.len() as f64).recip();
        let terms = THETA.iter().map(|t| (weight, self.0.errors * t.ln() + (1.0 - t) * expected));
        log_mixture(terms) >= -alpha.ln()
    }
}

/// Evidence that an arm's rate exceeds a fixed limit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AbsoluteGuard {
    limit: f64,
    tally: Tally,
}

impl AbsoluteGuard {
    /// `limit` is the highest acceptable rate.
    ///
    /// # Errors
    /// A limit that is not between 0 and 1.
    pub fn new(limit: f64) -> Result<Self, InvalidInput> {
        let limit = checked("rate limit", limit, |r| r > 0.0 && r <= 1.0, "above 0 and at most 1")?;
        Ok(Self { limit, tally: Tally::default() })
    }

    /// Adds one closed table, tempered as in [`super::ErrorTest::observe`].
    pub fn observe(&mut self, arm: Arm, exponent: f64) {
        self.tally.observe(arm, exponent);
    }

    /// `ln E` against "the rate is at most the limit"; at `ln(1/alpha)` it is exceeded.
    pub fn log_e(&self) -> f64 {
        let Tally { requests, errors } = self.tally;
        let expected = requests * self.limit;
        log_mixture(WORSE.iter().map(|(t, weight)| (*weight, errors * t.ln() - (t - 1.0) * expected)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::vectors::{assert_close, number, numbers, rows};
    use super::*;

    fn arm(n: u64, e: u64) -> Arm {
        Arm::new(n, e).expect("valid")
    }

    #[test]
    fn the_upper_bound_matches_the_reference() {
        for section in rows("E_rate_upper") {
            assert_eq!(numbers(&section, "theta"), THETA);
            for row in section["rows"].as_array().expect("rows") {
                let mut bound = RateBound::default();
                bound.observe(arm(number(row, "n") as u64, number(row, "S") as u64), 1.0);
                let upper = bound.upper(number(row, "alpha"));
                assert_close(upper, number(row, "rate_U"), row);
                assert_close(upper * number(row, "n"), number(row, "Lambda_U"), row);
            }
        }
    }

    #[test]
    fn to_be_below_a_rate_is_to_have_a_bound_below_it() {
        for (n, e) in [(10, 0), (1000, 0), (1000, 7), (1000, 1000), (0, 0)] {
            let mut bound = RateBound::default();
            bound.observe(arm(n, e), 0.8);
            for alpha in [0.0, 1e-6, 0.05, 0.3, f64::NAN] {
                let upper = bound.upper(alpha);
                for rate in [0.001, 0.004, 0.0061, 0.02, 0.5, 0.99, upper * 0.999, (upper * 1.001).min(1.0)] {
                    assert_eq!(bound.is_below(rate, alpha), upper < rate, "{n} {e} {alpha} {rate} {upper}");
                }
            }
        }
    }

    #[test]
    fn the_absolute_guard_matches_the_reference() {
        for row in rows("M_absolute_guard") {
            let mut guard = AbsoluteGuard::new(number(&row, "r0")).expect("valid");
            guard.observe(arm(number(&row, "n") as u64, number(&row, "S") as u64), 1.0);
            assert_close(guard.log_e(), number(&row, "log_E"), &row);
        }
    }

    #[test]
    fn the_guard_is_fair_at_its_limit() {
        let chance = super::super::binomial::Chance::from_odds(0.05 / 0.95);
        for (n, exponent) in [(1, 1.0), (40, 1.0), (40, 0.5)] {
            let mean: f64 = (0..=n)
                .map(|e| {
                    let mut guard = AbsoluteGuard::new(0.05).expect("valid");
                    guard.observe(arm(n, e), exponent);
                    let log_chance = super::super::binomial::ln_probability(e as f64, n as f64, chance);
                    (log_chance + guard.log_e()).exp()
                })
                .sum();
            assert!(mean <= 1.0 && mean > 0.2, "{n} {exponent}: {mean}");
        }
    }

    #[test]
    fn without_a_bound_the_rate_may_be_anything() {
        let mut bound = RateBound::default();
        assert_eq!(bound.upper(0.05), 1.0);
        bound.observe(arm(1000, 0), 0.0);
        assert_eq!(bound.upper(0.05), 1.0);
        bound.observe(arm(3, 0), 1.0);
        assert_eq!(bound.upper(0.05), 1.0);
        bound.observe(arm(10_000, 10_000), 1.0);
        assert_eq!(bound.upper(0.05), 1.0);
        assert_eq!(bound.upper(0.0), 1.0);
        assert_eq!(bound.upper(f64::NAN), 1.0);
    }

    #[test]
    fn tempering_widens_the_bound_and_weakens_the_guard() {
        let (mut plain, mut tempered) = (RateBound::default(), RateBound::default());
        let mut guards = [AbsoluteGuard::new(0.01).expect("valid"); 2];
        for _ in 0..50 {
            let minute = arm(100, 3);
            plain.observe(minute, 1.0);
            tempered.observe(minute, 0.5);
            guards[0].observe(minute, 1.0);
            guards[1].observe(minute, 0.5);
        }
        assert!(0.03 < plain.upper(0.05) && plain.upper(0.05) < tempered.upper(0.05));
        assert!(0.0 < guards[1].log_e() && guards[1].log_e() < guards[0].log_e());
    }

    #[test]
    fn a_guard_needs_a_rate() {
        for limit in [0.0, -0.1, 1.1, f64::NAN] {
            assert!(AbsoluteGuard::new(limit).is_err(), "{limit}");
        }
    }
}
