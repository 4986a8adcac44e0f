//! `doctor`: is everything there that runs will need?

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::sync::Arc;

use futures::TryStreamExt;
use object_store::{ObjectStoreExt, PutPayload};
use serde_json::{Value, json};

use super::Exit;
use super::error::CliError;
use super::output::{Output, table};
use super::project::Opened;
use super::registry::{self, Built};
use super::{places, references};
use crate::adapter::{AdapterError, ArtifactStore, PublicBase};
use crate::domain::id::{ModelName, SecretName, StoreName};
use crate::domain::release::{Release, Served};
use crate::evidence::{Place, checked, source};
use crate::hosting::pointer;
use crate::notify::Notifiers;
use crate::store::{Store, StoreError};
use crate::trigger::{Catalog, Loaded};

/// One thing that was looked at.
struct Check {
    what: String,
    ok: bool,
    said: String,
    hint: Option<String>,
}

impl Check {
    fn ok(what: impl Into<String>, said: impl Into<String>) -> Self {
        Self { what: what.into(), ok: true, said: said.into(), hint: None }
    }

    fn problem(what: impl Into<String>, said: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { what: what.into(), ok: false, said: said.into(), hint: Some(hint.into()) }
    }

    /// A service that `error` came from.
    fn unusable(what: impl Into<String>, error: &AdapterError) -> Self {
        let hint = match error {
            AdapterError::Unavailable { .. } => "is its address right, and can it be reached from here?",
            AdapterError::Denied { service, .. } if service == pointer::FILE => {
                "make the file and its directory writable for this user"
            }
            AdapterError::Denied { .. } => "check its key or token, and what that may do",
            AdapterError::Rejected { .. } | AdapterError::Conflict { .. } => {
                "check its table in refit.toml, and what its key or token may do"
            }
        };
        Self::problem(what, error.to_string(), hint)
    }

    fn failed(what: impl Into<String>, error: CliError) -> Self {
        Self { what: what.into(), ok: false, said: error.message, hint: error.hint }
    }
}

/// `refit doctor`: looks at everything, also past the first problem.
pub async fn run(opened: Result<Opened, CliError>, out: Output) -> Result<Exit, CliError> {
    let mut checks = vec![];
    match opened {
        Ok(opened) => {
            checks.push(Check::ok(
                "settings",
                super::project::shown(&opened.project.root.join(crate::config::FILE)),
            ));
            let catalog = opened.catalog();
            checks.push(workflows(&opened, &catalog));
            database(&opened, &mut checks).await;
            adapters(&opened, &mut checks).await;
            evidence(&opened, &catalog, &mut checks).await;
            checks.extend(secrets(&opened, &catalog));
            checks.extend(python(&catalog).await);
        }
        Err(error) => checks.push(Check::failed("settings", error)),
    }
    let problems = checks.iter().filter(|check| !check.ok).count();
    let value: Vec<Value> = checks
        .iter()
        .map(|check| json!({"check": check.what, "ok": check.ok, "found": check.said, "hint": check.hint}))
        .collect();
    out.result(&json!({"checks": value, "problems": problems}), || report(&checks));
    Ok(if problems == 0 { Exit::Ok } else { Exit::Usage })
}

fn report(checks: &[Check]) -> String {
    let mut text = table(
        &["CHECK", "", "FOUND"],
        checks.iter().map(|check| {
            let word = if check.ok { "ok" } else { "problem" };
            vec![check.what.clone(), word.to_owned(), check.said.clone()]
        }),
    );
    let hints: Vec<String> = checks
        .iter()
        .filter_map(|check| Some(format!("\nhint: {}: {}", check.what, check.hint.as_ref()?)))
        .collect();
    if !hints.is_empty() {
        text.push('\n');
        text.push_str(&hints.concat());
    }
    text
}

