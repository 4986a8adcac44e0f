//! refit dies before and after each request that it makes to Blob, Vercel, Resend and Slack while it
//! retrains. The next process finds what is there, and every effect is there once.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use chrono::{DurationRound, TimeDelta};
use refit::clock::{Clock as _, ManualClock};
use refit::domain::evidence::{EvidenceMinute, MinuteCounts, ObservationBatch};
use refit::domain::id::{RunId, VersionName};
use refit::domain::run::{Outcome, RunStatus};
use refit::store::{RunFilter, Store};
use serde_json::json;

use super::place::{Place, QUICK};
use crate::engine::crash::process::{on_a_runtime, words_of};
use crate::store::database::{drop_postgres, migrated_postgres};
use crate::support::crash::{Crash, When, Write};
use crate::support::instance::Instance;
use crate::support::slack::Posted;
use crate::support::world::start;

/// Lives at once; most of one is Slack's second between two posts.
const THREADS: usize = 10;
/// Turns between two looks at the messages that follow runs.
const SHOWN_EVERY: usize = 8;

/// Where a run's databases are, and all that is outside.
pub(super) struct World {
    pub place: Place,
    pub database: String,
    pub clock: Arc<ManualClock>,
    /// Whether each run has a message in Slack that follows it.
    pub follows: bool,
}

