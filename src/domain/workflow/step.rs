//! What each kind of step is told: the options of one `uses:` or `run:`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::units::BasisPoints;
use super::{Position, Recipient};
use crate::domain::expr::{Expr, Template};
use crate::domain::id::{MetricName, StepId, StoreName, TargetName};

/// What a step does. A new kind is a new variant, and the compiler names every place that must know it.
#[derive(Debug, Clone)]
pub enum StepKind {
    /// `uses: fetch`.
    Fetch(Fetch),
    /// `run:`.
    Run(Run),
    /// `uses: gate`.
    Gate(Gate),
    /// `uses: publish`.
    Publish(Publish),
    /// `uses: canary`.
    Canary(Canary),
    /// `uses: wait`.
    Wait(Wait),
    /// `uses: approve`.
    Approve(Approve),
    /// `uses: compare`.
    Compare(Compare),
    /// `uses: promote`.
    Promote(Promote),
    /// `uses: rollback`.
    Rollback(Rollback),
    /// `uses: notify`.
    Notify(Notify),
    /// `uses: http`.
    Http(Http),
}

impl StepKind {
    /// The word after `uses:`, or `run`.
    pub fn word(&self) -> &'static str {
        match self {
            StepKind::Fetch(_) => "fetch",
            StepKind::Run(_) => "run",
            StepKind::Gate(_) => "gate",
            StepKind::Publish(_) => "publish",
            StepKind::Canary(_) => "canary",
            StepKind::Wait(_) => "wait",
            StepKind::Approve(_) => "approve",
            StepKind::Compare(_) => "compare",
            StepKind::Promote(_) => "promote",
            StepKind::Rollback(_) => "rollback",
            StepKind::Notify(_) => "notify",
            StepKind::Http(_) => "http",
        }
    }
}

/// `uses: fetch`: rows into a file, then checked.
#[derive(Debug, Clone)]
pub struct Fetch {
    /// Where the rows come from.
    pub from: Source,
    /// The file they are written to, below the run's data directory.
    pub to: String,
    /// What must be true of them.
    pub expect: Expectations,
}

/// Where rows come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A file, relative to the project.
    File {
        /// Its path.
        path: Template,
    },
    /// A URL.
    Http {
        /// The address.
        url: Template,
        /// Request headers.
        headers: BTreeMap<String, Template>,
    },
    /// A query against Postgres, streamed by COPY.
    Postgres {
        /// The connection string.
        url: Template,
        /// The query's text; `query_file` is read when the workflow is loaded.
        query: String,
    },
    /// A query against a SQLite file.
    Sqlite {
        /// The database file, relative to the project.
        path: Template,
        /// The query's text.
        query: String,
    },
}

/// `expect:`: bad data stops the run; it is not a bad model.
#[derive(Debug, Clone, Default)]
pub struct Expectations {
    /// Columns that must be there, with their types, in the order of the file.
    pub columns: Vec<(String, ColumnType)>,
    /// Bounds on the number of rows.
    pub rows: RowBounds,
    /// How old the newest row may be.
    pub newest: Option<Newest>,
    /// The largest share of empty cells, by column, as a fraction.
    pub null_rate: Vec<(String, f64)>,
    /// Columns that together must not repeat; empty when not asked for.
    pub unique: Vec<String>,
}

/// The type of a column; an empty cell fits each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ColumnType {
    /// A whole number.
    Int,
    /// A finite number.
    Float,
    /// Any text.
    String,
    /// `true` or `false` (also `t`, `f`, `1`, `0`).
    Bool,
    /// `YYYY-MM-DD`.
    Date,
    /// RFC 3339, or `YYYY-MM-DD HH:MM:SS[.f]` as databases print it, then taken as UTC.
    Timestamp,
}

/// Bounds on the number of rows.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RowBounds {
    /// At least this many.
    pub min: Option<u64>,
    /// At most this many.
    pub max: Option<u64>,
    /// At least this share of the rows of the last successful fetch, as a fraction.
    pub min_vs_previous: Option<f64>,
}

/// How old the newest row may be.
#[derive(Debug, Clone, PartialEq)]
pub struct Newest {
    /// A date or timestamp column.
    pub column: String,
    /// The greatest age.
    pub max_age: Duration,
    /// What a greater age means.
    pub on_stale: OnStale,
}

