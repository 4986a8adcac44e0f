//! The store: what is in it, what may be put there, what it says.

use std::collections::{BTreeMap, BTreeSet};

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Response, StatusCode, header};
use object_store::path::Path;
use refit::clock::{Clock, SystemClock};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Asked;

const LONGEST_PATHNAME: usize = 950;
const SMALLEST_PART: usize = 5 * 1024 * 1024;
const LONGEST_PAGE: usize = 1000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Public,
    Private,
}

impl Access {
    pub fn word(self) -> &'static str {
        match self {
            Access::Public => "public",
            Access::Private => "private",
        }
    }
}

/// A request that is not done.
#[derive(Debug)]
pub struct Refused {
    pub status: u16,
    pub code: &'static str,
    pub message: String,
}

impl Refused {
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }
}

fn bad(message: impl Into<String>) -> Refused {
    Refused::new(400, "bad_request", message)
}

pub fn no_token() -> Refused {
    Refused::new(403, "forbidden", "Access denied, please provide a valid token for this resource.")
}

fn not_there() -> Refused {
    Refused::new(404, "not_found", "The requested blob does not exist")
}

/// A path without its percent-encoding; the store's own part of a download's address is dropped.
pub fn decoded(below: &str) -> String {
    let path = Path::from_url_path(below).unwrap();
    path.as_ref().split_once('/').map(|(_, pathname)| pathname.to_owned()).unwrap_or_default()
}

#[derive(Debug, Clone)]
struct Blob {
    bytes: Bytes,
    content_type: String,
    cache_seconds: u64,
    e_tag: String,
    uploaded_at: String,
}

struct Upload {
    pathname: String,
    parts: BTreeMap<usize, (String, Bytes)>,
}

pub struct Blobs {
    access: Access,
    /// Before every pathname.
    files_url: String,
    blobs: BTreeMap<String, Blob>,
    uploads: BTreeMap<String, Upload>,
    begun: usize,
    pub longest_page: usize,
}

fn e_tag(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let hex = hex::encode(&hash[..16]);
    format!("\"{hex}\"")
}

fn type_of(pathname: &str) -> &'static str {
    match pathname.rsplit_once('.').map(|(_, extension)| extension) {
        Some("json") => "application/json",
        Some("txt") => "text/plain",
        Some("gz") => "application/gzip",
        _ => "application/octet-stream",
    }
}

impl Blobs {
    pub fn new(access: Access, files_url: String) -> Self {
        let (blobs, uploads) = (BTreeMap::new(), BTreeMap::new());
        Self { access, files_url, blobs, uploads, begun: 0, longest_page: LONGEST_PAGE }
    }

    pub fn pathnames(&self) -> Vec<String> {
        self.blobs.keys().cloned().collect()
    }

    /// Whether a request to the API has what every one must have.
    pub fn admit(&self, asked: &Asked<'_>, token: &str, store: &str) -> Result<(), Refused> {
        if asked.header("authorization") != Some(&format!("Bearer {token}")) {
            return Err(no_token());
        }
        if asked.header("x-api-version") != Some("12") {
            return Err(bad("Unsupported x-api-version"));
        }
        match asked.header("x-vercel-blob-store-id") {
            Some(id) if id != store => Err(Refused::new(404, "store_not_found", "This store does not exist")),
            Some(_) | None => Ok(()),
        }
    }

    /// The pathname that may be written, after all rules but those of its content.
    fn writable(&self, asked: &Asked<'_>) -> Result<String, Refused> {
        let pathname = asked.query("pathname").unwrap_or_default().to_owned();
        if pathname.is_empty() {
            return Err(bad("pathname is required"));
        }
        if pathname.chars().count() > LONGEST_PATHNAME {
            return Err(bad("pathname is too long, maximum length is 950"));
        }
        if pathname.contains("//") {
            return Err(bad("pathname cannot contain \"//\", please encode it if needed"));
        }
        match asked.header("x-vercel-blob-access") {
            Some(access) if access == self.access.word() => {}
            Some(access) => {
                let message = format!(
                    "Cannot use {access} access on a {} store. The store is configured with {} access.",
                    self.access.word(),
                    self.access.word()
                );
                return Err(bad(message));
            }
            None => return Err(bad("access must be \"public\" or \"private\"")),
        }
        if cache_seconds(asked)? < 60 {
            return Err(bad("cacheControlMaxAge must be at least 60 seconds"));
        }
        if asked.header("x-add-random-suffix") == Some("1") {
            let (stem, extension) = pathname.rsplit_once('.').unwrap_or((&pathname, ""));
            let suffix = uuid::Uuid::new_v4().simple().to_string();
            let dot = if extension.is_empty() { "" } else { "." };
            return Ok(format!("{stem}-{suffix}{dot}{extension}"));
        }
        self.may_replace(asked, &pathname)?;
        Ok(pathname)
    }

