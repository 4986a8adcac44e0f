//! One process's loops: wake-ups, reaper, schedules, canaries, outbox.
//! Starting them is all that makes a process a worker; stopping gives every
//! run back.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::TimeDelta;
use futures::FutureExt;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Engine;
use super::deadline::Deadline;
use crate::domain::Timestamp;
use crate::domain::id::RunId;
use crate::notify::closing::Closing;
use crate::notify::{Notifiers, outbox};
use crate::store::{OnWake, Stay, StoreError};

/// The longest time between two looks at what is due; a wake-up that got lost waits this long.
const REAP_EVERY: Duration = Duration::from_millis(500);
const OUTBOX_EVERY: Duration = Duration::from_secs(1);
const BOARDS_EVERY: Duration = Duration::from_secs(1);
const LOOK_POLL: Duration = Duration::from_secs(1);
/// How often the only run of a process is looked at.
const REVISIT: Duration = Duration::from_millis(200);

/// A process that works on runs.
pub struct Worker {
    engine: Arc<Engine>,
    stop: CancellationToken,
    activations: TaskTracker,
    closing: Closing,
    /// No run says anything any more.
    silent: CancellationToken,
    loops: JoinSet<()>,
    /// The loops that tell people.
    tellers: JoinSet<()>,
}

struct Waker {
    engine: Arc<Engine>,
    stop: CancellationToken,
    activations: TaskTracker,
}

#[async_trait]
impl OnWake for Waker {
    async fn advance(&self, run: RunId) {
        if self.stop.is_cancelled() {
            return;
        }
        // A task of its own: what carries the wake-up may be dropped at any time.
        let (engine, stop) = (Arc::clone(&self.engine), self.stop.clone());
        let task = self.activations.spawn(async move {
            if let Err(error) = engine.activate(run, &stop).await {
                tracing::error!(run.id = %run, "Run {run} stopped advancing, it will be tried again: {error}");
            }
        });
        if let Err(error) = task.await {
            tracing::error!(run.id = %run, "The activation of run {run} failed: {error}");
        }
    }

    fn told(&self, run: Option<RunId>) {
        self.engine.live.look(run);
    }
}

impl Worker {
    /// Registers this process as a server and starts its loops.
    pub async fn start(engine: Arc<Engine>, notifiers: Arc<Notifiers>) -> Result<Self, StoreError> {
        Self::of_all(engine, notifiers, Stay::Open).await
    }

    /// The same in a process that ends once nothing is due: nobody relies on it.
    pub async fn for_now(engine: Arc<Engine>, notifiers: Arc<Notifiers>) -> Result<Self, StoreError> {
        Self::of_all(engine, notifiers, Stay::Short).await
    }

    async fn of_all(engine: Arc<Engine>, notifiers: Arc<Notifiers>, stay: Stay) -> Result<Self, StoreError> {
        let mut worker = Self::without_runs(engine, notifiers, stay).await?;
        let (engine, stop) = (Arc::clone(&worker.engine), worker.stop.clone());
        let activations = worker.activations.clone();
        let waker = Arc::new(Waker { engine: Arc::clone(&engine), stop: stop.clone(), activations });
        worker.loops.spawn(async move {
            engine.store.deliver_wakeups(waker, engine.settings.concurrency, stop).await;
        });
        worker.also(REAP_EVERY, "reaper", reap);
        worker.also(worker.engine.settings.look_every, "releases", |engine| async move {
            engine.reconcile_releases().await.map(|_| None)
        });
        Ok(worker)
    }

    /// Works on `run` and on no other: in a process that is no server, where nothing else is alive.
    pub async fn of_one(
        engine: Arc<Engine>,
        notifiers: Arc<Notifiers>,
        run: RunId,
    ) -> Result<Self, StoreError> {
        let mut worker = Self::without_runs(engine, notifiers, Stay::Short).await?;
        let (activations, stop) = (worker.activations.clone(), worker.stop.clone());
        worker.also(REVISIT, "run", move |engine| {
            let stop = stop.clone();
            let task = activations.spawn(async move { engine.activate(run, &stop).await });
            async move {
                let activated = task.await.unwrap_or_else(|error| {
                    tracing::error!("The activation of run {run} failed: {error}");
                    Ok(())
                });
                activated.map(|()| None)
            }
        });
        Ok(worker)
    }

