//! Vercel Blob, by its HTTP API, version 12: what npm `@vercel/blob` 2.8 speaks.
//!
//! * An existing blob is refused unless `PutMode::Overwrite` or a known ETag says otherwise; an
//!   upload in parts never overwrites.
//! * A blob is read at the `url` of an answer, which is never built here.
//! * 429 is waited for as long as the service asks, within bounds; lost answers and 5xx are tried again.
//! * After an overwrite, caches of a public store may show the old bytes for a minute. Versions are
//!   written once, so that does not touch them; a release document belongs elsewhere.

mod api;
mod multipart;
mod refusal;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, CopyMode, CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult,
    MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result,
};
use reqwest::Method;
use reqwest::header::HeaderMap;
use serde::Deserialize;
use serde_json::{Value, json};

use self::api::{Api, Blob, Call};
use self::multipart::Parts;
use self::refusal::{Kind, Refusal};
use crate::adapter::{Adapter, ArtifactStore, BuildError, Deps, PublicBase, options_of};
use crate::domain::id::SecretName;
use crate::http_client;
use crate::secret::Secret;

/// `kind = "vercel-blob"`.
pub const ADAPTER: Adapter<ArtifactStore> = Adapter { kind: "vercel-blob", build };

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// What the store was made with; a store is one or the other.
    access: Access,
    /// Name of the secret with the read-write token.
    #[serde(default = "default_token")]
    token: String,
    /// Path within the store, before the model.
    #[serde(default)]
    prefix: String,
    /// The address at which apps read `prefix`, when it is not the store's own.
    public_url: Option<url::Url>,
    /// Files are compressed.
    #[serde(default)]
    gzip: bool,
    /// The API, for tests and for proxies.
    #[serde(default = "default_api")]
    api_url: url::Url,
}

/// Who may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Access {
    /// Everybody who knows the address.
    Public,
    /// Who has the token.
    Private,
}

impl Access {
    fn word(self) -> &'static str {
        match self {
            Access::Public => "public",
            Access::Private => "private",
        }
    }
}

fn default_token() -> String {
    "BLOB_READ_WRITE_TOKEN".to_owned()
}

#[expect(clippy::expect_used, reason = "a constant that is a URL")]
fn default_api() -> url::Url {
    url::Url::parse("https://vercel.com/api/blob").expect("a URL")
}

/// Pathnames may have this many characters.
const LONGEST_PATHNAME: usize = 950;
/// Blobs of one page of a list.
const PAGE: &str = "1000";
/// Blobs of one request to delete.
const DELETED_AT_ONCE: usize = 100;
/// What may be written again is kept by caches for as short a time as the service allows.
const SHORTEST_CACHE: &str = "60";

fn build(options: Value, deps: &Deps) -> Result<ArtifactStore, BuildError> {
    let Options { access, token, prefix, public_url, gzip, api_url } = options_of(ADAPTER.kind, options)?;
    let problem = |problem: String| BuildError::Options { kind: ADAPTER.kind, problem };
    let name: SecretName = token.parse().map_err(|error| problem(format!("`token`: {error}")))?;
    let token = deps.secrets.get(&name)?;
    let store_id = store_id(&token).ok_or_else(|| {
        problem(format!(
            "the secret `{name}` is not a read-write token of a Blob store, which looks like vercel_blob_rw_<store>_<secret>"
        ))
    })?;
    let transfers = http_client::build_for_transfers().map_err(|error| problem(error.to_string()))?;
    let prefix = Path::parse(&prefix).map_err(|error| problem(error.to_string()))?;
    let root = Arc::default();
    let public_base = match public_url {
        Some(url) => PublicBase::Stated(url.as_str().trim_end_matches('/').to_owned()),
        None => PublicBase::Learned(Arc::clone(&root)),
    };
    let label = format!("{} Vercel Blob store {store_id}", access.word());
    let api = Api {
        base: api_url.as_str().trim_end_matches('/').to_owned(),
        store_id,
        token,
        access,
        http: deps.http.clone(),
        transfers,
        secrets: deps.secrets.clone(),
        at_once: Api::permits(),
        root,
    };
    Ok(ArtifactStore {
        objects: Arc::new(VercelBlob { api: Arc::new(api) }),
        prefix,
        public_base,
        label,
        gzip,
    })
}

/// The fourth part of `vercel_blob_rw_<store>_<secret>`.
fn store_id(token: &Secret) -> Option<String> {
    let mut parts = token.reveal().strip_prefix("vercel_blob_rw_")?.split('_');
    let (id, secret) = (parts.next()?, parts.next()?);
    let is_plain = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric());
    (is_plain(id) && !secret.is_empty()).then(|| id.to_owned())
}

