//! From text to a `Workflow`, or to everything that is wrong with it.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::time::Duration;

use serde_json::Value;

use super::checker::{Checker, MAX_REPORTED, Origin, Use};
use super::diagnostic::{Diagnostic, Diagnostics, Severity};
use super::node::{self, Node};
use super::shape::Shape;
use super::step::WhenUnderpowered;
use super::trigger::{EventTrigger, Input, InputKind, Schedule, Triggers};
use super::{
    Concurrency, Moment, NotifyRule, Position, Recipient, SAVE_AS_UTF8, Step, StepKind, Workflow, check,
    decode_step, evidence, keys, keys_step,
};
use crate::domain::expr::Template;
use crate::domain::id::{MetricName, SecretName, StepId};
use crate::domain::retry::RetryPolicy;

/// The timeout of a step when the file gives none.
const TIMEOUT: Duration = Duration::from_secs(3600);
/// More steps than this are no workflow that a person wrote.
const MAX_STEPS: usize = 200;

/// A step as far as it could be read.
pub(super) struct Draft<'a> {
    /// The step in the file.
    pub(super) node: &'a Node,
    /// Its id; `None` when the file gives none that is a name.
    pub(super) id: Option<StepId>,
    /// The step, as far as it could be read.
    pub(super) step: Option<Step>,
    /// Its kind, if it is one.
    pub(super) kind: Option<&'a str>,
    /// Nothing in it was left out for being wrong.
    pub(super) sound: bool,
    /// Every expression in it.
    pub(super) uses: Vec<Use>,
}

impl Draft<'_> {
    /// Where one of its keys stands, or the step.
    pub(super) fn place(&self, key: &str) -> Position {
        let entry = self.node.entries().iter().find(|entry| entry.key == key);
        entry.map_or(self.node.at, |entry| entry.key_at)
    }
}

/// Reads a workflow file by which runs are to begin; `path` is only for messages. `files` holds the texts of its
/// `query_file`s.
///
/// # Errors
/// Everything that is wrong with the file, in its order; else the warnings come with the workflow.
pub fn parse_file(
    path: &str,
    source: &str,
    files: &BTreeMap<String, String>,
) -> Result<(Workflow, Vec<Diagnostic>), Diagnostics> {
    if let Some((before, _)) = source.split_once('\0') {
        let nul = Diagnostic::error(Position::after(before), "a NUL byte");
        let items = vec![nul.hint(SAVE_AS_UTF8)];
        return Err(Diagnostics { path: path.to_owned(), items });
    }
    parse_of(Origin::File, path, source, files)
}

/// Reads the workflow that a run began by. What was no mistake then and keeps no run from going on is none, whatever
/// [`parse_file`] says by now.
///
/// # Errors
/// As those of [`parse_file`].
pub fn parse(
    path: &str,
    source: &str,
    files: &BTreeMap<String, String>,
) -> Result<(Workflow, Vec<Diagnostic>), Diagnostics> {
    parse_of(Origin::Run, path, source, files)
}

fn parse_of(
    origin: Origin,
    path: &str,
    source: &str,
    files: &BTreeMap<String, String>,
) -> Result<(Workflow, Vec<Diagnostic>), Diagnostics> {
    let mut checker = Checker { origin, ..Checker::default() };
    let root = node::read(source, &mut checker.diagnostics);
    let workflow = root.as_ref().and_then(|root| decode(root, files, &mut checker));
    let mut items = checker.diagnostics;
    items.sort_by_key(|item| (item.at, item.severity));
    items.dedup();
    let failed = items.iter().any(|item| item.severity == Severity::Error);
    match workflow {
        Some(workflow) if !failed => Ok((workflow, items)),
        _ => {
            if !failed {
                let start = Position { line: 1, column: 1 };
                items.push(Diagnostic::error(start, "the file cannot be read as a workflow"));
            }
            items.truncate(MAX_REPORTED);
            Err(Diagnostics { path: path.to_owned(), items })
        }
    }
}

