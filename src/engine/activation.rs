//! One activation: the claim, with what it starts, and the lease beside it.

use std::sync::Arc;

use tokio::sync::mpsc::{self, error::TrySendError};
use tokio_util::sync::CancellationToken;

use super::Engine;
use super::driver::Driver;
use super::known::Known;
use super::live::Nudge;
use crate::domain::Timestamp;
use crate::domain::id::{Epoch, RunId, StepId};
use crate::domain::pipeline::{self, Next, View};
use crate::domain::run::{AttemptState, CancelRequest, Run, Signal};
use crate::domain::workflow::Workflow;
use crate::store::{Claim, ClaimResult, NewAttempt, Opening, Renewal, StoreError};

impl Engine {
    /// How many runs this process works on now.
    pub fn live_runs(&self) -> usize {
        self.live.count()
    }

    /// Claims `run` and takes it as far as it goes. `stop`: the process shuts down.
    pub async fn activate(self: &Arc<Self>, run: RunId, stop: &CancellationToken) -> Result<(), StoreError> {
        let Some(entered) = self.live.enter(run) else { return Ok(()) };
        while !stop.is_cancelled() {
            let now = self.clock.now();
            let plan = |claim: &Claim| self.opening(claim, now);
            match self.store.claim(run, self.worker, self.settings.lease, now, &plan).await? {
                ClaimResult::Claimed(claim) => {
                    match Driver::new(self, *claim, Arc::clone(&entered.nudge), stop).drive().await {
                        Err(StoreError::Fenced) => {
                            tracing::warn!(run.id = %run, "Run {run} was taken over by another worker; stopped");
                        }
                        other => other?,
                    }
                }
                ClaimResult::Taken
                | ClaimResult::NotDue
                | ClaimResult::KeyTaken
                | ClaimResult::Gone
                | ClaimResult::Left => {}
            }
            // A wake-up that came while the run was given back would be lost otherwise.
            if entered.leave_if_quiet() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// What the claim writes beside the lease. A run whose steps need labels that this worker lacks is left to another one:
    /// its next wake-up finds it.
    fn opening(&self, claim: &Claim, now: Timestamp) -> Option<Opening> {
        // Every sleeper looks at what has changed: the run is due, or somebody sent a signal.
        let adoption = pipeline::adopt(&claim.attempts, true, now);
        let mut opening = Opening { lost: adoption.lost, woken: adoption.woken, ..Opening::default() };
        let Ok(workflow) = self.workflow(&claim.run.definition) else { return Some(opening) };
        let run = &claim.run;
        if self.leaves(run, &workflow) {
            return None;
        }
        let may_end =
            run.outcome.is_some() || run.cancel.is_some() || run.crashes >= self.settings.crash_limit;
        let known = may_end.then(|| Known::new(self, claim.clone()));
        if let Some(known) =
            known.as_ref().filter(|known| known.ends_before_any_body(self.settings.crash_limit))
        {
            // But none of a sequence that ends: whether its body came to its end would be chance.
            let in_main = |(step, _): &(StepId, u32)| workflow.steps.iter().any(|main| &main.id == step);
            (opening.cancelled, opening.woken) = opening.woken.into_iter().partition(in_main);
            if known.promoting().is_some() {
                // Nothing of the end begins before that is completed.
                return Some(opening);
            }
        }
        if run.cancel.is_some() || run.crashes >= self.settings.crash_limit {
            return Some(opening);
        }
        let mut attempts = claim.attempts.clone();
        for attempt in &mut attempts {
            let is = |(step, number): &(StepId, u32)| step == &attempt.step && *number == attempt.attempt;
            if opening.lost.iter().any(is) {
                attempt.state = AttemptState::Lost;
            } else if opening.woken.iter().any(is) {
                attempt.state = AttemptState::Started;
            } else if opening.cancelled.iter().any(is) {
                attempt.state = AttemptState::Cancelled;
            }
        }
        let scope = pipeline::scope(&claim.run, &attempts);
        let ending = claim.run.outcome.map(|outcome| (outcome, claim.run.reason.as_deref().unwrap_or("")));
        let intents = &claim.intents;
        let view = View { workflow: &workflow, attempts: &attempts, intents, ending, scope: &scope };
        if let Next::Go { start, skip, until: _ } = pipeline::next(view, now) {
            opening.started = start.into_iter().map(|(step, attempt)| NewAttempt { step, attempt }).collect();
            opening.skipped = skip;
        }
        Some(opening)
    }

    /// Whether this worker lacks labels that the steps of a run need.
    pub(super) async fn lacks_labels_of(&self, run: RunId) -> Result<bool, StoreError> {
        let Some(run) = self.store.run(run).await? else { return Ok(false) };
        let workflow = self.workflow(&run.definition);
        Ok(workflow.is_ok_and(|workflow| self.leaves(&run, &workflow)))
    }

    /// A run that is to be cancelled needs no labels.
    fn leaves(&self, run: &Run, workflow: &Workflow) -> bool {
        let mut labels = workflow.steps.iter().flat_map(|step| &step.labels);
        run.cancel.is_none() && !labels.all(|label| self.settings.labels.contains(label))
    }
}

/// News from the renewer.
pub(super) enum Lease {
    /// Somebody told the run something.
    Told(Told),
    /// Another worker has the run.
    Lost,
}

/// What a run was told so far.
pub(super) struct Told {
    /// Somebody wants it cancelled.
    pub(super) cancel: Option<CancelRequest>,
    /// Its signals, oldest first.
    pub(super) signals: Vec<Signal>,
    /// Counts all that, as `Claim::heard` does.
    pub(super) count: i64,
}

/// Renews the lease until `done`, and tells what the run is told beyond what it has `heard`. The database being away is no
/// reason to stop: only a moved epoch is. Nor is a holder that has no time to hear: it is told with a later renewal.
pub(super) async fn renew(
    engine: Arc<Engine>,
    (run, epoch, mut heard): (RunId, Epoch, i64),
    nudge: Arc<Nudge>,
    tell: mpsc::Sender<Lease>,
    done: CancellationToken,
) {
    loop {
        tokio::select! {
            () = done.cancelled() => return,
            () = tokio::time::sleep(engine.settings.renew) => {}
            () = nudge.look.notified() => {}
        }
        match look(&engine, (run, epoch), heard).await {
            Ok(Some(told)) => {
                let count = told.count;
                match tell.try_send(Lease::Told(told)) {
                    Ok(()) => heard = count,
                    Err(TrySendError::Full(_)) => {}
                    Err(TrySendError::Closed(_)) => return,
                }
            }
            Ok(None) => {}
            Err(StoreError::Fenced) => {
                // Nobody hears it where the run was given back.
                let _ = tell.send(Lease::Lost).await;
                return;
            }
            Err(error) => {
                tracing::warn!(run.id = %run, "Lease could not be renewed, trying again: {error}");
            }
        }
    }
}

/// Renews the lease; returns what the run was told, if that is more than it has heard.
async fn look(engine: &Engine, (run, epoch): (RunId, Epoch), heard: i64) -> Result<Option<Told>, StoreError> {
    match engine.store.renew(run, epoch, engine.settings.lease, engine.clock.now()).await? {
        Renewal::Held { told, .. } if told <= heard => Ok(None),
        // Read after what counts them: none of those that were counted is missing.
        Renewal::Held { cancel, told } => {
            Ok(Some(Told { cancel, signals: engine.store.signals(run).await?, count: told }))
        }
        Renewal::Lost => Err(StoreError::Fenced),
    }
}
