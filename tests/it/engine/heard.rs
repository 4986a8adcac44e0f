//! What people change by hand, and no run says: the team hears of it, once.

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use refit::clock::Clock;
use refit::domain::canary::CanaryState;
use refit::domain::freeze::{FreezeEnd, FreezeWish};
use refit::domain::id::FreezeId;
use refit::domain::release::ReleaseActor;
use refit::domain::run::{CancelRequest, Outcome};
use refit::domain::workflow::{Moment, Recipient};
use refit::engine::Engine;
use refit::engine::by_hand::PromotedByHand;
use refit::engine::heard::Hears;
use refit::engine::release::{Back, ReleaseError};
use refit::store::{FreezeAnswer, Notice};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, SqliteConnection};
use tokio_util::sync::CancellationToken;

use super::on_both;
use super::rollout::*;
use crate::support::crash::{Crash, When, Write};
use crate::support::world::{World, finish, turn};

/// Seals the next version, and names whom to tell of what serves.
const TELLS: &str = r#"
name: tells
model: m
mode: advise
concurrency: { key: tells }
notify:
  - { on: [promoted, rolled_back], console: true }
  - { on: promoted, email: [ann@example.com] }
  - { on: rolled_back, email: [bo@example.com] }
steps:
  - id: train
    run: 'mkdir -p told && rm -f told/* && echo "$REFIT_RUN" > told/model.json'
    outputs: { from: told, files: "*.json" }
  - { id: publish, uses: publish, with: { store: models, version: counter } }
"#;

pub const BAKES: Flow = Flow { promote: "{ bake: 6h }", ..FLOW };

fn ann() -> ReleaseActor {
    ReleaseActor::Human { name: "ann".to_owned() }
}

pub async fn publish_and_tell(world: &World, engine: &Arc<Engine>) {
    let run = world.trigger(engine, TELLS).await;
    let ended = finish(world, engine, run).await;
    assert_eq!(ended.outcome, Some(Outcome::Succeeded), "{:?}", ended.reason);
}

async fn promote(engine: &Arc<Engine>, name: &str, supersede: bool, reason: Option<&str>) {
    let done = engine.promote_by_hand(&model(), &target(), &version(name), supersede, "ann", reason).await;
    assert!(matches!(done, Ok(PromotedByHand::Done(_))), "{done:?}");
}

pub async fn roll_back(engine: &Arc<Engine>, reason: &str) {
    engine.roll_back(&model(), &target(), None, ann(), reason).await.expect("rolled back");
}

/// Version 1 serves; people are told of what takes its place.
pub async fn serving_and_telling(world: &World, engine: &Arc<Engine>) {
    publish_and_tell(world, engine).await;
    promote(engine, "1", false, None).await;
    told(world, engine).await;
}

/// What people are to be told since this was asked last.
pub async fn told(world: &World, engine: &Engine) -> Vec<Notice> {
    let taken = engine.store.take_outbox(100, Duration::from_secs(86_400), world.clock.now()).await;
    let mut told = vec![];
    for entry in taken.expect("readable") {
        engine.store.outbox_sent(entry.id, world.clock.now()).await.expect("noted");
        told.push(entry.notice);
    }
    told
}

/// Of a message: its key, what it is of, and to whom.
pub fn heads(notices: &[Notice]) -> Vec<(&str, Moment, String)> {
    let to = |notice: &Notice| match &notice.to {
        Recipient::Email(addresses) => addresses.join(", "),
        Recipient::Console => "log".to_owned(),
        other @ (Recipient::Slack(_) | Recipient::Webhook(_)) => format!("{other:?}"),
    };
    notices.iter().map(|notice| (notice.key.as_str(), notice.moment, to(notice))).collect()
}

pub fn head(generation: usize, nth: usize, moment: Moment, to: &str) -> (String, Moment, String) {
    (format!("m/by-hand/production/{generation}/{nth}"), moment, to.to_owned())
}

