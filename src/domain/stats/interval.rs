//! The odds ratios that the evidence has not ruled out, for the screen.

use std::f64::consts::PI;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::InvalidInput;
use super::kernel::Conditional;
use super::minimum::golden_section;

/// The smallest odds ratio that is told apart; a lower limit here means "or less".
pub const ODDS_RATIO_MIN: f64 = 1e-3;
/// The largest odds ratio that is told apart; an upper limit here means "or more".
pub const ODDS_RATIO_MAX: f64 = 1e3;

const NODES: usize = 65;
/// A step of `ln psi` that is wide enough to tell rising from falling.
const SLOPE: f64 = 1e-3;
/// Enough to halve the range down to the last bit of a logarithm.
const BISECTIONS: usize = 60;

/// `ln psi` of the nodes, descending.
static POSITIONS: LazyLock<[f64; NODES]> = LazyLock::new(|| {
    std::array::from_fn(|i| ODDS_RATIO_MAX.ln() * (PI * i as f64 / (NODES - 1) as f64).cos())
});

/// The accumulated log-likelihood as a function of the odds ratio, by its values
/// at 65 Chebyshev points of `ln psi`.
///
/// The roots of a table's generating polynomial are real and negative, so the
/// log-likelihood is analytic for `|Im ln psi| < pi` and the interpolant through
/// these points is exact to about `1.55^-64`, a part in 10^12.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<f64>", into = "Vec<f64>")]
pub(super) struct LikelihoodCurve([f64; NODES]);

impl Default for LikelihoodCurve {
    fn default() -> Self {
        Self([0.0; NODES])
    }
}

impl LikelihoodCurve {
    /// Adds a table's log-likelihood, times `exponent`.
    pub(super) fn observe(&mut self, table: &Conditional, exponent: f64) {
        for (value, position) in self.0.iter_mut().zip(POSITIONS.iter()) {
            *value += exponent * table.log_probability(position.exp());
        }
    }

    /// The odds ratios at which the evidence `log_mixture - log_likelihood` stays below `limit`.
    ///
    /// The likelihood is log-concave in `ln psi`, so they are one interval
    /// around its peak.
    pub(super) fn range_below(&self, log_mixture: f64, limit: f64) -> (f64, f64) {
        // What cannot be compared is kept: the interval is then too wide, never too narrow.
        let ruled_out = |position: f64| log_mixture - self.at(position) >= limit;
        let peak = self.peak();
        let end = |outermost: f64| {
            if !ruled_out(outermost) {
                return None;
            }
            let (mut inside, mut outside) = (peak, outermost);
            for _ in 0..BISECTIONS {
                let middle = 0.5 * (inside + outside);
                if ruled_out(middle) { outside = middle } else { inside = middle }
            }
            Some(outside.exp().clamp(ODDS_RATIO_MIN, ODDS_RATIO_MAX))
        };
        (end(POSITIONS[NODES - 1]).unwrap_or(ODDS_RATIO_MIN), end(POSITIONS[0]).unwrap_or(ODDS_RATIO_MAX))
    }

    /// The evidence `log_mixture - log_likelihood` against odds ratios of `odds_ratio` and more; 0 where they are the
    /// likely ones. Beyond the range the evidence at its end counts, which is less.
    pub(super) fn log_e_below(&self, log_mixture: f64, odds_ratio: f64) -> f64 {
        if odds_ratio.is_nan() {
            return 0.0;
        }
        let position = odds_ratio.ln().min(POSITIONS[0]);
        // The likelihood is log-concave: where it falls, its peak is on the left.
        let falls = self.at(position) < self.at(position - SLOPE);
        if falls { log_mixture - self.at(position) } else { 0.0 }
    }

    /// Where the log-likelihood is largest, by golden section between the neighbours of the best node.
    fn peak(&self) -> f64 {
        let best = (0..NODES).fold(0, |best, i| if self.0[i] > self.0[best] { i } else { best });
        let (low, high) = (POSITIONS[(best + 1).min(NODES - 1)], POSITIONS[best.saturating_sub(1)]);
        golden_section(low, high, |position| -self.at(position))
    }

    /// The log-likelihood at `ln psi`: the barycentric formula of Berrut and Trefethen (2004).
    fn at(&self, position: f64) -> f64 {
        let (mut numerator, mut denominator) = (0.0, 0.0);
        for (i, (node, value)) in POSITIONS.iter().zip(self.0).enumerate() {
            let distance = position - node;
            if distance == 0.0 {
                return value;
            }
            let end = if i == 0 || i == NODES - 1 { 0.5 } else { 1.0 };
            let weight = if i % 2 == 0 { end } else { -end } / distance;
            numerator += weight * value;
            denominator += weight;
        }
        numerator / denominator
    }
}

impl TryFrom<Vec<f64>> for LikelihoodCurve {
    type Error = InvalidInput;

    fn try_from(values: Vec<f64>) -> Result<Self, InvalidInput> {
        let found = values.len();
        values.try_into().map(Self).map_err(|_| InvalidInput::WrongLength { found, expected: NODES })
    }
}

impl From<LikelihoodCurve> for Vec<f64> {
    fn from(curve: LikelihoodCurve) -> Self {
        curve.0.to_vec()
    }
}
