//! `observe` and `truth`: evidence by hand or by cron, one JSON object a line.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal};
use std::sync::Arc;

use serde_json::json;

use super::Exit;
use super::args::Evidence;
use super::error::{CliError, Doing};
use super::output::plain;
use super::pick;
use super::project::Opened;
use crate::domain::id::{ModelName, VersionName};
use crate::domain::words::counted;
use crate::evidence::{BatchError, Limits, Reading, read_observations, read_truth};
use crate::store::{BatchReceipt, Store};

/// `refit observe`.
pub async fn observe(opened: &Opened, args: &Evidence) -> Result<Exit, CliError> {
    let now = opened.clock.now();
    let read = read_observations(&args.model, args.batch.as_deref(), input(args)?, now, &Limits::default());
    let reading = read.map_err(|error| refused(args, &error))?;
    let store = opened.store().await?;
    warn_of_unknown(opened, &store, &args.model).await?;
    if reading.accepted == 0 {
        return Ok(nothing(opened, "observation", &reading.batch.batch_id, &reading));
    }
    let there = store.versions(&args.model).await.doing(|| "list versions".to_owned())?;
    let is_known =
        |version: &VersionName| there.is_empty() || there.iter().any(|known| &known.name == version);
    let reported: BTreeSet<&VersionName> =
        reading.batch.minutes.iter().map(|minute| &minute.version).collect();
    for version in reported.into_iter().filter(|version| !is_known(version)) {
        opened
            .out
            .note(&format!("warning: `{}` has no version `{version}`: no canary reads its rows", args.model));
    }
    let receipt = store.observe(&reading.batch).await.doing(|| "keep the observations".to_owned())?;
    opened.poke().await;
    Ok(answer(opened, "observation", &reading.batch.batch_id.clone(), &reading, receipt))
}

/// `refit truth`.
pub async fn truth(opened: &Opened, args: &Evidence) -> Result<Exit, CliError> {
    let now = opened.clock.now();
    let read = read_truth(&args.model, args.batch.as_deref(), input(args)?, now, &Limits::default());
    let reading = read.map_err(|error| refused(args, &error))?;
    let store = opened.store().await?;
    warn_of_unknown(opened, &store, &args.model).await?;
    if reading.accepted == 0 {
        return Ok(nothing(opened, "truth", &reading.batch.batch_id, &reading));
    }
    let receipt = store.add_truth(&reading.batch).await.doing(|| "keep the truths".to_owned())?;
    opened.poke().await;
    Ok(answer(opened, "truth", &reading.batch.batch_id.clone(), &reading, receipt))
}

/// Evidence may come before the first run; a misspelt name comes just so.
async fn warn_of_unknown(opened: &Opened, store: &Arc<dyn Store>, model: &ModelName) -> Result<(), CliError> {
    let known = pick::models(opened, store).await?;
    if !known.contains(model) {
        let near = pick::nearest(model.as_str(), known.iter().map(ModelName::as_str));
        let near = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
        opened
            .out
            .note(&format!("warning: no workflow, run, version or release is of a model `{model}`{near}"));
    }
    Ok(())
}

/// What came of a batch without a row that makes sense. Its id is not kept: corrected, it comes again under the same.
fn nothing<B>(opened: &Opened, what: &str, batch: &str, reading: &Reading<B>) -> Exit {
    answer(opened, what, batch, reading, BatchReceipt { duplicate: false, accepted: 0, unmatched: 0 })
}

fn input(args: &Evidence) -> Result<Box<dyn BufRead>, CliError> {
    match args.file.as_deref().filter(|file| file.as_os_str() != "-") {
        Some(path) => {
            let file = File::open(path)
                .map_err(|error| CliError::usage(format!("cannot read {}: {error}", path.display())))?;
            Ok(Box::new(BufReader::new(file)))
        }
        None if std::io::stdin().is_terminal() => Err(CliError::usage("there is nothing to read")
            .hint("name a file, or pipe rows in: one JSON object a line")),
        None => Ok(Box::new(BufReader::new(std::io::stdin()))),
    }
}

fn refused(args: &Evidence, error: &BatchError) -> CliError {
    let from = args.file.as_ref().map_or("stdin".to_owned(), |path| path.display().to_string());
    let refused = CliError::usage(format!("cannot take {from}: {error}; nothing of it counts"));
    match error {
        BatchError::BrokeOff(_) => refused.hint("send it again: rows are never counted twice"),
        BatchError::TooLarge { .. } => refused.hint("split it, such as with `split -l 100000`"),
        BatchError::BadId => refused.hint("give a shorter --batch, or none"),
    }
}

fn answer<B>(opened: &Opened, what: &str, batch: &str, reading: &Reading<B>, receipt: BatchReceipt) -> Exit {
    for error in &reading.errors {
        opened.out.complain(&format!("line {}: {}", error.line, plain(&error.error)));
    }
    let more = reading.refused.saturating_sub(reading.errors.len() as u64);
    if more > 0 {
        opened.out.complain(&format!("and {} more that make no sense", counted(more, "line")));
    }
    let value = json!({
        "batch": batch, "duplicate": receipt.duplicate, "accepted": receipt.accepted, "refused": reading.refused,
        "misdated": reading.misdated, "unmatched": receipt.unmatched, "errors": reading.errors,
    });
    opened.out.result(&value, || {
        if receipt.duplicate {
            return format!("batch {} was taken before: nothing changed", plain(batch));
        }
        let mut text = format!("{} counted", counted(receipt.accepted, what));
        if reading.refused > 0 {
            text.push_str(&format!(", {} refused", counted(reading.refused, "line")));
        }
        if reading.misdated > 0 {
            text.push_str(&format!(", {} with a time far from now counted as now", reading.misdated));
        }
        if receipt.unmatched > 0 {
            text.push_str(&format!(", {} kept until their prediction is known", receipt.unmatched));
        }
        text
    });
    if reading.refused > 0 && reading.accepted == 0 { Exit::Usage } else { Exit::Ok }
}
