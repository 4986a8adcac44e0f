//! What is the Web API's own: messages that are rewritten, threads, words for errors.

use std::sync::Arc;

use refit::adapter::{AdapterError, Message, NotSent, Notifier};
use serde_json::json;

use super::{deps, message};
use crate::support::faults::{Fault, Rule};
use crate::support::slack::{CHANNEL, Posted, Slack, TOKEN};

fn notifier(service: &Slack) -> Arc<dyn Notifier> {
    let options = json!({
        "kind": "slack-api", "token": "TOKEN", "channel": "#models",
        "base_url": format!("{}/api", service.address),
    });
    refit::notify::build(options, &deps(&[("TOKEN", TOKEN.to_owned())])).expect("a notifier")
}

#[tokio::test]
async fn a_runs_message_is_rewritten_and_answered_to() {
    let service = Slack::start().await;
    let slack = notifier(&service);
    let board = slack.board().expect("it can");
    let mut message = message();
    let place = board.show(&message, None).await.expect("posted");
    assert_eq!(place.channel, CHANNEL, "the id, not the name");
    message.subject = "v2 is on canary".to_owned();
    assert_eq!(board.show(&message, Some(&place)).await.expect("rewritten"), place);
    board.reply(&message, &place, true).await.expect("answered");
    board.reply(&message, &place, false).await.expect("answered");
    let messages = service.messages();
    assert_eq!(messages.len(), 3);
    assert_eq!((messages[0].text.as_str(), messages[0].edits), ("v2 is on canary", 1));
    assert_eq!(
        messages[0].blocks,
        message.blocks.clone().expect("blocks"),
        "sent again, or they would vanish"
    );
    assert_eq!(messages[1].thread_ts.as_ref(), Some(&place.ts));
    assert_eq!((messages[1].broadcast, messages[2].broadcast), (true, false));
    let id = json!({"event_type": "refit_message", "event_payload": {"id": "run/end/0"}});
    assert!(messages.iter().all(|message| message.metadata == id));
    service.violations.assert_none();
}

#[tokio::test]
async fn a_message_that_somebody_deleted_is_posted_anew() {
    let service = Slack::start().await;
    let slack = notifier(&service);
    let board = slack.board().expect("it can");
    let gone = board.show(&message(), None).await.expect("posted");
    service.delete(&gone.ts);
    board.reply(&message(), &gone, true).await.expect("answered");
    let messages = service.messages();
    assert_eq!((messages.len(), &messages[0].thread_ts), (1, &None), "beside the thread that is gone");
    let anew = notifier(&service);
    let anew = anew.board().expect("it can").show(&message(), Some(&gone)).await.expect("posted");
    assert_ne!(anew, gone);
    service.violations.assert_none();
}

/// A message that was tried before.
fn tried() -> Message {
    Message { tried_since: Some("2026-11-21T07:00:00Z".parse().expect("a time")), ..message() }
}

#[tokio::test]
async fn a_message_whose_answer_was_lost_is_found_and_not_posted_again() {
    let service = Slack::start().await;
    // Each call is of a process of its own, which has not posted anything within this second.
    let slack = || notifier(&service);
    service.server.next(Fault::LostAnswer);
    slack().board().expect("it can").show(&message(), None).await.expect_err("nobody heard");
    for other in ["another", "a third"] {
        slack().send(&Message { id: other.to_owned(), ..message() }).await.expect("sent");
    }
    let now = Message { subject: "v2 is on canary".to_owned(), ..tried() };
    let place = slack().board().expect("it can").show(&now, None).await.expect("rewritten");
    let messages = service.messages();
    assert_eq!((messages.len(), &messages[0].ts), (3, &place.ts));
    assert_eq!((messages[0].text.as_str(), messages[0].edits), ("v2 is on canary", 1));

    // An answer below it, quiet and so only in its thread, and a message in the channel.
    service.server.next(Fault::LostAnswer);
    slack().board().expect("it can").reply(&message(), &place, false).await.expect_err("nobody heard");
    slack().board().expect("it can").reply(&tried(), &place, false).await.expect("it is there");
    slack().send(&Message { id: "never sent".to_owned(), ..tried() }).await.expect("sent");
    slack().send(&Message { id: "never sent".to_owned(), ..tried() }).await.expect("it is there");
    let texts: Vec<_> = service.messages().into_iter().map(|message| message.thread_ts.is_some()).collect();
    assert_eq!(texts, [false, false, false, true, false]);
    service.violations.assert_none();
}

#[tokio::test]
async fn without_the_right_to_read_the_channel_a_message_is_rather_sent_twice() {
    let service = Slack::start().await;
    let said = notifier(&service).check().await.expect("it can look");
    assert_eq!(said.as_deref(), Some("bot `refit` of workspace Example writes to #models"));
    service.write_only();
    notifier(&service).send(&message()).await.expect("sent");
    notifier(&service).send(&tried()).await.expect("sent again");
    assert_eq!(service.messages().len(), 2);
    let said = notifier(&service).check().await.expect("it can write").expect("words");
    assert!(said.contains("will be sent twice") && said.contains("add the scope channels:history"), "{said}");
    service.violations.assert_none();
}

/// The answers of methods that read, as `fault` has them.
fn reads(fault: Fault) -> Rule {
    Rule::on(fault, |request| request.uri.path().contains("conversations."))
}

