//! What people read who report evidence by hand.

use std::fs;
use std::path::Path;

use insta::assert_snapshot;

use super::refit::refit;

/// A project, and one row each that makes sense and that does not.
fn project() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    refit(dir.path(), &["init"]);
    let write = |name: &str, line: &str| fs::write(dir.path().join(name), line).expect("written");
    write("bad", "{\"request_id\": \"r1\", \"actual\": 3}\n");
    write("good", "{\"request_id\": \"r1\", \"truth\": 3}\n");
    write("nothing", "");
    dir
}

fn truth(dir: &Path, model: &str, file: &str) -> String {
    refit(dir, &["truth", model, file, "--batch", "monday"])
}

#[test]
fn a_batch_without_a_row_that_makes_sense_can_be_corrected_and_sent_again() {
    let dir = project();
    assert_snapshot!(truth(dir.path(), "delivery-time", "bad"), @r"
        exit code: 2
        --- stdout
        0 truths counted, 1 line refused
        --- stderr
        line 1: unknown field `actual`, expected one of `request_id`, `truth`, `block`, `at`
        ");
    assert_snapshot!(truth(dir.path(), "delivery-time", "nothing"), @r"
        exit code: 0
        --- stdout
        0 truths counted
        ");
    assert_snapshot!(truth(dir.path(), "delivery-time", "good"), @r"
        exit code: 0
        --- stdout
        1 truth counted, 1 kept until their prediction is known
        ");
}

#[test]
fn a_row_that_makes_no_sense_is_told_by_its_line_and_its_field() {
    let dir = project();
    let rows = concat!(
        "{\"request_id\": \"r1\", \"truth\": 3}\n",
        "{\"request_id\": \"r2\", \"truth\": \"3\"}\n",
        "{\"request_id\": 3, \"truth\": 3}\n",
        "{\"request_id\": \"r4\", \"truth\": 3, \"at\": \"yesterday\"}\n",
        "[\"r5\", 3, null, null]\n",
    );
    fs::write(dir.path().join("rows"), rows).expect("written");
    assert_snapshot!(truth(dir.path(), "delivery-time", "rows"), @r#"
        exit code: 0
        --- stdout
        1 truth counted, 4 lines refused, 1 kept until their prediction is known
        --- stderr
        line 2: `truth` is `"3"`, not a number
        line 3: `request_id` is `3`, not a text in quotes
        line 4: `at` is `"yesterday"`, not a time such as "2026-03-01T12:00:00Z"
        line 5: `["r5", 3, null, null]` is not a JSON object such as {"request_id":"a1","truth":41.5}
        "#);
}

#[test]
fn programs_read_what_was_refused() {
    let dir = project();
    assert_snapshot!(refit(dir.path(), &["truth", "delivery-time", "bad", "--batch", "monday", "--json"]), @r#"
        exit code: 2
        --- stdout
        {
          "batch": "monday",
          "duplicate": false,
          "accepted": 0,
          "refused": 1,
          "misdated": 0,
          "unmatched": 0,
          "errors": [
            {
              "line": 1,
              "error": "unknown field `actual`, expected one of `request_id`, `truth`, `block`, `at`"
            }
          ]
        }
        --- stderr
        line 1: unknown field `actual`, expected one of `request_id`, `truth`, `block`, `at`
        "#);
}

#[test]
fn a_byte_order_mark_is_no_part_of_the_first_row() {
    let dir = project();
    let row = "{\"request_id\": \"r1\", \"version\": \"1\", \"ok\": true}\n";
    fs::write(dir.path().join("marked"), format!("\u{feff}{row}")).expect("written");
    assert_snapshot!(refit(dir.path(), &["observe", "delivery-time", "marked"]), @r"
        exit code: 0
        --- stdout
        1 observation counted
        ");
}

#[test]
fn evidence_of_a_model_that_nobody_knows_is_warned_of() {
    let dir = project();
    assert_snapshot!(truth(dir.path(), "delivery-tme", "good"), @r"
        exit code: 0
        --- stdout
        1 truth counted, 1 kept until their prediction is known
        --- stderr
        warning: no workflow, run, version or release is of a model `delivery-tme`; did you mean `delivery-time`?
        ");
}

#[test]
fn a_name_that_is_not_there_finds_the_nearest() {
    let dir = project();
    assert_snapshot!(refit(dir.path(), &["rollback", "--yes", "--model", "delivery-tme"]), @r"
        exit code: 2
        --- stderr
        error: there is no model `delivery-tme`
        hint: did you mean `delivery-time`?
        ");
    assert_snapshot!(refit(dir.path(), &["promote", "1", "--yes", "--target", "prodution"]), @r"
        exit code: 2
        --- stderr
        error: there is no target `prodution`
        hint: did you mean `production`?
        ");
}
