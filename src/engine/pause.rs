//! Whether a workflow is started by itself.

use crate::domain::event::BY_HAND;
use crate::domain::id::WorkflowName;
use crate::domain::pause::{Judged, Pause};
use crate::store::{RunFilter, Store, StoreError};

/// The newest runs that are looked at: of those before, nobody waits for a schedule.
const LOOKED_AT: u32 = 50;

/// Why `workflow` is not started by schedules and events now, if it is not. `ending`: a run of it that is about to end so.
pub async fn paused(
    store: &dyn Store,
    workflow: &WorkflowName,
    ending: Option<Judged>,
) -> Result<Option<Pause>, StoreError> {
    let filter = RunFilter { workflow: Some(workflow.clone()), limit: LOOKED_AT, ..RunFilter::default() };
    let runs = store.runs(&filter).await?.into_iter().map(|run| Judged {
        run: run.id,
        outcome: run.outcome.filter(|_| run.finished_at.is_some()),
        ended_at: run.finished_at,
        by_hand: run.event == BY_HAND,
    });
    let ending_id = ending.map(|ending| ending.run);
    Ok(Pause::after(ending.into_iter().chain(runs.filter(|run| Some(run.run) != ending_id))))
}
