//! `kind = "vercel"`: three environment variables of a project, and the app
//! built again so that they take effect.
//!
//! A fourth variable holds a note: the release, and while a change is under way
//! also what was there before, so that an interrupted change is told from one
//! that somebody made by hand. A change is done when the app itself says the
//! version; only then the note says so.

pub(super) mod api;
mod deployment;
mod deployments;
mod env;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::Instant;

use self::api::{Account, Api};
use self::deployments::{Change, Deployments};
use self::env::{Env, Names, Note, UnderWay, Values, Variables};
use super::probe::{Probe, ProbeOptions};
use super::span::Span;
use super::succession::{Step, fingerprint, follows};
use crate::adapter::{Adapter, AdapterError, BuildError, Deps, Observed, Target, TargetTraits, options_of};
use crate::domain::id::{InstanceId, ModelName, SecretName, VersionName};
use crate::domain::release::{CanaryServed, Release, ReleaseDocument, Served};
use crate::http_client::excerpt;

/// `kind = "vercel"`.
pub const ADAPTER: Adapter<Arc<dyn Target>> = Adapter { kind: "vercel", build };

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// The project's id (`prj_…`) or name.
    project: String,
    token: SecretName,
    team: Option<String>,
    api: Option<url::Url>,
    /// How the variables are called.
    #[serde(default)]
    variables: Names,
    /// Where the app says which version it serves.
    verify: ProbeOptions,
    /// Production's domain; `verify`'s when absent.
    domain: Option<String>,
    /// About how long a build takes, for plans.
    #[serde(default = "five_minutes")]
    takes: Span,
    /// A build, and all that comes before it serves.
    #[serde(default = "half_an_hour")]
    wait_at_most: Span,
    /// How long the app may say the old version once the new deployment serves.
    #[serde(default = "two_minutes")]
    verify_within: Span,
    /// Between two looks at a build.
    #[serde(default = "three_seconds")]
    poll: Span,
    /// A release of another refit database is replaced, once seen.
    #[serde(default)]
    take_over: bool,
}

fn five_minutes() -> Span {
    Span::seconds(300)
}

fn half_an_hour() -> Span {
    Span::seconds(1_800)
}

fn two_minutes() -> Span {
    Span::seconds(120)
}

fn three_seconds() -> Span {
    Span::seconds(3)
}

fn build(options: Value, deps: &Deps) -> Result<Arc<dyn Target>, BuildError> {
    let options: Options = options_of(ADAPTER.kind, options)?;
    let problem = |problem: &str| BuildError::Options { kind: ADAPTER.kind, problem: problem.to_owned() };
    let names = &options.variables;
    let mut all = vec![&names.version, &names.canary, &names.percent, &names.release];
    all.sort();
    all.dedup();
    let is_name = |name: &&String| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    if all.len() != 4 || !all.iter().all(is_name) {
        return Err(problem("`variables` are four different names of letters, digits and `_`"));
    }
    if options.project.is_empty() {
        return Err(problem("`project` is the id or name of a project"));
    }
    let verify = options.verify.build(ADAPTER.kind, "the app", deps)?;
    if !verify.says_version() {
        return Err(problem("`verify` needs `path`: where in its answer the app says the version"));
    }
    let account = Account::of(options.token, options.team, options.api);
    Ok(Arc::new(Vercel {
        api: account.open(ADAPTER.kind, deps)?,
        label: format!("Vercel project {}", excerpt(&options.project)),
        project: options.project,
        names: options.variables,
        domain: options.domain.or_else(|| verify.host()),
        verify,
        takes: options.takes.0,
        wait_at_most: options.wait_at_most.0,
        verify_within: options.verify_within.0,
        poll: options.poll.0.max(Duration::from_millis(1)),
        take_over: options.take_over,
        writing: Mutex::new(()),
        newest: AtomicI64::new(i64::MIN),
    }))
}

