//! A version: all files of one training as one atomic unit, and its manifest.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Timestamp;
use super::id::{InstanceId, ModelName, RunId, StoreName, VersionName};
use super::metric::Metrics;

/// `manifest.json`, written last: no manifest, no version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Layout of this document; 1.
    pub schema: u32,
    /// The model.
    pub model: ModelName,
    /// The version.
    pub version: VersionName,
    /// The refit database that made it.
    pub instance: InstanceId,
    /// The run that made it; none for an adopted one.
    pub run: Option<RunId>,
    /// When it was sealed.
    pub sealed_at: Timestamp,
    /// Its files, by path.
    pub files: Vec<ManifestFile>,
    /// What the trainer said of it.
    pub metrics: Metrics,
    /// Where it came from: workflow hash, data hash and rows, git commit, command, interpreter.
    pub provenance: Value,
}

/// One file of a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFile {
    /// Its path below the version, `/` between parts.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// SHA-256 in lower-case hex.
    pub sha256: String,
}

/// What is known of a version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VersionRecord {
    /// The model.
    pub model: ModelName,
    /// The version.
    pub name: VersionName,
    /// The store that holds it.
    pub store: StoreName,
    /// Its state.
    pub state: VersionState,
    /// The run that made it; none for an adopted one.
    pub run: Option<RunId>,
    /// URL or path below which its files are; empty until sealed.
    pub base_url: String,
    /// SHA-256 of `manifest.json` in lower-case hex; empty until sealed.
    pub manifest_sha256: String,
    /// The manifest, once sealed.
    pub manifest: Option<Manifest>,
    /// When the name was reserved.
    pub created_at: Timestamp,
}

/// The states of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VersionState {
    /// The name is taken; files may be on their way. Never listed, never routed to.
    Reserved,
    /// Whole and immutable.
    Sealed,
    /// Whole, and rolled back from: never chosen by itself again.
    Bad,
    /// The name was given up: somebody else's claim was there.
    Abandoned,
}

/// stub
pub fn next_name(_: super::workflow::step::Naming, _: &[VersionName], _: chrono::NaiveDate) -> VersionName {
    unreachable!()
}
