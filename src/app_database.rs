//! Databases of the team's own app, which evidence and data are read from: opened read-only, and
//! what they answer when something is wrong said in refit's terms. A role with SELECT suffices.

use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection};
use tokio::time::timeout;
use url::Url;

use crate::adapter::AdapterError;
use crate::domain::words::excerpt;

/// Waited for a connection.
const PATIENCE: Duration = Duration::from_secs(15);
/// Waited for an app that writes its SQLite file just now.
const BUSY: Duration = Duration::from_secs(10);
/// No connection takes longer to be closed.
const GOODBYE: Duration = Duration::from_secs(1);

/// Who is asked, and for what: the beginning of every error.
#[derive(Debug, Clone)]
pub struct Asked {
    service: String,
    action: &'static str,
}

impl Asked {
    /// The database at `url`, without what may be secret in it, for `action`, as in "could not {action}".
    pub fn postgres(url: &str, action: &'static str) -> Self {
        let service = match Url::parse(url) {
            Ok(url) => {
                let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
                // Not as a URL: of one without a user, that would be the whole secret, and be hidden as such.
                format!("the database {}{port}{}", url.host_str().unwrap_or_default(), url.path())
            }
            Err(_) => "Postgres".to_owned(),
        };
        Self { service, action }
    }

    /// The file at `path`, for `action`.
    pub fn sqlite(path: &Path, action: &'static str) -> Self {
        Self { service: format!("the SQLite file {}", path.display()), action }
    }

    /// It answered what makes no sense here.
    pub fn rejected(&self, cause: impl Into<String>) -> AdapterError {
        AdapterError::Rejected {
            service: self.service.clone(),
            action: self.action.to_owned(),
            cause: cause.into(),
        }
    }

    /// It is no database that can be opened at all.
    fn not_opened(&self, cause: &str) -> AdapterError {
        Self { action: "be opened", ..self.clone() }.rejected(cause)
    }

    /// It took too long.
    pub fn late(&self, patience: Duration) -> AdapterError {
        self.unavailable(format!("no answer within {patience:?}"))
    }

    fn unavailable(&self, cause: String) -> AdapterError {
        AdapterError::Unavailable { service: self.service.clone(), cause, retry_after: None }
    }

    /// What an error of the database means: <https://www.postgresql.org/docs/current/errcodes-appendix.html>,
    /// <https://www.sqlite.org/rescode.html>.
    pub fn failure(&self, error: &sqlx::Error) -> AdapterError {
        let said = match error {
            sqlx::Error::Database(said) => said,
            sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::Tls(_) => {
                return self.unavailable(excerpt(&error.to_string()));
            }
            other => return self.rejected(excerpt(&other.to_string())),
        };
        let code = said.code().unwrap_or_default();
        let cause = format!("{} ({code})", excerpt(said.message()));
        let means = if said.try_downcast_ref::<sqlx::postgres::PgDatabaseError>().is_some() {
            of_sqlstate(&code)
        } else {
            of_sqlite(&code)
        };
        match means {
            Means::Again => self.unavailable(cause),
            Means::Forbidden => {
                AdapterError::Denied { service: self.service.clone(), action: self.action.to_owned(), cause }
            }
            Means::Never => self.rejected(cause),
        }
    }
}

/// Whether asking again can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Means {
    Again,
    Forbidden,
    Never,
}

fn of_sqlstate(code: &str) -> Means {
    match code.get(..2).unwrap_or_default() {
        // Connections, resources, operator intervention (a timeout among them), serialization, locks.
        "08" | "53" | "57" | "40" | "55" => Means::Again,
        "28" => Means::Forbidden,
        _ if code == "42501" => Means::Forbidden,
        _ => Means::Never,
    }
}

fn of_sqlite(code: &str) -> Means {
    // The low byte is the primary code.
    match code.parse::<u32>().unwrap_or_default() & 0xff {
        // BUSY, LOCKED, IOERR
        5 | 6 | 10 => Means::Again,
        // PERM, AUTH
        3 | 23 => Means::Forbidden,
        _ => Means::Never,
    }
}

/// A session; the transaction that reads is the caller's to begin, read-only.
pub async fn postgres(url: &str, asked: &Asked) -> Result<PgConnection, AdapterError> {
    let options = PgConnectOptions::from_str(url)
        .map_err(|_| asked.not_opened("its `url` is not a Postgres connection string"))?
        .application_name("refit")
        // Poolers hand every transaction to another session.
        .statement_cache_capacity(0)
        .disable_statement_logging();
    let connected = timeout(PATIENCE, options.connect()).await.map_err(|_| asked.late(PATIENCE))?;
    connected.map_err(|error| asked.failure(&error))
}

/// The file, which is there already and stays as it is.
pub async fn sqlite(path: &Path, asked: &Asked) -> Result<SqliteConnection, AdapterError> {
    if !path.is_file() {
        return Err(asked.not_opened("there is no such file"));
    }
    let options = SqliteConnectOptions::new()
        .filename(path)
        .read_only(true)
        .create_if_missing(false)
        .busy_timeout(BUSY)
        // Also for what the query itself may attach.
        .pragma("query_only", "ON")
        .disable_statement_logging();
    options.connect().await.map_err(|error| asked.failure(&error))
}

/// Says goodbye. It read only: one that does not arrive changes nothing.
pub async fn close(connection: impl Connection) {
    let _ = timeout(GOODBYE, connection.close()).await;
}

