//! Takes a claimed run as far as it goes: starts bodies, checkpoints what they
//! return, one commit a step. When the lease is lost everything stops, and
//! nothing more is written.

mod ended;
mod under_way;

use std::sync::Arc;

use chrono::TimeDelta;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::activation::{Lease, Told, renew};
use super::body::Bodies;
use super::known::Known;
use super::live::Nudge;
use super::outage::{answered, write};
use super::{Engine, boards, body, notices, promotion, undo, unheard};
use crate::clock::comes;
use crate::domain::Timestamp;
use crate::domain::id::{NotifierName, StepId};
use crate::domain::pipeline::Next;
use crate::domain::run::{AttemptState, CancelRequest, IntentState, RunStatus};
use crate::domain::workflow::Moment;
use crate::steps::context::StepError;
use crate::store::{Checkpoint, Claim, EndedAttempt, NewAttempt, Notice, RunState, StoreError, UndoChange};
use under_way::UnderWay;

/// How long a failed undo waits before it is tried again.
const UNDO_AGAIN: TimeDelta = TimeDelta::seconds(15);

/// Why bodies were told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stopped {
    Cancelled,
    Shutdown,
    Fenced,
    Ending,
}

/// Whether the run is still in hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hand {
    /// Bodies run, or more is to be decided.
    Keeps,
    /// It was given back, or ended.
    Empty,
}

/// What goes into the next checkpoint beside the decision.
#[derive(Default)]
struct News {
    ended: Option<EndedAttempt>,
    woken: Vec<(StepId, u32)>,
    notices: Vec<Notice>,
    undone: Vec<String>,
}

/// Attempts that begin, and steps that are skipped, with the reason.
type Begins<'a> = (&'a [(StepId, u32)], &'a [(StepId, String)]);

/// One run in hand.
pub(super) struct Driver<'a> {
    engine: &'a Arc<Engine>,
    known: Known,
    under_way: UnderWay,
    bodies: Bodies,
    stop_bodies: CancellationToken,
    /// Their processes end at once.
    force_bodies: CancellationToken,
    stopped: Option<Stopped>,
    /// When something beside the bodies is due: it sleeps, or waits to be tried again.
    due: Option<Timestamp>,
    shutdown: &'a CancellationToken,
    nudge: Arc<Nudge>,
}

impl<'a> Driver<'a> {
    pub(super) fn new(
        engine: &'a Arc<Engine>,
        claim: Claim,
        nudge: Arc<Nudge>,
        shutdown: &'a CancellationToken,
    ) -> Self {
        let mut known = Known::new(engine, claim);
        known.hasten_promotion(engine.clock.now());
        Self {
            engine,
            due: known.first_due(),
            known,
            under_way: UnderWay::default(),
            bodies: Bodies::default(),
            stop_bodies: CancellationToken::new(),
            force_bodies: engine.force().child_token(),
            stopped: None,
            shutdown,
            nudge,
        }
    }

