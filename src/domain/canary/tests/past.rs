//! The minutes of a canary that is past, and what replaying them decides.

use super::*;
use crate::domain::canary::Replay;

#[test]
fn the_minutes_of_a_canary_that_was_rolled_back_roll_it_back_again() {
    let traffic = |at: i64| ((10, 2), (90, u64::from(at % 2 == 0)));
    let (mut record, decision) = watch(errors(), 600, traffic);
    let (last, reason) = rolled_back(decision).expect("rolled back");
    record.ended_at = Some(minute(last + 1));
    let kept: Vec<_> = (-3..last + 3)
        .flat_map(|at| {
            let (c, s) = traffic(at);
            [seen("2", at, 1, c, 20.0), seen("1", at, 2, s, 20.0), seen("0", at, 3, (7, 7), 20.0)]
        })
        .collect();
    let past = Past::of(&record, &kept, &[]).expect("an analysis");
    assert_eq!(past.minutes.len() as i64, last + 1, "from its start to its end");
    assert!(!past.latency && !past.pairs);
    let mut replay = Replay::new(record.rules.clone(), MinTable::default(), past.phi).expect("rules");
    for minute in &past.minutes {
        replay.minute(minute).expect("counts");
    }
    assert_eq!(replay.verdict(), Verdict::Fail, "{}", replay.reason());
    let counts = |reason: &str| reason.split(':').next().map(str::to_owned);
    assert_eq!(counts(&replay.reason()), counts(&reason));
}

#[test]
fn a_block_is_one_pair_and_latencies_count_over_the_frozen_threshold_when_the_start_is_over() {
    let mut record =
        canary(vec![rule(OnlineMetric::LatencySlowShare), rule(OnlineMetric::AbsError)], &[(1000, 60)]);
    let before: Vec<_> = (-30..0).map(|at| seen("1", at, at + 31, (90, 0), 20.0)).collect();
    record = look(&record, &news(before), minute(1)).record;
    let kept = [
        seen("2", 3, 100, (10, 0), 900.0),
        seen("2", 8, 101, (10, 0), 900.0),
        seen("1", 8, 102, (90, 0), 20.0),
    ];
    let of_race =
        |seq, canary, stable| PairedError { block: Some("race".to_owned()), ..pair(seq, 0, canary, stable) };
    let pairs =
        [of_race(1, 1.0, 3.0), of_race(2, 2.0, 5.0), PairedError { block: None, ..pair(3, 0, 7.0, 8.0) }];
    let past = Past::of(&record, &kept, &pairs).expect("an analysis");
    assert!(past.latency && past.pairs);
    let slow: Vec<_> =
        past.minutes.iter().map(|minute| (minute.slow.canary.n(), minute.slow.canary.e())).collect();
    assert!(slow.contains(&(0, 0)) && slow.contains(&(10, 10)), "{slow:?}");
    let mut bets: Vec<_> = past.minutes.iter().flat_map(|minute| minute.pairs.clone()).collect();
    bets.sort_by(|a, b| a.0.total_cmp(&b.0));
    assert_eq!(bets, [(1.5, 4.0), (7.0, 8.0)]);
}
