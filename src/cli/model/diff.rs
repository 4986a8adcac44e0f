//! `model diff`: what differs between two versions.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::super::output::{plain, table};
use super::super::project::Opened;
use crate::domain::version::{Manifest, VersionRecord};
use crate::domain::words::{bytes, number};

/// Prints it.
pub fn print(opened: &Opened, one: &VersionRecord, other: &VersionRecord) {
    let metrics = metrics(one.manifest.as_ref(), other.manifest.as_ref());
    let files = files(one.manifest.as_ref(), other.manifest.as_ref());
    let facts = facts(one.manifest.as_ref(), other.manifest.as_ref());
    let value = json!({
        "model": one.model, "one": one.name, "other": other.name,
        "metrics": metrics.iter().map(|(name, a, b)| json!({"name": name, "one": a, "other": b}))
            .collect::<Vec<_>>(),
        "files": files.iter().map(|(path, a, b)| json!({"path": path, "one": a, "other": b}))
            .collect::<Vec<_>>(),
        "provenance": facts.iter().map(|(name, a, b)| json!({"name": name, "one": a, "other": b}))
            .collect::<Vec<_>>(),
    });
    opened.out.result(&value, || {
        let (a, b) = (one.name.as_str(), other.name.as_str());
        let shown = |value: &Option<f64>| value.map(number).unwrap_or_else(|| "-".to_owned());
        let mut parts = vec![];
        if !metrics.is_empty() {
            let rows = metrics.iter().map(|(name, one, other)| {
                let change = match (one, other) {
                    (Some(one), Some(other)) if *other != 0.0 => {
                        format!("{:+.1} %", (one - other) / other.abs() * 100.0)
                    }
                    (_, _) => String::new(),
                };
                vec![name.clone(), shown(one), shown(other), change]
            });
            parts.push(table(&["METRIC", a, b, "CHANGE"], rows));
        }
        if files.is_empty() {
            parts.push("the files are the same".to_owned());
        } else {
            let size = |size: &Option<(u64, String)>| size.as_ref().map_or("-".to_owned(), |it| bytes(it.0));
            let rows = files.iter().map(|(path, one, other)| vec![path.clone(), size(one), size(other)]);
            parts.push(table(&["FILE", a, b], rows));
        }
        if !facts.is_empty() {
            let text = |value: &Value| match value {
                Value::Null => "-".to_owned(),
                Value::String(text) => plain(text),
                other => plain(&other.to_string()),
            };
            let rows =
                facts.iter().map(|(name, one, other)| vec![plain(name), cut(text(one)), cut(text(other))]);
            parts.push(table(&["CAME FROM", a, b], rows));
        }
        parts.join("\n\n")
    });
}

fn cut(text: String) -> String {
    const LONGEST: usize = 60;
    if text.chars().count() <= LONGEST {
        return text;
    }
    let mut short: String = text.chars().take(LONGEST - 1).collect();
    short.push('…');
    short
}

type Pair<T> = (String, Option<T>, Option<T>);

/// Metrics of both, those of segments as `segment/metric`.
fn metrics(one: Option<&Manifest>, other: Option<&Manifest>) -> Vec<Pair<f64>> {
    let all = |manifest: Option<&Manifest>| -> BTreeMap<String, f64> {
        let Some(manifest) = manifest else { return BTreeMap::new() };
        let own = manifest.metrics.values.iter().map(|(name, value)| (name.to_string(), *value));
        let segments = manifest.metrics.segments.iter().flat_map(|(segment, metrics)| {
            metrics.values.iter().map(move |(name, value)| (format!("{segment}/{name}"), *value))
        });
        own.chain(segments).collect()
    };
    paired(&all(one), &all(other), |_, _| true)
}

/// Files that are not the same in both, with size and hash.
fn files(one: Option<&Manifest>, other: Option<&Manifest>) -> Vec<Pair<(u64, String)>> {
    let all = |manifest: Option<&Manifest>| -> BTreeMap<String, (u64, String)> {
        let files = manifest.map(|manifest| manifest.files.as_slice()).unwrap_or_default();
        files.iter().map(|file| (file.path.clone(), (file.size, file.sha256.clone()))).collect()
    };
    paired(&all(one), &all(other), |one, other| one != other)
}

/// Facts of the provenance that differ, by their path.
fn facts(one: Option<&Manifest>, other: Option<&Manifest>) -> Vec<(String, Value, Value)> {
    let all = |manifest: Option<&Manifest>| {
        let mut flat = BTreeMap::new();
        if let Some(manifest) = manifest {
            flatten("", &manifest.provenance, &mut flat);
        }
        flat
    };
    let differ = paired(&all(one), &all(other), |one, other| one != other);
    differ
        .into_iter()
        .map(|(name, one, other)| (name, one.unwrap_or_default(), other.unwrap_or_default()))
        .collect()
}

fn flatten(path: &str, value: &Value, into: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let below = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                flatten(&below, value, into);
            }
        }
        Value::Null => {}
        Value::Array(_) | Value::String(_) | Value::Bool(_) | Value::Number(_) => {
            into.insert(path.to_owned(), value.clone());
        }
    }
}

fn paired<T: Clone>(
    one: &BTreeMap<String, T>,
    other: &BTreeMap<String, T>,
    wanted: impl Fn(Option<&T>, Option<&T>) -> bool,
) -> Vec<Pair<T>> {
    let names: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    names
        .into_iter()
        .filter(|name| wanted(one.get(*name), other.get(*name)))
        .map(|name| (name.clone(), one.get(name).cloned(), other.get(name).cloned()))
        .collect()
}
