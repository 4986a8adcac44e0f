//! The conditional likelihood of one 2x2 table.
//!
//! Given both arms' requests and the errors of both together, the canary's
//! errors follow Fisher's non-central hypergeometric distribution, whose only
//! parameter is the odds ratio. The common error rate has dropped out, so night
//! and day, an outage of both arms and a changed split add no false evidence.
//! Grunwald, de Heide, Koolen, "Safe Testing" (arXiv 1906.07801); Turner, Ly,
//! Grunwald (arXiv 2106.02693).

use super::binomial::{Chance, ln_probability};
use super::table::Table;

/// Terms below this share of the sum are left out.
const NEGLIGIBLE: f64 = 1e-18;
/// From this stride on, sampling the sum is cheaper than walking it.
const MIN_STRIDE: f64 = 40.0;

/// The distribution of the canary's errors given everything else in a table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Conditional {
    canary: f64,
    stable: f64,
    errors: f64,
    lowest: f64,
    highest: f64,
    observed: f64,
}

impl Conditional {
    /// `None` if the table can only have come out one way, which is no
    /// evidence: no errors, only errors, or an arm without requests.
    pub(super) fn of(table: &Table) -> Option<Self> {
        let (n_c, n_s) = (table.canary.n(), table.stable.n());
        let m = table.canary.e() + table.stable.e();
        let (lowest, highest) = (m.saturating_sub(n_s), m.min(n_c));
        // Counts are at most `MAX_REQUESTS` < 2^53: exact as f64.
        (lowest < highest).then_some(Self {
            canary: n_c as f64,
            stable: n_s as f64,
            errors: m as f64,
            lowest: lowest as f64,
            highest: highest as f64,
            observed: table.canary.e() as f64,
        })
    }

    /// `ln P(observed)` at an odds ratio (positive, finite).
    ///
    /// The two arms are binomials with this odds ratio whose means add up to
    /// the errors seen, conditioned on that sum: near the observed table every
    /// term is then of moderate size, however many requests there are.
    pub(super) fn log_probability(&self, odds_ratio: f64) -> f64 {
        let stable_odds = self.fitted_stable_odds(odds_ratio);
        let stable = Chance::from_odds(stable_odds);
        let canary = Chance::from_odds(stable_odds * odds_ratio);
        let log_term =
            |j: f64| ln_probability(j, self.canary, canary) + ln_probability(self.errors - j, self.stable, stable);

        let start = (self.canary * canary.p()).round().clamp(self.lowest, self.highest);
        let peak = log_term(start);
        let information = 1.0 / (self.canary * canary.p() * canary.q())
            + 1.0 / (self.stable * stable.p() * stable.q());
        let stride = (information.sqrt().recip() / 2.5).floor();
        let sum = if stride >= MIN_STRIDE {
            self.sampled_sum(start, stride, |j| (log_term(j) - peak).exp())
        } else {
            self.walked_sum(start, odds_ratio)
        };
        log_term(self.observed) - peak - sum.ln()
    }

    /// The odds of the stable arm at which the expected errors are those seen:
    /// the positive root of `psi (N - m) x^2 + (psi (n_c - m) + n_s - m) x - m`.
    fn fitted_stable_odds(&self, odds_ratio: f64) -> f64 {
        let m = self.errors;
        let a = odds_ratio * (self.canary + self.stable - m);
        let b = odds_ratio * (self.canary - m) + (self.stable - m);
        let root = (b * b + 4.0 * a * m).sqrt();
        if b >= 0.0 { 2.0 * m / (b + root) } else { (root - b) / (2.0 * a) }
    }

    /// The sum of all terms relative to the one at `start`, by the ratio of neighbours,
    /// both ways until the rest is negligible.
    fn walked_sum(&self, start: f64, odds_ratio: f64) -> f64 {
        // The errors the stable arm would need beyond its requests: may be negative.
        let spare = self.stable - self.errors;
        let mut sum = 1.0;
        let (mut j, mut term) = (start, 1.0);
        while j < self.highest && term > NEGLIGIBLE * sum {
            term *= odds_ratio * (self.canary - j) * (self.errors - j) / ((j + 1.0) * (spare + j + 1.0));
            sum += term;
            j += 1.0;
        }
        (j, term) = (start, 1.0);
        while j > self.lowest && term > NEGLIGIBLE * sum {
            term *= j * (spare + j) / ((self.canary - j + 1.0) * (self.errors - j + 1.0) * odds_ratio);
            sum += term;
            j -= 1.0;
        }
        sum
    }

    /// The same sum from every `stride`-th term.
    ///
    /// The error is the characteristic function at the multiples of 2 pi / stride.
    /// The generating polynomial has only real roots, so the distribution is that
    /// of a sum of independent indicators and the function is at most
    /// `exp(-2 sigma^2 sin^2(w/2)) <= exp(-8 (sigma / stride)^2)`: below 1e-21 at
    /// a stride of sigma / 2.5.
    fn sampled_sum(&self, start: f64, stride: f64, term: impl Fn(f64) -> f64) -> f64 {
        let mut sum = 1.0;
        for step in [stride, -stride] {
            let mut j = start + step;
            while (self.lowest..=self.highest).contains(&j) {
                let value = term(j);
                sum += value;
                if value <= NEGLIGIBLE * sum {
                    break;
                }
                j += step;
            }
        }
        sum * stride
    }
}
