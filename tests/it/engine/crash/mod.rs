//! Every crash there is: a run is stopped before and after each write that it
//! makes, in the database, on the host and in the artifact store; the next
//! process finds what is there, and ends the run as if nothing had happened.

mod app;
mod inbox;
pub mod process;
mod proof;
mod stories;
mod story;
mod twice;

use std::collections::BTreeSet;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use chrono::TimeDelta;
use refit::clock::Clock;

use crate::store::database::drop_postgres;
use crate::support::crash::{Crash, When, Write};
use crate::support::crashing_store::CrashingStore;
use crate::support::world::World;
use inbox::Inbox;
use process::{Fate, Until, live, on_a_runtime};
use proof::{Proof, prove};
use stories::bake::{FailsAfterItsRun, FailsAsItsRunEnds, FailsInBake};
use stories::endings::{Cancelled, Denied, GoesBack, Refused, RolledBack, StepFails};
use stories::errands::Errands;
use stories::followed::Followed;
use stories::held::{GivenMoreTime, NobodyDecides, PromotedByHand};
use stories::others::{Overruled, Superseded};
use stories::promotion::{CancelledTooLate, Frozen, Promoted};
use story::{Database, Story};

/// A story that was told.
struct Told {
    /// Whether the last process that was to die did.
    fate: Fate,
    proof: Proof,
    /// How long its run went on.
    took: TimeDelta,
}

impl Told {
    /// What is wrong with it, when `calm` is the same without a crash and this is with `crashes`.
    fn problem(&self, story: &dyn Story, calm: &Self, crashes: &[&Write]) -> Option<String> {
        if self.fate == Fate::Ended && !crashes.iter().any(|write| comes_by_time(&write.name)) {
            return Some("was never reached".to_owned());
        }
        // What was lost with a process is found by the next look, and may count from then on.
        let found_again = (AWAY + story.pace() * 2) * i32::try_from(crashes.len()).expect("few");
        let patience = found_again + story.left_to_chance();
        let late = || format!("its run took {} and not {}", self.took, calm.took);
        calm.proof.difference(&self.proof).or_else(|| (self.took > calm.took + patience).then(late))
    }
}

/// A world whose database is deleted with it, however its story ends.
struct Own(World);

impl Deref for Own {
    type Target = World;

    fn deref(&self) -> &World {
        &self.0
    }
}

impl DerefMut for Own {
    fn deref_mut(&mut self) -> &mut World {
        &mut self.0
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if self.database.starts_with("postgres") {
            let dropped = catch_unwind(AssertUnwindSafe(|| on_a_runtime(drop_postgres(&self.database))));
            // A second panic would hide what the first one says.
            assert!(dropped.is_ok() || std::thread::panicking(), "{} is left", self.database);
        }
    }
}

/// How long it takes until another process takes the place of one that died.
const AWAY: TimeDelta = TimeDelta::minutes(1);

/// Where `story` begins.
fn prepared(database: Database, story: &dyn Story, inbox: &Inbox) -> Own {
    let mut world = Own(on_a_runtime(async {
        match database {
            Database::Sqlite => World::sqlite(),
            Database::Postgres => World::postgres().await,
        }
    }));
    inbox.connect(&mut world);
    world.write("rows.csv", "distance,finish_s\nsprint,4000.5\nolympic,8000.25\n");
    world.write("mae", "5.0");
    story.prepare(&world, inbox);
    inbox.forget(&world);
    if let Some(step) = story.begins_at() {
        assert_eq!(live(&world, story, Until::At(step), inbox, &Crash::never()), Fate::Ended);
    }
    world
}

/// Another version is trained, and serves everybody at the end of the run called `name`.
fn serve(world: &World, name: &'static str, inbox: &Inbox) {
    assert_eq!(live(world, &Promoted(name), Until::Over, inbox, &Crash::never()), Fate::Ended);
}

