//! What a workflow would do, step by step, in plain words.

use std::time::Duration;

use super::step::{
    Approve, Canary, Compare, Fetch, FirstVersion, Gate, GateRule, Margin, OnInconclusive, OnlineMetric,
    Publish, Run, Source, StepKind, Wait,
};
use super::units::format_duration;
use super::{Mode, Step, Workflow};
use crate::domain::id::StepId;
use crate::domain::words::number;

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanLine {
    /// The step.
    pub step: StepId,
    /// Its kind: the word after `uses:`, or `run`.
    pub kind: &'static str,
    /// The steps that must have ended before.
    pub after: Vec<StepId>,
    /// The condition it runs under.
    pub condition: Option<String>,
    /// What it does, in one sentence.
    pub text: String,
}

/// The steps in the order of the file. Secrets stay names, expressions stay expressions.
pub fn outline(workflow: &Workflow) -> Vec<PlanLine> {
    let line = |step: &Step| PlanLine {
        step: step.id.clone(),
        kind: step.kind.word(),
        after: step.needs.clone(),
        condition: step.condition.as_ref().map(|expr| expr.source().to_owned()),
        text: describe(step, workflow.mode),
    };
    workflow.steps.iter().map(line).collect()
}

fn describe(step: &Step, mode: Mode) -> String {
    let text = match &step.kind {
        StepKind::Fetch(it) => fetch(it),
        StepKind::Run(it) => run(it, step),
        StepKind::Evaluate(it) => {
            let on = it.holdout.as_ref().map(|file| format!(" on `{file}`")).unwrap_or_default();
            format!("{}, once for the candidate and once for the champion{on}", run(&it.command, step))
        }
        StepKind::Gate(it) => gate(it),
        StepKind::Publish(it) => publish(it),
        StepKind::Canary(it) => canary(it),
        StepKind::Wait(it) => wait(it),
        StepKind::Shadow(it) => format!(
            "every {} {} for champion and candidate on rows whose truth arrived; {}",
            format_duration(it.every),
            run(&it.command, step),
            wait(&it.wait)
        ),
        StepKind::Approve(it) => approve(it),
        StepKind::Compare(it) => compare(it),
        StepKind::Promote(it) => {
            let bake = it
                .bake
                .map(|bake| format!(", then watches for {}", format_duration(bake)))
                .unwrap_or_default();
            format!("promotes, rolls back or holds, as the verdict says{bake}")
        }
        StepKind::Rollback(it) => match &it.to {
            Some(to) => format!("rolls `{}` back to {}", it.target, to.source()),
            None => format!("rolls `{}` back to the newest good version", it.target),
        },
        StepKind::Notify(it) => format!("sends “{}”", it.subject.source()),
        StepKind::Http(it) => format!("sends {} {}", it.method, it.url.source()),
    };
    let touches = matches!(step.kind, StepKind::Canary(_) | StepKind::Promote(_) | StepKind::Rollback(_));
    match mode {
        Mode::Act => text,
        Mode::Advise if touches => format!("{text} (only said, not done: mode is advise)"),
        Mode::Observe if touches => format!("{text} (not done: mode is observe)"),
        Mode::Advise | Mode::Observe => text,
    }
}

fn fetch(it: &Fetch) -> String {
    let from = match &it.from {
        Source::File { path } => path.source().to_owned(),
        Source::Http { url, .. } => url.source().to_owned(),
        Source::Postgres { .. } => "a query against Postgres".to_owned(),
        Source::Sqlite { path, .. } => format!("a query against {}", path.source()),
    };
    let expect = &it.expect;
    let mut checks = Vec::new();
    if !expect.columns.is_empty() {
        checks.push(format!("{} columns", expect.columns.len()));
    }
    checks.extend(expect.rows.min.map(|rows| format!("at least {rows} rows")));
    checks.extend(expect.rows.max.map(|rows| format!("at most {rows} rows")));
    checks.extend(
        expect.rows.min_vs_previous.map(|share| format!("at least {} of the last fetch", percent(share))),
    );
    checks.extend(
        expect.newest.as_ref().map(|newest| {
            format!("newest `{}` at most {} old", newest.column, format_duration(newest.max_age))
        }),
    );
    checks.extend(
        expect
            .null_rate
            .iter()
            .map(|(column, rate)| format!("at most {} of `{column}` empty", percent(*rate))),
    );
    if !expect.unique.is_empty() {
        checks.push(format!("no two rows with one {}", expect.unique.join(" + ")));
    }
    match checks.is_empty() {
        true => format!("fetches {from} into {}", it.to),
        false => format!("fetches {from} into {} and checks: {}", it.to, checks.join(", ")),
    }
}

