//! Truths, and the pairs of errors they make: both versions on one request.

use std::collections::{BTreeSet, HashMap, HashSet};

use serde::Deserialize;
use serde_json::{Value, json};
use sqlx::types::Json;

use super::super::{Connection, Row};
use super::evidence::{Kind, begin_batch, take_numbers, unsigned};
use super::labels::Labelled;
use super::rows::{self, get, json as document, text, time_text};
use super::signals::fence;
use super::store::SqlStore;
use crate::domain::Timestamp;
use crate::domain::id::{Epoch, ModelName, RunId, VersionName};
use crate::store::{BatchReceipt, PairedError, ScoredRow, ScoredRows, StoreError, TruthBatch};

/// What another version said of the same request.
#[derive(Deserialize)]
struct Shadow {
    v: VersionName,
    p: f64,
}

impl SqlStore {
    pub(super) async fn add_truths(&self, batch: &TruthBatch) -> Result<BatchReceipt, StoreError> {
        let mut tx = self.begin().await?;
        let new = begin_batch(&mut tx, &batch.model, &Kind::Truths, &batch.batch_id, batch.at).await?;
        if new.is_none() {
            return Ok(BatchReceipt { duplicate: true, accepted: 0, unmatched: 0 });
        }
        // The first truth of a request counts; within one batch, too.
        let mut first: HashMap<&str, Value> = HashMap::new();
        for (request, value, block) in batch.rows.iter().filter(|(_, value, _)| value.is_finite()) {
            first.entry(request).or_insert_with(|| {
                json!({
                    "r": text(request), "p": value, "b": block.as_deref().map(text), "t": time_text(batch.at),
                })
            });
        }
        let requests: Vec<&str> = first.keys().copied().collect();
        let rows: Vec<Value> = first.values().cloned().collect();
        // A request of which there is a pair has its truth, whoever brought it, unless a report of it still waits: before
        // a pair kept its truth, scoring left the report waiting.
        sqlx::query(sql!(concat!(
            "INSERT INTO refit.truths (model, request_id, value, block, at)
             SELECT $1, e.value ->> 'r', CAST(e.value ->> 'p' AS DOUBLE PRECISION), e.value ->> 'b', ",
            moment!("e.value ->> 't'"),
            " FROM ",
            each!("$2"),
            " WHERE (SELECT k.seq FROM refit.paired_errors k
                 WHERE k.model = $1 AND k.request_id = e.value ->> 'r' LIMIT 1) IS NULL
             OR (SELECT p.version FROM refit.predictions p
                 WHERE p.model = $1 AND p.request_id = e.value ->> 'r') IS NOT NULL
             ON CONFLICT DO NOTHING"
        )))
        .bind(batch.model.as_str())
        .bind(Json(&rows))
        .execute(&mut *tx)
        .await?;
        match_truths(&mut tx, &batch.model, &requests, batch.at).await?;
        let unmatched = waiting(&mut tx, &batch.model, &requests).await?;
        tx.commit().await?;
        Ok(BatchReceipt { duplicate: false, accepted: requests.len() as u64, unmatched })
    }

    pub(super) async fn add_scored_rows(
        &self,
        run: RunId,
        epoch: Epoch,
        model: &ModelName,
        scored: &ScoredRows,
    ) -> Result<u64, StoreError> {
        let mut tx = self.begin().await?;
        fence(&mut tx, run, epoch).await?;
        // Whoever adds to the model's evidence takes its row first: of two that score one row, one comes later.
        take_numbers(&mut tx, model, 0).await?;
        let (stable, canary) = (scored.stable.as_str(), scored.canary.as_str());
        let mut known = known_pairs(&mut tx, model, stable, canary, &scored.rows).await?;
        let (mut pairs, mut new) = (Vec::new(), Vec::new());
        for row in &scored.rows {
            let id = text(&row.id);
            if !row.stable.is_finite() || !row.canary.is_finite() || !known.insert(id.clone()) {
                continue;
            }
            new.push(row.id.as_str());
            let (block, served_at) = (row.block.as_deref(), row.served_at);
            let about = About { request: &id, block, served_at, scored: Some(row.truth) };
            let (stable, canary) = ((stable, row.stable), (canary, row.canary));
            // Each with itself, too: its errors, from which a later canary learns their scale.
            pairs.extend(
                [(stable, stable), (stable, canary), (canary, canary)].map(|(a, b)| about.pair(a, b)),
            );
        }
        insert_pairs(&mut tx, model, pairs, scored.at).await?;
        // A report of the app that waits for this truth has it now; a truth that waits for a report is not needed.
        of_requests(&mut tx, DELETE_TRUTHS, model, &new).await?;
        take_scored_truths(&mut tx, model, &new, scored.at).await?;
        match_truths(&mut tx, model, &new, scored.at).await?;
        tx.commit().await?;
        Ok(new.len() as u64)
    }

    pub(super) async fn list_pairs(
        &self,
        model: &ModelName,
        canary: &VersionName,
        stable: &VersionName,
        after: i64,
        limit: u32,
    ) -> Result<Vec<PairedError>, StoreError> {
        let (one, other) = in_order(canary.as_str(), stable.as_str());
        let found = sqlx::query(sql!(
            "SELECT * FROM refit.paired_errors WHERE model = $1 AND one = $2 AND other = $3 AND seq > $4
             ORDER BY seq LIMIT $5"
        ))
        .bind(model.as_str())
        .bind(one)
        .bind(other)
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(&self.parts.reader)
        .await?;
        rows::all(&found, |row| pair(row, canary))
    }
}

