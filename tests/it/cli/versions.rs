//! What people read about versions: lists, pins, deletion, adoption.

use std::fs;
use std::path::Path;

use insta::{assert_snapshot, with_settings};
use tempfile::TempDir;

use super::refit::{refit, steady};

fn filters() -> Vec<(&'static str, &'static str)> {
    let mut filters = vec![
        (r"(?m)\b[0-9a-f]{64}\b", "[sha256]"),
        (r"(?m) [0-9a-f]{8}$", " [run]"),
        (r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "[time]"),
    ];
    filters.extend(steady());
    filters
}

fn edit(dir: &Path, file: &str, from: &str, to: &str) {
    let path = dir.join(file);
    let text = fs::read_to_string(&path).expect("the file");
    assert!(text.contains(from), "{file} has no `{from}`");
    fs::write(&path, text.replacen(from, to, 1)).expect("written");
}

/// A project that serves version 1 and has as many more.
pub fn project(versions: usize) -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path();
    refit(at, &["init"]);
    edit(at, "workflows/retrain.yaml", "mode: advise", "mode: act   ");
    edit(at, "workflows/retrain.yaml", "version: date", "version: counter");
    let text = fs::read_to_string(at.join("workflows/retrain.yaml")).expect("read");
    // Versions that are only published, one after the other.
    let (head, _) = text.split_once("  - id: canary").expect("a canary");
    let head = head.replacen("name: retrain", "name: publishes", 1);
    let head = head.split("\non:").next().map(|top| {
        let steps = head.split_once("\nsteps:").expect("steps").1;
        format!("{top}\nsteps:{steps}")
    });
    fs::write(at.join("workflows/publishes.yaml"), head.expect("a head")).expect("written");
    for n in 0..versions {
        let name = if n == 0 { "retrain" } else { "publishes" };
        let ran = refit(at, &["trigger", name, "--follow", "--yes"]);
        assert!(ran.starts_with("exit code: 0\n"), "{ran}");
    }
    dir
}

