//! `kind = "vercel"` against an emulated Vercel: variables, builds, and an app that says its version.

use std::sync::Arc;

use refit::adapter::{AdapterError, Target};
use refit::domain::id::InstanceId;
use refit::domain::release::Release;
use refit::hosting;
use serde_json::{Value, json};

use super::suite::{self, Host, release};
use super::vercel_config::{deps, sound};
use crate::support::faulty_server::Fault;
use crate::support::node;
use crate::support::vercel::{Build, DOMAIN, ListShape, NAME, PROJECT, TEAM, TOKEN, Vercel};

fn target(vercel: &Vercel, changed: Value) -> Arc<dyn Target> {
    let mut options = json!({
        "kind": "vercel", "project": PROJECT, "token": "VERCEL_TOKEN", "team": TEAM, "domain": DOMAIN,
        "api": vercel.server.url, "verify": {"url": vercel.verify_url(), "path": "model.version"},
        "poll": "1ms", "verify_within": "300ms", "wait_at_most": "20s",
    });
    for (key, value) in changed.as_object().into_iter().flatten() {
        options[key] = value.clone();
    }
    hosting::build(options, &deps()).expect("a target")
}

fn values(vercel: &Vercel) -> [String; 3] {
    let names = ["MODEL_VERSION", "MODEL_VERSION_CANARY", "CANARY_PERCENT"];
    vercel.with(|world| names.map(|name| world.value(name).unwrap_or("-").to_owned()))
}

/// What the app says.
async fn says(vercel: &Vercel) -> Value {
    reqwest::get(vercel.verify_url()).await.expect("an answer").json().await.expect("JSON")
}

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_what_every_target_promises() {
    suite::exercise(|_| {
        let vercel = Vercel::start();
        let (by_hand, counted, checked) = (vercel.clone(), vercel.clone(), vercel.clone());
        Host {
            target: target(&vercel, json!({})),
            taking_over: target(&vercel, json!({"take_over": true})),
            overwrite: Box::new(move |text| {
                let document: Option<Value> = serde_json::from_str(&text).ok();
                let hotfix = document.and_then(|it| Some(it["champion"]["version"].as_str()?.to_owned()));
                by_hand.with(|world| match hotfix.filter(|version| version == "hotfix") {
                    Some(version) => world.set("MODEL_VERSION", &version),
                    None => world.set("REFIT_RELEASE", &text),
                });
                Box::pin(async {})
            }),
            server: Some(vercel.server.clone()),
            builds: Box::new(move || counted.made()),
            sound: Box::new(move || sound(&checked)),
        }
    })
    .await;
}

#[tokio::test]
async fn a_change_is_done_when_the_app_says_so() {
    let (vercel, us) = (Vercel::start(), InstanceId::generate());
    let target = target(&vercel, json!({}));
    assert!(!target.traits().instant && !target.traits().expires);
    target.apply(&release(1, "v1", None), us).await.expect("applied");
    assert_eq!(values(&vercel), ["v1", "v1", "0"]);
    target.apply(&release(2, "v1", Some(("v2", 250))), us).await.expect("applied");
    assert_eq!(values(&vercel), ["v1", "v2", "2.5"]);
    let app = says(&vercel).await;
    assert_eq!((&app["canary"], &app["percent"]), (&json!("v2"), &json!("2.5")), "{app}");
    target.apply(&release(3, "v2", None), us).await.expect("applied");
    assert_eq!(values(&vercel), ["v2", "v2", "0"]);
    assert_eq!(says(&vercel).await["model"]["version"], "v2");
    assert_eq!(vercel.made(), 3);
    // A generation that changes nothing for the app builds nothing.
    target.apply(&release(4, "v2", None), us).await.expect("applied");
    assert_eq!(vercel.made(), 3);
    let shown = target.read(&suite::model()).await.expect("readable").expect("shown");
    assert_eq!(shown.document.generation.0, 4);
    sound(&vercel);
}

