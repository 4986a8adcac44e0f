//! One run, from the claim to giving it back: start bodies, checkpoint what
//! they return, one commit a step. The lease is renewed beside it; when it is
//! lost, everything stops and nothing more is written.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::TimeDelta;
use serde_json::Value;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::body::{Ended, Input};
use super::{Engine, body, notices, undo};
use crate::domain::Timestamp;
use crate::domain::expr::Scope;
use crate::domain::id::{RunId, StepId};
use crate::domain::pipeline::{self, Next, View};
use crate::domain::run::{
    Attempt, AttemptState, CancelRequest, FailureKind, Intent, IntentState, Outcome, Run, RunStatus, Signal,
    StepFailure,
};
use crate::domain::workflow::{Moment, Workflow};
use crate::steps::context::{Sleep, StepError, StepResult};
use crate::store::{
    Checkpoint, Claim, ClaimResult, EndedAttempt, NewAttempt, Notice, Opening, Renewal, RunState, StoreError,
    UndoChange,
};

/// Runs that this process works on, each with what makes it look at the database now.
#[derive(Default)]
pub struct Live {
    runs: Mutex<HashMap<RunId, Arc<Notify>>>,
}

impl Live {
    /// Enters a run; `None` when this process works on it already (it is nudged).
    fn enter(&self, run: RunId) -> Option<Arc<Notify>> {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(nudge) = runs.get(&run) {
            nudge.notify_one();
            return None;
        }
        let nudge = Arc::new(Notify::new());
        runs.insert(run, Arc::clone(&nudge));
        Some(nudge)
    }

    fn leave(&self, run: RunId) {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).remove(&run);
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

struct Entered<'a>(&'a Live, RunId);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.leave(self.1);
    }
}

impl Engine {
    /// How many runs this process works on now.
    pub fn live_runs(&self) -> usize {
        self.live.count()
    }

    /// Claims `run` and takes it as far as it goes. `stop`: the process shuts down.
    pub async fn activate(self: &Arc<Self>, run: RunId, stop: &CancellationToken) -> Result<(), StoreError> {
        let Some(nudge) = self.live.enter(run) else { return Ok(()) };
        let _entered = Entered(&self.live, run);
        loop {
            if stop.is_cancelled() {
                return Ok(());
            }
            let now = self.clock.now();
            let plan = |claim: &Claim| self.opening(claim, now);
            match self.store.claim(run, self.worker, self.settings.lease, now, &plan).await? {
                ClaimResult::Claimed(claim) => {
                    let driven = Driver::new(self, *claim, Arc::clone(&nudge), stop).drive().await;
                    match driven {
                        Err(StoreError::Fenced) => {
                            tracing::warn!(run.id = %run, "Run {run} was taken over by another worker; stopped");
                        }
                        other => other?,
                    }
                }
                ClaimResult::Taken | ClaimResult::NotDue | ClaimResult::KeyTaken | ClaimResult::Gone => {
                    return Ok(());
                }
            }
            // A wake-up that came while this activation gave the run back would be lost otherwise.
            if futures::FutureExt::now_or_never(nudge.notified()).is_none() {
                return Ok(());
            }
        }
    }

    /// What the claim writes beside the lease.
    fn opening(&self, claim: &Claim, now: Timestamp) -> Opening {
        let mut opening = Opening::default();
        let adoption = pipeline::adopt(&claim.attempts, true, now);
        opening.lost = adoption.lost;
        opening.woken = adoption.woken;
        let Ok(workflow) = self.workflow(&claim.run.definition) else { return opening };
        let may_start = claim.run.cancel.is_none()
            && claim.run.crashes < self.settings.crash_limit
            && self.has_labels(&workflow);
        if !may_start {
            return opening;
        }
        let mut attempts = claim.attempts.clone();
        for attempt in &mut attempts {
            match attempt.state {
                AttemptState::Started => attempt.state = AttemptState::Lost,
                AttemptState::Sleeping => attempt.state = AttemptState::Started,
                AttemptState::Succeeded
                | AttemptState::Failed
                | AttemptState::Lost
                | AttemptState::Skipped => {}
            }
        }
        let scope = pipeline::scope(&claim.run, &attempts);
        let ending = claim.run.outcome.map(|outcome| (outcome, claim.run.reason.as_deref().unwrap_or("")));
        let view =
            View { workflow: &workflow, attempts: &attempts, intents: &claim.intents, ending, scope: &scope };
        if let Next::Go { start, skip } = pipeline::next(view, now) {
            opening.started = start.into_iter().map(|(step, attempt)| NewAttempt { step, attempt }).collect();
            opening.skipped = skip;
        }
        opening
    }

