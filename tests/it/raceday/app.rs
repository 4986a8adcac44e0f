//! The app on Node, as a process: it routes by the release document, evaluates the models of the
//! version it is told, writes its table of predictions and reports to refit.

use std::path::Path;
use std::process::Stdio;

use refit::domain::Timestamp;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use super::place::Place;
use crate::clients::client;
use crate::support::node;
use crate::support::world::http;

/// Versions that the team uploaded before refit came have no manifest beside them.
#[tokio::test]
async fn an_adopted_version_is_loaded_as_it_always_was_and_a_sealed_one_is_checked() {
    let adopted = tempfile::tempdir().expect("a directory");
    let (tree, parts) = (
        json!({"left_children": [-1], "right_children": [-1], "split_indices": [0], "split_conditions": [60], "default_left": [0]}),
        ["swim", "bike", "run", "finish"],
    );
    let model = json!({"learner": {
        "gradient_booster": {"model": {"trees": [tree]}}, "learner_model_param": {"base_score": "600"},
        "feature_names": ["age"],
    }});
    let quantiles = ["70.3-finish_p90".to_owned(), "140.6-finish_p90".to_owned()];
    let names = ["sprint", "olympic", "70.3", "140.6"];
    let names = names.iter().flat_map(|distance| parts.map(|part| format!("{distance}-{part}")));
    for name in names.chain(quantiles) {
        std::fs::write(adopted.path().join(format!("{name}.json")), model.to_string()).expect("written");
    }
    let sealed = tempfile::tempdir().expect("a directory");
    std::fs::write(sealed.path().join("manifest.json"), r#"{"files": []}"#).expect("written");
    let module = r#"
        const { model } = await import(process.env.MODELS);
        const [manifest_sha256, distance] = ["00", "olympic"];
        const asked = async (version) =>
            (await model({ version, base_url: version, manifest_sha256 })).legs(distance, [34]).finish;
        const places = [process.env.ADOPTED, process.env.SEALED, process.env.BARE];
        const answers = places.map((version) => asked(version).catch(String));
        console.log(JSON.stringify(await Promise.all(answers)));"#;
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/raceday/app/models.mjs");
    let bare = tempfile::tempdir().expect("a directory");
    let [models, adopted, sealed, bare] =
        [&models, adopted.path(), sealed.path(), bare.path()].map(|path| path.display().to_string());
    let told = format!("2026-11-06, {adopted}");
    let env = [
        ("MODELS", models.as_str()),
        ("ADOPTED_VERSIONS", &told),
        ("ADOPTED", &adopted),
        ("SEALED", &sealed),
        ("BARE", &bare),
    ];
    let refused = format!("Error: {sealed}: the manifest is not the released one");
    let missing = format!("Error: ENOENT: no such file or directory, open '{bare}/manifest.json'");
    assert_eq!(node::run(module, &env).await, json!([660, refused, missing]));
}

pub struct App {
    process: Child,
    url: String,
    http: reqwest::Client,
    asked: u32,
}

impl App {
    pub async fn start(place: &Place, refit: &str) -> Self {
        let client = tokio::task::spawn_blocking(client).await.expect("compiled");
        let mut process = Command::new(node::home().join("bin/node"))
            .arg(place.root().join("app/server.mjs"))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("REFIT_CLIENT", client)
            .env("GLOBAL_CONFIG", place.connection())
            .env("GLOBAL_CONFIG_KEY", "refit-race-times")
            .env("REFIT_URL", refit)
            .env("APP_DATABASE_URL", &place.app_database)
            .env("RACEDAY_SWITCHES", "1")
            .env("PORT", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("node runs");
        let stdout = process.stdout.take().expect("piped");
        let line = BufReader::new(stdout).lines().next_line().await.expect("text").expect("a line");
        let said: Value = serde_json::from_str(&line).expect("JSON");
        let url = format!("http://127.0.0.1:{}", said["listening"]);
        Self { process, url, http: http(), asked: 0 }
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Value, String> {
        let answer =
            self.http.post(format!("{}{path}", self.url)).json(body).send().await.expect("the app answers");
        let status = answer.status();
        let text = answer.text().await.expect("text");
        if status.is_success() { Ok(serde_json::from_str(&text).expect("JSON")) } else { Err(text) }
    }

    /// `version` breaks, or works again.
    pub async fn switch(&self, version: &str, how: &str) {
        self.post("/api/switches", &json!({"version": version, "how": how, "ms": 150}))
            .await
            .expect("switched");
    }

    /// Visitors ask for `count` predictions at `now`, and what was served is reported. Every visitor
    /// gets an answer; returns which versions gave them.
    pub async fn serve(&mut self, now: Timestamp, count: u32) -> Vec<String> {
        self.post("/api/switches", &json!({"now": now})).await.expect("the time");
        let distances = ["sprint", "olympic", "70.3", "140.6"];
        let asked = (0..count).map(|number| {
            let athlete = self.asked + number;
            json!({
                "athlete": athlete, "distance": distances[athlete as usize % 4], "age": 30 + athlete % 30,
                "is_female": athlete % 2, "swim_pace_s": 105, "bike_kmh": 33.5, "run_pace_s": 275,
                "temp_c": 21, "climb_m": 250,
            })
        });
        let asked: Vec<Value> = asked.collect();
        self.asked += count;
        let answers =
            futures::future::join_all(asked.iter().map(|body| self.post("/api/predict", body))).await;
        let reported = self.post("/api/switches", &json!({"flush": true})).await.expect("reported");
        assert_eq!(reported["dropped"], 0, "{reported}");
        let versions = answers.into_iter().map(|answer| {
            let answer = answer.expect("everybody gets an answer");
            assert!(answer["predicted"]["finish"].as_f64().expect("a finish time") > 600.0, "{answer}");
            answer["version"].as_str().expect("a version").to_owned()
        });
        versions.collect()
    }

    /// Ends it as a deploy does: what it has to write is written.
    pub async fn stop(mut self) {
        let id = self.process.id().expect("it runs").to_string();
        let told = Command::new("kill").args(["-TERM", &id]).status().await;
        assert!(told.expect("kill runs").success());
        assert!(self.process.wait().await.expect("ends").success());
    }
}
