//! A row that makes no sense is told by the field that does not.

use serde::de::DeserializeOwned;
use serde_json::{Error, Map, Value};
use serde_path_to_error::Segment;

use super::lines::{Refused, without_place};
use crate::domain::words;

/// So much of what was found is repeated.
const LONGEST_FOUND: usize = 60;

/// What the lines of a batch are read as.
pub(super) trait LineOf: DeserializeOwned {
    /// A row with nothing but what is required.
    const EXAMPLE: &'static str;
    /// What `field` holds, in words.
    fn holds(field: &str) -> Option<String>;
}

/// A moment, in words.
pub(super) const A_TIME: &str = "a time such as \"2026-03-01T12:00:00Z\"";

/// `line` as a row. Why it is none is found out with more work where it `is_answered`.
pub(super) fn parsed<T: LineOf>(line: &[u8], is_answered: bool) -> Result<T, Refused> {
    // A list would be taken for the fields in their order.
    if !line.starts_with(b"{") {
        let found = shown(&String::from_utf8_lossy(line));
        return Err(format!("`{found}` is not a JSON object such as {}", T::EXAMPLE));
    }
    let why = |error| if is_answered { refusal::<T>(line, &error) } else { without_place(&error) };
    serde_json::from_slice(line).map_err(why)
}

/// Reads the line again, slower, to see which field it is.
fn refusal<T: LineOf>(line: &[u8], error: &Error) -> Refused {
    let Some(field) = field_of::<T>(line) else {
        return if error.is_data() { what(error) } else { without_place(error) };
    };
    let row: Map<String, Value> = serde_json::from_slice(line).unwrap_or_default();
    match (row.get(&field), T::holds(&field)) {
        (Some(found), Some(wanted)) if error.is_data() => {
            format!("`{field}` is `{}`, not {wanted}", shown(&found.to_string()))
        }
        (Some(_), None) => what(error),
        (Some(_) | None, _) => format!("`{field}`: {}", without_place(error)),
    }
}

/// The field whose value cannot be read.
fn field_of<T: LineOf>(line: &[u8]) -> Option<String> {
    let mut json = serde_json::Deserializer::from_slice(line);
    let error = serde_path_to_error::deserialize::<_, T>(&mut json).err()?;
    match error.path().iter().next()? {
        Segment::Map { key } => Some(key.clone()),
        Segment::Seq { .. } | Segment::Enum { .. } | Segment::Unknown => None,
    }
}

/// The error without the place, of which the field says enough.
fn what(error: &Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what).to_owned()
}

fn shown(text: &str) -> String {
    let text = words::excerpt(text);
    match text.char_indices().nth(LONGEST_FOUND) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
