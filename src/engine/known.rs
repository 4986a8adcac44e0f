//! What is known of a run between two checkpoints: the database's state, or
//! what it will be once the checkpoint under way is written, kept in memory by
//! the one process that has the lease.

mod taken_back;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::Engine;
use super::body::Input;
use crate::domain::Timestamp;
use crate::domain::expr::Scope;
use crate::domain::id::StepId;
use crate::domain::pipeline::{self, Next, View};
use crate::domain::retry::RetryPolicy;
use crate::domain::run::{
    Attempt, AttemptState, CancelRequest, FailureKind, Intent, IntentState, Outcome, Run, RunStatus, Signal,
    StepFailure, Undo,
};
use crate::domain::workflow::{Step, StepKind, Workflow};
use crate::steps::canary::{CanaryOutput, Rollout};
use crate::steps::promote;
use crate::store::{Checkpoint, Claim, EndedAttempt, NewAttempt, RunState};

/// How a promotion is tried again that must not stay half done.
const COMPLETES: RetryPolicy = RetryPolicy {
    attempts: u32::MAX,
    backoff: Duration::from_secs(15),
    factor: 2.0,
    max: Duration::from_secs(300),
};

/// A run, as its holder knows it. What bodies read is shared with them.
pub(super) struct Known {
    pub(super) run: Arc<Run>,
    pub(super) workflow: Arc<Workflow>,
    pub(super) attempts: Arc<Vec<Attempt>>,
    pub(super) intents: Vec<Intent>,
    signals: Arc<Vec<Signal>>,
    /// Counts what it was told so far, as `Claim::heard` does.
    pub(super) heard: i64,
    /// Sleepers, and what of that each had heard when it fell asleep.
    asleep: HashMap<(StepId, u32), i64>,
    /// What of that a promotion had heard when it was tried last.
    promotion_heard: i64,
    scope: Arc<Scope>,
    /// Attempts that have no row of their own, and those in whose rows they are kept.
    begun_in: HashMap<(StepId, u32), (StepId, u32)>,
    /// Why its workflow cannot be read.
    broken: Option<String>,
    /// How it will end, as the last checkpoint says.
    written: Option<Outcome>,
}

impl Known {
    pub(super) fn new(engine: &Engine, claim: Claim) -> Self {
        let (workflow, broken) = match engine.workflow(&claim.run.definition) {
            Ok(workflow) => (workflow, None),
            Err(why) => (Arc::new(Workflow::empty(&claim.run.workflow, &claim.run.model)), Some(why)),
        };
        let scope = pipeline::scope(&claim.run, &claim.attempts);
        Self {
            written: claim.run.outcome,
            run: Arc::new(claim.run),
            workflow,
            attempts: Arc::new(claim.attempts),
            intents: claim.intents,
            signals: Arc::new(claim.signals),
            heard: claim.heard,
            // A claim wakes all that it finds, or ends them.
            asleep: HashMap::new(),
            promotion_heard: 0,
            scope: Arc::new(scope),
            // A claim gives each attempt that it finds a row.
            begun_in: HashMap::new(),
            broken,
        }
    }

    /// What a body is handed.
    pub(super) fn input(&self) -> Input {
        Input {
            run: Arc::clone(&self.run),
            workflow: Arc::clone(&self.workflow),
            epoch: self.run.epoch,
            attempts: Arc::clone(&self.attempts),
            signals: Arc::clone(&self.signals),
            heard: self.heard,
            scope: Arc::clone(&self.scope),
        }
    }

    /// What happens next.
    pub(super) fn next(&self, now: Timestamp) -> Next {
        if let Some(step) = self.completing() {
            return pipeline::complete(&self.attempts, step, now);
        }
        let ending = self.run.outcome.map(|outcome| (outcome, self.run.reason.as_deref().unwrap_or("")));
        let view = View {
            workflow: &self.workflow,
            attempts: &self.attempts,
            intents: &self.intents,
            ending,
            scope: &self.scope,
        };
        match pipeline::next(view, now) {
            next @ (Next::Go { .. } | Next::Wait { .. }) => next,
            ends @ (Next::End { .. } | Next::Interrupt | Next::Undo { .. } | Next::Finish { .. }) => {
                match self.promoting() {
                    Some(step) => pipeline::complete(&self.attempts, step, now),
                    None => ends,
                }
            }
        }
    }

