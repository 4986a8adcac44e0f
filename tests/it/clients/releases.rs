//! Which version serves: the release document of a real refit, followed by an app.

use chrono::TimeDelta;
use refit::clock::{Clock as _, SystemClock};
use refit::domain::release::{ReleaseDocument, bucket, routes_to_canary};
use refit::domain::run::{Outcome, RunStatus};
use serde_json::{Value, json};

use super::app::{App, Language};
use super::in_every_language;
use super::relay::{Mode, Relay};
use crate::processes::project::{Process, Project, eventually};
use crate::support::world::http;

const SETTINGS: &str = "
[stores.models]
kind = 'local'
path = 'models'
[targets.production]
kind = 'pointer'
path = 'release.json'
";
const WORKFLOW: &str = r#"
name: retrain
model: air-time
mode: act
steps:
  - { id: train, run: 'echo {} > "$REFIT_OUT/model.json"' }
  - { id: publish, uses: publish, with: { store: models, version: date } }
  - { id: canary, uses: canary, with: { target: production, stages: [30%], compare: compare } }
  - { id: watch, uses: wait, with: { for: 1h, until: "canary.verdict != 'inconclusive'", at_most: 12h } }
  - { id: compare, uses: compare, with: { rules: [{ metric: error_rate, acceptable_below: 5% }], when_underpowered: hold } }
  - { id: promote, uses: promote }
"#;

/// A refit that serves nothing yet.
fn refit() -> (Project, Process) {
    let project = Project::sqlite();
    project.write("refit.toml", SETTINGS);
    project.write("workflows/retrain.yaml", WORKFLOW);
    let server = project.serve().ready();
    (project, server)
}

fn on(server: &Process) -> String {
    format!("{}/v1/models/air-time/release", server.url())
}

async fn document(server: &Process) -> ReleaseDocument {
    http().get(on(server)).send().await.unwrap().json().await.unwrap()
}

/// Retrains; the first version serves at once.
async fn first_version(project: &Project) {
    let run = project.trigger("retrain");
    let (run, attempts) = project.await_status(run, RunStatus::Finished).await;
    assert_eq!(run.outcome, Some(Outcome::Promoted), "{run:#?}\n{attempts:#?}");
}

/// Retrains again; the next version is on canary.
async fn canary(project: &Project) {
    project.trigger("retrain");
    eventually("a canary", || {
        let text = std::fs::read_to_string(project.path("release.json")).unwrap();
        let shown: Value = serde_json::from_str(&text).unwrap();
        shown["canary"].is_object().then_some(())
    });
}

fn arm(route: &(String, String)) -> (&str, &str) {
    (&route.0, &route.1)
}

async fn every_change_of_a_release_is_followed(language: Language) {
    let (project, server) = refit();
    let relay = Relay::before(&server.url()).await;
    let mut app = App::made(language, &relay.document(), &relay.url(), json!({})).await;
    assert_eq!(arm(&app.route(Some("u")).await), ("built-in", "built-in"), "refit has no release yet");

    first_version(&project).await;
    let champion = document(&server).await.champion.unwrap().version;
    // While there was none, nobody waited for it.
    while app.route(Some("u")).await.0 != "champion" {}
    assert_eq!(arm(&app.route(Some("u")).await), ("champion", champion.as_str()));

    canary(&project).await;
    let out = document(&server).await.canary.unwrap();
    let units: Vec<String> = (0..50).map(|n| format!("athlete-{n}")).collect();
    let routes = app.say("routes", json!(units)).await;
    for (unit, route) in units.iter().zip(routes.as_array().unwrap()) {
        let to_canary = routes_to_canary(&out, Some(unit), SystemClock.now());
        let version = if to_canary { &out.served.version } else { &champion };
        let wanted = json!({"arm": if to_canary { "canary" } else { "champion" }, "version": version, "stable": champion});
        assert_eq!(*route, wanted, "{unit}, bucket {}", bucket(&out.salt, unit));
    }
    assert_eq!(arm(&app.route(None).await), ("champion", champion.as_str()), "no unit, no canary");

    project.says(&["rollback", "--yes"]);
    let unit = units.iter().find(|unit| routes_to_canary(&out, Some(unit), SystemClock.now())).unwrap();
    assert_eq!(arm(&app.route(Some(unit)).await), ("champion", champion.as_str()), "rolled back");

    let before = relay.seen().len();
    app.route(None).await;
    app.route(None).await;
    for seen in &relay.seen()[before..] {
        assert_eq!(seen.status, Some(304), "it is asked only whether it changed");
        assert!(seen.header("if-none-match").is_some());
    }
    assert_eq!(relay.seen().len(), before + 2);
}

