//! Takes all checkpoints that wait and writes them together: one commit for
//! many runs. One that comes alone is written at once.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use sqlx::Pool;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::super::{Db, GroupWriter};
use crate::clock::Clock;
use crate::store::{Checkpoint, StoreError};

/// No group is larger, so that the first in it does not wait long.
const LARGEST_GROUP: usize = 256;

/// A checkpoint that waits for its commit.
pub(crate) struct Pending {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    answer: oneshot::Sender<Result<(), StoreError>>,
}

impl Pending {
    /// Tells the one who waits.
    pub(crate) fn answer(self, result: Result<(), StoreError>) {
        // Nobody waits when the activation was dropped.
        let _ = self.answer.send(result);
    }
}

/// Writes checkpoints in the order they come.
pub(crate) struct Committer {
    queue: Mutex<Option<mpsc::UnboundedSender<Pending>>>,
    task: tokio::sync::Mutex<Option<JoinHandle<()>>>,
}

impl Committer {
    pub(super) fn start(pool: Pool<Db>, clock: Arc<dyn Clock>, news: watch::Sender<u64>) -> Self {
        let (queue, waiting) = mpsc::unbounded_channel();
        let task = tokio::spawn(run(waiting, GroupWriter::new(pool, clock, news)));
        Self { queue: Mutex::new(Some(queue)), task: tokio::sync::Mutex::new(Some(task)) }
    }

    pub(super) async fn write(&self, checkpoint: Checkpoint) -> Result<(), StoreError> {
        let (answer, answered) = oneshot::channel();
        let closed = || StoreError::Away("the store is closed".to_owned());
        {
            let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            let queue = queue.as_ref().ok_or_else(closed)?;
            queue.send(Pending { checkpoint, answer }).map_err(|_| closed())?;
        }
        answered.await.map_err(|_| closed())?
    }

    /// Writes what waits, then takes no more.
    pub(super) async fn close(&self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = self.task.lock().await.take()
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the committer ended badly");
        }
    }
}

async fn run(mut waiting: mpsc::UnboundedReceiver<Pending>, mut writer: GroupWriter) {
    // Of each run one at a time: the second one's fence needs the first one's rows.
    let mut held_back: Vec<Pending> = Vec::new();
    loop {
        let mut group = Vec::new();
        let mut runs = HashSet::new();
        let mut later = Vec::new();
        for pending in held_back.drain(..) {
            sort_in(pending, &mut runs, &mut group, &mut later);
        }
        if group.is_empty() {
            match waiting.recv().await {
                Some(first) => sort_in(first, &mut runs, &mut group, &mut later),
                None => return,
            }
        }
        while group.len() < LARGEST_GROUP
            && let Ok(next) = waiting.try_recv()
        {
            sort_in(next, &mut runs, &mut group, &mut later);
        }
        held_back = later;
        writer.write(group).await;
    }
}

fn sort_in(
    pending: Pending,
    runs: &mut HashSet<crate::domain::id::RunId>,
    group: &mut Vec<Pending>,
    later: &mut Vec<Pending>,
) {
    if runs.insert(pending.checkpoint.run) { group.push(pending) } else { later.push(pending) }
}
