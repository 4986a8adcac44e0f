//! What a canary can show, and how long it takes, before it starts. All counts
//! are canary requests; they grow in proportion to over-dispersion.

use serde::Serialize;
use statrs::distribution::{ContinuousCDF, Normal};

use super::eprocess::{NOT_WORSE, WORSE};
use super::minimum::golden_section;
use super::{InvalidInput, checked};

/// The chance at which a difference counts as detectable.
const POWER: f64 = 0.8;
/// The mixture weight assumed when the ratio itself is asked for.
const TYPICAL_WEIGHT: f64 = 0.2;
/// The mixture weight of "the canary is equal".
const EQUAL_WEIGHT: f64 = NOT_WORSE[2].1;
/// Ratios beyond are not looked for.
const MAX_RATIO: f64 = 1e6;

/// What is expected of a canary's traffic.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Traffic {
    stable_rate: f64,
    canary_share: f64,
    dispersion: f64,
}

impl Traffic {
    /// `stable_rate`: errors per request; `canary_share` of all requests;
    /// `dispersion`: phi of [`super::Dispersion`], below 1 counts as 1.
    ///
    /// # Errors
    /// A rate or share that is not strictly between 0 and 1; a dispersion that is not finite.
    pub fn new(stable_rate: f64, canary_share: f64, dispersion: f64) -> Result<Self, InvalidInput> {
        let share = |name, value| checked(name, value, |p| p > 0.0 && p < 1.0, "between 0 and 1");
        Ok(Self {
            stable_rate: share("stable rate", stable_rate)?,
            canary_share: share("canary share", canary_share)?,
            dispersion: checked("dispersion", dispersion, f64::is_finite, "finite")?.max(1.0),
        })
    }

    /// Rolling back a canary `ratio` times worse, at level `alpha`.
    ///
    /// # Errors
    /// A ratio of 1 or less, or one that makes the canary's rate 1 or more; an alpha that is no probability.
    pub fn detection(&self, ratio: f64, alpha: f64) -> Result<Plan, InvalidInput> {
        let possible = |r| r > 1.0 && r * self.stable_rate < 1.0;
        let ratio = checked("ratio", ratio, possible, "above 1, and below 1 / stable rate")?;
        Ok(self.detection_with(ratio, checked_level(alpha)?, nearest_weight(ratio)))
    }

    /// The same where the ratio itself is asked for: with the weight of a typical one.
    pub(super) fn typical_detection(&self, ratio: f64, alpha: f64) -> Result<Plan, InvalidInput> {
        Ok(self.detection_with(ratio, checked_level(alpha)?, TYPICAL_WEIGHT))
    }

    /// The ratio of a canary that fails every request, or nearly.
    pub(super) fn highest_ratio(&self) -> f64 {
        self.stable_rate.recip().min(MAX_RATIO) * (1.0 - f64::EPSILON)
    }

    /// The smallest ratio that is rolled back within `canary_requests` with 80 %
    /// chance; `None` if not even a canary that fails every request would be.
    ///
    /// # Errors
    /// An alpha that is no probability.
    pub fn detectable_ratio(&self, canary_requests: f64, alpha: f64) -> Result<Option<f64>, InvalidInput> {
        let alpha = checked_level(alpha)?;
        let needed = |ratio| self.detection_with(ratio, alpha, TYPICAL_WEIGHT).likely;
        let (mut low, mut high) = (1.0, self.highest_ratio());
        // Not `>`: requests that are no number detect nothing.
        let detected = |ratio| needed(ratio) <= canary_requests;
        if !detected(high) {
            return Ok(None);
        }
        for _ in 0..100 {
            let middle = 0.5 * (low + high);
            if detected(middle) { high = middle } else { low = middle }
        }
        Ok(Some(high))
    }

