//! `migrate`, `worker`, `serve`: the parts that stay.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::error::{CliError, Doing};
use super::output::plain;
use super::project::{Opened, SCHEDULES_EVERY, complain};
use super::signals::Interrupts;
use super::{Exit, registry};
use crate::config::Idle;
use crate::domain::Timestamp;
use crate::engine::Engine;
use crate::engine::deadline::Deadline;
use crate::engine::tick::{Next, Patience};
use crate::engine::worker::Worker;
use crate::http::{self, Server, Working};
use crate::notify::Notifiers;
use crate::store::{Store, StoreError};
use crate::trigger::Catalog;
use crate::trigger::schedule::{self, Others};

/// How often workflow files are read again.
const FILES_EVERY: Duration = Duration::from_secs(5);
/// How often it is asked whether old evidence is due to be deleted, which it is once a day.
const PRUNING_EVERY: Duration = Duration::from_secs(600);
/// With `idle = "sleep"`: a database that is asked nothing for minutes goes to sleep, so less is not worth it.
const DOZE: Patience = Patience { soon: chrono::TimeDelta::minutes(5), ask_every: Duration::from_secs(2) };
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 7070);

/// The workflow files as they were read last.
pub type Current = Arc<RwLock<Arc<Catalog>>>;

/// The catalog of now.
pub fn current(catalog: &Current) -> Arc<Catalog> {
    Arc::clone(&catalog.read().unwrap_or_else(PoisonError::into_inner))
}

/// `refit migrate`.
pub async fn migrate(opened: &Opened, shared: bool) -> Result<Exit, CliError> {
    let url = opened.database_url()?;
    if let Some(dir) = std::path::Path::new(&url).parent().filter(|_| !url.contains("://")) {
        std::fs::create_dir_all(dir)
            .map_err(|error| CliError::usage(format!("cannot make {}: {error}", dir.display())))?;
    }
    registry::migrate(&url, shared).await.doing(|| "migrate the database".to_owned())?;
    let place = registry::shown_url(&url);
    opened.out.result(&json!({"database": place, "migrated": true}), || format!("{place} is up to date"));
    Ok(Exit::Ok)
}

/// `refit worker`.
pub async fn worker(opened: &Opened) -> Result<Exit, CliError> {
    stay(opened, None).await
}

/// `refit serve`.
pub async fn serve(opened: &Opened, listen: Option<SocketAddr>) -> Result<Exit, CliError> {
    let listen = listen.or(opened.project.file.server.listen).unwrap_or(LISTEN);
    stay(opened, Some(listen)).await
}

/// Works until it is told to stop: a first Ctrl-C or SIGTERM lets steps end or hands them over, a second ends at once.
async fn stay(opened: &Opened, listen: Option<SocketAddr>) -> Result<Exit, CliError> {
    let mut interrupts = Interrupts::listen()?;
    let (server, mut worker, tasks) = tokio::select! {
        begun = begin(opened, listen) => begun?,
        () = interrupts.next() => {
            tracing::info!("Stopped before it began to work");
            return Ok(Exit::Ok);
        }
    };
    let sleeps = opened.project.file.database.idle == Idle::Sleep;
    let grace = server.engine.settings.grace;
    let (deadline, ending) = loop {
        tokio::select! {
            () = interrupts.next() => {
                let deadline = Deadline::within(grace);
                break (deadline, worker.shut_down(deadline).boxed());
            }
            () = server.quiet(), if sleeps => {}
        }
        let deadline = Deadline::within(grace);
        let mut retiring = worker.shut_down(deadline).boxed();
        let retired = tokio::select! {
            () = interrupts.next() => break (deadline, retiring),
            retired = &mut retiring => retired,
        };
        worker = tokio::select! {
            () = interrupts.next() => break (Deadline::within(grace), async { Ok(()) }.boxed()),
            worker = server.sleep(retired) => worker,
        };
    };
    tracing::info!("Stopping: steps end or are handed over within {grace:?}; once more ends at once");
    server.engine.ends_by(deadline);
    server.stop.cancel();
    server.working.send_replace(Working::No);
    tokio::select! {
        ended = tokio::time::timeout_at(deadline.end(), server.end(ending, tasks, deadline)) => match ended {
            Ok(ended) => ended.map(|()| Exit::Ok),
            Err(_) => {
                tracing::warn!("A part of this process did not end in time, and ends with it");
                Ok(Exit::Ok)
            }
        },
        () = interrupts.next() => Ok(Exit::Interrupted),
    }
}

