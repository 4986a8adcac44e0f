//! `kind = "http"`: a host of the team's own, by two requests: one reads the
//! release document, one writes it.
//!
//! Requests are templates in the `${{ }}` of workflows. A value in an address is
//! percent-encoded; a body is a table whose texts are templates, so a value
//! stays a value whatever it holds. Secrets may stand in headers only.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use reqwest::header::{ETAG, HeaderMap, HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH};
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::probe::{Probe, ProbeOptions, percent_encoded, value_at};
use super::span::Span;
use super::succession::{Step, fingerprint, next, understood};
use crate::adapter::{Adapter, AdapterError, BuildError, Deps, Observed, Target, TargetTraits, options_of};
use crate::domain::expr::{ExprError, Scope, Template};
use crate::domain::id::{InstanceId, ModelName, SecretName};
use crate::domain::release::{Release, ReleaseDocument};
use crate::http_client::{excerpt, refusal, unreachable_service};
use crate::secret::Secrets;

/// `kind = "http"`.
pub const ADAPTER: Adapter<Arc<dyn Target>> = Adapter { kind: "http", build };

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    read: RequestOptions,
    apply: RequestOptions,
    /// Where in `read`'s answer the document is; all of it when absent.
    #[serde(default)]
    document: String,
    /// Statuses of `read` that mean that there is no release yet.
    #[serde(default = "not_found")]
    absent: Vec<u16>,
    /// `apply` carries the `ETag` that `read` was answered with.
    #[serde(default)]
    if_match: bool,
    verify: Option<ProbeOptions>,
    /// How long the app may say the old version after a change.
    #[serde(default = "two_minutes")]
    verify_within: Span,
    /// A change is served within seconds.
    instant: bool,
    /// Apps read `valid_until`.
    #[serde(default)]
    expires: bool,
    /// About how long a change takes.
    takes: Option<Span>,
    #[serde(default = "a_minute")]
    timeout: Span,
    /// A document of another refit database is replaced, once seen.
    #[serde(default)]
    take_over: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestOptions {
    method: Option<String>,
    url: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    body: Option<Value>,
    /// Statuses that mean that it was done; any 2xx when absent.
    #[serde(default)]
    expect: Vec<u16>,
}

fn not_found() -> Vec<u16> {
    vec![404]
}

fn two_minutes() -> Span {
    Span::seconds(120)
}

fn a_minute() -> Span {
    Span::seconds(60)
}

/// No release document is longer.
const LONGEST: usize = 256 * 1024;
/// What may stand in `${{ }}`.
const ROOTS: [&str; 7] = ["model", "generation", "instance", "version", "canary", "percent", "release"];
/// Between two looks at what the app says.
const VERIFY_POLL: Duration = Duration::from_secs(2);
const PROBLEM_SECRETS: &str = "secrets may stand in `headers` only";

fn build(options: Value, deps: &Deps) -> Result<Arc<dyn Target>, BuildError> {
    let options: Options = options_of(ADAPTER.kind, options)?;
    let takes =
        options.takes.map_or(Duration::from_secs(if options.instant { 5 } else { 300 }), |span| span.0);
    let verify = options.verify.map(|verify| verify.build(ADAPTER.kind, "the app", deps)).transpose()?;
    if verify.as_ref().is_some_and(|verify| !verify.says_version()) {
        return Err(problem("`verify` needs `path`: where in its answer the app says the version"));
    }
    Ok(Arc::new(Http {
        read: options.read.compile(Method::GET, deps)?,
        apply: options.apply.compile(Method::PUT, deps)?,
        document: options.document,
        absent: options.absent,
        if_match: options.if_match,
        verify,
        verify_within: options.verify_within.0,
        // It is told the model with each release; where it puts them is its own affair.
        traits: TargetTraits { instant: options.instant, expires: options.expires, takes, one_model: false },
        timeout: options.timeout.0,
        take_over: options.take_over,
        http: deps.http.clone(),
        secrets: deps.secrets.clone(),
    }))
}

fn problem(problem: impl Into<String>) -> BuildError {
    BuildError::Options { kind: ADAPTER.kind, problem: problem.into() }
}

/// A request with its templates.
struct Request {
    method: Method,
    url: Template,
    headers: Vec<(HeaderName, Template)>,
    /// Secrets of `headers`, by name.
    secrets: Value,
    body: Option<Body>,
    expect: Vec<u16>,
}

