//! A margin in points of the stable version's rate.

use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use rand_distr::{Binomial, Distribution};

use super::super::super::stats::{Arm, Table};
use super::*;

fn rules(points: f64) -> Compare {
    let mut rules = errors().rules;
    rules.rules[0].margin = Margin::Points { points };
    rules
}

fn replay(points: f64) -> Replay {
    let plain = MinTable { canary: 0, stable: 0 };
    // As simulations ask for it: what points need stays.
    Replay::new(rules(points), plain, Some(1.0)).expect("valid").without_interval()
}

fn counts(at: i64, canary: (u64, u64), stable: (u64, u64)) -> ReplayMinute {
    let arm = |(n, e)| Arm::new(n, e).expect("valid");
    let errors = Table { canary: arm(canary), stable: arm(stable) };
    ReplayMinute { at: minute(at), errors, slow: Table::default(), pairs: vec![] }
}

/// The minute in which it is decided, if it is.
fn played(points: f64, minutes: i64, counted: impl Fn(i64) -> ((u64, u64), (u64, u64))) -> (Verdict, Replay) {
    let mut replay = replay(points);
    let mut verdict = Verdict::Inconclusive;
    for at in 0..minutes {
        let (canary, stable) = counted(at);
        verdict = replay.minute(&counts(at, canary, stable)).expect("counts");
        if verdict != Verdict::Inconclusive {
            break;
        }
    }
    (verdict, replay)
}

#[test]
fn a_rare_error_that_doubles_is_within_points_that_are_wide_enough() {
    // One in ten thousand, and two: twice as many, and 0.01 points more.
    let twice = |at: i64| ((1_000, u64::from(at % 5 == 0)), (9_000, u64::from(at % 10 != 0)));
    let (verdict, replay) = played(0.005, 60, twice);
    assert_eq!(verdict, Verdict::Pass, "{}", replay.reason());
    insta::assert_snapshot!(replay.reason(), @"canary errors 2 of 9,000 (0.022 %), stable 8 of 81,000 (0.010 %): not 0.5 points worse (evidence 106:1, limit 40:1)");
    let evidence = replay.evidence();
    assert!(evidence.log_e_ni >= limit_not_worse(&rules(0.005).rules[0], 0.05), "{evidence:?}");
    assert_eq!(played(0.0001, 60, twice).0, Verdict::Inconclusive);
}

#[test]
fn no_errors_at_all_show_no_points() {
    // A ratio of two rates of nothing may be anything; `acceptable_below` is for that.
    assert_eq!(played(0.02, 600, |_| ((100, 0), (900, 0))).0, Verdict::Inconclusive);
}

#[test]
fn minutes_without_the_canary_change_no_evidence() {
    let both = |at: i64| ((100, u64::from(at % 2 == 0)), (900, 9));
    let known = played(0.02, 5, both).1;
    let mut replay = known.clone();
    for at in 5..600 {
        replay.minute(&counts(at, (0, 0), (9_000, 900))).expect("counts");
    }
    assert_eq!(replay.evidence().log_e_ni, known.evidence().log_e_ni);
}

#[test]
fn one_that_is_worse_by_the_points_passes_no_oftener_than_beta() {
    let (points, runs) = (0.01, 300);
    let mut wrong = 0;
    for seed in 0..runs {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut draw = |n: u64, rate: f64| (n, Binomial::new(n, rate).expect("a rate").sample(&mut random));
        let mut replay = replay(points);
        for at in 0..240 {
            let minute = counts(at, draw(100, 0.03), draw(900, 0.02));
            match replay.minute(&minute).expect("counts") {
                Verdict::Inconclusive => {}
                Verdict::Pass => {
                    wrong += 1;
                    break;
                }
                Verdict::Fail | Verdict::Error => break,
            }
        }
    }
    // 5 % of 300 and three standard errors.
    assert!(wrong <= 26, "{wrong} of {runs}");
}

#[test]
fn a_forecast_knows_the_points_at_the_rate_it_expects() {
    let stages = [Stage { share: BasisPoints(1_000), min_time: Duration::from_secs(3600) }];
    let expected =
        Expected { requests_per_day: 1_440_000.0, error_rate: 0.02, slow_share: 0.05, dispersion: 1.0 };
    let of = |margin: Margin| {
        let mut rules = errors().rules;
        rules.rules[0].margin = margin;
        Forecast::reckoned(&rules, &stages, 24.0, expected).expect("valid").rules[0].clone()
    };
    let (points, ratio) = (of(Margin::Points { points: 0.01 }), of(Margin::Ratio(1.5)));
    // One point more than two is half as much again; its proof is at half of beta, and waits for the stable rate.
    let requests = |rule: &RuleForecast| rule.to_prove.expect("it can be shown").requests;
    assert!(requests(&points) > requests(&ratio), "{points:?} {ratio:?}");
    assert!(requests(&of(Margin::Points { points: 0.002 })) > 10.0 * requests(&points));

    let mut minutes: Vec<i64> = (0..101).map(|seed| minute_of_proof(0.01, 0.02, seed)).collect();
    minutes.sort_unstable();
    let (found, said) = (minutes[50] as f64, points.to_prove.expect("it can be shown").minutes);
    assert!((0.7..1.4).contains(&(found / said)), "played {found}, forecast {said}");
}

/// The minute in which a canary with the stable version's rate, and 100 requests a minute, passes.
fn minute_of_proof(points: f64, rate: f64, seed: u64) -> i64 {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut draw = |n: u64| (n, Binomial::new(n, rate).expect("a rate").sample(&mut random));
    let mut replay = replay(points);
    let passes = |at: &i64| {
        let (canary, stable) = (draw(100), draw(900));
        replay.minute(&counts(*at, canary, stable)).expect("counts") == Verdict::Pass
    };
    (0..1440).find(passes).unwrap_or(1440)
}
