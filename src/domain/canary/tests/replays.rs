//! Minutes replayed: the reference, the controller, and what holds for any evidence.

use proptest::prelude::*;

use super::super::super::stats::vectors::{assert_close, number, rows};
use super::super::super::stats::{Arm, Table};
use super::*;

type Counted = ((u64, u64), (u64, u64));

fn table(((n_c, e_c), (n_s, e_s)): Counted) -> Table {
    let arm = |n, e| Arm::new(n, e).expect("valid");
    Table { canary: arm(n_c, e_c), stable: arm(n_s, e_s) }
}

fn counts(at: i64, counted: Counted) -> ReplayMinute {
    ReplayMinute { at: minute(at), errors: table(counted), slow: Table::default(), pairs: vec![] }
}

fn rules() -> Compare {
    errors().rules
}

fn plain_minutes(phi: Option<f64>) -> Replay {
    Replay::new(rules(), MinTable { canary: 0, stable: 0 }, phi).expect("valid")
}

fn replayed(mut replay: Replay, minutes: &[Counted]) -> Replay {
    for (at, counted) in minutes.iter().enumerate() {
        replay.minute(&counts(at as i64, *counted)).expect("counts");
    }
    replay
}

#[test]
fn streams_match_the_reference_at_every_minute() {
    for stream in rows("B_streams") {
        let mut replay = plain_minutes(Some(1.0));
        for (at, row) in stream["minutes"].as_array().expect("minutes").iter().enumerate() {
            let count = |key| number(row, key) as u64;
            let counted = ((count("nc"), count("ec")), (count("ns"), count("es")));
            replay.minute(&counts(at as i64, counted)).expect("counts");
            let evidence = replay.evidence();
            assert_close(evidence.log_e_worse, number(row, "log_E_rollback"), row);
            assert_close(evidence.log_e_ni, number(row, "log_E_ni_1_5"), row);
        }
    }
}

#[test]
fn a_replay_concludes_what_the_controller_concludes() {
    let bad = |at: i64| ((10, 1 + u64::from(at % 3 == 0)), (90, u64::from(at % 2 == 0)));
    let (record, decision) = watch(errors(), 600, bad);
    let (at, reason) = rolled_back(decision).expect("rolled back");
    let minutes: Vec<_> = (0..=at).map(bad).collect();
    let replay = replayed(Replay::new(rules(), MinTable::default(), None).expect("valid"), &minutes);
    assert_eq!((replay.verdict(), replay.reason()), (Verdict::Fail, reason));
    assert_eq!(replay.decided_at(), Some(minute(at)));
    let rule = &record.view().rules[0];
    assert_eq!(replay.evidence().log_e_worse, rule.log_e_worse);
    assert_eq!(replay.evidence().interval, rule.odds_ratio);
}

#[test]
fn once_rolled_back_it_stays_so_and_once_passed_it_may_still_be_rolled_back() {
    let mut minutes: Vec<Counted> = vec![((10, 10), (90, 0))];
    minutes.extend([((1000, 10), (9000, 90)); 60]);
    let replay = replayed(plain_minutes(None), &minutes);
    assert_eq!((replay.verdict(), replay.decided_at()), (Verdict::Fail, Some(minute(0))));
    assert!(replay.evidence().log_e_worse < 0.0);
    let mut turns = replayed(plain_minutes(None), &minutes[1..]);
    assert_eq!(turns.verdict(), Verdict::Pass);
    turns.minute(&counts(70, ((1000, 900), (9000, 90)))).expect("counts");
    assert_eq!(turns.verdict(), Verdict::Fail);
}

#[test]
fn small_traffic_waits_for_a_table_and_plain_minutes_do_not() {
    // One request at a time: a canary that fails every one, next to none of the stable arm.
    let minutes: Vec<Counted> =
        (0..300).map(|at| if at % 10 == 0 { ((1, 1), (0, 0)) } else { ((0, 0), (1, 0)) }).collect();
    assert_eq!(replayed(plain_minutes(None), &minutes).evidence().log_e_worse, 0.0);
    let tables = Replay::new(rules(), MinTable::default(), None).expect("valid");
    assert_eq!(replayed(tables, &minutes).verdict(), Verdict::Fail);
}

#[test]
fn several_metrics_are_weighed_and_every_one_must_hold_to_pass() {
    let all = vec![
        rule(OnlineMetric::ErrorRate),
        rule(OnlineMetric::LatencySlowShare),
        rule(OnlineMetric::AbsError),
    ];
    let rules = Compare { rules: all, ..Compare::without_rules() };
    let run = |slow: u64, canary_error: f64| {
        let mut replay = Replay::new(rules.clone(), MinTable::default(), None).expect("valid");
        for at in 0..200 {
            let wobble = 0.5 + f64::from(at % 7) / 7.0;
            let minute = ReplayMinute {
                slow: table(((100, slow), (900, 45))),
                pairs: vec![(canary_error * wobble, wobble); 5],
                ..counts(at.into(), ((100, 1), (900, 9)))
            };
            replay.minute(&minute).expect("valid");
        }
        replay
    };
    assert_eq!(run(5, 1.0).verdict(), Verdict::Pass);
    assert_eq!(run(5, 1.0).evidence().metrics.len(), 3);
    let slow = run(20, 1.0);
    assert_eq!(slow.verdict(), Verdict::Fail);
    assert!(slow.reason().starts_with("canary slow requests"), "{}", slow.reason());
    assert!(run(5, 2.0).reason().starts_with("canary mean error"), "{}", run(5, 2.0).reason());
}

fn arm() -> impl Strategy<Value = (u64, u64)> {
    (0..60_u64, 0..60_u64).prop_map(|(n, e)| (n, e.min(n)))
}

