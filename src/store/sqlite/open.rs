//! Opening, making and migrating a SQLite database.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sqlx::migrate::Migrator;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::types::Uuid;
use sqlx::{Connection as _, SqliteConnection, SqlitePool};

use super::Session;
use super::group::PREPARE;
use super::sql::{Parts, SqlStore};
use crate::clock::Clock;
use crate::domain::id::InstanceId;
use crate::store::liveness::Liveness;
use crate::store::{Store, StoreError, migrate_error};

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");
static LOG_MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite-logs");

/// Another process may hold the write lock for as long as its largest transaction takes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
const READERS: u32 = 4;

/// Opens the database at `path`, which is made, with its directory, when missing, and migrated.
/// Step logs are in `logs.db` beside it, lock files of workers in `workers`.
pub async fn open(path: &Path, clock: Arc<dyn Clock>) -> Result<Arc<dyn Store>, StoreError> {
    let (writer, logs) = connect_and_migrate(path).await?;
    let reader = SqlitePoolOptions::new()
        .max_connections(READERS)
        .min_connections(0)
        .test_before_acquire(false)
        .connect_with(options(path))
        .await?;
    let instance = Uuid::now_v7();
    sqlx::query("INSERT INTO instance (singleton, id) VALUES (1, $1) ON CONFLICT DO NOTHING")
        .bind(instance)
        .execute(&writer)
        .await
        .map_err(|error| naming(path, error.into()))?;
    let instance = sqlx::query_scalar::<_, Uuid>("SELECT id FROM instance").fetch_one(&writer).await?;
    let directory = directory_of(path).join("workers");
    let liveness = Liveness::in_dir(&directory).map_err(|error| StoreError::Unusable {
        problem: format!("`{}` cannot be made: {error}", directory.display()),
        hint: "make the directory of the database writable for this user".to_owned(),
    })?;
    let store = SqlStore::start(Parts {
        writer,
        reader,
        logs,
        instance: InstanceId(instance),
        label: format!("sqlite {}", path.display()),
        clock,
        liveness: Some(liveness),
        session: Session,
    });
    Ok(store)
}

/// Makes and migrates the database at `path`.
pub async fn migrate(path: &Path) -> Result<(), StoreError> {
    let (writer, logs) = connect_and_migrate(path).await?;
    writer.close().await;
    logs.close().await;
    Ok(())
}

async fn connect_and_migrate(path: &Path) -> Result<(SqlitePool, SqlitePool), StoreError> {
    prepare_directory(path)?;
    let migrating = one_connection(path, None).await?;
    refuse_foreign(&migrating, path).await?;
    let ours = run_migrations(&MIGRATIONS, "_refit_migrations", &migrating).await;
    ours.map_err(|error| naming(path, error))?;
    let queue = apalis_sqlite::SqliteStorage::<()>::migrations();
    let queue = run_migrations(&queue, "_apalis_migrations", &migrating).await;
    queue.map_err(|error| naming(path, error))?;
    // What it needs names columns that were made just now. The other one is closed after: the last to close a file empties
    // its WAL, which takes longer than all of this.
    let writer = one_connection(path, Some(PREPARE)).await?;
    migrating.close().await;
    let logs_path = directory_of(path).join("logs.db");
    let logs = one_connection(&logs_path, None).await?;
    let of_logs = run_migrations(&LOG_MIGRATIONS, "_refit_migrations", &logs).await;
    of_logs.map_err(|error| naming(&logs_path, error))?;
    Ok((writer, logs))
}

async fn run_migrations(
    migrator: &Migrator,
    table: &'static str,
    pool: &SqlitePool,
) -> Result<(), StoreError> {
    let mut migrator = Migrator { migrations: migrator.migrations.clone(), ..Migrator::DEFAULT };
    migrator.dangerous_set_table_name(Cow::Borrowed(table));
    migrator.run(pool).await.map_err(migrate_error)
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        .statement_cache_capacity(200)
}

/// `prepare`: what the connection needs before its first use.
async fn one_connection(path: &Path, prepare: Option<&'static str>) -> Result<SqlitePool, StoreError> {
    let pool = SqlitePoolOptions::new()
        .max_connections(1)
        .min_connections(1)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
        .after_connect(move |connection, _| {
            Box::pin(async move {
                if let Some(prepare) = prepare {
                    sqlx::raw_sql(prepare).execute(connection).await?;
                }
                Ok(())
            })
        })
        .after_release(|connection, _| Box::pin(is_usable(connection)))
        .connect_with(options(path).pragma("temp_store", "memory"))
        .await;
    pool.map_err(|error| naming(path, error.into()))
}

/// Whether a connection that is given back is in no transaction. A full disk ends a transaction by itself; the rollback
/// that follows is refused then, and the connection counts itself in a transaction for good: nothing could begin on it.
async fn is_usable(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    if connection.is_in_transaction() {
        // Its rollback may be on its way.
        connection.ping().await?;
    }
    Ok(!connection.is_in_transaction())
}

