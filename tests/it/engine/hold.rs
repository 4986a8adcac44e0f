//! Verdicts that a human decides, and watching that goes on: hold and bake.

use std::sync::Arc;

use chrono::TimeDelta;
use refit::clock::Clock;
use refit::domain::canary::CanaryState;
use refit::domain::id::RunId;
use refit::domain::run::{AttemptState, Outcome, RunStatus};
use refit::domain::verdict::Verdict;
use refit::domain::version::VersionState;
use refit::domain::workflow::Moment;
use refit::domain::workflow::units::BasisPoints;
use refit::engine::Engine;
use refit::engine::by_hand::PromotedByHand;

use super::on_both;
use super::rollout::*;
use crate::support::crash::{Crash, When, Write};
use crate::support::world::{World, turn};

const HELD: Flow = Flow { compare: "rules: [{ metric: error_rate }], on_inconclusive: hold", ..FLOW };
const BAKES: Flow = Flow { promote: "{ bake: 6h }", ..FLOW };

async fn held(
    world: &World,
    engine: &std::sync::Arc<refit::engine::Engine>,
    flow: Flow,
) -> refit::domain::id::RunId {
    let run = on_canary(world, engine, flow).await;
    world.pass(TimeDelta::hours(1));
    let seen = turn(engine, run).await;
    assert_eq!((seen.status, seen.outcome), (RunStatus::Held, None), "{seen:?}");
    run
}

#[tokio::test]
async fn an_undecided_canary_is_held_keeps_its_traffic_and_frees_its_key() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = held(&world, &engine, HELD).await;
        assert_eq!(shown(&world), (Some("1".to_owned()), Some("2".to_owned())), "traffic stays");
        let queued = engine.store.outbox_of(run).await.expect("readable");
        assert_eq!(queued.iter().filter(|entry| entry.notice.moment == Moment::Held).count(), 1);
        // The same key: the next run of the workflow starts, and its newer version takes the canary's place.
        let next = on_canary(&world, &engine, HELD).await;
        assert_ne!(next, run);
        assert_eq!(shown(&world), (Some("1".to_owned()), Some("3".to_owned())));
        assert_eq!(turn(&engine, run).await.outcome, Some(Outcome::RolledBack));
    })
    .await;
}

#[tokio::test]
async fn a_held_canary_without_traffic_stays_and_a_person_promotes_it() {
    let zero = Flow {
        compare: "rules: [{ metric: error_rate }], on_inconclusive: hold, hold_traffic: zero",
        ..HELD
    };
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = held(&world, &engine, zero).await;
        let served = world.host.current().expect("shown").canary.expect("it stays");
        assert_eq!(served.basis_points, BasisPoints(0));
        world.pass(TimeDelta::hours(3));
        let told = engine.promote_by_hand(&model(), &target(), &version("2"), false, "ann", None).await;
        assert!(matches!(told, Ok(PromotedByHand::Run(of)) if of == run), "{told:?}");
        let promoted = turn(&engine, run).await;
        assert_eq!(promoted.outcome, Some(Outcome::Promoted), "{promoted:?}");
        assert_eq!(promoted.reason.as_deref(), Some("promoted by ann"));
        assert_eq!(shown(&world), serves("2"));
    })
    .await;
}

#[tokio::test]
async fn a_canary_that_nobody_decides_about_is_rolled_back_after_hold_for() {
    let day =
        Flow { compare: "rules: [{ metric: error_rate }], on_inconclusive: hold, hold_for: 1d", ..HELD };
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = held(&world, &engine, day).await;
        world.pass(TimeDelta::hours(23));
        assert_eq!(turn(&engine, run).await.status, RunStatus::Held);
        world.pass(TimeDelta::hours(1));
        let ended = turn(&engine, run).await;
        assert_eq!(ended.outcome, Some(Outcome::RolledBack), "{ended:?}");
        assert!(ended.reason.is_some_and(|why| why.starts_with("nobody decided while it was held for 1d: ")));
        assert_eq!(shown(&world), serves("1"));
        assert_eq!(canary(&engine, run).await.state, CanaryState::RolledBack);
    })
    .await;
}