/// A JSON value whose texts are templates.
enum Body {
    Text(Template),
    List(Vec<Body>),
    Map(Vec<(String, Body)>),
    Fixed(Value),
}

impl RequestOptions {
    fn compile(self, method: Method, deps: &Deps) -> Result<Request, BuildError> {
        let method = match &self.method {
            Some(name) => Method::from_bytes(name.as_bytes())
                .map_err(|_| problem(format!("`{}` is not a method", excerpt(name))))?,
            None => method,
        };
        let url = template(&self.url)?;
        if !url.secret_names().is_empty() {
            return Err(problem(PROBLEM_SECRETS));
        }
        let (mut headers, mut names) = (vec![], BTreeSet::new());
        for (name, value) in &self.headers {
            let header = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| problem(format!("`{}` is not a header", excerpt(name))))?;
            let value = template(value)?;
            names.extend(value.secret_names());
            headers.push((header, value));
        }
        let mut secrets = serde_json::Map::new();
        for name in names {
            let secret: SecretName =
                name.parse().map_err(|_| problem(format!("`{name}` names no secret")))?;
            secrets.insert(name, deps.secrets.get(&secret)?.reveal().into());
        }
        let body = self.body.map(Body::compile).transpose()?;
        Ok(Request { method, url, headers, secrets: Value::Object(secrets), body, expect: self.expect })
    }
}

impl Request {
    /// What somebody has to do whom the host does not let in.
    fn way_in(&self) -> String {
        let names: Vec<String> = self
            .secrets
            .as_object()
            .into_iter()
            .flat_map(|it| it.keys())
            .map(|it| format!("`{it}`"))
            .collect();
        match names.as_slice() {
            [] => " (its `headers` carry no secret: does the host ask for one?)".to_owned(),
            names => {
                format!(
                    " (set a value that is valid there, and may do this, in the secret {})",
                    names.join(" or ")
                )
            }
        }
    }
}

fn template(text: &str) -> Result<Template, BuildError> {
    let template = Template::compile(text).map_err(|error| problem(error.to_string()))?;
    for path in template.references() {
        let known =
            path.segments().first().is_some_and(|root| root == "secrets" || ROOTS.contains(&root.as_str()));
        if !known {
            return Err(problem(format!("there is no `{path}`; there are {}", ROOTS.join(", "))));
        }
    }
    Ok(template)
}

impl Body {
    fn compile(value: Value) -> Result<Self, BuildError> {
        Ok(match value {
            Value::String(text) => {
                let text = template(&text)?;
                if !text.secret_names().is_empty() {
                    return Err(problem(PROBLEM_SECRETS));
                }
                Body::Text(text)
            }
            Value::Array(items) => {
                Body::List(items.into_iter().map(Body::compile).collect::<Result<_, _>>()?)
            }
            Value::Object(map) => Body::Map(
                map.into_iter()
                    .map(|(key, value)| Ok((key, Body::compile(value)?)))
                    .collect::<Result<_, BuildError>>()?,
            ),
            fixed @ (Value::Null | Value::Bool(_) | Value::Number(_)) => Body::Fixed(fixed),
        })
    }

    fn render(&self, scope: &Scope) -> Result<Value, ExprError> {
        match self {
            Body::Text(template) => template.value(scope),
            Body::List(items) => items.iter().map(|item| item.render(scope)).collect(),
            Body::Map(map) => {
                map.iter().map(|(key, value)| Ok((key.clone(), value.render(scope)?))).collect()
            }
            Body::Fixed(value) => Ok(value.clone()),
        }
    }
}

struct Http {
    read: Request,
    apply: Request,
    document: String,
    absent: Vec<u16>,
    if_match: bool,
    verify: Option<Probe>,
    verify_within: Duration,
    traits: TargetTraits,
    timeout: Duration,
    take_over: bool,
    http: reqwest::Client,
    secrets: Secrets,
}

/// An answer with its body.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

#[async_trait]
impl Target for Http {
    fn traits(&self) -> TargetTraits {
        self.traits
    }

