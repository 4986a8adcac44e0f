//! Promotions by people. What a freeze keeps back they may do all the same, if
//! they say so; the history says that they did.

use std::sync::Arc;

use super::Engine;
use super::heard::{Hears, without_reason};
use super::release::{Change, DuringFreeze, ReleaseError, frozen};
use crate::domain::id::{Generation, ModelName, RunId, TargetName, VersionName};
use crate::domain::release::{Assignment, Release, ReleaseActor};
use crate::domain::run::{RunStatus, SignalKind};
use crate::domain::version::VersionState;
use crate::domain::workflow::Moment;
use crate::store::{PromotionAsked, StoreError};

/// What came of a promotion by hand.
#[derive(Debug, Clone, PartialEq)]
pub enum PromotedByHand {
    /// The version's own run was told; it promotes.
    Run(RunId),
    /// It serves everybody now.
    Done(Box<Promoted>),
}

/// A version that a person promoted.
#[derive(Debug, Clone, PartialEq)]
pub struct Promoted {
    /// What is to be served now.
    pub release: Release,
    /// Who is told; `None` when there was nothing to change.
    pub hears: Option<Hears>,
}

/// A promotion by hand.
struct ByHand<'a> {
    version: &'a VersionName,
    supersede: bool,
    during_freeze: DuringFreeze,
    who: &'a str,
    reason: Option<&'a str>,
}

impl Engine {
    /// A human promotes `version`: the run whose canary it is does it; any other version needs
    /// `supersede` when a canary is out. Refused while the model is frozen.
    pub async fn promote_by_hand(
        self: &Arc<Self>,
        model: &ModelName,
        target: &TargetName,
        version: &VersionName,
        supersede: bool,
        who: &str,
        reason: Option<&str>,
    ) -> Result<PromotedByHand, ReleaseError> {
        let during_freeze = DuringFreeze::Refused;
        self.promote_so(model, target, ByHand { version, supersede, during_freeze, who, reason }).await
    }

    /// The same whether or not the model is frozen; the reason that is kept says that it was.
    pub async fn promote_despite_freeze(
        self: &Arc<Self>,
        model: &ModelName,
        target: &TargetName,
        version: &VersionName,
        supersede: bool,
        who: &str,
        reason: Option<&str>,
    ) -> Result<PromotedByHand, ReleaseError> {
        let freeze = self.store.freeze_over(model, self.clock.now()).await?;
        let why = freeze.map(|freeze| match reason {
            Some(reason) => format!("{reason}, although {freeze}"),
            None => format!("although {freeze}"),
        });
        let (reason, during_freeze) = (why.as_deref().or(reason), DuringFreeze::Made);
        self.promote_so(model, target, ByHand { version, supersede, during_freeze, who, reason }).await
    }

    async fn promote_so(
        self: &Arc<Self>,
        model: &ModelName,
        target: &TargetName,
        ByHand { version, supersede, during_freeze, who, reason }: ByHand<'_>,
    ) -> Result<PromotedByHand, ReleaseError> {
        loop {
            let current = self.store.release(model, target).await?;
            if let Some(release) = &current
                && let (Some(canary), Some(owner)) = (&release.desired.canary, release.owner)
            {
                let live = self.store.run(owner).await?.is_some_and(|run| run.status != RunStatus::Finished);
                if live && &canary.served.version == version {
                    match self.tell_to_promote(owner, model, during_freeze, who, reason).await? {
                        PromotionAsked::Told => return Ok(PromotedByHand::Run(owner)),
                        PromotionAsked::Ended => continue,
                        PromotionAsked::Frozen(freeze) => return Err(frozen(model, freeze)),
                    }
                }
                if live && !supersede {
                    return Err(ReleaseError::Busy { version: canary.served.version.clone(), run: owner });
                }
            }
            let record = self.store.version(model, version).await?;
            let record = record
                .filter(|record| matches!(record.state, VersionState::Sealed | VersionState::Bad))
                .ok_or_else(|| ReleaseError::UnknownVersion {
                    model: model.clone(),
                    version: version.clone(),
                })?;
            let served = self.verified(&record).await?;
            let current = current.unwrap_or_else(|| Release {
                model: model.clone(),
                target: target.clone(),
                generation: Generation(0),
                desired: Assignment::default(),
                applied: None,
                owner: None,
                updated_at: self.clock.now(),
            });
            let assignment = current.desired.all_to(served);
            if self.is_decided(&current, &assignment).await? {
                // It took its time to read all files.
                if !self.is_newest(&current).await? {
                    continue;
                }
                self.show(&current).await?;
                let promoted = Promoted { release: current, hears: None };
                return Ok(PromotedByHand::Done(Box::new(promoted)));
            }
            let actor = ReleaseActor::Human { name: who.to_owned() };
            let why = reason.map_or_else(|| without_reason(Moment::Promoted, who), ToOwned::to_owned);
            // To drop the canary beside the version that serves is a way back; to say where it is, no promotion either.
            let is_back = assignment.has_champion_of(&current.desired);
            let (moment, during_freeze) = if is_back {
                (Moment::RolledBack, DuringFreeze::Made)
            } else {
                (Moment::Promoted, during_freeze)
            };
            let reason = why.as_str();
            let change =
                Change { assignment, moment, during_freeze, actor: &actor, reason, bad: None, by_run: None };
            if let Some((release, hears)) = self.replace(&current, change).await? {
                self.show(&release).await?;
                let promoted = Promoted { release, hears: Some(hears) };
                return Ok(PromotedByHand::Done(Box::new(promoted)));
            }
        }
    }

    async fn tell_to_promote(
        &self,
        run: RunId,
        model: &ModelName,
        during_freeze: DuringFreeze,
        who: &str,
        reason: Option<&str>,
    ) -> Result<PromotionAsked, StoreError> {
        let now = self.clock.now();
        match during_freeze {
            DuringFreeze::Refused => self.store.ask_to_promote(run, model, who, reason, now).await,
            DuringFreeze::Made => {
                let told = self.store.signal(run, &SignalKind::Promote, who, reason, now).await?;
                Ok(if told { PromotionAsked::Told } else { PromotionAsked::Ended })
            }
        }
    }
}
