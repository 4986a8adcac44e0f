//! Fetched evidence: a page and the position after it are one.

use chrono::TimeDelta;
use refit::domain::Timestamp;
use refit::domain::evidence::Observation;
use refit::domain::id::{ModelName, VersionName};
use refit::domain::pull::{PullState, PulledBatch};

use super::database::Database;
use super::on_both;

on_both! {
    one_of_two_processes_keeps_its_page
    a_request_that_is_read_again_counts_once
    what_is_not_read_again_is_not_known_any_more
    a_prediction_that_is_fetched_meets_its_truth
    pages_that_follow_one_another_fill_the_same_minutes
}

fn model() -> ModelName {
    "race-times".parse().expect("a name")
}

fn version() -> VersionName {
    "v1".parse().expect("a name")
}

fn served(id: &str, at: Timestamp) -> Observation {
    Observation {
        request_id: id.to_owned(),
        version: version(),
        at,
        ok: true,
        latency_ms: Some(12.0),
        cold: false,
        prediction: Some(10.0),
        shadow: vec![],
    }
}

fn page(before: &PullState, ids: &[&str], at: Timestamp) -> PulledBatch {
    PulledBatch {
        model: model(),
        source: "sql",
        after: PullState { through: Some(at), ..before.clone() },
        observations: ids.iter().map(|id| served(id, at)).collect(),
        minutes: vec![],
        more: false,
        forget_before: Some(at - TimeDelta::minutes(5)),
        at,
    }
}

async fn one_of_two_processes_keeps_its_page(db: Database) {
    let (one, two) = (db.open().await, db.open().await);
    let nothing = PullState::default();
    let (pages, at) =
        ([page(&nothing, &["a", "b"], db.now()), page(&nothing, &["a", "b", "c"], db.now())], db.now());
    let (a, b) = tokio::join!(one.keep_pulled(&pages[0]), two.keep_pulled(&pages[1]));
    let kept: Vec<PullState> = [a, b].into_iter().filter_map(|kept| kept.expect("answered")).collect();
    assert_eq!(kept.len(), 1);
    assert_eq!((kept[0].revision, kept[0].through), (1, Some(at)));
    let known = one.pulls(Some(&model())).await.expect("read");
    assert_eq!(
        known.into_iter().map(|it| (it.source, it.state)).collect::<Vec<_>>(),
        [("sql".to_owned(), kept[0].clone())]
    );
    let counted = one.evidence(&model(), &[version()], 0, 10).await.expect("read");
    assert_eq!((counted.len(), counted[0].counts.n), (1, kept[0].report.counted));
}

async fn a_request_that_is_read_again_counts_once(db: Database) {
    let store = db.open().await;
    let first = page(&PullState::default(), &["a", "b", "b"], db.now());
    let kept = store.keep_pulled(&first).await.expect("answered").expect("kept");
    let second = page(&kept, &["b", "a", "c"], db.now());
    let kept = store.keep_pulled(&second).await.expect("answered").expect("kept");
    assert_eq!((kept.revision, kept.report.counted), (2, 3));
    assert_eq!(store.keep_pulled(&second).await.expect("answered"), None, "it was read at another revision");
    let counted = store.evidence(&model(), &[version()], 0, 10).await.expect("read");
    assert_eq!(counted[0].counts.n, 3);
}

async fn what_is_not_read_again_is_not_known_any_more(db: Database) {
    let store = db.open().await;
    let first = page(&PullState::default(), &["a"], db.now());
    let kept = store.keep_pulled(&first).await.expect("answered").expect("kept");
    let later = db.pass(600);
    let kept = store.keep_pulled(&page(&kept, &["b"], later)).await.expect("answered").expect("kept");
    // An app that uses an id for two requests, ten minutes apart.
    let kept = store.keep_pulled(&page(&kept, &["a", "b"], later)).await.expect("answered").expect("kept");
    assert_eq!(kept.report.counted, 3);
}

async fn a_prediction_that_is_fetched_meets_its_truth(db: Database) {
    let store = db.open().await;
    let rows = vec![("a".to_owned(), 12.0, None)];
    let truth = refit::store::TruthBatch { model: model(), batch_id: "t".to_owned(), rows, at: db.now() };
    store.add_truth(&truth).await.expect("kept");
    store.keep_pulled(&page(&PullState::default(), &["a"], db.now())).await.expect("answered").expect("kept");
    let errors = store.paired_errors(&model(), &version(), &version(), 0, 10).await.expect("read");
    assert_eq!(errors.iter().map(|pair| pair.stable).collect::<Vec<_>>(), [2.0]);
}

async fn pages_that_follow_one_another_fill_the_same_minutes(db: Database) {
    let store = db.open().await;
    let (old, now) = (db.now(), db.pass(3600));
    let of = |before: &PullState, id: &str, more: bool| PulledBatch {
        observations: vec![served(id, old)],
        more,
        at: now,
        ..page(before, &[], now)
    };
    let mut state = PullState::default();
    for (id, more) in [("a", true), ("b", true), ("c", false)] {
        state = store.keep_pulled(&of(&state, id, more)).await.expect("answered").expect("kept");
        assert_eq!(state.session.is_some(), more);
    }
    // The list was whole: what comes for that minute now is late.
    state = store.keep_pulled(&of(&state, "d", false)).await.expect("answered").expect("kept");
    assert_eq!((state.report.counted, state.report.late), (4, 1));
    let mut counted = store.evidence(&model(), &[version()], 0, 10).await.expect("read");
    counted.sort_by_key(|minute| minute.minute);
    assert_eq!(counted.iter().map(|minute| minute.counts.n).collect::<Vec<_>>(), [3, 1]);
}
