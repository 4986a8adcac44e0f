//! Evidence that may be looked at as often as one likes.
//!
//! Counts come in, one table per closed minute, and e-processes go out: the
//! chance that one ever exceeds `1/alpha` while its null hypothesis holds is at
//! most `alpha` (Ville's inequality), whenever and however often it is read.
//! All evidence is a natural logarithm: `0` is none, `ln(1/alpha)` decides.
//!
//! * `table`: the counts of both arms; `kernel`: their conditional likelihood
//! * `eprocess`: error rate and slow-request share, worse and not worse;
//!   `interval`: the odds ratio that is shown; `dispersion`: how far to trust it
//! * `rate_bound`: one arm alone; `acceptance`: margins in points, and the floor
//! * `paired`, `unpaired`: prediction errors; `split`: is traffic routed as configured
//! * `combine`: several metrics; `plan`, `course`: what a canary can show, beforehand
//!
//! Knows nothing of rules, stages, time or verdicts. The state of every test is
//! small, serialisable, and the same after a replay of its tables.

pub mod acceptance;
pub mod combine;
pub mod course;
pub mod dispersion;
pub mod eprocess;
pub mod interval;
pub mod paired;
pub mod plan;
pub mod rate_bound;
pub mod split;
pub mod table;
pub mod unpaired;

mod binomial;
mod kernel;
mod minimum;

#[cfg(test)]
pub(crate) mod vectors;

pub use self::dispersion::Dispersion;
pub use self::eprocess::ErrorTest;
pub use self::paired::{Pair, PairedTest, SignTest};
pub use self::rate_bound::{AbsoluteGuard, RateBound};
pub use self::split::SplitTest;
pub use self::table::{Arm, Table};
pub use self::unpaired::UnpairedTest;

/// Why an input cannot be evidence.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum InvalidInput {
    /// An arm counts more errors than requests.
    #[error("{errors} errors in {requests} requests: an arm cannot have more errors than requests")]
    MoreErrorsThanRequests {
        /// Requests counted.
        requests: u64,
        /// Errors counted.
        errors: u64,
    },
    /// A count is beyond what one table can hold.
    #[error("{requests} requests in one table: at most {} are counted", table::MAX_REQUESTS)]
    TooManyRequests {
        /// Requests counted.
        requests: u64,
    },
    /// A number is outside the range in which it has a meaning.
    #[error("{name} is {value}: it must be {wanted}")]
    OutOfRange {
        /// What the number is.
        name: &'static str,
        /// The number.
        value: f64,
        /// The range in words.
        wanted: &'static str,
    },
    /// The weights of several metrics promise more than one whole.
    #[error("the weights of the metrics sum to {sum}: at most 1 keeps the error bound")]
    WeightsExceedOne {
        /// Their sum.
        sum: f64,
    },
    /// There is nothing to combine or to compare.
    #[error("no {name} given")]
    Empty {
        /// What is missing.
        name: &'static str,
    },
    /// A stored state does not have the expected number of values.
    #[error("the stored state has {found} values, expected {expected}")]
    WrongLength {
        /// Values found.
        found: usize,
        /// Values expected.
        expected: usize,
    },
}

/// `value`, if `valid`; the range is named in the error.
pub(super) fn checked(
    name: &'static str,
    value: f64,
    valid: impl FnOnce(f64) -> bool,
    wanted: &'static str,
) -> Result<f64, InvalidInput> {
    if valid(value) { Ok(value) } else { Err(InvalidInput::OutOfRange { name, value, wanted }) }
}

/// An exponent for one increment of evidence: at most 1, so that the bound on
/// wrong decisions holds (Jensen); what is not a number adds no evidence.
fn tempering(exponent: f64) -> f64 {
    if exponent.is_nan() { 0.0 } else { exponent.clamp(0.0, 1.0) }
}

/// `ln sum_k w_k exp(x_k)` of `(w_k, x_k)`, without overflow. The weights sum to 1, each well above
/// rounding; as differences from the largest, so that no evidence is exactly 0.
fn log_mixture(terms: impl Iterator<Item = (f64, f64)> + Clone) -> f64 {
    let largest = terms.clone().map(|(_, x)| x).fold(f64::NEG_INFINITY, f64::max);
    largest + terms.map(|(w, x)| w * (x - largest).exp_m1()).sum::<f64>().ln_1p()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Serialize;
    use serde::de::DeserializeOwned;

    use super::*;

    fn stored<T: Serialize + DeserializeOwned>(state: &T) -> T {
        serde_json::from_str(&serde_json::to_string(state).expect("serialisable")).expect("readable")
    }

    proptest! {
        #[test]
        fn every_state_survives_storage(
            counts in prop::collection::vec((0..1000_u64, 0..1000_u64), 1..8),
            errors in prop::collection::vec((0.0..20.0_f64, 0.0..20.0_f64), 1..80),
        ) {
            let mut dispersion = Dispersion::default();
            let mut bound = RateBound::default();
            let mut guard = AbsoluteGuard::new(0.03).expect("valid");
            let mut split = SplitTest::new(0.3).expect("valid");
            for (n, e) in counts {
                let arm = Arm::new(n, e.min(n)).expect("valid");
                bound.observe(arm, dispersion.exponent());
                guard.observe(arm, dispersion.exponent());
                split.observe(&Table { canary: arm, stable: Arm::default() }, 0.9);
                dispersion.observe(arm);
            }
            let mut paired = PairedTest::new(9.0, 1.2).expect("valid");
            let mut unpaired = UnpairedTest::new(9.0, 2.0, 1.2).expect("valid");
            let mut sign = SignTest::default();
            for (canary, stable) in errors {
                paired.observe(&[Pair { canary, stable }]).expect("valid");
                unpaired.observe_canary(canary).expect("valid");
                unpaired.observe_stable(stable).expect("valid");
                sign.observe(canary - stable);
            }
            prop_assert_eq!(stored(&dispersion), dispersion);
            prop_assert_eq!(stored(&bound), bound);
            prop_assert_eq!(stored(&guard), guard);
            prop_assert_eq!(stored(&split), split);
            prop_assert_eq!(stored(&paired), paired);
            prop_assert_eq!(stored(&unpaired), unpaired);
            prop_assert_eq!(stored(&sign), sign);
        }
    }
}
