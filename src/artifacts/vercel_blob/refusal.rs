//! What goes wrong with a request to Vercel Blob, and what that means.

use std::fmt;
use std::time::Duration;

use object_store::Error;
use reqwest::StatusCode;
use serde::Deserialize;

use crate::artifacts::RetryAfter;
use crate::http_client::{excerpt, unreachable_service};

/// The name of the service in messages.
pub(super) const SERVICE: &str = "Vercel Blob";

/// Why a request was not answered as hoped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) kind: Kind,
    /// What was said, and by whom; no secret in it.
    said: String,
    /// When it asks to be tried again.
    pub(super) retry_after: Option<Duration>,
}

/// What a refusal means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// There is no such blob.
    Missing,
    /// There is a blob, and none was to be overwritten.
    Exists,
    /// The blob is not in the state that was asked for.
    Changed,
    /// The token is not accepted.
    Token,
    /// The token's store is gone.
    NoStore,
    /// The store was stopped by Vercel.
    Suspended,
    /// The token may not do this.
    Forbidden,
    /// Too many requests: nothing was done.
    Busy,
    /// The answer was lost or is none: it may have been done, or not.
    Lost,
    /// The request makes no sense to it.
    Refused,
}

impl Kind {
    /// What to do about it, where that is not plain.
    fn advice(self) -> Option<&'static str> {
        match self {
            Kind::Token => Some(
                "make a new read-write token in the store's settings on Vercel, and put it into the secret that `token` names",
            ),
            Kind::NoStore => Some(
                "the token's store was deleted: connect another one on Vercel, and put its token into the secret that `token` names",
            ),
            Kind::Suspended => {
                Some("Vercel suspended the store: its page on Vercel says why (usage limits, payment)")
            }
            Kind::Forbidden => {
                Some("use a read-write token of this store, and the `access` that the store was made with")
            }
            Kind::Missing | Kind::Exists | Kind::Changed | Kind::Busy | Kind::Lost | Kind::Refused => None,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.said)?;
        match self.kind.advice() {
            Some(advice) => write!(f, " ({advice})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Refusal {}

/// An error's body.
#[derive(Deserialize)]
struct Body {
    error: Said,
}

#[derive(Deserialize)]
struct Said {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

impl Refusal {
    /// Of an answer that is not a success; `body` is masked.
    pub(super) fn answered(status: StatusCode, body: &str, retry_after: Option<Duration>) -> Self {
        let said = serde_json::from_str::<Body>(body).map(|body| body.error);
        let (kind, text) = match &said {
            Ok(Said { code, message }) => {
                (kind_of(status, code, message), format!("{}: {}", excerpt(code), excerpt(message)))
            }
            Err(_) => (kind_of(status, "", ""), excerpt(body)),
        };
        let said = if text.is_empty() { status.to_string() } else { format!("{status}, {text}") };
        Self { kind, said, retry_after }
    }

    /// Of a request that got no answer, or half of one.
    pub(super) fn unanswered(error: reqwest::Error) -> Self {
        let error = unreachable_service(SERVICE, "answer", error);
        let kind = if error.is_transient() { Kind::Lost } else { Kind::Refused };
        Self { kind, said: error.to_string(), retry_after: None }
    }

    /// Of an answer that makes no sense.
    pub(super) fn senseless(kind: Kind, said: impl Into<String>) -> Self {
        Self { kind, said: said.into(), retry_after: None }
    }

    /// The same where nothing can be missing: then it may be there later.
    pub(super) fn or_lost(self) -> Self {
        let kind = if self.kind == Kind::Missing { Kind::Lost } else { self.kind };
        Self { kind, ..self }
    }

    /// Whether the same request may be answered better later.
    pub(super) fn is_transient(&self) -> bool {
        match self.kind {
            Kind::Busy | Kind::Lost => true,
            Kind::Missing
            | Kind::Exists
            | Kind::Changed
            | Kind::Token
            | Kind::NoStore
            | Kind::Suspended
            | Kind::Forbidden
            | Kind::Refused => false,
        }
    }

    /// As an object store's error about `path`.
    pub(super) fn about(self, path: &str) -> Error {
        let (kind, path, retry_after) = (self.kind, path.to_owned(), self.retry_after);
        let source: Box<dyn std::error::Error + Send + Sync> = match retry_after {
            Some(wait) => Box::new(RetryAfter { wait, source: Box::new(self) }),
            None => Box::new(self),
        };
        match kind {
            Kind::Missing => Error::NotFound { path, source },
            Kind::Exists => Error::AlreadyExists { path, source },
            Kind::Changed => Error::Precondition { path, source },
            Kind::Token => Error::Unauthenticated { path, source },
            Kind::NoStore | Kind::Suspended | Kind::Forbidden => Error::PermissionDenied { path, source },
            Kind::Busy | Kind::Lost => Error::Generic { store: SERVICE, source },
            Kind::Refused => Error::NotSupported { source },
        }
    }
}

/// What an answer means: its code decides, then its status.
///
/// The codes are those of npm `@vercel/blob` 2.8, which makes some of them out of the message.
fn kind_of(status: StatusCode, code: &str, message: &str) -> Kind {
    match code {
        "not_found" => Kind::Missing,
        "store_not_found" => Kind::NoStore,
        "store_suspended" => Kind::Suspended,
        "precondition_failed" => Kind::Changed,
        "rate_limited" => Kind::Busy,
        "service_unavailable" | "unknown_error" | "internal_server_error" => Kind::Lost,
        "client_token_expired" => Kind::Token,
        "forbidden" if message.contains("expired") => Kind::Token,
        "forbidden" if message.contains("valid token") => Kind::Token,
        "forbidden"
        | "not_allowed"
        | "client_token_not_allowed"
        | "client_token_pathname_mismatch"
        | "oidc_environment_not_allowed" => Kind::Forbidden,
        "bad_request" if message.contains("already exists") => Kind::Exists,
        "bad_request" | "content_type_not_allowed" | "file_too_large" => Kind::Refused,
        _ => match status {
            StatusCode::NOT_FOUND => Kind::Missing,
            StatusCode::CONFLICT if message.contains("already exists") => Kind::Exists,
            StatusCode::PRECONDITION_FAILED => Kind::Changed,
            StatusCode::UNAUTHORIZED => Kind::Token,
            StatusCode::FORBIDDEN => Kind::Forbidden,
            StatusCode::TOO_MANY_REQUESTS => Kind::Busy,
            StatusCode::REQUEST_TIMEOUT => Kind::Lost,
            status if status.is_server_error() => Kind::Lost,
            _ => Kind::Refused,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(status: u16, code: &str, message: &str) -> Error {
        let body = serde_json::json!({"error": {"code": code, "message": message}}).to_string();
        let status = StatusCode::from_u16(status).expect("a status");
        Refusal::answered(status, &body, None).about("m/v/a.json")
    }

    #[test]
    fn every_code_has_a_meaning() {
        assert!(matches!(
            error(404, "not_found", "The requested blob does not exist"),
            Error::NotFound { .. }
        ));
        assert!(matches!(
            error(400, "bad_request", "This blob already exists, use `allowOverwrite: true`"),
            Error::AlreadyExists { .. }
        ));
        assert!(matches!(error(412, "precondition_failed", "ETag mismatch"), Error::Precondition { .. }));
        for code in ["not_allowed", "client_token_not_allowed", "client_token_pathname_mismatch"] {
            assert!(matches!(error(403, code, "no"), Error::PermissionDenied { .. }), "{code}");
        }
        for code in ["store_not_found", "store_suspended", "oidc_environment_not_allowed", "forbidden"] {
            assert!(matches!(error(403, code, "no"), Error::PermissionDenied { .. }), "{code}");
        }
        let expired =
            error(403, "forbidden", "Access denied, please provide a valid token for this resource.");
        assert!(matches!(expired, Error::Unauthenticated { .. }), "{expired}");
        for code in ["rate_limited", "service_unavailable", "unknown_error", "internal_server_error"] {
            assert!(matches!(error(418, code, "later"), Error::Generic { .. }), "{code}");
        }
        for code in ["bad_request", "content_type_not_allowed", "file_too_large"] {
            assert!(matches!(error(400, code, "no"), Error::NotSupported { .. }), "{code}");
        }
    }

    #[test]
    fn an_answer_without_a_known_code_is_judged_by_its_status() {
        for (status, kind) in [
            (404, Kind::Missing),
            (412, Kind::Changed),
            (401, Kind::Token),
            (403, Kind::Forbidden),
            (429, Kind::Busy),
            (408, Kind::Lost),
            (502, Kind::Lost),
            (418, Kind::Refused),
        ] {
            let status = StatusCode::from_u16(status).expect("a status");
            assert_eq!(Refusal::answered(status, "<html>", None).kind, kind);
            assert_eq!(Refusal::answered(status, r#"{"error":{"code":"new"}}"#, None).kind, kind);
        }
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        let text = error(403, "store_suspended", "This store has been suspended.").to_string();
        assert!(text.contains("its page on Vercel says why"), "{text}");
        let text = error(401, "unauthorized", "").to_string();
        assert!(text.contains("make a new read-write token"), "{text}");
    }
}
