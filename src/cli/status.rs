//! `status`: what serves and what is under way.

use std::collections::BTreeMap;

use chrono::TimeDelta;
use serde_json::{Value, json};

use super::Exit;
use super::error::{CliError, Doing};
use super::output::{Paint, plain, span, table, time};
use super::pick::short;
use super::project::Opened;
use super::run::runs_table;
use crate::domain::Timestamp;
use crate::domain::canary::{CanaryRecord, CanaryState};
use crate::domain::id::{RunId, WorkflowName};
use crate::domain::release::Release;
use crate::domain::run::{AttemptState, RunStatus};
use crate::domain::verdict::Verdict;
use crate::domain::words::counted;
use crate::engine::pause;
use crate::steps::promote;
use crate::store::{LiveWorkers, Pulled, RunFilter, RunSummary, ScheduleRow};

/// Active runs that `status` shows of each status.
const SHOWN_RUNS: u32 = 20;

/// `refit status`.
pub async fn status(opened: &Opened) -> Result<Exit, CliError> {
    let store = opened.store().await?;
    let doing = || "read the status".to_owned();
    let alive = store.live_workers().await.doing(doing)?;
    let releases = store.releases(None).await.doing(doing)?;
    let canaries = store.live_canaries(None).await.doing(doing)?;
    let schedules = store.schedules().await.doing(doing)?;
    let pulls = store.pulls(None).await.doing(doing)?;
    let freezes = store.open_freezes(opened.clock.now()).await.doing(doing)?;
    let mut pauses: BTreeMap<&WorkflowName, String> = BTreeMap::new();
    for row in &schedules {
        if let Some(pause) = pause::paused(&*store, &row.workflow, None).await.doing(doing)? {
            pauses.insert(&row.workflow, pause.reason());
        }
    }
    let mut runs: Vec<RunSummary> = vec![];
    for status in
        [RunStatus::Undoing, RunStatus::Held, RunStatus::Running, RunStatus::Waiting, RunStatus::Queued]
    {
        let filter = RunFilter { status: Some(status), limit: SHOWN_RUNS, ..RunFilter::default() };
        runs.extend(store.runs(&filter).await.doing(doing)?);
    }
    let mut holds: BTreeMap<RunId, Timestamp> = BTreeMap::new();
    for canary in &canaries {
        if runs.iter().any(|run| run.id == canary.run && run.status == RunStatus::Held) {
            let attempts = store.attempts(canary.run).await.doing(doing)?;
            let sleeps = attempts.iter().filter(|attempt| attempt.state == AttemptState::Sleeping);
            let until = sleeps.filter_map(|attempt| promote::held_until(attempt, canary)).next_back();
            holds.extend(until.map(|until| (canary.run, until)));
        }
    }
    let value = json!({
        "database": store.label(), "servers": alive.servers, "visitors": alive.visitors, "releases": releases, "runs": runs,
        "canaries": canaries.iter().map(|canary| {
            let mut value = json!(canary);
            if let (Some(value), Some(until)) = (value.as_object_mut(), holds.get(&canary.run)) {
                value.insert("held_until".to_owned(), json!(until));
            }
            value
        }).collect::<Vec<Value>>(),
        "evidence": pulls, "freezes": freezes,
        "schedules": schedules.iter().map(|row| json!({
            "workflow": row.workflow, "schedule": row.expression, "next": row.next_fire_at,
            "paused": pauses.get(&row.workflow),
        })).collect::<Vec<Value>>(),
    });
    opened.out.result(&value, || {
        let mut parts: Vec<String> = vec![];
        if releases.is_empty() {
            parts.push("nothing is served yet; `refit adopt` takes what serves today, a promoted run makes the first".to_owned());
        }
        parts.extend(releases.iter().map(|release| {
            let canary = canaries.iter().find(|it| it.model == release.model && it.target == release.target);
            let pulls: Vec<&Pulled> = pulls.iter().filter(|pulled| pulled.model == release.model).collect();
            let held_until = canary.and_then(|canary| holds.get(&canary.run).copied());
            shown(opened, release, canary.map(|canary| (canary, held_until)), &pulls)
        }));
        let now = opened.clock.now();
        parts.extend(freezes.iter().map(|freeze| {
            let paint = if freeze.is_in_force(now) { Paint::Odd } else { Paint::Dim };
            opened.out.painted(&plain(&super::freeze::sentence(freeze, now)), paint)
        }));
        if !runs.is_empty() {
            parts.push(runs_table(&runs, opened));
        }
        parts.extend((!schedules.is_empty()).then(|| schedules_table(opened, &schedules, &pauses)));
        parts.extend(pauses.iter().map(|(workflow, reason)| {
            let said = format!(
                "{workflow} is paused, because {reason}: `refit trigger {workflow}` starts it, and its schedule goes on"
            );
            opened.out.painted(&said, Paint::Odd)
        }));
        parts.push(at_work(opened, alive));
        parts.join("\n\n")
    });
    Ok(Exit::Ok)
}

