//! A process, from its start to its end: how long, and how much memory at most.

use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::process::Command;

use crate::Failure;

/// The highest mark only rises: what is missed is what came in the last moment.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// What one took.
pub struct Measured {
    pub seconds: f64,
    pub memory_mb: f64,
}

/// Runs `command`, which must succeed.
pub async fn measure(mut command: Command) -> Result<Measured, Failure> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
    let begin = Instant::now();
    let mut child = command.spawn()?;
    let id = child.id();
    let mut memory: f64 = 0.0;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status?,
            () = tokio::time::sleep(LOOK_EVERY) => {
                memory = memory.max(id.and_then(highest_megabytes).unwrap_or(0.0));
            }
        }
    };
    let seconds = begin.elapsed().as_secs_f64();
    if !status.success() {
        return Err(format!("{command:?}: {status}").into());
    }
    Ok(Measured { seconds, memory_mb: memory })
}

/// The most that was ever resident, where the system tells.
fn highest_megabytes(id: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse::<f64>().ok().map(|kib| kib * 1024.0 / 1e6)
}

/// Whether `program` is on PATH.
pub fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}
