//! Freezes: what is kept of them, and what they keep back.

use chrono::TimeDelta;
use refit::domain::Timestamp;
use refit::domain::freeze::{Freeze, FreezeEnd, FreezeError, FreezeScope, FreezeWish, Lifted};
use refit::domain::id::{FreezeId, ModelName};
use refit::domain::run::SignalKind;
use refit::store::{FreezeAnswer, PromotionAsked, ReleaseWrite, ReleaseWritten, Store};
use sqlx::{Connection, PgConnection};

use super::database::Database;
use super::make::{self, claim, worker};
use super::on_both;
use super::releases::{model, promotion, target, write};

on_both! {
    a_freeze_is_kept_with_who_made_it_and_who_lifted_it
    the_same_freeze_again_changes_nothing
    a_freeze_begins_at_the_earliest_two_days_ago_or_with_the_one_that_it_extends
    a_freeze_keeps_promotions_of_its_model_back_and_nothing_else
    a_promotion_that_was_made_before_the_freeze_is_finished
    a_run_is_told_to_promote_unless_its_model_is_frozen
}

fn wish(model: Option<ModelName>, end: FreezeEnd) -> FreezeWish {
    FreezeWish { model, from: None, end, reason: "Black Friday".to_owned(), by: "ana".to_owned() }
}

async fn make(store: &dyn Store, wish: &FreezeWish, at: Timestamp) -> Freeze {
    match store.freeze(FreezeId::generate(), wish, at).await.expect("asked") {
        FreezeAnswer::Made(freeze) => freeze,
        other @ (FreezeAnswer::Already(_) | FreezeAnswer::Refused(_)) => panic!("{other:?}"),
    }
}

/// Nothing is promoted from now on.
pub async fn frozen(store: &dyn Store, at: Timestamp) {
    make(store, &wish(None, FreezeEnd::Never), at).await;
}

async fn a_freeze_is_kept_with_who_made_it_and_who_lifted_it(db: Database) {
    let (one, two) = (db.open().await, db.open().await);
    let began = db.now();
    let hours = FreezeEnd::After(TimeDelta::hours(2));
    let of_model = make(&*one, &wish(Some(model()), hours), began).await;
    assert_eq!(of_model.until, Some(began + TimeDelta::hours(2)));
    let tomorrow = Some(began + TimeDelta::days(1));
    let planned = make(&*one, &FreezeWish { from: tomorrow, ..wish(None, FreezeEnd::Never) }, began).await;
    let now = db.pass(60);
    assert_eq!(two.open_freezes(now).await.expect("read"), [of_model.clone(), planned.clone()]);
    assert_eq!(two.freeze_over(&model(), now).await.expect("read"), Some(of_model.clone()));
    let other: ModelName = "other".parse().expect("a name");
    assert_eq!(two.freeze_over(&other, now).await.expect("read"), None, "not before it begins");

    assert_eq!(two.unfreeze(&FreezeScope::Model(other.clone()), "bo", now).await.expect("asked"), []);
    let lifted = two.unfreeze(&FreezeScope::Model(model()), "bo", now).await.expect("asked");
    let by_bo = Freeze { lifted: Some(Lifted { by: "bo".to_owned(), at: now }), ..of_model };
    assert_eq!(lifted, std::slice::from_ref(&by_bo), "the one of every model stays");
    assert_eq!(two.unfreeze(&FreezeScope::Model(model()), "cy", now).await.expect("asked"), []);
    let history = one.freezes(Some(&model()), 10).await.expect("read");
    assert_eq!(history.len(), 2, "{history:?}");
    assert!(history.contains(&by_bo) && history.contains(&planned), "{history:?}");
    assert_eq!(one.freezes(Some(&other), 10).await.expect("read"), std::slice::from_ref(&planned));

    let now = db.pass(2 * 86_400);
    assert_eq!(one.freeze_over(&other, now).await.expect("read"), Some(planned.clone()));
    assert_eq!(one.unfreeze(&FreezeScope::EveryModel, "bo", now).await.expect("asked").len(), 1);
    assert_eq!(one.open_freezes(now).await.expect("read"), []);
    let again = make(&*one, &wish(None, FreezeEnd::Never), now).await;
    assert_eq!(one.unfreeze(&FreezeScope::One(again.id), "bo", now).await.expect("asked")[0].id, again.id);
}

