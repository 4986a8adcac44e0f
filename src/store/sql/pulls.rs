//! Fetched evidence: a page is kept with the position after it, so that a death
//! before or after the commit neither loses nor doubles a request.

use std::collections::{BTreeSet, HashSet};

use chrono::TimeDelta;
use serde_json::{Value, json};
use sqlx::types::Json;

use super::super::{Connection, Row};
use super::evidence::{add_minute, add_predictions};
use super::rows::{self, doc, get, json as document, time_text, word};
use super::store::SqlStore;
use super::truth::{match_truths, take_scored_truths};
use crate::domain::Timestamp;
use crate::domain::evidence::{EvidenceMinute, Tally, minute_of};
use crate::domain::id::{ModelName, VersionName};
use crate::domain::pull::{PullState, PulledBatch};
use crate::store::{Pulled, StoreError};

/// Nothing is added to a minute that was there before and is older than this: it may have been looked at for good.
const SETTLED: TimeDelta = TimeDelta::minutes(10);

impl SqlStore {
    pub(super) async fn list_pulls(&self, model: Option<&ModelName>) -> Result<Vec<Pulled>, StoreError> {
        let found = sqlx::query(sql!(
            "SELECT * FROM refit.evidence_pulls WHERE $1 IS NULL OR model = $1 ORDER BY model, source"
        ))
        .bind(model.map(ModelName::as_str))
        .fetch_all(&self.parts.reader)
        .await?;
        rows::all(&found, pulled)
    }

    pub(super) async fn keep_page(&self, batch: &PulledBatch) -> Result<Option<PullState>, StoreError> {
        let mut tx = self.begin().await?;
        let seq = super::evidence::take_numbers(&mut tx, &batch.model, 1).await?;
        // The model's numbers are held: nobody else is between this look and the commit.
        if revision(&mut tx, batch).await? != batch.after.revision {
            return Ok(None);
        }
        let mut after = batch.after.clone();
        after.revision += 1;
        let session = after.session.unwrap_or(seq);
        after.session = batch.more.then_some(session);
        let mut fresh = unseen(&mut tx, batch).await?;
        let settled = settled(&mut tx, batch, session).await?;
        let now = minute_of(batch.at).unwrap_or(batch.at);
        let (mut tally, mut predictions) = (Tally::default(), vec![]);
        for observation in &batch.observations {
            // Taken out, so that a request that stands twice in one page counts once.
            if !fresh.remove(observation.request_id.as_str()) {
                continue;
            }
            let own = minute_of(observation.at).unwrap_or(now);
            let late = settled.contains(&(observation.version.clone(), own));
            after.report.counted += 1;
            after.report.late += u64::from(late);
            tally.add(observation, if late { now } else { own });
            predictions.extend(observation.clone().into_prediction());
        }
        let counted = batch.minutes.iter().filter(|it| !settled.contains(&(it.version.clone(), it.minute)));
        let counted: Vec<EvidenceMinute> = counted.cloned().collect();
        after.report.counted += counted.iter().map(|minute| minute.counts.n).sum::<u64>();
        for minute in tally.minutes().iter().chain(&counted) {
            add_minute(&mut tx, &batch.model, minute, seq).await?;
        }
        add_predictions(&mut tx, &batch.model, &predictions).await?;
        let requests: Vec<&str> = predictions.iter().map(|it| it.request_id.as_str()).collect();
        take_scored_truths(&mut tx, &batch.model, &requests, batch.at).await?;
        match_truths(&mut tx, &batch.model, &requests, batch.at).await?;
        forget(&mut tx, batch).await?;
        write(&mut tx, batch, &after).await?;
        tx.commit().await?;
        Ok(Some(after))
    }
}

fn pulled(row: &Row) -> Result<Pulled, StoreError> {
    let state: PullState = document(row, "state")?;
    Ok(Pulled { model: word(row, "model")?, source: get(row, "source")?, state })
}

