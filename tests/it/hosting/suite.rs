//! What every `Target` promises; takes fresh hosts by name.

use std::sync::Arc;

use futures::future::LocalBoxFuture;
use refit::adapter::{AdapterError, Target};
use refit::domain::id::{Generation, InstanceId, ModelName};
use refit::domain::release::{Assignment, CanaryServed, Release, Served};
use refit::domain::workflow::units::BasisPoints;

use crate::support::faults::{Fault, Server};

/// A host that shows nothing yet.
pub struct Host {
    pub target: Arc<dyn Target>,
    /// The same host, with leave to replace a foreign refit's release.
    pub taking_over: Arc<dyn Target>,
    /// What a person does who edits the host by hand.
    pub overwrite: Box<dyn Fn(String) -> LocalBoxFuture<'static, ()>>,
    /// Where the host is asked; none when that is no server that can be broken.
    pub line: Option<Line>,
    /// Who is not let in; nobody where the host is a file, or a store, which has a suite of its own.
    pub refused: Vec<Refused>,
    /// How often something was built for refit.
    pub builds: Box<dyn Fn() -> usize>,
    /// What must hold of the host whatever was done with it.
    pub sound: Box<dyn Fn()>,
}

/// The way to a host that is a server.
pub struct Line {
    pub server: Server,
    /// Another host that shows what this one shows now.
    pub again: Box<dyn Fn() -> Host>,
}

/// The host as somebody sees it whom it does not let in.
pub struct Refused {
    pub who: &'static str,
    pub target: Arc<dyn Target>,
    /// The words of the error that say what to do.
    pub todo: &'static str,
}

/// A token that was good once.
pub const EXPIRED: &str = "token-that-ran-out-04";

impl Host {
    fn server(&self) -> &Server {
        &self.line.as_ref().expect("a server").server
    }

    /// A host that no request leads to.
    pub fn local(
        target: Arc<dyn Target>,
        taking_over: Arc<dyn Target>,
        overwrite: impl Fn(String) -> LocalBoxFuture<'static, ()> + 'static,
    ) -> Self {
        Self {
            target,
            taking_over,
            overwrite: Box::new(overwrite),
            line: None,
            refused: vec![],
            builds: Box::new(|| 0),
            sound: Box::new(|| {}),
        }
    }
}

pub fn model() -> ModelName {
    "race-times".parse().expect("a name")
}

fn served(version: &str) -> Served {
    Served {
        version: version.parse().expect("a name"),
        base_url: format!("https://models.example/race-times/{version}"),
        manifest_sha256: "0".repeat(64),
    }
}

/// Generation `generation`: this champion, and perhaps this canary with its share.
pub fn release(generation: i64, champion: &str, canary: Option<(&str, u16)>) -> Release {
    let at = chrono::DateTime::from_timestamp(1_795_000_000 + generation, 0).expect("in range");
    let canary = canary.map(|(version, share)| CanaryServed {
        served: served(version),
        basis_points: BasisPoints(share),
        salt: "pepper".to_owned(),
        valid_until: at + chrono::TimeDelta::hours(12),
    });
    Release {
        model: model(),
        target: "production".parse().expect("a name"),
        generation: Generation(generation),
        desired: Assignment { champion: Some(served(champion)), canary, previous: None },
        applied: None,
        owner: None,
        updated_at: at,
    }
}

fn assert_conflict(result: Result<(), AdapterError>, what: &str) {
    assert!(matches!(result, Err(AdapterError::Conflict { .. })), "{what}: {result:?}");
}

/// Runs the suite.
pub async fn exercise(fresh: impl Fn(&str) -> Host) {
    let sound = async |name: &str, story: &dyn Fn(Host) -> LocalBoxFuture<'static, Host>| {
        let host = story(fresh(name)).await;
        (host.sound)();
    };
    sound("life", &|host| Box::pin(a_canary_goes_out_grows_and_is_promoted(host))).await;
    sound("back", &|host| Box::pin(a_canary_is_rolled_back(host))).await;
    sound("older", &|host| Box::pin(an_older_generation_is_refused(host))).await;
    sound("foreign", &|host| Box::pin(a_foreign_release_is_refused_until_it_is_taken_over(host))).await;
    sound("hand", &|host| Box::pin(a_change_by_hand_is_noticed(host))).await;
    sound("renewal", &|host| Box::pin(only_validity_is_renewed_within_a_generation(host))).await;
    sound("refused", &|host| Box::pin(whoever_is_not_let_in_is_told_what_to_do(host))).await;
    every_fault_passes_and_has_one_effect(&fresh).await;
}

