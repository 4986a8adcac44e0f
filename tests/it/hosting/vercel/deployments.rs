//! The builds: refit's own, that fail or never end, and those of the team, which go before them.

use refit::adapter::AdapterError;
use refit::domain::id::InstanceId;
use serde_json::json;

use super::{says, target};
use crate::hosting::suite::{self, release};
use crate::hosting::vercel_config::sound;
use crate::support::faults::{Fault, Rule};
use crate::support::vercel::{Build, Vercel, World};

#[tokio::test]
async fn a_build_that_fails_says_why_and_is_not_tried_for_ever() {
    let (vercel, us) = (Vercel::start(), InstanceId::generate());
    let target = target(&vercel, json!({}));
    target.apply(&release(1, "v1", None), us).await.expect("applied");
    vercel.with(|world| {
        world.builds = [Build::Fails("Command \"next build\" exited with 1"), Build::Cancelled].into()
    });
    let canary = release(2, "v1", Some(("v2", 1_000)));
    let error = target.apply(&canary, us).await.expect_err("failed").to_string();
    assert!(
        error.contains("ended in ERROR BUILD_FAILED: Command \"next build\" exited with 1, see https://"),
        "{error}"
    );
    let error = target.apply(&canary, us).await.expect_err("cancelled").to_string();
    assert!(error.contains("ended in CANCELED"), "{error}");
    // What serves is what served, and it is said so.
    let shown = target.read(&suite::model()).await.expect("readable").expect("shown");
    assert_eq!(shown.document, release(1, "v1", None).document(us));
    vercel.with(|world| world.builds = [Build::Fails("again"), Build::Well].into());
    target.apply(&canary, us).await.expect_err("the third");
    let error = target.apply(&canary, us).await.expect_err("no fourth").to_string();
    assert!(error.contains("it was tried 3 times"), "{error}");
    assert_eq!(vercel.made(), 4);
    // A rollback is not held up by the builds that failed: what serves has no canary.
    target.apply(&release(3, "v1", None), us).await.expect("applied");
    assert_eq!(vercel.made(), 4);
    assert_eq!(says(&vercel).await["percent"], "0");
    sound(&vercel);
}

#[tokio::test]
async fn a_build_that_never_ends_is_given_up_and_found_again() {
    let (vercel, us) = (Vercel::start(), InstanceId::generate());
    vercel.with(|world| world.builds = [Build::Stuck("BUILDING")].into());
    let target = target(&vercel, json!({"wait_at_most": "30ms"}));
    let error = target.apply(&release(1, "v1", None), us).await.expect_err("stuck");
    assert!(
        error.is_transient() && error.to_string().contains("still waiting for deployment dpl_"),
        "{error}"
    );
    let error = target.apply(&release(1, "v1", None), us).await.expect_err("still stuck");
    assert!(error.is_transient(), "{error}");
    assert_eq!((vercel.made(), target.read(&suite::model()).await), (1, Ok(None)));
}

#[tokio::test]
async fn a_rollback_does_not_wait_for_the_build_of_the_canary() {
    let (vercel, us) = (Vercel::start(), InstanceId::generate());
    let target = target(&vercel, json!({}));
    target.apply(&release(1, "v1", None), us).await.expect("applied");
    vercel.with(|world| world.builds = [Build::Stuck("BUILDING")].into());
    let canary = release(2, "v1", Some(("v2", 1_000)));
    let roll_back = async {
        while vercel.made() < 2 {
            tokio::task::yield_now().await;
        }
        target.apply(&release(3, "v1", None), us).await
    };
    let (canary, rolled_back) = tokio::join!(target.apply(&canary, us), roll_back);
    let error = canary.expect_err("superseded");
    assert!(error.to_string().ends_with("a newer change came while this one was waited for"), "{error}");
    rolled_back.expect("rolled back");
    vercel.with(|world| {
        let states: Vec<&str> = world.deployments.iter().map(|it| it.state.as_str()).collect();
        // What served has no canary: nothing is built.
        assert_eq!(states, ["READY", "READY", "CANCELED"]);
    });
    assert_eq!(says(&vercel).await["percent"], "0");
    sound(&vercel);
}

