//! Ways to decide on a candidate.

use std::time::Duration;

use serde::Serialize;

use super::super::gate::RuleResult;
use super::super::workflow::step::{
    BLOCK_COMPLETE_AFTER, Compare, CompareRule, GateRule, Margin, OnInconclusive, OnInconclusiveGate,
    OnlineMetric, Role, StepKind,
};
use super::super::workflow::{Step, Workflow};

/// One way to decide.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// What it is called in the table.
    pub name: String,
    /// How it decides.
    pub rule: Rule,
}

/// How a candidate is decided on.
#[derive(Debug, Clone, PartialEq)]
pub enum Rule {
    /// Every candidate serves at once.
    Always,
    /// The first model serves for ever.
    Never,
    /// Promotes exactly what the following weeks show to be better: nobody can.
    Hindsight,
    /// A gate, a canary, both or none.
    Checks {
        /// The gate's rules, and what it does when it cannot tell; none without a gate.
        gate: Option<(Vec<GateRule>, OnInconclusiveGate)>,
        /// None without a canary.
        canary: Option<Canary>,
    },
}

/// How a canary is decided on.
#[derive(Debug, Clone, PartialEq)]
pub struct Canary {
    /// The rules on prediction errors, with alpha and beta.
    pub compare: Compare,
    /// The part of the rows it serves.
    pub share: f64,
    /// It stays at least so many weeks.
    pub at_least: f64,
    /// And is inconclusive after so many.
    pub at_most: f64,
    /// Whether it ends as soon as there is a verdict after that time.
    pub early: bool,
}

impl Canary {
    /// Weeks from the end of a block until it counts: its requests are old enough, and the block gets no more. Without
    /// a horizon each counts as its truth arrives, which is at once here.
    pub(super) fn truth_after(&self) -> f64 {
        let horizon = self.compare.rules.iter().map(|rule| rule.label_horizon).max().unwrap_or_default();
        if horizon.is_zero() { 0.0 } else { in_weeks(horizon + BLOCK_COMPLETE_AFTER) }
    }
}

fn in_weeks(time: Duration) -> f64 {
    time.as_secs_f64() / (7.0 * 86_400.0)
}

/// What a gate concluded, in short.
pub(super) fn why(results: &[RuleResult]) -> String {
    let failed = results.iter().filter(|result| result.verdict != super::super::verdict::Verdict::Pass);
    failed.map(|result| result.sentence.clone()).collect::<Vec<_>>().join("; ")
}

/// The workflow's own gate and canary, and what of them cannot be replayed.
pub fn as_written(workflow: &Workflow) -> (Policy, Vec<String>) {
    let mut notes = vec![];
    let gate = workflow.steps.iter().find_map(|step| match &step.kind {
        StepKind::Gate(gate) => Some((gate.rules.clone(), gate.inconclusive)),
        _ => None,
    });
    if gate.is_none() {
        notes.push("the workflow has no gate".to_owned());
    }
    if matches!(gate, Some((_, OnInconclusiveGate::Approve))) {
        notes.push("a gate that cannot tell asks a person; here nobody answers, and it refuses".to_owned());
    }
    let canary = canary_of(workflow, &mut notes);
    (Policy { name: "as written".to_owned(), rule: Rule::Checks { gate, canary } }, notes)
}

fn canary_of(workflow: &Workflow, notes: &mut Vec<String>) -> Option<Canary> {
    let place = workflow.steps.iter().position(|step| matches!(step.kind, StepKind::Canary(_)));
    let Some((place, Step { kind: StepKind::Canary(canary), .. })) =
        place.map(|place| (place, &workflow.steps[place]))
    else {
        notes.push("the workflow has no canary".to_owned());
        return None;
    };
    let Some((_, compare)) = workflow.rules_of(canary) else {
        notes.push("the canary compares nothing, so it is left out".to_owned());
        return None;
    };
    let (kept, left): (Vec<CompareRule>, Vec<CompareRule>) =
        compare.rules.iter().cloned().partition(|rule| rule.metric == OnlineMetric::AbsError);
    if left.iter().any(|rule| rule.role == Role::Gating) {
        notes.push("errors and latency of requests were not kept: rules on them are left out".to_owned());
    }
    if !kept.iter().any(|rule| rule.role == Role::Gating) {
        notes.push("no rule on `abs_error` decides, so the canary is left out".to_owned());
        return None;
    }
    if matches!(compare.on_inconclusive, OnInconclusive::Hold) {
        notes.push("a held canary waits for a person; here nobody decides, and it is taken back".to_owned());
    }
    let wait = workflow.steps[place..].iter().find_map(|step| match &step.kind {
        StepKind::Wait(wait) => Some(wait),
        _ => None,
    });
    let at_least = wait.map_or(0.0, |wait| in_weeks(wait.at_least));
    let at_most = wait.and_then(|wait| wait.at_most).map_or(at_least, in_weeks);
    Some(Canary {
        compare: Compare { rules: kept, ..compare.clone() },
        share: canary.stages.last().map_or(0.0, |stage| stage.share.fraction()),
        at_least,
        at_most: at_most.max(at_least),
        early: wait.is_none_or(|wait| wait.until.is_some()),
    })
}

