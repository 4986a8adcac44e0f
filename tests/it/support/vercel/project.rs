//! Variables and deployments of one project, and the app that it serves.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch, post};
use axum::{Json, Router};
use serde_json::{Value, json};

use super::{Answer, DOMAIN, NAME, PROJECT, Query, Shared, World, refuse};

/// An environment variable.
#[derive(Debug, Clone)]
pub struct Variable {
    pub id: String,
    pub key: String,
    pub value: String,
    pub kind: String,
    pub targets: Vec<String>,
    pub created: i64,
    pub updated: i64,
}

/// How the list of variables is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListShape {
    Envs,
    Paginated,
    /// One variable by itself, with `target` as text, when there is only one.
    Single,
}

/// How a build goes.
#[derive(Debug, Clone, PartialEq)]
pub enum Build {
    Well,
    Fails(&'static str),
    /// Somebody cancels it.
    Cancelled,
    /// It is built and not given the domain: `vercel deploy --prod --skip-domain`.
    WithoutDomain,
    /// It stands still in this state.
    Stuck(&'static str),
}

/// A deployment.
#[derive(Debug, Clone)]
pub struct Deployment {
    pub id: String,
    pub commit: String,
    pub state: String,
    pub substate: Option<String>,
    pub assigned: bool,
    pub target: Option<String>,
    pub meta: BTreeMap<String, String>,
    pub env: BTreeMap<String, String>,
    pub created: i64,
    pub error: Option<String>,
    build: Build,
}

impl World {
    /// Somebody sets a variable by hand.
    pub fn set(&mut self, key: &str, value: &str) {
        let at = self.tick();
        if let Some(variable) = self.variables.iter_mut().find(|it| it.key == key) {
            (variable.value, variable.updated) = (value.to_owned(), at);
        } else {
            self.variables.push(Variable {
                id: format!("env_{at}"),
                key: key.to_owned(),
                value: value.to_owned(),
                kind: "plain".to_owned(),
                targets: vec!["production".to_owned()],
                created: at,
                updated: at,
            });
        }
    }

    /// What a variable says.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.variables.iter().find(|it| it.key == key).map(|it| it.value.as_str())
    }

    fn make(&mut self, commit: &str, target: Option<String>, meta: BTreeMap<String, String>) -> Deployment {
        let at = self.tick();
        let env = self.variables.iter().filter(|it| it.targets.iter().any(|it| it == "production"));
        let deployment = Deployment {
            id: format!("dpl_{at}"),
            commit: commit.to_owned(),
            state: "QUEUED".to_owned(),
            substate: None,
            assigned: false,
            target,
            meta,
            env: env.map(|it| (it.key.clone(), it.value.clone())).collect(),
            created: at,
            error: None,
            build: self.builds.pop_front().unwrap_or(Build::Well),
        };
        self.deployments.push(deployment.clone());
        deployment
    }

    /// The team pushes a commit.
    pub fn pushed(&mut self, commit: &str) -> String {
        self.make(commit, Some("production".to_owned()), BTreeMap::new()).id
    }

    /// Every build goes to its end.
    pub fn settle(&mut self) {
        for _ in 0..6 {
            self.advance();
        }
    }

    /// Somebody rolls back at the host: no new deployment gets the domain any more.
    pub fn rolled_back_to(&mut self, id: &str) {
        self.serving = id.to_owned();
        self.auto_assign = false;
    }

    /// The commit that serves.
    pub fn serving_commit(&self) -> &str {
        self.find(&self.serving).map(|it| it.commit.as_str()).unwrap_or_default()
    }

    fn find(&self, id: &str) -> Option<&Deployment> {
        self.deployments.iter().find(|it| it.id == id)
    }

    /// Time goes on: each build by one state.
    fn advance(&mut self) {
        let serving = self.find(&self.serving).map_or(0, |it| it.created);
        let mut promoted = None;
        for it in &mut self.deployments {
            let next = match (it.state.as_str(), &it.build) {
                (state, Build::Stuck(at)) if state == *at => continue,
                ("QUEUED", _) => "INITIALIZING",
                ("INITIALIZING", _) => "BUILDING",
                ("BUILDING", Build::Fails(message)) => {
                    it.error = Some((*message).to_owned());
                    "ERROR"
                }
                ("BUILDING", Build::Cancelled) => "CANCELED",
                ("BUILDING", _) => {
                    it.substate = Some("STAGED".to_owned());
                    "READY"
                }
                ("READY", _) => {
                    let production =
                        it.target.as_deref() == Some("production") && it.build != Build::WithoutDomain;
                    if !it.assigned && production && self.auto_assign && it.created > serving {
                        (it.assigned, it.substate) = (true, Some("PROMOTED".to_owned()));
                        promoted = Some(it.id.clone());
                    }
                    continue;
                }
                _ => continue,
            };
            it.state = next.to_owned();
        }
        if let Some(promoted) = promoted {
            self.serving = promoted;
        }
    }
}

impl Variable {
    fn json(&self, shown: bool, text_target: bool) -> Value {
        let clear = self.kind == "plain" || (shown && self.kind == "encrypted");
        let target = if text_target { json!(self.targets[0]) } else { json!(self.targets) };
        let mut value = json!({
            "id": self.id, "key": self.key, "type": self.kind, "target": target,
            "value": if clear { self.value.clone() } else { "eyJ2IjoidjIiLCJlcGsiOnsieCI6".to_owned() },
            "createdAt": self.created, "updatedAt": self.updated, "createdBy": "usr_1",
            // Not in the description; the vendor's newest client asks for it.
            "securityIssues": [],
        });
        if shown {
            value["decrypted"] = json!(clear);
        }
        value
    }
}

impl Deployment {
    fn url(&self) -> String {
        format!("{NAME}-{}.vercel.app", self.id)
    }

