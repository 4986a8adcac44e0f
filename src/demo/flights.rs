//! A year of real flights, week by week and day by day.

use std::io::Read;
use std::path::Path;

use chrono::{Datelike, NaiveDate, TimeDelta, TimeZone};
use chrono_tz::America::New_York;

use crate::domain::Timestamp;

static DATA: &[u8] = include_bytes!("../../examples/flights/flights.csv.gz");

/// One flight.
#[derive(Debug, Clone)]
pub struct Flight {
    /// Its day.
    pub date: NaiveDate,
    /// Weeks of seven days from 1 January.
    pub week: u32,
    /// `origin-destination`.
    pub route: String,
    /// Hour of departure.
    hour: u32,
    /// Minutes in the air, the target; `None` when it was cancelled or diverted.
    pub air_time: Option<f64>,
    /// All columns as text, in the order of `Flights::columns`.
    cells: Vec<String>,
}

impl Flight {
    /// When it lands, and its air time is known.
    pub fn lands_at(&self) -> Option<Timestamp> {
        let minutes = self.air_time? as i64;
        let start = New_York
            .with_ymd_and_hms(self.date.year(), self.date.month(), self.date.day(), self.hour.min(23), 0, 0)
            .earliest()?;
        Some(start.to_utc() + TimeDelta::minutes(minutes))
    }
}

/// All flights, in order.
pub struct Flights {
    columns: Vec<String>,
    flights: Vec<Flight>,
}

impl Flights {
    /// The flights embedded in the program.
    pub fn embedded() -> Result<Self, csv::Error> {
        let mut text = String::new();
        flate2::read::GzDecoder::new(DATA).read_to_string(&mut text)?;
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let columns: Vec<String> = reader.headers()?.iter().map(ToOwned::to_owned).collect();
        let mut flights = vec![];
        for record in reader.records() {
            let record = record?;
            let cell = |name: &str| {
                let index = columns.iter().position(|column| column == name);
                index.and_then(|index| record.get(index)).unwrap_or_default()
            };
            let Ok(date) = cell("date").parse::<NaiveDate>() else { continue };
            flights.push(Flight {
                date,
                week: cell("week").parse().unwrap_or_default(),
                route: format!("{}-{}", cell("origin"), cell("dest")),
                hour: cell("hour").parse().unwrap_or_default(),
                air_time: cell("air_time").parse().ok(),
                cells: record.iter().map(ToOwned::to_owned).collect(),
            });
        }
        Ok(Self { columns, flights })
    }

    /// Flights of one day that took place; nobody asks how long the others will be in the air.
    pub fn of_day(&self, date: NaiveDate) -> impl Iterator<Item = &Flight> {
        self.flights.iter().filter(move |flight| flight.date == date && flight.air_time.is_some())
    }

    /// What the model may look at: every column but the target, numbers as numbers.
    pub fn features(&self, flight: &Flight) -> serde_json::Map<String, serde_json::Value> {
        let cells = self.columns.iter().zip(&flight.cells);
        cells
            .filter(|(column, _)| column.as_str() != "air_time")
            .map(|(column, cell)| {
                let number = cell.parse::<f64>().ok().filter(|number| number.is_finite());
                (column.clone(), number.map_or_else(|| cell.as_str().into(), Into::into))
            })
            .collect()
    }

    /// Writes the flights of these weeks as CSV.
    pub fn write(&self, weeks: std::ops::RangeInclusive<u32>, path: &Path) -> Result<(), csv::Error> {
        let mut writer = csv::Writer::from_path(path)?;
        writer.write_record(&self.columns)?;
        for flight in self.flights.iter().filter(|flight| weeks.contains(&flight.week)) {
            writer.write_record(&flight.cells)?;
        }
        writer.flush()?;
        Ok(())
    }
}

/// 04:00 in New York on the Tuesday after `week`.
pub fn retrain_time(week: u32) -> Timestamp {
    local(first_day() + TimeDelta::days(7 * i64::from(week)), 4)
}

/// `hour` o'clock in New York on `date`.
pub fn local(date: NaiveDate, hour: u32) -> Timestamp {
    let time = New_York.with_ymd_and_hms(date.year(), date.month(), date.day(), hour, 0, 0);
    // 04:00 and later exist on every day, also when the clocks change at 02:00.
    time.earliest().map_or(Timestamp::UNIX_EPOCH, |time| time.to_utc())
}

/// The day of `at` in New York.
pub fn day(at: Timestamp) -> NaiveDate {
    at.with_timezone(&New_York).date_naive()
}

fn first_day() -> NaiveDate {
    NaiveDate::from_ymd_opt(2013, 1, 1).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sixth_of_the_blizzard_weeks_flights_have_no_air_time() {
        let flights = Flights::embedded().expect("the embedded data");
        let of = |week| {
            let of_week = flights.flights.iter().filter(|flight| flight.week == week);
            let missing = of_week.clone().filter(|flight| flight.air_time.is_none()).count();
            (missing, of_week.count())
        };
        assert_eq!((of(4), of(6), of(10)), ((17, 628), (101, 625), (52, 639)));
    }

    #[test]
    fn retrains_are_on_tuesday_at_four_in_new_york() {
        assert_eq!(retrain_time(4).to_rfc3339(), "2013-01-29T09:00:00+00:00");
        assert_eq!(retrain_time(16).to_rfc3339(), "2013-04-23T08:00:00+00:00");
    }

    #[test]
    fn the_target_is_not_a_feature() {
        let flights = Flights::embedded().expect("the embedded data");
        let features = flights.features(&flights.flights[0]);
        assert!(!features.contains_key("air_time") && features["distance"].is_number());
    }
}
