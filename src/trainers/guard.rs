//! `refit __guard`: the process between refit and a command.
//!
//! It starts the command in a session of its own and waits for its end, for a
//! signal, or for refit's word on its control socket (standard input). Then it
//! ends every descendant (SIGTERM, grace, SIGKILL, again until none is left) and
//! says on the socket how things went. The end of the socket, which comes when
//! refit is killed and when it gives the step up, means that there is no grace:
//! another process may start the same step at any moment. On Linux nothing escapes, `setsid` included; see
//! `process_tree` for macOS.
//!
//! Memory is limited by looking: `RLIMIT_AS` limits address space, of which
//! numeric libraries reserve far more than they use.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use super::process_tree;

/// The hidden subcommand.
pub const SUBCOMMAND: &str = "__guard";

/// What refit writes on the control socket when the command is to stop; the grace begins.
pub(super) const ASK: &[u8] = b"stop\n";

/// How often memory is looked at.
const MEMORY_LOOK: Duration = Duration::from_millis(100);
/// How often descendants that were told to end are looked for.
const END_LOOK: Duration = Duration::from_millis(20);
/// SIGKILL takes effect at once, unless a process hangs in the kernel: then the guard gives up.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// What the guard says on its control socket, one JSON line each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "snake_case")]
pub enum Report {
    /// The command runs; it leads the process group of this number.
    Started {
        /// The process.
        pid: i32,
    },
    /// The command could not be started.
    CannotStart {
        /// Why.
        cause: String,
    },
    /// The command and all its descendants have ended.
    Ended(Ended),
}

/// How a command ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Its exit code, if it exited.
    pub code: Option<i32>,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
    /// Why the guard ended it; absent when it ended by itself.
    pub stopped: Option<Stopped>,
    /// The most memory seen, in bytes; only when memory is limited.
    pub peak_memory: u64,
    /// Processes it had left running when it ended by itself; they were ended too.
    pub left_running: usize,
    /// Processes that even SIGKILL did not end.
    pub survivors: usize,
}

/// Why the guard ended a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stopped {
    /// refit asked, or was gone.
    Asked,
    /// Its processes used more memory than they may.
    Memory,
}

/// What the guard is told: `--grace-ms N [--memory BYTES] -- PROGRAM [ARGUMENT…]`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Options {
    grace: Duration,
    memory: Option<u64>,
    program: String,
    arguments: Vec<String>,
}

/// Runs the guard over `args`, what follows `refit __guard`, and returns its exit code: 0 when the
/// command ran, however it ended (the report says how), 2 when the guard itself could not work.
///
/// Standard input must be a socket; descriptors other than standard output and error are not passed on.
pub fn guard_main(args: impl IntoIterator<Item = String>) -> i32 {
    let Some(options) = parse(args) else { return 2 };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return 2 };
    match runtime.block_on(guard(&options)) {
        Ok(()) => 0,
        Err(_) => 2,
    }
}

fn parse(args: impl IntoIterator<Item = String>) -> Option<Options> {
    let mut args = args.into_iter();
    let mut grace = Duration::from_secs(10);
    let mut memory = None;
    loop {
        match args.next()?.as_str() {
            "--grace-ms" => grace = Duration::from_millis(args.next()?.parse().ok()?),
            "--memory" => memory = Some(args.next()?.parse().ok()?),
            "--" => break,
            _ => return None,
        }
    }
    Some(Options { grace, memory, program: args.next()?, arguments: args.collect() })
}

/// The command's process, and how it ended once it did.
struct Main {
    pid: Pid,
    status: Option<WaitStatus>,
}

