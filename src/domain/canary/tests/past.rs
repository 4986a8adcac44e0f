//! Canaries of all kinds, and the decision made again from what was kept of them.

use proptest::prelude::*;

use super::labels::Kept;
use super::*;
use crate::domain::evidence::LabelMinute;

/// Minutes of history before a canary.
const BEFORE: i64 = 70;

/// Requests and errors of both arms in a minute, and whether the canary is slow.
type Minute = ((u64, u64), (u64, u64), bool);

/// What happens to a canary, and how it is judged.
#[derive(Debug, Clone)]
struct Story {
    rules: Vec<CompareRule>,
    two_stages: bool,
    /// Seconds from its start to the first look.
    offset: i64,
    traffic: Vec<Minute>,
    /// When a request was served, how long its truth took, errors of both, and the block.
    pairs: Vec<(i64, i64, f64, f64, Option<u8>)>,
    /// Requests of the canary without truth, of ten.
    missing: u64,
    /// Somebody promotes it so many looks after it may be.
    promoted_after: Option<usize>,
}

fn rules() -> impl Strategy<Value = Vec<CompareRule>> {
    let of = |metric: OnlineMetric| {
        let acceptable = if metric == OnlineMetric::AbsError { 20.0 } else { 0.3 };
        let ratio = (1.2..8.0_f64).prop_map(Margin::Ratio);
        let margin = match metric {
            OnlineMetric::ErrorRate | OnlineMetric::LatencySlowShare => {
                prop_oneof![ratio, (0.01..0.2_f64).prop_map(|points| Margin::Points { points })].boxed()
            }
            OnlineMetric::AbsError => ratio.boxed(),
        };
        let limits = (any::<bool>(), any::<bool>(), any::<bool>(), prop::option::of(1..=3_u8), margin);
        limits.prop_map(move |(floor, guard, observes, weight, margin)| CompareRule {
            margin,
            acceptable_below: floor.then_some(acceptable),
            never_above: guard.then_some(2.0 * acceptable),
            weight: weight.map(|weight| f64::from(weight) / 10.0),
            role: if observes { Role::Observe } else { Role::Gating },
            ..rule(metric)
        })
    };
    let truths = (of(OnlineMetric::AbsError), prop::option::of(1..20_u64)).prop_map(|(rule, horizon)| {
        CompareRule { label_horizon: Duration::from_secs(60 * horizon.unwrap_or(0)), ..rule }
    });
    let some = (
        prop::option::weighted(0.8, of(OnlineMetric::ErrorRate)),
        prop::option::of(of(OnlineMetric::LatencySlowShare)),
        prop::option::of(truths),
    );
    some.prop_map(|(errors, slow, truths)| errors.into_iter().chain(slow).chain(truths).collect())
}

fn story() -> impl Strategy<Value = Story> {
    let traffic = (0..40_u64, 0..4_u64, 60..400_u64, 0..4_u64, any::<bool>());
    let traffic = traffic.prop_map(|(n, e, m, f, slow)| ((n, e.min(n)), (m, f), slow));
    let pair = (0..50_i64, 0..30_i64, 0.5..6.0_f64, 0.5..3.0_f64, prop::option::of(any::<u8>()));
    let pairs = prop::collection::vec(pair, 0..120);
    (
        rules(),
        any::<bool>(),
        // At no full minute: a truth that comes at the time of a look may be read by it or not.
        1..60_i64,
        prop::collection::vec(traffic, 20..60),
        pairs,
        prop_oneof![Just(0), Just(9)],
        prop::option::of(0..4_usize),
        any::<bool>(),
    )
        .prop_map(|(rules, two_stages, offset, traffic, pairs, missing, promoted_after, is_good)| {
            let mut story = Story { rules, two_stages, offset, traffic, pairs, missing, promoted_after };
            // Else hardly any would ever pass.
            for ((_, errors), _, slow) in story.traffic.iter_mut().filter(|_| is_good) {
                (*errors, *slow) = (0, false);
            }
            for (_, _, canary, stable, _) in story.pairs.iter_mut().filter(|_| is_good) {
                *canary = 0.7 * *stable;
            }
            story
        })
}

impl Story {
    fn record(&self) -> CanaryRecord {
        let stages: &[(u16, u64)] = if self.two_stages { &[(500, 9), (1000, 12)] } else { &[(1000, 15)] };
        canary(self.rules.clone(), stages)
    }

    fn minutes(&self) -> Vec<EvidenceMinute> {
        let before = (-BEFORE..0).map(|at| seen("1", at, 0, (90, u64::from(at % 5 == 0)), 20.0));
        let during = self.traffic.iter().zip(0..).flat_map(|((c, s, slow), at)| {
            let latency = if *slow { 900.0 } else { 20.0 };
            [seen("2", at, 0, *c, latency), seen("1", at, 0, *s, 20.0)]
        });
        before.chain(during).filter(|minute| minute.counts.n > 0).collect()
    }