#[tokio::test]
async fn a_held_canary_whose_host_is_away_when_its_time_is_over_is_not_held_again() {
    let day =
        Flow { compare: "rules: [{ metric: error_rate }], on_inconclusive: hold, hold_for: 1d", ..HELD };
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = held(&world, &engine, day).await;
        world.pass(TimeDelta::hours(24));
        world.host.break_down(true);
        assert_eq!(turn(&engine, run).await.outcome, None, "tried again");
        world.host.break_down(false);
        world.pass(TimeDelta::minutes(1));
        let ended = turn(&engine, run).await;
        assert_eq!(ended.outcome, Some(Outcome::RolledBack), "{ended:?}");
        assert_eq!(shown(&world), serves("1"));
    })
    .await;
}

#[tokio::test]
async fn a_canary_that_fails_while_it_is_held_is_rolled_back() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = held(&world, &engine, HELD).await;
        traffic(&world, &engine, ("2", "1"), (9, 1)).await;
        assert_eq!(shown(&world), serves("1"), "watching goes on: {}", canary(&engine, run).await.reason);
        let ended = turn(&engine, run).await;
        assert_eq!(ended.outcome, Some(Outcome::RolledBack), "{ended:?}");
        assert!(ended.reason.is_some_and(|why| why.starts_with("canary errors")));
        assert_eq!(state_of(&engine, "2").await, VersionState::Bad);
    })
    .await;
}

#[tokio::test]
async fn a_canary_that_fails_while_a_person_is_asked_is_rolled_back() {
    let asks =
        Flow { before_promote: "  - { id: ask, uses: approve, with: { message: 'Promote it?' } }", ..FLOW };
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = on_canary(&world, &engine, asks).await;
        world.pass(TimeDelta::hours(1));
        let asked = turn(&engine, run).await;
        assert_eq!((asked.status, asked.outcome), (RunStatus::Waiting, None), "{asked:?}");
        let attempts = engine.store.attempts(run).await.expect("readable");
        assert!(attempts.iter().any(|attempt| attempt.step.as_str() == "ask"), "a person is asked");
        traffic(&world, &engine, ("2", "1"), (9, 1)).await;
        assert_eq!(shown(&world), serves("1"), "at once: {}", canary(&engine, run).await.reason);
        let ended = turn(&engine, run).await;
        assert_eq!(ended.outcome, Some(Outcome::RolledBack), "nobody need answer: {ended:?}");
        assert!(ended.reason.is_some_and(|why| why.starts_with("canary errors")));

        // Whoever promotes it by hand has answered: what is asked before it is promoted, not after.
        let next = on_canary(&world, &engine, asks).await;
        world.pass(TimeDelta::hours(1));
        assert_eq!(turn(&engine, next).await.outcome, None);
        let told = engine.promote_by_hand(&model(), &target(), &version("3"), false, "ann", None).await;
        assert!(matches!(told, Ok(PromotedByHand::Run(of)) if of == next), "{told:?}");
        let promoted = turn(&engine, next).await;
        assert_eq!(promoted.outcome, Some(Outcome::Promoted), "{promoted:?}");
        assert_eq!(shown(&world), serves("3"));

        let asks_later =
            Flow { promote: "{} }\n  - { id: load, uses: approve, with: { message: 'Load it?' }", ..FLOW };
        let last = on_canary(&world, &engine, asks_later).await;
        let told = engine.promote_by_hand(&model(), &target(), &version("4"), false, "ann", None).await;
        assert!(matches!(told, Ok(PromotedByHand::Run(of)) if of == last), "{told:?}");
        let asked = turn(&engine, last).await;
        assert_eq!(shown(&world), serves("4"));
        assert_eq!(asked.status, RunStatus::Waiting, "nobody answered that: {asked:?}");
    })
    .await;
}

