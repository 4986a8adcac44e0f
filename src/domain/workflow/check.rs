//! What only the whole file shows: which step comes before which, and what
//! each expression may look at.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use super::check_flow;
use super::checker::Use;
use super::decode::Draft;
use super::diagnostic::Diagnostic;
use super::node::Node;
use super::step::StepKind;
use super::trigger::Triggers;
use super::{Better, Position};
use crate::domain::expr::nearest;
use crate::domain::id::{MetricName, SecretName};

/// What an expression may ask of `event`.
pub const EVENT_FIELDS: &[&str] = &["id", "name", "data", "source", "received_at"];
/// What an expression may ask of `canary`.
pub const CANARY_FIELDS: &[&str] = &[
    "verdict",
    "reason",
    "version",
    "champion",
    "stage",
    "share",
    "requests",
    "errors",
    "started_at",
    "hours",
];
/// The words of `canary.verdict`.
const VERDICTS: &[&str] = &["pass", "inconclusive", "error", "fail"];

/// A file as far as it could be read.
pub(super) struct File<'f> {
    pub(super) steps: &'f [Draft<'f>],
    pub(super) on_failure: &'f [Draft<'f>],
    pub(super) triggers: &'f Triggers,
    pub(super) metrics: &'f BTreeMap<MetricName, Better>,
}

/// Steps by number, and which of them have ended when one begins.
pub(super) struct Order {
    /// For each step all that end before it, itself included if it is part of a cycle.
    before: Vec<BTreeSet<usize>>,
    /// Whether some `needs` cannot be followed, so that "comes before" is not to be trusted.
    pub(super) broken: bool,
}

impl Order {
    /// Whether step `one` has ended when step `other` begins.
    pub(super) fn precedes(&self, one: usize, other: usize) -> bool {
        self.before.get(other).is_some_and(|before| before.contains(&one))
    }

    /// Whether the two may run side by side.
    pub(super) fn parallel(&self, one: usize, other: usize) -> bool {
        one != other && !self.precedes(one, other) && !self.precedes(other, one)
    }
}

pub(super) fn whole_file(file: &File<'_>, uses: &[Use], diagnostics: &mut Vec<Diagnostic>) {
    duplicate_ids(file, diagnostics);
    let order = order(file.steps, diagnostics);
    let _ = self::order(file.on_failure, diagnostics);
    for used in uses {
        fields(used, diagnostics);
    }
    for (index, draft) in file.steps.iter().enumerate() {
        for used in &draft.uses {
            steps_of(used, file.steps, Some((index, &order)), diagnostics);
            inputs_of(used, file.triggers, diagnostics);
        }
    }
    for draft in file.on_failure {
        for used in &draft.uses {
            steps_of(used, file.steps, None, diagnostics);
            inputs_of(used, file.triggers, diagnostics);
        }
        if let Some(step) = &draft.step {
            after_failure(&step.kind, draft.node.at, diagnostics);
        }
    }
    if !order.broken {
        check_flow::check(file, &order, diagnostics);
    }
}

fn duplicate_ids(file: &File<'_>, diagnostics: &mut Vec<Diagnostic>) {
    let mut seen: BTreeMap<&str, (List, &Draft<'_>)> = BTreeMap::new();
    let steps = file.steps.iter().map(|draft| (List::Steps, draft));
    for (list, draft) in steps.chain(file.on_failure.iter().map(|draft| (List::OnFailure, draft))) {
        let Some(id) = &draft.id else { continue };
        let Some(&(first_list, first)) = seen.get(id.as_str()) else {
            seen.insert(id.as_str(), (list, draft));
            continue;
        };
        // What an alias stands for is written elsewhere.
        let written = |draft: &Draft<'_>| draft.node.entries().first().map(|entry| entry.key_at);
        let one_by_alias = written(draft) == written(first);
        // One step in both lists: what did not come to be done before the failure is done after it.
        if one_by_alias && list != first_list {
            continue;
        }
        let place = draft.place("id");
        let (place, hint) = match draft.node.get("id").is_some() {
            _ if one_by_alias || place < draft.node.at => {
                (draft.node.at, "write the step out, with an `id` of its own")
            }
            true => (place, "give one of them another `id`"),
            false => (place, "a step without `id` is called after its kind; give this one an `id`"),
        };
        let message = format!("two steps are called `{id}`; the first is at line {}", first.node.at.line);
        diagnostics.push(Diagnostic::error(place, message).hint(hint));
    }
}

/// The list of the file that a step is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum List {
    Steps,
    OnFailure,
}