    async fn read(&self, model: &ModelName) -> Result<Option<Observed>, AdapterError> {
        let Some((bytes, _)) = self.there(model).await? else { return Ok(None) };
        let document = understood(&self.label(), &bytes)?;
        if &document.model != model {
            let cause = format!("it is a release of `{}`: put `${{{{ model }}}}` into `url`", document.model);
            return Err(self.rejected("read the release", cause));
        }
        Ok(Some(Observed { document, fingerprint: fingerprint(&bytes), attention: None }))
    }

    async fn apply(&self, release: &Release, instance: InstanceId) -> Result<(), AdapterError> {
        let document = release.document(instance);
        let there = self.there(&release.model).await?;
        let bytes = there.as_ref().map(|(bytes, _)| bytes.as_slice());
        if next(&self.label(), self.take_over, bytes, &document)? == Step::Write {
            let mut headers = HeaderMap::new();
            let key = format!("{instance}/{}/{}", release.model, release.generation);
            headers.insert("idempotency-key", header(&key).map_err(|cause| self.rejected("write", cause))?);
            if self.if_match {
                match there.map(|(_, etag)| etag) {
                    None => headers.insert(IF_NONE_MATCH, HeaderValue::from_static("*")),
                    Some(Some(etag)) => headers.insert(IF_MATCH, etag),
                    Some(None) => {
                        let cause = "its answer has no `ETag`, which `if_match` needs".to_owned();
                        return Err(self.rejected("read the release", cause));
                    }
                };
            }
            self.write(&document, headers).await?;
            self.read_back(&document).await?;
        }
        match (&self.verify, &document.champion) {
            (Some(verify), Some(_)) => self.verified(verify, &document).await,
            (None, _) | (_, None) => Ok(()),
        }
    }

    async fn check(&self) -> Result<String, AdapterError> {
        let model: ModelName =
            "refit-doctor".parse().map_err(|_| self.rejected("name a model", String::new()))?;
        let said = match self.there(&model).await? {
            Some(_) => "answers with a release",
            None => "can be read",
        };
        Ok(format!("{} {said}; whether it may be written is seen at the first change", self.label()))
    }
}

impl Http {
    /// The host of `apply`, without what may be secret.
    fn label(&self) -> String {
        let host = url::Url::parse(&self.apply.url.source().replace("${{", "").replace("}}", ""))
            .ok()
            .and_then(|url| url.host_str().map(ToOwned::to_owned));
        host.unwrap_or_else(|| "the host".to_owned())
    }

    fn rejected(&self, action: &str, cause: String) -> AdapterError {
        AdapterError::Rejected {
            service: self.label(),
            action: action.to_owned(),
            cause: self.secrets.mask(&cause),
        }
    }