#[tokio::test]
async fn a_bake_without_trouble_ends_as_promoted() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = on_canary(&world, &engine, BAKES).await;
        world.pass(TimeDelta::hours(1));
        let baking = turn(&engine, run).await;
        assert_eq!((baking.status, baking.outcome), (RunStatus::Waiting, Some(Outcome::Promoted)));
        assert_eq!(canary(&engine, run).await.state, CanaryState::Baking);
        assert_eq!(shown(&world), serves("2"));
        world.pass(TimeDelta::hours(5));
        assert_eq!(turn(&engine, run).await.status, RunStatus::Waiting);
        world.pass(TimeDelta::hours(1));
        let ended = turn(&engine, run).await;
        assert_eq!((ended.status, ended.outcome), (RunStatus::Finished, Some(Outcome::Promoted)));
        assert_eq!(canary(&engine, run).await.state, CanaryState::Promoted);
        assert_eq!(engine.store.live_canaries(None).await.expect("readable"), []);
    })
    .await;
}

#[tokio::test]
async fn a_version_that_is_bad_during_its_bake_makes_room_for_the_one_before() {
    let limited = Flow {
        compare: "rules: [{ metric: error_rate, never_above: 5% }], on_inconclusive: promote",
        ..BAKES
    };
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = on_canary(&world, &engine, limited).await;
        world.pass(TimeDelta::hours(1));
        assert_eq!(turn(&engine, run).await.outcome, Some(Outcome::Promoted));
        // Everybody is served by version 2; nobody reports for version 1 any more.
        for _ in 0..10 {
            traffic(&world, &engine, ("2", "none"), (9, 0)).await;
        }
        let state = canary(&engine, run).await;
        assert_eq!(state.state, CanaryState::RolledBack, "{} {:#?}", state.reason, state.view());
        assert_eq!(shown(&world), serves("1"));
        assert_eq!(state_of(&engine, "2").await, VersionState::Bad);
        let ended = turn(&engine, run).await;
        assert_eq!((ended.status, ended.outcome), (RunStatus::Finished, Some(Outcome::RolledBack)));
        assert!(ended.reason.is_some_and(|why| why.starts_with("rolled back during bake: ")));
    })
    .await;
}

/// What a run said of `promoted` and `rolled_back`, in order.
async fn told(engine: &Arc<Engine>, run: RunId) -> Vec<(Moment, Option<String>)> {
    let told = engine.store.outbox_of(run).await.expect("readable").into_iter();
    let told = told.filter(|entry| matches!(entry.notice.moment, Moment::Promoted | Moment::RolledBack));
    let next = |facts: &serde_json::Value| facts["next"].as_str().map(str::to_owned);
    told.map(|entry| (entry.notice.moment, next(&entry.notice.facts))).collect()
}

#[tokio::test]
async fn people_hear_of_a_promotion_when_it_is_made_and_again_only_if_its_bake_takes_it_back() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = on_canary(&world, &engine, BAKES).await;
        world.pass(TimeDelta::hours(1));
        assert_eq!(turn(&engine, run).await.status, RunStatus::Waiting);
        let next = "it is watched for 6h more; should it harm, it is rolled back at once".to_owned();
        let promoted = (Moment::Promoted, Some(next));
        assert_eq!(told(&engine, run).await, std::slice::from_ref(&promoted), "at once");
        let all = engine.store.outbox_of(run).await.expect("readable");
        let entry = all.iter().find(|entry| entry.notice.moment == Moment::Promoted).expect("there");
        let facts = &entry.notice.facts;
        assert_eq!(facts["version"], "2", "{facts:#}");
        assert!(facts["serving"].as_str().is_some_and(|says| says.starts_with("2 serves all")), "{facts:#}");
        world.pass(TimeDelta::hours(6));
        assert_eq!(turn(&engine, run).await.status, RunStatus::Finished);
        assert_eq!(told(&engine, run).await, std::slice::from_ref(&promoted), "and not again");

        let run = on_canary(&world, &engine, BAKES).await;
        world.pass(TimeDelta::hours(1));
        assert_eq!(turn(&engine, run).await.status, RunStatus::Waiting);
        let actor = refit::domain::release::ReleaseActor::Human { name: "ann".to_owned() };
        engine.roll_back(&model(), &target(), None, actor, "users complain").await.expect("rolled back");
        assert_eq!(turn(&engine, run).await.status, RunStatus::Finished);
        assert_eq!(told(&engine, run).await, [promoted, (Moment::RolledBack, None)]);
    })
    .await;
}