/// The numbers of the steps that `drafts[index]` needs, with the place of each explicit one.
fn needs(drafts: &[Draft<'_>], index: usize) -> Vec<(Option<usize>, String, Position)> {
    let find =
        |id: &str| drafts.iter().position(|draft| draft.id.as_ref().is_some_and(|own| own.as_str() == id));
    let node = drafts[index].node;
    if node.get("needs").is_none() {
        return index
            .checked_sub(1)
            .map(|before| (Some(before), String::new(), node.at))
            .into_iter()
            .collect();
    }
    let texts = node.items("needs").iter().filter_map(|item: &Node| Some((item.text()?, item.at)));
    texts.map(|(id, at)| (find(id), id.to_owned(), at)).collect()
}

fn order(drafts: &[Draft<'_>], diagnostics: &mut Vec<Diagnostic>) -> Order {
    let mut edges: Vec<Vec<usize>> = Vec::with_capacity(drafts.len());
    let mut broken = false;
    for (index, draft) in drafts.iter().enumerate() {
        let mut direct = Vec::new();
        for (target, id, at) in needs(drafts, index) {
            match target {
                Some(target) if target == index => {
                    broken = true;
                    let diagnostic = Diagnostic::error(at, format!("step `{id}` needs itself"));
                    diagnostics.push(diagnostic.hint("remove it from its own `needs`"));
                }
                Some(target) => direct.push(target),
                None => {
                    broken = true;
                    let known: Vec<&str> =
                        drafts.iter().filter_map(|other| other.id.as_ref()).map(|id| id.as_str()).collect();
                    let hint = match nearest(&id, known.iter().copied()) {
                        Some(near) => format!("did you mean `{near}`?"),
                        None => format!("steps are: {}", known.join(", ")),
                    };
                    let own = draft.id.as_ref().map_or("a step", |own| own.as_str());
                    let message = format!("`{own}` needs `{id}`, and there is no such step");
                    diagnostics.push(Diagnostic::error(at, message).hint(hint));
                }
            }
        }
        edges.push(direct);
    }
    let before: Vec<BTreeSet<usize>> = (0..drafts.len()).map(|index| reachable(&edges, index)).collect();
    let in_cycle: Vec<usize> = (0..drafts.len()).filter(|index| before[*index].contains(index)).collect();
    if let Some(first) = in_cycle.first() {
        broken = true;
        // One message per file: the steps that wait for each other with the first of them.
        let circle: Vec<&str> = in_cycle
            .iter()
            .filter(|index| before[*first].contains(index))
            .filter_map(|index| drafts[*index].id.as_ref())
            .map(|id| id.as_str())
            .collect();
        let message = format!("these steps wait for each other: {}", circle.join(", "));
        let diagnostic = Diagnostic::error(drafts[*first].place("needs"), message);
        diagnostics.push(
            diagnostic.hint("remove one of their `needs`; a step without `needs` needs the one before it"),
        );
    }
    Order { before, broken }
}

fn reachable(edges: &[Vec<usize>], from: usize) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    let mut open: Vec<usize> = edges[from].clone();
    while let Some(next) = open.pop() {
        if found.insert(next) {
            open.extend(&edges[next]);
        }
    }
    found
}

/// `steps.<id>` names a step that has ended by then; after a failure any may be asked.
fn steps_of(
    used: &Use,
    steps: &[Draft<'_>],
    place: Option<(usize, &Order)>,
    diagnostics: &mut Vec<Diagnostic>,
) {
    for path in used.expr.references() {
        if path.root() != "steps" {
            continue;
        }
        let Some(id) = path.segments().get(1) else {
            let diagnostic = Diagnostic::error(used.at, "`steps` without the step's id");
            diagnostics.push(
                diagnostic.hint("name the step: `steps.train`, or `steps['my-step']` for an id with `-`"),
            );
            continue;
        };
        let index = steps.iter().position(|draft| draft.id.as_ref().is_some_and(|own| own.as_str() == id));
        let Some(index) = index else {
            let known: Vec<&str> =
                steps.iter().filter_map(|draft| draft.id.as_ref()).map(|own| own.as_str()).collect();
            // `steps.my-step` reads as a subtraction.
            let dashed = known.iter().find(|own| own.starts_with(&format!("{id}-")));
            let hint = match (dashed, nearest(id, known.iter().copied())) {
                (Some(own), _) => format!("write `steps['{own}']`: in CEL `-` is minus"),
                (None, Some(near)) => format!("did you mean `steps.{near}`?"),
                (None, None) => format!("steps are: {}", known.join(", ")),
            };
            diagnostics.push(Diagnostic::error(used.at, format!("there is no step `{id}`")).hint(hint));
            continue;
        };
        match place {
            Some((own, _)) if own == index => {
                let diagnostic =
                    Diagnostic::error(used.at, format!("`{path}`: a step cannot look at itself"));
                diagnostics.push(diagnostic.hint("look at a step that ends before it"));
            }
            Some((own, order)) if !order.broken && !order.precedes(index, own) => {
                let message = format!("`{path}`: `{id}` has not ended when this step begins");
                diagnostics
                    .push(Diagnostic::error(used.at, message).hint(format!("add `{id}` to its `needs`")));
            }
            Some(_) | None => {}
        }
    }
}

fn inputs_of(used: &Use, triggers: &Triggers, diagnostics: &mut Vec<Diagnostic>) {
    for path in used.expr.references() {
        let (root, Some(name)) = (path.root(), path.segments().get(1)) else { continue };
        if root != "inputs" {
            continue;
        }
        let known = || triggers.inputs.keys().map(String::as_str);
        let Some(input) = triggers.inputs.get(name) else {
            let hint = match nearest(name, known()) {
                Some(near) => format!("did you mean `inputs.{near}`?"),
                None => {
                    format!("declare it: `on: {{ manual: {{ inputs: {{ {name}: {{ type: string }} }} }} }}`")
                }
            };
            diagnostics.push(Diagnostic::error(used.at, format!("there is no input `{name}`")).hint(hint));
            continue;
        };
        let unattended = !triggers.schedules.is_empty() || !triggers.events.is_empty();
        if input.default.is_none() && (unattended || !input.required) {
            let message = format!("`{path}` is not defined in a run that nobody gave `{name}`");
            diagnostics.push(
                Diagnostic::warning(used.at, message).hint(format!("give the input `{name}` a `default`")),
            );
        }
    }
}

/// What is asked of `event`, `canary` and `secrets`.
fn fields(used: &Use, diagnostics: &mut Vec<Diagnostic>) {
    for path in used.expr.references() {
        let (root, Some(field)) = (path.root(), path.segments().get(1)) else { continue };
        let hint = |known: &[&str]| match nearest(field, known.iter().copied()) {
            Some(near) => format!("did you mean `{root}.{near}`?"),
            None => format!("`{root}` has: {}", known.join(", ")),
        };
        match root {
            "event" if !EVENT_FIELDS.contains(&field.as_str()) => {
                let hint = match nearest(field, EVENT_FIELDS.iter().copied()) {
                    None => format!("what the sender gave is below `data`: `event.data.{field}`"),
                    Some(_) => hint(EVENT_FIELDS),
                };
                diagnostics.push(Diagnostic::error(used.at, format!("there is no `{path}`")).hint(hint));
            }
            "canary" if !CANARY_FIELDS.contains(&field.as_str()) => {
                let diagnostic = Diagnostic::error(used.at, format!("there is no `{path}`"));
                diagnostics.push(diagnostic.hint(hint(CANARY_FIELDS)));
            }
            "secrets" => {
                if let Err(error) = SecretName::from_str(field) {
                    diagnostics.push(Diagnostic::error(used.at, error.to_string()));
                }
            }
            _ => {}
        }
    }
    for comparison in used.expr.comparisons() {
        if comparison.path.to_string() == "canary.verdict" && !VERDICTS.contains(&comparison.word.as_str()) {
            let hint = match nearest(&comparison.word, VERDICTS.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("verdicts are: {}", VERDICTS.join(", ")),
            };
            let message = format!("`canary.verdict` is never `{}`", comparison.word);
            diagnostics.push(Diagnostic::warning(used.at, message).hint(hint));
        }
    }
}

/// After a failure nothing goes out any more.
fn after_failure(kind: &StepKind, at: Position, diagnostics: &mut Vec<Diagnostic>) {
    match kind {
        StepKind::Run(_) | StepKind::Rollback(_) | StepKind::Notify(_) | StepKind::Http(_) => {}
        StepKind::Fetch(_)
        | StepKind::Evaluate(_)
        | StepKind::Gate(_)
        | StepKind::Publish(_)
        | StepKind::Canary(_)
        | StepKind::Wait(_)
        | StepKind::Shadow(_)
        | StepKind::Approve(_)
        | StepKind::Compare(_)
        | StepKind::Promote(_) => {
            let message = format!("a `{}` step cannot run after a failure", kind.word());
            diagnostics.push(
                Diagnostic::error(at, message).hint("`on_failure` takes run, rollback, notify and http"),
            );
        }
    }
}
