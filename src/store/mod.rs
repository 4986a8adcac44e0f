//! What must survive a crash, and what must be true together.
//!
//! The store speaks of runs: what must be true together is one call and one
//! transaction. It is one trait a room, each with what goes in and comes out.
//! `sql/` is one text for both databases, room by room; `postgres` and `sqlite`
//! hold what differs.

mod boards;
mod canaries;
mod error;
mod evidence;
mod freezes;
mod leases;
mod liveness;
mod logs;
mod open;
mod outage;
mod outbox;
pub mod postgres;
mod registry;
mod releases;
mod runs;
mod schedules;
mod signals;
mod silence;
pub mod sqlite;
mod versions;
mod wakeups;

pub use boards::{BoardEntry, Boards};
pub use canaries::{Canaries, CanaryChange, Extended};
pub use error::{StoreError, while_away};
pub use evidence::{BatchReceipt, Evidence, EvidenceAge, OldEvidence, Pruning, Pulled};
pub use freezes::{FreezeAnswer, Freezes, PromotionAsked};
pub use leases::{
    Checkpoint, Claim, ClaimResult, EndedAttempt, LEASE, Leases, LiveWorkers, NewAttempt, Opening, Planner,
    Renewal, RunState, Stay, UndoChange,
};
pub use logs::{LogChunk, Logs};
pub use open::{is_missing, migrate, open};
pub use outbox::{Notice, Outbox, OutboxEntry};
pub use registry::{Condemned, Judge, Marked, Registry};
pub use releases::{CanaryEnd, ReleaseAudit, ReleaseWrite, ReleaseWriteByRun, ReleaseWritten, Releases};
pub use runs::{NewRun, RunFilter, RunSummary, Runs, Submitted};
pub use schedules::{ScheduleRow, Schedules};
pub use signals::Signals;
pub use silence::SILENT_FOR;
pub use versions::{Reservation, VersionNamer, Versions};
pub use wakeups::{Awaited, Due, OnWake, Wakeups};

pub use crate::domain::evidence::{
    EvidenceMinute, MinuteCounts, ObservationBatch, PairedError, Prediction, ScoredRow, ScoredRows,
    TruthBatch,
};

use async_trait::async_trait;

use crate::domain::id::InstanceId;
use open::{migrate_error, newer_schema};
use wakeups::{QUEUE, SAFETY_NET, Wakeup};

/// Everything refit keeps. Times come from the caller; on Postgres, unless the
/// caller's clock is virtual, the database's own time decides leases and what
/// is due.
#[async_trait]
pub trait Store:
    Runs
    + Leases
    + Signals
    + Wakeups
    + Schedules
    + Outbox
    + Boards
    + Logs
    + Versions
    + Releases
    + Canaries
    + Evidence
    + Freezes
    + Registry
{
    /// This database's instance id.
    fn instance(&self) -> InstanceId;
    /// `sqlite` or `postgres`, with the place, without credentials.
    fn label(&self) -> String;
    /// Whether several machines can share it.
    fn is_shared(&self) -> bool;
    /// Whether it answers.
    async fn ping(&self) -> Result<(), StoreError>;
    /// Waits for writes under way and closes.
    async fn close(&self);
}
