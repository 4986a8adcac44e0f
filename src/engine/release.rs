//! Changes of a release that no step makes: by a human, by the controller, by a
//! rollback. Decided with a compare-and-set, then shown by the host; should the
//! host be away, the reconciler shows it later.

mod error;

use std::sync::Arc;

use serde_json::json;

pub use self::error::ReleaseError;
use super::Engine;
use super::because::left_out;
use super::heard::{Hears, Made};
use crate::domain::because::Because;
use crate::domain::freeze::Freeze;
use crate::domain::id::{Generation, ModelName, TargetName, VersionName};
use crate::domain::release::{Assignment, Release, ReleaseActor};
use crate::domain::run::Intent;
use crate::domain::version::{VersionRecord, VersionState};
use crate::domain::workflow::Moment;
use crate::store::{CanaryEnd, ReleaseWrite, ReleaseWriteByRun, ReleaseWritten, StoreError};

/// Where a release is changed.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// What is served.
    pub model: &'a ModelName,
    /// Where.
    pub target: &'a TargetName,
    /// The generation that is changed, and no other; any where there is none.
    pub seen: Option<Generation>,
}

/// The version that a rollback shall go to.
#[derive(Debug, Clone, Copy)]
pub struct Back<'a> {
    /// It.
    pub version: &'a VersionName,
    /// Whether the version that it takes the place of is marked bad.
    pub marks_bad: bool,
}

/// What a rollback decided.
#[derive(Debug, Clone, PartialEq)]
pub struct RolledBack {
    /// What is to be served now.
    pub release: Release,
    /// Whether everybody gets another version than before; else only a canary was dropped.
    pub changes_champion: bool,
    /// Versions that were nearer and could not serve, each with what is wrong with it.
    pub passed_over: Vec<String>,
    /// Who is told; `None` when there was nothing to change.
    pub hears: Option<Hears>,
}

/// The version that serves after a rollback, and how it was chosen.
pub(super) struct WayBack {
    /// What serves then.
    pub assignment: Assignment,
    /// The version that is bad from now on.
    pub bad: Option<VersionName>,
    /// Versions that would have been taken before it, each with what is wrong with it.
    pub passed_over: Vec<String>,
}

impl WayBack {
    /// `why` there was a rollback, with what it passed over: so it stands in the history, and people are told.
    pub fn reason(&self, why: &str) -> String {
        if self.passed_over.is_empty() {
            return why.to_owned();
        }
        format!("{why}; passed over: {}", self.passed_over.join("; "))
    }
}

impl<'a> Back<'a> {
    /// To `version`, with no judgement on the other.
    pub fn to(version: &'a VersionName) -> Self {
        Self { version, marks_bad: false }
    }
}

pub(super) fn frozen(model: &ModelName, freeze: Freeze) -> ReleaseError {
    ReleaseError::Frozen { model: model.clone(), freeze: Box::new(freeze) }
}

/// Whether a change of a release is made while its model is frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DuringFreeze {
    /// It is: a way back, or a promotion that somebody wants all the same.
    Made,
    /// It is not: a promotion.
    Refused,
}

/// A change of a release, to be made by compare-and-set.
pub(super) struct Change<'a> {
    pub assignment: Assignment,
    /// What people are told that it is: a promotion or a rollback.
    pub moment: Moment,
    pub during_freeze: DuringFreeze,
    pub actor: &'a ReleaseActor,
    pub reason: &'a str,
    /// A version that is bad from now on.
    pub bad: Option<VersionName>,
    /// When a step of a run makes it.
    pub by_run: Option<ReleaseWriteByRun>,
}

impl Engine {
    /// Rolls back and shows it; `check_rollback` is to be called next.
    pub async fn roll_back(
        self: &Arc<Self>,
        model: &ModelName,
        target: &TargetName,
        to: Option<Back<'_>>,
        actor: ReleaseActor,
        reason: &str,
    ) -> Result<RolledBack, ReleaseError> {
        let place = Place { model, target, seen: None };
        let done = self.decide_rollback(place, to, actor, reason, None).await?;
        self.show(&done.release).await?;
        Ok(done)
    }

