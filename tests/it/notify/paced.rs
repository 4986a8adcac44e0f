//! Messages that come later than they were taken: Slack takes no more for a while, or the process stood still.

use std::sync::Arc;

use chrono::TimeDelta;
use refit::clock::Clock as _;
use refit::domain::id::RunId;
use refit::domain::workflow::Recipient;
use refit::notify::outbox;
use refit::store::Notice;
use sqlx::Connection as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

use super::follow::{Followed, notifiers};
use crate::store::make;
use crate::support::crash::{Crash, When, Write};
use crate::support::faults::Fault;
use crate::support::world::World;

/// Messages about `run` for the team.
fn notices(run: RunId, keys: &[&str]) -> Vec<Notice> {
    let team = Recipient::Slack("team".parse().expect("a name"));
    keys.iter().map(|key| Notice { to: team.clone(), ..make::notice(key, Some(run)) }).collect()
}

/// Which messages came, in order.
fn came(followed: &Followed) -> Vec<String> {
    let id = |metadata: serde_json::Value| metadata["event_payload"]["id"].as_str().map(str::to_owned);
    followed.slack.messages().into_iter().filter_map(|message| id(message.metadata)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_slack_never_takes_is_no_secret() {
    let followed = Followed::new(World::sqlite(), false).await;
    let run = followed.start().await;
    let store = followed.engine.store.as_ref();
    store.queue_notices(&notices(run, &["a"]), followed.world.clock.now()).await.expect("queued");
    let why = async |waited: TimeDelta| {
        followed.world.pass(waited);
        followed.slack.server.next(Fault::Answer(429, vec![("retry-after", "0")], String::new()));
        followed.tell().await;
        store.outbox_of(run).await.expect("readable")[0].last_error.clone()
    };
    assert_eq!(why(TimeDelta::hours(1)).await, None, "it waits its turn");
    let said = why(TimeDelta::days(1)).await.expect("a failure");
    assert_eq!(said, "Slack is unavailable: its limit of requests is used up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runs_own_message_that_slack_never_takes_is_no_secret() {
    let followed = Followed::new(World::sqlite(), true).await;
    let run = followed.start().await;
    let (store, team) = (followed.engine.store.as_ref(), "team".parse().expect("a name"));
    store.touch_boards(run, &[team], followed.world.clock.now()).await.expect("touched");
    let why = async |waited: TimeDelta| {
        followed.world.pass(waited);
        followed.slack.server.next(Fault::Answer(429, vec![("retry-after", "0")], String::new()));
        followed.tell().await;
        let options = SqliteConnectOptions::new().filename(&followed.world.database);
        let mut database = SqliteConnection::connect_with(&options).await.expect("there");
        let said: Option<String> = sqlx::query_scalar("SELECT last_error FROM boards")
            .fetch_one(&mut database)
            .await
            .expect("readable");
        database.close().await.expect("closed");
        said
    };
    assert_eq!(why(TimeDelta::hours(1)).await, None, "it waits its turn");
    let said = why(TimeDelta::days(1)).await.expect("a failure");
    assert_eq!(said, "Slack is unavailable: its limit of requests is used up");
}

/// A process that stands still for ten minutes once it has `taken` messages, and one that tells meanwhile.
async fn frozen(followed: &Followed, progress: bool, taken: &str) -> Followed {
    let (engine, clock) = (Arc::clone(&followed.engine), Arc::clone(&followed.world.clock));
    let others = Arc::new(notifiers(&followed.slack, progress));
    let crash = Crash::meanwhile(Write { name: taken.to_owned(), nth: 0 }, When::After, move || {
        let (engine, clock, others) = (Arc::clone(&engine), Arc::clone(&clock), Arc::clone(&others));
        async move {
            clock.advance(TimeDelta::minutes(10));
            engine.show_boards(&others).await.expect("shown");
            outbox::drain_once(engine.store.as_ref(), &others, clock.as_ref()).await.expect("sent");
        }
    });
    followed.beside(&crash).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_process_told_while_this_one_stood_still_is_not_told_again() {
    for (progress, taken) in [(true, "take_boards"), (false, "take_outbox")] {
        let followed = Followed::new(World::sqlite(), progress).await;
        let run = followed.start().await;
        let (store, now) = (followed.engine.store.as_ref(), followed.world.clock.now());
        if progress {
            store.touch_boards(run, &["team".parse().expect("a name")], now).await.expect("touched");
        } else {
            store.queue_notices(&notices(run, &["a"]), now).await.expect("queued");
        }
        let late = frozen(&followed, progress, taken).await;
        late.tell().await;
        assert_eq!(came(&followed).len(), 1, "{taken}: {:#?}", came(&followed));
        // And it is over: nobody holds it, and nobody tells it again.
        followed.world.pass(TimeDelta::minutes(20));
        followed.tell().await;
        assert_eq!(came(&followed).len(), 1, "{taken}: {:#?}", came(&followed));
        followed.slack.violations.assert_none();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_told_while_this_process_stood_still_it_tells_itself() {
    let followed = Followed::new(World::sqlite(), false).await;
    let run = followed.start().await;
    let (store, clock) = (followed.engine.store.as_ref(), Arc::clone(&followed.world.clock));
    store.queue_notices(&notices(run, &["a"]), clock.now()).await.expect("queued");
    let crash = Crash::meanwhile(Write { name: "take_outbox".to_owned(), nth: 0 }, When::After, move || {
        clock.advance(TimeDelta::minutes(10));
        std::future::ready(())
    });
    followed.beside(&crash).await.tell().await;
    assert_eq!(came(&followed), ["a"]);
    assert_eq!(store.outbox_of(run).await.expect("readable")[0].attempts, 1);
}