/// Variations of what is written, each in one thing, and what they are measured against.
pub fn built_in(written: &Policy) -> Vec<Policy> {
    let mut policies = vec![written.clone()];
    let Rule::Checks { gate, canary } = &written.rule else { return policies };
    let mut add = |name: &str, rule: Rule| policies.push(Policy { name: name.to_owned(), rule });
    if gate.is_some() && canary.is_some() {
        add("gate alone", Rule::Checks { gate: gate.clone(), canary: None });
        add("canary alone", Rule::Checks { gate: None, canary: canary.clone() });
    }
    if gate.is_some() {
        // By itself its effect shows; a canary after it would hide the most of it.
        let (alone, so) =
            (written.without(Part::Canary), if canary.is_some() { "gate alone" } else { "gate" });
        for percent in [-2.0, 0.0, 2.0, 5.0] {
            let name = match percent {
                ..0.0 => format!("{so}: better by {} %", -percent),
                _ => format!("{so}: worse by at most {percent} %"),
            };
            add(&name, alone.with_tolerance(percent / 100.0).rule);
        }
        add(&format!("{so}: with 95 % confidence"), alone.with_confidence(Some(0.95)).rule);
        add(&format!("{so}: without confidence"), alone.with_confidence(None).rule);
    }
    if canary.is_some() {
        for percent in [5.0, 20.0] {
            add(&format!("canary: margin {percent} %"), written.with_margin(1.0 + percent / 100.0).rule);
        }
        for percent in [1.0, 5.0, 10.0] {
            add(&format!("canary: alpha {percent} %"), written.with_alpha(percent / 100.0).rule);
        }
        add("canary: at most 14 days", written.with_time(2.0).rule);
    }
    // What changes nothing is the same row twice.
    let mut seen: Vec<Policy> = vec![];
    for policy in policies {
        if !seen.iter().any(|known| known.rule == policy.rule) {
            seen.push(policy);
        }
    }
    seen
}

/// What every policy is measured against: `always`, `never`, `best in hindsight`.
pub(super) fn measures() -> [Policy; 3] {
    [("always", Rule::Always), ("never", Rule::Never), ("best in hindsight", Rule::Hindsight)]
        .map(|(name, rule)| Policy { name: name.to_owned(), rule })
}

impl Policy {
    fn change_gate(&self, change: impl Fn(&mut GateRule)) -> Self {
        let mut changed = self.clone();
        if let Rule::Checks { gate: Some((rules, _)), .. } = &mut changed.rule {
            rules.iter_mut().for_each(change);
        }
        changed
    }

    fn change_canary(&self, change: impl Fn(&mut Canary)) -> Self {
        let mut changed = self.clone();
        if let Rule::Checks { canary: Some(canary), .. } = &mut changed.rule {
            change(canary);
        }
        changed
    }

    /// Comparisons with the champion allow this much worse, as a part of its value; below 0: must be better.
    #[must_use]
    pub fn with_tolerance(&self, worse_by_at_most: f64) -> Self {
        self.change_gate(|rule| {
            if let Some(vs) = &mut rule.vs_champion {
                vs.worse_by_at_most = worse_by_at_most;
            }
        })
    }

    /// Comparisons with the champion are made with this confidence, or by value alone.
    #[must_use]
    pub fn with_confidence(&self, confidence: Option<f64>) -> Self {
        self.change_gate(|rule| {
            if let Some(vs) = &mut rule.vs_champion {
                vs.confidence = confidence;
            }
        })
    }

    /// Prediction errors may be worse by this ratio.
    #[must_use]
    pub fn with_margin(&self, margin: f64) -> Self {
        self.change_canary(|canary| {
            for rule in &mut canary.compare.rules {
                rule.margin = Margin::Ratio(margin);
            }
        })
    }

    /// A canary that is no worse is rolled back with this chance at most.
    #[must_use]
    pub fn with_alpha(&self, alpha: f64) -> Self {
        self.change_canary(|canary| canary.compare.alpha = alpha)
    }

    /// A canary is inconclusive after so many weeks.
    #[must_use]
    pub fn with_time(&self, weeks: f64) -> Self {
        self.change_canary(|canary| {
            canary.at_least = canary.at_least.min(weeks);
            canary.at_most = weeks;
        })
    }

    /// Without its gate, or without its canary.
    #[must_use]
    pub fn without(&self, part: Part) -> Self {
        let mut changed = self.clone();
        if let Rule::Checks { gate, canary } = &mut changed.rule {
            match part {
                Part::Gate => *gate = None,
                Part::Canary => *canary = None,
            }
        }
        changed
    }
}

/// A part of a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Part {
    /// The offline check.
    Gate,
    /// The online one.
    Canary,
}