#[tokio::test]
async fn a_version_that_is_taken_back_as_its_bake_ends_was_not_promoted() {
    let limited = Flow {
        compare: "rules: [{ metric: error_rate, never_above: 5% }], on_inconclusive: promote",
        ..BAKES
    };
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = on_canary(&world, &engine, limited).await;
        world.pass(TimeDelta::hours(1));
        assert_eq!(turn(&engine, run).await.outcome, Some(Outcome::Promoted));
        world.pass(TimeDelta::hours(5));
        for _ in 0..90 {
            a_minute(&world, &engine, ("2", "none"), (9, 0)).await;
        }
        // The controller has found that it fails, and is about to take it back; the bake is over.
        let crash = Crash::freeze_at(Write { name: "save_look".to_owned(), nth: 0 }, When::After);
        let controller = world.process(&crash).await;
        let looking = tokio::spawn(async move { controller.look_at_canaries().await });
        crash.is_frozen().await;
        assert_eq!(canary(&engine, run).await.verdict, Verdict::Fail);
        let meanwhile = turn(&engine, run).await;
        assert_eq!(meanwhile.status, RunStatus::Waiting, "{meanwhile:?}");
        crash.thaw();
        looking.await.expect("no panic").expect("looks");
        assert_eq!(shown(&world), serves("1"));
        let ended = turn(&engine, run).await;
        assert_eq!((ended.status, ended.outcome), (RunStatus::Finished, Some(Outcome::RolledBack)));
        assert_eq!(state_of(&engine, "2").await, VersionState::Bad);
    })
    .await;
}

#[tokio::test]
async fn a_rollback_by_hand_during_the_bake_ends_the_run() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = on_canary(&world, &engine, BAKES).await;
        world.pass(TimeDelta::hours(1));
        assert_eq!(turn(&engine, run).await.outcome, Some(Outcome::Promoted));
        let actor = refit::domain::release::ReleaseActor::Human { name: "ann".to_owned() };
        engine.roll_back(&model(), &target(), None, actor, "users complain").await.expect("rolled back");
        assert_eq!(shown(&world), serves("1"));
        assert_eq!(state_of(&engine, "2").await, VersionState::Bad);
        let ended = turn(&engine, run).await;
        assert_eq!((ended.status, ended.outcome), (RunStatus::Finished, Some(Outcome::RolledBack)));
        assert_eq!(ended.reason.as_deref(), Some("rolled back during bake: users complain"));
    })
    .await;
}

#[tokio::test]
async fn a_wait_does_not_begin_again_because_a_process_died_in_it() {
    on_both(async |world| {
        let first = world.process(&Crash::never()).await;
        serving(&world, &first).await;
        let run = on_canary(&world, &first, FLOW).await;
        first.store.retire_worker(first.worker).await.expect("retired");
        world.pass(TimeDelta::minutes(50));
        let woken = refit::domain::run::SignalKind::Look;
        first.store.signal(run, &woken, "refit", None, world.clock.now()).await.expect("sent");

        // It dies with the step awake: its claim is made, nothing of it is heard of.
        let crash = Crash::at(1, When::After);
        let dying = world.process(&crash).await;
        let stop = tokio_util::sync::CancellationToken::new();
        tokio::select! {
            _ = dying.activate(run, &stop) => panic!("it lives"),
            () = crash.died() => {}
        }
        assert_eq!(crash.names(), ["register_worker", "claim"]);
        first.store.retire_worker(dying.worker).await.expect("its leases are free");

        let next = world.process(&Crash::never()).await;
        turn(&next, run).await;
        let attempts = next.store.attempts(run).await.expect("readable");
        assert!(attempts.iter().any(|attempt| attempt.state == AttemptState::Lost), "{attempts:#?}");
        world.pass(TimeDelta::minutes(10));
        let promoted = turn(&next, run).await;
        assert_eq!(promoted.outcome, Some(Outcome::Promoted), "an hour is over: {promoted:?}");
    })
    .await;
}
