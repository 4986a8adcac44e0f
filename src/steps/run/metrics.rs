//! What a trainer says of its model: numbers found in what it prints, and `$REFIT_METRICS`.
//!
//! Strict: a number that is missing, ambiguous or not finite is an error, never a zero.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::domain::id::MetricName;
use crate::domain::metric::{Metrics, SegmentMetrics};
use crate::domain::workflow::step::{Pick, StdoutMetric};

/// Bytes of `$REFIT_METRICS` that are read.
pub(super) const FILE_LIMIT: u64 = 1024 * 1024;

/// Numbers found in what a command prints, in bounded memory however often a pattern matches.
pub(in crate::steps) struct StdoutMetrics<'s> {
    found: Vec<(&'s MetricName, &'s StdoutMetric, Found)>,
}

#[derive(Default)]
struct Found {
    matches: u64,
    first: f64,
    last: f64,
    min: f64,
    max: f64,
    sum: f64,
    /// The first match that is no finite number.
    bad: Option<String>,
}

impl<'s> StdoutMetrics<'s> {
    pub(super) fn new(wanted: &'s BTreeMap<MetricName, StdoutMetric>) -> Self {
        Self { found: wanted.iter().map(|(name, metric)| (name, metric, Found::default())).collect() }
    }

    pub(super) fn line(&mut self, line: &str) {
        for (_, metric, found) in &mut self.found {
            for captures in metric.pattern.captures_iter(line) {
                found.add(captures.get(1).map_or("", |group| group.as_str()));
            }
        }
    }

    /// The metrics, or everything that is wrong with them.
    pub(super) fn finish(self) -> Result<BTreeMap<MetricName, f64>, Vec<String>> {
        let mut metrics = BTreeMap::new();
        let mut problems = Vec::new();
        for (name, metric, found) in self.found {
            match found.value(metric) {
                Ok(value) => {
                    metrics.insert(name.clone(), value);
                }
                Err(problem) => problems.push(format!("metric `{name}`: {problem}")),
            }
        }
        if problems.is_empty() { Ok(metrics) } else { Err(problems) }
    }
}

impl Found {
    fn add(&mut self, text: &str) {
        let value = text.trim().parse::<f64>().ok().filter(|value| value.is_finite());
        let Some(value) = value else {
            self.bad.get_or_insert_with(|| text.chars().take(40).collect());
            self.matches += 1;
            return;
        };
        if self.matches == 0 {
            (self.first, self.min, self.max) = (value, value, value);
        }
        self.matches += 1;
        self.last = value;
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        self.sum += value;
    }

    fn value(&self, metric: &StdoutMetric) -> Result<f64, String> {
        let pattern = metric.pattern.as_str();
        if let Some(bad) = &self.bad {
            return Err(format!("`{pattern}` found `{bad}`, which is not a finite number"));
        }
        let value = match (self.matches, metric.pick) {
            (0, _) => return Err(format!("no line of standard output matches `{pattern}`")),
            (1, _) | (_, Some(Pick::First)) => self.first,
            (matches, None) => {
                return Err(format!(
                    "`{pattern}` matched {matches} times; say which counts with `pick: first|last|max|min|mean`"
                ));
            }
            (_, Some(Pick::Last)) => self.last,
            (_, Some(Pick::Max)) => self.max,
            (_, Some(Pick::Min)) => self.min,
            (matches, Some(Pick::Mean)) => self.sum / matches as f64,
        };
        if value.is_finite() { Ok(value) } else { Err(format!("the mean of `{pattern}` is not finite")) }
    }
}

/// Reads the text of `$REFIT_METRICS`:
/// `{"mae":…,"n":…,"segments":{"sprint":{"mae":…,"n":…}}}`, finite numbers, no key twice.
pub(super) fn parse_file(text: &str) -> Result<Metrics, String> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let tree = Tree::read(&mut reader).and_then(|tree| reader.end().map(|()| tree));
    let tree = tree.map_err(|error| {
        let hint = if text.contains("NaN") || text.contains("Infinity") {
            "; NaN and Infinity are no metrics"
        } else {
            ""
        };
        format!("{error}{hint}")
    })?;
    let Tree::Object(entries) = tree else { return Err("it is not a JSON object".to_owned()) };
    let mut metrics = Metrics::default();
    for (key, value) in entries {
        match (key.as_str(), value) {
            ("segments", Tree::Object(segments)) => {
                for (segment, tree) in segments {
                    metrics.segments.insert(segment.clone(), parse_segment(&segment, tree)?);
                }
            }
            ("segments", _) => return Err("`segments` is not an object".to_owned()),
            (_, value) => put(&key, value, &mut metrics.values, &mut metrics.n)?,
        }
    }
    if metrics.values.is_empty() {
        return Err("it has no metric".to_owned());
    }
    Ok(metrics)
}

fn parse_segment(segment: &str, tree: Tree) -> Result<SegmentMetrics, String> {
    let Tree::Object(entries) = tree else { return Err(format!("segment `{segment}` is not an object")) };
    let mut metrics = SegmentMetrics::default();
    for (key, value) in entries {
        put(&key, value, &mut metrics.values, &mut metrics.n)
            .map_err(|problem| format!("segment `{segment}`: {problem}"))?;
    }
    Ok(metrics)
}