fn workflows(opened: &Opened, catalog: &Catalog) -> Check {
    let all = catalog.workflows();
    let missing = |loaded: &Loaded| {
        references::check(&loaded.workflow, &loaded.definition.source, &opened.project).len()
    };
    let missing: usize = all.iter().map(missing).sum();
    let crowded = all.iter().filter(|loaded| !places::check(loaded, all, opened).is_empty()).count();
    let (broken, fine) = (catalog.errors.len(), all.len());
    let problems = [
        (broken, format!("{broken} of {} cannot be read", fine + broken)),
        (
            missing,
            format!(
                "{} not in refit.toml",
                if missing == 1 { "one name is".to_owned() } else { format!("{missing} names are") }
            ),
        ),
        (crowded, format!("{crowded} bring their models to a place for one")),
    ];
    let problems: Vec<String> =
        problems.into_iter().filter(|(count, _)| *count > 0).map(|(_, said)| said).collect();
    if !problems.is_empty() {
        let said = problems.join(", ");
        return Check::problem("workflows", said, "`refit validate` shows every mistake");
    }
    if fine == 0 {
        return Check::problem(
            "workflows",
            "there are none",
            "write one into workflows/; `refit init` has a first one",
        );
    }
    let names: Vec<&str> = catalog.workflows().iter().map(|loaded| loaded.workflow.name.as_str()).collect();
    Check::ok("workflows", names.join(", "))
}

async fn database(opened: &Opened, checks: &mut Vec<Check>) {
    let store = match opened.store().await {
        Ok(store) => store,
        Err(error) => {
            checks.push(Check::failed("database", error));
            return;
        }
    };
    match store.ping().await {
        Ok(()) => checks.push(Check::ok("database", store.label())),
        Err(error) => checks.push(Check::failed("database", error.into())),
    }
    checks.push(server(&store).await);
    store.close().await;
}

async fn server(store: &Arc<dyn Store>) -> Check {
    match store.live_workers().await {
        Ok(alive) => Check::ok(
            "server",
            match alive.servers {
                0 => "none is running; `refit serve` starts one".to_owned(),
                1 => "one is running".to_owned(),
                several => format!("{several} are running"),
            },
        ),
        Err(error) => Check::failed("server", error.into()),
    }
}

async fn adapters(opened: &Opened, checks: &mut Vec<Check>) {
    let http = match registry::http_client() {
        Ok(http) => http,
        Err(error) => {
            checks.push(Check::failed("http", error));
            return;
        }
    };
    let Built { stores, targets, notifiers, problems } =
        registry::build(&opened.project, &opened.secrets, &http);
    for problem in problems {
        let mend = (!problem.is_secret).then(|| format!("mend [{}] in refit.toml", problem.table));
        checks.push(Check { what: problem.table, ok: false, said: problem.cause, hint: mend });
    }
    for (name, store) in &stores {
        let what = format!("stores.{name}");
        checks.push(match probe(store).await {
            Ok(()) => Check::ok(what, format!("{} can be written and read{}", store.label, shown(store))),
            Err(error) => Check::problem(
                what,
                format!("{}: {error}", store.label),
                "refit must be able to list, read, write and delete there",
            ),
        });
    }
    for (name, target) in &targets {
        let what = format!("targets.{name}");
        checks.push(match target.check().await {
            Ok(said) => Check::ok(what, said),
            Err(error) => Check::unusable(what, &error),
        });
    }
    served(opened, &stores, checks).await;
    if let Some(notifiers) = &notifiers {
        check_notifiers(notifiers, checks).await;
    }
}

/// Whether apps are sent to where the files are: a project may have moved, or a store.
async fn served(opened: &Opened, stores: &BTreeMap<StoreName, ArtifactStore>, checks: &mut Vec<Check>) {
    // What is wrong with the database is said already.
    let Ok(database) = opened.store().await else { return };
    match elsewhere(&database, stores).await {
        Ok(found) => checks.extend(found),
        Err(error) => checks.push(Check::failed("what is served", error.into())),
    }
    database.close().await;
}

