//! The one place that makes HTTP clients, and says what an answer means.

use std::sync::Once;
use std::time::Duration;

use reqwest::header::{DATE, HeaderMap, RETRY_AFTER};
use reqwest::redirect::{Attempt, Policy};
use reqwest::{Client, RequestBuilder, Response, StatusCode};

use crate::adapter::AdapterError;
pub use crate::domain::words::excerpt;
use crate::secret::Secrets;

/// What refit calls itself; some services refuse a client without a name.
pub const USER_AGENT: &str = concat!("refit/", env!("CARGO_PKG_VERSION"));

/// Waited for a connection.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Waited for the next bytes of an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// The same, with a part of 8 MiB to be sent over a slow line before.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(300);
/// Of an error's body, at most this much is read.
const LONGEST_ERROR_BODY: usize = 64 * 1024;

/// A service that asks for a longer rest is asked again after this one: what it said may be a mistake, and nothing
/// waits for it unseen.
pub const LONGEST_REST: Duration = Duration::from_secs(3_600);

/// Redirects in a row that are followed.
const MOST_REDIRECTS: usize = 10;

/// An answer that is read whole has at most this many bytes.
const LONGEST_ANSWER: usize = 1024 * 1024;

/// Makes ring the TLS library of this process. Everything that speaks TLS needs it first.
pub fn install_crypto() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // An error means that somebody installed one before: then that one serves.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

/// A client with refit's name and timeouts; one is made and then cloned.
pub fn build() -> Result<Client, AdapterError> {
    with_patience(READ_TIMEOUT, same_origin())
}

/// A client for requests that carry nothing of ours, neither headers nor a body: they go where they are sent, as those
/// of files that a host keeps elsewhere are.
pub fn build_for_public_files() -> Result<Client, AdapterError> {
    with_patience(READ_TIMEOUT, Policy::limited(MOST_REDIRECTS))
}

/// A client for requests with megabytes of body: an answer can only begin when all of it is sent.
pub fn build_for_transfers() -> Result<Client, AdapterError> {
    with_patience(TRANSFER_TIMEOUT, same_origin())
}

fn same_origin() -> Policy {
    Policy::custom(|attempt| match refused_redirect(&attempt) {
        Some(why) => attempt.error(why),
        None => attempt.follow(),
    })
}

fn with_patience(read_timeout: Duration, redirects: Policy) -> Result<Client, AdapterError> {
    install_crypto();
    Client::builder()
        .user_agent(USER_AGENT)
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(read_timeout)
        .redirect(redirects)
        .referer(false)
        .build()
        .map_err(|error| AdapterError::Rejected {
            service: "the HTTP client".to_owned(),
            action: "start".to_owned(),
            cause: causes(&error),
        })
}

/// Why a redirect is not followed. Requests carry secrets in headers of any name, in addresses and in bodies, so
/// one goes where its settings say and nowhere else: the library takes back only the headers it knows.
fn refused_redirect(attempt: &Attempt<'_>) -> Option<&'static str> {
    let from = attempt.previous().last()?;
    if attempt.url().origin() != from.origin() {
        return Some("it redirects to another scheme, host or port, which is not followed: set that address");
    }
    (attempt.previous().len() > MOST_REDIRECTS).then_some("it redirects too often")
}

/// Sends `request` and returns the answer if its status says success.
///
/// `secrets` are masked in what an error shows of the answer's body; the address is never shown.
pub async fn send(
    service: &str,
    action: &str,
    request: RequestBuilder,
    secrets: &Secrets,
) -> Result<Response, AdapterError> {
    let response = request.send().await.map_err(|error| unreachable_service(service, action, error))?;
    if response.status().is_success() {
        return Ok(response);
    }
    let (status, headers) = (response.status(), response.headers().clone());
    let body = head_of(response).await;
    Err(refusal(service, action, status, &headers, &secrets.mask(&body)))
}

/// An answer, whole.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, as text; foreign, and secrets are not masked yet.
    pub body: String,
}

/// Sends `request` and returns the answer with its whole body, whatever its status says. For services whose
/// answers are small, and say in the body what is wrong. Of a refusal's body only the beginning is read.
pub async fn exchange(service: &str, action: &str, request: RequestBuilder) -> Result<Answer, AdapterError> {
    exchange_within(service, action, request, LONGEST_ANSWER).await
}

