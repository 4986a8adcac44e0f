//! Releases: who serves. Every change is a compare-and-set on the generation.

use async_trait::async_trait;
use sqlx::types::Uuid;

use super::super::{Connection, Row};
use super::canaries::{end_in, end_unread_in};
use super::checkpoint::insert_notices;
use super::freezes::{freeze_in, lock_freezes};
use super::registry::{lock_versions, mark_in};
use super::rows::{self, doc, doc_opt, get, json, text, word, word_opt};
use super::signals::{NewSignal, Stirred, insert_intent, signal_in};
use super::store::SqlStore;
use crate::domain::Timestamp;
use crate::domain::canary::CanaryState;
use crate::domain::history::ChangedBy;
use crate::domain::id::{Generation, ModelName, RunId, TargetName, VersionName};
use crate::domain::release::{Release, ReleaseActor};
use crate::domain::run::{Outcome, SignalKind};
use crate::store::{
    CanaryEnd, ReleaseAudit, ReleaseWrite, ReleaseWriteByRun, ReleaseWritten, Releases, StoreError,
};

pub(super) fn release(row: &Row) -> Result<Release, StoreError> {
    Ok(Release {
        model: word(row, "model")?,
        target: word(row, "target")?,
        generation: Generation(get(row, "generation")?),
        desired: json(row, "desired")?,
        applied: get::<Option<i64>>(row, "applied")?.map(Generation),
        owner: get::<Option<Uuid>>(row, "owner")?.map(RunId),
        updated_at: get(row, "updated_at")?,
    })
}

fn audit(row: &Row) -> Result<ReleaseAudit, StoreError> {
    Ok(ReleaseAudit {
        generation: Generation(get(row, "generation")?),
        assignment: json(row, "assignment")?,
        actor: json(row, "actor")?,
        reason: get(row, "reason")?,
        at: get(row, "at")?,
    })
}

/// What a run's right to write came to.
enum Right {
    Granted,
    WrittenBefore,
    CancelRequested,
}

#[async_trait]
impl Releases for SqlStore {
    async fn release(&self, model: &ModelName, target: &TargetName) -> Result<Option<Release>, StoreError> {
        self.answered(self.read_release(model, target)).await
    }

    async fn releases(&self, model: Option<&ModelName>) -> Result<Vec<Release>, StoreError> {
        self.answered(self.list_releases(model)).await
    }

    async fn write_release(&self, write: ReleaseWrite) -> Result<ReleaseWritten, StoreError> {
        self.answered(self.change_release(&write)).await
    }

    async fn release_applied(
        &self,
        model: &ModelName,
        target: &TargetName,
        generation: Generation,
    ) -> Result<(), StoreError> {
        self.answered(self.mark_applied(model, target, generation)).await
    }

    async fn extend_canary_validity(
        &self,
        model: &ModelName,
        target: &TargetName,
        generation: Generation,
        until: Timestamp,
    ) -> Result<(), StoreError> {
        self.answered(self.extend_validity(model, target, generation, until)).await
    }

    async fn release_history(
        &self,
        model: &ModelName,
        target: &TargetName,
        limit: u32,
    ) -> Result<Vec<ReleaseAudit>, StoreError> {
        self.answered(self.list_history(model, target, limit)).await
    }
}

impl SqlStore {
    async fn read_release(
        &self,
        model: &ModelName,
        target: &TargetName,
    ) -> Result<Option<Release>, StoreError> {
        let mut connection = self.parts.reader.acquire().await?;
        release_in(&mut connection, model, target).await
    }

    async fn list_releases(&self, model: Option<&ModelName>) -> Result<Vec<Release>, StoreError> {
        let found = sqlx::query(sql!(
            "SELECT * FROM refit.releases WHERE $1 IS NULL OR model = $1 ORDER BY model, target"
        ))
        .bind(model.map(ModelName::as_str))
        .fetch_all(&self.parts.reader)
        .await?;
        rows::all(&found, release)
    }

