//! `validate`, `plan`, `schema`: workflow files before they run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::Exit;
use super::error::CliError;
use super::output::{Output, Paint, plain, table, time};
use super::project::{Opened, shown};
use super::{places, references, registry};
use crate::clock::Clock;
use crate::domain::id::{TargetName, WorkflowName};
use crate::domain::workflow::plan::outline;
use crate::domain::workflow::trigger::CatchUp;
use crate::domain::workflow::units::format_duration;
use crate::domain::workflow::{Diagnostic, Mode, Severity, StepKind, Workflow, schema};
use crate::trigger::catalog::{FileError, load_file, workflow_files};
use crate::trigger::{Loaded, schedule};

/// Ticks that a plan shows of each schedule.
const TICKS: usize = 3;

/// One file and what is wrong with it.
struct Checked {
    path: String,
    source: String,
    loaded: Option<Loaded>,
    problem: Option<String>,
    diagnostics: Vec<Diagnostic>,
}

impl Checked {
    fn count(&self, severity: Severity) -> usize {
        let unreadable = usize::from(self.problem.is_some() && severity == Severity::Error);
        unreadable + self.diagnostics.iter().filter(|item| item.severity == severity).count()
    }

    fn name(&self) -> Option<&WorkflowName> {
        self.loaded.as_ref().map(|loaded| &loaded.workflow.name)
    }

    fn to_json(&self) -> Value {
        let items = self.diagnostics.iter().map(|item| {
            json!({
                "severity": item.severity.as_str(), "line": item.at.line, "column": item.at.column,
                "message": item.message, "hint": item.hint,
            })
        });
        let problem = self.problem.iter().map(|problem| json!({"severity": "error", "message": problem}));
        json!({
            "path": self.path, "workflow": self.name(),
            "diagnostics": problem.chain(items).collect::<Vec<_>>(),
        })
    }
}

/// `refit validate`: every mistake of every file, and names that `refit.toml` does not have.
pub fn validate(opened: Result<Opened, CliError>, files: &[PathBuf], out: Output) -> Result<Exit, CliError> {
    // Files that are named can be checked without a project; then nothing is known of its stores.
    let opened = match opened {
        Ok(opened) => Some(opened),
        Err(_) if !files.is_empty() && !out_of_order() => None,
        Err(error) => return Err(error),
    };
    let root = opened.as_ref().map_or_else(|| PathBuf::from("."), |opened| opened.project.root.clone());
    let paths = if files.is_empty() { workflow_files(&root) } else { files.to_vec() };
    if paths.is_empty() {
        return Err(CliError::usage(format!(
            "there are no workflow files in {}",
            shown(&root.join("workflows"))
        ))
        .hint("`refit init` writes a first one"));
    }
    let mut checked: Vec<Checked> = paths.iter().map(|path| check(&root, path, opened.as_ref())).collect();
    mark_doubles(&mut checked);
    if let Some(opened) = &opened {
        mark_crowds(&mut checked, opened);
    }
    for file in &mut checked {
        file.diagnostics.sort_by_key(|item| item.at);
    }
    let errors: usize = checked.iter().map(|file| file.count(Severity::Error)).sum();
    let warnings: usize = checked.iter().map(|file| file.count(Severity::Warning)).sum();
    let files: Vec<Value> = checked.iter().map(Checked::to_json).collect();
    out.result(&json!({"files": files, "errors": errors, "warnings": warnings}), || {
        report(out, &checked, errors, warnings)
    });
    Ok(if errors == 0 { Exit::Ok } else { Exit::Usage })
}

/// Whether a `refit.toml` is here but cannot be used: then its error comes first.
fn out_of_order() -> bool {
    std::env::current_dir()
        .is_ok_and(|here| here.ancestors().any(|above| above.join(crate::config::FILE).is_file()))
}

fn check(root: &Path, path: &Path, opened: Option<&Opened>) -> Checked {
    let mut checked = Checked {
        path: shown(path),
        source: String::new(),
        loaded: None,
        problem: None,
        diagnostics: vec![],
    };
    match load_file(root, path) {
        Ok(loaded) => {
            checked.diagnostics.clone_from(&loaded.warnings);
            checked.source.clone_from(&loaded.definition.source);
            if let Some(opened) = opened {
                checked.diagnostics.extend(references::check(
                    &loaded.workflow,
                    &checked.source,
                    &opened.project,
                ));
            }
            checked.loaded = Some(loaded);
        }
        Err(FileError::Mistakes { source_text, diagnostics, .. }) => {
            checked.source = source_text;
            checked.diagnostics = diagnostics.items;
        }
        Err(error @ (FileError::Unreadable { .. } | FileError::TwoOfOneName { .. })) => {
            checked.problem = Some(error.to_string());
        }
    }
    checked
}

