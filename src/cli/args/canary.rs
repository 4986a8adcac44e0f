//! `refit canary …`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Subcommand};

use crate::domain::canary::MinTable;
use crate::domain::workflow::step::Margin;
use crate::domain::workflow::units::{self, BasisPoints};

/// `refit canary`.
#[derive(Debug, Subcommand)]
pub enum CanaryCommand {
    /// Say beforehand what a canary can show, and how long it takes
    Plan(CanaryPlan),
    /// Give an undecided canary more time: its evidence goes on
    Extend(Extend),
    /// Everything a run's canary was decided on (NDJSON), for `replay` under the same limits or others
    Minutes(CanaryMinutes),
    /// Decide over minutes of a file: one line of evidence a minute (NDJSON), then the decision
    #[command(after_help = REPLAY_FORM)]
    Replay(Replay),
}

/// `refit canary plan`.
#[derive(Debug, Clone, ClapArgs)]
pub struct CanaryPlan {
    /// Takes stages, rules and the time to decide from this workflow; options say otherwise.
    pub workflow: Option<String>,
    /// Requests of both versions together: `1000/d`, `40/h`, `100/m`, `5/s`.
    #[arg(long, value_name = "N/UNIT", value_parser = traffic)]
    pub traffic: f64,
    /// Errors of the stable version: `2%`.
    #[arg(long, value_name = "PERCENT", value_parser = rate)]
    pub base_rate: f64,
    /// Slow requests of the stable version, for a rule on latency.
    #[arg(long, value_name = "PERCENT", value_parser = rate, default_value = "5%")]
    pub slow_share: f64,
    /// Traffic of the canary [10% without a workflow].
    #[arg(long, value_name = "PERCENT", value_parser = units::parse_share)]
    pub share: Option<BasisPoints>,
    /// The time to decide: `24h`, `7d` [24h without a workflow].
    #[arg(long = "for", value_name = "TIME", value_parser = units::parse_duration)]
    pub time: Option<Duration>,
    /// An error rate that is acceptable whatever the stable version's is.
    #[arg(long, value_name = "PERCENT", value_parser = rate)]
    pub acceptable_below: Option<f64>,
    /// How canaries are judged.
    #[command(flatten)]
    pub levels: Levels,
    /// Over-dispersion of errors; 1: none, 5: they come in clusters of about three.
    #[arg(long, value_name = "PHI", value_parser = dispersion, default_value = "1")]
    pub phi: f64,
}

/// `refit canary extend`.
#[derive(Debug, Clone, ClapArgs)]
#[command(after_help = WHAT_MORE_TIME_DOES)]
pub struct Extend {
    /// The run: an id, its beginning or end, or `last`.
    pub run: String,
    /// How much: `24h`, `7d`.
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    pub by: Duration,
    /// Why, for the receipt.
    #[arg(long, alias = "why", value_parser = super::said)]
    pub reason: Option<String>,
}

/// `refit canary minutes`.
#[derive(Debug, Clone, ClapArgs)]
pub struct CanaryMinutes {
    /// The run: an id, its beginning or end, or `last`.
    pub run: String,
}

/// `refit canary replay`.
#[derive(Debug, Clone, ClapArgs)]
pub struct Replay {
    /// A file of minutes, or what `refit canary minutes` wrote; stdin when `-`.
    pub file: PathBuf,
    /// An error rate that is acceptable whatever the stable version's is.
    #[arg(long, value_name = "PERCENT", value_parser = rate)]
    pub acceptable_below: Option<f64>,
    /// How canaries are judged.
    #[command(flatten)]
    pub levels: Levels,
    /// Over-dispersion of errors, when it is known; 1: none. Learnt from the stable arm when not given.
    #[arg(long, value_name = "PHI", value_parser = dispersion)]
    pub phi: Option<f64>,
}

