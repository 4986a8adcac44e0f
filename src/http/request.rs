//! What was asked, as types. All of it is hostile text.

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use serde::de::DeserializeOwned;

use super::error::ApiError;
use crate::domain::words::steers;

/// A page of a list holds at most so many.
const MOST: u32 = 200;
/// And so many when nobody says.
const USUAL: u32 = 50;
/// A key of the caller's is kept with what it names.
const LONGEST_KEY: usize = 200;

/// The query of a request; unknown and misspelt parameters are refused by the type.
pub(super) struct Asked<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let query: Result<Query<T>, QueryRejection> = Query::try_from_uri(&parts.uri);
        query
            .map(|Query(asked)| Self(asked))
            .map_err(|error| ApiError::invalid(error.body_text(), "see docs/operations.md"))
    }
}

/// A JSON body, of the type a browser cannot send to another site without asking first.
pub(super) struct Given<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Given<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let kind = kind.map(|kind| kind.split(';').next().unwrap_or(kind).trim());
        if !kind.is_some_and(|kind| kind.eq_ignore_ascii_case("application/json")) {
            return Err(ApiError::Unsupported {
                detail: "the body is not said to be JSON",
                hint: "send the header `content-type: application/json`",
            });
        }
        let body = Bytes::from_request(request, state).await.map_err(refused)?;
        let given = serde_json::from_slice(&body);
        given
            .map(Self)
            .map_err(|error| ApiError::invalid(format!("the body is not as it should be: {error}"), ""))
    }
}

fn refused(error: BytesRejection) -> ApiError {
    if error.status() == axum::http::StatusCode::PAYLOAD_TOO_LARGE {
        let detail = format!("the body has more than {} bytes", super::BODY_LIMIT);
        ApiError::TooLarge { detail, hint: "send less; large data belongs into a store" }
    } else {
        ApiError::invalid("the body broke off", "send it again")
    }
}

/// How many items a page holds.
pub(super) fn limit(asked: Option<u32>) -> Result<u32, ApiError> {
    match asked {
        None => Ok(USUAL),
        Some(limit) if (1..=MOST).contains(&limit) => Ok(limit),
        Some(limit) => Err(ApiError::invalid(format!("`limit={limit}` is not between 1 and {MOST}"), "")),
    }
}

/// The caller's key, given by `Idempotency-Key` or as `other`.
pub(super) fn key(
    headers: &HeaderMap,
    what: &str,
    other: Option<String>,
) -> Result<Option<String>, ApiError> {
    let header = match headers.get("idempotency-key") {
        None => None,
        Some(value) => {
            let value = value.to_str();
            Some(value.map_err(|_| ApiError::invalid("`Idempotency-Key` is not ASCII text", ""))?.to_owned())
        }
    };
    let key = match (header, other) {
        (Some(header), Some(other)) if header != other => {
            return Err(ApiError::invalid(
                format!("`Idempotency-Key` and {what} name different keys"),
                "give one of them",
            ));
        }
        (header, other) => header.or(other),
    };
    if key
        .as_ref()
        .is_some_and(|key| key.is_empty() || key.len() > LONGEST_KEY || key.contains(char::is_control))
    {
        return Err(ApiError::invalid(
            format!("a key has 1 to {LONGEST_KEY} bytes and no control characters"),
            "",
        ));
    }
    Ok(key)
}

/// `text` as a name or id.
pub(super) fn parsed<T>(text: &str) -> Result<T, ApiError>
where
    T: std::str::FromStr<Err = crate::domain::id::InvalidName>,
{
    text.parse().map_err(|error: crate::domain::id::InvalidName| {
        // What was given is not repeated at any length.
        let text: String = error.text.chars().filter(|&c| !steers(c)).take(100).collect();
        ApiError::invalid(format!("`{text}` is not {}: {}", error.what, error.rule), "")
    })
}

/// A page of a list, newest first.
#[derive(serde::Serialize)]
pub(super) struct Page<T> {
    pub(super) items: Vec<T>,
    /// The `before` of the next page.
    pub(super) next: Option<String>,
}

impl<T> Page<T> {
    /// The first `limit` of `items`, of which one more was read.
    pub(super) fn of(mut items: Vec<T>, limit: u32, id: impl Fn(&T) -> String) -> Self {
        let limit = limit as usize;
        let more = items.len() > limit;
        items.truncate(limit);
        let next = if more { items.last().map(id) } else { None };
        Self { items, next }
    }
}
