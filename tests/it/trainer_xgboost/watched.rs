//! Three retrains on a virtual clock: the first version, one whose canary is
//! promoted, one whose canary is rolled back.

use chrono::TimeDelta;
use insta::{assert_snapshot, with_settings};
use refit::clock::Clock as _;
use refit::domain::id::RunId;
use refit::domain::run::{Outcome, Run, RunStatus};
use serde_json::json;

use super::shop::Shop;
use crate::store::database::Database;
use crate::store::on_both;
use crate::support::instance::Instance;

/// One process of refit in the shop, and the app that reports to it.
struct Refit {
    shop: Shop,
    instance: Instance,
    reports: u32,
}

impl Refit {
    async fn on(database: &Database) -> Self {
        let shop = Shop::new().await;
        let instance = Instance::on(shop.root(), &database.url, database.clock.clone()).await;
        Self { shop, instance, reports: 0 }
    }

    async fn retrain(&self, weeks: &str) -> RunId {
        self.instance.retrain(&[("weeks", weeks)]).await
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
                    "latency_ms": 12, "at": self.instance.clock.now(),
                });
                lines += &format!("{row}\n");
            }
        }
        self.reports += 1;
        let url = format!("http://{}/v1/models/air-time/observations", self.instance.address);
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let answer = client.post(url).body(lines).send().await.expect("refit answers");
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap_or_default());
    }

    /// Works on the run, a minute a turn, with an app whose canary fails `errors` of 200 requests.
    async fn finish(&mut self, run: RunId, errors: u32) -> Run {
        for _ in 0..24 * 60 {
            let seen = self.instance.turn(run).await;
            if seen.status == RunStatus::Finished {
                return seen;
            }
            self.report(errors).await;
            self.instance.clock.advance(TimeDelta::minutes(1));
        }
        let attempts = self.instance.engine.store.attempts(run).await.expect("readable");
        panic!("the run did not end within a day: {attempts:#?}");
    }

    /// Works on the run, half an hour a turn, with an app that reports nothing.
    async fn hold(&mut self, run: RunId) {
        for _ in 0..2 * 24 {
            if self.instance.turn(run).await.status == RunStatus::Held {
                return;
            }
            self.instance.clock.advance(TimeDelta::minutes(30));
        }
        panic!("the run was not held within a day");
    }
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

            Read the receipt: https://refit.example.com/v1/runs/[id]/receipt
            More: refit run show [run]
            --
            run [id], workflow retrain
            ");
        assert_snapshot!(mails[1].2, @r"
            2026-11-20.2 serves 50 % of the traffic since 2026-11-20 02:00 UTC, 2026-11-20 the rest. Nothing has to be done.

            Checked before it serves, 2026-11-20 -> 2026-11-20.2:
              mae   12.55 ->  10.38  -17.3 %, better
              r2   0.9249 -> 0.9351  +1.1 %, better

              ✓ mae is 10.38; at most 15 allowed
              ✓ r2 is 0.9351; at least 0.9 allowed

            Next: it is watched for at least 30 minutes, at most 12 hours; should it harm, it is taken back at once

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

            Read the receipt: https://refit.example.com/v1/runs/[id]/receipt
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

            Read the receipt: https://refit.example.com/v1/runs/[id]/receipt
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

            2026-11-20.2 serves 50 % of the traffic since 2026-11-20 02:00 UTC, 2026-11-20 the rest.

            Why: no evidence since the canary went out at 2026-11-20 02:00 UTC

            More: refit run show [run]
            --
            run [id], workflow retrain
            ");
        assert_snapshot!(mails[3].2, @r"
            2026-11-20.2 serves 50 % of the traffic since 2026-11-20 02:00 UTC, 2026-11-20 the rest.

            The evidence does not decide. Look at it: `refit run show [run]`. Then promote it: `refit promote 2026-11-20.2`, or take it back: `refit rollback`.

            Why: the time to decide is over; no evidence yet

            Checked before it serves, 2026-11-20 -> 2026-11-20.2:
              mae   12.55 ->  10.38  -17.3 %, better
              r2   0.9249 -> 0.9351  +1.1 %, better

              ✓ mae is 10.38; at most 15 allowed
              ✓ r2 is 0.9351; at least 0.9 allowed

            Next: if nobody decides until 2026-11-26 14:00 UTC, it is taken back

            Read the receipt: https://refit.example.com/v1/runs/[id]/receipt
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
