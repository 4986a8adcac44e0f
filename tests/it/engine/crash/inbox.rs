//! What is sent out of the worlds of a test: messages to the team, and requests to the app.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use refit::adapter::Deps;
use refit::notify::Notifiers;
use refit::secret::{Secret, Secrets};
use serde_json::json;
use tokio::runtime::{Builder, Runtime};
use wiremock::{Mock, MockServer, Request, Respond, ResponseTemplate};

use super::process::on_a_runtime;
use crate::support::slack::{Slack, TOKEN};
use crate::support::world::{World, http};

/// A Slack and an app that remember what they were sent, by world.
pub struct Inbox {
    server: MockServer,
    received: Received,
    /// Where runs are followed, each world has a whole Slack.
    workspaces: Mutex<Option<Workspaces>>,
}

struct Workspaces {
    serving: Runtime,
    /// By the place of their world.
    of: BTreeMap<String, Slack>,
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
        Self { server, received, workspaces: Mutex::default() }
    }

    /// From now on, the team of each new world follows runs.
    pub fn follows_runs(&self) {
        let serving = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        *self.workspaces.lock().unwrap() = Some(Workspaces { serving, of: BTreeMap::new() });
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
        if let Some(Workspaces { serving, of }) = self.workspaces.lock().unwrap().as_mut() {
            of.insert(Self::place(world, "slack"), serving.block_on(Slack::start()));
        }
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
        let (team, secret) = match self.workspace(world) {
            None => (json!({"kind": "slack", "url": "SECRET"}), self.address(world, "slack")),
            Some(Slack { address, .. }) => {
                let api = format!("{address}/api");
                let team =
                    json!({"kind": "slack-api", "token": "SECRET", "channel": "#models", "base_url": api});
                (team, Secret::new(TOKEN))
            }
        };
        let deps = Deps {
            project: world.root.path().to_owned(),
            secrets: Secrets::fixed([("SECRET".parse().expect("a name"), secret)].into()),
            http: http(),
            stores: Arc::new(BTreeMap::new()),
        };
        Notifiers::build([("team".parse().expect("a name"), team)].into(), None, &deps).expect("built")
    }

    fn workspace(&self, world: &World) -> Option<Slack> {
        let workspaces = self.workspaces.lock().unwrap();
        workspaces.as_ref().and_then(|them| them.of.get(&Self::place(world, "slack")).cloned())
    }

    /// What the messages that follow runs of `world` say.
    pub fn boards(&self, world: &World) -> Vec<String> {
        let messages = self.workspace(world).map(|slack| slack.messages()).unwrap_or_default();
        messages
            .into_iter()
            .filter(|message| message.thread_ts.is_none())
            .map(|message| message.text)
            .collect()
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
