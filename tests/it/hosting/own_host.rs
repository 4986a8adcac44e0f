//! `kind = "http"` and `kind = "command"`: hosts of the team's own.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use refit::adapter::{Deps, Target};
use refit::domain::id::InstanceId;
use refit::hosting;
use refit::trainers::command::GuardCommand;
use serde_json::{Value, json};

use super::suite::{self, Host, Line, Refused, release};
use super::vercel_config::{deps, expired_deps};
use crate::artifacts;
use crate::support::faults::{Fault, Rule, Server};

/// A host that keeps what it is told, beside other things.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<BTreeMap<String, String>>>);

impl Kept {
    /// Another one that keeps the same.
    fn again(&self) -> Self {
        Self(Arc::new(Mutex::new(self.0.lock().unwrap().clone())))
    }

    fn router(&self) -> Router {
        Router::new()
            .route("/models/{model}", get(Self::show).put(Self::put))
            .route("/models/{model}/version", get(Self::version))
            .with_state(self.clone())
    }

    fn etag(text: &str) -> String {
        format!(
            "\"{}-{:x}\"",
            text.len(),
            text.bytes().fold(7u64, |hash, byte| hash.wrapping_mul(31) ^ u64::from(byte))
        )
    }

    async fn show(
        State(Kept(all)): State<Kept>,
        UrlPath(model): UrlPath<String>,
        headers: HeaderMap,
    ) -> Response {
        let token = headers.get("authorization").and_then(|token| token.to_str().ok()).unwrap_or_default();
        if token != "Bearer host-token-55" {
            return (StatusCode::UNAUTHORIZED, format!("your {token} is expired")).into_response();
        }
        match all.lock().unwrap().get(&model) {
            None => StatusCode::NOT_FOUND.into_response(),
            Some(text) => {
                let release = serde_json::from_str(text).ok().filter(|release: &Value| !release.is_null());
                let release = release.unwrap_or(Value::String(text.clone()));
                ([("etag", Self::etag(text))], Json(json!({"data": {"release": release}}))).into_response()
            }
        }
    }

    async fn put(
        State(Kept(all)): State<Kept>,
        UrlPath(model): UrlPath<String>,
        headers: HeaderMap,
        body: Bytes,
    ) -> Response {
        let mut all = all.lock().unwrap();
        let there = all.get(&model).map(|text| Self::etag(text));
        let wanted = headers.get("if-match").and_then(|etag| etag.to_str().ok()).map(ToOwned::to_owned);
        if wanted.is_some() != there.is_some() || wanted != there {
            return StatusCode::PRECONDITION_FAILED.into_response();
        }
        let body: Value = serde_json::from_slice(&body).expect("JSON");
        all.insert(model, body["release"].to_string());
        StatusCode::NO_CONTENT.into_response()
    }

    async fn version(State(Kept(all)): State<Kept>, UrlPath(model): UrlPath<String>) -> Response {
        let all = all.lock().unwrap();
        let document: Value =
            all.get(&model).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        Json(json!({"version": document["champion"]["version"]})).into_response()
    }
}

fn http_options(server: &Server) -> Value {
    let url = format!("{}/models/${{{{ model }}}}", server.url);
    let headers = json!({"Authorization": "Bearer ${{ secrets.HOST_TOKEN }}"});
    json!({
        "kind": "http", "instant": true, "expires": true, "if_match": true, "document": "data.release",
        "read": {"url": url, "headers": headers},
        "apply": {"url": url, "headers": headers, "expect": [204],
            "body": {"release": "${{ release }}", "percent": "${{ percent }}", "note": "${{ version }} by refit"}},
        "verify": {"url": format!("{url}/version"), "path": "version"}, "verify_within": "100ms",
    })
}

