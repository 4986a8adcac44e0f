//! `trigger` and `event`: what starts runs.

use std::sync::Arc;

use serde_json::{Value, json};

use super::Exit;
use super::args::{EventCommand, Trigger};
use super::drive::{self, By};
use super::error::{CliError, Doing};
use super::output::{plain, table, time};
use super::pick::short;
use super::project::{Opened, actor};
use super::{places, references};
use crate::domain::event::Event;
use crate::domain::id::{EventId, RunId};
use crate::store::{Store, Submitted};
use crate::trigger::{self as start, Heard};

/// `refit trigger`.
pub async fn trigger(opened: &Opened, args: &Trigger) -> Result<Exit, CliError> {
    let loaded = opened.workflow(&args.workflow)?;
    let mut mistakes = references::check(&loaded.workflow, &loaded.definition.source, &opened.project);
    mistakes.extend(places::check(&loaded, opened.catalog().workflows(), opened));
    if let Some(first) = mistakes.first() {
        let error = CliError::usage(format!("cannot trigger `{}`: {}", args.workflow, first.message));
        return Err(match &first.hint {
            Some(hint) => error.hint(hint.clone()),
            None => error,
        });
    }
    start::inputs(&loaded, &args.inputs).doing(|| format!("trigger `{}`", args.workflow))?;
    let store = opened.store().await?;
    let by = if args.follow { Some(By::whoever_lives(opened, &store).await?) } else { None };
    let engine = opened.submitter(&store)?;
    let submitted = start::trigger(&engine, &loaded, &args.inputs, &actor())
        .await
        .doing(|| format!("trigger `{}`", args.workflow))?;
    opened.poke().await;
    let id = match submitted {
        Submitted::Made(run) | Submitted::Already(run) => run,
        Submitted::Busy(run) => {
            return Err(CliError::new(
                Exit::Busy,
                format!(
                    "`{}` was not started: run {} is under way and `concurrency` says skip",
                    args.workflow,
                    short(run)
                ),
            )
            .hint(format!(
                "wait for it (`refit run show {0}`), or cancel it (`refit run cancel {0}`)",
                short(run)
            )));
        }
    };
    match by {
        Some(by) => {
            let run = super::pick::run(&store, &id.to_string()).await?;
            opened.out.note(&format!("run {} of {} ({id})", short(id), run.workflow));
            drive::follow(opened, &store, &run, by).await
        }
        None => {
            let value = json!({"run": id, "workflow": loaded.workflow.name, "status": "queued"});
            opened.out.result(&value, || format!("run {} of {} is queued", short(id), loaded.workflow.name));
            say_who_runs(opened, &store, Some(id)).await?;
            Ok(Exit::Ok)
        }
    }
}

/// Says so when nobody works on what was queued.
pub async fn say_who_runs(
    opened: &Opened,
    store: &Arc<dyn Store>,
    run: Option<RunId>,
) -> Result<(), CliError> {
    let alive = store.live_workers().await.doing(|| "look for a server".to_owned())?;
    if alive.servers == 0 && alive.visitors > 0 {
        opened.out.note(
            "no server is running: it waits for `refit serve`, unless another process works on it just now (`refit status`)",
        );
        return Ok(());
    }
    match (alive.servers, run.map(short)) {
        (0, Some(id)) => opened.out.note(&format!(
            "no server is running, so it waits: start one with `refit serve`, or do it here with `refit run resume {id} --follow`"
        )),
        (0, None) => opened.out.note("no server is running, so it waits: start one with `refit serve`"),
        (_, Some(id)) => opened.out.note(&format!("follow it with `refit run resume {id} --follow`")),
        (_, None) => {}
    }
    Ok(())
}

/// `refit event`.
pub async fn event(opened: &Opened, command: &EventCommand) -> Result<Exit, CliError> {
    match command {
        EventCommand::Send { name, data, key } => send(opened, name, data, key.as_deref()).await,
        EventCommand::Ls { limit } => list(opened, *limit).await,
        EventCommand::Show { id } => show(opened, *id).await,
    }
}

