//! What is said of a version without traffic: the same, however often one asks.

use super::labels::{HORIZON, counted, of, record, waiting};
use super::*;

/// Everything that is known at `now`, read at once.
fn at_once(record: &CanaryRecord, pairs: Vec<PairedError>, now: Timestamp) -> CanaryRecord {
    by_errors(record, &ErrorsRead::default(), ErrorNews { new: pairs, aged: vec![] }, now).0
}

/// Asked again and again, from what a database holds; also how many pairs were read in all.
fn bit_by_bit(record: &CanaryRecord, pairs: &[PairedError], every: i64, until: i64) -> (CanaryRecord, usize) {
    let (mut unseen, mut read, mut count) = (record.clone(), ErrorsRead::default(), 0);
    for now in (0..until).step_by(usize::try_from(every).expect("positive")).chain([until]) {
        // A round is somewhere in its minute.
        let now = minute(now) + TimeDelta::seconds(if now < until { now % 60 } else { 0 });
        let there = || pairs.iter().filter(|pair| pair.at <= now);
        let mut news = ErrorNews {
            new: there().filter(|pair| pair.seq > read.through()).cloned().collect(),
            aged: vec![],
        };
        if let Some(wanted) = read.ripening(record, now) {
            let place = |pair: &PairedError| (pair.served_at.expect("served"), pair.seq);
            let aged = there().filter(|pair| {
                pair.seq <= wanted.read && Some(place(pair)) > wanted.after && place(pair).0 <= wanted.until
            });
            news.aged = aged.cloned().collect();
        }
        count += news.new.len() + news.aged.len();
        let known = CanaryRecord { verdict: unseen.verdict, reason: unseen.reason.clone(), ..record.clone() };
        (unseen, read) = by_errors(&known, &read, news, now);
        if unseen.verdict == Verdict::Fail {
            break;
        }
    }
    (unseen, count)
}

#[test]
fn without_traffic_the_same_pairs_count_at_the_same_age_and_decide_the_same() {
    let worse = |i: i64| {
        let stable = 1.0 + (i % 7) as f64;
        PairedError { stable, canary: 2.0 * stable, ..of(i, i % 60, i % 60 + 1) }
    };
    let pairs: Vec<_> = (1..=300).map(worse).collect();
    let early = at_once(&record(), pairs.clone(), minute(HORIZON - 1));
    assert_eq!((counted(&early), early.verdict), (0, Verdict::Inconclusive));
    // As many as were served in the first ten minutes.
    assert_eq!(counted(&at_once(&record(), pairs.clone(), minute(HORIZON + 10))), 50);
    let late = at_once(&record(), pairs, minute(HORIZON + 60));
    // No more of them than it takes.
    assert_eq!((counted(&late), late.verdict), (85, Verdict::Fail), "{}", late.reason);
    let before = of(1, -10, -5);
    assert_eq!(
        counted(&at_once(&record(), vec![before], minute(500))),
        0,
        "its truth may have been trained on"
    );
}

#[test]
fn a_block_that_was_bet_on_is_not_bet_on_again_with_what_came_later() {
    let of_block = |seq: i64, block: &str, at: i64, ratio: f64| {
        let stable = 1.0 + (seq % 7) as f64;
        let block = Some(block.to_owned());
        PairedError { block, stable, canary: ratio * stable, served_at: None, ..of(seq, 0, at) }
    };
    // A hundred races that are equal; then each gets one more result that speaks against the canary.
    let mut pairs: Vec<_> =
        (1..=100).map(|race| of_block(race, &format!("race-{race}"), race, 1.0)).collect();
    let out = canary(vec![rule(OnlineMetric::AbsError)], &[(1000, 60)]);
    let before = at_once(&out, pairs.clone(), minute(200));
    pairs.extend((1..=100).map(|race| of_block(100 + race, &format!("race-{race}"), 200 + race, 3.0)));
    let after = at_once(&out, pairs, minute(400));
    let bets = |record: &CanaryRecord| {
        let view = record.view();
        view.rules[0].stable.n
    };
    // Seven set the scale, and the newest race may still get more.
    assert_eq!((bets(&before), before.verdict), (92, Verdict::Inconclusive), "{}", before.reason);
    assert_eq!((bets(&after), after.verdict), (92, Verdict::Inconclusive), "{}", after.reason);
}

#[test]
fn however_often_one_asks_each_pair_counts_once_and_the_same_is_said() {
    let with = |factor: f64| {
        move |i: i64| {
            let stable = 1.0 + (i * 5 % 7) as f64;
            // Truths come after a minute or two hours, and races are run in turn.
            let (served, truth) = (i / 3, if i % 4 == 0 { 125 } else { 1 });
            let block = (i % 5 == 0).then(|| format!("race-{}", i / 40));
            PairedError { block, stable, canary: factor * stable, ..of(i, served, served + truth) }
        }
    };
    for (factor, horizon) in [(1.0, HORIZON), (1.0, 0), (2.0, HORIZON), (2.0, 0)] {
        let mut pairs: Vec<_> = (1..=600).map(with(factor)).collect();
        // Numbers are given as truths come.
        pairs.sort_by_key(|pair| (pair.at, pair.seq));
        (1..).zip(&mut pairs).for_each(|(seq, pair)| pair.seq = seq);
        let record = waiting(horizon);
        let until = 200 + 2 * HORIZON + 1500;
        let once = at_once(&record, pairs.clone(), minute(until));
        for every in [17, 500] {
            let (often, read) = bit_by_bit(&record, &pairs, every, until);
            let of = |record: &CanaryRecord| (record.verdict, record.reason.clone(), record.view().rules);
            assert_eq!(of(&often), of(&once), "{factor} {horizon} {every}");
            // Those of the minute that runs are read again in the next round, once for each way in.
            assert!(read <= 4 * pairs.len(), "{read} read at every {every} minutes");
        }
    }
}

#[test]
fn a_clock_that_is_ahead_keeps_no_other_pair_back() {
    let mut pairs: Vec<_> = (1..=200).map(|i| of(i, i, i)).collect();
    pairs[9].at = minute(1_000_000);
    pairs.iter_mut().for_each(|pair| pair.served_at = None);
    assert_eq!(counted(&at_once(&waiting(0), pairs, minute(300))), 200);
}
