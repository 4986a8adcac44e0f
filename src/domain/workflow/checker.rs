//! The check of a file against its shapes: every key, type and word of it,
//! and every expression as far as one value shows.

use std::str::FromStr;

use super::Position;
use super::diagnostic::Diagnostic;
use super::keys::{ALL_ROOTS, OPEN_ROOTS, STEP_ROOTS};
use super::keys_step::{LATER_KINDS, STEPS};
use super::node::{Content, Node};
use super::shape::{Object, Shape, cron, pattern, relative, timezone};
use super::units;
use crate::domain::expr::{Expr, ExprError, Template, nearest};
use crate::domain::id::StepId;

/// No more mistakes than this are reported at once.
pub(super) const MAX_REPORTED: usize = 100;
/// What every message about a thing of a later version says.
const LATER: &str = "not available yet in this version of refit";

/// An expression of the file, for checks that need to see the whole file.
pub(super) struct Use {
    pub(super) at: Position,
    pub(super) expr: Expr,
}

/// Where a text comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Origin {
    /// A file that is loaded, so that runs can begin by it.
    #[default]
    File,
    /// A run that is in flight perhaps, begun by a refit that knew fewer mistakes: those that do not keep it from going
    /// on are none.
    Run,
}

/// Finds everything a file says that its shapes do not allow.
#[derive(Default)]
pub(super) struct Checker {
    pub(super) origin: Origin,
    pub(super) diagnostics: Vec<Diagnostic>,
    /// Every expression that was seen.
    pub(super) uses: Vec<Use>,
}

impl Checker {
    /// Checks `node` against `shape`; `what` names it in messages.
    pub(super) fn check(&mut self, node: &Node, shape: &Shape, what: &str) {
        // Nobody reads on after so many; looking for near words costs time.
        if self.diagnostics.len() > MAX_REPORTED {
            return;
        }
        match shape {
            Shape::Object(object) => self.object(node, object, what),
            Shape::Step => self.step(node),
            Shape::List(item) => match &node.content {
                Content::List(items) if items.is_empty() => {
                    self.error(node, format!("{what} is empty"), None)
                }
                Content::List(items) => items.iter().for_each(|each| self.check(each, item, &item_of(what))),
                Content::Null | Content::Scalar { .. } | Content::Map(_) => {
                    let hint = "write each entry on a line of its own that begins with `- `";
                    self.error(node, format!("{what} is a list, not {}", node.kind()), Some(hint.to_owned()));
                }
            },
            Shape::OneOrMany(item) | Shape::OneOrManyOrNone(item) => match &node.content {
                Content::List(items) if items.is_empty() => {
                    if matches!(shape, Shape::OneOrMany(_)) {
                        self.error(node, format!("{what} is empty"), None);
                    }
                }
                Content::List(items) => items.iter().for_each(|each| self.check(each, item, &item_of(what))),
                Content::Null | Content::Scalar { .. } | Content::Map(_) => self.check(node, item, what),
            },
            Shape::MapOf(item) => match &node.content {
                Content::Map(entries) => {
                    for entry in entries {
                        self.check(&entry.value, item, &format!("`{}`", entry.key));
                    }
                }
                Content::Null | Content::Scalar { .. } | Content::List(_) => {
                    self.error(node, format!("{what} is a mapping, not {}", node.kind()), None);
                }
            },
            Shape::ShareOr(object) => match &node.content {
                Content::Map(_) => self.object(node, object, what),
                Content::Null | Content::Scalar { .. } | Content::List(_) => {
                    self.check(node, &Shape::Share, what)
                }
            },
            Shape::Later => {}
            scalar => match &node.content {
                Content::Scalar { text, quoted } => self.scalar(node, scalar, text, *quoted, what),
                Content::Null | Content::List(_) | Content::Map(_) => {
                    let (message, hint) =
                        (format!("{what} is {}, not {}", scalar.name(), node.kind()), scalar.hint());
                    self.error(node, message, hint);
                }
            },
        }
    }

    fn error(&mut self, node: &Node, message: String, hint: Option<String>) {
        self.diagnostics.push(Diagnostic { hint, ..Diagnostic::error(node.at, message) });
    }

