//! The shape of the tree, checked by reading it: who may import whom, how long
//! a file may be, what production code may not say.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use regex::Regex;

/// What imports nothing but `domain` and its like: time, secrets, errors of adapters, HTTP, databases of apps.
const EDGES: &[&str] = &["domain", "adapter", "app_database", "clock", "http_client", "secret"];

/// What composes the whole sees all of it.
const ALL_BUT_THE_SHELL: &[&str] = &[
    "artifacts",
    "config",
    "engine",
    "evidence",
    "hosting",
    "http",
    "notify",
    "receipt",
    "simulate",
    "steps",
    "store",
    "templates",
    "trainers",
    "trigger",
];

/// Who may import whom: a module of `src`, and the modules it may name beside itself.
/// A module that is not here yet has to be thought about first.
fn allowed() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    let adapter = EDGES;
    let table: &[(&str, &[&str], &[&str])] = &[
        ("domain", &[], &[]),
        ("clock", &[], &["domain"]),
        ("secret", &[], &["domain"]),
        ("adapter", &[], &["domain", "secret"]),
        ("app_database", &[], &["adapter", "domain"]),
        ("http_client", &[], &["adapter", "domain", "secret"]),
        ("templates", &[], &["domain"]),
        ("config", EDGES, &[]),
        ("artifacts", adapter, &[]),
        ("evidence", adapter, &[]),
        ("hosting", adapter, &[]),
        ("notify", adapter, &["templates"]),
        ("store", adapter, &[]),
        ("trainers", adapter, &[]),
        ("steps", EDGES, &["artifacts", "trainers"]),
        ("engine", EDGES, &["artifacts", "evidence", "notify", "steps", "store"]),
        ("simulate", EDGES, &["artifacts", "steps"]),
        ("trigger", EDGES, &["engine", "store"]),
        ("receipt", EDGES, &["artifacts", "engine", "steps", "store", "templates"]),
        ("http", EDGES, &["engine", "evidence", "receipt", "store", "trigger"]),
        ("demo", EDGES, ALL_BUT_THE_SHELL),
        ("cli", EDGES, &["demo"]),
        ("main", &[], &["cli", "trainers"]),
        ("lib", &[], &[]),
    ];
    let mut allowed: BTreeMap<_, BTreeSet<_>> = table
        .iter()
        .map(|(module, some, more)| (*module, some.iter().chain(*more).copied().collect()))
        .collect();
    allowed.entry("cli").or_default().extend(ALL_BUT_THE_SHELL);
    allowed
}

/// One file that may import what its module may not: file, import, reason.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("src/notify/outbox.rs", "store", "the outbox is a loop over rows of the store"),
    ("src/notify/send.rs", "store", "a row of the outbox is what is sent"),
    ("src/notify/noted.rs", "store", "that it was sent is noted in the store"),
    ("src/notify/facts.rs", "store", "a queued notice is what a template is filled with"),
    (
        "src/hosting/command.rs",
        "trainers",
        "programs of a target run under the guard that trainers run under",
    ),
    ("src/config.rs", "engine", "makes `engine::Settings` from `[worker]`"),
];

/// Lines of a file, at most.
const LONGEST: usize = 500;

/// What begins the tests at the end of a file.
const TESTS: &str = "#[cfg(test)]\nmod tests {";

struct Source {
    /// From the root of the crate, with `/`.
    path: String,
    text: String,
}

impl Source {
    /// The top-level module: `engine` of `src/engine/body.rs` and of `src/engine.rs`.
    fn module(&self) -> &str {
        let below = self.path.trim_start_matches("src/");
        below.split('/').next().unwrap_or(below).trim_end_matches(".rs")
    }

    /// How many modules deep it is: 1 for `src/engine/mod.rs`, 2 for `src/engine/body.rs`.
    fn depth(&self) -> usize {
        let names = self.path.trim_start_matches("src/").split('/').count();
        if self.path.ends_with("/mod.rs") { names - 1 } else { names }
    }

    /// Whether all of it is tests.
    fn is_test(&self) -> bool {
        self.path
            .split('/')
            .any(|part| matches!(part, "tests" | "tests.rs" | "vectors.rs" | "conformance.rs"))
    }

    /// Lines before the tests at its end; none of a file of tests, which may be a long list of cases.
    fn code_lines(&self) -> usize {
        let code = self.text.split(TESTS).next().unwrap_or_default();
        if self.is_test() { 0 } else { code.lines().count() }
    }

    /// Its code: comments gone, and without the tests at its end.
    fn production(&self) -> String {
        let code = without_comments(&self.text);
        code.split(TESTS).next().unwrap_or_default().to_owned()
    }
}

fn without_comments(text: &str) -> String {
    let comment = Regex::new(r"(?m)(^|\s)//.*$").unwrap();
    comment.replace_all(text, "$1").into_owned()
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = vec![];
    let mut left = vec![root.join("src")];
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let below = path.strip_prefix(root).unwrap();
                let parts: Vec<_> = below.iter().map(|part| part.to_string_lossy()).collect();
                found.push(Source { path: parts.join("/"), text: std::fs::read_to_string(&path).unwrap() });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(found.len() > 30, "this test does not find the sources");
    found
}

