//! Which versions may be deleted: everything that speaks for one is listed, and
//! only one that nothing speaks for goes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use chrono::TimeDelta;
use serde::Serialize;

use super::Timestamp;
use super::id::{ModelName, RunId, StoreName, TargetName, VersionName};
use super::release::{Assignment, Release, ReleaseActor};
use super::version::{VersionRecord, VersionState};

/// How long things are kept that nothing needs any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ages {
    /// A version that no longer serves: apps may hold a release document that names it.
    pub served: TimeDelta,
    /// Files of an upload whose run ended before it was whole.
    pub half_uploads: TimeDelta,
    /// Files of a finished run on the machine that worked on it.
    pub run_files: TimeDelta,
    /// Versions fetched for trainers.
    pub cached_versions: TimeDelta,
    /// Predictions and truths that never found each other.
    pub unmatched: TimeDelta,
    /// Ids of batches of evidence: one that is sent again later counts twice.
    pub batch_ids: TimeDelta,
    /// Minutes of requests and pairs of errors, which canaries were decided on and later ones learn from.
    pub evidence: TimeDelta,
}

impl Default for Ages {
    fn default() -> Self {
        Self {
            served: TimeDelta::hours(24),
            half_uploads: TimeDelta::days(7),
            run_files: TimeDelta::days(14),
            cached_versions: TimeDelta::days(7),
            unmatched: TimeDelta::days(90),
            batch_ids: TimeDelta::days(30),
            evidence: TimeDelta::days(180),
        }
    }
}

/// What a workflow says of old versions.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    /// How many of the newest good versions stay, by store; in a store that is not here all do.
    pub latest: BTreeMap<StoreName, u32>,
    /// Whether versions that refit did not upload may go, too.
    pub adopted: bool,
    /// How long things are kept.
    pub ages: Ages,
}

/// A version that somebody wants kept.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Pin {
    /// The model.
    pub model: ModelName,
    /// The version.
    pub version: VersionName,
    /// Who.
    pub actor: ReleaseActor,
    /// Why.
    pub reason: String,
    /// Since when.
    pub at: Timestamp,
}

/// An assignment that was made on a target.
#[derive(Debug, Clone, PartialEq)]
pub struct PastAssignment {
    /// The target.
    pub target: TargetName,
    /// What was to be served.
    pub assignment: Assignment,
    /// Until when; none for the current one.
    pub until: Option<Timestamp>,
    /// Whether the host may show it still: no later one is known to be shown.
    pub may_be_shown: bool,
}

/// Everything that may need a version of one model, as it was read at once.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Holdings {
    /// All versions whatever their state, newest first.
    pub versions: Vec<VersionRecord>,
    /// All releases of the model.
    pub releases: Vec<Release>,
    /// Assignments of the recent past.
    pub past: Vec<PastAssignment>,
    /// Pins.
    pub pins: Vec<Pin>,
    /// Runs of the model that have not ended.
    pub unfinished: BTreeSet<RunId>,
    /// Versions that such a run, or a canary that is watched, names in what it keeps.
    pub named: BTreeMap<VersionName, RunId>,
    /// Versions that hosts were seen to show.
    pub shown: BTreeMap<VersionName, TargetName>,
    /// Hosts that did not say what they show.
    pub silent: Vec<TargetName>,
}

