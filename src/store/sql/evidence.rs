//! Minutes of evidence. All batches of a model follow one another (they take
//! its row in `evidence_clock`), so that numbers appear in order and a reader's
//! cursor misses nothing.

use async_trait::async_trait;
use serde_json::{Value, json};
use sqlx::types::Json;

use super::super::{Connection, Row};
use super::labels::Labelled;
use super::rows::{self, get, json as document, text, time_text, word};
use super::store::SqlStore;
use super::truth::{match_truths, take_scored_truths};
use crate::domain::Timestamp;
use crate::domain::canary::{Ripe, Ripening};
use crate::domain::evidence::LabelCounts;
use crate::domain::id::{Epoch, ModelName, RunId, VersionName};
use crate::domain::pull::{PullState, PulledBatch};
use crate::store::error::unreadable;
use crate::store::{
    BatchReceipt, Evidence, EvidenceAge, EvidenceMinute, MinuteCounts, ObservationBatch, OldEvidence,
    PairedError, Prediction, Pruning, Pulled, ScoredRows, StoreError, TruthBatch,
};

/// Whether a batch is of observations or of truths: their ids are apart.
pub(super) enum Kind {
    Observations,
    Truths,
}

impl Kind {
    fn as_str(&self) -> &'static str {
        match self {
            Kind::Observations => "observations",
            Kind::Truths => "truths",
        }
    }
}

