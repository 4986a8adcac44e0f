//! Releases are owned: two workflows on one model, and humans beside them.

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use refit::adapter::{AdapterError, Attention};
use refit::clock::Clock;
use refit::domain::because::Because;
use refit::domain::canary::CanaryState;
use refit::domain::release::{Assignment, ReleaseActor, Served};
use refit::domain::run::{Outcome, RunStatus};
use refit::domain::version::VersionState;
use refit::engine::Engine;
use refit::engine::by_hand::PromotedByHand;
use refit::engine::release::{Back, ReleaseError};
use refit::engine::reread::Choice;
use refit::store::{ReleaseWrite, ReleaseWritten};

use super::on_both;
use super::rollout::*;
use crate::support::crash::{Crash, Files};
use crate::support::world::{World, turn};

const OTHER: Flow = Flow { name: "other", ..DAY };
const HELD: Flow = Flow { compare: "rules: [{ metric: error_rate }], on_inconclusive: hold", ..FLOW };

/// Returns once the process reads nothing that was rolled back to.
async fn read_to_the_end(engine: &Engine) {
    let all = async {
        while engine.rereads() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all).await.expect("read in the end");
}

/// Version 1 serves; versions up to this one are sealed.
pub async fn sealed(world: &World, engine: &Arc<Engine>, newest: usize) {
    serving(world, engine).await;
    for _ in 2..=newest {
        publish(world, engine).await;
    }
}

/// A person promotes these versions, one after the other.
pub async fn promote(engine: &Arc<Engine>, versions: &[&str]) {
    for name in versions {
        let done = engine.promote_by_hand(&model(), &target(), &version(name), false, "ann", None).await;
        assert!(matches!(done, Ok(PromotedByHand::Done(_))), "{done:?}");
    }
}

/// What people are to be told.
async fn told(world: &World, engine: &Engine) -> Vec<String> {
    let notices = engine.store.take_outbox(100, Duration::from_secs(60), world.clock.now()).await;
    notices.expect("readable").iter().map(|entry| entry.notice.facts.to_string()).collect()
}

pub fn ann() -> ReleaseActor {
    ReleaseActor::Human { name: "ann".to_owned() }
}

#[tokio::test]
async fn what_somebody_may_want_otherwise_is_told_once_also_after_a_restart() {
    on_both(async |world| {
        let calm = Crash::never();
        let engine = world.process(&calm).await;
        serving(&world, &engine).await;
        told(&world, &engine).await;
        let (what, todo) = ("A push was left staged.".to_owned(), "Promote it.".to_owned());
        world.host.ask_for_attention(Attention { what, todo });
        for _ in 0..2 {
            engine.reconcile_releases().await.expect("reconciles");
        }
        let alerts = told(&world, &engine).await;
        assert_eq!(alerts.len(), 1, "{alerts:?}");
        assert!(alerts[0].contains("A push was left staged."), "{alerts:?}");
        // A process that was not there then does not tell it again.
        let again = world.process(&calm).await;
        again.reconcile_releases().await.expect("reconciles");
        assert_eq!(told(&world, &again).await, [""; 0]);
    })
    .await;
}

#[tokio::test]
async fn a_second_canary_of_a_model_is_refused_and_the_first_goes_on() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let first = on_canary(&world, &engine, DAY).await;
        let second = world.trigger(&engine, &OTHER.source()).await;
        let refused = ended(&world, &engine, second).await;
        assert_eq!(refused.outcome, Some(Outcome::Failed));
        let why = refused.reason.expect("a reason");
        assert_eq!(
            why,
            format!("step `canary`: another canary of `m` is out on `production`: run {first}"),
            "it says whose canary is out"
        );
        assert_eq!(shown(&world), (Some("1".to_owned()), Some("2".to_owned())));
        assert_eq!(canary(&engine, first).await.state, CanaryState::Watching);
        world.pass(TimeDelta::hours(24));
        assert_eq!(ended(&world, &engine, first).await.outcome, Some(Outcome::Promoted));
        assert_eq!(shown(&world), serves("2"));
    })
    .await;
}

#[tokio::test]
async fn a_held_canary_gives_way_to_a_newer_version_and_its_run_ends_at_once() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let first = on_canary(&world, &engine, HELD).await;
        reach(&world, &engine, first, TimeDelta::hours(1), |run| run.status == RunStatus::Held).await;
        let second = on_canary(&world, &engine, OTHER).await;
        let superseded = turn(&engine, first).await;
        assert_eq!(superseded.outcome, Some(Outcome::RolledBack), "{superseded:?}");
        let why = superseded.reason.expect("a reason");
        assert_eq!(why, format!("superseded by a newer version of run {second}"));
        assert_eq!(canary(&engine, first).await.state, CanaryState::RolledBack);
        assert_eq!(shown(&world), (Some("1".to_owned()), Some("3".to_owned())), "the newer one stays out");
        assert_eq!(release(&engine).await.owner, Some(second));
    })
    .await;
}