#[tokio::test]
async fn a_look_up_that_is_limited_or_broken_keeps_no_message_back() {
    let service = Slack::start().await;
    let slack = notifier(&service);
    service.server.fault(reads(Fault::Answer(429, vec![("retry-after", "600")], String::new())));
    slack.send(&tried()).await.expect("sent");
    slack.send(&message()).await.expect("posting has a pace of its own");
    assert_eq!(service.messages().len(), 2);
    let lists = || service.server.asked().iter().filter(|line| line.contains("conversations.")).count();
    assert_eq!(lists(), 1);
    slack.send(&tried()).await.expect("sent");
    assert_eq!((service.messages().len(), lists()), (3, 1), "nothing is asked while Slack rests");

    service.server.mend();
    service.server.fault(reads(Fault::Answer(500, vec![], "down".to_owned())).times(2));
    notifier(&service).send(&tried()).await.expect("found");
    assert_eq!(service.messages().len(), 3, "it is looked for again");
    service.server.fault(reads(Fault::Answer(500, vec![], "down".to_owned())));
    notifier(&service).send(&tried()).await.expect("sent");
    assert_eq!(service.messages().len(), 4);
    service.violations.assert_none();
}

#[tokio::test]
async fn a_message_that_has_no_turn_is_not_looked_for() {
    let service = Slack::start().await;
    let slack = notifier(&service);
    let board = slack.board().expect("it can");
    service.server.next(Fault::Answer(429, vec![("retry-after", "600")], String::new()));
    board.show(&message(), None).await.expect_err("too many");
    let error = board.show(&tried(), None).await.expect_err("no turn");
    assert!(matches!(error, NotSent::NoTurn { .. }), "{error}");
    assert_eq!(service.server.count(), 1);
}

#[tokio::test]
async fn a_channel_that_is_named_is_looked_for_once() {
    let service = Slack::start().await;
    let slack = notifier(&service);
    for _ in 0..2 {
        slack.send(&tried()).await.expect("sent or found");
    }
    let lists = service.server.asked().into_iter().filter(|line| line.contains("conversations.list"));
    assert_eq!((lists.count(), service.messages().len()), (1, 1));
    service.violations.assert_none();
}

#[tokio::test]
async fn in_a_channel_of_long_messages_one_is_found_too() {
    let service = Slack::start().await;
    notifier(&service).send(&message()).await.expect("sent");
    for _ in 0..150 {
        service.others_write(Posted { text: "x".repeat(10_000), ..Posted::default() });
    }
    notifier(&service).send(&tried()).await.expect("found");
    assert_eq!(service.messages().len(), 151);
    service.violations.assert_none();
}

#[tokio::test]
async fn what_another_app_wrote_is_not_taken_for_the_message() {
    let service = Slack::start().await;
    let metadata = json!({"event_type": "refit_message", "event_payload": {"id": message().id}});
    for bot_id in [Some("B0ANOTHER1".to_owned()), None] {
        service.others_write(Posted { metadata: metadata.clone(), bot_id, ..Posted::default() });
    }
    let slack = notifier(&service);
    for _ in 0..2 {
        slack.send(&tried()).await.expect("sent, then found");
    }
    assert_eq!(service.messages().len(), 3);
    let asked = service.server.asked().into_iter().filter(|line| line.contains("auth.test"));
    assert_eq!(asked.count(), 1);

    // Slack does not say who the app is: any message of this id is taken for it.
    service.server.fault(Rule::on(Fault::Cut, |request| request.uri.path().contains("auth.test")));
    notifier(&service).send(&tried()).await.expect("found");
    assert_eq!(service.messages().len(), 3);
    service.violations.assert_none();
}

#[tokio::test]
async fn what_slack_refuses_says_what_to_do() {
    let service = Slack::start().await;
    let cases = [
        (
            json!({"error": "missing_scope", "needed": "chat:write", "provided": "users:read"}),
            "add the scope chat:write to the app and install it again; it has users:read",
            "denied",
        ),
        (json!({"error": "token_revoked"}), "set a bot token that is valid", "denied"),
        (json!({"error": "not_in_channel"}), "type /invite @its-name in #models", "never"),
        (json!({"error": "channel_not_found"}), "there is no #models", "never"),
        (json!({"error": "is_archived"}), "#models is archived", "never"),
        (json!({"error": "ratelimited"}), "its limit of requests is used up", "later"),
        (json!({"error": "internal_error"}), "internal_error", "later"),
        (json!({"error": "a_new_word"}), "a_new_word", "never"),
    ];
    for (refusal, says, when) in cases {
        service.refuse(refusal);
        let slack = notifier(&service);
        let sending = AdapterError::from(slack.send(&message()).await.expect_err("refused"));
        for error in [sending, slack.check().await.expect_err("refused")] {
            assert!(error.to_string().contains(says), "{error}");
            let found = match error {
                AdapterError::Unavailable { .. } => "later",
                AdapterError::Denied { .. } => "denied",
                AdapterError::Rejected { .. } | AdapterError::Conflict { .. } => "never",
            };
            assert_eq!(found, when, "{says}");
        }
    }
    service.welcome();
    let said = notifier(&service).check().await.expect("welcome");
    assert_eq!(said.as_deref(), Some("bot `refit` of workspace Example writes to #models"));
}

#[tokio::test]
async fn blocks_that_slack_does_not_take_do_not_keep_a_message_back() {
    let service = Slack::start().await;
    let mut message = message();
    message.blocks = Some(json!([{"type": "carousel"}]));
    notifier(&service).send(&message).await.expect("sent");
    let messages = service.messages();
    assert_eq!(messages.len(), 1);
    assert!(messages[0].text.contains("v2 serves all traffic."), "{}", messages[0].text);
}
