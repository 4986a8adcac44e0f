//! How fast the store is, beside the rate at which its database can commit:
//! `cargo bench --bench store [-- SECONDS]`, one JSON line per figure; on
//! Postgres too when `REFIT_DATABASE_URL` names an empty database.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use refit::clock::{Clock, SystemClock};
use refit::domain::id::{RunId, WorkerId};
use refit::store::{ClaimResult, OnWake, Store};
use serde_json::json;
use sqlx::{Connection, Executor};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

#[path = "../tests/it/store/make.rs"]
#[expect(dead_code, reason = "shared with the tests, which use all of it")]
mod make;

type Failure = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let seconds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(3.0);
    let time = Duration::from_secs_f64(seconds);
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("refit.db").display().to_string();
    measure("sqlite", &path, &format!("sqlite:{}?mode=rwc", dir.path().join("raw.db").display()), time)
        .await?;
    if let Ok(url) = std::env::var("REFIT_DATABASE_URL") {
        refit::store::migrate(&url, false).await?;
        measure("postgres", &url, &url, time).await?;
    }
    Ok(())
}

fn say(figure: &serde_json::Value) -> Result<(), Failure> {
    Ok(writeln!(std::io::stdout(), "{figure}")?)
}

async fn measure(name: &str, url: &str, raw: &str, time: Duration) -> Result<(), Failure> {
    let store = refit::store::open(url, Arc::new(SystemClock)).await?;
    for (runs, connections) in [(1, 1), (50, 16)] {
        let connections = if name == "sqlite" { 1 } else { connections };
        let before = commits(raw, connections, time / 2).await?;
        let steps = steps(&store, runs, time).await?;
        let after = commits(raw, connections, time / 2).await?;
        let limit = f64::midpoint(before, after);
        say(&json!({
            "database": name, "runs": runs, "steps_per_s": steps.round(), "commits_per_s": limit.round(),
            "connections": connections, "ratio": (steps / limit * 100.0).round() / 100.0,
        }))?;
    }
    let other = refit::store::open(url, Arc::new(SystemClock)).await?;
    let mut latencies = latencies(&store, &other).await?;
    latencies.sort();
    let millis = |part: f64| {
        let at = (latencies.len() as f64 * part) as usize;
        latencies.get(at).map(|took| (took.as_secs_f64() * 100_000.0).round() / 100.0)
    };
    say(&json!({"database": name, "submit_to_claim_ms": {"p50": millis(0.5), "p99": millis(0.99)}}))?;
    Ok(())
}

/// Single-row updates, each a commit, on so many connections.
async fn commits(url: &str, connections: i64, time: Duration) -> Result<f64, Failure> {
    sqlx::any::install_default_drivers();
    let mut first = sqlx::AnyConnection::connect(url).await?;
    if url.starts_with("sqlite") {
        first.execute("PRAGMA journal_mode = WAL").await?;
        first.execute("PRAGMA synchronous = FULL").await?;
    }
    first.execute("CREATE TABLE IF NOT EXISTS raw (id BIGINT PRIMARY KEY, n BIGINT)").await?;
    first.execute("DELETE FROM raw").await?;
    let mut others = vec![first];
    for _ in 1..connections {
        others.push(sqlx::AnyConnection::connect(url).await?);
    }
    for (id, connection) in (0_i64..).zip(others.iter_mut()) {
        sqlx::query("INSERT INTO raw VALUES ($1, 0)").bind(id).execute(connection).await?;
    }
    let begin = Instant::now();
    let workers = (0_i64..).zip(others).map(|(id, mut connection)| {
        tokio::spawn(async move {
            let mut done = 0_u64;
            while begin.elapsed() < time {
                sqlx::query("UPDATE raw SET n = n + 1 WHERE id = $1")
                    .bind(id)
                    .execute(&mut connection)
                    .await?;
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

/// Steps per second over so many runs at once: each a checkpoint that ends one step and starts the next.
async fn steps(store: &Arc<dyn Store>, runs: usize, time: Duration) -> Result<f64, Failure> {
    let clock = SystemClock;
    let worker = make::worker(store, clock.now()).await;
    let mut held = Vec::new();
    for _ in 0..runs {
        let run = make::run(store, clock.now()).await;
        held.push(make::claim(store, run, worker, clock.now()).await);
    }
    let done = Arc::new(AtomicU64::new(0));
    let begin = Instant::now();
    let loops = held.into_iter().map(|claim| {
        let (store, done) = (Arc::clone(store), Arc::clone(&done));
        tokio::spawn(async move {
            let mut last = "a".to_owned();
            for step in 0_u64.. {
                if begin.elapsed() >= time {
                    break;
                }
                let next = format!("s{step}");
                let output = json!({"mae": 512.25, "rows": 20_000, "note": "about a hundred bytes of output of a step, like this"});
                store.checkpoint(make::next_step(&claim, &last, &next, output, clock.now())).await?;
                done.fetch_add(1, Ordering::Relaxed);
                last = next;
            }
            store.checkpoint(make::finish(&claim, &last, clock.now())).await
        })
    });
    for ended in futures::future::join_all(loops).await {
        ended??;
    }
    store.retire_worker(worker).await?;
    Ok(done.load(Ordering::Relaxed) as f64 / begin.elapsed().as_secs_f64())
}

struct Claims {
    store: Arc<dyn Store>,
    worker: WorkerId,
    told: mpsc::UnboundedSender<RunId>,
}

#[async_trait]
impl OnWake for Claims {
    async fn advance(&self, run: RunId) {
        let now = SystemClock.now();
        if let ClaimResult::Claimed(_) = make::try_claim(&self.store, run, self.worker, now).await {
            // Nobody listens once it is measured.
            let _ = self.told.send(run);
        }
    }
}

/// From a submission by another store to the end of the claim, in which the first step is started.
async fn latencies(store: &Arc<dyn Store>, other: &Arc<dyn Store>) -> Result<Vec<Duration>, Failure> {
    let worker = make::worker(store, SystemClock.now()).await;
    let (told, mut heard) = mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    let delivering = {
        let (store, stop) = (Arc::clone(store), stop.clone());
        let claims = Arc::new(Claims { store: Arc::clone(&store), worker, told });
        tokio::spawn(async move { store.deliver_wakeups(claims, 4, stop).await })
    };
    let mut took = Vec::new();
    for _ in 0..120 {
        let begin = Instant::now();
        make::run(other, SystemClock.now()).await;
        if !store.is_shared() {
            store.poke();
        }
        heard.recv().await;
        took.push(begin.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stop.cancel();
    delivering.await?;
    Ok(took.split_off(20))
}
