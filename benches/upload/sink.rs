//! An S3 server that keeps small objects and forgets the bytes of large ones:
//! gigabytes go through it, whatever this machine's disk and memory are.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::{Body, Bytes};
use axum::extract::{Query, Request, State};
use axum::http::{Method, Response, StatusCode};
use futures::StreamExt;
use serde_json::Value;

use crate::{Failure, server};

const KEPT: usize = 1024 * 1024;

#[derive(Default)]
struct Objects {
    /// Size, and the bytes of small ones.
    objects: BTreeMap<String, (u64, Bytes)>,
    /// Of the upload in parts that is under way.
    parts: u64,
}

type Shared = Arc<Mutex<Objects>>;

/// Starts it, and returns the settings of a store there.
pub async fn start() -> Result<Value, Failure> {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
    let port = listener.local_addr()?.port();
    let app = axum::Router::new().fallback(answer).with_state(Shared::default());
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(server::settings(port))
}

async fn answer(
    State(shared): State<Shared>,
    Query(query): Query<BTreeMap<String, String>>,
    request: Request,
) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let (mut size, mut kept) = (0, Vec::new());
    let mut body = body.into_data_stream();
    while let Some(Ok(chunk)) = body.next().await {
        size += chunk.len() as u64;
        if size <= KEPT as u64 {
            kept.extend_from_slice(&chunk);
        }
    }
    let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
    let path = parts.uri.path().trim_start_matches('/').to_owned();
    match parts.method {
        Method::PUT if query.contains_key("partNumber") => {
            shared.parts += size;
            of(StatusCode::OK, String::new(), 0)
        }
        Method::PUT => {
            shared.objects.insert(path, (size, kept.into()));
            of(StatusCode::OK, String::new(), 0)
        }
        Method::POST if query.contains_key("uploads") => {
            shared.parts = 0;
            let text = "<InitiateMultipartUploadResult><Bucket>models</Bucket><Key>k</Key><UploadId>1</UploadId></InitiateMultipartUploadResult>";
            of(StatusCode::OK, text, 0)
        }
        Method::POST => {
            let size = shared.parts;
            shared.objects.insert(path, (size, Bytes::new()));
            let text = "<CompleteMultipartUploadResult><ETag>\"1\"</ETag></CompleteMultipartUploadResult>";
            of(StatusCode::OK, text, 0)
        }
        Method::GET if query.contains_key("list-type") => of(StatusCode::OK, list(&shared, &query), 0),
        Method::GET => match shared.objects.get(&path) {
            Some((size, bytes)) => of(StatusCode::OK, bytes.clone(), *size),
            None => of(StatusCode::NOT_FOUND, String::new(), 0),
        },
        _ => of(StatusCode::METHOD_NOT_ALLOWED, String::new(), 0),
    }
}

fn list(shared: &Objects, query: &BTreeMap<String, String>) -> String {
    let prefix = format!("models/{}", query.get("prefix").map_or("", String::as_str));
    let contents = shared.objects.iter().filter(|(path, _)| path.starts_with(&prefix)).map(|(path, (size, _))| {
        let key = path.trim_start_matches("models/");
        format!("<Contents><Key>{key}</Key><Size>{size}</Size><LastModified>2026-11-21T00:00:00.000Z</LastModified><ETag>\"1\"</ETag></Contents>")
    });
    format!(
        "<ListBucketResult><IsTruncated>false</IsTruncated>{}</ListBucketResult>",
        contents.collect::<String>()
    )
}

fn of(status: StatusCode, body: impl Into<Body>, size: u64) -> Response<Body> {
    let mut response = Response::builder()
        .status(status)
        .header("ETag", "\"1\"")
        .header("Last-Modified", "Sat, 21 Nov 2026 00:00:00 GMT");
    if size > 0 {
        response = response.header("Content-Length", size);
    }
    response.body(body.into()).unwrap_or_default()
}
