//! Messages that follow runs.

use std::time::Duration;

use refit::adapter::Posted;
use refit::domain::id::NotifierName;
use refit::store::{Awaited, BoardEntry, Checkpoint, StoreError};
use serde_json::json;

use super::database::Database;
use super::make::{self, claim, next_step, worker};
use super::on_both;

on_both! {
    a_board_is_touched_with_its_checkpoint_or_not_at_all
    changes_are_one_board_and_one_process_shows_it
    a_board_that_was_not_tried_waits_and_was_not_tried
    a_board_is_taken_again_unless_somebody_else_took_it
    a_board_that_a_dead_worker_had_in_hand_is_due_at_once_and_one_that_it_had_given_back_is_not
    a_board_that_failed_waits_and_what_came_meanwhile_is_not_lost
}

const HOLD: Duration = Duration::from_secs(180);

fn team() -> Vec<NotifierName> {
    vec!["team".parse().expect("a name")]
}

fn place() -> Posted {
    Posted { channel: "C1".to_owned(), ts: "1.2".to_owned() }
}

async fn a_board_is_touched_with_its_checkpoint_or_not_at_all(db: Database) {
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let run = make::run(&store, db.now()).await;
    let held = claim(&store, run, worker, db.now()).await;
    let with_board = |checkpoint: Checkpoint| Checkpoint { boards: team(), ..checkpoint };
    let mut late = with_board(next_step(&held, "a", "b", json!(1), db.now()));
    late.epoch.0 -= 1;
    assert!(matches!(store.checkpoint(late).await, Err(StoreError::Fenced)));
    assert!(store.take_boards(10, HOLD, db.now()).await.expect("taken").is_empty());
    store.checkpoint(with_board(next_step(&held, "a", "b", json!(1), db.now()))).await.expect("written");
    let taken = store.take_boards(10, HOLD, db.now()).await.expect("taken");
    assert_eq!(taken.len(), 1);
    assert_eq!((taken[0].run, taken[0].notifier.as_str(), &taken[0].place), (run, "team", &None));
}

async fn changes_are_one_board_and_one_process_shows_it(db: Database) {
    let (one, two) = (db.open().await, db.open().await);
    let run = make::run(&one, db.now()).await;
    for _ in 0..5 {
        one.touch_boards(run, &team(), db.now()).await.expect("touched");
    }
    let (a, b) = tokio::join!(one.take_boards(10, HOLD, db.now()), two.take_boards(10, HOLD, db.now()));
    let taken = [a.expect("taken"), b.expect("taken")].concat();
    assert_eq!(taken.len(), 1);
    // It goes on while it is shown: nobody else shows it now, and it is shown again after.
    two.touch_boards(run, &team(), db.now()).await.expect("touched");
    assert!(two.take_boards(10, HOLD, db.now()).await.expect("taken").is_empty());
    let again = db.now() + chrono::TimeDelta::seconds(2);
    one.board_shown(&taken[0], &place(), "hash", again).await.expect("noted");
    assert!(two.take_boards(10, HOLD, db.now()).await.expect("taken").is_empty());
    let taken = two.take_boards(10, HOLD, db.pass(2)).await.expect("taken");
    assert_eq!(
        (taken.len(), taken[0].place.as_ref(), taken[0].shows.as_deref()),
        (1, Some(&place()), Some("hash"))
    );
    assert_eq!(two.board_of(run, &team()[0]).await.expect("read"), Some(place()));
    two.board_shown(&taken[0], &place(), "newer", db.now()).await.expect("noted");
    assert!(one.take_boards(10, HOLD, db.pass(1_000)).await.expect("taken").is_empty(), "up to date");
    // Who took it died.
    one.touch_boards(run, &team(), db.now()).await.expect("touched");
    assert_eq!(one.take_boards(10, HOLD, db.now()).await.expect("taken").len(), 1);
    let again = two.take_boards(10, HOLD, db.pass(181)).await.expect("taken");
    assert_eq!((again.len(), again[0].attempts), (1, 2));
}

async fn a_board_that_was_not_tried_waits_and_was_not_tried(db: Database) {
    let store = db.open().await;
    let run = make::run(&store, db.now()).await;
    store.touch_boards(run, &team(), db.now()).await.expect("touched");
    let taken = store.take_boards(10, HOLD, db.now()).await.expect("taken");
    let waits = BoardEntry { waits_since: Some(db.now()), ..taken[0].clone() };
    store.board_waits(&waits, db.now() + chrono::TimeDelta::seconds(1)).await.expect("noted");
    assert!(store.take_boards(10, HOLD, db.now()).await.expect("taken").is_empty(), "it waits");
    let taken = store.take_boards(10, HOLD, db.pass(1)).await.expect("taken");
    assert_eq!((taken[0].attempts, taken[0].waits_since), (1, waits.waits_since));
    store.board_shown(&taken[0], &place(), "hash", db.now()).await.expect("noted");
    store.touch_boards(run, &team(), db.now()).await.expect("touched");
    let taken = store.take_boards(10, HOLD, db.now()).await.expect("taken");
    assert_eq!(taken[0].waits_since, None, "it was brought up to date");
}

