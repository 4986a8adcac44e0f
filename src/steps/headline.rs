//! What a step came to, in one line: its main numbers. Reads outputs as they
//! are stored, also those of older versions, so nothing here fails.

use serde_json::Value;

use crate::domain::words::{bytes, counted, number};
use crate::domain::workflow::StepKind;

/// The main numbers of what a step returned; empty when it has none.
pub fn of(kind: Option<&StepKind>, output: &Value) -> String {
    match kind {
        Some(StepKind::Fetch(_)) => fetch(output),
        Some(StepKind::Run(_)) => run(output),
        Some(StepKind::Evaluate(_)) => evaluate(output),
        Some(StepKind::Gate(_)) => gate(output),
        Some(StepKind::Publish(_)) => joined([word(output, "version"), files(output)]),
        Some(StepKind::Canary(_)) => canary(output),
        Some(StepKind::Wait(_)) => match word(output, "ended_by").as_deref() {
            Some("no_canary") => "there is no canary to watch".to_owned(),
            Some(by) => format!("ended by {}", by.replace('_', " ")),
            None => String::new(),
        },
        Some(StepKind::Shadow(_)) => {
            let rows = output.get("rows").and_then(Value::as_u64).map(|rows| counted(rows, "row"));
            let by = word(output, "ended_by").map(|by| format!("ended by {}", by.replace('_', " ")));
            let advice = output.get("advice").and_then(|advice| word(advice, "reason"));
            joined([rows, by, advice])
        }
        Some(StepKind::Approve(_)) => {
            let why = word(output, "reason").map(|why| format!(": {why}")).unwrap_or_default();
            let who = |key, did| word(output, key).map(|who| format!("{did} by {who}{why}"));
            let answer = who("approved_by", "approved").or_else(|| who("rejected_by", "rejected"));
            let unanswered = || output.get("asked_at").map(|_| "nobody answered in time".to_owned());
            answer.or_else(unanswered).unwrap_or_default()
        }
        Some(StepKind::Compare(_)) => {
            let verdict = word(output, "verdict").unwrap_or_default();
            word(output, "reason").map_or(verdict.clone(), |reason| format!("{verdict}: {reason}"))
        }
        Some(StepKind::Promote(_)) => promote(output),
        Some(StepKind::Rollback(_)) => {
            word(output, "serves").map(|version| format!("{version} serves")).unwrap_or_default()
        }
        Some(StepKind::Http(_)) => {
            output.get("status").map(|status| format!("status {status}")).unwrap_or_default()
        }
        Some(StepKind::Notify(_)) | None => String::new(),
    }
}

/// Whether a step that came to its end says no: nobody approved.
pub fn says_no(kind: Option<&StepKind>, output: &Value) -> bool {
    matches!(kind, Some(StepKind::Approve(_))) && output.get("approved_by").is_none()
}

fn fetch(output: &Value) -> String {
    let rows = output.get("rows").and_then(Value::as_u64).map(|rows| counted(rows, "row"));
    let size = output.get("bytes").and_then(Value::as_u64).map(bytes);
    let violations = output.get("violations").and_then(Value::as_array).filter(|all| !all.is_empty());
    joined([rows, size, violations.map(|all| counted(all.len() as u64, "violation"))])
}

fn run(output: &Value) -> String {
    let metrics = output.pointer("/metrics/values").and_then(Value::as_object);
    let metrics = metrics.into_iter().flatten().map(|(name, value)| {
        let shown = value.as_f64().map_or_else(|| value.to_string(), number);
        Some(format!("{name} {shown}"))
    });
    joined(metrics.chain([files(output)]))
}

fn evaluate(output: &Value) -> String {
    let champion = word(output, "champion").map(|version| format!("beside champion {version}"));
    joined([Some(run(output)).filter(|metrics| !metrics.is_empty()), champion])
}

fn gate(output: &Value) -> String {
    let failed = |rule: &&Value| rule.get("verdict").and_then(Value::as_str) != Some("pass");
    let rules = output.get("rules").and_then(Value::as_array);
    let sentence = |rule: &Value| word(rule, "sentence");
    // What did not pass says more than what did.
    let telling: Vec<Option<String>> = match rules {
        Some(rules) if rules.iter().any(|rule| failed(&rule)) => {
            rules.iter().filter(failed).map(sentence).collect()
        }
        Some(rules) => rules.iter().map(sentence).collect(),
        None => vec![],
    };
    let telling: Vec<String> = telling.into_iter().flatten().collect();
    let verdict = word(output, "verdict").unwrap_or_default();
    if telling.is_empty() { verdict } else { format!("{verdict}: {}", telling.join(" · ")) }
}

fn canary(output: &Value) -> String {
    let version = word(output, "version").unwrap_or_default();
    match word(output, "rollout").as_deref() {
        Some("on_canary") => {
            let share = output.get("share").and_then(Value::as_f64).map(|points| number(points / 100.0));
            let target = word(output, "target").unwrap_or_default();
            format!("{version} gets {} % of {target}", share.unwrap_or_else(|| "?".to_owned()))
        }
        Some("first_version") => format!("{version} is the first version: no canary"),
        Some("advised") => "not done: mode is not act".to_owned(),
        Some(_) | None => version,
    }
}

fn promote(output: &Value) -> String {
    match word(output, "promoted") {
        Some(version) => {
            format!("{version} serves everybody: {}", word(output, "reason").unwrap_or_default())
        }
        None => word(output, "reason").unwrap_or_default(),
    }
}

fn files(output: &Value) -> Option<String> {
    let files = output.get("files").and_then(Value::as_array).filter(|files| !files.is_empty())?;
    let size: u64 = files.iter().filter_map(|file| file.get("size").and_then(Value::as_u64)).sum();
    Some(format!("{}, {}", counted(files.len() as u64, "file"), bytes(size)))
}

fn word(value: &Value, key: &str) -> Option<String> {
    value.get(key).and_then(Value::as_str).filter(|word| !word.is_empty()).map(str::to_owned)
}

fn joined(parts: impl IntoIterator<Item = Option<String>>) -> String {
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_gate_shows_what_did_not_pass() {
        let output = json!({"verdict": "fail", "rules": [
            {"verdict": "pass", "sentence": "mae 4 is at most 5"},
            {"verdict": "fail", "sentence": "r2 0.7 is below 0.85"},
        ]});
        assert_eq!(gate(&output), "fail: r2 0.7 is below 0.85");
        assert_eq!(gate(&json!({})), "");
    }
}
