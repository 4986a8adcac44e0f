//! `uses: gate`: gathers what the trainer said, what it left and what serves
//! now, and lets `domain::gate` judge.

use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::context::{Sleep, StepContext, StepError, StepResult, to_json};
use super::errors_file;
use super::evaluate::EvaluateOutput;
use super::fetch::FetchOutput;
use super::run::{ErrorsFile, RunOutput, champion};
use crate::domain::expect::parse_timestamp;
use crate::domain::gate::{self, Champion, DataSpan, Evidence, Holdout, RuleResult};
use crate::domain::id::{Generation, RunId, StepId, VersionName};
use crate::domain::metric::Metrics;
use crate::domain::release::Release;
use crate::domain::run::{Attempt, Outcome, SignalKind};
use crate::domain::verdict::Verdict;
use crate::domain::workflow::step::{FirstVersion, Gate, OnInconclusiveGate};
use crate::domain::workflow::{Moment, StepKind};

/// What a gate saw and concluded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GateOutput {
    /// Its verdict.
    pub verdict: Verdict,
    /// The champion it compared with; canary and promote check that it still is.
    pub champion: Option<VersionName>,
    /// The generation of the release it read; none when the workflow names no target.
    pub generation: Option<Generation>,
    /// What each rule concluded.
    pub rules: Vec<RuleResult>,
    /// What a human should look at although it passed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Who approved, when somebody had to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approved_by: Option<String>,
}

/// Judges the candidate, or goes on waiting for a human who does.
pub async fn run(spec: &Gate, ctx: &StepContext<'_>) -> Result<StepResult, StepError> {
    if let Some(resume) = ctx.resume {
        let output = serde_json::from_value(resume.clone()).map_err(|error| {
            StepError::permanent(format!("cannot read what the gate left for itself: {error}"))
        })?;
        return answered(output, ctx);
    }
    let Gathered { said, errors, evaluated } = gather(ctx.history)?;
    let holdout = match errors {
        Some(errors) => Some(read_holdout(errors).await?),
        None => None,
    };
    if let Some(holdout) = &holdout {
        // What a trainer says of another holdout is not contradicted by the rows of `evaluate`.
        let claims = if evaluated.is_some() { &Metrics::default() } else { &said };
        let found = gate::contradictions(claims, holdout);
        if !found.is_empty() {
            return Err(StepError::permanent(found.join("; ")));
        }
    }
    let has_target = champion::target(ctx.workflow).is_some();
    let releases = champion::releases(ctx).await?;
    if releases.len() > 1 && spec.rules.iter().any(|rule| rule.vs_champion.is_some()) {
        return Err(which_champion(&releases));
    }
    let release = champion::only(releases);
    let generation = has_target.then(|| release.as_ref().map_or(Generation(0), |release| release.generation));
    let champion = release.and_then(|release| release.desired.champion).map(|served| served.version);
    let stored = match &champion {
        Some(version) => ctx.ledger.version(version).await?.and_then(|record| record.manifest),
        None => None,
    };
    if let Some(evaluated) = evaluated.as_ref().filter(|evaluated| evaluated.champion != champion) {
        return Err(champion_changed(evaluated, champion.as_ref()));
    }
    let fetched = data_span(ctx);
    let (rules, better, seed) =
        (spec.rules.clone(), ctx.workflow.metrics.clone(), seed_of(ctx.run.id, ctx.step));
    let exists = champion.is_some();
    // A bootstrap takes its time, and other steps share this thread.
    let judged = tokio::task::spawn_blocking(move || {
        let stored = stored.as_ref().map(|manifest| &manifest.metrics);
        let beside = evaluated.as_ref().and_then(|evaluated| evaluated.champion_metrics.as_ref());
        let champion = if exists { Champion::Serves { stored, evaluated: beside } } else { Champion::Absent };
        let mut candidate = said.clone();
        let mut warnings = vec![];
        if let Some(evaluated) = &evaluated {
            add(&mut candidate, evaluated.metrics.clone());
            warnings = gate::optimism(&said, &evaluated.metrics, &better);
        }
        let evidence =
            Evidence { candidate: &candidate, champion, holdout: holdout.as_ref(), better: &better, seed };
        let results = gate::judge(&rules, &evidence);
        warnings.extend(gate::warnings(&rules, &results, &evidence));
        warnings
            .extend(holdout.as_ref().zip(fetched.as_ref()).and_then(|(h, data)| gate::random_split(h, data)));
        (results, warnings)
    });
    let (rules, warnings) = judged.await.map_err(|error| StepError::permanent(error.to_string()))?;
    for line in rules.iter().map(|result| &result.sentence).chain(&warnings) {
        ctx.log.note(line);
    }
    // A workflow that releases nothing has no first version either: nothing is there to be approved.
    let first_version = has_target && champion.is_none();
    let verdict = gate::verdict(&rules, first_version);
    let output = GateOutput { verdict, champion, generation, rules, warnings, approved_by: None };
    conclude(spec, output, first_version)
}