/// The rows of which there is a pair of these versions, whichever served.
async fn known_pairs(
    connection: &mut Connection,
    model: &ModelName,
    stable: &str,
    canary: &str,
    rows: &[ScoredRow],
) -> Result<HashSet<String>, StoreError> {
    let requests: Vec<&str> = rows.iter().map(|row| row.id.as_str()).collect();
    let (one, other) = in_order(stable, canary);
    let found = sqlx::query(sql!(concat!(
        "SELECT k.request_id FROM ",
        each!("$4"),
        found!(
            "paired_errors",
            "k",
            "k.model = $1 AND k.request_id = e.value ->> 'r' AND k.one = $2 AND k.other = $3"
        )
    )))
    .bind(model.as_str())
    .bind(one)
    .bind(other)
    .bind(wanted(&requests))
    .fetch_all(connection)
    .await?;
    found.iter().map(|row| get(row, "request_id")).collect()
}

/// A row as a pair of `canary` and the other version.
pub(super) fn pair(row: &Row, canary: &VersionName) -> Result<PairedError, StoreError> {
    let (one, other) = (get(row, "one_error")?, get(row, "other_error")?);
    let is_first = get::<&str>(row, "one")? == canary.as_str();
    let (canary, stable) = if is_first { (one, other) } else { (other, one) };
    Ok(PairedError {
        seq: get(row, "seq")?,
        request_id: get(row, "request_id")?,
        block: get(row, "block")?,
        canary,
        stable,
        at: get(row, "at")?,
        served_at: get(row, "served_at")?,
    })
}

/// Two versions in the order in which a pair of theirs is kept.
pub(super) fn in_order<'v>(a: &'v str, b: &'v str) -> (&'v str, &'v str) {
    if a <= b { (a, b) } else { (b, a) }
}

/// The request of a pair.
struct About<'r> {
    request: &'r str,
    block: Option<&'r str>,
    served_at: Option<Timestamp>,
    /// Its truth, where a run scored it.
    scored: Option<f64>,
}

impl About<'_> {
    /// The errors of two versions on it, as [`insert_pairs`] keeps them.
    fn pair(&self, a: (&str, f64), b: (&str, f64)) -> Value {
        let (one, other) = if in_order(a.0, b.0).0 == a.0 { (a, b) } else { (b, a) };
        let (block, served_at) = (self.block.map(text), self.served_at.map(time_text));
        json!({
            "r": self.request, "b": block, "t": served_at, "u": self.scored,
            "v": one.0, "e": one.1, "w": other.0, "f": other.1,
        })
    }

    /// The same; none where numbers are so far apart that their distance is none, which no column takes.
    fn finite_pair(&self, a: (&str, f64), b: (&str, f64)) -> Option<Value> {
        (a.1.is_finite() && b.1.is_finite()).then(|| self.pair(a, b))
    }
}

/// Gives predictions that wait the truth with which a run scored their request. The caller matches them next.
pub(super) async fn take_scored_truths(
    connection: &mut Connection,
    model: &ModelName,
    requests: &[&str],
    at: Timestamp,
) -> Result<(), StoreError> {
    if requests.is_empty() {
        return Ok(());
    }
    sqlx::query(sql!(concat!(
        "INSERT INTO refit.truths (model, request_id, value, block, at)
         SELECT k.model, k.request_id, k.truth, k.block, $3 FROM ",
        each!("$2"),
        found!("predictions", "p", "p.model = $1 AND p.request_id = e.value ->> 'r'"),
        found!("paired_errors", "k", "k.model = $1 AND k.request_id = p.request_id AND k.truth IS NOT NULL"),
        " WHERE TRUE ORDER BY k.seq ON CONFLICT DO NOTHING"
    )))
    .bind(model.as_str())
    .bind(wanted(requests))
    .bind(at)
    .execute(connection)
    .await?;
    Ok(())
}

/// Requests as one document, each once, however often a batch names it.
fn wanted(requests: &[&str]) -> Json<Vec<Value>> {
    let requests: BTreeSet<String> = requests.iter().map(|request| text(request)).collect();
    Json(requests.into_iter().map(|request| json!({ "r": request })).collect())
}

/// How many of these requests have a truth that waits for its prediction.
async fn waiting(
    connection: &mut Connection,
    model: &ModelName,
    requests: &[&str],
) -> Result<u64, StoreError> {
    let row = sqlx::query(sql!(concat!(
        "SELECT count(*) AS n FROM ",
        each!("$2"),
        found!("truths", "t", "t.model = $1 AND t.request_id = e.value ->> 'r'")
    )))
    .bind(model.as_str())
    .bind(wanted(requests))
    .fetch_one(connection)
    .await?;
    unsigned(&row, "n")
}

