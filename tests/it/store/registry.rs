//! Pins, marks, deletion and history of versions.

use std::sync::Arc;

use chrono::TimeDelta;
use refit::domain::Timestamp;
use refit::domain::because::Because;
use refit::domain::history::{Change, VersionAction};
use refit::domain::id::{Generation, ModelName, RunId, TargetName, VersionName};
use refit::domain::release::{Assignment, ReleaseActor, Served};
use refit::domain::retention::{Fate, Holdings, Policy, judge};
use refit::domain::version::{VersionRecord, VersionState};
use refit::store::{
    Condemned, EvidenceAge, Marked, OldEvidence, Prediction, ReleaseWrite, ReleaseWritten, Store,
};
use refit::store::{ObservationBatch, TruthBatch};
use serde_json::json;

use super::database::Database;
use super::make::{self, by_ann, claim, next_step, worker};
use super::on_both;

on_both! {
    a_version_that_is_condemned_is_served_no_more
    a_version_that_serves_is_not_condemned
    of_a_promotion_and_a_deletion_one_comes_first
    of_a_pin_and_a_deletion_one_comes_first
    a_run_that_has_not_ended_holds_what_it_names
    a_deleted_name_is_never_given_again
    a_mark_is_made_once_and_taken_back
    the_history_has_everything_newest_first
    old_evidence_is_counted_then_forgotten
}

fn model() -> ModelName {
    "race-times".parse().expect("a name")
}

fn target() -> TargetName {
    "production".parse().expect("a name")
}

fn version(name: &str) -> VersionName {
    name.parse().expect("a name")
}

fn served(name: &str) -> Served {
    Served { version: version(name), base_url: format!("/m/{name}"), manifest_sha256: "00".to_owned() }
}

/// Sealed versions 1 to `count`, a day apart, the newest now.
async fn versions(store: &Arc<dyn Store>, count: i64, now: Timestamp) {
    for n in 1..=count {
        let at = now - TimeDelta::days(count - n);
        let record = VersionRecord {
            model: model(),
            name: version(&n.to_string()),
            store: "models".parse().expect("a name"),
            state: VersionState::Sealed,
            run: Some(RunId::generate()),
            place: None,
            base_url: format!("/m/{n}"),
            manifest_sha256: "00".to_owned(),
            manifest: None,
            created_at: at,
        };
        store.adopt_version(&record, &by_ann(at)).await.expect("recorded");
    }
}

fn serve(expected: i64, champion: &str, previous: Option<&str>, at: Timestamp) -> ReleaseWrite {
    ReleaseWrite {
        model: model(),
        target: target(),
        expected: Generation(expected),
        assignment: Assignment {
            champion: Some(served(champion)),
            canary: None,
            previous: previous.map(served),
        },
        owner: None,
        actor: ReleaseActor::Human { name: "ann".to_owned() },
        because: Because::alone("because"),
        at,
        by_run: None,
        ends_canary: None,
        marks_bad: None,
        notices: vec![],
        heeds_freeze: false,
    }
}

fn keep_one() -> Policy {
    Policy { latest: [("models".parse().expect("a name"), 1)].into(), ..Policy::default() }
}

async fn condemn(store: &Arc<dyn Store>, name: &str, now: Timestamp) -> Condemned {
    let (policy, name) = (keep_one(), version(name));
    let decide = |holdings: &Holdings| judge(&name, holdings, &policy, now);
    let since = now - policy.ages.served;
    store.condemn_version(&model(), &name, since, &decide, &by_ann(now)).await.expect("asked")
}

async fn state(store: &Arc<dyn Store>, name: &str) -> VersionState {
    store.version(&model(), &version(name)).await.expect("read").expect("there").state
}

