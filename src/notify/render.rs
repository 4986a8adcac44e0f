//! From facts to a message: handlebars templates, built in, and replaced one
//! by one by files of the same name in a directory.
//!
//! `message/<moment>.hbs` has the subject in its first line and then what is
//! said first; `mail/layout.txt.hbs`, `mail/layout.html.hbs` and
//! `slack/blocks.json.hbs` put that and the other facts into their forms;
//! `message/progress.hbs` and `slack/progress.json.hbs` make the message that
//! follows a run. A name that a template uses and that is no fact is an error.

use std::path::Path;

use handlebars::Handlebars;
use serde_json::{Value, json};

use super::facts::{Facts, Link, MetricRow, StepMark};
use crate::adapter::Message;
use crate::domain::verdict::Verdict;
use crate::domain::words::number;
use crate::domain::workflow::{Better, Mode, Moment};
use crate::templates::{Prose, TemplateError, clean, clean_line, engine, register, render};

/// Renders messages.
pub struct Renderer {
    plain: Handlebars<'static>,
    html: Handlebars<'static>,
    slack: Handlebars<'static>,
}

const TEXT_LAYOUT: &str = "mail/layout.txt.hbs";
const HTML_LAYOUT: &str = "mail/layout.html.hbs";
const SLACK_LAYOUT: &str = "slack/blocks.json.hbs";
const PROGRESS: &str = "message/progress.hbs";
const PROGRESS_LAYOUT: &str = "slack/progress.json.hbs";

/// Code in a mail: a whole command stands in one line where one can hold it.
const CODE: &str = "<code class=\"code\" style=\"display:inline-block;max-width:100%;padding:0 5px;border-radius:4px;\
    background:#f0f0f3;color:#1c2024;font:14px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace\">";

/// Slack shows no more characters of a header, of a section's text, and of blocks.
const SLACK_HEADER: usize = 150;
const SLACK_SECTION: usize = 3_000;
const SLACK_BLOCKS: usize = 50;
/// Some more characters in all blocks, and Slack refuses them (`msg_blocks_too_long`).
const SLACK_TOTAL: usize = 10_000;
/// Longer lines on a step make the list unreadable.
const LONGEST_LINE: usize = 200;
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
        Moment::Frozen => file!("message/frozen.hbs"),
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
const MOMENTS: [Moment; 14] = [
    Moment::Started,
    Moment::CanaryStarted,
    Moment::Promoted,
    Moment::Rejected,
    Moment::RolledBack,
    Moment::Held,
    Moment::Frozen,
    Moment::NeedsApproval,
    Moment::Skipped,
    Moment::Failed,
    Moment::Cancelled,
    Moment::Succeeded,
    Moment::Message,
    Moment::Alert,
];

/// How a moment looks: a word for it, its colour as text and as background, and the class that changes both in the dark.
struct Look {
    label: &'static str,
    class: &'static str,
    colour: &'static str,
    tint: &'static str,
    sign: &'static str,
}

fn look(moment: Moment) -> Look {
    let good = |label| Look { label, class: "good", colour: "#18794e", tint: "#e6f6eb", sign: "✅" };
    let bad = |label, sign| Look { label, class: "bad", colour: "#b42318", tint: "#feebec", sign };
    let odd = |label, sign| Look { label, class: "odd", colour: "#8a4b00", tint: "#fff7c2", sign };
    let plain = |label, sign| Look { label, class: "plain", colour: "#55595f", tint: "#f0f0f3", sign };
    match moment {
        Moment::Promoted => good("Promoted"),
        Moment::Succeeded => good("Done"),
        Moment::RolledBack => bad("Rolled back", "↩️"),
        Moment::Failed => bad("Failed", "❌"),
        Moment::Alert => bad("Needs you now", "🚨"),
        Moment::Rejected => odd("Rejected", "⛔"),
        Moment::Held => odd("Your decision", "✋"),
        Moment::Frozen => odd("Waits: frozen", "🧊"),
        Moment::NeedsApproval => odd("Your approval", "✋"),
        Moment::Started => plain("Under way", "🔄"),
        Moment::CanaryStarted => plain("On canary", "🐤"),
        Moment::Skipped => plain("Nothing to do", "⏭️"),
        Moment::Cancelled => plain("Cancelled", "⏹️"),
        Moment::Message => plain("Message", "💬"),
    }
}

