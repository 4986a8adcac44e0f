//! The HTTP way in, over a socket, on both databases.

use std::net::SocketAddr;
use std::sync::Arc;

use refit::clock::{Clock as _, SystemClock};
use refit::domain::because::Because;
use refit::domain::id::{Generation, ModelName, TargetName};
use refit::domain::release::{Assignment, ReleaseActor, Served};
use refit::domain::version::{VersionRecord, VersionState};
use refit::engine::{self, Engine};
use refit::http::{Server, Settings, Working};
use refit::secret::{Secret, Secrets};
use refit::steps::context::Services;
use refit::store::{ReleaseWrite, ReleaseWritten, Store};
use refit::trainers::command::GuardCommand;
use refit::trigger::Catalog;
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::store::database::Database;
use crate::store::on_both;

const WORKFLOW: &str = "
name: retrain
model: air-time
on: { event: { name: ml/retrain, if: 'event.data.rows >= 10' } }
steps:
  - run: 'true'
";

/// A server of a project with one workflow.
struct Serving {
    store: Arc<dyn Store>,
    address: SocketAddr,
    http: reqwest::Client,
    working: watch::Sender<Working>,
    stop: CancellationToken,
    server: JoinHandle<()>,
    _project: tempfile::TempDir,
}

fn client() -> reqwest::Client {
    rustls::crypto::ring::default_provider().install_default().ok();
    reqwest::Client::builder().no_proxy().build().unwrap()
}

fn engine(store: &Arc<dyn Store>, project: &std::path::Path, secrets: Secrets) -> Arc<Engine> {
    let services = Services {
        instance: store.instance(),
        stores: Arc::default(),
        targets: Arc::default(),
        secrets,
        http: client(),
        guard: GuardCommand::this_program().unwrap(),
    };
    let state = project.join(".refit");
    let settings = engine::Settings::default();
    Engine::new(Arc::clone(store), Arc::new(SystemClock), services, project.to_owned(), state, settings)
}

fn token(value: &str) -> Secrets {
    Secrets::fixed([("REFIT_TOKEN".parse().unwrap(), Secret::new(value))].into())
}

impl Serving {
    async fn on(database: &Database) -> Self {
        Self::at(database, "127.0.0.1:0", Secrets::default()).await
    }

    async fn at(database: &Database, listen: &str, secrets: Secrets) -> Self {
        let project = tempfile::tempdir().unwrap();
        std::fs::create_dir(project.path().join("workflows")).unwrap();
        std::fs::write(project.path().join("workflows/retrain.yaml"), WORKFLOW).unwrap();
        let catalog = Arc::new(Catalog::load(project.path()));
        assert!(catalog.errors.is_empty(), "{:?}", catalog.errors);
        let store = database.open_with(Arc::new(SystemClock)).await;
        let (working, is_working) = watch::channel(Working::Yes);
        let settings = Settings { listen: listen.parse().unwrap(), public_url: None };
        let engine = engine(&store, project.path(), secrets);
        let source = Arc::new(move || Arc::clone(&catalog));
        let server = Server::bind(engine, source, &settings, is_working).await.unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], server.address().unwrap().port()));
        let stop = CancellationToken::new();
        let server = tokio::spawn(server.run(stop.clone()));
        Self { store, address, http: client(), working, stop, server, _project: project }
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("http://{}{path}", self.address))
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        body(self.request(Method::GET, path).send().await.unwrap()).await
    }

    async fn event(&self, event: Value) -> (StatusCode, Value) {
        body(self.request(Method::POST, "/v1/events").json(&event).send().await.unwrap()).await
    }

    async fn lines(&self, path: &str, lines: &str) -> (StatusCode, Value) {
        body(self.request(Method::POST, path).body(lines.to_owned()).send().await.unwrap()).await
    }

    async fn promote(&self, target: &str, expected: i64, version: &str) {
        let write = ReleaseWrite {
            model: model(),
            target: target.parse().unwrap(),
            expected: Generation(expected),
            assignment: Assignment {
                champion: Some(Served {
                    version: version.parse().unwrap(),
                    base_url: format!("https://models.example.com/{version}"),
                    manifest_sha256: "0".repeat(64),
                }),
                ..Assignment::default()
            },
            owner: None,
            actor: ReleaseActor::Human { name: "ann".to_owned() },
            because: Because::alone("by hand"),
            at: SystemClock.now(),
            by_run: None,
            ends_canary: None,
            marks_bad: None,
            notices: vec![],
            heeds_freeze: false,
        };
        assert!(matches!(self.store.write_release(write).await.unwrap(), ReleaseWritten::Made(_)));
    }
}