async fn a_version_that_is_condemned_is_served_no_more(db: Database) {
    let store = db.open().await;
    versions(&store, 3, db.now()).await;
    assert!(matches!(condemn(&store, "1", db.now()).await, Condemned::Deleting(_)));
    assert!(matches!(condemn(&store, "1", db.now()).await, Condemned::Deleting(_)), "asked again");
    assert_eq!(state(&store, "1").await, VersionState::Deleting);
    let names = store.versions(&model()).await.expect("listed").into_iter().map(|record| record.name);
    assert_eq!(names.collect::<Vec<_>>(), [version("3"), version("2")], "it is listed no more");
    let refused = store.write_release(serve(0, "1", None, db.now())).await.expect("asked");
    assert_eq!(refused, ReleaseWritten::Deleted(version("1")));
    assert!(store.release(&model(), &target()).await.expect("read").is_none());
    assert!(store.release_history(&model(), &target(), 9).await.expect("read").is_empty());
    let pin = store.pin_version(&model(), &version("1"), true, &by_ann(db.now())).await.expect("asked");
    assert_eq!(pin, Marked::Unknown);
    store.version_deleted(&model(), &version("1"), &by_ann(db.now())).await.expect("recorded");
    store.version_deleted(&model(), &version("1"), &by_ann(db.now())).await.expect("again");
    assert_eq!(state(&store, "1").await, VersionState::Deleted);
    let refused = store.write_release(serve(0, "1", None, db.now())).await.expect("asked");
    assert_eq!(refused, ReleaseWritten::Deleted(version("1")));
    assert_eq!(condemn(&store, "1", db.now()).await, Condemned::Kept(Fate::Nothing));
    // Not a whole one either.
    store.version_deleted(&model(), &version("2"), &by_ann(db.now())).await.expect("ignored");
    assert_eq!(state(&store, "2").await, VersionState::Sealed);
}

async fn a_version_that_serves_is_not_condemned(db: Database) {
    let store = db.open().await;
    versions(&store, 5, db.now()).await;
    store.write_release(serve(0, "2", None, db.now())).await.expect("served");
    store.write_release(serve(1, "1", Some("2"), db.now())).await.expect("served");
    store.release_applied(&model(), &target(), Generation(2)).await.expect("shown");
    assert!(matches!(condemn(&store, "1", db.now()).await, Condemned::Kept(_)), "it serves");
    assert!(matches!(condemn(&store, "2", db.now()).await, Condemned::Kept(_)), "it served before");
    store.write_release(serve(2, "3", Some("1"), db.now())).await.expect("served");
    db.pass(3600);
    assert!(matches!(condemn(&store, "2", db.now()).await, Condemned::Kept(_)), "an app may know it");
    db.pass(25 * 3600);
    store.write_release(serve(3, "5", Some("3"), db.now())).await.expect("served");
    store.release_applied(&model(), &target(), Generation(4)).await.expect("shown");
    assert!(matches!(condemn(&store, "2", db.now()).await, Condemned::Deleting(_)));
    assert!(matches!(condemn(&store, "1", db.now()).await, Condemned::Deleting(_)));
    // The host did not show the last change yet: whatever it may show stays.
    db.pass(25 * 3600);
    store.write_release(serve(4, "4", Some("5"), db.now())).await.expect("served");
    store.write_release(serve(5, "5", None, db.pass(1))).await.expect("served");
    db.pass(25 * 3600);
    assert!(matches!(condemn(&store, "4", db.now()).await, Condemned::Kept(_)));
}

async fn of_a_promotion_and_a_deletion_one_comes_first(db: Database) {
    let (one, two) = (db.open().await, db.open().await);
    versions(&one, 24, db.now()).await;
    let mut promoted = 0;
    for n in 1..=20 {
        let name = n.to_string();
        let current = one.release(&model(), &target()).await.expect("read");
        let generation = current.map_or(0, |release| release.generation.0);
        let (written, condemned) = tokio::join!(
            one.write_release(serve(generation, &name, None, db.now())),
            condemn(&two, &name, db.now())
        );
        match (written.expect("asked"), condemned) {
            (ReleaseWritten::Made(release), Condemned::Kept(_)) => {
                promoted += 1;
                assert_eq!(release.desired.champion, Some(served(&name)));
                assert_eq!(state(&one, &name).await, VersionState::Sealed);
            }
            (ReleaseWritten::Deleted(gone), Condemned::Deleting(_)) => {
                assert_eq!(gone, version(&name));
                assert_eq!(state(&one, &name).await, VersionState::Deleting);
            }
            both => panic!("{name}: {both:?}"),
        }
    }
    // Whoever came first, what serves is whole.
    let release = one.release(&model(), &target()).await.expect("read");
    if let Some(champion) = release.and_then(|release| release.desired.champion) {
        assert!(promoted > 0);
        let record = one.version(&model(), &champion.version).await.expect("read").expect("there");
        assert_eq!(record.state, VersionState::Sealed);
    }
}

