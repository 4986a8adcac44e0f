//! Ctrl-C and SIGTERM.

use std::future::pending;
use std::pin::pin;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Exit;
use super::error::CliError;
use crate::engine::deadline::Deadline;

/// Waits for somebody to ask this process to stop.
pub struct Interrupts {
    int: Signal,
    term: Signal,
}

impl Interrupts {
    /// Takes both signals over: from now on they end nothing by themselves.
    pub fn listen() -> Result<Self, CliError> {
        let failed = |error: std::io::Error| {
            CliError::new(Exit::StepFailed, format!("cannot listen for Ctrl-C: {error}"))
        };
        Ok(Self {
            int: signal(SignalKind::interrupt()).map_err(failed)?,
            term: signal(SignalKind::terminate()).map_err(failed)?,
        })
    }

    /// Returns when one came.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.int.recv() => {}
            _ = self.term.recv() => {}
        }
    }

    /// Waits for the last part of a process. Once it was told to stop it has until `gone_by`, which `stopping` says when
    /// it is told meanwhile; told again, it ends at once.
    pub async fn during<T>(
        &mut self,
        ending: impl Future<Output = T>,
        gone_by: &mut Option<Deadline>,
        stopping: impl Fn() -> Deadline,
    ) -> Ending<T> {
        let mut ending = pin!(ending);
        loop {
            tokio::select! {
                done = &mut ending => return Ending::Whole(done),
                () = its_end(*gone_by) => return Ending::Late,
                () = self.next() => match gone_by {
                    None => *gone_by = Some(stopping()),
                    Some(_) => return Ending::AtOnce,
                },
            }
        }
    }
}

/// How the last part of a process went.
pub enum Ending<T> {
    /// It came to its end.
    Whole(T),
    /// It had no more time.
    Late,
    /// Somebody did not want to wait for it.
    AtOnce,
}

/// Returns when a process that was told to stop has to be gone.
async fn its_end(gone_by: Option<Deadline>) {
    match gone_by {
        Some(deadline) => tokio::time::sleep_until(deadline.end()).await,
        None => pending().await,
    }
}
