//! What must be the same whether a process died or not.

use std::collections::BTreeMap;
use std::path::Path;

use refit::domain::canary::CanaryState;
use refit::domain::release::ReleaseActor;
use refit::domain::run::{Attempt, AttemptState, IntentState, Outcome};
use refit::domain::verdict::Verdict;
use refit::domain::version::VersionState;

use super::process::{Inbox, run_of};
use crate::support::crash::Crash;
use crate::support::world::World;

/// The end of a story, without what differs from run to run: ids, times, hashes.
#[derive(Debug, Clone, PartialEq)]
pub struct Proof {
    pub outcome: Option<Outcome>,
    /// Whether the promotion was past its first write.
    committed: bool,
    /// How each step ended.
    steps: BTreeMap<String, AttemptState>,
    /// The champions that the host showed, in order.
    pub champions: Vec<String>,
    /// Champion and canary that it shows.
    host: (Option<String>, Option<String>),
    /// Every change of the release: who, champion, canary with its share.
    releases: Vec<String>,
    versions: Vec<(String, VersionState)>,
    /// All objects in the artifact store.
    objects: Vec<String>,
    canary: Option<(CanaryState, Verdict)>,
    /// What became of each undo.
    undos: BTreeMap<String, IntentState>,
    /// Keys of the messages.
    told: Vec<String>,
}

impl Proof {
    /// How `other` differs.
    pub fn difference(&self, other: &Self) -> Option<String> {
        let (calm, crashed) = (format!("{self:#?}"), format!("{other:#?}"));
        if calm == crashed {
            return None;
        }
        let only = |here: &str, there: &str, sign: char| {
            let lines = here.lines().filter(|line| !there.contains(*line));
            lines.map(|line| format!("\n  {sign} {}", line.trim())).collect::<String>()
        };
        Some(format!("{}{}", only(&calm, &crashed, '-'), only(&crashed, &calm, '+')))
    }
}

/// Reads what there is, and checks what holds of any end.
pub async fn prove(world: &World, inbox: &Inbox) -> Proof {
    let engine = world.process(&Crash::never()).await;
    let store = &engine.store;
    let id = run_of(&engine, &"retrain".parse().expect("a name")).await.expect("a run");
    let run = store.run(id).await.expect("readable").expect("a run");
    let attempts = store.attempts(id).await.expect("readable");
    succeed_once(&attempts);
    let began = std::fs::read_to_string(world.path("began")).expect("written").lines().count();
    let trainings = attempts.iter().filter(|attempt| attempt.step.as_str() == "train").count();
    // One more: the first version's.
    assert!(began <= trainings + 1, "trained {began} times for {trainings} attempts");

    let releases = store.releases(None).await.expect("readable");
    let [release] = releases.as_slice() else { panic!("{releases:#?}") };
    assert_eq!((release.is_applied(), release.owner), (true, None), "{release:#?}");
    assert_eq!(release.desired.canary, None);
    let shown = world.host.current().expect("shown");
    assert_eq!(shown, release.document(store.instance()), "the host shows something else");

    let history = store.release_history(&run.model, &release.target, 100).await.expect("readable");
    let generations: Vec<i64> = history.iter().rev().map(|change| change.generation.0).collect();
    assert!(generations.iter().zip(1..).all(|(made, n)| *made == n), "{generations:?}");

    let artifacts = &engine.services.stores[&"models".parse().expect("a name")];
    let versions = store.versions(&run.model).await.expect("readable");
    for version in &versions {
        refit::artifacts::verify(artifacts, &run.model, &version.name, &version.manifest_sha256)
            .await
            .unwrap_or_else(|error| panic!("{}: {error}", version.name));
    }

    let told = store.outbox_of(id).await.expect("readable");
    let unsent: Vec<_> = told.iter().filter(|entry| entry.sent_at.is_none()).collect();
    assert!(unsent.is_empty(), "{unsent:#?}");
    let messages = inbox.messages(world);
    assert!(
        messages.len() >= told.len(),
        "{} messages arrived of {}: {messages:#?}",
        messages.len(),
        told.len()
    );

    let canary = store.canary_of(id).await.expect("readable");
    let intents = store.intents(id).await.expect("readable");
    let undos = intents.iter().filter(|intent| intent.undo.is_some());
    let unprefixed = |key: &str| key.replace(&id.to_string(), "run");
    store.retire_worker(engine.worker).await.expect("retires");
    Proof {
        outcome: run.outcome,
        committed: run.committed,
        steps: attempts.iter().map(|attempt| (attempt.step.to_string(), attempt.state)).collect(),
        champions: world.host.champions(),
        host: (
            shown.champion.map(|served| served.version.to_string()),
            shown.canary.map(|canary| canary.served.version.to_string()),
        ),
        releases: history.iter().rev().map(change).collect(),
        versions: versions.into_iter().map(|version| (version.name.to_string(), version.state)).collect(),
        objects: objects(&world.path("models")),
        canary: canary.map(|canary| (canary.state, canary.verdict)),
        undos: undos.map(|intent| (unprefixed(&intent.key), intent.state)).collect(),
        told: sorted(told.iter().map(|entry| unprefixed(&entry.notice.key))),
    }
}

/// No step succeeds twice, none begins again once it did, and at the end none seems to go on.
fn succeed_once(attempts: &[Attempt]) {
    let open = |attempt: &Attempt| matches!(attempt.state, AttemptState::Started | AttemptState::Sleeping);
    assert!(!attempts.iter().any(open), "{attempts:#?}");
    for (at, done) in attempts.iter().enumerate() {
        if done.state == AttemptState::Succeeded {
            let mut others =
                attempts.iter().enumerate().filter(|(i, other)| *i != at && other.step == done.step);
            assert!(others.all(|(_, other)| other.attempt < done.attempt), "{attempts:#?}");
        }
    }
}

fn change(change: &refit::store::ReleaseAudit) -> String {
    let who = match &change.actor {
        // The run and the controller read one verdict; whoever comes first acts on it.
        ReleaseActor::Run { .. } | ReleaseActor::Controller { .. } => "refit",
        ReleaseActor::Undo { .. } => "undo",
        ReleaseActor::Human { .. } => "human",
    };
    let champion = change.assignment.champion.as_ref().map(|served| served.version.to_string());
    let canary = change.assignment.canary.as_ref();
    let canary = canary.map(|canary| format!("{} {}", canary.served.version, canary.basis_points));
    format!("{who}: {champion:?} {canary:?}")
}

/// The files below `dir`, in order.
fn objects(dir: &Path) -> Vec<String> {
    let pattern = format!("{}/**/*", dir.display());
    let found = glob::glob(&pattern).expect("a pattern").map(|path| path.expect("readable"));
    let files = found.filter(|path| path.is_file());
    sorted(files.map(|path| path.strip_prefix(dir).expect("below").display().to_string()))
}

fn sorted<T: Ord>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut items: Vec<T> = items.collect();
    items.sort();
    items
}
