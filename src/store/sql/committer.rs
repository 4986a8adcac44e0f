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
use crate::domain::id::RunId;
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
    /// Write those that wait, one for each writer.
    _tasks: Vec<AbortOnDropHandle<()>>,
}

struct Work {
    /// Whoever has one writes with it; nothing in them once the store is closed.
    writers: Vec<tokio::sync::Mutex<Option<GroupWriter>>>,
    queue: Mutex<Queue>,
    comes: Notify,
    /// Whether the last commit was of several.
    many: AtomicBool,
}

/// What is to be written.
#[derive(Default)]
struct Queue {
    waiting: Vec<Pending>,
    /// Runs of which one is being written: the fence of the next one needs its rows.
    busy: HashSet<RunId>,
}

/// Runs of a group, until it is written or whoever wrote it is gone.
struct Busy<'a> {
    work: &'a Work,
    runs: Vec<RunId>,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let mut queue = self.work.queue();
        for run in &self.runs {
            queue.busy.remove(run);
        }
        if !queue.waiting.is_empty() {
            // It may wait for one of them.
            self.work.comes.notify_one();
        }
    }
}

impl Committer {
    pub(super) fn start(pool: &Pool<Db>, clock: &Arc<dyn Clock>, news: &watch::Sender<u64>) -> Self {
        let writer = || GroupWriter::new(pool.clone(), Arc::clone(clock), news.clone());
        let work = Arc::new(Work {
            writers: (0..GroupWriter::AT_ONCE).map(|_| tokio::sync::Mutex::new(Some(writer()))).collect(),
            queue: Mutex::default(),
            comes: Notify::new(),
            many: AtomicBool::new(false),
        });
        let task = |own| AbortOnDropHandle::new(tokio::spawn(Arc::clone(&work).write_what_waits(own)));
        let tasks = (0..GroupWriter::AT_ONCE).map(task).collect();
        Self { work, _tasks: tasks }
    }

    pub(super) async fn write(&self, checkpoint: Checkpoint) -> Result<(), StoreError> {
        let (answer, answered) = oneshot::channel();
        let pending = Pending { checkpoint, answer };
        let alone = !self.work.many.load(Ordering::Relaxed);
        let free = alone.then(|| self.work.writers.first()?.try_lock().ok()).flatten();
        match free.filter(|_| self.work.queue().busy.insert(pending.checkpoint.run)) {
            Some(mut writer) => {
                if let Some(writer) = writer.as_mut() {
                    self.work.write(writer, vec![pending]).await;
                }
            }
            None => {
                self.work.queue().waiting.push(pending);
                self.work.comes.notify_one();
            }
        }
        answered.await.map_err(|_| StoreError::Away("the store is closed".to_owned()))?
    }

    /// Keeps no connection until the next checkpoint.
    pub(super) async fn rest(&self) {
        for writer in &self.work.writers {
            if let Some(writer) = writer.lock().await.as_mut() {
                writer.rest().await;
            }
        }
    }

    /// Writes what waits, then takes no more.
    pub(super) async fn close(&self) {
        for writer in &self.work.writers {
            let mut writer = writer.lock().await;
            if let Some(mut writer) = writer.take() {
                self.work.drain(&mut writer).await;
            }
        }
    }
}

impl Work {
    async fn write_what_waits(self: Arc<Self>, own: usize) {
        loop {
            self.comes.notified().await;
            match self.writers[own].lock().await.as_mut() {
                Some(writer) => self.drain(writer).await,
                None => self.queue().waiting.clear(),
            }
        }
    }

    async fn drain(&self, writer: &mut GroupWriter) {
        loop {
            if self.many.load(Ordering::Relaxed) {
                self.let_come().await;
            }
            let group = self.next_group();
            if group.is_empty() {
                return;
            }
            self.write(writer, group).await;
        }
    }

    /// Writes a group whose runs are marked as busy.
    async fn write(&self, writer: &mut GroupWriter, group: Vec<Pending>) {
        let _busy = Busy { work: self, runs: group.iter().map(|pending| pending.checkpoint.run).collect() };
        writer.write(group).await;
    }

    /// Those that the last commit answered come back first: all of them, while more of them come.
    async fn let_come(&self) {
        let mut here = 0;
        loop {
            tokio::task::yield_now().await;
            let now = self.queue().waiting.len();
            if now <= here || now >= LARGEST_GROUP {
                return;
            }
            here = now;
        }
    }

    /// What this writer writes next, of each run one at a time: its share of all that wait or are being written, so that
    /// one group is worked on by the database while the runs of the other go on to their next steps.
    fn next_group(&self) -> Vec<Pending> {
        let mut queue = self.queue();
        let Queue { waiting, busy } = &mut *queue;
        let share = (waiting.len() + busy.len()).div_ceil(GroupWriter::AT_ONCE).min(LARGEST_GROUP);
        let mut taken = 0;
        let (group, later) = std::mem::take(waiting).into_iter().partition(|pending: &Pending| {
            let is_next = taken < share && busy.insert(pending.checkpoint.run);
            taken += usize::from(is_next);
            is_next
        });
        *waiting = later;
        self.many.store(busy.len() > 1, Ordering::Relaxed);
        group
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
