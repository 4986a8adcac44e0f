//! The figures as a page, and which of them miss their bar.

use std::fmt::Write as _;
use std::path::Path;

use crate::latency;
use crate::row::{ALPHA, BETA, Ends, Measured, STRICT};
use crate::small;

/// The oracle's mean delay may be exceeded by this factor.
const DELAY: f64 = 1.3;
/// Milliseconds of a look.
const LOOK_MS: f64 = 1.0;
/// Hours within which a canary that fails everything is gone, by requests a day.
const HOURS: [(f64, f64); 3] = [(50.0, 48.0), (200.0, 12.0), (1000.0, 4.0)];

const HEAD: &str = "\
# How often the analysis is wrong

Written by `cargo bench --bench decisions` with refit's own decision code, fixed seeds, and
ALPHA_RUNS simulated days a row. A day has 1,440 looks; 10 % of the requests go to the canary.

* **alpha** is the chance of ever rolling back a canary that is not worse, **beta** that of ever
  promoting one that is worse by the margin. Both hold for any number of looks.
* A cell is the share of days that ended in a rollback, and the median number of the canary's
  requests until then.
* *one look*: after a day, rolled back at 5 % errors or more. *Flagger*: rolled back at the fifth
  minute below 99 % success, which is never reset. *z at every look*: a one-sided 5 % test, looked
  at every minute. *knows both rates*: the best any test at 5 % can do on average.
* *delay*: refit's mean number of requests until the rollback (or the end of the day) over that of
  the test that knows both rates; at most 1.3 is wanted.
* *shown not worse*: the share of days in which \"not 1.5x worse\" (in rows of 2x: \"not 2x worse\")
  was shown at beta 5 %, and the median minute. In rows of a canary exactly that much worse it is
  the share of wrong promotions.
* *drift*: traffic and errors swing by half between day and night, 30 % of all requests fail for
  half an hour whoever serves them, and the split goes from 10 % to 25 % to 50 %. *clustered*:
  errors come in clusters of three on average.
";

/// Known from the specification of the method, which has 17 % and 9.4 % where errors are rarest.
const CLUSTERED: &str = "
## Errors in clusters

One client that tries again makes several errors of one. How much the errors vary beyond chance is
learnt from the stable version, from 12 hours before the canary on, and the evidence is divided by it:
the rows of clustered errors take longer to show anything, and keep their alpha. Clusters that are
wider than a minute, or correlate over hours, are not seen by this: count affected users or sessions
there in place of requests.
";

pub fn write(
    path: &Path,
    runs: usize,
    look: &latency::Measured,
    rows: &[Measured],
    cases: &[small::Measured],
) -> std::io::Result<()> {
    let mut text = HEAD.replace("ALPHA_RUNS", &grouped(runs as f64));
    for per_minute in [1000.0, 100.0] {
        // Writing to a string cannot fail.
        let _ = write!(text, "\n## {} requests a minute\n\n", grouped(per_minute));
        text.push_str("| stable | canary | one look | Flagger | z at every look | **refit 5 %** | **refit 1 %** | knows both rates | delay | shown not worse |\n");
        text.push_str("|---|---|---|---|---|---|---|---|---|---|\n");
        for row in rows.iter().filter(|row| row.requests_per_minute == per_minute) {
            let delay = row.delay.map_or("–".to_owned(), |delay| format!("{delay:.2}"));
            let at = row.promoted_at.map_or(String::new(), |minute| format!(", {minute:.0} min"));
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | **{}** | **{}** | {} | {delay} | {}{at} |",
                percent(row.base),
                row.canary,
                cell(&row.naive),
                cell(&row.flagger),
                cell(&row.peeking),
                cell(&row.refit),
                cell(&row.refit_strict),
                if row.ratio > 1.0 { cell(&row.oracle) } else { "–".to_owned() },
                percent(row.promoted),
            );
        }
    }
    text.push_str(
        "\n## Little traffic\n\nA week, 10 % canary; traffic swings by nine tenths and errors by half between day \
         and night; alpha 5 %. Tables wait\nuntil the canary has 2 and the stable version 10 requests; *plain \
         minutes* do not wait. Hours are medians.\n\n",
    );
    text.push_str("| requests a day | stable | canary | **rolled back** | **after** | with plain minutes | after |\n|---|---|---|---|---|---|---|\n");
    for case in cases {
        let hours = |hours: Option<f64>| hours.map_or("–".to_owned(), |hours| format!("{hours:.1} h"));
        let _ = writeln!(
            text,
            "| {} | {} | {} | **{}** | **{}** | {} | {} |",
            grouped(case.requests_per_day),
            percent(case.base),
            case.canary,
            percent(case.rollback),
            hours(case.hours),
            percent(case.rollback_plain),
            hours(case.hours_plain),
        );
    }
    let _ = write!(
        text,
        "\n## What a look costs\n\nAt {} requests a minute, interval included: {:.2} ms (median of {} looks).\n",
        grouped(look.requests_per_minute),
        look.median_ms,
        look.looks,
    );
    text.push_str(CLUSTERED);
    let missed = missed(rows, cases, look);
    text.push_str("\n## Where it falls short\n\n");
    if missed.is_empty() {
        text.push_str("Every row is within its bounds, to three standard errors.\n");
    }
    for miss in missed {
        let _ = writeln!(text, "* {miss}");
    }
    std::fs::write(path, text)
}

