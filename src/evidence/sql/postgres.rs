//! Rows of Postgres, in a read-only transaction; a role with SELECT suffices.

use std::str::FromStr;

use futures::StreamExt;
use serde_json::{Map, Value, json};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::types::chrono::NaiveDateTime;
use sqlx::{
    AssertSqlSafe, Column, ConnectOptions, Connection, Executor, Row, SqlSafeStr, Statement, TypeInfo,
};
use tokio::time::timeout;

use super::super::lines::printable;
use super::super::rows::{Found, Rows};
use super::{GOODBYE, PAGE, PATIENCE, missing, rejected};
use crate::adapter::AdapterError;
use crate::domain::Timestamp;
use crate::domain::pull::Wanted;
use crate::secret::Secret;

const ACTION: &str = "read its evidence";

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
    let service = shown(url.reveal());
    let late = || AdapterError::Unavailable {
        service: service.clone(),
        cause: format!("no answer within {PATIENCE:?}"),
        retry_after: None,
    };
    let mut connection = timeout(PATIENCE, connect(url, &service)).await.map_err(|_| late())??;
    let more =
        timeout(PATIENCE, page(&mut connection, &service, query, wanted, rows)).await.map_err(|_| late())?;
    // It read only: a goodbye that does not arrive changes nothing.
    let _ = timeout(GOODBYE, connection.close()).await;
    more
}

async fn connect(url: &Secret, service: &str) -> Result<PgConnection, AdapterError> {
    let options = PgConnectOptions::from_str(url.reveal())
        .map_err(|_| rejected(service, "be opened", "its `url` is not a Postgres connection string"))?
        .application_name("refit")
        // Poolers hand every transaction to another session.
        .statement_cache_capacity(0)
        .disable_statement_logging();
    options.connect().await.map_err(|error| failure(service, &error))
}

async fn page(
    connection: &mut PgConnection,
    service: &str,
    query: &str,
    wanted: &Wanted,
    rows: &mut Rows<'_>,
) -> Result<bool, AdapterError> {
    let failed = |error: sqlx::Error| failure(service, &error);
    let begin = format!("BEGIN READ ONLY; SET LOCAL statement_timeout = {}", PATIENCE.as_millis());
    connection.execute(AssertSqlSafe(begin)).await.map_err(failed)?;
    let clock = clock(connection, service, query).await?;
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
                .map_err(|error| rejected(service, ACTION, &format!("a row is no JSON: {error}")))?;
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
async fn clock(connection: &mut PgConnection, service: &str, query: &str) -> Result<Clock, AdapterError> {
    let text = AssertSqlSafe(format!("SELECT r.* FROM (\n{query}) AS r LIMIT 0")).into_sql_str();
    let statement = connection.prepare(text).await.map_err(|error| failure(service, &error))?;
    let names: Vec<String> = statement.columns().iter().map(|column| column.name().to_owned()).collect();
    if let Some(cause) = missing(&names) {
        return Err(rejected(service, ACTION, &cause));
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
            Err(rejected(service, ACTION, &cause))
        }
    }
}

/// A cursor as it was kept; one that cannot be read begins anew, and what was read is known by its ids.
fn position(cursor: &Value) -> Option<(Timestamp, String)> {
    let at = cursor.get("at")?.as_str()?.parse().ok()?;
    Some((at, cursor.get("id")?.as_str()?.to_owned()))
}

/// The connection string without what may be secret in it.
fn shown(url: &str) -> String {
    match url::Url::parse(url) {
        Ok(url) => {
            let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
            format!("postgres://{}{port}{}", url.host_str().unwrap_or_default(), url.path())
        }
        Err(_) => "Postgres".to_owned(),
    }
}

fn failure(service: &str, error: &sqlx::Error) -> AdapterError {
    let unavailable =
        |cause: String| AdapterError::Unavailable { service: service.to_owned(), cause, retry_after: None };
    match error {
        sqlx::Error::Database(said) => {
            let code = said.code().unwrap_or_default();
            let cause = format!("{} ({code})", printable(said.message()));
            match code.get(..2).unwrap_or_default() {
                // Connections, resources, operator intervention (a timeout among them), serialization.
                "08" | "53" | "57" | "40" | "55" => unavailable(cause),
                "28" | "42" if code == "42501" || code.starts_with("28") => {
                    AdapterError::Denied { service: service.to_owned(), action: ACTION.to_owned(), cause }
                }
                _ => rejected(service, ACTION, &cause),
            }
        }
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::Tls(_) => unavailable(error.to_string()),
        other => rejected(service, ACTION, &other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn a_connection_string_is_shown_without_its_secrets() {
        let url = "postgres://app:hunter2@db.example.com:5432/races?sslmode=require&password=x";
        assert_eq!(shown(url), "postgres://db.example.com:5432/races");
        assert_eq!(shown("host=db password=x"), "Postgres");
    }
}
