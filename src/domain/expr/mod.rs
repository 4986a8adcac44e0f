//! CEL expressions and `${{ }}` templates: compiled once, checked as far as
//! they can be, evaluated over a `Scope`. An undefined path is an error, never
//! an empty text.
//!
//! Expressions come from files and work on what trainers and callers sent, so
//! both are bounded: the length and nesting of the source, and the size of the
//! values it may look at. Errors name paths and types, never values: a value
//! may be a secret.

mod analysis;
mod template;
mod value;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, LazyLock};

use cel::{Context, Env, ExecutionError, IdedExpr};
use serde_json::{Map, Value};

use super::words::steers;

pub use analysis::{Comparison, Path};
pub use template::Template;

/// The longest expression, in characters.
pub const MAX_LENGTH: usize = 1_000;
/// The longest text a template renders to, in bytes.
pub const MAX_RENDERED: usize = 1 << 20;

/// The functions and macros an expression may call.
pub const FUNCTIONS: &[&str] = &[
    "size",
    "contains",
    "startsWith",
    "endsWith",
    "matches",
    "string",
    "int",
    "uint",
    "double",
    "bool",
    "bytes",
    "dyn",
    "has",
    "all",
    "exists",
    "exists_one",
    "map",
    "filter",
];

/// What an expression may look at: the roots `model`, `inputs`, `event`,
/// `steps`, `secrets` and, where a canary is out, `canary`.
///
/// Not `Debug`, as `secrets` holds resolved values.
#[derive(Clone, Default)]
pub struct Scope {
    roots: Map<String, Value>,
}

impl Scope {
    /// A scope without roots.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same scope with `root` set to `value`.
    pub fn with(mut self, root: &str, value: Value) -> Self {
        self.roots.insert(root.to_owned(), value);
        self
    }

    /// Sets `steps.<step>`.
    pub fn set_step(&mut self, step: &str, shown: Value) {
        let steps = self.roots.entry("steps").or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(steps) = steps {
            steps.insert(step.to_owned(), shown);
        }
    }

    /// The value of a root.
    pub fn root(&self, root: &str) -> Option<&Value> {
        self.roots.get(root)
    }

    /// What is wrong with `path`, in words: the part that is not there and the nearest that is.
    fn missing(&self, path: &Path) -> Option<String> {
        let mut here = &self.roots;
        for (depth, segment) in path.segments().iter().enumerate() {
            match here.get(segment) {
                Some(Value::Object(map)) => here = map,
                Some(_) => return None,
                None => {
                    let wanted = path.segments()[..=depth].join(".");
                    let nearest = nearest(segment, here.keys().map(String::as_str));
                    let parent: String =
                        path.segments()[..depth].iter().map(|part| format!("{part}.")).collect();
                    return Some(match nearest {
                        Some(near) => format!("`{wanted}` is not defined; did you mean `{parent}{near}`?"),
                        None if depth == 0 => {
                            let known: Vec<&str> = here.keys().map(String::as_str).collect();
                            format!("`{wanted}` is not defined; there are: {}", known.join(", "))
                        }
                        None => format!("`{wanted}` is not defined"),
                    });
                }
            }
        }
        None
    }
}

