//! Requests to the Blob API and downloads: headers, retries, waiting.

use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{ObjectMeta, Result};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue, RANGE};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use url::Url;

use super::Access;
use super::refusal::{Kind, Refusal};
use crate::http_client::{head_of, retry_after};
use crate::secret::{Secret, Secrets};

/// The version of the API that is spoken here.
const API_VERSION: &str = "12";
/// Requests with a body at once; what npm `@vercel/blob` allows itself.
const AT_ONCE: usize = 8;
/// Attempts of one request; beyond them the engine's own retries serve.
const MOST_ATTEMPTS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);
/// Waited in one request because the service asked for it; a longer wish is handed on.
const MOST_WAITING: Duration = Duration::from_secs(60);
/// No answer of the API is longer: a list of 1,000 blobs is a tenth of it.
const LONGEST_ANSWER: usize = 16 * 1024 * 1024;

/// The service, as one token sees it.
pub(super) struct Api {
    /// Without a trailing slash.
    pub(super) base: String,
    pub(super) store_id: String,
    pub(super) token: Secret,
    pub(super) access: Access,
    pub(super) http: Client,
    /// For requests whose body takes its time.
    pub(super) transfers: Client,
    pub(super) secrets: Secrets,
    pub(super) at_once: Semaphore,
    /// Where the store shows its blobs, once an answer said it.
    pub(super) root: Arc<OnceLock<String>>,
}

/// One request of the API.
pub(super) struct Call {
    method: Method,
    /// After the base: what the vendor's own client writes there.
    below: &'static str,
    query: Vec<(&'static str, String)>,
    headers: HeaderMap,
    body: Option<Bytes>,
    /// What it is about, for messages.
    about: String,
}

impl Call {
    /// A request about `about`, which is no part of it yet.
    pub(super) fn new(method: Method, below: &'static str, about: impl Into<String>) -> Self {
        Self { method, below, query: vec![], headers: HeaderMap::new(), body: None, about: about.into() }
    }

    pub(super) fn query(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    pub(super) fn header(mut self, name: &'static str, value: &str) -> Result<Self> {
        let value = HeaderValue::from_str(value).map_err(|_| {
            Refusal::senseless(Kind::Refused, format!("{name} cannot be sent")).about(&self.about)
        })?;
        self.headers.insert(HeaderName::from_static(name), value);
        Ok(self)
    }

    pub(super) fn headers(mut self, headers: &HeaderMap) -> Self {
        self.headers.extend(headers.clone());
        self
    }

    pub(super) fn into_headers(self) -> HeaderMap {
        self.headers
    }

    pub(super) fn body(mut self, body: Bytes) -> Self {
        self.body = Some(body);
        self
    }

    pub(super) fn json(mut self, body: &impl serde::Serialize) -> Result<Self> {
        let bytes = serde_json::to_vec(body)
            .map_err(|error| Refusal::senseless(Kind::Refused, error.to_string()).about(&self.about))?;
        self.headers.insert(reqwest::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        self.body = Some(bytes.into());
        Ok(self)
    }
}

/// What put, copy, complete, head and list say of a blob.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Blob {
    pub(super) url: String,
    pub(super) pathname: String,
    pub(super) etag: Option<String>,
    #[serde(default)]
    pub(super) content_type: Option<String>,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default)]
    uploaded_at: Option<DateTime<Utc>>,
}

impl Blob {
    /// What it says of itself; head and list say all of it.
    pub(super) fn meta(&self) -> Result<ObjectMeta> {
        let (Some(size), Some(last_modified)) = (self.size, self.uploaded_at) else {
            return Err(Refusal::senseless(Kind::Lost, "the answer lacks size or time").about(&self.pathname));
        };
        let location = Path::parse(&self.pathname)?;
        Ok(ObjectMeta { location, last_modified, size, e_tag: self.etag.clone(), version: None })
    }
}

/// How long one request has been tried.
struct Patience {
    attempts: u32,
    waited: Duration,
}

impl Patience {
    fn new() -> Self {
        Self { attempts: 0, waited: Duration::ZERO }
    }

    /// Waits before the next attempt, or gives `refusal` back.
    async fn after(&mut self, refusal: Refusal) -> Result<(), Refusal> {
        self.attempts += 1;
        if !refusal.is_transient() || self.attempts >= MOST_ATTEMPTS {
            return Err(refusal);
        }
        let doubled = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(self.attempts - 1));
        // Many that were refused at once do not come back at once.
        let ours = doubled.min(LONGEST_PAUSE).mul_f64(0.5 + 0.5 * rand::random::<f64>());
        let pause = refusal.retry_after.map_or(ours, |asked| asked.max(ours));
        if self.waited + pause > MOST_WAITING {
            return Err(refusal);
        }
        self.waited += pause;
        tracing::debug!(attempt = self.attempts, "Vercel Blob: trying again in {pause:?}: {refusal}");
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

impl Api {
    pub(super) fn permits() -> Semaphore {
        Semaphore::new(AT_ONCE)
    }

