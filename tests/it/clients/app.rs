//! An app with a client in it, as a process: told what to do by lines of JSON.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::typescript::compiled;
use crate::support::node;

/// The languages there is a client in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    TypeScript,
    Python,
}

/// A file of the clients.
pub fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/clients").join(path)
}

/// The process; it ends with this value.
pub struct App {
    _child: Child,
    commands: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl App {
    pub async fn of(language: Language) -> Self {
        let drivers = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/clients");
        let mut command = match language {
            Language::TypeScript => {
                let mut command = Command::new(node::home().join("bin/node"));
                command.arg(drivers.join("driver.mjs")).arg(compiled(&file("typescript/refit.ts")));
                command
            }
            Language::Python => {
                let mut command = Command::new("python3");
                command.arg(drivers.join("driver.py")).arg(file("python"));
                command
            }
        };
        let mut child = command
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let commands = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { _child: child, commands, answers }
    }

    /// An app that reads the document at `document` and reports to `refit`; `settings` change what is usual in a test:
    /// every route asks for the document and waits for it, nothing is sent but by `flush`.
    pub async fn made(language: Language, document: &str, refit: &str, settings: Value) -> Self {
        let mut app = Self::of(language).await;
        let mut make = json!({
            "document_url": document, "refit_url": refit, "model": "air-time", "token": null,
            "ttl_ms": 0, "stale_ms": 0, "timeout_ms": 20_000, "flush_ms": 3_600_000,
        });
        for (key, value) in settings.as_object().unwrap() {
            make[key] = value.clone();
        }
        app.say("make", make).await;
        app
    }

    /// Its answer to a command.
    pub async fn say(&mut self, name: &str, given: Value) -> Value {
        let line = format!("{}\n", json!({name: given}));
        self.commands.write_all(line.as_bytes()).await.unwrap();
        let answer = self.answers.next_line().await.unwrap();
        serde_json::from_str(&answer.unwrap_or_else(|| panic!("it ended at {line}"))).unwrap()
    }

    /// Who serves `unit`: arm and version.
    pub async fn route(&mut self, unit: Option<&str>) -> (String, String) {
        let route = self.say("route", json!(unit)).await;
        let text = |key: &str| route[key].as_str().unwrap().to_owned();
        (text("arm"), text("version"))
    }

    pub async fn dropped(&mut self) -> u64 {
        self.say("dropped", Value::Null).await.as_u64().unwrap()
    }
}
