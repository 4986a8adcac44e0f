//! A version that a person takes back while its run ends as something else: the team hears of it once, by one of them.

use chrono::TimeDelta;
use refit::clock::Clock;
use refit::domain::id::RunId;
use refit::domain::run::{Outcome, RunStatus, SignalKind};
use refit::domain::workflow::{Moment, Recipient};
use refit::engine::heard::Hears;
use refit::store::Notice;
use tokio_util::sync::CancellationToken;

use super::heard::{BAKES, are, head, heads, publish_and_tell, roll_back, serving_and_telling, told};
use super::on_both;
use super::promotion::{TROUBLES, ann, approval, goes_on, not_shown, tell, two_days};
use super::rollout::*;
use crate::support::crash::{Crash, When, Write};
use crate::support::world::World;

/// A version that bakes, and a step beside it that is about to fail; after that the run has this to do.
async fn about_to_fail(world: &World, on_failure: &str) -> RunId {
    let flow = Flow { before_promote: BREAKS, promote: "{ bake: 6h }, needs: [compare]", ..BAKES };
    let engine = world.process(&Crash::never()).await;
    serving_and_telling(world, &engine).await;
    let source = format!("{}{on_failure}\n", flow.source());
    let run = world.trigger(&engine, &source).await;
    reach(world, &engine, run, TimeDelta::minutes(10), |run| run.outcome == Some(Outcome::Promoted)).await;
    let approval = SignalKind::Approve { step: "ask".parse().expect("a step") };
    engine.store.signal(run, &approval, "ann", None, world.clock.now()).await.expect("sent");
    told(world, &engine).await;
    leave(&engine).await;
    run
}

#[tokio::test]
async fn a_version_that_is_taken_back_by_hand_while_its_run_fails_is_told_once_whenever_that_is() {
    on_both(async |base| {
        let run = about_to_fail(&base, "").await;
        let mut by_whom = vec![];
        for nth in 0..4 {
            let world = base.copy().await;
            let outside = world.process(&Crash::never()).await;
            let hand = outside.clone();
            let point = Write { name: "checkpoint".to_owned(), nth };
            let crash = Crash::meanwhile(point, When::Before, move || {
                let hand = hand.clone();
                async move { roll_back(&hand, "customers call").await }
            });
            let working = world.process(&crash).await;
            working.activate(run, &CancellationToken::new()).await.expect("activates");
            leave(&working).await;
            let ended = ended(&world, &outside, run).await;
            assert_eq!(ended.status, RunStatus::Finished);
            assert_eq!(shown(&world), serves("1"));
            let told = told(&world, &outside).await;
            let of_the_change: Vec<&Notice> =
                told.iter().filter(|notice| notice.moment != Moment::Failed).collect();
            let to_the_log: Vec<&&Notice> =
                of_the_change.iter().filter(|notice| notice.to == Recipient::Console).collect();
            assert_eq!(to_the_log.len(), 1, "before checkpoint {nth}: {told:#?}");
            by_whom.push((ended.outcome.expect("ended"), to_the_log[0].moment));
        }
        assert!(
            by_whom.contains(&(Outcome::Failed, Moment::Alert)),
            "its run heard of it before: {by_whom:?}"
        );
        assert!(by_whom.contains(&(Outcome::Failed, Moment::RolledBack)), "it did not: {by_whom:?}");
    })
    .await;
}

#[tokio::test]
async fn a_version_that_is_taken_back_by_hand_while_its_run_is_at_its_end_is_told_at_once_and_once() {
    on_both(async |world| {
        let later =
            "on_failure: [ { id: sorry, run: 'exit 1', retry: { attempts: 2, backoff: 1h, max: 1h } } ]";
        let run = about_to_fail(&world, later).await;
        let engine = world.process(&Crash::never()).await;
        reach(&world, &engine, run, TimeDelta::seconds(1), |run| run.status == RunStatus::Undoing).await;
        let done = engine.roll_back(&model(), &target(), None, ann(), "customers call").await;
        let hears = done.expect("rolled back").hears;
        assert!(matches!(&hears, Some(Hears::These(recipients)) if recipients.len() == 2), "{hears:?}");
        let back = told(&world, &engine).await;
        are(
            &back,
            &[head(4, 0, Moment::RolledBack, "log"), head(4, 1, Moment::RolledBack, "bo@example.com")],
        );
        assert_eq!(ended(&world, &engine, run).await.outcome, Some(Outcome::Failed));
        let by_its_run = format!("{run}/end/0");
        assert_eq!(heads(&told(&world, &engine).await), [(&*by_its_run, Moment::Failed, "log".to_owned())]);
    })
    .await;
}

/// It waits for its host, and its run is to fail for another branch.
#[tokio::test]
async fn a_promotion_that_waits_in_a_run_that_fails_hears_at_once_that_it_was_taken_back() {
    let flow = Flow { before_promote: BREAKS, promote: "{ bake: 1h }, needs: [compare]", ..FLOW };
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving_and_telling(&world, &engine).await;
        let run = not_shown(&world, &engine, flow, TROUBLES[0]).await;
        tell(&world, &engine, run, &approval(), None).await;
        goes_on(&engine, run).await;
        two_days(&world, &engine, run).await;
        goes_on(&engine, run).await;
        told(&world, &engine).await;
        let back = engine.roll_back(&model(), &target(), None, ann(), "bad times").await;
        assert!(back.is_err(), "the host rejects that, too");
        let ended = goes_on(&engine, run).await;
        assert_eq!((ended.status, ended.outcome), (RunStatus::Finished, Some(Outcome::RolledBack)));
        let by_its_run = format!("{run}/end/0");
        assert_eq!(
            heads(&told(&world, &engine).await),
            [(&*by_its_run, Moment::RolledBack, "log".to_owned())]
        );
    })
    .await;
}

/// It does not bake, and its run goes on after it with something else.
#[tokio::test]
async fn a_first_version_that_is_taken_back_while_its_run_goes_on_is_told_once() {
    let later = "  - { id: ask, uses: approve, needs: [promote], with: { message: 'Go on?' } }\n";
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        publish_and_tell(&world, &engine).await;
        let run = world.trigger(&engine, &format!("{}{later}", FLOW.source())).await;
        reach(&world, &engine, run, TimeDelta::minutes(10), |run| {
            (run.status, run.outcome) == (RunStatus::Waiting, Some(Outcome::Promoted))
        })
        .await;
        told(&world, &engine).await;
        let done = engine.roll_back(&model(), &target(), None, ann(), "customers call").await;
        let hears = done.expect("rolled back").hears;
        assert!(matches!(&hears, Some(Hears::These(recipients)) if recipients.len() == 2), "{hears:?}");
        let mut back = told(&world, &engine).await;
        tell(&world, &engine, run, &approval(), None).await;
        let ended = ended(&world, &engine, run).await;
        assert_eq!(shown(&world), serves("1"));
        back.extend(told(&world, &engine).await);
        let to_the_log: Vec<&Notice> =
            back.iter().filter(|it| it.to == Recipient::Console && it.moment != Moment::Promoted).collect();
        assert_eq!(to_the_log.len(), 1, "{:?}: {back:#?}", ended.outcome);
    })
    .await;
}
