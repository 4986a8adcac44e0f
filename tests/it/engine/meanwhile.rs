//! What people decide by hand while something else changes: the release, or what the host shows.

use refit::adapter::Target as _;
use refit::domain::id::Generation;
use refit::domain::release::Release;
use refit::domain::version::VersionState;
use refit::engine::release::{Back, ReleaseError};

use super::heard::{self, serving_and_telling};
use super::on_both;
use super::releases::{ann, promote, sealed};
use super::rollout::*;
use crate::support::crash::Crash;

#[tokio::test]
async fn what_somebody_confirmed_is_done_to_what_they_saw_and_to_nothing_else() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        sealed(&world, &engine, 2).await;
        promote(&engine, &["2"]).await;
        on_canary(&world, &engine, DAY).await;
        let seen = release(&engine).await;
        // The canary goes while the question is open: without one, the champion would go next.
        engine.roll_back(&model(), &target(), None, ann(), "bad times").await.expect("rolled back");
        let late = engine.roll_back_as_seen(&seen, None, ann(), "bad times").await;
        assert!(matches!(late, Err(ReleaseError::Changed { .. })), "{late:?}");
        assert_eq!((shown(&world), state_of(&engine, "2").await), (serves("2"), VersionState::Sealed));
        let seen = release(&engine).await;
        engine.roll_back_as_seen(&seen, None, ann(), "bad times").await.expect("rolled back");
        assert_eq!(shown(&world), serves("1"));
    })
    .await;
}

#[tokio::test]
async fn nobody_says_that_all_is_as_decided_where_the_host_does_not_say_what_it_shows() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        world.host.hang_up(true);
        let one = version("1");
        let promoted = engine.promote_by_hand(&model(), &target(), &one, false, "ann", None).await;
        assert!(matches!(promoted, Err(ReleaseError::Outside(_))), "{promoted:?}");
        let back = engine.roll_back(&model(), &target(), Some(Back::to(&one)), ann(), "bad").await;
        assert!(matches!(back, Err(ReleaseError::Outside(_))), "{back:?}");
        assert_eq!(release(&engine).await.generation, Generation(1));
    })
    .await;
}

#[tokio::test]
async fn people_hear_of_a_canary_that_somebody_added_though_the_host_does_not_let_it_go() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving_and_telling(&world, &engine).await;
        on_canary(&world, &engine, DAY).await;
        let with_a_canary = release(&engine).await;
        engine.roll_back(&model(), &target(), None, ann(), "bad").await.expect("rolled back");
        heard::told(&world, &engine).await;
        let generation = release(&engine).await.generation;
        let added = Release { generation, ..with_a_canary };
        world.host.apply(&added, engine.services.instance).await.expect("changed by hand");
        world.host.reject(true);
        engine.reconcile_releases().await.expect("compared");
        let told = heard::told(&world, &engine).await;
        assert!(told.iter().any(|notice| notice.key.contains("changed-by-hand")), "{told:#?}");
    })
    .await;
}
