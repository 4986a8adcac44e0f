//! Windows without promotions.

use async_trait::async_trait;

use super::StoreError;
use crate::domain::Timestamp;
use crate::domain::freeze::{Freeze, FreezeError, FreezeScope, FreezeWish};
use crate::domain::id::{FreezeId, ModelName, RunId};

/// What came of a wish to freeze.
#[derive(Debug, Clone, PartialEq)]
pub enum FreezeAnswer {
    /// There is a freeze now that was not there before.
    Made(Freeze),
    /// There was the same one already: nothing was changed.
    Already(Freeze),
    /// It would never be in force.
    Refused(FreezeError),
}

/// What came of telling a run that a human promotes its canary.
#[derive(Debug, Clone, PartialEq)]
pub enum PromotionAsked {
    /// It was told.
    Told,
    /// It ended before.
    Ended,
    /// Its model is frozen: it was not told.
    Frozen(Freeze),
}

/// Keeps freezes. Of a freeze and a promotion one comes first: once `freeze` has returned, no promotion that heeds
/// freezes is made, by whatever process. The database's time says what is in force, as it does for leases.
#[async_trait]
pub trait Freezes: Send + Sync + 'static {
    /// Freezes; the same wish while its freeze is not over changes nothing.
    async fn freeze(
        &self,
        id: FreezeId,
        wish: &FreezeWish,
        at: Timestamp,
    ) -> Result<FreezeAnswer, StoreError>;
    /// Lifts freezes that are not over, also those to come, and wakes runs that wait for their end. Returns those that
    /// this call lifted.
    async fn unfreeze(&self, which: &FreezeScope, by: &str, at: Timestamp)
    -> Result<Vec<Freeze>, StoreError>;
    /// The freeze in force over `model`; of several the one that lasts longest.
    async fn freeze_over(&self, model: &ModelName, at: Timestamp) -> Result<Option<Freeze>, StoreError>;
    /// Freezes that are in force or to come, in the order they begin.
    async fn open_freezes(&self, at: Timestamp) -> Result<Vec<Freeze>, StoreError>;
    /// All freezes, also those that are over, newest first; those that cover a model when it is given.
    async fn freezes(&self, model: Option<&ModelName>, limit: u32) -> Result<Vec<Freeze>, StoreError>;
    /// Tells `run` that a human promotes its canary, unless `model` is frozen.
    async fn ask_to_promote(
        &self,
        run: RunId,
        model: &ModelName,
        actor: &str,
        reason: Option<&str>,
        at: Timestamp,
    ) -> Result<PromotionAsked, StoreError>;
}
