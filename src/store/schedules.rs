//! Ticks of workflows.

use async_trait::async_trait;

use super::{NewRun, StoreError};
use crate::domain::Timestamp;
use crate::domain::event::Event;
use crate::domain::id::WorkflowName;

/// A schedule as kept.
#[derive(Debug, Clone, PartialEq)]
pub struct ScheduleRow {
    /// `workflow/index`.
    pub id: String,
    /// The workflow.
    pub workflow: WorkflowName,
    /// The cron expression and zone it was computed from: a changed one starts anew.
    pub expression: String,
    /// The next tick.
    pub next_fire_at: Timestamp,
}

/// Fires each tick once, by whichever process is first.
#[async_trait]
pub trait Schedules: Send + Sync + 'static {
    /// Makes the schedules of `workflow` those of `rows`: unchanged ones keep their next tick.
    async fn sync_schedules(&self, workflow: &WorkflowName, rows: &[ScheduleRow]) -> Result<(), StoreError>;
    /// All schedules.
    async fn schedules(&self) -> Result<Vec<ScheduleRow>, StoreError>;
    /// Moves a schedule from the tick it was read at to the next one and submits, in one transaction;
    /// false when another process was first, or keeps another expression since.
    async fn fire_schedule(
        &self,
        read: &ScheduleRow,
        next: &ScheduleRow,
        submissions: Vec<(Event, Vec<NewRun>)>,
    ) -> Result<bool, StoreError>;
}
