//! A command under the guard: what it is given, and how it may end. The same
//! for every step that runs one.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::metrics::StdoutMetrics;
use crate::domain::workflow::step::Run;
use crate::steps::context::{StepContext, StepError, StepLog};
use crate::trainers::command::{self, Command, CommandError, Finished, LOG_LIMIT, Listener};
use crate::trainers::guard::Stopped;

/// Characters that an error message shows of each of a command's last lines.
const SHOWN_WIDTH: usize = 400;
/// What a command sees of refit's own environment.
const PASSED_ON: [&str; 5] = ["PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV"];
const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;
/// How much later than its command refit may hear of a shutdown.
const SHUTDOWN_NEWS: Duration = Duration::from_secs(1);
/// Less free space than this means that what was written last is likely not whole.
const DISK_IS_FULL: u64 = 1024 * 1024;

/// What was heard of a command that ended well.
pub(in crate::steps) struct Heard<'s> {
    /// How long it ran.
    pub(in crate::steps) seconds: f64,
    /// The metrics in what it printed.
    pub(in crate::steps) metrics: StdoutMetrics<'s>,
    /// Bytes of log beyond the limit.
    pub(in crate::steps) dropped: u64,
}

/// Runs the command to its end; `given` is what this kind of step sets beside what all commands get.
pub(in crate::steps) async fn execute<'s>(
    spec: &'s Run,
    ctx: &StepContext<'_>,
    paths: &Paths,
    given: impl IntoIterator<Item = (&'static str, OsString)>,
) -> Result<Heard<'s>, StepError> {
    let dir = spec.working_dir.as_ref().map_or(paths.project.clone(), |dir| paths.project.join(dir));
    if !dir.is_dir() {
        return Err(StepError::permanent(format!("working_dir: there is no directory {}", dir.display())));
    }
    let command = Command {
        line: spec.command.clone(),
        dir,
        env: environment(spec, ctx, paths, given)?,
        mark: "REFIT_OUT",
        grace: spec.grace,
        memory: spec.limits.memory,
        log: spec.limits.log.unwrap_or(LOG_LIMIT),
        files: spec.limits.output.map(|limit| (paths.attempt.clone(), limit)),
    };
    let mut hearing =
        Hearing { log: Arc::clone(&ctx.log), metrics: StdoutMetrics::new(&spec.stdout_metrics) };
    let began = Instant::now();
    let finished = command::run(&ctx.services.guard, &command, &mut hearing, &ctx.stop()).await;
    let seconds = began.elapsed().as_secs_f64();
    let finished = finished.map_err(not_run)?;
    tell(&finished, spec, ctx);
    if finished.cancelled || was_shut_down(&finished, ctx).await {
        return Err(StepError::Interrupted);
    }
    check_ending(&finished, spec, ctx, paths)?;
    Ok(Heard { seconds, metrics: hearing.metrics, dropped: finished.dropped })
}

/// A service manager that stops refit signals all its processes at once, so a command may end before
/// refit hears of it: such an end is the shutdown's, not the trainer's.
async fn was_shut_down(finished: &Finished, ctx: &StepContext<'_>) -> bool {
    let told = finished.ended.stopped == Some(Stopped::Asked)
        || matches!(finished.ended.signal, Some(SIGHUP | SIGINT | SIGTERM));
    told && tokio::time::timeout(SHUTDOWN_NEWS, ctx.cancel.cancelled()).await.is_ok()
}

fn mask(ctx: &StepContext<'_>, text: &str) -> String {
    ctx.services.secrets.mask(text)
}

/// The command ended well, and what it left is not right.
pub(in crate::steps) fn refused(ctx: &StepContext<'_>, problem: &str) -> StepError {
    StepError::permanent(format!("the command succeeded, but {}", mask(ctx, problem)))
}

/// Where a command finds and leaves files; all absolute, all but `data`, `project` and `kept` of this command alone.
pub(in crate::steps) struct Paths {
    pub(in crate::steps) project: PathBuf,
    pub(in crate::steps) data: PathBuf,
    pub(in crate::steps) attempt: PathBuf,
    pub(in crate::steps) out: PathBuf,
    pub(in crate::steps) metrics: PathBuf,
    pub(in crate::steps) errors: PathBuf,
    pub(in crate::steps) kept: PathBuf,
}

