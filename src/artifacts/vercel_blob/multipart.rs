//! An upload in parts: each but the last of one size, sent as they come, put together at the end.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use object_store::{MultipartUpload, PutPayload, PutResult, Result, UploadPart};
use reqwest::Method;
use reqwest::header::HeaderMap;
use serde::{Deserialize, Serialize};

use super::api::{Api, Blob, Call};
use super::put_result;
use super::refusal::{Kind, Refusal};

/// The service takes no smaller part but the last.
const SMALLEST_PART: usize = 5 * 1024 * 1024;

/// An upload that was begun. One that is never completed is no blob, and there
/// is no request that drops it: the service forgets it by itself.
pub(super) struct Parts {
    api: Arc<Api>,
    pathname: String,
    headers: HeaderMap,
    /// Sizes of the parts so far.
    first: Option<usize>,
    last: Option<usize>,
    begun: usize,
    sent: Arc<Mutex<Vec<Part>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Created {
    upload_id: String,
    key: String,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Part {
    part_number: usize,
    etag: String,
}

#[derive(Deserialize)]
struct PartSent {
    etag: String,
}

impl Parts {
    /// Begins one; `headers` are those of a put.
    pub(super) async fn begin(api: Arc<Api>, pathname: String, mut headers: HeaderMap) -> Result<Self> {
        let call = call(&pathname, &headers, "create")?;
        let Created { upload_id, key } = api.send(&call).await?;
        let key: String = url::form_urlencoded::byte_serialize(key.as_bytes()).collect();
        let call = Call::new(Method::POST, "/mpu", &pathname)
            .header("x-mpu-upload-id", &upload_id)?
            // Spaces as %20: a header is not a form.
            .header("x-mpu-key", &key.replace('+', "%20"))?;
        headers.extend(call.into_headers());
        Ok(Self { api, pathname, headers, first: None, last: None, begun: 0, sent: Arc::default() })
    }

    /// Whether a part of `size` may come now.
    fn admit(&mut self, size: usize) -> Result<(), Refusal> {
        let refused = |said: String| Err(Refusal::senseless(Kind::Refused, said));
        let first = *self.first.get_or_insert(size);
        if let Some(last) = self.last.filter(|last| *last != first || *last < SMALLEST_PART) {
            return refused(format!("a part of {last} bytes can only be the last one"));
        }
        if size > first {
            return refused(format!("a part of {size} bytes after one of {first}: they must be equal"));
        }
        self.last = Some(size);
        Ok(())
    }
}

fn call(pathname: &str, headers: &HeaderMap, action: &str) -> Result<Call> {
    Call::new(Method::POST, "/mpu", pathname)
        .query("pathname", pathname)
        .headers(headers)
        .header("x-mpu-action", action)
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts")
            .field("pathname", &self.pathname)
            .field("begun", &self.begun)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl MultipartUpload for Parts {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let admitted = self.admit(data.content_length());
        self.begun += 1;
        let (api, part_number, sent) = (self.api.clone(), self.begun, self.sent.clone());
        let call = admitted
            .map_err(|refusal| refusal.about(&self.pathname))
            .and_then(|()| call(&self.pathname, &self.headers, "upload"))
            .and_then(|call| call.header("x-mpu-part-number", &part_number.to_string()))
            .map(|call| call.body(Bytes::from(data)));
        Box::pin(async move {
            let PartSent { etag } = api.send(&call?).await?;
            sent.lock().unwrap_or_else(PoisonError::into_inner).push(Part { part_number, etag });
            Ok(())
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let mut parts = self.sent.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if parts.len() != self.begun {
            let said = format!("{} of {} parts were sent", parts.len(), self.begun);
            return Err(Refusal::senseless(Kind::Refused, said).about(&self.pathname));
        }
        parts.sort_by_key(|part| part.part_number);
        let call = call(&self.pathname, &self.headers, "complete")?.json(&parts)?;
        let blob: Blob = self.api.send(&call).await?;
        self.api.learn(&blob);
        Ok(put_result(blob))
    }

    async fn abort(&mut self) -> Result<()> {
        Ok(())
    }
}
