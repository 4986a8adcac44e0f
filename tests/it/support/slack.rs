//! Slack, as far as refit uses it: a channel whose messages are posted, rewritten and answered to, and a webhook.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Map, Value, json};

use super::contract::{Violations, watch};
use super::faults::Server;

pub const TOKEN: &str = "xoxb-test-hush-hush";
pub const CHANNEL: &str = "C0123456789";
/// Whom the app's messages are from.
const BOT: &str = "B0REFIT000";
/// The end of the webhook's address, which is the secret.
pub const WEBHOOK: &str = "/services/T0/B0/hush-hush";

#[derive(Clone)]
pub struct Slack {
    state: Arc<Mutex<Workspace>>,
    /// What it is asked, and how it breaks.
    pub server: Server,
    pub violations: Violations,
    /// Those of webhooks.
    pub hook_violations: Violations,
    pub address: String,
}

/// A message as it stands in the channel.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Posted {
    pub ts: String,
    pub text: String,
    pub blocks: Value,
    pub thread_ts: Option<String>,
    pub broadcast: bool,
    pub metadata: Value,
    /// Whom it is from, when it is not from a person.
    pub bot_id: Option<String>,
    /// How often it was rewritten.
    pub edits: usize,
}

type Shared = State<Arc<Mutex<Workspace>>>;
type Asked = Query<HashMap<String, String>>;

#[derive(Default)]
struct Workspace {
    messages: Vec<Posted>,
    made: u32,
    /// What every call is refused with.
    refuses: Option<Value>,
    /// The app may not read what is in the channel.
    write_only: bool,
    webhook: Vec<Value>,
    /// Messages that the first answer has at most.
    page: usize,
}

impl Slack {
    pub async fn start() -> Self {
        // Few enough for a test to need a second answer, and never a third.
        let state = Arc::new(Mutex::new(Workspace { page: 2, ..Workspace::default() }));
        let api = Router::new()
            .route("/api/chat.postMessage", post(post_message))
            .route("/api/chat.update", post(update))
            .route("/api/auth.test", get(auth_test))
            .route("/api/conversations.history", get(asked_history))
            .route("/api/conversations.replies", get(replies))
            .route("/api/conversations.list", get(channels))
            .with_state(Arc::clone(&state));
        let (watched, violations) = watch("slack", api);
        let hooks = Router::new().route("/services/{*rest}", post(webhook)).with_state(Arc::clone(&state));
        let (hooks, hook_violations) = watch("slack-webhook", hooks);
        // Not in the contract: how Slack's own client for Node asks.
        let rest =
            Router::new().route("/api/conversations.history", post(history)).with_state(Arc::clone(&state));
        let server = Server::start(watched.merge(hooks).merge(rest));
        Self { state, violations, hook_violations, address: server.url.clone(), server }
    }

    /// Messages in the channel, oldest first; those in threads too.
    pub fn messages(&self) -> Vec<Posted> {
        self.state.lock().unwrap().messages.clone()
    }

    /// Bodies that came by the webhook.
    pub fn hooked(&self) -> Vec<Value> {
        self.state.lock().unwrap().webhook.clone()
    }

    /// Somebody else writes a message; the first answer has as many as are asked for from now on.
    pub fn others_write(&self, message: Posted) {
        let mut workspace = self.state.lock().unwrap();
        workspace.page = usize::MAX;
        workspace.made += 1;
        let ts = format!("1795248000.{:06}", workspace.made);
        workspace.messages.push(Posted { ts, ..message });
    }

    /// Somebody deletes a message.
    pub fn delete(&self, ts: &str) {
        self.state.lock().unwrap().messages.retain(|message| message.ts != ts);
    }

    /// Every call is refused with this word, and with what else Slack says then.
    pub fn refuse(&self, with: Value) {
        self.state.lock().unwrap().refuses = Some(with);
    }

    /// The app has the scope `chat:write` and no other.
    pub fn write_only(&self) {
        self.state.lock().unwrap().write_only = true;
    }

    pub fn welcome(&self) {
        self.state.lock().unwrap().refuses = None;
    }
}

fn no(error: &str) -> Response {
    Json(json!({"ok": false, "error": error})).into_response()
}

/// The arguments: JSON, or a form whose structures are JSON.
fn arguments(headers: &HeaderMap, body: &[u8]) -> Map<String, Value> {
    let kind = headers.get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if kind.starts_with("application/json") {
        return serde_json::from_slice(body).unwrap_or_default();
    }
    let pairs = url::form_urlencoded::parse(body).into_owned();
    pairs
        .map(|(key, value)| {
            let structure = ["blocks", "metadata", "attachments"].contains(&key.as_str());
            let parsed = structure.then(|| serde_json::from_str(&value).ok()).flatten();
            (key, parsed.unwrap_or(Value::String(value)))
        })
        .collect()
}

