//! Canaries of which nothing is heard.

use super::*;

#[test]
fn a_canary_of_which_nothing_comes_any_more_waits_where_it_is() {
    let stages = || canary(vec![rule(OnlineMetric::ErrorRate)], &[(1000, 60), (5000, 30)]);
    let until = |last: i64| move |at: i64| if at < last { ((100, 1), (900, 9)) } else { ((0, 0), (0, 0)) };
    let (record, decision) = watch(stages(), 300, until(10));
    assert_eq!((decision, record.verdict), (None, Verdict::Inconclusive));
    assert!(record.reason.starts_with("no evidence since 2026-03-01 12:09 UTC"), "{}", record.reason);
    // It goes on with the evidence.
    let (_, decision) = watch(stages(), 300, |at| if at < 90 { until(10)(at) } else { until(300)(at) });
    assert!(matches!(decision, Some((90, Decision::Shift { stage: 1, .. }))), "{decision:?}");
}

#[test]
fn a_silent_canary_loses_its_traffic_and_is_left_to_a_human() {
    let (record, decision) = watch(errors(), 600, |_| ((0, 0), (20, 0)));
    let Some((at, Decision::StopTraffic { reason })) = decision else { panic!("{decision:?}") };
    assert!((5..15).contains(&at), "minute {at}");
    assert_eq!((record.verdict, &record.reason), (Verdict::Error, &reason));
    // It is said until it is done, and stays so.
    let again = look(&record, &News::default(), minute(40));
    assert!(matches!(again.decision, Decision::StopTraffic { .. }));
    let done = News { share: Some((BasisPoints(0), minute(15))), ..News::default() };
    let done = look(&again.record, &done, minute(41));
    assert_eq!((done.decision, done.record.verdict), (Decision::Continue, Verdict::Error));
}

#[test]
fn a_canary_that_falls_silent_later_is_missed_too() {
    let (_, decision) = watch(errors(), 600, |at| (if at < 100 { (10, 0) } else { (0, 0) }, (90, 0)));
    let Some((at, Decision::StopTraffic { .. })) = decision else { panic!("{decision:?}") };
    assert!((105..125).contains(&at), "minute {at}");
}

#[test]
fn without_any_evidence_nothing_is_decided_and_it_is_said_once() {
    let mut record = errors();
    let mut notices = 0;
    for at in 0..24 * 60 - 5 {
        let looked = look(&record, &News::default(), minute(at));
        assert_eq!((looked.decision, looked.record.verdict), (Decision::Continue, Verdict::Inconclusive));
        notices += u32::from(looked.notice.is_some());
        record = looked.record;
    }
    assert_eq!(notices, 1);
}
