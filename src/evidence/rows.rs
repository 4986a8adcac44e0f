//! Rows of a source that keeps one for each request: a JSON object each, all of
//! it hostile.

use std::collections::BTreeSet;

use chrono::TimeDelta;
use serde_json::{Map, Number, Value};

use super::fingerprint;
use super::lines::{Refused, printable};
use super::observation::{checked, one_more};
use crate::domain::Timestamp;
use crate::domain::evidence::Observation;
use crate::domain::expect::parse_timestamp;
use crate::domain::expr::{Expr, Scope};
use crate::domain::id::VersionName;
use crate::domain::pull::{Page, Wanted};

/// Whole numbers from here on are milliseconds since 1970, below it seconds.
pub(super) const MILLISECONDS: i64 = 100_000_000_000;

/// A row as the source gave it.
pub(super) struct Found {
    /// When the request was served; a row that does not say so is refused, and is not new or old.
    pub(super) at: Result<Timestamp, Refused>,
    /// Where the rows after it begin.
    pub(super) cursor: Value,
    /// Its fields by name.
    pub(super) row: Map<String, Value>,
}

/// Rows on their way to a page.
pub(super) struct Rows<'a> {
    error_if: Option<&'a Expr>,
    wanted: &'a Wanted,
    versions: BTreeSet<VersionName>,
    taken: Vec<Taken>,
}

struct Taken {
    at: Option<Timestamp>,
    cursor: Value,
    understood: Result<Observation, Refused>,
    /// What a row without a time is known by.
    mark: String,
}

impl<'a> Rows<'a> {
    pub(super) fn new(error_if: Option<&'a Expr>, wanted: &'a Wanted) -> Self {
        Self { error_if, wanted, versions: BTreeSet::new(), taken: vec![] }
    }

    pub(super) fn take(&mut self, found: Found) {
        let Found { at, cursor, row } = found;
        let time = at.as_ref().ok().copied();
        let mark = if time.is_some() { String::new() } else { mark(&row) };
        let understood = at
            .and_then(|at| observation(at, row, self.error_if))
            .and_then(|observation| one_more(&mut self.versions, &observation.version).map(|()| observation));
        self.taken.push(Taken { at: time, cursor, understood, mark });
    }

    pub(super) fn len(&self) -> usize {
        self.taken.len()
    }

    /// The page of these rows, which came in the order of their times.
    pub(super) fn in_order(self, more: bool) -> Page {
        let through = self.taken.iter().rev().find_map(|taken| taken.at);
        let cursor = self.taken.last().map(|last| last.cursor.clone());
        let mut page = self.page();
        page.through = through;
        page.cursor = cursor.filter(|_| more);
        page.more = more;
        page
    }

    /// The page of these rows, wherever it ends.
    pub(super) fn page(self) -> Page {
        let mut page = Page::default();
        for taken in self.taken {
            match taken.understood {
                Ok(observation) => page.observations.push(observation),
                Err(refusal) if taken.at.is_none() => {
                    page.untimed.push(taken.mark);
                    page.refusal = Some(printable(&refusal));
                }
                // One that was read before was counted then.
                Err(refusal) if self.wanted.through.is_none_or(|through| taken.at > Some(through)) => {
                    page.refused += 1;
                    page.refusal = Some(printable(&refusal));
                }
                Err(_) => {}
            }
        }
        page
    }
}

fn observation(
    at: Timestamp,
    row: Map<String, Value>,
    error_if: Option<&Expr>,
) -> Result<Observation, Refused> {
    let (request_id, version) = (id(&row, "request_id")?, id(&row, "version")?);
    let (latency_ms, prediction) = (number(&row, "latency_ms")?, number(&row, "prediction")?);
    let (stated, cold) = (flag(&row, "ok")?, flag(&row, "cold")?.unwrap_or(false));
    let ok = match error_if {
        None => stated.ok_or("`ok` is missing")?,
        Some(condition) => {
            let scope = Scope::new().with("row", Value::Object(row));
            !condition.is_true(&scope).map_err(|error| format!("`error_if`: {error}"))?
        }
    };
    let version = version.parse::<VersionName>().map_err(|error| error.to_string())?;
    checked(Observation { request_id, version, at, ok, latency_ms, cold, prediction, shadow: vec![] })
}

fn given<'r>(row: &'r Map<String, Value>, name: &str) -> Option<&'r Value> {
    row.get(name).filter(|value| !value.is_null())
}