/// Begins to work, and what goes on beside that until it is told to stop.
async fn begin(
    opened: &Opened,
    listen: Option<SocketAddr>,
) -> Result<(Serving<'_>, Worker, Vec<JoinHandle<()>>), CliError> {
    let store = opened.store().await?;
    let (engine, notifiers) = opened.engine(&store)?;
    let catalog: Current = Arc::new(RwLock::new(Arc::new(opened.catalog())));
    complain(&current(&catalog));
    schedule::sync(&engine, &current(&catalog)).await.doing(|| "keep the schedules".to_owned())?;

    let stop = CancellationToken::new();
    // The address is taken first: a server that cannot listen must not take runs and drop them.
    let (working, is_working) = watch::channel(Working::No);
    let http = match listen {
        Some(listen) => Some(bind(opened, &engine, &catalog, listen, is_working).await?),
        None => None,
    };
    let others = Arc::default();
    let server = Serving { opened, store, engine, notifiers, catalog, others, working, stop };
    let worker = server.start().await?;
    // From here on nothing is waited for: a process that is stopped while it begins has begun nothing.
    let (store, stop) = (Arc::clone(&server.store), server.stop.clone());
    let mut tasks = vec![tokio::spawn(super::socket::listen(opened.project.state(), store, stop))];
    tasks.extend(http.map(|http| tokio::spawn(http.run(server.stop.clone()))));
    tracing::info!(
        workflows = current(&server.catalog).workflows().len(),
        "{} on {}",
        if listen.is_some() { "refit serves" } else { "refit works" },
        server.store.label()
    );
    Ok((server, worker, tasks))
}

/// A server and all it works with.
struct Serving<'a> {
    opened: &'a Opened,
    store: Arc<dyn Store>,
    engine: Arc<Engine>,
    notifiers: Arc<Notifiers>,
    catalog: Current,
    others: Arc<Others>,
    working: watch::Sender<Working>,
    stop: CancellationToken,
}

impl Serving<'_> {
    /// Begins to work.
    async fn start(&self) -> Result<Worker, CliError> {
        let mut worker = Worker::start(Arc::clone(&self.engine), Arc::clone(&self.notifiers))
            .await
            .doing(|| "start the worker".to_owned())?;
        self.working.send_replace(Working::Yes);
        let (fired, others) = (Arc::clone(&self.catalog), Arc::clone(&self.others));
        worker.also(SCHEDULES_EVERY, "schedules", move |engine| {
            let (catalog, others) = (current(&fired), Arc::clone(&others));
            async move { others.fire_due(&engine, &catalog).await }
        });
        let stop = self.stop.clone();
        worker.also(PRUNING_EVERY, "old evidence", move |engine| {
            let stop = stop.clone();
            async move { engine.prune(&stop).await.map(|_| None) }
        });
        let read = Arc::clone(&self.catalog);
        let root = self.opened.project.root.clone();
        let is_kept = Arc::new(AtomicBool::new(true));
        worker.also(FILES_EVERY, "workflow files", move |engine| {
            let (read, root) = (Arc::clone(&read), root.clone());
            let is_kept = Arc::clone(&is_kept);
            async move {
                if reload(&read, &root) {
                    is_kept.store(false, Ordering::Relaxed);
                }
                // Again after an outage: what another expression planned is not fired by this one.
                if !is_kept.load(Ordering::Relaxed) {
                    schedule::sync(&engine, &current(&read)).await?;
                    is_kept.store(true, Ordering::Relaxed);
                }
                Ok(None)
            }
        });
        Ok(worker)
    }

    /// Ends all parts side by side, and then the connections to the database.
    async fn end(
        &self,
        worker: BoxFuture<'_, Result<(), StoreError>>,
        tasks: Vec<JoinHandle<()>>,
        deadline: Deadline,
    ) -> Result<(), CliError> {
        let tasks = async {
            for task in tasks {
                if let Err(error) = task.await {
                    tracing::warn!("A task of the server failed: {error}");
                }
            }
        };
        let (ended, ()) = tokio::join!(worker, tasks);
        // What asks a database that is away would be waited for.
        if tokio::time::timeout_at(deadline.end(), self.store.close()).await.is_err() {
            tracing::debug!("The connections to the database end with the process");
        }
        ended.doing(|| "give the runs back".to_owned())
    }

    /// Returns once nothing is due for a while; what a database that is away has to do is not known.
    async fn quiet(&self) {
        let quiet = async || {
            self.engine.until_quiet(DOZE, &self.stop).await?;
            // While the database is awake: it is not woken for this.
            self.engine.prune(&self.stop).await
        };
        while let Err(error) = quiet().await {
            tracing::debug!("Cannot see what is due: {error}");
            tokio::time::sleep(DOZE.ask_every).await;
        }
    }

    /// Leaves the database alone until something is due, somebody writes here or pokes, or a workflow file changes;
    /// then goes on to work.
    async fn sleep(&self, retired: Result<(), StoreError>) -> Worker {
        let mut news = self.store.news();
        if let Err(error) = self.doze(retired, &mut news).await {
            tracing::warn!("The database is not left alone: {error}");
        }
        self.working.send_replace(Working::No);
        loop {
            let synced = schedule::sync(&self.engine, &current(&self.catalog)).await;
            let started = match synced.doing(|| "keep the schedules".to_owned()) {
                Ok(()) => self.start().await,
                Err(error) => Err(error),
            };
            match started {
                Ok(worker) => return worker,
                Err(error) => {
                    tracing::warn!("{}; trying again", plain(&error.to_text()));
                    tokio::time::sleep(DOZE.ask_every).await;
                }
            }
        }
    }

    async fn doze(
        &self,
        retired: Result<(), StoreError>,
        news: &mut watch::Receiver<u64>,
    ) -> Result<(), StoreError> {
        retired?;
        // What was written since it was quiet is news that nobody tells again.
        if self.engine.is_quiet(DOZE.soon).await? {
            let due = self.engine.next_due().await?;
            self.sleep_until(due, news).await;
        }
        Ok(())
    }

    async fn sleep_until(&self, due: Option<(Next, Timestamp)>, news: &mut watch::Receiver<u64>) {
        self.working.send_replace(Working::Asleep);
        match &due {
            Some((what, at)) => tracing::info!(until = %at, "The database may sleep: due next is {what}"),
            None => tracing::info!("The database may sleep: nothing is due"),
        }
        let root = &self.opened.project.root;
        loop {
            // Again and again: what the worker left behind comes back a little later, and people ask meanwhile.
            self.store.rest().await;
            // In pieces: a machine that was suspended has a timer that lags.
            let left = due.as_ref().map_or(FILES_EVERY, |(_, at)| {
                (*at - self.engine.clock.now()).to_std().unwrap_or_default().min(FILES_EVERY)
            });
            tokio::select! {
                _ = news.changed() => return,
                () = tokio::time::sleep(left) => {}
            }
            if left.is_zero() || reload(&self.catalog, root) {
                return;
            }
        }
    }
}

