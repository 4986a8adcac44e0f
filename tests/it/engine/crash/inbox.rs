//! What is sent out of the worlds of a test: messages to the team, and requests to the app.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use refit::adapter::Deps;
use refit::notify::Notifiers;
use refit::secret::{Secret, Secrets};
use serde_json::json;
use wiremock::{Mock, MockServer, Request, Respond, ResponseTemplate};

use super::process::on_a_runtime;
use crate::support::world::{World, http};

/// A Slack and an app that remember what they were sent, by world.
pub struct Inbox {
    server: MockServer,
    received: Received,
}

#[derive(Clone, Default)]
struct Received(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    /// By path.
    messages: BTreeMap<String, Vec<String>>,
    /// Keys of requests, by path.
    requests: BTreeMap<String, Vec<String>>,
    /// Whether Slack is away when a world first says something.
    is_away_at_first: bool,
}

impl Respond for Received {
    fn respond(&self, request: &Request) -> ResponseTemplate {
        let mut kept = self.0.lock().unwrap();
        let path = request.url.path().to_owned();
        if path.ends_with("/app") {
            let key = request.headers.get("Idempotency-Key").and_then(|key| key.to_str().ok());
            kept.requests.entry(path).or_default().push(key.unwrap_or("no key").to_owned());
            return ResponseTemplate::new(200).set_body_json(json!({"loaded": 2}));
        }
        let is_away = kept.is_away_at_first && !kept.messages.contains_key(&path);
        let messages = kept.messages.entry(path).or_default();
        if is_away {
            return ResponseTemplate::new(503);
        }
        messages.push(String::from_utf8_lossy(&request.body).into_owned());
        ResponseTemplate::new(200).set_body_string("ok")
    }
}

impl Inbox {
    pub fn open() -> Self {
        let received = Received::default();
        let server = on_a_runtime(async {
            let server = MockServer::start().await;
            Mock::given(wiremock::matchers::method("POST"))
                .respond_with(received.clone())
                .mount(&server)
                .await;
            server
        });
        Self { server, received }
    }

    /// From now on, Slack is away when a world first says something.
    pub fn is_away_at_first(&self) {
        self.received.0.lock().unwrap().is_away_at_first = true;
    }

    fn place(world: &World, of: &str) -> String {
        let name = world.root.path().file_name().expect("a name").to_string_lossy();
        format!("/{}/{of}", name.trim_start_matches('.'))
    }

    fn address(&self, world: &World, of: &str) -> Secret {
        Secret::new(format!("{}{}", self.server.uri(), Self::place(world, of)))
    }

    /// Tells the steps of `world` where its app is.
    pub fn connect(&self, world: &mut World) {
        world.secrets.insert("APP".parse().expect("a name"), self.address(world, "app"));
    }

    /// The same of a world that is a copy of another one: what that one said was said.
    pub fn connect_copy(&self, copy: &mut World, of: &World) {
        self.connect(copy);
        let mut kept = self.received.0.lock().unwrap();
        if let Some(said) = kept.messages.get(&Self::place(of, "slack")).cloned() {
            kept.messages.insert(Self::place(copy, "slack"), said);
        }
    }

    /// Forgets what `world` said so far.
    pub fn forget(&self, world: &World) {
        self.received.0.lock().unwrap().messages.remove(&Self::place(world, "slack"));
    }

    pub fn notifiers(&self, world: &World) -> Notifiers {
        let deps = Deps {
            project: world.root.path().to_owned(),
            secrets: Secrets::fixed([("URL".parse().expect("a name"), self.address(world, "slack"))].into()),
            http: http(),
            stores: Arc::new(BTreeMap::new()),
        };
        let team = ("team".parse().expect("a name"), json!({"kind": "slack", "url": "URL"}));
        Notifiers::build([team].into(), None, &deps).expect("built")
    }

    /// What was sent from `world`, each message once.
    pub fn messages(&self, world: &World) -> BTreeSet<String> {
        let kept = self.received.0.lock().unwrap();
        kept.messages.get(&Self::place(world, "slack")).into_iter().flatten().cloned().collect()
    }

    /// The keys of the requests that the app of `world` got.
    pub fn requests(&self, world: &World) -> Vec<String> {
        let kept = self.received.0.lock().unwrap();
        kept.requests.get(&Self::place(world, "app")).cloned().unwrap_or_default()
    }
}
