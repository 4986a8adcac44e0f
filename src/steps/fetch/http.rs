//! Rows of a URL.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{CONTENT_LENGTH, HeaderMap, RETRY_AFTER};
use tokio::time::timeout;

use super::{PATIENCE, Sink};
use crate::adapter::AdapterError;
use crate::domain::Timestamp;
use crate::domain::expr::Template;
use crate::http_client::build_for_public_files;
use crate::steps::context::{StepContext, StepError};

/// Bytes of a body, as they come over the wire.
const LIMIT: u64 = 16 * 1024 * 1024 * 1024;

pub(super) async fn send(
    url: &Template,
    headers: &BTreeMap<String, Template>,
    ctx: &StepContext<'_>,
    sink: &Sink,
) -> Result<(), StepError> {
    let address = ctx.render(url)?;
    let shown = shown(&address);
    let client = if headers.is_empty() { build_for_public_files()? } else { ctx.services.http.clone() };
    let mut request = client.get(&address);
    for (name, value) in headers {
        request = request.header(name, ctx.render(value)?);
    }
    let unavailable =
        |cause: String| AdapterError::Unavailable { service: shown.clone(), cause, retry_after: None };
    let response = timeout(PATIENCE, request.send())
        .await
        .map_err(|_| unavailable(format!("no answer within {PATIENCE:?}")))?
        .map_err(|error| of_reqwest(&shown, "answer", error))?;
    let status = response.status();
    if !status.is_success() {
        return Err(refused(&shown, status, response.headers(), ctx.clock.now()).into());
    }
    if status == StatusCode::PARTIAL_CONTENT {
        // Nothing less than all of it was asked for.
        let cause = format!("it answered {status} where the whole file was asked for");
        return Err(AdapterError::Rejected { service: shown, action: "answer".to_owned(), cause }.into());
    }
    let announced = response
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok())
        .and_then(|length| length.parse::<u64>().ok());
    let mut response = response;
    let mut received = 0;
    loop {
        let chunk = timeout(PATIENCE, response.chunk())
            .await
            .map_err(|_| unavailable(format!("it stopped sending after {received} bytes")))?
            .map_err(|error| {
                unavailable(format!("its answer was cut after {received} bytes: {}", causes(&error)))
            })?;
        let Some(chunk) = chunk else { break };
        received += chunk.len() as u64;
        if received > LIMIT {
            return Err(StepError::permanent(format!("{shown} sent more than {LIMIT} bytes")));
        }
        if sink.send(chunk).await.is_err() {
            return Ok(());
        }
    }
    match announced {
        Some(announced) if announced != received => {
            Err(unavailable(format!("its answer was cut: {received} of {announced} bytes came")).into())
        }
        Some(_) | None => Ok(()),
    }
}

/// An address without what may be secret in it: user, password, query.
pub(in crate::steps) fn shown(address: &str) -> String {
    match url::Url::parse(address) {
        Ok(url) => {
            let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
            format!("{}://{}{port}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path())
        }
        Err(_) => "the address".to_owned(),
    }
}

/// A request that got no answer.
pub(in crate::steps) fn of_reqwest(shown: &str, action: &str, error: reqwest::Error) -> AdapterError {
    // Its own text shows the whole address.
    let cause = causes(&error);
    if error.is_builder() {
        AdapterError::Rejected { service: shown.to_owned(), action: action.to_owned(), cause }
    } else {
        AdapterError::Unavailable { service: shown.to_owned(), cause, retry_after: None }
    }
}

/// The innermost cause, which says most and shows no address.
fn causes(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    if std::ptr::eq(cause, error as &dyn std::error::Error) || cause.source().is_some() {
        "the request failed".to_owned()
    } else {
        cause.to_string()
    }
}

/// An answer that is no success.
pub(in crate::steps) fn refused(
    shown: &str,
    status: StatusCode,
    headers: &HeaderMap,
    now: Timestamp,
) -> AdapterError {
    let service = shown.to_owned();
    let cause = format!("it answered {status}");
    match status.as_u16() {
        408 | 425 | 429 | 500..=599 => {
            AdapterError::Unavailable { service, cause, retry_after: retry_after(headers, now) }
        }
        401 | 403 => AdapterError::Denied { service, action: "answer".to_owned(), cause },
        _ => AdapterError::Rejected { service, action: "answer".to_owned(), cause },
    }
}

/// `Retry-After`, in seconds or as a date; at most a day.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let at = chrono::DateTime::parse_from_rfc2822(text).ok()?;
            (at.to_utc() - now).to_std().unwrap_or_default()
        }
    };
    Some(wait.min(Duration::from_secs(86_400)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_without_its_secrets() {
        assert_eq!(shown("https://me:pw@example.com:8443/a/b?token=x#y"), "https://example.com:8443/a/b");
        assert_eq!(shown("no address"), "the address");
    }

    #[test]
    fn retry_after_is_read_in_both_forms() {
        let now: Timestamp = "2026-11-21T10:00:00Z".parse().expect("a time");
        let with = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().expect("a header"));
            retry_after(&headers, now)
        };
        assert_eq!(with("90"), Some(Duration::from_secs(90)));
        assert_eq!(with("Sat, 21 Nov 2026 10:01:00 GMT"), Some(Duration::from_secs(60)));
        assert_eq!(with("Sat, 21 Nov 2026 09:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(with("99999999"), Some(Duration::from_secs(86_400)));
        assert_eq!(with("soon"), None);
    }
}
