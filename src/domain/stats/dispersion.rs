//! How much more the errors of the stable arm vary than independent requests would.

use serde::{Deserialize, Serialize};

use super::table::Arm;
use super::{InvalidInput, checked};

/// Tables' worth of belief that errors are independent, before any is seen.
const PRIOR: f64 = 10.0;
/// No single pair of tables counts for more: an outage is not clustering.
const CAP: f64 = 50.0;
/// A cluster of so many errors in one table counts in full, however few are expected.
///
/// Where a pair of tables expects less than one error, a cluster of three is already at [`CAP`], and
/// most of the clustering would be cut off with the outages: 17 % false rollbacks at a nominal 5 %
/// (0.1 % errors, clusters of three on average, 100 requests a minute), 5 % with this. Its price: half
/// an hour in which 30 % fail, in the 12 hours before such a canary, halves its evidence (phi 2.1; 1.2
/// with the cap alone).
const CLUSTER: f64 = 15.0;

/// Over-dispersion of the stable arm from successive differences, which a slow
/// drift of the rate does not move.
///
/// Retries and one bad client make errors come in clusters; untempered, they
/// give 31 to 50 % false rollbacks at a nominal 5 %. Feed it at least 12 hours
/// of the stable arm before the canary.
///
/// `phi = (10 + sum_t min(cap_t, (r_t - r_{t-1})^2 / (p (1-p) (1/n_t + 1/n_{t-1})))) / (10 + count)`,
/// p the rate so far, `cap_t = max(50, 15^2 / (p (n_t + n_{t-1})))`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Dispersion {
    requests: u64,
    errors: u64,
    previous: Option<Arm>,
    sum: f64,
    count: u64,
    /// Known from elsewhere: nothing is learnt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    known: Option<f64>,
}

impl Dispersion {
    /// One that is known, and that no table changes; 1 for requests that fail independently.
    ///
    /// # Errors
    /// A dispersion that is not finite or below 0.
    pub fn known(phi: f64) -> Result<Self, InvalidInput> {
        let phi = checked("dispersion", phi, |phi| phi.is_finite() && phi >= 0.0, "0 or more")?;
        Ok(Self { known: Some(phi), ..Self::default() })
    }

    /// Adds one closed table of the stable arm. No requests change nothing, and
    /// while every request so far ended alike there is no variation to measure.
    pub fn observe(&mut self, stable: Arm) {
        if stable.n() == 0 || self.known.is_some() {
            return;
        }
        self.requests = self.requests.saturating_add(stable.n());
        self.errors = self.errors.saturating_add(stable.e());
        let previous = self.previous.replace(stable);
        if let Some(previous) = previous
            && (1..self.requests).contains(&self.errors)
        {
            let p = self.errors as f64 / self.requests as f64;
            let difference = rate(stable) - rate(previous);
            let expected = p * (1.0 - p) * ((stable.n() as f64).recip() + (previous.n() as f64).recip());
            let errors = p * (stable.n() + previous.n()) as f64;
            self.sum += (difference * difference / expected).min(CAP.max(CLUSTER * CLUSTER / errors));
            self.count += 1;
        }
    }

    /// Variance relative to independent requests; 1 before anything is known.
    pub fn phi(&self) -> f64 {
        self.known.unwrap_or((PRIOR + self.sum) / (PRIOR + self.count as f64))
    }

    /// What the next table's log evidence is multiplied by: `1 / max(1, phi)`.
    pub fn exponent(&self) -> f64 {
        self.phi().max(1.0).recip()
    }
}

/// Errors per request; `arm` has requests.
fn rate(arm: Arm) -> f64 {
    arm.e() as f64 / arm.n() as f64
}

#[cfg(test)]
mod tests {
    use super::super::vectors::{assert_close, number, rows};
    use super::*;

    fn arm(n: u64, e: u64) -> Arm {
        Arm::new(n, e).expect("valid")
    }

    #[test]
    fn phi_matches_the_reference() {
        // The file lists every other minute of five; the two between are the only
        // whole counts that lead to its values.
        let between = [arm(905, 2), arm(900, 1)];
        let mut dispersion = Dispersion::default();
        for (i, row) in rows("D_phi").into_iter().enumerate() {
            if i > 0 {
                dispersion.observe(between[i - 1]);
            }
            dispersion.observe(arm(number(&row, "ns") as u64, number(&row, "es") as u64));
            assert_close(dispersion.phi(), number(&row, "phi"), &row);
            assert_close(dispersion.exponent(), number(&row, "exponent"), &row);
        }
    }

    #[test]
    fn calm_traffic_is_not_rewarded() {
        let mut dispersion = Dispersion::default();
        for _ in 0..1000 {
            dispersion.observe(arm(100, 1));
        }
        assert!(dispersion.phi() < 0.1);
        assert_eq!(dispersion.exponent(), 1.0);
    }

    #[test]
    fn one_outage_counts_for_two_differences_at_most() {
        let mut dispersion = Dispersion::default();
        for i in 0..100 {
            dispersion.observe(arm(1000, if i == 50 { 1000 } else { 10 }));
        }
        assert!(dispersion.phi() <= (PRIOR + 2.0 * CAP) / (PRIOR + 99.0));
    }

    #[test]
    fn rare_clusters_are_seen_in_full() {
        // One request in a thousand fails, in clusters of five: one minute in fifty of a hundred requests.
        let mut dispersion = Dispersion::default();
        for minute in 0..1000 {
            dispersion.observe(arm(100, if minute % 50 == 0 { 5 } else { 0 }));
        }
        assert!((4.0..6.0).contains(&dispersion.phi()), "{}", dispersion.phi());
    }

    #[test]
    fn an_outage_of_a_service_that_rarely_fails_leaves_most_of_the_evidence() {
        let mut dispersion = Dispersion::default();
        for minute in 0..720 {
            let errors = if (300..330).contains(&minute) { 30 } else { u64::from(minute % 10 == 0) };
            dispersion.observe(arm(100, errors));
        }
        assert!(dispersion.phi() < 3.0, "{}", dispersion.phi());
    }

    #[test]
    fn no_requests_and_no_variation_change_nothing() {
        let mut dispersion = Dispersion::default();
        for table in [arm(0, 0), arm(10, 0), arm(20, 0)] {
            dispersion.observe(table);
        }
        assert_eq!(dispersion.phi(), 1.0);
        let before = dispersion.clone();
        dispersion.observe(arm(0, 0));
        assert_eq!(dispersion, before);
    }
}
