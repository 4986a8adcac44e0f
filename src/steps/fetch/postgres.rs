//! Rows of a Postgres query, by `COPY (…) TO STDOUT` in a read-only transaction.

use futures::StreamExt;
use sqlx::Executor;

use super::{ACTION, Sink};
use crate::app_database::{self, Asked};
use crate::steps::context::StepError;

pub(super) async fn send(url: &str, query: &str, sink: &Sink) -> Result<(), StepError> {
    let asked = Asked::postgres(url, ACTION);
    let failed = |error: sqlx::Error| asked.failure(&error);
    let mut connection = app_database::postgres(url, &asked).await?;
    connection.execute("BEGIN READ ONLY").await.map_err(failed)?;
    let copy = format!("COPY ({}) TO STDOUT WITH (FORMAT csv, HEADER)", app_database::wrapped(query));
    let mut rows = connection.copy_out_raw(&copy).await.map_err(failed)?;
    while let Some(chunk) = rows.next().await {
        if sink.send(chunk.map_err(failed)?).await.is_err() {
            return Ok(());
        }
    }
    drop(rows);
    connection.execute("ROLLBACK").await.map_err(failed)?;
    app_database::close(connection).await;
    Ok(())
}
