//! Cron: schedules are rows claimed by compare-and-set, so any number of
//! processes fire a tick once; missed ticks follow `catch_up`.

mod others;

use std::sync::Arc;

use chrono_tz::Tz;
use croner::Cron;
use serde_json::json;

use super::{Catalog, Loaded, inputs, new_run, own_event, tell_paused};
use crate::domain::Timestamp;
use crate::domain::event::Event;
use crate::domain::workflow::trigger::{CatchUp, Schedule};
use crate::engine::{Engine, pause};
use crate::store::{NewRun, ScheduleRow, StoreError};

pub use self::others::Others;

/// `catch_up: all` starts at most this many runs at once; older ticks are dropped, and said so in the log.
const MOST_CAUGHT_UP: usize = 100;

/// A tick this late has nobody left who would fire it: whoever planned it, from another file, is gone.
const LEFT_ALONE: chrono::TimeDelta = chrono::TimeDelta::hours(1);

/// The first tick of `schedule` after `after`, in UTC. Local times that a change
/// of daylight saving time skips run at the change; those it doubles run once.
pub fn next_tick(schedule: &Schedule, after: Timestamp) -> Option<Timestamp> {
    let cron: Cron = schedule.cron.parse().ok()?;
    let local = after.with_timezone::<Tz>(&schedule.timezone);
    cron.find_next_occurrence(&local, false).ok().map(|tick| tick.to_utc())
}

fn row_id(loaded: &Loaded, index: usize) -> String {
    format!("{}/{index}", loaded.workflow.name)
}

/// What a row is kept for.
fn expression(schedule: &Schedule) -> String {
    format!("{} {}", schedule.cron, schedule.timezone)
}

/// Makes the schedules of the database those of the workflow files. A schedule that did not change keeps its next tick.
pub async fn sync(engine: &Arc<Engine>, catalog: &Catalog) -> Result<(), StoreError> {
    let now = engine.clock.now();
    for loaded in catalog.workflows() {
        let rows: Vec<ScheduleRow> = loaded
            .workflow
            .triggers
            .schedules
            .iter()
            .enumerate()
            .filter_map(|(index, schedule)| {
                Some(ScheduleRow {
                    id: row_id(loaded, index),
                    workflow: loaded.workflow.name.clone(),
                    expression: expression(schedule),
                    next_fire_at: next_tick(schedule, now)?,
                })
            })
            .collect();
        engine.store.sync_schedules(&loaded.workflow.name, &rows).await?;
    }
    Ok(())
}

/// Fires what is due. Returns when the next tick is.
pub async fn fire_due(engine: &Arc<Engine>, catalog: &Catalog) -> Result<Option<Timestamp>, StoreError> {
    fire(engine, catalog, engine.store.schedules().await?).await
}

async fn fire(
    engine: &Arc<Engine>,
    catalog: &Catalog,
    rows: Vec<ScheduleRow>,
) -> Result<Option<Timestamp>, StoreError> {
    let now = engine.clock.now();
    let mut soonest: Option<Timestamp> = None;
    for row in rows {
        let schedule = catalog.get(row.workflow.as_str()).and_then(|loaded| {
            let index: usize = row.id.rsplit('/').next()?.parse().ok()?;
            Some((loaded, loaded.workflow.triggers.schedules.get(index)?))
        });
        // Its file is gone or broken: the tick waits, and catches up once the file is back.
        let Some((loaded, schedule)) = schedule else { continue };
        let own = expression(schedule);
        let is_own = row.expression == own;
        if row.next_fire_at > now {
            let mut planned = row.next_fire_at;
            if is_own && let Some(next) = planned_too_late(schedule, planned, now) {
                let moved = ScheduleRow { next_fire_at: next, ..row.clone() };
                if engine.store.fire_schedule(&row, &moved, vec![]).await? {
                    tracing::warn!(
                        workflow = %loaded.workflow.name,
                        "The next tick was planned for {planned}, far too late; now it is {next}"
                    );
                }
                planned = next;
            }
            soonest = Some(soonest.map_or(planned, |at| at.min(planned)));
            continue;
        }
        // What another expression planned is fired by the process that has a newer file, if there is one.
        if !is_own && now - row.next_fire_at < LEFT_ALONE {
            continue;
        }
        let (mut ticks, mut are_left_out) = due_ticks(schedule, row.next_fire_at, now);
        if let Some(pause) = pause::paused(&*engine.store, &loaded.workflow.name, None).await? {
            tell_paused(loaded, &pause, "its schedule");
            ticks.clear();
            are_left_out = false;
        }
        let Some(next) = next_tick(schedule, now) else { continue };
        let mut submissions: Vec<(Event, Vec<NewRun>)> = vec![];
        for tick in ticks {
            let data = json!({"workflow": loaded.workflow.name, "tick": tick});
            let mut event = own_event("refit/schedule", data, "schedule", now);
            event.dedup_key = Some(format!("schedule/{}/{}", row.id, tick.timestamp()));
            let run = inputs(loaded, &[]).map_err(|error| error.to_string()).and_then(|inputs| {
                new_run(loaded, &event, inputs, "schedule", now).map_err(|error| error.to_string())
            });
            match run {
                Ok(mut run) => {
                    run.dedup_key = format!("schedule/{}/{}", row.id, tick.timestamp());
                    submissions.push((event, vec![run]));
                }
                Err(error) => {
                    tracing::error!(workflow = %loaded.workflow.name, "A tick cannot start a run: {error}");
                }
            }
        }
        let moved = ScheduleRow { expression: own, next_fire_at: next, ..row.clone() };
        if engine.store.fire_schedule(&row, &moved, submissions).await? {
            if !is_own {
                tracing::warn!(
                    workflow = %loaded.workflow.name,
                    "The tick of {} was planned by a process that has the schedule `{}` and is gone; from now on `{}` counts",
                    row.next_fire_at, row.expression, moved.expression
                );
            }
            tracing::info!(workflow = %loaded.workflow.name, tick = %row.next_fire_at, "Schedule fired");
            if are_left_out {
                tracing::warn!(
                    workflow = %loaded.workflow.name,
                    "Of the ticks of `{}` that were missed, only the last {MOST_CAUGHT_UP} are made up for",
                    schedule.cron
                );
            }
        }
        soonest = Some(soonest.map_or(next, |at| at.min(next)));
    }
    Ok(soonest)
}

