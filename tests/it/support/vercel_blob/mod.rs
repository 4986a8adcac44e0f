//! Vercel Blob as its clients see it: the API, version 12, and the host that shows blobs.
//!
//! Keeps state, refuses what the service refuses, and breaks when it is told to.

mod blobs;
mod faults;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, Request, Response, StatusCode, header};
use futures::StreamExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub use self::blobs::Access;
use self::blobs::{Blobs, Refused};
pub use self::faults::{Call, Fault, Op, Rule};

/// The store's id; part of every token and address.
pub const STORE: &str = "aB3dE5gH7jK9mN1p";
const SECRET: &str = "s3cr3tS3cr3tS3cr3t";

/// A running service with one store.
pub struct VercelBlob {
    port: u16,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

struct Shared {
    blobs: Mutex<Blobs>,
    rules: Mutex<Vec<Rule>>,
    calls: Mutex<Vec<Call>>,
    /// Requests that were answered with success.
    done: Mutex<Vec<Call>>,
    /// Requests that no client may make.
    violations: Mutex<Vec<String>>,
}

fn locked<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl VercelBlob {
    pub async fn start(access: Access) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            blobs: Mutex::new(Blobs::new(
                access,
                format!("http://127.0.0.1:{port}/files/{}", STORE.to_lowercase()),
            )),
            rules: Mutex::default(),
            calls: Mutex::default(),
            done: Mutex::default(),
            violations: Mutex::default(),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { port, shared, accepting }
    }

    pub fn token() -> String {
        format!("vercel_blob_rw_{STORE}_{SECRET}")
    }

    /// What `VERCEL_BLOB_API_URL` and `api_url` are set to.
    pub fn api_url(&self) -> String {
        format!("http://127.0.0.1:{}/api/blob", self.port)
    }

    /// Where blobs are shown.
    pub fn files_url(&self) -> String {
        format!("http://127.0.0.1:{}/files/{}", self.port, STORE.to_lowercase())
    }

    /// From now on, until `mend`.
    pub fn fault(&self, rule: Rule) {
        locked(&self.shared.rules).push(rule);
    }

    /// No more faults.
    pub fn mend(&self) {
        locked(&self.shared.rules).clear();
    }

    /// Pages of lists are not longer.
    pub fn page_at_most(&self, blobs: usize) {
        locked(&self.shared.blobs).longest_page = blobs;
    }

    /// Every request that came in.
    pub fn calls(&self) -> Vec<Call> {
        locked(&self.shared.calls).clone()
    }

    /// Every request that was done.
    pub fn done(&self) -> Vec<Call> {
        locked(&self.shared.done).clone()
    }

    /// How often blobs whose path ends so were brought whole: by put, or by an upload that was completed.
    pub fn brought(&self, ending: &str) -> usize {
        let done = locked(&self.shared.done);
        done.iter()
            .filter(|call| matches!(call.op, Op::Put | Op::Complete) && call.pathname.ends_with(ending))
            .count()
    }

    pub fn forget_calls(&self) {
        locked(&self.shared.calls).clear();
        locked(&self.shared.done).clear();
    }

    /// Paths of all blobs.
    pub fn pathnames(&self) -> Vec<String> {
        locked(&self.shared.blobs).pathnames()
    }
}

