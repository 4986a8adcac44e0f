//! `run`: looking at runs and steering them.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::Exit;
use super::args::{Answer, RunCommand};
use super::drive::{self, By, ending, held, next_after, snapshot, summary};
use super::error::{CliError, Doing};
use super::follow::{line, waits_for_approval};
use super::output::{plain, span, table, time};
use super::pick::{self, short};
use super::project::{Opened, actor};
use super::trigger::cut;
use crate::domain::id::{RunId, StepId, VersionName};
use crate::domain::run::{Attempt, CancelRequest, Run, RunStatus, SignalKind};
use crate::domain::workflow::Workflow;
use crate::store::{RunFilter, RunSummary, Store};

/// Chunks of log read at once.
const LOG_PAGE: u32 = 64;
const LOG_POLL: Duration = Duration::from_millis(250);

/// `refit run`.
pub async fn run(opened: &Opened, command: &RunCommand) -> Result<Exit, CliError> {
    let store = opened.store().await?;
    match command {
        RunCommand::Ls { workflow, limit, before } => {
            list(opened, &store, workflow.as_deref(), *limit, *before).await
        }
        RunCommand::Show { run } => show(opened, &store, run).await,
        RunCommand::Logs { run, step, follow } => logs(opened, &store, run, step.as_ref(), *follow).await,
        RunCommand::Resume { run, follow } => resume(opened, &store, run, *follow).await,
        RunCommand::Cancel { run, reason } => cancel(opened, &store, run, reason.as_deref()).await,
        RunCommand::Approve(answer) => reply(opened, &store, answer, true).await,
        RunCommand::Reject(answer) => reply(opened, &store, answer, false).await,
    }
}

async fn list(
    opened: &Opened,
    store: &Arc<dyn Store>,
    workflow: Option<&str>,
    limit: u32,
    before: Option<RunId>,
) -> Result<Exit, CliError> {
    let workflow =
        workflow.map(|name| name.parse().map_err(|error| CliError::usage(format!("{error}")))).transpose()?;
    let filter = RunFilter { workflow, before, limit, ..RunFilter::default() };
    let runs = store.runs(&filter).await.doing(|| "list runs".to_owned())?;
    opened.out.result(&runs, || {
        if runs.is_empty() {
            return "no runs yet; start one with `refit trigger WORKFLOW`".to_owned();
        }
        let mut text = runs_table(&runs, opened);
        if runs.len() == limit as usize
            && let Some(last) = runs.last()
        {
            text.push_str(&format!("\n\nolder ones: refit run ls --before {}", last.id));
        }
        text
    });
    Ok(Exit::Ok)
}

/// Runs as a table; their ids by the end, which `refit run show` takes.
pub fn runs_table(runs: &[RunSummary], opened: &Opened) -> String {
    let now = opened.clock.now();
    table(
        &["RUN", "WORKFLOW", "STATUS", "STARTED", "TOOK", "BY", "WHY"],
        runs.iter().map(|run| {
            vec![
                short(run.id),
                run.workflow.to_string(),
                match (run.status, run.outcome) {
                    (RunStatus::Finished, Some(outcome)) => outcome.as_str().replace('_', " "),
                    (status, _) => status.as_str().to_owned(),
                },
                time(run.created_at),
                span(run.finished_at.unwrap_or(now) - run.created_at),
                run.event.trim_start_matches("refit/").to_owned(),
                cut(run.reason.as_deref().unwrap_or(""), 70),
            ]
        }),
    )
}

async fn show(opened: &Opened, store: &Arc<dyn Store>, reference: &str) -> Result<Exit, CliError> {
    let run = pick::run(store, reference).await?;
    let attempts = store.attempts(run.id).await.doing(|| format!("read the steps of run {}", run.id))?;
    let canary = store.canary_of(run.id).await.doing(|| format!("read the canary of run {}", run.id))?;
    let live = store.live_workers().await.doing(|| "look for a server".to_owned())?;
    // Somebody who is there for one run has it, if anybody has.
    let alive = live.servers > 0 || (live.visitors > 0 && run.status == RunStatus::Running);
    let workflow = snapshot(&run);
    let asks = waits_for_approval(workflow.as_deref(), &attempts);
    let version = canary.as_ref().map(|canary| &canary.version);
    let next = next(&run, &asks, version, alive);
    let mut value = summary(&run);
    if let Some(object) = value.as_object_mut() {
        object.insert("cause".to_owned(), json!(run.cause));
        object.insert("attempts".to_owned(), json!(attempts));
        object.insert("canary".to_owned(), json!(canary));
        object.insert("needs_approval".to_owned(), json!(asks));
        object.insert("next".to_owned(), json!(next));
    }
    opened.out.result(&value, || {
        let (word, paint) = ending(&run);
        let took = span(run.finished_at.unwrap_or_else(|| opened.clock.now()) - run.created_at);
        let mut text = format!(
            "run {} of {}, model {}\nid       {}\nstatus   {}\n",
            short(run.id),
            run.workflow,
            run.model,
            run.id,
            opened.out.painted(&word, paint)
        );
        if let Some(reason) = &run.reason {
            text.push_str(&format!("why      {}\n", plain(reason)));
        }
        text.push_str(&format!(
            "started  {} by {} ({})\ntook     {took}\n\n",
            time(run.created_at),
            plain(&run.cause.actor),
            plain(&run.cause.event.name)
        ));
        text.push_str(&timeline(opened, workflow.as_deref(), &attempts));
        if let Some(canary) = &canary {
            text.push_str(&format!(
                "\ncanary   {} against {} since {}: {}, {}\n",
                canary.version,
                canary.champion,
                time(canary.started_at),
                canary.verdict.as_str(),
                plain(&canary.reason)
            ));
        }
        if let Some(forecast) = canary.as_ref().and_then(|canary| canary.view().forecast) {
            text.push_str(&format!("forecast {forecast}\n"));
        }
        if let Some(next) = &next {
            text.push_str(&format!("\nnext     {next}\n"));
        }
        text
    });
    Ok(Exit::Ok)
}

