//! Which version serves which share of traffic, and the document apps read.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Timestamp;
use super::id::{Generation, InstanceId, ModelName, RunId, TargetName, VersionName};
use super::workflow::units::BasisPoints;

/// One row per model and target. Every change is a compare-and-set on `generation`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Release {
    /// The model.
    pub model: ModelName,
    /// The target.
    pub target: TargetName,
    /// How often it was changed.
    pub generation: Generation,
    /// What should be served.
    pub desired: Assignment,
    /// The generation the host was last seen to serve; `None` before the first.
    pub applied: Option<Generation>,
    /// The run whose canary is out.
    pub owner: Option<RunId>,
    /// The last change.
    pub updated_at: Timestamp,
}

/// Who serves.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Assignment {
    /// Serves all that the canary does not.
    pub champion: Option<Served>,
    /// Serves a share.
    pub canary: Option<CanaryServed>,
    /// The champion before this one.
    pub previous: Option<Served>,
}

/// A version as an app finds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// The version.
    pub version: VersionName,
    /// URL or path below which its files are.
    pub base_url: String,
    /// SHA-256 of its manifest in lower-case hex.
    pub manifest_sha256: String,
}

impl Assignment {
    /// Whether everybody else than its canary's users gets the version that `served` is, wherever apps find either.
    pub fn serves(&self, served: &Served) -> bool {
        self.champion.as_ref().is_some_and(|champion| champion.is_same_version(served))
    }

    /// Whether the same version is the champion of both, or none is, wherever apps find it.
    pub fn has_champion_of(&self, other: &Assignment) -> bool {
        match &other.champion {
            Some(served) => self.serves(served),
            None => self.champion.is_none(),
        }
    }

    /// Everybody gets `served`. The champion of before is then `previous`, unless it is the same version.
    pub fn all_to(&self, served: Served) -> Assignment {
        let before = if self.serves(&served) { &self.previous } else { &self.champion };
        Assignment { previous: before.clone(), champion: Some(served), canary: None }
    }
}

impl Served {
    /// Whether it is the version that `other` is. A store may have moved: where it is found is no part of that.
    pub fn is_same_version(&self, other: &Served) -> bool {
        (&self.version, &self.manifest_sha256) == (&other.version, &other.manifest_sha256)
    }
}

/// A version that serves a share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanaryServed {
    /// The version.
    #[serde(flatten)]
    pub served: Served,
    /// Its share.
    pub basis_points: BasisPoints,
    /// Made per canary, stays through its stages.
    pub salt: String,
    /// Clients treat a canary past this as 0 %.
    pub valid_until: Timestamp,
}

/// The document an app reads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReleaseDocument {
    /// The model.
    pub model: ModelName,
    /// The refit database that wrote it.
    pub instance: InstanceId,
    /// The generation it shows.
    pub generation: Generation,
    /// Serves all that the canary does not.
    pub champion: Option<Served>,
    /// Serves a share.
    pub canary: Option<CanaryServed>,
    /// When it was written.
    pub updated_at: Timestamp,
}

impl Release {
    /// The document that shows this release.
    pub fn document(&self, instance: InstanceId) -> ReleaseDocument {
        ReleaseDocument {
            model: self.model.clone(),
            instance,
            generation: self.generation,
            champion: self.desired.champion.clone(),
            canary: self.desired.canary.clone(),
            updated_at: self.updated_at,
        }
    }

    /// Whether the host was seen to serve what should be served.
    pub fn is_applied(&self) -> bool {
        self.applied == Some(self.generation)
    }
}

/// Who changes a release; each has its own right to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "by")]
pub enum ReleaseActor {
    /// A step of a run.
    Run {
        /// The run.
        run: RunId,
    },
    /// The canary controller.
    Controller {
        /// The run whose canary it watches.
        run: RunId,
    },
    /// An undo of a run that failed or was cancelled.
    Undo {
        /// The run.
        run: RunId,
    },
    /// A person.
    Human {
        /// Who.
        name: String,
    },
}

impl std::fmt::Display for ReleaseActor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ReleaseActor::Run { run } | ReleaseActor::Undo { run } => write!(f, "run {run}"),
            ReleaseActor::Controller { .. } => f.write_str("refit"),
            ReleaseActor::Human { name } => f.write_str(name),
        }
    }
}

/// The bucket of a unit, in `0..10_000`: big-endian `u32` of the first four
/// bytes of `SHA-256(salt + ":" + unit)`, modulo 10,000. The same in every client.
pub fn bucket(salt: &str, unit: &str) -> u16 {
    let digest = Sha256::digest(format!("{salt}:{unit}"));
    let head = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
    (head % 10_000) as u16
}

/// Whether the canary serves `unit` at `now`; no unit means champion.
pub fn routes_to_canary(canary: &CanaryServed, unit: Option<&str>, now: Timestamp) -> bool {
    match unit {
        Some(unit) => now < canary.valid_until && bucket(&canary.salt, unit) < canary.basis_points.0,
        None => false,
    }
}
