//! Following a run to its end: watching it where a server lives, driving it
//! where none does.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, timeout_at};

use super::Exit;
use super::error::{CliError, Doing};
use super::follow::{Watch, Watched};
use super::output::{Output, Paint, plain};
use super::pick::short;
use super::project::{Opened, actor};
use super::signals::{Ending, Interrupts};
use crate::domain::canary::CanaryState;
use crate::domain::id::{RunId, VersionName};
use crate::domain::run::{Attempt, AttemptState, CancelRequest, Outcome, Run, RunStatus};
use crate::domain::workflow::{Mode, StepKind, Workflow, parse};
use crate::engine::Engine;
use crate::engine::deadline::Deadline;
use crate::engine::worker::Worker;
use crate::notify::Notifiers;
use crate::store::{Store, StoreError};

/// How often a watcher asks whether a server still lives.
const STILL_ALIVE: Duration = Duration::from_secs(5);
/// How often a step is looked at that sends a canary out.
const GOING_OUT: Duration = Duration::from_millis(50);

/// Who advances a run that is followed.
pub enum By {
    /// A server: this process only watches.
    Server,
    /// This process.
    Us(Arc<Engine>, Arc<Notifiers>),
}

impl By {
    /// A server where one lives, else this process. Settings that cannot be used are found here, before anything is begun.
    pub async fn whoever_lives(opened: &Opened, store: &Arc<dyn Store>) -> Result<Self, CliError> {
        if store.live_workers().await.doing(|| "look for a server".to_owned())?.servers > 0 {
            return Ok(By::Server);
        }
        let (engine, notifiers) = opened.engine(store)?;
        Ok(By::Us(engine, notifiers))
    }
}

/// The workflow a run goes by, if this version of refit can read it.
pub fn snapshot(run: &Run) -> Option<Arc<Workflow>> {
    let definition = &run.definition;
    parse(&definition.path, &definition.source, &definition.files)
        .ok()
        .map(|(workflow, _)| Arc::new(workflow))
}

/// Follows `run` until it ended or waits for a human, and says how it ended.
pub async fn follow(opened: &Opened, store: &Arc<dyn Store>, run: &Run, by: By) -> Result<Exit, CliError> {
    let mut interrupts = Interrupts::listen()?;
    let mut watch =
        Watch::new(opened.out, Arc::clone(store), Arc::clone(&opened.clock), snapshot(run), run.epoch);
    let alone = matches!(by, By::Us(..));
    let watched = match by {
        By::Server => watch_only(opened, store, run.id, &mut watch, &mut interrupts).await,
        By::Us(engine, notifiers) => {
            drive(opened, &engine, &notifiers, run.id, &mut watch, &mut interrupts).await
        }
    };
    watch.close();
    Ok(match watched? {
        Some(Watched::Settled(run)) => {
            let version = if run.status == RunStatus::Held { on_canary(store, &run).await? } else { None };
            ended(opened.out, &run, version.as_ref(), alone);
            Exit::of_run(&run)
        }
        Some(Watched::NeedsApproval(run, step)) => {
            let id = short(run.id);
            opened.out.result(&summary(&run), || format!("run {id} waits: step `{step}` needs approval"));
            opened.out.note(&format!("hint: `refit run approve {id}` or `refit run reject {id}`"));
            Exit::Waiting
        }
        None => Exit::Interrupted,
    })
}

async fn watch_only(
    opened: &Opened,
    store: &Arc<dyn Store>,
    run: RunId,
    watch: &mut Watch,
    interrupts: &mut Interrupts,
) -> Result<Option<Watched>, CliError> {
    let warning = async {
        let mut told = false;
        loop {
            tokio::time::sleep(STILL_ALIVE).await;
            // While the database is away nobody knows, and that is said by whoever watches.
            let Ok(alive) = store.live_workers().await else { continue };
            if alive.servers == 0 && !told {
                opened
                    .out
                    .note("no server lives any more: the run goes on when `refit serve` is started again");
            }
            told = alive.servers == 0;
        }
    };
    tokio::select! {
        watched = watch.until_settled(run) => watched.map(Some),
        () = interrupts.next() => {
            opened.out.note(&format!("run {} goes on; see it with `refit run show {0}`", short(run)));
            Ok(None)
        }
        never = warning => never,
    }
}