impl Renderer {
    /// The built-in templates, replaced by those files that are in `overrides`.
    pub fn new(overrides: Option<&Path>) -> Result<Self, TemplateError> {
        let (mut plain, mut html, mut slack) = (engine(), engine(), engine());
        plain.register_escape_fn(handlebars::no_escape);
        html.register_escape_fn(handlebars::html_escape);
        slack.register_escape_fn(slack_escape);
        html.register_helper("prose", Box::new(Prose { code: CODE }));
        for moment in MOMENTS {
            let (name, text) = of_moment(moment);
            register(&mut plain, name, text, overrides)?;
        }
        register(&mut plain, PROGRESS, built_in!("message/progress.hbs"), overrides)?;
        register(&mut plain, TEXT_LAYOUT, built_in!("mail/layout.txt.hbs"), overrides)?;
        register(&mut html, HTML_LAYOUT, built_in!("mail/layout.html.hbs"), overrides)?;
        register(&mut slack, SLACK_LAYOUT, built_in!("slack/blocks.json.hbs"), overrides)?;
        register(&mut slack, PROGRESS_LAYOUT, built_in!("slack/progress.json.hbs"), overrides)?;
        Ok(Self { plain, html, slack })
    }

    /// The message that says `facts`; `id` is the same on every attempt, and so is every byte of the message.
    pub fn render(&self, id: &str, facts: &Facts, to: &[String]) -> Result<Message, TemplateError> {
        let (name, _) = of_moment(facts.moment);
        let data = self.opened(name, facts)?;
        let text = render(&self.plain, TEXT_LAYOUT, &data)?;
        let html = render(&self.html, HTML_LAYOUT, &data)?;
        Ok(Message {
            id: id.to_owned(),
            subject: data["subject"].as_str().unwrap_or_default().to_owned(),
            text,
            html: Some(html),
            blocks: Some(self.blocks(SLACK_LAYOUT, &data)?),
            to: to.to_vec(),
            tried_since: None,
        })
    }

    /// The message that follows a run: where it is, step by step. `facts.moment` is how it ended, or `Started`.
    pub fn progress(&self, id: &str, facts: &Facts) -> Result<Message, TemplateError> {
        let mut facts = facts.clone();
        if facts.headline.is_none() {
            let (name, _) = of_moment(facts.moment);
            facts.headline = self.opened(name, &facts)?["subject"].as_str().map(str::to_owned);
        }
        let data = self.opened(PROGRESS, &facts)?;
        let lines = |key: &str| data[key].as_array().into_iter().flatten().filter_map(Value::as_str);
        let text: Vec<&str> = lines("lead").chain(lines("progress_lines")).collect();
        Ok(Message {
            id: id.to_owned(),
            subject: data["subject"].as_str().unwrap_or_default().to_owned(),
            text: text.join("\n"),
            html: None,
            blocks: Some(self.blocks(PROGRESS_LAYOUT, &data)?),
            to: vec![],
            tried_since: None,
        })
    }

    /// The data of a message with what the template `name` opens it with.
    fn opened(&self, name: &str, facts: &Facts) -> Result<Value, TemplateError> {
        let mut data = data(facts);
        let said = render(&self.plain, name, &data)?;
        let (subject, lead) = said.split_once('\n').unwrap_or((&said, ""));
        let paragraphs: Vec<String> = lead.lines().map(clean_line).filter(|line| !line.is_empty()).collect();
        data["subject"] = json!(shorten(&one_line(subject), LONGEST_SUBJECT));
        data["lead"] = json!(paragraphs);
        Ok(data)
    }

    fn blocks(&self, name: &str, data: &Value) -> Result<Value, TemplateError> {
        let blocks = render(&self.slack, name, data)?;
        let blocks: Value = serde_json::from_str(&blocks).map_err(|error| TemplateError {
            name: name.to_owned(),
            problem: format!("it does not make JSON: {error}"),
        })?;
        Ok(within_limits(blocks))
    }
}

/// The facts as templates see them: numbers as people write them, every text without control characters.
fn data(facts: &Facts) -> Value {
    let look = look(facts.moment);
    let progress: Vec<String> = facts
        .progress
        .iter()
        .map(|row| {
            let said = row.said.as_deref().map(|said| format!(": {}", one_line(said))).unwrap_or_default();
            shorten(&format!("{} {}{said}", sign_of_step(row.state), row.step), LONGEST_LINE)
        })
        .collect();
    let verdicts: Vec<Value> = facts
        .verdicts
        .iter()
        .map(|check| {
            let (mark, class, colour) = sign_of_verdict(check.verdict);
            json!({"sentence": check.sentence, "mark": mark, "class": class, "colour": colour})
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
        "bounds": (facts.moment == Moment::Started).then(|| bounds(mode)).flatten(),
        "version": facts.version,
        "by": facts.by,
        "champion": facts.champion,
        "outcome": facts.outcome,
        "reason": facts.reason,
        "serving": facts.serving,
        "advice": facts.advice,
        "todo": facts.todo,
        "next": facts.next,
        "metrics": metric_rows(&facts.metrics),
        "checked": !facts.metrics.is_empty() || !facts.verdicts.is_empty(),
        "compared": facts.metrics.iter().any(|row| row.champion.is_some()),
        "verdicts": verdicts,
        "links": links,
        "command": facts.command,
        "first": facts.first,
        "headline": facts.headline,
        "progress_lines": progress,
        "error": facts.error,
        "subject": facts.subject.as_deref().map(one_line),
        "message": facts.message,
        "steps": facts.steps,
        "label": look.label,
        "class": look.class,
        "colour": look.colour,
        "tint": look.tint,
        "sign": look.sign,
        "lead": [],
    });
    clean(data)
}

