//! What an expression looks at, seen without evaluating it.

use std::collections::BTreeSet;
use std::fmt;

use cel::IdedExpr;
use cel::common::ast::{EntryExpr, Expr as Node, LiteralValue, operators};

use super::{FUNCTIONS, nearest};

/// The deepest nesting of brackets and the longest row of prefix operators.
const MAX_NESTING: usize = 24;
/// The most parts in one row: `a.b.c`, `1 + 2 + 3`.
const MAX_PARTS: usize = 120;
/// The deepest tree. Evaluation descends by recursion, some 20 KiB of stack a
/// level without optimisation, and may happen on a thread with 2 MiB.
const MAX_DEPTH: usize = 32;
/// The most loops (`all`, `exists`, `map`, `filter`) in each other.
const MAX_LOOPS: usize = 2;
/// The most loops in one expression.
const MAX_ALL_LOOPS: usize = 6;

/// A dotted path an expression looks at, its root first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path(Vec<String>);

impl Path {
    /// The first part: `steps` of `steps.data.rows`.
    pub fn root(&self) -> &str {
        self.0.first().map_or("", String::as_str)
    }

    /// All parts; at least the root.
    pub fn segments(&self) -> &[String] {
        &self.0
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("."))
    }
}

/// A path that is compared with a text: `canary.verdict == 'pass'`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Comparison {
    /// The path.
    pub path: Path,
    /// The text.
    pub word: String,
}

/// Bounds what the parser, which descends by recursion, is given.
pub(super) fn check_source(source: &str) -> Result<(), String> {
    let (mut open, mut prefix, mut parts) = (0usize, 0usize, 0usize);
    let mut quote = None;
    let mut escaped = false;
    for c in source.chars() {
        if let Some(end) = quote {
            (quote, escaped) = match c {
                _ if escaped => (quote, false),
                '\\' => (quote, true),
                c if c == end => (None, false),
                _ => (quote, false),
            };
            continue;
        }
        match c {
            '\'' | '"' => quote = Some(c),
            '(' | '[' | '{' => open += 1,
            ')' | ']' | '}' => open = open.saturating_sub(1),
            '.' | '+' | '*' | '/' | '%' | '?' | '&' | '|' | '=' | '<' | '>' => parts += 1,
            _ => {}
        }
        match c {
            '!' | '-' => prefix += 1,
            c if c.is_whitespace() => {}
            _ => {
                parts += prefix;
                prefix = 0;
            }
        }
        if open > MAX_NESTING || prefix > MAX_NESTING {
            return Err(format!("is nested deeper than {MAX_NESTING}"));
        }
        if parts > MAX_PARTS {
            return Err(format!("has more than {MAX_PARTS} operators"));
        }
    }
    if quote.is_some() { Err("a text without its closing quote".to_owned()) } else { Ok(()) }
}

/// Refuses functions that do not exist and loops nested too deep.
pub(super) fn check_tree(tree: &IdedExpr) -> Result<(), String> {
    if depth(tree) > MAX_DEPTH {
        return Err(format!("is deeper than {MAX_DEPTH} operators in each other; split it"));
    }
    let mut problem = None;
    let mut all_loops = 0;
    walk(tree, 0, &mut |node, loops| {
        if problem.is_some() {
            return;
        }
        if loops > MAX_LOOPS {
            problem = Some(format!("more than {MAX_LOOPS} loops in each other"));
        }
        match node {
            Node::Call(call) if is_name(&call.func_name) && !FUNCTIONS.contains(&call.func_name.as_str()) => {
                problem = Some(match nearest(&call.func_name, FUNCTIONS.iter().copied()) {
                    Some(near) => {
                        format!("there is no function `{}`; did you mean `{near}`?", call.func_name)
                    }
                    None => format!(
                        "there is no function `{}`; there are: {}",
                        call.func_name,
                        FUNCTIONS.join(", ")
                    ),
                });
            }
            Node::Comprehension(_) => {
                all_loops += 1;
                if all_loops > MAX_ALL_LOOPS {
                    problem = Some(format!("more than {MAX_ALL_LOOPS} loops"));
                }
            }
            Node::Struct(_) => problem = Some("messages such as `Name{…}` do not exist here".to_owned()),
            _ => {}
        }
    });
    problem.map_or(Ok(()), Err)
}

