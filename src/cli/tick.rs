//! `refit tick`: what a server does, for as long as something is due, and then
//! the end: for teams that have a cron job and no place for a server.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::drive::{next_after, summary};
use super::error::{CliError, Doing};
use super::output::{plain, span, time};
use super::pick::short;
use super::project::{Opened, SCHEDULES_EVERY};
use super::signals::Interrupts;
use super::{Exit, drive, project};
use crate::domain::Timestamp;
use crate::domain::canary::Looks;
use crate::domain::id::RunId;
use crate::domain::run::{Run, RunStatus};
use crate::domain::workflow::{Mode, StepKind};
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

/// `refit tick`.
pub async fn tick(opened: &Opened) -> Result<Exit, CliError> {
    let mut interrupts = Interrupts::listen()?;
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
        Worker::start(Arc::clone(&engine), notifiers).await.doing(|| "start to work".to_owned())?;
    let fired = Arc::clone(&catalog);
    worker.also(SCHEDULES_EVERY, "schedules", move |engine| {
        let catalog = Arc::clone(&fired);
        async move { schedule::fire_due(&engine, &catalog).await }
    });
    let stop = CancellationToken::new();
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
    let mut work = std::pin::pin!(work);
    let interrupted = tokio::select! {
        done = &mut work => {
            done?;
            false
        }
        () = interrupts.next() => {
            stop.cancel();
            work.await?;
            true
        }
    };
    let deadline = Deadline::within(engine.settings.grace);
    worker.shut_down(deadline).await.doing(|| "give the runs back".to_owned())?;
    let moved = before.moved(&store).await.doing(|| "list runs".to_owned())?;
    let next = engine.next_due().await.doing(|| "see what is due next".to_owned())?;
    store.close().await;
    say(opened, &moved, next);
    Ok(if interrupted { Exit::Interrupted } else { Exit::Ok })
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

fn say(opened: &Opened, moved: &[Run], next: Option<(Next, Timestamp)>) {
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
        if let Some(next) = next_after(run) {
            opened.out.note(&format!("hint: {next}"));
        }
    }
}
