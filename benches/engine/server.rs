//! `refit serve` as a process that can be killed and looked at.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::net::UnixStream;

use crate::{Bench, Failure};

const PATIENCE: Duration = Duration::from_secs(30);
const ASK_EVERY: Duration = Duration::from_millis(1);

/// A server; killed with SIGKILL when dropped.
pub struct Server {
    process: Child,
    /// Where it serves HTTP.
    pub url: String,
    /// From the start of the process.
    pub ready_after: Duration,
}

impl Server {
    pub async fn start(bench: &Bench) -> Result<Self, Failure> {
        let socket = bench.socket();
        let mut command = Command::new(env!("CARGO_BIN_EXE_refit"));
        // A port that was free a moment ago.
        let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        command.args(["serve", "--listen", &address.to_string()]).current_dir(bench.project.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        match &bench.url {
            Some(url) => command.env("REFIT_DATABASE_URL", url),
            None => command.env_remove("REFIT_DATABASE_URL"),
        };
        let begin = Instant::now();
        let process = command.env("RUST_LOG", "warn").spawn()?;
        let mut server = Self { process, url: format!("http://{address}"), ready_after: PATIENCE };
        // It listens for other processes' word once it is registered as a worker.
        while UnixStream::connect(&socket).await.is_err() {
            if begin.elapsed() > PATIENCE || server.process.try_wait()?.is_some() {
                return Err("the server did not become ready".into());
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
        server.ready_after = begin.elapsed();
        Ok(server)
    }

    /// Resident bytes, where the system tells.
    pub fn memory(&self) -> Option<u64> {
        self.status("VmRSS:")
    }

    /// The most that was ever resident, where the system tells.
    pub fn peak_memory(&self) -> Option<u64> {
        self.status("VmHWM:")
    }

    fn status(&self, name: &str) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
    }

    /// Time on a processor of all its threads, where the system tells.
    pub fn cpu_time(&self) -> Option<Duration> {
        let mut nanos = 0;
        for thread in std::fs::read_dir(format!("/proc/{}/task", self.process.id())).ok()? {
            let text = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
            nanos += text.split(' ').next()?.parse::<u64>().ok()?;
        }
        Some(Duration::from_nanos(nanos))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