    fn object(&mut self, node: &Node, object: &'static Object, what: &str) {
        let Content::Map(entries) = &node.content else {
            let keys: Vec<String> = object.keys().take(5).map(|key| format!("`{}`", key.name)).collect();
            let message = format!("{what} is a mapping, not {}", node.kind());
            return self.error(node, message, Some(format!("it has keys such as {}", keys.join(", "))));
        };
        for entry in entries {
            let Some(key) = object.keys().find(|key| key.name == entry.key) else {
                let hint = unknown_key_hint(&entry.key, object);
                let diagnostic =
                    Diagnostic::error(entry.key_at, format!("unknown key `{}` in {what}", entry.key));
                self.diagnostics.push(diagnostic.hint(hint));
                continue;
            };
            if key.later {
                let diagnostic = Diagnostic::error(entry.key_at, format!("`{}` is {LATER}", entry.key));
                self.diagnostics.push(diagnostic.hint("remove it"));
            } else if !matches!(entry.value.content, Content::Null) {
                self.check(&entry.value, &key.shape, &format!("`{}`", key.name));
            }
        }
        for key in object.keys().filter(|key| key.required && node.get(key.name).is_none()) {
            let diagnostic = Diagnostic::error(node.at, format!("{what} has no `{}`", key.name));
            let doc = key.doc.split(['.', ';']).next().unwrap_or_default();
            self.diagnostics.push(diagnostic.hint(format!("add `{}:` ({})", key.name, doc.to_lowercase())));
        }
        if !object.one_of.is_empty() {
            let given = entries.iter().filter(|entry| object.one_of.contains(&entry.key.as_str())).count();
            if given != 1 {
                let names: Vec<String> = object.one_of.iter().map(|name| format!("`{name}`")).collect();
                let message = format!("{what} needs exactly one of {}", names.join(", "));
                self.error(node, message, (given > 1).then(|| "remove the others".to_owned()));
            }
        }
    }

    /// A step: `run` or `uses` says which keys it may have.
    fn step(&mut self, node: &Node) {
        let Content::Map(entries) = &node.content else {
            let hint = "a step begins with `- id:`, `- uses:` or `- run:`";
            return self.error(
                node,
                format!("a step is a mapping, not {}", node.kind()),
                Some(hint.to_owned()),
            );
        };
        let find = |name: &str| entries.iter().find(|entry| entry.key == name);
        let what = step_name(node);
        match (find("run"), find("uses")) {
            (Some(_), Some(uses)) => {
                let diagnostic = Diagnostic::error(uses.key_at, format!("{what} has both `run` and `uses`"));
                self.diagnostics.push(diagnostic.hint("a step does one thing; make two of it"));
            }
            (None, None) => {
                let near =
                    entries.iter().find_map(|entry| Some((entry, nearest(&entry.key, ["run", "uses"])?)));
                let hint = match near {
                    Some((entry, near)) => format!("did you mean `{near}` instead of `{}`?", entry.key),
                    None => "add `run:` with a command, or `uses:` with a kind of step".to_owned(),
                };
                self.error(node, format!("{what} has neither `run` nor `uses`"), Some(hint));
            }
            (Some(_), None) => {
                if let Some((_, object)) = STEPS.first() {
                    self.object(node, object, &what);
                }
            }
            (None, Some(uses)) => {
                let kind = uses.value.text().unwrap_or_default();
                match STEPS.iter().skip(1).find(|(word, _)| *word == kind) {
                    Some((_, object)) => self.object(node, object, &what),
                    None if LATER_KINDS.contains(&kind) => {
                        let message = format!("`uses: {kind}` is {LATER}");
                        self.error(&uses.value, message, Some("remove this step".to_owned()));
                    }
                    None if kind == "run" => {
                        let hint = "write `run:` with the command instead of `uses: run`";
                        self.error(
                            &uses.value,
                            "`run` is not a kind of step".to_owned(),
                            Some(hint.to_owned()),
                        );
                    }
                    None => {
                        let words: Vec<&str> = STEPS.iter().skip(1).map(|(word, _)| *word).collect();
                        let hint = match nearest(kind, words.iter().copied()) {
                            Some(near) => format!("did you mean `{near}`?"),
                            None => format!("kinds are: {}", words.join(", ")),
                        };
                        self.error(&uses.value, format!("there is no kind of step `{kind}`"), Some(hint));
                    }
                }
            }
        }
    }

