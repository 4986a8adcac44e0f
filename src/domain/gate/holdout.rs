//! A holdout scored by candidate and champion, summed by time block and segment.
//!
//! The sums are all that MAE, RMSE and R² need, so memory grows with blocks and
//! segments, not with rows, and a bootstrap over blocks adds sums, not rows.

use std::collections::BTreeMap;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use super::super::id::MetricName;
use super::super::metric::{Metrics, SegmentMetrics};

/// Sums kept, one per block and segment.
const MOST_SUMS: usize = 200_000;

/// A row that cannot be counted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// A number is NaN or infinite.
    #[error("`{column}` is not finite")]
    NotFinite {
        /// Which.
        column: &'static str,
    },
    /// More blocks and segments than fit.
    #[error("there are more than {MOST_SUMS} pairs of block and segment; use coarser blocks, such as days")]
    TooManyBlocks,
}

/// Metrics that can be computed from rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Score {
    Mae,
    Rmse,
    R2,
}

impl Score {
    pub(super) fn named(name: &MetricName) -> Option<Self> {
        match name.as_str() {
            "mae" => Some(Score::Mae),
            "rmse" => Some(Score::Rmse),
            "r2" => Some(Score::R2),
            _ => None,
        }
    }
}

/// Whose predictions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arm {
    Candidate,
    Champion,
}

/// A scored holdout.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Holdout {
    blocks: BTreeMap<String, BTreeMap<String, Sums>>,
    sums: usize,
    /// The first actual value: sums of squares around it keep their digits.
    origin: Option<f64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Sums {
    n: f64,
    champion_n: f64,
    /// Sum of absolute errors, and of their squares.
    candidate: (f64, f64),
    champion: (f64, f64),
    /// Sum of actual values from the origin, and of their squares.
    actual: (f64, f64),
}

impl Sums {
    fn add(&mut self, other: &Sums) {
        self.n += other.n;
        self.champion_n += other.champion_n;
        for (sum, more) in [
            (&mut self.candidate, other.candidate),
            (&mut self.champion, other.champion),
            (&mut self.actual, other.actual),
        ] {
            sum.0 += more.0;
            sum.1 += more.1;
        }
    }

    /// `None` when there are no rows, the arm did not predict them all, or the score is undefined.
    fn score(&self, score: Score, arm: Arm) -> Option<f64> {
        let (n, errors) = match arm {
            Arm::Candidate => (self.n, self.candidate),
            Arm::Champion => (self.champion_n, self.champion),
        };
        if n == 0.0 || n != self.n {
            return None;
        }
        let value = match score {
            Score::Mae => errors.0 / n,
            Score::Rmse => (errors.1 / n).sqrt(),
            Score::R2 => {
                let spread = self.actual.1 - self.actual.0 * self.actual.0 / n;
                // Equal values have no spread but for rounding: then R² is undefined.
                if spread <= self.actual.1 * 1e-12 {
                    return None;
                }
                1.0 - errors.1 / spread
            }
        };
        value.is_finite().then_some(value)
    }
}

impl Holdout {
    /// Adds one row. An empty segment is none.
    pub fn row(
        &mut self,
        block: &str,
        segment: &str,
        actual: f64,
        predicted: f64,
        champion_predicted: Option<f64>,
    ) -> Result<(), RowError> {
        for (column, value) in [
            ("actual", Some(actual)),
            ("predicted", Some(predicted)),
            ("champion_predicted", champion_predicted),
        ] {
            if value.is_some_and(|value| !value.is_finite()) {
                return Err(RowError::NotFinite { column });
            }
        }
        let origin = *self.origin.get_or_insert(actual);
        let of = |predicted: f64| ((predicted - actual).abs(), (predicted - actual).powi(2));
        let row = Sums {
            n: 1.0,
            champion_n: if champion_predicted.is_some() { 1.0 } else { 0.0 },
            candidate: of(predicted),
            champion: champion_predicted.map_or((0.0, 0.0), of),
            actual: (actual - origin, (actual - origin).powi(2)),
        };
        if let Some(sums) = self.blocks.get_mut(block).and_then(|block| block.get_mut(segment)) {
            sums.add(&row);
            return Ok(());
        }
        if self.sums == MOST_SUMS {
            return Err(RowError::TooManyBlocks);
        }
        self.sums += 1;
        self.blocks.entry(block.to_owned()).or_default().insert(segment.to_owned(), row);
        Ok(())
    }

