//! The data as it stood: every source is read once, as it is today, and its
//! rows are cut by a column that says when each came to be.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{Days, NaiveTime, TimeDelta};
use serde::Serialize;
use serde_json::Value;

use super::train::{self, At, Body};
use super::{SimulateError, Simulation};
use crate::domain::Timestamp;
use crate::domain::expect::parse_timestamp;
use crate::domain::expr::Template;
use crate::domain::id::StepId;
use crate::domain::simulate::Week;
use crate::domain::workflow::step::{ColumnType, Expectations, Fetch, Source};
use crate::domain::workflow::{Step, StepKind};
use crate::steps::context::StepResult;
use crate::steps::fetch::FetchOutput;

/// Characters of a cell that a sentence shows.
const SHOWN: usize = 40;

/// Which rows were there by when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cut {
    /// The step whose source is cut; its own when absent.
    pub from: Option<StepId>,
    /// A column with a date or a time.
    pub column: String,
    /// Only rows of this time before; all when absent.
    pub window: Option<std::time::Duration>,
}

/// What the fetch steps gave in each week.
pub(super) struct Weeks {
    weeks: Vec<FetchedWeek>,
}

struct FetchedWeek {
    end: Timestamp,
    dir: PathBuf,
    /// By step, in the order of the file.
    outputs: Vec<(StepId, FetchOutput)>,
    refused: Option<String>,
}

fn disk(path: &Path) -> impl FnOnce(std::io::Error) -> SimulateError + use<> {
    let path = path.display().to_string();
    move |cause| SimulateError::Disk { path, cause }
}

impl Weeks {
    pub(super) fn len(&self) -> usize {
        self.weeks.len()
    }

    /// The day of the retrain.
    pub(super) fn name(&self, week: Week) -> String {
        self.weeks[week].end.format("%F").to_string()
    }

    pub(super) fn end(&self, week: Week) -> Timestamp {
        self.weeks[week].end
    }

    pub(super) fn refused(&self, week: Week) -> Option<String> {
        self.weeks[week].refused.clone()
    }

    /// Where its fetched files are.
    pub(super) fn dir(&self, week: Week) -> &Path {
        &self.weeks[week].dir
    }

    pub(super) fn outputs(&self, week: Week) -> &[(StepId, FetchOutput)] {
        &self.weeks[week].outputs
    }

    pub(super) async fn prepare(simulation: &Arc<Simulation>) -> Result<Self, SimulateError> {
        let fetches: Vec<(&Step, &Fetch)> = simulation
            .workflow
            .steps
            .iter()
            .filter_map(
                |step| if let StepKind::Fetch(fetch) = &step.kind { Some((step, fetch)) } else { None },
            )
            .collect();
        if fetches.is_empty() {
            return Err(SimulateError::Setting(
                "the workflow has no `fetch` step: which data its trainer saw in past weeks is not known"
                    .to_owned(),
            ));
        }
        let mut cuts = BTreeMap::new();
        for (step, fetch) in &fetches {
            cuts.insert(step.id.clone(), cut_of(simulation, &step.id, fetch)?);
        }
        if let Some(unknown) = simulation.cuts.keys().find(|step| !cuts.contains_key(*step)) {
            return Err(SimulateError::Setting(format!("--cut: `{unknown}` is no fetch step")));
        }
        let sources = sources(simulation, &fetches, &cuts).await?;
        let end = match simulation.until {
            Some(until) => until,
            None => newest(&cuts, &sources)?,
        };
        let mut weeks: Vec<FetchedWeek> = vec![];
        for ago in (0..simulation.weeks).rev() {
            let end = end - TimeDelta::weeks(ago as i64);
            let previous = weeks.last().map(|week| week.outputs.as_slice()).unwrap_or_default();
            let week = fetched(simulation, &fetches, &cuts, &sources, end, previous).await?;
            weeks.push(week);
        }
        Ok(Self { weeks })
    }
}

/// How a step's rows are cut: as was typed, or by the one column that the workflow says to be a time.
fn cut_of(simulation: &Simulation, step: &StepId, fetch: &Fetch) -> Result<Cut, SimulateError> {
    if let Some(cut) = simulation.cuts.get(step) {
        return Ok(cut.clone());
    }
    let by = |column: &str| Cut { from: None, column: column.to_owned(), window: None };
    if let Some(newest) = &fetch.expect.newest {
        return Ok(by(&newest.column));
    }
    let times = fetch.expect.columns.iter();
    let times: Vec<_> =
        times.filter(|(_, kind)| matches!(kind, ColumnType::Date | ColumnType::Timestamp)).collect();
    match times.as_slice() {
        [(column, _)] => Ok(by(column)),
        [] | [..] => Err(SimulateError::Setting(format!(
            "step `{step}`: which of its columns says when a row came to be is not known; say `--cut {step}=COLUMN`"
        ))),
    }
}

