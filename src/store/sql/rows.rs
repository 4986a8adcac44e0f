//! Rows as domain types, and domain types as what a row keeps.

use std::borrow::Cow;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sqlx::types::{Json, Uuid};
use sqlx::{ColumnIndex, Decode, Row as _, Type};

use super::super::{Db, Row};
use crate::domain::Timestamp;
use crate::domain::event::Event;
use crate::domain::id::{Epoch, EventId, RunId};
use crate::domain::run::{Attempt, Intent, Run, Signal};
use crate::store::error::unreadable;
use crate::store::{RunSummary, StoreError};

/// Text a database takes: Postgres has no NUL in text, and hostile text may.
pub(crate) fn text(text: &str) -> String {
    if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text.to_owned() }
}

fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(s) => s.contains('\0'),
        Value::Array(items) => items.iter().any(has_nul),
        Value::Object(map) => map.iter().any(|(key, value)| key.contains('\0') || has_nul(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

fn without_nul(value: Value) -> Value {
    match value {
        Value::String(s) => Value::String(text(&s)),
        Value::Array(items) => Value::Array(items.into_iter().map(without_nul).collect()),
        Value::Object(map) => {
            Value::Object(map.into_iter().map(|(key, value)| (text(&key), without_nul(value))).collect())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value,
    }
}

/// A document as it is kept.
pub(super) fn doc<T: Serialize>(value: &T) -> Result<Json<Value>, StoreError> {
    let value = serde_json::to_value(value).map_err(|e| unreadable("a document", e))?;
    Ok(Json(if has_nul(&value) { without_nul(value) } else { value }))
}

/// A document that may be absent.
pub(crate) fn doc_opt<T: Serialize>(value: Option<&T>) -> Result<Option<Json<Value>>, StoreError> {
    value.map(doc).transpose()
}

/// A value as it is kept; copied only where something in it is not.
pub(crate) fn kept(value: &Value) -> Json<Cow<'_, Value>> {
    Json(if has_nul(value) { Cow::Owned(without_nul(value.clone())) } else { Cow::Borrowed(value) })
}

/// A column.
pub(super) fn get<'r, T>(row: &'r Row, column: &str) -> Result<T, StoreError>
where
    T: Decode<'r, Db> + Type<Db>,
    for<'c> &'c str: ColumnIndex<Row>,
{
    row.try_get(column).map_err(|e| unreadable(column, e))
}

/// A column that holds a document.
pub(super) fn json<T: DeserializeOwned>(row: &Row, column: &str) -> Result<T, StoreError> {
    let Json(value) = get::<Json<Value>>(row, column)?;
    serde_json::from_value(value).map_err(|e| unreadable(column, e))
}

/// A column that may hold a document.
pub(super) fn json_opt<T: DeserializeOwned>(row: &Row, column: &str) -> Result<Option<T>, StoreError> {
    match get::<Option<Json<Value>>>(row, column)? {
        Some(Json(value)) => serde_json::from_value(value).map(Some).map_err(|e| unreadable(column, e)),
        None => Ok(None),
    }
}

/// A column that holds the word of an enum, or a name.
pub(super) fn word<T: DeserializeOwned>(row: &Row, column: &str) -> Result<T, StoreError> {
    serde_json::from_value(Value::String(get(row, column)?)).map_err(|e| unreadable(column, e))
}

/// A column that may hold a word or a name.
pub(super) fn word_opt<T: DeserializeOwned>(row: &Row, column: &str) -> Result<Option<T>, StoreError> {
    match get::<Option<String>>(row, column)? {
        Some(text) => {
            serde_json::from_value(Value::String(text)).map(Some).map_err(|e| unreadable(column, e))
        }
        None => Ok(None),
    }
}

/// A count, which the databases keep as a signed number.
pub(super) fn count(row: &Row, column: &str) -> Result<u32, StoreError> {
    u32::try_from(get::<i64>(row, column)?).map_err(|e| unreadable(column, e))
}

/// An event.
pub(super) fn event(row: &Row) -> Result<Event, StoreError> {
    Ok(Event {
        id: EventId(get::<Uuid>(row, "id")?),
        name: get(row, "name")?,
        data: get::<Json<Value>>(row, "data")?.0,
        source: get(row, "source")?,
        dedup_key: get(row, "dedup_key")?,
        received_at: get(row, "received_at")?,
    })
}

/// A run with its documents.
pub(super) fn run(row: &Row) -> Result<Run, StoreError> {
    Ok(Run {
        id: RunId(get(row, "id")?),
        workflow: word(row, "workflow")?,
        model: word(row, "model")?,
        definition: json(row, "definition")?,
        cause: json(row, "cause")?,
        status: word(row, "status")?,
        outcome: word_opt(row, "outcome")?,
        reason: get(row, "reason")?,
        epoch: Epoch(get(row, "epoch")?),
        crashes: count(row, "crashes")?,
        cancel: json_opt(row, "cancel")?,
        committed: get(row, "committed")?,
        concurrency_key: get(row, "concurrency_key")?,
        created_at: get(row, "created_at")?,
        finished_at: get(row, "finished_at")?,
    })
}

/// A run in a list.
pub(super) fn summary(row: &Row) -> Result<RunSummary, StoreError> {
    Ok(RunSummary {
        id: RunId(get(row, "id")?),
        workflow: word(row, "workflow")?,
        model: word(row, "model")?,
        status: word(row, "status")?,
        outcome: word_opt(row, "outcome")?,
        reason: get(row, "reason")?,
        event: get(row, "event_name")?,
        created_at: get(row, "created_at")?,
        finished_at: get(row, "finished_at")?,
    })
}

/// An attempt, with its place among those of its run.
pub(super) fn attempt(row: &Row) -> Result<(i64, Attempt), StoreError> {
    let attempt = Attempt {
        step: word(row, "step")?,
        attempt: count(row, "attempt")?,
        state: word(row, "state")?,
        epoch: Epoch(get(row, "epoch")?),
        started_at: get(row, "started_at")?,
        finished_at: get(row, "finished_at")?,
        output: get::<Option<Json<Value>>>(row, "output")?.map(|json| json.0),
        error: json_opt(row, "error")?,
        resume: get::<Option<Json<Value>>>(row, "resume")?.map(|json| json.0),
        wake_at: get(row, "wake_at")?,
    };
    Ok((get(row, "place")?, attempt))
}

/// The attempt that began when that of this row ended, with its place.
pub(super) fn next(row: &Row) -> Result<Option<(i64, Attempt)>, StoreError> {
    let Some(step) = word_opt(row, "next_step")? else { return Ok(None) };
    let (attempt, epoch) = (count(row, "next_attempt")?, Epoch(get(row, "epoch")?));
    Ok(Some((get(row, "next_place")?, Attempt::started(step, attempt, epoch, get(row, "changed_at")?))))
}

/// An intent.
pub(super) fn intent(row: &Row) -> Result<Intent, StoreError> {
    Ok(Intent {
        step: word(row, "step")?,
        key: get(row, "key")?,
        detail: get::<Json<Value>>(row, "detail")?.0,
        undo: json_opt(row, "undo")?,
        result: get::<Option<Json<Value>>>(row, "result")?.map(|json| json.0),
        state: word(row, "state")?,
    })
}

/// A signal.
pub(super) fn signal(row: &Row) -> Result<Signal, StoreError> {
    Ok(Signal {
        id: get(row, "id")?,
        kind: json(row, "kind")?,
        actor: get(row, "actor")?,
        reason: get(row, "reason")?,
        at: get(row, "at")?,
    })
}

/// All rows of a list.
pub(super) fn all<T>(
    rows: &[Row],
    read: impl Fn(&Row) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    rows.iter().map(read).collect()
}

/// A time as the databases print it in a document; the shortest form, so that text sorts like time.
pub(crate) fn time_text(at: Timestamp) -> String {
    at.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, false)
}
