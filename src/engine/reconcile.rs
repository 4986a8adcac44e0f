//! Compares what hosts show with what they should: a release that was decided
//! but not shown is shown; one that somebody changed by hand is never
//! overwritten: only our canary is taken off it, and people are told, once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::json;
use sha2::{Digest, Sha256};

use super::Engine;
use super::release::{Change, DuringFreeze, ReleaseError};
use crate::adapter::{Attention, Observed, Target};
use crate::domain::id::{ModelName, RunId, TargetName};
use crate::domain::release::{Assignment, CanaryServed, Release, ReleaseActor, ReleaseDocument, Served};
use crate::domain::workflow::Moment;
use crate::store::{ReleaseAudit, StoreError};

/// Changes of a release among which what a host shows is looked for.
const REMEMBERED: u32 = 50;

/// The newest of each release that people were told of.
pub(super) type Told = Mutex<BTreeMap<(ModelName, TargetName), Attention>>;

/// What a host shows, seen from what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    /// The newest change.
    Current,
    /// An earlier change, or nothing yet: the newest one is on its way or was lost.
    Behind,
    /// A change made since the release was read.
    Ahead,
    /// Nothing that refit wrote.
    Foreign,
}

impl Engine {
    /// Compares every release with its host, and returns how many hosts were changed.
    ///
    /// # Errors
    /// The last failure of the database; a host that does not answer is asked again at the next look.
    pub async fn reconcile_releases(self: &Arc<Self>) -> Result<usize, StoreError> {
        let (mut changed, mut failed) = (0, None);
        for release in self.store.releases(None).await? {
            match self.reconcile(&release).await {
                Ok(true) => changed += 1,
                Ok(false) => {}
                Err(ReleaseError::Store(error)) => failed = Some(error),
                Err(error) => {
                    tracing::warn!(model = %release.model, target = %release.target,
                        "Release of `{}` on `{}` could not be compared: {error}", release.model, release.target);
                }
            }
        }
        failed.map_or(Ok(changed), Err)
    }

    async fn reconcile(self: &Arc<Self>, release: &Release) -> Result<bool, ReleaseError> {
        let Some(host) = self.services.targets.get(&release.target) else {
            return Err(ReleaseError::UnknownTarget { target: release.target.clone() });
        };
        let observed = host.read(&release.model).await?;
        if let Some(attention) = observed.as_ref().and_then(|observed| observed.attention.as_ref()) {
            self.tell_of(release, attention).await;
        }
        // Read after the host, so that it holds whatever the host may show of ours.
        let history = self.store.release_history(&release.model, &release.target, REMEMBERED).await?;
        match self.shown(release, observed.as_ref(), &history) {
            Shown::Ahead => Ok(false),
            Shown::Current if release.is_applied() => Ok(false),
            Shown::Current => {
                self.store.release_applied(&release.model, &release.target, release.generation).await?;
                Ok(false)
            }
            Shown::Behind => {
                self.show(release).await?;
                Ok(true)
            }
            Shown::Foreign => self.changed_by_hand(host.as_ref(), release, observed, &history).await,
        }
    }

    /// Says what somebody may want otherwise at the host: once, however often it is seen. Where that fails the release
    /// is shown all the same, and the next look says it.
    async fn tell_of(&self, release: &Release, attention: &Attention) {
        let about = (release.model.clone(), release.target.clone());
        let told = || self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told().get(&about) == Some(attention) {
            return;
        }
        match self.queue_attention(release, attention).await {
            Ok(()) => drop(told().insert(about, attention.clone())),
            Err(error) => {
                tracing::warn!(model = %release.model, target = %release.target,
                    "Nobody was told yet of what `{}` shows: {error}", release.target);
            }
        }
    }

    /// Queues it; what another process queued is not queued again.
    async fn queue_attention(&self, release: &Release, attention: &Attention) -> Result<(), StoreError> {
        let history = self.store.release_history(&release.model, &release.target, 1).await?;
        let run = release.owner.or_else(|| history.first().and_then(|change| run_of(&change.actor)));
        let facts = json!({"reason": attention.what, "todo": attention.todo, "target": release.target});
        let state = Sha256::digest(&attention.what);
        let key = format!("attention/{}/{}", release.target, hex::encode(&state[..8]));
        self.alert_about(&release.model, run, &key, facts).await
    }

