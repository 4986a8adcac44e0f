//! The variables of a project: what they say, what a release wants them to say,
//! and how one becomes the other so that every prefix of the writes is safe.
//!
//! A deployment takes the variables as they are when it is made, so somebody
//! else's deployment may take any prefix of refit's writes. While no canary is
//! out, the canary variable names the champion: then not even a percentage that
//! was left behind does harm.

use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::api::{Api, Call, Failure};
use crate::adapter::{AdapterError, Attention};
use crate::domain::release::ReleaseDocument;

/// How the variables are called.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Names {
    /// The champion's version.
    pub version: String,
    /// The canary's version.
    pub canary: String,
    /// The canary's share in percent.
    pub percent: String,
    /// What refit notes for itself.
    pub release: String,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            version: "MODEL_VERSION".to_owned(),
            canary: "MODEL_VERSION_CANARY".to_owned(),
            percent: "CANARY_PERCENT".to_owned(),
            release: "REFIT_RELEASE".to_owned(),
        }
    }
}

/// What the three variables that the app reads say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Values {
    /// The champion's version.
    pub version: Option<String>,
    /// The canary's version.
    pub canary: Option<String>,
    /// The canary's share in percent.
    pub percent: Option<String>,
}

/// The note: the release that the variables show or are about to show.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Note {
    /// The release.
    #[serde(flatten)]
    pub document: ReleaseDocument,
    /// While a change is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub under_way: Option<UnderWay>,
    /// What was seen on the way and people are to be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention: Option<Attention>,
}

/// A change under way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct UnderWay {
    /// What the variables said before it.
    pub from: Values,
    /// The release that the app served before it.
    pub before: Option<ReleaseDocument>,
}

/// One variable of production.
#[derive(Debug, Clone)]
pub(super) struct Variable {
    id: String,
    /// Its value.
    pub value: String,
    /// When it was last changed, in ms since 1970 by Vercel's clock.
    pub changed_at: Option<f64>,
}

/// Refit's variables of production.
#[derive(Debug, Clone, Default)]
pub(super) struct Variables {
    version: Option<Variable>,
    canary: Option<Variable>,
    percent: Option<Variable>,
    /// The note.
    pub release: Option<Variable>,
}

impl Values {
    /// What the variables say of `document`; without a champion nothing is wanted of the versions.
    pub fn of(document: &ReleaseDocument) -> Self {
        let champion = document.champion.as_ref().map(|served| served.version.to_string());
        match &document.canary {
            Some(canary) => Self {
                version: champion,
                canary: Some(canary.served.version.to_string()),
                percent: Some(percent(canary.basis_points.0)),
            },
            None => Self { version: champion.clone(), canary: champion, percent: Some("0".to_owned()) },
        }
    }

    /// All three in one text.
    pub fn text(&self) -> String {
        let all = [&self.version, &self.canary, &self.percent];
        all.map(|value| value.as_deref().unwrap_or_default()).join(" ")
    }

    /// The same, with what `other` says where nothing is said.
    pub fn or(self, other: &Self) -> Self {
        Self {
            version: self.version.or_else(|| other.version.clone()),
            canary: self.canary.or_else(|| other.canary.clone()),
            percent: self.percent.or_else(|| other.percent.clone()),
        }
    }

    fn pairs<'v>(&'v self, other: &'v Self) -> [(&'v Option<String>, &'v Option<String>); 3] {
        [(&self.version, &other.version), (&self.canary, &other.canary), (&self.percent, &other.percent)]
    }

    /// Whether they say all that is wanted.
    pub fn show(&self, wanted: &Self) -> bool {
        self.pairs(wanted).iter().all(|(here, wanted)| wanted.is_none() || here == wanted)
    }

    /// The first that none of `known` accounts for: its index among version, canary, percent.
    pub fn changed_by_hand(&self, known: &[&Self]) -> Option<usize> {
        (0..3).find(|at| {
            known.iter().all(|known| {
                let (here, known) = self.pairs(known)[*at];
                here != known
            })
        })
    }

    /// Whether a share of the traffic goes to the canary variable's version.
    pub fn has_canary(&self) -> bool {
        self.percent.as_deref().is_some_and(|percent| percent.parse::<f64>() != Ok(0.0))
    }
}

/// Basis points as a percentage: `10`, `2.5`, `0.01`.
fn percent(basis_points: u16) -> String {
    let (whole, rest) = (basis_points / 100, basis_points % 100);
    let text = format!("{whole}.{rest:02}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    id: Option<String>,
    key: String,
    #[serde(default)]
    value: String,
    r#type: String,
    #[serde(default)]
    target: Value,
    git_branch: Option<String>,
    created_at: Option<f64>,
    updated_at: Option<f64>,
}

impl Entry {
    fn of_production(&self) -> bool {
        // A text or a list of texts.
        let production = match &self.target {
            Value::String(target) => target == "production",
            Value::Array(targets) => targets.iter().any(|target| target == "production"),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => false,
        };
        production && self.git_branch.is_none()
    }
}

#[derive(Deserialize)]
struct Created {
    #[serde(default)]
    failed: Vec<Failed>,
}

#[derive(Deserialize)]
struct Failed {
    error: FailedError,
}

#[derive(Deserialize)]
struct FailedError {
    code: String,
    #[serde(default)]
    message: String,
}

/// The variables of one project.
pub(super) struct Env<'e> {
    /// The API.
    pub api: &'e Api,
    /// The project's id or name.
    pub project: &'e str,
    /// How messages call it.
    pub label: &'e str,
    /// How the variables are called.
    pub names: &'e Names,
}