    /// Registers this process. It looks at canaries and tells people.
    async fn without_runs(
        engine: Arc<Engine>,
        notifiers: Arc<Notifiers>,
        stay: Stay,
    ) -> Result<Self, StoreError> {
        let now = engine.clock.now();
        engine.store.register_worker(engine.worker, &engine.settings.labels, stay, now).await?;
        engine.forget_ending();
        let (stop, activations) = (CancellationToken::new(), TaskTracker::new());
        let (mut loops, mut tellers) = (JoinSet::new(), JoinSet::new());
        loops.spawn(every(&engine, &stop, LOOK_POLL, "canaries", |engine| async move {
            engine.look_at_canaries().await.map(|_| None)
        }));
        let (closing, silent) = (Closing::default(), CancellationToken::new());
        let (followers, closes) = (Arc::clone(&notifiers), closing.clone());
        tellers.spawn(every_and_at_last(&engine, &silent, BOARDS_EVERY, "boards", move |engine| {
            let (notifiers, closing) = (Arc::clone(&followers), closes.clone());
            async move { engine.show_boards_until(&notifiers, &closing).await.map(|_| None) }
        }));
        let closes = closing.clone();
        tellers.spawn(every_and_at_last(&engine, &silent, OUTBOX_EVERY, "outbox", move |engine| {
            let (notifiers, closing) = (Arc::clone(&notifiers), closes.clone());
            async move {
                let (store, clock) = (engine.store.as_ref(), engine.clock.as_ref());
                outbox::drain_until(store, &notifiers, clock, &closing).await.map(|_| None)
            }
        }));
        Ok(Self { engine, stop, activations, closing, silent, loops, tellers })
    }

