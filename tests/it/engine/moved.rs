//! A store that has moved: apps hear of it when somebody changes what serves, and of nothing else.

use std::sync::Arc;

use chrono::TimeDelta;
use refit::domain::freeze::FreezeEnd;
use refit::domain::id::{Generation, VersionName};
use refit::domain::release::{Release, ReleaseActor};
use refit::domain::run::Outcome;
use refit::domain::version::VersionState;
use refit::engine::Engine;
use refit::engine::by_hand::{Promoted, PromotedByHand};
use refit::engine::release::{Back, RolledBack};
use refit::receipt;

use super::freeze::freeze;
use super::heard::{publish_and_tell, serving_and_telling, told};
use super::on_both;
use super::rollout::*;
use crate::support::crash::Crash;
use crate::support::world::World;

/// A process for which the store is elsewhere.
async fn elsewhere(world: &World) -> Arc<Engine> {
    *world.address.lock().unwrap() = Some("/elsewhere".to_owned());
    world.process(&Crash::never()).await
}

fn at(world: &World, name: &str) -> String {
    world.path("models").join("m").join(name).display().to_string()
}

/// Where apps are sent for the champion and for the canary.
fn addresses(world: &World) -> (String, Option<String>) {
    let document = world.host.current().expect("a document");
    (document.champion.expect("a champion").base_url, document.canary.map(|canary| canary.served.base_url))
}

async fn promote(engine: &Arc<Engine>, name: &str, supersede: bool) -> Promoted {
    let done = engine.promote_by_hand(&model(), &target(), &version(name), supersede, "ann", None).await;
    let Ok(PromotedByHand::Done(promoted)) = done else { panic!("{done:?}") };
    *promoted
}

async fn back_to(engine: &Arc<Engine>, name: &VersionName, marks_bad: bool) -> RolledBack {
    let (back, who) = (Back { version: name, marks_bad }, ReleaseActor::Human { name: "ann".to_owned() });
    engine.roll_back(&model(), &target(), Some(back), who, "rolled back by ann").await.expect("rolled back")
}

/// Version 2 serves, before it 1 did, and people know of both.
async fn two_after_one(world: &World) -> Arc<Engine> {
    let engine = world.process(&Crash::never()).await;
    for _ in 0..2 {
        publish_and_tell(world, &engine).await;
    }
    promote(&engine, "1", false).await;
    promote(&engine, "2", false).await;
    told(world, &engine).await;
    engine
}

fn previous(release: &Release) -> Option<&str> {
    release.desired.previous.as_ref().map(|served| served.version.as_str())
}

#[tokio::test]
async fn processes_that_know_a_store_by_two_addresses_do_not_take_turns() {
    on_both(async |world| {
        let here = world.process(&Crash::never()).await;
        serving_and_telling(&world, &here).await;
        let there = elsewhere(&world).await;
        for engine in [&there, &here, &there] {
            assert_eq!(engine.reconcile_releases().await.expect("compared"), 0);
        }
        assert_eq!(addresses(&world), (at(&world, "1"), None), "nothing is rewritten by itself");

        assert_eq!(promote(&there, "1", false).await.release.generation, Generation(2));
        assert_eq!(addresses(&world), ("/elsewhere/m/1".to_owned(), None));
        for engine in [&here, &there, &here] {
            assert_eq!(engine.reconcile_releases().await.expect("compared"), 0);
        }
        assert_eq!(promote(&there, "1", false).await.release.generation, Generation(2));
        assert_eq!(told(&world, &here).await, [], "everybody gets what they got");
    })
    .await;
}

