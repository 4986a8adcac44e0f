//! Freezes: promotions wait, and every way back stays open.

use std::sync::Arc;

use chrono::TimeDelta;
use refit::clock::Clock;
use refit::domain::canary::CanaryState;
use refit::domain::freeze::{Freeze, FreezeEnd, FreezeScope, FreezeWish};
use refit::domain::id::{FreezeId, RunId};
use refit::domain::release::ReleaseActor;
use refit::domain::run::{CancelRequest, Outcome, Run, RunStatus};
use refit::domain::version::VersionState;
use refit::domain::workflow::Moment;
use refit::engine::Engine;
use refit::engine::by_hand::PromotedByHand;
use refit::engine::release::{Back, ReleaseError};
use refit::store::FreezeAnswer;

use super::on_both;
use super::rollout::*;
use crate::support::crash::{Crash, When, Write};
use crate::support::world::{World, turn};

pub async fn freeze(world: &World, engine: &Arc<Engine>, end: FreezeEnd) -> Freeze {
    let wish = FreezeWish {
        model: Some(model()),
        from: None,
        end,
        reason: "Black Friday".to_owned(),
        by: "ana".to_owned(),
    };
    match engine.store.freeze(FreezeId::generate(), &wish, world.clock.now()).await.expect("asked") {
        FreezeAnswer::Made(freeze) => freeze,
        other @ (FreezeAnswer::Already(_) | FreezeAnswer::Refused(_)) => panic!("{other:?}"),
    }
}

async fn unfreeze(world: &World, engine: &Arc<Engine>) {
    let lifted = engine.store.unfreeze(&FreezeScope::Model(model()), "bo", world.clock.now()).await;
    assert_eq!(lifted.expect("lifted").len(), 1);
}

/// A run whose canary came to its promotion while a freeze is in force.
async fn waits_at_promote(world: &World, engine: &Arc<Engine>, flow: Flow) -> RunId {
    let run = on_canary(world, engine, flow).await;
    freeze(world, engine, FreezeEnd::Never).await;
    world.pass(TimeDelta::hours(1));
    assert_waits(&turn(engine, run).await);
    assert_eq!(shown(world), (Some("1".to_owned()), Some("2".to_owned())), "the canary stays");
    run
}

fn assert_waits(run: &Run) {
    assert_eq!((run.status, run.outcome, run.committed), (RunStatus::Waiting, None, false), "{run:?}");
}

fn ann() -> ReleaseActor {
    ReleaseActor::Human { name: "ann".to_owned() }
}

#[tokio::test]
async fn a_run_trains_and_goes_on_canary_and_promotes_when_the_freeze_is_over() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        freeze(&world, &engine, FreezeEnd::After(TimeDelta::hours(2))).await;
        let run = on_canary(&world, &engine, FLOW).await;
        world.pass(TimeDelta::hours(1));
        for _ in 0..3 {
            assert_waits(&turn(&engine, run).await);
            world.pass(TimeDelta::minutes(10));
        }
        let told = engine.store.outbox_of(run).await.expect("readable");
        let told: Vec<_> = told.iter().filter(|entry| entry.notice.moment == Moment::Frozen).collect();
        let [told] = told.as_slice() else { panic!("once, to who hears of promotions: {told:?}") };
        let why = "frozen until 2026-11-20 04:00 UTC, by ana: Black Friday";
        assert_eq!(told.notice.facts["reason"], why);
        let attempts = engine.store.attempts(run).await.expect("readable");
        let waits = attempts.iter().find_map(refit::steps::promote::frozen);
        assert_eq!(waits.as_deref(), Some(why));
        world.pass(TimeDelta::minutes(30));
        let promoted = turn(&engine, run).await;
        assert_eq!(promoted.outcome, Some(Outcome::Promoted), "{promoted:?}");
        assert_eq!(shown(&world), serves("2"));
    })
    .await;
}

#[tokio::test]
async fn after_a_freeze_the_canary_is_looked_at_before_it_is_promoted() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        freeze(&world, &engine, FreezeEnd::After(TimeDelta::hours(2))).await;
        let run = on_canary(&world, &engine, FLOW).await;
        world.pass(TimeDelta::hours(1));
        assert_waits(&turn(&engine, run).await);
        // The server was away; run and look are due together, and the run is quicker.
        world.pass(TimeDelta::hours(5));
        let stop = tokio_util::sync::CancellationToken::new();
        engine.activate(run, &stop).await.expect("activates");
        let seen = engine.store.run(run).await.expect("readable").expect("a run");
        assert_waits(&seen);
        world.pass(TimeDelta::seconds(2));
        let promoted = turn(&engine, run).await;
        assert_eq!(promoted.outcome, Some(Outcome::Promoted), "{promoted:?}");
    })
    .await;
}