fn put(
    key: &str,
    value: Tree,
    values: &mut BTreeMap<MetricName, f64>,
    n: &mut Option<u64>,
) -> Result<(), String> {
    let Tree::Number(number) = value else { return Err(format!("`{key}` is not a number")) };
    if key == "n" {
        if number < 0.0 || number.fract() != 0.0 || number > 1e15 {
            return Err(format!("`n` is {number}, not a number of rows"));
        }
        *n = Some(number as u64);
        return Ok(());
    }
    let name = key.parse::<MetricName>().map_err(|invalid| invalid.to_string())?;
    if values.insert(name, number).is_some() {
        return Err(format!("`{key}` is there twice"));
    }
    Ok(())
}

/// JSON as far as metrics need it. `serde_json::Value` would keep the last of two equal keys in silence.
enum Tree {
    Number(f64),
    Object(Vec<(String, Tree)>),
    Other,
}

impl Tree {
    fn read<'de, D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        reader.deserialize_any(TreeVisitor)
    }
}

impl<'de> serde::Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        Self::read(reader)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Tree, E> {
        if value.is_finite() { Ok(Tree::Number(value)) } else { Err(E::custom("a number is not finite")) }
    }

    fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
        Ok(Tree::Number(value as f64))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree::Number(value as f64))
    }

    fn visit_str<E>(self, _: &str) -> Result<Tree, E> {
        Ok(Tree::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Tree, E> {
        Ok(Tree::Other)
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Tree, A::Error> {
        while items.next_element::<Tree>()?.is_some() {}
        Ok(Tree::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
        let mut entries = Vec::new();
        let mut keys = std::collections::BTreeSet::new();
        while let Some((key, value)) = map.next_entry::<String, Tree>()? {
            if !keys.insert(key.clone()) {
                return Err(A::Error::custom(format!("`{key}` is there twice")));
            }
            entries.push((key, value));
        }
        Ok(Tree::Object(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_stdout(pattern: &str, pick: Option<Pick>, lines: &[&str]) -> Result<f64, String> {
        let name: MetricName = "mae".parse().expect("a name");
        let metric = StdoutMetric { pattern: regex::Regex::new(pattern).expect("a pattern"), pick };
        let wanted = BTreeMap::from([(name.clone(), metric)]);
        let mut metrics = StdoutMetrics::new(&wanted);
        lines.iter().for_each(|line| metrics.line(line));
        metrics.finish().map(|found| found[&name]).map_err(|problems| problems.join("; "))
    }

    #[test]
    fn a_pattern_that_matches_once_is_a_metric() {
        assert_eq!(from_stdout(r"MAE: ([\d.]+)", None, &["x", "MAE: 12.5 s"]), Ok(12.5));
    }

    #[test]
    fn several_matches_need_a_pick() {
        let lines = ["MAE: 1 MAE: 4", "MAE: 3", "MAE: 2"];
        insta::assert_snapshot!(from_stdout(r"MAE: (\d)", None, &lines).expect_err("ambiguous"),
            @r"metric `mae`: `MAE: (\d)` matched 4 times; say which counts with `pick: first|last|max|min|mean`");
        for (pick, value) in
            [(Pick::First, 1.0), (Pick::Last, 2.0), (Pick::Max, 4.0), (Pick::Min, 1.0), (Pick::Mean, 2.5)]
        {
            assert_eq!(from_stdout(r"MAE: (\d)", Some(pick), &lines), Ok(value), "{pick:?}");
        }
    }

    #[test]
    fn nothing_and_garbage_and_nan_are_errors() {
        for lines in [&[][..], &["MAE:"], &["MAE: nan"], &["MAE: inf"], &["MAE: 1e999"], &["MAE: 1.2.3"]] {
            from_stdout(r"MAE: (\S+)", None, lines).expect_err("not a metric");
            from_stdout(r"MAE: (\S+)", Some(Pick::Last), lines).expect_err("not a metric");
        }
        from_stdout(r"MAE: (\S+)", Some(Pick::Last), &["MAE: nan", "MAE: 1"]).expect_err("one is bad");
        from_stdout(r"MAE: (\S+)", Some(Pick::Mean), &["MAE: 1e308", "MAE: 1e308"]).expect_err("overflows");
    }

    #[test]
    fn a_whole_file_is_read() {
        let metrics =
            parse_file(r#"{"mae": 12.5, "r2": 0.9, "n": 400, "segments": {"sprint": {"mae": 9, "n": 100}}}"#)
                .expect("valid");
        assert_eq!(metrics.values.len(), 2);
        assert_eq!(metrics.n, Some(400));
        assert_eq!(metrics.segments["sprint"].n, Some(100));
    }

    #[test]
    fn a_file_that_is_not_strict_is_refused() {
        for text in [
            "",
            "[]",
            "1",
            "{}",
            r#"{"n": 4}"#,
            r#"{"mae": NaN}"#,
            r#"{"mae": Infinity}"#,
            r#"{"mae": 1e999}"#,
            r#"{"mae": -Infinity}"#,
            r#"{"mae": null}"#,
            r#"{"mae": "12"}"#,
            r#"{"mae": 1, "mae": 2}"#,
            r#"{"mae": 1} x"#,
            r#"{"mae": 1, "n": 1.5}"#,
            r#"{"mae": 1, "n": -1}"#,
            r#"{"mae": [1]}"#,
            r#"{"mae": 1, "segments": []}"#,
            r#"{"mae": 1, "segments": {"a": {"mae": NaN}}}"#,
            r#"{"mae": 1, "segments": {"a": {"mae": 1}, "a": {"mae": 2}}}"#,
            r#"{"a b": 1}"#,
        ] {
            assert!(parse_file(text).is_err(), "{text}");
        }
        insta::assert_snapshot!(parse_file(r#"{"mae": NaN}"#).expect_err("not JSON"),
            @"expected value at line 1 column 9; NaN and Infinity are no metrics");
    }
}