async fn drive(
    opened: &Opened,
    engine: &Arc<Engine>,
    notifiers: &Arc<Notifiers>,
    run: RunId,
    watch: &mut Watch,
    interrupts: &mut Interrupts,
) -> Result<Option<Watched>, CliError> {
    let grace = engine.settings.grace;
    let begun = Worker::of_one(Arc::clone(engine), Arc::clone(notifiers), run);
    let worker = tokio::select! {
        begun = begun => begun.doing(|| format!("advance run {run}"))?,
        () = interrupts.next() => {
            tell_where_it_stopped(opened, run);
            return Ok(None);
        }
    };
    let mut watched = tokio::select! {
        watched = watch.until_settled(run) => Some(watched?),
        () = interrupts.next() => None,
    };
    let mut gone_by = watched.is_none().then(|| opened.stopping(grace));
    let deadline = gone_by.unwrap_or_else(|| Deadline::within(grace));
    let ending = async {
        if watched.is_none() {
            watched = take_back_by(deadline.of_force(), opened, engine, run, watch).await;
        }
        let ended = match watched {
            Some(_) => worker.finish(deadline).await,
            None => worker.shut_down(deadline).await,
        };
        if watched.is_none() {
            // Its last step may have ended meanwhile.
            watched = watch.look(run).await?;
        }
        ended.doing(|| "give the run back".to_owned())
    };
    let ended = interrupts.during(ending, &mut gone_by, || opened.stopping(grace)).await;
    if watched.is_none() {
        tell_where_it_stopped(opened, run);
    }
    if watched.is_none() && matches!(ended, Ending::Whole(_)) {
        tell_what_is_left_out(opened, engine, run, deadline.end()).await;
    }
    match ended {
        Ending::Whole(Err(error)) if error.exit != Exit::Unreachable => Err(error),
        // Leases end by themselves, and trainers with the pipe to their guard.
        Ending::Whole(_) | Ending::Late | Ending::AtOnce => Ok(watched),
    }
}

fn tell_where_it_stopped(opened: &Opened, run: RunId) {
    let id = short(run);
    opened.out.note(&format!(
        "run {id} stopped where it was; go on with `refit run resume {id} --follow` or `refit serve`"
    ));
}

/// A step may have begun while it was asked whether one had.
async fn tell_what_is_left_out(opened: &Opened, engine: &Engine, run: RunId, by: Instant) {
    let left = async {
        let live = engine.store.live_workers().await?;
        if live.servers > 0 { Ok(None) } else { out(&engine.store, run).await }
    };
    if let Ok(Ok(Some(version))) = timeout_at(by, left).await {
        opened
            .out
            .note(&format!("warning: {version} is on canary, and nobody watches it until the run goes on"));
    }
}

/// A canary that nobody would watch is taken back before this process leaves: how the run settled then, if it did in time.
async fn take_back_by(
    by: Instant,
    opened: &Opened,
    engine: &Arc<Engine>,
    run: RunId,
    watch: &mut Watch,
) -> Option<Watched> {
    let unknown = |why: &str| {
        opened
            .out
            .note(&format!("warning: whether a canary is left out is not known: {why}; see `refit status`"));
    };
    match timeout_at(by, take_back(opened, engine, run)).await {
        Ok(Ok(true)) => match timeout_at(by, watch.until_settled(run)).await {
            Ok(Ok(watched)) => return Some(watched),
            Ok(Err(error)) => unknown(&plain(&error.message)),
            Err(_) => unknown("it was not taken back in time"),
        },
        Ok(Ok(false)) => {}
        Ok(Err(error)) => unknown(&plain(&error.message)),
        Err(_) => unknown("the step that sends it out did not end in time, or the database did not answer"),
    }
    None
}

/// Whether a canary of the run is out, or goes out; it is to be taken back then.
async fn take_back(opened: &Opened, engine: &Engine, run: RunId) -> Result<bool, CliError> {
    let version = loop {
        // In this order: a canary is out before its step ends.
        let goes_out = goes_out(&engine.store, run).await.doing(|| format!("read the steps of run {run}"))?;
        if let Some(version) = out(&engine.store, run).await.doing(|| "look for a canary".to_owned())? {
            break version;
        }
        if !goes_out {
            return Ok(false);
        }
        tokio::time::sleep(GOING_OUT).await;
    };
    // It may have been started meanwhile.
    if engine.store.live_workers().await.doing(|| "look for a server".to_owned())?.servers > 0 {
        return Ok(false);
    }
    let request = CancelRequest {
        actor: actor(),
        reason: Some("interrupted, and no server watches the canary".to_owned()),
        at: engine.clock.now(),
    };
    let asked = engine.store.request_cancel(run, &request).await.doing(|| format!("cancel run {run}"))?;
    if asked {
        opened.out.note(&format!(
            "nobody would watch {version} on canary: taking it back; Ctrl-C again leaves it out"
        ));
    }
    Ok(asked)
}