impl Main {
    /// Collects every child that ended, the command and adopted orphans alike.
    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if pid == self.pid {
                self.status = Some(status);
            }
        }
    }

    fn signal_all(&self, signal: Signal) -> usize {
        match process_tree::descendants() {
            Some(pids) => {
                for pid in &pids {
                    // It may have ended meanwhile; the next look tells.
                    let _ = rustix::process::kill_process(*pid, signal);
                }
                pids.len()
            }
            None => usize::from(rustix::process::kill_process_group(self.pid, signal).is_ok()),
        }
    }

    fn living(&self) -> usize {
        match process_tree::descendants() {
            Some(pids) => pids.len(),
            None => usize::from(rustix::process::test_kill_process_group(self.pid).is_ok()),
        }
    }

    /// Ends every descendant; returns how many are left all the same.
    async fn end_all(&mut self, mut grace: Duration, control: &mut UnixStream) -> usize {
        self.signal_all(Signal::TERM);
        let began = Instant::now();
        while self.living() > 0 && began.elapsed() < grace {
            tokio::select! {
                word = word(control) => if word == Word::Over { grace = Duration::ZERO },
                () = tokio::time::sleep(END_LOOK) => self.reap(),
            }
        }
        let until = Instant::now() + KILL_PATIENCE;
        loop {
            let left = self.signal_all(Signal::KILL);
            self.reap();
            if left == 0 || Instant::now() >= until {
                return left;
            }
            // Not a wait for anything: a breath, so that what was killed can end.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

async fn guard(options: &Options) -> io::Result<()> {
    let control: std::os::unix::net::UnixStream = io::stdin().as_fd().try_clone_to_owned()?.into();
    control.set_nonblocking(true)?;
    let mut control = UnixStream::from_std(control)?;
    // Signals are for the guard, never for refit's terminal: Ctrl-C reaches refit, and refit tells the guard.
    let _ = rustix::process::setsid();
    process_tree::adopt_orphans()?;
    let mut child_ended = signal(SignalKind::child())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;

    let mut command = std::process::Command::new(&options.program);
    command.args(&options.arguments).stdin(Stdio::null()).process_group(0);
    let mut main = match command.spawn() {
        Ok(child) => Main { pid: Pid::from_child(&child), status: None },
        Err(error) => {
            return report(&mut control, &Report::CannotStart { cause: error.to_string() }).await;
        }
    };
    // If refit is gone already, the first read below says so.
    let _ = report(&mut control, &Report::Started { pid: main.pid.as_raw_pid() }).await;

    let mut ended = Ended::default();
    let mut grace = options.grace;
    let mut look = tokio::time::interval(MEMORY_LOOK);
    while main.status.is_none() && ended.stopped.is_none() {
        tokio::select! {
            _ = child_ended.recv() => main.reap(),
            word = word(&mut control) => {
                ended.stopped = Some(Stopped::Asked);
                if word == Word::Over {
                    grace = Duration::ZERO;
                }
            }
            _ = terminate.recv() => ended.stopped = Some(Stopped::Asked),
            _ = interrupt.recv() => ended.stopped = Some(Stopped::Asked),
            _ = hang_up.recv() => ended.stopped = Some(Stopped::Asked),
            _ = look.tick(), if options.memory.is_some() => {
                let limit = options.memory.unwrap_or(u64::MAX);
                let used = process_tree::memory(&process_tree::descendants().unwrap_or_default(), limit);
                ended.peak_memory = ended.peak_memory.max(used);
                if used > limit {
                    ended.stopped = Some(Stopped::Memory);
                }
            }
        }
    }
    // A process over its memory limit gets no grace: it would go on taking.
    if ended.stopped == Some(Stopped::Memory) {
        grace = Duration::ZERO;
    }
    if ended.stopped.is_none() {
        ended.left_running = main.living();
    }
    ended.survivors = main.end_all(grace, &mut control).await;
    ended.code = main.status.and_then(|status| status.exit_status());
    ended.signal = main.status.and_then(|status| status.terminating_signal());
    report(&mut control, &Report::Ended(ended)).await
}

/// What refit says on the control socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    /// The command is to stop.
    Stop,
    /// refit is gone, or waits no longer.
    Over,
}

async fn word(control: &mut UnixStream) -> Word {
    let mut words = [0_u8; ASK.len()];
    match control.read(&mut words).await {
        Ok(0) | Err(_) => Word::Over,
        Ok(_) => Word::Stop,
    }
}

async fn report(control: &mut UnixStream, report: &Report) -> io::Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    control.write_all(&line).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_words(words: &str) -> Option<Options> {
        parse(words.split(' ').map(str::to_owned))
    }

    #[test]
    fn options_end_where_the_command_begins() {
        let options = parse_words("--grace-ms 50 --memory 1000 -- sh -c --memory").expect("complete");
        assert_eq!(options.grace, Duration::from_millis(50));
        assert_eq!(options.memory, Some(1000));
        assert_eq!(options.program, "sh");
        assert_eq!(options.arguments, ["-c", "--memory"]);
    }

    #[test]
    fn a_guard_without_a_command_does_nothing() {
        assert_eq!(parse_words("--grace-ms 50 --"), None);
        assert_eq!(parse_words("--grace-ms x -- sh"), None);
        assert_eq!(parse_words("sh"), None);
        assert_eq!(guard_main(["--bogus".to_owned()]), 2);
    }
}
