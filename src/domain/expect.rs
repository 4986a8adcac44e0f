//! `expect:`: what must be true of fetched rows, checked in one pass over them.
//!
//! Rows come in one by one, sentences go out: every violation at once, with its
//! numbers. Memory does not grow with the rows but for `unique`, which keeps 128
//! bits of each.

use std::collections::HashSet;
use std::time::Duration;

use chrono::{DateTime, NaiveDate, NaiveDateTime};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Timestamp;
use super::workflow::step::{ColumnType, Expectations, Newest};

/// Rows that `unique` can remember, about 32 bytes each.
const MOST_UNIQUE_ROWS: usize = 20_000_000;
/// Characters of a cell that a sentence shows.
const SHOWN: usize = 40;

/// What was found in a column.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ColumnFacts {
    /// Its name.
    pub name: String,
    /// Empty cells.
    pub empty: u64,
    /// The earliest date or time, as written; only of columns that `expect` calls so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<String>,
    /// The latest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<String>,
}

/// What the pass found.
#[derive(Debug, Clone, PartialEq)]
pub struct Findings {
    /// Rows, without the header.
    pub rows: u64,
    /// The columns, in the order of the file.
    pub columns: Vec<ColumnFacts>,
    /// What is not as expected, in plain words.
    pub violations: Vec<String>,
    /// Why the data is stale, when it is.
    pub stale: Option<String>,
}

/// One pass over rows.
pub struct Inspection<'e> {
    expect: &'e Expectations,
    now: Timestamp,
    rows: u64,
    columns: Vec<Column>,
    missing: Vec<&'e str>,
    unique: Option<Unique>,
    newest: Option<usize>,
}

struct Column {
    name: String,
    kind: Option<ColumnType>,
    empty: u64,
    wrong: u64,
    /// Row and text of the first cell that is not of its type.
    first_wrong: Option<(u64, String)>,
    earliest: Option<(Timestamp, String)>,
    latest: Option<(Timestamp, String)>,
    /// The latest that is not in the future, for `newest`.
    latest_past: Option<(Timestamp, String)>,
}

struct Unique {
    columns: Vec<usize>,
    seen: HashSet<u128>,
    repeated: u64,
    first: Option<(u64, String)>,
    full: bool,
}

