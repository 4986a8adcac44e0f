//! What every store promises. One suite, run on SQLite and on a real Postgres.

mod boards;
mod checkpoints;
mod claims;
mod clocks;
pub mod database;
mod deliveries;
mod evidence;
mod failovers;
mod forgetting;
mod freezes;
mod keys;
pub mod make;
mod migrations;
mod opening;
mod orders;
mod outbox;
mod plans;
mod pulls;
mod registry;
mod releases;
mod schedules;
mod silence;
mod submits;

/// Makes two tests of each function: one on SQLite, one on Postgres.
macro_rules! on_both {
    ($($test:ident)*) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(crate::store::database::Database::sqlite()).await;
            })*
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(crate::store::database::Database::postgres().await).await;
            })*
        }
    };
}
pub(crate) use on_both;