/// Attempts in the order they began, then the steps that are still to come.
fn timeline(opened: &Opened, workflow: Option<&Workflow>, attempts: &[Attempt]) -> String {
    let mut lines: Vec<String> =
        attempts.iter().map(|attempt| line(opened.out, workflow, attempt, opened.clock.as_ref())).collect();
    let begun = |id: &StepId| attempts.iter().any(|attempt| &attempt.step == id);
    let to_come = workflow.into_iter().flat_map(|workflow| &workflow.steps).filter(|step| !begun(&step.id));
    lines.extend(to_come.map(|step| format!("  {}", step.id)));
    if lines.is_empty() { "no step has begun\n".to_owned() } else { lines.join("\n") + "\n" }
}

/// What to do about a run, if anything.
fn next(run: &Run, asks: &[StepId], version: Option<&VersionName>, alive: bool) -> Option<String> {
    let id = short(run.id);
    if let (Some(step), false) = (asks.first(), run.status == RunStatus::Finished) {
        let step = if asks.len() > 1 { format!(" --step {step}") } else { String::new() };
        return Some(format!("`refit run approve {id}{step}` or `refit run reject {id}{step}`"));
    }
    let unattended = format!("no server is running: `refit serve`, or `refit run resume {id} --follow`");
    match run.status {
        RunStatus::Held => Some(held(run, version)),
        RunStatus::Finished => next_after(run, version),
        RunStatus::Queued | RunStatus::Running | RunStatus::Waiting | RunStatus::Undoing if !alive => {
            Some(unattended)
        }
        RunStatus::Queued => {
            Some(format!("it waits for its turn: one run of `{}` at a time", run.concurrency_key))
        }
        RunStatus::Running | RunStatus::Waiting | RunStatus::Undoing => {
            Some(format!("follow it with `refit run logs {id} --follow`"))
        }
    }
}

async fn logs(
    opened: &Opened,
    store: &Arc<dyn Store>,
    reference: &str,
    step: Option<&StepId>,
    follow: bool,
) -> Result<Exit, CliError> {
    let run = pick::run(store, reference).await?;
    if let (Some(step), Some(workflow)) = (step, snapshot(&run))
        && workflow.step(step).is_none()
    {
        let known: Vec<&str> = workflow.steps.iter().map(|step| step.id.as_str()).collect();
        let error = CliError::usage(format!("run {} has no step `{step}`", short(run.id)));
        return Err(match pick::nearest(step.as_str(), known.iter().copied()) {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None => error.hint(format!("its steps are: {}", known.join(", "))),
        });
    }
    let clean = std::io::stdout().is_terminal();
    let mut after = 0;
    let mut shown: Option<(StepId, u32)> = None;
    loop {
        // Asked before the log is read: what a run wrote before it ended is not missed.
        let over = !follow || is_over(store, run.id).await?;
        loop {
            let page = store
                .read_log(run.id, step, after, LOG_PAGE)
                .await
                .doing(|| format!("read the log of run {}", run.id))?;
            let Some(last) = page.last() else { break };
            after = last.seq;
            for chunk in &page {
                let text = String::from_utf8_lossy(&chunk.bytes);
                if opened.out.json {
                    let value =
                        json!({"step": chunk.step, "attempt": chunk.attempt, "at": chunk.at, "text": text});
                    opened.out.line(&value.to_string());
                    continue;
                }
                let source = (chunk.step.clone(), chunk.attempt);
                if shown.as_ref() != Some(&source) {
                    let again = if chunk.attempt > 1 {
                        format!(", attempt {}", chunk.attempt)
                    } else {
                        String::new()
                    };
                    opened.out.note(&format!("== {}{again}", chunk.step));
                    shown = Some(source);
                }
                // A terminal obeys what is printed to it; a file takes it as it was.
                if clean {
                    opened.out.raw(plain(&text).as_bytes());
                } else {
                    opened.out.raw(&chunk.bytes);
                }
            }
        }
        if over {
            break;
        }
        tokio::time::sleep(LOG_POLL).await;
    }
    if shown.is_none() && !opened.out.json {
        opened.out.note(&format!("run {} has printed nothing", short(run.id)));
    }
    Ok(Exit::Ok)
}

