//! What the reader of a message wants to know first: what serves now, whether
//! anything has to be done, and what happens next by itself.
//!
//! Read when the message is queued, so that it says how things stood then.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{Engine, pause};
use crate::domain::Timestamp;
use crate::domain::event::BY_HAND;
use crate::domain::id::{MetricName, VersionName};
use crate::domain::pause::Judged;
use crate::domain::pipeline::outputs;
use crate::domain::release::Release;
use crate::domain::run::{Attempt, AttemptState, Outcome, Run};
use crate::domain::verdict::Verdict;
use crate::domain::workflow::{Mode, Moment, StepKind, Workflow};
use crate::steps::canary::{CanaryOutput, Rollout};
use crate::steps::gate::GateOutput;
use crate::steps::publish::PublishOutput;
use crate::steps::rollback::RollbackAdvised;
use crate::steps::run::{RunOutput, champion};
use crate::steps::shadow::ShadowOutput;
use crate::store::StoreError;

/// Facts of `moment`, as `notify::facts` names them. What the database does not
/// answer is left out: a message without it is better than none.
pub(super) async fn facts(
    engine: &Engine,
    run: &Run,
    workflow: &Workflow,
    attempts: &[Attempt],
    moment: Moment,
) -> Map<String, Value> {
    let mut facts = Map::new();
    match release(engine, run, workflow).await {
        Ok(Some(release)) => {
            facts.insert("serving".to_owned(), json!(serving(&release)));
            let first = moment == Moment::Promoted && release.desired.previous.is_none();
            facts.insert("first".to_owned(), json!(first));
        }
        Ok(None) if workflow.mode == Mode::Act && champion::target(workflow).is_some() => {
            facts.insert("serving".to_owned(), json!("Nothing serves yet."));
        }
        Ok(None) => {}
        Err(error) => unread("release", run, &error),
    }
    match metrics(engine, run, workflow, attempts).await {
        Ok(metrics) => {
            facts.insert("metrics".to_owned(), metrics);
        }
        Err(error) => unread("champion's metrics", run, &error),
    }
    if let Some(advice) = advice(workflow, attempts).filter(|_| moment == Moment::Succeeded) {
        facts.insert("advice".to_owned(), json!(advice));
    }
    if let Some(todo) = todo(run, attempts, moment) {
        facts.insert("todo".to_owned(), json!(todo));
    }
    let next = match moment {
        Moment::CanaryStarted => on_canary(engine, run, workflow).await,
        Moment::Promoted
        | Moment::Rejected
        | Moment::RolledBack
        | Moment::Skipped
        | Moment::Failed
        | Moment::Cancelled
        | Moment::Succeeded => next_run(engine, run, workflow, moment).await,
        Moment::Started
        | Moment::Held
        | Moment::Frozen
        | Moment::NeedsApproval
        | Moment::Message
        | Moment::Alert => Ok(None),
    };
    match next {
        Ok(Some(next)) => {
            facts.insert("next".to_owned(), json!(next));
        }
        Ok(None) => {}
        Err(error) => unread("schedules", run, &error),
    }
    // What a browser shows; the rest of the API is for programs.
    let page = engine.settings.public_url.as_ref().filter(|_| has_receipt(moment));
    if let Some(page) = page.and_then(|url| url.join(&format!("v1/runs/{}/receipt", run.id)).ok()) {
        facts.insert("links".to_owned(), json!([{"label": "Read the receipt", "url": page}]));
    }
    facts.insert("command".to_owned(), json!(format!("refit run show {}", short(run))));
    facts
}

/// As much of a run's id as commands need.
fn short(run: &Run) -> String {
    let id = run.id.0.simple().to_string();
    id[id.len() - 8..].to_owned()
}

