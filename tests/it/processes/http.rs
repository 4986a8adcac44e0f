//! The server's HTTP, asked from outside; what it acknowledged outlives it.

use refit::domain::run::RunStatus;
use reqwest::{StatusCode, header};
use serde_json::{Value, json};

use super::project::{Project, each_once, eventually};
use crate::support::world::http;

const WORKFLOW: &str = "
name: retrain
model: air-time
on: { event: { name: ml/retrain.requested, if: 'event.data.rows >= 10' } }
steps:
  - { id: one, run: 'echo ran >> one' }
";

async fn post(url: &str, body: String) -> (StatusCode, Value) {
    let response = http().post(url).body(body).send().await.unwrap();
    let status = response.status();
    let text = response.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("{status}: {text}")))
}

async fn event(url: &str, rows: u32) -> Value {
    let event =
        json!({"name": "ml/retrain.requested", "data": {"rows": rows}, "key": format!("rows-{rows}")});
    let response = http().post(format!("{url}/v1/events")).json(&event).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    response.json().await.unwrap()
}

async fn an_event_starts_a_run(project: Project) {
    project.write("workflows/retrain.yaml", WORKFLOW);
    let mut server = project.serve().ready();
    let url = server.url();
    for path in ["/healthz", "/readyz"] {
        let response = http().get(format!("{url}{path}")).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
    }
    assert_eq!(event(&url, 9).await["runs"], json!([]));
    let sent = event(&url, 10).await;
    // It answered: the run is there whatever happens to the server.
    server.kill9();
    let gone = http().get(format!("{url}/readyz")).send().await;
    assert!(gone.is_err_and(|error| error.is_connect()));
    let run = sent["runs"][0]["run"].as_str().unwrap().parse().unwrap();
    let server = project.serve().ready();
    let attempts = project.await_success(&[run]).await.remove(0);
    each_once(&attempts, &["one"]);
    let again = event(&server.url(), 10).await;
    assert_eq!((&again["duplicate"], project.runs().await), (&json!(true), vec![run]), "{again}");
    let shown: Value =
        http().get(format!("{}/v1/runs/{run}", server.url())).send().await.unwrap().json().await.unwrap();
    assert_eq!(shown["status"], json!(RunStatus::Finished), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_starts_a_run_on_sqlite() {
    an_event_starts_a_run(Project::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_starts_a_run_on_postgres() {
    an_event_starts_a_run(Project::postgres().await).await;
}

async fn what_was_acknowledged_is_durable(project: Project) {
    const BATCHES: usize = 20;
    project.write("workflows/retrain.yaml", WORKFLOW);
    let mut server = project.serve().ready();
    let base = format!("{}/v1/models/air-time", server.url());
    let mut batches = vec![];
    for batch in 0..BATCHES {
        let (mut served, mut truths) = (String::new(), String::new());
        for row in 0..50 {
            let id = format!("{batch}-{row}");
            let version = if row % 2 == 0 { "v1" } else { "v2" };
            served += &format!(
                "{}\n",
                json!({"request_id": id, "version": version, "ok": row % 10 != 0, "latency_ms": 12.5, "prediction": 3.0})
            );
            truths += &format!("{}\n", json!({"request_id": id, "truth": 3.5}));
        }
        let (status, receipt) = post(&format!("{base}/observations?batch=b{batch}"), served.clone()).await;
        assert_eq!(status, StatusCode::OK, "{receipt}");
        let (status, receipt) = post(&format!("{base}/truth?batch=b{batch}"), truths.clone()).await;
        assert_eq!(status, StatusCode::OK, "{receipt}");
        batches.push((served, truths));
        if batch == BATCHES / 2 {
            // Between two answers and the next request.
            server.kill9();
            let port = base.split(':').nth(2).unwrap().split('/').next().unwrap();
            server =
                project.start(project.command(&["serve", "--listen", &format!("127.0.0.1:{port}")])).ready();
        }
    }
    server.kill9();
    assert_eq!(counted(&project).await, (BATCHES as u64 * 50, BATCHES as u64 * 5));

    let server = project.serve().ready();
    let base = format!("{}/v1/models/air-time", server.url());
    for (batch, (served, truths)) in batches.into_iter().enumerate() {
        for (path, lines) in [("observations", served), ("truth", truths)] {
            let (status, receipt) = post(&format!("{base}/{path}?batch=b{batch}"), lines).await;
            assert_eq!(status, StatusCode::OK, "{receipt}");
            assert_eq!(receipt["duplicate"], json!(true), "{receipt}");
        }
    }
    assert_eq!(counted(&project).await, (BATCHES as u64 * 50, BATCHES as u64 * 5));
}

/// Requests and errors that the database has.
async fn counted(project: &Project) -> (u64, u64) {
    let store = project.store().await;
    let versions = ["v1".parse().unwrap(), "v2".parse().unwrap()];
    let minutes = store.evidence(&"air-time".parse().unwrap(), &versions, 0, 1000).await.unwrap();
    let requests = minutes.iter().map(|minute| minute.counts.n).sum();
    let errors = minutes.iter().map(|minute| minute.counts.errors).sum();
    store.close().await;
    (requests, errors)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_durable_on_sqlite() {
    what_was_acknowledged_is_durable(Project::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_durable_on_postgres() {
    what_was_acknowledged_is_durable(Project::postgres().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_asks_whether_the_release_changed() {
    let project = Project::sqlite();
    std::fs::remove_file(project.path("refit.toml")).unwrap();
    project.says(&["init"]);
    let text = std::fs::read_to_string(project.path("workflows/retrain.yaml")).unwrap();
    project.write("workflows/retrain.yaml", &text.replace("mode: advise", "mode: act"));
    let server = project.serve().ready();
    let url = format!("{}/v1/models/delivery-time/release", server.url());
    let ask = async |tag: Option<header::HeaderValue>| {
        let request = http().get(&url);
        let request =
            tag.into_iter().fold(request, |request, tag| request.header(header::IF_NONE_MATCH, tag));
        request.send().await.unwrap()
    };
    assert_eq!(ask(None).await.status(), StatusCode::NOT_FOUND);
    let run = project.trigger("retrain");
    let (run, attempts) = project.await_status(run, RunStatus::Finished).await;
    assert_eq!(run.outcome.map(|outcome| outcome.as_str()), Some("promoted"), "{run:#?}\n{attempts:#?}");
    let first = ask(None).await;
    let tag = first.headers()[header::ETAG].clone();
    let document: Value = first.json().await.unwrap();
    let version = document["champion"]["version"].as_str().unwrap().to_owned();
    let file: Value =
        serde_json::from_str(&std::fs::read_to_string(project.path("release.json")).unwrap()).unwrap();
    assert_eq!(file["champion"], document["champion"], "the target shows what the database has");
    let known = ask(Some(tag.clone())).await;
    assert_eq!(known.status(), StatusCode::NOT_MODIFIED);
    assert_eq!(known.bytes().await.unwrap().len(), 0);

    // A second version goes on canary: the document changes.
    project.trigger("retrain");
    eventually("a canary", || {
        let file: Value =
            serde_json::from_str(&std::fs::read_to_string(project.path("release.json")).unwrap()).unwrap();
        file["canary"].is_object().then_some(())
    });
    let changed = ask(Some(tag)).await;
    assert_eq!(changed.status(), StatusCode::OK);
    let document: Value = changed.json().await.unwrap();
    assert_eq!(document["champion"]["version"], json!(version));
    assert!(document["canary"]["version"].is_string(), "{document}");
}