pub fn are(notices: &[Notice], expected: &[(String, Moment, String)]) {
    let expected: Vec<_> =
        expected.iter().map(|(key, moment, to)| (key.as_str(), *moment, to.clone())).collect();
    assert_eq!(heads(notices), expected, "{notices:#?}");
}

#[tokio::test]
async fn a_promotion_by_hand_is_told_once_to_who_hears_of_promotions() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        for _ in 0..2 {
            publish_and_tell(&world, &engine).await;
        }
        promote(&engine, "1", false, None).await;
        let first = told(&world, &engine).await;
        are(&first, &[head(1, 0, Moment::Promoted, "log"), head(1, 1, Moment::Promoted, "ann@example.com")]);
        for notice in &first {
            assert_eq!((notice.run, notice.model.as_str()), (None, "m"), "it is about no run");
            let facts = &notice.facts;
            assert_eq!(
                (&facts["by"], &facts["version"], &facts["first"]),
                (&"ann".into(), &"1".into(), &true.into())
            );
            assert!(facts["reason"].is_null(), "nobody gave one: {facts}");
            assert!(facts["mode"].is_null(), "that of the workflow binds runs: {facts}");
        }

        world.pass(TimeDelta::hours(1));
        promote(&engine, "2", false, Some("it is better")).await;
        let second = told(&world, &engine).await;
        are(&second, &[head(2, 0, Moment::Promoted, "log"), head(2, 1, Moment::Promoted, "ann@example.com")]);
        let facts = &second[0].facts;
        assert_eq!((&facts["version"], &facts["reason"]), (&"2".into(), &"it is better".into()));
        assert_eq!((&facts["workflow"], &facts["first"]), (&"tells".into(), &false.into()));
        let serving = facts["serving"].as_str().expect("a sentence");
        assert!(
            serving.starts_with("2 is to serve all traffic of `production` instead of 1, from "),
            "{serving}"
        );

        promote(&engine, "2", false, Some("again")).await;
        are(&told(&world, &engine).await, &[]);
    })
    .await;
}

#[tokio::test]
async fn a_rollback_by_hand_is_told_once_to_who_hears_of_rollbacks() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        for _ in 0..2 {
            publish_and_tell(&world, &engine).await;
        }
        promote(&engine, "1", false, None).await;
        promote(&engine, "2", false, None).await;
        told(&world, &engine).await;
        roll_back(&engine, "customers call").await;
        let back = told(&world, &engine).await;
        are(
            &back,
            &[head(3, 0, Moment::RolledBack, "log"), head(3, 1, Moment::RolledBack, "bo@example.com")],
        );
        let facts = &back[0].facts;
        assert_eq!((&facts["by"], &facts["version"]), (&"ann".into(), &"2".into()));
        assert_eq!(facts["reason"], "customers call");
        let serving = facts["serving"].as_str().expect("a sentence");
        assert!(
            serving.starts_with("1 is to serve all traffic of `production` instead of 2, from "),
            "{serving}"
        );

        let nothing = engine.roll_back(&model(), &target(), None, ann(), "again").await;
        assert!(matches!(nothing, Err(ReleaseError::NothingLeft { .. })), "{nothing:?}");
        let alert = told(&world, &engine).await;
        assert!(alert.iter().all(|notice| notice.moment == Moment::Alert), "{alert:#?}");
    })
    .await;
}

#[tokio::test]
async fn a_version_that_no_run_made_is_told_of_by_what_it_takes_the_place_of() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        publish_and_tell(&world, &engine).await;
        let mut adopted = engine.store.version(&model(), &version("1")).await.expect("read").expect("there");
        adopted.run = None;
        adopted.place = Some("m/1".to_owned());
        for name in ["live", "older"] {
            adopted.name = version(name);
            let by = refit::domain::history::ChangedBy {
                actor: ann(),
                reason: "taken over".to_owned(),
                at: world.clock.now(),
            };
            engine.store.adopt_version(&adopted, &by).await.expect("adopted");
        }
        promote(&engine, "live", false, None).await;
        are(&told(&world, &engine).await, &[]);
        promote(&engine, "1", false, None).await;
        assert_eq!(told(&world, &engine).await.len(), 2, "its own run is known");
        promote(&engine, "older", false, None).await;
        let by_the_other = told(&world, &engine).await;
        are(
            &by_the_other,
            &[head(3, 0, Moment::Promoted, "log"), head(3, 1, Moment::Promoted, "ann@example.com")],
        );
        assert_eq!(by_the_other[0].facts["version"], "older");
        let last = engine.promote_by_hand(&model(), &target(), &version("live"), false, "ann", None).await;
        let Ok(PromotedByHand::Done(promoted)) = last else { panic!("{last:?}") };
        let nobody = Hears::Nobody("no run is known that made live or older".to_owned());
        assert_eq!(promoted.hears, Some(nobody));
        are(&told(&world, &engine).await, &[]);
    })
    .await;
}

