//! Old versions go, and nothing that is needed goes with them: whatever write a
//! process dies at, and whoever promotes meanwhile.

use std::sync::Arc;

use chrono::TimeDelta;
use refit::clock::Clock;
use refit::domain::history::ChangedBy;
use refit::domain::id::VersionName;
use refit::domain::release::ReleaseActor;
use refit::domain::retention::Policy;
use refit::domain::run::{CancelRequest, Outcome};
use refit::domain::version::VersionState;
use refit::engine::Engine;
use refit::engine::by_hand::PromotedByHand;
use refit::engine::release::ReleaseError;
use refit::engine::retention::Deletion;

use super::on_both;
use super::rollout::*;
use crate::support::crash::{Crash, When, Write};
use crate::support::world::{World, finish, turn};

const KEEPS: &str = r#"
name: keeps
model: m
mode: act
concurrency: { key: keeps }
steps:
  - id: train
    run: 'mkdir -p first && rm -f first/* && echo "$REFIT_RUN" > first/model.json'
    outputs: { from: first, files: "*.json" }
  - { id: publish, uses: publish, with: { store: models, version: counter, keep: { latest: 2 } } }
"#;

fn keep(latest: u32) -> Policy {
    Policy { latest: [("models".parse().expect("a name"), latest)].into(), ..Policy::default() }
}

fn ann(engine: &Engine) -> ChangedBy {
    ChangedBy {
        actor: ReleaseActor::Human { name: "ann".to_owned() },
        reason: "a test".to_owned(),
        at: engine.clock.now(),
    }
}

/// Names of the versions that the database lists, and of those that the store lists.
async fn listed(engine: &Engine) -> (Vec<String>, Vec<String>) {
    let text = |names: Vec<VersionName>| {
        let mut names: Vec<String> = names.iter().map(ToString::to_string).collect();
        names.sort();
        names
    };
    let known = engine.store.versions(&model()).await.expect("listed");
    let store = engine.services.stores.values().next().expect("a store");
    let sealed = refit::artifacts::sealed::list_sealed(store, &model()).await.expect("listed");
    (text(known.into_iter().map(|record| record.name).collect()), text(sealed))
}

/// Every version that somebody could find is whole.
async fn all_listed_are_whole(engine: &Engine) {
    let store = engine.services.stores.values().next().expect("a store");
    for record in engine.store.versions(&model()).await.expect("listed") {
        let whole = refit::artifacts::verify_known(store, &record).await;
        assert!(whole.is_ok(), "version {} is listed: {whole:?}", record.name);
    }
    for name in refit::artifacts::sealed::list_sealed(store, &model()).await.expect("listed") {
        let whole = refit::artifacts::sealed::verify(store, &model(), &name).await;
        assert!(whole.is_ok(), "the store lists {name}: {whole:?}");
    }
}

#[tokio::test]
async fn publish_keeps_the_newest_and_what_serves_and_gives_no_name_twice() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        for _ in 2..=5 {
            let run = world.trigger(&engine, KEEPS).await;
            assert_eq!(finish(&world, &engine, run).await.outcome, Some(Outcome::Succeeded));
        }
        let left = vec!["1".to_owned(), "4".to_owned(), "5".to_owned()];
        assert_eq!(listed(&engine).await, (left.clone(), left));
        assert!(!world.path("models/m/2").exists(), "nothing of it is left");
        assert_eq!(state_of(&engine, "2").await, VersionState::Deleted);
        all_listed_are_whole(&engine).await;
        let run = world.trigger(&engine, KEEPS).await;
        finish(&world, &engine, run).await;
        assert_eq!(state_of(&engine, "6").await, VersionState::Sealed, "2 and 3 are not given again");
        let gone = engine.promote_by_hand(&model(), &target(), &version("2"), false, "ann", None).await;
        assert!(matches!(gone, Err(ReleaseError::UnknownVersion { .. })), "{gone:?}");
        let history = engine.store.history(Some(&model()), 100).await.expect("read");
        let of_two: Vec<_> = history.iter().filter(|entry| entry.change.concerns(&version("2"))).collect();
        assert!(matches!(of_two[0].by.actor, ReleaseActor::Run { .. }), "{of_two:?}");
        assert_eq!(of_two[1].by.reason, "older than the newest 2");
    })
    .await;
}

