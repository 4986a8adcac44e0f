//! A receipt as a page: HTML for a browser, Markdown for a ticket or a chat.
//! Handlebars templates, built in, and replaced one by one by files of the
//! same name in the directory that `[templates]` names. All of a receipt is
//! foreign text to them.

mod change;

use std::path::Path;

use handlebars::Handlebars;
use serde::Serialize;
use serde_json::{Value, json};

use crate::domain::Timestamp;
use crate::domain::because::Evidence;
use crate::domain::canary::{CanaryView, LabelsView, RuleView, UnlabelledView};
use crate::domain::gate::RuleResult;
use crate::domain::receipt::{Decision, GateFacts, Receipt};
use crate::domain::verdict::Verdict;
use crate::domain::words::{count, number, steers};
use crate::domain::workflow::step::Role;
use crate::templates::{Prose, TemplateError, clean, engine, register, render};

/// Templates for a browser: those of whole pages, and their parts.
const HTML: [(&str, &str); 4] = [
    ("receipt/page.html.hbs", include_str!("../../templates/receipt/page.html.hbs")),
    ("receipt/change.html.hbs", include_str!("../../templates/receipt/change.html.hbs")),
    ("receipt/canary.html.hbs", include_str!("../../templates/receipt/canary.html.hbs")),
    ("receipt/style.css.hbs", include_str!("../../templates/receipt/style.css.hbs")),
];
/// The same for a ticket.
const MARKDOWN: [(&str, &str); 3] = [
    ("receipt/page.md.hbs", include_str!("../../templates/receipt/page.md.hbs")),
    ("receipt/change.md.hbs", include_str!("../../templates/receipt/change.md.hbs")),
    ("receipt/canary.md.hbs", include_str!("../../templates/receipt/canary.md.hbs")),
];

/// What has a page.
pub trait Page: Serialize {
    /// Its templates: for a browser, and for a ticket.
    const TEMPLATES: [&'static str; 2];

    /// What it says, in one sentence.
    fn headline(&self) -> &str;

    /// It as templates see it: numbers and times as people write them.
    fn data(&self) -> Value;
}

/// Writes receipts.
pub struct Pages {
    html: Handlebars<'static>,
    markdown: Handlebars<'static>,
}

impl Pages {
    /// The built-in templates, replaced by those files that are in `overrides`.
    ///
    /// # Errors
    /// A file that is no template.
    pub fn new(overrides: Option<&Path>) -> Result<Self, TemplateError> {
        let (mut html, mut markdown) = (engine(), engine());
        html.register_escape_fn(handlebars::html_escape);
        html.register_helper("prose", Box::new(Prose { code: "<code>" }));
        markdown.register_escape_fn(markdown_text);
        for (engine, templates) in [(&mut html, HTML.as_slice()), (&mut markdown, &MARKDOWN)] {
            for (name, built_in) in templates {
                register(engine, name, built_in, overrides)?;
            }
        }
        Ok(Self { html, markdown })
    }

    /// One page of HTML: no script, nothing from elsewhere.
    ///
    /// # Errors
    /// A template that asks for what there is not.
    pub fn html<P: Page>(&self, page: &P) -> Result<String, TemplateError> {
        render(&self.html, P::TEMPLATES[0], &clean(page.data()))
    }

    /// The same in Markdown.
    ///
    /// # Errors
    /// As [`Pages::html`].
    pub fn markdown<P: Page>(&self, page: &P) -> Result<String, TemplateError> {
        render(&self.markdown, P::TEMPLATES[1], &clean(page.data()))
    }
}

/// Parts what a ticket would make a link or the call of a person, also after the Markdown has become text.
const PARTED: &str = "&#8203;";

/// Text of trainers, files and people as text, never as markup, a link or a mention.
pub fn markdown_text(text: &str) -> String {
    // A colon of a sentence, of a time of day or of odds begins no address.
    let is_apart =
        |before: char, next: char| next.is_whitespace() || (before.is_ascii_digit() && next.is_ascii_digit());
    let (mut safe, mut before) = (String::new(), [' '; 3]);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '&' => safe.push_str("&amp;"),
            '@' => {
                safe.push(c);
                safe.push_str(PARTED);
            }
            ':' if chars.peek().is_some_and(|&next| !is_apart(before[2], next)) => {
                safe.push(c);
                safe.push_str(PARTED);
            }
            '.' if before.iter().all(|c| c.eq_ignore_ascii_case(&'w')) => {
                safe.push_str(PARTED);
                safe.push(c);
            }
            '\n' | '\r' => safe.push(' '),
            '|' | '<' | '>' | '[' | ']' | '`' | '*' | '\\' | '#' | '!' | '_' | '~' => {
                safe.push('\\');
                safe.push(c);
            }
            c if steers(c) => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
        before = [before[1], before[2], c];
    }
    safe
}

