//! What a run, a version, a release and a verdict are, and what happens to
//! them next. Pure: no IO, no clock, nothing of the rest of the crate; time is
//! always an argument.

pub mod because;
pub mod canary;
pub mod event;
pub mod evidence;
pub mod expect;
pub mod expr;
pub mod freeze;
pub mod gate;
pub mod history;
pub mod id;
pub mod metric;
pub mod pause;
pub mod pipeline;
pub mod pull;
pub mod receipt;
pub mod release;
pub mod retention;
pub mod retry;
pub mod run;
pub mod simulate;
pub mod stats;
pub mod verdict;
pub mod version;
pub mod words;
pub mod workflow;

/// A moment in UTC. Decisions take it as an argument; only `crate::clock` makes one.
pub type Timestamp = chrono::DateTime<chrono::Utc>;