fn run(it: &Run, step: &Step) -> String {
    let command = it.command.trim().lines().next().unwrap_or_default();
    let shown: String = command.chars().take(80).collect();
    let more = if shown.len() < it.command.trim().len() { " …" } else { "" };
    let mut text = format!("runs `{shown}{more}` for at most {}", format_duration(step.timeout));
    let metrics: Vec<&str> = it.stdout_metrics.keys().map(|metric| metric.as_str()).collect();
    if !metrics.is_empty() {
        text.push_str(&format!(", reads {} from what it prints", metrics.join(", ")));
    }
    if it.metrics_file {
        text.push_str(", reads its metrics file");
    }
    if let Some(outputs) = &it.outputs {
        let count = outputs.count.map(|count| format!("{count} files")).unwrap_or_else(|| "files".to_owned());
        text.push_str(&format!(", collects {count} `{}` from {}", outputs.files, outputs.from));
    }
    text
}

fn gate(it: &Gate) -> String {
    let rule = |rule: &GateRule| {
        let mut parts = Vec::new();
        parts.extend(rule.max.map(|max| format!("{} at most {max}", rule.metric)));
        parts.extend(rule.min.map(|min| format!("{} at least {min}", rule.metric)));
        parts.extend(rule.vs_champion.map(|versus| match versus.worse_by_at_most {
            worse if worse < 0.0 => {
                format!("{} better than the champion's by at least {}", rule.metric, percent(-worse))
            }
            worse => format!("{} worse than the champion's by at most {}", rule.metric, percent(worse)),
        }));
        let each = if rule.each_segment { " in each segment" } else { "" };
        format!("{}{each}", parts.join(" and "))
    };
    let rules: Vec<String> = it.rules.iter().map(rule).collect();
    let first = match it.first_version {
        FirstVersion::RequireApproval => "; the first version waits for approval",
        FirstVersion::Accept => "",
    };
    format!("lets the version pass if {}{first}", rules.join(", "))
}

fn publish(it: &Publish) -> String {
    let keep = it.keep_latest.map(|latest| format!("; keeps the newest {latest}")).unwrap_or_default();
    format!("uploads the version to `{}` and seals it{keep}", it.store)
}

fn canary(it: &Canary) -> String {
    let stages: Vec<String> = it
        .stages
        .iter()
        .map(|stage| match stage.min_time.is_zero() {
            true => stage.share.to_string(),
            false => format!("{} for at least {}", stage.share, format_duration(stage.min_time)),
        })
        .collect();
    format!(
        "sends {} of the traffic of `{}` to the version and watches it",
        stages.join(", then "),
        it.target
    )
}

fn wait(it: &Wait) -> String {
    let mut parts = Vec::new();
    if !it.at_least.is_zero() {
        parts.push(format!("for {}", format_duration(it.at_least)));
    }
    parts.extend(it.until.as_ref().map(|until| format!("until {}", until.source())));
    parts.extend(it.at_most.map(|most| format!("for at most {} in all", format_duration(most))));
    parts.extend(it.abort_if.as_ref().map(|abort| format!("failing if {}", abort.source())));
    format!("waits {}", parts.join(", "))
}

fn approve(it: &Approve) -> String {
    match it.at_most {
        Some(most) => format!("waits at most {} for a human to approve", format_duration(most)),
        None => "waits for a human to approve".to_owned(),
    }
}

fn compare(it: &Compare) -> String {
    let rules: Vec<String> = it
        .rules
        .iter()
        .map(|rule| {
            let metric = match rule.metric {
                OnlineMetric::ErrorRate => "error rate",
                OnlineMetric::LatencySlowShare => "share of slow requests",
                OnlineMetric::AbsError => "absolute error",
            };
            let age = match rule.label_horizon {
                Duration::ZERO => String::new(),
                age => format!(" of requests {} old", format_duration(age)),
            };
            let limit = |limit: f64| match rule.is_on_requests() {
                true => percent(limit),
                false => number(limit),
            };
            let enough = rule.acceptable_below.map(|below| format!("below {} or ", limit(below)));
            let never = rule.never_above.map(|above| format!(", never above {}", limit(above)));
            format!(
                "{metric}{age} {}worse by less than {}{}",
                enough.unwrap_or_default(),
                match rule.margin {
                    Margin::Ratio(ratio) => percent(ratio - 1.0),
                    Margin::Points { .. } => rule.margin.to_string(),
                },
                never.unwrap_or_default()
            )
        })
        .collect();
    let undecided = match it.on_inconclusive {
        OnInconclusive::Hold => "holds",
        OnInconclusive::Promote => "promotes",
        OnInconclusive::RollBack => "rolls back",
    };
    format!("compares canary and champion: {}; {undecided} what is undecided", rules.join(", "))
}

fn percent(fraction: f64) -> String {
    format!("{} %", (fraction * 1e6).round() / 1e4)
}
