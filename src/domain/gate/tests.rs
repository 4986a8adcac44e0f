use proptest::prelude::*;

use super::super::metric::SegmentMetrics;
use super::super::workflow::Position;
use super::*;

fn name(text: &str) -> MetricName {
    text.parse().expect("a name")
}

fn metrics(values: &[(&str, f64)], n: Option<u64>) -> Metrics {
    let values = values.iter().map(|(metric, value)| (name(metric), *value)).collect();
    Metrics { values, n, segments: BTreeMap::new() }
}

fn rule(metric: &str) -> GateRule {
    GateRule {
        at: Position::default(),
        metric: name(metric),
        max: None,
        min: None,
        vs_champion: None,
        each_segment: false,
        min_rows: None,
    }
}

fn vs(worse_by_at_most: f64, confidence: Option<f64>, stored_holdout: bool) -> Option<VsChampion> {
    Some(VsChampion { worse_by_at_most, confidence, stored_holdout })
}

fn directions() -> BTreeMap<MetricName, Better> {
    BTreeMap::from([
        (name("mae"), Better::Lower),
        (name("rmse"), Better::Lower),
        (name("r2"), Better::Higher),
        (name("auc"), Better::Higher),
    ])
}

fn judged(
    rule: GateRule,
    candidate: &Metrics,
    champion: Champion<'_>,
    holdout: Option<&Holdout>,
) -> RuleResult {
    let better = directions();
    let evidence = Evidence { candidate, champion, holdout, better: &better, seed: 7 };
    judge(&[rule], &evidence).into_iter().next().expect("a result")
}

fn warned(
    rule: GateRule,
    candidate: &Metrics,
    champion: Champion<'_>,
    holdout: Option<&Holdout>,
) -> Vec<String> {
    let better = directions();
    let evidence = Evidence { candidate, champion, holdout, better: &better, seed: 7 };
    let rules = [rule];
    warnings(&rules, &judge(&rules, &evidence), &evidence)
}

/// 40 days of 25 rows; the candidate's errors are the champion's times `factor`, give or take `noise` a day.
fn holdout(factor: f64, noise: f64) -> Holdout {
    let mut holdout = Holdout::default();
    for day in 0..40 {
        let swing = if day % 2 == 0 { noise } else { -noise };
        for row in 0..25 {
            let actual = f64::from(row) * 10.0;
            let segment = if row % 5 == 0 { "sprint" } else { "olympic" };
            let candidate = actual + 10.0 * (factor + swing);
            holdout.row(&day.to_string(), segment, actual, candidate, Some(actual - 10.0)).expect("finite");
        }
    }
    holdout
}

#[test]
fn absolute_rules() {
    let candidate = metrics(&[("mae", 512.34), ("r2", 0.8)], Some(400));
    let at_most =
        |max| judged(GateRule { max: Some(max), ..rule("mae") }, &candidate, Champion::Absent, None);
    assert_eq!(at_most(600.0).verdict, Verdict::Pass);
    assert_eq!(at_most(600.0).sentence, "mae is 512.34; at most 600 allowed");
    assert_eq!(at_most(512.34).verdict, Verdict::Pass);
    assert_eq!(at_most(500.0).verdict, Verdict::Fail);
    let r2 = judged(GateRule { min: Some(0.85), ..rule("r2") }, &candidate, Champion::Absent, None);
    assert_eq!((r2.verdict, r2.sentence.as_str()), (Verdict::Fail, "r2 is 0.8; at least 0.85 allowed"));
    let few = GateRule { max: Some(600.0), min_rows: Some(500), ..rule("mae") };
    insta::assert_snapshot!(judged(few, &candidate, Champion::Absent, None).sentence,
        @"mae: cannot tell, it is of 400 rows; at least 500 are needed");
}

