//! Vercel Blob as its clients see it: the API, version 12, and the host that shows blobs.
//!
//! Keeps state, refuses what the service refuses, and breaks when it is told to. Every request and answer of the API
//! is judged by `tests/contracts/vercel-blob.json`.

mod blobs;

use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use axum::routing::any;
use serde_json::{Value, json};

pub use self::blobs::Access;
use self::blobs::{Blobs, Refused};
use super::contract::{Violations, watch};
use super::line::{Call, Dialect, Line, Op};

/// The store's id; part of every token and address.
pub const STORE: &str = "aB3dE5gH7jK9mN1p";
const SECRET: &str = "s3cr3tS3cr3tS3cr3t";

const DIALECT: Dialect = Dialect {
    call,
    refusal: |code| refusal(code, "Please try again later").to_string(),
    expired: || {
        let no = blobs::no_token();
        (no.status, refusal(no.code, &no.message).to_string())
    },
};

/// A running service with one store.
pub struct VercelBlob {
    line: Line,
    store: Arc<OneStore>,
    contract: Violations,
}

struct OneStore {
    blobs: Mutex<Blobs>,
    /// Requests that no client may make.
    violations: Mutex<Vec<String>>,
}

fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl VercelBlob {
    pub fn start(access: Access) -> Self {
        let store =
            Arc::new(OneStore { blobs: Mutex::new(Blobs::new(access)), violations: Mutex::default() });
        let mut contract = Violations::default();
        let line = Line::start(DIALECT, |port| {
            locked(&store.blobs).files_url =
                format!("http://127.0.0.1:{port}/files/{}", STORE.to_lowercase());
            let api = Router::new()
                .route("/api/blob", any(serve))
                .route("/api/blob/", any(serve))
                .route("/api/blob/{*rest}", any(serve));
            let (api, violations) = watch("vercel-blob", api.with_state(Arc::clone(&store)));
            contract = violations;
            api.merge(Router::new().fallback(serve).with_state(Arc::clone(&store)))
        });
        Self { line, store, contract }
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

    /// Pages of lists are not longer.
    pub fn page_at_most(&self, blobs: usize) {
        locked(&self.store.blobs).longest_page = blobs;
    }

    /// Paths of all blobs.
    pub fn pathnames(&self) -> Vec<String> {
        locked(&self.store.blobs).pathnames()
    }
}

impl Deref for VercelBlob {
    type Target = Line;

    fn deref(&self) -> &Line {
        &self.line
    }
}

impl Drop for VercelBlob {
    fn drop(&mut self) {
        let violations = locked(&self.store.violations);
        if !std::thread::panicking() {
            assert!(violations.is_empty(), "{violations:#?}");
            self.contract.assert_none();
        }
    }
}

/// A request, read but for its body.
pub struct Asked<'a> {
    method: &'a str,
    /// After `/api/blob`, or after `/files`.
    below: &'a str,
    query: Vec<(String, String)>,
    headers: &'a HeaderMap,
    download: bool,
}

impl<'a> Asked<'a> {
    fn of(parts: &'a Parts) -> Option<Self> {
        let path = parts.uri.path();
        let (below, download) = match path.strip_prefix("/api/blob") {
            Some(below) => (below, false),
            None => (path.strip_prefix("/files")?, true),
        };
        let query =
            url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes()).into_owned();
        let (method, headers) = (parts.method.as_str(), &parts.headers);
        Some(Self { method, below, query: query.collect(), headers, download })
    }

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
        match (self.method, self.below) {
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
            None if self.download => blobs::decoded(self.below),
            None => String::new(),
        }
    }
}

fn call(parts: &Parts) -> Option<Call> {
    let asked = Asked::of(parts)?;
    let part = asked.header("x-mpu-part-number").and_then(|part| part.parse().ok());
    Some(Call { op: asked.op()?, pathname: asked.pathname(), part })
}

async fn serve(State(store): State<Arc<OneStore>>, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, usize::MAX).await.expect("a body");
    if parts.uri.to_string().contains(SECRET) {
        locked(&store.violations).push(format!("the token is in an address: {}", parts.uri));
    }
    let asked = Asked::of(&parts);
    let Some((asked, op)) = asked.and_then(|asked| asked.op().map(|op| (asked, op))) else {
        let said = format!("{} {} is no request of the API", parts.method, parts.uri);
        locked(&store.violations).push(said);
        return refused(&Refused::new(404, "not_found", "there is no such request"));
    };
    let answered = answer(&mut locked(&store.blobs), &asked, op, body);
    answered.unwrap_or_else(|problem| refused(&problem))
}

fn answer(blobs: &mut Blobs, asked: &Asked<'_>, op: Op, body: Bytes) -> Result<Response<Body>, Refused> {
    if op == Op::Download {
        return blobs.download(asked, &VercelBlob::token());
    }
    blobs.admit(asked, &VercelBlob::token(), STORE)?;
    let said = match op {
        Op::Put => blobs.put(asked, body),
        Op::Begin => blobs.begin(asked),
        Op::Part => blobs.part(asked, body),
        Op::Complete => blobs.complete(asked, &body),
        Op::List => blobs.list(asked),
        Op::Head => blobs.head(asked),
        Op::Delete => blobs.delete(asked, &body),
        Op::Copy => blobs.copy(asked, false),
        Op::Rename | Op::Download => blobs.copy(asked, true),
    }?;
    Ok(shown(&said))
}

fn refusal(code: &str, message: &str) -> Value {
    json!({"error": {"code": code, "message": message}})
}

fn refused(refused: &Refused) -> Response<Body> {
    let mut response = shown(&refusal(refused.code, &refused.message));
    *response.status_mut() = StatusCode::from_u16(refused.status).unwrap();
    response
}

fn shown(body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_string()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