    /// Proving an equal canary not worse by `margin`, at level `beta`.
    ///
    /// # Errors
    /// A margin that is not above 1 and finite; a beta that is no probability.
    pub fn non_inferiority(&self, margin: f64, beta: f64) -> Result<Plan, InvalidInput> {
        let margin = checked("margin", margin, |m| m > 1.0 && m.is_finite(), "above 1")?;
        let threshold = -checked_level(beta)?.ln() - EQUAL_WEIGHT.ln();
        let (rate, share) = (self.stable_rate, self.canary_share);
        // The null closest to equal rates: some stable rate below, the canary's above.
        let canary_rate = |log_odds: f64| logistic(log_odds + margin.ln());
        let divergence = |log_odds: f64| {
            (share * kl(rate, canary_rate(log_odds)) + (1.0 - share) * kl(rate, logistic(log_odds))) / share
        };
        let log_odds = (rate / (1.0 - rate)).ln();
        let null = golden_section(log_odds - margin.ln(), log_odds, divergence);
        let variance = (share * log_ratio_variance(rate, canary_rate(null))
            + (1.0 - share) * log_ratio_variance(rate, logistic(null)))
            / share;
        Ok(Plan::new(divergence(null), variance, -beta.ln(), threshold, self.dispersion))
    }

    fn detection_with(&self, ratio: f64, alpha: f64, weight: f64) -> Plan {
        let (rate, share) = (self.stable_rate, self.canary_share);
        let canary = rate * ratio;
        let pooled = share * canary + (1.0 - share) * rate;
        let per_request =
            |f: fn(f64, f64) -> f64| (share * f(canary, pooled) + (1.0 - share) * f(rate, pooled)) / share;
        let bound = -alpha.ln();
        Plan::new(
            per_request(kl),
            per_request(log_ratio_variance),
            bound,
            bound - weight.ln(),
            self.dispersion,
        )
    }
}

/// How many canary requests a decision takes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Plan {
    /// Evidence per canary request, in nats.
    pub nats: f64,
    /// Its variance per canary request.
    pub variance: f64,
    /// What a test would need on average that knew both rates.
    pub bound: f64,
    /// Needed on average.
    pub mean: f64,
    /// Enough with 80 % chance.
    pub likely: f64,
    /// Evidence needed, in nats: `ln(1/alpha) + ln(1/weight)`.
    pub threshold: f64,
}

impl Plan {
    /// Over-dispersed requests carry `dispersion` times less evidence each.
    fn new(nats: f64, variance: f64, bound: f64, threshold: f64, dispersion: f64) -> Self {
        let spread = Normal::standard().inverse_cdf(POWER) * variance.sqrt();
        let likely = ((spread + (spread * spread + 4.0 * nats * threshold).sqrt()) / (2.0 * nats)).powi(2);
        Self {
            nats: nats / dispersion,
            variance: variance / dispersion,
            bound: bound / nats * dispersion,
            mean: threshold / nats * dispersion,
            likely: likely * dispersion,
            threshold,
        }
    }

    /// `requests` under this plan and `more` under `next`, as one plan of the mean request of both.
    pub(super) fn followed_by(&self, requests: f64, next: &Plan, more: f64) -> Plan {
        let all = requests + more;
        if all <= 0.0 {
            return *next;
        }
        let mean = |one: f64, other: f64| (one * requests + other * more) / all;
        Plan {
            nats: mean(self.nats, next.nats),
            variance: mean(self.variance, next.variance),
            bound: mean(self.bound, next.bound),
            mean: mean(self.mean, next.mean),
            likely: mean(self.likely, next.likely),
            threshold: self.threshold,
        }
    }

    /// The chance that `canary_requests` are enough (normal approximation); 0 for none.
    pub fn chance(&self, canary_requests: f64) -> f64 {
        if canary_requests.is_nan() || canary_requests <= 0.0 {
            return 0.0;
        }
        let surplus = canary_requests * self.nats - self.threshold;
        Normal::standard().cdf(surplus / (canary_requests * self.variance).sqrt())
    }
}

fn checked_level(level: f64) -> Result<f64, InvalidInput> {
    checked("error level", level, |a| a > 0.0 && a < 1.0, "between 0 and 1")
}

/// The weight of the mixture's point nearest to `ratio` on a log scale.
fn nearest_weight(ratio: f64) -> f64 {
    let distance = |(point, _): &(f64, f64)| (point.ln() - ratio.ln()).abs();
    WORSE
        .iter()
        .min_by(|a, b| distance(a).total_cmp(&distance(b)))
        .map_or(TYPICAL_WEIGHT, |(_, weight)| *weight)
}

