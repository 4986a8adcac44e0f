//! What can be typed.

mod canary;
mod freeze;
mod model;
mod notify;
mod simulate;

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand};

pub use canary::{CanaryCommand, CanaryMinutes, CanaryPlan, Extend, Levels, Replay};
pub use freeze::{Freeze, Unfreeze};
pub use model::{Change, ModelCommand, OneVersion};
pub use notify::{Channel, NotifyCommand, NotifyTest, Preview};
pub use simulate::{Simulate, fraction};

use crate::domain::id::{ModelName, RunId, StepId, TargetName, VersionName};

/// Retrain a model, check it, put it on canary, promote it or roll it back: durably.
#[derive(Debug, Parser)]
#[command(name = "refit", version, about, disable_help_subcommand = true)]
pub struct Args {
    /// What holds for every command.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// What holds for every command.
#[derive(Debug, Clone, ClapArgs)]
pub struct Global {
    /// Work in this directory.
    #[arg(short = 'C', long = "directory", global = true, value_name = "DIR")]
    pub directory: Option<PathBuf>,
    /// Take the settings from this file instead of the nearest refit.toml.
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The database: a file, or postgres://…
    #[arg(
        long = "db",
        global = true,
        value_name = "URL",
        env = "REFIT_DATABASE_URL",
        hide_env_values = true
    )]
    pub database: Option<String>,
    /// Print JSON.
    #[arg(long, global = true)]
    pub json: bool,
    /// Say nothing but results and errors.
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Say more; twice: everything.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// No colours (also: NO_COLOR).
    #[arg(long, global = true)]
    pub no_color: bool,
    /// Do not ask.
    #[arg(short, long, global = true)]
    pub yes: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the whole story on real data: retrain, check, canary, promote, roll back
    Demo(Demo),
    /// Start a project here: refit.toml, a workflow, a trainer
    Init(Init),
    /// Take the versions that are served today as champion
    Adopt(Adopt),
    /// Check workflow files and settings
    Validate {
        /// Files; all of workflows/ when none is given.
        files: Vec<PathBuf>,
    },
    /// Say step by step what a workflow would do
    Plan {
        /// The workflow.
        workflow: String,
    },
    /// Print the JSON Schema of workflow files
    Schema,
    /// Check the database, stores, targets and secrets
    Doctor,
    /// Leave refit: withdraw canaries, write a last release document, say what replaces it
    Eject,
    /// Start a run of a workflow
    Trigger(Trigger),
    /// Replay past weeks under other rules: which thresholds would have decided well
    Simulate(Simulate),
    /// Send and read events
    #[command(subcommand)]
    Event(EventCommand),
    /// Look at runs and steer them
    #[command(subcommand)]
    Run(RunCommand),
    /// Write what a run decided, on which evidence, and what that does not promise
    Receipt(Receipt),
    /// Look at versions of models
    #[command(subcommand)]
    Model(ModelCommand),
    /// What serves, what is on canary, what runs, what is due next
    Status,
    /// Look at messages before they come, and try notifiers
    #[command(subcommand)]
    Notify(NotifyCommand),
    /// Make a version the one that serves everybody
    Promote(Promote),
    /// Drop the canary, or go back to an older version
    Rollback(Rollback),
    /// Promote nothing for a while; canaries go on, and every way back stays open
    Freeze(Freeze),
    /// Lift a freeze before its end
    Unfreeze(Unfreeze),
    /// Say what a canary can show, give it more time, decide over minutes that are past
    #[command(subcommand)]
    Canary(CanaryCommand),
    /// Report served predictions (NDJSON)
    Observe(Evidence),
    /// Report what turned out to be true (NDJSON)
    Truth(Evidence),
    /// Delete what nothing needs: old versions, half uploads, files of finished runs, old evidence
    Gc(Gc),
    /// Make or update the database's tables
    Migrate {
        /// Use a Postgres database that other programs use too.
        #[arg(long)]
        shared: bool,
    },
    /// Work on runs, fire schedules, watch canaries, answer HTTP
    Serve {
        /// The address to listen on; 127.0.0.1:7070 when not given here nor in refit.toml.
        #[arg(long, value_name = "ADDR")]
        listen: Option<std::net::SocketAddr>,
    },
    /// Work on runs without HTTP
    Worker,
    /// Do everything that is due, say what is due next, and end: for a cron job instead of a server
    Tick,
}