/// Top-level modules that `code`, `depth` modules deep, names by `crate::x`, `crate::{x, y::z}`,
/// `refit::x`, or by more `super::` than it is deep.
fn imports(code: &str, depth: usize) -> BTreeSet<String> {
    let path = Regex::new(r"\b(?:crate|refit)::(?:([a-z_]+)|\{)").unwrap();
    let mut found = BTreeSet::new();
    for hit in path.captures_iter(code) {
        match hit.get(1) {
            Some(module) => {
                found.insert(module.as_str().to_owned());
            }
            None => found.extend(first_names(&code[hit.get(0).unwrap().end()..])),
        }
    }
    let climb = Regex::new(r"\b((?:super::)+)([a-z_]+)").unwrap();
    for hit in climb.captures_iter(code) {
        if hit[1].matches("super::").count() >= depth {
            found.insert(hit[2].to_owned());
        }
    }
    found
}

/// The first name of each path in `a::b, c::{d, e}, f}…`; names of items are not modules.
fn first_names(group: &str) -> Vec<String> {
    let mut level = 0_usize;
    let mut paths = vec![String::new()];
    for c in group.chars() {
        match c {
            '}' if level == 0 => break,
            '{' => level += 1,
            '}' => level -= 1,
            ',' if level == 0 => paths.push(String::new()),
            c => paths.last_mut().unwrap().push(c),
        }
    }
    let names = paths.iter().filter_map(|path| path.trim().split("::").next());
    names.filter(|name| name.starts_with(|c: char| c.is_ascii_lowercase())).map(str::to_owned).collect()
}

#[test]
fn every_module_imports_only_what_its_layer_may() {
    let allowed = allowed();
    let sources = sources();
    let modules: BTreeSet<&str> = sources.iter().map(Source::module).collect();
    let mut wrong = vec![];
    let mut used = BTreeSet::new();
    for source in &sources {
        let module = source.module();
        let Some(may) = allowed.get(module) else {
            wrong.push(format!(
                "{}: module `{module}` is not in the table of tests/it/layers.rs",
                source.path
            ));
            continue;
        };
        // Tests beside the code may build what they test from any layer.
        let code = if source.is_test() { String::new() } else { source.production() };
        for import in imports(&code, source.depth()) {
            if import == module || may.contains(import.as_str()) || !modules.contains(import.as_str()) {
                continue;
            }
            match EXCEPTIONS.iter().find(|(file, what, _)| *file == source.path && *what == import) {
                Some(exception) => {
                    used.insert(exception);
                }
                None => wrong.push(format!("{}: `{module}` may not import `{import}`", source.path)),
            }
        }
    }
    let unused = EXCEPTIONS.iter().filter(|exception| !used.contains(exception));
    wrong.extend(unused.map(|(file, what, _)| format!("{file}: the exception for `{what}` is not needed")));
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn no_layer_is_above_itself() {
    let allowed = allowed();
    for module in allowed.keys() {
        let mut seen = BTreeSet::new();
        let mut left: Vec<&str> = allowed[module].iter().copied().collect();
        while let Some(below) = left.pop() {
            assert_ne!(below, *module, "`{module}` may import itself by way of others");
            if seen.insert(below) {
                left.extend(allowed.get(below).into_iter().flatten());
            }
        }
    }
}

#[test]
fn no_file_is_too_long_to_read() {
    let mut wrong = vec![];
    for source in sources() {
        let lines = source.code_lines();
        if lines > LONGEST {
            wrong.push(format!("{}: {lines} lines; split it by meaning", source.path));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn production_code_does_not_panic_by_habit_nor_silence_lints_without_a_reason() {
    let attribute = Regex::new(r"(?s)#!?\[(?:allow|expect)\((.*?)\)\]").unwrap();
    let mut wrong = vec![];
    for source in sources() {
        for silenced in attribute.captures_iter(&without_comments(&source.text)) {
            if !silenced[1].contains("reason =") {
                wrong.push(format!("{}: `{}` gives no reason", source.path, &silenced[0]));
            }
        }
        if source.is_test() {
            continue;
        }
        for (number, line) in source.production().lines().enumerate() {
            for habit in [".unwrap()", "todo!(", "unimplemented!(", "dbg!("] {
                if line.contains(habit) {
                    wrong.push(format!("{}:{}: `{habit}`", source.path, number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn migrations_have_the_same_names_on_both_databases() {
    let names = |database: &str| -> Option<BTreeSet<String>> {
        let dir: PathBuf = [env!("CARGO_MANIFEST_DIR"), "migrations", database].iter().collect();
        let entries = std::fs::read_dir(dir).ok()?;
        Some(entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect())
    };
    assert_eq!(names("postgres"), names("sqlite"));
}

#[test]
fn imports_are_found_in_every_form() {
    let found = |code: &str| imports(code, 2).into_iter().collect::<Vec<_>>().join(" ");
    assert_eq!(found("use crate::store::Store;"), "store");
    assert_eq!(found("use crate::{clock::Clock, domain::{id::{A, B}, run}, store};"), "clock domain store");
    assert_eq!(found("fn f() -> crate::engine::Engine {}"), "engine");
    assert_eq!(found("use super::super::store::Store;"), "store");
    assert_eq!(found("use super::body; use crate::Thing;"), "");
}