fn logistic(log_odds: f64) -> f64 {
    (1.0 + (-log_odds).exp()).recip()
}

/// The Kullback-Leibler divergence of two chances, in nats.
fn kl(p: f64, q: f64) -> f64 {
    -p * ((q - p) / p).ln_1p() - (1.0 - p) * ((p - q) / (1.0 - p)).ln_1p()
}

/// The variance of the log likelihood ratio of two chances, under the first.
fn log_ratio_variance(p: f64, q: f64) -> f64 {
    let difference = (p / q).ln() - ((1.0 - p) / (1.0 - q)).ln();
    p * (1.0 - p) * difference * difference
}

#[cfg(test)]
mod tests {
    use super::super::vectors::{assert_close, number, rows};
    use super::*;

    fn traffic(row: &serde_json::Value) -> Traffic {
        Traffic::new(number(row, "p_stable"), number(row, "w"), 1.0).expect("valid")
    }

    #[test]
    fn detection_matches_the_reference() {
        for row in rows("J_planning") {
            let ratio = number(&row, "ratio");
            assert_eq!(nearest_weight(ratio), number(&row, "grid_weight"));
            let plan = traffic(&row).detection(ratio, number(&row, "alpha")).expect("valid");
            assert_close(plan.nats, number(&row, "nats_per_canary_request"), &row);
            assert_close(plan.variance, number(&row, "var_per_canary_request"), &row);
            assert_close(plan.bound, number(&row, "bound_known_params"), &row);
            assert_close(plan.mean, number(&row, "plan_mean"), &row);
            assert_close(plan.likely, number(&row, "plan_80pct"), &row);
            assert_close(plan.chance(plan.likely), 0.8, &row);
        }
    }

    #[test]
    fn the_detectable_ratio_matches_the_reference() {
        for row in rows("J2_mde") {
            let found = traffic(&row).detectable_ratio(number(&row, "n_canary"), number(&row, "alpha"));
            assert_close(
                found.expect("valid").expect("detectable"),
                number(&row, "min_detectable_ratio"),
                &row,
            );
        }
    }

    #[test]
    fn non_inferiority_matches_the_reference() {
        for row in rows("J3_ni_planning") {
            let plan = traffic(&row).non_inferiority(number(&row, "M"), number(&row, "beta")).expect("valid");
            assert_close(plan.nats, number(&row, "nats_per_canary_request"), &row);
            assert_close(plan.mean, number(&row, "plan_mean"), &row);
        }
    }

    #[test]
    fn over_dispersion_stretches_every_count() {
        let plain = Traffic::new(0.01, 0.1, 0.5).expect("valid").detection(2.0, 0.02).expect("valid");
        let stretched = Traffic::new(0.01, 0.1, 3.0).expect("valid").detection(2.0, 0.02).expect("valid");
        assert!((stretched.mean / plain.mean - 3.0).abs() < 1e-12);
        assert!((stretched.likely / plain.likely - 3.0).abs() < 1e-12);
        assert!((stretched.chance(stretched.likely) - 0.8).abs() < 1e-9);
    }

    #[test]
    fn too_little_traffic_detects_nothing() {
        let traffic = Traffic::new(0.01, 0.1, 1.0).expect("valid");
        assert_eq!(traffic.detectable_ratio(1.0, 0.01), Ok(None));
        assert_eq!(traffic.detectable_ratio(f64::NAN, 0.01), Ok(None));
        let plan = traffic.detection(2.0, 0.01).expect("valid");
        assert_eq!(plan.chance(0.0), 0.0);
        assert!(plan.chance(100.0) < 0.5);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert!(Traffic::new(0.0, 0.1, 1.0).is_err());
        assert!(Traffic::new(0.01, 1.0, 1.0).is_err());
        assert!(Traffic::new(0.01, 0.1, f64::NAN).is_err());
        let traffic = Traffic::new(0.01, 0.1, 1.0).expect("valid");
        assert!(traffic.detection(1.0, 0.01).is_err());
        assert!(traffic.detection(100.0, 0.01).is_err());
        assert!(traffic.detection(2.0, 0.0).is_err());
        assert!(traffic.non_inferiority(1.0, 0.05).is_err());
        assert!(traffic.non_inferiority(1.5, f64::NAN).is_err());
    }
}
