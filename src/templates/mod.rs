//! Handlebars templates, built in, and replaced one by one by files of the same
//! name in a directory. A name that a template uses and that is no fact is an
//! error.

mod prose;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use handlebars::{Handlebars, Template};
use serde_json::Value;

pub use self::prose::Prose;
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
    built_in: &'static str,
    overrides: Option<&Path>,
) -> Result<(), TemplateError> {
    let failed = |problem: String| TemplateError { name: name.to_owned(), problem };
    let template = match overrides.map(|directory| std::fs::read_to_string(directory.join(name))) {
        Some(Ok(text)) => Template::compile_with_name(text, name.to_owned()),
        Some(Err(error)) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(failed(error.to_string()));
        }
        Some(Err(_)) | None => parsed(name, built_in),
    };
    engine.register_template(name, template.map_err(|error| failed(error.to_string()))?);
    Ok(())
}

/// A built-in template, parsed once for all engines of a process: that takes longer than all else that they need.
fn parsed(name: &str, built_in: &'static str) -> Result<Template, handlebars::TemplateError> {
    static PARSED: Mutex<BTreeMap<(String, &str), Template>> = Mutex::new(BTreeMap::new());
    let mut parsed = PARSED.lock().unwrap_or_else(PoisonError::into_inner);
    let key = (name.to_owned(), built_in);
    if let Some(template) = parsed.get(&key) {
        return Ok(template.clone());
    }
    let template = Template::compile_with_name(built_in, name.to_owned())?;
    parsed.insert(key, template.clone());
    Ok(template)
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
