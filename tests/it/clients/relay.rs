//! What lies between an app and refit: passes requests on, remembers them, and fails as networks do.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde_json::Value;
use tokio::sync::watch;

use crate::support::world::http;

/// What becomes of the next requests.
#[derive(Debug, Clone, PartialEq)]
pub enum Mode {
    /// They go to refit.
    Pass,
    /// They go to refit, and its answer is lost.
    LoseTheAnswer,
    /// Nobody answers, until the mode changes.
    Hang,
    /// This is answered.
    Answer(u16, Vec<u8>),
}

/// A request that came.
#[derive(Debug, Clone)]
pub struct Seen {
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// What it was answered; nothing while it waits.
    pub status: Option<u16>,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The rows of a batch.
    pub fn rows(&self) -> Vec<Value> {
        let lines = std::str::from_utf8(&self.body).unwrap().lines();
        lines.map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

pub struct Relay {
    address: SocketAddr,
    mode: watch::Sender<Mode>,
    seen: watch::Sender<Vec<Seen>>,
    upstream: Mutex<String>,
}

impl Relay {
    /// A relay before the refit at `upstream`.
    pub async fn before(upstream: &str) -> Arc<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relay = Arc::new(Self {
            address: listener.local_addr().unwrap(),
            mode: watch::Sender::new(Mode::Pass),
            seen: watch::Sender::new(vec![]),
            upstream: Mutex::new(upstream.to_owned()),
        });
        let router = axum::Router::new().fallback(handle).with_state(Arc::clone(&relay));
        tokio::spawn(async move { axum::serve(listener, router).await });
        relay
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn document(&self) -> String {
        format!("{}/v1/models/air-time/release", self.url())
    }

    pub fn becomes(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// The requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.borrow().clone()
    }

    /// Waits until `count` requests came.
    pub async fn await_requests(&self, count: usize) -> Vec<Seen> {
        let mut seen = self.seen.subscribe();
        seen.wait_for(|seen| seen.len() >= count).await.unwrap().clone()
    }

    /// Waits until `count` requests were answered.
    pub async fn await_answers(&self, count: usize) -> Vec<Seen> {
        let mut seen = self.seen.subscribe();
        let answered = |seen: &Vec<Seen>| seen.iter().filter(|seen| seen.status.is_some()).count();
        seen.wait_for(|seen| answered(seen) >= count).await.unwrap().clone()
    }

    /// Waits until a batch with this row was answered.
    pub async fn await_row(&self, request_id: &str) {
        let mut seen = self.seen.subscribe();
        let has = |seen: &Seen| {
            seen.status.is_some() && seen.rows().iter().any(|row| row["request_id"] == request_id)
        };
        seen.wait_for(|seen| seen.iter().any(has)).await.unwrap();
    }

    async fn answer(&self, index: usize) -> Response {
        let mut mode = self.mode.subscribe();
        let mode = mode.wait_for(|mode| *mode != Mode::Hang).await.unwrap().clone();
        if let Mode::Answer(status, body) = mode {
            return response(status, &HeaderMap::new(), Body::from(body));
        }
        let seen = self.seen.borrow()[index].clone();
        let method = if seen.body.is_empty() { reqwest::Method::GET } else { reqwest::Method::POST };
        let upstream = self.upstream.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut headers = seen.headers.clone();
        headers.remove("host");
        let request = http().request(method, format!("{upstream}{}", seen.path)).headers(headers);
        let Ok(answer) = request.body(seen.body).send().await else {
            return response(502, &HeaderMap::new(), Body::empty());
        };
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let body = answer.bytes().await.unwrap();
        let torn = futures::stream::once(async { Err::<Bytes, _>(std::io::Error::other("cut")) });
        let lost = mode == Mode::LoseTheAnswer;
        response(status, &headers, if lost { Body::from_stream(torn) } else { Body::from(body) })
    }
}

async fn handle(State(relay): State<Arc<Relay>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let path = head.uri.path_and_query().unwrap().to_string();
    let mut index = 0;
    relay.seen.send_modify(|seen| {
        index = seen.len();
        seen.push(Seen { path, headers: head.headers, body, status: None });
    });
    let response = relay.answer(index).await;
    relay.seen.send_modify(|seen| seen[index].status = Some(response.status().as_u16()));
    response
}

fn response(status: u16, headers: &HeaderMap, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    for name in ["etag", "content-type", "content-length"] {
        if let Some(value) = headers.get(name) {
            response.headers_mut().insert(name.parse::<axum::http::HeaderName>().unwrap(), value.clone());
        }
    }
    response
}
