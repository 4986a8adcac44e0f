//! Texts with `${{ }}` parts.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Expr, ExprError, MAX_RENDERED, Path, Scope, shorten};

/// A text with `${{ }}` parts.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    source: String,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq)]
enum Part {
    Text(String),
    Expr(Expr),
}

impl Template {
    /// A text without expressions.
    pub fn literal(text: &str) -> Self {
        Self { source: text.to_owned(), parts: vec![Part::Text(text.to_owned())] }
    }

    /// Compiles `source`.
    pub fn compile(source: &str) -> Result<Self, ExprError> {
        let mut parts = Vec::new();
        let mut rest = source;
        while let Some(start) = rest.find("${{") {
            if start > 0 {
                parts.push(Part::Text(rest[..start].to_owned()));
            }
            let inner = &rest[start + 3..];
            let end = end_of_expression(inner).ok_or_else(|| ExprError {
                expression: shorten(&rest[start..]),
                cause: "`${{` without its `}}`".to_owned(),
            })?;
            parts.push(Part::Expr(Expr::compile(&inner[..end])?));
            rest = &inner[end + 2..];
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self { source: source.to_owned(), parts })
    }

    /// The text it was compiled from.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Its expressions, in order.
    pub fn expressions(&self) -> impl Iterator<Item = &Expr> {
        self.parts.iter().filter_map(|part| match part {
            Part::Text(_) => None,
            Part::Expr(expr) => Some(expr),
        })
    }

    /// The dotted paths its expressions look at.
    pub fn references(&self) -> BTreeSet<Path> {
        self.expressions().flat_map(Expr::references).collect()
    }

    /// The names of the secrets it holds once rendered: such a text is secret itself.
    pub fn secret_names(&self) -> BTreeSet<String> {
        let named = |path: &Path| match path.segments() {
            [root, name, ..] if root == "secrets" => Some(name.clone()),
            _ => None,
        };
        self.references().iter().filter_map(named).collect()
    }

    /// Its text with every `${{ }}` replaced. Null, lists and maps have no text
    /// of their own and are errors.
    pub fn render(&self, scope: &Scope) -> Result<String, ExprError> {
        self.render_escaped(scope, &str::to_owned)
    }

    /// Its value: of a text that is one `${{ }}` and nothing else, whatever that is, with its type; else its text.
    pub fn value(&self, scope: &Scope) -> Result<Value, ExprError> {
        match self.parts.as_slice() {
            [Part::Expr(expr)] => expr.evaluate(scope),
            _ => self.render(scope).map(Value::String),
        }
    }

    /// Its text with every `${{ }}` replaced by what `escape` makes of the text there.
    pub fn render_escaped(
        &self,
        scope: &Scope,
        escape: &dyn Fn(&str) -> String,
    ) -> Result<String, ExprError> {
        let mut text = String::with_capacity(self.source.len());
        for part in &self.parts {
            match part {
                Part::Text(literal) => text.push_str(literal),
                Part::Expr(expr) => {
                    let refuse = |cause: &str| ExprError {
                        expression: shorten(expr.source()),
                        cause: cause.to_owned(),
                    };
                    match expr.evaluate(scope)? {
                        Value::String(value) => text.push_str(&escape(&value)),
                        Value::Bool(value) => text.push_str(if value { "true" } else { "false" }),
                        Value::Number(value) => text.push_str(&escape(&value.to_string())),
                        Value::Null => return Err(refuse("is null, which has no text")),
                        Value::Array(_) => return Err(refuse("is a list, which has no text")),
                        Value::Object(_) => {
                            return Err(refuse("is a map, which has no text; name one of its values"));
                        }
                    }
                }
            }
            if text.len() > MAX_RENDERED {
                return Err(ExprError {
                    expression: shorten(&self.source),
                    cause: format!("renders to more than {MAX_RENDERED} bytes"),
                });
            }
        }
        Ok(text)
    }
}

/// Where the `}}` stands that closes `${{`: braces of maps and texts in quotes are skipped.
fn end_of_expression(inner: &str) -> Option<usize> {
    let bytes = inner.as_bytes();
    let (mut at, mut open) = (0, 0usize);
    while at < bytes.len() {
        match bytes[at] {
            quote @ (b'\'' | b'"') => {
                at += 1;
                while at < bytes.len() && bytes[at] != quote {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
            }
            b'{' => open += 1,
            b'}' if open > 0 => open -= 1,
            b'}' if bytes.get(at + 1) == Some(&b'}') => return Some(at),
            _ => {}
        }
        at += 1;
    }
    None
}