    pub(super) async fn drive(mut self) -> Result<(), StoreError> {
        if let Some((outcome, reason)) = self.known.first_ending(self.engine.settings.crash_limit) {
            self.known.end(outcome, reason);
        }
        promotion::alert_of_crashes(self.engine, &self.known).await?;
        let (tell, mut told) = mpsc::channel(4);
        let done = CancellationToken::new();
        let _until_given_back = done.clone().drop_guard();
        let run = (self.known.run.id, self.known.run.epoch, self.known.heard);
        tokio::spawn(renew(Arc::clone(self.engine), run, Arc::clone(&self.nudge), tell, done));
        // What was started for a run that ends is `on_failure`: nothing of it is told to stop.
        self.spawn(self.known.started());

        self.tell_started().await?;
        // What woke with the run hears of it, and the promotion of one that is to end waits for none of that.
        let completes = self.known.completing().is_some() && !self.bodies.is_empty();
        if completes && self.proceed(News::default()).await? == Hand::Empty {
            return Ok(());
        }
        loop {
            if self.bodies.is_empty() && self.idle().await? == Hand::Empty {
                return Ok(());
            }
            // Whatever else there is to do, nobody waits for a checkpoint meanwhile that stands still.
            if !self.bodies.is_next_done() {
                self.under_way.settle().await?;
            }
            tokio::select! {
                biased;
                Some(news) = told.recv() => match news {
                    Lease::Lost => self.stop(Stopped::Fenced),
                    Lease::Told(told) => self.hear(told),
                },
                Some(ended) = self.bodies.next() => {
                    if self.take(ended?).await? == Hand::Empty {
                        return Ok(());
                    }
                }
                () = self.shutdown.cancelled(), if self.stopped.is_none() => self.begin_shutdown(),
                () = comes(self.engine.clock.as_ref(), self.due), if self.stopped.is_none() => {
                    if self.wake().await? == Hand::Empty {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// No body runs: goes on, or gives the run back.
    async fn idle(&mut self) -> Result<Hand, StoreError> {
        self.under_way.settle().await?;
        match self.stopped {
            Some(Stopped::Fenced) => Err(StoreError::Fenced),
            Some(Stopped::Shutdown) => {
                self.give_back().await?;
                Ok(Hand::Empty)
            }
            Some(Stopped::Cancelled | Stopped::Ending) | None => self.proceed(News::default()).await,
        }
    }

    /// A process that ends does not wait for a database that is away.
    async fn give_back(&self) -> Result<(), StoreError> {
        let (store, run, epoch) = (&self.engine.store, self.known.run.id, self.known.run.epoch);
        tokio::select! {
            biased;
            given = answered(run, || store.release_lease(run, epoch)) => given,
            () = body::forced_long_ago(self.engine, &self.force_bodies) => {
                tracing::warn!(run.id = %run,
                    "Run {run} could not be given back: the database did not answer in time; it goes on in another process \
                     once the database answers and the lease of {:?} is over", self.engine.settings.lease);
                Ok(())
            }
        }
    }

    /// Short steps may finish; long ones are told to stop while there is time to end their processes.
    fn begin_shutdown(&mut self) {
        self.stopped = Some(Stopped::Shutdown);
        let (long, patience) = (self.stop_bodies.clone(), self.engine.deadline().of_long_steps());
        tokio::spawn(async move {
            tokio::time::sleep_until(patience).await;
            long.cancel();
        });
    }

    /// Somebody told the run something.
    fn hear(&mut self, told: Told) {
        let now = self.engine.clock.now();
        self.known.hear(told.signals, told.count);
        let is_taken_back = self.known.hasten_promotion(now);
        if let Some(request) = told.cancel {
            self.cancel(request);
        }
        if is_taken_back || self.known.has_news() {
            self.due = Some(now);
        }
    }

    /// Beside the bodies, sleepers go on that are due, and what is due to be tried again begins.
    async fn wake(&mut self) -> Result<Hand, StoreError> {
        let woken = self.known.due(self.engine.clock.now());
        if !woken.is_empty() {
            let news = News { woken: woken.clone(), ..News::default() };
            self.save(news, (&[], &[]), self.known.kept()).await?;
            self.spawn(woken);
        }
        self.proceed(News::default()).await
    }

    /// Whether promote's first write was made is the database's to say: it refuses that write from now on,
    /// and a body that is past it is left to complete.
    fn cancel(&mut self, request: CancelRequest) {
        if self.known.run.cancel.is_none() {
            Arc::make_mut(&mut self.known.run).cancel = Some(request);
            match self.known.completing() {
                Some(step) => self.bodies.stop_all_but(step),
                None if self.known.in_promotion() => {}
                None => self.stop(Stopped::Cancelled),
            }
        }
    }

    fn stop(&mut self, why: Stopped) {
        // Fenced outranks all: nothing may be written then.
        if self.stopped.is_none() || why == Stopped::Fenced {
            self.stopped = Some(why);
        }
        self.stop_bodies.cancel();
        if why == Stopped::Fenced {
            // Its new holder may start the same step at any moment.
            self.force_bodies.cancel();
        }
    }

    fn spawn(&mut self, attempts: Vec<(StepId, u32)>) {
        for (step, attempt) in attempts {
            let stop = self.stop_bodies.child_token();
            let force = self.force_bodies.child_token();
            let (engine, input) = (Arc::clone(self.engine), self.known.input());
            let body = body::run(engine, input, step.clone(), attempt, stop.clone(), force);
            self.bodies.start(step, stop, body);
        }
    }

    /// Who wants to hear of a start hears of it before anything has ended; a second time is dropped by its key.
    async fn tell_started(&self) -> Result<(), StoreError> {
        // One that was lost with its process, or skipped, has done nothing.
        let ended = self.known.attempts.iter().any(|attempt| match attempt.state {
            AttemptState::Succeeded | AttemptState::Failed | AttemptState::Cancelled => true,
            AttemptState::Started | AttemptState::Sleeping | AttemptState::Lost | AttemptState::Skipped => {
                false
            }
        });
        // One that was cancelled in the queue never starts.
        if ended || (self.known.attempts.is_empty() && self.known.ends()) {
            return Ok(());
        }
        let boards = self.boards();
        if !boards.is_empty() {
            let (store, run, now) = (&self.engine.store, self.known.run.id, self.engine.clock.now());
            answered(run, || store.touch_boards(run, &boards, now)).await?;
        }
        let told = notices::about_start(self.engine, &self.known.run, &self.known.workflow).await;
        if told.is_empty() {
            return Ok(());
        }
        let (store, now) = (&self.engine.store, self.engine.clock.now());
        answered(self.known.run.id, || store.queue_notices(&told, now)).await
    }

    /// Who follows this run with a message.
    fn boards(&self) -> Vec<NotifierName> {
        boards::of(self.engine, &self.known.workflow)
    }

    async fn about(&self, moment: Moment, step: &StepId, facts: Value) -> Vec<Notice> {
        let known = &self.known;
        notices::about(self.engine, &known.run, &known.workflow, &known.attempts, moment, step, facts).await
    }

    fn masked(&self, output: Value) -> Value {
        self.engine.services.secrets.mask_json(output)
    }

    /// Steps recorded intents since the claim.
    async fn read_intents(&mut self) -> Result<(), StoreError> {
        self.under_way.settle().await?;
        let (store, run) = (&self.engine.store, self.known.run.id);
        self.known.intents = answered(run, || store.intents(run)).await?;
        Ok(())
    }

    /// What others may have written to the run's row: a cancel, and whether it came too late.
    async fn refresh(&mut self) -> Result<(), StoreError> {
        self.under_way.settle().await?;
        let (store, run) = (&self.engine.store, self.known.run.id);
        if let Some(row) = answered(run, || store.run(run)).await? {
            let run = Arc::make_mut(&mut self.known.run);
            run.cancel = row.cancel;
            run.committed = row.committed;
        }
        Ok(())
    }

    /// Decides, checkpoints and goes on, until bodies run or the run is out of hand.
    async fn proceed(&mut self, mut news: News) -> Result<Hand, StoreError> {
        loop {
            let now = self.engine.clock.now();
            if self.known.ends() && self.bodies.is_empty() {
                self.read_intents().await?;
                if self.known.promotion_recorded() {
                    self.known.kill_undos();
                }
            }
            let next = self.known.next(now);
            if !matches!(next, Next::Go { .. }) {
                self.under_way.settle().await?;
            }
            match next {
                Next::End { outcome, reason } => self.known.end(outcome, reason),
                Next::Interrupt => {
                    self.stop(Stopped::Ending);
                    if news.ended.is_some() {
                        self.save(news, (&[], &[]), self.known.kept()).await?;
                    }
                    return Ok(Hand::Keeps);
                }
                // A shutdown starts nothing new: what ended is checkpointed, and the run is given back.
                Next::Go { .. } if self.stopped == Some(Stopped::Shutdown) => {
                    if news.ended.is_some() {
                        self.save(news, (&[], &[]), self.known.kept()).await?;
                    }
                    return Ok(Hand::Keeps);
                }
                Next::Go { start, skip, until } => {
                    if let Some(step) = self.known.completing() {
                        self.bodies.stop_all_but(step);
                    }
                    self.due = if self.known.has_news() { Some(now) } else { until };
                    if news.ended.is_none() && start.is_empty() && skip.is_empty() {
                        return Ok(Hand::Keeps);
                    }
                    let (news, state) = (std::mem::take(&mut news), self.known.kept());
                    if self.known.only_wait(&start) {
                        self.send(news, (&start, &skip), state).await?;
                    } else {
                        self.save(news, (&start, &skip), state).await?;
                    }
                    if self.stop_bodies.is_cancelled() {
                        // `on_failure` steps and a promotion to be completed are not stopped by what stopped the others, which
                        // may still end.
                        self.stop_bodies = CancellationToken::new();
                        self.stopped = None;
                    }
                    self.spawn(start);
                    if !self.bodies.is_empty() {
                        return Ok(Hand::Keeps);
                    }
                }
                Next::Wait { until } => {
                    let state = self.known.parked(until);
                    self.save(news, (&[], &[]), state).await?;
                    return Ok(Hand::Empty);
                }
                Next::Undo { key } => {
                    if news.ended.is_some() {
                        let state = self.known.kept();
                        self.save(std::mem::take(&mut news), (&[], &[]), state).await?;
                    }
                    if self.undo(key, now).await? == Hand::Empty {
                        return Ok(Hand::Empty);
                    }
                }
                Next::Finish { outcome, reason } => {
                    self.known.end(outcome, reason.clone());
                    if self.known.passes_over_rollbacks() {
                        if !self.known.is_known_to_pass_over_rollbacks() {
                            // Who takes its version back from here on says so. What came before is in its signals.
                            let state = self.known.kept();
                            self.save(std::mem::take(&mut news), (&[], &[]), state).await?;
                        }
                        news.notices.extend(unheard::rollback(self.engine, self.known.run.id).await?);
                    }
                    let known = &self.known;
                    let told = notices::about_end(
                        self.engine,
                        &known.run,
                        &known.workflow,
                        &known.attempts,
                        Moment::of(outcome),
                    )
                    .await;
                    news.notices.extend(told);
                    self.save(news, (&[], &[]), RunState::Finished { outcome, reason }).await?;
                    return Ok(Hand::Empty);
                }
            }
        }
    }

    /// Takes one effect back. A failing undo keeps the run `undoing`: retried, alerting, never `failed`.
    async fn undo(&mut self, key: String, now: Timestamp) -> Result<Hand, StoreError> {
        let known = &self.known;
        let error = match undo::undo(self.engine, &known.run, &known.intents, &key).await {
            Ok(()) => {
                for intent in self.known.intents.iter_mut().filter(|intent| intent.key == key) {
                    intent.state = IntentState::Undone;
                }
                let news = News { undone: vec![key], ..News::default() };
                self.save(news, (&[], &[]), self.known.kept()).await?;
                return Ok(Hand::Keeps);
            }
            Err(StepError::Fenced) => return Err(StoreError::Fenced),
            Err(error) => error,
        };
        tracing::error!(run.id = %known.run.id, key, "Undo `{key}` failed, trying again: {error}");
        let facts = json!({"undo": key, "error": error.to_string()});
        let alert = notices::alert(
            self.engine,
            &known.run,
            &known.workflow,
            &format!("undo/{key}"),
            self.masked(facts),
        )
        .await;
        let state = RunState::Parked {
            status: RunStatus::Undoing,
            ending: known.ending(),
            wake_at: Some(now + UNDO_AGAIN),
            heard: known.heard_by_all(),
        };
        self.save(News { notices: alert, ..News::default() }, (&[], &[]), state).await?;
        Ok(Hand::Empty)
    }

    /// Writes a checkpoint: what ended, what begins and is skipped, and where the run stands then.
    async fn save(&mut self, news: News, begins: Begins<'_>, run_state: RunState) -> Result<(), StoreError> {
        self.send(news, begins, run_state).await?;
        self.under_way.settle().await
    }

    /// The same, without waiting until it is written. What begins with it has begun only then: it leaves nothing behind if
    /// it never does.
    async fn send(
        &mut self,
        news: News,
        (start, skip): Begins<'_>,
        run_state: RunState,
    ) -> Result<(), StoreError> {
        let kill_all = self.known.promotion_recorded();
        let at = self.engine.clock.now();
        let cancelled = if self.known.ends() { self.known.unfinished() } else { vec![] };
        self.known.cancel(&cancelled, at);
        let started =
            start.iter().map(|(step, attempt)| NewAttempt { step: step.clone(), attempt: *attempt });
        let checkpoint = Arc::new(Checkpoint {
            run: self.known.run.id,
            epoch: self.known.run.epoch,
            ended: news.ended,
            woken: news.woken,
            place: self.known.count(),
            started: started.collect(),
            skipped: skip.to_vec(),
            cancelled,
            run_state,
            undos: UndoChange { kill_all, done: news.undone },
            notices: news.notices,
            boards: self.boards(),
            at,
        });
        if kill_all {
            self.known.kill_undos();
        }
        let (engine, written) = (Arc::clone(self.engine), Arc::clone(&checkpoint));
        self.under_way.send(async move { write(&engine, &written).await }).await?;
        self.known.begin(&checkpoint);
        Ok(())
    }
}