/// Though nothing is left that has the name: neither in the store nor among the versions that can be listed.
#[tokio::test]
async fn no_scheme_gives_a_name_again_that_was_deleted() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        let (today, mut given) = (world.clock.now().format("%F"), vec![]);
        let schemes = [
            ("counter", ["1", "2", "3"].map(str::to_owned)),
            ("semver", ["1.0.0", "1.1.0", "1.2.0"].map(str::to_owned)),
            ("date", ["", ".2", ".3"].map(|suffix| format!("{today}{suffix}"))),
        ];
        for (scheme, names) in schemes {
            for (number, name) in names.into_iter().enumerate() {
                if number == 2 {
                    engine.collect_versions(&model(), &keep(0), &ann(&engine)).await.expect("collected");
                    assert_eq!(listed(&engine).await, (vec![], vec![]));
                }
                let names =
                    KEEPS.replace("version: counter, keep: { latest: 2 }", &format!("version: {scheme}"));
                let run = world.trigger(&engine, &names).await;
                assert_eq!(finish(&world, &engine, run).await.outcome, Some(Outcome::Succeeded));
                assert_eq!(state_of(&engine, &name).await, VersionState::Sealed, "{scheme}");
                given.push(name);
            }
        }
        let known = engine.store.versions(&model()).await.expect("listed");
        assert!(known.iter().all(|record| given.contains(&record.name.to_string())), "{known:?}");
    })
    .await;
}

#[tokio::test]
async fn a_version_on_canary_and_the_champion_its_gate_saw_outlive_any_collection() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        let run = on_canary(&world, &engine, FLOW).await;
        for _ in 0..2 {
            publish(&world, &engine).await;
        }
        let done = engine.collect_versions(&model(), &keep(1), &ann(&engine)).await.expect("collected");
        let gone: Vec<_> = done.iter().map(|(name, _)| name.to_string()).collect();
        assert_eq!(gone, ["3"], "1 serves, 2 is on canary, 4 is the newest");
        world.pass(TimeDelta::hours(1));
        assert_eq!(ended(&world, &engine, run).await.outcome, Some(Outcome::Promoted));
        // 1 is the previous one; it may serve again at any time.
        world.pass(TimeDelta::days(30));
        engine.collect_versions(&model(), &keep(1), &ann(&engine)).await.expect("collected");
        engine.roll_back(&model(), &target(), None, ann(&engine).actor, "bad").await.expect("rolled back");
        assert_eq!(shown(&world), serves("1"));
    })
    .await;
}

