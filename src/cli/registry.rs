//! Where names of `refit.toml` become things: the one file that knows which
//! stores, targets, notifiers and databases this program has.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::error::{CliError, Doing};
use crate::adapter::{AdapterError, ArtifactStore, BuildError, Deps, Target};
use crate::clock::Clock;
use crate::config::{ConfigError, Project};
use crate::domain::id::{InstanceId, StoreName, TargetName};
use crate::domain::version::VersionRecord;
use crate::notify::{self, Notifiers};
use crate::secret::Secrets;
use crate::steps::context::Services;
use crate::store::{Store, StoreError};
use crate::trainers::command::GuardCommand;
use crate::{artifacts, hosting};

/// Opens the database at `url`: a file, or `postgres://…`. Its tables must be there.
pub async fn open_store(url: &str, clock: Arc<dyn Clock>) -> Result<Arc<dyn Store>, StoreError> {
    crate::store::open(url, clock).await
}

/// Makes or updates the tables of the database at `url`.
pub async fn migrate(url: &str, shared: bool) -> Result<(), StoreError> {
    crate::store::migrate(url, shared).await
}

/// Reads every file of a version and compares it with what was sealed.
pub async fn verify(store: &ArtifactStore, record: &VersionRecord) -> Result<(), AdapterError> {
    Ok(crate::artifacts::verify_known(store, record).await?)
}

/// Brings the files of a version, verified, to `dir`, which is then whole or as it was.
pub async fn fetch(
    store: &ArtifactStore,
    record: &VersionRecord,
    dir: &std::path::Path,
) -> Result<(), AdapterError> {
    use crate::artifacts::sealed;
    match (&record.place, &record.manifest) {
        (Some(place), Some(manifest)) => Ok(sealed::fetch_in_place(store, place, manifest, dir).await?),
        (Some(_) | None, _) => {
            let found = sealed::fetch(store, &record.model, &record.name, dir).await?;
            if found.sha256 == record.manifest_sha256 {
                return Ok(());
            }
            Err(AdapterError::Rejected {
                service: store.label.clone(),
                action: format!("give {}/{}", record.model, record.name),
                cause: format!("its manifest is not the one that was sealed: SHA-256 {}", found.sha256),
            })
        }
    }
}

/// The client that all of refit's plain HTTP goes through.
pub fn http_client() -> Result<reqwest::Client, CliError> {
    crate::http_client::build()
        .map_err(|error| CliError::new(super::Exit::StepFailed, error.to_string()))
        .doing(|| "speak HTTP".to_owned())
}

/// One table of `refit.toml` and what came of building it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The table, such as `stores.models`.
    pub table: String,
    /// What is wrong.
    pub cause: String,
    /// It is a secret that is not set: the table itself may be fine.
    pub is_secret: bool,
}

impl Problem {
    fn of(table: impl Into<String>, cause: &BuildError) -> Self {
        let is_secret = match cause {
            BuildError::Secret(_) => true,
            BuildError::NoKind { .. } | BuildError::UnknownKind { .. } | BuildError::Options { .. } => false,
        };
        Self { table: table.into(), cause: cause.to_string(), is_secret }
    }
}

/// Everything `refit.toml` names, built as far as it can be, and what cannot.
pub struct Built {
    /// `[stores.*]`.
    pub stores: BTreeMap<StoreName, ArtifactStore>,
    /// `[targets.*]`.
    pub targets: BTreeMap<TargetName, Arc<dyn Target>>,
    /// `[notifiers.*]`; none when one of them cannot be built.
    pub notifiers: Option<Notifiers>,
    /// What cannot be built.
    pub problems: Vec<Problem>,
}

fn deps(project: &Project, secrets: &Secrets, http: &reqwest::Client) -> Deps {
    Deps {
        project: project.root.clone(),
        secrets: secrets.clone(),
        http: http.clone(),
        stores: Arc::default(),
    }
}

/// Builds what can be built of the stores, and nothing else.
pub fn stores(project: &Project, secrets: &Secrets) -> Result<BTreeMap<StoreName, ArtifactStore>, CliError> {
    Ok(stores_of(project, &deps(project, secrets, &http_client()?)).0)
}

