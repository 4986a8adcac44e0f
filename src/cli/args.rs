//! What can be typed.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand};

use crate::domain::canary::MinTable;
use crate::domain::id::{ModelName, RunId, StepId, TargetName, VersionName};
use crate::domain::workflow::units::{self, BasisPoints};

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
    /// Start a run of a workflow
    Trigger(Trigger),
    /// Send and read events
    #[command(subcommand)]
    Event(EventCommand),
    /// Look at runs and steer them
    #[command(subcommand)]
    Run(RunCommand),
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
    /// Say what a canary can show, and decide over minutes that are past
    #[command(subcommand)]
    Canary(CanaryCommand),
    /// Report served predictions (NDJSON)
    Observe(Evidence),
    /// Report what turned out to be true (NDJSON)
    Truth(Evidence),
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
    /// A store of refit.toml and the directory in it that holds the model's versions, as `STORE/PREFIX`.
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
        #[arg(long, default_value_t = 20)]
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
        #[arg(long, default_value_t = 20)]
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

/// `refit model`.
#[derive(Debug, Subcommand)]
pub enum ModelCommand {
    /// List versions, newest first
    Ls {
        /// Of this model.
        model: Option<ModelName>,
    },
    /// Show one version: files, metrics, where it came from
    Show {
        /// The model.
        model: ModelName,
        /// The version, or `champion`, `canary`, `previous`.
        version: String,
    },
    /// Read every file of a version and compare it with the manifest
    Verify {
        /// The model.
        model: ModelName,
        /// The version, or `champion`, `canary`, `previous`.
        version: String,
    },
}

/// `refit notify`.
#[derive(Debug, Subcommand)]
pub enum NotifyCommand {
    /// Show messages, with example facts or those of a run
    Preview(Preview),
    /// Send a test message through a notifier of refit.toml
    Test(NotifyTest),
}

/// `refit notify preview`.
#[derive(Debug, Clone, ClapArgs)]
pub struct Preview {
    /// The kind, such as `promoted` or `rolled_back`; all kinds when not given.
    pub kind: Option<String>,
    /// The form.
    #[arg(long, value_enum, default_value_t = Channel::Mail)]
    pub channel: Channel,
    /// With the facts of this run: an id, the beginning or end of one, or `last`.
    #[arg(long)]
    pub run: Option<String>,
    /// Write files here.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Write files and open the first.
    #[arg(long, conflicts_with = "out")]
    pub open: bool,
}

/// The form of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Channel {
    /// Text and HTML.
    Mail,
    /// Slack's blocks.
    Slack,
    /// The log.
    Console,
}

/// `refit notify test`.
#[derive(Debug, Clone, ClapArgs)]
pub struct NotifyTest {
    /// The notifier, as refit.toml calls it.
    pub name: String,
    /// A mail address to send to; may be given several times. Those of the first workflow that names any when not given.
    #[arg(long)]
    pub to: Vec<String>,
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
    /// Why.
    #[arg(long)]
    pub reason: Option<String>,
}

/// `refit promote`.
#[derive(Debug, Clone, ClapArgs)]
pub struct Promote {
    /// The version.
    pub version: VersionName,
    /// Drop a canary of another version that is out.
    #[arg(long)]
    pub supersede: bool,
    /// Which release.
    #[command(flatten)]
    pub which: Which,
}

/// `refit rollback`.
#[derive(Debug, Clone, ClapArgs)]
pub struct Rollback {
    /// The version; without it, the canary is dropped, or the previous version serves again.
    pub version: Option<VersionName>,
    /// Which release.
    #[command(flatten)]
    pub which: Which,
}

/// `refit canary`.
#[derive(Debug, Subcommand)]
pub enum CanaryCommand {
    /// Say beforehand what a canary can show, and how long it takes
    Plan(CanaryPlan),
    /// Decide over minutes of a file: one line of evidence a minute (NDJSON), then the decision
    #[command(after_help = REPLAY_FORM)]
    Replay(Replay),
}

const REPLAY_FORM: &str = r#"A line is a minute:
  {"t":"2026-03-01T12:00:00Z","canary":{"n":10,"e":1},"stable":{"n":90,"e":2}}
n requests, e of them errors; t may also count minutes, or be Unix time. An arm may have
`slow` (requests slower than a threshold; `timed`: of how many, all when absent), a line
`pairs` ([[canary, stable], …] absolute prediction errors): if one line has them, all do."#;

