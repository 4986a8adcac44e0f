//! `kind = "vercel"` against an emulated Vercel: variables, builds, and an app that says its version.

mod deployments;
mod variables;

use std::sync::Arc;

use refit::adapter::{Deps, Target};
use refit::domain::id::InstanceId;
use refit::hosting;
use serde_json::{Value, json};

use super::suite::{self, Host, Line, release};
use super::vercel_config::{deps, refused, sound};
use crate::support::node;
use crate::support::vercel::{DOMAIN, PROJECT, TEAM, TOKEN, Vercel};

fn target(vercel: &Vercel, changed: Value) -> Arc<dyn Target> {
    target_of(vercel, changed, deps())
}

fn target_of(vercel: &Vercel, changed: Value, deps: Deps) -> Arc<dyn Target> {
    let mut options = json!({
        "kind": "vercel", "project": PROJECT, "token": "VERCEL_TOKEN", "team": TEAM, "domain": DOMAIN,
        "api": vercel.server.url, "verify": {"url": vercel.verify_url(), "path": "model.version"},
        "poll": "1ms", "verify_within": "300ms", "wait_at_most": "20s",
    });
    for (key, value) in changed.as_object().into_iter().flatten() {
        options[key] = value.clone();
    }
    hosting::build(options, &deps).expect("a target")
}

fn values(vercel: &Vercel) -> [String; 3] {
    let names = ["MODEL_VERSION", "MODEL_VERSION_CANARY", "CANARY_PERCENT"];
    vercel.with(|world| names.map(|name| world.value(name).unwrap_or("-").to_owned()))
}

/// What the app says.
async fn says(vercel: &Vercel) -> Value {
    reqwest::get(vercel.verify_url()).await.expect("an answer").json().await.expect("JSON")
}

fn host(vercel: Vercel) -> Host {
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
        refused: refused(|changed, deps| target_of(&vercel, changed, deps)),
        builds: Box::new(move || counted.made()),
        sound: Box::new(move || sound(&checked)),
        line: Some(Line { server: vercel.server.clone(), again: Box::new(move || host(vercel.again())) }),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_what_every_target_promises() {
    suite::exercise(|_| host(Vercel::start())).await;
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
async fn doctor_says_what_serves_and_leaves_nothing_behind() {
    let vercel = Vercel::start();
    let said = target(&vercel, json!({})).check().await.expect("usable");
    let said = said.replace(&vercel.with(|world| world.serving.clone()), "dpl_1");
    insta::assert_snapshot!(said, @"Vercel project prj_raceday can be read and written; dpl_1 serves, the app says version built-in; a change takes about 5 min");
    assert!(vercel.with(|world| world.variables.is_empty()));
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