/// Tells `story` by processes that die at a write, one after the other, and then, unless one of them lived, by one that
/// does not.
fn tell(prepared: &World, story: &dyn Story, crashes: &[&Crash], inbox: &Inbox) -> Told {
    let mut world = Own(on_a_runtime(prepared.copy()));
    inbox.connect_copy(&mut world, prepared);
    let mut fate = Fate::Died;
    for crash in crashes {
        fate = live(&world, story, Until::Over, inbox, crash);
        if fate == Fate::Ended {
            break;
        }
        world.pass(AWAY);
    }
    if fate == Fate::Died {
        assert_eq!(live(&world, story, Until::Over, inbox, &Crash::never()), Fate::Ended);
    }
    let (proof, ended) = on_a_runtime(prove(&world, story, inbox));
    // What was answered and written down is not asked again.
    let settled = crashes.iter().position(|crash| crash.made("settle"));
    let lives = settled.unwrap_or(crashes.len()) + 1;
    let asked = inbox.requests(&world);
    assert!(asked.len() <= lives, "in {lives} lives: {asked:?}");
    Told { fate, proof, took: ended - prepared.clock.now() }
}

/// Tells `story` with nothing in its way, and counts the writes.
fn tell_calmly(prepared: &World, story: &dyn Story, inbox: &Inbox) -> (Told, Vec<Write>) {
    let counted = Crash::never();
    let calm = tell(prepared, story, &[&counted], inbox);
    assert_eq!(calm.proof.run.outcome, Some(story.outcome()), "{:#?}", calm.proof);
    assert_eq!(calm.proof.champions, story.champions(), "{:#?}", calm.proof);
    (calm, counted.trace())
}

/// A write that happens by the time it takes, and so not in every run.
fn comes_by_time(name: &str) -> bool {
    name == "renew" || name == "append_log"
}

fn every_crash(database: Database, story: &dyn Story) {
    let inbox = Inbox::open();
    let prepared = prepared(database, story, &inbox);
    let (calm, all) = tell_calmly(&prepared, story, &inbox);
    let writes = story.dies_at(database, all.clone());
    for name in story.tells() {
        assert!(writes.iter().any(|write| write.name == *name), "{name} is not among {writes:?}");
    }
    let dies: Vec<_> = deaths(story, &all, writes).into_iter().map(|death| vec![death]).collect();
    every_death(&prepared, story, &calm, &inbox, &dies);
}

/// Before and after each of `writes`. What begins later leaves out what comes before a write where it dies after the
/// write before it, of `all`: that is the same.
fn deaths(story: &dyn Story, all: &[Write], writes: Vec<Write>) -> Vec<Death> {
    let dies_before = |write: &Write| {
        let place = all.iter().position(|other| other == write).expect("one of all");
        story.begins_at().is_none() || place == 0 || !writes.contains(&all[place - 1])
    };
    let before = |write: &Write| dies_before(write).then(|| (write.clone(), When::Before));
    writes.iter().flat_map(|write| before(write).into_iter().chain([(write.clone(), When::After)])).collect()
}

/// Where a process dies.
type Death = (Write, When);

/// Tells `story` with each of `plans`, which are the deaths of its processes, one after the other; each must end as `calm`.
fn every_death(prepared: &World, story: &dyn Story, calm: &Told, inbox: &Inbox, plans: &[Vec<Death>]) {
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(vec![]));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(plan) = plans.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let crashes: Vec<_> =
                        plan.iter().map(|(write, when)| Crash::at(write.clone(), *when)).collect();
                    let crashes: Vec<&Crash> = crashes.iter().collect();
                    let told = catch_unwind(AssertUnwindSafe(|| tell(prepared, story, &crashes, inbox)));
                    let problem = match told {
                        Ok(told) => {
                            let writes: Vec<&Write> = plan.iter().map(|(write, _)| write).collect();
                            told.problem(story, calm, &writes)
                        }
                        Err(panic) => Some(process::words_of(panic.as_ref())),
                    };
                    let deaths: Vec<_> =
                        plan.iter().map(|(write, when)| format!("{when:?} {write}")).collect();
                    let problem =
                        problem.map(|problem| format!("died {}: {problem}", deaths.join(", then ")));
                    wrong.lock().unwrap().extend(problem);
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), plans.len(), wrong.join("\n"));
}

