//! One attempt of one step: its context, its timeout, its end, whatever happens in it.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Engine;
use super::ledger::RunLedger;
use super::log::StoredLog;
use crate::domain::expr::Scope;
use crate::domain::id::{Epoch, StepId};
use crate::domain::pipeline;
use crate::domain::run::{Attempt, FailureKind, Run, Signal, StepFailure};
use crate::domain::workflow::{Step, Workflow};
use crate::steps;
use crate::steps::context::{StepContext, StepError, StepLog, StepResult};
use crate::store::StoreError;

/// How long an attempt that was ended by force may take to keep its log, and its run to be given back.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What a body is started with; cheap to clone.
#[derive(Clone)]
pub struct Input {
    /// The run.
    pub run: Arc<Run>,
    /// Its workflow.
    pub workflow: Arc<Workflow>,
    /// The fence.
    pub epoch: Epoch,
    /// Attempts so far, this one included.
    pub attempts: Arc<Vec<Attempt>>,
    /// Signals so far.
    pub signals: Arc<Vec<Signal>>,
    /// Counts them, as `Claim::heard` does.
    pub heard: i64,
    /// Roots of expressions.
    pub scope: Arc<Scope>,
}

/// How a body ended.
#[derive(Debug)]
pub struct Ended {
    /// The step.
    pub step: StepId,
    /// The attempt.
    pub attempt: u32,
    /// What it was handed of what the run was told, as `Claim::heard` counts.
    pub heard: i64,
    /// What came of it.
    pub result: Result<StepResult, StepError>,
}

/// Bodies of one run that are under way, or over and not taken in yet.
#[derive(Default)]
pub struct Bodies {
    running: JoinSet<Ended>,
    /// Of those that run: what tells each to stop.
    stops: Vec<(StepId, CancellationToken)>,
    /// Those that were over as soon as they began.
    over: VecDeque<Ended>,
}

impl Bodies {
    /// Starts the one of `step`, which `stop` interrupts. A step that has nothing to wait for is over at once: a task of its
    /// own would cost more than it does.
    pub fn start(
        &mut self,
        step: StepId,
        stop: CancellationToken,
        body: impl Future<Output = Ended> + Send + 'static,
    ) {
        let mut body = Box::pin(body);
        match body.as_mut().now_or_never() {
            Some(ended) => self.over.push_back(ended),
            None => {
                self.running.spawn(body);
                self.stops.push((step, stop));
            }
        }
    }

