//! Wake-ups reach whoever advances runs.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use refit::domain::id::RunId;
use refit::store::OnWake;
use sqlx::{Connection, PgConnection};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::database::Database;
use super::make;
use super::on_both;

on_both! {
    a_submitted_run_is_delivered
    a_run_submitted_elsewhere_is_delivered
    a_run_woken_while_it_is_advanced_is_advanced_again
    a_panic_does_not_stop_deliveries
}

const PATIENCE: Duration = Duration::from_secs(20);

/// Tells which run is to be advanced.
pub struct Tell(pub mpsc::UnboundedSender<RunId>);

#[async_trait]
impl OnWake for Tell {
    async fn advance(&self, run: RunId) {
        let _ = self.0.send(run);
    }

    fn told(&self, _run: Option<RunId>) {}
}

async fn a_submitted_run_is_delivered(db: Database) {
    let store = db.open().await;
    let (tell, mut told) = mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    let delivering = {
        let (store, stop) = (store.clone(), stop.clone());
        tokio::spawn(async move { store.deliver_wakeups(Arc::new(Tell(tell)), 4, stop).await })
    };
    for _ in 0..20 {
        let run = make::run(&store, db.now()).await;
        assert_eq!(timeout(PATIENCE, told.recv()).await.expect("in time"), Some(run));
    }
    stop.cancel();
    timeout(PATIENCE, delivering).await.expect("stops").expect("well");
    store.close().await;
}

async fn a_run_submitted_elsewhere_is_delivered(db: Database) {
    let (here, there) = (db.open().await, db.open().await);
    let (tell, mut told) = mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    let delivering = {
        let (here, stop) = (here.clone(), stop.clone());
        tokio::spawn(async move { here.deliver_wakeups(Arc::new(Tell(tell)), 4, stop).await })
    };
    for _ in 0..5 {
        let run = make::run(&there, db.now()).await;
        here.poke();
        assert_eq!(timeout(PATIENCE, told.recv()).await.expect("in time"), Some(run));
    }
    stop.cancel();
    timeout(PATIENCE, delivering).await.expect("stops").expect("well");
}

struct Slow {
    told: mpsc::UnboundedSender<RunId>,
    go_on: tokio::sync::Semaphore,
}

#[async_trait]
impl OnWake for Slow {
    async fn advance(&self, run: RunId) {
        let _ = self.told.send(run);
        self.go_on.acquire().await.expect("open").forget();
    }

    fn told(&self, _run: Option<RunId>) {}
}

async fn a_run_woken_while_it_is_advanced_is_advanced_again(db: Database) {
    let store = db.open().await;
    let (told_in, mut told) = mpsc::unbounded_channel();
    let slow = Arc::new(Slow { told: told_in, go_on: tokio::sync::Semaphore::new(0) });
    let stop = CancellationToken::new();
    let delivering = {
        let (store, stop, slow) = (store.clone(), stop.clone(), slow.clone());
        tokio::spawn(async move { store.deliver_wakeups(slow, 4, stop).await })
    };
    let run = make::run(&store, db.now()).await;
    assert_eq!(timeout(PATIENCE, told.recv()).await.expect("in time"), Some(run));
    let look = refit::domain::run::SignalKind::Look;
    store.signal(run, &look, "x", None, db.now()).await.expect("sent");
    // Another run's wake-up comes after the signal's.
    let other = make::run(&store, db.now()).await;
    assert_eq!(timeout(PATIENCE, told.recv()).await.expect("in time"), Some(other), "never twice at once");
    slow.go_on.add_permits(3);
    assert_eq!(timeout(PATIENCE, told.recv()).await.expect("in time"), Some(run));
    stop.cancel();
    timeout(PATIENCE, delivering).await.expect("stops").expect("well");
}

struct Panics(mpsc::UnboundedSender<RunId>);

#[async_trait]
impl OnWake for Panics {
    async fn advance(&self, run: RunId) {
        let _ = self.0.send(run);
        panic!("an activation that breaks");
    }

    fn told(&self, _run: Option<RunId>) {}
}

async fn a_panic_does_not_stop_deliveries(db: Database) {
    let store = db.open().await;
    let (tell, mut told) = mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    let delivering = {
        let (store, stop) = (store.clone(), stop.clone());
        tokio::spawn(async move { store.deliver_wakeups(Arc::new(Panics(tell)), 1, stop).await })
    };
    for _ in 0..3 {
        let run = make::run(&store, db.now()).await;
        assert_eq!(timeout(PATIENCE, told.recv()).await.expect("in time"), Some(run));
    }
    stop.cancel();
    timeout(PATIENCE, delivering).await.expect("stops").expect("well");
}

#[tokio::test]
async fn what_is_acknowledged_waits_for_the_disk_and_a_hint_does_not() {
    let db = Database::postgres().await;
    // What a database says that trades the last commits for speed, and a note of how each kind of write is committed.
    for statement in [
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET synchronous_commit = off', current_database()); END $$",
        "CREATE TABLE refit.noted (write text, waits text)",
        "CREATE FUNCTION refit.note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             INSERT INTO refit.noted VALUES (TG_OP || ' ' || TG_TABLE_NAME, current_setting('synchronous_commit'));
             RETURN NULL;
         END $$",
        "CREATE TRIGGER note AFTER INSERT OR UPDATE ON refit.runs FOR EACH ROW EXECUTE FUNCTION refit.note()",
        "CREATE TRIGGER note AFTER INSERT OR UPDATE ON apalis.jobs FOR EACH ROW EXECUTE FUNCTION refit.note()",
    ] {
        db.write(statement).await;
    }
    let store = db.open().await;
    let (tell, mut told) = mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    let delivering = {
        let (store, stop) = (store.clone(), stop.clone());
        tokio::spawn(async move { store.deliver_wakeups(Arc::new(Tell(tell)), 4, stop).await })
    };
    let run = make::run(&store, db.now()).await;
    assert_eq!(timeout(PATIENCE, told.recv()).await.expect("in time"), Some(run));
    let worker = make::worker(&store, db.now()).await;
    make::claim(&store, run, worker, db.now()).await;
    stop.cancel();
    timeout(PATIENCE, delivering).await.expect("stops").expect("well");
    store.close().await;
    let mut connection = PgConnection::connect(&db.url).await.expect("connects");
    let noted: Vec<(String, String)> =
        sqlx::query_as("SELECT DISTINCT write, waits FROM refit.noted ORDER BY 1, 2")
            .fetch_all(&mut connection)
            .await
            .expect("read");
    let noted: Vec<_> = noted.iter().map(|(write, waits)| (write.as_str(), waits.as_str())).collect();
    assert_eq!(
        noted,
        [("INSERT jobs", "on"), ("INSERT runs", "on"), ("UPDATE jobs", "off"), ("UPDATE runs", "on")]
    );
}
