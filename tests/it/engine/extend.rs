//! More time for a canary, while it is watched and while it is held.

use std::sync::Arc;

use chrono::TimeDelta;
use refit::clock::Clock;
use refit::domain::canary::{CanaryRecord, CanaryState, MoreTime, NotExtended};
use refit::domain::id::RunId;
use refit::domain::run::{Outcome, RunStatus, SignalKind};
use refit::domain::verdict::Verdict;
use refit::domain::workflow::units::BasisPoints;
use refit::engine::Engine;
use refit::receipt;
use refit::store::Extended;

use super::on_both;
use super::rollout::*;
use crate::support::crash::Crash;
use crate::support::world::{World, turn};

/// Undecided after an hour; then a person decides.
const HELD: Flow = Flow {
    compare: "rules: [{ metric: error_rate, acceptable_below: 5% }], on_inconclusive: hold, hold_for: 1d",
    ..FLOW
};

async fn ask(world: &World, engine: &Arc<Engine>, run: RunId, hours: i64) -> Extended {
    let asked = MoreTime {
        more: TimeDelta::hours(hours),
        by: "ana".to_owned(),
        reason: Some("a slow week".to_owned()),
    };
    engine.store.extend_canary(run, &asked, world.clock.now()).await.expect("asked")
}

async fn extend(world: &World, engine: &Arc<Engine>, run: RunId, hours: i64) -> CanaryRecord {
    match ask(world, engine, run, hours).await {
        Extended::Made(canary) => *canary,
        other @ (Extended::Refused(_) | Extended::Unknown) => panic!("{other:?}"),
    }
}

async fn held(world: &World, engine: &Arc<Engine>, flow: Flow) -> RunId {
    let run = on_canary(world, engine, flow).await;
    world.pass(TimeDelta::hours(1));
    let seen = turn(engine, run).await;
    assert_eq!((seen.status, seen.outcome), (RunStatus::Held, None), "{seen:?}");
    run
}

#[tokio::test]
async fn a_canary_that_is_watched_gets_more_time_and_extensions_add_up() {
    let until =
        Flow { wait: "{ for: 1h, until: \"canary.verdict != 'inconclusive'\", at_most: 2h }", ..HELD };
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = on_canary(&world, &engine, until).await;
        let began = canary(&engine, run).await.started_at;
        extend(&world, &engine, run, 1).await;
        world.pass(TimeDelta::minutes(90));
        let extended = extend(&world, &engine, run, 2).await;
        assert_eq!(extended.deadline, Some(began + TimeDelta::hours(5)));
        for _ in 0..3 {
            let seen = turn(&engine, run).await;
            assert_eq!((seen.status, seen.outcome), (RunStatus::Waiting, None), "{seen:?}");
            world.pass(TimeDelta::hours(1));
        }
        world.pass(TimeDelta::minutes(31));
        assert_eq!(turn(&engine, run).await.status, RunStatus::Held, "five hours are over");
        let kept = canary(&engine, run).await.extensions;
        let said: Vec<String> = kept.iter().map(|extension| extension.words()).collect();
        assert_eq!(said, ["1h by ana: a slow week", "2h by ana: a slow week"]);
        let told = engine.store.run(run).await.expect("readable").expect("a run");
        let receipt = receipt::of(engine.store.as_ref(), &told).await.expect("readable").expect("held");
        let people: Vec<_> = receipt.people.iter().map(|it| (it.name.as_str(), it.did.as_str())).collect();
        assert_eq!(people, [("ana", "gave 1h more time to"), ("ana", "gave 2h more time to")]);
        let canary = serde_json::to_value(&receipt.canary).expect("JSON");
        assert_eq!(canary["extensions"][1]["evidence"]["verdict"], "inconclusive", "{canary:#}");
    })
    .await;
}

#[tokio::test]
async fn a_plain_wait_lasts_longer_when_its_canary_is_given_more_time() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = on_canary(&world, &engine, FLOW).await;
        extend(&world, &engine, run, 3).await;
        world.pass(TimeDelta::hours(3));
        let seen = turn(&engine, run).await;
        assert_eq!((seen.status, seen.outcome), (RunStatus::Waiting, None), "{seen:?}");
        world.pass(TimeDelta::hours(1));
        assert_eq!(turn(&engine, run).await.outcome, Some(Outcome::Promoted), "by its policy");
    })
    .await;
}

#[tokio::test]
async fn a_held_canary_with_more_time_is_promoted_when_it_passes() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = held(&world, &engine, HELD).await;
        world.pass(TimeDelta::hours(20));
        let extended = extend(&world, &engine, run, 24).await;
        assert_eq!(extended.deadline, Some(world.clock.now() + TimeDelta::hours(24)), "from now on");
        world.pass(TimeDelta::hours(10));
        assert_eq!(turn(&engine, run).await.status, RunStatus::Held, "also past the end of `hold_for`");
        for _ in 0..2 {
            traffic(&world, &engine, ("2", "1"), (0, 0)).await;
        }
        let now = canary(&engine, run).await;
        assert_eq!(now.verdict, Verdict::Pass, "{}", now.reason);
        let promoted = turn(&engine, run).await;
        assert_eq!(promoted.outcome, Some(Outcome::Promoted), "{promoted:?}");
        assert_eq!(promoted.reason, Some(now.reason));
        assert_eq!(shown(&world), serves("2"));
    })
    .await;
}