/// What stale data means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnStale {
    /// The data check refuses (exit 3).
    #[default]
    Fail,
    /// There is nothing to do (exit 6).
    Skip,
}

/// `run:`: any command; a trainer is one with `metrics` or `outputs`.
#[derive(Debug, Clone)]
pub struct Run {
    /// The command line, given to `sh -c` (`set -eu` is not implied).
    pub command: String,
    /// Where it runs, relative to the project.
    pub working_dir: Option<String>,
    /// What it sees beside the clean environment.
    pub env: BTreeMap<String, Template>,
    /// What it may use.
    pub limits: Limits,
    /// How long it has between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// Metrics read from what it prints.
    pub stdout_metrics: BTreeMap<MetricName, StdoutMetric>,
    /// Whether it must write `$REFIT_METRICS` (`metrics: { file: true }`).
    pub metrics_file: bool,
    /// Files it leaves outside `$REFIT_OUT`.
    pub outputs: Option<Outputs>,
}

/// What a command may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Bytes of memory of the whole process tree.
    pub memory: Option<u64>,
    /// Bytes of log kept; the rest is counted and dropped. 64 MiB when absent.
    pub log: Option<u64>,
    /// Bytes of files it may leave as artifacts.
    pub output: Option<u64>,
}

/// A metric read from what a command prints.
#[derive(Debug, Clone)]
pub struct StdoutMetric {
    /// Has exactly one group, the number.
    pub pattern: regex::Regex,
    /// Which of several matches counts; several without it are an error.
    pub pick: Option<Pick>,
}

/// Which of several matches counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pick {
    /// The first.
    First,
    /// The last.
    Last,
    /// The largest.
    Max,
    /// The smallest.
    Min,
    /// Their mean.
    Mean,
}

/// `outputs:`: files a command leaves outside `$REFIT_OUT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outputs {
    /// The directory, relative to the project.
    pub from: String,
    /// A glob over file names.
    pub files: String,
    /// Exactly this many.
    pub count: Option<u64>,
    /// At most this many bytes together.
    pub max_total: Option<u64>,
}

/// `uses: gate`: the offline check.
#[derive(Debug, Clone)]
pub struct Gate {
    /// What happens when there is no champion yet.
    pub first_version: FirstVersion,
    /// What an inconclusive gate does.
    pub inconclusive: OnInconclusiveGate,
    /// The rules; all must pass.
    pub rules: Vec<GateRule>,
}

/// What a gate does when there is no champion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FirstVersion {
    /// A human approves it.
    #[default]
    RequireApproval,
    /// The rules that need no champion suffice.
    Accept,
}

/// What an inconclusive gate does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnInconclusiveGate {
    /// The run ends as rejected.
    #[default]
    Reject,
    /// A human decides.
    Approve,
    /// The run goes on.
    Continue,
}

/// One rule of a gate.
#[derive(Debug, Clone, PartialEq)]
pub struct GateRule {
    /// Where it stands in the file.
    pub at: Position,
    /// The metric.
    pub metric: MetricName,
    /// Not above this.
    pub max: Option<f64>,
    /// Not below this.
    pub min: Option<f64>,
    /// The comparison with the champion, if this rule makes one.
    pub vs_champion: Option<VsChampion>,
    /// Every segment by itself (`each: segment`).
    pub each_segment: bool,
    /// Fewer rows are inconclusive.
    pub min_rows: Option<u64>,
}

/// A comparison with the champion.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VsChampion {
    /// Worse by at most this fraction of the champion's value (negative: better by at least).
    pub worse_by_at_most: f64,
    /// Confidence of a paired bootstrap over time blocks, as a fraction.
    pub confidence: Option<f64>,
    /// `holdout: stored`: the champion's metric as stored counts; else both must be scored on one holdout.
    pub stored_holdout: bool,
}

/// `uses: publish`: uploads a version and seals it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// The store of `refit.toml`.
    pub store: StoreName,
    /// How versions are named.
    pub version: Naming,
    /// The step whose files are published; the last one that has some when absent.
    pub from: Option<StepId>,
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