    fn has_labels(&self, workflow: &Workflow) -> bool {
        workflow.steps.iter().flat_map(|step| &step.labels).all(|label| self.settings.labels.contains(label))
    }
}

/// Why bodies were told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stopped {
    Cancelled,
    Shutdown,
    Fenced,
    Ending,
}

/// News from the renewer.
enum Lease {
    Cancel(CancelRequest),
    Lost,
}

struct Driver<'a> {
    engine: &'a Arc<Engine>,
    run: Arc<Run>,
    workflow: Arc<Workflow>,
    broken: Option<String>,
    attempts: Arc<Vec<Attempt>>,
    intents: Vec<Intent>,
    signals: Arc<Vec<Signal>>,
    scope: Arc<Scope>,
    bodies: JoinSet<Ended>,
    stop_bodies: CancellationToken,
    stopped: Option<Stopped>,
    shutdown: &'a CancellationToken,
    nudge: Arc<Notify>,
}

impl<'a> Driver<'a> {
    fn new(
        engine: &'a Arc<Engine>,
        claim: Claim,
        nudge: Arc<Notify>,
        shutdown: &'a CancellationToken,
    ) -> Self {
        let (workflow, broken) = match engine.workflow(&claim.run.definition) {
            Ok(workflow) => (workflow, None),
            Err(why) => (Arc::new(Workflow::empty(&claim.run.workflow, &claim.run.model)), Some(why)),
        };
        let scope = pipeline::scope(&claim.run, &claim.attempts);
        Self {
            engine,
            run: Arc::new(claim.run),
            workflow,
            broken,
            attempts: Arc::new(claim.attempts),
            intents: claim.intents,
            signals: Arc::new(claim.signals),
            scope: Arc::new(scope),
            bodies: JoinSet::new(),
            stop_bodies: CancellationToken::new(),
            stopped: None,
            shutdown,
            nudge,
        }
    }

    async fn drive(mut self) -> Result<(), StoreError> {
        if let Some(why) = self.first_ending() {
            self.end(why.0, why.1);
        }
        let started: Vec<_> = self
            .attempts
            .iter()
            .filter(|attempt| attempt.state == AttemptState::Started)
            .map(|attempt| (attempt.step.clone(), attempt.attempt))
            .collect();
        if self.ends() {
            self.stop(Stopped::Ending);
        }
        self.spawn(started);
        let (tell, mut told) = mpsc::channel(4);
        let renewing = CancellationToken::new();
        let _renewing = renewing.clone().drop_guard();
        tokio::spawn(renew(
            Arc::clone(self.engine),
            Arc::clone(&self.run),
            Arc::clone(&self.nudge),
            tell,
            renewing,
        ));

        if self.bodies.is_empty() && self.proceed(None, vec![], vec![]).await? {
            return Ok(());
        }
        loop {
            let shutdown = self.shutdown.clone();
            tokio::select! {
                biased;
                Some(news) = told.recv() => match news {
                    Lease::Lost => {
                        self.stop(Stopped::Fenced);
                    }
                    Lease::Cancel(request) => self.cancelled(request),
                },
                Some(ended) = self.bodies.join_next() => {
                    let ended = ended.map_err(|error| StoreError::Broken(format!("a task of refit failed: {error}")))?;
                    if self.ended(ended).await? {
                        return Ok(());
                    }
                }
                () = shutdown.cancelled(), if self.stopped.is_none() => self.stop(Stopped::Shutdown),
            }
            if self.bodies.is_empty() {
                match self.stopped {
                    Some(Stopped::Fenced) => return Err(StoreError::Fenced),
                    Some(Stopped::Shutdown) => {
                        return self.engine.store.release_lease(self.run.id, self.run.epoch).await;
                    }
                    Some(Stopped::Cancelled | Stopped::Ending) | None => {
                        if self.proceed(None, vec![], vec![]).await? {
                            return Ok(());
                        }
                    }
                }
            }
        }
    }