/// What speaks for a version.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "because")]
pub enum Reason {
    /// It serves.
    Champion {
        /// Where.
        target: TargetName,
    },
    /// It is on canary.
    Canary {
        /// Where.
        target: TargetName,
    },
    /// It served before the champion.
    Previous {
        /// Where.
        target: TargetName,
    },
    /// The next rollback goes to it.
    RollbackGoal {
        /// Where.
        target: TargetName,
    },
    /// A release that names it is decided or taken back, and the host may not show that yet.
    UnderWay {
        /// Where.
        target: TargetName,
    },
    /// The host shows it.
    Shown {
        /// Where.
        target: TargetName,
    },
    /// A host does not say what it shows.
    HostSilent {
        /// Where.
        target: TargetName,
    },
    /// It served a short while ago: apps may hold the release document that names it.
    ServedLately {
        /// Where.
        target: TargetName,
        /// When apps have forgotten it.
        until: Timestamp,
    },
    /// Somebody pinned it.
    Pinned {
        /// Who.
        by: String,
        /// Why.
        why: String,
    },
    /// A run that has not ended made it or names it.
    NeededBy {
        /// The run.
        run: RunId,
    },
    /// Among the newest that the workflow keeps.
    Newest {
        /// How many it keeps.
        of: u32,
    },
    /// No workflow says that old versions go.
    NoPolicy,
    /// Refit did not upload it.
    Adopted,
    /// Half of an upload, which may yet be looked at.
    HalfUpload {
        /// When it may go.
        until: Timestamp,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let day = |at: &Timestamp| at.format("%F %R UTC").to_string();
        match self {
            Reason::Champion { target } => write!(f, "serves on {target}"),
            Reason::Canary { target } => write!(f, "on canary on {target}"),
            Reason::Previous { target } => write!(f, "served on {target} before"),
            Reason::RollbackGoal { target } => write!(f, "a rollback on {target} goes to it"),
            Reason::UnderWay { target } => write!(f, "a change on {target} is under way"),
            Reason::Shown { target } => write!(f, "{target} shows it"),
            Reason::HostSilent { target } => write!(f, "{target} does not say what it shows"),
            Reason::ServedLately { target, until } => {
                write!(f, "served on {target} lately; apps may ask for it until {}", day(until))
            }
            Reason::Pinned { by, why } if why.is_empty() => write!(f, "pinned by {by}"),
            Reason::Pinned { by, why } => write!(f, "pinned by {by}: {why}"),
            Reason::NeededBy { run } => write!(f, "needed by run {run}"),
            Reason::Newest { of } => write!(f, "among the newest {of}"),
            Reason::NoPolicy => f.write_str("no workflow says `keep` of it"),
            Reason::Adopted => f.write_str("adopted: refit did not upload it"),
            Reason::HalfUpload { until } => write!(f, "half an upload; goes after {}", day(until)),
        }
    }
}

/// What becomes of a version.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "fate")]
pub enum Fate {
    /// It stays.
    Kept {
        /// Everything that speaks for it; never empty.
        reasons: Vec<Reason>,
    },
    /// It goes.
    Deleted {
        /// Why, in plain words.
        why: String,
    },
    /// It is gone, or was never refit's: there is nothing to decide.
    Nothing,
}

/// Decides on one version of `holdings`.
pub fn judge(name: &VersionName, holdings: &Holdings, policy: &Policy, now: Timestamp) -> Fate {
    let Some(record) = holdings.versions.iter().find(|record| &record.name == name) else {
        return Fate::Nothing;
    };
    match record.state {
        VersionState::Abandoned | VersionState::Deleted => Fate::Nothing,
        VersionState::Deleting => Fate::Deleted { why: "its deletion was begun".to_owned() },
        VersionState::Reserved => half(record, holdings, policy, now),
        VersionState::Sealed | VersionState::Bad => {
            let mut reasons = needed(record, holdings, policy, now);
            let Some(latest) = policy.latest.get(&record.store) else {
                reasons.push(Reason::NoPolicy);
                return Fate::Kept { reasons };
            };
            if record.run.is_none() && !policy.adopted {
                reasons.push(Reason::Adopted);
            }
            if is_among_newest(record, holdings, *latest) {
                reasons.push(Reason::Newest { of: *latest });
            }
            if reasons.is_empty() {
                Fate::Deleted { why: format!("older than the newest {latest}") }
            } else {
                Fate::Kept { reasons }
            }
        }
    }
}

