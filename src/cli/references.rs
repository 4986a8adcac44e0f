//! Names in a workflow that `refit.toml` should have: a run must not find out
//! at its last step.

use crate::config::Project;
use crate::domain::workflow::{Diagnostic, Position, Recipient, StepKind, Workflow};

/// A name in a workflow.
pub(super) struct Reference<'a> {
    /// The table that should have it.
    pub table: &'static str,
    /// The key it is the value of, in the file.
    pub key: &'static str,
    pub name: &'a str,
    /// Where its step begins.
    near: Position,
}

impl Reference<'_> {
    /// Where it stands in the workflow's file.
    pub fn place(&self, source: &str) -> Position {
        place(source, self.key, self.name, self.near)
    }
}

/// Stores, targets and notifiers that `workflow` names and `project` does not have.
pub fn check(workflow: &Workflow, source: &str, project: &Project) -> Vec<Diagnostic> {
    let stores: Vec<&str> = project.file.stores.keys().map(|name| name.as_str()).collect();
    let targets: Vec<&str> = project.file.targets.keys().map(|name| name.as_str()).collect();
    let notifiers: Vec<&str> = project.file.notifiers.keys().map(|name| name.as_str()).collect();
    let mut found = vec![];
    for reference in references(workflow) {
        let known = match reference.table {
            "stores" => &stores,
            "targets" => &targets,
            _ => &notifiers,
        };
        if known.contains(&reference.name) {
            continue;
        }
        let at = reference.place(source);
        let Reference { table, name, .. } = reference;
        let what = table.trim_end_matches('s');
        let error = Diagnostic::error(at, format!("refit.toml has no {what} `{name}`"));
        found.push(match super::pick::nearest(name, known.iter().copied()) {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None if known.is_empty() => error.hint(format!("add [{table}.{name}] to refit.toml")),
            None => {
                error.hint(format!("add [{table}.{name}] to refit.toml, or use one of {}", known.join(", ")))
            }
        });
    }
    found.extend(mail_without_notifier(workflow, source, project));
    found
}

pub(super) fn references(workflow: &Workflow) -> Vec<Reference<'_>> {
    let mut all = vec![];
    for step in workflow.steps.iter().chain(&workflow.on_failure) {
        let near = step.at;
        let mut add = |table, key, name| all.push(Reference { table, key, name, near });
        match &step.kind {
            StepKind::Publish(it) => add("stores", "store", it.store.as_str()),
            StepKind::Canary(it) => add("targets", "target", it.target.as_str()),
            StepKind::Rollback(it) => add("targets", "target", it.target.as_str()),
            StepKind::Promote(it) => {
                if let Some(target) = &it.target {
                    add("targets", "target", target.as_str());
                }
            }
            StepKind::Notify(it) => {
                for (key, name) in it.to.iter().filter_map(notifier) {
                    add("notifiers", key, name);
                }
            }
            StepKind::Fetch(_)
            | StepKind::Run(_)
            | StepKind::Evaluate(_)
            | StepKind::Gate(_)
            | StepKind::Wait(_)
            | StepKind::Shadow(_)
            | StepKind::Approve(_)
            | StepKind::Compare(_)
            | StepKind::Http(_) => {}
        }
    }
    let told = workflow.notify.iter().flat_map(|rule| &rule.to).filter_map(notifier);
    let mut seen = std::collections::BTreeSet::new();
    for (key, name) in told.filter(|pair| seen.insert(*pair)) {
        all.push(Reference { table: "notifiers", key, name, near: Position { line: 1, column: 1 } });
    }
    all
}

fn notifier(recipient: &Recipient) -> Option<(&'static str, &str)> {
    match recipient {
        Recipient::Slack(name) => Some(("slack", name.as_str())),
        Recipient::Webhook(name) => Some(("webhook", name.as_str())),
        Recipient::Email(_) | Recipient::Console => None,
    }
}

/// Mail needs a notifier that sends mail.
fn mail_without_notifier(workflow: &Workflow, source: &str, project: &Project) -> Option<Diagnostic> {
    let by_steps = workflow.steps.iter().chain(&workflow.on_failure).flat_map(|step| match &step.kind {
        StepKind::Notify(it) => it.to.as_slice(),
        _ => &[],
    });
    let told = workflow.notify.iter().flat_map(|rule| &rule.to).chain(by_steps);
    let wants_mail = told.into_iter().any(|recipient| matches!(recipient, Recipient::Email(_)));
    let sends_mail = project.file.notifiers.values().any(|table| {
        table.get("kind").and_then(toml::Value::as_str).is_some_and(|kind| matches!(kind, "smtp" | "resend"))
    });
    (wants_mail && !sends_mail).then(|| {
        let at = place(source, "email", "", Position { line: 1, column: 1 });
        Diagnostic::error(at, "refit.toml has no notifier that sends mail")
            .hint("add one, such as [notifiers.mail] with kind = \"smtp\" or \"resend\"")
    })
}

/// The first place after `near` where `name` is the value of `key`; else `near`.
fn place(source: &str, key: &str, name: &str, near: Position) -> Position {
    let wanted = format!("{key}:");
    for (index, line) in source.lines().enumerate().skip(near.line.saturating_sub(1)) {
        let Some(at) = line.find(&wanted) else { continue };
        let rest = &line[at + wanted.len()..];
        let value = rest.trim_start().trim_start_matches(['"', '\'']);
        if value.starts_with(name) {
            let byte = line.len() - value.len();
            return Position { line: index + 1, column: line[..byte].chars().count() + 1 };
        }
    }
    near
}
