//! `kind = "vercel-config"`: the release document in one item of Vercel's
//! Global Config (named Edge Config until July 2026), which apps read within
//! seconds and without a deployment.
//!
//! The API cannot compare and set. So: read, decide, write, read back. Between
//! reading and writing another process may write; the reconciler sees that at
//! its next look and shows the newer release again.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::succession::{Step, fingerprint, next, understood};
use super::vercel::api::{Account, Api, Call, Failure};
use crate::adapter::{Adapter, AdapterError, BuildError, Deps, Observed, Target, TargetTraits, options_of};
use crate::domain::id::{InstanceId, ModelName};
use crate::domain::release::{Release, ReleaseDocument};

/// `kind = "vercel-config"`.
pub const ADAPTER: Adapter<Arc<dyn Target>> = Adapter { kind: "vercel-config", build };

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// The store's id, `ecfg_…`.
    config: String,
    /// The item; `{model}` stands for the model's name.
    #[serde(default = "default_item")]
    item: String,
    /// What the API calls the store: `global-config`, or `edge-config` as it was until July 2026.
    #[serde(default)]
    prefix: Prefix,
    /// A document of another refit database is replaced, once seen.
    #[serde(default)]
    take_over: bool,
    token: crate::domain::id::SecretName,
    team: Option<String>,
    api: Option<url::Url>,
}

fn default_item() -> String {
    "refit-{model}".to_owned()
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Prefix {
    #[default]
    GlobalConfig,
    EdgeConfig,
}

impl Prefix {
    fn path(self) -> &'static str {
        match self {
            Prefix::GlobalConfig => "global-config",
            Prefix::EdgeConfig => "edge-config",
        }
    }
}

/// What Vercel says a change needs to be everywhere.
const PROPAGATION: Duration = Duration::from_secs(10);
/// The item that `doctor` writes and removes again.
const CHECK_ITEM: &str = "refit-doctor";

fn build(options: Value, deps: &Deps) -> Result<Arc<dyn Target>, BuildError> {
    let options: Options = options_of(ADAPTER.kind, options)?;
    let problem = |problem: &str| BuildError::Options { kind: ADAPTER.kind, problem: problem.to_owned() };
    if !is_key(&options.config) {
        return Err(problem("`config` is not the id of a Global Config (`ecfg_…`)"));
    }
    if !is_key(&options.item.replace("{model}", "m")) {
        return Err(problem("`item` may have letters, digits, `_` and `-`, and `{model}`"));
    }
    let account = Account::of(options.token, options.team, options.api);
    Ok(Arc::new(GlobalConfig {
        api: account.open(ADAPTER.kind, deps)?,
        config: options.config,
        item: options.item,
        prefix: options.prefix,
        take_over: options.take_over,
    }))
}