/// Half an upload goes when its run ended and some time has passed.
fn half(record: &VersionRecord, holdings: &Holdings, policy: &Policy, now: Timestamp) -> Fate {
    if let Some(run) = record.run.filter(|run| holdings.unfinished.contains(run)) {
        return Fate::Kept { reasons: vec![Reason::NeededBy { run }] };
    }
    let until = record.created_at + policy.ages.half_uploads;
    if now < until {
        return Fate::Kept { reasons: vec![Reason::HalfUpload { until }] };
    }
    Fate::Deleted { why: "half an upload whose run ended".to_owned() }
}

/// What needs a whole version, whatever the workflow says.
fn needed(record: &VersionRecord, holdings: &Holdings, policy: &Policy, now: Timestamp) -> Vec<Reason> {
    let mut reasons = vec![];
    let is = |version: &VersionName| version == &record.name;
    for release in &holdings.releases {
        let target = || release.target.clone();
        let desired = &release.desired;
        if desired.champion.as_ref().is_some_and(|served| is(&served.version)) {
            reasons.push(Reason::Champion { target: target() });
        }
        if desired.canary.as_ref().is_some_and(|canary| is(&canary.served.version)) {
            reasons.push(Reason::Canary { target: target() });
        }
        if desired.previous.as_ref().is_some_and(|served| is(&served.version)) {
            reasons.push(Reason::Previous { target: target() });
        } else if rollback_goal(release, holdings).is_some_and(is) {
            reasons.push(Reason::RollbackGoal { target: target() });
        }
    }
    for past in holdings.past.iter().filter(|past| names(&past.assignment, &record.name)) {
        let target = past.target.clone();
        let reason = match past.until {
            Some(end) if end + policy.ages.served > now => {
                Reason::ServedLately { target, until: end + policy.ages.served }
            }
            Some(_) if past.may_be_shown => Reason::UnderWay { target },
            Some(_) | None => continue,
        };
        if !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }
    if let Some(target) = holdings.shown.get(&record.name) {
        let target = target.clone();
        if !reasons.iter().any(|reason| matches!(reason, Reason::Champion { .. } | Reason::Canary { .. })) {
            reasons.push(Reason::Shown { target });
        }
    }
    reasons.extend(holdings.silent.iter().map(|target| Reason::HostSilent { target: target.clone() }));
    for pin in holdings.pins.iter().filter(|pin| is(&pin.version)) {
        reasons.push(Reason::Pinned { by: pin.actor.to_string(), why: pin.reason.clone() });
    }
    let maker = record.run.filter(|run| holdings.unfinished.contains(run));
    if let Some(run) = maker.or_else(|| holdings.named.get(&record.name).copied()) {
        reasons.push(Reason::NeededBy { run });
    }
    reasons
}

/// Where the next rollback without a version goes: the previous one if it is good, else the newest good one.
fn rollback_goal<'h>(release: &Release, holdings: &'h Holdings) -> Option<&'h VersionName> {
    let serves = |record: &VersionRecord| {
        release.desired.champion.as_ref().is_some_and(|served| served.version == record.name)
    };
    let good =
        || holdings.versions.iter().filter(|record| record.state == VersionState::Sealed && !serves(record));
    let previous = release.desired.previous.as_ref();
    let goal = good().find(|record| previous.is_some_and(|served| served.version == record.name));
    goal.or_else(|| good().next()).map(|record| &record.name)
}

fn names(assignment: &Assignment, version: &VersionName) -> bool {
    let champion = assignment.champion.as_ref().is_some_and(|served| &served.version == version);
    let canary = assignment.canary.as_ref().is_some_and(|canary| &canary.served.version == version);
    champion || canary
}

/// Whether fewer than `latest` good versions of its store are newer. A bad one does not count and goes with its age.
fn is_among_newest(record: &VersionRecord, holdings: &Holdings, latest: u32) -> bool {
    let newer = holdings
        .versions
        .iter()
        .take_while(|other| other.name != record.name)
        .filter(|other| other.store == record.store && other.state == VersionState::Sealed);
    newer.count() < latest as usize
}

#[cfg(test)]
mod tests;
