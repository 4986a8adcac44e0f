//! Names of files within a version. They come from trainers and from stores,
//! and become paths on this machine, keys of objects and parts of URLs.

use std::collections::HashMap;

use unicode_normalization::UnicodeNormalization;

use super::{CLAIM, MANIFEST};

/// A file name that no version may have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a version cannot have a file called {path:?}: {rule}")]
pub struct OddName {
    /// The name.
    pub path: String,
    /// What is wrong with it.
    pub rule: String,
}

/// Not in file names: they mean something else in URLs, or not the same on every system.
const FORBIDDEN: &[char] = &['\\', ':', '*', '?', '"', '<', '>', '|', '#', '%', '~'];

/// No part of a name and no whole name is longer, in bytes.
const LONGEST_PART: usize = 200;
const LONGEST: usize = 800;

/// Checks one name: relative, `/` between its parts, nothing in it that a
/// store, a URL or another system's file names would take for something else.
pub fn check(path: &str) -> Result<(), OddName> {
    let odd = |rule: &str| Err(OddName { path: path.to_owned(), rule: rule.to_owned() });
    if path.is_empty() {
        return odd("it is empty");
    }
    if path.len() > LONGEST {
        return odd("it is too long");
    }
    if path.starts_with('/') {
        return odd("it is absolute");
    }
    if path == MANIFEST || path == CLAIM {
        return odd("the name is refit's own");
    }
    if let Some(c) = path.chars().find(|c| FORBIDDEN.contains(c)) {
        return odd(&format!("it has a `{c}`"));
    }
    if path.chars().any(|c| c.is_control() || is_invisible(c)) {
        return odd("it has a control character");
    }
    for part in path.split('/') {
        match part {
            "" => return odd("it has an empty part"),
            "." | ".." => return odd("it has a part `.` or `..`"),
            _ if part.len() > LONGEST_PART => return odd("it has a part that is too long"),
            _ if part != part.trim() || part.ends_with('.') => {
                return odd("a part begins or ends with a space, or ends with a dot");
            }
            _ => {}
        }
    }
    Ok(())
}

/// Checks all names of a version: none odd, no two that some file system takes
/// for one, none that is also the directory of another, at least one.
pub fn check_all<'p>(paths: impl IntoIterator<Item = &'p str>) -> Result<(), OddName> {
    let mut seen: HashMap<String, &str> = HashMap::new();
    let mut directories: HashMap<String, &str> = HashMap::new();
    for path in paths {
        check(path)?;
        let folded = fold(path);
        let reserved = folded == MANIFEST || folded == CLAIM;
        let other = seen.get(&folded).or_else(|| directories.get(&folded)).copied();
        if let Some(other) = other {
            let rule = format!("some systems cannot tell it from {other:?}");
            return Err(OddName { path: path.to_owned(), rule });
        }
        if reserved {
            return Err(OddName { path: path.to_owned(), rule: "the name is refit's own".to_owned() });
        }
        for (at, _) in folded.match_indices('/') {
            let directory = &folded[..at];
            if let Some(file) = seen.get(directory) {
                let rule = format!("{file:?} is a file");
                return Err(OddName { path: path.to_owned(), rule });
            }
            directories.insert(directory.to_owned(), path);
        }
        seen.insert(folded, path);
    }
    if seen.is_empty() {
        return Err(OddName { path: String::new(), rule: "there is no file at all".to_owned() });
    }
    Ok(())
}

/// Equal for names that a case-insensitive or normalising file system takes for one.
fn fold(path: &str) -> String {
    path.nfc().flat_map(char::to_lowercase).nfc().collect()
}

/// Characters that change the direction or the look of a name unseen.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ordinary_names_pass() {
        check_all(["model.json", "sprint/model.json", "sprint/größe 2.bin", "a-b_c.d", "x/manifest.json"])
            .expect("ordinary");
    }

    #[test]
    fn names_that_lead_elsewhere_or_mean_something_else_do_not() {
        for odd in [
            "",
            "/etc/passwd",
            "../up",
            "a/../b",
            "a/./b",
            "a//b",
            "a/",
            ".",
            "..",
            "a\\b",
            "C:x",
            "a\nb",
            "a\0b",
            "a#1",
            "a%2e",
            "a?b",
            "manifest.json",
            "_claim.json",
            " a",
            "a.",
            "a\u{202e}b",
        ] {
            check(odd).expect_err(odd);
        }
        check(&"x".repeat(201)).expect_err("too long");
        check(&"x/".repeat(401)).expect_err("too long");
    }

    #[test]
    fn two_names_that_some_system_takes_for_one_do_not() {
        for pair in [
            ["a.json", "A.json"],
            ["caf\u{e9}", "cafe\u{301}"],
            ["a", "a/b"],
            ["a/b", "A"],
            ["x", "x"],
            ["x", "Manifest.JSON"],
        ] {
            check_all(pair).expect_err(pair[1]);
        }
        check_all([]).expect_err("no file");
    }

    proptest! {
        #[test]
        fn a_name_that_passes_stays_below_its_directory(path in ".*") {
            if check(&path).is_ok() {
                let joined = std::path::Path::new("/v").join(&path);
                prop_assert!(joined.starts_with("/v"));
                let plain = |part| {
                    matches!(part, std::path::Component::RootDir | std::path::Component::Normal(_))
                };
                prop_assert!(joined.components().all(plain), "leads elsewhere");
                let key = object_store::path::Path::parse(&path).expect("a key");
                prop_assert_eq!(key.as_ref(), path.as_str());
            }
        }
    }
}
