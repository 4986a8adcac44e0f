//! Watching a run: on a terminal a line per step that runs, with the time it
//! took so far; in a pipe a line for each thing that happened.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::Exit;
use super::error::{CliError, Doing};
use super::output::{Output, Paint, plain, span, time};
use crate::clock::Clock;
use crate::domain::id::{Epoch, RunId, StepId};
use crate::domain::pipeline;
use crate::domain::run::{Attempt, AttemptState, Run, RunStatus};
use crate::domain::workflow::Workflow;
use crate::steps::{approve, headline, promote};
use crate::store::{RunFilter, Store};

/// How often the database is looked at.
const POLL: Duration = Duration::from_millis(150);
/// A run that is queued for longer waits for another one.
const QUEUED: chrono::TimeDelta = chrono::TimeDelta::seconds(1);
/// The run that holds a key is looked for among so many of each status.
const LOOKED_AT: u32 = 50;
/// Of the last line of a log, beside the step that runs.
const LONGEST_SAID: usize = 60;
/// Parts of a log read in one look.
const LOG_PARTS: u32 = 100;
const TICK: Duration = Duration::from_millis(100);

/// Shows a run as it advances.
pub struct Watch {
    out: Output,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    workflow: Option<Arc<Workflow>>,
    since: Epoch,
    bars: Option<MultiProgress>,
    running: BTreeMap<(StepId, u32), Option<ProgressBar>>,
    /// Up to where the log was read, for what running steps said last.
    heard: i64,
    told: BTreeMap<(StepId, u32), AttemptState>,
    told_why_queued: bool,
    /// The database did not answer the last look.
    is_away: bool,
}

/// Why watching ended.
#[derive(Debug, Clone)]
pub enum Watched {
    /// The run ended, or its verdict is left to a human.
    Settled(Run),
    /// A step waits for somebody to approve.
    NeedsApproval(Run, StepId),
}

impl Watch {
    /// `workflow` is the run's own snapshot, if it can be read; `since` is its epoch as it was read: a step
    /// that asked for approval before may have its answer by now, and is believed once it was looked at again.
    pub fn new(
        out: Output,
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        workflow: Option<Arc<Workflow>>,
        since: Epoch,
    ) -> Self {
        let bars = (super::output::is_interactive() && !out.quiet && !out.json).then(MultiProgress::new);
        Self {
            out,
            store,
            clock,
            workflow,
            since,
            bars,
            running: BTreeMap::new(),
            heard: 0,
            told: BTreeMap::new(),
            told_why_queued: false,
            is_away: false,
        }
    }

