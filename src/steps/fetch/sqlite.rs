//! Rows of a SQLite query, read-only, row by row.

use std::path::Path;

use bytes::Bytes;
use futures::StreamExt;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Column, Executor, Row, SqlSafeStr, Statement, TypeInfo, ValueRef};

use super::{ACTION, Sink};
use crate::app_database::{self, Asked};
use crate::steps::context::StepError;

const CHUNK: usize = 256 * 1024;

pub(super) async fn send(path: &Path, query: &str, sink: &Sink) -> Result<(), StepError> {
    let asked = Asked::sqlite(path, ACTION);
    let failed = |error: sqlx::Error| asked.failure(&error);
    let mut connection = app_database::sqlite(path, &asked).await?;
    let query = query.trim().trim_end_matches(';');
    let statement = AssertSqlSafe(query.to_owned()).into_sql_str();
    let statement = connection.prepare(statement).await.map_err(failed)?;
    let names: Vec<String> = statement.columns().iter().map(|column| column.name().to_owned()).collect();
    if names.is_empty() {
        return Err(asked.rejected("the query gives no columns").into());
    }
    let mut writer = csv::Writer::from_writer(Vec::with_capacity(CHUNK));
    writer.write_record(&names).map_err(|error| asked.rejected(error.to_string()))?;
    {
        let mut rows = sqlx::query(AssertSqlSafe(query.to_owned())).fetch(&mut connection);
        while let Some(row) = rows.next().await {
            let row = row.map_err(failed)?;
            for (place, name) in names.iter().enumerate() {
                let cell =
                    cell(&row, place).map_err(|cause| asked.rejected(format!("column `{name}`: {cause}")))?;
                writer.write_field(cell).map_err(|error| asked.rejected(error.to_string()))?;
            }
            writer.write_record(None::<&[u8]>).map_err(|error| asked.rejected(error.to_string()))?;
            if writer.get_ref().len() >= CHUNK {
                let full = writer.into_inner().map_err(|error| asked.rejected(error.to_string()))?;
                if sink.send(Bytes::from(full)).await.is_err() {
                    return Ok(());
                }
                writer = csv::Writer::from_writer(Vec::with_capacity(CHUNK));
            }
        }
    }
    let rest = writer.into_inner().map_err(|error| asked.rejected(error.to_string()))?;
    // A reader that is gone says itself why.
    let _ = sink.send(Bytes::from(rest)).await;
    app_database::close(connection).await;
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
