//! `kind = "slack"`: a Slack incoming webhook. Its address is the secret.

use std::sync::Arc;

use async_trait::async_trait;
use reqwest::StatusCode;
use reqwest::header::HeaderMap;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::adapter::{Adapter, AdapterError, BuildError, Deps, Message, Notifier, options_of};
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
    Ok(Arc::new(Slack { url: secret, http: deps.http.clone(), secrets: deps.secrets.clone() }))
}

struct Slack {
    url: Secret,
    http: reqwest::Client,
    secrets: Secrets,
}

/// Shown where blocks cannot be: in notifications, to screen readers.
const LONGEST_TEXT: usize = 3_000;

#[async_trait]
impl Notifier for Slack {
    async fn send(&self, message: &Message) -> Result<(), AdapterError> {
        let escape = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let text: String =
            format!("{}\n{}", message.subject, message.text).chars().take(LONGEST_TEXT).collect();
        let mut body = json!({"text": escape(text.trim_end()), "unfurl_links": false});
        if let Some(blocks) = &message.blocks {
            body["text"] = json!(escape(&message.subject));
            body["blocks"] = blocks.clone();
        }
        let request = self.http.post(self.url.reveal()).json(&body);
        let answer = http_client::send("Slack", "post a message", request, &self.secrets).await?;
        let said = answer
            .text()
            .await
            .map_err(|error| http_client::unreachable_service("Slack", "post a message", error))?;
        if said.trim() == "ok" {
            return Ok(());
        }
        // A page of some proxy, or an address that is no webhook.
        let body = self.secrets.mask(&said);
        Err(http_client::refusal("Slack", "post a message", StatusCode::OK, &HeaderMap::new(), &body))
    }
}
