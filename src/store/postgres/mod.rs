//! Postgres: for production and for several processes and machines. Everything
//! is in schema `refit`; the queue's tables are in `apalis`.

mod alone;
mod answers;
#[macro_use]
mod dialect;
mod group;
mod listener;
mod open;
mod session;
#[path = "../sql/mod.rs"]
#[expect(clippy::duplicate_mod, reason = "one text for both databases, compiled for each")]
mod sql;

pub(crate) use answers::{in_long_time, in_time};
pub(crate) use dialect::*;
pub(crate) use group::GroupWriter;
pub(crate) use listener::tell;
pub use open::{migrate, open};
pub(crate) use session::{Session, cut_silent_leases};
