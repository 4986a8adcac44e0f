//! How results are shown: a table or JSON on stdout, everything else on stderr.

use std::io::{IsTerminal, Write};
use std::sync::OnceLock;

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use crate::domain::Timestamp;
use crate::domain::words::steers;

/// The first thing that kept a result from stdout.
static LOST: OnceLock<String> = OnceLock::new();

/// Where and how a command shows things.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    /// JSON instead of text.
    pub json: bool,
    /// Results and errors only.
    pub quiet: bool,
    /// Colours.
    pub colour: bool,
}

impl Output {
    /// As the arguments and the terminal say.
    pub fn new(json: bool, quiet: bool, no_color: bool) -> Self {
        let colour = !no_color
            && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            && std::io::stderr().is_terminal()
            && std::io::stdout().is_terminal();
        Self { json, quiet, colour }
    }

    /// A result: `text` for people, `value` for programs.
    pub fn result(&self, value: &impl Serialize, text: impl FnOnce() -> String) {
        if self.json {
            match serde_json::to_string_pretty(value) {
                Ok(json) => self.line(&json),
                Err(error) => self.note(&format!("error: the result cannot be shown as JSON: {error}")),
            }
        } else {
            self.line(text().trim_end());
        }
    }

    /// A line of data on stdout. A closed pipe ends the program quietly, as `head` expects.
    pub fn line(&self, text: &str) {
        Self::written(writeln!(std::io::stdout().lock(), "{text}"));
    }

    /// Raw data on stdout.
    pub fn raw(&self, bytes: &[u8]) {
        let mut stdout = std::io::stdout().lock();
        let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
        drop(stdout);
        Self::written(written);
    }

    /// A disk that is full cuts off no run: the command goes on, and its end says what was lost.
    fn written(written: std::io::Result<()>) {
        match written {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
            Err(error) => {
                LOST.get_or_init(|| error.to_string());
            }
        }
    }

    /// Why something did not reach stdout, if so.
    pub fn lost() -> Option<&'static str> {
        LOST.get().map(String::as_str)
    }

    /// A line for people on stderr; silent with `-q`.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            self.complain(text);
        }
    }

    /// A line on stderr, also with `-q`: something went wrong.
    pub fn complain(&self, text: &str) {
        // Nobody is left to be told when stderr is closed.
        let _closed = writeln!(std::io::stderr().lock(), "{text}");
    }

    /// `text` in bold green, yellow or red where colours are on.
    pub fn painted(&self, text: &str, paint: Paint) -> String {
        if !self.colour {
            return text.to_owned();
        }
        let code = match paint {
            Paint::Good => "32",
            Paint::Odd => "33",
            Paint::Bad => "31",
            Paint::Dim => "2",
            Paint::Bold => "1",
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }
}

/// What a colour means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paint {
    /// It went well.
    Good,
    /// Look at it.
    Odd,
    /// It went wrong.
    Bad,
    /// Beside the point.
    Dim,
    /// The point.
    Bold,
}

/// A table without lines: it can be read, and cut with `awk`.
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().copied());
    for row in rows {
        table.add_row(row.iter().map(|cell| plain(cell).replace('\n', " ")).collect::<Vec<_>>());
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// A moment as people read it: UTC, to the second.
pub fn time(at: Timestamp) -> String {
    at.format("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// How long something took, in at most two units.
pub fn span(duration: chrono::TimeDelta) -> String {
    let millis = duration.num_milliseconds().max(0);
    let seconds = millis / 1000;
    match seconds {
        0 => format!("{millis}ms"),
        1..60 => format!("{:.1}s", millis as f64 / 1000.0),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {}h", seconds / 86400, seconds % 86400 / 3600),
    }
}

/// Whether a question can be asked.
pub fn can_ask() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// `text` without characters that steer a terminal: what trainers and services print is not trusted.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if steers(c) && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// Whether progress can be drawn over and over.
pub fn is_interactive() -> bool {
    std::io::stderr().is_terminal()
}

/// Asks a question that `y` answers; anything else is no.
pub fn ask(question: &str) -> bool {
    let mut stderr = std::io::stderr().lock();
    if write!(stderr, "{question} [y/N] ").and_then(|()| stderr.flush()).is_err() {
        return false;
    }
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).is_ok()
        && matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}