#[tokio::test]
async fn a_first_version_waits_and_goes_on_at_once_when_the_freeze_is_lifted() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        freeze(&world, &engine, FreezeEnd::Never).await;
        let run = world.trigger(&engine, &FLOW.source()).await;
        let waits = |run: &Run| run.status == RunStatus::Waiting;
        reach(&world, &engine, run, TimeDelta::minutes(1), waits).await;
        world.pass(TimeDelta::hours(1));
        assert_waits(&turn(&engine, run).await);
        let attempts = engine.store.attempts(run).await.expect("readable");
        assert!(
            attempts.iter().any(|attempt| refit::steps::promote::frozen(attempt).is_some()),
            "{attempts:#?}"
        );
        assert_eq!(shown(&world), (None, None));
        unfreeze(&world, &engine).await;
        // No time passes: the run was woken.
        let promoted = turn(&engine, run).await;
        assert_eq!(promoted.outcome, Some(Outcome::Promoted), "{promoted:?}");
        assert_eq!(shown(&world), serves("1"));
    })
    .await;
}

/// A process that has seen no freeze when it writes a release, and `person` freezes every model just before it does.
fn freezes_before_the_write(world: &World, person: &Arc<Engine>) -> Crash {
    let (by, at) = (Arc::clone(person), world.clock.now());
    Crash::meanwhile(Write { name: "write_release".to_owned(), nth: 0 }, When::Before, move || {
        let by = Arc::clone(&by);
        async move {
            let wish = FreezeWish {
                model: None,
                from: None,
                end: FreezeEnd::Never,
                reason: "an incident".to_owned(),
                by: "ana".to_owned(),
            };
            let made = by.store.freeze(FreezeId::generate(), &wish, at).await.expect("asked");
            assert!(matches!(made, FreezeAnswer::Made(_)));
        }
    })
}

#[tokio::test]
async fn a_freeze_that_comes_between_the_look_at_it_and_the_promotion_wins() {
    on_both(async |world| {
        let run = {
            let engine = world.process(&Crash::never()).await;
            serving(&world, &engine).await;
            let run = on_canary(&world, &engine, FLOW).await;
            leave(&engine).await;
            run
        };
        world.pass(TimeDelta::hours(1));
        let person = world.process(&Crash::never()).await;
        let meanwhile = freezes_before_the_write(&world, &person);
        let engine = world.process(&meanwhile).await;
        assert_waits(&turn(&engine, run).await);
        assert!(meanwhile.names().contains(&"write_release".to_owned()), "it had seen no freeze");
        assert_eq!(shown(&world), (Some("1".to_owned()), Some("2".to_owned())));
        let lifted = person.store.unfreeze(&FreezeScope::EveryModel, "bo", world.clock.now()).await;
        assert_eq!(lifted.expect("lifted").len(), 1);
        assert_eq!(turn(&engine, run).await.outcome, Some(Outcome::Promoted));
    })
    .await;
}

#[tokio::test]
async fn nobody_promotes_by_hand_during_a_freeze_unless_they_say_so() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = waits_at_promote(&world, &engine, FLOW).await;
        let refused = engine.promote_by_hand(&model(), &target(), &version("2"), false, "bo", None).await;
        assert!(matches!(refused, Err(ReleaseError::Frozen { .. })), "its own canary: {refused:?}");
        publish(&world, &engine).await;
        let refused = engine.promote_by_hand(&model(), &target(), &version("3"), true, "bo", None).await;
        assert!(matches!(refused, Err(ReleaseError::Frozen { .. })), "another version: {refused:?}");
        assert_waits(&turn(&engine, run).await);

        let told = engine
            .promote_despite_freeze(&model(), &target(), &version("2"), false, "bo", Some("a fix"))
            .await;
        assert!(matches!(told, Ok(PromotedByHand::Run(of)) if of == run), "{told:?}");
        let promoted = turn(&engine, run).await;
        assert_eq!(promoted.outcome, Some(Outcome::Promoted), "{promoted:?}");
        let although = "although frozen until somebody lifts it, by ana: Black Friday";
        assert_eq!(promoted.reason, Some(format!("promoted by bo: a fix, {although}")));

        let back = engine.promote_by_hand(&model(), &target(), &version("1"), false, "bo", None).await;
        assert!(matches!(back, Err(ReleaseError::Frozen { .. })), "a promotion all the same: {back:?}");
        let done = engine.promote_despite_freeze(&model(), &target(), &version("3"), false, "bo", None).await;
        assert!(matches!(done, Ok(PromotedByHand::Done(_))), "{done:?}");
        let history = engine.store.release_history(&model(), &target(), 1).await.expect("readable");
        assert_eq!(history[0].reason, although);
    })
    .await;
}

#[tokio::test]
async fn a_canary_that_fails_while_its_promotion_waits_is_rolled_back_at_once() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = waits_at_promote(&world, &engine, FLOW).await;
        traffic(&world, &engine, ("2", "1"), (9, 1)).await;
        assert_eq!(shown(&world), serves("1"), "{}", canary(&engine, run).await.reason);
        let ended = turn(&engine, run).await;
        assert_eq!(ended.outcome, Some(Outcome::RolledBack), "{ended:?}");
        assert_eq!(state_of(&engine, "2").await, VersionState::Bad);
    })
    .await;
}