    fn kept(&self) -> Kept {
        let has_horizon = self.rules.iter().any(|rule| !rule.label_horizon.is_zero());
        let mut pairs: Vec<_> = self
            .pairs
            .iter()
            .map(|(served, took, canary, stable, block)| PairedError {
                canary: *canary,
                stable: *stable,
                // What waits for its age waits a day for the end of its block: longer than these canaries.
                block: block.filter(|_| !has_horizon).map(|_| (served / 3).to_string()),
                ..super::labels::of(0, *served, served + took)
            })
            .collect();
        pairs.sort_by_key(|pair| pair.at);
        (1..).zip(&mut pairs).for_each(|(seq, pair)| pair.seq = seq);
        let labels = (0..self.traffic.len() as i64).flat_map(|at| {
            ["2", "1"].map(|version| LabelMinute {
                version: version.parse().expect("valid"),
                minute: minute(at),
                predicted: 10,
                labelled: if version == "2" { 10 - self.missing } else { 10 },
            })
        });
        Kept { pairs, minutes: labels.collect() }
    }

    fn stable_errors(&self) -> Vec<PairedError> {
        let error = |nth: i64| 1.0 + (nth % 7) as f64;
        let of = |nth| PairedError {
            canary: error(nth),
            stable: error(nth),
            ..super::labels::of(nth, -nth, -nth / 2)
        };
        (1..60).map(of).collect()
    }

    /// The controller's looks, one a minute; what they came to, and when.
    fn play(&self) -> (CanaryRecord, Option<Timestamp>, Past) {
        let (all, kept) = (self.minutes(), self.kept());
        let (mut record, mut shares, mut promoted_at) = (self.record(), vec![], None);
        let (mut decided_at, mut passed) = (None, 0);
        for look_nr in 0..self.traffic.len() as i64 + 4 {
            let now = minute(look_nr) + TimeDelta::seconds(self.offset);
            let share = shares.last().map(|(since, share)| (*share, *since));
            let share =
                share.or(Some((record.stage_share(), record.started_at))).filter(|_| promoted_at.is_none());
            let is_new = |it: &&EvidenceMinute| {
                it.minute <= now && (look_nr == 0 || it.minute > now - TimeDelta::minutes(2))
            };
            let numbered = |it: &EvidenceMinute| EvidenceMinute {
                seq: (it.minute - start()).num_minutes() + 1000,
                ..it.clone()
            };
            let minutes = all.iter().filter(is_new).map(numbered).collect();
            let stable_errors = if look_nr == 0 { self.stable_errors() } else { vec![] };
            let looked =
                kept.look_with(&record, News { minutes, stable_errors, share, ..News::default() }, now, 1000);
            if looked.record.verdict != record.verdict {
                decided_at = Some(now);
            }
            record = looked.record;
            match looked.decision {
                Decision::Continue => {}
                Decision::Shift { stage, reason: _ } => {
                    (record.stage, record.stage_since) = (stage, now);
                    shares.push((now, record.stage_share()));
                }
                Decision::StopTraffic { .. } => shares.push((now, BasisPoints(0))),
                Decision::RollBack { .. } => {
                    (record.state, record.ended_at) = (CanaryState::RolledBack, Some(now));
                    break;
                }
            }
            passed += usize::from(record.verdict == Verdict::Pass);
            if self.promoted_after.is_some_and(|after| passed > after) && promoted_at.is_none() {
                (record.state, promoted_at) = (CanaryState::Baking, Some(now));
            }
        }
        let past = Past {
            watched: Watched::of(&record, shares, promoted_at).expect("looked at"),
            minutes: all,
            pairs: kept.pairs,
            stable_errors: self.stable_errors(),
            labels: kept.minutes,
        };
        (record, decided_at, past)
    }
}

/// The last look of those that are made again, and when the verdict changed last.
fn again(past: &Past) -> (Again, Option<Timestamp>) {
    let (mut verdict, mut decided_at) = (Verdict::Inconclusive, None);
    let last = past.look_again(|again| {
        if std::mem::replace(&mut verdict, again.canary.verdict) != verdict {
            decided_at = Some(again.at);
        }
        Ok::<_, ()>(())
    });
    (last.expect("nobody minds").expect("looked at"), decided_at)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn what_was_kept_of_a_canary_decides_the_same_at_the_same_look(story in story()) {
        let (record, decided_at, past) = story.play();
        let (last, again_at) = again(&past);
        prop_assert_eq!(last.canary.verdict, record.verdict, "{} / {}", last.canary.reason, record.reason);
        prop_assert_eq!(again_at, decided_at);
        prop_assert_eq!(&last.canary.reason, &record.reason);
        let (again, first) = (last.canary.view(), record.view());
        prop_assert_eq!((again.rules, again.labels), (first.rules, first.labels));
    }
}

#[test]
fn a_stricter_alpha_takes_longer_over_the_same_canary() {
    let worse = vec![((30, 2), (300, 3), false); 60];
    let story = Story {
        rules: vec![rule(OnlineMetric::ErrorRate)],
        two_stages: false,
        offset: 17,
        traffic: worse,
        pairs: vec![],
        missing: 0,
        promoted_after: None,
    };
    let (record, decided_at, mut past) = story.play();
    assert_eq!(record.verdict, Verdict::Fail, "{}", record.reason);
    past.watched.canary.rules.alpha = 0.4;
    let (last, sooner) = again(&past);
    assert_eq!(last.canary.verdict, Verdict::Fail);
    assert!(sooner < decided_at, "{sooner:?} {decided_at:?}");
    past.watched.canary.rules.alpha = 1e-9;
    assert_eq!(
        again(&past).0.canary.verdict,
        Verdict::Inconclusive,
        "its evidence ends where it was rolled back"
    );
}