/// Whether it loops over a list or a map.
pub(super) fn has_loop(tree: &IdedExpr) -> bool {
    let mut found = false;
    walk(tree, 0, &mut |node, _| found |= matches!(node, Node::Comprehension(_)));
    found
}

fn depth(tree: &IdedExpr) -> usize {
    let deepest = |parts: &mut dyn Iterator<Item = &IdedExpr>| parts.map(depth).max().unwrap_or(0);
    1 + match &tree.expr {
        Node::Unspecified | Node::Ident(_) | Node::Literal(_) => 0,
        Node::Call(call) => deepest(&mut call.target.as_deref().into_iter().chain(&call.args)),
        Node::Comprehension(looped) => deepest(
            &mut [
                &looped.iter_range,
                &looped.accu_init,
                &looped.loop_cond,
                &looped.loop_step,
                &looped.result,
            ]
            .into_iter(),
        ),
        Node::List(list) => deepest(&mut list.elements.iter()),
        Node::Map(map) => deepest(&mut entries(&map.entries)),
        Node::Struct(message) => deepest(&mut entries(&message.entries)),
        Node::Select(select) => depth(&select.operand),
    }
}

fn is_name(function: &str) -> bool {
    function.starts_with(|c: char| c.is_ascii_alphabetic())
}

/// Calls `visit` for every node, with the number of loops around it.
fn walk<'t>(tree: &'t IdedExpr, loops: usize, visit: &mut impl FnMut(&'t Node, usize)) {
    visit(&tree.expr, loops);
    match &tree.expr {
        Node::Unspecified | Node::Ident(_) | Node::Literal(_) => {}
        Node::Call(call) => {
            call.target.iter().for_each(|target| walk(target, loops, visit));
            call.args.iter().for_each(|arg| walk(arg, loops, visit));
        }
        Node::Comprehension(looped) => {
            walk(&looped.iter_range, loops, visit);
            for inner in [&looped.accu_init, &looped.loop_cond, &looped.loop_step, &looped.result] {
                walk(inner, loops + 1, visit);
            }
        }
        Node::List(list) => list.elements.iter().for_each(|item| walk(item, loops, visit)),
        Node::Map(map) => entries(&map.entries).for_each(|part| walk(part, loops, visit)),
        Node::Struct(message) => entries(&message.entries).for_each(|part| walk(part, loops, visit)),
        Node::Select(select) => walk(&select.operand, loops, visit),
    }
}

fn entries(entries: &[cel::common::ast::IdedEntryExpr]) -> impl Iterator<Item = &IdedExpr> {
    entries
        .iter()
        .flat_map(|entry| match &entry.expr {
            EntryExpr::StructField(field) => [Some(&field.value), None],
            EntryExpr::MapEntry(pair) => [Some(&pair.key), Some(&pair.value)],
        })
        .flatten()
}

pub(super) fn references(tree: &IdedExpr) -> BTreeSet<Path> {
    let mut found = BTreeSet::new();
    collect(tree, &mut Vec::new(), &mut found);
    found
}

/// `bound` holds the names that loops around this node give a meaning of their own.
fn collect(tree: &IdedExpr, bound: &mut Vec<String>, found: &mut BTreeSet<Path>) {
    if let Some(path) = path_of(&tree.expr) {
        if !bound.iter().any(|name| name == path.root()) {
            found.insert(path);
        }
        return;
    }
    match &tree.expr {
        Node::Unspecified | Node::Ident(_) | Node::Literal(_) => {}
        Node::Call(call) => {
            call.target.iter().for_each(|target| collect(target, bound, found));
            call.args.iter().for_each(|arg| collect(arg, bound, found));
        }
        Node::Comprehension(looped) => {
            collect(&looped.iter_range, bound, found);
            collect(&looped.accu_init, bound, found);
            let outer = bound.len();
            bound.push(looped.iter_var.clone());
            bound.extend(looped.iter_var2.clone());
            bound.push(looped.accu_var.clone());
            for inner in [&looped.loop_cond, &looped.loop_step, &looped.result] {
                collect(inner, bound, found);
            }
            bound.truncate(outer);
        }
        Node::List(list) => list.elements.iter().for_each(|item| collect(item, bound, found)),
        Node::Map(map) => entries(&map.entries).for_each(|part| collect(part, bound, found)),
        Node::Struct(message) => entries(&message.entries).for_each(|part| collect(part, bound, found)),
        Node::Select(select) => collect(&select.operand, bound, found),
    }
}

