//! Three retrains on a virtual clock: the first version, one whose canary is
//! promoted, one whose canary is rolled back.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use insta::{assert_snapshot, with_settings};
use refit::adapter::Deps;
use refit::clock::{Clock as _, ManualClock};
use refit::config::Project;
use refit::domain::id::{InstanceId, RunId};
use refit::domain::run::{Outcome, Run, RunStatus};
use refit::engine::{Engine, Settings};
use refit::http::{self, Server};
use refit::notify::{Notifiers, outbox};
use refit::steps::context::Services;
use refit::store::Submitted;
use refit::trigger::{Catalog, schedule, trigger};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::shop::Shop;
use crate::store::database::Database;
use crate::store::on_both;
use crate::support::steps::guard;
use crate::support::world::turn;

/// One process of refit in the shop, and the app that reports to it.
struct Refit {
    shop: Shop,
    engine: Arc<Engine>,
    notifiers: Arc<Notifiers>,
    clock: Arc<ManualClock>,
    address: SocketAddr,
    _stop: tokio_util::sync::DropGuard,
    reports: u32,
}

impl Refit {
    async fn on(database: &Database) -> Self {
        let shop = Shop::new().await;
        let store = database.open().await;
        let project = Project::find(shop.root()).expect("a project");
        let (services, notifiers) = built(&project, store.instance());
        let settings = Settings { grace: Duration::from_secs(2), ..project.settings() };
        let clock = database.clock.clone();
        let engine =
            Engine::new(store, clock.clone(), services, project.root.clone(), project.state(), settings);
        engine.store.register_worker(engine.worker, &[], clock.now()).await.expect("registers");
        let catalog = Arc::new(Catalog::load(&project.root));
        assert!(catalog.errors.is_empty(), "{:?}", catalog.errors);
        schedule::sync(&engine, &catalog).await.expect("schedules");

        let (_, working) = watch::channel(true);
        let listen = http::Settings { listen: "127.0.0.1:0".parse().expect("an address"), public_url: None };
        let source = Arc::new(move || Arc::clone(&catalog));
        let server = Server::bind(Arc::clone(&engine), source, &listen, working).await.expect("binds");
        let address = server.address().expect("an address");
        let stop = CancellationToken::new();
        tokio::spawn(server.run(stop.clone()));
        Self { shop, engine, notifiers, clock, address, _stop: stop.drop_guard(), reports: 0 }
    }

    async fn retrain(&self, weeks: &str) -> RunId {
        let catalog = Catalog::load(self.shop.root());
        let loaded = catalog.get("retrain").expect("the workflow");
        let inputs = [("weeks".to_owned(), weeks.to_owned())];
        match trigger(&self.engine, loaded, &inputs, "sam").await.expect("triggered") {
            Submitted::Made(run) => run,
            other => panic!("{other:?}"),
        }
    }

    /// The app's minute: 200 requests to each version that the release document names, `errors` of the canary's fail.
    async fn report(&mut self, errors: u32) {
        let release = self.shop.release().await;
        let Some(canary) = release.canary else { return };
        let champion = release.champion.expect("a champion").version;
        let mut lines = String::new();
        for (version, failing) in [(champion, 2), (canary.served.version, errors)] {
            for i in 0..200 {
                let row = json!({
                    "request_id": format!("{}-{version}-{i}", self.reports), "version": version, "ok": i >= failing,
                    "latency_ms": 12, "at": self.clock.now(),
                });
                lines += &format!("{row}\n");
            }
        }
        self.reports += 1;
        let url = format!("http://{}/v1/models/air-time/observations", self.address);
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let answer = client.post(url).body(lines).send().await.expect("refit answers");
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap_or_default());
    }

    /// Works on the run, a minute a turn, with an app whose canary fails `errors` of 200 requests.
    async fn finish(&mut self, run: RunId, errors: u32) -> Run {
        for _ in 0..24 * 60 {
            let seen = turn(&self.engine, run).await;
            let clock = self.clock.as_ref();
            outbox::drain_once(self.engine.store.as_ref(), &self.notifiers, clock).await.expect("sent");
            if seen.status == RunStatus::Finished {
                return seen;
            }
            self.report(errors).await;
            self.clock.advance(TimeDelta::minutes(1));
        }
        let attempts = self.engine.store.attempts(run).await.expect("readable");
        panic!("the run did not end within a day: {attempts:#?}");
    }

    /// Works on the run, half an hour a turn, with an app that reports nothing.
    async fn hold(&mut self, run: RunId) {
        for _ in 0..2 * 24 {
            let seen = turn(&self.engine, run).await;
            let clock = self.clock.as_ref();
            outbox::drain_once(self.engine.store.as_ref(), &self.notifiers, clock).await.expect("sent");
            if seen.status == RunStatus::Held {
                return;
            }
            self.clock.advance(TimeDelta::minutes(30));
        }
        panic!("the run was not held within a day");
    }
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