/// Whether Vercel takes `text` as the key of an item.
fn is_key(text: &str) -> bool {
    (1..=256).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

struct GlobalConfig {
    api: Api,
    config: String,
    item: String,
    prefix: Prefix,
    take_over: bool,
}

#[derive(Deserialize)]
struct Item {
    key: String,
    #[serde(default)]
    value: Value,
}

#[async_trait]
impl Target for GlobalConfig {
    fn traits(&self) -> TargetTraits {
        let one_model = !self.item.contains("{model}");
        TargetTraits { instant: true, expires: true, takes: PROPAGATION, one_model }
    }

    async fn read(&self, model: &ModelName) -> Result<Option<Observed>, AdapterError> {
        let Some(bytes) = self.item_bytes(&self.key(model)?).await? else { return Ok(None) };
        let document = understood(&self.label(), &bytes)?;
        if &document.model != model {
            return Err(AdapterError::Rejected {
                service: self.label(),
                action: "read the release".to_owned(),
                cause: format!(
                    "it is a release of `{}`: give each model an item, by {{model}}",
                    document.model
                ),
            });
        }
        Ok(Some(Observed { document, fingerprint: fingerprint(&bytes), attention: None }))
    }

    async fn apply(&self, release: &Release, instance: InstanceId) -> Result<(), AdapterError> {
        let key = self.key(&release.model)?;
        let document = release.document(instance);
        let there = self.item_bytes(&key).await?;
        if next(&self.label(), self.take_over, there.as_deref(), &document)? == Step::Done {
            return Ok(());
        }
        self.write("write the release", json!([{ "operation": "upsert", "key": key, "value": document }]))
            .await?;
        self.read_back(&key, &document).await
    }

    async fn check(&self) -> Result<String, AdapterError> {
        let items = self.items().await?;
        let probe = json!([{ "operation": "upsert", "key": CHECK_ITEM, "value": "refit may write here" }]);
        self.write("write an item", probe).await?;
        self.write("remove an item", json!([{ "operation": "delete", "key": CHECK_ITEM }])).await?;
        let others = items.iter().filter(|item| item.key != CHECK_ITEM).count();
        Ok(format!("{} can be read and written ({others} items); releases go to {}", self.label(), self.item))
    }
}

impl GlobalConfig {
    fn label(&self) -> String {
        format!("Vercel Global Config {}", self.config)
    }

    fn key(&self, model: &ModelName) -> Result<String, AdapterError> {
        let key = self.item.replace("{model}", model.as_str());
        if is_key(&key) {
            return Ok(key);
        }
        Err(AdapterError::Rejected {
            service: self.label(),
            action: "name the item".to_owned(),
            cause: format!("`{key}` is no key of an item (letters, digits, `_`, `-`): set `item`"),
        })
    }

    /// The document's bytes; `None` when the store is there and the item is not.
    async fn item_bytes(&self, key: &str) -> Result<Option<Vec<u8>>, AdapterError> {
        let path = ["v1", self.prefix.path(), &self.config, "item", key];
        let call =
            Call { action: "read the release", method: Method::GET, path: &path, query: &[], body: None };
        let found = match self.api.call::<Item>(&call).await {
            Ok(item) => Some(item),
            // No such item, or no such store? The list of items tells.
            Err(Failure::Refused { status: StatusCode::NOT_FOUND, .. }) => {
                self.items().await?.into_iter().find(|item| item.key == key)
            }
            Err(failure) => return Err(failure.into()),
        };
        Ok(found.map(|item| match item.value {
            // Written by hand as text, perhaps; then it is read as such.
            Value::String(text) => text.into_bytes(),
            value => value.to_string().into_bytes(),
        }))
    }

    async fn items(&self) -> Result<Vec<Item>, AdapterError> {
        let path = ["v1", self.prefix.path(), &self.config, "items"];
        let call =
            Call { action: "list the items", method: Method::GET, path: &path, query: &[], body: None };
        Ok(self.api.call(&call).await?)
    }

    async fn write(&self, action: &str, items: Value) -> Result<(), AdapterError> {
        let path = ["v1", self.prefix.path(), &self.config, "items"];
        let body = Some(json!({ "items": items }));
        let call = Call { action, method: Method::PATCH, path: &path, query: &[], body };
        match self.api.tell(&call).await {
            Ok(()) => Ok(()),
            // Two writes at one moment: neither is an error of refit's.
            Err(Failure::Refused {
                status: StatusCode::CONFLICT | StatusCode::PRECONDITION_FAILED,
                error,
                ..
            }) => Err(AdapterError::Unavailable {
                service: self.label(),
                cause: error.to_string(),
                retry_after: None,
            }),
            Err(failure) => Err(failure.into()),
        }
    }

    /// The store says what was written, or what somebody wrote over it.
    async fn read_back(&self, key: &str, written: &ReleaseDocument) -> Result<(), AdapterError> {
        let there = self.item_bytes(key).await?;
        let Some(there) = there else {
            return Err(AdapterError::Conflict {
                service: self.label(),
                cause: format!("`{key}` was removed right after it was written"),
            });
        };
        match next(&self.label(), false, Some(&there), written)? {
            Step::Done => Ok(()),
            Step::Write => Err(AdapterError::Unavailable {
                service: self.label(),
                cause: format!("`{key}` was written by somebody else at the same moment"),
                retry_after: None,
            }),
        }
    }
}
