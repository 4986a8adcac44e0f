//! The line to a real S3 server, which breaks when it is told to.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::Response;
use axum::http::request::Parts;

use super::line::{Call, Dialect, Line, Op};

const DIALECT: Dialect = Dialect { call, refusal, expired: || (403, refusal("ExpiredToken")) };

fn refusal(code: &str) -> String {
    format!("<Error><Code>{code}</Code></Error>")
}

#[derive(Clone)]
struct Forward {
    server: u16,
    client: reqwest::Client,
}

/// A line to the S3 server at `port` of this machine.
pub fn to(port: u16) -> Line {
    // Nothing of it may be decoded or followed on the way.
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let forward = Router::new().fallback(forward).with_state(Forward { server: port, client });
    Line::start(DIALECT, |_| forward)
}

fn call(parts: &Parts) -> Option<Call> {
    let query: Vec<(String, String)> =
        url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes()).into_owned().collect();
    let value = |name: &str| query.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    let part = value("partNumber").and_then(|part| part.parse().ok());
    let op = match parts.method.as_str() {
        "PUT" if part.is_some() => Op::Part,
        "PUT" => Op::Put,
        "POST" if value("uploads").is_some() => Op::Begin,
        "POST" if value("uploadId").is_some() => Op::Complete,
        "POST" | "DELETE" => Op::Delete,
        "HEAD" => Op::Head,
        "GET" if value("list-type").is_some() => Op::List,
        "GET" => Op::Download,
        _ => return None,
    };
    let pathname = object_store::path::Path::from_url_path(parts.uri.path()).ok()?.to_string();
    Some(Call { op, pathname, part })
}

async fn forward(State(to): State<Forward>, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap();
    let url = format!("http://127.0.0.1:{}{}", to.server, parts.uri);
    let request = to.client.request(parts.method.clone(), url).headers(parts.headers).body(body);
    let answer = request.send().await.unwrap();
    let mut response = Response::new(Body::empty());
    *response.status_mut() = answer.status();
    *response.headers_mut() = answer.headers().clone();
    response.headers_mut().remove("transfer-encoding");
    if parts.method != "HEAD" {
        *response.body_mut() = Body::from(answer.bytes().await.unwrap());
    }
    response
}
