//! A process ends while it has messages in hand, and a service keeps it waiting.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use futures::poll;
use refit::clock::{Clock as _, SystemClock};
use refit::domain::id::RunId;
use refit::domain::workflow::{Moment, Recipient};
use refit::engine::deadline::Deadline;
use refit::engine::worker::Worker;
use refit::engine::{Engine, Settings};
use refit::notify::closing::Closing;
use refit::notify::{Notifiers, outbox};
use refit::store::Notice;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::deps;
use crate::store::make;
use crate::support::crash::Crash;
use crate::support::faults::{Fault, Rule, Server};
use crate::support::slack::{Slack, TOKEN};
use crate::support::world::{World, exists};

/// A webhook that answers nothing until it is opened.
pub(super) struct Door {
    server: Server,
    open: Arc<watch::Sender<bool>>,
    asked: mpsc::UnboundedReceiver<String>,
}

impl Door {
    pub(super) fn new() -> Self {
        let open = Arc::new(watch::Sender::new(false));
        let (asks, asked) = mpsc::unbounded_channel();
        let is_open = Arc::clone(&open);
        let router = Router::new().fallback(move |body: String| {
            let (mut is_open, asks) = (is_open.subscribe(), asks.clone());
            async move {
                let body: Value = serde_json::from_str(&body).expect("JSON");
                asks.send(body["text"].as_str().expect("a text").to_owned()).expect("somebody looks");
                is_open.wait_for(|open| *open).await.expect("the sender lives");
                "ok"
            }
        });
        Self { server: Server::start(router), open, asked }
    }

    pub(super) fn open(&self) {
        self.open.send_replace(true);
    }

    /// What comes next.
    pub(super) async fn next(&mut self) -> String {
        let next = tokio::time::timeout(Duration::from_secs(60), self.asked.recv());
        next.await.expect("it comes").expect("the door lives")
    }

    /// What came since.
    pub(super) fn came(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.asked.try_recv().ok()).collect()
    }

    fn notifiers(&self) -> Notifiers {
        self.and(&Door::new())
    }

    /// Team is behind this one, ops behind the other.
    pub(super) fn and(&self, other: &Door) -> Notifiers {
        let table = |secret: &str| json!({"kind": "slack", "url": secret});
        let tables = [("team", "TEAM"), ("ops", "OPS")]
            .map(|(name, secret)| (name.parse().expect("a name"), table(secret)));
        let secrets = [("TEAM", self.server.url.clone()), ("OPS", other.server.url.clone())];
        Notifiers::build(tables.into(), None, &deps(&secrets)).expect("notifiers")
    }
}

pub(super) fn said(version: &str) -> String {
    format!("race-times {version} was promoted")
}

async fn engine(world: &World, grace: Duration, boards: &[&str]) -> Arc<Engine> {
    let boards: BTreeSet<_> = boards.iter().map(|name| name.parse().expect("a name")).collect();
    let settings = Settings { grace, boards, ..Settings::default() };
    world.unregistered(&Crash::never(), Arc::new(SystemClock), settings).await
}

/// Nobody here works on a run of it.
const ELSEWHERE: &str = "name: w\nmodel: m\nsteps: [{ id: one, runs_on: [gpu], run: 'true' }]\n";

/// Three messages for the team, about a run that nobody works on here.
async fn three(world: &World, engine: &Arc<Engine>) -> RunId {
    let run = world.trigger(engine, ELSEWHERE).await;
    let notices = ["a", "b", "c"].map(|version| Notice {
        moment: Moment::Promoted,
        to: Recipient::Slack("team".parse().expect("a name")),
        facts: json!({"workflow": "w", "version": version}),
        ..make::notice(version, Some(run))
    });
    engine.store.queue_notices(&notices, SystemClock.now()).await.expect("queued");
    run
}

/// How often each message of the run was tried; all that were not sent are due.
async fn tried(engine: &Engine, run: RunId) -> Vec<u32> {
    let entries = engine.store.outbox_of(run).await.expect("readable");
    for entry in &entries {
        assert!(entry.due_at.is_none_or(|at| at <= SystemClock.now()), "it is held: {entry:#?}");
    }
    entries.iter().map(|entry| entry.attempts).collect()
}

