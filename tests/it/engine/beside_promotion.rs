//! What goes on, or ends, in other branches beside a promotion that is not completed yet.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use chrono::TimeDelta;
use refit::clock::Clock;
use refit::domain::id::RunId;
use refit::domain::release::ReleaseActor;
use refit::domain::run::{AttemptState, Outcome, SignalKind};
use refit::engine::Engine;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::branches::{activated, newest, nudged};
use super::on_both;
use super::promotion::{TROUBLES, approval, cancel, not_shown, run_of, tell};
use super::rollout::*;
use crate::support::crash::{Crash, Files, When, Write};
use crate::support::world::{World, exists, turn};

/// Beside a promotion: what answers `begin` goes on until there is a file `go`, also when it is told to stop.
const STUBBORN: Flow = Flow {
    before_promote: "  - { id: begin, uses: approve, needs: [publish], with: { message: 'Train more?' } }
  - id: long
    needs: [begin]
    grace: 1h
    run: |
      trap 'touch told' TERM
      touch began; while [ ! -e go ]; do sleep 0.02; done
  - { id: ask, uses: approve, needs: [publish], with: { message: 'Go on?' } }
  - { id: next, run: 'touch next', needs: [ask] }",
    promote: "{ bake: 1h }, needs: [compare]",
    ..FLOW
};

async fn states(engine: &Arc<Engine>, run: RunId, step: &str) -> Vec<AttemptState> {
    let attempts = engine.store.attempts(run).await.expect("readable");
    attempts.iter().filter(|attempt| attempt.step.as_str() == step).map(|attempt| attempt.state).collect()
}

fn begin() -> SignalKind {
    SignalKind::Approve { step: "begin".parse().expect("a step") }
}

/// The promotion is tried again when it is due, and made, while `long` still ends.
async fn completed_beside(world: &World, engine: &Arc<Engine>, run: RunId) {
    let failed = newest(engine, run, "promote", |attempt| attempt.state == AttemptState::Failed).await;
    world.host.reject(false);
    world.clock.set(failed.wake_at.expect("tried again"));
    newest(engine, run, "promote", |attempt| {
        attempt.state != AttemptState::Failed && attempt.finished_at.is_some()
    })
    .await;
    assert_eq!(shown(world), serves("2"));
    assert_eq!(states(engine, run, "long").await, [AttemptState::Started], "it still ends");
}

#[tokio::test]
async fn a_promotion_does_not_wait_for_what_a_cancel_stops_beside_it() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = not_shown(&world, &engine, STUBBORN, TROUBLES[0]).await;
        tell(&world, &engine, run, &begin(), None).await;
        let working = activated(&engine, run);
        exists(&world, "began").await;
        cancel(&world, &engine, run, "ann").await;
        nudged(&engine, run).await;
        exists(&world, "told").await;
        completed_beside(&world, &engine, run).await;
        world.write("go", "");
        working.await.expect("no panic").expect("it went well");
        let ended = run_of(&engine, run).await;
        assert_eq!(ended.outcome, Some(Outcome::CancelledAfterPromotion), "{ended:?}");
    })
    .await;
}

/// The process hears that the run is to end while it reads the files of the version, before the promotion's first write.
#[tokio::test]
async fn a_promotion_is_tried_again_whatever_still_ends_beside_it() {
    let flow = Flow { promote: "{}, needs: [compare]", ..STUBBORN };
    on_both(async |world| {
        let before = world.process(&Crash::never()).await;
        serving(&world, &before).await;
        let run = on_canary(&world, &before, flow).await;
        leave(&before).await;
        // The database goes away in the second attempt.
        let own: Arc<OnceLock<Crash>> = Arc::default();
        let crash = Crash::meanwhile(Write { name: "target.apply".to_owned(), nth: 1 }, When::After, {
            let own = own.clone();
            move || {
                let own = own.clone();
                async move { own.get().expect("told which").outage(true) }
            }
        });
        own.set(crash.clone()).expect("once");
        let engine = world.process(&crash).await;
        tell(&world, &engine, run, &begin(), None).await;
        let working = activated(&engine, run);
        exists(&world, "began").await;
        world.host.reject(true);
        crash.files(Files::Held);
        world.pass(TimeDelta::hours(1));
        newest(&engine, run, "promote", |attempt| attempt.state == AttemptState::Started).await;
        let kind = SignalKind::Reject { step: "ask".parse().expect("a step") };
        tell(&world, &engine, run, &kind, Some("too risky")).await;
        nudged(&engine, run).await;
        exists(&world, "told").await;
        crash.files(Files::Readable);
        let failed = newest(&engine, run, "promote", |attempt| attempt.state == AttemptState::Failed).await;
        world.host.reject(false);
        world.clock.set(failed.wake_at.expect("tried again"));
        let tried = tokio::time::timeout(Duration::from_secs(30), crash.unanswered("release_applied"));
        tried.await.expect("it is tried again");
        crash.outage(false);
        newest(&engine, run, "promote", |attempt| attempt.state == AttemptState::Succeeded).await;
        let attempts = states(&engine, run, "promote").await;
        assert_eq!(attempts, [AttemptState::Failed, AttemptState::Succeeded], "nothing interrupted it");
        assert_eq!(states(&engine, run, "long").await, [AttemptState::Started], "it still ends");
        assert_eq!(shown(&world), serves("2"));
        world.write("go", "");
        working.await.expect("no panic").expect("it went well");
        let ended = run_of(&engine, run).await;
        assert_eq!(ended.outcome, Some(Outcome::CancelledAfterPromotion), "{ended:?}");
    })
    .await;
}

