//! Rows with an id, a time and perhaps their truth: from a source, through a
//! file, to the predict command, which sees all of them but the truth.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use chrono::TimeDelta;
use csv::ByteRecord;

use crate::domain::Timestamp;
use crate::domain::expect::parse_timestamp;
use crate::domain::workflow::step::Source;
use crate::steps::context::{StepContext, StepError};
use crate::steps::fetch;
use crate::steps::run::guarded::Paths;

/// Bytes of an id or the name of a block.
const LONGEST_NAME: usize = 200;

/// The clock of whoever served may be so far ahead.
const CLOCKS_DIFFER: TimeDelta = TimeDelta::minutes(5);

/// One row.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    pub(super) id: String,
    /// When its truth became known, or when it was logged.
    pub(super) at: Timestamp,
    /// When it was served, if the rows say it.
    pub(super) served_at: Option<Timestamp>,
    pub(super) block: Option<String>,
    /// Absent while nobody knows it.
    pub(super) actual: Option<f64>,
    cells: ByteRecord,
}

/// Rows that were chosen.
#[derive(Debug)]
pub(super) struct Rows {
    /// Each id once: the first row of it.
    pub(super) rows: Vec<Row>,
    /// There were more than were wanted.
    pub(super) more: bool,
    /// What the command reads: all columns but the truth.
    pub(super) file: PathBuf,
}

/// Which rows, of those that are wanted at all.
#[derive(Debug, Clone, Copy)]
pub(super) enum Choice {
    /// The first of the file.
    First(usize),
    /// Those with the latest times.
    Newest(usize),
}

/// Fetches rows and writes those that were chosen where commands can read them.
pub(super) async fn fetch(
    from: &Source,
    ctx: &StepContext<'_>,
    paths: &Paths,
    choice: Choice,
    wanted: impl Fn(&Row) -> bool + Send + 'static,
) -> Result<Rows, StepError> {
    let now = ctx.clock.now();
    let (all, chosen) = (paths.attempt.join("all.csv"), paths.attempt.join("rows.csv"));
    fetch::rows_into(from, all.clone(), ctx).await?;
    let read = tokio::task::spawn_blocking(move || {
        let rows = choose(&all, chosen, choice, now, wanted);
        // It has the truth: no command may find it.
        let _ = fs::remove_file(&all);
        rows
    });
    read.await
        .map_err(|error| StepError::transient(error.to_string()))?
        .map_err(|problem| StepError::permanent(ctx.services.secrets.mask(&format!("from: {problem}"))))
}

/// Where the columns are.
struct Places {
    id: usize,
    at: usize,
    actual: usize,
    block: Option<usize>,
    served_at: Option<usize>,
}

impl Places {
    fn find(header: &ByteRecord) -> Result<Self, String> {
        let place = |name: &str| header.iter().position(|cell| cell.trim_ascii() == name.as_bytes());
        let needed = |name| place(name).ok_or_else(|| format!("the rows have no column `{name}`"));
        Ok(Self {
            id: needed("id")?,
            at: needed("at")?,
            actual: needed("actual")?,
            block: place("block"),
            served_at: place("served_at"),
        })
    }

    fn row(&self, record: &ByteRecord) -> Result<Row, String> {
        let text = |place: usize| {
            let cell = record.get(place).unwrap_or_default().trim_ascii();
            std::str::from_utf8(cell).map_err(|_| "it is not UTF-8".to_owned())
        };
        let name = |place: usize, column: &str| {
            let name = text(place)?;
            if name.len() > LONGEST_NAME || name.chars().any(char::is_control) {
                return Err(format!("`{column}` has at most {LONGEST_NAME} bytes and no control characters"));
            }
            Ok(name.to_owned())
        };
        let id = name(self.id, "id")?;
        if id.is_empty() {
            return Err("`id` is empty".to_owned());
        }
        let time = |place: usize, column: &str| {
            let cell = text(place)?;
            let no_time = || format!("`{column}` is `{}`, neither a date nor a time", cell.escape_debug());
            if cell.is_empty() { Ok(None) } else { parse_timestamp(cell).ok_or_else(no_time).map(Some) }
        };
        let at = time(self.at, "at")?.ok_or("`at` is empty")?;
        let served_at = self.served_at.map(|place| time(place, "served_at")).transpose()?.flatten();
        let actual = match text(self.actual)? {
            "" => None,
            cell => match cell.parse::<f64>() {
                Ok(actual) if actual.is_finite() => Some(actual),
                Ok(_) | Err(_) => return Err(format!("`actual` is `{}`, not a number", cell.escape_debug())),
            },
        };
        let block =
            self.block.map(|place| name(place, "block")).transpose()?.filter(|block| !block.is_empty());
        Ok(Row { id, at, served_at, block, actual, cells: record.clone() })
    }
}

