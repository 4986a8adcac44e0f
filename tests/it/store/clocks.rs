//! Processes whose clocks differ share a Postgres: what is due goes by its own.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::TimeDelta;
use refit::adapter::Posted;
use refit::clock::{Clock, SystemClock};
use refit::domain::Timestamp;

use super::database::Database;
use super::make::{self, notice};

const HOLD: Duration = Duration::from_secs(60);

/// The clock of a machine that is ten minutes fast.
struct Fast;

#[async_trait]
impl Clock for Fast {
    fn now(&self) -> Timestamp {
        SystemClock.now() + TimeDelta::minutes(10)
    }

    async fn wait_until(&self, until: Timestamp) {
        SystemClock.wait_until(until - TimeDelta::minutes(10)).await;
    }

    fn is_real(&self) -> bool {
        true
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_a_process_whose_clock_is_fast_are_not_late() {
    let db = Database::postgres().await;
    let (fast, other) = (db.open_with(Arc::new(Fast)).await, db.open_with(Arc::new(SystemClock)).await);
    let take = async || other.take_outbox(9, HOLD, SystemClock.now()).await.expect("taken");
    fast.queue_notices(&[notice("a", None)], Fast.now()).await.expect("queued");
    let a = take().await.remove(0);
    fast.outbox_waits(&[&a], Fast.now()).await.expect("noted");
    let a = take().await.remove(0);
    fast.outbox_failed(&a, "503", Some(Fast.now())).await.expect("noted");
    let a = take().await.remove(0);
    // Nor are they early.
    fast.outbox_failed(&a, "503", Some(Fast.now() + TimeDelta::minutes(1))).await.expect("noted");
    assert!(take().await.is_empty(), "it waits");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_a_process_whose_clock_is_fast_keeps_up_to_date_are_not_late() {
    let db = Database::postgres().await;
    let (fast, other) = (db.open_with(Arc::new(Fast)).await, db.open_with(Arc::new(SystemClock)).await);
    let take = async || other.take_boards(9, HOLD, SystemClock.now()).await.expect("taken");
    let (run, team) = (make::run(&other, SystemClock.now()).await, ["team".parse().expect("a name")]);
    fast.touch_boards(run, &team, Fast.now()).await.expect("touched");
    let board = take().await.remove(0);
    fast.board_waits(&board, Fast.now()).await.expect("noted");
    let board = take().await.remove(0);
    fast.board_failed(&board, "503", Some(Fast.now()), Fast.now()).await.expect("noted");
    let board = take().await.remove(0);
    fast.touch_boards(run, &team, Fast.now()).await.expect("touched");
    let place = Posted { channel: "C1".to_owned(), ts: "1.1".to_owned() };
    fast.board_shown(&board, &place, "hash", Fast.now()).await.expect("noted");
    let board = take().await.remove(0);
    fast.touch_boards(run, &team, Fast.now()).await.expect("touched");
    fast.board_failed(&board, "not_in_channel", None, Fast.now()).await.expect("noted");
    let board = take().await.remove(0);
    fast.board_failed(&board, "503", Some(Fast.now() + TimeDelta::minutes(1)), Fast.now())
        .await
        .expect("noted");
    assert!(take().await.is_empty(), "it waits");
}
