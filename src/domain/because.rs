//! Why a release is changed, with what was known at that moment: kept with the
//! change for good, whatever a canary's later looks say.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::canary::{CanaryRecord, CanaryView};

/// Why a release is changed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Because {
    /// In a sentence with numbers.
    pub reason: String,
    /// What was known of the canary that was out or baked; none where there was none.
    pub evidence: Option<Evidence>,
    /// SHA-256, in lower-case hex, of the workflow that canary is judged under; without a canary, of the workflow whose
    /// run makes the change. None where no run is concerned.
    pub configuration: Option<String>,
}

/// What was known of a canary at one moment, as [`CanaryView`] shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Evidence(Value);

impl Because {
    /// A change that no canary and no run has to do with.
    pub fn alone(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), evidence: None, configuration: None }
    }
}

impl Evidence {
    /// What is known of `canary` now.
    pub fn of(canary: &CanaryRecord) -> Self {
        let mut view = canary.view();
        for extension in &mut view.extensions {
            // Kept once, with the canary: every change after it would carry it again.
            extension.evidence = Value::Null;
        }
        Self(serde_json::to_value(view).unwrap_or(Value::Null))
    }

    /// The canary as it was; none where another version of refit wrote it in a form that this one does not read.
    pub fn view(&self) -> Option<CanaryView> {
        CanaryView::deserialize(&self.0).ok()
    }
}
