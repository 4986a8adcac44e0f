//! A project on disk and the processes that work on it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use refit::clock::SystemClock;
use refit::domain::id::RunId;
use refit::domain::run::{Attempt, AttemptState, Outcome, Run, RunStatus};
use refit::store::{RunFilter, Store};
use tempfile::TempDir;

use crate::support::world::copy_dir;

/// A directory of models, and a file that says which one serves.
pub const STORE_AND_TARGET: &str = r#"
[stores.models]
kind = "local"
path = "models"

[targets.production]
kind = "pointer"
path = "release.json"
"#;

/// Nothing that is waited for takes longer, on a busy machine either.
const PATIENCE: Duration = Duration::from_secs(100);
const POLL: Duration = Duration::from_millis(5);

/// Waits for what another process does, which nobody announces.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "it never came: {what}");
        std::thread::park_timeout(POLL);
    }
}

/// Part of a command line that no other process has; `sleep` takes it as part of a number.
pub fn mark() -> String {
    format!("{:09}", uuid::Uuid::new_v4().as_u128() % 1_000_000_000)
}

/// A directory with workflows, and a database.
pub struct Project {
    pub dir: TempDir,
    pub database: String,
}

impl Project {
    pub fn sqlite() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join(".refit/refit.db").display().to_string();
        Self::around(dir, database)
    }

    pub async fn postgres() -> Self {
        let url = crate::store::database::migrated_postgres().await;
        Self::around(tempfile::tempdir().unwrap(), url)
    }

    /// On the empty Postgres database at `url`.
    pub async fn on(url: String) -> Self {
        refit::store::migrate(&url, false).await.unwrap();
        Self::around(tempfile::tempdir().unwrap(), url)
    }

    fn around(dir: TempDir, database: String) -> Self {
        let project = Self { dir, database };
        project.write("refit.toml", "[worker]\ngrace_seconds = 3\n");
        project
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// What `self` is, again, with its SQLite database. No process may be at work on it.
    pub fn copy(&self) -> Self {
        let dir = tempfile::tempdir().unwrap();
        copy_dir(self.dir.path(), dir.path());
        let database = dir.path().join(".refit/refit.db").display().to_string();
        Self { dir, database }
    }

    /// The lines of a file that steps append to.
    pub fn lines(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.path(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Waits until `name` has `count` whole lines.
    pub fn await_lines(&self, name: &str, count: usize) -> Vec<String> {
        eventually(&format!("{count} lines in {name}"), || {
            let text = fs::read_to_string(self.path(name)).unwrap_or_default();
            let whole = text.matches('\n').count();
            (whole >= count).then(|| text.lines().take(whole).map(str::to_owned).collect())
        })
    }

    /// The program with `args`, in this project.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_refit"));
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null());
        for name in ["RUST_LOG", "REFIT_TOKEN"] {
            command.env_remove(name);
        }
        command.env("USER", "sam").env("REFIT_DATABASE_URL", &self.database);
        command
    }

    /// What a command says to its end; it must succeed.
    pub fn says(&self, args: &[&str]) -> String {
        let output = self.command(args).output().unwrap();
        let (stdout, stderr) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{args:?}: {}\n{stdout}\n{stderr}", output.status);
        stdout.into_owned()
    }

    /// Starts a run.
    pub fn trigger(&self, workflow: &str) -> RunId {
        let said: serde_json::Value =
            serde_json::from_str(&self.says(&["trigger", workflow, "--json"])).unwrap();
        said["run"].as_str().unwrap().parse().unwrap()
    }

    /// `refit serve` on a port of the system's choice.
    pub fn serve(&self) -> Process {
        self.start(self.command(&["serve", "--listen", "127.0.0.1:0"]))
    }

    pub fn start(&self, mut command: Command) -> Process {
        let log = self.path(&format!("process-{}.log", mark()));
        let child = command.stdout(Stdio::null()).stderr(File::create(&log).unwrap()).spawn().unwrap();
        Process { child, log }
    }

    /// The database, as it is now. No process of the project is left to fill its files in.
    pub async fn store(&self) -> Arc<dyn Store> {
        refit::store::open(&self.database, Arc::new(SystemClock)).await.unwrap()
    }

    /// A run and its attempts.
    pub async fn look(&self, run: RunId) -> (Run, Vec<Attempt>) {
        let store = self.store().await;
        let seen = (store.run(run).await.unwrap().unwrap(), store.attempts(run).await.unwrap());
        store.close().await;
        seen
    }

    /// Waits until `run` has `status`.
    pub async fn await_status(&self, run: RunId, status: RunStatus) -> (Run, Vec<Attempt>) {
        let store = self.store().await;
        let until = Instant::now() + PATIENCE;
        loop {
            let seen = store.run(run).await.unwrap().unwrap();
            if seen.status == status {
                let attempts = store.attempts(run).await.unwrap();
                store.close().await;
                return (seen, attempts);
            }
            assert!(Instant::now() < until, "{run} never was {status:?}: {seen:#?}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until every run of `runs` succeeded; the attempts of each.
    pub async fn await_success(&self, runs: &[RunId]) -> Vec<Vec<Attempt>> {
        let mut all = vec![];
        for run in runs {
            let (run, attempts) = self.await_status(*run, RunStatus::Finished).await;
            assert_eq!(run.outcome, Some(Outcome::Succeeded), "{run:#?}\n{attempts:#?}");
            all.push(attempts);
        }
        all
    }

    /// All runs there are.
    pub async fn runs(&self) -> Vec<RunId> {
        let store = self.store().await;
        let runs = store.runs(&RunFilter { limit: 1000, ..RunFilter::default() }).await.unwrap();
        store.close().await;
        runs.into_iter().map(|run| run.id).collect()
    }
}

/// How often each step ended so.
pub fn count(attempts: &[Attempt], state: AttemptState) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for attempt in attempts.iter().filter(|attempt| attempt.state == state) {
        *counts.entry(attempt.step.as_str()).or_default() += 1;
    }
    counts
}

/// Every step succeeded exactly once.
pub fn each_once(attempts: &[Attempt], steps: &[&str]) {
    let once = steps.iter().map(|step| (*step, 1)).collect();
    assert_eq!(count(attempts, AttemptState::Succeeded), once, "{attempts:#?}");
}

/// A process of ours, killed with the test at the latest.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    pub fn await_log(&self, part: &str) {
        eventually(&format!("`{part}` in the log of a process:\n{}", self.log()), || {
            self.log().contains(part).then_some(())
        });
    }

    /// Waits until it works.
    pub fn ready(self) -> Self {
        eventually(&format!("a process that works:\n{}", self.log()), || {
            let log = self.log();
            (log.contains("refit serves") || log.contains("refit works")).then_some(())
        });
        self
    }

    /// The address it serves HTTP at.
    pub fn url(&self) -> String {
        let start = "Listening on ";
        eventually("an address", || {
            let log = self.log();
            let line = log.lines().find(|line| line.contains(start))?;
            Some(line[line.find(start)? + start.len()..].trim().to_owned())
        })
    }

    /// Sends a signal to this process, and to no child of it.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }

    /// The most memory it ever had, in megabytes.
    pub fn resident_megabytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
    }

    pub fn kill9(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// How it ended, if it did.
    pub fn end(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits until it ends by itself.
    pub fn ended(&mut self) -> ExitStatus {
        eventually("the end of a process", || self.child.try_wait().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a process with this id runs.
pub fn is_alive(pid: &str) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.trim()).join("stat"));
    stat.is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z'))
}