/// The path a node spells: `a`, `a.b`, `a['b']`. `has(a.b)` spells `a`: it asks whether `b` is there.
fn path_of(node: &Node) -> Option<Path> {
    match node {
        Node::Ident(name) => Some(Path(vec![name.clone()])),
        Node::Select(select) => {
            let mut path = path_of(&select.operand.expr)?;
            if !select.test {
                path.0.push(select.field.clone());
            }
            Some(path)
        }
        Node::Call(call) if call.func_name == operators::INDEX => match call.args.as_slice() {
            [operand, index] => {
                let mut path = path_of(&operand.expr)?;
                path.0.push(literal(&index.expr)?.to_owned());
                Some(path)
            }
            _ => None,
        },
        Node::Unspecified
        | Node::Call(_)
        | Node::Comprehension(_)
        | Node::List(_)
        | Node::Literal(_)
        | Node::Map(_)
        | Node::Struct(_) => None,
    }
}

fn literal(node: &Node) -> Option<&str> {
    match node {
        Node::Literal(LiteralValue::String(text)) => Some(text.inner()),
        _ => None,
    }
}

pub(super) fn comparisons(tree: &IdedExpr) -> Vec<Comparison> {
    let mut found = Vec::new();
    walk(tree, 0, &mut |node, _| {
        let Node::Call(call) = node else { return };
        let [left, right] = call.args.as_slice() else { return };
        match call.func_name.as_str() {
            operators::EQUALS | operators::NOT_EQUALS => {
                for (path, word) in [(left, right), (right, left)] {
                    if let (Some(path), Some(word)) = (path_of(&path.expr), literal(&word.expr)) {
                        found.push(Comparison { path, word: word.to_owned() });
                    }
                }
            }
            operators::IN => {
                let (Some(path), Node::List(list)) = (path_of(&left.expr), &right.expr) else { return };
                let words = list.elements.iter().filter_map(|item| literal(&item.expr));
                found.extend(words.map(|word| Comparison { path: path.clone(), word: word.to_owned() }));
            }
            _ => {}
        }
    });
    found
}

/// What an expression is that can never be true or false.
pub(super) fn not_boolean(tree: &IdedExpr) -> Option<&'static str> {
    match &tree.expr {
        Node::Literal(LiteralValue::Boolean(_)) | Node::Unspecified => None,
        Node::Literal(LiteralValue::String(_) | LiteralValue::Bytes(_)) => Some("a text"),
        Node::Literal(LiteralValue::Double(_) | LiteralValue::Int(_) | LiteralValue::UInt(_)) => {
            Some("a number")
        }
        Node::Literal(LiteralValue::Null) => Some("null"),
        Node::List(_) => Some("a list"),
        Node::Map(_) | Node::Struct(_) => Some("a map"),
        Node::Ident(_) | Node::Select(_) | Node::Comprehension(_) => None,
        Node::Call(call) => match (call.func_name.as_str(), call.args.as_slice()) {
            (operators::CONDITIONAL, [_, yes, no]) => not_boolean(yes).or_else(|| not_boolean(no)),
            (
                operators::ADD
                | operators::SUBSTRACT
                | operators::MULTIPLY
                | operators::DIVIDE
                | operators::MODULO
                | operators::NEGATE,
                _,
            ) => Some("a calculation, not a comparison"),
            ("size" | "int" | "uint" | "double", _) => Some("a number"),
            ("string" | "bytes", _) => Some("a text"),
            _ => None,
        },
    }
}
