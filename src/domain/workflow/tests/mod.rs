mod evidence;
mod examples;
mod hostile;
mod mistakes;
mod mistakes_in_steps;
mod schema;

use std::collections::BTreeMap;

use super::*;

/// What parsing `source` says, rendered as people read it.
fn said(source: &str) -> String {
    match parse_file("w.yaml", source, &BTreeMap::new()) {
        Ok((_, warnings)) => {
            let shown: Vec<String> =
                warnings.iter().map(|warning| warning.render("w.yaml", source)).collect();
            shown.join("\n")
        }
        Err(diagnostics) => diagnostics.render("w.yaml", source),
    }
}

/// One line a diagnostic: `line:column severity: message (hint)`.
fn brief(source: &str) -> String {
    let items = match parse_file("w.yaml", source, &BTreeMap::new()) {
        Ok((_, warnings)) => warnings,
        Err(diagnostics) => diagnostics.items,
    };
    let line = |item: &Diagnostic| {
        let hint = item.hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
        format!("{}:{} {}: {}{hint}", item.at.line, item.at.column, item.severity.as_str(), item.message)
    };
    items.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A workflow with these steps, each line indented by two.
fn with_steps(steps: &str) -> String {
    let steps: String = steps.trim_matches('\n').lines().map(|line| format!("  {line}\n")).collect();
    format!("name: w\nmodel: m\nsteps:\n{steps}")
}
