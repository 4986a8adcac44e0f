//! Opening: find the project, read its settings, open its database.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use super::args::Global;
use super::error::{CliError, Doing};
use super::output::{Output, plain};
use super::registry;
use crate::clock::{Clock, SystemClock};
use crate::config::Project;
use crate::domain::canary::Looks;
use crate::engine::deadline::Deadline;
use crate::engine::{Engine, Settings};
use crate::notify::Notifiers;
use crate::secret::Secrets;
use crate::steps::context::Services;
use crate::store::Store;
use crate::trigger::{Catalog, Loaded};

/// How often schedules are looked at when none is due sooner.
pub const SCHEDULES_EVERY: Duration = Duration::from_secs(1);

/// A project and how commands speak, before its database is opened.
pub struct Opened {
    /// What holds for every command.
    pub global: Global,
    /// The project.
    pub project: Project,
    /// Its secrets.
    pub secrets: Secrets,
    /// Where results go.
    pub out: Output,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

impl Opened {
    /// The project of the working directory, or the one `--config` names.
    pub fn find(global: &Global, out: Output) -> Result<Self, CliError> {
        let here = std::env::current_dir()
            .map_err(|error| CliError::usage(format!("cannot find the working directory: {error}")))?;
        let project = match &global.config {
            None => Project::find(&here)?,
            // Relative paths of the settings begin at the project, wherever the file is.
            Some(file) => Project::read(&root_of(&here, file), file)?,
        };
        let secrets = project.secrets();
        Ok(Self { global: global.clone(), project, secrets, out, clock: Arc::new(SystemClock) })
    }

    /// Where the database is: `--db` or `REFIT_DATABASE_URL`, then the secret that `[database]` names,
    /// then a file of the project.
    pub fn database_url(&self) -> Result<String, CliError> {
        if let Some(url) = &self.global.database {
            return Ok(url.clone());
        }
        match &self.project.file.database.url {
            Some(name) => {
                let secret = self.secrets.get(name).map_err(|missing| {
                    CliError::usage(format!("cannot find the database: {missing}"))
                        .hint("or name the database with --db")
                })?;
                Ok(secret.reveal().to_owned())
            }
            None => Ok(self.project.state().join("refit.db").display().to_string()),
        }
    }

    /// The database, for commands that only read it or write rows.
    pub async fn store(&self) -> Result<Arc<dyn Store>, CliError> {
        let url = self.database_url()?;
        if self.global.database.is_none() && self.project.file.database.url.is_none() {
            make_state_dir(&self.project.state())?;
        }
        let is_new = self.global.database.is_some() && crate::store::is_missing(&url);
        let store = registry::open_store(&url, Arc::clone(&self.clock)).await;
        let store = store.doing(|| "open the database".to_owned())?;
        if is_new {
            self.out.note(&format!("note: there was no database at {url}; an empty one was made"));
        }
        Ok(store)
    }

    /// An engine that can write to the database and to nothing else: enough to make runs.
    pub fn submitter(&self, store: &Arc<dyn Store>) -> Result<Arc<Engine>, CliError> {
        let services = Services {
            instance: store.instance(),
            stores: Arc::default(),
            targets: Arc::default(),
            secrets: self.secrets.clone(),
            http: registry::http_client()?,
            guard: registry::guard()?,
        };
        Ok(self.engine_of(Arc::clone(store), services, self.project.settings()))
    }

    /// An engine with everything that `refit.toml` names.
    pub fn engine(&self, store: &Arc<dyn Store>) -> Result<(Arc<Engine>, Arc<Notifiers>), CliError> {
        self.engine_that(store, Looks::Live)
    }

    /// The same of a process that looks at canaries as `looks` says.
    pub fn engine_that(
        &self,
        store: &Arc<dyn Store>,
        looks: Looks,
    ) -> Result<(Arc<Engine>, Arc<Notifiers>), CliError> {
        let (services, notifiers) = registry::services(&self.project, &self.secrets, store.instance())?;
        make_state_dir(&self.project.state())?;
        let boards = notifiers.boards();
        Ok((
            self.engine_of(
                Arc::clone(store),
                services,
                Settings { boards, looks, ..self.project.settings() },
            ),
            notifiers,
        ))
    }

    fn engine_of(&self, store: Arc<dyn Store>, services: Services, settings: Settings) -> Arc<Engine> {
        Engine::new(
            store,
            Arc::clone(&self.clock),
            services,
            self.project.root.clone(),
            self.project.state(),
            settings,
        )
    }

