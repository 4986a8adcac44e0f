//! Watches canaries, whichever step their run is in: reads what is new, asks
//! `domain::canary` what follows, and does it.
//!
//! Every process may look; a compare-and-set hands each look to one of them.
//! What a look learns is saved before it acts, and what it decides it decides
//! again until it is done, so that a process may die anywhere in between. A
//! process that was stopped and wakes up late finds the release at another
//! generation; what it saves and says of its look is refused once another
//! process looked.

use std::sync::Arc;

use chrono::TimeDelta;
use serde_json::{Value, json};

use super::release::ReleaseError;
use super::reread::Choice;
use super::{Engine, boards, notices, situation};
use crate::domain::Timestamp;
use crate::domain::because::Because;
use crate::domain::canary::{CanaryRecord, CanaryState, Decision, Trouble, look};
use crate::domain::id::{CanaryId, ModelName, RunId, VersionName};
use crate::domain::release::{Assignment, Release, ReleaseActor};
use crate::domain::run::{RunStatus, SignalKind};
use crate::domain::verdict::Verdict;
use crate::domain::workflow::units::BasisPoints;
use crate::domain::workflow::{Moment, Recipient};
use crate::steps::canary::CANARY_VALIDITY;
use crate::store::{CanaryChange, CanaryEnd, Notice, ReleaseWrite, ReleaseWritten, StoreError};

/// How often a change that others were faster with is tried again within one look.
const TRIES: usize = 5;

/// Who controls, in signals.
const ACTOR: &str = "refit";

impl Engine {
    /// Looks at every canary that is due, and returns how many this process looked at.
    ///
    /// # Errors
    /// The last failure; canaries after one that failed were looked at all the same.
    pub async fn look_at_canaries(self: &Arc<Self>) -> Result<usize, StoreError> {
        let now = self.clock.now();
        let next = now + TimeDelta::from_std(self.settings.look_every).unwrap_or(TimeDelta::minutes(1));
        let (mut looked, mut failed) = (0, None);
        for canary in self.store.live_canaries(Some(now)).await? {
            if !self.store.take_look(canary.id, canary.next_look_at, next).await? {
                continue;
            }
            let canary = CanaryRecord { next_look_at: next, ..canary };
            match self.look_at(&canary, now).await {
                Ok(()) => looked += 1,
                Err(error) => {
                    tracing::error!(canary.id = %canary.id, run.id = %canary.run,
                        "A look at the canary of run {} failed: {error}", canary.run);
                    failed = Some(error);
                }
            }
        }
        failed.map_or(Ok(looked), Err)
    }

    async fn look_at(self: &Arc<Self>, before: &CanaryRecord, now: Timestamp) -> Result<(), StoreError> {
        let Some(release) = self.store.release(&before.model, &before.target).await? else {
            return self.close(before, &release_gone(before)).await;
        };
        if !carries(&release, before) {
            return self.no_longer_carried(before, &release).await;
        }
        let unread = self.pull(before, now).await?;
        let mut news = self.news(before, &release, now).await?;
        news.more |= unread;
        let looked = look(before, &news, now);
        let mut after = looked.record;
        let mut told = vec![];
        if let Some(trouble) = &looked.notice {
            let (key, why, todo) = match trouble {
                Trouble::NoEvidence(why) => (
                    "no-evidence",
                    why,
                    "Check that the app routes by the release document and reports what it serves.",
                ),
                Trouble::TruthMissing(why) => (
                    "truth-missing",
                    why,
                    "Check how truths find the requests of this version. It is not promoted like this.",
                ),
            };
            told = self.alerts(before, key, json!({"reason": why, "todo": todo})).await?;
        }
        let is_foreseen = looked.forecast.is_some();
        if let Some(forecast) = &looked.forecast {
            tracing::info!(canary.id = %before.id, run.id = %before.run,
                "{} of `{}` is on canary: {}", before.version, before.model, forecast.sentence);
        }
        match looked.decision {
            Decision::Continue => {
                if self.store.save_look(before, &after, &told).await? {
                    if bake_is_over(&after, now) && !news.more {
                        self.end_bake(&after, now).await?;
                    }
                    self.renew(before, &release, now).await?;
                    if is_foreseen {
                        self.went_on(before).await?;
                    }
                }
            }
            Decision::Shift { stage, reason } => {
                // The release first: the stage is recorded from what the release says, also by the next look.
                let share = after.stages.get(stage).map_or(BasisPoints(0), |stage| stage.share);
                let because = self.because_of(&after, &reason).await?;
                if let Some(release) = self.set_share(before, &release, share, because).await? {
                    after.stage = stage;
                    after.stage_since = release.updated_at;
                    after.generation = release.generation;
                    after.reason =
                        format!("{share} of the traffic since {}", release.updated_at.format("%F %R UTC"));
                    self.store.save_look(before, &after, &told).await?;
                    self.went_on(before).await?;
                    self.show_or_leave(&release).await;
                }
            }
            Decision::StopTraffic { reason } => {
                told.extend(self.alerts(before, "traffic-stopped", json!({"reason": reason})).await?);
                let because = self.because_in_any_case(&after, &reason).await;
                if self.store.save_look(before, &after, &told).await?
                    && let Some(release) = self.set_share(before, &release, BasisPoints(0), because).await?
                {
                    self.show_or_leave(&release).await;
                }
            }
            Decision::RollBack { metric: _, reason } => {
                if self.store.save_look(before, &after, &told).await? {
                    self.take_back(&after, release, &reason).await?;
                }
            }
        }
        Ok(())
    }

