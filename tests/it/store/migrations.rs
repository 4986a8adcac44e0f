//! What a migration makes of rows that were there before it.

use std::borrow::Cow;
use std::sync::Arc;

use refit::clock::SystemClock;
use refit::domain::id::RunId;
use refit::store;
use sqlx::migrate::Migrator;
use sqlx::types::Uuid;
use sqlx::{AssertSqlSafe, Connection, PgConnection, SqliteConnection};

use super::database::{Database, empty_postgres};

static SQLITE: Migrator = sqlx::migrate!("migrations/sqlite");
static POSTGRES: Migrator = sqlx::migrate!("migrations/postgres");

/// The migrations before `version`, as refit runs them.
fn before(version: i64, all: &Migrator, table: &'static str) -> Migrator {
    let migrations: Vec<_> = all.iter().filter(|one| one.version < version).cloned().collect();
    let mut migrator = Migrator { migrations: Cow::Owned(migrations), ..Migrator::DEFAULT };
    migrator.dangerous_set_table_name(table);
    migrator
}

/// Pairs as they were before each was kept once: of the version that served and another.
fn pairs(table: &str) -> String {
    let rows = [
        ("times", 1, "r1", ("v2", 1), ("v1", 2)),
        ("times", 2, "r1", ("v1", 5), ("v2", 6)),
        ("times", 3, "r2", ("v1", 3), ("v2", 4)),
        ("times", 4, "r2", ("v1", 7), ("v2", 8)),
        ("times", 5, "r1", ("v1", 2), ("v1", 2)),
        ("times", 6, "r3", ("v2", 9), ("v1", 0)),
        ("other", 2, "r1", ("v2", 1), ("v1", 2)),
    ];
    let values = rows.map(|(model, seq, request, (served, a), (shadow, b))| {
        format!(
            "('{model}', {seq}, '{request}', '{served}', {a}, '{shadow}', {b}, '2026-11-20T02:00:00+00:00')"
        )
    });
    format!(
        "INSERT INTO {table} (model, seq, request_id, served, served_error, shadow, shadow_error, at) VALUES {}",
        values.join(", ")
    )
}

async fn each_is_kept_once(url: &str) {
    let store = store::open(url, Arc::new(SystemClock)).await.expect("opens");
    let read = async |model: &str, canary: &str| {
        let name = |name: &str| name.parse().expect("a name");
        let found =
            store.paired_errors(&model.parse().expect("a name"), &name(canary), &name("v1"), 0, 100).await;
        let found = found.expect("read").into_iter();
        found.map(|pair| (pair.seq, pair.request_id, pair.canary, pair.stable)).collect::<Vec<_>>()
    };
    let first = |seq, request: &str, canary, stable| (seq, request.to_owned(), canary, stable);
    assert_eq!(
        read("times", "v2").await,
        [first(1, "r1", 1.0, 2.0), first(3, "r2", 4.0, 3.0), first(6, "r3", 9.0, 0.0)]
    );
    assert_eq!(read("times", "v1").await, [first(5, "r1", 2.0, 2.0)]);
    assert_eq!(read("other", "v2").await, [first(2, "r1", 1.0, 2.0)]);
    store.close().await;
}

#[tokio::test]
async fn a_migration_keeps_the_first_of_pairs_that_are_there_twice_on_sqlite() {
    let db = Database::sqlite();
    let mut connection =
        SqliteConnection::connect(&format!("sqlite:{}?mode=rwc", db.url)).await.expect("opens");
    let migrator = before(7, &SQLITE, "_refit_migrations");
    migrator.run_direct(None, &mut connection, false).await.expect("migrated");
    sqlx::raw_sql(AssertSqlSafe(pairs("paired_errors"))).execute(&mut connection).await.expect("written");
    connection.close().await.expect("closes");
    store::migrate(&db.url, false).await.expect("migrated");
    each_is_kept_once(&db.url).await;
}

#[tokio::test]
async fn a_migration_keeps_the_first_of_pairs_that_are_there_twice_on_postgres() {
    let url = empty_postgres().await;
    let mut connection = PgConnection::connect(&url).await.expect("connects");
    let mut migrator = before(7, &POSTGRES, "refit.schema_migrations");
    migrator.create_schema("refit");
    migrator.run_direct(None, &mut connection, false).await.expect("migrated");
    sqlx::raw_sql(AssertSqlSafe(pairs("refit.paired_errors")))
        .execute(&mut connection)
        .await
        .expect("written");
    connection.close().await.expect("closes");
    store::migrate(&url, false).await.expect("migrated");
    each_is_kept_once(&url).await;
}

/// Attempts as they were before each had a place: of a run whose steps began in another order than that of their names, and
/// of another one in between.
fn attempts(table: &str, runs: [&str; 2]) -> String {
    let [one, other] = runs;
    let rows = [(one, "z"), (other, "m"), (one, "b"), (one, "a")];
    let values = rows.map(|(run, step)| {
        format!(
            "({run}, '{step}', 1, 'started', 1, '2026-11-20T02:00:00+00:00', '2026-11-20T02:00:00+00:00')"
        )
    });
    format!(
        "INSERT INTO {table} (run, step, attempt, state, epoch, started_at, changed_at) VALUES {}",
        values.join(", ")
    )
}

async fn they_are_in_their_order(url: &str) {
    let store = store::open(url, Arc::new(SystemClock)).await.expect("opens");
    for (run, steps) in [(1, vec!["z", "b", "a"]), (2, vec!["m"])] {
        let found = store.attempts(RunId(Uuid::from_u128(run))).await.expect("read");
        assert_eq!(found.iter().map(|attempt| attempt.step.as_str()).collect::<Vec<_>>(), steps);
    }
    store.close().await;
}

#[tokio::test]
async fn attempts_from_before_they_had_a_place_keep_their_order_on_sqlite() {
    let db = Database::sqlite();
    let mut connection =
        SqliteConnection::connect(&format!("sqlite:{}?mode=rwc", db.url)).await.expect("opens");
    let migrator = before(17, &SQLITE, "_refit_migrations");
    migrator.run_direct(None, &mut connection, false).await.expect("migrated");
    let runs = ["x'00000000000000000000000000000001'", "x'00000000000000000000000000000002'"];
    let statement = format!("PRAGMA foreign_keys = OFF; {}", attempts("attempts", runs));
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await.expect("written");
    connection.close().await.expect("closes");
    store::migrate(&db.url, false).await.expect("migrated");
    they_are_in_their_order(&db.url).await;
}

#[tokio::test]
async fn attempts_from_before_they_had_a_place_keep_their_order_on_postgres() {
    let url = empty_postgres().await;
    let mut connection = PgConnection::connect(&url).await.expect("connects");
    let mut migrator = before(17, &POSTGRES, "refit.schema_migrations");
    migrator.create_schema("refit");
    migrator.run_direct(None, &mut connection, false).await.expect("migrated");
    let runs = ["'00000000-0000-0000-0000-000000000001'", "'00000000-0000-0000-0000-000000000002'"];
    sqlx::raw_sql(AssertSqlSafe(attempts("refit.attempts", runs)))
        .execute(&mut connection)
        .await
        .expect("written");
    connection.close().await.expect("closes");
    store::migrate(&url, false).await.expect("migrated");
    they_are_in_their_order(&url).await;
}
