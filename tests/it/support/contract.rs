//! A vendor's OpenAPI document as a judge: of what refit asks, and of what an emulator answers.
//!
//! `watch` puts it around an emulator. It fails on an unknown path, method,
//! query parameter or field, on what is missing, and on a wrong type. Answers
//! that any service may give and few describe (429 and 5xx) pass without a body check.
//!
//! Where one path has several operations that differ by a parameter, the document
//! names them after a `#`; where it describes headers beginning with `x-`, any other of those is a mistake.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use jsonschema::{Draft, Validator};
use serde_json::{Map, Value, json};

/// More than any request to a vendor's API has.
const LARGEST_BODY: usize = 64 << 20;

/// One vendor's API.
pub struct Contract {
    vendor: &'static str,
    operations: Vec<Operation>,
}

/// One method of one path.
struct Operation {
    method: Method,
    /// Segments; `None` takes any.
    path: Vec<Option<String>>,
    query: BTreeMap<String, Parameter>,
    headers: BTreeMap<String, Parameter>,
    needs_token: bool,
    body: Option<RequestBody>,
    /// By status; `default` is none of them.
    answers: BTreeMap<u16, Option<Answer>>,
    otherwise: Option<Answer>,
}

/// What the body of an answer is.
struct Answer {
    /// Text, and no JSON.
    plain: bool,
    schema: Validator,
}

/// A request's first lines.
struct Asked {
    method: Method,
    path: String,
    query: BTreeMap<String, String>,
    headers: HeaderMap,
}

