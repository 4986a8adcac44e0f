//! `model card`: one page about a version, in Markdown, for whoever reviews it.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::super::output::{plain, time};
use super::changes::who;
use crate::domain::canary::CanaryRecord;
use crate::domain::history::HistoryEntry;
use crate::domain::version::VersionRecord;
use crate::domain::words::{bytes, number};
use crate::receipt::page::markdown_text as escaped;

/// What a card tells.
pub struct Card<'a> {
    /// The version.
    pub record: &'a VersionRecord,
    /// What it is now: `champion`, `bad`, `pinned`.
    pub roles: &'a [String],
    /// Its canary, if it was on one.
    pub canary: Option<&'a CanaryRecord>,
    /// Changes that concern it, newest first.
    pub history: &'a [HistoryEntry],
}

impl Card<'_> {
    /// For programs.
    pub fn to_json(&self) -> Value {
        json!({
            "version": self.record, "roles": self.roles, "history": self.history,
            "canary": self.canary.map(|canary| json!({
                "champion": canary.champion, "verdict": canary.verdict, "reason": canary.reason,
                "started_at": canary.started_at, "ended_at": canary.ended_at, "state": canary.state,
            })),
        })
    }

    /// For people.
    pub fn to_markdown(&self) -> String {
        let record = self.record;
        let mut text = format!("# {} {}\n\n", record.model, record.name);
        let roles = if self.roles.is_empty() { "nobody".to_owned() } else { self.roles.join(", ") };
        let maker = record.run.map_or("adopted".to_owned(), |run| format!("run `{run}`"));
        line(&mut text, "Serves", &escaped(&roles));
        line(&mut text, "Made", &format!("{}, {maker}", time(record.created_at)));
        line(&mut text, "Files at", &code(&record.base_url));
        line(&mut text, "Manifest SHA-256", &code(&record.manifest_sha256));
        if let Some(manifest) = &record.manifest {
            self.judged(&mut text, &manifest.provenance);
            let metrics = &manifest.metrics;
            if !metrics.values.is_empty() {
                text.push_str("\n## Metrics\n\n| metric | value |\n|---|---|\n");
                for (name, value) in &metrics.values {
                    row(&mut text, &[&name.to_string(), &number(*value)]);
                }
                for (segment, values) in &metrics.segments {
                    for (name, value) in &values.values {
                        row(&mut text, &[&format!("{segment}: {name}"), &number(*value)]);
                    }
                }
            }
            came_from(&mut text, &manifest.provenance);
            let total: u64 = manifest.files.iter().map(|file| file.size).sum();
            text.push_str(&format!("\n## Files\n\n{} in all, {}.\n\n", manifest.files.len(), bytes(total)));
            text.push_str("| file | size | SHA-256 |\n|---|---|---|\n");
            for file in &manifest.files {
                row(&mut text, &[&file.path, &bytes(file.size), &file.sha256]);
            }
        }
        if !self.history.is_empty() {
            text.push_str("\n## History\n\n| when | what | who | why |\n|---|---|---|---|\n");
            for entry in self.history {
                let (what, by) = (entry.change.to_string(), who(&entry.by.actor));
                row(&mut text, &[&time(entry.by.at), &what, &by, &entry.by.reason]);
            }
        }
        text
    }

    fn judged(&self, text: &mut String, provenance: &Value) {
        let verdicts = provenance["verdicts"].as_array().map(Vec::as_slice).unwrap_or_default();
        if verdicts.is_empty() && self.canary.is_none() {
            return;
        }
        text.push_str("\n## How it was judged\n\n");
        for verdict in verdicts {
            let said = |key: &str| verdict[key].as_str().unwrap_or("-");
            let _ = writeln!(text, "- {}: **{}**", code(said("step")), escaped(said("verdict")));
            for rule in verdict["rules"].as_array().into_iter().flatten() {
                let _ = writeln!(text, "  - {}", escaped(rule["sentence"].as_str().unwrap_or("-")));
            }
        }
        if let Some(canary) = self.canary {
            let _ = writeln!(
                text,
                "- canary against {} since {}: **{}**: {}",
                canary.champion,
                time(canary.started_at),
                canary.verdict.as_str(),
                escaped(&canary.reason)
            );
        }
    }
}

fn came_from(text: &mut String, provenance: &Value) {
    let Some(facts) = provenance.as_object() else { return };
    let facts: Vec<_> =
        facts.iter().filter(|(name, value)| !value.is_null() && *name != "verdicts").collect();
    if facts.is_empty() {
        return;
    }
    text.push_str("\n## Where it came from\n\n| | |\n|---|---|\n");
    for (name, value) in facts {
        let shown = match value {
            Value::String(text) => text.clone(),
            Value::Object(map) => {
                let parts = map.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| {
                    format!("{key} {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned))
                });
                parts.collect::<Vec<_>>().join(", ")
            }
            other => other.to_string(),
        };
        row(text, &[name, &shown]);
    }
}

fn line(text: &mut String, name: &str, value: &str) {
    let _ = writeln!(text, "- {name}: {value}");
}

fn row(text: &mut String, cells: &[&str]) {
    let cells: Vec<String> = cells.iter().map(|cell| escaped(cell)).collect();
    let _ = writeln!(text, "| {} |", cells.join(" | "));
}

fn code(text: &str) -> String {
    format!("`{}`", plain(text).replace(['`', '\n'], ""))
}
