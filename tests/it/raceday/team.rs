//! The team's project: `examples/raceday`, on SQLite and in a directory, with the real trainers.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::clients::client;
use crate::processes::project::{Project, eventually};
use crate::support::world::http;
use crate::support::{node, python};

const SETTINGS: &str = "
[stores.models]
kind = 'local'
path = 'models'
[targets.production]
kind = 'pointer'
path = 'release.json'
[notifiers.team]
kind = 'console'
";

pub struct Team {
    pub project: Project,
}

fn example() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/raceday")
}

/// What refit writes beside the files of a version.
pub fn is_refits(file: &std::fs::DirEntry) -> bool {
    matches!(file.file_name().to_str(), Some("manifest.json" | "_claim.json"))
}

impl Team {
    /// The workflow of `init --template raceday-vercel`, with small data, at once instead of after a day.
    pub fn new() -> Self {
        let project = Project::sqlite();
        let copied = Command::new("cp").arg("-r").arg(example().join(".")).arg(project.path("")).status();
        assert!(copied.unwrap().success());
        project.write("refit.toml", SETTINGS);
        let python = format!("OMP_NUM_THREADS=1 {}", python::venv().join("bin/python").display());
        let mut text = include_str!("../../../workflows/raceday-vercel.yaml").to_owned();
        for (there, here) in [
            ("mode: advise", "mode: act"),
            (r#"postgres: { url: "${{ secrets.APP_DATABASE_URL }}", "#, "sqlite: { path: app.db, "),
            ("min: 5000", "min: 1000"),
            ("max_age: 10d", "max_age: 3650d"),
            ("vs_previous: { min: 95% }", "vs_previous: { min: 90% }"),
            (
                "python3 -m research.scripts.train_models",
                &format!("{python} -m research.scripts.train_models --rounds=60"),
            ),
            ("python3", &python),
            ("require_approval", "accept"),
            ("stages: [10%]", "stages: [50%]"),
            ("  - { on: [rolled_back, failed], email: [team@example.com] }\n", ""),
        ] {
            assert!(text.contains(there), "{there}");
            text = text.replace(there, here);
        }
        project.write("workflows/retrain.yaml", &text);
        let team = Self { project };
        team.results("2026-11-21");
        team
    }

    /// The races of the weeks before `until`.
    pub fn results(&self, until: &str) {
        let made = Command::new("python3")
            .arg("generate.py")
            .args(["--sqlite", "app.db", "--weeks", "10", "--starters", "40", "--until", until])
            .current_dir(self.project.path(""))
            .status();
        assert!(made.unwrap().success());
    }

    pub fn document(&self) -> Value {
        serde_json::from_str(&std::fs::read_to_string(self.project.path("release.json")).unwrap()).unwrap()
    }

    /// Waits for a canary; its version.
    pub fn canary(&self) -> String {
        eventually("a canary", || self.document()["canary"]["version"].as_str().map(str::to_owned))
    }

    /// The app, following the release of the refit at `url` and reporting to it.
    pub async fn app(&self, url: &str) -> App {
        let mut child = tokio::process::Command::new(node::home().join("bin/node"))
            .arg("app/server.mjs")
            .current_dir(self.project.path(""))
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("PORT", "0")
            .env("REFIT_CLIENT", client())
            .env("RELEASE_URL", format!("{url}/v1/models/race-times/release"))
            .env("REFIT_URL", url)
            .env("APP_DATABASE_URL", self.project.path("app.db"))
            .env("RACEDAY_SWITCHES", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line: Value = serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap();
        let database = self.project.path("app.db").display().to_string();
        App { child, url: format!("http://127.0.0.1:{}", line["listening"]), database }
    }
}

pub struct App {
    child: tokio::process::Child,
    url: String,
    database: String,
}

impl App {
    pub async fn get(&self, path: &str) -> Value {
        http().get(format!("{}{path}", self.url)).send().await.unwrap().json().await.unwrap()
    }

    pub async fn post(&self, path: &str, body: Value) -> Value {
        let answer = http().post(format!("{}{path}", self.url)).json(&body).send().await.unwrap();
        assert!(answer.status().is_success(), "{path}: {}", answer.text().await.unwrap());
        answer.json().await.unwrap()
    }

    /// An olympic distance of somebody fit.
    pub async fn predict(&self, athlete: &str) -> Value {
        let input = json!({
            "athlete": athlete, "distance": "olympic", "age": 34, "is_female": 0, "swim_pace_s": 105.0,
            "bike_kmh": 34.0, "run_pace_s": 270.0, "temp_c": 18.0, "climb_m": 300,
        });
        self.post("/api/predict", input).await
    }

    /// The app's table as `sql/predictions.sql` reads it, once it has so many rows.
    pub async fn rows(&self, at_least: usize) -> Vec<Value> {
        loop {
            let rows = self.written().await;
            if rows.len() >= at_least {
                return rows;
            }
        }
    }

    async fn written(&self) -> Vec<Value> {
        let script = "import json, sqlite3, sys
database = sqlite3.connect(sys.argv[1], timeout=30)
database.row_factory = sqlite3.Row
print(json.dumps([dict(row) for row in database.execute(open(sys.argv[2]).read())]))";
        let query = example().join("sql/predictions.sql");
        let output =
            tokio::process::Command::new("python3").args(["-c", script, &self.database]).arg(query).output();
        serde_json::from_slice(&output.await.unwrap().stdout).unwrap()
    }

    /// Ends it as a deploy does; all that it wrote.
    pub async fn stopped(mut self) -> Vec<Value> {
        let pid = self.child.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        assert!(self.child.wait().await.unwrap().success());
        self.written().await
    }
}
