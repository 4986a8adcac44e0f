//! Observations: `{"at", "request_id", "unit", "version", "ok", "latency_ms", "prediction", "shadow", "cold"}`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufRead;

use chrono::TimeDelta;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::fields::{A_TIME, LineOf};
use super::lines::{Refused, checked_id, checked_number, read};
use super::{BatchError, Limits, Reading};
use crate::domain::Timestamp;
use crate::domain::evidence::{Observation, ObservationBatch, Prediction, Tally, minute_of};
use crate::domain::id::{ModelName, NAME_RULE, VersionName};

/// An app's clock is believed this far back and this far ahead.
const BELIEVED: (TimeDelta, TimeDelta) = (TimeDelta::minutes(10), TimeDelta::minutes(1));
/// Versions of one batch, and of the shadow predictions of one line.
const VERSIONS: (usize, usize) = (64, 8);

/// One line.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    request_id: String,
    version: VersionName,
    ok: bool,
    /// When it was served; at receipt when absent.
    at: Option<Timestamp>,
    latency_ms: Option<f64>,
    prediction: Option<f64>,
    #[serde(default)]
    shadow: BTreeMap<VersionName, f64>,
    /// The first answer of a new process: its latency says nothing of the model.
    #[serde(default)]
    cold: bool,
    /// Whom the router decided for; what is counted are requests.
    #[serde(rename = "unit")]
    _unit: Option<IgnoredAny>,
}

impl LineOf for Row {
    const EXAMPLE: &'static str = r#"{"request_id":"a1","version":"7","ok":true}"#;

    fn holds(field: &str) -> Option<String> {
        let holds = match field {
            "request_id" => "a text in quotes",
            "version" => return Some(format!("a version name in quotes: {NAME_RULE}")),
            "ok" | "cold" => "true or false",
            "at" => A_TIME,
            "latency_ms" | "prediction" => "a number",
            "shadow" => "an object with a number for each version, such as {\"2\":5.5}",
            _ => return None,
        };
        Some(holds.to_owned())
    }
}

/// Reads a batch of observations received at `now`. Without `batch_id` the SHA-256 of the text is the id: the
/// same text is then the same batch.
///
/// # Errors
/// A batch that broke off, is too large or has an id that cannot be kept: nothing of it counts.
pub fn read_observations(
    model: &ModelName,
    batch_id: Option<&str>,
    input: impl BufRead,
    now: Timestamp,
    limits: &Limits,
) -> Result<Reading<ObservationBatch>, BatchError> {
    let mut counting = Counting { now, ..Counting::default() };
    let lines = read(batch_id, input, limits, |row: Row| counting.take(row))?;
    Ok(Reading {
        batch: ObservationBatch {
            model: model.clone(),
            batch_id: lines.batch_id,
            minutes: counting.tally.minutes(),
            predictions: counting.predictions,
            at: now,
        },
        accepted: lines.accepted,
        errors: lines.errors,
        refused: lines.refused,
        misdated: counting.misdated,
    })
}

#[derive(Default)]
struct Counting {
    now: Timestamp,
    tally: Tally,
    versions: BTreeSet<VersionName>,
    predictions: Vec<Prediction>,
    misdated: u64,
}

impl Counting {
    fn take(&mut self, row: Row) -> Result<(), Refused> {
        if row.shadow.len() > VERSIONS.1 {
            return Err(format!("`shadow` has more than {} versions", VERSIONS.1));
        }
        for value in row.shadow.values() {
            checked_number("a prediction in `shadow`", *value)?;
        }
        let at = row.at.unwrap_or(self.now);
        let believed = (self.now - BELIEVED.0..=self.now + BELIEVED.1).contains(&at);
        let at = if believed { at } else { self.now };
        let observation = checked(Observation {
            request_id: row.request_id,
            version: row.version,
            at,
            ok: row.ok,
            latency_ms: row.latency_ms,
            cold: row.cold,
            prediction: row.prediction,
            shadow: row.shadow.into_iter().collect(),
        })?;
        one_more(&mut self.versions, &observation.version)?;
        let minute = minute_of(at).ok_or("`at` is beyond the end of time")?;
        self.misdated += u64::from(!believed);
        self.tally.add(&observation, minute);
        self.predictions.extend(observation.into_prediction());
        Ok(())
    }
}

/// What every observation holds to, wherever it comes from.
pub(super) fn checked(observation: Observation) -> Result<Observation, Refused> {
    checked_id("`request_id`", &observation.request_id)?;
    let latency =
        observation.latency_ms.map(|latency| checked_number("`latency_ms`", latency)).transpose()?;
    if latency.is_some_and(|latency| latency < 0.0) {
        return Err("`latency_ms` is negative".to_owned());
    }
    observation.prediction.map(|value| checked_number("`prediction`", value)).transpose()?;
    Ok(observation)
}

