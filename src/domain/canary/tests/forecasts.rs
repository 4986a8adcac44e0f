//! What a canary can show, beforehand.

use super::*;

fn expected(requests_per_day: f64, error_rate: f64) -> Expected {
    Expected { requests_per_day, error_rate, slow_share: 0.05, dispersion: 1.0 }
}

fn forecast(rules: &Compare, hours: f64, expected: Expected) -> Forecast {
    let stages = [Stage { share: BasisPoints(1000), min_time: Duration::ZERO }];
    Forecast::new(rules, &stages, hours, expected, MinTable::default()).expect("valid")
}

#[test]
fn much_traffic_gives_the_figures_of_the_reference() {
    let rules = Compare { alpha: 0.01, ..errors().rules };
    let forecast = forecast(&rules, 24.0, expected(144_000.0, 0.01));
    let rule = &forecast.rules[0];
    assert!(!forecast.simulated && !forecast.is_underpowered());
    assert_eq!(rule.detectable_ratio.map(|ratio| (100.0 * ratio).round()), Some(142.0));
    let proof = rule.to_prove.expect("in time");
    assert_eq!(((proof.requests / 100.0).round(), (proof.minutes / 6.0).round()), (41.0, 69.0));
}

#[test]
fn little_traffic_is_played_through_and_says_that_it_is_too_little() {
    let forecast = forecast(&errors().rules, 24.0, expected(200.0, 0.02));
    assert!(forecast.simulated && forecast.is_underpowered());
    let everything = forecast.worse.last().expect("always the last");
    assert!(everything.fails_everything && everything.rolled_back > 0.95, "{everything:?}");
    assert!(everything.hours.is_some_and(|hours| hours < 15.0), "{everything:?}");
    assert!(forecast.advice().is_some_and(|advice| advice.contains("a larger share")));
}

#[test]
fn a_floor_is_shown_where_a_margin_is_not() {
    let mut rules = errors().rules;
    let hours = 72.0;
    let without = forecast(&rules, hours, expected(14_400.0, 0.005));
    rules.rules[0].acceptable_below = Some(0.05);
    let with = forecast(&rules, hours, expected(14_400.0, 0.005));
    assert!(
        without.equal.promoted < 0.5 && with.equal.promoted > 0.9,
        "{:?} {:?}",
        without.equal,
        with.equal
    );
}

#[test]
fn a_forecast_promises_nothing_of_what_only_observes() {
    let observed = CompareRule { role: Role::Observe, ..rule(OnlineMetric::ErrorRate) };
    let by_truth = Compare { rules: vec![rule(OnlineMetric::AbsError), observed.clone()], ..errors().rules };
    let by_truth = forecast(&by_truth, 840.0, expected(14_400.0, 0.01));
    assert!(by_truth.worse.is_empty() && !by_truth.is_underpowered(), "{by_truth:?}");
    insta::assert_snapshot!(by_truth.sentence(), @"at 14400 requests a day with 1.00 % errors; prediction errors decide, as their truth arrives: how soon, traffic does not say");
    let nothing = Compare { rules: vec![observed], ..errors().rules };
    insta::assert_snapshot!(forecast(&nothing, 24.0, expected(14_400.0, 0.01)).sentence(), @"at 14400 requests a day with 1.00 % errors; no rule decides");
    let slow = Compare { rules: vec![rule(OnlineMetric::LatencySlowShare)], ..errors().rules };
    insta::assert_snapshot!(forecast(&slow, 24.0, expected(144_000.0, 0.01)).sentence(), @"at 144000 requests a day with 1.00 % errors, a canary that is no worse passes within 24 h with a chance of 100 %");
    let both = Compare {
        rules: vec![rule(OnlineMetric::ErrorRate), rule(OnlineMetric::AbsError)],
        ..errors().rules
    };
    let both = forecast(&both, 24.0, expected(144_000.0, 0.01)).sentence();
    assert!(both.ends_with(" h; prediction errors decide too, as their truth arrives"), "{both}");
}

#[test]
fn a_canary_says_what_it_can_show_once_the_traffic_before_it_is_known() {
    let before: Vec<_> = (1..=300).map(|ago| seen("1", -ago, ago, (100, 1), 20.0)).collect();
    let looked = look(&errors(), &news(before), minute(3));
    insta::assert_snapshot!(looked.forecast.expect("said").sentence, @"at 144000 requests a day with 1.00 % errors, a canary that is no worse passes within 24 h with a chance of 97 %; one with 1.5x the errors is rolled back, in 8 of 10 cases within 16.0 h");
    let again = look(&looked.record, &News::default(), minute(4));
    assert_eq!(again.forecast, None);
    assert!(again.record.view().forecast.is_some());
}

#[test]
fn playing_a_canary_through_is_bounded_work_whatever_the_traffic() {
    let mut rules = errors().rules;
    rules.rules[0].acceptable_below = Some(0.05);
    rules.rules.push(CompareRule::of(OnlineMetric::LatencySlowShare));
    let stage =
        |share, hours: u64| Stage { share: BasisPoints(share), min_time: Duration::from_secs(3600 * hours) };
    for (stages, hours, per_day) in [
        (vec![stage(1000, 0)], 72.0, 1000.0),
        (vec![stage(100, 0)], 720.0, 5000.0),
        // Few tables at the first share, ever so many at the last.
        (vec![stage(1, 1), stage(5000, 0)], 24.0, 144_000.0),
    ] {
        let expected = Expected { slow_share: 0.01, ..expected(per_day, 0.001) };
        let forecast = Forecast::new(&rules, &stages, hours, expected, MinTable::default()).expect("valid");
        assert!(forecast.judged <= 200_000, "{stages:?}: {}", forecast.judged);
    }
}
