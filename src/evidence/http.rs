//! Rows of JSON answers to GET: from a time on, page by page, or after a cursor
//! that the app gives.

use std::collections::BTreeMap;

use async_trait::async_trait;
use chrono::SecondsFormat;
use reqwest::Client;
use serde_json::{Map, Value, json};

use super::rows::{Found, Rows, moment};
use super::source::{Address, unreadable};
use crate::adapter::{AdapterError, EvidenceSource};
use crate::domain::Timestamp;
use crate::domain::expr::{Scope, Template};
use crate::domain::pull::{Page, Wanted};
use crate::domain::workflow::evidence::HttpPull;
use crate::http_client::{exchange_within, refusal};
use crate::secret::Secrets;

/// Bytes of one answer.
const LONGEST: usize = 32 * 1024 * 1024;
const ACTION: &str = "give its evidence";

/// An endpoint of the app's.
pub(super) struct HttpSource {
    /// Headers, and how the address is shown.
    pub(super) address: Address,
    /// The secrets of the address.
    pub(super) scope: Scope,
    pub(super) rows: HttpPull,
    pub(super) http: Client,
    pub(super) secrets: Secrets,
}

/// Where a list was left.
struct Position {
    next: String,
    /// The newest row of the pages before.
    newest: Option<Timestamp>,
    /// The list is read from its beginning, so that old rows are among what comes.
    from_the_beginning: bool,
}

impl Position {
    fn of(cursor: &Value) -> Option<Self> {
        let newest = cursor.get("newest").and_then(|newest| newest.as_str()?.parse().ok());
        let from_the_beginning =
            cursor.get("from_the_beginning").and_then(Value::as_bool).unwrap_or_default();
        Some(Self { next: cursor.get("next")?.as_str()?.to_owned(), newest, from_the_beginning })
    }
}

impl HttpSource {
    /// Whether every list begins at a time; else the app's cursor says where, for good.
    fn begins_at_a_time(&self) -> bool {
        mentions(&self.rows.url, "since")
    }

    fn url(&self, wanted: &Wanted, next: &str) -> Result<String, AdapterError> {
        let since = wanted.since.to_rfc3339_opts(SecondsFormat::Millis, true);
        let scope =
            self.scope.clone().with("since", json!(encoded(&since))).with("cursor", json!(encoded(next)));
        let url = self.rows.url.render(&scope);
        url.map_err(|error| unreadable(&self.address.shown, &error.to_string()))
    }

    fn found(&self, item: Value, wanted: &Wanted, from_the_beginning: bool) -> Option<Found> {
        let refused = |why: &str, row| Some(Found { at: Err(why.to_owned()), cursor: Value::Null, row });
        let item = match item {
            Value::Object(item) => item,
            other => return refused("a row is no object", Map::from_iter([("row".to_owned(), other)])),
        };
        let row = with_fields(item, &self.rows.fields);
        let at = match row.get("at").map(moment) {
            Some(Ok(at)) => at,
            Some(Err(why)) => return refused(&why, row),
            None => return refused("`at` is missing", row),
        };
        // Of a list that goes on after a cursor, what comes late comes once.
        let is_old = at < wanted.since && (self.begins_at_a_time() || from_the_beginning);
        // One of the future comes again when its time is there, if the list begins at a time.
        let is_early = at >= wanted.until && self.begins_at_a_time();
        let at = if self.begins_at_a_time() { at } else { at.min(wanted.now) };
        (!is_old && !is_early).then_some(Found { at: Ok(at), cursor: Value::Null, row })
    }
}

#[async_trait]
impl EvidenceSource for HttpSource {
    async fn read(&self, wanted: &Wanted) -> Result<Page, AdapterError> {
        let service = &self.address.shown;
        let position = wanted.cursor.as_ref().and_then(Position::of);
        let here = position.as_ref().map_or("", |position| position.next.as_str());
        let request = self.address.with_headers(self.http.get(self.url(wanted, here)?));
        let answer = exchange_within(service, ACTION, request, LONGEST).await?;
        if !answer.status.is_success() {
            return Err(refusal(
                service,
                ACTION,
                answer.status,
                &answer.headers,
                &self.secrets.mask(&answer.body),
            ));
        }
        let mut body: Value = serde_json::from_str(&answer.body)
            .map_err(|error| unreadable(service, &format!("its answer is no JSON: {error}")))?;
        let next = self.rows.next.as_ref().and_then(|path| text(at_path(&body, path)?));
        let next = next.filter(|next| next != here && !next.is_empty());
        let list = self.rows.rows.iter().try_fold(&mut body, |value, key| value.get_mut(key));
        let Some(Value::Array(items)) = list.map(Value::take) else {
            let place = self.rows.rows.join(".");
            let place =
                if place.is_empty() { "its answer".to_owned() } else { format!("`{place}` of its answer") };
            return Err(unreadable(service, &format!("{place} is no list")));
        };
        let more = next.is_some() && !items.is_empty();
        let mut newest = position.as_ref().and_then(|position| position.newest);
        let mut rows = Rows::new(self.rows.error_if.as_ref(), wanted);
        // Nor is anything of use that is older than what was read, and than what this canary needs.
        let beginning = position.as_ref().is_none_or(|position| position.from_the_beginning);
        let drops = beginning || wanted.through.is_some_and(|through| wanted.since > through);
        for found in items.into_iter().filter_map(|item| self.found(item, wanted, drops)) {
            newest = newest.max(found.at.as_ref().ok().copied());
            rows.take(found);
        }
        let mut page = rows.page();
        page.more = more;
        if more {
            page.cursor =
                next.map(|next| json!({"next": next, "newest": newest, "from_the_beginning": beginning}));
        } else {
            page.through = newest;
            // The list goes on here; one that begins at a time begins at the next one.
            let last = next.or(position.map(|position| position.next)).filter(|_| !self.begins_at_a_time());
            page.cursor = last.map(|last| json!({"next": last}));
        }
        Ok(page)
    }
}

/// Whether a template uses a root.
pub(super) fn mentions(template: &Template, root: &str) -> bool {
    template.expressions().any(|expr| expr.mentions(root))
}

/// A row with the fields that are elsewhere in it under their own names.
fn with_fields(item: Map<String, Value>, fields: &BTreeMap<String, Vec<String>>) -> Map<String, Value> {
    let item = Value::Object(item);
    let moved: Vec<(String, Value)> = fields
        .iter()
        .map(|(name, path)| (name.clone(), at_path(&item, path).cloned().unwrap_or(Value::Null)))
        .collect();
    let Value::Object(mut row) = item else { return Map::new() };
    row.extend(moved);
    row
}

fn at_path<'v>(value: &'v Value, path: &[String]) -> Option<&'v Value> {
    path.iter().try_fold(value, |value, key| value.get(key))
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// A value in an address.
fn encoded(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}
