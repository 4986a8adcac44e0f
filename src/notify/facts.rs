//! What a message can say: the contract between whoever queues a notice and
//! the templates.
//!
//! A notice's `facts` is an object with any of these keys; unknown ones are
//! ignored, and what a notice leaves out is read from the outputs of the run's
//! steps where they have it. All of it is foreign text to a template.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::domain::id::{ModelName, RunId, WorkflowName};
use crate::domain::verdict::Verdict;
use crate::domain::workflow::{Better, Mode, Moment};
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
    /// Who changed what serves by hand.
    #[serde(default)]
    pub by: Option<String>,
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
    /// In `advise`, what refit would have done: a sentence or two.
    #[serde(default)]
    pub advice: Option<String>,
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
    pub verdicts: Vec<Check>,
    /// Where to read more.
    #[serde(default)]
    pub links: Vec<Link>,
    /// What to type to read more.
    #[serde(default)]
    pub command: Option<String>,
    /// Whether it is the model's first version: there is none to go back to.
    #[serde(default)]
    pub first: bool,
    /// Where a run stands, in a few words: the subject of its message while it goes on.
    #[serde(default)]
    pub headline: Option<String>,
    /// The run's steps, for that message.
    #[serde(default)]
    pub progress: Vec<StepRow>,
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
    /// Which direction is better, where the workflow says so.
    #[serde(default)]
    pub better: Option<Better>,
}

/// What one rule concluded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "CheckForm")]
pub struct Check {
    /// Its conclusion in plain words with its numbers.
    pub sentence: String,
    /// Its verdict, where it has one.
    pub verdict: Option<Verdict>,
}

/// A check as notices write it: as a sentence, or with its verdict.
#[derive(Deserialize)]
#[serde(untagged)]
enum CheckForm {
    Sentence(String),
    Whole {
        sentence: String,
        #[serde(default)]
        verdict: Option<Verdict>,
    },
}

impl From<CheckForm> for Check {
    fn from(form: CheckForm) -> Self {
        match form {
            CheckForm::Sentence(sentence) => Self { sentence, verdict: None },
            CheckForm::Whole { sentence, verdict } => Self { sentence, verdict },
        }
    }
}

/// One step of a run, as its message shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepRow {
    /// The step.
    pub step: String,
    /// Where it stands.
    pub state: StepMark,
    /// What it came to, or what it waits for.
    #[serde(default)]
    pub said: Option<String>,
}

/// Where a step stands, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepMark {
    /// Not begun.
    Pending,
    /// At work.
    Running,
    /// Asleep: until a time, or until somebody approves.
    Waiting,
    /// Done.
    Done,
    /// Failed, or interrupted.
    Failed,
    /// Left out.
    Skipped,
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
        Self::about(&notice.model, notice.run, notice.moment, given)
    }

    /// The facts of a moment of `model`. A key of the wrong form counts as absent.
    pub fn about(model: &ModelName, run: Option<RunId>, moment: Moment, given: Map<String, Value>) -> Self {
        let mut facts = Self {
            workflow: key(&given, "workflow").unwrap_or_else(|| same_name(model)),
            model: model.clone(),
            moment,
            run: run.or_else(|| key(&given, "run")),
            mode: key(&given, "mode"),
            version: key(&given, "version"),
            by: key(&given, "by"),
            champion: key(&given, "champion"),
            outcome: key(&given, "outcome"),
            reason: key(&given, "reason"),
            serving: key(&given, "serving"),
            advice: key(&given, "advice"),
            todo: key(&given, "todo"),
            next: key(&given, "next"),
            metrics: key(&given, "metrics").unwrap_or_default(),
            verdicts: key(&given, "verdicts").unwrap_or_default(),
            links: key(&given, "links").unwrap_or_default(),
            command: key(&given, "command"),
            first: key(&given, "first").unwrap_or_default(),
            headline: key(&given, "headline"),
            progress: key(&given, "progress").unwrap_or_default(),
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
                    let candidate = value.as_f64()?;
                    Some(MetricRow { name: name.clone(), candidate, champion: None, better: None })
                };
                Some(values.iter().filter_map(row).collect::<Vec<_>>()).filter(|rows| !rows.is_empty())
            });
            self.metrics = metrics.unwrap_or_default();
        }
        if self.verdicts.is_empty() {
            let rules = outputs.iter().filter_map(|output| output.get("rules")?.as_array()).flatten();
            self.verdicts = rules.filter_map(|rule| serde_json::from_value(rule.clone()).ok()).collect();
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
