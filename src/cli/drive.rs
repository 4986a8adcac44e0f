//! Following a run to its end: watching it where a server lives, driving it
//! where none does.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::Exit;
use super::error::{CliError, Doing};
use super::follow::{Watch, Watched};
use super::output::{Output, Paint, plain};
use super::pick::short;
use super::project::{Opened, actor};
use super::signals::Interrupts;
use crate::domain::canary::CanaryState;
use crate::domain::id::RunId;
use crate::domain::run::{CancelRequest, Outcome, Run, RunStatus};
use crate::domain::workflow::{Mode, StepKind, Workflow, parse};
use crate::engine::Engine;
use crate::notify::Notifiers;
use crate::store::Store;

/// How often a watcher asks whether a server still lives.
const STILL_ALIVE: Duration = Duration::from_secs(5);

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
        if store.live_workers().await.doing(|| "look for a server".to_owned())? > 0 {
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
            ended(opened.out, &run, alone);
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
    let mut settled = pin!(watch.until_settled(run));
    let mut told = false;
    loop {
        tokio::select! {
            watched = &mut settled => return watched.map(Some),
            () = interrupts.next() => {
                opened.out.note(&format!("run {} goes on; see it with `refit run show {0}`", short(run)));
                return Ok(None);
            }
            () = tokio::time::sleep(STILL_ALIVE) => {
                let gone = store.live_workers().await.doing(|| "look for a server".to_owned())? == 0;
                if gone && !told {
                    opened.out.note("no server lives any more: the run goes on when `refit serve` is started again");
                }
                told = gone;
            }
        }
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
    let stop = CancellationToken::new();
    let mut driven = pin!(engine.drive_one(run, notifiers, &stop, |_| {}));
    let mut driving = true;
    let mut interrupted = 0;
    let watched = {
        let mut settled = pin!(watch.until_settled(run));
        loop {
            tokio::select! {
                watched = &mut settled => break Some(watched?),
                ended = &mut driven, if driving => {
                    driving = false;
                    ended.doing(|| format!("advance run {run}"))?;
                    if stop.is_cancelled() {
                        break None;
                    }
                }
                () = interrupts.next() => {
                    interrupted += 1;
                    if interrupted > 1 || !driving {
                        // Leases end by themselves, and trainers with the pipe to their guard.
                        break None;
                    }
                    if !take_back(opened, engine, run).await? {
                        stop.cancel();
                    }
                }
            }
        }
    };
    stop.cancel();
    if driving && watched.is_some() {
        driven.await.doing(|| format!("advance run {run}"))?;
    }
    if watched.is_none() {
        let id = short(run);
        opened.out.note(&format!(
            "run {id} stopped where it was; go on with `refit run resume {id} --follow` or `refit serve`"
        ));
    }
    Ok(watched)
}

/// A canary that nobody would watch is taken back before this process leaves.
async fn take_back(opened: &Opened, engine: &Arc<Engine>, run: RunId) -> Result<bool, CliError> {
    let canary = engine.store.canary_of(run).await.doing(|| "look for a canary".to_owned())?;
    let Some(canary) = canary.filter(|canary| canary.state == CanaryState::Watching) else {
        return Ok(false);
    };
    let request = CancelRequest {
        actor: actor(),
        reason: Some("interrupted, and no server watches the canary".to_owned()),
        at: engine.clock.now(),
    };
    let asked = engine.store.request_cancel(run, &request).await.doing(|| format!("cancel run {run}"))?;
    if asked {
        opened.out.note(&format!(
            "nobody would watch {} on canary: taking it back; Ctrl-C again leaves it out",
            canary.version
        ));
    }
    Ok(asked)
}

/// A run as programs read it.
pub fn summary(run: &Run) -> serde_json::Value {
    json!({
        "run": run.id, "workflow": run.workflow, "model": run.model, "status": run.status,
        "outcome": run.outcome, "reason": run.reason, "created_at": run.created_at, "finished_at": run.finished_at,
    })
}

/// Says how a run ended, and what to do about it.
fn ended(out: Output, run: &Run, alone: bool) {
    let id = short(run.id);
    let (word, paint) = ending(run);
    out.result(&summary(run), || {
        let why = run.reason.as_deref().map(|reason| format!(": {}", plain(reason))).unwrap_or_default();
        format!("run {id} {}{why}", out.painted(&word, paint))
    });
    if let Some(next) = next_after(run) {
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

/// The next thing to do about a run that settled.
pub fn next_after(run: &Run) -> Option<String> {
    let id = short(run.id);
    match (run.status, run.outcome) {
        (RunStatus::Held, _) => Some(held(run)),
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
pub fn held(run: &Run) -> String {
    format!("decide: `refit promote VERSION --model {0}` or `refit rollback --model {0}`", run.model)
}
