//! `examples/raceday` as its team would run it: their trainers, their table, their app.
#![cfg(target_os = "linux")]

use refit::clock::{Clock as _, SystemClock};
use refit::domain::run::{Outcome, RunStatus};
use serde_json::{Value, json};

use super::team::{self, Team};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retrain_is_served_and_a_canary_that_errs_costs_nobody_an_answer() {
    let team = Team::new();
    let server = team.project.serve().ready();
    let first = team.project.trigger("retrain");
    let (run, attempts) = team.project.await_status(first, RunStatus::Finished).await;
    assert_eq!(run.outcome, Some(Outcome::Promoted), "{run:#?}\n{attempts:#?}");
    let champion = team.document()["champion"]["version"].as_str().unwrap().to_owned();
    let files = std::fs::read_dir(team.project.path(&format!("models/race-times/{champion}"))).unwrap();
    assert_eq!(files.filter(|file| !team::is_refits(file.as_ref().unwrap())).count(), 18);

    let app = team.app(&server.url()).await;
    let version = app.get("/api/version").await;
    assert_eq!(version, json!({"version": champion, "canary": null}));
    let answer = app.predict("athlete-1").await;
    assert_eq!((&answer["version"], &answer["arm"]), (&json!(champion), &json!("champion")));
    let finish = answer["predicted"]["finish"].as_f64().unwrap();
    assert!((8_000.0..11_000.0).contains(&finish), "{answer}");

    // A week later there is a canary, and it throws.
    team.results("2026-11-28");
    team.project.trigger("retrain");
    let canary = team.canary();
    // Its document is too old for the app by then: it asks for the new one, and waits.
    let later = SystemClock.now() + chrono::TimeDelta::seconds(80);
    app.post("/api/switches", json!({"now": later})).await;
    app.post("/api/switches", json!({"version": canary, "how": "errs"})).await;
    for n in 0..60 {
        let answer = app.predict(&format!("athlete-{n}")).await;
        assert_eq!(answer["version"], json!(champion), "{answer}");
    }
    let flushed = app.post("/api/switches", json!({"flush": true})).await;
    assert_eq!(flushed["dropped"], json!(0));
    let rows = app.rows(61).await;
    let of = |version: &str| rows.iter().filter(|row| row["version"] == *version).count();
    assert_eq!((of(&champion) + of(&canary), rows.len()), (61, 61));
    assert!(of(&canary) > 0, "{rows:?}");
    assert!(rows.iter().all(|row| row["ok"] == json!(i32::from(row["version"] == *champion))), "{rows:?}");

    // It throws before it writes: nothing is said of it any more.
    app.post("/api/switches", json!({"version": canary, "how": "silent"})).await;
    for n in 0..60 {
        app.predict(&format!("athlete-{n}")).await;
    }
    let silent = app.stopped().await;
    assert_eq!(silent.iter().filter(|row| row["version"] == *canary).count(), of(&canary));

    // The team leaves: the champion serves on, and no canary stays behind.
    let left: Value = serde_json::from_str(&team.project.says(&["eject", "--yes", "--json"])).unwrap();
    assert_eq!(left["workflows"][0]["commands"].as_array().unwrap().len(), 2, "{left}");
    let last = team.document();
    assert_eq!((&last["champion"]["version"], &last["canary"]), (&json!(champion), &Value::Null));
    assert_eq!(left["releases"][0]["document"], last);
}
