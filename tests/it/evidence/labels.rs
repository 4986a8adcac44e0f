//! Truths that come at different times, and some that do not come.

use std::time::Duration;

use chrono::TimeDelta;
use refit::domain::evidence::{ObservationBatch, Prediction, TruthBatch};
use refit::domain::verdict::Verdict;
use refit::domain::workflow::step::{CompareRule, OnlineMetric};

use super::watched::{Watched, model};
use crate::support::crash::{Crash, When, Write};
use crate::support::world::{World, start};

/// Ten minutes with 10 requests of the canary and 90 of the stable version, all predicted by both. A truth comes a
/// minute later, but for every second request of the canary.
async fn report(watched: &Watched) {
    let store = &watched.engine.store;
    for minute in 0..10 {
        let at = start() + TimeDelta::minutes(minute);
        let request = |n: usize| format!("{minute}-{n}");
        let predictions = (0..100).map(|n| {
            let (version, other) = if n < 10 { ("2", "1") } else { ("1", "2") };
            let (version, other) = (version.parse().expect("a name"), other.parse().expect("a name"));
            let value = 10.0 + (n % 7) as f64;
            Prediction { request_id: request(n), version, value, shadow: vec![(other, value)], at }
        });
        let batch = ObservationBatch {
            model: model(),
            batch_id: format!("o-{minute}"),
            minutes: vec![],
            predictions: predictions.collect(),
            at,
        };
        store.observe(&batch).await.expect("kept");
        let known = (0..100).filter(|n| *n >= 10 || n % 2 == 0);
        let rows = known.map(|n| (request(n), 9.0, None)).collect();
        let at = at + TimeDelta::minutes(1);
        let batch = TruthBatch { model: model(), batch_id: format!("t-{minute}"), rows, at };
        store.add_truth(&batch).await.expect("kept");
    }
}

async fn truths_count_at_one_age_and_missing_ones_are_said_once(world: World) {
    let rule = CompareRule {
        label_horizon: Duration::from_secs(2 * 3600),
        ..CompareRule::of(OnlineMetric::AbsError)
    };
    let mut watched = Watched::pushed(world, rule).await;
    report(&watched).await;
    watched.look_in(11).await;
    let young = watched.canary().await.view();
    assert_eq!((young.rules[0].canary.n, young.labels.expect("watched").canary.n), (0, 0));

    watched.world.pass(TimeDelta::minutes(121));
    for (when, told) in [(When::Before, 0), (When::After, 1)] {
        let crash = Crash::at(Write { name: "save_look".to_owned(), nth: 0 }, when);
        watched.restart(&crash).await;
        watched.world.pass(TimeDelta::minutes(1));
        let engine = watched.engine.clone();
        let looking = tokio::spawn(async move { engine.look_at_canaries().await });
        crash.died().await;
        looking.abort();
        watched.restart(&Crash::never()).await;
        assert_eq!(watched.told().await.len(), told, "{when:?}");
    }
    watched.look_in(60).await;
    let told = watched.told().await;
    assert!(
        told.len() == 1 && told[0].contains("canary 50 of 100 (50.0 %), stable 0 of 900 (0.0 %)"),
        "{told:?}"
    );
    let view = watched.canary().await.view();
    // 50 of the 950 pairs set the scale.
    assert_eq!(view.rules[0].canary.n, 900);
    assert!(view.rules[0].accepted, "equal errors are shown not to be worse, and yet nothing passes");
    assert!(view.reason.starts_with("not decided yet"), "before its time is over: {}", view.reason);
    let labels = view.labels.expect("watched");
    assert_eq!((labels.canary.events, labels.stable.n), (Some(50), 900));
    assert!(labels.log_e_worse > labels.limit);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn truths_count_at_one_age_and_missing_ones_are_said_once_on_sqlite() {
    truths_count_at_one_age_and_missing_ones_are_said_once(World::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn truths_count_at_one_age_and_missing_ones_are_said_once_on_postgres() {
    truths_count_at_one_age_and_missing_ones_are_said_once(World::postgres().await).await;
}

/// Nobody said how long a truth takes: what is missing is shown, and decides nothing.
async fn without_a_horizon_missing_truths_are_shown(world: World) {
    let watched = Watched::pushed(world, CompareRule::of(OnlineMetric::AbsError)).await;
    watched.look_in(1).await;
    assert_eq!(watched.canary().await.view().unlabelled, None, "no predictions are reported");
    report(&watched).await;
    watched.look_in(11).await;
    let canary = watched.canary().await;
    let view = canary.view();
    assert_eq!(view.labels, None);
    let [of_canary, of_stable] = view.unlabelled.expect("shown").words();
    assert_eq!((of_canary.as_str(), of_stable.as_str()), ("50 of 100 (50.0 %)", "0 of 900 (0.0 %)"));
    let said = "without truth so far: canary 50 of 100 (50.0 %), stable 0 of 900 (0.0 %)";
    assert!(canary.reason.ends_with(said), "{}", canary.reason);
    watched.look_in(24 * 60).await;
    let canary = watched.canary().await;
    assert_eq!(canary.verdict, Verdict::Pass, "{}", canary.reason);
    assert!(watched.told().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_horizon_missing_truths_are_shown_on_sqlite() {
    without_a_horizon_missing_truths_are_shown(World::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_horizon_missing_truths_are_shown_on_postgres() {
    without_a_horizon_missing_truths_are_shown(World::postgres().await).await;
}