impl Page for Receipt {
    const TEMPLATES: [&'static str; 2] = [HTML[0].0, MARKDOWN[0].0];

    fn headline(&self) -> &str {
        &self.headline
    }

    fn data(&self) -> Value {
        data(self)
    }
}

fn data(receipt: &Receipt) -> Value {
    let (label, class) = match receipt.decision {
        Decision::Promoted => ("Promoted", "good"),
        Decision::RolledBack => ("Rolled back", "bad"),
        Decision::Rejected => ("Rejected", "odd"),
        Decision::Held => ("Held", "odd"),
    };
    let metrics = metrics(receipt);
    json!({
        "label": label,
        "class": class,
        "headline": receipt.headline,
        "reason": receipt.reason,
        "facts": facts(receipt),
        "checked": !(receipt.data.is_empty() && metrics.is_empty() && receipt.gates.is_empty()),
        "data": receipt.data.iter().map(|data| json!({
            "step": data.step, "rows": count(data.rows), "sha256": data.sha256, "violations": data.violations,
        })).collect::<Vec<_>>(),
        "metrics": metrics,
        "gates": receipt.gates.iter().map(gate).collect::<Vec<_>>(),
        "canary": receipt.canary.as_ref().map(|facts| canary(&facts.view, facts.ended_at)),
        "people": receipt.people.iter().map(|person| json!({
            "name": person.name, "did": person.did, "step": person.step,
            "at": person.at.map(time), "reason": person.reason,
        })).collect::<Vec<_>>(),
        "changes": receipt.changes.iter().map(|change| json!({
            "at": time(change.at), "what": change.what, "who": change.who, "why": change.why,
            "then": change.evidence.as_ref().and_then(Evidence::view).map(|view| view.in_short()),
        })).collect::<Vec<_>>(),
        "limits": receipt.limits,
        "reproduce": reproduce(receipt),
        "commands": receipt.reproduce.commands,
        "not_again": receipt.reproduce.not_again,
    })
}

fn named(name: &str, value: impl Into<String>) -> Value {
    json!({"name": name, "value": value.into()})
}

fn facts(receipt: &Receipt) -> Vec<Value> {
    let mut facts = vec![named("Model", receipt.model.to_string())];
    if let Some(version) = &receipt.version {
        facts.push(named("Version", version.to_string()));
    }
    facts.push(named(
        "Compared with",
        receipt.champion.as_ref().map_or("nothing: there was no champion".to_owned(), ToString::to_string),
    ));
    if let Some(target) = &receipt.target {
        facts.push(named("Where", target.to_string()));
    }
    if let Some(at) = receipt.decided_at {
        facts.push(named("Decided", time(at)));
    }
    facts.push(named(
        "Run",
        format!(
            "{} of workflow {}, begun {} by {}",
            receipt.run,
            receipt.workflow,
            time(receipt.began_at),
            receipt.started_by
        ),
    ));
    facts
}

/// What the trainers said, beside what the gate measured of the champion on the same rows.
fn metrics(receipt: &Receipt) -> Vec<Value> {
    let rules = || receipt.gates.iter().flat_map(|gate| &gate.rules).filter(|rule| rule.segment.is_none());
    let all = receipt.training.iter().flat_map(|training| &training.metrics.values);
    let rows = all.map(|(name, value)| {
        let champion = rules().filter(|rule| &rule.metric == name).find_map(|rule| rule.champion);
        json!({"name": name, "candidate": number(*value), "champion": champion.map(number)})
    });
    rows.collect()
}

fn mark(verdict: Verdict) -> (&'static str, &'static str) {
    match verdict {
        Verdict::Pass => ("✓", "good"),
        Verdict::Fail | Verdict::Error => ("✗", "bad"),
        Verdict::Inconclusive => ("?", "odd"),
    }
}

fn gate(gate: &GateFacts) -> Value {
    let rule = |rule: &RuleResult| {
        let (mark, class) = mark(rule.verdict);
        let interval =
            rule.interval.map(|(lower, upper)| format!("between {} and {}", change(lower), change(upper)));
        let n = rule.n.map(|n| format!("{} rows", count(n)));
        let more: Vec<String> = interval.into_iter().chain(n).collect();
        json!({
            "sentence": rule.sentence, "rule": rule.rule, "mark": mark, "class": class,
            "verdict": rule.verdict.as_str(), "more": more.join(", "),
        })
    };
    json!({
        "step": gate.step, "verdict": gate.verdict.as_str(), "class": mark(gate.verdict).1,
        "rules": gate.rules.iter().map(rule).collect::<Vec<_>>(), "warnings": gate.warnings,
    })
}

/// How much worse, as a part of the champion's value.
fn change(fraction: f64) -> String {
    let percent = 100.0 * fraction.abs();
    format!("{percent:.1} % {}", if fraction > 0.0 { "worse" } else { "better" })
}

fn canary(view: &CanaryView, ended_at: Option<Timestamp>) -> Value {
    let rule = |rule: &RuleView| {
        let words = rule.words(view.limit_against);
        let alone = rule.limit_alone(view.limit_against);
        json!({
            "subject": rule.metric.plural(),
            "observed": rule.role == Role::Observe,
            "canary": words.canary,
            "stable": words.stable,
            "interval": words.interval,
            "worse": words.worse.0,
            "worse_limit": words.worse.1,
            "worse_bar": alone.map(|limit| bar(rule.log_e_worse, limit)),
            "not_worse": words.not_worse.0,
            "not_worse_limit": words.not_worse.1,
            "not_worse_bar": bar(rule.log_e_not_worse, rule.limit_not_worse),
            "margin": words.margin,
            "accepted": words.accepted,
        })
    };
    let labels = |labels: &LabelsView| {
        let [age, canary, stable, interval, worse, limit] = labels.words();
        json!({
            "age": age, "canary": canary, "stable": stable, "interval": interval, "worse": worse, "limit": limit,
            "bar": bar(labels.log_e_worse, labels.limit),
        })
    };
    let unlabelled = |unlabelled: &UnlabelledView| {
        let [canary, stable] = unlabelled.words();
        json!({"canary": canary, "stable": stable})
    };
    let (_, class) = mark(view.verdict);
    json!({
        "version": view.version,
        "champion": view.champion,
        "share": view.share.to_string(),
        "started": time(view.started_at),
        "ended": ended_at.or(view.looked_at).map(time),
        "verdict": view.verdict.as_str(),
        "class": class,
        "reason": view.reason,
        "rules": view.rules.iter().map(rule).collect::<Vec<_>>(),
        "labels": view.labels.as_ref().map(labels),
        "unlabelled": view.unlabelled.as_ref().map(unlabelled),
    })
}

/// How far evidence is on its way to its limit, in percent of the width of a bar.
fn bar(log_e: f64, limit: f64) -> u8 {
    (100.0 * log_e / limit).clamp(0.0, 100.0) as u8
}

fn reproduce(receipt: &Receipt) -> Vec<Value> {
    let reproduce = &receipt.reproduce;
    let mut facts = vec![
        named("Workflow file", reproduce.workflow_file.clone()),
        named("Configuration SHA-256", reproduce.configuration_sha256.clone()),
    ];
    facts.extend(
        receipt.data.iter().map(|data| named(&format!("Data of {} SHA-256", data.step), data.sha256.clone())),
    );
    for training in &receipt.training {
        if let Some(sha256) = &training.errors_sha256 {
            facts.push(named(&format!("Scored holdout of {} SHA-256", training.step), sha256.clone()));
        }
    }
    facts.extend(
        receipt.gates.iter().map(|gate| named(&format!("Seed of {}", gate.step), gate.seed.to_string())),
    );
    if let Some(sha256) = &reproduce.manifest_sha256 {
        facts.push(named("Manifest SHA-256", sha256.clone()));
    }
    let provenance = reproduce.provenance.as_object();
    let known = provenance.into_iter().flatten().filter(|(name, _)| !SAID.contains(&name.as_str()));
    facts.extend(known.filter_map(|(name, value)| Some(named(name, flat(value)?))));
    facts
}

/// Parts of a version's provenance that the receipt has in a better form.
const SAID: [&str; 2] = ["data", "workflow"];

/// Nested facts in one line; nothing of what is not known.
fn flat(value: &Value) -> Option<String> {
    let joined = |parts: Vec<String>| (!parts.is_empty()).then(|| parts.join(", "));
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        Value::Object(map) => {
            joined(map.iter().filter_map(|(key, value)| Some(format!("{key} {}", flat(value)?))).collect())
        }
        Value::Array(items) => joined(items.iter().filter_map(flat).collect()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
    }
}

fn time(at: Timestamp) -> String {
    at.format("%F %H:%M UTC").to_string()
}

#[cfg(test)]
mod tests;
