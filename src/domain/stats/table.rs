//! The counts of one closed minute, or of one longer table when traffic is small.

use serde::{Deserialize, Serialize};

use super::InvalidInput;

/// No arm of one table holds more requests; every count is then exact as `f64`.
pub const MAX_REQUESTS: u64 = 1_000_000_000_000;

/// Requests of one arm, and how many of them count as errors (or as slow).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Counts", into = "Counts")]
pub struct Arm {
    n: u64,
    e: u64,
}

/// As written in files: `{"n": 100, "e": 3}`.
#[derive(Serialize, Deserialize)]
struct Counts {
    n: u64,
    e: u64,
}

impl Arm {
    /// `e` errors in `n` requests.
    ///
    /// # Errors
    /// More errors than requests, or more than [`MAX_REQUESTS`].
    pub fn new(n: u64, e: u64) -> Result<Self, InvalidInput> {
        if e > n {
            return Err(InvalidInput::MoreErrorsThanRequests { requests: n, errors: e });
        }
        if n > MAX_REQUESTS {
            return Err(InvalidInput::TooManyRequests { requests: n });
        }
        Ok(Self { n, e })
    }

    /// Requests.
    pub fn n(self) -> u64 {
        self.n
    }

    /// Errors among them.
    pub fn e(self) -> u64 {
        self.e
    }

    /// Both counts together, for rows of one minute that arrive in parts.
    ///
    /// # Errors
    /// More than [`MAX_REQUESTS`] together.
    pub fn plus(self, other: Self) -> Result<Self, InvalidInput> {
        Self::new(self.n + other.n, self.e + other.e)
    }
}

impl TryFrom<Counts> for Arm {
    type Error = InvalidInput;

    fn try_from(counts: Counts) -> Result<Self, InvalidInput> {
        Self::new(counts.n, counts.e)
    }
}

impl From<Arm> for Counts {
    fn from(arm: Arm) -> Self {
        Self { n: arm.n, e: arm.e }
    }
}

/// Both arms over the same time. Once a test has observed it, it is final.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// The version on trial.
    pub canary: Arm,
    /// The version it is compared with.
    pub stable: Arm,
}

impl Table {
    /// The table with the roles exchanged.
    pub fn swapped(self) -> Self {
        Self { canary: self.stable, stable: self.canary }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arm_with_more_errors_than_requests_is_refused() {
        assert_eq!(Arm::new(3, 4), Err(InvalidInput::MoreErrorsThanRequests { requests: 3, errors: 4 }));
        assert!(Arm::new(3, 3).is_ok());
        let read = serde_json::from_str::<Arm>(r#"{"n": 3, "e": 4}"#);
        assert!(read.expect_err("refused").to_string().contains("4 errors in 3 requests"));
        assert!(serde_json::from_str::<Arm>(r#"{"n": 3, "e": -1}"#).is_err());
    }

    #[test]
    fn a_count_no_table_can_hold_is_refused() {
        assert_eq!(Arm::new(u64::MAX, 0), Err(InvalidInput::TooManyRequests { requests: u64::MAX }));
        let full = Arm::new(MAX_REQUESTS, 0).expect("fits");
        assert!(full.plus(full).is_err());
    }
}