#[tokio::test]
async fn every_prefix_of_the_writes_is_safe_for_a_deployment_that_takes_it() {
    let first = release(1, "v1", None);
    let begun = [first.clone(), release(2, "v1", Some(("v2", 1_000)))];
    let stories: [(&[_], _, &[[&str; 3]]); 5] = [
        (&begun[..1], release(2, "v1", Some(("v2", 1_000))), &[["v1", "v2", "0"], ["v1", "v2", "10"]]),
        (&begun[..1], release(2, "v1", Some(("v3", 0))), &[["v1", "v3", "0"]]),
        (&begun, release(3, "v1", Some(("v2", 5_000))), &[["v1", "v2", "50"]]),
        (&begun, release(3, "v1", None), &[["v1", "v2", "0"], ["v1", "v1", "0"]]),
        (&begun, release(3, "v2", None), &[["v1", "v2", "0"], ["v2", "v2", "0"]]),
    ];
    for (before, change, expected) in stories {
        assert_eq!(prefixes(before, &change).await, expected);
    }
}

/// What the variables say after each request of a change.
async fn prefixes(before: &[Release], change: &Release) -> Vec<[String; 3]> {
    let (us, mut seen, mut began) = (InstanceId::generate(), vec![], None);
    for at in 0.. {
        let vercel = Vercel::start();
        let target = target(&vercel, json!({}));
        for earlier in before {
            target.apply(earlier, us).await.expect("applied");
        }
        let began = began.get_or_insert_with(|| values(&vercel));
        vercel.server.fault_after(at, Fault::StopAfter);
        let done = tokio::select! {
            applied = target.apply(change, us) => applied.is_ok(),
            () = vercel.server.stopped() => false,
        };
        let now = values(&vercel);
        if seen.last().unwrap_or(began) != &now {
            seen.push(now);
        }
        if done {
            break;
        }
    }
    seen
}

#[tokio::test]
async fn every_answer_of_the_list_is_understood() {
    let us = InstanceId::generate();
    for shape in [ListShape::Envs, ListShape::Paginated, ListShape::Single] {
        let vercel = Vercel::start();
        vercel.with(|world| {
            world.shape = shape;
            world.set("MODEL_VERSION", "v0");
        });
        let target = target(&vercel, json!({"project": NAME}));
        target.apply(&release(1, "v1", None), us).await.expect("applied");
        assert_eq!(values(&vercel), ["v1", "v1", "0"], "{shape:?}");
        sound(&vercel);
    }
}

#[tokio::test]
async fn a_variable_of_several_environments_is_changed_and_not_doubled() {
    let vercel = Vercel::start();
    vercel.with(|world| {
        world.set("MODEL_VERSION", "v0");
        world.variables[0].targets = vec!["production".to_owned(), "preview".to_owned()];
        world.variables[0].kind = "encrypted".to_owned();
    });
    let target = target(&vercel, json!({}));
    target.apply(&release(1, "v1", None), InstanceId::generate()).await.expect("applied");
    vercel.with(|world| {
        let all: Vec<_> = world.variables.iter().filter(|it| it.key == "MODEL_VERSION").collect();
        assert_eq!((all.len(), all[0].value.as_str(), all[0].targets.len()), (1, "v1", 2));
    });
    sound(&vercel);
}

#[tokio::test]
async fn what_cannot_be_read_back_or_was_not_written_is_an_error() {
    let us = InstanceId::generate();
    let vercel = Vercel::start();
    vercel.with(|world| {
        world.set("CANARY_PERCENT", "0");
        world.variables[0].kind = "sensitive".to_owned();
    });
    let error = target(&vercel, json!({})).apply(&release(1, "v1", None), us).await.expect_err("unreadable");
    insta::assert_snapshot!(error, @r#"Vercel project prj_raceday could not read `CANARY_PERCENT`: it is `sensitive`, which nobody can read back: remove it, refit makes it anew as `plain`; where the team's policy allows no readable ones, take `kind = "vercel-config"`"#);

    let vercel = Vercel::start();
    vercel.with(|world| world.fail_create = Some("MAX_ENVS_EXCEEDED"));
    let error = target(&vercel, json!({})).apply(&release(1, "v1", None), us).await.expect_err("refused");
    insta::assert_snapshot!(error, @"Vercel project prj_raceday could not write `REFIT_RELEASE`: MAX_ENVS_EXCEEDED: It was not created.");

    // Somebody was faster with the same name: looked at again, it works.
    let vercel = Vercel::start();
    vercel.with(|world| world.fail_create = Some("ENV_CONFLICT"));
    let target = target(&vercel, json!({}));
    let error = target.apply(&release(1, "v1", None), us).await.expect_err("refused");
    assert!(error.is_transient(), "{error}");
    target.apply(&release(1, "v1", None), us).await.expect("applied");
    assert_eq!(vercel.made(), 1);
    sound(&vercel);
}

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
async fn an_app_that_does_not_say_the_version_is_not_done() {
    let (vercel, us) = (Vercel::start(), InstanceId::generate());
    let wrong = json!({"verify": {"url": vercel.verify_url(), "path": "commit"}});
    let error = target(&vercel, wrong).apply(&release(1, "v1", None), us).await.expect_err("not said");
    insta::assert_snapshot!(error, @"Vercel project prj_raceday is unavailable: the new deployment serves, but the app says first commit, not v1");
    assert_eq!(target(&vercel, json!({})).read(&suite::model()).await, Ok(None), "not confirmed");
    target(&vercel, json!({})).apply(&release(1, "v1", None), us).await.expect("said");
    assert_eq!(vercel.made(), 1);
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
        world.after_deploy = Some(crate::support::vercel::World::settle);
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
        world.after_deploy = Some(crate::support::vercel::World::settle);
    });
    target.apply(&release(2, "v1", Some(("v2", 1_000))), us).await.expect("applied");
    vercel.with(|world| assert_eq!(world.serving_commit(), "first commit"));
    assert_eq!((says(&vercel).await["percent"].clone(), vercel.made()), (json!("10"), 2));
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