async fn is_over(store: &Arc<dyn Store>, run: RunId) -> Result<bool, CliError> {
    let run = store.run(run).await.doing(|| format!("read run {run}"))?;
    Ok(run.is_none_or(|run| run.status == RunStatus::Finished))
}

async fn resume(
    opened: &Opened,
    store: &Arc<dyn Store>,
    reference: &str,
    follow: bool,
) -> Result<Exit, CliError> {
    let run = pick::run(store, reference).await?;
    if run.status == RunStatus::Finished {
        return Err(
            over(&run, "resumed").hint(format!("start a new one with `refit trigger {}`", run.workflow))
        );
    }
    let by = if follow { Some(By::whoever_lives(opened, store).await?) } else { None };
    store
        .signal(run.id, &SignalKind::Look, &actor(), None, opened.clock.now())
        .await
        .doing(|| format!("wake run {}", run.id))?;
    opened.poke().await;
    match by {
        Some(by) => drive::follow(opened, store, &run, by).await,
        None => {
            opened.out.result(&summary(&run), || format!("run {} looks again", short(run.id)));
            super::trigger::say_who_runs(opened, store, Some(run.id)).await?;
            Ok(Exit::Ok)
        }
    }
}

async fn cancel(
    opened: &Opened,
    store: &Arc<dyn Store>,
    reference: &str,
    reason: Option<&str>,
) -> Result<Exit, CliError> {
    let run = pick::run(store, reference).await?;
    let request = CancelRequest { actor: actor(), reason: reason.map(str::to_owned), at: opened.clock.now() };
    let asked = store.request_cancel(run.id, &request).await.doing(|| format!("cancel run {}", run.id))?;
    if !asked {
        let now = store.run(run.id).await.doing(|| format!("read run {}", run.id))?.unwrap_or(run);
        return Err(over(&now, "cancelled"));
    }
    opened.poke().await;
    opened.out.result(&summary(&run), || {
        if run.committed {
            format!("run {} is being promoted: it finishes that and then ends", short(run.id))
        } else {
            format!("run {} ends, and what it changed outside is taken back", short(run.id))
        }
    });
    super::trigger::say_who_runs(opened, store, Some(run.id)).await?;
    Ok(Exit::Ok)
}

async fn reply(
    opened: &Opened,
    store: &Arc<dyn Store>,
    answer: &Answer,
    approves: bool,
) -> Result<Exit, CliError> {
    let run = pick::run(store, &answer.run).await?;
    let (done, verb) = if approves { ("approved", "approve") } else { ("rejected", "reject") };
    if run.status == RunStatus::Finished {
        return Err(over(&run, done));
    }
    let attempts = store.attempts(run.id).await.doing(|| format!("read the steps of run {}", run.id))?;
    let asks = waits_for_approval(snapshot(&run).as_deref(), &attempts);
    let id = short(run.id);
    let step = match (&answer.step, asks.as_slice()) {
        (Some(step), asks) if asks.contains(step) => step.clone(),
        (None, [one]) => one.clone(),
        (_, []) => {
            return Err(CliError::usage(format!("cannot {verb} run {id}: no step of it waits for approval"))
                .hint(format!("`refit run show {id}` says where it stands")));
        }
        (Some(step), asks) => {
            let names: Vec<&str> = asks.iter().map(StepId::as_str).collect();
            return Err(CliError::usage(format!(
                "cannot {verb} run {id}: step `{step}` does not wait for approval"
            ))
            .hint(format!("these do: {}", names.join(", "))));
        }
        (None, asks) => {
            let names: Vec<&str> = asks.iter().map(StepId::as_str).collect();
            return Err(CliError::usage(format!("cannot {verb} run {id}: several steps wait for approval"))
                .hint(format!("say which with --step: {}", names.join(", "))));
        }
    };
    let kind = if approves {
        SignalKind::Approve { step: step.clone() }
    } else {
        SignalKind::Reject { step: step.clone() }
    };
    let sent = store
        .signal(run.id, &kind, &actor(), answer.reason.as_deref(), opened.clock.now())
        .await
        .doing(|| format!("{verb} run {id}"))?;
    if !sent {
        return Err(over(&run, done));
    }
    opened.poke().await;
    let value = json!({"run": run.id, "step": step, "answer": done});
    opened.out.result(&value, || format!("step `{step}` of run {id} is {done}"));
    super::trigger::say_who_runs(opened, store, Some(run.id)).await?;
    Ok(Exit::Ok)
}

fn over(run: &Run, done: &str) -> CliError {
    let (word, _) = ending(run);
    CliError::usage(format!("run {} cannot be {done}: it ended as {word}", short(run.id)))
}
