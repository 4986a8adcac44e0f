//! Rows of a SQLite query, read-only, row by row.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteRow};
use sqlx::{
    AssertSqlSafe, Column, ConnectOptions, Connection, Executor, Row, SqlSafeStr, Statement, TypeInfo,
    ValueRef,
};

use super::Sink;
use crate::steps::context::StepError;

const CHUNK: usize = 256 * 1024;

pub(super) async fn send(path: &Path, query: &str, sink: &Sink) -> Result<(), StepError> {
    let failed = |error: &dyn std::fmt::Display| {
        StepError::permanent(format!("the SQLite file {} cannot be queried: {error}", path.display()))
    };
    if !path.is_file() {
        return Err(failed(&"there is no such file"));
    }
    let options = SqliteConnectOptions::new()
        .filename(path)
        .read_only(true)
        .create_if_missing(false)
        .busy_timeout(Duration::from_secs(10))
        // Also for what the query itself may attach.
        .pragma("query_only", "ON")
        .disable_statement_logging();
    let mut connection: SqliteConnection = options.connect().await.map_err(|error| failed(&error))?;
    let query = query.trim().trim_end_matches(';');
    let statement = AssertSqlSafe(query.to_owned()).into_sql_str();
    let statement = connection.prepare(statement).await.map_err(|error| failed(&error))?;
    let names: Vec<String> = statement.columns().iter().map(|column| column.name().to_owned()).collect();
    if names.is_empty() {
        return Err(failed(&"the query gives no columns"));
    }
    let mut writer = csv::Writer::from_writer(Vec::with_capacity(CHUNK));
    writer.write_record(&names).map_err(|error| failed(&error))?;
    {
        let mut rows = sqlx::query(AssertSqlSafe(query.to_owned())).fetch(&mut connection);
        while let Some(row) = rows.next().await {
            let row = row.map_err(|error| failed(&error))?;
            for (place, name) in names.iter().enumerate() {
                let cell = cell(&row, place).map_err(|cause| failed(&format!("column `{name}`: {cause}")))?;
                writer.write_field(cell).map_err(|error| failed(&error))?;
            }
            writer.write_record(None::<&[u8]>).map_err(|error| failed(&error))?;
            if writer.get_ref().len() >= CHUNK {
                let full = writer.into_inner().map_err(|error| failed(&error))?;
                if sink.send(Bytes::from(full)).await.is_err() {
                    return Ok(());
                }
                writer = csv::Writer::from_writer(Vec::with_capacity(CHUNK));
            }
        }
    }
    let rest = writer.into_inner().map_err(|error| failed(&error))?;
    // A reader that is gone says itself why.
    let _ = sink.send(Bytes::from(rest)).await;
    let _ = connection.close().await;
    Ok(())
}

/// A value as text; NULL is an empty cell.
fn cell(row: &SqliteRow, place: usize) -> Result<String, String> {
    let value = row.try_get_raw(place).map_err(|error| error.to_string())?;
    if value.is_null() {
        return Ok(String::new());
    }
    let kind = value.type_info().name().to_owned();
    let read = match kind.as_str() {
        "INTEGER" => row.try_get_unchecked::<i64, _>(place).map(|number| number.to_string()),
        "REAL" => row.try_get_unchecked::<f64, _>(place).map(|number| number.to_string()),
        "BLOB" => return Err("it holds bytes (BLOB), which a CSV file cannot".to_owned()),
        _ => row.try_get_unchecked::<String, _>(place),
    };
    read.map_err(|error| error.to_string())
}
