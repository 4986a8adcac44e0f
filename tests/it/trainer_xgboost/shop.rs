//! The project of a team, and the services around it.

use std::collections::BTreeMap;
use std::path::Path;

use refit::domain::release::ReleaseDocument;
use refit::domain::version::Manifest;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use wiremock::matchers::{method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::support::python::{self, Program};

const RELEASE: &str = "team/air-time/release.json";

/// A project directory, and servers that live as long as this value.
pub struct Shop {
    pub project: TempDir,
    s3: Program,
    slack: MockServer,
    smtp: Program,
    http: reqwest::Client,
}

impl Shop {
    pub async fn new() -> Self {
        let project = tempfile::tempdir().expect("a directory");
        let s3 = python::s3().await;
        let smtp = python::smtp_sink(&project.path().join("mails"), &[]);
        let slack = MockServer::start().await;
        Mock::given(method("POST"))
            .and(path("/services/T0/B0/hush"))
            .respond_with(ResponseTemplate::new(200).set_body_string("ok"))
            .mount(&slack)
            .await;
        let http = refit::http_client::build().expect("a client");
        let shop = Self { project, s3, slack, smtp, http };
        let python = format!("{}:/usr/local/bin:/usr/bin:/bin", python::venv().join("bin").display());
        shop.write(
            "workflows/retrain.yaml",
            &include_str!("project/workflow.yaml").replace("@PATH@", &python),
        );
        shop.write(
            "refit.toml",
            &include_str!("project/refit.toml").replace("@S3@", &shop.s3.port.to_string()),
        );
        for script in ["train_models.py", "export_artifacts.py"] {
            let from = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("tests/it/trainer_xgboost/project/research/scripts");
            let text = std::fs::read_to_string(from.join(script)).expect("the script");
            shop.write(&format!("research/scripts/{script}"), &text);
        }
        shop.write("data/flights.csv", &flights());
        shop.write(".secrets/s3-id", "test");
        shop.write(".secrets/s3-key", "test");
        shop.write(".secrets/slack", &format!("{}/services/T0/B0/hush", shop.slack.uri()));
        shop.write(".secrets/smtp", &format!("smtp://127.0.0.1:{}", shop.smtp.port));
        shop
    }

    pub fn root(&self) -> &Path {
        self.project.path()
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.root().join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        std::fs::write(path, text).expect("written");
    }

    /// The release document, as the app reads it.
    pub async fn release(&self) -> ReleaseDocument {
        let url = format!("http://127.0.0.1:{}/models/{RELEASE}", self.s3.port);
        serde_json::from_slice(&self.get(&url).await).expect("a release document")
    }

    async fn get(&self, url: &str) -> Vec<u8> {
        let request = self.http.get(url).header("Authorization", python::S3_CREDENTIAL);
        let response = request.send().await.expect("S3 answers");
        assert!(response.status().is_success(), "{url}: {}", response.status());
        response.bytes().await.expect("a body").to_vec()
    }

    /// What serves, loaded as the app loads it: every file is what the manifest says, and is a model of XGBoost.
    pub async fn champion(&self) -> Manifest {
        let served = self.release().await.champion.expect("a champion");
        let text = self.get(&format!("{}/manifest.json", served.base_url)).await;
        assert_eq!(sha256(&text), served.manifest_sha256);
        let manifest: Manifest = serde_json::from_slice(&text).expect("a manifest");
        assert_eq!(manifest.version, served.version);
        for file in &manifest.files {
            let body = self.get(&format!("{}/{}", served.base_url, file.path)).await;
            assert_eq!((sha256(&body), body.len() as u64), (file.sha256.clone(), file.size), "{}", file.path);
            let model: Value = serde_json::from_slice(&body).expect("JSON");
            assert_eq!(model["learner"]["objective"]["name"], "reg:squarederror", "{}", file.path);
        }
        let names: Vec<&str> = manifest.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(names, ["air-time-EWR.json", "air-time-JFK.json", "air-time-LGA.json"]);
        manifest
    }

    /// The mails that came: to whom, subject and text.
    pub fn mails(&self) -> Vec<(String, String, String)> {
        let mails = python::mails(&self.root().join("mails")).into_iter();
        let text = |value: &Value| value.as_str().expect("text").replace("\r\n", "\n");
        mails
            .map(|mail| {
                let headers = mail["headers"].as_array().expect("headers");
                let headers: BTreeMap<String, String> =
                    headers.iter().map(|pair| (text(&pair[0]), text(&pair[1]))).collect();
                (text(&mail["to"][0]), headers["Subject"].clone(), text(&mail["text"]))
            })
            .collect()
    }

    /// The texts of messages that came to Slack, and all they say.
    pub async fn slack(&self) -> Vec<(String, String)> {
        let requests = self.slack.received_requests().await.expect("recorded").into_iter();
        requests
            .map(|request| {
                let body: Value = request.body_json().expect("JSON");
                (body["text"].as_str().expect("a text").to_owned(), body["blocks"].to_string())
            })
            .collect()
    }
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// Flights out of New York in 2013.
fn flights() -> String {
    let packed = include_bytes!("../../../examples/flights/flights.csv.gz");
    std::io::read_to_string(flate2::read::GzDecoder::new(packed.as_slice())).expect("text")
}
