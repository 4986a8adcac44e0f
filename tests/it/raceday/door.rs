//! The way out: every request of refit to one vendor passes here, and can be the last thing that it does.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::Response;

use crate::support::crash::Crash;
use crate::support::world::http;

/// One for each vendor; requests of all are counted together.
#[derive(Clone)]
pub struct Door {
    name: &'static str,
    upstream: String,
    crash: Arc<Mutex<Crash>>,
}

/// Opens a door to `upstream`; returns its own address.
pub async fn open(name: &'static str, upstream: String, crash: Arc<Mutex<Crash>>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    let door = Door { name, upstream, crash };
    let router = Router::new().fallback(pass).with_state(door);
    tokio::spawn(async move { axum::serve(listener, router).await.expect("serves") });
    address
}

async fn pass(State(door): State<Door>, request: Request) -> Response {
    let crash = door.crash.lock().unwrap().clone();
    let name = format!("{} {}", door.name, named(&request));
    crash.around(&name, door.forward(request)).await
}

/// A request by what it does: of one that brings a file to Blob, also which file or part.
fn named(request: &Request) -> String {
    let (method, uri) = (request.method(), request.uri());
    let mut name = format!("{method} {}", uri.path());
    let query = uri.query().unwrap_or_default().as_bytes();
    if let Some((_, file)) = url::form_urlencoded::parse(query).find(|(key, _)| key == "pathname") {
        name += &format!(" {}", file.rsplit('/').next().unwrap_or_default());
    }
    for part in ["x-mpu-action", "x-mpu-part-number"] {
        if let Some(value) = request.headers().get(part) {
            name += &format!(" {}", value.to_str().expect("text"));
        }
    }
    name
}

impl Door {
    async fn forward(&self, request: Request) -> Response {
        let (parts, body) = request.into_parts();
        let body = to_bytes(body, usize::MAX).await.expect("a body");
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut headers = parts.headers;
        headers.remove(header::HOST);
        let sent = http().request(parts.method, format!("{}{path}", self.upstream));
        let Ok(answer) = sent.headers(headers).body(body).send().await else {
            let refused = Response::builder().status(StatusCode::BAD_GATEWAY);
            return refused.body(Body::empty()).expect("an answer");
        };
        let mut response = Response::builder().status(answer.status());
        for (name, value) in answer.headers() {
            if name != header::TRANSFER_ENCODING && name != header::CONNECTION {
                response = response.header(name, value);
            }
        }
        let body = answer.bytes().await.expect("an answer");
        response.body(Body::from(body)).expect("an answer")
    }
}
