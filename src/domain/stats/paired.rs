//! Both versions scored on the same requests: bets on the difference of their errors.
//!
//! Waudby-Smith and Ramdas, "Estimating means of bounded random variables by
//! betting" (2024). Exact for any distribution of errors.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use super::{InvalidInput, checked, log_mixture};

/// Shares of the wealth that are bet, with equal weights.
const STAKES: [f64; 7] = [0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8];

/// Probabilities that a decided pair goes against the canary, with equal weights.
const SIGNS: [f64; 4] = [0.55, 0.6, 0.7, 0.85];

/// Wealth of a bettor against "the mean is at most 0", for values within -1 to 1.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Betting {
    log_wealth: [f64; STAKES.len()],
}

impl Betting {
    /// Bets on one value.
    ///
    /// # Errors
    /// A value outside -1 to 1.
    pub fn observe(&mut self, value: f64) -> Result<(), InvalidInput> {
        let value = checked("difference", value, |d| (-1.0..=1.0).contains(&d), "within -1 and 1")?;
        for (wealth, stake) in self.log_wealth.iter_mut().zip(STAKES) {
            *wealth += (stake * value).ln_1p();
        }
        Ok(())
    }

    /// `ln E` against "the mean is at most 0".
    pub fn log_e(&self) -> f64 {
        log_mixture(self.log_wealth.iter().map(|wealth| ((STAKES.len() as f64).recip(), *wealth)))
    }
}

/// The absolute prediction errors of both versions on one request.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// Of the version on trial; 0 or more, in the unit of the prediction.
    pub canary: f64,
    /// Of the version it is compared with.
    pub stable: f64,
}

/// Is the canary's mean absolute error larger, or is it not larger by more than the margin?
///
/// Errors are clipped at a bound frozen before the canary (the stable arm's
/// 99.5 % quantile), so that one absurd prediction is one bad prediction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PairedTest {
    clip: f64,
    margin: f64,
    worse: Betting,
    non_inferior: Betting,
    pairs: u64,
}

impl PairedTest {
    /// No evidence yet. `clip` is in the unit of the prediction; `margin` is the
    /// ratio of mean errors at which the canary is too much worse: 1.1 for 10 %.
    ///
    /// # Errors
    /// A clip bound that is not positive and finite; a margin outside 1 to 1000.
    pub fn new(clip: f64, margin: f64) -> Result<Self, InvalidInput> {
        Ok(Self {
            clip: checked("clip bound", clip, |b| b.is_normal() && b > 0.0, "positive and finite")?,
            margin: checked("margin", margin, |m| (1.0..=1000.0).contains(&m), "a ratio from 1 to 1000")?,
            worse: Betting::default(),
            non_inferior: Betting::default(),
            pairs: 0,
        })
    }

    /// Adds one block of pairs (one race, one day; one request if they are
    /// independent). Pairs of a block may depend on each other: they are one bet,
    /// on their mean. An empty block changes nothing; an infinite error is clipped.
    ///
    /// # Errors
    /// An error that is negative or not a number; nothing of the block is then added.
    pub fn observe(&mut self, block: &[Pair]) -> Result<(), InvalidInput> {
        if block.is_empty() {
            return Ok(());
        }
        let (mut worse, mut non_inferior) = (0.0, 0.0);
        for pair in block {
            let canary = clipped_share(pair.canary, self.clip)?;
            let stable = clipped_share(pair.stable, self.clip)?;
            worse += canary - stable;
            non_inferior += (self.margin * stable - canary) / self.margin;
        }
        let size = block.len() as f64;
        // Rounding of the mean must not leave the range of a bet.
        self.worse.observe((worse / size).clamp(-1.0, 1.0))?;
        self.non_inferior.observe((non_inferior / size).clamp(-1.0, 1.0))?;
        self.pairs += block.len() as u64;
        Ok(())
    }

    /// Pairs seen.
    pub fn pairs(&self) -> u64 {
        self.pairs
    }

    /// `ln E` against "the canary's mean clipped error is at most the stable one".
    pub fn log_e_worse(&self) -> f64 {
        self.worse.log_e()
    }

    /// `ln E` against "the canary's mean clipped error is at least `margin` times the stable one".
    pub fn log_e_non_inferior(&self) -> f64 {
        self.non_inferior.log_e()
    }
}

/// The error as a share of the clip bound, at most 1.
fn clipped_share(error: f64, clip: f64) -> Result<f64, InvalidInput> {
    Ok(checked("prediction error", error, |e| e >= 0.0, "0 or more")?.min(clip) / clip)
}

/// How often the canary had the larger value, ties left out: robust to any
/// outlier, and for rollback only. Also for minutes of which only averages are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SignTest {
    against: u64,
    decided: u64,
}

