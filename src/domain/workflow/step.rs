//! What each kind of step is told: the options of one `uses:` or `run:`.

mod command;
mod compare;
mod data;
mod gate;
mod release;

use std::collections::BTreeMap;
use std::time::Duration;

use super::Recipient;
use crate::domain::expr::Template;

pub use command::{Evaluate, Limits, Outputs, Pick, Run, StdoutMetric};
pub use compare::{
    BLOCK_COMPLETE_AFTER, Compare, CompareRule, HoldTraffic, Margin, OnInconclusive, OnlineMetric, Role,
    WhenUnderpowered,
};
pub use data::{ColumnType, Expectations, Fetch, Newest, OnStale, RowBounds, Source};
pub use gate::{FirstVersion, Gate, GateRule, OnInconclusiveGate, VsChampion};
pub use release::{Canary, Naming, Promote, Publish, Rollback, Shadow, Stage, Wait};

/// What a step does. A new kind is a new variant, and the compiler names every place that must know it.
#[derive(Debug, Clone)]
pub enum StepKind {
    /// `uses: fetch`.
    Fetch(Fetch),
    /// `run:`.
    Run(Run),
    /// `uses: evaluate`.
    Evaluate(Evaluate),
    /// `uses: gate`.
    Gate(Gate),
    /// `uses: publish`.
    Publish(Publish),
    /// `uses: canary`.
    Canary(Canary),
    /// `uses: wait`.
    Wait(Wait),
    /// `uses: shadow`.
    Shadow(Shadow),
    /// `uses: approve`.
    Approve(Approve),
    /// `uses: compare`.
    Compare(Compare),
    /// `uses: promote`.
    Promote(Promote),
    /// `uses: rollback`.
    Rollback(Rollback),
    /// `uses: notify`.
    Notify(Notify),
    /// `uses: http`.
    Http(Http),
}

impl StepKind {
    /// How long it waits, if it waits for a time or a condition.
    pub fn wait(&self) -> Option<&Wait> {
        match self {
            StepKind::Wait(wait) => Some(wait),
            StepKind::Shadow(shadow) => Some(&shadow.wait),
            StepKind::Fetch(_)
            | StepKind::Run(_)
            | StepKind::Evaluate(_)
            | StepKind::Gate(_)
            | StepKind::Publish(_)
            | StepKind::Canary(_)
            | StepKind::Approve(_)
            | StepKind::Compare(_)
            | StepKind::Promote(_)
            | StepKind::Rollback(_)
            | StepKind::Notify(_)
            | StepKind::Http(_) => None,
        }
    }

    /// The command it runs, if it runs one.
    pub fn command(&self) -> Option<&Run> {
        match self {
            StepKind::Run(run) => Some(run),
            StepKind::Evaluate(evaluate) => Some(&evaluate.command),
            StepKind::Shadow(shadow) => Some(&shadow.command),
            StepKind::Fetch(_)
            | StepKind::Gate(_)
            | StepKind::Publish(_)
            | StepKind::Canary(_)
            | StepKind::Wait(_)
            | StepKind::Approve(_)
            | StepKind::Compare(_)
            | StepKind::Promote(_)
            | StepKind::Rollback(_)
            | StepKind::Notify(_)
            | StepKind::Http(_) => None,
        }
    }

    /// The word after `uses:`, or `run`.
    pub fn word(&self) -> &'static str {
        match self {
            StepKind::Fetch(_) => "fetch",
            StepKind::Run(_) => "run",
            StepKind::Evaluate(_) => "evaluate",
            StepKind::Gate(_) => "gate",
            StepKind::Publish(_) => "publish",
            StepKind::Canary(_) => "canary",
            StepKind::Wait(_) => "wait",
            StepKind::Shadow(_) => "shadow",
            StepKind::Approve(_) => "approve",
            StepKind::Compare(_) => "compare",
            StepKind::Promote(_) => "promote",
            StepKind::Rollback(_) => "rollback",
            StepKind::Notify(_) => "notify",
            StepKind::Http(_) => "http",
        }
    }
}

/// `uses: approve`: a human decides.
#[derive(Debug, Clone)]
pub struct Approve {
    /// What the human reads.
    pub message: Option<Template>,
    /// How long it waits; for ever when absent.
    pub at_most: Option<Duration>,
}

/// `uses: notify`.
#[derive(Debug, Clone)]
pub struct Notify {
    /// Who is told.
    pub to: Vec<Recipient>,
    /// The subject of a mail, the first line elsewhere.
    pub subject: Template,
    /// The text.
    pub message: Template,
}

/// `uses: http`: one request.
#[derive(Debug, Clone)]
pub struct Http {
    /// The method, in capitals.
    pub method: String,
    /// The address.
    pub url: Template,
    /// Request headers.
    pub headers: BTreeMap<String, Template>,
    /// Request body.
    pub body: Option<Template>,
    /// Statuses that count as success; 2xx when empty.
    pub expect: Vec<u16>,
}
