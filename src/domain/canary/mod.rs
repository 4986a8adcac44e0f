//! Canary analysis: is the challenger worse than the champion?
//!
//! Knows nothing of hosting, HTTP or the wall clock. Minutes of evidence come
//! in, a verdict goes out. `look` is the one function that decides; controller
//! and `compare` go by its record.
//!
//! * `minutes`: minutes become tables; `blocks`: pairs of errors become bets
//! * `labels`: which truths count, and how many are missing
//! * `rules`: the tests of one rule; `analysis`: what was read and what is frozen
//! * `look`: what follows; `words`: why, with numbers; `view`: what is shown
//! * `forecast`: what a canary can show, beforehand; `play`: by playing it through
//! * `paired`: the test of prediction errors over rows that are there at once
//! * `advice`: what prediction errors alone would decide
//! * `replay`: the same tests and limits over minutes of a file or a simulation
//! * `past`: the looks at a canary, made again from what was kept

mod advice;
mod analysis;
mod blocks;
mod forecast;
mod labels;
mod look;
mod minutes;
mod news;
mod paired;
mod past;
mod play;
mod replay;
mod rules;
mod view;
mod watch;
mod words;

#[cfg(test)]
mod tests;

pub use self::advice::{ErrorNews, ErrorsRead, by_errors};
pub use self::analysis::{Analysis, ERROR_HISTORY, HISTORY};
pub use self::forecast::{Equal, Expected, Forecast, RuleForecast, Worse};
pub use self::labels::{Labelled, Ripe, Ripening};
pub use self::look::{Decision, Foreseen, Look, Trouble, look};
pub use self::minutes::{LATENCY_BUCKETS, LATENCY_EDGES_MS, MinTable, latency_bucket};
pub use self::news::News;
pub use self::paired::{PairedErrors, paired_errors};
pub use self::past::{Again, Past, Watched};
pub use self::replay::{MetricEvidence, Replay, ReplayEvidence, ReplayMinute};
pub use self::rules::limit_not_worse;
pub use self::view::{ArmView, CanaryView, LabelsView, RuleView, UnlabelledView};
pub use self::watch::Looks;
pub use self::words::RuleWords;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Timestamp;
use super::id::{CanaryId, Generation, ModelName, RunId, TargetName, VersionName};
use super::verdict::Verdict;
use super::workflow::step::{Compare, Stage};
use super::workflow::units::BasisPoints;

/// A canary, as stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CanaryRecord {
    /// Its id.
    pub id: CanaryId,
    /// The run that set it.
    pub run: RunId,
    /// The model.
    pub model: ModelName,
    /// The target.
    pub target: TargetName,
    /// The version on canary.
    pub version: VersionName,
    /// What it is compared with.
    pub champion: VersionName,
    /// The generation of the release that set or last shifted it.
    pub generation: Generation,
    /// Its stages.
    pub stages: Vec<Stage>,
    /// The stage that is out, counted from 0.
    pub stage: usize,
    /// When that stage began.
    pub stage_since: Timestamp,
    /// The rules.
    pub rules: Compare,
    /// When it went out.
    pub started_at: Timestamp,
    /// When an undecided canary is inconclusive for good.
    pub deadline: Option<Timestamp>,
    /// Where it stands.
    pub state: CanaryState,
    /// The end of its bake.
    pub bake_until: Option<Timestamp>,
    /// What is concluded so far.
    pub verdict: Verdict,
    /// Why, in plain words with numbers.
    pub reason: String,
    /// The analysis so far: states of the tests, what was read, what is shown.
    pub analysis: Value,
    /// When it is looked at next.
    pub next_look_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
}

/// Where a canary stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CanaryState {
    /// It has traffic and is looked at.
    Watching,
    /// It was promoted and is still looked at.
    Baking,
    /// It was promoted and its bake, if any, is over.
    Promoted,
    /// It was taken back: by the controller, a human or an undo.
    RolledBack,
}

impl CanaryRecord {
    /// The share of the stage that is out; 0 for a canary without stages.
    pub fn stage_share(&self) -> BasisPoints {
        self.stages.get(self.stage).map_or(BasisPoints(0), |stage| stage.share)
    }
}
