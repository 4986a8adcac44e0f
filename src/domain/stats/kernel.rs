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
        let log_term = |j: f64| {
            ln_probability(j, self.canary, canary) + ln_probability(self.errors - j, self.stable, stable)
        };

        let start = (self.canary * canary.p()).round().clamp(self.lowest, self.highest);
        let peak = log_term(start);
        let information =
            1.0 / (self.canary * canary.p() * canary.q()) + 1.0 / (self.stable * stable.p() * stable.q());
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

#[cfg(test)]
mod tests {
    use super::super::table::{Arm, Table};
    use super::super::vectors::{assert_close, number, rows};
    use super::*;

    fn table(n_c: u64, e_c: u64, n_s: u64, e_s: u64) -> Table {
        let arm = |n, e| Arm::new(n, e).expect("valid");
        Table { canary: arm(n_c, e_c), stable: arm(n_s, e_s) }
    }

    fn log_ratio(table: &Table, odds_ratio: f64, null: f64) -> f64 {
        Conditional::of(table).map_or(0.0, |c| c.log_probability(odds_ratio) - c.log_probability(null))
    }

    fn assert_rows(section: &str) {
        for row in rows(section) {
            let count = |key| number(&row, key) as u64;
            let table = table(count("nc"), count("ec"), count("ns"), count("es"));
            let found = log_ratio(&table, number(&row, "psi"), number(&row, "psi0"));
            assert_close(found, number(&row, "log_e"), &row);
        }
    }

    #[test]
    fn one_table_matches_the_reference() {
        assert_rows("A_table_log_e");
    }

    #[test]
    fn ten_million_requests_a_minute_match_the_reference() {
        assert_rows("A_large_table_log_e");
    }

    #[test]
    fn fishers_exact_test_is_the_tail_at_equal_odds() {
        for row in rows("L_classical") {
            let count = |arm: usize, cell: usize| row["table"][arm][cell].as_u64().expect("a count");
            let (e_c, e_s) = (count(0, 0), count(1, 0));
            let (n_c, n_s) = (e_c + count(0, 1), e_s + count(1, 1));
            let tail: f64 = (e_c..=e_c + e_s)
                .map(|e| table(n_c, e, n_s, e_c + e_s - e))
                .map(|t| Conditional::of(&t).expect("errors in both arms").log_probability(1.0).exp())
                .sum();
            assert_close(tail, number(&row, "fisher_greater"), &row);
        }
    }

    #[test]
    fn the_sampled_sum_equals_the_walked_one() {
        for (counts, odds_ratio) in
            [((500_000, 250_000, 500_000, 249_000), 1.0), ((400_000, 90_000, 9_000_000, 800_000), 5.0)]
        {
            let (n_c, e_c, n_s, e_s) = counts;
            let conditional = Conditional::of(&table(n_c, e_c, n_s, e_s)).expect("evidence");
            let odds = conditional.fitted_stable_odds(odds_ratio);
            let (canary, stable) = (Chance::from_odds(odds * odds_ratio), Chance::from_odds(odds));
            let start = (conditional.canary * canary.p()).round();
            let term = |j| {
                ln_probability(j, conditional.canary, canary)
                    + ln_probability(conditional.errors - j, conditional.stable, stable)
            };
            let walked = conditional.walked_sum(start, odds_ratio);
            let sampled = conditional.sampled_sum(start, MIN_STRIDE, |j| (term(j) - term(start)).exp());
            assert!((sampled / walked - 1.0).abs() < 1e-11, "{sampled} {walked}");
        }
    }

    #[test]
    fn probabilities_of_all_outcomes_sum_to_one() {
        for odds_ratio in [1e-3, 0.5, 1.0, 3.0, 1e3] {
            for (n_c, n_s, m) in [(10, 90, 7), (90, 10, 60), (1, 9, 1), (300, 200, 450)] {
                let outcomes = u64::saturating_sub(m, n_s)..=u64::min(m, n_c);
                let sum: f64 = outcomes
                    .map(|e| table(n_c, e, n_s, m - e))
                    .map(|t| Conditional::of(&t).expect("evidence").log_probability(odds_ratio).exp())
                    .sum();
                assert!((sum - 1.0).abs() < 1e-12, "{odds_ratio} {n_c} {n_s} {m}: {sum}");
            }
        }
    }

    #[test]
    fn a_table_with_one_possible_outcome_is_no_evidence() {
        for counts in [(0, 0, 90, 3), (10, 3, 0, 0), (10, 0, 90, 0), (10, 10, 90, 90), (0, 0, 0, 0)] {
            let (n_c, e_c, n_s, e_s) = counts;
            assert!(Conditional::of(&table(n_c, e_c, n_s, e_s)).is_none(), "{counts:?}");
        }
    }
}