impl Env<'_> {
    fn rejected(&self, action: &str, cause: String) -> AdapterError {
        AdapterError::Rejected { service: self.label.to_owned(), action: action.to_owned(), cause }
    }

    /// What production's variables say.
    pub async fn read(&self) -> Result<Variables, AdapterError> {
        let path = ["v10", "projects", self.project, "env"];
        let call =
            Call { action: "read the variables", method: Method::GET, path: &path, query: &[], body: None };
        let answer: Value = self.api.call(&call).await?;
        // `{envs}`, `{envs, pagination}`, or one variable by itself.
        let listed = match answer {
            Value::Object(mut map) if map.contains_key("envs") => map.remove("envs").unwrap_or_default(),
            single => json!([single]),
        };
        let listed: Vec<Value> = serde_json::from_value(listed)
            .map_err(|error| self.rejected("read the variables", error.to_string()))?;
        let mut found = Variables::default();
        for entry in listed {
            let wanted = entry
                .get("key")
                .and_then(Value::as_str)
                .is_some_and(|key| self.slot(&mut found, key).is_some());
            if !wanted {
                continue;
            }
            let entry: Entry = serde_json::from_value(entry)
                .map_err(|error| self.rejected("read the variables", error.to_string()))?;
            if entry.of_production() {
                let key = entry.key.clone();
                let variable = self.readable(entry).await?;
                if let Some(slot) = self.slot(&mut found, &key) {
                    *slot = Some(variable);
                }
            }
        }
        Ok(found)
    }

    fn slot<'v>(&self, of: &'v mut Variables, key: &str) -> Option<&'v mut Option<Variable>> {
        let names = self.names;
        match key {
            _ if key == names.version => Some(&mut of.version),
            _ if key == names.canary => Some(&mut of.canary),
            _ if key == names.percent => Some(&mut of.percent),
            _ if key == names.release => Some(&mut of.release),
            _ => None,
        }
    }

    async fn readable(&self, entry: Entry) -> Result<Variable, AdapterError> {
        let id = entry.id.ok_or_else(|| {
            self.rejected("read the variables", format!("`{}` comes without an id", entry.key))
        })?;
        let value = match entry.r#type.as_str() {
            "plain" => entry.value,
            // The list has it encrypted; by itself it comes in the clear.
            "encrypted" => {
                let path = ["v1", "projects", self.project, "env", &id];
                let call = Call {
                    action: "read a variable",
                    method: Method::GET,
                    path: &path,
                    query: &[],
                    body: None,
                };
                self.api.call::<Entry>(&call).await?.value
            }
            other => {
                let cause = format!(
                    "it is `{other}`, which nobody can read back: remove it, refit makes it anew as `plain`; \
                     where the team's policy allows no readable ones, take `kind = \"vercel-config\"`"
                );
                return Err(self.rejected(&format!("read `{}`", entry.key), cause));
            }
        };
        Ok(Variable { id, value, changed_at: entry.updated_at.or(entry.created_at) })
    }

    /// Makes one variable say `value`: by its id if it is there.
    pub async fn set(&self, key: &str, there: Option<&Variable>, value: &str) -> Result<(), AdapterError> {
        let action = format!("write `{key}`");
        let refused = match there {
            Some(variable) => {
                let path = ["v9", "projects", self.project, "env", &variable.id];
                let body = Some(json!({ "value": value }));
                let call = Call { action: &action, method: Method::PATCH, path: &path, query: &[], body };
                self.api.tell(&call).await.err()
            }
            None => {
                let path = ["v10", "projects", self.project, "env"];
                // One target: an upsert matches the key and the exact list of targets.
                let body = Some(json!({
                    "key": key, "value": value, "type": "plain", "target": ["production"],
                    "comment": "written by refit",
                }));
                let query = [("upsert", "true")];
                let call = Call { action: &action, method: Method::POST, path: &path, query: &query, body };
                match self.api.call::<Created>(&call).await {
                    // 201 does not mean that it was written.
                    Ok(created) => return self.written(&action, created),
                    Err(failure) => Some(failure),
                }
            }
        };
        match refused {
            None => Ok(()),
            Some(failure) => Err(self.refused(&action, failure)),
        }
    }

    fn written(&self, action: &str, created: Created) -> Result<(), AdapterError> {
        match created.failed.into_iter().next() {
            None => Ok(()),
            Some(Failed { error: FailedError { code, message } }) => {
                let cause = crate::http_client::excerpt(&format!("{code}: {message}"));
                if is_conflict(&code) {
                    return Err(self.busy(cause));
                }
                Err(self.rejected(action, cause))
            }
        }
    }

    /// A variable that somebody made or removed since it was looked for, or another write at the
    /// same moment: looked at again, it may well work.
    fn refused(&self, action: &str, failure: Failure) -> AdapterError {
        match failure {
            Failure::Refused { code, error, .. } if is_conflict(&code) => self.busy(error.to_string()),
            Failure::Refused { status: StatusCode::CONFLICT, error, .. } => self.busy(error.to_string()),
            Failure::Refused { status: StatusCode::BAD_REQUEST, error, .. }
                if error.to_string().contains("ongoing update") =>
            {
                self.busy(error.to_string())
            }
            Failure::Refused { status: StatusCode::NOT_FOUND, error, .. } => {
                self.busy(format!("it could not {action}, which was there a moment ago: {error}"))
            }
            failure => failure.into(),
        }
    }

    fn busy(&self, cause: String) -> AdapterError {
        AdapterError::Unavailable { service: self.label.to_owned(), cause, retry_after: None }
    }

    /// Makes the app's variables say `wanted`, in an order of which every prefix is safe: a share is
    /// taken away before versions change and given after.
    pub async fn write(&self, there: &Variables, wanted: &Values) -> Result<bool, AdapterError> {
        let now = there.values();
        let mut wrote = false;
        let versions_change = !now.show(&Values { percent: None, ..wanted.clone() });
        let mut percent_now = now.percent.clone();
        if now.has_canary() && (versions_change || wanted.percent.as_deref() == Some("0")) {
            self.set(&self.names.percent, there.percent.as_ref(), "0").await?;
            (percent_now, wrote) = (Some("0".to_owned()), true);
        }
        let steps = [
            (&self.names.version, &there.version, now.version, &wanted.version),
            (&self.names.canary, &there.canary, now.canary, &wanted.canary),
            (&self.names.percent, &there.percent, percent_now, &wanted.percent),
        ];
        for (name, variable, now, wanted) in steps {
            if let Some(value) = wanted
                && now.as_ref() != Some(value)
            {
                self.set(name, variable.as_ref(), value).await?;
                wrote = true;
            }
        }
        Ok(wrote)
    }

    /// Writes a variable that nobody reads and removes it again.
    pub async fn probe(&self) -> Result<(), AdapterError> {
        const KEY: &str = "REFIT_DOCTOR";
        self.set(KEY, None, "refit may write here").await?;
        let names = Names { release: KEY.to_owned(), ..self.names.clone() };
        let env = Env { names: &names, ..*self };
        if let Some(variable) = env.read().await?.release {
            let path = ["v9", "projects", self.project, "env", &variable.id];
            let call = Call {
                action: "remove a variable",
                method: Method::DELETE,
                path: &path,
                query: &[],
                body: None,
            };
            self.api.tell(&call).await?;
        }
        Ok(())
    }
}

