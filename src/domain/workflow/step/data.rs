//! Options of `fetch`: where rows come from, and what must be true of them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::expr::Template;

/// `uses: fetch`: rows into a file, then checked.
#[derive(Debug, Clone)]
pub struct Fetch {
    /// Where the rows come from.
    pub from: Source,
    /// The file they are written to, below the run's data directory.
    pub to: String,
    /// What must be true of them.
    pub expect: Expectations,
}

/// Where rows come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A file, relative to the project.
    File {
        /// Its path.
        path: Template,
    },
    /// A URL.
    Http {
        /// The address.
        url: Template,
        /// Request headers.
        headers: BTreeMap<String, Template>,
    },
    /// A query against Postgres, streamed by COPY.
    Postgres {
        /// The connection string.
        url: Template,
        /// The query's text; `query_file` is read when the workflow is loaded.
        query: String,
    },
    /// A query against a SQLite file.
    Sqlite {
        /// The database file, relative to the project.
        path: Template,
        /// The query's text.
        query: String,
    },
}

/// `expect:`: bad data stops the run; it is not a bad model.
#[derive(Debug, Clone, Default)]
pub struct Expectations {
    /// Columns that must be there, with their types, in the order of the file.
    pub columns: Vec<(String, ColumnType)>,
    /// Bounds on the number of rows.
    pub rows: RowBounds,
    /// How old the newest row may be.
    pub newest: Option<Newest>,
    /// The largest share of empty cells, by column, as a fraction.
    pub null_rate: Vec<(String, f64)>,
    /// Columns that together must not repeat; empty when not asked for.
    pub unique: Vec<String>,
}

/// The type of a column; an empty cell fits each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ColumnType {
    /// A whole number.
    Int,
    /// A finite number.
    Float,
    /// Any text.
    String,
    /// `true` or `false` (also `t`, `f`, `1`, `0`).
    Bool,
    /// `YYYY-MM-DD`.
    Date,
    /// RFC 3339, or `YYYY-MM-DD HH:MM:SS[.f]` as databases print it, then taken as UTC.
    Timestamp,
}

/// Bounds on the number of rows.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RowBounds {
    /// At least this many.
    pub min: Option<u64>,
    /// At most this many.
    pub max: Option<u64>,
    /// At least this share of the rows of the last successful fetch, as a fraction.
    pub min_vs_previous: Option<f64>,
}

/// How old the newest row may be.
#[derive(Debug, Clone, PartialEq)]
pub struct Newest {
    /// A date or timestamp column.
    pub column: String,
    /// The greatest age.
    pub max_age: Duration,
    /// What a greater age means.
    pub on_stale: OnStale,
}

/// What stale data means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnStale {
    /// The data check refuses (exit 3).
    #[default]
    Fail,
    /// There is nothing to do (exit 6).
    Skip,
}
