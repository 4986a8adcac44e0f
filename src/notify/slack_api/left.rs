//! Finds a message that an earlier try left: its answer was lost, or refit died before it could note where it is.
//! Slack keeps each message's id in its metadata, and gives it back to who may read the channel.

use std::time::Duration;

use serde_json::Value;

use super::{Refused, SERVICE, SlackApi};
use crate::adapter::{AdapterError, Message, NotSent, Posted};

/// Slack's clock and the one that `Message::tried_since` is of may differ by so many seconds.
const CLOCKS_DIFFER: i64 = 600;
/// Messages, or channels, of one answer; Slack advises no more.
const PAGE: &str = "200";
/// In a channel with more messages than so many answers hold, it is not found.
const PAGES: usize = 10;
/// Looked for so often where Slack does not answer.
const LOOKS: usize = 3;
/// Waited between two looks.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);
/// Looked for no longer than this, all in all.
const LOOK_WITHIN: Duration = Duration::from_secs(20);

/// What an earlier try left of a message.
pub(super) enum Left {
    /// It is here.
    Here(Posted),
    Nothing,
    /// That cannot be seen, and why.
    Unseen(String),
}

impl Left {
    /// `message` was posted, once more perhaps.
    pub(super) fn was_posted(&self, message: &Message) {
        if let Left::Unseen(why) = self {
            let id = &message.id;
            tracing::warn!(
                message.id,
                "Message {id} was sent, perhaps twice: refit cannot see whether it was there already: {why}"
            );
        }
    }
}

impl SlackApi {
    /// Where `message` stands in `channel`, or below its message `thread`, if an earlier try may have posted it and
    /// did. Where that cannot be seen, for want of a scope or because Slack takes no more requests, it counts as not
    /// posted: to be told twice is better than late or not at all.
    pub(super) async fn left(&self, message: &Message, channel: &str, thread: Option<&str>) -> Left {
        let Some(since) = message.tried_since else { return Left::Nothing };
        let oldest = since.timestamp().saturating_sub(CLOCKS_DIFFER).max(0).to_string();
        let looking = self.look(&message.id, channel, thread, &oldest);
        match tokio::time::timeout(LOOK_WITHIN, looking).await {
            Ok(Ok(Some(found))) => Left::Here(found),
            Ok(Ok(None)) => Left::Nothing,
            Ok(Err(refused)) => Left::Unseen(refused.error.to_string()),
            Err(_) => Left::Unseen(format!("it was not found within {LOOK_WITHIN:?}")),
        }
    }

    /// Finds it, in a few looks where Slack does not answer. One that says when to come back is not asked again.
    async fn look(
        &self,
        id: &str,
        channel: &str,
        thread: Option<&str>,
        oldest: &str,
    ) -> Result<Option<Posted>, Refused> {
        for _ in 1..LOOKS {
            match self.find(id, channel, thread, oldest).await {
                Err(Refused {
                    error: NotSent::Failed(AdapterError::Unavailable { retry_after: None, .. }),
                    ..
                }) => {
                    tokio::time::sleep(BETWEEN_LOOKS).await;
                }
                found => return found,
            }
        }
        self.find(id, channel, thread, oldest).await
    }

    /// Whether messages that stand in the channel can be seen.
    pub(super) async fn can_look(&self) -> Result<(), AdapterError> {
        let looked = async {
            let channel = self.id_of(&self.channel).await?;
            self.ask("conversations.history", &[("channel", &channel), ("limit", "1")]).await
        };
        looked.await.map(|_| ()).map_err(|refused| refused.error.into())
    }

    /// Below `thread`, then in the channel: that try may have been made before there was a message to answer to.
    async fn find(
        &self,
        id: &str,
        channel: &str,
        thread: Option<&str>,
        oldest: &str,
    ) -> Result<Option<Posted>, Refused> {
        let channel = self.id_of(channel).await?;
        let bot_id = self.bot_id().await;
        let ours = |said: &Value| {
            let metadata = &said["metadata"];
            let same = metadata["event_type"] == "refit_message"
                && metadata["event_payload"]["id"] == id
                // Any app of the channel can write metadata.
                && bot_id.is_none_or(|bot_id| said["bot_id"] == bot_id);
            Some(Posted { channel: channel.clone(), ts: said["ts"].as_str().filter(|_| same)?.to_owned() })
        };
        let query = [("channel", channel.as_str()), ("oldest", oldest), ("include_all_metadata", "true")];
        if let Some(ts) = thread {
            let query = [query.as_slice(), &[("ts", ts)]].concat();
            match self.first_of("conversations.replies", &query, "messages", ours).await {
                Ok(None) => {}
                Err(refused) if refused.is_gone() => {}
                found => return found,
            }
        }
        // Newest first: of two that stand there, the one that may be rewritten for longest.
        self.first_of("conversations.history", &query, "messages", ours).await
    }

    /// Whom messages of ours are from, as far as Slack says so.
    async fn bot_id(&self) -> Option<&str> {
        let asked = self.bot_id.get_or_try_init(|| async {
            let said = self.ask("auth.test", &[]).await?;
            Ok::<_, Refused>(said["bot_id"].as_str().map(str::to_owned))
        });
        asked.await.ok()?.as_deref()
    }

    /// The id of `channel`; methods that read take nothing else.
    async fn id_of(&self, channel: &str) -> Result<String, Refused> {
        match channel.strip_prefix('#') {
            Some(name) => self.channel_id.get_or_try_init(|| self.id_called(name)).await.cloned(),
            None => Ok(channel.to_owned()),
        }
    }

    async fn id_called(&self, name: &str) -> Result<String, Refused> {
        let query = [("types", "public_channel,private_channel"), ("exclude_archived", "true")];
        let id = |said: &Value| Some(said["id"].as_str().filter(|_| said["name"] == name)?.to_owned());
        let found = self.first_of("conversations.list", &query, "channels", id).await?;
        found.ok_or_else(|| {
            Refused::silent(AdapterError::Rejected {
                service: SERVICE.to_owned(),
                action: format!("find the channel #{name}"),
                cause: "it is in no list that the app sees: set `channel` to its id, C0123456789".to_owned(),
            })
        })
    }

    /// What `wanted` finds first among the items called `list` of all pages.
    async fn first_of<T>(
        &self,
        method: &str,
        query: &[(&str, &str)],
        list: &str,
        wanted: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, Refused> {
        let mut cursor = String::new();
        for _ in 0..PAGES {
            let mut query = query.to_vec();
            query.push(("limit", PAGE));
            if !cursor.is_empty() {
                query.push(("cursor", &cursor));
            }
            let said = self.ask(method, &query).await?;
            if let Some(found) = said[list].as_array().into_iter().flatten().find_map(&wanted) {
                return Ok(Some(found));
            }
            match said["response_metadata"]["next_cursor"].as_str() {
                Some(next) if !next.is_empty() => cursor = next.to_owned(),
                _ => break,
            }
        }
        Ok(None)
    }
}
