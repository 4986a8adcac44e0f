//! One deployment of a project, as the API shows it.

use serde::Deserialize;
use serde_json::Value;

/// The release that a deployment was made for.
pub(super) const META_RELEASE: &str = "refitRelease";
/// What the variables said when it was asked for.
pub(super) const META_VALUES: &str = "refitValues";
/// When the newest deployment was made that refit knew when it asked for this one, in ms since 1970.
pub(super) const META_SEEN: &str = "refitSeen";
/// The deployment whose code it is built of.
pub(super) const META_FROM: &str = "refitFrom";
/// How a deployment stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Queued, building, or in a state that refit does not know.
    UnderWay,
    /// Built, and production's domains lead to it.
    Serving,
    /// Built, and never served.
    Staged,
    /// Built, and a rolling release moves traffic to it.
    Rolling,
    /// Failed or cancelled.
    Failed,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Deployment {
    // A list says `uid` and `created`, a deployment by itself `id` and `createdAt`.
    id: Option<String>,
    uid: Option<String>,
    #[serde(default)]
    pub name: String,
    pub project_id: Option<String>,
    created: Option<f64>,
    created_at: Option<f64>,
    pub state: Option<String>,
    pub ready_state: Option<String>,
    ready_substate: Option<String>,
    #[serde(default)]
    alias_assigned: Value,
    pub alias_error: Option<AliasError>,
    pub error_code: Option<String>,
    pub error_message: Option<String>,
    pub inspector_url: Option<String>,
    #[serde(default)]
    meta: Value,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct AliasError {
    #[serde(default)]
    pub message: String,
}

impl Deployment {
    pub fn id(&self) -> &str {
        self.id.as_deref().or(self.uid.as_deref()).unwrap_or_default()
    }

    pub fn made_at(&self) -> f64 {
        self.created_at.or(self.created).unwrap_or_default()
    }

    pub fn state(&self) -> State {
        match self.ready_state.as_deref().or(self.state.as_deref()) {
            Some("ERROR" | "CANCELED" | "DELETED") => State::Failed,
            Some("READY") => match self.ready_substate.as_deref() {
                Some("ROLLING") => State::Rolling,
                Some("STAGED") => State::Staged,
                Some("PROMOTED") | None if self.assigned() => State::Serving,
                // Assigned in a moment.
                Some(_) | None => State::UnderWay,
            },
            Some(_) | None => State::UnderWay,
        }
    }

    /// Whether refit made it.
    pub fn is_refits(&self) -> bool {
        self.meta(META_RELEASE).is_some()
    }

    /// Whether `other` came after refit had looked and before this deployment: whoever asked for this one did not
    /// know of it.
    pub fn did_not_know(&self, other: &Self) -> bool {
        let seen = self.meta(META_SEEN).and_then(|seen| seen.parse::<f64>().ok());
        seen.is_some_and(|seen| other.made_at() > seen) && other.made_at() < self.made_at()
    }

    fn assigned(&self) -> bool {
        match &self.alias_assigned {
            Value::Bool(assigned) => *assigned,
            // The time at which it was.
            Value::Number(_) => true,
            Value::Null | Value::String(_) | Value::Array(_) | Value::Object(_) => false,
        }
    }

    pub fn meta(&self, key: &str) -> Option<&str> {
        self.meta.get(key).and_then(Value::as_str)
    }
}

/// Whether `release` is a later generation of the same model than `older`.
pub(super) fn is_older(older: &str, release: &str) -> bool {
    let parts = |release: &str| {
        let (model, generation) = release.rsplit_once('/')?;
        Some((model.to_owned(), generation.parse::<i64>().ok()?))
    };
    match (parts(older), parts(release)) {
        (Some((model, older)), Some((same, newer))) => model == same && older < newer,
        (None, _) | (_, None) => false,
    }
}