/// How canaries are judged.
#[derive(Debug, Clone, ClapArgs)]
pub struct Levels {
    /// The chance of ever rolling back a canary that is not worse, at most.
    #[arg(long, value_parser = chance)]
    pub alpha: Option<f64>,
    /// The chance of ever promoting a canary that is worse by the margin, at most.
    #[arg(long, value_parser = chance)]
    pub beta: Option<f64>,
    /// How much worse is too much: a ratio of errors (`1.5`, or `50%` worse), or points of the rate (`0.2pp`).
    #[arg(long, value_name = "RATIO", value_parser = margin)]
    pub margin: Option<Margin>,
    /// Requests that a table of evidence waits for, of the canary and of the stable arm; `0,0`: plain minutes.
    #[arg(long, value_name = "C,S", value_parser = min_table)]
    pub min_table: Option<MinTable>,
}

const WHAT_MORE_TIME_DOES: &str = r#"The deadline of the canary moves, from now on where it is past, and with it the end of the
step that waits for it; one that is held is held longer, and is promoted when it passes.
The evidence goes on under the same alpha and beta, which hold however long one looks.
Extensions add up. A canary that was promoted, also one that bakes, or was taken back gets
no more time."#;

const REPLAY_FORM: &str = r#"A line is a minute:
  {"t":"2026-03-01T12:00:00Z","canary":{"n":10,"e":1},"stable":{"n":90,"e":2}}
n requests, e of them errors; t may also count minutes, or be Unix time. An arm may have
`slow` (requests slower than a threshold; `timed`: of how many, all when absent), a line
`pairs` ([[canary, stable], …] absolute prediction errors): if one line has them, all do.
What `refit canary minutes` wrote has the limits, stages and horizons it was decided by:
the same is decided again, or what other limits would have made of it."#;

/// Requests a day.
fn traffic(text: &str) -> Result<f64, String> {
    const FORM: &str = "write a number and a time, such as `1000/d`, `40/h`, `100/m` or `5/s`";
    let (number, unit) = text.split_once('/').ok_or(FORM)?;
    let a_day = match unit {
        "d" | "day" => 1.0,
        "h" | "hour" => 24.0,
        "m" | "min" => 1440.0,
        "s" => 86_400.0,
        _ => return Err(FORM.to_owned()),
    };
    let number = finite(number).map_err(|_| FORM)?;
    if number > 0.0 && number < 1e12 { Ok(number * a_day) } else { Err(FORM.to_owned()) }
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = finite(text)?;
    if rate > 0.0 && rate < 1.0 {
        Ok(rate)
    } else {
        Err("write a percentage above 0% and below 100%, such as `2%`".to_owned())
    }
}

fn finite(text: &str) -> Result<f64, String> {
    let (digits, scale) = match text.strip_suffix('%') {
        Some(percent) => (percent, 100.0),
        None => (text, 1.0),
    };
    let number = digits.parse::<f64>().ok().filter(|number| number.is_finite());
    number.map(|number| number / scale).ok_or_else(|| format!("`{text}` is not a number"))
}

fn chance(text: &str) -> Result<f64, String> {
    let chance = finite(text)?;
    if chance > 0.0 && chance < 0.5 { Ok(chance) } else { Err("it is above 0 and below 0.5".to_owned()) }
}

fn margin(text: &str) -> Result<Margin, String> {
    if text.ends_with("pp") {
        return units::parse_points(text).map(|points| Margin::Points { points });
    }
    let number = finite(text.strip_suffix('x').unwrap_or(text))?;
    let ratio = if text.ends_with('%') { 1.0 + number } else { number };
    let valid = ratio > 1.0 && ratio <= 1000.0;
    let wrong = || "write a ratio above 1, such as `1.5`, or `50%`, or points such as `0.2pp`".to_owned();
    valid.then_some(Margin::Ratio(ratio)).ok_or_else(wrong)
}

fn dispersion(text: &str) -> Result<f64, String> {
    let phi = finite(text)?;
    if phi >= 0.0 { Ok(phi) } else { Err("it is 0 or more".to_owned()) }
}

fn min_table(text: &str) -> Result<MinTable, String> {
    let counts = text.split_once(',').and_then(|(canary, stable)| {
        Some(MinTable { canary: canary.trim().parse().ok()?, stable: stable.trim().parse().ok()? })
    });
    counts.ok_or_else(|| "write two counts, such as `2,10`".to_owned())
}