    /// MAE, RMSE and R² of the candidate, over all rows and by segment; what is undefined is left out.
    pub fn metrics(&self) -> Metrics {
        let values = |segment: Option<&str>| {
            let scores = [("mae", Score::Mae), ("rmse", Score::Rmse), ("r2", Score::R2)];
            let scored = scores.into_iter().filter_map(|(name, score)| {
                Some((name.parse().ok()?, self.score(score, segment, Arm::Candidate)?))
            });
            scored.collect::<BTreeMap<MetricName, f64>>()
        };
        let of_segment = |segment: &str| SegmentMetrics {
            values: values(Some(segment)),
            n: Some(self.rows(Some(segment))),
        };
        let segments = self.segments().into_iter().map(|segment| (segment.to_owned(), of_segment(segment)));
        Metrics { values: values(None), n: Some(self.rows(None)), segments: segments.collect() }
    }

    /// Names of the segments, without the empty one.
    pub fn segments(&self) -> std::collections::BTreeSet<&str> {
        let names = self.blocks.values().flat_map(BTreeMap::keys).map(String::as_str);
        names.filter(|name| !name.is_empty()).collect()
    }

    /// Rows, of one segment or of all.
    pub fn rows(&self, segment: Option<&str>) -> u64 {
        self.total(segment).n as u64
    }

    /// Names of the blocks, with their rows.
    pub(super) fn blocks(&self) -> impl Iterator<Item = (&str, u64)> {
        let rows = |block: &BTreeMap<String, Sums>| block.values().map(|sums| sums.n).sum::<f64>() as u64;
        self.blocks.iter().map(move |(name, block)| (name.as_str(), rows(block)))
    }

    /// Rows that the champion predicted, too.
    pub(super) fn champion_rows(&self, segment: Option<&str>) -> u64 {
        self.total(segment).champion_n as u64
    }

    pub(super) fn score(&self, score: Score, segment: Option<&str>, arm: Arm) -> Option<f64> {
        self.total(segment).score(score, arm)
    }

    fn total(&self, segment: Option<&str>) -> Sums {
        self.by_block(segment).iter().fold(Sums::default(), |mut total, block| {
            total.add(block);
            total
        })
    }

    /// One sum per block that has rows.
    fn by_block(&self, segment: Option<&str>) -> Vec<Sums> {
        let of_block = |block: &BTreeMap<String, Sums>| match segment {
            Some(segment) => block.get(segment).copied().unwrap_or_default(),
            None => block.values().fold(Sums::default(), |mut total, sums| {
                total.add(sums);
                total
            }),
        };
        self.blocks.values().map(of_block).filter(|sums| sums.n > 0.0).collect()
    }

    /// Paired block bootstrap: whole time blocks are drawn with replacement, candidate and champion
    /// together, and `change` of both scores is computed for each of `resamples` draws.
    ///
    /// Rows of one block are not independent (one storm delays all its flights); blocks are taken to
    /// be. Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), 8.6 and 13.3.
    /// A draw in which a score is undefined is `None`. The same seed gives the same draws everywhere.
    pub(super) fn bootstrap(
        &self,
        score: Score,
        segment: Option<&str>,
        resamples: usize,
        seed: u64,
        change: impl Fn(f64, f64) -> Option<f64>,
    ) -> Bootstrap {
        let blocks = self.by_block(segment);
        let count = u32::try_from(blocks.len()).unwrap_or(u32::MAX);
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        let draw = |_| {
            let mut total = Sums::default();
            for _ in 0..count {
                total.add(&blocks[random.random_range(0..count) as usize]);
            }
            let candidate = total.score(score, Arm::Candidate)?;
            let champion = total.score(score, Arm::Champion)?;
            change(candidate, champion).filter(|change| change.is_finite())
        };
        let changes = if count == 0 { Vec::new() } else { (0..resamples).map(draw).collect() };
        Bootstrap { blocks: blocks.len(), changes }
    }
}

/// Draws of a bootstrap.
pub(super) struct Bootstrap {
    pub(super) blocks: usize,
    changes: Vec<Option<f64>>,
}

