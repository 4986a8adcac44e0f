//! Options of commands: `run`, and `evaluate`, which runs one on two versions.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::expr::Template;
use crate::domain::id::{MetricName, StepId};

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

/// `uses: evaluate`: one scoring command on candidate and champion, over the same rows.
#[derive(Debug, Clone)]
pub struct Evaluate {
    /// The scoring command, run once for each version; it has no `outputs`.
    pub command: Run,
    /// The step whose files are the candidate; the last one that has some when absent.
    pub from: Option<StepId>,
    /// The file with the rows: one that a `fetch` step wrote, else one of the candidate's files.
    pub holdout: Option<String>,
}
