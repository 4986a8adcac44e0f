//! Runs that sleep, by the hundred thousand: copies of one that the server put to sleep.

use std::time::{Duration, Instant};

use refit::domain::id::RunId;
use refit::http_client;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection};

use crate::{Bench, Failure};

/// How many.
pub const SLEEPERS: u32 = 100_000;

/// What of a row is the same in each copy, a table at a time; what differs is written out below.
const RUN: &str =
    "workflow, model, event_id, event_name, status, epoch, crashes, progressed, committed, created_at,
    wake_at, poke_at, signal_seq, signal_seen";
const DOCS: &str = "definition, cause";
const ATTEMPT: &str = "step, attempt, state, epoch, started_at, changed_at, resume, wake_at";

/// Copies `run`, which sleeps, until there are `SLEEPERS` of it.
pub async fn copy(bench: &Bench, run: RunId) -> Result<(), Failure> {
    let id = run.0.simple();
    let copies = SLEEPERS - 1;
    match &bench.url {
        Some(url) => {
            let mut connection = PgConnection::connect(url).await?;
            let text = format!(
                "CREATE TEMP TABLE copies AS SELECT gen_random_uuid() AS id FROM generate_series(1, {copies});
                 INSERT INTO refit.runs (id, concurrency_key, dedup_key, {RUN})
                 SELECT c.id, c.id::text, c.id::text, {RUN} FROM copies c, refit.runs r WHERE r.id = '{id}';
                 INSERT INTO refit.run_docs (run, {DOCS}) SELECT c.id, {DOCS} FROM copies c, refit.run_docs d WHERE d.run = '{id}';
                 INSERT INTO refit.attempts (run, {ATTEMPT})
                 SELECT c.id, {ATTEMPT} FROM copies c, refit.attempts a WHERE a.run = '{id}';
                 ANALYZE refit.runs; ANALYZE refit.attempts"
            );
            sqlx::raw_sql(AssertSqlSafe(text)).execute(&mut connection).await?;
        }
        None => {
            let file = bench.project.path().join(".refit/refit.db");
            let mut connection = SqliteConnectOptions::new().filename(file).connect().await?;
            let text = format!(
                "CREATE TEMP TABLE copies AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {copies})
                 SELECT randomblob(16) AS id FROM n;
                 BEGIN IMMEDIATE;
                 INSERT INTO runs (id, concurrency_key, dedup_key, {RUN})
                 SELECT c.id, hex(c.id), hex(c.id), {RUN} FROM copies c, runs r WHERE r.id = x'{id}';
                 INSERT INTO run_docs (run, {DOCS}) SELECT c.id, {DOCS} FROM copies c, run_docs d WHERE d.run = x'{id}';
                 INSERT INTO attempts (run, {ATTEMPT})
                 SELECT c.id, {ATTEMPT} FROM copies c, attempts a WHERE a.run = x'{id}';
                 COMMIT"
            );
            sqlx::raw_sql(AssertSqlSafe(text)).execute(&mut connection).await?;
        }
    }
    Ok(())
}

/// How long the first page of runs takes, again and again.
pub async fn pages(url: &str, times: usize) -> Result<Vec<Duration>, Failure> {
    let client = http_client::build()?;
    let mut took = vec![];
    for _ in 0..times {
        let begin = Instant::now();
        let page = client.get(format!("{url}/v1/runs?limit=50")).send().await?.error_for_status()?;
        page.bytes().await?;
        took.push(begin.elapsed());
    }
    Ok(took)
}
