//! Evidence: counted once, in an order no reader's cursor misses.

use refit::domain::Timestamp;
use refit::domain::canary::Ripening;
use refit::domain::evidence::LabelMinute;
use refit::domain::id::{Epoch, ModelName, VersionName};
use refit::store::{
    BatchReceipt, EvidenceMinute, MinuteCounts, ObservationBatch, Prediction, ScoredRow, ScoredRows,
    StoreError, TruthBatch,
};

use super::database::Database;
use super::{make, on_both};

on_both! {
    a_batch_counts_once
    minutes_are_added_up_and_stand_out_by_their_number
    truth_makes_a_pair_of_errors
    a_truth_that_is_absurdly_far_off_keeps_nothing_else_back
    truth_that_comes_first_waits
    a_request_that_stands_twice_in_a_batch_counts_once
    a_request_that_is_reported_again_with_its_truth_counts_once
    pairs_come_of_age_in_pages_and_requests_without_truth_are_counted
    a_row_that_a_run_scored_counts_once_and_only_for_its_holder
}

fn model() -> ModelName {
    "race-times".parse().expect("a name")
}

fn version(name: &str) -> VersionName {
    name.parse().expect("a name")
}

fn minute(name: &str, at: Timestamp, n: u64, errors: u64) -> EvidenceMinute {
    EvidenceMinute {
        version: version(name),
        minute: at,
        seq: 0,
        counts: MinuteCounts { n, errors, timed: 1 },
        latency: vec![0, 1, 0],
    }
}

fn batch(
    id: &str,
    minutes: Vec<EvidenceMinute>,
    predictions: Vec<Prediction>,
    at: Timestamp,
) -> ObservationBatch {
    ObservationBatch { model: model(), batch_id: id.to_owned(), minutes, predictions, at }
}

fn prediction(request: &str, by: &str, value: f64, shadow: &[(&str, f64)], at: Timestamp) -> Prediction {
    Prediction {
        request_id: request.to_owned(),
        version: version(by),
        value,
        shadow: shadow.iter().map(|(name, value)| (version(name), *value)).collect(),
        at,
    }
}

fn truths(id: &str, rows: &[(&str, f64)], at: Timestamp) -> TruthBatch {
    let rows = rows.iter().map(|(r, v)| ((*r).to_owned(), *v, Some("race-1".to_owned()))).collect();
    TruthBatch { model: model(), batch_id: id.to_owned(), rows, at }
}

async fn a_batch_counts_once(db: Database) {
    let (one, two) = (db.open().await, db.open().await);
    let sent = batch("b1", vec![minute("v1", db.now(), 10, 1)], Vec::new(), db.now());
    let (a, b) = tokio::join!(one.observe(&sent), two.observe(&sent));
    let (a, b) = (a.expect("kept"), b.expect("kept"));
    assert_ne!(a.duplicate, b.duplicate);
    assert_eq!(a.accepted + b.accepted, 10);
    let kept = one.evidence(&model(), &[version("v1")], 0, 100).await.expect("read");
    assert_eq!((kept.len(), kept[0].counts), (1, MinuteCounts { n: 10, errors: 1, timed: 1 }));
}

async fn minutes_are_added_up_and_stand_out_by_their_number(db: Database) {
    let store = db.open().await;
    let (first, second) = (db.now(), db.now() + chrono::TimeDelta::minutes(1));
    let minutes = vec![minute("v1", first, 10, 1), minute("v1", second, 5, 0), minute("v9", first, 5, 0)];
    store.observe(&batch("b1", minutes, Vec::new(), db.now())).await.expect("kept");
    let versions = [version("v1"), version("v2")];
    let read = store.evidence(&model(), &versions, 0, 100).await.expect("read");
    assert_eq!(read.len(), 2);
    let cursor = read.iter().map(|minute| minute.seq).max().expect("some");
    store.observe(&batch("b2", vec![minute("v1", first, 2, 2)], Vec::new(), db.now())).await.expect("kept");
    let late = store.evidence(&model(), &versions, cursor, 100).await.expect("read");
    assert_eq!(late.len(), 1);
    assert_eq!((late[0].minute, late[0].counts), (first, MinuteCounts { n: 12, errors: 3, timed: 2 }));
    assert_eq!(late[0].latency, [0, 2, 0]);
}

