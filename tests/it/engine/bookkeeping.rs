//! A way back is made whatever cannot be read of what is kept with it.

use std::sync::Arc;

use refit::clock::Clock;
use refit::domain::because::Because;
use refit::domain::freeze::{FreezeEnd, FreezeWish};
use refit::domain::history::Change;
use refit::domain::id::{FreezeId, RunId};
use refit::domain::release::ReleaseActor;
use refit::domain::run::{CancelRequest, Outcome, RunStatus};
use refit::engine::Engine;
use refit::engine::because::configuration;
use refit::engine::by_hand::PromotedByHand;
use refit::engine::release::Back;
use refit::store::{Awaited, FreezeAnswer};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, SqliteConnection};

use super::rollout::*;
use crate::support::crash::Crash;
use crate::support::world::{World, turn};

const BAKES: Flow = Flow { promote: "{ bake: 6h }", ..FLOW };

async fn database(world: &World) -> SqliteConnection {
    SqliteConnectOptions::new().filename(&world.database).connect().await.expect("opens")
}

async fn break_canary(world: &World, run: RunId) {
    let broken = sqlx::query("UPDATE canaries SET record = '{}' WHERE run = $1").bind(run.0);
    assert_eq!(broken.execute(&mut database(world).await).await.expect("written").rows_affected(), 1);
}

async fn state_in(world: &World, run: RunId) -> String {
    let state = sqlx::query_scalar("SELECT state FROM canaries WHERE run = $1").bind(run.0);
    state.fetch_one(&mut database(world).await).await.expect("readable")
}

/// A run whose version serves everybody, and bakes.
async fn baking(world: &World, engine: &Arc<Engine>) -> RunId {
    let run = on_canary(world, engine, BAKES).await;
    world.pass(chrono::TimeDelta::hours(1));
    let promoted = turn(engine, run).await;
    assert_eq!((promoted.status, promoted.outcome), (RunStatus::Waiting, Some(Outcome::Promoted)));
    assert_eq!(state_in(world, run).await, "baking");
    run
}

/// Why the release is as it is, with whose canary is kept with it.
async fn newest(engine: &Engine) -> (Option<RunId>, Because) {
    let mut history = engine.store.history(Some(&model()), 100).await.expect("readable").into_iter();
    let newest = history.find_map(|entry| match entry.change {
        Change::Release { evidence, configuration, .. } => {
            let run = evidence.as_ref().and_then(|evidence| evidence.view()).map(|view| view.run);
            Some((run, Because { reason: entry.by.reason, evidence, configuration }))
        }
        Change::Version { .. } => None,
    });
    newest.expect("a change")
}

fn ann() -> ReleaseActor {
    ReleaseActor::Human { name: "ann".to_owned() }
}

#[tokio::test]
async fn a_canary_that_cannot_be_read_is_dropped_all_the_same() {
    let world = World::sqlite();
    let engine = world.process(&Crash::never()).await;
    serving(&world, &engine).await;
    let run = on_canary(&world, &engine, FLOW).await;
    break_canary(&world, run).await;
    engine.roll_back(&model(), &target(), None, ann(), "customers call").await.expect("rolled back");
    assert_eq!(shown(&world), serves("1"));
    assert_eq!(newest(&engine).await, (None, Because::alone("customers call")));
    assert_eq!(state_in(&world, run).await, "rolled_back");
}

#[tokio::test]
async fn a_canary_that_cannot_be_read_is_undone_with_its_run() {
    let world = World::sqlite();
    let engine = world.process(&Crash::never()).await;
    serving(&world, &engine).await;
    let run = on_canary(&world, &engine, FLOW).await;
    break_canary(&world, run).await;
    let wish = CancelRequest { actor: "ann".to_owned(), reason: None, at: world.clock.now() };
    assert!(engine.store.request_cancel(run, &wish).await.expect("asked"));
    assert_eq!(turn(&engine, run).await.outcome, Some(Outcome::Cancelled));
    assert_eq!(shown(&world), serves("1"));
    assert_eq!(state_in(&world, run).await, "rolled_back");
}

#[tokio::test]
async fn a_canary_that_cannot_be_read_bars_no_other_from_being_looked_at() {
    let world = World::sqlite();
    let engine = world.process(&Crash::never()).await;
    serving(&world, &engine).await;
    let bakes = baking(&world, &engine).await;
    let run = on_canary(&world, &engine, Flow { name: "newer", ..FLOW }).await;
    break_canary(&world, bakes).await;
    world.pass(chrono::TimeDelta::minutes(30));
    assert_eq!(engine.look_at_canaries().await.expect("looks"), 1, "at that of {run}");
    let due = engine.store.due(world.clock.now()).await.expect("readable").soonest;
    let look = due.iter().find(|(what, _)| *what == Awaited::Look).expect("another look");
    assert!(look.1 > world.clock.now(), "nobody waits for a look at the other: {due:?}");
}