    /// What is known to end the run before any body begins.
    fn first_ending(&self) -> Option<(Outcome, String)> {
        if self.run.outcome.is_some_and(|outcome| outcome != Outcome::Promoted) {
            return None;
        }
        if let Some(why) = &self.broken {
            return Some((Outcome::Failed, format!("the run's workflow cannot be read: {why}")));
        }
        if let Some(cancel) = self.run.cancel.clone() {
            return self.cancel_ending(&cancel);
        }
        let limit = self.engine.settings.crash_limit;
        (self.run.crashes >= limit).then(|| {
            (Outcome::Failed, format!("refit stopped {limit} times in a row while working on this run"))
        })
    }

    /// A cancel that comes before promote's first write ends the run now; later, promote is completed first.
    fn cancel_ending(&self, cancel: &CancelRequest) -> Option<(Outcome, String)> {
        let why = cancel.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
        if self.promotion_recorded() {
            return Some((
                Outcome::CancelledAfterPromotion,
                format!("cancelled by {} after promotion{why}", cancel.actor),
            ));
        }
        (!self.run.committed).then(|| (Outcome::Cancelled, format!("cancelled by {}{why}", cancel.actor)))
    }

    fn promotion_recorded(&self) -> bool {
        self.run.outcome == Some(Outcome::Promoted)
    }

    fn cancelled(&mut self, request: CancelRequest) {
        if self.run.cancel.is_some() {
            return;
        }
        Arc::make_mut(&mut self.run).cancel = Some(request);
        // Whether promote's first write was made is the database's to say: it refuses that write from now on,
        // and a body that is past it is left to complete.
        if !self.in_promotion() {
            self.stop(Stopped::Cancelled);
        }
    }

    /// A promote step runs that may have made its first write.
    fn in_promotion(&self) -> bool {
        self.attempts.iter().any(|attempt| {
            attempt.state == AttemptState::Started
                && self.workflow.step(&attempt.step).is_some_and(|step| step.kind.word() == "promote")
        })
    }

    fn ends(&self) -> bool {
        self.run.outcome.is_some_and(|outcome| outcome != Outcome::Promoted && outcome != Outcome::Succeeded)
    }

    fn end(&mut self, outcome: Outcome, reason: String) {
        let run = Arc::make_mut(&mut self.run);
        run.outcome = Some(outcome);
        run.reason = Some(reason);
    }

    fn stop(&mut self, why: Stopped) {
        // Fenced outranks all: nothing may be written then.
        if self.stopped.is_none() || why == Stopped::Fenced {
            self.stopped = Some(why);
        }
        self.stop_bodies.cancel();
    }

    fn spawn(&mut self, attempts: Vec<(StepId, u32)>) {
        for (step, attempt) in attempts {
            let input = Input {
                run: Arc::clone(&self.run),
                workflow: Arc::clone(&self.workflow),
                epoch: self.run.epoch,
                attempts: Arc::clone(&self.attempts),
                signals: Arc::clone(&self.signals),
                scope: Arc::clone(&self.scope),
            };
            let stop = self.stop_bodies.child_token();
            self.bodies.spawn(body::run(Arc::clone(self.engine), input, step, attempt, stop));
        }
    }

    /// Takes in how a body ended; true when the run was given back or ended.
    async fn ended(&mut self, ended: Ended) -> Result<bool, StoreError> {
        if self.stopped == Some(Stopped::Fenced) {
            return Ok(false);
        }
        let now = self.engine.clock.now();
        let mut notices = vec![];
        let mut record = EndedAttempt {
            step: ended.step.clone(),
            attempt: ended.attempt,
            state: AttemptState::Succeeded,
            output: None,
            error: None,
            resume: None,
            wake_at: None,
        };
        let mut promoted = false;
        match ended.result {
            Ok(StepResult::Done { output }) => record.output = Some(self.masked(output)),
            Ok(StepResult::Promoted { output }) => {
                promoted = true;
                record.output = Some(self.masked(output));
            }
            Ok(StepResult::End { outcome, reason, output }) => {
                record.output = Some(self.masked(output));
                let reason = self.engine.services.secrets.mask(&reason);
                self.end(outcome, reason);
            }
            Ok(StepResult::Sleep(Sleep { until, resume, held, promoted: in_bake, tell })) => {
                record.state = AttemptState::Sleeping;
                record.wake_at = until;
                record.resume = Some(resume);
                promoted = in_bake;
                if held {
                    record.output = None;
                }
                if let Some((moment, facts)) = tell {
                    notices = notices::about(
                        self.engine,
                        &self.run,
                        &self.workflow,
                        &self.attempts,
                        moment,
                        &ended.step,
                        facts,
                    );
                }
            }
            Err(StepError::Fenced) => {
                self.stop(Stopped::Fenced);
                return Ok(false);
            }
            Err(StepError::Interrupted | StepError::Cancelled) => match self.stopped {
                // A shutdown hands the attempt over: it is left `started`, and the next epoch counts it as lost.
                Some(Stopped::Shutdown | Stopped::Fenced) => return Ok(false),
                Some(Stopped::Cancelled | Stopped::Ending) | None => {
                    record.state = AttemptState::Failed;
                    record.error = Some(StepFailure {
                        kind: FailureKind::Permanent,
                        message: "interrupted: the run was cancelled or ends".to_owned(),
                        hint: None,
                    });
                }
            },
            Err(StepError::Failed { failure, retry_after }) => {
                record.state = AttemptState::Failed;
                record.wake_at = self.retry_at(&ended.step, &failure, retry_after, now);
                record.error = Some(failure);
            }
        }
        if promoted && !self.promotion_recorded() {
            let reason = record
                .output
                .as_ref()
                .or(record.resume.as_ref().and_then(|resume| resume.get("output")))
                .and_then(|output| output.get("reason"))
                .and_then(Value::as_str)
                .unwrap_or("promoted")
                .to_owned();
            self.end(Outcome::Promoted, reason);
        }
        if let Some(cancel) = self.run.cancel.clone()
            && let Some((outcome, reason)) = self.cancel_after(promoted, &cancel)
        {
            self.end(outcome, reason);
        }
        self.apply(&record, now);
        self.proceed(Some(record), notices, vec![]).await
    }

