//! A copy of the database takes over that had not heard of the last commits.

use std::sync::Arc;

use refit::domain::run::Attempt;
use refit::store::{Checkpoint, Store, StoreError};
use serde_json::json;

use super::database::Database;
use super::make::{self, after, claim, next_step, worker};

/// The session that wrote it is gone.
#[tokio::test]
async fn a_checkpoint_after_one_that_was_lost_is_fenced() {
    let db = Database::postgres().await;
    let store = db.open().await;
    let next = two_of_which_the_second_is_lost(&db, &store).await;
    db.write(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
         WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    .await;
    is_fenced(&store, next).await;
}

/// The session goes on, as a pooler makes it do.
#[tokio::test]
async fn a_checkpoint_after_one_that_was_lost_behind_a_pooler_is_fenced() {
    let db = Database::postgres().await;
    // A clock of the server's that can be set.
    for statement in [
        "CREATE SCHEMA another",
        "CREATE TABLE another.server AS SELECT pg_catalog.pg_postmaster_start_time() AS since",
        "CREATE FUNCTION another.pg_postmaster_start_time() RETURNS timestamptz STABLE LANGUAGE sql
             AS 'SELECT since FROM another.server'",
        "DO $$ BEGIN
             EXECUTE format('ALTER DATABASE %I SET search_path = another, pg_catalog, public', current_database());
         END $$",
    ] {
        db.write(statement).await;
    }
    let store = db.open().await;
    let next = two_of_which_the_second_is_lost(&db, &store).await;
    db.write("UPDATE another.server SET since = since + interval '1 hour'").await;
    is_fenced(&store, next).await;
}

/// The checkpoint that comes then.
async fn two_of_which_the_second_is_lost(db: &Database, store: &Arc<dyn Store>) -> Checkpoint {
    let (worker, run) = (worker(store, db.now()).await, make::run(store, db.now()).await);
    let held = claim(store, run, worker, db.now()).await;
    store.checkpoint(next_step(&held, "a", "b", json!(1), db.now())).await.expect("written");
    store.checkpoint(after("a", next_step(&held, "b", "c", json!(2), db.now()))).await.expect("written");
    db.write("DELETE FROM refit.attempts WHERE step = 'b'").await;
    after("b", next_step(&held, "c", "d", json!(3), db.now()))
}

async fn is_fenced(store: &Arc<dyn Store>, next: Checkpoint) {
    let run = next.run;
    let mut written = store.checkpoint(next.clone()).await;
    while matches!(written, Err(StoreError::Away(_))) {
        written = store.checkpoint(next.clone()).await;
    }
    assert!(matches!(written, Err(StoreError::Fenced)), "{written:?}");
    let attempts: Vec<Attempt> = store.attempts(run).await.expect("read");
    let steps: Vec<_> = attempts.iter().map(|attempt| attempt.step.as_str()).collect();
    assert_eq!(steps, ["a", "b"], "`b` began, and whoever takes the run goes on from there");
}
