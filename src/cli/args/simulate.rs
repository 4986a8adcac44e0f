//! `refit simulate`.

use std::path::PathBuf;
use std::time::Duration;

use chrono::NaiveDate;
use clap::Args as ClapArgs;

use crate::domain::id::StepId;
use crate::domain::workflow::units;
use crate::simulate::Cut;

/// `refit simulate`.
#[derive(Debug, Clone, ClapArgs)]
#[command(after_help = POLICY_FORM)]
pub struct Simulate {
    /// The workflow.
    pub workflow: String,
    /// How far back: whole weeks, such as `26w`.
    #[arg(long, value_name = "WEEKS", value_parser = weeks)]
    pub last: usize,
    /// The day after the last week [the day after the newest row].
    #[arg(long, value_name = "DATE")]
    pub until: Option<NaiveDate>,
    /// An input of the workflow's runs, as KEY=VALUE.
    #[arg(short, long = "input", value_name = "KEY=VALUE", value_parser = super::key_value)]
    pub inputs: Vec<(String, String)>,
    /// Which rows a fetch step had by when: STEP=COLUMN, a column with a date or a time. `STEP=COLUMN:7d`: only rows of
    /// the 7 days before; `STEP=OTHER.COLUMN`: rows of the source of step OTHER.
    #[arg(long = "cut", value_name = "STEP=COLUMN", value_parser = cut)]
    pub cuts: Vec<(StepId, Cut)>,
    /// A file of policies to try beside the workflow's own, in place of the built-in ones.
    #[arg(long, value_name = "FILE")]
    pub policies: Option<PathBuf>,
    /// Weeks after a decision that say whether it was right.
    #[arg(long, value_name = "WEEKS", value_parser = weeks, default_value = "4w")]
    pub horizon: usize,
    /// Smaller differences count as none.
    #[arg(long, value_name = "PERCENT", value_parser = fraction, default_value = "1%")]
    pub worth: f64,
    /// Trainings at once [one a core].
    #[arg(long, value_name = "N")]
    pub jobs: Option<usize>,
}

const POLICY_FORM: &str = r#"A file of policies is TOML; what is left out is as the workflow has it:
  [[policy]]
  name = "strict"
  worse_by_at_most = "0%"     # of the gate's comparisons with the champion
  confidence = "95%"          # of those comparisons; "none": by value alone
  margin = "5%"               # of the canary's rule on prediction errors
  alpha = "1%"                # of the canary
  at_most = "14d"             # the canary is inconclusive after this
  gate = true                 # false: without it
  canary = true               # false: without it

Finished trainings are kept in .refit/simulate/ and found again."#;

fn weeks(text: &str) -> Result<usize, String> {
    const FORM: &str = "write whole weeks, such as `26w`";
    let weeks: usize = text.strip_suffix('w').ok_or(FORM)?.parse().map_err(|_| FORM)?;
    if (1..=520).contains(&weeks) { Ok(weeks) } else { Err("it is between 1w and 520w".to_owned()) }
}

/// A percentage as a fraction; below 0 where that makes sense.
pub fn fraction(text: &str) -> Result<f64, String> {
    let digits = text.strip_suffix('%').ok_or("write a percentage, such as `2%`")?;
    let number = digits.trim().parse::<f64>().ok().filter(|number| number.is_finite());
    number.map(|number| number / 100.0).ok_or_else(|| format!("`{text}` is not a percentage"))
}

fn cut(text: &str) -> Result<(StepId, Cut), String> {
    let (step, rest) = text.split_once('=').ok_or("write STEP=COLUMN")?;
    let (column, window) = match rest.rsplit_once(':') {
        Some((column, window)) => (column, Some(units::parse_duration(window)?)),
        None => (rest, None::<Duration>),
    };
    let (from, column) = match column.split_once('.') {
        Some((from, column)) => (Some(from.parse().map_err(|error| format!("{error}"))?), column),
        None => (None, column),
    };
    if column.is_empty() {
        return Err("write STEP=COLUMN".to_owned());
    }
    let step = step.parse().map_err(|error| format!("{error}"))?;
    Ok((step, Cut { from, column: column.to_owned(), window }))
}