    /// What a cancel makes of the run once a body ended.
    fn cancel_after(&self, promoted: bool, cancel: &CancelRequest) -> Option<(Outcome, String)> {
        let why = cancel.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
        if promoted || self.promotion_recorded() {
            return Some((
                Outcome::CancelledAfterPromotion,
                format!("cancelled by {} after promotion{why}", cancel.actor),
            ));
        }
        match self.run.outcome {
            Some(_) => None,
            None => Some((Outcome::Cancelled, format!("cancelled by {}{why}", cancel.actor))),
        }
    }

    fn masked(&self, output: Value) -> Value {
        self.engine.services.secrets.mask_json(output)
    }

    fn retry_at(
        &self,
        step: &StepId,
        failure: &StepFailure,
        retry_after: Option<Duration>,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let helps = match failure.kind {
            FailureKind::Transient | FailureKind::Timeout => true,
            FailureKind::Permanent => false,
        };
        let policy = self.workflow.step(step)?.retry;
        // Only failures count: shutdowns and lost leases count toward `crash_limit`.
        let failures = self
            .attempts
            .iter()
            .filter(|attempt| &attempt.step == step && attempt.state == AttemptState::Failed)
            .count();
        let failures = u32::try_from(failures).unwrap_or(u32::MAX).saturating_add(1);
        if helps { policy.next_attempt(failures, now, retry_after, rand::random()) } else { None }
    }

    /// Brings what is known in memory up to what the checkpoint will say.
    fn apply(&mut self, record: &EndedAttempt, now: Timestamp) {
        let attempts = Arc::make_mut(&mut self.attempts);
        if let Some(attempt) = attempts
            .iter_mut()
            .rev()
            .find(|attempt| attempt.step == record.step && attempt.attempt == record.attempt)
        {
            attempt.state = record.state;
            attempt.output = record.output.clone();
            attempt.error = record.error.clone();
            attempt.resume = record.resume.clone();
            attempt.wake_at = record.wake_at;
            if record.state != AttemptState::Sleeping {
                attempt.finished_at = Some(now);
            }
            let shown = pipeline::shown(attempt);
            Arc::make_mut(&mut self.scope).set_step(record.step.as_str(), shown);
        }
    }

