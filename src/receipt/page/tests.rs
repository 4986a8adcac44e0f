use insta::assert_snapshot;

use super::*;
use crate::domain::canary::{ArmView, CanaryState, CanaryView, LabelsView, UnlabelledView};
use crate::domain::id::{CanaryId, Generation};
use crate::domain::metric::Metrics;
use crate::domain::receipt::{
    CanaryFacts, Change, ChangeReceipt, DataFacts, Person, Reproduce, ScoredVersion, Since, TrainingFacts,
};
use crate::domain::release::{Assignment, CanaryServed, ReleaseActor, Served};
use crate::domain::version::VersionState;
use crate::domain::workflow::Mode;
use crate::domain::workflow::step::{Margin, OnlineMetric};
use crate::domain::workflow::units::BasisPoints;

fn at(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("a name")
}

fn sha(letter: char) -> String {
    letter.to_string().repeat(64)
}

/// A version whose errors rose tenfold on canary.
fn rolled_back() -> Receipt {
    let rule = |rule: &str, sentence: &str| RuleResult {
        rule: rule.to_owned(),
        metric: name("mae"),
        segment: None,
        verdict: Verdict::Pass,
        vs_champion: false,
        own_holdout: false,
        value: Some(512.25),
        limit: Some(600.0),
        champion: None,
        interval: None,
        n: Some(21_034),
        sentence: sentence.to_owned(),
    };
    let arm = |n, events| ArmView { n, events: Some(events), value: Some(events as f64 / n as f64) };
    let errors = RuleView {
        metric: OnlineMetric::ErrorRate,
        role: Role::Gating,
        weight: Some(1.0),
        canary: arm(231, 21),
        stable: arm(2079, 18),
        log_e_worse: 9.3,
        log_e_not_worse: -4.1,
        limit_not_worse: 20f64.ln(),
        margin: Margin::Ratio(1.5),
        odds_ratio: Some((4.2, 31.5)),
        dispersion: Some(1.0),
        slow_above_ms: None,
        clip: None,
        acceptable_below: None,
        accepted: false,
    };
    let run = name("019a0000-0000-7000-8000-000000000001");
    let reason = "canary errors 21 of 231 (9.1 %), stable 18 of 2,079 (0.9 %): at least 4.2x the odds";
    let view = CanaryView {
        id: CanaryId::generate(),
        run,
        target: name("production"),
        version: name("2026-11-22"),
        champion: name("2026-11-15"),
        state: CanaryState::RolledBack,
        verdict: Verdict::Fail,
        reason: reason.to_owned(),
        stage: 0,
        stages: 1,
        share: BasisPoints(1000),
        started_at: at("2026-11-22T02:31:00Z"),
        looked_at: Some(at("2026-11-22T05:40:00Z")),
        deadline: Some(at("2026-11-25T02:31:00Z")),
        extensions: vec![],
        evidence_against: Some(9.3),
        limit_against: 50f64.ln(),
        forecast: None,
        rules: vec![errors],
        labels: None,
        unlabelled: None,
        late_pairs: 0,
    };
    let mut receipt = Receipt {
        decision: Decision::RolledBack,
        headline: "2026-11-22 of race-times was rolled back".to_owned(),
        reason: reason.to_owned(),
        decided_at: Some(at("2026-11-22T05:40:00Z")),
        run,
        began_at: at("2026-11-22T02:00:00Z"),
        started_by: "schedule".to_owned(),
        workflow: name("retrain"),
        mode: Some(Mode::Act),
        model: name("race-times"),
        version: Some(name("2026-11-22")),
        champion: Some(name("2026-11-15")),
        target: Some(name("production")),
        data: vec![DataFacts { step: name("data"), rows: 184_210, sha256: sha('d'), violations: vec![] }],
        training: vec![TrainingFacts {
            step: name("train"),
            seconds: 81.0,
            metrics: Metrics {
                values: [(name("mae"), 512.25), (name("r2"), 0.912)].into(),
                ..Metrics::default()
            },
            errors_sha256: Some(sha('e')),
        }],
        gates: vec![GateFacts {
            step: name("gate"),
            verdict: Verdict::Pass,
            rules: vec![
                rule("mae <= 600", "mae is 512.25; at most 600 allowed"),
                RuleResult {
                    vs_champion: true,
                    champion: Some(540.0),
                    interval: Some((-0.081, -0.022)),
                    ..rule(
                        "mae may be worse than the champion by 2 %",
                        "mae is 512.25, the champion's 540: 5.1 % better",
                    )
                },
            ],
            warnings: vec!["mae: a jump of this size is rare: look for a leak".to_owned()],
            seed: 42,
        }],
        canary: Some(CanaryFacts {
            view: view.clone(),
            alpha: 0.02,
            beta: 0.05,
            ended_at: Some(at("2026-11-22T05:40:00Z")),
        }),
        people: vec![Person {
            name: "sam".to_owned(),
            did: "approved".to_owned(),
            step: name("ask"),
            at: Some(at("2026-11-22T02:30:00Z")),
            reason: Some("looks right".to_owned()),
        }],
        changes: vec![Change {
            at: at("2026-11-22T05:40:00Z"),
            what: "production serves 2026-11-15 (generation 5)".to_owned(),
            who: "refit".to_owned(),
            why: reason.to_owned(),
            evidence: Some(serde_json::from_value(json!(view)).expect("evidence")),
            configuration: Some(sha('c')),
        }],
        limits: vec![],
        reproduce: Reproduce {
            workflow_file: "workflows/retrain.yaml".to_owned(),
            configuration_sha256: sha('c'),
            manifest_sha256: Some(sha('f')),
            provenance: json!({
                "git": {"commit": "3f2a9c4", "dirty": false}, "command": "python3 train.py",
                "interpreter": null, "data": {"rows": 184_210},
            }),
            commands: vec!["refit model verify 2026-11-22".to_owned()],
            not_again: vec!["When rows came that were late is not kept.".to_owned()],
        },
    };
    receipt.limits = receipt.limits_of();
    receipt
}

