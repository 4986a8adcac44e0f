//! `/v1/models/{model}/release`: the document an app reads.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::Api;
use super::error::ApiError;
use super::request::{Asked, parsed};
use crate::domain::id::{ModelName, TargetName};
use crate::domain::release::Release;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    target: Option<String>,
}

/// The release document, with an `ETag` by which an app asks whether it changed.
pub(super) async fn release(
    State(api): State<Arc<Api>>,
    Path(model): Path<String>,
    Asked(which): Asked<Which>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let model: ModelName = parsed(&model)?;
    let target: Option<TargetName> = which.target.as_deref().map(parsed).transpose()?;
    let Some(release) = find(&api, &model, target.as_ref()).await? else {
        let place = target.map(|target| format!(" on `{target}`")).unwrap_or_default();
        return Err(ApiError::not_found(
            format!("`{model}` has no release{place}"),
            "it has one after its first canary, promotion or `refit adopt`",
        ));
    };
    let document = serde_json::to_vec(&release.document(api.engine.store.instance()));
    let document = document.map_err(|error| ApiError::Broken(error.to_string()))?;
    Ok(answer(document, &headers))
}

/// The release of a model that is meant: the only one, unless its target is named.
pub(super) async fn find(
    api: &Api,
    model: &ModelName,
    target: Option<&TargetName>,
) -> Result<Option<Release>, ApiError> {
    match target {
        Some(target) => Ok(api.engine.store.release(model, target).await?),
        None => only(api.engine.store.releases(Some(model)).await?),
    }
}

fn only(mut releases: Vec<Release>) -> Result<Option<Release>, ApiError> {
    if releases.len() > 1 {
        let targets: Vec<String> = releases.iter().map(|release| format!("`{}`", release.target)).collect();
        return Err(ApiError::invalid(
            format!("the model has releases on {}", targets.join(", ")),
            "name one by `?target=`",
        ));
    }
    Ok(releases.pop())
}

fn answer(document: Vec<u8>, asked: &HeaderMap) -> Response {
    let tag = entity_tag(&document);
    let (status, body) = if is_known(asked, &tag) {
        (StatusCode::NOT_MODIFIED, Body::empty())
    } else {
        (StatusCode::OK, Body::from(document))
    };
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    if status == StatusCode::OK {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    // Kept by whoever likes to, and asked for again every time: a rollback counts at once.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(header::ETAG, tag);
    }
    response
}

/// Strong: two documents of one tag have the same bytes.
fn entity_tag(document: &[u8]) -> String {
    format!("\"{}\"", hex::encode(&Sha256::digest(document)[..16]))
}

/// RFC 9110, 13.1.2: weak comparison with any of the tags, or `*`.
fn is_known(asked: &HeaderMap, tag: &str) -> bool {
    let values = asked.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let mut tags = values.flat_map(|value| value.split(',')).map(str::trim);
    tags.any(|known| known == "*" || known.trim_start_matches("W/") == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_that_is_known_is_not_sent_again() {
        let tag = entity_tag(b"{}");
        let asked = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.append(header::IF_NONE_MATCH, value.parse().expect("a value"));
            answer(b"{}".to_vec(), &headers)
        };
        for known in [tag.clone(), format!("W/{tag}"), format!("\"x\", {tag}"), "*".to_owned()] {
            let response = asked(&known);
            assert_eq!(response.status(), StatusCode::NOT_MODIFIED, "{known}");
            assert_eq!(response.headers()[header::ETAG], tag.as_str());
            assert_eq!(response.headers()[header::CACHE_CONTROL], "no-cache");
        }
        for other in ["\"x\"", "", &tag[1..]] {
            assert_eq!(asked(other).status(), StatusCode::OK, "{other}");
        }
        assert_ne!(tag, entity_tag(b"{ }"));
    }
}