#[test]
fn a_value_just_beyond_its_limit_is_not_said_to_be_the_limit() {
    let candidate = metrics(&[("mae", 600.000_000_1), ("r2", 0.849_999_7)], None);
    let mae = judged(GateRule { max: Some(600.0), ..rule("mae") }, &candidate, Champion::Absent, None);
    assert_eq!(
        (mae.verdict, mae.sentence.as_str()),
        (Verdict::Fail, "mae is 600.0000001; at most 600 allowed")
    );
    let r2 = judged(GateRule { min: Some(0.85), ..rule("r2") }, &candidate, Champion::Absent, None);
    assert_eq!(r2.sentence, "r2 is 0.8499997; at least 0.85 allowed");
    let huge = metrics(&[("mae", 1.000_000_1e300)], None);
    let huge = judged(GateRule { max: Some(1e300), ..rule("mae") }, &huge, Champion::Absent, None);
    assert_eq!(huge.sentence, "mae is 1.0000001e300; at most 1e300 allowed");
}

#[test]
fn a_metric_of_no_rows_never_passes() {
    let candidate = metrics(&[("mae", 5.0)], Some(0));
    let result = judged(GateRule { max: Some(600.0), ..rule("mae") }, &candidate, Champion::Absent, None);
    assert_eq!(result.verdict, Verdict::Inconclusive);
    assert_eq!(result.sentence, "mae: cannot tell, it is of 0 rows");
    let beyond = GateRule { max: Some(4.0), ..rule("mae") };
    assert_eq!(judged(beyond, &candidate, Champion::Absent, None).verdict, Verdict::Fail);
    let many = GateRule { max: Some(600.0), min_rows: Some(500), ..rule("mae") };
    let few = judged(many, &candidate, Champion::Absent, None);
    assert_eq!(few.sentence, "mae: cannot tell, it is of 0 rows; at least 500 are needed");
}

#[test]
fn a_value_just_beyond_its_margin_is_not_said_to_be_at_it() {
    let champion = metrics(&[("mae", 100.0)], None);
    let champion = Champion::Serves { stored: Some(&champion), evaluated: None };
    let said = |mae: f64, allowed: f64| {
        let rule = GateRule { vs_champion: vs(allowed, None, true), ..rule("mae") };
        let result = judged(rule, &metrics(&[("mae", mae)], None), champion, None);
        assert_eq!(result.verdict, Verdict::Fail);
        result.sentence.split_once("holdout: ").expect("a comparison").1.to_owned()
    };
    assert_eq!(said(102.0001, 0.02), "2.0001 % worse; may be worse than the champion by 2 %");
    assert_eq!(said(98.0001, -0.02), "1.9999 % better; must be better than the champion by 2 %");
    assert_eq!(said(100.0001, 0.0), "0.0001 % worse; may be worse than the champion by 0 %");
    assert_eq!(said(1e300, 0.02), "1.0000e300 % worse; may be worse than the champion by 2 %");
}

#[test]
fn missing_is_not_zero() {
    let nothing = Metrics::default();
    let result = judged(GateRule { max: Some(600.0), ..rule("mae") }, &nothing, Champion::Absent, None);
    assert_eq!(result.verdict, Verdict::Fail);
    assert_eq!(result.sentence, "mae is missing: the trainer did not report it");
}

#[test]
fn a_stored_metric_counts_only_when_asked_for() {
    let candidate = metrics(&[("mae", 103.0)], None);
    let stored = metrics(&[("mae", 100.0)], None);
    let champion = Champion::Serves { stored: Some(&stored), evaluated: None };
    let with = |limit, stored| {
        judged(GateRule { vs_champion: vs(limit, None, stored), ..rule("mae") }, &candidate, champion, None)
    };
    assert_eq!(with(0.05, false).verdict, Verdict::Inconclusive);
    assert_eq!(with(0.05, true).verdict, Verdict::Pass);
    assert_eq!(with(0.02, true).verdict, Verdict::Fail);
    assert_eq!(with(-0.01, true).verdict, Verdict::Fail);
    insta::assert_snapshot!(with(0.02, true).sentence,
        @"mae is 103, the champion's 100 on its own holdout: 3 % worse; may be worse than the champion by 2 %");
}

#[test]
fn a_higher_score_is_better_also_below_zero() {
    let candidate = metrics(&[("r2", -0.1)], None);
    let stored = metrics(&[("r2", -0.2)], None);
    let rule = GateRule { vs_champion: vs(0.0, None, true), ..rule("r2") };
    let better =
        judged(rule.clone(), &candidate, Champion::Serves { stored: Some(&stored), evaluated: None }, None);
    assert_eq!(better.verdict, Verdict::Pass, "{}", better.sentence);
    let worse = judged(rule, &stored, Champion::Serves { stored: Some(&candidate), evaluated: None }, None);
    assert_eq!(worse.verdict, Verdict::Fail, "{}", worse.sentence);
}

