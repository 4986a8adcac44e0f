//! Reference values, computed with 45 digits or more; every one is a test.
//! `A_large_table_log_e` sums the terms of tables of up to 10^7 requests an arm
//! one by one in decimal arithmetic, without the methods used here.

use serde_json::Value;

/// One section of the file, row by row.
pub(crate) fn rows(section: &str) -> Vec<Value> {
    let text = include_str!("../../../tests/vectors/canary.json");
    let mut file: Value = serde_json::from_str(text).expect("the vector file is JSON");
    match file[section].take() {
        Value::Array(rows) => rows,
        row @ Value::Object(_) => vec![row],
        other => panic!("no section {section}: {other}"),
    }
}

pub(crate) fn number(row: &Value, key: &str) -> f64 {
    row[key].as_f64().unwrap_or_else(|| panic!("no number {key} in {row}"))
}

pub(crate) fn numbers(row: &Value, key: &str) -> Vec<f64> {
    let list = row[key].as_array().unwrap_or_else(|| panic!("no list {key} in {row}"));
    list.iter().map(|value| value.as_f64().expect("a number")).collect()
}

/// Equal to 1e-9 of the expected value.
#[track_caller]
pub(crate) fn assert_close(found: f64, expected: f64, context: &Value) {
    let tolerance = if expected == 0.0 { 1e-12 } else { 1e-9 * expected.abs() };
    assert!((found - expected).abs() <= tolerance, "found {found}, expected {expected} in {context}");
}
