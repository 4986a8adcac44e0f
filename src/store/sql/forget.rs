//! Deletes evidence that is too old to be of use, a few rows at a time, so that
//! nobody waits long behind it and a death loses nothing but the rest.

use super::rows::get;
use super::store::SqlStore;
use crate::domain::Timestamp;
use crate::domain::canary::ERROR_HISTORY;
use crate::store::{EvidenceAge, OldEvidence, Pruning, StoreError};

/// Rows deleted in one transaction.
const AT_ONCE: i64 = 5000;

// By their key, a stretch a transaction: an index by age would be paid for with every request that comes in.
macro_rules! walked {
    ($table:literal) => {
        Walked {
            count: sql!(concat!("SELECT count(*) AS n FROM refit.", $table, " WHERE at < $1")),
            end: sql!(concat!(
                "SELECT model, request_id FROM refit.",
                $table,
                " WHERE (model, request_id) > ($1, $2) ORDER BY model, request_id LIMIT 1 OFFSET $3"
            )),
            delete: sql!(concat!(
                "DELETE FROM refit.",
                $table,
                " WHERE (model, request_id) IN
                     (SELECT o.model, o.request_id FROM
                         (SELECT model, request_id, at FROM refit.",
                $table,
                " WHERE (model, request_id) > ($1, $2) ORDER BY model, request_id LIMIT $3) o
                      WHERE o.at < $4)"
            )),
        }
    };
}
const PREDICTIONS: Walked = walked!("predictions");
const TRUTHS: Walked = walked!("truths");
const BATCHES: Counted = Counted {
    count: sql!("SELECT count(*) AS n FROM refit.evidence_batches WHERE at < $1"),
    delete: sql!(
        "DELETE FROM refit.evidence_batches WHERE (model, kind, batch_id) IN
             (SELECT model, kind, batch_id FROM refit.evidence_batches WHERE at < $1 ORDER BY at LIMIT $2)"
    ),
};
// Of one model, from its oldest rows on, as an index has them: what stays is not gone through, neither to delete nor to
// count.
const PAIRS: Counted = Counted {
    count: sql!(
        "SELECT count(*) AS n FROM refit.paired_errors WHERE model = $2 AND at < $1 AND seq < coalesce(
             (SELECT seq FROM refit.paired_errors WHERE model = $2 AND at >= $1 ORDER BY seq LIMIT 1),
             9223372036854775807)"
    ),
    delete: sql!(
        "DELETE FROM refit.paired_errors WHERE model = $3 AND seq IN
             (SELECT o.seq FROM
                 (SELECT seq, at FROM refit.paired_errors WHERE model = $3 ORDER BY seq LIMIT $2) o
              WHERE o.at < $1)"
    ),
};
const MINUTES: Counted = Counted {
    count: sql!(
        "SELECT count(*) AS n FROM refit.evidence_minutes WHERE model = $2 AND minute < $1 AND seq < coalesce(
             (SELECT seq FROM refit.evidence_minutes WHERE model = $2 AND minute >= $1 ORDER BY seq LIMIT 1),
             9223372036854775807)"
    ),
    delete: sql!(
        "DELETE FROM refit.evidence_minutes WHERE model = $3 AND (version, minute) IN
             (SELECT o.version, o.minute FROM
                 (SELECT version, minute FROM refit.evidence_minutes WHERE model = $3 ORDER BY seq LIMIT $2) o
              WHERE o.minute < $1)"
    ),
};
const LABELS: Counted = Counted {
    count: sql!("SELECT count(*) AS n FROM refit.label_minutes WHERE model = $2 AND minute < $1"),
    delete: sql!(
        "DELETE FROM refit.label_minutes WHERE model = $3 AND (minute, version) IN
             (SELECT minute, version FROM refit.label_minutes WHERE model = $3 AND minute < $1
              ORDER BY minute LIMIT $2)"
    ),
};

/// Rows of all models without an index by age.
struct Walked {
    count: &'static str,
    /// The last key of a stretch after `$1, $2`; nothing in the last one.
    end: &'static str,
    delete: &'static str,
}

/// Rows that are found by their age; of one model, where `$2` and `$3` name it.
struct Counted {
    count: &'static str,
    delete: &'static str,
}

