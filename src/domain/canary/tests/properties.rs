//! What holds for any evidence.

use proptest::prelude::*;

use super::*;

fn traffic() -> impl Strategy<Value = Traffic> {
    let arm = (0..60_u64, 0..60_u64).prop_map(|(n, e)| (n, e.min(n)));
    prop::collection::vec((arm.clone(), arm), 1..25)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn one_look_at_everything_is_many_looks(traffic in traffic()) {
        let end = minute(traffic.len() as i64 + 3);
        let whole = look(&errors(), &news(all(&traffic)), end).record.view();
        let mut record = errors();
        for (at, pair) in all(&traffic).chunks(2).enumerate() {
            record = look(&record, &news(pair.to_vec()), minute(at as i64 + 3)).record;
        }
        let steps = look(&record, &News::default(), end).record.view();
        prop_assert_eq!(whole.rules, steps.rules);
    }

    #[test]
    fn the_order_in_which_an_open_minute_grows_does_not_matter(
        parts in prop::collection::vec(((0..20_u64, 0..20_u64), (0..20_u64, 0..20_u64)), 1..6),
    ) {
        let parts: Vec<_> = parts.into_iter()
            .map(|((n, e), (m, f))| ((n, e.min(n)), (m, f.min(m)))).collect();
        let add = |a: (u64, u64), b: (u64, u64)| (a.0 + b.0, a.1 + b.1);
        let run = |parts: &Traffic| {
            let (mut record, mut c, mut s) = (errors(), (0, 0), (0, 0));
            for (i, part) in parts.iter().enumerate() {
                (c, s) = (add(c, part.0), add(s, part.1));
                let seq = 2 * i as i64;
                let arrived = news(vec![seen("2", 0, seq + 1, c, 5.0), seen("1", 0, seq + 2, s, 5.0)]);
                record = look(&record, &arrived, minute(1)).record;
            }
            look(&record, &News::default(), minute(4)).record.view().rules
        };
        let reversed: Vec<_> = parts.iter().rev().copied().collect();
        prop_assert_eq!(run(&parts), run(&reversed));
    }

    #[test]
    fn a_canary_no_worse_in_any_minute_is_never_rolled_back(traffic in traffic()) {
        // The better arm is the canary in each minute: its errors are below the stable arm's share.
        let better: Traffic = traffic.iter().map(|(c, s)| {
            let fair = (c.0 * s.1).checked_div(s.0).unwrap_or(0);
            ((c.0, c.1.min(fair)), *s)
        }).filter(|(c, s)| c.0 >= 2 && s.0 >= 10).collect();
        let looked = look(&errors(), &news(all(&better)), minute(40));
        prop_assert!(!matches!(looked.decision, Decision::RollBack { .. }), "{:?}", looked.decision);
    }

    #[test]
    fn arms_that_change_places_change_sides(traffic in traffic()) {
        // One table: over several, what the stable arm taught about clustering differs.
        let traffic = traffic[..1].to_vec();
        let swapped: Traffic = traffic.iter().map(|(c, s)| (*s, *c)).collect();
        let end = minute(40);
        let bad = |traffic: &Traffic| {
            let looked = look(&errors(), &news(all(traffic)), end);
            matches!(looked.decision, Decision::RollBack { .. })
        };
        prop_assert!(!(bad(&traffic) && bad(&swapped)));
    }

    #[test]
    fn garbage_is_never_a_verdict(
        rows in prop::collection::vec((any::<u64>(), any::<u64>(), -2000..2000_i64, any::<bool>(), 0..80_usize), 0..20),
        errors_of in prop::collection::vec((any::<f64>(), any::<f64>(), any::<Option<u8>>()), 0..20),
    ) {
        let record = canary(
            vec![rule(OnlineMetric::ErrorRate), rule(OnlineMetric::LatencySlowShare), rule(OnlineMetric::AbsError)],
            &[(1000, 0)],
        );
        let minutes = rows.into_iter().enumerate().map(|(i, (n, e, at, canary, buckets))| EvidenceMinute {
            version: if canary { "2" } else { "1" }.parse().expect("valid"),
            minute: minute(at),
            seq: i as i64,
            counts: MinuteCounts { n, errors: e, timed: n },
            latency: vec![e; buckets],
        });
        let pairs: Vec<_> = errors_of.into_iter().enumerate().map(|(i, (canary, stable, block))| PairedError {
            seq: i as i64,
            request_id: String::new(),
            block: block.map(|block| block.to_string()),
            canary,
            stable,
            at: minute(i as i64),
            served_at: None,
        }).collect();
        let news = News { minutes: minutes.collect(), stable_errors: pairs.clone(), pairs, ..News::default() };
        let looked = look(&record, &news, minute(600));
        prop_assert_ne!(looked.record.verdict, Verdict::Pass);
        let again = look(&looked.record, &News::default(), minute(601));
        prop_assert_ne!(again.record.verdict, Verdict::Pass);
        prop_assert!(Analysis::of(&again.record).is_ok());
    }

    #[test]
    fn more_errors_than_requests_are_no_verdict(
        rows in prop::collection::vec((1..5000_u64, 1..5000_u64, 0..400_i64, any::<bool>()), 0..60),
    ) {
        let record = canary(vec![rule(OnlineMetric::ErrorRate)], &[(1000, 0)]);
        let minutes = rows.into_iter().enumerate().map(|(i, (n, more, at, canary))| EvidenceMinute {
            version: if canary { "2" } else { "1" }.parse().expect("valid"),
            minute: minute(at),
            seq: i as i64,
            counts: MinuteCounts { n, errors: n + more, timed: 0 },
            latency: vec![],
        });
        let looked = look(&record, &News { minutes: minutes.collect(), ..News::default() }, minute(600));
        prop_assert!(matches!(looked.record.verdict, Verdict::Inconclusive | Verdict::Error));
        prop_assert!(!matches!(looked.decision, Decision::RollBack { .. }), "{:?}", looked.decision);
    }
}
