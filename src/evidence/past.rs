//! A canary with everything that its looks read, one JSON object a line, as
//! `refit canary minutes` writes and `refit canary replay` reads it. A line
//! that makes no sense ends the reading.

use std::collections::BTreeMap;
use std::io::{BufRead, Read, Write};

use chrono::{Datelike as _, TimeDelta};
use serde::{Deserialize, Serialize};

use super::RowError;
use super::lines::{Refused, printable, without_place};
use super::minutes::LONGEST_LINE;
use crate::domain::Timestamp;
use crate::domain::canary::{LATENCY_BUCKETS, Past, Watched};
use crate::domain::evidence::{EvidenceMinute, LabelMinute, MinuteCounts, PairedError};
use crate::domain::id::VersionName;

/// One line; the first is `recorded`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Line {
    /// The canary.
    Recorded(Box<Watched>),
    /// Requests of one version in one minute.
    Minute(MinuteOf),
    /// Errors of both versions on a request.
    Pair(Pair),
    /// An error of the stable version before the canary.
    StableError(Pair),
    /// Requests of one version in one minute whose prediction waits for a truth, or found it.
    Labels(LabelsOf),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MinuteOf {
    t: Timestamp,
    version: VersionName,
    n: u64,
    e: u64,
    /// By bucket; those without any are left out.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    latency: BTreeMap<usize, u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pair {
    seq: i64,
    t: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    served_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    block: Option<String>,
    canary: f64,
    stable: f64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LabelsOf {
    t: Timestamp,
    version: VersionName,
    predicted: u64,
    labelled: u64,
}

/// Whether `line` is the first one of a canary that was recorded.
pub fn begins_past(line: &[u8]) -> bool {
    let inside = line.trim_ascii_start().strip_prefix(b"{");
    inside.is_some_and(|inside| inside.trim_ascii_start().starts_with(b"\"recorded\""))
}

/// Writes `past`, which [`read_past`] reads.
///
/// # Errors
/// Nobody takes the lines.
pub fn write_past(past: &Past, mut to: impl Write) -> std::io::Result<()> {
    let mut write = |line: Line| -> std::io::Result<()> {
        serde_json::to_writer(&mut to, &line)?;
        to.write_all(b"\n")
    };
    write(Line::Recorded(Box::new(past.watched.clone())))?;
    for minute in &past.minutes {
        let EvidenceMinute { version, minute: t, seq: _, counts, latency } = minute.clone();
        let latency = latency.into_iter().enumerate().filter(|(_, count)| *count > 0).collect();
        write(Line::Minute(MinuteOf { t, version, n: counts.n, e: counts.errors, latency }))?;
    }
    for pair in &past.stable_errors {
        write(Line::StableError(Pair::of(pair)))?;
    }
    for pair in &past.pairs {
        write(Line::Pair(Pair::of(pair)))?;
    }
    for LabelMinute { version, minute, predicted, labelled } in past.labels.clone() {
        write(Line::Labels(LabelsOf { t: minute, version, predicted, labelled }))?;
    }
    Ok(())
}

/// Reads what [`write_past`] wrote.
///
/// # Errors
/// The first line that makes no sense, and what is missing.
pub fn read_past(mut input: impl BufRead) -> Result<Past, RowError> {
    let (mut number, mut past, mut text) = (0_u64, None, vec![]);
    loop {
        text.clear();
        number += 1;
        let refused = |error: String| RowError { line: number, error: printable(&error) };
        let read = input.by_ref().take(LONGEST_LINE + 1).read_until(b'\n', &mut text);
        if read.map_err(|error| refused(error.to_string()))? == 0 {
            break;
        }
        if text.len() as u64 > LONGEST_LINE {
            return Err(refused(format!("the line has more than {LONGEST_LINE} bytes")));
        }
        if text.trim_ascii().is_empty() {
            continue;
        }
        let line = serde_json::from_slice(&text).map_err(|error| refused(without_place(&error)))?;
        take(&mut past, line).map_err(refused)?;
    }
    let mut past: Past =
        past.ok_or_else(|| RowError { line: number, error: "there is no canary".to_owned() })?;
    past.minutes.sort_by_key(|minute| minute.minute);
    past.pairs.sort_by_key(|pair| pair.seq);
    past.stable_errors.sort_by_key(|pair| pair.seq);
    Ok(past)
}

/// Each minute of it is looked at again.
const LONGEST_WATCH: TimeDelta = TimeDelta::days(400);
/// Of one version in one minute: what is added up stays a number.
const MOST_REQUESTS: u64 = 1_000_000_000_000;

/// A date from which days can be counted, there and back.
fn date(at: Timestamp) -> Result<Timestamp, Refused> {
    if (1970..=9998).contains(&at.year()) { Ok(at) } else { Err(format!("{at} is no date of a canary")) }
}

fn requests(count: u64) -> Result<u64, Refused> {
    if count <= MOST_REQUESTS { Ok(count) } else { Err(format!("{count} are more than a minute has")) }
}

fn check_dates(watched: &Watched) -> Result<(), Refused> {
    let canary = &watched.canary;
    let dates = [canary.started_at, canary.stage_since, canary.next_look_at, watched.looked_at];
    let perhaps = [canary.deadline, canary.bake_until, canary.ended_at, watched.promoted_at];
    let shares = watched.shares.iter().map(|(at, _)| *at);
    for at in dates.into_iter().chain(perhaps.into_iter().flatten()).chain(shares) {
        date(at)?;
    }
    if watched.looked_at - canary.started_at > LONGEST_WATCH {
        return Err(format!("the canary was watched for more than {} days", LONGEST_WATCH.num_days()));
    }
    Ok(())
}

fn take(past: &mut Option<Past>, line: Line) -> Result<(), Refused> {
    let Some(past) = past else {
        let Line::Recorded(watched) = line else {
            return Err("the canary is not said before its minutes".to_owned());
        };
        check_dates(&watched)?;
        *past = Some(Past {
            watched: *watched,
            minutes: vec![],
            pairs: vec![],
            stable_errors: vec![],
            labels: vec![],
        });
        return Ok(());
    };
    match line {
        Line::Recorded(_) => return Err("there are two canaries".to_owned()),
        Line::Minute(MinuteOf { t, version, n, e, latency }) => {
            if e > n {
                return Err(format!("{e} errors of {n} requests"));
            }
            let mut buckets = vec![0; LATENCY_BUCKETS];
            for (bucket, count) in latency {
                *buckets.get_mut(bucket).ok_or_else(|| format!("there is no latency bucket {bucket}"))? =
                    requests(count)?;
            }
            let timed = buckets.iter().fold(0_u64, |sum, count| sum.saturating_add(*count));
            let counts = MinuteCounts { n: requests(n)?, errors: e, timed };
            past.minutes.push(EvidenceMinute { version, minute: date(t)?, seq: 0, counts, latency: buckets });
        }
        Line::Pair(pair) => past.pairs.push(pair.checked()?),
        Line::StableError(pair) => past.stable_errors.push(pair.checked()?),
        Line::Labels(LabelsOf { t, version, predicted, labelled }) => {
            let (predicted, labelled) = (requests(predicted)?, requests(labelled)?);
            past.labels.push(LabelMinute { version, minute: date(t)?, predicted, labelled });
        }
    }
    Ok(())
}

impl Pair {
    fn of(pair: &PairedError) -> Self {
        let PairedError { seq, block, canary, stable, at, served_at, .. } = pair.clone();
        Self { seq, t: at, served_at, block, canary, stable }
    }

    fn checked(self) -> Result<PairedError, Refused> {
        let Self { seq, t, served_at, block, canary, stable } = self;
        let (at, served_at) = (date(t)?, served_at.map(date).transpose()?);
        if !(canary >= 0.0 && stable >= 0.0) {
            return Err("an error is 0 or more".to_owned());
        }
        Ok(PairedError { seq, request_id: String::new(), block, canary, stable, at, served_at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CANARY: &str = r#"{"recorded":{"canary":{"id":"00000000-0000-0000-0000-000000000000","run":"00000000-0000-0000-0000-000000000000","model":"m","target":"t","version":"2","champion":"1","generation":2,"stages":[],"stage":0,"stage_since":"2026-03-01T12:00:00Z","rules":{"rules":[],"on_inconclusive":"hold","when_underpowered":"hold","hold_for":{"secs":0,"nanos":0},"hold_traffic":"keep","alpha":0.02,"beta":0.05},"started_at":"2026-03-01T12:00:00Z","deadline":null,"state":"watching","bake_until":null,"verdict":"inconclusive","reason":"","analysis":null,"next_look_at":"2026-03-01T12:00:00Z","ended_at":null},"looked_at":"2026-03-01T12:05:00Z","read_to":7,"shares":[["2026-03-01T12:03:00Z",2500]],"promoted_at":null}}"#;
    const MINUTE: &str =
        r#"{"minute":{"t":"2026-03-01T12:01:00Z","version":"2","n":10,"e":1,"latency":{"17":9}}}"#;

    fn read(lines: &[&str]) -> Result<Past, RowError> {
        read_past(lines.join("\n").as_bytes())
    }

    #[test]
    fn what_is_written_reads_the_same() {
        let lines = [
            CANARY,
            MINUTE,
            r#"{"stable_error":{"seq":1,"t":"2026-02-27T12:00:00Z","canary":3.0,"stable":3.0}}"#,
            r#"{"pair":{"seq":7,"t":"2026-03-01T12:02:00Z","served_at":"2026-03-01T12:00:30Z","block":"race","canary":1.5,"stable":2.0}}"#,
            r#"{"labels":{"t":"2026-03-01T12:00:00Z","version":"2","predicted":5,"labelled":4}}"#,
        ];
        let past = read(&lines).expect("valid");
        assert_eq!((past.minutes[0].latency[17], past.minutes[0].counts.timed), (9, 9));
        let mut written = vec![];
        write_past(&past, &mut written).expect("written");
        assert_eq!(String::from_utf8(written).expect("text").trim_end(), lines.join("\n"));
        assert!(begins_past(format!("\n {CANARY}").as_bytes()) && !begins_past(MINUTE.as_bytes()));
    }

    #[test]
    fn a_line_that_makes_no_sense_ends_it_with_its_number() {
        for (line, error) in [
            ("garbage", "expected value"),
            (CANARY, "there are two canaries"),
            (
                r#"{"pair":{"seq":1,"t":"2026-03-01T12:02:00Z","canary":-1.0,"stable":2.0}}"#,
                "an error is 0 or more",
            ),
            (
                r#"{"minute":{"t":"2026-03-01T12:01:00Z","version":"2","n":1,"e":2}}"#,
                "2 errors of 1 requests",
            ),
            (
                r#"{"minute":{"t":"2026-03-01T12:01:00Z","version":"2","n":1,"e":0,"latency":{"64":1}}}"#,
                "there is no latency bucket 64",
            ),
            (r#"{"verdict":"pass"}"#, "unknown variant `verdict`"),
            (
                r#"{"minute":{"t":"2026-03-01T12:01:00Z","version":"2","n":18446744073709551615,"e":0}}"#,
                "more than a minute has",
            ),
            (
                r#"{"labels":{"t":"+262142-12-31T00:00:00Z","version":"2","predicted":5,"labelled":4}}"#,
                "is no date of a canary",
            ),
        ] {
            let found = read(&[CANARY, line, MINUTE]).expect_err(line);
            assert!(found.line == 2 && found.error.contains(error), "{found:?}");
        }
        assert_eq!(
            read(&[MINUTE]).expect_err("no canary").error,
            "the canary is not said before its minutes"
        );
        assert!(read(&[]).is_err());
        let ages = CANARY.replace("\"looked_at\":\"2026", "\"looked_at\":\"9026");
        assert_eq!(read(&[&ages]).expect_err("ages").error, "the canary was watched for more than 400 days");
    }
}
