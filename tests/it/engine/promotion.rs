//! After its first write a promotion is completed, whatever fails; unless a
//! person takes it back meanwhile.

use std::sync::Arc;

use chrono::TimeDelta;
use refit::clock::Clock;
use refit::domain::canary::CanaryState;
use refit::domain::id::RunId;
use refit::domain::release::ReleaseActor;
use refit::domain::run::{AttemptState, CancelRequest, IntentState, Outcome, Run, RunStatus, SignalKind};
use refit::domain::version::VersionState;
use refit::domain::workflow::Moment;
use refit::engine::Engine;
use refit::engine::by_hand::PromotedByHand;
use refit::engine::release::Back;
use refit::store::OutboxEntry;
use tokio_util::sync::CancellationToken;

use super::branches::{activated, newest, nudged};
use super::on_both;
use super::rollout::*;
use crate::support::crash::{Crash, When, Write};
use crate::support::world::{World, exists, turn};

const BAKES: Flow = Flow { promote: "{ bake: 1h }", ..FLOW };

/// How a host fails.
pub type Trouble = fn(&World, bool);

pub const TROUBLES: [Trouble; 2] =
    [|world, fails| world.host.reject(fails), |world, fails| world.host.break_down(fails)];

pub fn ann() -> ReleaseActor {
    ReleaseActor::Human { name: "ann".to_owned() }
}

pub async fn run_of(engine: &Arc<Engine>, run: RunId) -> Run {
    engine.store.run(run).await.expect("readable").expect("a run")
}

/// Somebody tells the run.
pub async fn tell(world: &World, engine: &Arc<Engine>, run: RunId, kind: &SignalKind, why: Option<&str>) {
    engine.store.signal(run, kind, "ann", why, world.clock.now()).await.expect("sent");
}

pub async fn cancel(world: &World, engine: &Arc<Engine>, run: RunId, who: &str) {
    let request = CancelRequest { actor: who.to_owned(), reason: None, at: world.clock.now() };
    assert!(engine.store.request_cancel(run, &request).await.expect("asked"));
}

pub fn approval() -> SignalKind {
    SignalKind::Approve { step: "ask".parse().expect("a step") }
}

/// What people hear of a promotion that is not completed yet.
async fn alerts(engine: &Arc<Engine>, run: RunId) -> Vec<OutboxEntry> {
    let queued = engine.store.outbox_of(run).await.expect("readable");
    let about = |entry: &OutboxEntry| {
        entry.notice.moment == Moment::Alert && entry.notice.key.contains("/promotion/promote/")
    };
    queued.into_iter().filter(about).collect()
}

/// Two days in which the run may do what it can, which is not to end.
pub async fn two_days(world: &World, engine: &Arc<Engine>, run: RunId) {
    for _ in 0..24 {
        let seen = turn(engine, run).await;
        assert_eq!((seen.status, seen.outcome), (RunStatus::Waiting, None), "{seen:?}");
        world.pass(TimeDelta::hours(2));
    }
}

/// A promotion that is decided and that the host does not show.
pub async fn not_shown(world: &World, engine: &Arc<Engine>, flow: Flow, trouble: Trouble) -> RunId {
    let run = on_canary(world, engine, flow).await;
    world.pass(TimeDelta::hours(1));
    trouble(world, true);
    let seen = turn(engine, run).await;
    assert_eq!((seen.status, seen.outcome, seen.committed), (RunStatus::Waiting, None, true), "{seen:?}");
    assert_eq!(release(engine).await.desired.canary, None, "it is decided");
    run
}

/// A process that dies right after it decided a promotion.
async fn dies_decided(world: &World, run: RunId) {
    let crash = Crash::at(Write { name: "write_release".to_owned(), nth: 0 }, When::After);
    dies(world, run, &crash).await;
}

async fn dies(world: &World, run: RunId, crash: &Crash) {
    let (dying, stop) = (world.process(crash).await, CancellationToken::new());
    tokio::select! {
        ended = dying.activate(run, &stop) => panic!("it lives: {ended:?}"),
        () = crash.died() => {}
    }
    let next = world.process(&Crash::never()).await;
    next.store.retire_worker(dying.worker).await.expect("its leases are free");
    leave(&next).await;
}

