//! `kind = "resend"`: mail through Resend's API, each message once: its id is the `Idempotency-Key`.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use reqwest::StatusCode;
use reqwest::header::HeaderMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::pace::Pace;
use super::service_url;
use crate::adapter::{Adapter, AdapterError, BuildError, Deps, Message, NotSent, Notifier, options_of};
use crate::domain::id::SecretName;
use crate::http_client::{self, Answer};
use crate::secret::{Secret, Secrets};

/// `kind = "resend"`.
pub const ADAPTER: Adapter<Arc<dyn Notifier>> = Adapter { kind: "resend", build };

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// The name of the secret that holds the API key (`re_…`); "sending access" suffices.
    api_key: SecretName,
    /// The sender, `refit <refit@example.com>`, of a domain that Resend has verified.
    from: String,
    /// Where answers go.
    reply_to: Option<String>,
    /// Where the API is.
    base_url: Option<String>,
}

const SERVICE: &str = "Resend";
const ACTION: &str = "send a mail";
const BASE_URL: &str = "https://api.resend.com";
/// A team may send five requests a second, all its programs together: four, for those that come bunched.
const EVERY: Duration = Duration::from_millis(250);
/// One mail has no more recipients.
const MOST_RECIPIENTS: usize = 50;
/// A key has no more characters.
const LONGEST_KEY: usize = 256;
/// Another attempt of the same message is under way: it is over by then.
const AFTER_CONCURRENT: Duration = Duration::from_secs(5);

fn build(options: Value, deps: &Deps) -> Result<Arc<dyn Notifier>, BuildError> {
    let Options { api_key, from, reply_to, base_url } = options_of(ADAPTER.kind, options)?;
    let problem = |problem: String| BuildError::Options { kind: ADAPTER.kind, problem };
    for (key, address) in [("from", Some(&from)), ("reply_to", reply_to.as_ref())] {
        if let Some(address) = address {
            address.parse::<lettre::message::Mailbox>().map_err(|_| {
                problem(format!("`{key}` is not a mail address such as refit <refit@example.com>"))
            })?;
        }
    }
    let base_url = service_url(base_url.as_deref().unwrap_or(BASE_URL)).map_err(problem)?;
    Ok(Arc::new(Resend {
        url: format!("{base_url}/emails"),
        key: deps.secrets.get(&api_key)?,
        from,
        reply_to,
        http: deps.http.clone(),
        secrets: deps.secrets.clone(),
        pace: Pace::new(EVERY),
    }))
}

struct Resend {
    url: String,
    key: Secret,
    from: String,
    reply_to: Option<String>,
    http: reqwest::Client,
    secrets: Secrets,
    pace: Pace,
}

/// A mail. Its fields keep their order: Resend refuses a second body under one key that is not the first, byte for byte.
#[derive(Serialize)]
struct Mail<'a> {
    from: &'a str,
    to: &'a [String],
    subject: &'a str,
    text: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    html: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reply_to: Option<&'a str>,
}

#[async_trait]
impl Notifier for Resend {
    async fn send(&self, message: &Message) -> Result<(), NotSent> {
        let rejected = |cause: String| AdapterError::Rejected {
            service: SERVICE.to_owned(),
            action: ACTION.to_owned(),
            cause,
        };
        match message.to.len() {
            0 => return Err(rejected("the message names no address".to_owned()).into()),
            1..=MOST_RECIPIENTS => {}
            many => {
                return Err(rejected(format!(
                    "{many} addresses are more than the {MOST_RECIPIENTS} a mail may have: name a mailing list"
                ))
                .into());
            }
        }
        let mail = Mail {
            from: &self.from,
            to: &message.to,
            subject: &message.subject,
            text: &message.text,
            html: message.html.as_deref(),
            reply_to: self.reply_to.as_deref(),
        };
        self.pace.turn().await.map_err(no_turn)?;
        let request = self
            .http
            .post(&self.url)
            .bearer_auth(self.key.reveal())
            .header("Idempotency-Key", key_of(&message.id))
            .json(&mail);
        let answer = http_client::exchange(SERVICE, ACTION, request).await?;
        if answer.status == StatusCode::TOO_MANY_REQUESTS || left(&answer.headers) == Some(0) {
            self.pace.pause(rest(&answer.headers));
        }
        meaning(&answer, &self.secrets)
    }
}

fn no_turn(wait: Duration) -> NotSent {
    NotSent::NoTurn { service: SERVICE, wait }
}

