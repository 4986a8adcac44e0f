//! A receipt: what was decided about a version, what it was compared with, on
//! how much evidence, and what the decision does not promise. Whoever reads it
//! a year later needs nothing else.

mod change;

use serde::Serialize;
use serde_json::Value;

pub use self::change::{ChangeReceipt, ScoredVersion, Since};
use super::Timestamp;
use super::because::Evidence;
use super::canary::{CanaryRecord, CanaryState, CanaryView};
use super::gate::RuleResult;
use super::id::{ModelName, RunId, StepId, TargetName, VersionName, WorkflowName};
use super::metric::Metrics;
use super::run::{Outcome, Run, RunStatus};
use super::verdict::Verdict;
use super::workflow::Mode;
use super::workflow::step::{OnlineMetric, Role};

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// The version serves everybody.
    Promoted,
    /// It served a share, or everybody, and was taken back.
    RolledBack,
    /// The gate, a data check or a person refused it: it never served.
    Rejected,
    /// The evidence did not decide; a person has to.
    Held,
}

impl Decision {
    /// What a run decided; nothing for one that failed, was skipped, only advised, or is under way.
    pub fn of(run: &Run, canary: Option<&CanaryRecord>) -> Option<Self> {
        match (run.status, run.outcome) {
            (RunStatus::Held, _) => Some(Self::Held),
            (_, Some(Outcome::Promoted | Outcome::CancelledAfterPromotion)) => Some(Self::Promoted),
            (_, Some(Outcome::RolledBack)) => Some(Self::RolledBack),
            (_, Some(Outcome::Rejected)) => Some(Self::Rejected),
            (_, Some(Outcome::Succeeded | Outcome::Skipped | Outcome::Failed | Outcome::Cancelled)) => None,
            // Watched on after its promotion.
            (_, None) => {
                canary.is_some_and(|canary| canary.state == CanaryState::Baking).then_some(Self::Promoted)
            }
        }
    }

    /// In words, to follow the name of a version.
    pub fn words(self) -> &'static str {
        match self {
            Decision::Promoted => "was promoted",
            Decision::RolledBack => "was rolled back",
            Decision::Rejected => "was rejected",
            Decision::Held => "is held for a person to decide",
        }
    }
}

/// One decision with its evidence.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Receipt {
    /// What was decided.
    pub decision: Decision,
    /// The same in one sentence.
    pub headline: String,
    /// Why, in plain words with numbers.
    pub reason: String,
    /// When.
    pub decided_at: Option<Timestamp>,
    /// The run that decided.
    pub run: RunId,
    /// When it began.
    pub began_at: Timestamp,
    /// Who or what started it.
    pub started_by: String,
    /// The workflow.
    pub workflow: WorkflowName,
    /// How far refit could go; nothing where the stored workflow can no longer be read.
    pub mode: Option<Mode>,
    /// The model.
    pub model: ModelName,
    /// The version that was decided about; none when none was published.
    pub version: Option<VersionName>,
    /// What it was compared with; none of a first version.
    pub champion: Option<VersionName>,
    /// Where it was to serve.
    pub target: Option<TargetName>,
    /// The data it was trained on, by step.
    pub data: Vec<DataFacts>,
    /// What its trainers said of it, by step.
    pub training: Vec<TrainingFacts>,
    /// What gates concluded, by step.
    pub gates: Vec<GateFacts>,
    /// What its canary showed.
    pub canary: Option<CanaryFacts>,
    /// People who said yes or no.
    pub people: Vec<Person>,
    /// What was done to the version and to the release, oldest first.
    pub changes: Vec<Change>,
    /// What this decision does not promise, in plain words.
    pub limits: Vec<String>,
    /// What to have, and to type, to come to the same numbers.
    pub reproduce: Reproduce,
}

/// Rows that a step fetched.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DataFacts {
    /// The step.
    pub step: StepId,
    /// Rows.
    pub rows: u64,
    /// SHA-256 of the file in lower-case hex.
    pub sha256: String,
    /// What was not as expected.
    pub violations: Vec<String>,
}

/// What a trainer said.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainingFacts {
    /// The step.
    pub step: StepId,
    /// How long it ran.
    pub seconds: f64,
    /// Its metrics.
    pub metrics: Metrics,
    /// SHA-256 of its `$REFIT_ERRORS`, the scored holdout, if it left one.
    pub errors_sha256: Option<String>,
}

/// What a gate concluded.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GateFacts {
    /// The step.
    pub step: StepId,
    /// All rules together.
    pub verdict: Verdict,
    /// Each rule with its value, limit, interval and rows.
    pub rules: Vec<RuleResult>,
    /// What it warned about.
    pub warnings: Vec<String>,
    /// Of the bootstrap's draws.
    pub seed: u64,
}

/// What a canary showed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CanaryFacts {
    /// Its evidence and the limits it was held to.
    #[serde(flatten)]
    pub view: CanaryView,
    /// The chance of ever rolling back a canary that is not worse, at most.
    pub alpha: f64,
    /// The chance of ever passing one that is worse by a rule's margin, at most.
    pub beta: f64,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
}

/// Somebody who answered.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Person {
    /// Who.
    pub name: String,
    /// What they did, such as `approved`.
    pub did: String,
    /// At which step.
    pub step: StepId,
    /// When.
    pub at: Option<Timestamp>,
    /// Why, if they said so.
    pub reason: Option<String>,
}

