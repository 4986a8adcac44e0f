//! Schedules fire once, whoever watches them.

use refit::store::{RunFilter, ScheduleRow};
use serde_json::json;

use super::database::Database;
use super::make::{self, claim, event, finish, new_run, next_step, step, worker};
use super::on_both;

on_both! {
    two_stores_fire_a_tick_once
    an_unchanged_schedule_keeps_its_next_tick
    the_previous_output_is_of_the_newest_run_that_went_well
}

fn row(id: &str, expression: &str, next: refit::domain::Timestamp) -> ScheduleRow {
    ScheduleRow {
        id: id.to_owned(),
        workflow: "retrain".parse().expect("a name"),
        expression: expression.to_owned(),
        next_fire_at: next,
    }
}

async fn two_stores_fire_a_tick_once(db: Database) {
    let (one, two) = (db.open().await, db.open().await);
    let workflow = "retrain".parse().expect("a name");
    one.sync_schedules(&workflow, &[row("retrain/0", "0 2 * * 0 UTC", db.now())]).await.expect("kept");
    let next = row("retrain/0", "0 2 * * 1 UTC", db.now() + chrono::TimeDelta::days(7));
    let submission = || {
        let event = event(db.now());
        let run = new_run(&event, db.now());
        vec![(event, vec![run])]
    };
    let read = row("retrain/0", "0 2 * * 0 UTC", db.now());
    let changed = ScheduleRow { expression: "0 2 * * 1 UTC".to_owned(), ..read.clone() };
    assert!(!one.fire_schedule(&changed, &next, submission()).await.expect("asked"), "it is kept by another");
    let (a, b) = tokio::join!(
        one.fire_schedule(&read, &next, submission()),
        two.fire_schedule(&read, &next, submission())
    );
    assert_ne!(a.expect("asked"), b.expect("asked"));
    assert_eq!(one.runs(&RunFilter { limit: 10, ..RunFilter::default() }).await.expect("listed").len(), 1);
    assert_eq!(one.schedules().await.expect("listed"), [next]);
}

async fn an_unchanged_schedule_keeps_its_next_tick(db: Database) {
    let store = db.open().await;
    let workflow = "retrain".parse().expect("a name");
    let (first, later) = (db.now(), db.now() + chrono::TimeDelta::days(1));
    store
        .sync_schedules(&workflow, &[row("retrain/0", "a", first), row("retrain/1", "b", first)])
        .await
        .expect("kept");
    store
        .sync_schedules(&workflow, &[row("retrain/0", "a", later), row("retrain/1", "c", later)])
        .await
        .expect("kept");
    let ticks: Vec<_> = store.schedules().await.expect("listed").iter().map(|row| row.next_fire_at).collect();
    assert_eq!(ticks, [first, later]);
    store.sync_schedules(&workflow, &[row("retrain/1", "c", later)]).await.expect("kept");
    assert_eq!(store.schedules().await.expect("listed").len(), 1);
}

async fn the_previous_output_is_of_the_newest_run_that_went_well(db: Database) {
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let workflow = "retrain".parse().expect("a name");
    let mut runs = Vec::new();
    for rows in 1..=3 {
        let run = make::run(&store, db.now()).await;
        let held = claim(&store, run, worker, db.now()).await;
        store.checkpoint(next_step(&held, "a", "b", json!({"rows": rows}), db.now())).await.expect("written");
        let mut last = make::after("a", finish(&held, "b", db.now()));
        if rows == 3 {
            last.run_state = refit::store::RunState::Finished {
                outcome: refit::domain::run::Outcome::Rejected,
                reason: "the gate refused".to_owned(),
            };
        }
        store.checkpoint(last).await.expect("written");
        runs.push(run);
    }
    let newest = make::run(&store, db.now()).await;
    let previous = store.previous_output(&workflow, newest, &step("a")).await.expect("read");
    assert_eq!(previous, Some(json!({"rows": 2})));
    assert_eq!(store.previous_output(&workflow, runs[0], &step("a")).await.expect("read"), None);
    use refit::domain::run::Outcome::{Rejected, Succeeded};
    assert_eq!(store.recent_outcomes(&workflow, 2).await.expect("read"), [Rejected, Succeeded]);
}