#[tokio::test]
async fn a_change_by_hand_that_comes_too_late_and_is_made_again_is_told_once() {
    on_both(async |world| {
        let before = world.process(&Crash::never()).await;
        serving_and_telling(&world, &before).await;
        for _ in 0..2 {
            publish_and_tell(&world, &before).await;
        }
        let point = || Write { name: "write_release".to_owned(), nth: 0 };
        let faster = before.clone();
        let crash = Crash::meanwhile(point(), When::Before, move || {
            let faster = faster.clone();
            async move { promote(&faster, "2", false, None).await }
        });
        let late = world.process(&crash).await;
        promote(&late, "3", false, None).await;
        let of_promotions = |generation| {
            [
                head(generation, 0, Moment::Promoted, "log"),
                head(generation, 1, Moment::Promoted, "ann@example.com"),
            ]
        };
        let both = told(&world, &before).await;
        are(&both, &[of_promotions(2), of_promotions(3)].concat());
        let serving = both[2].facts["serving"].as_str().expect("a sentence");
        assert!(serving.contains("instead of 2,"), "what it did take the place of: {serving}");

        // A process that dies once it is made; somebody types it again.
        let dies = world.process(&Crash::at(point(), When::After)).await;
        let typed = tokio::spawn(async move { promote(&dies, "2", false, None).await });
        tokio::time::timeout(Duration::from_secs(60), async {
            while release(&before).await.generation.0 < 4 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .expect("made");
        typed.abort();
        promote(&before, "2", false, None).await;
        are(&told(&world, &before).await, &of_promotions(4));
    })
    .await;
}

#[tokio::test]
async fn a_promotion_that_a_freeze_refuses_is_told_to_nobody_and_one_despite_it_says_so() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving_and_telling(&world, &engine).await;
        publish_and_tell(&world, &engine).await;
        let wish = FreezeWish {
            model: None,
            from: None,
            end: FreezeEnd::Never,
            reason: "a fair".to_owned(),
            by: "ana".to_owned(),
        };
        let frozen =
            engine.store.freeze(FreezeId::generate(), &wish, world.clock.now()).await.expect("asked");
        assert!(matches!(frozen, FreezeAnswer::Made(_)), "{frozen:?}");
        let refused = engine.promote_by_hand(&model(), &target(), &version("2"), false, "ann", None).await;
        assert!(matches!(refused, Err(ReleaseError::Frozen { .. })), "{refused:?}");
        are(&told(&world, &engine).await, &[]);
        let made = engine
            .promote_despite_freeze(&model(), &target(), &version("2"), false, "ann", Some("a fix"))
            .await;
        assert!(matches!(made, Ok(PromotedByHand::Done(_))), "{made:?}");
        let told = told(&world, &engine).await;
        assert_eq!(told.len(), 2, "{told:#?}");
        let reason = told[0].facts["reason"].as_str().expect("a reason");
        assert!(reason.starts_with("a fix, although frozen "), "{reason}");
    })
    .await;
}