fn is_conflict(code: &str) -> bool {
    ["ENV_CONFLICT", "ENV_ALREADY_EXISTS", "EXISTING_KEY_AND_TARGET"].contains(&code)
}

impl Variables {
    /// What the app's variables say.
    pub fn values(&self) -> Values {
        let value = |variable: &Option<Variable>| variable.as_ref().map(|variable| variable.value.clone());
        Values { version: value(&self.version), canary: value(&self.canary), percent: value(&self.percent) }
    }

    /// When one of the app's variables was last changed; `None` when Vercel does not say.
    pub fn changed_at(&self) -> Option<f64> {
        let all = [&self.version, &self.canary, &self.percent].into_iter().flatten();
        all.map(|variable| variable.changed_at).try_fold(0.0, |last: f64, at| at.map(|at| last.max(at)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(version: &str, canary: &str, percent: &str) -> Values {
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        Values { version: some(version), canary: some(canary), percent: some(percent) }
    }

    #[test]
    fn shares_are_percentages_without_noise() {
        let shown: Vec<String> = [0, 1, 50, 250, 1_000, 10_000].into_iter().map(percent).collect();
        assert_eq!(shown, ["0", "0.01", "0.5", "2.5", "10", "100"]);
    }

    #[test]
    fn what_neither_the_old_nor_the_new_release_says_was_done_by_hand() {
        let (old, new) = (values("v1", "v1", "0"), values("v1", "v2", "10"));
        for half in [values("v1", "v1", "0"), values("v1", "v2", "0"), values("v1", "v2", "10")] {
            assert_eq!(half.changed_by_hand(&[&old, &new]), None, "{half:?}");
        }
        assert_eq!(values("v0", "v2", "0").changed_by_hand(&[&old, &new]), Some(0));
        assert_eq!(values("v1", "v2", "50").changed_by_hand(&[&old, &new]), Some(2));
        assert_eq!(values("v1", "", "10").changed_by_hand(&[&old, &new]), Some(1));
        assert_eq!(values("", "", "").changed_by_hand(&[&values("", "", ""), &new]), None);
    }
}
