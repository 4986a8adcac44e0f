//! Truths: `{"request_id", "truth", "block", "at"}`.

use std::io::BufRead;

use serde::Deserialize;

use super::fields::{A_TIME, LineOf};
use super::lines::{checked_id, checked_number, read};
use super::{BatchError, Limits, Reading};
use crate::domain::Timestamp;
use crate::domain::evidence::TruthBatch;
use crate::domain::id::ModelName;

/// One line.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    request_id: String,
    truth: f64,
    block: Option<String>,
    /// When it became known; a truth counts from when it is received.
    #[serde(rename = "at")]
    _at: Option<Timestamp>,
}

impl LineOf for Row {
    const EXAMPLE: &'static str = r#"{"request_id":"a1","truth":41.5}"#;

    fn holds(field: &str) -> Option<String> {
        let holds = match field {
            "request_id" | "block" => "a text in quotes",
            "truth" => "a number",
            "at" => A_TIME,
            _ => return None,
        };
        Some(holds.to_owned())
    }
}

/// Reads a batch of truths received at `now`; ids as in [`super::read_observations`].
///
/// # Errors
/// A batch that broke off, is too large or has an id that cannot be kept: nothing of it counts.
pub fn read_truth(
    model: &ModelName,
    batch_id: Option<&str>,
    input: impl BufRead,
    now: Timestamp,
    limits: &Limits,
) -> Result<Reading<TruthBatch>, BatchError> {
    let mut rows = vec![];
    let lines = read(batch_id, input, limits, |row: Row| {
        checked_id("`request_id`", &row.request_id)?;
        if let Some(block) = &row.block {
            checked_id("`block`", block)?;
        }
        rows.push((row.request_id, checked_number("`truth`", row.truth)?, row.block));
        Ok(())
    })?;
    Ok(Reading {
        batch: TruthBatch { model: model.clone(), batch_id: lines.batch_id, rows, at: now },
        accepted: lines.accepted,
        errors: lines.errors,
        refused: lines.refused,
        misdated: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truths_have_a_request_a_number_and_perhaps_a_block() {
        let text = concat!(
            "{\"request_id\":\"a\",\"truth\":4.5,\"block\":\"2026-03-01\",\"at\":\"2026-03-02T04:00:00Z\"}\n",
            "{\"request_id\":\"b\",\"truth\":\"4.5\"}\n",
            "{\"request_id\":\"c\",\"truth\":null}\n",
            "{\"request_id\":\"d\",\"truth\":7}\n",
        );
        let now = "2026-03-02T04:00:00Z".parse().expect("valid");
        let read = read_truth(
            &"times".parse().expect("valid"),
            Some("t-1"),
            text.as_bytes(),
            now,
            &Limits::default(),
        )
        .expect("valid");
        let row = |id: &str, truth, block: Option<&str>| (id.to_owned(), truth, block.map(str::to_owned));
        assert_eq!(read.batch.rows, [row("a", 4.5, Some("2026-03-01")), row("d", 7.0, None)]);
        assert_eq!(read.errors.iter().map(|error| error.line).collect::<Vec<_>>(), [2, 3]);
    }
}
