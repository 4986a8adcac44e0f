//! The schema is made from the table the decoder goes by; this reads it the
//! way an editor does and compares the two on whole files.

use serde_json::{Value, json};

use super::super::node::{self, Content, Node};
use super::super::schema::schema;
use super::*;

/// A tree as an editor's YAML server sees it.
fn json_of(node: &Node) -> Value {
    match &node.content {
        Content::Null => Value::Null,
        Content::Scalar { text, quoted: false } => match text.as_str() {
            "true" => json!(true),
            "false" => json!(false),
            text => text
                .parse::<i64>()
                .map(Value::from)
                .or_else(|_| text.parse::<f64>().map(Value::from))
                .unwrap_or(json!(text)),
        },
        Content::Scalar { text, quoted: true } => json!(text),
        Content::List(items) => Value::Array(items.iter().map(json_of).collect()),
        Content::Map(entries) => {
            Value::Object(entries.iter().map(|entry| (entry.key.clone(), json_of(&entry.value))).collect())
        }
    }
}

fn is_type(value: &Value, name: &str) -> bool {
    match name {
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => value.is_i64(),
        "boolean" => value.is_boolean(),
        "object" => value.is_object(),
        "array" => value.is_array(),
        other => panic!("the schema uses the type {other}"),
    }
}

/// The words of JSON Schema that ours uses; any other is a failure of the test.
fn fits(value: &Value, schema: &Value, root: &Value) -> bool {
    let Value::Object(words) = schema else { return schema.as_bool().expect("a schema") };
    words.iter().all(|(word, rule)| match word.as_str() {
        "$ref" => {
            let name =
                rule.as_str().and_then(|path| path.strip_prefix("#/$defs/")).expect("a local reference");
            fits(value, &root["$defs"][name], root)
        }
        "type" => match rule {
            Value::String(name) => is_type(value, name),
            names => names
                .as_array()
                .expect("types")
                .iter()
                .any(|name| is_type(value, name.as_str().expect("type"))),
        },
        "enum" => rule.as_array().expect("enum").contains(value),
        "const" => rule == value,
        "pattern" => {
            let regex = regex::Regex::new(rule.as_str().expect("pattern")).expect("a pattern");
            value.as_str().is_none_or(|text| regex.is_match(text))
        }
        "minLength" => {
            value.as_str().is_none_or(|text| text.len() as u64 >= rule.as_u64().expect("minLength"))
        }
        "minimum" => value.as_f64().is_none_or(|number| number >= rule.as_f64().expect("minimum")),
        "maximum" => value.as_f64().is_none_or(|number| number <= rule.as_f64().expect("maximum")),
        "minItems" => {
            value.as_array().is_none_or(|items| items.len() as u64 >= rule.as_u64().expect("minItems"))
        }
        "items" => value.as_array().is_none_or(|items| items.iter().all(|item| fits(item, rule, root))),
        "properties" => value.as_object().is_none_or(|map| {
            map.iter().all(|(key, item)| rule.get(key).is_none_or(|rule| fits(item, rule, root)))
        }),
        "additionalProperties" => value.as_object().is_none_or(|map| {
            map.iter().all(|(key, item)| {
                words.get("properties").and_then(|known| known.get(key)).is_some() || fits(item, rule, root)
            })
        }),
        "required" => value.as_object().is_none_or(|map| {
            rule.as_array().expect("required").iter().all(|key| map.contains_key(key.as_str().expect("key")))
        }),
        "not" => !fits(value, rule, root),
        "anyOf" => rule.as_array().expect("anyOf").iter().any(|rule| fits(value, rule, root)),
        "oneOf" => rule.as_array().expect("oneOf").iter().filter(|rule| fits(value, rule, root)).count() == 1,
        "allOf" => rule.as_array().expect("allOf").iter().all(|rule| fits(value, rule, root)),
        "if" => !fits(value, rule, root) || fits(value, &words["then"], root),
        "then" | "description" | "$schema" | "title" | "$defs" => true,
        other => panic!("the schema uses {other}"),
    })
}

fn schema_accepts(source: &str) -> bool {
    let node = node::read(source, &mut Vec::new()).expect("YAML");
    let schema = schema();
    fits(&json_of(&node), &schema, &schema)
}

#[test]
fn the_schema_accepts_what_the_decoder_accepts() {
    assert!(schema_accepts(include_str!("../../../../workflows/retrain.yaml")));
    assert!(schema_accepts(super::examples::EVERYTHING));
}

#[test]
fn the_schema_refuses_what_the_decoder_refuses() {
    for steps in [
        "- { id: a, run: x, colour: red }",
        "- { id: a, uses: gate, with: { rules: [{ metric: mae, maximum: 3 }] } }",
        "- { id: a, uses: gate }",
        "- { id: a }",
        "- { run: x, uses: gate }",
        "- { run: x, timeout: 30 }",
        "- { run: x, limits: { memory: 4 gigs } }",
        "- { run: 'echo ${{ model }}' }",
        "- { uses: evaluate }",
        "- { uses: canary, with: { target: p, stages: [] } }",
        "- { uses: compare, with: { rules: [{ metric: error_rate }], when_underpowered: repeat } }",
        "- { run: x, retry: { attempts: 0 } }",
        "- { uses: fetch, with: { to: a, from: { file: a, sqlite: { path: a, query: b } } } }",
    ] {
        let source = with_steps(steps);
        assert!(!schema_accepts(&source), "{steps}");
        assert!(brief(&source).contains("error"), "{steps}");
    }
}

/// Every key of the table appears in the file that uses everything, so a key the decoder forgets is noticed there.
#[test]
fn the_example_of_everything_uses_every_key() {
    fn keys(schema: &Value, found: &mut Vec<String>) {
        match schema {
            Value::Object(map) => {
                if let Some(Value::Object(properties)) = map.get("properties") {
                    found.extend(properties.keys().cloned());
                }
                map.values().for_each(|value| keys(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| keys(value, found)),
            _ => {}
        }
    }
    let mut known = Vec::new();
    keys(&schema(), &mut known);
    let unused: Vec<&String> =
        known.iter().filter(|key| !super::examples::EVERYTHING.contains(&format!("{key}:"))).collect();
    // `file:` as a source is the one key that cannot stand beside the others there.
    assert_eq!(unused, Vec::<&String>::new());
}
