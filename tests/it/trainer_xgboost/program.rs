//! The first version, by the program as people run it.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::shop::Shop;

/// Runs the program in the shop, with nothing in its environment but a path; answers with exit code and JSON.
fn refit(shop: &Shop, args: &[&str], input: &str) -> (Option<i32>, Value) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_refit"))
        .args(args)
        .arg("--json")
        .current_dir(shop.root())
        .env_clear()
        .envs([("PATH", "/usr/local/bin:/usr/bin:/bin"), ("USER", "sam")])
        .env("HOME", shop.root())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("taken");
    let output = child.wait_with_output().expect("it ends");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let value = serde_json::from_str(&stdout)
        .unwrap_or_else(|_| panic!("refit {args:?}: {stdout}{}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code(), value)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_version_of_a_team_is_trained_published_and_promoted() {
    let shop = Shop::new().await;
    let (code, found) = refit(&shop, &["validate"], "");
    assert_eq!((code, &found["errors"], &found["warnings"]), (Some(0), &json!(0), &json!(0)), "{found}");

    let (code, run) = refit(&shop, &["trigger", "retrain", "-i", "weeks=10", "--follow", "--yes"], "");
    assert_eq!((code, &run["outcome"]), (Some(0), &json!("promoted")), "{run}");
    let (_, shown) = refit(&shop, &["run", "show", run["run"].as_str().expect("an id")], "");
    assert_eq!(shown["outcome"], "promoted");

    let champion = shop.champion().await;
    let (_, models) = refit(&shop, &["model", "ls"], "");
    assert_eq!(models[0]["version"], champion.version.as_str());
    assert_eq!(models[0]["run"], run["run"]);
    assert_eq!(
        models[0]["metrics"]["values"],
        json!({"mae": 10.38, "r2": 0.9351}),
        "the worst airport counts"
    );

    let line = json!({"request_id": "1", "version": champion.version, "ok": true, "latency_ms": 9});
    let (code, taken) = refit(&shop, &["observe", "air-time"], &format!("{line}\n"));
    assert_eq!(code, Some(0), "{taken}");

    let (mails, slack) = (shop.mails(), shop.slack().await);
    let subject = format!("air-time {} was promoted", champion.version);
    assert_eq!(mails.len(), 1, "{mails:?}");
    assert_eq!((mails[0].0.as_str(), &mails[0].1), ("team@example.com", &subject));
    assert!(mails[0].2.contains("  mae   10.38") && mails[0].2.contains("mae is 10.38"), "{}", mails[0].2);
    assert_eq!(slack.len(), 1, "{slack:?}");
    assert_eq!(slack[0].0, subject);
}
