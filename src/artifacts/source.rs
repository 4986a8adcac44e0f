//! A file of this machine, read once, hashed on the way, and refused when it
//! was not the same file from the first byte to the last.

use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::domain::version::ManifestFile;

/// A file to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalFile {
    /// Its path within the version, `/` between parts.
    pub path: String,
    /// Where it is.
    pub source: PathBuf,
    /// What its SHA-256 must be, when that is known, in lower-case hex.
    pub sha256: Option<String>,
}

/// Why a file cannot be published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// It cannot be read.
    #[error("cannot read {}: {cause}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// It is a link, a directory, a device.
    #[error("{} is not a plain file", path.display())]
    NotAFile {
        /// What was found.
        path: PathBuf,
    },
    /// Somebody wrote to it.
    #[error("{} changed since it was collected, or while it was read", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
}

/// What a change of a file changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

/// An open file, part of it read.
pub(super) struct Source {
    file: File,
    at: PathBuf,
    opened: Stamp,
    hash: Sha256,
    read: u64,
}

impl Source {
    /// Opens `file`; links are not followed.
    pub(super) async fn open(file: &LocalFile) -> Result<Self, SourceError> {
        let at = file.source.clone();
        blocking(&file.source, move || {
            let unreadable = |error: std::io::Error| unreadable(&at, &error);
            let seen = fs::symlink_metadata(&at).map_err(unreadable)?;
            if !seen.is_file() {
                return Err(SourceError::NotAFile { path: at });
            }
            let file = File::open(&at).map_err(unreadable)?;
            let opened = Stamp::of(&file.metadata().map_err(unreadable)?);
            if opened != Stamp::of(&seen) {
                return Err(SourceError::Changed { path: at });
            }
            Ok(Self { file, at, opened, hash: Sha256::new(), read: 0 })
        })
        .await
    }

    /// Its size when it was opened.
    pub(super) fn size(&self) -> u64 {
        self.opened.size
    }

    /// Where it is.
    pub(super) fn place(&self) -> &Path {
        &self.at
    }

    /// The next `most` bytes in place of what is in `buffer`; fewer at its end, none after it.
    pub(super) async fn next<B>(mut self, mut buffer: B, most: usize) -> Result<(Self, B), SourceError>
    where
        B: AsMut<Vec<u8>> + Send + 'static,
    {
        let at = self.at.clone();
        blocking(&at, move || {
            let bytes = buffer.as_mut();
            bytes.clear();
            let mut part = (&self.file).take(most as u64);
            part.read_to_end(bytes).map_err(|error| unreadable(&self.at, &error))?;
            self.hash.update(bytes.as_slice());
            self.read += bytes.len() as u64;
            Ok((self, buffer))
        })
        .await
    }

    /// What was read, if it is all of the file, unchanged, and what was `expected`.
    pub(super) async fn finish(self, file: &LocalFile) -> Result<ManifestFile, SourceError> {
        let at = self.at.clone();
        let (path, expected) = (file.path.clone(), file.sha256.clone());
        blocking(&at, move || {
            let changed = || Err(SourceError::Changed { path: self.at.clone() });
            let now = self.file.metadata().map_err(|error| unreadable(&self.at, &error))?;
            let there = fs::symlink_metadata(&self.at).map_err(|error| unreadable(&self.at, &error))?;
            if Stamp::of(&now) != self.opened || Stamp::of(&there) != self.opened {
                return changed();
            }
            if self.read != self.opened.size {
                return changed();
            }
            let sha256 = hex::encode(self.hash.finalize());
            if expected.is_some_and(|expected| expected != sha256) {
                return changed();
            }
            Ok(ManifestFile { path, size: self.read, sha256, stored: None })
        })
        .await
    }

    /// Size and hash of `file`, nothing kept.
    pub(super) async fn describe(file: &LocalFile) -> Result<ManifestFile, SourceError> {
        const STEP: usize = 1024 * 1024;
        let mut source = Self::open(file).await?;
        let mut buffer = Vec::with_capacity(STEP);
        loop {
            (source, buffer) = source.next(buffer, STEP).await?;
            if buffer.is_empty() {
                return source.finish(file).await;
            }
        }
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> SourceError {
    SourceError::Unreadable { path: path.to_owned(), cause: error.to_string() }
}

/// Runs `work` where it may block.
pub(super) async fn blocking<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
) -> Result<T, SourceError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(SourceError::Unreadable { path: path.to_owned(), cause: error.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(dir: &Path, content: &[u8]) -> LocalFile {
        let source = dir.join("a.bin");
        fs::write(&source, content).expect("written");
        LocalFile { path: "a.bin".to_owned(), source, sha256: None }
    }

    #[tokio::test]
    async fn a_file_is_described_by_size_and_hash() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut a = file(dir.path(), b"abc");
        let found = Source::describe(&a).await.expect("readable");
        assert_eq!(found.size, 3);
        assert_eq!(found.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        a.sha256 = Some(found.sha256);
        Source::describe(&a).await.expect("as expected");
        a.sha256 = Some("0".repeat(64));
        assert!(matches!(Source::describe(&a).await, Err(SourceError::Changed { .. })));
    }

    #[tokio::test]
    async fn a_file_that_changes_while_it_is_read_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        for change in [&b"abcd"[..], b"ab", b"xyz"] {
            let a = file(dir.path(), b"abc");
            let source = Source::open(&a).await.expect("there");
            let (source, _) = source.next(vec![], 2).await.expect("readable");
            // Renamed over: another inode, as a trainer that writes atomically does.
            let other = dir.path().join("other");
            fs::write(&other, change).expect("written");
            fs::rename(&other, &a.source).expect("renamed");
            let (source, _) = source.next(vec![], 9).await.expect("readable");
            assert!(matches!(source.finish(&a).await, Err(SourceError::Changed { .. })));
        }
        let a = file(dir.path(), b"abc");
        let (source, _) = Source::open(&a).await.expect("there").next(vec![], 9).await.expect("readable");
        fs::OpenOptions::new()
            .append(true)
            .open(&a.source)
            .map(|mut f| std::io::Write::write(&mut f, b"x"))
            .expect("opened")
            .expect("written");
        assert!(matches!(source.finish(&a).await, Err(SourceError::Changed { .. })));
    }

    #[tokio::test]
    async fn links_and_directories_are_no_files() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut a = file(dir.path(), b"abc");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&a.source, &link).expect("linked");
        a.source = link;
        assert!(matches!(Source::open(&a).await, Err(SourceError::NotAFile { .. })));
        a.source = dir.path().to_owned();
        assert!(matches!(Source::open(&a).await, Err(SourceError::NotAFile { .. })));
        a.source = dir.path().join("nothing");
        assert!(matches!(Source::open(&a).await, Err(SourceError::Unreadable { .. })));
    }
}