    /// Attempts whose bodies should run.
    pub(super) fn started(&self) -> Vec<(StepId, u32)> {
        let started = self.attempts.iter().filter(|attempt| attempt.state == AttemptState::Started);
        started.map(|attempt| (attempt.step.clone(), attempt.attempt)).collect()
    }

    /// The attempt in whose row this one is kept, if it has none of its own.
    pub(super) fn begun_in(&self, step: &StepId, attempt: u32) -> Option<(StepId, u32)> {
        self.begun_in.get(&(step.clone(), attempt)).cloned()
    }

    /// How many attempts there are.
    pub(super) fn count(&self) -> u32 {
        u32::try_from(self.attempts.len()).unwrap_or(u32::MAX)
    }

    /// What `step` left for itself when it last slept: the next attempt goes on from there.
    pub(super) fn left_by(&self, step: &StepId) -> Option<Value> {
        pipeline::left_by(&self.attempts, step).cloned()
    }

    /// Whether steps are to begin, and do nothing but wait.
    pub(super) fn only_wait(&self, start: &[(StepId, u32)]) -> bool {
        let waits =
            |id: &StepId| self.workflow.step(id).is_some_and(|step| matches!(step.kind, StepKind::Wait(_)));
        !start.is_empty() && start.iter().all(|(step, _)| waits(step))
    }

    // What sleeps.

    /// It was told something.
    pub(super) fn hear(&mut self, signals: Vec<Signal>, told: i64) {
        self.signals = Arc::new(signals);
        self.heard = told;
    }

    /// Whether something sleeps that has not heard all.
    pub(super) fn has_news(&self) -> bool {
        self.asleep.values().any(|heard| *heard < self.heard)
    }

    /// What all of its sleepers have heard: more wakes them when nobody has the run.
    pub(super) fn heard_by_all(&self) -> i64 {
        self.asleep.values().copied().fold(self.heard, i64::min)
    }

    /// Sleepers that go on at `now`.
    pub(super) fn due(&self, now: Timestamp) -> Vec<(StepId, u32)> {
        let unheard = |attempt: &Attempt| {
            let heard = self.asleep.get(&(attempt.step.clone(), attempt.attempt));
            heard.is_some_and(|heard| *heard < self.heard)
        };
        pipeline::due(&self.attempts, unheard, now)
    }

    /// The earliest time that an attempt it was claimed with waits for.
    pub(super) fn first_due(&self) -> Option<Timestamp> {
        self.attempts.iter().filter_map(|attempt| attempt.wake_at).min()
    }

    // How it ends.

    /// Sets how the run will end.
    pub(super) fn end(&mut self, outcome: Outcome, reason: String) {
        let run = Arc::make_mut(&mut self.run);
        run.outcome = Some(outcome);
        run.reason = Some(reason);
    }

    /// It was promoted, just now. What a step beside the promotion ended it with stands: nothing that waits for that step
    /// begins. A failure is found again in its attempt.
    pub(super) fn promoted(&mut self, reason: String) {
        match self.ending().filter(|(outcome, _)| self.ends() && *outcome != Outcome::Failed) {
            Some((_, why)) => {
                let why = format!("promoted ({reason}), and ended by another step: {why}");
                self.end(Outcome::CancelledAfterPromotion, why);
            }
            None => self.end(Outcome::Promoted, reason),
        }
    }

    /// How it will end, once that is known.
    pub(super) fn ending(&self) -> Option<(Outcome, String)> {
        self.run.outcome.map(|outcome| (outcome, self.run.reason.clone().unwrap_or_default()))
    }