fn traffic() -> impl Strategy<Value = Vec<Counted>> {
    prop::collection::vec((arm(), arm()), 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_order_of_rows_inside_a_table_does_not_matter(rows in prop::collection::vec((any::<bool>(), any::<bool>()), 1..80), seed in any::<prop::sample::Index>()) {
        // One request a line; the table closes when both arms are through, so only its sums count.
        let whole = MinTable { canary: rows.iter().filter(|(canary, _)| *canary).count() as u64,
            stable: rows.iter().filter(|(canary, _)| !*canary).count() as u64 };
        let line = |(canary, error): &(bool, bool)| {
            let one = (1, u64::from(*error));
            if *canary { (one, (0, 0)) } else { ((0, 0), one) }
        };
        let run = |rows: &[(bool, bool)]| {
            let replay = Replay::new(rules(), whole, None).expect("valid");
            replayed(replay, &rows.iter().map(line).collect::<Vec<_>>()).evidence()
        };
        let mut turned = rows.clone();
        turned.rotate_left(seed.index(rows.len()));
        turned.reverse();
        prop_assert_eq!(run(&rows), run(&turned));
    }

    #[test]
    fn splitting_a_batch_does_not_matter(traffic in traffic(), cut in any::<prop::sample::Index>()) {
        // Rows of a minute that arrive in several batches are that minute, and looks in between change nothing.
        let (whole, _) = watch_rows(&traffic, None);
        let (split, _) = watch_rows(&traffic, Some(cut.index(traffic.len())));
        prop_assert_eq!(whole.view().rules, split.view().rules);
    }

    #[test]
    fn swapping_the_arms_mirrors_the_evidence(traffic in traffic()) {
        let swapped: Vec<Counted> = traffic.iter().map(|(c, s)| (*s, *c)).collect();
        let (one, other) = (replayed(plain_minutes(Some(1.0)), &traffic), replayed(plain_minutes(Some(1.0)), &swapped));
        // The likelihood of every odds ratio changes sides with its reciprocal and has one peak, so at most one
        // of the two arms can look worse than the other.
        let (one, other) = (one.evidence(), other.evidence());
        prop_assert!(!(one.log_e_worse > 1e-9 && other.log_e_worse > 1e-9), "{one:?} {other:?}");
    }

    #[test]
    fn zero_traffic_changes_nothing(traffic in traffic(), place in any::<prop::sample::Index>(), arms in 0..3) {
        let mut quiet = traffic.clone();
        quiet.insert(place.index(traffic.len()), match arms {
            0 => ((0, 0), (0, 0)),
            1 => ((7, 3), (0, 0)),
            _ => ((0, 0), (70, 3)),
        });
        let (with, without) = (replayed(plain_minutes(Some(1.0)), &quiet), replayed(plain_minutes(Some(1.0)), &traffic));
        prop_assert_eq!(with.evidence(), without.evidence());
    }

    #[test]
    fn a_shared_outage_does_not_roll_back(
        calm in 1..40_usize,
        outages in prop::collection::vec((1..100_u64, 0..3_u64), 1..20),
    ) {
        // Both arms fail alike, to the request, however badly and however often.
        let mut minutes: Vec<Counted> = vec![((10, 0), (90, 1)); calm];
        minutes.extend(outages.iter().flat_map(|(percent, more)| {
            let outage = ((10 * (more + 1), *percent * (more + 1) / 10), (90 * (more + 1), 9 * percent * (more + 1) / 10));
            [outage, ((10, 0), (90, 1))]
        }));
        let mut replay = plain_minutes(None);
        for (at, counted) in minutes.iter().enumerate() {
            let verdict = replay.minute(&counts(at as i64, *counted)).expect("counts");
            prop_assert_ne!(verdict, Verdict::Fail, "{}", replay.reason());
        }
    }

    #[test]
    fn pairs_that_are_no_errors_are_refused_and_change_nothing(canary in any::<f64>(), stable in any::<f64>()) {
        let all = vec![rule(OnlineMetric::ErrorRate), rule(OnlineMetric::AbsError)];
        let rules = Compare { rules: all, ..Compare::without_rules() };
        let mut replay = Replay::new(rules, MinTable::default(), None).expect("valid");
        let before = replay.clone();
        let minute = ReplayMinute { pairs: vec![(1.0, 1.0), (canary, stable)], ..counts(0, ((10, 1), (90, 1))) };
        match replay.minute(&minute) {
            Ok(verdict) => prop_assert!(canary >= 0.0 && stable >= 0.0 && verdict == Verdict::Inconclusive),
            Err(_) => {
                prop_assert!(!(canary >= 0.0 && stable >= 0.0));
                prop_assert_eq!(replay, before);
            }
        }
    }
}

/// Looks at traffic of which one minute comes in two batches.
fn watch_rows(traffic: &[Counted], cut: Option<usize>) -> (CanaryRecord, i64) {
    let (mut record, mut seq) = (errors(), 0);
    for (at, (c, s)) in traffic.iter().enumerate() {
        let half = |(n, e): (u64, u64)| (n / 2, e.min(n / 2));
        let parts = if cut == Some(at) { vec![(half(*c), half(*s)), (*c, *s)] } else { vec![(*c, *s)] };
        for (c, s) in parts {
            seq += 2;
            let arrived = vec![seen("2", at as i64, seq, c, 20.0), seen("1", at as i64, seq + 1, s, 20.0)];
            record = look(&record, &news(arrived), minute(at as i64 + 1)).record;
        }
    }
    let end = traffic.len() as i64 + 3;
    (look(&record, &News::default(), minute(end)).record, end)
}
