//! What steps may write and read: the store behind the fence of one run and
//! one step. An outage of the database is waited through, until the step is
//! told to stop.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::because::configuration;
use super::body::Input;
use super::release::{Back, Place, ReleaseError};
use super::reread::Choice;
use super::retention::Deletion;
use super::{Engine, notices};
use crate::domain::because::{Because, Evidence};
use crate::domain::canary::{CanaryRecord, CanaryState, Foreseen, Looks, Ripening};
use crate::domain::evidence::{PairedError, ScoredRows};
use crate::domain::freeze::Freeze;
use crate::domain::history::ChangedBy;
use crate::domain::id::{CanaryId, Epoch, Generation, StepId, StoreName, TargetName, VersionName};
use crate::domain::release::{Release, ReleaseActor};
use crate::domain::retention::Policy;
use crate::domain::run::{Intent, IntentState, Run, Undo};
use crate::domain::verdict::Verdict;
use crate::domain::version::{Manifest, VersionRecord, VersionState, next_name};
use crate::domain::workflow::step::Naming;
use crate::domain::workflow::{Moment, Recipient, Workflow};
use crate::steps::context::{
    CanaryOpening, Ledger, Promotion, ReleaseChange, ReleaseChangeKind, ReleaseRefused, StepError,
};
use crate::steps::promote;
use crate::store::{
    CanaryChange, CanaryEnd, ReleaseWrite, ReleaseWriteByRun, ReleaseWritten, Reservation, StoreError,
};

/// Rows that are read at once.
const PAGE: u32 = 2000;

/// The ledger of one attempt.
pub struct RunLedger {
    engine: Arc<Engine>,
    run: Arc<Run>,
    workflow: Arc<Workflow>,
    epoch: Epoch,
    step: StepId,
    cancel: CancellationToken,
}

/// Calls `$call` until the database answers or the step is told to stop.
macro_rules! through_outage {
    ($self:ident, $call:expr) => {{
        let mut delay = $crate::engine::outage::FIRST_PAUSE;
        loop {
            match $call.await {
                Ok(value) => break Ok(value),
                Err(StoreError::Fenced) => break Err(StepError::Fenced),
                Err(StoreError::Away(why)) => {
                    tracing::warn!(run.id = %$self.run.id, step.name = %$self.step, "Step waits for the database: {why}");
                    tokio::select! {
                        () = $self.cancel.cancelled() => break Err(StepError::Interrupted),
                        () = tokio::time::sleep(delay) => delay = (delay * 2).min($crate::engine::outage::LONGEST_PAUSE),
                    }
                }
                Err(error @ (StoreError::Unusable { .. } | StoreError::Broken(_))) => {
                    break Err(StepError::permanent(error.to_string()));
                }
            }
        }
    }};
}

// After the macro, which it uses.
mod gives_way;

impl RunLedger {
    /// The ledger of `step` of the run of `input`.
    pub fn new(engine: &Arc<Engine>, input: &Input, step: &StepId, cancel: CancellationToken) -> Self {
        Self {
            engine: Arc::clone(engine),
            run: Arc::clone(&input.run),
            workflow: Arc::clone(&input.workflow),
            epoch: input.epoch,
            step: step.clone(),
            cancel,
        }
    }

    fn key(&self, operation: &str) -> String {
        Intent::key_of(self.run.id, &self.step, operation)
    }

    fn intent(&self, operation: &str, detail: Value, undo: Option<Undo>) -> Intent {
        Intent {
            step: self.step.clone(),
            key: self.key(operation),
            detail,
            undo,
            result: None,
            state: IntentState::Armed,
        }
    }

    /// A canary of this run that goes out now.
    fn canary_of(&self, opening: CanaryOpening) -> CanaryRecord {
        let now = self.engine.clock.now();
        let look = chrono::TimeDelta::from_std(self.engine.settings.look_every)
            .unwrap_or(chrono::TimeDelta::minutes(1));
        CanaryRecord {
            id: CanaryId::generate(),
            run: self.run.id,
            model: self.run.model.clone(),
            target: opening.target,
            version: opening.version,
            champion: opening.champion,
            generation: opening.generation,
            stages: opening.stages,
            stage: 0,
            stage_since: now,
            rules: opening.rules,
            started_at: now,
            deadline: opening.deadline,
            state: CanaryState::Watching,
            bake_until: None,
            verdict: Verdict::Inconclusive,
            reason: "no evidence yet".to_owned(),
            analysis: Value::Null,
            next_look_at: now + look,
            ended_at: None,
            extensions: vec![],
        }
    }