    /// Whether it had a version out and ends in a way that says nothing of a rollback, as of the intents that are known.
    pub(super) fn passes_over_rollbacks(&self) -> bool {
        let is_canary = |step: &Step| matches!(step.kind, StepKind::Canary(_));
        let went_out = |intent: &Intent| matches!(intent.undo, Some(Undo::WithdrawCanary { .. }));
        let is_out = |canary: CanaryOutput| canary.rollout == Rollout::OnCanary;
        // The workflow is asked first: to read all that steps left takes longer than all else at the end of a run.
        self.run.outcome.is_some_and(Outcome::passes_over_rollbacks)
            && self.workflow.steps.iter().any(is_canary)
            && (self.intents.iter().any(went_out)
                || pipeline::outputs(&self.attempts).any(|(_, canary)| is_out(canary)))
    }

    /// Whether whoever takes that version back knows it, and says so.
    pub(super) fn is_known_to_pass_over_rollbacks(&self) -> bool {
        self.written.is_some_and(Outcome::passes_over_rollbacks)
    }

    /// Whether it ends before its last step.
    pub(super) fn ends(&self) -> bool {
        match self.run.outcome {
            None | Some(Outcome::Promoted | Outcome::Succeeded) => false,
            Some(
                Outcome::Rejected
                | Outcome::RolledBack
                | Outcome::Skipped
                | Outcome::Failed
                | Outcome::Cancelled
                | Outcome::CancelledAfterPromotion,
            ) => true,
        }
    }

    /// What is known to end the run before any body begins.
    pub(super) fn first_ending(&self, crash_limit: u32) -> Option<(Outcome, String)> {
        if self.ends() {
            return None;
        }
        if let Some(why) = &self.broken {
            return Some((Outcome::Failed, format!("the run's workflow cannot be read: {why}")));
        }
        if self.run.cancel.is_some() {
            return self.cancelled(false);
        }
        if self.promoting().is_some() {
            return None;
        }
        (self.run.crashes >= crash_limit).then(|| {
            (Outcome::Failed, format!("refit stopped {crash_limit} times in a row while working on this run"))
        })
    }

    /// Whether the steps that it has not finished are over.
    pub(super) fn ends_before_any_body(&self, crash_limit: u32) -> bool {
        self.ends() || self.first_ending(crash_limit).is_some()
    }

    /// What a cancel makes of the run. Before promote's first write it ends now; after it, promote is
    /// completed first. `promoted`: it was, just now.
    pub(super) fn cancelled(&self, promoted: bool) -> Option<(Outcome, String)> {
        let CancelRequest { actor, reason, .. } = self.run.cancel.as_ref()?;
        let why = reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
        if promoted || self.promotion_recorded() {
            return Some((
                Outcome::CancelledAfterPromotion,
                format!("cancelled by {actor} after promotion{why}"),
            ));
        }
        let ends_now = !self.ends() && !self.run.committed;
        ends_now.then(|| (Outcome::Cancelled, format!("cancelled by {actor}{why}")))
    }

    /// A promotion whose first write is made and that no checkpoint has recorded: everybody gets its version, so that it
    /// is completed before the run may end. As of the intents that are known.
    pub(super) fn promoting(&self) -> Option<&StepId> {
        let recorded =
            |attempt: &Attempt| attempt.state == AttemptState::Succeeded || promote::bakes(attempt);
        // Most runs have no intents, and this is asked at each step.
        self.intents.iter().map(|intent| &intent.step).find(|step| {
            let mut attempts = self.attempts.iter().filter(|attempt| attempt.step == **step);
            self.wrote_promotion(step) && !attempts.any(recorded)
        })
    }

    /// The promotion for which alone the run goes on: it is to end, and that must not stay half done.
    pub(super) fn completing(&self) -> Option<&StepId> {
        if self.ends() || self.run.cancel.is_some() { self.promoting() } else { None }
    }

    /// Whether `step` made the first write of its promotion, as of the intents that are known.
    fn wrote_promotion(&self, step: &StepId) -> bool {
        self.promotes(step)
            && self.intents.iter().any(|intent| {
                &intent.step == step && intent.key == Intent::key_of(self.run.id, step, promote::OPERATION)
            })
    }

    /// Whether `step` is a promotion.
    pub(super) fn promotes(&self, step: &StepId) -> bool {
        self.workflow.step(step).is_some_and(|step| matches!(step.kind, StepKind::Promote(_)))
    }

