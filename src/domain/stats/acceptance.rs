//! Two other ways in which a canary is good enough: within a number of points
//! of the stable arm, or below a rate that is fine whatever the stable arm does.

use super::eprocess::ErrorTest;
use super::rate_bound::RateBound;

/// `ln E` that the canary's rate exceeds the stable one by less than `points` (0.002 for 0.2 points): against every
/// odds ratio that so much more can mean at a stable rate below its upper bound at level `beta / 2`.
///
/// At `ln(2 / beta)` it is shown, wrongly with probability at most `beta`: half of it is the odds ratio's and half the
/// stable rate's.
pub fn log_e_within_points(test: &ErrorTest, stable: &RateBound, points: f64, beta: f64) -> f64 {
    test.log_e_below(odds_ratio_of_points(stable.upper(beta / 2.0), points))
}

/// Is the canary's rate shown to be below `floor`? The only way to accept
/// a canary when neither arm has an error.
pub fn below_floor(canary: &RateBound, floor: f64, beta: f64) -> bool {
    canary.is_below(floor, beta)
}

/// The smallest odds ratio that `points` more can mean at a stable rate of at most `upper`.
///
/// It falls with the rate up to `(1 - points) / 2` and rises again beyond.
pub fn odds_ratio_of_points(upper: f64, points: f64) -> f64 {
    let rate = upper.min((1.0 - points) / 2.0);
    (rate + points) / (1.0 - rate - points) * ((1.0 - rate) / rate)
}

#[cfg(test)]
mod tests {
    use super::super::interval::ODDS_RATIO_MAX;
    use super::super::table::{Arm, Table};
    use super::*;

    fn arm(n: u64, e: u64) -> Arm {
        Arm::new(n, e).expect("valid")
    }

    #[test]
    fn without_any_error_only_the_floor_accepts() {
        let mut test = ErrorTest::new(1.5).expect("valid");
        let mut canary = RateBound::default();
        for _ in 0..10 {
            let table = Table { canary: arm(100, 0), stable: arm(900, 0) };
            test.observe(&table, 1.0);
            canary.observe(table.canary, 1.0);
        }
        assert_eq!(test.log_e_non_inferior(), 0.0);
        // S = 0 at 0.05: 4.77 expected errors are not ruled out in 1,000 requests.
        assert!(below_floor(&canary, 0.0048, 0.05));
        assert!(!below_floor(&canary, 0.0047, 0.05));
    }

    #[test]
    fn points_are_judged_at_the_stable_rate() {
        let mut test = ErrorTest::new(1.5).expect("valid");
        let mut stable = RateBound::default();
        let within_points = |test: &ErrorTest, stable: &RateBound, points: f64, beta: f64| {
            log_e_within_points(test, stable, points, beta) >= (2.0 / beta).ln()
        };
        assert!(!within_points(&test, &stable, 0.9, 0.05), "no evidence accepts nothing");
        for _ in 0..200 {
            let table = Table { canary: arm(100, 1), stable: arm(900, 9) };
            test.observe(&table, 1.0);
            stable.observe(table.stable, 1.0);
        }
        assert!(within_points(&test, &stable, 0.01, 0.05));
        assert!(!within_points(&test, &stable, 0.0005, 0.05));
        assert!(!within_points(&test, &stable, 0.0, 0.05));
        assert!(!within_points(&test, &stable, f64::NAN, 0.05));
    }

    #[test]
    fn the_evidence_of_points_is_that_of_the_interval() {
        let mut test = ErrorTest::new(1.5).expect("valid");
        let mut stable = RateBound::default();
        for minute in 0..120 {
            let table = Table { canary: arm(100, minute % 3), stable: arm(900, 9) };
            test.observe(&table, 1.0);
            stable.observe(table.stable, 1.0);
            for (points, beta) in [(0.001, 0.05), (0.004, 0.05), (0.004, 0.4), (0.02, 0.01), (0.3, 0.05)] {
                let (_, upper) = test.interval(beta / 2.0);
                let least = odds_ratio_of_points(stable.upper(beta / 2.0), points);
                let evidence = log_e_within_points(&test, &stable, points, beta);
                // The interval is cut off where ratios are no longer told apart.
                let shown = upper < ODDS_RATIO_MAX && upper < least;
                assert_eq!(evidence >= (2.0 / beta).ln(), shown, "{minute} {points} {beta}: {upper} {least}");
            }
        }
        assert_eq!(log_e_within_points(&test.without_interval(), &stable, 0.02, 0.05), 0.0);
    }

    #[test]
    fn the_limit_is_the_least_odds_ratio_over_all_lower_rates() {
        for (upper, points) in [(0.01, 0.002), (0.3, 0.1), (0.49, 0.2), (0.9, 0.05), (1.0, 0.3)] {
            let limit = odds_ratio_of_points(upper, points);
            for i in 1..1000 {
                let s = upper * f64::from(i) / 1000.0;
                if s + points < 1.0 {
                    let odds_ratio = (s + points) / (1.0 - s - points) * (1.0 - s) / s;
                    assert!(limit <= odds_ratio * (1.0 + 1e-12), "{upper} {points} {s}");
                }
            }
        }
    }
}
