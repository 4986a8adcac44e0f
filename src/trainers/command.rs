//! Starts a command under the guard, streams what it prints in bounded memory,
//! and stops it with everything it started.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio_util::sync::CancellationToken;

use super::guard::{Ended, Report, SUBCOMMAND};

/// A line longer than this is cut: patterns see its beginning only.
pub const LONGEST_LINE: usize = 64 * 1024;
/// Bytes of log kept when nothing else is said.
pub const LOG_LIMIT: u64 = 64 * 1024 * 1024;
/// Lines of standard error that an error message shows.
const TAIL_LINES: usize = 15;
/// Bytes of each of them.
const TAIL_WIDTH: usize = 400;
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

/// A command to be run.
#[derive(Debug, Clone)]
pub struct Command {
    /// The command line, given to `sh -c`.
    pub line: String,
    /// Where it runs.
    pub dir: PathBuf,
    /// All it sees of an environment.
    pub env: BTreeMap<OsString, OsString>,
    /// Between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// Bytes of memory of all its processes together.
    pub memory: Option<u64>,
    /// Bytes of what it prints that are passed on.
    pub log: u64,
    /// A directory, and how many bytes of files it may put there.
    pub files: Option<(PathBuf, u64)>,
}

/// Hears what a command prints.
pub trait Listener: Send {
    /// Bytes for the log, as they come.
    fn log(&mut self, bytes: &[u8]);
    /// A line of standard output, cut at `LONGEST_LINE`, without its end.
    fn line(&mut self, line: &str);
    /// A progress line.
    fn progress(&mut self, percent: Option<f64>, message: &str);
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
    /// Bytes in the watched directory when they were more than allowed.
    pub files_over: Option<u64>,
    /// Its `cancel` token fired before it ended.
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

/// A line `{"refit":"progress","pct":40,"message":"…"}`.
#[derive(Deserialize)]
struct Progress {
    refit: String,
    pct: Option<f64>,
    #[serde(default)]
    message: String,
}

/// Runs `command` to its end, or until `cancel` fires. When it returns, and also when it is dropped
/// (then a moment later), nothing of the command runs any more.
pub async fn run(
    guard: &GuardCommand,
    command: &Command,
    listener: &mut dyn Listener,
    cancel: &CancellationToken,
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

    let mut following = Following {
        listener,
        left: command.log,
        finished: Finished::default(),
        line: Line::default(),
        tail: Tail::default(),
    };
    let (outcome, leader) =
        follow(&mut following, Pipes { stdout, stderr, reports }, control, command, cancel).await;
    let finished = following.finish();
    if !matches!(outcome, Ok(Some(Report::Ended(_) | Report::CannotStart { .. }))) {
        // Without its guard the command is out of reach but for its group.
        let _ = child.start_kill();
        if let Some(group) = leader.and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
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
    cancel: &CancellationToken,
) -> (Result<Option<Report>, CommandError>, Option<i32>) {
    let Pipes { mut stdout, mut stderr, reports } = pipes;
    let mut reports = BufReader::new(reports).lines();
    let (mut out, mut err) = (vec![0; 64 * 1024], vec![0; 16 * 1024]);
    let (mut out_open, mut err_open, mut reports_open) = (true, true, true);
    let mut control = Some(control);
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
            () = cancel.cancelled(), if control.is_some() => {
                following.finished.cancelled = true;
                control = None;
                give_up_at = Some(tokio::time::Instant::now() + command.grace + GUARD_PATIENCE);
            }
            _ = look.tick(), if control.is_some() && command.files.is_some() => {
                if let Some((dir, limit)) = &command.files {
                    let used = size_below(dir);
                    if used > *limit {
                        following.finished.files_over = Some(used);
                        control = None;
                        give_up_at = Some(tokio::time::Instant::now() + command.grace + GUARD_PATIENCE);
                    }
                }
            }
            () = sleep_until(give_up_at), if give_up_at.is_some() => break,
        }
    }
    (Ok(last), leader)
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

/// What is read of a command that runs.
struct Following<'l> {
    listener: &'l mut dyn Listener,
    left: u64,
    finished: Finished,
    line: Line,
    tail: Tail,
}

/// The line of standard output that is being read.
#[derive(Default)]
struct Line {
    text: Vec<u8>,
    /// Bytes of it that the log has.
    logged: usize,
}

impl Line {
    /// Only a line that begins so can be progress, and is kept from the log until it is whole.
    fn may_be_progress(&self) -> bool {
        self.text.first() == Some(&b'{') && self.text.len() < LONGEST_LINE
    }
}

