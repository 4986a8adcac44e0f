//! What a run decided, told afterwards from what the database kept.

use std::sync::Arc;

use chrono::TimeDelta;
use refit::domain::id::RunId;
use refit::domain::receipt::{Decision, Receipt};
use refit::domain::run::{Outcome, RunStatus};
use refit::engine::Engine;
use refit::http::{Server, Settings, Working};
use refit::receipt::{self, page::Pages};
use refit::store::RunFilter;
use refit::trigger::Catalog;
use reqwest::StatusCode;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::rollout::{FLOW, Flow, ended, on_canary, publish, reach, serving, traffic};
use crate::support::crash::Crash;
use crate::support::world::{World, http};

async fn receipt_of(engine: &Arc<Engine>, run: RunId) -> Option<Receipt> {
    let run = engine.store.run(run).await.expect("readable").expect("a run");
    receipt::of(engine.store.as_ref(), &run).await.expect("readable")
}

/// Every receipt can be shown.
fn page(receipt: &Receipt) -> String {
    let pages = Pages::new(None).expect("built-in templates");
    pages.html(receipt).expect("renders");
    serde_json::to_string(receipt).expect("JSON");
    pages.markdown(receipt).expect("renders")
}

#[tokio::test]
async fn a_promotion_and_a_rollback_have_receipts_with_their_evidence() {
    let world = World::sqlite();
    let engine = world.process(&Crash::never()).await;
    serving(&world, &engine).await;
    let run = on_canary(&world, &engine, FLOW).await;
    assert_eq!(receipt_of(&engine, run).await, None, "nothing is decided yet");
    traffic(&world, &engine, ("2", "1"), (0, 0)).await;
    assert_eq!(ended(&world, &engine, run).await.outcome, Some(Outcome::Promoted));
    let promoted = receipt_of(&engine, run).await.expect("decided");
    assert_eq!((promoted.decision, promoted.headline.as_str()), (Decision::Promoted, "2 of m was promoted"));
    assert_eq!(promoted.champion.as_ref().map(ToString::to_string).as_deref(), Some("1"));
    assert_eq!(promoted.gates[0].rules[0].value, Some(10.0));
    assert!(promoted.limits.iter().any(|limit| limit.contains("did not decide by itself")), "{promoted:#?}");

    let mut unreadable = engine.store.run(run).await.expect("readable").expect("a run");
    unreadable.definition.source = "steps: of another version of refit".to_owned();
    let unreadable =
        receipt::of(engine.store.as_ref(), &unreadable).await.expect("readable").expect("decided");
    assert_eq!((unreadable.mode, &unreadable.target), (None, &promoted.target));
    assert_eq!(unreadable.changes, promoted.changes);
    assert!(page(&unreadable).contains("its mode is not known"), "{}", page(&unreadable));
    assert!(!page(&unreadable).contains("only advised"), "{}", page(&unreadable));

    let run = on_canary(&world, &engine, FLOW).await;
    traffic(&world, &engine, ("3", "2"), (10, 0)).await;
    assert_eq!(ended(&world, &engine, run).await.outcome, Some(Outcome::RolledBack));
    let rolled_back = receipt_of(&engine, run).await.expect("decided");
    assert_eq!(rolled_back.decision, Decision::RolledBack);
    let canary = rolled_back.canary.as_ref().expect("it was on canary");
    assert!(canary.view.evidence_against.is_some_and(|evidence| evidence >= canary.view.limit_against));
    assert_eq!(rolled_back.reproduce.configuration_sha256.len(), 64);
    let page = page(&rolled_back);
    assert!(page.contains("| production serves 2 (generation 5) | refit |"), "{page}");
    assert!(page.contains("at most 2 % are ever rolled back"), "{page}");
}

#[tokio::test]
async fn a_refusal_and_a_held_canary_have_receipts_too() {
    let world = World::sqlite();
    let engine = world.process(&Crash::never()).await;
    serving(&world, &engine).await;
    let refused = FLOW.source().replace("max: 600", "max: 6");
    let run = world.trigger(&engine, &refused).await;
    assert_eq!(ended(&world, &engine, run).await.outcome, Some(Outcome::Rejected));
    let rejected = receipt_of(&engine, run).await.expect("decided");
    assert_eq!((rejected.decision, rejected.version.as_ref()), (Decision::Rejected, None));
    assert!(page(&rejected).contains("✗ mae is 10; at most 6 allowed"), "{}", page(&rejected));

    let flow = Flow { compare: "rules: [{ metric: error_rate }], on_inconclusive: hold", ..FLOW };
    let run = on_canary(&world, &engine, flow).await;
    reach(&world, &engine, run, TimeDelta::minutes(10), |run| run.status == RunStatus::Held).await;
    let held = receipt_of(&engine, run).await.expect("decided");
    assert_eq!(held.decision, Decision::Held);
    assert!(page(&held).starts_with("# 2 of m is held for a person to decide\n"), "{}", page(&held));
}

#[tokio::test]
async fn a_receipt_is_asked_for_over_http_in_the_form_that_is_wanted() {
    let world = World::sqlite();
    let engine = world.process(&Crash::never()).await;
    let refused = FLOW.source().replace("max: 600", "max: 6");
    let run = world.trigger(&engine, &refused).await;
    ended(&world, &engine, run).await;
    publish(&world, &engine).await;
    let runs = engine.store.runs(&RunFilter { limit: 10, ..RunFilter::default() }).await.expect("readable");
    let undecided = runs.iter().find(|other| other.id != run).expect("the run that only published").id;

    let (_, working) = watch::channel(Working::Yes);
    let settings = Settings { listen: "127.0.0.1:0".parse().expect("an address"), public_url: None };
    let catalog = Arc::new(Catalog::load(world.root.path()));
    let server =
        Server::bind(Arc::clone(&engine), Arc::new(move || Arc::clone(&catalog)), &settings, working);
    let server = server.await.expect("binds");
    let address = server.address().expect("an address");
    let stop = CancellationToken::new();
    let serving = tokio::spawn(server.run(stop.clone()));
    let ask = |run: RunId, accept: &'static str| {
        http().get(format!("http://{address}/v1/runs/{run}/receipt")).header("accept", accept).send()
    };
    for (accept, kind, begins) in [
        ("application/json", "application/json", "{\"decision\":\"rejected\""),
        ("text/html", "text/html; charset=utf-8", "<!doctype html>"),
        ("text/markdown", "text/markdown; charset=utf-8", "# A new version of m was rejected"),
    ] {
        let answer = ask(run, accept).await.expect("answers");
        assert_eq!(
            (answer.status(), &answer.headers()["content-type"]),
            (StatusCode::OK, &kind.parse().unwrap())
        );
        let text = answer.text().await.expect("a body");
        assert!(text.starts_with(begins), "{text}");
    }
    let answer = ask(undecided, "text/html").await.expect("answers");
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    stop.cancel();
    serving.await.expect("ends");
}