/// Every source whose rows are used, once, with all the rows it has today.
async fn sources(
    simulation: &Arc<Simulation>,
    fetches: &[(&Step, &Fetch)],
    cuts: &BTreeMap<StepId, Cut>,
) -> Result<BTreeMap<StepId, PathBuf>, SimulateError> {
    let dir = simulation.dir.join("sources");
    let mut files = BTreeMap::new();
    let used: BTreeSet<&StepId> = cuts.iter().map(|(step, cut)| cut.from.as_ref().unwrap_or(step)).collect();
    for (step, fetch) in fetches.iter().filter(|(step, _)| used.contains(&step.id)) {
        let to = format!("{}.csv", step.id);
        let whole = Fetch { from: fetch.from.clone(), to: to.clone(), expect: Expectations::default() };
        let at = At { data: dir.clone(), previous: None, now: None, history: &[] };
        let result = train::body(simulation, &step.id, at, Body::Fetch(&whole)).await;
        result.map_err(|error| SimulateError::Data(format!("step `{}`: {error}", step.id)))?;
        files.insert(step.id.clone(), dir.join(to));
    }
    Ok(files)
}

/// The fetch steps of one week, over the rows that were there.
async fn fetched(
    simulation: &Arc<Simulation>,
    fetches: &[(&Step, &Fetch)],
    cuts: &BTreeMap<StepId, Cut>,
    sources: &BTreeMap<StepId, PathBuf>,
    end: Timestamp,
    previous: &[(StepId, FetchOutput)],
) -> Result<FetchedWeek, SimulateError> {
    let dir = simulation.dir.join("weeks").join(end.format("%Y%m%dT%H%M%S").to_string());
    let (raw, data) = (dir.join("raw"), dir.join("data"));
    std::fs::create_dir_all(&raw).map_err(disk(&raw))?;
    let (mut outputs, mut refused) = (vec![], None);
    for (step, fetch) in fetches {
        let cut = &cuts[&step.id];
        let from = cut.from.as_ref().unwrap_or(&step.id);
        let source = sources
            .get(from)
            .ok_or_else(|| SimulateError::Setting(format!("--cut {}: `{from}` is no fetch step", step.id)))?;
        let file = raw.join(format!("{}.csv", step.id));
        write_cut(source, &file, cut, end)?;
        let path = std::path::absolute(&file).map_err(disk(&file))?;
        let here = Source::File { path: Template::literal(&path.display().to_string()) };
        let own = Fetch { from: here, to: fetch.to.clone(), expect: fetch.expect.clone() };
        let before = previous.iter().find(|(id, _)| id == &step.id);
        let before = before.and_then(|(_, output)| serde_json::to_value(output).ok());
        let at = At { data: data.clone(), previous: before, now: Some(end), history: &[] };
        let result = train::body(simulation, &step.id, at, Body::Fetch(&own)).await;
        let result = result.map_err(|error| SimulateError::Data(format!("step `{}`: {error}", step.id)))?;
        let (output, why) = match result {
            StepResult::Done { output } | StepResult::Promoted { output } => (output, None),
            StepResult::End { reason, output, .. } => (output, Some(reason)),
            StepResult::Sleep(_) => (Value::Null, None),
        };
        let output = serde_json::from_value(output)
            .map_err(|error| SimulateError::Data(format!("step `{}`: {error}", step.id)))?;
        refused = refused.or(why);
        outputs.push((step.id.clone(), output));
    }
    Ok(FetchedWeek { end, dir: data, outputs, refused })
}

fn csv_error(path: &Path) -> impl FnOnce(csv::Error) -> SimulateError + use<> {
    let path = path.display().to_string();
    move |error| SimulateError::Data(format!("{path}: {error}"))
}

fn column_of(header: &csv::StringRecord, cut: &Cut, path: &Path) -> Result<usize, SimulateError> {
    header
        .iter()
        .position(|name| name.trim() == cut.column)
        .ok_or_else(|| SimulateError::Setting(format!("{} has no column `{}`", path.display(), cut.column)))
}

/// The rows from before `end`.
fn write_cut(source: &Path, to: &Path, cut: &Cut, end: Timestamp) -> Result<(), SimulateError> {
    let mut reader = csv::Reader::from_path(source).map_err(csv_error(source))?;
    let mut writer = csv::Writer::from_writer(File::create(to).map_err(disk(to))?);
    let header = reader.headers().map_err(csv_error(source))?.clone();
    let column = column_of(&header, cut, source)?;
    let window = cut.window.and_then(|window| TimeDelta::from_std(window).ok());
    let begin = window.map_or(Timestamp::MIN_UTC, |window| end - window);
    writer.write_record(&header).map_err(csv_error(to))?;
    let mut record = csv::StringRecord::new();
    while reader.read_record(&mut record).map_err(csv_error(source))? {
        let at = moment(&record, column, source)?;
        if at.is_some_and(|at| at >= begin && at < end) {
            writer.write_record(&record).map_err(csv_error(to))?;
        }
    }
    writer.flush().map_err(disk(to))
}