struct Vercel {
    api: Api,
    label: String,
    project: String,
    names: Names,
    domain: Option<String>,
    verify: Probe,
    takes: Duration,
    wait_at_most: Duration,
    verify_within: Duration,
    poll: Duration,
    take_over: bool,
    /// Vercel refuses two writes at once.
    writing: Mutex<()>,
    /// The newest generation that is to be shown: an older one is no longer waited for.
    newest: AtomicI64,
}

#[async_trait]
impl Target for Vercel {
    fn traits(&self) -> TargetTraits {
        TargetTraits { instant: false, expires: false, takes: self.takes, one_model: true }
    }

    async fn read(&self, model: &ModelName) -> Result<Option<Observed>, AdapterError> {
        let there = self.env().read().await?;
        let Some(note) = self.note(&there)? else { return Ok(None) };
        if &note.document.model != model {
            return Err(AdapterError::Rejected {
                service: self.label.clone(),
                action: "read the release".to_owned(),
                cause: format!(
                    "it is a release of `{}`: give each model a target with `variables` of its own",
                    note.document.model
                ),
            });
        }
        let values = there.values();
        let wanted = Values::of(&note.document).or(&values);
        let attention = note.attention.clone();
        let shown = match &note.under_way {
            Some(under_way) if values.changed_by_hand(&[&wanted, &under_way.from]).is_none() => {
                under_way.before.clone()
            }
            None if values.show(&wanted) => Some(self.served(note.document.clone()).await?),
            Some(_) | None => Some(self.by_hand(note.document.clone(), &values)?),
        };
        Ok(shown.map(|document| {
            let state = serde_json::json!([document, values]).to_string();
            Observed { fingerprint: fingerprint(state.as_bytes()), document, attention }
        }))
    }

    async fn apply(&self, release: &Release, instance: InstanceId) -> Result<(), AdapterError> {
        self.newest.fetch_max(release.generation.0, Ordering::SeqCst);
        let _one_at_a_time = self.writing.lock().await;
        let document = release.document(instance);
        let there = self.env().read().await?;
        let Some(note) = self.note(&there)? else {
            return self.change(&document, there, None).await;
        };
        let step = follows(&self.label, self.take_over, &note.document, &document)?;
        let foreign = note.document.instance != document.instance;
        let values = there.values();
        let (wanted, was) = (Values::of(&document).or(&values), Values::of(&note.document).or(&values));
        let from = note.under_way.as_ref().map(|under_way| &under_way.from);
        let known: Vec<&Values> = [&wanted, &was].into_iter().chain(from).collect();
        if !foreign && let Some(at) = values.changed_by_hand(&known) {
            let conflict = self.changed_by_hand(at, &values, &note.document);
            if document.canary.is_none() && note.document.canary.is_some() && values.has_canary() {
                // The canary is ours to take away, whatever else was changed.
                let kept = self
                    .by_hand(ReleaseDocument { canary: None, ..document }, &values_without_canary(&values))?;
                self.change(&kept, there, Some(note)).await?;
            }
            return Err(conflict);
        }
        let done = same_change(&note.document, &document) && note.under_way.is_none();
        match step {
            // Variables do not show how long a canary is valid; nothing is built for that.
            Step::Done | Step::Write if done => Ok(()),
            Step::Done | Step::Write => self.change(&document, there, Some(note)).await,
        }
    }

    async fn check(&self) -> Result<String, AdapterError> {
        let env = self.env();
        let there = env.read().await?;
        self.note(&there)?;
        let serving = self.deployments(&|| false).now().await?.ok_or_else(|| AdapterError::Rejected {
            service: self.label.clone(),
            action: "find what serves".to_owned(),
            cause: "nothing serves in production yet: deploy the app once".to_owned(),
        })?;
        let answer = self.verify.ask("", "any version", "").await?;
        let says = self.verify.version_in(&answer)?;
        env.probe().await?;
        Ok(format!(
            "{} can be read and written; {serving} serves, the app says version {}; a change takes about {} min",
            self.label,
            excerpt(&says),
            self.takes.as_secs().div_ceil(60)
        ))
    }
}

