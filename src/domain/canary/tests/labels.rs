//! Requests count once they are old enough, each once, and missing truths stop a promotion.

use super::*;
use crate::domain::evidence::{LabelCounts, LabelMinute};

pub(super) const HORIZON: i64 = 120;
const DAY: i64 = 24 * 60;
const WEEK: i64 = 7 * DAY;

pub(super) fn record() -> CanaryRecord {
    waiting(HORIZON)
}

/// A canary on errors of requests that are so many minutes old.
pub(super) fn waiting(minutes: i64) -> CanaryRecord {
    let mut errors = rule(OnlineMetric::AbsError);
    errors.label_horizon = Duration::from_secs(60 * minutes.unsigned_abs());
    canary(vec![errors], &[(1000, 60)])
}

/// A pair of its own block, of a request served at one minute whose truth came at another.
pub(super) fn of(seq: i64, served: i64, at: i64) -> PairedError {
    PairedError {
        seq,
        request_id: format!("r{seq}"),
        block: None,
        canary: 1.0,
        stable: 1.0,
        at: minute(at),
        served_at: Some(minute(served)),
    }
}

/// What a database holds, asked by looks as the controller asks it.
#[derive(Default)]
pub(super) struct Kept {
    pub(super) pairs: Vec<PairedError>,
    pub(super) minutes: Vec<LabelMinute>,
}

impl Kept {
    fn look(&self, record: &CanaryRecord, now: Timestamp, page: usize) -> Look {
        self.look_with(record, News::default(), now, page)
    }

    /// Beside other news.
    pub(super) fn look_with(&self, record: &CanaryRecord, news: News, now: Timestamp, page: usize) -> Look {
        let analysis = Analysis::of(record).expect("readable");
        let known = |pair: &&PairedError| pair.at <= now;
        let pairs = || self.pairs.iter().filter(known);
        let new = pairs().filter(|pair| pair.seq > analysis.paired_cursor);
        let mut news = News { pairs: new.cloned().collect(), ..news };
        if let Some(wanted) = analysis.ripening(record, now) {
            let place = |pair: &PairedError| (pair.served_at.expect("served"), pair.seq);
            let mut pairs: Vec<_> = pairs().filter(|pair| pair.seq <= wanted.read).cloned().collect();
            pairs.retain(|pair| Some(place(pair)) > wanted.after && place(pair).0 <= wanted.until);
            pairs.sort_by_key(place);
            news.more = pairs.len() > page;
            pairs.truncate(page);
            let last = pairs.last().map(place).filter(|_| news.more);
            let (from, before) = wanted.minutes;
            let minutes = self.minutes.iter().filter(|it| it.minute >= from && it.minute < before);
            let through = last.unwrap_or((wanted.until, i64::MAX));
            news.ripe = Some(Ripe { pairs, through, minutes: minutes.cloned().collect(), before });
        }
        look(record, &news, now)
    }
}

/// How many pairs were counted, whether or not they were bet on.
pub(super) fn counted(record: &CanaryRecord) -> usize {
    let analysis = Analysis::of(record).expect("readable");
    let bets: u64 = analysis
        .tests
        .iter()
        .map(|test| match test {
            rules::RuleTest::Mean(mean) => mean.pairs,
            rules::RuleTest::Rate(_) => 0,
        })
        .sum();
    // The first 50 set the scale and are kept until then.
    bets as usize + if analysis.clip.bound().is_some() { 50 } else { analysis.clip.learnt() }
}

#[test]
fn a_quick_truth_counts_no_sooner_than_a_slow_one() {
    let kept =
        Kept { pairs: vec![of(1, 0, 1), of(2, 60, 61), of(3, 0, 119), of(4, 0, 130)], ..Kept::default() };
    let mut record = record();
    for (now, expected) in [(62, 0), (119, 0), (120, 2), (125, 2), (130, 3), (179, 3), (180, 4), (500, 4)] {
        record = kept.look(&record, minute(now), 100).record;
        assert_eq!(counted(&record), expected, "minute {now}");
    }
}

