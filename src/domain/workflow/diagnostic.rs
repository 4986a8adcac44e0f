//! What is wrong with a file, where, and what to do about it.

use std::fmt;

use super::Position;
use crate::domain::words::steers;

/// The longest part of a source line that is shown.
const SHOWN: usize = 140;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The file cannot be used.
    Error,
    /// The file can be used, perhaps not as meant.
    Warning,
}

impl Severity {
    /// The word a report begins with.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
        }
    }
}

/// One thing that is wrong, or may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Where.
    pub at: Position,
    /// How bad.
    pub severity: Severity,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

impl Diagnostic {
    /// An error at `at`.
    pub fn error(at: Position, message: impl Into<String>) -> Self {
        Self { at, severity: Severity::Error, message: message.into(), hint: None }
    }

    /// A warning at `at`.
    pub fn warning(at: Position, message: impl Into<String>) -> Self {
        Self { at, severity: Severity::Warning, message: message.into(), hint: None }
    }

    /// The same with a hint.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Plain text of several lines: message, `path:line:column`, the line of
    /// `source` with a mark below it, the hint.
    pub fn render(&self, path: &str, source: &str) -> String {
        let Position { line, column } = self.at;
        let mut text = format!("{}: {}\n", self.severity.as_str(), printable(&self.message));
        let gutter = line.to_string().len();
        text.push_str(&format!("{:gutter$}--> {}:{line}:{column}\n", "", printable(path)));
        if let Some(shown) = source.lines().nth(line.saturating_sub(1)) {
            let characters: Vec<char> = printable(shown).chars().collect();
            let start = if column > SHOWN { column - SHOWN / 2 } else { 0 };
            let end = characters.len().min(start + SHOWN);
            let part: String = characters[start.min(end)..end].iter().collect();
            let before = (column - 1).saturating_sub(start).min(part.chars().count());
            let marked = extent(part.chars().skip(before));
            text.push_str(&format!("{:gutter$} |\n{line} | {}\n", "", part.trim_end()));
            text.push_str(&format!("{:gutter$} | {:before$}{}\n", "", "", "^".repeat(marked)));
        }
        if let Some(hint) = &self.hint {
            text.push_str(&format!("{:gutter$} = hint: {}\n", "", printable(hint)));
        }
        text
    }
}

/// How many characters of a line a mark covers: a quoted text, a word, or one character.
fn extent(line: impl Iterator<Item = char>) -> usize {
    let line: Vec<char> = line.collect();
    let quoted = match line.first() {
        Some(quote @ ('"' | '\'')) => line.iter().skip(1).position(|c| c == quote).map(|end| end + 2),
        Some(_) | None => None,
    };
    let word = line.iter().take_while(|c| c.is_alphanumeric() || "_-.%/".contains(**c)).count();
    quoted.unwrap_or(word).max(1)
}

/// The text without characters that move a terminal's cursor; as many characters as before.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\t' => ' ',
            c if steers(c) => '\u{fffd}',
            c => c,
        })
        .collect()
}

/// Everything that is wrong with one file, in the order of the file; at least one error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostics {
    /// The file.
    pub path: String,
    /// What is wrong, warnings included.
    pub items: Vec<Diagnostic>,
}

impl Diagnostics {
    /// All of them as plain text, a blank line between; see `Diagnostic::render`.
    pub fn render(&self, path: &str, source: &str) -> String {
        let rendered: Vec<String> = self.items.iter().map(|item| item.render(path, source)).collect();
        rendered.join("\n")
    }

    /// How many are errors.
    pub fn errors(&self) -> usize {
        self.items.iter().filter(|item| item.severity == Severity::Error).count()
    }
}

/// One line each: `path:line:column: error: message`.
impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, item) in self.items.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            let (path, severity) = (printable(&self.path), item.severity.as_str());
            let Position { line, column } = item.at;
            write!(f, "{newline}{path}:{line}:{column}: {severity}: {}", printable(&item.message))?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}
