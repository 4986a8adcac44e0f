//! What people read about freezes.

use std::fs;

use insta::{assert_snapshot, with_settings};

use super::refit::{refit, steady};

fn filters() -> Vec<(&'static str, &'static str)> {
    let mut filters = vec![
        (r"20\d\d-\d\d-\d\d \d\d:\d\d UTC", "[end]"),
        (r"unfreeze [0-9a-f]{8}", "unfreeze [freeze]"),
        (r"(?m)^[0-9a-f]{8}  ", "[freeze]  "),
        (r"run [0-9a-f]{8}", "run [run]"),
    ];
    filters.extend(steady());
    filters
}

#[test]
fn a_freeze_says_what_it_does_who_made_it_and_how_to_lift_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path();
    refit(at, &["init"]);
    let file = at.join("workflows/retrain.yaml");
    let text = fs::read_to_string(&file).expect("read");
    let text =
        text.replacen("mode: advise", "mode: act   ", 1).replacen("version: date", "version: counter", 1);
    fs::write(&file, text).expect("written");
    with_settings!({filters => filters()}, {
        assert_snapshot!(refit(at, &["freeze", "delivery-tme", "--reason", "a fair"]), @r"
        exit code: 2
        --- stderr
        error: there is no model `delivery-tme`
        hint: did you mean `delivery-time`?
        ");
        assert_snapshot!(refit(at, &["freeze", "--from", "2020-01-01", "--for", "3d", "--reason", "a fair"]), @r"
        exit code: 2
        --- stderr
        error: cannot freeze: its end, [end], is past
        hint: give it an end that is still to come, or none: `refit unfreeze` ends it
        ");
        assert_snapshot!(refit(at, &["freeze", "--from", "2020-01-01", "--reason", "a fair"]), @r"
        exit code: 2
        --- stderr
        error: cannot freeze: its begin, [end], is more than 48 hours past
        hint: leave --from out: it begins at once; to extend a freeze, give its own begin
        ");
        let freeze = ["freeze", "delivery-time", "--for", "3d", "--reason", "Black Friday"];
        assert_snapshot!(refit(at, &freeze), @r"
        exit code: 0
        --- stdout
        delivery-time is frozen until [end], by sam: Black Friday (`refit unfreeze [freeze]`)
        nothing is promoted meanwhile; canaries go on, and every way back stays open
        ");
        assert_snapshot!(refit(at, &freeze), @r"
        exit code: 0
        --- stdout
        nothing was changed: delivery-time is frozen until [end], by sam: Black Friday (`refit unfreeze [freeze]`)
        nothing is promoted meanwhile; canaries go on, and every way back stays open
        ");
        assert_snapshot!(refit(at, &["freeze", "--from", "2099-12-24T12:00", "--reason", "holidays"]), @r"
        exit code: 0
        --- stdout
        every model will be frozen from [time] until somebody lifts it, by sam: holidays (`refit unfreeze [freeze]`)
        until it begins, promotions go on
        ");
    });
    assert!(refit(at, &["trigger", "retrain"]).starts_with("exit code: 0\n"));
    assert!(refit(at, &["tick"]).starts_with("exit code: 0\n"));
    let shown = refit(at, &["run", "show"]);
    let waits = shown.lines().find(|line| line.contains("promote")).unwrap_or(&shown);
    with_settings!({filters => filters()}, {
        assert_snapshot!(waits, @"… promote [took]  waits, frozen until [end], by sam: Black Friday, looks again at [time]");
        assert_snapshot!(refit(at, &["promote", "1", "--yes"]), @r"
        exit code: 7
        --- stderr
        error: cannot promote 1: `delivery-time` is frozen until [end], by sam: Black Friday
        hint: wait, lift it with `refit unfreeze [freeze]`, or promote all the same with --despite-freeze; `refit rollback` goes back to what served before, whatever is frozen
        ");
    });
    let status = refit(at, &["status"]);
    let frozen: Vec<&str> = status.lines().filter(|line| line.contains("frozen")).collect();
    with_settings!({filters => filters()}, {
        assert_snapshot!(frozen.join("\n"), @r"
        delivery-time is frozen until [end], by sam: Black Friday (`refit unfreeze [freeze]`)
        every model will be frozen from [time] until somebody lifts it, by sam: holidays (`refit unfreeze [freeze]`)
        ");
        assert_snapshot!(refit(at, &["unfreeze", "delivery-tme"]), @r"
        exit code: 2
        --- stderr
        error: there is no model and no freeze `delivery-tme`
        hint: did you mean `delivery-time`?
        ");
        assert_snapshot!(refit(at, &["unfreeze", "delivery-time"]), @r"
        exit code: 0
        --- stdout
        lifted: delivery-time frozen until [end], by sam: Black Friday
        stays: every model will be frozen from [time] until somebody lifts it, by sam: holidays (`refit unfreeze [freeze]`)
        ");
        assert_snapshot!(refit(at, &["unfreeze", "delivery-time"]), @r"
        exit code: 0
        --- stdout
        no freeze of delivery-time was there to lift
        stays: every model will be frozen from [time] until somebody lifts it, by sam: holidays (`refit unfreeze [freeze]`)
        ");
        assert_snapshot!(refit(at, &["freeze", "--list"]), @r"
        exit code: 0
        --- stdout
        FREEZE    MODEL          FROM                  UNTIL                               BY   WHY
        [freeze]  every model    [time]  -                                   sam  holidays
        [freeze]  delivery-time  [time]  lifted [time] by sam  sam  Black Friday
        ");
    });
    let value: serde_json::Value =
        serde_json::from_str(refit(at, &["status", "--json"]).split("--- stdout\n").nth(1).expect("JSON"))
            .expect("JSON");
    assert_eq!(value["freezes"][0]["reason"], "holidays", "{value:#}");
    assert!(refit(at, &["tick"]).starts_with("exit code: 0\n"));
    assert!(refit(at, &["status"]).contains("champion  1"));
}
