//! Several processes on one database: one that was stopped and wakes up changes
//! nothing, and the work is shared.

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use refit::clock::{Clock, SystemClock};
use refit::domain::id::RunId;
use refit::domain::release::ReleaseActor;
use refit::domain::run::{AttemptState, Outcome, RunStatus};
use refit::engine::deadline::Deadline;
use refit::engine::release::Back;
use refit::engine::worker::Worker;
use refit::engine::{Engine, Settings};

use super::on_both;
use super::rollout::*;
use crate::support::crash::{Crash, When, Write};
use crate::support::world::{World, exists, finish, no_notifiers, successes, turn};

/// All that can be seen of a run and of what is served.
async fn seen(world: &World, engine: &Arc<Engine>, run: RunId) -> String {
    let store = &engine.store;
    let notices = store.outbox_of(run).await.expect("readable");
    format!(
        "{:#?}\n{:#?}\n{:#?}\n{:#?}\n{:#?}\n{:#?}\n{:#?}",
        store.run(run).await.expect("readable"),
        store.attempts(run).await.expect("readable"),
        store.intents(run).await.expect("readable"),
        notices,
        store.canary_of(run).await.expect("readable"),
        store.releases(None).await.expect("readable"),
        world.host.history(),
    )
}

#[tokio::test]
async fn a_process_frozen_in_a_step_wakes_up_and_its_checkpoint_is_refused() {
    let source = "
name: long
model: m
steps:
  - { id: long, run: 'touch began-$REFIT_ATTEMPT; while [ ! -e go-$REFIT_ATTEMPT ]; do sleep 0.02; done; echo $REFIT_ATTEMPT >> done' }
  - { id: after, run: 'echo after >> done' }
";
    let world = World::postgres().await;
    let crash = Crash::never();
    let frozen = world.process(&crash).await;
    let run = world.trigger(&frozen, source).await;
    let working = tokio::spawn({
        let frozen = frozen.clone();
        async move { frozen.activate(run, &tokio_util::sync::CancellationToken::new()).await }
    });
    exists(&world, "began-1").await;
    crash.freeze();
    let next = world.process(&Crash::never()).await;
    assert_eq!(turn(&next, run).await.epoch.0, 1, "its lease holds");
    world.pass(TimeDelta::seconds(11));
    world.write("go-2", "");
    let ended = finish(&world, &next, run).await;
    assert_eq!((ended.outcome, ended.epoch.0), (Some(Outcome::Succeeded), 2));
    let before = seen(&world, &next, run).await;

    world.write("go-1", "");
    exists(&world, "done").await;
    crash.thaw();
    working.await.expect("no panic").expect("it stops without an error");
    assert_eq!(seen(&world, &next, run).await, before, "the late one changes nothing");
    let attempts = next.store.attempts(run).await.expect("readable");
    assert!(successes(&attempts).values().all(|count| *count == 1), "{attempts:#?}");
    let states: Vec<_> = attempts.iter().map(|attempt| (attempt.step.as_str(), attempt.state)).collect();
    assert_eq!(
        states,
        [("long", AttemptState::Lost), ("long", AttemptState::Succeeded), ("after", AttemptState::Succeeded)]
    );
}

#[tokio::test]
async fn what_began_before_its_checkpoint_was_written_is_forgotten_with_it_and_had_no_effect() {
    let source = "
name: short
model: m
steps:
  - { id: first, uses: wait, with: { for: 0s } }
  - { id: second, uses: wait, with: { for: 0s } }
  - { id: work, run: 'echo worked >> worked' }
";
    for (nth, when) in [(0, When::Before), (0, When::After), (1, When::Before)] {
        let world = World::postgres().await;
        let crash = Crash::freeze_at(Write { name: "checkpoint".to_owned(), nth }, when);
        let frozen = world.process(&crash).await;
        let run = world.trigger(&frozen, source).await;
        let working = tokio::spawn({
            let frozen = frozen.clone();
            async move { frozen.activate(run, &tokio_util::sync::CancellationToken::new()).await }
        });
        crash.is_frozen().await;
        world.pass(TimeDelta::seconds(11));
        let next = world.process(&Crash::never()).await;
        let ended = finish(&world, &next, run).await;
        assert_eq!((ended.outcome, ended.epoch.0), (Some(Outcome::Succeeded), 2));
        let before = seen(&world, &next, run).await;
        crash.thaw();
        working.await.expect("no panic").expect("it stops without an error");
        assert_eq!(seen(&world, &next, run).await, before, "what was worked out early is forgotten");
        let worked = std::fs::read_to_string(world.path("worked")).expect("it ran");
        assert_eq!(worked, "worked\n", "only in the process that wrote that it begins");
        let attempts = next.store.attempts(run).await.expect("readable");
        assert!(successes(&attempts).values().all(|count| *count == 1), "{attempts:#?}");
    }
}