async fn elsewhere(
    database: &Arc<dyn Store>,
    stores: &BTreeMap<StoreName, ArtifactStore>,
) -> Result<Vec<Check>, StoreError> {
    let mut found = vec![];
    for release in database.releases(None).await? {
        let canary = release.desired.canary.as_ref().map(|canary| &canary.served);
        for served in release.desired.champion.iter().chain(canary) {
            let Some(record) = database.version(&release.model, &served.version).await? else { continue };
            let here = stores.get(&record.store).and_then(|store| store.base_url_of(&record).ok());
            let Some(here) = here.filter(|here| *here != served.base_url) else { continue };
            found.push(Check::problem(
                format!("{} on {}", release.model, release.target),
                format!(
                    "{} is served from {}, and stores.{} has it at {here}",
                    served.version, served.base_url, record.store
                ),
                format!("if it moved: {}", sends_apps_there(&release, canary == Some(served))),
            ));
        }
    }
    Ok(found)
}

/// What sends apps to where a version is now.
fn sends_apps_there(release: &Release, is_canary: bool) -> String {
    let Release { model, target, desired, .. } = release;
    let place = format!("--model {model} --target {target}");
    match (&desired.champion, &desired.canary) {
        (_, Some(canary)) if is_canary => format!(
            "a promotion of the canary {} sends apps to where it is now; `refit rollback {place}` drops it",
            canary.served.version
        ),
        (Some(champion), Some(canary)) => format!(
            "`refit rollback {} {place}` sends apps to where it is now, and drops the canary {}",
            champion.version, canary.served.version
        ),
        (Some(Served { version, .. }), None) => {
            format!("`refit promote {version} {place}` sends apps to where it is now")
        }
        (None, _) => format!("the next promotion of {model} on {target} sends apps to where it is now"),
    }
}

/// Whether the evidence that workflows fetch can be read, and is of versions that are known.
async fn evidence(opened: &Opened, catalog: &Catalog, checks: &mut Vec<Check>) {
    let fetched = catalog.workflows().iter().map(|loaded| &loaded.workflow);
    let fetched: Vec<_> = fetched.filter_map(|it| Some((it, it.evidence.as_ref()?))).collect();
    if fetched.is_empty() {
        return;
    }
    // What is wrong with either is said already.
    let (Ok(http), Ok(store)) = (registry::http_client(), opened.store().await) else { return };
    for (workflow, pull) in fetched {
        let what = format!("evidence of {}", workflow.name);
        let place = Place { project: &opened.project.root, secrets: &opened.secrets, http: &http };
        let read = match source(pull, place) {
            Ok(source) => checked(source.as_ref(), opened.clock.now()).await,
            Err(error) => Err(error),
        };
        checks.push(match read {
            Err(error) => Check::problem(
                what,
                opened.secrets.mask(&error.to_string()),
                "check `evidence` in the workflow, its secrets and their permissions",
            ),
            Ok(found) => match found.problem {
                Some(problem) => Check::problem(
                    what,
                    format!("{}; {}", found.said, opened.secrets.mask(&problem)),
                    "see docs/evidence.md",
                ),
                None => match unknown(&store, &workflow.model, &found.versions).await {
                    Some(unknown) => Check::problem(
                        what,
                        format!("{}; not versions of {}: {unknown}", found.said, workflow.model),
                        "the app has to report the names that refit gives versions; `refit model ls` has them",
                    ),
                    None => Check::ok(what, found.said),
                },
            },
        });
    }
    store.close().await;
}

/// Versions that are not of the model; one known version is enough, for apps keep rows of versions from before refit.
async fn unknown(store: &Arc<dyn Store>, model: &ModelName, found: &BTreeSet<String>) -> Option<String> {
    let known = store.versions(model).await.ok()?;
    let known: BTreeSet<String> = known.iter().map(|version| version.name.to_string()).collect();
    let strange = !known.is_empty() && !found.is_empty() && found.is_disjoint(&known);
    strange.then(|| found.iter().take(5).cloned().collect::<Vec<_>>().join(", "))
}

