//! Order, retries, cancel, approval, on_failure, shutdown.

use chrono::TimeDelta;
use refit::clock::Clock;
use refit::domain::run::{AttemptState, CancelRequest, Outcome, RunStatus, SignalKind};

use super::on_both;
use crate::support::crash::Crash;
use crate::support::world::{finish, successes, turn, until};

const HELLO: &str = "
name: hello
model: m
steps:
  - { id: one, run: 'echo one >> order' }
  - { id: left, run: 'echo left >> order', needs: [one] }
  - { id: right, run: 'echo right >> order', needs: [one] }
  - { id: join, run: 'echo join >> order', needs: [left, right] }
";

#[tokio::test]
async fn steps_run_in_order_and_each_once() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        let run = world.trigger(&engine, HELLO).await;
        let ended = finish(&world, &engine, run).await;
        assert_eq!(ended.outcome, Some(Outcome::Succeeded), "{ended:#?}");
        let order = std::fs::read_to_string(world.path("order")).expect("written");
        let order: Vec<&str> = order.lines().collect();
        assert_eq!((order[0], order[3], order.len()), ("one", "join", 4));
        let attempts = engine.store.attempts(run).await.expect("readable");
        assert!(successes(&attempts).values().all(|count| *count == 1));
    })
    .await;
}

#[tokio::test]
async fn a_step_that_on_failure_repeats_by_an_alias_is_done_once() {
    let source = |first: &str, second: &str| {
        format!("name: tells\nmodel: m\nsteps:\n  - {first}\n  - {second}\non_failure: [*tell]\n")
    };
    let tell = "&tell { id: tell, run: 'echo told >> told' }";
    let bad = "{ id: bad, run: 'exit 3', retry: { attempts: 1 } }";
    for source in [source(tell, bad), source(bad, tell)] {
        on_both(async |world| {
            let engine = world.process(&Crash::never()).await;
            let run = world.trigger(&engine, &source).await;
            let ended = finish(&world, &engine, run).await;
            assert_eq!(ended.outcome, Some(Outcome::Failed), "{ended:#?}");
            let told = std::fs::read_to_string(world.path("told")).unwrap_or_default();
            assert_eq!(told.lines().count(), 1, "{source}");
        })
        .await;
    }
}

#[tokio::test]
async fn a_failing_step_is_tried_again_then_fails_the_run_and_on_failure_runs() {
    let source = "
name: fails
model: m
defaults: { retry: { attempts: 3, backoff: 10s } }
steps:
  - { id: bad, run: 'echo try >> tries; exit 3' }
  - { id: never, run: 'touch never' }
on_failure:
  - { id: sorry, run: 'echo sorry >> sorry' }
";
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        let run = world.trigger(&engine, source).await;
        let ended = finish(&world, &engine, run).await;
        assert_eq!(ended.outcome, Some(Outcome::Failed));
        assert!(ended.reason.as_deref().is_some_and(|why| why.contains("step `bad`")), "{:?}", ended.reason);
        let lines =
            |name: &str| std::fs::read_to_string(world.path(name)).unwrap_or_default().lines().count();
        assert_eq!((lines("tries"), lines("sorry"), world.path("never").exists()), (3, 1, false));
    })
    .await;
}

