//! `kind = "slack-api"`: Slack's Web API. One message a run, rewritten as the run goes on; what the workflow's
//! `notify:` asks for is said below it.
//!
//! Slack takes no key that makes a message unique. Each carries its id in `metadata` (`event_type`
//! `refit_message`); before one is posted that an earlier try may have left there, it is looked for (`left`).

mod left;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use reqwest::header::CONTENT_TYPE;
use reqwest::{RequestBuilder, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use self::left::Left;
use super::pace::Pace;
use super::service_url;
use crate::adapter::{
    Adapter, AdapterError, Board, BuildError, Deps, Message, NotSent, Notifier, Posted, options_of,
};
use crate::domain::id::SecretName;
use crate::http_client;
use crate::secret::{Secret, Secrets};

/// `kind = "slack-api"`.
pub const ADAPTER: Adapter<Arc<dyn Notifier>> = Adapter { kind: "slack-api", build };

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// The name of the secret that holds the bot's token (`xoxb-…`, scopes `chat:write` and `channels:history`).
    token: SecretName,
    /// The channel: its id (`C0123456789`) or `#name`.
    channel: String,
    /// Whether each run has a message that is kept up to date.
    #[serde(default = "yes")]
    progress: bool,
    /// Where the API is.
    base_url: Option<String>,
}

fn yes() -> bool {
    true
}

const SERVICE: &str = "Slack";
const BASE_URL: &str = "https://slack.com/api";
/// A channel takes about one message a second.
const POST_EVERY: Duration = Duration::from_secs(1);
/// `chat.update` takes 50 calls a minute.
const UPDATE_EVERY: Duration = Duration::from_millis(1_200);
/// Methods that read take 50 calls a minute each; a look takes two of them.
const READ_EVERY: Duration = Duration::from_secs(1);
/// Of those that were left unused: a crash leaves many messages to look for.
const READS_AT_ONCE: u32 = 20;
/// Shown where blocks cannot be: in notifications, to screen readers.
const LONGEST_TEXT: usize = 3_000;
/// A page of messages has at most so many bytes, with all their blocks.
const LONGEST_ANSWER: usize = 16 << 20;
/// How long to wait when Slack asks for it without saying how long.
const REST: Duration = Duration::from_secs(30);

fn build(options: Value, deps: &Deps) -> Result<Arc<dyn Notifier>, BuildError> {
    let Options { token, channel, progress, base_url } = options_of(ADAPTER.kind, options)?;
    let problem = |problem: String| BuildError::Options { kind: ADAPTER.kind, problem };
    if channel.trim().is_empty() {
        return Err(problem("`channel` is empty: name one, such as \"#models\" or C0123456789".to_owned()));
    }
    let base_url = service_url(base_url.as_deref().unwrap_or(BASE_URL)).map_err(problem)?;
    Ok(Arc::new(SlackApi {
        base_url,
        token: deps.secrets.get(&token)?,
        channel,
        progress,
        http: deps.http.clone(),
        secrets: deps.secrets.clone(),
        posts: Pace::new(POST_EVERY),
        updates: Pace::new(UPDATE_EVERY),
        reads: Pace::in_bursts(READ_EVERY, READS_AT_ONCE),
        channel_id: OnceCell::new(),
        bot_id: OnceCell::new(),
    }))
}

struct SlackApi {
    base_url: String,
    token: Secret,
    channel: String,
    progress: bool,
    http: reqwest::Client,
    secrets: Secrets,
    posts: Pace,
    updates: Pace,
    reads: Pace,
    /// Of the channel, once it was asked for.
    channel_id: OnceCell<String>,
    /// Of the app, once it was asked for; `None` inside where Slack does not say.
    bot_id: OnceCell<Option<String>>,
}

/// Why a call did not do what it should: what the engine is told, and Slack's own word for it.
struct Refused {
    word: String,
    error: NotSent,
}

impl Refused {
    fn silent(error: impl Into<NotSent>) -> Self {
        Self { word: String::new(), error: error.into() }
    }

    /// The message is not there any more, or may not be rewritten.
    fn is_gone(&self) -> bool {
        matches!(
            self.word.as_str(),
            "message_not_found" | "cant_update_message" | "edit_window_closed" | "thread_not_found"
        )
    }

    /// The blocks were the trouble: a template of the project may make what Slack does not take.
    fn is_about_blocks(&self) -> bool {
        matches!(self.word.as_str(), "invalid_blocks" | "invalid_blocks_format" | "msg_blocks_too_long")
    }
}

