//! `kind = "vercel-config"` against an emulated Global Config, which the vendor's own clients judge.

use std::path::Path;
use std::sync::Arc;

use refit::adapter::{Deps, Target};
use refit::domain::id::InstanceId;
use refit::hosting;
use refit::secret::{Secret, Secrets};
use serde_json::{Value, json};

use super::suite::{self, Host};
use crate::artifacts;
use crate::support::node;
use crate::support::vercel::{CONFIG, READ_TOKEN, TEAM, TOKEN, Vercel};

pub fn deps() -> Deps {
    let secret = |name: &str, value: &str| (name.parse().expect("a name"), Secret::new(value));
    let secrets = [secret("VERCEL_TOKEN", TOKEN), secret("HOST_TOKEN", "host-token-55")];
    Deps { secrets: Secrets::fixed(secrets.into()), ..artifacts::deps(Path::new("/")) }
}

fn target(vercel: &Vercel, changed: Value) -> Arc<dyn Target> {
    let mut options = json!({
        "kind": "vercel-config", "config": CONFIG, "token": "VERCEL_TOKEN", "team": TEAM,
        "api": vercel.server.url,
    });
    for (key, value) in changed.as_object().into_iter().flatten() {
        options[key] = value.clone();
    }
    hosting::build(options, &deps()).expect("a target")
}

/// The contract was kept, and the token was in no address.
pub fn sound(vercel: &Vercel) {
    vercel.violations.assert_none();
    for line in vercel.server.asked() {
        assert!(!line.contains(TOKEN) && !line.contains(READ_TOKEN), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_what_every_target_promises() {
    suite::exercise(|_| {
        let vercel = Vercel::start();
        let (by_hand, checked) = (vercel.clone(), vercel.clone());
        Host {
            target: target(&vercel, json!({})),
            taking_over: target(&vercel, json!({"take_over": true})),
            overwrite: Box::new(move |text| {
                let value = serde_json::from_str(&text).unwrap_or(Value::String(text));
                by_hand.with(|world| world.set_item(CONFIG, "refit-race-times", value));
                Box::pin(async {})
            }),
            server: Some(vercel.server.clone()),
            builds: Box::new(|| 0),
            sound: Box::new(move || sound(&checked)),
        }
    })
    .await;
}

#[tokio::test]
async fn the_old_name_of_the_api_serves_too() {
    let vercel = Vercel::start();
    let target = target(&vercel, json!({"prefix": "edge-config", "team": "raceday-team"}));
    target.apply(&suite::release(1, "v1", None), InstanceId::generate()).await.expect("applied");
    let asked = vercel.server.asked();
    assert!(asked.iter().all(|line| line.contains("/v1/edge-config/") && line.contains("slug=raceday-team")));
    sound(&vercel);
}

#[tokio::test]
async fn doctor_finds_what_is_missing_and_leaves_nothing_behind() {
    let vercel = Vercel::start();
    vercel.with(|world| world.set_item(CONFIG, "greeting", json!("hello")));
    insta::assert_snapshot!(
        target(&vercel, json!({})).check().await.expect("usable"),
        @"Vercel Global Config ecfg_raceday can be read and written (1 items); releases go to refit-{model}"
    );
    vercel.with(|world| assert_eq!(world.configs[CONFIG].items.len(), 1));

    let why =
        async |changed: Value| target(&vercel, changed).check().await.expect_err("unusable").to_string();
    insta::assert_snapshot!(why(json!({"team": "team_other"})).await, @r#"Vercel refused to list the items: 403 Forbidden: {"error":{"code":"forbidden","message":"You don't have permission to access this team."}}"#);
    insta::assert_snapshot!(why(json!({"team": null})).await, @r#"Vercel refused to list the items: 403 Forbidden: {"error":{"code":"forbidden","message":"Not authorized: the project belongs to a team."}} (a project of a team needs `team`)"#);
    insta::assert_snapshot!(why(json!({"config": "ecfg_none"})).await, @r#"Vercel could not list the items: 404 Not Found: {"error":{"code":"not_found","message":"Global Config not found"}} (is its name right, and `team`?)"#);
    vercel.with(|world| world.token = "another".to_owned());
    let expired = why(json!({})).await;
    assert!(expired.contains("Not authorized: Bearer ***"), "{expired}");
    assert!(!expired.contains(TOKEN), "{expired}");
    sound(&vercel);
}

#[tokio::test]
async fn a_limit_that_lasts_is_left_to_the_step() {
    let vercel = Vercel::start();
    let target = target(&vercel, json!({}));
    let limited = crate::support::faults::Fault::Answer(429, vec![("retry-after", "90")], String::new());
    vercel.server.fault_after(0, limited);
    let error = target.read(&suite::model()).await.expect_err("busy");
    assert!(
        matches!(error, refit::adapter::AdapterError::Unavailable { retry_after: Some(wait), .. } if wait.as_secs() == 90)
    );
    assert_eq!(vercel.server.count(), 1);
}

/// The vendor's own clients read what refit wrote.
#[tokio::test(flavor = "multi_thread")]
async fn the_vendors_clients_read_what_refit_wrote() {
    let vercel = Vercel::start();
    let (target, us) = (target(&vercel, json!({})), InstanceId::generate());
    let release = suite::release(7, "v1", Some(("v2", 1_000)));
    target.apply(&release, us).await.expect("applied");
    let module = "
        import { createClient } from '@vercel/global-config';
        import { Vercel } from '@vercel/sdk';
        const app = createClient(process.env.CONNECTION);
        const seen = await app.get('refit-race-times');
        const missing = await app.get('nothing') ?? null;
        const sdk = new Vercel({ bearerToken: process.env.TOKEN, serverURL: process.env.API });
        const where = { edgeConfigId: process.env.CONFIG, teamId: process.env.TEAM };
        const key = 'refit-race-times';
        const item = await sdk.globalConfig.getEdgeConfigItem({ ...where, edgeConfigItemKey: key });
        const all = await sdk.globalConfig.getEdgeConfigItems(where);
        console.log(JSON.stringify({ seen, missing, item: item.value, all: all.length }));
    ";
    let env = [
        ("CONNECTION", format!("{}/{CONFIG}?token={READ_TOKEN}", vercel.server.url)),
        ("TOKEN", TOKEN.to_owned()),
        ("API", vercel.server.url.clone()),
        ("CONFIG", CONFIG.to_owned()),
        ("TEAM", TEAM.to_owned()),
    ];
    let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let said = node::run(module, &env).await;
    assert_eq!(said["seen"], json!(release.document(us)), "{said}");
    assert_eq!(said["item"], said["seen"], "{said}");
    assert_eq!((&said["missing"], &said["all"]), (&Value::Null, &json!(1)), "{said}");
    vercel.violations.assert_none();
}
