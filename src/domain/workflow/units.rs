//! Durations, sizes, shares and percentages as a workflow file writes them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A share of traffic in hundredths of a percent, 0 to 10,000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BasisPoints(pub u16);

impl BasisPoints {
    /// All traffic.
    pub const ALL: Self = Self(10_000);

    /// As a fraction in `[0, 1]`.
    pub fn fraction(self) -> f64 {
        f64::from(self.0) / 10_000.0
    }
}

impl std::fmt::Display for BasisPoints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} %", f64::from(self.0) / 100.0)
    }
}

/// A length of time: `30m`, `1h30m`, `7d`; units `w`, `d`, `h`, `m`, `s`, `ms`. At most ten years.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    const EXAMPLE: &str = "write a number and a unit, such as `30m`, `24h`, `7d` or `1h30m`";
    const LONGEST_MS: u64 = 10 * 366 * 86_400_000;
    let mut rest = text;
    let mut total: u64 = 0;
    let mut last = u64::MAX;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let number: u64 = number.parse().map_err(|_| EXAMPLE.to_owned())?;
        let scale = match unit {
            "w" => 7 * 86_400_000,
            "d" => 86_400_000,
            "h" => 3_600_000,
            "m" => 60_000,
            "s" => 1_000,
            "ms" => 1,
            _ => return Err(EXAMPLE.to_owned()),
        };
        if scale >= last {
            return Err("write the larger unit first and each unit once, such as `1h30m`".to_owned());
        }
        last = scale;
        total = number.checked_mul(scale).and_then(|part| total.checked_add(part)).unwrap_or(u64::MAX);
        rest = tail;
    }
    match total {
        0 if text.is_empty() => Err(EXAMPLE.to_owned()),
        total if total > LONGEST_MS => Err("is longer than ten years".to_owned()),
        total => Ok(Duration::from_millis(total)),
    }
}

/// A duration as a file would write it: `1h30m`.
pub fn format_duration(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (unit, scale) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
        if rest >= scale {
            text.push_str(&format!("{}{unit}", rest / scale));
            rest %= scale;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// Bytes: `512MiB`, `4GiB`, `100MB`, `2048B`.
pub fn parse_size(text: &str) -> Result<u64, String> {
    const EXAMPLE: &str = "write a number and a unit, such as `512MiB` or `4GiB`";
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| EXAMPLE.to_owned())?;
    let scale: u64 = match unit {
        "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err(EXAMPLE.to_owned()),
    };
    // Databases keep sizes as signed 64-bit numbers.
    let size = number.checked_mul(scale).filter(|size| i64::try_from(*size).is_ok());
    size.ok_or_else(|| "is larger than refit can count".to_owned())
}

/// A difference of rates in percentage points, as a fraction: `0.2pp` is 0.002; above 0 and below 100.
pub fn parse_points(text: &str) -> Result<f64, String> {
    decimal(text.strip_suffix("pp"))
        .map(|points| points / 100.0)
        .filter(|points| *points > 0.0 && *points < 1.0)
        .ok_or_else(|| "write points above 0pp and below 100pp, such as `0.2pp`".to_owned())
}

/// A percentage as a fraction: `5%` is 0.05; may be negative.
pub fn parse_percent(text: &str) -> Result<f64, String> {
    if text.ends_with("pp") {
        return Err("write a percentage; points (`pp`) are for the margin of a canary's rates".to_owned());
    }
    decimal(text.strip_suffix('%'))
        .map(|percent| percent / 100.0)
        .ok_or_else(|| format!("write a percentage, such as `{}%`", decimal(Some(text)).map_or(5.0, |n| n)))
}

/// A share of traffic: `10%`, in steps of 0.01 %, above 0 and at most 100 %.
pub fn parse_share(text: &str) -> Result<BasisPoints, String> {
    let points = parse_percent(text)? * 10_000.0;
    if (points - points.round()).abs() > 1e-6 {
        return Err("traffic is divided in steps of 0.01%".to_owned());
    }
    if !(1.0..=10_000.0).contains(&points.round()) {
        return Err("a share of traffic is above 0% and at most 100%".to_owned());
    }
    // In range and whole, as just checked.
    Ok(BasisPoints(points.round() as u16))
}

/// A plain decimal number; neither `inf` nor `1e999` nor blanks.
pub fn parse_number(text: &str) -> Result<f64, String> {
    text.parse::<f64>()
        .ok()
        .filter(|number| number.is_finite() && !text.starts_with(char::is_alphabetic))
        .ok_or_else(|| "write a number, such as `0.85`".to_owned())
}

fn decimal(text: Option<&str>) -> Option<f64> {
    let text = text?;
    text.chars()
        .all(|c| c.is_ascii_digit() || matches!(c, '.' | '-' | '+'))
        .then(|| parse_number(text).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let seconds = |text: &str| parse_duration(text).map(|d| d.as_secs_f64());
        assert_eq!(seconds("30m"), Ok(1800.0));
        assert_eq!(seconds("1h30m"), Ok(5400.0));
        assert_eq!(seconds("7d"), Ok(604_800.0));
        assert_eq!(seconds("250ms"), Ok(0.25));
        assert_eq!(seconds("0s"), Ok(0.0));
        for text in [
            "",
            "30",
            "m",
            "30min",
            "-3m",
            "1.5h",
            "30m1h",
            "1h1h",
            "99999999999999999999s",
            "999999999w",
            "1h 30m",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_duration_reads_back() {
        for text in ["1h30m", "7d", "250ms", "0s", "1d1s"] {
            assert_eq!(format_duration(parse_duration(text).expect("valid")), text);
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("512MiB"), Ok(512 << 20));
        assert_eq!(parse_size("100MB"), Ok(100_000_000));
        for text in ["", "5", "MiB", "5mib", "5 MiB", "-1B", "1.5GiB", "99999999999TiB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn percentages_and_shares() {
        assert_eq!(parse_percent("5%"), Ok(0.05));
        assert_eq!(parse_percent("-2%"), Ok(-0.02));
        assert_eq!(parse_percent("5"), Err("write a percentage, such as `5%`".to_owned()));
        for text in ["", "%", "NaN%", "inf%", "1e3%", "5 %", "0.5pp"] {
            assert!(parse_percent(text).is_err(), "{text}");
        }
        assert_eq!(parse_points("0.2pp"), Ok(0.002));
        for text in ["", "pp", "0pp", "-1pp", "100pp", "0.2%", "0.2", "NaNpp", "1e1pp", "1 pp"] {
            assert!(parse_points(text).is_err(), "{text}");
        }
        assert_eq!(parse_share("10%"), Ok(BasisPoints(1_000)));
        assert_eq!(parse_share("0.01%"), Ok(BasisPoints(1)));
        for text in ["0%", "-1%", "100.01%", "0.001%"] {
            assert!(parse_share(text).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_are_finite() {
        assert_eq!(parse_number("-0.5e1"), Ok(-5.0));
        for text in ["", "NaN", ".inf", "inf", "-inf", "1e999", " 1"] {
            assert!(parse_number(text).is_err(), "{text}");
        }
    }
}
