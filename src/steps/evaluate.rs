//! `uses: evaluate`: one scoring command, run on the candidate and on the
//! champion over the same rows. What it wrote for each becomes one scored
//! holdout of pairs, as if a trainer had scored both.

mod pairing;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::context::{StepContext, StepError, StepResult};
use super::errors_file;
use super::run::guarded::{self, Heard, Paths, absolute_or_same};
use super::run::{ErrorsFile, champion, read_metrics, wrote_errors};
use crate::domain::gate;
use crate::domain::id::{StepId, VersionName};
use crate::domain::metric::Metrics;
use crate::domain::version::ManifestFile;
use crate::domain::workflow::StepKind;
use crate::domain::workflow::step::Evaluate;

/// What the step kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluateOutput {
    /// The step whose files were scored.
    pub candidate: StepId,
    /// The champion that was scored beside them; none when nothing serves yet.
    pub champion: Option<VersionName>,
    /// Of the candidate: what the command said, and what its rows give.
    pub metrics: Metrics,
    /// The same of the champion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub champion_metrics: Option<Metrics>,
    /// The rows with both predictions, if the command writes rows.
    pub errors: Option<ErrorsFile>,
    /// How long the command ran for both, in seconds.
    pub seconds: f64,
}

/// What is read of the output of a step that left files.
#[derive(Deserialize)]
struct Candidate {
    dir: PathBuf,
    files: Vec<ManifestFile>,
}

/// What the command left for one version.
struct Scored {
    metrics: Metrics,
    errors: Option<PathBuf>,
    seconds: f64,
}

/// Scores both. Nothing is kept before both are right.
pub async fn run(spec: &Evaluate, ctx: &StepContext<'_>) -> Result<StepResult, StepError> {
    let (step, dir) = candidate(spec, ctx)?;
    let rows = spec.holdout.as_deref().map(|name| holdout(name, &dir, ctx)).transpose()?;
    let champion = champion::files(ctx).await?;
    ctx.log.note(&format!("scoring the candidate: the files of `{step}`"));
    let scored = score(spec, ctx, "candidate", &dir, rows.as_deref()).await?;
    let (version, beside) = match champion {
        Some((version, dir)) => {
            ctx.log.note(&format!("scoring the champion: {version}"));
            (Some(version), Some(score(spec, ctx, "champion", &dir, rows.as_deref()).await?))
        }
        None => {
            ctx.log.note("nothing serves yet: the candidate is scored alone");
            (None, None)
        }
    };
    let kept = absolute_or_same(&ctx.dirs.kept).join(ctx.step.as_str());
    let attempt = absolute_or_same(&ctx.dirs.attempt);
    let seconds = scored.seconds + beside.as_ref().map_or(0.0, |beside| beside.seconds);
    let joined = tokio::task::spawn_blocking(move || join(scored, beside, &kept, &attempt));
    let joined = joined.await.map_err(|error| StepError::transient(error.to_string()))?;
    let (metrics, champion_metrics, errors) = joined.map_err(|problem| guarded::refused(ctx, &problem))?;
    StepResult::done(EvaluateOutput {
        candidate: step,
        champion: version,
        metrics,
        champion_metrics,
        errors,
        seconds,
    })
}

/// The files that would be published.
fn candidate(spec: &Evaluate, ctx: &StepContext<'_>) -> Result<(StepId, PathBuf), StepError> {
    let left = ctx.history.iter().rev().filter_map(|attempt| {
        let output = Candidate::deserialize(attempt.output.as_ref()?).ok()?;
        (!output.files.is_empty()).then(|| (attempt.step.clone(), output.dir))
    });
    let wanted = |step: &StepId| spec.from.as_ref().is_none_or(|from| from == step);
    left.into_iter().find(|(step, _)| wanted(step)).ok_or_else(|| {
        let missing = match &spec.from {
            Some(step) => format!("step `{step}` left no files to score"),
            None => "no step before this one left files to score".to_owned(),
        };
        StepError::permanent(missing).hint("a `run` step leaves files in $REFIT_OUT, or by `outputs:`")
    })
}

