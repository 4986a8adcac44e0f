//! Messages on their way: a real SMTP server, Slack's webhook, the outbox.

mod clients;
mod commands;
mod conformance;
mod follow;
mod paced;
mod resend;
mod slack_api;
mod slow;
mod stopping;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use refit::adapter::{AdapterError, BuildError, Deps, Message, NotSent, Notifier};
use refit::notify::{Notifiers, NotifiersError};
use refit::secret::{Secret, Secrets};
use serde_json::{Value, json};
use wiremock::matchers::{header, method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::support::python;

fn deps(secrets: &[(&str, String)]) -> Deps {
    let secrets = secrets.iter().map(|(name, value)| (name.parse().expect("a name"), Secret::new(value)));
    Deps {
        project: "/".into(),
        secrets: Secrets::fixed(secrets.collect()),
        http: refit::http_client::build().expect("a client"),
        stores: Arc::new(BTreeMap::new()),
    }
}

fn message() -> Message {
    Message {
        id: "run/end/0".to_owned(),
        subject: "Größe: v2 was promoted".to_owned(),
        text: "v2 serves all traffic.\n.\nA line with only a dot, and <b>".to_owned(),
        html: Some("<p>v2 serves all traffic.</p>".to_owned()),
        blocks: Some(json!([{"type": "header", "text": {"type": "plain_text", "text": "v2"}}])),
        to: vec!["team@example.com".to_owned(), "Zoë <zoe@example.com>".to_owned()],
        tried_since: None,
    }
}

fn smtp(url: String) -> Arc<dyn Notifier> {
    let options = json!({"kind": "smtp", "url": "SMTP_URL", "from": "refit <refit@example.com>"});
    refit::notify::build(options, &deps(&[("SMTP_URL", url)])).expect("a notifier")
}

#[tokio::test]
async fn a_mail_arrives_as_text_and_html_with_a_stable_id() {
    let dir = tempfile::tempdir().expect("a directory");
    let inbox = dir.path().join("mails");
    let server = python::smtp_sink(&inbox, &["--user", "u", "--password", "p"]);
    let notifier = smtp(format!("smtp://u:p@127.0.0.1:{}", server.port));
    notifier.send(&message()).await.expect("sent");
    notifier.send(&message()).await.expect("sent again");
    let mails = python::mails(&inbox);
    assert_eq!(mails.len(), 2);
    let head = |mail: &Value, name: &str| {
        let headers = mail["headers"].as_array().expect("headers").iter();
        let found =
            headers.filter(|pair| pair[0] == name).map(|pair| pair[1].as_str().expect("text").to_owned());
        found.collect::<Vec<_>>().join("|")
    };
    let mail = &mails[0];
    assert_eq!(mail["structure"], json!(["multipart/alternative", "text/plain", "text/html"]));
    assert_eq!(head(mail, "Subject"), message().subject);
    assert_eq!(head(mail, "From"), "refit <refit@example.com>");
    assert_eq!(mail["to"], json!(["team@example.com", "zoe@example.com"]));
    let text = mail["text"].as_str().expect("text").replace("\r\n", "\n");
    assert_eq!(text.trim_end(), message().text);
    assert_eq!(mail["html"].as_str().expect("html").trim_end(), message().html.expect("html"));
    let id = head(mail, "Message-ID");
    assert!(id.starts_with('<') && id.ends_with(".refit@example.com>"), "{id}");
    assert_eq!(id, head(&mails[1], "Message-ID"), "the same on every attempt");
}

#[tokio::test]
async fn a_mail_server_says_whether_trying_again_helps() {
    let dir = tempfile::tempdir().expect("a directory");
    let inbox = dir.path().join("mails");
    let answers = ["--answer", "451 come back later", "--answer", "554 never again"];
    let server = python::smtp_sink(&inbox, &answers);
    let notifier = smtp(format!("smtp://127.0.0.1:{}", server.port));
    let refused = async |notifier: &dyn Notifier, message: &Message| {
        AdapterError::from(notifier.send(message).await.expect_err("refused"))
    };
    let busy = refused(notifier.as_ref(), &message()).await;
    assert!(busy.is_transient() && busy.to_string().contains("come back later"), "{busy}");
    let never = refused(notifier.as_ref(), &message()).await;
    assert!(matches!(never, AdapterError::Rejected { .. }), "{never}");
    notifier.send(&message()).await.expect("taken");
    let mut nobody = message();
    nobody.to = vec!["not an address\r\nRCPT TO:<x@y>".to_owned()];
    let rejected = refused(notifier.as_ref(), &nobody).await;
    assert!(matches!(rejected, AdapterError::Rejected { .. }), "{rejected}");
    let nowhere = refused(smtp("smtp://127.0.0.1:1".to_owned()).as_ref(), &message()).await;
    assert!(nowhere.is_transient(), "{nowhere}");
    let server = python::smtp_sink(&inbox, &["--user", "u", "--password", "p"]);
    let wrong = smtp(format!("smtp://u:wrong-password@127.0.0.1:{}", server.port));
    let denied = refused(wrong.as_ref(), &message()).await;
    assert!(matches!(denied, AdapterError::Denied { .. }), "{denied}");
    assert!(!denied.to_string().contains("wrong-password"), "{denied}");
}

#[test]
fn a_password_is_never_sent_in_the_clear() {
    let build = |url: &str| {
        let options = json!({"kind": "smtp", "url": "SMTP_URL", "from": "a@example.com"});
        refit::notify::build(options, &deps(&[("SMTP_URL", url.to_owned())]))
    };
    for url in ["smtp://u:hunter22@mail.example.com", "not a url hunter22", "http://hunter22"] {
        let Err(BuildError::Options { problem, .. }) = build(url) else { panic!("{url}") };
        assert!(!problem.contains("hunter22"), "{problem}");
    }
    for url in ["smtp://u:p@mail.example.com:587?tls=required", "smtps://u:p@mail.example.com"] {
        assert!(build(url).is_ok(), "{url}");
    }
}

fn slack(server: &MockServer) -> Arc<dyn Notifier> {
    let url = format!("{}/services/T0/B0/hush", server.uri());
    refit::notify::build(json!({"kind": "slack", "url": "SLACK_URL"}), &deps(&[("SLACK_URL", url)]))
        .expect("a notifier")
}

#[tokio::test]
async fn slack_gets_blocks_and_a_text_for_where_blocks_cannot_be() {
    let server = MockServer::start().await;
    Mock::given(method("POST"))
        .and(path("/services/T0/B0/hush"))
        .and(header("Content-Type", "application/json"))
        .respond_with(ResponseTemplate::new(200).set_body_string("ok"))
        .mount(&server)
        .await;
    let mut hostile = message();
    hostile.subject = "<!channel> & more".to_owned();
    slack(&server).send(&hostile).await.expect("sent");
    let requests = server.received_requests().await.expect("recorded");
    let body: Value = requests[0].body_json().expect("JSON");
    assert_eq!(body["text"], "&lt;!channel&gt; &amp; more");
    assert_eq!(body["blocks"], hostile.blocks.expect("blocks"));
}

#[tokio::test]
async fn slack_says_whether_trying_again_helps() {
    for (answer, expected) in [
        (ResponseTemplate::new(429).insert_header("Retry-After", "30"), "no turn"),
        (ResponseTemplate::new(500).set_body_string("rollup_error"), "later"),
        (ResponseTemplate::new(404).set_body_string("no_service"), "never"),
        (ResponseTemplate::new(400).set_body_string("invalid_blocks"), "never"),
        (ResponseTemplate::new(403).set_body_string("action_prohibited"), "denied"),
        (ResponseTemplate::new(200).set_body_string("<html>a proxy's page</html>"), "never"),
        // A page of a proxy that is longer than any answer of Slack's says what its status says.
        (ResponseTemplate::new(502).set_body_string("x".repeat(2 << 20)), "later"),
        (ResponseTemplate::new(200).set_body_string("x".repeat(2 << 20)), "never"),
    ] {
        let server = MockServer::start().await;
        Mock::given(method("POST")).respond_with(answer).mount(&server).await;
        let error = AdapterError::from(slack(&server).send(&message()).await.expect_err(expected));
        assert!(!error.to_string().contains("hush"), "{error}");
        match (expected, &error) {
            ("no turn", AdapterError::Unavailable { retry_after: Some(rest), .. }) => {
                assert_eq!(*rest, Duration::from_secs(30));
            }
            ("later", AdapterError::Unavailable { retry_after: None, .. }) => {}
            ("never", AdapterError::Rejected { .. }) | ("denied", AdapterError::Denied { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_webhook_that_asked_for_a_rest_gets_it() {
    let server = MockServer::start().await;
    let busy = ResponseTemplate::new(429).insert_header("Retry-After", "600");
    Mock::given(method("POST")).respond_with(busy).expect(1).mount(&server).await;
    let slack = slack(&server);
    for _ in 0..2 {
        let error = slack.send(&message()).await.expect_err("it rests");
        assert!(matches!(error, NotSent::NoTurn { .. }), "{error}");
    }
}

#[test]
fn tables_that_make_no_sense_are_refused_by_name() {
    let build = |tables: &[(&str, Value)]| {
        let tables = tables.iter().map(|(name, table)| (name.parse().expect("a name"), table.clone()));
        let secret = [("SMTP_URL", "smtps://mail.example.com".to_owned())];
        match Notifiers::build(tables.collect(), None::<&Path>, &deps(&secret)) {
            Ok(_) => panic!("built"),
            Err(error) => error,
        }
    };
    insta::assert_snapshot!(
        build(&[("team", json!({"kind": "slak"}))]),
        @"[notifiers.team]: no notifier is called `slak`; there are console, resend, slack, slack-api, smtp"
    );
    insta::assert_snapshot!(
        build(&[("team", json!({"kind": "slack", "url": "NOWHERE_SET"}))]),
        @"[notifiers.team]: secret `NOWHERE_SET` is not set: put it into the environment, or name a file for it under [secrets] in refit.toml"
    );
    let mail = json!({"kind": "smtp", "url": "SMTP_URL", "from": "a@example.com"});
    let other = json!({"kind": "resend", "api_key": "SMTP_URL", "from": "a@example.com"});
    let two = build(&[("a", mail), ("b", other)]);
    assert!(matches!(two, NotifiersError::TwoMailers { .. }));
    let table = |table: Value| build(&[("x", table)]).to_string();
    insta::assert_snapshot!(
        table(json!({"kind": "resend", "api_key": "SMTP_URL", "from": "nobody"})),
        @"[notifiers.x]: resend: `from` is not a mail address such as refit <refit@example.com>"
    );
    insta::assert_snapshot!(
        table(json!({"kind": "slack-api", "token": "SMTP_URL", "channel": "#m", "base_url": "http://slack.com/api"})),
        @"[notifiers.x]: slack-api: `base_url` would send the key in the clear: use https://"
    );
    insta::assert_snapshot!(
        table(json!({"kind": "slack-api", "token": "SMTP_URL", "channel": " "})),
        @"[notifiers.x]: slack-api: `channel` is empty: name one, such as \"#models\" or C0123456789"
    );
}
