//! `status`, `promote`, `rollback`: what serves, and changing it by hand.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::TimeDelta;
use serde_json::{Value, json};

use super::Exit;
use super::args::{Promote, Rollback};
use super::error::{CliError, Doing};
use super::output::{Paint, ask, can_ask, plain, span, table, time};
use super::pick::{self, short};
use super::project::{Opened, actor};
use super::run::runs_table;
use crate::domain::Timestamp;
use crate::domain::canary::{CanaryRecord, CanaryState};
use crate::domain::id::{ModelName, RunId, TargetName, VersionName, WorkflowName};
use crate::domain::release::{Release, ReleaseActor};
use crate::domain::run::{AttemptState, RunStatus};
use crate::domain::verdict::Verdict;
use crate::domain::version::{VersionRecord, VersionState};
use crate::domain::words::counted;
use crate::domain::workflow::{Moment, Recipient};
use crate::engine::by_hand::{Promoted, PromotedByHand};
use crate::engine::heard::{Hears, without_reason};
use crate::engine::pause;
use crate::engine::release::{Back, ReleaseError};
use crate::engine::reread::Choice;
use crate::steps::promote;
use crate::store::{LiveWorkers, Pulled, RunFilter, RunSummary, ScheduleRow, Store};

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
        "database": store.label(), "servers": alive.servers, "releases": releases, "runs": runs,
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

/// `refit promote`.
pub async fn promote(opened: &Opened, args: &Promote) -> Result<Exit, CliError> {
    let store = opened.store().await?;
    let (model, target, release) =
        pick::release_and_version(opened, &store, &args.which, Some(&args.version), "promote VERSION")
            .await?;
    let version = &pick::version_of(&model, release.as_ref(), &args.version)?;
    let canary = release.as_ref().and_then(|release| release.desired.canary.as_ref());
    let champion = release.as_ref().and_then(|release| release.desired.champion.as_ref());
    let serves =
        champion.map_or("nothing serves now".to_owned(), |served| format!("{} serves now", served.version));
    let mut will = format!("{version} will serve everybody of {model} on {target}; {serves}");
    if let Some(canary) = canary.filter(|canary| &canary.served.version != version) {
        if !args.supersede {
            let owner = release.as_ref().and_then(|release| release.owner);
            let run = owner.map(|run| format!(" (run {})", short(run))).unwrap_or_default();
            return Err(CliError::new(
                Exit::Busy,
                format!("cannot promote {version}: {} is on canary{run}", canary.served.version),
            )
            .hint(format!(
                "wait for its verdict (`refit status`), or drop {} with --supersede",
                canary.served.version
            )));
        }
        will.push_str(&format!("; the canary {} is dropped", canary.served.version));
    }
    let known = store.version(&model, version).await.doing(|| format!("read version {version}"))?;
    let known = known.ok_or_else(|| {
        CliError::usage(format!("cannot promote {version}: `{model}` has no such version"))
            .hint(format!("`refit model ls {model}` lists its versions"))
    })?;
    will.push_str(&warning_of(&known));
    let freeze =
        store.freeze_over(&model, opened.clock.now()).await.doing(|| "read the freezes".to_owned())?;
    if let Some(freeze) = freeze.filter(|_| champion.map(|served| &served.version) != Some(version)) {
        if !args.despite_freeze {
            let refused: CliError = ReleaseError::Frozen { model, freeze: Box::new(freeze) }.into();
            return Err(refused).doing(|| format!("promote {version}"));
        }
        will.push_str(&format!("; it is {freeze}"));
    }
    confirm(opened, &will)?;
    let (engine, _) = opened.engine(&store)?;
    let (who, why) = (actor(), args.which.why.as_deref());
    let done = if args.despite_freeze {
        engine.promote_despite_freeze(&model, &target, version, args.supersede, &who, why).await
    } else {
        engine.promote_by_hand(&model, &target, version, args.supersede, &who, why).await
    };
    let done = done.doing(|| format!("promote {version} of `{model}` on {target}"))?;
    opened.poke().await;
    match done {
        PromotedByHand::Run(run) => {
            let value = json!({"model": model, "target": target, "version": version, "told_run": run});
            opened
                .out
                .result(&value, || format!("run {} was told to promote its canary {version}", short(run)));
            super::trigger::say_who_runs(opened, &store, Some(run)).await?;
        }
        PromotedByHand::Done(promoted) => {
            let Promoted { release, hears } = *promoted;
            say_who_hears(opened, hears.as_ref());
            let value = json!({
                "model": model, "target": target, "version": version, "release": release,
                "told": hears.as_ref().and_then(told),
            });
            opened.out.result(&value, || {
                format!(
                    "{version} serves everybody of {model} on {target} (generation {})",
                    release.generation
                )
            });
        }
    }
    Ok(Exit::Ok)
}

