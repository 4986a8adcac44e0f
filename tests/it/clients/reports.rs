//! What was served, told to a real refit: once, whatever happens on the way.

use std::sync::Arc;

use serde_json::{Value, json};

use super::app::{App, Language};
use super::in_every_language;
use super::relay::{Mode, Relay};
use crate::processes::project::{Process, Project};

const WORKFLOW: &str =
    "{ name: retrain, model: air-time, on: { manual: {} }, steps: [{ id: one, run: 'true' }] }\n";

struct Refit {
    project: Project,
    server: Process,
    relay: Arc<Relay>,
}

impl Refit {
    async fn started() -> Self {
        let project = Project::sqlite();
        project.write("workflows/retrain.yaml", WORKFLOW);
        let server = project.serve().ready();
        let relay = Relay::before(&server.url()).await;
        Self { project, server, relay }
    }

    async fn app(&self, language: Language, settings: Value) -> App {
        App::made(language, &self.relay.document(), &self.relay.url(), settings).await
    }

    /// Requests, errors and latencies that its database has.
    async fn counted(mut self) -> (u64, u64, u64) {
        self.server.kill9();
        let store = self.project.store().await;
        let versions = ["v1".parse().unwrap(), "v2".parse().unwrap()];
        let minutes = store.evidence(&"air-time".parse().unwrap(), &versions, 0, 1000).await.unwrap();
        store.close().await;
        let sum = |count: fn(&refit::domain::evidence::MinuteCounts) -> u64| {
            minutes.iter().map(|minute| count(&minute.counts)).sum()
        };
        (sum(|counts| counts.n), sum(|counts| counts.errors), sum(|counts| counts.timed))
    }
}

/// Every third fails, every fourth is cold.
fn rows(range: std::ops::Range<u32>) -> Value {
    let row = |n: u32| {
        json!({
            "request_id": format!("r{n}"), "unit": format!("athlete-{n}"), "version": if n.is_multiple_of(2) { "v1" } else { "v2" },
            "ok": !n.is_multiple_of(3), "latency_ms": 12.5, "prediction": 4000.5 + f64::from(n), "cold": n.is_multiple_of(4),
        })
    };
    range.map(row).collect()
}

const FLUSH: u64 = 20_000;

async fn reports_arrive_and_are_counted_once_though_sent_again(language: Language) {
    let refit = Refit::started().await;
    let mut app = refit.app(language, json!({"batch_rows": 100})).await;
    // refit took the batch, and the app never heard of it.
    refit.relay.becomes(Mode::LoseTheAnswer);
    app.say("observe", rows(0..24)).await;
    app.say("flush", json!(50)).await;
    let lost = refit.relay.await_answers(1).await;
    refit.relay.becomes(Mode::Pass);
    app.say("flush", json!(FLUSH)).await;
    app.say("observe", rows(24..30)).await;
    app.say("flush", json!(FLUSH)).await;

    let seen = refit.relay.seen();
    let again = &seen[lost.len()];
    assert_eq!(again.header("idempotency-key"), lost[0].header("idempotency-key"), "the same batch");
    assert_eq!(again.body, lost[0].body);
    assert_ne!(seen.last().unwrap().header("idempotency-key"), again.header("idempotency-key"));
    assert_eq!(app.dropped().await, 0);
    assert_eq!(refit.counted().await, (30, 10, 22));
}

async fn a_full_batch_leaves_by_itself_and_so_does_an_old_one(language: Language) {
    let refit = Refit::started().await;
    let mut app = refit.app(language, json!({"batch_rows": 10})).await;
    app.say("observe", rows(0..25)).await;
    let seen = refit.relay.await_answers(2).await;
    assert!(seen[..2].iter().all(|seen| seen.rows().len() == 10), "{seen:?}");
    let mut patient = refit.app(language, json!({"flush_ms": 10})).await;
    patient.say("observe", rows(25..26)).await;
    refit.relay.await_row("r25").await;
    app.say("flush", json!(FLUSH)).await;
    assert_eq!(refit.counted().await.0, 26);
}

async fn what_does_not_fit_pushes_the_oldest_out_and_is_counted(language: Language) {
    let refit = Refit::started().await;
    let mut app = refit.app(language, json!({"capacity": 10, "batch_rows": 100})).await;
    refit.relay.becomes(Mode::Answer(503, vec![]));
    app.say("observe", rows(0..25)).await;
    assert_eq!(app.dropped().await, 15);
    refit.relay.becomes(Mode::Pass);
    app.say("flush", json!(FLUSH)).await;
    let seen = refit.relay.seen();
    let ids: Vec<String> =
        seen.last().unwrap().rows().iter().map(|row| row["request_id"].to_string()).collect();
    assert_eq!(ids, (15..25).map(|n| format!("\"r{n}\"")).collect::<Vec<_>>());
    assert_eq!(refit.counted().await.0, 10);
}

