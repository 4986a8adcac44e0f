//! Sends what the outbox holds: at least once, with an id that is the same on
//! every attempt.

use std::time::Duration;

use async_trait::async_trait;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::time::{Instant, sleep_until};

use super::Notifiers;
use super::closing::Closing;
use super::held::{Held, PATIENCE, turn_after, while_held};
use super::lines::{Lines, Next, Taken};
use super::noted::noted;
use super::send::{board_of, send};
use crate::adapter::{AdapterError, NotSent};
use crate::clock::Clock;
use crate::domain::Timestamp;
use crate::domain::retry::RetryPolicy;
use crate::domain::workflow::Recipient;
use crate::store::{OutboxEntry, SILENT_FOR, Store, StoreError};

/// Messages taken at once.
const BATCH: u32 = 32;
/// Recipients to whom messages are on their way at once.
const AT_ONCE: usize = 8;
/// How often more are taken while some are on their way.
const TAKES_EVERY: Duration = Duration::from_secs(1);
/// Nobody else takes a message meanwhile, while this process lives: what it may wait here, what sending it may take, and
/// some. What takes longer is held again.
const HOLD: Duration = Duration::from_secs(60 + 60 + 30);
/// What became of a message that was being sent when its process ended.
const CUT_OFF: &str = "the process ended while it was being sent: it may have come";
const _: () = assert!(HOLD.as_secs() > 2 * PATIENCE.as_secs());

/// A little over half a day in all.
const RETRY: RetryPolicy = RetryPolicy {
    attempts: 20,
    backoff: Duration::from_secs(5),
    factor: 2.0,
    max: Duration::from_secs(3_600),
};

/// What came of one message.
enum Delivered {
    Sent,
    /// It has no turn before this.
    Waits(Timestamp),
    /// It failed, or it is somebody else's by now: it is recorded, or theirs to record.
    Settled,
}

/// Sends the messages that are due, and says how many were sent. One that
/// fails is tried again later; one that is refused for good is given up.
pub async fn drain_once(
    store: &dyn Store,
    notifiers: &Notifiers,
    clock: &dyn Clock,
) -> Result<usize, StoreError> {
    drain_until(store, notifiers, clock, &Closing::default()).await
}

/// The same, in a process that may end meanwhile: what it has no time to begin is anybody's at once, as if it had not
/// been taken; so is what it cuts off, which alone may come twice.
///
/// To each recipient messages go one by one, in the order they were queued: once one has no turn, those after it that
/// are here wait with it. Who takes long keeps nobody else waiting: what is queued meanwhile is taken, too.
pub async fn drain_until(
    store: &dyn Store,
    notifiers: &Notifiers,
    clock: &dyn Clock,
    closing: &Closing,
) -> Result<usize, StoreError> {
    if !closing.may_begin() {
        return Ok(0);
    }
    let outbox = Outbox { store, notifiers, clock, closing };
    let (mut lines, mut sent, mut sending, mut trouble) = (Lines::default(), 0, 0, None);
    let mut is_away = false;
    // All at once: one of them may be in the database, and go on only when it is asked.
    let mut under_way = FuturesUnordered::from_iter([outbox.take().boxed()]);
    let mut takes_at = None;
    loop {
        let goes_on = !is_away && closing.may_begin();
        while goes_on && sending < AT_ONCE {
            match lines.next() {
                Some(Next::Send(taken)) => {
                    sending += 1;
                    under_way.push(outbox.send(*taken).boxed());
                }
                Some(Next::TooLate(to, entries)) => {
                    under_way.push(outbox.give_back(to, entries, None).boxed());
                }
                None => break,
            }
        }
        // While the database is away, those that are sent find out when it is back.
        if !goes_on && (!is_away || sending == 0) {
            under_way.extend(
                lines.rest().into_iter().map(|(to, entries)| outbox.give_back(to, entries, None).boxed()),
            );
        }
        let takes = takes_at.filter(|_| closing.may_begin() && (1..AT_ONCE).contains(&sending));
        let done = tokio::select! {
            done = under_way.next() => done,
            () = sleep_until(takes.unwrap_or_else(Instant::now)), if takes.is_some() => {
                takes_at = None;
                under_way.push(outbox.take().boxed());
                continue;
            }
        };
        let failed = match done {
            None => return trouble.map_or(Ok(sent), Err),
            Some(Done::Took(at, taken)) => {
                takes_at = Some(Instant::now() + TAKES_EVERY);
                is_away &= taken.is_err();
                taken.map(|entries| {
                    lines.add(entries.into_iter().map(|entry| (entry.notice.to.clone(), entry)), at)
                })
            }
            Some(Done::GaveBack(to, given)) => {
                lines.free(&to);
                given
            }
            Some(Done::Tried(to, tried)) => {
                sending -= 1;
                match tried {
                    Ok((entry, Delivered::Waits(until))) => {
                        let entries = std::iter::once(*entry).chain(lines.rest_of(&to)).collect();
                        under_way.push(outbox.give_back(to, entries, Some(until)).boxed());
                        Ok(())
                    }
                    Ok((_, came @ (Delivered::Sent | Delivered::Settled))) => {
                        lines.free(&to);
                        sent += usize::from(matches!(came, Delivered::Sent));
                        Ok(())
                    }
                    Err(error) => {
                        lines.free(&to);
                        Err(error)
                    }
                }
            }
        };
        if let Err(error) = failed {
            is_away = true;
            trouble.get_or_insert(error);
        }
    }
}

