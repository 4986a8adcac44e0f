//! S3, and what speaks like it (R2, MinIO).
//!
//! Every request's body is signed with its SHA-256, so the server refuses one
//! that was damaged on its way. Parts of an upload that a killed refit left
//! behind are invisible; a lifecycle rule of the bucket removes them.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, RetryConfig};
use serde::Deserialize;
use serde_json::Value;

use crate::adapter::{Adapter, ArtifactStore, BuildError, Deps, PublicBase, options_of};
use crate::domain::id::SecretName;
use crate::http_client::{CONNECT_TIMEOUT, USER_AGENT, install_crypto};
use crate::secret::Secret;

/// `kind = "s3"`.
pub const ADAPTER: Adapter<ArtifactStore> = Adapter { kind: "s3", build };

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    bucket: String,
    /// Path within the bucket, before the model.
    #[serde(default)]
    prefix: String,
    #[serde(default = "default_region")]
    region: String,
    /// For servers other than Amazon's.
    endpoint: Option<url::Url>,
    /// Names of secrets; `AWS_ACCESS_KEY_ID` and so on when absent, and the
    /// machine's own role when those are not set.
    access_key_id: Option<SecretName>,
    secret_access_key: Option<SecretName>,
    session_token: Option<SecretName>,
    /// The address at which apps read the bucket's `prefix`.
    public_url: Option<url::Url>,
    /// The bucket is part of the host name.
    #[serde(default)]
    virtual_hosted: bool,
    /// Files are compressed.
    #[serde(default)]
    gzip: bool,
}

fn default_region() -> String {
    "us-east-1".to_owned()
}

/// One request, a part of 8 MiB over a slow line included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(300);
/// Beyond this the engine's own retries serve.
const RETRIES: RetryConfig = RetryConfig {
    backoff: BackoffConfig {
        init_backoff: Duration::from_millis(100),
        max_backoff: Duration::from_secs(5),
        base: 2.0,
    },
    max_retries: 4,
    retry_timeout: Duration::from_secs(60),
};

fn build(options: Value, deps: &Deps) -> Result<ArtifactStore, BuildError> {
    let options: Options = options_of(ADAPTER.kind, options)?;
    let problem = |problem: String| BuildError::Options { kind: ADAPTER.kind, problem };
    install_crypto();
    let name = reqwest::header::HeaderValue::from_static(USER_AGENT);
    let plain_http = options.endpoint.as_ref().is_some_and(|endpoint| endpoint.scheme() == "http");
    let client = ClientOptions::new()
        .with_user_agent(name)
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_timeout(REQUEST_TIMEOUT)
        .with_allow_http(plain_http);
    // From the environment only when no key is named or set: roles of machines, containers and pods.
    let keys = keys(&options, deps)?;
    let mut builder = if keys.is_some() { AmazonS3Builder::new() } else { AmazonS3Builder::from_env() }
        .with_bucket_name(&options.bucket)
        .with_region(&options.region)
        .with_virtual_hosted_style_request(options.virtual_hosted)
        .with_retry(RETRIES)
        .with_client_options(client);
    if let Some((id, key)) = keys {
        builder = builder.with_access_key_id(id.reveal()).with_secret_access_key(key.reveal());
        let token = optional(options.session_token.as_ref(), "AWS_SESSION_TOKEN", deps)?;
        if let Some(token) = token {
            builder = builder.with_token(token.reveal());
        }
    }
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_endpoint(endpoint.as_str().trim_end_matches('/'));
    }
    let prefix = Path::parse(&options.prefix).map_err(|error| problem(error.to_string()))?;
    let objects = builder.build().map_err(|error| problem(error.to_string()))?;
    Ok(ArtifactStore {
        objects: Arc::new(objects),
        public_base: PublicBase::Stated(public_base(&options, &prefix)),
        label: format!("s3 bucket {}", options.bucket),
        gzip: options.gzip,
        prefix,
    })
}

/// The key's id and the key: both, or none.
fn keys(options: &Options, deps: &Deps) -> Result<Option<(Secret, Secret)>, BuildError> {
    let id = optional(options.access_key_id.as_ref(), "AWS_ACCESS_KEY_ID", deps)?;
    let key = optional(options.secret_access_key.as_ref(), "AWS_SECRET_ACCESS_KEY", deps)?;
    match (id, key) {
        (Some(id), Some(key)) => Ok(Some((id, key))),
        (None, None) => Ok(None),
        (Some(_), None) | (None, Some(_)) => Err(BuildError::Options {
            kind: ADAPTER.kind,
            problem: "one of `access_key_id` and `secret_access_key` is set without the other".to_owned(),
        }),
    }
}

/// The secret that is named, which must be set; else the one called `usual`, if it is set.
fn optional(name: Option<&SecretName>, usual: &str, deps: &Deps) -> Result<Option<Secret>, BuildError> {
    match name {
        Some(name) => Ok(Some(deps.secrets.get(name)?)),
        None => Ok(usual.parse().ok().and_then(|name| deps.secrets.get(&name).ok())),
    }
}

fn public_base(options: &Options, prefix: &Path) -> String {
    let Options { bucket, region, .. } = options;
    let bucket_url = match (&options.public_url, &options.endpoint) {
        (Some(url), _) => return url.as_str().trim_end_matches('/').to_owned(),
        (None, Some(endpoint)) => format!("{}/{bucket}", endpoint.as_str().trim_end_matches('/')),
        (None, None) => format!("https://{bucket}.s3.{region}.amazonaws.com"),
    };
    if prefix.as_ref().is_empty() { bucket_url } else { format!("{bucket_url}/{prefix}") }
}