/// Writes that no story makes, by what they are for.
const IN_NO_STORY: &[(&str, &[&str])] = &[
    ("a process that stops in good order, as `engine::shutdown` tells", &["release_lease"]),
    ("the end of a version; `engine::retention` dies at each", &["condemn_version", "version_deleted"]),
    ("the end of old evidence; `engine::pruning` dies at it", &["forget_evidence", "move_pruning"]),
    ("evidence that refit asks for; `evidence::suite` dies at it", &["keep_pulled"]),
    (
        "one write of a request or a command, and nothing after it",
        &["add_truth", "pin_version", "mark_version"],
    ),
    ("what `refit adopt` begins with, and makes again", &["adopt_version"]),
    (
        "a service that is slow or takes no more now, as `notify::paced` tells",
        &["hold_outbox", "outbox_waits"],
    ),
    ("the same of a message that follows a run", &["board_failed", "hold_board", "board_waits"]),
];

macro_rules! stories {
    (both { $($both:ident: $on_both:expr,)* } sqlite { $($one:ident: $on_one:expr,)* }) => {
        mod sqlite {
            use super::*;

            $(#[test]
            fn $both() {
                every_crash(Database::Sqlite, &$on_both);
            })*

            $(#[test]
            fn $one() {
                every_crash(Database::Sqlite, &$on_one);
            })*
        }

        mod postgres {
            use super::*;

            $(#[test]
            fn $both() {
                every_crash(Database::Postgres, &$on_both);
            })*
        }

        const STORIES: &[&dyn Story] = &[$(&$on_both,)* $(&$on_one),*];
    };
}

// What those on SQLite alone write is told of other runs on Postgres.
stories! {
    both {
        a_promotion_is_made_once_whatever_write_it_dies_at: Promoted("retrain"),
        a_promotion_is_made_once_after_a_freeze_whatever_write_it_dies_at: Frozen,
        a_failing_canary_is_taken_back_whatever_write_it_dies_at: RolledBack,
        a_refused_model_never_serves_whatever_write_it_dies_at: Refused,
        a_failed_run_takes_its_canary_back_whatever_write_it_dies_at: StepFails,
        a_cancelled_run_takes_its_canary_back_whatever_write_it_dies_at: Cancelled,
        a_cancel_after_the_promotion_changes_nothing_whatever_write_it_dies_at: CancelledTooLate,
        a_rollback_goes_back_once_whatever_write_it_dies_at: GoesBack,
        branches_ask_the_app_the_team_and_a_person_once_whatever_write_they_die_at: Errands,
        a_held_canary_is_promoted_by_hand_once_whatever_write_it_dies_at: PromotedByHand,
        a_held_canary_with_more_time_is_promoted_once_whatever_write_it_dies_at: GivenMoreTime,
        a_held_canary_gives_way_to_a_newer_version_whatever_write_it_dies_at: Superseded,
        a_version_that_fails_after_its_run_is_taken_back_whatever_write_it_dies_at: FailsAfterItsRun,
    }
    sqlite {
        the_message_that_follows_a_run_is_one_whatever_write_it_dies_at: Followed,
        a_canary_that_a_person_denies_is_taken_back_whatever_write_it_dies_at: Denied,
        a_held_canary_that_nobody_decides_about_is_taken_back_whatever_write_it_dies_at: NobodyDecides,
        a_canary_gives_way_to_a_promotion_by_hand_whatever_write_it_dies_at: Overruled,
        a_version_that_fails_in_its_bake_is_taken_back_whatever_write_it_dies_at: FailsInBake,
        a_version_that_fails_as_its_run_ends_is_taken_back_whatever_write_it_dies_at: FailsAsItsRunEnds,
    }
}

#[test]
fn every_write_of_the_store_is_in_a_story_or_it_is_said_why_not() {
    let in_stories = STORIES.iter().flat_map(|story| story.tells());
    let known: BTreeSet<&str> =
        in_stories.chain(IN_NO_STORY.iter().flat_map(|(_, writes)| *writes)).copied().collect();
    let made: BTreeSet<&str> = CrashingStore::writes().filter(|name| !comes_by_time(name)).collect();
    assert_eq!(known, made);
}
