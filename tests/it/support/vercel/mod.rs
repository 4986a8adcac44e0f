//! Vercel as far as refit uses it: projects with variables and deployments,
//! Global Config with its API side and its app side, teams and tokens, traps
//! included, and the app that is deployed there. Every request and answer of
//! the API is judged by `tests/contracts/vercel.json`.

#![allow(clippy::result_large_err, reason = "a refusal is an answer")]

mod config;
mod project;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use axum::Json;
use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::contract::{self, Violations};
use super::faults::Server;

pub use config::Config;
pub use project::{Build, Deployment, ListShape, Variable};

pub const TOKEN: &str = "vercel-token-7Qx9";
pub const READ_TOKEN: &str = "config-read-token-31";
pub const TEAM: &str = "team_raceday";
pub const PROJECT: &str = "prj_raceday";
pub const NAME: &str = "raceday";
pub const DOMAIN: &str = "raceday.example";
pub const CONFIG: &str = "ecfg_raceday";

/// Vercel, in memory.
#[derive(Clone)]
pub struct World {
    /// ms since 1970; every look at it is later than the one before.
    clock: i64,
    pub token: String,
    /// The team that owns the project and the configs; none: the token's own account.
    pub team: Option<&'static str>,
    /// New production deployments get the domain by themselves.
    pub auto_assign: bool,
    pub variables: Vec<Variable>,
    pub deployments: Vec<Deployment>,
    /// The deployment that production's domain leads to.
    pub serving: String,
    pub shape: ListShape,
    /// How the next builds go; well when there is none.
    pub builds: VecDeque<Build>,
    /// The next create answers 201 with this in `failed`.
    pub fail_create: Option<&'static str>,
    /// Done right before a deployment is made.
    pub before_deploy: Option<fn(&mut World)>,
    /// Done right after a deployment is made.
    pub after_deploy: Option<fn(&mut World)>,
    pub configs: BTreeMap<String, Config>,
}

/// A running Vercel.
#[derive(Clone)]
pub struct Vercel {
    pub server: Server,
    pub world: Arc<Mutex<World>>,
    pub violations: Violations,
}

impl Vercel {
    /// One project that was deployed once, and one empty Global Config.
    pub fn start() -> Self {
        let mut world = World {
            clock: 1_795_000_000_000,
            token: TOKEN.to_owned(),
            team: Some(TEAM),
            auto_assign: true,
            variables: vec![],
            deployments: vec![],
            serving: String::new(),
            shape: ListShape::Envs,
            builds: VecDeque::new(),
            fail_create: None,
            before_deploy: None,
            after_deploy: None,
            configs: [(CONFIG.to_owned(), Config::default())].into(),
        };
        world.pushed("first commit");
        world.settle();
        Self::of(world)
    }

    /// Another one, where everything is as it is here now.
    pub fn again(&self) -> Self {
        Self::of(self.with(|world| world.clone()))
    }

    fn of(world: World) -> Self {
        let world = Arc::new(Mutex::new(world));
        let api = Router::new().merge(project::api()).merge(config::api()).with_state(Arc::clone(&world));
        let (api, violations) = contract::watch("vercel", api);
        let app = Router::new().merge(project::app()).merge(config::app()).with_state(Arc::clone(&world));
        Self { server: Server::start(api.merge(app)), world, violations }
    }

    /// Looks at it or changes it by hand.
    pub fn with<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        change(&mut self.world.lock().unwrap())
    }

    /// Deployments that refit made.
    pub fn made(&self) -> usize {
        self.with(|world| world.deployments.iter().filter(|it| it.meta.contains_key("refitRelease")).count())
    }

    /// What the app says at its version endpoint.
    pub fn verify_url(&self) -> String {
        format!("{}/app/version", self.server.url)
    }
}

impl World {
    fn tick(&mut self) -> i64 {
        self.clock += 1;
        self.clock
    }

    /// Whether the request may be heard: the token, and the scope of the team.
    fn admit(&self, headers: &HeaderMap, query: &BTreeMap<String, String>) -> Result<(), Response> {
        let bearer = headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
        if bearer != format!("Bearer {}", self.token) {
            // A proxy that shows what it was sent, as some do.
            let said = format!("Not authorized: {bearer}");
            let body = json!({"error": {"code": "forbidden", "message": said, "invalidToken": true}});
            return Err((StatusCode::FORBIDDEN, Json(body)).into_response());
        }
        let scope = query.get("teamId").map(String::as_str);
        let scope = scope.or(query.get("slug").map(|slug| if slug == "raceday-team" { TEAM } else { slug }));
        match (scope, self.team) {
            (scope, team) if scope == team => Ok(()),
            (Some(_), _) => Err(refuse(403, "forbidden", "You don't have permission to access this team.")),
            (None, _) => Err(refuse(403, "forbidden", "Not authorized: the project belongs to a team.")),
        }
    }
}

fn refuse(status: u16, code: &str, message: &str) -> Response {
    let status = StatusCode::from_u16(status).expect("a status");
    (status, Json(json!({"error": {"code": code, "message": message}}))).into_response()
}

type Shared = axum::extract::State<Arc<Mutex<World>>>;
type Query = axum::extract::Query<BTreeMap<String, String>>;
type Answer = Result<Json<Value>, Response>;