    /// Tells all to stop but that of `step`.
    pub fn stop_all_but(&self, step: &StepId) {
        for (_, stop) in self.stops.iter().filter(|(other, _)| other != step) {
            stop.cancel();
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.over.is_empty() && self.running.is_empty()
    }

    /// Whether the next one was over as soon as it began, and is well.
    pub fn is_next_done(&self) -> bool {
        matches!(self.over.front(), Some(Ended { result: Ok(StepResult::Done { .. }), .. }))
    }

    /// How the next one ended; nothing when there is none.
    pub async fn next(&mut self) -> Option<Result<Ended, StoreError>> {
        if let Some(ended) = self.over.pop_front() {
            return Some(Ok(ended));
        }
        let ended = self.running.join_next().await?;
        if let Ok(ended) = &ended {
            self.stops.retain(|(step, _)| step != &ended.step);
        }
        Some(ended.map_err(|error| StoreError::Broken(format!("a task of refit failed: {error}"))))
    }
}

/// Runs one attempt to its end. `stop` interrupts it; its own timeout does too. `force`: its processes end at once.
pub async fn run(
    engine: Arc<Engine>,
    input: Input,
    step: StepId,
    attempt: u32,
    stop: CancellationToken,
    force: CancellationToken,
) -> Ended {
    let body = attempt_of(&engine, &input, &step, attempt, stop, force);
    // A panic in a body must not end the activation; nothing that it leaves behind is looked at again.
    let result = AssertUnwindSafe(body).catch_unwind().await.unwrap_or_else(|_| {
        Err(StepError::permanent("refit itself failed in this step (a panic; the log of the process has it)"))
    });
    Ended { step, attempt, heard: input.heard, result }
}

async fn attempt_of(
    engine: &Arc<Engine>,
    input: &Input,
    step: &StepId,
    attempt: u32,
    stop: CancellationToken,
    force: CancellationToken,
) -> Result<StepResult, StepError> {
    let spec = input
        .workflow
        .step(step)
        .ok_or_else(|| StepError::permanent(format!("the workflow has no step `{step}`")))?;
    remember_secrets(engine, &input.workflow);
    let forced = force.clone();
    let log = Arc::new(StoredLog::new(engine, input.run.id, step.clone(), attempt));
    let cancel = stop.child_token();
    let ledger = RunLedger::new(engine, input, step, cancel.clone());
    let dirs = engine.dirs(input.run.id, step, attempt);
    let ctx = StepContext {
        run: &input.run,
        workflow: &input.workflow,
        step,
        attempt,
        resume: pipeline::left_by(&input.attempts, step),
        history: &input.attempts,
        signals: &input.signals,
        scope: &input.scope,
        dirs: &dirs,
        cancel: cancel.clone(),
        force,
        log: Arc::clone(&log) as Arc<dyn StepLog>,
        clock: Arc::clone(&engine.clock),
        services: &engine.services,
        ledger: &ledger,
    };
    let result = timed(spec, &ctx, &cancel, &stop).await;
    tokio::select! {
        biased;
        () = log.close() => {}
        // What is not kept by then is lost with the process, or was said after another one took the run over.
        () = forced_long_ago(engine, &forced) => {}
    }
    result.map_err(|error| masked(engine, error))
}

/// Returns once the database had its time after `force`.
pub async fn forced_long_ago(engine: &Engine, force: &CancellationToken) {
    force.cancelled().await;
    let last_words = Instant::now() + LAST_WORDS;
    tokio::time::sleep_until(last_words.min(engine.deadline().of_runs())).await;
}

/// What any step of the workflow was ever given is masked in every one: a step before this one, in another process, may
/// have left it in a file. One that is missing fails the step that needs it.
fn remember_secrets(engine: &Engine, workflow: &Workflow) {
    for name in &workflow.secrets {
        if engine.services.secrets.get(name).is_err() {
            tracing::debug!(secret.name = %name, "Secret `{name}` is not set");
        }
    }
}

/// A timeout tells the body to stop, and waits until it did: it may have a process to end.
async fn timed(
    spec: &Step,
    ctx: &StepContext<'_>,
    cancel: &CancellationToken,
    stop: &CancellationToken,
) -> Result<StepResult, StepError> {
    let mut body = std::pin::pin!(steps::body::run(&spec.kind, ctx));
    let result = tokio::select! {
        // The body first: most are done before they need a timer.
        biased;
        result = &mut body => return result,
        () = tokio::time::sleep(spec.timeout) => {
            cancel.cancel();
            body.await
        }
    };
    match result {
        Err(StepError::Interrupted) if !stop.is_cancelled() => Err(StepError::Failed {
            failure: StepFailure {
                kind: FailureKind::Timeout,
                message: format!(
                    "took longer than its timeout of {}",
                    humantime::format_duration(spec.timeout)
                ),
                hint: Some(
                    "raise `timeout:` of the step, or find out in its log what it waits for".to_owned(),
                ),
            },
            retry_after: None,
        }),
        result => result,
    }
}

fn masked(engine: &Engine, error: StepError) -> StepError {
    match error {
        StepError::Failed { failure, retry_after } => StepError::Failed {
            failure: StepFailure {
                kind: failure.kind,
                message: engine.services.secrets.mask(&failure.message),
                hint: failure.hint.map(|hint| engine.services.secrets.mask(&hint)),
            },
            retry_after,
        },
        StepError::Interrupted | StepError::Fenced | StepError::Cancelled => error,
    }
}