/// Deletes version after version, each time with a process that dies at another write.
#[tokio::test]
async fn whatever_write_a_collection_dies_at_no_half_version_is_listed_and_the_next_one_ends_it() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        publish(&world, &engine).await;
        publish(&world, &engine).await;
        let calm = Crash::never();
        let counting = world.process(&calm).await;
        let before = calm.trace().len();
        counting.collect_versions(&model(), &keep(1), &ann(&engine)).await.expect("collected");
        let writes: Vec<Write> = calm.trace().split_off(before);
        let names: Vec<&str> = writes.iter().map(|write| write.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "condemn_version",
                "delete manifest.json",
                "delete model.json",
                "delete _claim.json",
                "version_deleted"
            ],
            "2 went"
        );
        leave(&counting).await;
        let mut next = 3;
        for write in &writes {
            for when in [When::Before, When::After] {
                publish(&world, &engine).await;
                let victim = next.to_string();
                next += 1;
                let crash = Crash::at(write.clone(), when);
                let dies = world.process(&crash).await;
                let by = ann(&dies);
                let (model, policy) = (model(), keep(1));
                let collecting = dies.collect_versions(&model, &policy, &by);
                tokio::select! {
                    biased;
                    () = crash.died() => {}
                    done = collecting => panic!("it did not die {when:?} {write}: {done:?}"),
                }
                all_listed_are_whole(&engine).await;
                if write.name == "condemn_version" && when == When::Before {
                    assert_eq!(state_of(&engine, &victim).await, VersionState::Sealed);
                } else {
                    let victim = version(&victim);
                    let gone = engine.promote_by_hand(&model, &target(), &victim, false, "ann", None).await;
                    assert!(matches!(gone, Err(ReleaseError::UnknownVersion { .. })), "{gone:?}");
                }
                engine.collect_versions(&model, &policy, &ann(&engine)).await.expect("collected");
                assert_eq!(state_of(&engine, &victim).await, VersionState::Deleted, "{when:?} {write}");
                assert!(!world.path(&format!("models/m/{victim}")).exists(), "{when:?} {write}");
                all_listed_are_whole(&engine).await;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn of_a_promotion_and_a_collection_whoever_wins_what_serves_is_whole() {
    on_both(async |world| {
        let (one, two) = (world.process(&Crash::never()).await, world.process(&Crash::never()).await);
        serving(&world, &one).await;
        publish(&world, &one).await;
        let (mut kept, mut refused) = (0, 0);
        for n in 2..=9 {
            publish(&world, &one).await;
            let (policy, by, wanted) = (keep(1), ann(&two), version(&n.to_string()));
            let (model, target) = (model(), target());
            let (promoted, collected) = tokio::join!(
                one.promote_by_hand(&model, &target, &wanted, false, "ann", None),
                two.collect_versions(&model, &policy, &by)
            );
            let collected = collected.expect("collected");
            let deleted =
                collected.iter().any(|(name, done)| name == &wanted && matches!(done, Deletion::Done { .. }));
            match promoted {
                Ok(PromotedByHand::Done(promoted)) => {
                    kept += 1;
                    assert!(!deleted, "{n}");
                    assert_eq!(promoted.release.desired.champion.map(|served| served.version), Some(wanted));
                }
                // Its files went while they were looked at, or it was gone before.
                Err(ReleaseError::UnknownVersion { .. } | ReleaseError::Outside(_)) => {
                    refused += 1;
                    assert!(deleted, "{n}");
                }
                other => panic!("{other:?}"),
            }
            all_listed_are_whole(&one).await;
            let serves = release(&one).await.desired.champion.expect("a champion").version;
            assert_eq!(state_of(&one, serves.as_str()).await, VersionState::Sealed);
        }
        assert_eq!(kept + refused, 8);
    })
    .await;
}

#[tokio::test]
async fn half_an_upload_goes_with_its_claim_a_week_after_its_run_ended() {
    on_both(async |world| {
        let crash = Crash::at(Write { name: "put model.json".to_owned(), nth: 0 }, When::After);
        let dies = world.process(&crash).await;
        let run = world.trigger(&dies, KEEPS).await;
        tokio::select! {
            biased;
            () = crash.died() => {}
            _ = turn(&dies, run) => panic!("it did not die"),
        }
        let engine = world.process(&Crash::never()).await;
        engine.store.retire_worker(dies.worker).await.expect("the dead leave nothing");
        let wish = CancelRequest { actor: "ann".to_owned(), reason: None, at: world.clock.now() };
        let collect = async |engine: &Arc<Engine>| {
            engine.collect_versions(&model(), &keep(1), &ann(engine)).await.expect("collected").len()
        };
        assert_eq!(collect(&engine).await, 0, "its run may go on");
        assert!(engine.store.request_cancel(run, &wish).await.expect("asked"));
        ended(&world, &engine, run).await;
        assert_eq!(state_of(&engine, "1").await, VersionState::Reserved);
        assert_eq!(collect(&engine).await, 0, "somebody may want to look at it");
        world.write("models/m/2/_claim.json", "{\"instance\": \"somebody else's\"}");
        world.pass(TimeDelta::days(8));
        assert_eq!(collect(&engine).await, 1);
        assert!(!world.path("models/m/1").exists());
        assert!(world.path("models/m/2/_claim.json").exists(), "what others put there stays");
        assert_eq!(state_of(&engine, "1").await, VersionState::Deleted);
        publish(&world, &engine).await;
        assert_eq!(state_of(&engine, "3").await, VersionState::Sealed, "1 is never given again, 2 is taken");
    })
    .await;
}

#[tokio::test]
async fn a_host_that_does_not_answer_holds_every_version() {
    on_both(async |world: World| {
        let engine = world.process(&Crash::never()).await;
        serving(&world, &engine).await;
        for _ in 2..=4 {
            publish(&world, &engine).await;
        }
        world.host.hang_up(true);
        let done = engine.collect_versions(&model(), &keep(1), &ann(&engine)).await.expect("collected");
        assert!(done.is_empty(), "{done:?}");
        world.host.hang_up(false);
        let done = engine.collect_versions(&model(), &keep(1), &ann(&engine)).await.expect("collected");
        assert_eq!(done.len(), 2);
    })
    .await;
}
