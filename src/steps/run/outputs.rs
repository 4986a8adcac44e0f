//! Collects the files a command leaves: only regular files that resolve inside
//! their directory and were written while it ran, whole or not at all.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::domain::version::ManifestFile;
use crate::domain::workflow::step::Outputs;

/// More files than this are no model.
const MOST_FILES: usize = 10_000;
/// Files that are remembered of before a command: some 40 bytes each. A directory with more is no model's own.
const MOST_BEFORE: usize = 250_000;
/// Where refit's own files are.
const OWN: &str = ".refit";
/// Deeper directories than this are a loop.
const DEEPEST: usize = 32;
/// Names that a store keeps for itself.
const RESERVED: [&str; 2] = ["manifest.json", "_claim.json"];

/// What distinguishes one writing of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Identity {
    fn of(found: &Metadata) -> Self {
        Self {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
        }
    }
}

/// What was in a directory before the command ran: none of it counts as the command's work, whatever it is called by then
/// and whichever link leads to it.
pub(super) struct Before(HashSet<Identity>);

impl Before {
    pub(super) fn look(outputs: &Outputs, project: &Path) -> Result<Self, String> {
        let from = project.join(&outputs.from);
        if !from.exists() {
            return Ok(Self(HashSet::new()));
        }
        fs::read_dir(&from).map_err(|error| format!("cannot list {}: {error}", from.display()))?;
        let mut files = HashSet::new();
        // The nearest first, where the command's own are.
        let mut dirs = VecDeque::from([(from, 0)]);
        while let Some((dir, depth)) = dirs.pop_front() {
            // What cannot be looked at, or is gone by now, may be somebody else's business.
            let Ok(entries) = fs::read_dir(&dir) else { continue };
            for entry in entries.flatten() {
                let Ok(found) = entry.metadata() else { continue };
                if files.len() == MOST_BEFORE {
                    return Ok(Self(files));
                }
                if found.is_file() {
                    files.insert(Identity::of(&found));
                } else if found.is_dir() && depth < DEEPEST && entry.file_name() != OWN {
                    dirs.push_back((entry.path(), depth + 1));
                }
            }
        }
        Ok(Self(files))
    }
}

/// One file to be kept.
#[derive(Debug)]
pub(super) struct Collected {
    source: PathBuf,
    path: String,
    size: u64,
}

impl Collected {
    pub(super) fn size(&self) -> u64 {
        self.size
    }
}

/// The files of `outputs`, all of them written since `before`.
pub(super) fn collect(outputs: &Outputs, project: &Path, before: &Before) -> Result<Vec<Collected>, String> {
    let from = project.join(&outputs.from);
    let shown = &outputs.from;
    if !from.is_dir() {
        return Err(format!("there is no directory {shown}, where its outputs should be"));
    }
    let pattern = pattern(&outputs.files)?;
    let paths = matching(&from, Some(&pattern))?;
    let files = resolve(&from, shown, &paths)?;
    let old: Vec<&str> = files
        .iter()
        .filter(|(_, identity)| before.0.contains(identity))
        .map(|(file, _)| file.path.as_str())
        .collect();
    if !old.is_empty() {
        return Err(format!(
            "{} of {} files in {shown} were not written in this run: {}",
            old.len(),
            files.len(),
            some(&old)
        ));
    }
    if files.is_empty() {
        return Err(format!("it left no file `{}` in {shown}", outputs.files));
    }
    if let Some(count) = outputs.count
        && files.len() as u64 != count
    {
        return Err(format!("it left {} files `{}` in {shown}, not {count}", files.len(), outputs.files));
    }
    let total: u64 = files.iter().map(|(file, _)| file.size).sum();
    if let Some(limit) = outputs.max_total
        && total > limit
    {
        return Err(format!("its files in {shown} have {total} bytes; `max_total` allows {limit}"));
    }
    Ok(files.into_iter().map(|(file, _)| file).collect())
}

/// Every file below `$REFIT_OUT`.
pub(super) fn collect_all(out: &Path) -> Result<Vec<Collected>, String> {
    let paths = matching(out, None)?;
    Ok(resolve(out, "$REFIT_OUT", &paths)?.into_iter().map(|(file, _)| file).collect())
}

fn some(names: &[&str]) -> String {
    let shown = names.iter().take(5).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    if names.len() > 5 { format!("{shown}, …") } else { shown }
}

fn pattern(glob: &str) -> Result<glob::Pattern, String> {
    glob::Pattern::new(glob).map_err(|error| format!("`files: {glob}` is not a pattern: {error}"))
}

