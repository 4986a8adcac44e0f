//! Reads `$REFIT_ERRORS`: CSV with the columns `block,segment,actual,predicted,champion_predicted`,
//! of which `segment` and `champion_predicted` may be absent or empty. Hostile text: bounded, and told by line.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::rc::Rc;

use csv::ByteRecord;
use sha2::{Digest, Sha256};

use crate::domain::gate::Holdout;
use crate::steps::run::ErrorsFile;

/// Bytes of one row; a quote that is never closed would else take the whole file into memory.
const LONGEST_ROW: u64 = 64 * 1024;

/// Hashes what is read through it, and ends a row that does not end.
struct Hashed {
    file: File,
    digest: Sha256,
    bytes: u64,
    row_start: Rc<Cell<u64>>,
}

impl Read for Hashed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        // What the reader has buffered of further rows is at most one buffer.
        if self.bytes.saturating_sub(self.row_start.get()) > LONGEST_ROW + buffer.len() as u64 {
            return Err(io::Error::other("a row is too long"));
        }
        self.bytes += count as u64;
        self.digest.update(&buffer[..count]);
        Ok(count)
    }
}

/// Where the columns are.
struct Places {
    block: usize,
    segment: Option<usize>,
    actual: usize,
    predicted: usize,
    champion: Option<usize>,
}

impl Places {
    fn find(header: &ByteRecord) -> Result<Self, String> {
        let place = |name: &str| header.iter().position(|cell| cell.trim_ascii() == name.as_bytes());
        let needed = |name| place(name).ok_or_else(|| format!("it has no column `{name}`"));
        Ok(Self {
            block: needed("block")?,
            segment: place("segment"),
            actual: needed("actual")?,
            predicted: needed("predicted")?,
            champion: place("champion_predicted"),
        })
    }
}

/// One row of a scored holdout.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    /// Counted from 1, the header's.
    pub(super) line: u64,
    pub(crate) block: String,
    /// Empty is none.
    pub(super) segment: String,
    pub(crate) actual: f64,
    pub(super) predicted: f64,
    pub(crate) champion: Option<f64>,
}

/// The rows of a file, one after the other.
pub(super) struct Rows {
    reader: csv::Reader<Hashed>,
    record: ByteRecord,
    places: Places,
    row_start: Rc<Cell<u64>>,
}

impl Rows {
    /// Opens a file and reads its header.
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        let file = File::open(path)
            .map_err(|error| format!("it cannot be opened at {}: {error}", path.display()))?;
        let row_start = Rc::new(Cell::new(0));
        let hashed = Hashed { file, digest: Sha256::new(), bytes: 0, row_start: Rc::clone(&row_start) };
        let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(hashed);
        let mut record = ByteRecord::new();
        if !reader.read_byte_record(&mut record).map_err(|error| error.to_string())? {
            return Err("it is empty".to_owned());
        }
        let places = Places::find(&record)?;
        row_start.set(reader.position().byte());
        Ok(Self { reader, record, places, row_start })
    }

    /// The next row, or none at the end.
    pub(super) fn next(&mut self) -> Result<Option<Row>, String> {
        if !self.reader.read_byte_record(&mut self.record).map_err(|error| error.to_string())? {
            return Ok(None);
        }
        let line = self.record.position().map_or(0, csv::Position::line);
        let row = row(line, &self.places, &self.record).map_err(|problem| at_line(line, &problem))?;
        self.row_start.set(self.reader.position().byte());
        Ok(Some(row))
    }

    /// SHA-256 of what was read, in lower-case hex.
    fn sha256(self) -> String {
        hex::encode(self.reader.into_inner().digest.finalize())
    }
}

/// A problem with its place.
pub(super) fn at_line(line: u64, problem: &str) -> String {
    format!("line {line}: {problem}")
}

/// The sums of a file that a command wrote just now.
pub(super) fn read_fresh(path: &Path) -> Result<Holdout, String> {
    summed(Rows::open(path)?, |_| Ok(())).map(|(holdout, _)| holdout)
}

/// The sums of a file that was kept: the one that was written, to the last byte.
pub(super) fn read(errors: &ErrorsFile) -> Result<Holdout, String> {
    read_each(errors, |_| Ok(()))
}