fn model() -> ModelName {
    "air-time".parse().unwrap()
}

async fn body(response: Response) -> (StatusCode, Value) {
    let status = response.status();
    assert!(response.headers().contains_key("x-request-id"));
    let text = response.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("no JSON: {text}")))
}

async fn an_event_starts_its_runs_once(database: Database) {
    let serving = Serving::on(&database).await;
    let event = json!({"name": "ml/retrain", "data": {"rows": 12}, "key": "monday"});
    let (status, first) = serving.event(event.clone()).await;
    assert_eq!(status, StatusCode::OK, "{first}");
    assert_eq!(first["runs"][0]["state"], "made");
    assert_eq!(first["duplicate"], false);

    let (status, second) = serving.event(event).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!((&second["duplicate"], &second["event"]), (&json!(true), &Value::Null));
    assert_eq!(second["runs"][0], json!({"run": first["runs"][0]["run"], "state": "made_before"}));

    let (_, too_few) = serving.event(json!({"name": "ml/retrain", "data": {"rows": 9}})).await;
    assert_eq!(too_few["runs"], json!([]));
    let (status, kept) = serving.event(json!({"name": "ml/retrain", "data": {}})).await;
    assert_eq!((status, &kept["runs"]), (StatusCode::OK, &json!([])), "{kept}");
    let why = "its `if` cannot be decided: `event.data.rows >= 10`: `event.data.rows` is not defined";
    assert_eq!(kept["failed"], json!([{"workflow": "retrain", "reason": why}]));

    // What could not be decided is not taken for done when it is sent again.
    let unclear = json!({"name": "ml/retrain", "data": {}, "key": "tuesday"});
    for duplicate in [false, true] {
        let (_, kept) = serving.event(unclear.clone()).await;
        assert_eq!((&kept["duplicate"], &kept["runs"]), (&json!(duplicate), &json!([])), "{kept}");
        assert_eq!(kept["failed"], json!([{"workflow": "retrain", "reason": why}]), "{kept}");
    }

    let id = first["runs"][0]["run"].as_str().unwrap();
    let (status, run) = serving.get(&format!("/v1/runs/{id}")).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!((&run["workflow"], &run["cause"]["event"]["data"]["rows"]), (&json!("retrain"), &json!(12)));
    assert_eq!(run["attempts"], json!([]));
    for (path, status) in [
        ("/v1/runs/nonsense", StatusCode::BAD_REQUEST),
        ("/v1/runs/01890a5d-ac96-774b-bcce-b302099a8057", StatusCode::NOT_FOUND),
        ("/v1/runs?status=asleep", StatusCode::BAD_REQUEST),
        ("/v1/runs?before=x", StatusCode::BAD_REQUEST),
    ] {
        assert_eq!(serving.get(path).await.0, status, "{path}");
    }
}

async fn lists_go_on_where_the_page_before_ended(database: Database) {
    let serving = Serving::on(&database).await;
    for rows in 10..15 {
        assert_eq!(
            serving.event(json!({"name": "ml/retrain", "data": {"rows": rows}})).await.0,
            StatusCode::OK
        );
    }
    for list in ["/v1/events", "/v1/runs"] {
        let mut seen = vec![];
        let mut path = format!("{list}?limit=2");
        loop {
            let (status, page) = serving.get(&path).await;
            assert_eq!(status, StatusCode::OK, "{page}");
            let items = page["items"].as_array().unwrap();
            seen.extend(items.iter().map(|item| item["id"].as_str().unwrap().to_owned()));
            let Some(next) = page["next"].as_str() else { break };
            path = format!("{list}?limit=2&before={next}");
        }
        let mut newest_first = seen.clone();
        newest_first.sort_by(|a, b| b.cmp(a));
        newest_first.dedup();
        assert_eq!((seen.len(), &seen), (5, &newest_first), "{list}");
    }
    let (_, none) = serving.get("/v1/runs?workflow=other").await;
    assert_eq!(none, json!({"items": [], "next": null}));
}