/// The same error with the file it is about.
fn naming(path: &Path, error: StoreError) -> StoreError {
    match error {
        StoreError::Unusable { problem, hint } => {
            StoreError::Unusable { problem: format!("`{}`: {problem}", path.display()), hint }
        }
        other => other,
    }
}

fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        Some(_) | None => PathBuf::from("."),
    }
}

fn prepare_directory(path: &Path) -> Result<(), StoreError> {
    let directory = directory_of(path);
    std::fs::create_dir_all(&directory).map_err(|error| StoreError::Unusable {
        problem: format!("the directory `{}` cannot be made: {error}", directory.display()),
        hint: "name a directory that can be written with `--db`".to_owned(),
    })?;
    if path.is_dir() {
        return Err(StoreError::Unusable {
            problem: format!("`{}` is a directory", path.display()),
            hint: format!("name a file with `--db`, such as `{}`", path.join("refit.db").display()),
        });
    }
    if path.exists() && !path.is_file() {
        return Err(StoreError::Unusable {
            problem: format!("`{}` is no plain file", path.display()),
            hint: "name a file with `--db`; one that is not there yet is made".to_owned(),
        });
    }
    refuse_network(&directory)
}

/// Locks of network file systems cannot be trusted, and SQLite's WAL needs memory shared by all its users.
#[cfg(target_os = "linux")]
fn refuse_network(directory: &Path) -> Result<(), StoreError> {
    // statfs(2)
    const NETWORK: [(u64, &str); 7] = [
        (0x6969, "NFS"),
        (0x517b, "SMB"),
        (0xff53_4d42, "CIFS"),
        (0xfe53_4d42, "SMB2"),
        (0x6573_5546, "FUSE"),
        (0x00c3_6400, "Ceph"),
        (0x0102_1997, "9P"),
    ];
    // A file system that does not say is taken for a local one.
    let Ok(found) = rustix::fs::statfs(directory) else { return Ok(()) };
    let magic = u64::try_from(found.f_type).unwrap_or_default() & 0xffff_ffff;
    match NETWORK.iter().find(|(known, _)| *known == magic) {
        Some((_, name)) => Err(on_network(directory, name)),
        None => Ok(()),
    }
}

#[cfg(target_os = "macos")]
fn refuse_network(directory: &Path) -> Result<(), StoreError> {
    let Ok(found) = rustix::fs::statfs(directory) else { return Ok(()) };
    let name: String =
        found.f_fstypename.iter().take_while(|c| **c != 0).map(|c| char::from(c.cast_unsigned())).collect();
    match name.as_str() {
        "nfs" | "smbfs" | "afpfs" | "webdav" | "macfuse" | "osxfuse" => Err(on_network(directory, &name)),
        _ => Ok(()),
    }
}

fn on_network(directory: &Path, kind: &str) -> StoreError {
    StoreError::Unusable {
        problem: format!("`{}` is on a network file system ({kind})", directory.display()),
        hint: "SQLite needs a local disk: name one with `--db`, or use Postgres".to_owned(),
    }
}

/// A database with tables that are not ours is somebody else's.
async fn refuse_foreign(pool: &SqlitePool, path: &Path) -> Result<(), StoreError> {
    let tables = sqlx::query_scalar::<_, String>(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'",
    )
    .fetch_all(pool)
    .await?;
    if tables.is_empty() || tables.iter().any(|table| table == "_refit_migrations") {
        return Ok(());
    }
    Err(StoreError::Unusable {
        problem: format!("`{}` is the database of another program (table `{}`)", path.display(), tables[0]),
        hint: "name another file with `--db`: refit keeps a database of its own".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_disk_leaves_no_connection_that_cannot_begin() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("refit.db");
        migrate(&path).await.expect("made");
        let writer = one_connection(&path, Some(PREPARE)).await.expect("opened");
        let pages: i64 = sqlx::query_scalar("PRAGMA page_count").fetch_one(&writer).await.expect("counted");
        let full = sqlx::AssertSqlSafe(format!("PRAGMA max_page_count = {}", pages + 2));
        sqlx::query(full).execute(&writer).await.expect("set");

        let mut tx = writer.begin_with(super::super::BEGIN).await.expect("begun");
        let filling = "INSERT INTO concurrency (key, run) VALUES (hex(zeroblob(100000)), zeroblob(16))";
        let refused = sqlx::query(filling).execute(&mut *tx).await.expect_err("the file may not grow");
        let StoreError::Away(why) = StoreError::from(refused) else { panic!("it is worth waiting for") };
        let todo = crate::store::while_away(&why);
        assert!(todo.starts_with("free space on the disk"), "{why}: {todo}");
        drop(tx);

        // The limit was the connection's own: the disk has space again.
        let mut tx = writer.begin_with(super::super::BEGIN).await.expect("begins again");
        sqlx::query(filling).execute(&mut *tx).await.expect("written");
        tx.commit().await.expect("committed");
    }
}