fn refused(workspace: &Workspace, headers: &HeaderMap) -> Option<Response> {
    let bearer = headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
    if bearer != format!("Bearer {TOKEN}") {
        return Some(no(if bearer.is_empty() { "not_authed" } else { "invalid_auth" }));
    }
    let refuses = workspace.refuses.as_ref()?;
    let mut body = json!({"ok": false});
    body.as_object_mut().expect("an object").extend(refuses.as_object().cloned().unwrap_or_default());
    Some(Json(body).into_response())
}

fn text<'a>(arguments: &'a Map<String, Value>, key: &str) -> &'a str {
    arguments.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// What Slack does not take, by its documented limits.
fn wrong(arguments: &Map<String, Value>) -> Option<&'static str> {
    let blocks = arguments.get("blocks").and_then(Value::as_array).cloned().unwrap_or_default();
    if text(arguments, "text").is_empty() && blocks.is_empty() {
        return Some("no_text");
    }
    if blocks.iter().map(|block| block.to_string().len()).sum::<usize>() > 13_000 {
        return Some("msg_blocks_too_long");
    }
    let fits = |block: &Value| {
        let said = block.pointer("/text/text").and_then(Value::as_str).map_or(1, |text| text.chars().count());
        match block["type"].as_str() {
            Some("header") => block["text"]["type"] == "plain_text" && (1..=150).contains(&said),
            Some("section") => (1..=3_000).contains(&said),
            Some("context") => block["elements"].as_array().is_some_and(|all| (1..=10).contains(&all.len())),
            Some("divider") => true,
            _ => false,
        }
    };
    (blocks.len() > 50 || !blocks.iter().all(fits)).then_some("invalid_blocks")
}

async fn post_message(State(slack): Shared, headers: HeaderMap, body: Bytes) -> Response {
    let mut workspace = slack.lock().unwrap();
    if let Some(refused) = refused(&workspace, &headers) {
        return refused;
    }
    let arguments = arguments(&headers, &body);
    if ![CHANNEL, "#models"].contains(&text(&arguments, "channel")) {
        return no("channel_not_found");
    }
    if let Some(wrong) = wrong(&arguments) {
        return no(wrong);
    }
    let thread_ts = arguments.get("thread_ts").and_then(Value::as_str).map(str::to_owned);
    if thread_ts.as_ref().is_some_and(|ts| workspace.messages.iter().all(|message| message.ts != *ts)) {
        return no("thread_not_found");
    }
    workspace.made += 1;
    let broadcast = arguments.get("reply_broadcast").is_some_and(|loud| loud == true || loud == "true");
    let message = Posted {
        ts: format!("1795248000.{:06}", workspace.made),
        text: text(&arguments, "text").to_owned(),
        blocks: arguments.get("blocks").cloned().unwrap_or_default(),
        thread_ts,
        broadcast,
        metadata: arguments.get("metadata").cloned().unwrap_or_default(),
        bot_id: Some(BOT.to_owned()),
        edits: 0,
    };
    let said = json!({"type": "message", "text": message.text, "ts": message.ts, "user": "U0REFIT"});
    let answer = json!({"ok": true, "channel": CHANNEL, "ts": message.ts, "message": said});
    workspace.messages.push(message);
    Json(answer).into_response()
}

async fn update(State(slack): Shared, headers: HeaderMap, body: Bytes) -> Response {
    let mut workspace = slack.lock().unwrap();
    if let Some(refused) = refused(&workspace, &headers) {
        return refused;
    }
    let arguments = arguments(&headers, &body);
    // By id only: names are refused here.
    if text(&arguments, "channel") != CHANNEL {
        return no("channel_not_found");
    }
    if let Some(wrong) = wrong(&arguments) {
        return no(wrong);
    }
    let ts = text(&arguments, "ts").to_owned();
    let Some(message) = workspace.messages.iter_mut().find(|message| message.ts == ts) else {
        return no("message_not_found");
    };
    message.text = text(&arguments, "text").to_owned();
    // Sent again or gone.
    message.blocks = arguments.get("blocks").cloned().unwrap_or_default();
    message.edits += 1;
    let said = json!({"text": message.text});
    Json(json!({"ok": true, "channel": CHANNEL, "ts": ts, "text": message.text, "message": said}))
        .into_response()
}

async fn auth_test(State(slack): Shared, headers: HeaderMap) -> Response {
    let workspace = slack.lock().unwrap();
    if let Some(refused) = refused(&workspace, &headers) {
        return refused;
    }
    Json(json!({
        "ok": true, "url": "https://example.slack.com/", "team": "Example", "user": "refit",
        "team_id": "T0EXAMPLE", "user_id": "U0REFIT", "bot_id": BOT,
    }))
    .into_response()
}

