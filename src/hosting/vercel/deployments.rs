//! Deployments of a project: which one serves, and a new one of the same code
//! when the variables have changed since it was made.
//!
//! The API has no idempotency key: every deployment of refit's carries its
//! release in `meta`, and is looked for there before another one is asked for.
//! Only code that serves is built again. The team's own deployments are never
//! rolled back, promoted or cancelled; a build of refit's that would put older
//! code over them is.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;

use super::api::{Api, Call, Failure};
use super::deployment::{Deployment, META_FROM, META_RELEASE, META_SEEN, META_VALUES, State, is_older};
use crate::adapter::{AdapterError, Attention};
use crate::http_client::excerpt;

/// One release is built at most this often: a build that fails every time is not tried at every look.
const BUILDS: usize = 3;
/// Looks at a deployment that is ready but not assigned, before refit assigns its own or looks past another's.
const STAGED_LOOKS: u32 = 10;

#[derive(Deserialize)]
struct Listed {
    deployments: Vec<Deployment>,
}

/// What is to be waited for, or that there is nothing more.
enum Turn {
    Serves,
    Wait(String),
}

/// A change as deployments are asked for it.
pub(super) struct Change<'c> {
    /// The same on every attempt: instance, model and generation.
    pub release: &'c str,
    /// What the variables say.
    pub values: &'c str,
    /// When they were last changed, in ms since 1970 by Vercel's clock.
    pub changed_at: Option<f64>,
}

/// The newest deployment of the team's own that `serving`, a build of older code, was put over: one that had the
/// domain, or that may yet get it while this wait watches.
fn overtaken<'a>(serving: &Deployment, all: &'a [Deployment], waiting: &Waiting) -> Option<&'a Deployment> {
    let watched = waiting.ours.as_deref() == Some(serving.id()) && !waiting.promoted;
    let unknown = all.iter().filter(|it| !it.is_refits() && serving.did_not_know(it));
    let mut lost = unknown.filter(|it| match it.state() {
        State::Serving | State::Rolling => true,
        State::UnderWay => watched,
        State::Staged => watched && waiting.passed_by < STAGED_LOOKS,
        State::Failed => false,
    });
    // Newest first.
    lost.next()
}

/// What one wait remembers between looks.
#[derive(Default)]
struct Waiting {
    /// The deployment of refit's that was seen under way, and that refit did not cancel; or that served already.
    ours: Option<String>,
    /// A build was seen or asked for.
    begun: bool,
    staged: u32,
    /// Refit's own was assigned by refit, not by Vercel.
    promoted: bool,
    /// Looks at one of somebody else's that is ready but not assigned.
    others: u32,
    /// Looks at one of those that refit's own, which serves, was made after.
    passed_by: u32,
    /// One that stayed so: people are told.
    left: Option<Attention>,
}

/// The deployments of one project.
pub(super) struct Deployments<'d> {
    /// The API.
    pub api: &'d Api,
    /// The project's id or name.
    pub project: &'d str,
    /// How messages call it.
    pub label: &'d str,
    /// Production's domain: it says for certain which deployment serves.
    pub domain: Option<&'d str>,
    /// Between looks.
    pub poll: Duration,
    /// All in all.
    pub at_most: Duration,
    /// Whether a newer change waits for this one to end.
    pub superseded: &'d (dyn Fn() -> bool + Send + Sync),
}