    /// Decides, checkpoints and goes on, until bodies run (false) or the run is given back or ended (true).
    async fn proceed(
        &mut self,
        mut ended: Option<EndedAttempt>,
        mut notices: Vec<Notice>,
        mut undone: Vec<String>,
    ) -> Result<bool, StoreError> {
        loop {
            let now = self.engine.clock.now();
            let ending = self.run.outcome.map(|outcome| (outcome, self.run.reason.as_deref().unwrap_or("")));
            let view = View {
                workflow: &self.workflow,
                attempts: &self.attempts,
                intents: &self.intents,
                ending,
                scope: &self.scope,
            };
            let next = match pipeline::next(view, now) {
                // A shutdown starts nothing new: what ended is checkpointed, and the run is given back.
                Next::Go { start, skip }
                    if self.stopped == Some(Stopped::Shutdown) && !(start.is_empty() && skip.is_empty()) =>
                {
                    Next::Go { start: vec![], skip: vec![] }
                }
                next => next,
            };
            match next {
                Next::End { outcome, reason } => self.end(outcome, reason),
                Next::Interrupt => {
                    self.stop(Stopped::Ending);
                    if ended.is_some() {
                        self.save(
                            ended.take(),
                            vec![],
                            vec![],
                            self.kept(),
                            std::mem::take(&mut notices),
                            vec![],
                        )
                        .await?;
                    }
                    return Ok(false);
                }
                Next::Go { start, skip } => {
                    if ended.is_none() && start.is_empty() && skip.is_empty() {
                        return Ok(false);
                    }
                    let state = self.kept();
                    self.save(
                        ended.take(),
                        start.clone(),
                        skip.clone(),
                        state,
                        std::mem::take(&mut notices),
                        std::mem::take(&mut undone),
                    )
                    .await?;
                    self.begin(&start, &skip, now);
                    self.spawn(start);
                    if !self.bodies.is_empty() || self.stopped == Some(Stopped::Shutdown) {
                        return Ok(false);
                    }
                }
                Next::Wait { until } => {
                    let state = RunState::Parked {
                        status: self.parked_status(),
                        ending: self.ending(),
                        wake_at: until,
                    };
                    self.save(
                        ended.take(),
                        vec![],
                        vec![],
                        state,
                        std::mem::take(&mut notices),
                        std::mem::take(&mut undone),
                    )
                    .await?;
                    return Ok(true);
                }
                Next::Undo { key } => {
                    if ended.is_some() || !notices.is_empty() {
                        self.save(
                            ended.take(),
                            vec![],
                            vec![],
                            self.kept(),
                            std::mem::take(&mut notices),
                            std::mem::take(&mut undone),
                        )
                        .await?;
                    }
                    match undo::undo(self.engine, &self.run, &self.intents, &key).await {
                        Ok(()) => {
                            for intent in self.intents.iter_mut().filter(|intent| intent.key == key) {
                                intent.state = IntentState::Undone;
                            }
                            undone.push(key);
                            self.save(None, vec![], vec![], self.kept(), vec![], std::mem::take(&mut undone))
                                .await?;
                        }
                        Err(StepError::Fenced) => return Err(StoreError::Fenced),
                        Err(error) => return self.undo_failed(&key, &error, now).await,
                    }
                }
                Next::Finish { outcome, reason } => {
                    let moment = Moment::of(outcome);
                    self.end(outcome, reason.clone());
                    let told =
                        notices::about_end(self.engine, &self.run, &self.workflow, &self.attempts, moment);
                    notices.extend(told);
                    let state = RunState::Finished { outcome, reason };
                    self.save(ended.take(), vec![], vec![], state, notices, undone).await?;
                    return Ok(true);
                }
            }
        }
    }

    /// A failing undo keeps the run `undoing`: retried, alerting, never `failed`.
    async fn undo_failed(
        &mut self,
        key: &str,
        error: &StepError,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        tracing::error!(run.id = %self.run.id, key, "Undo `{key}` failed, trying again: {error}");
        let facts = serde_json::json!({"undo": key, "error": error.to_string()});
        let alerts = notices::alert(self.engine, &self.run, &self.workflow, &format!("undo/{key}"), facts);
        let state = RunState::Parked {
            status: RunStatus::Undoing,
            ending: self.ending(),
            wake_at: Some(now + TimeDelta::seconds(15)),
        };
        self.save(None, vec![], vec![], state, alerts, vec![]).await?;
        Ok(true)
    }

    fn ending(&self) -> Option<(Outcome, String)> {
        self.run.outcome.map(|outcome| (outcome, self.run.reason.clone().unwrap_or_default()))
    }

    fn kept(&self) -> RunState {
        let status = if self.ends() { RunStatus::Undoing } else { RunStatus::Running };
        RunState::Kept { status, ending: self.ending() }
    }

    fn parked_status(&self) -> RunStatus {
        if self.ends() {
            return RunStatus::Undoing;
        }
        let held = self.attempts.iter().any(|attempt| {
            attempt.state == AttemptState::Sleeping
                && attempt.resume.as_ref().and_then(|resume| resume.get("stage")).and_then(Value::as_str)
                    == Some("held")
        });
        if held { RunStatus::Held } else { RunStatus::Waiting }
    }

