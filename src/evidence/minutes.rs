//! Minutes of both arms that somebody wrote down, one JSON object a line, as
//! `refit canary replay` reads them: one after the other, in bounded memory. A line that makes no sense
//! ends the reading: a verdict over the others would be a verdict on a guess.

use std::collections::BTreeMap;
use std::io::{BufRead, Read};

use chrono::{DateTime, TimeDelta};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::RowError;
use super::lines::{Refused, printable, without_place};
use crate::domain::Timestamp;
use crate::domain::canary::ReplayMinute;
use crate::domain::stats::{Arm, Table};

/// Bytes of one line; a minute with thousands of pairs fits.
pub(super) const LONGEST_LINE: u64 = 1 << 20;
/// Numbers below are minutes from the beginning, from here on seconds since 1970, and from
/// [`MILLISECONDS`] on milliseconds.
const SECONDS: i64 = 100_000_000;
const MILLISECONDS: i64 = 100_000_000_000;

/// One line.
#[derive(Deserialize)]
struct Line {
    t: Value,
    canary: ArmLine,
    stable: ArmLine,
    pairs: Option<Vec<(f64, f64)>>,
    #[serde(flatten)]
    unknown: BTreeMap<String, IgnoredAny>,
}

/// One arm of a line.
#[derive(Deserialize)]
struct ArmLine {
    n: u64,
    e: u64,
    slow: Option<u64>,
    timed: Option<u64>,
    #[serde(flatten)]
    unknown: BTreeMap<String, IgnoredAny>,
}

/// What the lines measure beside errors: the first one says it, and the others agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Measured {
    /// They count slow requests (`slow`, and `timed` where not every request has a latency).
    pub latency: bool,
    /// They list pairs of prediction errors (`pairs`, which may be empty).
    pub pairs: bool,
}

/// A line as it was understood.
#[derive(Debug, Clone, PartialEq)]
pub struct MinuteLine {
    /// `t` as it was written.
    pub t: Value,
    /// The minute.
    pub minute: ReplayMinute,
    /// What it measures.
    pub measured: Measured,
    /// A field that nobody reads, if there is one.
    pub unknown: Option<String>,
}

/// Gives each minute to `take`, in order, and returns how many there were.
///
/// # Errors
/// The first line that is no minute, that goes back in time, that does not measure what the first one
/// did, that cannot be read, or that `take` refuses.
pub fn read_minutes(
    mut input: impl BufRead,
    mut take: impl FnMut(MinuteLine) -> Result<(), String>,
) -> Result<u64, RowError> {
    let (mut line, mut minutes, mut before) = (0_u64, 0_u64, None);
    let mut text = vec![];
    loop {
        text.clear();
        line += 1;
        let refused = |error: String| RowError { line, error: printable(&error) };
        let read = input.by_ref().take(LONGEST_LINE + 1).read_until(b'\n', &mut text);
        if read.map_err(|error| refused(error.to_string()))? == 0 {
            return Ok(minutes);
        }
        if text.len() as u64 > LONGEST_LINE {
            return Err(refused(format!("the line has more than {LONGEST_LINE} bytes")));
        }
        if text.trim_ascii().is_empty() {
            continue;
        }
        let found = parse(text.trim_ascii()).map_err(refused)?;
        check(&found, before.as_ref()).map_err(refused)?;
        before = Some((found.minute.at, found.measured));
        take(found).map_err(refused)?;
        minutes += 1;
    }
}

fn parse(text: &[u8]) -> Result<MinuteLine, Refused> {
    let line: Line = serde_json::from_slice(text).map_err(|error| without_place(&error))?;
    let fields = line.unknown.keys().chain(line.canary.unknown.keys()).chain(line.stable.unknown.keys());
    let unknown = fields.into_iter().next().cloned();
    let arm = |name: &str, n, e| Arm::new(n, e).map_err(|error| format!("`{name}`: {error}"));
    let errors = Table {
        canary: arm("canary", line.canary.n, line.canary.e)?,
        stable: arm("stable", line.stable.n, line.stable.e)?,
    };
    let latency = [&line.canary, &line.stable].map(|arm| arm.slow.is_some());
    if latency[0] != latency[1] {
        return Err("`slow` is given for one arm only".to_owned());
    }
    let slow = |name: &str, arm: &Option<u64>, timed: Option<u64>, n: u64| {
        let Some(slow) = *arm else {
            return if timed.is_some() {
                Err(format!("`{name}`: `timed` without `slow`"))
            } else {
                Ok(Arm::default())
            };
        };
        let timed = timed.unwrap_or(n);
        if timed > n {
            return Err(format!("`{name}`: {timed} latencies of {n} requests"));
        }
        Arm::new(timed, slow).map_err(|_| format!("`{name}`: {slow} slow requests among {timed} latencies"))
    };
    let slow = Table {
        canary: slow("canary", &line.canary.slow, line.canary.timed, line.canary.n)?,
        stable: slow("stable", &line.stable.slow, line.stable.timed, line.stable.n)?,
    };
    let measured = Measured { latency: latency[0], pairs: line.pairs.is_some() };
    let minute = ReplayMinute { at: moment(&line.t)?, errors, slow, pairs: line.pairs.unwrap_or_default() };
    Ok(MinuteLine { t: line.t, minute, measured, unknown })
}

