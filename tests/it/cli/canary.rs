//! What a canary would have come to: `refit canary`.

use insta::assert_snapshot;

use super::refit::{refit, steady};

fn minutes(lines: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("minutes.ndjson"), lines.join("\n")).expect("writable");
    dir
}

#[test]
fn a_replay_prints_evidence_by_minute_and_the_decision() {
    let dir = minutes(&[
        r#"{"t":"2026-03-01T12:00:00Z","canary":{"n":10,"e":0},"stable":{"n":90,"e":1}}"#,
        r#"{"t":"2026-03-01T12:01:00Z","canary":{"n":10,"e":10},"stable":{"n":90,"e":1}}"#,
        r#"{"t":"2026-03-01T12:02:00Z","canary":{"n":0,"e":0},"stable":{"n":0,"e":0}}"#,
    ]);
    let args = ["canary", "replay", "minutes.ndjson", "--phi", "1", "--min-table", "0,0"];
    // The last digits are those of the machine's logarithm.
    insta::with_settings!({filters => vec![(r"(\d\.\d{6})\d+", "$1")]}, {
        assert_snapshot!(refit(dir.path(), &args), @r#"
    exit code: 0
    --- stdout
    {"t":"2026-03-01T12:00:00Z","log_e_worse":-0.205166,"log_e_ni":0.058091,"interval":[0.001,539.288876],"verdict":"inconclusive","phi":1.0}
    {"t":"2026-03-01T12:01:00Z","log_e_worse":18.892488,"log_e_ni":-3.798262,"interval":[6.778244,1000.0],"verdict":"fail","phi":1.0}
    {"t":"2026-03-01T12:02:00Z","log_e_worse":18.892488,"log_e_ni":-3.798262,"interval":[6.778244,1000.0],"verdict":"fail","phi":1.0}
    {"decision":"roll_back","verdict":"fail","decided_at":"2026-03-01T12:01:00Z","minutes":3,"reason":"canary errors 10 of 20 (50.0 %), stable 2 of 180 (1.1 %): at least 6.78x the odds; evidence over 1,000,000:1, limit 50:1","alpha":0.02,"beta":0.05,"limit_worse":3.912023,"limit_ni":2.995732,"margin":1.5,"log_e_worse":18.892488,"log_e_ni":-3.798262,"interval":[6.778244,1000.0]}
    --- stderr
    roll back: canary errors 10 of 20 (50.0 %), stable 2 of 180 (1.1 %): at least 6.78x the odds; evidence over 1,000,000:1, limit 50:1
    "#);
    });
}

/// Some editors put it before the first line; it says nothing.
#[test]
fn a_file_with_a_byte_order_mark_is_read_without_it() {
    let minute = r#"{"t":0,"canary":{"n":10,"e":10},"stable":{"n":90,"e":1}}"#;
    let recorded = r#"{"recorded":{}}"#;
    for lines in [&[minute][..], &["", minute], &[recorded]] {
        let plain = minutes(lines);
        let said = refit(plain.path(), &["canary", "replay", "minutes.ndjson"]);
        let marked = minutes(lines);
        let text = format!("\u{feff}{}", lines.join("\n"));
        std::fs::write(marked.path().join("minutes.ndjson"), text).expect("writable");
        assert_eq!(refit(marked.path(), &["canary", "replay", "minutes.ndjson"]), said);
    }
}

#[test]
fn a_line_that_makes_no_sense_is_an_error_and_nothing_is_decided() {
    let bad = r#"{"t":0,"canary":{"n":10,"e":10},"stable":{"n":90,"e":1}}"#;
    let dir = minutes(&[bad, "garbage", bad]);
    let text = refit(dir.path(), &["canary", "replay", "minutes.ndjson"]);
    assert!(!text.contains("decision"), "{text}");
    let told = text.split("--- stderr\n").nth(1).unwrap_or_default();
    assert_snapshot!(format!("{}{told}", &text[..13]), @r"
    exit code: 2
    error: cannot replay minutes.ndjson: line 2: expected value (column 1)
    hint: nothing is decided; mend the line and replay the whole file
    ");
}

#[test]
fn nothing_to_replay_and_levels_that_mean_nothing_are_mistakes() {
    let dir = minutes(&[]);
    assert_snapshot!(refit(dir.path(), &["canary", "replay", "minutes.ndjson"]), @r"
    exit code: 2
    --- stderr
    error: cannot replay: there are no minutes
    hint: `refit canary replay --help` shows their form
    ");
    for wrong in
        [["--alpha", "2"], ["--beta", "0"], ["--margin", "0.5"], ["--min-table", "2"], ["--phi", "NaN"]]
    {
        let text = refit(dir.path(), &["canary", "replay", "minutes.ndjson", wrong[0], wrong[1]]);
        assert!(text.starts_with("exit code: 2\n") && text.contains(wrong[0]), "{text}");
    }
}

#[test]
fn a_run_without_a_canary_gets_no_more_time() {
    let dir = minutes(&[]);
    refit(dir.path(), &["init"]);
    assert!(refit(dir.path(), &["trigger", "retrain"]).starts_with("exit code: 0\n"));
    insta::with_settings!({filters => steady()}, {
        assert_snapshot!(refit(dir.path(), &["canary", "extend", "last", "--by", "24h"]), @r"
        exit code: 2
        --- stderr
        error: run [run] has no canary
        hint: `refit run ls` lists the runs, `refit run show RUN` their steps
        ");
        assert_snapshot!(refit(dir.path(), &["canary", "extend", "last", "--by", "day"]), @r"
        exit code: 2
        --- stderr
        error: invalid value 'day' for '--by <TIME>': write a number and a unit, such as `30m`, `24h`, `7d` or `1h30m`

        For more information, try '--help'.
        ");
    });
}

#[test]
fn a_plan_says_what_a_canary_can_show_and_what_would_help() {
    let dir = minutes(&[]);
    let much =
        ["canary", "plan", "--traffic", "100/m", "--base-rate", "1%", "--alpha", "0.01", "--margin", "50%"];
    let text = refit(dir.path(), &much);
    assert!(text.starts_with("exit code: 0\n") && text.contains("1.42x and more"), "{text}");
    let little = ["canary", "plan", "--traffic", "100/d", "--base-rate", "2%", "--json"];
    let text = refit(dir.path(), &little);
    assert!(text.contains("\"underpowered\": true") && text.contains("\"simulated\": true"), "{text}");
    let text = refit(dir.path(), &["canary", "plan", "--traffic", "many", "--base-rate", "2%"]);
    assert!(text.starts_with("exit code: 2\n"), "{text}");
}
