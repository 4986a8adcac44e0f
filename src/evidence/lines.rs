//! Lines of a batch, one by one, with the batch's id.

use std::io::{BufRead, Read};

use sha2::{Digest, Sha256};

use super::fields::{LineOf, parsed};
use super::{BatchError, Limits, RowError};
use crate::domain::words;

/// An id of a request or a block that is longer is refused.
const LONGEST_ID: usize = 200;
/// What some editors put before the first line; it says nothing.
pub const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// A message about a line is cut here.
const LONGEST_ANSWER: usize = 200;

/// Why a row is refused.
pub(super) type Refused = String;

/// What reading the lines of a batch came to.
pub(super) struct Lines {
    pub(super) batch_id: String,
    pub(super) accepted: u64,
    pub(super) errors: Vec<RowError>,
    pub(super) refused: u64,
}

/// Gives each line, parsed, to `take`, which may refuse it.
pub(super) fn read<T: LineOf>(
    batch_id: Option<&str>,
    mut input: impl BufRead,
    limits: &Limits,
    mut take: impl FnMut(T) -> Result<(), Refused>,
) -> Result<Lines, BatchError> {
    if batch_id
        .is_some_and(|id| id.is_empty() || id.len() > LONGEST_ID || !id.bytes().all(|b| b.is_ascii_graphic()))
    {
        return Err(BatchError::BadId);
    }
    let mut read = Lines { batch_id: String::new(), accepted: 0, errors: vec![], refused: 0 };
    let (mut hash, mut bytes, mut line, mut rows) = (Sha256::new(), 0_u64, 0_u64, 0_u64);
    let mut text = vec![];
    loop {
        text.clear();
        let most = limits.line as u64 + 2 + BYTE_ORDER_MARK.len() as u64;
        bytes += input.by_ref().take(most).read_until(b'\n', &mut text)? as u64;
        if text.is_empty() {
            break;
        }
        line += 1;
        let mark = if line == 1 && text.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 };
        hash.update(&text);
        let mut too_long = false;
        while !text.ends_with(b"\n") && text.len() as u64 == most {
            too_long = true;
            text.clear();
            bytes += input.by_ref().take(most).read_until(b'\n', &mut text)? as u64;
            hash.update(&text);
            check(bytes, limits.bytes, "bytes")?;
        }
        check(bytes, limits.bytes, "bytes")?;
        let row = if too_long { &[] } else { text[mark..].trim_ascii() };
        if row.is_empty() && !too_long {
            continue;
        }
        rows += 1;
        check(rows, limits.rows, "lines")?;
        let taken = if too_long || row.len() > limits.line {
            Err(format!("the line has more than {} bytes", limits.line))
        } else {
            parsed(row, read.errors.len() < limits.answers).and_then(&mut take)
        };
        match taken {
            Ok(()) => read.accepted += 1,
            Err(error) => {
                read.refused += 1;
                if read.errors.len() < limits.answers {
                    read.errors.push(RowError { line, error: printable(&error) });
                }
            }
        }
    }
    read.batch_id = match batch_id {
        Some(id) => id.to_owned(),
        None => format!("sha256:{}", hex::encode(hash.finalize())),
    };
    Ok(read)
}

fn check(found: u64, limit: u64, what: &'static str) -> Result<(), BatchError> {
    if found > limit { Err(BatchError::TooLarge { limit, what }) } else { Ok(()) }
}

/// The row is one line: its place is told already.
pub(super) fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" at line ") {
        Some((what, _)) => format!("{what} (column {})", error.column()),
        None => text,
    }
}

/// What somebody sent is not repeated at length, and never with control characters.
pub(super) fn printable(text: &str) -> String {
    words::printable(text).chars().take(LONGEST_ANSWER).collect()
}

/// An id that can be kept.
pub(super) fn checked_id(what: &str, id: &str) -> Result<(), Refused> {
    if id.is_empty() || id.len() > LONGEST_ID || id.chars().any(char::is_control) {
        return Err(format!("{what} has 1 to {LONGEST_ID} bytes and no control characters"));
    }
    Ok(())
}

/// A number that can be reckoned with.
pub(super) fn checked_number(what: &str, number: f64) -> Result<f64, Refused> {
    if number.is_finite() { Ok(number) } else { Err(format!("{what} is not a finite number")) }
}