    fn scalar(&mut self, node: &Node, shape: &Shape, text: &str, quoted: bool, what: &str) {
        let result: Result<(), String> = match shape {
            Shape::Text | Shape::Scalar => Ok(()),
            Shape::Name => StepId::from_str(text).map(drop).map_err(|error| error.rule.to_owned()),
            Shape::EventName => match text {
                _ if (!text.is_empty() || self.origin == Origin::Run)
                    && text.len() <= 200
                    && !text.contains(|c: char| c.is_whitespace() || c.is_control()) =>
                {
                    Ok(())
                }
                _ => Err("a name without blanks, such as `ml/retrain.requested`".to_owned()),
            },
            Shape::Email => match text.split_once('@') {
                Some((user, host))
                    if !user.is_empty()
                        && host.contains('.')
                        && !text.contains(|c: char| c.is_whitespace()) =>
                {
                    Ok(())
                }
                _ => Err("write a mail address, such as `team@example.com`".to_owned()),
            },
            Shape::Template(roots) => return self.template(node, text, roots, what),
            Shape::Condition(roots) if *roots == OPEN_ROOTS && self.origin == Origin::Run => {
                return self.condition(node, text, STEP_ROOTS, what);
            }
            Shape::Condition(roots) => return self.condition(node, text, roots, what),
            Shape::Command | Shape::Sql if text.contains("${{") => {
                let (message, hint) = if matches!(shape, Shape::Command) {
                    (
                        "no expression is allowed inside `run`",
                        "give the value to the command through `env:` and write `\"$NAME\"` in it",
                    )
                } else {
                    (
                        "no expression is allowed inside a query",
                        "select the rows here and filter in the trainer",
                    )
                };
                return self.error(node, message.to_owned(), Some(hint.to_owned()));
            }
            Shape::Command | Shape::Sql if text.trim().is_empty() => Err("it is empty".to_owned()),
            Shape::Command | Shape::Sql => Ok(()),
            Shape::Pattern => pattern(text).map(drop),
            Shape::RelativePath => relative(text),
            Shape::Duration => units::parse_duration(text).map(drop),
            Shape::Size => units::parse_size(text).map(drop),
            Shape::Percent => units::parse_percent(text).map(drop),
            Shape::Margin => match text.ends_with("pp") {
                true => units::parse_points(text).map(drop),
                false => units::parse_percent(text).map(drop),
            },
            Shape::Rate => match text.contains('%') || text.ends_with("pp") {
                true => units::parse_percent(text).map(drop),
                false => units::parse_number(text).map(drop),
            },
            Shape::Share => units::parse_share(text).map(drop),
            Shape::Number if quoted => Err("write the number without quotes".to_owned()),
            Shape::Number => units::parse_number(text).map(drop),
            Shape::Integer(least, most) => match text.parse::<i64>() {
                Ok(number) if (*least..=*most).contains(&number) && !quoted => Ok(()),
                _ if *most == i64::MAX => Err(format!("write a whole number of at least {least}")),
                _ => Err(format!("write a whole number from {least} to {most}")),
            },
            Shape::Boolean => match text {
                "true" | "false" if !quoted => Ok(()),
                _ => Err("write `true` or `false`".to_owned()),
            },
            Shape::Cron => cron(text),
            Shape::Timezone => timezone(text),
            Shape::Words { now, later } => {
                if now.contains(&text) {
                    return;
                }
                if later.contains(&text) {
                    let hint = format!("choose one of: {}", now.join(", "));
                    return self.error(node, format!("`{text}` is {LATER}"), Some(hint));
                }
                Err(match nearest(text, now.iter().copied()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None if now.len() == 1 => format!("the only word is `{}`", now[0]),
                    None => format!("choose one of: {}", now.join(", ")),
                })
            }
            // Looked at before.
            Shape::Object(_)
            | Shape::List(_)
            | Shape::OneOrMany(_)
            | Shape::OneOrManyOrNone(_)
            | Shape::MapOf(_)
            | Shape::ShareOr(_)
            | Shape::Step
            | Shape::Later => Ok(()),
        };
        if let Err(hint) = result {
            let shown: String = text.chars().take(60).collect();
            self.error(node, format!("{what} cannot be `{shown}`"), Some(hint));
        }
    }

