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
        let limit = -alpha.ln();
        let ruled_out = |expected: f64| {
            let weight = (THETA.len() as f64).recip();
            log_mixture(THETA.iter().map(|t| (weight, errors * t.ln() + (1.0 - t) * expected))) >= limit
        };
        // No arm expects more errors than it has requests.
        if !ruled_out(requests) {
            return 1.0;
        }
        // The evidence grows on the right of the errors seen, and below them there is none.
        let (mut low, mut high) = (errors, requests);
        for _ in 0..200 {
            let middle = 0.5 * (low + high);
            if ruled_out(middle) { high = middle } else { low = middle }
        }
        high / requests
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
