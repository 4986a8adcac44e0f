//! The controller over a real database: what a canary's evidence does to the
//! release, the host and the run.

mod again;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use chrono::TimeDelta;
use refit::adapter::{AdapterError, Attention, Observed, Target, TargetTraits};
use refit::clock::{Clock, ManualClock};
use refit::domain::Timestamp;
use refit::domain::because::Because;
use refit::domain::canary::{CanaryRecord, CanaryState};
use refit::domain::evidence::ObservationBatch;
use refit::domain::id::{CanaryId, Generation, InstanceId, ModelName, RunId, TargetName, WorkerId};
use refit::domain::release::{Assignment, CanaryServed, Release, ReleaseActor, ReleaseDocument, Served};
use refit::domain::run::SignalKind;
use refit::domain::verdict::Verdict;
use refit::domain::version::{VersionRecord, VersionState};
use refit::domain::workflow::step::{Compare, CompareRule, Margin, OnlineMetric, Role, Stage};
use refit::domain::workflow::units::BasisPoints;
use refit::engine::{Engine, Settings};
use refit::evidence::{Limits, read_observations, read_truth};
use refit::steps::context::Services;
use refit::store::{ClaimResult, Opening, ReleaseWrite, ReleaseWritten, Stay, Store};
use serde_json::Value;
use sqlx::Connection as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

/// A host in memory; it can be away, and be changed by hand.
#[derive(Default)]
struct Host {
    document: Mutex<Option<ReleaseDocument>>,
    away: Mutex<bool>,
    attention: Mutex<Option<Attention>>,
}

impl Host {
    fn shows(&self) -> Option<ReleaseDocument> {
        self.document.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, change: impl FnOnce(&mut ReleaseDocument)) {
        let mut document = self.document.lock().unwrap_or_else(PoisonError::into_inner);
        change(document.as_mut().expect("something is shown"));
    }

    fn set_away(&self, away: bool) {
        *self.away.lock().unwrap_or_else(PoisonError::into_inner) = away;
    }

    fn reach(&self) -> Result<(), AdapterError> {
        if *self.away.lock().unwrap_or_else(PoisonError::into_inner) {
            let (service, cause) = ("host".to_owned(), "away".to_owned());
            return Err(AdapterError::Unavailable { service, cause, retry_after: None });
        }
        Ok(())
    }
}

#[async_trait]
impl Target for Host {
    fn traits(&self) -> TargetTraits {
        TargetTraits { instant: true, expires: true, takes: Duration::ZERO, one_model: false }
    }

    async fn read(&self, _: &ModelName) -> Result<Option<Observed>, AdapterError> {
        self.reach()?;
        let attention = self.attention.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(self.shows().map(|document| {
            let fingerprint = format!("{document:?}");
            Observed { fingerprint, document, attention }
        }))
    }

    async fn apply(&self, release: &Release, instance: InstanceId) -> Result<(), AdapterError> {
        self.reach()?;
        *self.document.lock().unwrap_or_else(PoisonError::into_inner) = Some(release.document(instance));
        Ok(())
    }

    async fn check(&self) -> Result<String, AdapterError> {
        Ok("fine".to_owned())
    }
}

struct World {
    dir: tempfile::TempDir,
    clock: Arc<ManualClock>,
    store: Arc<dyn Store>,
    host: Arc<Host>,
    engine: Arc<Engine>,
    run: RunId,
}

fn start() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().expect("a time")
}

fn model() -> ModelName {
    "race-times".parse().expect("a name")
}

fn target() -> TargetName {
    "production".parse().expect("a name")
}

fn served(version: &str) -> Served {
    Served {
        version: version.parse().expect("a name"),
        base_url: format!("/models/{version}"),
        manifest_sha256: "00".to_owned(),
    }
}

fn rules() -> Compare {
    let rule = CompareRule {
        at: Default::default(),
        metric: OnlineMetric::ErrorRate,
        margin: Margin::Ratio(1.5),
        acceptable_below: None,
        never_above: None,
        label_horizon: Duration::ZERO,
        weight: None,
        role: Role::Gating,
    };
    Compare { rules: vec![rule], ..Compare::without_rules() }
}