    /// `reason` to change a release, with the canary it is about: the one that gives way to it, else this run's.
    async fn because(
        &self,
        superseded: Option<&(CanaryRecord, String)>,
        reason: String,
    ) -> Result<Because, StepError> {
        if let Some((canary, why)) = superseded {
            let (engine, reason) = (&self.engine, format!("{reason}; {} goes: {why}", canary.version));
            return through_outage!(self, engine.because_of(canary, &reason));
        }
        Ok(Because {
            reason,
            evidence: self.own_canary().await?.as_ref().map(Evidence::of),
            configuration: Some(configuration(&self.run.definition)),
        })
    }

    /// A change of a canary of this run that is watched.
    fn canary_change(&self, canary: CanaryId, to: CanaryState) -> CanaryChange {
        CanaryChange {
            canary,
            model: self.run.model.clone(),
            from: CanaryState::Watching,
            to,
            bake_until: None,
            reason: None,
            by_run: Some((self.run.id, self.epoch)),
            at: self.engine.clock.now(),
        }
    }

    async fn own_canary(&self) -> Result<Option<CanaryRecord>, StepError> {
        let store = &self.engine.store;
        through_outage!(self, store.canary_of(self.run.id))
    }
}

#[async_trait]
impl Ledger for RunLedger {
    fn looks(&self) -> Looks {
        self.engine.settings.looks
    }

    fn look_every(&self) -> Duration {
        self.engine.settings.look_every
    }

    async fn intend(&self, operation: &str, detail: Value, undo: Option<Undo>) -> Result<Intent, StepError> {
        let intent = self.intent(operation, self.engine.services.secrets.mask_json(detail), undo);
        let store = &self.engine.store;
        through_outage!(self, store.intend(self.run.id, self.epoch, &intent))
    }

    async fn settle(&self, operation: &str, result: Value) -> Result<(), StepError> {
        let key = self.key(operation);
        let result = self.engine.services.secrets.mask_json(result);
        let store = &self.engine.store;
        through_outage!(self, store.settle(self.run.id, self.epoch, &key, &result))
    }

    async fn reserve_version(
        &self,
        store_name: &StoreName,
        naming: Naming,
    ) -> Result<VersionRecord, StepError> {
        let by = Reservation {
            run: self.run.id,
            epoch: self.epoch,
            step: self.step.clone(),
            model: self.run.model.clone(),
            store: store_name.clone(),
            at: self.engine.clock.now(),
        };
        let today = by.at.date_naive();
        let name_of = move |taken: &[VersionName]| next_name(naming, taken, today);
        let store = &self.engine.store;
        through_outage!(self, store.reserve_version(&by, &name_of))
    }

    async fn abandon_version(&self, version: &VersionName) -> Result<(), StepError> {
        let store = &self.engine.store;
        let fence = Some((self.run.id, self.epoch));
        let model = &self.run.model;
        through_outage!(self, store.set_version_state(model, version, VersionState::Abandoned, None, fence))
    }

    async fn seal_version(&self, manifest: &Manifest, base_url: &str, sha256: &str) -> Result<(), StepError> {
        let store = &self.engine.store;
        let fence = Some((self.run.id, self.epoch));
        let sealed = Some((manifest, base_url, sha256));
        let (model, version) = (&self.run.model, &manifest.version);
        through_outage!(self, store.set_version_state(model, version, VersionState::Sealed, sealed, fence))
    }

    async fn keep_latest(&self, store: &StoreName, latest: u32) -> Result<Vec<String>, StepError> {
        let policy = Policy {
            latest: [(store.clone(), latest)].into(),
            adopted: false,
            ages: self.engine.settings.ages,
        };
        let by = ChangedBy {
            actor: ReleaseActor::Run { run: self.run.id },
            reason: String::new(),
            at: self.engine.clock.now(),
        };
        let engine = &self.engine;
        let done = through_outage!(self, engine.collect_versions(&self.run.model, &policy, &by))?;
        let lines = done.into_iter().filter_map(|(version, deletion)| match deletion {
            Deletion::Done { bytes } => Some(format!(
                "deleted {version}, {:.1} MB: older than the newest {latest}",
                bytes as f64 / 1e6
            )),
            Deletion::Failed(error) => Some(format!("{version} is not deleted yet: {error}")),
            Deletion::Kept(_) => None,
        });
        Ok(lines.collect())
    }

    async fn version(&self, version: &VersionName) -> Result<Option<VersionRecord>, StepError> {
        let store = &self.engine.store;
        through_outage!(self, store.version(&self.run.model, version))
    }