async fn the_last_good_document_outlives_refit(language: Language) {
    let (project, mut server) = refit();
    first_version(&project).await;
    let (url, champion) = (on(&server), document(&server).await.champion.unwrap().version);
    let mut app = App::made(language, &url, "http://127.0.0.1:9", json!({})).await;
    assert_eq!(arm(&app.route(None).await), ("champion", champion.as_str()));
    let port = server.url().rsplit(':').next().unwrap().to_owned();
    server.kill9();
    assert_eq!(arm(&app.route(None).await), ("champion", champion.as_str()));
    assert_eq!(arm(&app.route(None).await), ("champion", champion.as_str()));
    let mut cold = App::made(language, &url, "http://127.0.0.1:9", json!({})).await;
    assert_eq!(arm(&cold.route(Some("u")).await), ("built-in", "built-in"));

    let again = project.start(project.command(&["serve", "--listen", &format!("127.0.0.1:{port}")])).ready();
    canary(&project).await;
    let out = document(&again).await.canary.unwrap();
    let unit = (0..)
        .map(|n| n.to_string())
        .find(|unit| routes_to_canary(&out, Some(unit), SystemClock.now()))
        .unwrap();
    while app.route(Some(&unit)).await.0 != "canary" {}
    while cold.route(Some(&unit)).await.0 != "canary" {}
}

/// A document with a canary for everybody.
fn written(valid_until: &str) -> Value {
    json!({
        "model": "air-time", "instance": "0", "generation": 7, "updated_at": "2026-11-22T02:00:00Z",
        "champion": {"version": "v1", "base_url": "https://blob.example.com/v1", "manifest_sha256": "0"},
        "canary": {
            "version": "v2", "base_url": "https://blob.example.com/v2", "manifest_sha256": "0",
            "basis_points": 10_000, "salt": "s", "valid_until": valid_until,
        },
    })
}

fn answer(document: &Value) -> Mode {
    Mode::Answer(200, document.to_string().into_bytes())
}

async fn nonsense_never_replaces_a_good_document(language: Language) {
    let relay = Relay::before("http://127.0.0.1:9").await;
    let mut app = App::made(language, &relay.document(), &relay.url(), json!({})).await;
    let good = written("2999-01-01T00:00:00Z");
    let mut hostile: Vec<(u16, Vec<u8>)> = [
        "",
        "null",
        "[]",
        "7",
        "\"v2\"",
        "{",
        "<html>maintenance</html>",
        "{\"champion\":{}}",
        "{\"champion\":{\"version\":2,\"base_url\":\"x\"}}",
        "{\"champion\":[],\"canary\":null}",
    ]
    .into_iter()
    .map(|text| (200, text.as_bytes().to_vec()))
    .collect();
    hostile.push((200, b"{\"champion\":\xff}".to_vec()));
    hostile.push((200, [vec![b'['; 200_000], vec![b']'; 200_000]].concat()));
    hostile.push((200, vec![b'['; 100_000]));
    hostile.extend([(500, vec![]), (404, vec![]), (401, vec![]), (204, vec![])]);
    for (key, value) in [
        ("basis_points", json!(10_001)),
        ("basis_points", json!(-1)),
        ("basis_points", json!(0.5)),
        ("basis_points", json!("10000")),
        ("basis_points", json!(true)),
        ("basis_points", Value::Null),
        ("salt", json!(7)),
        ("salt", Value::Null),
        ("version", Value::Null),
        ("base_url", json!({})),
        ("valid_until", json!("soon")),
        ("valid_until", json!(99_999_999_999_u64)),
        ("valid_until", Value::Null),
    ] {
        let mut document = good.clone();
        document["champion"]["version"] = json!("v9");
        document["canary"][key] = value;
        hostile.push((200, document.to_string().into_bytes()));
    }
    let mut padded = good.clone();
    padded["champion"]["version"] = json!("v9");
    padded["padding"] = json!("x".repeat(300_000));
    hostile.push((200, padded.to_string().into_bytes()));

    for (status, body) in hostile.clone() {
        relay.becomes(Mode::Answer(status, body.clone()));
        let text = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
        assert_eq!(arm(&app.route(Some("u")).await), ("built-in", "built-in"), "{status} {text}");
    }
    relay.becomes(answer(&good));
    while app.route(Some("u")).await.0 != "canary" {}
    for (status, body) in hostile {
        relay.becomes(Mode::Answer(status, body.clone()));
        let text = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
        assert_eq!(arm(&app.route(Some("u")).await), ("canary", "v2"), "{status} {text}");
    }
}

