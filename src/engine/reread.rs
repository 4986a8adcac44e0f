//! What a rollback went to, read after it serves: whoever rolls back does not wait until a whole version was
//! read, and a damaged one does not stay.
//!
//! A process that dies in between leaves the version unread. It was read whole when it was promoted, and
//! clients compare each file with the manifest before they serve it.

use std::sync::Arc;

use serde_json::json;

use super::Engine;
use super::release::ReleaseError;
use crate::domain::release::{Release, ReleaseActor};

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
            let damage = match self.verified(&record).await {
                Ok(_) => return Ok(release),
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
                    Ok((assignment, bad)) => {
                        self.replace(&release, assignment, None, actor, &reason, bad).await?
                    }
                    Err(error @ ReleaseError::NothingLeft { .. }) => {
                        self.alert_nothing_left(&release, &error, &reason).await?;
                        return Err(error);
                    }
                    Err(error) => return Err(error),
                },
            };
            match next {
                Some(next) => {
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

    /// The same beside what the process does otherwise.
    pub(super) fn check_rollback_later(
        self: &Arc<Self>,
        release: &Release,
        choice: Choice,
        actor: ReleaseActor,
    ) {
        let (engine, release) = (Arc::clone(self), release.clone());
        tokio::spawn(async move {
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
