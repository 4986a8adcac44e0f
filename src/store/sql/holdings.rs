//! What may need a version: read whole, so that one transaction can ask it all.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use sqlx::types::{Json, Uuid};

use super::super::Connection;
use super::registry::pins_in;
use super::releases::release;
use super::rows::{self, get, json};
use super::versions::version;
use crate::domain::Timestamp;
use crate::domain::id::{Generation, ModelName, RunId, VersionName};
use crate::domain::release::Release;
use crate::domain::retention::{Holdings, PastAssignment};
use crate::store::StoreError;

/// Everything that may need a version of a model, as this connection sees it.
pub(super) async fn holdings_in(
    connection: &mut Connection,
    model: &ModelName,
    since: Timestamp,
) -> Result<Holdings, StoreError> {
    let found =
        sqlx::query(sql!("SELECT * FROM refit.versions WHERE model = $1 ORDER BY created_at DESC, seq DESC"))
            .bind(model.as_str())
            .fetch_all(&mut *connection)
            .await?;
    let versions = rows::all(&found, version)?;
    let found = sqlx::query(sql!("SELECT * FROM refit.releases WHERE model = $1 ORDER BY target"))
        .bind(model.as_str())
        .fetch_all(&mut *connection)
        .await?;
    let releases = rows::all(&found, release)?;
    let mut past = vec![];
    for release in &releases {
        past.extend(past_of(connection, release, since).await?);
    }
    let pins = pins_in(connection, Some(model)).await?;
    let unfinished = unfinished_in(connection, model).await?;
    let known: BTreeSet<&str> = versions.iter().map(|record| record.name.as_str()).collect();
    let named = named_in(connection, model, &known).await?;
    Ok(Holdings { versions, releases, past, pins, unfinished, named, ..Holdings::default() })
}

/// Assignments that were current since `since`, and all since the one that the host is known to show.
async fn past_of(
    connection: &mut Connection,
    release: &Release,
    since: Timestamp,
) -> Result<Vec<PastAssignment>, StoreError> {
    let applied = release.applied.unwrap_or(Generation(0));
    let found = sqlx::query(sql!(
        "SELECT generation, assignment, at FROM refit.release_audit
         WHERE model = $1 AND target = $2 AND (generation >= $3 OR generation >= (
             SELECT coalesce(max(generation), 0) FROM refit.release_audit
             WHERE model = $1 AND target = $2 AND at <= $4))
         ORDER BY generation DESC"
    ))
    .bind(release.model.as_str())
    .bind(release.target.as_str())
    .bind(applied.0)
    .bind(since)
    .fetch_all(connection)
    .await?;
    let mut until = None;
    let mut past = vec![];
    for row in &found {
        past.push(PastAssignment {
            target: release.target.clone(),
            assignment: json(row, "assignment")?,
            until,
            may_be_shown: get::<i64>(row, "generation")? >= applied.0,
        });
        until = Some(get(row, "at")?);
    }
    Ok(past)
}

async fn unfinished_in(
    connection: &mut Connection,
    model: &ModelName,
) -> Result<BTreeSet<RunId>, StoreError> {
    let found = sqlx::query(sql!("SELECT id FROM refit.runs WHERE model = $1 AND status <> 'finished'"))
        .bind(model.as_str())
        .fetch_all(connection)
        .await?;
    found.iter().map(|row| Ok(RunId(get::<Uuid>(row, "id")?))).collect()
}

/// Versions that something of an unfinished run, or of a canary that is watched, names: any text of its
/// documents that is a version's name counts.
async fn named_in(
    connection: &mut Connection,
    model: &ModelName,
    known: &BTreeSet<&str>,
) -> Result<BTreeMap<VersionName, RunId>, StoreError> {
    let documents = [
        sql!(
            "SELECT a.run, a.output AS one, a.resume AS other FROM refit.attempts a
             JOIN refit.runs r ON r.id = a.run WHERE r.model = $1 AND r.status <> 'finished'"
        ),
        sql!(
            "SELECT i.run, i.undo AS one, i.detail AS other FROM refit.intents i
             JOIN refit.runs r ON r.id = i.run WHERE r.model = $1 AND r.status <> 'finished'"
        ),
        sql!(
            "SELECT d.run, d.cause AS one, NULL AS other FROM refit.run_docs d
             JOIN refit.runs r ON r.id = d.run WHERE r.model = $1 AND r.status <> 'finished'"
        ),
        // As documents, too: one that is no canary any more holds what it names, and bars no other model.
        sql!(
            "SELECT c.run, c.record AS one, NULL AS other FROM refit.canaries c
             JOIN refit.runs r ON r.id = c.run WHERE r.model = $1 AND c.state IN ('watching', 'baking')"
        ),
    ];
    let mut named = BTreeMap::new();
    for query in documents {
        let found = sqlx::query(query).bind(model.as_str()).fetch_all(&mut *connection).await?;
        for row in &found {
            let run = RunId(get::<Uuid>(row, "run")?);
            for column in ["one", "other"] {
                if let Some(Json(value)) = get::<Option<Json<Value>>>(row, column)? {
                    collect(&value, run, known, &mut named);
                }
            }
        }
    }
    Ok(named)
}

fn collect(value: &Value, run: RunId, known: &BTreeSet<&str>, named: &mut BTreeMap<VersionName, RunId>) {
    match value {
        Value::String(text) => {
            if known.contains(text.as_str())
                && let Ok(version) = text.parse()
            {
                named.insert(version, run);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, run, known, named)),
        Value::Object(map) => map.values().for_each(|item| collect(item, run, known, named)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