/// The next tick, when a much later one is planned: somebody planned it while the clock was far ahead, as of a machine
/// that starts without one, and until then nothing would be started.
fn planned_too_late(schedule: &Schedule, planned: Timestamp, now: Timestamp) -> Option<Timestamp> {
    /// Clocks of several machines do not differ by so much.
    const FAR: chrono::TimeDelta = chrono::TimeDelta::days(1);
    if planned - now <= FAR {
        return None;
    }
    let next = next_tick(schedule, now)?;
    // Fired by a clock that is a little ahead, the one after the next is planned.
    (planned > next_tick(schedule, next)?).then_some(next)
}

/// Ticks from `first` to `now` that are to be made up for, and whether some that were to be are left out.
fn due_ticks(schedule: &Schedule, first: Timestamp, now: Timestamp) -> (Vec<Timestamp>, bool) {
    /// A tick this late was not missed: the process was merely busy.
    const ON_TIME: chrono::TimeDelta = chrono::TimeDelta::minutes(1);
    // From now back, further and further: of years there are too many ticks to walk through all.
    let mut back = chrono::TimeDelta::hours(1);
    let mut ticks = loop {
        let from = first.max(now - back);
        let start = if from == first { Some(first) } else { next_tick(schedule, from) };
        let ticks: Vec<Timestamp> = std::iter::successors(start, |last| next_tick(schedule, *last))
            .take_while(|tick| *tick <= now)
            .collect();
        if from == first || ticks.len() > MOST_CAUGHT_UP {
            break ticks;
        }
        back = back * 4;
    };
    let too_many = ticks.len().saturating_sub(MOST_CAUGHT_UP);
    ticks.drain(..too_many);
    match schedule.catch_up {
        CatchUp::All => (ticks, too_many > 0),
        CatchUp::Latest => (ticks.split_off(ticks.len().saturating_sub(1)), false),
        CatchUp::None => (ticks.into_iter().filter(|tick| now - *tick <= ON_TIME).collect(), false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn schedule(cron: &str, timezone: Tz, catch_up: CatchUp) -> Schedule {
        Schedule { cron: cron.to_owned(), timezone, catch_up }
    }

    #[test]
    fn a_local_time_that_the_clocks_skip_still_ticks_once_and_a_doubled_one_not_twice() {
        let nightly = schedule("30 2 * * *", chrono_tz::Europe::Berlin, CatchUp::Latest);
        // 2026-03-29: 02:00 becomes 03:00.
        let spring = next_tick(&nightly, at("2026-03-28T12:00:00Z"));
        assert_eq!(spring, Some(at("2026-03-29T01:00:00Z")));
        assert_eq!(next_tick(&nightly, at("2026-03-29T01:30:00Z")), Some(at("2026-03-30T00:30:00Z")));
        // 2026-10-25: 03:00 becomes 02:00.
        let autumn = next_tick(&nightly, at("2026-10-24T12:00:00Z"));
        assert_eq!(autumn, Some(at("2026-10-25T00:30:00Z")));
        assert_eq!(next_tick(&nightly, at("2026-10-25T00:30:00Z")), Some(at("2026-10-26T01:30:00Z")));
    }

    #[test]
    fn a_tick_that_was_planned_by_a_clock_far_ahead_is_planned_anew() {
        let weekly = schedule("0 2 * * 0", Tz::UTC, CatchUp::Latest);
        let now = at("2026-11-20T12:00:00Z");
        let anew = |planned| planned_too_late(&weekly, at(planned), now);
        assert_eq!(anew("2031-01-05T02:00:00Z"), Some(at("2026-11-22T02:00:00Z")));
        assert_eq!(anew("2026-11-29T02:00:00Z"), None, "fired a little early");
        assert_eq!(anew("2026-11-22T02:00:00Z"), None);
        let hourly = schedule("0 * * * *", Tz::UTC, CatchUp::Latest);
        assert_eq!(
            planned_too_late(&hourly, at("2026-11-20T20:00:00Z"), now),
            None,
            "another machine's clock"
        );
    }

    #[test]
    fn missed_ticks_follow_the_policy() {
        let first = at("2026-11-01T02:00:00Z");
        let now = at("2026-11-22T12:00:00Z");
        let due = |catch_up| due_ticks(&schedule("0 2 * * 0", Tz::UTC, catch_up), first, now).0;
        assert_eq!(due(CatchUp::All).len(), 4);
        assert_eq!(due(CatchUp::Latest), [at("2026-11-22T02:00:00Z")]);
        assert!(due(CatchUp::None).is_empty());
        let from_1970 =
            |catch_up| due_ticks(&schedule("* * * * *", Tz::UTC, catch_up), at("1970-01-01T00:01:00Z"), now);
        assert_eq!(from_1970(CatchUp::Latest), (vec![now], false));
        let (last, are_left_out) = from_1970(CatchUp::All);
        assert_eq!((last.len(), last[0], are_left_out), (100, at("2026-11-22T10:21:00Z"), true));
        let on_time = due_ticks(&schedule("0 2 * * 0", Tz::UTC, CatchUp::None), first, first);
        assert_eq!(on_time, (vec![first], false));
    }
}
