//! Secrets: named in files, resolved at the edge, unprintable, masked in what
//! others print.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, RwLock};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

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
/// Shorter lines of a longer value are not masked by themselves.
const SHORTEST_LINE: usize = 8;

/// Characters that encoders of URLs leave as they are, beside letters, digits, `-`, `.`, `_` and `~`: all are encoded
/// (RFC 3986), as JavaScript's `encodeURIComponent` and `encodeURI` do it, as Python's `quote` does it.
const LEFT_IN_URLS: [&str; 4] = ["", "!*'()", ";,/?:@&=+$#!*'()", "/"];
/// A part of a longer text in base64 is masked from this length on.
const SHORTEST_BASE64: usize = 8;

/// `value` in URLs, however careful the encoder, in either case.
fn in_urls(value: &str) -> Vec<String> {
    let encoded = LEFT_IN_URLS.iter().flat_map(|left| {
        let keeps = |byte: &u8| {
            byte.is_ascii_alphanumeric() || b"-._~".contains(byte) || left.as_bytes().contains(byte)
        };
        let mut forms = [String::new(), String::new()];
        for byte in value.as_bytes() {
            let both = if keeps(byte) {
                [char::from(*byte).to_string(), char::from(*byte).to_string()]
            } else {
                [format!("%{byte:02X}"), format!("%{byte:02x}")]
            };
            for (form, part) in forms.iter_mut().zip(both) {
                form.push_str(&part);
            }
        }
        forms
    });
    let form: String = url::form_urlencoded::byte_serialize(value.as_bytes()).collect();
    encoded.chain([form]).collect()
}

/// `value` in base64, in both alphabets, with and without padding; also as a part of a longer text (`user:password`),
/// where it begins one or two bytes into a group.
fn in_base64(value: &str) -> Vec<String> {
    let mut forms = vec![];
    for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
        let whole = engine.encode(value);
        let padding = "=".repeat((4 - whole.len() % 4) % 4);
        forms.push(format!("{whole}{padding}"));
        forms.push(whole);
        for before in 0..3_usize {
            let text = [&b"\0\0"[..before], value.as_bytes()].concat();
            let encoded = engine.encode(&text);
            // Characters that also carry bits of what stands before or after are not known.
            let first = (before * 8).div_ceil(6);
            let last = text.len() * 8 / 6;
            forms.extend(
                encoded.get(first..last).filter(|part| part.len() >= SHORTEST_BASE64).map(str::to_owned),
            );
        }
    }
    forms
}

/// What `value` looks like where it is printed: as it is, in a URL, in base64, in JSON, and line by line.
fn forms(value: &str) -> Vec<String> {
    let mut forms = vec![value.to_owned()];
    forms.extend(in_urls(value));
    forms.extend(in_base64(value));
    let mut in_json = value.to_owned();
    // JSON in JSON, too: a service that echoes a body does so.
    for _ in 0..2 {
        let quoted = serde_json::Value::from(in_json).to_string();
        in_json = quoted.get(1..quoted.len() - 1).unwrap_or(&quoted).to_owned();
        forms.push(in_json.clone());
    }
    forms.extend(
        value.lines().map(str::trim).filter(|line| line.len() >= SHORTEST_LINE).map(ToOwned::to_owned),
    );
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

    /// Where `text` can be cut so that no secret is cut in two, whatever comes after it.
    pub fn cut(&self, text: &[u8]) -> usize {
        let revealed = self.revealed.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let begun = |secret: &String| {
            let longest = secret.len().saturating_sub(1).min(text.len());
            (1..=longest).rev().find(|length| text.ends_with(&secret.as_bytes()[..*length])).unwrap_or(0)
        };
        let mut cut = text.len() - revealed.iter().map(begun).max().unwrap_or(0);
        // A whole secret that ends with the beginning of one is not cut either.
        loop {
            let across = revealed.iter().filter_map(|secret| {
                let first = (cut + 1).saturating_sub(secret.len());
                (first..cut).find(|at| text[*at..].starts_with(secret.as_bytes()))
            });
            match across.min() {
                Some(at) => cut = at,
                None => return cut,
            }
        }
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
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};

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
    fn what_was_given_out_is_masked_also_in_json_and_line_by_line() {
        let values = [("A", "say \"friend\""), ("B", "begin-key\nline-one\n}\nend-of-key")];
        let secrets = Secrets::fixed(
            values.into_iter().map(|(k, v)| (k.parse().expect("a name"), Secret::new(v))).collect(),
        );
        for (name, _) in values {
            secrets.get(&name.parse().expect("a name")).expect("set");
        }
        assert_eq!(secrets.mask(r#"{"a":"say \"friend\""}"#), r#"{"a":"***"}"#);
        assert_eq!(secrets.mask("  line-one\r\n} rest"), "  ***\r\n} rest");
        assert_eq!(secrets.mask("begin-key\nline-one\n}\nend-of-key"), "***");
    }

    #[test]
    fn what_was_given_out_is_masked_also_in_base64() {
        let secrets = Secrets::default();
        // Both alphabets differ in it: `Pz8/Pj4+...`.
        let value = "???>>>~~~ key";
        secrets.remember(value);
        for engine in [&STANDARD, &STANDARD_NO_PAD, &URL_SAFE, &URL_SAFE_NO_PAD] {
            let encoded = engine.encode(value);
            assert_eq!(secrets.mask(&format!("x {encoded} y")), "x *** y", "{encoded}");
            for before in ["a:", "ab:", "abc:"] {
                for after in ["", "!", "!!"] {
                    let header = engine.encode(format!("{before}{value}{after}"));
                    let masked = secrets.mask(&format!("Basic {header}"));
                    // What is left on both sides belongs to what stands there, but for a few bits.
                    let left = masked.strip_prefix("Basic ").expect("before").replace("***", "");
                    assert!(
                        masked.contains("***") && left.len() <= before.len() * 2 + 6,
                        "{header}: {masked}"
                    );
                }
            }
        }
        assert_eq!(secrets.mask("Pz8/ is no secret"), "Pz8/ is no secret");
    }

    #[test]
    fn what_was_given_out_is_masked_also_when_percent_encoded() {
        let secrets = Secrets::default();
        secrets.remember("a b/c?d=é'(!)");
        for encoded in [
            "a%20b%2Fc%3Fd%3D%C3%A9%27%28%21%29",
            "a%20b%2fc%3fd%3d%c3%a9%27%28%21%29",
            "a%20b%2Fc%3Fd%3D%C3%A9'(!)",
            "a%20b/c?d=%C3%A9'(!)",
            "a%20b/c%3Fd%3D%C3%A9%27%28%21%29",
            "a+b%2Fc%3Fd%3D%C3%A9%27%28%21%29",
        ] {
            assert_eq!(secrets.mask(&format!("x {encoded} y")), "x *** y");
        }
    }

    #[test]
    fn text_is_never_cut_within_a_secret() {
        let secrets = Secrets::default();
        for value in ["abcabc", "bcabcx"] {
            secrets.remember(value);
        }
        for (text, cut) in [
            ("", 0),
            ("xyz", 3),
            ("xyzab", 3),
            ("xyzabcab", 3),
            ("xyz abcabc", 4),
            ("abcabcx!", 8),
            ("abcabcx", 7),
        ] {
            assert_eq!(secrets.cut(text.as_bytes()), cut, "{text}");
        }
    }

    #[test]
    fn a_secret_cannot_be_printed() {
        assert_eq!(format!("{:?} {}", Secret::new("x"), Secret::new("x")), "[secret] [secret]");
    }
}
