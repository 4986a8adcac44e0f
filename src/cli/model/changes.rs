//! `model pin|unpin|mark|history`: what people decide about versions, and who changed what.

use std::sync::Arc;

use serde_json::json;

use super::super::Exit;
use super::super::args::Change as Args;
use super::super::error::{CliError, Doing};
use super::super::output::{plain, table, time};
use super::super::pick::short;
use super::super::project::{Opened, actor};
use super::which;
use crate::domain::history::{ChangedBy, HistoryEntry};
use crate::domain::id::ModelName;
use crate::domain::release::ReleaseActor;
use crate::domain::version::VersionRecord;
use crate::store::{Marked, Store};

fn by(opened: &Opened, why: Option<&String>) -> ChangedBy {
    ChangedBy {
        actor: ReleaseActor::Human { name: actor() },
        reason: why.cloned().unwrap_or_default(),
        at: opened.clock.now(),
    }
}

/// `refit model pin` and `unpin`.
pub async fn pin(
    opened: &Opened,
    store: &Arc<dyn Store>,
    args: &Args,
    pinned: bool,
) -> Result<Exit, CliError> {
    let record = which(opened, store, &args.which).await?;
    let by = by(opened, args.why.as_ref());
    let verb = if pinned { "pin" } else { "unpin" };
    let marked = store
        .pin_version(&record.model, &record.name, pinned, &by)
        .await
        .doing(|| format!("{verb} version {}", record.name))?;
    let says = match (pinned, marked) {
        (true, Marked::Made) => "is pinned: it stays whatever its age",
        (true, Marked::Already) => "was pinned before",
        (false, Marked::Made) => "is not pinned any more",
        (false, Marked::Already) => "was not pinned",
        (_, Marked::Unknown) => return Err(not_whole(&record, verb)),
    };
    said(opened, &record, json!({"pinned": pinned}), marked, says);
    Ok(Exit::Ok)
}

/// `refit model mark`.
pub async fn mark(opened: &Opened, store: &Arc<dyn Store>, args: &Args, bad: bool) -> Result<Exit, CliError> {
    let record = which(opened, store, &args.which).await?;
    let by = by(opened, args.why.as_ref());
    let marked = store
        .mark_version(&record.model, &record.name, bad, &by)
        .await
        .doing(|| format!("mark version {}", record.name))?;
    let says = match (bad, marked) {
        (true, Marked::Made) => "is marked bad: no rollback chooses it",
        (true, Marked::Already) => "was marked bad before",
        (false, Marked::Made) => "is good again: a rollback may choose it",
        (false, Marked::Already) => "was not marked bad",
        (_, Marked::Unknown) => return Err(not_whole(&record, "mark")),
    };
    said(opened, &record, json!({"bad": bad}), marked, says);
    Ok(Exit::Ok)
}

fn not_whole(record: &VersionRecord, verb: &str) -> CliError {
    CliError::usage(format!("cannot {verb} {}: it is not a whole version", record.name))
        .hint(format!("`refit model ls {}` lists whole versions", record.model))
}

fn said(opened: &Opened, record: &VersionRecord, mut value: serde_json::Value, marked: Marked, says: &str) {
    value["model"] = json!(record.model);
    value["version"] = json!(record.name);
    value["changed"] = json!(marked == Marked::Made);
    opened.out.result(&value, || format!("{} {} {says}", record.model, record.name));
}

/// `refit model history`.
pub async fn history(
    opened: &Opened,
    store: &Arc<dyn Store>,
    model: Option<&ModelName>,
    limit: u32,
) -> Result<Exit, CliError> {
    if let Some(model) = model {
        super::check_model(store, model).await?;
    }
    let entries = store.history(model, limit).await.doing(|| "read the history".to_owned())?;
    opened.out.result(&entries, || {
        if entries.is_empty() {
            return "nothing was changed yet".to_owned();
        }
        changes(&entries, model.is_none())
    });
    Ok(Exit::Ok)
}

/// A table of changes, newest first.
pub fn changes(entries: &[HistoryEntry], with_model: bool) -> String {
    let rows = entries.iter().map(|entry| {
        let mut row = vec![time(entry.by.at)];
        if with_model {
            row.push(entry.model.to_string());
        }
        row.extend([entry.change.to_string(), who(&entry.by.actor), plain(&entry.by.reason)]);
        row
    });
    let header: &[&str] =
        if with_model { &["WHEN", "MODEL", "WHAT", "WHO", "WHY"] } else { &["WHEN", "WHAT", "WHO", "WHY"] };
    table(header, rows)
}

/// Who made a change.
pub fn who(actor: &ReleaseActor) -> String {
    match actor {
        ReleaseActor::Run { run } => format!("run {}", short(*run)),
        ReleaseActor::Undo { run } => format!("run {} (undo)", short(*run)),
        ReleaseActor::Controller { .. } => "refit".to_owned(),
        ReleaseActor::Human { name } if name.is_empty() => "-".to_owned(),
        ReleaseActor::Human { name } => plain(name),
    }
}
