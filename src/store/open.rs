//! Which database a URL names.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sqlx::migrate::MigrateError;

use super::{Store, StoreError, postgres, sqlite};
use crate::clock::Clock;

/// A database, as `--db` and `REFIT_DATABASE_URL` name it.
enum Place<'a> {
    Sqlite(PathBuf),
    Postgres(&'a str),
}

fn place(database: &str) -> Result<Place<'_>, StoreError> {
    if database.starts_with("postgres://") || database.starts_with("postgresql://") {
        return Ok(Place::Postgres(database));
    }
    if let Some(path) = database.strip_prefix("sqlite:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        return Ok(Place::Sqlite(Path::new(path).to_owned()));
    }
    match database.split_once("://") {
        // The rest of it may hold a password.
        Some((scheme, _)) => Err(StoreError::Unusable {
            problem: format!("`{scheme}://…` is not a database refit can use"),
            hint: "use `postgres://user@host/database`, `sqlite:path/to/refit.db` or a path".to_owned(),
        }),
        None if database.trim().is_empty() => Err(StoreError::Unusable {
            problem: "the database URL is empty".to_owned(),
            hint: "use `postgres://user@host/database`, `sqlite:path/to/refit.db` or a path".to_owned(),
        }),
        None => Ok(Place::Sqlite(Path::new(database).to_owned())),
    }
}

/// Opens the database that `database` names: `postgres://…`, `sqlite:path`, or a path. A SQLite database is
/// made and migrated as needed; a Postgres one never is.
pub async fn open(database: &str, clock: Arc<dyn Clock>) -> Result<Arc<dyn Store>, StoreError> {
    match place(database)? {
        Place::Sqlite(path) => sqlite::open(&path, clock).await,
        Place::Postgres(url) => postgres::open(url, clock).await,
    }
}

/// Whether `database` names a file that is not there, and that opening it makes.
pub fn is_missing(database: &str) -> bool {
    matches!(place(database), Ok(Place::Sqlite(path)) if !path.exists())
}

/// Makes the schema, or brings it up to date. `shared`: on Postgres, also in a database with others' tables.
pub async fn migrate(database: &str, shared: bool) -> Result<(), StoreError> {
    match place(database)? {
        Place::Sqlite(path) => sqlite::migrate(&path).await,
        Place::Postgres(url) => postgres::migrate(url, shared).await,
    }
}

/// The schema is newer than this program.
pub(crate) fn newer_schema() -> StoreError {
    StoreError::Unusable {
        problem: "the database's schema is newer than this refit".to_owned(),
        hint: "install the newest refit, or name another database with `--db`".to_owned(),
    }
}

/// What a failed migration means.
pub(crate) fn migrate_error(error: MigrateError) -> StoreError {
    match error {
        MigrateError::VersionMissing(_) | MigrateError::VersionTooNew(..) => newer_schema(),
        MigrateError::VersionMismatch(_) => StoreError::Unusable {
            problem: "the database was made by a refit from before its first release".to_owned(),
            hint: "name another database with `--db`, or finish what runs in this one with the refit that made it"
                .to_owned(),
        },
        MigrateError::Execute(error) => error.into(),
        MigrateError::ExecuteMigration(error, _) => error.into(),
        other => StoreError::Broken(other.to_string()),
    }
}