/// `t`: RFC 3339, or a whole number of minutes, or Unix time.
fn moment(t: &Value) -> Result<Timestamp, Refused> {
    let wanted = || "`t` is neither a time such as \"2026-03-01T12:00:00Z\" nor a whole number".to_owned();
    match t {
        Value::String(text) => DateTime::parse_from_rfc3339(text).map(|at| at.to_utc()).map_err(|_| wanted()),
        Value::Number(number) => {
            let whole = number.as_f64().filter(|t| t.fract() == 0.0 && t.abs() < 1e15).map(|t| t as i64);
            let number = number.as_i64().or(whole).ok_or_else(wanted)?;
            let since = if number >= MILLISECONDS {
                TimeDelta::try_milliseconds(number)
            } else if number >= SECONDS {
                TimeDelta::try_seconds(number)
            } else {
                TimeDelta::try_minutes(number)
            };
            since.and_then(|since| Timestamp::UNIX_EPOCH.checked_add_signed(since)).ok_or_else(wanted)
        }
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => Err(wanted()),
    }
}

fn check(found: &MinuteLine, before: Option<&(Timestamp, Measured)>) -> Result<(), Refused> {
    let Some((at, measured)) = before else { return Ok(()) };
    if found.minute.at < *at {
        return Err("`t` is before that of the line before; minutes come in order".to_owned());
    }
    for (now, then, what) in
        [(found.measured.latency, measured.latency, "slow"), (found.measured.pairs, measured.pairs, "pairs")]
    {
        if now != then {
            let has = if now { "has" } else { "lacks" };
            return Err(format!("it {has} `{what}`, unlike the lines before"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<MinuteLine>, RowError> {
        let mut lines = vec![];
        read_minutes(text.as_bytes(), |line| {
            lines.push(line);
            Ok(())
        })?;
        Ok(lines)
    }

    const PLAIN: &str = r#"{"t":0,"canary":{"n":10,"e":1},"stable":{"n":90,"e":2}}"#;

    #[test]
    fn a_minute_has_counts_and_may_have_latencies_and_pairs() {
        let text = r#"{"t":"2026-03-01T12:00:00Z","canary":{"n":10,"e":1,"slow":2,"timed":8},"stable":{"n":90,"e":2,"slow":4},"pairs":[[3,2.5]],"note":""}"#;
        let lines = read(&format!("\n{text}\r\n\n")).expect("valid");
        let minute = &lines[0].minute;
        assert_eq!((minute.errors.canary.n(), minute.errors.stable.e()), (10, 2));
        assert_eq!((minute.slow.canary.n(), minute.slow.canary.e(), minute.slow.stable.n()), (8, 2, 90));
        assert_eq!(minute.pairs, [(3.0, 2.5)]);
        assert_eq!(lines[0].unknown.as_deref(), Some("note"));
        assert!(lines[0].measured.latency && lines[0].measured.pairs);
    }

    #[test]
    fn times_are_rfc_3339_minutes_or_unix_time() {
        let at = |t: &str| moment(&serde_json::from_str(t).expect("JSON")).map(|at| at.to_rfc3339());
        assert_eq!(at("3.0").as_deref(), Ok("1970-01-01T00:03:00+00:00"));
        assert_eq!(at("1772366400").as_deref(), Ok("2026-03-01T12:00:00+00:00"));
        assert_eq!(at("1772366400000").as_deref(), Ok("2026-03-01T12:00:00+00:00"));
        assert_eq!(at("\"2026-03-01T13:00:00+01:00\"").as_deref(), Ok("2026-03-01T12:00:00+00:00"));
        for t in ["1.5", "1e300", "null", "\"noon\"", "[1]", "true"] {
            assert!(at(t).is_err(), "{t}");
        }
    }

    #[test]
    fn the_first_line_that_makes_no_sense_ends_it_with_its_number() {
        for (line, error) in [
            ("garbage", "expected value (column 1)"),
            (r#"{"t":1,"canary":{"n":1,"e":0}}"#, "missing field `stable` (column 30)"),
            (
                r#"{"t":1,"canary":{"n":1,"e":2},"stable":{"n":9,"e":0}}"#,
                "`canary`: 2 errors in 1 requests: an arm cannot have more errors than requests",
            ),
            (
                r#"{"t":-1,"canary":{"n":1,"e":0},"stable":{"n":9,"e":0}}"#,
                "`t` is before that of the line before; minutes come in order",
            ),
            (
                r#"{"t":1,"canary":{"n":1,"e":0,"slow":1},"stable":{"n":9,"e":0,"slow":1}}"#,
                "it has `slow`, unlike the lines before",
            ),
            (
                r#"{"t":1,"canary":{"n":1,"e":0,"slow":1},"stable":{"n":9,"e":0}}"#,
                "`slow` is given for one arm only",
            ),
            (
                r#"{"t":1,"canary":{"n":4,"e":0,"slow":3,"timed":2},"stable":{"n":9,"e":0,"slow":0}}"#,
                "`canary`: 3 slow requests among 2 latencies",
            ),
        ] {
            let found = read(&format!("{PLAIN}\n{line}\n{PLAIN}\n")).expect_err(line);
            assert_eq!((found.line, found.error.as_str()), (2, error));
        }
        for n in ["-1", "1.5", "\"1\"", "NaN", "1e400", "99999999999999999999"] {
            let line = format!(r#"{{"t":0,"canary":{{"n":{n},"e":0}},"stable":{{"n":9,"e":0}}}}"#);
            assert_eq!(read(&line).expect_err(n).line, 1);
        }
        let endless = " ".repeat(2 << 20);
        assert!(read(&endless).expect_err("endless").error.contains("more than 1048576 bytes"));
    }
}