#[tokio::test]
async fn a_canary_that_is_heard_of_no_more_is_held_and_not_promoted_after_the_freeze() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = waits_at_promote(&world, &engine, FLOW).await;
        traffic(&world, &engine, ("2", "1"), (0, 0)).await;
        // The app serves the canary no more, or does not say so: nobody knows how it is.
        for _ in 0..2 {
            traffic(&world, &engine, ("none", "1"), (0, 0)).await;
        }
        let held = turn(&engine, run).await;
        assert_eq!(held.status, RunStatus::Held, "{held:?} {}", canary(&engine, run).await.reason);
        unfreeze(&world, &engine).await;
        assert_eq!(turn(&engine, run).await.status, RunStatus::Held);
        assert_eq!(shown(&world).0, Some("1".to_owned()));
    })
    .await;
}

#[tokio::test]
async fn rollbacks_and_cancels_go_their_way_during_a_freeze() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        // By hand, of a canary whose promotion waits.
        let run = waits_at_promote(&world, &engine, FLOW).await;
        engine.roll_back(&model(), &target(), None, ann(), "users complain").await.expect("rolled back");
        assert_eq!(shown(&world), serves("1"));
        assert_eq!(turn(&engine, run).await.outcome, Some(Outcome::RolledBack));
        // Of a run: its undo takes the canary back.
        let run = on_canary(&world, &engine, FLOW).await;
        world.pass(TimeDelta::hours(1));
        assert_waits(&turn(&engine, run).await);
        let wish = CancelRequest { actor: "ann".to_owned(), reason: None, at: world.clock.now() };
        assert!(engine.store.request_cancel(run, &wish).await.expect("asked"));
        assert_eq!(ended(&world, &engine, run).await.outcome, Some(Outcome::Cancelled));
        assert_eq!(shown(&world), serves("1"));
        // By the verdict, in the step that promotes.
        let strict = Flow { compare: "rules: [{ metric: error_rate }], on_inconclusive: roll_back", ..FLOW };
        let run = on_canary(&world, &engine, strict).await;
        world.pass(TimeDelta::hours(1));
        assert_eq!(turn(&engine, run).await.outcome, Some(Outcome::RolledBack));
        // By the end of `hold_for`.
        let held =
            Flow { compare: "rules: [{ metric: error_rate }], on_inconclusive: hold, hold_for: 1d", ..FLOW };
        let run = on_canary(&world, &engine, held).await;
        world.pass(TimeDelta::hours(1));
        assert_eq!(turn(&engine, run).await.status, RunStatus::Held);
        world.pass(TimeDelta::days(1));
        assert_eq!(turn(&engine, run).await.outcome, Some(Outcome::RolledBack));
        // To an older version, of the one that serves everybody.
        publish(&world, &engine).await;
        let newest = version("6");
        let back = Back { version: &newest, marks_bad: false };
        let forth = engine.roll_back(&model(), &target(), Some(back), ann(), "it is better").await;
        assert!(matches!(forth, Err(ReleaseError::Frozen { .. })), "it never served: {forth:?}");
        let done = engine.promote_despite_freeze(&model(), &target(), &newest, false, "bo", None).await;
        assert!(matches!(done, Ok(PromotedByHand::Done(_))), "{done:?}");
        engine.roll_back(&model(), &target(), None, ann(), "slow").await.expect("rolled back");
        assert_eq!(shown(&world), serves("1"));
        engine.roll_back(&model(), &target(), Some(back), ann(), "it served").await.expect("rolled back");
        assert_eq!(shown(&world), serves("6"));
    })
    .await;
}

#[tokio::test]
async fn a_freeze_that_comes_while_somebody_goes_to_a_version_that_never_served_wins() {
    on_both(async |world| {
        let person = world.process(&Crash::never()).await;
        serving(&world, &person).await;
        publish(&world, &person).await;
        let engine = world.process(&freezes_before_the_write(&world, &person)).await;
        let never = version("2");
        let to = Back { version: &never, marks_bad: false };
        let forth = engine.roll_back(&model(), &target(), Some(to), ann(), "it is better").await;
        assert!(matches!(forth, Err(ReleaseError::Frozen { .. })), "{forth:?}");
        assert_eq!(shown(&world), serves("1"));
    })
    .await;
}

#[tokio::test]
async fn a_version_that_fails_in_its_bake_is_taken_back_during_a_freeze() {
    let limited = Flow {
        compare: "rules: [{ metric: error_rate, never_above: 5% }], on_inconclusive: promote",
        promote: "{ bake: 6h }",
        ..FLOW
    };
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = on_canary(&world, &engine, limited).await;
        world.pass(TimeDelta::hours(1));
        assert_eq!(turn(&engine, run).await.outcome, Some(Outcome::Promoted));
        freeze(&world, &engine, FreezeEnd::Never).await;
        for _ in 0..10 {
            traffic(&world, &engine, ("2", "none"), (9, 0)).await;
        }
        assert_eq!(canary(&engine, run).await.state, CanaryState::RolledBack);
        assert_eq!(shown(&world), serves("1"));
    })
    .await;
}
