//! Rows that are in the evidence already, so that they are not predicted again.
//!
//! Their ids are kept in a file of the attempt, as hashes, and the database is
//! asked for those that are new. The file is a copy that anybody may touch: one
//! that is not as it was left is made anew.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::domain::canary::CanaryRecord;
use crate::steps::context::{StepContext, StepError};

/// What stands for an id: half of its SHA-256.
pub(super) type Mark = [u8; 16];

/// How far the evidence was read.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Known {
    /// The number of the last pair.
    through: i64,
    /// SHA-256 of the file.
    sha256: String,
}

/// What stands for an id.
pub(super) fn mark(id: &str) -> Mark {
    let mut mark = Mark::default();
    mark.copy_from_slice(&Sha256::digest(id.as_bytes())[..size_of::<Mark>()]);
    mark
}

impl Known {
    /// All rows that both versions were scored on, with what came since the last call.
    pub(super) async fn catch_up(
        &mut self,
        canary: &CanaryRecord,
        ctx: &StepContext<'_>,
    ) -> Result<HashSet<Mark>, StepError> {
        let path = ctx.dirs.attempt.join("known");
        let mut bytes = tokio::fs::read(&path).await.unwrap_or_default();
        if sha256(&bytes) != self.sha256 {
            *self = Self::default();
            bytes.clear();
        }
        let new = ctx.ledger.scored(&canary.champion, &canary.version, self.through).await?;
        if let Some(last) = new.iter().map(|pair| pair.seq).max() {
            bytes.extend(new.iter().flat_map(|pair| mark(&pair.request_id)));
            let kept = async {
                tokio::fs::create_dir_all(&ctx.dirs.attempt).await?;
                tokio::fs::write(&path, &bytes).await
            };
            // Without the file the next call reads everything again.
            if let Err(error) = kept.await {
                tracing::debug!(path = %path.display(), "What is known could not be kept: {error}");
            }
            *self = Self { through: last, sha256: sha256(&bytes) };
        }
        Ok(bytes.as_chunks::<{ size_of::<Mark>() }>().0.iter().copied().collect())
    }
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}
