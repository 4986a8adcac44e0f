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

/// A cron job starts in its home.
#[test]
fn settings_that_are_named_from_elsewhere_bring_their_project() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path();
    refit(at, &["-C", "project", "init"]);
    fs::create_dir(at.join("home")).expect("made");
    let home = at.join("home");
    assert_snapshot!(refit(&home, &["--config", "../project/refit.toml", "validate"]), @r"
        exit code: 0
        --- stdout
        ../project/workflows/retrain.yaml: workflow `retrain` is fine, 8 steps
        ");
    refit(&home, &["--config", "../project/refit.toml", "status"]);
    assert!(at.join("project/.refit/refit.db").exists() && !home.join(".refit").exists());
    // A project of its own takes them as its own.
    fs::create_dir(home.join("workflows")).expect("made");
    refit(&home, &["--config", "../project/refit.toml", "status"]);
    assert!(home.join(".refit/refit.db").exists());
}

/// Only Linux has a file that is full.
#[cfg(target_os = "linux")]
#[test]
fn a_result_that_does_not_fit_on_the_disk_is_no_result() {
    let dir = tempfile::tempdir().expect("a directory");
    let full = fs::File::options().write(true).open("/dev/full").expect("always there");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_refit"))
        .arg("schema")
        .current_dir(dir.path())
        .stdout(full)
        .output()
        .expect("the program starts");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.starts_with("error: cannot write to standard output: No space left"), "{told}");
}

