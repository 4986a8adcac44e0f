//! Is the canary worse, or is it not worse by more than the margin? The error
//! rate, and every other share of requests that can be counted in both arms:
//! slow requests (latency beyond a frozen quantile), unlabelled predictions.

use serde::{Deserialize, Deserializer, Serialize};

use super::interval::{LikelihoodCurve, ODDS_RATIO_MAX, ODDS_RATIO_MIN};
use super::kernel::Conditional;
use super::table::Table;
use super::{InvalidInput, checked, log_mixture, tempering};

/// Odds ratios and weights of the evidence that the canary is worse. The first
/// is a built-in tolerance: a canary under about 1.12x worse is never rolled back.
pub(super) const WORSE: [(f64, f64); 7] =
    [(1.25, 0.10), (1.5, 0.20), (2.0, 0.25), (3.0, 0.20), (5.0, 0.10), (10.0, 0.10), (50.0, 0.05)];
/// Odds ratios and weights of the evidence that the canary is not worse by the margin.
pub(super) const NOT_WORSE: [(f64, f64); 3] = [(0.5, 0.10), (0.8, 0.20), (1.0, 0.70)];
/// Where an odds ratio of 1 stands in [`NOT_WORSE`].
const EQUAL: usize = 2;

/// Two e-processes over the same tables, and the interval that goes with them.
///
/// `E_worse` tests "the odds ratio is at most 1": at `1/alpha` the canary is
/// worse. `E_non_inferior` tests "the odds ratio is at least the margin": at
/// `1/beta` it is not. Both are mixtures of likelihood ratios, multiplied over
/// tables. A rate ratio R serves as margin: if the rate ratio is R or more, so
/// is the odds ratio.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ErrorTest {
    #[serde(deserialize_with = "stored_margin")]
    margin: f64,
    /// Accumulated log-likelihood at each odds ratio of [`WORSE`].
    worse: [f64; WORSE.len()],
    /// Accumulated log-likelihood at each odds ratio of [`NOT_WORSE`].
    not_worse: [f64; NOT_WORSE.len()],
    /// Accumulated log-likelihood at the margin.
    at_margin: f64,
    /// For the interval; no verdict needs it.
    curve: Option<LikelihoodCurve>,
}

impl ErrorTest {
    /// No evidence yet. `margin` is the odds (or rate) ratio at which the canary
    /// is too much worse: 1.5 for "50 % worse".
    ///
    /// # Errors
    /// A margin outside 1 to [`ODDS_RATIO_MAX`].
    pub fn new(margin: f64) -> Result<Self, InvalidInput> {
        Ok(Self {
            margin: checked_margin(margin)?,
            worse: [0.0; WORSE.len()],
            not_worse: [0.0; NOT_WORSE.len()],
            at_margin: 0.0,
            curve: Some(LikelihoodCurve::default()),
        })
    }

    /// The same test without [`ErrorTest::interval`], at a sixth of the cost of a table: for simulations.
    #[must_use]
    pub fn without_interval(self) -> Self {
        Self { curve: None, ..self }
    }

    /// Whether [`ErrorTest::interval`] knows anything.
    pub fn has_interval(&self) -> bool {
        self.curve.is_some()
    }

    /// Adds one closed table. `exponent` tempers it ([`super::Dispersion::exponent`],
    /// known before the table: from earlier tables only); it is held within 0 to 1.
    pub fn observe(&mut self, table: &Table, exponent: f64) {
        let Some(conditional) = Conditional::of(table) else { return };
        let exponent = tempering(exponent);
        let increment = |odds_ratio: f64| exponent * conditional.log_probability(odds_ratio);
        for (sum, (odds_ratio, _)) in self.worse.iter_mut().zip(WORSE) {
            *sum += increment(odds_ratio);
        }
        for (sum, (odds_ratio, _)) in self.not_worse.iter_mut().zip(NOT_WORSE) {
            *sum += increment(odds_ratio);
        }
        self.at_margin += increment(self.margin);
        if let Some(curve) = &mut self.curve {
            curve.observe(&conditional, exponent);
        }
    }

    /// The margin given to [`ErrorTest::new`].
    pub fn margin(&self) -> f64 {
        self.margin
    }

