//! Drives one run in a process that is no server: `refit trigger --follow`
//! where nothing else is alive. Only this run is touched.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Engine;
use crate::domain::id::RunId;
use crate::domain::run::{Run, RunStatus};
use crate::notify::{Notifiers, outbox};
use crate::store::StoreError;

const POLL: Duration = Duration::from_millis(200);

impl Engine {
    /// Works on `run` until it ended, waits for a human, or `stop`; `each` sees it whenever it was looked at.
    pub async fn drive_one(
        self: &Arc<Self>,
        run: RunId,
        notifiers: &Notifiers,
        stop: &CancellationToken,
        mut each: impl FnMut(&Run),
    ) -> Result<Option<Run>, StoreError> {
        self.store.register_worker(self.worker, &self.settings.labels, self.clock.now()).await?;
        let driven = self.drive_until(run, notifiers, stop, &mut each).await;
        self.end_rereads(self.deadline().of_steps()).await;
        self.store.retire_worker(self.worker).await?;
        driven
    }

    async fn drive_until(
        self: &Arc<Self>,
        run: RunId,
        notifiers: &Notifiers,
        stop: &CancellationToken,
        each: &mut impl FnMut(&Run),
    ) -> Result<Option<Run>, StoreError> {
        loop {
            let Some(seen) = self.store.run(run).await? else { return Ok(None) };
            each(&seen);
            if seen.status == RunStatus::Finished || seen.status == RunStatus::Held || stop.is_cancelled() {
                self.show_boards(notifiers).await?;
                outbox::drain_once(self.store.as_ref(), notifiers, self.clock.as_ref()).await?;
                return Ok(Some(seen));
            }
            self.activate(run, stop).await?;
            self.look_at_canaries().await?;
            self.show_boards(notifiers).await?;
            outbox::drain_once(self.store.as_ref(), notifiers, self.clock.as_ref()).await?;
            let waits = self.store.run(run).await?.is_some_and(|run| run.status != RunStatus::Finished);
            if waits {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep(POLL) => {}
                }
            }
        }
    }
}