    /// Whether the promotion is in a checkpoint: no undo stands any more.
    pub(super) fn promotion_recorded(&self) -> bool {
        match self.run.outcome {
            Some(Outcome::Promoted | Outcome::CancelledAfterPromotion) => true,
            None
            | Some(
                Outcome::Succeeded
                | Outcome::Rejected
                | Outcome::RolledBack
                | Outcome::Skipped
                | Outcome::Failed
                | Outcome::Cancelled,
            ) => false,
        }
    }

    /// A promote step runs that may have made its first write.
    pub(super) fn in_promotion(&self) -> bool {
        self.attempts
            .iter()
            .any(|attempt| attempt.state == AttemptState::Started && self.promotes(&attempt.step))
    }

    // What a checkpoint makes of it.

    /// The worker goes on.
    pub(super) fn kept(&self) -> RunState {
        let status = if self.ends() { RunStatus::Undoing } else { RunStatus::Running };
        RunState::Kept { status, ending: self.ending() }
    }

    /// The worker gives it back until `wake_at` or a signal.
    pub(super) fn parked(&self, wake_at: Option<Timestamp>) -> RunState {
        let held = self.attempts.iter().any(|attempt| {
            let stage = attempt.resume.as_ref().and_then(|resume| resume.get("stage"));
            attempt.state == AttemptState::Sleeping && stage.and_then(Value::as_str) == Some("held")
        });
        let status = match (self.ends(), held) {
            (true, _) => RunStatus::Undoing,
            (false, true) => RunStatus::Held,
            (false, false) => RunStatus::Waiting,
        };
        RunState::Parked { status, ending: self.ending(), wake_at, heard: self.heard_by_all() }
    }

    /// An attempt ended, or went to sleep having `heard` this.
    pub(super) fn apply(&mut self, record: &EndedAttempt, heard: i64, now: Timestamp) {
        if record.state == AttemptState::Sleeping {
            self.asleep.insert((record.step.clone(), record.attempt), heard);
        }
        if record.state == AttemptState::Failed && self.promotes(&record.step) {
            self.promotion_heard = heard;
        }
        let attempts = Arc::make_mut(&mut self.attempts);
        let same = |attempt: &&mut Attempt| attempt.step == record.step && attempt.attempt == record.attempt;
        if let Some(attempt) = attempts.iter_mut().rev().find(same) {
            attempt.state = record.state;
            attempt.output.clone_from(&record.output);
            attempt.error.clone_from(&record.error);
            attempt.resume.clone_from(&record.resume);
            attempt.wake_at = record.wake_at;
            attempt.finished_at = (record.state != AttemptState::Sleeping).then_some(now);
            let shown = pipeline::shown(attempt);
            Arc::make_mut(&mut self.scope).set_step(record.step.as_str(), shown);
        }
    }

    /// Attempts of steps that the run's end leaves where they are: asleep, or waiting to be tried again.
    pub(super) fn unfinished(&self) -> Vec<(StepId, u32)> {
        let in_main = |attempt: &&Attempt| self.workflow.steps.iter().any(|step| step.id == attempt.step);
        let waits = |attempt: &&Attempt| match attempt.state {
            AttemptState::Sleeping => true,
            AttemptState::Failed => {
                let newest = pipeline::latest(&self.attempts, &attempt.step);
                attempt.wake_at.is_some() && newest.is_some_and(|newest| newest.attempt == attempt.attempt)
            }
            AttemptState::Started
            | AttemptState::Succeeded
            | AttemptState::Lost
            | AttemptState::Skipped
            | AttemptState::Cancelled => false,
        };
        let promoting = self.promoting();
        let is_left = |attempt: &&Attempt| Some(&attempt.step) != promoting;
        let left = self.attempts.iter().filter(in_main).filter(waits).filter(is_left);
        left.map(|attempt| (attempt.step.clone(), attempt.attempt)).collect()
    }