    /// The same for somebody who was told what becomes of `seen`: a release that was changed since stays as it is.
    pub async fn roll_back_as_seen(
        self: &Arc<Self>,
        seen: &Release,
        to: Option<Back<'_>>,
        actor: ReleaseActor,
        reason: &str,
    ) -> Result<RolledBack, ReleaseError> {
        let place = Place { model: &seen.model, target: &seen.target, seen: Some(seen.generation) };
        let done = self.decide_rollback(place, to, actor, reason, None).await?;
        self.show(&done.release).await?;
        Ok(done)
    }

    /// With a canary out and no version named, drops the canary; else goes to the version named, to the
    /// previous one, or to the newest good one. A person who names what serves already, as it is, changes nothing.
    /// Only versions whose manifest and files are there are taken;
    /// where there is none, people are alerted. A named one that never served is refused while the model is
    /// frozen. `check_rollback` is to be called once it is shown. A step of a run says `by_run`: whoever took the run
    /// over fences it, and an attempt after it finds what it made in the intent.
    pub async fn decide_rollback(
        self: &Arc<Self>,
        Place { model, target, seen }: Place<'_>,
        to: Option<Back<'_>>,
        actor: ReleaseActor,
        reason: &str,
        by_run: Option<&ReleaseWriteByRun>,
    ) -> Result<RolledBack, ReleaseError> {
        loop {
            let current = self
                .store
                .release(model, target)
                .await?
                .ok_or_else(|| ReleaseError::NoRelease { model: model.clone(), target: target.clone() })?;
            if seen.is_some_and(|seen| seen != current.generation) {
                let (model, target) = (model.clone(), target.clone());
                return Err(ReleaseError::Changed { model, target, now: current.generation });
            }
            if let Some(by) = by_run
                && let Some(done) = self.rolled_back_before(by, &current).await?
            {
                return Ok(done);
            }
            let way = match (&current.desired.canary, to) {
                (Some(canary), None) => WayBack {
                    assignment: Assignment { canary: None, ..current.desired.clone() },
                    bad: Some(canary.served.version.clone()),
                    passed_over: vec![],
                },
                (_, to) => match self.back_to(&current, to).await {
                    Ok(back) => back,
                    Err(error @ ReleaseError::NothingLeft { .. }) => {
                        self.alert_nothing_left(&current, &error, reason).await?;
                        return Err(error);
                    }
                    Err(error) => return Err(error),
                },
            };
            // A step of a run writes in any case: its next attempt finds by that what was decided.
            if by_run.is_none() && self.is_decided(&current, &way.assignment).await? {
                if !self.is_newest(&current).await? {
                    continue;
                }
                let (release, passed_over) = (current, way.passed_over);
                return Ok(RolledBack { release, changes_champion: false, passed_over, hears: None });
            }
            let reason = way.reason(reason);
            let WayBack { assignment, bad, passed_over } = way;
            let during_freeze = match to {
                Some(to) => self.way_to(&current, to.version).await,
                None => DuringFreeze::Made,
            };
            let changes_champion = !assignment.has_champion_of(&current.desired);
            let by_run = by_run.map(|by| {
                let detail = json!({
                    "target": target, "generation": current.generation.next(), "changes_champion": changes_champion,
                });
                ReleaseWriteByRun { intent: Intent { detail, ..by.intent.clone() }, ..by.clone() }
            });
            let moment = Moment::RolledBack;
            let change =
                Change { assignment, moment, during_freeze, actor: &actor, reason: &reason, bad, by_run };
            if let Some((release, hears)) = self.replace(&current, change).await? {
                return Ok(RolledBack { release, changes_champion, passed_over, hears: Some(hears) });
            }
        }
    }