/// Rows beyond their bounds by more than three standard errors.
pub fn missed(rows: &[Measured], cases: &[small::Measured], look: &latency::Measured) -> Vec<String> {
    let mut missed = vec![];
    let above = |found: f64, limit: f64, runs: usize| {
        found > limit + 3.0 * (limit * (1.0 - limit) / runs as f64).sqrt()
    };
    for row in rows {
        let of = format!(
            "{} requests a minute, {} errors, canary {}",
            grouped(row.requests_per_minute),
            percent(row.base),
            row.canary
        );
        if row.ratio == 1.0 {
            for (ends, limit) in [(&row.refit, ALPHA), (&row.refit_strict, STRICT)] {
                if above(ends.rollback, limit, row.runs) {
                    missed.push(format!(
                        "{of}: {} false rollbacks, alpha {}",
                        percent(ends.rollback),
                        percent(limit)
                    ));
                }
            }
        }
        if row.ratio == row.margin && above(row.promoted, BETA, row.runs) {
            missed.push(format!("{of}: {} false promotions, beta {}", percent(row.promoted), percent(BETA)));
        }
        if let Some(delay) = row.delay.filter(|delay| *delay > DELAY) {
            missed.push(format!("{of}: mean delay {delay:.2}x that of the test that knows both rates"));
        }
    }
    for case in cases {
        let of = format!("{} requests a day, {} errors", grouped(case.requests_per_day), percent(case.base));
        if !case.fails_everything && above(case.rollback, ALPHA, case.runs) {
            missed.push(format!(
                "{of}: {} false rollbacks, alpha {}",
                percent(case.rollback),
                percent(ALPHA)
            ));
        }
        let bar = HOURS
            .iter()
            .find(|(per_day, _)| *per_day == case.requests_per_day)
            .map_or(24.0, |(_, hours)| *hours);
        if case.fails_everything && case.hours.is_none_or(|hours| hours > bar) {
            missed.push(format!("{of}: a canary that fails everything is not gone within {bar} h"));
        }
    }
    if look.median_ms > LOOK_MS {
        missed.push(format!("a look takes {:.2} ms", look.median_ms));
    }
    missed
}

fn cell(ends: &Ends) -> String {
    match ends.median {
        Some(median) => format!("{} / {}", percent(ends.rollback), grouped(median)),
        None => percent(ends.rollback),
    }
}

fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    let digits = if percent == percent.round() { 0 } else { 1 };
    format!("{percent:.digits$} %")
}

fn grouped(count: f64) -> String {
    let digits = format!("{count:.0}");
    let comma = |place: usize| place > 0 && (digits.len() - place).is_multiple_of(3);
    digits
        .chars()
        .enumerate()
        .flat_map(|(place, digit)| comma(place).then_some(',').into_iter().chain([digit]))
        .collect()
}
