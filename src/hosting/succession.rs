//! Whether one release document may take the place of another: the rule that
//! every target keeps, whatever its host can compare and set.

use sha2::{Digest, Sha256};

use crate::adapter::AdapterError;
use crate::domain::release::ReleaseDocument;

/// Whether a document may be written over what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// It may.
    Write,
    /// It is there already.
    Done,
}

/// `bytes` as a release document.
pub(super) fn understood(label: &str, bytes: &[u8]) -> Result<ReleaseDocument, AdapterError> {
    serde_json::from_slice(bytes).map_err(|error| AdapterError::Conflict {
        service: label.to_owned(),
        cause: format!("it is no release document ({error}); move it away if it is not needed"),
    })
}

/// Whether `new` may take the place of what is there.
pub(super) fn next(
    label: &str,
    take_over: bool,
    there: Option<&[u8]>,
    new: &ReleaseDocument,
) -> Result<Step, AdapterError> {
    match there {
        Some(there) => follows(label, take_over, &understood(label, there)?, new),
        None => Ok(Step::Write),
    }
}

/// Whether `new` may take the place of `there`.
pub(super) fn follows(
    label: &str,
    take_over: bool,
    there: &ReleaseDocument,
    new: &ReleaseDocument,
) -> Result<Step, AdapterError> {
    let conflict = |cause: String| Err(AdapterError::Conflict { service: label.to_owned(), cause });
    if there.model != new.model {
        return conflict(format!(
            "it is a release of `{}`: give each model a place, by {{model}}",
            there.model
        ));
    }
    if there.instance != new.instance {
        if take_over {
            return Ok(Step::Write);
        }
        return conflict(format!(
            "refit instance {} wrote it; set `take_over = true` once that one no longer runs",
            there.instance
        ));
    }
    if there.generation > new.generation {
        return conflict(format!("it shows generation {}, newer than {}", there.generation, new.generation));
    }
    if there.generation < new.generation {
        return Ok(Step::Write);
    }
    // One generation is one assignment; only the canary's validity is renewed within it, and only forward.
    let (mut renewed, mut renews) = (there.clone(), false);
    renewed.updated_at = new.updated_at;
    if let (Some(canary), Some(newer)) = (&mut renewed.canary, &new.canary) {
        renews = newer.valid_until > canary.valid_until;
        canary.valid_until = newer.valid_until;
    }
    match (&renewed == new, renews) {
        (false, _) => conflict(format!("somebody changed it by hand since generation {}", there.generation)),
        (true, true) => Ok(Step::Write),
        (true, false) => Ok(Step::Done),
    }
}

/// What distinguishes these bytes from all others.
pub(super) fn fingerprint(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}
