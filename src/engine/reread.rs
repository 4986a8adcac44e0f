//! What a rollback went to, read after it serves: whoever rolls back does not wait until a whole version was
//! read, and a damaged one does not stay.
//!
//! A process that stops waits for it within its grace. One that dies in between, or has to stop before the end,
//! leaves the version unread. It was read whole when it was promoted, and clients compare each file with the
//! manifest before they serve it.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::Engine;
use super::release::{Change, DuringFreeze, ReleaseError};
use crate::artifacts::sealed::SealedError;
use crate::domain::release::{Release, ReleaseActor};
use crate::domain::version::VersionRecord;
use crate::domain::workflow::Moment;

/// Waited before a store that does not answer is asked again.
const PAUSES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(9)];

/// Who chose the version that a rollback went to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// refit did: a damaged version gives way to the next good one.
    Free,
    /// Somebody named it: they are told.
    Named,
}

impl Engine {
    /// Reads the files of what serves since a rollback. If they are not what was sealed, goes on to the next
    /// good version, or alerts and fails, as `choice` says. Returns what serves then.
    ///
    /// # Errors
    /// The named version is damaged, nothing good is left, or the files cannot be read: then people are
    /// alerted, and no version is marked.
    pub async fn check_rollback(
        self: &Arc<Self>,
        mut release: Release,
        choice: Choice,
        actor: &ReleaseActor,
    ) -> Result<Release, ReleaseError> {
        loop {
            let Some(served) = &release.desired.champion else { return Ok(release) };
            let Some(record) = self.store.version(&release.model, &served.version).await? else {
                return Ok(release);
            };
            let damage = match self.read_patiently(&record).await {
                Ok(()) => return Ok(release),
                Err(error) if error.is_damage() => error,
                Err(error) => {
                    // A right that is missing says nothing about the version: none is marked.
                    self.alert_unread(&release, &format!("{} was not read: {error}", record.name)).await?;
                    return Err(error.into());
                }
            };
            let reason = format!("the files of {} are damaged: {damage}", record.name);
            tracing::error!(model = %release.model, version = %record.name,
                "Version {} of `{}` serves since a rollback and is damaged: {damage}", record.name, release.model);
            let next = match choice {
                Choice::Named => {
                    self.alert_damaged(&release, &reason).await?;
                    return Err(damage.into());
                }
                Choice::Free => match self.back_to(&release, None).await {
                    Ok(way) => {
                        let reason = way.reason(&reason);
                        let (assignment, bad) = (way.assignment, way.bad);
                        let (moment, during_freeze) = (Moment::RolledBack, DuringFreeze::Made);
                        let (reason, by_run) = (reason.as_str(), None);
                        let change = Change { assignment, moment, during_freeze, actor, reason, bad, by_run };
                        self.replace(&release, change).await?
                    }
                    Err(error @ ReleaseError::NothingLeft { .. }) => {
                        self.alert_nothing_left(&release, &error, &reason).await?;
                        return Err(error);
                    }
                    Err(error) => return Err(error),
                },
            };
            match next {
                Some((next, _hears)) => {
                    self.show(&next).await?;
                    release = next;
                }
                // Somebody changed what serves meanwhile, and checks it.
                None => {
                    let current = self.store.release(&release.model, &release.target).await?;
                    return Ok(current.unwrap_or(release));
                }
            }
        }
    }

    /// Reads all of a version; again, a few times, where the store does not answer.
    async fn read_patiently(&self, record: &VersionRecord) -> Result<(), SealedError> {
        for pause in PAUSES {
            match self.verified(record).await {
                Err(error) if error.is_transient() => {
                    tracing::warn!(version = %record.name, "{} was not read: {error}; trying again", record.name);
                    tokio::time::sleep(pause).await;
                }
                other => return other.map(drop),
            }
        }
        self.verified(record).await.map(drop)
    }

    /// How many versions that were rolled back to this process is reading beside what it does otherwise.
    pub fn rereads(&self) -> usize {
        self.rereads.len()
    }

    /// Returns once nothing is being read any more, or at `deadline`; the process is about to end.
    pub(super) async fn end_rereads(&self, deadline: Instant) {
        if tokio::time::timeout_at(deadline, self.rereads.wait()).await.is_err() {
            tracing::warn!(
                rereads = self.rereads(),
                "What was rolled back to is not read to the end before this process stops; \
                 `refit model verify` reads it"
            );
        }
    }

    /// The same as `check_rollback`, beside what the process does otherwise.
    pub(super) fn check_rollback_later(
        self: &Arc<Self>,
        release: &Release,
        choice: Choice,
        actor: ReleaseActor,
    ) {
        let (engine, release) = (Arc::clone(self), release.clone());
        self.rereads.spawn(async move {
            let model = release.model.clone();
            if let Err(error) = engine.check_rollback(release, choice, &actor).await {
                tracing::error!(%model, "What `{model}` was rolled back to was not read: {error}");
            }
        });
    }

    async fn alert_damaged(&self, release: &Release, reason: &str) -> Result<(), ReleaseError> {
        let facts = json!({
            "reason": reason, "target": release.target,
            "todo": "Roll back again: `refit rollback` goes to the next good version.",
        });
        let key = format!("damaged/{}/{}", release.target, release.generation);
        Ok(self.alert_about(&release.model, None, &key, facts).await?)
    }

    async fn alert_unread(&self, release: &Release, reason: &str) -> Result<(), ReleaseError> {
        let facts = json!({
            "reason": reason, "target": release.target,
            "todo": "See that refit may read the store, then `refit model verify` reads the version.",
        });
        let key = format!("unread/{}/{}", release.target, release.generation);
        Ok(self.alert_about(&release.model, None, &key, facts).await?)
    }
}