    fn shown(&self, release: &Release, observed: Option<&Observed>, history: &[ReleaseAudit]) -> Shown {
        let Some(observed) = observed else {
            return if release.applied.is_none() { Shown::Behind } else { Shown::Foreign };
        };
        let document = &observed.document;
        let ours = document.instance == self.services.instance;
        if ours && document.generation < release.generation && shows(document, &release.desired) {
            // Somebody did by hand what was decided since.
            return Shown::Behind;
        }
        let written = |change: &ReleaseAudit| {
            change.generation == document.generation && shows(document, &change.assignment)
        };
        if !ours || !history.iter().any(written) {
            return Shown::Foreign;
        }
        match document.generation.cmp(&release.generation) {
            std::cmp::Ordering::Less => Shown::Behind,
            std::cmp::Ordering::Equal => Shown::Current,
            std::cmp::Ordering::Greater => Shown::Ahead,
        }
    }

    async fn changed_by_hand(
        self: &Arc<Self>,
        host: &dyn Target,
        release: &Release,
        observed: Option<Observed>,
        history: &[ReleaseAudit],
    ) -> Result<bool, ReleaseError> {
        let reason = format!("`{}` was changed by hand: its canary is taken off it", release.target);
        let run = release.owner.or_else(|| history.first().and_then(|change| run_of(&change.actor)));
        let mut current = release.clone();
        if current.desired.canary.is_some() {
            let assignment = Assignment { canary: None, ..current.desired.clone() };
            let actor = match run {
                Some(run) => ReleaseActor::Controller { run },
                None => ReleaseActor::Human { name: "somebody at the host".to_owned() },
            };
            let (moment, during_freeze) = (Moment::RolledBack, DuringFreeze::Made);
            let (actor, reason) = (&actor, reason.as_str());
            let change = Change { assignment, moment, during_freeze, actor, reason, bad: None, by_run: None };
            match self.replace(&current, change).await? {
                Some((release, _hears)) => current = release,
                // Somebody was faster: the next look compares with what they wrote.
                None => return Ok(false),
            }
        }
        let document = observed.as_ref().map(|observed| &observed.document);
        let shows =
            document.map(|document| json!({"champion": document.champion, "instance": document.instance}));
        let facts = json!({
            "reason": format!("`{}` was changed by hand on `{}`", release.model, release.target),
            "todo": "Set the host back to what refit decided, or say which version is to serve: `refit promote VERSION`.",
            "target": release.target,
            "expected": current.desired.champion.as_ref().map(|served| &served.version),
            "shows": shows,
        });
        // The same for one state of the host, however often it is seen and whether or not our canary was on it.
        let state = Sha256::digest(shows.map(|shows| shows.to_string()).unwrap_or_default());
        let key = format!("changed-by-hand/{}/{}", release.target, hex::encode(&state[..8]));
        // First: people hear of it also where the host refuses what follows.
        self.alert_about(&release.model, run, &key, facts).await?;
        let canary = document
            .filter(|document| document.canary.is_some() && document.instance == self.services.instance);
        if let Some(document) = canary {
            let stripped = Release {
                generation: current.generation.max(document.generation),
                desired: Assignment { champion: document.champion.clone(), ..Assignment::default() },
                ..current.clone()
            };
            host.apply(&stripped, self.services.instance).await?;
        }
        Ok(canary.is_some())
    }
}

fn run_of(actor: &ReleaseActor) -> Option<RunId> {
    match actor {
        ReleaseActor::Run { run } | ReleaseActor::Controller { run } | ReleaseActor::Undo { run } => {
            Some(*run)
        }
        ReleaseActor::Human { .. } => None,
    }
}

/// Whether a document shows `assignment`, however long its canary is valid.
pub(super) fn shows(document: &ReleaseDocument, assignment: &Assignment) -> bool {
    fn canary(canary: &CanaryServed) -> (&Served, u16, &str) {
        (&canary.served, canary.basis_points.0, &canary.salt)
    }
    document.champion == assignment.champion
        && document.canary.as_ref().map(canary) == assignment.canary.as_ref().map(canary)
}