/// A name; apps number their rows, too.
fn id(row: &Map<String, Value>, name: &str) -> Result<String, Refused> {
    match given(row, name) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Number(number)) if number.is_i64() || number.is_u64() => Ok(number.to_string()),
        Some(_) => Err(format!("`{name}` is neither a text nor a whole number")),
        None => Err(format!("`{name}` is missing")),
    }
}

fn number(row: &Map<String, Value>, name: &str) -> Result<Option<f64>, Refused> {
    match given(row, name) {
        None => Ok(None),
        Some(Value::Number(number)) => Ok(number.as_f64()),
        Some(_) => Err(format!("`{name}` is not a number")),
    }
}

/// Databases without booleans have 0 and 1.
fn flag(row: &Map<String, Value>, name: &str) -> Result<Option<bool>, Refused> {
    match given(row, name) {
        None => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(Value::Number(number)) if number.as_i64() == Some(0) => Ok(Some(false)),
        Some(Value::Number(number)) if number.as_i64() == Some(1) => Ok(Some(true)),
        Some(_) => Err(format!("`{name}` is neither true nor false")),
    }
}

/// A time as apps write it: RFC 3339, the same in UTC without saying so, or seconds or milliseconds since 1970.
pub(super) fn moment(value: &Value) -> Result<Timestamp, Refused> {
    let read = match value {
        Value::String(text) => moment_of_text(text),
        Value::Number(number) => moment_of_number(number),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    };
    read.ok_or_else(|| {
        "`at` is no time: neither such as \"2026-03-01T12:00:00Z\" nor seconds or milliseconds since 1970"
            .to_owned()
    })
}

/// A day alone is no time of a request.
fn moment_of_text(text: &str) -> Option<Timestamp> {
    parse_timestamp(text).filter(|_| text.len() > "2026-03-01".len())
}

/// The same for the same row, whichever process reads it.
fn mark(row: &Map<String, Value>) -> String {
    let text = Value::Object(row.clone()).to_string();
    fingerprint([text.as_str()])
}