#[test]
fn each_pair_counts_once_whatever_the_looks_and_pages() {
    // Truths come out of order, some before their request is old enough and some after.
    let pairs: Vec<_> = (1..=120).map(|i| of(i, (i * 37) % 200, 200 + (i * i) % 300)).collect();
    for (step, page) in [(7, 1000), (7, 3), (60, 1000), (600, 1)] {
        let mut kept = Kept { pairs: pairs.clone(), ..Kept::default() };
        // The number says in which order they arrived.
        kept.pairs.sort_by_key(|pair| pair.at);
        (1..).zip(&mut kept.pairs).for_each(|(seq, pair)| pair.seq = seq);
        let mut record = record();
        for look in 0..250 {
            let looked = kept.look(&record, minute((look * step).min(600)), page);
            // One who dies before it is saved looks again.
            if look % 3 != 0 {
                record = looked.record;
            }
        }
        assert_eq!(counted(&record), kept.pairs.len(), "every {step} minutes, {page} at once");
    }
}

#[test]
fn rows_that_nobody_served_count_at_once() {
    let mut row = of(1, 0, 5);
    row.served_at = None;
    let looked = look(&record(), &News { pairs: vec![row], ..News::default() }, minute(6));
    assert_eq!(counted(&looked.record), 1);
}

#[test]
fn without_a_horizon_truths_are_counted_where_a_rule_needs_them_and_the_more_rarely_the_older_the_canary_is()
{
    let is_due =
        |record: &CanaryRecord, at| Analysis::of(record).expect("readable").counts_labels(record, minute(at));
    assert!(!is_due(&errors(), 5), "an error rate needs no truth");
    assert!(!is_due(&record(), 5), "what has a horizon is watched");
    let mut record = canary(vec![rule(OnlineMetric::AbsError)], &[(1000, 60)]);
    assert!(is_due(&record, 600));
    let known = LabelCounts { predicted: 1, labelled: 1 };
    let counted = News { labelled: Some(Labelled { canary: known, stable: known }), ..News::default() };
    record = look(&record, &counted, minute(600)).record;
    let due: Vec<i64> = (601..620).filter(|at| is_due(&record, *at)).collect();
    assert_eq!(due, (611..620).collect::<Vec<_>>());
}

#[test]
fn truths_of_requests_that_only_one_version_predicted_are_said_to_compare_nothing() {
    let said = "truths are known, but of no request what both versions predict";
    let record = canary(vec![rule(OnlineMetric::AbsError)], &[(1000, 60)]);
    let counts = |labelled| {
        let counts = LabelCounts { predicted: 10, labelled };
        News { labelled: Some(Labelled { canary: counts, stable: counts }), ..News::default() }
    };
    let looked = look(&record, &counts(0), minute(600)).record;
    assert!(!looked.reason.contains(said), "no truth has come: {}", looked.reason);
    let looked = look(&record, &counts(4), minute(600)).record;
    assert!(looked.reason.contains(said), "{}", looked.reason);
    assert!(looked.reason.contains("nothing known of the mean error yet"), "{}", looked.reason);
    let paired = look(&record, &News { pairs: vec![of(1, 5, 5)], ..counts(4) }, minute(600)).record;
    assert!(!paired.reason.contains(said), "{}", paired.reason);
}

/// Minutes with 10 requests of the canary and 90 of the stable version, and so many without truth.
fn missing(minutes: i64, canary: u64, stable: u64) -> Vec<LabelMinute> {
    let of = |version: &str, at, predicted, without| LabelMinute {
        version: version.parse().expect("valid"),
        minute: minute(at),
        predicted,
        labelled: predicted - without,
    };
    (0..minutes).flat_map(|at| [of("2", at, 10, canary), of("1", at, 90, stable)]).collect()
}

