//! Releases, versions and canaries.

use std::time::Duration;

use refit::domain::Timestamp;
use refit::domain::because::Because;
use refit::domain::canary::{CanaryRecord, CanaryState, MoreTime, NotExtended};
use refit::domain::id::{CanaryId, Epoch, Generation, ModelName, RunId, TargetName, VersionName};
use refit::domain::release::{Assignment, ReleaseActor, Served};
use refit::domain::run::{CancelRequest, Intent, IntentState, SignalKind, Undo};
use refit::domain::verdict::Verdict;
use refit::domain::version::{Manifest, VersionState};
use refit::domain::workflow::step::{Compare, HoldTraffic, OnInconclusive, Stage, WhenUnderpowered};
use refit::domain::workflow::units::BasisPoints;
use refit::store::{
    CanaryChange, CanaryEnd, Claim, Extended, ReleaseWrite, ReleaseWriteByRun, ReleaseWritten, Reservation,
    Store, StoreError,
};
use serde_json::json;

use super::database::Database;
use super::make::{self, claim, step, worker};
use super::on_both;

on_both! {
    a_release_is_changed_by_compare_and_set
    a_run_s_change_is_made_once_however_often_it_is_tried
    a_fenced_run_changes_no_release
    of_a_cancel_and_a_promotion_one_comes_first
    a_rollback_ends_the_canary_and_marks_the_version
    a_change_is_told_with_it_or_not_at_all
    two_runs_of_a_day_get_two_versions
    a_sealed_version_is_listed
    a_look_is_taken_once
    a_late_process_changes_no_canary
    a_look_and_an_extension_at_the_same_time_are_both_kept
}

pub fn model() -> ModelName {
    "race-times".parse().expect("a name")
}

pub fn target() -> TargetName {
    "production".parse().expect("a name")
}

fn version(name: &str) -> VersionName {
    name.parse().expect("a name")
}

fn assignment(champion: &str) -> Assignment {
    let served = Served {
        version: version(champion),
        base_url: format!("/m/{champion}"),
        manifest_sha256: "00".to_owned(),
    };
    Assignment { champion: Some(served), ..Assignment::default() }
}

pub fn write(expected: i64, champion: &str, at: Timestamp) -> ReleaseWrite {
    ReleaseWrite {
        model: model(),
        target: target(),
        expected: Generation(expected),
        assignment: assignment(champion),
        owner: None,
        actor: ReleaseActor::Human { name: "ann".to_owned() },
        because: Because::alone("because"),
        at,
        by_run: None,
        ends_canary: None,
        marks_bad: None,
        notices: vec![],
        heeds_freeze: false,
    }
}

pub fn promotion(claim: &Claim, expected: i64, champion: &str, at: Timestamp) -> ReleaseWrite {
    let run = claim.run.id;
    let intent = Intent {
        step: step("promote"),
        key: format!("{run}/promote/release"),
        detail: json!({"version": champion}),
        undo: Some(Undo::WithdrawCanary {
            model: model(),
            target: target(),
            version: version(champion),
            generation: Generation(expected + 1),
        }),
        result: None,
        state: IntentState::Armed,
    };
    ReleaseWrite {
        actor: ReleaseActor::Run { run },
        by_run: Some(ReleaseWriteByRun { run, epoch: claim.run.epoch, intent, promotes: true }),
        ..write(expected, champion, at)
    }
}

