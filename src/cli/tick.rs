//! `refit tick`: what a server does, for as long as something is due, and then
//! the end: for teams that have a cron job and no place for a server.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use futures::FutureExt as _;
use futures::future::FusedFuture as _;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::drive::{next_after, on_canary, summary};
use super::error::{CliError, Doing};
use super::output::{plain, span, time};
use super::pick::short;
use super::project::{Opened, SCHEDULES_EVERY};
use super::signals::{Ending, Interrupts};
use super::{Exit, drive, project};
use crate::domain::Timestamp;
use crate::domain::canary::Looks;
use crate::domain::id::{RunId, VersionName};
use crate::domain::run::{Run, RunStatus};
use crate::domain::workflow::{Mode, StepKind};
use crate::engine::Engine;
use crate::engine::deadline::Deadline;
use crate::engine::tick::{Next, Patience};
use crate::engine::worker::Worker;
use crate::steps::canary::CANARY_VALIDITY;
use crate::store::{RunFilter, Store, StoreError};
use crate::trigger::{Catalog, schedule};

/// What is due within this time is waited for: a retry, a short `wait`.
const SOON: TimeDelta = TimeDelta::seconds(15);
const ASK_EVERY: Duration = Duration::from_millis(200);
/// Runs that are compared before and after.
const COMPARED: u32 = 500;

/// `refit tick`. A first Ctrl-C or SIGTERM lets steps end or hands them over, a second ends at once.
pub async fn tick(opened: &Opened) -> Result<Exit, CliError> {
    let mut interrupts = Interrupts::listen()?;
    let Tick { store, engine, before, worker } = tokio::select! {
        begun = begin(opened) => begun?,
        () = interrupts.next() => {
            opened.out.note("stopped before it began to work");
            return Ok(Exit::Interrupted);
        }
    };
    let grace = engine.settings.grace;
    let stop = CancellationToken::new();
    let stopping = || opened.stopping(grace);
    let work = async {
        engine
            .until_quiet(Patience { soon: SOON, ask_every: ASK_EVERY }, &stop)
            .await
            .doing(|| "see what is due".to_owned())?;
        // What was due is done, whatever becomes of this.
        if let Err(error) = engine.prune(&stop).await {
            opened.out.note(&format!("warning: old evidence was not deleted: {error}"));
        }
        Ok::<_, CliError>(())
    };
    let mut work = pin!(work.fuse());
    let mut gone_by = tokio::select! {
        done = &mut work => {
            done?;
            None
        }
        () = interrupts.next() => Some(stopping()),
    };
    let deadline = gone_by.unwrap_or_else(|| Deadline::within(grace));
    let ending = async {
        stop.cancel();
        // What it was at when it was told to stop ends with its answer, if that comes.
        let left = async {
            if work.is_terminated() {
                return;
            }
            match tokio::time::timeout_at(deadline.of_steps(), &mut work).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!("{}", plain(&error.to_text())),
                Err(_) => tracing::debug!("The database did not say in time what is due"),
            }
        };
        let ((), ended) = tokio::join!(left, worker.shut_down(deadline));
        ended.doing(|| "give the runs back".to_owned())?;
        let moved = before.moved(&store).await.doing(|| "list runs".to_owned())?;
        let mut held = BTreeMap::new();
        for run in moved.iter().filter(|run| run.status == RunStatus::Held) {
            held.extend(on_canary(&store, run).await?.map(|version| (run.id, version)));
        }
        let next = engine.next_due().await.doing(|| "see what is due next".to_owned())?;
        say(opened, &moved, &held, next);
        Ok::<_, CliError>(())
    };
    match interrupts.during(ending, &mut gone_by, stopping).await {
        Ending::Whole(ended) => ended?,
        Ending::Late => {
            opened.out.note(
                "warning: the database did not answer in time: what was done is not listed; see `refit run ls`",
            );
            return Ok(Exit::Interrupted);
        }
        Ending::AtOnce => return Ok(Exit::Interrupted),
    }
    // Everything is said: a database that does not take leave is not waited for.
    let mut leaves_by = gone_by.or(Some(deadline));
    if let Ending::AtOnce = interrupts.during(store.close(), &mut leaves_by, stopping).await {
        return Ok(Exit::Interrupted);
    }
    Ok(if gone_by.is_some() { Exit::Interrupted } else { Exit::Ok })
}

/// A tick under way.
struct Tick {
    store: Arc<dyn Store>,
    engine: Arc<Engine>,
    before: Standing,
    worker: Worker,
}

