//! `uses: rollback`: it goes back once, however often its step is tried.

use std::sync::Arc;

use chrono::TimeDelta;
use refit::clock::Clock;
use refit::domain::run::{AttemptState, Outcome, RunStatus, SignalKind};
use refit::domain::version::VersionState;
use refit::engine::Engine;
use refit::engine::by_hand::PromotedByHand;

use super::on_both;
use super::rollout::*;
use crate::support::crash::{Crash, When, Write};
use crate::support::world::{World, turn};

/// Versions 1 to 3 served everybody, one after the other.
async fn serving_the_third(world: &World, engine: &Arc<Engine>) {
    serving(world, engine).await;
    for name in ["2", "3"] {
        publish(world, engine).await;
        let done = engine.promote_by_hand(&model(), &target(), &version(name), false, "ann", None).await;
        assert!(matches!(done, Ok(PromotedByHand::Done(_))), "{done:?}");
    }
}

async fn states(engine: &Arc<Engine>) -> Vec<(String, VersionState)> {
    let versions = engine.store.versions(&model()).await.expect("readable");
    let mut states: Vec<_> =
        versions.into_iter().map(|version| (version.name.to_string(), version.state)).collect();
    states.sort_by(|a, b| a.0.cmp(&b.0));
    states
}

fn known(states: &[(&str, VersionState)]) -> Vec<(String, VersionState)> {
    states.iter().map(|(name, state)| ((*name).to_owned(), *state)).collect()
}

/// A run that rolls back while the host is away, and is tried again once the host is there.
async fn twice(world: &World, engine: &Arc<Engine>) {
    world.host.break_down(true);
    let run = world.trigger(engine, ROLLS_BACK).await;
    assert_eq!(turn(engine, run).await.status, RunStatus::Waiting, "it is tried again");
    world.host.break_down(false);
    let done = ended(world, engine, run).await;
    assert_eq!(done.outcome, Some(Outcome::Succeeded), "{done:?}");
    let attempts = engine.store.attempts(run).await.expect("readable");
    let states: Vec<_> = attempts.iter().map(|attempt| attempt.state).collect();
    assert_eq!(states, [AttemptState::Failed, AttemptState::Succeeded]);
}

#[tokio::test]
async fn a_rollback_that_is_tried_again_goes_back_once() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving_the_third(&world, &engine).await;
        let before = release(&engine).await.generation;
        twice(&world, &engine).await;
        assert_eq!(shown(&world), serves("2"));
        let expected = [("1", VersionState::Sealed), ("2", VersionState::Sealed), ("3", VersionState::Bad)];
        assert_eq!(states(&engine).await, known(&expected));
        let release = release(&engine).await;
        assert_eq!((release.generation, release.is_applied()), (before.next(), true));
    })
    .await;
}

#[tokio::test]
async fn what_sleeps_beside_a_rollback_of_its_own_canary_hears_of_it() {
    let flow = Flow {
        before_promote: "  - { id: ask, uses: approve, needs: [canary], with: { message: 'Back?' } }
  - { id: back, uses: rollback, needs: [ask], with: { target: production } }",
        promote: "{}, needs: [compare]",
        ..DAY
    };
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = on_canary(&world, &engine, flow).await;
        let kind = SignalKind::Approve { step: "ask".parse().expect("a step") };
        engine.store.signal(run, &kind, "ann", None, world.clock.now()).await.expect("sent");
        // No time passes: nobody looks at the canary.
        for _ in 0..3 {
            turn(&engine, run).await;
        }
        let attempts = engine.store.attempts(run).await.expect("readable");
        let watch = attempts.iter().find(|attempt| attempt.step.as_str() == "watch").expect("it began");
        assert_eq!(watch.state, AttemptState::Succeeded, "{attempts:#?}");
        assert_eq!(ended(&world, &engine, run).await.outcome, Some(Outcome::RolledBack));
    })
    .await;
}

#[tokio::test]
async fn a_rollback_of_a_canary_that_is_tried_again_leaves_the_champion_alone() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        publish(&world, &engine).await;
        let done = engine.promote_by_hand(&model(), &target(), &version("2"), false, "ann", None).await;
        assert!(matches!(done, Ok(PromotedByHand::Done(_))), "{done:?}");
        on_canary(&world, &engine, DAY).await;
        twice(&world, &engine).await;
        assert_eq!(shown(&world), serves("2"));
        let expected = [("1", VersionState::Sealed), ("2", VersionState::Sealed), ("3", VersionState::Bad)];
        assert_eq!(states(&engine).await, known(&expected));
    })
    .await;
}

#[tokio::test]
async fn what_a_person_serves_after_a_rollback_is_not_rolled_back_by_its_next_attempt() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving_the_third(&world, &engine).await;
        world.host.break_down(true);
        let run = world.trigger(&engine, ROLLS_BACK).await;
        assert_eq!(turn(&engine, run).await.status, RunStatus::Waiting);
        world.host.break_down(false);
        let done = engine.promote_by_hand(&model(), &target(), &version("1"), false, "ann", None).await;
        assert!(matches!(done, Ok(PromotedByHand::Done(_))), "{done:?}");
        world.pass(TimeDelta::minutes(10));
        let done = ended(&world, &engine, run).await;
        assert_eq!(done.outcome, Some(Outcome::Succeeded), "{done:?}");
        assert_eq!(shown(&world), serves("1"));
        let attempts = engine.store.attempts(run).await.expect("readable");
        let output = attempts.last().and_then(|attempt| attempt.output.clone()).expect("an output");
        assert_eq!(output["serves"], "1", "it says what is so");
    })
    .await;
}

#[tokio::test]
async fn a_process_frozen_at_the_write_of_a_rollback_wakes_up_and_changes_nothing() {
    for when in [When::Before, When::After] {
        let world = World::postgres().await;
        let next = world.process(&Crash::never()).await;
        serving_the_third(&world, &next).await;
        let run = world.trigger(&next, ROLLS_BACK).await;
        let crash = Crash::freeze_at(Write { name: "write_release".to_owned(), nth: 0 }, when);
        let frozen = world.process(&crash).await;
        let working = tokio::spawn({
            let frozen = frozen.clone();
            async move { turn(&frozen, run).await }
        });
        crash.is_frozen().await;
        world.pass(TimeDelta::seconds(11));
        assert_eq!(ended(&world, &next, run).await.outcome, Some(Outcome::Succeeded), "{when:?}");
        let before = (release(&next).await, states(&next).await, world.host.history());
        assert_eq!(shown(&world), serves("2"), "{when:?}");
        crash.thaw();
        working.await.expect("no panic");
        let after = (release(&next).await, states(&next).await, world.host.history());
        assert_eq!(before, after, "{when:?}");
        leave(&frozen).await;
    }
}