#[tokio::test]
async fn a_person_promotes_the_canary_of_a_run_and_the_run_does_it() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = on_canary(&world, &engine, DAY).await;
        let told = engine
            .promote_by_hand(&model(), &target(), &version("2"), false, "ann", Some("looks good"))
            .await
            .expect("told");
        assert_eq!(told, PromotedByHand::Run(run));
        let promoted = turn(&engine, run).await;
        assert_eq!(promoted.outcome, Some(Outcome::Promoted), "at once, not after the day: {promoted:?}");
        assert_eq!(promoted.reason.as_deref(), Some("promoted by ann: looks good"));
        assert_eq!(shown(&world), serves("2"));
        assert_eq!(canary(&engine, run).await.state, CanaryState::Promoted);
    })
    .await;
}

#[tokio::test]
async fn promoting_another_version_needs_supersede_and_drops_the_canary() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        publish(&world, &engine).await;
        let run = on_canary(&world, &engine, DAY).await;
        let by = async |supersede| {
            engine.promote_by_hand(&model(), &target(), &version("2"), supersede, "ann", None).await
        };
        let refused = by(false).await;
        assert!(
            matches!(&refused, Err(ReleaseError::Busy { version, run: owner })
                if version.as_str() == "3" && *owner == run),
            "{refused:?}"
        );
        assert_eq!(shown(&world), (Some("1".to_owned()), Some("3".to_owned())));
        assert!(matches!(by(true).await, Ok(PromotedByHand::Done(_))));
        assert_eq!(shown(&world), serves("2"));
        let dropped = turn(&engine, run).await;
        assert_eq!(dropped.outcome, Some(Outcome::RolledBack), "{dropped:?}");
        assert_eq!(dropped.reason.as_deref(), Some("promoted by ann"));
        assert_eq!(state_of(&engine, "3").await, VersionState::Sealed, "nothing speaks against it");
        assert_eq!(shown(&world), serves("2"));
    })
    .await;
}

#[tokio::test]
async fn a_person_rolls_a_canary_back_and_the_run_ends_in_the_middle_of_its_wait() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = on_canary(&world, &engine, DAY).await;
        engine.roll_back(&model(), &target(), None, ann(), "bad times").await.expect("rolled back");
        assert_eq!(shown(&world), serves("1"));
        assert_eq!(state_of(&engine, "2").await, VersionState::Bad);
        let ended = turn(&engine, run).await;
        assert_eq!(ended.outcome, Some(Outcome::RolledBack), "{ended:?}");
        assert_eq!(ended.reason.as_deref(), Some("bad times"));
        assert_eq!(shown(&world), serves("1"));
    })
    .await;
}

#[tokio::test]
async fn a_rollback_without_a_canary_goes_to_the_previous_version_then_to_the_newest_good_one() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        sealed(&world, &engine, 4).await;
        // 1, then 4, then 2: the version before 2 is 4.
        promote(&engine, &["4", "2"]).await;
        let back = async || engine.roll_back(&model(), &target(), None, ann(), "bad").await;
        back().await.expect("rolled back");
        assert_eq!(shown(&world), serves("4"), "the previous one");
        assert_eq!(state_of(&engine, "2").await, VersionState::Bad);
        back().await.expect("rolled back");
        assert_eq!(shown(&world), serves("3"), "2 is bad: the newest good one");
        damage(&world, "1");
        let nothing = back().await;
        assert!(matches!(nothing, Err(ReleaseError::NothingLeft { .. })), "{nothing:?}");
        assert_eq!(shown(&world), serves("3"), "version 1 is damaged: it is never served");
        assert_eq!(state_of(&engine, "3").await, VersionState::Sealed, "it serves, so it is not bad yet");
    })
    .await;
}

#[tokio::test]
async fn a_rollback_names_the_versions_that_it_passes_over_and_what_is_wrong_with_them() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        sealed(&world, &engine, 4).await;
        promote(&engine, &["3", "4"]).await;
        damage(&world, "3");
        let back =
            engine.roll_back(&model(), &target(), None, ann(), "bad times").await.expect("rolled back");
        assert_eq!(shown(&world), serves("2"), "3 was the previous one");
        assert_eq!(back.passed_over.len(), 1, "{:?}", back.passed_over);
        assert!(
            back.passed_over[0].starts_with("3 cannot serve (model.json of m/3"),
            "{:?}",
            back.passed_over
        );
        let history = engine.store.release_history(&model(), &target(), 1).await.expect("readable");
        assert_eq!(history[0].reason, format!("bad times; passed over: {}", back.passed_over[0]));
    })
    .await;
}

