//! Rows of a SQLite file, read-only. SQLite has no type for time: `at` is a
//! text or a number, as the app writes it, and is compared as such, so that an
//! index on it is used.

use std::path::Path;

use futures::StreamExt;
use serde_json::{Map, Number, Value, json};
use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Column, Executor, Row, SqlSafeStr, Statement, TypeInfo, ValueRef};
use tokio::time::timeout;

use super::super::rows::{Found, MILLISECONDS, Rows, moment};
use super::{ACTION, PAGE, PATIENCE, missing};
use crate::adapter::AdapterError;
use crate::app_database::{self, Asked};
use crate::domain::Timestamp;
use crate::domain::expect::parse_timestamp;
use crate::domain::pull::Wanted;

/// Rows by which the form of `at` is told.
const SAMPLE: usize = 20;

/// How the column `at` keeps time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Clock {
    Seconds,
    Milliseconds,
    /// A text in UTC, with this between day and hour.
    Text(char),
}

impl Clock {
    /// The form of a value, if it is a time.
    fn of(value: &Value) -> Option<Self> {
        let at = moment(value).ok()?;
        match value {
            Value::String(text) => {
                // Times of several offsets do not sort as texts.
                let read = parse_timestamp(text.get(..19)?)?;
                text.chars().nth(10).filter(|_| read.timestamp() == at.timestamp()).map(Clock::Text)
            }
            Value::Number(number) if number.as_f64()? >= MILLISECONDS as f64 => Some(Clock::Milliseconds),
            Value::Number(_) => Some(Clock::Seconds),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        }
    }

    /// `at` in this form: what is earlier sorts before it.
    fn bound(self, at: Timestamp) -> Value {
        match self {
            Clock::Seconds => json!(at.timestamp()),
            Clock::Milliseconds => json!(at.timestamp_millis()),
            Clock::Text(separator) => {
                json!(
                    at.format("%Y-%m-%d").to_string()
                        + &separator.to_string()
                        + &at.format("%H:%M:%S").to_string()
                )
            }
        }
    }
}

/// Gives one page to `rows`; returns whether there is more.
pub(super) async fn read(
    path: &Path,
    query: &str,
    wanted: &Wanted,
    rows: &mut Rows<'_>,
) -> Result<bool, AdapterError> {
    let asked = Asked::sqlite(path, ACTION);
    let mut connection = app_database::sqlite(path, &asked).await?;
    let more = timeout(PATIENCE, page(&mut connection, &asked, query, wanted, rows)).await;
    app_database::close(connection).await;
    more.map_err(|_| asked.late(PATIENCE))?
}

async fn page(
    connection: &mut SqliteConnection,
    asked: &Asked,
    query: &str,
    wanted: &Wanted,
    rows: &mut Rows<'_>,
) -> Result<bool, AdapterError> {
    let failed = |error: sqlx::Error| asked.failure(&error);
    let text = AssertSqlSafe(format!("SELECT r.* FROM (\n{query}) AS r")).into_sql_str();
    let statement = connection.prepare(text).await.map_err(failed)?;
    let names: Vec<String> = statement.columns().iter().map(|column| column.name().to_owned()).collect();
    if let Some(cause) = missing(&names) {
        return Err(asked.rejected(cause));
    }
    let Some(clock) = clock(connection, asked, query).await? else { return Ok(false) };
    let id = "CAST(coalesce(r.request_id, '') AS TEXT)";
    let cursor =
        wanted.cursor.as_ref().and_then(|cursor| Some((cursor.get("at")?, cursor.get("id")?.as_str()?)));
    let after = cursor.map_or(String::new(), |_| format!(" AND (r.at > $3 OR (r.at = $3 AND {id} > $4))"));
    let text = format!(
        "SELECT r.* FROM (\n{query}) AS r WHERE r.at >= $1 AND r.at < $2{after} ORDER BY r.at, {id} LIMIT {}",
        PAGE.0
    );
    let mut found = sqlx::query(AssertSqlSafe(text));
    found = bind(bind(found, &clock.bound(wanted.since)), &clock.bound(wanted.until));
    if let Some((at, id)) = cursor {
        found = bind(found, at).bind(id.to_owned());
    }
    let mut bytes = 0;
    let mut found = found.fetch(connection);
    while let Some(row) = found.next().await {
        let row = row.map_err(failed)?;
        let mut fields = Map::new();
        for (place, name) in names.iter().enumerate() {
            let value = value(&row, place).map_err(failed)?;
            bytes += value.as_str().map_or(16, str::len);
            fields.insert(name.clone(), value);
        }
        let at = fields.get("at").cloned().unwrap_or_default();
        let id = match fields.get("request_id") {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Number(number)) => number.to_string(),
            _ => String::new(),
        };
        // A text among times sorts anywhere; refused, it still says where the next page begins.
        rows.take(Found { at: moment(&at), cursor: json!({"at": at, "id": id}), row: fields });
        if bytes >= PAGE.1 {
            return Ok(true);
        }
    }
    Ok(rows.len() == PAGE.0)
}

