//! `uses: fetch`: rows into a file of the run, then checked. Always streamed;
//! the file appears whole or not at all.

mod file;
pub(super) mod http;
mod ingest;
mod postgres;
mod sqlite;

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::context::{StepContext, StepError, StepResult, to_json};
use crate::domain::expect::ColumnFacts;
use crate::domain::run::Outcome;
use crate::domain::workflow::step::{Expectations, Fetch, OnStale, Source};
use ingest::{Ingested, Job};

/// What was fetched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FetchOutput {
    /// The file, below the run's data directory.
    pub file: String,
    /// Rows, without the header.
    pub rows: u64,
    /// Bytes, decompressed.
    pub bytes: u64,
    /// SHA-256 of the file in lower-case hex.
    pub sha256: String,
    /// Its columns, with the bounds of those that hold dates.
    pub columns: Vec<ColumnFacts>,
    /// What was not as expected, in plain words; of a step that succeeded, empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub violations: Vec<String>,
    /// Why it is stale, when it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale: Option<String>,
}

/// Chunks between the source and the disk.
const IN_FLIGHT: usize = 8;
/// As in "could not run the query".
const ACTION: &str = "run the query";
/// No answer, or no more of it, for this long: the source is gone.
const PATIENCE: Duration = Duration::from_secs(60);

/// The reader went away: it says why.
struct Closed;

/// Where a source puts what it reads.
struct Sink(mpsc::Sender<Bytes>);

impl Sink {
    async fn send(&self, chunk: Bytes) -> Result<(), Closed> {
        self.0.send(chunk).await.map_err(|_| Closed)
    }
}

/// Fetches, keeps and checks.
pub async fn run(spec: &Fetch, ctx: &StepContext<'_>) -> Result<StepResult, StepError> {
    let to = plain_path(&spec.to)?;
    let previous = ctx.ledger.previous_output(ctx.step).await?;
    let previous: Option<FetchOutput> = previous.and_then(|output| serde_json::from_value(output).ok());
    let job = Job {
        target: ctx.dirs.data.join(to),
        expect: spec.expect.clone(),
        previous_rows: previous.map(|output| output.rows),
        now: ctx.clock.now(),
    };
    let ingested = bring(&spec.from, ctx, job).await?;
    conclude(spec, ctx, ingested)
}

/// Rows of a source into the file `target`, without any check but that they are CSV.
pub(super) async fn rows_into(
    from: &Source,
    target: PathBuf,
    ctx: &StepContext<'_>,
) -> Result<(), StepError> {
    let shown = target.display().to_string();
    let expect = Expectations::default();
    let job = Job { target, expect, previous_rows: None, now: ctx.clock.now() };
    let ingested = bring(from, ctx, job).await?;
    ingested.file.keep().map_err(|error| StepError::transient(format!("cannot write {shown}: {error}")))
}

async fn bring(from: &Source, ctx: &StepContext<'_>, job: Job) -> Result<Ingested, StepError> {
    let (sender, receiver) = mpsc::channel(IN_FLIGHT);
    let reader = tokio::task::spawn_blocking(move || ingest::ingest(&job, receiver));
    let sent = tokio::select! {
        sent = send(from, ctx, Sink(sender)) => sent,
        // The sender is dropped: the reader finds the end, and its file is not kept.
        () = ctx.cancel.cancelled() => Err(StepError::Interrupted),
    };
    let read = reader.await.map_err(|error| StepError::transient(format!("reading broke off: {error}")))?;
    // A source that failed explains more than the reader that then missed the rest.
    sent?;
    read.map_err(|error| masked(error, ctx))
}

async fn send(from: &Source, ctx: &StepContext<'_>, sink: Sink) -> Result<(), StepError> {
    match from {
        Source::File { path } => file::send(&ctx.dirs.project.join(ctx.render(path)?), &sink).await,
        Source::Http { url, headers } => http::send(url, headers, ctx, &sink).await,
        Source::Postgres { url, query } => postgres::send(&ctx.render(url)?, query, &sink).await,
        Source::Sqlite { path, query } => {
            sqlite::send(&ctx.dirs.project.join(ctx.render(path)?), query, &sink).await
        }
    }
    .map_err(|error| masked(error, ctx))
}

fn conclude(spec: &Fetch, ctx: &StepContext<'_>, ingested: Ingested) -> Result<StepResult, StepError> {
    let Ingested { file, bytes, sha256, findings } = ingested;
    // Refused data is kept too: whoever is told will want to look at it.
    file.keep().map_err(|error| {
        StepError::transient(format!("cannot write {}: {error}", ctx.dirs.data.join(&spec.to).display()))
    })?;
    let output = FetchOutput {
        file: spec.to.clone(),
        rows: findings.rows,
        bytes,
        sha256,
        columns: findings.columns,
        violations: findings.violations.iter().map(|text| ctx.services.secrets.mask(text)).collect(),
        stale: findings.stale.map(|text| ctx.services.secrets.mask(&text)),
    };
    ctx.log.note(&format!("{} rows, {} bytes in {}", output.rows, output.bytes, spec.to));
    for violation in output.violations.iter().chain(&output.stale) {
        ctx.log.note(violation);
    }
    let on_stale = spec.expect.newest.as_ref().map(|newest| newest.on_stale).unwrap_or_default();
    let ending = match (output.violations.as_slice(), &output.stale, on_stale) {
        ([], None, _) => None,
        ([], Some(stale), OnStale::Skip) => Some((Outcome::Skipped, format!("nothing to do: {stale}"))),
        ([], Some(stale), OnStale::Fail) => Some((Outcome::Rejected, stale.clone())),
        (violations, stale, _) => {
            let all: Vec<&str> = violations.iter().chain(stale).map(String::as_str).collect();
            Some((Outcome::Rejected, format!("the data is not as expected: {}", all.join("; "))))
        }
    };
    match ending {
        None => StepResult::done(output),
        Some((outcome, reason)) => Ok(StepResult::End { outcome, reason, output: to_json(output)? }),
    }
}

/// `to:` stays below the run's data directory.
fn plain_path(to: &str) -> Result<&Path, StepError> {
    let path = Path::new(to);
    let plain = !to.is_empty() && path.components().all(|part| matches!(part, Component::Normal(_)));
    if !plain {
        return Err(StepError::permanent(format!("to: `{to}` is not a path below the run's data directory")));
    }
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gz")) {
        return Err(StepError::permanent(format!("to: `{to}` ends in .gz, but rows are kept decompressed")));
    }
    Ok(path)
}

fn masked(mut error: StepError, ctx: &StepContext<'_>) -> StepError {
    if let StepError::Failed { failure, .. } = &mut error {
        failure.message = ctx.services.secrets.mask(&failure.message);
    }
    error
}

#[cfg(test)]
mod tests {
    use super::plain_path;

    #[test]
    fn rows_stay_in_the_data_directory() {
        assert!(plain_path("results.csv").is_ok());
        assert!(plain_path("a/b.csv").is_ok());
        for to in ["", "../x.csv", "/tmp/x.csv", "a/../../x.csv", "x.csv.gz"] {
            assert!(plain_path(to).is_err(), "{to}");
        }
    }
}
