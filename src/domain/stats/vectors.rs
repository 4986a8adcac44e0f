//! Reference values, computed with 50 digits; every one is a test.

use serde_json::Value;

/// One section of the file, row by row.
pub(super) fn rows(section: &str) -> Vec<Value> {
    let text = include_str!("../../../tests/vectors/canary.json");
    let mut file: Value = serde_json::from_str(text).expect("the vector file is JSON");
    match file[section].take() {
        Value::Array(rows) => rows,
        row @ Value::Object(_) => vec![row],
        other => panic!("no section {section}: {other}"),
    }
}

pub(super) fn number(row: &Value, key: &str) -> f64 {
    row[key].as_f64().unwrap_or_else(|| panic!("no number {key} in {row}"))
}

pub(super) fn numbers(row: &Value, key: &str) -> Vec<f64> {
    let list = row[key].as_array().unwrap_or_else(|| panic!("no list {key} in {row}"));
    list.iter().map(|value| value.as_f64().expect("a number")).collect()
}

/// Equal to 1e-9, relative, or absolute below 1.
#[track_caller]
pub(super) fn assert_close(found: f64, expected: f64, context: &Value) {
    let tolerance = 1e-9 * expected.abs().min(1.0).max(1e-3 * f64::from(expected == 0.0)).max(expected.abs());
    assert!((found - expected).abs() <= tolerance, "found {found}, expected {expected} in {context}");
}