    /// `ln E_worse`: at `ln(1/alpha)` or more the canary is worse.
    pub fn log_e_worse(&self) -> f64 {
        let null = self.not_worse[EQUAL];
        log_mixture(self.worse.iter().zip(WORSE).map(|(sum, (_, weight))| (weight, sum - null)))
    }

    /// `ln E_ni`: at `ln(1/beta)` or more the canary is not worse by the margin.
    pub fn log_e_non_inferior(&self) -> f64 {
        let null = self.at_margin;
        log_mixture(self.not_worse.iter().zip(NOT_WORSE).map(|(sum, (_, weight))| (weight, sum - null)))
    }

    /// The odds ratios not ruled out at level `alpha`, lower and upper: a
    /// confidence sequence, right at every look at once.
    ///
    /// A limit of [`super::interval::ODDS_RATIO_MIN`] or [`ODDS_RATIO_MAX`] means
    /// "or beyond"; with no evidence, or an `alpha` that is no probability, that
    /// is the whole range; so it is after [`ErrorTest::without_interval`].
    pub fn interval(&self, alpha: f64) -> (f64, f64) {
        let Some(curve) = &self.curve else { return (ODDS_RATIO_MIN, ODDS_RATIO_MAX) };
        curve.range_below(self.log_alternatives(), -alpha.ln())
    }

    /// `ln E` that the odds ratio is below `odds_ratio`: at `ln(1/alpha)` the upper limit of
    /// [`ErrorTest::interval`] at `alpha` is. 0 where the evidence points the other way, and after
    /// [`ErrorTest::without_interval`].
    pub fn log_e_below(&self, odds_ratio: f64) -> f64 {
        self.curve.as_ref().map_or(0.0, |curve| curve.log_e_below(self.log_alternatives(), odds_ratio))
    }

    /// Both mixtures, each with half of the weight.
    fn log_alternatives(&self) -> f64 {
        let worse = self.worse.iter().zip(WORSE).map(|(sum, (_, weight))| (0.5 * weight, *sum));
        let not_worse = self.not_worse.iter().zip(NOT_WORSE).map(|(sum, (_, weight))| (0.5 * weight, *sum));
        log_mixture(worse.chain(not_worse))
    }
}

fn checked_margin(margin: f64) -> Result<f64, InvalidInput> {
    checked("margin", margin, |m| (1.0..=ODDS_RATIO_MAX).contains(&m), "a ratio from 1 to 1000")
}