    fn may_replace(&self, asked: &Asked<'_>, pathname: &str) -> Result<(), Refused> {
        let there = self.blobs.get(pathname);
        match (asked.header("x-if-match"), there) {
            (Some(wanted), Some(blob)) if wanted == blob.e_tag => Ok(()),
            (Some(_), _) => {
                Err(Refused::new(412, "precondition_failed", "Precondition failed: ETag mismatch."))
            }
            (None, Some(_)) if asked.header("x-allow-overwrite") != Some("1") => Err(bad(
                "This blob already exists, use `allowOverwrite: true` if you want to overwrite it. Or `addRandomSuffix: true` to generate a unique filename.",
            )),
            (None, _) => Ok(()),
        }
    }

    fn keep(&mut self, asked: &Asked<'_>, pathname: String, bytes: Bytes) -> Result<Value, Refused> {
        let content_type = asked.header("x-content-type").unwrap_or_else(|| type_of(&pathname)).to_owned();
        let blob = Blob {
            content_type,
            cache_seconds: cache_seconds(asked)?,
            e_tag: e_tag(&bytes),
            bytes,
            uploaded_at: SystemClock.now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
        };
        self.blobs.insert(pathname.clone(), blob);
        Ok(self.shown(&pathname))
    }

    fn url(&self, pathname: &str) -> String {
        let mut url = url::Url::parse(&self.files_url).unwrap();
        url.path_segments_mut().unwrap().extend(pathname.split('/'));
        url.into()
    }

    /// As put answers.
    fn shown(&self, pathname: &str) -> Value {
        let (blob, url) = (&self.blobs[pathname], self.url(pathname));
        let name = pathname.rsplit('/').next().unwrap_or_default();
        json!({
            "url": url, "downloadUrl": format!("{url}?download=1"), "pathname": pathname,
            "contentType": blob.content_type,
            "contentDisposition": format!("inline; filename=\"{name}\""), "etag": blob.e_tag,
        })
    }

    pub fn put(&mut self, asked: &Asked<'_>, body: Bytes) -> Result<Value, Refused> {
        let pathname = self.writable(asked)?;
        self.keep(asked, pathname, body)
    }

    pub fn begin(&mut self, asked: &Asked<'_>) -> Result<Value, Refused> {
        let pathname = self.writable(asked)?;
        self.begun += 1;
        let id = format!("upload/{}", self.begun);
        self.uploads.insert(id.clone(), Upload { pathname: pathname.clone(), parts: BTreeMap::new() });
        Ok(json!({"uploadId": id, "key": format!("keys/{pathname}")}))
    }

    fn upload(&mut self, asked: &Asked<'_>) -> Result<(String, &mut Upload), Refused> {
        let gone = || Refused::new(404, "not_found", "The requested upload does not exist");
        let id = asked.header("x-mpu-upload-id").ok_or_else(|| bad("x-mpu-upload-id is missing"))?;
        let key = asked.header("x-mpu-key").ok_or_else(|| bad("x-mpu-key is missing"))?;
        let upload = self.uploads.get_mut(id).ok_or_else(gone)?;
        let decoded = Path::from_url_path(key).map_err(|_| bad("x-mpu-key is not encoded"))?;
        if decoded.as_ref() != format!("keys/{}", upload.pathname) || !key.is_ascii() {
            return Err(bad("x-mpu-key is not the one that was given"));
        }
        Ok((id.to_owned(), upload))
    }

    pub fn part(&mut self, asked: &Asked<'_>, body: Bytes) -> Result<Value, Refused> {
        let number = asked.header("x-mpu-part-number").and_then(|number| number.parse().ok());
        let number: usize = number.filter(|number| *number >= 1).ok_or_else(|| bad("x-mpu-part-number"))?;
        let (_, upload) = self.upload(asked)?;
        let tag = e_tag(&body);
        upload.parts.insert(number, (tag.clone(), body));
        Ok(json!({"etag": tag}))
    }