impl<'e> Inspection<'e> {
    /// Begins a pass over rows below `header`, at `now`.
    pub fn new<'h>(
        expect: &'e Expectations,
        header: impl IntoIterator<Item = &'h str>,
        now: Timestamp,
    ) -> Self {
        let mut columns: Vec<Column> = header.into_iter().map(Column::new).collect();
        let mut missing: Vec<&str> = Vec::new();
        for name in mentioned(expect) {
            let kind = expect.columns.iter().find(|(column, _)| column == name).map(|(_, kind)| *kind);
            match columns.iter_mut().find(|column| column.name == name) {
                Some(column) => column.kind = column.kind.or(kind),
                None if missing.contains(&name) => {}
                None => missing.push(name),
            }
        }
        let place = |name: &String| columns.iter().position(|column| &column.name == name);
        let unique: Option<Vec<usize>> = expect.unique.iter().map(place).collect();
        let newest = expect.newest.as_ref().and_then(|newest| place(&newest.column));
        if let Some(column) = newest.and_then(|place| columns.get_mut(place)) {
            // A date that nothing calls one: either way of writing it is understood.
            column.kind.get_or_insert(ColumnType::Timestamp);
        }
        let unique = unique.filter(|columns| !columns.is_empty()).map(Unique::new);
        Self { expect, now, rows: 0, columns, missing, unique, newest }
    }

    /// Looks at one row; cells beyond the header's are ignored.
    pub fn row<'r>(&mut self, cells: impl Iterator<Item = &'r str> + Clone) {
        self.rows += 1;
        for (column, cell) in self.columns.iter_mut().zip(cells.clone()) {
            column.cell(self.rows, cell, self.now);
        }
        if let Some(unique) = &mut self.unique {
            unique.row(self.rows, cells);
        }
    }

    /// Ends the pass. `previous` is the number of rows of the last successful fetch.
    pub fn finish(self, previous: Option<u64>) -> Findings {
        let mut violations = Vec::new();
        if !self.missing.is_empty() {
            let there: Vec<&str> = self.columns.iter().map(|column| column.name.as_str()).collect();
            violations.push(format!(
                "columns missing: {}; the file has {}",
                self.missing.join(", "),
                there.join(", ")
            ));
        }
        violations.extend(self.twice());
        violations.extend(self.row_bounds(previous));
        violations.extend(self.columns.iter().filter_map(|column| column.wrong_cells(self.rows)));
        violations.extend(self.null_rates());
        violations.extend(self.unique.as_ref().and_then(|unique| unique.problem(&self.expect.unique)));
        let mut stale = None;
        if let (Some(newest), Some(place)) = (&self.expect.newest, self.newest) {
            match self.age(newest, &self.columns[place]) {
                Ok(found) => stale = found,
                Err(violation) => violations.push(violation),
            }
        }
        Findings {
            rows: self.rows,
            columns: self.columns.into_iter().map(Column::facts).collect(),
            violations,
            stale,
        }
    }

    /// An expected name that is there twice: nobody knows which one a trainer reads.
    fn twice(&self) -> Option<String> {
        let named = |name: &&str| self.columns.iter().filter(|column| column.name == **name).count();
        let mut twice: Vec<&str> = mentioned(self.expect).filter(|name| named(name) > 1).collect();
        twice.sort_unstable();
        twice.dedup();
        (!twice.is_empty()).then(|| format!("columns there twice: {}", twice.join(", ")))
    }

    fn row_bounds(&self, previous: Option<u64>) -> Vec<String> {
        let rows = self.rows;
        let bounds = &self.expect.rows;
        let mut found = Vec::new();
        if let Some(min) = bounds.min.filter(|min| rows < *min) {
            found.push(format!("{rows} rows, fewer than the {min} expected"));
        }
        if let Some(max) = bounds.max.filter(|max| rows > *max) {
            found.push(format!("{rows} rows, more than the {max} expected"));
        }
        if let (Some(share), Some(previous)) = (bounds.min_vs_previous, previous)
            && (rows as f64) < share * previous as f64
        {
            let now = 100.0 * rows as f64 / previous as f64;
            found.push(format!(
                "{rows} rows are {now:.1} % of the last fetch's {previous}; at least {} expected",
                percent(share)
            ));
        }
        found
    }

    fn null_rates(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (name, limit) in &self.expect.null_rate {
            let Some(column) = self.columns.iter().find(|column| &column.name == name) else { continue };
            let rate = column.empty as f64 / self.rows.max(1) as f64;
            if rate > *limit {
                found.push(format!(
                    "`{name}` is empty in {} of {} rows, {}; at most {} expected",
                    column.empty,
                    self.rows,
                    percent(rate),
                    percent(*limit)
                ));
            }
        }
        found
    }

    /// Whether the newest row is too old; no date at all is a violation.
    fn age(&self, newest: &Newest, column: &Column) -> Result<Option<String>, String> {
        let Some((latest, text)) = &column.latest_past else {
            return Err(format!("`{}` has no date that is not in the future", newest.column));
        };
        // A date is a whole day: its age is counted in days, not from its midnight.
        let age = if column.kind == Some(ColumnType::Date) {
            self.now.date_naive() - latest.date_naive()
        } else {
            self.now - *latest
        };
        let age = age.to_std().unwrap_or_default();
        Ok((age > newest.max_age).then(|| {
            format!(
                "the newest `{}` is {text}, {} old; at most {} expected",
                newest.column,
                span(age),
                span(newest.max_age)
            )
        }))
    }
}

impl Column {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            kind: None,
            empty: 0,
            wrong: 0,
            first_wrong: None,
            earliest: None,
            latest: None,
            latest_past: None,
        }
    }

    fn cell(&mut self, row: u64, cell: &str, now: Timestamp) {
        if cell.is_empty() {
            self.empty += 1;
            return;
        }
        let fits = match self.kind {
            None | Some(ColumnType::String) => true,
            Some(ColumnType::Int) => is_int(cell),
            Some(ColumnType::Float) => cell.parse::<f64>().is_ok_and(f64::is_finite),
            Some(ColumnType::Bool) => {
                matches!(cell.to_ascii_lowercase().as_str(), "true" | "false" | "t" | "f" | "1" | "0")
            }
            Some(ColumnType::Date) => self.moment(parse_date(cell), cell, now),
            Some(ColumnType::Timestamp) => self.moment(parse_timestamp(cell), cell, now),
        };
        if !fits {
            self.wrong += 1;
            self.first_wrong.get_or_insert_with(|| (row, shown(cell)));
        }
    }

    fn moment(&mut self, moment: Option<Timestamp>, cell: &str, now: Timestamp) -> bool {
        let Some(moment) = moment else { return false };
        let later = |than: &Option<(Timestamp, String)>| than.as_ref().is_none_or(|(at, _)| moment > *at);
        if self.earliest.as_ref().is_none_or(|(at, _)| moment < *at) {
            self.earliest = Some((moment, cell.to_owned()));
        }
        if later(&self.latest) {
            self.latest = Some((moment, cell.to_owned()));
        }
        // A day of tolerance: somewhere it is tomorrow already.
        if moment <= now + chrono::TimeDelta::days(1) && later(&self.latest_past) {
            self.latest_past = Some((moment, cell.to_owned()));
        }
        true
    }

    fn wrong_cells(&self, rows: u64) -> Option<String> {
        let (row, text) = self.first_wrong.as_ref()?;
        let kind = match self.kind? {
            ColumnType::Int => "a whole number",
            ColumnType::Float => "a finite number",
            ColumnType::String => "a text",
            ColumnType::Bool => "true or false",
            ColumnType::Date => "a date (YYYY-MM-DD)",
            ColumnType::Timestamp => "a time (RFC 3339)",
        };
        Some(format!(
            "`{}` is not {kind} in {} of {rows} rows, first in row {row}: `{text}`",
            self.name, self.wrong
        ))
    }

    fn facts(self) -> ColumnFacts {
        ColumnFacts {
            name: self.name,
            empty: self.empty,
            min: self.earliest.map(|(_, text)| text),
            max: self.latest.map(|(_, text)| text),
        }
    }
}