    /// What is to be served now, if an earlier attempt of the same step rolled back: that is decided once.
    async fn rolled_back_before(
        &self,
        by: &ReleaseWriteByRun,
        current: &Release,
    ) -> Result<Option<RolledBack>, StoreError> {
        let intents = self.store.intents(by.run).await?;
        let Some(made) = intents.into_iter().find(|intent| intent.key == by.intent.key) else {
            return Ok(None);
        };
        // What somebody changed since is theirs to check.
        let is_current = made.detail.get("generation") == Some(&json!(current.generation));
        let changed = made.detail.get("changes_champion") == Some(&json!(true));
        Ok(Some(RolledBack {
            release: current.clone(),
            changes_champion: changed && is_current,
            passed_over: vec![],
            hears: Some(Hears::OfItsRun),
        }))
    }

    /// To go to a version that never served everybody is a promotion; a history that cannot be read bars no way back.
    async fn way_to(&self, current: &Release, to: &VersionName) -> DuringFreeze {
        let history = match self.store.release_history(&current.model, &current.target, u32::MAX).await {
            Ok(history) => history,
            Err(error) => {
                tracing::error!(model = %current.model, "Whether {to} ever served is not known: {error}");
                return DuringFreeze::Made;
            }
        };
        let assignments = history.iter().map(|change| &change.assignment).chain([&current.desired]);
        let mut served = assignments.flat_map(|it| it.champion.iter().chain(&it.previous));
        if served.any(|served| &served.version == to) { DuringFreeze::Made } else { DuringFreeze::Refused }
    }

    /// The nearest older version that can serve, or the one that is named.
    pub(super) async fn back_to(
        &self,
        current: &Release,
        to: Option<Back<'_>>,
    ) -> Result<WayBack, ReleaseError> {
        let champion = current.desired.champion.as_ref();
        let versions = self.store.versions(&current.model).await?;
        let candidates: Vec<&VersionRecord> = match to {
            Some(to) => versions.iter().filter(|record| &record.name == to.version).collect(),
            None => {
                let previous = current.desired.previous.as_ref();
                let good = |record: &&VersionRecord| {
                    record.state == VersionState::Sealed
                        && champion.is_none_or(|served| served.version != record.name)
                };
                let first = versions
                    .iter()
                    .filter(good)
                    .filter(|record| previous.is_some_and(|served| served.version == record.name));
                let rest = versions
                    .iter()
                    .filter(good)
                    .filter(|record| previous.is_none_or(|served| served.version != record.name));
                first.chain(rest).collect()
            }
        };
        if let Some(to) = to
            && candidates.is_empty()
        {
            let version = to.version.clone();
            return Err(ReleaseError::UnknownVersion { model: current.model.clone(), version });
        }
        let (mut passed_over, mut unreachable) = (vec![], None);
        for record in candidates {
            match self.present(record).await {
                Ok(served) => {
                    let canary = current.desired.canary.as_ref().map(|canary| &canary.served);
                    let leaves = if current.desired.serves(&served) { canary } else { champion };
                    let bad = leaves
                        .map(|leaves| leaves.version.clone())
                        .filter(|_| to.is_none_or(|to| to.marks_bad));
                    let assignment = current.desired.all_to(served);
                    return Ok(WayBack { assignment, bad, passed_over });
                }
                Err(error) => {
                    tracing::error!(version = %record.name, "Version {} cannot be served: {error}", record.name);
                    passed_over.push(format!("{} cannot serve ({error})", record.name));
                    if to.is_some() || error.is_transient() {
                        unreachable = Some(error.into());
                    }
                }
            }
        }
        let model = current.model.clone();
        Err(unreachable.unwrap_or(ReleaseError::NothingLeft { model, unusable: passed_over }))
    }

    /// Somebody wants the champion gone, and there is nothing to take its place.
    pub(super) async fn alert_nothing_left(
        &self,
        current: &Release,
        error: &ReleaseError,
        reason: &str,
    ) -> Result<(), StoreError> {
        let history = self.store.release_history(&current.model, &current.target, 1).await?;
        let run = current.owner.or_else(|| match &history.first()?.actor {
            ReleaseActor::Run { run } | ReleaseActor::Controller { run } | ReleaseActor::Undo { run } => {
                Some(*run)
            }
            ReleaseActor::Human { .. } => None,
        });
        let serves = current.desired.champion.as_ref().map(|served| &served.version);
        let facts = json!({
            "reason": reason, "problem": error.to_string(), "target": current.target, "serves": serves,
        });
        // Once for each state of the release, however often somebody tries.
        let key = format!("cannot-roll-back/{}/{}", current.target, current.generation);
        self.alert_about(&current.model, run, &key, facts).await
    }

