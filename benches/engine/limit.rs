//! The rate at which the database commits single-row updates, and nothing else.

use std::time::{Duration, Instant};

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, PgConnection, SqliteConnection};

use crate::{Bench, Failure};

/// What so many connections can do.
pub struct Limit<'a> {
    bench: &'a Bench,
    connections: u32,
}

enum Raw {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

impl<'a> Limit<'a> {
    pub fn of(bench: &'a Bench, connections: u32) -> Self {
        Self { bench, connections }
    }

    /// Commits per second on all connections together; each updates a row of its own.
    pub async fn measure(&self, time: Duration) -> Result<f64, Failure> {
        let mut connections = vec![];
        for id in 0..i64::from(self.connections) {
            let mut connection = self.connect().await?;
            connection.prepare(id).await?;
            connections.push((id, connection));
        }
        let begin = Instant::now();
        let workers = connections.into_iter().map(|(id, mut connection)| {
            tokio::spawn(async move {
                let mut done = 0_u64;
                while begin.elapsed() < time {
                    connection.commit(id).await?;
                    done += 1;
                }
                Ok::<_, sqlx::Error>(done)
            })
        });
        let mut done = 0;
        for worker in futures::future::join_all(workers).await {
            done += worker??;
        }
        Ok(done as f64 / begin.elapsed().as_secs_f64())
    }

    async fn connect(&self) -> Result<Raw, sqlx::Error> {
        if let Some(url) = &self.bench.url {
            return Ok(Raw::Postgres(PgConnection::connect(url).await?));
        }
        let options = SqliteConnectOptions::new()
            .filename(self.bench.project.path().join("raw.db"))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(10));
        Ok(Raw::Sqlite(options.connect().await?))
    }
}

const TABLE: &str = "CREATE TABLE IF NOT EXISTS raw (id BIGINT PRIMARY KEY, n BIGINT)";
const ROW: &str = "INSERT INTO raw VALUES ($1, 0) ON CONFLICT DO NOTHING";
const COMMIT: &str = "UPDATE raw SET n = n + 1 WHERE id = $1";

impl Raw {
    async fn prepare(&mut self, id: i64) -> Result<(), sqlx::Error> {
        match self {
            Raw::Sqlite(connection) => {
                connection.execute(TABLE).await?;
                sqlx::query(ROW).bind(id).execute(connection).await?;
            }
            Raw::Postgres(connection) => {
                connection.execute(TABLE).await?;
                sqlx::query(ROW).bind(id).execute(connection).await?;
            }
        }
        Ok(())
    }

    async fn commit(&mut self, id: i64) -> Result<(), sqlx::Error> {
        match self {
            Raw::Sqlite(connection) => sqlx::query(COMMIT).bind(id).execute(connection).await.map(|_| ()),
            Raw::Postgres(connection) => sqlx::query(COMMIT).bind(id).execute(connection).await.map(|_| ()),
        }
    }
}