/// `uses: approve`: a human decides.
#[derive(Debug, Clone)]
pub struct Approve {
    /// What the human reads.
    pub message: Option<Template>,
    /// How long it waits; for ever when absent.
    pub at_most: Option<Duration>,
}

/// `uses: compare`: the one set of rules the controller uses from the first look on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Compare {
    /// The rules.
    pub rules: Vec<CompareRule>,
    /// The deadline came and nothing is decided.
    pub on_inconclusive: OnInconclusive,
    /// What happens when the plan says that the canary will probably not conclude.
    pub when_underpowered: WhenUnderpowered,
    /// A held canary is rolled back after this.
    pub hold_for: Duration,
    /// Whether a held canary keeps its traffic.
    pub hold_traffic: HoldTraffic,
    /// P(rolling back a canary that is not worse) is at most this.
    pub alpha: f64,
    /// P(promoting a canary that is worse by the margin) is at most this.
    pub beta: f64,
}

impl Compare {
    /// What a canary without a `compare` step goes by: nothing is tested, and it stays until the workflow ends it.
    pub fn without_rules() -> Self {
        Self {
            rules: vec![],
            on_inconclusive: OnInconclusive::default(),
            when_underpowered: WhenUnderpowered::Hold,
            hold_for: Duration::from_secs(6 * 24 * 3600),
            hold_traffic: HoldTraffic::default(),
            alpha: 0.02,
            beta: 0.05,
        }
    }
}

/// One rule of `compare`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CompareRule {
    /// Where it stands in the file.
    pub at: Position,
    /// The online metric.
    pub metric: OnlineMetric,
    /// Non-inferiority margin as a ratio of rates; `x % worse` is `1 + x`.
    pub margin: f64,
    /// A canary whose upper bound is below this is acceptable whatever the ratio.
    pub acceptable_below: Option<f64>,
    /// The canary's rate must not exceed this, whatever the stable arm does.
    pub never_above: Option<f64>,
    /// Share of `alpha`; the default weights of the metrics present when absent.
    pub weight: Option<f64>,
    /// Whether it decides or is only shown.
    pub role: Role,
}

impl CompareRule {
    /// What is asked of a metric that is named and nothing else: a margin of 50 % for errors, 100 % for
    /// slow requests, 10 % for prediction errors.
    pub fn of(metric: OnlineMetric) -> Self {
        let margin = match metric {
            OnlineMetric::ErrorRate => 1.5,
            OnlineMetric::LatencySlowShare => 2.0,
            OnlineMetric::AbsError => 1.1,
        };
        Self {
            at: Position::default(),
            metric,
            margin,
            acceptable_below: None,
            never_above: None,
            weight: None,
            role: Role::default(),
        }
    }
}

/// An online metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnlineMetric {
    /// Share of requests that failed.
    ErrorRate,
    /// Share of requests slower than a threshold frozen from the stable arm.
    LatencySlowShare,
    /// Absolute error of the prediction, paired, when truth arrives.
    AbsError,
}

/// Whether a metric decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It can roll back, and must be non-inferior to promote.
    #[default]
    Gating,
    /// It is shown.
    Observe,
}

/// What an inconclusive canary does at its deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnInconclusive {
    /// It is left to a human; watching goes on.
    #[default]
    Hold,
    /// It is promoted.
    Promote,
    /// It is rolled back.
    RollBack,
}

/// What an underpowered canary does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenUnderpowered {
    /// A human approves before it starts.
    Approve,
    /// It starts; an inconclusive end follows `on_inconclusive`.
    Hold,
}

/// What a held canary serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HoldTraffic {
    /// What it served.
    #[default]
    Keep,
    /// Nothing.
    Zero,
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

/// `uses: notify`.
#[derive(Debug, Clone)]
pub struct Notify {
    /// Who is told.
    pub to: Vec<Recipient>,
    /// The subject of a mail, the first line elsewhere.
    pub subject: Template,
    /// The text.
    pub message: Template,
}

/// `uses: http`: one request.
#[derive(Debug, Clone)]
pub struct Http {
    /// The method, in capitals.
    pub method: String,
    /// The address.
    pub url: Template,
    /// Request headers.
    pub headers: BTreeMap<String, Template>,
    /// Request body.
    pub body: Option<Template>,
    /// Statuses that count as success; 2xx when empty.
    pub expect: Vec<u16>,
}