async fn truth_makes_a_pair_of_errors(db: Database) {
    let store = db.open().await;
    let predictions = vec![
        prediction("r1", "v2", 10.0, &[("v1", 12.0)], db.now()),
        prediction("r2", "v1", 20.0, &[("v2", 21.5)], db.now()),
        prediction("r3", "v1", 20.0, &[], db.now()),
        prediction("r4", "v1", f64::NAN, &[("v2", 1.0)], db.now()),
    ];
    store.observe(&batch("b1", Vec::new(), predictions, db.now())).await.expect("kept");
    let arrived = truths(
        "t1",
        &[("r1", 11.0), ("r2", 20.0), ("r3", 1.0), ("r4", 1.0), ("r5", f64::INFINITY)],
        db.now(),
    );
    let receipt = store.add_truth(&arrived).await.expect("kept");
    assert_eq!(receipt, BatchReceipt { duplicate: false, accepted: 4, unmatched: 1 });
    assert!(store.add_truth(&arrived).await.expect("kept").duplicate);
    let pairs = store.paired_errors(&model(), &version("v2"), &version("v1"), 0, 100).await.expect("read");
    let shown: Vec<_> = pairs.iter().map(|p| (p.request_id.as_str(), p.canary, p.stable)).collect();
    assert_eq!(shown, [("r1", 1.0, 1.0), ("r2", 1.5, 0.0)]);
    assert_eq!(pairs[0].block.as_deref(), Some("race-1"));
    let rest =
        store.paired_errors(&model(), &version("v2"), &version("v1"), pairs[0].seq, 100).await.expect("read");
    assert_eq!(rest.len(), 1);
}

async fn a_truth_that_is_absurdly_far_off_keeps_nothing_else_back(db: Database) {
    let store = db.open().await;
    let predictions = vec![
        prediction("r1", "v2", f64::MAX, &[("v1", 12.0)], db.now()),
        prediction("r2", "v2", 10.0, &[("v1", f64::MAX), ("v3", 12.5)], db.now()),
    ];
    store.observe(&batch("b1", Vec::new(), predictions, db.now())).await.expect("kept");
    let receipt =
        store.add_truth(&truths("t1", &[("r1", f64::MIN), ("r2", -1.0)], db.now())).await.expect("kept");
    assert_eq!(receipt, BatchReceipt { duplicate: false, accepted: 2, unmatched: 0 });
    let pairs = async |canary, stable| {
        let pairs = store.paired_errors(&model(), &version(canary), &version(stable), 0, 100).await;
        let pairs = pairs.expect("read").into_iter();
        pairs.map(|pair| (pair.request_id, pair.canary, pair.stable)).collect::<Vec<_>>()
    };
    // The distance of the largest number to -1 is one, that of both ends is none.
    assert_eq!(pairs("v2", "v1").await, [("r2".to_owned(), 11.0, f64::MAX)]);
    assert_eq!(pairs("v2", "v3").await, [("r2".to_owned(), 11.0, 13.5)]);
    assert_eq!(pairs("v2", "v2").await.len(), 1);
}

async fn truth_that_comes_first_waits(db: Database) {
    let store = db.open().await;
    let receipt = store.add_truth(&truths("t1", &[("r1", 11.0)], db.now())).await.expect("kept");
    assert_eq!(receipt, BatchReceipt { duplicate: false, accepted: 1, unmatched: 1 });
    let predictions = vec![prediction("r1", "v2", 10.0, &[("v1", 12.5)], db.now())];
    store.observe(&batch("b1", Vec::new(), predictions, db.now())).await.expect("kept");
    let pairs = store.paired_errors(&model(), &version("v2"), &version("v1"), 0, 100).await.expect("read");
    assert_eq!((pairs.len(), pairs[0].canary, pairs[0].stable), (1, 1.0, 1.5));
}

