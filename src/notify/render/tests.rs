use insta::assert_snapshot;
use serde_json::json;

use super::*;
use crate::domain::workflow::{Mode, Recipient};
use crate::store::Notice;

fn message(moment: Moment, facts: Value) -> Message {
    let notice = Notice {
        key: "k/1".to_owned(),
        run: Some("019a0000-0000-7000-8000-000000000001".parse().expect("an id")),
        model: "race-times".parse().expect("a name"),
        moment,
        to: Recipient::Console,
        facts,
    };
    let renderer = Renderer::new(None).expect("built-in templates");
    renderer.render(&notice.key, &Facts::of(&notice), &[]).expect("renders")
}

fn rolled_back() -> Value {
    json!({
        "workflow": "retrain",
        "version": "2026-11-21",
        "reason": "error_rate 9.1 % of 2,310 requests, at most 5 % is acceptable",
        "serving": "2026-11-14 serves all traffic since 10:42 UTC.",
        "next": "the next run is on Sunday, 02:00 UTC",
        "metrics": [
            {"name": "mae", "candidate": 512.25, "champion": 540.0},
            {"name": "r2", "candidate": 0.91},
        ],
        "verdicts": ["error_rate: fail", "latency_slow_share: pass"],
        "links": [{"label": "Run", "url": "https://refit.example/runs/1"}],
        "mode": "act",
    })
}

#[test]
fn who_is_to_approve_reads_what_the_workflow_says() {
    let said = message(Moment::NeedsApproval, json!({"workflow": "w", "message": "Is the fair over?"}));
    let blocks = said.blocks.expect("blocks").to_string();
    for text in [&said.text, &blocks, &said.html.expect("html")] {
        assert!(text.contains("Is the fair over?"), "{text}");
    }
}

#[test]
fn a_rollback_opens_with_what_serves_now_and_what_is_to_be_done() {
    let mail = message(Moment::RolledBack, rolled_back());
    assert_snapshot!(mail.subject, @"race-times 2026-11-21 was rolled back");
    assert_snapshot!("rolled_back.txt", mail.text);
    assert_snapshot!("rolled_back.html", mail.html.expect("html"));
    let blocks = serde_json::to_string_pretty(&mail.blocks).expect("JSON");
    assert_snapshot!("rolled_back.slack", blocks);
}

#[test]
fn a_message_of_almost_no_facts_still_says_what_happened() {
    let said: Vec<String> = MOMENTS
        .iter()
        .map(|moment| {
            let message = message(*moment, json!({"workflow": "retrain"}));
            assert!(message.blocks.as_ref().and_then(Value::as_array).is_some_and(|blocks| blocks.len() > 1));
            format!("{} | {}", message.subject, message.text.lines().next().unwrap_or_default())
        })
        .collect();
    assert_snapshot!("every_moment", said.join("\n"));
    message(Moment::Promoted, json!("no object at all"));
    message(Moment::Promoted, json!({"metrics": 7, "links": "x", "steps": [], "version": {"a": 1}}));
}

#[test]
fn what_a_notice_leaves_out_is_read_from_the_steps() {
    let steps = json!({
        "train": {"metrics": {"values": {"mae": 512.0}}, "files": []},
        "gate": {"rules": [{"sentence": "mae 512 is at most 600"}], "champion": "2026-11-14"},
        "publish": {"version": "2026-11-21", "manifest_sha256": "00"},
    });
    let mail = message(Moment::RolledBack, json!({"workflow": "retrain", "steps": steps, "mode": "advise"}));
    assert_snapshot!("from_steps.txt", mail.text);
}