/// How far a run that goes on will go, where that is less than its workflow says.
fn bounds(mode: Mode) -> Option<&'static str> {
    match mode {
        Mode::Act => None,
        Mode::Advise => Some(
            "Mode advise: every step runs, and none changes what serves; at the end it is said what `mode: act` \
             would have done.",
        ),
        Mode::Observe => {
            Some("Mode observe: refit fetches, trains and judges, and changes nothing that serves.")
        }
    }
}

/// Metrics as templates see them: values short, the change and whether it is one for the better, and all of it as a line
/// of text whose columns stand below each other.
fn metric_rows(metrics: &[MetricRow]) -> Vec<Value> {
    let cells: Vec<[String; 4]> = metrics
        .iter()
        .map(|row| {
            let change = row.champion.and_then(|champion| change(row.candidate, champion));
            let tone = tone(row).map(|(word, ..)| format!(", {word}")).unwrap_or_default();
            let change = change.map(|change| format!("{change}{tone}")).unwrap_or_default();
            [one_line(&row.name), row.champion.map(number).unwrap_or_default(), number(row.candidate), change]
        })
        .collect();
    let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths = [width(0), width(1), width(2)];
    let shown = metrics.iter().zip(&cells).map(|(row, cells)| {
        let (word, class, colour) = tone(row).unwrap_or(("", "", "inherit"));
        let [name, old, new, change] = cells;
        let arrow = match (widths[1], old.is_empty()) {
            (0, _) => "",
            (_, true) => "   ",
            (_, false) => "-> ",
        };
        let space = if widths[1] == 0 { "" } else { " " };
        let line = format!(
            "{name:<0$}  {old:>1$}{space}{arrow}{new:>2$}  {change}",
            widths[0], widths[1], widths[2]
        );
        json!({
            "name": row.name,
            "candidate": number(row.candidate),
            "champion": row.champion.map(number),
            "change": row.champion.and_then(|champion| self::change(row.candidate, champion)),
            "tone": word,
            "class": class,
            "colour": colour,
            "line": line.trim_end(),
        })
    });
    shown.collect()
}

/// Whether a metric got better, with how that looks; nothing where that is unknown or nothing changed.
fn tone(row: &MetricRow) -> Option<(&'static str, &'static str, &'static str)> {
    let (better, champion) = (row.better?, row.champion?);
    let improved = match better {
        Better::Lower => row.candidate < champion,
        Better::Higher => row.candidate > champion,
    };
    (row.candidate != champion).then_some(if improved {
        ("better", "good", "#18794e")
    } else {
        ("worse", "bad", "#b42318")
    })
}

/// A verdict in the colours of the moments.
fn sign_of_verdict(verdict: Option<Verdict>) -> (&'static str, &'static str, &'static str) {
    match verdict {
        Some(Verdict::Pass) => ("✓", "good", "#18794e"),
        Some(Verdict::Fail | Verdict::Error) => ("✗", "bad", "#b42318"),
        Some(Verdict::Inconclusive) => ("?", "odd", "#8a4b00"),
        None => ("–", "soft", "#60646c"),
    }
}

fn sign_of_step(mark: StepMark) -> &'static str {
    match mark {
        StepMark::Pending => "▫️",
        StepMark::Running => "🔄",
        StepMark::Waiting => "⏳",
        StepMark::Done => "✅",
        StepMark::Failed => "❌",
        StepMark::Skipped => "⏭️",
    }
}

fn is_web(url: &str) -> bool {
    url::Url::parse(url).is_ok_and(|url| matches!(url.scheme(), "http" | "https"))
        && !url.contains(['|', '>', '<', '"', ' ', '\n'])
}

/// All in one line: what a header takes.
fn one_line(text: &str) -> String {
    clean_line(text).split_whitespace().collect::<Vec<_>>().join(" ")
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
