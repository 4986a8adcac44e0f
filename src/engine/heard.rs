//! A change of a release that a person makes by hand: who hears of it, where no run says it, and what. Queued with the
//! change itself, so that it is told once, whatever dies.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Engine, notices, situation};
use crate::domain::Timestamp;
use crate::domain::id::{RunId, VersionName, WorkflowName};
use crate::domain::release::{Assignment, Release, ReleaseActor, Served};
use crate::domain::run::{Outcome, Run, RunStatus};
use crate::domain::workflow::{Moment, Recipient, Workflow};
use crate::store::{Notice, StoreError};

/// Who hears of a change of a release, beside who made it.
#[derive(Debug, Clone, PartialEq)]
pub enum Hears {
    /// Whoever hears of the run that made it, or that it ends the canary of: that run says it.
    OfItsRun,
    /// These, from the change itself.
    These(Vec<Recipient>),
    /// Nobody, and why not.
    Nobody(String),
}

/// A change of a release, before it is made.
pub(super) struct Made<'a> {
    pub current: &'a Release,
    pub assignment: &'a Assignment,
    /// A promotion or a rollback.
    pub moment: Moment,
    pub actor: &'a ReleaseActor,
    pub reason: &'a str,
    /// The run whose canary or bake ends with it.
    pub ends: Option<RunId>,
}

/// The reason that is kept of a change for which its maker gave none.
pub fn without_reason(moment: Moment, who: &str) -> String {
    let made = if moment == Moment::RolledBack { "rolled back" } else { "promoted" };
    format!("{made} by {who}")
}

impl Made<'_> {
    /// The new champion, unless that stays.
    fn begins(&self) -> Option<&Served> {
        let champion = self.assignment.champion.as_ref();
        champion.filter(|served| !self.current.desired.serves(served))
    }

    /// The old champion, unless that stays.
    fn stops(&self) -> Option<&Served> {
        let champion = self.current.desired.champion.as_ref();
        champion.filter(|served| !self.assignment.serves(served))
    }

    fn canary(&self) -> Option<&Served> {
        self.current.desired.canary.as_ref().map(|canary| &canary.served)
    }

    /// What it changes, by who is to say who hears of it: what begins to serve, what stops, what stays.
    fn versions(&self) -> impl Iterator<Item = &VersionName> {
        let stays = self.assignment.champion.as_ref().filter(|_| self.begins().is_none());
        let all = [self.begins(), self.stops(), self.canary(), stays];
        all.into_iter().flatten().map(|served| &served.version)
    }

    /// The version that a message about it is about.
    fn version(&self) -> Option<&VersionName> {
        let served = match self.begins() {
            Some(begins) if self.moment == Moment::Promoted => Some(begins),
            Some(_) => self.stops(),
            None => self.canary(),
        };
        served.map(|served| &served.version)
    }

    /// Why, if its maker said it.
    fn given_reason(&self) -> Option<&str> {
        let who = self.actor.to_string();
        let none = [Moment::Promoted, Moment::RolledBack].map(|moment| without_reason(moment, &who));
        Some(self.reason).filter(|reason| none.iter().all(|none| none != reason))
    }

    /// What is to serve, and what did. No host shows it yet, and one may be away.
    fn serving(&self, at: Timestamp) -> String {
        let name = |served: Option<&Served>| served.map_or("nothing".to_owned(), |it| it.version.to_string());
        let instead = self.stops().map(|served| format!(" instead of {}", served.version));
        let canary = self.current.desired.canary.as_ref();
        let canary = canary
            .map(|canary| format!("; {} was on canary at {}", canary.served.version, canary.basis_points));
        format!(
            "{} is to serve all traffic of `{}`{}, from {} on{}.",
            name(self.assignment.champion.as_ref()),
            self.current.target,
            instead.unwrap_or_default(),
            situation::day_and_time(at),
            canary.unwrap_or_default()
        )
    }
}