#[tokio::test]
async fn approval_holds_nothing_and_a_human_decides() {
    let source = "
name: asks
model: m
steps:
  - { id: ask, uses: approve, with: { message: 'Ship it?' } }
  - { id: done, run: 'touch done' }
";
    on_both(async |world| {
        for (approve, outcome) in [(true, Outcome::Succeeded), (false, Outcome::Rejected)] {
            let engine = world.process(&Crash::never()).await;
            let run = world.trigger(&engine, source).await;
            let waiting = turn(&engine, run).await;
            assert_eq!(waiting.status, RunStatus::Waiting);
            world.pass(TimeDelta::days(30));
            assert_eq!(turn(&engine, run).await.status, RunStatus::Waiting, "it waits as long as it takes");
            let step = "ask".parse().expect("a step id");
            let kind = if approve { SignalKind::Approve { step } } else { SignalKind::Reject { step } };
            engine.store.signal(run, &kind, "ann", None, world.clock.now()).await.expect("sent");
            let ended = finish(&world, &engine, run).await;
            assert_eq!(ended.outcome, Some(outcome), "{ended:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_cancelled_run_stops_its_process_and_ends_as_cancelled() {
    let source = "
name: long
model: m
steps:
  - { id: long, run: 'touch began; sleep 600', grace: 1s }
  - { id: never, run: 'touch never' }
";
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        let run = world.trigger(&engine, source).await;
        let working = tokio::spawn({
            let engine = engine.clone();
            async move { turn(&engine, run).await }
        });
        wait_for(|| world.path("began").exists()).await;
        let request = CancelRequest {
            actor: "ann".to_owned(),
            reason: Some("wrong data".to_owned()),
            at: world.clock.now(),
        };
        assert!(engine.store.request_cancel(run, &request).await.expect("asked"));
        // The wake-up that comes with the request nudges the process that has the run.
        engine.activate(run, &tokio_util::sync::CancellationToken::new()).await.expect("nudges");
        let ended = working.await.expect("no panic");
        assert_eq!(ended.outcome, Some(Outcome::Cancelled));
        assert_eq!(ended.reason.as_deref(), Some("cancelled by ann: wrong data"));
        assert!(!world.path("never").exists());
    })
    .await;
}

#[tokio::test]
async fn a_shutdown_hands_the_run_over_and_is_no_failed_attempt() {
    let source = "
name: long
model: m
defaults: { retry: { attempts: 1 } }
steps:
  - { id: before, run: 'echo before >> order' }
  - { id: long, run: 'echo long >> order; if [ ! -e second ]; then touch second; sleep 600; fi', grace: 1s }
";
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        let run = world.trigger(&engine, source).await;
        let stop = tokio_util::sync::CancellationToken::new();
        let working = tokio::spawn({
            let (engine, stop) = (engine.clone(), stop.clone());
            async move { engine.activate(run, &stop).await }
        });
        wait_for(|| world.path("second").exists()).await;
        stop.cancel();
        working.await.expect("no panic").expect("given back");
        engine.store.retire_worker(engine.worker).await.expect("retired");

        let next = world.process(&Crash::never()).await;
        let ended = finish(&world, &next, run).await;
        assert_eq!(ended.outcome, Some(Outcome::Succeeded), "{:?}", ended.reason);
        let attempts = next.store.attempts(run).await.expect("readable");
        let states: Vec<_> = attempts.iter().map(|attempt| (attempt.step.as_str(), attempt.state)).collect();
        assert_eq!(
            states,
            [
                ("before", AttemptState::Succeeded),
                ("long", AttemptState::Lost),
                ("long", AttemptState::Succeeded)
            ]
        );
    })
    .await;
}

#[tokio::test]
async fn a_wait_lasts_its_time_and_costs_nothing_meanwhile() {
    let source = "
name: waits
model: m
steps:
  - { id: wait, uses: wait, with: { for: 24h } }
";
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        let run = world.trigger(&engine, source).await;
        let waiting = turn(&engine, run).await;
        assert_eq!((waiting.status, waiting.epoch.0), (RunStatus::Waiting, 1));
        world.pass(TimeDelta::hours(23));
        assert_eq!(turn(&engine, run).await.epoch.0, 1, "not even claimed");
        world.pass(TimeDelta::hours(1));
        let ended = until(&world, &engine, run, |run| run.status == RunStatus::Finished).await;
        assert_eq!(ended.outcome, Some(Outcome::Succeeded));
    })
    .await;
}

async fn wait_for(done: impl Fn() -> bool) {
    let began = std::time::Instant::now();
    while !done() {
        assert!(began.elapsed() < std::time::Duration::from_secs(30), "it never came");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}
