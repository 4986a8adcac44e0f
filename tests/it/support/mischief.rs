//! What goes wrong on the way to a service: answers of no use, and none at all.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;

/// One thing that goes wrong, with one request.
#[derive(Debug, Clone)]
pub enum Fault {
    /// It is answered so, and nothing else happens.
    Answer(u16, Vec<(&'static str, &'static str)>, &'static str),
    /// The connection ends, and nothing happens.
    Cut,
    /// It happens, and the connection ends before the answer.
    LostAnswer,
    /// It happens, and the connection ends within the answer.
    Torn,
    /// Nothing is ever answered.
    Silence,
}

/// A request as it came in.
#[derive(Debug, Clone)]
pub struct Seen {
    pub line: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// What goes wrong next, in order, and all requests that came.
#[derive(Clone, Default)]
pub struct Mischief {
    faults: Arc<Mutex<VecDeque<Fault>>>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Mischief {
    pub fn next(&self, fault: Fault) {
        self.faults.lock().unwrap().push_back(fault);
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// `service` on a port of its own, with this mischief before it; its address.
    pub async fn serve(&self, service: Router) -> String {
        let service = service.layer(from_fn_with_state(self.clone(), meddle));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move { axum::serve(listener, service).await });
        format!("http://{address}")
    }
}

async fn meddle(State(mischief): State<Mischief>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, 16 << 20).await.unwrap_or_default();
    let text = |value: &axum::http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    mischief.seen.lock().unwrap().push(Seen {
        line: format!("{} {}", parts.method, parts.uri),
        headers: parts.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
        body: String::from_utf8_lossy(&body).into_owned(),
    });
    let request = Request::from_parts(parts, Body::from(body));
    let fault = mischief.faults.lock().unwrap().pop_front();
    match fault {
        None => next.run(request).await,
        Some(Fault::Answer(status, headers, body)) => {
            let mut answer = Response::builder().status(status);
            for (name, value) in headers {
                answer = answer.header(name, value);
            }
            answer.body(Body::from(body)).expect("an answer")
        }
        Some(Fault::Cut) => hang_up(),
        Some(Fault::LostAnswer) => {
            next.run(request).await;
            hang_up()
        }
        Some(Fault::Torn) => {
            let (parts, body) = next.run(request).await.into_parts();
            let body = to_bytes(body, 16 << 20).await.unwrap_or_default();
            let half = body.slice(..body.len() / 2);
            let broken =
                futures::stream::iter([Ok::<Bytes, std::io::Error>(half), Err(std::io::Error::other("cut"))]);
            Response::from_parts(parts, Body::from_stream(broken))
        }
        Some(Fault::Silence) => match std::future::pending::<Infallible>().await {},
    }
}

/// Ends the task of the connection, and with it the connection.
fn hang_up() -> Response {
    std::panic::resume_unwind(Box::new("the connection ends"))
}
