//! A server whose connections break where a test says: it serves any router, and cuts, tears, delays or replaces
//! answers, or stops the caller's world right before or after a request. One for all services: those that keep
//! objects are seen through `line`.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::http::request::Parts;
use axum::http::{Request, Response, StatusCode, header};
use futures::StreamExt;
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
    /// The connection breaks before anything of its body is read.
    CutAtOnce,
    /// The connection breaks in the middle of its body.
    CutHalfway,
    /// It is heard and has its effect; the connection breaks before the answer.
    LostAnswer,
    /// Half of the answer's body comes.
    Torn,
    /// It is heard after this time, if somebody still waits then.
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

/// A fault for some requests.
pub struct Rule {
    matches: Box<dyn Fn(&Parts) -> bool + Send>,
    skip: usize,
    times: usize,
    fault: Fault,
}

impl Rule {
    /// For every request that `matches`.
    pub fn on(fault: Fault, matches: impl Fn(&Parts) -> bool + Send + 'static) -> Self {
        Self { matches: Box::new(matches), skip: 0, times: usize::MAX, fault }
    }

    /// Not for the first `skip` of them.
    pub fn after(mut self, skip: usize) -> Self {
        self.skip = skip;
        self
    }

    /// For this many of them.
    pub fn times(mut self, times: usize) -> Self {
        self.times = times;
        self
    }

    pub fn once(self) -> Self {
        self.times(1)
    }

    /// Its fault, if it is about this request and due.
    fn take(&mut self, request: &Parts) -> Option<Fault> {
        if self.times == 0 || !(self.matches)(request) {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        self.times -= 1;
        Some(self.fault.clone())
    }
}

/// A longer body is not kept.
const LONGEST_KEPT: usize = 64 << 10;

/// A request as it came in.
#[derive(Debug, Clone)]
pub struct Seen {
    /// `METHOD path?query`.
    pub line: String,
    pub parts: Parts,
    /// Empty when it was long, or never came.
    pub body: String,
    /// Whether it was answered with success.
    pub done: bool,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.parts.headers.get(name)?.to_str().ok()
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
    rules: Mutex<Vec<Rule>>,
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
            rules: Mutex::default(),
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

    /// From now on, until `mend`.
    pub fn fault(&self, rule: Rule) {
        self.shared.rules.lock().unwrap().push(rule);
    }

    /// `fault` for the next request that has none yet.
    pub fn next(&self, fault: Fault) {
        self.fault_after(0, fault);
    }

    /// `fault` for the request after the next `after` ones.
    pub fn fault_after(&self, after: usize, fault: Fault) {
        self.fault(Rule::on(fault, |_| true).after(after).once());
    }

    /// No more faults.
    pub fn mend(&self) {
        self.shared.rules.lock().unwrap().clear();
    }

    /// How many requests came.
    pub fn count(&self) -> usize {
        self.shared.seen.lock().unwrap().len()
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
    async fn serve(&self, request: Request<Body>) -> io::Result<Response<Body>> {
        let (parts, body) = request.into_parts();
        let at = self.see(&parts);
        let fault = self.rules.lock().unwrap().iter_mut().find_map(|rule| rule.take(&parts));
        let cut = || Err(io::Error::other("the line is cut, as it was asked for"));
        if let Some(Fault::CutAtOnce) = fault {
            return cut();
        }
        if let Some(Fault::CutHalfway) = fault {
            let length = parts.headers.get(header::CONTENT_LENGTH);
            let length: usize = length.and_then(|length| length.to_str().ok()?.parse().ok()).unwrap_or(0);
            let (mut body, mut read) = (body.into_data_stream(), 0);
            while read < length / 2 {
                let Some(Ok(chunk)) = body.next().await else { break };
                read += chunk.len();
            }
            return cut();
        }
        let body = to_bytes(body, usize::MAX).await.map_err(io::Error::other)?;
        if body.len() <= LONGEST_KEPT {
            self.seen.lock().unwrap()[at].body = String::from_utf8_lossy(&body).into_owned();
        }
        let answer = async || {
            let request = Request::from_parts(parts.clone(), Body::from(body.clone()));
            let answer = self.router.clone().oneshot(request).await.expect("infallible");
            self.seen.lock().unwrap()[at].done = answer.status().is_success();
            answer
        };
        match fault {
            None => Ok(answer().await),
            Some(Fault::Answer(status, headers, body)) => {
                let mut answer = Response::builder().status(StatusCode::from_u16(status).expect("a status"));
                for (name, value) in headers {
                    answer = answer.header(name, value);
                }
                Ok(answer.body(Body::from(body)).expect("an answer"))
            }
            Some(Fault::Cut | Fault::CutAtOnce | Fault::CutHalfway) => cut(),
            Some(Fault::LostAnswer) => {
                answer().await;
                cut()
            }
            Some(Fault::Torn) => Ok(torn(answer().await).await),
            Some(Fault::Slow(time)) => {
                tokio::time::sleep(time).await;
                Ok(answer().await)
            }
            Some(Fault::StopBefore) => {
                self.stopped.notify_one();
                std::future::pending().await
            }
            Some(Fault::StopAfter) => {
                answer().await;
                self.stopped.notify_one();
                std::future::pending().await
            }
        }
    }

    /// Notes a request; returns its number.
    fn see(&self, parts: &Parts) -> usize {
        let line = format!("{} {}", parts.method, parts.uri);
        let mut seen = self.seen.lock().unwrap();
        seen.push(Seen { line, parts: parts.clone(), body: String::new(), done: false });
        seen.len() - 1
    }
}

/// The answer with half of its body, and the connection broken.
async fn torn(answer: Response<Body>) -> Response<Body> {
    let (mut parts, body) = answer.into_parts();
    let whole = to_bytes(body, usize::MAX).await.expect("a body");
    parts.headers.insert(header::CONTENT_LENGTH, whole.len().max(2).into());
    let half: io::Result<Bytes> = Ok(whole.slice(..whole.len() / 2));
    let stream = futures::stream::iter([half, Err(io::Error::other("torn"))]);
    Response::from_parts(parts, Body::from_stream(stream))
}
