//! Starts a command under the guard, streams what it prints in bounded memory,
//! and stops it with everything it started.

mod listen;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio_util::sync::CancellationToken;

use super::guard::{ASK, Ended, Report, SUBCOMMAND};
use super::process_tree;
use listen::Following;
pub use listen::{LONGEST_LINE, Listener};

/// Bytes of log kept when nothing else is said.
pub const LOG_LIMIT: u64 = 64 * 1024 * 1024;
/// How often the size of watched files is looked at.
const SIZE_LOOK: Duration = Duration::from_millis(500);
/// How long a guard that was asked to stop has beyond its own grace and patience.
const GUARD_PATIENCE: Duration = Duration::from_secs(15);

/// How the guard is started.
#[derive(Debug, Clone)]
pub struct GuardCommand {
    /// The program.
    pub program: PathBuf,
    /// Its first arguments.
    pub args: Vec<OsString>,
}

impl GuardCommand {
    /// `program __guard`.
    pub fn of_program(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), args: vec![SUBCOMMAND.into()] }
    }

    /// This program again, also when a deploy has replaced its file meanwhile.
    pub fn this_program() -> std::io::Result<Self> {
        let program = if cfg!(target_os = "linux") {
            PathBuf::from("/proc/self/exe")
        } else {
            std::env::current_exe()?
        };
        Ok(Self::of_program(program))
    }
}

/// How a command is told to stop.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    /// Its processes get SIGTERM, and SIGKILL after its grace.
    pub ask: CancellationToken,
    /// Its processes get SIGKILL at once.
    pub force: CancellationToken,
}

/// A command to be run.
#[derive(Debug, Clone)]
pub struct Command {
    /// The command line, given to `sh -c`.
    pub line: String,
    /// Where it runs.
    pub dir: PathBuf,
    /// All it sees of an environment.
    pub env: BTreeMap<OsString, OsString>,
    /// The variable of `env` whose value no other command has: its processes are known by it.
    pub mark: &'static str,
    /// Between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// Bytes of memory of all its processes together.
    pub memory: Option<u64>,
    /// Bytes of what it prints that are passed on.
    pub log: u64,
    /// A directory, and how many bytes of files it may put there.
    pub files: Option<(PathBuf, u64)>,
}

/// How a command went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Finished {
    /// How it ended.
    pub ended: Ended,
    /// The last lines of its standard error.
    pub stderr: Vec<String>,
    /// Bytes it printed beyond the log limit.
    pub dropped: u64,
    /// It said on standard error that a disk is full.
    pub disk_full: bool,
    /// Bytes in the watched directory when they were more than allowed.
    pub files_over: Option<u64>,
    /// It was told to stop before it ended.
    pub cancelled: bool,
}

/// Why a command could not be run, or not followed to its end.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The guard could not be started.
    #[error("cannot start the process guard `{}`: {source}", program.display())]
    Guard {
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The guard could not start the command.
    #[error("cannot start `sh` in {}: {cause}", dir.display())]
    Start {
        /// Where.
        dir: PathBuf,
        /// What the system said.
        cause: String,
    },
    /// The guard ended without a report: somebody killed it.
    #[error("the process guard was killed while the command ran; the command was ended with it")]
    GuardLost,
    /// A pipe broke.
    #[error("cannot read what the command prints: {0}")]
    Read(std::io::Error),
}

/// Runs `command` to its end, or until `stop`. When it returns, and also when it is dropped
/// (then a moment later), nothing of the command runs any more.
pub async fn run(
    guard: &GuardCommand,
    command: &Command,
    listener: &mut dyn Listener,
    stop: &Stop,
) -> Result<Finished, CommandError> {
    let broken = |source| CommandError::Guard { program: guard.program.clone(), source };
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(broken)?;
    ours.set_nonblocking(true).map_err(broken)?;
    let mut process = tokio::process::Command::new(&guard.program);
    process.args(&guard.args).args(["--grace-ms", &command.grace.as_millis().to_string()]);
    if let Some(memory) = command.memory {
        process.args(["--memory", &memory.to_string()]);
    }
    process.args(["--", "sh", "-c", &command.line]);
    process.env_clear().envs(&command.env).current_dir(&command.dir);
    process.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = process.spawn().map_err(broken)?;
    // The builder holds the guard's end of the socket; while it lives, the end of the guard cannot be seen.
    drop(process);
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(broken(std::io::Error::other("it has no output")));
    };
    let (reports, control) = tokio::net::UnixStream::from_std(ours).map_err(broken)?.into_split();

    let mut following = Following::new(listener, command.log);
    let (outcome, leader) =
        follow(&mut following, Pipes { stdout, stderr, reports }, control, command, stop).await;
    let finished = following.finish();
    if !matches!(outcome, Ok(Some(Report::Ended(_) | Report::CannotStart { .. }))) {
        // Without its guard the command's processes are orphans; most still carry its environment.
        let _ = child.start_kill();
        if let Some(group) = leader.and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        if let Some(value) = command.env.get(OsStr::new(command.mark)) {
            process_tree::kill_marked(command.mark, value);
        }
    }
    let _ = child.wait().await;
    match outcome? {
        Some(Report::Ended(ended)) => Ok(Finished { ended, ..finished }),
        Some(Report::CannotStart { cause }) => Err(CommandError::Start { dir: command.dir.clone(), cause }),
        Some(Report::Started { .. }) | None => Err(CommandError::GuardLost),
    }
}