#[test]
fn what_began_says_what_its_mode_does_and_does_not() {
    let facts = |mode: &'static str| json!({"workflow": "retrain", "mode": mode, "serving": "v1 serves all traffic."});
    let began = |mode| {
        let mail = message(Moment::Started, facts(mode));
        let lead = mail.text.split("\n\n").next().unwrap_or_default().to_owned();
        assert!(mail.blocks.expect("blocks").to_string().contains(&lead), "Slack's says the same");
        lead
    };
    assert_snapshot!(began("act"), @"v1 serves all traffic. Nothing has to be done.");
    assert_snapshot!(began("advise"), @"Mode advise: every step runs, and none changes what serves; at the end it is said what `mode: act` would have done. v1 serves all traffic. Nothing has to be done.");
    assert_snapshot!(began("observe"), @"Mode observe: refit fetches, trains and judges, and changes nothing that serves. v1 serves all traffic. Nothing has to be done.");
    let renderer = Renderer::new(None).expect("built-in templates");
    let board = |moment, mode: &'static str| {
        let mut given = facts(mode).as_object().cloned().expect("an object");
        given.insert("headline".to_owned(), json!("race-times: retrain is at `train` (step 2 of 9)"));
        let facts = Facts::about(&"race-times".parse().expect("a name"), None, moment, given);
        renderer.progress("k", &facts).expect("renders").text
    };
    assert!(board(Moment::Started, "observe").starts_with("Mode observe: refit fetches"));
    assert!(board(Moment::Started, "act").starts_with("v1 serves"));
    assert!(board(Moment::Succeeded, "advise").starts_with("v1 serves"), "it is over");
}

const HOSTILE: &str = "x\r\nBcc: everybody@example.com\n<script>alert(1)</script> <!channel> \
                       <https://evil.example|click> \"},{\"type\":\"x\" {{model}} \u{202e}\u{0007} & \\";

#[test]
fn hostile_text_stays_text() {
    let facts = json!({
        "workflow": "retrain", "version": HOSTILE, "reason": HOSTILE, "subject": HOSTILE, "message": HOSTILE,
        "verdicts": [HOSTILE], "metrics": [{"name": HOSTILE, "candidate": 1}],
        "links": [
            {"label": HOSTILE, "url": "https://ok.example/"},
            {"label": "bad", "url": "javascript:alert(1)"},
            {"label": "bad", "url": "https://x.example/|a>"},
        ],
    });
    for moment in MOMENTS {
        let message = message(moment, facts.clone());
        assert!(!message.subject.contains(['\r', '\n', '\u{7}', '\u{202e}']), "{}", message.subject);
        assert!(!message.text.contains(['\r', '\u{7}', '\u{202e}']));
        let html = message.html.expect("html");
        assert!(!html.contains("<script") && !html.contains("javascript:"), "{html}");
        let blocks = message.blocks.expect("blocks");
        for block in blocks.as_array().expect("a list") {
            let kind = block["type"].as_str().expect("a type");
            assert!(["header", "section", "context"].contains(&kind), "{block}");
            let text = block.pointer("/text/text").or_else(|| block.pointer("/elements/0/text"));
            let text = text.and_then(Value::as_str).expect("a text");
            assert!(!text.contains("<!") && !text.contains("<https://evil"), "{text}");
        }
    }
}

#[test]
fn slack_gets_no_more_than_it_takes() {
    let long = "&".repeat(5_000);
    let blocks = message(Moment::Failed, json!({"workflow": "w", "reason": long})).blocks.expect("blocks");
    let text = blocks[2]["text"]["text"].as_str().expect("a text");
    assert!(text.chars().count() <= SLACK_SECTION && text.ends_with("&amp;…"), "{}", text.len());
    let many: Vec<String> = (0..200).map(|n| format!("rule {n} holds")).collect();
    let blocks =
        message(Moment::Rejected, json!({"workflow": "w", "verdicts": many})).blocks.expect("blocks");
    let verdicts = blocks[2]["text"]["text"].as_str().expect("a text");
    assert!(verdicts.chars().count() <= SLACK_SECTION && verdicts.ends_with('…'), "{verdicts}");
    let section = |text: &str| json!({"type": "section", "text": {"type": "mrkdwn", "text": text}});
    let blocks = within_limits(json!(vec![section("x"); 60]));
    let blocks = blocks.as_array().expect("a list");
    assert_eq!(blocks.len(), SLACK_BLOCKS);
    assert!(blocks[49].to_string().contains("11 more: see the run"), "{}", blocks[49]);
    let blocks = within_limits(json!(vec![section(&"y".repeat(2_900)); 20]));
    assert!(blocks.to_string().len() < 11_000);
}

