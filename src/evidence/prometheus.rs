//! Counters in Prometheus: what each series grew by in each minute, added up by
//! version. <https://prometheus.io/docs/prometheus/latest/querying/api/>
//!
//! An empty answer is "unknown", never 0: the minutes in it stay unread. A
//! counter that began anew says nothing of that minute, so its version has none.

mod growth;

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use chrono::TimeDelta;
use reqwest::{Client, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use self::growth::{Growth, Series, growth};
use super::lines::printable;
use super::observation::one_more;
use super::source::{Address, unreadable};
use crate::adapter::{AdapterError, EvidenceSource};
use crate::domain::Timestamp;
use crate::domain::canary::latency_bucket;
use crate::domain::evidence::{EvidenceMinute, minute_of};
use crate::domain::expr::Scope;
use crate::domain::id::VersionName;
use crate::domain::pull::{Page, Wanted};
use crate::domain::workflow::evidence::{CounterErrors, PrometheusPull};
use crate::http_client::{exchange_within, refusal};
use crate::secret::Secrets;

/// Minutes of one query.
const CHUNK: TimeDelta = TimeDelta::hours(1);
/// Hours of one page of which nothing is known: a long outage is walked in pages, each with its position.
const EMPTY_CHUNKS: usize = 6;
/// Bytes of one answer.
const LONGEST: usize = 32 * 1024 * 1024;
const ACTION: &str = "answer a query";
const MINUTE: i64 = 60;

/// A Prometheus server, or what speaks its language.
pub(super) struct PrometheusSource {
    pub(super) address: Address,
    pub(super) counters: PrometheusPull,
    pub(super) http: Client,
    pub(super) secrets: Secrets,
}

#[derive(Deserialize)]
struct Answer {
    data: Data,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    result_type: String,
    result: Value,
}

#[derive(Deserialize)]
struct RawSeries {
    metric: BTreeMap<String, String>,
    #[serde(default)]
    values: Vec<(f64, String)>,
    value: Option<(f64, String)>,
}

impl PrometheusSource {
    async fn ask(&self, path: &str, parameters: &[(&str, String)]) -> Result<Vec<Series>, AdapterError> {
        let service = &self.address.shown;
        let request = self.http.get(format!("{}/api/v1/{path}", self.address.url.trim_end_matches('/')));
        let request = self.address.with_headers(request).query(parameters);
        let answer = exchange_within(service, ACTION, request, LONGEST).await?;
        if answer.status != StatusCode::OK {
            let said = serde_json::from_str::<Value>(&answer.body).ok();
            let said = said.as_ref().and_then(|said| said.get("error")?.as_str()).unwrap_or(&answer.body);
            let said = self.secrets.mask(said);
            return Err(refusal(service, ACTION, answer.status, &answer.headers, &said));
        }
        let read = serde_json::from_str::<Answer>(&answer.body);
        let data = read
            .map_err(|error| unreadable(service, &format!("its answer is not Prometheus': {error}")))?
            .data;
        if !matches!(data.result_type.as_str(), "matrix" | "vector") {
            let cause = format!("the query gives a {}, not counters", printable(&data.result_type));
            return Err(unreadable(service, &cause));
        }
        let raw: Vec<RawSeries> = serde_json::from_value(data.result)
            .map_err(|error| unreadable(service, &format!("its answer is not Prometheus': {error}")))?;
        Ok(raw.into_iter().map(series).collect())
    }

    async fn range(&self, selector: &str, from: i64, to: i64) -> Result<Vec<Series>, AdapterError> {
        let parameters = [
            ("query", selector.to_owned()),
            ("start", from.to_string()),
            ("end", to.to_string()),
            ("step", MINUTE.to_string()),
        ];
        self.ask("query_range", &parameters).await
    }

    /// What `selector` grew by from `from` to `to`.
    async fn growth(
        &self,
        selector: &str,
        from: i64,
        to: i64,
        begun: Option<i64>,
    ) -> Result<Growth, AdapterError> {
        let found = self.range(selector, from, to).await?;
        let is_new = |series: &Series| !series.points.contains_key(&from);
        let before = if found.iter().any(is_new) {
            // A series that was not there a moment ago may have been away for a while.
            let query = format!("last_over_time({selector}[1d])");
            self.ask("query", &[("query", query), ("time", from.to_string())]).await?
        } else {
            vec![]
        };
        Ok(growth(found, before, from, to, begun))
    }

    /// The minutes from `from` to `to`, up to the last that anything is known of.
    async fn minutes(&self, from: i64, to: i64) -> Result<Page, AdapterError> {
        let requests = self.growth(&self.counters.requests, from, to, None).await?;
        let Some(known) = requests.newest.filter(|newest| *newest > from) else { return Ok(Page::default()) };
        let errors = match &self.counters.errors {
            CounterErrors::Labelled(_) => None,
            CounterErrors::Counter(selector) => {
                Some(self.growth(selector, from, known, requests.oldest).await?)
            }
        };
        let latency = match &self.counters.latency {
            None => None,
            Some(selector) => Some(self.growth(selector, from, known, requests.oldest).await?),
        };
        let mut counting = Counting {
            source: self,
            page: Page::default(),
            minutes: BTreeMap::new(),
            versions: BTreeSet::new(),
        };
        counting.requests(&requests);
        if let Some(errors) = &errors {
            counting.errors(errors);
        }
        if let Some(latency) = &latency {
            counting.latencies(latency);
        }
        let mut dropped: BTreeSet<(String, i64)> = BTreeSet::new();
        for growth in [Some(&requests), errors.as_ref(), latency.as_ref()].into_iter().flatten() {
            for (labels, minute) in &growth.resets {
                dropped.extend(labels.get(&self.counters.version).map(|version| (version.clone(), *minute)));
            }
        }
        let mut page = counting.done(&dropped);
        page.through = Timestamp::from_timestamp(known, 0);
        Ok(page)
    }
}

#[async_trait]
impl EvidenceSource for PrometheusSource {
    async fn read(&self, wanted: &Wanted) -> Result<Page, AdapterError> {
        let delay = TimeDelta::from_std(self.counters.delay).unwrap_or_default();
        let (Some(begin), Some(end)) = (minute_of(wanted.since), minute_of(wanted.now - delay)) else {
            return Ok(Page::default());
        };
        let left = wanted.cursor.as_ref().and_then(|cursor| cursor.get("from")?.as_str()?.parse().ok());
        let mut from: Timestamp = left.map_or(begin, |left: Timestamp| left.max(begin));
        for _ in 0..EMPTY_CHUNKS {
            if from >= end {
                return Ok(Page::default());
            }
            let to = end.min(from + CHUNK);
            let mut page = self.minutes(from.timestamp(), to.timestamp()).await?;
            if page.through.is_some() {
                page.more = to < end;
                return Ok(page);
            }
            // Nothing is known of this hour; of a later one something may be.
            from = to;
        }
        let more = from < end;
        Ok(Page { more, cursor: more.then(|| json!({"from": from})), ..Page::default() })
    }
}

fn series(raw: RawSeries) -> Series {
    let points = raw.values.into_iter().chain(raw.value);
    let points = points.filter_map(|(at, text)| {
        let value: f64 = text.parse().ok()?;
        // NaN is unknown.
        (value.is_finite() && value >= 0.0).then(|| (at.round() as i64, value))
    });
    Series { labels: raw.metric, points: points.collect() }
}

struct Counting<'a> {
    source: &'a PrometheusSource,
    page: Page,
    minutes: BTreeMap<(VersionName, i64), Sums>,
    versions: BTreeSet<VersionName>,
}