#[tokio::test]
async fn a_process_frozen_at_any_write_of_a_promotion_wakes_up_and_changes_nothing() {
    let world = World::postgres().await;
    let next = world.process(&Crash::never()).await;
    serving(&world, &next).await;
    let writes = writes_of_promote(&world).await;
    assert!(writes.contains(&"write_release".to_owned()), "{writes:?}");
    for number in 1..writes.len() {
        for when in [When::Before, When::After] {
            let run = about_to_promote(&world, FLOW).await;
            let new = canary(&next, run).await.version.to_string();
            let crash = Crash::freeze_at(number, when);
            let frozen = world.process(&crash).await;
            let working = tokio::spawn({
                let frozen = frozen.clone();
                async move { turn(&frozen, run).await }
            });
            tokio::select! {
                () = crash.is_frozen() => {}
                () = finished(&next, run) => {}
            }
            let place = format!("{when:?} write {number} of {writes:?}");
            world.pass(TimeDelta::seconds(11));
            let ended = ended(&world, &next, run).await;
            assert_eq!(ended.outcome, Some(Outcome::Promoted), "{place}: {ended:?}");
            assert_eq!(shown(&world), serves(&new), "{place}");
            // A person decides otherwise, before the frozen one wakes up.
            let actor = ReleaseActor::Human { name: "ann".to_owned() };
            let back =
                next.roll_back(&model(), &target(), Some(Back::to(&version("1"))), actor, "a test").await;
            back.expect("rolled back");
            let before = seen(&world, &next, run).await;
            crash.thaw();
            working.await.expect("no panic");
            next.reconcile_releases().await.expect("reconciles");
            let after = seen(&world, &next, run).await;
            assert!(after == before, "{place}: {}", difference(&before, &after));
            assert_eq!(shown(&world), serves("1"), "{place}");
            assert_eq!(succeeded(&next, run, "promote").await, 1, "{place}");
            leave(&frozen).await;
        }
    }
}

/// A process that stands still in the first promotion of `run`, in a task.
async fn frozen_in_promotion(
    world: &World,
    run: RunId,
    (write, when): (&str, When),
) -> (Crash, Arc<Engine>, tokio::task::JoinHandle<refit::domain::run::Run>) {
    let crash = Crash::freeze_at(Write { name: write.to_owned(), nth: 0 }, when);
    let frozen = world.process(&crash).await;
    let working = tokio::spawn({
        let frozen = frozen.clone();
        async move { turn(&frozen, run).await }
    });
    crash.is_frozen().await;
    world.pass(TimeDelta::seconds(11));
    (crash, frozen, working)
}

#[tokio::test]
async fn a_process_frozen_in_a_promotion_wakes_up_in_the_bake_and_changes_nothing() {
    let world = World::postgres().await;
    let next = world.process(&Crash::never()).await;
    serving(&world, &next).await;
    for place in [("release_applied", When::After), ("set_canary_state", When::Before)] {
        let run = about_to_promote(&world, Flow { promote: "{ bake: 1h }", ..FLOW }).await;
        let (crash, frozen, working) = frozen_in_promotion(&world, run, place).await;
        let minute = TimeDelta::minutes(1);
        reach(&world, &next, run, minute, |run| run.outcome == Some(Outcome::Promoted)).await;
        world.pass(TimeDelta::minutes(10));
        next.look_at_canaries().await.expect("looks");
        let before = seen(&world, &next, run).await;
        assert!(before.contains("state: Baking"), "{before}");
        crash.thaw();
        working.await.expect("no panic");
        let after = seen(&world, &next, run).await;
        assert!(after == before, "{place:?}: {}", difference(&before, &after));
        leave(&frozen).await;
        assert_eq!(ended(&world, &next, run).await.outcome, Some(Outcome::Promoted), "{place:?}");
    }
}

