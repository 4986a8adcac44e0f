//! What the outside has in common: its errors, and the traits that targets,
//! stores, notifiers and evidence sources implement, one file each.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::domain::Timestamp;
use crate::domain::id::{InstanceId, ModelName, StoreName, VersionName};
use crate::domain::pull::{Page, Wanted};
use crate::domain::release::{Release, ReleaseDocument};
use crate::domain::version::VersionRecord;
use crate::secret::{MissingSecret, Secrets};

/// Why an outside service did not do what was asked; says whether trying again can help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdapterError {
    /// It cannot be reached, or answers that it cannot serve now.
    #[error("{service} is unavailable: {cause}")]
    Unavailable {
        /// The service.
        service: String,
        /// What was seen.
        cause: String,
        /// When it asks to be tried again.
        retry_after: Option<Duration>,
    },
    /// It refused: a key, a permission.
    #[error("{service} refused to {action}: {cause}")]
    Denied {
        /// The service.
        service: String,
        /// What was asked.
        action: String,
        /// What it said.
        cause: String,
    },
    /// It answered something that makes no sense to refit, or refit's request made none to it.
    #[error("{service} could not {action}: {cause}")]
    Rejected {
        /// The service.
        service: String,
        /// What was asked.
        action: String,
        /// What it said.
        cause: String,
    },
    /// Somebody else changed it in between.
    #[error("{service} was changed by somebody else: {cause}")]
    Conflict {
        /// The service.
        service: String,
        /// What was found.
        cause: String,
    },
}

impl AdapterError {
    /// Whether trying again can help.
    pub fn is_transient(&self) -> bool {
        match self {
            AdapterError::Unavailable { .. } => true,
            AdapterError::Denied { .. } | AdapterError::Rejected { .. } | AdapterError::Conflict { .. } => {
                false
            }
        }
    }
}

/// Shows a release to the apps that serve the model.
///
/// Idempotent: applying one release twice is applying it once. A release older
/// than the one shown is refused with `Conflict`, so a late process changes nothing.
#[async_trait]
pub trait Target: Send + Sync {
    /// What it can do, said before anything is started.
    fn traits(&self) -> TargetTraits;

    /// What the host shows now; `None` when it shows nothing yet.
    async fn read(&self, model: &ModelName) -> Result<Option<Observed>, AdapterError>;

    /// Makes the host show `release`, and returns once it does.
    async fn apply(&self, release: &Release, instance: InstanceId) -> Result<(), AdapterError>;

    /// Whether settings and permissions suffice (`refit doctor`); changes nothing.
    async fn check(&self) -> Result<String, AdapterError>;
}

/// What a target can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetTraits {
    /// A change is served within seconds.
    pub instant: bool,
    /// Apps see `valid_until`: a canary ends by itself when refit is gone.
    pub expires: bool,
    /// About how long one change takes until it is served.
    pub takes: Duration,
    /// It has a place for one model: the release of a second one is refused.
    pub one_model: bool,
}

impl TargetTraits {
    /// What a plan and the start of a canary say of it, in one line.
    pub fn words(&self) -> String {
        let takes = match self.takes.as_secs() {
            0 => "a change is served at once".to_owned(),
            seconds @ 1..120 => format!("a change is served in about {seconds} s"),
            seconds => format!("a change is served in about {} min", seconds.div_ceil(60)),
        };
        let slow = if self.instant { "" } else { ", a rollback too" };
        let ends = if self.expires {
            "a canary ends by itself if refit is gone"
        } else {
            "a canary stays out if refit is gone"
        };
        format!("{takes}{slow}; {ends}")
    }
}

/// What a host shows.
#[derive(Debug, Clone, PartialEq)]
pub struct Observed {
    /// The document.
    pub document: ReleaseDocument,
    /// What distinguishes this state of the host from every other: an ETag, a hash.
    pub fingerprint: String,
    /// What people are to be told, though what is shown is right.
    pub attention: Option<Attention>,
}

/// Something at a host that refit leaves as it is and somebody may want otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attention {
    /// What: one sentence.
    pub what: String,
    /// What a person can do about it: one sentence.
    pub todo: String,
}