/// A batch has few versions: more are no versions.
pub(super) fn one_more(versions: &mut BTreeSet<VersionName>, version: &VersionName) -> Result<(), Refused> {
    if versions.contains(version) {
        return Ok(());
    }
    if versions.len() == VERSIONS.0 {
        return Err(format!("one batch has at most {} versions", VERSIONS.0));
    }
    versions.insert(version.clone());
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::RowError;
    use super::*;
    use crate::domain::canary::latency_bucket;
    use crate::domain::evidence::MinuteCounts;

    fn now() -> Timestamp {
        "2026-03-01T12:00:30Z".parse().expect("valid")
    }

    fn reading(text: &str) -> Reading<ObservationBatch> {
        let model = "times".parse().expect("valid");
        read_observations(&model, None, text.as_bytes(), now(), &Limits::default()).expect("valid")
    }

    #[test]
    fn lines_are_counted_by_version_and_minute() {
        let read = reading(concat!(
            r#"{"at":"2026-03-01T11:58:59Z","request_id":"a","version":"1","ok":true,"latency_ms":20}"#,
            "\r\n\n",
            r#"{"at":"2026-03-01T11:58:01+00:00","request_id":"b","version":"1","ok":false,"latency_ms":2000,"cold":true}"#,
            "\n",
            r#"{"request_id":"c","version":"2","ok":true,"prediction":5.5,"shadow":{"1":6},"unit":"u-1"}"#,
        ));
        assert_eq!((read.accepted, read.refused, read.misdated), (3, 0, 0));
        let counts: Vec<_> = read.batch.minutes.iter().map(|m| (m.version.as_str(), m.counts)).collect();
        assert_eq!(
            counts,
            [
                ("1", MinuteCounts { n: 2, errors: 1, timed: 1 }),
                ("2", MinuteCounts { n: 1, errors: 0, timed: 0 })
            ]
        );
        assert_eq!(read.batch.minutes[0].minute, "2026-03-01T11:58:00Z".parse::<Timestamp>().expect("valid"));
        assert_eq!(read.batch.minutes[0].latency[latency_bucket(20.0)], 1);
        assert_eq!(read.batch.predictions.len(), 1);
        assert_eq!(read.batch.predictions[0].shadow, [("1".parse().expect("valid"), 6.0)]);
    }

    #[test]
    fn a_time_nobody_believes_is_the_time_of_receipt() {
        for (at, believed) in [
            ("2026-03-01T11:50:30Z", true),
            ("2026-03-01T11:50:29Z", false),
            ("2026-03-01T12:01:30Z", true),
            ("2026-03-01T12:01:31Z", false),
            ("-262143-01-01T00:00:00Z", false),
        ] {
            let read = reading(&format!(r#"{{"at":"{at}","request_id":"a","version":"1","ok":true}}"#));
            assert_eq!((read.accepted, read.misdated), (1, u64::from(!believed)), "{at}");
        }
    }

    #[test]
    fn a_bad_line_is_answered_and_the_others_count() {
        let lines = concat!(
            "{\"request_id\":\"a\",\"version\":\"1\",\"ok\":true}\n",
            "not json\n",
            "{\"request_id\":\"a\",\"version\":\"1\",\"ok\":true,\"latency\":3}\n",
            "{\"request_id\":\"a\",\"version\":\"../1\",\"ok\":true}\n",
            "{\"request_id\":\"\",\"version\":\"1\",\"ok\":true}\n",
            "{\"request_id\":\"a\",\"version\":\"1\",\"ok\":true,\"latency_ms\":-1}\n",
            "{\"request_id\":\"a\",\"version\":\"1\",\"ok\":true,\"prediction\":1e999}\n",
            "{\"request_id\":\"a\",\"version\":\"1\",\"ok\":true,\"shadow\":{\"2\":null}}\n",
            "{\"request_id\":\"a\",\"version\":\"1\"}\n",
            "{\"request_id\":\"a\",\"version\":\"1\",\"ok\":1}\n",
            "{\"request_id\":\"a\",\"version\":\"1\",\"ok\":true,\"prediction\":\n",
            "{\"request_id\":\"a\",\"version\":\"1\",\"ok\":true,}\n",
            "{\"request_id\":\"a\",\"version\":\"1\",\"ok\":true,\"ok\":true}\n",
            "[\"a\",\"1\",true]\n",
            "{\"request_id\":\"a\",\"version\":7,\"ok\":true}\n",
        );
        let long = "x".repeat(5000);
        let long = format!(r#"{{"request_id":"a","version":"1","ok":true,"latency_ms":"{long}"}}"#);
        let read = reading(&format!("{lines}{long}"));
        assert_eq!((read.accepted, read.refused), (1, 15));
        let answers: Vec<_> =
            read.errors.iter().map(|RowError { line, error }| format!("{line}: {error}")).collect();
        insta::assert_snapshot!(answers.join("\n"), @r#"
        2: `not json` is not a JSON object such as {"request_id":"a1","version":"7","ok":true}
        3: unknown field `latency`, expected one of `request_id`, `version`, `ok`, `at`, `latency_ms`, `prediction`, `shadow`, `cold`, `unit`
        4: `version` is `"../1"`, not a version name in quotes: letters, digits, `-`, `_` and `.`, beginning with a letter or digit, at most 100 characters
        5: `request_id` has 1 to 200 bytes and no control characters
        6: `latency_ms` is negative
        7: `prediction`: number out of range (column 60)
        8: `shadow` is `{"2":null}`, not an object with a number for each version, such as {"2":5.5}
        9: missing field `ok`
        10: `ok` is `1`, not true or false
        11: `prediction`: EOF while parsing a value (column 55)
        12: trailing comma (column 43)
        13: duplicate field `ok`
        14: `["a","1",true]` is not a JSON object such as {"request_id":"a1","version":"7","ok":true}
        15: `version` is `7`, not a version name in quotes: letters, digits, `-`, `_` and `.`, beginning with a letter or digit, at most 100 characters
        16: `latency_ms` is `"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…`, not a number
        "#);
    }

    #[test]
    fn the_same_text_is_the_same_batch_and_a_given_id_stands() {
        let line = r#"{"request_id":"a","version":"1","ok":true}"#;
        assert_eq!(reading(line).batch.batch_id, reading(line).batch.batch_id);
        assert_ne!(reading(line).batch.batch_id, reading(&format!("{line}\n{line}")).batch.batch_id);
        let model = "times".parse().expect("valid");
        let given =
            |id: &str| read_observations(&model, Some(id), line.as_bytes(), now(), &Limits::default());
        assert_eq!(given("b-1").expect("valid").batch.batch_id, "b-1");
        for bad in ["", "a b", "ä", &"x".repeat(201)] {
            assert!(matches!(given(bad), Err(BatchError::BadId)), "{bad}");
        }
    }

    #[test]
    fn a_batch_beyond_its_limits_is_refused_whole_and_a_long_line_alone() {
        let model = "times".parse().expect("valid");
        let line = r#"{"request_id":"a","version":"1","ok":true}"#;
        let text = format!("{line}\n{}\n{line}\n", "x".repeat(5000));
        let limits = Limits { bytes: 10_000, line: 100, rows: 3, answers: 1 };
        let read = |limits: &Limits| read_observations(&model, None, text.as_bytes(), now(), limits);
        let fits = read(&limits).expect("valid");
        assert_eq!((fits.accepted, fits.refused, fits.errors[0].line), (2, 1, 2));
        for limits in [Limits { bytes: 5000, ..limits }, Limits { rows: 2, ..limits }] {
            assert!(matches!(read(&limits), Err(BatchError::TooLarge { .. })));
        }
    }

    /// A line of some minute before now, with a latency or without.
    fn line() -> impl Strategy<Value = String> {
        (0..3_u8, 0..8_i64, any::<bool>(), prop::option::of(0.0..5000.0_f64), 0..1000_u32).prop_map(
            |(version, minutes, ok, latency, id)| {
                let at = (now() - TimeDelta::minutes(minutes)).to_rfc3339();
                let latency = latency.map(|latency| format!(",\"latency_ms\":{latency}")).unwrap_or_default();
                format!(
                    "{{\"at\":\"{at}\",\"request_id\":\"r{id}\",\"version\":\"v{version}\",\"ok\":{ok}{latency},\"prediction\":1}}\n"
                )
            },
        )
    }

    /// A minute of a version: its counts, and its latencies by bucket.
    type Counted = (String, Timestamp, MinuteCounts, Vec<u64>);

    /// Counts of several readings together, and their predictions in any order.
    fn together(texts: &[String]) -> (Vec<Counted>, Vec<String>) {
        let mut sums: std::collections::BTreeMap<(String, Timestamp), (MinuteCounts, Vec<u64>)> =
            Default::default();
        let mut predictions = vec![];
        for text in texts {
            let batch = reading(text).batch;
            predictions.extend(batch.predictions.into_iter().map(|it| it.request_id));
            for minute in batch.minutes {
                let key = (minute.version.to_string(), minute.minute);
                let (counts, latency) = sums.entry(key).or_default();
                counts.n += minute.counts.n;
                counts.errors += minute.counts.errors;
                counts.timed += minute.counts.timed;
                latency.resize(minute.latency.len(), 0);
                latency.iter_mut().zip(minute.latency).for_each(|(sum, more)| *sum += more);
            }
        }
        predictions.sort();
        (sums.into_iter().map(|((v, at), (counts, latency))| (v, at, counts, latency)).collect(), predictions)
    }

    proptest! {
        #[test]
        fn neither_the_order_of_lines_nor_how_they_are_split_matters(
            lines in prop::collection::vec(line(), 0..40), cut in 0..40_usize, turn in 0..40_usize,
        ) {
            let whole = together(&[lines.concat()]);
            let mut turned = lines.clone();
            turned.rotate_left(turn.min(lines.len()));
            turned.reverse();
            prop_assert_eq!(&together(&[turned.concat()]), &whole);
            let (one, other) = lines.split_at(cut.min(lines.len()));
            prop_assert_eq!(&together(&[one.concat(), other.concat()]), &whole);
        }

        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let model = "times".parse().expect("valid");
            let read = read_observations(&model, None, bytes.as_slice(), now(), &Limits::default()).expect("valid");
            prop_assert_eq!(read.refused, read.errors.len() as u64);
        }
    }
}