/// A block of three requests to version 1, with the errors of both versions.
async fn scored(store: &Arc<dyn Store>, at: Timestamp, block: &str, champion: f64, canary: Option<f64>) {
    let shadow = canary.map(|error| format!(",\"shadow\":{{\"2\":{error}}}")).unwrap_or_default();
    let (mut lines, mut truths) = (String::new(), String::new());
    for i in 0..3 {
        let id = format!("\"request_id\":\"{block}-{i}\"");
        lines += &format!("{{{id},\"version\":\"1\",\"ok\":true,\"prediction\":{champion}{shadow}}}\n");
        truths += &format!("{{{id},\"truth\":0,\"block\":\"{block}\"}}\n");
    }
    let limits = Limits::default();
    let batch = read_observations(&model(), None, lines.as_bytes(), at, &limits).expect("read").batch;
    store.observe(&batch).await.expect("kept");
    let truth = read_truth(&model(), None, truths.as_bytes(), at, &limits).expect("read").batch;
    store.add_truth(&truth).await.expect("kept");
}

/// Version 1 serves, version 2 has its first stage since now.
async fn world(stages: &[(u16, u64)]) -> World {
    world_with(stages, rules(), false).await
}

/// `history`: version 1 was off by 21 to 30 on the 20 days before.
async fn world_with(stages: &[(u16, u64)], rules: Compare, history: bool) -> World {
    let dir = tempfile::tempdir().expect("a directory");
    let clock = Arc::new(ManualClock::starting_at(start()));
    let path = dir.path().join("refit.db");
    let url = format!("sqlite:{}", path.display());
    let store = refit::store::open(&url, Arc::clone(&clock) as Arc<dyn Clock>).await.expect("opened");
    let host = Arc::new(Host::default());
    let services = Services {
        instance: store.instance(),
        stores: Arc::default(),
        targets: Arc::new(BTreeMap::from([(target(), Arc::clone(&host) as Arc<dyn Target>)])),
        secrets: Default::default(),
        http: client(),
        guard: crate::support::steps::guard(),
    };
    let engine = Engine::new(
        Arc::clone(&store),
        Arc::clone(&clock) as Arc<dyn Clock>,
        services,
        dir.path().to_owned(),
        dir.path().join(".refit"),
        Settings::default(),
    );
    let run = crate::store::make::run(&store, start()).await;
    let worker = WorkerId::generate();
    store.register_worker(worker, &[], Stay::Open, start()).await.expect("registered");
    let claimed =
        store.claim(run, worker, Duration::from_secs(10), start(), &|_| Some(Opening::default())).await;
    let Ok(ClaimResult::Claimed(claim)) = claimed else { panic!("not claimed") };
    for version in ["1", "2"] {
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
        store.adopt_version(&record, &crate::store::make::by_ann(start())).await.expect("adopted");
    }
    let stages: Vec<_> = stages
        .iter()
        .map(|(share, minutes)| Stage {
            share: BasisPoints(*share),
            min_time: Duration::from_secs(60 * minutes),
        })
        .collect();
    let canary = CanaryServed {
        served: served("2"),
        basis_points: stages[0].share,
        salt: "salt".to_owned(),
        valid_until: start() + TimeDelta::hours(12),
    };
    let release = write(
        &store,
        0,
        Assignment { canary: Some(canary), champion: Some(served("1")), previous: None },
        Some(run),
    )
    .await;
    engine.show(&release).await.expect("shown");
    let record = CanaryRecord {
        id: CanaryId::generate(),
        run,
        model: model(),
        target: target(),
        version: "2".parse().expect("a name"),
        champion: "1".parse().expect("a name"),
        generation: release.generation,
        stages,
        stage: 0,
        stage_since: start(),
        rules,
        started_at: start(),
        deadline: None,
        state: CanaryState::Watching,
        bake_until: None,
        verdict: Verdict::Inconclusive,
        reason: String::new(),
        analysis: Value::Null,
        next_look_at: start() + TimeDelta::seconds(60),
        ended_at: None,
        extensions: vec![],
    };
    store.open_canary(claim.run.epoch, &record).await.expect("opened");
    store.release_lease(run, claim.run.epoch).await.expect("given back");
    for day in (1..=20).filter(|_| history) {
        let error = 21.0 + f64::from(day % 10);
        scored(&store, start() - TimeDelta::days(21 - i64::from(day)), &format!("before-{day}"), error, None)
            .await;
    }
    World { dir, clock, store, host, engine, run }
}