#[tokio::test]
async fn what_somebody_set_by_hand_is_kept_and_the_canary_goes_all_the_same() {
    let (vercel, us) = (Vercel::start(), InstanceId::generate());
    let target = target(&vercel, json!({}));
    target.apply(&release(1, "v1", None), us).await.expect("applied");
    target.apply(&release(2, "v1", Some(("v2", 1_000))), us).await.expect("applied");
    vercel.with(|world| world.set("MODEL_VERSION", "v0"));
    let promote = target.apply(&release(3, "v2", None), us).await;
    insta::assert_snapshot!(
        promote.expect_err("by hand"),
        @"Vercel project prj_raceday was changed by somebody else: `MODEL_VERSION` says v0, not v1 as refit wrote at generation 2: set it back, or promote that version by hand"
    );
    assert_eq!(values(&vercel), ["v0", "v0", "0"], "the canary is off, the rest is kept");
    assert_eq!(says(&vercel).await["model"]["version"], "v0");
    // Promoting what was set makes it refit's.
    target.apply(&release(4, "v0", None), us).await.expect("applied");
    target.apply(&release(5, "v2", None), us).await.expect("applied");
    assert_eq!(values(&vercel), ["v2", "v2", "0"]);
    sound(&vercel);
}

#[tokio::test]
async fn a_version_that_does_not_answer_gets_no_traffic() {
    let (vercel, us) = (Vercel::start(), InstanceId::generate());
    let smoke =
        json!({"smoke": {"url": format!("{}/${{{{ version }}}}/item/ready?token=x", vercel.server.url)}});
    let target = target(&vercel, smoke);
    let error = target.apply(&release(1, "v1", None), us).await.expect_err("not ready");
    assert!(error.to_string().starts_with("the smoke check refused to answer for v1: 401"), "{error}");
    assert_eq!((values(&vercel), vercel.made()), (["-", "-", "-"].map(str::to_owned), 0));
}

#[tokio::test]
async fn doctor_says_what_serves_and_what_is_missing() {
    let vercel = Vercel::start();
    let said = target(&vercel, json!({})).check().await.expect("usable");
    let said = said.replace(&vercel.with(|world| world.serving.clone()), "dpl_1");
    insta::assert_snapshot!(said, @"Vercel project prj_raceday can be read and written; dpl_1 serves, the app says version built-in; a change takes about 5 min");
    assert!(vercel.with(|world| world.variables.is_empty()), "nothing is left behind");
    let why =
        async |changed: Value| target(&vercel, changed).check().await.expect_err("unusable").to_string();
    assert!(why(json!({"team": "team_other"})).await.contains("permission to access this team"));
    assert!(why(json!({"team": null})).await.ends_with("(a project of a team needs `team`)"));
    vercel.with(|world| world.token = "a new one".to_owned());
    let expired = why(json!({})).await;
    assert!(expired.contains("Bearer ***") && !expired.contains(TOKEN), "{expired}");
    sound(&vercel);
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let refused = |changed: Value| {
        let mut options = json!({
            "kind": "vercel", "project": PROJECT, "token": "VERCEL_TOKEN",
            "verify": {"url": "https://raceday.example/api/model", "path": "version"},
        });
        for (key, value) in changed.as_object().into_iter().flatten() {
            options[key] = value.clone();
        }
        match hosting::build(options, &deps()) {
            Ok(_) => panic!("built"),
            Err(error) => error.to_string(),
        }
    };
    insta::assert_snapshot!(refused(json!({"verify": {"url": "https://x.example"}})), @"vercel: `verify` needs `path`: where in its answer the app says the version");
    insta::assert_snapshot!(refused(json!({"variables": {"canary": "MODEL_VERSION"}})), @"vercel: `variables` are four different names of letters, digits and `_`");
    insta::assert_snapshot!(refused(json!({"verify": {"url": "https://x.example/${{ secrets.T }}", "path": "v"}})), @"vercel: `secrets.T` cannot stand in an address: only `version`, `model` and `base_url`");
    insta::assert_snapshot!(refused(json!({"token": "NOT_SET_ANYWHERE"})), @"secret `NOT_SET_ANYWHERE` is not set: put it into the environment, or name a file for it under [secrets] in refit.toml");
    insta::assert_snapshot!(refused(json!({"poll": "soon"})), @"vercel: write a number and a unit, such as `30m`, `24h`, `7d` or `1h30m`");
}

