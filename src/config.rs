//! `refit.toml` and the environment: read once, leave as types.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::TimeDelta;
use serde::Deserialize;

use crate::domain::canary::ERROR_HISTORY;
use crate::domain::id::{NotifierName, SecretName, StoreName, TargetName};
use crate::domain::retention::Ages;
use crate::domain::workflow::not_utf8;
use crate::domain::workflow::units::parse_duration;

/// The file at the root of a project.
pub const FILE: &str = "refit.toml";

/// What is wrong with the settings.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is no project here.
    #[error("there is no {FILE} in {} or above it", dir.display())]
    NoProject {
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// The file cannot be read.
    #[error("cannot read {}: {cause}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// It is not what refit understands; the text has the place.
    #[error("{}: {message}", path.display())]
    Mistake {
        /// The file.
        path: PathBuf,
        /// The place and what is wrong.
        message: String,
    },
    /// One adapter's settings.
    #[error("[{table}]: {cause}")]
    Adapter {
        /// The table of the file.
        table: String,
        /// What is wrong.
        cause: String,
        /// It is a secret that is not set: the table itself may be fine.
        is_secret: bool,
    },
}

/// `refit.toml`, as written.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    /// `[database]`.
    #[serde(default)]
    pub database: DatabaseTable,
    /// `[server]`.
    #[serde(default)]
    pub server: ServerTable,
    /// `[worker]`.
    #[serde(default)]
    pub worker: WorkerTable,
    /// `[stores.*]`.
    #[serde(default)]
    pub stores: BTreeMap<StoreName, toml::Table>,
    /// `[targets.*]`.
    #[serde(default)]
    pub targets: BTreeMap<TargetName, toml::Table>,
    /// `[notifiers.*]`.
    #[serde(default)]
    pub notifiers: BTreeMap<NotifierName, toml::Table>,
    /// `[retention]`.
    #[serde(default)]
    pub retention: RetentionTable,
    /// `[secrets]`: `NAME = "file"`.
    #[serde(default)]
    pub secrets: BTreeMap<SecretName, PathBuf>,
    /// `[templates]`.
    #[serde(default)]
    pub templates: TemplatesTable,
}

/// `[database]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseTable {
    /// The name of the secret that holds the URL; `--db` and `REFIT_DATABASE_URL` come first.
    pub url: Option<SecretName>,
    /// What a server does while nothing is due.
    #[serde(default)]
    pub idle: Idle,
}

/// What a server does while nothing is due.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Idle {
    /// It keeps looking: other processes may write at any time.
    #[default]
    Watch,
    /// It leaves the database alone until the next due time, so that a serverless one can sleep.
    Sleep,
}

/// `[server]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerTable {
    /// Where `refit serve` listens; 127.0.0.1:7070 when absent.
    pub listen: Option<SocketAddr>,
    /// How people reach it, for links in messages.
    pub public_url: Option<url::Url>,
}

/// `[worker]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerTable {
    /// Runs worked on at once.
    pub concurrency: Option<usize>,
    /// What this worker can do (`runs_on:`).
    #[serde(default)]
    pub labels: Vec<String>,
    /// Seconds a shutdown waits for steps to end.
    pub grace_seconds: Option<u64>,
    /// How far apart the runs of `refit tick` are, where something starts it regularly.
    #[serde(default, deserialize_with = "apart")]
    pub tick_every: Option<Duration>,
}

/// `[retention]`: how long things are kept that nothing needs any more.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetentionTable {
    /// A version that no longer serves; 24h.
    #[serde(default, deserialize_with = "age")]
    pub served: Option<TimeDelta>,
    /// Half an upload; 7d.
    #[serde(default, deserialize_with = "age")]
    pub half_uploads: Option<TimeDelta>,
    /// Files of finished runs; 14d.
    #[serde(default, deserialize_with = "age")]
    pub run_files: Option<TimeDelta>,
    /// Versions fetched for trainers; 7d.
    #[serde(default, deserialize_with = "age")]
    pub cached_versions: Option<TimeDelta>,
    /// Predictions and truths that never found each other; 90d.
    #[serde(default, deserialize_with = "age")]
    pub unmatched: Option<TimeDelta>,
    /// Ids of batches of evidence; 30d.
    #[serde(default, deserialize_with = "age")]
    pub batch_ids: Option<TimeDelta>,
    /// Minutes of requests and pairs of errors; 180d, and never less than a canary looks back.
    #[serde(default, deserialize_with = "age")]
    pub evidence: Option<TimeDelta>,
}