/// The run goes on, and nobody looks at canaries.
pub async fn goes_on(engine: &Arc<Engine>, run: RunId) -> Run {
    engine.activate(run, &CancellationToken::new()).await.expect("activates");
    run_of(engine, run).await
}

#[tokio::test]
async fn a_promotion_that_its_host_does_not_show_is_completed_and_baked_once_it_does() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        for (trouble, new) in TROUBLES.into_iter().zip(["2", "3"]) {
            let run = not_shown(&world, &engine, BAKES, trouble).await;
            two_days(&world, &engine, run).await;
            let told = alerts(&engine, run).await;
            assert_eq!(told.len(), 1, "{told:#?}");
            let facts = told[0].notice.facts.to_string();
            for part in ["refit rollback", "refit run cancel", "goes on trying", "host"] {
                assert!(facts.contains(part), "{facts}");
            }

            trouble(&world, false);
            world.pass(TimeDelta::minutes(5));
            let baking = turn(&engine, run).await;
            assert_eq!((baking.status, baking.outcome), (RunStatus::Waiting, Some(Outcome::Promoted)));
            assert_eq!(canary(&engine, run).await.state, CanaryState::Baking);
            assert_eq!(shown(&world), serves(new));
            let promoted = ended(&world, &engine, run).await;
            assert_eq!(promoted.outcome, Some(Outcome::Promoted));
            let intents = engine.store.intents(run).await.expect("readable");
            assert!(
                intents.iter().all(|intent| intent.undo.is_none() || intent.state == IntentState::Dead),
                "nothing was undone: {intents:#?}"
            );
        }
    })
    .await;
}

#[tokio::test]
async fn a_first_version_that_its_host_does_not_show_is_promoted_once_it_does() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        world.host.reject(true);
        let run = world.trigger(&engine, &FLOW.source()).await;
        reach(&world, &engine, run, TimeDelta::minutes(10), |run| run.committed).await;
        two_days(&world, &engine, run).await;
        assert_eq!(alerts(&engine, run).await.len(), 1);
        world.host.reject(false);
        assert_eq!(ended(&world, &engine, run).await.outcome, Some(Outcome::Promoted));
        assert_eq!(shown(&world), serves("1"));
    })
    .await;
}

#[tokio::test]
async fn a_cancel_waits_for_a_promotion_that_its_host_does_not_show() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = not_shown(&world, &engine, BAKES, TROUBLES[0]).await;
        cancel(&world, &engine, run, "ann").await;
        two_days(&world, &engine, run).await;
        world.host.reject(false);
        let ended = ended(&world, &engine, run).await;
        assert_eq!(ended.outcome, Some(Outcome::CancelledAfterPromotion), "{ended:?}");
        assert_eq!(shown(&world), serves("2"));
        assert_eq!(canary(&engine, run).await.state, CanaryState::Baking, "it is watched");
    })
    .await;
}

#[tokio::test]
async fn a_person_who_rolls_back_ends_a_promotion_that_its_host_does_not_show() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = not_shown(&world, &engine, BAKES, TROUBLES[0]).await;
        cancel(&world, &engine, run, "bob").await;
        let decided = engine.roll_back(&model(), &target(), None, ann(), "bad times").await;
        assert!(decided.is_err(), "the host rejects that, too");
        world.pass(TimeDelta::minutes(10));
        let ended = goes_on(&engine, run).await;
        assert_eq!((ended.status, ended.outcome), (RunStatus::Finished, Some(Outcome::RolledBack)));
        assert_eq!(
            ended.reason.as_deref(),
            Some("2 was taken off `production` by ann: bad times"),
            "by whom and why"
        );
        assert_eq!(canary(&engine, run).await.state, CanaryState::RolledBack);
        world.host.reject(false);
        engine.reconcile_releases().await.expect("reconciles");
        assert_eq!(shown(&world), serves("1"));
    })
    .await;
}