#[test]
fn confidence_passes_fails_and_cannot_tell() {
    let champion = Champion::Serves { stored: None, evaluated: None };
    let with = |factor, noise| {
        let holdout = holdout(factor, noise);
        let candidate = metrics(&[("mae", 10.0 * factor)], None);
        let rule = GateRule { vs_champion: vs(0.02, Some(0.95), false), ..rule("mae") };
        judged(rule, &candidate, champion, Some(&holdout))
    };
    assert_eq!(with(0.95, 0.02).verdict, Verdict::Pass);
    assert_eq!(with(1.10, 0.02).verdict, Verdict::Fail);
    let unsure = with(1.0, 0.3);
    assert_eq!(unsure.verdict, Verdict::Inconclusive, "{}", unsure.sentence);
    let (lower, upper) = unsure.interval.expect("bounds");
    assert!(lower < 0.0 && upper > 0.02, "{lower} {upper}");
    assert_eq!(unsure, with(1.0, 0.3), "the same seed, the same interval");
    insta::assert_snapshot!(with(0.95, 0.0).sentence, @"mae is 9.5, the champion's 10 on the same 1000 rows: 5 % better; may be worse than the champion by 2 %; with 95 % confidence at least 5 % better, over 40 blocks");
}

#[test]
fn few_blocks_and_an_absent_champion_cannot_tell() {
    let mut small = Holdout::default();
    for day in ["a", "b", "c"] {
        small.row(day, "", 1.0, 1.1, Some(1.2)).expect("finite");
    }
    let candidate = metrics(&[("mae", 0.1)], None);
    let confident = GateRule { vs_champion: vs(0.02, Some(0.95), false), ..rule("mae") };
    let serves = Champion::Serves { stored: None, evaluated: None };
    assert_eq!(judged(confident.clone(), &candidate, serves, Some(&small)).verdict, Verdict::Inconclusive);
    assert_eq!(judged(confident, &candidate, Champion::Absent, Some(&small)).verdict, Verdict::Inconclusive);
    let other = GateRule { vs_champion: vs(0.02, None, false), ..rule("auc") };
    let scored = metrics(&[("auc", 0.9)], None);
    assert_eq!(judged(other, &scored, serves, Some(&small)).verdict, Verdict::Inconclusive);
}

#[test]
fn each_segment_is_judged_and_none_is_not_a_pass() {
    let scored = holdout(1.0, 0.0);
    let mut candidate = metrics(&[("mae", 10.0)], Some(1000));
    let each = GateRule { max: Some(11.0), each_segment: true, min_rows: Some(300), ..rule("mae") };
    let better = directions();
    let evidence = |holdout| Evidence {
        candidate: &candidate,
        champion: Champion::Absent,
        holdout,
        better: &better,
        seed: 1,
    };
    let results = judge(std::slice::from_ref(&each), &evidence(Some(&scored)));
    let verdicts: Vec<_> = results.iter().map(|result| (result.segment.as_deref(), result.verdict)).collect();
    assert_eq!(verdicts, [(Some("olympic"), Verdict::Pass), (Some("sprint"), Verdict::Inconclusive)]);
    let none = judge(std::slice::from_ref(&each), &evidence(None));
    assert_eq!(verdict(&none, false), Verdict::Inconclusive);
    let values = BTreeMap::from([(name("mae"), 12.0)]);
    candidate.segments.insert("sprint".to_owned(), SegmentMetrics { values, n: Some(400) });
    let evidence = Evidence {
        candidate: &candidate,
        champion: Champion::Absent,
        holdout: None,
        better: &better,
        seed: 1,
    };
    assert_eq!(verdict(&judge(&[each], &evidence), false), Verdict::Fail);
}

