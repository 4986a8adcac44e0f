//! From chunks to a checked file: decompressed, written, hashed and inspected
//! in one pass and bounded memory.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, BufReader, Cursor, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use bytes::Bytes;
use csv::{ByteRecord, ErrorKind, ReaderBuilder};
use flate2::read::MultiGzDecoder;
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;
use tokio::sync::mpsc;

use crate::domain::Timestamp;
use crate::domain::expect::{Findings, Inspection};
use crate::domain::workflow::step::Expectations;
use crate::steps::context::StepError;

/// Bytes of one row; a quote that is never closed would else take the whole file into memory.
const LONGEST_ROW: u64 = 4 * 1024 * 1024;
/// Bytes of a file, decompressed.
const LARGEST_FILE: u64 = 64 * 1024 * 1024 * 1024;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// What is to be done with the chunks.
pub(super) struct Job {
    pub(super) target: PathBuf,
    pub(super) expect: Expectations,
    pub(super) previous_rows: Option<u64>,
    pub(super) now: Timestamp,
}

/// A file that is written and inspected, not yet under its name.
#[derive(Debug)]
pub(super) struct Ingested {
    pub(super) file: Written,
    pub(super) bytes: u64,
    pub(super) sha256: String,
    pub(super) findings: Findings,
}

/// A whole file on the disk, under a temporary name.
#[derive(Debug)]
pub(super) struct Written {
    temporary: NamedTempFile,
    target: PathBuf,
}

impl Written {
    /// Gives it its name; trainers only read it.
    pub(super) fn keep(self) -> io::Result<()> {
        self.temporary.as_file().set_permissions(fs::Permissions::from_mode(0o444))?;
        self.temporary.persist(&self.target).map_err(|error| error.error)?;
        if let Some(parent) = self.target.parent() {
            // The rename survives a power cut once the directory is on the disk; not all file systems can say so.
            let _ = File::open(parent).and_then(|dir| dir.sync_all());
        }
        Ok(())
    }
}

/// Reads to the end of `chunks`. An error is about the file's form; what it holds is in the findings.
pub(super) fn ingest(job: &Job, chunks: mpsc::Receiver<Bytes>) -> Result<Ingested, StepError> {
    let cannot =
        |error: io::Error| StepError::transient(format!("cannot write {}: {error}", job.target.display()));
    let dir = job.target.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(dir).map_err(cannot)?;
    let temporary = tempfile::Builder::new().prefix(".fetch-").tempfile_in(dir).map_err(cannot)?;
    let input = decompressed(Incoming { chunks, current: Bytes::new() })
        .map_err(|error| malformed(&error.to_string()))?;
    let row_start = Rc::new(Cell::new(0));
    let file = temporary.as_file().try_clone().map_err(cannot)?;
    let tee = Tee { input, file, digest: Sha256::new(), bytes: 0, row_start: Rc::clone(&row_start) };
    let mut reader = ReaderBuilder::new().has_headers(false).buffer_capacity(256 * 1024).from_reader(tee);

    let mut record = ByteRecord::new();
    if !reader.read_byte_record(&mut record).map_err(|error| form(&error))? {
        return Err(malformed("it is empty, without even a header"));
    }
    let header: Vec<String> =
        cells(&record)?.map(|cell| cell.trim_start_matches('\u{feff}').to_owned()).collect();
    let mut inspection = Inspection::new(&job.expect, header.iter().map(String::as_str), job.now);
    row_start.set(reader.position().byte());
    while reader.read_byte_record(&mut record).map_err(|error| form(&error))? {
        inspection.row(cells(&record)?);
        row_start.set(reader.position().byte());
    }
    let Tee { digest, bytes, file, .. } = reader.into_inner();
    file.sync_all().map_err(cannot)?;
    Ok(Ingested {
        file: Written { temporary, target: job.target.clone() },
        bytes,
        sha256: hex::encode(digest.finalize()),
        findings: inspection.finish(job.previous_rows),
    })
}

fn malformed(cause: &str) -> StepError {
    StepError::permanent(format!("what was fetched is not a CSV file: {cause}"))
}

/// The cells of a record as text.
fn cells(record: &ByteRecord) -> Result<impl Iterator<Item = &str> + Clone, StepError> {
    let line = record.position().map_or(0, csv::Position::line);
    if record.as_slice().contains(&0) {
        return Err(malformed(&format!("line {line} has a NUL byte")));
    }
    for (place, cell) in record.iter().enumerate() {
        if std::str::from_utf8(cell).is_err() {
            return Err(malformed(&format!("line {line}, cell {} is not UTF-8", place + 1)));
        }
    }
    // Checked just above; an empty text could only stand for what is not there.
    Ok(record.iter().map(|cell| std::str::from_utf8(cell).unwrap_or_default()))
}