    /// The workflow files.
    pub fn catalog(&self) -> Catalog {
        Catalog::load(&self.project.root)
    }

    /// The workflow called `name`, or an error that names the nearest one or shows what is wrong with its file.
    pub fn workflow(&self, name: &str) -> Result<Loaded, CliError> {
        let catalog = self.catalog();
        if let Some(loaded) = catalog.get(name) {
            return Ok(loaded.clone());
        }
        if let Some(file) = catalog.errors.iter().find_map(|error| error.file_of(name)) {
            return Err(CliError::usage(format!("workflow `{name}` cannot be used: {file} has mistakes"))
                .hint(format!("`refit validate {file}` shows them")));
        }
        let names: Vec<&str> =
            catalog.workflows().iter().map(|loaded| loaded.workflow.name.as_str()).collect();
        let mut error = CliError::usage(format!("there is no workflow `{name}` in {}", self.workflows_dir()));
        if let Some(near) = super::pick::nearest(name, names.iter().copied()) {
            error = error.hint(format!("did you mean `{near}`?"));
        } else if !catalog.errors.is_empty() {
            let count = catalog.errors.len();
            error = error.hint(format!(
                "{count} workflow file{} cannot be read: see `refit validate`",
                if count == 1 { "" } else { "s" }
            ));
        } else if names.is_empty() {
            error = error.hint("`refit init` writes a first one");
        } else {
            error = error.hint(format!("there are: {}", names.join(", ")));
        }
        Err(error)
    }

    /// `workflows/`, as messages show it.
    pub fn workflows_dir(&self) -> String {
        shown(&self.project.root.join("workflows"))
    }

    /// Says that this process was told to stop, and by when it is gone.
    pub fn stopping(&self, grace: Duration) -> Deadline {
        self.out.note(&format!(
            "stopping: steps end or are handed over within {grace:?}; once more ends at once"
        ));
        Deadline::within(grace)
    }

    /// Tells a server of this machine that something was written.
    pub async fn poke(&self) {
        super::socket::poke(&self.project.state()).await;
    }
}

/// The directory of the nearest `refit.toml`. Where there is none and no workflow either, it is the project that the
/// settings lie in: a cron job names them from its home, and must not begin an empty database there.
fn root_of(here: &Path, settings: &Path) -> PathBuf {
    let near = Project::root_of(here).or_else(|| here.join("workflows").is_dir().then_some(here));
    let settings = here.join(settings);
    near.or_else(|| Project::root_of(settings.parent()?)).unwrap_or(here).to_owned()
}

fn make_state_dir(dir: &Path) -> Result<(), CliError> {
    std::fs::create_dir_all(dir).map_err(|error| {
        CliError::usage(format!("cannot make {}: {error}", dir.display()))
            .hint("refit keeps its database and the files of runs there: may you write to it?")
    })
}

/// A path relative to the working directory where that is shorter.
pub fn shown(path: &Path) -> String {
    let relative =
        std::env::current_dir().ok().and_then(|here| path.strip_prefix(here).ok().map(Path::to_owned));
    relative.as_deref().filter(|short| !short.as_os_str().is_empty()).unwrap_or(path).display().to_string()
}

/// Says which workflow files cannot be used.
pub fn complain(catalog: &Catalog) {
    for error in &catalog.errors {
        tracing::warn!("A workflow file cannot be used: {}", plain(&error.to_string()));
    }
}

/// Who runs the command, as far as the environment says.
pub fn actor() -> String {
    ["USER", "LOGNAME"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|user| !user.trim().is_empty()))
        .unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()))
}

/// Log lines go to stderr. A server says what it does; a command only what went wrong.
pub fn set_up_tracing(global: &Global, is_server: bool) {
    let level = match (global.verbose, global.quiet) {
        (0, true) => "error",
        (0, false) if is_server => "warn,refit=info",
        (0, false) => "error,refit=warn",
        (1, _) => "warn,refit=debug",
        (_, _) => "trace",
    };
    let filter = EnvFilter::try_from_env("RUST_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let lines =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    // A second set-up happens in tests only, and changes nothing.
    let _already_set = if global.json && is_server {
        lines.json().flatten_event(true).try_init()
    } else {
        let colour = Output::new(false, false, global.no_color).colour;
        lines.with_ansi(colour).try_init()
    };
}