struct Pipes {
    stdout: tokio::process::ChildStdout,
    stderr: tokio::process::ChildStderr,
    reports: tokio::net::unix::OwnedReadHalf,
}

/// Reads all pipes to their ends. Returns the last report, and the process group of the command.
async fn follow(
    following: &mut Following<'_>,
    pipes: Pipes,
    control: tokio::net::unix::OwnedWriteHalf,
    command: &Command,
    stop: &Stop,
) -> (Result<Option<Report>, CommandError>, Option<i32>) {
    let Pipes { mut stdout, mut stderr, reports } = pipes;
    let mut reports = BufReader::new(reports).lines();
    let (mut out, mut err) = (vec![0; 64 * 1024], vec![0; 16 * 1024]);
    let (mut out_open, mut err_open, mut reports_open) = (true, true, true);
    let mut control = Some(control);
    let mut asked = false;
    let mut last = None;
    let mut leader = None;
    let mut look = tokio::time::interval(SIZE_LOOK);
    let mut give_up_at = None;
    while out_open || err_open || reports_open {
        tokio::select! {
            read = read_some(&mut stdout, &mut out), if out_open => match read {
                Ok(0) => out_open = false,
                Ok(count) => following.stdout(&out[..count]),
                Err(error) => return (Err(CommandError::Read(error)), leader),
            },
            read = read_some(&mut stderr, &mut err), if err_open => match read {
                Ok(0) => err_open = false,
                Ok(count) => following.stderr(&err[..count]),
                Err(error) => return (Err(CommandError::Read(error)), leader),
            },
            line = reports.next_line(), if reports_open => match line {
                Ok(Some(line)) => {
                    last = serde_json::from_str::<Report>(&line).ok();
                    if let Some(Report::Started { pid }) = &last {
                        leader = Some(*pid);
                    }
                }
                Ok(None) | Err(_) => {
                    reports_open = false;
                    if !matches!(last, Some(Report::Ended(_) | Report::CannotStart { .. })) {
                        return (Ok(None), leader);
                    }
                    // Only a process that even SIGKILL did not end, or one that macOS let
                    // escape, holds the pipes now.
                    give_up_at.get_or_insert_with(|| tokio::time::Instant::now() + Duration::from_secs(2));
                }
            },
            () = stop.force.cancelled(), if control.is_some() => {
                following.finished.cancelled = true;
                // The end of the socket is what a dead refit leaves, too.
                control = None;
                give_up_at = Some(tokio::time::Instant::now() + GUARD_PATIENCE);
            }
            () = stop.ask.cancelled(), if !asked => {
                following.finished.cancelled = true;
                asked = true;
                give_up_at = Some(ask(control.as_mut(), command.grace).await);
            }
            _ = look.tick(), if !asked && command.files.is_some() => {
                if let Some((dir, limit)) = &command.files {
                    let used = size_below(dir);
                    if used > *limit {
                        following.finished.files_over = Some(used);
                        asked = true;
                        give_up_at = Some(ask(control.as_mut(), command.grace).await);
                    }
                }
            }
            () = sleep_until(give_up_at), if give_up_at.is_some() => break,
        }
    }
    (Ok(last), leader)
}

/// Asks the guard to stop its command; returns when it is given up.
async fn ask(
    control: Option<&mut tokio::net::unix::OwnedWriteHalf>,
    grace: Duration,
) -> tokio::time::Instant {
    if let Some(control) = control {
        // A guard that does not hear it has ended.
        let _ = control.write_all(ASK).await;
    }
    tokio::time::Instant::now() + grace + GUARD_PATIENCE
}

async fn read_some(pipe: &mut (impl AsyncRead + Unpin), buffer: &mut [u8]) -> std::io::Result<usize> {
    pipe.read(buffer).await
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Bytes of the files below `dir`; links are not followed, what vanishes meanwhile does not count.
pub fn size_below(dir: &Path) -> u64 {
    let mut total = 0;
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(found) if found.is_dir() => dirs.push(entry.path()),
                Ok(found) => total += found.len(),
                Err(_) => {}
            }
        }
    }
    total
}