/// What changes from run to run.
fn filters() -> Vec<(&'static str, &'static str)> {
    vec![
        (r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}", "[id]"),
        (r"run show [0-9a-f]{8}\b", "run show [run]"),
    ]
}

async fn a_first_version_then_one_that_stays_and_one_that_is_taken_back(database: Database) {
    let mut refit = Refit::on(&database).await;

    let first = refit.retrain("9").await;
    let first = refit.finish(first, 0).await;
    assert_eq!(first.outcome, Some(Outcome::Promoted), "{:?}", first.reason);
    assert_eq!(refit.shop.champion().await.version.as_str(), "2026-11-20");

    let second = refit.retrain("10").await;
    let second = refit.finish(second, 2).await;
    assert_eq!(second.outcome, Some(Outcome::Promoted), "{:?}", second.reason);
    let champion = refit.shop.champion().await;
    assert_eq!(champion.version.as_str(), "2026-11-20.2");
    assert_eq!(champion.run, Some(second.id));

    let third = refit.retrain("11").await;
    let third = refit.finish(third, 40).await;
    assert_eq!(third.outcome, Some(Outcome::RolledBack), "{:?}", third.reason);
    let release = refit.shop.release().await;
    assert_eq!((refit.shop.champion().await, release.canary), (champion, None));

    let mails = refit.shop.mails();
    let slack = refit.shop.slack().await;
    let subjects: Vec<&str> = mails.iter().map(|(_, subject, _)| subject.as_str()).collect();
    assert_eq!(
        subjects,
        [
            "air-time 2026-11-20 was promoted",
            "air-time 2026-11-20.2 is on canary",
            "air-time 2026-11-20.2 was promoted",
            "air-time 2026-11-20.3 is on canary",
            "air-time 2026-11-20.3 was rolled back"
        ]
    );
    assert_eq!(slack.iter().map(|(text, _)| text.as_str()).collect::<Vec<_>>(), subjects, "each once");
    assert!(mails.iter().all(|(to, ..)| to == "team@example.com"));
    with_settings!({filters => filters()}, {
        assert_snapshot!(mails[0].2, @r"
            2026-11-20 serves all traffic since 2026-11-20 02:00 UTC. Nothing has to be done.

            It is the first version of this model: there is no earlier one to go back to.

            Why: first version

            Checked before it serves:
              mae   12.55
              r2   0.9249

              ✓ mae is 12.55; at most 15 allowed
              ✓ r2 is 0.9249; at least 0.9 allowed

            Next: the next run is due on Sunday, 2026-11-22 02:00 UTC

            Open the run: https://refit.example.com/v1/runs/[id]
            More: refit run show [run]
            --
            run [id], workflow retrain
            ");
        assert_snapshot!(mails[1].2, @r"
            2026-11-20.2 serves 50% of the traffic since 2026-11-20 02:00 UTC, 2026-11-20 the rest.

            Checked before it serves, 2026-11-20 -> 2026-11-20.2:
              mae   12.55 ->  10.38  -17.3 %, better
              r2   0.9249 -> 0.9351  +1.1 %, better

              ✓ mae is 10.38; at most 15 allowed
              ✓ r2 is 0.9351; at least 0.9 allowed

            Next: it is watched for at least 30m, at most 12h; should it harm, it is taken back at once

            Open the run: https://refit.example.com/v1/runs/[id]
            More: refit run show [run]
            --
            run [id], workflow retrain
            ");
        assert_snapshot!(mails[2].2, @r"
            2026-11-20.2 serves all traffic since 2026-11-20 02:30 UTC. Nothing has to be done.

            Why: canary errors 4 of 400 (1.0 %), stable 4 of 400 (1.0 %): below 5.0 %, which is acceptable

            Checked before it serves, 2026-11-20 -> 2026-11-20.2:
              mae   12.55 ->  10.38  -17.3 %, better
              r2   0.9249 -> 0.9351  +1.1 %, better

              ✓ mae is 10.38; at most 15 allowed
              ✓ r2 is 0.9351; at least 0.9 allowed

            Next: the next run is due on Sunday, 2026-11-22 02:00 UTC

            Open the run: https://refit.example.com/v1/runs/[id]
            More: refit run show [run]
            --
            run [id], workflow retrain
            ");
        assert_snapshot!(mails[4].2, @r"
            2026-11-20.2 serves all traffic since 2026-11-20 02:33 UTC. Nothing has to be done.

            Why: canary errors 40 of 200 (20.0 %), stable 2 of 200 (1.0 %): at least 3.15x the odds; evidence over 1,000,000:1, limit 50:1

            Checked before it serves, 2026-11-20.2 -> 2026-11-20.3:
              mae   10.38 ->   9.39  -9.5 %, better
              r2   0.9351 -> 0.9606  +2.7 %, better

              ✓ mae is 9.39; at most 15 allowed
              ✓ r2 is 0.9606; at least 0.9 allowed

            Next: the next run is due on Sunday, 2026-11-22 02:00 UTC

            Open the run: https://refit.example.com/v1/runs/[id]
            More: refit run show [run]
            --
            run [id], workflow retrain
            ");
    });
    assert!(slack[2].1.contains("12.55") && slack[2].1.contains("10.38"), "{}", slack[2].1);
}

async fn what_nobody_reports_on_is_left_to_a_human(database: Database) {
    let mut refit = Refit::on(&database).await;
    let first = refit.retrain("9").await;
    refit.finish(first, 0).await;
    let second = refit.retrain("10").await;
    refit.hold(second).await;
    let mails = refit.shop.mails();
    let subjects: Vec<&str> = mails.iter().skip(2).map(|(_, subject, _)| subject.as_str()).collect();
    assert_eq!(
        subjects,
        ["air-time: somebody has to look now", "air-time 2026-11-20.2 is held: your decision is needed"]
    );
    with_settings!({filters => filters()}, {
        assert_snapshot!(mails[2].2, @r"
            Check that the app routes by the release document and reports what it serves.

            2026-11-20.2 serves 50% of the traffic since 2026-11-20 02:00 UTC, 2026-11-20 the rest.

            Why: no evidence since the canary went out at 2026-11-20 02:00 UTC

            Open the run: https://refit.example.com/v1/runs/[id]
            More: refit run show [run]
            --
            run [id], workflow retrain
            ");
        assert_snapshot!(mails[3].2, @r"
            2026-11-20.2 serves 50% of the traffic since 2026-11-20 02:00 UTC, 2026-11-20 the rest.

            The evidence does not decide. Look at it: `refit run show [id]`. Then promote it: `refit promote 2026-11-20.2`, or take it back: `refit rollback`.

            Why: the time to decide is over; no evidence yet

            Checked before it serves, 2026-11-20 -> 2026-11-20.2:
              mae   12.55 ->  10.38  -17.3 %, better
              r2   0.9249 -> 0.9351  +1.1 %, better

              ✓ mae is 10.38; at most 15 allowed
              ✓ r2 is 0.9351; at least 0.9 allowed

            Next: if nobody decides until 2026-11-26 14:00 UTC, it is taken back

            Open the run: https://refit.example.com/v1/runs/[id]
            More: refit run show [run]
            --
            run [id], workflow retrain
            ");
    });
}

on_both! {
    a_first_version_then_one_that_stays_and_one_that_is_taken_back
    what_nobody_reports_on_is_left_to_a_human
}