impl Asked {
    fn of(request: &Request) -> Self {
        let query = request.uri().query().unwrap_or_default().as_bytes();
        Self {
            method: request.method().clone(),
            path: request.uri().path().trim_end_matches('/').to_owned(),
            query: url::form_urlencoded::parse(query).into_owned().collect(),
            headers: request.headers().clone(),
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

struct Parameter {
    required: bool,
    schema: Validator,
}

impl Parameter {
    /// Whether text may be its value.
    fn takes(&self, text: &str) -> bool {
        readings(text).iter().any(|value| self.schema.is_valid(value))
    }
}

struct RequestBody {
    required: bool,
    /// By media type.
    schemas: BTreeMap<String, Validator>,
}

impl Contract {
    /// The contract in `tests/contracts/<vendor>.json`.
    pub fn of(vendor: &'static str) -> Self {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/contracts/{vendor}.json"));
        let text = std::fs::read_to_string(&file).expect("a contract");
        let document: Value = serde_json::from_str(&text).expect("JSON");
        let base = document["servers"][0]["url"].as_str().expect("a server");
        let base = url::Url::parse(base).expect("a URL").path().trim_end_matches('/').to_owned();
        let mut operations = Vec::new();
        for (path, methods) in document["paths"].as_object().expect("paths") {
            for (method, operation) in methods.as_object().expect("methods") {
                let Ok(method) = Method::from_bytes(method.to_uppercase().as_bytes()) else { continue };
                if !operation.is_object() {
                    continue; // parameters shared by all methods; no contract here has any
                }
                let path = path.split('#').next().unwrap_or_default().trim_end_matches('/');
                operations.push(Operation::read(&document, &format!("{base}{path}"), method, operation));
            }
        }
        Self { vendor, operations }
    }

    fn find(&self, asked: &Asked) -> Option<&Operation> {
        let segments: Vec<&str> = asked.path.split('/').collect();
        let fits = |operation: &&Operation| {
            operation.method == asked.method
                && operation.path.len() == segments.len()
                && std::iter::zip(&operation.path, &segments)
                    .all(|(known, asked)| known.as_ref().is_none_or(|known| known == asked))
        };
        // The path with the fewest free segments is meant, and the operation whose parameters fit best.
        let free = |operation: &&Operation| operation.path.iter().filter(|segment| segment.is_none()).count();
        let wrong = |operation: &&Operation| operation.judge_parameters(asked).len();
        self.operations.iter().filter(fits).min_by_key(|operation| (free(operation), wrong(operation)))
    }

    /// What is wrong with a request; empty when nothing is.
    fn judge_request(&self, asked: &Asked, body: &[u8]) -> Vec<String> {
        let Some(operation) = self.find(asked) else {
            return vec!["no such operation".to_owned()];
        };
        let mut wrong = operation.judge_parameters(asked);
        if operation.needs_token && !bears_token(&asked.headers) {
            wrong.push("no bearer token in the header `authorization`".to_owned());
        }
        wrong.extend(operation.judge_body(&asked.headers, body));
        wrong
    }

    /// What is wrong with an answer; empty when nothing is.
    fn judge_answer(&self, asked: &Asked, status: StatusCode, body: &[u8]) -> Vec<String> {
        let Some(operation) = self.find(asked) else { return Vec::new() };
        if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
            return Vec::new();
        }
        let answer = match operation.answers.get(&status.as_u16()) {
            Some(answer) => answer.as_ref(),
            None if operation.otherwise.is_some() => operation.otherwise.as_ref(),
            // A document that describes no refusal at all says nothing about refusals.
            None if status.is_client_error() && operation.answers.keys().all(|known| *known < 400) => {
                return Vec::new();
            }
            None => return vec![format!("status {status} is not described")],
        };
        match answer {
            None if body.is_empty() => Vec::new(),
            None => vec!["a body where none is described".to_owned()],
            Some(answer) if answer.plain => complaints(&answer.schema, &json!(String::from_utf8_lossy(body))),
            Some(answer) => match serde_json::from_slice::<Value>(body) {
                // Slack refuses by a body with `ok: false` under a status of success.
                Ok(value) if self.vendor == "slack" && value["ok"] == false => {
                    self.refusals(operation, &value)
                }
                Ok(value) => complaints(&answer.schema, &value),
                Err(error) => vec![format!("not JSON: {error}")],
            },
        }
    }
}

impl Contract {
    fn refusals(&self, operation: &Operation, value: &Value) -> Vec<String> {
        match &operation.otherwise {
            Some(answer) => complaints(&answer.schema, value),
            None => vec![format!("{} describes no refusal", self.vendor)],
        }
    }
}

impl Operation {
    fn read(document: &Value, path: &str, method: Method, operation: &Value) -> Self {
        let segment = |segment: &str| (!segment.starts_with('{')).then(|| segment.to_owned());
        let parameters = operation["parameters"].as_array().into_iter().flatten();
        let parameters = parameters.map(|parameter| match parameter["$ref"].as_str() {
            Some(place) => document.pointer(place.trim_start_matches('#')).expect("a parameter"),
            None => parameter,
        });
        let parameters: Vec<&Value> = parameters.collect();
        let of = |place: &str| {
            let here = parameters.iter().filter(|parameter| parameter["in"] == place);
            here.map(|parameter| {
                let name = parameter["name"].as_str().expect("a name").to_owned();
                let required = parameter["required"] == true;
                (name, Parameter { required, schema: compile(document, &parameter["schema"], Side::Answer) })
            })
            .collect::<BTreeMap<_, _>>()
        };
        let body = operation.get("requestBody").map(|body| RequestBody {
            required: body["required"] == true,
            schemas: contents(body)
                .map(|(media, schema)| (media.clone(), compile(document, schema, Side::Request)))
                .collect(),
        });
        let (mut answers, mut otherwise) = (BTreeMap::new(), None);
        for (status, answer) in operation["responses"].as_object().expect("responses") {
            let answer = contents(answer).next().map(|(media, schema)| Answer {
                plain: media == "text/plain",
                schema: compile(document, schema, Side::Answer),
            });
            match status.parse() {
                Ok(status) => drop(answers.insert(status, answer)),
                Err(_) => otherwise = answer,
            }
        }
        let security = operation.get("security").or_else(|| document.get("security"));
        Self {
            path: path.split('/').map(segment).collect(),
            method,
            query: of("query"),
            headers: of("header"),
            needs_token: security.is_some_and(|schemes| *schemes != json!([])),
            body,
            answers,
            otherwise,
        }
    }

    fn judge_parameters(&self, asked: &Asked) -> Vec<String> {
        let mut wrong = Vec::new();
        for (name, value) in &asked.query {
            match self.query.get(name) {
                None => wrong.push(format!("unknown query parameter `{name}`")),
                Some(parameter) if !parameter.takes(value) => {
                    wrong.push(format!("query parameter `{name}` is {value:?}"));
                }
                Some(_) => {}
            }
        }
        for (name, parameter) in &self.query {
            if parameter.required && !asked.query.contains_key(name) {
                wrong.push(format!("query parameter `{name}` is missing"));
            }
        }
        for (name, parameter) in &self.headers {
            match asked.header(name) {
                None if parameter.required => wrong.push(format!("header `{name}` is missing")),
                Some(value) if !parameter.takes(value) => {
                    wrong.push(format!("header `{name}` is {value:?}"));
                }
                None | Some(_) => {}
            }
        }
        if self.headers.keys().any(|name| name.starts_with("x-")) {
            let names = asked.headers.keys().map(|name| name.as_str());
            let unknown = names.filter(|name| name.starts_with("x-") && !self.headers.contains_key(*name));
            wrong.extend(unknown.map(|name| format!("unknown header `{name}`")));
        }
        wrong
    }

    fn judge_body(&self, headers: &HeaderMap, body: &[u8]) -> Vec<String> {
        let Some(described) = &self.body else {
            let empty = body.is_empty() || body == b"{}";
            return if empty { Vec::new() } else { vec!["a body where none is described".to_owned()] };
        };
        if body.is_empty() {
            return if described.required { vec!["the body is missing".to_owned()] } else { Vec::new() };
        }
        if described.schemas.contains_key("*/*") {
            return Vec::new();
        }
        let media =
            headers.get(header::CONTENT_TYPE).and_then(|media| media.to_str().ok()).unwrap_or_default();
        let media = media.split(';').next().unwrap_or_default().trim();
        let Some(schema) = described.schemas.get(media) else {
            return vec![format!("content type {media:?} is not described")];
        };
        if media == "application/x-www-form-urlencoded" {
            return judge_form(schema, body);
        }
        match serde_json::from_slice::<Value>(body) {
            Ok(value) => complaints(schema, &value),
            Err(error) => vec![format!("not JSON: {error}")],
        }
    }
}

/// A form's values are text: each may be read as text or as what it spells.
fn judge_form(schema: &Validator, body: &[u8]) -> Vec<String> {
    let mut form = Map::new();
    for (name, value) in url::form_urlencoded::parse(body) {
        form.insert(name.into_owned(), Value::String(value.into_owned()));
    }
    for name in form.keys().cloned().collect::<Vec<_>>() {
        let pointer = format!("/{name}");
        let whole = Value::Object(form.clone());
        let text_is_wrong = schema.iter_errors(&whole).any(|error| error.instance_path().as_str() == pointer);
        let spelled = form[&name].as_str().and_then(|text| serde_json::from_str(text).ok());
        if let (true, Some(spelled)) = (text_is_wrong, spelled) {
            form.insert(name, spelled);
        }
    }
    complaints(schema, &Value::Object(form))
}

fn contents(of: &Value) -> impl Iterator<Item = (&String, &Value)> {
    let content = of["content"].as_object().into_iter().flatten();
    content.map(|(media, content)| (media, &content["schema"]))
}

/// What a query's text may mean.
fn readings(text: &str) -> Vec<Value> {
    let spelled = serde_json::from_str(text).ok();
    [Some(Value::String(text.to_owned())), spelled].into_iter().flatten().collect()
}

fn bears_token(headers: &HeaderMap) -> bool {
    let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    value.and_then(|value| value.strip_prefix("Bearer ")).is_some_and(|token| !token.is_empty())
}

fn complaints(schema: &Validator, value: &Value) -> Vec<String> {
    schema.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

/// Whose words a schema describes.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    /// refit's: a field that is not described is a mistake.
    Request,
    /// refit's, in a condition on an object that is described above it.
    Condition,
    /// The vendor's.
    Answer,
}

fn compile(document: &Value, schema: &Value, side: Side) -> Validator {
    let mut whole = translated(schema, side);
    if let Some(object) = whole.as_object_mut() {
        let components = translated(&document["components"]["schemas"], side);
        object.insert("components".to_owned(), json!({ "schemas": components }));
    }
    jsonschema::options().with_draft(Draft::Draft4).build(&whole).expect("a schema")
}

/// OpenAPI 3.0's dialect as JSON Schema's: `nullable`, and closed objects on refit's side.
fn translated(schema: &Value, side: Side) -> Value {
    match schema {
        Value::Array(items) => items.iter().map(|item| translated(item, side)).collect(),
        Value::Object(fields) => {
            let described = fields.get("properties").is_some_and(Value::is_object);
            let inner = |key: &str| match side {
                Side::Request if described && ["allOf", "anyOf", "oneOf"].contains(&key) => Side::Condition,
                side => side,
            };
            let translated = |(key, value): (&String, &Value)| (key.clone(), translated(value, inner(key)));
            let mut fields: Map<String, Value> = fields.iter().map(translated).collect();
            // Of an answer `oneOf` lists shapes that overlap: the larger one has the fields of the smaller, too.
            if side == Side::Answer
                && let Some(shapes) = fields.remove("oneOf")
            {
                fields.insert("anyOf".to_owned(), shapes);
            }
            let combined = ["allOf", "anyOf", "oneOf", "additionalProperties"];
            let alone = !combined.iter().any(|key| fields.contains_key(*key));
            if side == Side::Request && alone && fields.get("properties").is_some_and(Value::is_object) {
                fields.insert("additionalProperties".to_owned(), Value::Bool(false));
            }
            let nullable = fields.get("nullable") == Some(&Value::Bool(true));
            if nullable {
                fields.remove("nullable");
                return json!({ "anyOf": [Value::Object(fields), { "type": "null" }] });
            }
            Value::Object(fields)
        }
        other => other.clone(),
    }
}

/// What was said against the contract; fails the test that drops it with any.
#[derive(Clone, Default)]
pub struct Violations(Arc<Mutex<Vec<String>>>);

impl Violations {
    /// What was found so far; it is not found again.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Fails when there is any.
    pub fn assert_none(&self) {
        let found = self.take();
        assert!(found.is_empty(), "against the vendor's contract:\n{}", found.join("\n"));
    }

    fn add(&self, what: &str, wrong: Vec<String>) -> bool {
        if wrong.is_empty() {
            return false;
        }
        let mut text = what.to_owned();
        for wrong in wrong {
            write!(text, "\n  {wrong}").expect("to memory");
        }
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(text);
        true
    }
}

/// `emulator` behind `vendor`'s contract: a request against it is answered 400
/// before the emulator sees it, and each violation is kept for the test.
pub fn watch(vendor: &'static str, emulator: Router) -> (Router, Violations) {
    let violations = Violations::default();
    let state = (shared(vendor), violations.clone());
    (emulator.layer(from_fn_with_state(state, judge)), violations)
}

/// The contract of `vendor`, read once.
fn shared(vendor: &'static str) -> Arc<Contract> {
    static READ: Mutex<BTreeMap<&str, Arc<Contract>>> = Mutex::new(BTreeMap::new());
    let mut read = READ.lock().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(read.entry(vendor).or_insert_with(|| Arc::new(Contract::of(vendor))))
}

async fn judge(
    State((contract, violations)): State<(Arc<Contract>, Violations)>,
    request: Request,
    next: Next,
) -> Response {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, LARGEST_BODY).await.unwrap_or_default();
    let request = Request::from_parts(parts, Body::from(body.clone()));
    let asked = Asked::of(&request);
    let label = format!("{}: {} {} {}", contract.vendor, request.method(), request.uri(), excerpt(&body));
    if violations.add(&format!("asked {label}"), contract.judge_request(&asked, &body)) {
        return (StatusCode::BAD_REQUEST, "against the contract").into_response();
    }
    let (parts, body) = next.run(request).await.into_parts();
    let body: Bytes = to_bytes(body, LARGEST_BODY).await.unwrap_or_default();
    let wrong = contract.judge_answer(&asked, parts.status, &body);
    violations.add(&format!("answered {label} by {} {}", parts.status, excerpt(&body)), wrong);
    Response::from_parts(parts, Body::from(body))
}

fn excerpt(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[..body.len().min(800)]).chars().take(400).collect()
}

#[cfg(test)]
mod tests;