/// The `query_file`s a workflow names, relative to the project, so that they can be read before `parse`.
/// Paths that lead outside the project are left out; `parse` reports them.
pub fn referenced_files(source: &str) -> Vec<String> {
    let Some(root) = node::read(source, &mut Vec::new()) else { return Vec::new() };
    let steps = root.items("steps").iter().chain(root.items("on_failure"));
    let fetched = steps.filter_map(|step| step.get("with")?.get("from"));
    let fetched = fetched.flat_map(|from| ["postgres", "sqlite"].map(|source| from.get(source)));
    let evidence = root.get("evidence").and_then(|evidence| evidence.get("sql"));
    let queries = fetched.flatten().chain(evidence);
    let mut found = BTreeSet::new();
    for path in queries.filter_map(|query| query.get("query_file")) {
        let mut checker = Checker::default();
        checker.check(path, &Shape::RelativePath, "`query_file`");
        if checker.diagnostics.is_empty() {
            found.extend(path.text().map(str::to_owned));
        }
    }
    found.into_iter().collect()
}

fn decode(root: &Node, files: &BTreeMap<String, String>, checker: &mut Checker) -> Option<Workflow> {
    let whole = Shape::Object(&keys::WORKFLOW);
    checker.check(root, &whole, "the workflow");
    let uses = std::mem::take(&mut checker.uses);
    let defaults = Defaults::read(root);
    if let Some(node) = root.get("defaults") {
        limits(node, RetryPolicy::default(), checker);
    }
    let steps = drafts(root, "steps", &defaults, files, checker);
    let on_failure = drafts(root, "on_failure", &defaults, files, checker);
    if let Some(push) = root.get("evidence").and_then(|evidence| evidence.get("push"))
        && push.text() == Some("false")
    {
        let diagnostic = Diagnostic::error(push.at, "pushed observations cannot be turned off");
        checker.diagnostics.push(diagnostic.hint("remove `push`"));
    }
    let evidence =
        root.get("evidence").and_then(|evidence| evidence::pull(evidence, files, &mut checker.diagnostics));
    if let Some(evidence) = &evidence {
        evidence::unfed(evidence, &steps, &mut checker.diagnostics);
    }
    let triggers = triggers(root, checker);
    let notify: Vec<NotifyRule> =
        root.items("notify").iter().map(|rule| notify_rule(rule, checker)).collect();
    let metrics = root
        .pairs("metrics")
        .filter_map(|(name, metric)| Some((MetricName::from_str(name).ok()?, metric.word("better")?)));
    for (name, node) in root.pairs("metrics") {
        if let Err(error) = MetricName::from_str(name) {
            checker.diagnostics.push(Diagnostic::error(node.at, error.to_string()));
        }
    }
    let metrics: BTreeMap<MetricName, _> = metrics.collect();
    let file = check::File { steps: &steps, on_failure: &on_failure, triggers: &triggers, metrics: &metrics };
    check::whole_file(&file, &uses, &mut checker.diagnostics);

    let secrets =
        uses.iter().flat_map(|used| used.expr.references()).filter_map(|path| match path.segments() {
            [root, name, ..] if root == "secrets" => SecretName::from_str(name).ok(),
            _ => None,
        });
    let secrets: BTreeSet<SecretName> = secrets.collect();
    let concurrency = root.get("concurrency");
    let key = concurrency.and_then(|node| node.template("key"));
    let mut workflow = Workflow {
        name: root.parsed("name")?,
        model: root.parsed("model")?,
        mode: root.word_or_default("mode"),
        triggers,
        concurrency: Concurrency {
            key: key.or_else(|| Template::compile("${{ model }}").ok())?,
            policy: concurrency.map(|node| node.word_or_default("policy")).unwrap_or_default(),
        },
        metrics,
        evidence,
        steps: steps.into_iter().map(|draft| draft.step).collect::<Option<_>>()?,
        on_failure: on_failure.into_iter().map(|draft| draft.step).collect::<Option<_>>()?,
        notify,
        secrets,
    };
    settle_rules(&mut workflow, root);
    Some(workflow)
}

/// What one step does not say and others do: a canary that names no rules goes by the only ones there are, and one that
/// will probably not conclude is replayed where there is a command to do it with.
fn settle_rules(workflow: &mut Workflow, root: &Node) {
    let replays = workflow.steps.iter().any(|step| matches!(step.kind, StepKind::Shadow(_)));
    for (step, node) in workflow.steps.iter_mut().zip(root.items("steps")) {
        let said = node.get("with").is_some_and(|with| with.get("when_underpowered").is_some());
        if let StepKind::Compare(compare) = &mut step.kind
            && replays
            && !said
        {
            compare.when_underpowered = WhenUnderpowered::Replay;
        }
    }
    let is_compare = |step: &&Step| matches!(step.kind, StepKind::Compare(_));
    let only = workflow.steps.iter().find(is_compare).map(|step| step.id.clone());
    for step in &mut workflow.steps {
        if let StepKind::Canary(canary) = &mut step.kind {
            canary.compare = canary.compare.take().or_else(|| only.clone());
        }
    }
}

