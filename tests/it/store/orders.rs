//! A request is reported by the app, by push or by pull, gets its truth, and is
//! scored by a run: in any order, and any of it again. It counts once.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::TimeDelta;
use refit::domain::Timestamp;
use refit::domain::canary::Ripening;
use refit::domain::evidence::{Observation, Prediction};
use refit::domain::id::{Epoch, ModelName, RunId, VersionName};
use refit::domain::pull::{PullState, PulledBatch};
use refit::store::{
    EvidenceAge, ObservationBatch, OldEvidence, PairedError, ScoredRow, ScoredRows, Store, TruthBatch,
};

use super::database::Database;
use super::{make, on_both};

on_both! {
    a_request_counts_once_in_whatever_order_it_becomes_known
    a_report_that_waits_beside_a_pair_of_an_older_refit_meets_its_truth
}

/// What may be said of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    /// The app pushes what `v1` served, and `v2` and `v3` would have.
    Pushed,
    /// refit reads the same from the app's own table.
    Pulled,
    /// Its truth is pushed.
    Truth,
    /// A run scores it with `v1` and `v2`, and with `v1` and `v4`.
    Scored,
}

const ALL: [Said; 4] = [Said::Pushed, Said::Pulled, Said::Truth, Said::Scored];
/// What is said of a request, at most.
const LONGEST: usize = 4;
const TRUTH: f64 = 10.0;
/// Predictions of the app, and what a run that scores with other files makes of the first two.
const REPORTED: [f64; 3] = [11.0, 12.0, 13.0];
const SCORED: [f64; 2] = [15.0, 16.0];
/// What it makes of another challenger, `v4`, which the app does not know.
const SCORED_OTHER: f64 = 17.0;

/// One request for every order, each served in a minute of its own.
fn orders() -> Vec<Vec<Said>> {
    let mut all: Vec<Vec<Said>> = vec![];
    let mut longest = vec![vec![]];
    for _ in 0..LONGEST {
        longest = longest
            .iter()
            .flat_map(|order: &Vec<Said>| ALL.map(|next| [order.as_slice(), &[next]].concat()))
            .collect();
        all.extend(longest.iter().cloned());
    }
    all
}

fn model() -> ModelName {
    "race-times".parse().expect("a name")
}

fn version(name: &str) -> VersionName {
    name.parse().expect("a name")
}

fn served_at(nth: usize) -> Timestamp {
    let minutes = TimeDelta::minutes(i64::try_from(nth).expect("few"));
    "2026-11-03T12:00:00Z".parse::<Timestamp>().expect("a time") + minutes
}

fn shadow() -> Vec<(VersionName, f64)> {
    vec![(version("v2"), REPORTED[1]), (version("v3"), REPORTED[2])]
}

fn pushed(nth: usize) -> Prediction {
    Prediction {
        request_id: nth.to_string(),
        version: version("v1"),
        value: REPORTED[0],
        shadow: shadow(),
        at: served_at(nth),
    }
}

fn pulled(nth: usize) -> Observation {
    Observation {
        request_id: nth.to_string(),
        version: version("v1"),
        at: served_at(nth),
        ok: true,
        latency_ms: None,
        cold: false,
        prediction: Some(REPORTED[0]),
        shadow: shadow(),
    }
}

/// The block of a request, whoever says it.
fn race(nth: usize) -> Option<String> {
    (!nth.is_multiple_of(3)).then(|| format!("race-{}", nth / 10))
}

fn scored(nth: usize) -> ScoredRow {
    ScoredRow {
        id: nth.to_string(),
        block: race(nth),
        served_at: Some(served_at(nth)),
        truth: TRUTH,
        stable: SCORED[0] - TRUTH,
        canary: SCORED[1] - TRUTH,
    }
}

/// Says the same of many requests.
async fn say(
    store: &Arc<dyn Store>,
    (run, epoch): (RunId, Epoch),
    what: Said,
    requests: Vec<usize>,
    batch_id: String,
    at: Timestamp,
) {
    let model = model();
    match what {
        Said::Pushed => {
            let predictions = requests.into_iter().map(pushed).collect();
            let batch = ObservationBatch { model, batch_id, minutes: vec![], predictions, at };
            store.observe(&batch).await.expect("kept");
        }
        Said::Pulled => {
            let before = store.pulls(Some(&model)).await.expect("read").pop().map(|known| known.state);
            let page = PulledBatch {
                model,
                source: "sql",
                after: before.unwrap_or_else(PullState::default),
                observations: requests.into_iter().map(pulled).collect(),
                minutes: vec![],
                more: false,
                // So that the next page has them again.
                forget_before: Some(Timestamp::MAX_UTC),
                at,
            };
            store.keep_pulled(&page).await.expect("answered").expect("kept");
        }
        Said::Truth => {
            let rows = requests.into_iter().map(|nth| (nth.to_string(), TRUTH, race(nth))).collect();
            store.add_truth(&TruthBatch { model, batch_id, rows, at }).await.expect("kept");
        }
        Said::Scored => {
            let rows: Vec<_> = requests.into_iter().map(scored).collect();
            let other = |row: &ScoredRow| ScoredRow { canary: SCORED_OTHER - TRUTH, ..row.clone() };
            let others = rows.iter().map(other).collect();
            for (canary, rows) in [("v2", rows), ("v4", others)] {
                let rows = ScoredRows { stable: version("v1"), canary: version(canary), rows, at };
                store.add_scored(run, epoch, &model, &rows).await.expect("kept");
            }
        }
    }
}