async fn on_both(test: impl AsyncFn(World)) {
    test(World::sqlite()).await;
    test(World::postgres().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_the_messages_in_hand_only_the_one_that_was_cut_off_can_come_twice() {
    on_both(async |world| {
        let (mut door, first) = (Door::new(), engine(&world, Duration::from_secs(8), &[]).await);
        let run = three(&world, &first).await;
        let worker = Worker::start(Arc::clone(&first), Arc::new(door.notifiers())).await.expect("starts");
        assert_eq!(door.next().await, said("a"));
        worker.shut_down(Deadline::within(first.settings.grace)).await.expect("in good order");
        assert_eq!(tried(&first, run).await, [1, 0, 0]);

        // The next process tells all of them at once.
        let next = engine(&world, Duration::from_secs(8), &[]).await;
        door.open();
        let sent = outbox::drain_once(next.store.as_ref(), &door.notifiers(), &SystemClock).await;
        assert_eq!(sent.expect("sent"), 3);
        assert_eq!(door.came(), ["a", "b", "c"].map(said));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_in_hand_are_told_one_by_one_while_a_process_that_ends_has_time() {
    let world = World::sqlite();
    let (mut door, engine) = (Door::new(), engine(&world, Duration::from_secs(60), &[]).await);
    let run = three(&world, &engine).await;
    let worker = Worker::start(Arc::clone(&engine), Arc::new(door.notifiers())).await.expect("starts");
    assert_eq!(door.next().await, said("a"));
    let mut ending = pin!(worker.shut_down(Deadline::within(engine.settings.grace)));
    assert!(poll!(ending.as_mut()).is_pending(), "a message is being sent");
    door.open();
    ending.await.expect("in good order");
    assert_eq!(door.came(), ["b", "c"].map(said));
    assert_eq!(tried(&engine, run).await, [1, 1, 1]);
}

#[tokio::test]
async fn a_message_is_not_begun_when_it_would_have_no_time_to_end() {
    let world = World::sqlite();
    let (mut door, engine) = (Door::new(), engine(&world, Duration::from_secs(60), &[]).await);
    let run = three(&world, &engine).await;
    let (notifiers, closing) = (door.notifiers(), Closing::default());
    let mut sending = pin!(outbox::drain_until(engine.store.as_ref(), &notifiers, &SystemClock, &closing));
    tokio::select! {
        sent = &mut sending => panic!("it waits at the door: {sent:?}"),
        asked = door.next() => assert_eq!(asked, said("a")),
    }
    let now = Instant::now();
    closing.close(now, now + Duration::from_secs(3_600));
    door.open();
    assert_eq!(sending.await.expect("sent"), 1);
    assert_eq!(tried(&engine, run).await, [1, 0, 0]);
    assert!(door.came().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_ends_within_the_grace_time_is_told_of() {
    on_both(async |world| {
        let (mut door, engine) = (Door::new(), engine(&world, Duration::from_secs(60), &[]).await);
        door.open();
        let worker = Worker::start(Arc::clone(&engine), Arc::new(door.notifiers())).await.expect("starts");
        let flow = "
name: w
model: m
notify: [{ on: [succeeded], slack: team }]
steps: [{ id: one, run: 'touch began; while [ ! -e go ]; do sleep 0.02; done' }]
";
        world.trigger(&engine, flow).await;
        exists(&world, "began").await;
        let mut ending = pin!(worker.shut_down(Deadline::within(engine.settings.grace)));
        assert!(poll!(ending.as_mut()).is_pending(), "a step runs");
        world.write("go", "");
        ending.await.expect("in good order");
        assert_eq!(door.came(), ["m: w ended well"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_follow_runs_are_anybodys_at_once_too() {
    on_both(async |world| {
        let slack = Slack::start().await;
        slack.server.fault(Rule::on(Fault::StopBefore, |_| true));
        // One more than are on their way at once.
        let names = ["a", "b", "c", "d", "e"];
        let table = json!({
            "kind": "slack-api", "token": "TOKEN", "channel": "#models", "progress": true,
            "base_url": format!("{}/api", slack.address),
        });
        let tables = names.map(|name| (name.parse().expect("a name"), table.clone()));
        let deps = deps(&[("TOKEN", TOKEN.to_owned())]);
        let notifiers = Arc::new(Notifiers::build(tables.into(), None, &deps).expect("notifiers"));
        let engine = engine(&world, Duration::from_secs(8), &names).await;
        let run = world.trigger(&engine, ELSEWHERE).await;
        let boards = names.map(|name| name.parse().expect("a name"));
        engine.store.touch_boards(run, &boards, SystemClock.now()).await.expect("touched");
        let worker = Worker::start(Arc::clone(&engine), notifiers).await.expect("starts");
        slack.server.stopped().await;
        worker.shut_down(Deadline::within(engine.settings.grace)).await.expect("in good order");
        let due = engine.store.take_boards(8, Duration::from_secs(60), SystemClock.now()).await;
        // This take counts for each.
        let mut tried: Vec<_> = due.expect("taken").iter().map(|board| board.attempts - 1).collect();
        tried.sort();
        assert_eq!(tried, [0, 1, 1, 1, 1], "nobody holds them");
    })
    .await;
}
