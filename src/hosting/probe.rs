//! Asking the app itself: `smoke` before a version gets traffic, `verify` after a change.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::adapter::{AdapterError, BuildError, Deps};
use crate::domain::expr::{Scope, Template};
use crate::domain::id::SecretName;
use crate::http_client::{excerpt, send};
use crate::secret::{Secret, Secrets};

/// One answer of an app is waited for this long.
const PATIENCE: Duration = Duration::from_secs(30);
/// No answer to a probe is longer.
const LONGEST: usize = 1024 * 1024;

/// `{ url = "https://app.example/api/model", path = "version" }`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProbeOptions {
    /// The address; `${{ version }}` and `${{ model }}` may stand in it.
    url: String,
    /// Where in the JSON answer the version is: names and numbers with dots between.
    path: Option<String>,
    /// The secret that is sent as bearer token.
    token: Option<SecretName>,
}

/// An address that answers, and perhaps says which version it answers with.
pub(super) struct Probe {
    url: Template,
    path: Option<String>,
    token: Option<Secret>,
    http: reqwest::Client,
    secrets: Secrets,
    service: &'static str,
}

impl ProbeOptions {
    /// The probe, called `service` in messages.
    pub fn build(self, kind: &'static str, service: &'static str, deps: &Deps) -> Result<Probe, BuildError> {
        let problem = |problem: String| BuildError::Options { kind, problem };
        let url = Template::compile(&self.url).map_err(|error| problem(error.to_string()))?;
        if let Some(path) = url.references().iter().find(|path| {
            !matches!(path.segments(), [root] if ["version", "model", "base_url"].contains(&root.as_str()))
        }) {
            return Err(problem(format!("`{path}` cannot stand in an address: only `version`, `model` and `base_url`")));
        }
        Ok(Probe {
            url,
            path: self.path,
            token: self.token.map(|name| deps.secrets.get(&name)).transpose()?,
            http: deps.http.clone(),
            secrets: deps.secrets.clone(),
            service,
        })
    }
}

impl Probe {
    /// Whether it says a version at all.
    pub fn says_version(&self) -> bool {
        self.path.is_some()
    }

    /// The host of its address, if that is the same whatever is asked for.
    pub fn host(&self) -> Option<String> {
        let url = url::Url::parse(self.url.source()).ok()?;
        match url.host()? {
            url::Host::Domain(host) => Some(host.to_owned()),
            url::Host::Ipv4(_) | url::Host::Ipv6(_) => None,
        }
    }

    /// Asks, and returns the whole answer, which must be a success.
    pub async fn ask(&self, model: &str, version: &str, base_url: &str) -> Result<Value, AdapterError> {
        let rejected = |cause: String| AdapterError::Rejected {
            service: self.service.to_owned(),
            action: format!("answer for {version}"),
            cause,
        };
        let scope = Scope::new()
            .with("model", model.into())
            .with("version", version.into())
            .with("base_url", base_url.into());
        let url =
            self.url.render_escaped(&scope, &percent_encoded).map_err(|error| rejected(error.to_string()))?;
        let mut request = self.http.get(url).header("Accept", "application/json").timeout(PATIENCE);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.reveal());
        }
        let mut response =
            send(self.service, &format!("answer for {version}"), request, &self.secrets).await?;
        let mut bytes = vec![];
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| crate::http_client::unreachable_service(self.service, "answer", error))?
        {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > LONGEST {
                return Err(rejected(format!("its answer is longer than {LONGEST} bytes")));
            }
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Ok(serde_json::from_slice(&bytes).unwrap_or(Value::String(text)))
    }

    /// The version that an answer names.
    pub fn version_in(&self, answer: &Value) -> Result<String, AdapterError> {
        let path = self.path.as_deref().unwrap_or_default();
        text_at(answer, path).ok_or_else(|| AdapterError::Rejected {
            service: self.service.to_owned(),
            action: "say which version it serves".to_owned(),
            cause: format!(
                "there is no text at `{path}` in its answer: {}",
                excerpt(&self.secrets.mask(&answer.to_string()))
            ),
        })
    }
}

/// What stands at `path` (names and numbers with dots between; empty for all of it).
pub(super) fn value_at<'v>(value: &'v Value, path: &str) -> Option<&'v Value> {
    path.split('.').filter(|part| !part.is_empty()).try_fold(value, |value, part| match value {
        Value::Object(map) => map.get(part),
        Value::Array(list) => list.get(part.parse::<usize>().ok()?),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    })
}

/// The text or number at `path`.
pub(super) fn text_at(value: &Value, path: &str) -> Option<String> {
    match value_at(value, path)? {
        Value::String(text) => Some(text.trim().to_owned()),
        Value::Number(number) => Some(number.to_string()),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// `text` as one part of an address: nothing in it can begin another part.
pub(super) fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}
