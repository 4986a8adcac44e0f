//! A server whose connections break where a test says: it serves any router,
//! and cuts, tears, delays or replaces answers, or stops the caller's world
//! right before or after a request.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::http::{Request, Response, StatusCode};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};
use tower::ServiceExt;

/// What happens to one request.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Answered so, without being heard.
    Answer(u16, Vec<(&'static str, &'static str)>, String),
    /// The connection breaks before it is heard.
    Cut,
    /// It is heard and has its effect; the connection breaks before the answer.
    LostAnswer,
    /// Half of the answer's body comes.
    Torn,
    /// The answer takes its time.
    Slow(Duration),
    /// Whoever asks is stopped before it is heard.
    StopBefore,
    /// Whoever asks is stopped after it had its effect.
    StopAfter,
}

impl Fault {
    /// Those after which trying again must work.
    pub fn passing() -> Vec<Fault> {
        vec![
            Fault::Answer(
                429,
                vec![("retry-after", "0")],
                r#"{"error":{"code":"rate_limited","message":"slow"}}"#.to_owned(),
            ),
            Fault::Answer(503, vec![], "<html>upstream</html>".to_owned()),
            Fault::Answer(
                500,
                vec![],
                r#"{"error":{"code":"internal_server_error","message":"oops"}}"#.to_owned(),
            ),
            Fault::Cut,
            Fault::LostAnswer,
            Fault::Torn,
            Fault::Slow(Duration::from_millis(20)),
        ]
    }
}

/// A request as it came in.
#[derive(Debug, Clone)]
pub struct Seen {
    /// `METHOD path?query`.
    pub line: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// A server on loopback, until it is dropped.
#[derive(Clone)]
pub struct Server {
    /// `http://127.0.0.1:port`.
    pub url: String,
    shared: Arc<Shared>,
    _stop: Arc<DropGuard>,
}

struct Shared {
    router: Router,
    count: AtomicUsize,
    /// By number of the request.
    faults: Mutex<BTreeMap<usize, Fault>>,
    /// By what the request's first line begins with; each once.
    on: Mutex<Vec<(String, Fault)>>,
    seen: Mutex<Vec<Seen>>,
    stopped: Notify,
}

impl Server {
    /// Serves `router` at a port of its own.
    pub fn start(router: Router) -> Self {
        Self::start_with(|_| router)
    }

    /// The same, for a router that has to know its address.
    pub fn start_with(router: impl FnOnce(&str) -> Router) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("a socket");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
        let shared = Arc::new(Shared {
            router: router(&url),
            count: AtomicUsize::new(0),
            faults: Mutex::default(),
            on: Mutex::default(),
            seen: Mutex::default(),
            stopped: Notify::new(),
        });
        let stop = CancellationToken::new();
        let (serving, stopping) = (Arc::clone(&shared), stop.clone());
        tokio::spawn(async move {
            loop {
                let (stream, _) = tokio::select! {
                    accepted = listener.accept() => accepted.expect("a connection"),
                    () = stopping.cancelled() => return,
                };
                let (shared, stopping) = (Arc::clone(&serving), stopping.clone());
                tokio::spawn(async move {
                    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                        let shared = Arc::clone(&shared);
                        async move { shared.serve(request.map(Body::new)).await }
                    });
                    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                    tokio::select! {
                        // A connection that breaks is what was asked for.
                        _ = connection => {}
                        () = stopping.cancelled() => {}
                    }
                });
            }
        });
        Self { url, shared, _stop: Arc::new(stop.drop_guard()) }
    }

    /// `fault` for the request after the next `after` ones.
    pub fn fault_after(&self, after: usize, fault: Fault) {
        let number = self.count() + after;
        self.shared.faults.lock().unwrap().insert(number, fault);
    }

    /// Forgets the faults that have not happened.
    pub fn calm(&self) {
        self.shared.faults.lock().unwrap().clear();
        self.shared.on.lock().unwrap().clear();
    }

    /// How many requests came.
    pub fn count(&self) -> usize {
        self.shared.count.load(Ordering::SeqCst)
    }

    /// `fault` for the next request that has none yet.
    pub fn next(&self, fault: Fault) {
        let mut faults = self.shared.faults.lock().unwrap();
        let number = (self.count()..).find(|number| !faults.contains_key(number)).expect("a number");
        faults.insert(number, fault);
    }

    /// All requests that came.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// The first lines of all requests.
    pub fn asked(&self) -> Vec<String> {
        self.seen().into_iter().map(|seen| seen.line).collect()
    }

    /// Returns once somebody was stopped.
    pub async fn stopped(&self) {
        self.shared.stopped.notified().await;
    }
}

impl Shared {
    fn fault(&self, line: &str) -> Option<Fault> {
        let number = self.count.fetch_add(1, Ordering::SeqCst);
        if let Some(fault) = self.faults.lock().unwrap().remove(&number) {
            return Some(fault);
        }
        let mut on = self.on.lock().unwrap();
        let at = on.iter().position(|(begins, _)| line.starts_with(begins))?;
        Some(on.remove(at).1)
    }

    async fn serve(&self, request: Request<Body>) -> Result<Response<Body>, std::io::Error> {
        let (parts, body) = request.into_parts();
        let body = to_bytes(body, usize::MAX).await.map_err(std::io::Error::other)?;
        let line = format!("{} {}", parts.method, parts.uri);
        let text = |value: &axum::http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        self.seen.lock().unwrap().push(Seen {
            line: line.clone(),
            headers: parts.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
            body: String::from_utf8_lossy(&body).into_owned(),
        });
        let request = Request::from_parts(parts, Body::from(body));
        let cut = || Err(std::io::Error::other("cut"));
        match self.fault(&line) {
            None => Ok(self.answer(request).await),
            Some(Fault::Answer(status, headers, body)) => {
                let mut answer = Response::builder().status(StatusCode::from_u16(status).expect("a status"));
                for (name, value) in headers {
                    answer = answer.header(name, value);
                }
                Ok(answer.body(Body::from(body)).expect("an answer"))
            }
            Some(Fault::Cut) => cut(),
            Some(Fault::LostAnswer) => {
                self.answer(request).await;
                cut()
            }
            Some(Fault::Torn) => Ok(torn(self.answer(request).await).await),
            Some(Fault::Slow(time)) => {
                let answer = self.answer(request).await;
                tokio::time::sleep(time).await;
                Ok(answer)
            }
            Some(Fault::StopBefore) => {
                self.stopped.notify_one();
                std::future::pending().await
            }
            Some(Fault::StopAfter) => {
                self.answer(request).await;
                self.stopped.notify_one();
                std::future::pending().await
            }
        }
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        self.router.clone().oneshot(request).await.expect("infallible")
    }
}

/// The answer with half of its body, and the connection broken.
async fn torn(answer: Response<Body>) -> Response<Body> {
    let (mut parts, body) = answer.into_parts();
    let whole = to_bytes(body, usize::MAX).await.expect("a body");
    parts.headers.insert("content-length", whole.len().max(2).into());
    let half: Result<Bytes, std::io::Error> = Ok(whole.slice(..whole.len() / 2));
    let stream = futures::stream::iter([half, Err(std::io::Error::other("torn"))]);
    Response::from_parts(parts, Body::from_stream(stream))
}
