//! A list whose every answer says that there is another page.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::routing::get;
use axum::{Json, Router};
use chrono::TimeDelta;
use refit::domain::canary::CanaryState;
use serde_json::{Value, json};

use super::watched::Watched;
use crate::support::faults::Server;
use crate::support::world::{World, start};

/// The canary fails every request.
fn rows() -> Vec<Value> {
    let row = |minute: i64, n: usize| {
        let version = if n < 8 { "2" } else { "1" };
        let at = start() + TimeDelta::minutes(minute) + TimeDelta::milliseconds(1);
        json!({"at": at, "request_id": format!("{minute}-{n}"), "version": version, "ok": version == "1"})
    };
    (0..8).flat_map(|minute| (0..80).map(move |n| row(minute, n))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_there_decides_and_people_are_told_once() {
    let answers = Arc::new(AtomicU64::new(0));
    let answered = answers.clone();
    let list = move || {
        let next = answered.fetch_add(1, Ordering::SeqCst);
        async move { Json(json!({"items": rows(), "next": format!("token-{next}")})) }
    };
    let server = Server::start(Router::new().route("/served", get(list)));
    let evidence = format!(
        "http:\n  url: \"{}/served?since=${{{{ since }}}}&after=${{{{ cursor }}}}\"\n  rows: items\n  next: next",
        server.url
    );
    let watched = Watched::start(World::sqlite(), &evidence).await;
    watched.look_in(11).await;
    let canary = watched.canary().await;
    assert_eq!(canary.state, CanaryState::RolledBack, "{}", canary.reason);
    assert_eq!(watched.counted("2").await, (64, 64));
    let problem = watched.state().await.report.problem.expect("a problem");
    assert!(problem.told && problem.text.contains("do not come to an end"), "{problem:?}");
    let told = watched.told().await;
    assert_eq!(told.iter().filter(|it| it.contains("do not come to an end")).count(), 1, "{told:?}");
    assert!(answers.load(Ordering::SeqCst) < 10, "it is left alone until the next look");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_grows_while_it_is_read_is_waited_for_ten_minutes() {
    let answers = Arc::new(AtomicU64::new(0));
    let answered = answers.clone();
    let list = move || {
        let next = answered.fetch_add(1, Ordering::SeqCst);
        let row = json!({"at": start(), "request_id": format!("row-{next}"), "version": "1", "ok": true});
        async move { Json(json!({"items": [row], "next": next + 1})) }
    };
    let server = Server::start(Router::new().route("/served", get(list)));
    let evidence = format!(
        "http:\n  url: \"{}/served?after=${{{{ cursor }}}}\"\n  rows: items\n  next: next",
        server.url
    );
    let watched = Watched::start(World::sqlite(), &evidence).await;
    watched.look_in(2).await;
    assert_eq!(watched.canary().await.reason, "", "nothing is concluded in the middle of the list");
    assert!(!watched.state().await.endless && watched.told().await.is_empty());
    watched.look_in(10).await;
    assert_ne!(watched.canary().await.reason, "", "what is there decides");
    watched.look_in(1).await;
    let told = watched.told().await;
    assert_eq!(told.iter().filter(|it| it.contains("do not come to an end")).count(), 1, "{told:?}");
    assert_eq!(watched.counted("1").await.0, answers.load(Ordering::SeqCst), "every row counts once");
}
