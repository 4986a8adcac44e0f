//! The way in for programs: events, evidence, runs and the release document.
//!
//! * `access`: who may ask at all
//! * `error`: what a caller reads when something is wrong
//! * `request`: what was asked, as types
//! * one file per kind of thing that can be asked for

mod access;
mod error;
mod events;
mod evidence;
mod health;
mod models;
mod receipts;
mod request;
mod runs;

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::HeaderValue;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::domain::id::{ModelName, VersionName};
use crate::domain::words::counted;
use crate::engine::Engine;
use crate::trigger::Catalog;
use access::Access;
use error::ApiError;

/// Where a request learns which workflows there are now.
pub type CatalogSource = Arc<dyn Fn() -> Arc<Catalog> + Send + Sync>;

/// Where and for whom to listen.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The address; with port 0 the system picks one.
    pub listen: SocketAddr,
    /// The address people know it by, when a proxy stands in front.
    pub public_url: Option<url::Url>,
}

/// Time for the head of a request, and between two requests of a connection.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// Time for an answer; evidence has more, as long as it keeps coming.
const ANSWER_TIME: Duration = Duration::from_secs(30);
/// Connections at once; more wait to be accepted.
const MOST_CONNECTIONS: usize = 1024;
/// Batches of evidence read at once: what bounds their memory.
const MOST_BATCHES: usize = 8;
/// Pause after a connection could not be accepted: no file descriptor is free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Bytes of a request's body; evidence has a limit of its own.
const BODY_LIMIT: usize = 1024 * 1024;

const REQUEST_ID: &str = "x-request-id";

/// What every request works with.
struct Api {
    engine: Arc<Engine>,
    catalog: CatalogSource,
    working: watch::Receiver<Working>,
    /// Models that evidence was taken for: they need not be looked up again.
    models: Mutex<BTreeSet<ModelName>>,
    /// The same for versions.
    versions: Mutex<BTreeSet<(ModelName, VersionName)>>,
    batches: Semaphore,
}

/// A server that has its address and does not answer yet.
pub struct Server {
    listener: TcpListener,
    app: Router,
    engine: Arc<Engine>,
}

/// Whether the process works on runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Working {
    /// Not yet, or not any more.
    No,
    /// It does.
    Yes,
    /// It will when something is due, and leaves the database alone until then.
    Asleep,
}

impl Server {
    /// Takes the address. `working`: what `/readyz` says of this process.
    ///
    /// # Errors
    /// The address cannot be had; or it can be reached from other machines and there is no `REFIT_TOKEN`.
    pub async fn bind(
        engine: Arc<Engine>,
        catalog: CatalogSource,
        settings: &Settings,
        working: watch::Receiver<Working>,
    ) -> io::Result<Self> {
        let access = Access::of(settings, &engine.services.secrets)
            .map_err(|problem| io::Error::new(io::ErrorKind::PermissionDenied, problem))?;
        let listener = TcpListener::bind(settings.listen).await.map_err(|error| {
            io::Error::new(error.kind(), format!("cannot listen on {}: {error}", settings.listen))
        })?;
        let api = Api {
            engine: Arc::clone(&engine),
            catalog,
            working,
            models: Mutex::default(),
            versions: Mutex::default(),
            batches: Semaphore::new(MOST_BATCHES),
        };
        Ok(Self { listener, app: app(Arc::new(api), access), engine })
    }

    /// The address it has.
    ///
    /// # Errors
    /// The system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until `stop`, then lets answers under way end, by the deadline of the shutdown.
    pub async fn run(self, stop: CancellationToken) {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME);
        let graceful = GracefulShutdown::new();
        let slots = Arc::new(Semaphore::new(MOST_CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            let next = async {
                let slot = Arc::clone(&slots).acquire_owned().await.ok();
                (slot, accept(&self.listener).await)
            };
            let (slot, stream) = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                next = next => next,
            };
            let service = TowerToHyperService::new(self.app.clone());
            let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
            connections.spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!("A connection broke off: {error}");
                }
                drop(slot);
            });
            while connections.try_join_next().is_some() {}
        }
        drop(self.listener);
        let deadline = self.engine.deadline().of_steps();
        if tokio::time::timeout_at(deadline, graceful.shutdown()).await.is_err() {
            while connections.try_join_next().is_some() {}
            let left = counted(connections.len() as u64, "connection");
            tracing::warn!("Not every request was answered in time: {left} cut off");
        }
        connections.shutdown().await;
    }
}

/// Binds and answers until `stop`.
///
/// # Errors
/// As [`Server::bind`].
pub async fn serve(
    engine: Arc<Engine>,
    catalog: CatalogSource,
    settings: &Settings,
    working: watch::Receiver<Working>,
    stop: CancellationToken,
) -> io::Result<()> {
    let server = Server::bind(engine, catalog, settings, working).await?;
    server.run(stop).await;
    Ok(())
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Answers are small; a system that cannot do it is only slower.
                let _ = stream.set_nodelay(true);
                return stream;
            }
            Err(error) => {
                tracing::warn!("Cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn app(api: Arc<Api>, access: Access) -> Router {
    let evidence = Router::new()
        .route("/v1/models/{model}/observations", post(evidence::observations))
        .route("/v1/models/{model}/truth", post(evidence::truth));
    let quick = Router::new()
        .route("/healthz", get(health::alive))
        .route("/readyz", get(health::ready))
        .route("/v1/events", get(events::list).post(events::send))
        .route("/v1/runs", get(runs::list))
        .route("/v1/runs/{id}", get(runs::show))
        .route("/v1/runs/{id}/receipt", get(receipts::show))
        .route("/v1/models/{model}/release", get(models::release))
        .route("/v1/models/{model}/receipts/{generation}", get(receipts::show_change))
        .layer(from_fn_with_state(ANSWER_TIME, in_time));
    guarded(quick.merge(evidence).with_state(api), access)
}

/// `routes` with what holds for every request.
fn guarded(routes: Router, access: Access) -> Router {
    routes
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .fallback(|| async { ApiError::not_found("there is nothing at this path", "see docs/operations.md") })
        .method_not_allowed_fallback(|| async { ApiError::Method })
        .layer(from_fn_with_state(Arc::new(access), access::check))
        .layer(from_fn(named))
}

async fn in_time(State(limit): State<Duration>, request: Request, next: Next) -> Response {
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_) => ApiError::TooSlow { what: "the answer took too long" }.into_response(),
    }
}

/// Gives the request an id that its log lines and its answer carry.
async fn named(request: Request, next: Next) -> Response {
    let id = uuid::Uuid::now_v7().to_string();
    let span = tracing::info_span!("request", request.id = %id);
    // The query stays out: it is the caller's, and may hold what nobody should read.
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let began = Instant::now();
    let answered = async move {
        let response = next.run(request).await;
        let (status, took) = (response.status().as_u16(), began.elapsed());
        tracing::debug!(%method, ?path, status, "{method} {path:?}: {status} in {took:?}");
        response
    };
    let mut response = answered.instrument(span).await;
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

#[cfg(test)]
mod tests;