#[async_trait]
impl Notifier for SlackApi {
    async fn send(&self, message: &Message) -> Result<(), NotSent> {
        self.posts.turn().await.map_err(no_turn)?;
        self.post_once(message, json!({})).await.map_err(|refused| refused.error)
    }

    fn board(&self) -> Option<&dyn Board> {
        self.progress.then_some(self)
    }

    async fn check(&self) -> Result<Option<String>, AdapterError> {
        let said = self.ask("auth.test", &[]).await.map_err(|refused| AdapterError::from(refused.error))?;
        let word = |key: &str| said[key].as_str().unwrap_or("?").to_owned();
        let who = format!("bot `{}` of workspace {} writes to {}", word("user"), word("team"), self.channel);
        Ok(Some(match self.can_look().await {
            Ok(()) => who,
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => format!("{who}, where a message whose answer is lost will be sent twice: {error}"),
        }))
    }
}

#[async_trait]
impl Board for SlackApi {
    async fn show(&self, message: &Message, at: Option<&Posted>) -> Result<Posted, NotSent> {
        if let Some(at) = at
            && self.rewrite(message, at).await?
        {
            return Ok(at.clone());
        }
        // A turn that is free, and none ahead: what people wait for goes first.
        self.posts.now().map_err(no_turn)?;
        let left = self.left(message, &self.channel, None).await;
        // One that is older than `at` was given up before.
        if let Left::Here(here) = &left
            && at.is_none_or(|at| here.ts > at.ts)
            && self.rewrite(message, here).await?
        {
            return Ok(here.clone());
        }
        let posted = self.post(message, json!({})).await.map_err(|refused| refused.error)?;
        left.was_posted(message);
        Ok(posted)
    }

    async fn reply(&self, message: &Message, below: &Posted, loud: bool) -> Result<(), NotSent> {
        self.posts.turn().await.map_err(no_turn)?;
        let place = json!({"channel": below.channel, "thread_ts": below.ts, "reply_broadcast": loud});
        let answered = match self.post_once(message, place).await {
            Err(refused) if refused.is_gone() => self.post_once(message, json!({})).await,
            other => other,
        };
        answered.map_err(|refused| refused.error)
    }
}

impl SlackApi {
    /// Whether the message at `at` says `message` now; not when it is gone.
    async fn rewrite(&self, message: &Message, at: &Posted) -> Result<bool, NotSent> {
        self.updates.turn().await.map_err(no_turn)?;
        let place = json!({"channel": at.channel, "ts": at.ts});
        match self.say("chat.update", message, place).await {
            Ok(_) => Ok(true),
            Err(refused) if refused.is_gone() => Ok(false),
            Err(refused) => Err(refused.error),
        }
    }

    /// Posts `message`, unless an earlier try did.
    async fn post_once(&self, message: &Message, place: Value) -> Result<(), Refused> {
        let channel = place["channel"].as_str().unwrap_or(&self.channel);
        let left = self.left(message, channel, place["thread_ts"].as_str()).await;
        if let Left::Nothing | Left::Unseen(_) = left {
            self.post(message, place).await?;
            left.was_posted(message);
        }
        Ok(())
    }

    /// Posts `message` to the channel, or where `place` says; returns where it is.
    async fn post(&self, message: &Message, mut place: Value) -> Result<Posted, Refused> {
        if place.get("channel").is_none() {
            place["channel"] = json!(self.channel);
        }
        place["unfurl_links"] = json!(false);
        let said = self.say("chat.postMessage", message, place).await?;
        serde_json::from_value(said).map_err(|_| {
            Refused::silent(AdapterError::Rejected {
                service: SERVICE.to_owned(),
                action: "call chat.postMessage".to_owned(),
                cause: "it did not answer where the message is".to_owned(),
            })
        })
    }

    /// A call with what `message` says; without its blocks where Slack does not take them.
    async fn say(&self, method: &str, message: &Message, mut body: Value) -> Result<Value, Refused> {
        let escape = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let whole: String =
            format!("{}\n{}", message.subject, message.text).chars().take(LONGEST_TEXT).collect();
        body["metadata"] = json!({"event_type": "refit_message", "event_payload": {"id": message.id}});
        if let Some(blocks) = &message.blocks {
            body["text"] = json!(escape(&message.subject));
            body["blocks"] = blocks.clone();
            match self.tell(method, &body).await {
                Err(refused) if refused.is_about_blocks() => {
                    tracing::warn!(
                        message.id,
                        "Slack does not take a message's blocks, it is sent as text: {}",
                        refused.error
                    );
                    body["blocks"] = json!([]);
                }
                other => return other,
            }
        }
        body["text"] = json!(escape(whole.trim_end()));
        self.tell(method, &body).await
    }

