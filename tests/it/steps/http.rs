//! `uses: http`, against a real server.

use std::collections::BTreeMap;
use std::time::Duration;

use refit::domain::expr::Template;
use refit::domain::workflow::step::Http;
use refit::steps::context::StepError;
use refit::steps::http::{HttpOutput, run};
use serde_json::json;
use wiremock::matchers::{body_string, header, method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::support::steps::{Bench, done, failure};

fn post(url: &str) -> Http {
    Http {
        method: "POST".to_owned(),
        url: Template::compile(url).expect("a template"),
        headers: BTreeMap::from([("x-who".to_owned(), Template::compile("refit").expect("a template"))]),
        body: Some(Template::compile("hello").expect("a template")),
        expect: Vec::new(),
    }
}

#[tokio::test]
async fn a_request_carries_its_key_and_is_answered_once() {
    let bench = Bench::new("sync");
    let server = MockServer::start().await;
    let key = format!("{}/sync/request", bench.run.id);
    Mock::given(method("POST"))
        .and(path("/api/sync"))
        .and(header("idempotency-key", key.as_str()))
        .and(header("x-who", "refit"))
        .and(body_string("hello"))
        .respond_with(ResponseTemplate::new(201).set_body_json(json!({ "rows": 3 })))
        .expect(1)
        .mount(&server)
        .await;
    let spec = post(&format!("{}/api/sync?token=x", server.uri()));
    let output: HttpOutput = done(run(&spec, &bench.ctx()).await);
    assert_eq!(output, HttpOutput { status: 201, body: json!({ "rows": 3 }), cut: false });
    let again: HttpOutput = done(run(&spec, &bench.ctx()).await);
    assert_eq!(again, output, "what was answered is not asked again");
}

#[tokio::test]
async fn unexpected_statuses_fail_and_say_whether_to_try_again() {
    let bench = Bench::new("sync");
    let server = MockServer::start().await;
    let busy = ResponseTemplate::new(429).insert_header("retry-after", "30");
    Mock::given(path("/busy")).respond_with(busy).mount(&server).await;
    Mock::given(path("/gone")).respond_with(ResponseTemplate::new(404)).mount(&server).await;
    let result = run(&post(&format!("{}/busy", server.uri())), &bench.ctx()).await;
    let Err(StepError::Failed { retry_after, .. }) = result else { panic!("not failed: {result:?}") };
    assert_eq!(retry_after, Some(Duration::from_secs(30)));
    let spec = post(&format!("{}/gone?token=secret", server.uri()));
    let message = failure(run(&spec, &bench.ctx()).await);
    assert!(message.ends_with("it answered 404 Not Found") && !message.contains("secret"), "{message}");
    let expected = Http { expect: vec![404], ..spec };
    let output: HttpOutput = done(run(&expected, &bench.ctx()).await);
    assert_eq!(output.status, 404);
}

#[tokio::test]
async fn a_long_answer_is_cut() {
    let bench = Bench::new("sync");
    let server = MockServer::start().await;
    let long = ResponseTemplate::new(200).set_body_string("x".repeat(200_000));
    Mock::given(path("/")).respond_with(long).mount(&server).await;
    let output: HttpOutput = done(run(&post(&server.uri()), &bench.ctx()).await);
    assert!(output.cut);
    assert_eq!(output.body.as_str().map(str::len), Some(64 * 1024));
}

#[tokio::test]
async fn a_server_that_is_not_there_may_come_back() {
    let bench = Bench::new("sync");
    let message = failure(run(&post("http://127.0.0.1:9/x?token=secret"), &bench.ctx()).await);
    assert!(message.starts_with("http://127.0.0.1:9/x is unavailable: "), "{message}");
    assert!(!message.contains("secret"), "{message}");
}
