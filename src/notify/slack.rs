//! `kind = "slack"`: a Slack incoming webhook. Its address is the secret.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use reqwest::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::pace::Pace;
use crate::adapter::{Adapter, BuildError, Deps, Message, NotSent, Notifier, options_of};
use crate::domain::id::SecretName;
use crate::http_client;
use crate::secret::{Secret, Secrets};

/// `kind = "slack"`.
pub const ADAPTER: Adapter<Arc<dyn Notifier>> = Adapter { kind: "slack", build };

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// The name of the secret that holds the webhook's address.
    url: SecretName,
}

fn build(options: Value, deps: &Deps) -> Result<Arc<dyn Notifier>, BuildError> {
    let Options { url } = options_of(ADAPTER.kind, options)?;
    let secret = deps.secrets.get(&url)?;
    let web = url::Url::parse(secret.reveal()).is_ok_and(|url| matches!(url.scheme(), "http" | "https"));
    if !web {
        let problem = format!("secret `{url}` is not the address of a webhook");
        return Err(BuildError::Options { kind: ADAPTER.kind, problem });
    }
    Ok(Arc::new(Slack {
        url: secret,
        http: deps.http.clone(),
        secrets: deps.secrets.clone(),
        pace: Pace::in_bursts(EVERY, AT_ONCE),
    }))
}

struct Slack {
    url: Secret,
    http: reqwest::Client,
    secrets: Secrets,
    pace: Pace,
}

const SERVICE: &str = "Slack";
const ACTION: &str = "post a message";
/// A webhook takes about one message a second.
const EVERY: Duration = Duration::from_secs(1);
/// And so many more at once after a rest: Slack lets short bursts through.
const AT_ONCE: u32 = 9;
/// How long to wait when Slack asks for it without saying how long.
const REST: Duration = Duration::from_secs(30);
/// Shown where blocks cannot be: in notifications, to screen readers.
const LONGEST_TEXT: usize = 3_000;

#[async_trait]
impl Notifier for Slack {
    async fn send(&self, message: &Message) -> Result<(), NotSent> {
        let escape = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let text: String =
            format!("{}\n{}", message.subject, message.text).chars().take(LONGEST_TEXT).collect();
        let mut body = json!({"text": escape(text.trim_end()), "unfurl_links": false});
        if let Some(blocks) = &message.blocks {
            body["text"] = json!(escape(&message.subject));
            body["blocks"] = blocks.clone();
        }
        self.pace.turn().await.map_err(no_turn)?;
        let request = self.http.post(self.url.reveal()).json(&body);
        let answer = http_client::exchange(SERVICE, ACTION, request).await?;
        if answer.status == StatusCode::TOO_MANY_REQUESTS {
            let rest = http_client::retry_after(&answer.headers).unwrap_or(REST);
            self.pace.pause(rest);
            return Err(no_turn(rest));
        }
        if answer.status.is_success() && answer.body.trim() == "ok" {
            return Ok(());
        }
        // A success that says anything else is a page of some proxy, or an address that is no webhook.
        let body = self.secrets.mask(&answer.body);
        Err(http_client::refusal(SERVICE, ACTION, answer.status, &answer.headers, &body).into())
    }
}

fn no_turn(wait: Duration) -> NotSent {
    NotSent::NoTurn { service: SERVICE, wait }
}
