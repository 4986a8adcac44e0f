//! A canary that is looked at, of a workflow that says where its evidence is.

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use refit::domain::Timestamp;
use refit::domain::because::Because;
use refit::domain::canary::{CanaryRecord, CanaryState};
use refit::domain::evidence::EvidenceMinute;
use refit::domain::id::{CanaryId, Generation, ModelName, RunId};
use refit::domain::pull::PullState;
use refit::domain::release::{Assignment, CanaryServed, ReleaseActor, Served};
use refit::domain::verdict::Verdict;
use refit::domain::version::{VersionRecord, VersionState};
use refit::domain::workflow::step::{Compare, CompareRule, OnlineMetric, Stage};
use refit::domain::workflow::units::BasisPoints;
use refit::engine::Engine;
use refit::store::{ClaimResult, Opening, ReleaseWrite, ReleaseWritten, Store};
use serde_json::Value;

use crate::store::make;
use crate::support::crash::Crash;
use crate::support::world::{World, start};

pub fn model() -> ModelName {
    "race-times".parse().expect("a name")
}

/// Version 2 is on canary beside version 1, since the beginning of the world.
pub struct Watched {
    pub world: World,
    pub engine: Arc<Engine>,
    pub run: RunId,
}

impl Watched {
    /// `evidence`: what the workflow says below `evidence:`.
    pub async fn start(world: World, evidence: &str) -> Self {
        let evidence = format!("evidence:\n  {}", evidence.trim().replace('\n', "\n  "));
        Self::by(world, &evidence, CompareRule::of(OnlineMetric::ErrorRate)).await
    }

    /// It is held to one rule, and the app pushes its evidence.
    pub async fn pushed(world: World, rule: CompareRule) -> Self {
        Self::by(world, "", rule).await
    }

    async fn by(world: World, evidence: &str, rule: CompareRule) -> Self {
        let engine = world.process(&Crash::never()).await;
        let store = &engine.store;
        let event = make::event(start());
        let mut new = make::new_run(&event, start());
        new.run.definition.source =
            format!("name: retrain\nmodel: race-times\n{evidence}\nsteps: [{{run: x}}]\n");
        let run = new.run.id;
        store.submit(&event, vec![new]).await.expect("submitted");
        let claimed =
            store.claim(run, engine.worker, Duration::from_secs(10), start(), &|_| Some(Opening::default()));
        let Ok(ClaimResult::Claimed(claim)) = claimed.await else { panic!("not claimed") };
        for version in ["1", "2"] {
            adopt(store, version).await;
        }
        let record = canary(store, run, rule).await;
        store.open_canary(claim.run.epoch, &record).await.expect("opened");
        store.release_lease(run, claim.run.epoch).await.expect("given back");
        Self { world, engine, run }
    }

    /// Lets time pass and looks.
    pub async fn look_in(&self, minutes: i64) {
        self.world.pass(TimeDelta::minutes(minutes));
        self.engine.look_at_canaries().await.expect("looked");
    }

    /// Another process takes over.
    pub async fn restart(&mut self, crash: &Crash) {
        self.engine = self.world.process(crash).await;
    }

    pub async fn minutes(&self) -> Vec<EvidenceMinute> {
        let versions = ["1", "2"].map(|version| version.parse().expect("a name"));
        self.engine.store.evidence(&model(), &versions, 0, 10_000).await.expect("read")
    }

    /// Requests and errors of a version that count.
    pub async fn counted(&self, version: &str) -> (u64, u64) {
        let minutes = self.minutes().await;
        let own = minutes.iter().filter(|minute| minute.version.as_str() == version);
        own.fold((0, 0), |sum, minute| (sum.0 + minute.counts.n, sum.1 + minute.counts.errors))
    }

    /// Requests of a version in the minute of `at`.
    pub async fn counted_at(&self, version: &str, at: Timestamp) -> u64 {
        let minutes = self.minutes().await;
        let found = minutes.iter().find(|it| it.version.as_str() == version && it.minute == at);
        found.map_or(0, |minute| minute.counts.n)
    }

    pub async fn state(&self) -> PullState {
        let pulls = self.engine.store.pulls(Some(&model())).await.expect("read");
        pulls.into_iter().next().map(|pulled| pulled.state).unwrap_or_default()
    }

    pub async fn canary(&self) -> CanaryRecord {
        self.engine.store.canary_of(self.run).await.expect("read").expect("there")
    }

    /// What people were told.
    pub async fn told(&self) -> Vec<String> {
        let queued = self.engine.store.outbox_of(self.run).await.expect("read");
        queued.into_iter().map(|entry| entry.notice.facts["reason"].to_string()).collect()
    }
}

async fn adopt(store: &Arc<dyn Store>, version: &str) {
    let record = VersionRecord {
        model: model(),
        name: version.parse().expect("a name"),
        store: "models".parse().expect("a name"),
        state: VersionState::Sealed,
        run: None,
        place: None,
        base_url: format!("/models/{version}"),
        manifest_sha256: "00".to_owned(),
        manifest: None,
        created_at: start(),
    };
    store.adopt_version(&record, &make::by_ann(start())).await.expect("adopted");
}

async fn canary(store: &Arc<dyn Store>, run: RunId, rule: CompareRule) -> CanaryRecord {
    let served = |version: &str| Served {
        version: version.parse().expect("a name"),
        base_url: format!("/models/{version}"),
        manifest_sha256: "00".to_owned(),
    };
    let canary = CanaryServed {
        served: served("2"),
        basis_points: BasisPoints(1000),
        salt: "salt".to_owned(),
        valid_until: start() + TimeDelta::days(30),
    };
    let write = ReleaseWrite {
        model: model(),
        target: "production".parse().expect("a name"),
        expected: Generation(0),
        assignment: Assignment { canary: Some(canary), champion: Some(served("1")), previous: None },
        owner: Some(run),
        actor: ReleaseActor::Human { name: "ann".to_owned() },
        because: Because::alone("a test"),
        at: start(),
        by_run: None,
        ends_canary: None,
        marks_bad: None,
        notices: vec![],
        heeds_freeze: false,
    };
    let ReleaseWritten::Made(release) = store.write_release(write).await.expect("written") else {
        panic!("not written")
    };
    CanaryRecord {
        id: CanaryId::generate(),
        run,
        model: model(),
        target: release.target,
        version: "2".parse().expect("a name"),
        champion: "1".parse().expect("a name"),
        generation: release.generation,
        stages: vec![Stage { share: BasisPoints(1000), min_time: Duration::from_secs(86_400) }],
        stage: 0,
        stage_since: start(),
        rules: Compare { rules: vec![rule], ..Compare::without_rules() },
        started_at: start(),
        deadline: Some(start() + TimeDelta::days(30)),
        state: CanaryState::Watching,
        bake_until: None,
        verdict: Verdict::Inconclusive,
        reason: String::new(),
        analysis: Value::Null,
        next_look_at: start() + TimeDelta::seconds(60),
        ended_at: None,
        extensions: vec![],
    }
}
