//! `refit demo`, as people start it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

/// The exit code, stdout and stderr of `refit demo` in `dir`, with nothing on the `PATH` but `programs`.
fn demo(dir: &Path, programs: &Path, args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_refit"));
    command.arg("demo").args(args).current_dir(dir).env("PATH", programs).stdin(Stdio::null());
    let output = command.env_remove("REFIT_DATABASE_URL").output().expect("the program starts");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (output.status.code().expect("ended by itself"), text(output.stdout), text(output.stderr))
}

/// A directory with a `python3` that does what `script` says.
fn python(script: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("python3");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
    dir
}

/// The `python3` of this machine.
fn real() -> String {
    let found = Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output();
    String::from_utf8(found.expect("python3 starts").stdout).expect("a path").trim().to_owned()
}

#[test]
fn without_python_it_says_so_and_leaves_nothing_in_the_way() {
    let (dir, empty) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let (code, _, said) = demo(dir.path(), empty.path(), &[]);
    assert_eq!(code, 1, "{said}");
    assert!(
        said.contains("python3 cannot be started") && said.contains("hint: the demo needs python3"),
        "{said}"
    );
    assert_eq!(fs::read_dir(dir.path()).expect("readable").count(), 0);
    let broken = python("echo no stub can run >&2; exit 9");
    let (code, _, said) = demo(dir.path(), broken.path(), &[]);
    assert!(code == 1 && said.contains("no stub can run"), "{said}");
}

#[test]
fn it_does_not_write_over_what_is_there() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::create_dir(dir.path().join("refit-demo")).expect("made");
    fs::write(dir.path().join("refit-demo/mine"), "").expect("written");
    let (code, _, said) = demo(dir.path(), python("").path(), &[]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("refit-demo is not empty\nhint: remove it, or name another directory"), "{said}");
}

#[test]
fn runs_that_fail_are_no_success() {
    let dir = tempfile::tempdir().expect("a directory");
    let real = real();
    let no_trainer = python(&format!("case \"$1\" in *train*) exit 3;; esac\nexec {real} \"$@\""));
    let path = format!("{}:/usr/bin:/bin", no_trainer.path().display());
    let (code, told, said) = demo(dir.path(), Path::new(&path), &["--json"]);
    let chapters: Vec<Value> = serde_json::from_str(&told).expect("chapters");
    assert_eq!(chapters[0]["outcome"], "failed", "{told}");
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("came to no decision"), "{said}");
}

#[test]
fn the_story_comes_out_of_the_data() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = std::env::var("PATH").expect("a PATH");
    let (code, told, said) = demo(dir.path(), Path::new(&path), &["--json", "here"]);
    assert_eq!(code, 0, "{said}");
    let chapters: Vec<Value> = serde_json::from_str(&told).expect("chapters");
    let decided: Vec<(u64, &str)> = chapters
        .iter()
        .map(|chapter| {
            (chapter["week"].as_u64().expect("a week"), chapter["outcome"].as_str().expect("ended"))
        })
        .collect();
    let story = [
        (4, "promoted"),
        (6, "rejected"),
        (10, "rolled_back"),
        (16, "promoted"),
        (30, "promoted"),
        (37, "rejected"),
        (42, "promoted"),
    ];
    assert_eq!(decided, story);
    assert!(chapters[1]["reason"].as_str().expect("said").contains("`air_time` is empty"), "{}", chapters[1]);
    assert!(chapters[5]["reason"].as_str().expect("said").contains("the gate refused"), "{}", chapters[5]);
    // What it leaves can be looked at.
    let status = super::refit::refit(&dir.path().join("here"), &["status"]);
    assert!(status.contains("champion  2013-10-22"), "{status}");
}
