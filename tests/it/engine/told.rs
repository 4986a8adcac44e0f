//! A run in hand hears at once what it is told, not with the next renewal of its lease.

use std::sync::Arc;
use std::time::Duration;

use refit::clock::{Clock, SystemClock};
use refit::domain::id::RunId;
use refit::domain::run::{CancelRequest, Outcome, RunStatus};
use refit::engine::deadline::Deadline;
use refit::engine::worker::Worker;
use refit::engine::{Engine, Settings};
use sqlx::{Connection, PgConnection};

use super::on_both;
use crate::support::crash::Crash;
use crate::support::world::{World, exists, no_notifiers};

const HOUR: Duration = Duration::from_secs(3600);

fn long(mark: &str) -> String {
    format!(
        "name: {mark}\nmodel: m-{mark}\nsteps:\n  - {{ id: train, run: 'touch {mark}; exec sleep 1000' }}\n"
    )
}

/// A process that renews its leases too seldom to hear anything by that.
async fn seldom(world: &World) -> Arc<Engine> {
    let settings = Settings { lease: 2 * HOUR, renew: HOUR, ..Settings::default() };
    world.unregistered(&Crash::never(), Arc::new(SystemClock), settings).await
}

/// Ends the sessions on Postgres that hear of others.
async fn cut_listeners(world: &World) {
    if let Ok(mut connection) = PgConnection::connect(&world.database).await {
        let cut = sqlx::query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE datname = current_database() AND query LIKE 'LISTEN%'",
        );
        assert!(cut.execute(&mut connection).await.expect("cut").rows_affected() > 0);
    }
}

async fn cancelled(engine: &Arc<Engine>, run: RunId) {
    let ended = async {
        loop {
            let run = engine.store.run(run).await.expect("readable").expect("a run");
            if run.status == RunStatus::Finished {
                return run.outcome;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let outcome = tokio::time::timeout(Duration::from_secs(60), ended).await.expect("it hears");
    assert_eq!(outcome, Some(Outcome::Cancelled));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_in_hand_hears_of_a_cancel_at_once() {
    on_both(async |world: World| {
        let (engine, elsewhere) = (seldom(&world).await, seldom(&world).await);
        let worker = Worker::start(engine.clone(), Arc::new(no_notifiers())).await.expect("starts");
        for (mark, asks) in [("here", &engine), ("elsewhere", &elsewhere), ("deaf", &elsewhere)] {
            let run = world.trigger(&engine, &long(mark)).await;
            exists(&world, mark).await;
            if mark == "deaf" {
                cut_listeners(&world).await;
            }
            let request = CancelRequest { actor: "ann".to_owned(), reason: None, at: SystemClock.now() };
            assert!(asks.store.request_cancel(run, &request).await.expect("asked"));
            if !asks.store.is_shared() && mark != "here" {
                // As a command does.
                engine.store.poke();
            }
            cancelled(&engine, run).await;
        }
        worker.shut_down(Deadline::within(Duration::from_secs(20))).await.expect("in good order");
    })
    .await;
}