    /// Sends `call` until it is answered, and reads the answer.
    ///
    /// A refusal after an answer that was lost says nothing of the request: the first attempt may
    /// have done it. Then the lost answer is the error; one that a blob exists or changed is told.
    pub(super) async fn send<T: DeserializeOwned>(&self, call: &Call) -> Result<T> {
        let bytes = self.send_for_bytes(call).await?;
        serde_json::from_slice(&bytes).map_err(|error| {
            Refusal::senseless(Kind::Lost, format!("an answer that is not understood: {error}"))
                .about(&call.about)
        })
    }

    /// The same for an answer that nobody reads.
    pub(super) async fn send_for_bytes(&self, call: &Call) -> Result<Bytes> {
        let request = uuid::Uuid::now_v7();
        let (mut patience, mut lost) = (Patience::new(), None);
        loop {
            let refusal = match self.attempt(call, request, patience.attempts).await {
                Ok(answer) => return Ok(answer),
                Err(refusal) => refusal,
            };
            if let (Some(lost), Kind::Missing | Kind::Refused) = (&lost, refusal.kind) {
                return Err(Refusal::clone(lost).about(&call.about));
            }
            if refusal.kind == Kind::Lost {
                lost = Some(refusal.clone());
            }
            patience.after(refusal).await.map_err(|refusal| refusal.about(&call.about))?;
        }
    }

    async fn attempt(&self, call: &Call, id: uuid::Uuid, attempt: u32) -> Result<Bytes, Refusal> {
        let client = if call.body.is_some() { &self.transfers } else { &self.http };
        let permit = match call.body {
            // An error would mean that the semaphore was closed, which nobody does.
            Some(_) => self.at_once.acquire().await.ok(),
            None => None,
        };
        let mut request = client
            .request(call.method.clone(), format!("{}{}", self.base, call.below))
            .query(&call.query)
            .headers(call.headers.clone())
            .header("x-api-version", API_VERSION)
            .header("x-vercel-blob-store-id", &self.store_id)
            .header("x-api-blob-request-id", self.request_id(id))
            .header("x-api-blob-request-attempt", attempt);
        if let Some(body) = &call.body {
            request = request.body(body.clone());
        }
        let answer = self.answered(self.authorized(request)).await?;
        drop(permit);
        whole(answer).await
    }

    /// `<store>:<milliseconds>:<random>`, as the vendor's client makes it.
    fn request_id(&self, id: uuid::Uuid) -> String {
        let millis = id.get_timestamp().map_or(0, |at| {
            let (seconds, nanos) = at.to_unix();
            seconds * 1000 + u64::from(nanos / 1_000_000)
        });
        format!("{}:{millis}:{}", self.store_id, &id.simple().to_string()[20..])
    }

    /// With the token; in its header, which no log shows.
    fn authorized(&self, request: RequestBuilder) -> RequestBuilder {
        request.bearer_auth(self.token.reveal())
    }

    /// The answer to `request`, if it is a success.
    async fn answered(&self, request: RequestBuilder) -> Result<Response, Refusal> {
        let response = request.send().await.map_err(Refusal::unanswered)?;
        let (status, wait) = (response.status(), retry_after(response.headers()));
        if status.is_success() {
            return Ok(response);
        }
        let body = self.secrets.mask(&head_of(response).await);
        Err(Refusal::answered(status, &body, wait))
    }

    /// Notes where the store shows its blobs: the address of `blob` without its pathname.
    pub(super) fn learn(&self, blob: &Blob) {
        if self.root.get().is_none()
            && let Some(root) = root_of(&blob.url, &blob.pathname)
        {
            // Somebody else learned the same meanwhile.
            let _ = self.root.set(root);
        }
    }

    /// Bytes `range` of `blob`, which has `size` of them.
    pub(super) async fn download(
        self: &Arc<Self>,
        blob: &Blob,
        size: u64,
        range: Range<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes>>> {
        let url = self.download_url(blob)?;
        if range.is_empty() {
            return Ok(futures::stream::empty().boxed());
        }
        let mut body = Body {
            api: self.clone(),
            url,
            about: blob.pathname.clone(),
            size,
            left: range,
            e_tag: None,
            response: None,
            patience: Patience::new(),
        };
        // What is wrong from the start is told before the first byte is asked for.
        body.open().await.map_err(|refusal| refusal.about(&body.about))?;
        let stream = futures::stream::try_unfold(body, |mut body| async move {
            let chunk = body.next().await.map_err(|refusal| refusal.about(&body.about))?;
            Ok(chunk.map(|chunk| (chunk, body)))
        });
        Ok(stream.boxed())
    }

    /// The address in the answer, which the token is sent to only when it is as safe as the API's.
    fn download_url(&self, blob: &Blob) -> Result<Url> {
        let refused = |said: &str| Refusal::senseless(Kind::Refused, said).about(&blob.pathname);
        let mut url = Url::parse(&blob.url).map_err(|_| refused("the answer has no address for it"))?;
        match self.access {
            Access::Public => {}
            Access::Private => {
                if url.scheme() != "https" && !self.base.starts_with("http://") {
                    return Err(refused("the answer's address for it is not encrypted"));
                }
                url.query_pairs_mut().append_pair("cache", "0");
            }
        }
        Ok(url)
    }
}

/// A download under way; goes on where it was when the line is cut.
struct Body {
    api: Arc<Api>,
    url: Url,
    about: String,
    size: u64,
    left: Range<u64>,
    /// Of the first answer: the rest must be of the same blob.
    e_tag: Option<HeaderValue>,
    response: Option<Response>,
    patience: Patience,
}

impl Body {
    /// Asks for what is left, as often as it takes.
    async fn open(&mut self) -> Result<(), Refusal> {
        loop {
            match self.request().await {
                Ok(response) => {
                    self.response = Some(response);
                    return Ok(());
                }
                Err(refusal) => self.patience.after(refusal).await?,
            }
        }
    }