    async fn change_release(&self, write: &ReleaseWrite) -> Result<ReleaseWritten, StoreError> {
        let mut tx = self.begin().await?;
        if write.heeds_freeze {
            lock_freezes(&mut tx).await?;
        }
        lock_versions(&mut tx, &write.model).await?;
        if let Some(by) = &write.by_run {
            match right_of(&mut tx, by).await? {
                Right::Granted => {}
                Right::CancelRequested => return Ok(ReleaseWritten::CancelRequested),
                Right::WrittenBefore => {
                    let current = release_in(&mut tx, &write.model, &write.target).await?;
                    return current.map(ReleaseWritten::Made).ok_or_else(|| {
                        StoreError::Broken(format!(
                            "intent `{}` is recorded, its release is not",
                            by.intent.key
                        ))
                    });
                }
            }
        }
        if write.heeds_freeze
            && let Some(freeze) = freeze_in(&mut tx, &write.model, self.at(write.at)).await?
        {
            // What the run's part wrote goes with the transaction.
            tx.rollback().await?;
            return Ok(ReleaseWritten::Frozen(freeze));
        }
        if let Some(version) = deleted_in(&mut tx, write).await? {
            return Ok(ReleaseWritten::Deleted(version));
        }
        if !set_release(&mut tx, write).await? {
            // What the run's part wrote goes with the transaction.
            tx.rollback().await?;
            return Ok(ReleaseWritten::Moved(self.read_release(&write.model, &write.target).await?));
        }
        let generation = write.expected.next();
        sqlx::query(sql!(
            "INSERT INTO refit.release_audit (model, target, generation, assignment, actor, reason, at, evidence, configuration)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"
        ))
        .bind(write.model.as_str())
        .bind(write.target.as_str())
        .bind(generation.0)
        .bind(doc(&write.assignment)?)
        .bind(doc(&write.actor)?)
        .bind(text(&write.because.reason))
        .bind(write.at)
        .bind(doc_opt(write.because.evidence.as_ref())?)
        .bind(write.because.configuration.as_deref())
        .execute(&mut *tx)
        .await?;
        let mut stirred = Stirred::default();
        if let Some(CanaryEnd { run, canary, reason, if_run_is_over }) = &write.ends_canary {
            match canary {
                Some(canary) => {
                    end_in(&mut tx, *canary, CanaryState::RolledBack, None, reason, write.at).await?;
                }
                None => end_unread_in(&mut tx, *run).await?,
            }
            // Its run hears of it with the change or not at all: it may sleep for days otherwise, also beside the step that
            // made the change. A run that takes its own effects back is over.
            let over = match &write.actor {
                ReleaseActor::Undo { run } => Some(*run),
                ReleaseActor::Run { .. } | ReleaseActor::Controller { .. } | ReleaseActor::Human { .. } => {
                    None
                }
            };
            let said = !if_run_is_over.is_empty() && passes_over_rollbacks(&mut tx, *run).await?;
            if said {
                let now = self.parts.clock.now();
                insert_notices(&mut tx, if_run_is_over, now, self.at(now)).await?;
            }
            if Some(*run) != over {
                let kind = SignalKind::RolledBack { why: reason.clone(), said };
                let actor = write.actor.to_string();
                let signal = NewSignal { kind: &kind, actor: &actor, reason: Some(reason), at: write.at };
                let told = signal_in(&mut tx, *run, &signal, self.at(write.at)).await?;
                stirred.add(*run, &told);
            }
        }
        let now = self.parts.clock.now();
        insert_notices(&mut tx, &write.notices, now, self.at(now)).await?;
        if let Some(version) = &write.marks_bad {
            let reason = write.because.reason.clone();
            let by = ChangedBy { actor: write.actor.clone(), reason, at: write.at };
            mark_in(&mut tx, &write.model, version, true, &by).await?;
        }
        let made = release_in(&mut tx, &write.model, &write.target).await?;
        self.commit(tx, &stirred).await?;
        made.map(ReleaseWritten::Made)
            .ok_or_else(|| StoreError::Broken("the release that was written is not there".to_owned()))
    }

    async fn mark_applied(
        &self,
        model: &ModelName,
        target: &TargetName,
        generation: Generation,
    ) -> Result<(), StoreError> {
        sqlx::query(sql!(
            "UPDATE refit.releases SET applied = $3
             WHERE model = $1 AND target = $2 AND generation >= $3 AND (applied IS NULL OR applied < $3)"
        ))
        .bind(model.as_str())
        .bind(target.as_str())
        .bind(generation.0)
        .execute(&self.parts.writer)
        .await?;
        Ok(())
    }

    async fn extend_validity(
        &self,
        model: &ModelName,
        target: &TargetName,
        generation: Generation,
        until: Timestamp,
    ) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        let Some(mut current) = release_in(&mut tx, model, target).await? else { return Ok(()) };
        let Some(canary) = current.desired.canary.as_mut() else { return Ok(()) };
        if current.generation != generation || canary.valid_until >= until {
            return Ok(());
        }
        canary.valid_until = until;
        sqlx::query(sql!(
            "UPDATE refit.releases SET desired = $4 WHERE model = $1 AND target = $2 AND generation = $3"
        ))
        .bind(model.as_str())
        .bind(target.as_str())
        .bind(generation.0)
        .bind(doc(&current.desired)?)
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }

    async fn list_history(
        &self,
        model: &ModelName,
        target: &TargetName,
        limit: u32,
    ) -> Result<Vec<ReleaseAudit>, StoreError> {
        let found = sqlx::query(sql!(
            "SELECT generation, assignment, actor, reason, at FROM refit.release_audit
             WHERE model = $1 AND target = $2 ORDER BY generation DESC LIMIT $3"
        ))
        .bind(model.as_str())
        .bind(target.as_str())
        .bind(i64::from(limit))
        .fetch_all(&self.parts.reader)
        .await?;
        rows::all(&found, audit)
    }
}