/// One store.
struct VercelBlob {
    api: Arc<Api>,
}

impl fmt::Display for VercelBlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VercelBlob({})", self.api.store_id)
    }
}

impl fmt::Debug for VercelBlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VercelBlob").field("store", &self.api.store_id).finish_non_exhaustive()
    }
}

/// A page of a list.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    blobs: Vec<Blob>,
    #[serde(default)]
    folders: Vec<String>,
    #[serde(default)]
    cursor: Option<String>,
    #[serde(default)]
    has_more: bool,
}

fn put_result(blob: Blob) -> PutResult {
    PutResult { e_tag: blob.etag, version: None, extensions: Default::default() }
}

/// The pathname of `location`, if the service takes it.
fn pathname(location: &Path) -> Result<String> {
    let refused = |said: String| Err(Refusal::senseless(Kind::Refused, said).about(location.as_ref()));
    match location.as_ref().chars().count() {
        0 => refused("a blob needs a name".to_owned()),
        length if length > LONGEST_PATHNAME => {
            refused(format!("its path has {length} characters; a blob's may have {LONGEST_PATHNAME}"))
        }
        _ => Ok(location.as_ref().to_owned()),
    }
}

impl VercelBlob {
    /// Headers of everything that makes a blob.
    fn put_headers(&self, about: &str, overwrite: bool, attributes: &Attributes) -> Result<HeaderMap> {
        let mut call = Call::new(Method::PUT, "/", about)
            .header("x-vercel-blob-access", self.api.access.word())?
            .header("x-add-random-suffix", "0")?
            .header("x-allow-overwrite", if overwrite { "1" } else { "0" })?;
        if overwrite {
            call = call.header("x-cache-control-max-age", SHORTEST_CACHE)?;
        }
        for (attribute, value) in attributes {
            call = match attribute {
                Attribute::ContentType => call.header("x-content-type", value)?,
                other => {
                    let said = format!("a blob has no {other:?}");
                    return Err(Refusal::senseless(Kind::Refused, said).about(about));
                }
            };
        }
        Ok(call.into_headers())
    }

    /// What the API says of a blob, by GET: its HEAD has no body.
    async fn head_blob(&self, location: &Path) -> Result<Blob> {
        let pathname = pathname(location)?;
        let call = Call::new(Method::GET, "", &pathname).query("url", &pathname);
        let blob: Blob = self.api.send(&call).await?;
        self.api.learn(&blob);
        Ok(blob)
    }

    async fn page(&self, mode: &str, prefix: &str, cursor: Option<String>) -> Result<Page> {
        let mut call = Call::new(Method::GET, "", prefix).query("limit", PAGE).query("mode", mode);
        if !prefix.is_empty() {
            call = call.query("prefix", prefix);
        }
        if let Some(cursor) = cursor {
            call = call.query("cursor", cursor);
        }
        let page: Page = self.api.send(&call).await?;
        if page.has_more && page.cursor.is_none() {
            let said = "the list goes on, and the answer does not say where";
            return Err(Refusal::senseless(Kind::Lost, said).about(prefix));
        }
        page.blobs.first().into_iter().for_each(|blob| self.api.learn(blob));
        Ok(page)
    }

    async fn delete_all(&self, pathnames: &[&str]) -> Result<()> {
        let about = pathnames.join(", ");
        let call = Call::new(Method::POST, "/delete", about).json(&json!({"urls": pathnames}))?;
        self.api.send_for_bytes(&call).await.map(drop)
    }
}

/// The blobs of a page; folders made on the dashboard are blobs whose name ends in `/`.
fn metas(page: &Page) -> impl Iterator<Item = Result<ObjectMeta>> + '_ {
    page.blobs.iter().filter(|blob| !blob.pathname.ends_with('/')).map(Blob::meta)
}

/// What names begin with that are below `prefix`.
fn below(prefix: Option<&Path>) -> String {
    match prefix {
        Some(prefix) if !prefix.as_ref().is_empty() => format!("{prefix}/"),
        Some(_) | None => String::new(),
    }
}