/// The known word nearest to `word`, if one is near enough to be a slip of the keyboard.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Distances grow with the product of the lengths; a word this long is no slip.
    if word.len() > 60 {
        return None;
    }
    let lower = word.to_lowercase();
    known
        .into_iter()
        .filter(|candidate| candidate.len() <= 60)
        .map(|candidate| (strsim::damerau_levenshtein(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= 1.max(candidate.len().min(word.len()) / 3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// A CEL expression.
#[derive(Clone, PartialEq)]
pub struct Expr {
    source: String,
    tree: Arc<IdedExpr>,
}

/// Why an expression cannot be compiled or evaluated.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("`{expression}`: {cause}")]
pub struct ExprError {
    /// The expression.
    pub expression: String,
    /// What is wrong with it.
    pub cause: String,
}

impl fmt::Debug for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Expr").field(&self.source).finish()
    }
}

/// The standard functions, registered once.
static STANDARD: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

impl Expr {
    /// Compiles `source`: its syntax, its functions and its size are checked here.
    pub fn compile(source: &str) -> Result<Self, ExprError> {
        let source = source.trim();
        let refuse = |cause: String| ExprError { expression: shorten(source), cause };
        if source.is_empty() {
            return Err(refuse("is empty".to_owned()));
        }
        if source.chars().count() > MAX_LENGTH {
            return Err(refuse(format!("is longer than {MAX_LENGTH} characters")));
        }
        analysis::check_source(source).map_err(refuse)?;
        // The hand-written parser: the generated one needs 100 KiB of stack for each bracket.
        let tree = cel::parser::PrattParser::new().parse(source).map_err(|errors| {
            let first = errors.errors.first();
            refuse(match first {
                Some(error) if error.pos.1 > 0 => {
                    format!("{} (character {})", syntax(&error.msg), error.pos.1)
                }
                Some(error) => syntax(&error.msg),
                None => "is not a CEL expression".to_owned(),
            })
        })?;
        analysis::check_tree(&tree).map_err(refuse)?;
        Ok(Self { source: source.to_owned(), tree: Arc::new(tree) })
    }

    /// The text it was compiled from.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The dotted paths it looks at, each with its root first: `steps.data.rows`, `secrets.TOKEN`.
    /// A path ends where its next part is only known when it is evaluated.
    pub fn references(&self) -> BTreeSet<Path> {
        analysis::references(&self.tree)
    }

    /// Whether it looks at `root`.
    pub fn mentions(&self, root: &str) -> bool {
        self.references().iter().any(|path| path.segments().first().is_some_and(|first| first == root))
    }

    /// Paths it compares with a text that stands in it: `canary.verdict == 'pass'`.
    pub fn comparisons(&self) -> Vec<Comparison> {
        analysis::comparisons(&self.tree)
    }

    /// Why it can never be a condition, if that shows without evaluating it.
    pub fn never_a_condition(&self) -> Option<&'static str> {
        analysis::not_boolean(&self.tree)
    }

    /// Its value; an undefined path is an error.
    ///
    /// As CEL has it, `true || undefined.path` is true: what cannot change the
    /// result is not an error.
    pub fn evaluate(&self, scope: &Scope) -> Result<Value, ExprError> {
        let refuse = |cause: String| ExprError { expression: shorten(&self.source), cause };
        let references = self.references();
        let mut context = Context::with_env(Arc::clone(&STANDARD));
        let loops = analysis::has_loop(&self.tree);
        let roots: BTreeSet<&str> = references.iter().map(Path::root).collect();
        for root in roots {
            if let Some(value) = scope.root(root) {
                let value =
                    value::to_cel(value, loops).map_err(|cause| refuse(format!("`{root}` {cause}")))?;
                context.add_variable_from_value(root, value);
            }
        }
        let result = context.resolve(&self.tree).map_err(|error| {
            refuse(match undefined(&error) {
                Some(name) => references
                    .iter()
                    .filter_map(|path| Some((path, scope.missing(path)?)))
                    .find(|(path, _)| path.segments().iter().any(|segment| segment == name))
                    .map(|(_, cause)| cause)
                    // A key that does not stand in the source was computed, perhaps from a secret.
                    .unwrap_or_else(|| match self.source.contains(name) {
                        true => format!("`{name}` is not defined"),
                        false => "a computed key is not defined".to_owned(),
                    }),
                None => execution(&error),
            })
        })?;
        value::to_json(&result).map_err(refuse)
    }

    /// Its value as a condition; anything but a boolean is an error.
    pub fn is_true(&self, scope: &Scope) -> Result<bool, ExprError> {
        self.evaluate(scope)?.as_bool().ok_or_else(|| ExprError {
            expression: shorten(&self.source),
            cause: "is not true or false".to_owned(),
        })
    }
}

/// The start of a long expression, on one line.
fn shorten(source: &str) -> String {
    let line: String = source.chars().map(|c| if steers(c) { ' ' } else { c }).collect();
    if line.chars().count() <= 120 { line } else { line.chars().take(119).chain(['…']).collect() }
}

/// The parser's words without its own vocabulary of tokens.
fn syntax(message: &str) -> String {
    let message = message.strip_prefix("Syntax error: ").unwrap_or(message);
    let message = message.split(" expecting ").next().unwrap_or(message);
    if message.contains("'='") {
        return "`=` compares nothing; write `==`".to_owned();
    }
    let message =
        message.replace("'<EOF>'", "end").replace('\n', " ").replace("mismatched input", "unexpected");
    format!("is not a CEL expression: {message}")
}

/// The name that is not there, if that is what went wrong.
fn undefined(error: &ExecutionError) -> Option<&str> {
    match error {
        ExecutionError::NoSuchKey(name) | ExecutionError::UndeclaredReference(name) => Some(name),
        _ => None,
    }
}

/// What went wrong, without the values it went wrong with. The crate's enum is
/// open, so what it may add later reads as the last line.
fn execution(error: &ExecutionError) -> String {
    match error {
        ExecutionError::NoSuchOverload(overload) => {
            let operator = overload.function().trim_matches('_').replace('_', "");
            format!(
                "`{operator}` does not work on {} (convert with `double()`, `int()` or `string()`)",
                overload.argument_types().join(" and ")
            )
        }
        ExecutionError::UnsupportedBinaryOperator(operator, left, right) => format!(
            "`{}` does not work on {} and {} (convert with `double()`, `int()` or `string()`)",
            match *operator {
                "add" => "+",
                "sub" => "-",
                "mul" => "*",
                "div" => "/",
                "rem" => "%",
                other => other,
            },
            left.type_of(),
            right.type_of()
        ),
        ExecutionError::UnexpectedType { got, want } => format!("expected {want}, got {got}"),
        ExecutionError::ValuesNotComparable(..) => "two values that cannot be compared".to_owned(),
        ExecutionError::DivisionByZero(_) => "divides by zero".to_owned(),
        ExecutionError::RemainderByZero(_) => "takes a remainder by zero".to_owned(),
        ExecutionError::Overflow(..) => "overflows a 64-bit number".to_owned(),
        ExecutionError::IndexOutOfBounds(_) => "an index beyond the end of a list".to_owned(),
        ExecutionError::FunctionError { function, .. } => {
            format!("`{function}` cannot take the value it is given")
        }
        ExecutionError::InvalidArgumentCount { expected, actual } => {
            format!("a function takes {expected} values and is given {actual}")
        }
        _ => "cannot be evaluated with the values it is given".to_owned(),
    }
}

#[cfg(test)]
mod tests;
