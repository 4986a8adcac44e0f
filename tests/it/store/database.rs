//! A database of its own for each test.

use std::sync::Arc;

use refit::clock::{Clock, ManualClock};
use refit::domain::Timestamp;
use refit::store::{self, Store};
use sha2::{Digest, Sha256};
use sqlx::{Connection, PgConnection, SqliteConnection};
use tempfile::TempDir;

/// An empty database, and the time that its stores go by.
pub struct Database {
    pub url: String,
    pub clock: Arc<ManualClock>,
    /// Deleted with the test.
    _dir: Option<TempDir>,
}

impl Database {
    pub fn sqlite() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let url = dir.path().join("refit.db").display().to_string();
        Self { url, clock: clock(), _dir: Some(dir) }
    }

    pub async fn postgres() -> Self {
        Self { url: migrated_postgres().await, clock: clock(), _dir: None }
    }

    /// Another store on the same database, as another process would open it.
    pub async fn open(&self) -> Arc<dyn Store> {
        self.open_with(self.clock.clone()).await
    }

    pub async fn open_with(&self, clock: Arc<dyn Clock>) -> Arc<dyn Store> {
        store::open(&self.url, clock).await.expect("opens")
    }

    /// Writes what this refit would not, such as what an older one did.
    pub async fn write(&self, statement: &str) {
        let statement = sqlx::AssertSqlSafe(statement.to_owned());
        let written = if self.url.starts_with("postgres") {
            let mut connection = PgConnection::connect(&self.url).await.expect("connects");
            sqlx::query("SET search_path = refit").execute(&mut connection).await.expect("set");
            sqlx::query(statement).execute(&mut connection).await.map(drop)
        } else {
            let mut connection =
                SqliteConnection::connect(&format!("sqlite:{}", self.url)).await.expect("opens");
            sqlx::query(statement).execute(&mut connection).await.map(drop)
        };
        written.expect("written");
    }

    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub fn pass(&self, seconds: i64) -> Timestamp {
        self.clock.advance(chrono::TimeDelta::seconds(seconds));
        self.clock.now()
    }
}

fn clock() -> Arc<ManualClock> {
    let start = "2026-11-20T02:00:00Z".parse().expect("a time");
    Arc::new(ManualClock::starting_at(start))
}

/// The URL of the test server, as an ordinary role that may create databases.
pub fn postgres_url() -> String {
    std::env::var("REFIT_TEST_POSTGRES_URL").unwrap_or_else(|_| {
        panic!("REFIT_TEST_POSTGRES_URL is not set: run the tests with `tests/run`, which starts a Postgres")
    })
}

/// The URL of a new database without anything in it.
pub async fn empty_postgres() -> String {
    let server = postgres_url();
    let name = format!("refit_{}", uuid::Uuid::now_v7().simple());
    let mut connection = PgConnection::connect(&server).await.expect("the test server answers");
    sqlx::query(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}")))
        .execute(&mut connection)
        .await
        .expect("a database");
    let mut url = url::Url::parse(&server).expect("a URL");
    url.set_path(&name);
    url.to_string()
}

/// The URL of a new database with refit's tables: a copy of one that the first test of all makes.
pub async fn migrated_postgres() -> String {
    let server = postgres_url();
    let name = initial_name();
    let mut initial = url::Url::parse(&server).expect("a URL");
    initial.set_path(&name);
    let mut connection = PgConnection::connect(&server).await.expect("the test server answers");
    // One test at a time: the others wait, and find what it made.
    sqlx::query("SELECT pg_advisory_lock(7338)").execute(&mut connection).await.expect("locked");
    let there: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
        .bind(&name)
        .fetch_one(&mut connection)
        .await
        .expect("readable");
    if !there {
        let made = empty_postgres().await;
        store::migrate(&made, false).await.expect("migrated");
        // Under its name only when it is whole.
        let made = url::Url::parse(&made).expect("a URL").path().trim_start_matches('/').to_owned();
        let rename = format!("ALTER DATABASE {made} RENAME TO {name}");
        retried_while_in_use(&mut connection, &rename).await;
    }
    connection.close().await.expect("unlocked");
    let url = copy_postgres(initial.as_str()).await;
    // Another database is another instance of refit.
    let mut copy = PgConnection::connect(&url).await.expect("connects");
    sqlx::query("UPDATE refit.instance SET id = $1")
        .bind(uuid::Uuid::now_v7())
        .execute(&mut copy)
        .await
        .expect("renamed");
    copy.close().await.expect("closed");
    url
}

/// What the migrated database is called: another name for other migrations, on a server that outlives the tests.
fn initial_name() -> String {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let migrations = std::fs::read_dir(root.join("migrations/postgres")).expect("a directory");
    let mut files: Vec<_> = migrations.map(|file| file.expect("readable").path()).collect();
    // The queue's tables come with its crate.
    files.push(root.join("Cargo.lock"));
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        hash.update(std::fs::read(file).expect("readable"));
    }
    format!("refit_initial_{}", hex::encode(&hash.finalize()[..8]))
}

/// Runs a statement about a database that a process may just have left: the server ends its session in its own time.
async fn retried_while_in_use(connection: &mut PgConnection, statement: &str) {
    for _ in 0..500 {
        match sqlx::query(sqlx::AssertSqlSafe(statement.to_owned())).execute(&mut *connection).await {
            Ok(_) => return,
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("55006") => {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            Err(error) => panic!("{statement}: {error}"),
        }
    }
    panic!("{statement}: it stays in use");
}

/// The URL of a copy of the database at `url`, which nobody uses.
pub async fn copy_postgres(url: &str) -> String {
    let mut copy = url::Url::parse(url).expect("a URL");
    let from = copy.path().trim_start_matches('/').to_owned();
    let name = format!("refit_{}", uuid::Uuid::now_v7().simple());
    let mut connection = PgConnection::connect(&postgres_url()).await.expect("the test server answers");
    retried_while_in_use(&mut connection, &format!("CREATE DATABASE {name} TEMPLATE {from}")).await;
    copy.set_path(&name);
    copy.to_string()
}

/// Deletes the database at `url`. The superuser does: the server's own vacuum may be at work in it.
pub async fn drop_postgres(url: &str) {
    let name = url::Url::parse(url).expect("a URL").path().trim_start_matches('/').to_owned();
    let admin = std::env::var("REFIT_TEST_POSTGRES_ADMIN_URL").expect("`tests/run` sets it");
    let mut connection = PgConnection::connect(&admin).await.expect("the test server answers");
    sqlx::query(sqlx::AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)")))
        .execute(&mut connection)
        .await
        .expect("dropped");
}