/// The same for services whose answers have up to `longest` bytes.
pub async fn exchange_within(
    service: &str,
    action: &str,
    request: RequestBuilder,
    longest: usize,
) -> Result<Answer, AdapterError> {
    let unreachable = |error| unreachable_service(service, action, error);
    let mut response = request.send().await.map_err(unreachable)?;
    let (status, headers) = (response.status(), response.headers().clone());
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
        body.extend_from_slice(&chunk);
        if !status.is_success() && body.len() >= LONGEST_ERROR_BODY {
            break;
        }
        if body.len() > longest {
            return Err(AdapterError::Rejected {
                service: service.to_owned(),
                action: action.to_owned(),
                cause: format!("{status}: its answer is longer than {longest} bytes"),
            });
        }
    }
    Ok(Answer { status, headers, body: String::from_utf8_lossy(&body).into_owned() })
}

/// What an answer that is not a success means: 408, 429 and 5xx may be tried
/// again, 401 and 403 are a matter of permissions, any other is refit's or the settings' mistake.
pub fn refusal(
    service: &str,
    action: &str,
    status: StatusCode,
    headers: &HeaderMap,
    body: &str,
) -> AdapterError {
    let text = excerpt(body);
    let cause = if text.is_empty() { status.to_string() } else { format!("{status}: {text}") };
    let (service, action) = (service.to_owned(), action.to_owned());
    match status {
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
            AdapterError::Unavailable { service, cause, retry_after: retry_after(headers) }
        }
        _ if status.is_server_error() => {
            AdapterError::Unavailable { service, cause, retry_after: retry_after(headers) }
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => AdapterError::Denied { service, action, cause },
        _ => AdapterError::Rejected { service, action, cause },
    }
}

/// What a request that got no answer means.
pub fn unreachable_service(service: &str, action: &str, error: reqwest::Error) -> AdapterError {
    // An address may be a secret itself (webhooks).
    let error = error.without_url();
    let (service, cause) = (service.to_owned(), causes(&error));
    if error.is_builder() || error.is_redirect() {
        AdapterError::Rejected { service, action: action.to_owned(), cause }
    } else {
        AdapterError::Unavailable { service, cause, retry_after: None }
    }
}

/// What the library says above the cause, of every request that was not answered.
const LAYERS: [&str; 3] = ["error sending request", "client error (Connect)", "client error (SendRequest)"];

/// An error with all that lies under it, in one line; without what says nothing but that there is something under it.
fn causes(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    let texts: Vec<String> = chain.map(ToString::to_string).collect();
    let last = texts.len().saturating_sub(1);
    let mut said = String::new();
    for (place, text) in texts.iter().enumerate() {
        if said.contains(text.as_str()) || (place < last && LAYERS.contains(&text.as_str())) {
            continue;
        }
        if !said.is_empty() {
            said.push_str(": ");
        }
        said.push_str(text);
    }
    said
}

/// `Retry-After`: seconds, or a date, which counts from the answer's own `Date`; `LONGEST_REST` at most.
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse::<f64>() {
        let is_time = seconds >= 0.0;
        return is_time.then(|| Duration::from_secs_f64(seconds.min(LONGEST_REST.as_secs_f64())));
    }
    let until = chrono::DateTime::parse_from_rfc2822(value).ok()?;
    let now = chrono::DateTime::parse_from_rfc2822(headers.get(DATE)?.to_str().ok()?).ok()?;
    Some((until - now).to_std().unwrap_or_default().min(LONGEST_REST))
}

/// The beginning of a body, as text.
pub async fn head_of(mut response: Response) -> String {
    let mut head = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        head.extend_from_slice(&chunk);
        if head.len() >= LONGEST_ERROR_BODY {
            break;
        }
    }
    String::from_utf8_lossy(&head).into_owned()
}

#[cfg(test)]
mod tests {
    use wiremock::matchers::{method, path};
    use wiremock::{Mock, MockServer, ResponseTemplate};

    use super::*;

    async fn answer(template: ResponseTemplate) -> Result<Response, AdapterError> {
        let server = MockServer::start().await;
        Mock::given(method("GET")).respond_with(template).mount(&server).await;
        let secret = [("TOKEN".parse().expect("a name"), crate::secret::Secret::new("hunter22"))];
        let secrets = Secrets::fixed(secret.into());
        secrets.get(&"TOKEN".parse().expect("a name")).expect("set");
        send("thing", "look", build().expect("a client").get(server.uri()), &secrets).await
    }

