//! One text for both databases. This module is compiled twice, once below
//! `sqlite` and once below `postgres`; the module above it gives the types and
//! the macros for what differs.

mod boards;
mod canaries;
pub(crate) mod checkpoint;
mod claim;
mod committer;
mod deliver;
mod due;
mod evidence;
mod forget;
mod freezes;
mod holders;
mod holdings;
mod labels;
mod logs;
mod outbox;
mod pulls;
mod queries;
mod reap;
mod registry;
mod releases;
pub(crate) mod rows;
mod schedules;
mod signals;
mod store;
mod submit;
mod truth;
mod versions;
mod waking;

pub(crate) use checkpoint::write as write_checkpoint;
pub(crate) use committer::{Committer, Pending};
pub(crate) use deliver::own_news;
pub(crate) use store::{Parts, SqlStore};
