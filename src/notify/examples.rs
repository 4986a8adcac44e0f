//! One message of each kind with the facts of an imagined retrain, for `refit notify preview`: what
//! will come, before it comes.

use serde_json::{Map, Value, json};

use super::facts::Facts;
use crate::domain::id::ModelName;
use crate::domain::workflow::{Mode, Moment};

/// The kinds that can be shown, in the order of a run's life. `progress` is the message that follows a run.
pub const KINDS: [&str; 18] = [
    "started",
    "progress",
    "needs_approval",
    "canary_started",
    "promoted",
    "first_version",
    "promoted_by_hand",
    "rejected",
    "rolled_back",
    "rolled_back_by_hand",
    "held",
    "frozen",
    "failed",
    "cancelled",
    "skipped",
    "succeeded",
    "alert",
    "message",
];

/// The facts of an example of `kind` in a workflow of this `mode`; nothing for a word that is no kind.
pub fn facts(kind: &str, mode: Mode) -> Option<Facts> {
    let (moment, own) = of(kind)?;
    let mut facts = common();
    // What changes what serves comes in `act` alone, and is shown as it would come then.
    if !touches_a_target(moment) {
        facts.insert("mode".to_owned(), json!(mode));
    }
    if matches!(moment, Moment::Promoted | Moment::Rejected | Moment::RolledBack | Moment::Held) {
        facts.insert("links".to_owned(), json!([{"label": "Read the receipt", "url": RECEIPT}]));
    }
    for (key, value) in own.as_object().cloned().unwrap_or_default() {
        facts.insert(key, value);
    }
    let model: ModelName = "race-times".parse().ok()?;
    let by_hand = facts.contains_key("by");
    let run = "019a7d3c-5b7e-7c21-9d58-3f2a9c41e07b".parse().ok().filter(|_| !by_hand);
    Some(Facts::about(&model, run, moment, facts))
}

fn common() -> Map<String, Value> {
    let facts = json!({
        "workflow": "retrain",
        "mode": "act",
        "version": "2026-11-22",
        "champion": "2026-11-15",
        "metrics": [
            {"name": "mae", "candidate": 512.25, "champion": 540.0, "better": "lower"},
            {"name": "r2", "candidate": 0.912, "champion": 0.905, "better": "higher"},
            {"name": "rows", "candidate": 21_034.0, "champion": 20_410.0},
        ],
        "verdicts": [
            {"verdict": "pass", "sentence": "mae is 512.25; at most 600 allowed"},
            {"verdict": "pass", "sentence": "r2 is 0.912; at least 0.85 allowed"},
        ],
        "next": NEXT_RUN,
        "command": "refit run show 9c41e07b",
    });
    facts.as_object().cloned().unwrap_or_default()
}

fn touches_a_target(moment: Moment) -> bool {
    match moment {
        Moment::CanaryStarted | Moment::Promoted | Moment::RolledBack | Moment::Held | Moment::Frozen => true,
        Moment::Started
        | Moment::NeedsApproval
        | Moment::Rejected
        | Moment::Failed
        | Moment::Cancelled
        | Moment::Skipped
        | Moment::Succeeded
        | Moment::Alert
        | Moment::Message => false,
    }
}

const RECEIPT: &str = "https://refit.example.com/v1/runs/019a7d3c-5b7e-7c21-9d58-3f2a9c41e07b/receipt";
const NEXT_RUN: &str = "the next run is due on Sunday, 2026-11-29 02:00 UTC";
const STABLE: &str = "2026-11-15 serves all traffic since 2026-11-22 10:42 UTC.";

/// What a person changed: no run is told of, and nothing was measured for it.
fn by_hand(generation: u32, mut facts: Value) -> Value {
    let receipt =
        format!("https://refit.example.com/v1/models/race-times/receipts/{generation}?target=production");
    facts["by"] = json!("anna");
    facts["metrics"] = json!([]);
    facts["verdicts"] = json!([]);
    facts["links"] = json!([{"label": "Read the receipt", "url": receipt}]);
    facts["command"] = json!("refit model history race-times");
    facts
}