/// `defaults:`.
pub(super) struct Defaults {
    pub(super) timeout: Duration,
    pub(super) retry: RetryPolicy,
}

impl Defaults {
    fn read(root: &Node) -> Self {
        let node = root.get("defaults");
        Self {
            timeout: node.and_then(|node| node.duration("timeout")).unwrap_or(TIMEOUT),
            retry: retry(node, RetryPolicy::default()),
        }
    }
}

/// `retry:` of `node`; what it does not say is as in `base`.
pub(super) fn retry(node: Option<&Node>, base: RetryPolicy) -> RetryPolicy {
    let Some(node) = node.and_then(|node| node.get("retry")) else { return base };
    RetryPolicy {
        attempts: node.parsed("attempts").unwrap_or(base.attempts),
        backoff: node.duration("backoff").unwrap_or(base.backoff),
        factor: node.number("factor").unwrap_or(base.factor),
        max: node.duration("max").unwrap_or(base.max),
    }
}

/// Whether the `retry` and `timeout` that `node` gives can work.
fn limits(node: &Node, base: RetryPolicy, checker: &mut Checker) {
    if let Some(timeout) = node.get("timeout")
        && node.duration("timeout").is_some_and(|timeout| timeout.is_zero())
    {
        checker.diagnostics.push(Diagnostic::error(timeout.at, "a `timeout` of nothing lets no step end"));
    }
    let Some(own) = node.get("retry") else { return };
    let policy = retry(Some(node), base);
    if !(1.0..=100.0).contains(&policy.factor) {
        checker.diagnostics.push(Diagnostic::error(own.at, "`factor` of a retry is from 1 to 100"));
    }
    let understood = |key: &str| own.get(key).is_none() || own.duration(key).is_some();
    if policy.max < policy.backoff && understood("max") && understood("backoff") {
        let diagnostic = Diagnostic::error(own.at, "`max` of a retry is shorter than its `backoff`");
        checker.diagnostics.push(diagnostic.hint("raise `max`, 5m when absent"));
    }
}

fn drafts<'a>(
    root: &'a Node,
    list: &str,
    defaults: &Defaults,
    files: &BTreeMap<String, String>,
    checker: &mut Checker,
) -> Vec<Draft<'a>> {
    let nodes = root.items(list);
    if let Some(first_too_many) = nodes.get(MAX_STEPS) {
        let message = format!("more than {MAX_STEPS} steps");
        checker.diagnostics.push(Diagnostic::error(first_too_many.at, message));
        return Vec::new();
    }
    let mut drafts: Vec<Draft<'a>> = Vec::with_capacity(nodes.len());
    for node in nodes {
        // Shapes were checked with the whole file; this pass only keeps the expressions apart.
        let mut seen = Checker { origin: checker.origin, ..Checker::default() };
        seen.check(node, &Shape::Step, "");
        let kind = decode_step::kind_word(node);
        let id = match node.get("id") {
            Some(id) => id.parse(),
            None => kind.and_then(|word| StepId::from_str(word).ok()),
        };
        let before = drafts.last().and_then(|draft| draft.id.clone());
        let step = id.clone().and_then(|id| step(node, id, before, defaults, files, checker));
        let sound = seen.diagnostics.is_empty() && step.is_some();
        let kind = kind.filter(|word| keys_step::STEPS.iter().any(|(known, _)| known == word));
        drafts.push(Draft { node, id, step, kind, sound, uses: seen.uses });
    }
    drafts
}

fn step(
    node: &Node,
    id: StepId,
    before: Option<StepId>,
    defaults: &Defaults,
    files: &BTreeMap<String, String>,
    checker: &mut Checker,
) -> Option<Step> {
    limits(node, defaults.retry, checker);
    let needs = if node.get("needs").is_some() {
        node.items("needs").iter().filter_map(Node::parse).collect()
    } else {
        before.into_iter().collect()
    };
    Some(Step {
        kind: decode_step::kind(node, files, &mut checker.diagnostics)?,
        id,
        name: node.text_of("name"),
        at: node.at,
        needs,
        condition: node.condition("if"),
        timeout: node.duration("timeout").unwrap_or(defaults.timeout),
        retry: retry(Some(node), defaults.retry),
        labels: node.items("runs_on").iter().filter_map(|label| label.text().map(str::to_owned)).collect(),
    })
}