fn client() -> reqwest::Client {
    // The TLS provider is set once for the whole process.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}

async fn write(
    store: &Arc<dyn Store>,
    expected: i64,
    assignment: Assignment,
    owner: Option<RunId>,
) -> Release {
    let write = ReleaseWrite {
        model: model(),
        target: target(),
        expected: Generation(expected),
        assignment,
        owner,
        actor: ReleaseActor::Human { name: "ann".to_owned() },
        because: Because::alone("a test"),
        at: start(),
        by_run: None,
        ends_canary: None,
        marks_bad: None,
        notices: vec![],
        heeds_freeze: false,
    };
    match store.write_release(write).await.expect("written") {
        ReleaseWritten::Made(release) => release,
        other => panic!("{other:?}"),
    }
}

impl World {
    /// Reports a minute of both versions, moves on a minute and looks.
    async fn minute(&self, canary: (u32, u32), stable: (u32, u32)) {
        let now = self.clock.now();
        let mut lines = String::new();
        for (version, (n, e)) in [("2", canary), ("1", stable)] {
            for i in 0..n {
                let ok = i >= e;
                lines += &format!(
                    "{{\"request_id\":\"{version}-{i}-{}\",\"version\":\"{version}\",\"ok\":{ok}}}\n",
                    now.timestamp()
                );
            }
        }
        let batch: ObservationBatch =
            read_observations(&model(), None, lines.as_bytes(), now, &Limits::default()).expect("read").batch;
        self.store.observe(&batch).await.expect("kept");
        assert!(self.store.observe(&batch).await.expect("known").duplicate);
        self.look_in(60).await;
    }

    async fn scored(&self, block: &str, champion: f64, canary: Option<f64>) {
        scored(&self.store, self.clock.now(), block, champion, canary).await;
    }

    async fn look_in(&self, seconds: i64) {
        self.clock.advance(TimeDelta::seconds(seconds));
        self.engine.look_at_canaries().await.expect("looked");
    }

    /// What the run was told.
    async fn signals(&self) -> Vec<SignalKind> {
        let worker = crate::store::make::worker(&self.store, self.clock.now()).await;
        let claim = crate::store::make::claim(&self.store, self.run, worker, self.clock.now()).await;
        claim.signals.into_iter().map(|signal| signal.kind).collect()
    }

    async fn canary(&self) -> CanaryRecord {
        self.store.canary_of(self.run).await.expect("read").expect("there")
    }

    async fn release(&self) -> Release {
        self.store.release(&model(), &target()).await.expect("read").expect("there")
    }
}

#[tokio::test]
async fn a_failing_canary_is_taken_off_its_host_and_its_run_is_told() {
    let world = world(&[(1000, 60)]).await;
    for _ in 0..4 {
        world.minute((10, 10), (90, 1)).await;
    }
    let (canary, release) = (world.canary().await, world.release().await);
    assert_eq!((canary.state, canary.verdict), (CanaryState::RolledBack, Verdict::Fail));
    assert!(canary.reason.starts_with("canary errors 10 of 10"), "{}", canary.reason);
    assert_eq!((release.desired.canary.is_none(), release.owner), (true, None));
    assert!(release.is_applied());
    let shown = world.host.shows().expect("shown");
    assert_eq!((shown.champion, shown.canary), (Some(served("1")), None));
    let version =
        world.store.version(&model(), &"2".parse().expect("a name")).await.expect("read").expect("there");
    assert_eq!(version.state, VersionState::Bad);
    assert!(world.signals().await.contains(&SignalKind::RolledBack { why: canary.reason, said: false }));
}

#[tokio::test]
async fn a_rollback_while_the_host_is_away_is_shown_by_the_reconciler() {
    let world = world(&[(1000, 60)]).await;
    world.host.set_away(true);
    for _ in 0..4 {
        world.minute((10, 10), (90, 1)).await;
    }
    assert_eq!(world.canary().await.state, CanaryState::RolledBack);
    assert!(!world.release().await.is_applied());
    assert_eq!(world.engine.reconcile_releases().await.expect("compared"), 0);
    world.host.set_away(false);
    assert_eq!(world.engine.reconcile_releases().await.expect("compared"), 1);
    assert!(world.release().await.is_applied());
    assert!(world.host.shows().expect("shown").canary.is_none());
    assert_eq!(world.engine.reconcile_releases().await.expect("compared"), 0);
}

#[tokio::test]
async fn the_next_stage_keeps_the_salt_and_is_what_the_release_says() {
    let world = world(&[(1000, 5), (5000, 60)]).await;
    for _ in 0..8 {
        world.minute((10, 0), (90, 1)).await;
    }
    let (canary, release) = (world.canary().await, world.release().await);
    let served = release.desired.canary.expect("still out");
    assert_eq!((canary.stage, served.basis_points, served.salt.as_str()), (1, BasisPoints(5000), "salt"));
    assert_eq!((canary.generation, canary.stage_since), (release.generation, release.updated_at));
    assert_eq!(world.host.shows().expect("shown").canary.expect("out").basis_points, BasisPoints(5000));
}

#[tokio::test]
async fn a_canary_is_renewed_at_half_its_life_and_the_reconciler_sees_nothing_wrong() {
    let world = world(&[(1000, 60)]).await;
    world.minute((10, 0), (90, 0)).await;
    world.look_in(7 * 3600).await;
    let until = start() + TimeDelta::seconds(60) + TimeDelta::hours(19);
    assert_eq!(world.release().await.desired.canary.expect("out").valid_until, until);
    assert_eq!(world.host.shows().expect("shown").canary.expect("out").valid_until, until);
    assert_eq!(world.engine.reconcile_releases().await.expect("compared"), 0);
    assert_eq!(world.canary().await.state, CanaryState::Watching);
}

#[tokio::test]
async fn a_silent_canary_gets_no_traffic_and_stays_for_a_human() {
    let world = world(&[(1000, 60)]).await;
    for _ in 0..20 {
        world.minute((0, 0), (90, 0)).await;
    }
    let canary = world.canary().await;
    assert_eq!((canary.state, canary.verdict), (CanaryState::Watching, Verdict::Error));
    assert_eq!(world.release().await.desired.canary.expect("kept").basis_points, BasisPoints(0));
    let alerts = world.store.take_outbox(10, Duration::from_secs(1), world.clock.now()).await.expect("read");
    assert_eq!(alerts.len(), 1, "{alerts:?}");
}

#[tokio::test]
async fn a_host_changed_by_hand_loses_our_canary_and_nothing_else() {
    let world = world(&[(1000, 60)]).await;
    world.host.change(|document| document.champion = Some(served("by-hand")));
    assert_eq!(world.engine.reconcile_releases().await.expect("compared"), 1);
    world.engine.reconcile_releases().await.expect("compared");
    world.engine.reconcile_releases().await.expect("compared");
    let shown = world.host.shows().expect("shown");
    assert_eq!((shown.champion, shown.canary), (Some(served("by-hand")), None));
    assert_eq!(world.canary().await.state, CanaryState::RolledBack);
    let alerts = world.store.take_outbox(10, Duration::from_secs(1), world.clock.now()).await.expect("read");
    let [alert] = &alerts[..] else { panic!("one alert: {alerts:?}") };
    assert!(alert.notice.facts["todo"].to_string().contains("`refit promote VERSION`"), "{alert:?}");
}

#[tokio::test]
async fn what_a_host_wants_people_to_see_is_told_once_and_changes_nothing() {
    let world = world(&[(1000, 60)]).await;
    let (what, todo) = ("Deployment 7 does not serve.".to_owned(), "Promote it.".to_owned());
    *world.host.attention.lock().unwrap_or_else(PoisonError::into_inner) = Some(Attention { what, todo });
    for _ in 0..3 {
        assert_eq!(world.engine.reconcile_releases().await.expect("compared"), 0);
    }
    assert_eq!(world.canary().await.state, CanaryState::Watching);
    let alerts = world.store.take_outbox(10, Duration::from_secs(1), world.clock.now()).await.expect("read");
    assert_eq!(alerts.len(), 1, "{alerts:?}");
    assert_eq!(alerts[0].notice.facts["reason"], "Deployment 7 does not serve.");
    assert_eq!(alerts[0].notice.facts["todo"], "Promote it.");
}

#[tokio::test]
async fn a_release_is_shown_though_people_cannot_be_told_yet() {
    let world = world(&[(1000, 60)]).await;
    let database = SqliteConnectOptions::new().filename(world.dir.path().join("refit.db"));
    let mut database = SqliteConnection::connect_with(&database).await.expect("opened");
    let refused = "CREATE TRIGGER full BEFORE INSERT ON outbox BEGIN SELECT RAISE(ABORT, 'full'); END";
    sqlx::query(refused).execute(&mut database).await.expect("refuses");
    let (what, todo) = ("Deployment 7 does not serve.".to_owned(), "Promote it.".to_owned());
    *world.host.attention.lock().unwrap_or_else(PoisonError::into_inner) = Some(Attention { what, todo });
    let desired = Assignment { canary: None, ..world.release().await.desired };
    write(&world.store, 1, desired, None).await;
    assert_eq!(world.engine.reconcile_releases().await.expect("compared"), 1);
    assert_eq!(world.host.shows().expect("shown").canary, None);
    sqlx::query("DROP TRIGGER full").execute(&mut database).await.expect("takes them again");
    world.engine.reconcile_releases().await.expect("compared");
    let alerts = world.store.take_outbox(10, Duration::from_secs(1), world.clock.now()).await.expect("read");
    assert_eq!(alerts.len(), 1, "{alerts:?}");
}

#[tokio::test]
async fn a_foreign_document_is_left_alone() {
    let world = world(&[(1000, 60)]).await;
    world.host.change(|document| document.instance = InstanceId::generate());
    let before = world.host.shows();
    world.engine.reconcile_releases().await.expect("compared");
    assert_eq!(world.host.shows(), before);
    assert_eq!(world.canary().await.state, CanaryState::RolledBack);
}

#[tokio::test]
async fn a_canary_that_somebody_took_off_the_release_is_closed() {
    let world = world(&[(1000, 60)]).await;
    let desired = Assignment { canary: None, ..world.release().await.desired };
    write(&world.store, 1, desired, None).await;
    world.look_in(60).await;
    assert_eq!(world.canary().await.state, CanaryState::RolledBack);
}

#[tokio::test]
async fn errors_of_the_champion_from_before_the_canary_set_the_scale() {
    let mut rules = rules();
    rules.rules[0].metric = OnlineMetric::AbsError;
    rules.rules[0].margin = Margin::Ratio(1.1);
    let world = world_with(&[(5000, 60)], rules, true).await;
    for day in 0..60 {
        world.clock.advance(TimeDelta::days(1));
        world.scored(&format!("during-{day}"), 20.0, Some(60.0)).await;
        world.engine.look_at_canaries().await.expect("looked");
        if world.canary().await.state == CanaryState::RolledBack {
            break;
        }
    }
    let canary = world.canary().await;
    assert_eq!(canary.state, CanaryState::RolledBack, "{}", canary.reason);
    assert_eq!(canary.view().rules[0].clip, Some(30.0));
    assert!(canary.reason.starts_with("canary mean error 60.0, stable 20.0"), "{}", canary.reason);
}

#[tokio::test]
async fn of_two_processes_one_takes_a_look() {
    let world = world(&[(1000, 60)]).await;
    world.clock.advance(TimeDelta::seconds(60));
    let (a, b) = tokio::join!(world.engine.look_at_canaries(), world.engine.look_at_canaries());
    assert_eq!(a.expect("looked") + b.expect("looked"), 1);
}