async fn of_a_pin_and_a_deletion_one_comes_first(db: Database) {
    let (one, two) = (db.open().await, db.open().await);
    versions(&one, 12, db.now()).await;
    for n in 1..=10 {
        let name = n.to_string();
        let (pinned, condemned) = tokio::join!(
            async { one.pin_version(&model(), &version(&name), true, &by_ann(db.now())).await },
            condemn(&two, &name, db.now())
        );
        match (pinned.expect("asked"), condemned) {
            (Marked::Made, Condemned::Kept(_)) | (Marked::Unknown, Condemned::Deleting(_)) => {}
            both => panic!("{name}: {both:?}"),
        }
    }
    let (again, by) = (version("12"), by_ann(db.now()));
    let made = one.pin_version(&model(), &again, true, &by).await.expect("asked");
    let twice = one.pin_version(&model(), &again, true, &by).await.expect("asked");
    assert_eq!((made, twice), (Marked::Made, Marked::Already));
    let pins = one.pins(Some(&model())).await.expect("read");
    let pin = pins.iter().find(|pin| pin.version == again).expect("pinned");
    assert_eq!((pin.reason.as_str(), &pin.actor), ("because", &by.actor));
    let off = one.pin_version(&model(), &again, false, &by).await.expect("asked");
    let off_twice = one.pin_version(&model(), &again, false, &by).await.expect("asked");
    assert_eq!((off, off_twice), (Marked::Made, Marked::Already));
    let unknown = one.pin_version(&model(), &version("99"), true, &by).await.expect("asked");
    assert_eq!(unknown, Marked::Unknown);
}

async fn a_run_that_has_not_ended_holds_what_it_names(db: Database) {
    let store = db.open().await;
    versions(&store, 5, db.now()).await;
    let worker = worker(&store, db.now()).await;
    let run = make::run(&store, db.now()).await;
    let held = claim(&store, run, worker, db.now()).await;
    let output = json!({"verdict": "pass", "champion": "2", "deeper": [{"version": "3"}]});
    store.checkpoint(next_step(&held, "a", "b", output, db.now())).await.expect("written");
    for name in ["2", "3"] {
        let Condemned::Kept(Fate::Kept { reasons }) = condemn(&store, name, db.now()).await else {
            panic!("{name} is kept")
        };
        assert_eq!(
            reasons.iter().map(ToString::to_string).collect::<Vec<_>>(),
            [format!("needed by run {run}")]
        );
    }
    assert!(matches!(condemn(&store, "1", db.now()).await, Condemned::Deleting(_)));
    store.checkpoint(make::after("a", make::finish(&held, "b", db.now()))).await.expect("ended");
    assert!(matches!(condemn(&store, "2", db.now()).await, Condemned::Deleting(_)), "its run ended");
}

async fn a_deleted_name_is_never_given_again(db: Database) {
    let store = db.open().await;
    versions(&store, 3, db.now()).await;
    condemn(&store, "1", db.now()).await;
    store.version_deleted(&model(), &version("1"), &by_ann(db.now())).await.expect("recorded");
    let worker = worker(&store, db.now()).await;
    let run = make::run(&store, db.now()).await;
    let held = claim(&store, run, worker, db.now()).await;
    let by = refit::store::Reservation {
        run,
        epoch: held.run.epoch,
        step: make::step("publish"),
        model: model(),
        store: "models".parse().expect("a name"),
        at: db.now(),
    };
    let seen = std::sync::Mutex::new(vec![]);
    let name_of = |taken: &[VersionName]| {
        *seen.lock().expect("unpoisoned") = taken.to_vec();
        version("4")
    };
    store.reserve_version(&by, &name_of).await.expect("reserved");
    assert_eq!(*seen.lock().expect("unpoisoned"), [version("1"), version("2"), version("3")]);
    let mut record = store.version(&model(), &version("1")).await.expect("read").expect("there");
    record.state = VersionState::Sealed;
    let refused = store.adopt_version(&record, &by_ann(db.now())).await.expect_err("taken");
    assert!(refused.to_string().contains("was taken before and is not given again"), "{refused}");
}

