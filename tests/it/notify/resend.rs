//! What is Resend's own: keys, quotas, its pace.

use std::sync::Arc;
use std::time::Duration;

use refit::adapter::{AdapterError, NotSent, Notifier};
use serde_json::json;

use super::{deps, message};
use crate::support::faults::Fault;
use crate::support::resend::{KEY, Resend};

fn notifier(service: &Resend, from: &str) -> Arc<dyn Notifier> {
    let options = json!({
        "kind": "resend", "api_key": "KEY", "from": from, "reply_to": "ops@example.com",
        "base_url": service.address,
    });
    refit::notify::build(options, &deps(&[("KEY", KEY.to_owned())])).expect("a notifier")
}

const FROM: &str = "refit <refit@example.com>";

#[tokio::test]
async fn a_message_is_one_mail_however_often_it_is_tried_within_a_day() {
    let service = Resend::start().await;
    for _ in 0..2 {
        // Another process each time.
        notifier(&service, FROM).send(&message()).await.expect("sent");
    }
    assert_eq!(service.mails().len(), 1);
    let mail = &service.mails()[0];
    assert_eq!(mail["subject"], message().subject);
    assert_eq!(mail["text"], message().text);
    assert_eq!(mail["html"], json!(message().html));
    assert_eq!(mail["to"], json!(message().to));
    let seen = service.server.seen();
    assert_eq!(seen[0].header("idempotency-key"), Some("run/end/0"));
    assert_eq!(seen[0].body, seen[1].body);
    assert!(seen[0].body.contains(r#""reply_to":"ops@example.com""#));
    // Other words under the same id: the first ones stand.
    let mut other = message();
    other.text.push_str(" Anew.");
    let refused = AdapterError::from(notifier(&service, FROM).send(&other).await.expect_err("another body"));
    assert!(matches!(refused, AdapterError::Rejected { .. }), "{refused}");
    assert!(refused.to_string().contains("invalid_idempotent_request"), "{refused}");
    service.pass(Duration::from_secs(24 * 60 * 60));
    notifier(&service, FROM).send(&message()).await.expect("sent");
    assert_eq!(service.mails().len(), 2, "keys are forgotten after a day");
    service.violations.assert_none();
}

#[tokio::test]
async fn what_resend_refuses_says_what_to_do() {
    let service = Resend::start().await;
    let cases = [
        (429, "daily_quota_exceeded", "the account's quota is used up", false),
        (429, "monthly_quota_exceeded", "the account's quota is used up", false),
        (429, "rate_limit_exceeded", "its limit of requests is used up", true),
        (409, "concurrent_idempotent_requests", "concurrent_idempotent_requests", true),
        (401, "missing_api_key", "check the secret that `api_key` names", false),
        (403, "invalid_api_key", "check the secret that `api_key` names", false),
        (403, "validation_error", "verify the domain of `from` at Resend", false),
        (422, "invalid_from_address", "check `from` in refit.toml", false),
        (422, "missing_required_field", "missing_required_field", false),
        (500, "application_error", "application_error", true),
    ];
    for (status, name, says, again) in cases {
        let body = json!({"statusCode": status, "name": name, "message": "as it is"}).to_string();
        service.server.next(Fault::Answer(status, vec![("ratelimit-reset", "3")], body));
        let error = AdapterError::from(notifier(&service, FROM).send(&message()).await.expect_err(name));
        assert_eq!(error.is_transient(), again, "{error}");
        assert!(error.to_string().contains(says), "{error}");
        if let ("rate_limit_exceeded", AdapterError::Unavailable { retry_after, .. }) = (name, &error) {
            assert_eq!(
                *retry_after,
                Some(Duration::from_secs(3)),
                "`ratelimit-reset` where nothing says more"
            );
        }
    }
    let error = notifier(&service, "a@elsewhere.example").send(&message()).await.expect_err("not verified");
    assert!(error.to_string().contains("verify the domain"), "{error}");
    let mut many = message();
    many.to = vec!["a@example.com".to_owned(); 51];
    let error = notifier(&service, FROM).send(&many).await.expect_err("too many");
    assert!(error.to_string().contains("mailing list"), "{error}");
    service.violations.assert_none();
}

#[tokio::test]
async fn mails_go_out_at_the_pace_resend_takes_them() {
    let service = Resend::start().await;
    service.limit();
    let notifier = notifier(&service, FROM);
    let sends = (0..8).map(|number| {
        let notifier = Arc::clone(&notifier);
        async move {
            let mut message = message();
            message.id = format!("run/{number}/0");
            // A machine that stalls sends several at once: what is refused then waits its time, as in the outbox.
            while let Err(error) = notifier.send(&message).await {
                assert!(matches!(error, NotSent::NoTurn { .. }), "{error}");
            }
        }
    });
    let began = std::time::Instant::now();
    futures::future::join_all(sends).await;
    assert_eq!(service.mails().len(), 8);
    assert!(began.elapsed() >= Duration::from_secs(1), "no more than five a second");
}