#[test]
fn a_new_project_validates_without_warnings() {
    let dir = project();
    assert_snapshot!(refit(dir.path(), &["validate"]), @r"
        exit code: 0
        --- stdout
        workflows/retrain.yaml: workflow `retrain` is fine, 8 steps
        ");
    let ignored = fs::read_to_string(dir.path().join(".gitignore")).expect("ignored");
    assert!(ignored.contains(".refit/"));
}

#[test]
fn init_says_what_to_do_next_and_never_overwrites() {
    let dir = tempfile::tempdir().expect("a directory");
    assert_snapshot!(refit(dir.path(), &["init"]), @r"
        exit code: 0
        --- stdout
        wrote
          refit.toml
          workflows/retrain.yaml
          train.py
          data/deliveries.csv
          .gitignore

        next
          refit validate                   is everything right?
          refit plan retrain               what would it do?
          refit trigger retrain --follow   do it
          refit serve                      do it every Sunday, and watch what serves
        ");
    fs::write(dir.path().join("train.py"), "mine").expect("written");
    assert_snapshot!(refit(dir.path(), &["init"]), @r"
        exit code: 2
        --- stderr
        error: train.py is here already, and says something else; nothing was written
        hint: move it away, or start in another directory, `refit -C DIR init`, and copy from there
        ");
    assert_eq!(fs::read_to_string(dir.path().join("train.py")).expect("read"), "mine");
    // What is missing is written beside what is there already, as it would be.
    fs::remove_file(dir.path().join("train.py")).expect("removed");
    let again = refit(dir.path(), &["init"]);
    assert!(again.starts_with("exit code: 0\n--- stdout\nwrote\n  train.py\n\nnext\n"), "{again}");
    assert!(refit(dir.path(), &["init"]).contains("everything is here already"));
    assert_snapshot!(refit(dir.path(), &["init", "--template", "raceday"]), @r"
        exit code: 2
        --- stderr
        error: there is no template `raceday`
        hint: there are: local, raceday-vercel
        ");
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
    assert_snapshot!(refit(dir.path(), &["validate"]), @r"
        exit code: 2
        --- stdout
        error: the workflow has no `model`
         --> workflows/other.yaml:1:1
          |
        1 | name: other
          | ^^^^
          = hint: add `model:` (the model that versions, releases and evidence belong to)

        error: the workflow has no `steps`
         --> workflows/other.yaml:1:1
          |
        1 | name: other
          | ^^^^
          = hint: add `steps:` (what a run does, in order)

        error: unknown key `timeuot` in step `train`
          --> workflows/retrain.yaml:34:5
           |
        34 |     timeuot: 5m
           |     ^^^^^^^
           = hint: did you mean `timeout`?

        error: there is no kind of step `publsh`
          --> workflows/retrain.yaml:46:11
           |
        46 |     uses: publsh
           |           ^^^^^^
           = hint: did you mean `publish`?

        4 errors, 0 warnings in 2 files
        ");
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
    assert_snapshot!(refit(dir.path(), &["validate"]), @r"
        exit code: 2
        --- stdout
        error: refit.toml has no store `model`
          --> workflows/retrain.yaml:47:20
           |
        47 |     with: { store: model, version: date }
           |                    ^^^^^
           = hint: did you mean `models`?

        error: refit.toml has no notifier `team`
          --> workflows/retrain.yaml:69:83
           |
        69 |   - { on: [promoted, rejected, rolled_back, held, failed, needs_approval], slack: team }
           |                                                                                   ^^^^
           = hint: add [notifiers.team] to refit.toml

        2 errors, 0 warnings in 1 file
        ");
    assert_snapshot!(refit(dir.path(), &["trigger", "retrain"]), @r"
        exit code: 2
        --- stderr
        error: cannot trigger `retrain`: refit.toml has no store `model`
        hint: did you mean `models`?
        ");
}

#[test]
fn validate_answers_programs_in_json() {
    let dir = project();
    edit(dir.path(), "workflows/retrain.yaml", "target: production", "target: prodction");
    assert_snapshot!(refit(dir.path(), &["validate", "--json"]), @r#"
        exit code: 2
        --- stdout
        {
          "files": [
            {
              "path": "workflows/retrain.yaml",
              "workflow": "retrain",
              "diagnostics": [
                {
                  "severity": "error",
                  "line": 51,
                  "column": 21,
                  "message": "refit.toml has no target `prodction`",
                  "hint": "did you mean `production`?"
                }
              ]
            }
          ],
          "errors": 1,
          "warnings": 0
        }
        "#);
}

#[test]
fn plan_says_what_would_happen() {
    let dir = project();
    with_settings!({filters => steady()}, {
        assert_snapshot!(refit(dir.path(), &["plan", "retrain"]), @r"
            exit code: 0
            --- stdout
            retrain retrains delivery-time (workflows/retrain.yaml)
            mode   advise: it does everything but change what is served
            start  at `0 2 * * 0` UTC: [time], [time], [time]; of missed ticks, the latest is made up for
            start  by `refit trigger retrain [-i reason=manual]`
            target production: a change is served at once; a canary ends by itself if refit is gone

            #  STEP     KIND     WHAT
            1  data     fetch    fetches data/deliveries.csv into deliveries.csv and checks: 5 columns, at least 300 rows, at least 90 % of the last fetch, at most 1 % of `minutes` empty
            2  train    run      runs `python3 train.py` for at most 5m, reads its metrics file
            3  gate     gate     lets the version pass if mae at most 6, r2 at least 0.8
            4  publish  publish  uploads the version to `models` and seals it
            5  canary   canary   sends 10 % of the traffic of `production` to the version and watches it (only said, not done: mode is advise)
            6  watch    wait     waits for 1h, until canary.verdict != 'inconclusive', for at most 3d in all
            7  compare  compare  compares canary and champion: error rate below 2 % or worse by less than 50 %; holds what is undecided
            8  promote  promote  promotes, rolls back or holds, as the verdict says (only said, not done: mode is advise)
            ");
        assert_snapshot!(refit(dir.path(), &["plan", "retrian"]), @r"
            exit code: 2
            --- stderr
            error: there is no workflow `retrian` in workflows
            hint: did you mean `retrain`?
            ");
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
        assert_snapshot!(refit(dir.path(), &["status"]), @r"
            exit code: 2
            --- stderr
            error: there is no refit.toml in [dir] or above it
            hint: start a project here with `refit init`, or name its directory with -C DIR
            ");
        assert_snapshot!(refit(dir.path(), &["status", "--json"]), @r#"
            exit code: 2
            --- stderr
            {"error":"there is no refit.toml in [dir] or above it","hint":"start a project here with `refit init`, or name its directory with -C DIR","exit":2}
            "#);
        assert_snapshot!(refit(dir.path(), &["-C", "nowhere", "status"]), @r"
            exit code: 2
            --- stderr
            error: cannot work in nowhere: No such file or directory (os error 2)
            hint: is it a directory you may enter?
            ");
    });
}

#[test]
fn a_mistake_in_the_settings_has_its_place() {
    let dir = project();
    edit(dir.path(), "refit.toml", "listen =", "lisen =");
    with_settings!({filters => steady()}, {
        assert_snapshot!(refit(dir.path(), &["plan", "retrain"]), @r#"
            exit code: 2
            --- stderr
            error: [dir]/refit.toml: TOML parse error at line 9, column 1
              |
            9 | lisen = "127.0.0.1:7070"            # `refit serve`; other addresses need a token
              | ^^^^^
            unknown field `lisen`, expected `listen` or `public_url`
            hint: mend the file; `refit validate` checks it
            "#);
    });
}

#[test]
fn usage_errors_name_the_nearest_word() {
    let dir = tempfile::tempdir().expect("a directory");
    assert_snapshot!(refit(dir.path(), &["triger", "retrain"]), @r"
        exit code: 2
        --- stderr
        error: unrecognized subcommand 'triger'

          tip: a similar subcommand exists: 'trigger'

        Usage: refit [OPTIONS] <COMMAND>

        For more information, try '--help'.
        ");
    assert_snapshot!(refit(dir.path(), &["triger", "--json"]), @r#"
        exit code: 2
        --- stderr
        {"error":"unrecognized subcommand 'triger'","hint":"see `refit --help`","exit":2}
        "#);
    assert_snapshot!(refit(dir.path(), &["trigger", "retrain", "-i", "reason"]), @r"
        exit code: 2
        --- stderr
        error: invalid value 'reason' for '--input <KEY=VALUE>': `reason` is not KEY=VALUE

        For more information, try '--help'.
        ");
}

#[test]
fn help_is_one_screen() {
    let dir = tempfile::tempdir().expect("a directory");
    assert_snapshot!(refit(dir.path(), &["--help"]), @r"
        exit code: 0
        --- stdout
        Retrain a model, check it, put it on canary, promote it or roll it back: durably, in one binary

        Usage: refit [OPTIONS] <COMMAND>

        Commands:
          demo      Show the whole story on real data: retrain, check, canary, promote, roll back
          init      Start a project here: refit.toml, a workflow, a trainer
          adopt     Take the versions that are served today as champion
          validate  Check workflow files and settings
          plan      Say step by step what a workflow would do
          schema    Print the JSON Schema of workflow files
          doctor    Check the database, stores, targets and secrets
          eject     Leave refit: withdraw canaries, write a last release document, say what replaces it
          trigger   Start a run of a workflow
          simulate  Replay past weeks under other rules: which thresholds would have decided well
          event     Send and read events
          run       Look at runs and steer them
          receipt   Write what a run decided, on which evidence, and what that does not promise
          model     Look at versions of models
          status    What serves, what is on canary, what runs, what is due next
          notify    Look at messages before they come, and try notifiers
          promote   Make a version the one that serves everybody
          rollback  Drop the canary, or go back to an older version
          freeze    Promote nothing for a while; canaries go on, and every way back stays open
          unfreeze  Lift a freeze before its end
          canary    Say what a canary can show, give it more time, decide over minutes that are past
          observe   Report served predictions (NDJSON)
          truth     Report what turned out to be true (NDJSON)
          gc        Delete what nothing needs: old versions, half uploads, files of finished runs, old evidence
          migrate   Make or update the database's tables
          serve     Work on runs, fire schedules, watch canaries, answer HTTP
          worker    Work on runs without HTTP
          tick      Do everything that is due, say what is due next, and end: for a cron job instead of a server

        Options:
          -C, --directory <DIR>  Work in this directory
              --config <FILE>    Take the settings from this file instead of the nearest refit.toml
              --db <URL>         The database: a file, or postgres://… [env: REFIT_DATABASE_URL]
              --json             Print JSON
          -q, --quiet            Say nothing but results and errors
          -v, --verbose...       Say more; twice: everything
              --no-color         No colours (also: NO_COLOR)
          -y, --yes              Do not ask
          -h, --help             Print help
          -V, --version          Print version
        ");
}

#[test]
fn the_project_for_vercel_validates_and_brings_what_the_app_needs() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join(".gitignore"), "node_modules\n").expect("written");
    assert_snapshot!(refit(dir.path(), &["init", "--template", "raceday-vercel"]), @r"
        exit code: 0
        --- stdout
        wrote
          refit.toml
          workflows/retrain.yaml
          sql/results.sql
          apps/web/src/lib/refit.ts
          .gitignore

        next
          in refit.toml, workflows/retrain.yaml and sql/results.sql: your names, addresses and columns
          refit doctor                     are the services there, and may refit use them?
          refit adopt models --champion VERSION
                                           take what serves today, at models/VERSION/, as champion
          refit trigger retrain --follow   a first run; it changes nothing that is served
          refit serve                      do it every Sunday, and watch what serves
        ");
    assert_snapshot!(refit(dir.path(), &["validate"]), @r"
        exit code: 0
        --- stdout
        workflows/retrain.yaml: workflow `retrain` is fine, 9 steps
        ");
    let client = fs::read_to_string(dir.path().join("apps/web/src/lib/refit.ts")).expect("the client");
    assert!(client.contains("export class Releases") && client.contains("export class Reports"));
    let ignored = fs::read_to_string(dir.path().join(".gitignore")).expect("ignored");
    assert_eq!(ignored, "node_modules\n.refit/\n.secrets/\n");
}

#[test]
fn a_file_that_is_not_utf8_is_shown_where_it_is_not() {
    let dir = project();
    fs::write(dir.path().join("workflows/latin.yaml"), b"name: w\nmodel: caf\xe9\n").expect("written");
    assert_snapshot!(refit(dir.path(), &["validate", "workflows/latin.yaml"]), @r"
        exit code: 2
        --- stdout
        error: not UTF-8
         --> workflows/latin.yaml:2:11
          |
        2 | model: caf�
          |           ^
          = hint: save the file as text in UTF-8

        1 error, 0 warnings in 1 file
        ");
}

#[test]
fn settings_that_are_not_utf8_say_where_and_what_to_do() {
    let dir = project();
    fs::write(dir.path().join("refit.toml"), b"[server]\n# caf\xe9\n").expect("written");
    with_settings!({filters => steady()}, {
        assert_snapshot!(refit(dir.path(), &["plan", "retrain"]), @r"
            exit code: 2
            --- stderr
            error: [dir]/refit.toml: line 2, column 6 is not UTF-8; save the file as text in UTF-8
            hint: mend the file; `refit validate` checks it
            ");
    });
}

#[test]
fn a_query_that_is_not_utf8_is_not_taken_for_the_workflow() {
    let dir = project();
    fs::create_dir(dir.path().join("sql")).expect("a directory");
    fs::write(dir.path().join("sql/x.sql"), b"SELECT\n  'caf\xe9'\n").expect("written");
    let fetch = "{ uses: fetch, with: { from: { sqlite: { path: app.db, query_file: sql/x.sql } } } }";
    let text = format!("name: q\nmodel: m\nsteps: [{fetch}]\n");
    fs::write(dir.path().join("workflows/q.yaml"), text).expect("written");
    assert_snapshot!(refit(dir.path(), &["validate", "workflows/q.yaml"]), @r"
        exit code: 2
        --- stdout
        error: cannot read sql/x.sql: line 2, column 7 is not UTF-8; save the file as text in UTF-8

        1 error, 0 warnings in 1 file
        ");
}

#[test]
fn a_workflow_whose_file_has_mistakes_is_not_said_to_be_missing() {
    let dir = project();
    let text = fs::read_to_string(dir.path().join("workflows/retrain.yaml")).expect("the file");
    fs::write(dir.path().join("workflows/other.yaml"), text.replacen("name: retrain", "name: retain", 1))
        .expect("written");
    edit(dir.path(), "workflows/retrain.yaml", "version: date", "version: dat");
    assert_snapshot!(refit(dir.path(), &["trigger", "retrain"]), @r"
        exit code: 2
        --- stderr
        error: workflow `retrain` cannot be used: workflows/retrain.yaml has mistakes
        hint: `refit validate workflows/retrain.yaml` shows them
        ");
}