#[test]
fn to_refuse_one_of_many_segments_takes_more_evidence_and_to_pass_takes_no_less() {
    // One segment is a little worse on most days; the more there are beside it, the more it may be chance.
    let with = |segments: usize| {
        let mut scored = Holdout::default();
        for day in 0..40_u32 {
            for segment in 0..segments {
                let swing = if day % 2 == 0 { 0.30 } else { -0.12 };
                let error = if segment == 0 { 10.0 * (1.0 + swing) } else { 10.0 };
                scored
                    .row(&day.to_string(), &format!("s{segment:02}"), 0.0, error, Some(10.0))
                    .expect("finite");
            }
        }
        let rule = GateRule { vs_champion: vs(0.02, Some(0.95), false), each_segment: true, ..rule("mae") };
        let candidate = Metrics::default();
        let (better, champion) = (directions(), Champion::Serves { stored: None, evaluated: None });
        let evidence =
            Evidence { candidate: &candidate, champion, holdout: Some(&scored), better: &better, seed: 3 };
        judge(&[rule], &evidence)
    };
    let (alone, among_many) = (with(1), with(40));
    assert_eq!(alone[0].verdict, Verdict::Fail, "{}", alone[0].sentence);
    assert_eq!(among_many[0].verdict, Verdict::Inconclusive, "{}", among_many[0].sentence);
    assert_eq!(alone[0].interval.map(|bounds| bounds.1), among_many[0].interval.map(|bounds| bounds.1));
    assert!(among_many[1..].iter().all(|result| result.verdict == Verdict::Pass));
}

#[test]
fn a_champion_of_another_holdout_is_warned_about() {
    let candidate = metrics(&[("mae", 103.0)], None);
    let stored = metrics(&[("mae", 100.0)], None);
    let rule = GateRule { vs_champion: vs(0.05, None, true), ..rule("mae") };
    let found = warned(rule, &candidate, Champion::Serves { stored: Some(&stored), evaluated: None }, None);
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("mae: the champion was measured on another holdout"), "{}", found[0]);
}

#[test]
fn before_the_first_champion_only_rules_without_one_count() {
    let candidate = metrics(&[("mae", 10.0)], None);
    let better = directions();
    let evidence = Evidence {
        candidate: &candidate,
        champion: Champion::Absent,
        holdout: None,
        better: &better,
        seed: 1,
    };
    let compares = GateRule { vs_champion: vs(0.02, None, false), ..rule("mae") };
    let bounded = GateRule { max: Some(11.0), ..rule("mae") };
    let results = judge(&[compares.clone(), bounded], &evidence);
    assert_eq!(verdict(&results, true), Verdict::Pass);
    assert_eq!(verdict(&results, false), Verdict::Inconclusive);
    assert_eq!(verdict(&judge(&[compares], &evidence), true), Verdict::Inconclusive, "nothing was checked");
}

#[test]
fn claims_are_held_against_the_rows() {
    let rows = holdout(1.0, 0.0);
    assert_eq!(contradictions(&metrics(&[("mae", 10.05), ("auc", 3.0)], None), &rows), Vec::<String>::new());
    let found = contradictions(&metrics(&[("mae", 8.0)], None), &rows);
    assert_eq!(found, ["the trainer reports mae 8, but its $REFIT_ERRORS give 10 over 1000 rows"]);
    assert_eq!(contradictions(&metrics(&[("mae", f64::NAN)], None), &rows).len(), 1);
    // Residuals of 10 around 0 to 240: R² is 1 - 100 / 5200.
    assert_eq!(contradictions(&metrics(&[("r2", 0.98)], None), &rows), Vec::<String>::new());
    let found = contradictions(&metrics(&[("r2", 0.999)], None), &rows);
    assert_eq!(found.len(), 1);
    assert!(
        found[0].starts_with("the trainer reports r2 0.999, but its $REFIT_ERRORS give 0.98"),
        "{}",
        found[0]
    );
}

#[test]
fn too_good_to_be_true_is_said() {
    let rows = holdout(0.3, 0.0);
    let candidate = metrics(&[("mae", 3.0)], None);
    let rule = GateRule { vs_champion: vs(0.02, None, false), ..rule("mae") };
    let champion = Champion::Serves { stored: None, evaluated: None };
    assert_eq!(judged(rule.clone(), &candidate, champion, Some(&rows)).verdict, Verdict::Pass);
    let found = warned(rule, &candidate, champion, Some(&rows));
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("mae is 70 % better than the champion's (10 to 3)"), "{}", found[0]);
}

