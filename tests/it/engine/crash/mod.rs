//! Every crash there is: a run is stopped before and after each write that it
//! makes, in the database, on the host and in the artifact store; the next
//! process finds what is there, and ends the run as if nothing had happened.

pub mod process;
mod proof;
mod twice;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use refit::domain::run::Outcome;

use crate::store::database::drop_postgres;
use crate::support::crash::{Crash, When, Write};
use crate::support::world::World;
use process::{Fate, Inbox, live, on_a_runtime};
use proof::{Proof, prove};

/// How a run goes when nothing is in its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Story {
    /// Its canary passes in two stages, and bakes.
    Promoted,
    /// The same, and its promotion waits for the end of a freeze.
    Frozen,
    /// Its canary fails every request.
    RolledBack,
    /// Its metric is worse than its gate allows.
    Refused,
    /// A step fails while its canary is out.
    StepFails,
    /// Somebody cancels it while its canary is out.
    Cancelled,
    /// Somebody cancels it when it is promoted.
    CancelledTooLate,
    /// It does nothing but roll back.
    GoesBack,
}

impl Story {
    fn outcome(self) -> Outcome {
        match self {
            Story::Promoted | Story::Frozen => Outcome::Promoted,
            Story::RolledBack => Outcome::RolledBack,
            Story::Refused => Outcome::Rejected,
            Story::StepFails => Outcome::Failed,
            Story::Cancelled => Outcome::Cancelled,
            Story::CancelledTooLate => Outcome::CancelledAfterPromotion,
            Story::GoesBack => Outcome::Succeeded,
        }
    }

    /// The first write that differs from those of `Promoted`; absent when that is the trainer's.
    fn departs_at(self) -> Option<&'static str> {
        match self {
            Story::Promoted | Story::Frozen | Story::Refused | Story::GoesBack => None,
            Story::RolledBack | Story::StepFails => Some("observe"),
            Story::Cancelled | Story::CancelledTooLate => Some("request_cancel"),
        }
    }

    /// The champions that the host shows, one after the other.
    fn champions(self) -> &'static [&'static str] {
        match self {
            Story::Promoted | Story::Frozen | Story::CancelledTooLate => &["1", "2"],
            Story::RolledBack | Story::Refused | Story::StepFails | Story::Cancelled => &["1"],
            Story::GoesBack => &["1", "2", "1"],
        }
    }

    /// The workflow of the run that dies.
    fn source(self) -> &'static str {
        match self {
            Story::GoesBack => GOES_BACK,
            Story::Promoted
            | Story::Frozen
            | Story::RolledBack
            | Story::Refused
            | Story::StepFails
            | Story::Cancelled
            | Story::CancelledTooLate => RETRAIN,
        }
    }
}

/// The whole main job. No step may fail a second time: a crash is no failed attempt.
const RETRAIN: &str = r#"
name: retrain
model: race-times
mode: act
defaults: { retry: { attempts: 1 } }
steps:
  - id: data
    uses: fetch
    with: { from: { file: rows.csv }, to: rows.csv }
    expect: { columns: { distance: string, finish_s: float }, rows: { min: 2 } }
  - id: train
    run: |
      echo began >> began
      cp "$REFIT_DATA/rows.csv" "$REFIT_OUT/rows.csv"
      echo "{\"trained\": \"$$ $(date +%s%N)\"}" > "$REFIT_OUT/model.json"
      echo "{\"mae\": $(cat mae)}" > "$REFIT_METRICS"
    metrics: { file: true }
  - id: gate
    uses: gate
    with: { first_version: accept, rules: [{ metric: mae, max: 10 }] }
  - id: publish
    uses: publish
    with: { store: models, version: counter }
  - id: canary
    uses: canary
    with: { target: production, stages: [{ share: 20%, min_time: 1m }, 50%], compare: compare }
  - id: watch
    uses: wait
    with: { for: 1m, until: "canary.verdict != 'inconclusive'", at_most: 30m }
  - id: check
    run: 'test ! -e broken'
  - id: compare
    uses: compare
    with: { rules: [{ metric: error_rate, acceptable_below: 5% }], on_inconclusive: hold }
  - id: promote
    uses: promote
    with: { bake: 2m }
on_failure:
  - { id: sorry, run: 'echo sorry >> sorry' }
notify:
  - { on: [canary_started, promoted, frozen, rolled_back, rejected, failed, cancelled], slack: team }
"#;

const GOES_BACK: &str = r"
name: retrain
model: race-times
mode: act
defaults: { retry: { attempts: 1 } }
steps:
  - { id: back, uses: rollback, with: { target: production } }
notify:
  - { on: [succeeded, failed], slack: team }
";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Database {
    Sqlite,
    Postgres,
}