    async fn previous_output(&self, step: &StepId) -> Result<Option<Value>, StepError> {
        let store = &self.engine.store;
        through_outage!(self, store.previous_output(&self.run.workflow, self.run.id, step))
    }

    async fn release(&self, target: &TargetName) -> Result<Option<Release>, StepError> {
        let store = &self.engine.store;
        through_outage!(self, store.release(&self.run.model, target))
    }

    async fn releases(&self) -> Result<Vec<Release>, StepError> {
        let (store, targets) = (&self.engine.store, &self.engine.services.targets);
        let mut releases = through_outage!(self, store.releases(Some(&self.run.model)))?;
        releases.retain(|it| targets.contains_key(&it.target) && it.desired.champion.is_some());
        Ok(releases)
    }

    async fn freeze(&self) -> Result<Option<Freeze>, StepError> {
        let store = &self.engine.store;
        through_outage!(self, store.freeze_over(&self.run.model, self.engine.clock.now()))
    }

    async fn change_release(&self, change: ReleaseChange) -> Result<Release, ReleaseRefused> {
        let superseded = match change.kind {
            ReleaseChangeKind::SetCanary => self.superseded(&change).await?,
            ReleaseChangeKind::Promote | ReleaseChangeKind::Withdraw => None,
        };
        let canary = change.assignment.canary.as_ref().map(|canary| canary.served.version.clone());
        let undo = match (change.kind, canary) {
            (ReleaseChangeKind::SetCanary, Some(version)) => Some(Undo::WithdrawCanary {
                model: self.run.model.clone(),
                target: change.target.clone(),
                version,
                generation: change.expected.next(),
            }),
            (ReleaseChangeKind::SetCanary | ReleaseChangeKind::Promote | ReleaseChangeKind::Withdraw, _) => {
                None
            }
        };
        let marks_bad = match change.kind {
            // As when the controller takes it back: no rollback may ever choose it.
            ReleaseChangeKind::Withdraw => self.own_canary().await?.map(|canary| canary.version),
            ReleaseChangeKind::SetCanary | ReleaseChangeKind::Promote => None,
        };
        let detail = serde_json::json!({"target": change.target, "generation": change.expected.next()});
        let because = self.because(superseded.as_ref(), change.reason).await?;
        let write = ReleaseWrite {
            model: self.run.model.clone(),
            target: change.target.clone(),
            expected: change.expected,
            owner: change.assignment.canary.as_ref().map(|_| self.run.id),
            assignment: change.assignment.clone(),
            actor: ReleaseActor::Run { run: self.run.id },
            because,
            at: self.engine.clock.now(),
            by_run: Some(ReleaseWriteByRun {
                run: self.run.id,
                epoch: self.epoch,
                intent: self.intent(&change.operation, detail, undo),
                promotes: change.kind == ReleaseChangeKind::Promote,
            }),
            ends_canary: superseded.map(|(canary, why)| CanaryEnd::of(&canary, why)),
            marks_bad,
            notices: vec![],
            heeds_freeze: change.heeds_freeze,
        };
        let store = &self.engine.store;
        let written = through_outage!(self, store.write_release(write.clone()))?;
        match written {
            ReleaseWritten::Made(release) => Ok(release),
            ReleaseWritten::Moved(current) => Err(ReleaseRefused::Moved {
                expected: change.expected,
                actual: current.map_or(Generation(0), |release| release.generation),
            }),
            ReleaseWritten::CancelRequested => Err(ReleaseRefused::Step(StepError::Cancelled)),
            ReleaseWritten::Frozen(freeze) => Err(ReleaseRefused::Frozen(Box::new(freeze))),
            ReleaseWritten::Deleted(version) => {
                Err(ReleaseRefused::Step(StepError::permanent(format!("version {version} was deleted"))))
            }
        }
    }

    async fn promotion(&self, target: &TargetName) -> Result<Option<Promotion>, StepError> {
        let key = self.key(promote::OPERATION);
        through_outage!(self, self.engine.promotion_of((self.run.id, &key), &self.run.model, target))
    }

    async fn release_applied(&self, target: &TargetName, generation: Generation) -> Result<(), StepError> {
        let store = &self.engine.store;
        through_outage!(self, store.release_applied(&self.run.model, target, generation))
    }

