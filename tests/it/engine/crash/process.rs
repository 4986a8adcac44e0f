//! One process's life, from its start to the end of the story, or to its death.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use refit::clock::Clock;
use refit::domain::id::{RunId, WorkflowName};
use refit::domain::run::RunStatus;
use refit::engine::Engine;
use refit::notify::outbox;
use refit::store::RunFilter;
use tokio_util::sync::CancellationToken;

use super::inbox::Inbox;
use super::story::{Scene, Story, workflow_of};
use crate::support::crash::Crash;
use crate::support::world::{World, turn};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// At its write.
    Died,
    /// The story was over.
    Ended,
}

/// How far a story is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// This step sleeps.
    At(&'static str),
    /// All runs ended, and everybody was told.
    Over,
}

/// Runs `work` on a runtime of its own.
pub fn on_a_runtime<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let done = runtime.block_on(work);
    // What was spawned is dropped here: to the world, the process is gone.
    runtime.shutdown_timeout(Duration::from_secs(20));
    done
}

/// Works on the run of `story` as far as `until`, or until `crash`.
pub fn live(world: &World, story: &dyn Story, until: Until, inbox: &Inbox, crash: &Crash) -> Fate {
    on_a_runtime(async {
        tokio::select! {
            biased;
            () = crash.died() => Fate::Died,
            () = work(world, story, until, inbox, crash) => Fate::Ended,
        }
    })
}

async fn work(world: &World, story: &dyn Story, until: Until, inbox: &Inbox, crash: &Crash) {
    let notifiers = inbox.notifiers(world);
    let engine = world.process_that_follows(notifiers.boards(), crash).await;
    engine.store.reap(world.clock.now()).await.expect("reaps");
    let name = workflow_of(&story.workflow());
    let run = match run_of(&engine, &name).await {
        Some(run) => run,
        None => {
            story.start(world, &engine).await;
            run_of(&engine, &name).await.expect("started")
        }
    };
    let scene = Scene { world, engine: &engine, run };
    for _ in 0..60 {
        story.meanwhile(&scene).await;
        let seen = turn(&engine, run).await;
        let others = runs_beside(&engine, story).await;
        for other in &others {
            engine.activate(*other, &CancellationToken::new()).await.expect("activates");
        }
        engine.show_boards(&notifiers).await.expect("shown");
        outbox::drain_once(engine.store.as_ref(), &notifiers, world.clock.as_ref()).await.expect("drains");
        let enough = match until {
            Until::At(step) => scene.sleeps_at(step).await,
            Until::Over => seen.status == RunStatus::Finished && is_settled(&engine, &others).await,
        };
        if enough {
            engine.store.retire_worker(engine.worker).await.expect("retires");
            engine.store.close().await;
            return;
        }
        world.pass(story.pace());
    }
    let run = engine.store.run(run).await.expect("readable").expect("a run");
    panic!("it never came to that: {:?} {:?} {:?}", run.status, run.outcome, run.reason);
}

/// The run of a workflow, if it was made.
pub async fn run_of(engine: &Engine, workflow: &WorkflowName) -> Option<RunId> {
    let filter = RunFilter { workflow: Some(workflow.clone()), limit: 10, ..RunFilter::default() };
    let runs = engine.store.runs(&filter).await.expect("readable");
    assert!(runs.len() <= 1, "{runs:#?}");
    runs.first().map(|run| run.id)
}

async fn runs_beside(engine: &Arc<Engine>, story: &dyn Story) -> Vec<RunId> {
    let mut runs = vec![];
    for workflow in story.beside() {
        runs.extend(run_of(engine, &workflow.parse().expect("a name")).await);
    }
    runs
}

/// Whether all ended, the host shows what it should, and nothing waits any more: no message, and no canary for a look.
async fn is_settled(engine: &Engine, runs: &[RunId]) -> bool {
    for run in runs {
        let seen = engine.store.run(*run).await.expect("readable").expect("a run");
        if seen.status != RunStatus::Finished {
            return false;
        }
    }
    let releases = engine.store.releases(None).await.expect("readable");
    let due = engine.store.due(engine.clock.now()).await.expect("readable");
    due.soonest.is_empty() && releases.iter().all(|release| release.is_applied())
}

/// What a panic said.
pub fn words_of(panic: &(dyn Any + Send)) -> String {
    let words = panic.downcast_ref::<String>().map(String::as_str);
    words.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned()
}
