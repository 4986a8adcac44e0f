//! Cron over several processes, downtime and changes of daylight saving time.

use std::sync::Arc;

use chrono::TimeDelta;
use refit::clock::{Clock, ManualClock};
use refit::domain::Timestamp;
use refit::domain::event::Event;
use refit::domain::id::EventId;
use refit::domain::run::{Outcome, RunStatus};
use refit::engine::Engine;
use refit::store::{RunFilter, Submitted};
use refit::trigger::schedule::{self, Others};
use refit::trigger::{Catalog, send, trigger};
use serde_json::json;

use crate::support::crash::{Crash, When, Write};
use crate::support::log::Log;
use crate::support::world::{World, until};

/// The project with one schedule.
fn catalog(world: &World, schedule: &str) -> Catalog {
    catalog_on(world, &format!("{{ schedule: {schedule} }}"))
}

fn catalog_on(world: &World, on: &str) -> Catalog {
    world.write(
        "workflows/tick.yaml",
        &format!("name: tick\nmodel: m\non: {on}\nsteps: [{{ id: one, run: 'true' }}]\n"),
    );
    let catalog = Catalog::load(world.root.path());
    assert!(catalog.errors.is_empty(), "{:?}", catalog.errors);
    catalog
}

/// Local times, in UTC, of the ticks that started a run; oldest first.
async fn ticks(engine: &Arc<Engine>) -> Vec<String> {
    let runs = engine.store.runs(&RunFilter { limit: 100, ..RunFilter::default() }).await.unwrap();
    let mut ticks = vec![];
    for run in runs {
        let run = engine.store.run(run.id).await.unwrap().unwrap();
        let tick: Timestamp = run.cause.event.data["tick"].as_str().unwrap().parse().unwrap();
        ticks.push(tick.format("%m-%d %H:%M").to_string());
    }
    ticks.sort();
    ticks
}

fn set(world: &World, time: &str) {
    let time: Timestamp = time.parse().unwrap();
    world.pass(time - world.clock.now());
}