fn stored_margin<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    checked_margin(f64::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::table::{Arm, MAX_REQUESTS};
    use super::super::vectors::{assert_close, number, rows};
    use super::super::{AbsoluteGuard, Dispersion, RateBound, SplitTest};
    use super::*;

    fn table(n_c: u64, e_c: u64, n_s: u64, e_s: u64) -> Table {
        let arm = |n, e| Arm::new(n, e).expect("valid");
        Table { canary: arm(n_c, e_c), stable: arm(n_s, e_s) }
    }

    fn after(margin: f64, tables: impl IntoIterator<Item = Table>) -> ErrorTest {
        let mut test = ErrorTest::new(margin).expect("valid");
        for table in tables {
            test.observe(&table, 1.0);
        }
        test
    }

    fn minute(row: &serde_json::Value) -> Table {
        let count = |key| number(row, key) as u64;
        table(count("nc"), count("ec"), count("ns"), count("es"))
    }

    #[test]
    fn the_grids_are_those_of_the_reference() {
        for meta in rows("meta") {
            let grid = |key: &str| -> Vec<(f64, f64)> {
                serde_json::from_value(meta[key].clone()).expect("pairs of numbers")
            };
            assert_eq!(grid("roll_grid"), WORSE);
            assert_eq!(grid("ni_grid"), NOT_WORSE);
        }
        assert_eq!(NOT_WORSE[EQUAL].0, 1.0);
    }

    #[test]
    fn streams_match_the_reference_at_every_minute() {
        for stream in rows("B_streams") {
            let mut half = ErrorTest::new(1.5).expect("valid");
            let mut double = ErrorTest::new(2.0).expect("valid");
            for row in stream["minutes"].as_array().expect("minutes") {
                half.observe(&minute(row), 1.0);
                double.observe(&minute(row), 1.0);
                assert_close(half.log_e_worse(), number(row, "log_E_rollback"), row);
                assert_close(half.log_e_non_inferior(), number(row, "log_E_ni_1_5"), row);
                assert_close(double.log_e_non_inferior(), number(row, "log_E_ni_2"), row);
            }
            let by_odds_ratio = super::super::vectors::numbers(&stream, "log_E_rollback_by_psi");
            for (sum, expected) in half.worse.iter().zip(by_odds_ratio) {
                assert_close(sum - half.not_worse[EQUAL], expected, &stream["name"]);
            }
        }
    }

    #[test]
    fn the_interval_matches_the_reference() {
        for row in rows("C_odds_ratio_cs") {
            let stream = rows("B_streams").into_iter().find(|stream| stream["name"] == row["stream"]);
            let stream = stream.expect("the stream is there");
            let test = after(1.5, stream["minutes"].as_array().expect("minutes").iter().map(minute));
            let (lower, upper) = test.interval(number(&row, "alpha"));
            assert_close(lower, number(&row, "psi_lower"), &row);
            assert_close(upper, number(&row, "psi_upper"), &row);
            let worse = test.worse.iter().zip(WORSE).map(|(sum, (_, weight))| (0.5 * weight, *sum));
            let equal = test.not_worse.iter().zip(NOT_WORSE).map(|(sum, (_, weight))| (0.5 * weight, *sum));
            let at_one = log_mixture(worse.chain(equal)) - test.not_worse[EQUAL];
            assert_close(at_one, number(&row, "log_E_at_psi_1"), &row);
        }
    }

    /// The mean of an e-value over all outcomes of tables with these margins, at a true odds ratio.
    fn mean_e(counts: (u64, u64, u64), truth: f64, exponent: f64, log_e: impl Fn(&ErrorTest) -> f64) -> f64 {
        let (n_c, n_s, m) = counts;
        let outcomes = m.saturating_sub(n_s)..=m.min(n_c);
        let weighted = outcomes.map(|e| {
            let table = table(n_c, e, n_s, m - e);
            let mut test = ErrorTest::new(1.5).expect("valid");
            test.observe(&table, exponent);
            let chance = Conditional::of(&table).expect("several outcomes").log_probability(truth);
            (chance + log_e(&test)).exp()
        });
        weighted.sum()
    }

    #[test]
    fn the_mean_evidence_is_at_most_one_wherever_the_null_holds() {
        for counts in [(10, 90, 3), (100, 900, 40), (50, 50, 70), (1, 9, 1)] {
            let worse = |truth, exponent| mean_e(counts, truth, exponent, ErrorTest::log_e_worse);
            let not_worse = |truth, exponent| mean_e(counts, truth, exponent, ErrorTest::log_e_non_inferior);
            assert!((worse(1.0, 1.0) - 1.0).abs() < 1e-9, "{counts:?}");
            assert!((not_worse(1.5, 1.0) - 1.0).abs() < 1e-9, "{counts:?}");
            assert!(worse(0.7, 1.0) < 1.0 && not_worse(2.0, 1.0) < 1.0, "{counts:?}");
            assert!(worse(1.0, 0.4) < 1.0 && not_worse(1.5, 0.4) < 1.0, "{counts:?}");
            assert!(worse(2.0, 1.0) > 1.0 && not_worse(1.0, 1.0) > 1.0, "{counts:?}");
        }
    }

    #[test]
    fn ten_of_ten_failures_decide_in_the_first_minute() {
        let test = after(1.5, [table(10, 10, 90, 1)]);
        assert!((test.log_e_worse() - 20.66).abs() < 0.005);
        let (lower, upper) = test.interval(0.05);
        assert!(lower > 5.0 && upper == ODDS_RATIO_MAX, "{lower} {upper}");
    }

    #[test]
    fn an_outage_of_both_arms_is_no_evidence_against_the_canary() {
        let calm = (0..30).map(|i| table(100, 1, 900, 8 + i % 3));
        let outage = (0..10).map(|_| table(100, 30, 900, 270));
        let before = after(1.5, calm.clone()).log_e_worse();
        let during = after(1.5, calm.chain(outage)).log_e_worse();
        assert!(during < before && during < 0.0, "{before} {during}");
    }

    #[test]
    fn no_errors_and_no_canary_traffic_leave_everything_open() {
        let test = after(1.5, [table(100, 0, 900, 0), table(0, 0, 900, 9), table(100, 3, 0, 0)]);
        assert_eq!(test, ErrorTest::new(1.5).expect("valid"));
        assert_eq!((test.log_e_worse().abs(), test.log_e_non_inferior().abs()), (0.0, 0.0));
        assert_eq!(test.interval(0.05), (ODDS_RATIO_MIN, ODDS_RATIO_MAX));
    }

    #[test]
    fn a_changed_split_needs_no_reset() {
        let stages = [(100, 900), (250, 750), (500, 500)];
        let equal = stages.iter().flat_map(|&(c, s)| (0..200).map(move |_| table(c, c / 50, s, s / 50)));
        let test = after(1.5, equal);
        assert!(test.log_e_worse() < 0.0);
        assert!(test.log_e_non_inferior() > 20f64.ln());
        let (lower, upper) = test.interval(0.05);
        assert!(lower < 1.0 && 1.0 < upper && upper < 1.5, "{lower} {upper}");
    }

    #[test]
    fn an_exponent_only_ever_weakens_evidence() {
        let bad = table(100, 20, 900, 20);
        let evidence = |exponent: f64| {
            let mut test = ErrorTest::new(1.5).expect("valid");
            test.observe(&bad, exponent);
            test.log_e_worse()
        };
        assert!(
            evidence(0.0).abs() < 1e-15 && evidence(-1.0).abs() < 1e-15 && evidence(f64::NAN).abs() < 1e-15
        );
        assert!(evidence(0.3) < evidence(0.6) && evidence(0.6) < evidence(1.0));
        assert_eq!(evidence(7.0), evidence(1.0));
    }

    #[test]
    fn a_margin_below_equality_is_refused_also_in_a_stored_state() {
        for margin in [0.99, 0.0, -1.0, 1001.0, f64::NAN, f64::INFINITY] {
            assert!(ErrorTest::new(margin).is_err(), "{margin}");
        }
        let mut stored = serde_json::to_value(ErrorTest::new(1.5).expect("valid")).expect("serialisable");
        stored["margin"] = 0.5.into();
        assert!(serde_json::from_value::<ErrorTest>(stored.clone()).is_err());
        stored["margin"] = 1.5.into();
        stored["curve"] = serde_json::json!([0.0, 0.0]);
        let error = serde_json::from_value::<ErrorTest>(stored).expect_err("too short");
        assert!(error.to_string().contains("2 values, expected 65"), "{error}");
    }

    /// Counts of every size, and the corners: no request, every request an error.
    fn arm() -> impl Strategy<Value = Arm> {
        let size = prop_oneof![0..=3_u64, 0..=1_000_u64, 0..=10_000_000_u64, Just(10_000_000)];
        let share = prop_oneof![Just(0.0), Just(1.0), 0.0..=0.05_f64, 0.0..=1.0_f64];
        (size, share).prop_map(|(n, share)| Arm::new(n, (n as f64 * share) as u64).expect("at most n"))
    }

    fn any_table() -> impl Strategy<Value = Table> {
        (arm(), arm()).prop_map(|(canary, stable)| Table { canary, stable })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn swapped_arms_mirror_the_evidence(table in any_table(), odds_ratio in 1e-3..1e3_f64) {
            if let (Some(this), Some(other)) = (Conditional::of(&table), Conditional::of(&table.swapped())) {
                let (one, mirrored) = (this.log_probability(odds_ratio), other.log_probability(odds_ratio.recip()));
                prop_assert!((one - mirrored).abs() <= 1e-10 * one.abs().max(1.0), "{one} {mirrored}");
            } else {
                prop_assert!(Conditional::of(&table).is_none() && Conditional::of(&table.swapped()).is_none());
            }
        }

        #[test]
        fn swapped_arms_mirror_the_interval_of_the_curve(table in any_table()) {
            // A mixture that is the same for both: the value at an odds ratio of 1.
            let range = |table: &Table| Conditional::of(table).map(|conditional| {
                let mut curve = LikelihoodCurve::default();
                curve.observe(&conditional, 1.0);
                curve.range_below(conditional.log_probability(1.0) + 1.0, 20f64.ln())
            });
            if let (Some((lower, upper)), Some((low, high))) = (range(&table), range(&table.swapped())) {
                prop_assert!((lower * high).ln().abs() < 1e-6, "{lower} {high}");
                prop_assert!((upper * low).ln().abs() < 1e-6, "{upper} {low}");
            }
        }

        #[test]
        fn zero_traffic_changes_nothing(first in any_table(), idle in arm(), exponent in 0.0..=1.0_f64) {
            let mut test = after(1.5, [first]);
            let before = test.clone();
            for empty in [
                Table::default(),
                Table { canary: Arm::default(), stable: idle },
                Table { canary: idle, stable: Arm::default() },
            ] {
                test.observe(&empty, exponent);
            }
            prop_assert_eq!(test, before);
        }

        #[test]
        fn the_order_of_rows_in_a_minute_does_not_matter(
            parts in prop::collection::vec((0..500_u64, 0..50_u64, 0..500_u64, 0..50_u64), 1..6),
        ) {
            let sum = |parts: &mut dyn Iterator<Item = &(u64, u64, u64, u64)>| {
                parts.fold(Table::default(), |total, &(n_c, e_c, n_s, e_s)| {
                    let part = table(n_c, e_c.min(n_c), n_s, e_s.min(n_s));
                    Table {
                        canary: total.canary.plus(part.canary).expect("small"),
                        stable: total.stable.plus(part.stable).expect("small"),
                    }
                })
            };
            let (forward, backward) = (sum(&mut parts.iter()), sum(&mut parts.iter().rev()));
            prop_assert_eq!(after(1.5, [forward]), after(1.5, [backward]));
        }

        #[test]
        fn the_order_of_minutes_does_not_matter(tables in prop::collection::vec(any_table(), 1..4)) {
            let (forward, backward) = (after(1.5, tables.clone()), after(1.5, tables.into_iter().rev()));
            let (one, other) = (forward.log_e_worse(), backward.log_e_worse());
            prop_assert!((one - other).abs() <= 1e-9 * one.abs().max(1.0));
        }

        #[test]
        fn evidence_is_always_a_finite_number(tables in prop::collection::vec(any_table(), 1..4), margin in 1.0..10.0_f64) {
            let mut test = ErrorTest::new(margin).expect("valid");
            let mut dispersion = Dispersion::default();
            let mut bound = RateBound::default();
            let mut guard = AbsoluteGuard::new(0.01).expect("valid");
            let mut split = SplitTest::new(0.1).expect("valid");
            for table in &tables {
                let exponent = dispersion.exponent();
                test.observe(table, exponent);
                bound.observe(table.canary, exponent);
                guard.observe(table.canary, exponent);
                split.observe(table, exponent);
                dispersion.observe(table.stable);
            }
            let (lower, upper) = test.interval(0.05);
            let upper_rate = bound.upper(0.05);
            let evidence = [
                test.log_e_worse(), test.log_e_non_inferior(), lower, upper,
                dispersion.phi(), dispersion.exponent(), upper_rate, guard.log_e(), split.log_e(),
            ];
            prop_assert!(evidence.iter().all(|x| x.is_finite()), "{evidence:?}");
            prop_assert!((ODDS_RATIO_MIN..=upper).contains(&lower) && upper <= ODDS_RATIO_MAX);
            prop_assert!((0.0..=1.0).contains(&upper_rate));
        }

        #[test]
        fn a_stored_test_goes_on_where_it_stopped(tables in prop::collection::vec(any_table(), 1..4), next in any_table()) {
            let mut test = after(1.5, tables);
            let text = serde_json::to_string(&test).expect("serialisable");
            let mut stored: ErrorTest = serde_json::from_str(&text).expect("readable");
            prop_assert_eq!(&stored, &test);
            stored.observe(&next, 0.7);
            test.observe(&next, 0.7);
            prop_assert_eq!(stored, test);
        }
    }

    #[test]
    fn the_largest_tables_are_evidence_too() {
        let most = MAX_REQUESTS;
        for table in
            [table(most, most, most, 0), table(most, 0, most, 1), table(most, most / 2, most, most / 2)]
        {
            let test = after(1.5, [table]);
            assert!(test.log_e_worse().is_finite() && test.log_e_non_inferior().is_finite(), "{table:?}");
        }
    }
}
