//! Buckets and routes are the same in Rust, in TypeScript and in Python.

use refit::domain::Timestamp;
use refit::domain::release::{CanaryServed, bucket, routes_to_canary};
use serde::Deserialize;
use serde_json::{Value, json};

use super::app::{App, Language, file};
use super::in_every_language;

#[derive(Deserialize)]
struct Vectors {
    buckets: Vec<Bucket>,
    routes: Vec<Route>,
}

#[derive(Deserialize)]
struct Bucket {
    salt: String,
    unit: String,
    bucket: u16,
}

#[derive(Deserialize)]
struct Route {
    name: String,
    canary: CanaryServed,
    unit: Option<String>,
    now: Timestamp,
    canary_serves: bool,
}

fn vectors() -> Vectors {
    let text = std::fs::read_to_string(file("vectors.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn in_rust() {
    let Vectors { buckets, routes } = vectors();
    for Bucket { salt, unit, bucket: wanted } in &buckets {
        assert_eq!(bucket(salt, unit), *wanted, "{salt:?} {unit:?}");
    }
    for route in &routes {
        let serves = routes_to_canary(&route.canary, route.unit.as_deref(), route.now);
        assert_eq!(serves, route.canary_serves, "{}", route.name);
    }
    assert!(buckets.len() > 30 && routes.len() > 15);
}

async fn as_in_rust(language: Language) {
    let Vectors { buckets, routes } = vectors();
    let mut app = App::of(language).await;
    let said = app.say("vectors", json!(file("vectors.json"))).await;
    let wanted: Vec<u16> = buckets.iter().map(|vector| vector.bucket).collect();
    assert_eq!(said["buckets"], json!(wanted));
    for (route, said) in routes.iter().zip(said["routes"].as_array().unwrap()) {
        assert_eq!(*said, json!(route.canary_serves), "{}", route.name);
    }
    assert_eq!(said["routes"].as_array().unwrap().len(), routes.len());
    // Text that no other language can hold is a unit too, and the same one.
    assert_eq!(app.say("half_a_pair", Value::Null).await, json!(bucket("salt", "\u{fffd}")));
}

in_every_language! { as_in_rust }