async fn a_mark_is_made_once_and_taken_back(db: Database) {
    let store = db.open().await;
    versions(&store, 2, db.now()).await;
    let (one, by) = (version("1"), by_ann(db.now()));
    let mark = async |bad| store.mark_version(&model(), &one, bad, &by).await.expect("asked");
    assert_eq!(mark(true).await, Marked::Made);
    assert_eq!(mark(true).await, Marked::Already);
    assert_eq!(state(&store, "1").await, VersionState::Bad);
    assert_eq!(mark(false).await, Marked::Made);
    assert_eq!(mark(false).await, Marked::Already);
    assert_eq!(state(&store, "1").await, VersionState::Sealed);
    let unknown = store.mark_version(&model(), &version("9"), true, &by).await.expect("asked");
    assert_eq!(unknown, Marked::Unknown);
    condemn(&store, "1", db.now()).await;
    assert_eq!(mark(true).await, Marked::Unknown);
    assert_eq!(state(&store, "1").await, VersionState::Deleting, "it does not come back");
}

async fn the_history_has_everything_newest_first(db: Database) {
    let store = db.open().await;
    versions(&store, 4, db.now()).await;
    db.pass(1);
    store.write_release(serve(0, "2", None, db.now())).await.expect("served");
    store.pin_version(&model(), &version("3"), true, &by_ann(db.pass(1))).await.expect("pinned");
    let bad = ReleaseWrite { marks_bad: Some(version("2")), ..serve(1, "3", Some("2"), db.pass(1)) };
    store.write_release(bad).await.expect("served");
    condemn(&store, "1", db.pass(1)).await;
    let history = store.history(Some(&model()), 50).await.expect("read");
    let words: Vec<String> = history
        .iter()
        .map(|entry| match &entry.change {
            Change::Release { generation, .. } => format!("release {generation}"),
            Change::Version { version, action } => format!("{version} {}", action.as_str()),
        })
        .collect();
    assert_eq!(
        words,
        [
            "1 deleting",
            "release 2",
            "2 marked_bad",
            "3 pinned",
            "release 1",
            "4 adopted",
            "3 adopted",
            "2 adopted",
            "1 adopted"
        ]
    );
    assert_eq!(history[0].by.reason, "older than the newest 1; because");
    assert_eq!(history[2].by.actor, ReleaseActor::Human { name: "ann".to_owned() });
    assert!(history[2].change.concerns(&version("2")) && !history[2].change.concerns(&version("3")));
    assert!(matches!(history[3].change, Change::Version { action: VersionAction::Pinned, .. }));
    assert_eq!(store.history(None, 2).await.expect("read"), history[..2]);
    let during = |from: usize, until: Option<usize>| {
        let until = until.map(|place| history[place].by.at);
        let (store, model, from) = (&store, model(), history[from].by.at);
        async move { store.history_during(&model, from, until).await.expect("read") }
    };
    assert_eq!(during(4, Some(1)).await, history[1..5], "the first and the last moment are part of it");
    assert_eq!(during(3, None).await, history[..4]);
    let other = "other".parse().expect("a name");
    assert!(store.history_during(&other, history[8].by.at, None).await.expect("read").is_empty());
    assert!(store.history(Some(&other), 50).await.expect("read").is_empty());
}

async fn old_evidence_is_counted_then_forgotten(db: Database) {
    let store = db.open().await;
    let start = db.now();
    for (batch, requests) in [("old", ["a", "b"]), ("new", ["c", "d"])] {
        let at = db.now();
        let predictions = requests.map(|request| Prediction {
            request_id: request.to_owned(),
            version: version("1"),
            value: 1.0,
            shadow: vec![],
            at,
        });
        let observed = ObservationBatch {
            model: model(),
            batch_id: batch.to_owned(),
            minutes: vec![],
            predictions: predictions.into(),
            at,
        };
        store.observe(&observed).await.expect("kept");
        let rows = vec![(format!("{batch}-unknown"), 2.0, None)];
        let truths = TruthBatch { model: model(), batch_id: batch.to_owned(), rows, at };
        store.add_truth(&truths).await.expect("kept");
        db.pass(86_400);
    }
    let soon = start + TimeDelta::hours(1);
    let older = EvidenceAge { unmatched: soon, batch_ids: soon, counted: start };
    let expected = OldEvidence { predictions: 2, truths: 1, batch_ids: 2, ..OldEvidence::default() };
    assert_eq!(store.forget_evidence(&older, true).await.expect("counted"), expected);
    assert_eq!(store.forget_evidence(&older, false).await.expect("deleted"), expected);
    assert_eq!(store.forget_evidence(&older, true).await.expect("counted"), OldEvidence::default());
    let all = EvidenceAge { unmatched: db.now(), batch_ids: db.now(), counted: start };
    assert_eq!(store.forget_evidence(&all, true).await.expect("counted"), expected, "the new ones stay");
}