fn conclude(spec: &Gate, output: GateOutput, first_version: bool) -> Result<StepResult, StepError> {
    match output.verdict {
        Verdict::Error => Err(StepError::permanent(format!(
            "the gate could not judge: {}",
            reasons(&output, Verdict::Error)
        ))),
        Verdict::Fail => end(format!("the gate refused: {}", reasons(&output, Verdict::Fail)), &output),
        // Whoever approves a first version also sees what its rules could not tell.
        Verdict::Pass | Verdict::Inconclusive
            if first_version && spec.first_version == FirstVersion::RequireApproval =>
        {
            ask(&output, "this is the first version: nothing serves yet")
        }
        Verdict::Pass => StepResult::done(output),
        Verdict::Inconclusive => {
            let why = format!("the gate cannot tell: {}", reasons(&output, Verdict::Inconclusive));
            match spec.inconclusive {
                OnInconclusiveGate::Reject => end(why, &output),
                OnInconclusiveGate::Approve => ask(&output, &why),
                OnInconclusiveGate::Continue => StepResult::done(output),
            }
        }
    }
}

fn end(reason: String, output: &GateOutput) -> Result<StepResult, StepError> {
    Ok(StepResult::End { outcome: Outcome::Rejected, reason, output: to_json(output)? })
}

fn ask(output: &GateOutput, why: &str) -> Result<StepResult, StepError> {
    let sentences: Vec<&str> = output.rules.iter().map(|rule| rule.sentence.as_str()).collect();
    let facts = json!({ "reason": why, "rules": sentences, "warnings": output.warnings });
    Ok(StepResult::Sleep(Sleep {
        until: None,
        resume: to_json(output)?,
        held: false,
        promoted: false,
        tell: Some((Moment::NeedsApproval, facts)),
    }))
}

/// The sentences of the rules that concluded `verdict`; when none did, there was none to conclude.
fn reasons(output: &GateOutput, verdict: Verdict) -> String {
    let of_verdict = output.rules.iter().filter(|rule| rule.verdict == verdict);
    let sentences: Vec<&str> = of_verdict.map(|rule| rule.sentence.as_str()).collect();
    if sentences.is_empty() { "no rule applies".to_owned() } else { sentences.join("; ") }
}

/// The latest answer to this step decides; without one it sleeps on.
fn answered(mut output: GateOutput, ctx: &StepContext<'_>) -> Result<StepResult, StepError> {
    let answer = ctx.signals.iter().rev().find_map(|signal| match &signal.kind {
        SignalKind::Approve { step } if step == ctx.step => Some((true, signal)),
        SignalKind::Reject { step } if step == ctx.step => Some((false, signal)),
        SignalKind::Approve { .. }
        | SignalKind::Reject { .. }
        | SignalKind::Promote
        | SignalKind::RolledBack { .. }
        | SignalKind::Look => None,
    });
    match answer {
        Some((true, signal)) => {
            output.approved_by = Some(signal.actor.clone());
            StepResult::done(output)
        }
        Some((false, signal)) => {
            let why = signal.reason.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
            end(format!("{} rejected it{why}", signal.actor), &output)
        }
        None => Ok(StepResult::Sleep(Sleep {
            until: None,
            resume: to_json(output)?,
            held: false,
            promoted: false,
            tell: None,
        })),
    }
}

