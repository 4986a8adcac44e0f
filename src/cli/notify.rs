//! `notify`: what messages look like, and whether they arrive.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};

use super::args::{Channel, NotifyCommand, NotifyTest, Preview};
use super::error::{CliError, Doing};
use super::output::{Output, plain};
use super::pick::nearest;
use super::project::Opened;
use super::registry::{self, Built, Problem};
use super::{Exit, pick};
use crate::adapter::{AdapterError, Message};
use crate::config::{ConfigError, Project};
use crate::domain::id::NotifierName;
use crate::domain::workflow::{Mode, Moment, Recipient};
use crate::engine::notices;
use crate::notify::examples;
use crate::notify::facts::Facts;
use crate::notify::held::in_time;
use crate::notify::render::Renderer;

/// `refit notify …`.
pub async fn notify(
    opened: Result<Opened, CliError>,
    command: &NotifyCommand,
    out: Output,
) -> Result<Exit, CliError> {
    match command {
        NotifyCommand::Preview(args) => preview(opened, args, out).await,
        NotifyCommand::Test(args) => test(&opened?, args).await,
    }
}

/// A message to be looked at.
struct Shown {
    kind: String,
    message: Message,
}

async fn preview(opened: Result<Opened, CliError>, args: &Preview, out: Output) -> Result<Exit, CliError> {
    let kinds: Vec<&str> = match &args.kind {
        Some(kind) => vec![known_kind(kind)?],
        None => examples::KINDS.to_vec(),
    };
    let renderer = match &opened {
        Ok(opened) => renderer(&opened.project)?,
        // Outside a project there are the built-in templates.
        Err(_) => Renderer::new(None).map_err(|error| CliError::usage(error.to_string()))?,
    };
    let shown = match &args.run {
        Some(reference) => vec![of_run(&opened?, &renderer, reference, args.kind.as_deref()).await?],
        None => {
            let mode = match &args.workflow {
                Some(name) => opened?.workflow(name)?.workflow.mode,
                None => Mode::Act,
            };
            kinds
                .into_iter()
                .filter(|kind| args.kind.is_some() || *kind != "progress" || args.channel == Channel::Slack)
                .filter_map(|kind| Some((kind, examples::facts(kind, mode)?)))
                .map(|(kind, facts)| rendered(&renderer, kind, &facts))
                .collect::<Result<Vec<_>, CliError>>()?
        }
    };
    if let Some(dir) = &args.out {
        let files = write(&shown, args.channel, dir)?;
        out.result(&json!({"files": files}), || lines(&files));
        return Ok(Exit::Ok);
    }
    if args.open {
        let dir = tempfile::Builder::new().prefix("refit-preview-").tempdir();
        let dir = dir.map_err(|error| CliError::usage(format!("cannot make a directory: {error}")))?.keep();
        let files = write(&shown, args.channel, &dir)?;
        let first = files.first().cloned().unwrap_or_default();
        open(&first)?;
        out.result(&json!({"files": files, "opened": first}), || lines(&files));
        return Ok(Exit::Ok);
    }
    let values: Vec<Value> = shown
        .iter()
        .map(|Shown { kind, message }| {
            json!({
                "kind": kind, "subject": message.subject, "text": message.text, "html": message.html,
                "blocks": message.blocks,
            })
        })
        .collect();
    out.result(&values, || {
        let texts: Vec<String> = shown.iter().map(|shown| as_text(shown, args.channel)).collect();
        texts.join("\n")
    });
    Ok(Exit::Ok)
}

fn known_kind(kind: &str) -> Result<&'static str, CliError> {
    let word = kind.replace('-', "_");
    if let Some(known) = examples::KINDS.into_iter().find(|known| *known == word) {
        return Ok(known);
    }
    let error = CliError::usage(format!("there is no message of kind `{kind}`"));
    Err(match nearest(&word, examples::KINDS) {
        Some(near) => error.hint(format!("did you mean `{near}`?")),
        None => error.hint(format!("there are: {}", examples::KINDS.join(", "))),
    })
}

fn renderer(project: &Project) -> Result<Renderer, CliError> {
    let templates = project.templates();
    Renderer::new(templates.as_deref()).map_err(|error| {
        CliError::usage(error.to_string()).hint("mend the file in the directory that [templates] names")
    })
}