fn at_work(opened: &Opened, alive: LiveWorkers) -> String {
    let nothing = "nothing is started, watched or sent until `refit serve` runs";
    let odd = |text: String| opened.out.painted(&text, Paint::Odd);
    match (alive.servers, alive.visitors) {
        (0, 0) => odd(format!("no server is running: {nothing}")),
        (0, _) => odd(format!("no server is running: once the processes that work now are done, {nothing}")),
        (1, _) => "1 server is running".to_owned(),
        (several, _) => format!("{several} servers are running"),
    }
}

/// A release with its canary, and until when that one is held, if it is.
fn shown(
    opened: &Opened,
    release: &Release,
    canary: Option<(&CanaryRecord, Option<Timestamp>)>,
    pulls: &[&Pulled],
) -> String {
    let now = opened.clock.now();
    let desired = &release.desired;
    let mut text = opened.out.painted(&format!("{} on {}", release.model, release.target), Paint::Bold);
    let name = |served: Option<&crate::domain::release::Served>| {
        served.map_or("none".to_owned(), |served| served.version.to_string())
    };
    text.push_str(&format!("\n  champion  {}", name(desired.champion.as_ref())));
    if desired.canary.is_none() {
        text.push_str(&format!(", since {}", time(release.updated_at)));
    }
    if let Some(out) = &desired.canary {
        let since =
            canary.map(|(canary, _)| format!(" for {}", span(now - canary.started_at))).unwrap_or_default();
        let run = release.owner.map(|run| format!(", run {}", short(run))).unwrap_or_default();
        text.push_str(&format!("\n  canary    {} at {}{since}{run}", out.served.version, out.basis_points));
        if out.valid_until <= now {
            text.push_str(", run out: clients treat it as 0 %");
        }
    }
    if let Some((canary, held_until)) = canary {
        let paint = match canary.verdict {
            Verdict::Pass => Paint::Good,
            Verdict::Inconclusive => Paint::Dim,
            Verdict::Error | Verdict::Fail => Paint::Bad,
        };
        let verdict = opened.out.painted(canary.verdict.as_str(), paint);
        text.push_str(&format!("\n  verdict   {verdict}: {}", plain(&canary.reason)));
        let limit = match canary.state {
            CanaryState::Watching => {
                let extended = canary.extensions.iter().map(|it| format!(", extended by {}", it.words()));
                let extended = plain(&extended.collect::<String>());
                let limit = match held_until {
                    // Its deadline is past, or, with more time, decides nothing.
                    Some(until) => Some(format!(
                        "held: `refit promote {0} --model {1}` or `refit rollback --model {1}` decides; if nobody \
                         does until {2}, it is taken back",
                        canary.version,
                        canary.model,
                        time(until)
                    )),
                    None => canary.deadline.map(|at| format!("decided at the latest {}", time(at))),
                };
                limit.map(|limit| limit + &extended)
            }
            CanaryState::Baking => {
                canary.bake_until.map(|at| format!("watched after promotion until {}", time(at)))
            }
            CanaryState::Promoted | CanaryState::RolledBack => None,
        };
        if let Some(limit) = limit {
            text.push_str(&format!("\n            {limit}"));
        }
        if canary.state == CanaryState::Watching
            && let Some(forecast) = canary.view().forecast
        {
            text.push_str(&format!("\n  forecast  {}", plain(&forecast)));
        }
        for pulled in pulls {
            text.push_str(&format!("\n  evidence  {}", fetched(opened, pulled)));
        }
    }
    if let Some(previous) = &desired.previous {
        text.push_str(&format!("\n  previous  {}", previous.version));
    }
    if !release.is_applied() {
        let note = format!("the host does not show generation {} yet", release.generation);
        text.push_str(&format!("\n  {}", opened.out.painted(&note, Paint::Odd)));
    }
    text
}

/// How far fetched evidence was read, or why it is not.
fn fetched(opened: &Opened, pulled: &Pulled) -> String {
    let report = &pulled.state.report;
    let through =
        pulled.state.through.map_or("nothing yet".to_owned(), |through| format!("up to {}", time(through)));
    let mut text = format!("from {}: {through}", pulled.source);
    if report.refused > 0 {
        let why = report.refusal.as_ref().map(|why| format!(", such as: {}", plain(why))).unwrap_or_default();
        text.push_str(&format!("; {} refused{why}", counted(report.refused, "row")));
    }
    if report.late > 0 {
        text.push_str(&format!("; {} came late", counted(report.late, "request")));
    }
    if let Some(problem) = &report.problem {
        let said = format!("since {}: {}", time(problem.since), plain(&problem.text));
        text.push_str(&format!("\n            {}", opened.out.painted(&said, Paint::Bad)));
    }
    text
}

fn schedules_table(
    opened: &Opened,
    schedules: &[ScheduleRow],
    pauses: &BTreeMap<&WorkflowName, String>,
) -> String {
    let now = opened.clock.now();
    table(
        &["WORKFLOW", "SCHEDULE", "NEXT", "IN"],
        schedules.iter().map(|row| {
            let left = row.next_fire_at - now;
            vec![
                row.workflow.to_string(),
                row.expression.clone(),
                time(row.next_fire_at),
                if pauses.contains_key(&row.workflow) {
                    "paused".to_owned()
                } else if left < TimeDelta::zero() {
                    "due".to_owned()
                } else {
                    span(left)
                },
            ]
        }),
    )
}