/// Whether something was decided by then, so that there is a receipt.
fn has_receipt(moment: Moment) -> bool {
    match moment {
        Moment::Promoted | Moment::Rejected | Moment::RolledBack | Moment::Held => true,
        Moment::Started
        | Moment::CanaryStarted
        | Moment::Frozen
        | Moment::NeedsApproval
        | Moment::Skipped
        | Moment::Failed
        | Moment::Cancelled
        | Moment::Succeeded
        | Moment::Message
        | Moment::Alert => false,
    }
}

fn unread(what: &str, run: &Run, error: &StoreError) {
    tracing::warn!(run.id = %run.id, "A message about run {} goes out without the {what}: {error}", run.id);
}

async fn release(engine: &Engine, run: &Run, workflow: &Workflow) -> Result<Option<Release>, StoreError> {
    match champion::target(workflow) {
        Some(target) => engine.store.release(&run.model, target).await,
        None => Ok(None),
    }
}

/// One sentence on who serves which share.
pub(super) fn serving(release: &Release) -> String {
    let champion = release.desired.champion.as_ref().map(|served| &served.version);
    let canary = release.desired.canary.as_ref().filter(|canary| canary.basis_points.0 > 0);
    let since = day_and_time(release.updated_at);
    let serves = match (champion, canary) {
        (Some(champion), None) => format!("{champion} serves all traffic since {since}."),
        (Some(champion), Some(canary)) => format!(
            "{} serves {} of the traffic since {since}, {champion} the rest.",
            canary.served.version, canary.basis_points
        ),
        (None, Some(canary)) => {
            format!("{} serves {} of the traffic since {since}.", canary.served.version, canary.basis_points)
        }
        (None, None) => "Nothing serves.".to_owned(),
    };
    if release.is_applied() {
        return serves;
    }
    format!("{serves} `{}` did not confirm it yet; refit repeats it until it does.", release.target)
}

/// What the trainers said beside what is known of the champion: from the gate, which scored both on
/// the same rows, else as it was measured when the champion was made.
async fn metrics(
    engine: &Engine,
    run: &Run,
    workflow: &Workflow,
    attempts: &[Attempt],
) -> Result<Value, StoreError> {
    let mut candidate: BTreeMap<MetricName, f64> = BTreeMap::new();
    for (_, output) in outputs::<RunOutput>(attempts) {
        candidate.extend(output.metrics.values);
    }
    if candidate.is_empty() {
        return Ok(json!([]));
    }
    let gate = outputs::<GateOutput>(attempts).last().map(|(_, gate)| gate);
    let compared_with: Option<&VersionName> = gate.as_ref().and_then(|gate| gate.champion.as_ref());
    let stored = match compared_with {
        Some(version) => {
            let record = engine.store.version(&run.model, version).await?;
            record.and_then(|record| record.manifest).map(|manifest| manifest.metrics.values)
        }
        None => None,
    };
    let of_champion = |name: &MetricName| {
        let rules = gate.iter().flat_map(|gate| &gate.rules);
        let mut scored = rules.filter(|rule| &rule.metric == name && rule.segment.is_none());
        scored.find_map(|rule| rule.champion).or_else(|| stored.as_ref()?.get(name).copied())
    };
    let rows = candidate.iter().map(|(name, value)| {
        let better = workflow.metrics.get(name);
        json!({"name": name, "candidate": value, "champion": of_champion(name), "better": better})
    });
    Ok(rows.collect())
}

