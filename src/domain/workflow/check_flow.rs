//! Whether each step gets what it works on: metrics for a gate, files for a
//! version, a version for a canary, rules for a verdict.

use super::check::{File, Order};
use super::decode::Draft;
use super::diagnostic::Diagnostic;
use super::step::{
    BLOCK_COMPLETE_AFTER, Canary, Compare, Expectations, Gate, OnlineMetric, Role, Run, Source, StepKind,
    Wait, WhenUnderpowered,
};
use super::units::format_duration;
use super::{Step, longest_watch};
use crate::domain::expr::nearest;
use crate::domain::id::StepId;

/// The steps as far as they could be read, by number.
struct Flow<'f> {
    steps: Vec<(usize, &'f Step)>,
    drafts: &'f [Draft<'f>],
    order: &'f Order,
}

impl<'f> Flow<'f> {
    /// The steps that have ended when `index` begins.
    fn before(&self, index: usize) -> impl Iterator<Item = &'f Step> {
        self.steps.iter().filter(move |(other, _)| self.order.precedes(*other, index)).map(|(_, step)| *step)
    }

    fn commands_before(&self, index: usize) -> impl Iterator<Item = &'f Run> {
        self.before(index).filter_map(|step| step.kind.command())
    }

    fn drafts_before(&self, index: usize) -> impl Iterator<Item = &'f Draft<'f>> {
        let before = move |other: &usize| self.order.precedes(*other, index);
        (0..self.drafts.len()).filter(before).filter_map(|other| self.drafts.get(other))
    }

    /// Whether all steps before `index` were understood: what is missing there is really missing.
    fn sound_before(&self, index: usize) -> bool {
        self.drafts_before(index).all(|draft| draft.sound)
    }

    /// Whether a step of this kind comes before, or one whose kind is not understood.
    fn kind_before(&self, index: usize, word: &str) -> bool {
        self.drafts_before(index).any(|draft| draft.kind.is_none_or(|kind| kind == word))
    }
}

pub(super) fn check(file: &File<'_>, order: &Order, diagnostics: &mut Vec<Diagnostic>) {
    let read = |(index, draft)| -> Option<(usize, &Step)> {
        let draft: &Draft<'_> = draft;
        Some((index, draft.step.as_ref()?))
    };
    let steps: Vec<(usize, &Step)> = file.steps.iter().enumerate().filter_map(read).collect();
    let flow = Flow { steps, drafts: file.steps, order };
    for (index, step) in &flow.steps {
        let index = *index;
        match &step.kind {
            StepKind::Fetch(fetch) => columns(step, &fetch.expect, diagnostics),
            StepKind::Gate(gate) => fed(file, &flow, index, gate, diagnostics),
            StepKind::Publish(publish) => {
                if !flow.kind_before(index, "run") {
                    let diagnostic =
                        Diagnostic::error(step.at, format!("`{}` has nothing to publish", step.id));
                    diagnostics.push(
                        diagnostic.hint(
                            "put a `run` step before it that leaves files in `$REFIT_OUT` or `outputs`",
                        ),
                    );
                }
                from_run(&flow, index, step, publish.from.as_ref(), "published", diagnostics);
            }
            StepKind::Evaluate(evaluate) => {
                if !flow.kind_before(index, "run") {
                    let diagnostic =
                        Diagnostic::error(step.at, format!("`{}` has nothing to score", step.id));
                    diagnostics.push(diagnostic.hint("put it after the `run` step that trains"));
                }
                from_run(&flow, index, step, evaluate.from.as_ref(), "scored", diagnostics);
            }
            StepKind::Canary(canary) => {
                rules_of(&flow, index, step, canary, diagnostics);
                truth_comes_in_time(&flow, index, canary, diagnostics);
            }
            StepKind::Wait(wait) => watches(&flow, index, step, wait, diagnostics),
            StepKind::Shadow(shadow) => {
                watches(&flow, index, step, &shadow.wait, diagnostics);
                pairs_count(&flow, index, step, diagnostics);
            }
            StepKind::Compare(compare) => {
                let replays = compare.when_underpowered == WhenUnderpowered::Replay;
                if replays && !flow.drafts.iter().any(|draft| draft.kind.is_none_or(|kind| kind == "shadow"))
                {
                    let message =
                        format!("`{}` replays inputs, and there is no command to do it with", step.id);
                    let diagnostic = Diagnostic::warning(step.at, message);
                    diagnostics.push(diagnostic.hint(
                        "add a `shadow` step with a predict command; without one a human is asked at once",
                    ));
                }
                if !flow.kind_before(index, "canary") {
                    let diagnostic =
                        Diagnostic::error(step.at, format!("`{}` has no canary to compare", step.id));
                    diagnostics.push(diagnostic.hint("put it after a `canary` step"));
                }
            }
            StepKind::Promote(promote) => {
                let has_canary = flow.kind_before(index, "canary");
                if !has_canary {
                    let diagnostic =
                        Diagnostic::error(step.at, format!("`{}` has no canary to promote", step.id));
                    diagnostics.push(diagnostic.hint("put a `canary` step before it"));
                }
                let targets = flow.before(index).filter_map(|other| {
                    let StepKind::Canary(canary) = &other.kind else { return None };
                    Some(&canary.target)
                });
                let targets: Vec<_> = targets.collect();
                if let (Some(target), Some(last)) = (&promote.target, targets.last())
                    && !targets.contains(&target)
                {
                    let diagnostic = Diagnostic::error(
                        step.at,
                        format!("`{}` promotes on `{target}`, and the canary is on `{last}`", step.id),
                    );
                    diagnostics
                        .push(diagnostic.hint("remove `target`; the canary's is meant when it is absent"));
                }
                let waits = ["wait", "shadow", "approve"].iter().any(|word| flow.kind_before(index, word));
                if has_canary && !waits {
                    let message = format!("nothing waits between the canary and `{}`", step.id);
                    let diagnostic = Diagnostic::warning(step.at, message);
                    diagnostics.push(
                        diagnostic
                            .hint("add a `wait` step, or the verdict is taken before there is evidence"),
                    );
                }
            }
            StepKind::Run(_)
            | StepKind::Approve(_)
            | StepKind::Rollback(_)
            | StepKind::Notify(_)
            | StepKind::Http(_) => {}
        }
    }
    side_by_side(&flow, diagnostics);
}

