//! Events make runs, once.

use refit::domain::event::Event;
use refit::store::{RunFilter, Submitted};

use super::database::Database;
use super::make::{event, new_run};
use super::on_both;

on_both! {
    an_event_and_its_runs_are_made_once
    an_event_that_two_send_again_makes_a_run_that_was_not_made_once
    a_run_with_a_known_key_is_not_made
    events_and_runs_are_listed_by_cursor
}

async fn an_event_and_its_runs_are_made_once(db: Database) {
    let store = db.open().await;
    let mut first = event(db.now());
    first.dedup_key = Some("delivery-7".to_owned());
    let made = new_run(&first, db.now());
    assert_eq!(
        store.submit(&first, vec![made.clone()]).await.expect("submitted"),
        [Submitted::Made(made.run.id)]
    );
    assert_eq!(store.event(first.id).await.expect("read"), Some(first.clone()));
    // Sent again, by a sender that made ids of its own.
    let mut again = event(db.now());
    again.dedup_key = first.dedup_key.clone();
    let second = new_run(&again, db.now());
    assert_eq!(
        store.submit(&again, vec![second]).await.expect("submitted"),
        [Submitted::Already(made.run.id)]
    );
    assert_eq!(store.events(None, 10).await.expect("listed").len(), 1);
    // Sent again, to the letter.
    assert_eq!(
        store.submit(&first, vec![made.clone()]).await.expect("submitted"),
        [Submitted::Already(made.run.id)]
    );
    let read = store.run(made.run.id).await.expect("read").expect("there");
    assert_eq!(read, made.run);
}

async fn an_event_that_two_send_again_makes_a_run_that_was_not_made_once(db: Database) {
    let (one, two) = (db.open().await, db.open().await);
    for round in 0..5 {
        let key = Some(format!("delivery-{round}"));
        let mut first = event(db.now());
        first.dedup_key = key.clone();
        assert_eq!(one.submit(&first, vec![]).await.expect("submitted"), []);
        // The senders made ids of their own, and their runs are known by those.
        let [(a, x), (b, y)] = [(); 2].map(|()| {
            let again = Event { dedup_key: key.clone(), ..event(db.now()) };
            let mut run = new_run(&again, db.now());
            run.dedup_key = format!("{}/{}", again.id, run.run.workflow);
            (again, run)
        });
        let (x, y) = tokio::join!(one.submit(&a, vec![x]), two.submit(&b, vec![y]));
        let both = [x.expect("submitted")[0], y.expect("submitted")[0]];
        let made = both.iter().filter(|it| matches!(it, Submitted::Made(_))).count();
        assert_eq!(made, 1, "{both:?}");
    }
}

async fn a_run_with_a_known_key_is_not_made(db: Database) {
    let (one, two) = (db.open().await, db.open().await);
    let (first, second) = (event(db.now()), event(db.now()));
    let mut runs = [new_run(&first, db.now()), new_run(&second, db.now())];
    for run in &mut runs {
        run.dedup_key = "schedule/0/2026-11-22".to_owned();
    }
    let [a, b] = runs;
    let (x, y) = tokio::join!(one.submit(&first, vec![a]), two.submit(&second, vec![b]));
    let (x, y) = (x.expect("submitted")[0], y.expect("submitted")[0]);
    let id = |s: Submitted| match s {
        Submitted::Made(id) | Submitted::Already(id) | Submitted::Busy(id) => id,
    };
    assert_eq!(id(x), id(y));
    assert_ne!(matches!(x, Submitted::Made(_)), matches!(y, Submitted::Made(_)));
}

async fn events_and_runs_are_listed_by_cursor(db: Database) {
    let store = db.open().await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        let event = event(db.now());
        let run = new_run(&event, db.now());
        ids.push((event.id, run.run.id));
        store.submit(&event, vec![run]).await.expect("submitted");
    }
    let newest = store.events(None, 2).await.expect("listed");
    assert_eq!(newest.iter().map(|e| e.id).collect::<Vec<_>>(), [ids[4].0, ids[3].0]);
    let older = store.events(Some(ids[3].0), 10).await.expect("listed");
    assert_eq!(older.iter().map(|e| e.id).collect::<Vec<_>>(), [ids[2].0, ids[1].0, ids[0].0]);
    let filter = RunFilter {
        workflow: Some("retrain".parse().expect("a name")),
        before: Some(ids[2].1),
        limit: 1,
        ..RunFilter::default()
    };
    assert_eq!(store.runs(&filter).await.expect("listed")[0].id, ids[1].1);
    let none = RunFilter { model: Some("other".parse().expect("a name")), limit: 9, ..RunFilter::default() };
    assert!(store.runs(&none).await.expect("listed").is_empty());
    assert_eq!(store.models().await.expect("listed").len(), 1);
}
