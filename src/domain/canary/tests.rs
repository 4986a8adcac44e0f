//! What canaries come to, over whole histories of evidence.

use std::time::Duration;

use chrono::TimeDelta;
use serde_json::Value;
use uuid::Uuid;

use super::*;
use crate::domain::evidence::{EvidenceMinute, MinuteCounts, PairedError};
use crate::domain::workflow::step::{CompareRule, Margin, OnlineMetric, Role};

mod advice;
mod forecasts;
mod labels;
mod past;
mod points;
mod properties;
mod replays;
mod silence;

fn start() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().expect("valid")
}

fn minute(n: i64) -> Timestamp {
    start() + TimeDelta::minutes(n)
}

fn rule(metric: OnlineMetric) -> CompareRule {
    CompareRule {
        at: Default::default(),
        metric,
        margin: Margin::Ratio(if metric == OnlineMetric::AbsError { 1.1 } else { 1.5 }),
        acceptable_below: None,
        never_above: None,
        label_horizon: Duration::ZERO,
        weight: None,
        role: Role::Gating,
    }
}

fn canary(rules: Vec<CompareRule>, stages: &[(u16, u64)]) -> CanaryRecord {
    let stage = |(share, minutes): &(u16, u64)| Stage {
        share: BasisPoints(*share),
        min_time: Duration::from_secs(60 * minutes),
    };
    CanaryRecord {
        id: CanaryId(Uuid::nil()),
        run: RunId(Uuid::nil()),
        model: "times".parse().expect("valid"),
        target: "production".parse().expect("valid"),
        version: "2".parse().expect("valid"),
        champion: "1".parse().expect("valid"),
        generation: Generation(2),
        stages: stages.iter().map(stage).collect(),
        stage: 0,
        stage_since: start(),
        rules: Compare { rules, ..Compare::without_rules() },
        started_at: start(),
        deadline: Some(minute(24 * 60)),
        state: CanaryState::Watching,
        bake_until: None,
        verdict: Verdict::Inconclusive,
        reason: String::new(),
        analysis: Value::Null,
        next_look_at: start(),
        ended_at: None,
        extensions: vec![],
    }
}

pub(super) fn errors() -> CanaryRecord {
    canary(vec![rule(OnlineMetric::ErrorRate)], &[(1000, 60)])
}

/// A minute of a version as it stands: requests, errors, and all latencies alike.
fn seen(version: &str, at: i64, seq: i64, (n, e): (u64, u64), latency_ms: f64) -> EvidenceMinute {
    let mut latency = vec![0; LATENCY_BUCKETS];
    latency[latency_bucket(latency_ms)] = n;
    EvidenceMinute {
        version: version.parse().expect("valid"),
        minute: minute(at),
        seq,
        counts: MinuteCounts { n, errors: e, timed: n },
        latency,
    }
}

fn news(minutes: Vec<EvidenceMinute>) -> News {
    News { minutes, ..News::default() }
}

/// Looks every minute at `(canary, stable)` counts; what came of it and after how many minutes.
fn watch(
    mut record: CanaryRecord,
    minutes: i64,
    traffic: impl Fn(i64) -> ((u64, u64), (u64, u64)),
) -> (CanaryRecord, Option<(i64, Decision)>) {
    for at in 0..minutes {
        let (c, s) = traffic(at);
        let mut arrived = vec![];
        if c.0 > 0 {
            arrived.push(seen("2", at, 2 * at + 1, c, 20.0));
        }
        if s.0 > 0 {
            arrived.push(seen("1", at, 2 * at + 2, s, 20.0));
        }
        let looked = look(&record, &news(arrived), minute(at + 3));
        record = looked.record;
        if looked.decision != Decision::Continue {
            return (record, Some((at, looked.decision)));
        }
    }
    (record, None)
}

fn rolled_back(decision: Option<(i64, Decision)>) -> Option<(i64, String)> {
    match decision {
        Some((at, Decision::RollBack { reason, .. })) => Some((at, reason)),
        Some((_, Decision::Shift { .. } | Decision::StopTraffic { .. } | Decision::Continue)) | None => None,
    }
}

#[test]
fn a_canary_that_fails_everything_goes_at_once_and_a_worse_one_soon() {
    for (errors_of_ten, at_most) in [(10, 0), (5, 3), (2, 20)] {
        let (record, decision) =
            watch(errors(), 600, |at| ((10, errors_of_ten), (90, u64::from(at % 2 == 0))));
        let (at, reason) = rolled_back(decision).expect("rolled back");
        assert!(at <= at_most, "{errors_of_ten} of 10: minute {at}");
        assert_eq!((record.verdict, &record.reason), (Verdict::Fail, &reason));
    }
}