    /// They ended.
    pub(super) fn cancel(&mut self, cancelled: &[(StepId, u32)], now: Timestamp) {
        self.asleep.retain(|attempt, _| !cancelled.contains(attempt));
        let is_one = |attempt: &&mut Attempt| {
            cancelled.iter().any(|(step, number)| *step == attempt.step && *number == attempt.attempt)
        };
        for attempt in Arc::make_mut(&mut self.attempts).iter_mut().filter(is_one) {
            attempt.wake_at = None;
            if attempt.state == AttemptState::Sleeping {
                attempt.state = AttemptState::Cancelled;
                attempt.finished_at = Some(now);
                Arc::make_mut(&mut self.scope).set_step(attempt.step.as_str(), pipeline::shown(attempt));
            }
        }
    }

    /// What a checkpoint wakes, begins and skips that is written, or under way.
    pub(super) fn begin(&mut self, checkpoint: &Checkpoint) {
        self.written = self.run.outcome;
        let ended = checkpoint.ended.as_ref().map(|ended| (ended.step.clone(), ended.attempt));
        if let Some(ended) = &ended {
            self.begun_in.remove(ended);
        }
        if let (Some(next), Some(ended)) = (checkpoint.next(), ended) {
            self.begun_in.insert((next.step.clone(), next.attempt), ended);
        }
        for sleeper in &checkpoint.woken {
            self.wake(sleeper);
        }
        let (epoch, at) = (checkpoint.epoch, checkpoint.at);
        let attempts = Arc::make_mut(&mut self.attempts);
        for NewAttempt { step, attempt } in &checkpoint.started {
            attempts.push(Attempt::started(step.clone(), *attempt, epoch, at));
        }
        for (step, reason) in &checkpoint.skipped {
            let skipped = Attempt::skipped(step.clone(), reason.clone(), epoch, at);
            Arc::make_mut(&mut self.scope).set_step(step.as_str(), pipeline::shown(&skipped));
            attempts.push(skipped);
        }
    }

    fn wake(&mut self, sleeper: &(StepId, u32)) {
        self.asleep.remove(sleeper);
        // What began when it fell asleep has a row of its own now.
        self.begun_in.retain(|_, parent| parent != sleeper);
        let is_it = |attempt: &&mut Attempt| attempt.step == sleeper.0 && attempt.attempt == sleeper.1;
        if let Some(attempt) = Arc::make_mut(&mut self.attempts).iter_mut().rev().find(is_it) {
            attempt.state = AttemptState::Started;
            attempt.wake_at = None;
            let shown = pipeline::shown(attempt);
            Arc::make_mut(&mut self.scope).set_step(sleeper.0.as_str(), shown);
        }
    }

    /// The promotion is recorded: armed undos are dead.
    pub(super) fn kill_undos(&mut self) {
        for intent in self.intents.iter_mut().filter(|intent| intent.state == IntentState::Armed) {
            intent.state = IntentState::Dead;
        }
    }

    /// When the attempt after a failure of `step` begins. Only failures count: shutdowns and lost leases
    /// count toward `crash_limit`.
    pub(super) fn retry_at(
        &self,
        step: &StepId,
        failure: &StepFailure,
        retry_after: Option<Duration>,
        now: Timestamp,
    ) -> Option<Timestamp> {
        match failure.kind {
            FailureKind::Permanent => None,
            FailureKind::Transient | FailureKind::Timeout => {
                let policy = self.workflow.step(step)?.retry;
                let failed =
                    |attempt: &&Attempt| &attempt.step == step && attempt.state == AttemptState::Failed;
                let before = self.attempts.iter().filter(failed).count();
                let failures = u32::try_from(before).unwrap_or(u32::MAX).saturating_add(1);
                policy.next_attempt(failures, now, retry_after, rand::random())
            }
        }
    }

    /// When a promotion whose first write is made is tried again, for which there is no last attempt; `None` of any
    /// other step. The first attempts go by the step's own `retry`.
    pub(super) fn completes_at(
        &self,
        step: &StepId,
        retry_after: Option<Duration>,
        now: Timestamp,
    ) -> Option<Timestamp> {
        if !self.wrote_promotion(step) {
            return None;
        }
        let failed = |attempt: &&Attempt| &attempt.step == step && attempt.state == AttemptState::Failed;
        let failures = u32::try_from(self.attempts.iter().filter(failed).count()).unwrap_or(u32::MAX);
        COMPLETES.next_attempt(failures.saturating_add(1), now, retry_after, rand::random())
    }
}
