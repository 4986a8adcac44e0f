//! The line to a real S3 server, which breaks when it is told to.

use std::sync::Arc;

use async_trait::async_trait;
use axum::body::{Body, Bytes};
use axum::http::request::Parts;
use axum::http::{Response, StatusCode};

use super::faults::{Call, Line, Op, Service};

struct Forward {
    server: u16,
    client: reqwest::Client,
}

/// A line to the S3 server at `port` of this machine.
pub async fn to(port: u16) -> Line {
    // Nothing of it may be decoded or followed on the way.
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    Line::start(|_| Arc::new(Forward { server: port, client })).await
}

#[async_trait]
impl Service for Forward {
    fn call(&self, parts: &Parts) -> Option<Call> {
        let query: Vec<(String, String)> =
            url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes())
                .into_owned()
                .collect();
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

    async fn answer(&self, parts: &Parts, _call: &Call, body: Bytes) -> Response<Body> {
        let url = format!("http://127.0.0.1:{}{}", self.server, parts.uri);
        let request =
            self.client.request(parts.method.clone(), url).headers(parts.headers.clone()).body(body);
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

    fn refuse(&self, status: u16, code: &'static str) -> Response<Body> {
        let mut response = Response::new(Body::from(format!("<Error><Code>{code}</Code></Error>")));
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        response
    }

    fn expired(&self) -> Response<Body> {
        self.refuse(403, "ExpiredToken")
    }
}
