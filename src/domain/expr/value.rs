//! Values on their way into CEL and back.

use std::collections::HashMap;
use std::sync::Arc;

use cel::Value as Cel;
use serde_json::Value;

/// The most values below one root.
const MAX_VALUES: usize = 200_000;
/// The longest list that an expression with a loop (`all`, `map`, …) may look at.
const MAX_LOOPED: usize = 1_000;
/// The longest text that an expression with a loop may look at, in bytes.
const MAX_LOOPED_TEXT: usize = 16 << 10;
/// The most bytes of text in a result.
const MAX_RESULT: usize = 8 << 20;
/// The deepest nesting of lists and maps.
const MAX_DEPTH: usize = 64;

/// A JSON value for CEL. Whole numbers become `int`, all others `double`.
pub(super) fn to_cel(value: &Value, looped: bool) -> Result<Cel, String> {
    let mut budget = MAX_VALUES;
    convert(value, looped, MAX_DEPTH, &mut budget)
}

fn convert(value: &Value, looped: bool, depth: usize, budget: &mut usize) -> Result<Cel, String> {
    let deeper = depth.checked_sub(1).ok_or_else(|| format!("is nested deeper than {MAX_DEPTH}"))?;
    *budget = budget.checked_sub(1).ok_or_else(|| format!("holds more than {MAX_VALUES} values"))?;
    Ok(match value {
        Value::Null => Cel::Null,
        Value::Bool(flag) => Cel::Bool(*flag),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => Cel::Int(whole),
            (None, Some(real)) => Cel::Float(real),
            (None, None) => return Err("holds a number that does not fit 64 bits".to_owned()),
        },
        Value::String(text) if looped && text.len() > MAX_LOOPED_TEXT => {
            return Err(format!("holds a text of more than {MAX_LOOPED_TEXT} bytes, too long for a loop"));
        }
        Value::String(text) => Cel::String(Arc::new(text.clone())),
        Value::Array(items) => {
            if looped && items.len() > MAX_LOOPED {
                return Err(format!("holds a list of more than {MAX_LOOPED} values, too long for a loop"));
            }
            let items: Result<Vec<Cel>, String> =
                items.iter().map(|item| convert(item, looped, deeper, budget)).collect();
            Cel::List(Arc::new(items?))
        }
        Value::Object(map) => {
            if looped && map.len() > MAX_LOOPED {
                return Err(format!("holds a map of more than {MAX_LOOPED} values, too long for a loop"));
            }
            let mut entries = HashMap::with_capacity(map.len());
            for (key, item) in map {
                entries.insert(key.clone(), convert(item, looped, deeper, budget)?);
            }
            Cel::from(entries)
        }
    })
}

/// A CEL value as JSON. What JSON has no word for is an error, NaN included.
pub(super) fn to_json(value: &Cel) -> Result<Value, String> {
    result(value, &mut MAX_RESULT.clone())
}

fn result(value: &Cel, budget: &mut usize) -> Result<Value, String> {
    let bytes = 8 + if let Cel::String(text) = value { text.len() } else { 0 };
    *budget = budget.checked_sub(bytes).ok_or("is larger than an expression may be")?;
    Ok(match value {
        Cel::Null => Value::Null,
        Cel::Bool(flag) => Value::Bool(*flag),
        Cel::Int(whole) => Value::from(*whole),
        Cel::UInt(whole) => Value::from(*whole),
        Cel::Float(real) => {
            serde_json::Number::from_f64(*real).map(Value::Number).ok_or("is not a finite number")?
        }
        Cel::String(text) => Value::String(text.as_ref().clone()),
        Cel::List(items) => {
            Value::Array(items.iter().map(|item| result(item, budget)).collect::<Result<_, _>>()?)
        }
        Cel::Map(map) => {
            let mut entries = serde_json::Map::new();
            for (key, item) in map.map.iter() {
                entries.insert(key.to_string(), result(item, budget)?);
            }
            entries.sort_keys();
            Value::Object(entries)
        }
        Cel::Bytes(_) | Cel::Function(..) | Cel::Opaque(_) | Cel::Struct(_) => {
            return Err("is not a text, number, list or map".to_owned());
        }
    })
}
