//! Commands that need no database.

use std::fs;
use std::path::Path;

use insta::{assert_snapshot, with_settings};
use tempfile::TempDir;

use super::refit::{refit, steady};

fn project() -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    refit(dir.path(), &["init"]);
    dir
}

fn edit(dir: &Path, file: &str, from: &str, to: &str) {
    let path = dir.join(file);
    let text = fs::read_to_string(&path).expect("the file");
    assert!(text.contains(from), "{file} has no `{from}`");
    fs::write(&path, text.replacen(from, to, 1)).expect("written");
}

#[test]
fn a_new_project_validates_without_warnings() {
    let dir = project();
    assert_snapshot!(refit(dir.path(), &["validate"]), @"");
    let ignored = fs::read_to_string(dir.path().join(".gitignore")).expect("ignored");
    assert!(ignored.contains(".refit/"));
}

#[test]
fn init_says_what_to_do_next_and_never_overwrites() {
    let dir = tempfile::tempdir().expect("a directory");
    assert_snapshot!(refit(dir.path(), &["init"]), @"");
    fs::write(dir.path().join("train.py"), "mine").expect("written");
    assert_snapshot!(refit(dir.path(), &["init"]), @"");
    assert_eq!(fs::read_to_string(dir.path().join("train.py")).expect("read"), "mine");
    assert_snapshot!(refit(dir.path(), &["init", "--template", "raceday"]), @"");
}

#[test]
fn init_keeps_what_git_ignores_already() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join(".gitignore"), "target\nmodels/").expect("written");
    refit(dir.path(), &["init"]);
    let ignored = fs::read_to_string(dir.path().join(".gitignore")).expect("read");
    assert_eq!(ignored, "target\nmodels/\n.refit/\nrelease.json\n.secrets/\n__pycache__/\n");
}

#[test]
fn validate_shows_every_mistake_of_every_file() {
    let dir = project();
    edit(dir.path(), "workflows/retrain.yaml", "timeout: 5m", "timeuot: 5m");
    edit(dir.path(), "workflows/retrain.yaml", "uses: publish", "uses: publsh");
    fs::write(dir.path().join("workflows/other.yaml"), "name: other\n").expect("written");
    assert_snapshot!(refit(dir.path(), &["validate"]), @"");
}

#[test]
fn validate_knows_what_refit_toml_has() {
    let dir = project();
    edit(dir.path(), "workflows/retrain.yaml", "store: models", "store: model");
    edit(
        dir.path(),
        "workflows/retrain.yaml",
        "needs_approval], console: true",
        "needs_approval], slack: team",
    );
    assert_snapshot!(refit(dir.path(), &["validate"]), @"");
    assert_snapshot!(refit(dir.path(), &["trigger", "retrain"]), @"");
}

#[test]
fn validate_answers_programs_in_json() {
    let dir = project();
    edit(dir.path(), "workflows/retrain.yaml", "target: production", "target: prodction");
    assert_snapshot!(refit(dir.path(), &["validate", "--json"]), @"");
}

#[test]
fn plan_says_what_would_happen() {
    let dir = project();
    with_settings!({filters => steady()}, {
        assert_snapshot!(refit(dir.path(), &["plan", "retrain"]), @"");
        assert_snapshot!(refit(dir.path(), &["plan", "retrian"]), @"");
    });
}

#[test]
fn the_schema_is_json() {
    let dir = tempfile::tempdir().expect("a directory");
    let text = refit(dir.path(), &["schema"]);
    let json = text.split_once("--- stdout\n").expect("stdout").1;
    let schema: serde_json::Value = serde_json::from_str(json).expect("JSON");
    assert_eq!(schema["title"], "refit workflow");
}

#[test]
fn without_a_project_the_next_step_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    with_settings!({filters => steady()}, {
        assert_snapshot!(refit(dir.path(), &["status"]), @"");
        assert_snapshot!(refit(dir.path(), &["status", "--json"]), @"");
        assert_snapshot!(refit(dir.path(), &["-C", "nowhere", "status"]), @"");
    });
}

#[test]
fn a_mistake_in_the_settings_has_its_place() {
    let dir = project();
    edit(dir.path(), "refit.toml", "listen =", "lisen =");
    with_settings!({filters => steady()}, {
        assert_snapshot!(refit(dir.path(), &["plan", "retrain"]), @"");
    });
}

#[test]
fn usage_errors_name_the_nearest_word() {
    let dir = tempfile::tempdir().expect("a directory");
    assert_snapshot!(refit(dir.path(), &["triger", "retrain"]), @"");
    assert_snapshot!(refit(dir.path(), &["triger", "--json"]), @"");
    assert_snapshot!(refit(dir.path(), &["trigger", "retrain", "-i", "reason"]), @"");
}

#[test]
fn help_is_one_screen() {
    let dir = tempfile::tempdir().expect("a directory");
    assert_snapshot!(refit(dir.path(), &["--help"]), @"");
}
