//! Cancel at every point of promote, and undos that fail or come too late.

use std::sync::{Arc, Mutex};

use chrono::TimeDelta;
use refit::clock::Clock;
use refit::domain::canary::CanaryState;
use refit::domain::id::RunId;
use refit::domain::run::{CancelRequest, IntentState, Outcome, RunStatus, SignalKind};
use refit::domain::workflow::Moment;
use refit::engine::Engine;

use super::on_both;
use super::rollout::*;
use crate::support::crash::{Crash, When};
use crate::support::world::{World, turn};

const BAKES: Flow = Flow { promote: "{ bake: 1h }", ..FLOW };

fn request(world: &World) -> CancelRequest {
    CancelRequest { actor: "ann".to_owned(), reason: None, at: world.clock.now() }
}

/// What a cancel at one write came to, as the database had it at that moment.
type Moments = Arc<Mutex<Vec<Option<bool>>>>;

/// A process in which somebody cancels `run` around its write `number`. `nudged`: it hears of it at once.
async fn cancelled_at(
    world: &World,
    run: RunId,
    (number, when, nudged): (usize, When, bool),
    outside: &Arc<Engine>,
) -> (Arc<Engine>, Moments) {
    let outside = outside.clone();
    let itself: Arc<Mutex<Option<Arc<Engine>>>> = Arc::default();
    let moments = Moments::default();
    let wish = request(world);
    let crash = Crash::meanwhile(number, when, {
        let (itself, moments) = (itself.clone(), moments.clone());
        move || {
            let (outside, itself, moments, wish) =
                (outside.clone(), itself.clone(), moments.clone(), wish.clone());
            async move {
                let asked = outside.store.request_cancel(run, &wish).await.expect("asked");
                let row = outside.store.run(run).await.expect("readable").expect("a run");
                moments.lock().unwrap().push(asked.then_some(row.committed));
                let itself = itself.lock().unwrap().clone();
                if let Some(itself) = itself.filter(|_| nudged) {
                    let stop = tokio_util::sync::CancellationToken::new();
                    itself.activate(run, &stop).await.expect("nudged");
                }
            }
        }
    });
    let engine = world.process(&crash).await;
    itself.lock().unwrap().replace(engine.clone());
    (engine, moments)
}

#[tokio::test]
async fn a_cancel_at_any_write_of_promote_undoes_before_the_first_and_completes_after() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let writes = writes_of_promote(&world).await;
        assert!(writes.contains(&"write_release".to_owned()), "{writes:?}");
        let (mut undone, mut completed) = (0, 0);
        for nudged in [true, false] {
            // From the claim on: what a process writes before is not about the run.
            let claim = writes.iter().position(|write| write == "claim").expect("it is claimed");
            for number in claim..writes.len() {
                for when in [When::Before, When::After] {
                    let place = format!("{when:?} write {number} of {writes:?}, nudged: {nudged}");
                    let (old, _) = shown(&world);
                    let run = about_to_promote(&world, FLOW).await;
                    let new = canary(&engine, run).await.version.to_string();
                    let (working, moments) = cancelled_at(&world, run, (number, when, nudged), &engine).await;
                    let ended = ended(&world, &working, run).await;
                    leave(&working).await;
                    let committed = moments.lock().unwrap().clone();
                    let (outcome, champion, state) = match committed[..] {
                        [Some(false)] => {
                            undone += 1;
                            (Outcome::Cancelled, old.clone(), CanaryState::RolledBack)
                        }
                        [Some(true)] => {
                            completed += 1;
                            (Outcome::CancelledAfterPromotion, Some(new), CanaryState::Promoted)
                        }
                        // It had ended, or never made that many writes.
                        [None] | [] => (Outcome::Promoted, Some(new), CanaryState::Promoted),
                        _ => panic!("asked twice {place}"),
                    };
                    assert_eq!(ended.outcome, Some(outcome), "{place}: {ended:?}");
                    assert_eq!(shown(&world), (champion, None), "{place}");
                    assert_eq!(canary(&engine, run).await.state, state, "{place}");
                    let release = release(&engine).await;
                    assert_eq!((release.owner, release.is_applied()), (None, true), "{place}");
                    let intents = engine.store.intents(run).await.expect("readable");
                    assert!(
                        intents
                            .iter()
                            .all(|intent| intent.undo.is_none() || intent.state != IntentState::Armed),
                        "{place}: {intents:#?}"
                    );
                }
            }
        }
        assert!(undone > 4 && completed > 4, "{undone} undone, {completed} completed");
    })
    .await;
}

