//! Who changed what of a model, when and why.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Timestamp;
use super::because::Evidence;
use super::id::{Generation, ModelName, TargetName, VersionName};
use super::release::{Assignment, ReleaseActor};

/// Who wants a change, and why.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChangedBy {
    /// Who.
    pub actor: ReleaseActor,
    /// Why, in plain words.
    pub reason: String,
    /// When.
    pub at: Timestamp,
}

/// One change, as kept.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HistoryEntry {
    /// The model.
    pub model: ModelName,
    /// What was changed.
    #[serde(flatten)]
    pub change: Change,
    /// Who, when, why.
    #[serde(flatten)]
    pub by: ChangedBy,
}

/// What was changed.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "change")]
pub enum Change {
    /// Who serves.
    Release {
        /// Where.
        target: TargetName,
        /// The generation it made.
        generation: Generation,
        /// What is served since.
        assignment: Box<Assignment>,
        /// What was known of the canary it is about.
        evidence: Option<Evidence>,
        /// SHA-256 of the workflow that canary is judged under, in lower-case hex.
        configuration: Option<String>,
    },
    /// A version.
    Version {
        /// Which.
        version: VersionName,
        /// What became of it.
        action: VersionAction,
    },
}

impl Change {
    /// Whether it is about `version`.
    pub fn concerns(&self, version: &VersionName) -> bool {
        match self {
            Change::Version { version: changed, .. } => changed == version,
            Change::Release { assignment, .. } => {
                let champion = assignment.champion.as_ref().map(|served| &served.version);
                let canary = assignment.canary.as_ref().map(|canary| &canary.served.version);
                let previous = assignment.previous.as_ref().map(|served| &served.version);
                [champion, canary, previous].into_iter().flatten().any(|named| named == version)
            }
        }
    }
}

impl fmt::Display for Change {
    /// In a few words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Release { target, generation, assignment, .. } => {
                write!(f, "{target} serves ")?;
                match &assignment.champion {
                    Some(champion) => write!(f, "{}", champion.version)?,
                    None => f.write_str("nothing")?,
                }
                if let Some(canary) = &assignment.canary {
                    write!(f, ", {} to {}", canary.basis_points, canary.served.version)?;
                }
                write!(f, " (generation {generation})")
            }
            Change::Version { version, action } => {
                let word = match action {
                    VersionAction::Sealed => "sealed",
                    VersionAction::Adopted => "adopted",
                    VersionAction::Pinned => "pinned",
                    VersionAction::Unpinned => "unpinned",
                    VersionAction::MarkedBad => "marked bad",
                    VersionAction::MarkedGood => "marked good",
                    VersionAction::Deleting => "to be deleted",
                    VersionAction::Deleted => "deleted",
                };
                write!(f, "{version} {word}")
            }
        }
    }
}

/// What became of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VersionAction {
    /// It is whole.
    Sealed,
    /// It was there before refit and is known from now on.
    Adopted,
    /// It stays until it is unpinned.
    Pinned,
    /// It may go again.
    Unpinned,
    /// No rollback chooses it any more.
    MarkedBad,
    /// A rollback may choose it again.
    MarkedGood,
    /// Its deletion began.
    Deleting,
    /// Its files are gone.
    Deleted,
}

impl VersionAction {
    /// The word used in databases and for people.
    pub fn as_str(self) -> &'static str {
        match self {
            VersionAction::Sealed => "sealed",
            VersionAction::Adopted => "adopted",
            VersionAction::Pinned => "pinned",
            VersionAction::Unpinned => "unpinned",
            VersionAction::MarkedBad => "marked_bad",
            VersionAction::MarkedGood => "marked_good",
            VersionAction::Deleting => "deleting",
            VersionAction::Deleted => "deleted",
        }
    }
}