/// Something that was under way is done.
enum Done {
    Took(Timestamp, Result<Vec<OutboxEntry>, StoreError>),
    Tried(Recipient, Result<(Box<OutboxEntry>, Delivered), StoreError>),
    GaveBack(Recipient, Result<(), StoreError>),
}

/// What sending needs.
struct Outbox<'a> {
    store: &'a dyn Store,
    notifiers: &'a Notifiers,
    clock: &'a dyn Clock,
    closing: &'a Closing,
}

impl Outbox<'_> {
    async fn take(&self) -> Done {
        let at = self.clock.now();
        Done::Took(at, self.store.take_outbox(BATCH, HOLD, at).await)
    }

    async fn send(&self, Taken { message: entry, at, .. }: Taken<OutboxEntry>) -> Done {
        let to = entry.notice.to.clone();
        let tried = deliver(self.store, self.notifiers, self.clock, self.closing, entry, at).await;
        Done::Tried(to, tried.map(|(entry, came)| (Box::new(entry), came)))
    }

    /// They were not tried, and have no turn before `until`.
    async fn give_back(&self, to: Recipient, entries: Vec<OutboxEntry>, until: Option<Timestamp>) -> Done {
        let until = until.unwrap_or_else(|| self.clock.now());
        Done::GaveBack(to, self.store.outbox_waits(&entries.iter().collect::<Vec<_>>(), until).await)
    }
}

/// A message that was taken to be sent.
struct HeldEntry<'a> {
    store: &'a dyn Store,
    closing: &'a Closing,
    id: i64,
    attempts: u32,
    until: Option<Timestamp>,
}

#[async_trait]
impl Held for HeldEntry<'_> {
    const HOLD: Duration = HOLD;
    const TRUSTED_FOR: Duration = SILENT_FOR;
    type Error = StoreError;

    async fn again(&mut self, at: Timestamp) -> Result<bool, StoreError> {
        let again = || self.store.hold_outbox(self.id, self.attempts, self.until, HOLD, at);
        self.until = noted(self.closing, again).await?;
        Ok(self.until.is_some())
    }
}

/// Sends one message and records what came of it, but for one that waits.
async fn deliver(
    store: &dyn Store,
    notifiers: &Notifiers,
    clock: &dyn Clock,
    closing: &Closing,
    mut entry: OutboxEntry,
    taken_at: Timestamp,
) -> Result<(OutboxEntry, Delivered), StoreError> {
    let below = match board_of(notifiers, &entry) {
        Some((run, name)) => store.board_of(run, name).await?,
        None => None,
    };
    let mut held = HeldEntry { store, closing, id: entry.id, attempts: entry.attempts, until: entry.due_at };
    let sending = while_held(send(notifiers, &entry, below.as_ref()), &mut held, clock, taken_at);
    let sent = tokio::select! {
        sent = sending => Some(sent?),
        () = closing.cuts_off() => None,
    };
    entry.due_at = held.until;
    let now = clock.now();
    let Some(sent) = sent else {
        let key = &entry.notice.key;
        tracing::warn!(
            message.key = key,
            "Message `{key}` was cut off as this process ends, and is sent again: {CUT_OFF}"
        );
        store.outbox_failed(&entry, CUT_OFF, Some(now)).await?;
        return Ok((entry, Delivered::Settled));
    };
    let error = match sent {
        Some(Ok(())) => {
            noted(closing, || store.outbox_sent(entry.id, now)).await?;
            return Ok((entry, Delivered::Sent));
        }
        None => {
            let key = &entry.notice.key;
            tracing::warn!(message.key = key, "Message `{key}` was left to another process");
            return Ok((entry, Delivered::Settled));
        }
        Some(Err(NotSent::NoTurn { service, wait })) => match turn_after(wait, now, entry.queued_at) {
            Some(until) => {
                tracing::debug!(message.key = entry.notice.key, %until, "Message waits: {service} takes no more");
                return Ok((entry, Delivered::Waits(until)));
            }
            None => AdapterError::from(NotSent::NoTurn { service, wait }),
        },
        Some(Err(NotSent::Failed(error))) => error,
    };
    let retry_at = next_attempt(&entry, &error, now, rand::random());
    match retry_at {
        Some(at) => {
            tracing::warn!(message.key = entry.notice.key, %at, "Message not sent, tried again: {error}")
        }
        None => tracing::error!(message.key = entry.notice.key, "Message given up: {error}"),
    }
    store.outbox_failed(&entry, &error.to_string(), retry_at).await?;
    Ok((entry, Delivered::Settled))
}