#[tokio::test]
async fn nothing_else_begins_in_a_run_that_is_cancelled_while_its_promotion_waits() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = not_shown(&world, &engine, STUBBORN, TROUBLES[0]).await;
        cancel(&world, &engine, run, "ann").await;
        turn(&engine, run).await;
        tell(&world, &engine, run, &approval(), None).await;
        turn(&engine, run).await;
        assert_eq!(states(&engine, run, "ask").await, [AttemptState::Succeeded], "it is heard");
        assert!(states(&engine, run, "next").await.is_empty(), "of no use any more");
        world.host.reject(false);
        let ended = ended(&world, &engine, run).await;
        assert_eq!(ended.outcome, Some(Outcome::CancelledAfterPromotion), "{ended:?}");
        assert!(states(&engine, run, "next").await.is_empty());
        assert_eq!(shown(&world), serves("2"));
    })
    .await;
}

#[tokio::test]
async fn a_rollback_ends_a_promotion_that_waits_for_its_host_beside_a_body_at_once() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = not_shown(&world, &engine, STUBBORN, TROUBLES[0]).await;
        tell(&world, &engine, run, &begin(), None).await;
        let working = activated(&engine, run);
        exists(&world, "began").await;
        let ann = ReleaseActor::Human { name: "ann".to_owned() };
        let back = engine.roll_back(&model(), &target(), None, ann, "bad times").await;
        assert!(back.is_err(), "the host rejects that, too");
        nudged(&engine, run).await;
        // Told to stop, as the run ends.
        exists(&world, "told").await;
        world.write("go", "");
        working.await.expect("no panic").expect("it went well");
        let ended = run_of(&engine, run).await;
        assert_eq!(ended.outcome, Some(Outcome::RolledBack), "{ended:?}");
        // `ask` hears of it, too.
        assert!(ended.reason.as_deref().is_some_and(|why| why.contains("bad times")), "{ended:?}");
    })
    .await;
}

/// Its process died, and what sleeps beside it wakes with the run.
#[tokio::test]
async fn a_promotion_of_a_cancelled_run_does_not_wait_for_what_wakes_beside_it() {
    let flow = Flow {
        before_promote: "  - id: side
    uses: shadow
    needs: [canary]
    with:
      run: 'touch began; while :; do sleep 0.02; done'
      from: { file: rows.csv }
      until: \"canary.verdict == 'fail'\"
      at_most: 5d",
        promote: "{}, needs: [compare]",
        ..FLOW
    };
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        world.write("rows.csv", "id,at,x,actual\n");
        let run = about_to_promote(&world, flow).await;
        // It dies once the other is asleep again.
        let (dies, outside) = (Arc::new(Notify::new()), engine.clone());
        let point = Write { name: "target.apply".to_owned(), nth: 0 };
        let crash = Crash::meanwhile(point, When::Before, {
            let dies = dies.clone();
            move || {
                let (dies, outside) = (dies.clone(), outside.clone());
                async move {
                    newest(&outside, run, "side", |side| side.state == AttemptState::Sleeping).await;
                    dies.notify_one();
                    std::future::pending().await
                }
            }
        });
        let (dying, stop) = (world.process(&crash).await, CancellationToken::new());
        tokio::select! {
            ended = dying.activate(run, &stop) => panic!("it lives: {ended:?}"),
            () = dies.notified() => {}
        }
        engine.store.retire_worker(dying.worker).await.expect("its leases are free");
        cancel(&world, &engine, run, "ann").await;
        world.pass(TimeDelta::hours(2));
        let at = world.clock.now().format("%FT%TZ");
        world.write("rows.csv", &format!("id,at,x,actual\nr1,{at},1,0\n"));
        let working = activated(&engine, run);
        let ended = tokio::time::timeout(Duration::from_secs(30), working).await;
        ended.expect("in time").expect("no panic").expect("it went well");
        let ended = run_of(&engine, run).await;
        assert_eq!(ended.outcome, Some(Outcome::CancelledAfterPromotion), "{ended:?}");
        assert_eq!(shown(&world), serves("2"));
    })
    .await;
}
