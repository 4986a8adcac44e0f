//! How fast refit is, beside what its database can do in the same minutes:
//! `cargo bench --bench engine [-- SECONDS FIGURE…]`, one JSON line per figure
//! (all of them, or those whose names begin so: `steps`, `checkpoints`); on
//! Postgres too when `REFIT_DATABASE_URL` names an empty database, which must
//! be durable (`tests/support/with-postgres --fsync`), or its limit is none.
//!
//! The server is the program itself, started here as `refit serve`; this
//! process is the other one, which submits runs through a store of its own.

mod ingest;
mod limit;
mod look;
mod server;
mod sleepers;
mod store;
mod work;

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use refit::clock::{Clock, SystemClock};
use refit::store::Store;
use serde_json::{Value, json};

use ingest::{Ingest, Kind};
use limit::Limit;
use server::Server;
use work::Work;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Starts, kills and restarts that are measured.
const REPEATS: usize = 9;
const SUBMISSIONS: usize = 200;
/// Of one limit between two rates.
const SLICE: Duration = Duration::from_millis(200);
const IDLE_FOR: Duration = Duration::from_secs(10);
/// What observations are sent of.
const MODEL: &str = "times";

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let seconds = words.iter().find_map(|word| word.parse().ok()).unwrap_or(5.0);
    // What cargo adds, and the number.
    let is_name = |word: &String| !word.starts_with('-') && word.parse::<f64>().is_err();
    let figures: Vec<String> = words.iter().filter(|word| is_name(word)).cloned().collect();
    let time = Duration::from_secs_f64(seconds);
    Bench::new("sqlite", None, &figures)?.measure(time).await?;
    if let Ok(url) = std::env::var("REFIT_DATABASE_URL") {
        refit::store::migrate(&url, false).await?;
        Bench::new("postgres", Some(url), &figures)?.measure(time).await?;
    }
    Ok(())
}

/// A database, and a project to work on it.
pub struct Bench {
    database: &'static str,
    project: tempfile::TempDir,
    /// Of Postgres; on SQLite the project has a file.
    url: Option<String>,
    /// How the names of those begin that are measured; all when empty.
    figures: Vec<String>,
}

impl Bench {
    fn new(database: &'static str, url: Option<String>, figures: &[String]) -> Result<Self, Failure> {
        let project = tempfile::tempdir()?;
        std::fs::write(project.path().join("refit.toml"), "")?;
        std::fs::create_dir(project.path().join(".refit"))?;
        std::fs::create_dir(project.path().join("workflows"))?;
        let workflow = format!("name: known\nmodel: {MODEL}\nsteps: [{{ run: \"true\" }}]\n");
        std::fs::write(project.path().join("workflows/known.yaml"), workflow)?;
        Ok(Self { database, project, url, figures: figures.to_vec() })
    }

    /// Where the server hears that another process wrote.
    fn socket(&self) -> PathBuf {
        self.project.path().join(".refit/refit.sock")
    }

    /// Connections that commit the most. SQLite has one writer: more of them only wait, and commit a tenth.
    fn many(&self) -> usize {
        if self.url.is_some() { 16 } else { 1 }
    }

    fn wants(&self, figure: &str) -> bool {
        self.figures.is_empty() || self.figures.iter().any(|begin| figure.starts_with(begin))
    }

    async fn measure(&self, time: Duration) -> Result<(), Failure> {
        let path = self.project.path().join(".refit/refit.db").display().to_string();
        let store = refit::store::open(self.url.as_ref().unwrap_or(&path), Arc::new(SystemClock)).await?;
        if self.wants("start_up") {
            self.start_up().await?;
        }
        {
            let server = Server::start(self).await?;
            let work = Work::new(&store, self.socket())?;
            if self.wants("idle") {
                self.idle(&server).await?;
            }
            if self.wants("event_to_first_step") {
                self.first_step(&work).await?;
            }
            if self.wants("steps") {
                self.steps(&server, &work, 1, 1, time).await?;
                self.steps(&server, &work, 50, self.many(), time).await?;
            }
        }
        if self.wants("ingest") {
            self.ingest(&store, time).await?;
        }
        if self.wants("look") {
            self.look()?;
        }
        if self.wants("resume") {
            self.resume(&store).await?;
        }
        if self.wants("checkpoints") {
            self.checkpoints(&store, 1, 1, time).await?;
            self.checkpoints(&store, 50, self.many(), time).await?;
        }
        // Last: they stay.
        if self.wants("sleepers") {
            self.sleepers(&store).await?;
        }
        store.close().await;
        Ok(())
    }