fn stores_of(project: &Project, deps: &Deps) -> (BTreeMap<StoreName, ArtifactStore>, Vec<Problem>) {
    let (mut stores, mut problems) = (BTreeMap::new(), vec![]);
    for (name, table) in &project.file.stores {
        match options(table).and_then(|options| artifacts::build(options, deps)) {
            Ok(store) => {
                stores.insert(name.clone(), store);
            }
            Err(cause) => problems.push(Problem::of(format!("stores.{name}"), &cause)),
        }
    }
    (stores, problems)
}

/// Builds stores, then targets (which may write into a store), then notifiers.
pub fn build(project: &Project, secrets: &Secrets, http: &reqwest::Client) -> Built {
    let mut deps = deps(project, secrets, http);
    let (stores, mut problems) = stores_of(project, &deps);
    deps.stores = Arc::new(stores.clone());
    let mut targets = BTreeMap::new();
    for (name, table) in &project.file.targets {
        match options(table).and_then(|options| hosting::build(options, &deps)) {
            Ok(target) => {
                targets.insert(name.clone(), target);
            }
            Err(cause) => problems.push(Problem::of(format!("targets.{name}"), &cause)),
        }
    }
    let mut tables = BTreeMap::new();
    let known = problems.len();
    for (name, table) in &project.file.notifiers {
        // Each alone, so that all that is wrong is said at once.
        match options(table).and_then(|options| notify::build(options.clone(), &deps).map(|_| options)) {
            Ok(options) => {
                tables.insert(name.clone(), options);
            }
            Err(cause) => problems.push(Problem::of(format!("notifiers.{name}"), &cause)),
        }
    }
    let notifiers = match Notifiers::build(tables, project.templates().as_deref(), &deps) {
        Ok(notifiers) => (problems.len() == known).then_some(notifiers),
        Err(error) => {
            let (table, cause) = ("notifiers".to_owned(), error.to_string());
            problems.push(Problem { table, cause, is_secret: false });
            None
        }
    };
    Built { stores, targets, notifiers, problems }
}

/// A table of TOML as adapters take it.
fn options(table: &toml::Table) -> Result<serde_json::Value, BuildError> {
    serde_json::to_value(table)
        .map_err(|error| BuildError::Options { kind: "refit.toml", problem: error.to_string() })
}

/// What steps are handed and what sends messages, for the database `instance`. Everything
/// that is named must be usable: a run must not find out at its last step.
pub fn services(
    project: &Project,
    secrets: &Secrets,
    instance: InstanceId,
) -> Result<(Services, Arc<Notifiers>), CliError> {
    let http = http_client()?;
    let mut built = build(project, secrets, &http);
    let Some(notifiers) = built.notifiers.filter(|_| built.problems.is_empty()) else {
        let Problem { table, cause, is_secret } = built.problems.swap_remove(0);
        return Err(ConfigError::Adapter { table, cause, is_secret }).doing(|| "use the settings".to_owned());
    };
    let services = Services {
        instance,
        stores: Arc::new(built.stores),
        targets: Arc::new(built.targets),
        secrets: secrets.clone(),
        http,
        guard: guard()?,
    };
    Ok((services, Arc::new(notifiers)))
}

/// What commands of workflows run under: this program again.
pub fn guard() -> Result<GuardCommand, CliError> {
    GuardCommand::this_program().map_err(|error| {
        CliError::new(super::Exit::StepFailed, format!("cannot find the program refit itself: {error}"))
    })
}

/// A database URL as messages show it: without user and password.
pub fn shown_url(url: &str) -> String {
    match url::Url::parse(url) {
        Ok(mut parsed) if parsed.has_host() => {
            let _no_user_in_this_scheme = parsed.set_username("");
            let _no_password_in_this_scheme = parsed.set_password(None);
            parsed.set_query(None);
            parsed.to_string()
        }
        Ok(_) | Err(_) => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_is_shown_without_its_password() {
        assert_eq!(shown_url("postgres://me:hunter22@db:5432/app?password=x"), "postgres://db:5432/app");
        assert_eq!(shown_url(".refit/refit.db"), ".refit/refit.db");
    }
}