    fn template(&mut self, node: &Node, text: &str, roots: &'static [&'static str], what: &str) {
        match Template::compile(text) {
            Ok(template) => {
                for expr in template.expressions() {
                    self.expression(node, expr.clone(), roots, what);
                }
            }
            Err(error) => self.broken(node, &error, what),
        }
    }

    fn condition(&mut self, node: &Node, text: &str, roots: &'static [&'static str], what: &str) {
        // `if: ${{ … }}` is what users of GitHub Actions write.
        let trimmed = text.trim();
        let bare = trimmed.strip_prefix("${{").and_then(|rest| rest.strip_suffix("}}")).unwrap_or(trimmed);
        match Expr::compile(bare) {
            Ok(expr) => {
                if let Some(kind) = expr.never_a_condition() {
                    let hint = "compare it with something, such as `>= 500` or `== 'pass'`";
                    self.error(
                        node,
                        format!("{what} is {kind}: it is never true or false"),
                        Some(hint.to_owned()),
                    );
                }
                self.expression(node, expr, roots, what);
            }
            Err(error) => self.broken(node, &error, what),
        }
    }

    fn broken(&mut self, node: &Node, error: &ExprError, what: &str) {
        let hint = "expressions are CEL: `steps.data.rows >= 500 && model != 'x'`".to_owned();
        self.error(node, format!("{what}: {error}"), Some(hint));
    }

    fn expression(&mut self, node: &Node, expr: Expr, roots: &'static [&'static str], what: &str) {
        for path in expr.references() {
            let root = path.root();
            if roots.contains(&root) {
                if root == "secrets" && path.segments().len() < 2 {
                    let hint = "name one secret, such as `secrets.DATABASE_URL`";
                    self.error(node, format!("{what} uses `secrets` as a whole"), Some(hint.to_owned()));
                }
                continue;
            }
            let (message, hint) = match nearest(root, roots.iter().copied()) {
                _ if root == "secrets" => (
                    format!("{what} cannot use a secret"),
                    "its value is stored or shown; secrets go into `env`, `url`, `headers` or `body`"
                        .to_owned(),
                ),
                _ if ALL_ROOTS.contains(&root) => {
                    (format!("{what} cannot use `{root}`"), format!("here there are: {}", roots.join(", ")))
                }
                Some(near) => (format!("{what}: there is no `{root}`"), format!("did you mean `{near}`?")),
                None => (format!("{what}: there is no `{root}`"), format!("there are: {}", roots.join(", "))),
            };
            self.error(node, message, Some(hint));
        }
        self.uses.push(Use { at: node.at, expr });
    }
}

/// `an entry of` a list, in words.
fn item_of(what: &str) -> String {
    if what == "`steps`" || what == "`on_failure`" {
        "a step".to_owned()
    } else {
        format!("an entry of {what}")
    }
}

fn step_name(node: &Node) -> String {
    let word = ["id", "uses"].iter().find_map(|key| node.get(key)?.text());
    word.map_or_else(|| "this step".to_owned(), |word| format!("step `{word}`"))
}

fn unknown_key_hint(word: &str, object: &Object) -> String {
    if let Some(near) = nearest(word, object.keys().map(|key| key.name)) {
        return format!("did you mean `{near}`?");
    }
    if object.name.ends_with("_step") {
        let with = object.keys().find(|key| key.name == "with").map(|key| key.shape);
        if let Some(Shape::Object(with)) = with
            && with.keys().any(|key| key.name == word)
        {
            return format!("`{word}` goes below `with:`");
        }
        let homes = STEPS.iter().filter(|(_, other)| other.keys().any(|key| key.name == word));
        let homes: Vec<String> = homes.map(|(kind, _)| format!("`{kind}`")).collect();
        if !homes.is_empty() {
            return format!("`{word}` is a key of {} steps", homes.join(", "));
        }
    }
    let known: Vec<&str> = object.keys().filter(|key| !key.later).map(|key| key.name).collect();
    format!("keys are: {}", known.join(", "))
}
