//! A shutdown gives runs back, and nothing of them is left running then.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use refit::clock::SystemClock;
use refit::domain::run::AttemptState;
use refit::engine::Settings;
use refit::engine::deadline::Deadline;
use refit::engine::worker::Worker;

use super::on_both;
use crate::support::crash::Crash;
use crate::support::steps::is_running;
use crate::support::world::{World, exists, finish, no_notifiers};
use refit::store::Stay;

/// Deaf to SIGTERM, and so is what it starts in a session of its own; refit would wait for it for an hour.
fn stubborn(mark: &str) -> String {
    format!(
        r#"
name: long
model: m
steps:
  - id: train
    run: |
      [ -e go ] && exit 0
      trap "" TERM
      setsid sh -c 'trap "" TERM; exec sleep 1000.{mark}' &
      touch began; while :; do sleep 0.02; done
    grace: 1h
"#
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trainer_deaf_to_sigterm_is_dead_before_its_run_is_given_back() {
    on_both(async |world: World| {
        let mark = format!("{:09}", uuid::Uuid::new_v4().as_u128() % 1_000_000_000);
        let settings = Settings { grace: Duration::from_secs(2), ..Settings::default() };
        let engine = world.unregistered(&Crash::never(), Arc::new(SystemClock), settings).await;
        let worker = Worker::start(engine.clone(), Arc::new(no_notifiers())).await.expect("starts");
        let run = world.trigger(&engine, &stubborn(&mark)).await;
        exists(&world, "began").await;
        worker.shut_down(Deadline::within(engine.settings.grace)).await.expect("in good order");
        let running = is_running(&mark);
        assert!(!running, "the run is anybody's, and its trainer runs");

        world.write("go", "");
        // It was given back: nobody died while working on it.
        let settings = Settings { crash_limit: 1, ..Settings::default() };
        let next = world.unregistered(&Crash::never(), Arc::new(SystemClock), settings).await;
        next.store.register_worker(next.worker, &[], Stay::Open, next.clock.now()).await.expect("registers");
        let attempts = {
            finish(&world, &next, run).await;
            next.store.attempts(run).await.expect("readable")
        };
        let states: Vec<_> = attempts.iter().map(|attempt| attempt.state).collect();
        assert_eq!(states, [AttemptState::Lost, AttemptState::Succeeded], "{attempts:#?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loop_that_panics_goes_on() {
    let world = World::sqlite();
    let engine = world.unregistered(&Crash::never(), Arc::new(SystemClock), Settings::default()).await;
    let mut worker = Worker::start(engine, Arc::new(no_notifiers())).await.expect("starts");
    let (again, mut came) = tokio::sync::mpsc::unbounded_channel();
    let calls = AtomicUsize::new(0);
    worker.also(Duration::from_millis(1), "shaky", move |_| {
        let (call, again) = (calls.fetch_add(1, Ordering::SeqCst), again.clone());
        async move {
            assert_ne!(call, 0, "the first time it fails");
            again.send(call).ok();
            Ok(None)
        }
    });
    let call = tokio::time::timeout(Duration::from_secs(60), came.recv()).await;
    assert_eq!(call, Ok(Some(1)));
    worker.shut_down(Deadline::within(Duration::from_secs(20))).await.expect("in good order");
}