    /// Adds a loop of the caller's: `act` is called again and again, as the worker's own are.
    pub fn also<F, Fut>(&mut self, pause: Duration, name: &'static str, act: F)
    where
        F: Fn(Arc<Engine>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<Option<Timestamp>, StoreError>> + Send + 'static,
    {
        self.loops.spawn(every(&self.engine, &self.stop, pause, name, act));
    }

    /// The end of a process whose work is done: what it has to tell is told first, for as long as there is time.
    pub async fn finish(mut self, deadline: Deadline) -> Result<(), StoreError> {
        self.silent.cancel();
        let told = async { while self.tellers.join_next().await.is_some() {} };
        if tokio::time::timeout_at(deadline.of_force(), told).await.is_err() {
            tracing::debug!("Not everybody could be told in time");
        }
        self.shut_down(deadline).await
    }

    /// Stops claiming, lets short steps finish, hands long ones over, gives the leases back; all by `deadline`.
    /// No lease is given back while something of its step runs. People are told things until then, and of what the
    /// runs left to tell: messages are begun one by one while there is time, and the others are anybody's at once.
    pub async fn shut_down(mut self, deadline: Deadline) -> Result<(), StoreError> {
        self.engine.ends_by(deadline);
        let (begins_by, ends_by) = deadline.of_messages(deadline.of_steps());
        self.closing.close(begins_by, ends_by);
        self.stop.cancel();
        self.activations.close();
        let ended = self.end_activations(deadline).await;
        let (begins_by, ends_by) = deadline.of_messages(Instant::now());
        self.closing.close(begins_by, ends_by);
        self.silent.cancel();
        // What is being sent or written is not cut off at once: it would be sent again.
        let patience = (Instant::now() + deadline.last_part()).min(deadline.of_steps());
        let done = async {
            while self.tellers.join_next().await.is_some() {}
            while self.loops.join_next().await.is_some() {}
        };
        if tokio::time::timeout_at(patience, done).await.is_err() {
            tracing::warn!(
                "What this process does beside its runs (messages, canaries, schedules) did not end in time and is cut off: \
                 the next one does it again"
            );
            self.tellers.shutdown().await;
            self.loops.shutdown().await;
        }
        // Last: runs and the look at canaries may begin to read until they end.
        self.engine.end_rereads(deadline.of_steps()).await;
        if ended {
            return self.retire(deadline.end()).await;
        }
        tracing::warn!(
            runs = self.engine.live_runs(),
            "Steps did not end within {:?}, or the database did not hear of it; their runs go on in another process when \
             this one is gone",
            self.engine.settings.grace
        );
        Ok(())
    }

    /// Whether every run was given back, or given up.
    async fn end_activations(&self, deadline: Deadline) -> bool {
        if tokio::time::timeout_at(deadline.of_force(), self.activations.wait()).await.is_ok() {
            return true;
        }
        self.engine.force().cancel();
        tokio::time::timeout_at(deadline.of_steps(), self.activations.wait()).await.is_ok()
    }

    /// Takes this process off the list of workers. A database that is away is not waited for: it finds out by itself.
    async fn retire(&self, by: Instant) -> Result<(), StoreError> {
        let (store, worker) = (&self.engine.store, self.engine.worker);
        let why = match tokio::time::timeout_at(by, store.retire_worker(worker)).await {
            Ok(Err(StoreError::Away(why))) => why,
            Ok(retired) => return retired,
            Err(_) => "it did not answer in time".to_owned(),
        };
        tracing::warn!(
            "The database could not be told that this process ends: what it worked on goes on in another process once the \
             database answers and the lease of {:?} is over: {why}",
            self.engine.settings.lease
        );
        Ok(())
    }
}

async fn reap(engine: Arc<Engine>) -> Result<Option<Timestamp>, StoreError> {
    let (woken, next) = engine.store.reap(engine.clock.now()).await?;
    if woken > 0 {
        tracing::debug!(woken, "Woke {woken} runs");
    }
    Ok(next)
}

/// The same as `every`, and once more at the end: what was done or said before `stop` is not left out.
fn every_and_at_last<F, Fut>(
    engine: &Arc<Engine>,
    stop: &CancellationToken,
    pause: Duration,
    name: &'static str,
    act: F,
) -> impl Future<Output = ()> + Send + use<F, Fut>
where
    F: Fn(Arc<Engine>) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Result<Option<Timestamp>, StoreError>> + Send,
{
    let again = every(engine, stop, pause, name, act.clone());
    let engine = Arc::clone(engine);
    async move {
        again.await;
        if let Err(error) = act(engine).await {
            tracing::warn!("{name}: {error}; left to another process");
        }
    }
}

/// Calls `act` again and again until `stop`: after `pause`, or when what it says is due is due, if that is sooner.
/// An error is logged once for as long as it stays the same. A panic ends what was done, not the loop.
fn every<F, Fut>(
    engine: &Arc<Engine>,
    stop: &CancellationToken,
    pause: Duration,
    name: &'static str,
    act: F,
) -> impl Future<Output = ()> + Send + use<F, Fut>
where
    F: Fn(Arc<Engine>) -> Fut + Send + 'static,
    Fut: Future<Output = Result<Option<Timestamp>, StoreError>> + Send,
{
    let (engine, stop) = (Arc::clone(engine), stop.clone());
    async move {
        let mut trouble: Option<String> = None;
        while !stop.is_cancelled() {
            let due = match AssertUnwindSafe(act(Arc::clone(&engine))).catch_unwind().await {
                Ok(Ok(due)) => {
                    if trouble.take().is_some() {
                        tracing::info!("{name}: the database is back");
                    }
                    due
                }
                Ok(Err(error)) => {
                    let text = error.to_string();
                    if trouble.as_ref() != Some(&text) {
                        tracing::warn!("{name}: {text}; trying again");
                        trouble = Some(text);
                    }
                    None
                }
                Err(_) => {
                    tracing::error!(
                        "{name}: refit itself failed (a panic; the log of the process has it); trying again"
                    );
                    None
                }
            };
            let left = due.and_then(|due| (due - engine.clock.now()).max(TimeDelta::zero()).to_std().ok());
            let pause = left.filter(|_| engine.clock.is_real()).map_or(pause, |left| left.min(pause));
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause.max(Duration::from_millis(1))) => {}
            }
        }
    }
}