/// `refit canary plan`.
#[derive(Debug, Clone, ClapArgs)]
pub struct CanaryPlan {
    /// Takes stages, rules and the time to decide from this workflow; options say otherwise.
    pub workflow: Option<String>,
    /// Requests of both versions together: `1000/d`, `40/h`, `100/m`, `5/s`.
    #[arg(long, value_name = "N/UNIT", value_parser = traffic)]
    pub traffic: f64,
    /// Errors of the stable version: `2%`.
    #[arg(long, value_name = "PERCENT", value_parser = rate)]
    pub base_rate: f64,
    /// Slow requests of the stable version, for a rule on latency.
    #[arg(long, value_name = "PERCENT", value_parser = rate, default_value = "5%")]
    pub slow_share: f64,
    /// Traffic of the canary [10% without a workflow].
    #[arg(long, value_name = "PERCENT", value_parser = units::parse_share)]
    pub share: Option<BasisPoints>,
    /// The time to decide: `24h`, `7d` [24h without a workflow].
    #[arg(long = "for", value_name = "TIME", value_parser = units::parse_duration)]
    pub time: Option<Duration>,
    /// An error rate that is acceptable whatever the stable version's is.
    #[arg(long, value_name = "PERCENT", value_parser = rate)]
    pub acceptable_below: Option<f64>,
    /// How canaries are judged.
    #[command(flatten)]
    pub levels: Levels,
    /// Over-dispersion of errors; 1: none, 5: they come in clusters of about three.
    #[arg(long, value_name = "PHI", value_parser = dispersion, default_value = "1")]
    pub phi: f64,
}

/// Requests a day.
fn traffic(text: &str) -> Result<f64, String> {
    const FORM: &str = "write a number and a time, such as `1000/d`, `40/h`, `100/m` or `5/s`";
    let (number, unit) = text.split_once('/').ok_or(FORM)?;
    let a_day = match unit {
        "d" | "day" => 1.0,
        "h" | "hour" => 24.0,
        "m" | "min" => 1440.0,
        "s" => 86_400.0,
        _ => return Err(FORM.to_owned()),
    };
    let number = finite(number).map_err(|_| FORM)?;
    if number > 0.0 && number < 1e12 { Ok(number * a_day) } else { Err(FORM.to_owned()) }
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = finite(text)?;
    if rate > 0.0 && rate < 1.0 {
        Ok(rate)
    } else {
        Err("write a percentage above 0% and below 100%, such as `2%`".to_owned())
    }
}

/// `refit canary replay`.
#[derive(Debug, Clone, ClapArgs)]
pub struct Replay {
    /// A file of minutes; stdin when `-`.
    pub file: PathBuf,
    /// How canaries are judged.
    #[command(flatten)]
    pub levels: Levels,
    /// Over-dispersion of errors, when it is known; 1: none. Learnt from the stable arm when not given.
    #[arg(long, value_name = "PHI", value_parser = dispersion)]
    pub phi: Option<f64>,
}

/// How canaries are judged.
#[derive(Debug, Clone, ClapArgs)]
pub struct Levels {
    /// The chance of ever rolling back a canary that is not worse, at most.
    #[arg(long, value_parser = chance)]
    pub alpha: Option<f64>,
    /// The chance of ever promoting a canary that is worse by the margin, at most.
    #[arg(long, value_parser = chance)]
    pub beta: Option<f64>,
    /// How much worse is too much, as a ratio of errors: `1.5`, or `50%` worse.
    #[arg(long, value_name = "RATIO", value_parser = margin)]
    pub margin: Option<f64>,
    /// Requests that a table of evidence waits for, of the canary and of the stable arm; `0,0`: plain minutes.
    #[arg(long, value_name = "C,S", value_parser = min_table)]
    pub min_table: Option<MinTable>,
}

fn finite(text: &str) -> Result<f64, String> {
    let (digits, scale) = match text.strip_suffix('%') {
        Some(percent) => (percent, 100.0),
        None => (text, 1.0),
    };
    let number = digits.parse::<f64>().ok().filter(|number| number.is_finite());
    number.map(|number| number / scale).ok_or_else(|| format!("`{text}` is not a number"))
}

fn chance(text: &str) -> Result<f64, String> {
    let chance = finite(text)?;
    if chance > 0.0 && chance < 0.5 { Ok(chance) } else { Err("it is above 0 and below 0.5".to_owned()) }
}

fn margin(text: &str) -> Result<f64, String> {
    let number = finite(text.strip_suffix('x').unwrap_or(text))?;
    let ratio = if text.ends_with('%') { 1.0 + number } else { number };
    let valid = ratio > 1.0 && ratio <= 1000.0;
    valid.then_some(ratio).ok_or_else(|| "write a ratio above 1, such as `1.5`, or `50%`".to_owned())
}

fn dispersion(text: &str) -> Result<f64, String> {
    let phi = finite(text)?;
    if phi >= 0.0 { Ok(phi) } else { Err("it is 0 or more".to_owned()) }
}

fn min_table(text: &str) -> Result<MinTable, String> {
    let counts = text.split_once(',').and_then(|(canary, stable)| {
        Some(MinTable { canary: canary.trim().parse().ok()?, stable: stable.trim().parse().ok()? })
    });
    counts.ok_or_else(|| "write two counts, such as `2,10`".to_owned())
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn every_command_can_be_parsed() {
        super::Args::command().debug_assert();
    }
}
