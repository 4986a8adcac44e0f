//! The receipt of one change of a release, whoever made it: what serves since,
//! what served before, why, and what was known at that moment.

use serde::Serialize;

use super::super::Timestamp;
use super::super::because::Evidence;
use super::super::id::{Generation, ModelName, RunId, TargetName, VersionName};
use super::super::metric::Metrics;
use super::super::release::{Assignment, CanaryServed, ReleaseActor, Served};
use super::super::verdict::Verdict;
use super::super::version::VersionState;

/// One change with what was known when it was made.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChangeReceipt {
    /// What it did, in one sentence.
    pub headline: String,
    /// Why, in plain words.
    pub reason: String,
    /// When.
    pub at: Timestamp,
    /// Who made it.
    pub actor: ReleaseActor,
    /// The model.
    pub model: ModelName,
    /// Where.
    pub target: TargetName,
    /// The generation it made.
    pub generation: Generation,
    /// What is served since.
    pub after: Assignment,
    /// What was served before; none where nothing was.
    pub before: Option<Assignment>,
    /// The version that everybody gets since, with what its trainer said of it.
    pub serves: Option<ScoredVersion>,
    /// The other version that it is about: the champion before, else the canary.
    pub served: Option<ScoredVersion>,
    /// What was known of the canary that was out or baked.
    pub evidence: Option<Evidence>,
    /// SHA-256, in lower-case hex, of the workflow that canary is judged under.
    pub configuration: Option<String>,
    /// What it does not promise, in plain words.
    pub limits: Vec<String>,
    /// Commands that show more.
    pub commands: Vec<String>,
    /// The command that takes it back; none where there is none.
    pub undo: Option<String>,
    /// Why there is none, in plain words.
    pub no_undo: Option<String>,
}

/// What became of a change until its receipt is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Since {
    /// No other change of the release was made since.
    pub is_newest: bool,
    /// The state of the version that everybody got before, if it is known.
    pub before: Option<VersionState>,
    /// The version that everybody got before was made after the one that they get since.
    pub went_back: bool,
}

/// A version with what was measured of it before it could serve.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ScoredVersion {
    /// It.
    pub version: VersionName,
    /// The run that made it; none for an adopted one.
    pub run: Option<RunId>,
    /// SHA-256 of its manifest, in lower-case hex.
    pub manifest_sha256: String,
    /// What its trainer said of it.
    pub metrics: Metrics,
}

impl ChangeReceipt {
    /// What a change did.
    pub fn headline_of(
        (model, target): (&ModelName, &TargetName),
        before: Option<&Assignment>,
        after: &Assignment,
    ) -> String {
        let champion = |of: &Assignment| of.champion.as_ref().map(|served| served.version.clone());
        let canary = |of: &Assignment| of.canary.as_ref().map(|canary| canary.served.version.clone());
        let (was, is) = (before.and_then(champion), champion(after));
        if was != is {
            return match (was, is) {
                (Some(was), Some(is)) => {
                    format!("{is} of {model} serves everybody on {target} instead of {was}")
                }
                (None, Some(is)) => {
                    format!("{is} of {model} serves on {target}, where nothing served before")
                }
                (_, None) => format!("Nothing of {model} serves on {target} any more"),
            };
        }
        let share = |of: &CanaryServed| of.basis_points;
        match (before.and_then(canary), &after.canary) {
            (Some(was), Some(is)) if was == is.served.version => {
                format!("The canary {was} of {model} gets {} of the traffic on {target}", share(is))
            }
            (Some(was), Some(is)) => {
                let new = &is.served.version;
                format!("{new} of {model} goes on canary on {target} at {} instead of {was}", share(is))
            }
            (None, Some(is)) => {
                format!("{} of {model} goes on canary on {target} at {}", is.served.version, share(is))
            }
            (Some(was), None) => format!("The canary {was} of {model} was taken off {target}"),
            (None, None) => match before.and_then(|before| moved(before, after)) {
                Some(Served { version, base_url, .. }) => {
                    format!("{version} of {model} on {target} is found at {base_url} from then on")
                }
                None => format!("{model} on {target} serves what it served before"),
            },
        }
    }

