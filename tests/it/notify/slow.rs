//! A service keeps one recipient waiting, or the database goes away while messages are on their way: the others get
//! theirs.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use refit::clock::Clock as _;
use refit::domain::workflow::{Moment, Recipient};
use refit::engine::{Engine, Settings};
use refit::notify::outbox;
use refit::store::{self, Notice, StoreError};
use serde_json::json;

use super::stopping::{Door, said};
use crate::store::database::Database;
use crate::store::make;
use crate::support::crash::Crash;
use crate::support::wire::Wire;
use crate::support::world::World;

async fn on_both(test: impl AsyncFn(World)) {
    test(World::sqlite()).await;
    test(World::postgres().await).await;
}

async fn queue(engine: &Engine, to: &str, version: &str) {
    let notice = Notice {
        moment: Moment::Promoted,
        to: Recipient::Slack(to.parse().expect("a name")),
        facts: json!({"workflow": "w", "version": version}),
        ..make::notice(version, None)
    };
    engine.store.queue_notices(&[notice], engine.clock.now()).await.expect("queued");
}

async fn engine(world: &World, crash: &Crash) -> Arc<Engine> {
    world.unregistered(crash, world.clock.clone(), Settings::default()).await
}

/// Also later on.
async fn nobody_is_due(world: &World, engine: &Engine) {
    world.pass(TimeDelta::hours(1));
    let due = engine.store.take_outbox(9, Duration::from_secs(60), world.clock.now()).await;
    assert_eq!(due.expect("taken"), [], "all are sent");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recipient_that_takes_long_keeps_no_others_waiting() {
    on_both(async |world| {
        let (mut team, mut ops, engine) = (Door::new(), Door::new(), engine(&world, &Crash::never()).await);
        ops.open();
        queue(&engine, "team", "a").await;
        let (notifiers, clock) = (team.and(&ops), engine.clock.as_ref());
        let mut sending = pin!(outbox::drain_once(engine.store.as_ref(), &notifiers, clock));
        tokio::select! {
            sent = &mut sending => panic!("it waits at the door: {sent:?}"),
            asked = team.next() => assert_eq!(asked, said("a")),
        }
        queue(&engine, "team", "b").await;
        queue(&engine, "ops", "c").await;
        queue(&engine, "team", "d").await;
        tokio::select! {
            sent = &mut sending => panic!("it waits at the door: {sent:?}"),
            asked = ops.next() => assert_eq!(asked, said("c")),
        }
        assert!(team.came().is_empty(), "one at a time");
        team.open();
        assert_eq!(sending.await.expect("sent"), 4);
        assert_eq!(team.came(), ["b", "d"].map(said));
        nobody_is_due(&world, &engine).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_are_sent_while_the_database_goes_away_come_once() {
    on_both(async |world| {
        let crash = Crash::never();
        let (mut team, mut ops, engine) = (Door::new(), Door::new(), engine(&world, &crash).await);
        queue(&engine, "team", "a").await;
        queue(&engine, "ops", "b").await;
        let (notifiers, clock) = (team.and(&ops), engine.clock.as_ref());
        let mut sending = pin!(outbox::drain_once(engine.store.as_ref(), &notifiers, clock));
        tokio::select! {
            sent = &mut sending => panic!("it waits at the door: {sent:?}"),
            asked = async { (team.next().await, ops.next().await) } => assert_eq!(asked, (said("a"), said("b"))),
        }
        crash.outage(true);
        team.open();
        tokio::select! {
            sent = &mut sending => panic!("ops waits at the door: {sent:?}"),
            () = crash.unanswered("outbox_sent") => {}
        }
        ops.open();
        crash.outage(false);
        assert_eq!(sending.await.expect("sent"), 2);
        nobody_is_due(&world, &engine).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_took_long_comes_once_though_the_database_goes_away_before_the_answer() {
    on_both(async |world| {
        let crash = Crash::never();
        let (mut team, engine) = (Door::new(), engine(&world, &crash).await);
        queue(&engine, "team", "a").await;
        let (notifiers, clock) = (team.and(&Door::new()), engine.clock.as_ref());
        let mut sending = pin!(outbox::drain_once(engine.store.as_ref(), &notifiers, clock));
        tokio::select! {
            sent = &mut sending => panic!("it waits at the door: {sent:?}"),
            asked = team.next() => assert_eq!(asked, said("a")),
        }
        world.pass(TimeDelta::seconds(10));
        crash.outage(true);
        team.open();
        tokio::select! {
            sent = &mut sending => panic!("nobody knows whose it is: {sent:?}"),
            () = crash.unanswered("hold_outbox") => {}
        }
        crash.outage(false);
        assert_eq!(sending.await.expect("sent"), 1);
        nobody_is_due(&world, &engine).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_finds_the_database_away_goes_on_with_what_it_took_once_that_is_back() {
    on_both(async |world| {
        let crash = Crash::never();
        let (mut team, mut ops, engine) = (Door::new(), Door::new(), engine(&world, &crash).await);
        for (to, version) in [("team", "a"), ("ops", "b"), ("team", "c")] {
            queue(&engine, to, version).await;
        }
        let (notifiers, clock) = (team.and(&ops), engine.clock.as_ref());
        let mut sending = pin!(outbox::drain_once(engine.store.as_ref(), &notifiers, clock));
        tokio::select! {
            sent = &mut sending => panic!("it waits at the door: {sent:?}"),
            asked = async { (team.next().await, ops.next().await) } => assert_eq!(asked, (said("a"), said("b"))),
        }
        crash.outage(true);
        tokio::select! {
            sent = &mut sending => panic!("it waits at the door: {sent:?}"),
            () = crash.unanswered("take_outbox") => {}
        }
        ops.open();
        tokio::select! {
            sent = &mut sending => panic!("it waits at the door: {sent:?}"),
            () = crash.unanswered("outbox_sent") => {}
        }
        crash.outage(false);
        queue(&engine, "ops", "d").await;
        tokio::select! {
            sent = &mut sending => panic!("it waits at the door: {sent:?}"),
            asked = ops.next() => assert_eq!(asked, said("d")),
        }
        team.open();
        let trouble = sending.await;
        assert!(matches!(trouble, Err(StoreError::Away(_))), "{trouble:?}");
        assert_eq!((team.came(), ops.came()), (vec![said("c")], vec![]), "each once");
        nobody_is_due(&world, &engine).await;
    })
    .await;
}

/// Connections to Postgres that went silent while a message was on its way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_sent_is_noted_by_another_connection_where_one_went_silent() {
    let db = Database::postgres().await;
    let wire = Wire::to(&db.url).await;
    let store = store::open(&wire.url, db.clock.clone()).await.expect("opens");
    let mut team = Door::new();
    let notice = Notice {
        moment: Moment::Promoted,
        to: Recipient::Slack("team".parse().expect("a name")),
        facts: json!({"workflow": "w", "version": "a"}),
        ..make::notice("a", None)
    };
    store.queue_notices(&[notice], db.now()).await.expect("queued");
    let notifiers = team.and(&Door::new());
    let mut sending = pin!(outbox::drain_once(store.as_ref(), &notifiers, db.clock.as_ref()));
    tokio::select! {
        sent = &mut sending => panic!("it waits at the door: {sent:?}"),
        asked = team.next() => assert_eq!(asked, said("a")),
    }
    wire.forget();
    team.open();
    // A look for more messages may be under way just then, and is waited for longer: it finds the line dead.
    let looked = sending.await;
    assert!(matches!(looked, Ok(1) | Err(StoreError::Away(_))), "{looked:?}");
    let other = db.open().await;
    assert_eq!(other.take_outbox(9, Duration::from_secs(60), db.pass(3_600)).await.expect("taken"), []);
}