fn choose(
    all: &Path,
    chosen: PathBuf,
    choice: Choice,
    now: Timestamp,
    wanted: impl Fn(&Row) -> bool,
) -> Result<Rows, String> {
    let file = File::open(all).map_err(|error| format!("what was fetched cannot be read: {error}"))?;
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(file);
    let form = |error: csv::Error| error.to_string();
    let mut header = ByteRecord::new();
    reader.read_byte_record(&mut header).map_err(form)?;
    let places = Places::find(&header)?;
    let mut record = ByteRecord::new();
    let (mut rows, mut seen, mut more) = (Vec::new(), std::collections::HashSet::new(), false);
    while reader.read_byte_record(&mut record).map_err(form)? {
        let line = record.position().map_or(0, csv::Position::line);
        let row = places.row(&record).map_err(|problem| format!("line {line}: {problem}"))?;
        if !wanted(&row) || seen.contains(&row.id) {
            continue;
        }
        // It would wait to be old enough until then, and nobody would know why.
        if let Some(later) = row.served_at.filter(|served_at| *served_at > now + CLOCKS_DIFFER) {
            return Err(format!(
                "line {line}: `served_at` is {}, which is yet to come",
                later.format("%F %T UTC")
            ));
        }
        seen.insert(row.id.clone());
        rows.push(row);
        match choice {
            Choice::First(most) => {
                if rows.len() > most {
                    rows.pop();
                    more = true;
                    break;
                }
            }
            Choice::Newest(most) => {
                if rows.len() >= 2 * most {
                    more = true;
                    keep_newest(&mut rows, most);
                }
            }
        }
    }
    if let Choice::Newest(most) = choice {
        more |= rows.len() > most;
        keep_newest(&mut rows, most);
    }
    write(&chosen, &header, &rows, places.actual)
        .map_err(|error| format!("the rows cannot be written: {error}"))?;
    Ok(Rows { rows, more, file: chosen })
}

/// The newest last; of one time, those that came later.
fn keep_newest(rows: &mut Vec<Row>, most: usize) {
    rows.sort_by_key(|row| row.at);
    rows.drain(..rows.len().saturating_sub(most));
}

fn write(to: &Path, header: &ByteRecord, rows: &[Row], truth: usize) -> Result<(), csv::Error> {
    let mut writer = csv::Writer::from_path(to)?;
    for record in std::iter::once(header).chain(rows.iter().map(|row| &row.cells)) {
        let cells = record.iter().enumerate().filter(|(place, _)| *place != truth);
        writer.write_byte_record(&cells.map(|(_, cell)| cell).collect())?;
    }
    writer.flush()?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o444))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        parse_timestamp("2026-11-10 12:00:00").expect("a time")
    }

    fn chosen(text: &str, choice: Choice) -> Result<(Vec<String>, bool, String), String> {
        let dir = tempfile::tempdir().expect("a directory");
        let all = dir.path().join("all.csv");
        fs::write(&all, text).expect("writable");
        let rows = choose(&all, dir.path().join("rows.csv"), choice, now(), |row| row.id != "no")?;
        let given = fs::read_to_string(&rows.file).expect("written");
        Ok((rows.rows.into_iter().map(|row| row.id).collect(), rows.more, given))
    }

    const ROWS: &str = "id,x,actual,at,block\n\
        a,1,5,2026-11-03,d3\n\
        b,2,,2026-11-01 12:00:00,\n\
        no,2,1,2026-11-01,\n\
        a,9,9,2026-11-09,\n\
        c,\"3,\n4\",7,2026-11-02T00:00:00Z,d2\n";

    #[test]
    fn a_command_sees_the_rows_but_not_their_truth_and_each_id_once() {
        let (ids, more, given) = chosen(ROWS, Choice::First(10)).expect("valid");
        assert_eq!((ids.join(" ").as_str(), more), ("a b c", false));
        assert_eq!(
            given,
            "id,x,at,block\na,1,2026-11-03,d3\nb,2,2026-11-01 12:00:00,\nc,\"3,\n4\",2026-11-02T00:00:00Z,d2\n"
        );
    }

    #[test]
    fn the_first_or_the_newest_are_chosen_and_that_there_are_more_is_said() {
        let (ids, more, _) = chosen(ROWS, Choice::First(2)).expect("valid");
        assert_eq!((ids.join(" ").as_str(), more), ("a b", true));
        let (ids, more, _) = chosen(ROWS, Choice::Newest(2)).expect("valid");
        assert_eq!((ids.join(" ").as_str(), more), ("c a", true));
        let (ids, more, _) = chosen(ROWS, Choice::Newest(3)).expect("valid");
        assert_eq!((ids.join(" ").as_str(), more), ("b c a", false));
        let (ids, more, _) = chosen(ROWS, Choice::Newest(1)).expect("valid");
        assert_eq!((ids.join(" ").as_str(), more), ("a", true));
    }

    #[test]
    fn what_is_no_row_is_told_with_its_line() {
        for (text, problem) in [
            ("id,at\n", "the rows have no column `actual`"),
            ("id,at,actual\na,soon,1\n", "line 2: `at` is `soon`, neither a date nor a time"),
            (
                "id,at,actual,served_at\na,2026-11-01,1,\nb,2026-11-01,1,2026-10-31\nc,2026-11-01,1,then\n",
                "line 4: `served_at` is `then`, neither a date nor a time",
            ),
            (
                "id,at,actual,served_at\nno,2026-11-01,1,2062-11-01\n\
                 a,2026-11-01,1,2026-11-10 12:05:00\nb,2026-11-01,1,2062-11-01\n",
                "line 4: `served_at` is 2062-11-01 00:00:00 UTC, which is yet to come",
            ),
            ("id,at,actual\na,2026-11-01,inf\n", "line 2: `actual` is `inf`, not a number"),
            ("id,at,actual\na,2026-11-01,1\n,2026-11-01,1\n", "line 3: `id` is empty"),
        ] {
            assert_eq!(chosen(text, Choice::First(9)).expect_err("refused"), problem, "{text}");
        }
    }
}
