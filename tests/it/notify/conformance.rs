//! What every notifier promises, whatever it speaks to.

use std::sync::Arc;
use std::time::Duration;

use refit::adapter::{AdapterError, Deps, Message, NotSent, Notifier};
use serde_json::{Value, json};

use super::deps;
use crate::support::faults::{Fault, Server};
use crate::support::resend::{self, Resend};
use crate::support::slack::{self, Slack};

/// A service with what reaches it: how often it takes a message, and what it wrote down.
struct Subject {
    server: Server,
    secret: &'static str,
    /// Whether a second attempt of one message is one message.
    has_key: bool,
    build: Box<dyn Fn(reqwest::Client) -> Arc<dyn Notifier>>,
    /// What it took, as text.
    taken: Box<dyn Fn() -> Vec<String>>,
    /// How it says no to a key that has expired.
    expired: Fault,
    check: Box<dyn Fn()>,
}

fn with(http: reqwest::Client, secrets: &[(&str, String)], options: Value) -> Arc<dyn Notifier> {
    refit::notify::build(options, &Deps { http, ..deps(secrets) }).expect("a notifier")
}

async fn resend() -> Subject {
    let service = Resend::start().await;
    let (address, reads, judged) = (service.address.clone(), service.clone(), service.violations.clone());
    Subject {
        server: service.server.clone(),
        secret: resend::KEY,
        has_key: true,
        build: Box::new(move |http| {
            let options = json!({
                "kind": "resend", "api_key": "KEY", "from": "refit <refit@example.com>", "base_url": address,
            });
            with(http, &[("KEY", resend::KEY.to_owned())], options)
        }),
        taken: Box::new(move || reads.mails().iter().map(|mail| mail["html"].to_string()).collect()),
        expired: Fault::Answer(
            401,
            vec![],
            r#"{"statusCode":401,"name":"restricted_api_key","message":"no"}"#.to_owned(),
        ),
        check: Box::new(move || judged.assert_none()),
    }
}

