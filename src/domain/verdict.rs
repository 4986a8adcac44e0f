//! What a check concluded. "Cannot tell" and "could not measure" are verdicts
//! of their own: a check without evidence does not pass.

use serde::{Deserialize, Serialize};

/// From best to worst, so the worst of several is their maximum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The check holds.
    Pass,
    /// There is not enough evidence to tell.
    Inconclusive,
    /// The check could not be made.
    Error,
    /// The check does not hold.
    Fail,
}

impl Verdict {
    /// The word used in files, databases and expressions.
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Pass => "pass",
            Verdict::Inconclusive => "inconclusive",
            Verdict::Error => "error",
            Verdict::Fail => "fail",
        }
    }
}

/// The worst of several verdicts; of none, `Inconclusive`.
pub fn overall(verdicts: impl IntoIterator<Item = Verdict>) -> Verdict {
    verdicts.into_iter().max().unwrap_or(Verdict::Inconclusive)
}
