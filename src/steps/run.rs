//! `run:`: any command, and the whole trainer contract around it.

pub(crate) mod champion;
pub(super) mod guarded;
mod metrics;
mod outputs;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::context::{StepContext, StepError, StepResult};
use crate::domain::metric::Metrics;
use crate::domain::version::ManifestFile;
use crate::domain::workflow::step::Run;
use guarded::{Heard, Paths, absolute_or_same};
use metrics::StdoutMetrics;
use outputs::{Before, Collected};

/// What a command left.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunOutput {
    /// Its exit code; 0, for every other is a failure.
    pub exit_code: i32,
    /// How long it ran, in seconds.
    pub seconds: f64,
    /// What it said of the model; empty when it is no trainer.
    pub metrics: Metrics,
    /// The files it left, by path below `dir`.
    pub files: Vec<ManifestFile>,
    /// Where refit keeps them for the steps after this one.
    pub dir: PathBuf,
    /// Its `$REFIT_ERRORS`, if it wrote one.
    pub errors: Option<ErrorsFile>,
    /// Bytes of log beyond the limit, which were dropped.
    pub log_dropped: u64,
}

/// A kept `$REFIT_ERRORS`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorsFile {
    /// Where it is.
    pub path: PathBuf,
    /// SHA-256 in lower-case hex.
    pub sha256: String,
    /// Bytes.
    pub size: u64,
}

/// Bytes of `$REFIT_ERRORS` that are kept.
const ERRORS_LIMIT: u64 = 1024 * 1024 * 1024;

/// Runs the command under the guard.
pub async fn run(spec: &Run, ctx: &StepContext<'_>) -> Result<StepResult, StepError> {
    let paths = Paths::prepare(ctx, None)?;
    let is_trainer = spec.metrics_file || !spec.stdout_metrics.is_empty() || spec.outputs.is_some();
    let champion = if is_trainer { champion::files(ctx).await? } else { None };
    let before = match &spec.outputs {
        Some(outputs) => Some(Before::look(outputs, &paths.project).map_err(StepError::permanent)?),
        None => None,
    };
    let champion = champion.map(|(_, dir)| absolute_or_same(&dir)).unwrap_or_default();
    let own = [("REFIT_CHAMPION", OsString::from(champion))];
    let Heard { seconds, metrics, dropped } = guarded::execute(spec, ctx, &paths, own).await?;

    let metrics = read_metrics(spec, metrics, &paths.metrics)
        .map_err(|problem| guarded::refused(ctx, &problem).hint("its log has what it printed"))?;
    let left = Left { spec: spec.clone(), paths, before, step: ctx.step.to_string() };
    let (files, dir, errors) = tokio::task::spawn_blocking(move || left.keep())
        .await
        .map_err(|error| StepError::transient(error.to_string()))?
        .map_err(|problem| guarded::refused(ctx, &problem))?;
    let output = RunOutput { exit_code: 0, seconds, metrics, files, dir, errors, log_dropped: dropped };
    StepResult::done(output)
}

/// What a command said of its model, on standard output and in its file.
pub(super) fn read_metrics(spec: &Run, stdout: StdoutMetrics<'_>, file: &Path) -> Result<Metrics, String> {
    let found = stdout.finish().map_err(|problems| problems.join("; "))?;
    let mut metrics = match read_limited(file)? {
        Some(text) => {
            metrics::parse_file(&text).map_err(|problem| format!("$REFIT_METRICS is not valid: {problem}"))?
        }
        None if spec.metrics_file => return Err("it did not write $REFIT_METRICS".to_owned()),
        None => Metrics::default(),
    };
    for (name, value) in found {
        if metrics.values.insert(name.clone(), value).is_some() {
            return Err(format!("metric `{name}` is on standard output and in $REFIT_METRICS"));
        }
    }
    Ok(metrics)
}

fn read_limited(path: &Path) -> Result<Option<String>, String> {
    let cannot = |error: std::io::Error| format!("$REFIT_METRICS cannot be read: {error}");
    let Some(size) = regular_size(path, "$REFIT_METRICS")? else { return Ok(None) };
    if size > metrics::FILE_LIMIT {
        return Err(format!("$REFIT_METRICS has {size} bytes; {} are read at most", metrics::FILE_LIMIT));
    }
    std::fs::read_to_string(path).map(Some).map_err(cannot)
}

/// The size of a regular file; a link or a pipe of that name is refused, it could lead anywhere.
pub(super) fn regular_size(path: &Path, shown: &str) -> Result<Option<u64>, String> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_file() => Ok(Some(found.len())),
        Ok(_) => Err(format!("{shown} is not a regular file")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{shown} cannot be looked at: {error}")),
    }
}

/// Whether there is a `$REFIT_ERRORS` that can be read.
pub(super) fn wrote_errors(path: &Path) -> Result<bool, String> {
    let Some(size) = regular_size(path, "$REFIT_ERRORS")? else { return Ok(false) };
    if size > ERRORS_LIMIT {
        return Err(format!("$REFIT_ERRORS has {size} bytes; {ERRORS_LIMIT} are kept at most"));
    }
    Ok(true)
}

/// What a command left, to be kept: everything is checked before anything is.
struct Left {
    spec: Run,
    paths: Paths,
    before: Option<Before>,
    step: String,
}

impl Left {
    fn keep(self) -> Result<(Vec<ManifestFile>, PathBuf, Option<ErrorsFile>), String> {
        let kept = self.paths.kept.join(&self.step);
        let mut files = outputs::collect_all(&self.paths.out)?;
        if let (Some(outputs), Some(before)) = (&self.spec.outputs, &self.before) {
            files.extend(outputs::collect(outputs, &self.paths.project, before)?);
        }
        let total: u64 = files.iter().map(Collected::size).sum();
        if let Some(limit) = self.spec.limits.output
            && total > limit
        {
            return Err(format!("it left {total} bytes of files; `limits: output` allows {limit}"));
        }
        let errors = self.keep_errors(&kept)?;
        let dir = kept.join("files");
        let files = outputs::keep(files, &dir)?;
        // All of it is kept elsewhere now; a leftover only takes space until the run's directory goes.
        let _ = std::fs::remove_dir_all(&self.paths.attempt);
        Ok((files, dir, errors))
    }

    fn keep_errors(&self, kept: &Path) -> Result<Option<ErrorsFile>, String> {
        if !wrote_errors(&self.paths.errors)? {
            return Ok(None);
        }
        let path = kept.join("errors.csv");
        std::fs::create_dir_all(kept)
            .and_then(|()| outputs::copy(&self.paths.errors, &path))
            .map(|(size, sha256)| Some(ErrorsFile { path, sha256, size }))
            .map_err(|error| format!("cannot keep $REFIT_ERRORS: {error}"))
    }
}