#[tokio::test]
async fn what_a_run_says_nobody_else_says() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving_and_telling(&world, &engine).await;
        // Its own run promotes it.
        let run = on_canary(&world, &engine, DAY).await;
        let asked = engine.promote_by_hand(&model(), &target(), &version("2"), false, "ann", None).await;
        assert_eq!(asked.expect("asked"), PromotedByHand::Run(run));
        assert_eq!(turn(&engine, run).await.outcome, Some(Outcome::Promoted));
        let by_its_run = format!("{run}/promoted/0");
        assert_eq!(heads(&told(&world, &engine).await), [(&*by_its_run, Moment::Promoted, "log".to_owned())]);
        // It is dropped, and its run says so.
        for version in ["3", "4"] {
            let run = on_canary(&world, &engine, DAY).await;
            match version {
                "3" => roll_back(&engine, "bad times").await,
                _ => promote(&engine, "2", true, None).await,
            }
            are(&told(&world, &engine).await, &[]);
            assert_eq!(turn(&engine, run).await.outcome, Some(Outcome::RolledBack));
            let by_its_run = format!("{run}/end/0");
            assert_eq!(
                heads(&told(&world, &engine).await),
                [(&*by_its_run, Moment::RolledBack, "log".to_owned())]
            );
        }
    })
    .await;
}

#[tokio::test]
async fn a_version_that_is_promoted_over_a_canary_is_told_beside_what_the_run_of_that_says() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving_and_telling(&world, &engine).await;
        publish_and_tell(&world, &engine).await;
        let run = on_canary(&world, &engine, DAY).await;
        told(&world, &engine).await;
        promote(&engine, "2", true, Some("the fair begins")).await;
        are(
            &told(&world, &engine).await,
            &[head(3, 0, Moment::Promoted, "log"), head(3, 1, Moment::Promoted, "ann@example.com")],
        );
        assert_eq!(turn(&engine, run).await.outcome, Some(Outcome::RolledBack));
        let by_its_run = format!("{run}/end/0");
        assert_eq!(
            heads(&told(&world, &engine).await),
            [(&*by_its_run, Moment::RolledBack, "log".to_owned())]
        );
    })
    .await;
}

#[tokio::test]
async fn a_canary_that_is_dropped_by_who_promotes_what_serves_is_taken_back() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving_and_telling(&world, &engine).await;
        // Its run leaves it there, and ends.
        let run =
            on_canary(&world, &engine, Flow { promote: "{}, if: 'false'", wait: "{ for: 1m }", ..FLOW })
                .await;
        assert_eq!(ended(&world, &engine, run).await.outcome, Some(Outcome::Succeeded));
        assert_eq!(shown(&world), (Some("1".to_owned()), Some("2".to_owned())));
        told(&world, &engine).await;
        promote(&engine, "1", false, Some("the old one will do")).await;
        assert_eq!(shown(&world), serves("1"));
        let told = told(&world, &engine).await;
        // By the workflow that made what is taken back: nothing begins to serve.
        are(&told, &[head(3, 0, Moment::RolledBack, "log")]);
        assert_eq!(told[0].facts["version"], "2");
        let serving = told[0].facts["serving"].as_str().expect("a sentence");
        assert!(serving.contains("2 was on canary at 10 %"), "{serving}");
    })
    .await;
}

#[tokio::test]
async fn a_version_that_is_taken_back_by_hand_after_its_run_is_told() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving_and_telling(&world, &engine).await;
        let run = on_canary(&world, &engine, BAKES).await;
        world.pass(TimeDelta::hours(1));
        reach(&world, &engine, run, TimeDelta::minutes(1), |run| run.outcome == Some(Outcome::Promoted))
            .await;
        let wish = CancelRequest { actor: "ann".to_owned(), reason: None, at: world.clock.now() };
        assert!(engine.store.request_cancel(run, &wish).await.expect("asked"));
        assert_eq!(ended(&world, &engine, run).await.outcome, Some(Outcome::CancelledAfterPromotion));
        assert_eq!(canary(&engine, run).await.state, CanaryState::Baking);
        told(&world, &engine).await;
        roll_back(&engine, "customers call").await;
        assert_eq!(canary(&engine, run).await.state, CanaryState::RolledBack);
        let back = told(&world, &engine).await;
        are(
            &back,
            &[head(4, 0, Moment::RolledBack, "log"), head(4, 1, Moment::RolledBack, "bo@example.com")],
        );
        assert_eq!(back[0].facts["version"], "2");
        engine.look_at_canaries().await.expect("looks");
        are(&told(&world, &engine).await, &[]);
    })
    .await;
}