    /// Watches until the run ended or waits for a human. A database that is away is waited for.
    pub async fn until_settled(&mut self, run: RunId) -> Result<Watched, CliError> {
        loop {
            let was_away = self.is_away;
            match self.look(run).await {
                Ok(watched) => {
                    self.is_away = false;
                    if was_away {
                        self.print("… the database is back");
                    }
                    if let Some(watched) = watched {
                        return Ok(watched);
                    }
                }
                Err(error) if error.exit == Exit::Unreachable => {
                    self.is_away = true;
                    if !was_away {
                        self.print(&format!("… {}; it is waited for", plain(&error.message)));
                    }
                }
                Err(error) => return Err(error),
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Shows what happened since the last look.
    pub async fn look(&mut self, id: RunId) -> Result<Option<Watched>, CliError> {
        // The run first: steps that end in between are shown by the next look or belong to this end.
        let run = self.store.run(id).await.doing(|| format!("read run {id}"))?;
        let Some(run) = run else {
            return Err(CliError::usage(format!("run {id} is gone")).hint("`refit run ls` lists runs"));
        };
        let attempts = self.store.attempts(id).await.doing(|| format!("read the steps of run {id}"))?;
        for attempt in &attempts {
            self.show(attempt);
        }
        self.listen(id).await?;
        if matches!(run.status, RunStatus::Finished | RunStatus::Held) {
            return Ok(Some(Watched::Settled(run)));
        }
        if run.status == RunStatus::Queued && self.clock.now() - run.created_at > QUEUED {
            self.say_why_queued(&run).await?;
        }
        let asks = waits_for_approval(self.workflow.as_deref(), &attempts).into_iter().next();
        Ok(asks
            .filter(|_| run.status == RunStatus::Waiting && run.epoch > self.since)
            .map(|step| Watched::NeedsApproval(run, step)))
    }

    /// Shows beside each step that runs what it said last; only where a line can be drawn over and over.
    async fn listen(&mut self, run: RunId) -> Result<(), CliError> {
        if self.bars.is_none() || self.running.is_empty() {
            return Ok(());
        }
        let log = self.store.read_log(run, None, self.heard, LOG_PARTS).await;
        for part in log.doing(|| format!("read the log of run {run}"))? {
            self.heard = part.seq;
            let text = String::from_utf8_lossy(&part.bytes);
            let said = text.lines().rev().map(str::trim).find(|line| !line.is_empty());
            let bar = self.running.get(&(part.step, part.attempt));
            if let (Some(said), Some(Some(bar))) = (said, bar) {
                let said: String = plain(said).replace('\t', " ").chars().take(LONGEST_SAID).collect();
                bar.set_message(said);
            }
        }
        Ok(())
    }

    /// Says once which run holds the concurrency key.
    async fn say_why_queued(&mut self, run: &Run) -> Result<(), CliError> {
        if std::mem::replace(&mut self.told_why_queued, true) {
            return Ok(());
        }
        for status in [RunStatus::Running, RunStatus::Waiting, RunStatus::Undoing] {
            let filter = RunFilter { status: Some(status), limit: LOOKED_AT, ..RunFilter::default() };
            for other in self.store.runs(&filter).await.doing(|| "list runs".to_owned())? {
                let other = self.store.run(other.id).await.doing(|| "read a run".to_owned())?;
                let holds = |other: &Run| other.id != run.id && other.concurrency_key == run.concurrency_key;
                if let Some(other) = other.filter(holds) {
                    let id = super::pick::short(other.id);
                    self.print(&format!(
                        "… waits for run {id} of {}, which is {}; see `refit run show {id}`",
                        other.workflow,
                        status.as_str()
                    ));
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn show(&mut self, attempt: &Attempt) {
        let key = (attempt.step.clone(), attempt.attempt);
        if self.told.get(&key) == Some(&attempt.state) {
            return;
        }
        self.told.insert(key.clone(), attempt.state);
        match attempt.state {
            AttemptState::Started | AttemptState::Sleeping => self.begin(key, attempt),
            AttemptState::Succeeded
            | AttemptState::Failed
            | AttemptState::Lost
            | AttemptState::Skipped
            | AttemptState::Cancelled => {
                let bar = self.running.remove(&key).flatten();
                let line = line(self.out, self.workflow.as_deref(), attempt, self.clock.as_ref());
                if let Some(bar) = bar {
                    bar.finish_and_clear();
                }
                self.print(&line);
            }
        }
    }

    fn begin(&mut self, key: (StepId, u32), attempt: &Attempt) {
        let again =
            if attempt.attempt > 1 { format!(", attempt {}", attempt.attempt) } else { String::new() };
        let what = match (attempt.state, attempt.wake_at) {
            (AttemptState::Sleeping, _) => plain(&waits(attempt)),
            _ => "runs".to_owned(),
        };
        let text = format!("{} {what}{again}", key.0);
        let Some(bars) = &self.bars else {
            self.out.note(&format!("… {text}"));
            self.running.insert(key, None);
            return;
        };
        let elapsed = (self.clock.now() - attempt.started_at).to_std().unwrap_or_default();
        let bar = self.running.entry(key).or_insert_with(|| {
            let bar = bars.add(ProgressBar::new_spinner()).with_elapsed(elapsed);
            if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix}  {elapsed}  {msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(TICK);
            Some(bar)
        });
        if let Some(bar) = bar {
            bar.set_prefix(text);
        }
    }

    fn print(&self, line: &str) {
        match &self.bars {
            // Bars are drawn on stderr; a line printed past them would be torn.
            Some(bars) => bars.suspend(|| self.out.note(line)),
            None => self.out.note(line),
        }
    }

    /// Takes the bars away, so that what follows stands alone.
    pub fn close(&mut self) {
        for (_, bar) in std::mem::take(&mut self.running) {
            if let Some(bar) = bar {
                bar.finish_and_clear();
            }
        }
    }
}

/// Steps that sleep until somebody approves.
pub fn waits_for_approval(workflow: Option<&Workflow>, attempts: &[Attempt]) -> Vec<StepId> {
    workflow.map(|workflow| pipeline::waits_for_approval(workflow, attempts)).unwrap_or_default()
}

/// What a step that sleeps waits for.
fn waits(attempt: &Attempt) -> String {
    let why = promote::frozen(attempt).map(|why| format!(", {why}")).unwrap_or_default();
    let asks = approve::asks(attempt).map(|asks| {
        let words: Vec<&str> = asks.split_whitespace().collect();
        format!(": {}", words.join(" "))
    });
    let asks = asks.unwrap_or_default();
    match attempt.wake_at {
        Some(until) => format!("waits{why}, looks again at {}{asks}", time(until)),
        None => format!("waits{why}{asks}"),
    }
}

/// One attempt as a line: a sign, its step, how long it took, what it came to.
pub fn line(out: Output, workflow: Option<&Workflow>, attempt: &Attempt, clock: &dyn Clock) -> String {
    let kind = workflow.and_then(|workflow| workflow.step(&attempt.step)).map(|step| &step.kind);
    let refused = attempt.output.as_ref().is_some_and(|output| headline::says_no(kind, output));
    let (sign, paint) = match attempt.state {
        AttemptState::Succeeded if refused => ("✗", Paint::Odd),
        AttemptState::Succeeded => ("✓", Paint::Good),
        AttemptState::Failed => ("✗", Paint::Bad),
        AttemptState::Lost => ("!", Paint::Odd),
        AttemptState::Skipped | AttemptState::Cancelled => ("-", Paint::Dim),
        AttemptState::Started | AttemptState::Sleeping => ("…", Paint::Odd),
    };
    let took = span(attempt.finished_at.unwrap_or_else(|| clock.now()) - attempt.started_at);
    let again = if attempt.attempt > 1 { format!(" (attempt {})", attempt.attempt) } else { String::new() };
    let mut line = format!("{} {:<12}{again} {took:>7}", out.painted(sign, paint), attempt.step.as_str());
    let said = match attempt.state {
        AttemptState::Succeeded => attempt.output.as_ref().map(|output| headline::of(kind, output)),
        AttemptState::Failed => attempt.error.as_ref().map(|error| error.message.clone()),
        AttemptState::Skipped => {
            Some(format!("skipped: {}", attempt.error.as_ref().map_or("", |error| error.message.as_str())))
        }
        AttemptState::Lost => Some("its process died; it is done again".to_owned()),
        AttemptState::Sleeping => Some(waits(attempt)),
        AttemptState::Cancelled => Some("stopped: the run ended before it".to_owned()),
        AttemptState::Started => Some("runs".to_owned()),
    };
    if let Some(said) = said.filter(|said| !said.is_empty()) {
        line.push_str(&format!("  {}", plain(&said)));
    }
    if let Some(hint) = attempt.error.as_ref().and_then(|error| error.hint.as_ref()) {
        line.push_str(&format!("\n  hint: {}", plain(hint)));
    }
    if attempt.state == AttemptState::Failed
        && let Some(at) = attempt.wake_at
    {
        line.push_str(&format!("\n  tried again at {}", time(at)));
    }
    line
}