    fn say(&self, figure: &str, facts: &Value) -> Result<(), Failure> {
        let mut line = json!({"figure": figure, "database": self.database});
        if let (Value::Object(line), Value::Object(facts)) = (&mut line, facts) {
            line.extend(facts.clone());
        }
        Ok(writeln!(std::io::stdout(), "{line}")?)
    }

    /// From the start of the process until it is registered as a worker and hears others.
    async fn start_up(&self) -> Result<(), Failure> {
        let mut took = vec![];
        for _ in 0..REPEATS {
            took.push(Server::start(self).await?.ready_after);
        }
        self.say("start_up_ms", &quantiles(took))
    }

    async fn idle(&self, server: &Server) -> Result<(), Failure> {
        self.say("idle", &rest(server).await?)
    }

    /// From before the submission, in this process, to the beginning of the first step's body in the server.
    async fn first_step(&self, work: &Work) -> Result<(), Failure> {
        let mut took = vec![];
        for _ in 0..SUBMISSIONS {
            took.push(work.first_step().await?);
        }
        self.say("event_to_first_step_ms", &quantiles(took))
    }

    /// Durable steps without an outside effect: from the claim of the first run to the end of the last.
    /// The server's processor time a step depends less on who else uses the machine.
    async fn steps(
        &self,
        server: &Server,
        work: &Work,
        runs: usize,
        connections: usize,
        time: Duration,
    ) -> Result<(), Failure> {
        let mut rates = Rates::beside(Limit::open(self, connections).await?).await?;
        let (mut steps, mut cpu) = (0, Duration::ZERO);
        let begin = Instant::now();
        while begin.elapsed() < time {
            let before = server.cpu_time().unwrap_or_default();
            let wave = work.wave(runs).await?;
            cpu += server.cpu_time().unwrap_or_default().saturating_sub(before);
            steps += wave.steps;
            rates.add(wave.steps as f64 / wave.took.as_secs_f64()).await?;
        }
        self.say("steps_per_s", &rates.shown(runs, connections))?;
        let micros = rounded(cpu.as_secs_f64() * 1e6 / steps as f64);
        self.say("cpu_us_per_step", &json!({"runs": runs, "mean": micros}))
    }

    /// Observations over HTTP until they are durable, with the most memory that a server of its own ever had.
    async fn ingest(&self, store: &Arc<dyn Store>, time: Duration) -> Result<(), Failure> {
        for kind in Kind::ALL {
            let before = counted(store).await?;
            let server = Server::start(self).await?;
            let mut rates = Rates::beside(Limit::open(self, 1).await?).await?;
            let mut ingest = Ingest::new(&server.url, MODEL)?;
            let (mut rows, mut cpu) = (0, Duration::ZERO);
            let begin = Instant::now();
            while begin.elapsed() < time {
                let before = server.cpu_time().unwrap_or_default();
                let (sent, took) = ingest.wave(kind).await?;
                cpu += server.cpu_time().unwrap_or_default().saturating_sub(before);
                rows += sent;
                rates.add(sent as f64 / took.as_secs_f64()).await?;
            }
            let kept = counted(store).await? - before;
            if kept != rows as u64 {
                return Err(format!("{rows} observations were acknowledged, and {kept} are there").into());
            }
            self.say(
                "ingest_per_s",
                &json!({
                    "rows": kind.word(), "rate": median(rates.seen.iter().map(|(rate, _)| *rate)).map(f64::round),
                    "commits_per_s": median(rates.seen.iter().map(|(_, limit)| *limit)).map(f64::round),
                    "server_cpu_us_per_row": rounded(cpu.as_secs_f64() * 1e6 / rows as f64),
                    "peak_memory_mb": server.peak_memory().map(|bytes| rounded(bytes as f64 / 1e6)), "of": rates.seen.len(),
                }),
            )?;
        }
        Ok(())
    }

    /// One minute's look, for each metric, at a million requests a minute.
    fn look(&self) -> Result<(), Failure> {
        let metrics = u32::try_from(look::METRICS.len())?;
        let mut facts = quantiles(look::looks()?.into_iter().map(|took| took / metrics).collect());
        facts["requests_per_minute"] = json!(look::REQUESTS);
        self.say("look_ms_per_metric", &facts)
    }

    /// The same without the engine: the checkpoints alone.
    async fn checkpoints(
        &self,
        store: &Arc<dyn Store>,
        runs: usize,
        connections: usize,
        time: Duration,
    ) -> Result<(), Failure> {
        let mut rates = Rates::beside(Limit::open(self, connections).await?).await?;
        let begin = Instant::now();
        while begin.elapsed() < time {
            rates.add(store::checkpoints_per_second(store, runs, SLICE).await?).await?;
        }
        self.say("checkpoints_per_s", &rates.shown(runs, connections))
    }

