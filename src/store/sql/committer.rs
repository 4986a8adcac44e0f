//! Writes checkpoints. One that comes alone is written at once, in its
//! caller's own task. Those that come while another is written wait, and are
//! written together: one commit for many runs. While many come, none is taken
//! for one that comes alone: the first one back would commit by itself, and all
//! others would wait for it.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use sqlx::Pool;
use tokio::sync::{Notify, oneshot, watch};
use tokio_util::task::AbortOnDropHandle;

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
    work: Arc<Work>,
    /// Writes those that wait.
    _task: AbortOnDropHandle<()>,
}

struct Work {
    /// Whoever has it writes; nothing in it once the store is closed.
    writer: tokio::sync::Mutex<Option<GroupWriter>>,
    waiting: Mutex<Vec<Pending>>,
    comes: Notify,
    /// Whether the last commit was of several.
    many: AtomicBool,
}

impl Committer {
    pub(super) fn start(pool: Pool<Db>, clock: Arc<dyn Clock>, news: watch::Sender<u64>) -> Self {
        let work = Arc::new(Work {
            writer: tokio::sync::Mutex::new(Some(GroupWriter::new(pool, clock, news))),
            waiting: Mutex::default(),
            comes: Notify::new(),
            many: AtomicBool::new(false),
        });
        let task = tokio::spawn(Arc::clone(&work).write_what_waits());
        Self { work, _task: AbortOnDropHandle::new(task) }
    }

    pub(super) async fn write(&self, checkpoint: Checkpoint) -> Result<(), StoreError> {
        let (answer, answered) = oneshot::channel();
        let pending = Pending { checkpoint, answer };
        let alone = !self.work.many.load(Ordering::Relaxed);
        match alone.then(|| self.work.writer.try_lock()) {
            Some(Ok(mut writer)) => {
                if let Some(writer) = writer.as_mut() {
                    writer.write(vec![pending]).await;
                }
            }
            Some(Err(_)) | None => {
                self.work.waiting().push(pending);
                self.work.comes.notify_one();
            }
        }
        answered.await.map_err(|_| StoreError::Away("the store is closed".to_owned()))?
    }

    /// Keeps no connection until the next checkpoint.
    pub(super) async fn rest(&self) {
        if let Some(writer) = self.work.writer.lock().await.as_mut() {
            writer.rest().await;
        }
    }

    /// Writes what waits, then takes no more.
    pub(super) async fn close(&self) {
        let mut writer = self.work.writer.lock().await;
        if let Some(mut writer) = writer.take() {
            self.work.drain(&mut writer).await;
        }
    }
}

impl Work {
    async fn write_what_waits(self: Arc<Self>) {
        loop {
            self.comes.notified().await;
            match self.writer.lock().await.as_mut() {
                Some(writer) => self.drain(writer).await,
                None => self.waiting().clear(),
            }
        }
    }

    async fn drain(&self, writer: &mut GroupWriter) {
        loop {
            if self.many.load(Ordering::Relaxed) {
                self.let_come().await;
            }
            let group = self.next_group();
            self.many.store(group.len() > 1, Ordering::Relaxed);
            if group.is_empty() {
                return;
            }
            writer.write(group).await;
        }
    }

    /// Those that the last commit answered come back first: all of them, while more of them come.
    async fn let_come(&self) {
        let mut here = 0;
        loop {
            tokio::task::yield_now().await;
            let now = self.waiting().len();
            if now <= here || now >= LARGEST_GROUP {
                return;
            }
            here = now;
        }
    }

    /// Of each run one at a time: the second one's fence needs the first one's rows.
    fn next_group(&self) -> Vec<Pending> {
        let mut runs = HashSet::new();
        let mut waiting = self.waiting();
        let (group, later) = std::mem::take(&mut *waiting)
            .into_iter()
            .partition(|pending| runs.len() < LARGEST_GROUP && runs.insert(pending.checkpoint.run));
        *waiting = later;
        group
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Vec<Pending>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