/// The vendor's own client reads what refit wrote, and judges the emulator's answers by its own types.
#[tokio::test(flavor = "multi_thread")]
async fn the_vendors_client_reads_what_refit_wrote() {
    let (vercel, us) = (Vercel::start(), InstanceId::generate());
    let target = target(&vercel, json!({}));
    target.apply(&release(1, "v1", None), us).await.expect("applied");
    target.apply(&release(2, "v1", Some(("v2", 1_000))), us).await.expect("applied");
    let module = "
        import { Vercel } from '@vercel/sdk';
        const sdk = new Vercel({ bearerToken: process.env.TOKEN, serverURL: process.env.API });
        const teamId = process.env.TEAM, idOrName = process.env.PROJECT;
        const { envs } = await sdk.projects.filterProjectEnvs({ idOrName, teamId });
        const values = Object.fromEntries(envs.map(({ key, value }) => [key, value]));
        const newest = await sdk.deployments.getDeployment({ idOrUrl: process.env.DOMAIN, teamId });
        const id = envs.find(({ key }) => key === 'CANARY_PERCENT').id;
        const edited = await sdk.projects.editProjectEnv({ idOrName, id, teamId, requestBody: { value: '0' } });
        const refused = await sdk.projects.createProjectEnv({ idOrName, teamId, requestBody:
            { key: 'MODEL_VERSION', value: 'x', type: 'plain', target: ['production'] } })
            .then(() => 'created', error => error.statusCode);
        const listed = await sdk.deployments.getDeployments({ projectId: idOrName, target: 'production', teamId });
        const rows = listed.deployments.map(({ uid, readyState, meta }) => [uid === newest.id, readyState, meta?.refitFrom]);
        console.log(JSON.stringify({ values, rows, state: newest.readyState, sub: newest.readySubstate, meta: newest.meta,
            edited: edited.value, refused }));
    ";
    let env = [
        ("TOKEN", TOKEN),
        ("API", vercel.server.url.as_str()),
        ("TEAM", TEAM),
        ("PROJECT", PROJECT),
        ("DOMAIN", DOMAIN),
    ];
    let said = node::run(module, &env).await;
    assert_eq!(said["values"]["MODEL_VERSION_CANARY"], "v2", "{said}");
    assert_eq!(said["values"]["CANARY_PERCENT"], "10", "{said}");
    assert_eq!((&said["state"], &said["sub"]), (&json!("READY"), &json!("PROMOTED")), "{said}");
    assert_eq!(said["meta"]["refitRelease"], format!("{us}/race-times/2"), "{said}");
    let rows = said["rows"].as_array().expect("rows");
    assert_eq!((rows.len(), &rows[0][0], &rows[0][1]), (3, &json!(true), &json!("READY")), "{said}");
    assert!(rows[0][2].is_string() && rows[2][2].is_null(), "{said}");
    assert_eq!((&said["edited"], &said["refused"]), (&json!("0"), &json!(400)), "{said}");
    // What the client changed is noticed.
    let error = target.apply(&release(2, "v1", Some(("v2", 1_000))), us).await.expect_err("changed");
    assert!(error.to_string().contains("`CANARY_PERCENT` says 0, not 10"), "{error}");
}