#[test]
fn the_reason_has_both_arms_the_odds_and_the_evidence() {
    let (record, _) = watch(errors(), 600, |at| ((10, 1), (90, u64::from(at % 2 == 0))));
    insta::assert_snapshot!(record.reason, @"canary errors 5 of 50 (10.0 %), stable 3 of 450 (0.7 %): at least 1.03x the odds; evidence 113:1, limit 50:1");
}

#[test]
fn an_equal_canary_passes_after_its_time_and_not_before() {
    let equal = |at: i64| ((100, u64::from(at % 5 == 0)), (900, 2));
    let (record, decision) = watch(errors(), 58, equal);
    assert_eq!((decision, record.verdict), (None, Verdict::Inconclusive));
    let (record, decision) = watch(errors(), 600, equal);
    assert_eq!((decision, record.verdict), (None, Verdict::Pass), "{}", record.reason);
    insta::assert_snapshot!(record.reason, @"canary errors 24 of 12,000 (0.2 %), stable 240 of 108,000 (0.2 %): not 1.5x worse (evidence 20:1, limit 20:1)");
}

#[test]
fn no_error_at_all_is_no_evidence_and_the_deadline_says_so() {
    let (record, decision) = watch(errors(), 24 * 60, |_| ((1, 0), (9, 0)));
    assert_eq!((decision, record.verdict), (None, Verdict::Inconclusive));
    assert!(record.reason.starts_with("the time to decide is over"), "{}", record.reason);
}

#[test]
fn only_the_floor_accepts_a_canary_without_errors() {
    let mut record = errors();
    record.rules.rules[0].acceptable_below = Some(0.05);
    let (record, _) = watch(record, 600, |_| ((10, 0), (90, 0)));
    assert_eq!(record.verdict, Verdict::Pass);
    assert!(record.reason.contains("below 5.0 %"), "{}", record.reason);
    let view = record.view();
    let shown = view.rules[0].words(view.limit_against).accepted;
    assert_eq!(shown.as_deref(), Some("good enough: below 5.0 %"), "not for the margin");
}

#[test]
fn an_outage_of_both_arms_is_not_held_against_the_canary() {
    let (record, decision) = watch(errors(), 300, |at| {
        let outage = (60..90).contains(&at);
        if outage { ((100, 30), (900, 270)) } else { ((100, 1), (900, 9)) }
    });
    assert_eq!((decision, record.verdict), (None, Verdict::Pass), "{}", record.reason);
}

#[test]
fn with_little_traffic_a_canary_that_fails_everything_is_gone_within_hours() {
    // 200 requests a day, one in ten to the canary: about one an hour.
    let (_, decision) = watch(errors(), 24 * 60, |at| {
        let canary = at % 72 == 30;
        let stable = at % 8 == 1;
        ((u64::from(canary), u64::from(canary)), (u64::from(stable), u64::from(at % 800 == 1)))
    });
    let (at, _) = rolled_back(decision).expect("rolled back");
    assert!(at < 8 * 60, "minute {at}");
}

#[test]
fn a_stage_goes_out_after_its_time_if_the_canary_was_heard_and_is_not_suspected() {
    let stages = || canary(vec![rule(OnlineMetric::ErrorRate)], &[(1000, 30), (5000, 30)]);
    let (_, decision) = watch(stages(), 300, |_| ((100, 1), (900, 9)));
    let Some((27, Decision::Shift { stage: 1, reason })) = decision else { panic!("{decision:?}") };
    insta::assert_snapshot!(reason, @"50 % of the traffic: 30m at 10 % are over; canary errors 28 of 2,800 (1.0 %), stable 252 of 25,200 (1.0 %); too little speaks against it (evidence that it is worse 0.1:1; from 7.1:1 it gets no more, at 50:1 it is rolled back)");
    let unruled = Compare { rules: vec![], ..stages().rules };
    let (_, decision) = watch(CanaryRecord { rules: unruled, ..stages() }, 300, |_| ((0, 0), (0, 0)));
    let Some((_, Decision::Shift { reason, .. })) = decision else { panic!("{decision:?}") };
    insta::assert_snapshot!(reason, @"50 % of the traffic: 30m at 10 % are over; no rule decides against it");
    let (_, decision) = watch(stages(), 300, |_| ((0, 0), (0, 0)));
    assert_eq!(decision, None);
    // Rather worse: the next thing that happens is a rollback, never more traffic.
    let (_, decision) =
        watch(stages(), 300, |at| ((10, u64::from(at % 4 == 0)), (90, u64::from(at % 9 == 0))));
    assert!(rolled_back(decision).is_some());
}

