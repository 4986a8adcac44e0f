//! Receipts: what a run decided and on which evidence, gathered from what the
//! database kept. `page` writes it for people.

mod change;
pub mod page;

use serde_json::Value;

pub use self::change::of as of_change;
use crate::domain::Timestamp;
use crate::domain::canary::CanaryRecord;
use crate::domain::history::{self, HistoryEntry};
use crate::domain::id::{RunId, StepId, VersionName};
use crate::domain::pipeline::outputs;
use crate::domain::receipt::{
    CanaryFacts, Change, DataFacts, Decision, GateFacts, Person, Receipt, Reproduce, TrainingFacts,
};
use crate::domain::run::{Attempt, AttemptState, Outcome, Run, RunStatus};
use crate::domain::verdict::Verdict;
use crate::domain::workflow::parse;
use crate::domain::workflow::units::format_duration;
use crate::engine::because::configuration;
use crate::steps::approve::ApproveOutput;
use crate::steps::canary::CanaryOutput;
use crate::steps::fetch::FetchOutput;
use crate::steps::gate::{self, GateOutput};
use crate::steps::publish::PublishOutput;
use crate::steps::run::{RunOutput, champion};
use crate::store::{Store, StoreError};

/// The receipt of `run`; none when it decided nothing.
///
/// # Errors
/// The database is away.
pub async fn of(store: &dyn Store, run: &Run) -> Result<Option<Receipt>, StoreError> {
    let canary = store.canary_of(run.id).await?;
    let Some(decision) = Decision::of(run, canary.as_ref()) else { return Ok(None) };
    let attempts = store.attempts(run.id).await?;
    let definition = &run.definition;
    // Checked before the run was made; one that another version of refit made may be unreadable.
    let workflow = parse(&definition.path, &definition.source, &definition.files);
    let workflow = workflow.ok().map(|(workflow, _)| workflow);
    let target = workflow.as_ref().and_then(champion::target);
    let published = outputs::<PublishOutput>(&attempts).last().map(|(_, output)| output);
    let version = published.as_ref().map(|published| published.version.clone());
    let gates: Vec<(StepId, GateOutput)> = outputs(&attempts).collect();
    let compared_with = canary.as_ref().map(|canary| canary.champion.clone());
    let mut receipt = Receipt {
        decision,
        headline: Receipt::headline_of(decision, version.as_ref(), &run.model),
        reason: reason(run, canary.as_ref().map(|canary| canary.reason.as_str())),
        decided_at: decided_at(run, &attempts),
        run: run.id,
        began_at: run.created_at,
        started_by: run.cause.actor.clone(),
        workflow: run.workflow.clone(),
        mode: workflow.as_ref().map(|workflow| workflow.mode),
        model: run.model.clone(),
        champion: compared_with.or_else(|| gates.last().and_then(|(_, gate)| gate.champion.clone())),
        target: target.or(canary.as_ref().map(|canary| &canary.target)).cloned(),
        data: outputs(&attempts).map(data).collect(),
        training: outputs(&attempts)
            .filter(|(_, output): &(_, RunOutput)| output.metrics != Default::default())
            .map(training)
            .collect(),
        people: people(&attempts, &gates, canary.as_ref()),
        gates: gates.into_iter().map(|(step, output)| gate_facts(run.id, step, output)).collect(),
        canary: canary.as_ref().map(|canary| CanaryFacts {
            view: canary.view(),
            alpha: canary.rules.alpha,
            beta: canary.rules.beta,
            ended_at: canary.ended_at,
        }),
        changes: match &version {
            Some(version) => {
                let meanwhile = store.history_during(&run.model, run.created_at, run.finished_at).await?;
                changes(&meanwhile, version)
            }
            None => vec![],
        },
        limits: vec![],
        reproduce: Reproduce {
            workflow_file: definition.path.clone(),
            configuration_sha256: configuration(definition),
            manifest_sha256: published.map(|published| published.manifest_sha256),
            provenance: provenance(store, run, version.as_ref()).await?,
            commands: commands(run, version.as_ref(), canary.is_some()),
            not_again: canary.as_ref().map(|canary| not_again(run, canary)).unwrap_or_default(),
        },
        version,
    };
    receipt.limits = receipt.limits_of();
    Ok(Some(receipt))
}

fn reason(run: &Run, canary: Option<&str>) -> String {
    // A run that is not over has said nothing yet; its canary has.
    run.reason.as_deref().or(canary).unwrap_or("nothing was said").to_owned()
}

/// The end of the run; for one that goes on, when the step began that decided.
fn decided_at(run: &Run, attempts: &[Attempt]) -> Option<Timestamp> {
    let last = attempts.iter().rev().find(|attempt| attempt.state == AttemptState::Sleeping);
    match run.status {
        RunStatus::Finished => run.finished_at,
        RunStatus::Queued
        | RunStatus::Running
        | RunStatus::Waiting
        | RunStatus::Held
        | RunStatus::Undoing => last.map(|attempt| attempt.started_at),
    }
}

fn data((step, output): (StepId, FetchOutput)) -> DataFacts {
    let violations = output.violations.into_iter().chain(output.stale).collect();
    DataFacts { step, rows: output.rows, sha256: output.sha256, violations }
}

