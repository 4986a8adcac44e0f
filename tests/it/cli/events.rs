//! Events by command, and what people are told of what they did.

use std::fs;
use std::path::Path;

use insta::{assert_snapshot, with_settings};

use super::refit::{refit, steady};

/// A workflow that waits for `data/ready`, under a condition.
fn waits(dir: &Path, name: &str, condition: &str) {
    fs::create_dir_all(dir.join("workflows")).expect("writable");
    fs::write(dir.join("refit.toml"), "").expect("writable");
    let text = format!(
        "name: {name}\nmodel: m\non: {{ event: {{ name: data/ready{condition} }} }}\nsteps: [{{ run: \"true\" }}]\n"
    );
    fs::write(dir.join(format!("workflows/{name}.yaml")), text).expect("writable");
}

fn of_any_run() -> Vec<(&'static str, &'static str)> {
    let mut filters = steady();
    filters.insert(0, (r"(?m)^run [0-9a-f]{8}:", "run [run]:"));
    filters
}

#[test]
fn a_workflow_that_an_event_cannot_start_keeps_no_other_from_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    let workflow = |name: &str, condition: &str| waits(dir, name, condition);
    workflow("careful", ", if: event.data.rows >= 500");
    workflow("eager", "");
    workflow("ready", ", if: has(event.data.rows) && event.data.rows >= 500");

    with_settings!({filters => of_any_run()}, {
        assert_snapshot!(refit(dir, &["event", "send", "data/ready"]), @r"
        exit code: 2
        --- stdout
        event [id] was kept
        run [run]: queued
        --- stderr
        error: careful was not started by it: its `if` cannot be decided: `event.data.rows >= 500`: `event.data.rows` is not defined
        hint: correct the event or the workflow; `has(event.data.FIELD)` asks whether a field is there, and `refit trigger careful` starts it by hand
        no server is running, so it waits: start one with `refit serve`, or do it here with `refit run resume [run] --follow`
        ");
    });
    let runs = refit(dir, &["run", "ls"]);
    assert!(runs.contains("eager") && !runs.contains("careful") && !runs.contains("ready "), "{runs}");
    let kept = refit(dir, &["event", "ls"]);
    assert!(kept.contains("data/ready"), "{kept}");
}

#[test]
fn an_event_that_is_sent_again_with_its_key_starts_what_could_not_decide() {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    let workflow = |name: &str, condition: &str| waits(dir, name, condition);
    workflow("careful", ", if: event.data.rows >= 500");
    workflow("eager", "");
    let send = || refit(dir, &["event", "send", "data/ready", "--key", "monday"]);

    with_settings!({filters => of_any_run()}, {
        send();
        assert_snapshot!(send(), @r"
        exit code: 2
        --- stdout
        the event with this key was kept before
        run [run]: already started
        --- stderr
        error: careful was not started by it: its `if` cannot be decided: `event.data.rows >= 500`: `event.data.rows` is not defined
        hint: correct the workflow and send the event again with its key, which starts no run twice; `has(event.data.FIELD)` asks whether a field is there, and `refit trigger careful` starts it by hand
        no server is running, so it waits: start one with `refit serve`, or do it here with `refit run resume [run] --follow`
        ");
        workflow("careful", ", if: \"!has(event.data.rows) || event.data.rows >= 500\"");
        assert_snapshot!(send(), @r"
        exit code: 0
        --- stdout
        the event with this key was kept before
        run [run]: queued
        run [run]: already started
        --- stderr
        no server is running, so it waits: start one with `refit serve`, or do it here with `refit run resume [run] --follow`
        ");
        assert_snapshot!(send(), @r"
        exit code: 0
        --- stdout
        the event with this key was kept before
        run [run]: already started
        run [run]: already started
        --- stderr
        no server is running, so it waits: start one with `refit serve`, or do it here with `refit run resume [run] --follow`
        ");
        // What it started before is no mistake of now.
        workflow("careful", ", if: event.data.rows >= 500");
        assert_snapshot!(send(), @r"
        exit code: 0
        --- stdout
        the event with this key was kept before
        run [run]: already started
        --- stderr
        no server is running, so it waits: start one with `refit serve`, or do it here with `refit run resume [run] --follow`
        ");
        fs::remove_file(dir.join("workflows/eager.yaml")).expect("removed");
        assert_snapshot!(send(), @r"
        exit code: 0
        --- stdout
        the event with this key was kept before
        --- stderr
        no workflow was started by it again
        ");
    });
}

#[test]
fn what_is_no_id_is_said_with_one_that_is() {
    let dir = tempfile::tempdir().expect("a directory");
    let said = refit(dir.path(), &["event", "show", "x"]);
    let wanted = "`x` is not the id of an event: one looks like 01a204d0-";
    assert!(said.contains(wanted), "{said}");
}
