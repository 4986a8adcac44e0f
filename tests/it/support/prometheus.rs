//! A real Prometheus over samples that were never scraped: `promtool` writes them as blocks, which may be of
//! any time. `tests/support/prometheus-env` has the programs.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;

/// Where `prometheus` and `promtool` are; made when they are not there.
fn home() -> &'static Path {
    static HOME: OnceLock<PathBuf> = OnceLock::new();
    HOME.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/prometheus-env");
        let made = Command::new(script).output().expect("prometheus-env runs");
        assert!(made.status.success(), "prometheus-env: {}", String::from_utf8_lossy(&made.stderr));
        PathBuf::from(String::from_utf8(made.stdout).expect("text").trim())
    })
}

/// One that answers, until it is dropped.
pub struct Prometheus {
    /// `http://127.0.0.1:port`.
    pub url: String,
    _process: Child,
    _dir: TempDir,
}

impl Prometheus {
    /// Over `samples`: lines of OpenMetrics, `name{label="…"} value seconds`, those of a name together.
    pub async fn over(samples: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (metrics, config) = (dir.path().join("metrics"), dir.path().join("config.yml"));
        std::fs::write(&config, "").expect("written");
        if !samples.is_empty() {
            std::fs::write(&metrics, format!("{samples}# EOF\n")).expect("written");
            let mut promtool = tokio::process::Command::new(home().join("promtool"));
            promtool.args(["tsdb", "create-blocks-from", "openmetrics", "--quiet"]);
            let made =
                promtool.arg(&metrics).arg(dir.path().join("data")).output().await.expect("promtool runs");
            assert!(made.status.success(), "promtool: {}", String::from_utf8_lossy(&made.stderr));
        }
        let mut process = tokio::process::Command::new(home().join("prometheus"))
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .args(["--storage.tsdb.retention.time=100y", "--web.listen-address=127.0.0.1:0"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("prometheus runs");
        let mut said = BufReader::new(process.stderr.take().expect("piped")).lines();
        let (mut all, mut url, mut ready) = (String::new(), None, false);
        // It says where it listens and that it is ready in either order.
        let url = loop {
            let line = said.next_line().await.expect("text").unwrap_or_else(|| panic!("it ended:\n{all}"));
            // `… msg="Listening on" address=127.0.0.1:41234`
            if line.contains("Listening on") {
                url = line.rsplit_once("address=").map(|(_, address)| format!("http://{}", address.trim()));
            }
            ready |= line.contains("Server is ready to receive web requests");
            if let Some(url) = url.take_if(|_| ready) {
                break url;
            }
            all.push_str(&line);
            all.push('\n');
        };
        // What it says later goes nowhere, but the pipe stays open.
        tokio::spawn(async move { while let Ok(Some(_)) = said.next_line().await {} });
        Self { url, _process: process, _dir: dir }
    }
}