fn form(error: &csv::Error) -> StepError {
    match error.kind() {
        ErrorKind::UnequalLengths { pos, expected_len, len } => {
            let line = pos.as_ref().map_or(0, csv::Position::line);
            malformed(&format!("line {line} has {len} cells; the header has {expected_len}"))
        }
        ErrorKind::Io(error) => match error.get_ref().and_then(|inner| inner.downcast_ref::<DiskError>()) {
            Some(disk) => StepError::transient(disk.to_string()),
            None => malformed(&error.to_string()),
        },
        _ => malformed(&error.to_string()),
    }
}

/// A failure of our disk, not of the source.
#[derive(Debug, thiserror::Error)]
#[error("cannot write what was fetched: {0}")]
struct DiskError(io::Error);

/// Chunks as a reader.
struct Incoming {
    chunks: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.current = chunk,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.current.len());
        buffer[..count].copy_from_slice(&self.current.split_to(count));
        Ok(count)
    }
}

/// gzip is told by its first bytes: addresses and names do not always say it.
fn decompressed(mut input: Incoming) -> io::Result<Box<dyn Read>> {
    let mut head = Vec::with_capacity(2);
    (&mut input).take(2).read_to_end(&mut head)?;
    let is_gzip = head == GZIP_MAGIC;
    let whole = Cursor::new(head).chain(input);
    Ok(if is_gzip { Box::new(MultiGzDecoder::new(BufReader::new(whole))) } else { Box::new(whole) })
}

/// Writes and hashes what is read through it.
struct Tee<R> {
    input: R,
    file: File,
    digest: Sha256,
    bytes: u64,
    /// Where the row begins that is being read.
    row_start: Rc<Cell<u64>>,
}

impl<R: Read> Read for Tee<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.bytes.saturating_sub(self.row_start.get()) > LONGEST_ROW {
            return Err(io::Error::other(format!(
                "the row that begins at byte {} is longer than {LONGEST_ROW} bytes",
                self.row_start.get()
            )));
        }
        let count = self.input.read(buffer).map_err(|error| {
            if error.kind() == io::ErrorKind::UnexpectedEof {
                io::Error::other("its compressed data is cut")
            } else {
                error
            }
        })?;
        self.bytes += count as u64;
        if self.bytes > LARGEST_FILE {
            return Err(io::Error::other(format!("it has more than {LARGEST_FILE} bytes")));
        }
        self.digest.update(&buffer[..count]);
        self.file.write_all(&buffer[..count]).map_err(|error| io::Error::other(DiskError(error)))?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ingests `bytes` in chunks of `size`.
    fn ingest_bytes(bytes: &[u8], size: usize) -> Result<(Ingested, tempfile::TempDir), String> {
        let dir = tempfile::tempdir().expect("a directory");
        let chunks: Vec<Bytes> = bytes.chunks(size).map(Bytes::copy_from_slice).collect();
        let (sender, receiver) = mpsc::channel(chunks.len().max(1));
        for chunk in chunks {
            sender.try_send(chunk).expect("room for all");
        }
        drop(sender);
        let job = Job {
            target: dir.path().join("rows.csv"),
            expect: Expectations::default(),
            previous_rows: None,
            now: "2026-11-21T10:00:00Z".parse().expect("a time"),
        };
        ingest(&job, receiver).map(|ingested| (ingested, dir)).map_err(|error| error.to_string())
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("in memory");
        encoder.finish().expect("in memory")
    }

    #[test]
    fn plain_and_compressed_rows_become_the_same_file() {
        let csv = b"a,b\n1,\"x, \"\"y\"\"\nz\"\n2,w\n";
        let (plain, _dir) = ingest_bytes(csv, 1).expect("valid");
        let (packed, dir) = ingest_bytes(&gzip(csv), 3).expect("valid");
        assert_eq!(plain.findings.rows, 2);
        assert_eq!((plain.bytes, &plain.sha256), (packed.bytes, &packed.sha256));
        packed.file.keep().expect("kept");
        assert_eq!(fs::read(dir.path().join("rows.csv")).expect("there"), csv);
        assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 1, "nothing temporary is left");
    }

    #[test]
    fn what_is_no_csv_is_told_with_its_line() {
        let told = |bytes: &[u8]| {
            let message = ingest_bytes(bytes, 7).expect_err("malformed");
            message.strip_prefix("what was fetched is not a CSV file: ").expect("said so").to_owned()
        };
        assert_eq!(told(b""), "it is empty, without even a header");
        assert_eq!(told(b"a,b\n1,2\n3\n"), "line 3 has 1 cells; the header has 2");
        assert_eq!(told(b"a,b\n1,\xff\n"), "line 2, cell 2 is not UTF-8");
        assert_eq!(told(b"a,b\n1,\0\n"), "line 2 has a NUL byte");
        let whole = gzip(b"a,b\n1,2\n");
        assert_eq!(told(&whole[..whole.len() - 6]), "its compressed data is cut");
    }

    #[test]
    fn a_quote_that_is_never_closed_does_not_take_the_memory() {
        let mut bytes = b"a\n1\n\"".to_vec();
        bytes.resize(12 * 1024 * 1024, b'\n');
        let message = ingest_bytes(&bytes, 1 << 16).expect_err("malformed");
        assert!(message.contains("the row that begins at byte 4 is longer than"), "{message}");
    }
}