impl Bootstrap {
    /// Percentile bounds, each one-sided at its confidence, lower and upper. Undefined draws count against either
    /// conclusion: they lie below the lower and above the upper bound.
    pub(super) fn bounds(&self, lower: f64, upper: f64) -> Option<(f64, f64)> {
        let at = |undefined: f64, share: f64| {
            let mut sorted: Vec<f64> =
                self.changes.iter().map(|change| change.unwrap_or(undefined)).collect();
            sorted.sort_by(f64::total_cmp);
            let last = sorted.len().checked_sub(1)?;
            let place = (share * last as f64).clamp(0.0, last as f64);
            // Outwards, so that a small number of draws never narrows the interval.
            let place = if undefined > 0.0 { place.ceil() } else { place.floor() };
            sorted.get(place as usize).copied()
        };
        Some((at(f64::NEG_INFINITY, 1.0 - lower)?, at(f64::INFINITY, upper)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holdout(rows: &[(&str, &str, f64, f64, f64)]) -> Holdout {
        let mut holdout = Holdout::default();
        for (block, segment, actual, predicted, champion) in rows {
            holdout.row(block, segment, *actual, *predicted, Some(*champion)).expect("finite");
        }
        holdout
    }

    #[test]
    fn scores_are_those_of_the_textbook() {
        let rows = [
            ("a", "", 3.0, 2.5, 3.0),
            ("a", "", -0.5, 0.0, -0.5),
            ("b", "", 2.0, 2.0, 2.0),
            ("b", "", 7.0, 8.0, 6.0),
        ];
        let holdout = holdout(&rows);
        // The example of scikit-learn's documentation of r2_score and mean_absolute_error.
        let score = |score| holdout.score(score, None, Arm::Candidate).expect("defined");
        assert!((score(Score::Mae) - 0.5).abs() < 1e-12);
        assert!((score(Score::Rmse) - 0.375_f64.sqrt()).abs() < 1e-12);
        assert!((score(Score::R2) - 0.948_608_137).abs() < 1e-9);
        assert_eq!(holdout.score(Score::Mae, None, Arm::Champion), Some(0.25));
    }

    #[test]
    fn r2_keeps_its_digits_far_from_zero_and_is_undefined_without_spread() {
        let far = holdout(&[("a", "", 1e9, 1e9, 1e9), ("a", "", 1e9 + 1.0, 1e9, 1e9)]);
        let value = far.score(Score::R2, None, Arm::Candidate).expect("defined");
        assert!((value + 1.0).abs() < 1e-6, "{value}");
        let flat = holdout(&[("a", "", 0.1, 0.3, 0.2), ("a", "", 0.1, 0.3, 0.2)]);
        assert_eq!(flat.score(Score::R2, None, Arm::Candidate), None);
    }

    #[test]
    fn a_champion_that_misses_rows_has_no_score() {
        let mut some = holdout(&[("a", "", 1.0, 1.0, 1.0)]);
        some.row("a", "", 2.0, 2.0, None).expect("finite");
        assert_eq!(some.score(Score::Mae, None, Arm::Champion), None);
        assert_eq!(some.champion_rows(None), 1);
        assert_eq!(some.rows(None), 2);
    }

    #[test]
    fn rows_that_are_not_finite_are_refused() {
        let mut holdout = Holdout::default();
        assert_eq!(
            holdout.row("a", "", 1.0, f64::NAN, None),
            Err(RowError::NotFinite { column: "predicted" })
        );
        holdout.row("a", "", 1.0, 1.0, Some(f64::INFINITY)).expect_err("not finite");
        assert_eq!(holdout.rows(None), 0);
    }

    #[test]
    fn the_same_seed_draws_the_same() {
        let rows: Vec<(String, f64)> = (0..30).map(|day| (day.to_string(), f64::from(day % 7))).collect();
        let mut holdout = Holdout::default();
        for (day, error) in &rows {
            holdout.row(day, "", 0.0, *error, Some(error + 1.0)).expect("finite");
        }
        let bounds = |seed| {
            let change = |candidate: f64, champion: f64| Some(candidate - champion);
            holdout.bootstrap(Score::Mae, None, 2000, seed, change).bounds(0.95, 0.95)
        };
        assert_eq!(bounds(1), bounds(1));
        // Paired: the difference is the same in every block, so there is nothing to be unsure of.
        let (lower, upper) = bounds(2).expect("draws");
        assert!((lower + 1.0).abs() < 1e-9 && (upper + 1.0).abs() < 1e-9);
    }
}