impl Unique {
    fn new(columns: Vec<usize>) -> Self {
        Self { columns, seen: HashSet::new(), repeated: 0, first: None, full: false }
    }

    fn row<'r>(&mut self, row: u64, cells: impl Iterator<Item = &'r str> + Clone) {
        let mut digest = Sha256::new();
        for &column in &self.columns {
            let cell = cells.clone().nth(column).unwrap_or_default();
            // With its length, or `a|bc` would equal `ab|c`.
            digest.update((cell.len() as u64).to_le_bytes());
            digest.update(cell);
        }
        let digest = digest.finalize();
        let mut half = [0; 16];
        half.copy_from_slice(&digest[..16]);
        if self.seen.len() >= MOST_UNIQUE_ROWS {
            self.full = true;
        } else if !self.seen.insert(u128::from_le_bytes(half)) {
            self.repeated += 1;
            let key = || {
                let parts = self.columns.iter().map(|&column| cells.clone().nth(column).unwrap_or_default());
                shown(&parts.collect::<Vec<_>>().join(", "))
            };
            if self.first.is_none() {
                self.first = Some((row, key()));
            }
        }
    }

    fn problem(&self, names: &[String]) -> Option<String> {
        let names = names.join(", ");
        if let Some((row, key)) = &self.first {
            return Some(format!("({names}) repeats in {} rows, first in row {row}: ({key})", self.repeated));
        }
        self.full
            .then(|| format!("({names}) cannot be checked to be unique in more than {MOST_UNIQUE_ROWS} rows"))
    }
}

/// The columns that `expect` says anything of.
fn mentioned(expect: &Expectations) -> impl Iterator<Item = &str> {
    let typed = expect.columns.iter().map(|(name, _)| name);
    let newest = expect.newest.as_ref().map(|newest| &newest.column);
    let others = expect.null_rate.iter().map(|(name, _)| name).chain(&expect.unique).chain(newest);
    typed.chain(others).map(String::as_str)
}

/// A whole number of any length, with a sign or without.
fn is_int(cell: &str) -> bool {
    let digits = cell.strip_prefix(['+', '-']).unwrap_or(cell);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

fn parse_date(cell: &str) -> Option<Timestamp> {
    // chrono would also read `2026-1-5`, which sorts wrongly as text in the trainer.
    let date = NaiveDate::parse_from_str(cell, "%Y-%m-%d").ok().filter(|_| cell.len() == 10)?;
    Some(date.and_hms_opt(0, 0, 0)?.and_utc())
}

/// A cell with a date or a time; a date is its beginning, a time without a zone is UTC.
pub fn parse_timestamp(cell: &str) -> Option<Timestamp> {
    if let Ok(moment) = DateTime::parse_from_rfc3339(cell) {
        return Some(moment.to_utc());
    }
    for format in ["%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%dT%H:%M:%S%.f%#z"] {
        if let Ok(moment) = DateTime::parse_from_str(cell, format) {
            return Some(moment.to_utc());
        }
    }
    for format in ["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f"] {
        if let Ok(moment) = NaiveDateTime::parse_from_str(cell, format) {
            return Some(moment.and_utc());
        }
    }
    parse_date(cell)
}

fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN).collect::<String>().escape_debug().to_string();
    if text.chars().count() > SHOWN {
        shown.push('…');
    }
    shown
}

fn percent(fraction: f64) -> String {
    let rounded = (fraction * 1000.0).round() / 10.0;
    if rounded == 0.0 && fraction > 0.0 {
        format!("{:.3} %", fraction * 100.0)
    } else {
        format!("{rounded} %")
    }
}

fn span(duration: Duration) -> String {
    let hours = duration.as_secs() / 3600;
    match (hours / 24, hours % 24) {
        (0, 0) => format!("{} min", duration.as_secs() / 60),
        (0, hours) => format!("{hours} h"),
        (days, 0) => format!("{days} d"),
        (days, hours) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests;
