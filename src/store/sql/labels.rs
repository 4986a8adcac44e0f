//! Which requests have their truth, by when they were served, and what came of
//! age since a look.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sqlx::types::Json;

use super::super::{Connection, Row};
use super::evidence::unsigned;
use super::rows::{self, get, time_text, word};
use super::store::SqlStore;
use super::truth::{in_order, pair};
use crate::domain::Timestamp;
use crate::domain::canary::{Ripe, Ripening};
use crate::domain::evidence::{LabelCounts, LabelMinute, PairedError, minute_of};
use crate::domain::id::{ModelName, VersionName};
use crate::store::StoreError;

/// Requests of a version in a minute: new ones with a prediction, and those whose truth became known.
#[derive(Debug, Default)]
pub(super) struct Labelled {
    minutes: BTreeMap<(String, Timestamp), (u64, u64)>,
}

impl Labelled {
    pub(super) fn predicted(&mut self, version: String, served_at: Timestamp) {
        self.minute(version, served_at).0 += 1;
    }

    pub(super) fn labelled(&mut self, version: String, served_at: Timestamp) {
        self.minute(version, served_at).1 += 1;
    }

    fn minute(&mut self, version: String, served_at: Timestamp) -> &mut (u64, u64) {
        self.minutes.entry((version, minute_of(served_at).unwrap_or(served_at))).or_default()
    }

    /// Adds them to what is counted. The caller holds the model's row of `evidence_clock`.
    pub(super) async fn keep(self, connection: &mut Connection, model: &ModelName) -> Result<(), StoreError> {
        if self.minutes.is_empty() {
            return Ok(());
        }
        let rows: Vec<Value> = self
            .minutes
            .into_iter()
            .map(|((version, minute), (predicted, labelled))| {
                json!({"v": version, "t": time_text(minute), "p": predicted, "l": labelled})
            })
            .collect();
        sqlx::query(sql!(concat!(
            "INSERT INTO refit.label_minutes (model, version, minute, predicted, labelled)
             SELECT $1, e.value ->> 'v', ",
            moment!("e.value ->> 't'"),
            ", CAST(e.value ->> 'p' AS BIGINT), CAST(e.value ->> 'l' AS BIGINT) FROM ",
            each!("$2"),
            " WHERE TRUE ON CONFLICT (model, minute, version) DO UPDATE SET
                 predicted = label_minutes.predicted + excluded.predicted,
                 labelled = label_minutes.labelled + excluded.labelled"
        )))
        .bind(model.as_str())
        .bind(Json(rows))
        .execute(connection)
        .await?;
        Ok(())
    }
}

impl SqlStore {
    pub(super) async fn list_ripe(
        &self,
        model: &ModelName,
        canary: &VersionName,
        stable: &VersionName,
        wanted: &Ripening,
        limit: u32,
    ) -> Result<Ripe, StoreError> {
        let pairs = self.pairs_of_age(model, canary, stable, wanted, limit).await?;
        let all = (wanted.until, i64::MAX);
        let through = match pairs.last() {
            Some(last) if pairs.len() >= limit as usize => (last.served_at.unwrap_or(wanted.until), last.seq),
            Some(_) | None => all,
        };
        let (from, before) = wanted.minutes;
        let found = sqlx::query(sql!(
            "SELECT * FROM refit.label_minutes
             WHERE model = $1 AND version IN ($2, $3) AND minute >= $4 AND minute < $5 ORDER BY minute"
        ))
        .bind(model.as_str())
        .bind(canary.as_str())
        .bind(stable.as_str())
        .bind(from)
        .bind(before)
        .fetch_all(&self.parts.reader)
        .await?;
        Ok(Ripe { pairs, through, minutes: rows::all(&found, minute)?, before })
    }

    pub(super) async fn count_labels(
        &self,
        model: &ModelName,
        version: &VersionName,
        since: Timestamp,
    ) -> Result<LabelCounts, StoreError> {
        let row = sqlx::query(sql!(
            "SELECT CAST(coalesce(sum(predicted), 0) AS BIGINT) AS predicted,
                 CAST(coalesce(sum(labelled), 0) AS BIGINT) AS labelled
             FROM refit.label_minutes WHERE model = $1 AND version = $2 AND minute >= $3"
        ))
        .bind(model.as_str())
        .bind(version.as_str())
        .bind(minute_of(since).unwrap_or(since))
        .fetch_one(&self.parts.reader)
        .await?;
        Ok(LabelCounts { predicted: unsigned(&row, "predicted")?, labelled: unsigned(&row, "labelled")? })
    }

    async fn pairs_of_age(
        &self,
        model: &ModelName,
        canary: &VersionName,
        stable: &VersionName,
        wanted: &Ripening,
        limit: u32,
    ) -> Result<Vec<PairedError>, StoreError> {
        let Some((after, number)) = wanted.after.filter(|(after, _)| *after <= wanted.until) else {
            return Ok(vec![]);
        };
        let (one, other) = in_order(canary.as_str(), stable.as_str());
        let found = sqlx::query(sql!(
            "SELECT * FROM refit.paired_errors
             WHERE model = $1 AND one = $2 AND other = $3
             AND served_at >= $4 AND served_at <= $6 AND (served_at > $4 OR seq > $5) AND seq <= $7
             ORDER BY served_at, seq LIMIT $8"
        ))
        .bind(model.as_str())
        .bind(one)
        .bind(other)
        .bind(after)
        .bind(number)
        .bind(wanted.until)
        .bind(wanted.read)
        .bind(i64::from(limit))
        .fetch_all(&self.parts.reader)
        .await?;
        rows::all(&found, |row| pair(row, canary))
    }
}

fn minute(row: &Row) -> Result<LabelMinute, StoreError> {
    Ok(LabelMinute {
        version: word(row, "version")?,
        minute: get(row, "minute")?,
        predicted: unsigned(row, "predicted")?,
        labelled: unsigned(row, "labelled")?,
    })
}
