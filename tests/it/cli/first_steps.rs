//! What somebody new does, in order, and what they see.

use std::fs;
use std::path::Path;

use insta::{assert_snapshot, with_settings};

use super::refit::{refit, steady};

/// The program with its words in `steady` form, and columns whose width depends on durations closed up.
fn filters() -> Vec<(&'static str, &'static str)> {
    let mut filters =
        vec![(r"(?m)^… .* runs\n", ""), (r"(?m)^[0-9a-f]{8} ", "[run] "), (r"(?m) [0-9a-f]{8}$", " [run]")];
    filters.extend(steady());
    filters.extend([(r"TOOK +", "TOOK  "), (r"\[took\] +", "[took]  "), (r"VERSION +", "VERSION  ")]);
    filters
}

fn act(dir: &Path) {
    let path = dir.join("workflows/retrain.yaml");
    let text = fs::read_to_string(&path).expect("the workflow");
    assert!(text.contains("mode: advise"));
    fs::write(path, text.replace("mode: advise", "mode: act   ")).expect("written");
}

#[test]
fn from_nothing_to_a_served_version() {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    let wrote = refit(dir, &["init"]);
    assert!(wrote.starts_with("exit code: 0\n"), "{wrote}");
    let fine = refit(dir, &["validate"]);
    assert!(fine.starts_with("exit code: 0\n"), "{fine}");
    let plan = refit(dir, &["plan", "retrain"]);
    assert!(plan.starts_with("exit code: 0\n"), "{plan}");

    with_settings!({filters => filters()}, {
        assert_snapshot!(refit(dir, &["trigger", "retrain", "--follow", "--yes"]), @"");
        assert!(!dir.join("release.json").exists(), "advise touches nothing");
        assert_snapshot!(refit(dir, &["run", "ls"]), @"");
        assert_snapshot!(refit(dir, &["model", "ls"]), @"");
        assert_snapshot!(refit(dir, &["status"]), @"");

        let last = refit(dir, &["run", "show"]);
        assert!(last.starts_with("exit code: 0\n"), "{last}");

        act(dir);
        assert_snapshot!(refit(dir, &["trigger", "retrain", "--follow", "--yes"]), @"");
        assert!(dir.join("release.json").exists());
        assert_snapshot!(refit(dir, &["status"]), @"");
    });
}