/// In `advise`, what the run would have done to what serves: in one sentence for each.
pub(super) fn advice(workflow: &Workflow, attempts: &[Attempt]) -> Option<String> {
    if workflow.mode != Mode::Advise {
        return None;
    }
    let canaries = outputs::<CanaryOutput>(attempts).filter(|(_, canary)| canary.rollout == Rollout::Advised);
    let scored = outputs::<ShadowOutput>(attempts).filter_map(|(_, shadow)| shadow.advice).last();
    let canaries = canaries.map(|(_, canary)| {
        let CanaryOutput { version, target, share, .. } = &canary;
        match (&canary.champion, &scored) {
            (Some(champion), Some(advice)) => {
                let would = match advice.verdict {
                    Verdict::Pass => "would be promoted",
                    Verdict::Fail => "would be rolled back",
                    Verdict::Inconclusive | Verdict::Error => "would not be decided",
                };
                format!(
                    "In `mode: act`, {version} would get {share} of `{target}` beside {champion}, and {would} by the \
                     rows that both predicted: {}.",
                    advice.reason
                )
            }
            (Some(champion), None) => format!(
                "In `mode: act`, {version} would now get {share} of `{target}` beside {champion}, and the \
                 evidence would decide."
            ),
            (None, _) => {
                format!("In `mode: act`, {version} would now serve `{target}`: nothing was released yet.")
            }
        }
    });
    let rollbacks = outputs::<RollbackAdvised>(attempts)
        .filter(|(_, rollback)| rollback.advised)
        .map(|(_, rollback)| format!("In `mode: act`, `{}` would have been rolled back.", rollback.target));
    let advice: Vec<String> = canaries.chain(rollbacks).collect();
    (!advice.is_empty()).then(|| advice.join(" "))
}

/// What a person has to do, where the templates do not say it already.
fn todo(run: &Run, attempts: &[Attempt], moment: Moment) -> Option<String> {
    match moment {
        Moment::Held => {
            let (_, PublishOutput { version, .. }) = outputs(attempts).last()?;
            Some(format!(
                "The evidence does not decide. Look at it: `refit run show {}`. Then promote it: \
                 `refit promote {version}`, or take it back: `refit rollback`.",
                short(run)
            ))
        }
        Moment::NeedsApproval => Some(format!(
            "Look at it and decide: `refit run approve {0}`, or `refit run reject {0}`.",
            short(run)
        )),
        Moment::Failed => {
            let failed = attempts.iter().rev().filter(|attempt| attempt.state == AttemptState::Failed);
            let hint = failed.filter_map(|attempt| attempt.error.as_ref()?.hint.clone()).next()?;
            Some(format!("To do: {hint}. Then start it again: `refit trigger {}`.", run.workflow))
        }
        Moment::Started
        | Moment::CanaryStarted
        | Moment::Promoted
        | Moment::Rejected
        | Moment::RolledBack
        | Moment::Frozen
        | Moment::Skipped
        | Moment::Cancelled
        | Moment::Succeeded
        | Moment::Message
        | Moment::Alert => None,
    }
}

/// How long the canary is watched, and what that can show, once the traffic before it was read.
async fn on_canary(engine: &Engine, run: &Run, workflow: &Workflow) -> Result<Option<String>, StoreError> {
    let canary = engine.store.canary_of(run.id).await?;
    let forecast = canary.and_then(|canary| canary.view().forecast);
    let said = [watching(workflow), forecast.map(|forecast| format!("by the traffic before it, {forecast}"))];
    let said: Vec<String> = said.into_iter().flatten().collect();
    Ok((!said.is_empty()).then(|| said.join("; ")))
}

/// How long a canary is watched before it is decided on.
fn watching(workflow: &Workflow) -> Option<String> {
    let canary = workflow.steps.iter().position(|step| matches!(step.kind, StepKind::Canary(_)))?;
    let wait = workflow.steps.iter().skip(canary).find_map(|step| step.kind.wait())?;
    let longest = wait.at_most.map(|most| format!(", at most {}", lasting(most)));
    Some(format!(
        "it is watched for at least {}{}; should it harm, it is taken back at once",
        lasting(wait.at_least),
        longest.unwrap_or_default()
    ))
}