fn of(kind: &str) -> Option<(Moment, Value)> {
    let worse = json!([
        {"name": "mae", "candidate": 648.4, "champion": 540.0, "better": "lower"},
        {"name": "r2", "candidate": 0.87, "champion": 0.905, "better": "higher"},
    ]);
    Some(match kind {
        "started" => (
            Moment::Started,
            json!({
                "serving": "2026-11-15 serves all traffic since 2026-11-15 04:10 UTC.",
                "metrics": [], "verdicts": [], "version": null, "next": null,
            }),
        ),
        "progress" => (
            Moment::CanaryStarted,
            json!({
                "headline": "race-times 2026-11-22 is on canary at 10 %",
                "serving": "2026-11-22 serves 10 % of the traffic since 2026-11-22 02:31 UTC, 2026-11-15 the rest.",
                "progress": [
                    {"step": "data", "state": "done", "said": "21,034 rows, 3.1 MiB"},
                    {"step": "train", "state": "done", "said": "mae 512.25, r2 0.912, 18 files, 144.0 MiB"},
                    {"step": "gate", "state": "done", "said": "pass: mae is 512.25; at most 600 allowed"},
                    {"step": "publish", "state": "done", "said": "2026-11-22"},
                    {"step": "canary", "state": "done", "said": "2026-11-22 gets 10 % of production"},
                    {"step": "watch", "state": "waiting", "said": "until 2026-11-23 02:31 UTC at the latest"},
                    {"step": "compare", "state": "pending"},
                    {"step": "promote", "state": "pending"},
                ],
                "next": "it is watched for at least 1 day, at most 3 days; should it harm, it is taken back at once",
            }),
        ),
        "needs_approval" => (
            Moment::NeedsApproval,
            json!({
                "serving": "2026-11-15 serves all traffic since 2026-11-15 04:10 UTC.",
                "message": "Look at the predictions for the holidays first.",
                "todo": "Look at it and decide: `refit run approve 9c41e07b`, or `refit run reject 9c41e07b`.",
                "next": "if nobody approves until 2026-11-24 04:00 UTC, it is rejected",
            }),
        ),
        "canary_started" => (
            Moment::CanaryStarted,
            json!({
                "serving": "2026-11-22 serves 10 % of the traffic since 2026-11-22 02:31 UTC, 2026-11-15 the rest.",
                "next": "it is watched for at least 1 day, at most 3 days; should it harm, it is taken back at once",
            }),
        ),
        "promoted" => (
            Moment::Promoted,
            json!({
                "serving": "2026-11-22 serves all traffic since 2026-11-23 02:31 UTC.",
                "reason": "error_rate 0.4 % of 1,024 requests, 2026-11-15 had 0.5 % of 9,180: not worse",
            }),
        ),
        "first_version" => (
            Moment::Promoted,
            json!({
                "serving": "2026-11-22 serves all traffic since 2026-11-22 02:31 UTC.",
                "reason": "approved by sam",
                "first": true,
                "champion": null,
                "metrics": [
                    {"name": "mae", "candidate": 512.25, "better": "lower"},
                    {"name": "r2", "candidate": 0.912, "better": "higher"},
                ],
            }),
        ),
        "promoted_by_hand" => (
            Moment::Promoted,
            by_hand(
                4,
                json!({
                    "serving": "2026-11-22 is to serve all traffic of `production` instead of 2026-11-15, from 2026-11-23 09:14 UTC on.",
                    "reason": "the fair begins today, and its prices are known to this one only",
                    "next": "it is not watched; should it harm, `refit rollback` takes it back",
                }),
            ),
        ),
        "rejected" => (
            Moment::Rejected,
            json!({
                "serving": "2026-11-15 serves all traffic since 2026-11-15 04:10 UTC.",
                "reason": "mae is 648.4; at most 600 allowed",
                "metrics": worse,
                "verdicts": [
                    {"verdict": "fail", "sentence": "mae is 648.4; at most 600 allowed"},
                    {"verdict": "pass", "sentence": "r2 is 0.87; at least 0.85 allowed"},
                ],
            }),
        ),
        "rolled_back" => (
            Moment::RolledBack,
            json!({
                "serving": STABLE,
                "reason": "error_rate 9.1 % of 231 requests; at most 5 % is acceptable, and chance explains this in less than 1 case of 1,000",
            }),
        ),
        "rolled_back_by_hand" => (
            Moment::RolledBack,
            by_hand(
                5,
                json!({
                    "serving": "2026-11-15 is to serve all traffic of `production` instead of 2026-11-22, from 2026-11-23 11:40 UTC on.",
                    "reason": "customers call: sprint times are off by minutes",
                    "next": null,
                }),
            ),
        ),
        "held" => (
            Moment::Held,
            json!({
                "serving": "2026-11-22 serves 10 % of the traffic since 2026-11-22 02:31 UTC, 2026-11-15 the rest.",
                "todo": "The evidence does not decide. Look at it: `refit run show 9c41e07b`. Then promote it: `refit promote 2026-11-22`, or take it back: `refit rollback`.",
                "reason": "after 3 days: error_rate 0.9 % of 212 requests, 2026-11-15 had 0.5 % of 1,930; too few to tell",
                "next": "if nobody decides until 2026-12-01 02:31 UTC, it is taken back",
            }),
        ),
        "frozen" => (
            Moment::Frozen,
            json!({
                "serving": "2026-11-22 serves 10 % of the traffic since 2026-11-22 02:31 UTC, 2026-11-15 the rest.",
                "reason": "frozen until 2026-11-30 00:00 UTC, by ana: Black Friday",
                "next": "once the freeze is over it is promoted, if the evidence still allows it; `refit promote 2026-11-22 --despite-freeze` promotes it now",
            }),
        ),
        "failed" => (
            Moment::Failed,
            json!({
                "serving": "2026-11-15 serves all traffic since 2026-11-15 04:10 UTC.",
                "todo": "To do: read its log with `refit run logs 9c41e07b`. Then start it again: `refit trigger retrain`.",
                "reason": "step `train` failed after 3 attempts: it ended with exit code 1: MemoryError",
                "version": null,
                "metrics": [],
                "verdicts": [],
            }),
        ),
        "cancelled" => (
            Moment::Cancelled,
            json!({"serving": STABLE, "reason": "cancelled by sam: wrong data", "metrics": [], "verdicts": []}),
        ),
        "skipped" => (
            Moment::Skipped,
            json!({"reason": "no new results since 2026-11-15", "version": null, "metrics": [], "verdicts": []}),
        ),
        "succeeded" => (
            Moment::Succeeded,
            json!({
                "mode": "advise",
                "serving": "2026-11-15 serves all traffic since 2026-11-15 04:10 UTC.",
                "advice": "In `mode: act`, 2026-11-22 would now get 10 % of `production` beside 2026-11-15, \
                           and the evidence would decide.",
            }),
        ),
        "alert" => (
            Moment::Alert,
            json!({
                "serving": "2026-11-15 serves all traffic since 2026-11-15 04:10 UTC.",
                "todo": "Check that the app routes by the release document and reports what it serves.",
                "reason": "2026-11-22 reports nothing: 31 requests were expected in the last 2 hours",
                "metrics": [],
                "verdicts": [],
                "next": null,
            }),
        ),
        "message" => (
            Moment::Message,
            json!({
                "subject": "Data of 21,034 results is in",
                "message": "The retrain goes on with it.",
                "metrics": [],
                "verdicts": [],
                "next": null,
            }),
        ),
        _ => return None,
    })
}