async fn a_server_in_trouble_is_tried_again(language: Language) {
    let refit = Refit::started().await;
    let mut app = refit.app(language, json!({})).await;
    app.say("observe", rows(0..5)).await;
    for (count, status) in [500, 429, 408].into_iter().enumerate() {
        refit.relay.becomes(Mode::Answer(status, vec![]));
        while refit.relay.seen().len() <= count {
            app.say("flush", json!(100)).await;
        }
    }
    refit.relay.becomes(Mode::Pass);
    app.say("flush", json!(FLUSH)).await;
    assert_eq!(app.dropped().await, 0);
    assert_eq!(refit.counted().await.0, 5);
}

async fn what_refit_refuses_is_dropped_counted_and_said(language: Language) {
    let refit = Refit::started().await;
    let mut app = refit.app(language, json!({"token": "s3cret"})).await;
    for (status, dropped) in [(401, 5), (413, 10), (422, 15)] {
        refit.relay.becomes(Mode::Answer(status, vec![]));
        app.say("observe", rows(0..5)).await;
        app.say("flush", json!(FLUSH)).await;
        assert_eq!(app.dropped().await, dropped, "{status}");
    }
    // One row of two makes no sense: the other counts.
    refit.relay.becomes(Mode::Pass);
    let nonsense = json!({"request_id": "a", "version": "../v1", "ok": true});
    app.say("observe", json!([nonsense, {"request_id": "b", "version": "v1", "ok": true}])).await;
    app.say("flush", json!(FLUSH)).await;
    assert!(refit.relay.seen().iter().all(|seen| seen.header("authorization") == Some("Bearer s3cret")));
    let troubles = app.say("troubles", Value::Null).await.to_string();
    assert!(troubles.contains("401") && troubles.contains("make no sense"), "{troubles}");
    assert!(!troubles.contains("s3cret"), "{troubles}");
    assert_eq!(refit.counted().await, (1, 0, 0));
}

async fn what_is_no_json_never_breaks_a_prediction(language: Language) {
    let refit = Refit::started().await;
    let mut app = refit.app(language, json!({})).await;
    app.say("observe_nonsense", Value::Null).await;
    assert_eq!(app.dropped().await, 1);
    app.say("observe", rows(0..1)).await;
    app.say("flush", json!(FLUSH)).await;
    assert_eq!(refit.counted().await.0, 1);
}

/// The answers come while the server is still silent: nothing else could have let them go.
async fn a_prediction_never_waits_for_its_report(language: Language) {
    let refit = Refit::started().await;
    let settings = json!({"batch_rows": 2, "timeout_ms": 3_600_000, "ttl_ms": 3_600_000});
    let mut app = refit.app(language, settings).await;
    refit.relay.becomes(Mode::Hang);
    for n in 0..6 {
        app.say("observe", rows(n..n + 1)).await;
    }
    let seen = refit.relay.await_requests(1).await;
    assert_eq!(seen[0].status, None, "it still hangs");
    app.say("observe", rows(6..7)).await;
    assert_eq!(refit.relay.seen().len(), 1, "one batch is under way at a time");
    refit.relay.becomes(Mode::Pass);
    app.say("flush", json!(FLUSH)).await;
    assert_eq!(refit.counted().await.0, 7);
}

async fn nobody_there_is_no_trouble_for_the_app(language: Language) {
    let mut app =
        App::made(language, "http://127.0.0.1:9/", "http://127.0.0.1:9", json!({"batch_rows": 1})).await;
    app.say("observe", rows(0..3)).await;
    app.say("flush", json!(0)).await;
    assert_eq!(app.route(None).await.0, "built-in");
    assert_eq!(app.dropped().await, 0, "they are kept");
}

in_every_language! {
    reports_arrive_and_are_counted_once_though_sent_again
    a_full_batch_leaves_by_itself_and_so_does_an_old_one
    what_does_not_fit_pushes_the_oldest_out_and_is_counted
    a_server_in_trouble_is_tried_again
    what_refit_refuses_is_dropped_counted_and_said
    what_is_no_json_never_breaks_a_prediction
    a_prediction_never_waits_for_its_report
    nobody_there_is_no_trouble_for_the_app
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_runtime_is_kept_awake_until_a_report_is_sent() {
    let refit = Refit::started().await;
    // No timer fires there, and nobody calls `flush`.
    let mut app = refit.app(Language::TypeScript, json!({"wait_until": true})).await;
    app.say("observe", rows(0..3)).await;
    let promises = app.say("awaited", Value::Null).await;
    assert_eq!(promises, json!(3));
    let seen = refit.relay.seen();
    assert_eq!(seen.len(), 1, "rows of one moment leave together");
    assert_eq!(refit.counted().await.0, 3);
}