/// A wait for something of a canary has one to watch.
fn watches(flow: &Flow<'_>, index: usize, step: &Step, wait: &Wait, diagnostics: &mut Vec<Diagnostic>) {
    let asks = [&wait.until, &wait.abort_if].into_iter().flatten();
    let canary = asks.flat_map(|expr| expr.references()).any(|path| path.root() == "canary");
    if canary && !flow.kind_before(index, "canary") {
        let diagnostic =
            Diagnostic::error(step.at, format!("`{}` asks for `canary`, and none is out by then", step.id));
        diagnostics.push(diagnostic.hint("put it after a `canary` step"));
    }
}

/// What a shadow step finds is evidence of a canary, for a rule on prediction errors.
fn pairs_count(flow: &Flow<'_>, index: usize, step: &Step, diagnostics: &mut Vec<Diagnostic>) {
    if !flow.kind_before(index, "canary") {
        let diagnostic = Diagnostic::error(step.at, format!("`{}` has no canary to score", step.id));
        diagnostics.push(diagnostic.hint("put it after a `canary` step"));
    }
    let mut compares = flow.steps.iter().filter_map(|(_, other)| {
        let StepKind::Compare(compare) = &other.kind else { return None };
        Some(compare)
    });
    let counts = |compare: &Compare| compare.rules.iter().any(|rule| rule.metric == OnlineMetric::AbsError);
    if flow.drafts.iter().all(|draft| draft.sound) && !compares.any(counts) {
        let message = format!("no rule looks at the prediction errors that `{}` finds", step.id);
        let diagnostic = Diagnostic::warning(step.at, message);
        diagnostics.push(diagnostic.hint("add a rule on `abs_error` to `compare`"));
    }
}

/// A step that is named for its files is a `run` step before this one.
fn from_run(
    flow: &Flow<'_>,
    index: usize,
    step: &Step,
    from: Option<&StepId>,
    done: &str,
    diagnostics: &mut Vec<Diagnostic>,
) {
    let Some(from) = from.filter(|_| flow.sound_before(index)) else { return };
    if !flow.before(index).any(|other| &other.id == from && other.kind.word() == "run") {
        let message = format!("`from: {from}` is no `run` step before `{}`", step.id);
        let hint = format!("name the step whose files are {done}");
        diagnostics.push(Diagnostic::error(step.at, message).hint(hint));
    }
}