/// The version that a rollback goes back to. Whoever says `canary` wants it dropped, not served to everybody.
fn back_to(model: &ModelName, release: &Release, word: &VersionName) -> Result<VersionName, CliError> {
    match word.as_str() {
        "canary" => Err(CliError::usage("a rollback does not go to the canary").hint(format!(
            "`refit rollback --model {model}` drops the canary; `refit promote canary --model {model}` lets it serve \
             everybody"
        ))),
        "champion" => Err(CliError::usage("a rollback does not go to what serves already").hint(format!(
            "`refit rollback --model {model}` goes back to the version before, `refit rollback VERSION` to another"
        ))),
        _ => pick::version_of(model, Some(release), word),
    }
}

/// `refit rollback`.
pub async fn rollback(opened: &Opened, args: &Rollback) -> Result<Exit, CliError> {
    let store = opened.store().await?;
    let (model, target, release) =
        pick::release_and_version(opened, &store, &args.which, args.version.as_ref(), "rollback").await?;
    let release = release.ok_or_else(|| {
        CliError::usage(format!("cannot roll back: `{model}` serves nothing on {target} yet"))
            .hint("`refit status` lists what is served")
    })?;
    let to = args.version.as_ref().map(|word| back_to(&model, &release, word)).transpose()?;
    let back = to.as_ref().map(|version| Back { version, marks_bad: args.bad });
    let will = what_a_rollback_does(&store, &model, &target, &release, back).await?;
    confirm(opened, &will)?;
    let (engine, _) = opened.engine(&store)?;
    let who = actor();
    let reason = args.which.why.clone().unwrap_or_else(|| without_reason(Moment::RolledBack, &who));
    let who = ReleaseActor::Human { name: who };
    let doing = || format!("roll back `{model}` on {target}");
    let before = release.desired.champion;
    let done = engine.roll_back(&model, &target, back, who.clone(), &reason).await.doing(doing)?;
    opened.poke().await;
    for version in &done.passed_over {
        opened.out.note(&format!("passed over: {version}"));
    }
    say_who_hears(opened, Some(&done.hears));
    let mut release = done.release;
    if let Some(served) = release.desired.champion.clone().filter(|served| Some(served) != before.as_ref()) {
        opened.out.note(&format!("{} serves; its files are being read", served.version));
        let choice = if back.is_some() { Choice::Named } else { Choice::Free };
        let doing = || format!("read the files of {}, which serves already", served.version);
        release = engine.check_rollback(release, choice, &who).await.doing(doing)?;
    }
    let value = json!({
        "model": model, "target": target, "release": release, "passed_over": done.passed_over,
        "told": told(&done.hears),
    });
    opened.out.result(&value, || {
        let serves = release.desired.champion.as_ref();
        let serves = serves.map_or("nothing".to_owned(), |served| served.version.to_string());
        format!("{serves} serves everybody of {model} on {target} (generation {})", release.generation)
    });
    Ok(Exit::Ok)
}

