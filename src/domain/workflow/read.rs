//! Typed access to a tree whose shapes were checked: what does not fit was
//! reported by then and reads as absent here.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::node::{Content, Node};
use super::units;
use crate::domain::expr::{Expr, Template};

impl Node {
    pub(super) fn text_of(&self, key: &str) -> Option<String> {
        self.get(key)?.text().map(str::to_owned)
    }

    /// A name, a number, a zone: whatever reads itself from a text.
    pub(super) fn parsed<T: FromStr>(&self, key: &str) -> Option<T> {
        self.get(key)?.parse()
    }

    pub(super) fn parse<T: FromStr>(&self) -> Option<T> {
        self.text()?.parse().ok()
    }

    /// One of the words of an enum, spelled as serde spells it.
    pub(super) fn word<T: DeserializeOwned>(&self, key: &str) -> Option<T> {
        self.get(key)?.as_word()
    }

    pub(super) fn as_word<T: DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_value(serde_json::Value::from(self.text()?)).ok()
    }

    /// A word with a default.
    pub(super) fn word_or_default<T: DeserializeOwned + Default>(&self, key: &str) -> T {
        self.word(key).unwrap_or_default()
    }

    pub(super) fn flag(&self, key: &str) -> bool {
        self.get(key).and_then(Node::text) == Some("true")
    }

    pub(super) fn duration(&self, key: &str) -> Option<Duration> {
        units::parse_duration(self.get(key)?.text()?).ok()
    }

    pub(super) fn size_of(&self, key: &str) -> Option<u64> {
        units::parse_size(self.get(key)?.text()?).ok()
    }

    pub(super) fn percent(&self, key: &str) -> Option<f64> {
        self.get(key)?.as_percent()
    }

    pub(super) fn as_percent(&self) -> Option<f64> {
        units::parse_percent(self.text()?).ok()
    }

    pub(super) fn number(&self, key: &str) -> Option<f64> {
        self.get(key)?.as_number()
    }

    pub(super) fn as_number(&self) -> Option<f64> {
        units::parse_number(self.text()?).ok()
    }

    pub(super) fn template(&self, key: &str) -> Option<Template> {
        self.get(key)?.as_template()
    }

    pub(super) fn as_template(&self) -> Option<Template> {
        Template::compile(self.text()?).ok()
    }

    pub(super) fn condition(&self, key: &str) -> Option<Expr> {
        let text = self.get(key)?.text()?.trim();
        let bare = text.strip_prefix("${{").and_then(|rest| rest.strip_suffix("}}")).unwrap_or(text);
        Expr::compile(bare).ok()
    }

    /// The items of a list, or the one value that stands for it.
    pub(super) fn items(&self, key: &str) -> &[Node] {
        self.get(key).map_or(&[], Node::one_or_many)
    }

    /// The entries of a mapping, null values left out.
    pub(super) fn pairs(&self, key: &str) -> impl Iterator<Item = (&str, &Node)> {
        let entries = self.get(key).map_or(&[][..], Node::entries);
        entries
            .iter()
            .filter(|entry| !matches!(entry.value.content, Content::Null))
            .map(|entry| (entry.key.as_str(), &entry.value))
    }

    pub(super) fn templates(&self, key: &str) -> BTreeMap<String, Template> {
        self.pairs(key).filter_map(|(name, value)| Some((name.to_owned(), value.as_template()?))).collect()
    }
}