fn pages() -> Pages {
    Pages::new(None).expect("built-in templates")
}

#[test]
fn a_receipt_in_markdown_says_what_was_compared_and_what_it_does_not_promise() {
    assert_snapshot!("rolled_back.md", pages().markdown(&rolled_back()).expect("renders"));
}

#[test]
fn a_receipt_in_html_draws_the_limits() {
    assert_snapshot!("rolled_back.html", pages().html(&rolled_back()).expect("renders"));
}

const NEWEST: Since = Since { is_newest: true, before: Some(VersionState::Sealed), went_back: false };

/// Somebody promotes the version although its canary fails.
fn promoted_by_hand() -> ChangeReceipt {
    let served =
        |version: &str| Served { version: name(version), base_url: String::new(), manifest_sha256: sha('f') };
    let scored = |version: &str, mae: f64| ScoredVersion {
        version: name(version),
        run: None,
        manifest_sha256: sha('f'),
        metrics: Metrics { values: [(name("mae"), mae)].into(), ..Metrics::default() },
    };
    let before = Assignment { champion: Some(served("2026-11-15")), ..Assignment::default() };
    let after = Assignment {
        champion: Some(served("2026-11-22")),
        previous: before.champion.clone(),
        ..Assignment::default()
    };
    let (model, target) = (name("race-times"), name("production"));
    let mut receipt = ChangeReceipt {
        headline: ChangeReceipt::headline_of((&model, &target), Some(&before), &after),
        reason: "the errors are of one client".to_owned(),
        at: at("2026-11-22T05:45:00Z"),
        actor: ReleaseActor::Human { name: "sam".to_owned() },
        model,
        target,
        generation: Generation(5),
        after,
        before: Some(before),
        serves: Some(scored("2026-11-22", 512.25)),
        served: Some(scored("2026-11-15", 540.0)),
        evidence: rolled_back().changes[0].evidence.clone(),
        configuration: Some(sha('c')),
        limits: vec![],
        commands: vec!["refit model history race-times".to_owned()],
        undo: None,
        no_undo: None,
    };
    receipt.limits = receipt.limits_of();
    receipt.undo = receipt.undo_of(NEWEST).ok();
    receipt
}

