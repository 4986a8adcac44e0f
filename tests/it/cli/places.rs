//! Several models and one target: said before anything is trained.

use std::fs;
use std::path::Path;

use insta::{assert_snapshot, with_settings};
use tempfile::TempDir;

use super::refit::{refit, steady};

const RACES: &str = "\
name: races
model: race-times
mode: act
steps:
  - { uses: rollback, with: { target: production } }
";

/// A project whose workflows bring two models to the target of `settings`.
fn project(settings: &str) -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let workflows = dir.path().join("workflows");
    fs::create_dir(&workflows).expect("a directory");
    fs::write(dir.path().join("refit.toml"), settings).expect("written");
    fs::write(workflows.join("races.yaml"), RACES).expect("written");
    other(dir.path(), "act");
    dir
}

fn other(dir: &Path, mode: &str) {
    let swims = RACES.replace("races", "swims").replace("race-times", "swim-times").replace("act", mode);
    fs::write(dir.join("workflows/swims.yaml"), swims).expect("written");
}

#[test]
fn two_models_at_a_place_for_one_are_a_mistake_of_both_files() {
    let dir = project("[targets.production]\nkind = \"pointer\"\npath = \"release.json\"\n");
    assert_snapshot!(refit(dir.path(), &["validate"]), @r"
        exit code: 2
        --- stdout
        error: target `production` has a place for one model, and `swims` brings `swim-times` there too
         --> workflows/races.yaml:5:39
          |
        5 |   - { uses: rollback, with: { target: production } }
          |                                       ^^^^^^^^^^
          = hint: give each model a target of its own, or a place in [targets.production]: `{model}` stands for its name

        error: target `production` has a place for one model, and `races` brings `race-times` there too
         --> workflows/swims.yaml:5:39
          |
        5 |   - { uses: rollback, with: { target: production } }
          |                                       ^^^^^^^^^^
          = hint: give each model a target of its own, or a place in [targets.production]: `{model}` stands for its name

        2 errors, 0 warnings in 2 files
        ");
    assert_snapshot!(refit(dir.path(), &["validate", "workflows/swims.yaml"]), @r"
        exit code: 2
        --- stdout
        error: target `production` has a place for one model, and `races` brings `race-times` there too
         --> workflows/swims.yaml:5:39
          |
        5 |   - { uses: rollback, with: { target: production } }
          |                                       ^^^^^^^^^^
          = hint: give each model a target of its own, or a place in [targets.production]: `{model}` stands for its name

        1 error, 0 warnings in 1 file
        ");
    assert_snapshot!(refit(dir.path(), &["trigger", "swims"]), @r"
        exit code: 2
        --- stderr
        error: cannot trigger `swims`: target `production` has a place for one model, and `races` brings `race-times` there too
        hint: give each model a target of its own, or a place in [targets.production]: `{model}` stands for its name
        ");
    with_settings!({filters => steady()}, {
        assert_snapshot!(refit(dir.path(), &["doctor"]), @r"
            exit code: 2
            --- stdout
            CHECK                        FOUND
            settings            ok       refit.toml
            workflows           problem  2 bring their models to a place for one
            database            ok       sqlite [dir]/.refit/refit.db
            server              ok       none is running; `refit serve` starts one
            targets.production  ok       release file [dir]/release.json can be written

            hint: workflows: `refit validate` shows every mistake
            ");
    });
}

#[test]
fn two_models_with_a_place_each_are_fine() {
    let dir = project("[targets.production]\nkind = \"pointer\"\npath = \"release-{model}.json\"\n");
    assert_snapshot!(refit(dir.path(), &["validate"]), @r"
        exit code: 0
        --- stdout
        workflows/races.yaml: workflow `races` is fine, 1 step
        workflows/swims.yaml: workflow `swims` is fine, 1 step
        ");
}

#[test]
fn a_workflow_that_changes_nothing_needs_no_place() {
    let dir = project("[targets.production]\nkind = \"pointer\"\npath = \"release.json\"\n");
    other(dir.path(), "advise");
    assert_snapshot!(refit(dir.path(), &["validate"]), @r"
        exit code: 0
        --- stdout
        workflows/races.yaml: workflow `races` is fine, 1 step
        workflows/swims.yaml: workflow `swims` is fine, 1 step
        ");
}
