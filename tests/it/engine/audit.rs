//! What is kept with every change of a release: a sentence, what was known of the canary at that moment, and the
//! configuration it is judged under.

use std::sync::Arc;

use chrono::TimeDelta;
use refit::adapter::Target;
use refit::domain::because::Evidence;
use refit::domain::canary::{CanaryState, CanaryView};
use refit::domain::history::Change;
use refit::domain::id::{InstanceId, RunId};
use refit::domain::release::{Assignment, ReleaseActor};
use refit::domain::run::{CancelRequest, Outcome, RunStatus};
use refit::domain::verdict::Verdict;
use refit::engine::Engine;
use refit::engine::because::configuration;
use refit::steps::compare::{CompareOutput, Decision};

use super::on_both;
use super::rollout::*;
use crate::support::crash::Crash;
use crate::support::world::{World, turn};

/// One change of the release, as the history has it.
struct Kept {
    by: ReleaseActor,
    reason: String,
    assignment: Assignment,
    then: Option<CanaryView>,
    configuration: Option<String>,
}

/// The newest change of the release.
async fn newest(engine: &Arc<Engine>) -> Kept {
    kept(engine).await.remove(0)
}

/// All changes, newest first.
async fn kept(engine: &Arc<Engine>) -> Vec<Kept> {
    let history = engine.store.history(Some(&model()), 1000).await.expect("readable").into_iter();
    let changes = history.filter_map(|entry| match entry.change {
        Change::Release { assignment, evidence, configuration, .. } => Some(Kept {
            by: entry.by.actor,
            reason: entry.by.reason,
            assignment: *assignment,
            then: evidence.map(|evidence| evidence.view().expect("in today's form")),
            configuration,
        }),
        Change::Version { .. } => None,
    });
    changes.collect()
}

async fn configuration_of(engine: &Arc<Engine>, run: RunId) -> Option<String> {
    let run = engine.store.run(run).await.expect("readable").expect("a run");
    Some(configuration(&run.definition))
}

/// A change about the canary of `run` as it was: the evidence is that of the change, under the run's configuration.
async fn is_about(engine: &Arc<Engine>, change: &Kept, run: RunId) {
    let then = change.then.as_ref().unwrap_or_else(|| panic!("evidence of: {}", change.reason));
    assert_eq!(then.run, run, "{}", change.reason);
    assert_eq!(change.configuration, configuration_of(engine, run).await, "{}", change.reason);
}

/// Requests of the version on canary that the evidence counts.
fn heard(change: &Kept) -> u64 {
    change.then.as_ref().expect("evidence").rules[0].canary.n
}

const HELD: Flow = Flow {
    compare: "rules: [{ metric: error_rate }], on_inconclusive: hold, hold_traffic: zero, hold_for: 1d",
    ..FLOW
};
const BAKES: Flow = Flow { promote: "{ bake: 6h }", ..FLOW };