const OBSERVED: &str = r#"{"request_id":"a","version":"v1","ok":true,"latency_ms":12,"prediction":40.0,"shadow":{"v2":41.0}}
{"request_id":"b","version":"v1"}
not JSON

{"request_id":"c","version":"v2","ok":false}
"#;

async fn evidence_is_durable_once_it_is_acknowledged(database: Database) {
    let serving = Serving::on(&database).await;
    let path = "/v1/models/air-time/observations?batch=one";
    let (status, taken) = serving.lines(path, OBSERVED).await;
    assert_eq!(status, StatusCode::OK, "{taken}");
    assert_eq!(
        (&taken["batch"], &taken["accepted"], &taken["refused"]),
        (&json!("one"), &json!(2), &json!(2))
    );
    assert_eq!((&taken["errors"][0]["line"], &taken["errors"][1]["line"]), (&json!(2), &json!(3)));

    let elsewhere = database.open_with(Arc::new(SystemClock)).await;
    let versions = ["v1".parse().unwrap(), "v2".parse().unwrap()];
    let counted = |minutes: Vec<refit::store::EvidenceMinute>| {
        minutes.iter().fold((0, 0), |sum, minute| (sum.0 + minute.counts.n, sum.1 + minute.counts.errors))
    };
    assert_eq!(counted(elsewhere.evidence(&model(), &versions, 0, 100).await.unwrap()), (2, 1));

    let (status, again) = serving.lines(path, OBSERVED).await;
    assert_eq!((status, &again["duplicate"]), (StatusCode::OK, &json!(true)));
    assert_eq!(counted(elsewhere.evidence(&model(), &versions, 0, 100).await.unwrap()), (2, 1));

    let truth = "/v1/models/air-time/truth";
    let (status, taken) =
        serving.lines(truth, "{\"request_id\":\"a\",\"truth\":42.5,\"block\":\"mon\"}").await;
    assert_eq!((status, &taken["accepted"]), (StatusCode::OK, &json!(1)), "{taken}");
    let [v1, v2] = versions;
    let pairs = elsewhere.paired_errors(&model(), &v2, &v1, 0, 10).await.unwrap();
    assert_eq!(pairs.len(), 1);
    assert_eq!((pairs[0].canary, pairs[0].stable), (1.5, 2.5));
}

async fn a_version_that_nobody_published_is_named(database: Database) {
    let serving = Serving::on(&database).await;
    let lines = "{\"request_id\":\"a\",\"version\":\"v1\",\"ok\":true}\n{\"request_id\":\"b\",\"version\":\"v1.0\",\"ok\":true}";
    let path = "/v1/models/air-time/observations";
    let (_, taken) = serving.lines(&format!("{path}?batch=1"), lines).await;
    assert_eq!(taken.get("unknown_versions"), None, "a model without versions: {taken}");
    let now = SystemClock.now();
    let record = VersionRecord {
        model: model(),
        name: "v1".parse().unwrap(),
        store: "models".parse().unwrap(),
        state: VersionState::Sealed,
        run: None,
        place: None,
        base_url: "/models/v1".to_owned(),
        manifest_sha256: "00".to_owned(),
        manifest: None,
        created_at: now,
    };
    serving.store.adopt_version(&record, &crate::store::make::by_ann(now)).await.unwrap();
    let (status, taken) = serving.lines(&format!("{path}?batch=2"), lines).await;
    assert_eq!(
        (status, &taken["accepted"], &taken["unknown_versions"]),
        (StatusCode::OK, &json!(2), &json!(["v1.0"]))
    );
}