fn triggers(root: &Node, checker: &mut Checker) -> Triggers {
    let Some(on) = root.get("on") else { return Triggers::default() };
    let schedule = |node: &Node| {
        let timezone = node.parsed("timezone").unwrap_or(chrono_tz::UTC);
        Some(Schedule { cron: node.text_of("cron")?, timezone, catch_up: node.word_or_default("catch_up") })
    };
    let event = |node: &Node| {
        let (condition, debounce) = (node.condition("if"), node.duration("debounce"));
        Some(EventTrigger { name: node.text_of("name")?, condition, debounce })
    };
    let inputs = on.get("manual").into_iter().flat_map(|manual| manual.pairs("inputs"));
    let inputs = inputs.map(|(name, node)| {
        let input = input(name, node, checker);
        if let Some(required) = node.get("required").filter(|_| input.required && input.default.is_none())
            && let Some(other) = ["schedule", "event"].into_iter().find(|other| on.get(other).is_some())
        {
            // A warning: runs that a person started read the same text again, at any time.
            let message =
                format!("`on: {other}` cannot start a run: input `{name}` is required, and it gives none");
            checker.diagnostics.push(
                Diagnostic::warning(required.at, message)
                    .hint(format!("give `{name}` a `default`, or leave `required` out")),
            );
        }
        (name.to_owned(), input)
    });
    let inputs = inputs.collect();
    Triggers {
        schedules: on.items("schedule").iter().filter_map(schedule).collect(),
        events: on.items("event").iter().filter_map(event).collect(),
        inputs,
    }
}

fn input(name: &str, node: &Node, checker: &mut Checker) -> Input {
    let kind = node.word("type").unwrap_or(InputKind::String);
    let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !is_name {
        let diagnostic = Diagnostic::error(node.at, format!("`{name}` cannot be the name of an input"));
        checker.diagnostics.push(diagnostic.hint("use letters, digits and `_`, as in `inputs.from_date`"));
    }
    let default = node.get("default").and_then(|value| {
        let text = value.text()?;
        let typed = match kind {
            InputKind::String => Some(Value::from(text)),
            InputKind::Number => match text.parse::<i64>() {
                Ok(whole) => Some(Value::from(whole)),
                Err(_) => value.as_number().map(Value::from),
            },
            InputKind::Boolean => text.parse::<bool>().ok().map(Value::from),
        };
        if typed.is_none() {
            let word = match kind {
                InputKind::String => "a string",
                InputKind::Number => "a number",
                InputKind::Boolean => "a boolean",
            };
            checker
                .diagnostics
                .push(Diagnostic::error(value.at, format!("the default of `{name}` is not {word}")));
        }
        typed
    });
    Input { kind, required: node.flag("required"), default }
}

fn notify_rule(node: &Node, checker: &mut Checker) -> NotifyRule {
    let on: BTreeSet<Moment> = node.items("on").iter().filter_map(Node::as_word).collect();
    NotifyRule { on: on.into_iter().collect(), to: recipients(node, &mut checker.diagnostics) }
}

/// Who is told; nobody is a mistake.
pub(super) fn recipients(node: &Node, diagnostics: &mut Vec<Diagnostic>) -> Vec<Recipient> {
    let mut to = Vec::new();
    to.extend(node.parsed("slack").map(Recipient::Slack));
    let mail: Vec<String> =
        node.items("email").iter().filter_map(|one| one.text().map(str::to_owned)).collect();
    if !mail.is_empty() {
        to.push(Recipient::Email(mail));
    }
    to.extend(node.parsed("webhook").map(Recipient::Webhook));
    if node.flag("console") {
        to.push(Recipient::Console);
    }
    let named = ["slack", "email", "webhook"].iter().any(|key| node.get(key).is_some())
        || node.get("console").is_some_and(|console| console.text() != Some("false"));
    if to.is_empty() && !named && !node.entries().is_empty() {
        let diagnostic = Diagnostic::error(node.at, "this notice goes to nobody");
        diagnostics.push(
            diagnostic
                .hint("add `slack: <name>`, `email: [<address>]`, `webhook: <name>` or `console: true`"),
        );
    }
    to
}