/// Paths below `dir` (relative, sorted) that match; directories that are links are not entered.
fn matching(dir: &Path, pattern: Option<&glob::Pattern>) -> Result<Vec<PathBuf>, String> {
    let options = glob::MatchOptions {
        case_sensitive: true,
        require_literal_separator: true,
        require_literal_leading_dot: true,
    };
    // A pattern without `/` is about the directory itself: what lies deeper is not looked at.
    let deepest = match pattern {
        Some(pattern) if pattern.as_str().contains("**") => DEEPEST,
        Some(pattern) => pattern.as_str().matches('/').count(),
        None => DEEPEST,
    };
    let mut found = Vec::new();
    let mut dirs = vec![(PathBuf::new(), 0)];
    while let Some((below, depth)) = dirs.pop() {
        let path = dir.join(&below);
        let entries =
            fs::read_dir(&path).map_err(|error| format!("cannot list {}: {error}", path.display()))?;
        for entry in entries {
            let entry = entry.map_err(|error| format!("cannot list {}: {error}", path.display()))?;
            let name = below.join(entry.file_name());
            let kind = entry
                .file_type()
                .map_err(|error| format!("cannot look at {}: {error}", entry.path().display()))?;
            if kind.is_dir() {
                if depth < deepest {
                    dirs.push((name, depth + 1));
                }
            } else if pattern.is_none_or(|pattern| pattern.matches_path_with(&name, options)) {
                if found.len() == MOST_FILES {
                    return Err(format!("there are more than {MOST_FILES} files in {}", dir.display()));
                }
                found.push(name);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Looks through links, and refuses what is no regular file inside `dir`.
fn resolve(dir: &Path, shown: &str, paths: &[PathBuf]) -> Result<Vec<(Collected, Identity)>, String> {
    let root = dir.canonicalize().map_err(|error| format!("cannot open {shown}: {error}"))?;
    let mut files = Vec::new();
    for path in paths {
        let Some(name) = path.to_str().filter(|name| !name.chars().any(char::is_control)) else {
            return Err(format!("the name of the file {} in {shown} is not plain text", path.display()));
        };
        if RESERVED.contains(&name) {
            return Err(format!("`{name}` in {shown} has a name that refit uses itself"));
        }
        let source = dir
            .join(path)
            .canonicalize()
            .map_err(|error| format!("`{name}` in {shown} leads nowhere: {error}"))?;
        if !source.starts_with(&root) {
            return Err(format!("`{name}` in {shown} is a link out of it, to {}", source.display()));
        }
        let found = fs::metadata(&source).map_err(|error| format!("cannot look at `{name}`: {error}"))?;
        if !found.is_file() {
            return Err(format!("`{name}` in {shown} is not a regular file"));
        }
        let collected = Collected { source, path: name.to_owned(), size: found.len() };
        files.push((collected, Identity::of(&found)));
    }
    Ok(files)
}

/// Copies `files` below `to`, which appears whole or not at all, and says what they are.
///
/// Copies, not links: the command's next run may write into the same files.
pub(super) fn keep(files: Vec<Collected>, to: &Path) -> Result<Vec<ManifestFile>, String> {
    let cannot = |path: &Path, error: io::Error| format!("cannot keep {}: {error}", path.display());
    let parent = to.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(|error| cannot(parent, error))?;
    let temporary = tempfile::Builder::new()
        .prefix(".kept-")
        .tempdir_in(parent)
        .map_err(|error| cannot(parent, error))?;
    let mut kept = BTreeMap::new();
    for Collected { source, path, .. } in files {
        let target = temporary.path().join(&path);
        if let Some(above) = target.parent() {
            fs::create_dir_all(above).map_err(|error| cannot(above, error))?;
        }
        let (size, sha256) = copy(&source, &target).map_err(|error| cannot(&source, error))?;
        if kept
            .insert(path.clone(), ManifestFile { path: path.clone(), size, sha256, stored: None })
            .is_some()
        {
            return Err(format!("there are two files `{path}`: one in `outputs`, one in $REFIT_OUT"));
        }
    }
    if to.exists() {
        fs::remove_dir_all(to).map_err(|error| cannot(to, error))?;
    }
    fs::rename(temporary.keep(), to).map_err(|error| cannot(to, error))?;
    sync_dir(parent);
    Ok(kept.into_values().collect())
}

/// Copies a file to the disk, not only to the page cache; size and SHA-256 of what was copied.
pub(super) fn copy(from: &Path, to: &Path) -> io::Result<(u64, String)> {
    let mut reader = File::open(from)?;
    let mut writer = File::create(to)?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut size = 0;
    loop {
        let count = reader.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        digest.update(&buffer[..count]);
        writer.write_all(&buffer[..count])?;
        size += count as u64;
    }
    writer.sync_all()?;
    Ok((size, hex::encode(digest.finalize())))
}

/// A rename survives a power cut once its directory is on the disk; not all file systems can say so.
pub(super) fn sync_dir(dir: &Path) {
    if let Ok(dir) = File::open(dir) {
        let _ = dir.sync_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outputs(files: &str) -> Outputs {
        Outputs { from: "models".to_owned(), files: files.to_owned(), count: None, max_total: None }
    }

    fn project() -> tempfile::TempDir {
        let project = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(project.path().join("models/deep")).expect("writable");
        project
    }

    fn write(project: &tempfile::TempDir, path: &str, text: &str) {
        fs::write(project.path().join("models").join(path), text).expect("writable");
    }

    fn collected(project: &tempfile::TempDir, outputs: &Outputs) -> Result<Vec<String>, String> {
        let nothing = Before(HashSet::new());
        collect(outputs, project.path(), &nothing)
            .map(|files| files.into_iter().map(|file| file.path).collect())
    }

    #[test]
    fn a_plain_pattern_stays_in_its_directory_and_stars_go_deeper() {
        let project = project();
        write(&project, "a.json", "1");
        write(&project, "deep/b.json", "2");
        write(&project, ".hidden.json", "3");
        write(&project, "c.txt", "4");
        assert_eq!(collected(&project, &outputs("*.json")), Ok(vec!["a.json".to_owned()]));
        assert_eq!(
            collected(&project, &outputs("**/*.json")),
            Ok(vec!["a.json".to_owned(), "deep/b.json".to_owned()])
        );
        assert_eq!(collected(&project, &outputs("deep/*")), Ok(vec!["deep/b.json".to_owned()]));
    }

    #[test]
    fn what_was_there_before_does_not_pass() {
        let project = project();
        write(&project, "a.json", "1");
        let before = Before::look(&outputs("*.json"), project.path()).expect("readable");
        write(&project, "b.json", "2");
        let problem = collect(&outputs("*.json"), project.path(), &before).expect_err("one is old");
        assert_eq!(problem, "1 of 2 files in models were not written in this run: `a.json`");
    }

    #[test]
    fn what_was_there_before_passes_neither_by_another_name_nor_by_a_link() {
        let project = project();
        write(&project, "last.bin", "1");
        write(&project, "deep/a.json", "1");
        let models = project.path().join("models");
        let before = Before::look(&outputs("*.json"), project.path()).expect("readable");
        let problem = |name: &str| {
            let problem = collect(&outputs("*.json"), project.path(), &before).expect_err("it is old");
            fs::remove_file(models.join(name)).expect("there");
            problem
        };
        let told = |name: &str| format!("1 of 1 files in models were not written in this run: `{name}`");
        std::os::unix::fs::symlink("last.bin", models.join("link.json")).expect("writable");
        assert_eq!(problem("link.json"), told("link.json"));
        fs::hard_link(models.join("last.bin"), models.join("hard.json")).expect("writable");
        assert_eq!(problem("hard.json"), told("hard.json"));
        fs::rename(models.join("deep/a.json"), models.join("moved.json")).expect("writable");
        assert_eq!(problem("moved.json"), told("moved.json"));
        // A copy was written in this run.
        fs::copy(models.join("last.bin"), models.join("copy.json")).expect("writable");
        assert_eq!(collect(&outputs("*.json"), project.path(), &before).expect("new").len(), 1);
    }

    #[test]
    fn links_out_fail_and_links_inside_pass() {
        let project = project();
        write(&project, "a.json", "1");
        std::os::unix::fs::symlink("a.json", project.path().join("models/b.json")).expect("writable");
        assert_eq!(collected(&project, &outputs("*.json")).map(|files| files.len()), Ok(2));
        std::os::unix::fs::symlink("/etc/hostname", project.path().join("models/c.json")).expect("writable");
        let problem = collected(&project, &outputs("*.json")).expect_err("a link out");
        assert!(problem.starts_with("`c.json` in models is a link out of it, to /etc/hostname"), "{problem}");
    }

    #[test]
    fn count_total_and_reserved_names_are_checked() {
        let project = project();
        write(&project, "a.json", "12345");
        let exact = Outputs { count: Some(18), ..outputs("*.json") };
        assert_eq!(collected(&project, &exact), Err("it left 1 files `*.json` in models, not 18".to_owned()));
        let small = Outputs { max_total: Some(4), ..outputs("*.json") };
        assert_eq!(
            collected(&project, &small),
            Err("its files in models have 5 bytes; `max_total` allows 4".to_owned())
        );
        write(&project, "manifest.json", "{}");
        collected(&project, &outputs("*.json")).expect_err("reserved");
        collected(&project, &outputs("*.bin")).expect_err("nothing there");
    }

    #[test]
    fn what_is_kept_does_not_change_with_its_source() {
        let project = project();
        write(&project, "a.json", "1");
        let before = Before(HashSet::new());
        let files = collect(&outputs("*.json"), project.path(), &before).expect("one");
        let to = project.path().join("kept/train/files");
        let kept = keep(files, &to).expect("kept");
        write(&project, "a.json", "2");
        assert_eq!(fs::read_to_string(to.join("a.json")).expect("kept"), "1");
        assert_eq!(kept[0].size, 1);
        assert_eq!(kept[0].sha256, hex::encode(Sha256::digest(b"1")));
        assert_eq!(
            fs::read_dir(project.path().join("kept/train")).expect("there").count(),
            1,
            "no leftovers"
        );
    }
}