impl Drop for VercelBlob {
    fn drop(&mut self) {
        self.accepting.abort();
        let violations = locked(&self.shared.violations);
        if !std::thread::panicking() {
            assert!(violations.is_empty(), "{violations:#?}");
        }
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

/// A request, read but for its body.
pub struct Asked {
    pub method: Method,
    /// After `/api/blob`, or after `/files`.
    pub below: String,
    pub query: Vec<(String, String)>,
    pub headers: HeaderMap,
    pub download: bool,
}

impl Asked {
    pub fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    fn op(&self) -> Option<Op> {
        if self.download {
            return Some(Op::Download);
        }
        match (self.method.as_str(), self.below.as_str()) {
            ("PUT", "" | "/") if self.query("fromUrl").is_some() => Some(Op::Copy),
            ("PUT", "" | "/") => Some(Op::Put),
            ("GET", "" | "/") if self.query("url").is_some() => Some(Op::Head),
            ("GET", "" | "/") => Some(Op::List),
            ("POST", "/delete") => Some(Op::Delete),
            ("POST", "/rename") => Some(Op::Rename),
            ("POST", "/mpu") => match self.header("x-mpu-action")? {
                "create" => Some(Op::Begin),
                "upload" => Some(Op::Part),
                "complete" => Some(Op::Complete),
                _ => None,
            },
            _ => None,
        }
    }

    fn pathname(&self) -> String {
        let named = self.query("pathname").or_else(|| self.query("url")).or_else(|| self.query("prefix"));
        match named {
            Some(named) => named.to_owned(),
            None if self.download => blobs::decoded(&self.below),
            None => String::new(),
        }
    }
}

async fn handle(shared: Arc<Shared>, request: Request<Incoming>) -> io::Result<Response<Body>> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    let (below, download) = match (path.strip_prefix("/api/blob"), path.strip_prefix("/files")) {
        (Some(below), _) => (below.to_owned(), false),
        (None, Some(below)) => (below.to_owned(), true),
        (None, None) => return Ok(plain(StatusCode::NOT_FOUND, "no such page")),
    };
    let query = url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes()).into_owned();
    let asked =
        Asked { method: parts.method, below, query: query.collect(), headers: parts.headers, download };
    if parts.uri.to_string().contains(SECRET) {
        locked(&shared.violations).push(format!("the token is in an address: {}", parts.uri));
    }
    let Some(op) = asked.op() else {
        locked(&shared.violations).push(format!("{} {} is no request of the API", asked.method, parts.uri));
        return Ok(plain(StatusCode::NOT_FOUND, "no such request"));
    };
    let part = asked.header("x-mpu-part-number").and_then(|part| part.parse().ok());
    let call = Call { op, pathname: asked.pathname(), part };
    locked(&shared.calls).push(call.clone());
    let fault = locked(&shared.rules).iter_mut().find_map(|rule| rule.take(&call));
    let cut = || Err(io::Error::other("the line is cut, as it was asked for"));
    match fault {
        None => Ok(answer(&shared, &asked, call, whole(body).await?)),
        Some(Fault::CutBefore) => cut(),
        Some(Fault::CutHalfway) => {
            let length: usize =
                asked.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
            let (mut body, mut read) = (Body::new(body).into_data_stream(), 0);
            while read < length / 2 {
                let Some(Ok(chunk)) = body.next().await else { break };
                read += chunk.len();
            }
            cut()
        }
        Some(Fault::CutAfter) => {
            answer(&shared, &asked, call, whole(body).await?);
            cut()
        }
        Some(Fault::Torn) => Ok(torn(answer(&shared, &asked, call, whole(body).await?)).await),
        Some(Fault::Slow(time)) => {
            let body = whole(body).await?;
            tokio::time::sleep(time).await;
            Ok(answer(&shared, &asked, call, body))
        }
        Some(Fault::RateLimited(seconds)) => {
            whole(body).await?;
            let mut response = refused(&Refused::new(
                429,
                "rate_limited",
                "Too many requests please lower the number of concurrent requests",
            ));
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
            Ok(response)
        }
        Some(Fault::Refused(status, code)) => {
            whole(body).await?;
            Ok(refused(&Refused::new(status, code, "as the test asked for")))
        }
        Some(Fault::Expired) => {
            whole(body).await?;
            Ok(refused(&blobs::no_token()))
        }
    }
}

async fn whole(body: Incoming) -> io::Result<Bytes> {
    axum::body::to_bytes(Body::new(body), usize::MAX).await.map_err(io::Error::other)
}

fn plain(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(Body::from(text.to_owned()));
    *response.status_mut() = status;
    response
}

/// Half of `response`, which promises all of it.
async fn torn(response: Response<Body>) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    parts.headers.insert(header::CONTENT_LENGTH, bytes.len().into());
    let half = bytes.slice(..bytes.len() / 2);
    let cut = futures::stream::once(async {
        // What was sent before has reached the client.
        tokio::time::sleep(Duration::from_millis(20)).await;
        Err(io::Error::other("torn"))
    });
    let half = futures::stream::once(async move { Ok::<_, io::Error>(half) });
    Response::from_parts(parts, Body::from_stream(half.chain(cut)))
}

fn refused(refused: &Refused) -> Response<Body> {
    let body = json!({"error": {"code": refused.code, "message": refused.message}});
    let mut response = shown(&body);
    *response.status_mut() = StatusCode::from_u16(refused.status).unwrap();
    response
}

fn shown(body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_string()));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

fn answer(shared: &Shared, asked: &Asked, call: Call, body: Bytes) -> Response<Body> {
    let mut blobs = locked(&shared.blobs);
    let result: Result<Response<Body>, Refused> = match call.op {
        Op::Download => blobs.download(asked, &VercelBlob::token()),
        Op::Put
        | Op::Begin
        | Op::Part
        | Op::Complete
        | Op::List
        | Op::Head
        | Op::Delete
        | Op::Copy
        | Op::Rename => blobs.admit(asked, &VercelBlob::token(), STORE).and_then(|()| {
            match call.op {
                Op::Put => blobs.put(asked, body),
                Op::Begin => blobs.begin(asked),
                Op::Part => blobs.part(asked, body),
                Op::Complete => blobs.complete(asked, &body),
                Op::List => blobs.list(asked),
                Op::Head => blobs.head(asked),
                Op::Delete => blobs.delete(asked, &body),
                Op::Copy => blobs.copy(asked, false),
                Op::Rename | Op::Download => blobs.copy(asked, true),
            }
            .map(|body| shown(&body))
        }),
    };
    match result {
        Ok(response) => {
            locked(&shared.done).push(call);
            response
        }
        Err(problem) => refused(&problem),
    }
}
