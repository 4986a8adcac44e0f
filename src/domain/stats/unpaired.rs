//! Prediction errors of two arms that served different requests. Asymptotic:
//! clipping and the minimum per arm are part of the method.

use std::f64::consts::TAU;

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, Normal};

use super::{InvalidInput, checked};

/// Below this many values an arm's mean is not yet close to normal: no evidence.
const MIN_VALUES: u64 = 50;
/// The effect that is looked for, as a share of the stable arm's mean error.
const EFFECT: f64 = 0.1;

/// Count, mean and sum of squared deviations (Welford).
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
struct Moments {
    n: u64,
    mean: f64,
    squares: f64,
}

impl Moments {
    fn observe(&mut self, value: f64) {
        self.n += 1;
        let before = value - self.mean;
        self.mean += before / self.n as f64;
        self.squares += before * (value - self.mean);
    }

    /// The variance of the mean; needs two values.
    fn variance_of_mean(&self) -> f64 {
        let n = self.n as f64;
        self.squares / ((n - 1.0) * n)
    }
}

/// Is the canary's mean absolute error larger, or is it not larger by more than
/// the margin? For requests that only one version has scored; prefer [`super::PairedTest`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct UnpairedTest {
    clip: f64,
    effect: f64,
    margin: f64,
    canary: Moments,
    stable: Moments,
}

impl UnpairedTest {
    /// No evidence yet. Errors are clipped at `clip`; `stable_error` is the stable
    /// arm's mean absolute error; both are frozen before the canary, in the unit of
    /// the prediction. `margin` as in [`super::PairedTest::new`].
    ///
    /// # Errors
    /// A clip bound or mean error that is not positive and finite; a margin outside 1 to 1000.
    pub fn new(clip: f64, stable_error: f64, margin: f64) -> Result<Self, InvalidInput> {
        let positive =
            |name, value| checked(name, value, |b: f64| b.is_normal() && b > 0.0, "positive and finite");
        Ok(Self {
            clip: positive("clip bound", clip)?,
            effect: EFFECT * positive("mean error", stable_error)?,
            margin: checked("margin", margin, |m| (1.0..=1000.0).contains(&m), "a ratio from 1 to 1000")?,
            canary: Moments::default(),
            stable: Moments::default(),
        })
    }

    /// Adds the absolute error of one request the canary served.
    ///
    /// # Errors
    /// An error that is negative or not a number.
    pub fn observe_canary(&mut self, error: f64) -> Result<(), InvalidInput> {
        self.canary.observe(clipped(error, self.clip)?);
        Ok(())
    }

    /// Adds the absolute error of one request the stable version served.
    ///
    /// # Errors
    /// An error that is negative or not a number.
    pub fn observe_stable(&mut self, error: f64) -> Result<(), InvalidInput> {
        self.stable.observe(clipped(error, self.clip)?);
        Ok(())
    }

    /// `ln E` against "the canary's mean clipped error is at most the stable one".
    pub fn log_e_worse(&self) -> f64 {
        self.log_e(1.0, 1.0)
    }

    /// `ln E` against "the canary's mean clipped error is at least `margin` times the stable one".
    pub fn log_e_non_inferior(&self) -> f64 {
        self.log_e(self.margin, -1.0)
    }

    /// Evidence that `canary - ratio * stable` has the given sign.
    fn log_e(&self, ratio: f64, sign: f64) -> f64 {
        if self.canary.n < MIN_VALUES || self.stable.n < MIN_VALUES {
            return 0.0;
        }
        let variance = self.canary.variance_of_mean() + ratio * ratio * self.stable.variance_of_mean();
        let z = sign * (self.canary.mean - ratio * self.stable.mean) / variance.sqrt();
        let information = self.effect * self.effect / variance;
        // Without any spread the normal approximation has nothing to say.
        if z.is_finite() && information.is_finite() { log_half_normal_mixture(z, information) } else { 0.0 }
    }
}

fn clipped(error: f64, clip: f64) -> Result<f64, InvalidInput> {
    Ok(checked("prediction error", error, |e| e >= 0.0, "0 or more")?.min(clip))
}

/// The likelihood ratio of a normal mean, mixed over a half-normal effect above 0.
///
/// `ln 2 - ln(1+T)/2 + x^2/2 + ln Phi(x)` with `x = z sqrt(T/(1+T))`; `t` = tau^2 V
/// is the effect's variance in units of the mean's. One-sided mSPRT: Johari et
/// al., "Always valid inference" (2022).
fn log_half_normal_mixture(z: f64, t: f64) -> f64 {
    // Beyond, squares overflow; no evidence is ever that strong.
    let x = (z * (t / (1.0 + t)).sqrt()).clamp(-1e100, 1e100);
    std::f64::consts::LN_2 - 0.5 * t.ln_1p() + log_scaled_phi(x)
}