fn mark_doubles(checked: &mut [Checked]) {
    for index in 1..checked.len() {
        let (before, rest) = checked.split_at_mut(index);
        let Some(this) = rest.first_mut() else { return };
        let first = before.iter().find(|file| file.name().is_some() && file.name() == this.name());
        if let (Some(first), Some(name)) = (first, this.name()) {
            let (name, first, second) = (name.to_string(), first.path.clone(), this.path.clone());
            this.problem = Some(FileError::TwoOfOneName { name, first, second }.to_string());
        }
    }
}

/// Beside those that are checked stand all others of the project: `refit trigger` sees them, too.
fn mark_crowds(checked: &mut [Checked], opened: &Opened) {
    let mut all: Vec<Loaded> = checked.iter().filter_map(|file| file.loaded.clone()).collect();
    for loaded in opened.catalog().workflows() {
        if all.iter().all(|known| known.workflow.name != loaded.workflow.name) {
            all.push(loaded.clone());
        }
    }
    for file in checked {
        if let Some(loaded) = &file.loaded {
            file.diagnostics.extend(places::check(loaded, &all, opened));
        }
    }
}

fn report(out: Output, checked: &[Checked], errors: usize, warnings: usize) -> String {
    let mut text = String::new();
    for file in checked {
        if let Some(problem) = &file.problem {
            text.push_str(&format!("{}: {}\n\n", out.painted("error", Paint::Bad), plain(problem)));
        }
        for item in &file.diagnostics {
            text.push_str(&painted(out, item, &item.render(&file.path, &file.source)));
            text.push('\n');
        }
        if let (Some(loaded), 0) = (&file.loaded, file.count(Severity::Error)) {
            let fine = if file.diagnostics.is_empty() { "is fine" } else { "can be run" };
            let steps = crate::domain::words::counted(loaded.workflow.steps.len() as u64, "step");
            text.push_str(&format!("{}: workflow `{}` {fine}, {steps}\n", file.path, loaded.workflow.name));
        }
    }
    if errors + warnings > 0 {
        let count = crate::domain::words::counted;
        text.push_str(&format!(
            "{}, {} in {}\n",
            count(errors as u64, "error"),
            count(warnings as u64, "warning"),
            count(checked.len() as u64, "file")
        ));
    }
    text
}

