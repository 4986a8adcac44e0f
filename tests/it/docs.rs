//! The reference of workflow files says what the code says.

use std::fmt::Write as _;
use std::path::Path;

use refit::domain::workflow::schema::schema;
use serde_json::Value;

const BEGIN: &str = "<!-- keys: written by tests/it/docs.rs -->\n";
const END: &str = "<!-- end of keys -->\n";

/// How people say what a key takes.
fn takes(shape: &Value) -> String {
    if let Some(reference) = shape["$ref"].as_str() {
        let name = reference.trim_start_matches("#/$defs/");
        return format!("[{}](#{name})", name.replace('_', " "));
    }
    if let Some(words) = shape["enum"].as_array() {
        let words: Vec<String> =
            words.iter().map(|word| format!("`{}`", word.as_str().unwrap_or_default())).collect();
        return words.join(", ");
    }
    if let Some(choices) = shape["anyOf"].as_array() {
        let list = choices.iter().find(|choice| choice["type"] == "array");
        let others = choices.iter().filter(|choice| choice["type"] != "array");
        let mut said: Vec<String> = others.map(takes).collect();
        said.extend(list.map(|_| "a list of them".to_owned()));
        return said.join(" or ");
    }
    let pattern = shape["pattern"].as_str().unwrap_or_default();
    match (&shape["type"], pattern) {
        (_, pattern) if pattern.contains(r"(\d+ms)?") => "duration: `90s`, `1h30m`, `6d`".to_owned(),
        (_, pattern) if pattern.contains("[KMGT]iB") => "size: `512MiB`, `4GB`".to_owned(),
        (Value::String(_), pattern) if pattern.ends_with("(%|pp)$") => {
            "percentage, or points of a rate: `5%`, `0.2pp`".to_owned()
        }
        (Value::String(_), pattern) if pattern.ends_with("%$") => "percentage: `5%`".to_owned(),
        (Value::Array(_), pattern) if pattern.ends_with("%$") => "percentage or number".to_owned(),
        (_, pattern) if pattern.starts_with("^[A-Za-z0-9]") => "name".to_owned(),
        (_, pattern) if pattern.contains('@') => "mail address".to_owned(),
        (Value::String(kind), _) => match kind.as_str() {
            "array" => format!("a list: {}", takes(&shape["items"])),
            "object" => format!("a mapping of names to: {}", takes(&shape["additionalProperties"])),
            "string" => "text".to_owned(),
            other => other.to_owned(),
        },
        (Value::Array(_), _) => "text".to_owned(),
        _ => String::new(),
    }
}

/// One table per object, from its schema, without the keys in `said`.
fn table(text: &mut String, name: &str, object: &Value, said: &[String]) {
    let description = object["description"].as_str().unwrap_or_default();
    let _ = write!(text, "\n### {name}\n\n{description}\n");
    if let Some(choices) = object["oneOf"].as_array() {
        let names: Vec<String> = choices
            .iter()
            .filter_map(|choice| Some(format!("`{}`", choice["required"][0].as_str()?)))
            .collect();
        let _ = write!(text, "\nExactly one of {}.\n", names.join(", "));
    }
    rows(text, object, |key| !said.iter().any(|said| said == key));
}

fn rows(text: &mut String, object: &Value, wanted: impl Fn(&str) -> bool) {
    let required: Vec<&str> =
        object["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let _ = write!(text, "\n| key | takes | |\n|---|---|---|\n");
    for (key, shape) in object["properties"].as_object().into_iter().flatten() {
        if !wanted(key) {
            continue;
        }
        let must = if required.contains(&key.as_str()) { "**required.** " } else { "" };
        let meaning = shape["description"].as_str().unwrap_or_default().replace('|', "\\|");
        let _ = writeln!(text, "| `{key}` | {} | {must}{meaning} |", takes(shape));
    }
}

/// The kinds of steps, and the keys that all of them have; returns the names of those keys.
fn steps(text: &mut String, defs: &Value) -> Vec<String> {
    let cases = defs["step"]["allOf"].as_array().unwrap();
    let _ = write!(text, "\n### step\n\nOne step of a run.\n\n| | |\n|---|---|\n");
    let mut kinds = vec![];
    for case in cases {
        let kind = case["if"]["properties"]["uses"]["const"].as_str();
        let kind = kind.map_or("`run: …`".to_owned(), |kind| format!("`uses: {kind}`"));
        let _ = writeln!(text, "| {kind} | {} |", takes(&case["then"]));
        let name = case["then"]["$ref"].as_str().unwrap().trim_start_matches("#/$defs/");
        kinds.push(&defs[name]);
    }
    let has = |key: &str| kinds.iter().all(|kind| kind["properties"].get(key).is_some());
    let _ = write!(text, "\nEvery step also takes:\n");
    rows(text, kinds[0], has);
    let keys = kinds[0]["properties"].as_object().unwrap().keys();
    keys.filter(|key| has(key)).cloned().chain(["uses".to_owned()]).collect()
}

fn reference() -> String {
    let schema = schema();
    let mut text = String::new();
    table(&mut text, "workflow", &schema, &[]);
    let said = steps(&mut text, &schema["$defs"]);
    for (name, object) in schema["$defs"].as_object().into_iter().flatten() {
        let said = if name.ends_with("_step") { said.as_slice() } else { &[] };
        if name != "step" {
            table(&mut text, name, object, said);
        }
    }
    text.push('\n');
    text
}

#[test]
fn the_reference_of_workflow_files_has_every_key() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/workflow.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(BEGIN).expect("docs/workflow.md has the marker of its keys");
    let (keys, after) = rest.split_once(END).expect("docs/workflow.md has the marker after its keys");
    let wanted = reference();
    if std::env::var_os("REFIT_WRITE_DOCS").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{wanted}{END}{after}")).unwrap();
        return;
    }
    let other = keys.lines().zip(wanted.lines()).find(|(there, wanted)| there != wanted);
    assert!(
        keys == wanted,
        "docs/workflow.md is not what the code says ({other:?}); \
         write it anew: REFIT_WRITE_DOCS=1 cargo test --test it docs"
    );
}

#[test]
fn links_between_the_pages_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let link = regex::Regex::new(r"\]\(([^)#: ]+)(?:#[^)]*)?\)").unwrap();
    let docs = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    for page in docs.chain([root.join("README.md")]) {
        let text = std::fs::read_to_string(&page).unwrap();
        for hit in link.captures_iter(&text) {
            let target = page.parent().unwrap().join(&hit[1]);
            assert!(target.exists(), "{}: {} leads nowhere", page.display(), &hit[1]);
        }
    }
}