/// Pairs of `v1` and another version, by request.
async fn pairs(store: &Arc<dyn Store>, other: &str) -> BTreeMap<String, Vec<(f64, f64)>> {
    let found = store.paired_errors(&model(), &version(other), &version("v1"), 0, 10_000).await;
    let mut pairs: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for PairedError { request_id, canary, stable, block, .. } in found.expect("read") {
        assert_eq!(block, race(request_id.parse().expect("a number")), "{other} on {request_id}");
        pairs.entry(request_id).or_default().push((canary, stable));
    }
    pairs
}

/// Before a pair kept the truth it was made with, scoring a request left a report of it waiting.
async fn a_report_that_waits_beside_a_pair_of_an_older_refit_meets_its_truth(db: Database) {
    let store = db.open().await;
    let run = make::run(&store, db.now()).await;
    let worker = make::worker(&store, db.now()).await;
    let claimed = (run, make::claim(&store, run, worker, db.now()).await.run.epoch);
    say(&store, claimed, Said::Pushed, vec![0], "reported".to_owned(), db.now()).await;
    db.write(
        "INSERT INTO paired_errors (model, seq, request_id, one, one_error, other, other_error, at)
         VALUES ('race-times', 1000, '0', 'v1', 5, 'v2', 6, '2026-11-03T13:00:00.000000+00:00')",
    )
    .await;
    say(&store, claimed, Said::Truth, vec![0], "truth".to_owned(), db.now()).await;

    let counts = store.labelled(&model(), &version("v1"), served_at(0)).await.expect("read");
    assert_eq!((counts.predicted, counts.labelled), (1, 1));
    assert_eq!(pairs(&store, "v3").await["0"], [(REPORTED[2] - TRUTH, REPORTED[0] - TRUTH)]);
    assert_eq!(pairs(&store, "v2").await["0"], [(6.0, 5.0)], "the pair that was there stays");
    let far = db.now() + TimeDelta::days(1);
    let age = EvidenceAge { unmatched: far, batch_ids: served_at(0), counted: served_at(0) };
    assert_eq!(store.forget_evidence(&age, true).await.expect("counted"), OldEvidence::default());
}

pub async fn a_request_counts_once_in_whatever_order_it_becomes_known(db: Database) {
    let store = db.open().await;
    let run = make::run(&store, db.now()).await;
    let worker = make::worker(&store, db.now()).await;
    let epoch = make::claim(&store, run, worker, db.now()).await.run.epoch;
    let orders = orders();
    for place in 0..LONGEST {
        for what in ALL {
            let now = (0..orders.len()).filter(|nth| orders[*nth].get(place) == Some(&what)).collect();
            say(&store, (run, epoch), what, now, format!("{what:?}-{place}"), db.now()).await;
        }
    }
    let all = Ripening {
        read: 0,
        after: None,
        until: served_at(orders.len()),
        minutes: (served_at(0), served_at(orders.len())),
    };
    let minutes = store.ripe(&model(), &version("v1"), &version("v2"), &all, 1).await.expect("read").minutes;
    let counted: BTreeMap<Timestamp, (u64, u64)> =
        minutes.into_iter().map(|it| (it.minute, (it.predicted, it.labelled))).collect();
    let (by_two, by_three) = (pairs(&store, "v2").await, pairs(&store, "v3").await);
    let (by_four, own) = (pairs(&store, "v4").await, pairs(&store, "v1").await);

    let mut waiting = OldEvidence::default();
    for (nth, order) in orders.iter().enumerate() {
        let reported = order.contains(&Said::Pushed) || order.contains(&Said::Pulled);
        let scored = order.contains(&Said::Scored);
        let labelled = scored || order.contains(&Said::Truth);
        let counts = (u64::from(reported), u64::from(reported && labelled));
        assert_eq!(counted.get(&served_at(nth)).copied().unwrap_or_default(), counts, "{order:?}");

        // Whoever is first to know both predictions and the truth made the pair.
        let place = |what: &[Said]| order.iter().position(|said| what.contains(said));
        let by_run = place(&[Said::Scored]);
        let by_app = place(&[Said::Pushed, Said::Pulled]).zip(place(&[Said::Truth])).map(|(a, b)| a.max(b));
        let from = |predictions: &[f64]| vec![(predictions[1] - TRUTH, predictions[0] - TRUTH)];
        let pair = match (by_run, by_app) {
            (Some(run), Some(app)) if app < run => Some(from(&REPORTED)),
            (Some(_), _) => Some(from(&SCORED)),
            (None, Some(_)) => Some(from(&REPORTED)),
            (None, None) => None,
        };
        let request = nth.to_string();
        assert_eq!(by_two.get(&request), pair.as_ref(), "{order:?}");
        assert_eq!(own.get(&request).map_or(0, Vec::len), usize::from(pair.is_some()), "{order:?}");
        let fourth = scored.then(|| vec![(SCORED_OTHER - TRUTH, SCORED[0] - TRUTH)]);
        assert_eq!(by_four.get(&request), fourth.as_ref(), "{order:?}");
        // What only the app knows is paired with the truth, wherever that came from.
        let third = (reported && labelled).then(|| vec![(REPORTED[2] - TRUTH, REPORTED[0] - TRUTH)]);
        assert_eq!(by_three.get(&request), third.as_ref(), "{order:?}");

        waiting.predictions += u64::from(reported && !labelled);
        waiting.truths += u64::from(labelled && !scored && !reported);
    }
    let far = db.now() + TimeDelta::days(1);
    let age = EvidenceAge { unmatched: far, batch_ids: served_at(0), counted: served_at(0) };
    let left = store.forget_evidence(&age, true).await;
    assert_eq!(left.expect("counted"), waiting, "nothing else waits for its other half");
}