impl Deployments<'_> {
    fn rejected(&self, action: &str, cause: String) -> AdapterError {
        AdapterError::Rejected { service: self.label.to_owned(), action: action.to_owned(), cause }
    }

    /// Returns once a deployment serves that has the variables as they are now, and makes one if there is
    /// none. One that was asked for before is found by the release in its `meta`. Returns what people are to be told.
    pub async fn serve(&self, change: &Change<'_>) -> Result<Option<Attention>, AdapterError> {
        let since = Instant::now();
        let mut waiting = Waiting::default();
        let mut what = "the first answer".to_owned();
        loop {
            if (self.superseded)() {
                return Err(AdapterError::Unavailable {
                    service: self.label.to_owned(),
                    cause: "a newer change came while this one was waited for".to_owned(),
                    retry_after: None,
                });
            }
            let mut pause = self.poll;
            match self.turn(change, &mut waiting).await {
                Ok(Turn::Serves) => return Ok(waiting.left),
                Ok(Turn::Wait(next)) => what = next,
                // While a build is under way a look that fails is only a look that failed.
                Err(AdapterError::Unavailable { retry_after, .. })
                    if waiting.begun && since.elapsed() < self.at_most =>
                {
                    pause = pause.max(retry_after.unwrap_or_default());
                }
                Err(error) => return Err(error),
            }
            if since.elapsed() >= self.at_most {
                return Err(AdapterError::Unavailable {
                    service: self.label.to_owned(),
                    cause: format!("still waiting for {what} after {:?}", self.at_most),
                    retry_after: None,
                });
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn turn(&self, change: &Change<'_>, waiting: &mut Waiting) -> Result<Turn, AdapterError> {
        let Change { release, values, changed_at } = *change;
        let all = self.list().await?;
        let serving = self.serving(&all).await?;
        let ours: Vec<&Deployment> = all.iter().filter(|it| it.meta(META_RELEASE) == Some(release)).collect();
        let is_ours = |it: &Deployment| it.meta(META_RELEASE) == Some(release);
        let carries = |it: &Deployment| match changed_at {
            Some(changed_at) => it.made_at() > changed_at || (is_ours(it) && it.made_at() >= changed_at),
            None => is_ours(it),
        };
        // Refit's own that may yet take the domain from what serves.
        let after = serving.as_ref().map_or(0.0, |(serving, _)| serving.made_at());
        let comes = |it: &Deployment| {
            let older = it.meta(META_RELEASE).is_some_and(|older| is_older(older, release));
            (older || is_ours(it)) && it.made_at() > after && it.state() != State::Failed
        };
        let as_before = |it: &Deployment| it.meta(META_VALUES) == Some(values) && !all.iter().any(comes);
        if let Some((serving, _)) = serving.as_ref().filter(|(serving, _)| is_ours(serving)) {
            // One that serves at the first look is of a try that came to no end: nobody was told what that one saw.
            waiting.ours.get_or_insert_with(|| serving.id().to_owned());
            if let Some(newer) = overtaken(serving, &all, waiting) {
                return self.catch_up(newer, change, &ours, &all, waiting).await;
            }
        }
        if let Some((serving, _)) =
            serving.as_ref().filter(|(serving, _)| carries(serving) || as_before(serving))
        {
            // Somebody else's deployment came first, with the same variables: a build of refit's that is still
            // under way would put older code or an older release over it.
            for late in all.iter().filter(|it| it.state() == State::UnderWay && it.id() != serving.id()) {
                let older = late.meta(META_RELEASE).is_some_and(|older| is_older(older, release));
                if older || is_ours(late) {
                    self.cancel(late.id()).await?;
                }
            }
            return Ok(Turn::Serves);
        }
        if let Some(failed) =
            ours.iter().find(|it| it.state() == State::Failed && Some(it.id()) == waiting.ours.as_deref())
        {
            return Err(self.failed(failed));
        }
        match ours.iter().find(|it| it.state() != State::Failed) {
            Some(own) => {
                (waiting.ours, waiting.begun) = (Some(own.id().to_owned()), true);
                self.follow(own, &all, serving, waiting).await
            }
            None => {
                let under_way = all.iter().filter(|it| it.state() == State::UnderWay && it.made_at() > after);
                let mut cancelled = false;
                for other in under_way {
                    if !other.meta(META_RELEASE).is_some_and(|older| is_older(older, release)) {
                        return Ok(Turn::Wait(format!("deployment {} of somebody else", other.id())));
                    }
                    // A rollback does not wait for the canary that it takes back.
                    self.cancel(other.id()).await?;
                    cancelled = true;
                }
                if cancelled {
                    return Ok(Turn::Wait("the end of an older build".to_owned()));
                }
                // Assigned in a moment, or never: then it is no code that serves.
                let ready = all.iter().find(|it| it.state() == State::Staged && it.made_at() > after);
                if let Some(ready) = ready.filter(|_| waiting.others < STAGED_LOOKS) {
                    waiting.others += 1;
                    return Ok(Turn::Wait(format!("production's domain to lead to {}", ready.id())));
                }
                let Some((source, _)) = serving else {
                    let cause = "nothing serves in production yet: deploy the app once".to_owned();
                    return Err(self.rejected("build the app again", cause));
                };
                self.build(&source, change, &ours, &all, waiting).await
            }
        }
    }

    /// Builds the code of `source` again, unless that was tried too often.
    async fn build(
        &self,
        source: &Deployment,
        change: &Change<'_>,
        ours: &[&Deployment],
        all: &[Deployment],
        waiting: &mut Waiting,
    ) -> Result<Turn, AdapterError> {
        if ours.len() >= BUILDS {
            let last = ours.iter().find(|it| it.state() == State::Failed);
            let last = last.map(|it| self.failed(it).to_string()).unwrap_or_default();
            let cause = format!("it was tried {} times; {last}", ours.len());
            return Err(self.rejected("build the app again", excerpt(&cause)));
        }
        let made = self.redeploy(source, change, all, ours.len() + 1).await?;
        (waiting.ours, waiting.begun) = (Some(made.id().to_owned()), true);
        Ok(Turn::Wait(format!("deployment {}", made.id())))
    }

    /// A build of refit's came out after the team's own `newer` one and took production's domain from it:
    /// the newer code is built with the variables as they are now. One that is only ready never served, and may
    /// be meant not to: that is the team's to promote.
    async fn catch_up(
        &self,
        newer: &Deployment,
        change: &Change<'_>,
        ours: &[&Deployment],
        all: &[Deployment],
        waiting: &mut Waiting,
    ) -> Result<Turn, AdapterError> {
        if newer.state() == State::Staged {
            waiting.passed_by += 1;
            if waiting.passed_by == STAGED_LOOKS {
                let what = format!(
                    "Deployment {} of {} was built while refit's own was, and production's domain was not \
                     assigned to it.",
                    newer.id(),
                    self.project
                );
                tracing::warn!(project = self.project, newer = newer.id(), "{what}");
                let todo = "If it should serve, promote it on Vercel.".to_owned();
                waiting.left = Some(Attention { what, todo });
            }
            return Ok(Turn::Wait(format!("production's domain to lead to {}", newer.id())));
        }
        let made = ours.iter().filter(|it| it.meta(META_FROM) == Some(newer.id()));
        match made.clone().find(|it| it.state() != State::Failed) {
            Some(own) => {
                (waiting.ours, waiting.begun) = (Some(own.id().to_owned()), true);
                self.follow(own, all, None, waiting).await
            }
            None if newer.state() == State::UnderWay => {
                Ok(Turn::Wait(format!("deployment {} of somebody else", newer.id())))
            }
            None => {
                tracing::warn!(
                    project = self.project,
                    newer = newer.id(),
                    "A build of refit's took the domain of {} from newer code; that is built again",
                    self.project
                );
                self.build(newer, change, ours, all, waiting).await
            }
        }
    }

    /// One of refit's deployments that has not failed and does not serve yet.
    async fn follow(
        &self,
        own: &Deployment,
        all: &[Deployment],
        serving: Option<(Deployment, bool)>,
        waiting: &mut Waiting,
    ) -> Result<Turn, AdapterError> {
        let own = self.get(own.id()).await?;
        let from = own.meta(META_FROM).unwrap_or_default().to_owned();
        let overtakes = |it: &&Deployment| {
            own.did_not_know(it)
                && !it.is_refits()
                && matches!(it.state(), State::UnderWay | State::Serving | State::Rolling)
        };
        match own.state() {
            State::Failed => Err(self.failed(&own)),
            State::UnderWay => {
                if let Some(error) = &own.alias_error {
                    return Err(self.rejected("assign the domain", excerpt(&error.message)));
                }
                if let Some(other) = all.iter().find(overtakes) {
                    self.cancel(own.id()).await?;
                    waiting.ours = None;
                    return Ok(Turn::Wait(format!("deployment {} of somebody else", other.id())));
                }
                Ok(Turn::Wait(format!(
                    "deployment {} ({})",
                    own.id(),
                    own.inspector_url.as_deref().unwrap_or("building")
                )))
            }
            State::Rolling => Ok(Turn::Wait(format!("the rolling release of deployment {}", own.id()))),
            State::Staged => {
                waiting.staged += 1;
                let certain = serving.is_some_and(|(serving, certain)| certain && serving.id() == from);
                if waiting.staged < STAGED_LOOKS {
                    return Ok(Turn::Wait(format!("production's domain to lead to {}", own.id())));
                }
                if !certain {
                    let cause = format!(
                        "deployment {} is built, but Vercel does not assign production's domain to it \
                         (after a rollback there, or when that is switched off) and something else serves now: \
                         promote what should serve, on Vercel",
                        own.id()
                    );
                    return Err(AdapterError::Conflict { service: self.label.to_owned(), cause });
                }
                // The same code with other settings, in the place of exactly that code.
                (waiting.staged, waiting.promoted) = (0, true);
                self.promote(&own).await?;
                Ok(Turn::Wait(format!("the promotion of {}", own.id())))
            }
            // Production's domain leads elsewhere, whatever the deployment says of itself.
            State::Serving => Ok(Turn::Wait(format!("production's domain to lead to {}", own.id()))),
        }
    }

    fn failed(&self, deployment: &Deployment) -> AdapterError {
        let state = deployment.ready_state.as_deref().or(deployment.state.as_deref()).unwrap_or("ERROR");
        let code = deployment.error_code.as_deref().map(|code| format!(" {code}")).unwrap_or_default();
        let message = deployment.error_message.as_deref().unwrap_or("it gave no reason");
        let see = deployment.inspector_url.as_deref().map(|url| format!(", see {url}")).unwrap_or_default();
        let cause =
            excerpt(&format!("deployment {} ended in {state}{code}: {message}{see}", deployment.id()));
        self.rejected("build the app again", cause)
    }

    /// The deployment that serves, and whether that is certain.
    async fn serving(&self, all: &[Deployment]) -> Result<Option<(Deployment, bool)>, AdapterError> {
        if let Some(domain) = self.domain {
            match self.look_up(domain).await {
                Ok(deployment) => return Ok(Some((deployment, true))),
                // Not a domain of this account: then the newest that was promoted serves, as far as can be seen.
                Err(Failure::Refused { status: StatusCode::NOT_FOUND, .. }) => {}
                Err(failure) => return Err(failure.into()),
            }
        }
        Ok(all.iter().find(|it| it.state() == State::Serving).map(|it| (it.clone(), false)))
    }

    /// The deployment that serves now, by its id.
    pub async fn now(&self) -> Result<Option<String>, AdapterError> {
        let all = self.list().await?;
        Ok(self.serving(&all).await?.map(|(serving, _)| serving.id().to_owned()))
    }

    /// Production's deployments, newest first.
    async fn list(&self) -> Result<Vec<Deployment>, AdapterError> {
        let query = [("projectId", self.project), ("target", "production"), ("limit", "50")];
        let call = Call {
            action: "list the deployments",
            method: Method::GET,
            path: &["v6", "deployments"],
            query: &query,
            body: None,
        };
        let Listed { mut deployments } = self.api.call(&call).await?;
        // Whatever the filter made of a name.
        deployments.retain(|it| it.project_id.as_deref() == Some(self.project) || it.name == self.project);
        deployments.sort_by(|a, b| b.made_at().total_cmp(&a.made_at()));
        Ok(deployments)
    }

    async fn look_up(&self, id_or_domain: &str) -> Result<Deployment, Failure> {
        let path = ["v13", "deployments", id_or_domain];
        let call =
            Call { action: "look at a deployment", method: Method::GET, path: &path, query: &[], body: None };
        self.api.call(&call).await
    }

    async fn get(&self, id: &str) -> Result<Deployment, AdapterError> {
        Ok(self.look_up(id).await?)
    }

    async fn redeploy(
        &self,
        source: &Deployment,
        change: &Change<'_>,
        all: &[Deployment],
        attempt: usize,
    ) -> Result<Deployment, AdapterError> {
        let seen = all.iter().map(Deployment::made_at).fold(0.0, f64::max);
        let body = json!({
            "deploymentId": source.id(),
            "name": source.name,
            "target": "production",
            "meta": {
                "action": "redeploy",
                META_RELEASE: change.release,
                META_VALUES: change.values,
                META_FROM: source.id(),
                META_SEEN: seen.to_string(),
                "refitAttempt": attempt.to_string(),
            },
        });
        let call = Call {
            action: "build the app again",
            method: Method::POST,
            path: &["v13", "deployments"],
            query: &[("forceNew", "1")],
            body: Some(body),
        };
        Ok(self.api.call(&call).await?)
    }

    async fn cancel(&self, id: &str) -> Result<(), AdapterError> {
        let path = ["v12", "deployments", id, "cancel"];
        let call = Call {
            action: "cancel a deployment",
            method: Method::PATCH,
            path: &path,
            query: &[],
            body: None,
        };
        match self.api.tell(&call).await {
            Ok(()) => Ok(()),
            // It has just ended by itself: the next look sees how.
            Err(Failure::Refused { status: StatusCode::BAD_REQUEST, .. }) => Ok(()),
            Err(failure) => Err(failure.into()),
        }
    }

    async fn promote(&self, own: &Deployment) -> Result<(), AdapterError> {
        let project = own.project_id.as_deref().unwrap_or(self.project);
        let path = ["v10", "projects", project, "promote", own.id()];
        let call = Call {
            action: "assign production's domain",
            method: Method::POST,
            path: &path,
            query: &[],
            body: Some(json!({})),
        };
        Ok(self.api.tell(&call).await?)
    }
}