#[async_trait]
impl ObjectStore for VercelBlob {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let pathname = pathname(location)?;
        let (overwrite, e_tag) = match options.mode {
            PutMode::Create => (false, None),
            PutMode::Overwrite => (true, None),
            PutMode::Update(version) => match version.e_tag {
                Some(e_tag) => (true, Some(e_tag)),
                None => {
                    let said = "an update needs the ETag of what it replaces";
                    return Err(Refusal::senseless(Kind::Refused, said).about(&pathname));
                }
            },
        };
        let headers = self.put_headers(&pathname, overwrite, &options.attributes)?;
        let mut call = Call::new(Method::PUT, "/", &pathname).query("pathname", &pathname).headers(&headers);
        if let Some(e_tag) = e_tag {
            call = call.header("x-if-match", &e_tag)?;
        }
        let blob: Blob = self.api.send(&call.body(Bytes::from(payload))).await?;
        self.api.learn(&blob);
        Ok(put_result(blob))
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let pathname = pathname(location)?;
        let headers = self.put_headers(&pathname, false, &options.attributes)?;
        Ok(Box::new(Parts::begin(self.api.clone(), pathname, headers).await?))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        if options.version.is_some() {
            let said = "blobs have no versions";
            return Err(Refusal::senseless(Kind::Refused, said).about(location.as_ref()));
        }
        let blob = self.head_blob(location).await?;
        let meta = blob.meta()?;
        options.check_preconditions(&meta)?;
        let range = match &options.range {
            None => 0..meta.size,
            Some(range) => range.as_range(meta.size).map_err(|error| {
                Refusal::senseless(Kind::Refused, error.to_string()).about(location.as_ref())
            })?,
        };
        let stream = if options.head {
            futures::stream::empty().boxed()
        } else {
            self.api.download(&blob, meta.size, range.clone()).await?
        };
        let mut attributes = Attributes::new();
        if let Some(content_type) = blob.content_type {
            attributes.insert(Attribute::ContentType, content_type.into());
        }
        Ok(GetResult {
            payload: GetResultPayload::Stream(stream),
            meta,
            range,
            attributes,
            extensions: Default::default(),
        })
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let store = Self { api: self.api.clone() };
        let deleted = locations.ready_chunks(DELETED_AT_ONCE).then(move |batch| {
            let store = Self { api: store.api.clone() };
            async move {
                let (there, failed): (Vec<_>, Vec<_>) = batch.into_iter().partition(Result::is_ok);
                let there: Vec<Path> = there.into_iter().flatten().collect();
                let names: Vec<&str> = there.iter().map(Path::as_ref).collect();
                let mut all = failed;
                match store.delete_all(&names).await {
                    Ok(()) => all.extend(there.into_iter().map(Ok)),
                    Err(error) => all.push(Err(error)),
                }
                futures::stream::iter(all)
            }
        });
        deleted.flatten().boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (store, prefix) = (Self { api: self.api.clone() }, below(prefix));
        let pages = futures::stream::try_unfold(Some(None), move |at: Option<Option<String>>| {
            let (store, prefix) = (Self { api: store.api.clone() }, prefix.clone());
            async move {
                let Some(cursor) = at else { return Ok(None) };
                let page = store.page("expanded", &prefix, cursor).await?;
                let metas: Vec<_> = metas(&page).collect();
                let next = page.has_more.then_some(page.cursor);
                Ok::<_, object_store::Error>(Some((futures::stream::iter(metas), next)))
            }
        });
        pages.try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let below = below(prefix);
        let (mut common_prefixes, mut objects, mut cursor) = (vec![], vec![], None);
        loop {
            let page = self.page("folded", &below, cursor.take()).await?;
            for folder in &page.folders {
                common_prefixes.push(Path::parse(folder)?);
            }
            objects.extend(metas(&page).collect::<Result<Vec<_>>>()?);
            if !page.has_more {
                return Ok(ListResult { common_prefixes, objects, extensions: Default::default() });
            }
            cursor = page.cursor;
        }
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let (from, to) = (pathname(from)?, pathname(to)?);
        let overwrite = match options.mode {
            CopyMode::Overwrite => true,
            CopyMode::Create => false,
        };
        let headers = self.put_headers(&to, overwrite, &Attributes::new())?;
        let call =
            Call::new(Method::PUT, "", &to).query("pathname", &to).query("fromUrl", from).headers(&headers);
        let blob: Blob = self.api.send(&call).await?;
        self.api.learn(&blob);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_is_in_the_token() {
        let id = |token: &str| store_id(&Secret::new(token));
        assert_eq!(id("vercel_blob_rw_aB3dE_secret").as_deref(), Some("aB3dE"));
        assert_eq!(id("vercel_blob_rw_aB3dE_se_cret").as_deref(), Some("aB3dE"));
        for odd in
            ["", "vercel_blob_rw_aB3dE", "vercel_blob_rw_aB3dE_", "vercel_blob_rw__x", "vercel_blob_ro_a_x"]
        {
            assert_eq!(id(odd), None, "{odd}");
        }
    }
}