/// It hears of that at once, not when the host is tried again.
#[tokio::test]
async fn a_rollback_ends_a_promotion_that_waits_for_its_host_at_once() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = not_shown(&world, &engine, BAKES, TROUBLES[0]).await;
        two_days(&world, &engine, run).await;
        goes_on(&engine, run).await;
        let back = engine.roll_back(&model(), &target(), None, ann(), "bad times").await;
        assert!(back.is_err(), "the host rejects that, too");
        let ended = goes_on(&engine, run).await;
        assert_eq!((ended.status, ended.outcome), (RunStatus::Finished, Some(Outcome::RolledBack)));
        assert_eq!(ended.reason.as_deref(), Some("2 was taken off `production` by ann: bad times"));
        let canary = canary(&engine, run).await;
        assert_eq!((canary.state, canary.reason.as_str()), (CanaryState::RolledBack, "bad times"));
        assert_eq!(state_of(&engine, "2").await, VersionState::Bad);
    })
    .await;
}

/// There is no canary that could tell its run.
#[tokio::test]
async fn another_version_in_its_place_ends_a_first_one_that_waits_for_its_host_at_once() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        publish(&world, &engine).await;
        world.host.reject(true);
        let run = world.trigger(&engine, &FLOW.source()).await;
        reach(&world, &engine, run, TimeDelta::minutes(10), |run| run.committed).await;
        two_days(&world, &engine, run).await;
        goes_on(&engine, run).await;
        let done =
            engine.promote_by_hand(&model(), &target(), &version("1"), false, "ann", Some("older")).await;
        assert!(done.is_err(), "the host rejects that, too");
        let ended = goes_on(&engine, run).await;
        assert_eq!((ended.status, ended.outcome), (RunStatus::Finished, Some(Outcome::RolledBack)));
        assert_eq!(ended.reason.as_deref(), Some("2 was taken off `production` by ann: older"));
    })
    .await;
}

#[tokio::test]
async fn a_rollback_while_the_host_refuses_a_promotion_is_found_at_once() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = about_to_promote(&world, FLOW).await;
        world.host.reject(true);
        let outside = engine.clone();
        let crash =
            Crash::meanwhile(Write { name: "target.apply".to_owned(), nth: 0 }, When::After, move || {
                let outside = outside.clone();
                async move {
                    let back = outside.roll_back(&model(), &target(), None, ann(), "bad times").await;
                    assert!(back.is_err(), "the host rejects that, too");
                }
            });
        let working = world.process(&crash).await;
        goes_on(&working, run).await;
        let ended = goes_on(&working, run).await;
        assert_eq!((ended.status, ended.outcome), (RunStatus::Finished, Some(Outcome::RolledBack)));
        leave(&working).await;
    })
    .await;
}

#[tokio::test]
async fn a_process_that_dies_over_and_over_in_a_promotion_does_not_fail_it() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = about_to_promote(&world, BAKES).await;
        dies_decided(&world, run).await;
        for _ in 0..12 {
            let crash = Crash::at(Write { name: "target.apply".to_owned(), nth: 0 }, When::Before);
            dies(&world, run, &crash).await;
        }
        assert!(run_of(&engine, run).await.outcome.is_none());
        let baking = turn(&engine, run).await;
        assert_eq!((baking.status, baking.outcome), (RunStatus::Waiting, Some(Outcome::Promoted)));
        assert_eq!(canary(&engine, run).await.state, CanaryState::Baking);
        assert_eq!(alerts(&engine, run).await.len(), 1, "people heard of it");
    })
    .await;
}

#[tokio::test]
async fn a_branch_that_fails_beside_a_promotion_waits_until_it_is_completed() {
    let flow = Flow { before_promote: BREAKS, promote: "{ bake: 1h }, needs: [compare]", ..FLOW };
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = not_shown(&world, &engine, flow, TROUBLES[0]).await;
        tell(&world, &engine, run, &approval(), None).await;
        two_days(&world, &engine, run).await;
        assert_eq!(shown(&world), (Some("1".to_owned()), Some("2".to_owned())), "nothing is shown yet");
        world.host.reject(false);
        let failed = ended(&world, &engine, run).await;
        assert_eq!(failed.outcome, Some(Outcome::Failed));
        assert!(failed.reason.as_deref().is_some_and(|why| why.contains("step `breaks`")), "{failed:?}");
        assert_eq!(shown(&world), serves("2"));
        assert_eq!(canary(&engine, run).await.state, CanaryState::Baking, "it is watched");
    })
    .await;
}