async fn send(opened: &Opened, name: &str, data: &str, key: Option<&str>) -> Result<Exit, CliError> {
    let data = read_data(data)?;
    if name.starts_with("refit/") {
        return Err(CliError::usage(format!("`{name}` is one of refit's own events"))
            .hint("names that begin with `refit/` are taken: use another"));
    }
    let catalog = opened.catalog();
    for error in &catalog.errors {
        opened.out.complain(&format!("warning: {}", plain(&error.to_string())));
    }
    let store = opened.store().await?;
    let engine = opened.submitter(&store)?;
    let event = Event {
        id: EventId::generate(),
        name: name.to_owned(),
        data,
        source: "cli".to_owned(),
        dedup_key: key.map(str::to_owned),
        received_at: opened.clock.now(),
    };
    let Heard { duplicate, runs: submitted, paused, failed } =
        start::send(&engine, &catalog, &event, &actor()).await.doing(|| format!("send event `{name}`"))?;
    opened.poke().await;
    let runs: Vec<(RunId, &str)> = submitted
        .iter()
        .map(|submitted| match submitted {
            Submitted::Made(run) => (*run, "queued"),
            Submitted::Already(run) => (*run, "already started"),
            Submitted::Busy(run) => (*run, "busy"),
        })
        .collect();
    let value = json!({
        "event": (!duplicate).then_some(event.id), "duplicate": duplicate, "name": name,
        "runs": runs.iter().map(|(run, word)| json!({"run": run, "status": word})).collect::<Vec<_>>(),
        "paused": paused.iter().map(|(name, pause)| json!({"workflow": name, "reason": pause.reason()}))
            .collect::<Vec<_>>(),
        "failed": failed.iter().map(|(name, why)| json!({"workflow": name, "reason": why})).collect::<Vec<_>>(),
    });
    opened.out.result(&value, || {
        let mut text = if duplicate {
            "the event with this key was kept before".to_owned()
        } else {
            format!("event {} was kept", event.id)
        };
        for (run, word) in &runs {
            text.push_str(&format!("\nrun {}: {word}", short(*run)));
        }
        for (name, pause) in &paused {
            text.push_str(&format!(
                "\n{name} is paused and was not started: {}; `refit trigger {name}` starts it and ends the pause",
                pause.reason()
            ));
        }
        text
    });
    for (name, why) in &failed {
        opened.out.complain(&format!("error: {name} was not started by it: {}", plain(why)));
    }
    if let Some((name, _)) = failed.first() {
        let correct = match key {
            Some(_) => {
                "correct the workflow and send the event again with its key, which starts no run twice"
            }
            None => "correct the event or the workflow",
        };
        opened.out.complain(&format!(
            "hint: {correct}; `has(event.data.FIELD)` asks whether a field is there, and `refit trigger {name}` starts it by hand"
        ));
    }
    let exit = if failed.is_empty() { Exit::Ok } else { Exit::Usage };
    if runs.is_empty() && (!paused.is_empty() || !failed.is_empty()) {
        return Ok(exit);
    }
    if runs.is_empty() {
        let waited: Vec<&str> = catalog
            .workflows()
            .iter()
            .flat_map(|loaded| &loaded.workflow.triggers.events)
            .map(|trigger| trigger.name.as_str())
            .collect();
        let hint = match super::pick::nearest(name, waited.iter().copied()) {
            Some(near) if near != name => format!("; did you mean `{near}`?"),
            _ => String::new(),
        };
        let again = if duplicate { " again" } else { "" };
        opened.out.note(&format!("no workflow was started by it{again}{hint}"));
    } else {
        say_who_runs(opened, &store, runs.first().map(|(run, _)| *run)).await?;
    }
    Ok(exit)
}

/// JSON as typed, or of a file named with `@`.
fn read_data(data: &str) -> Result<Value, CliError> {
    let (text, from) = match data.strip_prefix('@') {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|error| CliError::usage(format!("cannot read {path}: {error}")))?;
            (text, path)
        }
        None => (data.to_owned(), "--data"),
    };
    serde_json::from_str(&text).map_err(|error| {
        CliError::usage(format!("{from} is not JSON: {error}"))
            .hint("such as -d '{\"rows\": 500}' or -d @event.json")
    })
}

async fn list(opened: &Opened, limit: u32) -> Result<Exit, CliError> {
    let store = opened.store().await?;
    let events = store.events(None, limit).await.doing(|| "list events".to_owned())?;
    opened.out.result(&events, || {
        if events.is_empty() {
            return "no events yet".to_owned();
        }
        table(
            &["EVENT", "NAME", "FROM", "RECEIVED", "DATA"],
            events.iter().map(|event| {
                vec![
                    event.id.to_string(),
                    event.name.clone(),
                    event.source.clone(),
                    time(event.received_at),
                    cut(&event.data.to_string(), 60),
                ]
            }),
        )
    });
    Ok(Exit::Ok)
}

async fn show(opened: &Opened, id: EventId) -> Result<Exit, CliError> {
    let store = opened.store().await?;
    let event = store.event(id).await.doing(|| format!("read event {id}"))?;
    let event = event.ok_or_else(|| {
        CliError::usage(format!("there is no event {id}")).hint("`refit event ls` lists events")
    })?;
    opened.out.result(&event, || {
        let data = serde_json::to_string_pretty(&event.data).unwrap_or_default();
        let key = event.dedup_key.as_deref().map(|key| format!("key       {key}\n")).unwrap_or_default();
        plain(&format!(
            "event     {}\nname      {}\nfrom      {}\nreceived  {}\n{key}data      {data}",
            event.id,
            event.name,
            event.source,
            time(event.received_at)
        ))
    });
    Ok(Exit::Ok)
}

/// At most `most` characters of `text`.
pub fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let kept: String = text.chars().take(most.saturating_sub(1)).collect();
    format!("{kept}…")
}