async fn check_notifiers(notifiers: &Notifiers, checks: &mut Vec<Check>) {
    for name in notifiers.names() {
        let Some((notifier, _)) = notifiers.get(name.as_str()) else { continue };
        let what = format!("notifiers.{name}");
        match notifier.check().await {
            Ok(Some(said)) => checks.push(Check::ok(what, said)),
            Ok(None) => {
                checks.push(Check::ok(
                    what,
                    format!("its settings are whole; `refit notify test {name}` tries it"),
                ));
            }
            Err(error) => checks.push(Check::unusable(what, &error)),
        }
    }
}

/// Where apps find what is in `store`, when only the service knows that.
fn shown(store: &ArtifactStore) -> String {
    match &store.public_base {
        PublicBase::Stated(_) => String::new(),
        PublicBase::Learned(root) => {
            root.get().map(|root| format!("; apps read below {root}")).unwrap_or_default()
        }
    }
}

/// Writes, reads, lists and deletes one small object.
async fn probe(store: &ArtifactStore) -> Result<(), object_store::Error> {
    let name = format!("_refit-doctor-{}", uuid::Uuid::new_v4().simple());
    let at = store.prefix.clone().join(name);
    store.objects.put(&at, PutPayload::from_static(b"refit")).await?;
    let read = async {
        store.objects.get(&at).await?.bytes().await?;
        store.objects.list(Some(&store.prefix)).try_next().await.map(drop)
    }
    .await;
    // The probe goes in any case; what came first is what is told.
    let deleted = store.objects.delete(&at).await;
    read.and(deleted)
}

/// Secrets that workflows and `[database]` name.
fn secrets(opened: &Opened, catalog: &Catalog) -> Option<Check> {
    let mut names: BTreeSet<SecretName> = opened.project.file.secrets.keys().cloned().collect();
    for loaded in catalog.workflows() {
        let texts = std::iter::once(&loaded.definition.source);
        names.extend(texts.flat_map(|text| named(text)));
    }
    let missing: Vec<String> =
        names.iter().filter(|name| opened.secrets.get(name).is_err()).map(ToString::to_string).collect();
    if !missing.is_empty() {
        return Some(Check::problem(
            "secrets",
            format!("not set: {}", missing.join(", ")),
            "put them into the environment, or name files for them under [secrets] in refit.toml",
        ));
    }
    (!names.is_empty()).then(|| Check::ok("secrets", format!("{} set", names.len())))
}

/// Names after `secrets.` in expressions of a workflow's text.
fn named(text: &str) -> Vec<SecretName> {
    let begins = |part: &str| -> Option<SecretName> {
        let end = part.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(part.len());
        part[..end].parse().ok()
    };
    let code = text.lines().map(|line| if line.trim_start().starts_with('#') { "" } else { line });
    code.flat_map(|line| line.split("secrets.").skip(1).filter_map(begins).collect::<Vec<_>>()).collect()
}

/// Python, when a step calls it.
async fn python(catalog: &Catalog) -> Option<Check> {
    let wanted = catalog
        .workflows()
        .iter()
        .flat_map(|loaded| &loaded.workflow.steps)
        .any(|step| step.kind.command().is_some_and(|run| run.command.contains("python3")));
    if !wanted {
        return None;
    }
    let version = tokio::process::Command::new("python3")
        .arg("--version")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await;
    Some(match version {
        Ok(output) if output.status.success() => {
            Check::ok("python3", String::from_utf8_lossy(&output.stdout).trim().to_owned())
        }
        Ok(output) => Check::problem(
            "python3",
            format!("does not start: {}", output.status),
            "a workflow runs it: install Python 3",
        ),
        Err(error) => {
            Check::problem("python3", error.to_string(), "a workflow runs it: install Python 3, or mend PATH")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_may_not_be_written_has_no_key() {
        let denied = |service: &str| {
            let (service, action, cause) =
                (service.to_owned(), "write to /srv".to_owned(), "Read-only file system".to_owned());
            Check::unusable("targets.production", &AdapterError::Denied { service, action, cause }).hint
        };
        assert_eq!(
            denied(pointer::FILE).as_deref(),
            Some("make the file and its directory writable for this user")
        );
        assert_eq!(denied("Slack").as_deref(), Some("check its key or token, and what that may do"));
    }
}
