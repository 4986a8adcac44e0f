//! One process of refit as its project asks for it, on a clock that is told what time it is.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use refit::adapter::Deps;
use refit::clock::{Clock as _, ManualClock};
use refit::config::Project;
use refit::domain::id::{InstanceId, RunId};
use refit::domain::run::{Run, RunStatus};
use refit::engine::{Engine, Settings};
use refit::http::{self, Server};
use refit::notify::{Notifiers, outbox};
use refit::steps::context::Services;
use refit::store::{RunSummary, Stay, Submitted};
use refit::trigger::{Catalog, schedule, trigger};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::steps::guard;
use super::world::turn;

/// A process at work on the project at `root`.
pub struct Instance {
    pub engine: Arc<Engine>,
    pub notifiers: Arc<Notifiers>,
    pub clock: Arc<ManualClock>,
    /// Where it answers HTTP.
    pub address: SocketAddr,
    root: PathBuf,
    _stop: DropGuard,
}

impl Instance {
    pub async fn on(root: &Path, database: &str, clock: Arc<ManualClock>) -> Self {
        let store = refit::store::open(database, clock.clone()).await.expect("opens");
        let project = Project::find(root).expect("a project");
        let (services, notifiers) = built(&project, store.instance());
        let settings =
            Settings { grace: Duration::from_secs(2), boards: notifiers.boards(), ..project.settings() };
        let engine =
            Engine::new(store, clock.clone(), services, project.root.clone(), project.state(), settings);
        engine.store.register_worker(engine.worker, &[], Stay::Open, clock.now()).await.expect("registers");
        let catalog = catalog(root);
        schedule::sync(&engine, &catalog).await.expect("schedules");

        let (_, working) = watch::channel(refit::http::Working::Yes);
        let listen = http::Settings { listen: "127.0.0.1:0".parse().expect("an address"), public_url: None };
        let source = Arc::new(move || Arc::clone(&catalog));
        let server = Server::bind(Arc::clone(&engine), source, &listen, working).await.expect("binds");
        let address = server.address().expect("an address");
        let stop = CancellationToken::new();
        tokio::spawn(server.run(stop.clone()));
        Self { engine, notifiers, clock, address, root: root.to_owned(), _stop: stop.drop_guard() }
    }

    /// Somebody says `refit trigger retrain`.
    pub async fn retrain(&self, inputs: &[(&str, &str)]) -> RunId {
        let catalog = catalog(&self.root);
        let loaded = catalog.get("retrain").expect("the workflow");
        let inputs: Vec<_> =
            inputs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        match trigger(&self.engine, loaded, &inputs, "sam").await.expect("triggered") {
            Submitted::Made(run) => run,
            other => panic!("{other:?}"),
        }
    }

    /// The clock's next tick comes, and starts a run.
    pub async fn tick(&self) -> RunId {
        let before: Vec<RunId> = self.runs().await.iter().map(|run| run.id).collect();
        let catalog = catalog(&self.root);
        let due = schedule::fire_due(&self.engine, &catalog).await.expect("fires").expect("a schedule");
        self.clock.advance(due - self.clock.now());
        schedule::fire_due(&self.engine, &catalog).await.expect("fires");
        let mut new = self.runs().await;
        new.retain(|run| !before.contains(&run.id));
        assert_eq!(new.len(), 1, "{new:#?}");
        new[0].id
    }

    pub async fn runs(&self) -> Vec<RunSummary> {
        let filter = refit::store::RunFilter { limit: 100, ..Default::default() };
        self.engine.store.runs(&filter).await.expect("readable")
    }

    /// Everything that its loops do, once, but for messages that follow runs.
    pub async fn turn(&self, run: RunId) -> Run {
        let seen = turn(&self.engine, run).await;
        let store = self.engine.store.as_ref();
        outbox::drain_once(store, &self.notifiers, self.clock.as_ref()).await.expect("sent");
        seen
    }

    /// Brings the messages that follow runs up to date. Slack is kept to one a second, in real time:
    /// not for each turn.
    pub async fn show(&self) {
        self.engine.show_boards(&self.notifiers).await.expect("shown");
    }

    /// Turns until nothing happens any more at this time.
    pub async fn settle(&self, run: RunId) -> Run {
        let mut seen = self.turn(run).await;
        while seen.status != RunStatus::Finished {
            let again = self.turn(run).await;
            if again == seen {
                break;
            }
            seen = again;
        }
        seen
    }
}

fn catalog(root: &Path) -> Arc<Catalog> {
    let catalog = Catalog::load(root);
    assert!(catalog.errors.is_empty(), "{:?}", catalog.errors);
    Arc::new(catalog)
}

/// Everything that `refit.toml` names.
fn built(project: &Project, instance: InstanceId) -> (Services, Arc<Notifiers>) {
    let options = |table: &toml::Table| serde_json::to_value(table).expect("JSON");
    let (file, secrets) = (&project.file, project.secrets());
    let http = refit::http_client::build().expect("a client");
    let mut deps = Deps {
        project: project.root.clone(),
        secrets: secrets.clone(),
        http: http.clone(),
        stores: Arc::default(),
    };
    let stores = file.stores.iter().map(|(name, table)| {
        (name.clone(), refit::artifacts::build(options(table), &deps).expect("a store"))
    });
    let stores: Arc<BTreeMap<_, _>> = Arc::new(stores.collect());
    deps.stores = Arc::clone(&stores);
    let targets = file
        .targets
        .iter()
        .map(|(name, table)| (name.clone(), refit::hosting::build(options(table), &deps).expect("a target")));
    let targets = Arc::new(targets.collect());
    let notifiers = file.notifiers.iter().map(|(name, table)| (name.clone(), options(table)));
    let notifiers = Notifiers::build(notifiers.collect(), None, &deps).expect("notifiers");
    let services = Services { instance, stores, targets, secrets, http, guard: guard() };
    (services, Arc::new(notifiers))
}