/// When a message that failed is tried again; never, when trying cannot help or was tried enough.
fn next_attempt(entry: &OutboxEntry, error: &AdapterError, now: Timestamp, jitter: f64) -> Option<Timestamp> {
    match error {
        // The attempt that just failed is counted by `take_outbox`.
        AdapterError::Unavailable { retry_after, .. } => {
            RETRY.next_attempt(entry.attempts.max(1), now, *retry_after, jitter)
        }
        AdapterError::Denied { .. } | AdapterError::Rejected { .. } | AdapterError::Conflict { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, VecDeque};
    use std::sync::{Arc, Mutex};

    use chrono::TimeDelta;
    use serde_json::json;
    use wiremock::matchers::method;
    use wiremock::{Mock, MockServer, ResponseTemplate};

    use super::*;
    use crate::adapter::{Deps, Message, Notifier};
    use crate::clock::ManualClock;
    use crate::domain::workflow::Moment;
    use crate::secret::{Secret, Secrets};
    use crate::store::Notice;

    fn at(seconds: i64) -> Timestamp {
        chrono::DateTime::from_timestamp(seconds, 0).expect("in range")
    }

    fn notice(key: &str, to: Recipient) -> Notice {
        Notice {
            key: key.to_owned(),
            run: None,
            model: "race-times".parse().expect("a name"),
            moment: Moment::Promoted,
            to,
            facts: json!({"workflow": "retrain", "version": "v2"}),
        }
    }

    fn entry(to: Recipient, attempts: u32) -> OutboxEntry {
        OutboxEntry {
            id: 1,
            notice: notice("run/end/0", to),
            attempts,
            queued_at: at(0),
            sent_at: None,
            dead: false,
            last_error: None,
            due_at: None,
        }
    }

    fn notifiers(slack: &str) -> Notifiers {
        let deps = Deps {
            project: "/".into(),
            secrets: Secrets::fixed([("URL".parse().expect("a name"), Secret::new(slack))].into()),
            http: crate::http_client::build().expect("a client"),
            stores: Arc::new(BTreeMap::new()),
        };
        let tables = [
            ("team".parse().expect("a name"), json!({"kind": "slack", "url": "URL"})),
            ("log".parse().expect("a name"), json!({"kind": "console"})),
        ];
        Notifiers::build(tables.into(), None, &deps).expect("built")
    }

    /// A service that first takes nothing for so long each, and then everything.
    #[derive(Default)]
    struct Busy {
        waits: Mutex<VecDeque<Duration>>,
        came: Mutex<Vec<Message>>,
    }

    #[async_trait]
    impl Notifier for Busy {
        async fn send(&self, message: &Message) -> Result<(), NotSent> {
            match self.waits.lock().expect("no panic").pop_front() {
                Some(wait) => Err(NotSent::NoTurn { service: "Slack", wait }),
                None => {
                    self.came.lock().expect("no panic").push(message.clone());
                    Ok(())
                }
            }
        }
    }

    #[tokio::test]
    async fn messages_that_a_service_takes_later_keep_their_order_and_use_up_no_try() {
        let dir = tempfile::tempdir().expect("a directory");
        let clock = Arc::new(ManualClock::starting_at(at(1_800_000_000)));
        let path = dir.path().join("refit.db").display().to_string();
        let store = crate::store::open(&path, clock.clone()).await.expect("a database");
        // The others are not asked for: they would come before it.
        let service =
            Arc::new(Busy { waits: Mutex::new([Duration::from_secs(3)].into()), ..Busy::default() });
        let mut notifiers = notifiers("http://127.0.0.1:1");
        notifiers.named.insert("team".parse().expect("a name"), service.clone());
        let team = Recipient::Slack("team".parse().expect("a name"));
        let notices = ["a", "b", "c"].map(|key| notice(key, team.clone()));
        store.queue_notices(&notices, clock.now()).await.expect("queued");
        let mut sent = vec![];
        for _ in 0..4 {
            sent.push(drain_once(store.as_ref(), &notifiers, clock.as_ref()).await.expect("tried"));
            clock.advance(TimeDelta::seconds(1));
        }
        assert_eq!(sent, [0, 0, 0, 3]);
        let came = service.came.lock().expect("no panic");
        let came: Vec<_> = came.iter().map(|message| (message.id.as_str(), message.tried_since)).collect();
        assert_eq!(came, [("a", None), ("b", None), ("c", None)]);
    }

    /// A service that refuses the first message only after whatever else was on its way then came.
    #[derive(Default)]
    struct Late {
        refused: Mutex<bool>,
        came: Mutex<Vec<String>>,
    }

    #[async_trait]
    impl Notifier for Late {
        async fn send(&self, message: &Message) -> Result<(), NotSent> {
            if message.id == "a" && !std::mem::replace(&mut *self.refused.lock().expect("no panic"), true) {
                for _ in 0..100 {
                    tokio::task::yield_now().await;
                }
                return Err(NotSent::NoTurn { service: "Slack", wait: Duration::from_secs(1) });
            }
            self.came.lock().expect("no panic").push(message.id.clone());
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_message_that_was_on_its_way_beside_one_that_is_refused_does_not_overtake_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let clock = Arc::new(ManualClock::starting_at(at(1_800_000_000)));
        let path = dir.path().join("refit.db").display().to_string();
        let store = crate::store::open(&path, clock.clone()).await.expect("a database");
        let service = Arc::new(Late::default());
        let mut notifiers = notifiers("http://127.0.0.1:1");
        notifiers.named.insert("team".parse().expect("a name"), service.clone());
        let [team, log] = ["team", "log"].map(|name| Recipient::Slack(name.parse().expect("a name")));
        let notices =
            [notice("a", team.clone()), notice("b", team.clone()), notice("c", log), notice("d", team)];
        store.queue_notices(&notices, clock.now()).await.expect("queued");
        let sent = drain_once(store.as_ref(), &notifiers, clock.as_ref()).await.expect("tried");
        assert_eq!(sent, 1, "who is somebody else's does not wait");
        clock.advance(TimeDelta::seconds(1));
        let sent = drain_once(store.as_ref(), &notifiers, clock.as_ref()).await.expect("tried");
        assert_eq!(sent, 3);
        assert_eq!(*service.came.lock().expect("no panic"), ["a", "b", "d"]);
    }

    #[tokio::test]
    async fn each_recipient_is_reached_by_its_notifier() {
        let server = MockServer::start().await;
        Mock::given(method("POST"))
            .respond_with(ResponseTemplate::new(200).set_body_string("ok"))
            .expect(1)
            .mount(&server)
            .await;
        let notifiers = notifiers(&server.uri());
        let slack = |name: &str| Recipient::Slack(name.parse().expect("a name"));
        for to in [slack("team"), slack("log"), Recipient::Console] {
            send(&notifiers, &entry(to, 1), None).await.expect("sent");
        }
        let body: serde_json::Value =
            server.received_requests().await.expect("recorded")[0].body_json().expect("JSON");
        assert_eq!(body["text"], "race-times v2 was promoted");
    }

    #[tokio::test]
    async fn a_recipient_that_nobody_can_reach_is_given_up_with_those_there_are() {
        let notifiers = notifiers("http://127.0.0.1:1");
        let unknown = entry(Recipient::Slack("ops".parse().expect("a name")), 1);
        let error = AdapterError::from(send(&notifiers, &unknown, None).await.expect_err("unknown"));
        assert_eq!(error.to_string(), "refit.toml could not find notifier `ops`: it has log, team");
        assert_eq!(next_attempt(&unknown, &error, at(0), 0.0), None);
        let mail = entry(Recipient::Email(vec!["a@example.com".to_owned()]), 1);
        let error = AdapterError::from(send(&notifiers, &mail, None).await.expect_err("no mailer"));
        assert!(!error.is_transient(), "{error}");
    }

    #[tokio::test]
    async fn a_message_that_fails_is_tried_later_and_later_and_then_given_up() {
        let team = Recipient::Slack("team".parse().expect("a name"));
        let error = send(&notifiers("http://127.0.0.1:1"), &entry(team.clone(), 1), None)
            .await
            .map_err(AdapterError::from)
            .expect_err("nobody there");
        let next = |attempts| next_attempt(&entry(team.clone(), attempts), &error, at(0), 1.0);
        assert_eq!(next(1), Some(at(5)));
        assert_eq!(next(2), Some(at(10)));
        assert_eq!(next(19), Some(at(3_600)));
        assert_eq!(next(20), None);
        let asked = AdapterError::Unavailable {
            service: "Slack".to_owned(),
            cause: "429".to_owned(),
            retry_after: Some(Duration::from_secs(90)),
        };
        assert_eq!(next_attempt(&entry(team.clone(), 1), &asked, at(0), 1.0), Some(at(90)));
    }
}
