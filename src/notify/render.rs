//! From facts to a message: handlebars templates, built in, and replaced one
//! by one by files of the same name in a directory.
//!
//! `message/<moment>.hbs` has the subject in its first line and then what is
//! said first; `mail/layout.txt.hbs`, `mail/layout.html.hbs` and
//! `slack/blocks.json.hbs` put that and the other facts into their forms. A
//! name that a template uses and that is no fact is an error.

use std::path::Path;

use handlebars::Handlebars;
use serde_json::{Value, json};

use super::facts::{Facts, Link};
use crate::adapter::Message;
use crate::domain::workflow::{Mode, Moment};

/// Renders messages.
pub struct Renderer {
    plain: Handlebars<'static>,
    html: Handlebars<'static>,
    slack: Handlebars<'static>,
}

/// A template that is not one, or asks for a fact that there is not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("template {name}: {problem}")]
pub struct TemplateError {
    /// The template's file name.
    pub name: String,
    /// What is wrong.
    pub problem: String,
}

const TEXT_LAYOUT: &str = "mail/layout.txt.hbs";
const HTML_LAYOUT: &str = "mail/layout.html.hbs";
const SLACK_LAYOUT: &str = "slack/blocks.json.hbs";

/// Slack shows no more characters of a header, of a section's text, and of blocks.
const SLACK_HEADER: usize = 150;
const SLACK_SECTION: usize = 3_000;
const SLACK_BLOCKS: usize = 50;
/// Some more characters in all blocks, and Slack refuses them (`msg_blocks_too_long`).
const SLACK_TOTAL: usize = 10_000;
/// Mail programs show little more of a subject.
const LONGEST_SUBJECT: usize = 150;

macro_rules! built_in {
    ($name:expr) => {
        include_str!(concat!("../../templates/", $name))
    };
}

/// The file and the built-in text of a moment's template.
fn of_moment(moment: Moment) -> (&'static str, &'static str) {
    macro_rules! file {
        ($name:literal) => {
            ($name, built_in!($name))
        };
    }
    match moment {
        Moment::Started => file!("message/started.hbs"),
        Moment::CanaryStarted => file!("message/canary_started.hbs"),
        Moment::Promoted => file!("message/promoted.hbs"),
        Moment::Rejected => file!("message/rejected.hbs"),
        Moment::RolledBack => file!("message/rolled_back.hbs"),
        Moment::Held => file!("message/held.hbs"),
        Moment::NeedsApproval => file!("message/needs_approval.hbs"),
        Moment::Skipped => file!("message/skipped.hbs"),
        Moment::Failed => file!("message/failed.hbs"),
        Moment::Cancelled => file!("message/cancelled.hbs"),
        Moment::Succeeded => file!("message/succeeded.hbs"),
        Moment::Message => file!("message/message.hbs"),
        Moment::Alert => file!("message/alert.hbs"),
    }
}

/// All moments, for loading.
const MOMENTS: [Moment; 13] = [
    Moment::Started,
    Moment::CanaryStarted,
    Moment::Promoted,
    Moment::Rejected,
    Moment::RolledBack,
    Moment::Held,
    Moment::NeedsApproval,
    Moment::Skipped,
    Moment::Failed,
    Moment::Cancelled,
    Moment::Succeeded,
    Moment::Message,
    Moment::Alert,
];

fn colour(moment: Moment) -> &'static str {
    match moment {
        Moment::Promoted | Moment::Succeeded => "#18794e",
        Moment::RolledBack | Moment::Failed | Moment::Alert => "#ce2c31",
        Moment::Rejected | Moment::Held | Moment::NeedsApproval => "#ab6400",
        Moment::Started | Moment::CanaryStarted | Moment::Skipped | Moment::Cancelled | Moment::Message => {
            "#60646c"
        }
    }
}

impl Renderer {
    /// The built-in templates, replaced by those files that are in `overrides`.
    pub fn new(overrides: Option<&Path>) -> Result<Self, TemplateError> {
        let (mut plain, mut html, mut slack) = (engine(), engine(), engine());
        plain.register_escape_fn(handlebars::no_escape);
        html.register_escape_fn(handlebars::html_escape);
        slack.register_escape_fn(slack_escape);
        for moment in MOMENTS {
            let (name, text) = of_moment(moment);
            register(&mut plain, name, text, overrides)?;
        }
        register(&mut plain, TEXT_LAYOUT, built_in!("mail/layout.txt.hbs"), overrides)?;
        register(&mut html, HTML_LAYOUT, built_in!("mail/layout.html.hbs"), overrides)?;
        register(&mut slack, SLACK_LAYOUT, built_in!("slack/blocks.json.hbs"), overrides)?;
        Ok(Self { plain, html, slack })
    }

    /// The message that says `facts`; `id` is the same on every attempt.
    pub fn render(&self, id: &str, facts: &Facts, to: &[String]) -> Result<Message, TemplateError> {
        let (name, _) = of_moment(facts.moment);
        let mut data = data(facts);
        let said = render(&self.plain, name, &data)?;
        let (subject, lead) = said.split_once('\n').unwrap_or((&said, ""));
        let subject = shorten(&one_line(subject), LONGEST_SUBJECT);
        let paragraphs: Vec<String> = lead.lines().map(printable).filter(|line| !line.is_empty()).collect();
        data["subject"] = json!(subject);
        data["lead"] = json!(paragraphs);
        let text = render(&self.plain, TEXT_LAYOUT, &data)?;
        let html = render(&self.html, HTML_LAYOUT, &data)?;
        let blocks = render(&self.slack, SLACK_LAYOUT, &data)?;
        let blocks: Value = serde_json::from_str(&blocks).map_err(|error| TemplateError {
            name: SLACK_LAYOUT.to_owned(),
            problem: format!("it does not make JSON: {error}"),
        })?;
        Ok(Message {
            id: id.to_owned(),
            subject,
            text,
            html: Some(html),
            blocks: Some(within_limits(blocks)),
            to: to.to_vec(),
        })
    }
}

