//! The binomial probability without cancellation, after C. Loader, "Fast and
//! Accurate Computation of Binomial Probabilities" (2000): a deviance, which is
//! small near the mean, and Stirling corrections, which are always small.
//! Differences of `ln_gamma` lose 3e-9 at a million requests; this does not.

use std::f64::consts::TAU;
use std::sync::LazyLock;

use statrs::function::gamma::ln_gamma;

/// A probability by its odds, so that neither it nor its complement is rounded to 0 or 1.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chance {
    odds: f64,
}

impl Chance {
    /// `odds` = p / (1 - p), positive and finite.
    pub(super) fn from_odds(odds: f64) -> Self {
        Self { odds }
    }

    /// p
    pub(super) fn p(self) -> f64 {
        self.odds / (1.0 + self.odds)
    }

    /// 1 - p
    pub(super) fn q(self) -> f64 {
        1.0 / (1.0 + self.odds)
    }
}

/// `ln P(X = k)` for X binomial with `n` trials; `0 <= k <= n`, both whole numbers.
pub(super) fn ln_probability(k: f64, n: f64, chance: Chance) -> f64 {
    if k == 0.0 {
        return -n * chance.odds.ln_1p();
    }
    if k == n {
        return -n * chance.odds.recip().ln_1p();
    }
    let rest = n - k;
    stirling_error(n)
        - stirling_error(k)
        - stirling_error(rest)
        - deviance(k, n * chance.p())
        - deviance(rest, n * chance.q())
        + 0.5 * (n / (TAU * k * rest)).ln()
}

/// `x ln(x / mean) + mean - x` for positive `x` and `mean`: 0 at the mean, and exact near it.
pub(super) fn deviance(x: f64, mean: f64) -> f64 {
    let distance = x - mean;
    let v = distance / (x + mean);
    if v.abs() >= 0.1 {
        return x * (x / mean).ln() - distance;
    }
    // ln(x/mean) = 2 (v + v^3/3 + v^5/5 + ...), and 2xv - distance = distance * v.
    let mut sum = distance * v;
    let mut power = 2.0 * x * v;
    let mut divisor = 1.0;
    loop {
        power *= v * v;
        divisor += 2.0;
        let next = sum + power / divisor;
        // At |v| < 0.1 each term is under a hundredth of the one before.
        if next == sum || divisor > 40.0 {
            return next;
        }
        sum = next;
    }
}

/// From here on five terms of the asymptotic series are exact.
const SERIES_FROM: f64 = 16.0;

/// Most small tables ask for nothing else.
static SMALL_COUNTS: LazyLock<[f64; SERIES_FROM as usize]> =
    LazyLock::new(|| std::array::from_fn(|k| stirling_error_by_definition(k as f64)));

/// `ln Gamma(x)` minus Stirling's `(x - 1/2) ln x - x + ln(2 pi) / 2`, for `x > 0`.
pub(super) fn stirling_error(x: f64) -> f64 {
    if x < SERIES_FROM {
        let whole = x as usize;
        return if whole as f64 == x { SMALL_COUNTS[whole] } else { stirling_error_by_definition(x) };
    }
    let r = 1.0 / (x * x);
    (1.0 / 12.0 - r * (1.0 / 360.0 - r * (1.0 / 1260.0 - r * (1.0 / 1680.0 - r / 1188.0)))) / x
}

fn stirling_error_by_definition(x: f64) -> f64 {
    ln_gamma(x) - (x - 0.5) * x.ln() + x - 0.5 * TAU.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_sum_to_one() {
        for (n, odds) in [(1.0, 0.3), (20.0, 1e-6), (300.0, 4.0), (2000.0, 0.01)] {
            let sum: f64 =
                (0..=n as u32).map(|k| ln_probability(k.into(), n, Chance::from_odds(odds)).exp()).sum();
            assert!((sum - 1.0).abs() < 1e-12, "{n} {odds}: {sum}");
        }
    }

    #[test]
    fn the_stirling_error_has_no_seam() {
        for x in [15.999_999, 16.0, 16.5, 20.0] {
            assert!((stirling_error(x) - stirling_error_by_definition(x)).abs() < 1e-13, "{x}");
        }
        assert_eq!(stirling_error(3.0), stirling_error_by_definition(3.0));
    }

    #[test]
    fn the_deviance_has_no_seam() {
        let direct = |x: f64, mean: f64| x * (x / mean).ln() + mean - x;
        for x in [1.0, 81.7, 81.9, 99.0, 101.0, 122.1, 122.3, 400.0] {
            assert!((deviance(x, 100.0) - direct(x, 100.0)).abs() < 1e-12, "{x}");
        }
        assert_eq!(deviance(7.0, 7.0), 0.0);
    }
}