/// Says who hears of what was done, unless a run says it.
fn say_who_hears(opened: &Opened, hears: Option<&Hears>) {
    match hears {
        Some(Hears::These(recipients)) => {
            let names: Vec<String> = recipients.iter().map(ToString::to_string).collect();
            opened.out.note(&format!("told of it: {}", names.join(", ")));
        }
        Some(Hears::Nobody(why)) => opened.out.note(&format!("nobody is told of it: {why}")),
        Some(Hears::OfItsRun) | None => {}
    }
}

/// The same for programs: nothing where a run says it, or where there is nothing to say.
fn told(hears: &Hears) -> Option<&[Recipient]> {
    match hears {
        Hears::These(recipients) => Some(recipients),
        Hears::Nobody(_) => Some(&[]),
        Hears::OfItsRun => None,
    }
}

/// What speaks against a version that is to serve.
fn warning_of(record: &VersionRecord) -> String {
    match record.state {
        VersionState::Bad => {
            format!("; {0} is marked bad, until `refit model mark {0} --good`", record.name)
        }
        VersionState::Sealed
        | VersionState::Reserved
        | VersionState::Abandoned
        | VersionState::Deleting
        | VersionState::Deleted => String::new(),
    }
}

async fn what_a_rollback_does(
    store: &Arc<dyn Store>,
    model: &ModelName,
    target: &TargetName,
    release: &Release,
    back: Option<Back<'_>>,
) -> Result<String, CliError> {
    let champion = release.desired.champion.as_ref().map(|served| &served.version);
    let serves = champion.map_or("nothing".to_owned(), ToString::to_string);
    match (&release.desired.canary, back) {
        (Some(canary), None) => Ok(format!(
            "the canary {} of {model} on {target} is dropped; {serves} serves everybody",
            canary.served.version
        )),
        (_, Some(Back { version: to, marks_bad })) => {
            let known = store.version(model, to).await.doing(|| format!("read version {to}"))?;
            let known = known.ok_or_else(|| {
                CliError::usage(format!("cannot roll back to {to}: `{model}` has no such version"))
                    .hint(format!("`refit model ls {model}` lists its versions"))
            })?;
            let bad = if marks_bad { ", which is marked bad" } else { "" };
            let warning = warning_of(&known);
            Ok(format!("{to} will serve everybody of {model} on {target} instead of {serves}{bad}{warning}"))
        }
        (None, None) => {
            let previous = match &release.desired.previous {
                Some(served) => {
                    store.version(model, &served.version).await.doing(|| "read the versions".to_owned())?
                }
                None => None,
            };
            let good = previous.filter(|record| record.state == VersionState::Sealed);
            let to = match good {
                Some(record) => record.name.to_string(),
                None => {
                    let known = store.versions(model).await.doing(|| "read the versions".to_owned())?;
                    let is_good = |record: &VersionRecord| {
                        record.state == VersionState::Sealed && Some(&record.name) != champion
                    };
                    if !known.iter().any(is_good) {
                        return Ok(format!("{serves} serves everybody of {model} on {target}"));
                    }
                    "the newest good version".to_owned()
                }
            };
            Ok(format!("{serves} of {model} on {target} is marked bad; {to} will serve everybody"))
        }
    }
}

/// Says what will happen, and asks where somebody can answer.
pub(super) fn confirm(opened: &Opened, will: &str) -> Result<(), CliError> {
    opened.out.note(will);
    go_on(opened, "this changes what is served")
}

/// Asks whether to do what was said, where somebody can answer.
pub fn go_on(opened: &Opened, what: &str) -> Result<(), CliError> {
    if opened.global.yes {
        return Ok(());
    }
    if !can_ask() {
        return Err(
            CliError::usage(format!("{what}, and nobody can be asked here")).hint("say so with --yes")
        );
    }
    if ask("go on?") { Ok(()) } else { Err(CliError::new(Exit::Interrupted, "nothing was changed")) }
}