    /// From `kill -9` of the server in the middle of a run to the beginning of the next body in its successor,
    /// which is started at once.
    async fn resume(&self, store: &Arc<dyn Store>) -> Result<(), Failure> {
        let work = Work::new(store, self.socket())?;
        let mut server = Server::start(self).await?;
        let mut took = vec![];
        while took.len() < REPEATS {
            let run = work.begin().await?;
            work.under_way(run).await?;
            let killed = SystemClock.now();
            drop(server);
            server = Server::start(self).await?;
            // A run that had ended already says nothing.
            took.extend(work.resumed(run).await?.map(|at| (at - killed).to_std().unwrap_or_default()));
        }
        self.say("resume_after_kill_ms", &quantiles(took))
    }

    /// What a hundred thousand sleeping runs cost: the first page of the list, and a server that starts among them.
    async fn sleepers(&self, store: &Arc<dyn Store>) -> Result<(), Failure> {
        let run = {
            let _server = Server::start(self).await?;
            Work::new(store, self.socket())?.asleep().await?
        };
        let before = rest(&Server::start(self).await?).await?;
        sleepers::copy(self, run).await?;
        let after = rest(&Server::start(self).await?).await?;
        let server = Server::start(self).await?;
        let pages = sleepers::pages(&server.url, SUBMISSIONS).await?;
        self.say("sleepers_page_ms", &quantiles(pages))?;
        self.say("sleepers", &json!({"runs": sleepers::SLEEPERS, "before": before, "after": after}))
    }
}

/// Memory and processor time of a server that has nothing to do.
async fn rest(server: &Server) -> Result<Value, Failure> {
    // What its start put off is done by then.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = server.cpu_time();
    tokio::time::sleep(IDLE_FOR).await;
    let cpu = server.cpu_time().zip(before).map(|(after, before)| after.saturating_sub(before));
    let percent = cpu.map(|cpu| rounded(cpu.as_secs_f64() / IDLE_FOR.as_secs_f64() * 100.0));
    let memory = server.memory().map(|bytes| rounded(bytes as f64 / 1e6));
    Ok(json!({"memory_mb": memory, "cpu_percent": percent}))
}

/// Observations that the database has.
async fn counted(store: &Arc<dyn Store>) -> Result<u64, Failure> {
    let versions = ["v1".parse()?, "v2".parse()?];
    let minutes = store.evidence(&MODEL.parse()?, &versions, 0, 100_000).await?;
    Ok(minutes.iter().map(|minute| minute.counts.n).sum())
}

/// Rates, each beside the limit of the same moment: a disk changes its mind within seconds.
struct Rates {
    limit: Limit,
    last: f64,
    /// A rate and its limit: the mean of just before and just after.
    seen: Vec<(f64, f64)>,
}

impl Rates {
    async fn beside(mut limit: Limit) -> Result<Self, Failure> {
        let last = limit.measure(SLICE).await?;
        Ok(Self { limit, last, seen: vec![] })
    }

    async fn add(&mut self, rate: f64) -> Result<(), Failure> {
        let after = self.limit.measure(SLICE).await?;
        self.seen.push((rate, f64::midpoint(self.last, after)));
        self.last = after;
        Ok(())
    }

    /// Medians of each.
    fn shown(&self, runs: usize, connections: usize) -> Value {
        let ratio = median(self.seen.iter().map(|(rate, limit)| rate / limit));
        json!({
            "runs": runs, "rate": median(self.seen.iter().map(|(rate, _)| *rate)).map(f64::round),
            "commits_per_s": median(self.seen.iter().map(|(_, limit)| *limit)).map(f64::round),
            "connections": connections, "ratio": ratio.map(rounded), "of": self.seen.len(),
        })
    }
}

fn median(numbers: impl Iterator<Item = f64>) -> Option<f64> {
    let mut numbers: Vec<f64> = numbers.collect();
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied()
}

fn quantiles(mut took: Vec<Duration>) -> Value {
    took.sort();
    let part = |part: f64| {
        let at = (took.len().saturating_sub(1) as f64 * part).round() as usize;
        took.get(at).map(|took| rounded(took.as_secs_f64() * 1e3))
    };
    json!({"p50": part(0.5), "p99": part(0.99), "max": part(1.0), "of": took.len()})
}

fn rounded(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}