async fn history(State(slack): Shared, headers: HeaderMap, body: Bytes) -> Response {
    let arguments = arguments(&headers, &body);
    let text = |(key, value): (String, Value)| {
        (key, value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    };
    let arguments = arguments.into_iter().map(text).collect();
    asked_history(State(slack), headers, Query(arguments)).await
}

async fn asked_history(State(slack): Shared, headers: HeaderMap, Query(asked): Asked) -> Response {
    let seen = |message: &Posted| message.thread_ts.is_none() || message.broadcast;
    read(&slack.lock().unwrap(), &headers, &asked, seen)
}

async fn replies(State(slack): Shared, headers: HeaderMap, Query(asked): Asked) -> Response {
    let workspace = slack.lock().unwrap();
    let Some(ts) = asked.get("ts").filter(|ts| workspace.messages.iter().any(|there| there.ts == **ts))
    else {
        return no("thread_not_found");
    };
    read(&workspace, &headers, &asked, |message| message.thread_ts.as_ref().unwrap_or(&message.ts) == ts)
}

/// The messages that are `seen`: newest first, a page at a time, and without metadata unless it is asked for.
fn read(
    workspace: &Workspace,
    headers: &HeaderMap,
    asked: &HashMap<String, String>,
    seen: impl Fn(&Posted) -> bool,
) -> Response {
    if let Some(refused) = refused(workspace, headers) {
        return refused;
    }
    if workspace.write_only {
        let scopes = json!({"ok": false, "error": "missing_scope", "needed": "channels:history", "provided": "chat:write"});
        return Json(scopes).into_response();
    }
    // By id only: names are refused here.
    if asked.get("channel").is_none_or(|channel| channel != CHANNEL) {
        return no("channel_not_found");
    }
    let number = |key: &str, absent: f64| asked.get(key).map_or(absent, |text| text.parse().expect(key));
    let (oldest, from, limit) =
        (number("oldest", 0.0), number("cursor", 0.0) as usize, number("limit", 100.0));
    let page = if from == 0 { workspace.page } else { usize::MAX };
    let until = from + (limit as usize).min(page);
    let all = workspace.messages.iter().rev().filter(|message| seen(message));
    let all: Vec<&Posted> =
        all.filter(|message| message.ts.parse::<f64>().expect("a time") > oldest).collect();
    let shown = all.iter().skip(from).take(until - from).map(|message| {
        let mut said =
            json!({"type": "message", "ts": message.ts, "text": message.text, "blocks": message.blocks});
        if let Some(thread) = &message.thread_ts {
            said["thread_ts"] = json!(thread);
        }
        if let Some(bot) = &message.bot_id {
            said["bot_id"] = json!(bot);
        }
        if asked.get("include_all_metadata").is_some_and(|wanted| wanted == "true")
            && message.metadata.is_object()
        {
            said["metadata"] = message.metadata.clone();
        }
        said
    });
    let more = until < all.len();
    let next = if more { until.to_string() } else { String::new() };
    Json(json!({
        "ok": true, "messages": shown.collect::<Vec<_>>(), "has_more": more,
        "response_metadata": {"next_cursor": next},
    }))
    .into_response()
}

async fn channels(State(slack): Shared, headers: HeaderMap) -> Response {
    let workspace = slack.lock().unwrap();
    if let Some(refused) = refused(&workspace, &headers) {
        return refused;
    }
    let channel = |id: &str, name: &str| json!({"id": id, "name": name, "is_archived": false});
    Json(json!({"ok": true, "channels": [channel("C0000000001", "general"), channel(CHANNEL, "models")]}))
        .into_response()
}

async fn webhook(State(slack): Shared, Path(rest): Path<String>, body: Bytes) -> Response {
    let mut workspace = slack.lock().unwrap();
    if format!("/services/{rest}") != WEBHOOK {
        return (StatusCode::NOT_FOUND, "no_service").into_response();
    }
    if let Some(refuses) = &workspace.refuses {
        return (StatusCode::FORBIDDEN, refuses["error"].as_str().unwrap_or_default().to_owned())
            .into_response();
    }
    let Ok(body) = serde_json::from_slice::<Value>(&body) else {
        return (StatusCode::BAD_REQUEST, "invalid_payload").into_response();
    };
    let arguments: HashMap<String, Value> =
        body.as_object().cloned().unwrap_or_default().into_iter().collect();
    if let Some(wrong) = wrong(&arguments.into_iter().collect()) {
        return (StatusCode::BAD_REQUEST, wrong).into_response();
    }
    workspace.webhook.push(body);
    "ok".into_response()
}