async fn a_release_is_changed_by_compare_and_set(db: Database) {
    let (one, two) = (db.open().await, db.open().await);
    assert!(one.release(&model(), &target()).await.expect("read").is_none());
    let ReleaseWritten::Made(first) = one.write_release(write(0, "v1", db.now())).await.expect("asked")
    else {
        panic!("made")
    };
    assert_eq!((first.generation, first.applied), (Generation(1), None));
    let ReleaseWritten::Moved(Some(moved)) =
        two.write_release(write(0, "v2", db.now())).await.expect("asked")
    else {
        panic!("there is a row")
    };
    assert_eq!(moved, first);
    let (a, b) = tokio::join!(
        one.write_release(write(1, "v2", db.now())),
        two.write_release(write(1, "v3", db.now()))
    );
    let made = [a, b].into_iter().filter(|w| matches!(w, Ok(ReleaseWritten::Made(_)))).count();
    assert_eq!(made, 1);
    one.release_applied(&model(), &target(), Generation(2)).await.expect("written");
    one.release_applied(&model(), &target(), Generation(1)).await.expect("late, ignored");
    one.release_applied(&model(), &target(), Generation(9)).await.expect("not ours, ignored");
    let now = two.release(&model(), &target()).await.expect("read").expect("there");
    assert!(now.is_applied(), "{now:?}");
    let history = one.release_history(&model(), &target(), 10).await.expect("read");
    assert_eq!(history.iter().map(|audit| audit.generation.0).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(history[1].assignment, assignment("v1"));
    assert_eq!(one.releases(None).await.expect("listed").len(), 1);
}

async fn a_run_s_change_is_made_once_however_often_it_is_tried(db: Database) {
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let run = make::run(&store, db.now()).await;
    let held = claim(&store, run, worker, db.now()).await;
    for _ in 0..2 {
        let written = store.write_release(promotion(&held, 0, "v1", db.now())).await.expect("asked");
        let ReleaseWritten::Made(release) = written else { panic!("made") };
        assert_eq!(release.generation, Generation(1));
    }
    assert_eq!(store.intents(run).await.expect("read").len(), 1);
    assert!(store.run(run).await.expect("read").expect("there").committed);
    assert_eq!(store.release_history(&model(), &target(), 10).await.expect("read").len(), 1);
    // One that was refused leaves no intent.
    let other = make::run(&store, db.now()).await;
    let held = claim(&store, other, worker, db.now()).await;
    let late = store.write_release(promotion(&held, 0, "v2", db.now())).await.expect("asked");
    assert!(matches!(late, ReleaseWritten::Moved(Some(_))));
    assert!(store.intents(other).await.expect("read").is_empty());
    assert!(!store.run(other).await.expect("read").expect("there").committed);
}

async fn a_fenced_run_changes_no_release(db: Database) {
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let run = make::run(&store, db.now()).await;
    let zombie = claim(&store, run, worker, db.now()).await;
    store.release_lease(run, zombie.run.epoch).await.expect("given back");
    claim(&store, run, worker, db.now()).await;
    let late = store.write_release(promotion(&zombie, 0, "v1", db.now())).await;
    assert!(matches!(late, Err(StoreError::Fenced)));
    assert!(store.release(&model(), &target()).await.expect("read").is_none());
    let intent = promotion(&zombie, 0, "v1", db.now()).by_run.expect("by a run").intent;
    assert!(matches!(store.intend(run, zombie.run.epoch, &intent).await, Err(StoreError::Fenced)));
    assert!(matches!(store.settle(run, zombie.run.epoch, "k", &json!(1)).await, Err(StoreError::Fenced)));
}

async fn of_a_cancel_and_a_promotion_one_comes_first(db: Database) {
    let (one, two) = (db.open().await, db.open().await);
    let worker = worker(&one, db.now()).await;
    let mut generation = 0;
    for _ in 0..8 {
        let run = make::run(&one, db.now()).await;
        let held = claim(&one, run, worker, db.now()).await;
        let wish = CancelRequest { actor: "ann".to_owned(), reason: None, at: db.now() };
        let (written, asked) = tokio::join!(
            one.write_release(promotion(&held, generation, "v1", db.now())),
            two.request_cancel(run, &wish)
        );
        assert!(asked.expect("asked"));
        let after = one.run(run).await.expect("read").expect("there");
        match written.expect("asked") {
            ReleaseWritten::Made(release) => {
                generation = release.generation.0;
                assert!(after.committed);
            }
            ReleaseWritten::CancelRequested => assert!(!after.committed),
            other @ (ReleaseWritten::Moved(_) | ReleaseWritten::Deleted(_) | ReleaseWritten::Frozen(_)) => {
                panic!("nobody else writes: {other:?}")
            }
        }
        // A cancel that came first stays first.
        if !after.committed {
            let again = one.write_release(promotion(&held, generation, "v1", db.now())).await.expect("asked");
            assert_eq!(again, ReleaseWritten::CancelRequested);
        }
    }
}

fn canary(run: RunId, at: Timestamp) -> CanaryRecord {
    CanaryRecord {
        id: CanaryId::generate(),
        run,
        model: model(),
        target: target(),
        version: version("v2"),
        champion: version("v1"),
        generation: Generation(1),
        stages: vec![Stage { share: BasisPoints(1000), min_time: Duration::from_secs(60) }],
        stage: 0,
        stage_since: at,
        rules: Compare {
            rules: Vec::new(),
            on_inconclusive: OnInconclusive::Hold,
            when_underpowered: WhenUnderpowered::Hold,
            hold_for: Duration::from_secs(3600),
            hold_traffic: HoldTraffic::Keep,
            alpha: 0.05,
            beta: 0.05,
        },
        started_at: at,
        deadline: None,
        state: CanaryState::Watching,
        bake_until: None,
        verdict: Verdict::Inconclusive,
        reason: "too early".to_owned(),
        analysis: json!({"rows": 0}),
        next_look_at: at,
        ended_at: None,
        extensions: vec![],
    }
}

fn by(held: &Claim) -> (RunId, Epoch) {
    (held.run.id, held.run.epoch)
}

fn to_baking(canary: &CanaryRecord, held: &Claim, at: Timestamp) -> CanaryChange {
    CanaryChange {
        canary: canary.id,
        model: canary.model.clone(),
        from: CanaryState::Watching,
        to: CanaryState::Baking,
        bake_until: Some(at + chrono::TimeDelta::hours(1)),
        reason: None,
        by_run: Some(by(held)),
        at,
    }
}

async fn a_late_process_changes_no_canary(db: Database) {
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let run = make::run(&store, db.now()).await;
    let late = claim(&store, run, worker, db.now()).await;
    let out = store.open_canary(late.run.epoch, &canary(run, db.now())).await.expect("opened");
    store.release_lease(run, late.run.epoch).await.expect("given back");
    let held = claim(&store, run, worker, db.now()).await;
    let changed = store.set_canary_state(&to_baking(&out, &late, db.now())).await;
    assert!(matches!(changed, Err(StoreError::Fenced)), "{changed:?}");
    assert_eq!(store.canary_of(run).await.expect("read").expect("there"), out);

    let baking = store.set_canary_state(&to_baking(&out, &held, db.now())).await.expect("written");
    let until = db.now() + chrono::TimeDelta::hours(1);
    assert_eq!((baking.state, baking.bake_until), (CanaryState::Baking, Some(until)));
    assert_eq!(baking.reason, out.reason, "what the last look said");
    // A second time, later: the bake that began goes on.
    let again = store.set_canary_state(&to_baking(&out, &held, db.pass(60))).await.expect("asked");
    assert_eq!(again, baking);
    let ended = store.end_bake(out.id, &model(), by(&late), until).await;
    assert!(matches!(ended, Err(StoreError::Fenced)), "{ended:?}");
    let withdrawn = CanaryChange {
        to: CanaryState::RolledBack,
        reason: Some("withdrawn".to_owned()),
        by_run: None,
        ..to_baking(&out, &held, db.now())
    };
    let kept = store.set_canary_state(&withdrawn).await.expect("asked");
    assert_eq!(kept, baking, "it was watched when that was decided");
    let withdrawn = CanaryChange { from: CanaryState::Baking, bake_until: None, ..withdrawn };
    let gone = store.set_canary_state(&withdrawn).await.expect("written");
    assert_eq!((gone.state, gone.reason.as_str()), (CanaryState::RolledBack, "withdrawn"));
    let ended = store.end_bake(out.id, &model(), by(&held), until).await.expect("asked");
    assert_eq!(ended, gone, "one that ended stays as it is");
}

async fn reserve(store: &std::sync::Arc<dyn Store>, held: &Claim, at: Timestamp) -> VersionName {
    let by = Reservation {
        run: held.run.id,
        epoch: held.run.epoch,
        step: step("publish"),
        model: model(),
        store: "models".parse().expect("a name"),
        at,
    };
    let name_of = |taken: &[VersionName]| version(&format!("2026-11-20.{}", taken.len() + 1));
    store.reserve_version(&by, &name_of).await.expect("reserved").name
}

async fn two_runs_of_a_day_get_two_versions(db: Database) {
    let (one, two) = (db.open().await, db.open().await);
    let worker = worker(&one, db.now()).await;
    let (x, y) = (make::run(&one, db.now()).await, make::run(&one, db.now()).await);
    let (x, y) = (claim(&one, x, worker, db.now()).await, claim(&one, y, worker, db.now()).await);
    let (a, b) = tokio::join!(reserve(&one, &x, db.now()), reserve(&two, &y, db.now()));
    assert_ne!(a, b);
    assert_eq!(reserve(&one, &x, db.now()).await, a, "the same for one run and step");
    one.set_version_state(&model(), &a, VersionState::Abandoned, None, Some((x.run.id, x.run.epoch)))
        .await
        .expect("given up");
    let third = reserve(&one, &x, db.now()).await;
    assert!(third != a && third != b, "names given up are not used again");
}

async fn a_sealed_version_is_listed(db: Database) {
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let run = make::run(&store, db.now()).await;
    let held = claim(&store, run, worker, db.now()).await;
    let name = reserve(&store, &held, db.now()).await;
    assert!(store.versions(&model()).await.expect("listed").is_empty(), "half a version is none");
    let manifest = Manifest {
        schema: 1,
        model: model(),
        version: name.clone(),
        instance: store.instance(),
        run: Some(run),
        sealed_at: db.now(),
        files: Vec::new(),
        metrics: refit::domain::metric::Metrics::default(),
        provenance: json!({}),
    };
    let fence = Some((run, held.run.epoch));
    store
        .set_version_state(&model(), &name, VersionState::Sealed, Some((&manifest, "/m", "ab")), fence)
        .await
        .expect("sealed");
    let listed = store.versions(&model()).await.expect("listed");
    assert_eq!((listed.len(), listed[0].state, listed[0].base_url.as_str()), (1, VersionState::Sealed, "/m"));
    assert_eq!(listed[0].manifest, Some(manifest));
    let mut adopted = listed[0].clone();
    adopted.name = version("live-today");
    adopted.run = None;
    let by = make::by_ann(db.now());
    store.adopt_version(&adopted, &by).await.expect("adopted");
    store.adopt_version(&adopted, &by).await.expect("again");
    adopted.manifest_sha256 = "other".to_owned();
    assert!(store.adopt_version(&adopted, &by).await.is_err(), "a sealed version never changes");
}

async fn a_rollback_ends_the_canary_and_marks_the_version(db: Database) {
    let store = db.open().await;
    let worker = worker(&store, db.now()).await;
    let run = make::run(&store, db.now()).await;
    let held = claim(&store, run, worker, db.now()).await;
    let name = reserve(&store, &held, db.now()).await;
    store.set_version_state(&model(), &name, VersionState::Sealed, None, None).await.expect("sealed");
    let out = store.open_canary(held.run.epoch, &canary(run, db.now())).await.expect("opened");
    assert_eq!(store.open_canary(held.run.epoch, &canary(run, db.now())).await.expect("again").id, out.id);
    let unheard = vec![make::notice("its run is over", Some(run))];
    let end = CanaryEnd { if_run_is_over: unheard, ..CanaryEnd::of(&out, "worse by 12 %".to_owned()) };
    let rollback =
        ReleaseWrite { ends_canary: Some(end), marks_bad: Some(name.clone()), ..write(0, "v1", db.pass(60)) };
    assert!(matches!(store.write_release(rollback).await.expect("asked"), ReleaseWritten::Made(_)));
    let ended = store.canary_of(run).await.expect("read").expect("there");
    assert_eq!(
        (ended.state, ended.reason.as_str(), ended.ended_at),
        (CanaryState::RolledBack, "worse by 12 %", Some(db.now()))
    );
    assert!(store.live_canaries(None).await.expect("listed").is_empty());
    assert!(store.outbox_of(run).await.expect("listed").is_empty(), "its run hears of it, and says it");
    assert_eq!(store.version(&model(), &name).await.expect("read").expect("there").state, VersionState::Bad);
}

async fn a_change_is_told_with_it_or_not_at_all(db: Database) {
    let store = db.open().await;
    let tells = |expected, champion, key: &str| {
        let write = write(expected, champion, db.now());
        ReleaseWrite { notices: vec![make::notice(key, None)], heeds_freeze: true, ..write }
    };
    let queued = async || {
        let taken = store.take_outbox(10, Duration::from_secs(60), db.now()).await.expect("taken");
        taken.into_iter().map(|entry| entry.notice.key).collect::<Vec<_>>()
    };
    let made = store.write_release(tells(0, "v1", "first")).await.expect("asked");
    assert!(matches!(made, ReleaseWritten::Made(_)));
    assert_eq!(queued().await, ["first"]);
    let late = store.write_release(tells(0, "v2", "late")).await.expect("asked");
    assert!(matches!(late, ReleaseWritten::Moved(Some(_))));
    super::freezes::frozen(&*store, db.now()).await;
    let refused = store.write_release(tells(1, "v2", "refused")).await.expect("asked");
    assert!(matches!(refused, ReleaseWritten::Frozen(_)));
    assert_eq!(queued().await, [""; 0]);
}

async fn a_look_is_taken_once(db: Database) {
    let (one, two) = (db.open().await, db.open().await);
    let worker = worker(&one, db.now()).await;
    let run = make::run(&one, db.now()).await;
    let held = claim(&one, run, worker, db.now()).await;
    let out = one.open_canary(held.run.epoch, &canary(run, db.now())).await.expect("opened");
    assert_eq!(one.live_canaries(Some(db.now())).await.expect("listed").len(), 1);
    let next = db.now() + chrono::TimeDelta::seconds(60);
    let (a, b) = tokio::join!(
        one.take_look(out.id, out.next_look_at, next),
        two.take_look(out.id, out.next_look_at, next)
    );
    assert_ne!(a.expect("asked"), b.expect("asked"));
    assert!(one.live_canaries(Some(db.now())).await.expect("listed").is_empty());
    let told = |key: &str| make::notice(key, Some(run));
    let after = CanaryRecord { analysis: json!({"rows": 7}), ..out.clone() };
    let saved = one.save_look(&out, &after, &[told("late")]).await.expect("asked");
    assert!(!saved, "it was read before another look was taken");
    let out = CanaryRecord { next_look_at: next, ..out };
    let after = CanaryRecord { next_look_at: next, ..after };
    assert!(one.save_look(&out, &after, &[told("in time")]).await.expect("asked"));
    let saved = one.canary_of(run).await.expect("read").expect("there");
    assert_eq!((saved.analysis, saved.next_look_at), (json!({"rows": 7}), next), "the next look stands");
    let bakes = CanaryChange { bake_until: Some(next), ..to_baking(&out, &held, db.now()) };
    one.set_canary_state(&bakes).await.expect("written");
    let saved = one.save_look(&out, &after, &[told("too late")]).await.expect("asked");
    assert!(!saved, "it moved on meanwhile");
    let keys: Vec<String> =
        one.outbox_of(run).await.expect("listed").into_iter().map(|entry| entry.notice.key).collect();
    assert_eq!(keys, ["in time"]);

    // A look that finds a failure comes before the end of the bake, or after it.
    let baking = one.canary_of(run).await.expect("read").expect("there");
    let failing = CanaryRecord { verdict: Verdict::Fail, ..baking.clone() };
    assert!(one.save_look(&baking, &failing, &[]).await.expect("asked"));
    let signals = one.signals(run).await.expect("read");
    let kinds: Vec<&SignalKind> = signals.iter().map(|signal| &signal.kind).collect();
    assert_eq!(kinds, [&SignalKind::Look], "the run hears of a new verdict, and of nothing else");
    assert_eq!(
        one.end_bake(out.id, &model(), by(&held), next).await.expect("asked").state,
        CanaryState::Baking
    );
    assert!(one.save_look(&failing, &baking, &[]).await.expect("asked"));
    assert_eq!(
        one.end_bake(out.id, &model(), by(&held), next).await.expect("asked").state,
        CanaryState::Promoted
    );
    assert!(!one.save_look(&baking, &failing, &[]).await.expect("asked"));
}

async fn a_look_and_an_extension_at_the_same_time_are_both_kept(db: Database) {
    let (one, two) = (db.open().await, db.open().await);
    let worker = worker(&one, db.now()).await;
    let run = make::run(&one, db.now()).await;
    let held = claim(&one, run, worker, db.now()).await;
    let deadline = db.now() + chrono::TimeDelta::hours(24);
    let opened = CanaryRecord { deadline: Some(deadline), ..canary(run, db.now()) };
    let read = one.open_canary(held.run.epoch, &opened).await.expect("opened");
    let hours = chrono::TimeDelta::hours;
    let ask = async |more| {
        let asked = MoreTime { more, by: "ana".to_owned(), reason: None };
        two.extend_canary(run, &asked, db.now()).await.expect("asked")
    };
    let Extended::Made(first) = ask(hours(24)).await else { panic!("made") };
    assert_eq!(first.deadline, Some(deadline + hours(24)));
    // A look that read the canary before is saved after.
    let learnt = CanaryRecord { analysis: json!({"rows": 7}), ..read.clone() };
    assert!(one.save_look(&read, &learnt, &[]).await.expect("asked"), "the look is kept");
    let known = one.canary_of(run).await.expect("read").expect("there");
    assert_eq!((&known.analysis, known.deadline), (&json!({"rows": 7}), first.deadline));
    assert_eq!(known.extensions, first.extensions, "and so is the extension");
    let Extended::Made(second) = ask(hours(1)).await else { panic!("made") };
    assert_eq!((second.deadline, second.extensions.len()), (Some(deadline + hours(25)), 2));
    assert_eq!(second.extensions[1].before, first.deadline);
    assert!(one.save_look(&known, &known, &[]).await.expect("asked"));
    assert_eq!(one.live_canaries(None).await.expect("listed")[0].extensions.len(), 2);
    // The run hears of each.
    one.release_lease(run, held.run.epoch).await.expect("given back");
    let held = claim(&one, run, worker, db.now()).await;
    assert_eq!(held.signals.len(), 2);

    let bakes = CanaryChange { bake_until: Some(deadline), ..to_baking(&read, &held, db.now()) };
    one.set_canary_state(&bakes).await.expect("written");
    assert_eq!(ask(hours(1)).await, Extended::Refused(NotExtended::Bakes));
    assert_eq!(one.canary_of(run).await.expect("read").expect("there").extensions.len(), 2);
    let other = make::run(&one, db.now()).await;
    let asked = MoreTime { more: hours(1), by: "ana".to_owned(), reason: None };
    assert_eq!(two.extend_canary(other, &asked, db.now()).await.expect("asked"), Extended::Unknown);
}