#[derive(Default)]
struct Sums {
    requests: f64,
    errors: f64,
    /// No: what counts errors is not there, so that nothing is known of them.
    errors_known: bool,
    /// Requests up to each edge, by the edge in hundredths of a millisecond; the last has no edge.
    up_to: BTreeMap<u64, f64>,
}

impl Counting<'_> {
    fn refuse(&mut self, refusal: &str) {
        self.page.refused += 1;
        self.page.refusal = Some(printable(refusal));
    }

    fn version(&mut self, labels: &BTreeMap<String, String>) -> Option<VersionName> {
        let label = &self.source.counters.version;
        let Some(text) = labels.get(label) else {
            self.page.problem = Some(format!("a series of `requests` has no label `{label}`"));
            return None;
        };
        let version = text.parse::<VersionName>().map_err(|error| error.to_string());
        let kept = version.and_then(|version| one_more(&mut self.versions, &version).map(|()| version));
        kept.map_err(|refusal| self.refuse(&refusal)).ok()
    }

    fn requests(&mut self, growth: &Growth) {
        for (labels, minutes) in &growth.series {
            let Some(version) = self.version(labels) else { continue };
            let is_error = match &self.source.counters.errors {
                CounterErrors::Counter(_) => None,
                CounterErrors::Labelled(condition) => {
                    let row = labels.iter().map(|(name, value)| (name.clone(), Value::from(value.clone())));
                    let scope = Scope::new().with("row", Value::Object(row.collect()));
                    match condition.is_true(&scope) {
                        Ok(is_error) => Some(is_error),
                        Err(error) => {
                            self.page.problem =
                                Some(format!("`error_if` over the labels of `requests`: {error}"));
                            continue;
                        }
                    }
                }
            };
            for (minute, grown) in minutes {
                let sums = self.minutes.entry((version.clone(), *minute)).or_default();
                sums.requests += grown;
                if let Some(is_error) = is_error {
                    sums.errors_known = true;
                    sums.errors += if is_error { *grown } else { 0.0 };
                }
            }
        }
    }

    fn errors(&mut self, growth: &Growth) {
        for (labels, minutes) in &growth.series {
            let Some(version) = self.version(labels) else { continue };
            for ((known, minute), sums) in &mut self.minutes {
                if *known == version && growth.knows(labels, *minute) {
                    sums.errors_known = true;
                    sums.errors += minutes.get(minute).copied().unwrap_or_default();
                }
            }
        }
    }

    fn latencies(&mut self, growth: &Growth) {
        for (labels, minutes) in &growth.series {
            let Some(version) = self.version(labels) else { continue };
            let edge = labels.get("le").and_then(|edge| edge.parse::<f64>().ok());
            let Some(edge) = edge.filter(|edge| *edge >= 0.0) else {
                self.page.problem =
                    Some("`latency` has series without a number in `le`: select `…_bucket`".to_owned());
                continue;
            };
            // A cast saturates: no edge is the last one.
            let edge = (edge * self.source.counters.latency_unit_ms * 100.0).round() as u64;
            for (minute, grown) in minutes {
                if let Some(sums) = self.minutes.get_mut(&(version.clone(), *minute)) {
                    *sums.up_to.entry(edge).or_default() += grown;
                }
            }
        }
    }

    /// Versions whose `errors` are of other requests: more than they served. A few more may be of requests that were
    /// not over when the counters were read.
    fn foreign_errors(&self) -> BTreeSet<VersionName> {
        let mut sums: BTreeMap<&VersionName, (f64, f64)> = BTreeMap::new();
        for ((version, _), minute) in &self.minutes {
            let (requests, errors) = sums.entry(version).or_default();
            *requests += minute.requests;
            *errors += minute.errors;
        }
        let is_more = |(requests, errors): &(f64, f64)| *errors > 1.1 * requests + 5.0;
        sums.into_iter().filter(|(_, sums)| is_more(sums)).map(|(version, _)| version.clone()).collect()
    }

    fn done(mut self, dropped: &BTreeSet<(String, i64)>) -> Page {
        let foreign = self.foreign_errors();
        if let Some(version) = foreign.first() {
            self.page.problem = Some(format!(
                "`errors` of {version} grew by more than its `requests`: neither count; select errors of the same requests"
            ));
        }
        for ((version, at), sums) in self.minutes {
            if foreign.contains(&version) {
                continue;
            }
            if !sums.errors_known {
                self.page.problem = Some(format!(
                    "no series of `errors` is of {version}: its requests do not count; let the app begin the counter \
                     at 0, or use `error_if`"
                ));
                continue;
            }
            let Some(minute) = Timestamp::from_timestamp(at, 0) else { continue };
            let n = sums.requests.round() as u64;
            if n == 0 || dropped.contains(&(version.to_string(), at)) {
                continue;
            }
            let mut counted = EvidenceMinute::empty(version, minute);
            counted.counts.n = n;
            counted.counts.errors = (sums.errors.round() as u64).min(n);
            let mut below = 0.0;
            for (edge, up_to) in sums.up_to {
                let within = (up_to - below).round().max(0.0) as u64;
                counted.latency[latency_bucket(edge as f64 / 100.0)] += within;
                counted.counts.timed += within;
                below = up_to.max(below);
            }
            self.page.minutes.push(counted);
        }
        self.page
    }
}