async fn the_same_freeze_again_changes_nothing(db: Database) {
    let (one, two) = (db.open().await, db.open().await);
    let wanted = wish(None, FreezeEnd::After(TimeDelta::hours(2)));
    let first = make(&*one, &wanted, db.now()).await;
    let again = two.freeze(FreezeId::generate(), &wanted, db.now()).await.expect("asked");
    assert_eq!(again, FreezeAnswer::Already(first.clone()));
    let now = db.pass(3600);
    let until = FreezeEnd::At(first.until.expect("an end"));
    let again = two.freeze(FreezeId::generate(), &wish(None, until), now).await.expect("asked");
    assert_eq!(again, FreezeAnswer::Already(first.clone()));
    let longer = make(&*two, &wanted, now).await;
    assert_eq!(longer.until, Some(now + TimeDelta::hours(2)), "so long from then on");
    assert_eq!(
        two.freeze_over(&model(), now).await.expect("read"),
        Some(longer),
        "the one that lasts longest"
    );
    let past = wish(None, FreezeEnd::At(now - TimeDelta::hours(1)));
    let refused = two.freeze(FreezeId::generate(), &past, now).await.expect("asked");
    let until = now - TimeDelta::hours(1);
    assert_eq!(refused, FreezeAnswer::Refused(FreezeError::Empty { from: now, until }));
    let now = db.pass(2 * 3600);
    let after = make(&*one, &wanted, now).await;
    assert_ne!(after.id, first.id, "the first is over");
}

async fn a_freeze_begins_at_the_earliest_two_days_ago_or_with_the_one_that_it_extends(db: Database) {
    let store = db.open().await;
    let began = db.now();
    let since = |model, from, end| FreezeWish { from: Some(from), ..wish(model, end) };
    let refused = async |wish: FreezeWish, now| {
        let answer = store.freeze(FreezeId::generate(), &wish, now).await.expect("asked");
        let from = wish.from.expect("a begin");
        assert_eq!(answer, FreezeAnswer::Refused(FreezeError::Begun { from }));
    };
    let yesterday = began - TimeDelta::hours(47);
    make(&*store, &since(None, yesterday, FreezeEnd::Never), began).await;
    refused(since(None, began - TimeDelta::hours(49), FreezeEnd::Never), began).await;

    let (friday, monday) = (began + TimeDelta::hours(1), began + TimeDelta::days(4));
    make(&*store, &since(Some(model()), friday, FreezeEnd::At(monday)), began).await;
    let now = db.pass(3 * 86_400);
    let longer = since(Some(model()), friday, FreezeEnd::At(monday + TimeDelta::days(4)));
    assert_eq!(make(&*store, &longer, now).await.from, friday);
    let of_all = since(None, friday, FreezeEnd::Never);
    refused(of_all, now).await;
    let now = db.pass(10 * 86_400);
    refused(since(Some(model()), friday, FreezeEnd::Never), now).await;
}

fn heeding(write: ReleaseWrite) -> ReleaseWrite {
    ReleaseWrite { heeds_freeze: true, ..write }
}

async fn a_freeze_keeps_promotions_of_its_model_back_and_nothing_else(db: Database) {
    let (one, two) = (db.open().await, db.open().await);
    let worker = worker(&one, db.now()).await;
    let run = make::run(&one, db.now()).await;
    let held = claim(&one, run, worker, db.now()).await;
    let elsewhere = wish(Some("other".parse().expect("a name")), FreezeEnd::Never);
    make(&*two, &elsewhere, db.now()).await;
    let made = one.write_release(heeding(write(0, "v1", db.now()))).await.expect("asked");
    assert!(matches!(made, ReleaseWritten::Made(_)), "another model's freeze: {made:?}");

    let until = db.now() + TimeDelta::hours(1);
    let freeze = make(&*two, &wish(Some(model()), FreezeEnd::At(until)), db.now()).await;
    let refused = one.write_release(heeding(promotion(&held, 1, "v2", db.now()))).await.expect("asked");
    assert_eq!(refused, ReleaseWritten::Frozen(freeze));
    assert!(one.intents(run).await.expect("read").is_empty(), "nothing of it was written");
    assert!(!one.run(run).await.expect("read").expect("there").committed);
    let back = one.write_release(write(1, "v0", db.now())).await.expect("asked");
    assert!(matches!(back, ReleaseWritten::Made(_)), "a way back does not ask: {back:?}");

    let now = db.pass(3600);
    let made = one.write_release(heeding(promotion(&held, 2, "v2", now))).await.expect("asked");
    assert!(matches!(made, ReleaseWritten::Made(_)), "it is over: {made:?}");
}

