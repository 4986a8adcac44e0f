//! What every source of fetched evidence promises.

use chrono::TimeDelta;
use refit::domain::canary::CanaryState;
use refit::domain::verdict::Verdict;
use refit::secret::Secret;

use super::apps::{App, Served};
use super::watched::Watched;
use crate::support::crash::{Crash, When, Write};
use crate::support::world::{World, start};

/// So many requests of both versions in the minute that begins so many minutes after the start.
fn minute(name: &str, after: i64, canary: (usize, usize), stable: usize) -> Vec<Served> {
    let at = start() + TimeDelta::minutes(after) + TimeDelta::seconds(10);
    let served = |version, n: usize, ok| Served {
        id: format!("{name}-{version}-{n}"),
        at: at + TimeDelta::milliseconds(100 * i64::try_from(n).expect("small")),
        version,
        ok,
    };
    let canaries = (0..canary.0).map(|n| served("2", n, n >= canary.1));
    canaries.chain((0..stable).map(|n| served("1", n, true))).collect()
}

async fn watched(app: &impl App) -> Watched {
    let mut world = World::sqlite();
    world.secrets.insert("TOKEN".parse().expect("a name"), Secret::new("reads-only"));
    Watched::start(world, &app.evidence()).await
}

pub async fn what_is_new_counts_once(app: &impl App) {
    let watched = watched(app).await;
    app.serves(&minute("before", -30, (0, 0), 9)).await;
    app.serves(&minute("a", 0, (4, 1), 20)).await;
    watched.look_in(3).await;
    assert_eq!((watched.counted("2").await, watched.counted("1").await), ((4, 1), (29, 0)));
    watched.look_in(1).await;
    assert_eq!((watched.counted("2").await, watched.counted("1").await), ((4, 1), (29, 0)));
    app.serves(&minute("b", 3, (2, 0), 5)).await;
    watched.look_in(2).await;
    assert_eq!((watched.counted("2").await, watched.counted("1").await), ((6, 1), (34, 0)));
    let timed: u64 = watched.minutes().await.iter().map(|minute| minute.counts.timed).sum();
    assert_eq!(timed, 40, "every request has a latency");
    let state = watched.state().await;
    assert_eq!((state.report.refused, state.report.problem), (0, None));
    // The canary fails every request from now on, and is taken back for it.
    for after in 4..12 {
        app.serves(&minute(&format!("bad-{after}"), after, (8, 8), 72)).await;
    }
    watched.look_in(11).await;
    let canary = watched.canary().await;
    assert_eq!((canary.state, canary.verdict), (CanaryState::RolledBack, Verdict::Fail), "{}", canary.reason);
}

pub async fn missed_minutes_are_read(app: &impl App) {
    let watched = watched(app).await;
    app.serves(&minute("a", 0, (1, 0), 5)).await;
    watched.look_in(2).await;
    // Nobody looks for three hours.
    for after in [2, 3, 60, 170] {
        app.serves(&minute(&format!("m{after}"), after, (2, 0), 10)).await;
    }
    watched.look_in(180).await;
    assert_eq!((watched.counted("2").await, watched.counted("1").await), ((9, 0), (45, 0)));
    for after in [2, 3, 60, 170] {
        let at = start() + TimeDelta::minutes(after);
        assert_eq!(watched.counted_at("2", at).await, 2, "minute {after}");
    }
}

pub async fn late_rows_and_rows_out_of_order_count_once(app: &impl App) {
    let watched = watched(app).await;
    let mut rows = minute("a", 0, (4, 0), 20);
    // A transaction that was long to commit, and one that was read in the middle.
    let late = rows.split_off(12);
    app.serves(&rows).await;
    watched.look_in(2).await;
    assert_eq!((watched.counted("2").await, watched.counted("1").await), ((4, 0), (8, 0)));
    app.serves(&late.into_iter().rev().collect::<Vec<_>>()).await;
    app.serves(&minute("b", 2, (1, 0), 1)).await;
    watched.look_in(1).await;
    watched.look_in(1).await;
    assert_eq!((watched.counted("2").await, watched.counted("1").await), ((5, 0), (21, 0)));
    // What comes for a minute that was read for good counts in the minute it comes.
    app.serves(&minute("c", 14, (1, 0), 1)).await;
    watched.look_in(12).await;
    app.serves(&[minute("d", 14, (1, 0), 0)].concat()).await;
    watched.look_in(14).await;
    assert_eq!(watched.counted("2").await, (7, 0));
    assert_eq!(watched.counted_at("2", start() + TimeDelta::minutes(14)).await, 1);
    assert_eq!(watched.state().await.report.late, 1);
}