/// What is known of the candidate.
pub(crate) struct Gathered {
    /// What the run's commands said of it, later ones over earlier ones.
    pub(crate) said: Metrics,
    /// The latest scored rows.
    pub(crate) errors: Option<ErrorsFile>,
    /// What the latest `evaluate` step found.
    pub(crate) evaluated: Option<EvaluateOutput>,
}

/// What the commands of a run left.
pub(crate) fn gather(history: &[Attempt]) -> Result<Gathered, StepError> {
    let mut found = Gathered { said: Metrics::default(), errors: None, evaluated: None };
    let mut commands = 0;
    for output in history.iter().filter_map(|attempt| attempt.output.as_ref()) {
        if let Ok(output) = RunOutput::deserialize(output) {
            commands += 1;
            add(&mut found.said, output.metrics);
            found.errors = output.errors.or(found.errors);
        } else if let Ok(output) = EvaluateOutput::deserialize(output) {
            commands += 1;
            // Also when it left none: the trainer's rows are of other predictions of the champion.
            found.errors.clone_from(&output.errors);
            found.evaluated = Some(output);
        }
    }
    if commands == 0 {
        return Err(StepError::permanent("there is no `run` step before the gate that could have trained")
            .hint("put the gate after the step that trains"));
    }
    Ok(found)
}

/// Puts what was said later over what was said before.
pub(crate) fn add(metrics: &mut Metrics, later: Metrics) {
    metrics.values.extend(later.values);
    metrics.n = later.n.or(metrics.n);
    metrics.segments.extend(later.segments);
}

/// The time that the latest fetched rows are of: by the column that is to be new, else by the only one with times.
fn data_span(ctx: &StepContext<'_>) -> Option<DataSpan> {
    let (step, data) = ctx.latest_output::<FetchOutput>()?;
    let newest = ctx.workflow.step(step).and_then(|step| match &step.kind {
        StepKind::Fetch(fetch) => fetch.expect.newest.as_ref().map(|newest| newest.column.as_str()),
        _ => None,
    });
    let times = || data.columns.iter().filter(|column| column.min.is_some() && column.max.is_some());
    let column = match newest {
        Some(name) => times().find(|column| column.name == name)?,
        None => times().next().filter(|_| times().count() == 1)?,
    };
    let (first, last) = (column.min.as_deref()?, column.max.as_deref()?);
    let (first, last) = (parse_timestamp(first)?, parse_timestamp(last)?);
    Some(DataSpan { column: column.name.clone(), first, last, rows: data.rows })
}

fn which_champion(releases: &[Release]) -> StepError {
    let targets: Vec<String> = releases.iter().map(|release| format!("`{}`", release.target)).collect();
    StepError::permanent(format!(
        "which champion is meant is not said: the model has releases on {}",
        targets.join(" and ")
    ))
    .hint("add a `promote` step with `target`, or a `canary` step: it says which champion the rules compare with")
}

fn champion_changed(evaluated: &EvaluateOutput, serves: Option<&VersionName>) -> StepError {
    let name = |version: Option<&VersionName>| version.map_or("nothing".to_owned(), ToString::to_string);
    StepError::permanent(format!(
        "champion changed: the candidate was scored beside {}, but {} serves now",
        name(evaluated.champion.as_ref()),
        name(serves)
    ))
    .hint("trigger the workflow again: it will be compared with the new champion")
}

async fn read_holdout(errors: ErrorsFile) -> Result<Holdout, StepError> {
    tokio::task::spawn_blocking(move || errors_file::read(&errors))
        .await
        .map_err(|error| StepError::permanent(error.to_string()))?
        .map_err(|problem| StepError::permanent(format!("$REFIT_ERRORS is not valid: {problem}")))
}

/// The same draws on every attempt and every replay of this step.
pub(crate) fn seed_of(run: RunId, step: &StepId) -> u64 {
    let digest = Sha256::digest(format!("{run}/{step}"));
    digest.iter().take(8).fold(0, |seed, byte| (seed << 8) | u64::from(*byte))
}
