//! What other rules would have decided in past weeks, and what that would have
//! cost: gates and canaries are replayed on rows whose truth is known.
//!
//! A model is named by the week after which it was trained. The rows of the
//! weeks that followed, scored by candidate and champion alike, stand in for
//! the requests of a canary. Pure: what was trained and scored comes in, and
//! what is missing is named.
//!
//! * `policy`: ways to decide; `play`: one of them, week by week
//! * `tally`: what it came to, and its regret

mod play;
mod policy;
mod tally;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub use self::play::{Decided, Ending, Played, Stopped, play};
pub use self::policy::{Canary, Part, Policy, Rule, as_written, built_in};
pub use self::tally::{Tally, tally};

use super::gate::Holdout;
use super::id::MetricName;
use super::metric::Metrics;
use super::workflow::Better;

/// A week, and the model trained after it: counted from 0.
pub type Week = usize;

/// What was trained and scored so far.
#[derive(Debug, Clone, Default)]
pub struct Past {
    /// Oldest first.
    pub weeks: Vec<PastWeek>,
    /// By the week of the rows and the model: its errors there.
    pub scores: BTreeMap<(Week, Week), Scores>,
    /// Which direction of a metric is better.
    pub better: BTreeMap<MetricName, Better>,
}

/// One week.
#[derive(Debug, Clone, Default)]
pub struct PastWeek {
    /// The day after it, as a version would be called.
    pub name: String,
    /// Why the workflow's data check would have refused.
    pub refused: Option<String>,
    /// What the trainer said of the model it made; none when it failed.
    pub trained: Option<Metrics>,
}

/// One model on the rows of one week.
#[derive(Debug, Clone, Default)]
pub struct Scores {
    /// The week's own model and this one, on the week's rows: what a gate looks at.
    pub holdout: Holdout,
    /// Absolute errors of this model; none when the week's trainer failed.
    pub blocks: Vec<Block>,
    /// What a scoring command said of this model.
    pub champion: Option<Metrics>,
}

/// Rows whose errors move together: one day, one race.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Block {
    /// Its name.
    pub name: String,
    /// Absolute errors, in the order of the rows.
    pub errors: Vec<f64>,
}

impl Block {
    /// Its mean error; it has rows.
    pub fn mean(&self) -> f64 {
        self.errors.iter().sum::<f64>() / self.errors.len().max(1) as f64
    }
}

impl Scores {
    /// The sum of the errors, and their number.
    pub fn total(&self) -> (f64, usize) {
        let of_blocks = self.blocks.iter();
        of_blocks.fold((0.0, 0), |(sum, n), block| {
            (sum + block.errors.iter().sum::<f64>(), n + block.errors.len())
        })
    }
}

/// What is simulated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Setting {
    /// Weeks after a decision that say whether it was right.
    pub horizon: usize,
    /// Smaller differences count as none, as a part of the champion's error.
    pub worth: f64,
}

impl Default for Setting {
    fn default() -> Self {
        Self { horizon: 4, worth: 0.01 }
    }
}

/// Scores that are needed to go on: week of the rows, model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing(pub Vec<(Week, Week)>);

impl Past {
    /// The first week after which there was a model: it serves first, whatever the policy.
    pub fn first(&self) -> Option<Week> {
        self.weeks.iter().position(|week| week.trained.is_some())
    }

    fn need(&self, wanted: impl IntoIterator<Item = (Week, Week)>) -> Result<(), Missing> {
        let missing: Vec<_> = wanted.into_iter().filter(|key| !self.scores.contains_key(key)).collect();
        if missing.is_empty() { Ok(()) } else { Err(Missing(missing)) }
    }

    /// How much smaller the errors of `model` were than those of `champion` in the weeks `from` and after, as a
    /// part of the champion's; none without rows.
    fn improvement(&self, model: Week, champion: Week, weeks: std::ops::Range<Week>) -> Option<f64> {
        let total = |model: Week| {
            let scores = weeks.clone().filter_map(|week| self.scores.get(&(week, model)));
            scores.map(Scores::total).fold((0.0, 0), |all, one| (all.0 + one.0, all.1 + one.1))
        };
        let ((own, n), (before, _)) = (total(model), total(champion));
        (n > 0 && before > 0.0).then(|| 1.0 - own / before)
    }
}
