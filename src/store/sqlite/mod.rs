//! SQLite: nothing to install. One writer at a time, so all writes of this
//! process share one connection; other processes of the machine wait their turn.

#[macro_use]
mod dialect;
mod group;
mod open;
#[path = "../sql/mod.rs"]
mod sql;

pub(crate) use dialect::*;
pub(crate) use group::GroupWriter;
pub use open::{migrate, open};
