//! For whoever watches over processes.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::{Api, Working};

/// A database that takes longer is away.
const PATIENCE: Duration = Duration::from_secs(2);

/// `GET /healthz`: the process lives.
pub(super) async fn alive() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// `GET /readyz`: the database answers and this process is registered as a worker; or it will be when something is due,
/// and the database is not asked.
pub(super) async fn ready(State(api): State<Arc<Api>>) -> (StatusCode, Json<Value>) {
    let worker = match *api.working.borrow() {
        Working::Asleep => {
            return (StatusCode::OK, Json(json!({"status": "ok", "database": "asleep", "worker": "asleep"})));
        }
        Working::Yes => true,
        Working::No => false,
    };
    let database = match tokio::time::timeout(PATIENCE, api.engine.store.ping()).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::warn!("Not ready: {error}");
            false
        }
        Err(_) => {
            tracing::warn!("Not ready: the database did not answer within {PATIENCE:?}");
            false
        }
    };
    let status = if database && worker { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let says = |well| if well { "ok" } else { "no" };
    (
        status,
        Json(json!({"status": says(database && worker), "database": says(database), "worker": says(worker)})),
    )
}
