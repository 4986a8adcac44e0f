//! Schedules of this process that do not count, as another process read other
//! files later: it says so, instead of starting nothing in silence.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Catalog, Loaded, expression, fire, next_tick, row_id};
use crate::domain::Timestamp;
use crate::engine::Engine;
use crate::store::{ScheduleRow, StoreError};

/// What a process that stays knows of them, by their row.
#[derive(Debug, Default)]
pub struct Others(Mutex<HashMap<String, Other>>);

/// A schedule that does not count, because the database keeps another one.
#[derive(Debug)]
struct Other {
    /// What the workflow file of this process says.
    own: String,
    /// What counts, if anything does.
    counts: Option<String>,
    is_told: bool,
}

impl Others {
    /// As [`fire_due`](super::fire_due), and says which schedules of `catalog` do not count, once for each change.
    ///
    /// # Errors
    /// The database.
    pub async fn fire_due(
        &self,
        engine: &Arc<Engine>,
        catalog: &Catalog,
    ) -> Result<Option<Timestamp>, StoreError> {
        let rows = engine.store.schedules().await?;
        self.tell(catalog, &rows, engine.clock.now());
        fire(engine, catalog, rows).await
    }

    /// One that is seen for the first time may count in a moment: files that changed are here before they are kept.
    fn tell(&self, catalog: &Catalog, rows: &[ScheduleRow], now: Timestamp) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut seen = HashMap::new();
        for loaded in catalog.workflows() {
            for (index, schedule) in loaded.workflow.triggers.schedules.iter().enumerate() {
                let (id, own) = (row_id(loaded, index), expression(schedule));
                let counts = rows.iter().find(|row| row.id == id).map(|row| row.expression.clone());
                if counts.as_ref() == Some(&own) || next_tick(schedule, now).is_none() {
                    continue;
                }
                let mut other = Other { own, counts, is_told: false };
                if let Some(before) = known.remove(&id)
                    && (&before.own, &before.counts) == (&other.own, &other.counts)
                {
                    if !before.is_told {
                        other.warn(loaded);
                    }
                    other.is_told = true;
                }
                seen.insert(id, other);
            }
        }
        *known = seen;
    }
}

impl Other {
    fn warn(&self, loaded: &Loaded) {
        let counts = match &self.counts {
            Some(counts) => format!("`{counts}` counts"),
            None => "none counts".to_owned(),
        };
        let (own, path) = (&self.own, &loaded.definition.path);
        tracing::warn!(
            workflow = %loaded.workflow.name,
            "The schedule `{own}` of {path} is not followed: a process with another version of that file read it later, and \
             {counts}. Give all processes the same workflow files; for `{own}` to count, restart this process, which reads \
             its files again"
        );
    }
}