#[tokio::test]
async fn every_change_of_a_canary_keeps_what_was_known_when_it_was_made() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let by_hand = newest(&engine).await;
        assert_eq!(by_hand.reason, "promoted by ann");
        assert_eq!((by_hand.then, by_hand.configuration), (None, None), "no canary, no run");

        // A run lets it out, the controller gives it more, the run promotes it.
        let stages = "[{ share: 10%, min_time: 5m }, { share: 12%, min_time: 5m }]";
        let source = BAKES.source().replace("[10%]", stages);
        let run = world.trigger(&engine, &source).await;
        reach(&world, &engine, run, TimeDelta::minutes(1), |run| run.status == RunStatus::Waiting).await;
        let out = newest(&engine).await;
        assert_eq!(out.reason, "the canary begins: 2 gets 10 % of the traffic beside 1");
        assert_eq!((&out.then, &out.configuration), (&None, &configuration_of(&engine, run).await));

        traffic(&world, &engine, ("2", "1"), (0, 0)).await;
        let shifted = newest(&engine).await;
        is_about(&engine, &shifted, run).await;
        assert_eq!(shifted.by, ReleaseActor::Controller { run });
        assert!(shifted.reason.starts_with("12 % of the traffic: 5m at 10 % are over; canary errors 0 of"));
        let at_the_shift = heard(&shifted);
        assert!((1..100).contains(&at_the_shift), "{at_the_shift}");
        assert!(
            shifted.reason.contains(&format!("canary errors 0 of {at_the_shift} ")),
            "{}",
            shifted.reason
        );
        traffic(&world, &engine, ("2", "1"), (0, 0)).await;
        let known = canary(&engine, run).await.view().rules[0].canary.n;
        assert!(known > at_the_shift, "the looks went on: {known}");
        assert_eq!(heard(&newest(&engine).await), at_the_shift, "what was kept is of the moment");

        reach(&world, &engine, run, TimeDelta::minutes(10), |run| run.outcome.is_some()).await;
        let promoted = newest(&engine).await;
        is_about(&engine, &promoted, run).await;
        assert_eq!(promoted.by, ReleaseActor::Run { run });
        assert!(promoted.reason.ends_with("; `on_inconclusive: promote` decides"), "{}", promoted.reason);
        assert!(heard(&promoted) > at_the_shift);
        let decided = compared(&engine, run).await;
        assert_eq!((decided.decision, &decided.reason), (Decision::Promote, &promoted.reason));
        let on = decided.evidence.as_ref().and_then(Evidence::view).expect("what it was decided on");
        assert_eq!((on.verdict, &on.rules), (Verdict::Inconclusive, &promoted.then.as_ref().unwrap().rules));

        // While it bakes, somebody goes back; the evidence is that of the bake.
        let ann = ReleaseActor::Human { name: "ann".to_owned() };
        engine.roll_back(&model(), &target(), None, ann, "customers call").await.expect("rolled back");
        let back = newest(&engine).await;
        is_about(&engine, &back, run).await;
        assert_eq!(back.reason, "customers call");
        assert_eq!(back.then.expect("evidence").state, CanaryState::Baking);
    })
    .await;
}

#[tokio::test]
async fn the_message_that_follows_a_run_says_what_its_canary_can_show_once_that_is_known() {
    let world = World::sqlite();
    let engine = world.process(&Crash::never()).await;
    serving(&world, &engine).await;
    for _ in 0..70 {
        a_minute(&world, &engine, ("none", "1"), (0, 1)).await;
    }
    let run = on_canary(&world, &engine, FLOW).await;
    let next = async || {
        let run = engine.store.run(run).await.expect("readable").expect("a run");
        let workflow = engine.workflow(&run.definition).expect("readable");
        engine.standing(&run, &workflow).await.expect("readable").next.expect("said")
    };
    let watched = "it is watched for at least 1 hour; should it harm, it is taken back at once";
    assert_eq!(next().await, watched);
    traffic(&world, &engine, ("2", "1"), (0, 1)).await;
    let said = next().await;
    assert!(said.starts_with(&format!("{watched}; by the traffic before it, at ")), "{said}");
    assert!(said.contains(" a canary that is no worse passes within "), "{said}");
}

async fn compared(engine: &Arc<Engine>, run: RunId) -> CompareOutput {
    let attempts = engine.store.attempts(run).await.expect("readable");
    let compared = attempts.iter().rfind(|attempt| attempt.step.as_str() == "compare").expect("it ran");
    serde_json::from_value(compared.output.clone().expect("an output")).expect("its form")
}