    async fn request(&mut self) -> Result<Response, Refusal> {
        let whole = self.left == (0..self.size);
        let mut request = self.api.http.get(self.url.clone());
        if !whole {
            request = request.header(RANGE, format!("bytes={}-{}", self.left.start, self.left.end - 1));
        }
        request = match self.api.access {
            Access::Public => request,
            Access::Private => self.api.authorized(request),
        };
        // The API knows the blob: whoever serves its bytes does not yet, or somebody deletes it.
        let response = self.api.answered(request).await.map_err(Refusal::or_lost)?;
        if !whole && response.status() != StatusCode::PARTIAL_CONTENT {
            return Err(Refusal::senseless(Kind::Refused, "a range was asked for, and all of it came"));
        }
        let e_tag = response.headers().get(reqwest::header::ETAG).cloned();
        match (&self.e_tag, &e_tag) {
            (Some(before), Some(now)) if before != now => {
                return Err(Refusal::senseless(Kind::Changed, "it was overwritten while it was read"));
            }
            _ => self.e_tag = e_tag,
        }
        Ok(response)
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Refusal> {
        while !self.left.is_empty() {
            let Some(response) = &mut self.response else {
                self.open().await?;
                continue;
            };
            match response.chunk().await {
                Ok(Some(chunk)) if chunk.len() as u64 > self.left.end - self.left.start => {
                    return Err(Refusal::senseless(Kind::Refused, "more came than was asked for"));
                }
                Ok(Some(chunk)) => {
                    self.left.start += chunk.len() as u64;
                    return Ok(Some(chunk));
                }
                Ok(None) => {
                    self.response = None;
                    self.patience
                        .after(Refusal::senseless(Kind::Lost, "less came than was asked for"))
                        .await?;
                }
                Err(error) => {
                    self.response = None;
                    self.patience.after(Refusal::unanswered(error)).await?;
                }
            }
        }
        Ok(None)
    }
}

/// All of an answer of the API.
async fn whole(mut response: Response) -> Result<Bytes, Refusal> {
    let mut bytes = bytes::BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(Refusal::unanswered)? {
        if bytes.len() + chunk.len() > LONGEST_ANSWER {
            return Err(Refusal::senseless(Kind::Refused, "an answer without end"));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.freeze())
}

/// `url` without `pathname` at its end and without a slash; none when it does not end so.
fn root_of(url: &str, pathname: &str) -> Option<String> {
    let mut url = Url::parse(url).ok()?;
    url.set_query(None);
    url.set_fragment(None);
    let shown = Path::from_url_path(url.path()).ok()?;
    let wanted = Path::parse(pathname).ok()?;
    let (shown, wanted): (Vec<_>, Vec<_>) = (shown.parts().collect(), wanted.parts().collect());
    if !shown.ends_with(&wanted) {
        return None;
    }
    {
        let mut segments = url.path_segments_mut().ok()?;
        segments.pop_if_empty();
        wanted.iter().for_each(|_| {
            segments.pop();
        });
    }
    Some(url.as_str().trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_learned_from_what_the_service_says() {
        let root = |url: &str, pathname: &str| root_of(url, pathname);
        let host = "https://ab1.public.blob.vercel-storage.com";
        assert_eq!(root(&format!("{host}/m/v1/a.json"), "m/v1/a.json").as_deref(), Some(host));
        assert_eq!(
            root(&format!("{host}/m/gr%C3%B6%C3%9Fe%202.bin?x=1"), "m/größe 2.bin").as_deref(),
            Some(host)
        );
        let below = "http://127.0.0.1:7000/files/ab1";
        assert_eq!(root(&format!("{below}/m/a.json"), "m/a.json").as_deref(), Some(below));
        assert_eq!(root(&format!("{host}/m/a-x1y2.json"), "m/a.json"), None, "a random suffix");
        assert_eq!(root("nonsense", "m/a.json"), None);
    }
}
