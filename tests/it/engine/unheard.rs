//! A version that is taken back when its run hears of nothing any more: people hear of it, and what is so.

use std::sync::Arc;

use chrono::TimeDelta;
use refit::clock::Clock;
use refit::domain::canary::CanaryState;
use refit::domain::id::RunId;
use refit::domain::run::{CancelRequest, Outcome, RunStatus, SignalKind};
use refit::domain::workflow::Moment;
use refit::engine::Engine;
use refit::store::{Notice, OutboxEntry};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, SqliteConnection};
use tokio_util::sync::CancellationToken;

use super::on_both;
use super::rollout::*;
use crate::support::crash::{Crash, When, Write};
use crate::support::world::World;

/// It is taken back if it fails too often, whatever the other version does.
const BAKES: Flow = Flow {
    compare: "rules: [{ metric: error_rate, never_above: 5% }], on_inconclusive: promote",
    promote: "{ bake: 6h }",
    ..FLOW
};

/// A run that was cancelled after its promotion, and ended; its version bakes.
async fn over_while_baking(world: &World, engine: &Arc<Engine>) -> RunId {
    serving(world, engine).await;
    let run = on_canary(world, engine, BAKES).await;
    world.pass(TimeDelta::hours(1));
    reach(world, engine, run, TimeDelta::minutes(1), |run| run.outcome == Some(Outcome::Promoted)).await;
    let wish = CancelRequest { actor: "ann".to_owned(), reason: None, at: world.clock.now() };
    assert!(engine.store.request_cancel(run, &wish).await.expect("asked"));
    assert_eq!(ended(world, engine, run).await.outcome, Some(Outcome::CancelledAfterPromotion));
    assert_eq!(canary(engine, run).await.state, CanaryState::Baking);
    run
}

async fn fails(world: &World, engine: &Arc<Engine>) {
    for _ in 0..10 {
        a_minute(world, engine, ("1", "2"), (0, 90)).await;
        // Another process would go on, too.
        let looked = engine.look_at_canaries().await;
        looked.expect("looks");
    }
}

/// What people hear of a version that was taken back.
async fn alerts(engine: &Arc<Engine>, run: RunId) -> Vec<Notice> {
    let queued = engine.store.outbox_of(run).await.expect("readable").into_iter();
    let about = |entry: &OutboxEntry| {
        entry.notice.moment == Moment::Alert && entry.notice.key.contains("/rolled-back")
    };
    queued.filter(about).map(|entry| entry.notice).collect()
}

#[tokio::test]
async fn nobody_is_told_that_a_host_shows_a_rollback_that_it_does_not_show() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        let run = over_while_baking(&world, &engine).await;
        world.host.reject(true);
        fails(&world, &engine).await;
        assert_eq!(canary(&engine, run).await.state, CanaryState::RolledBack);
        assert_eq!(shown(&world), serves("2"), "the host takes nothing");
        let told = alerts(&engine, run).await;
        assert_eq!(told.len(), 1, "{told:#?}");
        let serving = told[0].facts["serving"].as_str().expect("a sentence");
        assert!(serving.starts_with("1 serves all traffic since "), "{serving}");
        assert!(serving.contains("`production` did not confirm it yet"), "{serving}");
    })
    .await;
}

#[tokio::test]
async fn a_version_that_is_taken_back_while_its_run_ends_is_told_once() {
    let flow = Flow { before_promote: BREAKS, promote: "{ bake: 6h }, needs: [compare]", ..BAKES };
    let source = format!(
        "{}on_failure: [ {{ id: sorry, run: 'exit 1', retry: {{ attempts: 2, backoff: 1h, max: 1h }} }} ]\n",
        flow.source()
    );
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = world.trigger(&engine, &source).await;
        let promoted =
            |run: &_| matches!(run, refit::domain::run::Run { outcome: Some(Outcome::Promoted), .. });
        reach(&world, &engine, run, TimeDelta::minutes(10), promoted).await;
        let approval = SignalKind::Approve { step: "ask".parse().expect("a step") };
        engine.store.signal(run, &approval, "ann", None, world.clock.now()).await.expect("sent");
        let ends =
            reach(&world, &engine, run, TimeDelta::seconds(1), |run| run.status == RunStatus::Undoing).await;
        assert_eq!(ends.outcome, Some(Outcome::Failed), "{ends:?}");
        fails(&world, &engine).await;
        assert_eq!(canary(&engine, run).await.state, CanaryState::RolledBack);
        assert_eq!(shown(&world), serves("1"));
        assert_eq!(alerts(&engine, run).await.len(), 1, "it is told at once");
        assert_eq!(ended(&world, &engine, run).await.outcome, Some(Outcome::Failed));
        assert_eq!(alerts(&engine, run).await.len(), 1, "and once");
    })
    .await;
}