#[tokio::test]
async fn what_was_rejected_beside_a_promotion_does_not_begin_once_it_is_completed() {
    let flow = Flow {
        before_promote: "  - { id: ask, uses: approve, needs: [publish], with: { message: 'Go on?' } }
  - { id: refused, run: 'true', needs: [ask] }",
        promote: "{ bake: 1h }, needs: [compare]",
        ..FLOW
    };
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = not_shown(&world, &engine, flow, TROUBLES[0]).await;
        let kind = SignalKind::Reject { step: "ask".parse().expect("a step") };
        tell(&world, &engine, run, &kind, Some("too risky")).await;
        for _ in 0..24 {
            assert_ne!(turn(&engine, run).await.status, RunStatus::Finished, "the promotion comes first");
            world.pass(TimeDelta::hours(2));
        }
        world.host.reject(false);
        let ended = ended(&world, &engine, run).await;
        assert_eq!(ended.outcome, Some(Outcome::CancelledAfterPromotion), "{ended:?}");
        let why = ended.reason.unwrap_or_default();
        assert!(why.starts_with("promoted (") && why.contains("too risky"), "{why}");
        assert_eq!(shown(&world), serves("2"));
        assert_eq!(canary(&engine, run).await.state, CanaryState::Baking, "it is watched");
        let attempts = engine.store.attempts(run).await.expect("readable");
        assert!(attempts.iter().all(|attempt| attempt.step.as_str() != "refused"), "{attempts:#?}");
    })
    .await;
}

#[tokio::test]
async fn what_goes_on_beside_a_promotion_is_stopped_when_the_run_is_to_end() {
    let flow = Flow {
        before_promote: "  - { id: begin, uses: approve, needs: [publish], with: { message: 'Train more?' } }
  - { id: long, run: 'touch began; while [ ! -e go ]; do sleep 0.02; done', needs: [begin] }
  - { id: ask, uses: approve, needs: [publish], with: { message: 'Go on?' } }",
        promote: "{ bake: 1h }, needs: [compare]",
        ..FLOW
    };
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = not_shown(&world, &engine, flow, TROUBLES[0]).await;
        let step = |id: &str| id.parse().expect("a step");
        tell(&world, &engine, run, &SignalKind::Approve { step: step("begin") }, None).await;
        let working = activated(&engine, run);
        exists(&world, "began").await;
        tell(&world, &engine, run, &SignalKind::Reject { step: step("ask") }, Some("too risky")).await;
        nudged(&engine, run).await;
        let stopped = newest(&engine, run, "long", |attempt| attempt.finished_at.is_some()).await;
        assert_eq!(stopped.state, AttemptState::Cancelled, "nobody waits for what it would train");
        working.await.expect("no panic").expect("it went well");
        let seen = run_of(&engine, run).await;
        assert_ne!(seen.status, RunStatus::Finished, "the promotion comes first: {seen:?}");
        world.host.reject(false);
        let ended = ended(&world, &engine, run).await;
        assert_eq!(ended.outcome, Some(Outcome::CancelledAfterPromotion), "{ended:?}");
        assert_eq!(shown(&world), serves("2"));
    })
    .await;
}

#[tokio::test]
async fn steps_after_a_failure_wait_for_a_first_version_to_be_shown() {
    let flow = Flow { before_promote: BREAKS, promote: "{}, needs: [compare]", ..FLOW };
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        world.host.reject(true);
        let source = format!("{}on_failure: [ {{ id: sorry, run: 'true' }} ]\n", flow.source());
        let run = world.trigger(&engine, &source).await;
        reach(&world, &engine, run, TimeDelta::minutes(10), |run| run.committed).await;
        tell(&world, &engine, run, &approval(), None).await;
        let sorry = async || {
            let attempts = engine.store.attempts(run).await.expect("readable");
            attempts.iter().any(|attempt| attempt.step.as_str() == "sorry")
        };
        for _ in 0..12 {
            assert_ne!(turn(&engine, run).await.status, RunStatus::Finished, "the promotion comes first");
            assert!(!sorry().await, "nothing of the end begins before");
            world.pass(TimeDelta::hours(2));
        }
        world.host.reject(false);
        assert_eq!(ended(&world, &engine, run).await.outcome, Some(Outcome::Failed));
        assert!(sorry().await);
        assert_eq!(shown(&world), serves("1"));
    })
    .await;
}