async fn a_batch_that_is_refused_leaves_nothing(database: Database) {
    let serving = Serving::on(&database).await;
    let path = "/v1/models/air-time/observations?batch=two";
    let good = "{\"request_id\":\"a\",\"version\":\"v1\",\"ok\":true}\n";
    let (status, problem) = serving.lines(path, "{}\nx\n").await;
    assert_eq!((status, &problem["errors"][1]["line"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!(2)));
    assert_eq!(serving.lines(path, "").await.0, StatusCode::BAD_REQUEST);
    let other = serving.request(Method::POST, path).header("idempotency-key", "three").body(good);
    assert_eq!(other.send().await.unwrap().status(), StatusCode::BAD_REQUEST);
    let packed = serving.request(Method::POST, path).header("content-encoding", "gzip").body(good);
    assert_eq!(packed.send().await.unwrap().status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let unknown = serving.lines("/v1/models/air-tiem/observations", good).await;
    assert_eq!(unknown.0, StatusCode::NOT_FOUND);

    // Half of it comes, then the line is cut.
    let mut cut = TcpStream::connect(serving.address).await.unwrap();
    let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n{good}");
    cut.write_all(head.as_bytes()).await.unwrap();
    cut.shutdown().await.unwrap();
    let mut answer = vec![];
    cut.read_to_end(&mut answer).await.unwrap();
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));

    let minutes = serving.store.evidence(&model(), &["v1".parse().unwrap()], 0, 100).await.unwrap();
    assert_eq!(minutes, []);
    let (status, taken) = serving.lines(path, good).await;
    assert_eq!((status, &taken["accepted"], &taken["duplicate"]), (StatusCode::OK, &json!(1), &json!(false)));
}

async fn an_app_asks_for_the_release_and_hears_when_it_changed(database: Database) {
    let serving = Serving::on(&database).await;
    let path = "/v1/models/air-time/release";
    assert_eq!(serving.get(path).await.0, StatusCode::NOT_FOUND);
    serving.promote("production", 0, "v1").await;

    let first = serving.request(Method::GET, path).send().await.unwrap();
    assert_eq!(first.status(), StatusCode::OK);
    assert_eq!(first.headers()["cache-control"], "no-cache");
    let tag = first.headers()["etag"].clone();
    let document: Value = serde_json::from_str(&first.text().await.unwrap()).unwrap();
    assert_eq!(document["champion"]["version"], "v1");
    assert_eq!(document["instance"], serving.store.instance().to_string());

    let asked = || serving.request(Method::GET, path).header("if-none-match", &tag);
    let same = asked().send().await.unwrap();
    assert_eq!((same.status(), &same.headers()["etag"]), (StatusCode::NOT_MODIFIED, &tag));
    assert_eq!(same.text().await.unwrap(), "");
    serving.promote("production", 1, "v2").await;
    let changed = asked().send().await.unwrap();
    assert_eq!(changed.status(), StatusCode::OK);
    assert_ne!(changed.headers()["etag"], tag);

    let staging: TargetName = "staging".parse().unwrap();
    serving.promote(staging.as_str(), 0, "v3").await;
    let (status, problem) = serving.get(path).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(problem["detail"].as_str().unwrap().contains("`production`, `staging`"), "{problem}");
    let (_, document) = serving.get(&format!("{path}?target=staging")).await;
    assert_eq!(document["champion"]["version"], "v3");
    assert_eq!(serving.get(&format!("{path}?target=elsewhere")).await.0, StatusCode::NOT_FOUND);
}

async fn a_change_by_hand_has_a_receipt_in_the_form_that_is_wanted(database: Database) {
    let serving = Serving::on(&database).await;
    let path = "/v1/models/air-time/receipts";
    assert_eq!(serving.get(&format!("{path}/1")).await.0, StatusCode::NOT_FOUND);
    serving.promote("production", 0, "v1").await;
    serving.promote("production", 1, "v2").await;
    let (status, receipt) = serving.get(&format!("{path}/2")).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(receipt["headline"], "v2 of air-time serves everybody on production instead of v1");
    assert_eq!((&receipt["reason"], &receipt["actor"]["name"]), (&json!("by hand"), &json!("ann")));
    assert_eq!(receipt["undo"], "refit rollback v1 --model air-time --target production");
    for (accept, begins) in [("text/html", "<!doctype html>"), ("text/markdown", "# v1 of air-time serves")] {
        let page = serving.request(Method::GET, &format!("{path}/1")).header("accept", accept);
        let page = page.send().await.unwrap();
        assert_eq!(page.status(), StatusCode::OK);
        let text = page.text().await.unwrap();
        assert!(text.starts_with(begins), "{text}");
    }
    for unknown in ["3", "0", "-1", "latest", "9223372036854775807", "-9223372036854775808"] {
        assert_eq!(serving.get(&format!("{path}/{unknown}")).await.0, StatusCode::NOT_FOUND, "{unknown}");
    }
}