#[test]
fn a_directory_replaces_templates_and_a_wrong_one_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(dir.path().join("message")).expect("made");
    let path = dir.path().join("message/promoted.hbs");
    let facts = Facts::of(&Notice {
        key: "k".to_owned(),
        run: None,
        model: "m".parse().expect("a name"),
        moment: Moment::Promoted,
        to: Recipient::Console,
        facts: json!({"version": "v2", "steps": {"train": {"n": 7}}}),
    });
    std::fs::write(&path, "Hurra: {{version}}\nMit {{steps.train.n}} Zeilen.\n").expect("written");
    let message = Renderer::new(Some(dir.path())).expect("parses").render("k", &facts, &[]).expect("renders");
    assert_eq!(message.subject, "Hurra: v2");
    assert!(message.text.starts_with("Mit 7 Zeilen.\n"), "{}", message.text);
    std::fs::write(&path, "{{verzion}}").expect("written");
    let error =
        Renderer::new(Some(dir.path())).expect("parses").render("k", &facts, &[]).expect_err("no fact");
    assert!(error.to_string().starts_with("template message/promoted.hbs: "), "{error}");
    assert!(error.to_string().contains("verzion"), "{error}");
    std::fs::write(&path, "{{#if version}}").expect("written");
    assert!(Renderer::new(Some(dir.path())).is_err());
}

#[test]
fn a_change_is_relative_to_the_champion() {
    assert_eq!(change(110.0, 100.0).as_deref(), Some("+10.0 %"));
    assert_eq!(change(-1.0, -2.0).as_deref(), Some("+50.0 %"));
    assert_eq!(change(1.0, 0.0), None);
}

#[test]
fn examples_of_every_kind_look_as_they_should() {
    let renderer = Renderer::new(None).expect("built-in templates");
    for kind in crate::notify::examples::KINDS {
        let facts = crate::notify::examples::facts(kind, Mode::Act).expect("an example");
        let mail = renderer.render("preview", &facts, &[]).expect("renders");
        let tight = mail.text.split('%').find(|before| before.ends_with(|c: char| c.is_ascii_digit()));
        assert_eq!(tight, None, "{kind}: 5 %, not 5%");
        let looked_at = [
            "promoted",
            "first_version",
            "promoted_by_hand",
            "rejected",
            "rolled_back",
            "rolled_back_by_hand",
            "held",
            "failed",
            "needs_approval",
        ];
        if !looked_at.contains(&kind) {
            continue;
        }
        assert_snapshot!(
            format!("{kind}.example.txt"),
            format!("Subject: {}\n\n{}", mail.subject, mail.text)
        );
        assert_snapshot!(format!("{kind}.example.html"), mail.html.expect("html"));
    }
    let facts = crate::notify::examples::facts("progress", Mode::Act).expect("an example");
    let message = renderer.progress("preview", &facts).expect("renders");
    assert_snapshot!("progress.example.txt", format!("{}\n{}", message.subject, message.text));
    assert_snapshot!("progress.example.slack", serde_json::to_string_pretty(&message.blocks).expect("JSON"));
    assert_eq!(crate::notify::examples::facts("promotd", Mode::Act), None);
}

#[test]
fn prose_shows_commands_as_code_and_escapes_all_of_it() {
    let html = |reason: &str| {
        message(Moment::Failed, json!({"workflow": "w", "reason": reason})).html.expect("html")
    };
    assert!(html("type `refit <x>` now").contains(">refit &lt;x&gt;</code> now"));
    assert!(html("a ` alone & <b>").contains("a &#x60; alone &amp; &lt;b&gt;"));
}
