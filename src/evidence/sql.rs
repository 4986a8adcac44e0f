//! Rows of the app's own table, by a query of the team's: read-only, in pages,
//! by time and request id. The query is wrapped, so that it needs no window of
//! its own and can only select.

mod postgres;
mod sqlite;

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;

use super::rows::Rows;
use crate::adapter::{AdapterError, EvidenceSource};
use crate::app_database;
use crate::domain::expr::Expr;
use crate::domain::pull::{Page, Wanted};
use crate::secret::Secret;

/// Rows of one page, and bytes of them after which a page is full.
const PAGE: (usize, usize) = (10_000, 32 * 1024 * 1024);
/// Columns that every row needs.
const NEEDED: [&str; 3] = ["at", "request_id", "version"];
/// No query takes longer.
const PATIENCE: Duration = Duration::from_secs(15);
/// As in "could not read its evidence".
const ACTION: &str = "read its evidence";

/// A query over a database of the app's.
pub(super) struct SqlSource {
    place: Place,
    query: String,
    error_if: Option<Expr>,
}

enum Place {
    Postgres(Secret),
    Sqlite(PathBuf),
}

impl SqlSource {
    /// The source at `url`; a path is relative to `project`.
    pub(super) fn new(
        url: &str,
        query: &str,
        error_if: Option<Expr>,
        project: &Path,
    ) -> Result<Self, AdapterError> {
        let place = if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            Place::Postgres(Secret::new(url))
        } else if let Some(path) = url.strip_prefix("sqlite:") {
            Place::Sqlite(project.join(path.strip_prefix("//").unwrap_or(path)))
        } else {
            return Err(AdapterError::Rejected {
                service: "the evidence database".to_owned(),
                action: "be opened".to_owned(),
                cause: "its `url` begins with neither `postgres://` nor `sqlite:`".to_owned(),
            });
        };
        Ok(Self { place, query: app_database::wrapped(query), error_if })
    }
}

#[async_trait]
impl EvidenceSource for SqlSource {
    async fn read(&self, wanted: &Wanted) -> Result<Page, AdapterError> {
        let mut rows = Rows::new(self.error_if.as_ref(), wanted);
        let more = match &self.place {
            Place::Postgres(url) => postgres::read(url, &self.query, wanted, &mut rows).await?,
            Place::Sqlite(path) => sqlite::read(path, &self.query, wanted, &mut rows).await?,
        };
        Ok(rows.in_order(more))
    }
}

/// What is wrong with the columns of a query.
fn missing(columns: &[String]) -> Option<String> {
    let missing: Vec<String> = NEEDED
        .iter()
        .filter(|needed| !columns.iter().any(|column| column == *needed))
        .map(|needed| format!("`{needed}`"))
        .collect();
    (!missing.is_empty())
        .then(|| format!("the query has no column {}; it has {}", missing.join(", "), columns.join(", ")))
}