/// Every rule of a gate is on a metric that some command gives.
fn fed(file: &File<'_>, flow: &Flow<'_>, index: usize, gate: &Gate, diagnostics: &mut Vec<Diagnostic>) {
    let runs: Vec<&Run> = flow.commands_before(index).collect();
    let sound = flow.sound_before(index);
    let from_file = runs.iter().any(|run| run.metrics_file);
    let evaluated = flow.kind_before(index, "evaluate");
    let printed = runs.iter().flat_map(|run| run.stdout_metrics.keys()).map(|metric| metric.as_str());
    // What refit computes itself from the rows of a scoring command.
    let scored = ["mae", "rmse", "r2"].into_iter().filter(|_| evaluated);
    let printed: Vec<&str> = printed.chain(scored).collect();
    for rule in &gate.rules {
        let metric = rule.metric.as_str();
        if sound && !from_file && !printed.contains(&metric) {
            let hint = match nearest(metric, printed.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None if printed.is_empty() => format!(
                    "add `metrics: {{ stdout: {{ {metric}: {{ pattern: '…' }} }} }}` or `metrics: {{ file: true }}` to the trainer"
                ),
                None => format!("steps before it give: {}", printed.join(", ")),
            };
            diagnostics
                .push(Diagnostic::error(rule.at, format!("nothing gives the metric `{metric}`")).hint(hint));
            continue;
        }
        if rule.vs_champion.is_some() && !file.metrics.contains_key(&rule.metric) {
            let diagnostic =
                Diagnostic::error(rule.at, format!("which direction of `{metric}` is better is not said"));
            diagnostics.push(
                diagnostic.hint(format!(
                    "add `metrics: {{ {metric}: {{ better: lower }} }}` at the top of the file"
                )),
            );
        }
        if sound && !from_file && !evaluated && (rule.each_segment || rule.min_rows.is_some()) {
            let key = if rule.each_segment { "each" } else { "min_rows" };
            let message =
                format!("`{key}` needs a metrics file: what a command prints has no segments and no rows");
            diagnostics.push(
                Diagnostic::error(rule.at, message).hint("add `metrics: { file: true }` to the trainer"),
            );
        }
    }
}

/// A canary has a version before it and exactly one set of rules.
fn rules_of(flow: &Flow<'_>, index: usize, step: &Step, canary: &Canary, diagnostics: &mut Vec<Diagnostic>) {
    if !flow.kind_before(index, "publish") {
        let diagnostic =
            Diagnostic::error(step.at, format!("`{}` has no version to send traffic to", step.id));
        diagnostics.push(diagnostic.hint("put a `publish` step before it"));
    }
    if flow.drafts.iter().any(|draft| draft.kind.is_none() || draft.id.is_none()) {
        return;
    }
    let compares = flow.drafts.iter().filter(|draft| draft.kind == Some("compare"));
    let compares: Vec<&str> = compares.filter_map(|draft| draft.id.as_ref()).map(|id| id.as_str()).collect();
    match (&canary.compare, compares.as_slice()) {
        (Some(named), known) if !known.contains(&named.as_str()) => {
            let hint = match nearest(named.as_str(), known.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None if known.is_empty() => "add a `compare` step with the rules".to_owned(),
                None => format!("`compare` steps are: {}", known.join(", ")),
            };
            let message = format!("`{}` goes by `{named}`, which is no `compare` step", step.id);
            diagnostics.push(Diagnostic::error(step.at, message).hint(hint));
        }
        (None, []) => {
            let diagnostic =
                Diagnostic::error(step.at, format!("no rules say when `{}` is good or bad", step.id));
            diagnostics.push(diagnostic.hint("add a `compare` step with the rules"));
        }
        (None, [_, _, ..]) => {
            let message = format!("`{}` has {} `compare` steps to choose from", step.id, compares.len());
            let diagnostic = Diagnostic::error(step.at, message);
            diagnostics.push(diagnostic.hint(format!("name one: `compare: {}`", compares[0])));
        }
        (Some(_), _) | (None, [_]) => {}
    }
    let settled = flow.drafts.iter().enumerate().any(|(other, later)| {
        flow.order.precedes(index, other) && matches!(later.kind, Some("promote" | "rollback"))
    });
    if !settled {
        let diagnostic =
            Diagnostic::warning(step.at, format!("no step after `{}` promotes it or rolls it back", step.id));
        diagnostics
            .push(diagnostic.hint("add a `promote` step; it promotes, rolls back or holds by the verdict"));
    }
}