    async fn roll_back(&self, target: &TargetName, to: Option<&VersionName>) -> Result<Release, StepError> {
        let by = ReleaseWriteByRun {
            run: self.run.id,
            epoch: self.epoch,
            intent: self.intent("rollback", Value::Null, None),
            promotes: false,
        };
        let (engine, model) = (&self.engine, &self.run.model);
        let actor = ReleaseActor::Run { run: self.run.id };
        let reason = format!("step `{}` of workflow {} rolls back", self.step, self.run.workflow);
        let place = Place { model, target, seen: None };
        let decided = through_outage!(self, async {
            let (back, actor) = (to.map(Back::to), actor.clone());
            match engine.decide_rollback(place, back, actor, &reason, Some(&by)).await {
                Err(ReleaseError::Store(error)) => Err(error),
                decided => Ok(decided),
            }
        });
        let done = decided??;
        // With only a canary dropped, nobody gets what was not served before.
        if done.changes_champion {
            let choice = if to.is_some() { Choice::Named } else { Choice::Free };
            engine.check_rollback_later(&done.release, choice, actor);
        }
        Ok(done.release)
    }

    async fn foresee(&self, opening: &CanaryOpening) -> Result<Option<Foreseen>, StepError> {
        let (store, engine) = (&self.engine.store, &self.engine);
        let release = through_outage!(self, store.release(&self.run.model, &opening.target))?;
        let Some(release) = release else { return Ok(None) };
        through_outage!(self, engine.foresee(self.canary_of(opening.clone()), &release))
    }

    async fn open_canary(&self, opening: CanaryOpening) -> Result<CanaryId, StepError> {
        let record = self.canary_of(opening);
        let store = &self.engine.store;
        Ok(through_outage!(self, store.open_canary(self.epoch, &record))?.id)
    }

    async fn canary(&self) -> Result<Option<CanaryRecord>, StepError> {
        self.own_canary().await
    }

    async fn scored(
        &self,
        stable: &VersionName,
        canary: &VersionName,
        after: i64,
    ) -> Result<Vec<PairedError>, StepError> {
        let store = &self.engine.store;
        let (mut known, mut cursor) = (vec![], after);
        loop {
            let model = &self.run.model;
            let page = through_outage!(self, store.paired_errors(model, canary, stable, cursor, PAGE))?;
            cursor = page.iter().map(|pair| pair.seq).fold(cursor, i64::max);
            let is_last = page.len() < PAGE as usize;
            known.extend(page);
            if is_last {
                return Ok(known);
            }
        }
    }

    async fn came_of_age(
        &self,
        stable: &VersionName,
        canary: &VersionName,
        mut wanted: Ripening,
    ) -> Result<Vec<PairedError>, StepError> {
        let store = &self.engine.store;
        let mut aged = vec![];
        loop {
            let page = through_outage!(self, store.ripe(&self.run.model, canary, stable, &wanted, PAGE))?;
            let is_last = page.is_all(&wanted);
            wanted.after = Some(page.through);
            aged.extend(page.pairs);
            if is_last {
                return Ok(aged);
            }
        }
    }

    async fn add_scored(&self, scored: &ScoredRows) -> Result<u64, StepError> {
        let store = &self.engine.store;
        through_outage!(self, store.add_scored(self.run.id, self.epoch, &self.run.model, scored))
    }

    async fn canary_promoted(
        &self,
        canary: CanaryId,
        bake_until: Option<crate::domain::Timestamp>,
    ) -> Result<CanaryRecord, StepError> {
        let to = if bake_until.is_some() { CanaryState::Baking } else { CanaryState::Promoted };
        let change = CanaryChange { bake_until, ..self.canary_change(canary, to) };
        let store = &self.engine.store;
        through_outage!(self, store.set_canary_state(&change))
    }

    async fn end_bake(&self, canary: CanaryId) -> Result<CanaryRecord, StepError> {
        let (store, now) = (&self.engine.store, self.engine.clock.now());
        through_outage!(self, store.end_bake(canary, &self.run.model, (self.run.id, self.epoch), now))
    }

    async fn close_canary(&self, canary: CanaryId, reason: &str) -> Result<(), StepError> {
        let change = CanaryChange {
            reason: Some(reason.to_owned()),
            ..self.canary_change(canary, CanaryState::RolledBack)
        };
        let store = &self.engine.store;
        through_outage!(self, store.set_canary_state(&change)).map(drop)
    }

    async fn tell(
        &self,
        operation: &str,
        to: &[Recipient],
        moment: Moment,
        facts: Value,
    ) -> Result<(), StepError> {
        let queued =
            notices::to(&self.run, &self.workflow, to, moment, &format!("{}/{operation}", self.step), facts);
        let (store, now) = (&self.engine.store, self.engine.clock.now());
        through_outage!(self, store.queue_notices(&queued, now))
    }
}