    /// Compare-and-set of a release, with the end of the canary that drops out of it, and with what is said of a change
    /// by hand. `None`: somebody was faster; read again.
    pub(super) async fn replace(
        &self,
        current: &Release,
        Change { assignment, moment, during_freeze, actor, reason, bad, by_run }: Change<'_>,
    ) -> Result<Option<(Release, Hears)>, ReleaseError> {
        let ended = match (current.owner, &assignment.canary) {
            (Some(run), None) => {
                let canary = self.live_canary(run).await;
                canary.map(|canary| canary.map(|canary| CanaryEnd::of(&canary, reason.to_owned())))
            }
            (None, None) => self.bake_ended_by(current, &assignment, reason).await,
            (_, Some(_)) => Ok(None),
        };
        let because = self.because(current, reason).await;
        let (ended, because) = match during_freeze {
            // Not missed for bookkeeping.
            DuringFreeze::Made => (
                ended.unwrap_or_else(|error| {
                    left_out(&error, reason);
                    current.owner.map(|run| CanaryEnd::of_unreadable(run, reason.to_owned()))
                }),
                because.unwrap_or_else(|error| {
                    left_out(&error, reason);
                    Because::alone(reason)
                }),
            ),
            DuringFreeze::Refused => (ended?, because?),
        };
        let ends = ended.as_ref().map(|end| end.run);
        let made = Made { current, assignment: &assignment, moment, actor, reason, ends };
        let (hears, told) = self.heard(&made).await;
        let (ended, notices) = match ended {
            Some(end) if moment == Moment::RolledBack => {
                (Some(CanaryEnd { if_run_is_over: told, ..end }), vec![])
            }
            ended => (ended, told),
        };
        let written = self
            .store
            .write_release(ReleaseWrite {
                model: current.model.clone(),
                target: current.target.clone(),
                expected: current.generation,
                assignment,
                owner: None,
                actor: actor.clone(),
                because,
                at: self.clock.now(),
                by_run,
                ends_canary: ended,
                marks_bad: bad,
                notices,
                heeds_freeze: during_freeze == DuringFreeze::Refused,
            })
            .await?;
        match written {
            ReleaseWritten::Made(release) => Ok(Some((release, hears))),
            ReleaseWritten::Frozen(freeze) => Err(frozen(&current.model, freeze)),
            // A version that was deleted since it was read is not found again.
            ReleaseWritten::Moved(_) | ReleaseWritten::CancelRequested | ReleaseWritten::Deleted(_) => {
                Ok(None)
            }
        }
    }

    /// Shows a release; when its host is away, the reconciler shows it later. A host that takes minutes
    /// does so while other canaries are looked at.
    pub(super) async fn show_or_leave(self: &Arc<Self>, release: &Release) {
        let instant = self.services.targets.get(&release.target).is_none_or(|host| host.traits().instant);
        if instant {
            self.show_or_log(release).await;
        } else {
            let (engine, release) = (Arc::clone(self), release.clone());
            tokio::spawn(async move { engine.show_or_log(&release).await });
        }
    }

    async fn show_or_log(&self, release: &Release) {
        if let Err(error) = self.show(release).await {
            tracing::warn!(model = %release.model, target = %release.target,
                "Release {} of `{}` is decided but not shown yet: {error}", release.generation, release.model);
        }
    }

    /// Makes the host show a release, and records that it does.
    pub async fn show(&self, release: &Release) -> Result<(), ReleaseError> {
        let host = self
            .services
            .targets
            .get(&release.target)
            .ok_or_else(|| ReleaseError::UnknownTarget { target: release.target.clone() })?;
        host.apply(release, self.services.instance).await?;
        self.store.release_applied(&release.model, &release.target, release.generation).await?;
        Ok(())
    }
}
