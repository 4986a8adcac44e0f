//! Is the holdout what came after the training data, or rows picked at random
//! from among it? A model that was trained on the days around every row of its
//! holdout is better there than it will ever be on the days to come.

use super::holdout::Holdout;
use super::words::percent;
use crate::domain::Timestamp;
use crate::domain::expect::parse_timestamp;

/// A holdout of more of the rows than this may well reach far back.
const MOST_OF_THE_ROWS: f64 = 0.5;
/// So much of the holdout lies before the place that is looked at: a stray early block is no random split.
const EARLY_ROWS: f64 = 0.1;
/// A holdout that came after its training data begins later than this part of the time.
const EARLY_PART: f64 = 0.3;
/// Blocks that name no time say nothing; so many rows may be in such ones.
const UNNAMED: f64 = 0.1;

/// The time that the fetched rows are of.
#[derive(Debug, Clone, PartialEq)]
pub struct DataSpan {
    /// The column that says it.
    pub column: String,
    /// Its earliest value.
    pub first: Timestamp,
    /// Its latest.
    pub last: Timestamp,
    /// The rows.
    pub rows: u64,
}

/// A warning when the holdout's blocks, named by their time, begin where the data begins although they are the lesser
/// part of it. Nothing is said where blocks have other names, or too little is known.
pub fn random_split(holdout: &Holdout, data: &DataSpan) -> Option<String> {
    let share = holdout.rows(None) as f64 / data.rows.max(1) as f64;
    let span = (data.last - data.first).as_seconds_f64();
    if share > MOST_OF_THE_ROWS || span <= 0.0 {
        return None;
    }
    let mut blocks: Vec<(Timestamp, u64)> =
        holdout.blocks().filter_map(|(name, rows)| Some((time_of(name)?, rows))).collect();
    let named: u64 = blocks.iter().map(|(_, rows)| rows).sum();
    if (named as f64) < (1.0 - UNNAMED) * holdout.rows(None) as f64 {
        return None;
    }
    blocks.sort_unstable();
    let mut before = 0;
    let early = blocks.iter().find(|(_, rows)| {
        before += rows;
        before as f64 >= EARLY_ROWS * named as f64
    });
    let place = (early?.0 - data.first).as_seconds_f64() / span;
    (place < EARLY_PART).then(|| {
        format!(
            "the holdout looks like a random split over time-ordered data: {} of the rows, and they begin in the first \
             {} of the time in `{}` ({} to {}). Hold out the latest rows instead: what the model will meet comes after \
             all that it was trained on",
            percent((share * 100.0).round() / 100.0),
            percent(EARLY_PART),
            data.column,
            data.first.format("%F"),
            data.last.format("%F")
        )
    })
}

/// A block that is called after its day or time, such as `2026-11-21` or `2026-11-21 race 5`.
fn time_of(block: &str) -> Option<Timestamp> {
    parse_timestamp(block).or_else(|| parse_timestamp(block.get(..10)?))
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    fn data(rows: u64) -> DataSpan {
        let first = "2026-01-01T00:00:00Z".parse().expect("a time");
        DataSpan { column: "race_date".to_owned(), first, last: first + TimeDelta::days(99), rows }
    }

    /// Ten rows on each of these days of a hundred.
    fn held_out(days: impl Iterator<Item = i64>, suffix: &str) -> Holdout {
        let mut holdout = Holdout::default();
        for day in days {
            let day = (data(0).first + TimeDelta::days(day)).format("%F").to_string();
            for row in 0..10 {
                holdout.row(&format!("{day}{suffix}"), "", f64::from(row), 1.0, None).expect("finite");
            }
        }
        holdout
    }

    #[test]
    fn rows_from_all_over_the_time_are_a_random_split() {
        let random = held_out((0..100).filter(|day| day % 5 == 2), " race 7");
        insta::assert_snapshot!(random_split(&random, &data(1000)).expect("said"), @"the holdout looks like a random split over time-ordered data: 20 % of the rows, and they begin in the first 30 % of the time in `race_date` (2026-01-01 to 2026-04-10). Hold out the latest rows instead: what the model will meet comes after all that it was trained on");
    }

    #[test]
    fn the_latest_rows_and_what_cannot_be_told_are_not() {
        let latest = held_out(80..100, "");
        assert_eq!(random_split(&latest, &data(1000)), None);
        let with_a_stray_day = held_out((80..100).chain([3]), "");
        assert_eq!(random_split(&with_a_stray_day, &data(1000)), None);
        let random = held_out((0..100).filter(|day| day % 5 == 2), "");
        assert_eq!(random_split(&random, &data(300)), None, "it is most of the data");
        let mut unnamed = Holdout::default();
        unnamed.row("race 5", "", 1.0, 1.0, None).expect("finite");
        assert_eq!(random_split(&unnamed, &data(1000)), None);
        assert_eq!(random_split(&Holdout::default(), &data(1000)), None);
    }
}