async fn slack_api() -> Subject {
    let service = Slack::start().await;
    let (address, reads, judged) = (service.address.clone(), service.clone(), service.violations.clone());
    Subject {
        server: service.server.clone(),
        secret: slack::TOKEN,
        has_key: false,
        build: Box::new(move |http| {
            let options = json!({
                "kind": "slack-api", "token": "TOKEN", "channel": "#models", "base_url": format!("{address}/api/"),
            });
            with(http, &[("TOKEN", slack::TOKEN.to_owned())], options)
        }),
        taken: Box::new(move || reads.messages().iter().map(|message| message.blocks.to_string()).collect()),
        expired: Fault::Answer(200, vec![], r#"{"ok":false,"error":"token_expired"}"#.to_owned()),
        check: Box::new(move || judged.assert_none()),
    }
}

async fn webhook() -> Subject {
    let service = Slack::start().await;
    let (address, reads) = (service.address.clone(), service.clone());
    let judged = service.hook_violations.clone();
    Subject {
        server: service.server.clone(),
        secret: "hush-hush",
        has_key: false,
        build: Box::new(move |http| {
            let url = format!("{address}{}", slack::WEBHOOK);
            with(http, &[("URL", url)], json!({"kind": "slack", "url": "URL"}))
        }),
        taken: Box::new(move || reads.hooked().iter().map(|body| body["blocks"].to_string()).collect()),
        expired: Fault::Answer(403, vec![], "invalid_token".to_owned()),
        check: Box::new(move || judged.assert_none()),
    }
}

fn usual() -> reqwest::Client {
    refit::http_client::build().expect("a client")
}

/// refit's client, but not patient.
fn impatient() -> reqwest::Client {
    refit::http_client::install_crypto();
    let client = reqwest::Client::builder().user_agent(refit::http_client::USER_AGENT);
    client.read_timeout(Duration::from_millis(300)).build().expect("a client")
}

const HOSTILE: &str =
    "<script>alert(1)</script> <!channel> <https://evil.example|x> & \"}],\u{202e}\r\nBcc: a@b.example";

/// A message of a workflow's own whose every word is hostile.
fn hostile(id: &str) -> Message {
    let facts = json!({"subject": HOSTILE, "message": HOSTILE, "reason": HOSTILE, "workflow": "retrain"});
    let model = "race-times".parse().expect("a name");
    let facts = refit::notify::facts::Facts::about(
        &model,
        None,
        refit::domain::workflow::Moment::Message,
        facts.as_object().cloned().expect("an object"),
    );
    let renderer = refit::notify::render::Renderer::new(None).expect("templates");
    renderer.render(id, &facts, &["team@example.com".to_owned()]).expect("renders")
}

async fn exercise(subject: Subject) {
    one_message_is_sent_once_and_hostile_text_stays_text(&subject).await;
    errors_say_whether_trying_again_helps(&subject).await;
    an_answer_that_was_lost_sends_again_under_the_same_id(&subject).await;
    the_secret_is_where_it_belongs_and_nowhere_else(&subject);
    (subject.check)();
}

async fn one_message_is_sent_once_and_hostile_text_stays_text(subject: &Subject) {
    (subject.build)(usual()).send(&hostile("hostile/1")).await.expect("sent");
    let taken = (subject.taken)();
    assert_eq!(taken.len(), 1, "{taken:?}");
    for wrong in ["<script", "<!channel", "<https://evil", "\u{202e}"] {
        assert!(!taken[0].contains(wrong), "{wrong} in {}", taken[0]);
    }
}

enum Expected {
    NoTurn(u64),
    Later(Option<u64>),
    Denied,
    Never,
}

async fn errors_say_whether_trying_again_helps(subject: &Subject) {
    let answer = |status, headers, body: &str| Fault::Answer(status, headers, body.to_owned());
    let cases = [
        (answer(429, vec![("retry-after", "7")], "rate_limited"), Expected::NoTurn(7)),
        (answer(500, vec![], "rollup_error"), Expected::Later(None)),
        (answer(503, vec![("retry-after", "30")], "<html>busy</html>"), Expected::Later(Some(30))),
        (answer(408, vec![], ""), Expected::Later(None)),
        (Fault::Cut, Expected::Later(None)),
        (Fault::StopBefore, Expected::Later(None)),
        (answer(403, vec![], "error code: 1010"), Expected::Denied),
        (subject.expired.clone(), Expected::Denied),
        (answer(404, vec![], "no_service"), Expected::Never),
        (answer(400, vec![], "invalid_payload"), Expected::Never),
    ];
    let before = (subject.taken)().len();
    for (fault, expected) in cases {
        subject.server.next(fault.clone());
        let client = if matches!(fault, Fault::StopBefore) { impatient() } else { usual() };
        let error = (subject.build)(client).send(&hostile("fault/1")).await.expect_err("refused");
        match (&expected, &error) {
            (Expected::NoTurn(seconds), NotSent::NoTurn { wait, .. }) => {
                assert_eq!(*wait, Duration::from_secs(*seconds), "{fault:?}");
            }
            (Expected::Later(after), NotSent::Failed(AdapterError::Unavailable { retry_after, .. })) => {
                assert_eq!(*retry_after, after.map(Duration::from_secs), "{fault:?}");
            }
            (Expected::Denied, NotSent::Failed(AdapterError::Denied { .. }))
            | (Expected::Never, NotSent::Failed(AdapterError::Rejected { .. })) => {}
            (_, error) => panic!("{fault:?}: {error:?}"),
        }
        let said = format!("{error} {error:?}");
        assert!(!said.contains(subject.secret) && !said.contains("127.0.0.1"), "{said}");
    }
    assert_eq!((subject.taken)().len(), before, "nothing was taken");
}

async fn an_answer_that_was_lost_sends_again_under_the_same_id(subject: &Subject) {
    for (fault, id) in [(Fault::LostAnswer, "lost/1"), (Fault::Torn, "torn/1")] {
        let before = (subject.taken)().len();
        let notifier = (subject.build)(usual());
        subject.server.next(fault.clone());
        let error = notifier.send(&hostile(id)).await.expect_err("no answer");
        assert!(AdapterError::from(error).is_transient(), "{fault:?}");
        notifier.send(&hostile(id)).await.expect("sent again");
        let came = (subject.taken)().len() - before;
        assert_eq!(came, if subject.has_key { 1 } else { 2 }, "{fault:?}");
    }
    // Byte for byte the same, from whichever process: a service with keys refuses another body.
    let bodies = |id: &str| -> Vec<String> {
        let seen = subject.server.seen().into_iter();
        let key = seen.filter(|seen| {
            seen.header("idempotency-key") == Some(id) || seen.body.contains(&format!("\"id\":\"{id}\""))
        });
        key.map(|seen| seen.body).collect()
    };
    for id in ["lost/1", "torn/1"] {
        let bodies = bodies(id);
        if !bodies.is_empty() {
            assert_eq!(bodies.len(), 2);
            assert_eq!(bodies[0], bodies[1]);
        }
    }
}

fn the_secret_is_where_it_belongs_and_nowhere_else(subject: &Subject) {
    for seen in subject.server.seen() {
        assert_eq!(seen.header("user-agent"), Some(refit::http_client::USER_AGENT));
        assert!(!seen.body.contains(subject.secret));
        match seen.header("authorization") {
            Some(bearer) => {
                assert_eq!(bearer, format!("Bearer {}", subject.secret));
                assert!(!seen.line.contains(subject.secret), "{}", seen.line);
            }
            // A webhook has no other secret than its address.
            None => assert!(seen.line.contains(slack::WEBHOOK), "{}", seen.line),
        }
    }
}

#[tokio::test]
async fn mail_through_resend() {
    exercise(resend().await).await;
}

#[tokio::test]
async fn slacks_web_api() {
    exercise(slack_api().await).await;
}

#[tokio::test]
async fn slacks_webhook() {
    exercise(webhook().await).await;
}

#[tokio::test]
async fn a_service_behind_a_proxys_page_has_taken_nothing() {
    for subject in [resend().await, slack_api().await, webhook().await] {
        subject.server.next(Fault::Answer(200, vec![], "<html>log in first</html>".to_owned()));
        let error = (subject.build)(usual()).send(&hostile("proxy/1")).await.expect_err("no service");
        assert!(error.to_string().contains("log in first"), "{error}");
    }
}
