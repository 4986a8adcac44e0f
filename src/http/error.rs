//! What a caller reads when something is wrong: the problem and what to do
//! next. The log has the cause.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::evidence::{BatchError, RowError};
use crate::store::StoreError;

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    #[error("{detail}")]
    Invalid { detail: String, hint: String },
    #[error("this needs a token")]
    Unauthorized,
    #[error("the request comes from another site: its `{what}` is not this server's")]
    Foreign { what: &'static str },
    #[error("{detail}")]
    NotFound { detail: String, hint: String },
    #[error("this path does not take that method")]
    Method,
    #[error("{what}")]
    TooSlow { what: &'static str },
    #[error("{detail}")]
    TooLarge { detail: String, hint: &'static str },
    #[error("{detail}")]
    Unsupported { detail: &'static str, hint: &'static str },
    #[error("none of the {} rows makes sense", refused)]
    NoRow { refused: u64, errors: Vec<RowError> },
    #[error("refit cannot reach its database now")]
    Away(String),
    #[error("something is wrong inside refit")]
    Broken(String),
}

/// RFC 9457, with `hint`: what to do next.
#[derive(Serialize)]
struct Problem<'a> {
    title: &'a str,
    status: u16,
    detail: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    hint: &'a str,
    #[serde(skip_serializing_if = "<[RowError]>::is_empty")]
    errors: &'a [RowError],
}

impl ApiError {
    pub(super) fn invalid(detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Invalid { detail: detail.into(), hint: hint.into() }
    }

    pub(super) fn not_found(detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::NotFound { detail: detail.into(), hint: hint.into() }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Invalid { .. } => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Foreign { .. } => StatusCode::FORBIDDEN,
            Self::NotFound { .. } => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooSlow { .. } | Self::Away(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Unsupported { .. } => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::NoRow { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Broken(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn hint(&self) -> &str {
        match self {
            Self::Invalid { hint, .. } | Self::NotFound { hint, .. } => hint,
            Self::Unauthorized => "send `Authorization: Bearer TOKEN` with the value of REFIT_TOKEN",
            Self::Foreign { .. } => "ask by `localhost`, or set `[server] public_url` in refit.toml",
            Self::Method => "the answer's `allow` header has the methods it takes",
            Self::TooSlow { .. } | Self::Away(_) => "try again",
            Self::TooLarge { hint, .. } | Self::Unsupported { hint, .. } => hint,
            Self::NoRow { .. } => "correct the rows and send them again; nothing was kept",
            Self::Broken(_) => "look for the request's id (header `x-request-id`) in refit's log",
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Away(cause) => Self::Away(cause),
            StoreError::Unusable { .. } | StoreError::Fenced | StoreError::Broken(_) => {
                Self::Broken(error.to_string())
            }
        }
    }
}

impl From<BatchError> for ApiError {
    fn from(error: BatchError) -> Self {
        let detail = error.to_string();
        match error {
            BatchError::BrokeOff(_) => Self::invalid(detail, "send it again; nothing was kept"),
            BatchError::TooLarge { .. } => {
                Self::TooLarge { detail, hint: "nothing was kept; each part is a batch of its own" }
            }
            BatchError::BadId => Self::invalid(detail, ""),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status();
        match &self {
            Self::Broken(cause) => tracing::error!(cause, "A request failed: {cause}"),
            Self::Away(cause) => tracing::warn!(cause, "A request failed, the database is away: {cause}"),
            _ => {}
        }
        let detail = self.to_string();
        let problem = Problem {
            title: status.canonical_reason().unwrap_or_default(),
            status: status.as_u16(),
            detail: &detail,
            hint: self.hint(),
            errors: if let Self::NoRow { errors, .. } = &self { errors } else { &[] },
        };
        let mut response = (status, axum::Json(problem)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
