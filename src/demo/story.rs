//! The demo's story: what each run decided, on which numbers, in plain words.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::domain::Timestamp;
use crate::domain::id::RunId;
use crate::domain::run::{Attempt, Outcome, Run};
use crate::steps::canary::{CanaryOutput, Rollout};
use crate::steps::compare::CompareOutput;
use crate::steps::fetch::FetchOutput;
use crate::steps::gate::GateOutput;
use crate::steps::publish::PublishOutput;
use crate::steps::run::RunOutput;

/// One run of the story.
#[derive(Debug, Clone, Serialize)]
pub struct Chapter {
    /// The week after which it was trained.
    pub week: u32,
    /// The family that challenged.
    pub family: String,
    /// The run.
    pub run: RunId,
    /// When it began.
    pub began: Timestamp,
    /// When it ended.
    pub ended: Timestamp,
    /// The version, if one was published.
    pub version: Option<String>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// Why, in plain words.
    pub reason: String,
    /// What each step said, in order.
    pub lines: Vec<(String, String)>,
}

impl Chapter {
    /// The chapter of a run that has ended.
    pub fn new(week: u32, family: &str, run: &Run, attempts: &[Attempt], ended: Timestamp) -> Self {
        let version = output::<PublishOutput>(attempts).map(|published| published.version.to_string());
        Self {
            week,
            family: family.to_owned(),
            run: run.id,
            began: run.created_at,
            ended,
            version,
            outcome: run.outcome,
            reason: run.reason.clone().unwrap_or_default(),
            lines: lines(attempts),
        }
    }
}

fn output<T: DeserializeOwned>(attempts: &[Attempt]) -> Option<T> {
    attempts.iter().rev().find_map(|attempt| serde_json::from_value(attempt.output.clone()?).ok())
}

fn lines(attempts: &[Attempt]) -> Vec<(String, String)> {
    let mut lines = vec![];
    for attempt in attempts {
        let Some(value) = attempt.output.clone() else { continue };
        let step = attempt.step.to_string();
        if let Ok(fetched) = serde_json::from_value::<FetchOutput>(value.clone()) {
            let what = if fetched.violations.is_empty() {
                format!("{} rows, as expected", fetched.rows)
            } else {
                format!("{} rows; {}", fetched.rows, fetched.violations.join("; "))
            };
            lines.push((step, what));
        } else if let Ok(trained) = serde_json::from_value::<RunOutput>(value.clone()) {
            let metrics: Vec<String> =
                trained.metrics.values.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
            lines.push((step, format!("{} in {:.1} s", metrics.join(", "), trained.seconds)));
        } else if let Ok(gate) = serde_json::from_value::<GateOutput>(value.clone()) {
            for rule in &gate.rules {
                lines.push((step.clone(), rule.sentence.clone()));
            }
        } else if let Ok(published) = serde_json::from_value::<PublishOutput>(value.clone()) {
            lines.push((step, format!("version {} sealed", published.version)));
        } else if let Ok(canary) = serde_json::from_value::<CanaryOutput>(value.clone()) {
            let what = match (canary.rollout, canary.champion) {
                (Rollout::OnCanary, Some(champion)) => {
                    format!("{} serves {} of the traffic beside {champion}", canary.version, canary.share)
                }
                (Rollout::FirstVersion, _) => "no champion yet: no canary".to_owned(),
                (Rollout::OnCanary | Rollout::Advised, _) => "nothing was touched".to_owned(),
            };
            lines.push((step, what));
        } else if let Ok(compared) = serde_json::from_value::<CompareOutput>(value) {
            lines.push((step, compared.reason));
        }
    }
    lines
}

/// The table at the end, one row a run.
pub fn rows(chapters: &[Chapter]) -> Vec<Vec<String>> {
    chapters
        .iter()
        .map(|chapter| {
            let days = (chapter.ended - chapter.began).num_days();
            vec![
                format!("week {}", chapter.week),
                chapter.began.date_naive().to_string(),
                chapter.family.clone(),
                chapter.version.clone().unwrap_or_else(|| "-".to_owned()),
                chapter.outcome.map_or("-", Outcome::as_str).replace('_', " "),
                if days > 0 { format!("{days} d") } else { "at once".to_owned() },
                chapter.reason.clone(),
            ]
        })
        .collect()
}