#[tokio::test]
async fn a_change_by_hand_is_made_though_it_cannot_be_read_whom_to_tell() {
    let world = World::sqlite();
    let engine = world.process(&Crash::never()).await;
    serving_and_telling(&world, &engine).await;
    publish_and_tell(&world, &engine).await;
    let record = engine.store.version(&model(), &version("2")).await.expect("read").expect("there");
    let options = SqliteConnectOptions::new().filename(&world.database);
    let mut database: SqliteConnection = options.connect().await.expect("opens");
    let broken =
        sqlx::query("UPDATE run_docs SET cause = '{}' WHERE run = $1").bind(record.run.map(|run| run.0));
    assert_eq!(broken.execute(&mut database).await.expect("written").rows_affected(), 1);
    promote(&engine, "2", false, None).await;
    assert_eq!(told(&world, &engine).await.len(), 2, "that of the other version says it");

    let broken = sqlx::query("UPDATE run_docs SET cause = '{}'");
    assert_eq!(broken.execute(&mut database).await.expect("written").rows_affected(), 2);
    let back =
        engine.roll_back(&model(), &target(), None, ann(), "customers call").await.expect("rolled back");
    assert_eq!(shown(&world), serves("1"));
    assert_eq!(back.hears, Some(Hears::Nobody("no run is known that made 1 or 2".to_owned())));
    publish(&world, &engine).await;
    let forth = engine.promote_by_hand(&model(), &target(), &version("3"), false, "ann", None).await;
    let Ok(PromotedByHand::Done(promoted)) = forth else { panic!("{forth:?}") };
    let silent = Hears::Nobody("`notify:` of publishes has nobody for `promoted`".to_owned());
    assert_eq!(promoted.hears, Some(silent), "its workflow tells nobody of anything");
    are(&told(&world, &engine).await, &[]);
}

#[tokio::test]
async fn a_canary_that_is_dropped_before_its_run_has_recorded_it_is_told_once() {
    on_both(async |world| {
        let outside = world.process(&Crash::never()).await;
        serving_and_telling(&world, &outside).await;
        let hand = outside.clone();
        let point = Write { name: "open_canary".to_owned(), nth: 0 };
        let crash = Crash::meanwhile(point, When::Before, move || {
            let hand = hand.clone();
            async move { roll_back(&hand, "bad times").await }
        });
        let working = world.process(&crash).await;
        let run = world.trigger(&working, &DAY.source()).await;
        working.activate(run, &CancellationToken::new()).await.expect("activates");
        outside.look_at_canaries().await.expect("looks");
        leave(&working).await;
        assert_eq!(ended(&world, &outside, run).await.outcome, Some(Outcome::RolledBack));
        assert_eq!(shown(&world), serves("1"));
        let by_its_run = format!("{run}/end/0");
        let told = told(&world, &outside).await;
        assert_eq!(heads(&told), [(&*by_its_run, Moment::RolledBack, "log".to_owned())]);
    })
    .await;
}

#[tokio::test]
async fn who_names_an_older_version_to_go_back_to_is_told_of_too() {
    on_both(async |world| {
        let engine = world.process(&Crash::never()).await;
        serving_and_telling(&world, &engine).await;
        publish_and_tell(&world, &engine).await;
        promote(&engine, "2", false, None).await;
        told(&world, &engine).await;
        let older = version("1");
        engine
            .roll_back(&model(), &target(), Some(Back::to(&older)), ann(), "slow")
            .await
            .expect("rolled back");
        let back = told(&world, &engine).await;
        are(
            &back,
            &[head(3, 0, Moment::RolledBack, "log"), head(3, 1, Moment::RolledBack, "bo@example.com")],
        );
    })
    .await;
}
