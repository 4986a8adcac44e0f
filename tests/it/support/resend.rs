//! Resend, as far as refit uses it: mails, idempotency keys, limits, its own clients' reads.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::contract::{Violations, watch};
use super::faults::Server;

pub const KEY: &str = "re_test_hush_hush";
/// Keys are kept so long.
const KEPT: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Clone)]
pub struct Resend {
    state: Arc<Mutex<Inbox>>,
    /// What it is asked, and how it breaks.
    pub server: Server,
    pub violations: Violations,
    pub address: String,
}

type Shared = State<Arc<Mutex<Inbox>>>;

#[derive(Default)]
struct Inbox {
    mails: Vec<Value>,
    /// By key: the body it came with, the answer it got, and when.
    keys: HashMap<String, (Bytes, Value, Duration)>,
    passed: Duration,
    /// Whether five requests a second are all it takes.
    strict: bool,
    recent: Vec<Instant>,
}

impl Resend {
    pub async fn start() -> Self {
        let state: Arc<Mutex<Inbox>> = Arc::default();
        let emulator = Router::new()
            .route("/emails", get(list).post(send))
            .route("/emails/{id}", get(read))
            .with_state(Arc::clone(&state));
        let (watched, violations) = watch("resend", emulator);
        let server = Server::start(watched);
        Self { state, violations, address: server.url.clone(), server }
    }

    pub fn mails(&self) -> Vec<Value> {
        self.state.lock().unwrap().mails.clone()
    }

    /// Only the limit of the documentation from now on.
    pub fn limit(&self) {
        self.state.lock().unwrap().strict = true;
    }

    pub fn pass(&self, time: Duration) {
        self.state.lock().unwrap().passed += time;
    }
}

fn refusal(status: u16, name: &str, message: &str) -> Response {
    let body = json!({"statusCode": status, "name": name, "message": message});
    (StatusCode::from_u16(status).expect("a status"), Json(body)).into_response()
}

/// What keeps a request out, whatever it asks.
fn unwelcome(inbox: &mut Inbox, headers: &HeaderMap) -> Option<Response> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if text("user-agent").is_empty() {
        return Some(refusal(403, "1010", "error code: 1010"));
    }
    match text("authorization") {
        "" => return Some(refusal(401, "missing_api_key", "Missing API key in the authorization header.")),
        bearer if bearer == format!("Bearer {KEY}") => {}
        _ => return Some(refusal(403, "invalid_api_key", "API key is invalid.")),
    }
    let now = Instant::now();
    inbox.recent.retain(|at| now - *at < Duration::from_secs(1));
    if inbox.strict && inbox.recent.len() >= 5 {
        let mut refused = refusal(429, "rate_limit_exceeded", "Too many requests. 5 requests per second.");
        for (name, value) in [("retry-after", "1"), ("ratelimit-remaining", "0"), ("ratelimit-reset", "1")] {
            refused.headers_mut().insert(name, value.parse().expect("a header"));
        }
        return Some(refused);
    }
    inbox.recent.push(now);
    None
}

async fn send(State(resend): Shared, headers: HeaderMap, body: Bytes) -> Response {
    let mut inbox = resend.lock().unwrap();
    if let Some(refused) = unwelcome(&mut inbox, &headers) {
        return refused;
    }
    let now = inbox.passed;
    let key = headers.get("idempotency-key").map(|key| String::from_utf8_lossy(key.as_bytes()).into_owned());
    if let Some(key) = &key {
        if key.is_empty() || key.len() > 256 {
            return refusal(400, "invalid_idempotency_key", "The key must be between 1-256 chars.");
        }
        if let Some((first, answer, at)) = inbox.keys.get(key)
            && now - *at < KEPT
        {
            return if *first == body {
                Json(answer.clone()).into_response()
            } else {
                refusal(
                    409,
                    "invalid_idempotent_request",
                    "Same idempotency key used with a different request payload.",
                )
            };
        }
    }
    let asked: Value = serde_json::from_slice(&body).expect("judged before");
    let from = asked["from"].as_str().unwrap_or_default();
    if !from.contains('@') {
        return refusal(422, "invalid_from_address", "Invalid `from` field.");
    }
    if !from.contains("@example.com") {
        return refusal(
            403,
            "validation_error",
            "The domain is not verified. Please, add and verify your domain.",
        );
    }
    if asked.get("html").is_none() && asked.get("text").is_none() {
        return refusal(422, "missing_required_field", "Missing `html` or `text` field.");
    }
    let to = match &asked["to"] {
        Value::String(one) => json!([one]),
        other => other.clone(),
    };
    let answer = json!({"id": uuid::Uuid::new_v4()});
    inbox.mails.push(json!({
        "object": "email", "id": answer["id"], "from": from, "to": to, "subject": asked["subject"],
        "html": asked["html"].as_str().unwrap_or_default(), "text": asked["text"].as_str().unwrap_or_default(),
        "created_at": "2026-11-21 08:00:00.000000+00", "last_event": "delivered",
        "bcc": [], "cc": [], "reply_to": [],
    }));
    if let Some(key) = key {
        inbox.keys.insert(key, (body, answer.clone(), now));
    }
    let left = if inbox.strict { 5 - inbox.recent.len() } else { 4 };
    let limits = [
        ("ratelimit-limit", "5".to_owned()),
        ("ratelimit-remaining", left.to_string()),
        ("ratelimit-reset", "1".to_owned()),
    ];
    (limits.map(|(name, value)| (name, value)), Json(answer)).into_response()
}

async fn list(State(resend): Shared, headers: HeaderMap) -> Response {
    let mut inbox = resend.lock().unwrap();
    if let Some(refused) = unwelcome(&mut inbox, &headers) {
        return refused;
    }
    let data: Vec<&Value> = inbox.mails.iter().rev().collect();
    Json(json!({"object": "list", "has_more": false, "data": data})).into_response()
}

async fn read(State(resend): Shared, headers: HeaderMap, Path(id): Path<String>) -> Response {
    let mut inbox = resend.lock().unwrap();
    if let Some(refused) = unwelcome(&mut inbox, &headers) {
        return refused;
    }
    match inbox.mails.iter().find(|mail| mail["id"] == id.as_str()) {
        Some(mail) => Json(mail.clone()).into_response(),
        None => refusal(404, "not_found", "Email not found"),
    }
}