/// A duration as people say it: `1 day 12 hours`.
fn lasting(duration: Duration) -> String {
    let mut rest = duration.as_secs();
    let mut words = vec![];
    for (unit, scale) in [("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1)] {
        let count = rest / scale;
        if count > 0 {
            words.push(format!("{count} {unit}{}", if count == 1 { "" } else { "s" }));
            rest %= scale;
        }
    }
    if words.is_empty() { "0 seconds".to_owned() } else { words.join(" ") }
}

/// When the schedule starts the workflow again.
async fn next_run(
    engine: &Engine,
    run: &Run,
    workflow: &Workflow,
    moment: Moment,
) -> Result<Option<String>, StoreError> {
    let turned_down = match moment {
        Moment::Rejected => Some(Outcome::Rejected),
        Moment::RolledBack => Some(Outcome::RolledBack),
        Moment::Promoted
        | Moment::Skipped
        | Moment::Failed
        | Moment::Cancelled
        | Moment::Succeeded
        | Moment::CanaryStarted
        | Moment::Started
        | Moment::Held
        | Moment::Frozen
        | Moment::NeedsApproval
        | Moment::Message
        | Moment::Alert => None,
    };
    let triggers = &workflow.triggers;
    let by_itself = !(triggers.schedules.is_empty() && triggers.events.is_empty());
    let ending = turned_down.filter(|_| by_itself).map(|outcome| Judged {
        run: run.id,
        outcome: Some(outcome),
        ended_at: None,
        by_hand: run.cause.event.name == BY_HAND,
    });
    if ending.is_some()
        && let Some(pause) = pause::paused(&*engine.store, &run.workflow, ending).await?
    {
        return Ok(Some(format!(
            "no run starts by itself, because {}; once you know why, `refit trigger {}` starts one, and the \
             workflow goes on by itself",
            pause.reason(),
            run.workflow
        )));
    }
    let now = engine.clock.now();
    let schedules = engine.store.schedules().await?;
    let own = schedules.iter().filter(|row| row.workflow == run.workflow && row.next_fire_at > now);
    let next = own.map(|row| row.next_fire_at).min();
    Ok(next.map(|at| format!("the next run is due on {}", at.format("%A, %F %H:%M UTC"))))
}

pub(super) fn day_and_time(at: Timestamp) -> String {
    at.format("%F %H:%M UTC").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::Generation;
    use crate::domain::release::{Assignment, CanaryServed, Served};
    use crate::domain::workflow::units::BasisPoints;

    fn release(champion: Option<&str>, canary: Option<(&str, u16)>, applied: bool) -> Release {
        let served = |version: &str| Served {
            version: version.parse().expect("a name"),
            base_url: "https://models.example.com".to_owned(),
            manifest_sha256: "0".repeat(64),
        };
        let at = "2026-11-20T10:42:07Z".parse().expect("a time");
        let canary = canary.map(|(version, share)| CanaryServed {
            served: served(version),
            basis_points: BasisPoints(share),
            salt: "salt".to_owned(),
            valid_until: at,
        });
        Release {
            model: "race-times".parse().expect("a name"),
            target: "production".parse().expect("a name"),
            generation: Generation(4),
            desired: Assignment { champion: champion.map(served), canary, previous: None },
            applied: Some(Generation(if applied { 4 } else { 3 })),
            owner: None,
            updated_at: at,
        }
    }

    #[test]
    fn one_sentence_says_who_serves() {
        let said = |champion, canary, applied| serving(&release(champion, canary, applied));
        assert_eq!(said(Some("v1"), None, true), "v1 serves all traffic since 2026-11-20 10:42 UTC.");
        assert_eq!(
            said(Some("v1"), Some(("v2", 1000)), true),
            "v2 serves 10 % of the traffic since 2026-11-20 10:42 UTC, v1 the rest."
        );
        let stopped = said(Some("v1"), Some(("v2", 0)), true);
        assert_eq!(stopped, "v1 serves all traffic since 2026-11-20 10:42 UTC.");
        assert!(
            said(Some("v1"), None, false)
                .ends_with("`production` did not confirm it yet; refit repeats it until it does.")
        );
        assert_eq!(said(None, None, true), "Nothing serves.");
    }
}
