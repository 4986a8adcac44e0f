//! TypeScript: checked as strictly as the compiler can, and turned into what Node runs.

use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest as _, Sha256};

use crate::support::node;

/// Strict, for every runtime the file is meant for: the web's types, none of Node's.
const STRICT: &[&str] = &[
    "--strict",
    "--noUncheckedIndexedAccess",
    "--exactOptionalPropertyTypes",
    "--noImplicitReturns",
    "--noUnusedLocals",
    "--noUnusedParameters",
    "--verbatimModuleSyntax",
    "--erasableSyntaxOnly",
    "--typeRoots",
    "none",
    "--target",
    "ES2022",
    "--module",
    "ES2022",
    "--moduleResolution",
    "bundler",
];

fn tsc(args: &[&str], file: &Path) {
    let mut command = Command::new(node::home().join("bin/node"));
    command.arg(node::home().join("node_modules/typescript/bin/tsc")).args(STRICT).args(args).arg(file);
    let done = command.output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
}

/// The JavaScript of a TypeScript file; made once, whoever asks.
pub fn compiled(file: &Path) -> PathBuf {
    let hash = hex::encode(&Sha256::digest(std::fs::read(file).unwrap())[..8]);
    let made = node::home().join(format!("refit-{hash}.mjs"));
    if !made.exists() {
        let out = tempfile::tempdir_in(node::home()).unwrap();
        tsc(&["--lib", "ES2022,DOM", "--outDir", out.path().to_str().unwrap()], file);
        let script = out.path().join(file.file_name().unwrap()).with_extension("js");
        std::fs::rename(script, &made).unwrap();
    }
    made
}

#[test]
fn the_client_has_sound_types_in_a_browser_and_in_a_worker() {
    for lib in ["ES2022,DOM", "ES2022,WebWorker"] {
        tsc(&["--noEmit", "--lib", lib], &super::app::file("typescript/refit.ts"));
    }
}