fn values_without_canary(values: &Values) -> Values {
    Values { percent: Some("0".to_owned()), ..values.clone() }
}

impl Vercel {
    fn env(&self) -> Env<'_> {
        Env { api: &self.api, project: &self.project, label: &self.label, names: &self.names }
    }

    fn deployments<'d>(&'d self, superseded: &'d (dyn Fn() -> bool + Send + Sync)) -> Deployments<'d> {
        Deployments {
            api: &self.api,
            project: &self.project,
            label: &self.label,
            domain: self.domain.as_deref(),
            poll: self.poll,
            at_most: self.wait_at_most,
            superseded,
        }
    }

    fn conflict(&self, cause: String) -> AdapterError {
        AdapterError::Conflict { service: self.label.clone(), cause }
    }

    fn note(&self, there: &Variables) -> Result<Option<Note>, AdapterError> {
        let Some(variable) = &there.release else { return Ok(None) };
        serde_json::from_str(&variable.value).map(Some).map_err(|error| {
            let name = &self.names.release;
            self.conflict(format!("`{name}` holds no release ({error}); remove it if nobody else needs it"))
        })
    }

    /// What a person reads who changed a variable by hand.
    fn changed_by_hand(&self, at: usize, values: &Values, noted: &ReleaseDocument) -> AdapterError {
        let names = [&self.names.version, &self.names.canary, &self.names.percent];
        let now = [&values.version, &values.canary, &values.percent];
        let was = Values::of(noted);
        let was = [&was.version, &was.canary, &was.percent];
        // The first that differs from the note, from `at` on.
        let at = (at..3).find(|at| now[*at] != was[*at]).unwrap_or(at);
        let (now, was) = (now[at].as_deref().unwrap_or("nothing"), was[at].as_deref().unwrap_or("nothing"));
        self.conflict(format!(
            "`{}` says {}, not {was} as refit wrote at generation {}: set it back, or promote that version by hand",
            names[at],
            excerpt(now),
            noted.generation
        ))
    }

    /// Writes the note, the variables, a deployment, and the note again once the app says the version.
    async fn change(
        &self,
        document: &ReleaseDocument,
        there: Variables,
        note: Option<Note>,
    ) -> Result<(), AdapterError> {
        let env = self.env();
        let wanted = Values::of(document);
        let mut begun_before = true;
        let mut note = match note {
            Some(note) if note.under_way.is_some() && same_change(&note.document, document) => note,
            note => {
                // What the app serves while this change is under way: an older one that was not done either is not.
                let before = note.and_then(|note| match note.under_way {
                    Some(under_way) => under_way.before,
                    None => Some(note.document),
                });
                let under_way = UnderWay { from: there.values(), before };
                let note = Note { document: document.clone(), under_way: Some(under_way), attention: None };
                self.write_note(&there, &note).await?;
                begun_before = false;
                note
            }
        };
        let wrote = env.write(&there, &wanted).await?;
        let there = if wrote || !begun_before { env.read().await? } else { there };
        let ours = self.note(&there)?.is_some_and(|note| same_change(&note.document, document));
        if !ours || !there.values().show(&wanted) {
            return Err(self.conflict("somebody changed its variables at the same moment".to_owned()));
        }
        let release = format!("{}/{}/{}", document.instance, document.model, document.generation);
        let generation = document.generation.0;
        let superseded = || self.newest.load(Ordering::SeqCst) > generation;
        let values = there.values().text();
        let change = Change { release: &release, values: &values, changed_at: there.changed_at() };
        if let Some(attention) = self.deployments(&superseded).serve(&change).await? {
            // Kept before the app is asked, which may take long; a change that is done is not looked at again.
            note.attention = Some(attention);
            self.write_note(&there, &note).await?;
        }
        if let Some(version) = &wanted.version {
            self.verified(document, version).await?;
        }
        self.write_note(&there, &Note { document: document.clone(), under_way: None, ..note }).await
    }

    async fn write_note(&self, there: &Variables, note: &Note) -> Result<(), AdapterError> {
        let text = serde_json::to_string(note).map_err(|error| AdapterError::Rejected {
            service: self.label.clone(),
            action: "write the release".to_owned(),
            cause: error.to_string(),
        })?;
        self.env().set(&self.names.release, there.release.as_ref(), &text).await
    }

    /// Returns once the app says `version`.
    async fn verified(&self, document: &ReleaseDocument, version: &str) -> Result<(), AdapterError> {
        let since = Instant::now();
        loop {
            let seen = match self.says(document).await {
                Ok(says) if says == version => return Ok(()),
                Ok(says) => format!("the app says {}, not {version}", excerpt(&says)),
                Err(error) if error.is_transient() => error.to_string(),
                Err(error) => return Err(error),
            };
            if since.elapsed() >= self.verify_within {
                return Err(AdapterError::Unavailable {
                    service: self.label.clone(),
                    cause: format!("the new deployment serves, but {seen}"),
                    retry_after: None,
                });
            }
            tokio::time::sleep(self.poll).await;
        }
    }

    /// What the app says it serves.
    async fn says(&self, document: &ReleaseDocument) -> Result<String, AdapterError> {
        let champion = document.champion.as_ref();
        let version = champion.map(|served| served.version.as_str()).unwrap_or_default();
        let base_url = champion.map(|served| served.base_url.as_str()).unwrap_or_default();
        let answer = self.verify.ask(document.model.as_str(), version, base_url).await?;
        self.verify.version_in(&answer)
    }

    /// `document`, if the app says its version; else what the app says: somebody rolled back at the host, say.
    async fn served(&self, document: ReleaseDocument) -> Result<ReleaseDocument, AdapterError> {
        let Some(champion) = &document.champion else { return Ok(document) };
        let says = self.says(&document).await?;
        if says == champion.version.as_str() {
            return Ok(document);
        }
        let champion = Some(self.unknown(&says)?);
        Ok(ReleaseDocument { champion, canary: None, ..document })
    }

    /// `document` as the variables show it after somebody changed them.
    fn by_hand(
        &self,
        mut document: ReleaseDocument,
        values: &Values,
    ) -> Result<ReleaseDocument, AdapterError> {
        let version = values.version.as_deref().unwrap_or_default();
        if document.champion.as_ref().is_none_or(|served| served.version.as_str() != version) {
            document.champion = Some(self.unknown(version)?);
        }
        if !values.has_canary() {
            document.canary = None;
        }
        if let Some(canary) = &mut document.canary {
            let version = values.canary.as_deref().unwrap_or_default();
            if canary.served.version.as_str() != version {
                canary.served = self.unknown(version)?;
            }
            let share = values.percent.as_deref().unwrap_or_default();
            let share = crate::domain::workflow::units::parse_share(&format!("{share}%"));
            let share = share.map_err(|error| {
                self.conflict(format!("`{}` is no percentage: {error}", self.names.percent))
            })?;
            *canary = CanaryServed { basis_points: share, ..canary.clone() };
        }
        Ok(document)
    }

    /// A version of which only the name is known.
    fn unknown(&self, version: &str) -> Result<Served, AdapterError> {
        let version: VersionName = version.parse().map_err(|_| {
            self.conflict(format!("`{}` is no version of refit's: somebody set it", excerpt(version)))
        })?;
        Ok(Served { version, base_url: String::new(), manifest_sha256: String::new() })
    }
}

fn same_change(noted: &ReleaseDocument, document: &ReleaseDocument) -> bool {
    noted.instance == document.instance && noted.generation == document.generation
}