/// Whether a run says nothing of a rollback: it is over, or ends already and says another reason at its end, or it promoted
/// a first version, which has no canary to bake. Its row stays locked, so that it either hears of the rollback before it
/// knows how it ends, and says it, or finds it said.
async fn passes_over_rollbacks(connection: &mut Connection, run: RunId) -> Result<bool, StoreError> {
    let row = sqlx::query(sql!(concat!(
        "SELECT outcome, status = 'finished' AS finished,
             EXISTS (SELECT 1 FROM refit.canaries WHERE run = $1) AS has_canary
         FROM refit.runs WHERE id = $1",
        for_update!()
    )))
    .bind(run.0)
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else { return Ok(true) };
    let bakes: bool = get(&row, "has_canary")?;
    let passes_over = |outcome: Outcome| match outcome {
        Outcome::Promoted => !bakes,
        outcome => outcome.passes_over_rollbacks(),
    };
    Ok(word_opt(&row, "outcome")?.is_some_and(passes_over) || get(&row, "finished")?)
}

async fn release_in(
    connection: &mut Connection,
    model: &ModelName,
    target: &TargetName,
) -> Result<Option<Release>, StoreError> {
    let row = sqlx::query(sql!("SELECT * FROM refit.releases WHERE model = $1 AND target = $2"))
        .bind(model.as_str())
        .bind(target.as_str())
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(release).transpose()
}

/// A version that the change would serve and that is deleted, or about to be. The model's lock is held: none
/// becomes so before the change is made.
async fn deleted_in(
    connection: &mut Connection,
    write: &ReleaseWrite,
) -> Result<Option<VersionName>, StoreError> {
    let current = release_in(connection, &write.model, &write.target).await?;
    let before = current.map(|release| release.desired).unwrap_or_default();
    let before = [before.champion.map(|served| served.version), before.canary.map(|it| it.served.version)];
    // What stays is never a reason to refuse: taking a canary back must not fail for it.
    let is_new = |version: &&VersionName| !before.iter().flatten().any(|served| served == *version);
    let champion = write.assignment.champion.as_ref().map(|served| &served.version).filter(is_new);
    let canary = write.assignment.canary.as_ref().map(|it| &it.served.version).filter(is_new);
    let row = sqlx::query(sql!(
        "SELECT name FROM refit.versions
         WHERE model = $1 AND name IN ($2, $3) AND state IN ('deleting', 'deleted') ORDER BY name LIMIT 1"
    ))
    .bind(write.model.as_str())
    .bind(champion.map(VersionName::as_str))
    .bind(canary.map(VersionName::as_str))
    .fetch_optional(connection)
    .await?;
    row.as_ref().map(|row| word(row, "name")).transpose()
}

/// Fences the run and records its intent. The run's row stays locked, so that a wish to cancel comes
/// either before the promotion, and stops it, or after it, and is too late.
async fn right_of(connection: &mut Connection, by: &ReleaseWriteByRun) -> Result<Right, StoreError> {
    let row = sqlx::query(sql!(concat!(
        "SELECT cancel IS NOT NULL AND NOT committed AS unwanted FROM refit.runs
         WHERE id = $1 AND epoch = $2 AND status <> 'finished'",
        for_update!()
    )))
    .bind(by.run.0)
    .bind(by.epoch.0)
    .fetch_optional(&mut *connection)
    .await?;
    let Some(row) = row else { return Err(StoreError::Fenced) };
    if insert_intent(connection, by.run, &by.intent).await?.is_some() {
        return Ok(Right::WrittenBefore);
    }
    if by.promotes {
        if get::<bool>(&row, "unwanted")? {
            return Ok(Right::CancelRequested);
        }
        sqlx::query(sql!("UPDATE refit.runs SET committed = TRUE WHERE id = $1"))
            .bind(by.run.0)
            .execute(connection)
            .await?;
    }
    Ok(Right::Granted)
}

/// The compare-and-set; false when the generation has moved.
async fn set_release(connection: &mut Connection, write: &ReleaseWrite) -> Result<bool, StoreError> {
    let query = if write.expected.0 == 0 {
        sqlx::query(sql!(
            "INSERT INTO refit.releases (model, target, generation, desired, owner, updated_at)
             VALUES ($1, $2, $3 + 1, $4, $5, $6) ON CONFLICT (model, target) DO NOTHING"
        ))
    } else {
        sqlx::query(sql!(
            "UPDATE refit.releases SET generation = $3 + 1, desired = $4, owner = $5, updated_at = $6
             WHERE model = $1 AND target = $2 AND generation = $3"
        ))
    };
    let written = query
        .bind(write.model.as_str())
        .bind(write.target.as_str())
        .bind(write.expected.0)
        .bind(doc(&write.assignment)?)
        .bind(write.owner.map(|run| run.0))
        .bind(write.at)
        .execute(connection)
        .await?;
    Ok(written.rows_affected() == 1)
}