/// The same; `each` sees every row.
pub(crate) fn read_each(
    errors: &ErrorsFile,
    each: impl FnMut(&Row) -> Result<(), String>,
) -> Result<Holdout, String> {
    let (holdout, sha256) = summed(Rows::open(&errors.path)?, each)?;
    if sha256 != errors.sha256 {
        return Err(format!("{} was changed after the trainer wrote it", errors.path.display()));
    }
    Ok(holdout)
}

fn summed(
    mut rows: Rows,
    mut each: impl FnMut(&Row) -> Result<(), String>,
) -> Result<(Holdout, String), String> {
    let mut holdout = Holdout::default();
    while let Some(row) = rows.next()? {
        let added = holdout.row(&row.block, &row.segment, row.actual, row.predicted, row.champion);
        added
            .map_err(|error| error.to_string())
            .and_then(|()| each(&row))
            .map_err(|problem| at_line(row.line, &problem))?;
    }
    if holdout.rows(None) == 0 {
        return Err("it has no rows".to_owned());
    }
    Ok((holdout, rows.sha256()))
}

fn row(line: u64, places: &Places, record: &ByteRecord) -> Result<Row, String> {
    let text = |place: usize| {
        let cell = record.get(place).unwrap_or_default().trim_ascii();
        std::str::from_utf8(cell).map_err(|_| "it is not UTF-8".to_owned())
    };
    let number = |place: usize, column: &str| {
        let cell = text(place)?;
        cell.parse::<f64>().map_err(|_| format!("`{column}` is `{}`, not a number", cell.escape_debug()))
    };
    let block = text(places.block)?;
    if block.is_empty() {
        return Err("`block` is empty".to_owned());
    }
    let champion = match places.champion {
        Some(place) if !text(place)?.is_empty() => Some(number(place, "champion_predicted")?),
        Some(_) | None => None,
    };
    Ok(Row {
        line,
        block: block.to_owned(),
        segment: places.segment.map(text).transpose()?.unwrap_or_default().to_owned(),
        actual: number(places.actual, "actual")?,
        predicted: number(places.predicted, "predicted")?,
        champion,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Holdout, String> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("writable");
        let sha256 = hex::encode(Sha256::digest(text));
        read(&ErrorsFile { path: file.path().to_owned(), sha256, size: text.len() as u64 })
    }

    #[test]
    fn columns_are_found_by_name_and_two_may_be_absent() {
        let holdout = read_text("actual,block,predicted\n1,a,2\n3,b,3\n").expect("valid");
        assert_eq!(holdout.rows(None), 2);
        let header = "block,segment,actual,predicted,champion_predicted\n";
        let holdout = read_text(&format!("{header}a,s,1,2,\na,t,1,2,3\n")).expect("valid");
        assert_eq!(holdout.segments().into_iter().collect::<Vec<_>>(), ["s", "t"]);
    }

    #[test]
    fn what_is_not_a_holdout_is_refused_with_its_line() {
        for (text, problem) in [
            ("", "it is empty"),
            ("block,actual\n", "it has no column `predicted`"),
            ("block,actual,predicted\n", "it has no rows"),
            ("block,actual,predicted\na,1,NaN\n", "line 2: `predicted` is not finite"),
            ("block,actual,predicted\na,1,2\na,,2\n", "line 3: `actual` is ``, not a number"),
            ("block,actual,predicted\n,1,2\n", "line 2: `block` is empty"),
        ] {
            assert_eq!(read_text(text), Err(problem.to_owned()), "{text}");
        }
        read_text("block,actual,predicted\na,1\n").expect_err("ragged");
        let endless = format!("block,actual,predicted\n\"{}", "x".repeat(1_000_000));
        assert!(read_text(&endless).expect_err("endless").contains("a row is too long"));
    }

    #[test]
    fn a_file_changed_since_is_refused() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "block,actual,predicted\na,1,2\n").expect("writable");
        let errors = ErrorsFile { path: file.path().to_owned(), sha256: "0".repeat(64), size: 0 };
        assert!(read(&errors).expect_err("changed").contains("was changed"));
    }
}