#[tokio::test]
async fn while_a_version_bakes_that_cannot_be_read_people_go_back_all_the_same() {
    let world = World::sqlite();
    let engine = world.process(&Crash::never()).await;
    serving(&world, &engine).await;
    let run = baking(&world, &engine).await;
    assert_eq!(shown(&world), serves("2"));
    break_canary(&world, run).await;
    engine.roll_back(&model(), &target(), None, ann(), "customers call").await.expect("rolled back");
    assert_eq!(shown(&world), serves("1"));
    assert_eq!(newest(&engine).await, (None, Because::alone("customers call")));
    assert_eq!(state_in(&world, run).await, "rolled_back");
    let due = engine.store.due(world.clock.now()).await.expect("readable").soonest;
    assert!(due.iter().all(|(what, _)| *what != Awaited::Look), "nobody looks at it any more: {due:?}");
    let run = turn(&engine, run).await;
    assert_eq!(
        (run.status, run.outcome),
        (RunStatus::Finished, Some(Outcome::RolledBack)),
        "{:?}",
        run.reason
    );
}

#[tokio::test]
async fn a_bake_that_cannot_be_read_ends_when_people_promote_another_version() {
    let world = World::sqlite();
    let engine = world.process(&Crash::never()).await;
    serving(&world, &engine).await;
    let run = baking(&world, &engine).await;
    break_canary(&world, run).await;
    let other = engine.promote_by_hand(&model(), &target(), &version("1"), false, "ann", None).await;
    assert!(matches!(other, Ok(PromotedByHand::Done(_))), "{other:?}");
    assert_eq!(state_in(&world, run).await, "rolled_back");
}

#[tokio::test]
async fn a_bake_that_cannot_be_read_stays_while_its_version_serves() {
    let world = World::sqlite();
    let engine = world.process(&Crash::never()).await;
    serving(&world, &engine).await;
    let bakes = baking(&world, &engine).await;
    on_canary(&world, &engine, Flow { name: "newer", ..FLOW }).await;
    break_canary(&world, bakes).await;
    engine.roll_back(&model(), &target(), None, ann(), "customers call").await.expect("rolled back");
    assert_eq!(shown(&world), serves("2"));
    assert_eq!(state_in(&world, bakes).await, "baking");
}

#[tokio::test]
async fn the_canary_of_another_run_is_no_evidence_of_the_one_that_is_dropped() {
    let world = World::sqlite();
    let engine = world.process(&Crash::never()).await;
    serving(&world, &engine).await;
    let bakes = on_canary(&world, &engine, BAKES).await;
    world.pass(chrono::TimeDelta::hours(1));
    assert_eq!(ended(&world, &engine, bakes).await.outcome, Some(Outcome::Promoted));
    let run = on_canary(&world, &engine, FLOW).await;
    // As its run died between bringing it out and recording it.
    let gone = sqlx::query("DELETE FROM canaries WHERE run = $1").bind(run.0);
    assert_eq!(gone.execute(&mut database(&world).await).await.expect("written").rows_affected(), 1);
    engine.roll_back(&model(), &target(), None, ann(), "customers call").await.expect("rolled back");
    assert_eq!(shown(&world), serves("2"));
    let definition = engine.store.run(run).await.expect("readable").expect("a run").definition;
    let because =
        Because { configuration: Some(configuration(&definition)), ..Because::alone("customers call") };
    assert_eq!(newest(&engine).await, (None, because));
}

#[tokio::test]
async fn a_history_that_cannot_be_read_bars_nobody_from_going_back_during_a_freeze() {
    let world = World::sqlite();
    let engine = world.process(&Crash::never()).await;
    serving(&world, &engine).await;
    publish(&world, &engine).await;
    let newer = engine.promote_by_hand(&model(), &target(), &version("2"), false, "ann", None).await;
    assert!(matches!(newer, Ok(PromotedByHand::Done(_))), "{newer:?}");
    let wish = FreezeWish {
        model: None,
        from: None,
        end: FreezeEnd::Never,
        reason: "a fair".to_owned(),
        by: "ana".to_owned(),
    };
    let frozen = engine.store.freeze(FreezeId::generate(), &wish, world.clock.now()).await.expect("asked");
    assert!(matches!(frozen, FreezeAnswer::Made(_)), "{frozen:?}");
    let broken = sqlx::query("UPDATE release_audit SET assignment = '{' WHERE generation = 1");
    assert_eq!(broken.execute(&mut database(&world).await).await.expect("written").rows_affected(), 1);
    let older = version("1");
    let to = Back { version: &older, marks_bad: false };
    engine.roll_back(&model(), &target(), Some(to), ann(), "customers call").await.expect("rolled back");
    assert_eq!(shown(&world), serves("1"));
}
