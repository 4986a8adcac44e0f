//! The ways in from a shell: one file per group of commands. Data goes to
//! stdout, progress and messages to stderr.
//!
//! * `args`: what can be typed; `project`: opening; `registry`: what names of `refit.toml` become
//! * `output`, `error`: how things are said; `follow`, `drive`: runs as they advance
//! * the rest: a file per group of commands

mod adopt;
pub mod args;
mod canary;
mod canary_past;
mod demo;
mod doctor;
mod drive;
mod eject;
mod error;
mod evidence;
mod follow;
mod freeze;
mod gc;
mod gc_files;
mod init;
mod model;
mod notify;
pub mod output;
mod pick;
mod places;
mod project;
mod receipt;
mod references;
mod registry;
mod release;
mod run;
mod server;
mod signals;
mod simulate;
mod socket;
mod status;
mod tick;
mod trigger;
mod workflow;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

use args::{Args, Command, Global};
use error::CliError;
use output::Output;
use project::Opened;

/// Does what was typed, and says how it ended.
pub fn run(typed: impl IntoIterator<Item = OsString>) -> ExitCode {
    let typed: Vec<OsString> = typed.into_iter().collect();
    let args = match Args::try_parse_from(&typed) {
        Ok(args) => args,
        Err(error) => return not_understood(&typed, &error),
    };
    let out = Output::new(args.global.json, args.global.quiet, args.global.no_color);
    let is_server = matches!(args.command, Command::Serve { .. } | Command::Worker);
    project::set_up_tracing(&args.global, is_server);
    match start(args, out).and_then(all_was_written) {
        Ok(exit) => exit.into(),
        Err(error) => {
            tell(out, &error);
            error.exit.into()
        }
    }
}

/// A result that did not reach stdout is none. What went otherwise than well ends as it did.
fn all_was_written(exit: Exit) -> Result<Exit, CliError> {
    match Output::lost() {
        None => Ok(exit),
        Some(why) => {
            let exit = if exit == Exit::Ok { Exit::Usage } else { exit };
            Err(CliError::new(exit, format!("cannot write to standard output: {why}"))
                .hint("what is there is not whole; is the disk full?"))
        }
    }
}

/// Help and version are results; anything else is a mistake of the caller.
fn not_understood(typed: &[OsString], error: &clap::Error) -> ExitCode {
    if error.use_stderr() && typed.iter().any(|word| word == "--json") {
        let text = error.to_string();
        let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        tell(Output::new(true, false, true), &CliError::usage(message).hint("see `refit --help`"));
        return Exit::Usage.into();
    }
    // A closed pipe: nobody is left to be told.
    let _closed = error.print();
    if error.use_stderr() { Exit::Usage.into() } else { Exit::Ok.into() }
}

fn tell(out: Output, error: &CliError) {
    if out.json {
        out.complain(&error.to_json().to_string());
        return;
    }
    let text = error.to_text();
    let painted: Vec<String> = text
        .lines()
        .map(|line| match (line.strip_prefix("error:"), line.strip_prefix("hint:")) {
            (Some(rest), _) => format!("{}{rest}", out.painted("error:", output::Paint::Bad)),
            (None, Some(rest)) => format!("{}{rest}", out.painted("hint:", output::Paint::Good)),
            (None, None) => line.to_owned(),
        })
        .collect();
    out.complain(&painted.join("\n"));
}

fn start(args: Args, out: Output) -> Result<Exit, CliError> {
    enter(&args)?;
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|error| CliError::new(Exit::StepFailed, format!("cannot start: {error}")))?;
    let ended = runtime.block_on(dispatch(args.global, args.command, out));
    // Whatever still runs belongs to a command that was given up.
    runtime.shutdown_background();
    ended
}