/// Whether a step of the run is about to send a canary out.
async fn goes_out(store: &Arc<dyn Store>, run: RunId) -> Result<bool, StoreError> {
    let Some(workflow) = store.run(run).await?.as_ref().and_then(snapshot) else { return Ok(false) };
    let sends = |attempt: &Attempt| {
        let kind = workflow.step(&attempt.step).map(|step| &step.kind);
        attempt.state == AttemptState::Started && matches!(kind, Some(StepKind::Canary(_)))
    };
    Ok(store.attempts(run).await?.iter().any(sends))
}

/// The version that the run has on canary. A host may show it before anybody watches it.
async fn out(store: &Arc<dyn Store>, run: RunId) -> Result<Option<VersionName>, StoreError> {
    let watched = store.canary_of(run).await?.filter(|canary| canary.state == CanaryState::Watching);
    if let Some(canary) = watched {
        return Ok(Some(canary.version));
    }
    let mut releases = store.releases(None).await?.into_iter().filter(|release| release.owner == Some(run));
    Ok(releases.find_map(|release| release.desired.canary).map(|canary| canary.served.version))
}

/// A run as programs read it.
pub fn summary(run: &Run) -> serde_json::Value {
    json!({
        "run": run.id, "workflow": run.workflow, "model": run.model, "status": run.status,
        "outcome": run.outcome, "reason": run.reason, "created_at": run.created_at, "finished_at": run.finished_at,
    })
}

/// Says how a run ended, and what to do about it.
fn ended(out: Output, run: &Run, version: Option<&VersionName>, alone: bool) {
    let id = short(run.id);
    let (word, paint) = ending(run);
    out.result(&summary(run), || {
        let why = run.reason.as_deref().map(|reason| format!(": {}", plain(reason))).unwrap_or_default();
        format!("run {id} {}{why}", out.painted(&word, paint))
    });
    if let Some(next) = next_after(run, version) {
        out.note(&format!("hint: {next}"));
    }
    let advises = snapshot(run).is_some_and(|workflow| {
        workflow.mode != Mode::Act
            && workflow.steps.iter().any(|step| matches!(step.kind, StepKind::Promote(_)))
    });
    if advises && run.outcome == Some(Outcome::Succeeded) {
        out.note(&format!(
            "hint: nothing that serves was changed; write `mode: act` into {} when you trust it",
            run.definition.path
        ));
    }
    if alone && run.status == RunStatus::Held {
        out.note("hint: nobody watches the canary until `refit serve` runs");
    }
}

/// How a run stands, in a word and its colour.
pub fn ending(run: &Run) -> (String, Paint) {
    match (run.status, run.outcome) {
        (RunStatus::Finished, Some(outcome)) => {
            let paint = match outcome {
                Outcome::Succeeded | Outcome::Promoted | Outcome::CancelledAfterPromotion => Paint::Good,
                Outcome::Rejected | Outcome::RolledBack | Outcome::Skipped | Outcome::Cancelled => Paint::Odd,
                Outcome::Failed => Paint::Bad,
            };
            (outcome.as_str().replace('_', " "), paint)
        }
        (status, _) => (status.as_str().to_owned(), Paint::Odd),
    }
}

/// The next thing to do about a run that settled; `version` is what it has on canary.
pub fn next_after(run: &Run, version: Option<&VersionName>) -> Option<String> {
    let id = short(run.id);
    match (run.status, run.outcome) {
        (RunStatus::Held, _) => Some(held(run, version)),
        (RunStatus::Finished, Some(Outcome::Failed)) => Some(format!(
            "`refit run logs {id}` has the whole log; `refit trigger {}` tries again",
            run.workflow
        )),
        (RunStatus::Finished, Some(Outcome::Rejected)) => {
            Some(format!("`refit run show {id}` has what was refused; nothing that serves was changed"))
        }
        (_, _) => None,
    }
}

/// What a human can do about a held run.
pub fn held(run: &Run, version: Option<&VersionName>) -> String {
    let version = version.map_or("canary", VersionName::as_str);
    format!("decide: `refit promote {version} --model {0}` or `refit rollback --model {0}`", run.model)
}

/// What a held run has on canary.
pub async fn on_canary(store: &Arc<dyn Store>, run: &Run) -> Result<Option<VersionName>, CliError> {
    let canary = store.canary_of(run.id).await.doing(|| format!("read the canary of run {}", run.id))?;
    Ok(canary.map(|canary| canary.version))
}
