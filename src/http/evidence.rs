//! `/v1/models/{model}/observations` and `/truth`: what apps report, one JSON
//! object a line, read while it comes. 200 means that it is durable.

use std::collections::BTreeSet;
use std::io::{self, BufRead};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, header};
use futures::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::Api;
use super::error::ApiError;
use super::request::{Asked, key, parsed};
use crate::domain::Timestamp;
use crate::domain::evidence::ObservationBatch;
use crate::domain::id::{ModelName, VersionName};
use crate::evidence::{BatchError, Limits, Reading, RowError, read_observations, read_truth};
use crate::store::BatchReceipt;

/// A batch of which nothing comes for so long broke off.
const SILENCE: Duration = Duration::from_secs(30);
/// No batch takes longer to come.
const WHOLE: Duration = Duration::from_secs(300);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    batch: Option<String>,
}

/// The receipt of a batch.
#[derive(Serialize)]
pub(super) struct Taken {
    batch: String,
    #[serde(flatten)]
    receipt: BatchReceipt,
    /// Rows that make no sense.
    refused: u64,
    /// Rows whose time is not believed: they count in the minute they came.
    misdated: u64,
    /// Versions that the model does not have: a misspelt name. Their rows are kept, and no canary reads them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unknown_versions: Vec<VersionName>,
    /// The first rows that make no sense.
    errors: Vec<RowError>,
}

/// `POST /v1/models/{model}/observations`.
pub(super) async fn observations(
    State(api): State<Arc<Api>>,
    Path(model): Path<String>,
    Asked(which): Asked<Which>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Taken>, ApiError> {
    let reading = read(&api, &model, which, &headers, body, |given| {
        read_observations(&given.model, given.id.as_deref(), given.lines, given.now, &Limits::default())
    });
    let reading = reading.await?;
    let receipt = api.engine.store.observe(&reading.batch).await?;
    let unknown = unknown_versions(&api, &reading.batch).await?;
    let Json(taken) = taken(reading.batch.batch_id.clone(), receipt, reading);
    Ok(Json(Taken { unknown_versions: unknown, ..taken }))
}

/// `POST /v1/models/{model}/truth`.
pub(super) async fn truth(
    State(api): State<Arc<Api>>,
    Path(model): Path<String>,
    Asked(which): Asked<Which>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Taken>, ApiError> {
    let reading = read(&api, &model, which, &headers, body, |given| {
        read_truth(&given.model, given.id.as_deref(), given.lines, given.now, &Limits::default())
    });
    let reading = reading.await?;
    let receipt = api.engine.store.add_truth(&reading.batch).await?;
    Ok(taken(reading.batch.batch_id.clone(), receipt, reading))
}

fn taken<B>(batch: String, receipt: BatchReceipt, reading: Reading<B>) -> Json<Taken> {
    let Reading { errors, refused, misdated, .. } = reading;
    Json(Taken { batch, receipt, refused, misdated, unknown_versions: vec![], errors })
}

/// A batch on its way in.
struct Given {
    model: ModelName,
    id: Option<String>,
    lines: Box<dyn BufRead + Send>,
    now: Timestamp,
}

async fn read<B: Send + 'static>(
    api: &Arc<Api>,
    model: &str,
    which: Which,
    headers: &HeaderMap,
    body: Body,
    understand: impl FnOnce(Given) -> Result<Reading<B>, BatchError> + Send + 'static,
) -> Result<Reading<B>, ApiError> {
    let model: ModelName = parsed(model)?;
    let id = key(headers, "`?batch=`", which.batch)?;
    if headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return Err(ApiError::Unsupported {
            detail: "the body is compressed",
            hint: "send the lines as they are",
        });
    }
    must_be_known(api, &model).await?;
    let slot = tokio::time::timeout(SILENCE, api.batches.acquire()).await;
    let _slot = slot.map_err(|_| ApiError::TooSlow { what: "too many batches are being read" })?;
    let now = api.engine.clock.now();
    let lines = Box::new(SyncIoBridge::new(StreamReader::new(Box::pin(coming(body)))));
    let reading = tokio::task::spawn_blocking(move || understand(Given { model, id, lines, now })).await;
    let reading = reading.map_err(|error| ApiError::Broken(error.to_string()))??;
    // Nothing is kept of it, its id neither: it can be sent again.
    if reading.accepted == 0 && reading.refused == 0 {
        return Err(ApiError::invalid("the batch has no row", "send one JSON object per line"));
    }
    if reading.accepted == 0 {
        return Err(ApiError::NoRow { refused: reading.refused, errors: reading.errors });
    }
    Ok(reading)
}

/// The chunks of a body, until it ends, fails, falls silent or takes too long.
fn coming(body: Body) -> impl stream::Stream<Item = io::Result<axum::body::Bytes>> + Send {
    let end = tokio::time::Instant::now() + WHOLE;
    stream::unfold(Some(body.into_data_stream()), move |chunks| async move {
        let mut chunks = chunks?;
        let until = end.min(tokio::time::Instant::now() + SILENCE);
        match tokio::time::timeout_at(until, chunks.next()).await {
            Ok(Some(Ok(chunk))) => Some((Ok(chunk), Some(chunks))),
            Ok(Some(Err(error))) => Some((Err(io::Error::other(error)), None)),
            Ok(None) => None,
            Err(_) => Some((Err(io::Error::new(io::ErrorKind::TimedOut, "it came too slowly")), None)),
        }
    })
}

/// Versions of a batch that its model does not have; none while it has none at all, as before the first run.
async fn unknown_versions(api: &Api, batch: &ObservationBatch) -> Result<Vec<VersionName>, ApiError> {
    let reported: BTreeSet<&VersionName> = batch.minutes.iter().map(|minute| &minute.version).collect();
    let is_known = |version: &VersionName| {
        let known = api.versions.lock().unwrap_or_else(PoisonError::into_inner);
        known.contains(&(batch.model.clone(), version.clone()))
    };
    if reported.iter().all(|version| is_known(version)) {
        return Ok(vec![]);
    }
    let there: BTreeSet<VersionName> =
        api.engine.store.versions(&batch.model).await?.into_iter().map(|version| version.name).collect();
    if there.is_empty() {
        return Ok(vec![]);
    }
    let (known, unknown): (Vec<_>, Vec<_>) =
        reported.into_iter().partition(|version| there.contains(version));
    let mut cache = api.versions.lock().unwrap_or_else(PoisonError::into_inner);
    cache.extend(known.into_iter().map(|version| (batch.model.clone(), version.clone())));
    Ok(unknown.into_iter().cloned().collect())
}

/// Evidence of a model nobody knows is a misspelt name.
async fn must_be_known(api: &Api, model: &ModelName) -> Result<(), ApiError> {
    if api.models.lock().unwrap_or_else(PoisonError::into_inner).contains(model) {
        return Ok(());
    }
    let catalog = (api.catalog)();
    let in_a_workflow = catalog.workflows().iter().any(|loaded| loaded.workflow.model == *model);
    if !in_a_workflow && !api.engine.store.models().await?.contains(model) {
        return Err(ApiError::not_found(
            format!("there is no model `{model}`"),
            "a model is known once a workflow names it",
        ));
    }
    api.models.lock().unwrap_or_else(PoisonError::into_inner).insert(model.clone());
    Ok(())
}
