//! Handlebars templates, built in, and replaced one by one by files of the same
//! name in a directory. A name that a template uses and that is no fact is an
//! error.

use std::path::Path;

use handlebars::Handlebars;
use serde_json::Value;

use crate::domain::words::steers;

/// A template that is not one, or asks for a fact that there is not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("template {name}: {problem}")]
pub struct TemplateError {
    /// The template's file name.
    pub name: String,
    /// What is wrong.
    pub problem: String,
}

/// An engine without templates. It escapes for HTML.
pub fn engine() -> Handlebars<'static> {
    let mut engine = Handlebars::new();
    engine.set_strict_mode(true);
    engine
}

/// Adds the template `name`: the file in `overrides`, where there is one, else `built_in`.
///
/// # Errors
/// A file that cannot be read, or is no template.
pub fn register(
    engine: &mut Handlebars<'static>,
    name: &str,
    built_in: &str,
    overrides: Option<&Path>,
) -> Result<(), TemplateError> {
    let failed = |problem: String| TemplateError { name: name.to_owned(), problem };
    let text = match overrides.map(|directory| std::fs::read_to_string(directory.join(name))) {
        Some(Ok(text)) => text,
        Some(Err(error)) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(failed(error.to_string()));
        }
        Some(Err(_)) | None => built_in.to_owned(),
    };
    engine.register_template_string(name, text).map_err(|error| failed(error.to_string()))
}

/// Fills the template `name` with `data`.
///
/// # Errors
/// It asks for what is not in `data`.
pub fn render(engine: &Handlebars<'_>, name: &str, data: &Value) -> Result<String, TemplateError> {
    engine
        .render(name, data)
        .map_err(|error| TemplateError { name: name.to_owned(), problem: error.to_string() })
}

/// All texts in `value` as [`clean_line`]s.
pub fn clean(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(text.lines().map(clean_line).collect::<Vec<_>>().join("\n")),
        Value::Array(items) => items.into_iter().map(clean).collect(),
        Value::Object(map) => map.into_iter().map(|(name, value)| (name, clean(value))).collect(),
        other => other,
    }
}

/// A line without characters that steer what shows it.
pub fn clean_line(text: &str) -> String {
    text.chars().map(|c| if steers(c) { ' ' } else { c }).collect::<String>().trim().to_owned()
}
