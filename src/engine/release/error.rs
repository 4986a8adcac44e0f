//! Why a release is left as it is.

use crate::adapter::AdapterError;
use crate::artifacts::sealed::SealedError;
use crate::domain::freeze::Freeze;
use crate::domain::id::{Generation, ModelName, RunId, TargetName, VersionName};
use crate::steps::context::StepError;
use crate::store::StoreError;

/// Why a release was not changed.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// The model serves nothing there.
    #[error("`{model}` has no release on `{target}`")]
    NoRelease {
        /// The model.
        model: ModelName,
        /// The target.
        target: TargetName,
    },
    /// `refit.toml` has no such target.
    #[error("there is no target `{target}`")]
    UnknownTarget {
        /// The target.
        target: TargetName,
    },
    /// No such version, or it is not whole.
    #[error("`{model}` has no sealed version {version}")]
    UnknownVersion {
        /// The model.
        model: ModelName,
        /// The version.
        version: VersionName,
    },
    /// No sealed version is left that is not marked bad and whose files are whole.
    #[error("there is no good version of `{model}` to go back to{}", shown(.unusable))]
    NothingLeft {
        /// The model.
        model: ModelName,
        /// Versions that were tried, and what is wrong with them.
        unusable: Vec<String>,
    },
    /// Another version is on canary.
    #[error("version {version} is on canary (run {run})")]
    Busy {
        /// It.
        version: VersionName,
        /// Its run.
        run: RunId,
    },
    /// Nothing is promoted now.
    #[error("`{model}` is {freeze}")]
    Frozen {
        /// The model.
        model: ModelName,
        /// Why not.
        freeze: Box<Freeze>,
    },
    /// Somebody was faster, and what was wanted may not be what is wanted now.
    #[error("the release of `{model}` on `{target}` was changed meanwhile: it has generation {now} by now")]
    Changed {
        /// The model.
        model: ModelName,
        /// The target.
        target: TargetName,
        /// What it has.
        now: Generation,
    },
    /// The files of a version are not what was sealed, or its host does not answer.
    #[error(transparent)]
    Outside(#[from] AdapterError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn shown(unusable: &[String]) -> String {
    if unusable.is_empty() { String::new() } else { format!(": {}", unusable.join("; ")) }
}

impl From<SealedError> for ReleaseError {
    fn from(error: SealedError) -> Self {
        ReleaseError::Outside(error.into())
    }
}

impl From<ReleaseError> for StepError {
    fn from(error: ReleaseError) -> Self {
        match error {
            ReleaseError::Outside(error) => error.into(),
            ReleaseError::Store(error) => error.into(),
            ReleaseError::NoRelease { .. }
            | ReleaseError::UnknownTarget { .. }
            | ReleaseError::UnknownVersion { .. }
            | ReleaseError::NothingLeft { .. }
            | ReleaseError::Busy { .. }
            | ReleaseError::Changed { .. }
            | ReleaseError::Frozen { .. } => StepError::permanent(error.to_string()),
        }
    }
}