    async fn send(
        &self,
        action: &str,
        request: &Request,
        scope: Scope,
        extra: HeaderMap,
    ) -> Result<Answer, AdapterError> {
        let failed = |error: ExprError| self.rejected(action, error.to_string());
        let url = request.url.render_escaped(&scope, &percent_encoded).map_err(failed)?;
        let body = request.body.as_ref().map(|body| body.render(&scope)).transpose().map_err(failed)?;
        let scope = scope.with("secrets", request.secrets.clone());
        let mut call = self.http.request(request.method.clone(), url).headers(extra).timeout(self.timeout);
        for (name, value) in &request.headers {
            let value = value.render(&scope).map_err(failed)?;
            call = call.header(name, header(&value).map_err(|cause| self.rejected(action, cause))?);
        }
        if let Some(body) = &body {
            call = call.json(body);
        }
        let unreachable = |error| unreachable_service(&self.label(), action, error);
        let mut response = call.send().await.map_err(unreachable)?;
        let (status, headers) = (response.status(), response.headers().clone());
        let mut body = vec![];
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            body.extend_from_slice(&chunk);
            if body.len() > LONGEST {
                return Err(self.rejected(action, format!("its answer is longer than {LONGEST} bytes")));
            }
        }
        Ok(Answer { status, headers, body })
    }

    fn refused(&self, action: &str, request: &Request, answer: &Answer) -> AdapterError {
        let text = self.secrets.mask(&String::from_utf8_lossy(&answer.body));
        let mut error = refusal(&self.label(), action, answer.status, &answer.headers, &text);
        if let AdapterError::Denied { cause, .. } = &mut error {
            cause.push_str(&request.way_in());
        }
        error
    }

    /// The document's bytes and the answer's ETag.
    async fn there(&self, model: &ModelName) -> Result<Option<(Vec<u8>, Option<HeaderValue>)>, AdapterError> {
        const ACTION: &str = "read the release";
        let scope = Scope::new().with("model", model.as_str().into());
        let answer = self.send(ACTION, &self.read, scope, HeaderMap::new()).await?;
        if self.absent.contains(&answer.status.as_u16()) {
            return Ok(None);
        }
        if !is_expected(&self.read.expect, answer.status) {
            return Err(self.refused(ACTION, &self.read, &answer));
        }
        let etag = answer.headers.get(ETAG).cloned();
        if self.document.is_empty() {
            return Ok(Some((answer.body, etag)));
        }
        let value: Value = serde_json::from_slice(&answer.body)
            .map_err(|error| self.rejected(ACTION, format!("its answer is not JSON: {error}")))?;
        let bytes = match value_at(&value, &self.document) {
            None | Some(Value::Null) => return Ok(None),
            // JSON kept as text.
            Some(Value::String(text)) => text.clone().into_bytes(),
            Some(value) => value.to_string().into_bytes(),
        };
        Ok(Some((bytes, etag)))
    }

    async fn write(&self, document: &ReleaseDocument, headers: HeaderMap) -> Result<(), AdapterError> {
        const ACTION: &str = "write the release";
        let answer = self.send(ACTION, &self.apply, scope(document), headers).await?;
        if is_expected(&self.apply.expect, answer.status) {
            return Ok(());
        }
        if self.if_match && answer.status == StatusCode::PRECONDITION_FAILED {
            return Err(AdapterError::Unavailable {
                service: self.label(),
                cause: "it was written by somebody else at the same moment".to_owned(),
                retry_after: None,
            });
        }
        Err(self.refused(ACTION, &self.apply, &answer))
    }

    async fn read_back(&self, document: &ReleaseDocument) -> Result<(), AdapterError> {
        let there = self.there(&document.model).await?;
        let Some((there, _)) = there else {
            let cause = "it took the release and shows none".to_owned();
            return Err(self.rejected("show the release", cause));
        };
        match next(&self.label(), false, Some(&there), document)? {
            Step::Done => Ok(()),
            Step::Write => Err(AdapterError::Unavailable {
                service: self.label(),
                cause: "it took the release and shows an older one".to_owned(),
                retry_after: None,
            }),
        }
    }

    async fn verified(&self, verify: &Probe, document: &ReleaseDocument) -> Result<(), AdapterError> {
        let Some(champion) = &document.champion else { return Ok(()) };
        let (version, since) = (champion.version.as_str(), Instant::now());
        loop {
            let answer = verify.ask(document.model.as_str(), version, &champion.base_url).await;
            let seen = match answer.and_then(|answer| verify.version_in(&answer)) {
                Ok(says) if says == version => return Ok(()),
                Ok(says) => format!("the app says {}, not {version}", excerpt(&says)),
                Err(error) if error.is_transient() => error.to_string(),
                Err(error) => return Err(error),
            };
            if since.elapsed() >= self.verify_within {
                return Err(AdapterError::Unavailable {
                    service: self.label(),
                    cause: format!("the release is written, but {seen}"),
                    retry_after: None,
                });
            }
            tokio::time::sleep(VERIFY_POLL.min(self.verify_within)).await;
        }
    }
}

/// What templates of `apply` see.
fn scope(document: &ReleaseDocument) -> Scope {
    let version = document.champion.as_ref().map_or("", |served| served.version.as_str());
    let canary = document.canary.as_ref().map_or("", |canary| canary.served.version.as_str());
    let percent = document.canary.as_ref().map_or(0.0, |canary| f64::from(canary.basis_points.0) / 100.0);
    Scope::new()
        .with("model", document.model.as_str().into())
        .with("generation", document.generation.0.into())
        .with("instance", document.instance.to_string().into())
        .with("version", version.into())
        .with("canary", canary.into())
        .with("percent", percent.into())
        .with("release", json!(document))
}

fn is_expected(expected: &[u16], status: StatusCode) -> bool {
    if expected.is_empty() { status.is_success() } else { expected.contains(&status.as_u16()) }
}

/// `text` as a header that no log shows.
fn header(text: &str) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::from_str(text)
        .map_err(|_| "a header cannot have line ends or odd characters".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}