#[test]
fn pins_marks_and_deletions_are_listed_and_have_a_history() {
    let dir = project(5);
    let at = dir.path();
    with_settings!({filters => filters()}, {
        assert_snapshot!(refit(at, &["model", "pin", "2", "--why", "the audit"]), @r"
            exit code: 0
            --- stdout
            delivery-time 2 is pinned: it stays whatever its age
            ");
        assert_snapshot!(refit(at, &["model", "mark", "4", "--bad", "--why", "odd tail"]), @r"
            exit code: 0
            --- stdout
            delivery-time 4 is marked bad: no rollback chooses it
            ");
        assert_snapshot!(refit(at, &["model", "pin", "9"]), @r"
            exit code: 2
            --- stderr
            error: `delivery-time` has no version `9`
            hint: did you mean `5`?
            ");
        assert_snapshot!(refit(at, &["model", "ls"]), @r"
            exit code: 0
            --- stdout
            MODEL          VERSION  SERVES    METRICS                SIZE   MADE                  RUN
            delivery-time  5        -         mae 2.581, r2 0.93933  219 B  [time]  [run]
            delivery-time  4        bad       mae 2.581, r2 0.93933  219 B  [time]  [run]
            delivery-time  3        -         mae 2.581, r2 0.93933  219 B  [time]  [run]
            delivery-time  2        pinned    mae 2.581, r2 0.93933  219 B  [time]  [run]
            delivery-time  1        champion  mae 2.581, r2 0.93933  219 B  [time]  [run]
            ");
        assert_snapshot!(refit(at, &["gc", "--dry-run"]), @r"
            exit code: 0
            --- stdout
            nothing is old enough to be deleted

            kept
            WHAT             SIZE   WHY
            delivery-time 5  219 B  a rollback on production goes to it; no workflow says `keep` of it
            delivery-time 4  219 B  no workflow says `keep` of it
            delivery-time 3  219 B  no workflow says `keep` of it
            delivery-time 2  219 B  pinned by sam: the audit; no workflow says `keep` of it
            delivery-time 1  219 B  serves on production; no workflow says `keep` of it
            5 folders kept: of runs that ended less than 14d ago
            ");
    });
    for file in ["retrain", "publishes"] {
        let file = format!("workflows/{file}.yaml");
        edit(at, &file, "version: counter", "version: counter, keep: { latest: 1 }");
    }
    with_settings!({filters => filters()}, {
        assert_snapshot!(refit(at, &["gc", "--dry-run"]), @r"
            exit code: 0
            --- stdout
            would be deleted: 438 B
            WHAT             SIZE   WHY
            delivery-time 4  219 B  older than the newest 1
            delivery-time 3  219 B  older than the newest 1

            kept
            WHAT             SIZE   WHY
            delivery-time 5  219 B  a rollback on production goes to it; among the newest 1
            delivery-time 2  219 B  pinned by sam: the audit
            delivery-time 1  219 B  serves on production
            5 folders kept: of runs that ended less than 14d ago
            ");
        assert_snapshot!(refit(at, &["gc"]), @r"
            exit code: 2
            --- stderr
            will be deleted: 438 B
            WHAT             SIZE   WHY
            delivery-time 4  219 B  older than the newest 1
            delivery-time 3  219 B  older than the newest 1

            kept
            WHAT             SIZE   WHY
            delivery-time 5  219 B  a rollback on production goes to it; among the newest 1
            delivery-time 2  219 B  pinned by sam: the audit
            delivery-time 1  219 B  serves on production
            5 folders kept: of runs that ended less than 14d ago
            error: this deletes files for good, and nobody can be asked here
            hint: say so with --yes
            ");
        assert!(at.join("models/delivery-time/3/manifest.json").exists(), "nobody said yes");
        assert_snapshot!(refit(at, &["gc", "--yes", "-q", "--why", "disk is full"]), @r"
            exit code: 0
            --- stdout
            deleted 2 things, 438 B
            ");
        assert!(!at.join("models/delivery-time/3").exists());
        assert_snapshot!(refit(at, &["model", "history", "--limit", "6"]), @r"
            exit code: 0
            --- stdout
            WHEN                  MODEL          WHAT             WHO  WHY
            [time]  delivery-time  3 deleted        sam  disk is full
            [time]  delivery-time  4 deleted        sam  disk is full
            [time]  delivery-time  3 to be deleted  sam  older than the newest 1; disk is full
            [time]  delivery-time  4 to be deleted  sam  older than the newest 1; disk is full
            [time]  delivery-time  4 marked bad     sam  odd tail
            [time]  delivery-time  2 pinned         sam  the audit
            ");
        assert_snapshot!(refit(at, &["promote", "3", "--yes"]), @r"
            exit code: 2
            --- stderr
            3 will serve everybody of delivery-time on production; 1 serves now
            error: cannot promote 3 of `delivery-time` on production: `delivery-time` has no sealed version 3
            hint: `refit model ls delivery-time` lists its versions
            ");
        assert_snapshot!(refit(at, &["rollback", "--yes", "--why", "complaints"]), @r"
            exit code: 0
            --- stdout
            5 serves everybody of delivery-time on production (generation 2)
            --- stderr
            1 of delivery-time on production is marked bad; the newest good version will serve everybody
            nobody is told of it: `notify:` of publishes has nobody for `rolled_back`
            5 serves; its files are being read
            ");
        assert_snapshot!(refit(at, &["rollback", "2", "--bad", "--yes", "-q"]), @r"
            exit code: 0
            --- stdout
            2 serves everybody of delivery-time on production (generation 3)
            ");
    });
    let history = refit(at, &["model", "history", "--json"]);
    let json = history.split_once("--- stdout\n").expect("stdout").1;
    let entries: serde_json::Value = serde_json::from_str(json).expect("JSON");
    assert_eq!(entries[0]["change"], "release");
    assert_eq!(entries[0]["actor"]["name"], "sam");
    assert!(entries[0]["evidence"].is_null() && entries[0]["configuration"].is_null(), "{}", entries[0]);
    with_settings!({filters => filters()}, {
        assert_snapshot!(refit(at, &["model", "receipt", "2"]), @r"
            exit code: 0
            --- stdout
            # 5 of delivery-time serves everybody on production instead of 1

            **By hand.** complaints

            | | |
            |---|---|
            | Model | delivery-time |
            | Where | production |
            | When | [time] |
            | Who | sam |
            | Serves since | 5 |
            | Served before | 1 |
            | Generation | 2 |
            | Version 5 | made by run [id]; manifest SHA-256 [sha256] |
            | Version 1 | made by run [id]; manifest SHA-256 [sha256] |

            ## What was known of the versions

            | metric | 5 | 1 |
            |---|---|---|
            | mae | 2.581 | 2.581 |
            | r2 | 0.93933 | 0.93933 |

            ## What this does not promise

            - A person decided: how rarely refit's own decisions are wrong says nothing about this one.
            - No canary was out: no request of a user was part of what was known.
            - Each version's metrics are what its own trainer said: their holdouts may differ.

            ## How to look again

                refit model history delivery-time
                refit model card delivery-time 5
                refit model card delivery-time 1
                refit model verify delivery-time 5

            ## How to take it back

            Nothing takes it back: the release was changed since, as its history shows.
            ");
        assert_snapshot!(refit(at, &["model", "receipt", "9"]), @r"
            exit code: 2
            --- stderr
            error: `delivery-time` on production has no generation 9
            hint: `refit model history delivery-time` lists its changes
            ");
    });
    let newest = refit(at, &["model", "receipt", "--json"]);
    assert!(
        newest.contains(r#""headline": "2 of delivery-time serves everybody on production instead of 5""#),
        "{newest}"
    );
    // Version 5, which served before, is bad by now.
    with_settings!({filters => filters()}, {
        assert_snapshot!(refit(at, &["rollback"]), @r"
            exit code: 2
            --- stderr
            2 serves everybody of delivery-time on production
            error: this changes what is served, and nobody can be asked here
            hint: say so with --yes
            ");
        assert_snapshot!(refit(at, &["rollback", "--why", " "]), @r"
            exit code: 2
            --- stderr
            error: invalid value ' ' for '--why <WHY>': say why

            For more information, try '--help'.
            ");
        // Version 1 is of a workflow that says who hears of it.
        assert_snapshot!(refit(at, &["promote", "1", "--yes", "--why", "the report was wrong"]), @r"
            exit code: 0
            --- stdout
            1 serves everybody of delivery-time on production (generation 4)
            --- stderr
            1 will serve everybody of delivery-time on production; 2 serves now; 1 is marked bad, until `refit model mark 1 --good`
            told of it: the log
            ");
    });
    for (version, told) in [("2", "[]"), ("1", "[\n    \"console\"\n  ]"), ("1", "null")] {
        let promoted = refit(at, &["promote", version, "--yes", "-q", "--json"]);
        assert!(promoted.contains(&format!("\"told\": {told}")), "{promoted}");
    }
}

#[test]
fn with_nothing_good_left_a_rollback_ends_with_2() {
    let dir = project(1);
    with_settings!({filters => filters()}, {
        assert_snapshot!(refit(dir.path(), &["rollback", "--yes"]), @r"
            exit code: 2
            --- stderr
            1 serves everybody of delivery-time on production
            error: cannot roll back `delivery-time` on production: there is no good version of `delivery-time` to go back to
            hint: name one that was marked bad if it must be: `refit rollback VERSION --model delivery-time`
            ");
        // In a hurry, people name what they mean.
        assert_snapshot!(refit(dir.path(), &["rollback", "delivery-time", "--yes"]), @r"
            exit code: 2
            --- stderr
            error: `delivery-time` is a model, not a version
            hint: `refit rollback --model delivery-time`
            ");
        assert_snapshot!(refit(dir.path(), &["promote", "delivery-time", "--yes"]), @r"
            exit code: 2
            --- stderr
            error: `delivery-time` is a model, not a version
            hint: `refit promote VERSION --model delivery-time`
            ");
    });
}

#[test]
fn a_version_is_shown_compared_pulled_and_described() {
    let dir = project(2);
    let at = dir.path();
    with_settings!({filters => filters()}, {
        assert_snapshot!(refit(at, &["model", "pull", "1", "--to", "here"]), @r"
            exit code: 0
            --- stdout
            delivery-time 1 is in here: 1 file, 219 B, as sealed
            ");
        assert_snapshot!(refit(at, &["model", "pull", "delivery-time", "1", "--to", "here"]), @r"
            exit code: 0
            --- stdout
            delivery-time 1 is in here: 1 file, 219 B, as sealed
            ");
        assert_snapshot!(refit(at, &["model", "pull", "2", "--to", "workflows"]), @r"
            exit code: 2
            --- stderr
            error: cannot pull delivery-time 2 to workflows: there is something else
            hint: name a directory that is empty or not there with --to DIR
            ");
    });
    assert!(at.join("here/model.json").exists());
    has(
        &refit(at, &["model", "show", "champion"]),
        &[
            "delivery-time 1\n",
            "serves   champion\n",
            "mae 2.581\n",
            "\nhistory\n",
            "1 sealed",
            "command: python3 train.py",
        ],
    );
    has(
        &refit(at, &["model", "diff", "2"]),
        &["mae     2.581    2.581    +0.0 %", "the files are the same", "workflow.name"],
    );
    has(
        &refit(at, &["model", "card", "1"]),
        &[
            "# delivery-time 1\n",
            "- Serves: champion\n",
            "- `gate`: **pass**\n",
            "  - mae is 2.581; at most 6 allowed\n",
            "| parameters | reason manual |\n",
            "| interpreter | program python3, version Python 3",
            "## Files\n\n1 in all, 219 B.\n",
            "production serves 1 (generation 1)",
        ],
    );
    assert_eq!(fs::read_dir(at.join("here")).expect("there").count(), 1);
}

#[test]
fn what_serves_is_promoted_and_gone_back_to_by_the_word_for_it() {
    let dir = project(2);
    let at = dir.path();
    let nothing = "exit code: 2\n--- stderr\nerror: `delivery-time` has no previous\n";
    assert!(refit(at, &["rollback", "previous", "--yes"]).starts_with(nothing));
    assert!(refit(at, &["promote", "previous", "--yes"]).starts_with(nothing));
    refit(at, &["promote", "2", "--yes", "-q"]);
    assert_snapshot!(refit(at, &["rollback", "previous", "--yes", "-q"]), @r"
        exit code: 0
        --- stdout
        1 serves everybody of delivery-time on production (generation 3)
        ");
    assert_snapshot!(refit(at, &["promote", "previous", "--yes", "-q"]), @r"
        exit code: 0
        --- stdout
        2 serves everybody of delivery-time on production (generation 4)
        ");
    edit(at, "workflows/retrain.yaml", "{ for: 1h, ", "{ for: 1ms, ");
    edit(at, "workflows/retrain.yaml", "at_most: 72h", "at_most: 2ms");
    let held = refit(at, &["trigger", "retrain", "--follow", "--yes"]);
    assert!(held.starts_with("exit code: 5\n"), "{held}");
    let decide = "decide: `refit promote 3 --model delivery-time` or `refit rollback --model delivery-time`";
    has(&held, &[decide]);
    has(&refit(at, &["run", "show", "last"]), &[decide]);
    let status = refit(at, &["status"]);
    has(
        &status,
        &[
            "canary    3 at 10 %",
            "\n            held: `refit promote 3 --model delivery-time` or",
            "is taken back",
        ],
    );
    assert!(!status.contains("decided at the latest"), "{status}");
    // Whoever says that wants it dropped.
    let refused = refit(at, &["rollback", "canary", "--yes"]);
    assert!(refused.starts_with("exit code: 2\n"), "{refused}");
    has(&refused, &["`refit rollback --model delivery-time` drops the canary"]);
    let refused = refit(at, &["rollback", "3", "--yes"]);
    has(&refused, &["a rollback does not go to the canary", "`refit promote 3 --model delivery-time`"]);
    has(&refit(at, &["status"]), &["canary    3 at 10 %"]);
    let status = refit(at, &["status", "--json"]);
    let status = status.split_once("--- stdout\n").expect("a result").1;
    let status: serde_json::Value = serde_json::from_str(status).expect("JSON");
    let until = status["canaries"][0]["held_until"].as_str().expect("a time");
    assert!(until.ends_with('Z') && until > "2026", "{until}");
    let told = refit(at, &["promote", "canary"]);
    has(&told, &["3 will serve everybody of delivery-time on production; 2 serves now", "say so with --yes"]);
}

#[test]
fn what_served_before_refit_is_adopted_as_it_lies() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path();
    refit(at, &["init"]);
    for version in ["2026-11-07", "2026-11-14"] {
        let place = at.join("models/uploads").join(version);
        fs::create_dir_all(&place).expect("made");
        fs::write(place.join("sprint.json"), format!("{{\"of\": \"{version}\"}}")).expect("written");
        fs::write(place.join("olympic.json"), "{}").expect("written");
    }
    for odd in ["2026 11 01", "latest?", "old"] {
        let place = at.join("models/uploads").join(odd);
        fs::create_dir_all(&place).expect("made");
        if odd != "old" {
            fs::write(place.join("sprint.json"), "{}").expect("written");
        }
    }
    let before = walk(&at.join("models"));
    with_settings!({filters => vec![(r"/[^ ]*/tmp[^ /]*|/tmp/\.tmp[^ /]*", "[dir]")]}, {
        assert_snapshot!(refit(at, &["adopt", "models/uploads", "--champion", "2026-11-08"]), @r"
            exit code: 2
            --- stderr
            `2026 11 01`, `latest?`: not what a version is called (letters, digits, `-`, `_` and `.`, beginning with a letter or digit, at most 100 characters): left out
            error: models/uploads has no version 2026-11-08
            hint: it has: 2026-11-07, 2026-11-14
            ");
        assert_snapshot!(refit(at, &["adopt", "models/uploads", "--champion", "2026-11-14"]), @r"
            exit code: 0
            --- stdout
            adopted 2 versions of delivery-time as they lie in models/uploads; nothing was moved or written there
              2026-11-14  2 files, 22 B, the champion on production
              2026-11-07  2 files, 22 B
            --- stderr
            `2026 11 01`, `latest?`: not what a version is called (letters, digits, `-`, `_` and `.`, beginning with a letter or digit, at most 100 characters): left out
            reading 2026-11-07: 2 files
            reading 2026-11-14: 2 files
            ");
        assert_eq!(walk(&at.join("models")), before, "nothing was written");
        let again = refit(at, &["adopt", "models/uploads", "--champion", "2026-11-14", "-q", "--json"]);
        assert!(again.starts_with("exit code: 0\n"), "{again}");
        let value: serde_json::Value =
            serde_json::from_str(again.split_once("--- stdout\n").expect("stdout").1).expect("JSON");
        let why = "not what a version is called";
        assert_eq!(
            value["left_out"],
            serde_json::json!([{"directory": "2026 11 01", "why": why}, {"directory": "latest?", "why": why}])
        );
        assert_snapshot!(refit(at, &["model", "verify", "2026-11-14"]), @r"
            exit code: 0
            --- stdout
            delivery-time 2026-11-14 is whole: 2 files as sealed
            ");
        let document = fs::read_to_string(at.join("release.json")).expect("served");
        assert!(document.contains("models/uploads/2026-11-14"), "{document}");
        assert_snapshot!(refit(at, &["rollback", "--yes", "-q", "--why", "x"]), @r"
            exit code: 0
            --- stdout
            2026-11-07 serves everybody of delivery-time on production (generation 2)
            ");
        fs::write(at.join("models/uploads/2026-11-14/sprint.json"), "{\"of\": \"somewhere\"}").expect("written");
        assert_snapshot!(refit(at, &["model", "verify", "2026-11-14"]), @r"
            exit code: 1
            --- stderr
            error: cannot verify delivery-time 2026-11-14: directory [dir]/models could not give delivery-time/2026-11-14: sprint.json of delivery-time/2026-11-14 in directory [dir]/models is damaged: it has 19 bytes, not 20
            hint: a version that is not whole is never served: roll back if it is, and train a new one
            ");
    });
    let pulled = refit(at, &["model", "pull", "2026-11-07", "--to", "old"]);
    assert!(pulled.starts_with("exit code: 0\n"), "{pulled}");
    assert_eq!(walk(&at.join("old")).len(), 2);
}

fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
}

fn walk(dir: &Path) -> Vec<(String, String)> {
    let mut found = vec![];
    for entry in fs::read_dir(dir).expect("a directory").flatten() {
        if entry.path().is_dir() {
            found.extend(walk(&entry.path()));
        } else {
            let text = fs::read_to_string(entry.path()).expect("read");
            found.push((entry.path().display().to_string(), text));
        }
    }
    found.sort();
    found
}