fn rendered(renderer: &Renderer, kind: &str, facts: &Facts) -> Result<Shown, CliError> {
    let rendered = match kind {
        "progress" => renderer.progress("preview", facts),
        _ => renderer.render("preview", facts, &[]),
    };
    let message = rendered.map_err(|error| {
        CliError::usage(error.to_string()).hint("mend the file in the directory that [templates] names")
    })?;
    Ok(Shown { kind: kind.to_owned(), message })
}

/// The message about a run that was: as it was queued, or as it would be now.
async fn of_run(
    opened: &Opened,
    renderer: &Renderer,
    reference: &str,
    kind: Option<&str>,
) -> Result<Shown, CliError> {
    let store = opened.store().await?;
    let run = pick::run(&store, reference).await?;
    let word = match (kind, run.outcome) {
        (Some(kind), _) => known_kind(kind)?.to_owned(),
        (None, Some(outcome)) => word_of(Moment::of(outcome)),
        (None, None) => {
            store.close().await;
            return Err(CliError::usage(format!("run {} has not ended", pick::short(run.id))).hint(
                "say which message you want to see, such as `refit notify preview canary_started --run last`",
            ));
        }
    };
    let moment = match word.as_str() {
        "first_version" => Moment::Promoted,
        "progress" => Moment::Started,
        other => serde_json::from_value(json!(other))
            .map_err(|_| CliError::usage(format!("no run has a message of kind `{other}`")))?,
    };
    let queued = store.outbox_of(run.id).await.doing(|| "read the messages of the run".to_owned())?;
    let sent = queued.iter().rev().find(|entry| entry.notice.moment == moment);
    let facts = match sent {
        Some(entry) if word != "progress" => Facts::of(&entry.notice),
        Some(_) | None => {
            let engine = opened.submitter(&store)?;
            let workflow = engine
                .workflow(&run.definition)
                .map_err(|why| CliError::usage(format!("the run's workflow cannot be read: {why}")))?;
            match word.as_str() {
                "progress" => engine.standing(&run, &workflow).await,
                _ => notices::facts(&engine, &run, &workflow, moment).await,
            }
            .doing(|| "read the run".to_owned())?
        }
    };
    store.close().await;
    rendered(renderer, &word, &facts)
}

fn word_of(moment: Moment) -> String {
    serde_json::to_value(moment).ok().and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default()
}

fn as_text(shown: &Shown, channel: Channel) -> String {
    let Shown { kind, message } = shown;
    let rule = format!("== {kind} {}\n", "=".repeat(72_usize.saturating_sub(kind.len())));
    match channel {
        Channel::Mail | Channel::Console => {
            format!("{rule}Subject: {}\n\n{}", plain(&message.subject), plain(&message.text))
        }
        Channel::Slack => {
            let blocks = serde_json::to_string_pretty(&message.blocks).unwrap_or_default();
            format!("{rule}{}\n", plain(&blocks))
        }
    }
}

/// Writes each message in the forms of `channel`, and returns the files, the one to look at first.
fn write(shown: &[Shown], channel: Channel, dir: &Path) -> Result<Vec<PathBuf>, CliError> {
    let failed = |path: &Path, error: std::io::Error| {
        CliError::usage(format!("cannot write {}: {error}", path.display()))
            .hint("name a directory you may write to with --out DIR")
    };
    std::fs::create_dir_all(dir).map_err(|error| failed(dir, error))?;
    let mut files = vec![];
    for Shown { kind, message } in shown {
        let forms: Vec<(String, String)> = match channel {
            Channel::Mail => vec![
                (format!("{kind}.html"), message.html.clone().unwrap_or_default()),
                (format!("{kind}.txt"), format!("Subject: {}\n\n{}", message.subject, message.text)),
            ],
            Channel::Slack => {
                let blocks = json!({"blocks": message.blocks});
                vec![(
                    format!("{kind}.slack.json"),
                    serde_json::to_string_pretty(&blocks).unwrap_or_default(),
                )]
            }
            Channel::Console => {
                vec![(format!("{kind}.console.txt"), format!("{}\n{}", message.subject, message.text))]
            }
        };
        for (name, text) in forms {
            let path = dir.join(name);
            std::fs::write(&path, text).map_err(|error| failed(&path, error))?;
            files.push(path);
        }
    }
    Ok(files)
}

fn lines(files: &[PathBuf]) -> String {
    files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join("\n")
}