/// A query as part of a larger one: the newline ends a comment that it may end with. Files of queries end in a
/// semicolon, and comments may come below it.
pub fn wrapped(query: &str) -> String {
    let query = query.trim();
    let ended = end_of_statement(query).and_then(|end| query.get(..end));
    // Of what the tokenizer does not know, the database says what is wrong with it, if anything is.
    format!("{}\n", ended.unwrap_or_else(|| query.trim_end_matches(';')))
}

/// Where the semicolon is that only blanks, comments and more of them follow.
fn end_of_statement(query: &str) -> Option<usize> {
    let tokens = Tokenizer::new(&PostgreSqlDialect {}, query).tokenize_with_location().ok()?;
    let says = |it: &TokenWithSpan| !matches!(it.token, Token::SemiColon | Token::Whitespace(_) | Token::EOF);
    let after = tokens.iter().rposition(says)? + 1;
    let end = tokens[after..].iter().find(|it| it.token == Token::SemiColon)?;
    Some(offset(query, end.span.start))
}

/// The bytes before `at`, whose lines and columns, in characters, begin at 1.
fn offset(text: &str, at: Location) -> usize {
    let (line, column) = (at.line.saturating_sub(1), at.column.saturating_sub(1));
    let lines = text.split_inclusive('\n').map(str::len);
    let before = usize::try_from(line).map_or(text.len(), |line| lines.take(line).sum());
    let here = text[before..].chars().take(usize::try_from(column).unwrap_or(usize::MAX));
    before + here.map(char::len_utf8).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_string_is_shown_without_its_secrets() {
        let shown = |url| Asked::postgres(url, "be read").service;
        let url = "postgres://app:hunter2@db.example.com:5432/races?sslmode=require&password=x";
        assert_eq!(shown(url), "the database db.example.com:5432/races");
        assert_eq!(shown("host=db password=x"), "Postgres");
    }

    #[test]
    fn a_query_may_end_in_a_semicolon_and_comments() {
        for (query, expected) in [
            ("SELECT 1", "SELECT 1\n"),
            (" SELECT 1;;\n", "SELECT 1\n"),
            ("SELECT 1 -- one", "SELECT 1 -- one\n"),
            ("SELECT 1;\n\n-- checked by ana\n  -- in May\n", "SELECT 1\n"),
            ("SELECT '\n-- no comment'", "SELECT '\n-- no comment'\n"),
            ("SELECT 1; -- one", "SELECT 1\n"),
            ("SELECT 1;\n/* a /* note */ of ana */", "SELECT 1\n"),
            ("SELECT 1; ;", "SELECT 1\n"),
            ("SELECT ';' -- ;\n;", "SELECT ';' -- ;\n\n"),
            (
                "SELECT 1\n/* old: SELECT x FROM y;\n-- slow */",
                "SELECT 1\n/* old: SELECT x FROM y;\n-- slow */\n",
            ),
            ("SELECT ';\n-- x'", "SELECT ';\n-- x'\n"),
            ("SELECT 'it''s;\n-- x'", "SELECT 'it''s;\n-- x'\n"),
            ("SELECT E'it\\'s;\n-- x'", "SELECT E'it\\'s;\n-- x'\n"),
            ("SELECT 'C:\\';", "SELECT 'C:\\'\n"),
            ("SELECT a AS \"b;\n-- x\"", "SELECT a AS \"b;\n-- x\"\n"),
            ("SELECT $$ it's;\n-- x$$;", "SELECT $$ it's;\n-- x$$\n"),
            ("SELECT $t$ $$;\n-- x$t$", "SELECT $t$ $$;\n-- x$t$\n"),
            ("SELECT $1; -- $2", "SELECT $1\n"),
            ("SELECT 1; SELECT 2;", "SELECT 1; SELECT 2\n"),
            ("SELECT 1; /* without an end;", "SELECT 1; /* without an end\n"),
            ("SELECT 'ä'; -- ö", "SELECT 'ä'\n"),
        ] {
            assert_eq!(wrapped(query), expected);
        }
    }

    #[test]
    fn asking_again_helps_where_the_database_was_busy() {
        for (code, means) in [
            ("57014", Means::Again),
            ("55P03", Means::Again),
            ("40001", Means::Again),
            ("42501", Means::Forbidden),
            ("28P01", Means::Forbidden),
            ("42703", Means::Never),
            ("", Means::Never),
        ] {
            assert_eq!(of_sqlstate(code), means, "{code}");
        }
        for (code, means) in
            [("5", Means::Again), ("261", Means::Again), ("23", Means::Forbidden), ("1", Means::Never)]
        {
            assert_eq!(of_sqlite(code), means, "{code}");
        }
    }

    #[tokio::test]
    async fn a_file_that_is_being_written_is_asked_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("app.db");
        let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
        let mut app = options.connect().await.expect("made");
        sqlx::raw_sql(
            "CREATE TABLE t (a); PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE; INSERT INTO t VALUES (1)",
        )
        .execute(&mut app)
        .await
        .expect("locked");
        let asked = Asked::sqlite(&path, "run the query");
        let mut reader = SqliteConnectOptions::new()
            .filename(&path)
            .busy_timeout(Duration::ZERO)
            .connect()
            .await
            .expect("opened");
        let error = sqlx::query("SELECT a FROM t").fetch_all(&mut reader).await.expect_err("it is locked");
        assert!(asked.failure(&error).is_transient(), "{error}");
    }
}