#[tokio::test]
async fn a_rollback_serves_before_it_reads_and_a_damaged_version_does_not_stay() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        sealed(&world, &engine, 4).await;
        promote(&engine, &["3", "4"]).await;
        damage_within(&world, "3");
        let back = async |to| engine.roll_back(&model(), &target(), to, ann(), "bad").await;
        let release = back(None).await.expect("rolled back").release;
        assert_eq!(shown(&world), serves("3"), "the previous one, at once");
        let release = engine.check_rollback(release, Choice::Free, &ann()).await.expect("a good one");
        assert_eq!(shown(&world), serves("2"), "3 is damaged: the newest good one");
        assert_eq!(state_of(&engine, "3").await, VersionState::Bad);
        let again = engine.check_rollback(release.clone(), Choice::Free, &ann()).await;
        assert_eq!(again.expect("it is whole"), release);

        // Who names a version gets it, and hears what is wrong with it.
        damage_within(&world, "1");
        let named = version("1");
        let release = back(Some(Back::to(&named))).await.expect("rolled back").release;
        let damaged = engine.check_rollback(release, Choice::Named, &ann()).await;
        assert!(matches!(damaged, Err(ReleaseError::Outside(_))), "{damaged:?}");
        assert_eq!(shown(&world), serves("1"));
        let told = told(&world, &engine).await;
        assert!(told.iter().any(|facts| facts.contains("the files of 1 are damaged")), "{told:#?}");

        // None is left but the damaged one that serves.
        for name in ["2", "4"] {
            damage(&world, name);
        }
        let nothing = back(None).await;
        assert!(matches!(nothing, Err(ReleaseError::NothingLeft { .. })), "{nothing:?}");
    })
    .await;
}

#[tokio::test]
async fn files_that_may_be_listed_and_not_read_are_not_damaged() {
    on_both(async |world| {
        let crash = Crash::never();
        let engine = world.process(&crash).await;
        sealed(&world, &engine, 3).await;
        promote(&engine, &["3"]).await;
        crash.files(Files::Denied);
        let back = engine.roll_back(&model(), &target(), None, ann(), "bad").await;
        let release = back.expect("rolled back").release;
        let unread = engine.check_rollback(release.clone(), Choice::Free, &ann()).await;
        assert!(
            matches!(unread, Err(ReleaseError::Outside(AdapterError::Denied { .. }))),
            "a right is missing: {unread:?}"
        );
        assert_eq!(shown(&world), serves("1"), "it stays");
        for (name, state) in
            [("1", VersionState::Sealed), ("2", VersionState::Sealed), ("3", VersionState::Bad)]
        {
            assert_eq!(state_of(&engine, name).await, state, "{name}");
        }
        let told = told(&world, &engine).await;
        assert!(told.iter().any(|facts| facts.contains("1 was not read")), "{told:#?}");
    })
    .await;
}

/// The champion served all along, whatever is wrong with its files: a rollback that only drops a canary is no
/// reason to leave it.
#[tokio::test]
async fn a_rollback_step_that_drops_a_canary_leaves_the_champion_alone() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        publish(&world, &engine).await;
        on_canary(&world, &engine, DAY).await;
        damage_within(&world, "1");
        let run = world.trigger(&engine, ROLLS_BACK).await;
        assert_eq!(ended(&world, &engine, run).await.outcome, Some(Outcome::Succeeded));
        read_to_the_end(&engine).await;
        assert_eq!((shown(&world), state_of(&engine, "1").await), (serves("1"), VersionState::Sealed));
    })
    .await;
}

#[tokio::test]
async fn a_process_is_not_done_while_it_reads_what_a_step_rolled_back_to() {
    on_both(async |world| {
        let crash = Crash::never();
        let engine = world.process(&crash).await;
        sealed(&world, &engine, 3).await;
        promote(&engine, &["2", "3"]).await;
        damage_within(&world, "2");
        crash.files(Files::Held);
        let run = world.trigger(&engine, ROLLS_BACK).await;
        assert_eq!(ended(&world, &engine, run).await.outcome, Some(Outcome::Succeeded));
        assert_eq!(shown(&world), serves("2"), "it serves before it is read");
        assert_eq!(engine.rereads(), 1);
        assert!(!engine.is_quiet(TimeDelta::zero()).await.expect("readable"));
        crash.files(Files::Readable);
        read_to_the_end(&engine).await;
        assert_eq!(shown(&world), serves("1"), "2 is damaged");
        assert_eq!(state_of(&engine, "2").await, VersionState::Bad);
        assert!(engine.is_quiet(TimeDelta::zero()).await.expect("readable"));
    })
    .await;
}