async fn it_says_whether_it_lives_and_works(database: Database) {
    let serving = Serving::on(&database).await;
    assert_eq!(serving.get("/readyz").await.0, StatusCode::OK);
    serving.working.send(Working::No).unwrap();
    let (status, says) = serving.get("/readyz").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(says, json!({"status": "no", "database": "ok", "worker": "no"}));
    serving.working.send(Working::Yes).unwrap();
    serving.store.close().await;
    let (status, says) = serving.get("/readyz").await;
    assert_eq!((status, &says["database"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("no")));
    assert_eq!(serving.get("/healthz").await.0, StatusCode::OK);
    let (status, problem) = serving.get("/v1/runs").await;
    assert!(status.is_server_error() && problem["hint"].is_string(), "{problem}");
}

async fn a_shutdown_lets_answers_under_way_end(database: Database) {
    let serving = Serving::on(&database).await;
    let mut slow = TcpStream::connect(serving.address).await.unwrap();
    let row = "{\"request_id\":\"a\",\"version\":\"v1\",\"ok\":true}\n";
    let path = "/v1/models/air-time/observations";
    let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", row.len());
    slow.write_all(head.as_bytes()).await.unwrap();
    // Another answer on a connection of its own: the server has read the head by then.
    assert_eq!(serving.get("/healthz").await.0, StatusCode::OK);
    serving.stop.cancel();
    slow.write_all(row.as_bytes()).await.unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"accepted\":1"), "{answer}");
    serving.server.await.unwrap();
    assert!(TcpStream::connect(serving.address).await.is_err());
}

on_both! {
    an_event_starts_its_runs_once
    lists_go_on_where_the_page_before_ended
    evidence_is_durable_once_it_is_acknowledged
    a_batch_that_is_refused_leaves_nothing
    a_version_that_nobody_published_is_named
    an_app_asks_for_the_release_and_hears_when_it_changed
    a_change_by_hand_has_a_receipt_in_the_form_that_is_wanted
    it_says_whether_it_lives_and_works
    a_shutdown_lets_answers_under_way_end
}

#[tokio::test]
async fn an_address_that_others_can_reach_needs_a_token() {
    let database = Database::sqlite();
    let store = database.open_with(Arc::new(SystemClock)).await;
    let project = tempfile::tempdir().unwrap();
    let settings = Settings { listen: "0.0.0.0:0".parse().unwrap(), public_url: None };
    let engine = engine(&store, project.path(), token(""));
    let source = Arc::new(|| Arc::new(Catalog::default()));
    let (_, working) = watch::channel(Working::Yes);
    let refused = Server::bind(engine, source, &settings, working).await.err().unwrap();
    assert!(refused.to_string().contains("REFIT_TOKEN"), "{refused}");

    let serving = Serving::at(&database, "0.0.0.0:0", token("a-long-enough-token")).await;
    assert_eq!(serving.get("/healthz").await.0, StatusCode::OK);
    let (status, problem) = serving.get("/v1/runs").await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert!(!problem.to_string().contains("a-long-enough-token"), "{problem}");
    let wrong = serving.request(Method::GET, "/v1/runs").bearer_auth("a-long-enough-tokeN");
    assert_eq!(wrong.send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
    let right = serving.request(Method::GET, "/v1/runs").bearer_auth("a-long-enough-token");
    assert_eq!(right.send().await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_page_of_another_site_is_refused() {
    let database = Database::sqlite();
    let serving = Serving::on(&database).await;
    let event = json!({"name": "ml/retrain", "data": {"rows": 12}});
    let forged =
        serving.request(Method::POST, "/v1/events").header("origin", "https://evil.example").json(&event);
    assert_eq!(forged.send().await.unwrap().status(), StatusCode::FORBIDDEN);
    let rebound = serving.request(Method::GET, "/v1/runs").header("host", "evil.example");
    assert_eq!(rebound.send().await.unwrap().status(), StatusCode::FORBIDDEN);
    let own = serving
        .request(Method::POST, "/v1/events")
        .header("origin", format!("http://{}", serving.address))
        .json(&event);
    assert_eq!(own.send().await.unwrap().status(), StatusCode::OK);
}
