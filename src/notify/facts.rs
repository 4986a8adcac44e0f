//! What a message can say: the contract between whoever queues a notice and
//! the templates.
//!
//! A notice's `facts` is an object with any of these keys; unknown ones are
//! ignored, and what a notice leaves out is read from the outputs of the run's
//! steps where they have it. All of it is foreign text to a template.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::domain::id::{ModelName, RunId, WorkflowName};
use crate::domain::workflow::{Mode, Moment};
use crate::store::Notice;

/// What a message is about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// The workflow.
    pub workflow: WorkflowName,
    /// The model.
    pub model: ModelName,
    /// What happened.
    pub moment: Moment,
    /// The run.
    #[serde(default)]
    pub run: Option<RunId>,
    /// How far refit may go; `act` when absent.
    #[serde(default)]
    pub mode: Option<Mode>,
    /// The version it is about.
    #[serde(default)]
    pub version: Option<String>,
    /// The champion it was compared with.
    #[serde(default)]
    pub champion: Option<String>,
    /// How the run ended, as `Outcome` writes it.
    #[serde(default)]
    pub outcome: Option<String>,
    /// Why, in plain words with numbers.
    #[serde(default)]
    pub reason: Option<String>,
    /// What serves now: one sentence.
    #[serde(default)]
    pub serving: Option<String>,
    /// What a person has to do: one sentence. Absent when nothing.
    #[serde(default)]
    pub todo: Option<String>,
    /// What happens next by itself: one sentence.
    #[serde(default)]
    pub next: Option<String>,
    /// Metrics of the version beside those of the champion.
    #[serde(default)]
    pub metrics: Vec<MetricRow>,
    /// What gates and comparisons said: one sentence each.
    #[serde(default)]
    pub verdicts: Vec<String>,
    /// Where to read more.
    #[serde(default)]
    pub links: Vec<Link>,
    /// What cannot be put right, for alerts.
    #[serde(default)]
    pub error: Option<String>,
    /// The subject of a workflow's own message.
    #[serde(default)]
    pub subject: Option<String>,
    /// The text of a workflow's own message.
    #[serde(default)]
    pub message: Option<String>,
    /// Outputs of the run's steps, by step.
    #[serde(default)]
    pub steps: Map<String, Value>,
}

/// One metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricRow {
    /// Its name.
    pub name: String,
    /// Of the new version.
    pub candidate: f64,
    /// Of the champion, when there is one and it is known.
    #[serde(default)]
    pub champion: Option<f64>,
}

/// An address to read more at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// What is there.
    pub label: String,
    /// Where; only `http` and `https` are shown as links.
    pub url: String,
}

impl Facts {
    /// The facts of `notice`. A key of the wrong form counts as absent: a message always goes out.
    pub fn of(notice: &Notice) -> Self {
        let given = notice.facts.as_object().cloned().unwrap_or_default();
        let mut facts = Self {
            workflow: key(&given, "workflow").unwrap_or_else(|| same_name(&notice.model)),
            model: notice.model.clone(),
            moment: notice.moment,
            run: notice.run.or_else(|| key(&given, "run")),
            mode: key(&given, "mode"),
            version: key(&given, "version"),
            champion: key(&given, "champion"),
            outcome: key(&given, "outcome"),
            reason: key(&given, "reason"),
            serving: key(&given, "serving"),
            todo: key(&given, "todo"),
            next: key(&given, "next"),
            metrics: key(&given, "metrics").unwrap_or_default(),
            verdicts: key(&given, "verdicts").unwrap_or_default(),
            links: key(&given, "links").unwrap_or_default(),
            error: key(&given, "error"),
            subject: key(&given, "subject"),
            message: key(&given, "message"),
            steps: key(&given, "steps").unwrap_or_default(),
        };
        facts.complete();
        facts
    }

    /// Fills what the notice left out from the outputs of steps.
    fn complete(&mut self) {
        let outputs: Vec<&Map<String, Value>> = self.steps.values().filter_map(Value::as_object).collect();
        let text = |output: &Map<String, Value>, name: &str| key::<String>(output, name);
        if self.version.is_none() {
            let published = outputs.iter().rev().find(|output| output.contains_key("manifest_sha256"));
            self.version = published.and_then(|output| text(output, "version"));
        }
        if self.champion.is_none() {
            self.champion = outputs.iter().rev().find_map(|output| text(output, "champion"));
        }
        if self.metrics.is_empty() {
            let metrics = outputs.iter().rev().find_map(|output| {
                let values = output.get("metrics")?.get("values")?.as_object()?;
                let row = |(name, value): (&String, &Value)| {
                    Some(MetricRow { name: name.clone(), candidate: value.as_f64()?, champion: None })
                };
                Some(values.iter().filter_map(row).collect::<Vec<_>>()).filter(|rows| !rows.is_empty())
            });
            self.metrics = metrics.unwrap_or_default();
        }
        if self.verdicts.is_empty() {
            let rules = outputs.iter().filter_map(|output| output.get("rules")?.as_array()).flatten();
            self.verdicts =
                rules.filter_map(|rule| Some(rule.get("sentence")?.as_str()?.to_owned())).collect();
        }
        if self.serving.is_none() && self.moment == Moment::RolledBack {
            self.serving = self.champion.as_ref().map(|champion| format!("{champion} serves all traffic."));
        }
    }
}

fn key<T: serde::de::DeserializeOwned>(object: &Map<String, Value>, name: &str) -> Option<T> {
    serde_json::from_value(object.get(name)?.clone()).ok()
}

#[expect(clippy::expect_used, reason = "names of workflows and of models follow one rule")]
fn same_name(model: &ModelName) -> WorkflowName {
    model.as_str().parse().expect("a name")
}