#[test]
fn a_leap_is_said_also_where_no_rule_compares() {
    let stored = metrics(&[("mae", 10.0), ("r2", 0.5), ("loss", 2.0)], None);
    let champion = Champion::Serves { stored: Some(&stored), evaluated: None };
    let bounded = GateRule { max: Some(12.0), ..rule("mae") };
    let told = |rule: &GateRule, value: f64| {
        let candidate = metrics(&[(rule.metric.as_str(), value)], None);
        warned(rule.clone(), &candidate, champion, None)
    };
    assert_eq!(told(&bounded, 5.1), Vec::<String>::new());
    let found = told(&bounded, 3.0);
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("mae is 70 % better than the champion's (10 to 3)"), "{}", found[0]);
    assert_eq!(told(&GateRule { min: Some(0.4), ..rule("r2") }, 0.9).len(), 1);
    // `metrics:` says nothing of it: a limit above says that lower is better.
    assert_eq!(told(&GateRule { max: Some(3.0), ..rule("loss") }, 0.5).len(), 1);
    assert_eq!(told(&GateRule { min: Some(0.1), ..rule("loss") }, 0.5).len(), 0, "it became worse");
    let evaluated = metrics(&[("mae", 4.0)], None);
    let beside = Champion::Serves { stored: Some(&stored), evaluated: Some(&evaluated) };
    assert_eq!(warned(bounded.clone(), &metrics(&[("mae", 3.0)], None), beside, None).len(), 0);
    assert_eq!(warned(bounded, &metrics(&[("mae", 3.0)], None), Champion::Absent, None).len(), 0);
}

#[test]
fn a_comparison_without_a_direction_is_an_error() {
    let candidate = metrics(&[("loss", 1.0)], None);
    let rule = GateRule { vs_champion: vs(0.02, None, true), ..rule("loss") };
    let result =
        judged(rule, &candidate, Champion::Serves { stored: Some(&candidate), evaluated: None }, None);
    assert_eq!(result.verdict, Verdict::Error);
}

fn odd_number() -> impl Strategy<Value = Option<f64>> {
    prop_oneof![Just(None), Just(Some(f64::NAN)), Just(Some(f64::INFINITY)), Just(Some(f64::NEG_INFINITY)),]
}

proptest! {
    #[test]
    fn nothing_missing_or_not_finite_ever_passes(
        value in odd_number(),
        limit in -1e6_f64..1e6,
        worse in -1.0_f64..10.0,
        stored in any::<bool>(),
        confidence in prop_oneof![Just(None), Just(Some(0.95))],
        champion in prop_oneof![odd_number(), (-1e6_f64..1e6).prop_map(Some)],
        shape in 0..3,
        metric in prop_oneof![Just("mae"), Just("r2"), Just("auc")],
    ) {
        let values: Vec<_> = value.map(|value| (metric, value)).into_iter().collect();
        let candidate = metrics(&values, None);
        let champion_values: Vec<_> = champion.map(|value| (metric, value)).into_iter().collect();
        let stored_metrics = metrics(&champion_values, None);
        let mut rule = rule(metric);
        match shape {
            0 => rule.max = Some(limit),
            1 => rule.min = Some(limit),
            _ => rule.vs_champion = vs(worse, confidence, stored),
        }
        let result = judged(rule, &candidate, Champion::Serves { stored: Some(&stored_metrics), evaluated: None }, None);
        prop_assert_ne!(result.verdict, Verdict::Pass, "{}", result.sentence);
    }

    #[test]
    fn a_champion_that_is_missing_or_not_finite_never_lets_a_comparison_pass(
        champion in odd_number(),
        value in -1e6_f64..1e6,
        worse in -1.0_f64..10.0,
    ) {
        let champion_values: Vec<_> = champion.map(|value| ("mae", value)).into_iter().collect();
        let stored = metrics(&champion_values, None);
        let rule = GateRule { vs_champion: vs(worse, None, true), ..rule("mae") };
        let result = judged(rule, &metrics(&[("mae", value)], None), Champion::Serves { stored: Some(&stored), evaluated: None }, None);
        prop_assert_ne!(result.verdict, Verdict::Pass, "{}", result.sentence);
    }
}