impl SqlStore {
    pub(super) async fn drop_evidence(
        &self,
        older: &EvidenceAge,
        only_count: bool,
    ) -> Result<OldEvidence, StoreError> {
        let EvidenceAge { unmatched, batch_ids, counted } = *older;
        let mut old = if only_count {
            OldEvidence {
                predictions: self.count_old(PREDICTIONS.count, unmatched, None).await?,
                truths: self.count_old(TRUTHS.count, unmatched, None).await?,
                batch_ids: self.count_old(BATCHES.count, batch_ids, None).await?,
                ..OldEvidence::default()
            }
        } else {
            OldEvidence {
                predictions: self.walk(PREDICTIONS, unmatched).await?,
                truths: self.walk(TRUTHS, unmatched).await?,
                batch_ids: self.delete_old(BATCHES.delete, batch_ids, None).await?,
                ..OldEvidence::default()
            }
        };
        let models =
            sqlx::query(sql!("SELECT model FROM refit.evidence_clock")).fetch_all(&self.parts.reader).await?;
        for row in &models {
            let model: &str = get(row, "model")?;
            let counted = self.needed_since(model).await?.map_or(counted, |needed| counted.min(needed));
            let old_of = async |kind: Counted| match only_count {
                true => self.count_old(kind.count, counted, Some(model)).await,
                false => self.delete_old(kind.delete, counted, Some(model)).await,
            };
            old.pairs += old_of(PAIRS).await?;
            old.minutes += old_of(MINUTES).await? + old_of(LABELS).await?;
        }
        Ok(old)
    }

    /// What came before this is read by no run of the model that has not ended and by no canary of it that is out. The
    /// history of a canary that goes out later is younger than anything that is deleted.
    async fn needed_since(&self, model: &str) -> Result<Option<Timestamp>, StoreError> {
        // A bake may outlast its run; that it cannot be read does not matter.
        let row = sqlx::query(sql!(
            "SELECT min(created_at) AS oldest FROM refit.runs
             WHERE model = $1 AND (status IN ('queued', 'running', 'waiting', 'held', 'undoing')
                 OR id IN (SELECT run FROM refit.canaries WHERE state IN ('watching', 'baking')))"
        ))
        .bind(model)
        .fetch_one(&self.parts.reader)
        .await?;
        let oldest = get::<Option<Timestamp>>(&row, "oldest")?;
        Ok(oldest.map(|oldest| oldest - ERROR_HISTORY))
    }

    async fn count_old(
        &self,
        query: &'static str,
        before: Timestamp,
        model: Option<&str>,
    ) -> Result<u64, StoreError> {
        let mut query = sqlx::query(query).bind(before);
        if let Some(model) = model {
            query = query.bind(model.to_owned());
        }
        let row = query.fetch_one(&self.parts.reader).await?;
        Ok(get::<i64>(&row, "n")?.unsigned_abs())
    }

    pub(super) async fn read_pruning(&self, at: Timestamp) -> Result<Pruning, StoreError> {
        let row = sqlx::query(sql!(concat!(
            "SELECT ",
            now!("$1"),
            " AS now, (SELECT due_at FROM refit.chores WHERE name = 'prune') AS due_at"
        )))
        .bind(self.at(at))
        .fetch_one(&self.parts.reader)
        .await?;
        Ok(Pruning { due_at: get(&row, "due_at")?, now: get(&row, "now")? })
    }

    pub(super) async fn set_pruning(
        &self,
        read: Option<Timestamp>,
        next: Timestamp,
    ) -> Result<bool, StoreError> {
        let query = match read {
            Some(read) => {
                sqlx::query(sql!("UPDATE refit.chores SET due_at = $1 WHERE name = 'prune' AND due_at = $2"))
                    .bind(next)
                    .bind(read)
            }
            None => sqlx::query(sql!(
                "INSERT INTO refit.chores (name, due_at) VALUES ('prune', $1) ON CONFLICT (name) DO NOTHING"
            ))
            .bind(next),
        };
        Ok(query.execute(&self.parts.writer).await?.rows_affected() == 1)
    }

    async fn walk(&self, table: Walked, before: Timestamp) -> Result<u64, StoreError> {
        let (mut all, mut after) = (0, (String::new(), String::new()));
        loop {
            let end = sqlx::query(table.end)
                .bind(after.0.clone())
                .bind(after.1.clone())
                .bind(AT_ONCE - 1)
                .fetch_optional(&self.parts.reader)
                .await?;
            let gone = sqlx::query(table.delete)
                .bind(after.0)
                .bind(after.1)
                .bind(AT_ONCE)
                .bind(before)
                .execute(&self.parts.writer)
                .await?;
            all += gone.rows_affected();
            let Some(end) = end else { return Ok(all) };
            after = (get(&end, "model")?, get(&end, "request_id")?);
        }
    }

    async fn delete_old(
        &self,
        query: &'static str,
        before: Timestamp,
        model: Option<&str>,
    ) -> Result<u64, StoreError> {
        let mut all = 0;
        loop {
            let mut query = sqlx::query(query).bind(before).bind(AT_ONCE);
            if let Some(model) = model {
                query = query.bind(model.to_owned());
            }
            let gone = query.execute(&self.parts.writer).await?;
            all += gone.rows_affected();
            if gone.rows_affected() == 0 {
                return Ok(all);
            }
        }
    }
}
