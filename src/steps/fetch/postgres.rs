//! Rows of a Postgres query, by `COPY (…) TO STDOUT` in a read-only transaction.

use std::str::FromStr;

use futures::StreamExt;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection, Executor};
use tokio::time::timeout;

use super::{PATIENCE, Sink};
use crate::steps::context::StepError;

pub(super) async fn send(url: &str, query: &str, sink: &Sink) -> Result<(), StepError> {
    let shown = shown(url);
    let options = PgConnectOptions::from_str(url)
        .map_err(|_| StepError::permanent("from: postgres: url is not a Postgres connection string"))?
        .application_name("refit")
        .disable_statement_logging();
    let failed = |error: sqlx::Error| failure(&shown, &error);
    let mut connection: PgConnection = timeout(PATIENCE, options.connect())
        .await
        .map_err(|_| StepError::transient(format!("{shown} did not answer within {PATIENCE:?}")))?
        .map_err(failed)?;
    connection.execute("BEGIN READ ONLY").await.map_err(failed)?;
    // The newline ends a comment that the query may end with.
    let query = query.trim().trim_end_matches(';');
    let copy = format!("COPY ({query}\n) TO STDOUT WITH (FORMAT csv, HEADER)");
    let mut rows = connection.copy_out_raw(&copy).await.map_err(failed)?;
    while let Some(chunk) = rows.next().await {
        if sink.send(chunk.map_err(failed)?).await.is_err() {
            return Ok(());
        }
    }
    drop(rows);
    connection.execute("ROLLBACK").await.map_err(failed)?;
    // All rows are here; a goodbye that does not arrive changes nothing.
    let _ = connection.close().await;
    Ok(())
}

/// The connection string without its password and options.
fn shown(url: &str) -> String {
    match url::Url::parse(url) {
        Ok(mut url) => {
            if url.password().is_some() {
                let _ = url.set_password(Some("***"));
            }
            url.set_query(None);
            url.set_fragment(None);
            url.to_string()
        }
        Err(_) => "Postgres".to_owned(),
    }
}

fn failure(shown: &str, error: &sqlx::Error) -> StepError {
    match error {
        sqlx::Error::Database(said) => {
            let code = said.code().unwrap_or_default();
            let message = format!("{shown} refused the query: {} ({code})", said.message());
            // Connections, resources, operator intervention, serialization.
            if ["08", "53", "57", "40"].iter().any(|class| code.starts_with(class)) {
                StepError::transient(message)
            } else {
                StepError::permanent(message)
            }
        }
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) => {
            StepError::transient(format!("{shown} cannot be reached: {error}"))
        }
        other => StepError::permanent(format!("{shown} cannot be queried: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn a_connection_string_is_shown_without_its_password() {
        assert_eq!(
            shown("postgres://app:hunter2@db.example.com:5432/races?sslmode=require&password=x"),
            "postgres://app:***@db.example.com:5432/races"
        );
        assert_eq!(shown("host=db password=x"), "Postgres");
    }
}