#[tokio::test]
async fn a_process_frozen_in_the_first_of_two_promotions_leaves_the_second_canary_alone() {
    let again = r#"
  - id: train2
    run: 'mkdir -p out2 && rm -f out2/* && echo "$REFIT_RUN 2" > out2/model.json && echo "MAE: 9"'
    metrics: { stdout: { mae: { pattern: 'MAE: (\d+)' } } }
    outputs: { from: out2, files: "*.json" }
  - { id: gate2, uses: gate, with: { first_version: accept, rules: [{ metric: mae, max: 600 }] } }
  - { id: publish2, uses: publish, with: { store: models, version: counter } }
  - { id: canary2, uses: canary, with: { target: production, stages: [10%], compare: compare2 } }
  - { id: watch2, uses: wait, with: { for: 24h } }
  - { id: compare2, uses: compare, with: { rules: [{ metric: error_rate }], on_inconclusive: roll_back } }
  - { id: promote2, uses: promote }
"#;
    let world = World::postgres().await;
    let next = world.process(&Crash::never()).await;
    serving(&world, &next).await;
    let before = world.process(&Crash::never()).await;
    let run = world.trigger(&before, &(FLOW.source().trim_end().to_owned() + again)).await;
    reach(&world, &before, run, TimeDelta::minutes(1), |run| run.status == RunStatus::Waiting).await;
    leave(&before).await;
    world.pass(TimeDelta::hours(1));
    let place = ("release_applied", When::After);
    let (crash, frozen, working) = frozen_in_promotion(&world, run, place).await;
    reach(&world, &next, run, TimeDelta::minutes(1), |run| run.status == RunStatus::Waiting).await;
    assert_eq!(shown(&world), (Some("2".to_owned()), Some("3".to_owned())), "the second is out");
    let before = seen(&world, &next, run).await;
    crash.thaw();
    working.await.expect("no panic");
    let after = seen(&world, &next, run).await;
    assert!(after == before, "{}", difference(&before, &after));
    leave(&frozen).await;
    world.pass(TimeDelta::hours(24));
    assert_eq!(ended(&world, &next, run).await.outcome, Some(Outcome::RolledBack), "nothing speaks for it");
    assert_eq!(shown(&world), serves("2"));
}

#[tokio::test]
async fn what_a_process_frozen_in_a_look_has_to_say_is_not_said_late() {
    let world = World::postgres().await;
    let next = world.process(&Crash::never()).await;
    serving(&world, &next).await;
    let run = on_canary(&world, &next, Flow { wait: "{ for: 4d }", ..FLOW }).await;
    // No evidence came for days: the look that finds it so is frozen before it says so.
    world.pass(TimeDelta::days(2));
    let crash = Crash::freeze_at(Write { name: "save_look".to_owned(), nth: 0 }, When::Before);
    let frozen = world.process(&crash).await;
    let looking = tokio::spawn({
        let frozen = frozen.clone();
        async move { frozen.look_at_canaries().await }
    });
    crash.is_frozen().await;
    // Then it comes, and another process looks.
    for _ in 0..5 {
        a_minute(&world, &next, ("2", "1"), (0, 0)).await;
    }
    assert_eq!(next.look_at_canaries().await.expect("looks"), 1);
    let before = seen(&world, &next, run).await;
    assert!(!before.contains("no-evidence"));
    crash.thaw();
    looking.await.expect("no panic").expect("looks");
    let after = seen(&world, &next, run).await;
    assert!(after == before, "{}", difference(&before, &after));
    leave(&frozen).await;
}

#[tokio::test]
async fn what_a_late_process_shows_on_a_host_without_compare_and_set_is_repaired_by_one_look() {
    let world = World::postgres().await;
    world.host.forget_generations();
    let next = world.process(&Crash::never()).await;
    serving(&world, &next).await;
    let writes = writes_of_promote(&world).await;
    let apply = writes.iter().position(|write| write == "target.apply").expect("it is shown");
    let run = about_to_promote(&world, FLOW).await;
    let crash = Crash::freeze_at(apply, When::Before);
    let frozen = world.process(&crash).await;
    let working = tokio::spawn({
        let frozen = frozen.clone();
        async move { turn(&frozen, run).await }
    });
    crash.is_frozen().await;
    world.pass(TimeDelta::seconds(11));
    assert_eq!(ended(&world, &next, run).await.outcome, Some(Outcome::Promoted));
    let actor = ReleaseActor::Human { name: "ann".to_owned() };
    next.roll_back(&model(), &target(), None, actor, "bad").await.expect("rolled back");
    assert_eq!(shown(&world), serves("2"));
    let before = release(&next).await;
    crash.thaw();
    working.await.expect("no panic");
    assert_eq!(shown(&world), serves("3"), "the late one was heard");
    assert_eq!(release(&next).await, before, "and wrote nothing");
    next.reconcile_releases().await.expect("reconciles");
    assert_eq!(shown(&world), serves("2"));
}