/// Shows a file as the system shows such files.
fn open(file: &Path) -> Result<(), CliError> {
    let program = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };
    let started = std::process::Command::new(program)
        .arg(file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    started.map(drop).map_err(|error| {
        CliError::usage(format!("cannot open {} with {program}: {error}", file.display()))
            .hint("write it with --out DIR and open it yourself")
    })
}

async fn test(opened: &Opened, args: &NotifyTest) -> Result<Exit, CliError> {
    let http = registry::http_client()?;
    // That one only: what another still lacks does not matter here.
    let mut project = opened.project.clone();
    project.file.notifiers.retain(|name, _| name.as_str() == args.name);
    if project.file.notifiers.is_empty() {
        return Err(unknown(&opened.project, &args.name));
    }
    let Built { notifiers, problems, .. } = registry::build(&project, &opened.secrets, &http);
    let problem = problems.into_iter().find(|problem| problem.table.starts_with("notifiers"));
    if let Some(Problem { table, cause, is_secret }) = problem {
        return Err(ConfigError::Adapter { table, cause, is_secret }.into());
    }
    let notifier = notifiers.as_ref().and_then(|notifiers| notifiers.get(&args.name));
    let Some((notifier, is_mail)) = notifier else { return Err(unknown(&opened.project, &args.name)) };
    let to = if is_mail { addresses(opened, args)? } else { vec![] };
    let message = Message {
        id: format!("test/{}", uuid::Uuid::new_v4()),
        subject: format!("refit: a test of [notifiers.{}]", args.name),
        text: TEST.to_owned(),
        html: Some(format!("<p>{TEST}</p>")),
        blocks: None,
        to,
        tried_since: None,
    };
    let sent = in_time(notifier.send(&message)).await.map_err(AdapterError::from);
    let value = json!({
        "notifier": args.name, "sent": sent.is_ok(), "id": message.id, "to": message.to,
        "error": sent.as_ref().err().map(ToString::to_string),
    });
    match sent {
        Ok(()) => {
            opened.out.result(&value, || {
                let to = if is_mail { format!(" to {}", message.to.join(", ")) } else { String::new() };
                format!("sent{to}: `{}` took the message; see that it is there", args.name)
            });
            Ok(Exit::Ok)
        }
        Err(error) => Err(not_sent(&args.name, &error)),
    }
}

const TEST: &str =
    "This is a test: whoever reads it will hear of retrains from here. Nothing has to be done.";

fn unknown(project: &Project, name: &str) -> CliError {
    let names: Vec<&str> = project.file.notifiers.keys().map(NotifierName::as_str).collect();
    let error = CliError::usage(format!("refit.toml has no notifier `{name}`"));
    match nearest(name, names.iter().copied()) {
        Some(near) => error.hint(format!("did you mean `{near}`?")),
        None if names.is_empty() => error.hint(format!("add [notifiers.{name}] to refit.toml")),
        None => error.hint(format!("there are: {}", names.join(", "))),
    }
}

/// Whom a test mail goes to: `--to`, else the first addresses that a workflow names.
fn addresses(opened: &Opened, args: &NotifyTest) -> Result<Vec<String>, CliError> {
    if !args.to.is_empty() {
        return Ok(args.to.clone());
    }
    let catalog = opened.catalog();
    let told =
        catalog.workflows().iter().flat_map(|loaded| &loaded.workflow.notify).flat_map(|rule| &rule.to);
    let named = told.filter_map(|recipient| match recipient {
        Recipient::Email(addresses) => Some(addresses.clone()),
        Recipient::Slack(_) | Recipient::Webhook(_) | Recipient::Console => None,
    });
    named.into_iter().next().ok_or_else(|| {
        CliError::usage(format!("`{}` sends mail, and no workflow says to whom", args.name))
            .hint("name an address with --to")
    })
}

fn not_sent(name: &str, error: &AdapterError) -> CliError {
    let (exit, hint) = match error {
        AdapterError::Unavailable { .. } => (
            Exit::Unreachable,
            "refit would try again later; is its address right, and can it be reached from here?",
        ),
        AdapterError::Denied { .. } => (Exit::Usage, "check its key or token, and what that may do"),
        AdapterError::Rejected { .. } | AdapterError::Conflict { .. } => {
            (Exit::Usage, "mend its table in refit.toml; refit would not try this again")
        }
    };
    CliError::new(exit, format!("`{name}` did not take the message: {error}")).hint(hint)
}