/// A world where version 1, or 2 where it is rolled back, serves everybody, and where a run will go as in `story`.
fn prepared(database: Database, story: Story, inbox: &Inbox) -> World {
    let world = on_a_runtime(async {
        match database {
            Database::Sqlite => World::sqlite(),
            Database::Postgres => World::postgres().await,
        }
    });
    world.write("rows.csv", "distance,finish_s\nsprint,4000.5\nolympic,8000.25\n");
    world.write("mae", "5.0");
    let first = RETRAIN.replace("name: retrain", "name: first");
    assert_eq!(live(&world, Story::Promoted, &first, inbox, &Crash::never()), Fate::Ended);
    match story {
        Story::Refused => world.write("mae", "50.0"),
        Story::StepFails => world.write("broken", ""),
        Story::GoesBack => {
            let second = RETRAIN.replace("name: retrain", "name: second");
            assert_eq!(live(&world, Story::Promoted, &second, inbox, &Crash::never()), Fate::Ended);
            // Of what follows no step trains.
            world.write("began", "");
        }
        Story::Promoted | Story::Frozen | Story::RolledBack | Story::Cancelled | Story::CancelledTooLate => {}
    }
    world
}

/// What there is when `story` was told, by processes that die at a write, one after the other, and then, unless one
/// of them lived, by one that does not. Whether the last of `crashes` died.
fn tell(prepared: &World, story: Story, crashes: &[&Crash], inbox: &Inbox) -> (Fate, Proof) {
    let world = on_a_runtime(prepared.copy());
    let mut fate = Fate::Died;
    for crash in crashes {
        fate = live(&world, story, story.source(), inbox, crash);
        if fate == Fate::Ended {
            break;
        }
    }
    if fate == Fate::Died {
        assert_eq!(live(&world, story, story.source(), inbox, &Crash::never()), Fate::Ended);
    }
    let proof = on_a_runtime(prove(&world, inbox));
    if world.database.starts_with("postgres") {
        on_a_runtime(drop_postgres(&world.database));
    }
    (fate, proof)
}

/// A write that happens by the time it takes, and so not in every run.
fn comes_by_time(write: &Write) -> bool {
    write.name == "renew" || write.name == "append_log"
}

fn every_crash(database: Database, story: Story) {
    let inbox = Inbox::open();
    let prepared = prepared(database, story, &inbox);
    let counted = Crash::never();
    let (_, calm) = tell(&prepared, story, &[&counted], &inbox);
    assert_eq!(calm.outcome, Some(story.outcome()), "{calm:#?}");
    assert_eq!(calm.champions, story.champions(), "{calm:#?}");
    let mut writes = counted.trace();
    if story == Story::Frozen {
        // What comes before and after is the same as in `Promoted`.
        let (before, after) = if database == Database::Sqlite { (2, 1) } else { (0, 0) };
        let lifted = writes.iter().position(|write| write.name == "unfreeze").expect("there");
        let freeze = writes.iter().position(|write| write.name == "freeze").expect("there");
        let promotes =
            lifted + writes[lifted..].iter().position(|write| write.name == "write_release").expect("there");
        let of_freeze = |at: usize| at == freeze || (lifted - before..=promotes + after).contains(&at);
        writes = writes.into_iter().enumerate().filter(|(at, _)| of_freeze(*at)).map(|(_, it)| it).collect();
    } else if let (Database::Postgres, Some(name)) = (database, story.departs_at()) {
        // What comes before is the same as in `Promoted`, which is told on Postgres too; SQLite tells all of it.
        writes.drain(..writes.iter().position(|write| write.name == name).expect("there"));
    }
    let crashes: Vec<(Write, When)> = writes
        .iter()
        .flat_map(|write| [(write.clone(), When::Before), (write.clone(), When::After)])
        .collect();

    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(vec![]));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((write, when)) = crashes.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let crash = Crash::at(write.clone(), *when);
                    let told = catch_unwind(AssertUnwindSafe(|| tell(&prepared, story, &[&crash], &inbox)));
                    let problem = match told {
                        Ok((Fate::Ended, _)) if !comes_by_time(write) => Some("was never reached".to_owned()),
                        Ok((_, proof)) => calm.difference(&proof),
                        Err(panic) => Some(process::words_of(panic.as_ref())),
                    };
                    let problem = problem.map(|problem| format!("died {when:?} {write}: {problem}"));
                    wrong.lock().unwrap().extend(problem);
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} of {} crashes:\n{}", wrong.len(), crashes.len(), wrong.join("\n"));
}

macro_rules! stories {
    ($($name:ident: $story:ident,)*) => {
        mod sqlite {
            $(#[test]
            fn $name() {
                super::every_crash(super::Database::Sqlite, super::Story::$story);
            })*
        }

        mod postgres {
            $(#[test]
            fn $name() {
                super::every_crash(super::Database::Postgres, super::Story::$story);
            })*
        }
    };
}

stories! {
    a_promotion_is_made_once_whatever_write_it_dies_at: Promoted,
    a_promotion_is_made_once_after_a_freeze_whatever_write_it_dies_at: Frozen,
    a_failing_canary_is_taken_back_whatever_write_it_dies_at: RolledBack,
    a_refused_model_never_serves_whatever_write_it_dies_at: Refused,
    a_failed_run_takes_its_canary_back_whatever_write_it_dies_at: StepFails,
    a_cancelled_run_takes_its_canary_back_whatever_write_it_dies_at: Cancelled,
    a_cancel_after_the_promotion_changes_nothing_whatever_write_it_dies_at: CancelledTooLate,
    a_rollback_goes_back_once_whatever_write_it_dies_at: GoesBack,
}
