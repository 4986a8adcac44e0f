//! A version: all files of one training as one atomic unit, and its manifest.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Timestamp;
use super::id::{InstanceId, ModelName, RunId, StoreName, VersionName};
use super::metric::Metrics;
use super::workflow::step::Naming;

/// `manifest.json`, written last: no manifest, no version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Layout of this document; 1.
    pub schema: u32,
    /// The model.
    pub model: ModelName,
    /// The version.
    pub version: VersionName,
    /// The refit database that made it.
    pub instance: InstanceId,
    /// The run that made it; none for an adopted one.
    pub run: Option<RunId>,
    /// When it was sealed.
    pub sealed_at: Timestamp,
    /// Its files, by path.
    pub files: Vec<ManifestFile>,
    /// What the trainer said of it.
    pub metrics: Metrics,
    /// Where it came from: workflow hash, data hash and rows, git commit, command, interpreter.
    pub provenance: Value,
}

/// One file of a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFile {
    /// Its path below the version, `/` between parts.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// SHA-256 in lower-case hex.
    pub sha256: String,
    /// How the store has it, when not byte for byte under its own path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored: Option<Stored>,
}

impl ManifestFile {
    /// Where it is in the store, below the version.
    pub fn stored_path(&self) -> &str {
        self.stored.as_ref().map_or(&self.path, |stored| &stored.path)
    }

    /// How many bytes the store has of it.
    pub fn stored_size(&self) -> u64 {
        self.stored.as_ref().map_or(self.size, |stored| stored.size)
    }
}

/// A file as it is in a store that compresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Its path below the version; an app reads this one.
    pub path: String,
    /// What an app undoes.
    pub content_encoding: ContentEncoding,
    /// Bytes, compressed.
    pub size: u64,
    /// SHA-256 of those, in lower-case hex.
    pub sha256: String,
}

/// How files are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContentEncoding {
    /// RFC 1952.
    Gzip,
}

/// What is known of a version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VersionRecord {
    /// The model.
    pub model: ModelName,
    /// The version.
    pub name: VersionName,
    /// The store that holds it.
    pub store: StoreName,
    /// Its state.
    pub state: VersionState,
    /// The run that made it; none for an adopted one.
    pub run: Option<RunId>,
    /// Where its files are in the store, for one that was there before refit: they have no manifest
    /// beside them. None for `<model>/<version>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// URL or path below which its files are; empty until sealed.
    pub base_url: String,
    /// SHA-256 of `manifest.json` in lower-case hex; empty until sealed.
    pub manifest_sha256: String,
    /// The manifest, once sealed.
    pub manifest: Option<Manifest>,
    /// When the name was reserved.
    pub created_at: Timestamp,
}

/// The states of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VersionState {
    /// The name is taken; files may be on their way. Never listed, never routed to.
    Reserved,
    /// Whole and immutable.
    Sealed,
    /// Whole, and rolled back from: never chosen by itself again.
    Bad,
    /// The name was given up: somebody else's claim was there.
    Abandoned,
    /// Its files are being deleted: no release may name it any more.
    Deleting,
    /// Its files are gone; its name is never given again.
    Deleted,
}

impl VersionState {
    /// Whether all its files are there, so that it can serve.
    pub fn is_whole(self) -> bool {
        match self {
            VersionState::Sealed | VersionState::Bad => true,
            VersionState::Reserved
            | VersionState::Abandoned
            | VersionState::Deleting
            | VersionState::Deleted => false,
        }
    }
}

/// The name of the next version, given every name ever taken of the model.
///
/// Names only grow: a number that was given up is not given again.
pub fn next_name(naming: Naming, taken: &[VersionName], date: chrono::NaiveDate) -> VersionName {
    let names = || taken.iter().map(VersionName::as_str);
    let text = match naming {
        Naming::Date => {
            let day = date.format("%Y-%m-%d").to_string();
            let repeats = names().filter_map(|name| match name.strip_prefix(&day)? {
                "" => Some(1),
                rest => number(rest.strip_prefix('.')?),
            });
            match repeats.max() {
                None => day,
                Some(last) => format!("{day}.{}", last + 1),
            }
        }
        Naming::Semver => match names().filter_map(semver).max() {
            None => "1.0.0".to_owned(),
            Some((major, minor, _)) => format!("{major}.{}.0", minor + 1),
        },
        Naming::Counter => (names().filter_map(number).max().unwrap_or(0) + 1).to_string(),
    };
    #[expect(clippy::expect_used, reason = "digits, `-` and `.`, beginning with a digit and short")]
    text.parse().expect("a version name")
}

/// A number without leading zeros, far enough from the largest one to be counted up.
fn number(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    text.parse().ok().filter(|number| plain && *number < u64::MAX)
}

fn semver(text: &str) -> Option<(u64, u64, u64)> {
    let mut parts = text.split('.').map(|part| if part == "0" { Some(0) } else { number(part) });
    let version = (parts.next()??, parts.next()??, parts.next()??);
    parts.next().is_none().then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(naming: Naming, taken: &[&str]) -> String {
        let taken: Vec<VersionName> = taken.iter().map(|name| name.parse().expect("a name")).collect();
        let date = chrono::NaiveDate::from_ymd_opt(2026, 11, 21).expect("a date");
        next_name(naming, &taken, date).to_string()
    }

    #[test]
    fn the_second_version_of_a_day_has_a_number() {
        assert_eq!(next(Naming::Date, &[]), "2026-11-21");
        assert_eq!(next(Naming::Date, &["2026-11-14", "2026-11-14.7"]), "2026-11-21");
        assert_eq!(next(Naming::Date, &["2026-11-21"]), "2026-11-21.2");
        assert_eq!(next(Naming::Date, &["2026-11-21", "2026-11-21.2", "2026-11-21.10"]), "2026-11-21.11");
        assert_eq!(next(Naming::Date, &["2026-11-21.3"]), "2026-11-21.4", "a gap is not filled");
        assert_eq!(next(Naming::Date, &["2026-11-21-hotfix", "2026-11-21.x"]), "2026-11-21");
    }

    #[test]
    fn semantic_versions_raise_the_minor_number() {
        assert_eq!(next(Naming::Semver, &[]), "1.0.0");
        assert_eq!(next(Naming::Semver, &["1.0.0", "1.9.3", "1.10.0", "v9", "2026-11-21"]), "1.11.0");
        assert_eq!(next(Naming::Semver, &["0.4.1"]), "0.5.0");
    }

    #[test]
    fn counters_count() {
        assert_eq!(next(Naming::Counter, &[]), "1");
        assert_eq!(next(Naming::Counter, &["9", "10", "2026-11-21", "011"]), "11");
        assert_eq!(next(Naming::Counter, &["18446744073709551615"]), "1", "no overflow");
    }
}