#[test]
fn a_canary_whose_truths_are_missing_is_not_promoted_and_said_so_once() {
    let kept = Kept { minutes: missing(200, 5, 3), ..Kept::default() };
    let mut record = record();
    let mut told = vec![];
    for now in [60, 120, 122, 123, 130, 200, 300] {
        let looked = kept.look(&record, minute(now), 100);
        assert_eq!(looked.decision, Decision::Continue);
        told.extend(looked.notice.map(|notice| (now, notice)));
        record = looked.record;
        let judged = record.view().labels.expect("watched").canary.n;
        // A minute is closed 90 seconds after its end.
        assert_eq!(judged, 10 * (now - HORIZON - 2).clamp(0, 200).unsigned_abs(), "minute {now}");
    }
    let why = "the truth of more of the canary's requests is missing, so the errors cannot be compared; without truth after 2h: canary 40 of 80 (50.0 %), stable 24 of 720 (3.3 %)";
    assert_eq!(told, [(130, Trouble::TruthMissing(why.to_owned()))]);
    assert_eq!(record.verdict, Verdict::Inconclusive);
    let late = kept.look(&record, record.deadline.expect("it has one"), 100).record;
    assert_eq!(
        late.verdict,
        Verdict::Error,
        "what cannot be compared is held, not promoted: {}",
        late.reason
    );
}

#[test]
fn missing_truths_of_a_rule_that_only_observes_are_shown_and_stop_nothing() {
    let mut record = record();
    record.rules.rules[0].role = Role::Observe;
    record.rules.rules.push(rule(OnlineMetric::ErrorRate));
    let kept = Kept { minutes: missing(200, 5, 3), ..Kept::default() };
    let looked = kept.look(&record, minute(800), 100);
    assert!(!matches!(looked.notice, Some(Trouble::TruthMissing(_))), "{:?}", looked.notice);
    assert!(looked.record.reason.contains("without truth after 2h"), "{}", looked.record.reason);
    let late = kept.look(&looked.record, record.deadline.expect("it has one"), 100).record;
    assert_eq!(late.verdict, Verdict::Inconclusive, "{}", late.reason);
}

#[test]
fn truths_that_are_missing_on_both_sides_or_on_the_stable_one_stop_nothing() {
    for (canary, stable) in [(5, 45), (0, 45), (0, 0), (10, 90)] {
        let kept = Kept { minutes: missing(600, canary, stable), ..Kept::default() };
        let looked = kept.look(&record(), minute(800), 100);
        assert_eq!(looked.notice, None);
        assert!(looked.record.reason.contains("without truth after 2h"), "{}", looked.record.reason);
    }
}

#[test]
fn minutes_of_two_shares_are_no_one_table() {
    // Truths get rarer when the share grows: within each share both arms lose the same.
    let of = |version: &str, at, predicted, without| LabelMinute {
        version: version.parse().expect("valid"),
        minute: minute(at),
        predicted,
        labelled: predicted - without,
    };
    let early = (0..300).flat_map(|at| [of("2", at, 1, 0), of("1", at, 99, 0)]);
    let late = (300..600).flat_map(|at| [of("2", at, 50, 25), of("1", at, 50, 25)]);
    let kept = Kept { minutes: early.chain(late).collect(), ..Kept::default() };
    let mut record = record();
    record.deadline = None;
    let changed = News { share: Some((BasisPoints(5000), minute(300))), ..News::default() };
    record = look(&record, &changed, minute(301)).record;
    let analysis = |record: &CanaryRecord| Analysis::of(record).expect("readable").labels.expect("watched");
    let wanted = Analysis::of(&record).expect("readable").ripening(&record, minute(800)).expect("watched");
    let ripe = Ripe {
        pairs: vec![],
        through: (wanted.until, i64::MAX),
        minutes: kept.minutes,
        before: wanted.minutes.1,
    };
    let news = News { share: Some((BasisPoints(5000), minute(300))), ripe: Some(ripe), ..News::default() };
    record = look(&record, &news, minute(800)).record;
    assert!(!analysis(&record).are_lost());
    assert!(analysis(&record).rate.test.log_e_worse() <= 0.0);
}

