//! What holds for every request, without an engine behind it.

use axum::body::{Body, to_bytes};
use axum::http::{Method, StatusCode, header};
use serde_json::Value;
use tower::ServiceExt as _;

use super::request::{Asked, Given, Page, key, limit};
use super::*;

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Query {
    limit: Option<u32>,
}

fn routes() -> Router {
    let local = Access::Local { public_url: None };
    let list = |Asked(asked): Asked<Query>| async move { limit(asked.limit).map(|limit| limit.to_string()) };
    let take = |Given(given): Given<Value>| async move { given.to_string() };
    let broken =
        || async { Err::<(), _>(ApiError::Broken("connection string postgres://u:hunter22@h".into())) };
    let routes = Router::new()
        .route("/list", get(list).post(take))
        .route("/broken", get(broken))
        .layer(from_fn_with_state(ANSWER_TIME, in_time));
    guarded(routes, local)
}

async fn answer(request: axum::http::request::Builder, body: &str) -> (StatusCode, HeaderValue, Value) {
    let request = request.header(header::HOST, "localhost:7070").body(Body::from(body.to_owned()));
    let response = routes().oneshot(request.expect("a request")).await.expect("an answer");
    assert!(response.headers().contains_key(REQUEST_ID));
    let (status, kind) = (response.status(), response.headers()[header::CONTENT_TYPE].clone());
    let body = to_bytes(response.into_body(), 1 << 20).await.expect("a body");
    (status, kind, serde_json::from_slice(&body).expect("JSON"))
}

#[tokio::test]
async fn what_is_wrong_is_told_as_a_problem_with_what_to_do() {
    let get = |uri: &str| Request::builder().uri(uri);
    let post = || Request::builder().uri("/list").method(Method::POST);
    let json = || post().header(header::CONTENT_TYPE, "application/json; charset=utf-8");
    let cases = [
        (get("/nowhere"), String::new(), 404),
        (get("/list?limit=0"), String::new(), 400),
        (get("/list?limit=x"), String::new(), 400),
        (get("/list?limmit=1"), String::new(), 400),
        (get("/list").method(Method::DELETE), String::new(), 405),
        (post(), "{}".to_owned(), 415),
        (json(), "{".to_owned(), 400),
        (json(), format!("\"{}\"", "x".repeat(BODY_LIMIT)), 413),
        (json().header(header::ORIGIN, "https://evil.example"), "{}".to_owned(), 403),
    ];
    for (request, body, status) in cases {
        let shown = format!("{request:?}");
        let (got, kind, problem) = answer(request, &body).await;
        assert_eq!(
            (got.as_u16(), kind),
            (status, HeaderValue::from_static("application/problem+json")),
            "{shown}"
        );
        assert_eq!(problem["status"], status, "{shown}");
        assert!(problem["title"].is_string() && problem["detail"].is_string(), "{shown}: {problem}");
    }
    let (status, _, body) = answer(json(), "{\"a\":1}").await;
    assert_eq!((status, body["a"].as_i64()), (StatusCode::OK, Some(1)));
}

#[tokio::test]
async fn the_cause_of_a_failure_inside_stays_inside() {
    let (status, _, problem) = answer(Request::builder().uri("/broken"), "").await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(!problem.to_string().contains("hunter22"), "{problem}");
    assert!(problem["hint"].as_str().is_some_and(|hint| hint.contains("x-request-id")), "{problem}");
}

#[tokio::test]
async fn an_answer_that_takes_too_long_is_given_up() {
    let never = || async { std::future::pending::<()>().await };
    let routes = Router::new().route("/never", get(never));
    let routes = routes.layer(from_fn_with_state(Duration::from_millis(10), in_time));
    let routes = guarded(routes, Access::Local { public_url: None });
    let request = Request::builder().uri("/never").body(Body::empty()).expect("a request");
    let response = routes.oneshot(request).await.expect("an answer");
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()[header::RETRY_AFTER], "1");
}

#[test]
fn a_key_is_given_once() {
    let headers = |value: Option<&str>| {
        let value =
            value.map(|value| ("idempotency-key".parse().expect("a name"), value.parse().expect("a value")));
        value.into_iter().collect::<axum::http::HeaderMap>()
    };
    let given = |header, other: Option<&str>| {
        key(&headers(header), "`key`", other.map(str::to_owned)).map_err(|error| error.to_string())
    };
    assert_eq!(given(None, None), Ok(None));
    assert_eq!(given(Some("a"), None), Ok(Some("a".to_owned())));
    assert_eq!(given(Some("a"), Some("a")), Ok(Some("a".to_owned())));
    assert!(given(Some("a"), Some("b")).is_err());
    assert!(given(None, Some("")).is_err());
    assert!(given(None, Some(&"x".repeat(201))).is_err());
}

#[test]
fn a_page_knows_whether_another_follows() {
    let page = Page::of(vec![3, 2, 1], 2, ToString::to_string);
    assert_eq!((page.items, page.next.as_deref()), (vec![3, 2], Some("2")));
    let last = Page::of(vec![1], 2, ToString::to_string);
    assert_eq!((last.items, last.next), (vec![1], None));
}
