//! The predict command on two versions: what it is given, and its predictions
//! read back, one for each row.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::path::Path;

use csv::ByteRecord;

use super::rows::Rows;
use crate::domain::id::VersionName;
use crate::domain::workflow::step::Run;
use crate::steps::context::{StepContext, StepError};
use crate::steps::run::guarded::{self, Paths, absolute_or_same};
use crate::steps::run::{champion, regular_size};

/// Bytes of `$REFIT_PREDICTIONS`.
const FILE_LIMIT: u64 = 64 * 1024 * 1024;

/// The predictions of champion and candidate, by row.
pub(super) async fn both(
    command: &Run,
    ctx: &StepContext<'_>,
    rows: &Rows,
    (champion, candidate): (&VersionName, &VersionName),
) -> Result<Vec<(f64, f64)>, StepError> {
    let stable = one(command, ctx, rows, champion, "champion").await?;
    let canary = one(command, ctx, rows, candidate, "candidate").await?;
    Ok(stable.into_iter().zip(canary).collect())
}

async fn one(
    command: &Run,
    ctx: &StepContext<'_>,
    rows: &Rows,
    version: &VersionName,
    who: &str,
) -> Result<Vec<f64>, StepError> {
    let called = format!("the {who}");
    let model = tokio::select! {
        model = champion::files_of(ctx, version, &called) => model?,
        () = ctx.cancel.cancelled() => return Err(StepError::Interrupted),
    };
    let paths = Paths::prepare(ctx, Some(who))?;
    let predictions = paths.attempt.join("predictions.csv");
    let given = [
        ("REFIT_MODEL", OsString::from(absolute_or_same(&model))),
        ("REFIT_ROWS", OsString::from(&rows.file)),
        ("REFIT_PREDICTIONS", OsString::from(&predictions)),
    ];
    guarded::execute(command, ctx, &paths, given).await?;
    read(&predictions, rows).map_err(|problem| {
        guarded::refused(ctx, &format!("its $REFIT_PREDICTIONS for the {who} {version} {problem}"))
    })
}

/// The prediction of each row, in the order of the rows.
fn read(path: &Path, rows: &Rows) -> Result<Vec<f64>, String> {
    let Some(size) = regular_size(path, "$REFIT_PREDICTIONS")? else {
        return Err("were not written".to_owned());
    };
    if size > FILE_LIMIT {
        return Err(format!("have {size} bytes; {FILE_LIMIT} are read at most"));
    }
    let file = File::open(path).map_err(|error| format!("cannot be read: {error}"))?;
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(file);
    let form = |error: csv::Error| format!("are not valid: {error}");
    let mut record = ByteRecord::new();
    reader.read_byte_record(&mut record).map_err(form)?;
    let place = |name: &str| {
        let found = record.iter().position(|cell| cell.trim_ascii() == name.as_bytes());
        found.ok_or_else(|| format!("have no column `{name}`"))
    };
    let (id, prediction) = (place("id")?, place("prediction")?);
    let mut wanted: HashMap<&[u8], Option<f64>> =
        rows.rows.iter().map(|row| (row.id.as_bytes(), None)).collect();
    while reader.read_byte_record(&mut record).map_err(form)? {
        let line = record.position().map_or(0, csv::Position::line);
        let cell = |place: usize| record.get(place).unwrap_or_default().trim_ascii();
        let name = || String::from_utf8_lossy(cell(id)).escape_debug().to_string();
        let Some(slot) = wanted.get_mut(cell(id)) else {
            return Err(format!("line {line}: nobody asked for the id `{}`", name()));
        };
        let number = std::str::from_utf8(cell(prediction)).ok().and_then(|text| text.parse::<f64>().ok());
        let Some(number) = number.filter(|number| number.is_finite()) else {
            return Err(format!("line {line}: the prediction of `{}` is no finite number", name()));
        };
        if slot.replace(number).is_some() {
            return Err(format!("line {line}: `{}` is there a second time", name()));
        }
    }
    let predictions = rows.rows.iter().map(|row| {
        let found = wanted.get(row.id.as_bytes()).copied().flatten();
        found.ok_or_else(|| format!("lack the id `{}`", row.id.escape_debug()))
    });
    predictions.collect()
}
