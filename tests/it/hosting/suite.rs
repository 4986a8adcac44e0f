//! What every `Target` promises; takes fresh hosts by name.

use std::sync::Arc;

use futures::future::BoxFuture;
use refit::adapter::{AdapterError, Target};
use refit::domain::id::{Generation, InstanceId, ModelName};
use refit::domain::release::{Assignment, CanaryServed, Release, Served};
use refit::domain::workflow::units::BasisPoints;

/// A host that shows nothing yet.
pub struct Host {
    pub target: Arc<dyn Target>,
    /// The same host, with leave to replace a foreign refit's release.
    pub taking_over: Arc<dyn Target>,
    /// What a person does who edits the host by hand.
    pub overwrite: Box<dyn Fn(String) -> BoxFuture<'static, ()>>,
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
    a_canary_goes_out_grows_and_is_promoted(&fresh("life")).await;
    a_canary_is_rolled_back(&fresh("back")).await;
    an_older_generation_is_refused(&fresh("older")).await;
    a_foreign_release_is_refused_until_it_is_taken_over(&fresh("foreign")).await;
    a_change_by_hand_is_noticed(&fresh("hand")).await;
    only_validity_is_renewed_within_a_generation(&fresh("renewal")).await;
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

async fn a_canary_goes_out_grows_and_is_promoted(host: &Host) {
    let us = InstanceId::generate();
    host.target.check().await.expect("usable");
    assert_eq!(host.target.read(&model()).await, Ok(None), "nothing yet");
    shows(host, us, &release(1, "v1", None)).await;
    let first = host.target.read(&model()).await.expect("readable").expect("shown");
    shows(host, us, &release(2, "v1", Some(("v2", 1_000)))).await;
    let second = host.target.read(&model()).await.expect("readable").expect("shown");
    assert_ne!(first.fingerprint, second.fingerprint);
    shows(host, us, &release(3, "v1", Some(("v2", 5_000)))).await;
    shows(host, us, &release(4, "v2", None)).await;
}

async fn a_canary_is_rolled_back(host: &Host) {
    let us = InstanceId::generate();
    shows(host, us, &release(7, "v1", Some(("v2", 1_000)))).await;
    shows(host, us, &release(8, "v1", None)).await;
    // Champion rolled back to an older version: versions may go back, generations never.
    shows(host, us, &release(9, "v0", None)).await;
}

async fn an_older_generation_is_refused(host: &Host) {
    let us = InstanceId::generate();
    shows(host, us, &release(5, "v2", None)).await;
    let late = host.target.apply(&release(4, "v1", Some(("v2", 1_000))), us).await;
    assert_conflict(late, "a process that slept");
    let shown = host.target.read(&model()).await.expect("readable").expect("shown");
    assert_eq!(shown.document, release(5, "v2", None).document(us));
}

async fn a_foreign_release_is_refused_until_it_is_taken_over(host: &Host) {
    let (us, they) = (InstanceId::generate(), InstanceId::generate());
    shows(host, they, &release(50, "v1", None)).await;
    assert_conflict(host.target.apply(&release(99, "v2", None), us).await, "foreign");
    host.taking_over.apply(&release(2, "v2", None), us).await.expect("taken over");
    let shown = host.target.read(&model()).await.expect("readable").expect("shown");
    assert_eq!(shown.document, release(2, "v2", None).document(us));
    assert_conflict(host.target.apply(&release(51, "v1", None), they).await, "theirs no more");
}

async fn a_change_by_hand_is_noticed(host: &Host) {
    let us = InstanceId::generate();
    shows(host, us, &release(3, "v1", Some(("v2", 1_000)))).await;
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
}

async fn only_validity_is_renewed_within_a_generation(host: &Host) {
    let us = InstanceId::generate();
    let first = release(3, "v1", Some(("v2", 1_000)));
    shows(host, us, &first).await;
    let mut renewed = first.clone();
    renewed.updated_at += chrono::TimeDelta::hours(6);
    if let Some(canary) = &mut renewed.desired.canary {
        canary.valid_until += chrono::TimeDelta::hours(6);
    }
    shows(host, us, &renewed).await;
    host.target.apply(&first, us).await.expect("a late renewal is none");
    let shown = host.target.read(&model()).await.expect("readable").expect("shown");
    assert_eq!(shown.document, renewed.document(us));
    let grown = release(3, "v1", Some(("v2", 5_000)));
    assert_conflict(host.target.apply(&grown, us).await, "another share needs another generation");
}