    /// As it is answered by itself.
    fn json(&self) -> Value {
        json!({
            "id": self.id, "name": NAME, "projectId": PROJECT, "url": self.url(), "createdAt": self.created,
            "readyState": self.state, "status": self.state, "readySubstate": self.substate,
            "aliasAssigned": self.assigned, "aliasError": null, "meta": self.meta, "target": self.target,
            "errorCode": self.error.as_ref().map(|_| "BUILD_FAILED"), "errorMessage": self.error,
            "inspectorUrl": format!("https://vercel.com/raceday/{}", self.id),
            "bootedAt": self.created, "buildingAt": self.created, "buildSkipped": false, "build": {"env": []},
            "env": [], "creator": {"uid": "usr_1"}, "public": false, "regions": ["iad1"], "routes": null,
            "type": "LAMBDAS", "version": 2, "plan": "pro", "createdIn": "iad1", "ownerId": "team_raceday",
            "isInConcurrentBuildsQueue": false, "isInSystemBuildsQueue": false, "projectSettings": {},
        })
        .without_nulls(&["readySubstate", "target", "errorCode", "errorMessage"])
    }

    /// As a list has it.
    fn row(&self) -> Value {
        let ms: Value = if self.assigned { json!(self.created + 1) } else { json!(false) };
        json!({
            "uid": self.id, "name": NAME, "projectId": PROJECT, "url": self.url(), "created": self.created,
            "createdAt": self.created, "state": self.state, "readyState": self.state,
            "readySubstate": self.substate, "aliasAssigned": ms, "meta": self.meta, "target": self.target,
            "errorCode": self.error.as_ref().map(|_| "BUILD_FAILED"), "errorMessage": self.error,
            "type": "LAMBDAS", "creator": {"uid": "usr_1"},
            "inspectorUrl": format!("https://vercel.com/raceday/{}", self.id),
        })
        .without_nulls(&["readySubstate", "target", "errorCode", "errorMessage"])
    }
}

trait WithoutNulls {
    fn without_nulls(self, keys: &[&str]) -> Self;
}

impl WithoutNulls for Value {
    fn without_nulls(mut self, keys: &[&str]) -> Self {
        if let Some(map) = self.as_object_mut() {
            map.retain(|key, value| !value.is_null() || !keys.contains(&key.as_str()));
        }
        self
    }
}

pub(super) fn api() -> Router<Arc<Mutex<World>>> {
    Router::new()
        .route("/v10/projects/{project}/env", get(list_variables).post(create_variable))
        .route("/v9/projects/{project}/env/{id}", patch(edit_variable).delete(remove_variable))
        .route("/v1/projects/{project}/env/{id}", get(show_variable))
        // refit asks for the first, the vendor's newest client for the second.
        .route("/v6/deployments", get(list_deployments))
        .route("/v7/deployments", get(list_deployments))
        .route("/v13/deployments", post(deploy))
        .route("/v13/deployments/{id}", get(show_deployment))
        .route("/v12/deployments/{id}/cancel", patch(cancel))
        .route("/v10/projects/{project}/promote/{id}", post(promote))
}

pub(super) fn app() -> Router<Arc<Mutex<World>>> {
    Router::new().route("/app/version", get(version))
}

/// What the deployed app says: it sees the variables of its own deployment.
async fn version(State(world): Shared) -> Json<Value> {
    let world = world.lock().unwrap();
    let empty = BTreeMap::new();
    let env = world.find(&world.serving).map_or(&empty, |it| &it.env);
    Json(json!({
        "model": {"version": env.get("MODEL_VERSION").map_or("built-in", String::as_str)},
        "canary": env.get("MODEL_VERSION_CANARY"), "percent": env.get("CANARY_PERCENT"),
        "commit": world.serving_commit(),
    }))
}

fn known(project: &str) -> Result<(), Response> {
    if [PROJECT, NAME].contains(&project) {
        Ok(())
    } else {
        Err(refuse(404, "not_found", "Project not found."))
    }
}

async fn list_variables(
    State(world): Shared,
    Path(project): Path<String>,
    query: Query,
    headers: HeaderMap,
) -> Answer {
    let world = world.lock().unwrap();
    world.admit(&headers, &query)?;
    known(&project)?;
    if let ([variable], ListShape::Single) = (world.variables.as_slice(), world.shape) {
        return Ok(Json(variable.json(false, true)));
    }
    let envs: Vec<Value> = world.variables.iter().map(|it| it.json(false, false)).collect();
    Ok(Json(match world.shape {
        ListShape::Paginated => {
            json!({"envs": envs, "pagination": {"count": envs.len(), "next": 0, "prev": 0}})
        }
        ListShape::Envs | ListShape::Single => json!({"envs": envs}),
    }))
}

async fn create_variable(
    State(world): Shared,
    Path(project): Path<String>,
    query: Query,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Result<(StatusCode, Json<Value>), Response> {
    let mut world = world.lock().unwrap();
    world.admit(&headers, &query)?;
    known(&project)?;
    if let Some(code) = world.fail_create.take() {
        let failed = json!([{"error": {"code": code, "message": "It was not created.", "key": body["key"]}}]);
        return Ok((StatusCode::CREATED, Json(json!({"created": [], "failed": failed}))));
    }
    let key = body["key"].as_str().unwrap_or_default();
    let mut targets: Vec<String> = serde_json::from_value(body["target"].clone()).unwrap_or_default();
    targets.sort();
    let value = body["value"].as_str().unwrap_or_default();
    let at = world.tick();
    let upsert = query.get("upsert").is_some_and(|upsert| upsert == "true");
    let overlapping = world
        .variables
        .iter_mut()
        .find(|it| it.key == key && it.targets.iter().any(|it| targets.contains(it)));
    if let Some(there) = overlapping {
        // An upsert matches the key and the exact list of targets.
        if !upsert || there.targets != targets {
            let said = format!("A variable with the name `{key}` already exists for the target production.");
            return Err(refuse(400, "ENV_CONFLICT", &said));
        }
        (there.value, there.updated) = (value.to_owned(), at);
        let created = there.json(false, false);
        return Ok((StatusCode::CREATED, Json(json!({"created": created, "failed": []}))));
    }
    let variable = Variable {
        id: format!("env_{at}"),
        key: key.to_owned(),
        value: value.to_owned(),
        kind: body["type"].as_str().unwrap_or_default().to_owned(),
        targets,
        created: at,
        updated: at,
    };
    let created = variable.json(false, false);
    world.variables.push(variable);
    Ok((StatusCode::CREATED, Json(json!({"created": created, "failed": []}))))
}

async fn edit_variable(
    State(world): Shared,
    Path((project, id)): Path<(String, String)>,
    query: Query,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Answer {
    let mut world = world.lock().unwrap();
    world.admit(&headers, &query)?;
    known(&project)?;
    let at = world.tick();
    let variable = world.variables.iter_mut().find(|it| it.id == id);
    let variable = variable.ok_or_else(|| refuse(404, "not_found", "The variable was not found."))?;
    if let Some(value) = body["value"].as_str() {
        (variable.value, variable.updated) = (value.to_owned(), at);
    }
    Ok(Json(variable.json(false, false)))
}

async fn remove_variable(
    State(world): Shared,
    Path((project, id)): Path<(String, String)>,
    query: Query,
    headers: HeaderMap,
) -> Answer {
    let mut world = world.lock().unwrap();
    world.admit(&headers, &query)?;
    known(&project)?;
    let at = world.variables.iter().position(|it| it.id == id);
    let at = at.ok_or_else(|| refuse(404, "not_found", "The variable was not found."))?;
    Ok(Json(world.variables.remove(at).json(false, false)))
}

async fn show_variable(
    State(world): Shared,
    Path((project, id)): Path<(String, String)>,
    query: Query,
    headers: HeaderMap,
) -> Answer {
    let world = world.lock().unwrap();
    world.admit(&headers, &query)?;
    known(&project)?;
    let variable = world.variables.iter().find(|it| it.id == id);
    // The API describes no 404 here.
    let variable = variable.ok_or_else(|| refuse(400, "not_found", "The variable was not found."))?;
    Ok(Json(variable.json(true, false)))
}

async fn list_deployments(State(world): Shared, query: Query, headers: HeaderMap) -> Answer {
    let mut world = world.lock().unwrap();
    world.admit(&headers, &query)?;
    known(query.get("projectId").map(String::as_str).unwrap_or_default())?;
    world.advance();
    let target = query.get("target");
    let wanted = |it: &&Deployment| {
        target.is_none_or(|target| it.target.as_ref() == Some(target))
            && query.get("state").is_none_or(|state| state == &it.state)
    };
    let limit = query.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(20);
    let rows: Vec<Value> =
        world.deployments.iter().rev().filter(wanted).take(limit).map(Deployment::row).collect();
    Ok(Json(json!({"deployments": rows, "pagination": {"count": rows.len(), "next": null, "prev": null}})))
}

async fn deploy(State(world): Shared, query: Query, headers: HeaderMap, Json(body): Json<Value>) -> Answer {
    let mut world = world.lock().unwrap();
    world.admit(&headers, &query)?;
    if let Some(before) = world.before_deploy.take() {
        before(&mut world);
    }
    let from = body["deploymentId"].as_str().unwrap_or_default();
    let commit = world.find(from).map(|it| it.commit.clone());
    let commit = commit.ok_or_else(|| refuse(404, "not_found", "The deployment was not found."))?;
    let meta = serde_json::from_value(body["meta"].clone()).unwrap_or_default();
    let target = body["target"].as_str().map(ToOwned::to_owned);
    let made = world.make(&commit, target, meta).json();
    if let Some(after) = world.after_deploy.take() {
        after(&mut world);
    }
    Ok(Json(made))
}

async fn show_deployment(
    State(world): Shared,
    Path(id): Path<String>,
    query: Query,
    headers: HeaderMap,
) -> Answer {
    let mut world = world.lock().unwrap();
    world.admit(&headers, &query)?;
    let id = if id == DOMAIN { world.serving.clone() } else { id };
    let missing = || refuse(404, "not_found", "The deployment could not be found.");
    let shown = world.find(&id).ok_or_else(missing)?.json();
    world.advance();
    Ok(Json(shown))
}

async fn cancel(State(world): Shared, Path(id): Path<String>, query: Query, headers: HeaderMap) -> Answer {
    let mut world = world.lock().unwrap();
    world.admit(&headers, &query)?;
    let deployment = world.deployments.iter_mut().find(|it| it.id == id);
    let deployment = deployment.ok_or_else(|| refuse(404, "not_found", "The deployment was not found."))?;
    if !["QUEUED", "INITIALIZING", "BUILDING"].contains(&deployment.state.as_str()) {
        return Err(refuse(400, "bad_request", "The deployment has ended."));
    }
    deployment.state = "CANCELED".to_owned();
    Ok(Json(deployment.json()))
}

async fn promote(
    State(world): Shared,
    Path((project, id)): Path<(String, String)>,
    query: Query,
    headers: HeaderMap,
) -> Result<Response, Response> {
    let mut world = world.lock().unwrap();
    world.admit(&headers, &query)?;
    known(&project)?;
    let deployment = world.deployments.iter_mut().find(|it| it.id == id && it.state == "READY");
    let deployment = deployment.ok_or_else(|| refuse(409, "conflict", "The deployment is not ready."))?;
    (deployment.assigned, deployment.substate) = (true, Some("PROMOTED".to_owned()));
    (world.serving, world.auto_assign) = (id, true);
    Ok(StatusCode::CREATED.into_response())
}