async fn a_canary_ends_by_itself(language: Language) {
    let relay = Relay::before("http://127.0.0.1:9").await;
    let mut app = App::made(language, &relay.document(), &relay.url(), json!({})).await;
    relay.becomes(answer(&written("2026-01-01T00:00:00Z")));
    assert_eq!(arm(&app.route(Some("u")).await), ("champion", "v1"), "refit has not renewed it");
    let soon = (SystemClock.now() + TimeDelta::seconds(3600)).to_rfc3339();
    relay.becomes(answer(&written(&soon)));
    assert_eq!(arm(&app.route(Some("u")).await), ("canary", "v2"));
    relay.becomes(answer(&json!({"champion": null, "canary": null})));
    assert_eq!(arm(&app.route(Some("u")).await), ("built-in", "built-in"), "nothing was ever promoted");
}

/// The answers come while the server is still silent: nothing else could have let them go.
async fn a_prediction_never_waits_for_a_server_that_hangs(language: Language) {
    let relay = Relay::before("http://127.0.0.1:9").await;
    // It may be old for an hour, and a request may take an hour.
    let settings = json!({"stale_ms": 3_600_000, "timeout_ms": 3_600_000});
    let mut app = App::made(language, &relay.document(), &relay.url(), settings).await;
    relay.becomes(answer(&written("2999-01-01T00:00:00Z")));
    assert_eq!(arm(&app.route(Some("u")).await), ("canary", "v2"));
    relay.becomes(Mode::Hang);
    for _ in 0..3 {
        assert_eq!(arm(&app.route(Some("u")).await), ("canary", "v2"));
    }
    let seen = relay.await_requests(2).await;
    assert_eq!(seen.last().unwrap().status, None, "it still hangs");
    assert_eq!(relay.seen().len(), 2, "one asks, however many predictions there are");

    // What it said at last counts from then on.
    relay.becomes(answer(&written("2026-01-01T00:00:00Z")));
    relay.await_answers(2).await;
    while app.route(Some("u")).await.0 != "champion" {}
}

async fn a_cold_start_waits_for_a_hanging_server_once(language: Language) {
    let relay = Relay::before("http://127.0.0.1:9").await;
    relay.becomes(Mode::Hang);
    let settings = json!({"timeout_ms": 100, "ttl_ms": 3_600_000});
    let mut app = App::made(language, &relay.document(), &relay.url(), settings).await;
    for _ in 0..5 {
        assert_eq!(arm(&app.route(Some("u")).await), ("built-in", "built-in"));
    }
    let seen = relay.seen();
    assert!(seen.iter().all(|seen| seen.status.is_none()), "{seen:?}");
    assert!(seen.len() <= 1, "while it hangs nobody asks again: {seen:?}");
}

async fn one_request_serves_all_who_wait(language: Language) {
    let relay = Relay::before("http://127.0.0.1:9").await;
    relay.becomes(answer(&written("2999-01-01T00:00:00Z")));
    let mut app = App::made(language, &relay.document(), &relay.url(), json!({"ttl_ms": 3_600_000})).await;
    let units: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    let routes = app.say("routes", json!(units)).await;
    assert!(routes.as_array().unwrap().iter().all(|route| route["arm"] == "canary"), "{routes}");
    assert_eq!(relay.seen().len(), 1);
}

async fn the_token_is_sent_in_a_header_and_never_said(language: Language) {
    let relay = Relay::before("http://127.0.0.1:9").await;
    relay.becomes(answer(&written("2999-01-01T00:00:00Z")));
    let settings = json!({"token": "s3cret", "ttl_ms": 0});
    let mut app = App::made(language, &relay.document(), &relay.url(), settings).await;
    app.route(None).await;
    // Vercel's connection string has its token in the query; it is sent in the header too.
    let connection = format!("{}/ecfg_1?token=s3cret", relay.url());
    let settings = json!({"connection": connection, "key": "race-times"});
    let mut vercel = App::made(language, "unused", &relay.url(), settings).await;
    vercel.route(None).await;
    for seen in relay.seen() {
        assert_eq!(seen.header("authorization"), Some("Bearer s3cret"));
        assert!(!seen.path.contains("s3cret"), "{}", seen.path);
    }
    assert_eq!(relay.seen()[1].path, "/ecfg_1/item/race-times?version=1");

    relay.becomes(Mode::Answer(500, vec![]));
    for app in [&mut app, &mut vercel] {
        app.route(None).await;
        let troubles = app.say("troubles", Value::Null).await.to_string();
        assert!(troubles.contains("500") && !troubles.contains("s3cret"), "{troubles}");
    }
}

in_every_language! {
    every_change_of_a_release_is_followed
    the_last_good_document_outlives_refit
    nonsense_never_replaces_a_good_document
    a_canary_ends_by_itself
    a_prediction_never_waits_for_a_server_that_hangs
    a_cold_start_waits_for_a_hanging_server_once
    one_request_serves_all_who_wait
    the_token_is_sent_in_a_header_and_never_said
}
