//! `migrate`, `worker`, `serve`: the parts that stay.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::error::{CliError, Doing};
use super::output::plain;
use super::project::Opened;
use super::signals::Interrupts;
use super::{Exit, registry};
use crate::engine::Engine;
use crate::engine::worker::Worker;
use crate::http::{self, Server};
use crate::trigger::{Catalog, schedule};

/// How often schedules are looked at when none is due sooner.
const SCHEDULES_EVERY: Duration = Duration::from_secs(1);
/// How often workflow files are read again.
const FILES_EVERY: Duration = Duration::from_secs(5);
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
    let store = opened.store().await?;
    let (engine, notifiers) = opened.engine(&store)?;
    let catalog: Current = Arc::new(RwLock::new(Arc::new(opened.catalog())));
    complain(&current(&catalog));
    schedule::sync(&engine, &current(&catalog)).await.doing(|| "keep the schedules".to_owned())?;

    let stop = CancellationToken::new();
    // The address is taken first: a server that cannot listen must not take runs and drop them.
    let (working, is_working) = watch::channel(false);
    let http = match listen {
        Some(listen) => Some(bind(opened, &engine, &catalog, listen, is_working).await?),
        None => None,
    };
    let mut worker =
        Worker::start(Arc::clone(&engine), notifiers).await.doing(|| "start the worker".to_owned())?;
    working.send_replace(true);
    let fired = Arc::clone(&catalog);
    worker.also(SCHEDULES_EVERY, "schedules", move |engine| {
        let catalog = current(&fired);
        async move { schedule::fire_due(&engine, &catalog).await }
    });
    let read = Arc::clone(&catalog);
    let root = opened.project.root.clone();
    worker.also(FILES_EVERY, "workflow files", move |engine| {
        let (read, root) = (Arc::clone(&read), root.clone());
        async move {
            if reload(&read, &root) {
                schedule::sync(&engine, &current(&read)).await?;
            }
            Ok(None)
        }
    });
    let socket =
        tokio::spawn(super::socket::listen(opened.project.state(), Arc::clone(&store), stop.clone()));
    let http = http.map(|server| tokio::spawn(server.run(stop.clone())));
    tracing::info!(
        workflows = current(&catalog).workflows().len(),
        "{} on {}",
        if listen.is_some() { "refit serves" } else { "refit works" },
        store.label()
    );

    interrupts.next().await;
    tracing::info!(
        "Stopping: steps end or are handed over within {:?}; once more ends at once",
        engine.settings.grace
    );
    stop.cancel();
    working.send_replace(false);
    let stopped = async {
        worker.shut_down().await.doing(|| "give the runs back".to_owned())?;
        for task in [Some(socket), http].into_iter().flatten() {
            if let Err(error) = task.await {
                tracing::warn!("A task of the server failed: {error}");
            }
        }
        store.close().await;
        Ok(Exit::Ok)
    };
    tokio::select! {
        stopped = stopped => stopped,
        () = interrupts.next() => Ok(Exit::Interrupted),
    }
}

/// Takes the address; nothing is answered yet.
async fn bind(
    opened: &Opened,
    engine: &Arc<Engine>,
    catalog: &Current,
    listen: SocketAddr,
    working: watch::Receiver<bool>,
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

fn complain(catalog: &Catalog) {
    for error in &catalog.errors {
        tracing::warn!("A workflow file cannot be used: {}", plain(&error.to_string()));
    }
}

/// Where others learn which workflow files there are now.
pub fn source(catalog: &Current) -> Arc<dyn Fn() -> Arc<Catalog> + Send + Sync> {
    let catalog = Arc::clone(catalog);
    Arc::new(move || current(&catalog))
}