    /// What the change does not promise.
    pub fn limits_of(&self) -> Vec<String> {
        let mut limits = vec![];
        match &self.actor {
            ReleaseActor::Human { .. } => limits.push(
                "A person decided: how rarely refit's own decisions are wrong says nothing about this one."
                    .to_owned(),
            ),
            ReleaseActor::Run { .. } | ReleaseActor::Controller { .. } | ReleaseActor::Undo { .. } => {}
        }
        let then = self.evidence.as_ref().map(Evidence::view);
        match then {
            None => {
                limits.push("No canary was out: no request of a user was part of what was known.".to_owned())
            }
            Some(None) => limits.push(
                "The evidence was kept by another version of refit: only its JSON is shown.".to_owned(),
            ),
            Some(Some(canary)) => {
                let champion = self.after.champion.as_ref().map(|served| &served.version);
                let serves = champion == Some(&canary.version);
                match canary.verdict {
                    Verdict::Fail if serves => {
                        limits.push(format!("The evidence spoke against {}.", canary.version));
                    }
                    Verdict::Pass if !serves => {
                        limits.push(format!("The evidence spoke for {}.", canary.version));
                    }
                    Verdict::Inconclusive => limits.push("The evidence had not decided.".to_owned()),
                    Verdict::Error => limits.push("The evidence could not be judged.".to_owned()),
                    Verdict::Fail | Verdict::Pass => {}
                }
            }
        }
        let scored = [&self.serves, &self.served].into_iter().flatten();
        if scored.filter(|version| !version.metrics.values.is_empty()).count() == 2 {
            limits.push(
                "Each version's metrics are what its own trainer said: their holdouts may differ.".to_owned(),
            );
        }
        limits
    }

    /// The command that takes the change back, or why there is none.
    ///
    /// # Errors
    /// None takes it back: other changes came after it, or what was served before is not to be served again.
    pub fn undo_of(&self, since: Since) -> Result<String, String> {
        let Some(before) = &self.before else {
            return Err("Nothing takes it back: nothing was served before.".to_owned());
        };
        if !since.is_newest {
            return Err(
                "Nothing takes it back: the release was changed since, as its history shows.".to_owned()
            );
        }
        let place = format!("--model {} --target {}", self.model, self.target);
        let old = before.champion.as_ref().filter(|old| !self.after.serves(old));
        match (old, &self.after.canary) {
            (Some(Served { version, .. }), _) => match since.before {
                Some(VersionState::Bad) => {
                    Err(format!("Nothing takes it back: {version}, which served before, is marked bad."))
                }
                Some(VersionState::Deleting | VersionState::Deleted) => {
                    Err(format!("Nothing takes it back: {version}, which served before, was deleted."))
                }
                Some(VersionState::Reserved | VersionState::Sealed | VersionState::Abandoned) | None => {
                    let command = if since.went_back { "promote" } else { "rollback" };
                    Ok(format!("refit {command} {version} {place}"))
                }
            },
            (None, Some(_)) => Ok(format!("refit rollback {place}")),
            (None, None) if before.canary.is_none() => {
                Err("Nothing is to be taken back: everybody gets the version that was decided before."
                    .to_owned())
            }
            (None, None) => Err(
                "Nothing takes it back: a canary that was taken off does not come out again. Trigger its \
                        workflow for a new one."
                    .to_owned(),
            ),
        }
    }
}

/// The champion of both, if apps find it at another place than before.
fn moved<'a>(before: &Assignment, after: &'a Assignment) -> Option<&'a Served> {
    let (was, is) = (before.champion.as_ref()?, after.champion.as_ref()?);
    (was.is_same_version(is) && was.base_url != is.base_url).then_some(is)
}
