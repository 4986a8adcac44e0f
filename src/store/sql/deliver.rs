//! Wake-ups, carried by apalis. A wake-up is a hint and no more: losing or
//! doubling one is harmless, because `reap` finds what is due.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use apalis::prelude::{BackendExt, Data, Strategy, WorkerBuilder, WorkerBuilderExt, WorkerContext};
use async_trait::async_trait;
use futures::{Stream, StreamExt};
use serde_json::Value;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::super::{Backend, LOST_WAKEUPS, clean_queue, in_long_time, in_time, oldest_task, worker_config};
use super::store::SqlStore;
use crate::domain::Timestamp;
use crate::domain::id::RunId;
use crate::store::{Due, OnWake, QUEUE, StoreError, Wakeup, Wakeups};

/// apalis forgets news that come while it fetches: each is told again after these.
const ECHOES: [Duration; 4] = [
    Duration::from_millis(2),
    Duration::from_millis(5),
    Duration::from_millis(15),
    Duration::from_millis(40),
];
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const LONGEST_BACKOFF: Duration = Duration::from_secs(15);
const CLEAN_EVERY: Duration = Duration::from_secs(60);
/// A wake-up that is fetched is fetched long before this.
const FETCHED_WITHIN: Duration = Duration::from_secs(5);

/// The runs this process advances.
struct Live {
    to: Arc<dyn OnWake>,
    /// Whether a run was woken again while it was advanced.
    runs: Mutex<HashMap<RunId, bool>>,
    /// Told of each wake-up that was fetched.
    fetched: watch::Sender<()>,
}

impl Live {
    /// Advances `run`, unless this process does already: then again afterwards.
    async fn wake(self: &Arc<Self>, run: RunId) {
        {
            let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(again) = runs.get_mut(&run) {
                *again = true;
                // Meanwhile it may hear what the wake-up is about.
                self.to.told(Some(run));
                return;
            }
            runs.insert(run, false);
        }
        let live = Arc::clone(self);
        // On its own task: apalis drops its handlers whenever its database call fails.
        let advancing = tokio::spawn(async move {
            let entry = Entry { live, run };
            loop {
                entry.live.to.advance(run).await;
                if !entry.goes_again() {
                    return;
                }
            }
        });
        if let Err(error) = advancing.await {
            tracing::error!(run.id = %run, %error, "Advancing run {run} ended badly");
        }
    }

    fn count(&self) -> usize {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// Takes the run off the list when its task ends, also by a panic.
struct Entry {
    live: Arc<Live>,
    run: RunId,
}

impl Entry {
    fn goes_again(&self) -> bool {
        let mut runs = self.live.runs.lock().unwrap_or_else(PoisonError::into_inner);
        match runs.get_mut(&self.run) {
            Some(again) if *again => {
                *again = false;
                true
            }
            // Here, under the lock: a wake-up that comes next must find nobody at work.
            Some(_) | None => {
                runs.remove(&self.run);
                false
            }
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.live.runs.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.run);
        }
    }
}

/// Always well: what fails is kept in the run, never in the queue.
async fn on_wake(task: Value, live: Data<Arc<Live>>) -> Result<(), Infallible> {
    live.fetched.send_replace(());
    match serde_json::from_value::<Wakeup>(task) {
        Ok(wakeup) => live.wake(wakeup.run).await,
        Err(error) => tracing::error!(%error, "A wake-up cannot be read"),
    }
    Ok(())
}

#[async_trait]
impl Wakeups for SqlStore {
    async fn deliver_wakeups(&self, to: Arc<dyn OnWake>, concurrency: usize, stop: CancellationToken) {
        self.deliver(to, concurrency, stop).await;
    }

    fn poke(&self) {
        self.look();
        self.say(None);
    }

    fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    async fn due(&self, at: Timestamp) -> Result<Due, StoreError> {
        self.answered(self.what_is_due(at)).await
    }

    async fn rest(&self) {
        self.committer.rest().await;
        self.parts.session.rest().await;
        super::super::close_idle(&self.parts.writer).await;
    }
}

impl SqlStore {
    async fn deliver(&self, to: Arc<dyn OnWake>, concurrency: usize, stop: CancellationToken) {
        let live = Live { to, runs: Mutex::default(), fetched: watch::Sender::default() };
        let (live, concurrency) = (Arc::new(live), concurrency.max(1));
        let mut backoff = FIRST_BACKOFF;
        let cleaning = self.clean_while(&stop);
        let telling = tell_of(self.told.subscribe(), live.to.as_ref());
        tokio::pin!(cleaning, telling);
        while !stop.is_cancelled() {
            // Never the name of a worker that was: apalis would take its tasks for ours.
            let context = WorkerContext::new(&format!("refit-{}", uuid::Uuid::now_v7()));
            let news = super::super::news(&self.parts.writer, self.news.subscribe(), self.told.clone());
            let news = forwarded(with_echoes(news, live.fetched.subscribe()));
            // The interval first: a stream that ends hides what stands after it.
            let strategy = Strategy::new().interval(LOST_WAKEUPS).stream(news);
            let worker = WorkerBuilder::new(&context)
                .backend(
                    Backend::new(&self.parts.writer)
                        .with_config(worker_config())
                        .poll_with_strategy(strategy),
                )
                .concurrency(concurrency)
                .data(Arc::clone(&live))
                .build(on_wake);
            let began = tokio::time::Instant::now();
            tokio::select! {
                biased;
                () = stop.cancelled() => {
                    if let Err(error) = context.stop() {
                        tracing::debug!(%error, "The queue's worker had stopped already");
                    }
                    return;
                }
                ended = worker.run() => tracing::warn!(?ended, "The queue's worker ended; it is started again"),
                () = self.nothing_is_fetched(&live, concurrency) => tracing::warn!(
                    "Wake-ups wait in the queue and are not fetched, as if the connection had gone silent; its worker is \
                     started again"
                ),
                () = &mut cleaning => return,
                () = &mut telling => return,
            }
            if began.elapsed() > LONGEST_BACKOFF {
                backoff = FIRST_BACKOFF;
            }
            tokio::select! {
                () = tokio::time::sleep(backoff) => {}
                () = stop.cancelled() => return,
            }
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
        }
    }

