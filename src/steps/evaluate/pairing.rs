//! Two scored files of the same rows become one: `$REFIT_ERRORS` with the
//! champion's predictions beside the candidate's. Rows are paired by their
//! place, and a place where the two speak of different rows is an error.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::steps::errors_file::{Row, Rows, at_line};
use crate::steps::run::ErrorsFile;

/// Writes `errors.csv` in `kept`, whole or not at all.
pub(super) fn keep(candidate: &Path, champion: Option<&Path>, kept: &Path) -> Result<ErrorsFile, String> {
    let mut candidate = Rows::open(candidate)?;
    let mut champion = champion.map(Rows::open).transpose()?;
    let cannot = |error: io::Error| format!("the scored rows cannot be kept: {error}");
    fs::create_dir_all(kept).map_err(cannot)?;
    let temporary = tempfile::Builder::new().prefix(".scored-").tempfile_in(kept).map_err(cannot)?;
    let hashed = Hashed { file: temporary.as_file(), digest: Sha256::new(), bytes: 0 };
    let mut writer = csv::Writer::from_writer(BufWriter::new(hashed));
    let not_written = |error: csv::Error| cannot(error.into());
    let header = ["block", "segment", "actual", "predicted", "champion_predicted"];
    writer.write_record(header).map_err(not_written)?;
    while let Some(row) = candidate.next()? {
        let beside = match &mut champion {
            Some(champion) => beside(&row, champion.next()?)?.to_string(),
            None => String::new(),
        };
        let cells = [row.block, row.segment, row.actual.to_string(), row.predicted.to_string(), beside];
        writer.write_record(&cells).map_err(not_written)?;
    }
    if let Some(extra) = champion.as_mut().map(Rows::next).transpose()?.flatten() {
        return Err(at_line(extra.line, &differs("the candidate's rows have ended")));
    }
    let buffer = writer.into_inner().map_err(|error| cannot(error.into_error()))?;
    let hashed = buffer.into_inner().map_err(|error| cannot(error.into_error()))?;
    let (size, digest) = (hashed.bytes, hashed.digest.finalize());
    temporary.as_file().sync_all().map_err(cannot)?;
    let path = kept.join("errors.csv");
    temporary.persist(&path).map_err(|error| cannot(error.error))?;
    // The rename survives a power cut once the directory is on the disk; not all file systems can say so.
    let _ = File::open(kept).and_then(|dir| dir.sync_all());
    Ok(ErrorsFile { path, sha256: hex::encode(digest), size })
}

/// The champion's prediction of the row that the candidate was scored on.
fn beside(row: &Row, champion: Option<Row>) -> Result<f64, String> {
    let Some(champion) = champion else {
        return Err(at_line(row.line, &differs("the champion's rows have ended")));
    };
    let what = |row: &Row| format!("block `{}`, segment `{}`, actual {}", row.block, row.segment, row.actual);
    let same =
        row.block == champion.block && row.segment == champion.segment && row.actual == champion.actual;
    if !same {
        let words = format!("the candidate has {}, the champion {}", what(row), what(&champion));
        return Err(at_line(row.line, &differs(&words)));
    }
    Ok(champion.predicted)
}

fn differs(how: &str) -> String {
    format!("{how}; a scoring command writes the same rows in the same order for both versions")
}

/// Hashes what is written through it.
struct Hashed<'f> {
    file: &'f File,
    digest: Sha256,
    bytes: u64,
}

impl Write for Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.digest.update(&bytes[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