impl Engine {
    /// Who hears of `change`, and what is to be queued for them if it is by hand. Nothing that cannot be read keeps a change
    /// from being made.
    pub(super) async fn heard(&self, change: &Made<'_>) -> (Hears, Vec<Notice>) {
        match change.actor {
            ReleaseActor::Human { .. } => {}
            ReleaseActor::Run { .. } | ReleaseActor::Controller { .. } | ReleaseActor::Undo { .. } => {
                return (Hears::OfItsRun, vec![]);
            }
        }
        if change.begins().is_none() && change.canary().is_none() && change.ends.is_none() {
            let why = "everybody gets the version that was decided before".to_owned();
            return (Hears::Nobody(why), vec![]);
        }
        // A promotion of another version is no run's to say; what it ends is said beside it.
        let ends = change.ends.or(change.current.owner).filter(|_| change.moment == Moment::RolledBack);
        let says_it = match ends {
            Some(run) => self.is_to_say_it(run).await,
            None => false,
        };
        let Some((run, workflow)) = self.concerned(change).await else {
            let versions: Vec<String> = change.versions().map(ToString::to_string).collect();
            let why = format!("no run is known that made {}", versions.join(" or "));
            return (if says_it { Hears::OfItsRun } else { Hears::Nobody(why) }, vec![]);
        };
        let recipients = notices::recipients(&workflow, change.moment);
        // A run that has a canary out and did not record it yet finds that it is gone.
        let left_to_its_run = says_it && change.ends.is_none();
        let queued =
            if left_to_its_run { vec![] } else { self.told_by_hand(change, &run.workflow, &recipients) };
        let hears = match (says_it, recipients.is_empty()) {
            (true, _) => Hears::OfItsRun,
            (false, false) => Hears::These(recipients),
            (false, true) => Hears::Nobody(format!(
                "`notify:` of {} has nobody for `{}`",
                run.workflow,
                notices::word(change.moment)
            )),
        };
        (hears, queued)
    }

    /// A message of `change` to each of `recipients`, whom `workflow` names. It is about no run.
    fn told_by_hand(
        &self,
        change: &Made<'_>,
        workflow: &WorkflowName,
        recipients: &[Recipient],
    ) -> Vec<Notice> {
        let Release { model, target, generation, .. } = change.current;
        let (at, generation) = (self.clock.now(), generation.next());
        let receipt = format!("v1/models/{model}/receipts/{generation}?target={target}");
        let page = self.settings.public_url.as_ref().and_then(|url| url.join(&receipt).ok());
        let links: Vec<Value> =
            page.iter().map(|page| json!({"label": "Read the receipt", "url": page})).collect();
        let promoted = change.moment == Moment::Promoted;
        let first = promoted && change.assignment.previous.is_none();
        let next = "it is not watched; should it harm, `refit rollback` takes it back";
        let facts = json!({
            "at": at, "workflow": workflow, "model": model, "target": target, "version": change.version(),
            "by": change.actor.to_string(), "reason": change.given_reason(), "serving": change.serving(at), "first": first,
            "next": (promoted && !first).then_some(next),
            "links": links, "command": format!("refit model history {model}"),
        });
        let to_each = recipients.iter().enumerate().map(|(index, recipient)| Notice {
            key: format!("{model}/by-hand/{target}/{generation}/{index}"),
            run: None,
            model: model.clone(),
            moment: change.moment,
            to: recipient.clone(),
            facts: facts.clone(),
        });
        to_each.collect()
    }

    /// The run whose workflow says who hears of it: the first that is known of those that made its versions.
    async fn concerned(&self, change: &Made<'_>) -> Option<(Run, Arc<Workflow>)> {
        for version in change.versions() {
            match self.maker(change, version).await {
                Ok(Some(found)) => return Some(found),
                Ok(None) => {}
                Err(error) => tracing::error!(model = %change.current.model, %version,
                    "Whom the workflow of {version} tells of a change by hand is not known: {error}"),
            }
        }
        None
    }

    /// The run that made `version`, and its workflow; none for one that was adopted, or whose run is gone.
    async fn maker(
        &self,
        change: &Made<'_>,
        version: &VersionName,
    ) -> Result<Option<(Run, Arc<Workflow>)>, String> {
        let record =
            self.store.version(&change.current.model, version).await.map_err(|error| error.to_string())?;
        let Some(run) = record.and_then(|record| record.run) else { return Ok(None) };
        let Some(run) = self.store.run(run).await.map_err(|error| error.to_string())? else {
            return Ok(None);
        };
        let workflow = self.workflow(&run.definition)?;
        Ok(Some((run, workflow)))
    }

    /// Whether a run is there to say what becomes of its version, and does not end as something else already.
    async fn is_to_say_it(&self, run: RunId) -> bool {
        match self.says_rollbacks(run).await {
            Ok(says_it) => says_it,
            Err(error) => {
                tracing::error!(run.id = %run, "Whether run {run} says what becomes of its version is not known: {error}");
                false
            }
        }
    }

    async fn says_rollbacks(&self, run: RunId) -> Result<bool, StoreError> {
        let Some(run) = self.store.run(run).await? else { return Ok(false) };
        match run.outcome.filter(|_| run.status != RunStatus::Finished) {
            // A first version has no canary, and does not bake.
            Some(Outcome::Promoted) => Ok(self.store.canary_of(run.id).await?.is_some()),
            Some(outcome) => Ok(!outcome.passes_over_rollbacks()),
            None => Ok(run.status != RunStatus::Finished),
        }
    }
}
