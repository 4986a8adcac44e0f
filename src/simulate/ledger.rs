//! What the steps of a simulation see: a release that says who the champion
//! is, and nothing that could be changed.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;

use crate::domain::Timestamp;
use crate::domain::canary::{CanaryRecord, Foreseen, Looks, Ripening};
use crate::domain::evidence::{PairedError, ScoredRows};
use crate::domain::freeze::Freeze;
use crate::domain::id::{CanaryId, Generation, StepId, StoreName, TargetName, VersionName};
use crate::domain::release::{Assignment, Release, Served};
use crate::domain::run::{Intent, Undo};
use crate::domain::version::{Manifest, VersionRecord};
use crate::domain::workflow::step::Naming;
use crate::domain::workflow::{Moment, Recipient};
use crate::steps::context::{
    CanaryOpening, Ledger, Promotion, ReleaseChange, ReleaseRefused, StepError, StepLog,
};

/// A world in which `champion` serves.
pub(super) struct PastLedger {
    pub(super) champion: Option<VersionRecord>,
    /// Of the same step a week before.
    pub(super) previous: Option<Value>,
}

/// What a trainer says is not kept: it may hold secrets, and its errors are told by their messages.
pub(super) struct NoLog;

impl StepLog for NoLog {
    fn write(&self, _: &[u8]) {}
    fn note(&self, _: &str) {}
    fn progress(&self, _: Option<f64>, _: &str) {}
}

fn refused<T>() -> Result<T, StepError> {
    Err(StepError::permanent("a simulation changes nothing"))
}

#[async_trait]
impl Ledger for PastLedger {
    async fn release(&self, target: &TargetName) -> Result<Option<Release>, StepError> {
        Ok(self.champion.as_ref().map(|champion| Release {
            model: champion.model.clone(),
            target: target.clone(),
            generation: Generation(1),
            desired: Assignment {
                champion: Some(Served {
                    version: champion.name.clone(),
                    base_url: champion.base_url.clone(),
                    manifest_sha256: champion.manifest_sha256.clone(),
                }),
                ..Assignment::default()
            },
            applied: Some(Generation(1)),
            owner: None,
            updated_at: champion.created_at,
        }))
    }

    async fn releases(&self) -> Result<Vec<Release>, StepError> {
        // Its workflow names the target.
        refused()
    }

    async fn version(&self, version: &VersionName) -> Result<Option<VersionRecord>, StepError> {
        Ok(self.champion.clone().filter(|champion| &champion.name == version))
    }

    async fn previous_output(&self, _: &StepId) -> Result<Option<Value>, StepError> {
        Ok(self.previous.clone())
    }

    async fn freeze(&self) -> Result<Option<Freeze>, StepError> {
        Ok(None)
    }

    async fn foresee(&self, _: &CanaryOpening) -> Result<Option<Foreseen>, StepError> {
        Ok(None)
    }
    async fn scored(&self, _: &VersionName, _: &VersionName, _: i64) -> Result<Vec<PairedError>, StepError> {
        Ok(vec![])
    }
    async fn came_of_age(
        &self,
        _: &VersionName,
        _: &VersionName,
        _: Ripening,
    ) -> Result<Vec<PairedError>, StepError> {
        Ok(vec![])
    }
    async fn add_scored(&self, _: &ScoredRows) -> Result<u64, StepError> {
        refused()
    }

    async fn intend(&self, _: &str, _: Value, _: Option<Undo>) -> Result<Intent, StepError> {
        refused()
    }
    async fn settle(&self, _: &str, _: Value) -> Result<(), StepError> {
        refused()
    }
    async fn reserve_version(&self, _: &StoreName, _: Naming) -> Result<VersionRecord, StepError> {
        refused()
    }
    async fn abandon_version(&self, _: &VersionName) -> Result<(), StepError> {
        refused()
    }
    async fn seal_version(&self, _: &Manifest, _: &str, _: &str) -> Result<(), StepError> {
        refused()
    }
    async fn keep_latest(&self, _: &StoreName, _: u32) -> Result<Vec<String>, StepError> {
        refused()
    }
    async fn change_release(&self, _: ReleaseChange) -> Result<Release, ReleaseRefused> {
        Ok(refused()?)
    }
    async fn promotion(&self, _: &TargetName) -> Result<Option<Promotion>, StepError> {
        Ok(None)
    }
    async fn release_applied(&self, _: &TargetName, _: Generation) -> Result<(), StepError> {
        refused()
    }
    async fn roll_back(&self, _: &TargetName, _: Option<&VersionName>) -> Result<Release, StepError> {
        refused()
    }
    fn looks(&self) -> Looks {
        Looks::Apart(None)
    }

    fn look_every(&self) -> Duration {
        Duration::from_secs(60)
    }
    async fn open_canary(&self, _: CanaryOpening) -> Result<CanaryId, StepError> {
        refused()
    }
    async fn canary(&self) -> Result<Option<CanaryRecord>, StepError> {
        Ok(None)
    }
    async fn canary_promoted(&self, _: CanaryId, _: Option<Timestamp>) -> Result<CanaryRecord, StepError> {
        refused()
    }
    async fn end_bake(&self, _: CanaryId) -> Result<CanaryRecord, StepError> {
        refused()
    }
    async fn close_canary(&self, _: CanaryId, _: &str) -> Result<(), StepError> {
        refused()
    }
    async fn tell(&self, _: &str, _: &[Recipient], _: Moment, _: Value) -> Result<(), StepError> {
        Ok(())
    }
}
