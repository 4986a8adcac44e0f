//! HTTP services of object stores that break when they are told to: what can go
//! wrong between a client and the service, and when.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use axum::body::{Body, Bytes};
use axum::http::request::Parts;
use axum::http::{Request, Response, header};
use futures::StreamExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// What a request wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    Put,
    Begin,
    Part,
    Complete,
    List,
    Head,
    Delete,
    Copy,
    Rename,
    Download,
}

impl Op {
    /// Whether it brings or changes something.
    pub fn writes(self) -> bool {
        match self {
            Op::Put | Op::Begin | Op::Part | Op::Complete | Op::Delete | Op::Copy | Op::Rename => true,
            Op::List | Op::Head | Op::Download => false,
        }
    }
}

/// A request that came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub op: Op,
    pub pathname: String,
    /// Of an upload in parts, from 1.
    pub part: Option<usize>,
}

/// What happens instead of the answer.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// 429, with these seconds in `Retry-After`.
    RateLimited(u64),
    /// A status and a code; nothing is done.
    Refused(u16, &'static str),
    /// The line is cut before anything is read.
    CutBefore,
    /// The line is cut in the middle of the request's body.
    CutHalfway,
    /// It is done, and the line is cut before the answer.
    CutAfter,
    /// It is done, and the answer is cut in its middle.
    Torn,
    /// It is done after this time.
    Slow(Duration),
    /// The token is not valid any more.
    Expired,
}

/// A fault for some requests.
pub struct Rule {
    matches: Box<dyn Fn(&Call) -> bool + Send>,
    skip: usize,
    times: usize,
    fault: Fault,
}

impl Rule {
    /// For every request that `matches`.
    pub fn on(fault: Fault, matches: impl Fn(&Call) -> bool + Send + 'static) -> Self {
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

    /// Its fault, if it is about `call` and due.
    pub fn take(&mut self, call: &Call) -> Option<Fault> {
        if self.times == 0 || !(self.matches)(call) {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        self.times -= 1;
        Some(self.fault)
    }
}

/// A service behind a line that breaks.
#[async_trait]
pub trait Service: Send + Sync + 'static {
    /// What a request wants; none when it makes no sense.
    fn call(&self, parts: &Parts) -> Option<Call>;
    /// Does it; says whether that was a success.
    async fn answer(&self, parts: &Parts, call: &Call, body: Bytes) -> Response<Body>;
    /// Says that it does not, with status and code.
    fn refuse(&self, status: u16, code: &'static str) -> Response<Body>;
    /// Says that the token is no good.
    fn expired(&self) -> Response<Body>;
}

/// A service on a port of its own, and what is to go wrong.
pub struct Line {
    pub port: u16,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

struct Shared {
    service: Arc<dyn Service>,
    rules: Mutex<Vec<Rule>>,
    calls: Mutex<Vec<Call>>,
    /// Requests that were answered with success.
    done: Mutex<Vec<Call>>,
}

fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Line {
    /// `make` is told the port.
    pub async fn start(make: impl FnOnce(u16) -> Arc<dyn Service>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            service: make(port),
            rules: Mutex::default(),
            calls: Mutex::default(),
            done: Mutex::default(),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { port, shared, accepting }
    }

    /// From now on, until `mend`.
    pub fn fault(&self, rule: Rule) {
        locked(&self.shared.rules).push(rule);
    }

    /// No more faults.
    pub fn mend(&self) {
        locked(&self.shared.rules).clear();
    }

    /// Every request that came in.
    pub fn calls(&self) -> Vec<Call> {
        locked(&self.shared.calls).clone()
    }

    /// How often objects whose path ends so were brought whole: by put, or by an upload that was completed.
    pub fn brought(&self, ending: &str) -> usize {
        let done = locked(&self.shared.done);
        let whole =
            |call: &&Call| matches!(call.op, Op::Put | Op::Complete) && call.pathname.ends_with(ending);
        done.iter().filter(whole).count()
    }

    pub fn forget_calls(&self) {
        locked(&self.shared.calls).clear();
        locked(&self.shared.done).clear();
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let service = service_fn(|request| handle(Arc::clone(&shared), request));
            // A cut line is meant.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn handle(shared: Arc<Shared>, request: Request<Incoming>) -> io::Result<Response<Body>> {
    let (parts, body) = request.into_parts();
    let Some(call) = shared.service.call(&parts) else {
        return Ok(shared.service.refuse(404, "no_such_request"));
    };
    locked(&shared.calls).push(call.clone());
    let fault = locked(&shared.rules).iter_mut().find_map(|rule| rule.take(&call));
    let cut = || Err(io::Error::other("the line is cut, as it was asked for"));
    if let Some(Fault::CutBefore) = fault {
        return cut();
    }
    if let Some(Fault::CutHalfway) = fault {
        let length =
            parts.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let (mut body, mut read, length) = (Body::new(body).into_data_stream(), 0, length.unwrap_or(0_usize));
        while read < length / 2 {
            let Some(Ok(chunk)) = body.next().await else { break };
            read += chunk.len();
        }
        return cut();
    }
    let body = axum::body::to_bytes(Body::new(body), usize::MAX).await.map_err(io::Error::other)?;
    let answer = async || {
        let response = shared.service.answer(&parts, &call, body.clone()).await;
        if response.status().is_success() {
            locked(&shared.done).push(call.clone());
        }
        response
    };
    match fault {
        None => Ok(answer().await),
        Some(Fault::CutBefore | Fault::CutHalfway | Fault::CutAfter) => {
            answer().await;
            cut()
        }
        Some(Fault::Torn) => Ok(torn(answer().await).await),
        Some(Fault::Slow(time)) => {
            tokio::time::sleep(time).await;
            Ok(answer().await)
        }
        Some(Fault::RateLimited(seconds)) => {
            let mut response = shared.service.refuse(429, "rate_limited");
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
            Ok(response)
        }
        Some(Fault::Refused(status, code)) => Ok(shared.service.refuse(status, code)),
        Some(Fault::Expired) => Ok(shared.service.expired()),
    }
}

/// Half of `response`, which promises all of it.
async fn torn(response: Response<Body>) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    parts.headers.insert(header::CONTENT_LENGTH, bytes.len().into());
    let half = bytes.slice(..bytes.len() / 2);
    let half = futures::stream::once(async move { Ok::<_, io::Error>(half) });
    let cut = futures::stream::once(async { Err(io::Error::other("torn")) });
    Response::from_parts(parts, Body::from_stream(half.chain(cut)))
}
