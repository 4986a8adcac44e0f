//! `eject`: leaves refit. Withdraws canaries, writes a last release document,
//! and says what has to do from now on what refit did.

use std::sync::Arc;

use serde_json::{Value, json};

use super::Exit;
use super::error::{CliError, Doing};
use super::pick::short;
use super::project::{Opened, actor};
use super::release::confirm;
use crate::domain::id::{RunId, VersionName};
use crate::domain::release::{Release, ReleaseActor};
use crate::domain::run::RunStatus;
use crate::engine::Engine;
use crate::store::{RunFilter, Store};
use crate::trigger::Loaded;

const REASON: &str = "ejected: refit is leaving";
/// Runs at work that are named.
const NAMED: u32 = 20;

/// A release as refit leaves it.
struct Left {
    release: Release,
    withdrawn: Option<VersionName>,
}

/// `refit eject`.
pub async fn run(opened: &Opened) -> Result<Exit, CliError> {
    let store = opened.store().await?;
    let releases = store.releases(None).await.doing(|| "read the releases".to_owned())?;
    nothing_else_is_at_work(&store, &releases).await?;
    confirm(opened, &intention(&releases))?;
    let (engine, _) = opened.engine(&store)?;
    let mut left = vec![];
    for release in releases {
        left.push(leave(&engine, release).await?);
    }
    let alive = store.live_workers().await.doing(|| "look for servers".to_owned())?.servers;
    let catalog = opened.catalog();
    let workflows: Vec<&Loaded> = catalog.workflows().iter().collect();
    let instance = store.instance();
    let value = json!({
        "releases": left.iter().map(|left| json!({
            "target": left.release.target, "document": left.release.document(instance), "withdrawn": left.withdrawn,
        })).collect::<Vec<Value>>(),
        "workflows": workflows.iter().map(|loaded| json!({
            "workflow": loaded.workflow.name, "schedules": schedules(loaded), "commands": commands(loaded),
        })).collect::<Vec<Value>>(),
        "servers": alive,
    });
    opened.out.result(&value, || {
        let mut parts: Vec<String> = left.iter().map(shown).collect();
        parts.extend(workflows.iter().map(|loaded| replaced(loaded)));
        parts.push(farewell(&store, alive));
        parts.join("\n\n")
    });
    Ok(Exit::Ok)
}

/// A run that goes on could promote something after the last document.
async fn nothing_else_is_at_work(store: &Arc<dyn Store>, releases: &[Release]) -> Result<(), CliError> {
    let owners: Vec<RunId> = releases.iter().filter_map(|release| release.owner).collect();
    let mut at_work = vec![];
    for status in
        [RunStatus::Undoing, RunStatus::Held, RunStatus::Running, RunStatus::Waiting, RunStatus::Queued]
    {
        let filter = RunFilter { status: Some(status), limit: NAMED, ..RunFilter::default() };
        at_work.extend(store.runs(&filter).await.doing(|| "list runs".to_owned())?);
    }
    at_work.retain(|run| !owners.contains(&run.id));
    let Some(first) = at_work.first() else { return Ok(()) };
    let names: Vec<String> = at_work.iter().map(|run| short(run.id)).collect();
    Err(CliError::new(Exit::Busy, format!("cannot leave: runs are at work ({})", names.join(", ")))
        .hint(format!("wait for them, or `refit run cancel {}`", short(first.id))))
}

fn intention(releases: &[Release]) -> String {
    let canaries: Vec<String> = releases
        .iter()
        .filter_map(|release| release.desired.canary.as_ref())
        .map(|canary| canary.served.version.to_string())
        .collect();
    match canaries.as_slice() {
        [] => "a last release document is written for every release; what serves goes on serving".to_owned(),
        some => {
            format!("the canary {} is withdrawn, and a last release document is written", some.join(", "))
        }
    }
}

/// Drops the canary if there is one, and makes the host show what is left.
async fn leave(engine: &Arc<Engine>, release: Release) -> Result<Left, CliError> {
    let doing = || format!("write the last release of `{}` on {}", release.model, release.target);
    let withdrawn = release.desired.canary.as_ref().map(|canary| canary.served.version.clone());
    if withdrawn.is_none() {
        engine.show(&release).await.doing(doing)?;
        return Ok(Left { release, withdrawn });
    }
    let who = ReleaseActor::Human { name: actor() };
    // Without its canary, which may have been taken back meanwhile, this would take the champion off.
    let done = engine.roll_back_as_seen(&release, None, who, REASON).await.doing(doing)?;
    let last = done.release;
    Ok(Left { release: last, withdrawn })
}

fn shown(left: &Left) -> String {
    let Left { release, withdrawn } = left;
    let mut text = format!("{} on {}", release.model, release.target);
    match &release.desired.champion {
        Some(served) => text.push_str(&format!(
            "\n  {} serves everybody, from {}\n  the last release document has generation {}",
            served.version, served.base_url, release.generation
        )),
        None => text.push_str("\n  nothing ever served"),
    }
    if let Some(version) = withdrawn {
        text.push_str(&format!("\n  the canary {version} was withdrawn"));
    }
    text
}

/// What a workflow did, in words for whoever does it from now on.
fn replaced(loaded: &Loaded) -> String {
    let mut text = format!("instead of workflow {}", loaded.workflow.name);
    for schedule in schedules(loaded) {
        text.push_str(&format!("\n  a cron job at {schedule}"));
    }
    for command in commands(loaded) {
        text.push_str(&format!("\n  $ {}", command.trim().replace('\n', "\n    ")));
    }
    text.push_str("\n  then somebody who looks at its metrics, uploads the files under a new name, and changes `champion` in the release document");
    text
}

fn schedules(loaded: &Loaded) -> Vec<String> {
    let schedules = &loaded.workflow.triggers.schedules;
    schedules.iter().map(|schedule| format!("{} {}", schedule.cron, schedule.timezone)).collect()
}

fn commands(loaded: &Loaded) -> Vec<&str> {
    let steps = &loaded.workflow.steps;
    steps.iter().filter_map(|step| Some(step.kind.command()?.command.as_str())).collect()
}

fn farewell(store: &Arc<dyn Store>, alive: u32) -> String {
    let mut text = String::from(
        "what stays\n  versions, where they are; each has a manifest.json with the SHA-256 of its files\n  \
         the release document: apps go on reading it, and no canary is in it\n  \
         reports of apps: nobody reads them; take `Reports` out when it suits you\n\nthen",
    );
    if alive > 0 {
        text.push_str("\n  stop `refit serve` before its next schedule");
    }
    text.push_str(&format!(
        "\n  drop the database ({}), and revoke the secrets that refit had",
        store.label()
    ));
    text
}