/// A message, rendered: what a notifier sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// The same on every attempt; given to services that take a key.
    pub id: String,
    /// The subject of a mail, the first line elsewhere.
    pub subject: String,
    /// Plain text.
    pub text: String,
    /// HTML, for mail.
    pub html: Option<String>,
    /// Slack blocks, for Slack.
    pub blocks: Option<serde_json::Value>,
    /// Mail addresses; empty for other channels.
    pub to: Vec<String>,
    /// Set when an earlier try to send it may have come through though nobody heard so: it was not made before this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tried_since: Option<Timestamp>,
}

/// Sends messages. At least once; exactly once where the service takes a key.
#[async_trait]
pub trait Notifier: Send + Sync {
    /// Sends one message.
    async fn send(&self, message: &Message) -> Result<(), NotSent>;

    /// What keeps one message a run up to date, where the service lets messages be rewritten.
    fn board(&self) -> Option<&dyn Board> {
        None
    }

    /// Whether settings and permissions suffice (`refit doctor`); sends nothing. `None` where that cannot be
    /// found out without sending.
    async fn check(&self) -> Result<Option<String>, AdapterError> {
        Ok(None)
    }
}

/// Keeps one message about a run, rewritten as the run goes on.
#[async_trait]
pub trait Board: Send + Sync {
    /// Makes the message at `at` say `message`; posts a new one when there is none or it is gone. Returns where
    /// it is.
    async fn show(&self, message: &Message, at: Option<&Posted>) -> Result<Posted, NotSent>;

    /// Sends a message below the one at `below`; `loud` ones are seen by everybody who sees that one's place.
    async fn reply(&self, message: &Message, below: &Posted, loud: bool) -> Result<(), NotSent>;
}

/// Why a message was not sent, or one about a run not brought up to date.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotSent {
    /// The service takes no more of them for so long, by its own word (429) or by the pace that is kept with it. It
    /// certainly has not got the message, and that does not count as a try.
    #[error("{service} takes no more messages for {} s", wait.as_secs_f64().ceil())]
    NoTurn {
        /// The service.
        service: &'static str,
        /// For how long.
        wait: Duration,
    },
    /// It was tried.
    #[error(transparent)]
    Failed(#[from] AdapterError),
}

impl From<NotSent> for AdapterError {
    fn from(not_sent: NotSent) -> Self {
        match not_sent {
            NotSent::NoTurn { service, wait } => AdapterError::Unavailable {
                service: service.to_owned(),
                cause: "its limit of requests is used up".to_owned(),
                retry_after: Some(wait),
            },
            NotSent::Failed(error) => error,
        }
    }
}

/// Where an app keeps evidence that refit fetches.
#[async_trait]
pub trait EvidenceSource: Send + Sync {
    /// A page of what is new; changes nothing there. The same cursor brings the same page, and what came since.
    /// Nothing found is an empty page: no evidence, never a count of 0.
    async fn read(&self, wanted: &Wanted) -> Result<Page, AdapterError>;
}

/// Where a message is that can be rewritten.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Posted {
    /// The conversation, by its id.
    pub channel: String,
    /// The message in it.
    pub ts: String,
}

/// A place for versions: an object store and where in it models live.
#[derive(Clone)]
pub struct ArtifactStore {
    /// The objects.
    pub objects: Arc<dyn object_store::ObjectStore>,
    /// Path within it, before `<model>/<version>/<file>`.
    pub prefix: object_store::path::Path,
    /// Where apps reach it.
    pub public_base: PublicBase,
    /// Kind and place, as messages show it.
    pub label: String,
    /// Files are compressed on their way in, each under its path with `.gz`.
    pub gzip: bool,
}

/// URL or directory at which apps reach what a store holds, without a trailing slash.
#[derive(Debug, Clone)]
pub enum PublicBase {
    /// That of the store's `prefix`; it follows from the settings.
    Stated(String),
    /// That of the store as a whole; only the service knows it, and tells with every object.
    Learned(Arc<OnceLock<String>>),
}

