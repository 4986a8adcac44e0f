//! Ctrl-C and SIGTERM.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Exit;
use super::error::CliError;

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
}