async fn a_request_that_stands_twice_in_a_batch_counts_once(db: Database) {
    let store = db.open().await;
    store.add_truth(&truths("t1", &[("a", 11.0)], db.now())).await.expect("kept");
    let twice = vec![prediction("a", "v1", 10.0, &[], db.now()), prediction("a", "v1", 12.0, &[], db.now())];
    store.observe(&batch("b1", Vec::new(), twice, db.now())).await.expect("kept");
    let counts = store.labelled(&model(), &version("v1"), db.now()).await.expect("read");
    assert_eq!((counts.predicted, counts.labelled), (1, 1));
    let own = store.paired_errors(&model(), &version("v1"), &version("v1"), 0, 10).await.expect("read");
    assert_eq!(own.iter().map(|pair| pair.canary).collect::<Vec<_>>(), [1.0], "its first prediction counts");
}

async fn a_request_that_is_reported_again_with_its_truth_counts_once(db: Database) {
    let store = db.open().await;
    for round in ["1", "2"] {
        // The second time, the other version is said to have served it.
        let (served, shadow) = if round == "1" { ("v2", "v1") } else { ("v1", "v2") };
        let predictions = vec![prediction("r1", served, 10.0, &[(shadow, 12.0)], db.now())];
        store.observe(&batch(round, Vec::new(), predictions, db.now())).await.expect("kept");
        store.add_truth(&truths(round, &[("r1", 11.5)], db.now())).await.expect("kept");
    }
    for (one, other) in [("v1", "v2"), ("v1", "v1"), ("v2", "v2")] {
        let pairs =
            store.paired_errors(&model(), &version(one), &version(other), 0, 100).await.expect("read");
        assert_eq!(pairs.len(), 1, "{one} and {other}");
    }
}

async fn pairs_come_of_age_in_pages_and_requests_without_truth_are_counted(db: Database) {
    let store = db.open().await;
    let at = |minutes: i64| {
        "2026-11-03T12:00:00Z".parse::<Timestamp>().expect("a time") + chrono::TimeDelta::minutes(minutes)
    };
    let served = |id: &str, by: &str, minutes: i64, seconds: i64| {
        let shadow = if by == "v2" { "v1" } else { "v2" };
        prediction(id, by, 10.0, &[(shadow, 12.0)], at(minutes) + chrono::TimeDelta::seconds(seconds))
    };
    let requests = ["a", "b", "c", "d", "e", "late"];
    // The last one is served long before it is reported.
    let reported = [("v2", 0, 0), ("v1", 0, 30), ("v1", 1, 0), ("v2", 1, 59), ("v1", 2, 0), ("v1", 0, 1)];
    let predictions =
        requests.iter().zip(reported).map(|(id, (by, minutes, seconds))| served(id, by, minutes, seconds));
    let predictions: Vec<Prediction> = predictions.collect();
    store.observe(&batch("b1", Vec::new(), predictions.clone(), db.now())).await.expect("kept");
    store.observe(&batch("b2", Vec::new(), predictions, db.now())).await.expect("kept");
    for (id, request) in ["d", "a", "b", "e"].iter().enumerate() {
        store.add_truth(&truths(&format!("t{id}"), &[(request, 11.0)], db.now())).await.expect("kept");
    }
    let (canary, stable) = (version("v2"), version("v1"));
    let pairs = store.paired_errors(&model(), &canary, &stable, 0, 100).await.expect("read");
    let read = pairs.iter().map(|pair| pair.seq).max().expect("some");
    store.add_truth(&truths("new", &[("c", 11.0)], db.now())).await.expect("kept");

    let mut wanted = Ripening { read, after: None, until: at(1), minutes: (at(0), at(2)) };
    let first = store.ripe(&model(), &canary, &stable, &wanted, 100).await.expect("read");
    assert!(first.pairs.is_empty() && first.is_all(&wanted), "a first look has read none before: {first:?}");
    let counts =
        |minute: &LabelMinute| (minute.version.to_string(), minute.minute, minute.predicted, minute.labelled);
    let mut counted: Vec<_> = first.minutes.iter().map(counts).collect();
    counted.sort();
    let of =
        |version: &str, minutes, predicted, labelled| (version.to_owned(), at(minutes), predicted, labelled);
    assert_eq!(counted, [of("v1", 0, 2, 1), of("v1", 1, 1, 1), of("v2", 0, 1, 1), of("v2", 1, 1, 1)]);

    // From the first request on, two minutes later, one at a time; what was not read before is left to those who read it.
    wanted = Ripening { after: Some((at(0), i64::MAX)), until: at(2), minutes: (at(2), at(2)), ..wanted };
    let mut found = vec![];
    loop {
        let page = store.ripe(&model(), &canary, &stable, &wanted, 1).await.expect("read");
        assert!(page.minutes.is_empty());
        found.extend(page.pairs.iter().map(|pair| pair.request_id.clone()));
        if page.is_all(&wanted) {
            break;
        }
        wanted.after = Some(page.through);
    }
    assert_eq!(found, ["b", "d", "e"]);
}