#[tokio::test]
async fn a_first_version_that_no_host_takes_can_be_left_to_the_reconciler() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        world.host.reject(true);
        let run = world.trigger(&engine, &FLOW.source()).await;
        reach(&world, &engine, run, TimeDelta::minutes(10), |run| run.committed).await;
        two_days(&world, &engine, run).await;
        cancel(&world, &engine, run, "ann").await;
        let left = ended(&world, &engine, run).await;
        assert_eq!(left.outcome, Some(Outcome::CancelledAfterPromotion), "{left:?}");
        assert_eq!(shown(&world), (None, None));
        world.host.reject(false);
        engine.reconcile_releases().await.expect("reconciles");
        assert_eq!(shown(&world), serves("1"));
    })
    .await;
}

#[tokio::test]
async fn a_run_whose_promotion_was_rolled_back_before_it_went_on_ends_as_rolled_back() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        publish(&world, &engine).await;
        for (flow, to, new) in [(FLOW, None, "3"), (BAKES, None, "4"), (FLOW, Some("2"), "5")] {
            let run = about_to_promote(&world, flow).await;
            dies_decided(&world, run).await;
            let named = to.map(version);
            let back = named.as_ref().map(Back::to);
            engine.roll_back(&model(), &target(), back, ann(), "bad times").await.expect("rolled back");
            let after = release(&engine).await;
            let ended = goes_on(&engine, run).await;
            assert_eq!((ended.status, ended.outcome), (RunStatus::Finished, Some(Outcome::RolledBack)));
            let why = format!("{new} was taken off `production` by ann: bad times");
            assert_eq!(ended.reason, Some(why));
            let canary = canary(&engine, run).await;
            assert_eq!((canary.state, canary.reason.as_str()), (CanaryState::RolledBack, "bad times"));
            assert_eq!(release(&engine).await, after, "what serves is what was rolled back to");
        }
    })
    .await;
}

#[tokio::test]
async fn a_first_version_in_whose_place_another_was_promoted_ends_as_rolled_back() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        publish(&world, &engine).await;
        let run = world.trigger(&engine, &FLOW.source()).await;
        reach(&world, &engine, run, TimeDelta::minutes(1), |run| run.status == RunStatus::Waiting).await;
        world.pass(TimeDelta::hours(1));
        dies_decided(&world, run).await;
        let done =
            engine.promote_by_hand(&model(), &target(), &version("1"), false, "ann", Some("older")).await;
        assert!(matches!(done, Ok(PromotedByHand::Done(_))), "{done:?}");
        let ended = goes_on(&engine, run).await;
        assert_eq!((ended.status, ended.outcome), (RunStatus::Finished, Some(Outcome::RolledBack)));
        assert_eq!(ended.reason.as_deref(), Some("2 was taken off `production` by ann: older"));
        assert_eq!(shown(&world), serves("1"));
    })
    .await;
}

#[tokio::test]
async fn a_rollback_while_the_host_shows_a_promotion_is_what_the_run_ends_with() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = about_to_promote(&world, FLOW).await;
        let outside = engine.clone();
        let crash =
            Crash::meanwhile(Write { name: "target.apply".to_owned(), nth: 0 }, When::After, move || {
                let outside = outside.clone();
                async move {
                    let back = outside.roll_back(&model(), &target(), None, ann(), "bad times").await;
                    back.expect("rolled back");
                }
            });
        let working = world.process(&crash).await;
        let ended = goes_on(&working, run).await;
        assert_eq!((ended.status, ended.outcome), (RunStatus::Finished, Some(Outcome::RolledBack)));
        assert_eq!(shown(&world), serves("1"));
        leave(&working).await;
    })
    .await;
}
