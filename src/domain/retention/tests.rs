use super::*;
use crate::domain::id::Generation;
use crate::domain::release::{CanaryServed, Served};
use crate::domain::workflow::units::BasisPoints;

fn now() -> Timestamp {
    "2026-11-21T02:00:00Z".parse().expect("a time")
}

fn version(name: &str) -> VersionName {
    name.parse().expect("a name")
}

fn target() -> TargetName {
    "production".parse().expect("a name")
}

fn store() -> StoreName {
    "models".parse().expect("a name")
}

/// A version that was made so many days ago.
fn record(name: &str, days: i64, state: VersionState) -> VersionRecord {
    VersionRecord {
        model: "race-times".parse().expect("a name"),
        name: version(name),
        store: store(),
        state,
        run: Some(RunId::generate()),
        place: None,
        base_url: String::new(),
        manifest_sha256: String::new(),
        manifest: None,
        created_at: now() - TimeDelta::days(days),
    }
}

fn served(name: &str) -> Served {
    Served { version: version(name), base_url: String::new(), manifest_sha256: String::new() }
}

fn assignment(champion: &str, canary: Option<&str>, previous: Option<&str>) -> Assignment {
    Assignment {
        champion: Some(served(champion)),
        canary: canary.map(|name| CanaryServed {
            served: served(name),
            basis_points: BasisPoints(1000),
            salt: String::new(),
            valid_until: now(),
        }),
        previous: previous.map(served),
    }
}

fn release(desired: Assignment) -> Release {
    Release {
        model: "race-times".parse().expect("a name"),
        target: target(),
        generation: Generation(9),
        desired,
        applied: Some(Generation(9)),
        owner: None,
        updated_at: now(),
    }
}

/// Versions 9 to 1, newest first, of which 9 serves and 8 served before.
fn nine() -> Holdings {
    Holdings {
        versions: (1..=9)
            .rev()
            .map(|n| record(&n.to_string(), 10 * (10 - n), VersionState::Sealed))
            .collect(),
        releases: vec![release(assignment("9", None, Some("8")))],
        ..Holdings::default()
    }
}

fn keep(latest: u32) -> Policy {
    Policy { latest: [(store(), latest)].into(), ..Policy::default() }
}

/// The names that go.
fn gone(holdings: &Holdings, policy: &Policy) -> String {
    let names = holdings.versions.iter().map(|record| &record.name);
    let names = names.filter(|name| matches!(judge(name, holdings, policy, now()), Fate::Deleted { .. }));
    names.map(VersionName::as_str).collect::<Vec<_>>().join(" ")
}

fn reasons(name: &str, holdings: &Holdings, policy: &Policy) -> String {
    match judge(&version(name), holdings, policy, now()) {
        Fate::Kept { reasons } => reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
        other => panic!("{name} is not kept: {other:?}"),
    }
}

#[test]
fn the_newest_stay_and_the_rest_goes() {
    assert_eq!(gone(&nine(), &keep(3)), "6 5 4 3 2 1");
    assert_eq!(reasons("7", &nine(), &keep(3)), "among the newest 3");
    assert_eq!(gone(&nine(), &Policy::default()), "", "nobody said `keep`");
    assert_eq!(reasons("1", &nine(), &Policy::default()), "no workflow says `keep` of it");
}

#[test]
fn whatever_serves_or_is_gone_back_to_stays() {
    let mut holdings = nine();
    holdings.releases = vec![release(assignment("2", Some("3"), Some("4")))];
    assert_eq!(gone(&holdings, &keep(1)), "8 7 6 5 1");
    assert_eq!(reasons("2", &holdings, &keep(1)), "serves on production");
    assert_eq!(reasons("3", &holdings, &keep(1)), "on canary on production");
    assert_eq!(reasons("4", &holdings, &keep(1)), "served on production before");
    // The previous one is bad: a rollback goes to the newest good one.
    holdings.versions[5].state = VersionState::Bad;
    holdings.versions[0].state = VersionState::Bad;
    assert_eq!(reasons("8", &holdings, &keep(1)), "a rollback on production goes to it; among the newest 1");
    assert_eq!(reasons("9", &holdings, &keep(1)), "among the newest 1", "bad ones go with their age");
}