#[tokio::test]
async fn a_deployment_of_the_team_is_waited_for_and_never_undone() {
    let (vercel, us) = (Vercel::start(), InstanceId::generate());
    let target = target(&vercel, json!({}));
    target.apply(&release(1, "v1", None), us).await.expect("applied");
    // The team's fix is being built while the canary goes out: the canary is built of the fix.
    vercel.with(|world| drop(world.pushed("the fix")));
    target.apply(&release(2, "v1", Some(("v2", 1_000))), us).await.expect("applied");
    vercel.with(|world| assert_eq!(world.serving_commit(), "the fix"));
    assert_eq!(says(&vercel).await["percent"], "10");
    // A push right before refit's own request: refit's build of older code is cancelled, the team's has the variables.
    vercel.with(|world| {
        world.builds = [Build::Well, Build::Stuck("BUILDING")].into();
        world.before_deploy = Some(|world| drop(world.pushed("the second fix")));
    });
    target.apply(&release(3, "v1", Some(("v2", 5_000))), us).await.expect("applied");
    vercel.with(|world| {
        assert_eq!(world.serving_commit(), "the second fix");
        world.settle();
        assert_eq!(world.serving_commit(), "the second fix");
    });
    assert_eq!(says(&vercel).await["percent"], "50");
    // An urgent rollback: settings only, on the code that serves now.
    vercel.with(|world| {
        world.pushed("the third fix");
        world.settle();
    });
    target.apply(&release(4, "v1", None), us).await.expect("rolled back");
    vercel.with(|world| assert_eq!(world.serving_commit(), "the third fix"));
    assert_eq!(says(&vercel).await["percent"], "0");
    assert!(
        !vercel.server.asked().iter().any(|line| line.contains("/rollback/")),
        "{:?}",
        vercel.server.asked()
    );
    sound(&vercel);
}

/// Both builds are over before refit looks again: its own, of older code, came last and has the domain.
#[tokio::test]
async fn a_push_that_refits_build_was_put_over_is_built_again() {
    let (vercel, us) = (Vercel::start(), InstanceId::generate());
    let target = target(&vercel, json!({}));
    target.apply(&release(1, "v1", None), us).await.expect("applied");
    vercel.with(|world| {
        world.before_deploy = Some(|world| drop(world.pushed("the fix")));
        world.after_deploy = Some(|world| {
            world.settle();
            assert_eq!(world.serving_commit(), "first commit");
        });
    });
    target.apply(&release(2, "v1", Some(("v2", 1_000))), us).await.expect("applied");
    vercel.with(|world| assert_eq!(world.serving_commit(), "the fix"));
    assert_eq!(says(&vercel).await["percent"], "10");
    assert_eq!(vercel.made(), 3, "once more than without the push");
    // What is caught up with is not built again.
    target.apply(&release(2, "v1", Some(("v2", 1_000))), us).await.expect("applied");
    assert_eq!(vercel.made(), 3);

    // A push that fails to build was not put over.
    vercel.with(|world| {
        world.builds = [Build::Fails("a type error")].into();
        world.before_deploy = Some(|world| drop(world.pushed("a mistake")));
        world.after_deploy = Some(World::settle);
    });
    target.apply(&release(3, "v1", Some(("v2", 5_000))), us).await.expect("applied");
    vercel.with(|world| assert_eq!(world.serving_commit(), "the fix"));
    assert_eq!((says(&vercel).await["percent"].clone(), vercel.made()), (json!("50"), 4));
    sound(&vercel);
}