async fn a_promotion_that_was_made_before_the_freeze_is_finished(db: Database) {
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let run = make::run(&store, db.now()).await;
    let held = claim(&store, run, worker, db.now()).await;
    let wanted = heeding(promotion(&held, 0, "v1", db.now()));
    let ReleaseWritten::Made(made) = store.write_release(wanted.clone()).await.expect("asked") else {
        panic!("made")
    };
    make(&*store, &wish(None, FreezeEnd::Never), db.now()).await;
    // Its process died before it heard of it.
    let again = store.write_release(wanted).await.expect("asked");
    assert_eq!(again, ReleaseWritten::Made(made.clone()));
    assert_eq!(store.release(&model(), &target()).await.expect("read"), Some(made));
}

async fn a_run_is_told_to_promote_unless_its_model_is_frozen(db: Database) {
    let store = db.open().await;
    let run = make::run(&store, db.now()).await;
    let freeze = make(&*store, &wish(None, FreezeEnd::Never), db.now()).await;
    let ask =
        async || store.ask_to_promote(run, &model(), "bo", Some("fine"), db.now()).await.expect("asked");
    assert_eq!(ask().await, PromotionAsked::Frozen(freeze));
    let worker = worker(&store, db.now()).await;
    let held = claim(&store, run, worker, db.now()).await;
    assert_eq!(held.signals, [], "it was not told");
    store.release_lease(run, held.run.epoch).await.expect("given back");
    store.unfreeze(&FreezeScope::EveryModel, "ana", db.now()).await.expect("lifted");
    assert_eq!(ask().await, PromotionAsked::Told);
    let held = claim(&store, run, worker, db.now()).await;
    assert_eq!(held.signals.iter().map(|signal| &signal.kind).collect::<Vec<_>>(), [&SignalKind::Promote]);
}

/// Somebody who freezes, as far as their commit.
async fn about_to_freeze(connection: &mut PgConnection) {
    for statement in [
        "BEGIN",
        "SELECT pg_advisory_xact_lock(hashtextextended('freezes of promotions', 0))",
        "INSERT INTO refit.freezes (id, begins_at, reason, made_by, made_at)
         VALUES (gen_random_uuid(), '2026-11-20 02:00:00+00', 'an incident', 'ana', '2026-11-20 02:00:00+00')",
    ] {
        sqlx::query(statement).execute(&mut *connection).await.expect(statement);
    }
}

#[tokio::test]
async fn a_promotion_waits_for_who_is_about_to_freeze_on_postgres() {
    let db = Database::postgres().await;
    let mut freezer = PgConnection::connect(&db.url).await.expect("connects");
    about_to_freeze(&mut freezer).await;
    let store = db.open().await;
    let back = store.write_release(write(0, "v1", db.now())).await.expect("asked");
    assert!(matches!(back, ReleaseWritten::Made(_)), "a way back waits for nobody: {back:?}");
    let (promoter, wanted) = (store.clone(), heeding(write(1, "v2", db.now())));
    let promoting = tokio::spawn(async move { promoter.write_release(wanted).await });
    let waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
         AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))";
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !sqlx::query_scalar::<_, bool>(waits).fetch_one(&mut freezer).await.expect("readable") {
        assert!(std::time::Instant::now() < deadline && !promoting.is_finished(), "it did not wait");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    sqlx::query("COMMIT").execute(&mut freezer).await.expect("frozen");
    let refused = promoting.await.expect("no panic").expect("asked");
    assert!(matches!(&refused, ReleaseWritten::Frozen(freeze) if freeze.by == "ana"), "{refused:?}");
}