    /// Nothing spoke against the version until the end of its bake. Its run says the same, unless it ended before.
    async fn end_bake(&self, canary: &CanaryRecord, now: Timestamp) -> Result<(), StoreError> {
        self.set_state(canary, CanaryState::Promoted, &canary.reason, now).await
    }

    /// Changes the state of a canary, and tells its run, unless it was changed since it was read.
    async fn set_state(
        &self,
        canary: &CanaryRecord,
        to: CanaryState,
        reason: &str,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        let change = CanaryChange {
            canary: canary.id,
            model: canary.model.clone(),
            from: canary.state,
            to,
            bake_until: None,
            reason: Some(reason.to_owned()),
            by_run: None,
            at,
        };
        self.store.set_canary_state(&change).await.map(drop)
    }

    /// Gives the canary another share, same salt; the release that shows it, or `None` when somebody was faster.
    async fn set_share(
        &self,
        canary: &CanaryRecord,
        release: &Release,
        share: BasisPoints,
        because: Because,
    ) -> Result<Option<Release>, StoreError> {
        let mut assignment = release.desired.clone();
        let Some(served) = &mut assignment.canary else { return Ok(None) };
        if served.basis_points == share {
            return Ok(Some(release.clone()));
        }
        served.basis_points = share;
        served.valid_until = self.clock.now() + CANARY_VALIDITY;
        let write =
            ReleaseWrite { owner: release.owner, ..self.change(canary, release, assignment, because) };
        match self.store.write_release(write).await? {
            ReleaseWritten::Made(release) => Ok(Some(release)),
            ReleaseWritten::Moved(_)
            | ReleaseWritten::CancelRequested
            | ReleaseWritten::Deleted(_)
            | ReleaseWritten::Frozen(_) => Ok(None),
        }
    }