impl ArtifactStore {
    /// URL or directory below which an app finds the files of a version.
    ///
    /// Of a store that tells its address itself, only after an object of it was written, listed or read.
    pub fn base_url(&self, model: &ModelName, version: &VersionName) -> Result<String, AdapterError> {
        self.url_below(&format!("{model}/{version}"))
    }

    /// The same of a version that is known, wherever its files are.
    pub fn base_url_of(&self, record: &VersionRecord) -> Result<String, AdapterError> {
        match &record.place {
            Some(place) => self.url_below(place),
            None => self.base_url(&record.model, &record.name),
        }
    }

    /// The same for any place below the prefix.
    pub fn url_below(&self, place: &str) -> Result<String, AdapterError> {
        let root = match &self.public_base {
            PublicBase::Stated(base) => return Ok(format!("{base}/{place}")),
            PublicBase::Learned(root) => root.get(),
        };
        let unknown = |cause: String| AdapterError::Rejected {
            service: self.label.clone(),
            action: format!("say where apps find {place}"),
            cause,
        };
        let root = root.ok_or_else(|| {
            unknown(
                "its answers have no address that ends with an object's path; state `public_url`".to_owned(),
            )
        })?;
        let mut url = url::Url::parse(root).map_err(|error| unknown(error.to_string()))?;
        if let Ok(mut segments) = url.path_segments_mut() {
            let prefix = self.prefix.parts().map(|part| part.as_ref().to_owned());
            segments.pop_if_empty().extend(prefix.collect::<Vec<_>>()).extend(place.split('/'));
        }
        Ok(url.into())
    }
}

/// What adapters are built from, beside their own table of `refit.toml`.
#[derive(Clone)]
pub struct Deps {
    /// Where `refit.toml` is: relative paths begin here.
    pub project: PathBuf,
    /// Secrets by name.
    pub secrets: Secrets,
    /// The client for plain HTTP.
    pub http: reqwest::Client,
    /// `[stores.*]`, for adapters that write into one; built before the others.
    pub stores: Arc<BTreeMap<StoreName, ArtifactStore>>,
}

/// What is wrong with an adapter's table in `refit.toml`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// It does not say what it is.
    #[error("`kind` is missing: one of {}", known.join(", "))]
    NoKind {
        /// The kinds there are.
        known: Vec<&'static str>,
    },
    /// No adapter of this family is called so.
    #[error("no {family} is called `{kind}`; there are {}", known.join(", "))]
    UnknownKind {
        /// What was looked for.
        family: &'static str,
        /// What the table says.
        kind: String,
        /// The kinds there are.
        known: Vec<&'static str>,
    },
    /// A setting is unknown, missing, or of the wrong type.
    #[error("{kind}: {problem}")]
    Options {
        /// The adapter.
        kind: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// A secret it needs is not set.
    #[error(transparent)]
    Secret(#[from] MissingSecret),
}

/// One entry of a family's table: its name and how it is made.
pub struct Adapter<T> {
    /// What `kind` says in `refit.toml`.
    pub kind: &'static str,
    /// Makes it of its table, without `kind`.
    pub build: fn(serde_json::Value, &Deps) -> Result<T, BuildError>,
}

/// Makes the adapter that `options` asks for by `kind`, of those in `table`.
pub fn build_of<T>(
    family: &'static str,
    table: &[Adapter<T>],
    mut options: serde_json::Value,
    deps: &Deps,
) -> Result<T, BuildError> {
    let known = || table.iter().map(|adapter| adapter.kind).collect();
    let kind = options.as_object_mut().and_then(|table| table.remove("kind"));
    let Some(serde_json::Value::String(kind)) = kind else {
        return Err(BuildError::NoKind { known: known() });
    };
    let adapter = table.iter().find(|adapter| adapter.kind == kind);
    let adapter = adapter.ok_or_else(|| BuildError::UnknownKind { family, kind, known: known() })?;
    (adapter.build)(options, deps)
}

/// `options` as the settings of `kind`.
pub fn options_of<T: serde::de::DeserializeOwned>(
    kind: &'static str,
    options: serde_json::Value,
) -> Result<T, BuildError> {
    serde_json::from_value(options).map_err(|error| BuildError::Options { kind, problem: error.to_string() })
}
