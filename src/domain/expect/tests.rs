use super::*;
use crate::domain::workflow::step::{OnStale, RowBounds};

fn now() -> Timestamp {
    "2026-11-21T15:00:00Z".parse().expect("a time")
}

fn inspect(expect: &Expectations, csv: &str, previous: Option<u64>) -> Findings {
    let mut lines = csv.lines();
    let header = lines.next().expect("a header");
    let mut inspection = Inspection::new(expect, header.split(','), now());
    lines.for_each(|line| inspection.row(line.split(',')));
    inspection.finish(previous)
}

fn columns(list: &[(&str, ColumnType)]) -> Vec<(String, ColumnType)> {
    list.iter().map(|(name, kind)| ((*name).to_owned(), *kind)).collect()
}

#[test]
fn good_rows_pass_and_dates_are_told() {
    let expect = Expectations {
        columns: columns(&[("id", ColumnType::Int), ("day", ColumnType::Date)]),
        rows: RowBounds { min: Some(2), max: Some(2), min_vs_previous: Some(0.95) },
        unique: vec!["id".to_owned(), "day".to_owned()],
        ..Expectations::default()
    };
    let found = inspect(&expect, "id,day\n1,2026-11-20\n1,2026-11-03\n", Some(2));
    assert_eq!(found.violations, Vec::<String>::new());
    assert_eq!(found.stale, None);
    assert_eq!(found.columns[1].min.as_deref(), Some("2026-11-03"));
    assert_eq!(found.columns[1].max.as_deref(), Some("2026-11-20"));
}

#[test]
fn every_violation_is_told_at_once_with_its_numbers() {
    let expect = Expectations {
        columns: columns(&[
            ("id", ColumnType::Int),
            ("finish_s", ColumnType::Float),
            ("gone", ColumnType::Bool),
            ("race_date", ColumnType::Date),
        ]),
        rows: RowBounds { min: Some(20_000), max: None, min_vs_previous: Some(0.95) },
        newest: Some(Newest {
            column: "race_date".to_owned(),
            max_age: Duration::from_secs(10 * 86_400),
            on_stale: OnStale::Skip,
        }),
        null_rate: vec![("finish_s".to_owned(), 0.01)],
        unique: vec!["id".to_owned()],
    };
    let csv = "id,finish_s,race_date\n1,,2026-11-01\n1,nan,2026-13-01\nx,3.5,2062-01-01\n";
    let found = inspect(&expect, csv, Some(4));
    insta::assert_snapshot!(found.violations.join("\n"), @r"
    columns missing: gone; the file has id, finish_s, race_date
    3 rows, fewer than the 20000 expected
    3 rows are 75.0 % of the last fetch's 4; at least 95 % expected
    `id` is not a whole number in 1 of 3 rows, first in row 3: `x`
    `finish_s` is not a finite number in 1 of 3 rows, first in row 2: `nan`
    `race_date` is not a date (YYYY-MM-DD) in 1 of 3 rows, first in row 2: `2026-13-01`
    `finish_s` is empty in 1 of 3 rows, 33.3 %; at most 1 % expected
    (id) repeats in 1 rows, first in row 2: (1)
    ");
    insta::assert_snapshot!(found.stale.expect("stale"),
        @"the newest `race_date` is 2026-11-01, 20 d old; at most 10 d expected");
}

#[test]
fn a_date_is_a_whole_day() {
    let newest = |days: u64| Expectations {
        columns: columns(&[("day", ColumnType::Date)]),
        newest: Some(Newest {
            column: "day".to_owned(),
            max_age: Duration::from_secs(days * 86_400),
            on_stale: OnStale::Fail,
        }),
        ..Expectations::default()
    };
    assert_eq!(inspect(&newest(10), "day\n2026-11-11\n", None).stale, None);
    assert!(inspect(&newest(9), "day\n2026-11-11\n", None).stale.is_some());
    assert_eq!(inspect(&newest(9), "day\n\n", None).violations.len(), 1, "no date at all");
    assert_eq!(inspect(&newest(9), "day\n2099-01-01\n", None).violations.len(), 1, "only the future");
}

#[test]
fn cells_are_told_by_type() {
    let fits = |kind, cell: &str| {
        let expect = Expectations { columns: columns(&[("c", kind)]), ..Expectations::default() };
        inspect(&expect, &format!("c\n{cell}\n"), None).violations.is_empty()
    };
    for cell in ["0", "-12", "+7", "123456789012345678901234567890"] {
        assert!(fits(ColumnType::Int, cell), "{cell}");
    }
    for cell in ["1.0", "1e3", "-", " 1", "0x1", "١"] {
        assert!(!fits(ColumnType::Int, cell), "{cell}");
    }
    for cell in ["NaN", "inf", "-Infinity", "1e999", "1,5", "abc"] {
        assert!(!fits(ColumnType::Float, cell) || cell.contains(','), "{cell}");
    }
    for cell in [
        "2026-11-21T10:00:00Z",
        "2026-11-21 10:00:00",
        "2026-11-21 10:00:00.123+02",
        "2026-11-21 10:00:00+02:00",
        "2026-11-21",
    ] {
        assert!(fits(ColumnType::Timestamp, cell), "{cell}");
    }
    for cell in ["2026-1-5", "21.11.2026", "2026-02-30", "2026-11-21 10:00:00"] {
        assert!(!fits(ColumnType::Date, cell), "{cell}");
    }
    for cell in ["true", "F", "1"] {
        assert!(fits(ColumnType::Bool, cell), "{cell}");
    }
    assert!(!fits(ColumnType::Bool, "yes"));
}

#[test]
fn a_composite_key_keeps_its_parts_apart() {
    let expect = Expectations { unique: vec!["a".to_owned(), "b".to_owned()], ..Expectations::default() };
    assert_eq!(inspect(&expect, "a,b\nx,yz\nxy,z\n", None).violations, Vec::<String>::new());
    assert_eq!(inspect(&expect, "a,b\nx,y\nx,y\n", None).violations.len(), 1);
}

#[test]
fn a_column_that_is_there_twice_matters_only_when_it_is_expected() {
    let expect = Expectations { columns: columns(&[("id", ColumnType::Int)]), ..Expectations::default() };
    assert_eq!(inspect(&expect, "id,id,x\n1,2,3\n", None).violations, ["columns there twice: id"]);
    assert_eq!(inspect(&expect, "id,x,x\n1,2,3\n", None).violations, Vec::<String>::new());
}

#[test]
fn an_empty_file_does_not_pass_a_null_rate_or_newest() {
    let expect =
        Expectations { rows: RowBounds { min: Some(1), ..RowBounds::default() }, ..Expectations::default() };
    assert_eq!(inspect(&expect, "a\n", None).violations, ["0 rows, fewer than the 1 expected"]);
}

proptest::proptest! {
    #[test]
    fn no_cell_breaks_the_pass(cells in proptest::collection::vec("\\PC{0,12}", 0..40)) {
        let expect = Expectations {
            columns: columns(&[("a", ColumnType::Timestamp)]),
            unique: vec!["a".to_owned()],
            ..Expectations::default()
        };
        let mut inspection = Inspection::new(&expect, ["a"], now());
        cells.iter().for_each(|cell| inspection.row(std::iter::once(cell.as_str())));
        let found = inspection.finish(None);
        proptest::prop_assert_eq!(found.rows, cells.len() as u64);
        let bad = cells.iter().any(|cell| !cell.is_empty() && parse_timestamp(cell).is_none());
        proptest::prop_assert!(!bad || !found.violations.is_empty());
    }
}