#[tokio::test]
async fn taking_a_canary_back_keeps_the_evidence_whoever_does_it() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;

        // The controller.
        let run = on_canary(&world, &engine, FLOW).await;
        traffic(&world, &engine, ("2", "1"), (9, 0)).await;
        let rolled_back = newest(&engine).await;
        is_about(&engine, &rolled_back, run).await;
        assert_eq!(rolled_back.by, ReleaseActor::Controller { run });
        assert!(rolled_back.reason.starts_with("canary errors "), "{}", rolled_back.reason);
        let then = rolled_back.then.expect("evidence");
        assert_eq!(then.verdict, Verdict::Fail);
        assert!(then.evidence_against.is_some_and(|log_e| log_e >= then.limit_against), "{then:#?}");
        assert_eq!(ended(&world, &engine, run).await.outcome, Some(Outcome::RolledBack));

        // A person who cancels its run.
        let run = on_canary(&world, &engine, FLOW).await;
        traffic(&world, &engine, ("3", "1"), (0, 0)).await;
        let wish = CancelRequest {
            actor: "ann".to_owned(),
            reason: Some("wrong data".to_owned()),
            at: engine.clock.now(),
        };
        assert!(engine.store.request_cancel(run, &wish).await.expect("asked"));
        assert_eq!(ended(&world, &engine, run).await.outcome, Some(Outcome::Cancelled));
        let undone = newest(&engine).await;
        is_about(&engine, &undone, run).await;
        assert_eq!((undone.by, undone.reason.as_str()), (ReleaseActor::Undo { run }, "ann cancelled its run: wrong data"));

        // A newer version, of one that is held without traffic.
        let run = on_canary(&world, &engine, HELD).await;
        world.pass(TimeDelta::hours(1));
        assert_eq!(turn(&engine, run).await.status, RunStatus::Held);
        let held = newest(&engine).await;
        is_about(&engine, &held, run).await;
        assert!(held.reason.starts_with("no traffic while it is held: "), "{}", held.reason);
        let decided = compared(&engine, run).await;
        assert_eq!(decided.decision, Decision::Hold);
        assert!(decided.evidence.is_some(), "a hold can be made again");
        let next = on_canary(&world, &engine, HELD).await;
        let superseded = newest(&engine).await;
        is_about(&engine, &superseded, run).await;
        let says = format!(
            "the canary begins: 5 gets 10 % of the traffic beside 1; 4 goes: superseded by a newer version of run {next}"
        );
        assert_eq!(superseded.reason, says);

        // The end of its time.
        world.pass(TimeDelta::hours(1));
        assert_eq!(turn(&engine, next).await.status, RunStatus::Held);
        world.pass(TimeDelta::days(1));
        assert_eq!(turn(&engine, next).await.outcome, Some(Outcome::RolledBack));
        let over = newest(&engine).await;
        is_about(&engine, &over, next).await;
        assert!(over.reason.starts_with("nobody decided while it was held for 1d: "), "{}", over.reason);

        // A person who promotes another version.
        let run = on_canary(&world, &engine, FLOW).await;
        let done = engine.promote_by_hand(&model(), &target(), &version("5"), true, "ann", Some("it is better")).await;
        done.expect("promoted");
        let promoted = newest(&engine).await;
        is_about(&engine, &promoted, run).await;
        assert_eq!(promoted.reason, "it is better");
        assert_eq!(promoted.assignment.champion.expect("serves").version, version("5"));
    })
    .await;
}

#[tokio::test]
async fn a_silent_canary_and_a_host_changed_by_hand_keep_theirs() {
    let world = World::sqlite();
    let engine = world.process(&Crash::never()).await;
    serving(&world, &engine).await;
    let run = on_canary(&world, &engine, FLOW).await;
    for _ in 0..3 {
        traffic(&world, &engine, ("none", "1"), (0, 0)).await;
    }
    let stopped = newest(&engine).await;
    is_about(&engine, &stopped, run).await;
    assert!(stopped.reason.starts_with("the canary is silent: "), "{}", stopped.reason);
    assert_eq!(stopped.then.expect("evidence").verdict, Verdict::Error);

    let shows = release(&engine).await;
    world.host.apply(&shows, InstanceId::generate()).await.expect("changed by hand");
    engine.reconcile_releases().await.expect("compared");
    let taken = newest(&engine).await;
    is_about(&engine, &taken, run).await;
    assert_eq!(taken.reason, "`production` was changed by hand: its canary is taken off it");
}