fn engine() -> Handlebars<'static> {
    let mut engine = Handlebars::new();
    engine.set_strict_mode(true);
    engine
}

fn register(
    engine: &mut Handlebars<'static>,
    name: &str,
    built_in: &str,
    overrides: Option<&Path>,
) -> Result<(), TemplateError> {
    let failed = |problem: String| TemplateError { name: name.to_owned(), problem };
    let text = match overrides.map(|directory| std::fs::read_to_string(directory.join(name))) {
        Some(Ok(text)) => text,
        Some(Err(error)) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(failed(error.to_string()));
        }
        Some(Err(_)) | None => built_in.to_owned(),
    };
    engine.register_template_string(name, text).map_err(|error| failed(error.to_string()))
}

fn render(engine: &Handlebars<'_>, name: &str, data: &Value) -> Result<String, TemplateError> {
    engine
        .render(name, data)
        .map_err(|error| TemplateError { name: name.to_owned(), problem: error.to_string() })
}

/// The facts as templates see them: numbers as people write them, every text without control characters.
fn data(facts: &Facts) -> Value {
    let metrics: Vec<Value> = facts
        .metrics
        .iter()
        .map(|row| {
            json!({
                "name": row.name,
                "candidate": number(row.candidate),
                "champion": row.champion.map(number),
                "change": row.champion.and_then(|champion| change(row.candidate, champion)),
            })
        })
        .collect();
    let links: Vec<&Link> = facts.links.iter().filter(|link| is_web(&link.url)).collect();
    let mode = facts.mode.unwrap_or_default();
    let data = json!({
        "workflow": facts.workflow,
        "model": facts.model,
        "moment": facts.moment,
        "run": facts.run,
        "mode": mode,
        "touched_nothing": mode != Mode::Act,
        "version": facts.version,
        "champion": facts.champion,
        "outcome": facts.outcome,
        "reason": facts.reason,
        "serving": facts.serving,
        "todo": facts.todo,
        "next": facts.next,
        "metrics": metrics,
        "verdicts": facts.verdicts,
        "links": links,
        "error": facts.error,
        "subject": facts.subject.as_deref().map(one_line),
        "message": facts.message,
        "steps": facts.steps,
        "colour": colour(facts.moment),
        "lead": [],
    });
    clean(data)
}

fn clean(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(text.lines().map(printable).collect::<Vec<_>>().join("\n")),
        Value::Array(items) => items.into_iter().map(clean).collect(),
        Value::Object(map) => map.into_iter().map(|(name, value)| (name, clean(value))).collect(),
        other => other,
    }
}

fn is_web(url: &str) -> bool {
    url::Url::parse(url).is_ok_and(|url| matches!(url.scheme(), "http" | "https"))
        && !url.contains(['|', '>', '<', '"', ' ', '\n'])
}

/// A line without control characters and characters that turn text around.
fn printable(line: &str) -> String {
    let hidden = |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    line.chars().map(|c| if hidden(c) { ' ' } else { c }).collect::<String>().trim().to_owned()
}

/// All in one line: what a header takes.
fn one_line(text: &str) -> String {
    printable(text).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// At most `most` characters.
fn shorten(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(most - 1).collect();
    // No half of an escape such as `&amp;` stays.
    if let Some(escape) = cut.rfind('&').filter(|at| !cut[*at..].contains(';')) {
        cut.truncate(escape);
    }
    cut + "…"
}

/// A number in at most five significant digits.
fn number(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return format!("{value}");
    }
    let before = value.abs().log10().floor() as i32 + 1;
    let decimals = usize::try_from(5 - before).unwrap_or(0).min(12);
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// The change from the champion's value, in percent.
fn change(candidate: f64, champion: f64) -> Option<String> {
    let change = 100.0 * (candidate - champion) / champion.abs();
    change.is_finite().then(|| format!("{change:+.1} %"))
}

/// Foreign text within mrkdwn within a JSON string: no mentions, no links, no end of the string.
fn slack_escape(text: &str) -> String {
    let escaped = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let quoted = Value::String(escaped).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

/// Blocks that Slack takes: not too many, not too long; what is cut says so.
fn within_limits(blocks: Value) -> Value {
    let Value::Array(blocks) = blocks else { return json!([]) };
    let (mut kept, mut total) = (vec![], 0);
    let count = blocks.len();
    for mut block in blocks {
        let most = if block["type"] == "header" { SLACK_HEADER } else { SLACK_SECTION };
        if let Some(Value::String(text)) = block.pointer_mut("/text/text") {
            *text = shorten(text, most);
            // Slack refuses an empty text.
            if text.is_empty() {
                continue;
            }
        }
        total += block.to_string().len();
        if kept.len() + 1 == SLACK_BLOCKS || total > SLACK_TOTAL {
            let left = count - kept.len();
            let more = format!("… and {left} more: see the run");
            kept.push(json!({"type": "context", "elements": [{"type": "mrkdwn", "text": more}]}));
            break;
        }
        kept.push(block);
    }
    Value::Array(kept)
}

#[cfg(test)]
mod tests;