/// A rendered diagnostic with its first word, its mark and its hint in colour.
fn painted(out: Output, item: &Diagnostic, rendered: &str) -> String {
    let paint = match item.severity {
        Severity::Error => Paint::Bad,
        Severity::Warning => Paint::Odd,
    };
    let mut text = String::new();
    for (index, line) in rendered.lines().enumerate() {
        let word = item.severity.as_str();
        match line.strip_prefix(word).filter(|_| index == 0) {
            Some(rest) => {
                text.push_str(&format!("{}{}", out.painted(word, paint), out.painted(rest, Paint::Bold)))
            }
            None if line.trim_start_matches([' ', '|']).starts_with('^') => {
                text.push_str(&out.painted(line, paint));
            }
            None => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

/// `refit plan`: what a workflow would do, step by step.
pub fn plan(opened: &Opened, name: &str) -> Result<Exit, CliError> {
    let loaded = opened.workflow(name)?;
    let workflow = &loaded.workflow;
    let lines = outline(workflow);
    let starts = starts(workflow, opened.clock.as_ref());
    let targets = targets(opened, workflow);
    let steps: Vec<Value> = lines
        .iter()
        .map(|line| {
            json!({"step": line.step, "kind": line.kind, "after": line.after, "if": line.condition, "text": line.text})
        })
        .collect();
    let value = json!({
        "workflow": workflow.name, "model": workflow.model, "mode": workflow.mode, "file": loaded.definition.path,
        "starts": starts, "targets": targets, "steps": steps, "warnings": loaded.warnings.iter().map(|item| item.message.clone()).collect::<Vec<_>>(),
    });
    opened.out.result(&value, || {
        let mode = match workflow.mode {
            Mode::Act => "act: it changes what is served",
            Mode::Advise => "advise: it does everything but change what is served",
            Mode::Observe => "observe: it gathers evidence and changes nothing",
        };
        let mut text = format!(
            "{} retrains {} ({})\nmode   {mode}\n",
            workflow.name, workflow.model, loaded.definition.path
        );
        for start in &starts {
            text.push_str(&format!("start  {start}\n"));
        }
        for (target, words) in &targets {
            text.push_str(&format!("target {target}: {words}\n"));
        }
        text.push('\n');
        let rows = lines.iter().enumerate().map(|(index, line)| {
            let condition = line
                .condition
                .as_ref()
                .map(|condition| format!(" (only if {condition})"))
                .unwrap_or_default();
            // The step before is what everybody expects; only branches are worth a word.
            let before = index.checked_sub(1).and_then(|before| lines.get(before)).map(|line| &line.step);
            let plainly = line.after.iter().eq(before);
            let after: Vec<&str> = line.after.iter().map(|step| step.as_str()).collect();
            let after = if plainly || after.is_empty() {
                String::new()
            } else {
                format!(" (after {})", after.join(", "))
            };
            vec![
                (index + 1).to_string(),
                line.step.to_string(),
                line.kind.to_owned(),
                format!("{}{after}{condition}", line.text),
            ]
        });
        text.push_str(&table(&["#", "STEP", "KIND", "WHAT"], rows));
        if !workflow.on_failure.is_empty() {
            let steps: Vec<&str> = workflow.on_failure.iter().map(|step| step.id.as_str()).collect();
            text.push_str(&format!("\n\nwhen it fails: {}", steps.join(", ")));
        }
        text
    });
    for warning in &loaded.warnings {
        opened.out.note(&warning.render(&loaded.definition.path, &loaded.definition.source));
    }
    Ok(Exit::Ok)
}

/// What the targets of a workflow's canaries can do: how long a change takes is said before it is made.
fn targets(opened: &Opened, workflow: &Workflow) -> BTreeMap<TargetName, String> {
    let named = workflow.steps.iter().filter_map(|step| match &step.kind {
        StepKind::Canary(canary) => Some(canary.target.clone()),
        _ => None,
    });
    let named: BTreeSet<TargetName> = named.collect();
    let Ok(http) = registry::http_client() else { return BTreeMap::new() };
    let built = registry::build(&opened.project, &opened.secrets, &http);
    let words = |name: &TargetName| match built.targets.get(name) {
        Some(target) => target.traits().words(),
        None => {
            let table = format!("targets.{name}");
            let problem = built.problems.iter().find(|problem| problem.table == table);
            problem.map_or_else(|| "it is not in refit.toml".to_owned(), |problem| problem.cause.clone())
        }
    };
    named.into_iter().map(|name| (name.clone(), words(&name))).collect()
}

/// What starts the workflow, in plain words.
fn starts(workflow: &Workflow, clock: &dyn Clock) -> Vec<String> {
    let mut starts = vec![];
    for it in &workflow.triggers.schedules {
        let mut ticks: Vec<String> = vec![];
        let mut after = clock.now();
        while let Some(tick) = (ticks.len() < TICKS).then(|| schedule::next_tick(it, after)).flatten() {
            ticks.push(time(tick));
            after = tick;
        }
        let catch_up = match it.catch_up {
            CatchUp::Latest => "of missed ticks, the latest is made up for",
            CatchUp::All => "missed ticks are made up for",
            CatchUp::None => "missed ticks are dropped",
        };
        starts.push(format!("at `{}` {}: {}; {catch_up}", it.cron, it.timezone, ticks.join(", ")));
    }
    for it in &workflow.triggers.events {
        let condition =
            it.condition.as_ref().map(|condition| format!(" if {}", condition.source())).unwrap_or_default();
        let debounce =
            it.debounce.map(|window| format!(", once in {}", format_duration(window))).unwrap_or_default();
        starts.push(format!("at event `{}`{condition}{debounce}", it.name));
    }
    let inputs: Vec<String> = workflow
        .triggers
        .inputs
        .iter()
        .map(|(name, input)| match (&input.default, input.required) {
            (Some(default), _) => {
                let default = default.as_str().map_or_else(|| default.to_string(), str::to_owned);
                let quote = if default.contains(char::is_whitespace) { "'" } else { "" };
                format!(" [-i {quote}{name}={default}{quote}]")
            }
            (None, true) => format!(" -i {name}=…"),
            (None, false) => format!(" [-i {name}=…]"),
        })
        .collect();
    starts.push(format!("by `refit trigger {}{}`", workflow.name, inputs.concat()));
    starts
}

/// `refit schema`.
pub fn print_schema(out: Output) -> Exit {
    let schema = schema::schema();
    out.result(&schema, || serde_json::to_string_pretty(&schema).unwrap_or_default());
    Exit::Ok
}
