//! The vendors' own clients read what refit wrote: what judges the emulators, and through them refit.

use serde_json::json;

use super::{deps, message};
use crate::support::node;
use crate::support::resend::{self, Resend};
use crate::support::slack::{self, Slack};

#[tokio::test]
async fn resends_client_reads_the_mail_that_refit_sent() {
    let service = Resend::start().await;
    let options = json!({
        "kind": "resend", "api_key": "KEY", "from": "refit <refit@example.com>", "base_url": service.address,
    });
    let refit = refit::notify::build(options, &deps(&[("KEY", resend::KEY.to_owned())])).expect("a notifier");
    refit.send(&message()).await.expect("sent");
    let module = r#"
        import { Resend } from "resend";
        const resend = new Resend(process.env.KEY);
        const listed = await resend.emails.list();
        const read = await resend.emails.get(listed.data.data[0].id);
        // The same body under refit's key: its mail is answered, and none is sent.
        const mail = { from: "refit <refit@example.com>", to: ["a@example.com"], subject: "s", text: "t" };
        const first = await resend.emails.send(mail, { idempotencyKey: "mine/1" });
        const again = await resend.emails.send(mail, { idempotencyKey: "mine/1" });
        const taken = await resend.emails.send({ ...mail, text: "u" }, { idempotencyKey: "mine/1" });
        const wrong = await new Resend("re_wrong").emails.send(mail);
        console.log(JSON.stringify({
            read, same: first.data.id === again.data.id, taken: taken.error.name, wrong: wrong.error.name,
        }));
    "#;
    let said = node::run(module, &[("KEY", resend::KEY), ("RESEND_BASE_URL", &service.address)]).await;
    let mail = &said["read"]["data"];
    assert_eq!(mail["subject"], message().subject, "{said}");
    assert_eq!(mail["text"], message().text);
    assert_eq!(mail["html"], json!(message().html));
    assert_eq!(mail["to"], json!(message().to));
    assert_eq!(said["same"], true);
    assert_eq!(
        (&said["taken"], &said["wrong"]),
        (&json!("invalid_idempotent_request"), &json!("invalid_api_key"))
    );
    assert_eq!(service.mails().len(), 2);
    service.violations.assert_none();
}

#[tokio::test]
async fn slacks_client_reads_and_rewrites_the_message_that_refit_posted() {
    let service = Slack::start().await;
    let api = format!("{}/api/", service.address);
    let options = json!({"kind": "slack-api", "token": "TOKEN", "channel": "#models", "base_url": api});
    let refit =
        refit::notify::build(options, &deps(&[("TOKEN", slack::TOKEN.to_owned())])).expect("a notifier");
    let place = refit.board().expect("it can").show(&message(), None).await.expect("posted");
    let module = r##"
        import { WebClient } from "@slack/web-api";
        const slack = new WebClient(process.env.TOKEN, { slackApiUrl: process.env.API, retryConfig: { retries: 0 } });
        const { CHANNEL: channel, TS: ts } = process.env;
        const history = await slack.conversations.history({ channel, include_all_metadata: true });
        const posted = history.messages[0];
        const updated = await slack.chat.update({ channel, ts, text: "by its own client", blocks: posted.blocks });
        const answer = await slack.chat.postMessage({ channel, thread_ts: ts, text: "an answer", reply_broadcast: true });
        let gone;
        try {
            await slack.chat.update({ channel, ts: "1795248000.999999", text: "x" });
        } catch (error) {
            gone = error.data.error;
        }
        console.log(JSON.stringify({ posted, updated, answer, gone }));
    "##;
    let env = [("TOKEN", slack::TOKEN), ("API", &api), ("CHANNEL", &place.channel), ("TS", &place.ts)];
    let said = node::run(module, &env).await;
    assert_eq!(said["posted"]["ts"], place.ts.as_str(), "{said}");
    assert_eq!(said["posted"]["text"], message().subject);
    assert_eq!(said["posted"]["metadata"]["event_payload"]["id"], "run/end/0");
    assert_eq!(said["posted"]["blocks"], json!(message().blocks));
    assert_eq!(
        (&said["updated"]["ok"], &said["updated"]["text"]),
        (&json!(true), &json!("by its own client"))
    );
    assert_eq!(said["answer"]["ok"], true);
    assert_eq!(said["gone"], "message_not_found");
    let messages = service.messages();
    assert_eq!((messages.len(), messages[0].edits, messages[1].broadcast), (2, 1, true));
    service.violations.assert_none();
}