fn moment_of_number(number: &Number) -> Option<Timestamp> {
    let since = match number.as_i64() {
        Some(whole) if whole >= MILLISECONDS => TimeDelta::try_milliseconds(whole),
        Some(whole) => TimeDelta::try_seconds(whole),
        None => {
            let real = number.as_f64()?;
            let milliseconds = if real >= MILLISECONDS as f64 { real } else { real * 1000.0 };
            // Beyond 2^53 a number has no milliseconds, and no calendar has such a year.
            (milliseconds.abs() < 9e15)
                .then(|| TimeDelta::try_milliseconds(milliseconds.round() as i64))
                .flatten()
        }
    };
    Timestamp::UNIX_EPOCH.checked_add_signed(since?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn wanted(through: Option<&str>) -> Wanted {
        Wanted {
            since: at("2026-03-01T11:00:00Z"),
            until: at("2026-03-01T12:01:00Z"),
            through: through.map(at),
            cursor: None,
            now: at("2026-03-01T12:00:00Z"),
        }
    }

    fn understood(row: Value, error_if: Option<&str>) -> Result<Observation, Refused> {
        let Value::Object(row) = row else { panic!("a row is an object") };
        let condition = error_if.map(|text| Expr::compile(text).expect("an expression"));
        observation(at("2026-03-01T11:59:30Z"), row, condition.as_ref())
    }

    #[test]
    fn a_row_is_read_as_databases_and_apps_write_it() {
        let row = json!({"request_id": 7, "version": "v2", "ok": 1, "latency_ms": 12, "cold": 0, "prediction": null});
        let read = understood(row, None).expect("a row");
        assert_eq!(
            (read.request_id.as_str(), read.ok, read.latency_ms, read.cold),
            ("7", true, Some(12.0), false)
        );
        assert_eq!(read.prediction, None);
        let failed = json!({"request_id": "a", "version": 3, "status": 503, "latency_ms": 1.5, "cold": true});
        let read = understood(failed, Some("row.status >= 500")).expect("a row");
        assert_eq!((read.version.as_str(), read.ok, read.cold), ("3", false, true));
    }

    #[test]
    fn a_row_that_makes_no_sense_says_why() {
        let long = "x".repeat(10_000);
        let cases = [
            (json!({"version": "1", "ok": true}), None, "`request_id` is missing"),
            (json!({"request_id": "a", "version": null, "ok": true}), None, "`version` is missing"),
            (
                json!({"request_id": "a\n", "version": "1", "ok": true}),
                None,
                "`request_id` has 1 to 200 bytes",
            ),
            (json!({"request_id": "a", "version": long, "ok": true}), None, "is not a version name"),
            (json!({"request_id": "a", "version": "1"}), None, "`ok` is missing"),
            (json!({"request_id": "a", "version": "1", "ok": "yes"}), None, "`ok` is neither true nor false"),
            (json!({"request_id": "a", "version": "1", "ok": 2}), None, "`ok` is neither true nor false"),
            (
                json!({"request_id": "a", "version": "1", "ok": true, "latency_ms": "NaN"}),
                None,
                "`latency_ms` is not a number",
            ),
            (
                json!({"request_id": "a", "version": "1", "ok": true, "latency_ms": -1}),
                None,
                "`latency_ms` is negative",
            ),
            (
                json!({"request_id": "a", "version": "1", "status": null}),
                Some("row.status >= 500"),
                "`error_if`",
            ),
            (
                json!({"request_id": "a", "version": "1"}),
                Some("row.status >= 500"),
                "`row.status` is not defined",
            ),
        ];
        for (row, error_if, cause) in cases {
            let refusal = understood(row.clone(), error_if).expect_err("no row");
            assert!(refusal.contains(cause), "{refusal}");
        }
    }

    #[test]
    fn times_are_read_as_databases_write_them() {
        for same in [
            json!("2026-03-01T12:00:00Z"),
            json!("2026-03-01T14:00:00+02:00"),
            json!("2026-03-01 12:00:00"),
            json!("2026-03-01 12:00:00.000000"),
            json!("2026-03-01T12:00:00"),
            json!("2026-03-01 12:00:00Z"),
            json!("2026-03-01 12:00:00+00"),
            json!("2026-03-01 14:00:00.000+02"),
            json!(1_772_366_400),
            json!(1_772_366_400_000_i64),
            json!(1_772_366_400.0),
        ] {
            assert_eq!(moment(&same), Ok(at("2026-03-01T12:00:00Z")), "{same}");
        }
        for none in [
            json!("noon"),
            json!(1e300),
            json!(null),
            json!([1]),
            json!(i64::MAX),
            json!(""),
            json!("2026-03-01"),
        ] {
            assert!(moment(&none).is_err(), "{none}");
        }
    }

    /// Whatever a column may hold.
    fn anything() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,300}".prop_map(Value::from),
            Just(json!(["x"])),
            Just(json!({"a": 1})),
        ]
    }

    proptest! {
        #[test]
        fn garbage_is_refused_and_what_is_taken_makes_sense(fields in prop::array::uniform6(anything())) {
            let names = ["request_id", "version", "ok", "latency_ms", "prediction", "cold"];
            let row: Map<String, Value> = names.iter().map(|name| (*name).to_owned()).zip(fields.clone()).collect();
            if let Ok(read) = observation(at("2026-03-01T11:59:30Z"), row, None) {
                prop_assert!(read.latency_ms.is_none_or(|latency| latency.is_finite() && latency >= 0.0));
                prop_assert!(read.prediction.is_none_or(f64::is_finite));
                prop_assert!(!read.request_id.is_empty() && read.request_id.len() <= 200);
            }
            let _ = moment(&fields[0]);
        }
    }

    #[test]
    fn a_page_says_how_far_it_goes_and_what_was_refused_in_it() {
        let wanted = wanted(Some("2026-03-01T11:58:30Z"));
        let page = |more: bool| {
            let mut rows = Rows::new(None, &wanted);
            for (n, time) in ["11:58:10", "11:58:20", "11:58:40", "11:59:20"].iter().enumerate() {
                // The second was refused when it was read the first time.
                let id = if n == 1 || n == 2 { json!(null) } else { json!(n) };
                let Value::Object(row) = json!({"request_id": id, "version": "1", "ok": true}) else {
                    continue;
                };
                rows.take(Found { at: Ok(at(&format!("2026-03-01T{time}Z"))), cursor: json!(n), row });
            }
            rows.in_order(more)
        };
        let first = page(true);
        assert_eq!((first.observations.len(), first.refused, first.cursor), (2, 1, Some(json!(3))));
        assert_eq!(first.through, Some(at("2026-03-01T11:59:20Z")));
        let last = page(false);
        assert_eq!((last.more, last.cursor), (false, None));
    }
}