async fn on_both(test: impl AsyncFn(World)) {
    test(World::sqlite()).await;
    test(World::postgres().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_fire_every_tick_once() {
    on_both(async |world| {
        let catalog = catalog(&world, "{ cron: '* * * * *' }");
        let (one, two) = (world.process(&Crash::never()).await, world.process(&Crash::never()).await);
        for engine in [&one, &two] {
            schedule::sync(engine, &catalog).await.unwrap();
        }
        for fired in 1..=5 {
            world.pass(TimeDelta::minutes(1));
            let (a, b) = tokio::join!(schedule::fire_due(&one, &catalog), schedule::fire_due(&two, &catalog));
            assert_eq!(a.unwrap(), b.unwrap(), "both know when the next one is");
            assert_eq!(ticks(&one).await.len(), fired);
        }
        assert_eq!(
            ticks(&two).await,
            ["11-20 02:01", "11-20 02:02", "11-20 02:03", "11-20 02:04", "11-20 02:05"]
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_was_years_ahead_for_a_moment_stops_no_schedule() {
    on_both(async |world| {
        let catalog = catalog(&world, "{ cron: '0 3 * * *' }");
        let engine = world.process(&Crash::never()).await;
        schedule::sync(&engine, &catalog).await.unwrap();
        let right = world.clock.now();
        world.pass(TimeDelta::days(3_650));
        schedule::fire_due(&engine, &catalog).await.unwrap();
        assert_eq!(ticks(&engine).await.len(), 1);
        world.clock.set(right);
        let next = right.date_naive().and_hms_opt(3, 0, 0).unwrap().and_utc();
        assert_eq!(schedule::fire_due(&engine, &catalog).await.unwrap(), Some(next));
        world.clock.set(next);
        schedule::fire_due(&engine, &catalog).await.unwrap();
        assert_eq!(ticks(&engine).await.len(), 2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_still_has_the_old_file_plans_no_tick_of_the_new_one() {
    on_both(async |world| {
        let old = catalog(&world, "{ cron: '0 * * * *' }");
        let new = catalog(&world, "{ cron: '0 2 1 * *' }");
        let (one, two) = (world.process(&Crash::never()).await, world.process(&Crash::never()).await);
        schedule::sync(&one, &old).await.unwrap();
        schedule::sync(&two, &new).await.unwrap();
        let december = Some("2026-12-01T02:00:00Z".parse::<Timestamp>().unwrap());
        for _ in 0..3 {
            assert_eq!(schedule::fire_due(&one, &old).await.unwrap(), december);
            assert_eq!(schedule::fire_due(&two, &new).await.unwrap(), december);
            world.pass(TimeDelta::hours(1));
        }
        assert!(ticks(&one).await.is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_still_has_the_old_file_fires_no_tick_of_the_new_one() {
    on_both(async |world| {
        let old = catalog(&world, "{ cron: '0 * * * *' }");
        let new = catalog(&world, "{ cron: '30 * * * *' }");
        let (one, two) = (world.process(&Crash::never()).await, world.process(&Crash::never()).await);
        schedule::sync(&one, &old).await.unwrap();
        schedule::sync(&two, &new).await.unwrap();
        for _ in 0..6 {
            world.pass(TimeDelta::minutes(15));
            schedule::fire_due(&one, &old).await.unwrap();
            schedule::fire_due(&two, &new).await.unwrap();
        }
        assert_eq!(ticks(&one).await, ["11-20 02:30", "11-20 03:30"]);
        let runs = one.store.runs(&RunFilter { limit: 100, ..RunFilter::default() }).await.unwrap();
        for run in runs {
            let run = one.store.run(run.id).await.unwrap().unwrap();
            assert!(run.definition.source.contains("30 * * * *"), "{}", run.definition.source);
        }
    })
    .await;
}

/// Between the reading of what is due and the firing of it, somebody whose clock is a little behind loads a newer file.
#[tokio::test(flavor = "multi_thread")]
async fn a_tick_is_not_fired_once_another_expression_is_kept() {
    on_both(async |world| {
        let old = catalog(&world, "{ cron: '0 3 * * *' }");
        let new = catalog(&world, "{ cron: '0 3 20 * *' }");
        let behind = Arc::new(ManualClock::starting_at("2026-11-20T02:59:58Z".parse().unwrap()));
        let two = world.process_with(&Crash::never(), behind.clone()).await;
        let crash = Crash::meanwhile(Write { name: "fire_schedule".to_owned(), nth: 0 }, When::Before, {
            let (two, new) = (two.clone(), Arc::new(new.clone()));
            move || {
                let (two, new) = (two.clone(), new.clone());
                async move { schedule::sync(&two, &new).await.unwrap() }
            }
        });
        let one = world.process(&crash).await;
        schedule::sync(&one, &old).await.unwrap();
        set(&world, "2026-11-20T03:00:00Z");
        schedule::fire_due(&one, &old).await.unwrap();
        assert!(ticks(&one).await.is_empty(), "it is the other's by now");
        behind.set(world.clock.now());
        schedule::fire_due(&two, &new).await.unwrap();
        assert_eq!(ticks(&two).await, ["11-20 03:00"]);
        let next = two.store.schedules().await.unwrap()[0].next_fire_at;
        assert_eq!(next, "2026-12-20T03:00:00Z".parse::<Timestamp>().unwrap());
    })
    .await;
}

#[tokio::test]
async fn a_process_whose_schedule_does_not_count_says_so_once_for_each_change() {
    let (log, _until_the_end) = Log::begin(tracing::Level::WARN);
    on_both(async |world| {
        let said = |before: usize| log.text().lines().skip(before).map(str::to_owned).collect::<Vec<_>>();
        let before = log.text().lines().count();
        let own = catalog(&world, "{ cron: '0 * * * *' }");
        let (one, two) = (world.process(&Crash::never()).await, world.process(&Crash::never()).await);
        let others = Others::default();
        schedule::sync(&one, &own).await.unwrap();
        let look = async || {
            for _ in 0..3 {
                world.pass(TimeDelta::seconds(1));
                others.fire_due(&one, &own).await.unwrap();
            }
        };
        look().await;
        assert_eq!(said(before), [""; 0], "it counts");

        let mut seen = before;
        for (other, counts) in [
            ("{ schedule: { cron: '30 * * * *' } }", "`30 * * * * UTC` counts"),
            (
                "{ schedule: { cron: '45 * * * *', timezone: Europe/Berlin } }",
                "`45 * * * * Europe/Berlin` counts",
            ),
            ("{ event: { name: data/ready } }", "none counts"),
        ] {
            schedule::sync(&two, &catalog_on(&world, other)).await.unwrap();
            look().await;
            let said = said(seen);
            assert_eq!(said.len(), 1, "{said:#?}");
            for part in ["workflows/tick.yaml", "`0 * * * * UTC`", counts, "same workflow files", "restart"] {
                assert!(said[0].contains(part), "{part}: {said:#?}");
            }
            seen += 1;
        }

        // Its files are read again, and the other's after that.
        schedule::sync(&one, &own).await.unwrap();
        look().await;
        assert_eq!(said(seen), [""; 0], "it counts");
        schedule::sync(&two, &catalog(&world, "{ cron: '30 * * * *' }")).await.unwrap();
        look().await;
        assert_eq!(said(seen).len(), 1, "{:#?}", said(seen));
    })
    .await;
}

/// A workflow file that changed is here a moment before it counts.
#[tokio::test]
async fn a_process_that_is_about_to_make_its_schedule_count_says_nothing() {
    let (log, _until_the_end) = Log::begin(tracing::Level::WARN);
    let world = World::sqlite();
    let engine = world.process(&Crash::never()).await;
    let others = Others::default();
    schedule::sync(&engine, &catalog(&world, "{ cron: '0 * * * *' }")).await.unwrap();
    let changed = catalog(&world, "{ cron: '30 * * * *' }");
    others.fire_due(&engine, &changed).await.unwrap();
    schedule::sync(&engine, &changed).await.unwrap();
    others.fire_due(&engine, &changed).await.unwrap();
    assert_eq!(log.text(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_that_somebody_changed_and_left_is_taken_back() {
    on_both(async |world| {
        let own = catalog(&world, "{ cron: '0 * * * *' }");
        let other = catalog(&world, "{ cron: '30 2 * * *' }");
        let stays = world.process(&Crash::never()).await;
        schedule::sync(&stays, &own).await.unwrap();
        let leaves = world.process(&Crash::never()).await;
        schedule::sync(&leaves, &other).await.unwrap();
        leaves.store.close().await;
        for _ in 0..10 {
            world.pass(TimeDelta::minutes(15));
            schedule::fire_due(&stays, &own).await.unwrap();
        }
        // The first an hour after the tick of 02:30, which nobody is left to fire.
        assert_eq!(ticks(&stays).await, ["11-20 03:00", "11-20 04:00"]);
    })
    .await;
}

/// Nobody was there for three and a half days; another process comes.
async fn after_downtime(catch_up: &str) -> Vec<String> {
    let world = World::sqlite();
    let catalog = catalog(&world, &format!("{{ cron: '0 3 * * *', catch_up: {catch_up} }}"));
    let first = world.process(&Crash::never()).await;
    schedule::sync(&first, &catalog).await.unwrap();
    first.store.close().await;
    world.pass(TimeDelta::hours(84));
    let next = world.process(&Crash::never()).await;
    // A start reads the files again first: missed ticks must survive that.
    schedule::sync(&next, &catalog).await.unwrap();
    for _ in 0..2 {
        schedule::fire_due(&next, &catalog).await.unwrap();
    }
    let caught_up = ticks(&next).await;
    set(&world, "2026-11-24T03:00:00Z");
    schedule::fire_due(&next, &catalog).await.unwrap();
    let later = ticks(&next).await;
    assert_eq!(later.last().unwrap(), "11-24 03:00");
    assert_eq!(later.len(), caught_up.len() + 1);
    caught_up
}

#[tokio::test(flavor = "multi_thread")]
async fn ticks_missed_in_a_downtime_are_made_up_for_as_the_file_says() {
    assert_eq!(after_downtime("latest").await, ["11-23 03:00"]);
    assert_eq!(after_downtime("all").await, ["11-20 03:00", "11-21 03:00", "11-22 03:00", "11-23 03:00"]);
    assert!(after_downtime("none").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_night_whose_clocks_change_has_one_tick() {
    for (evening, morning, tick) in [
        // 02:30 does not exist in Berlin: the tick comes at the change.
        ("2027-03-27T20:00:00Z", "2027-03-28T08:00:00Z", "03-28 01:00"),
        // 02:30 comes twice: the first one counts.
        ("2027-10-30T20:00:00Z", "2027-10-31T08:00:00Z", "10-31 00:30"),
    ] {
        let world = World::sqlite();
        set(&world, evening);
        let catalog = catalog(&world, "{ cron: '30 2 * * *', timezone: Europe/Berlin }");
        let engine = world.process(&Crash::never()).await;
        schedule::sync(&engine, &catalog).await.unwrap();
        let morning: Timestamp = morning.parse().unwrap();
        while world.clock.now() < morning {
            world.pass(TimeDelta::minutes(10));
            schedule::fire_due(&engine, &catalog).await.unwrap();
        }
        assert_eq!(ticks(&engine).await, [tick]);
    }
}

/// A daily retrain of a model that a gate judges.
const JUDGED: &str = r"
name: judged
model: m
on: { schedule: { cron: '0 3 * * *' }, event: { name: data/ready } }
notify: [{ on: [rejected], console: true }]
steps:
  - id: train
    run: cat says
    metrics: { stdout: { mae: { pattern: 'MAE: ([0-9.]+)' } } }
  - { uses: gate, with: { rules: [{ metric: mae, max: 600 }] } }
";

#[tokio::test(flavor = "multi_thread")]
async fn a_workflow_that_was_rejected_twice_in_a_row_waits_for_a_person() {
    on_both(async |world| {
        world.write("workflows/judged.yaml", JUDGED);
        let catalog = Catalog::load(world.root.path());
        assert!(catalog.errors.is_empty(), "{:?}", catalog.errors);
        let judged = catalog.get("judged").expect("a workflow");
        let engine = world.process(&Crash::never()).await;
        schedule::sync(&engine, &catalog).await.unwrap();
        let runs = async || {
            let runs = engine.store.runs(&RunFilter { limit: 100, ..RunFilter::default() }).await.unwrap();
            runs.into_iter().map(|run| run.id).collect::<Vec<_>>()
        };
        let night = async || {
            let before = runs().await.len();
            set_to_next_night(&world);
            schedule::fire_due(&engine, &catalog).await.unwrap();
            runs().await.get(..runs().await.len() - before).and_then(<[_]>::first).copied()
        };
        let judge = async |run, mae: u32| {
            world.write("says", &format!("MAE: {mae}"));
            until(&world, &engine, run, |run| run.status == RunStatus::Finished).await
        };

        for (nth, mae) in [(0, 700), (1, 800)] {
            let run = night().await.expect("the schedule starts one");
            assert_eq!(judge(run, mae).await.outcome, Some(Outcome::Rejected));
            let told = engine.store.outbox_of(run).await.unwrap();
            let next = told[0].notice.facts["next"].as_str().unwrap_or_default().to_owned();
            assert_eq!(next.contains("the last two versions were rejected"), nth == 1, "{next}");
        }
        assert_eq!((night().await, night().await), (None, None), "nobody looked at it");
        let ready = Event {
            id: EventId::generate(),
            name: "data/ready".to_owned(),
            data: json!({}),
            source: "http".to_owned(),
            dedup_key: None,
            received_at: world.clock.now(),
        };
        let heard = send(&engine, &catalog, &ready, "http").await.unwrap();
        assert_eq!((heard.runs, heard.paused[0].0.as_str()), (vec![], "judged"), "whoever sent it is told");

        // A person starts it, and it goes on by itself from there.
        let Submitted::Made(by_hand) = trigger(&engine, judged, &[], "ann").await.unwrap() else {
            panic!("it was made before")
        };
        assert_eq!(judge(by_hand, 500).await.outcome, Some(Outcome::Succeeded));
        let run = night().await.expect("the schedule starts it again");
        assert_eq!(judge(run, 900).await.outcome, Some(Outcome::Rejected));
        assert!(night().await.is_some(), "one is not two");
    })
    .await;
}

/// Just after the next tick of a daily schedule at three.
fn set_to_next_night(world: &World) {
    let next =
        (world.clock.now() + TimeDelta::hours(21)).date_naive().and_hms_opt(3, 0, 1).unwrap().and_utc();
    world.pass(next - world.clock.now());
}
