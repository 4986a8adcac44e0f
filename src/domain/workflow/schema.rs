//! The JSON Schema of a workflow file, for editors: made from the same table
//! of keys that files are checked against.

use serde_json::{Map, Value, json};

use super::keys::WORKFLOW;
use super::keys_step::{LATER_KINDS, STEPS};
use super::shape::{Key, Object, Shape};

const DURATION: &str = r"^(\d+w)?(\d+d)?(\d+h)?(\d+m)?(\d+s)?(\d+ms)?$";
const SIZE: &str = r"^\d+(B|[kK]B|[MGT]B|[KMGT]iB)$";
const MARGIN: &str = r"^[-+]?\d*\.?\d+(%|pp)$";
const PERCENT: &str = r"^[-+]?\d*\.?\d+%$";
const NAME: &str = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$";

/// The schema (JSON Schema 2020-12): a document with `$schema`, `$defs` and the keys of a workflow.
pub fn schema() -> Value {
    let mut defs = Map::new();
    let mut whole = object(&WORKFLOW, &mut defs);
    let step = step(&mut defs);
    defs.insert("step".to_owned(), step);
    if let Value::Object(root) = &mut whole {
        root.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
        root.insert("title".to_owned(), json!("refit workflow"));
        root.insert("$defs".to_owned(), Value::Object(defs));
    }
    whole
}

/// Keys that only a later version can do are left out: an editor marks them as unknown.
fn object(object: &'static Object, defs: &mut Map<String, Value>) -> Value {
    let keys: Vec<&'static Key> = object.keys().filter(|key| !key.later).collect();
    let mut properties = Map::new();
    for key in &keys {
        properties.insert(key.name.to_owned(), described(key, defs));
    }
    let required: Vec<&str> = keys.iter().filter(|key| key.required).map(|key| key.name).collect();
    let mut result = json!({
        "type": "object",
        "description": object.doc,
        "properties": properties,
        "additionalProperties": false,
    });
    if !required.is_empty() {
        result["required"] = json!(required);
    }
    if !object.one_of.is_empty() {
        let one: Vec<Value> = object.one_of.iter().map(|name| json!({"required": [name]})).collect();
        result["oneOf"] = json!(one);
    }
    result
}

fn described(key: &Key, defs: &mut Map<String, Value>) -> Value {
    let mut value = shape(&key.shape, defs);
    if let Value::Object(map) = &mut value {
        map.insert("description".to_owned(), json!(key.doc));
    }
    value
}

fn reference(target: &'static Object, defs: &mut Map<String, Value>) -> Value {
    if !defs.contains_key(target.name) {
        // Taken first, so that an object within itself ends here.
        defs.insert(target.name.to_owned(), Value::Null);
        let value = object(target, defs);
        defs.insert(target.name.to_owned(), value);
    }
    json!({"$ref": format!("#/$defs/{}", target.name)})
}

fn shape(shape: &Shape, defs: &mut Map<String, Value>) -> Value {
    let text = || json!({"type": "string"});
    let pattern = |pattern: &str| json!({"type": "string", "pattern": pattern});
    match shape {
        Shape::Text | Shape::Scalar | Shape::Template(_) => json!({"type": ["string", "number", "boolean"]}),
        Shape::Command | Shape::Sql => {
            json!({"type": "string", "minLength": 1, "not": {"pattern": "\\$\\{\\{"}})
        }
        Shape::Condition(_) => json!({"type": ["string", "boolean"]}),
        Shape::Pattern | Shape::Cron | Shape::Timezone | Shape::EventName | Shape::RelativePath => text(),
        Shape::Name => json!({"type": ["string", "number"], "pattern": NAME}),
        Shape::Email => pattern("^[^@\\s]+@[^@\\s]+\\.[^@\\s]+$"),
        Shape::Duration => pattern(DURATION),
        Shape::Size => pattern(SIZE),
        Shape::Percent | Shape::Share => pattern(PERCENT),
        Shape::Margin => pattern(MARGIN),
        Shape::Rate => json!({"type": ["string", "number"], "pattern": PERCENT}),
        Shape::Number => json!({"type": "number"}),
        Shape::Integer(least, most) if *most == i64::MAX => json!({"type": "integer", "minimum": least}),
        Shape::Integer(least, most) => json!({"type": "integer", "minimum": least, "maximum": most}),
        Shape::Boolean => json!({"type": "boolean"}),
        Shape::Words { now, .. } => json!({"enum": now}),
        Shape::Object(target) => reference(target, defs),
        Shape::List(item) => json!({"type": "array", "minItems": 1, "items": self::shape(item, defs)}),
        Shape::OneOrMany(item) => {
            let one = self::shape(item, defs);
            json!({"anyOf": [one, {"type": "array", "minItems": 1, "items": one}]})
        }
        Shape::OneOrManyOrNone(item) => {
            let one = self::shape(item, defs);
            json!({"anyOf": [one, {"type": "array", "items": one}]})
        }
        Shape::MapOf(item) => json!({"type": "object", "additionalProperties": self::shape(item, defs)}),
        Shape::ShareOr(target) => json!({"anyOf": [pattern(PERCENT), reference(target, defs)]}),
        Shape::Step => json!({"$ref": "#/$defs/step"}),
        Shape::Later => json!(false),
    }
}

/// A step: `run` or `uses` decides which object it is, so an editor completes the keys of that kind only.
fn step(defs: &mut Map<String, Value>) -> Value {
    let mut cases = Vec::new();
    for (kind, target) in STEPS {
        let condition = match *kind {
            "run" => json!({"required": ["run"]}),
            kind => json!({"required": ["uses"], "properties": {"uses": {"const": kind}}}),
        };
        cases.push(json!({"if": condition, "then": reference(target, defs)}));
    }
    let kinds: Vec<&str> = STEPS.iter().skip(1).map(|(kind, _)| *kind).collect();
    json!({
        "type": "object",
        "description": format!("One step. Later versions also know: {}.", LATER_KINDS.join(", ")),
        "properties": {"uses": {"enum": kinds, "description": "The kind of step."}},
        "oneOf": [{"required": ["run"]}, {"required": ["uses"]}],
        "allOf": cases,
    })
}