    /// Parts come in any order, as the real client sends them.
    pub fn complete(&mut self, asked: &Asked<'_>, body: &[u8]) -> Result<Value, Refused> {
        let said: Value = serde_json::from_slice(body).map_err(|error| bad(error.to_string()))?;
        let said = said.as_array().ok_or_else(|| bad("parts are missing"))?;
        let mut parts: Vec<(usize, String)> = vec![];
        for part in said {
            let number = part["partNumber"].as_u64().ok_or_else(|| bad("partNumber"))?;
            let tag = part["etag"].as_str().ok_or_else(|| bad("etag"))?;
            parts.push((number as usize, tag.to_owned()));
        }
        parts.sort();
        let (id, upload) = self.upload(asked)?;
        let pathname = upload.pathname.clone();
        let mut bytes: Vec<Bytes> = vec![];
        for (at, (number, tag)) in parts.iter().enumerate() {
            let there = upload.parts.get(number).filter(|(kept, _)| kept == tag && *number == at + 1);
            bytes.push(there.ok_or_else(|| bad(format!("part {number} was not uploaded")))?.1.clone());
        }
        let body = bytes.split_last().map(|(_, but_the_last)| but_the_last).unwrap_or_default();
        if body.iter().any(|part| part.len() < SMALLEST_PART || part.len() != body[0].len()) {
            return Err(bad("parts but the last must be equal, and at least 5 MiB"));
        }
        self.may_replace(asked, &pathname)?;
        self.uploads.remove(&id);
        self.keep(asked, pathname, bytes.concat().into())
    }

    pub fn list(&self, asked: &Asked<'_>) -> Result<Value, Refused> {
        let limit: usize = match asked.query("limit") {
            Some(limit) => limit.parse().map_err(|_| bad("limit"))?,
            None => LONGEST_PAGE,
        };
        if limit > LONGEST_PAGE {
            return Err(bad("limit must be at most 1000"));
        }
        let (limit, prefix) = (limit.min(self.longest_page), asked.query("prefix").unwrap_or_default());
        let folded = match asked.query("mode") {
            None | Some("expanded") => false,
            Some("folded") => true,
            Some(_) => return Err(bad("mode")),
        };
        // What a page counts: blobs, and folders in folded mode.
        let entry = |pathname: &str| match pathname[prefix.len()..].find('/') {
            Some(at) if folded => pathname[..=prefix.len() + at].to_owned(),
            Some(_) | None => pathname.to_owned(),
        };
        let names = self.blobs.keys().filter(|name| name.starts_with(prefix)).map(|name| entry(name));
        let names: BTreeSet<String> = names.collect();
        let after = match asked.query("cursor") {
            Some(cursor) => String::from_utf8(unhex(cursor)).map_err(|_| bad("cursor"))?,
            None => String::new(),
        };
        let mut rest = names.into_iter().filter(|name| *name > after);
        let page: Vec<String> = rest.by_ref().take(limit).collect();
        let has_more = rest.next().is_some();
        let (folders, blobs): (Vec<String>, Vec<String>) =
            page.iter().cloned().partition(|name| folded && !self.blobs.contains_key(name));
        let blobs: Vec<Value> = blobs.iter().map(|name| self.listed(name)).collect();
        let mut said = json!({"blobs": blobs, "hasMore": has_more});
        if folded {
            said["folders"] = json!(folders);
        }
        if let Some(last) = page.last().filter(|_| has_more) {
            said["cursor"] = hex::encode(last).into();
        }
        Ok(said)
    }

    fn listed(&self, pathname: &str) -> Value {
        let (blob, url) = (&self.blobs[pathname], self.url(pathname));
        json!({
            "url": url, "downloadUrl": format!("{url}?download=1"), "pathname": pathname,
            "size": blob.bytes.len(), "uploadedAt": blob.uploaded_at, "etag": blob.e_tag,
        })
    }