/// A rule that decides does not wait for truth until the time to decide is over.
fn truth_comes_in_time(flow: &Flow<'_>, index: usize, canary: &Canary, diagnostics: &mut Vec<Diagnostic>) {
    if flow.drafts.iter().any(|draft| !draft.sound) {
        return;
    }
    let after = flow.steps.iter().filter(|(other, _)| *other > index).map(|(_, step)| *step);
    let Some(longest) = longest_watch(after) else { return };
    let rules = flow.steps.iter().find_map(|(_, step)| {
        let StepKind::Compare(compare) = &step.kind else { return None };
        canary.compare.as_ref().is_none_or(|id| id == &step.id).then_some(&compare.rules)
    });
    let after = flow.steps.iter().filter(|(other, _)| *other > index).map(|(_, step)| *step);
    let named_blocks = after.into_iter().any(names_blocks);
    let waiting = rules.into_iter().flatten();
    for rule in waiting.filter(|rule| rule.role == Role::Gating && !rule.label_horizon.is_zero()) {
        let complete = rule.label_horizon + BLOCK_COMPLETE_AFTER;
        if rule.label_horizon >= longest {
            let message = format!(
                "no request is {} old when the canary has to be decided, {} after its start",
                format_duration(rule.label_horizon),
                format_duration(longest)
            );
            let diagnostic = Diagnostic::error(rule.at, message);
            diagnostics.push(diagnostic.hint(
                "give the canary more time, shorten `label_horizon`, or let the rule only observe: `mode: observe`",
            ));
        } else if named_blocks && complete >= longest {
            let message = format!(
                "no block is complete when the canary has to be decided, {} after its start: one is bet on once \
                 nothing of it came of age for {}, here no sooner than after {}",
                format_duration(longest),
                format_duration(BLOCK_COMPLETE_AFTER),
                format_duration(complete)
            );
            let diagnostic = Diagnostic::warning(rule.at, message);
            diagnostics.push(diagnostic.hint("give the canary more time, or shorten `label_horizon`"));
        }
    }
}

/// Whether the rows that a step scores have blocks, as far as it can be known: a query names the column.
fn names_blocks(step: &Step) -> bool {
    let StepKind::Shadow(shadow) = &step.kind else { return false };
    match &shadow.rows {
        Source::Postgres { query, .. } | Source::Sqlite { query, .. } => query
            .split(|c: char| !c.is_alphanumeric() && c != '_')
            .any(|word| word.eq_ignore_ascii_case("block")),
        Source::File { .. } | Source::Http { .. } => false,
    }
}

/// Columns that checks name and `columns` does not know.
fn columns(step: &Step, expect: &Expectations, diagnostics: &mut Vec<Diagnostic>) {
    use super::step::ColumnType;
    if expect.columns.is_empty() {
        return;
    }
    let known = || expect.columns.iter().map(|(name, _)| name.as_str());
    let newest = expect.newest.as_ref().map(|newest| newest.column.as_str());
    let named = expect
        .null_rate
        .iter()
        .map(|(name, _)| name.as_str())
        .chain(expect.unique.iter().map(String::as_str));
    for name in named.chain(newest).filter(|name| !known().any(|column| column == *name)) {
        if let Some(near) = nearest(name, known()) {
            let diagnostic = Diagnostic::warning(
                step.at,
                format!("`expect` checks the column `{name}`, which `columns` does not list"),
            );
            diagnostics.push(diagnostic.hint(format!("did you mean `{near}`?")));
        }
    }
    let kind = expect.columns.iter().find(|(name, _)| Some(name.as_str()) == newest).map(|(_, kind)| *kind);
    match kind {
        Some(ColumnType::Int | ColumnType::Float | ColumnType::String | ColumnType::Bool) => {
            let name = newest.unwrap_or_default();
            let diagnostic = Diagnostic::error(
                step.at,
                format!("`newest` looks at `{name}`, which is no date or timestamp"),
            );
            diagnostics.push(diagnostic.hint("name a column of type date or timestamp"));
        }
        Some(ColumnType::Date | ColumnType::Timestamp) | None => {}
    }
}

/// What must not happen side by side.
fn side_by_side(flow: &Flow<'_>, diagnostics: &mut Vec<Diagnostic>) {
    for (position, (index, step)) in flow.steps.iter().enumerate() {
        for (other, later) in flow.steps.iter().skip(position + 1) {
            if !flow.order.parallel(*index, *other) {
                continue;
            }
            let (one, two) = (&step.id, &later.id);
            if step.labels != later.labels {
                let message =
                    format!("`{one}` and `{two}` run side by side on workers with different labels");
                let diagnostic = Diagnostic::error(later.at, message);
                diagnostics.push(diagnostic.hint("one worker runs all branches; give both the same `runs_on`, or one after the other by `needs`"));
            }
            let word = later.kind.word();
            if step.kind.word() == word && matches!(word, "publish" | "canary" | "promote") {
                let message = format!("`{one}` and `{two}` both {word} and run side by side");
                diagnostics.push(
                    Diagnostic::error(later.at, message).hint(format!("add `needs: [{one}]` to `{two}`")),
                );
            }
        }
    }
}