impl SignTest {
    /// Adds one difference, canary minus stable; 0 is a tie and, like what is not a number, counts for nothing.
    pub fn observe(&mut self, difference: f64) {
        let (against, decided) = match difference.partial_cmp(&0.0) {
            Some(Ordering::Greater) => (1, 1),
            Some(Ordering::Less) => (0, 1),
            Some(Ordering::Equal) | None => (0, 0),
        };
        self.against += against;
        self.decided += decided;
    }

    /// `ln E` against "the canary is larger in at most half of the decided cases".
    pub fn log_e_worse(&self) -> f64 {
        let against = self.against as f64;
        let in_favour = self.decided.saturating_sub(self.against) as f64;
        let weight = (SIGNS.len() as f64).recip();
        log_mixture(
            SIGNS.iter().map(|t| (weight, against * (2.0 * t).ln() + in_favour * (2.0 * (1.0 - t)).ln())),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::vectors::{assert_close, number, numbers, rows};
    use super::*;

    #[test]
    fn betting_matches_the_reference() {
        for section in rows("H_paired_betting") {
            assert_eq!(numbers(&section, "lambda_"), STAKES);
            let mut betting = Betting::default();
            for row in section["rows"].as_array().expect("rows") {
                betting.observe(number(row, "d")).expect("within -1 and 1");
                assert_close(betting.log_e(), number(row, "log_E"), row);
            }
        }
        assert!(Betting::default().observe(1.1).is_err());
    }

    #[test]
    fn the_sign_test_matches_the_reference() {
        for row in rows("I_sign") {
            let (wins, n) = (number(&row, "wins") as u64, number(&row, "n") as u64);
            let mut test = SignTest::default();
            for i in 0..n {
                test.observe(if i < wins { 1.0 } else { -1.0 });
            }
            assert_close(test.log_e_worse(), number(&row, "log_E"), &row);
        }
    }

    fn pair(canary: f64, stable: f64) -> Pair {
        Pair { canary, stable }
    }

    #[test]
    fn a_worse_canary_is_found_and_an_equal_one_is_cleared() {
        let mut worse = PairedTest::new(10.0, 1.2).expect("valid");
        let mut equal = worse.clone();
        for i in 0..400 {
            let noise = f64::from(i % 7);
            worse.observe(&[pair(3.0 + noise, 1.0 + noise)]).expect("valid");
            equal.observe(&[pair(2.0 + noise, 2.0 + noise)]).expect("valid");
        }
        assert!(worse.log_e_worse() > 20.0);
        assert!(worse.log_e_non_inferior() < 0.0);
        assert_eq!(equal.log_e_worse(), 0.0);
        assert!(equal.log_e_non_inferior() > 20.0);
    }

    #[test]
    fn one_block_is_one_bet() {
        let mut block = PairedTest::new(1.0, 1.5).expect("valid");
        let mut mean = block.clone();
        block.observe(&[pair(0.9, 0.1), pair(0.5, 0.3)]).expect("valid");
        mean.observe(&[pair(0.7, 0.2)]).expect("valid");
        assert!((block.log_e_worse() - mean.log_e_worse()).abs() < 1e-15);
        assert!((block.log_e_non_inferior() - mean.log_e_non_inferior()).abs() < 1e-15);
        assert_eq!(block.pairs(), 2);
    }

    #[test]
    fn an_absurd_error_is_clipped_and_garbage_is_refused_whole() {
        let mut test = PairedTest::new(2.0, 1.5).expect("valid");
        test.observe(&[pair(f64::INFINITY, 0.0)]).expect("clipped");
        let mut clipped = PairedTest::new(2.0, 1.5).expect("valid");
        clipped.observe(&[pair(2.0, 0.0)]).expect("valid");
        assert_eq!(test, clipped);
        assert!(test.observe(&[pair(1.0, 1.0), pair(f64::NAN, 1.0)]).is_err());
        assert!(test.observe(&[pair(1.0, -0.1)]).is_err());
        test.observe(&[]).expect("nothing");
        assert_eq!(test, clipped);
        assert!(PairedTest::new(0.0, 1.5).is_err());
        assert!(PairedTest::new(f64::INFINITY, 1.5).is_err());
        assert!(PairedTest::new(1.0, 0.9).is_err());
    }

    #[test]
    fn a_tie_has_no_sign() {
        let mut test = SignTest::default();
        for difference in [0.0, -0.0, f64::NAN] {
            test.observe(difference);
        }
        assert_eq!(test, SignTest::default());
        for _ in 0..30 {
            test.observe(0.1);
        }
        assert!(test.log_e_worse() > 10.0);
    }
}