impl Paths {
    /// The paths of the attempt's one command, or of the one called `name` of several; empty.
    pub(in crate::steps) fn prepare(ctx: &StepContext<'_>, name: Option<&str>) -> Result<Self, StepError> {
        let absolute = |path: &Path| {
            std::path::absolute(path).map_err(|error| {
                StepError::permanent(format!("cannot find the directory {}: {error}", path.display()))
            })
        };
        let mut attempt = absolute(&ctx.dirs.attempt)?;
        attempt.extend(name);
        let paths = Self {
            project: absolute(&ctx.dirs.project)?,
            data: absolute(&ctx.dirs.data)?,
            out: attempt.join("out"),
            metrics: attempt.join("metrics.json"),
            errors: attempt.join("errors.csv"),
            kept: absolute(&ctx.dirs.kept)?,
            attempt,
        };
        paths.empty().map_err(|error| {
            StepError::transient(format!("cannot prepare {}: {error}", paths.attempt.display()))
        })?;
        Ok(paths)
    }

    /// What an earlier process left under this attempt's name is none of its work.
    fn empty(&self) -> std::io::Result<()> {
        if self.attempt.exists() {
            std::fs::remove_dir_all(&self.attempt)?;
        }
        std::fs::create_dir_all(&self.out)?;
        std::fs::create_dir_all(&self.data)
    }

    /// Removes what the command left, which is of no use and in the way: the database may be on the same disk, and the next
    /// attempt wants it.
    fn give_back(&self, log: &dyn StepLog, why: &str) {
        if let Err(error) = std::fs::remove_dir_all(&self.attempt) {
            log.note(&format!("what it left in {} could not be removed: {error}", self.attempt.display()));
        } else {
            log.note(&format!("what it left in $REFIT_OUT was removed: {why}"));
        }
    }
}

fn environment(
    spec: &Run,
    ctx: &StepContext<'_>,
    paths: &Paths,
    given: impl IntoIterator<Item = (&'static str, OsString)>,
) -> Result<BTreeMap<OsString, OsString>, StepError> {
    let mut env: BTreeMap<OsString, OsString> =
        PASSED_ON.iter().filter_map(|name| Some(((*name).into(), std::env::var_os(name)?))).collect();
    // Without a locale, what a trainer prints of `R²` would depend on its language's idea of ASCII.
    env.entry("LANG".into()).or_insert_with(|| "C.UTF-8".into());
    for (name, template) in &spec.env {
        let value = ctx.render(template)?;
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(StepError::permanent(format!(
                "env: `{}` cannot be an environment variable",
                name.escape_debug()
            )));
        }
        env.insert(name.into(), value.into());
    }
    let own: [(&str, OsString); 6] = [
        ("REFIT_DATA", paths.data.clone().into()),
        ("REFIT_OUT", paths.out.clone().into()),
        ("REFIT_METRICS", paths.metrics.clone().into()),
        ("REFIT_ERRORS", paths.errors.clone().into()),
        ("REFIT_RUN", ctx.run.id.to_string().into()),
        ("REFIT_ATTEMPT", ctx.attempt.to_string().into()),
    ];
    env.extend(own.into_iter().chain(given).map(|(name, value)| (name.into(), value)));
    Ok(env)
}

pub(in crate::steps) fn absolute_or_same(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

struct Hearing<'s> {
    log: Arc<dyn StepLog>,
    metrics: StdoutMetrics<'s>,
}

impl Listener for Hearing<'_> {
    fn log(&mut self, bytes: &[u8]) {
        self.log.write(bytes);
    }

    fn line(&mut self, line: &str) {
        self.metrics.line(line);
    }

    fn progress(&mut self, percent: Option<f64>, message: &str) {
        self.log.progress(percent, message);
    }
}