#[tokio::test]
async fn a_new_address_of_what_serves_is_no_other_version() {
    on_both(async |world| {
        let engine = two_after_one(&world).await;
        freeze(&world, &engine, FreezeEnd::Never).await;
        told(&world, &engine).await;

        let engine = elsewhere(&world).await;
        let promoted = promote(&engine, "2", false).await;
        assert_eq!(addresses(&world).0, "/elsewhere/m/2", "a freeze keeps no app at a place that is gone");
        assert_eq!((promoted.release.generation, previous(&promoted.release)), (Generation(3), Some("1")));
        assert_eq!(told(&world, &engine).await, []);
        let receipt = receipt::of_change(engine.store.as_ref(), &model(), &target(), Generation(3)).await;
        let receipt = receipt.expect("readable").expect("a receipt");
        assert_eq!(receipt.headline, "2 of m on production is found at /elsewhere/m/2 from then on");
        assert_eq!(receipt.undo, None);
        let why_not = receipt.no_undo.expect("a reason");
        assert_eq!(
            why_not,
            "Nothing is to be taken back: everybody gets the version that was decided before."
        );
    })
    .await;
}

#[tokio::test]
async fn a_rollback_to_what_serves_changes_nothing() {
    on_both(async |world| {
        let engine = two_after_one(&world).await;
        let (one, two) = (version("1"), version("2"));
        let nothing = back_to(&engine, &two, true).await;
        assert_eq!((nothing.release.generation, nothing.changes_champion), (Generation(2), false));
        assert_eq!(nothing.hears, None);
        assert_eq!(previous(&nothing.release), Some("1"));
        assert_eq!(state_of(&engine, "2").await, VersionState::Sealed, "it makes way for no other");

        let engine = elsewhere(&world).await;
        let anew = back_to(&engine, &two, true).await;
        assert_eq!((anew.release.generation, anew.changes_champion), (Generation(3), false));
        assert_eq!((previous(&anew.release), addresses(&world).0), (Some("1"), "/elsewhere/m/2".to_owned()));
        assert_eq!(state_of(&engine, "2").await, VersionState::Sealed);
        assert_eq!(told(&world, &engine).await, []);

        let back = back_to(&engine, &one, false).await;
        assert_eq!((back.release.generation, back.changes_champion), (Generation(4), true));
        assert_eq!(addresses(&world).0, "/elsewhere/m/1");
        assert!(!told(&world, &engine).await.is_empty(), "that is another version");
    })
    .await;
}

#[tokio::test]
async fn a_rollback_to_what_serves_drops_the_canary_beside_it() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = on_canary(&world, &engine, DAY).await;
        let engine = elsewhere(&world).await;
        let back = back_to(&engine, &version("1"), true).await;
        assert!(!back.changes_champion);
        assert_eq!(previous(&back.release), None);
        assert_eq!(addresses(&world), ("/elsewhere/m/1".to_owned(), None));
        assert_eq!(state_of(&engine, "2").await, VersionState::Bad, "that is what is taken off");
        assert_eq!(state_of(&engine, "1").await, VersionState::Sealed);
        assert_eq!(ended(&world, &engine, run).await.outcome, Some(Outcome::RolledBack));
        assert_eq!(release(&engine).await.generation, back.release.generation, "its run takes nothing back");
    })
    .await;
}

#[tokio::test]
async fn a_canary_that_went_out_before_its_store_moved_is_promoted_where_it_is_now() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = on_canary(&world, &engine, FLOW).await;
        leave(&engine).await;
        let engine = elsewhere(&world).await;
        engine.reconcile_releases().await.expect("compared");
        assert_eq!(addresses(&world), (at(&world, "1"), Some(at(&world, "2"))), "as it was set");
        world.pass(TimeDelta::hours(1));
        assert_eq!(ended(&world, &engine, run).await.outcome, Some(Outcome::Promoted));
        assert_eq!(addresses(&world), ("/elsewhere/m/2".to_owned(), None));
        assert_eq!(previous(&release(&engine).await), Some("1"));

        on_canary(&world, &engine, FLOW).await;
        let both = ("/elsewhere/m/2".to_owned(), Some("/elsewhere/m/3".to_owned()));
        assert_eq!(addresses(&world), both);
    })
    .await;
}