/// The midnight after the newest row.
fn newest(
    cuts: &BTreeMap<StepId, Cut>,
    sources: &BTreeMap<StepId, PathBuf>,
) -> Result<Timestamp, SimulateError> {
    let mut newest: Option<Timestamp> = None;
    for (step, cut) in cuts {
        let Some(source) = sources.get(cut.from.as_ref().unwrap_or(step)) else { continue };
        let mut reader = csv::Reader::from_path(source).map_err(csv_error(source))?;
        let header = reader.headers().map_err(csv_error(source))?.clone();
        let column = column_of(&header, cut, source)?;
        let mut record = csv::StringRecord::new();
        while reader.read_record(&mut record).map_err(csv_error(source))? {
            newest = newest.max(moment(&record, column, source)?);
        }
    }
    let day = newest.and_then(|newest| newest.date_naive().checked_add_days(Days::new(1)));
    day.map(|day| day.and_time(NaiveTime::MIN).and_utc())
        .ok_or_else(|| SimulateError::Data("no row of the data says when it came to be".to_owned()))
}

/// When a row came to be: a date is its first moment, and an empty cell says that it has not yet.
fn moment(
    record: &csv::StringRecord,
    column: usize,
    path: &Path,
) -> Result<Option<Timestamp>, SimulateError> {
    let cell = record.get(column).unwrap_or_default().trim();
    if cell.is_empty() {
        return Ok(None);
    }
    parse_timestamp(cell).map(Some).ok_or_else(|| {
        let line = record.position().map_or(0, csv::Position::line);
        let shown: String = cell.chars().take(SHOWN).collect();
        SimulateError::Data(format!(
            "{}, line {line}: `{}` is neither a date nor a time: when the row came to be is not known",
            path.display(),
            shown.escape_debug()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_cut_at_the_end_of_their_week() {
        let dir = tempfile::tempdir().expect("a directory");
        let (source, to) = (dir.path().join("a.csv"), dir.path().join("b.csv"));
        let times = [
            "2026-01-01",
            "2026-01-08T10:00:00Z",
            "2026-01-14 23:59:59",
            "2026-01-15",
            "",
            // As `COPY ... CSV` prints a timestamptz, and as a `T` without a zone.
            "2026-01-14 22:59:59.5-01",
            "2026-01-14 23:30:00-01",
            "2026-01-10T12:00:00",
        ];
        let rows = times.iter().zip(1..).map(|(time, x)| format!("{time},{x}\n"));
        std::fs::write(&source, format!("day,x\n{}", rows.collect::<String>())).expect("written");
        let week = Some(std::time::Duration::from_secs(7 * 86_400));
        let end = "2026-01-15T00:00:00Z".parse().expect("a time");
        for (window, left) in [(None, "1 2 3 6 8"), (week, "2 3 6 8")] {
            let cut = Cut { from: None, column: "day".to_owned(), window };
            write_cut(&source, &to, &cut, end).expect("cut");
            let text = std::fs::read_to_string(&to).expect("written");
            let values: Vec<&str> = text.lines().skip(1).filter_map(|line| line.split(',').nth(1)).collect();
            assert_eq!(values.join(" "), left);
        }
        let unknown = Cut { from: None, column: "week".to_owned(), window: None };
        let error = write_cut(&source, &to, &unknown, end).expect_err("no such column");
        assert!(error.to_string().ends_with("has no column `week`"), "{error}");
    }

    #[test]
    fn a_row_that_does_not_say_when_it_came_to_be_is_told_with_its_line() {
        let dir = tempfile::tempdir().expect("a directory");
        let (source, to) = (dir.path().join("a.csv"), dir.path().join("b.csv"));
        std::fs::write(&source, "day,x\n2026-01-01,\"1\n2\"\nsoon,5\n").expect("written");
        let cut = Cut { from: None, column: "day".to_owned(), window: None };
        let said = "a.csv, line 4: `soon` is neither a date nor a time: when the row came to be is not known";
        let error = write_cut(&source, &to, &cut, "2026-01-15T00:00:00Z".parse().expect("a time"));
        assert!(error.expect_err("no time").to_string().ends_with(said));
        let step: StepId = "data".parse().expect("an id");
        let error = newest(&[(step.clone(), cut)].into(), &[(step, source)].into());
        assert!(error.expect_err("no time").to_string().ends_with(said));
    }
}