/// Takes the address; nothing is answered yet.
async fn bind(
    opened: &Opened,
    engine: &Arc<Engine>,
    catalog: &Current,
    listen: SocketAddr,
    working: watch::Receiver<Working>,
) -> Result<Server, CliError> {
    let settings = http::Settings { listen, public_url: opened.project.file.server.public_url.clone() };
    let server = Server::bind(Arc::clone(engine), source(catalog), &settings, working).await;
    let server = server.map_err(|error| {
        let hint = match error.kind() {
            std::io::ErrorKind::PermissionDenied => "or listen on 127.0.0.1, which needs no token",
            _ => "name another address with --listen",
        };
        CliError::usage(error.to_string()).hint(hint)
    })?;
    if let Ok(address) = server.address() {
        tracing::info!("Listening on http://{address}");
    }
    Ok(server)
}

/// Reads the workflow files again; whether anything changed. A file that broke keeps what it said before
/// for runs under way (they have their own snapshot) and starts no new ones.
fn reload(catalog: &Current, root: &std::path::Path) -> bool {
    let fresh = Catalog::load(root);
    let before = current(catalog);
    let definitions = |catalog: &Catalog| -> Vec<crate::domain::run::Definition> {
        catalog.workflows().iter().map(|loaded| loaded.definition.clone()).collect()
    };
    let errors =
        |catalog: &Catalog| -> Vec<String> { catalog.errors.iter().map(ToString::to_string).collect() };
    let same_errors = errors(&fresh) == errors(&before);
    if same_errors && definitions(&fresh) == definitions(&before) {
        return false;
    }
    if !same_errors {
        complain(&fresh);
    }
    tracing::info!(workflows = fresh.workflows().len(), "Workflow files were read again");
    *catalog.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh);
    true
}

/// Where others learn which workflow files there are now.
pub fn source(catalog: &Current) -> Arc<dyn Fn() -> Arc<Catalog> + Send + Sync> {
    let catalog = Arc::clone(catalog);
    Arc::new(move || current(&catalog))
}