    /// Returns once a wake-up is left waiting though there is room for its run: whoever fetches has no limit of time, and
    /// waits for as long as the kernel does where the line died without a word.
    async fn nothing_is_fetched(&self, live: &Live, concurrency: usize) {
        let mut waiting = None;
        loop {
            tokio::time::sleep(FETCHED_WITHIN).await;
            let oldest = match in_time(oldest_task(&self.parts.reader, QUEUE)).await {
                Ok(oldest) => oldest.filter(|_| live.count() < concurrency),
                Err(error) => {
                    tracing::debug!(%error, "The queue could not be looked at");
                    None
                }
            };
            if oldest.is_some() && oldest == waiting {
                return;
            }
            waiting = oldest;
        }
    }

    /// Deletes tasks that are done, until `stop`: nothing in apalis does.
    async fn clean_while(&self, stop: &CancellationToken) {
        loop {
            // First, too: a process that only looks in lives no minute.
            if let Err(error) = in_long_time(clean_queue(&self.parts.writer, QUEUE)).await {
                tracing::warn!(%error, "Done wake-ups could not be deleted");
            }
            tokio::select! {
                () = tokio::time::sleep(CLEAN_EVERY) => {}
                () = stop.cancelled() => return,
            }
        }
    }
}

/// Passes on which runs in hand were told something, until the store is gone.
async fn tell_of(mut told: broadcast::Receiver<Option<RunId>>, to: &dyn OnWake) {
    loop {
        match told.recv().await {
            Ok(run) => to.told(run),
            Err(RecvError::Lagged(_)) => to.told(None),
            Err(RecvError::Closed) => return,
        }
    }
}

/// Tells each piece of news again a few times: the queue forgets what it hears while it fetches. After a wake-up that it
/// fetched it looks again by itself. (Should it have begun to look before the news came, which takes two events in the
/// same microseconds, the next interval finds what is there.)
fn with_echoes(
    news: impl Stream<Item = ()> + Send + 'static,
    fetched: watch::Receiver<()>,
) -> impl Stream<Item = ()> + Send + 'static {
    futures::stream::unfold(
        (Box::pin(news), fetched, ECHOES.len()),
        |(mut news, mut fetched, mut told)| async move {
            loop {
                let echo = async {
                    match ECHOES.get(told) {
                        Some(pause) => tokio::time::sleep(*pause).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    next = news.next() => {
                        next?;
                        // A wake-up that was fetched before says nothing about these.
                        fetched.mark_unchanged();
                        told = 0;
                    }
                    Ok(()) = fetched.changed() => {
                        told = ECHOES.len();
                        continue;
                    }
                    () = echo => told += 1,
                }
                return Some(((), (news, fetched, told)));
            }
        },
    )
}

/// The stream, read by a task of its own: apalis wants one that is `Sync`. The task ends with its reader.
fn forwarded(stream: impl Stream<Item = ()> + Send + 'static) -> Forwarded {
    let (told, heard) = futures::channel::mpsc::unbounded();
    let stop = CancellationToken::new();
    let reader = stop.clone().drop_guard();
    tokio::spawn(async move {
        let mut stream = Box::pin(stream);
        loop {
            tokio::select! {
                next = stream.next() => {
                    if next.is_none() || told.unbounded_send(()).is_err() {
                        return;
                    }
                }
                () = stop.cancelled() => return,
            }
        }
    });
    Forwarded { heard, _reader: reader }
}

/// What the task passes on; it ends when this is dropped.
struct Forwarded {
    heard: futures::channel::mpsc::UnboundedReceiver<()>,
    _reader: DropGuard,
}

impl Stream for Forwarded {
    type Item = ();

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<()>> {
        let next = self.heard.poll_next_unpin(context);
        if next.is_ready() {
            // apalis polls once and goes on to fetch: without this nothing wakes it for the next piece of news.
            context.waker().wake_by_ref();
        }
        next
    }
}

/// What this process writes, and what other processes poke about.
pub(crate) fn own_news(news: watch::Receiver<u64>) -> impl Stream<Item = ()> + Send + 'static {
    futures::stream::unfold(news, |mut news| async move {
        news.changed().await.ok()?;
        Some(((), news))
    })
}