/// Something that was done.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// When.
    pub at: Timestamp,
    /// What.
    pub what: String,
    /// By whom.
    pub who: String,
    /// Why.
    pub why: String,
    /// What was known of the canary it is about, when it was done.
    pub evidence: Option<Evidence>,
    /// SHA-256 of the workflow that canary is judged under, in lower-case hex.
    pub configuration: Option<String>,
}

/// What to have, and to type, to come to the same numbers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Reproduce {
    /// The workflow file.
    pub workflow_file: String,
    /// SHA-256 of it and of the files it refers to, in lower-case hex: the configuration of this decision.
    pub configuration_sha256: String,
    /// SHA-256 of the version's manifest.
    pub manifest_sha256: Option<String>,
    /// Where the version came from, as its manifest has it: commit, command, interpreter, lock files.
    pub provenance: Value,
    /// Commands that show more.
    pub commands: Vec<String>,
    /// What of the decision they cannot make again, and why.
    pub not_again: Vec<String>,
}

impl Receipt {
    /// `version of model was …`, or what can be said without a version.
    pub fn headline_of(decision: Decision, version: Option<&VersionName>, model: &ModelName) -> String {
        match version {
            Some(version) => format!("{version} of {model} {}", decision.words()),
            None => format!("A new version of {model} {}", decision.words()),
        }
    }

    /// What the decision does not promise.
    pub fn limits_of(&self) -> Vec<String> {
        let mut limits = vec![];
        match self.mode {
            Some(Mode::Act) => {}
            Some(Mode::Observe | Mode::Advise) => {
                limits.push("refit only advised: no target was touched.".to_owned());
            }
            None => limits.push(
                "The stored workflow can no longer be read by this version of refit: its mode is not known."
                    .to_owned(),
            ),
        }
        if self.champion.is_none() && self.decision != Decision::Rejected {
            limits
                .push("Nothing served before it: it was compared with nothing but fixed bounds.".to_owned());
        }
        self.gate_limits(&mut limits);
        match &self.canary {
            Some(canary) => canary.limits(&mut limits),
            None if self.decision == Decision::Promoted => {
                limits.push("It had no canary: no request of a user was part of the evidence.".to_owned());
            }
            None => {}
        }
        limits
    }

    fn gate_limits(&self, limits: &mut Vec<String>) {
        let rules = || self.gates.iter().flat_map(|gate| &gate.rules);
        if self.gates.is_empty() {
            limits.push("The workflow has no gate: nothing was checked before it could serve.".to_owned());
        }
        let pointwise: Vec<&str> = rules()
            .filter(|rule| rule.vs_champion && rule.interval.is_none() && rule.champion.is_some())
            .map(|rule| rule.rule.as_str())
            .collect();
        if !pointwise.is_empty() {
            limits.push(format!(
                "{} compared single values without a confidence: on another week the difference may have the other sign.",
                listed(&pointwise)
            ));
        }
        let apart: Vec<&str> =
            rules().filter(|rule| rule.own_holdout).map(|rule| rule.rule.as_str()).collect();
        if !apart.is_empty() {
            limits.push(format!("{} compared values of two different holdouts.", listed(&apart)));
        }
    }
}

impl CanaryFacts {
    fn limits(&self, limits: &mut Vec<String>) {
        let gating: Vec<_> = self.view.rules.iter().filter(|rule| rule.role == Role::Gating).collect();
        if gating.is_empty() {
            limits.push("No rule decided: the canary was only watched.".to_owned());
        } else {
            limits.push(format!(
                "Of canaries that are no worse, at most {} are ever rolled back by these rules; of those worse by a \
                 rule's margin, at most {} ever pass it. Both hold however often refit looks.",
                percent(self.alpha),
                percent(self.beta)
            ));
        }
        for rule in &self.view.rules {
            match (rule.metric, rule.dispersion) {
                (OnlineMetric::AbsError, _) => limits.push(
                    "Prediction errors count by block: what happened within one block is one bet, however many \
                     predictions it has."
                        .to_owned(),
                ),
                (_, Some(phi)) if phi > 1.5 => limits.push(format!(
                    "{} came in clusters (they vary {phi:.1} times as much as independent ones): each counts for \
                     less. Where they are rare as well, more good canaries are rolled back than promised.",
                    rule.metric.plural()
                )),
                (_, Some(_) | None) => {}
            }
            if rule.role == Role::Observe {
                limits.push(format!("{} were observed and decided nothing.", rule.metric.plural()));
            }
        }
        if self.view.verdict == Verdict::Inconclusive {
            limits.push(
                "The evidence did not decide by itself; what followed is a policy or a person.".to_owned(),
            );
        }
        if let Some(forecast) = &self.view.forecast {
            limits.push(format!("Said before it went out: {forecast}."));
        }
    }
}

impl OnlineMetric {
    /// What is counted, as the beginning of a sentence.
    pub fn plural(self) -> &'static str {
        match self {
            OnlineMetric::ErrorRate => "Errors",
            OnlineMetric::LatencySlowShare => "Slow requests",
            OnlineMetric::AbsError => "Prediction errors",
        }
    }
}

fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    if percent.fract().abs() < 1e-9 { format!("{percent:.0} %") } else { format!("{percent:.1} %") }
}

fn listed(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    match quoted.as_slice() {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}