impl Following<'_> {
    fn stdout(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (part, ended) = match bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
                Some(end) => (&bytes[..=end], true),
                None => (bytes, false),
            };
            bytes = &bytes[part.len()..];
            let room = LONGEST_LINE.saturating_sub(self.line.text.len());
            let (kept, beyond) = part.split_at(part.len().min(room));
            self.line.text.extend_from_slice(kept);
            if ended {
                self.end_line();
            } else if !self.line.may_be_progress() {
                self.log_line();
            }
            self.log(beyond);
        }
    }

    fn end_line(&mut self) {
        let text = String::from_utf8_lossy(&self.line.text);
        let line = text.trim_end_matches(['\r', '\n']);
        let progress = self
            .line
            .may_be_progress()
            .then(|| serde_json::from_str::<Progress>(line).ok())
            .flatten()
            .filter(|progress| progress.refit == "progress");
        match progress {
            Some(Progress { pct, message, .. }) => {
                self.listener.progress(pct.map(|pct| pct.clamp(0.0, 100.0)), &message);
                self.line.logged = self.line.text.len();
            }
            None if line.is_empty() => {}
            None => self.listener.line(line),
        }
        self.log_line();
        self.line.text.clear();
        self.line.logged = 0;
    }

    fn log_line(&mut self) {
        let text = std::mem::take(&mut self.line.text);
        self.log(&text[self.line.logged..]);
        self.line.logged = text.len();
        self.line.text = text;
    }

    fn stderr(&mut self, bytes: &[u8]) {
        self.tail.push(bytes);
        self.log(bytes);
    }

    fn log(&mut self, bytes: &[u8]) {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        if room > 0 {
            self.listener.log(&bytes[..room]);
        }
        self.left -= room as u64;
        self.finished.dropped += (bytes.len() - room) as u64;
    }

    fn finish(mut self) -> Finished {
        if !self.line.text.is_empty() {
            self.end_line();
        }
        Finished { stderr: self.tail.lines(), ..self.finished }
    }
}

/// The last lines of standard error.
#[derive(Default)]
struct Tail {
    lines: VecDeque<Vec<u8>>,
    open: bool,
}

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            if !self.open {
                if self.lines.len() == TAIL_LINES {
                    self.lines.pop_front();
                }
                self.lines.push_back(Vec::new());
            }
            self.open = piece.last() != Some(&b'\n');
            if let Some(line) = self.lines.back_mut() {
                let room = TAIL_WIDTH.saturating_sub(line.len());
                line.extend_from_slice(&piece[..piece.len().min(room)]);
            }
        }
    }

    fn lines(&self) -> Vec<String> {
        let texts = self.lines.iter().map(|line| String::from_utf8_lossy(line).trim_end().to_owned());
        texts.filter(|line| !line.is_empty()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Heard {
        log: Vec<u8>,
        lines: Vec<String>,
        progress: Vec<(Option<f64>, String)>,
    }

    impl Listener for Heard {
        fn log(&mut self, bytes: &[u8]) {
            self.log.extend_from_slice(bytes);
        }

        fn line(&mut self, line: &str) {
            self.lines.push(line.to_owned());
        }

        fn progress(&mut self, percent: Option<f64>, message: &str) {
            self.progress.push((percent, message.to_owned()));
        }
    }

    fn hear(chunks: &[&[u8]], limit: u64) -> (Heard, Finished) {
        let mut heard = Heard::default();
        let mut following = Following {
            listener: &mut heard,
            left: limit,
            finished: Finished::default(),
            line: Line::default(),
            tail: Tail::default(),
        };
        for chunk in chunks {
            following.stdout(chunk);
        }
        let finished = following.finish();
        (heard, finished)
    }

    #[test]
    fn lines_are_put_together_whatever_the_chunks() {
        let (heard, _) = hear(&[b"MAE: 1", b"2\nR\xc2", b"\xb2: 0.9"], 1000);
        assert_eq!(heard.lines, ["MAE: 12", "R²: 0.9"]);
        assert_eq!(heard.log, "MAE: 12\nR²: 0.9".as_bytes());
    }

    #[test]
    fn progress_is_not_log_and_other_json_is() {
        let text = br#"{"refit":"progress","pct":140,"message":"fit"}
{"refit":"other"}
{"loss":1}
"#;
        for size in [1, 7, text.len()] {
            let chunks: Vec<_> = text.chunks(size).collect();
            let (heard, _) = hear(&chunks, 1000);
            assert_eq!(heard.progress, [(Some(100.0), "fit".to_owned())]);
            assert_eq!(String::from_utf8_lossy(&heard.log), "{\"refit\":\"other\"}\n{\"loss\":1}\n");
        }
    }

    #[test]
    fn a_line_without_end_is_cut_for_patterns_and_whole_in_the_log() {
        let chunk = vec![b'{'; 50_000];
        let (heard, _) = hear(&[&chunk, &chunk, &chunk, b"\nnext\n"], 1_000_000);
        assert_eq!(heard.lines.iter().map(String::len).collect::<Vec<_>>(), [LONGEST_LINE, 4]);
        assert_eq!(heard.log.len(), 150_000 + 6);
    }

    #[test]
    fn log_beyond_the_limit_is_counted() {
        let (heard, finished) = hear(&[b"0123456789\n", b"0123456789\n"], 15);
        assert_eq!(heard.log.len(), 15);
        assert_eq!(finished.dropped, 7);
        assert_eq!(heard.lines.len(), 2, "patterns still see every line");
    }

    #[test]
    fn the_tail_keeps_the_last_lines_only() {
        let mut tail = Tail::default();
        for number in 0..100 {
            tail.push(format!("line {number}\n").as_bytes());
        }
        tail.push(b"no end");
        assert_eq!(tail.lines().len(), TAIL_LINES);
        assert_eq!(tail.lines().last().map(String::as_str), Some("no end"));
    }
}