async fn revision(connection: &mut Connection, batch: &PulledBatch) -> Result<i64, StoreError> {
    let row = sqlx::query(sql!("SELECT revision FROM refit.evidence_pulls WHERE model = $1 AND source = $2"))
        .bind(batch.model.as_str())
        .bind(batch.source)
        .fetch_optional(connection)
        .await?;
    row.as_ref().map_or(Ok(0), |row| get(row, "revision"))
}

/// Remembers the requests of a page and returns those that were not known.
async fn unseen(connection: &mut Connection, batch: &PulledBatch) -> Result<HashSet<String>, StoreError> {
    let rows: Vec<Value> =
        batch.observations.iter().map(|it| json!({"r": it.request_id, "t": time_text(it.at)})).collect();
    if rows.is_empty() {
        return Ok(HashSet::new());
    }
    let found = sqlx::query(sql!(concat!(
        "INSERT INTO refit.evidence_seen (model, source, request_id, at)
         SELECT $1, $2, e.value ->> 'r', ",
        moment!("e.value ->> 't'"),
        " FROM ",
        each!("$3"),
        " WHERE TRUE ON CONFLICT DO NOTHING RETURNING request_id"
    )))
    .bind(batch.model.as_str())
    .bind(batch.source)
    .bind(Json(rows))
    .fetch_all(connection)
    .await?;
    found.iter().map(|row| get(row, "request_id")).collect()
}

/// Minutes of the page that were there before its session and may have been looked at for good.
async fn settled(
    connection: &mut Connection,
    batch: &PulledBatch,
    session: i64,
) -> Result<BTreeSet<(VersionName, Timestamp)>, StoreError> {
    let observed = batch.observations.iter().filter_map(|it| Some((&it.version, minute_of(it.at)?)));
    let counted = batch.minutes.iter().map(|it| (&it.version, it.minute));
    let old: BTreeSet<(&VersionName, Timestamp)> =
        observed.chain(counted).filter(|(_, minute)| *minute < batch.at - SETTLED).collect();
    if old.is_empty() {
        return Ok(BTreeSet::new());
    }
    let old: Vec<Value> = old.iter().map(|(v, minute)| json!({"v": v, "t": time_text(*minute)})).collect();
    let found = sqlx::query(sql!(concat!(
        "SELECT m.version, m.minute FROM ",
        each!("$2"),
        found!(
            "evidence_minutes",
            "m",
            "m.seq < $3 AND m.model = $1 AND m.version = e.value ->> 'v' AND m.minute = ",
            moment!("e.value ->> 't'")
        )
    )))
    .bind(batch.model.as_str())
    .bind(Json(old))
    .bind(session)
    .fetch_all(connection)
    .await?;
    found.iter().map(|row| Ok((word(row, "version")?, get(row, "minute")?))).collect()
}

async fn forget(connection: &mut Connection, batch: &PulledBatch) -> Result<(), StoreError> {
    let Some(before) = batch.forget_before else { return Ok(()) };
    sqlx::query(sql!("DELETE FROM refit.evidence_seen WHERE model = $1 AND source = $2 AND at < $3"))
        .bind(batch.model.as_str())
        .bind(batch.source)
        .bind(before)
        .execute(connection)
        .await?;
    Ok(())
}

async fn write(
    connection: &mut Connection,
    batch: &PulledBatch,
    after: &PullState,
) -> Result<(), StoreError> {
    sqlx::query(sql!(
        "INSERT INTO refit.evidence_pulls (model, source, revision, state) VALUES ($1, $2, $3, $4)
         ON CONFLICT (model, source) DO UPDATE SET revision = excluded.revision, state = excluded.state"
    ))
    .bind(batch.model.as_str())
    .bind(batch.source)
    .bind(after.revision)
    .bind(doc(after)?)
    .execute(connection)
    .await?;
    Ok(())
}