#[tokio::test]
async fn on_sqlite_the_run_of_a_process_that_lives_is_never_taken_however_long_it_stands_still() {
    let source = "
name: long
model: m
steps:
  - { id: long, run: 'touch began; while [ ! -e go ]; do sleep 0.02; done' }
";
    let world = World::sqlite();
    let crash = Crash::never();
    let frozen = world.process(&crash).await;
    let run = world.trigger(&frozen, source).await;
    let working = tokio::spawn({
        let frozen = frozen.clone();
        async move { frozen.activate(run, &tokio_util::sync::CancellationToken::new()).await }
    });
    exists(&world, "began").await;
    crash.freeze();
    world.pass(TimeDelta::days(1));
    let next = world.process(&Crash::never()).await;
    assert_eq!(turn(&next, run).await.epoch.0, 1);
    crash.thaw();
    world.write("go", "");
    working.await.expect("no panic").expect("it ends");
    let ended = next.store.run(run).await.expect("readable").expect("a run");
    assert_eq!((ended.outcome, ended.epoch.0), (Some(Outcome::Succeeded), 1));
}

#[tokio::test]
async fn two_processes_share_twenty_runs_and_no_step_is_done_twice() {
    let world = World::postgres().await;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let settings = Settings { concurrency: 3, grace: Duration::from_secs(5), ..Settings::default() };
    let seeder = world.process_with(&Crash::never(), clock.clone()).await;
    let mut runs = vec![];
    for number in 0..20 {
        let source = format!(
            "
name: r{number}
model: m{number}
steps:
  - {{ id: one, run: 'echo {number}-one >> all' }}
  - {{ id: two, run: 'sleep 0.2; echo {number}-two >> all' }}
  - {{ id: three, run: 'echo {number}-three >> all' }}
"
        );
        runs.push(world.trigger(&seeder, &source).await);
    }
    let (mut crashes, mut workers) = (vec![], vec![]);
    for _ in 0..2 {
        let crash = Crash::never();
        let engine = world.unregistered(&crash, clock.clone(), settings.clone()).await;
        workers.push(Worker::start(engine, Arc::new(no_notifiers())).await.expect("starts"));
        crashes.push(crash);
    }
    for run in &runs {
        tokio::time::timeout(Duration::from_secs(60), finished(&seeder, *run)).await.expect("in time");
    }
    for worker in workers {
        worker.shut_down(Deadline::within(Duration::from_secs(20))).await.expect("in good order");
    }
    let done = std::fs::read_to_string(world.path("all")).expect("written");
    let mut lines: Vec<&str> = done.lines().collect();
    lines.sort_unstable();
    lines.dedup();
    assert_eq!((lines.len(), done.lines().count()), (60, 60), "each step once");
    for run in runs {
        let attempts = seeder.store.attempts(run).await.expect("readable");
        assert!(attempts.iter().all(|attempt| attempt.state == AttemptState::Succeeded), "{attempts:#?}");
        assert_eq!(attempts.len(), 3);
    }
    let checkpoints: Vec<usize> = crashes
        .iter()
        .map(|crash| crash.names().iter().filter(|write| *write == "checkpoint").count())
        .collect();
    assert!(checkpoints.iter().all(|count| *count > 0), "both did some: {checkpoints:?}");
    assert_eq!(checkpoints.iter().sum::<usize>(), 60);
}

#[tokio::test]
async fn a_run_whose_process_dies_each_time_ends_as_failed() {
    let source = "
name: deadly
model: m
steps:
  - { id: one, run: 'touch one' }
on_failure:
  - { id: sorry, run: 'touch sorry' }
";
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        let run = world.trigger(&engine, source).await;
        for life in 0..10 {
            let crash = Crash::at(1, When::After);
            let dying = world.process(&crash).await;
            let stop = tokio_util::sync::CancellationToken::new();
            tokio::select! {
                ended = dying.activate(run, &stop) => panic!("it lives: {ended:?}, life {life}"),
                () = crash.died() => {}
            }
            // What the death of a process frees.
            engine.store.retire_worker(dying.worker).await.expect("its leases are free");
            drop(dying);
        }
        assert!(!world.path("one").exists());
        let ended = finish(&world, &engine, run).await;
        assert_eq!(ended.outcome, Some(Outcome::Failed));
        assert_eq!(
            ended.reason.as_deref(),
            Some("refit stopped 10 times in a row while working on this run")
        );
        assert!(!world.path("one").exists() && world.path("sorry").exists());
    })
    .await;
}

/// The first lines in which two texts differ.
fn difference(before: &str, after: &str) -> String {
    let differing = before.lines().zip(after.lines()).filter(|(a, b)| a != b);
    differing.take(20).map(|(a, b)| format!("-{a}\n+{b}\n")).collect()
}

async fn finished(engine: &Arc<Engine>, run: RunId) {
    loop {
        let seen = engine.store.run(run).await.expect("readable").expect("a run");
        if seen.status == RunStatus::Finished {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