#[tokio::test]
async fn a_deployment_that_is_meant_to_wait_is_not_published_by_refit() {
    let (vercel, us) = (Vercel::start(), InstanceId::generate());
    let target = target(&vercel, json!({}));
    target.apply(&release(1, "v1", None), us).await.expect("applied");
    vercel.with(|world| {
        world.builds = [Build::WithoutDomain].into();
        world.before_deploy = Some(|world| drop(world.pushed("not yet")));
        world.after_deploy = Some(World::settle);
    });
    // The app is asked last; what was seen before is kept, though that fails.
    let broken = Fault::Answer(404, vec![], "not here".to_owned());
    vercel.server.fault(Rule::on(broken, |request| request.uri.path() == "/app/version").once());
    let canary = release(2, "v1", Some(("v2", 1_000)));
    target.apply(&canary, us).await.expect_err("not verified");
    target.apply(&canary, us).await.expect("applied");
    vercel.with(|world| assert_eq!(world.serving_commit(), "first commit"));
    assert_eq!((says(&vercel).await["percent"].clone(), vercel.made()), (json!("10"), 2));
    // Nor is it forgotten: people are told, until the next change.
    let attention = async || target.read(&suite::model()).await.expect("readable").expect("shown").attention;
    let told = attention().await.expect("something");
    assert!(told.what.ends_with("production's domain was not assigned to it."), "{}", told.what);
    assert_eq!(told.todo, "If it should serve, promote it on Vercel.");
    target.apply(&release(3, "v1", None), us).await.expect("applied");
    assert_eq!(attention().await, None);
    sound(&vercel);
}

/// Whoever asked for the build died before it was there; who goes on has only what Vercel says.
#[tokio::test]
async fn a_deployment_that_waits_is_told_of_though_refit_died_while_it_was_built() {
    let (vercel, us) = (Vercel::start(), InstanceId::generate());
    let canary = release(2, "v1", Some(("v2", 1_000)));
    target(&vercel, json!({})).apply(&release(1, "v1", None), us).await.expect("applied");
    vercel.with(|world| {
        world.builds = [Build::WithoutDomain].into();
        world.before_deploy = Some(|world| drop(world.pushed("not yet")));
    });
    let dies = async {
        while vercel.made() < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        () = dies => {}
        applied = async { target(&vercel, json!({})).apply(&canary, us).await } => panic!("{applied:?}"),
    }
    vercel.with(World::settle);
    let target = target(&vercel, json!({}));
    target.apply(&canary, us).await.expect("applied");
    let shown = target.read(&suite::model()).await.expect("readable").expect("shown");
    let told = shown.attention.expect("something");
    assert!(told.what.ends_with("production's domain was not assigned to it."), "{}", told.what);
    assert_eq!((vercel.made(), says(&vercel).await["percent"].clone()), (2, json!("10")));
    sound(&vercel);
}

#[tokio::test]
async fn after_a_rollback_at_the_host_the_code_that_serves_is_kept() {
    let (vercel, us) = (Vercel::start(), InstanceId::generate());
    let target = target(&vercel, json!({}));
    target.apply(&release(1, "v1", None), us).await.expect("applied");
    let good = vercel.with(|world| world.serving.clone());
    vercel.with(|world| {
        world.pushed("a mistake");
        world.settle();
        assert_eq!(world.serving_commit(), "a mistake");
    });
    target.apply(&release(2, "v2", None), us).await.expect("applied");
    // The team goes back at Vercel, to code with the older model.
    vercel.with(|world| world.rolled_back_to(&good));
    let shown = target.read(&suite::model()).await.expect("readable").expect("shown").document;
    assert_eq!(
        shown.champion.map(|served| served.version.to_string()),
        Some("v1".to_owned()),
        "it is noticed"
    );
    // A decision after it changes the model, and not what the team went back to.
    target.apply(&release(3, "v3", None), us).await.expect("applied");
    vercel.with(|world| assert_eq!(world.serving_commit(), "first commit"));
    assert_eq!(says(&vercel).await["model"]["version"], "v3");
    sound(&vercel);
}

#[tokio::test]
async fn a_domain_that_leads_elsewhere_is_reported() {
    let (vercel, us) = (Vercel::start(), InstanceId::generate());
    // Without the domain it is not certain what serves, so nothing is assigned.
    let target = target(&vercel, json!({"domain": "unknown.example"}));
    vercel.with(|world| world.auto_assign = false);
    let error = target.apply(&release(1, "v1", None), us).await.expect_err("not assigned");
    assert!(
        matches!(&error, AdapterError::Conflict { .. })
            && error.to_string().contains("promote what should serve"),
        "{error}"
    );
    assert_eq!(vercel.made(), 1);
    // Somebody does: the same deployment counts.
    vercel.with(|world| world.auto_assign = true);
    target.apply(&release(1, "v1", None), us).await.expect("applied");
    assert_eq!(vercel.made(), 1);
}