/// A request for the race `block`, of which both versions were wrong by so much.
fn race(block: &str, seq: i64, served: i64, at: i64, error: f64) -> PairedError {
    let of = of(seq, served, at);
    PairedError { block: Some(block.to_owned()), canary: error, stable: error, ..of }
}

/// Requests for two races in turn, every five minutes of one day; one is wrong by 0 or 40, the other by 10.
fn in_turn(names: [&str; 2], first: i64, day: i64) -> Vec<PairedError> {
    let pair = |i: i64| {
        let (name, error) = if i % 2 == 0 { (names[0], 20.0 * (i % 4) as f64) } else { (names[1], 10.0) };
        race(name, first + i, day * DAY + 5 * i, (day + 5) * DAY, error)
    };
    (0..40).map(pair).collect()
}

/// A week's canary whose scale is known from races that were run in turn before it.
fn after_races() -> CanaryRecord {
    let mut record = waiting(WEEK);
    record.deadline = None;
    let before: Vec<_> = (-27..-9).map(|day| (day, format!("x{day}"), format!("y{day}"))).collect();
    let mut races: Vec<_> =
        before.iter().flat_map(|(day, x, y)| in_turn([x, y], 1000 + 100 * day, *day)).collect();
    // Of races that the window of the history cuts, at either end, single requests are known.
    races.insert(0, race("cut", -2000, -27 * DAY - 60, -22 * DAY, 500.0));
    races.push(race("still run", 1500, -7 * DAY - 30, -2 * DAY, 500.0));
    let known = News { stable_errors: races, ..News::default() };
    look(&record, &known, start()).record
}

#[test]
fn races_whose_requests_come_of_age_in_turn_are_one_bet_each() {
    let mut record = after_races();
    assert_eq!(record.view().rules[0].clip, Some(20.0), "the scale is that of whole races");
    let mut kept = Kept { pairs: in_turn(["a", "b"], 1, 0), ..Kept::default() };
    // One comes a day after the last of its race.
    kept.pairs.push(race("a", 41, 100, WEEK + DAY + 400, 40.0));
    let mut seen = vec![];
    for now in (WEEK - 60..WEEK + 2 * DAY).step_by(64) {
        record = kept.look(&record, minute(now), 7).record;
        let view = record.view();
        seen.push((view.rules[0].canary.n, counted(&record) - 50, view.late_pairs));
        if (WEEK..WEEK + DAY).contains(&now) {
            assert!(record.reason.ends_with(" not complete"), "{}", record.reason);
        }
    }
    seen.dedup();
    assert_eq!(seen, [(0, 0, 0), (2, 40, 0), (2, 40, 1)]);
    assert!(record.reason.ends_with("; 1 pair too late for the block"), "{}", record.reason);
    // Whoever looks once at the end finds the same.
    let once = kept.look(&after_races(), minute(WEEK + 2 * DAY), 1000).record;
    assert_eq!(once.view().rules, record.view().rules);
    assert_eq!(once.view().late_pairs, 1);
}

#[test]
fn a_rule_that_observes_old_requests_delays_none_that_decides() {
    let mut old = rule(OnlineMetric::AbsError);
    (old.role, old.label_horizon) = (Role::Observe, Duration::from_secs(7 * 24 * 3600));
    let beside = || canary(vec![rule(OnlineMetric::ErrorRate), old.clone()], &[(1000, 60)]);
    for minutes in [50, 90] {
        let good = |_| ((100, 1), (900, 9));
        let (alone, both) = (watch(errors(), minutes, good).0, watch(beside(), minutes, good).0);
        assert_eq!(alone.verdict, if minutes > 60 { Verdict::Pass } else { Verdict::Inconclusive });
        assert_eq!(both.verdict, alone.verdict, "{}", both.reason);
    }
    let bad = |at: i64| ((10, 5), (90, u64::from(at % 2 == 0)));
    assert_eq!(watch(beside(), 60, bad).1, watch(errors(), 60, bad).1);
}
