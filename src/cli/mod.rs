//! The ways in from a shell: one file per group of commands. Data goes to
//! stdout, progress and messages to stderr.

pub mod args;
pub mod output;

use std::process::ExitCode;

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