/// Goes to the directory of `-C`; `init` and `demo` make it.
fn enter(args: &Args) -> Result<(), CliError> {
    let Some(dir) = &args.global.directory else { return Ok(()) };
    let failed = |error: std::io::Error| {
        CliError::usage(format!("cannot work in {}: {error}", dir.display()))
            .hint("is it a directory you may enter?")
    };
    if matches!(args.command, Command::Init(_) | Command::Demo(_)) {
        std::fs::create_dir_all(dir).map_err(failed)?;
    }
    std::env::set_current_dir(dir).map_err(failed)
}

async fn dispatch(global: Global, command: Command, out: Output) -> Result<Exit, CliError> {
    let open = || Opened::find(&global, out);
    match command {
        Command::Demo(args) => demo::run(&args, out).await,
        Command::Init(args) => init::run(&args, out),
        Command::Adopt(args) => adopt::run(&open()?, &args).await,
        Command::Validate { files } => workflow::validate(open(), &files, out),
        Command::Plan { workflow } => workflow::plan(&open()?, &workflow),
        Command::Schema => Ok(workflow::print_schema(out)),
        Command::Doctor => doctor::run(open(), out).await,
        Command::Eject => eject::run(&open()?).await,
        Command::Trigger(args) => trigger::trigger(&open()?, &args).await,
        Command::Simulate(args) => simulate::simulate(&open()?, &args).await,
        Command::Event(command) => trigger::event(&open()?, &command).await,
        Command::Run(command) => run::run(&open()?, &command).await,
        Command::Receipt(args) => receipt::receipt(&open()?, &args).await,
        Command::Model(command) => model::model(&open()?, &command).await,
        Command::Status => status::status(&open()?).await,
        Command::Notify(command) => notify::notify(open(), &command, out).await,
        Command::Promote(args) => release::promote(&open()?, &args).await,
        Command::Rollback(args) => release::rollback(&open()?, &args).await,
        Command::Freeze(args) => freeze::freeze(&open()?, &args).await,
        Command::Unfreeze(args) => freeze::unfreeze(&open()?, &args).await,
        Command::Canary(command) => canary::canary(&command, open, out).await,
        Command::Observe(args) => evidence::observe(&open()?, &args).await,
        Command::Truth(args) => evidence::truth(&open()?, &args).await,
        Command::Gc(args) => gc::run(&open()?, &args).await,
        Command::Migrate { shared } => server::migrate(&open()?, shared).await,
        Command::Serve { listen } => server::serve(&open()?, listen).await,
        Command::Worker => server::worker(&open()?).await,
        Command::Tick => tick::tick(&open()?).await,
    }
}

/// How a command ended, for the shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Well; promoted.
    Ok = 0,
    /// A step failed.
    StepFailed = 1,
    /// The command or the settings are wrong.
    Usage = 2,
    /// Refused by the gate or a data check.
    Rejected = 3,
    /// The canary was rolled back.
    RolledBack = 4,
    /// It waits for a human, or is inconclusive.
    Waiting = 5,
    /// There was nothing to do.
    NothingToDo = 6,
    /// Something else is under way.
    Busy = 7,
    /// An outside service cannot be reached.
    Unreachable = 8,
    /// Ctrl-C.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

impl Exit {
    /// How a command that waited for a run ends.
    pub fn of_run(run: &crate::domain::run::Run) -> Self {
        use crate::domain::run::{Outcome, RunStatus};
        match (run.status, run.outcome) {
            (RunStatus::Held, _) => Exit::Waiting,
            (RunStatus::Finished, Some(outcome)) => match outcome {
                Outcome::Succeeded | Outcome::Promoted | Outcome::CancelledAfterPromotion => Exit::Ok,
                Outcome::Rejected => Exit::Rejected,
                Outcome::RolledBack => Exit::RolledBack,
                Outcome::Skipped => Exit::NothingToDo,
                Outcome::Failed => Exit::StepFailed,
                Outcome::Cancelled => Exit::Interrupted,
            },
            (RunStatus::Finished, None) => Exit::StepFailed,
            (RunStatus::Queued | RunStatus::Running | RunStatus::Waiting | RunStatus::Undoing, _) => {
                Exit::Waiting
            }
        }
    }
}