async fn a_row_that_a_run_scored_counts_once_and_only_for_its_holder(db: Database) {
    let (store, other) = (db.open().await, db.open().await);
    let run = make::run(&store, db.now()).await;
    let worker = make::worker(&store, db.now()).await;
    let epoch = make::claim(&store, run, worker, db.now()).await.run.epoch;
    let row = |id: &str, canary: f64| ScoredRow {
        id: id.to_owned(),
        block: Some("race-1".to_owned()),
        served_at: None,
        truth: 11.0,
        stable: 1.0,
        canary,
    };
    let scored = |rows: Vec<ScoredRow>| ScoredRows {
        stable: version("v1"),
        canary: version("v2"),
        rows,
        at: db.now(),
    };
    // The app reported this request itself.
    let predictions = vec![prediction("r1", "v2", 10.0, &[("v1", 12.0)], db.now())];
    store.observe(&batch("b1", Vec::new(), predictions, db.now())).await.expect("kept");
    store.add_truth(&truths("t1", &[("r1", 11.0)], db.now())).await.expect("kept");

    let rows = scored(vec![row("r1", 9.0), row("r2", 2.0), row("r2", 5.0), row("r3", f64::NAN)]);
    let model = model();
    let (one, two) = tokio::join!(
        store.add_scored(run, epoch, &model, &rows),
        other.add_scored(run, epoch, &model, &rows)
    );
    assert_eq!(one.expect("kept") + two.expect("kept"), 1, "of two that add it, one does");
    assert_eq!(store.add_scored(run, epoch, &model, &scored(vec![row("r4", 0.5)])).await.expect("kept"), 1);
    let pairs = store.paired_errors(&model, &version("v2"), &version("v1"), 0, 100).await.expect("read");
    let shown: Vec<_> = pairs.iter().map(|p| (p.request_id.as_str(), p.canary, p.stable)).collect();
    assert_eq!(shown, [("r1", 1.0, 1.0), ("r2", 2.0, 1.0), ("r4", 0.5, 1.0)]);
    let own = store.paired_errors(&model, &version("v1"), &version("v1"), 0, 100).await.expect("read");
    assert_eq!(own.len(), 3, "a later canary learns the scale of errors from it");

    let late = store.add_scored(run, Epoch(epoch.0 + 1), &model, &scored(vec![row("r5", 1.0)])).await;
    assert!(matches!(late, Err(StoreError::Fenced)), "{late:?}");
}