/// The rows that both are scored on: what a fetch step wrote, else a file of the candidate's.
fn holdout(name: &str, candidate: &Path, ctx: &StepContext<'_>) -> Result<PathBuf, StepError> {
    let fetched = ctx
        .workflow
        .steps
        .iter()
        .any(|step| matches!(&step.kind, StepKind::Fetch(fetch) if fetch.to == name));
    let path = if fetched { ctx.dirs.data.join(name) } else { candidate.join(name) };
    if !path.is_file() {
        let whose = if fetched { "the fetched data" } else { "the candidate's files" };
        return Err(StepError::permanent(format!("holdout: there is no file `{name}` among {whose}"))
            .hint("name the `to` of a fetch step, or a file that the trainer leaves"));
    }
    Ok(absolute_or_same(&path))
}

async fn score(
    spec: &Evaluate,
    ctx: &StepContext<'_>,
    name: &str,
    model: &Path,
    rows: Option<&Path>,
) -> Result<Scored, StepError> {
    let paths = Paths::prepare(ctx, Some(name))?;
    let given = [
        ("REFIT_MODEL", OsString::from(absolute_or_same(model))),
        ("REFIT_HOLDOUT", rows.map(OsString::from).unwrap_or_default()),
    ];
    let Heard { seconds, metrics, .. } = guarded::execute(&spec.command, ctx, &paths, given).await?;
    let read = || {
        let metrics = read_metrics(&spec.command, metrics, &paths.metrics)?;
        let errors = wrote_errors(&paths.errors)?.then(|| paths.errors.clone());
        if errors.is_none() && metrics == Metrics::default() {
            return Err("it wrote neither $REFIT_ERRORS nor a metric".to_owned());
        }
        Ok(Scored { metrics, errors, seconds })
    };
    read().map_err(|problem| guarded::refused(ctx, &format!("for the {name} {problem}")))
}

type Joined = (Metrics, Option<Metrics>, Option<ErrorsFile>);

/// Checks what was said against the rows, and puts the rows of both side by side.
fn join(candidate: Scored, champion: Option<Scored>, kept: &Path, attempt: &Path) -> Result<Joined, String> {
    let metrics = checked("candidate", &candidate)?;
    let champion_metrics = champion.as_ref().map(|scored| checked("champion", scored)).transpose()?;
    let rows = match (&candidate.errors, champion.as_ref().map(|scored| &scored.errors)) {
        (None, None | Some(None)) => None,
        (Some(candidate), None) => Some((candidate, None)),
        (Some(candidate), Some(Some(champion))) => Some((candidate, Some(champion.as_path()))),
        (Some(_), Some(None)) => return Err("it wrote $REFIT_ERRORS for the candidate only".to_owned()),
        (None, Some(Some(_))) => return Err("it wrote $REFIT_ERRORS for the champion only".to_owned()),
    };
    let errors = rows.map(|(candidate, champion)| pairing::keep(candidate, champion, kept)).transpose()?;
    // All of it is kept elsewhere now; a leftover only takes space until the run's directory goes.
    let _ = std::fs::remove_dir_all(attempt);
    Ok((metrics, champion_metrics, errors))
}

/// What the command said of a version, if its rows agree, and what they give beside that.
fn checked(name: &str, scored: &Scored) -> Result<Metrics, String> {
    let Some(path) = &scored.errors else { return Ok(scored.metrics.clone()) };
    let invalid = |problem: String| format!("its $REFIT_ERRORS for the {name} is not valid: {problem}");
    let holdout = errors_file::read_fresh(path).map_err(invalid)?;
    let found = gate::contradictions(&scored.metrics, &holdout);
    if !found.is_empty() {
        return Err(format!("for the {name} {}", found.join("; ")));
    }
    let mut metrics = holdout.metrics();
    metrics.values.extend(scored.metrics.values.clone());
    for (segment, said) in &scored.metrics.segments {
        let of_rows = metrics.segments.entry(segment.clone()).or_default();
        of_rows.values.extend(said.values.clone());
        of_rows.n = of_rows.n.or(said.n);
    }
    Ok(metrics)
}
