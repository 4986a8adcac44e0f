//! What a database's error means: away, unusable, or our own mistake.

use sqlx::Error;
use sqlx::error::DatabaseError;
use sqlx::postgres::PgDatabaseError;

/// Why the database did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be reached, or lost the connection: try again.
    #[error("the database is away: {0}")]
    Away(String),
    /// It cannot be used as it is; the text says what to do.
    #[error("{problem}")]
    Unusable {
        /// What is wrong.
        problem: String,
        /// What to do.
        hint: String,
    },
    /// The run has another epoch, or the attempt is no longer `started`: touch nothing.
    #[error("another worker has taken this run over")]
    Fenced,
    /// It refused a statement: refit's own mistake, or a damaged file.
    #[error("the database refused: {0}")]
    Broken(String),
}

impl StoreError {
    /// The same error for another who waits for the same transaction.
    pub(crate) fn same(&self) -> Self {
        match self {
            StoreError::Away(text) => StoreError::Away(text.clone()),
            StoreError::Unusable { problem, hint } => {
                StoreError::Unusable { problem: problem.clone(), hint: hint.clone() }
            }
            StoreError::Fenced => StoreError::Fenced,
            StoreError::Broken(text) => StoreError::Broken(text.clone()),
        }
    }
}

/// What to do while the database is away, by what it says: SQLite is no server that could be reached.
pub fn while_away(why: &str) -> &'static str {
    match why {
        // FULL, IOERR, BUSY and LOCKED in SQLite's words: <https://www.sqlite.org/c3ref/errcode.html>
        "database or disk is full" => {
            "free space on the disk where the database file is, then try again; runs go on by themselves"
        }
        "disk I/O error" => {
            "the disk where the database file is did not read or write: is it full, failing, or on the network?"
        }
        "database is locked" | "database table is locked" => {
            "another program keeps the database file locked (a backup, an open shell?): end it, then try again"
        }
        _ => "is it running, and is its address right? See `refit doctor`",
    }
}

impl From<Error> for StoreError {
    fn from(error: Error) -> Self {
        match &error {
            Error::Io(_) | Error::Tls(_) | Error::PoolTimedOut | Error::PoolClosed | Error::WorkerCrashed => {
                StoreError::Away(error.to_string())
            }
            // A connection cut in mid-answer shows as a protocol error.
            Error::Protocol(text) => StoreError::Away(text.clone()),
            Error::Database(inner) => match inner.try_downcast_ref::<PgDatabaseError>() {
                Some(postgres) => of_postgres(postgres),
                None => of_sqlite(inner.as_ref()),
            },
            _ => StoreError::Broken(error.to_string()),
        }
    }
}

/// <https://www.postgresql.org/docs/current/errcodes-appendix.html>
fn of_postgres(error: &PgDatabaseError) -> StoreError {
    let text = error.message().to_owned();
    match error.code() {
        "42501" => StoreError::Unusable {
            problem: format!("the database role may not do this: {text}"),
            hint: "give the role SELECT, INSERT, UPDATE and DELETE on all tables of the schemas `refit` and \
                   `apalis`, and USAGE on both; `refit migrate` needs the owner's role"
                .to_owned(),
        },
        "25006" => StoreError::Unusable {
            problem: "the database is read-only".to_owned(),
            hint: "connect to the primary, not to a replica".to_owned(),
        },
        "42P01" | "3F000" | "42703" => StoreError::Unusable {
            problem: format!("the database's schema is not refit's: {text}"),
            hint: "run `refit migrate`".to_owned(),
        },
        "28P01" | "28000" => StoreError::Unusable {
            problem: format!("the database refused the login: {text}"),
            hint: "check user and password in the database URL".to_owned(),
        },
        "3D000" => StoreError::Unusable {
            problem: text,
            hint: "check the database's name in the URL, or create it with `createdb`".to_owned(),
        },
        // Serialisation failures and deadlocks were rolled back: trying again is right.
        code if ["08", "53", "57", "40", "55"].contains(&&code[..2]) => StoreError::Away(text),
        _ => StoreError::Broken(text),
    }
}

/// <https://www.sqlite.org/rescode.html>; the low byte is the primary code.
fn of_sqlite(error: &dyn DatabaseError) -> StoreError {
    let code = error.code().and_then(|code| code.parse::<u32>().ok()).unwrap_or_default();
    let text = error.message().to_owned();
    match code & 0xff {
        // BUSY, LOCKED, IOERR, FULL
        5 | 6 | 10 | 13 => StoreError::Away(text),
        // PERM, READONLY, CANTOPEN
        3 | 8 | 14 => StoreError::Unusable {
            problem: format!("the database file cannot be written: {text}"),
            hint: "make the file and its directory writable for this user".to_owned(),
        },
        // CORRUPT, NOTADB
        11 | 26 => StoreError::Unusable {
            problem: format!("the file is damaged, or not a SQLite database: {text}"),
            hint: "name another file with `--db`, or restore a backup".to_owned(),
        },
        _ => StoreError::Broken(text),
    }
}

/// A stored value that no longer reads as what was written.
pub(crate) fn unreadable(what: &str, error: impl std::fmt::Display) -> StoreError {
    StoreError::Broken(format!("{what}: {error}"))
}