#[test]
fn nothing_offers_to_serve_what_is_marked_bad_or_was_left_long_ago() {
    let receipt = promoted_by_hand();
    let rollback = "refit rollback 2026-11-15 --model race-times --target production".to_owned();
    assert_eq!(receipt.undo_of(NEWEST), Ok(rollback.clone()));
    let back = receipt.undo_of(Since { went_back: true, ..NEWEST });
    assert_eq!(back, Ok(rollback.replace("rollback", "promote")), "forward again");
    let bad = receipt.undo_of(Since { before: Some(VersionState::Bad), went_back: true, ..NEWEST });
    assert_snapshot!(bad.expect_err("none"), @"Nothing takes it back: 2026-11-15, which served before, is marked bad.");
    let old = receipt.undo_of(Since { is_newest: false, ..NEWEST });
    assert_snapshot!(old.expect_err("none"), @"Nothing takes it back: the release was changed since, as its history shows.");
    let first = ChangeReceipt { before: None, ..receipt };
    assert_snapshot!(first.undo_of(NEWEST).expect_err("none"), @"Nothing takes it back: nothing was served before.");
}

#[test]
fn a_change_by_hand_has_both_pages() {
    assert_snapshot!("by_hand.md", pages().markdown(&promoted_by_hand()).expect("renders"));
    assert_snapshot!("by_hand.html", pages().html(&promoted_by_hand()).expect("renders"));
}

#[test]
fn a_canary_that_was_taken_off_by_hand_does_not_come_back() {
    let by_hand = promoted_by_hand();
    let after = by_hand.before.clone().expect("it has one");
    let canary = CanaryServed {
        served: by_hand.after.champion.clone().expect("serves"),
        basis_points: BasisPoints(1000),
        salt: String::new(),
        valid_until: by_hand.at,
    };
    let before = Assignment { canary: Some(canary), ..after.clone() };
    let mut receipt = ChangeReceipt { after, before: Some(before), evidence: None, ..by_hand };
    let names = (&receipt.model, &receipt.target);
    receipt.headline = ChangeReceipt::headline_of(names, receipt.before.as_ref(), &receipt.after);
    assert_eq!(receipt.headline, "The canary 2026-11-22 of race-times was taken off production");
    (receipt.undo, receipt.no_undo) = (None, receipt.undo_of(NEWEST).err());
    let page = pages().markdown(&receipt).expect("renders");
    assert!(page.contains("a canary that was taken off does not come out again"), "{page}");
    pages().html(&receipt).expect("renders");
}

#[test]
fn missing_truths_have_a_line_in_both() {
    let mut receipt = rolled_back();
    let arm = |n, events| ArmView { n, events: Some(events), value: Some(events as f64 / n as f64) };
    let view = &mut receipt.canary.as_mut().expect("it has one").view;
    view.labels = Some(LabelsView {
        horizon_s: 7200,
        canary: arm(200, 120),
        stable: arm(1800, 20),
        log_e_worse: 12.0,
        limit: 1000f64.ln(),
        odds_ratio: (50.0, 200.0),
    });
    let markdown = pages().markdown(&receipt).expect("renders");
    let line = markdown.lines().find(|line| line.contains("without truth")).expect("a line");
    assert_snapshot!(line, @"| requests without truth after 2h | 120 of 200 (60.0 %) | 20 of 1,800 (1.1 %) | 50.0x to 200.0x | 162,754:1, not promoted at 1,000:1 | |");
    let html = pages().html(&receipt).expect("renders");
    assert!(
        html.contains("Evidence that more of 2026-11-22 are missing: 162,754:1; not promoted at 1,000:1"),
        "{html}"
    );
}

#[test]
fn truths_that_are_not_there_yet_have_a_line_in_both() {
    let mut receipt = rolled_back();
    let arm = |n, events| ArmView { n, events: Some(events), value: Some(events as f64 / n as f64) };
    let view = &mut receipt.canary.as_mut().expect("it has one").view;
    view.unlabelled = Some(UnlabelledView { canary: arm(200, 120), stable: arm(1800, 20) });
    let markdown = pages().markdown(&receipt).expect("renders");
    let line = markdown.lines().find(|line| line.contains("without truth")).expect("a line");
    assert_snapshot!(line, @"| requests without truth so far | 120 of 200 (60.0 %) | 20 of 1,800 (1.1 %) | – | | |");
    let html = pages().html(&receipt).expect("renders");
    assert!(html.contains("<dd>120 of 200 (60.0&nbsp;%)</dd>"), "{html}");
}

