//! Options of what brings a version to its users and waits beside it: `publish`, `canary`, `wait`, `promote`, `rollback`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::units::BasisPoints;
use super::{Run, Source};
use crate::domain::expr::{Expr, Template};
use crate::domain::id::{StepId, StoreName, TargetName};

/// `uses: publish`: uploads a version and seals it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// The store of `refit.toml`.
    pub store: StoreName,
    /// How versions are named.
    pub version: Naming,
    /// The step whose files are published; the last one that has some when absent.
    pub from: Option<StepId>,
    /// How many of the newest good versions stay; all when absent.
    pub keep_latest: Option<u32>,
}

/// How versions are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Naming {
    /// `2026-11-21`, then `2026-11-21.2`.
    #[default]
    Date,
    /// `1.0.0`, `1.1.0`, …
    Semver,
    /// `1`, `2`, …
    Counter,
}

/// `uses: canary`: sends a share of traffic to the version.
#[derive(Debug, Clone, PartialEq)]
pub struct Canary {
    /// The target of `refit.toml`.
    pub target: TargetName,
    /// At least one, ascending.
    pub stages: Vec<Stage>,
    /// The `compare` step whose rules the controller uses; after `parse` always there, the
    /// workflow's only one when the file names none.
    pub compare: Option<StepId>,
    /// The longest time between looks that is accepted without a live server.
    pub max_look_gap: Option<Duration>,
}

/// One stage of a canary.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// Share of traffic.
    pub share: BasisPoints,
    /// Stays at least this long.
    pub min_time: Duration,
}

/// `uses: wait`: holds no worker, no connection and no memory.
#[derive(Debug, Clone)]
pub struct Wait {
    /// At least this long.
    pub at_least: Duration,
    /// Then until this is true.
    pub until: Option<Expr>,
    /// At most this long in all.
    pub at_most: Option<Duration>,
    /// The run fails as soon as this is true.
    pub abort_if: Option<Expr>,
}

/// `uses: shadow`: both versions on rows whose truth arrived, until the wait is over.
#[derive(Debug, Clone)]
pub struct Shadow {
    /// The predict command, run once for each version; it has neither `metrics` nor `outputs`.
    pub command: Run,
    /// Where the rows come from: `id`, `at` and `actual`, perhaps `block`, and what the command needs.
    pub rows: Source,
    /// How often they are read.
    pub every: Duration,
    /// How long this goes on.
    pub wait: Wait,
}

/// `uses: promote`: the verdict decides: promote, roll back or hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promote {
    /// The target; the one of the canary step when absent.
    pub target: Option<TargetName>,
    /// Watching goes on for this long after promotion.
    pub bake: Option<Duration>,
}

/// `uses: rollback`.
#[derive(Debug, Clone)]
pub struct Rollback {
    /// The target.
    pub target: TargetName,
    /// The version to go back to; the newest good one when absent.
    pub to: Option<Template>,
}