async fn begin(opened: &Opened) -> Result<Tick, CliError> {
    let looks = Looks::Apart(opened.project.file.worker.tick_every);
    let store = opened.store().await?;
    let (engine, notifiers) = opened.engine_that(&store, looks)?;
    let catalog = Arc::new(opened.catalog());
    project::complain(&catalog);
    warn_of_canaries(opened, &catalog, looks);
    schedule::sync(&engine, &catalog).await.doing(|| "keep the schedules".to_owned())?;
    let before = Standing::now(&store).await.doing(|| "list runs".to_owned())?;
    schedule::fire_due(&engine, &catalog).await.doing(|| "start what is due".to_owned())?;
    let mut worker =
        Worker::for_now(Arc::clone(&engine), notifiers).await.doing(|| "start to work".to_owned())?;
    worker.also(SCHEDULES_EVERY, "schedules", move |engine| {
        let catalog = Arc::clone(&catalog);
        async move { schedule::fire_due(&engine, &catalog).await }
    });
    Ok(Tick { store, engine, before, worker })
}

/// Said before hours of training, not after.
fn warn_of_canaries(opened: &Opened, catalog: &Catalog, looks: Looks) {
    for loaded in catalog.workflows().iter().filter(|loaded| loaded.workflow.mode == Mode::Act) {
        for step in &loaded.workflow.steps {
            let StepKind::Canary(canary) = &step.kind else { continue };
            let valid = CANARY_VALIDITY.to_std().unwrap_or_default();
            if let Some(why) = looks.objection(canary.max_look_gap, valid) {
                opened.out.note(&format!(
                    "warning: {}: step `{}` will not start its canary: {why}; see `max_look_gap` in docs/workflow.md",
                    loaded.definition.path, step.id
                ));
            }
        }
    }
}

/// How runs stood before anything was done.
struct Standing {
    /// The newest run of all.
    newest: Option<RunId>,
    /// Those that had not ended.
    open: BTreeMap<RunId, RunStatus>,
}

impl Standing {
    async fn now(store: &Arc<dyn Store>) -> Result<Self, StoreError> {
        let newest = store.runs(&RunFilter { limit: 1, ..RunFilter::default() }).await?;
        Ok(Self { newest: newest.first().map(|run| run.id), open: open(store).await? })
    }

    /// Runs that are new, or stand elsewhere since; oldest first.
    async fn moved(&self, store: &Arc<dyn Store>) -> Result<Vec<Run>, StoreError> {
        let after = open(store).await?;
        let latest = store.runs(&RunFilter { limit: COMPARED, ..RunFilter::default() }).await?;
        let fresh =
            latest.iter().map(|run| run.id).filter(|id| self.newest.is_none_or(|newest| *id > newest));
        let elsewhere =
            self.open.iter().filter(|(id, status)| after.get(id) != Some(status)).map(|(id, _)| *id);
        let mut moved = vec![];
        for id in fresh.chain(elsewhere).collect::<BTreeSet<RunId>>() {
            if let Some(run) = store.run(id).await?
                && self.open.get(&id) != Some(&run.status)
            {
                moved.push(run);
            }
        }
        Ok(moved)
    }
}

async fn open(store: &Arc<dyn Store>) -> Result<BTreeMap<RunId, RunStatus>, StoreError> {
    let mut open = BTreeMap::new();
    for status in
        [RunStatus::Queued, RunStatus::Running, RunStatus::Waiting, RunStatus::Held, RunStatus::Undoing]
    {
        let filter = RunFilter { status: Some(status), limit: COMPARED, ..RunFilter::default() };
        open.extend(store.runs(&filter).await?.into_iter().map(|run| (run.id, run.status)));
    }
    Ok(open)
}

fn say(opened: &Opened, moved: &[Run], held: &BTreeMap<RunId, VersionName>, next: Option<(Next, Timestamp)>) {
    let value = json!({
        "runs": moved.iter().map(summary).collect::<Vec<_>>(),
        "next_due_at": next.as_ref().map(|(_, at)| at),
        "next": next.as_ref().map(|(what, _)| what.to_string()),
    });
    opened.out.result(&value, || {
        let mut lines: Vec<String> = moved
            .iter()
            .map(|run| {
                let (word, paint) = drive::ending(run);
                let why =
                    run.reason.as_deref().map(|reason| format!(": {}", plain(reason))).unwrap_or_default();
                format!("run {} of {} {}{why}", short(run.id), run.workflow, opened.out.painted(&word, paint))
            })
            .collect();
        lines.push(match next {
            None => "nothing is due next: no schedule, and nothing waits for its time".to_owned(),
            Some((what, at)) => {
                format!("due next, in {}: {what} ({})", span(at - opened.clock.now()), time(at))
            }
        });
        lines.join("\n")
    });
    for run in moved {
        if let Some(next) = next_after(run, held.get(&run.id)) {
            opened.out.note(&format!("hint: {next}"));
        }
    }
}