#[test]
fn a_rejection_before_anything_was_trained_has_a_page_too() {
    let mut receipt = Receipt {
        decision: Decision::Rejected,
        version: None,
        champion: None,
        training: vec![],
        gates: vec![],
        canary: None,
        people: vec![],
        changes: vec![],
        headline: Receipt::headline_of(Decision::Rejected, None, &name("race-times")),
        ..rolled_back()
    };
    receipt.data[0].violations = vec!["finish_s: 2.1 % are empty; 1 % allowed".to_owned()];
    let page = pages().markdown(&receipt).expect("renders");
    assert!(page.starts_with("# A new version of race-times was rejected\n"), "{page}");
    assert!(page.contains(r"not as expected:** finish\_s: 2.1 % are empty"), "{page}");
    assert!(page.contains("What was checked before"), "{page}");
    pages().html(&receipt).expect("renders");
    receipt.data = vec![];
    for page in [pages().markdown(&receipt), pages().html(&receipt)] {
        let page = page.expect("renders");
        assert!(!page.contains("What was checked before") && page.contains("What this does not"), "{page}");
    }
}

#[test]
fn hostile_text_stays_text() {
    let hostile = "x\r\n# Promoted\n<script>alert(1)</script> [y](javascript:z) | ` \u{202e} {{headline}}";
    let mut receipt = rolled_back();
    receipt.reason = hostile.to_owned();
    receipt.started_by = hostile.to_owned();
    receipt.gates[0].rules[0].sentence = hostile.to_owned();
    receipt.gates[0].warnings = vec![hostile.to_owned()];
    receipt.data[0].violations = vec![hostile.to_owned()];
    receipt.people[0].name = hostile.to_owned();
    receipt.people[0].reason = Some(hostile.to_owned());
    receipt.changes[0].why = hostile.to_owned();
    let mut change = promoted_by_hand();
    change.reason = hostile.to_owned();
    change.actor = ReleaseActor::Human { name: hostile.to_owned() };
    let html = pages().html(&change).expect("renders");
    assert!(!html.contains("<script") && !html.contains('\u{202e}'), "{html}");
    let markdown = pages().markdown(&change).expect("renders");
    assert_eq!(markdown.lines().filter(|line| line.starts_with("# ")).count(), 1, "{markdown}");
    receipt.reproduce.provenance = json!({hostile: hostile});
    let html = pages().html(&receipt).expect("renders");
    assert!(!html.contains("<script") && !html.contains('\u{202e}'), "{html}");
    let markdown = pages().markdown(&receipt).expect("renders");
    let unescaped = markdown.replace(r"\<", "").replace(r"\[", "");
    assert!(!unescaped.contains("<script") && !unescaped.contains("[y") && !unescaped.contains('\u{202e}'));
    assert_eq!(markdown.lines().filter(|line| line.starts_with("# ")).count(), 1, "{markdown}");
}

#[test]
fn text_of_a_trainer_calls_nobody_and_places_no_link() {
    let texts = [
        "@team and ann@example.com, see https://evil.example/?a=1&b=2",
        "&#64;team &lt;b&gt; www.evil.example WWW.evil.example mailto:ann javascript:alert(1)",
        "_sloped_ __bold__ ~~gone~~ *bold* `code` # no heading ![x](y) a|b",
        "05:40 UTC, 10,938:1, mae: 5.1 % better, a w. b",
    ];
    let safe: Vec<String> = texts.iter().map(|text| markdown_text(text)).collect();
    assert_snapshot!(safe.join("\n"), @r"
    @&#8203;team and ann@&#8203;example.com, see https:&#8203;//evil.example/?a=1&amp;b=2
    &amp;\#64;team &amp;lt;b&amp;gt; www&#8203;.evil.example WWW&#8203;.evil.example mailto:&#8203;ann javascript:&#8203;alert(1)
    \_sloped\_ \_\_bold\_\_ \~\~gone\~\~ \*bold\* \`code\` \# no heading \!\[x\](y) a\|b
    05:40 UTC, 10,938:1, mae: 5.1 % better, a w. b
    ");
}

#[test]
fn a_directory_replaces_a_page_and_a_wrong_one_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(dir.path().join("receipt")).expect("made");
    let path = dir.path().join("receipt/page.md.hbs");
    std::fs::write(&path, "{{label}}: {{reason}}\n").expect("written");
    let pages = Pages::new(Some(dir.path())).expect("parses");
    assert!(pages.markdown(&rolled_back()).expect("renders").starts_with("Rolled back: canary errors 21"));
    std::fs::write(&path, "{{because}}").expect("written");
    let error = Pages::new(Some(dir.path())).expect("parses").markdown(&rolled_back()).expect_err("no fact");
    assert!(error.to_string().contains("receipt/page.md.hbs") && error.to_string().contains("because"));
}
