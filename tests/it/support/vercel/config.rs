//! Global Config: items by key, written through the API, read by apps with a token of their own.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Answer, Query, READ_TOKEN, Shared, World, refuse};

/// One store.
#[derive(Debug, Clone, Default)]
pub struct Config {
    pub items: BTreeMap<String, Item>,
}

/// One item.
#[derive(Debug, Clone)]
pub struct Item {
    pub value: Value,
    created: i64,
    updated: i64,
}

impl World {
    /// Somebody sets an item by hand.
    pub fn set_item(&mut self, config: &str, key: &str, value: Value) {
        let at = self.tick();
        let items = &mut self.configs.get_mut(config).expect("a config").items;
        let created = items.get(key).map_or(at, |there| there.created);
        items.insert(key.to_owned(), Item { value, created, updated: at });
    }

    fn config(&self, id: &str) -> Result<&Config, Response> {
        self.configs.get(id).ok_or_else(|| refuse(404, "not_found", "Global Config not found"))
    }
}

fn item_json(config: &str, key: &str, item: &Item) -> Value {
    json!({
        "key": key, "value": item.value, "edgeConfigId": config,
        "createdAt": item.created, "updatedAt": item.updated,
    })
}

/// The old name and the new one lead to the same.
pub(super) fn api() -> Router<Arc<Mutex<World>>> {
    Router::new()
        .route("/v1/global-config/{id}/items", get(items).patch(change))
        .route("/v1/global-config/{id}/item/{key}", get(item))
        .route("/v1/edge-config/{id}/items", get(items).patch(change))
        .route("/v1/edge-config/{id}/item/{key}", get(item))
}

/// What apps read: another host in the real world.
pub(super) fn app() -> Router<Arc<Mutex<World>>> {
    Router::new().route("/{id}/item/{key}", get(app_item)).route("/{id}/items", get(app_items))
}

async fn items(State(world): Shared, Path(id): Path<String>, query: Query, headers: HeaderMap) -> Answer {
    let world = world.lock().unwrap();
    world.admit(&headers, &query)?;
    let config = world.config(&id)?;
    Ok(Json(config.items.iter().map(|(key, item)| item_json(&id, key, item)).collect()))
}

async fn item(
    State(world): Shared,
    Path((id, key)): Path<(String, String)>,
    query: Query,
    headers: HeaderMap,
) -> Answer {
    let world = world.lock().unwrap();
    world.admit(&headers, &query)?;
    let config = world.config(&id)?;
    let item = config.items.get(&key).ok_or_else(|| refuse(404, "not_found", "Item not found"))?;
    Ok(Json(item_json(&id, &key, item)))
}

async fn change(
    State(world): Shared,
    Path(id): Path<String>,
    query: Query,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Answer {
    let mut world = world.lock().unwrap();
    world.admit(&headers, &query)?;
    // All of a batch, or none.
    let mut after = world.config(&id)?.clone();
    let at = world.tick();
    for operation in body["items"].as_array().into_iter().flatten() {
        let key = operation["key"].as_str().unwrap_or_default().to_owned();
        let there = after.items.get(&key).cloned();
        let created = there.as_ref().map_or(at, |there| there.created);
        let item = Item { value: operation["value"].clone(), created, updated: at };
        match (operation["operation"].as_str().unwrap_or_default(), there) {
            ("create", Some(_)) => return Err(refuse(409, "conflict", "Item exists")),
            ("update", None) => return Err(refuse(404, "not_found", "Item not found")),
            ("delete", None) => return Err(refuse(400, "bad_request", "Item not found")),
            ("delete", Some(_)) => drop(after.items.remove(&key)),
            _ => drop(after.items.insert(key, item)),
        }
    }
    world.configs.insert(id, after);
    Ok(Json(json!({"status": "ok"})))
}

/// The app's side: its own token, in the header or in the connection string's query.
fn may_read(headers: &HeaderMap, query: &Query) -> bool {
    let bearer = headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
    bearer == format!("Bearer {READ_TOKEN}") || query.get("token").is_some_and(|token| token == READ_TOKEN)
}

fn with_etag(value: Option<Value>, headers: &HeaderMap) -> Response {
    let text = value.as_ref().map(Value::to_string).unwrap_or_default();
    let digest: String = hex::encode(&Sha256::digest(text.as_bytes())[..8]);
    let etag = format!("\"{digest}\"");
    let marks = [("etag", etag.clone()), ("x-edge-config-digest", digest)];
    match value {
        None => (StatusCode::NOT_FOUND, marks, Json(json!({"code": "not_found"}))).into_response(),
        Some(_) if headers.get("if-none-match").is_some_and(|seen| *seen == etag) => {
            (StatusCode::NOT_MODIFIED, marks).into_response()
        }
        Some(value) => (marks, Json(value)).into_response(),
    }
}

async fn app_item(
    State(world): Shared,
    Path((id, key)): Path<(String, String)>,
    query: Query,
    headers: HeaderMap,
) -> Response {
    let world = world.lock().unwrap();
    match world.configs.get(&id) {
        Some(config) if may_read(&headers, &query) => {
            with_etag(config.items.get(&key).map(|item| item.value.clone()), &headers)
        }
        _ => refuse(401, "unauthorized", "Unauthorized"),
    }
}

async fn app_items(
    State(world): Shared,
    Path(id): Path<String>,
    query: Query,
    headers: HeaderMap,
) -> Response {
    let world = world.lock().unwrap();
    match world.configs.get(&id) {
        Some(config) if may_read(&headers, &query) => {
            let all = config.items.iter().map(|(key, item)| (key.clone(), item.value.clone()));
            with_etag(Some(Value::Object(all.collect())), &headers)
        }
        _ => refuse(401, "unauthorized", "Unauthorized"),
    }
}