/// `x^2/2 + ln Phi(x)`; for large negative `x` the two nearly cancel, so Mills' ratio is used.
fn log_scaled_phi(x: f64) -> f64 {
    if x > -25.0 {
        return 0.5 * x * x + Normal::standard().cdf(x).ln();
    }
    let r = (x * x).recip();
    (1.0 - r * (1.0 - r * (3.0 - r * (15.0 - r * 105.0)))).ln() - (-x).ln() - 0.5 * TAU.ln()
}

/// Half the width of a two-sided confidence sequence for a mean, for the screen.
///
/// `n` values with standard deviation `deviation`, at level `alpha`, tightest at
/// `tightest_at` values (> 0). AsympCS: Waudby-Smith, Arbour, Sinha, Kennedy,
/// Ramdas (arXiv 2103.06476). Infinite without values, or if `alpha` is no probability.
pub fn asymptotic_radius(n: u64, deviation: f64, alpha: f64, tightest_at: f64) -> f64 {
    if n == 0 || !(alpha > 0.0 && alpha < 1.0) {
        return f64::INFINITY;
    }
    let n = n as f64;
    let rho2 = best_rho2(alpha, tightest_at);
    let scale = n * rho2 + 1.0;
    deviation * (2.0 * scale / (n * n * rho2) * (scale.sqrt() / alpha).ln()).sqrt()
}

/// The mixture variance that makes the radius smallest at `tightest_at` values:
/// `x / tightest_at` with `x - ln(1 + x) = -2 ln alpha` (the exact form of the
/// approximation `(-2 ln a + ln(1 - 2 ln a)) / t`).
fn best_rho2(alpha: f64, tightest_at: f64) -> f64 {
    let target = -2.0 * alpha.ln();
    let mut x = target + target.ln_1p();
    // Newton's method on a convex function, from near the root: quadratic.
    for _ in 0..8 {
        x -= (x - x.ln_1p() - target) * (1.0 + x) / x;
    }
    x / tightest_at
}

#[cfg(test)]
mod tests {
    use super::super::vectors::{assert_close, number, rows};
    use super::*;

    #[test]
    fn the_half_normal_mixture_matches_the_reference() {
        for row in rows("F_half_normal_mixture") {
            let found = log_half_normal_mixture(number(&row, "z"), number(&row, "tau2V"));
            assert_close(found, number(&row, "log_mix"), &row);
        }
    }

    #[test]
    fn the_asymptotic_radius_matches_the_reference() {
        for row in rows("G_asymp_cs_two_sided") {
            let (alpha, tightest_at) = (number(&row, "alpha"), number(&row, "t_star"));
            assert_close(best_rho2(alpha, tightest_at), number(&row, "rho2"), &row);
            let found =
                asymptotic_radius(number(&row, "t") as u64, number(&row, "sigma"), alpha, tightest_at);
            assert_close(found, number(&row, "radius"), &row);
        }
        assert_eq!(asymptotic_radius(0, 1.0, 0.05, 100.0), f64::INFINITY);
        assert_eq!(asymptotic_radius(10, 1.0, 1.0, 100.0), f64::INFINITY);
    }

    #[test]
    fn the_mixture_is_finite_and_has_no_seam() {
        for z in [-1e300, -1e6, -40.0, 0.0, 40.0, 1e300] {
            for t in [1e-300, 1.0, 1e300] {
                assert!(log_half_normal_mixture(z, t).is_finite(), "{z} {t}");
            }
        }
        assert!((log_scaled_phi(-25.0) - log_scaled_phi(-24.999_999_999)).abs() < 1e-9);
    }

    #[test]
    fn evidence_needs_fifty_values_in_each_arm() {
        let mut test = UnpairedTest::new(10.0, 2.0, 1.5).expect("valid");
        for i in 0..5000_u32 {
            test.observe_stable(f64::from(i % 5)).expect("valid");
            if i % 50 == 0 {
                assert!(test.canary.n >= MIN_VALUES || test.log_e_worse() == 0.0);
                test.observe_canary(5.0 + f64::from(i % 3)).expect("valid");
            }
        }
        assert!(test.log_e_worse() > 20.0);
        assert!(test.log_e_non_inferior() < 0.0);
        assert!(test.observe_canary(f64::NAN).is_err());
    }

    #[test]
    fn values_without_spread_are_no_evidence() {
        let mut test = UnpairedTest::new(10.0, 2.0, 1.5).expect("valid");
        for _ in 0..100 {
            test.observe_stable(1.0).expect("valid");
            test.observe_canary(9.0).expect("valid");
        }
        assert_eq!((test.log_e_worse(), test.log_e_non_inferior()), (0.0, 0.0));
    }
}
