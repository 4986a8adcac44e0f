//! How much more the errors of the stable arm vary than independent requests would.

use serde::{Deserialize, Serialize};

use super::table::Arm;

/// Tables' worth of belief that errors are independent, before any is seen.
const PRIOR: f64 = 10.0;
/// No single pair of tables counts for more: an outage is not clustering.
const CAP: f64 = 50.0;

/// Over-dispersion of the stable arm from successive differences, which a slow
/// drift of the rate does not move.
///
/// Retries and one bad client make errors come in clusters; untempered, they
/// give 31 to 50 % false rollbacks at a nominal 5 %. Feed it at least 12 hours
/// of the stable arm before the canary.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Dispersion {
    requests: u64,
    errors: u64,
    previous: Option<Arm>,
    sum: f64,
    count: u64,
}

impl Dispersion {
    /// Adds one closed table of the stable arm. No requests change nothing, and
    /// while every request so far ended alike there is no variation to measure.
    pub fn observe(&mut self, stable: Arm) {
        if stable.n() == 0 {
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
            self.sum += (difference * difference / expected).min(CAP);
            self.count += 1;
        }
    }

    /// Variance relative to independent requests; 1 before anything is known.
    pub fn phi(&self) -> f64 {
        (PRIOR + self.sum) / (PRIOR + self.count as f64)
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
