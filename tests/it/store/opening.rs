//! A database that cannot be used says why, and what to do.

use std::path::Path;
use std::sync::Arc;

use refit::clock::SystemClock;
use refit::store::{self, StoreError};
use sqlx::{AssertSqlSafe, Connection, PgConnection, SqliteConnection};

use super::database::{empty_postgres, postgres_url};

async fn why_not(url: &str) -> (String, String) {
    match store::open(url, Arc::new(SystemClock)).await {
        Ok(_) => panic!("{url} opens"),
        Err(StoreError::Unusable { problem, hint }) => (problem, hint),
        Err(other) => panic!("no hint: {other:?}"),
    }
}

async fn on_sqlite(path: &Path, sql: &'static str) {
    let url = format!("sqlite:{}?mode=rwc", path.display());
    let mut connection = SqliteConnection::connect(&url).await.expect("opens");
    sqlx::raw_sql(sql).execute(&mut connection).await.expect("runs");
    connection.close().await.expect("closes");
}

async fn on_postgres(url: &str, sql: &str) {
    let mut connection = PgConnection::connect(url).await.expect("connects");
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.expect("runs");
}

#[tokio::test]
async fn sqlite_of_another_program_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("app.db");
    on_sqlite(&path, "CREATE TABLE users (id INTEGER)").await;
    let (problem, hint) = why_not(&path.display().to_string()).await;
    assert!(problem.contains("another program (table `users`)"), "{problem}");
    assert!(hint.contains("--db"), "{hint}");
}

#[tokio::test]
async fn a_file_that_is_not_a_database_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("notes.txt");
    std::fs::write(&path, "dear diary, ".repeat(100)).expect("written");
    let (problem, _) = why_not(&path.display().to_string()).await;
    assert!(problem.contains("not a SQLite database"), "{problem}");
    let (problem, _) = why_not(&dir.path().display().to_string()).await;
    assert!(problem.contains("is a directory"), "{problem}");
    let (problem, hint) = why_not("/dev/null").await;
    assert!(problem.contains("no plain file") && hint.contains("--db"), "{problem} {hint}");
}

#[tokio::test]
async fn sqlite_with_a_newer_schema_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("refit.db");
    let store = store::open(&path.display().to_string(), Arc::new(SystemClock)).await.expect("opens");
    let instance = store.instance();
    store.close().await;
    let again =
        store::open(&format!("sqlite:{}", path.display()), Arc::new(SystemClock)).await.expect("opens");
    assert_eq!(again.instance(), instance);
    again.close().await;
    on_sqlite(
        &path,
        "INSERT INTO _refit_migrations (version, description, success, checksum, execution_time)
         VALUES (9999, 'later', TRUE, x'00', 0)",
    )
    .await;
    let (problem, _) = why_not(&path.display().to_string()).await;
    assert!(problem.contains("newer than this refit"), "{problem}");
}

#[tokio::test]
async fn a_url_that_makes_no_sense_is_refused_and_never_shown() {
    let (problem, hint) = why_not("mysql://root:hunter22@db/app").await;
    assert!(
        problem.contains("mysql") && !problem.contains("hunter22") && !hint.contains("hunter22"),
        "{problem}"
    );
    let (problem, hint) = why_not("postgres://root:hunter22@[db/app").await;
    assert!(!problem.contains("hunter22") && hint.contains("%XX"), "{problem} {hint}");
}

#[tokio::test]
async fn postgres_that_is_not_there_is_named_without_its_password() {
    let opened = store::open("postgres://root:hunter22@127.0.0.1:1/app", Arc::new(SystemClock)).await;
    let Err(StoreError::Away(problem)) = opened.map(|_| ()) else { panic!("it is not away") };
    assert!(problem.contains("127.0.0.1:1/app") && !problem.contains("hunter22"), "{problem}");
}

#[tokio::test]
async fn postgres_is_never_migrated_by_opening_it() {
    let url = empty_postgres().await;
    let (problem, hint) = why_not(&url).await;
    assert!(problem.contains("no refit schema") && hint.contains("refit migrate"), "{problem} {hint}");
    store::migrate(&url, false).await.expect("migrated");
    store::migrate(&url, false).await.expect("again");
    let store = store::open(&url, Arc::new(SystemClock)).await.expect("opens");
    assert!(!store.label().contains('@'), "{}", store.label());
    store.ping().await.expect("answers");
    on_postgres(
        &url,
        "INSERT INTO refit.schema_migrations (version, description, success, checksum, execution_time)
         VALUES (9999, 'later', TRUE, '', 0)",
    )
    .await;
    assert!(why_not(&url).await.0.contains("newer than this refit"));
}

#[tokio::test]
async fn postgres_with_others_tables_is_refused_unless_shared() {
    let url = empty_postgres().await;
    on_postgres(&url, "CREATE TABLE users (id int)").await;
    let refused = store::migrate(&url, false).await;
    let Err(StoreError::Unusable { problem, hint }) = refused else { panic!("{refused:?}") };
    assert!(problem.contains("public.users") && hint.contains("--shared"), "{problem} {hint}");
    store::migrate(&url, true).await.expect("let in");
    store::open(&url, Arc::new(SystemClock)).await.expect("opens");
}

#[tokio::test]
async fn a_role_needs_rights_to_data_and_no_more() {
    let url = empty_postgres().await;
    store::migrate(&url, false).await.expect("migrated");
    let admin = std::env::var("REFIT_TEST_POSTGRES_ADMIN_URL").expect("`tests/run` sets it");
    let role = format!("runtime_{}", uuid::Uuid::now_v7().simple());
    on_postgres(&admin, &format!("CREATE ROLE {role} LOGIN PASSWORD 'pw'")).await;
    let mut limited = url::Url::parse(&url).expect("a URL");
    limited.set_username(&role).expect("a user");
    limited.set_password(Some("pw")).expect("a password");
    let (problem, hint) = why_not(limited.as_str()).await;
    assert!(
        problem.contains("may not") && hint.contains("SELECT, INSERT, UPDATE and DELETE"),
        "{problem} {hint}"
    );
    on_postgres(
        &url,
        &format!(
            "GRANT USAGE ON SCHEMA refit, apalis TO {role};
             GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA refit, apalis TO {role}"
        ),
    )
    .await;
    let store = store::open(limited.as_str(), Arc::new(SystemClock)).await.expect("opens");
    let now = "2026-11-20T02:00:00Z".parse().expect("a time");
    let worker = super::make::worker(&store, now).await;
    let run = super::make::run(&store, now).await;
    let held = super::make::claim(&store, run, worker, now).await;
    store.checkpoint(super::make::finish(&held, "a", now)).await.expect("written");
    assert!(postgres_url().starts_with("postgres"));
}