#[test]
fn a_change_of_the_share_discards_the_open_table_and_the_minute_it_falls_in() {
    let stages = vec![(100, 0), (5000, 60)];
    let mut record = canary(vec![rule(OnlineMetric::ErrorRate)], &stages);
    record.stage = 1;
    let shifted = |since: Timestamp| News {
        share: Some((BasisPoints(5000), since)),
        ..news(vec![seen("2", 0, 1, (1, 1), 1.0), seen("1", 0, 2, (9, 0), 1.0), seen("1", 9, 3, (9, 0), 1.0)])
    };
    record.stage = 0;
    let kept = look(&record, &News { share: None, ..shifted(start()) }, minute(12)).record;
    let cut = look(&record, &shifted(minute(5)), minute(12)).record;
    let more = news(vec![seen("2", 12, 4, (1, 1), 1.0)]);
    let evidence = |record: &CanaryRecord| {
        let after = look(record, &News { share: cut_share(record), ..more.clone() }, minute(20)).record;
        after.view().rules[0].log_e_worse
    };
    assert!(evidence(&kept) > 0.5);
    assert_eq!(evidence(&cut), 0.0);
    fn cut_share(record: &CanaryRecord) -> Option<(BasisPoints, Timestamp)> {
        Some((record.view().share, minute(5)))
    }
}

#[test]
fn rows_that_come_late_are_counted_once_as_a_table_of_their_own() {
    let mut record = errors();
    record =
        look(&record, &news(vec![seen("2", 0, 1, (5, 0), 1.0), seen("1", 0, 2, (50, 0), 1.0)]), minute(3))
            .record;
    let late = news(vec![seen("2", 0, 3, (15, 10), 1.0), seen("1", 0, 4, (90, 0), 1.0)]);
    record = look(&record, &late, minute(5)).record;
    let view = record.view();
    assert_eq!((view.rules[0].canary.n, view.rules[0].stable.n), (15, 90));
    let again = look(&record, &late, minute(6)).record;
    assert_eq!(again.view().rules, view.rules);
    let mut separate = crate::domain::stats::ErrorTest::new(1.5).expect("valid");
    let arm = |n, e| crate::domain::stats::Arm::new(n, e).expect("valid");
    separate.observe(&crate::domain::stats::Table { canary: arm(10, 10), stable: arm(40, 0) }, 1.0);
    assert!((view.rules[0].log_e_worse - separate.log_e_worse()).abs() < 1e-9);
}

#[test]
fn arms_that_report_at_different_times_still_meet() {
    let mut record = errors();
    let mut decision = Decision::Continue;
    for at in 0..40 {
        // The canary's rows come eight minutes after those of the stable version.
        let mut arrived = vec![seen("1", at, 2 * at + 1, (90, 1), 1.0)];
        if at >= 8 {
            arrived.push(seen("2", at - 8, 2 * at + 2, (10, 8), 1.0));
        }
        let looked = look(&record, &news(arrived), minute(at + 3));
        (record, decision) = (looked.record, looked.decision);
        if decision != Decision::Continue {
            break;
        }
    }
    assert!(matches!(decision, Decision::RollBack { .. }), "{decision:?}");
}

#[test]
fn a_share_far_below_the_configured_one_stops_the_traffic() {
    let (_, decision) =
        watch(canary(vec![rule(OnlineMetric::ErrorRate)], &[(5000, 60)]), 600, |_| ((5, 0), (95, 0)));
    assert!(matches!(decision, Some((_, Decision::StopTraffic { .. }))), "{decision:?}");
    let (record, decision) = watch(errors(), 600, |_| ((50, 1), (50, 1)));
    assert_eq!((decision, record.verdict), (None, Verdict::Inconclusive));
    assert!(record.reason.starts_with("the split is wrong"), "{}", record.reason);
}

