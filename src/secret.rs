//! Secrets: named in files, resolved at the edge, unprintable, masked in what
//! others print.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, RwLock};

use crate::domain::id::SecretName;

/// A value that no log, error or event shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value, for the one header or connection that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// A secret that is nowhere to be found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "secret `{name}` is not set: put it into the environment, or name a file for it under [secrets] in refit.toml"
)]
pub struct MissingSecret {
    /// Its name.
    pub name: SecretName,
}

/// Where secrets come from: files named in `refit.toml`, then the environment.
/// Remembers every value it gave out, so that logs, outputs and errors can be masked.
#[derive(Clone, Default)]
pub struct Secrets {
    files: Arc<BTreeMap<SecretName, std::path::PathBuf>>,
    fixed: Arc<BTreeMap<SecretName, Secret>>,
    revealed: Arc<RwLock<Vec<String>>>,
}

/// Shorter values are not masked: they would blank ordinary words.
const SHORTEST_MASKED: usize = 4;
/// Shorter lines of a value of several lines are not masked by themselves.
const SHORTEST_LINE: usize = 8;

/// How `value` shows: as it is, in a URL, in JSON, and its lines one by one, for they may be printed so.
fn forms(value: &str) -> Vec<String> {
    let mut forms = vec![value.to_owned(), url::form_urlencoded::byte_serialize(value.as_bytes()).collect()];
    let quoted = serde_json::Value::from(value).to_string();
    forms.push(quoted[1..quoted.len() - 1].to_owned());
    if value.contains('\n') {
        let lines = value.lines().map(str::trim).filter(|line| line.len() >= SHORTEST_LINE);
        forms.extend(lines.map(str::to_owned));
    }
    forms
}

impl Secrets {
    /// Secrets of these files and of the environment.
    pub fn new(files: BTreeMap<SecretName, std::path::PathBuf>) -> Self {
        Self { files: Arc::new(files), ..Self::default() }
    }

    /// Secrets with fixed values, for tests and the demo.
    pub fn fixed(values: BTreeMap<SecretName, Secret>) -> Self {
        Self { fixed: Arc::new(values), ..Self::default() }
    }

    /// The secret called `name`.
    pub fn get(&self, name: &SecretName) -> Result<Secret, MissingSecret> {
        let value = if let Some(secret) = self.fixed.get(name) {
            secret.reveal().to_owned()
        } else if let Some(path) = self.files.get(name) {
            let text = std::fs::read_to_string(path).map_err(|_| MissingSecret { name: name.clone() })?;
            text.trim_end_matches(['\r', '\n']).to_owned()
        } else {
            std::env::var(name.as_str()).map_err(|_| MissingSecret { name: name.clone() })?
        };
        if value.is_empty() {
            return Err(MissingSecret { name: name.clone() });
        }
        self.remember(&value);
        Ok(Secret::new(value))
    }

    fn remember(&self, value: &str) {
        if value.len() < SHORTEST_MASKED {
            return;
        }
        let mut revealed = self.revealed.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        for form in forms(value) {
            if !revealed.contains(&form) {
                revealed.push(form);
            }
        }
        // Longest first: a secret that contains another is masked whole.
        revealed.sort_by_key(|form| std::cmp::Reverse(form.len()));
    }

    /// `text` with every value given out so far replaced by `***`.
    pub fn mask(&self, text: &str) -> String {
        let revealed = self.revealed.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        revealed.iter().fold(text.to_owned(), |text, secret| {
            if text.contains(secret.as_str()) { text.replace(secret.as_str(), "***") } else { text }
        })
    }

    /// `value` with every text in it masked, keys included.
    pub fn mask_json(&self, value: serde_json::Value) -> serde_json::Value {
        use serde_json::Value;
        match value {
            Value::String(text) => Value::String(self.mask(&text)),
            Value::Array(items) => Value::Array(items.into_iter().map(|item| self.mask_json(item)).collect()),
            Value::Object(map) => Value::Object(
                map.into_iter().map(|(key, value)| (self.mask(&key), self.mask_json(value))).collect(),
            ),
            Value::Null | Value::Bool(_) | Value::Number(_) => value,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets() -> Secrets {
        let values = [("TOKEN", "hunter22"), ("URL", "postgres://u:p w@h/db")];
        Secrets::fixed(
            values.into_iter().map(|(k, v)| (k.parse().expect("a name"), Secret::new(v))).collect(),
        )
    }

    #[test]
    fn what_was_given_out_is_masked_also_when_url_encoded() {
        let secrets = secrets();
        assert_eq!(secrets.mask("hunter22"), "hunter22", "not yet given out");
        secrets.get(&"TOKEN".parse().expect("a name")).expect("set");
        secrets.get(&"URL".parse().expect("a name")).expect("set");
        assert_eq!(secrets.mask("a hunter22 b"), "a *** b");
        assert_eq!(secrets.mask("?u=postgres%3A%2F%2Fu%3Ap+w%40h%2Fdb&"), "?u=***&");
        let json = serde_json::json!({"hunter22": ["x hunter22"]});
        assert_eq!(secrets.mask_json(json), serde_json::json!({"***": ["x ***"]}));
    }

    #[test]
    fn a_value_of_several_lines_is_masked_whole_in_json_and_line_by_line() {
        let key = "-----BEGIN KEY-----\nMIIEvQIBADANBg\n-----END KEY-----";
        let secrets = Secrets::fixed([("KEY".parse().expect("a name"), Secret::new(key))].into());
        secrets.get(&"KEY".parse().expect("a name")).expect("set");
        assert_eq!(secrets.mask(&format!("a {key} b")), "a *** b");
        assert_eq!(secrets.mask(&serde_json::json!({"key": key}).to_string()), r#"{"key":"***"}"#);
        assert_eq!(secrets.mask("  MIIEvQIBADANBg\n"), "  ***\n");
    }

    #[test]
    fn a_secret_cannot_be_printed() {
        assert_eq!(format!("{:?} {}", Secret::new("x"), Secret::new("x")), "[secret] [secret]");
    }
}
