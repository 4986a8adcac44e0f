//! The rate at which the database commits single-row updates, and nothing else.

use std::time::{Duration, Instant};

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, PgConnection, SqliteConnection};

use crate::{Bench, Failure};

/// So many connections, and what they can do.
pub struct Limit {
    connections: Vec<Raw>,
}

enum Raw {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

impl Limit {
    pub async fn open(bench: &Bench, connections: usize) -> Result<Self, Failure> {
        let mut opened = vec![];
        for id in (0_i64..).take(connections) {
            let mut connection = connect(bench).await?;
            connection.prepare(id).await?;
            opened.push(connection);
        }
        Ok(Self { connections: opened })
    }

    /// Commits per second on all connections together; each updates a row of its own.
    pub async fn measure(&mut self, time: Duration) -> Result<f64, Failure> {
        let begin = Instant::now();
        let workers = (0_i64..).zip(self.connections.drain(..)).map(|(id, mut connection)| {
            tokio::spawn(async move {
                let mut done = 0_u64;
                while begin.elapsed() < time {
                    connection.commit(id).await?;
                    done += 1;
                }
                Ok::<_, sqlx::Error>((connection, done))
            })
        });
        let mut done = 0;
        for worker in futures::future::join_all(workers).await {
            let (connection, commits) = worker??;
            self.connections.push(connection);
            done += commits;
        }
        Ok(done as f64 / begin.elapsed().as_secs_f64())
    }
}

async fn connect(bench: &Bench) -> Result<Raw, sqlx::Error> {
    if let Some(url) = &bench.url {
        return Ok(Raw::Postgres(PgConnection::connect(url).await?));
    }
    let options = SqliteConnectOptions::new()
        .filename(bench.project.path().join("raw.db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_secs(10));
    Ok(Raw::Sqlite(options.connect().await?))
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
