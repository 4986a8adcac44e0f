//! Files that are compressed on their way into a store, and what comes back out.
//!
//! A compressed file has its own path with `.gz` after it: an app sees from the
//! name that it has to be undone, whatever a store or a cache does with headers.

use std::borrow::Cow;
use std::io::Write;

use flate2::Compression;
use flate2::write::{GzDecoder, GzEncoder};
use sha2::{Digest, Sha256};

use super::source::{LocalFile, Source, SourceError};
use crate::domain::version::{ContentEncoding, ManifestFile, Stored};

/// Files that are compressed already.
const COMPRESSED: &[&str] =
    &[".7z", ".br", ".bz2", ".gz", ".jpg", ".npz", ".parquet", ".png", ".xz", ".zip", ".zst"];

/// Where a file is kept in a store that compresses.
pub(super) fn stored_path(path: &str, gzip: bool) -> Cow<'_, str> {
    if gzip && !COMPRESSED.iter().any(|ending| path.ends_with(ending)) {
        Cow::Owned(format!("{path}.gz"))
    } else {
        Cow::Borrowed(path)
    }
}

/// A file as it is sent: as it is, or compressed, in pieces of any size.
pub(super) struct Outgoing {
    source: Source,
    gzip: Option<Gzip>,
}

struct Gzip {
    encoder: GzEncoder<Vec<u8>>,
    /// Of the source, to be compressed next.
    piece: Vec<u8>,
    /// All of the source is in it.
    ended: bool,
    hash: Sha256,
    size: u64,
}

/// Read of the source in one go while compressing.
const STEP: usize = 256 * 1024;

impl Outgoing {
    /// Opens `file`, to be kept at `stored_path`.
    pub(super) async fn open(file: &LocalFile, stored_path: &str) -> Result<Self, SourceError> {
        let source = Source::open(file).await?;
        let gzip = (stored_path != file.path).then(|| Gzip {
            // Level 6, and no time in the header: the same bytes every time.
            encoder: GzEncoder::new(Vec::new(), Compression::default()),
            piece: Vec::with_capacity(STEP),
            ended: false,
            hash: Sha256::new(),
            size: 0,
        });
        Ok(Self { source, gzip })
    }

    /// Bytes of the file, uncompressed.
    pub(super) fn size(&self) -> u64 {
        self.source.size()
    }

    /// The next `most` bytes to be sent in place of what is in `buffer`; fewer at the end, none after it.
    pub(super) async fn next<B>(self, mut buffer: B, most: usize) -> Result<(Self, B), SourceError>
    where
        B: AsMut<Vec<u8>> + Send + 'static,
    {
        let Self { mut source, gzip } = self;
        let Some(mut gzip) = gzip else {
            let (source, buffer) = source.next(buffer, most).await?;
            return Ok((Self { source, gzip: None }, buffer));
        };
        buffer.as_mut().clear();
        loop {
            let (bytes, ready) = (buffer.as_mut(), gzip.encoder.get_mut());
            let fits = ready.len().min(most - bytes.len());
            bytes.extend(ready.drain(..fits));
            if gzip.ended || bytes.len() == most {
                return Ok((Self { source, gzip: Some(gzip) }, buffer));
            }
            (source, gzip.piece) = source.next(std::mem::take(&mut gzip.piece), STEP).await?;
            let at = source.place().to_owned();
            gzip = super::source::blocking(&at.clone(), move || {
                gzip.compress()
                    .map_err(|error| SourceError::Unreadable { path: at, cause: error.to_string() })
            })
            .await?;
        }
    }

    /// What was sent, if it is all of the file, unchanged.
    pub(super) async fn finish(
        self,
        file: &LocalFile,
        stored_path: &str,
    ) -> Result<ManifestFile, SourceError> {
        let entry = self.source.finish(file).await?;
        let stored = self.gzip.map(|gzip| Stored {
            path: stored_path.to_owned(),
            content_encoding: ContentEncoding::Gzip,
            size: gzip.size,
            sha256: hex::encode(gzip.hash.finalize()),
        });
        Ok(ManifestFile { stored, ..entry })
    }
}

impl Gzip {
    /// Compresses the piece of the source; an empty one ends it.
    fn compress(mut self) -> std::io::Result<Self> {
        let before = self.encoder.get_ref().len();
        if self.piece.is_empty() {
            self.encoder.try_finish()?;
            self.ended = true;
        } else {
            self.encoder.write_all(&self.piece)?;
        }
        let made = self.encoder.get_ref().get(before..).unwrap_or_default();
        self.hash.update(made);
        self.size += made.len() as u64;
        Ok(self)
    }
}