#[test]
fn slow_answers_roll_back_against_the_threshold_from_before_the_canary() {
    let mut record =
        canary(vec![rule(OnlineMetric::ErrorRate), rule(OnlineMetric::LatencySlowShare)], &[(1000, 60)]);
    let mixed = |version: &str, at: i64, seq: i64, n: u64, slow: u64| {
        let mut seen = seen(version, at, seq, (n, 0), 20.0);
        seen.latency[latency_bucket(20.0)] = n - slow;
        seen.latency[latency_bucket(900.0)] = slow;
        seen
    };
    let history = (-120..0).map(|at| mixed("1", at, at + 200, 20, 1)).collect();
    record = look(&record, &news(history), minute(0)).record;
    let threshold = record.view().rules[1].slow_above_ms.expect("frozen");
    assert!((20.0..900.0).contains(&threshold), "{threshold}");
    let mut decision = Decision::Continue;
    for at in 0..120 {
        let arrived = vec![mixed("2", at, 2 * at + 200, 20, 8), mixed("1", at, 2 * at + 201, 180, 9)];
        let looked = look(&record, &news(arrived), minute(at + 3));
        (record, decision) = (looked.record, looked.decision);
        if decision != Decision::Continue {
            break;
        }
    }
    let Decision::RollBack { metric, reason } = decision else { panic!("{decision:?}") };
    assert_eq!(metric, OnlineMetric::LatencySlowShare);
    assert!(reason.starts_with("canary slow requests"), "{reason}");
}

/// Numbers that look random, the same every time.
struct Dice(u64);

impl Dice {
    fn one_in(&mut self, n: f64) -> bool {
        // Knuth's MMIX; the upper bits are good enough to count with.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 11) as f64 / (1_u64 << 53) as f64) * n < 1.0
    }
}

#[test]
fn with_little_traffic_and_a_rate_that_drifts_an_equal_canary_is_rarely_rolled_back() {
    let (mut rolled, runs) = (0, 300);
    for run in 0..runs {
        let mut dice = Dice(run);
        let day = (0..24 * 60_i64).map(|at| {
            // 200 requests a day, one in ten to the canary; 2 % fail by night, 20 % by day.
            let fails = if at < 12 * 60 { 50.0 } else { 5.0 };
            let (mut c, mut s) = ((0, 0), (0, 0));
            if dice.one_in(7.2) {
                let arm = if dice.one_in(10.0) { &mut c } else { &mut s };
                *arm = (1, u64::from(dice.one_in(fails)));
            }
            (c, s)
        });
        let minutes = all(&day.collect());
        let looked = look(&errors(), &news(minutes), minute(24 * 60));
        rolled += u32::from(matches!(looked.decision, Decision::RollBack { .. }));
    }
    // At one look; alpha is 0.02.
    assert!(f64::from(rolled) <= 0.02 * runs as f64, "{rolled} of {runs}");
}

fn pair(seq: i64, day: i64, canary: f64, stable: f64) -> PairedError {
    PairedError {
        seq,
        request_id: format!("r{seq}"),
        block: Some(format!("day {day}")),
        canary,
        stable,
        at: start() + TimeDelta::days(day + 1),
        served_at: None,
    }
}

/// One look a day at twenty pairs a day; the day of the first decision, and the record.
fn watch_days(
    mut record: CanaryRecord,
    days: i64,
    errors: impl Fn(i64) -> (f64, f64),
) -> (CanaryRecord, Option<i64>) {
    record.deadline = Some(start() + TimeDelta::days(90));
    let history = (-28..-1)
        .flat_map(|day| (0..20).map(move |i| pair(day * 20 + i, day, 9.0, 8.0 + day.rem_euclid(3) as f64)));
    let first = News { stable_errors: history.collect(), ..News::default() };
    record = look(&record, &first, start()).record;
    for day in 0..days {
        let (c, s) = errors(day);
        let pairs = (0..20).map(|i| pair(1 + day * 20 + i, day, c, s)).collect();
        let looked = look(&record, &News { pairs, ..News::default() }, start() + TimeDelta::days(day + 1));
        record = looked.record;
        if looked.decision != Decision::Continue || record.verdict == Verdict::Pass {
            return (record, Some(day));
        }
    }
    (record, None)
}

#[test]
fn prediction_errors_are_one_bet_a_day_within_the_bound_from_before_the_canary() {
    let record = || canary(vec![rule(OnlineMetric::AbsError)], &[(5000, 60)]);
    let (worse, day) = watch_days(record(), 60, |_| (14.0, 4.0));
    assert!((9..40).contains(&day.expect("rolled back")), "{day:?}");
    assert_eq!(worse.verdict, Verdict::Fail);
    assert_eq!(worse.view().rules[0].clip, Some(10.0));
    insta::assert_snapshot!(worse.reason, @"canary mean error 14.0, stable 4.00: worse over 15 blocks; evidence 56:1, limit 50:1");
    let (better, day) = watch_days(record(), 60, |_| (5.0, 9.0));
    assert!(day.is_some());
    assert_eq!(better.verdict, Verdict::Pass, "{}", better.reason);
    let (equal, day) = watch_days(record(), 60, |day| if day % 2 == 0 { (9.0, 8.0) } else { (8.0, 9.0) });
    assert_eq!((day, equal.verdict), (None, Verdict::Inconclusive));
}