async fn a_board_is_taken_again_unless_somebody_else_took_it(db: Database) {
    let (one, two) = (db.open().await, db.open().await);
    let run = make::run(&one, db.now()).await;
    one.touch_boards(run, &team(), db.now()).await.expect("touched");
    let late = one.take_boards(10, HOLD, db.now()).await.expect("taken").remove(0);
    let again = async |board: &BoardEntry, at| one.hold_board(board, HOLD, at).await.expect("asked");
    let held_until = again(&late, db.pass(200)).await.expect("nobody else has it");
    assert_eq!(held_until, db.now() + HOLD);
    assert_eq!(again(&late, db.now()).await, None, "that hold was given up for the next");
    let late = BoardEntry { held_until, ..late };
    assert!(two.take_boards(10, HOLD, db.pass(179)).await.expect("taken").is_empty());
    let theirs = two.take_boards(10, HOLD, db.pass(1)).await.expect("taken").remove(0);
    assert_eq!((again(&late, db.now()).await, theirs.attempts), (None, 2));
    // Whatever the late one notes changes nothing.
    one.board_waits(&late, db.now()).await.expect("asked");
    one.board_failed(&late, "500", Some(db.now()), db.now()).await.expect("asked");
    one.board_shown(&late, &place(), "older", db.now()).await.expect("asked");
    assert!(one.take_boards(10, HOLD, db.now()).await.expect("taken").is_empty());
    assert_eq!(one.board_of(run, &team()[0]).await.expect("read"), None);
    two.board_shown(&theirs, &place(), "hash", db.now()).await.expect("noted");
    assert_eq!(again(&late, db.now()).await, None, "it is up to date");
}

async fn a_board_that_a_dead_worker_had_in_hand_is_due_at_once_and_one_that_it_had_given_back_is_not(
    db: Database,
) {
    let (store, dying) = (db.open().await, db.open().await);
    let run = make::run(&store, db.now()).await;
    let names =
        ["failed", "shown", "taken", "waits"].map(|name| name.parse::<NotifierName>().expect("a name"));
    worker(&dying, db.now()).await;
    store.touch_boards(run, &names, db.now()).await.expect("touched");
    let mut boards = dying.take_boards(10, HOLD, db.now()).await.expect("taken");
    boards.sort_by(|a, b| a.notifier.cmp(&b.notifier));
    store.touch_boards(run, &names[1..2], db.now()).await.expect("touched");
    let later = db.now() + chrono::TimeDelta::seconds(10);
    dying.board_failed(&boards[0], "500", Some(later), later).await.expect("noted");
    dying.board_shown(&boards[1], &place(), "hash", later).await.expect("noted");
    dying.board_waits(&boards[3], later).await.expect("noted");
    let held = dying.hold_board(&boards[2], HOLD, db.pass(1)).await.expect("asked");
    // The answer was lost, though the hold was made.
    assert_eq!(dying.hold_board(&boards[2], HOLD, db.now()).await.expect("asked"), held);
    assert!(store.take_boards(10, HOLD, db.now()).await.expect("taken").is_empty(), "it lives");
    assert_eq!(store.due(db.now()).await.expect("asked").soonest, [(Awaited::Board, later)]);
    drop(dying);
    assert_eq!(store.due(db.now()).await.expect("asked").soonest, [(Awaited::Board, db.now())]);
    let taken = store.take_boards(10, HOLD, db.now()).await.expect("taken");
    assert_eq!((taken.len(), &taken[0].notifier, taken[0].attempts), (1, &names[2], 2));
    let late = store.hold_board(&boards[2], HOLD, db.now()).await.expect("asked");
    assert_eq!(late, None, "it is somebody else's");
    assert_eq!(store.take_boards(10, HOLD, db.pass(9)).await.expect("taken").len(), 3);
}

async fn a_board_that_failed_waits_and_what_came_meanwhile_is_not_lost(db: Database) {
    let store = db.open().await;
    let run = make::run(&store, db.now()).await;
    store.touch_boards(run, &team(), db.now()).await.expect("touched");
    let taken = store.take_boards(10, HOLD, db.now()).await.expect("taken");
    let later = db.now() + chrono::TimeDelta::seconds(10);
    store.board_failed(&taken[0], "500", Some(later), db.now()).await.expect("noted");
    store.touch_boards(run, &team(), db.now()).await.expect("touched");
    assert!(store.take_boards(10, HOLD, db.now()).await.expect("taken").is_empty(), "it waits");
    let taken = store.take_boards(10, HOLD, db.pass(10)).await.expect("taken");
    assert_eq!(taken[0].attempts, 2);
    // Refused for good: until the run goes on.
    store.board_failed(&taken[0], "not_in_channel", None, db.now()).await.expect("noted");
    assert!(store.take_boards(10, HOLD, db.pass(1_000)).await.expect("taken").is_empty());
    store.touch_boards(run, &team(), db.now()).await.expect("touched");
    let taken = store.take_boards(10, HOLD, db.now()).await.expect("taken");
    store.touch_boards(run, &team(), db.now()).await.expect("touched");
    store.board_failed(&taken[0], "not_in_channel", None, db.now()).await.expect("noted");
    assert_eq!(store.take_boards(10, HOLD, db.now()).await.expect("taken").len(), 1, "it went on meanwhile");
    assert_eq!(store.board_of(run, &team()[0]).await.expect("read"), None);
}