/// What comes out of a store, as it was before it was compressed: never more than it should be.
pub(super) struct Plain {
    most: u64,
    size: u64,
    hash: Sha256,
    gzip: Option<GzDecoder<Vec<u8>>>,
}

impl Plain {
    pub(super) fn as_it_is(most: u64) -> Self {
        Self { most, size: 0, hash: Sha256::new(), gzip: None }
    }

    pub(super) fn of_gzip(most: u64) -> Self {
        Self { gzip: Some(GzDecoder::new(Vec::new())), ..Self::as_it_is(most) }
    }

    /// What `bytes` of the store stand for.
    pub(super) fn next<'b>(&mut self, bytes: &'b [u8]) -> Result<Cow<'b, [u8]>, String> {
        let plain = match &mut self.gzip {
            None => Cow::Borrowed(bytes),
            Some(decoder) => {
                decoder.write_all(bytes).map_err(|error| format!("it cannot be decompressed: {error}"))?;
                Cow::Owned(std::mem::take(decoder.get_mut()))
            }
        };
        self.count(&plain)?;
        Ok(plain)
    }

    fn count(&mut self, plain: &[u8]) -> Result<(), String> {
        self.size += plain.len() as u64;
        if self.size > self.most {
            return Err("it is longer than it says".to_owned());
        }
        self.hash.update(plain);
        Ok(())
    }

    /// What came last, and the SHA-256 of all in lower-case hex.
    pub(super) fn end(mut self) -> Result<(Vec<u8>, String), String> {
        let rest = match self.gzip.take() {
            None => vec![],
            Some(decoder) => {
                decoder.finish().map_err(|error| format!("it cannot be decompressed: {error}"))?
            }
        };
        self.count(&rest)?;
        if self.size != self.most {
            return Err(format!("it has {} bytes, not {}", self.size, self.most));
        }
        Ok((rest, hex::encode(self.hash.finalize())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compressed_already_is_not_compressed_again() {
        assert_eq!(stored_path("a/model.json", true), "a/model.json.gz");
        assert_eq!(stored_path("a/model.json", false), "a/model.json");
        assert_eq!(stored_path("a/model.npz", true), "a/model.npz");
    }

    async fn compressed(file: &LocalFile, most: usize) -> (Vec<Vec<u8>>, ManifestFile) {
        let mut out = Outgoing::open(file, "a.json.gz").await.expect("there");
        let mut pieces = vec![];
        loop {
            let (next, bytes) = out.next(vec![], most).await.expect("readable");
            out = next;
            if bytes.is_empty() {
                return (pieces, out.finish(file, "a.json.gz").await.expect("unchanged"));
            }
            pieces.push(bytes);
        }
    }

    #[tokio::test]
    async fn pieces_are_equal_but_the_last_and_undone_they_are_the_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let source = dir.path().join("a.json");
        let text: String = (0..200_000).map(|number| format!("{number},")).collect();
        std::fs::write(&source, &text).expect("written");
        let file = LocalFile { path: "a.json".to_owned(), source, sha256: None };
        let (pieces, entry) = compressed(&file, 10_000).await;
        let (last, equal) = pieces.split_last().expect("some");
        assert!(equal.len() > 3 && equal.iter().all(|piece| piece.len() == 10_000) && last.len() <= 10_000);
        let stored = entry.stored.clone().expect("compressed");
        assert_eq!(stored.size, pieces.iter().map(|piece| piece.len() as u64).sum::<u64>());
        assert!(stored.size < entry.size / 2);
        assert_eq!(compressed(&file, 777).await.1, entry, "the same bytes every time");

        let mut plain = Plain::of_gzip(entry.size);
        let mut undone: Vec<u8> = vec![];
        for piece in &pieces {
            undone.extend_from_slice(&plain.next(piece).expect("gzip"));
        }
        let (rest, sha256) = plain.end().expect("whole");
        undone.extend_from_slice(&rest);
        assert!(undone == text.as_bytes() && sha256 == entry.sha256);
        let mut longer = Plain::of_gzip(entry.size - 1);
        let all = pieces.concat();
        assert!(longer.next(&all).is_err() || longer.end().is_err(), "never more than it says");
        assert!(Plain::of_gzip(9).next(b"no gzip at all").is_err());
    }
}