/// A version that fails while it bakes, which nobody has looked at, and a step beside it that is about to fail.
async fn about_to_fail_twice(world: &World) -> RunId {
    let flow = Flow { before_promote: BREAKS, promote: "{ bake: 6h }, needs: [compare]", ..BAKES };
    let engine = world.process(&Crash::never()).await;
    serving(world, &engine).await;
    let run = on_canary(world, &engine, flow).await;
    world.pass(TimeDelta::hours(1));
    reach(world, &engine, run, TimeDelta::minutes(1), |run| run.outcome == Some(Outcome::Promoted)).await;
    for _ in 0..10 {
        a_minute(world, &engine, ("1", "2"), (0, 90)).await;
    }
    let approval = SignalKind::Approve { step: "ask".parse().expect("a step") };
    engine.store.signal(run, &approval, "ann", None, world.clock.now()).await.expect("sent");
    leave(&engine).await;
    run
}

/// A version that fails on canary, which nobody has looked at, and a run that leaves it there.
async fn about_to_leave_it(world: &World) -> RunId {
    let engine = world.process(&Crash::never()).await;
    serving(world, &engine).await;
    let run = on_canary(world, &engine, Flow { promote: "{}, if: 'false'", ..BAKES }).await;
    world.pass(TimeDelta::hours(1));
    for _ in 0..10 {
        a_minute(world, &engine, ("2", "1"), (10, 0)).await;
    }
    leave(&engine).await;
    run
}

/// Whenever the version is taken back while the run comes to its end, either the run says so or somebody else.
async fn is_told_once(prepare: impl AsyncFn(&World) -> RunId) {
    on_both(async |base| {
        let run = prepare(&base).await;
        for nth in 0..5 {
            let world = base.copy().await;
            let outside = world.process(&Crash::never()).await;
            let looks = outside.clone();
            let point = Write { name: "checkpoint".to_owned(), nth };
            let crash = Crash::meanwhile(point, When::Before, move || {
                let looks = looks.clone();
                async move { assert_eq!(looks.look_at_canaries().await.expect("looks"), 1) }
            });
            let working = world.process(&crash).await;
            working.activate(run, &CancellationToken::new()).await.expect("activates");
            leave(&working).await;
            let ended = ended(&world, &outside, run).await;
            assert_eq!(canary(&outside, run).await.state, CanaryState::RolledBack);
            assert_eq!(shown(&world), serves("1"));
            let queued = outside.store.outbox_of(run).await.expect("readable");
            let by_its_run = queued.iter().filter(|entry| entry.notice.moment == Moment::RolledBack).count();
            let told = (by_its_run, alerts(&outside, run).await.len());
            let expected = if ended.outcome == Some(Outcome::RolledBack) { (1, 0) } else { (0, 1) };
            assert_eq!(told, expected, "before checkpoint {nth}: {ended:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_version_that_is_taken_back_while_its_run_fails_is_told_once_whenever_that_is() {
    is_told_once(about_to_fail_twice).await;
}

#[tokio::test]
async fn a_version_that_is_taken_back_while_its_run_leaves_it_on_canary_is_told_once_whenever_that_is() {
    is_told_once(about_to_leave_it).await;
}

#[tokio::test]
async fn a_version_that_is_taken_back_while_its_run_has_not_heard_of_its_cancel_is_told() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = on_canary(&world, &engine, BAKES).await;
        world.pass(TimeDelta::hours(1));
        reach(&world, &engine, run, TimeDelta::minutes(1), |run| run.outcome == Some(Outcome::Promoted))
            .await;
        let wish = CancelRequest { actor: "ann".to_owned(), reason: None, at: world.clock.now() };
        assert!(engine.store.request_cancel(run, &wish).await.expect("asked"));
        fails(&world, &engine).await;
        assert_eq!(canary(&engine, run).await.state, CanaryState::RolledBack);
        assert_eq!(alerts(&engine, run).await.len(), 0, "its run is to say it");
        assert_eq!(ended(&world, &engine, run).await.outcome, Some(Outcome::CancelledAfterPromotion));
        let told = alerts(&engine, run).await;
        assert_eq!(told.len(), 1, "{told:#?}");
        assert_eq!(told[0].facts["version"], "2", "{told:#?}");
        let serving = told[0].facts["serving"].as_str().expect("a sentence");
        assert!(serving.starts_with("1 serves all traffic since "), "{serving}");
        assert!(
            told[0].facts["reason"].as_str().is_some_and(|why| why.contains("above the limit")),
            "{told:#?}"
        );
    })
    .await;
}

#[tokio::test]
async fn a_version_that_is_taken_back_is_told_though_its_run_cannot_be_read() {
    let world = World::sqlite();
    let engine = world.process(&Crash::never()).await;
    let run = over_while_baking(&world, &engine).await;
    let options = SqliteConnectOptions::new().filename(&world.database);
    let mut database: SqliteConnection = options.connect().await.expect("opens");
    let broken = sqlx::query("UPDATE run_docs SET cause = '{}' WHERE run = $1").bind(run.0);
    assert_eq!(broken.execute(&mut database).await.expect("written").rows_affected(), 1);
    fails(&world, &engine).await;
    assert_eq!(shown(&world), serves("1"));
    let told = alerts(&engine, run).await;
    assert_eq!(told.len(), 1, "{told:#?}");
    assert_eq!(told[0].facts["version"], "2", "{told:#?}");
}