fn asked_over_http(kept: Kept) -> Host {
    let server = Server::start(kept.router());
    let options = http_options(&server);
    let mut taking_over = options.clone();
    taking_over["take_over"] = json!(true);
    let refused = Refused {
        who: "an expired token",
        target: hosting::build(options.clone(), &expired_deps()).expect("a target"),
        todo: "your Bearer *** is expired (set a value that is valid there, and may do this, in the secret `HOST_TOKEN`)",
    };
    let (checked, by_hand) = (server.clone(), kept.clone());
    Host {
        target: hosting::build(options, &deps()).expect("a target"),
        taking_over: hosting::build(taking_over, &deps()).expect("a target"),
        overwrite: Box::new(move |text| {
            by_hand.0.lock().unwrap().insert("race-times".to_owned(), text);
            Box::pin(async {})
        }),
        refused: vec![refused],
        builds: Box::new(|| 0),
        sound: Box::new(move || assert!(!checked.asked().concat().contains("host-token-55"))),
        line: Some(Line { server, again: Box::new(move || asked_over_http(kept.again())) }),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_asked_over_http_keeps_what_every_target_promises() {
    suite::exercise(|_| asked_over_http(Kept::default())).await;
}

#[tokio::test]
async fn a_value_stays_a_value_whatever_it_holds() {
    let kept = Kept::default();
    let server = Server::start(kept.router());
    let target = hosting::build(http_options(&server), &deps()).expect("a target");
    let mut odd = release(1, "v1", None);
    let champion = odd.desired.champion.as_mut().expect("a champion");
    champion.base_url = "https://x/\"}, \"admin\": {\"a\":\"\\ ${{ secrets.HOST_TOKEN }} \r\n".to_owned();
    let us = InstanceId::generate();
    target.apply(&odd, us).await.expect("applied");
    let shown = target.read(&suite::model()).await.expect("readable").expect("shown");
    assert_eq!(shown.document, odd.document(us));
}

#[test]
fn templates_that_make_no_sense_are_refused() {
    let refused = |key: &str, value: Value| {
        let mut options = json!({
            "kind": "http", "instant": true,
            "read": {"url": "https://host.example/"}, "apply": {"url": "https://host.example/"},
        });
        options["apply"][key] = value;
        match hosting::build(options, &deps()) {
            Ok(_) => panic!("built"),
            Err(error) => error.to_string(),
        }
    };
    insta::assert_snapshot!(refused("url", json!("https://x/${{ secrets.HOST_TOKEN }}")), @"http: secrets may stand in `headers` only");
    insta::assert_snapshot!(refused("body", json!({"a": ["${{ secrets.HOST_TOKEN }}"]})), @"http: secrets may stand in `headers` only");
    insta::assert_snapshot!(refused("body", json!("${{ relase }}")), @"http: there is no `relase`; there are model, generation, instance, version, canary, percent, release");
    insta::assert_snapshot!(refused("headers", json!({"X": "${{ secrets.NOT_SET_ANYWHERE }}"})), @"secret `NOT_SET_ANYWHERE` is not set: put it into the environment, or name a file for it under [secrets] in refit.toml");
    insta::assert_snapshot!(refused("method", json!("GET IT")), @"http: `GET IT` is not a method");
    insta::assert_snapshot!(refused("heders", json!({})), @"http: unknown field `heders`, expected one of `method`, `url`, `headers`, `body`, `expect`");
}

#[tokio::test]
async fn doctor_says_what_is_seen_only_at_the_first_change() {
    let server = Server::start(Kept::default().router());
    let target = hosting::build(http_options(&server), &deps()).expect("a target");
    insta::assert_snapshot!(
        target.check().await.expect("readable"),
        @"127.0.0.1 can be read; whether it may be written is seen at the first change"
    );
    // A token that may read only, and one that nobody asked for.
    let us = InstanceId::generate();
    server.fault(Rule::on(Fault::Answer(403, vec![], "read only".to_owned()), |request| {
        request.method == "PUT"
    }));
    let error = target.apply(&release(1, "v1", None), us).await.expect_err("refused");
    insta::assert_snapshot!(error, @"127.0.0.1 refused to write the release: 403 Forbidden: read only (set a value that is valid there, and may do this, in the secret `HOST_TOKEN`)");
    let mut open = http_options(&server);
    open["read"]["headers"] = json!({});
    let error =
        hosting::build(open, &deps()).expect("a target").read(&suite::model()).await.expect_err("refused");
    assert!(
        error.to_string().ends_with("(its `headers` carry no secret: does the host ask for one?)"),
        "{error}"
    );
}

/// A host's program that knows who it serves, and says in its own words what is to be done.
const KNOWS: &str = r#"[ "$HOST_TOKEN" = host-token-55 ] || { echo "$HOST_TOKEN ran out: log in with hostctl" >&2; exit 77; }; "#;
const READ: &str = r#"[ ! -e "$DIR/$REFIT_MODEL" ] || cat "$DIR/$REFIT_MODEL""#;
const APPLY: &str = r#"cat > "$DIR/new" && [ -n "$REFIT_VERSION" ] && mv "$DIR/new" "$DIR/$REFIT_MODEL""#;

fn programs(dir: &Path, changed: Value) -> Arc<dyn Target> {
    programs_of(dir, changed, deps())
}

fn programs_of(dir: &Path, changed: Value, Deps { secrets, .. }: Deps) -> Arc<dyn Target> {
    let (read, apply) = (format!("{KNOWS}{READ}"), format!("{KNOWS}{APPLY}"));
    let mut options = json!({
        "read": ["sh", "-c", read], "apply": ["sh", "-c", apply], "instant": true, "expires": true,
        "env": {"DIR": dir}, "secrets": ["HOST_TOKEN"],
    });
    for (key, value) in changed.as_object().into_iter().flatten() {
        options[key] = value.clone();
    }
    let guard = GuardCommand::of_program(env!("CARGO_BIN_EXE_refit"));
    let deps = Deps { secrets, ..artifacts::deps(dir) };
    hosting::command::with_guard(options, &deps, guard).expect("a target")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_asked_by_programs_keeps_what_every_target_promises() {
    let root = tempfile::tempdir().expect("a directory");
    suite::exercise(|name| {
        let dir = root.path().join(name);
        std::fs::create_dir_all(&dir).expect("a directory");
        let file = dir.join("race-times");
        let overwrite = move |text: String| -> futures::future::LocalBoxFuture<'static, ()> {
            // Nothing printed is no release, so that nothing is a release of nobody.
            let text = if text.is_empty() { "\"\"".to_owned() } else { text };
            std::fs::write(&file, text).expect("written");
            Box::pin(async {})
        };
        let taking_over = programs(&dir, json!({"take_over": true}));
        // What refit knows of its token is what the program says.
        let refused = Refused {
            who: "an expired token",
            target: programs_of(&dir, json!({}), expired_deps()),
            todo: "it ended with exit code 77: *** ran out: log in with hostctl",
        };
        Host { refused: vec![refused], ..Host::local(programs(&dir, json!({})), taking_over, overwrite) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_program_is_left_running() {
    let root = tempfile::tempdir().expect("a directory");
    let (us, dir) = (InstanceId::generate(), root.path());
    // It hides in a session of its own, and says which process it is.
    let hides =
        r#"setsid sh -c 'echo $$ > "$DIR/pid.tmp"; mv "$DIR/pid.tmp" "$DIR/pid"; exec sleep 1000' & wait"#;
    let slow = programs(dir, json!({"apply": ["sh", "-c", hides], "timeout": "4s"}));
    let error = slow.apply(&release(1, "v1", None), us).await.expect_err("too slow");
    assert!(error.is_transient() && error.to_string().contains("within 4s"), "{error}");
    assert_gone(dir).await;

    // A run that is cancelled drops what it waits for.
    std::fs::remove_file(dir.join("pid")).expect("removed");
    let slow = programs(dir, json!({"apply": ["sh", "-c", hides]}));
    let change = release(1, "v1", None);
    tokio::select! {
        _ = slow.apply(&change, us) => panic!("it never ends"),
        () = async { while !dir.join("pid").exists() { tokio::time::sleep(Duration::from_millis(5)).await } } => {}
    }
    assert_gone(dir).await;
}

/// Waits for the end of the process that `pid` names.
async fn assert_gone(dir: &Path) {
    let pid: i32 = std::fs::read_to_string(dir.join("pid")).expect("a pid").trim().parse().expect("a number");
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    tokio::time::timeout(Duration::from_secs(20), async {
        while rustix::process::test_kill_process(pid).is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("it is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_says_whether_trying_again_can_help() {
    let root = tempfile::tempdir().expect("a directory");
    let us = InstanceId::generate();
    let said = async |script: &str| {
        let target = programs(root.path(), json!({"apply": ["sh", "-c", script]}));
        target.apply(&release(1, "v1", None), us).await.expect_err("failed")
    };
    let busy = said("echo busy >&2; exit 75").await;
    assert!(busy.is_transient());
    insta::assert_snapshot!(busy, @"the program sh is unavailable: it could not write the release now: busy");
    insta::assert_snapshot!(said("echo no $HOST_TOKEN >&2; exit 3").await, @"the program sh could not write the release: it ended with exit code 3: no ***");
    insta::assert_snapshot!(said("true").await, @"the program sh could not show the release: `apply` ended well, and `read` prints none");
    let chatty = programs(root.path(), json!({"read": ["sh", "-c", "yes 0123456789 | head -c 400000"]}));
    insta::assert_snapshot!(chatty.read(&suite::model()).await.expect_err("too much"), @"the program sh could not read the release: it printed more than 262144 bytes");
    insta::assert_snapshot!(programs(root.path(), json!({"check": ["echo", "all well"]})).check().await.expect("well"), @"the program sh is well: all well");
}
