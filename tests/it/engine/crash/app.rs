//! The app that serves the model, and reports what it served.

use chrono::{DurationRound, TimeDelta};
use refit::domain::evidence::{EvidenceMinute, MinuteCounts, ObservationBatch};
use refit::domain::id::VersionName;

use super::story::Scene;

/// A minute of a thousand requests, of which one in a hundred fails.
pub async fn serves(scene: &Scene<'_>) {
    reports(scene, |_, n| Some(n / 100)).await;
}

/// The same, but each request to `version` fails.
pub async fn fails_at(version: &str, scene: &Scene<'_>) {
    reports(scene, |served, n| Some(if served.as_str() == version { n } else { n / 100 })).await;
}

/// The same, but nothing is heard of `version`.
pub async fn is_silent_of(version: &str, scene: &Scene<'_>) {
    reports(scene, |served, n| (served.as_str() != version).then_some(n / 100)).await;
}

/// A minute of a thousand requests: how many of so many to a version fail, or nothing of it. None where only version 1
/// serves. Once or twice: a minute that is sent again counts once.
async fn reports(scene: &Scene<'_>, errors: impl Fn(&VersionName, u64) -> Option<u64>) {
    let Some(shown) = scene.world.host.current() else { return };
    let Some(champion) = shown.champion else { return };
    let share = shown.canary.as_ref().map_or(0, |canary| u64::from(canary.basis_points.0));
    if share == 0 && champion.version.as_str() == "1" {
        return;
    }
    let now = scene.now();
    let minute = |(version, n): (VersionName, u64)| {
        let counts = MinuteCounts { n, errors: errors(&version, n)?, timed: 0 };
        let minute = now.duration_trunc(TimeDelta::minutes(1)).expect("in range");
        Some(EvidenceMinute { version, minute, seq: 0, counts, latency: vec![] })
    };
    let canary = shown.canary.map(|canary| (canary.served.version, share / 10));
    let served = canary.into_iter().chain([(champion.version, 1000 - share / 10)]);
    let batch = ObservationBatch {
        model: shown.model,
        batch_id: format!("app/{now}"),
        minutes: served.filter_map(minute).collect(),
        predictions: vec![],
        at: now,
    };
    scene.store().observe(&batch).await.expect("kept");
}