pub(super) fn unsigned(row: &Row, column: &str) -> Result<u64, StoreError> {
    u64::try_from(get::<i64>(row, column)?).map_err(|e| unreadable(column, e))
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn minute(row: &Row) -> Result<EvidenceMinute, StoreError> {
    Ok(EvidenceMinute {
        version: word(row, "version")?,
        minute: get(row, "minute")?,
        seq: get(row, "seq")?,
        counts: MinuteCounts {
            n: unsigned(row, "n")?,
            errors: unsigned(row, "errors")?,
            timed: unsigned(row, "timed")?,
        },
        latency: document(row, "latency")?,
    })
}

#[async_trait]
impl Evidence for SqlStore {
    async fn observe(&self, batch: &ObservationBatch) -> Result<BatchReceipt, StoreError> {
        self.answered_of_many(self.add_observations(batch)).await
    }

    async fn add_truth(&self, batch: &TruthBatch) -> Result<BatchReceipt, StoreError> {
        self.answered_of_many(self.add_truths(batch)).await
    }

    async fn add_scored(
        &self,
        run: RunId,
        epoch: Epoch,
        model: &ModelName,
        scored: &ScoredRows,
    ) -> Result<u64, StoreError> {
        self.answered_of_many(self.add_scored_rows(run, epoch, model, scored)).await
    }

    async fn pulls(&self, model: Option<&ModelName>) -> Result<Vec<Pulled>, StoreError> {
        self.answered(self.list_pulls(model)).await
    }

    async fn keep_pulled(&self, batch: &PulledBatch) -> Result<Option<PullState>, StoreError> {
        self.answered_of_many(self.keep_page(batch)).await
    }

    async fn evidence(
        &self,
        model: &ModelName,
        versions: &[VersionName],
        after: i64,
        limit: u32,
    ) -> Result<Vec<EvidenceMinute>, StoreError> {
        self.answered(self.list_evidence(model, versions, after, limit)).await
    }

    async fn paired_errors(
        &self,
        model: &ModelName,
        canary: &VersionName,
        stable: &VersionName,
        after: i64,
        limit: u32,
    ) -> Result<Vec<PairedError>, StoreError> {
        self.answered(self.list_pairs(model, canary, stable, after, limit)).await
    }

    async fn labelled(
        &self,
        model: &ModelName,
        version: &VersionName,
        since: Timestamp,
    ) -> Result<LabelCounts, StoreError> {
        self.answered_of_many(self.count_labels(model, version, since)).await
    }

    async fn ripe(
        &self,
        model: &ModelName,
        canary: &VersionName,
        stable: &VersionName,
        wanted: &Ripening,
        limit: u32,
    ) -> Result<Ripe, StoreError> {
        self.answered_of_many(self.list_ripe(model, canary, stable, wanted, limit)).await
    }

    async fn forget_evidence(
        &self,
        older: &EvidenceAge,
        only_count: bool,
    ) -> Result<OldEvidence, StoreError> {
        // As long as it takes: nobody waits for it.
        self.seen(self.drop_evidence(older, only_count).await)
    }

    async fn pruning(&self, at: Timestamp) -> Result<Pruning, StoreError> {
        self.answered(self.read_pruning(at)).await
    }

    async fn move_pruning(&self, read: Option<Timestamp>, next: Timestamp) -> Result<bool, StoreError> {
        self.answered(self.set_pruning(read, next)).await
    }
}

impl SqlStore {
    async fn add_observations(&self, batch: &ObservationBatch) -> Result<BatchReceipt, StoreError> {
        let mut tx = self.begin().await?;
        let Some(seq) =
            begin_batch(&mut tx, &batch.model, &Kind::Observations, &batch.batch_id, batch.at).await?
        else {
            return Ok(BatchReceipt { duplicate: true, accepted: 0, unmatched: 0 });
        };
        for minute in &batch.minutes {
            add_minute(&mut tx, &batch.model, minute, seq).await?;
        }
        add_predictions(&mut tx, &batch.model, &batch.predictions).await?;
        let requests: Vec<&str> = batch.predictions.iter().map(|p| p.request_id.as_str()).collect();
        take_scored_truths(&mut tx, &batch.model, &requests, batch.at).await?;
        match_truths(&mut tx, &batch.model, &requests, batch.at).await?;
        tx.commit().await?;
        let accepted = batch.minutes.iter().map(|minute| minute.counts.n).sum();
        Ok(BatchReceipt { duplicate: false, accepted, unmatched: 0 })
    }

    async fn list_evidence(
        &self,
        model: &ModelName,
        versions: &[VersionName],
        after: i64,
        limit: u32,
    ) -> Result<Vec<EvidenceMinute>, StoreError> {
        let found = sqlx::query(sql!(concat!(
            "SELECT * FROM refit.evidence_minutes WHERE model = $1 AND seq > $2
             AND version IN (SELECT e.value ->> 'v' FROM ",
            each!("$3"),
            ")
             ORDER BY seq, version, minute LIMIT $4"
        )))
        .bind(model.as_str())
        .bind(after)
        .bind(Json(versions.iter().map(|version| json!({ "v": version })).collect::<Vec<Value>>()))
        .bind(i64::from(limit))
        .fetch_all(&self.parts.reader)
        .await?;
        rows::all(&found, minute)
    }
}

/// Takes the model's row and records the batch; nothing when it is known. Returns the first free number:
/// the row is left standing there, and `take_numbers` moves it on.
pub(super) async fn begin_batch(
    connection: &mut Connection,
    model: &ModelName,
    kind: &Kind,
    batch_id: &str,
    at: Timestamp,
) -> Result<Option<i64>, StoreError> {
    let seq = take_numbers(connection, model, 1).await?;
    let made = sqlx::query(sql!(
        "INSERT INTO refit.evidence_batches (model, kind, batch_id, at) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING"
    ))
    .bind(model.as_str())
    .bind(kind.as_str())
    .bind(text(batch_id))
    .bind(at)
    .execute(connection)
    .await?;
    Ok((made.rows_affected() == 1).then_some(seq))
}

/// The first of `count` numbers of the model that were never used. Whatever adds to a model's evidence takes one, or
/// none, before it reads any.
pub(super) async fn take_numbers(
    connection: &mut Connection,
    model: &ModelName,
    count: i64,
) -> Result<i64, StoreError> {
    let row = sqlx::query(sql!(concat!(
        "INSERT INTO refit.evidence_clock (model, seq) VALUES ($1, $2)
         ON CONFLICT (model) DO UPDATE SET seq = evidence_clock.seq + excluded.seq RETURNING seq",
        by_index!()
    )))
    .bind(model.as_str())
    .bind(count)
    .fetch_one(connection)
    .await?;
    Ok(get::<i64>(&row, "seq")? - count + 1)
}

pub(super) async fn add_minute(
    connection: &mut Connection,
    model: &ModelName,
    new: &EvidenceMinute,
    seq: i64,
) -> Result<(), StoreError> {
    let known = sqlx::query(sql!(
        "SELECT * FROM refit.evidence_minutes WHERE model = $1 AND version = $2 AND minute = $3"
    ))
    .bind(model.as_str())
    .bind(new.version.as_str())
    .bind(new.minute)
    .fetch_optional(&mut *connection)
    .await?;
    let sum = match known.as_ref().map(minute).transpose()? {
        Some(old) => EvidenceMinute {
            counts: added(old.counts, new.counts),
            latency: longer(old.latency, &new.latency),
            ..old
        },
        None => new.clone(),
    };
    sqlx::query(sql!(
        "INSERT INTO refit.evidence_minutes (model, version, minute, seq, n, errors, timed, latency)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
         ON CONFLICT (model, version, minute) DO UPDATE SET seq = excluded.seq, n = excluded.n,
             errors = excluded.errors, timed = excluded.timed, latency = excluded.latency"
    ))
    .bind(model.as_str())
    .bind(new.version.as_str())
    .bind(new.minute)
    .bind(seq)
    .bind(signed(sum.counts.n))
    .bind(signed(sum.counts.errors))
    .bind(signed(sum.counts.timed))
    .bind(Json(sum.latency))
    .execute(connection)
    .await?;
    Ok(())
}

fn added(a: MinuteCounts, b: MinuteCounts) -> MinuteCounts {
    MinuteCounts { n: a.n + b.n, errors: a.errors + b.errors, timed: a.timed + b.timed }
}

/// The sum of two histograms; a shorter one has nothing in its last buckets.
fn longer(mut sum: Vec<u64>, more: &[u64]) -> Vec<u64> {
    sum.resize(sum.len().max(more.len()), 0);
    sum.iter_mut().zip(more).for_each(|(count, more)| *count += more);
    sum
}

/// A request that was reported before keeps its first prediction, also when that was compared and is gone; one that a
/// run only scored was not. What is not finite cannot be compared.
pub(super) async fn add_predictions(
    connection: &mut Connection,
    model: &ModelName,
    predictions: &[Prediction],
) -> Result<(), StoreError> {
    let rows: Vec<Value> = predictions
        .iter()
        .filter(|prediction| prediction.value.is_finite())
        .map(|prediction| {
            let shadow: Vec<Value> = prediction
                .shadow
                .iter()
                .filter(|(_, value)| value.is_finite())
                .map(|(version, value)| json!({ "v": version, "p": value }))
                .collect();
            json!({
                "r": text(&prediction.request_id), "v": prediction.version, "p": prediction.value,
                "s": shadow, "t": time_text(prediction.at),
            })
        })
        .collect();
    if rows.is_empty() {
        return Ok(());
    }
    // No `NOT EXISTS`, of which Postgres makes a join.
    let new = sqlx::query(sql!(concat!(
        "INSERT INTO refit.predictions (model, request_id, version, value, shadow, at)
         SELECT $1, e.value ->> 'r', e.value ->> 'v', CAST(e.value ->> 'p' AS DOUBLE PRECISION), e.value -> 's', ",
        moment!("e.value ->> 't'"), " FROM ", each!("$2"), "
         WHERE (SELECT k.seq FROM refit.paired_errors k
             WHERE k.model = $1 AND k.request_id = e.value ->> 'r' AND k.truth IS NULL LIMIT 1) IS NULL
         ON CONFLICT DO NOTHING RETURNING version, at"
    )))
    .bind(model.as_str())
    .bind(Json(rows))
    .fetch_all(&mut *connection)
    .await?;
    let mut counted = Labelled::default();
    for row in &new {
        counted.predicted(get(row, "version")?, get(row, "at")?);
    }
    counted.keep(connection, model).await
}