    #[tokio::test]
    async fn a_busy_service_says_when_to_come_back() {
        for (status, header, seconds) in [
            (429, "7", Some(7)),
            (503, "Wed, 21 Oct 2026 07:28:30 GMT", Some(30)),
            (408, "Wed, 21 Oct 2026 07:20:00 GMT", Some(0)),
            (500, "soon", None),
            (502, "-4", None),
            (503, "nan", None),
            (429, "86400", Some(3_600)),
            (429, "18446744073709551615", Some(3_600)),
            (429, "1e300", Some(3_600)),
            (429, "Fri, 31 Dec 9999 23:59:59 GMT", Some(3_600)),
        ] {
            let template = ResponseTemplate::new(status)
                .insert_header("Retry-After", header)
                .insert_header("Date", "Wed, 21 Oct 2026 07:28:00 GMT");
            match answer(template).await {
                Err(AdapterError::Unavailable { retry_after, .. }) => {
                    assert_eq!(retry_after, seconds.map(Duration::from_secs), "{header}");
                }
                other => panic!("{status}: {other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn a_refusal_shows_what_was_said_but_no_secret() {
        let body = format!("no\r\n\tright \x1b[31mfor hunter22 {}", "x".repeat(10_000));
        let error = answer(ResponseTemplate::new(403).set_body_string(body)).await.expect_err("refused");
        let text = error.to_string();
        assert!(text.starts_with("thing refused to look: 403 Forbidden: no right [31mfor *** xxx"), "{text}");
        assert!(text.len() < 400 && !text.contains("hunter22") && !text.contains('\u{1b}'));
        let error = answer(ResponseTemplate::new(404)).await.expect_err("refused");
        assert_eq!(error.to_string(), "thing could not look: 404 Not Found");
    }

    #[tokio::test]
    async fn an_address_that_cannot_be_reached_is_not_shown() {
        let request = build().expect("a client").get("http://127.0.0.1:1/services/T0/secret");
        let error = send("thing", "look", request, &Secrets::default()).await.expect_err("nobody there");
        assert!(error.is_transient());
        assert!(!error.to_string().contains("secret"), "{error}");
    }

    #[tokio::test]
    async fn a_redirect_takes_no_secret_to_another_host() {
        let (server, other) = (MockServer::start().await, MockServer::start().await);
        for (at, to) in [("/away", format!("{}/taken", other.uri())), ("/near", "/here".to_owned())] {
            Mock::given(path(at))
                .respond_with(ResponseTemplate::new(307).insert_header("Location", to))
                .mount(&server)
                .await;
        }
        Mock::given(path("/round"))
            .respond_with(ResponseTemplate::new(302).insert_header("Location", "/round"))
            .mount(&server)
            .await;
        Mock::given(path("/here")).respond_with(ResponseTemplate::new(200)).mount(&server).await;
        let ask = async |at: &str| {
            let request = build().expect("a client").get(format!("{}{at}?key=hunter22", server.uri()));
            send("thing", "look", request.header("X-Api-Key", "hunter22"), &Secrets::default()).await
        };
        let refused = ask("/away").await.expect_err("another host").to_string();
        assert!(refused.contains("another scheme, host or port"), "{refused}");
        assert!(!refused.contains("hunter22") && !refused.contains(&other.uri()), "{refused}");
        assert_eq!(other.received_requests().await.map(|seen| seen.len()), Some(0));
        let round = ask("/round").await.expect_err("it goes round");
        assert!(!round.is_transient() && round.to_string().contains("too often"), "{round}");

        ask("/near").await.expect("the same host");
        let seen = server.received_requests().await.expect("recorded");
        let last = seen.last().expect("a request");
        assert_eq!(last.headers.get("X-Api-Key").and_then(|key| key.to_str().ok()), Some("hunter22"));
        assert!(last.headers.get("Referer").is_none(), "an address may have a secret in its query");
    }

    #[tokio::test]
    async fn refit_says_its_name() {
        let server = MockServer::start().await;
        Mock::given(wiremock::matchers::header("User-Agent", USER_AGENT))
            .respond_with(ResponseTemplate::new(200))
            .mount(&server)
            .await;
        let request = build().expect("a client").get(server.uri());
        send("thing", "look", request, &Secrets::default()).await.expect("welcome");
    }
}
