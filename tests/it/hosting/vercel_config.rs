//! `kind = "vercel-config"` against an emulated Global Config, which the vendor's own clients judge.

use std::path::Path;
use std::sync::Arc;

use refit::adapter::{Deps, Target};
use refit::domain::id::InstanceId;
use refit::hosting;
use refit::secret::{Secret, Secrets};
use serde_json::{Value, json};

use super::suite::{self, EXPIRED, Host, Line, Refused};
use crate::artifacts;
use crate::support::node;
use crate::support::vercel::{CONFIG, READ_TOKEN, TEAM, TOKEN, Vercel};

pub fn deps() -> Deps {
    deps_with(TOKEN, "host-token-55")
}

/// The same, with tokens that no host knows any more.
pub fn expired_deps() -> Deps {
    deps_with(EXPIRED, EXPIRED)
}

fn deps_with(vercel: &str, host: &str) -> Deps {
    let secret = |name: &str, value: &str| (name.parse().expect("a name"), Secret::new(value));
    let secrets = [secret("VERCEL_TOKEN", vercel), secret("HOST_TOKEN", host)];
    Deps { secrets: Secrets::fixed(secrets.into()), ..artifacts::deps(Path::new("/")) }
}

/// Whom Vercel does not let in; `target` is told what is changed in its options, and who asks.
pub fn refused(target: impl Fn(Value, Deps) -> Arc<dyn Target>) -> Vec<Refused> {
    let refused = |who, changed, deps, todo| Refused { who, target: target(changed, deps), todo };
    vec![
        refused(
            "an expired token",
            json!({}),
            expired_deps(),
            r#"Not authorized: Bearer ***","invalidToken":true}} (set a token that is valid in the secret `VERCEL_TOKEN`)"#,
        ),
        refused(
            "another team",
            json!({"team": "team_other"}),
            deps(),
            "access this team.\"}} (set `team`, which is `team_other`, to the team that owns it, or take a token that \
             may act for that team)",
        ),
        refused(
            "a token without its team",
            json!({"team": null}),
            deps(),
            r#"belongs to a team."}} (a project of a team needs `team`)"#,
        ),
    ]
}

fn target(vercel: &Vercel, changed: Value) -> Arc<dyn Target> {
    target_of(vercel, changed, deps())
}

fn target_of(vercel: &Vercel, changed: Value, deps: Deps) -> Arc<dyn Target> {
    let mut options = json!({
        "kind": "vercel-config", "config": CONFIG, "token": "VERCEL_TOKEN", "team": TEAM,
        "api": vercel.server.url,
    });
    for (key, value) in changed.as_object().into_iter().flatten() {
        options[key] = value.clone();
    }
    hosting::build(options, &deps).expect("a target")
}

/// The contract was kept, and the token was in no address.
pub fn sound(vercel: &Vercel) {
    vercel.violations.assert_none();
    for line in vercel.server.asked() {
        assert!(!line.contains(TOKEN) && !line.contains(READ_TOKEN), "{line}");
    }
}

fn host(vercel: Vercel) -> Host {
    let (by_hand, checked) = (vercel.clone(), vercel.clone());
    Host {
        target: target(&vercel, json!({})),
        taking_over: target(&vercel, json!({"take_over": true})),
        overwrite: Box::new(move |text| {
            let value = serde_json::from_str(&text).unwrap_or(Value::String(text));
            by_hand.with(|world| world.set_item(CONFIG, "refit-race-times", value));
            Box::pin(async {})
        }),
        refused: refused(|changed, deps| target_of(&vercel, changed, deps)),
        builds: Box::new(|| 0),
        sound: Box::new(move || sound(&checked)),
        line: Some(Line { server: vercel.server.clone(), again: Box::new(move || host(vercel.again())) }),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_what_every_target_promises() {
    suite::exercise(|_| host(Vercel::start())).await;
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

    let elsewhere = target(&vercel, json!({"config": "ecfg_none"})).check().await.expect_err("unusable");
    insta::assert_snapshot!(elsewhere, @r#"Vercel could not list the items: 404 Not Found: {"error":{"code":"not_found","message":"Global Config not found"}} (is its name right, and `team`?)"#);
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
