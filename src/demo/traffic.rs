//! The app of the demo: a prediction server in Python that routes by the
//! release document, asked for every flight of the day; what it answered is
//! reported as observations, and what came true as truth.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::DemoError;
use super::flights::{Flight, Flights};
use crate::domain::Timestamp;

/// The prediction server, stopped when dropped.
pub struct Server {
    _process: Child,
    url: String,
    http: reqwest::Client,
}

#[derive(Deserialize)]
struct Listening {
    listening: u16,
}

#[derive(Deserialize)]
struct Answers {
    predictions: Vec<Answer>,
}

/// The server's answer to one row.
#[derive(Debug, Deserialize)]
struct Answer {
    request_id: String,
    unit: Option<String>,
    version: String,
    ok: bool,
    latency_ms: f64,
    prediction: Option<f64>,
    #[serde(default)]
    shadow: BTreeMap<String, Option<f64>>,
}

/// Whether the demo's trainers and its server can be started at all.
///
/// # Errors
/// There is no `python3`, or it does not work.
pub fn python() -> Result<(), DemoError> {
    let tried = std::process::Command::new("python3").arg("--version").stdin(Stdio::null()).output();
    let tried = tried.map_err(|error| DemoError::Server(format!("python3 cannot be started: {error}")))?;
    if tried.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&tried.stderr).trim().to_owned();
    Err(DemoError::Server(format!("python3 does not work: {}: {said}", tried.status)))
}

impl Server {
    /// Starts `serve.py` of `project`, which reads the release document at `release`.
    pub async fn start(project: &Path, release: &Path, http: reqwest::Client) -> Result<Self, DemoError> {
        let mut process = Command::new("python3")
            .arg(project.join("serve.py"))
            .arg("--release")
            .arg(release)
            .arg("--replay")
            .current_dir(project)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| DemoError::Server(format!("python3 cannot be started: {error}")))?;
        let stdout = process.stdout.take().ok_or_else(|| DemoError::Server("it has no stdout".to_owned()))?;
        let first = BufReader::new(stdout)
            .lines()
            .next_line()
            .await
            .map_err(|error| DemoError::Server(error.to_string()))?
            .ok_or_else(|| DemoError::Server("it ended at once; its message is above".to_owned()))?;
        let Listening { listening } =
            serde_json::from_str(&first).map_err(|error| DemoError::Server(format!("`{first}`: {error}")))?;
        Ok(Self { _process: process, url: format!("http://127.0.0.1:{listening}/predict"), http })
    }

    /// Asks for the flights of a day and returns what the app reports: one line of NDJSON a request.
    pub async fn predict(
        &self,
        flights: &Flights,
        day: &[&Flight],
        at: Timestamp,
    ) -> Result<String, DemoError> {
        let rows: Vec<Value> = day
            .iter()
            .enumerate()
            .map(|(number, flight)| {
                let mut row = flights.features(flight);
                row.insert("request_id".to_owned(), json!(request_id(flight, number)));
                row.insert("unit".to_owned(), json!(flight.route));
                Value::Object(row)
            })
            .collect();
        let wrong = |error: reqwest::Error| DemoError::Server(error.to_string());
        let answer =
            self.http.post(&self.url).json(&json!({"at": at, "rows": rows})).send().await.map_err(wrong)?;
        let answers: Answers = answer.error_for_status().map_err(wrong)?.json().await.map_err(wrong)?;
        let mut lines = String::new();
        for answer in answers.predictions {
            let shadow: BTreeMap<String, f64> = answer
                .shadow
                .into_iter()
                .filter_map(|(version, prediction)| Some((version, prediction?)))
                .collect();
            let line = json!({
                "at": at,
                "request_id": answer.request_id,
                "unit": answer.unit,
                "version": answer.version,
                "ok": answer.ok,
                "latency_ms": answer.latency_ms,
                "prediction": answer.prediction,
                "shadow": shadow,
            });
            lines.push_str(&line.to_string());
            lines.push('\n');
        }
        Ok(lines)
    }
}

/// The id of the `number`-th flight of its day.
pub fn request_id(flight: &Flight, number: usize) -> String {
    format!("{}-{number}", flight.date)
}

/// What a landed flight reports: one day is one block, its flights share the wind.
pub fn truth(flight: &Flight, number: usize) -> Option<(Timestamp, String)> {
    let line = json!({
        "request_id": request_id(flight, number),
        "truth": flight.air_time?,
        "block": flight.date,
        "at": flight.lands_at()?,
    });
    Some((flight.lands_at()?, format!("{line}\n")))
}
