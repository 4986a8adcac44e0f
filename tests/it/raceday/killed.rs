//! refit dies before and after each request that it makes to Blob, Vercel, Resend and Slack while it
//! retrains. The next process finds what is there, and every effect is there once.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use chrono::{DurationRound, TimeDelta};
use refit::clock::{Clock as _, ManualClock};
use refit::domain::evidence::{EvidenceMinute, MinuteCounts, ObservationBatch};
use refit::domain::id::VersionName;
use refit::domain::run::{Outcome, RunStatus};

use super::place::{Place, QUICK};
use crate::engine::crash::process::{on_a_runtime, words_of};
use crate::store::database::{drop_postgres, empty_postgres};
use crate::support::crash::{Crash, When, Write};
use crate::support::instance::Instance;
use crate::support::world::start;

/// Lives at once.
const THREADS: usize = 6;

/// Where a run's databases are, and all that is outside.
struct World {
    place: Place,
    database: String,
    clock: Arc<ManualClock>,
}

impl World {
    async fn new(on_postgres: bool) -> Self {
        let place = Place::new(false, QUICK).await;
        place.edit("refit.toml", &[("kind = \"slack-api\"", "kind = \"slack-api\"\nprogress = false")]);
        place.race_until("2026-11-20", &["--starters", "2"]);
        let database = if on_postgres {
            let url = empty_postgres().await;
            refit::store::migrate(&url, false).await.expect("migrated");
            url
        } else {
            place.root().join("refit.db").display().to_string()
        };
        Self { place, database, clock: Arc::new(ManualClock::starting_at(start())) }
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
        for _ in 0..60 {
            let runs = refit.runs().await;
            let run = match runs.iter().find(|run| run.status != RunStatus::Finished) {
                Some(run) => run.id,
                None if runs.len() < 2 => refit.retrain(&[]).await,
                None => runs[0].id,
            };
            self.report(&refit).await;
            refit.turn(run).await;
            if runs.len() == 2 && self.is_settled(&refit).await {
                store.retire_worker(refit.engine.worker).await.expect("retires");
                store.close().await;
                return;
            }
            self.clock.advance(TimeDelta::minutes(1));
        }
        panic!("it never ended: {:#?}", refit.runs().await);
    }

    async fn is_settled(&self, refit: &Instance) -> bool {
        let store = &refit.engine.store;
        let mut told = true;
        for run in refit.runs().await {
            let outbox = store.outbox_of(run.id).await.expect("readable");
            told &= run.status == RunStatus::Finished
                && outbox.iter().all(|entry| entry.sent_at.is_some() || entry.dead);
        }
        told && store.live_canaries(None).await.expect("readable").is_empty()
            && store.releases(None).await.expect("readable").iter().all(|release| release.is_applied())
    }

    /// The app's minute.
    async fn report(&self, refit: &Instance) {
        let Some(release) = self.place.release() else { return };
        let now = self.clock.now();
        let minute = |version: &VersionName, n: u64| EvidenceMinute {
            version: version.clone(),
            minute: now.duration_trunc(TimeDelta::minutes(1)).expect("in range"),
            seq: 0,
            counts: MinuteCounts { n, errors: 0, timed: 0 },
            latency: vec![],
        };
        let champion = release.champion.iter().map(|served| minute(&served.version, 900));
        let canary = release.canary.iter().map(|canary| minute(&canary.served.version, 100));
        let batch = ObservationBatch {
            model: release.model.clone(),
            batch_id: format!("app/{now}"),
            minutes: champion.chain(canary).collect(),
            predictions: vec![],
            at: now,
        };
        refit.engine.store.observe(&batch).await.expect("kept");
    }

    /// What is outside, each once, whatever happened on the way.
    async fn prove(&self) {
        let refit = Instance::on(self.place.root(), &self.database, self.clock.clone()).await;
        let outcomes: Vec<_> = refit.runs().await.into_iter().map(|run| run.outcome).collect();
        assert_eq!(outcomes, [Some(Outcome::Promoted); 2]);
        let versions: Vec<_> = self.place.versions().into_iter().collect();
        assert_eq!(versions, [("2026-11-20".to_owned(), 3), ("2026-11-20.2".to_owned(), 3)]);
        let blobs = self.place.blob.pathnames();
        assert_eq!(blobs.len(), 2 * (3 + 2), "no half upload is left: {blobs:#?}");
        assert_eq!(self.place.serving(), (Some("2026-11-20.2".to_owned()), None));
        assert_eq!(
            self.place.subjects(),
            ["race-times 2026-11-20 was promoted", "race-times 2026-11-20.2 was promoted"]
        );
        // Slack takes no key: a message whose answer was lost may come twice, never more.
        let mut texts: Vec<_> = self.place.slack.messages().into_iter().map(|message| message.text).collect();
        assert!((2..=3).contains(&texts.len()), "{texts:#?}");
        texts.sort();
        texts.dedup();
        assert_eq!(texts.len(), 2, "{texts:#?}");
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

    let deaths: Vec<(Write, When)> = requests
        .iter()
        .flat_map(|write| [(write.clone(), When::Before), (write.clone(), When::After)])
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