/// What a process does in one minute, and what the app reports: a retrain goes on, or the next of two begins.
pub(super) async fn a_minute(refit: &Instance, turn: usize) {
    let runs = refit.runs().await;
    let run = match runs.iter().find(|run| run.status != RunStatus::Finished) {
        Some(run) => run.id,
        None if runs.len() < 2 => refit.retrain(&[]).await,
        None => runs[0].id,
    };
    report(refit).await;
    let seen = refit.turn(run).await;
    // The message about the run: when it begins, now and then, and at its end.
    if turn.is_multiple_of(SHOWN_EVERY) || seen.status == RunStatus::Finished {
        refit.show().await;
        // Slack's second between two posts is a real one: to ask without a pause would use up all turns.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The app's minute, by the release that it was shown.
async fn report(refit: &Instance) {
    let (store, now) = (&refit.engine.store, refit.clock.now());
    let releases = store.releases(None).await.expect("readable");
    let Some(release) = releases.into_iter().find(|release| release.is_applied()) else { return };
    let release = release.document(store.instance());
    let minute = |version: &VersionName, n: u64| EvidenceMinute {
        version: version.clone(),
        minute: now.duration_trunc(TimeDelta::minutes(1)).expect("in range"),
        seq: 0,
        counts: MinuteCounts { n, errors: 0, timed: 0 },
        latency: vec![],
    };
    let champion = release.champion.iter().map(|served| minute(&served.version, 9_000));
    let canary = release.canary.iter().map(|canary| minute(&canary.served.version, 1_000));
    let batch = ObservationBatch {
        model: release.model.clone(),
        batch_id: format!("app/{now}"),
        minutes: champion.chain(canary).collect(),
        predictions: vec![],
        at: now,
    };
    store.observe(&batch).await.expect("kept");
}

impl World {
    pub(super) async fn new(on_postgres: bool) -> Self {
        let place = Place::new(false, QUICK).await;
        /// The app's table, made once.
        static RESULTS: OnceLock<Vec<u8>> = OnceLock::new();
        let results = RESULTS.get_or_init(|| {
            place.race_until("2026-11-20", &["--starters", "2"]);
            std::fs::read(&place.app_database).expect("readable")
        });
        std::fs::write(&place.app_database, results).expect("written");
        let database = if on_postgres {
            migrated_postgres().await
        } else {
            place.root().join("refit.db").display().to_string()
        };
        Self { place, database, clock: Arc::new(ManualClock::starting_at(start())), follows: true }
    }

    /// One process, until both retrains are over and everybody was told, or until it dies.
    fn live(&self, crash: &Crash) {
        *self.place.crash.lock().unwrap() = crash.clone();
        on_a_runtime(async {
            tokio::select! {
                biased;
                () = crash.died() => {}
                () = self.work() => {}
            }
        });
    }

    async fn work(&self) {
        let refit = Instance::on(self.place.root(), &self.database, self.clock.clone()).await;
        let store = &refit.engine.store;
        store.reap(self.clock.now()).await.expect("reaps");
        for turn in 0..400 {
            a_minute(&refit, turn).await;
            if self.is_settled(store.as_ref()).await {
                store.retire_worker(refit.engine.worker).await.expect("retires");
                store.close().await;
                return;
            }
            self.clock.advance(TimeDelta::minutes(1));
        }
        panic!("it never ended: {:#?}", refit.runs().await);
    }

    /// Whether both retrains are over, what they decided is shown, and everybody was told.
    pub(super) async fn is_settled(&self, store: &dyn Store) -> bool {
        let runs = store.runs(&RunFilter { limit: 100, ..RunFilter::default() }).await.expect("readable");
        let mut told = runs.len() == 2;
        for run in runs {
            let outbox = store.outbox_of(run.id).await.expect("readable");
            told &= run.status == RunStatus::Finished
                && outbox.iter().all(|entry| entry.sent_at.is_some() || entry.dead);
            told &=
                !self.follows || self.boards(run.id).iter().any(|board| board.text.ends_with("was promoted"));
        }
        told && store.live_canaries(None).await.expect("readable").is_empty()
            && store.releases(None).await.expect("readable").iter().all(|release| release.is_applied())
    }

    /// The messages that follow a run: there should be one.
    pub(super) fn boards(&self, run: RunId) -> Vec<Posted> {
        let of_run =
            json!({"event_type": "refit_message", "event_payload": {"id": format!("{run}/board/team")}});
        let messages = self.place.slack.messages().into_iter();
        messages.filter(|message| message.metadata == of_run).collect()
    }

    /// What is outside, each once, whatever happened on the way.
    pub(super) async fn prove(&self) {
        let refit = Instance::on(self.place.root(), &self.database, self.clock.clone()).await;
        let outcomes: Vec<_> = refit.runs().await.into_iter().map(|run| run.outcome).collect();
        assert_eq!(outcomes, [Some(Outcome::Promoted); 2]);
        let versions: Vec<_> = self.place.versions().into_iter().collect();
        assert_eq!(versions, [("2026-11-20".to_owned(), 3), ("2026-11-20.2".to_owned(), 3)]);
        let blobs = self.place.blob.pathnames();
        assert_eq!(blobs.len(), 2 * (3 + 2), "no half upload is left: {blobs:#?}");
        assert_eq!(self.place.serving(), (Some("2026-11-20.2".to_owned()), None));
        // One that a process died over is held for some minutes: the next may come before it.
        let mut subjects = self.place.subjects();
        subjects.sort();
        let promoted = ["race-times 2026-11-20 was promoted", "race-times 2026-11-20.2 was promoted"];
        assert_eq!(subjects, promoted);
        // Slack takes no key: what a lost answer was about is found there by its id.
        for run in refit.runs().await {
            let boards = self.boards(run.id);
            assert_eq!(boards.len(), 1, "{boards:#?}");
            assert!(boards[0].text.ends_with("was promoted"), "the newest state: {boards:#?}");
        }
        let messages = self.place.slack.messages();
        assert_eq!(messages.len(), 4, "a message a run, and an answer: {messages:#?}");
        self.place.slack.violations.assert_none();
    }
}

fn each_death_has_no_effect_but_a_pause(on_postgres: bool) {
    // The vendors outlive every process.
    let outside = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let outside = outside.expect("a runtime");
    let fresh = || outside.block_on(World::new(on_postgres));
    let drop_world = |world: World| {
        if on_postgres {
            on_a_runtime(drop_postgres(&world.database));
        }
    };

    let undisturbed = fresh();
    let counting = Crash::never();
    undisturbed.live(&counting);
    outside.block_on(undisturbed.prove());
    drop_world(undisturbed);
    let requests = counting.trace();
    for vendor in ["blob", "vercel", "resend", "slack"] {
        assert!(requests.iter().any(|request| request.name.starts_with(vendor)), "{vendor}: {requests:#?}");
    }

    // A read changes nothing: before it and after it all is the same, and so it is for the same read again.
    let is_read = |request: &Write| request.name.contains(" GET ");
    let again = |at: usize| at > 0 && requests[at - 1].name == requests[at].name;
    let deaths: Vec<(Write, When)> = (0..requests.len())
        .filter(|at| !(is_read(&requests[*at]) && again(*at)))
        .flat_map(|at| {
            let before = (!is_read(&requests[at])).then(|| (requests[at].clone(), When::Before));
            before.into_iter().chain([(requests[at].clone(), When::After)])
        })
        .collect();
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(vec![]));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some((write, when)) = deaths.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let tried = catch_unwind(AssertUnwindSafe(|| {
                        let world = fresh();
                        world.live(&Crash::at(write.clone(), *when));
                        world.live(&Crash::never());
                        outside.block_on(world.prove());
                        drop_world(world);
                    }));
                    if let Err(panic) = tried {
                        let why = words_of(panic.as_ref());
                        failures.lock().unwrap().push(format!("{when:?} {write}: {why}"));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} of {} deaths:\n{}", failures.len(), deaths.len(), failures.join("\n\n"));
}

#[test]
fn sqlite() {
    each_death_has_no_effect_but_a_pause(false);
}

#[test]
fn postgres() {
    each_death_has_no_effect_but_a_pause(true);
}