    /// Brings what is known in memory up to a checkpoint that starts and skips steps.
    fn begin(&mut self, start: &[(StepId, u32)], skip: &[(StepId, String)], now: Timestamp) {
        let epoch = self.run.epoch;
        let attempts = Arc::make_mut(&mut self.attempts);
        for (step, attempt) in start {
            attempts.push(Attempt::started(step.clone(), *attempt, epoch, now));
        }
        for (step, reason) in skip {
            let skipped = Attempt::skipped(step.clone(), reason.clone(), epoch, now);
            Arc::make_mut(&mut self.scope).set_step(step.as_str(), pipeline::shown(&skipped));
            attempts.push(skipped);
        }
    }

    async fn save(
        &mut self,
        ended: Option<EndedAttempt>,
        start: Vec<(StepId, u32)>,
        skip: Vec<(StepId, String)>,
        run_state: RunState,
        notices: Vec<Notice>,
        undone: Vec<String>,
    ) -> Result<(), StoreError> {
        let kill_all =
            self.promotion_recorded() || self.run.outcome == Some(Outcome::CancelledAfterPromotion);
        let checkpoint = Checkpoint {
            run: self.run.id,
            epoch: self.run.epoch,
            ended,
            started: start.into_iter().map(|(step, attempt)| NewAttempt { step, attempt }).collect(),
            skipped: skip,
            run_state,
            undos: UndoChange { kill_all, done: undone },
            notices,
            at: self.engine.clock.now(),
        };
        if kill_all {
            for intent in &mut self.intents {
                if intent.state == IntentState::Armed {
                    intent.state = IntentState::Dead;
                }
            }
        }
        save(self.engine, checkpoint).await
    }
}

/// Writes a checkpoint through an outage of the database: the owner goes on if its epoch is unchanged.
async fn save(engine: &Engine, checkpoint: Checkpoint) -> Result<(), StoreError> {
    let mut delay = Duration::from_millis(100);
    let mut unknown = false;
    loop {
        match engine.store.checkpoint(checkpoint.clone()).await {
            Ok(()) => return Ok(()),
            Err(StoreError::Away(why)) => {
                tracing::warn!(run.id = %checkpoint.run, "Checkpoint waits for the database: {why}");
                unknown = true;
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(Duration::from_secs(3));
            }
            // The answer to an earlier try may have been lost after its commit.
            Err(StoreError::Fenced) if unknown && was_written(engine, &checkpoint).await? => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

async fn was_written(engine: &Engine, checkpoint: &Checkpoint) -> Result<bool, StoreError> {
    let Some(run) = engine.store.run(checkpoint.run).await? else { return Ok(false) };
    if run.epoch != checkpoint.epoch {
        return Ok(false);
    }
    let attempts = engine.store.attempts(checkpoint.run).await?;
    Ok(match &checkpoint.ended {
        Some(ended) => attempts.iter().any(|attempt| {
            attempt.step == ended.step && attempt.attempt == ended.attempt && attempt.state == ended.state
        }),
        None => checkpoint.started.iter().all(|new| {
            attempts.iter().any(|attempt| attempt.step == new.step && attempt.attempt == new.attempt)
        }),
    })
}

/// Renews the lease until `done`. The database being away is no reason to stop: only a moved epoch is.
async fn renew(
    engine: Arc<Engine>,
    run: Arc<Run>,
    nudge: Arc<Notify>,
    tell: mpsc::Sender<Lease>,
    done: CancellationToken,
) {
    let mut cancel_told = run.cancel.is_some();
    loop {
        tokio::select! {
            () = done.cancelled() => return,
            () = tokio::time::sleep(engine.settings.renew) => {}
            () = nudge.notified() => {}
        }
        let renewed = engine.store.renew(run.id, run.epoch, engine.settings.lease, engine.clock.now()).await;
        let news = match renewed {
            Ok(Renewal::Held { cancel: Some(request) }) if !cancel_told => {
                cancel_told = true;
                Lease::Cancel(request)
            }
            Ok(Renewal::Held { .. }) => continue,
            Ok(Renewal::Lost) | Err(StoreError::Fenced) => Lease::Lost,
            Err(error) => {
                tracing::warn!(run.id = %run.id, "Lease could not be renewed, trying again: {error}");
                continue;
            }
        };
        if tell.send(news).await.is_err() {
            return;
        }
    }
}
