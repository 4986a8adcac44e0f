//! The database goes away at the wrong moment: what a body came to is kept until it is back, and no body runs twice.

use std::sync::{Arc, OnceLock};

use refit::clock::Clock;
use refit::domain::id::RunId;
use refit::domain::run::{AttemptState, CancelRequest, Outcome};
use refit::domain::workflow::Moment;
use refit::engine::Engine;
use refit::store::StoreError;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::on_both;
use crate::support::crash::{Crash, When, Write};
use crate::support::world::{World, exists};

/// Its body goes on until there is a file `go`, also when it is told to stop, and ends with `code`.
fn trainer(code: u8) -> String {
    format!(
        "
name: trains
model: m
steps:
  - id: train
    run: |
      trap 'touch told' TERM
      echo began >> began; while [ ! -e go ]; do sleep 0.02; done; echo ran >> ran; exit {code}
    retry: {{ attempts: 1 }}
    grace: 1h
on_failure:
  - {{ id: sorry, run: 'echo sorry >> sorry' }}
notify: [{{ on: [started], console: true }}]
"
    )
}

fn activated(engine: &Arc<Engine>, run: RunId) -> JoinHandle<Result<(), StoreError>> {
    let engine = engine.clone();
    tokio::spawn(async move { engine.activate(run, &CancellationToken::new()).await })
}

/// The activation goes well; the one attempt of `train` ended so, and so did the run.
async fn ended(
    world: &World,
    engine: &Engine,
    run: RunId,
    working: JoinHandle<Result<(), StoreError>>,
    expected: (AttemptState, Outcome),
) {
    working.await.expect("no panic").expect("it goes on when the database is back");
    let seen = engine.store.run(run).await.expect("readable").expect("a run");
    let attempts = engine.store.attempts(run).await.expect("readable");
    let train: Vec<_> = attempts
        .iter()
        .filter(|attempt| attempt.step.as_str() == "train")
        .map(|attempt| attempt.state)
        .collect();
    assert_eq!((train, seen.outcome), (vec![expected.0], Some(expected.1)), "{seen:#?}\n{attempts:#?}");
    let lines = |name: &str| std::fs::read_to_string(world.path(name)).unwrap_or_default().lines().count();
    let sorry = usize::from(expected.1 == Outcome::Failed);
    assert_eq!((lines("began"), lines("ran"), lines("sorry")), (1, 1, sorry));
}

#[tokio::test]
async fn a_step_that_fails_for_good_while_the_database_is_away_is_not_run_again() {
    on_both(async |world| {
        let crash = Crash::never();
        let engine = world.process(&crash).await;
        let run = world.trigger(&engine, &trainer(1)).await;
        let working = activated(&engine, run);
        exists(&world, "began").await;
        crash.outage(true);
        world.write("go", "");
        crash.unanswered("intents").await;
        crash.outage(false);
        ended(&world, &engine, run, working, (AttemptState::Failed, Outcome::Failed)).await;
    })
    .await;
}

#[tokio::test]
async fn a_step_that_a_cancel_stops_while_the_database_is_away_is_not_run_again() {
    on_both(async |world| {
        let crash = Crash::never();
        let engine = world.process(&crash).await;
        let run = world.trigger(&engine, &trainer(0)).await;
        let working = activated(&engine, run);
        exists(&world, "began").await;
        let request = CancelRequest { actor: "ann".to_owned(), reason: None, at: world.clock.now() };
        assert!(engine.store.request_cancel(run, &request).await.expect("asked"));
        engine.activate(run, &CancellationToken::new()).await.expect("nudged");
        exists(&world, "told").await;
        crash.outage(true);
        world.write("go", "");
        crash.unanswered("run").await;
        crash.outage(false);
        ended(&world, &engine, run, working, (AttemptState::Cancelled, Outcome::Cancelled)).await;
    })
    .await;
}

#[tokio::test]
async fn a_step_goes_on_though_nobody_can_be_told_yet_that_its_run_began() {
    on_both(async |world| {
        let own: Arc<OnceLock<Crash>> = Arc::default();
        let crash = Crash::meanwhile(Write { name: "claim".to_owned(), nth: 0 }, When::After, {
            let own = own.clone();
            move || {
                let own = own.clone();
                async move { own.get().expect("told which").outage(true) }
            }
        });
        own.set(crash.clone()).expect("once");
        let engine = world.process(&crash).await;
        let run = world.trigger(&engine, &trainer(0)).await;
        let working = activated(&engine, run);
        crash.unanswered("queue_notices").await;
        exists(&world, "began").await;
        crash.outage(false);
        world.write("go", "");
        ended(&world, &engine, run, working, (AttemptState::Succeeded, Outcome::Succeeded)).await;
        let told = engine.store.outbox_of(run).await.expect("readable");
        assert_eq!(told.iter().map(|entry| entry.notice.moment).collect::<Vec<_>>(), [Moment::Started]);
    })
    .await;
}