/// Makes pairs of errors of these requests, as far as both prediction and truth are known, and deletes both. The
/// caller holds the model's row of `evidence_clock`.
pub(super) async fn match_truths(
    connection: &mut Connection,
    model: &ModelName,
    requests: &[&str],
    at: Timestamp,
) -> Result<(), StoreError> {
    if requests.is_empty() {
        return Ok(());
    }
    let found = sqlx::query(sql!(concat!(
        "SELECT p.request_id, p.version, p.value AS predicted, p.shadow, p.at AS served_at, t.value AS truth, t.block
         FROM ",
        each!("$2"),
        found!("predictions", "p", "p.model = $1 AND p.request_id = e.value ->> 'r'"),
        found!("truths", "t", "t.model = $1 AND t.request_id = p.request_id"),
        " ORDER BY p.request_id"
    )))
    .bind(model.as_str())
    .bind(wanted(requests))
    .fetch_all(&mut *connection)
    .await?;
    let mut pairs = Vec::new();
    let mut matched = Vec::with_capacity(found.len());
    let mut counted = Labelled::default();
    for row in &found {
        let request: String = get(row, "request_id")?;
        let truth: f64 = get(row, "truth")?;
        let error = (get::<f64>(row, "predicted")? - truth).abs();
        let (block, version) = (get::<Option<String>>(row, "block")?, get::<String>(row, "version")?);
        let served_at: Timestamp = get(row, "served_at")?;
        let about =
            About { request: &request, block: block.as_deref(), served_at: Some(served_at), scored: None };
        // A version with itself, whoever served: its errors, from which a later canary learns their scale.
        let served = (version.as_str(), error);
        pairs.extend(about.finite_pair(served, served));
        for shadow in document::<Vec<Shadow>>(row, "shadow")? {
            if shadow.v.as_str() != version {
                let scored = (shadow.v.as_str(), (shadow.p - truth).abs());
                pairs.extend(about.finite_pair(served, scored));
                pairs.extend(about.finite_pair(scored, scored));
            }
        }
        matched.push(request);
        counted.labelled(version, served_at);
    }
    if matched.is_empty() {
        return Ok(());
    }
    counted.keep(connection, model).await?;
    insert_pairs(connection, model, pairs, at).await?;
    let matched: Vec<&str> = matched.iter().map(String::as_str).collect();
    // Raw predictions and truths are not kept once they were matched.
    for statement in [MARK_REPORTED, DELETE_PREDICTIONS, DELETE_TRUTHS] {
        of_requests(connection, statement, model, &matched).await?;
    }
    Ok(())
}

/// The first pair of two versions on a request counts, whoever reports it again.
async fn insert_pairs(
    connection: &mut Connection,
    model: &ModelName,
    mut pairs: Vec<Value>,
    at: Timestamp,
) -> Result<(), StoreError> {
    if pairs.is_empty() {
        return Ok(());
    }
    let mut seq = take_numbers(connection, model, i64::try_from(pairs.len()).unwrap_or(i64::MAX)).await?;
    for pair in &mut pairs {
        pair["n"] = json!(seq);
        seq += 1;
    }
    sqlx::query(sql!(concat!(
        "INSERT INTO refit.paired_errors
             (model, seq, request_id, block, one, one_error, other, other_error, at, served_at, truth)
         SELECT $1, CAST(e.value ->> 'n' AS BIGINT), e.value ->> 'r', e.value ->> 'b', e.value ->> 'v',
             CAST(e.value ->> 'e' AS DOUBLE PRECISION), e.value ->> 'w', CAST(e.value ->> 'f' AS DOUBLE PRECISION), $3, ",
        moment!("e.value ->> 't'"), ", CAST(e.value ->> 'u' AS DOUBLE PRECISION) FROM ", each!("$2"),
        " WHERE TRUE ON CONFLICT DO NOTHING"
    )))
    .bind(model.as_str())
    .bind(Json(pairs))
    .bind(at)
    .execute(connection)
    .await?;
    Ok(())
}

/// The app's own report of these requests has met its truth: one that comes again is known.
const MARK_REPORTED: &str = sql!(concat!(
    "UPDATE refit.paired_errors SET truth = NULL WHERE truth IS NOT NULL AND",
    of_requests!("paired_errors", "$2")
));
const DELETE_PREDICTIONS: &str =
    sql!(concat!("DELETE FROM refit.predictions WHERE", of_requests!("predictions", "$2")));
const DELETE_TRUTHS: &str = sql!(concat!("DELETE FROM refit.truths WHERE", of_requests!("truths", "$2")));

/// Runs a statement about requests, `$2`, of a model, `$1`.
async fn of_requests(
    connection: &mut Connection,
    statement: &'static str,
    model: &ModelName,
    requests: &[&str],
) -> Result<(), StoreError> {
    if !requests.is_empty() {
        sqlx::query(statement).bind(model.as_str()).bind(wanted(requests)).execute(connection).await?;
    }
    Ok(())
}