#[test]
fn keeping_only_one_still_leaves_something_to_go_back_to() {
    let mut holdings = nine();
    holdings.releases = vec![release(assignment("9", None, None))];
    assert_eq!(gone(&holdings, &keep(1)), "7 6 5 4 3 2 1");
    assert_eq!(reasons("8", &holdings, &keep(1)), "a rollback on production goes to it");
}

#[test]
fn pins_runs_and_hosts_speak_for_versions() {
    let mut holdings = nine();
    let by = ReleaseActor::Human { name: "ann".to_owned() };
    holdings.pins.push(Pin {
        model: "race-times".parse().expect("a name"),
        version: version("1"),
        actor: by,
        reason: "the audit of 2026".to_owned(),
        at: now(),
    });
    let run = RunId::generate();
    holdings.named.insert(version("2"), run);
    holdings.unfinished.insert(holdings.versions[6].run.expect("made by a run"));
    holdings.shown.insert(version("4"), target());
    assert_eq!(gone(&holdings, &keep(3)), "6 5");
    assert_eq!(reasons("1", &holdings, &keep(3)), "pinned by ann: the audit of 2026");
    assert_eq!(reasons("2", &holdings, &keep(3)), format!("needed by run {run}"));
    assert_eq!(reasons("4", &holdings, &keep(3)), "production shows it");
    holdings.silent.push(target());
    assert_eq!(gone(&holdings, &keep(3)), "", "a host that does not answer may show any of them");
}

#[test]
fn what_served_lately_or_may_still_be_shown_stays() {
    let mut holdings = nine();
    let past = |name: &str, hours, may_be_shown| PastAssignment {
        target: target(),
        assignment: assignment(name, None, None),
        until: Some(now() - TimeDelta::hours(hours)),
        may_be_shown,
    };
    holdings.past = vec![past("3", 23, false), past("2", 25, false), past("1", 25, true)];
    assert_eq!(gone(&holdings, &keep(3)), "6 5 4 2");
    assert_eq!(
        reasons("3", &holdings, &keep(3)),
        "served on production lately; apps may ask for it until 2026-11-21 03:00 UTC"
    );
    assert_eq!(reasons("1", &holdings, &keep(3)), "a change on production is under way");
}

#[test]
fn half_an_upload_goes_a_week_after_its_run_ended() {
    let mut holdings = nine();
    holdings.versions.insert(0, record("11", 8, VersionState::Reserved));
    holdings.versions.insert(0, record("12", 6, VersionState::Reserved));
    holdings.versions.insert(0, record("13", 8, VersionState::Abandoned));
    assert_eq!(gone(&holdings, &Policy::default()), "11");
    assert_eq!(reasons("12", &holdings, &keep(3)), "half an upload; goes after 2026-11-22 02:00 UTC");
    let run = holdings.versions[2].run.expect("made by a run");
    holdings.unfinished.insert(run);
    assert_eq!(reasons("11", &holdings, &keep(3)), format!("needed by run {run}"));
    assert_eq!(judge(&version("13"), &holdings, &keep(3), now()), Fate::Nothing, "it was never refit's");
}

#[test]
fn what_refit_did_not_upload_goes_only_when_asked_for() {
    let mut holdings = nine();
    holdings.versions[8].run = None;
    assert_eq!(reasons("1", &holdings, &keep(3)), "adopted: refit did not upload it");
    assert_eq!(gone(&holdings, &Policy { adopted: true, ..keep(3) }), "6 5 4 3 2 1");
}

#[test]
fn a_deletion_that_was_begun_goes_on_and_one_that_ended_is_nothing() {
    let mut holdings = nine();
    holdings.versions[3].state = VersionState::Deleting;
    holdings.versions[4].state = VersionState::Deleted;
    assert_eq!(gone(&holdings, &Policy::default()), "6");
    assert_eq!(judge(&version("5"), &holdings, &keep(3), now()), Fate::Nothing);
    assert_eq!(judge(&version("77"), &holdings, &keep(3), now()), Fate::Nothing);
}