#[tokio::test]
async fn a_held_canary_with_more_time_is_rolled_back_when_it_fails_or_nobody_decides() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = held(&world, &engine, HELD).await;
        extend(&world, &engine, run, 24).await;
        traffic(&world, &engine, ("2", "1"), (9, 1)).await;
        assert_eq!(turn(&engine, run).await.outcome, Some(Outcome::RolledBack));
        assert_eq!(shown(&world), serves("1"));

        let run = held(&world, &engine, HELD).await;
        extend(&world, &engine, run, 24).await;
        world.pass(TimeDelta::hours(47));
        assert_eq!(turn(&engine, run).await.status, RunStatus::Held);
        world.pass(TimeDelta::hours(1));
        let ended = turn(&engine, run).await;
        assert_eq!(ended.outcome, Some(Outcome::RolledBack), "{ended:?}");
        assert!(ended.reason.is_some_and(|why| why.starts_with("nobody decided")));
        assert!(matches!(ask(&world, &engine, run, 1).await, Extended::Refused(NotExtended::Ended { .. })));
    })
    .await;
}

#[tokio::test]
async fn a_canary_that_is_held_without_traffic_gets_it_again_with_more_time() {
    let zero = Flow {
        compare: "rules: [{ metric: error_rate }], on_inconclusive: hold, hold_traffic: zero",
        ..HELD
    };
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = held(&world, &engine, zero).await;
        let share = || world.host.current().expect("shown").canary.expect("out").basis_points;
        assert_eq!(share(), BasisPoints(0));
        extend(&world, &engine, run, 24).await;
        assert_eq!(turn(&engine, run).await.status, RunStatus::Held);
        assert_eq!(share(), BasisPoints(1000));
        world.pass(TimeDelta::hours(24));
        assert_eq!(turn(&engine, run).await.status, RunStatus::Held);
        assert_eq!(share(), BasisPoints(0), "it is as undecided as before");
        extend(&world, &engine, run, 24).await;
        assert_eq!(turn(&engine, run).await.status, RunStatus::Held);
        assert_eq!(share(), BasisPoints(1000), "as often as it is given time");
    })
    .await;
}

#[tokio::test]
async fn no_policy_decides_in_the_time_that_people_gave() {
    // Given while another step waits: the one that waited for the evidence is over.
    let asks =
        Flow { wait: "{ for: 1h } }\n  - { id: ask, uses: approve, with: { message: 'Go on?' }", ..FLOW };
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = on_canary(&world, &engine, asks).await;
        world.pass(TimeDelta::hours(1));
        assert_eq!(turn(&engine, run).await.status, RunStatus::Waiting);
        extend(&world, &engine, run, 24).await;
        let yes = SignalKind::Approve { step: "ask".parse().expect("an id") };
        engine.store.signal(run, &yes, "bo", None, world.clock.now()).await.expect("sent");
        let seen = turn(&engine, run).await;
        assert_eq!((seen.status, seen.outcome), (RunStatus::Held, None), "`promote` is for the end of it");
    })
    .await;
}

#[tokio::test]
async fn time_that_is_given_after_the_end_of_a_wait_counts_from_then() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = on_canary(&world, &engine, FLOW).await;
        // Nobody was there when the hour was over.
        world.pass(TimeDelta::hours(10));
        extend(&world, &engine, run, 2).await;
        let seen = turn(&engine, run).await;
        assert_eq!((seen.status, seen.outcome), (RunStatus::Waiting, None), "{seen:?}");
        world.pass(TimeDelta::hours(2));
        assert_eq!(turn(&engine, run).await.outcome, Some(Outcome::Promoted), "by its policy");
    })
    .await;
}

#[tokio::test]
async fn a_promotion_that_is_written_is_not_decided_again() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = held(&world, &engine, HELD).await;
        extend(&world, &engine, run, 24).await;
        for _ in 0..2 {
            traffic(&world, &engine, ("2", "1"), (0, 0)).await;
        }
        world.host.break_down(true);
        assert_eq!(turn(&engine, run).await.outcome, None, "written, not shown");
        // A look that had read the release before it was written comes late.
        let before = canary(&engine, run).await;
        let after = CanaryRecord { verdict: Verdict::Fail, reason: "errors".to_owned(), ..before.clone() };
        assert!(engine.store.save_look(&before, &after, &[]).await.expect("saved"));
        world.host.break_down(false);
        world.pass(TimeDelta::minutes(1));
        let promoted = turn(&engine, run).await;
        assert_eq!(promoted.outcome, Some(Outcome::Promoted), "it serves everybody: {promoted:?}");
        assert_eq!(shown(&world), serves("2"));
    })
    .await;
}

#[tokio::test]
async fn a_version_that_bakes_gets_no_more_time() {
    let bakes = Flow { promote: "{ bake: 6h }", ..FLOW };
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = on_canary(&world, &engine, bakes).await;
        world.pass(TimeDelta::hours(1));
        assert_eq!(turn(&engine, run).await.outcome, Some(Outcome::Promoted));
        assert_eq!(canary(&engine, run).await.state, CanaryState::Baking);
        assert_eq!(ask(&world, &engine, run, 1).await, Extended::Refused(NotExtended::Bakes));
    })
    .await;
}