/// A message's id as a key: the same on every attempt.
fn key_of(id: &str) -> String {
    let fits = !id.is_empty() && id.len() <= LONGEST_KEY && id.chars().all(|c| c.is_ascii_graphic());
    if fits {
        return id.to_owned();
    }
    let hash = hex::encode(Sha256::digest(id));
    format!("refit/{hash}")
}

/// How many requests are left before the limit resets.
fn left(headers: &HeaderMap) -> Option<u64> {
    headers.get("ratelimit-remaining")?.to_str().ok()?.trim().parse().ok()
}

/// How long to rest: `Retry-After`, else `ratelimit-reset`, else a second; `LONGEST_REST` at most.
fn rest(headers: &HeaderMap) -> Duration {
    let reset =
        || headers.get("ratelimit-reset")?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs);
    let asked = http_client::retry_after(headers).or_else(reset).unwrap_or(Duration::from_secs(1));
    asked.min(http_client::LONGEST_REST)
}

/// An error as Resend writes it.
#[derive(Deserialize)]
struct Refusal {
    name: String,
    #[serde(default)]
    message: String,
}

fn meaning(answer: &Answer, secrets: &Secrets) -> Result<(), NotSent> {
    let unavailable = |cause: String, retry_after| AdapterError::Unavailable {
        service: SERVICE.to_owned(),
        cause,
        retry_after,
    };
    if answer.status.is_success() {
        let taken = serde_json::from_str::<Value>(&answer.body).is_ok_and(|body| body["id"].is_string());
        // Asking again under the same key sends nothing twice.
        return if taken {
            Ok(())
        } else {
            let said = http_client::excerpt(&secrets.mask(&answer.body));
            Err(unavailable(format!("it answered without a mail's id: {said}"), None).into())
        };
    }
    let body = secrets.mask(&answer.body);
    let refusal = serde_json::from_str::<Refusal>(&body).ok();
    let is_quota = refusal.as_ref().is_some_and(|refusal| refusal.name.ends_with("_quota_exceeded"));
    if answer.status == StatusCode::TOO_MANY_REQUESTS && !is_quota {
        return Err(no_turn(rest(&answer.headers)));
    }
    let Some(Refusal { name, message }) = refusal else {
        return Err(http_client::refusal(SERVICE, ACTION, answer.status, &answer.headers, &body).into());
    };
    let code = answer.status.as_u16();
    let said = http_client::excerpt(&format!("{code} {name}: {message}"));
    let denied = |todo: &str| AdapterError::Denied {
        service: SERVICE.to_owned(),
        action: ACTION.to_owned(),
        cause: format!("{said} ({todo})"),
    };
    let rejected = |cause: String| AdapterError::Rejected {
        service: SERVICE.to_owned(),
        action: ACTION.to_owned(),
        cause,
    };
    Err(NotSent::Failed(match name.as_str() {
        "daily_quota_exceeded" | "monthly_quota_exceeded" => {
            denied("the account's quota is used up: raise its plan, or send fewer mails")
        }
        "concurrent_idempotent_requests" => unavailable(said, Some(AFTER_CONCURRENT)),
        "invalid_idempotent_request" => {
            rejected(format!("{said} (a mail with this id and other words was taken before)"))
        }
        "missing_api_key" | "invalid_api_key" => denied("check the secret that `api_key` names"),
        "restricted_api_key" => denied("the key needs \"sending access\" for the domain of `from`"),
        "invalid_from_address" => rejected(format!("{said} (check `from` in refit.toml)")),
        "validation_error" if answer.status == StatusCode::FORBIDDEN => {
            denied("verify the domain of `from` at Resend")
        }
        _ => http_client::refusal(
            SERVICE,
            ACTION,
            answer.status,
            &answer.headers,
            &format!("{name}: {message}"),
        ),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rest_without_an_end_has_one() {
        let headers = |name, value: &str| {
            HeaderMap::from_iter([(
                reqwest::header::HeaderName::from_static(name),
                value.parse().expect("a value"),
            )])
        };
        assert_eq!(rest(&headers("ratelimit-reset", "7")), Duration::from_secs(7));
        for name in ["ratelimit-reset", "retry-after"] {
            assert_eq!(rest(&headers(name, "18446744073709551615")), http_client::LONGEST_REST, "{name}");
        }
    }

    #[test]
    fn a_key_is_the_messages_id_or_a_hash_of_one_that_cannot_be_a_key() {
        assert_eq!(key_of("0199/end/0"), "0199/end/0");
        for id in ["größe", "a b", "x\r\ny", "", &"x".repeat(257)] {
            let key = key_of(id);
            assert!(key.len() <= LONGEST_KEY && key.starts_with("refit/"), "{key}");
            assert_eq!(key, key_of(id));
        }
    }
}
