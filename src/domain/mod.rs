//! What a run, a version, a release and a verdict are, and what happens to
//! them next. Pure: no IO, no clock, nothing of the rest of the crate; time is
//! always an argument.

pub mod id;
pub mod retry;
pub mod stats;
pub mod verdict;

/// A moment in UTC. Decisions take it as an argument; only `crate::clock` makes one.
pub type Timestamp = chrono::DateTime<chrono::Utc>;