/// A change, and what was shown before it.
fn changes() -> Vec<(&'static str, Vec<Release>, Release)> {
    let (first, canary) = (release(1, "v1", None), release(2, "v1", Some(("v2", 1_000))));
    let begun = vec![first.clone(), canary.clone()];
    vec![
        ("first", vec![], first.clone()),
        ("canary", vec![first], canary),
        ("shift", begun.clone(), release(3, "v1", Some(("v2", 5_000)))),
        ("promote", begun.clone(), release(3, "v2", None)),
        ("roll-back", begun, release(3, "v1", None)),
    ]
}

/// At every request of every change: whatever happens to it, trying again ends the same, and nothing is built twice.
async fn every_fault_passes_and_has_one_effect(fresh: &impl Fn(&str) -> Host) {
    let us = InstanceId::generate();
    for (change, before, release) in changes() {
        let prepared = fresh(change);
        let Some(Line { again, .. }) = &prepared.line else { return };
        for earlier in &before {
            prepared.target.apply(earlier, us).await.expect("applied");
        }
        let calm = again();
        calm.target.apply(&release, us).await.expect("applied");
        let (requests, builds) = (calm.server().count(), (calm.builds)());
        for at in 0..requests {
            let stops = vec![Fault::StopBefore, Fault::StopAfter];
            // A request meets each fault in one of the changes, and is lost in all of them.
            let others = if change == "canary" { Fault::passing() } else { vec![Fault::LostAnswer] };
            for fault in stops.into_iter().chain(others) {
                let what = format!("{change}: {fault:?} at request {at} of {requests}");
                let host = again();
                let server = host.server();
                server.fault_after(at, fault);
                let mut done = false;
                for _ in 0..4 {
                    let applied = tokio::select! {
                        applied = host.target.apply(&release, us) => Some(applied),
                        () = server.stopped() => None,
                    };
                    match applied {
                        Some(Ok(())) => done = true,
                        Some(Err(error)) => assert!(error.is_transient(), "{what}: {error}"),
                        None => {}
                    }
                    if done {
                        break;
                    }
                }
                assert!(done, "{what}: never done; {:#?}", server.asked());
                server.mend();
                let shown = host.target.read(&model()).await.expect(&what).expect(&what);
                assert_eq!(shown.document, release.document(us), "{what}");
                assert_eq!((host.builds)(), builds, "{what}: {:#?}", server.asked());
                (host.sound)();
            }
        }
    }
}

/// Applies `release` twice; it is shown, and the second time nothing changes.
async fn shows(host: &Host, us: InstanceId, release: &Release) {
    host.target.apply(release, us).await.expect("applied");
    let shown = host.target.read(&model()).await.expect("readable").expect("shown");
    assert_eq!(shown.document, release.document(us));
    host.target.apply(release, us).await.expect("applied again");
    let again = host.target.read(&model()).await.expect("readable").expect("shown");
    assert_eq!(shown, again, "applying twice is applying once");
}

async fn a_canary_goes_out_grows_and_is_promoted(host: Host) -> Host {
    let us = InstanceId::generate();
    host.target.check().await.expect("usable");
    assert_eq!(host.target.read(&model()).await, Ok(None), "nothing yet");
    shows(&host, us, &release(1, "v1", None)).await;
    let first = host.target.read(&model()).await.expect("readable").expect("shown");
    shows(&host, us, &release(2, "v1", Some(("v2", 1_000)))).await;
    let second = host.target.read(&model()).await.expect("readable").expect("shown");
    assert_ne!(first.fingerprint, second.fingerprint);
    shows(&host, us, &release(3, "v1", Some(("v2", 5_000)))).await;
    shows(&host, us, &release(4, "v2", None)).await;
    host
}

async fn a_canary_is_rolled_back(host: Host) -> Host {
    let us = InstanceId::generate();
    shows(&host, us, &release(7, "v1", Some(("v2", 1_000)))).await;
    shows(&host, us, &release(8, "v1", None)).await;
    // Champion rolled back to an older version: versions may go back, generations never.
    shows(&host, us, &release(9, "v0", None)).await;
    host
}

async fn an_older_generation_is_refused(host: Host) -> Host {
    let us = InstanceId::generate();
    shows(&host, us, &release(5, "v2", None)).await;
    let late = host.target.apply(&release(4, "v1", Some(("v2", 1_000))), us).await;
    assert_conflict(late, "a process that slept");
    let shown = host.target.read(&model()).await.expect("readable").expect("shown");
    assert_eq!(shown.document, release(5, "v2", None).document(us));
    host
}