fn training((step, output): (StepId, RunOutput)) -> TrainingFacts {
    let errors_sha256 = output.errors.map(|errors| errors.sha256);
    TrainingFacts { step, seconds: output.seconds, metrics: output.metrics, errors_sha256 }
}

fn gate_facts(run: RunId, step: StepId, output: GateOutput) -> GateFacts {
    let seed = gate::seed_of(run, &step);
    GateFacts { step, verdict: output.verdict, rules: output.rules, warnings: output.warnings, seed }
}

fn people(
    attempts: &[Attempt],
    gates: &[(StepId, GateOutput)],
    canary: Option<&CanaryRecord>,
) -> Vec<Person> {
    let of_gates = gates.iter().filter_map(|(step, gate)| {
        let name = gate.approved_by.clone()?;
        let answered = attempts.iter().rev().find(|attempt| &attempt.step == step);
        let at = answered.and_then(|attempt| attempt.finished_at);
        Some(Person { name, did: "approved".to_owned(), step: step.clone(), at, reason: None })
    });
    let of_canaries =
        outputs::<CanaryOutput>(attempts).filter_map(|(step, output)| Some((step, output.approval?)));
    let of_steps = outputs::<ApproveOutput>(attempts).chain(of_canaries).map(|(step, output)| Person {
        name: output.approved_by,
        did: "approved".to_owned(),
        step,
        at: Some(output.approved_at),
        reason: output.reason,
    });
    let refused = outputs::<Value>(attempts).filter_map(|(step, output)| {
        let name = output.get("rejected_by")?.as_str()?.to_owned();
        let reason = output.get("reason").and_then(Value::as_str).map(str::to_owned);
        let at = output.get("rejected_at").and_then(|at| serde_json::from_value(at.clone()).ok());
        Some(Person { name, did: "rejected".to_owned(), step, at, reason })
    });
    let canary = canary.zip(outputs::<CanaryOutput>(attempts).last());
    let extended = canary.into_iter().flat_map(|(canary, (step, _))| {
        canary.extensions.iter().map(move |it| Person {
            name: it.by.clone(),
            did: format!("gave {} more time to", format_duration(it.more().to_std().unwrap_or_default())),
            step: step.clone(),
            at: Some(it.at),
            reason: it.reason.clone(),
        })
    });
    of_gates.chain(of_steps).chain(refused).chain(extended).collect()
}

/// Changes that concern the version, of those while its run went on, oldest first: also the one that took it off a
/// release.
fn changes(meanwhile: &[HistoryEntry], version: &VersionName) -> Vec<Change> {
    let (mut changes, mut carried) = (vec![], false);
    for entry in meanwhile.iter().rev() {
        let concerns = entry.change.concerns(version);
        let ends = match &entry.change {
            history::Change::Release { .. } => std::mem::replace(&mut carried, concerns),
            history::Change::Version { .. } => false,
        };
        if concerns || ends {
            let (evidence, configuration) = match &entry.change {
                history::Change::Release { evidence, configuration, .. } => {
                    (evidence.clone(), configuration.clone())
                }
                history::Change::Version { .. } => (None, None),
            };
            changes.push(Change {
                at: entry.by.at,
                what: entry.change.to_string(),
                who: entry.by.actor.to_string(),
                why: entry.by.reason.clone(),
                evidence,
                configuration,
            });
        }
    }
    changes
}

async fn provenance(
    store: &dyn Store,
    run: &Run,
    version: Option<&VersionName>,
) -> Result<Value, StoreError> {
    let Some(version) = version else { return Ok(Value::Null) };
    let record = store.version(&run.model, version).await?;
    let mut provenance = record.and_then(|record| record.manifest).map_or(Value::Null, |it| it.provenance);
    if let Some(facts) = provenance.as_object_mut() {
        // The receipt has the whole of it.
        facts.remove("verdicts");
    }
    Ok(provenance)
}

/// What `canary replay` does not know of a canary.
fn not_again(run: &Run, canary: &CanaryRecord) -> Vec<String> {
    let mut limits = vec![
        "`refit canary replay` looks again, once a minute, at what was kept, by the rules, stages and horizons of then. \
         When rows came that were late is not kept: there they are in the minute they belong to."
            .to_owned(),
    ];
    let by_evidence = match canary.verdict {
        Verdict::Fail => matches!(run.outcome, Some(Outcome::RolledBack) | None),
        Verdict::Pass => matches!(run.outcome, Some(Outcome::Promoted) | None),
        Verdict::Inconclusive | Verdict::Error => false,
    };
    if !by_evidence {
        limits.push(
            "It comes to what the evidence said; what a person or a policy made of that, it does not."
                .to_owned(),
        );
    }
    limits.push("Pairs and minutes are kept for the time that `[retention] evidence` says.".to_owned());
    limits
}

fn commands(run: &Run, version: Option<&VersionName>, has_canary: bool) -> Vec<String> {
    let id = run.id;
    let mut commands = vec![format!("refit run show {id} --json"), format!("refit run logs {id}")];
    if has_canary {
        commands.push(format!("refit canary minutes {id} | refit canary replay -"));
    }
    if let Some(version) = version {
        commands.extend([format!("refit model card {version}"), format!("refit model verify {version}")]);
    }
    commands.push(format!("refit plan {}", run.workflow));
    commands
}