#[test]
fn truth_that_comes_after_its_block_was_bet_on_is_not_a_second_bet() {
    let record = canary(vec![rule(OnlineMetric::AbsError)], &[(5000, 60)]);
    let (record, _) = watch_days(record, 3, |_| (9.0, 9.0));
    let blocks = record.view().rules[0].canary.n;
    let late = News { pairs: vec![pair(900, 0, 100.0, 0.0)], ..News::default() };
    let after = look(&record, &late, start() + TimeDelta::days(3)).record;
    assert_eq!(after.view().rules[0].canary.n, blocks);
}

#[test]
fn a_fixed_limit_counts_also_during_the_bake_without_a_stable_arm() {
    let mut record = errors();
    record.rules.rules[0].never_above = Some(0.05);
    record.state = CanaryState::Baking;
    let (_, decision) = watch(record.clone(), 600, |_| ((100, 20), (0, 0)));
    let (_, reason) = rolled_back(decision).expect("rolled back");
    assert!(reason.contains("above the limit of 5.0 %"), "{reason}");
    let (_, decision) = watch(record, 600, |_| ((100, 2), (0, 0)));
    assert_eq!(decision, None);
}

#[test]
fn several_metrics_share_alpha_and_one_that_observes_has_none() {
    let mut record = canary(vec![rule(OnlineMetric::ErrorRate), rule(OnlineMetric::AbsError)], &[(1000, 60)]);
    let weights =
        |record: &CanaryRecord| record.view().rules.iter().map(|rule| rule.weight).collect::<Vec<_>>();
    assert_eq!(weights(&record), [Some(0.5 / 0.7), Some(0.2 / 0.7)]);
    (record.rules.rules[0].weight, record.rules.rules[1].weight) = (Some(0.1), Some(0.9));
    assert_eq!(weights(&record), [Some(0.1), Some(0.9)]);
    (record.rules.rules[0].weight, record.rules.rules[1].weight) = (None, None);
    record.rules.rules[0].role = Role::Observe;
    assert_eq!(weights(&record), [None, Some(1.0)]);
    let (record, decision) = watch(record, 100, |_| ((100, 100), (900, 0)));
    assert_eq!((decision, record.verdict), (None, Verdict::Inconclusive));
}

#[test]
fn a_metric_that_nothing_feeds_keeps_the_others_from_passing() {
    let record = canary(vec![rule(OnlineMetric::ErrorRate), rule(OnlineMetric::AbsError)], &[(1000, 60)]);
    let (record, _) = watch(record, 600, |_| ((100, 1), (900, 9)));
    assert_eq!(record.verdict, Verdict::Inconclusive);
}

#[test]
fn a_verdict_that_passed_can_still_be_rolled_back() {
    let (record, decision) =
        watch(errors(), 700, |at| if at < 400 { ((100, 1), (900, 9)) } else { ((100, 50), (900, 9)) });
    assert!(rolled_back(decision).is_some());
    assert_eq!(record.verdict, Verdict::Fail);
}

#[test]
fn an_analysis_that_cannot_be_read_is_an_error_and_never_a_pass() {
    for stored in [serde_json::json!({"tests": []}), serde_json::json!([1, 2]), serde_json::json!("x")] {
        let mut record = errors();
        record.analysis = stored;
        let looked = look(&record, &News::default(), minute(5));
        assert_eq!((looked.decision, looked.record.verdict), (Decision::Continue, Verdict::Error));
        let _ = (record.shown(), record.view());
    }
}

#[test]
fn expressions_see_the_counts_of_the_last_look() {
    let (record, _) = watch(errors(), 30, |_| ((10, 0), (90, 1)));
    let shown = record.shown();
    assert_eq!(shown["verdict"], "inconclusive");
    assert_eq!(shown["requests"], 300);
    assert_eq!(shown["errors"], 0);
    assert_eq!(shown["share"], 0.1);
    assert!((shown["hours"].as_f64().expect("valid") - 32.0 / 60.0).abs() < 1e-3, "{shown}");
}

type Traffic = Vec<((u64, u64), (u64, u64))>;

fn all(traffic: &Traffic) -> Vec<EvidenceMinute> {
    let minutes = traffic.iter().enumerate().flat_map(|(at, (c, s))| {
        let at = at as i64;
        [seen("2", at, 2 * at + 1, *c, 5.0), seen("1", at, 2 * at + 2, *s, 5.0)]
    });
    minutes.collect()
}