fn not_run(error: CommandError) -> StepError {
    let message = error.to_string();
    match error {
        CommandError::Start { .. } => StepError::permanent(message),
        CommandError::Guard { .. } | CommandError::GuardLost | CommandError::Read(_) => {
            StepError::transient(message)
        }
    }
}

fn tell(finished: &Finished, spec: &Run, ctx: &StepContext<'_>) {
    let Finished { ended, dropped, .. } = finished;
    if *dropped > 0 {
        let kept = spec.limits.log.unwrap_or(LOG_LIMIT);
        ctx.log.note(&format!("{dropped} bytes of log beyond the first {kept} were dropped (`limits: log`)"));
    }
    if ended.left_running > 0 {
        ctx.log
            .note(&format!("{} processes that the command had left running were ended", ended.left_running));
    }
    if ended.survivors > 0 {
        ctx.log.note(&format!("{} processes could not be ended, not even by SIGKILL", ended.survivors));
    }
}

/// The failures that an exit code, a signal or a limit tells of.
fn check_ending(
    finished: &Finished,
    spec: &Run,
    ctx: &StepContext<'_>,
    paths: &Paths,
) -> Result<(), StepError> {
    if finished.ended.stopped == Some(Stopped::Memory) {
        return Err(StepError::permanent(format!(
            "the command used {} bytes of memory; `limits: memory` allows {}",
            finished.ended.peak_memory,
            spec.limits.memory.unwrap_or_default()
        ))
        .hint("raise `limits: memory`, or train on less at once"));
    }
    let disk_full = finished.disk_full || is_disk_full(&paths.attempt);
    if finished.files_over.is_some() {
        paths.give_back(&*ctx.log, "it went over `limits: output`");
    } else if disk_full {
        paths.give_back(&*ctx.log, "the disk is full");
    }
    if let Some(used) = finished.files_over {
        return Err(StepError::permanent(format!(
            "the command wrote {used} bytes of files; `limits: output` allows {}",
            spec.limits.output.unwrap_or_default()
        )));
    }
    let how = match (finished.ended.stopped, finished.ended.code, finished.ended.signal) {
        (None, Some(0), _) if !disk_full => return Ok(()),
        // Not every program minds: Python, for one, drops errors of files it closes by itself.
        (None, Some(0), _) => "the command exited with code 0, but ran out of disk".to_owned(),
        (None, Some(code), _) => format!("the command exited with code {code}"),
        (None, None, Some(signal)) => format!("the command was ended by {}", signal_name(signal)),
        (None, None, None) => "the command ended, nobody knows how".to_owned(),
        // Somebody told the guard to end: a shutdown of the machine.
        (Some(_), _, _) => return Err(StepError::transient("the command was ended from outside refit")),
    };
    // Masked first: what is cut off must not be half of a secret.
    let stderr = mask(ctx, &finished.stderr.join("\n"));
    let stderr: Vec<String> = stderr.lines().map(|line| line.chars().take(SHOWN_WIDTH).collect()).collect();
    let stderr = stderr.join("\n  ");
    let said = if stderr.is_empty() { ", and printed no error".to_owned() } else { format!(":\n  {stderr}") };
    let message = format!("{how}{said}");
    let error = match finished.ended.code {
        // Not found, or not executable: the next attempt will find it so, too.
        Some(126 | 127) => StepError::permanent(message),
        _ => StepError::transient(message),
    };
    let out_of_memory = finished.ended.signal == Some(9) && spec.limits.memory.is_none();
    if disk_full {
        Err(error.hint(format!("the disk of {} is full", paths.attempt.display())))
    } else if out_of_memory {
        Err(error.hint("the machine may have run out of memory: see `dmesg`, and set `limits: memory`"))
    } else {
        Err(error)
    }
}

fn is_disk_full(dir: &Path) -> bool {
    rustix::fs::statvfs(dir).is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) < DISK_IS_FULL)
}

fn signal_name(signal: i32) -> String {
    let name = match signal {
        SIGHUP => "SIGHUP",
        SIGINT => "SIGINT",
        6 => "SIGABRT",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        SIGTERM => "SIGTERM",
        other => return format!("signal {other}"),
    };
    format!("{name} (signal {signal})")
}
