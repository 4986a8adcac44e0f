//! What was counted goes when it is old, and not before nobody can read it.

use std::sync::Arc;

use chrono::TimeDelta;
use refit::domain::Timestamp;
use refit::domain::canary::{ERROR_HISTORY, Ripening};
use refit::domain::id::{ModelName, VersionName};
use refit::store::{
    EvidenceAge, EvidenceMinute, MinuteCounts, ObservationBatch, OldEvidence, Prediction, Store, TruthBatch,
};

use super::database::Database;
use super::{make, on_both};

on_both! {
    what_was_counted_goes_when_no_run_may_read_it
    more_than_one_transaction_takes_goes_in_one_call
}

fn model() -> ModelName {
    "race-times".parse().expect("a name")
}

fn version() -> VersionName {
    "v1".parse().expect("a name")
}

fn counts(at: Timestamp) -> EvidenceMinute {
    let counts = MinuteCounts { n: 1, errors: 0, timed: 0 };
    EvidenceMinute { version: version(), minute: at, seq: 0, counts, latency: vec![] }
}

/// `count` requests with their truth, each in a minute of its own.
async fn report(store: &Arc<dyn Store>, id: &str, count: usize, at: Timestamp) {
    let minute = |nth: usize| at + TimeDelta::minutes(i64::try_from(nth).expect("few"));
    let request = |nth: usize| format!("{id}-{nth}");
    let predictions = (0..count).map(|nth| Prediction {
        request_id: request(nth),
        version: version(),
        value: 1.0,
        shadow: vec![],
        at: minute(nth),
    });
    let batch = ObservationBatch {
        model: model(),
        batch_id: id.to_owned(),
        minutes: vec![counts(at)],
        predictions: predictions.collect(),
        at,
    };
    store.observe(&batch).await.expect("kept");
    let rows = (0..count).map(|nth| (request(nth), 2.0, None)).collect();
    store.add_truth(&TruthBatch { model: model(), batch_id: id.to_owned(), rows, at }).await.expect("kept");
}

/// Minutes of requests, minutes of labels, pairs.
async fn left(store: &Arc<dyn Store>) -> (usize, usize, usize) {
    let all = Ripening {
        read: 0,
        after: None,
        until: Timestamp::MIN_UTC,
        minutes: (
            "2020-01-01T00:00:00Z".parse().expect("a time"),
            "2040-01-01T00:00:00Z".parse().expect("a time"),
        ),
    };
    let minutes = store.evidence(&model(), &[version()], 0, 100).await.expect("read");
    let labels = store.ripe(&model(), &version(), &version(), &all, 1).await.expect("read");
    let pairs = store.paired_errors(&model(), &version(), &version(), 0, 10_000).await.expect("read");
    (minutes.len(), labels.minutes.len(), pairs.len())
}

fn older_than(counted: Timestamp) -> EvidenceAge {
    EvidenceAge { unmatched: counted, batch_ids: Timestamp::UNIX_EPOCH, counted }
}

async fn what_was_counted_goes_when_no_run_may_read_it(db: Database) {
    let store = db.open().await;
    let day = 86_400;
    report(&store, "old", 1, db.now()).await;
    db.pass(day);
    report(&store, "history", 1, db.now()).await;
    db.pass(ERROR_HISTORY.num_seconds());
    // What this run's canary learns from begins with `history`.
    let run = make::run(&store, db.now()).await;
    let worker = make::worker(&store, db.now()).await;
    let held = make::claim(&store, run, worker, db.now()).await;
    db.pass(365 * day);
    report(&store, "new", 1, db.now()).await;
    let age = older_than(db.now());

    let one = OldEvidence { pairs: 1, minutes: 2, ..OldEvidence::default() };
    for only_count in [true, false] {
        assert_eq!(store.forget_evidence(&age, only_count).await.expect("answered"), one);
    }
    assert_eq!(left(&store).await, (2, 2, 2));
    assert_eq!(store.forget_evidence(&age, false).await.expect("answered"), OldEvidence::default());

    store.checkpoint(make::finish(&held, "a", db.now())).await.expect("written");
    assert_eq!(store.forget_evidence(&age, false).await.expect("answered"), one);
    assert_eq!(left(&store).await, (1, 1, 1), "what is new stays");
}

async fn more_than_one_transaction_takes_goes_in_one_call(db: Database) {
    let store = db.open().await;
    report(&store, "many", 6000, db.now()).await;
    db.pass(86_400 * 30);
    report(&store, "new", 1, db.now()).await;
    let gone = store.forget_evidence(&older_than(db.now()), false).await.expect("answered");
    assert_eq!(gone, OldEvidence { pairs: 6000, minutes: 6001, ..OldEvidence::default() });
    assert_eq!(left(&store).await, (1, 1, 1));
}