impl RetentionTable {
    /// What is written, and what holds where nothing is.
    pub fn ages(&self) -> Ages {
        let absent = Ages::default();
        Ages {
            served: self.served.unwrap_or(absent.served),
            half_uploads: self.half_uploads.unwrap_or(absent.half_uploads),
            run_files: self.run_files.unwrap_or(absent.run_files),
            cached_versions: self.cached_versions.unwrap_or(absent.cached_versions),
            unmatched: self.unmatched.unwrap_or(absent.unmatched),
            batch_ids: self.batch_ids.unwrap_or(absent.batch_ids),
            evidence: self.evidence.unwrap_or(absent.evidence).max(ERROR_HISTORY),
        }
    }
}

fn apart<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    use serde::de::Error as _;
    let text = String::deserialize(from)?;
    parse_duration(&text).map(Some).map_err(|rule| D::Error::custom(format!("`{text}`: {rule}")))
}

fn age<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<TimeDelta>, D::Error> {
    use serde::de::Error as _;
    let text = String::deserialize(from)?;
    let duration = parse_duration(&text).map_err(|rule| D::Error::custom(format!("`{text}`: {rule}")))?;
    TimeDelta::from_std(duration).map(Some).map_err(D::Error::custom)
}

/// `[templates]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TemplatesTable {
    /// A directory whose files take the place of the built-in templates.
    pub dir: Option<PathBuf>,
}

/// A project: where its files are and what they say.
#[derive(Debug, Clone)]
pub struct Project {
    /// Where `refit.toml` is.
    pub root: PathBuf,
    /// What it says.
    pub file: ConfigFile,
}

impl Project {
    /// `dir` or the nearest directory above it that has a `refit.toml`.
    pub fn root_of(dir: &Path) -> Option<&Path> {
        dir.ancestors().find(|above| above.join(FILE).is_file())
    }

    /// The project of `dir` or of the nearest directory above it that has a `refit.toml`.
    pub fn find(dir: &Path) -> Result<Self, ConfigError> {
        let root = Self::root_of(dir).ok_or_else(|| ConfigError::NoProject { dir: dir.to_owned() })?;
        Self::read(root, &root.join(FILE))
    }

    /// The project of `root` with the settings of `path`.
    pub fn read(root: &Path, path: &Path) -> Result<Self, ConfigError> {
        let bytes = std::fs::read(path)
            .map_err(|error| ConfigError::Unreadable { path: path.to_owned(), cause: error.to_string() })?;
        let text = String::from_utf8(bytes)
            .map_err(|error| ConfigError::Mistake { path: path.to_owned(), message: not_utf8(&error) })?;
        let file = toml::from_str(&text)
            .map_err(|error| ConfigError::Mistake { path: path.to_owned(), message: error.to_string() })?;
        Ok(Self { root: root.to_owned(), file })
    }

    /// Where runs keep files.
    pub fn state(&self) -> PathBuf {
        self.root.join(".refit")
    }

    /// Secrets of the files named under `[secrets]`, relative to the project, and of the environment.
    pub fn secrets(&self) -> crate::secret::Secrets {
        let files = self.file.secrets.iter().map(|(name, path)| (name.clone(), self.root.join(path)));
        crate::secret::Secrets::new(files.collect())
    }

    /// Templates that replace built-in ones.
    pub fn templates(&self) -> Option<PathBuf> {
        self.file.templates.dir.as_ref().map(|dir| self.root.join(dir))
    }

    /// How this project's workers work.
    pub fn settings(&self) -> crate::engine::Settings {
        let worker = &self.file.worker;
        let defaults = crate::engine::Settings::default();
        crate::engine::Settings {
            concurrency: worker.concurrency.unwrap_or(defaults.concurrency),
            labels: worker.labels.clone(),
            public_url: self.file.server.public_url.clone(),
            ages: self.file.retention.ages(),
            templates: self.templates(),
            grace: worker.grace_seconds.map_or(defaults.grace, Duration::from_secs),
            ..defaults
        }
    }
}
