//! Runs, from trigger to end, on both databases.

mod audit;
mod basics;
mod beside_promotion;
mod bookkeeping;
mod branches;
mod cancel;
pub mod crash;
mod endings;
mod extend;
mod fencing;
mod freeze;
mod heard;
mod heard_late;
mod hold;
mod meanwhile;
mod moved;
mod outage;
mod promotion;
mod pruning;
mod receipts;
mod releases;
mod retention;
mod rollback;
mod rollout;
mod secrets;
mod shadow;
mod shutdown;
mod told;
mod unheard;

use crate::support::world::World;

async fn on_both(test: impl AsyncFn(World)) {
    test(World::sqlite()).await;
    test(World::postgres().await).await;
}