    /// Takes the canary back; during its bake, goes to the newest good version before it.
    async fn take_back(
        self: &Arc<Self>,
        canary: &CanaryRecord,
        mut release: Release,
        reason: &str,
    ) -> Result<(), StoreError> {
        for _ in 0..TRIES {
            let (assignment, reason) = match canary.state {
                CanaryState::Baking => match self.back_to(&release, None).await {
                    Ok(way) => (way.assignment.clone(), way.reason(reason)),
                    Err(ReleaseError::Store(error)) => return Err(error),
                    Err(error) => {
                        let facts = json!({"reason": reason, "problem": error.to_string()});
                        let told = self.alerts(canary, "cannot-roll-back", facts).await?;
                        let now = self.clock.now();
                        let saved = self.store.save_look(canary, canary, &told).await?;
                        if saved
                            && matches!(error, ReleaseError::NothingLeft { .. })
                            && bake_is_over(canary, now)
                        {
                            self.end_bake(canary, now).await?;
                        }
                        return Ok(());
                    }
                },
                CanaryState::Watching | CanaryState::Promoted | CanaryState::RolledBack => {
                    (Assignment { canary: None, ..release.desired.clone() }, reason.to_owned())
                }
            };
            let because = self.because_in_any_case(canary, &reason).await;
            let ends = self.end_by(canary, &release, &assignment, reason).await?;
            let write = ReleaseWrite {
                ends_canary: Some(ends),
                marks_bad: Some(canary.version.clone()),
                ..self.change(canary, &release, assignment, because)
            };
            match self.store.write_release(write).await? {
                ReleaseWritten::Made(release) => {
                    self.show_or_leave(&release).await;
                    if canary.state == CanaryState::Baking {
                        let actor = ReleaseActor::Controller { run: canary.run };
                        self.check_rollback_later(&release, Choice::Free, actor);
                    }
                    return Ok(());
                }
                ReleaseWritten::Moved(Some(current)) if carries(&current, canary) => release = current,
                // The version it would go back to was deleted since it was read: there may be another one.
                ReleaseWritten::Deleted(_) => {}
                // Promoted or ended in between: the next look sees where it stands then.
                ReleaseWritten::Moved(_) | ReleaseWritten::CancelRequested | ReleaseWritten::Frozen(_) => {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The end of a canary by a change of its release to `assignment`, and what is said of it if its run ended before, or
    /// is about to end, for nobody else says it then.
    async fn end_by(
        &self,
        canary: &CanaryRecord,
        release: &Release,
        assignment: &Assignment,
        reason: String,
    ) -> Result<CanaryEnd, StoreError> {
        let then = Release {
            desired: assignment.clone(),
            // What no host has shown yet.
            generation: release.generation.next(),
            updated_at: self.clock.now(),
            ..release.clone()
        };
        let serving = situation::serving(&then);
        let facts = json!({"reason": reason, "version": canary.version, "serving": serving});
        let if_run_is_over = self.alerts(canary, "rolled-back", facts).await?;
        Ok(CanaryEnd { if_run_is_over, ..CanaryEnd::of(canary, reason) })
    }

    fn change(
        &self,
        canary: &CanaryRecord,
        release: &Release,
        assignment: Assignment,
        because: Because,
    ) -> ReleaseWrite {
        ReleaseWrite {
            model: canary.model.clone(),
            target: canary.target.clone(),
            expected: release.generation,
            assignment,
            owner: None,
            actor: ReleaseActor::Controller { run: canary.run },
            because,
            at: self.clock.now(),
            by_run: None,
            ends_canary: None,
            marks_bad: None,
            notices: vec![],
            heeds_freeze: false,
        }
    }

    async fn tell_rolled_back(&self, canary: &CanaryRecord, reason: &str) -> Result<(), StoreError> {
        let kind = SignalKind::RolledBack { why: reason.to_owned(), said: false };
        let now = self.clock.now();
        if !self.store.signal(canary.run, &kind, ACTOR, Some(reason), now).await? {
            // Its run ended before; nobody else says it.
            self.alert(canary, "rolled-back", json!({"reason": reason, "version": canary.version})).await?;
        }
        Ok(())
    }

    /// The release shows something else: its own run is about to record why, or somebody changed it.
    async fn no_longer_carried(&self, canary: &CanaryRecord, release: &Release) -> Result<(), StoreError> {
        // Read after the release: a process that was stopped in between knows an older state.
        let known = self.store.canary_of(canary.run).await?;
        if known.is_none_or(|known| known.id != canary.id || known.state != canary.state) {
            return Ok(());
        }
        let finished = self.store.run(canary.run).await?.is_none_or(|run| run.status == RunStatus::Finished);
        let serves = release.desired.champion.as_ref().map(|served| &served.version);
        let newest = self.store.release_history(&canary.model, &canary.target, 1).await?;
        let by_its_run = newest.first().is_some_and(|change| match &change.actor {
            ReleaseActor::Run { run } | ReleaseActor::Undo { run } => *run == canary.run,
            ReleaseActor::Controller { .. } | ReleaseActor::Human { .. } => false,
        });
        if canary.state == CanaryState::Watching && !finished && by_its_run {
            return Ok(());
        }
        if canary.state == CanaryState::Watching && serves == Some(&canary.version) {
            let now = self.clock.now();
            let reason = if by_its_run { "promoted by its run" } else { "promoted by hand" };
            return self.set_state(canary, CanaryState::Promoted, reason, now).await;
        }
        self.close(canary, &superseded(canary, serves)).await
    }

    async fn close(&self, canary: &CanaryRecord, reason: &str) -> Result<(), StoreError> {
        let now = self.clock.now();
        // What the evidence said, if it did, is the better reason.
        let failed = canary.verdict == Verdict::Fail;
        let reason = if failed { &canary.reason } else { reason };
        self.tell_rolled_back(canary, reason).await?;
        self.set_state(canary, CanaryState::RolledBack, reason, now).await
    }

    /// Renews the validity of a canary at half its life: the host first, so that a process that dies in between
    /// leaves it to the next look.
    async fn renew(
        &self,
        canary: &CanaryRecord,
        release: &Release,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut renewed = release.clone();
        let Some(served) = &mut renewed.desired.canary else { return Ok(()) };
        if served.valid_until - now >= CANARY_VALIDITY / 2 {
            return Ok(());
        }
        let until = now + CANARY_VALIDITY;
        served.valid_until = until;
        let Some(host) = self.services.targets.get(&release.target) else { return Ok(()) };
        // A host that does not show how long has nothing to be told.
        if host.traits().expires
            && let Err(error) = host.apply(&renewed, self.services.instance).await
        {
            tracing::warn!(canary.id = %canary.id, "The validity of a canary could not be renewed: {error}");
            return Ok(());
        }
        self.store.extend_canary_validity(&canary.model, &canary.target, release.generation, until).await
    }

    /// Messages that follow the canary's run say so.
    async fn went_on(&self, canary: &CanaryRecord) -> Result<(), StoreError> {
        if self.settings.boards.is_empty() {
            return Ok(());
        }
        let Some(run) = self.store.run(canary.run).await? else { return Ok(()) };
        match self.workflow(&run.definition) {
            Ok(workflow) => {
                self.store.touch_boards(run.id, &boards::of(self, &workflow), self.clock.now()).await
            }
            Err(_) => Ok(()),
        }
    }

    async fn alert(&self, canary: &CanaryRecord, key: &str, facts: Value) -> Result<(), StoreError> {
        let told = self.alerts(canary, key, facts).await?;
        self.store.queue_notices(&told, self.clock.now()).await
    }

    pub(super) async fn alerts(
        &self,
        canary: &CanaryRecord,
        key: &str,
        facts: Value,
    ) -> Result<Vec<Notice>, StoreError> {
        self.alerts_about(&canary.model, Some(canary.run), &canary_key(canary.id, key), facts).await
    }

    /// Alerts everybody who hears of failures of `run`; without any, the log of the process.
    pub(super) async fn alert_about(
        &self,
        model: &ModelName,
        run: Option<RunId>,
        key: &str,
        facts: Value,
    ) -> Result<(), StoreError> {
        let told = self.alerts_about(model, run, key, facts).await?;
        self.store.queue_notices(&told, self.clock.now()).await
    }

    async fn alerts_about(
        &self,
        model: &ModelName,
        run: Option<RunId>,
        key: &str,
        facts: Value,
    ) -> Result<Vec<Notice>, StoreError> {
        let (run, about) = match run {
            Some(id) => match self.store.run(id).await {
                Ok(run) => (run.as_ref().map(|run| run.id), run),
                Err(away @ StoreError::Away(_)) => return Err(away),
                // Said without what the run would add: nobody may say it again.
                Err(error) => {
                    tracing::error!(run.id = %id, "Run {id} cannot be read for an alert about it: {error}");
                    (Some(id), None)
                }
            },
            None => (None, None),
        };
        let mut queued = match &about {
            Some(run) => match self.workflow(&run.definition) {
                Ok(workflow) => notices::alert(self, run, &workflow, key, facts.clone()).await,
                Err(_) => vec![],
            },
            None => vec![],
        };
        if queued.is_empty() {
            queued.push(Notice {
                key: format!("{model}/{key}"),
                run,
                model: model.clone(),
                moment: Moment::Alert,
                to: Recipient::Console,
                facts,
            });
        }
        Ok(queued)
    }
}

/// Whether the release still shows the canary: a share while it is watched, all traffic while it bakes.
fn carries(release: &Release, canary: &CanaryRecord) -> bool {
    match canary.state {
        CanaryState::Watching => {
            let served = release.desired.canary.as_ref();
            release.owner == Some(canary.run)
                && served.is_some_and(|served| served.served.version == canary.version)
        }
        CanaryState::Baking => {
            release.desired.champion.as_ref().is_some_and(|served| served.version == canary.version)
        }
        CanaryState::Promoted | CanaryState::RolledBack => false,
    }
}

fn bake_is_over(canary: &CanaryRecord, now: Timestamp) -> bool {
    canary.state == CanaryState::Baking && canary.bake_until.is_some_and(|until| now >= until)
}

fn canary_key(canary: CanaryId, key: &str) -> String {
    format!("canary/{canary}/{key}")
}

fn release_gone(canary: &CanaryRecord) -> String {
    format!("`{}` has no release on `{}` any more", canary.model, canary.target)
}

fn superseded(canary: &CanaryRecord, serves: Option<&VersionName>) -> String {
    match serves {
        Some(version) => {
            format!("{} was taken off `{}`: {version} serves now", canary.version, canary.target)
        }
        None => format!("{} was taken off `{}`", canary.version, canary.target),
    }
}
