//! Prediction errors of both versions over rows that are all there at once:
//! the bets of a canary, made in one go.

use super::super::Timestamp;
use super::super::evidence::{PairedError, ScoredRow};
use super::super::stats::InvalidInput;
use super::super::workflow::step::CompareRule;
use super::blocks::{Blocks, Clip, Closing};
use super::rules::MeanTest;

/// What the rows say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairedErrors {
    /// Blocks that were bet on; the first ones set the scale.
    pub blocks: u64,
    /// Mean absolute errors over them, of the canary and of the stable version.
    pub means: (f64, f64),
    /// `ln E` that the canary is worse.
    pub log_e_worse: f64,
    /// `ln E` that it is not worse by the margin.
    pub log_e_non_inferior: f64,
}

/// Tests rows in their order; none when they are too few to set a scale and bet on.
///
/// # Errors
/// A rule whose margin has no meaning.
pub fn paired_errors(rows: &[ScoredRow], rule: &CompareRule) -> Result<Option<PairedErrors>, InvalidInput> {
    let mut blocks = Blocks::default();
    for (row, seq) in rows.iter().zip(1..) {
        let at = Timestamp::MIN_UTC;
        let pair = PairedError {
            seq,
            request_id: row.id.clone(),
            block: row.block.clone(),
            canary: row.canary,
            stable: row.stable,
            at,
            served_at: None,
        };
        blocks.add(&pair, at);
    }
    let (mut clip, mut test) = (Clip::default(), MeanTest::default());
    for block in blocks.close(Timestamp::MAX_UTC, Closing::Next) {
        match clip.bound() {
            Some(bound) => test.observe(rule, bound, &block)?,
            None => {
                clip.learn(&block);
                clip.freeze();
            }
        }
    }
    let (Some(tests), Some(means)) = (&test.tests, test.means()) else { return Ok(None) };
    Ok(Some(PairedErrors {
        blocks: test.blocks,
        means,
        log_e_worse: tests.test.log_e_worse(),
        log_e_non_inferior: tests.test.log_e_non_inferior(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::workflow::step::OnlineMetric;

    fn rows(factor: f64, count: usize, per_block: usize) -> Vec<ScoredRow> {
        let row = |place: usize| {
            let stable = 1.0 + (place * 7 % 10) as f64;
            let block = (per_block > 1).then(|| (place / per_block).to_string());
            ScoredRow {
                id: place.to_string(),
                block,
                served_at: None,
                truth: 0.0,
                stable,
                canary: factor * stable,
            }
        };
        (0..count).map(row).collect()
    }

    fn tested(rows: &[ScoredRow]) -> Option<PairedErrors> {
        paired_errors(rows, &CompareRule::of(OnlineMetric::AbsError)).expect("valid")
    }

    #[test]
    fn a_worse_canary_is_found_in_rows_and_in_blocks_of_them() {
        let single = tested(&rows(2.0, 300, 1)).expect("enough");
        assert_eq!(single.blocks, 250);
        assert!(single.log_e_worse > 4.0 && single.log_e_non_inferior < 0.0, "{single:?}");
        assert!((single.means.0 / single.means.1 - 2.0).abs() < 1e-9);
        let blocks = tested(&rows(1.5, 300, 10)).expect("enough");
        assert_eq!(blocks.blocks, 23);
    }

    #[test]
    fn equal_errors_speak_for_it_and_few_rows_for_nothing() {
        let equal = tested(&rows(1.0, 1000, 1)).expect("enough");
        assert!(equal.log_e_worse == 0.0 && equal.log_e_non_inferior > 3.0, "{equal:?}");
        assert_eq!(tested(&rows(9.0, 50, 1)), None, "all of them set the scale");
        assert_eq!(tested(&[]), None);
    }
}