pub async fn a_death_at_the_commit_neither_loses_nor_doubles(app: &impl App) {
    for when in [When::Before, When::After] {
        let mut watched = watched(app).await;
        let name = format!("{when:?}");
        app.serves(&minute(&name, 0, (3, 1), 9)).await;
        let before = watched.counted("2").await;
        let crash = Crash::at(Write { name: "keep_pulled".to_owned(), nth: 0 }, when);
        watched.restart(&crash).await;
        watched.world.pass(TimeDelta::minutes(2));
        let engine = watched.engine.clone();
        let looking = tokio::spawn(async move { engine.look_at_canaries().await });
        crash.died().await;
        looking.abort();
        watched.restart(&Crash::never()).await;
        watched.look_in(1).await;
        watched.look_in(1).await;
        let (n, errors) = watched.counted("2").await;
        let earlier = if when == When::After { 2 } else { 1 };
        assert_eq!((before, n, errors), ((0, 0), 3 * earlier, earlier), "{when:?}");
    }
}

pub async fn a_source_that_is_away_is_said_once_and_read_later(app: &impl App) {
    let watched = watched(app).await;
    app.serves(&minute("a", 0, (1, 0), 9)).await;
    watched.look_in(2).await;
    app.is_away(true).await;
    for _ in 0..15 {
        watched.look_in(1).await;
    }
    let problem = watched.state().await.report.problem.expect("a problem");
    assert!(problem.told && !problem.text.contains("reads-only"), "{problem:?}");
    let told = watched.told().await;
    let said: Vec<_> = told.iter().filter(|reason| reason.contains("cannot be read")).collect();
    assert_eq!(said.len(), 1, "{told:?}");
    let canary = watched.canary().await;
    assert_eq!((canary.state, canary.verdict), (CanaryState::Watching, Verdict::Inconclusive));
    assert_eq!(watched.counted("2").await, (1, 0));
    app.is_away(false).await;
    app.serves(&minute("b", 9, (2, 0), 9)).await;
    watched.look_in(1).await;
    assert_eq!(watched.counted("2").await, (3, 0));
    assert_eq!(watched.state().await.report.problem, None);
}

pub async fn rows_that_make_no_sense_are_refused_and_the_others_count(app: &impl App) {
    let watched = watched(app).await;
    app.serves(&minute("a", 0, (1, 0), 9)).await;
    let refused = app.breaks(start() + TimeDelta::seconds(20)).await;
    app.serves(&minute("b", 1, (1, 0), 9)).await;
    watched.look_in(2).await;
    watched.look_in(1).await;
    assert_eq!((watched.counted("2").await, watched.counted("1").await), ((2, 0), (18, 0)));
    let report = watched.state().await.report;
    assert_eq!(report.refused, refused, "{report:?}");
    assert!(report.refusal.is_some_and(|refusal| refusal.len() <= 600));
}

pub async fn nothing_there_is_no_evidence(app: &impl App) {
    let watched = watched(app).await;
    for _ in 0..3 {
        watched.look_in(1).await;
    }
    assert!(watched.minutes().await.is_empty());
    let state = watched.state().await;
    assert_eq!((state.through, state.report.problem), (None, None));
}

pub async fn rows_of_long_ago_do_not_count(app: &impl App) {
    let watched = watched(app).await;
    for days in [30, 9, 2] {
        app.serves(&minute(&format!("old-{days}"), -days * 1440, (0, 0), 15)).await;
    }
    app.serves(&minute("before", -30, (0, 0), 9)).await;
    app.serves(&minute("a", 0, (4, 1), 20)).await;
    watched.look_in(3).await;
    assert_eq!((watched.counted("2").await, watched.counted("1").await), ((4, 1), (29, 0)));
    assert!(watched.state().await.through.is_some_and(|through| through >= start()));
    // What comes late does not come again: it counts.
    app.serves(&minute("late", -20, (0, 0), 2)).await;
    watched.look_in(1).await;
    assert_eq!(watched.counted("1").await, (31, 0));
}