/// The form of `at`, by the first rows that have one; `None` when there is no row.
async fn clock(
    connection: &mut SqliteConnection,
    asked: &Asked,
    query: &str,
) -> Result<Option<Clock>, AdapterError> {
    let text = format!("SELECT r.at FROM (\n{query}) AS r WHERE r.at IS NOT NULL LIMIT {SAMPLE}");
    let found = sqlx::query(AssertSqlSafe(text)).fetch_all(connection).await;
    let found = found.map_err(|error| asked.failure(&error))?;
    let values: Result<Vec<Value>, _> = found.iter().map(|row| value(row, 0)).collect();
    let values = values.map_err(|error| asked.failure(&error))?;
    if values.is_empty() {
        return Ok(None);
    }
    values.iter().find_map(Clock::of).map(Some).ok_or_else(|| {
        let cause = "column `at` holds no time in UTC: neither such as `2026-03-01 12:00:00` nor seconds or \
                     milliseconds since 1970";
        asked.rejected(cause)
    })
}

type Query<'q> = sqlx::query::Query<'q, sqlx::Sqlite, SqliteArguments>;

fn bind<'q>(query: Query<'q>, value: &Value) -> Query<'q> {
    match value {
        Value::Number(number) => match number.as_i64() {
            Some(whole) => query.bind(whole),
            None => query.bind(number.as_f64()),
        },
        Value::String(text) => query.bind(text.clone()),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => query.bind(None::<i64>),
    }
}

fn value(row: &SqliteRow, place: usize) -> Result<Value, sqlx::Error> {
    let raw = row.try_get_raw(place)?;
    if raw.is_null() {
        return Ok(Value::Null);
    }
    let kind = raw.type_info().name().to_owned();
    Ok(match kind.as_str() {
        "INTEGER" => Value::from(row.try_get_unchecked::<i64, _>(place)?),
        "REAL" => {
            let real: f64 = row.try_get_unchecked(place)?;
            // Infinity has no form in JSON; as a text it is refused where a number is wanted.
            Number::from_f64(real).map_or_else(|| Value::from(real.to_string()), Value::Number)
        }
        "BLOB" => Value::from("bytes"),
        _ => Value::from(row.try_get_unchecked::<String, _>(place)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_compared_in_the_form_of_the_column() {
        let at = "2026-03-01T12:00:00.5Z".parse().expect("a time");
        for (value, clock, bound) in [
            (json!("2026-03-01 11:00:00"), Clock::Text(' '), json!("2026-03-01 12:00:00")),
            (json!("2026-03-01T11:00:00.123Z"), Clock::Text('T'), json!("2026-03-01T12:00:00")),
            (json!("2026-03-01T11:00:00+00:00"), Clock::Text('T'), json!("2026-03-01T12:00:00")),
            (json!(1_772_362_800), Clock::Seconds, json!(1_772_366_400)),
            (json!(1_772_362_800_000_i64), Clock::Milliseconds, json!(1_772_366_400_500_i64)),
        ] {
            assert_eq!(Clock::of(&value), Some(clock), "{value}");
            assert_eq!(clock.bound(at), bound);
        }
        for none in [json!("noon"), json!("2026-03-01T11:00:00+02:00"), json!(null)] {
            assert_eq!(Clock::of(&none), None, "{none}");
        }
    }
}