/// `refit demo`.
#[derive(Debug, Clone, ClapArgs)]
pub struct Demo {
    /// Where to leave the project; a new directory `refit-demo` here when not given.
    #[arg(value_name = "DIRECTORY")]
    pub into: Option<PathBuf>,
}

/// `refit init`.
#[derive(Debug, Clone, ClapArgs)]
pub struct Init {
    /// The kind of project.
    #[arg(long, default_value = "local")]
    pub template: String,
}

/// `refit adopt`.
#[derive(Debug, Clone, ClapArgs)]
pub struct Adopt {
    /// A store of refit.toml and the directory in it that holds the versions, as `STORE/PREFIX`.
    pub place: String,
    /// The version that serves today.
    #[arg(long)]
    pub champion: VersionName,
    /// The model; the only one of the project's workflows when not given.
    #[arg(long)]
    pub model: Option<ModelName>,
    /// The target; the only one of refit.toml when not given.
    #[arg(long)]
    pub target: Option<TargetName>,
    /// Why, for the history.
    #[arg(long, value_parser = said)]
    pub why: Option<String>,
}

/// `refit gc`.
#[derive(Debug, Clone, ClapArgs)]
pub struct Gc {
    /// Say what would be deleted and why the rest is kept; delete nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Only versions of this model.
    #[arg(long)]
    pub model: Option<ModelName>,
    /// Also versions that were adopted: refit did not upload them.
    #[arg(long)]
    pub adopted: bool,
    /// Why, for the history.
    #[arg(long, value_parser = said)]
    pub why: Option<String>,
}

/// `refit trigger`.
#[derive(Debug, Clone, ClapArgs)]
pub struct Trigger {
    /// The workflow.
    pub workflow: String,
    /// An input, as KEY=VALUE.
    #[arg(short, long = "input", value_name = "KEY=VALUE", value_parser = key_value)]
    pub inputs: Vec<(String, String)>,
    /// Wait for the end, and drive the run here when no server does.
    #[arg(short, long)]
    pub follow: bool,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .ok_or_else(|| format!("`{text}` is not KEY=VALUE"))
}

