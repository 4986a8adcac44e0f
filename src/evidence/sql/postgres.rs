//! Rows of Postgres, in a read-only transaction; a role with SELECT suffices.

use futures::StreamExt;
use serde_json::{Map, Value, json};
use sqlx::postgres::PgConnection;
use sqlx::types::chrono::NaiveDateTime;
use sqlx::{AssertSqlSafe, Column, Executor, Row, SqlSafeStr, Statement, TypeInfo};
use tokio::time::timeout;

use super::super::rows::{Found, Rows};
use super::{ACTION, PAGE, PATIENCE, missing};
use crate::adapter::AdapterError;
use crate::app_database::{self, Asked};
use crate::domain::Timestamp;
use crate::domain::pull::Wanted;
use crate::secret::Secret;

/// How the column `at` keeps time.
#[derive(Clone, Copy)]
enum Clock {
    /// `timestamptz`.
    Zoned,
    /// `timestamp`, which is taken for UTC.
    Naive,
}

/// Gives one page to `rows`; returns whether there is more.
pub(super) async fn read(
    url: &Secret,
    query: &str,
    wanted: &Wanted,
    rows: &mut Rows<'_>,
) -> Result<bool, AdapterError> {
    let asked = Asked::postgres(url.reveal(), ACTION);
    let mut connection = app_database::postgres(url.reveal(), &asked).await?;
    let more = timeout(PATIENCE, page(&mut connection, &asked, query, wanted, rows)).await;
    app_database::close(connection).await;
    more.map_err(|_| asked.late(PATIENCE))?
}

async fn page(
    connection: &mut PgConnection,
    asked: &Asked,
    query: &str,
    wanted: &Wanted,
    rows: &mut Rows<'_>,
) -> Result<bool, AdapterError> {
    let failed = |error: sqlx::Error| asked.failure(&error);
    let begin = format!("BEGIN READ ONLY; SET LOCAL statement_timeout = {}", PATIENCE.as_millis());
    connection.execute(AssertSqlSafe(begin)).await.map_err(failed)?;
    let clock = clock(connection, asked, query).await?;
    let cursor = wanted.cursor.as_ref().and_then(position);
    let after = cursor
        .as_ref()
        .map_or("", |_| " AND (r.at, coalesce(r.request_id::text, '') COLLATE \"C\") > ($3, $4)");
    let text = format!(
        "SELECT r.at AS at, coalesce(r.request_id::text, '') AS id, to_jsonb(r)::text AS fields FROM (\n{query}) AS r \
         WHERE r.at >= $1 AND r.at < $2{after} \
         ORDER BY r.at, coalesce(r.request_id::text, '') COLLATE \"C\" LIMIT {}",
        PAGE.0
    );
    let mut found = sqlx::query(AssertSqlSafe(text)).persistent(false);
    for at in
        [Some(wanted.since), Some(wanted.until), cursor.as_ref().map(|cursor| cursor.0)].into_iter().flatten()
    {
        found = match clock {
            Clock::Zoned => found.bind(at),
            Clock::Naive => found.bind(at.naive_utc()),
        };
    }
    if let Some((_, id)) = cursor {
        found = found.bind(id);
    }
    let mut bytes = 0;
    {
        let mut found = found.fetch(&mut *connection);
        while let Some(row) = found.next().await {
            let row = row.map_err(failed)?;
            let at = match clock {
                Clock::Zoned => row.try_get::<Timestamp, _>("at"),
                Clock::Naive => row.try_get::<NaiveDateTime, _>("at").map(|at| at.and_utc()),
            };
            let (at, id) = (at.map_err(failed)?, row.try_get::<String, _>("id").map_err(failed)?);
            let fields: &str = row.try_get("fields").map_err(failed)?;
            bytes += fields.len();
            let fields: Map<String, Value> = serde_json::from_str(fields)
                .map_err(|error| asked.rejected(format!("a row is no JSON: {error}")))?;
            rows.take(Found { at: Ok(at), cursor: json!({"at": at, "id": id}), row: fields });
            if bytes >= PAGE.1 {
                return Ok(true);
            }
        }
    }
    connection.execute("ROLLBACK").await.map_err(failed)?;
    Ok(rows.len() == PAGE.0)
}

/// Asks for the query's columns.
async fn clock(connection: &mut PgConnection, asked: &Asked, query: &str) -> Result<Clock, AdapterError> {
    let text = AssertSqlSafe(format!("SELECT r.* FROM (\n{query}) AS r LIMIT 0")).into_sql_str();
    let statement = connection.prepare(text).await.map_err(|error| asked.failure(&error))?;
    let names: Vec<String> = statement.columns().iter().map(|column| column.name().to_owned()).collect();
    if let Some(cause) = missing(&names) {
        return Err(asked.rejected(cause));
    }
    let at = statement.columns().iter().find(|column| column.name() == "at");
    match at.map_or("", |at| at.type_info().name()) {
        "TIMESTAMPTZ" => Ok(Clock::Zoned),
        "TIMESTAMP" => Ok(Clock::Naive),
        other => {
            let cause = format!(
                "column `at` is {}, not a timestamp: such as `to_timestamp(created_ms / 1000.0) AS at`",
                other.to_lowercase()
            );
            Err(asked.rejected(cause))
        }
    }
}

/// A cursor as it was kept; one that cannot be read begins anew, and what was read is known by its ids.
fn position(cursor: &Value) -> Option<(Timestamp, String)> {
    let at = cursor.get("at")?.as_str()?.parse().ok()?;
    Some((at, cursor.get("id")?.as_str()?.to_owned()))
}