#[tokio::test]
async fn a_cancel_at_any_write_of_the_canary_step_leaves_no_canary() {
    let flow =
        Flow { before_canary: "  - { id: pause, uses: approve, with: { message: 'Go on?' } }", ..FLOW };
    let approved = async |world: &World, engine: &Arc<Engine>| {
        let run = world.trigger(engine, &flow.source()).await;
        let before = world.process(&Crash::never()).await;
        let minute = TimeDelta::minutes(1);
        reach(world, &before, run, minute, |run| run.status == RunStatus::Waiting).await;
        let kind = SignalKind::Approve { step: "pause".parse().expect("a step") };
        before.store.signal(run, &kind, "ann", None, world.clock.now()).await.expect("sent");
        leave(&before).await;
        run
    };
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let calm = Crash::never();
        let run = approved(&world, &engine).await;
        let working = world.process(&calm).await;
        turn(&working, run).await;
        let writes = calm.names();
        assert!(writes.contains(&"open_canary".to_owned()), "{writes:?}");
        assert_eq!(shown(&world), (Some("1".to_owned()), Some("2".to_owned())));
        assert!(engine.store.request_cancel(run, &request(&world)).await.expect("asked"));
        assert_eq!(turn(&working, run).await.outcome, Some(Outcome::Cancelled));
        leave(&working).await;
        for number in 1..writes.len() {
            for when in [When::Before, When::After] {
                let place = format!("{when:?} write {number} of {writes:?}");
                let run = approved(&world, &engine).await;
                let (working, moments) = cancelled_at(&world, run, (number, when, true), &engine).await;
                let ended = ended(&world, &working, run).await;
                leave(&working).await;
                assert_eq!(moments.lock().unwrap().clone(), [Some(false)], "{place}");
                assert_eq!(ended.outcome, Some(Outcome::Cancelled), "{place}: {ended:?}");
                assert_eq!(shown(&world), serves("1"), "{place}");
                let release = release(&engine).await;
                assert_eq!((release.owner, release.is_applied()), (None, true), "{place}");
                assert_eq!(engine.store.live_canaries(None).await.expect("readable"), [], "{place}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_run_cancelled_during_its_bake_ends_and_is_still_watched_to_the_end_of_the_bake() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = on_canary(&world, &engine, BAKES).await;
        world.pass(TimeDelta::hours(1));
        turn(&engine, run).await;
        assert_eq!(canary(&engine, run).await.state, CanaryState::Baking);
        assert!(engine.store.request_cancel(run, &request(&world)).await.expect("asked"));
        let ended = turn(&engine, run).await;
        assert_eq!(ended.outcome, Some(Outcome::CancelledAfterPromotion), "{ended:?}");
        assert_eq!(shown(&world), serves("2"));
        assert_eq!(canary(&engine, run).await.state, CanaryState::Baking);
        world.pass(TimeDelta::hours(1));
        engine.look_at_canaries().await.expect("looks");
        assert_eq!(canary(&engine, run).await.state, CanaryState::Promoted);
        assert_eq!(engine.store.live_canaries(None).await.expect("readable"), []);
    })
    .await;
}

#[tokio::test]
async fn a_failing_undo_keeps_the_run_undoing_alerts_once_and_ends_when_the_host_is_back() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = on_canary(&world, &engine, FLOW).await;
        world.host.break_down(true);
        engine.store.request_cancel(run, &request(&world)).await.expect("asked");
        for _ in 0..5 {
            let undoing = turn(&engine, run).await;
            assert_eq!(undoing.status, RunStatus::Undoing, "{undoing:?}");
            assert_eq!(undoing.outcome, Some(Outcome::Cancelled), "never failed");
            world.pass(TimeDelta::minutes(1));
        }
        assert_eq!(shown(&world), (Some("1".to_owned()), Some("2".to_owned())), "nothing can be done yet");
        let queued = engine.store.outbox_of(run).await.expect("readable");
        let alerts = queued.iter().filter(|entry| entry.notice.moment == Moment::Alert).count();
        assert_eq!(alerts, 1, "{queued:#?}");
        world.host.break_down(false);
        let ended = turn(&engine, run).await;
        assert_eq!((ended.status, ended.outcome), (RunStatus::Finished, Some(Outcome::Cancelled)));
        assert_eq!(shown(&world), serves("1"));
        assert!(release(&engine).await.is_applied());
    })
    .await;
}