#[tokio::test]
async fn with_no_good_version_left_a_rollback_is_an_error_and_changes_nothing() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let before = release(&engine).await;
        let nothing = engine.roll_back(&model(), &target(), None, ann(), "bad").await;
        assert!(matches!(nothing, Err(ReleaseError::NothingLeft { .. })), "{nothing:?}");
        assert_eq!(release(&engine).await, before);
        let unknown =
            engine.roll_back(&model(), &target(), Some(Back::to(&version("9"))), ann(), "bad").await;
        assert!(matches!(unknown, Err(ReleaseError::UnknownVersion { .. })), "{unknown:?}");
    })
    .await;
}

#[tokio::test]
async fn a_version_whose_files_are_damaged_is_promoted_neither_by_hand_nor_by_its_run() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        publish(&world, &engine).await;
        damage(&world, "2");
        let refused = engine.promote_by_hand(&model(), &target(), &version("2"), false, "ann", None).await;
        assert!(matches!(refused, Err(ReleaseError::Outside(_))), "{refused:?}");
        let refused =
            engine.roll_back(&model(), &target(), Some(Back::to(&version("2"))), ann(), "back").await;
        assert!(matches!(refused, Err(ReleaseError::Outside(_))), "{refused:?}");
        assert_eq!(shown(&world), serves("1"));

        let run = on_canary(&world, &engine, FLOW).await;
        damage(&world, "3");
        let failed = ended(&world, &engine, run).await;
        assert_eq!(failed.outcome, Some(Outcome::Failed), "{failed:?}");
        assert!(failed.reason.as_deref().is_some_and(|why| why.contains("step `promote`")), "{failed:?}");
        assert_eq!(shown(&world), serves("1"), "its canary was taken back");
        assert_eq!(world.host.champions(), ["1"]);
    })
    .await;
}

#[tokio::test]
async fn a_champion_that_changed_since_the_gate_fails_the_run_before_its_canary() {
    let flow =
        Flow { before_canary: "  - { id: pause, uses: approve, with: { message: 'Go on?' } }", ..FLOW };
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        publish(&world, &engine).await;
        let run = world.trigger(&engine, &flow.source()).await;
        reach(&world, &engine, run, TimeDelta::minutes(1), |run| run.status == RunStatus::Waiting).await;
        engine
            .promote_by_hand(&model(), &target(), &version("2"), false, "ann", None)
            .await
            .expect("promoted");
        let step = "pause".parse().expect("a step");
        let approved = refit::domain::run::SignalKind::Approve { step };
        engine.store.signal(run, &approved, "ann", None, world.clock.now()).await.expect("sent");
        let failed = ended(&world, &engine, run).await;
        assert_eq!(failed.outcome, Some(Outcome::Failed));
        let why = failed.reason.expect("a reason");
        assert!(why.contains("champion changed: `gate` compared with 1, but 2 serves now"), "{why}");
        assert_eq!(shown(&world), serves("2"));
    })
    .await;
}

#[tokio::test]
async fn a_champion_that_changed_under_the_canary_fails_the_run_at_its_promotion() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        publish(&world, &engine).await;
        let run = on_canary(&world, &engine, FLOW).await;
        let current = release(&engine).await;
        let record = engine.store.version(&model(), &version("2")).await.expect("read").expect("there");
        let champion = Served {
            version: record.name,
            base_url: record.base_url,
            manifest_sha256: record.manifest_sha256,
        };
        let written = engine
            .store
            .write_release(ReleaseWrite {
                model: model(),
                target: target(),
                expected: current.generation,
                assignment: Assignment { champion: Some(champion), ..current.desired },
                owner: current.owner,
                actor: ann(),
                because: Because::alone("another process"),
                at: world.clock.now(),
                by_run: None,
                ends_canary: None,
                marks_bad: None,
                notices: vec![],
                heeds_freeze: false,
            })
            .await;
        assert!(matches!(written, Ok(ReleaseWritten::Made(_))), "{written:?}");
        let failed = ended(&world, &engine, run).await;
        assert_eq!(failed.outcome, Some(Outcome::Failed));
        let why = failed.reason.expect("a reason");
        assert!(why.contains("champion changed while 3 was out: 2 serves now"), "{why}");
        assert_eq!(shown(&world), serves("2"), "the canary is gone, the new champion stays");
    })
    .await;
}