async fn a_foreign_release_is_refused_until_it_is_taken_over(host: Host) -> Host {
    let (us, they) = (InstanceId::generate(), InstanceId::generate());
    shows(&host, they, &release(50, "v1", None)).await;
    assert_conflict(host.target.apply(&release(99, "v2", None), us).await, "foreign");
    host.taking_over.apply(&release(2, "v2", None), us).await.expect("taken over");
    let shown = host.target.read(&model()).await.expect("readable").expect("shown");
    assert_eq!(shown.document, release(2, "v2", None).document(us));
    assert_conflict(host.target.apply(&release(51, "v1", None), they).await, "theirs no more");
    host
}

async fn a_change_by_hand_is_noticed(host: Host) -> Host {
    let us = InstanceId::generate();
    shows(&host, us, &release(3, "v1", Some(("v2", 1_000)))).await;
    let before = host.target.read(&model()).await.expect("readable").expect("shown");
    let mut edited = before.document.clone();
    edited.champion = Some(served("hotfix"));
    (host.overwrite)(serde_json::to_string(&edited).expect("JSON")).await;
    let after = host.target.read(&model()).await.expect("readable").expect("shown");
    assert_ne!(before.fingerprint, after.fingerprint);
    let again = host.target.apply(&release(3, "v1", Some(("v2", 1_000))), us).await;
    assert_conflict(again, "edited by hand");
    for text in ["", "null", "{}", "<html>", "{\"model\": 1}"] {
        (host.overwrite)(text.to_owned()).await;
        assert_conflict(host.target.apply(&release(4, "v1", None), us).await, text);
        host.target.read(&model()).await.expect_err(text);
    }
    let mut other = release(1, "v1", None);
    other.model = "another".parse().expect("a name");
    (host.overwrite)(serde_json::to_string(&other.document(us)).expect("JSON")).await;
    assert_conflict(host.target.apply(&release(4, "v1", None), us).await, "another model's");
    host
}

async fn only_validity_is_renewed_within_a_generation(host: Host) -> Host {
    let us = InstanceId::generate();
    let first = release(3, "v1", Some(("v2", 1_000)));
    shows(&host, us, &first).await;
    let mut renewed = first.clone();
    renewed.updated_at += chrono::TimeDelta::hours(6);
    if let Some(canary) = &mut renewed.desired.canary {
        canary.valid_until += chrono::TimeDelta::hours(6);
    }
    if host.target.traits().expires {
        shows(&host, us, &renewed).await;
        host.target.apply(&first, us).await.expect("a late renewal is none");
    } else {
        host.target.apply(&renewed, us).await.expect("nothing to renew");
    }
    let shown = host.target.read(&model()).await.expect("readable").expect("shown");
    let expected = if host.target.traits().expires { &renewed } else { &first };
    assert_eq!(shown.document, expected.document(us));
    let grown = release(3, "v1", Some(("v2", 5_000)));
    assert_conflict(host.target.apply(&grown, us).await, "another share needs another generation");
    host
}

/// A refusal is for good, says what to do, shows no token and changes nothing; who is let in goes on as if nothing
/// had been.
async fn whoever_is_not_let_in_is_told_what_to_do(host: Host) -> Host {
    let us = InstanceId::generate();
    shows(&host, us, &release(3, "v1", Some(("v2", 1_000)))).await;
    let shown = host.target.read(&model()).await;
    let builds = (host.builds)();
    for Refused { who, target, todo } in &host.refused {
        let errors = [
            target.check().await.err(),
            target.read(&model()).await.err(),
            target.apply(&release(4, "v1", None), us).await.err(),
        ];
        for error in errors {
            let error = error.unwrap_or_else(|| panic!("{who} is let in"));
            assert!(!error.is_transient(), "{who}: {error}");
            let said = error.to_string();
            assert!(said.contains(todo) && !said.contains(EXPIRED), "{who}: {said}");
        }
    }
    assert_eq!(host.target.read(&model()).await, shown);
    assert_eq!((host.builds)(), builds);
    if let Some(Line { server, .. }) = &host.line {
        assert!(!server.asked().concat().contains(EXPIRED), "{:?}", server.asked());
    }
    shows(&host, us, &release(4, "v1", None)).await;
    host
}