#[tokio::test]
async fn an_undo_never_removes_the_canary_of_another_run() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let first = on_canary(&world, &engine, Flow { wait: "{ for: 24h }", ..FLOW }).await;
        // Dropped by a person, and another run's canary goes out before the first run looks.
        let actor = refit::domain::release::ReleaseActor::Human { name: "ann".to_owned() };
        engine.roll_back(&model(), &target(), None, actor, "not now").await.expect("dropped");
        let second = on_canary(&world, &engine, Flow { name: "other", ..FLOW }).await;
        engine.store.request_cancel(first, &request(&world)).await.expect("asked");
        let ended = turn(&engine, first).await;
        assert_eq!(ended.outcome, Some(Outcome::Cancelled), "{ended:?}");
        assert_eq!(shown(&world), (Some("1".to_owned()), Some("3".to_owned())));
        assert_eq!(release(&engine).await.owner, Some(second));
        assert_eq!(canary(&engine, second).await.state, CanaryState::Watching);
    })
    .await;
}

/// Whoever takes a run out of the queue, people hear of it, and not that it began.
#[tokio::test]
async fn a_run_that_is_cancelled_in_the_queue_tells_people_whoever_cancels_it() {
    const SOURCE: &str = "
name: queues
model: m
concurrency: { key: one, policy: queue-latest }
steps: [{ id: ask, uses: approve, with: { message: 'Go on?' } }]
notify: [{ on: [started, cancelled], console: true }]
";
    let told = async |engine: &Arc<Engine>, run: RunId| {
        let queued = engine.store.outbox_of(run).await.expect("readable");
        queued.into_iter().map(|entry| entry.notice.moment).collect::<Vec<_>>()
    };
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        let first = world.trigger(&engine, SOURCE).await;
        assert_eq!(turn(&engine, first).await.status, RunStatus::Waiting);
        let second = world.trigger(&engine, SOURCE).await;
        assert_eq!(turn(&engine, second).await.status, RunStatus::Queued);
        let third = world.trigger(&engine, SOURCE).await;
        let superseded = turn(&engine, second).await;
        assert_eq!(
            (superseded.outcome, superseded.reason),
            (Some(Outcome::Cancelled), Some(format!("cancelled by tester: run {third} takes its place")))
        );
        assert!(engine.store.request_cancel(third, &request(&world)).await.expect("asked"));
        let cancelled = turn(&engine, third).await;
        assert_eq!(cancelled.reason.as_deref(), Some("cancelled by ann"));
        for run in [second, third] {
            assert_eq!(told(&engine, run).await, [Moment::Cancelled]);
        }
        assert_eq!(told(&engine, first).await, [Moment::Started]);
        assert_eq!(turn(&engine, first).await.status, RunStatus::Waiting, "it runs on");
    })
    .await;
}