/// `refit event`.
#[derive(Debug, Subcommand)]
pub enum EventCommand {
    /// Send an event; every workflow that waits for it starts
    Send {
        /// Its name.
        name: String,
        /// What it carries: JSON, or @FILE.
        #[arg(short, long, default_value = "{}")]
        data: String,
        /// A second event with this key is the same event.
        #[arg(long)]
        key: Option<String>,
    },
    /// List events, newest first
    Ls {
        /// How many.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// Show one event
    Show {
        /// Its id.
        id: crate::domain::id::EventId,
    },
}

/// `refit run`.
#[derive(Debug, Subcommand)]
pub enum RunCommand {
    /// List runs, newest first
    Ls {
        /// Of this workflow.
        #[arg(long)]
        workflow: Option<String>,
        /// How many.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        /// Older than this run.
        #[arg(long)]
        before: Option<RunId>,
    },
    /// Show one run: its steps, their outputs, why it ended
    Show {
        /// A run, the beginning or end of its id, or `last`.
        #[arg(default_value = "last")]
        run: String,
    },
    /// Print what a run's steps printed
    Logs {
        /// A run, the beginning or end of its id, or `last`.
        #[arg(default_value = "last")]
        run: String,
        /// Of this step.
        #[arg(long)]
        step: Option<StepId>,
        /// Go on until the run ends.
        #[arg(short, long)]
        follow: bool,
    },
    /// Wake a run that waits, or take up one that was left
    Resume {
        /// A run, the beginning or end of its id, or `last`.
        run: String,
        /// Wait for the end, and drive the run here when no server does.
        #[arg(short, long)]
        follow: bool,
    },
    /// End a run and take its effects back
    Cancel {
        /// A run, the beginning or end of its id, or `last`.
        run: String,
        /// Why.
        #[arg(long)]
        reason: Option<String>,
    },
    /// Let a step that waits for approval go on
    Approve(Answer),
    /// End a run that waits for approval
    Reject(Answer),
}

/// An answer to a step that waits for a human.
#[derive(Debug, Clone, ClapArgs)]
pub struct Answer {
    /// A run, the beginning or end of its id, or `last`.
    pub run: String,
    /// The step; the only one that waits when not given.
    #[arg(long)]
    pub step: Option<StepId>,
    /// Why.
    #[arg(long)]
    pub reason: Option<String>,
}

/// `refit receipt`.
#[derive(Debug, Clone, ClapArgs)]
pub struct Receipt {
    /// A run, the beginning or end of its id, or `last`.
    #[arg(default_value = "last")]
    pub run: String,
    /// How it is written.
    #[command(flatten)]
    pub paper: Paper,
}

/// How a receipt is written.
#[derive(Debug, Clone, ClapArgs)]
pub struct Paper {
    /// A page for a browser; Markdown when not given.
    #[arg(long)]
    pub html: bool,
    /// A file to write; stdout when not given.
    #[arg(long, value_name = "FILE")]
    pub to: Option<PathBuf>,
}

/// Which release a command is about.
#[derive(Debug, Clone, ClapArgs)]
pub struct Which {
    /// The model; the only one when not given.
    #[arg(long)]
    pub model: Option<ModelName>,
    /// The target; the only one of the model when not given.
    #[arg(long)]
    pub target: Option<TargetName>,
    /// Why, for the history.
    #[arg(long, alias = "reason", value_parser = said)]
    pub why: Option<String>,
}

/// `refit promote`.
#[derive(Debug, Clone, ClapArgs)]
pub struct Promote {
    /// The version.
    pub version: VersionName,
    /// Drop a canary of another version that is out.
    #[arg(long)]
    pub supersede: bool,
    /// Also while the model is frozen; the history says so.
    #[arg(long)]
    pub despite_freeze: bool,
    /// Which release.
    #[command(flatten)]
    pub which: Which,
}

/// `refit rollback`.
#[derive(Debug, Clone, ClapArgs)]
pub struct Rollback {
    /// The version; without it, the canary is dropped, or the previous version serves again.
    pub version: Option<VersionName>,
    /// Mark the version that it takes the place of as bad; without a VERSION this is always done.
    #[arg(long, requires = "version")]
    pub bad: bool,
    /// Which release.
    #[command(flatten)]
    pub which: Which,
}

/// `refit observe` and `refit truth`.
#[derive(Debug, Clone, ClapArgs)]
pub struct Evidence {
    /// The model.
    pub model: ModelName,
    /// A file; stdin when not given or `-`.
    pub file: Option<PathBuf>,
    /// The batch: sent again, it changes nothing. The hash of the rows when not given.
    #[arg(long)]
    pub batch: Option<String>,
}

/// A reason that says something, in one line: it becomes part of sentences.
fn said(text: &str) -> Result<String, String> {
    let said = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if said.is_empty() { Err("say why".to_owned()) } else { Ok(said) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::said;

    #[test]
    fn every_command_can_be_parsed() {
        super::Args::command().debug_assert();
    }

    #[test]
    fn a_reason_is_one_line_that_says_something() {
        assert_eq!(said(" the shop\n is full\t"), Ok("the shop is full".to_owned()));
        assert_eq!(said(" \n"), Err("say why".to_owned()));
    }
}