    /// A method that reads.
    async fn ask(&self, method: &str, query: &[(&str, &str)]) -> Result<Value, Refused> {
        self.reads.turn().await.map_err(|wait| Refused::silent(no_turn(wait)))?;
        self.call(method, self.http.get(self.url(method)).query(query), &self.reads).await
    }

    /// A method that writes.
    async fn tell(&self, method: &str, body: &Value) -> Result<Value, Refused> {
        let request = self.http.post(self.url(method));
        let request = request.header(CONTENT_TYPE, "application/json; charset=utf-8").json(body);
        let pace = if method == "chat.update" { &self.updates } else { &self.posts };
        self.call(method, request, pace).await
    }

    fn url(&self, method: &str) -> String {
        format!("{}/{method}", self.base_url)
    }

    /// A call whose turn is of `pace`.
    async fn call(&self, method: &str, request: RequestBuilder, pace: &Pace) -> Result<Value, Refused> {
        let action = format!("call {method}");
        let request = request.bearer_auth(self.token.reveal());
        let answer = http_client::exchange_within(SERVICE, &action, request, LONGEST_ANSWER).await;
        let answer = answer.map_err(Refused::silent)?;
        let text = self.secrets.mask(&answer.body);
        let said = serde_json::from_str::<Value>(&text).ok().filter(|said| said["ok"].is_boolean());
        let limited = |said: &Value| said["error"] == "ratelimited" || said["error"] == "rate_limited";
        if answer.status == StatusCode::TOO_MANY_REQUESTS || said.as_ref().is_some_and(limited) {
            let rest = http_client::retry_after(&answer.headers).unwrap_or(REST);
            pace.pause(rest);
            return Err(Refused::silent(no_turn(rest)));
        }
        match said {
            Some(said) if answer.status.is_success() && said["ok"] == true => Ok(said),
            Some(said) => {
                let word = said["error"].as_str().unwrap_or("unknown_error").to_owned();
                let error = self.meaning(&action, &word, &said).into();
                Err(Refused { word, error })
            }
            None => Err(Refused::silent(http_client::refusal(
                SERVICE,
                &action,
                answer.status,
                &answer.headers,
                &text,
            ))),
        }
    }

    /// What Slack's word for an error means, and what to do about it.
    fn meaning(&self, action: &str, word: &str, said: &Value) -> AdapterError {
        let (service, action) = (SERVICE.to_owned(), action.to_owned());
        let shown = http_client::excerpt(word);
        let denied = |todo: &str| AdapterError::Denied {
            service: service.clone(),
            action: action.clone(),
            cause: format!("{shown} ({todo})"),
        };
        let rejected = |todo: String| AdapterError::Rejected {
            service: service.clone(),
            action: action.clone(),
            cause: format!("{shown}{todo}"),
        };
        match word {
            "internal_error"
            | "fatal_error"
            | "service_unavailable"
            | "request_timeout"
            | "team_added_to_org" => AdapterError::Unavailable { service, cause: shown, retry_after: None },
            "not_authed" | "invalid_auth" | "account_inactive" | "token_revoked" | "token_expired" => {
                denied("set a bot token that is valid, `xoxb-…`, in the secret that `token` names")
            }
            "missing_scope" => {
                let scopes = |key: &str| http_client::excerpt(said[key].as_str().unwrap_or("none"));
                denied(&format!(
                    "add the scope {} to the app and install it again; it has {}",
                    scopes("needed"),
                    scopes("provided")
                ))
            }
            "no_permission" | "ekm_access_denied" | "restricted_action" | "not_allowed_token_type" => {
                denied("the app may not write there")
            }
            "not_in_channel" => {
                rejected(format!(" (invite the app: type /invite @its-name in {})", self.channel))
            }
            "channel_not_found" => rejected(format!(
                " (there is no {}, or it is private and the app is not in it: type /invite @its-name there)",
                self.channel
            )),
            "is_archived" => rejected(format!(" ({} is archived: name another channel)", self.channel)),
            _ => rejected(String::new()),
        }
    }
}

fn no_turn(wait: Duration) -> NotSent {
    NotSent::NoTurn { service: SERVICE, wait }
}