    /// The pathname behind an address or a pathname.
    fn named(&self, text: &str) -> Option<String> {
        let pathname = match text.strip_prefix(&self.files_url) {
            Some(below) => {
                let below = below.split('?').next().unwrap_or_default();
                Path::from_url_path(below).ok()?.to_string()
            }
            None => text.to_owned(),
        };
        self.blobs.contains_key(&pathname).then_some(pathname)
    }

    pub fn head(&self, asked: &Asked<'_>) -> Result<Value, Refused> {
        let pathname = self.named(asked.query("url").unwrap_or_default()).ok_or_else(not_there)?;
        let (mut said, blob) = (self.shown(&pathname), &self.blobs[&pathname]);
        said["size"] = json!(blob.bytes.len());
        said["uploadedAt"] = json!(blob.uploaded_at);
        said["cacheControl"] = json!(format!("public, max-age={}", blob.cache_seconds));
        Ok(said)
    }

    pub fn delete(&mut self, asked: &Asked<'_>, body: &[u8]) -> Result<Value, Refused> {
        let said: Value = serde_json::from_slice(body).map_err(|error| bad(error.to_string()))?;
        let urls = said["urls"].as_array().ok_or_else(|| bad("urls is required"))?;
        if let Some(wanted) = asked.header("x-if-match") {
            let there = urls.first().and_then(|url| self.named(url.as_str()?));
            let matches = there.is_some_and(|pathname| self.blobs[&pathname].e_tag == wanted);
            if urls.len() != 1 || !matches {
                return Err(Refused::new(412, "precondition_failed", "Precondition failed: ETag mismatch."));
            }
        }
        for url in urls {
            if let Some(pathname) = url.as_str().and_then(|url| self.named(url)) {
                self.blobs.remove(&pathname);
            }
        }
        Ok(Value::Null)
    }

    pub fn copy(&mut self, asked: &Asked<'_>, rename: bool) -> Result<Value, Refused> {
        let from = self.named(asked.query("fromUrl").unwrap_or_default()).ok_or_else(not_there)?;
        let to = self.writable(asked)?;
        let bytes = self.blobs[&from].bytes.clone();
        let said = self.keep(asked, to, bytes)?;
        if rename {
            self.blobs.remove(&from);
        }
        Ok(said)
    }

    /// What the host that shows blobs answers.
    pub fn download(&self, asked: &Asked<'_>, token: &str) -> Result<Response<Body>, Refused> {
        let authorized = asked.header("authorization") == Some(&format!("Bearer {token}"));
        match self.access {
            Access::Private if !authorized => return Err(no_token()),
            Access::Private | Access::Public => {}
        }
        let blob = self.blobs.get(&decoded(asked.below)).ok_or_else(not_there)?;
        let (size, mut status) = (blob.bytes.len(), StatusCode::OK);
        let mut bytes = blob.bytes.clone();
        let mut response = Response::new(Body::empty());
        if let Some(range) = asked.header("range") {
            let (from, to) = range
                .strip_prefix("bytes=")
                .and_then(|range| range.split_once('-'))
                .and_then(|(from, to)| Some((from.parse::<usize>().ok()?, to.parse::<usize>().ok()?)))
                .filter(|(from, to)| from <= to && *from < size)
                .ok_or_else(|| Refused::new(416, "bad_request", "range"))?;
            let to = (to + 1).min(size);
            bytes = bytes.slice(from..to);
            status = StatusCode::PARTIAL_CONTENT;
            let said = format!("bytes {from}-{}/{size}", to - 1);
            response.headers_mut().insert(header::CONTENT_RANGE, HeaderValue::from_str(&said).unwrap());
        }
        let headers = response.headers_mut();
        headers.insert(header::ETAG, HeaderValue::from_str(&blob.e_tag).unwrap());
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_str(&blob.content_type).unwrap());
        *response.body_mut() = Body::from(bytes);
        *response.status_mut() = status;
        Ok(response)
    }
}

fn cache_seconds(asked: &Asked<'_>) -> Result<u64, Refused> {
    const MONTH: u64 = 30 * 24 * 3600;
    let said = asked.header("x-cache-control-max-age").map(str::parse);
    said.transpose().map_err(|_| bad("cacheControlMaxAge")).map(|said| said.unwrap_or(MONTH))
}

fn unhex(text: &str) -> Vec<u8> {
    let pairs = text.as_bytes().chunks(2);
    pairs.filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}
